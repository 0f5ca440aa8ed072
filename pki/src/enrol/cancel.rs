//! Ending what waits for an operator together with what it is of: its job, its key, its token.
//!
//! Whoever ends live leases, too, looks for them after this: what was opened meanwhile is among them
//! then.

use super::approval::PendingLease;
use crate::audit::Actor;
use crate::authority::Authority;
use crate::bar::{self, Barred};
use crate::error::Error;
use crate::hook::{HookSource, JobOver};
use crate::select::RevokeSelector;
use crate::time::UnixTime;

impl Authority {
    /// Denies the leases that wait for an operator, or for their client to collect them, and that a
    /// selector means; their ids.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a selector that can mean nothing, or several runs; when the store
    /// fails.
    pub fn cancel_selected(
        &self,
        selector: &RevokeSelector,
        reason: &str,
        actor: &Actor,
        now: UnixTime,
    ) -> Result<Vec<String>, Error> {
        let waiting = self.select_waiting(selector)?;
        self.cancel(&waiting, reason, actor, now)
    }

    /// The same for those of a job that is over, among those that tokens of the source's issuer
    /// asked for.
    ///
    /// # Errors
    /// When the store fails.
    pub fn cancel_of_job(
        &self,
        source: &HookSource,
        over: &JobOver,
        actor: &Actor,
        now: UnixTime,
    ) -> Result<Vec<String>, Error> {
        let of_job = |pending: &PendingLease| {
            pending.claims.get("iss") == Some(&source.iss)
                && pending.ci_ref.run_id.as_ref() == Some(&over.run)
                && over.is_of(&pending.claims, &pending.ci_ref)
        };
        self.cancel_meant(of_job, "its job is over", actor, now)
    }

    /// The same for those of a token.
    pub(super) fn cancel_of_token(
        &self,
        id: &str,
        actor: &Actor,
        now: UnixTime,
    ) -> Result<Vec<String>, Error> {
        let of_token = |pending: &PendingLease| pending.token.as_deref() == Some(id);
        self.cancel_meant(of_token, "its token was revoked", actor, now)
    }

    /// The same for those of keys and runs that are barred.
    pub(crate) fn cancel_barred(
        &self,
        barred: &[&Barred],
        reason: &str,
        actor: &Actor,
        now: UnixTime,
    ) -> Result<Vec<String>, Error> {
        let is_barred = |pending: &PendingLease| {
            let of = bar::of_lease(&pending.spki_sha256, &pending.claims, &pending.ci_ref);
            of.iter().any(|what| barred.contains(&what))
        };
        self.cancel_meant(is_barred, reason, actor, now)
    }

    /// The same for all that are meant.
    pub(crate) fn cancel_meant(
        &self,
        meant: impl Fn(&PendingLease) -> bool,
        reason: &str,
        actor: &Actor,
        now: UnixTime,
    ) -> Result<Vec<String>, Error> {
        let mut waiting = self.undenied()?;
        waiting.retain(meant);
        self.cancel(&waiting, reason, actor, now)
    }

    /// Denies these; the ids of those that waited still.
    pub(crate) fn cancel(
        &self,
        waiting: &[PendingLease],
        reason: &str,
        actor: &Actor,
        now: UnixTime,
    ) -> Result<Vec<String>, Error> {
        let mut cancelled = Vec::with_capacity(waiting.len());
        for pending in waiting {
            match self.decide_pending(&pending.id, false, Some(reason), actor, now) {
                Ok(denied) => cancelled.push(denied.id),
                // It was opened meanwhile, or its time is over.
                Err(Error::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(cancelled)
    }

    /// What waits and is not denied.
    pub(crate) fn undenied(&self) -> Result<Vec<PendingLease>, Error> {
        let all = self.all_pending()?.into_iter().map(|(_, stored)| stored.value);
        Ok(all.filter(|pending| !pending.is_denied()).collect())
    }
}
