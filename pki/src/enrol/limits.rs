//! How many leases there may be at once, and how often one may be opened: of one job, identity,
//! issuer and role. What one source may ask is the listener's business.
//!
//! Numbers of leases come from the store, so that a restart forgets none. Rates are in memory: what
//! a restart gives away is one burst.

use std::collections::BTreeMap;
use std::time::Duration;

use super::open::Grant;
use super::{Refusal, RefusalCode};
use crate::authority::{Authority, lock};
use crate::error::Error;
use crate::lease::book::job_of;
use crate::record::key;
use crate::time::UnixTime;

/// Identities, issuers and roles remembered one by one; the rest share one allowance of a kind.
const MAX_ENTRIES: usize = 4_096;
/// When to come back where only somebody's end makes room.
const ROOM: Duration = Duration::from_secs(30);
const SECOND: u64 = 1_000_000;

/// Leases that may be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenRate {
    /// In each second, over time.
    pub per_second: u32,
    /// At once.
    pub burst: u32,
}

/// The limits that are one for everybody. Roles have their own beside them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Leases opened for one identity of a CI platform: a project, perhaps with an environment.
    pub identity: OpenRate,
    /// Leases opened with tokens of one issuer.
    pub issuer: OpenRate,
    /// Live leases of one CI job.
    pub leases_per_job: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            identity: OpenRate { per_second: 20, burst: 100 },
            issuer: OpenRate { per_second: 100, burst: 1_000 },
            leases_per_job: 5,
        }
    }
}

/// Which limit was met, for status and sentences.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LimitKind {
    /// Live leases of a job.
    Job,
    /// Live leases of a role.
    RoleLeases,
    /// The rate of an identity.
    Identity,
    /// The rate of an issuer.
    Issuer,
    /// The rate of a role.
    Role,
    /// Leases that wait for an operator.
    Waiting,
}

impl LimitKind {
    /// A stable word for status and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Job => "leases_per_job",
            Self::RoleLeases => "role_leases",
            Self::Identity => "identity_rate",
            Self::Issuer => "issuer_rate",
            Self::Role => "role_rate",
            Self::Waiting => "waiting",
        }
    }
}

/// What one of them has left, in microseconds of waiting for one more lease.
#[derive(Debug)]
struct Allowance {
    earned: u64,
    at: UnixTime,
}

/// Rates so far, and how often each limit was met.
#[derive(Debug, Default)]
pub(crate) struct Limiter {
    allowances: BTreeMap<(LimitKind, Option<String>), Allowance>,
    met: BTreeMap<LimitKind, u64>,
}

impl Limiter {
    /// Takes one of each, or none of any: `Err` with the first that has none left and the time
    /// until it has.
    fn take(
        &mut self,
        wanted: &[(LimitKind, String, OpenRate)],
        now: UnixTime,
    ) -> Result<(), (LimitKind, OpenRate, Duration)> {
        let mut taken = Vec::new();
        for (kind, name, rate) in wanted {
            let price = SECOND / u64::from(rate.per_second.max(1));
            let most = price.saturating_mul(u64::from(rate.burst.max(1)));
            let known = (*kind, Some(name.clone()));
            let key = match self.allowances.contains_key(&known) || self.has_room(now, most) {
                true => known,
                false => (*kind, None),
            };
            let full = || Allowance { earned: most, at: now };
            let allowance = self.allowances.entry(key.clone()).or_insert_with(full);
            let since = u64::try_from(now.since(allowance.at).as_micros()).unwrap_or(u64::MAX);
            allowance.earned = allowance.earned.saturating_add(since).min(most);
            // A clock that was set back earns nothing, and costs nothing later.
            allowance.at = now;
            match allowance.earned.checked_sub(price) {
                Some(rest) => taken.push((key, rest)),
                None => {
                    let wait = Duration::from_micros(price.saturating_sub(allowance.earned));
                    return Err((*kind, *rate, wait));
                }
            }
        }
        for (key, rest) in taken {
            if let Some(allowance) = self.allowances.get_mut(&key) {
                allowance.earned = rest;
            }
        }
        Ok(())
    }

    /// Whether one more can be remembered. Who has been quiet for as long as a whole burst takes to
    /// earn needs no memory.
    fn has_room(&mut self, now: UnixTime, most: u64) -> bool {
        if self.allowances.len() >= MAX_ENTRIES {
            let quiet = Duration::from_micros(most);
            self.allowances.retain(|_, allowance| now < allowance.at.plus(quiet));
        }
        self.allowances.len() < MAX_ENTRIES
    }
}

impl Authority {
    /// How often each limit was met since the start.
    pub fn limits_met(&self) -> BTreeMap<LimitKind, u64> {
        lock(&self.limiter).met.clone()
    }

    /// Whether what a proof grants is within the limits; it counts as opened then, unless it is
    /// `counted` already. To be called while the turns of its job and role are held.
    pub(super) fn within_limits(
        &self,
        grant: &Grant<'_>,
        counted: bool,
        now: UnixTime,
    ) -> Result<(), Refusal> {
        let judged = self.judge_limits(grant, counted, now)?;
        judged.map_err(|(kind, refusal)| {
            self.note_limit(kind);
            refusal
        })
    }

    pub(super) fn note_limit(&self, kind: LimitKind) {
        *lock(&self.limiter).met.entry(kind).or_default() += 1;
    }

    /// Whether a job of which so many leases wait for an operator may have one more. To be called
    /// while its turn is held.
    pub(super) fn job_has_room(&self, run: &str, job: &str, waiting: usize) -> Result<(), Refusal> {
        let most = self.settings().limits.leases_per_job;
        let live = most.saturating_sub(u32::try_from(waiting).unwrap_or(u32::MAX));
        if !self.is_full(&key::job_leases(run, job), live)? {
            return Ok(());
        }
        self.note_limit(LimitKind::Job);
        let detail = format!(
            "{waiting} leases of this job wait for an operator, and with its live ones it may have \
             {most}: wait for the decision, or raise `leases_per_job` in [limits]"
        );
        Err(Refusal::new(RefusalCode::TooManyLeases, detail).after(ROOM))
    }

    fn judge_limits(
        &self,
        grant: &Grant<'_>,
        counted: bool,
        now: UnixTime,
    ) -> Result<Result<(), (LimitKind, Refusal)>, Error> {
        let (settings, role) = (self.settings(), grant.role.as_str());
        let limits = settings.limits;
        let full = |kind, detail: String| {
            Ok(Err((kind, Refusal::new(RefusalCode::TooManyLeases, detail).after(ROOM))))
        };
        let job = grant.jwt.and_then(|jwt| job_of(&jwt.context.claims, &jwt.context.ci_ref));
        if let Some((run, job)) = job
            && self.is_full(&key::job_leases(&run, &job), limits.leases_per_job)?
        {
            return full(
                LimitKind::Job,
                format!(
                    "this job has {} live leases, as many as a job may: release one of them, or \
                     raise `leases_per_job` in [limits]",
                    limits.leases_per_job
                ),
            );
        }
        let profile = settings.roles.get(role);
        if let Some(most) = profile.and_then(|profile| profile.max_leases)
            && self.is_full(&key::role_leases(role), most)?
        {
            return full(
                LimitKind::RoleLeases,
                format!(
                    "role {role} has {most} live leases, as many as it may: wait until one ends, \
                     or raise its `max_leases`"
                ),
            );
        }
        match counted {
            true => Ok(Ok(())),
            false => Ok(self.judge_rates(grant, now)),
        }
    }

    /// Whether what a proof grants is within the rates; it counts as opened then.
    pub(super) fn within_rates(&self, grant: &Grant<'_>, now: UnixTime) -> Result<(), Refusal> {
        self.judge_rates(grant, now).map_err(|(kind, refusal)| {
            self.note_limit(kind);
            refusal
        })
    }

    fn judge_rates(&self, grant: &Grant<'_>, now: UnixTime) -> Result<(), (LimitKind, Refusal)> {
        let (settings, role) = (self.settings(), grant.role.as_str());
        let (limits, profile) = (settings.limits, settings.roles.get(role));
        let mut wanted = Vec::new();
        if let Some(jwt) = grant.jwt {
            wanted.push((LimitKind::Issuer, jwt.issuer.clone(), limits.issuer));
            wanted.push((LimitKind::Identity, jwt.context.path.clone(), limits.identity));
        }
        if let Some(rate) = profile.and_then(|profile| profile.rate) {
            wanted.push((LimitKind::Role, role.to_owned(), rate));
        }
        let taken = lock(&self.limiter).take(&wanted, now);
        taken.map_err(|(kind, rate, wait)| {
            let (whose, fix) = match kind {
                LimitKind::Issuer => {
                    ("this issuer", "`issuer_rate` and `issuer_burst` in [limits]")
                }
                LimitKind::Role => ("this role", "its `rate` and `burst`"),
                _ => ("this identity", "`identity_rate` and `identity_burst` in [limits]"),
            };
            let OpenRate { per_second, burst } = rate;
            let detail = format!(
                "more than {burst} leases at once or {per_second} a second were opened for \
                 {whose}: try again in {} s, or raise {fix}",
                wait.as_secs().saturating_add(1)
            );
            (kind, Refusal::new(RefusalCode::TooManyRequests, detail).after(wait))
        })
    }

    fn is_full(&self, prefix: &str, most: u32) -> Result<bool, Error> {
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        Ok(self.store.range(prefix, None, most.max(1))?.len() >= most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: i64) -> UnixTime {
        UnixTime::from_micros(millis * 1_000)
    }

    fn of(
        kind: LimitKind,
        name: &str,
        per_second: u32,
        burst: u32,
    ) -> (LimitKind, String, OpenRate) {
        (kind, name.to_owned(), OpenRate { per_second, burst })
    }

    #[test]
    fn a_burst_and_then_so_many_a_second_of_each() {
        let mut limiter = Limiter::default();
        let a = [of(LimitKind::Identity, "a", 10, 50)];
        let b = [of(LimitKind::Identity, "b", 10, 50)];
        let mut opened =
            |who: &[_], when| (0..200).filter(|_| limiter.take(who, at(when)).is_ok()).count();
        assert_eq!((opened(&a, 0), opened(&b, 0)), (50, 50));
        assert_eq!((opened(&a, 1_000), opened(&a, 500)), (10, 0), "a clock that was set back");
        assert_eq!(opened(&a, 100_000), 50, "no more than a burst is saved up");
    }

    #[test]
    fn waiting_as_long_as_told_is_enough() {
        let mut limiter = Limiter::default();
        let wanted = [of(LimitKind::Role, "builder", 3, 1)];
        assert_eq!(limiter.take(&wanted, at(0)), Ok(()));
        let (kind, _, wait) = limiter.take(&wanted, at(100)).unwrap_err();
        assert_eq!(kind, LimitKind::Role);
        assert_eq!(limiter.take(&wanted, at(100).plus(wait)), Ok(()));
    }

    #[test]
    fn who_is_refused_for_one_limit_loses_nothing_of_another() {
        let mut limiter = Limiter::default();
        let issuer = of(LimitKind::Issuer, "github", 1, 3);
        let busy = [issuer.clone(), of(LimitKind::Identity, "busy", 1, 1)];
        assert!(limiter.take(&busy, at(0)).is_ok());
        for _ in 0..10 {
            let (kind, ..) = limiter.take(&busy, at(0)).unwrap_err();
            assert_eq!(kind, LimitKind::Identity);
        }
        let calm = |name: &str| [issuer.clone(), of(LimitKind::Identity, name, 1, 1)];
        assert!(limiter.take(&calm("x"), at(0)).is_ok());
        assert!(limiter.take(&calm("y"), at(0)).is_ok());
        assert_eq!(limiter.take(&calm("z"), at(0)).unwrap_err().0, LimitKind::Issuer);
    }

    #[test]
    fn many_names_fill_no_memory() {
        let mut limiter = Limiter::default();
        let opened = (0..20_000)
            .filter(|n| {
                limiter.take(&[of(LimitKind::Identity, &n.to_string(), 1, 1)], at(0)).is_ok()
            })
            .count();
        assert!(limiter.allowances.len() <= MAX_ENTRIES + 1);
        assert!(opened <= MAX_ENTRIES + 1, "{opened}");
    }
}
