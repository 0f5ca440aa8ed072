//! Deliveries that were handled: platforms send some again, and so could who recorded them. What a
//! delivery does has no further effect when it is repeated, so that this may be forgotten.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::issue::sha256_hex;

/// Deliveries remembered.
const MOST: usize = 4_096;
/// Characters of a delivery's name that count.
const MAX_NAME: usize = 128;

/// Whether a delivery came before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// It did not.
    New,
    /// It did, with this body.
    Again,
    /// It did, and what comes of it is not known yet.
    UnderWay,
    /// Its name did, with another body.
    OtherBody,
}

/// Deliveries that were handled lately, by the digest of their body and by name.
#[derive(Debug, Default)]
pub struct Deliveries {
    bodies: BTreeMap<String, Option<String>>,
    names: BTreeMap<String, String>,
    order: VecDeque<String>,
    /// Those of them that are being handled.
    under_way: BTreeSet<String>,
}

impl Deliveries {
    /// Notes a delivery of an issuer's platform that is about to be handled.
    pub fn begin(&mut self, issuer: &str, name: Option<&str>, body: &[u8]) -> Seen {
        let digest = digest(issuer, body);
        if self.bodies.contains_key(&digest) {
            return match self.under_way.contains(&digest) {
                true => Seen::UnderWay,
                false => Seen::Again,
            };
        }
        let name = name.filter(|name| !name.is_empty() && name.len() <= MAX_NAME);
        let name = name.map(|name| format!("{issuer}\0{name}"));
        if name.as_ref().is_some_and(|name| self.names.contains_key(name)) {
            return Seen::OtherBody;
        }
        while self.order.len() >= MOST {
            if let Some(oldest) = self.order.pop_front() {
                self.remove(&oldest);
            }
        }
        if let Some(name) = &name {
            self.names.insert(name.clone(), digest.clone());
        }
        self.bodies.insert(digest.clone(), name);
        self.under_way.insert(digest.clone());
        self.order.push_back(digest);
        Seen::New
    }

    /// Notes that it was handled.
    pub fn done(&mut self, issuer: &str, body: &[u8]) {
        self.under_way.remove(&digest(issuer, body));
    }

    /// Takes it back: it was not handled, and may come again.
    pub fn failed(&mut self, issuer: &str, body: &[u8]) {
        let digest = digest(issuer, body);
        self.remove(&digest);
        self.order.retain(|other| *other != digest);
    }

    fn remove(&mut self, digest: &str) {
        self.under_way.remove(digest);
        if let Some(Some(name)) = self.bodies.remove(digest) {
            self.names.remove(&name);
        }
    }
}

fn digest(issuer: &str, body: &[u8]) -> String {
    sha256_hex(&[issuer.as_bytes(), b"\0", body].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delivery_is_handled_once_under_whatever_name() {
        let mut seen = Deliveries::default();
        assert_eq!(seen.begin("github", Some("a"), b"one"), Seen::New);
        // What comes of the first is not known yet.
        assert_eq!(seen.begin("github", Some("a"), b"one"), Seen::UnderWay);
        assert_eq!(seen.begin("github", Some("b"), b"one"), Seen::UnderWay);
        seen.done("github", b"one");
        assert_eq!(seen.begin("github", Some("a"), b"one"), Seen::Again);
        assert_eq!(seen.begin("github", Some("b"), b"one"), Seen::Again, "replayed as another");
        assert_eq!(seen.begin("github", Some("a"), b"two"), Seen::OtherBody);
        assert_eq!(seen.begin("gitlab", Some("a"), b"one"), Seen::New, "another platform");
        assert_eq!(seen.begin("github", None, b"three"), Seen::New);
        seen.failed("github", b"one");
        assert_eq!(seen.begin("github", Some("a"), b"one"), Seen::New, "it may come again");
    }

    #[test]
    fn memory_is_bounded() {
        let mut seen = Deliveries::default();
        for number in 0..3 * MOST {
            let body = number.to_string();
            assert_eq!(seen.begin("github", Some(&body), body.as_bytes()), Seen::New);
        }
        assert_eq!((seen.bodies.len(), seen.names.len()), (MOST, MOST));
        assert_eq!(seen.begin("github", None, b"0"), Seen::New, "forgotten");
    }
}
