//! An issuer's public keys (RFC 7517), and the verification of signatures with them.

use base64::Engine;
use base64::engine::general_purpose::{URL_SAFE, URL_SAFE_NO_PAD};
use ring::signature::{self, RsaPublicKeyComponents, UnparsedPublicKey};
use serde_json::Value;

use super::JwtAlgorithm;
use super::jws::Unverified;
use crate::enrol::shown;

/// The largest key set or discovery document looked at, octets.
pub const MAX_KEY_SET: usize = 256 * 1024;
/// Keys of one set at most.
const MAX_KEYS: usize = 64;

/// One public key.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Key {
    kid: Option<String>,
    material: Material,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Material {
    Rsa {
        n: Vec<u8>,
        e: Vec<u8>,
    },
    /// An uncompressed point.
    P256(Vec<u8>),
    Ed25519(Vec<u8>),
}

impl Material {
    fn fits(&self, algorithm: JwtAlgorithm) -> bool {
        matches!(
            (self, algorithm),
            (Self::Rsa { .. }, JwtAlgorithm::Rs256)
                | (Self::P256(_), JwtAlgorithm::Es256)
                | (Self::Ed25519(_), JwtAlgorithm::EdDsa)
        )
    }

    fn verifies(&self, signed: &[u8], signature: &[u8]) -> bool {
        match self {
            Self::Rsa { n, e } => RsaPublicKeyComponents { n, e }.verify(
                &signature::RSA_PKCS1_2048_8192_SHA256,
                signed,
                signature,
            ),
            Self::P256(point) => UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_FIXED, point)
                .verify(signed, signature),
            Self::Ed25519(point) => {
                UnparsedPublicKey::new(&signature::ED25519, point).verify(signed, signature)
            }
        }
        .is_ok()
    }
}

/// An issuer's keys. Keys that nothing can be verified with are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeySet {
    keys: Vec<Key>,
}

/// Why no key of a set verifies a token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// No key has the name the token gives.
    #[error("no key of the issuer is named {0:?} and fit for {1}: it has {2}")]
    Unknown(String, JwtAlgorithm, String),
    /// The token names no key and there is not exactly one it could mean.
    #[error("the token names no key, and the issuer has {0} keys for {1}")]
    Ambiguous(usize, JwtAlgorithm),
    /// The signature is not by that key.
    #[error("the signature does not verify with the issuer's key {0:?}")]
    BadSignature(String),
}

impl KeySet {
    /// Reads a key set.
    ///
    /// # Errors
    /// One sentence saying why there is no usable key in it.
    pub fn parse(octets: &[u8]) -> Result<Self, String> {
        if octets.len() > MAX_KEY_SET {
            return Err(format!("the key set has {} octets: too many", octets.len()));
        }
        let document: Value = serde_json::from_slice(octets)
            .map_err(|_| "the key set is no JSON document".to_owned())?;
        let keys = document
            .get("keys")
            .and_then(Value::as_array)
            .ok_or_else(|| "the key set has no list \"keys\"".to_owned())?;
        let found = keys.len();
        if found > MAX_KEYS {
            return Err(format!("the key set has {found} keys: at most {MAX_KEYS} are read"));
        }
        let keys: Vec<Key> = keys.iter().filter_map(key).collect();
        if keys.is_empty() {
            return Err(format!(
                "none of the {found} keys in the set can verify RS256, ES256 or EdDSA"
            ));
        }
        Ok(Self { keys })
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Whether there is a key for a token that claims this name and algorithm.
    pub fn has(&self, kid: Option<&str>, algorithm: JwtAlgorithm) -> bool {
        self.find(kid, algorithm).is_ok()
    }

    /// Verifies a token's signature; returns the name of the key that did.
    ///
    /// # Errors
    /// Why not. The token's own words decide only which of the issuer's keys is tried, never how:
    /// the kind of key must fit the algorithm.
    pub fn verify(&self, token: &Unverified<'_>) -> Result<String, KeyError> {
        let keys = self.find(token.kid.as_deref(), token.algorithm)?;
        let name = keys.first().and_then(|key| key.kid.clone()).unwrap_or_default();
        let (signed, signature) = (token.signed, token.signature.as_slice());
        match keys.iter().any(|key| key.material.verifies(signed, signature)) {
            true => Ok(name),
            false => Err(KeyError::BadSignature(name)),
        }
    }

    /// The keys that a token may be signed with; at least one. Several may have one name, as when
    /// an issuer does not rename what it rotates (RFC 7517 4.5).
    fn find(&self, kid: Option<&str>, algorithm: JwtAlgorithm) -> Result<Vec<&Key>, KeyError> {
        let mut fitting: Vec<&Key> =
            self.keys.iter().filter(|key| key.material.fits(algorithm)).collect();
        let Some(kid) = kid else {
            return match fitting.len() {
                1 => Ok(fitting),
                several => Err(KeyError::Ambiguous(several, algorithm)),
            };
        };
        fitting.retain(|key| key.kid.as_deref() == Some(kid));
        if !fitting.is_empty() {
            return Ok(fitting);
        }
        let names: Vec<&str> = self.keys.iter().filter_map(|key| key.kid.as_deref()).collect();
        let mut names = names.join(", ");
        if names.len() > 200 {
            names = format!("{} keys", self.keys.len());
        }
        Err(KeyError::Unknown(shown(kid).to_owned(), algorithm, names))
    }
}

/// A key of a set; `None` when nothing can be verified with it.
fn key(json: &Value) -> Option<Key> {
    let text = |name: &str| json.get(name).and_then(Value::as_str);
    if text("use").is_some_and(|purpose| purpose != "sig") {
        return None;
    }
    if let Some(operations) = json.get("key_ops").and_then(Value::as_array)
        && !operations.iter().any(|operation| operation.as_str() == Some("verify"))
    {
        return None;
    }
    let octets = |name: &str| {
        let text = text(name)?;
        // Some issuers pad what RFC 7515 2 leaves unpadded.
        URL_SAFE_NO_PAD.decode(text).or_else(|_| URL_SAFE.decode(text)).ok()
    };
    let material = match (text("kty")?, text("crv")) {
        ("RSA", _) => {
            let mut n = octets("n")?;
            let zeros = n.iter().take_while(|octet| **octet == 0).count();
            n.drain(..zeros);
            if !(256..=1024).contains(&n.len()) {
                return None;
            }
            Material::Rsa { n, e: octets("e")? }
        }
        ("EC", Some("P-256")) => {
            let (x, y) = (octets("x")?, octets("y")?);
            if (x.len(), y.len()) != (32, 32) {
                return None;
            }
            Material::P256([&[4][..], &x, &y].concat())
        }
        ("OKP", Some("Ed25519")) => Material::Ed25519(octets("x").filter(|x| x.len() == 32)?),
        _ => return None,
    };
    // A key says which algorithm it is for, mostly; it must then be that one.
    if let Some(name) = text("alg")
        && !JwtAlgorithm::from_name(name).is_some_and(|algorithm| material.fits(algorithm))
    {
        return None;
    }
    Some(Key { kid: text("kid").map(str::to_owned), material })
}

/// The address of the key set, from an issuer's discovery document (OpenID Connect Discovery 1.0,
/// 4.2).
///
/// # Errors
/// One sentence; in particular when the document is another issuer's (4.3).
pub fn jwks_uri(document: &[u8], issuer: &str) -> Result<String, String> {
    if document.len() > MAX_KEY_SET {
        return Err(format!("the discovery document has {} octets: too many", document.len()));
    }
    let document: Value = serde_json::from_slice(document)
        .map_err(|_| "the discovery document is no JSON document".to_owned())?;
    let text = |name: &str| document.get(name).and_then(Value::as_str);
    match text("issuer") {
        Some(theirs) if theirs == issuer => {}
        Some(theirs) => {
            return Err(format!(
                "the discovery document is that of {:?}, not of {issuer:?}: write the issuer \
                 exactly as it calls itself",
                shown(theirs)
            ));
        }
        None => return Err("the discovery document names no issuer".to_owned()),
    }
    match text("jwks_uri") {
        Some(uri) if uri.starts_with("https://") && uri.len() <= 2_048 => Ok(uri.to_owned()),
        Some(_) => Err("the discovery document's jwks_uri is not https".to_owned()),
        None => Err("the discovery document has no jwks_uri".to_owned()),
    }
}
