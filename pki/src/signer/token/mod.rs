//! CA keys in PKCS#11 tokens: they sign there and never leave.
//!
//! What is stored of such a key is a sealed reference with its public key, so a gateway starts and
//! serves while its token is away; only what needs a signature waits. Every signature is checked with
//! the public key before it is used: a wrong or failing token must not publish anything.

#[cfg(feature = "pkcs11")]
mod library;
#[cfg(feature = "pkcs11")]
mod objects;
#[cfg(feature = "pkcs11")]
mod worker;

use std::fmt;
use std::sync::{Mutex, PoisonError};

use ring::signature as ring_signature;
use serde::{Deserialize, Serialize};
use x509_parser::prelude::FromDer;
use x509_parser::x509::SubjectPublicKeyInfo;

use super::{KeyAlgorithm, KeyKind, SignatureScheme, Signer, TokenUri};
use crate::error::Error;
use crate::issue::base64_bytes;

/// What is kept, sealed, of a key in a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TokenKey {
    /// The token's name at the time, for operators.
    token: String,
    /// The key's label (`CKA_LABEL`).
    object: String,
    /// The key's identifier (`CKA_ID`), by which it is found.
    #[serde(with = "base64_bytes")]
    id: Vec<u8>,
    algorithm: KeyAlgorithm,
    /// SubjectPublicKeyInfo, DER.
    #[serde(with = "base64_bytes")]
    public_key: Vec<u8>,
}

impl TokenKey {
    /// Reads what [`encode`](Self::encode) wrote; `None` for everything else, such as a PKCS#8 key.
    pub(crate) fn decode(octets: &[u8]) -> Option<Self> {
        // DER of a key begins with the tag of a SEQUENCE.
        if octets.first() != Some(&b'{') {
            return None;
        }
        serde_json::from_slice(octets).ok()
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        crate::record::encode(self)
    }

    fn name(&self) -> String {
        format!("key \"{}\" in {}", self.object, self.token)
    }
}

/// Which key is wanted of a token.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    /// Its label; a key of this label that is there already is taken.
    pub(crate) label: String,
    /// Its identifier, when an existing key is meant.
    pub(crate) id: Option<Vec<u8>>,
    /// What kind a new one gets.
    pub(crate) kind: KeyKind,
    /// Public keys (SubjectPublicKeyInfo, DER) of CAs that are there already.
    pub(crate) taken: Vec<Vec<u8>>,
    /// The identifier of a new one.
    pub(crate) fresh_id: Vec<u8>,
}

/// Takes the wanted key of the token, or makes it there.
pub(crate) fn take_or_make(uri: &TokenUri, wanted: Wanted) -> Result<TokenKey, Error> {
    #[cfg(feature = "pkcs11")]
    return worker::take_or_make(uri, wanted);
    #[cfg(not(feature = "pkcs11"))]
    {
        let Wanted { label, id, kind, taken, fresh_id } = wanted;
        drop((label, id, kind, taken, fresh_id));
        Err(not_built(uri))
    }
}

#[cfg(not(feature = "pkcs11"))]
fn not_built(uri: &TokenUri) -> Error {
    Error::Token(format!(
        "{} cannot be used: this runnel was built without the feature pkcs11",
        uri.token_name()
    ))
}

/// Signs with a key in a token.
pub(crate) struct TokenSigner {
    key: TokenKey,
    /// How the token is reached; `None` when the configuration does not say.
    uri: Option<TokenUri>,
    /// Why the last use failed.
    trouble: Mutex<Option<String>>,
}

impl TokenSigner {
    pub(crate) fn new(key: TokenKey, uri: Option<TokenUri>) -> Self {
        Self { key, uri, trouble: Mutex::default() }
    }

    fn noted<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        let trouble = result.as_ref().err().map(Error::to_string);
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
        result
    }

    fn uri(&self) -> Result<&TokenUri, Error> {
        self.uri.as_ref().ok_or_else(|| {
            Error::Token(format!(
                "the CA's {} cannot be reached: set ca_key in [pki] to the token's pkcs11: URI and \
                 start again",
                self.key.name()
            ))
        })
    }

    fn signed(&self, scheme: SignatureScheme, message: &[u8]) -> Result<Vec<u8>, Error> {
        let uri = self.uri()?;
        #[cfg(feature = "pkcs11")]
        {
            let signature = worker::sign(uri, &self.key, scheme, message)?;
            self.verify(scheme, message, &signature)?;
            Ok(signature)
        }
        #[cfg(not(feature = "pkcs11"))]
        {
            let _ = (scheme, message, Self::verify);
            Err(not_built(uri))
        }
    }

    /// A token's signature is not believed.
    fn verify(
        &self,
        scheme: SignatureScheme,
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), Error> {
        let wrong = || {
            Error::Token(format!(
                "{} made a signature that its public key does not verify: nothing was issued; look \
                 whether the token was restored from something else",
                self.key.name()
            ))
        };
        let (_, spki) =
            SubjectPublicKeyInfo::from_der(&self.key.public_key).map_err(|_| wrong())?;
        let algorithm = verification(self.key.algorithm, scheme).ok_or_else(wrong)?;
        ring_signature::UnparsedPublicKey::new(algorithm, spki.subject_public_key.data.as_ref())
            .verify(message, signature)
            .map_err(|_| wrong())
    }
}

fn verification(
    algorithm: KeyAlgorithm,
    scheme: SignatureScheme,
) -> Option<&'static dyn ring_signature::VerificationAlgorithm> {
    use SignatureScheme as Scheme;
    Some(match (algorithm, scheme) {
        (KeyAlgorithm::EcdsaP256, Scheme::EcdsaAsn1) => &ring_signature::ECDSA_P256_SHA256_ASN1,
        (KeyAlgorithm::EcdsaP256, Scheme::EcdsaFixed) => &ring_signature::ECDSA_P256_SHA256_FIXED,
        (KeyAlgorithm::EcdsaP384, Scheme::EcdsaAsn1) => &ring_signature::ECDSA_P384_SHA384_ASN1,
        (KeyAlgorithm::EcdsaP384, Scheme::EcdsaFixed) => &ring_signature::ECDSA_P384_SHA384_FIXED,
        (KeyAlgorithm::Ed25519, Scheme::Ed25519) => &ring_signature::ED25519,
        (KeyAlgorithm::Rsa, Scheme::RsaPkcs1Sha256) => &ring_signature::RSA_PKCS1_2048_8192_SHA256,
        (KeyAlgorithm::Rsa, Scheme::RsaPkcs1Sha384) => &ring_signature::RSA_PKCS1_2048_8192_SHA384,
        (KeyAlgorithm::Rsa, Scheme::RsaPkcs1Sha512) => &ring_signature::RSA_PKCS1_2048_8192_SHA512,
        _ => return None,
    })
}

impl Signer for TokenSigner {
    fn public_key_der(&self) -> &[u8] {
        &self.key.public_key
    }

    fn algorithm(&self) -> KeyAlgorithm {
        self.key.algorithm
    }

    fn sign_with(&self, scheme: SignatureScheme, message: &[u8]) -> Result<Vec<u8>, Error> {
        if verification(self.key.algorithm, scheme).is_none() {
            return Err(Error::Crypto("the signature scheme does not fit the key in the token"));
        }
        self.noted(self.signed(scheme, message))
    }

    fn place(&self) -> Option<String> {
        Some(format!("{} (object \"{}\")", self.key.token, self.key.object))
    }

    fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn probe(&self) -> Result<(), Error> {
        let probed = self.uri().and_then(|uri| {
            #[cfg(feature = "pkcs11")]
            return worker::probe(uri, &self.key);
            #[cfg(not(feature = "pkcs11"))]
            Err(not_built(uri))
        });
        self.noted(probed)
    }
}

impl fmt::Debug for TokenSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenSigner({:?}, {})", self.key.algorithm, self.key.name())
    }
}
