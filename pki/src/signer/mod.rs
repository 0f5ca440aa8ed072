//! Signing keys behind one seam: keys in files, sealed, and keys in PKCS#11 tokens.

mod file;
mod token;
mod turn;
mod uri;

use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;

pub use file::FileSigner;
pub(crate) use token::{TokenKey, TokenSigner, Wanted, take_or_make};
pub(crate) use turn::Turn;
pub use uri::TokenUri;

use crate::error::Error;

/// The kind of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyAlgorithm {
    /// ECDSA on P-256.
    EcdsaP256,
    /// ECDSA on P-384.
    EcdsaP384,
    /// Ed25519.
    Ed25519,
    /// RSA.
    Rsa,
}

/// A kind of key that is made here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyKind {
    /// ECDSA on P-256.
    EcdsaP256,
    /// ECDSA on P-384.
    EcdsaP384,
    /// Ed25519.
    Ed25519,
    /// RSA of 3072 bits.
    Rsa3072,
    /// RSA of 4096 bits.
    Rsa4096,
}

impl KeyKind {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::EcdsaP256, Self::EcdsaP384, Self::Ed25519, Self::Rsa3072, Self::Rsa4096];

    /// Its name in configurations and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::EcdsaP256 => "ecdsa-p256",
            Self::EcdsaP384 => "ecdsa-p384",
            Self::Ed25519 => "ed25519",
            Self::Rsa3072 => "rsa-3072",
            Self::Rsa4096 => "rsa-4096",
        }
    }

    /// For a key that works beside another: whoever understands the one understands this.
    pub const fn beside(algorithm: KeyAlgorithm) -> Self {
        match algorithm {
            KeyAlgorithm::EcdsaP256 => Self::EcdsaP256,
            KeyAlgorithm::EcdsaP384 => Self::EcdsaP384,
            KeyAlgorithm::Ed25519 => Self::Ed25519,
            KeyAlgorithm::Rsa => Self::Rsa3072,
        }
    }
}

impl fmt::Display for KeyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for KeyKind {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        Self::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            Error::Invalid(format!("{name:?} is no kind of key made here: choose one of {names}"))
        })
    }
}

/// A way to sign with a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignatureScheme {
    /// ECDSA with the curve's usual hash, DER-encoded: certificates, RFC 7427.
    EcdsaAsn1,
    /// ECDSA with the curve's usual hash, `r ‖ s`: RFC 4754 authentication methods 9 and 10.
    EcdsaFixed,
    /// Ed25519 (RFC 8420).
    Ed25519,
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    RsaPkcs1Sha256,
    /// RSASSA-PKCS1-v1_5 with SHA-384.
    RsaPkcs1Sha384,
    /// RSASSA-PKCS1-v1_5 with SHA-512.
    RsaPkcs1Sha512,
    /// RSASSA-PSS with SHA-256, salt of 32 octets.
    RsaPssSha256,
    /// RSASSA-PSS with SHA-384, salt of 48 octets.
    RsaPssSha384,
    /// RSASSA-PSS with SHA-512, salt of 64 octets.
    RsaPssSha512,
}

/// A private key that signs; where it lives is its own matter.
pub trait Signer: Send + Sync + fmt::Debug {
    /// The SubjectPublicKeyInfo, DER.
    fn public_key_der(&self) -> &[u8];

    /// The kind of key.
    fn algorithm(&self) -> KeyAlgorithm;

    /// Signs a message with one of the key's schemes. May block.
    ///
    /// # Errors
    /// When the scheme does not fit the key or the key store fails.
    fn sign_with(&self, scheme: SignatureScheme, message: &[u8]) -> Result<Vec<u8>, Error>;

    /// Signs a certificate's or CRL's to-be-signed part with the key's default scheme.
    ///
    /// # Errors
    /// When the key store fails.
    fn sign(&self, tbs: &[u8]) -> Result<Vec<u8>, Error> {
        self.sign_with(self.algorithm().default_scheme(), tbs)
    }

    /// Where the key is, for operators, when it is not here.
    fn place(&self) -> Option<String> {
        None
    }

    /// Why the last use of the key failed; `None` after one that worked.
    fn trouble(&self) -> Option<String> {
        None
    }

    /// Looks whether the key can be used. May block.
    ///
    /// # Errors
    /// When the key store fails.
    fn probe(&self) -> Result<(), Error> {
        Ok(())
    }
}

/// A shared signer.
pub type SharedSigner = Arc<dyn Signer>;

impl KeyAlgorithm {
    /// The scheme used for certificates.
    pub const fn default_scheme(self) -> SignatureScheme {
        match self {
            Self::EcdsaP256 | Self::EcdsaP384 => SignatureScheme::EcdsaAsn1,
            Self::Ed25519 => SignatureScheme::Ed25519,
            Self::Rsa => SignatureScheme::RsaPkcs1Sha256,
        }
    }

    pub(crate) fn rcgen(self) -> &'static rcgen::SignatureAlgorithm {
        match self {
            Self::EcdsaP256 => &rcgen::PKCS_ECDSA_P256_SHA256,
            Self::EcdsaP384 => &rcgen::PKCS_ECDSA_P384_SHA384,
            Self::Ed25519 => &rcgen::PKCS_ED25519,
            Self::Rsa => &rcgen::PKCS_RSA_SHA256,
        }
    }
}

/// Lets rcgen sign with any [`Signer`].
pub(crate) struct RcgenKey<'a> {
    signer: &'a dyn Signer,
    public_key: Vec<u8>,
    /// Why the signer failed: rcgen has no room for it.
    failed: RefCell<Option<Error>>,
}

impl<'a> RcgenKey<'a> {
    pub(crate) fn new(signer: &'a dyn Signer) -> Result<Self, Error> {
        let spki = rcgen::SubjectPublicKeyInfo::from_der(signer.public_key_der())?;
        let public_key = rcgen::PublicKeyData::der_bytes(&spki).to_vec();
        Ok(Self { signer, public_key, failed: RefCell::default() })
    }

    /// What rcgen made with this key, or why not: the signer's reason before rcgen's.
    pub(crate) fn made<T>(&self, result: Result<T, rcgen::Error>) -> Result<T, Error> {
        result.map_err(|error| self.failed.take().unwrap_or_else(|| error.into()))
    }
}

impl rcgen::PublicKeyData for RcgenKey<'_> {
    fn der_bytes(&self) -> &[u8] {
        &self.public_key
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        self.signer.algorithm().rcgen()
    }
}

impl rcgen::SigningKey for RcgenKey<'_> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.signer.sign(message).map_err(|error| {
            self.failed.replace(Some(error));
            rcgen::Error::RemoteKeyError
        })
    }
}

/// A public key as rcgen wants it.
struct RawKey<'a> {
    algorithm: &'static rcgen::SignatureAlgorithm,
    raw: &'a [u8],
}

impl rcgen::PublicKeyData for RawKey<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.raw
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        self.algorithm
    }
}
