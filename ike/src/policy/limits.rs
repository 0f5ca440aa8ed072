//! How much strangers may make us hold, shared fairly between sources (RFC 8019 4).
//!
//! A source is an IPv4 address or an IPv6 /64. Below its share it connects at once; above, it
//! must first return a cookie, which a spoofed address cannot. Nobody is ever blocked: when the
//! table is full, a source that holds less than the greediest takes one place from that one, of
//! a handshake that has not come to IKE_AUTH. Sources that authenticated in the last hour have a
//! larger share, since many runners live behind one NAT address.
//!
//! Against many sources that each hold little, shares do not help. Then a peer is also asked to
//! solve a puzzle, the harder the fuller the table is (RFC 8019 7.1): who solved one takes the
//! place of who did not, or solved an easier one. Only a solution as hard as the table now asks
//! for counts, and only within the source's share: work buys a place among equals, never more than
//! others may hold. Who cannot solve is served while there is room.
//!
//! While cookies are asked for, a handshake is also given up sooner that has not come to an
//! authentic message, the sooner the fuller the table is (RFC 8019 4.1).

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

/// Part of all places, in quarters, from which puzzles are set.
const PUZZLE_QUARTERS: usize = 3;

/// Zero bits asked for from then on, and when the table is full: some milliseconds and some tenths
/// of a second of a peer's time.
const PUZZLE_BITS: (u8, u8) = (10, 16);

/// How long the next message of a handshake is waited for when cookies begin to be asked for, and
/// when the table is full (RFC 8019 4.1). strongSwan sends a message again after 4 s and 11 s: in
/// the worst case one loss still costs no more than that.
const PATIENCE: (Duration, Duration) = (Duration::from_secs(15), Duration::from_secs(5));

/// How many half-open SAs are looked at for one that gives way to a solution.
const CANDIDATES: usize = 256;

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
    /// Go on only with a valid cookie; a solution of a puzzle of so many bits puts the peer in
    /// front.
    Cookie {
        /// Zero bits asked for.
        puzzle: Option<u8>,
    },
    /// Go on in the place of this half-open SA, which belongs to the greediest source.
    Evict(IkeSaId),
    /// No place: drop the request, the initiator will send it again.
    Drop,
}

/// What an initiator has shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Proof {
    /// It returned a valid cookie: it receives at its address.
    pub cookie: bool,
    /// Zero bits of its puzzle's solution.
    pub effort: u8,
}

/// Counts half-open IKE SAs as responder.
#[derive(Debug, Default)]
pub struct HalfOpen {
    owner: BTreeMap<IkeSaId, (Source, u8)>,
    /// Everything that may give way, the least effort first.
    by_effort: BTreeSet<(u8, IkeSaId)>,
    of: BTreeMap<Source, Held>,
    /// Sources with something to give way, by what each holds in proportion to its share.
    by_weight: BTreeSet<(usize, Source)>,
    /// Cookies are asked for, until well below the threshold again.
    asking: bool,
    proven: BTreeMap<Source, Timestamp>,
    proven_order: BTreeSet<(Timestamp, Source)>,
}

/// What one source holds.
#[derive(Debug, Default)]
struct Held {
    /// Handshakes that have not come to IKE_AUTH, or failed there, by the effort they took.
    waiting: BTreeSet<(u8, IkeSaId)>,
    /// Handshakes with an authentic IKE_AUTH in work: they are not given up for strangers.
    busy: BTreeSet<IkeSaId>,
}

impl Held {
    fn len(&self) -> usize {
        self.waiting.len().saturating_add(self.busy.len())
    }
}

impl HalfOpen {
    /// Decides over a new initiator.
    pub fn admit(
        &mut self,
        limits: &Limits,
        now: Timestamp,
        source: Source,
        proof: Proof,
    ) -> Admission {
        self.forget_proven(now);
        let own = self.of.get(&source).map_or(0, Held::len);
        let fair = self.gives_way_to(source, own);
        let within = own < self.share(limits, source);
        if !proof.cookie && (self.cookie_mode(limits) || !within) {
            let puzzle = if fair.is_none() { self.difficulty(limits) } else { None };
            return Admission::Cookie { puzzle };
        }
        if self.owner.len() < limits.max_half_open {
            return Admission::Accept;
        }
        let hard = self.difficulty(limits).is_some_and(|asked| proof.effort >= asked);
        let easier = || {
            if within && hard { self.easier(limits, source, own, proof.effort) } else { None }
        };
        match fair.or_else(easier) {
            Some(victim) => Admission::Evict(victim),
            // Work could still help.
            None if within && !hard => Admission::Cookie { puzzle: self.difficulty(limits) },
            None => Admission::Drop,
        }
    }

    /// What took less effort, of a source that holds no less than this one would then, and no
    /// proven one within its share.
    fn easier(&self, limits: &Limits, source: Source, own: usize, effort: u8) -> Option<IkeSaId> {
        let least = self.weight(source, own.saturating_add(1));
        let candidates = self.by_effort.iter().take_while(|(other, _)| *other < effort);
        candidates.take(CANDIDATES).map(|(_, id)| *id).find(|id| {
            self.owner.get(id).is_some_and(|(victim, _)| {
                let held = self.of.get(victim).map_or(0, Held::len);
                let safe = self.proven.contains_key(victim) && held <= self.share(limits, *victim);
                !safe && self.weight(*victim, held) >= least
            })
        })
    }

    /// What the greediest source can give to one that holds less.
    fn gives_way_to(&self, source: Source, own: usize) -> Option<IkeSaId> {
        let (most, greedy) = *self.by_weight.last()?;
        if most <= self.weight(source, own.saturating_add(1)) {
            return None;
        }
        self.of.get(&greedy)?.waiting.first().map(|(_, id)| *id)
    }

    /// How hard a puzzle is to be now.
    fn difficulty(&self, limits: &Limits) -> Option<u8> {
        let from = limits.max_half_open.saturating_mul(PUZZLE_QUARTERS).div_ceil(4);
        let over = self.owner.len().checked_sub(from)?;
        let (least, most) = PUZZLE_BITS;
        let steps = usize::from(most.saturating_sub(least));
        let range = limits.max_half_open.saturating_sub(from).max(1);
        let more = over.saturating_mul(steps).div_euclid(range).min(steps);
        Some(least.saturating_add(u8::try_from(more).unwrap_or_default()))
    }

    /// How long a new half-open SA of this source is kept for its peer's first authentic message,
    /// of the `whole` time that a handshake has. Sources that authenticated lately have all of it
    /// within their share: who is known to come through is not the attacker.
    pub fn patience(&self, limits: &Limits, source: Source, whole: Duration) -> Duration {
        let own = self.of.get(&source).map_or(0, Held::len);
        let known = self.proven.contains_key(&source) && own <= self.share(limits, source);
        if known || !self.cookie_mode(limits) {
            return whole;
        }
        let (most, least) = PATIENCE;
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let range = number(limits.max_half_open.saturating_sub(limits.cookie_threshold).max(1));
        let over = number(self.owner.len().saturating_sub(limits.cookie_threshold)).min(range);
        let less = most.saturating_sub(least).saturating_mul(over).checked_div(range);
        most.saturating_sub(less.unwrap_or_default()).min(whole)
    }

    /// Every new peer must return a cookie first (RFC 7296 2.6).
    pub fn cookie_mode(&self, limits: &Limits) -> bool {
        let threshold = limits.cookie_threshold;
        let held = self.owner.len();
        let leave = threshold.saturating_mul(3).div_euclid(4);
        held >= threshold || (self.asking && held > leave)
    }

    /// Notes the cookie mode, which is left only at three quarters of the threshold: a mode that
    /// changes with every datagram would tell the operator nothing.
    pub fn update_cookie_mode(&mut self, limits: &Limits) -> bool {
        self.asking = self.cookie_mode(limits);
        self.asking
    }

    /// Counts a new half-open SA, which took its peer so much effort; less than is ever asked for
    /// is none.
    pub fn add(&mut self, sa: IkeSaId, source: Source, effort: u8) {
        if self.owner.contains_key(&sa) {
            return;
        }
        let effort = if effort < PUZZLE_BITS.0 { 0 } else { effort };
        self.owner.insert(sa, (source, effort));
        self.by_effort.insert((effort, sa));
        self.change(source, |half_open| {
            half_open.of.entry(source).or_default().waiting.insert((effort, sa));
        });
    }

    /// An authentic IKE_AUTH of the SA is in work (`true`), or has failed.
    pub fn authenticating(&mut self, sa: IkeSaId, busy: bool) {
        let Some((source, effort)) = self.owner.get(&sa).copied() else {
            return;
        };
        if busy {
            self.by_effort.remove(&(effort, sa));
        } else {
            self.by_effort.insert((effort, sa));
        }
        self.change(source, |half_open| {
            let held = half_open.of.entry(source).or_default();
            if busy && held.waiting.remove(&(effort, sa)) {
                held.busy.insert(sa);
            } else if !busy && held.busy.remove(&sa) {
                held.waiting.insert((effort, sa));
            }
        });
    }

    /// The SA is established or gone; harmless when it was not counted.
    pub fn remove(&mut self, sa: IkeSaId) {
        let Some((source, effort)) = self.owner.remove(&sa) else {
            return;
        };
        self.by_effort.remove(&(effort, sa));
        self.change(source, |half_open| {
            if let Some(held) = half_open.of.get_mut(&source) {
                held.waiting.remove(&(effort, sa));
                held.busy.remove(&sa);
                if held.len() == 0 {
                    half_open.of.remove(&source);
                }
            }
        });
    }

    /// Changes something about a source and puts it where it now belongs in the order.
    fn change(&mut self, source: Source, change: impl FnOnce(&mut Self)) {
        if let Some(key) = self.order_key(source) {
            self.by_weight.remove(&key);
        }
        change(self);
        if let Some(key) = self.order_key(source) {
            self.by_weight.insert(key);
        }
    }

    fn order_key(&self, source: Source) -> Option<(usize, Source)> {
        let held = self.of.get(&source).filter(|held| !held.waiting.is_empty())?;
        Some((self.weight(source, held.len()), source))
    }

    /// What `held` half-open SAs are for a source: who authenticated may hold more.
    fn weight(&self, source: Source, held: usize) -> usize {
        if self.proven.contains_key(&source) { held.div_ceil(PROVEN_FACTOR) } else { held }
    }

    /// A peer from this source has authenticated.
    pub fn authenticated(&mut self, source: Source, now: Timestamp) {
        self.change(source, |half_open| {
            if let Some(old) = half_open.proven.insert(source, now) {
                half_open.proven_order.remove(&(old, source));
            }
            half_open.proven_order.insert((now, source));
        });
        if self.proven.len() > MAX_PROVEN {
            self.forget_oldest();
        }
    }

    /// Forgets who authenticated longer ago than is remembered.
    fn forget_proven(&mut self, now: Timestamp) {
        while self.proven_order.first().is_some_and(|(at, _)| now.since(*at) >= PROVEN_FOR) {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        if let Some((_, oldest)) = self.proven_order.pop_first() {
            self.change(oldest, |half_open| {
                half_open.proven.remove(&oldest);
            });
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

    fn share(&self, limits: &Limits, source: Source) -> usize {
        let base = limits.cookie_threshold.div_ceil(SHARE_OF_THRESHOLD).max(1);
        if self.proven.contains_key(&source) { base.saturating_mul(PROVEN_FACTOR) } else { base }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Source = Source::V4([192, 0, 2, 1]);
    const B: Source = Source::V4([192, 0, 2, 2]);
    const T: Timestamp = Timestamp(0);
    const NOTHING: Proof = Proof { cookie: false, effort: 0 };
    const COOKIE: Proof = Proof { cookie: true, effort: 0 };
    const ASK: Admission = Admission::Cookie { puzzle: None };
    const PUZZLE: Admission = Admission::Cookie { puzzle: Some(16) };

    fn limits() -> Limits {
        Limits { cookie_threshold: 8, max_half_open: 10, ..Limits::default() }
    }

    fn held(source: Source, ids: std::ops::Range<u64>) -> HalfOpen {
        let mut held = HalfOpen::default();
        ids.for_each(|id| held.add(IkeSaId(id), source, 0));
        held
    }

    #[test]
    fn a_source_over_its_share_returns_a_cookie_and_others_connect_at_once() {
        let mut held = held(A, 0..2);

        assert_eq!(held.admit(&limits(), T, A, NOTHING), ASK);
        assert_eq!(held.admit(&limits(), T, A, COOKIE), Admission::Accept);
        assert_eq!(held.admit(&limits(), T, B, NOTHING), Admission::Accept);
    }

    #[test]
    fn a_source_that_authenticated_has_a_larger_share_for_an_hour() {
        let mut held = held(A, 0..3);
        held.authenticated(A, T);

        assert_eq!(held.admit(&limits(), T, A, NOTHING), Admission::Accept);
        assert_eq!(held.admit(&limits(), T + PROVEN_FOR, A, NOTHING), ASK);
    }

    #[test]
    fn a_source_that_authenticated_an_hour_ago_gives_way_like_others() {
        let mut held = held(A, 0..6);
        (6..10).for_each(|id| held.add(IkeSaId(id), B, 0));
        held.authenticated(A, T);
        let stranger = Source::V4([192, 0, 2, 3]);

        assert_eq!(held.admit(&limits(), T, stranger, COOKIE), Admission::Evict(IkeSaId(6)));
        let later = T + PROVEN_FOR;
        assert_eq!(held.admit(&limits(), later, stranger, COOKIE), Admission::Evict(IkeSaId(0)));
        assert!(held.proven.is_empty() && held.proven_order.is_empty());
    }

    #[test]
    fn over_the_global_threshold_everyone_returns_a_cookie() {
        let mut held = held(A, 0..8);

        assert!(held.cookie_mode(&limits()));
        assert_eq!(held.admit(&limits(), T, B, NOTHING), ASK);
    }

    #[test]
    fn in_a_full_table_the_greediest_source_gives_way() {
        let mut held = held(A, 0..10);

        assert_eq!(held.admit(&limits(), T, B, COOKIE), Admission::Evict(IkeSaId(0)));
        assert_eq!(held.admit(&limits(), T, A, COOKIE), Admission::Drop);
        held.remove(IkeSaId(0));
        assert_eq!(held.admit(&limits(), T, A, COOKIE), Admission::Accept);
    }

    #[test]
    fn handshakes_at_ike_auth_and_sources_that_proved_themselves_give_way_last() {
        let mut held = held(A, 0..6);
        (6..10).for_each(|id| held.add(IkeSaId(id), B, 0));
        held.authenticated(A, T);
        held.authenticating(IkeSaId(6), true);
        let stranger = Source::V4([192, 0, 2, 3]);

        // A holds more, but is one of those that may; of B's the oldest is at IKE_AUTH.
        assert_eq!(held.admit(&limits(), T, stranger, COOKIE), Admission::Evict(IkeSaId(7)));
        (7..10).for_each(|id| held.authenticating(IkeSaId(id), true));
        assert_eq!(held.admit(&limits(), T, stranger, COOKIE), PUZZLE);
        held.authenticating(IkeSaId(8), false);
        assert_eq!(held.admit(&limits(), T, stranger, COOKIE), Admission::Evict(IkeSaId(8)));
    }

    #[test]
    fn cookies_are_asked_for_until_well_below_the_threshold() {
        let mut held = held(A, 0..8);
        assert!(held.update_cookie_mode(&limits()));
        held.remove(IkeSaId(0));
        assert!(held.update_cookie_mode(&limits()));
        held.remove(IkeSaId(1));
        assert!(!held.update_cookie_mode(&limits()));
        held.add(IkeSaId(8), A, 0);
        assert!(!held.update_cookie_mode(&limits()));
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

        assert!(held.is_empty() && held.of.is_empty() && held.by_weight.is_empty());
        assert!(held.by_effort.is_empty());
    }

    /// One half-open SA of each of so many sources.
    fn spread(count: u8) -> HalfOpen {
        let mut held = HalfOpen::default();
        for host in 0..count {
            held.add(IkeSaId(host.into()), Source::V4([203, 0, 113, host]), 0);
        }
        held
    }

    #[test]
    fn puzzles_are_set_when_shares_do_not_help_and_are_harder_the_fuller_it_is() {
        let limits = Limits { cookie_threshold: 4, max_half_open: 100, ..Limits::default() };
        let asked = |held: &mut HalfOpen| match held.admit(&limits, T, A, NOTHING) {
            Admission::Cookie { puzzle } => puzzle,
            other => panic!("{other:?}"),
        };

        assert_eq!(asked(&mut spread(74)), None);
        assert_eq!(asked(&mut spread(75)), Some(10));
        assert_eq!(asked(&mut spread(100)), Some(16));
        // One source holds it all: others need no puzzle, he does.
        let mut greedy = held(B, 0..100);
        assert_eq!(asked(&mut greedy), None);
        assert_eq!(greedy.admit(&limits, T, B, NOTHING), Admission::Cookie { puzzle: Some(16) });
    }

    #[test]
    fn who_solved_a_puzzle_takes_the_place_of_who_did_not() {
        let limits = Limits { cookie_threshold: 4, max_half_open: 10, ..Limits::default() };
        let mut held = spread(10);
        let solved = Proof { cookie: true, effort: 16 };

        assert_eq!(held.admit(&limits, T, A, COOKIE), PUZZLE);
        assert_eq!(held.admit(&limits, T, A, solved), Admission::Evict(IkeSaId(0)));
        held.remove(IkeSaId(0));
        held.add(IkeSaId(50), A, 16);
        // Not in the way of a peer that solved as hard a one.
        for id in 1..10 {
            held.authenticating(IkeSaId(id), true);
        }
        assert_eq!(held.admit(&limits, T, B, solved), Admission::Drop);
        let harder = Proof { cookie: true, effort: 17 };
        assert_eq!(held.admit(&limits, T, B, harder), Admission::Evict(IkeSaId(50)));
    }

    #[test]
    fn a_solution_easier_than_asked_for_moves_nobody() {
        let limits = Limits { cookie_threshold: 4, max_half_open: 10, ..Limits::default() };
        for effort in 1..16 {
            let lazy = Proof { cookie: true, effort };
            assert_eq!(spread(10).admit(&limits, T, A, lazy), PUZZLE, "{effort}");
        }
    }

    #[test]
    fn solutions_do_not_lift_a_source_over_its_share_or_over_others() {
        let solved = Proof { cookie: true, effort: 16 };
        let limits = Limits { cookie_threshold: 4, max_half_open: 10, ..Limits::default() };
        let mut held = spread(9);
        held.add(IkeSaId(50), A, 16);
        assert_eq!(held.admit(&limits, T, A, solved), Admission::Drop, "its share is one");

        // Where the share is larger, those that hold less than he would keep what they have.
        let limits = Limits { cookie_threshold: 8, max_half_open: 10, ..Limits::default() };
        assert_eq!(held.admit(&limits, T, A, solved), Admission::Drop);
        assert_eq!(held.admit(&limits, T, B, solved), Admission::Evict(IkeSaId(0)));
    }

    #[test]
    fn a_proven_source_within_its_share_does_not_give_way_to_solutions() {
        let solved = Proof { cookie: true, effort: 16 };
        let limits = Limits { cookie_threshold: 4, max_half_open: 10, ..Limits::default() };
        let mut held = spread(9);
        held.add(IkeSaId(50), B, 0);
        held.authenticated(B, T);
        (1..9).for_each(|id| held.authenticating(IkeSaId(id), true));

        assert_eq!(held.admit(&limits, T, A, solved), Admission::Evict(IkeSaId(0)));
        held.authenticating(IkeSaId(0), true);
        assert_eq!(held.admit(&limits, T, A, solved), Admission::Drop);
    }

    #[test]
    fn who_cannot_solve_is_served_while_there_is_room() {
        let limits = Limits { cookie_threshold: 4, max_half_open: 10, ..Limits::default() };
        assert_eq!(spread(9).admit(&limits, T, A, COOKIE), Admission::Accept);
    }

    #[test]
    fn patience_ends_with_the_places_and_not_for_who_is_known() {
        // RFC 8019 4.1
        let whole = Duration::from_secs(30);
        let limits = Limits { cookie_threshold: 10, max_half_open: 110, ..Limits::default() };
        let mut half_open = HalfOpen::default();
        let seconds =
            |half_open: &HalfOpen, source| half_open.patience(&limits, source, whole).as_secs_f64();
        let mut next = 0;
        let mut fill = |half_open: &mut HalfOpen, to: u64| {
            while next < to {
                next += 1;
                half_open.add(IkeSaId(next), A, 0);
            }
        };
        fill(&mut half_open, 9);
        assert_eq!(seconds(&half_open, A), 30.0);
        fill(&mut half_open, 10);
        assert_eq!(seconds(&half_open, A), 15.0);
        fill(&mut half_open, 60);
        assert_eq!(seconds(&half_open, A), 10.0);
        fill(&mut half_open, 110);
        assert_eq!(seconds(&half_open, A), 5.0);
        // B authenticated a moment ago; so did A, which holds more than its share all the same.
        half_open.authenticated(B, T);
        half_open.authenticated(A, T);
        assert_eq!((seconds(&half_open, A), seconds(&half_open, B)), (5.0, 30.0));
        // Never longer than a handshake may take at all.
        let short = Duration::from_secs(2);
        assert_eq!(half_open.patience(&limits, A, short), short);
    }
}
