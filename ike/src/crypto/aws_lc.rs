//! The fast provider: `aws-lc-rs`, with `aes-gcm` and `crypto-bigint` for what it lacks.
//!
//! The only one with P-521 and ML-KEM.

// One source for both libraries, see `backend`.
#[allow(clippy::duplicate_mod)]
#[path = "backend/mod.rs"]
mod backend;
mod mlkem;

use ::aws_lc_rs as lib;
use ::aws_lc_rs::{aead, agreement};

use super::{CryptoProvider, cbc, modp, short_gcm};
use crate::wire::KeMethod;
pub use backend::sign::Pkcs8Signer;

static P521: backend::ecdh::Group =
    backend::ecdh::Group::nist(KeMethod::Ecp521, "ecp521", &agreement::ECDH_P521, 132);
static AES_192_GCM: backend::aead::Aead =
    backend::aead::Aead::gcm(192, "aes192gcm16", &aead::AES_192_GCM);

/// The fast provider.
pub static PROVIDER: CryptoProvider = CryptoProvider {
    name: "aws-lc",
    kex: &[
        &backend::ecdh::X25519,
        &backend::ecdh::P384,
        &backend::ecdh::P256,
        &P521,
        &mlkem::ML_KEM_768,
        &mlkem::ML_KEM_1024,
        &mlkem::ML_KEM_512,
        &&modp::MODP_4096,
        &&modp::MODP_3072,
        &&modp::MODP_2048,
    ],
    prfs: backend::hmac::PRFS,
    ciphers: &[
        &backend::aead::AES_256_GCM,
        &AES_192_GCM,
        &backend::aead::AES_128_GCM,
        &backend::aead::CHACHA20_POLY1305,
        &short_gcm::AES_256_GCM_12,
        &short_gcm::AES_192_GCM_12,
        &short_gcm::AES_128_GCM_12,
        &short_gcm::AES_256_GCM_8,
        &short_gcm::AES_192_GCM_8,
        &short_gcm::AES_128_GCM_8,
        &cbc::AES_256_CBC,
        &cbc::AES_192_CBC,
        &cbc::AES_128_CBC,
    ],
    integs: backend::hmac::INTEGS,
    signatures: &backend::verify::Verifier,
    hashes: &backend::hmac::Hashes,
};

/// Calls that `ring` and `aws-lc-rs` spell differently.
mod shim {
    use ::aws_lc_rs::aead::{Aad, LessSafeKey, Nonce};
    use ::aws_lc_rs::agreement::{EphemeralPrivateKey, UnparsedPublicKey, agree_ephemeral};
    use ::aws_lc_rs::signature::{
        self, ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING,
        ECDSA_P521_SHA512_ASN1_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm, RsaKeyPair,
        VerificationAlgorithm,
    };

    use crate::crypto::{Curve, SignatureScheme};

    pub(super) static ECDSA_KEYS: &[(Curve, &EcdsaSigningAlgorithm)] = &[
        (Curve::P256, &ECDSA_P256_SHA256_ASN1_SIGNING),
        (Curve::P384, &ECDSA_P384_SHA384_ASN1_SIGNING),
        (Curve::P521, &ECDSA_P521_SHA512_ASN1_SIGNING),
    ];

    pub(super) fn agree(
        private: EphemeralPrivateKey,
        peer: &UnparsedPublicKey<Vec<u8>>,
    ) -> Option<Vec<u8>> {
        agree_ephemeral(private, peer, (), |secret| Ok(secret.to_vec())).ok()
    }

    pub(super) fn open(
        key: &LessSafeKey,
        nonce: Nonce,
        aad: Aad<&[u8]>,
        ciphertext: &mut [u8],
        tag: &[u8],
    ) -> Option<()> {
        // The library opens in place only with the tag behind the text; IKE's messages are short
        // enough to copy.
        let input = ciphertext.to_vec();
        key.open_separate_gather(nonce, aad, &input, tag, ciphertext).ok()
    }

    pub(super) fn ecdsa_from_pkcs8(
        algorithm: &'static EcdsaSigningAlgorithm,
        der: &[u8],
    ) -> Option<EcdsaKeyPair> {
        EcdsaKeyPair::from_pkcs8(algorithm, der).ok()
    }

    pub(super) fn ecdsa_algorithm(
        curve: Curve,
        scheme: SignatureScheme,
    ) -> Option<&'static dyn VerificationAlgorithm> {
        Some(match (curve, scheme) {
            (Curve::P256, SignatureScheme::EcdsaSha512) => &signature::ECDSA_P256_SHA512_ASN1,
            (Curve::P384, SignatureScheme::EcdsaSha512) => &signature::ECDSA_P384_SHA512_ASN1,
            (Curve::P521, SignatureScheme::EcdsaSha256) => &signature::ECDSA_P521_SHA256_ASN1,
            (Curve::P521, SignatureScheme::EcdsaSha384) => &signature::ECDSA_P521_SHA384_ASN1,
            (Curve::P521, SignatureScheme::EcdsaSha512) => &signature::ECDSA_P521_SHA512_ASN1,
            _ => return None,
        })
    }

    pub(super) fn modulus_len(key: &RsaKeyPair) -> usize {
        key.public_modulus_len()
    }
}
