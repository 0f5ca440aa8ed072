//! Key exchange methods: the traits a provider implements.
//!
//! Diffie-Hellman and KEMs share one shape on the initiator's side: `generate` a key share, send
//! its public value, `agree` on what comes back. They differ on the responder's side:
//! a Diffie-Hellman responder also generates and may compute the shared secret much later (the
//! engine waits for IKE_AUTH, so that spoofed requests never cost an exponentiation), a KEM
//! responder encapsulates to the initiator's public value and has the secret at once.
//!
//! Everything here draws randomness from the provider, so the engine never calls it: it emits a
//! [`KexRequest`](super::KexRequest) and a [`KexExecutor`](super::KexExecutor) outside answers.

use std::fmt;

use super::{CryptoError, SharedSecret};
use crate::wire::KeMethod;

/// Which of the two shapes a key exchange method has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KexKind {
    /// Both sides generate; the responder may agree later.
    DiffieHellman,
    /// The responder encapsulates to the initiator's key (ML-KEM).
    Kem,
}

/// A method of transform type 4 (RFC 7296 3.3.2, RFC 9370).
pub trait KeyExchangeGroup: fmt::Debug + Send + Sync {
    /// The number on the wire.
    fn method(&self) -> KeMethod;

    /// A name for messages, in strongSwan's spelling (`ecp256`).
    fn name(&self) -> &'static str;

    /// Diffie-Hellman or KEM.
    fn kind(&self) -> KexKind;

    /// Octets of the initiator's public value in its KE payload.
    fn initiator_public_len(&self) -> usize;

    /// Octets of the responder's public value (a KEM's ciphertext).
    fn responder_public_len(&self) -> usize {
        self.initiator_public_len()
    }

    /// Draws a fresh key pair.
    ///
    /// # Errors
    /// [`CryptoError::Library`] when the random source fails.
    fn generate(&self) -> Result<KeyShare, CryptoError>;

    /// Responder's half of a KEM: the public value to send and the shared secret.
    ///
    /// # Errors
    /// [`CryptoError::WrongKexKind`] for Diffie-Hellman; a public value error when the
    /// initiator's key fails FIPS 203's checks.
    fn encapsulate(&self, initiator_public: &[u8]) -> Result<(Vec<u8>, SharedSecret), CryptoError> {
        let _ = initiator_public;
        Err(CryptoError::WrongKexKind(self.name()))
    }
}

/// A private value that waits for the peer's public value. Used once: reuse (RFC 7296 2.12) would
/// give up forward secrecy for a cost that no longer matters.
pub trait KexSecret: Send {
    /// Computes the shared secret after the recipient tests of RFC 6989.
    ///
    /// # Errors
    /// [`CryptoError::PublicValueLength`] or [`CryptoError::PublicValueInvalid`].
    fn agree(self: Box<Self>, peer_public: &[u8]) -> Result<SharedSecret, CryptoError>;
}

/// A fresh key pair of some group.
pub struct KeyShare {
    /// The public value as it stands in the KE payload.
    pub public: Vec<u8>,
    /// The private half.
    pub secret: Box<dyn KexSecret>,
}

impl fmt::Debug for KeyShare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyShare").field("public_len", &self.public.len()).finish_non_exhaustive()
    }
}

/// Rejects a public value whose length is not its group's.
pub(super) fn check_len(
    group: &'static str,
    expected: usize,
    public: &[u8],
) -> Result<(), CryptoError> {
    if public.len() == expected {
        Ok(())
    } else {
        Err(CryptoError::PublicValueLength { group, expected, actual: public.len() })
    }
}
