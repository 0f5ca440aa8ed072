//! Leases that wait for an operator (`approval = "manual"`).
//!
//! The proof of entitlement is reserved in the transaction that writes the request down, so it opens
//! nothing else meanwhile; the same key asks again until it is decided. Nothing is signed and no
//! address is taken before that. Waiting requests end by themselves and are bounded in number.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::open::{Grant, LEASE_ID_LEN, reserve};
use super::token::REPLAY_WINDOW;
use super::{LimitKind, Refusal, RefusalCode, jwt, shown};
use crate::audit::{Actor, AuditEvent};
use crate::authority::{Authority, lock};
use crate::csr::Csr;
use crate::entropy::random_text;
use crate::error::Error;
use crate::failpoint;
use crate::lease::CiRef;
use crate::lease::book::job_of;
use crate::record::{self, Stored, key};
use crate::store::{self, Outcome, Txn};
use crate::time::UnixTime;

/// A request that nobody has decided, or whose client does not come back, ends after this time.
pub const APPROVE_WITHIN: Duration = Duration::from_secs(3_600);
/// How long a client is told to wait before it asks again.
const ASK_AGAIN: Duration = Duration::from_secs(9);
/// Who was approved has this long to collect the lease, also when the hour is nearly over.
const COLLECT_WITHIN: Duration = Duration::from_secs(600);
/// Undecided requests of one role: who may ask could otherwise fill the store and the operator's
/// screen.
const MAX_OF_ROLE: usize = 200;
/// Undecided requests of one identity, so that a project leaves room to others of its role.
const MAX_OF_IDENTITY: usize = 100;
/// Undecided requests in all.
const MAX_UNDECIDED: usize = 1_000;
/// Requests on record in all, with those whose client has not come back since the decision.
const MAX_KEPT: usize = 2_000;
/// How often a decision is tried again when another writer was faster.
const ATTEMPTS: usize = 16;

/// What an operator decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// Whether the lease may be opened.
    pub approved: bool,
    /// When.
    pub at: UnixTime,
    /// Who.
    pub by: Actor,
    /// Why, in the operator's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A lease that waits for an operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingLease {
    /// The id that the lease will have.
    pub id: String,
    /// Its role.
    pub role: String,
    /// The identity that the lease will have.
    #[serde(default)]
    pub identity: String,
    /// The key it is for: SHA-256 of its SubjectPublicKeyInfo, hexadecimal.
    pub spki_sha256: String,
    /// The door it came through.
    pub door: String,
    /// The name of the token that is reserved for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// Who asked.
    pub asked_by: Actor,
    /// Verified claims.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub claims: BTreeMap<String, String>,
    /// The CI job.
    #[serde(default)]
    pub ci_ref: CiRef,
    /// When it was asked for.
    pub created: UnixTime,
    /// When it ends by itself.
    pub expires: UnixTime,
    /// What was decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision: Option<Decision>,
    /// It was asked for just now, and not before.
    #[serde(skip)]
    pub new: bool,
}

impl PendingLease {
    /// `pending`, `approved` or `denied`.
    pub const fn state(&self) -> &'static str {
        match &self.decision {
            None => "pending",
            Some(Decision { approved: true, .. }) => "approved",
            Some(_) => "denied",
        }
    }

    /// Whether an operator has denied it.
    pub const fn is_denied(&self) -> bool {
        matches!(self.decision, Some(Decision { approved: false, .. }))
    }

    fn event(&self, action: &str, actor: &Actor, now: UnixTime) -> AuditEvent {
        let mut event = AuditEvent::new(action, actor, now);
        event.lease_id = Some(self.id.clone());
        event.role = Some(self.role.clone());
        event.spki_sha256 = Some(self.spki_sha256.clone());
        event.token.clone_from(&self.token);
        event.job = self.ci_ref.clone();
        event
    }

    /// Refuses what asks for something else than was reserved, which is all that an operator
    /// decides about: rules, or the client, may name another role by now.
    fn is_asked_by(&self, grant: &Grant<'_>, csr: &Csr) -> Result<(), Refusal> {
        let Self { id, role, spki_sha256, .. } = self;
        if grant.role != *role {
            return Err(Refusal::new(
                RefusalCode::TokenWrongRole,
                format!(
                    "the token is reserved for lease {id} of role {role}, not of {}: ask for role \
                     {role}, or with a new token",
                    shown(&grant.role)
                ),
            ));
        }
        if csr.spki_sha256 != *spki_sha256 {
            return Err(Refusal::new(
                RefusalCode::TokenBoundElsewhere,
                format!(
                    "the token is reserved for lease {id} of key sha256:{spki_sha256}, the request \
                     carries sha256:{}: ask with the same key, or with a new token",
                    csr.spki_sha256
                ),
            ));
        }
        Ok(())
    }

    /// What its client is told when it comes too late.
    fn late(self) -> Refusal {
        match &self.decision {
            Some(Decision { approved: true, at, .. }) => Refusal::new(
                RefusalCode::ApprovalDenied,
                format!(
                    "lease {} was approved at {at} and not collected until {}: ask again with a \
                     new token",
                    self.id, self.expires
                ),
            ),
            None => Refusal::new(
                RefusalCode::ApprovalDenied,
                format!(
                    "lease {} was not approved until {}: ask again with a new token",
                    self.id, self.expires
                ),
            ),
            Some(_) => self.refusal(),
        }
    }

    /// What its client is told.
    pub(super) fn refusal(self) -> Refusal {
        if let Some(Decision { approved: false, reason, at, .. }) = &self.decision {
            let why = reason.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
            return Refusal::new(
                RefusalCode::ApprovalDenied,
                format!("lease {} was denied at {at}{why}: ask the gateway's operator", self.id),
            );
        }
        let mut refusal = Refusal::new(
            RefusalCode::ApprovalPending,
            format!(
                "lease {} of role {} waits for an operator until {}: decide with runnel lease \
                 approve {} or runnel lease deny {}",
                self.id, self.role, self.expires, self.id, self.id
            ),
        )
        .after(ASK_AGAIN);
        refusal.pending = Some(Box::new(self));
        refusal
    }
}

/// What approval means for an enrolment.
pub(super) enum Approval {
    /// It goes on, under this id when one was reserved.
    Open(Option<String>),
    /// Another writer was faster and everything must be judged again.
    Again,
}

impl Authority {
    /// Leases that wait for an operator, the oldest first.
    ///
    /// # Errors
    /// When the store fails.
    pub fn pending_leases(&self, now: UnixTime) -> Result<Vec<PendingLease>, Error> {
        let mut waiting: Vec<PendingLease> = self
            .all_pending()?
            .into_iter()
            .map(|(_, stored)| stored.value)
            .filter(|pending| now < pending.expires)
            .collect();
        waiting.sort_by(|a, b| (a.created, &a.id).cmp(&(b.created, &b.id)));
        Ok(waiting)
    }

    /// Decides about a lease that waits. Repeating a decision changes nothing. An approval can be
    /// taken back as long as the lease is not open.
    ///
    /// # Errors
    /// [`Error::NotFound`] when none of that id waits, [`Error::Invalid`] when it was denied and is
    /// to be approved.
    pub fn decide_pending(
        &self,
        id: &str,
        approved: bool,
        reason: Option<&str>,
        actor: &Actor,
        now: UnixTime,
    ) -> Result<PendingLease, Error> {
        for _ in 0..ATTEMPTS {
            let Stored { value: mut pending, revision } = self
                .stored_pending(id)?
                .filter(|stored| now < stored.value.expires)
                .ok_or_else(|| Error::not_found("waiting lease", id))?;
            match &pending.decision {
                Some(before) if before.approved == approved => return Ok(pending),
                // The client may have been told, and has given up then.
                Some(before) if approved => {
                    return Err(Error::Invalid(format!(
                        "lease {id} was denied by {} at {}, as its client is told: it must ask \
                         again with a new token",
                        before.by, before.at
                    )));
                }
                _ => {}
            }
            pending.expires = match approved {
                true => pending.expires.max(now.plus(COLLECT_WITHIN)),
                // The client is told for as long as it repeats an answer that was lost.
                false => pending.expires.min(now.plus(REPLAY_WINDOW)),
            };
            let reason = reason.map(|text| text.chars().take(200).collect::<String>());
            pending.decision = Some(Decision { approved, at: now, by: actor.clone(), reason });
            let pending_key = key::pending(id);
            let mut txn = Txn::new();
            txn.at(&pending_key, revision).put(pending_key, record::encode(&pending));
            let action = if approved { "lease.approve" } else { "lease.deny" };
            let mut event = pending.event(action, actor, now);
            event.reason = pending.decision.as_ref().and_then(|decision| decision.reason.clone());
            event.record(&mut txn);
            failpoint::hit("approve.before_commit");
            if let Outcome::Committed(_) = self.store.transact(txn)? {
                failpoint::hit("approve.after_commit");
                return Ok(pending);
            }
        }
        Err(Error::Contended("the waiting lease"))
    }

    /// Forgets a lease that waits, because its client needs it no more. What was reserved for it
    /// stays spent.
    ///
    /// # Errors
    /// [`Error::NotFound`] when none of that id waits any more.
    pub fn cancel_pending(&self, id: &str, actor: &Actor, now: UnixTime) -> Result<(), Error> {
        for _ in 0..ATTEMPTS {
            let Stored { value: pending, revision } = self
                .stored_pending(id)?
                .filter(|stored| now < stored.value.expires)
                .ok_or_else(|| Error::not_found("waiting lease", id))?;
            let pending_key = key::pending(id);
            let mut txn = Txn::new();
            txn.at(&pending_key, revision).delete(pending_key);
            pending.event("lease.release", actor, now).reason("client").record(&mut txn);
            failpoint::hit("approve.before_commit");
            if let Outcome::Committed(_) = self.store.transact(txn)? {
                failpoint::hit("approve.after_commit");
                return Ok(());
            }
        }
        Err(Error::Contended("the waiting lease"))
    }

    /// Has a grant approved where its role or its rule wants that: goes on, reserves the grant and
    /// refuses for now, or refuses for good.
    pub(super) fn approval(
        &self,
        txn: &mut Txn,
        grant: &Grant<'_>,
        csr: &Csr,
        now: UnixTime,
    ) -> Result<Approval, Refusal> {
        let Some(id) = &grant.reserved else {
            let settings = self.settings();
            let of_role = || settings.roles.get(&grant.role).is_some_and(|role| role.manual);
            let manual = grant.jwt.and_then(jwt::Accepted::manual).unwrap_or_else(of_role);
            return if manual { self.reserve_grant(txn, grant, csr, now) } else { open(None) };
        };
        let revision = self.approved(id, grant, csr, now)?;
        let pending_key = key::pending(id);
        txn.at(&pending_key, revision).delete(pending_key);
        open(Some(id.clone()))
    }

    /// The revision of the request that a grant was reserved for, if it is approved.
    ///
    /// # Errors
    /// What the client is told otherwise.
    pub(super) fn approved(
        &self,
        id: &str,
        grant: &Grant<'_>,
        csr: &Csr,
        now: UnixTime,
    ) -> Result<u64, Refusal> {
        let Some(Stored { value: pending, revision }) = self.stored_pending(id)? else {
            return Err(Refusal::new(
                RefusalCode::ApprovalDenied,
                format!(
                    "lease {id} was denied, or not approved or collected in time: ask again with \
                     a new token"
                ),
            ));
        };
        pending.is_asked_by(grant, csr)?;
        match &pending.decision {
            _ if now >= pending.expires => Err(pending.late()),
            Some(decision) if decision.approved => Ok(revision),
            _ => Err(pending.refusal()),
        }
    }

    fn reserve_grant(
        &self,
        txn: &mut Txn,
        grant: &Grant<'_>,
        csr: &Csr,
        now: UnixTime,
    ) -> Result<Approval, Refusal> {
        // One at a time, so that the bounds hold.
        let _turn = lock(&self.pending_turn);
        self.sweep_pending(now)?;
        let id =
            self.with_entropy(|entropy| Ok(format!("r-{}", random_text(entropy, LEASE_ID_LEN)?)))?;
        let job = grant.jwt.map(|jwt| jwt.context.clone()).unwrap_or_default();
        let pending = PendingLease {
            role: grant.role.clone(),
            identity: grant.identity(&self.settings().trust_domain, &id),
            id,
            spki_sha256: csr.spki_sha256.clone(),
            door: grant.door.to_owned(),
            token: match (&grant.token, grant.jwt) {
                (Some(token), _) => Some(token.value.id.clone()),
                (None, jwt) => jwt.map(jwt::Accepted::name),
            },
            asked_by: grant.actor.clone(),
            claims: job.claims,
            ci_ref: job.ci_ref,
            created: now,
            expires: now.plus(APPROVE_WITHIN),
            decision: None,
            new: true,
        };
        self.has_room(&pending)?;
        let pending_key = key::pending(&pending.id);
        txn.absent(&pending_key).put(pending_key, record::encode(&pending));
        match (&grant.token, grant.jwt) {
            (Some(token), job) => {
                reserve(txn, token, &pending.id, &csr.spki_sha256, now);
                if let Some(job) = job {
                    self.note_exchanged(txn, job, &pending.id)?;
                }
            }
            (None, Some(accepted)) => {
                jwt::reserve(txn, accepted, &pending.id, &csr.spki_sha256, now);
            }
            (None, None) => {}
        }
        let mut event = pending.event("lease.request", &grant.actor, now);
        event.reason = Some(grant.door.to_owned());
        event.record(txn);
        failpoint::hit("pending.before_commit");
        match self.store.transact(std::mem::take(txn)).map_err(Error::from)? {
            Outcome::Committed(_) => {
                failpoint::hit("pending.after_commit");
                Err(pending.refusal())
            }
            Outcome::Conflict(_) => Ok(Approval::Again),
        }
    }

    /// A lease that waits.
    pub(super) fn waiting(&self, id: &str, now: UnixTime) -> Result<Option<PendingLease>, Error> {
        let stored = self.stored_pending(id)?.filter(|stored| now < stored.value.expires);
        Ok(stored.map(|stored| stored.value))
    }

    /// Whether one more may wait.
    fn has_room(&self, new: &PendingLease) -> Result<(), Refusal> {
        let kept = self.all_pending()?;
        let count = |counts: &dyn Fn(&PendingLease) -> bool| {
            kept.iter().filter(|(_, stored)| counts(&stored.value)).count()
        };
        if let Some((run, job)) = job_of(&new.claims, &new.ci_ref) {
            let own = |other: &PendingLease| {
                let theirs = job_of(&other.claims, &other.ci_ref);
                !other.is_denied() && theirs.is_some_and(|(r, j)| r == run && j == job)
            };
            self.job_has_room(&run, &job, count(&own))?;
        }
        let undecided = |other: &PendingLease| other.decision.is_none();
        let of_role = count(&|other| undecided(other) && other.role == new.role);
        let of_identity = count(&|other| undecided(other) && other.identity == new.identity);
        let all = count(&undecided);
        if of_role < MAX_OF_ROLE
            && of_identity < MAX_OF_IDENTITY
            && all < MAX_UNDECIDED
            && kept.len() < MAX_KEPT
        {
            return Ok(());
        }
        self.note_limit(LimitKind::Waiting);
        Err(Refusal::new(
            RefusalCode::TooManyWaiting,
            format!(
                "{of_role} leases of role {} wait for an operator already, {of_identity} of them \
                 of {}, and {all} in all: decide about them, see runnel lease pending",
                new.role, new.identity
            ),
        )
        .after(Duration::from_secs(60)))
    }

    /// What the holder of a credential for a lease that waits is told.
    pub(super) fn pending_refusal(
        &self,
        id: &str,
        now: UnixTime,
    ) -> Result<Option<Refusal>, Error> {
        Ok(self.waiting(id, now)?.map(PendingLease::refusal))
    }

    /// Forgets requests whose time is over.
    pub(crate) fn sweep_pending(&self, now: UnixTime) -> Result<(), Error> {
        for (pending_key, stored) in self.all_pending()? {
            if now < stored.value.expires {
                continue;
            }
            let mut txn = Txn::new();
            txn.at(&pending_key, stored.revision).delete(pending_key);
            let why = match &stored.value.decision {
                None => Some("not_approved"),
                Some(Decision { approved: true, .. }) => Some("not_collected"),
                // Its end is on record.
                Some(_) => None,
            };
            if let Some(why) = why {
                let event = stored.value.event("lease.expire", &Actor::System, now);
                event.reason(why).record(&mut txn);
            }
            // A conflict: somebody else has done it.
            self.store.transact(txn)?;
        }
        Ok(())
    }

    fn stored_pending(&self, id: &str) -> Result<Option<Stored<PendingLease>>, Error> {
        record::read(self.store.as_ref(), &key::pending(id))
    }

    /// All on record; at most [`MAX_KEPT`].
    pub(super) fn all_pending(&self) -> Result<Vec<(String, Stored<PendingLease>)>, Error> {
        store::scan(self.store.as_ref(), key::PENDING)?
            .into_iter()
            .map(|(key, entry)| {
                let stored = record::decode(&key, &entry)?;
                Ok((key, stored))
            })
            .collect()
    }
}

fn open(id: Option<String>) -> Result<Approval, Refusal> {
    Ok(Approval::Open(id))
}
