//! What can go wrong in a cryptographic operation, split so that the engine can blame the right side.

use thiserror::Error;

/// A failed cryptographic operation.
///
/// Decisions are made on the variant; the text is for operators. No variant carries secret bytes.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CryptoError {
    /// The provider has no implementation of this algorithm.
    #[error("{0} is not implemented by this crypto provider")]
    Unsupported(&'static str),
    /// A key had the wrong length for its algorithm; always a caller's mistake.
    #[error("{what} needs {expected} octets, not {actual}")]
    KeyLength {
        /// What the octets are for.
        what: &'static str,
        /// Octets the algorithm needs.
        expected: usize,
        /// Octets that were given.
        actual: usize,
    },
    /// The peer's public value has the wrong length for its group (RFC 7296 3.4).
    #[error("a public value of {group} has {expected} octets, the peer sent {actual}")]
    PublicValueLength {
        /// Name of the group.
        group: &'static str,
        /// Octets the group needs.
        expected: usize,
        /// Octets the peer sent.
        actual: usize,
    },
    /// The peer's public value fails the recipient tests of RFC 6989 section 2, or the shared
    /// secret it leads to carries no entropy (RFC 7748 section 6.1).
    #[error("the peer's {group} public value is not valid (RFC 6989)")]
    PublicValueInvalid {
        /// Name of the group.
        group: &'static str,
    },
    /// A Diffie-Hellman operation was asked of a KEM, or the other way round.
    #[error("{0} does not work this way: key exchange and encapsulation were confused")]
    WrongKexKind(&'static str),
    /// Integrity check of a protected message failed, or its padding was damaged.
    #[error("the message failed its integrity check")]
    Authentication,
    /// More output was asked of prf+ than 255 blocks (RFC 7296 2.13).
    #[error("prf+ cannot produce {0} octets")]
    PrfPlusLength(usize),
    /// The operating system's random source or the library failed.
    #[error("the crypto library failed: {0}")]
    Library(&'static str),
    /// The executor holds no secret under this handle.
    #[error("no key exchange is pending under handle {0}")]
    UnknownHandle(u64),
    /// The handle is in use for another key exchange.
    #[error("handle {0} is already in use")]
    HandleInUse(u64),
}

/// Why a signature, its algorithm or its key was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SignatureError {
    /// The signature does not match message and key.
    #[error("the signature does not match")]
    Mismatch,
    /// The signature is not even well formed for its algorithm.
    #[error("the signature is malformed: {0}")]
    MalformedSignature(&'static str),
    /// The public key could not be read.
    #[error("the public key is malformed: {0}")]
    MalformedKey(&'static str),
    /// The AlgorithmIdentifier could not be read.
    #[error("the signature's AlgorithmIdentifier is malformed: {0}")]
    MalformedAlgorithm(&'static str),
    /// The RSA modulus is too short.
    #[error("RSA keys need at least 2048 bits, this one has {0}: issue the peer a longer key")]
    RsaTooShort(usize),
    /// The RSA modulus is longer than anything that verifies in bounded time.
    #[error("RSA keys have at most 8192 bits here, this one has {0}")]
    RsaTooLong(usize),
    /// SHA-1 signatures are refused (RFC 8247 section 3.2).
    #[error(
        "signed with SHA-1, which is refused: let the peer sign with SHA2-256 or better \
         (strongSwan: signature_authentication = yes; RFC 7427)"
    )]
    Sha1,
    /// RSASSA-PSS with absent or default parameters means SHA-1 (RFC 8247 section 3.2).
    #[error(
        "RSASSA-PSS with empty or default parameters means SHA-1, which is refused: \
         let the peer state SHA2-256 or better"
    )]
    PssDefaultParameters,
    /// RSASSA-PSS parameters that mix hash functions or use another salt length than the hash.
    #[error("RSASSA-PSS needs one hash throughout and a salt of its length")]
    PssParameters,
    /// The scheme and the key belong to different algorithms.
    #[error("the signature uses {scheme}, the certificate holds a key for {key}")]
    KeyMismatch {
        /// Name of the scheme.
        scheme: &'static str,
        /// Name of the key's algorithm.
        key: &'static str,
    },
    /// An algorithm that this provider does not implement.
    #[error("signatures with {0} are not supported")]
    Unsupported(String),
    /// The signing operation itself failed.
    #[error("signing failed: {0}")]
    Signing(&'static str),
}
