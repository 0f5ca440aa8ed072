//! A deterministic, insecure cryptography provider for simulation and fuzzing.
//!
//! It has the shapes of the real thing (lengths, failure modes, a Diffie-Hellman that agrees) and
//! none of its strength, costs next to nothing, and gives the same bytes for the same seed. It
//! lives in this crate so that no binary can contain it.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;

use ike::crypto::{
    CipherAlgorithm, CryptoError, CryptoProvider, Encryption, HashFunction, Hasher, Integrity,
    KexKind, KexSecret, KeyExchangeGroup, KeyShare, KeyedCipher, Prf, PublicKey, SecretBytes,
    SharedSecret, SignatureError, SignatureScheme, SignatureVerifier,
};
use ike::wire::{EncrId, IntegId, KeMethod, PrfId};

/// The table. Key pairs come from [`reseed`]'s stream of the calling thread.
pub static PROVIDER: CryptoProvider = CryptoProvider {
    name: "simulation (insecure)",
    kex: &[
        &Group(KeMethod::Curve25519, "curve25519", 32),
        &Group(KeMethod::Ecp256, "ecp256", 64),
        &Group(KeMethod::Ecp384, "ecp384", 96),
        &Group(KeMethod::Modp2048, "modp2048", 256),
        &Kem(KeMethod::MlKem768, "mlkem768", 1184, 1088),
    ],
    prfs: &[&Mixer(PrfId::HmacSha2_256, 32), &Mixer(PrfId::HmacSha2_384, 48)],
    ciphers: &[&Aead { bits: 256, name: "aes256gcm16" }, &Aead { bits: 128, name: "aes128gcm16" }],
    integs: &[&Checksum],
    signatures: &NoSignatures,
    hashes: &Mix,
};

thread_local! {
    static STREAM: Cell<u64> = const { Cell::new(0) };
    static SEALED: RefCell<BTreeSet<u64>> = const { RefCell::new(BTreeSet::new()) };
    static REUSED: Cell<u64> = const { Cell::new(0) };
    static LIES: RefCell<Vec<(usize, u8)>> = const { RefCell::new(Vec::new()) };
}

/// Changes an octet of what is sealed next: nonsense with good integrity, such as only a peer can
/// say.
pub fn lie_next(at: usize, change: u8) {
    LIES.with(|lies| lies.borrow_mut().push((at, change)));
}

fn tell_lies(plaintext: &mut [u8]) {
    for (at, change) in LIES.with(|lies| std::mem::take(&mut *lies.borrow_mut())) {
        if let Some(octet) = plaintext.get_mut(at) {
            *octet ^= change;
        }
    }
}

/// Restarts the stream of key pairs of this thread, and forgets which IVs were used.
pub fn reseed(seed: u64) {
    STREAM.with(|stream| stream.set(seed));
    LIES.with(|lies| lies.borrow_mut().clear());
    forget_ivs();
}

/// Forgets which IVs were used: what is sealed next may repeat what was.
pub fn forget_ivs() {
    SEALED.with(|sealed| sealed.borrow_mut().clear());
    REUSED.with(|reused| reused.set(0));
}

/// How often this thread has sealed under a key and IV that it had used already.
pub fn iv_reuses() -> u64 {
    REUSED.with(Cell::get)
}

fn note_iv(key: &SecretBytes, iv: &[u8]) {
    let used = mix(8, 7, &[key.expose(), iv]);
    let used = used.first_chunk().map_or(0, |octets| u64::from_le_bytes(*octets));
    if !SEALED.with(|sealed| sealed.borrow_mut().insert(used)) {
        REUSED.with(|reused| reused.set(reused.get() + 1));
    }
}

fn draw() -> u64 {
    STREAM.with(|stream| {
        let state = stream.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        stream.set(state);
        scramble(state)
    })
}

/// The finaliser of splitmix64.
pub fn scramble(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Spreads the parts, with their boundaries, over `len` octets.
pub fn mix(len: usize, domain: u64, parts: &[&[u8]]) -> Vec<u8> {
    let mut state = scramble(domain);
    let mut total = 0;
    for part in parts {
        let (words, rest) = part.as_chunks::<8>();
        for word in words {
            state = scramble(state.rotate_left(5) ^ u64::from_le_bytes(*word));
        }
        if !rest.is_empty() {
            let mut word = [0; 8];
            for (to, from) in word.iter_mut().zip(rest) {
                *to = *from;
            }
            state = scramble(state.rotate_left(5) ^ u64::from_le_bytes(word));
        }
        total += part.len();
    }
    state = scramble(state ^ total as u64);
    let mut out = Vec::with_capacity(len + 8);
    let mut counter = 0;
    while out.len() < len {
        out.extend_from_slice(&scramble(state.wrapping_add(counter)).to_le_bytes());
        counter += 1;
    }
    out.truncate(len);
    out
}

/// Diffie-Hellman modulo the Mersenne prime 2^61 - 1, padded to the group's real length.
#[derive(Debug)]
struct Group(KeMethod, &'static str, usize);

const PRIME: u64 = (1 << 61) - 1;
const GENERATOR: u64 = 37;

fn power(mut base: u64, mut exponent: u64) -> u64 {
    let times = |a: u64, b: u64| (u128::from(a) * u128::from(b) % u128::from(PRIME)) as u64;
    let mut result = 1;
    while exponent > 0 {
        if exponent & 1 == 1 {
            result = times(result, base);
        }
        base = times(base, base);
        exponent >>= 1;
    }
    result
}

impl Group {
    fn encode(&self, value: u64) -> Vec<u8> {
        let mut public = vec![0xd5; self.2];
        public[..8].copy_from_slice(&value.to_be_bytes());
        public
    }
}

impl KeyExchangeGroup for Group {
    fn method(&self) -> KeMethod {
        self.0
    }

    fn name(&self) -> &'static str {
        self.1
    }

    fn kind(&self) -> KexKind {
        KexKind::DiffieHellman
    }

    fn initiator_public_len(&self) -> usize {
        self.2
    }

    fn generate(&self) -> Result<KeyShare, CryptoError> {
        let exponent = draw() % (PRIME - 2) + 1;
        Ok(KeyShare {
            public: self.encode(power(GENERATOR, exponent)),
            secret: Box::new(Exponent { exponent, group: self.1, len: self.2 }),
        })
    }
}

struct Exponent {
    exponent: u64,
    group: &'static str,
    len: usize,
}

impl KexSecret for Exponent {
    fn agree(self: Box<Self>, peer_public: &[u8]) -> Result<SharedSecret, CryptoError> {
        let value = peer_public
            .first_chunk::<8>()
            .filter(|_| peer_public.len() == self.len)
            .map(|bytes| u64::from_be_bytes(*bytes))
            .ok_or(CryptoError::PublicValueLength {
                group: self.group,
                expected: self.len,
                actual: peer_public.len(),
            })?;
        Ok(SecretBytes::new(power(value % PRIME, self.exponent).to_be_bytes().to_vec()))
    }
}

/// A KEM with the lengths of the real one: the ciphertext holds a number, which both sides mix with
/// the key it was made for.
#[derive(Debug)]
struct Kem(KeMethod, &'static str, usize, usize);

struct Decapsulation {
    public: Vec<u8>,
    group: &'static str,
    len: usize,
}

fn padded(value: u64, len: usize) -> Vec<u8> {
    let mut octets = vec![0x5d; len];
    octets[..8].copy_from_slice(&value.to_be_bytes());
    octets
}

impl KeyExchangeGroup for Kem {
    fn method(&self) -> KeMethod {
        self.0
    }

    fn name(&self) -> &'static str {
        self.1
    }

    fn kind(&self) -> KexKind {
        KexKind::Kem
    }

    fn initiator_public_len(&self) -> usize {
        self.2
    }

    fn responder_public_len(&self) -> usize {
        self.3
    }

    fn generate(&self) -> Result<KeyShare, CryptoError> {
        let public = padded(draw(), self.2);
        let secret = Decapsulation { public: public.clone(), group: self.1, len: self.3 };
        Ok(KeyShare { public, secret: Box::new(secret) })
    }

    fn encapsulate(&self, initiator_public: &[u8]) -> Result<(Vec<u8>, SharedSecret), CryptoError> {
        let ciphertext = padded(draw(), self.3);
        let secret = mix(32, 7, &[initiator_public, &ciphertext]);
        Ok((ciphertext, SecretBytes::new(secret)))
    }
}

impl KexSecret for Decapsulation {
    fn agree(self: Box<Self>, peer_public: &[u8]) -> Result<SharedSecret, CryptoError> {
        if peer_public.len() != self.len {
            return Err(CryptoError::PublicValueLength {
                group: self.group,
                expected: self.len,
                actual: peer_public.len(),
            });
        }
        Ok(SecretBytes::new(mix(32, 7, &[&self.public, peer_public])))
    }
}

#[derive(Debug)]
struct Mixer(PrfId, usize);

impl Prf for Mixer {
    fn id(&self) -> PrfId {
        self.0
    }

    fn output_len(&self) -> usize {
        self.1
    }

    fn compute(&self, key: &[u8], parts: &[&[u8]]) -> SecretBytes {
        let mut all = vec![key];
        all.extend_from_slice(parts);
        SecretBytes::new(mix(self.1, 1, &all))
    }
}

#[derive(Debug)]
struct Aead {
    bits: u16,
    name: &'static str,
}

#[derive(Debug)]
struct KeyedAead(SecretBytes);

impl CipherAlgorithm for Aead {
    fn encryption(&self) -> Encryption {
        Encryption { id: EncrId::AesGcm16, key_bits: Some(self.bits) }
    }

    fn name(&self) -> &'static str {
        self.name
    }

    fn is_aead(&self) -> bool {
        true
    }

    fn key_len(&self) -> usize {
        usize::from(self.bits) / 8 + 4
    }

    fn keyed(
        &self,
        key: &SecretBytes,
        _integrity: Option<(&'static dyn Integrity, &SecretBytes)>,
    ) -> Result<Box<dyn KeyedCipher>, CryptoError> {
        Ok(Box::new(KeyedAead(key.clone())))
    }
}

impl KeyedAead {
    fn apply(&self, iv: &[u8], text: &mut [u8]) {
        let stream = mix(text.len(), 2, &[self.0.expose(), iv]);
        for (octet, key) in text.iter_mut().zip(stream) {
            *octet ^= key;
        }
    }

    fn tag(&self, iv: &[u8], aad: &[u8], ciphertext: &[u8]) -> Vec<u8> {
        mix(16, 3, &[self.0.expose(), iv, aad, ciphertext])
    }
}

impl KeyedCipher for KeyedAead {
    fn iv_len(&self) -> usize {
        8
    }

    fn icv_len(&self) -> usize {
        16
    }

    fn block_len(&self) -> usize {
        1
    }

    fn seal(&self, iv: &[u8], aad: &[u8], plaintext: &mut [u8]) -> Result<Vec<u8>, CryptoError> {
        note_iv(&self.0, iv);
        tell_lies(plaintext);
        self.apply(iv, plaintext);
        Ok(self.tag(iv, aad, plaintext))
    }

    fn open(
        &self,
        iv: &[u8],
        aad: &[u8],
        ciphertext: &mut [u8],
        icv: &[u8],
    ) -> Result<(), CryptoError> {
        if self.tag(iv, aad, ciphertext) != icv {
            return Err(CryptoError::Authentication);
        }
        self.apply(iv, ciphertext);
        Ok(())
    }
}

#[derive(Debug)]
struct Checksum;

impl Integrity for Checksum {
    fn id(&self) -> IntegId {
        IntegId::HmacSha2_256_128
    }

    fn key_len(&self) -> usize {
        32
    }

    fn icv_len(&self) -> usize {
        16
    }

    fn compute(&self, key: &[u8], parts: &[&[u8]]) -> Vec<u8> {
        let mut all = vec![key];
        all.extend_from_slice(parts);
        mix(16, 4, &all)
    }
}

#[derive(Debug)]
struct Mix;

impl Hasher for Mix {
    fn digest(&self, function: HashFunction, parts: &[&[u8]]) -> Vec<u8> {
        mix(function.output_len(), 5, parts)
    }
}

/// The world signs and verifies by itself ([`sign`], [`verify`]); no engine may come here.
#[derive(Debug)]
struct NoSignatures;

impl SignatureVerifier for NoSignatures {
    fn supports(&self, _: SignatureScheme, _: &PublicKey<'_>) -> bool {
        false
    }

    fn verify(
        &self,
        _: SignatureScheme,
        _: &PublicKey<'_>,
        _: &[u8],
        _: &[u8],
    ) -> Result<(), SignatureError> {
        Err(SignatureError::Mismatch)
    }
}

/// A signature by the holder of `key`, which is also what verifies it.
pub fn sign(key: &[u8], message: &[u8]) -> Vec<u8> {
    mix(64, 6, &[key, message])
}

/// Whether `signature` is [`sign`]'s.
pub fn verify(key: &[u8], message: &[u8], signature: &[u8]) -> bool {
    sign(key, message) == signature
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_agree_and_the_seed_decides_the_bytes() {
        let share = |seed| {
            reseed(seed);
            let groups = PROVIDER.kex.iter().filter(|group| group.kind() != KexKind::Kem);
            groups.map(|group| group.generate().unwrap()).collect::<Vec<_>>()
        };
        for (a, b) in share(1).into_iter().zip(share(2)) {
            let (pa, pb) = (a.public.clone(), b.public.clone());
            assert_eq!(a.secret.agree(&pb).unwrap(), b.secret.agree(&pa).unwrap());
        }
        let publics = |seed| share(seed).into_iter().map(|s| s.public).collect::<Vec<_>>();
        assert_eq!(publics(7), publics(7));
        assert_ne!(publics(7), publics(8));
    }

    #[test]
    fn a_second_use_of_an_iv_under_the_same_key_is_noticed() {
        reseed(1);
        let keyed = |octet| PROVIDER.ciphers[0].keyed(&SecretBytes::new(vec![octet; 36]), None);
        let seal = |octet, iv: [u8; 8], text: &[u8]| {
            keyed(octet).unwrap().seal(&iv, b"aad", &mut text.to_vec()).unwrap()
        };
        seal(7, [1; 8], b"one");
        seal(7, [2; 8], b"one");
        seal(8, [1; 8], b"one");
        assert_eq!(iv_reuses(), 0);
        seal(7, [1; 8], b"two");
        assert_eq!(iv_reuses(), 1);
    }

    #[test]
    fn a_kem_decapsulates_what_was_encapsulated_to_it() {
        reseed(3);
        let kem = PROVIDER.group(KeMethod::MlKem768).unwrap();
        let (ours, other) = (kem.generate().unwrap(), kem.generate().unwrap());
        let (ciphertext, secret) = kem.encapsulate(&ours.public).unwrap();
        assert_eq!(ciphertext.len(), kem.responder_public_len());
        assert_eq!(ours.secret.agree(&ciphertext).unwrap(), secret);
        assert_ne!(other.secret.agree(&ciphertext).unwrap(), secret);
    }

    #[test]
    fn a_changed_octet_fails_the_integrity_check() {
        let key = SecretBytes::new(vec![7; 36]);
        let cipher = PROVIDER.ciphers[0].keyed(&key, None).unwrap();
        let mut text = b"payloads".to_vec();
        let icv = cipher.seal(&[1; 8], b"aad", &mut text).unwrap();
        let mut good = text.clone();
        cipher.open(&[1; 8], b"aad", &mut good, &icv).unwrap();
        assert_eq!(good, b"payloads");
        text[3] ^= 1;
        assert_eq!(cipher.open(&[1; 8], b"aad", &mut text, &icv), Err(CryptoError::Authentication));
    }
}
