//! Who sent a delivery: HMAC over the octets that came, compared in constant time.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;
use zeroize::Zeroizing;

use super::{Delivery, HookError, HookKind, HookSecret, HookSource};
use crate::time::UnixTime;

/// How far the time in a signed GitLab delivery may be from ours.
pub const TOLERANCE: Duration = Duration::from_secs(300);
/// Signatures of one delivery that are looked at; the platform sends one for each of its secrets.
const MAX_SIGNATURES: usize = 8;
/// Characters of a header that is looked at.
const MAX_HEADER: usize = 1_024;

/// The source whose secret a delivery is signed with.
///
/// # Errors
/// Why nobody is believed to have sent it.
pub fn verify<'s>(
    sources: &'s [HookSource],
    kind: HookKind,
    delivery: &Delivery<'_>,
    now: UnixTime,
) -> Result<&'s HookSource, HookError> {
    let proof = Proof::of(kind, delivery, now)?;
    let mut of_kind = sources.iter().filter(|source| source.kind == kind).peekable();
    if of_kind.peek().is_none() {
        return Err(HookError::NoSource);
    }
    of_kind
        .find(|source| source.secrets.iter().any(|secret| proof.is_by(secret)))
        .ok_or(HookError::BadSignature)
}

/// What a delivery brings to prove its sender.
enum Proof<'a> {
    /// HMAC-SHA256 of the body.
    Body { tag: Vec<u8>, body: &'a [u8] },
    /// HMAC-SHA256 of name, time and body (Standard Webhooks).
    Dated { tags: Vec<Vec<u8>>, signed: Vec<u8> },
    /// The secret itself.
    Token(&'a str),
}

impl<'a> Proof<'a> {
    fn of(kind: HookKind, delivery: &Delivery<'a>, now: UnixTime) -> Result<Self, HookError> {
        let short = |text: &&str| !text.is_empty() && text.len() <= MAX_HEADER;
        let body = delivery.body;
        if kind == HookKind::Github {
            let signature = delivery.hub_signature.filter(short).ok_or(HookError::Unsigned)?;
            let tag = signature.strip_prefix("sha256=").and_then(hexadecimal);
            return Ok(Self::Body { tag: tag.ok_or(HookError::BadSignature)?, body });
        }
        // A signature that does not verify is not made good by a token beside it.
        if let Some(signatures) = delivery.webhook_signature.filter(short) {
            let id = delivery.webhook_id.filter(short).ok_or(HookError::BadSignature)?;
            let time = delivery.webhook_timestamp.filter(short).ok_or(HookError::BadSignature)?;
            let seconds: i64 = time.parse().map_err(|_| HookError::BadSignature)?;
            let signed_at = UnixTime::from_secs(seconds);
            if now > signed_at.plus(TOLERANCE) || signed_at > now.plus(TOLERANCE) {
                return Err(HookError::Stale);
            }
            let tags = signatures
                .split(' ')
                .take(MAX_SIGNATURES)
                .filter_map(|one| STANDARD.decode(one.strip_prefix("v1,")?).ok())
                .collect();
            let signed = [format!("{id}.{time}.").as_bytes(), body].concat();
            return Ok(Self::Dated { tags, signed });
        }
        delivery.token.filter(short).map(Self::Token).ok_or(HookError::Unsigned)
    }

    fn is_by(&self, secret: &HookSecret) -> bool {
        let key = |octets: &[u8]| hmac::Key::new(hmac::HMAC_SHA256, octets);
        let own = key(&secret.0);
        match self {
            Self::Body { tag, body } => hmac::verify(&own, body, tag).is_ok(),
            Self::Dated { tags, signed } => {
                let any =
                    |key: &hmac::Key| tags.iter().any(|tag| hmac::verify(key, signed, tag).is_ok());
                // In the form of Standard Webhooks the text encodes the key.
                let encoded = std::str::from_utf8(&secret.0)
                    .ok()
                    .and_then(|text| text.strip_prefix("whsec_"))
                    .and_then(|text| STANDARD.decode(text).ok())
                    .map(Zeroizing::new);
                any(&own) || encoded.is_some_and(|octets| any(&key(&octets)))
            }
            // Digests of both are compared: how much of a guess is right takes no time to tell.
            Self::Token(token) => {
                let given = hmac::sign(&own, token.as_bytes());
                hmac::verify(&own, &secret.0, given.as_ref()).is_ok()
            }
        }
    }
}

fn hexadecimal(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let pairs = (0..text.len()).step_by(2);
    pairs.map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok()).collect()
}
