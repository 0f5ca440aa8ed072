//! Ending leases: durable first, then denied, then the tunnels, and only then the answer.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ike::event::CloseReason;
use ike::io::LeaseId;
use pki::{
    Actor, Authority, Lease, LeaseChange, LeaseState, PendingLease, RevocationReason,
    RevokeOutcome, UnixTime,
};
use thiserror::Error;

use super::LeaseRegistry;
use crate::actions::PlaneHandle;
use crate::admin::proto::Selector;
use crate::admin::view::Ended;
use crate::driver::EngineHandle;
use crate::http::EndLeases;
use crate::sys::{clock, failpoint};

/// Longest wait for engine and data plane together.
const PATIENCE: Duration = Duration::from_secs(10);
/// What each lease adds to that when many end together.
const EACH: Duration = Duration::from_millis(10);

/// Why an ending could not be completed.
#[derive(Debug, Error)]
pub enum EndError {
    /// The PKI refused.
    #[error(transparent)]
    Pki(#[from] pki::Error),
    /// Nothing matches.
    #[error("no live lease matches {0}; see `runnel lease list --all`")]
    NoMatch(String),
    /// The lease ended, and its tunnels may not have.
    #[error(
        "the lease has ended and cannot connect again, but removing its tunnel was not \
         confirmed: {0}; see `runnel doctor`"
    )]
    NotConfirmed(String),
}

/// Ends the tunnels of leases that have ended.
#[derive(Debug, Clone)]
pub struct Tunnels {
    engine: EngineHandle,
    plane: PlaneHandle,
    registry: Arc<LeaseRegistry>,
}

impl Tunnels {
    /// Over the running engine and data plane.
    pub fn new(engine: EngineHandle, plane: PlaneHandle, registry: Arc<LeaseRegistry>) -> Self {
        Self { engine, plane, registry }
    }

    /// Ends every tunnel of a lease; returns how many IKE SAs were closed, once the data plane
    /// has confirmed that no packet passes. Does not wait for the peer.
    ///
    /// # Errors
    /// A sentence when engine or plane did not confirm.
    pub fn end(&self, lease: &Lease, reason: CloseReason) -> Result<usize, String> {
        self.end_all(&[lease], &reason).into_iter().next().unwrap_or(Ok(0))
    }

    /// The same for many leases, in their order: all are asked to end before the first is waited for.
    fn end_all(&self, leases: &[&Lease], reason: &CloseReason) -> Vec<Result<usize, String>> {
        let patience = PATIENCE + EACH * u32::try_from(leases.len()).unwrap_or(u32::MAX);
        let until = Instant::now() + patience;
        let left = || until.saturating_duration_since(Instant::now()).max(EACH);
        let ids: Vec<LeaseId> = leases.iter().map(|lease| LeaseId(lease.id.clone())).collect();
        // Packets stop first: the engine's orderly removal may queue behind a handshake.
        let stops: Vec<_> = ids
            .iter()
            .map(|id| {
                self.registry.end(id);
                self.registry.known_reqid(id).map(|reqid| self.plane.end_lease(reqid))
            })
            .collect();
        let closing: Vec<_> =
            ids.iter().map(|id| self.engine.closing_lease(id.clone(), reason.clone())).collect();
        let mut ended: Vec<Result<usize, String>> =
            closing.into_iter().map(|closing| closing.wait(left())).collect();
        // What an exchange installed between the two is behind us in the plane's queue by now.
        let again: Vec<_> = ids
            .iter()
            .map(|id| self.registry.known_reqid(id).map(|reqid| self.plane.end_lease(reqid)))
            .collect();
        for (ended, stopped) in ended.iter_mut().zip(stops.into_iter().zip(again)) {
            for stopped in [stopped.0, stopped.1].into_iter().flatten() {
                if let Err(error) = stopped.wait(left()) {
                    *ended = Err(error);
                }
            }
        }
        for ((lease, id), ended) in leases.iter().zip(&ids).zip(&ended) {
            if ended.is_ok() && !lease.state.is_live() {
                self.registry.forget(id);
            }
        }
        ended
    }
}

/// Release and revocation as one operation.
#[derive(Debug, Clone)]
pub struct LeaseEnder {
    authority: Arc<Authority>,
    tunnels: Tunnels,
    /// Leases that have ended while the end of their tunnels was not confirmed: tried again until
    /// it is.
    unconfirmed: Arc<Mutex<BTreeMap<String, (Lease, CloseReason)>>>,
}

/// What one operation has done so far.
#[derive(Default)]
struct Tally {
    changes: Vec<LeaseChange>,
    /// Leases that waited for an operator.
    cancelled: Vec<String>,
    closed: usize,
    /// The first thing that failed; the rest was done all the same.
    failed: Option<EndError>,
}

impl LeaseEnder {
    /// Over the PKI and the tunnels.
    pub fn new(authority: Arc<Authority>, tunnels: Tunnels) -> Self {
        Self { authority, tunnels, unconfirmed: Arc::default() }
    }

    /// Ends leases whose work is done.
    ///
    /// # Errors
    /// [`EndError`].
    pub fn release(&self, selector: &Selector, actor: &Actor) -> Result<Ended, EndError> {
        let (started, now) = (Instant::now(), now());
        let selected = selector.to_pki()?;
        // Those that wait first: what is opened meanwhile is among the live ones then.
        let cancelled = self.authority.cancel_selected(&selected, "released", actor, now)?;
        let leases = self.authority.select(&selected)?;
        if leases.is_empty() && cancelled.is_empty() {
            return Err(EndError::NoMatch(selector.to_string()));
        }
        let ids: Vec<String> = leases.into_iter().map(|lease| lease.id).collect();
        let tally = Tally { cancelled, ..Tally::default() };
        self.release_all(&ids, "admin", actor, tally, started)
    }

    /// The same with the cause in one word: each is ended durably, and then the tunnels of all of
    /// them together. One that cannot be ended keeps back no other.
    fn release_all(
        &self,
        ids: &[String],
        cause: &str,
        actor: &Actor,
        mut tally: Tally,
        started: Instant,
    ) -> Result<Ended, EndError> {
        let now = now();
        let mut changes = Vec::with_capacity(ids.len());
        for id in ids {
            match self.authority.release(id, cause, actor, now) {
                Ok(change) => changes.push(change),
                Err(error) => {
                    tally.failed.get_or_insert(error.into());
                }
            }
        }
        self.cut(Ok(changes), &CloseReason::Released, &mut tally);
        self.answer(tally, started)
    }

    /// Ends leases that must not be trusted and revokes their certificates, in one transaction.
    ///
    /// # Errors
    /// [`EndError`].
    pub fn revoke(
        &self,
        selector: &Selector,
        reason: &str,
        actor: &Actor,
    ) -> Result<Ended, EndError> {
        let started = Instant::now();
        let reason: RevocationReason = reason.parse()?;
        let outcome = self.authority.revoke(&selector.to_pki()?, reason, actor, now());
        let outcome = outcome.map_err(|error| match error {
            pki::Error::NotFound { what: "lease matches", .. } => {
                EndError::NoMatch(selector.to_string())
            }
            error => error.into(),
        })?;
        self.revoked(outcome, started)
    }

    /// Revokes an issuing CA that issues no more, and ends what only it vouched for.
    ///
    /// # Errors
    /// [`EndError`].
    pub fn revoke_ca(&self, place: &str, reason: &str, actor: &Actor) -> Result<Ended, EndError> {
        let started = Instant::now();
        let outcome = self.authority.ca_revoke(place, reason.parse()?, actor, now())?;
        self.revoked(outcome, started)
    }

    /// Ends the tunnels of what an imported list has revoked.
    ///
    /// # Errors
    /// [`EndError`].
    pub fn end_revoked(&self, outcome: RevokeOutcome) -> Result<Ended, EndError> {
        self.revoked(outcome, Instant::now())
    }

    /// Ends the tunnels of what is revoked.
    fn revoked(&self, outcome: RevokeOutcome, started: Instant) -> Result<Ended, EndError> {
        let mut tally = Tally { cancelled: outcome.cancelled, ..Tally::default() };
        self.cut(Ok(outcome.changes), &CloseReason::Revoked, &mut tally);
        let renewed: Vec<&Lease> = outcome.renewed.iter().collect();
        self.close(&renewed, &CloseReason::Revoked, &mut tally);
        if let Some(error) = outcome.failed {
            tally.failed = Some(error.into());
        }
        let mut ended = self.answer(tally, started)?;
        if ended.leases.is_empty() {
            // A certificate without a lease, like the gateway's own.
            ended.revoked = outcome.revoked_now;
        }
        ended.already = ended.revoked == 0
            && ended.cancelled.is_empty()
            && outcome.barred.is_empty()
            && outcome.barred_keys == 0;
        ended.barred = outcome.barred;
        ended.keys_barred = outcome.barred_keys;
        Ok(ended)
    }

    /// The leases that revoking would end now, and those that wait and would be denied.
    ///
    /// # Errors
    /// [`EndError`].
    pub fn preview(
        &self,
        selector: &Selector,
    ) -> Result<(Vec<Lease>, Vec<PendingLease>), EndError> {
        let selected = selector.to_pki()?;
        // As a revocation looks: what is opened in between is among the live ones then.
        let waiting = self.authority.select_waiting(&selected)?;
        let leases = self.authority.select(&selected)?;
        if leases.is_empty() && waiting.is_empty() {
            return Err(EndError::NoMatch(selector.to_string()));
        }
        Ok((leases, waiting))
    }

    /// Ends the tunnels of leases whose time has come; how many leases moved.
    ///
    /// # Errors
    /// [`EndError`].
    pub fn expire(&self) -> Result<usize, EndError> {
        let changes = self.authority.expire_due(now())?;
        for change in &changes {
            tracing::info!(
                lease = %change.lease.id, from = %change.from, to = %change.lease.state,
                "lease moved"
            );
        }
        let mut tally = Tally::default();
        let moved = changes.len();
        self.cut(Ok(changes), &CloseReason::Expired, &mut tally);
        self.retry(&mut tally);
        tally.failed.map_or(Ok(moved), Err)
    }

    /// Ends the tunnels of a lease that may live on.
    ///
    /// # Errors
    /// [`EndError::NotConfirmed`].
    pub fn cut_tunnels(&self, lease: &Lease, reason: CloseReason) -> Result<usize, EndError> {
        self.tunnels.end(lease, reason).map_err(EndError::NotConfirmed)
    }

    /// Ends the tunnels of leases whose end has just become durable, whatever failed beside them.
    fn cut(
        &self,
        durable: Result<Vec<LeaseChange>, pki::Error>,
        reason: &CloseReason,
        tally: &mut Tally,
    ) {
        let changes = match durable {
            Ok(changes) => changes,
            Err(error) => {
                tally.failed.get_or_insert(error.into());
                return;
            }
        };
        if !changes.is_empty() {
            failpoint::hit("end.after_durable");
        }
        // An ended lease is closed again when asked again: a first attempt may have been cut.
        let over = |change: &&LeaseChange| {
            change.end_tunnels
                || matches!(change.lease.state, LeaseState::Released | LeaseState::Revoked)
        };
        let leases: Vec<&Lease> = changes.iter().filter(over).map(|c| &c.lease).collect();
        self.close(&leases, reason, tally);
        tally.changes.extend(changes);
    }

    fn close(&self, leases: &[&Lease], reason: &CloseReason, tally: &mut Tally) {
        let all = self.tunnels.end_all(leases, reason);
        let mut unconfirmed = self.unconfirmed.lock().unwrap_or_else(PoisonError::into_inner);
        for (lease, ended) in leases.iter().zip(all) {
            match ended {
                Ok(count) => {
                    tally.closed += count;
                    unconfirmed.remove(&lease.id);
                }
                Err(error) => {
                    unconfirmed.insert(lease.id.clone(), ((*lease).clone(), reason.clone()));
                    tally.failed.get_or_insert(EndError::NotConfirmed(error));
                }
            }
        }
    }

    /// Tries again what was not confirmed.
    fn retry(&self, tally: &mut Tally) {
        let waiting: Vec<(Lease, CloseReason)> = {
            let unconfirmed = self.unconfirmed.lock().unwrap_or_else(PoisonError::into_inner);
            unconfirmed.values().cloned().collect()
        };
        for (lease, reason) in waiting {
            self.close(&[&lease], &reason, tally);
        }
    }

    fn answer(&self, tally: Tally, started: Instant) -> Result<Ended, EndError> {
        let Tally { changes, cancelled, closed, failed } = tally;
        if let Some(error) = failed {
            return Err(error);
        }
        if !changes.is_empty() {
            failpoint::hit("end.before_answer");
        }
        let changed = changes.iter().filter(|change| change.changed()).count();
        Ok(Ended {
            revoked: changed,
            leases: changes.iter().map(|change| change.lease.id.clone()).collect(),
            sas_closed: closed,
            crl_number: self.crl_number(),
            elapsed_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
            already: changed == 0 && !changes.is_empty() && cancelled.is_empty(),
            cancelled,
            barred: Vec::new(),
            keys_barred: 0,
        })
    }

    /// The number of a list that says it. What has ended has ended, whatever comes of the list: it
    /// is made again by whoever asks for it next.
    fn crl_number(&self) -> Option<u64> {
        let crl = self.authority.crl(now());
        crl.inspect_err(|error| tracing::error!(%error, "CRL not made")).ok().map(|crl| crl.number)
    }
}

impl EndLeases for LeaseEnder {
    fn release(&self, leases: &[String], cause: &str, actor: &Actor) -> Result<Ended, EndError> {
        self.release_all(leases, cause, actor, Tally::default(), Instant::now())
    }

    fn revoke(&self, lease: &str, reason: &str, actor: &Actor) -> Result<Ended, EndError> {
        Self::revoke(self, &Selector::Id(lease.to_owned()), reason, actor)
    }
}

fn now() -> UnixTime {
    UnixTime::from_micros(clock::wall().0)
}
