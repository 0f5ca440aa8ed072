//! How much strangers may make us hold, shared fairly between sources (RFC 8019 4).
//!
//! A source is an IPv4 address or an IPv6 /64. Below its share it connects at once; above, it
//! must first return a cookie, which a spoofed address cannot. Nobody is ever blocked: when the
//! table is full, a source that holds less than the greediest takes one place from that one.
//! Sources that authenticated in the last hour have a larger share, since many runners live
//! behind one NAT address.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use crate::config::Limits;
use crate::io::IkeSaId;
use crate::time::Timestamp;

/// Half-open IKE SAs of one source without a cookie, as a part of the global threshold.
const SHARE_OF_THRESHOLD: usize = 4;

/// How much larger the share of a source is that authenticated lately.
const PROVEN_FACTOR: usize = 8;

/// How long a source that authenticated is remembered.
const PROVEN_FOR: Duration = Duration::from_secs(3600);

/// How many such sources are remembered; the oldest is forgotten first.
const MAX_PROVEN: usize = 4096;

/// Who is counted together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// One IPv4 address.
    V4([u8; 4]),
    /// The first 64 bits of an IPv6 address, which one site holds.
    V6([u8; 8]),
}

impl From<IpAddr> for Source {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self::V4(v4.octets()),
            IpAddr::V6(v6) => {
                let [a, b, c, d, e, f, g, h, ..] = v6.octets();
                Self::V6([a, b, c, d, e, f, g, h])
            }
        }
    }
}

/// What to do with a new initiator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Go on.
    Accept,
    /// Go on only with a valid cookie.
    Cookie,
    /// Go on in the place of this half-open SA, which belongs to the greediest source.
    Evict(IkeSaId),
    /// No place: drop the request, the initiator will send it again.
    Drop,
}

/// Counts half-open IKE SAs as responder.
#[derive(Debug, Default)]
pub struct HalfOpen {
    owner: BTreeMap<IkeSaId, Source>,
    of: BTreeMap<Source, BTreeSet<IkeSaId>>,
    by_count: BTreeSet<(usize, Source)>,
    proven: BTreeMap<Source, Timestamp>,
    proven_order: BTreeSet<(Timestamp, Source)>,
}

impl HalfOpen {
    /// Decides over a new initiator. `proved` means that it returned a valid cookie.
    pub fn admit(
        &self,
        limits: &Limits,
        now: Timestamp,
        source: Source,
        proved: bool,
    ) -> Admission {
        let total = self.owner.len();
        let own = self.of.get(&source).map_or(0, BTreeSet::len);
        if !proved && (self.cookie_mode(limits) || own >= self.share(limits, now, source)) {
            return Admission::Cookie;
        }
        if total < limits.max_half_open {
            return Admission::Accept;
        }
        match self.by_count.last() {
            Some(&(most, greedy)) if most > own.saturating_add(1) => self
                .of
                .get(&greedy)
                .and_then(BTreeSet::first)
                .map_or(Admission::Drop, |oldest| Admission::Evict(*oldest)),
            _ => Admission::Drop,
        }
    }

    /// Every new peer must return a cookie first (RFC 7296 2.6).
    pub fn cookie_mode(&self, limits: &Limits) -> bool {
        self.owner.len() >= limits.cookie_threshold
    }

    /// Counts a new half-open SA.
    pub fn add(&mut self, sa: IkeSaId, source: Source) {
        if self.owner.insert(sa, source).is_some() {
            return;
        }
        let held = self.of.entry(source).or_default();
        self.by_count.remove(&(held.len(), source));
        held.insert(sa);
        self.by_count.insert((held.len(), source));
    }

    /// The SA is established or gone; harmless when it was not counted.
    pub fn remove(&mut self, sa: IkeSaId) {
        let Some(source) = self.owner.remove(&sa) else {
            return;
        };
        let Some(held) = self.of.get_mut(&source) else {
            return;
        };
        self.by_count.remove(&(held.len(), source));
        held.remove(&sa);
        if held.is_empty() {
            self.of.remove(&source);
        } else {
            self.by_count.insert((held.len(), source));
        }
    }

    /// A peer from this source has authenticated.
    pub fn authenticated(&mut self, source: Source, now: Timestamp) {
        if let Some(old) = self.proven.insert(source, now) {
            self.proven_order.remove(&(old, source));
        }
        self.proven_order.insert((now, source));
        if self.proven.len() > MAX_PROVEN
            && let Some((_, oldest)) = self.proven_order.pop_first()
        {
            self.proven.remove(&oldest);
        }
    }

    /// Half-open SAs counted.
    pub fn len(&self) -> usize {
        self.owner.len()
    }

    /// Whether none is counted.
    pub fn is_empty(&self) -> bool {
        self.owner.is_empty()
    }

    fn share(&self, limits: &Limits, now: Timestamp, source: Source) -> usize {
        let base = limits.cookie_threshold.div_ceil(SHARE_OF_THRESHOLD).max(1);
        match self.proven.get(&source) {
            Some(at) if now.since(*at) < PROVEN_FOR => base.saturating_mul(PROVEN_FACTOR),
            _ => base,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Source = Source::V4([192, 0, 2, 1]);
    const B: Source = Source::V4([192, 0, 2, 2]);
    const T: Timestamp = Timestamp(0);

    fn limits() -> Limits {
        Limits { cookie_threshold: 8, max_half_open: 10, ..Limits::default() }
    }

    fn held(source: Source, ids: std::ops::Range<u64>) -> HalfOpen {
        let mut held = HalfOpen::default();
        ids.for_each(|id| held.add(IkeSaId(id), source));
        held
    }

    #[test]
    fn a_source_over_its_share_returns_a_cookie_and_others_connect_at_once() {
        let held = held(A, 0..2);

        assert_eq!(held.admit(&limits(), T, A, false), Admission::Cookie);
        assert_eq!(held.admit(&limits(), T, A, true), Admission::Accept);
        assert_eq!(held.admit(&limits(), T, B, false), Admission::Accept);
    }

    #[test]
    fn a_source_that_authenticated_has_a_larger_share_for_an_hour() {
        let mut held = held(A, 0..3);
        held.authenticated(A, T);

        assert_eq!(held.admit(&limits(), T, A, false), Admission::Accept);
        assert_eq!(held.admit(&limits(), T + PROVEN_FOR, A, false), Admission::Cookie);
    }

    #[test]
    fn over_the_global_threshold_everyone_returns_a_cookie() {
        let held = held(A, 0..8);

        assert!(held.cookie_mode(&limits()));
        assert_eq!(held.admit(&limits(), T, B, false), Admission::Cookie);
    }

    #[test]
    fn in_a_full_table_the_greediest_source_gives_way() {
        let mut held = held(A, 0..10);

        assert_eq!(held.admit(&limits(), T, B, true), Admission::Evict(IkeSaId(0)));
        assert_eq!(held.admit(&limits(), T, A, true), Admission::Drop);
        held.remove(IkeSaId(0));
        assert_eq!(held.admit(&limits(), T, A, true), Admission::Accept);
    }

    #[test]
    fn addresses_of_one_ipv6_site_are_one_source() {
        let site = |text: &str| Source::from(text.parse::<IpAddr>().unwrap());

        assert_eq!(site("2001:db8:1:2::1"), site("2001:db8:1:2:ffff::9"));
        assert_ne!(site("2001:db8:1:2::1"), site("2001:db8:1:3::1"));
        assert_eq!(site("::ffff:192.0.2.1"), A);
    }

    #[test]
    fn removing_everything_leaves_nothing() {
        let mut held = held(A, 0..5);
        (0..5).for_each(|id| held.remove(IkeSaId(id)));

        assert!(held.is_empty() && held.of.is_empty() && held.by_count.is_empty());
    }
}
