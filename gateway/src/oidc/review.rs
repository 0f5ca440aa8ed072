//! Asks a cluster's API server about a token of one of its service accounts (TokenReview). The
//! account that we ask as needs the right to create such reviews (`system:auth-delegator`).

use std::path::Path;
use std::time::Duration;

use pki::enrol::jwt::review::{answer, question};
use pki::enrol::jwt::{Issuer, Reviewed, TokenReview};
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use super::roots;
use crate::fetch::{Asked, fetch_secure};
use crate::sys::read_small;

/// Reviews by one cluster under way at most; the next one waits, for as long as patience lasts.
pub(super) const AT_ONCE: usize = 16;
/// Patience with the API server.
const TIMEOUT: Duration = Duration::from_secs(3);
/// The largest answer, octets.
const MAX_ANSWER: usize = 64 * 1024;
/// The largest token of ours, octets.
const MAX_TOKEN: usize = 16 * 1024;

/// What the cluster says of a token; `None` when it could not be asked because too many are.
pub(super) async fn ask(issuer: &Issuer, token: &str, places: &Semaphore) -> Option<Reviewed> {
    let review = issuer.review.clone()?;
    let place = tokio::time::timeout(TIMEOUT, places.acquire()).await;
    let Ok(Ok(_place)) = place else { return None };
    let asked = ask_now(review, token, &issuer.audience);
    Some(match tokio::time::timeout(TIMEOUT, asked).await {
        Ok(Ok(octets)) => answer(&octets, &issuer.audience),
        Ok(Err(why)) => Reviewed::Unreachable(why),
        Err(_) => Reviewed::Unreachable(format!("no answer within {} s", TIMEOUT.as_secs())),
    })
}

async fn ask_now(review: TokenReview, token: &str, audience: &str) -> Result<Vec<u8>, String> {
    let base = review.url.trim_end_matches('/');
    let url = format!("{base}/apis/authentication.k8s.io/v1/tokenreviews");
    let (ca, file) = (review.ca, review.token_file);
    let read = move || Ok::<_, String>((roots::client(ca.as_deref())?, own_token(&file)?));
    let read = tokio::task::spawn_blocking(read).await;
    let (tls, bearer) = read.unwrap_or_else(|error| Err(error.to_string()))?;
    let asked =
        Asked { body: question(token, audience), kind: "application/json", bearer: Some(bearer) };
    fetch_secure(&url, tls, Some(asked), MAX_ANSWER, TIMEOUT).await
}

/// Looks at the files that an issuer's `token_review` names.
///
/// # Errors
/// What is the matter, as a part of a sentence.
pub(super) fn check(issuer: &Issuer) -> Result<(), String> {
    let Some(review) = &issuer.review else { return Ok(()) };
    roots::client(review.ca.as_deref()).map_err(|why| format!("`token_review`: `ca`: {why}"))?;
    own_token(&review.token_file).map(|_| ()).map_err(|why| format!("`token_review`: {why}"))
}

fn own_token(path: &Path) -> Result<Zeroizing<String>, String> {
    let octets = read_small(path, MAX_TOKEN)?;
    let text =
        std::str::from_utf8(&octets).map_err(|_| format!("{} is no text", path.display()))?;
    let token = text.trim();
    if token.is_empty() {
        return Err(format!("{} holds no token", path.display()));
    }
    Ok(Zeroizing::new(token.to_owned()))
}
