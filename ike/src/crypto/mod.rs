//! Cryptography of the engine, reached through a table of algorithms.
//!
//! A [`CryptoProvider`] is only a table: `ring` is the reference, `aws_lc` the fast one, and test
//! code can build its own (deterministic, insecure) without touching this crate. Any two providers
//! can be the two ends of one handshake.
//!
//! What is deterministic (PRFs, ciphers with a given IV, verification, hashes) the engine calls
//! directly. What draws randomness (key pairs, encapsulation, signing) it never calls: that runs
//! outside, through [`KexExecutor`] and [`Signer`], and comes back as a completion.

#[cfg(feature = "aws-lc")]
pub mod aws_lc;
mod cbc;
mod cipher;
pub mod cookie;
mod error;
mod executor;
mod hash;
mod kex;
pub mod keymat;
pub mod modp;
mod prf;
pub mod puzzle;
pub mod ring;
mod secret;
mod short_gcm;
mod signature;
pub mod suite;
pub mod weak;

use std::fmt;

pub use cipher::{CipherAlgorithm, Encryption, KeyedCipher};
pub use error::{CryptoError, SignatureError};
pub use executor::{KexExecutor, KexJob, KexOutcome, KexRequest, KexResponse};
pub use hash::{HashFunction, Hasher};
pub use kex::{KexKind, KexSecret, KeyExchangeGroup, KeyShare};
pub use keymat::{IkeKeyLengths, IkeKeys};
pub use prf::{Integrity, Prf, prf_plus};
pub use secret::{SecretBytes, SharedSecret, constant_time_eq};
pub use signature::{
    Curve, PublicKey, RsaUse, SignatureScheme, SignatureVerifier, Signer, ecdsa_der_from_raw,
    ecdsa_raw_from_der,
};
pub use suite::{EspSuite, IkeSuite};

pub use crate::wire::{EncrId, HashAlgorithm, IntegId, KeMethod, PrfId};

/// A table of algorithms. Two tables with the same entries are interchangeable.
pub struct CryptoProvider {
    /// Name for logs and tests.
    pub name: &'static str,
    /// Key exchange methods.
    pub kex: &'static [&'static dyn KeyExchangeGroup],
    /// Pseudorandom functions.
    pub prfs: &'static [&'static dyn Prf],
    /// Encryption algorithms.
    pub ciphers: &'static [&'static dyn CipherAlgorithm],
    /// Integrity algorithms.
    pub integs: &'static [&'static dyn Integrity],
    /// Signature verification.
    pub signatures: &'static dyn SignatureVerifier,
    /// Hash functions.
    pub hashes: &'static dyn Hasher,
}

impl CryptoProvider {
    /// The key exchange method with this number.
    #[must_use]
    pub fn group(&self, method: KeMethod) -> Option<&'static dyn KeyExchangeGroup> {
        self.kex.iter().copied().find(|group| group.method() == method)
    }

    /// The pseudorandom function with this number.
    #[must_use]
    pub fn prf(&self, id: PrfId) -> Option<&'static dyn Prf> {
        self.prfs.iter().copied().find(|prf| prf.id() == id)
    }

    /// The encryption algorithm with this number and key length.
    #[must_use]
    pub fn cipher(&self, encryption: Encryption) -> Option<&'static dyn CipherAlgorithm> {
        self.ciphers.iter().copied().find(|cipher| cipher.encryption() == encryption)
    }

    /// The integrity algorithm with this number.
    #[must_use]
    pub fn integ(&self, id: IntegId) -> Option<&'static dyn Integrity> {
        self.integs.iter().copied().find(|integ| integ.id() == id)
    }

    /// Hashes the concatenation of `parts`.
    #[must_use]
    pub fn digest(&self, function: HashFunction, parts: &[&[u8]]) -> Vec<u8> {
        self.hashes.digest(function, parts)
    }
}

impl fmt::Debug for CryptoProvider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CryptoProvider").field("name", &self.name).finish_non_exhaustive()
    }
}

/// The fastest provider this build contains.
#[must_use]
pub fn default_provider() -> &'static CryptoProvider {
    #[cfg(feature = "aws-lc")]
    return &aws_lc::PROVIDER;
    #[cfg(not(feature = "aws-lc"))]
    &ring::PROVIDER
}

#[cfg(test)]
#[path = "../../tests/data/crypto_vectors.rs"]
mod vectors;
