//! Algorithms that protect the payloads of an Encrypted (SK) payload (RFC 7296 3.14, RFC 5282).

use std::fmt;

use super::{CryptoError, Integrity, SecretBytes};
use crate::wire::EncrId;

/// Transform type 1 with its KEY_LENGTH attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Encryption {
    /// The number on the wire.
    pub id: EncrId,
    /// Key length in bits as the attribute carries it (without salt); `None` where the algorithm
    /// has one length and must not carry the attribute (RFC 7634 section 3).
    pub key_bits: Option<u16>,
}

/// An encryption algorithm of a provider, not yet keyed.
pub trait CipherAlgorithm: fmt::Debug + Send + Sync {
    /// Transform and key length.
    fn encryption(&self) -> Encryption;

    /// A name for messages, in strongSwan's spelling (`aes256gcm16`).
    fn name(&self) -> &'static str;

    /// True when it protects integrity itself.
    fn is_aead(&self) -> bool;

    /// Octets of SK_ei or SK_er: the key and, for an AEAD, the salt behind it (RFC 5282 7.1).
    fn key_len(&self) -> usize;

    /// Keys the cipher for one direction of an IKE SA. `integrity` is algorithm and key (SK_ai or
    /// SK_ar), present exactly when [`Self::is_aead`] is false.
    ///
    /// # Errors
    /// [`CryptoError::KeyLength`] for keys of the wrong length; [`CryptoError::Unsupported`] when
    /// `integrity` does not fit the algorithm.
    fn keyed(
        &self,
        key: &SecretBytes,
        integrity: Option<(&'static dyn Integrity, &SecretBytes)>,
    ) -> Result<Box<dyn KeyedCipher>, CryptoError>;
}

/// One direction of an IKE SA's protection.
///
/// `aad` is everything from the first octet of the IKE header up to the initialization vector: the
/// associated data of RFC 5282 section 5.1, and for CBC suites the first part of what the checksum
/// covers (RFC 7296 3.14). Note that the codec's [`SkCipher`](crate::wire::SkCipher) takes `aad`
/// before `iv`; implementing it for these boxes directly would make calls ambiguous.
pub trait KeyedCipher: fmt::Debug + Send + Sync {
    /// Octets of initialization vector on the wire.
    fn iv_len(&self) -> usize;

    /// Octets of integrity checksum on the wire.
    fn icv_len(&self) -> usize;

    /// Plaintext with its padding is a multiple of this (16 for CBC, 1 for AEAD).
    fn block_len(&self) -> usize;

    /// Encrypts `plaintext` (already padded) in place and returns the checksum.
    ///
    /// The caller picks `iv`: never the same twice under one key, and unpredictable for CBC
    /// (RFC 3602 section 3).
    ///
    /// # Errors
    /// [`CryptoError::KeyLength`] for an IV or plaintext of the wrong length.
    fn seal(&self, iv: &[u8], aad: &[u8], plaintext: &mut [u8]) -> Result<Vec<u8>, CryptoError>;

    /// Checks the checksum, then decrypts `ciphertext` in place. The padding stays.
    ///
    /// # Errors
    /// [`CryptoError::Authentication`]; `ciphertext` is then unusable.
    fn open(
        &self,
        iv: &[u8],
        aad: &[u8],
        ciphertext: &mut [u8],
        icv: &[u8],
    ) -> Result<(), CryptoError>;
}

/// Checks the length of a key, IV or similar.
pub(super) fn check_len(
    what: &'static str,
    expected: usize,
    actual: usize,
) -> Result<(), CryptoError> {
    if expected == actual { Ok(()) } else { Err(CryptoError::KeyLength { what, expected, actual }) }
}
