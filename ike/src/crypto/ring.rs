//! The reference provider: `ring`, with `aes-gcm` and `crypto-bigint` for what it lacks.
//!
//! No P-521 and no ML-KEM.

// One source for both libraries, see `backend`.
#[allow(clippy::duplicate_mod)]
#[path = "backend/mod.rs"]
mod backend;

use ::ring as lib;

use super::{CryptoProvider, cbc, modp, short_gcm};
pub use backend::sign::Pkcs8Signer;

/// The reference provider.
pub static PROVIDER: CryptoProvider = CryptoProvider {
    name: "ring",
    kex: &[
        &backend::ecdh::X25519,
        &backend::ecdh::P384,
        &backend::ecdh::P256,
        &&modp::MODP_4096,
        &&modp::MODP_3072,
        &&modp::MODP_2048,
    ],
    prfs: backend::hmac::PRFS,
    ciphers: &[
        &backend::aead::AES_256_GCM,
        &short_gcm::AES_192_GCM_16,
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
    use ::ring::aead::{Aad, LessSafeKey, Nonce};
    use ::ring::agreement::{EphemeralPrivateKey, UnparsedPublicKey, agree_ephemeral};
    use ::ring::rand::SystemRandom;
    use ::ring::signature::{
        ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair,
        EcdsaSigningAlgorithm, RsaKeyPair, VerificationAlgorithm,
    };

    use crate::crypto::{Curve, SignatureScheme};

    pub(super) static ECDSA_KEYS: &[(Curve, &EcdsaSigningAlgorithm)] = &[
        (Curve::P256, &ECDSA_P256_SHA256_ASN1_SIGNING),
        (Curve::P384, &ECDSA_P384_SHA384_ASN1_SIGNING),
    ];

    pub(super) fn agree(
        private: EphemeralPrivateKey,
        peer: &UnparsedPublicKey<Vec<u8>>,
    ) -> Option<Vec<u8>> {
        agree_ephemeral(private, peer, <[u8]>::to_vec).ok()
    }

    pub(super) fn open(
        key: &LessSafeKey,
        nonce: Nonce,
        aad: Aad<&[u8]>,
        ciphertext: &mut [u8],
        tag: &[u8],
    ) -> Option<()> {
        let tag = tag.try_into().ok()?;
        key.open_in_place_separate_tag(nonce, aad, tag, ciphertext, 0..).ok().map(drop)
    }

    pub(super) fn ecdsa_from_pkcs8(
        algorithm: &'static EcdsaSigningAlgorithm,
        der: &[u8],
    ) -> Option<EcdsaKeyPair> {
        EcdsaKeyPair::from_pkcs8(algorithm, der, &SystemRandom::new()).ok()
    }

    pub(super) fn ecdsa_algorithm(
        _curve: Curve,
        _scheme: SignatureScheme,
    ) -> Option<&'static dyn VerificationAlgorithm> {
        None
    }

    pub(super) fn modulus_len(key: &RsaKeyPair) -> usize {
        key.public().modulus_len()
    }
}
