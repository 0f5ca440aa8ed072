//! How long short pieces of work take.
//!
//! The clock is the monotonic one, which is read in user space. That of the thread's own time on a
//! processor needs a system call, and these make the work around them slower than it is. Whoever
//! measures takes medians, so that a piece in which other work had the processor counts little.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Now.
fn time() -> Duration {
    let time = clock_gettime(ClockId::Monotonic);
    let part = |value: i64| u64::try_from(value).unwrap_or(0);
    Duration::from_secs(part(time.tv_sec)) + Duration::from_nanos(part(time.tv_nsec))
}

/// How long some work takes, and what it gives.
pub fn timed<R>(work: impl FnOnce() -> R) -> (Duration, R) {
    let started = time();
    let result = work();
    (time().saturating_sub(started), result)
}

/// What [`timed`] says of no work at all: one reading of the clock.
#[must_use]
pub fn reading() -> Duration {
    const TRIES: usize = 1001;
    let mut costs: Vec<Duration> = (0..TRIES).map(|_| timed(|| ()).0).collect();
    costs.sort();
    costs.get(TRIES / 2).copied().unwrap_or_default()
}

/// Adds up the time of pieces of work, when it is on.
#[derive(Debug, Default)]
pub struct Meter {
    /// Off, it only passes work through.
    pub on: bool,
    /// Time of all pieces, each with one reading of the clock.
    pub spent: Duration,
    /// Number of pieces.
    pub pieces: u32,
}

impl Meter {
    /// Does a piece of work.
    pub fn measure<R>(&mut self, work: impl FnOnce() -> R) -> R {
        if !self.on {
            return work();
        }
        let (spent, result) = timed(work);
        self.spent += spent;
        self.pieces += 1;
        result
    }
}
