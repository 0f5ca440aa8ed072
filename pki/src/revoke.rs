//! Revocation records: durable, keyed by issuer and serial, never by certificate hash.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::audit::{Actor, AuditEvent};
use crate::authority::Authority;
use crate::enrol::KeyHolder;
use crate::enrol::token::normal_hash;
use crate::error::Error;
use crate::failpoint;
use crate::issue::CertRecord;
use crate::lease::book::{ATTEMPTS, Step};
use crate::lease::{Lease, LeaseChange, LeaseEvent};
use crate::record::{self, key};
use crate::serial::Serial;
use crate::store::{Outcome, Txn};
use crate::time::UnixTime;

/// Why a certificate is revoked (RFC 5280 5.3.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RevocationReason {
    /// No reason given.
    #[default]
    Unspecified,
    /// The private key is known to others.
    KeyCompromise,
    /// The holder's role changed.
    AffiliationChanged,
    /// Another certificate replaces it.
    Superseded,
    /// The workload is done.
    CessationOfOperation,
    /// The right to it was withdrawn.
    PrivilegeWithdrawn,
}

impl RevocationReason {
    /// The name on command lines and in listings.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unspecified => "unspecified",
            Self::KeyCompromise => "key-compromise",
            Self::AffiliationChanged => "affiliation-changed",
            Self::Superseded => "superseded",
            Self::CessationOfOperation => "cessation-of-operation",
            Self::PrivilegeWithdrawn => "privilege-withdrawn",
        }
    }
}

impl fmt::Display for RevocationReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for RevocationReason {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const ALL: [RevocationReason; 6] = [
            RevocationReason::Unspecified,
            RevocationReason::KeyCompromise,
            RevocationReason::AffiliationChanged,
            RevocationReason::Superseded,
            RevocationReason::CessationOfOperation,
            RevocationReason::PrivilegeWithdrawn,
        ];
        let wanted = text.to_ascii_lowercase().replace('_', "-");
        ALL.into_iter().find(|reason| reason.name() == wanted).ok_or_else(|| {
            let names = ALL.map(RevocationReason::name).join(", ");
            Error::Invalid(format!("unknown reason {text:?}: use one of {names}"))
        })
    }
}

/// The record of a revocation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revocation {
    /// When.
    pub at: UnixTime,
    /// Why.
    pub reason: RevocationReason,
    /// Who.
    pub actor: Actor,
}

/// What to revoke.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RevokeSelector {
    /// One certificate of the embedded CA, and its lease.
    Serial(Serial),
    /// A lease with all its certificates.
    Lease(String),
    /// All leases of a public key (SHA-256, hexadecimal).
    Spki(String),
    /// All live leases whose identity begins so.
    Identity(String),
    /// All live leases of a role.
    Role(String),
    /// All live leases of a CI run, by its id or address.
    Run(String),
    /// All live leases that a token of this issuer opened, by its name or URL.
    Issuer(String),
}

impl RevokeSelector {
    /// Whether a lease is meant; for those selectors that say so of each lease.
    fn matches(&self, lease: &Lease) -> bool {
        let is = |found: Option<&String>, wanted: &String| found == Some(wanted);
        match self {
            Self::Identity(prefix) => lease.identity.starts_with(prefix.as_str()),
            Self::Role(role) => lease.role == *role,
            Self::Run(run) => {
                let job = &lease.ci_ref;
                is(job.run_id.as_ref(), run) || is(job.run_url.as_ref(), run)
            }
            Self::Issuer(issuer) => {
                is(lease.claims.get("issuer"), issuer) || is(lease.claims.get("iss"), issuer)
            }
            Self::Serial(_) | Self::Lease(_) | Self::Spki(_) => false,
        }
    }
}

impl fmt::Display for RevokeSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Serial(serial) => write!(f, "serial {serial}"),
            Self::Lease(id) => write!(f, "lease {id}"),
            Self::Spki(hash) => write!(f, "key {hash}"),
            Self::Identity(prefix) => write!(f, "identity {prefix}..."),
            Self::Role(role) => write!(f, "role {role}"),
            Self::Run(run) => write!(f, "run {run}"),
            Self::Issuer(issuer) => write!(f, "issuer {issuer}"),
        }
    }
}

/// What a revocation did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RevokeOutcome {
    /// The serials that are revoked now, by this or an earlier call.
    pub serials: Vec<Serial>,
    /// How many of them this call revoked.
    pub revoked_now: usize,
    /// Names of clients and sites without a certificate of ours that are barred now, by this call.
    pub barred: Vec<String>,
    /// The leases concerned; end the tunnels of those that say so.
    pub changes: Vec<LeaseChange>,
}

/// An entry of the index that revocation lists are made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RevokedEntry {
    pub(crate) serial: Serial,
    pub(crate) at: UnixTime,
    pub(crate) reason: RevocationReason,
    /// After this instant the entry leaves the list.
    pub(crate) not_after: UnixTime,
}

impl Authority {
    /// The leases a selector means: for a lease, certificate or key also those that have ended,
    /// otherwise the live ones.
    ///
    /// # Errors
    /// When the store fails.
    pub fn select(&self, selector: &RevokeSelector) -> Result<Vec<Lease>, Error> {
        match selector {
            RevokeSelector::Lease(id) => Ok(self.lease(id)?.into_iter().collect()),
            RevokeSelector::Serial(serial) => {
                Ok(self.lease_by_serial(None, serial)?.into_iter().collect())
            }
            RevokeSelector::Spki(hash) => {
                let hash = normal_hash(hash)?;
                let mut leases = self.leases_by_spki(&hash)?;
                // Clients of external CAs and sites enrol nowhere, so no index knows their keys.
                let known: BTreeSet<String> = leases.iter().map(|lease| lease.id.clone()).collect();
                let others = self.leases(false)?.into_iter();
                leases.extend(
                    others.filter(|lease| lease.spki_sha256 == hash && !known.contains(&lease.id)),
                );
                Ok(leases)
            }
            _ => {
                let mut leases = self.leases(false)?;
                leases.retain(|lease| selector.matches(lease));
                Ok(leases)
            }
        }
    }

    /// Revokes certificates and ends their leases, all in one durable transaction, before it
    /// returns. The caller then ends the tunnels of the returned changes. Repeating it changes
    /// nothing.
    ///
    /// A client with a shared key or a certificate of somebody else, and a site, is barred until it
    /// has another key (a site: until it is allowed again), also when its lease had ended before.
    ///
    /// # Errors
    /// [`Error::NotFound`] when nothing matches.
    pub fn revoke(
        &self,
        selector: &RevokeSelector,
        reason: RevocationReason,
        actor: &Actor,
        now: UnixTime,
    ) -> Result<RevokeOutcome, Error> {
        for _ in 0..ATTEMPTS {
            let leases = self.select(selector)?;
            if leases.is_empty() {
                return self.revoke_alone(selector, reason, actor, now);
            }
            if let Some(outcome) = self.revoke_together(&leases, reason, actor, now)? {
                return Ok(outcome);
            }
        }
        Err(Error::Contended("the revocation"))
    }

    /// A certificate without a lease, like the gateway's own.
    fn revoke_alone(
        &self,
        selector: &RevokeSelector,
        reason: RevocationReason,
        actor: &Actor,
        now: UnixTime,
    ) -> Result<RevokeOutcome, Error> {
        let RevokeSelector::Serial(serial) = selector else {
            return Err(Error::not_found("lease matches", selector));
        };
        let record =
            self.certificate(serial)?.ok_or_else(|| Error::not_found("certificate", serial))?;
        let revoked_now = self.revoke_bare(&record.issuer, serial, reason, actor, now)?;
        let serials = vec![serial.clone()];
        Ok(RevokeOutcome { serials, revoked_now, barred: Vec::new(), changes: Vec::new() })
    }

    /// `None` when one of them moved meanwhile and all must be looked at again.
    fn revoke_together(
        &self,
        leases: &[Lease],
        reason: RevocationReason,
        actor: &Actor,
        now: UnixTime,
    ) -> Result<Option<RevokeOutcome>, Error> {
        let event = LeaseEvent::Revoke { actor: actor.clone() };
        let step = Step { action: "lease.revoke", reason: Some(reason.name().to_owned()) };
        let mut outcome = RevokeOutcome {
            serials: Vec::new(),
            revoked_now: 0,
            barred: Vec::new(),
            changes: Vec::new(),
        };
        let mut txn = Txn::new();
        let mut plans = Vec::with_capacity(leases.len());
        for lease in leases {
            let plan = self.plan(&mut txn, &lease.id, &event, reason, actor, &step, now)?;
            plans.push(plan);
        }
        outcome.barred = self.plan_bars(&mut txn, leases, actor, now)?;
        if !txn.ops.is_empty() && !self.commit(txn, step.action)? {
            return Ok(None);
        }
        for plan in plans {
            self.settle(&plan, now);
            outcome.revoked_now += plan.moved.revoked;
            outcome.serials.extend(plan.moved.change.lease.certs.iter().map(|c| c.serial.clone()));
            outcome.changes.push(plan.moved.change);
        }
        Ok(Some(outcome))
    }

    /// Bars those who open leases by themselves; the names of those who were not barred before.
    fn plan_bars(
        &self,
        txn: &mut Txn,
        leases: &[Lease],
        actor: &Actor,
        now: UnixTime,
    ) -> Result<Vec<String>, Error> {
        let holders = leases.iter().filter(|lease| KeyHolder::opens(&lease.door));
        let holders = holders.map(|lease| lease.id.as_str()).collect();
        let holders = self.bar_holders(txn, &holders, now)?;
        let mut names = Vec::new();
        for lease in leases {
            let name = match lease.site() {
                Some(site) if self.bar_site(txn, site, &lease.id, now)? => site,
                None if holders.contains(&lease.id) => &lease.subject,
                _ => continue,
            };
            AuditEvent::new("key.bar", actor, now).lease(lease).object(name).record(txn);
            names.push(name.to_owned());
        }
        Ok(names)
    }

    /// Revokes a certificate that belongs to no lease; says how many it revoked.
    fn revoke_bare(
        &self,
        issuer: &str,
        serial: &Serial,
        reason: RevocationReason,
        actor: &Actor,
        now: UnixTime,
    ) -> Result<usize, Error> {
        for _ in 0..ATTEMPTS {
            let mut txn = Txn::new();
            let revoked = self.plan_revocation(&mut txn, issuer, serial, reason, actor, now)?;
            if revoked == 0 {
                return Ok(0);
            }
            failpoint::hit("revoke.before_commit");
            if let Outcome::Committed(_) = self.store.transact(txn)? {
                failpoint::hit("revoke.after_commit");
                return Ok(revoked);
            }
        }
        Err(Error::Contended("the revocation"))
    }

    /// Adds one certificate's revocation to a transaction; 0 when it is revoked already.
    pub(crate) fn plan_revocation(
        &self,
        txn: &mut Txn,
        issuer: &str,
        serial: &Serial,
        reason: RevocationReason,
        actor: &Actor,
        now: UnixTime,
    ) -> Result<usize, Error> {
        let cert_key = key::cert(issuer, serial);
        let Some(stored) = record::read::<CertRecord>(self.store.as_ref(), &cert_key)? else {
            return Ok(0);
        };
        let mut certificate = stored.value;
        if certificate.revoked.is_some() {
            return Ok(0);
        }
        certificate.revoked = Some(Revocation { at: now, reason, actor: actor.clone() });
        let entry = RevokedEntry {
            serial: serial.clone(),
            at: now,
            reason,
            not_after: certificate.not_after,
        };
        txn.at(&cert_key, stored.revision)
            .put(cert_key, record::encode(&certificate))
            .put(key::revoked(issuer, serial), record::encode(&entry))
            .put(key::crl_trigger(issuer), Vec::new());
        let mut event = AuditEvent::new("cert.revoke", actor, now).serial(serial).reason(reason);
        event.lease_id = certificate.lease_id;
        event.spki_sha256 = Some(certificate.spki_sha256);
        event.record(txn);
        Ok(1)
    }
}
