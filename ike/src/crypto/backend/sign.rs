//! Signing with a private key in PKCS#8.

use super::super::{lib, shim};
use crate::crypto::{Curve, SignatureError, SignatureScheme, Signer};
use lib::rand::SystemRandom;
use lib::signature::{self, EcdsaKeyPair, Ed25519KeyPair, RsaKeyPair};

enum Key {
    Rsa(RsaKeyPair),
    Ecdsa(Curve, EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

/// A private key from PKCS#8 DER: RSA of 2048 bits and more, ECDSA, or Ed25519.
pub struct Pkcs8Signer {
    key: Key,
    schemes: &'static [SignatureScheme],
}

impl Pkcs8Signer {
    /// Reads a DER PKCS#8 PrivateKeyInfo.
    ///
    /// # Errors
    /// [`SignatureError::MalformedKey`] when it is none of the supported keys.
    pub fn from_pkcs8(der: &[u8]) -> Result<Self, SignatureError> {
        use SignatureScheme as S;
        // Each parser checks the key's algorithm identifier, so at most one accepts.
        if let Ok(key) = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der) {
            return Ok(Self { key: Key::Ed25519(key), schemes: &[S::Ed25519] });
        }
        for &(curve, algorithm) in shim::ECDSA_KEYS {
            if let Some(key) = shim::ecdsa_from_pkcs8(algorithm, der) {
                let schemes: &[S] = match curve {
                    Curve::P256 => &[S::EcdsaSha256],
                    Curve::P384 => &[S::EcdsaSha384],
                    Curve::P521 => &[S::EcdsaSha512],
                };
                return Ok(Self { key: Key::Ecdsa(curve, key), schemes });
            }
        }
        match RsaKeyPair::from_pkcs8(der) {
            Ok(key) => Ok(Self {
                key: Key::Rsa(key),
                schemes: &[
                    S::RsaPssSha256,
                    S::RsaPssSha384,
                    S::RsaPssSha512,
                    S::RsaPkcs1Sha256,
                    S::RsaPkcs1Sha384,
                    S::RsaPkcs1Sha512,
                ],
            }),
            Err(_) => Err(SignatureError::MalformedKey(
                "not a PKCS#8 key for RSA (2048 bits and more), ECDSA or Ed25519",
            )),
        }
    }

    /// Name of the key's algorithm.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self.key {
            Key::Rsa(_) => "RSA",
            Key::Ecdsa(Curve::P256, _) => "ECDSA P-256",
            Key::Ecdsa(Curve::P384, _) => "ECDSA P-384",
            Key::Ecdsa(Curve::P521, _) => "ECDSA P-521",
            Key::Ed25519(_) => "Ed25519",
        }
    }
}

impl std::fmt::Debug for Pkcs8Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pkcs8Signer").field("key", &self.name()).finish_non_exhaustive()
    }
}

impl Signer for Pkcs8Signer {
    fn schemes(&self) -> &[SignatureScheme] {
        self.schemes
    }

    fn curve(&self) -> Option<Curve> {
        match self.key {
            Key::Ecdsa(curve, _) => Some(curve),
            _ => None,
        }
    }

    fn sign(&self, scheme: SignatureScheme, message: &[u8]) -> Result<Vec<u8>, SignatureError> {
        if !self.schemes.contains(&scheme) {
            return Err(SignatureError::KeyMismatch { scheme: scheme.name(), key: self.name() });
        }
        let rng = SystemRandom::new();
        match &self.key {
            Key::Ed25519(key) => Ok(key.sign(message).as_ref().to_vec()),
            Key::Ecdsa(_, key) => key
                .sign(&rng, message)
                .map(|signature| signature.as_ref().to_vec())
                .map_err(|_| SignatureError::Signing("ECDSA")),
            Key::Rsa(key) => {
                let padding: &'static dyn signature::RsaEncoding = match scheme {
                    SignatureScheme::RsaPssSha256 => &signature::RSA_PSS_SHA256,
                    SignatureScheme::RsaPssSha384 => &signature::RSA_PSS_SHA384,
                    SignatureScheme::RsaPssSha512 => &signature::RSA_PSS_SHA512,
                    SignatureScheme::RsaPkcs1Sha256 => &signature::RSA_PKCS1_SHA256,
                    SignatureScheme::RsaPkcs1Sha384 => &signature::RSA_PKCS1_SHA384,
                    SignatureScheme::RsaPkcs1Sha512 => &signature::RSA_PKCS1_SHA512,
                    _ => return Err(SignatureError::Signing("RSA padding")),
                };
                let mut signature = vec![0; shim::modulus_len(key)];
                key.sign(padding, &rng, message, &mut signature)
                    .map_err(|_| SignatureError::Signing("RSA"))?;
                Ok(signature)
            }
        }
    }
}
