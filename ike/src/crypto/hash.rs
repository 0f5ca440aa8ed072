//! Plain hash functions.

use std::fmt;

/// Hash functions that IKE names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HashFunction {
    /// NAT detection (RFC 7296 2.23) and CERTREQ authority ids (3.7) only: neither needs
    /// collision resistance. Never for signatures.
    Sha1,
    /// SHA2-256.
    Sha256,
    /// SHA2-384.
    Sha384,
    /// SHA2-512.
    Sha512,
}

impl HashFunction {
    /// Octets of output.
    #[must_use]
    pub const fn output_len(self) -> usize {
        match self {
            Self::Sha1 => 20,
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }
}

/// Implements all of [`HashFunction`].
pub trait Hasher: fmt::Debug + Send + Sync {
    /// The hash of the concatenation of `parts`.
    fn digest(&self, function: HashFunction, parts: &[&[u8]]) -> Vec<u8>;
}
