//! Key derivation of IKEv2.
//!
//! SKEYSEED and the seven SK_ keys (RFC 7296 2.14, 2.18), KEYMAT of child SAs (2.17), the updates
//! of RFC 9370 (several key exchanges) and RFC 8784 (PPK), and the octets and values behind the
//! AUTH payload (2.15, 2.16, RFC 9242).
//!
//! Roles are those of the exchange that made the IKE SA: `i` is its initiator, whoever we are.

use super::{CryptoError, Integrity, Prf, SecretBytes, prf_plus};

/// RFC 7296 2.15.
const KEY_PAD: &[u8] = b"Key Pad for IKEv2";

/// Lengths of the keys of an IKE SA in octets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IkeKeyLengths {
    /// SK_d, SK_pi, SK_pr: the PRF's preferred key length.
    pub prf: usize,
    /// SK_ai, SK_ar: zero for an AEAD.
    pub integ: usize,
    /// SK_ei, SK_er: with the salt of an AEAD.
    pub encr: usize,
}

impl IkeKeyLengths {
    const fn total(self) -> usize {
        3 * self.prf + 2 * self.integ + 2 * self.encr
    }
}

/// The seven keys of an IKE SA.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IkeKeys {
    /// Derives the keys of child SAs and of the next IKE SA.
    pub d: SecretBytes,
    /// Integrity, initiator to responder; empty for an AEAD.
    pub ai: SecretBytes,
    /// Integrity, responder to initiator; empty for an AEAD.
    pub ar: SecretBytes,
    /// Encryption, initiator to responder.
    pub ei: SecretBytes,
    /// Encryption, responder to initiator.
    pub er: SecretBytes,
    /// Initiator's AUTH payload.
    pub pi: SecretBytes,
    /// Responder's AUTH payload.
    pub pr: SecretBytes,
}

impl IkeKeys {
    /// Expands SKEYSEED (RFC 7296 2.14).
    ///
    /// # Errors
    /// [`CryptoError::PrfPlusLength`], which no negotiable suite reaches.
    pub fn derive(
        prf: &dyn Prf,
        lengths: IkeKeyLengths,
        skeyseed: &SecretBytes,
        nonces: Nonces<'_>,
        spi_i: [u8; 8],
        spi_r: [u8; 8],
    ) -> Result<Self, CryptoError> {
        let seed: [&[u8]; 4] = [nonces.i, nonces.r, &spi_i, &spi_r];
        let keymat = prf_plus(prf, skeyseed.expose(), &seed, lengths.total())?;
        let mut take = Splitter(keymat.expose());
        Ok(Self {
            d: take.next(lengths.prf),
            ai: take.next(lengths.integ),
            ar: take.next(lengths.integ),
            ei: take.next(lengths.encr),
            er: take.next(lengths.encr),
            pi: take.next(lengths.prf),
            pr: take.next(lengths.prf),
        })
    }

    /// Mixes a post-quantum preshared key into SK_d, SK_pi and SK_pr (RFC 8784 section 3). The
    /// keys that protect messages stay.
    ///
    /// # Errors
    /// [`CryptoError::PrfPlusLength`], which no negotiable suite reaches.
    pub fn mix_ppk(&mut self, prf: &dyn Prf, ppk: &SecretBytes) -> Result<(), CryptoError> {
        for key in [&mut self.d, &mut self.pi, &mut self.pr] {
            *key = prf_plus(prf, ppk.expose(), &[key.expose()], key.len())?;
        }
        Ok(())
    }
}

/// Ni and Nr without payload headers.
#[derive(Debug, Clone, Copy)]
pub struct Nonces<'a> {
    /// The initiator's.
    pub i: &'a [u8],
    /// The responder's.
    pub r: &'a [u8],
}

/// SKEYSEED of a new IKE SA: prf(Ni | Nr, g^ir) (RFC 7296 2.14).
#[must_use]
pub fn skeyseed(prf: &dyn Prf, nonces: Nonces<'_>, shared: &SecretBytes) -> SecretBytes {
    // PRFs that take one key length only use the first 64 bits of each nonce as key; SK_ keys
    // still come from the whole nonces.
    let (ni, nr) = if prf.fixed_key() {
        (first(nonces.i, 8), first(nonces.r, 8))
    } else {
        (nonces.i, nonces.r)
    };
    let key = SecretBytes::new([ni, nr].concat());
    prf.compute(key.expose(), &[shared.expose()])
}

/// SKEYSEED of the IKE SA that replaces another, computed with the *old* SA's PRF and SK_d
/// (RFC 7296 2.18): prf(SK_d, SK(0) | Ni | Nr | SK(1) | ... | SK(n)), where `shared` is g^ir and
/// what IKE_FOLLOWUP_KE added, in order (RFC 9370 2.2.4).
#[must_use]
pub fn skeyseed_rekey(
    old_prf: &dyn Prf,
    old_d: &SecretBytes,
    nonces: Nonces<'_>,
    shared: &[&SecretBytes],
) -> SecretBytes {
    old_prf.compute(old_d.expose(), &rekey_seed(nonces, shared))
}

/// SKEYSEED(n) after an additional key exchange in IKE_INTERMEDIATE: prf(SK_d(n-1), SK(n) | Ni |
/// Nr) (RFC 9370 2.2.2).
#[must_use]
pub fn skeyseed_intermediate(
    prf: &dyn Prf,
    d: &SecretBytes,
    nonces: Nonces<'_>,
    shared: &SecretBytes,
) -> SecretBytes {
    prf.compute(d.expose(), &[shared.expose(), nonces.i, nonces.r])
}

/// Keys of a child SA, in the order of RFC 7296 2.17.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChildKeys {
    /// Encryption, initiator to responder, with the salt of an AEAD.
    pub ei: SecretBytes,
    /// Integrity, initiator to responder; empty for an AEAD.
    pub ai: SecretBytes,
    /// Encryption, responder to initiator.
    pub er: SecretBytes,
    /// Integrity, responder to initiator; empty for an AEAD.
    pub ar: SecretBytes,
}

impl ChildKeys {
    /// prf+(SK_d, SK(0) | Ni | Nr | SK(1) | ... | SK(n)), where `shared` is empty without PFS
    /// (RFC 7296 2.17, RFC 9370 2.2.4). Here the initiator is that of the exchange that makes
    /// the child SA, and the nonces are of that exchange.
    ///
    /// # Errors
    /// [`CryptoError::PrfPlusLength`], which no negotiable suite reaches.
    pub fn derive(
        prf: &dyn Prf,
        d: &SecretBytes,
        nonces: Nonces<'_>,
        shared: &[&SecretBytes],
        encr_len: usize,
        integ_len: usize,
    ) -> Result<Self, CryptoError> {
        let len = encr_len.saturating_add(integ_len).saturating_mul(2);
        let keymat = prf_plus(prf, d.expose(), &rekey_seed(nonces, shared), len)?;
        let mut take = Splitter(keymat.expose());
        Ok(Self {
            ei: take.next(encr_len),
            ai: take.next(integ_len),
            er: take.next(encr_len),
            ar: take.next(integ_len),
        })
    }
}

/// What one side signs or authenticates (RFC 7296 2.15): its first message as sent, the other
/// side's nonce, prf(SK_p, ID'), and with IKE_INTERMEDIATE also IntAuth (RFC 9242 3.3).
///
/// `message` is that side's IKE_SA_INIT message from the first octet of its header (of the request
/// that succeeded, with its cookie); `id_body` is the body of its ID payload as sent, reserved
/// octets included; `int_auth` is [`int_auth`]'s result.
#[must_use]
pub fn auth_octets(
    prf: &dyn Prf,
    sk_p: &SecretBytes,
    message: &[u8],
    peer_nonce: &[u8],
    id_body: &[u8],
    int_auth: Option<&[u8]>,
) -> Vec<u8> {
    let maced_id = prf.compute(sk_p.expose(), &[id_body]);
    [message, peer_nonce, maced_id.expose(), int_auth.unwrap_or_default()].concat()
}

/// AUTH value of a shared key: prf(prf(key, "Key Pad for IKEv2"), octets) (RFC 7296 2.15).
///
/// EAP puts the MSK here, or SK_pi and SK_pr for methods without one (2.16).
#[must_use]
pub fn auth_shared_key(prf: &dyn Prf, key: &SecretBytes, octets: &[u8]) -> SecretBytes {
    let padded = prf.compute(key.expose(), &[KEY_PAD]);
    prf.compute(padded.expose(), &[octets])
}

/// AUTH value after an EAP method (RFC 7296 2.16); `sk_p` serves when the method made no MSK.
#[must_use]
pub fn auth_eap(
    prf: &dyn Prf,
    msk: Option<&SecretBytes>,
    sk_p: &SecretBytes,
    octets: &[u8],
) -> SecretBytes {
    auth_shared_key(prf, msk.unwrap_or(sk_p), octets)
}

/// IntAuth_*N of one side after its n-th IKE_INTERMEDIATE message (RFC 9242 3.3.2):
/// prf(SK_p, IntAuth_*(n-1) | A | P), where `previous` is empty for the first, `sk_p` belongs to
/// the keys that protected that message, A is the message from its header up to the Encrypted
/// payload's header with lengths as if nothing were encrypted, and P the inner payloads.
#[must_use]
pub fn int_auth_step(
    prf: &dyn Prf,
    sk_p: &SecretBytes,
    previous: &SecretBytes,
    a: &[u8],
    p: &[u8],
) -> SecretBytes {
    prf.compute(sk_p.expose(), &[previous.expose(), a, p])
}

/// IntAuth = IntAuth_i | IntAuth_r | message id of the first IKE_AUTH (RFC 9242 3.3.2).
#[must_use]
pub fn int_auth(i: &SecretBytes, r: &SecretBytes, ike_auth_message_id: u32) -> Vec<u8> {
    [i.expose(), r.expose(), &ike_auth_message_id.to_be_bytes()].concat()
}

/// Key lengths of an IKE SA from its algorithms.
#[must_use]
pub fn ike_key_lengths(
    prf: &dyn Prf,
    encr_len: usize,
    integ: Option<&dyn Integrity>,
) -> IkeKeyLengths {
    IkeKeyLengths { prf: prf.key_len(), integ: integ.map_or(0, Integrity::key_len), encr: encr_len }
}

fn rekey_seed<'a>(nonces: Nonces<'a>, shared: &[&'a SecretBytes]) -> Vec<&'a [u8]> {
    let mut shared = shared.iter().map(|secret| secret.expose());
    let mut parts = Vec::with_capacity(shared.len() + 2);
    parts.extend(shared.next());
    parts.extend([nonces.i, nonces.r]);
    parts.extend(shared);
    parts
}

fn first(bytes: &[u8], len: usize) -> &[u8] {
    bytes.get(..len).unwrap_or(bytes)
}

/// Cuts keying material into keys. prf+ returned exactly the sum of what is taken.
struct Splitter<'a>(&'a [u8]);

impl Splitter<'_> {
    fn next(&mut self, len: usize) -> SecretBytes {
        let (head, tail) = self.0.split_at_checked(len).unwrap_or((self.0, &[]));
        self.0 = tail;
        SecretBytes::copy_from(head)
    }
}
