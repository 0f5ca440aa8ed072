//! Certification requests (RFC 2986): only the public key is taken from them.

/// A request whose self-signature was verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Csr {
    /// The SubjectPublicKeyInfo, DER.
    pub spki: Vec<u8>,
    /// Its SHA-256, hexadecimal.
    pub spki_sha256: String,
    /// The challengePassword attribute, if any.
    pub challenge_password: Option<String>,
}

/// Why a request is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CsrError {
    /// It does not parse.
    #[error("the request is not a PKCS#10 certification request ({0}): create it with pki --req")]
    Malformed(String),
    /// The signature does not verify with the key inside.
    #[error("the request is not signed by the key it carries: sign it with its own key")]
    BadSignature,
    /// The signature algorithm is too weak or unknown.
    #[error("the request is signed with {0}: use SHA-256 or better")]
    SignatureAlgorithm(String),
    /// The key is too weak or of an unknown kind.
    #[error("the request carries {0}: use ECDSA P-256/P-384, Ed25519 or RSA of 2048 to 8192 bits")]
    Key(String),
}
