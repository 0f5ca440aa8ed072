//! Every timer of the engine: one sorted structure, keyed by what the timer is for, so that
//! setting one again moves it and dropping an SA drops all of its timers.

use std::collections::{BTreeMap, BTreeSet};

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

/// Timers on the monotonic clock, and the grants' deadlines on the wall clock.
#[derive(Debug, Default)]
pub(crate) struct TimerQueue {
    at: BTreeMap<TimerKey, Timestamp>,
    order: BTreeSet<(Timestamp, TimerKey)>,
    wall: BTreeMap<IkeSaId, WallTime>,
    wall_order: BTreeSet<(WallTime, IkeSaId)>,
}

impl TimerQueue {
    /// Sets a timer, or moves it.
    pub(crate) fn set(&mut self, key: TimerKey, at: Timestamp) {
        if let Some(old) = self.at.insert(key, at) {
            self.order.remove(&(old, key));
        }
        self.order.insert((at, key));
    }

    /// Stops a timer; harmless when it is not set.
    pub(crate) fn cancel(&mut self, key: TimerKey) {
        if let Some(at) = self.at.remove(&key) {
            self.order.remove(&(at, key));
        }
    }

    /// When a timer will fire.
    pub(crate) fn at(&self, key: TimerKey) -> Option<Timestamp> {
        self.at.get(&key).copied()
    }

    /// Whether a timer is set.
    pub(crate) fn is_set(&self, key: TimerKey) -> bool {
        self.at.contains_key(&key)
    }

    /// Stops all timers of an SA but those of actions, whose answers are still to come.
    pub(crate) fn cancel_sa(&mut self, sa: IkeSaId) {
        let low = TimerKey { sa, kind: TimerKind::Retransmit, sub: 0 };
        let keys: Vec<_> = self
            .at
            .range(low..)
            .map(|(key, _)| *key)
            .take_while(|key| key.sa == sa)
            .filter(|key| key.kind != TimerKind::Action)
            .collect();
        for key in keys {
            self.cancel(key);
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
        let &(at, key) = self.order.first()?;
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

    /// The next thing to happen, as seen at `now`.
    pub(crate) fn next(&self, now: Now) -> Option<Deadline> {
        let mono = self.order.first().map(|&(at, key)| Deadline { at, reason: key.kind });
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
        let low = TimerKey { sa, kind: TimerKind::Retransmit, sub: 0 };
        let mono = self
            .at
            .range(low..)
            .take_while(|(key, _)| key.sa == sa)
            .map(|(key, at)| Deadline { at: *at, reason: key.kind });
        let wall = self
            .wall
            .get(&sa)
            .map(|at| Deadline { at: now.mono + at.until(now.wall), reason: TimerKind::Deadline });
        mono.chain(wall).collect()
    }

    /// Number of timers set.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.at.len().saturating_add(self.wall.len())
    }

    /// The SAs that have timers, for leak checks.
    pub(crate) fn owners(&self) -> BTreeSet<IkeSaId> {
        self.at.keys().map(|key| key.sa).chain(self.wall.keys().copied()).collect()
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
