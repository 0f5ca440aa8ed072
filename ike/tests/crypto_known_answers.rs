//! Known answers of every primitive, for every provider.
#![allow(clippy::unwrap_used)]

#[path = "data/crypto_vectors.rs"]
mod vectors;

use ike::crypto::keymat::{self, ChildKeys, Nonces};
use ike::crypto::{
    CryptoProvider, EncrId, Encryption, HashFunction, IkeKeyLengths, IkeKeys, IntegId, KeyedCipher,
    PrfId, SecretBytes, prf_plus,
};
use vectors as v;

fn providers() -> Vec<&'static CryptoProvider> {
    vec![
        &ike::crypto::ring::PROVIDER,
        #[cfg(feature = "aws-lc")]
        &ike::crypto::aws_lc::PROVIDER,
    ]
}

fn hex(text: &str) -> Vec<u8> {
    assert!(text.len().is_multiple_of(2));
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

fn secret(text: &str) -> SecretBytes {
    SecretBytes::new(hex(text))
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn aead(provider: &CryptoProvider, encryption: Encryption, key: &[u8]) -> Box<dyn KeyedCipher> {
    provider.cipher(encryption).unwrap().keyed(&SecretBytes::copy_from(key), None).unwrap()
}

/// Seals and opens, comparing with ciphertext and checksum.
fn check(
    cipher: &dyn KeyedCipher,
    iv: &str,
    aad: &str,
    plain: &str,
    sealed: &[u8],
    icv_len: usize,
) {
    let (iv, aad, plain) = (hex(iv), hex(aad), hex(plain));
    let mut text = plain.clone();
    let icv = cipher.seal(&iv, &aad, &mut text).unwrap();
    assert_eq!(text, sealed[..plain.len()]);
    assert_eq!(icv, sealed[plain.len()..plain.len() + icv_len]);
    assert_eq!((icv.len(), iv.len()), (cipher.icv_len(), cipher.iv_len()));
    cipher.open(&iv, &aad, &mut text, &icv).unwrap();
    assert_eq!(text, plain);
}

#[test]
fn aes_gcm_gives_the_nist_vectors_with_every_tag_length() {
    // NIST SP 800-38D; RFC 5282 3.
    for provider in providers() {
        for (bits, key, sealed) in [
            (128, v::GCM_KEY_128, v::GCM_SEALED_128),
            (192, v::GCM_KEY_192, v::GCM_SEALED_192),
            (256, v::GCM_KEY_256, v::GCM_SEALED_256),
        ] {
            for (id, icv_len) in
                [(EncrId::AesGcm16, 16), (EncrId::AesGcm12, 12), (EncrId::AesGcm8, 8)]
            {
                let key = hex(&format!("{key}{}", v::GCM_SALT));
                let cipher = aead(provider, Encryption::with_bits(id, bits), &key);
                check(&*cipher, v::GCM_IV, v::GCM_AAD, v::GCM_PLAIN, &hex(sealed), icv_len);
            }
        }
    }
}

#[test]
fn chacha20_poly1305_gives_the_vectors_of_rfc_8439_and_rfc_7634() {
    for provider in providers() {
        let key = |salt: &str| hex(&format!("{}{salt}", v::CHACHA_KEY));
        let cipher = aead(provider, Encryption::chacha20_poly1305(), &key("07000000"));
        let sealed = hex(v::CHACHA_8439_SEALED);
        check(&*cipher, "4041424344454647", v::CHACHA_8439_AAD, v::CHACHA_8439_PLAIN, &sealed, 16);
        let cipher = aead(provider, Encryption::chacha20_poly1305(), &key("a0a1a2a3"));
        let sealed = hex(v::CHACHA_7634_SEALED);
        check(&*cipher, "1011121314151617", v::CHACHA_7634_AAD, v::CHACHA_7634_PLAIN, &sealed, 16);
    }
}

#[test]
fn aes_cbc_gives_the_vectors_of_sp_800_38a_and_authenticates_header_iv_and_text() {
    // NIST SP 800-38A F.2; RFC 7296 3.14.
    for provider in providers() {
        for (bits, key, sealed) in [
            (128, v::CBC_KEY_128, v::CBC_SEALED_128),
            (192, v::CBC_KEY_192, v::CBC_SEALED_192),
            (256, v::CBC_KEY_256, v::CBC_SEALED_256),
        ] {
            for id in
                [IntegId::HmacSha2_256_128, IntegId::HmacSha2_384_192, IntegId::HmacSha2_512_256]
            {
                let integ = provider.integ(id).unwrap();
                let integ_key = SecretBytes::new(vec![0x5a; integ.key_len()]);
                let cipher = provider
                    .cipher(Encryption::with_bits(EncrId::AesCbc, bits))
                    .unwrap()
                    .keyed(&secret(key), Some((integ, &integ_key)))
                    .unwrap();
                let (aad, iv, mut sealed) = (hex("0102"), hex(v::CBC_IV), hex(sealed));
                let icv = integ.compute(integ_key.expose(), &[&aad, &iv, &sealed]);
                sealed.extend_from_slice(&icv);
                check(&*cipher, v::CBC_IV, "0102", v::CBC_PLAIN, &sealed, integ.icv_len());
            }
        }
    }
}

#[test]
fn hmac_gives_the_vectors_of_rfc_4231_as_prf_and_truncated_as_integrity() {
    for provider in providers() {
        for [key, data, sha256, sha384, sha512] in v::HMAC {
            let (key, data) = (hex(key), hex(data));
            for (prf, integ, expected) in [
                (PrfId::HmacSha2_256, IntegId::HmacSha2_256_128, sha256),
                (PrfId::HmacSha2_384, IntegId::HmacSha2_384_192, sha384),
                (PrfId::HmacSha2_512, IntegId::HmacSha2_512_256, sha512),
            ] {
                let prf = provider.prf(prf).unwrap();
                let (head, tail) = data.split_at(data.len() / 3);
                assert_eq!(to_hex(prf.compute(&key, &[head, tail]).expose()), *expected);
                assert_eq!(prf.output_len() * 2, expected.len());
                let integ = provider.integ(integ).unwrap();
                let icv = integ.compute(&key, &[&data]);
                assert_eq!(to_hex(&icv), expected[..expected.len() / 2]);
                assert!(integ.verify(&key, &[head, tail], &icv).is_ok());
                assert!(integ.verify(&key, &[head, tail], &icv[1..]).is_err());
            }
        }
    }
}

#[test]
fn hashes_of_abc() {
    for provider in providers() {
        let digest = |function| to_hex(&provider.digest(function, &[b"a", b"bc"]));
        assert_eq!(digest(HashFunction::Sha1), "a9993e364706816aba3e25717850c26c9cd0d89d");
        assert_eq!(
            digest(HashFunction::Sha256),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert!(digest(HashFunction::Sha384).starts_with("cb00753f45a35e8bb5a03d699ac65007"));
        assert!(digest(HashFunction::Sha512).starts_with("ddaf35a193617abacc417349ae204131"));
        assert_eq!(digest(HashFunction::Sha384).len() / 2, HashFunction::Sha384.output_len());
    }
}

const SPI_I: [u8; 8] = [0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77];
const SPI_R: [u8; 8] = [0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff];

fn concat(keys: &IkeKeys) -> String {
    let keys = [&keys.d, &keys.ai, &keys.ar, &keys.ei, &keys.er, &keys.pi, &keys.pr];
    keys.iter().map(|key| to_hex(key.expose())).collect()
}

fn concat_child(keys: &ChildKeys) -> String {
    [&keys.ei, &keys.ai, &keys.er, &keys.ar].iter().map(|key| to_hex(key.expose())).collect()
}

#[test]
fn key_derivation_matches_an_independent_computation() {
    // RFC 7296 2.14, 2.17, 2.18.
    let (ni, nr) = (hex(v::NI), hex(v::NR));
    let nonces = Nonces { i: &ni, r: &nr };
    let (shared, extra) = (secret(v::SHARED), secret(v::EXTRA));
    for provider in providers() {
        let prf = provider.prf(PrfId::HmacSha2_384).unwrap();
        let plus = prf_plus(prf, b"key", &[b"se", b"ed"], 200).unwrap();
        assert_eq!(to_hex(plus.expose()), v::PRF_PLUS_200);

        let seed = keymat::skeyseed(prf, nonces, &shared);
        assert_eq!(to_hex(seed.expose()), v::SKEYSEED);
        let lengths = IkeKeyLengths { prf: 48, integ: 0, encr: 36 };
        let mut keys = IkeKeys::derive(prf, lengths, &seed, nonces, SPI_I, SPI_R).unwrap();
        assert_eq!(concat(&keys), v::IKE_KEYS_GCM);
        assert!(keys.ai.is_empty() && keys.ar.is_empty());

        let sha256 = provider.prf(PrfId::HmacSha2_256).unwrap();
        let seed256 = keymat::skeyseed(sha256, nonces, &shared);
        let lengths = IkeKeyLengths { prf: 32, integ: 32, encr: 32 };
        let cbc = IkeKeys::derive(sha256, lengths, &seed256, nonces, SPI_I, SPI_R).unwrap();
        assert_eq!(concat(&cbc), v::IKE_KEYS_CBC);

        let rekey = keymat::skeyseed_rekey(prf, &keys.d, nonces, &[&shared]);
        assert_eq!(to_hex(rekey.expose()), v::SKEYSEED_REKEY);
        let rekey = keymat::skeyseed_rekey(prf, &keys.d, nonces, &[&shared, &extra]);
        assert_eq!(to_hex(rekey.expose()), v::SKEYSEED_REKEY_MULTI);
        let next = keymat::skeyseed_intermediate(prf, &keys.d, nonces, &extra);
        assert_eq!(to_hex(next.expose()), v::SKEYSEED_INTERMEDIATE);

        let child = ChildKeys::derive(prf, &keys.d, nonces, &[], 36, 0).unwrap();
        assert_eq!(concat_child(&child), v::CHILD_GCM);
        let child = ChildKeys::derive(prf, &keys.d, nonces, &[&shared], 32, 32).unwrap();
        assert_eq!(concat_child(&child), v::CHILD_CBC_PFS);
        let child = ChildKeys::derive(prf, &keys.d, nonces, &[&shared, &extra], 36, 0).unwrap();
        assert_eq!(concat_child(&child), v::CHILD_GCM_MULTI);

        let none = SecretBytes::default();
        let first = keymat::int_auth_step(prf, &keys.pi, &none, b"A1", b"P1");
        let i = keymat::int_auth_step(prf, &keys.pi, &first, b"A2", b"P2");
        let r = keymat::int_auth_step(prf, &keys.pr, &none, b"B1", b"Q1");
        let int_auth = keymat::int_auth(&i, &r, 2);
        assert_eq!(to_hex(&int_auth), v::INT_AUTH);
        let id = b"\x02\x00\x00\x00id";
        let octets = keymat::auth_octets(prf, &keys.pi, b"first message", &nr, id, Some(&int_auth));
        assert_eq!(to_hex(&octets), v::AUTH_OCTETS);
        let psk = SecretBytes::copy_from(b"secret");
        let auth = keymat::auth_shared_key(prf, &psk, &octets);
        assert_eq!(to_hex(auth.expose()), v::AUTH_PSK);
        assert_eq!(keymat::auth_eap(prf, Some(&psk), &keys.pi, &octets), auth);
        assert_eq!(
            keymat::auth_eap(prf, None, &keys.pi, &octets),
            keymat::auth_shared_key(prf, &keys.pi, &octets)
        );

        let before = keys.clone();
        keys.mix_ppk(prf, &SecretBytes::copy_from(b"a post-quantum preshared key")).unwrap();
        assert_eq!(to_hex(keys.d.expose()), v::PPK_D);
        assert_eq!(to_hex(keys.pi.expose()), v::PPK_PI);
        assert_eq!(to_hex(keys.pr.expose()), v::PPK_PR);
        assert_eq!((&keys.ei, &keys.er), (&before.ei, &before.er));
    }
}

#[test]
fn prf_plus_ends_where_its_counter_does() {
    // RFC 7296 2.13.
    let prf = ike::crypto::ring::PROVIDER.prf(PrfId::HmacSha2_256).unwrap();
    assert_eq!(prf_plus(prf, b"k", &[b"s"], 255 * 32).unwrap().len(), 255 * 32);
    assert!(prf_plus(prf, b"k", &[b"s"], 255 * 32 + 1).is_err());
    assert!(prf_plus(prf, b"k", &[b"s"], 0).unwrap().is_empty());
}

/// The vectors' private keys are the peer here: `ring` and `aws-lc-rs` draw their own.
#[cfg(feature = "aws-lc")]
#[test]
fn elliptic_curve_groups_agree_with_the_keys_of_rfc_5903_and_rfc_7748() {
    use aws_lc_rs::agreement::{
        Algorithm, ECDH_P256, ECDH_P384, ECDH_P521, PrivateKey, UnparsedPublicKey, X25519, agree,
    };
    use ike::crypto::KeMethod;

    fn known(algorithm: &'static Algorithm, private: &str, public: &[u8]) -> Vec<u8> {
        let private = PrivateKey::from_private_key(algorithm, &hex(private)).unwrap();
        agree(&private, UnparsedPublicKey::new(algorithm, public), (), |s| Ok(s.to_vec())).unwrap()
    }

    let groups: [(_, &[u8], &'static Algorithm, _, _, _, _, _); 4] = [
        (
            KeMethod::Ecp256,
            &[4],
            &ECDH_P256,
            v::ECP256_I,
            v::ECP256_GI,
            v::ECP256_R,
            v::ECP256_GR,
            v::ECP256_GIR,
        ),
        (
            KeMethod::Ecp384,
            &[4],
            &ECDH_P384,
            v::ECP384_I,
            v::ECP384_GI,
            v::ECP384_R,
            v::ECP384_GR,
            v::ECP384_GIR,
        ),
        (
            KeMethod::Ecp521,
            &[4],
            &ECDH_P521,
            v::ECP521_I,
            v::ECP521_GI,
            v::ECP521_R,
            v::ECP521_GR,
            v::ECP521_GIR,
        ),
        (
            KeMethod::Curve25519,
            &[],
            &X25519,
            v::X25519_A,
            v::X25519_GA,
            v::X25519_B,
            v::X25519_GB,
            v::X25519_GAB,
        ),
    ];
    for (method, prefix, algorithm, i, gi, r, gr, gir) in groups {
        assert_eq!(to_hex(&known(algorithm, i, &[prefix, &hex(gr)].concat())), gir);
        assert_eq!(to_hex(&known(algorithm, r, &[prefix, &hex(gi)].concat())), gir);
        for provider in providers() {
            let Some(group) = provider.group(method) else { continue };
            for (private, public) in [(i, gi), (r, gr)] {
                let share = group.generate().unwrap();
                let encoded = [prefix, &share.public].concat();
                let secret = share.secret.agree(&hex(public)).unwrap();
                assert_eq!(secret.expose(), known(algorithm, private, &encoded));
            }
        }
    }
}
