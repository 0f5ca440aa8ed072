//! The issuers' keys as last fetched, and when they are to be fetched again. Fetching is the
//! caller's work.

use std::collections::BTreeMap;
use std::time::Duration;

use super::jwks::KeySet;
use super::{Issuer, JwtAlgorithm};
use crate::time::UnixTime;

/// Keys are fetched again when they are this old.
const REFRESH: Duration = Duration::from_secs(3_600);
/// A token that names an unknown key has them fetched again, this often at most.
const MISS_INTERVAL: Duration = Duration::from_secs(30);
/// While there are no keys at all, fetching is tried this often at most.
const EMPTY_INTERVAL: Duration = Duration::from_secs(5);
/// Keys are used this long when no newer ones can be had.
const MAX_STALE: Duration = Duration::from_secs(24 * 3_600);

/// Whether an issuer's keys are to be fetched for a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeysWanted {
    /// No: they are there, or were asked for a moment ago.
    No,
    /// Yes, before the token is judged.
    First(Issuer),
}

#[derive(Debug, Default)]
struct Entry {
    set: Option<(UnixTime, KeySet)>,
    tried: Option<UnixTime>,
    /// Digest of the token that the last fetch was for.
    tried_for: Option<String>,
    problem: Option<String>,
    fetches: u64,
    failures: u64,
    /// `iat` of the latest genuine token against our clock, seconds.
    clock_skew: Option<i64>,
}

/// How an issuer's keys are, for status and metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuerKeys {
    /// The issuer's name in the configuration.
    pub name: String,
    /// How many keys there are.
    pub keys: usize,
    /// When they were had.
    pub fetched: Option<UnixTime>,
    /// They are older than they should be: newer ones could not be had, or nobody came with a token.
    pub stale: bool,
    /// Tokens are verified with them.
    pub usable: bool,
    /// How often they were fetched, or read, since the start.
    pub fetches: u64,
    /// How often that failed.
    pub failures: u64,
    /// How it failed the last time, if it did then.
    pub problem: Option<String>,
    /// How far the issuer's clock is ahead of ours, in seconds, as its latest genuine token shows
    /// it; a token that waited in a job looks as if it were behind.
    pub clock_skew: Option<i64>,
}

/// Keys by issuer. An issuer whose configuration changes is another one.
#[derive(Debug, Default)]
pub(crate) struct Keyring {
    entries: BTreeMap<String, (Issuer, Entry)>,
}

impl Keyring {
    /// Forgets the keys of issuers that are not (so) configured any more.
    pub(crate) fn configure(&mut self, issuers: &[Issuer]) {
        self.entries.retain(|_, (issuer, _)| issuers.contains(issuer));
    }

    /// Notes what a fetch brought.
    pub(crate) fn fetched(
        &mut self,
        issuer: &Issuer,
        result: Result<KeySet, String>,
        tried_for: Option<String>,
        now: UnixTime,
    ) {
        let slot = self.entries.entry(issuer.name.clone());
        let (known, entry) = slot.or_insert_with(|| (issuer.clone(), Entry::default()));
        if known != issuer {
            (*known, *entry) = (issuer.clone(), Entry::default());
        }
        entry.tried = Some(now);
        entry.fetches = entry.fetches.saturating_add(1);
        entry.tried_for = tried_for;
        match result {
            Ok(set) => {
                entry.set = Some((now, set));
                entry.problem = None;
            }
            Err(problem) => {
                entry.failures = entry.failures.saturating_add(1);
                entry.problem = Some(problem);
            }
        }
    }

    /// How the keys of each issuer are.
    pub(crate) fn told(&self, issuers: &[Issuer], now: UnixTime) -> Vec<IssuerKeys> {
        let of = |issuer: &Issuer| {
            let entry = self.entry(issuer);
            let set = entry.and_then(|entry| entry.set.as_ref());
            let younger = |age: Duration| set.is_some_and(|(since, _)| now < since.plus(age));
            IssuerKeys {
                name: issuer.name.clone(),
                keys: set.map_or(0, |(_, set)| set.len()),
                fetched: set.map(|(since, _)| *since),
                stale: set.is_some() && !younger(REFRESH),
                usable: younger(MAX_STALE),
                fetches: entry.map_or(0, |entry| entry.fetches),
                failures: entry.map_or(0, |entry| entry.failures),
                problem: entry.and_then(|entry| entry.problem.clone()),
                clock_skew: entry.and_then(|entry| entry.clock_skew),
            }
        };
        issuers.iter().map(of).collect()
    }

    /// Notes when a genuine token says that it was issued, against our clock.
    pub(crate) fn note_clock(&mut self, issuer: &str, skew: i64) {
        if let Some((_, entry)) = self.entries.get_mut(issuer) {
            entry.clock_skew = Some(skew);
        }
    }

    /// An issuer's keys, however old within a day.
    ///
    /// # Errors
    /// Why there are none, as a part of a sentence.
    pub(crate) fn keys(&self, issuer: &Issuer, now: UnixTime) -> Result<&KeySet, String> {
        let entry = self.entry(issuer);
        match entry.and_then(|entry| entry.set.as_ref()) {
            Some((since, set)) if now < since.plus(MAX_STALE) => Ok(set),
            Some((since, _)) => Err(format!("they were last had at {since}, too long ago")),
            None => Err(entry
                .and_then(|entry| entry.problem.clone())
                .unwrap_or_else(|| "they were not fetched yet".to_owned())),
        }
    }

    /// Whether keys are to be fetched for a token that claims this key.
    pub(crate) fn wanted(
        &self,
        issuer: &Issuer,
        kid: Option<&str>,
        algorithm: JwtAlgorithm,
        now: UnixTime,
    ) -> KeysWanted {
        let entry = self.entry(issuer);
        // A clock that was set back must not hold fetching up.
        let tried_within = |interval: Duration| {
            entry
                .and_then(|entry| entry.tried)
                .is_some_and(|tried| tried <= now && now < tried.plus(interval))
        };
        let set = entry.and_then(|entry| entry.set.as_ref());
        let Some((since, set)) = set.filter(|(since, _)| now < since.plus(MAX_STALE)) else {
            return match tried_within(EMPTY_INTERVAL) {
                true => KeysWanted::No,
                false => KeysWanted::First(issuer.clone()),
            };
        };
        if tried_within(MISS_INTERVAL) {
            return KeysWanted::No;
        }
        // Old keys are for when no newer ones can be had: an issuer may have withdrawn one.
        let fresh = *since <= now && now < since.plus(REFRESH);
        if fresh && set.has(kid, algorithm) {
            KeysWanted::No
        } else {
            KeysWanted::First(issuer.clone())
        }
    }

    /// How long it takes until a key that is not there is looked for again; `None` when it was
    /// looked for just now, on behalf of this very token, or is with the next one.
    pub(crate) fn looked_for_again(
        &self,
        issuer: &Issuer,
        token: &str,
        now: UnixTime,
    ) -> Option<Duration> {
        let entry = self.entry(issuer)?;
        let again = entry.tried.filter(|tried| *tried <= now)?.plus(MISS_INTERVAL);
        let for_this = entry.tried_for.as_deref() == Some(token);
        (now < again && !for_this).then(|| again.since(now))
    }

    fn entry(&self, issuer: &Issuer) -> Option<&Entry> {
        self.entries.get(&issuer.name).filter(|(known, _)| known == issuer).map(|(_, entry)| entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::enrol::jwt::{IssuerKind, KeySource};

    const ALGORITHM: JwtAlgorithm = JwtAlgorithm::EdDsa;

    fn at(secs: i64) -> UnixTime {
        UnixTime::from_secs(secs)
    }

    fn issuer() -> Issuer {
        Issuer::new(
            "ci",
            IssuerKind::Generic,
            "https://ci.example.com",
            "https://gw.example.com",
            KeySource::Discovery { ca: None },
        )
    }

    fn set(kid: &str) -> KeySet {
        let x = "A".repeat(43);
        let text = format!(
            "{{\"keys\":[{{\"kty\":\"OKP\",\"crv\":\"Ed25519\",\"kid\":\"{kid}\",\"x\":\"{x}\"}}]}}"
        );
        KeySet::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn an_unknown_key_has_the_set_fetched_once_in_thirty_seconds() {
        // RFC 7517 4.5.
        let (mut ring, issuer) = (Keyring::default(), issuer());
        let wanted =
            |ring: &Keyring, kid: &str, secs| ring.wanted(&issuer, Some(kid), ALGORITHM, at(secs));
        assert_eq!(wanted(&ring, "a", 0), KeysWanted::First(issuer.clone()));
        ring.fetched(&issuer, Ok(set("a")), None, at(0));
        assert_eq!(wanted(&ring, "a", 1), KeysWanted::No);
        assert_eq!(wanted(&ring, "b", 29), KeysWanted::No, "too soon after the last fetch");
        assert_eq!(wanted(&ring, "b", 30), KeysWanted::First(issuer.clone()));
        ring.fetched(&issuer, Ok(set("a")), None, at(30));
        assert_eq!(
            wanted(&ring, "b", 59),
            KeysWanted::No,
            "strangers' key names cost two a minute"
        );
        assert_eq!(wanted(&ring, "b", 60), KeysWanted::First(issuer.clone()));
        // Rotated: the new set is used at once.
        ring.fetched(&issuer, Ok(set("b")), None, at(60));
        assert!(ring.keys(&issuer, at(60)).unwrap().has(Some("b"), ALGORITHM));
        assert!(!ring.keys(&issuer, at(60)).unwrap().has(Some("a"), ALGORITHM));
    }

    /// A rotation: the set was fetched a moment before the new key was published.
    #[test]
    fn a_key_that_is_not_there_is_looked_for_again_for_whoever_did_not_have_it_fetched() {
        let (mut ring, issuer) = (Keyring::default(), issuer());
        ring.fetched(&issuer, Ok(set("a")), Some("first".to_owned()), at(0));
        let again = |token: &str, secs| ring.looked_for_again(&issuer, token, at(secs));
        assert_eq!(again("first", 1), None, "it was looked for on its behalf");
        assert_eq!(again("second", 10), Some(Duration::from_secs(20)));
        assert_eq!(again("second", 30), None, "the next token has the keys fetched");
    }

    #[test]
    fn keys_outlive_an_outage_of_a_day() {
        // RFC 7517 5.
        let (mut ring, issuer) = (Keyring::default(), issuer());
        ring.fetched(&issuer, Ok(set("a")), None, at(0));
        let wanted = |ring: &Keyring, secs| ring.wanted(&issuer, Some("a"), ALGORITHM, at(secs));
        assert_eq!(wanted(&ring, 3_599), KeysWanted::No);
        assert_eq!(wanted(&ring, 3_600), KeysWanted::First(issuer.clone()), "it may be withdrawn");
        ring.fetched(&issuer, Err("no answer".to_owned()), None, at(3_600));
        assert_eq!(wanted(&ring, 3_629), KeysWanted::No);
        assert_eq!(wanted(&ring, 3_630), KeysWanted::First(issuer.clone()));
        assert!(ring.keys(&issuer, at(86_399)).is_ok());
        let over = ring.keys(&issuer, at(86_400)).unwrap_err();
        assert!(over.contains("too long ago"), "{over}");
        assert_eq!(wanted(&ring, 86_400), KeysWanted::First(issuer.clone()));
    }

    #[test]
    fn a_failed_first_fetch_says_why_and_is_tried_again_soon() {
        let (mut ring, issuer) = (Keyring::default(), issuer());
        ring.fetched(&issuer, Err("the name does not resolve".to_owned()), None, at(0));
        assert_eq!(ring.keys(&issuer, at(1)).unwrap_err(), "the name does not resolve");
        assert_eq!(ring.wanted(&issuer, None, ALGORITHM, at(4)), KeysWanted::No);
        assert_eq!(ring.wanted(&issuer, None, ALGORITHM, at(5)), KeysWanted::First(issuer.clone()));
        assert_eq!(
            ring.wanted(&issuer, None, ALGORITHM, at(-5)),
            KeysWanted::First(issuer.clone()),
            "the clock was set back"
        );
    }

    #[test]
    fn another_configuration_is_another_issuer() {
        let (mut ring, issuer) = (Keyring::default(), issuer());
        ring.fetched(&issuer, Ok(set("a")), None, at(0));
        let moved = Issuer { issuer: "https://other.example.com".to_owned(), ..issuer.clone() };
        assert!(ring.keys(&moved, at(1)).is_err());
        ring.configure(std::slice::from_ref(&issuer));
        assert!(ring.keys(&issuer, at(1)).is_ok());
        ring.configure(&[moved]);
        assert!(ring.keys(&issuer, at(1)).is_err());
    }
}
