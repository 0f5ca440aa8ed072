//! Who makes something with a CA's key: one at a time, and nobody waits for a key that is away.
//!
//! A token that hangs costs whoever asks it many seconds. So after it failed only one caller at a time
//! tries it again, and not at once; the others go on with what there is.

use std::sync::{Mutex, MutexGuard, TryLockError};
use std::time::Duration;

use crate::authority::lock;
use crate::error::Error;
use crate::time::UnixTime;

/// A key that was away is left alone for this time: longer than a token that hangs is waited for.
const REST: Duration = Duration::from_secs(30);
/// Callers have their clock from before they waited.
const AHEAD: Duration = Duration::from_secs(30);

/// One key's turnstile.
#[derive(Debug, Default)]
pub(crate) struct Turn {
    making: Mutex<()>,
    /// When it was tried in vain the last time, and why that failed.
    away: Mutex<Option<(UnixTime, Error)>>,
}

impl Turn {
    /// Waits for the caller's turn.
    ///
    /// # Errors
    /// Why the key was away a moment ago; `works` says that it was used with success since.
    pub(crate) fn take(&self, works: bool, now: UnixTime) -> Result<MutexGuard<'_, ()>, Error> {
        if works {
            *lock(&self.away) = None;
        }
        self.rests(now)?;
        let failed = lock(&self.away).as_ref().map(|(_, error)| error.clone());
        let guard = match (failed, self.making.try_lock()) {
            (_, Ok(guard)) => guard,
            (_, Err(TryLockError::Poisoned(guard))) => guard.into_inner(),
            (Some(error), Err(TryLockError::WouldBlock)) => return Err(error),
            (None, Err(TryLockError::WouldBlock)) => lock(&self.making),
        };
        // Who was before may have found it away.
        self.rests(now)?;
        Ok(guard)
    }

    /// Remembers whether the key was away.
    pub(crate) fn note<T>(&self, made: &Result<T, Error>, now: UnixTime) {
        let error = made.as_ref().err().filter(|error| error.is_of_token());
        *lock(&self.away) = error.map(|error| (now, error.clone()));
    }

    fn rests(&self, now: UnixTime) -> Result<(), Error> {
        match &*lock(&self.away) {
            Some((at, error)) if (at.minus(AHEAD)..at.plus(REST)).contains(&now) => {
                Err(error.clone())
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);

    fn away() -> Result<(), Error> {
        Err(Error::TokenAway("token \"hsm\" is not there".to_owned()))
    }

    #[test]
    fn a_key_that_was_away_is_left_alone_for_a_while() {
        let turn = Turn::default();
        drop(turn.take(false, NOW).unwrap());
        turn.note(&away(), NOW);
        assert_eq!(turn.take(false, NOW).map(drop), away());
        assert_eq!(turn.take(false, NOW.plus(Duration::from_secs(29))).map(drop), away());
        drop(turn.take(false, NOW.plus(REST)).unwrap());
        drop(turn.take(true, NOW).unwrap());
        assert!(turn.take(false, NOW).is_ok(), "it works again");
        turn.note(&Err::<(), _>(Error::RootOffline), NOW);
        assert!(turn.take(false, NOW).is_ok(), "another failure has nothing to do with it");
    }

    #[test]
    fn nobody_waits_for_who_tries_again() {
        let turn = Turn::default();
        turn.note(&away(), NOW);
        let later = NOW.plus(REST);
        let trying = turn.take(false, later).unwrap();
        assert_eq!(turn.take(false, later).map(drop), away());
        drop(trying);
        turn.note(&Ok(()), later);
        assert!(turn.take(false, later).is_ok());
    }

    #[test]
    fn who_waited_while_it_went_away_does_not_try_it_too() {
        let turn = Turn::default();
        let trying = turn.take(false, NOW).unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| turn.take(false, NOW).map(drop));
            turn.note(&away(), NOW);
            drop(trying);
            // It comes before or after the note, and is told either way.
            assert_eq!(waiting.join().unwrap(), away());
        });
    }
}
