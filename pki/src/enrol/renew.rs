//! Renewing leases: another certificate for the same names, in one transaction with what it means.

use std::net::IpAddr;

use super::jwt::provenance;
use super::open::{lease_cert, put_certificate, refused_by};
use super::token::REPLAY_WINDOW;
use super::{Enrolled, Refusal, RefusalCode, own};
use crate::audit::{Actor, AuditEvent};
use crate::authority::Authority;
use crate::bar::Barred;
use crate::csr::Csr;
use crate::error::Error;
use crate::failpoint;
use crate::issue::{BACKDATE, CertRecord};
use crate::lease::book::move_deadline;
use crate::lease::state;
use crate::lease::{Lease, LeaseEvent, transition};
use crate::record::{self, Stored, key};
use crate::store::{Outcome, Txn};
use crate::time::UnixTime;
use crate::validate::VerifiedPeer;

/// How often a renewal is tried again when another writer was faster.
const ATTEMPTS: usize = 64;
/// Valid certificates of a lease before its latest one is half over: what was enrolled with, and
/// one renewal at any time (some clients renew to a key of their own right after enrolment).
const EARLY_CERTS: usize = 2;
/// Valid certificates of a lease at any time: each must be revocable, and is a line of the CRL then.
const MAX_CERTS: usize = 4;

impl Authority {
    /// Issues another certificate for the lease that a client certificate belongs to. The key
    /// may change (RFC 7030 4.2.2); the names do not.
    ///
    /// A lease whose latest certificate is not half over is renewed once ahead of time and then no
    /// more; the key of that certificate gets it again for [`REPLAY_WINDOW`].
    ///
    /// # Errors
    /// [`RefusalCode::CertificateUnusable`], [`RefusalCode::LeaseEnded`] or
    /// [`RefusalCode::RenewalTooEarly`] with the reason.
    pub fn renew(
        &self,
        peer: &VerifiedPeer,
        csr: &Csr,
        client: Option<IpAddr>,
        now: UnixTime,
    ) -> Result<Enrolled, Refusal> {
        let actor = client.map_or(Actor::System, Actor::Peer);
        let unusable = |detail: String| Refusal::new(RefusalCode::CertificateUnusable, detail);
        for _ in 0..ATTEMPTS {
            let cert_key = key::cert(&peer.issuer_id, &peer.serial);
            let certificate = record::read::<CertRecord>(self.store.as_ref(), &cert_key)
                .map_err(Refusal::from)?
                .map(|stored| stored.value)
                .filter(|certificate| certificate.spki_sha256 == peer.spki_sha256);
            let lease_id =
                certificate.as_ref().and_then(|certificate| certificate.lease_id.clone());
            let (Some(certificate), Some(lease_id)) = (certificate, lease_id) else {
                return Err(unusable(format!(
                    "certificate {} belongs to no lease: enrol with a token",
                    peer.serial
                )));
            };
            let stored = self.stored_lease(&lease_id)?.ok_or_else(|| {
                unusable(format!("lease {lease_id} is not on record: enrol with a token"))
            })?;
            if certificate.revoked.is_some() && stored.value.state.is_live() {
                return Err(unusable(format!(
                    "certificate {} of lease {lease_id} is revoked: enrol with a token",
                    peer.serial
                )));
            }
            own::refuse_replaced(&stored.value, peer, Some(&csr.spki_sha256), now)?;
            if let Some(enrolled) = self.renew_lease(&stored, csr, &actor, now)? {
                return Ok(enrolled);
            }
        }
        Err(Error::Contended("the renewal").into())
    }

    /// `None` when another writer was faster.
    pub(super) fn renew_lease(
        &self,
        stored: &Stored<Lease>,
        csr: &Csr,
        actor: &Actor,
        now: UnixTime,
    ) -> Result<Option<Enrolled>, Refusal> {
        self.may_certify()?;
        let before = &stored.value;
        let settings = self.settings();
        let ended = |error: Error| Refusal::new(RefusalCode::LeaseEnded, error.to_string());
        state::renewable(before, now, &settings.timers).map_err(ended)?;
        let profile = settings.roles.get(&before.role).ok_or_else(|| {
            Refusal::new(
                RefusalCode::UnknownRole,
                format!("role {} is not configured any more: add it or use another", before.role),
            )
        })?;
        profile.check_key(&before.role, csr.key)?;
        let names = profile.names(
            &settings.trust_domain,
            (&before.id, before.dns_name.clone(), before.identity.clone()),
            &before.addresses,
            provenance::claims(&before.claims, &before.ci_ref),
        );
        profile.check_names(&before.role, csr, &names)?;
        if let Some(certificate) = self.renewed_lately(before, csr, now)? {
            return Ok(Some(Enrolled {
                lease: before.clone(),
                not_after: certificate.not_after,
                certificate: certificate.der,
                replayed: true,
            }));
        }
        let mut txn = Txn::new();
        if let Some(bar) = self.unless_barred(&mut txn, &[Barred::Key(csr.spki_sha256.clone())])? {
            return Err(refused_by(&bar));
        }
        let id = Some(before.id.as_str());
        let certificate = self.sign_client(&names, csr, profile.ttl, before.hard_cap, id, now)?;
        let event = LeaseEvent::Renewed(certificate.not_after);
        let mut lease = transition(before, &event, now, &settings.timers).map_err(ended)?.lease;
        lease.certs.push(lease_cert(&certificate));
        lease.spki_sha256 = csr.spki_sha256.clone();
        lease.subject = certificate.subject.clone();

        let lease_key = key::lease(&lease.id);
        txn.at(&lease_key, stored.revision).put(lease_key, record::encode(&lease));
        move_deadline(&mut txn, before, &lease);
        put_certificate(&mut txn, &certificate, &lease.id);
        AuditEvent::new("lease.renew", actor, now)
            .lease(&lease)
            .serial(&certificate.serial)
            .record(&mut txn);
        failpoint::hit("renew.before_commit");
        match self.store.transact(txn).map_err(Error::from)? {
            Outcome::Committed(_) => {
                failpoint::hit("renew.after_commit");
                let not_after = certificate.not_after;
                let certificate = certificate.der;
                Ok(Some(Enrolled { lease, certificate, not_after, replayed: false }))
            }
            Outcome::Conflict(_) => Ok(None),
        }
    }

    /// Whether a lease is to get another certificate: `None` when it is, or the latest one when the
    /// same key asks again for a lost answer.
    ///
    /// Each renewal is a signature, a commit and a certificate to revoke later: without a bound a
    /// single client could grow the store and the CRL without end.
    fn renewed_lately(
        &self,
        lease: &Lease,
        csr: &Csr,
        now: UnixTime,
    ) -> Result<Option<CertRecord>, Refusal> {
        let valid = lease.certs.iter().filter(|cert| cert.not_after > now).count();
        let Some(latest) = lease.cert().filter(|_| valid >= EARLY_CERTS) else {
            return Ok(None);
        };
        let cert_key = key::cert(&latest.issuer, &latest.serial);
        let Some(latest) = record::read::<CertRecord>(self.store.as_ref(), &cert_key)? else {
            return Ok(None);
        };
        let latest = latest.value;
        let issued = latest.not_before.plus(BACKDATE);
        let mut renewable = issued.plus(latest.not_after.since(issued) / 2);
        if valid >= MAX_CERTS {
            let ends = lease.certs.iter().map(|cert| cert.not_after).filter(|end| *end > now);
            renewable = renewable.max(ends.min().unwrap_or(now));
        }
        if now >= renewable {
            return Ok(None);
        }
        if latest.spki_sha256 == csr.spki_sha256 && now < issued.plus(REPLAY_WINDOW) {
            return Ok(Some(latest));
        }
        Err(Refusal::new(
            RefusalCode::RenewalTooEarly,
            format!(
                "lease {} was renewed at {issued} and has {valid} valid certificates: renew from \
                 {renewable} on",
                lease.id
            ),
        )
        .after(renewable.since(now)))
    }
}
