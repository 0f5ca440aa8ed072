//! Revocation records: durable, keyed by issuer and serial, never by certificate hash.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::audit::{Actor, AuditEvent};
use crate::authority::Authority;
use crate::error::Error;
use crate::failpoint;
use crate::issue::CertRecord;
use crate::lease::book::{ATTEMPTS, Step};
use crate::lease::{LeaseChange, LeaseEvent};
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
}

/// What a revocation did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RevokeOutcome {
    /// The serials that are revoked now, by this or an earlier call.
    pub serials: Vec<Serial>,
    /// How many of them this call revoked.
    pub revoked_now: usize,
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
    /// Revokes certificates and ends their lease, durably, before it returns. The caller then
    /// ends the tunnels of the returned changes. Repeating it changes nothing.
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
        let mut outcome =
            RevokeOutcome { serials: Vec::new(), revoked_now: 0, changes: Vec::new() };
        let lease_ids = match selector {
            RevokeSelector::Lease(id) => vec![id.clone()],
            RevokeSelector::Spki(hash) => {
                let leases = self.leases_by_spki(hash)?;
                if leases.is_empty() {
                    return Err(Error::not_found("lease of key", hash));
                }
                leases.into_iter().map(|lease| lease.id).collect()
            }
            RevokeSelector::Serial(serial) => {
                let record = self
                    .certificate(serial)?
                    .ok_or_else(|| Error::not_found("certificate", serial))?;
                match record.lease_id {
                    Some(lease_id) => vec![lease_id],
                    None => {
                        let issuer = record.issuer;
                        outcome.revoked_now =
                            self.revoke_bare(&issuer, serial, reason, actor, now)?;
                        outcome.serials.push(serial.clone());
                        Vec::new()
                    }
                }
            }
        };
        for id in lease_ids {
            let event = LeaseEvent::Revoke { actor: actor.clone() };
            let step = Step { action: "lease.revoke", reason: Some(reason.name().to_owned()) };
            let moved = self.move_lease(&id, &event, reason, actor, &step, now)?;
            outcome.revoked_now += moved.revoked;
            outcome.serials.extend(moved.change.lease.certs.iter().map(|c| c.serial.clone()));
            outcome.changes.push(moved.change);
        }
        Ok(outcome)
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
