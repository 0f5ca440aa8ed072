//! Fetches the keys of OIDC issuers: before a token is judged that needs them, one fetch of an
//! issuer at a time, with every bound on what the other side can cost.

mod review;
mod roots;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pki::enrol::jwt::jwks::{self, MAX_KEY_SET};
use pki::enrol::jwt::{Issuer, KeySource, KeysWanted, Reviewed};
use pki::{Authority, UnixTime};

use crate::config::Config;
use crate::fetch::fetch_secure;
use crate::sys::{clock, read_small};

/// Patience with an issuer's server, for each of two requests.
const TIMEOUT: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Debug)]
pub struct KeyFetcher {
    authority: Arc<Authority>,
    turns: Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<()>>>>,
    /// By issuer: a cluster that hangs must not keep others from being asked.
    reviewers: Mutex<BTreeMap<String, Arc<tokio::sync::Semaphore>>>,
}

impl KeyFetcher {
    /// For this PKI.
    pub fn new(authority: Arc<Authority>) -> Self {
        Self { authority, turns: Mutex::default(), reviewers: Mutex::default() }
    }

    /// Fetches what judging this token needs: its issuer's keys. Whether that worked, the judgement
    /// says.
    pub async fn prepare(self: &Arc<Self>, token: &str) {
        if let KeysWanted::First(issuer) = self.authority.jwt_keys_wanted(token, now()) {
            self.refresh(issuer, token).await;
        }
    }

    /// The same for a token that is to open a lease, with what its cluster says of it.
    pub async fn prepare_to_open(self: &Arc<Self>, token: &str) {
        self.prepare(token).await;
        let Some(issuer) = self.authority.jwt_review_wanted(token, now()) else { return };
        let places = {
            let mut reviewers = self.reviewers.lock().unwrap_or_else(PoisonError::into_inner);
            // Those of an issuer that is not configured any more are forgotten.
            reviewers.retain(|_, places| Arc::strong_count(places) > 1);
            let places = reviewers.entry(issuer.name.clone());
            let new = || Arc::new(tokio::sync::Semaphore::new(review::AT_ONCE));
            Arc::clone(places.or_insert_with(new))
        };
        let Some(reviewed) = review::ask(&issuer, token, &places).await else {
            // Whoever crowds here must not make it look as if the cluster were away.
            tracing::debug!(issuer = %issuer.name, "too many ask the cluster about tokens");
            return;
        };
        if !matches!(reviewed, Reviewed::Good) {
            tracing::debug!(issuer = %issuer.name, ?reviewed, "the cluster does not vouch for a token");
        }
        self.authority.jwt_reviewed(&issuer, token, reviewed, now());
    }

    async fn refresh(&self, issuer: Issuer, token: &str) {
        let turn = {
            let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
            // Turns nobody waits for are forgotten.
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
            Arc::clone(turns.entry(issuer.name.clone()).or_default())
        };
        let _turn = turn.lock().await;
        // Whoever waited has the keys that the one before fetched.
        if self.authority.jwt_keys_wanted(token, now()) == KeysWanted::No {
            return;
        }
        let fetched = fetch_keys(&issuer).await;
        let name = issuer.name.clone();
        match self.authority.jwt_keys_fetched_for(&issuer, token, fetched, now()) {
            Ok(keys) => tracing::info!(issuer = %name, keys, "keys of the issuer fetched"),
            Err(why) => tracing::warn!(issuer = %name, %why, "keys of the issuer not fetched"),
        }
    }
}

/// The octets of an issuer's key set.
///
/// # Errors
/// What went wrong, as a part of a sentence.
pub async fn fetch_keys(issuer: &Issuer) -> Result<Vec<u8>, String> {
    let ca = match &issuer.keys {
        KeySource::File(path) => {
            let path = path.clone();
            let read = tokio::task::spawn_blocking(move || read_keys(&path)).await;
            return read.unwrap_or_else(|error| Err(error.to_string()));
        }
        KeySource::Discovery { ca } => ca.clone(),
    };
    let tls = tokio::task::spawn_blocking(move || roots::client(ca.as_deref())).await;
    let tls = tls.unwrap_or_else(|error| Err(error.to_string()))?;
    let base = issuer.issuer.trim_end_matches('/');
    let url = format!("{base}/.well-known/openid-configuration");
    let document = fetch_secure(&url, Arc::clone(&tls), None, MAX_KEY_SET, TIMEOUT).await;
    let document = document.map_err(|why| format!("{url}: {why}"))?;
    let uri = jwks::jwks_uri(&document, &issuer.issuer)?;
    let keys = fetch_secure(&uri, tls, None, MAX_KEY_SET, TIMEOUT).await;
    keys.map_err(|why| format!("{uri}: {why}"))
}

fn read_keys(path: &std::path::Path) -> Result<Vec<u8>, String> {
    read_small(path, MAX_KEY_SET).map(|octets| octets.to_vec())
}

/// Reads the key sets that are given as files again, for a configuration that is in force.
pub fn reread(authority: &Authority, config: &Config) {
    for issuer in &config.issuers {
        if let KeySource::File(path) = &issuer.keys
            && let Err(why) = authority.jwt_keys_fetched(issuer, read_keys(path), now())
        {
            tracing::warn!(issuer = %issuer.name, %why, "keys of the issuer not read");
        }
    }
}

/// Looks at the files that the issuers' sections name, so that mistakes show before a job fails.
///
/// # Errors
/// One sentence for each file that is no use.
pub fn check(config: &Config) -> Result<(), Vec<String>> {
    let mut errors = Vec::new();
    for issuer in &config.issuers {
        let looked = match &issuer.keys {
            KeySource::File(path) => read_keys(path)
                .and_then(|octets| jwks::KeySet::parse(&octets))
                .map(|_| ())
                .map_err(|why| format!("`static_jwks`: {why}")),
            KeySource::Discovery { ca: Some(path) } => {
                roots::client(Some(path)).map(|_| ()).map_err(|why| format!("`ca`: {why}"))
            }
            KeySource::Discovery { ca: None } => Ok(()),
        };
        let looked = looked.and_then(|()| review::check(issuer));
        if let Err(why) = looked {
            errors.push(format!("issuer \"{}\": {why}; correct the file", issuer.name));
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

fn now() -> UnixTime {
    UnixTime::from_micros(clock::wall().0)
}

#[cfg(test)]
mod tests;
