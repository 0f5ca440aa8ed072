//! Bounded waits that say what they waited for.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::Lab;

/// Time between two looks.
const STEP: Duration = Duration::from_millis(10);

/// No wait gives up sooner. What comes at once costs nothing, and on a busy machine what should
/// take a second may take many.
const FLOOR: Duration = Duration::from_secs(45);

/// How long a wait lasts that asks for `limit`.
pub(super) fn bound(limit: Duration) -> Duration {
    limit.max(FLOOR) * crate::guest::patience()
}

/// Calls `look` until it returns something.
///
/// # Errors
/// After `limit`, or the longer time that every wait gets, names `what` and shows the last lines of
/// every log of the lab; an error of `look` ends the wait at once.
pub fn until<T>(
    lab: &Lab,
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let started = Instant::now();
    let limit = bound(limit);
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if started.elapsed() >= limit {
            bail!("waited {:.1} s for {what}\n{}", limit.as_secs_f64(), lab.tails());
        }
        thread::sleep(STEP * crate::guest::pace());
    }
}

/// Waits until a condition holds.
///
/// # Errors
/// As [`until`].
pub fn holds(
    lab: &Lab,
    what: &str,
    limit: Duration,
    mut test: impl FnMut() -> Result<bool>,
) -> Result<()> {
    until(lab, what, limit, || Ok(test()?.then_some(())))
}
