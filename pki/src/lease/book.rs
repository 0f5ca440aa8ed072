//! Leases in the store: every step is one transaction over lease, indexes, addresses,
//! certificates and audit.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::audit::{Actor, AuditEvent};
use crate::authority::{Access, AccessError, Authority, lock};
use crate::bar::RunName;
use crate::error::Error;
use crate::failpoint;
use crate::issue::{CertRecord, sha256_hex};
use crate::lease::pool::AddressRecord;
use crate::lease::state::{self, LeaseEvent, transition};
use crate::lease::{CiRef, Lease, LeaseChange, LeaseState};
use crate::record::{self, Stored, key};
use crate::revoke::RevocationReason;
use crate::serial::Serial;
use crate::store::{self, Outcome, Txn};
use crate::time::UnixTime;
use crate::validate::VerifiedPeer;

/// How often a step is tried again when another writer was faster.
pub(crate) const ATTEMPTS: usize = 32;
/// Leases moved by one transaction when time moves many at once.
const BATCH: usize = 64;

/// How a step is named in the audit log.
pub(crate) struct Step {
    pub(crate) action: &'static str,
    pub(crate) reason: Option<String>,
}

/// A committed step.
pub(crate) struct Moved {
    pub(crate) change: LeaseChange,
    /// How many certificates it revoked.
    pub(crate) revoked: usize,
}

/// A step that is not committed yet.
pub(crate) struct Plan {
    pub(crate) moved: Moved,
    changed: bool,
    ended: bool,
}

impl Authority {
    /// Records that the lease has a tunnel now; repeating it changes nothing.
    ///
    /// # Errors
    /// [`Error::LeaseState`] when the lease may not connect (any more).
    pub fn connected(&self, lease_id: &str, now: UnixTime) -> Result<LeaseChange, Error> {
        let step = Step { action: "lease.connect", reason: None };
        self.step(lease_id, &LeaseEvent::Connected, &Actor::System, &step, now)
    }

    /// Records that leases have a tunnel again, many in one transaction. Where one of them may not
    /// connect, those beside it are left to [`connected`](Self::connected), which says why. How
    /// many there are.
    pub fn reconnected(&self, lease_ids: &[String], now: UnixTime) -> usize {
        let step = Step { action: "lease.connect", reason: Some("restart".to_owned()) };
        let chunks = lease_ids.chunks(BATCH);
        chunks
            .map(|ids| self.step_all(ids, &LeaseEvent::Connected, &step, now))
            .map(|moved| moved.map_or(0, |moved| moved.len()))
            .sum()
    }

    /// Records that the lease's last tunnel is gone; `reason` says how, for the audit log.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is no such lease.
    pub fn disconnected(
        &self,
        lease_id: &str,
        reason: &str,
        now: UnixTime,
    ) -> Result<LeaseChange, Error> {
        let step = Step { action: "lease.lose", reason: Some(reason.to_owned()) };
        self.step(lease_id, &LeaseEvent::Disconnected, &Actor::System, &step, now)
    }

    /// Ends a lease: its certificates are revoked, its addresses rest. `cause` is one word:
    /// `client`, `admin`, `job`. Repeating it changes nothing.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is no such lease.
    pub fn release(
        &self,
        lease_id: &str,
        cause: &str,
        actor: &Actor,
        now: UnixTime,
    ) -> Result<LeaseChange, Error> {
        let event = LeaseEvent::Release { cause: cause.to_owned(), actor: actor.clone() };
        let step = Step { action: "lease.release", reason: Some(cause.to_owned()) };
        self.step(lease_id, &event, actor, &step, now)
    }

    /// The next instant at which [`expire_due`](Self::expire_due) has something to do.
    ///
    /// # Errors
    /// When the store fails.
    pub fn next_deadline(&self) -> Result<Option<UnixTime>, Error> {
        let first = self.store.range(key::DUE, None, 1)?;
        Ok(first.first().and_then(|(due, _)| key::parse_due(due)).map(|(at, _)| at))
    }

    /// Moves every lease whose deadline has come; the caller ends the tunnels it is told to. One
    /// that cannot be moved keeps back no other.
    ///
    /// # Errors
    /// When nothing was moved and something should have been. What fails beside leases that were
    /// moved fails again with the next call, because it stays due: their tunnels come first.
    pub fn expire_due(&self, now: UnixTime) -> Result<Vec<LeaseChange>, Error> {
        let mut changes = Vec::new();
        match self.expire_all(&mut changes, now) {
            Err(error) if changes.is_empty() => Err(error),
            _ => Ok(changes),
        }
    }

    /// The first failure, after everything that could be moved was.
    fn expire_all(&self, changes: &mut Vec<LeaseChange>, now: UnixTime) -> Result<(), Error> {
        let mut failed = Ok(());
        let mut cursor: Option<String> = None;
        loop {
            let due = self.store.range(key::DUE, cursor.as_deref(), BATCH)?;
            let ids: Vec<String> = due
                .iter()
                .filter_map(|(due, _)| key::parse_due(due))
                .take_while(|(at, _)| *at <= now)
                .map(|(_, id)| id.to_owned())
                .collect();
            if ids.is_empty() {
                return failed;
            }
            let step = Step { action: "lease.expire", reason: None };
            let moved = self.step_all(&ids, &LeaseEvent::Tick, &step, now);
            if let Ok(moved) = moved {
                let all = moved.len() == ids.len();
                changes.extend(moved);
                if all {
                    continue;
                }
            }
            // Something is the matter with one of them: each by itself, and behind them on.
            for (id, (due, _)) in ids.iter().zip(&due) {
                let moved = match self.step(id, &LeaseEvent::Tick, &Actor::System, &step, now) {
                    Ok(change) if change.changed() => {
                        changes.push(change);
                        continue;
                    }
                    // A due key without movement would be found again for ever.
                    Ok(_) if self.store.get(due)?.is_some() => Error::Damaged {
                        key: due.clone(),
                        cause: "its lease is not due".to_owned(),
                    },
                    Ok(_) => continue,
                    Err(error) => error,
                };
                failed = failed.and(Err(moved));
            }
            cursor = due.get(ids.len() - 1).map(|(due, _)| due.clone());
        }
    }

    /// Makes every active lease lost: their tunnels died with the process that had them. Those
    /// that were lost have their time again, because they could not come back to nobody.
    pub(crate) fn orphan_active(&self, now: UnixTime) -> Result<usize, Error> {
        let orphans: Vec<String> = self
            .leases(false)?
            .into_iter()
            .filter(|lease| matches!(lease.state, LeaseState::Active | LeaseState::Lost))
            .map(|lease| lease.id)
            .collect();
        for ids in orphans.chunks(BATCH) {
            let step = Step { action: "lease.lose", reason: Some("restart".to_owned()) };
            self.step_all(ids, &LeaseEvent::Orphaned, &step, now)?;
        }
        Ok(orphans.len())
    }

    /// A lease by id.
    ///
    /// # Errors
    /// When the store fails.
    pub fn lease(&self, id: &str) -> Result<Option<Lease>, Error> {
        Ok(self.stored_lease(id)?.map(|stored| stored.value))
    }

    /// A lease by a certificate of it. Without an issuer the embedded CA's is meant.
    ///
    /// # Errors
    /// When the store fails.
    pub fn lease_by_serial(
        &self,
        issuer_id: Option<&str>,
        serial: &Serial,
    ) -> Result<Option<Lease>, Error> {
        let certificate = match issuer_id {
            Some(issuer) => {
                let cert_key = key::cert(issuer, serial);
                record::read::<CertRecord>(self.store.as_ref(), &cert_key)?
                    .map(|stored| stored.value)
            }
            None => self.certificate(serial)?,
        };
        match certificate.and_then(|certificate| certificate.lease_id) {
            Some(lease_id) => self.lease(&lease_id),
            None => Ok(None),
        }
    }

    /// The live lease that has a virtual address, found without a scan.
    ///
    /// # Errors
    /// When the store fails.
    pub fn lease_by_address(&self, address: IpAddr) -> Result<Option<Lease>, Error> {
        let address = address.to_canonical();
        for pool in self.settings().pools.keys() {
            let address_key = key::address(pool, address);
            let Some(held) = record::read::<AddressRecord>(self.store.as_ref(), &address_key)?
            else {
                continue;
            };
            if held.value.resting_until.is_none()
                && let Some(lease) = self.lease(&held.value.lease)?.filter(|l| l.state.is_live())
            {
                return Ok(Some(lease));
            }
        }
        Ok(None)
    }

    /// The leases a public key has or had.
    ///
    /// # Errors
    /// When the store fails.
    pub fn leases_by_spki(&self, spki_sha256: &str) -> Result<Vec<Lease>, Error> {
        let prefix = key::spki(spki_sha256, "");
        let mut leases = Vec::new();
        for (spki_key, _) in store::scan(self.store.as_ref(), &prefix)? {
            if let Some(lease) = self.lease(spki_key.strip_prefix(&prefix).unwrap_or_default())? {
                leases.push(lease);
            }
        }
        Ok(leases)
    }

    /// Leases: the live ones by deadline, or all that are kept by id.
    ///
    /// # Errors
    /// When the store fails.
    pub fn leases(&self, include_ended: bool) -> Result<Vec<Lease>, Error> {
        let store = self.store.as_ref();
        if include_ended {
            return store::scan(store, key::LEASE)?
                .iter()
                .map(|(key, entry)| Ok(record::decode::<Lease>(key, entry)?.value))
                .collect();
        }
        let mut leases = Vec::new();
        for (due, _) in store::scan(store, key::DUE)? {
            let id = key::parse_due(&due).map(|(_, id)| id).unwrap_or_default();
            if let Some(lease) = self.lease(id)?.filter(|lease| lease.state.is_live()) {
                leases.push(lease);
            }
        }
        Ok(leases)
    }

    /// Decides a verified peer's access by the lease its certificate belongs to.
    ///
    /// # Errors
    /// Why there is none.
    pub fn authorise(&self, peer: &VerifiedPeer, now: UnixTime) -> Result<Access, AccessError> {
        let no_lease = || AccessError::NoLease {
            serial: peer.serial.clone(),
            subject: peer.subject.clone(),
            issuer: peer.issuer.clone(),
        };
        let cert_key = key::cert(&peer.issuer_id, &peer.serial);
        let certificate = record::read::<CertRecord>(self.store.as_ref(), &cert_key)?
            .map(|stored| stored.value)
            // Another CA could use the same name and serial; it cannot use the same key.
            .filter(|certificate| certificate.spki_sha256 == peer.spki_sha256)
            .ok_or_else(no_lease)?;
        let lease_id = certificate.lease_id.ok_or_else(no_lease)?;
        let lease = self.lease(&lease_id)?.ok_or_else(no_lease)?;
        let settings = self.settings();
        if let Err(error) = state::usable(&lease, now, &settings.timers) {
            return Err(match (error, certificate.revoked) {
                (_, Some(revocation)) if lease.state == LeaseState::Revoked => {
                    AccessError::Revoked {
                        serial: peer.serial.clone(),
                        lease: lease_id,
                        at: revocation.at,
                        reason: revocation.reason,
                    }
                }
                (Error::LeaseState { state, since, advice, .. }, _) => {
                    AccessError::LeaseNotLive { lease: lease_id, state, since, advice }
                }
                (other, _) => other.into(),
            });
        }
        if let Some(revocation) = certificate.revoked {
            return Err(AccessError::Revoked {
                serial: peer.serial.clone(),
                lease: lease_id,
                at: revocation.at,
                reason: revocation.reason,
            });
        }
        if !settings.roles.contains_key(&lease.role) {
            return Err(AccessError::UnknownRole { lease: lease_id, role: lease.role });
        }
        let deadline = peer.not_after.min(lease.hard_cap);
        Ok(Access { lease, deadline })
    }

    pub(crate) fn stored_lease(&self, id: &str) -> Result<Option<Stored<Lease>>, Error> {
        record::read(self.store.as_ref(), &key::lease(id))
    }

    pub(crate) fn step(
        &self,
        id: &str,
        event: &LeaseEvent,
        actor: &Actor,
        step: &Step,
        now: UnixTime,
    ) -> Result<LeaseChange, Error> {
        let reason = RevocationReason::CessationOfOperation;
        Ok(self.move_lease(id, event, reason, actor, step, now)?.change)
    }

    /// One step of one lease; tried again while other writers are faster.
    pub(crate) fn move_lease(
        &self,
        id: &str,
        event: &LeaseEvent,
        reason: RevocationReason,
        actor: &Actor,
        step: &Step,
        now: UnixTime,
    ) -> Result<Moved, Error> {
        for _ in 0..ATTEMPTS {
            let mut txn = Txn::new();
            let plan = self.plan(&mut txn, id, event, reason, actor, step, now)?;
            if !plan.changed || self.commit(txn, step.action)? {
                self.settle(&plan, now);
                return Ok(plan.moved);
            }
        }
        Err(Error::Contended("the lease"))
    }

    /// The same step for many leases in one transaction; those it does not change are left out.
    fn step_all(
        &self,
        ids: &[String],
        event: &LeaseEvent,
        step: &Step,
        now: UnixTime,
    ) -> Result<Vec<LeaseChange>, Error> {
        let reason = RevocationReason::CessationOfOperation;
        let mut txn = Txn::new();
        let mut plans = Vec::with_capacity(ids.len());
        for id in ids {
            let plan = self.plan(&mut txn, id, event, reason, &Actor::System, step, now)?;
            if plan.changed {
                plans.push(plan);
            }
        }
        if plans.is_empty() {
            return Ok(Vec::new());
        }
        if self.commit(txn, step.action)? {
            for plan in &plans {
                self.settle(plan, now);
            }
            return Ok(plans.into_iter().map(|plan| plan.moved.change).collect());
        }
        // One of them moved meanwhile: one by one, each with its own retries.
        let mut changes = Vec::new();
        for id in ids {
            match self.step(id, event, &Actor::System, step, now) {
                Ok(change) => changes.push(change),
                // What is committed must reach whoever ends the tunnels.
                Err(error) if changes.is_empty() => return Err(error),
                Err(_) => break,
            }
        }
        Ok(changes)
    }

    #[allow(clippy::too_many_arguments)]
    pub(crate) fn plan(
        &self,
        txn: &mut Txn,
        id: &str,
        event: &LeaseEvent,
        reason: RevocationReason,
        actor: &Actor,
        step: &Step,
        now: UnixTime,
    ) -> Result<Plan, Error> {
        let stored = self.stored_lease(id)?.ok_or_else(|| Error::not_found("lease", id))?;
        let before = stored.value;
        let settings = self.settings();
        let done = transition(&before, event, now, &settings.timers)?;
        let mut revoked = 0;
        if done.changed {
            let lease_key = key::lease(id);
            txn.at(&lease_key, stored.revision).put(lease_key, record::encode(&done.lease));
            move_deadline(txn, &before, &done.lease);
            // Time that only finds another deadline, because the periods are others now, ends
            // nothing.
            if before.state != done.lease.state || !matches!(event, LeaseEvent::Tick) {
                let mut audit =
                    AuditEvent::new(audit_action(step, &done.lease), actor, now).lease(&done.lease);
                audit.reason = step
                    .reason
                    .clone()
                    .or_else(|| done.lease.end.as_ref().map(|end| end.cause.clone()));
                audit.record(txn);
            }
        }
        if done.ended {
            txn.put(key::ended(now, id), Vec::new());
            for index_key in live_keys(&before) {
                txn.delete(index_key);
            }
            let quarantine = settings.pools.get(&before.pool).map(|pool| pool.quarantine);
            let until = now.plus(quarantine.unwrap_or_default());
            for address in &before.addresses {
                let resting = AddressRecord { lease: id.to_owned(), resting_until: Some(until) };
                txn.put(key::address(&before.pool, *address), record::encode(&resting));
            }
            for cert in before.certs.iter().filter(|cert| cert.not_after >= now) {
                revoked +=
                    self.plan_revocation(txn, &cert.issuer, &cert.serial, reason, actor, now)?;
            }
        }
        let change =
            LeaseChange { lease: done.lease, from: before.state, end_tunnels: done.end_tunnels };
        Ok(Plan { moved: Moved { change, revoked }, changed: done.changed, ended: done.ended })
    }

    pub(crate) fn commit(&self, txn: Txn, action: &str) -> Result<bool, Error> {
        let (before, after) = match action {
            "lease.revoke" => ("revoke.before_commit", "revoke.after_commit"),
            "lease.release" => ("release.before_commit", "release.after_commit"),
            "lease.connect" => ("connect.before_commit", "connect.after_commit"),
            "lease.lose" => ("lose.before_commit", "lose.after_commit"),
            _ => ("expire.before_commit", "expire.after_commit"),
        };
        failpoint::hit(before);
        let committed = matches!(self.store.transact(txn)?, Outcome::Committed(_));
        if committed {
            failpoint::hit(after);
        }
        Ok(committed)
    }

    /// Tells the address book what a committed step released.
    pub(crate) fn settle(&self, plan: &Plan, now: UnixTime) {
        if !plan.ended {
            return;
        }
        let lease = &plan.moved.change.lease;
        let settings = self.settings();
        let quarantine = settings.pools.get(&lease.pool).map(|pool| pool.quarantine);
        let until = now.plus(quarantine.unwrap_or_default());
        let mut book = lock(&self.addresses);
        for address in &lease.addresses {
            book.rest(&lease.pool, *address, until);
        }
    }
}

/// Where a lease is found and counted while it lives: by its role, and by the CI job whose token
/// opened it.
pub(crate) fn live_keys(lease: &Lease) -> impl Iterator<Item = String> {
    let job = job_of(&lease.claims, &lease.ci_ref);
    let job = job.map(|(run, job)| key::job(&run, &job, &lease.id));
    [key::role_lease(&lease.role, &lease.id)].into_iter().chain(job)
}

/// Puts a new lease where it is found and counted.
pub(crate) fn put_live(txn: &mut Txn, lease: &Lease) {
    for index_key in live_keys(lease) {
        txn.put(index_key, Vec::new());
    }
}

/// Digests of the names of a CI run and of one job of it. Where tokens do not name the job, all of
/// one attempt at the run count as one.
pub(crate) fn job_of(
    claims: &BTreeMap<String, String>,
    ci_ref: &CiRef,
) -> Option<(String, String)> {
    let run = RunName::by_id(claims, ci_ref)?.digest();
    let job = match (&ci_ref.job_id, claims.get("run_attempt")) {
        (Some(job), _) => format!("job {job}"),
        (None, attempt) => format!("attempt {}", attempt.map_or("", String::as_str)),
    };
    Some((run, sha256_hex(job.as_bytes())))
}

/// Keeps the index of deadlines in step with the lease.
pub(crate) fn move_deadline(txn: &mut Txn, before: &Lease, after: &Lease) {
    if before.deadline == after.deadline {
        return;
    }
    if let Some(deadline) = before.deadline {
        txn.delete(key::due(deadline, &before.id));
    }
    if let Some(deadline) = after.deadline {
        txn.put(key::due(deadline, &after.id), Vec::new());
    }
}

/// Time moves leases in several ways; the audit log names each by what happened.
fn audit_action(step: &Step, lease: &Lease) -> &'static str {
    match (step.action, lease.state) {
        ("lease.expire", LeaseState::Lapsed) => "lease.lapse",
        ("lease.expire", LeaseState::Released) => "lease.release",
        (action, _) => action,
    }
}
