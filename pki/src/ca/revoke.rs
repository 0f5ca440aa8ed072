//! What our roots certified, on record like every certificate, and its revocation.

use std::time::Duration;

use super::Ca;
use crate::audit::Actor;
use crate::authority::Authority;
use crate::error::Error;
use crate::issue::CertRecord;
use crate::lease::{Lease, LeaseCert};
use crate::record::{self, key};
use crate::revoke::{Order, RevocationReason, RevokeOutcome};
use crate::store::Txn;
use crate::time::UnixTime;

impl Authority {
    /// Puts on record what [`put_cas_on_record`](Self::put_cas_on_record) would: for states of
    /// versions that did not.
    pub(crate) fn record_cas(&self) -> Result<(), Error> {
        let mut txn = Txn::new();
        self.put_cas_on_record(&self.ca(), &mut txn)?;
        if !txn.ops.is_empty() {
            // A conflict means that another process has just done it.
            self.store.transact(txn)?;
        }
        Ok(())
    }

    /// Puts the issuing CAs and cross certificates of our roots on record, where they are not yet:
    /// the roots' lists and OCSP answers are made from it.
    pub(super) fn put_cas_on_record(&self, ca: &Ca, txn: &mut Txn) -> Result<(), Error> {
        let issuing = ca.issuing.iter().map(|issuing| &issuing.der);
        for der in issuing.chain(ca.roots.iter().flat_map(|root| &root.cross)) {
            let certificate = CertRecord::from_der(der.clone(), None)?;
            // A root that is kept elsewhere keeps its own record.
            if ca.root_of(&certificate.issuer).is_none_or(|root| root.offline) {
                continue;
            }
            let cert_key = key::cert(&certificate.issuer, &certificate.serial);
            if self.store.get(&cert_key)?.is_none() {
                txn.absent(&cert_key).put(cert_key, record::encode(&certificate));
            }
        }
        Ok(())
    }

    /// Revokes an issuing CA that issues no more, by its name in URLs: its root's list and OCSP say
    /// so, leases that have nothing but its certificates end, and it goes at once, with no time for
    /// what it issued. The caller then ends the tunnels of the returned changes. Repeat it when it
    /// fails half-way; the CA goes last.
    ///
    /// # Errors
    /// [`Error::Invalid`] for the CA that issues now and for roots; [`Error::NotFound`].
    pub fn ca_revoke(
        &self,
        place: &str,
        reason: RevocationReason,
        actor: &Actor,
        now: UnixTime,
    ) -> Result<RevokeOutcome, Error> {
        let ca = self.ca();
        let Some(issuing) = ca.issuing.iter().find(|issuing| issuing.place == place) else {
            if ca.roots.iter().any(|root| root.place == place) {
                return Err(Error::Invalid(format!(
                    "{place} is a root, and nobody stands above it to revoke it: bring in another \
                     with `runnel ca rotate --root`, then `runnel ca retire`"
                )));
            }
            return Err(Error::not_found("issuing CA", place));
        };
        if issuing.id == ca.current().id {
            return Err(Error::Invalid(format!(
                "{place} is the CA that issues: let another issue first with `runnel ca rotate`, \
                 then revoke {place}"
            )));
        }
        let certificate = CertRecord::from_der(issuing.der.clone(), None)?;
        if ca.root_of(&certificate.issuer).is_none_or(|root| root.offline) {
            return Err(Error::Invalid(format!(
                "{place} is below a root that is kept elsewhere: have it revoked there and bring \
                 the list in with `runnel ca import --crl FILE`"
            )));
        }
        self.record_cas()?;
        let order = Order { reason, actor, now };
        let revoked_now = self.revoke_bare(&certificate.issuer, &certificate.serial, &order)?;
        let serials = vec![certificate.serial];
        let mut outcome = RevokeOutcome { serials, revoked_now, ..RevokeOutcome::default() };
        let gone = self.end_leases_of(&issuing.id, &order, &mut outcome).and_then(|()| {
            self.change_ca("ca.revoke", actor, now, |record, _| {
                let ended = now.minus(Duration::from_micros(1));
                for issuing in record.issuing.iter_mut().filter(|one| one.place == place) {
                    issuing.ends = Some(ended);
                }
                record.prune(now).map(drop)
            })
        });
        outcome.failed = gone.err();
        Ok(outcome)
    }

    /// Whether every certificate of a lease that has not run out is of an issuing CA that is good. A
    /// tunnel may have been made with any of them, and what ends the tunnels of a CA may have been
    /// interrupted.
    pub fn certificates_hold(&self, lease: &Lease, now: UnixTime) -> bool {
        let ca = self.ca();
        let good = |issuer: &str| ca.issuing.iter().any(|one| one.id == issuer && !one.listed);
        lease.certs.iter().filter(|cert| cert.not_after > now).all(|cert| good(&cert.issuer))
    }

    /// Its certificates are good no more, whoever looks at them: leases that have no later one end.
    /// Those that have one live on, and their clients connect again with it, because a tunnel may
    /// have been made with one of this CA.
    pub(super) fn end_leases_of(
        &self,
        issuer_id: &str,
        order: &Order<'_>,
        outcome: &mut RevokeOutcome,
    ) -> Result<(), Error> {
        let mut leases = self.leases(false)?;
        let holds = |cert: &LeaseCert| cert.issuer == issuer_id && cert.not_after > order.now;
        let has_only =
            |lease: &Lease| lease.certs.last().is_some_and(|cert| cert.issuer == issuer_id);
        leases.retain(|lease| has_only(lease) || lease.certs.iter().any(holds));
        let (ended, renewed): (Vec<Lease>, Vec<Lease>) = leases.into_iter().partition(has_only);
        outcome.renewed.extend(renewed);
        if ended.is_empty() {
            return Ok(());
        }
        self.revoke_in_parts(&ended, &[], order, outcome)
    }
}
