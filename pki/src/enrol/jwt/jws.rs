//! The compact form of a signed token (RFC 7515 7.1), taken apart and not yet believed.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use super::JwtAlgorithm;
use crate::enrol::shown;

/// The longest token looked at. GitHub's have 1.5 to 2 KiB, those with many claims some more.
pub const MAX_TOKEN: usize = 16 * 1024;
/// The longest header looked at, decoded.
const MAX_HEADER: usize = 2 * 1024;
/// The longest key name.
const MAX_KID: usize = 256;

/// A token whose signature nobody has verified yet.
#[derive(Clone, PartialEq)]
pub struct Unverified<'a> {
    /// The signature algorithm it claims.
    pub algorithm: JwtAlgorithm,
    /// The name of the key it claims to be signed with.
    pub kid: Option<String>,
    /// The claims.
    pub claims: Map<String, Value>,
    /// What is signed.
    pub(super) signed: &'a [u8],
    /// The signature.
    pub(super) signature: Vec<u8>,
}

impl std::fmt::Debug for Unverified<'_> {
    /// Leaves out what could be put together to the token again.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Unverified")
            .field("algorithm", &self.algorithm)
            .field("kid", &self.kid)
            .field("claims", &self.claims.len())
            .finish_non_exhaustive()
    }
}

/// Why a text is no token that could be accepted from anybody.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JwsError {
    /// It is too long.
    #[error("the token has {0} octets, more than {MAX_TOKEN}")]
    TooLong(usize),
    /// It is not three base64url parts.
    #[error("the token is not of the form HEADER.CLAIMS.SIGNATURE in base64url")]
    Form,
    /// Header or claims are no JSON object.
    #[error("the token's {0} is no JSON object")]
    Json(&'static str),
    /// The signature algorithm is never accepted.
    #[error("the token is signed with {0:?}, which nobody's tokens may be: RS256, ES256 or EdDSA")]
    Algorithm(String),
    /// The header asks for something that is not understood.
    #[error("the token's header has {0}, which is not understood")]
    Header(&'static str),
}

/// Whether a text looks like a token of an OIDC issuer: three parts, the first of which begins as
/// an encoded JSON object does. Says nothing about its worth.
pub fn looks_like_jwt(text: &str) -> bool {
    let text = text.trim();
    text.starts_with("ey") && text.bytes().filter(|byte| *byte == b'.').count() == 2
}

/// Takes a token apart.
///
/// # Errors
/// Why it cannot be accepted whoever sent it.
pub fn parse(token: &str) -> Result<Unverified<'_>, JwsError> {
    let token = token.trim();
    if token.len() > MAX_TOKEN {
        return Err(JwsError::TooLong(token.len()));
    }
    let (signed, signature) = token.rsplit_once('.').ok_or(JwsError::Form)?;
    let (header, claims) = signed.split_once('.').ok_or(JwsError::Form)?;
    let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| JwsError::Form);
    let (header, claims, signature) = (decode(header)?, decode(claims)?, decode(signature)?);
    if header.len() > MAX_HEADER {
        return Err(JwsError::Header("more than 2 KiB"));
    }
    let object = |octets: &[u8], what| {
        serde_json::from_slice::<Map<String, Value>>(octets).map_err(|_| JwsError::Json(what))
    };
    let header = object(&header, "header")?;
    // RFC 7515 4.1.11: whoever does not understand an extension must refuse the token.
    if header.contains_key("crit") {
        return Err(JwsError::Header("critical extensions"));
    }
    // Tokens made for other purposes (RFC 8725 3.11) have types of their own.
    match header.get("typ").map(|typ| typ.as_str().unwrap_or_default().to_ascii_lowercase()) {
        None => {}
        Some(typ) if matches!(typ.as_str(), "jwt" | "at+jwt" | "application/at+jwt") => {}
        Some(_) => return Err(JwsError::Header("a type other than JWT")),
    }
    let name = header.get("alg").and_then(Value::as_str).unwrap_or_default();
    let algorithm =
        JwtAlgorithm::from_name(name).ok_or_else(|| JwsError::Algorithm(shown(name).to_owned()))?;
    let kid = match header.get("kid") {
        None => None,
        Some(Value::String(kid)) if kid.len() <= MAX_KID => Some(kid.clone()),
        Some(_) => return Err(JwsError::Header("a key name that is no short text")),
    };
    let claims = object(&claims, "claims part")?;
    Ok(Unverified { algorithm, kid, claims, signed: signed.as_bytes(), signature })
}
