//! Every timer of the engine, keyed by what the timer is for, so that setting one again moves it
//! and dropping an SA drops all of its timers.
//!
//! What is due next is told by a heap: a handshake sets timers among those that every established SA
//! holds for hours, and most are moved or cancelled before they come to the top. Such an entry
//! stays in the heap until it is at the top, or until such entries are the most. The timers of
//! actions have a heap of their own: every action sets and cancels one, and few are in flight.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use crate::io::{Deadline, IkeSaId, TimerKind};
use crate::time::{Now, Timestamp, WallTime};

/// What a timer is for. `sub` tells several of one kind apart: a child's id, an action's token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TimerKey {
    pub(crate) sa: IkeSaId,
    pub(crate) kind: TimerKind,
    pub(crate) sub: u64,
}

impl TimerKey {
    /// A timer of the SA itself.
    pub(crate) fn new(sa: IkeSaId, kind: TimerKind) -> Self {
        Self { sa, kind, sub: 0 }
    }

    /// A timer of a part of the SA.
    pub(crate) fn sub(sa: IkeSaId, kind: TimerKind, sub: u64) -> Self {
        Self { sa, kind, sub }
    }
}

/// Stale entries that are kept in any case.
const STALE_ALLOWED: usize = 64;

/// Timers on the monotonic clock.
#[derive(Debug, Default)]
struct Heap {
    at: BTreeMap<TimerKey, Timestamp>,
    /// Has an entry for each of `at`, and its top is one of these.
    order: BinaryHeap<Reverse<(Timestamp, TimerKey)>>,
}

impl Heap {
    fn set(&mut self, key: TimerKey, at: Timestamp) {
        let old = self.at.insert(key, at);
        if old == Some(at) {
            return;
        }
        self.order.push(Reverse((at, key)));
        if old.is_some() {
            self.settle();
        }
    }

    fn cancel(&mut self, key: TimerKey) {
        if self.at.remove(&key).is_some() {
            self.settle();
        }
    }

    /// After a timer was moved or cancelled: the top is a timer that is set, and the heap is not
    /// much larger than it has to be.
    fn settle(&mut self) {
        let Self { at, order } = self;
        let is_set = |(time, key): &(Timestamp, TimerKey)| at.get(key) == Some(time);
        if order.len() > at.len().saturating_mul(2).saturating_add(STALE_ALLOWED) {
            order.retain(|Reverse(entry)| is_set(entry));
        }
        while order.peek().is_some_and(|Reverse(entry)| !is_set(entry)) {
            order.pop();
        }
    }

    fn first(&self) -> Option<(Timestamp, TimerKey)> {
        self.order.peek().map(|Reverse(entry)| *entry)
    }

    /// The timers of an SA.
    fn of(&self, sa: IkeSaId) -> impl Iterator<Item = (TimerKey, Timestamp)> {
        let low = TimerKey { sa, kind: TimerKind::Retransmit, sub: 0 };
        self.at.range(low..).map(|(key, at)| (*key, *at)).take_while(move |(key, _)| key.sa == sa)
    }
}

/// Timers on the monotonic clock, and the grants' deadlines on the wall clock.
#[derive(Debug, Default)]
pub(crate) struct TimerQueue {
    /// Of [`TimerKind::Action`] only.
    actions: Heap,
    /// All others.
    rest: Heap,
    wall: BTreeMap<IkeSaId, WallTime>,
    wall_order: BTreeSet<(WallTime, IkeSaId)>,
}

impl TimerQueue {
    fn place(&mut self, kind: TimerKind) -> &mut Heap {
        if kind == TimerKind::Action { &mut self.actions } else { &mut self.rest }
    }

    /// Sets a timer, or moves it.
    pub(crate) fn set(&mut self, key: TimerKey, at: Timestamp) {
        self.place(key.kind).set(key, at);
    }

    /// Stops a timer; harmless when it is not set.
    pub(crate) fn cancel(&mut self, key: TimerKey) {
        self.place(key.kind).cancel(key);
    }

    /// When a timer will fire.
    pub(crate) fn at(&self, key: TimerKey) -> Option<Timestamp> {
        let place = if key.kind == TimerKind::Action { &self.actions } else { &self.rest };
        place.at.get(&key).copied()
    }

    /// Whether a timer is set.
    pub(crate) fn is_set(&self, key: TimerKey) -> bool {
        self.at(key).is_some()
    }

    /// Stops all timers of an SA but those of actions, whose answers are still to come.
    pub(crate) fn cancel_sa(&mut self, sa: IkeSaId) {
        let keys: Vec<_> = self.rest.of(sa).map(|(key, _)| key).collect();
        for key in keys {
            self.rest.cancel(key);
        }
        self.set_wall(sa, None);
    }

    /// Sets or removes an SA's wall-clock deadline.
    pub(crate) fn set_wall(&mut self, sa: IkeSaId, at: Option<WallTime>) {
        if let Some(old) = self.wall.remove(&sa) {
            self.wall_order.remove(&(old, sa));
        }
        if let Some(at) = at {
            self.wall.insert(sa, at);
            self.wall_order.insert((at, sa));
        }
    }

    /// Takes one timer that is due.
    pub(crate) fn pop(&mut self, now: Timestamp) -> Option<TimerKey> {
        let (at, key) = self.first()?;
        if at > now {
            return None;
        }
        self.cancel(key);
        Some(key)
    }

    /// Takes one SA whose wall-clock deadline has passed. The wall clock is compared itself, not
    /// a timer computed from it, so that a jump of the clock is honoured at once.
    pub(crate) fn pop_wall(&mut self, now: WallTime) -> Option<IkeSaId> {
        let &(at, sa) = self.wall_order.first()?;
        if at > now {
            return None;
        }
        self.set_wall(sa, None);
        Some(sa)
    }

    /// The next timer on the monotonic clock.
    fn first(&self) -> Option<(Timestamp, TimerKey)> {
        [self.actions.first(), self.rest.first()].into_iter().flatten().min()
    }

    /// The next thing to happen, as seen at `now`.
    pub(crate) fn next(&self, now: Now) -> Option<Deadline> {
        let mono = self.first().map(|(at, key)| Deadline { at, reason: key.kind });
        let wall = self.wall_order.first().map(|&(at, _)| Deadline {
            at: now.mono + at.until(now.wall),
            reason: TimerKind::Deadline,
        });
        match (mono, wall) {
            (Some(mono), Some(wall)) if wall.at < mono.at => Some(wall),
            (None, wall) => wall,
            (mono, _) => mono,
        }
    }

    /// Every timer of an SA.
    pub(crate) fn of(&self, sa: IkeSaId, now: Now) -> Vec<Deadline> {
        let mono = self
            .actions
            .of(sa)
            .chain(self.rest.of(sa))
            .map(|(key, at)| Deadline { at, reason: key.kind });
        let wall = self
            .wall
            .get(&sa)
            .map(|at| Deadline { at: now.mono + at.until(now.wall), reason: TimerKind::Deadline });
        mono.chain(wall).collect()
    }

    /// Number of timers set.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        [self.actions.at.len(), self.rest.at.len(), self.wall.len()]
            .into_iter()
            .fold(0, usize::saturating_add)
    }

    /// The SAs that have timers, for leak checks.
    pub(crate) fn owners(&self) -> BTreeSet<IkeSaId> {
        let mono = self.actions.at.keys().chain(self.rest.at.keys()).map(|key| key.sa);
        mono.chain(self.wall.keys().copied()).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SA: IkeSaId = IkeSaId(1);

    fn now(mono: u64, wall: i64) -> Now {
        Now { mono: Timestamp(mono), wall: WallTime(wall) }
    }

    #[test]
    fn setting_again_moves_the_timer() {
        let mut timers = TimerQueue::default();
        let key = TimerKey::new(SA, TimerKind::Dpd);
        timers.set(key, Timestamp(10));
        timers.set(key, Timestamp(20));

        assert_eq!(timers.pop(Timestamp(10)), None);
        assert_eq!(timers.pop(Timestamp(20)), Some(key));
        assert_eq!(timers.len(), 0);
    }

    #[test]
    fn moved_and_cancelled_timers_neither_fire_nor_pile_up() {
        let mut timers = TimerQueue::default();
        let far = TimerKey::new(IkeSaId(9), TimerKind::RekeyIke);
        timers.set(far, Timestamp(1_000_000));
        for round in 0..10_000 {
            let dpd = TimerKey::new(SA, TimerKind::Dpd);
            timers.set(dpd, Timestamp(2_000_000 + round));
            let action = TimerKey::sub(SA, TimerKind::Action, round);
            timers.set(action, Timestamp(500 + round));
            assert_eq!(timers.next(now(0, 0)).unwrap().at, Timestamp(500 + round));
            timers.cancel(action);
            assert_eq!(timers.next(now(0, 0)).unwrap().at, Timestamp(1_000_000));
            // Set again for the time it had before.
            timers.cancel(far);
            timers.set(far, Timestamp(1_000_000));
        }
        for heap in [&timers.actions, &timers.rest] {
            assert!(heap.order.len() <= 2 * heap.at.len() + STALE_ALLOWED + 1);
        }
        assert_eq!(timers.pop(Timestamp(3_000_000)), Some(far));
        let dpd = timers.pop(Timestamp(3_000_000)).map(|key| key.kind);
        assert_eq!(dpd, Some(TimerKind::Dpd));
        assert_eq!(timers.pop(Timestamp(3_000_000)), None);
    }

    #[test]
    fn an_sa_that_goes_leaves_only_its_actions_timers() {
        let mut timers = TimerQueue::default();
        timers.set(TimerKey::new(SA, TimerKind::Dpd), Timestamp(1));
        timers.set(TimerKey::sub(SA, TimerKind::RekeyChild, 7), Timestamp(1));
        timers.set(TimerKey::sub(SA, TimerKind::Action, 9), Timestamp(1));
        timers.set(TimerKey::new(IkeSaId(2), TimerKind::Dpd), Timestamp(2));
        timers.set_wall(SA, Some(WallTime(5)));

        timers.cancel_sa(SA);

        assert_eq!(timers.pop(Timestamp(1)).map(|key| key.kind), Some(TimerKind::Action));
        assert_eq!(timers.pop(Timestamp(2)).map(|key| key.sa), Some(IkeSaId(2)));
        assert_eq!(timers.pop_wall(WallTime(100)), None);
    }

    #[test]
    fn deadlines_follow_the_wall_clock_when_it_jumps() {
        let mut timers = TimerQueue::default();
        timers.set_wall(SA, Some(WallTime(1_000)));

        let next = timers.next(now(50, 400)).unwrap();
        assert_eq!((next.at, next.reason), (Timestamp(650), TimerKind::Deadline));
        // The clock is set forward by an hour between two calls.
        let jumped = WallTime(Duration::from_secs(3600).as_micros() as i64);
        assert_eq!(timers.pop_wall(jumped), Some(SA));
    }
}
