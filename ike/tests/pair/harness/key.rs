//! Key pairs that stand for certificates.

use ike::crypto::ring::Pkcs8Signer;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair};

/// A key pair whose public half stands for a certificate.
pub struct Key {
    pub(super) signer: Pkcs8Signer,
    pub spki: Vec<u8>,
}

impl Key {
    pub fn ecdsa() -> Self {
        const PREFIX: [u8; 26] = [
            0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06,
            0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
        ];
        let random = SystemRandom::new();
        let alg = &ECDSA_P256_SHA256_ASN1_SIGNING;
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(alg, &random).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(alg, pkcs8.as_ref(), &random).unwrap();
        Self {
            signer: Pkcs8Signer::from_pkcs8(pkcs8.as_ref()).unwrap(),
            spki: [&PREFIX, pair.public_key().as_ref()].concat(),
        }
    }

    pub fn ed25519() -> Self {
        const PREFIX: [u8; 12] =
            [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        let pair = Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap();
        Self {
            signer: Pkcs8Signer::from_pkcs8(pkcs8.as_ref()).unwrap(),
            spki: [&PREFIX, pair.public_key().as_ref()].concat(),
        }
    }
}
