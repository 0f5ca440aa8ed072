//! Signatures: schemes, keys, encodings, and the traits for verifying and signing.
//!
//! Verification is deterministic and runs anywhere; signing draws randomness and touches private
//! keys, so it happens outside the engine. What must hold for every provider (key length, SHA-1,
//! PSS parameters, key and scheme matching) is checked here, before a provider sees the key.

mod der;
mod ecdsa;
mod scheme;
mod spki;

use std::fmt;

pub use ecdsa::{ecdsa_der_from_raw, ecdsa_raw_from_der};
pub use scheme::SignatureScheme;
pub use spki::{Curve, PublicKey, RsaUse};

use super::{CryptoProvider, SignatureError};

/// Verifies signatures with keys whose shape was already checked.
pub trait SignatureVerifier: fmt::Debug + Send + Sync {
    /// True when this provider can verify `scheme` with such a key.
    fn supports(&self, scheme: SignatureScheme, key: &PublicKey<'_>) -> bool;

    /// Verifies; ECDSA signatures are DER. Called only when [`PublicKey::fits`] holds.
    ///
    /// # Errors
    /// [`SignatureError::Mismatch`], or [`SignatureError::Unsupported`].
    fn verify(
        &self,
        scheme: SignatureScheme,
        key: &PublicKey<'_>,
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), SignatureError>;

    /// True when `signature` is RSASSA-PKCS1-v1_5 with SHA-1: asked only to tell an operator why
    /// a signature was refused, never to accept it.
    fn is_rsa_sha1(&self, key: &PublicKey<'_>, message: &[u8], signature: &[u8]) -> bool {
        let _ = (key, message, signature);
        false
    }
}

/// A private key, outside the engine.
pub trait Signer: fmt::Debug + Send + Sync {
    /// Schemes this key can sign with, preferred first.
    fn schemes(&self) -> &[SignatureScheme];

    /// The curve of an ECDSA key: decides the classic method (9, 10, 11) and its encoding.
    fn curve(&self) -> Option<Curve> {
        None
    }

    /// Signs; ECDSA signatures are DER.
    ///
    /// # Errors
    /// [`SignatureError::KeyMismatch`] for a scheme of another key type,
    /// [`SignatureError::Signing`] when the operation fails.
    fn sign(&self, scheme: SignatureScheme, message: &[u8]) -> Result<Vec<u8>, SignatureError>;
}

impl CryptoProvider {
    /// Verifies a signature with the key of a DER SubjectPublicKeyInfo. ECDSA signatures are DER.
    ///
    /// # Errors
    /// [`SignatureError`] naming the reason.
    pub fn verify(
        &self,
        scheme: SignatureScheme,
        spki: &[u8],
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), SignatureError> {
        let key = PublicKey::from_spki(spki)?;
        if !key.fits(scheme) {
            return Err(SignatureError::KeyMismatch { scheme: scheme.name(), key: key.name() });
        }
        if let PublicKey::Ec { curve, .. } = key {
            // One encoding only, so that the raw and the DER form of a signature agree.
            ecdsa_raw_from_der(curve, signature)?;
        }
        if !self.signatures.supports(scheme, &key) {
            return Err(SignatureError::Unsupported(format!(
                "{} and a key for {}",
                scheme.name(),
                key.name()
            )));
        }
        self.signatures.verify(scheme, &key, message, signature)
    }

    /// Verifies an RSA signature of authentication method 1, which does not name its hash
    /// (RFC 7296 2.15, 3.8): any SHA-2 hash is accepted.
    ///
    /// # Errors
    /// [`SignatureError::Sha1`] when it is a valid SHA-1 signature, else as [`Self::verify`].
    pub fn verify_rsa_classic(
        &self,
        spki: &[u8],
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), SignatureError> {
        for scheme in [
            SignatureScheme::RsaPkcs1Sha256,
            SignatureScheme::RsaPkcs1Sha512,
            SignatureScheme::RsaPkcs1Sha384,
        ] {
            match self.verify(scheme, spki, message, signature) {
                Err(SignatureError::Mismatch) => {}
                decided => return decided,
            }
        }
        let key = PublicKey::from_spki(spki)?;
        if self.signatures.is_rsa_sha1(&key, message, signature) {
            Err(SignatureError::Sha1)
        } else {
            Err(SignatureError::Mismatch)
        }
    }

    /// Verifies an ECDSA signature of authentication method 9, 10 or 11: r | s in fixed length,
    /// hash and curve tied together (RFC 4754).
    ///
    /// # Errors
    /// [`SignatureError::KeyMismatch`] when the key is on another curve, else as [`Self::verify`].
    pub fn verify_ecdsa_classic(
        &self,
        curve: Curve,
        spki: &[u8],
        message: &[u8],
        raw: &[u8],
    ) -> Result<(), SignatureError> {
        let scheme = curve.classic_scheme();
        match PublicKey::from_spki(spki)? {
            PublicKey::Ec { curve: actual, .. } if actual == curve => {
                self.verify(scheme, spki, message, &ecdsa_der_from_raw(curve, raw)?)
            }
            key => Err(SignatureError::KeyMismatch { scheme: scheme.name(), key: key.name() }),
        }
    }
}

#[cfg(test)]
mod tests;
