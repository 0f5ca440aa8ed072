//! Opening leases: one transaction each, with everything that belongs to it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::approval::Approval;
use super::jwt::{Accepted, provenance};
use super::token::{Presented, Presenter, Token, TokenSpend};
use super::{Enrolled, Refusal, RefusalCode, shown};
use crate::audit::{Actor, AuditEvent};
use crate::authority::{Authority, lock};
use crate::bar::{self, Bar, Barred};
use crate::csr::Csr;
use crate::entropy::random_text;
use crate::error::Error;
use crate::failpoint;
use crate::issue::{self, BACKDATE, CertRecord, ClientNames, Terms};
use crate::lease::book::{job_of, put_live};
use crate::lease::pool::AddressRecord;
use crate::lease::state;
use crate::lease::{CiRef, Lease, LeaseCert, LeaseState};
use crate::record::{self, Stored, key};
use crate::serial::Serial;
use crate::store::{Outcome, Txn};
use crate::time::UnixTime;

/// How often an enrolment is tried again when another writer was faster.
const ATTEMPTS: usize = 64;
/// The audit trail's reason for leases whose key was made here.
const SERVER_KEY: &str = "server_keygen";
/// Random characters of a lease id: 50 bits.
pub(super) const LEASE_ID_LEN: usize = 10;

/// What a proof of entitlement grants, whichever door it came through.
pub(super) struct Grant<'a> {
    pub(super) role: String,
    pub(super) door: &'static str,
    pub(super) token: Option<Stored<Token>>,
    pub(super) jwt: Option<&'a Accepted>,
    /// The lease it was reserved for, until an operator approves.
    pub(super) reserved: Option<String>,
    pub(super) actor: Actor,
}

impl<'a> Grant<'a> {
    /// Of a one-time token, with the job it was given to.
    pub(super) fn of_token(
        token: Stored<Token>,
        job: Option<&'a Accepted>,
        reserved: Option<String>,
        actor: Actor,
    ) -> Self {
        Self {
            role: token.value.role.clone(),
            door: if job.is_some() { "exchange" } else { "token" },
            token: Some(token),
            jwt: job,
            reserved,
            actor,
        }
    }

    /// Of a platform's token.
    pub(super) fn of_job(job: &'a Accepted, reserved: Option<String>, actor: Actor) -> Self {
        let role = job.role.clone();
        Self { role, door: "jwt", token: None, jwt: Some(job), reserved, actor }
    }

    /// The identity of the lease of this id: that of the CI job, or one of its own.
    pub(super) fn identity(&self, domain: &str, id: &str) -> String {
        match self.jwt {
            Some(jwt) => format!("spiffe://{domain}{}", jwt.context.path),
            None => format!("spiffe://{domain}/role/{}/{id}", self.role),
        }
    }
}

impl Authority {
    /// Opens a lease with a one-time token, or repeats the answer to the same key.
    ///
    /// Spending the token, creating the lease and recording its certificate are one
    /// transaction: after a crash either all of it happened, and the same key gets the same
    /// certificate again, or nothing did.
    ///
    /// # Errors
    /// The reason, which is also written to the audit log when it concerns a known token.
    pub fn enrol_with_token(
        &self,
        role: &str,
        token: &str,
        csr: &Csr,
        client: Option<IpAddr>,
        now: UnixTime,
    ) -> Result<Enrolled, Refusal> {
        // Requests with one token take turns: all but the first would sign in vain.
        let _turn = self.token_turn(token);
        self.enrol_in_turn(role, token, csr, client, false, now)
    }

    /// The same while the token's turn is held. `counted`: the limits know of it already.
    pub(super) fn enrol_in_turn(
        &self,
        role: &str,
        token: &str,
        csr: &Csr,
        client: Option<IpAddr>,
        mut counted: bool,
        now: UnixTime,
    ) -> Result<Enrolled, Refusal> {
        let actor = client.map_or(Actor::System, Actor::Peer);
        for _ in 0..ATTEMPTS {
            let stored = self.find_token(token)?;
            let id = stored.value.id.clone();
            let presenter = Presenter { role, spki_sha256: &csr.spki_sha256, address: client, now };
            let judged = self.judge_reserved(stored, presenter);
            let (fresh, reserved) = match judged {
                Ok(Presented::Fresh(fresh)) => (fresh, None),
                Ok(Presented::Reserved(token, lease)) => (token, Some(lease)),
                Ok(Presented::Replay(lease_id)) => {
                    return self.replay(&lease_id, &csr.spki_sha256, now);
                }
                Err(refusal) => {
                    self.audit_refusal(
                        "token.use",
                        &id,
                        Some(role),
                        Some(csr),
                        &actor,
                        &refusal,
                        now,
                    )?;
                    return Err(refusal);
                }
            };
            let job = fresh.value.job.clone();
            // One that was given for a job's token counted then.
            counted |= job.is_some();
            let grant = Grant::of_token(fresh, job.as_deref(), reserved, actor.clone());
            match self.open_within_limits(&grant, &mut counted, csr, now) {
                Ok(Some(enrolled)) => return Ok(enrolled),
                Ok(None) => {}
                Err(refusal) => {
                    let role = Some(role);
                    let key = Some(csr.spki_sha256.as_str());
                    self.audit_denied(&id, role, key, &actor, &refusal, now)?;
                    return Err(refusal);
                }
            }
        }
        Err(Error::Contended("the enrolment").into())
    }

    /// The answer an earlier spend of the token got.
    pub(super) fn replay(
        &self,
        lease_id: &str,
        spki_sha256: &str,
        now: UnixTime,
    ) -> Result<Enrolled, Refusal> {
        let gone = || {
            Refusal::new(
                RefusalCode::LeaseEnded,
                format!("lease {lease_id}, which this token opened, is not on record"),
            )
        };
        let lease = self.lease(lease_id)?.ok_or_else(gone)?;
        if let Err(error) = state::renewable(&lease, now, &self.settings().timers) {
            return Err(Refusal::new(
                RefusalCode::LeaseEnded,
                format!("this token opened a lease that is over: {error}"),
            ));
        }
        // The certificate of the key that asks: a renewal may have brought another key.
        for cert in lease.certs.iter().rev() {
            let cert_key = key::cert(&cert.issuer, &cert.serial);
            let stored = record::read::<CertRecord>(self.store.as_ref(), &cert_key)?;
            if let Some(certificate) =
                stored.map(|stored| stored.value).filter(|c| c.spki_sha256 == spki_sha256)
            {
                return Ok(Enrolled {
                    lease,
                    not_after: certificate.not_after,
                    certificate: certificate.der,
                    replayed: true,
                });
            }
        }
        Err(gone())
    }

    /// Opens a lease when the limits allow one more. `counted` becomes true when it counts as
    /// opened: another attempt does not count again.
    pub(super) fn open_within_limits(
        &self,
        grant: &Grant<'_>,
        counted: &mut bool,
        csr: &Csr,
        now: UnixTime,
    ) -> Result<Option<Enrolled>, Refusal> {
        // Who asks again whether an operator has approved opens nothing yet, and no limit is about
        // that.
        if let Some(id) = &grant.reserved {
            self.approved(id, grant, csr, now)?;
        }
        // Whoever counts leases must not be overtaken by another who opens one.
        let job = grant.jwt.and_then(|jwt| job_of(&jwt.context.claims, &jwt.context.ci_ref));
        let _job = job.and_then(|(_, job)| self.job_turn(&job));
        let settings = self.settings();
        let limited = settings.roles.get(&grant.role).is_some_and(|role| role.max_leases.is_some());
        let _role = if limited { self.role_turn(&grant.role) } else { None };
        // What was reserved counted then.
        self.within_limits(grant, *counted || grant.reserved.is_some(), now)?;
        *counted = true;
        self.open_lease(grant, csr, now)
    }

    /// `None` when another writer was faster and everything must be judged again.
    fn open_lease(
        &self,
        grant: &Grant<'_>,
        csr: &Csr,
        now: UnixTime,
    ) -> Result<Option<Enrolled>, Refusal> {
        self.may_certify()?;
        let settings = self.settings();
        let profile = settings.roles.get(&grant.role).ok_or_else(|| {
            Refusal::new(
                RefusalCode::UnknownRole,
                format!("role {} is not configured any more: add it or use another", grant.role),
            )
        })?;
        profile.check_key(&grant.role, csr.key)?;
        let hard_cap = cap(grant, profile.max_lease, now)?;
        let mut txn = Txn::new();
        self.refuse_barred(&mut txn, grant, &csr.spki_sha256)?;
        let Approval::Open(reserved) = self.approval(&mut txn, grant, csr, now)? else {
            return Ok(None);
        };
        let addresses = lock(&self.addresses).reserve(&profile.pool, now)?;
        failpoint::hit("lease.after_allocation");
        let reservation = Reservation { authority: self, pool: &profile.pool, addresses };

        let id = match reserved {
            Some(id) => id,
            None => self
                .with_entropy(|entropy| Ok(format!("r-{}", random_text(entropy, LEASE_ID_LEN)?)))?,
        };
        let domain = &settings.trust_domain;
        let dns = format!("{id}.{}.runners.{domain}", grant.role);
        let uri = grant.identity(domain, &id);
        let job = grant.jwt.map(|jwt| &jwt.context);
        let said = job.map(|job| provenance::claims(&job.claims, &job.ci_ref)).unwrap_or_default();
        let names = profile.names(domain, (&id, dns, uri), &reservation.addresses, said);
        profile.check_names(&grant.role, csr, &names)?;
        let certificate = self.sign_client(&names, csr, profile.ttl, hard_cap, Some(&id), now)?;

        let mut lease = Lease {
            id: id.clone(),
            role: grant.role.clone(),
            identity: names.uri,
            subject: certificate.subject.clone(),
            dns_name: names.dns,
            spki_sha256: csr.spki_sha256.clone(),
            certs: vec![lease_cert(&certificate)],
            pool: profile.pool.clone(),
            addresses: reservation.addresses.clone(),
            created: now,
            expires: certificate.not_after,
            hard_cap,
            state: LeaseState::Issued,
            state_since: now,
            deadline: None,
            orphaned: false,
            first_connected: None,
            end: None,
            door: grant.door.to_owned(),
            token: match (&grant.token, grant.jwt) {
                (Some(token), _) => Some(token.value.id.clone()),
                (None, jwt) => jwt.map(Accepted::name),
            },
            holder: None,
            claims: grant.jwt.map(|jwt| jwt.context.claims.clone()).unwrap_or_default(),
            ci_ref: grant.jwt.map_or_else(CiRef::default, |jwt| jwt.context.ci_ref.clone()),
            policy_version: self.policy_version(),
        };
        lease.deadline = state::deadline(&lease, &settings.timers);

        if let Some(token) = &grant.token {
            spend(&mut txn, token, &lease, (csr, &grant.actor), now);
        }
        if let (Some(accepted), Some(_)) = (grant.jwt, &grant.token) {
            self.note_exchanged(&mut txn, accepted, &lease.id)?;
        } else if let Some(accepted) = grant.jwt {
            self.jwt_spent(&mut txn, accepted, &lease, csr, now)?;
            let mut event = AuditEvent::new("token.use", &grant.actor, now).lease(&lease);
            event.token = Some(accepted.name());
            event.record(&mut txn);
        }
        let lease_key = key::lease(&id);
        txn.absent(&lease_key).put(lease_key, record::encode(&lease));
        if let Some(deadline) = lease.deadline {
            txn.put(key::due(deadline, &id), Vec::new());
        }
        put_certificate(&mut txn, &certificate, &id);
        put_live(&mut txn, &lease);
        if let Some((address, resting_until)) = self.claim_addresses(&mut txn, &lease, now)? {
            drop(reservation);
            self.learn(&profile.pool, address, resting_until);
            return Ok(None);
        }
        let mut event = AuditEvent::new("lease.create", &grant.actor, now)
            .lease(&lease)
            .serial(&certificate.serial)
            .reason(if csr.made_here { SERVER_KEY } else { grant.door });
        event.token = lease.token.clone();
        event.record(&mut txn);

        failpoint::hit("enrol.before_commit");
        match self.store.transact(txn).map_err(Error::from)? {
            Outcome::Committed(_) => {
                failpoint::hit("enrol.after_commit");
                reservation.keep();
                let not_after = certificate.not_after;
                let certificate = certificate.der;
                Ok(Some(Enrolled { lease, certificate, not_after, replayed: false }))
            }
            Outcome::Conflict(_) => Ok(None),
        }
    }

    /// Refuses a barred key or CI run, which is audited; otherwise the lease is opened on condition
    /// that neither is barred meanwhile.
    pub(super) fn refuse_barred(
        &self,
        txn: &mut Txn,
        grant: &Grant<'_>,
        spki_sha256: &str,
    ) -> Result<(), Refusal> {
        let none = (BTreeMap::new(), CiRef::default());
        let (claims, job) =
            grant.jwt.map_or((&none.0, &none.1), |jwt| (&jwt.context.claims, &jwt.context.ci_ref));
        match self.unless_barred(txn, &bar::of_lease(spki_sha256, claims, job))? {
            Some(bar) => Err(refused_by(&bar)),
            None => Ok(()),
        }
    }

    pub(super) fn sign_client(
        &self,
        names: &ClientNames,
        csr: &Csr,
        ttl: std::time::Duration,
        hard_cap: UnixTime,
        lease_id: Option<&str>,
        now: UnixTime,
    ) -> Result<CertRecord, Error> {
        let ca = self.ca();
        let settings = self.settings();
        let terms = Terms {
            serial: self.with_entropy(Serial::random)?,
            not_before: now.minus(BACKDATE).floor_to_second(),
            not_after: now.plus(ttl).min(hard_cap).min(ca.current().not_after).floor_to_second(),
            status_url: settings.status_url.clone(),
        };
        let der = issue::client(ca.current().key(), names, &terms, &csr.spki)?;
        failpoint::hit("enrol.after_signing");
        CertRecord::from_der(der, lease_id.map(str::to_owned))
    }

    /// Conditions the transaction on the addresses being free; returns the first one that is
    /// not, with the end of its rest.
    pub(super) fn claim_addresses(
        &self,
        txn: &mut Txn,
        lease: &Lease,
        now: UnixTime,
    ) -> Result<Option<(IpAddr, Option<UnixTime>)>, Error> {
        for address in &lease.addresses {
            let address_key = key::address(&lease.pool, *address);
            match record::read::<AddressRecord>(self.store.as_ref(), &address_key)? {
                None => txn.absent(&address_key),
                Some(stored) => match stored.value.resting_until {
                    Some(until) if until <= now => txn.at(&address_key, stored.revision),
                    occupied => return Ok(Some((*address, occupied))),
                },
            };
            let held = AddressRecord { lease: lease.id.clone(), resting_until: None };
            txn.put(address_key, record::encode(&held));
        }
        Ok(None)
    }

    /// Corrects the address book after another process was faster.
    pub(super) fn learn(&self, pool: &str, address: IpAddr, resting_until: Option<UnixTime>) {
        let mut book = lock(&self.addresses);
        match resting_until {
            Some(until) => book.rest(pool, address, until),
            None => book.take(pool, address),
        }
    }

    /// Audits a refusal that a bar or a limit made; others are for those who know them to audit.
    pub(super) fn audit_denied(
        &self,
        token: &str,
        role: Option<&str>,
        spki_sha256: Option<&str>,
        actor: &Actor,
        refusal: &Refusal,
        now: UnixTime,
    ) -> Result<(), Error> {
        let denied = matches!(
            refusal.code,
            RefusalCode::KeyBarred
                | RefusalCode::RunBarred
                | RefusalCode::TooManyLeases
                | RefusalCode::TooManyRequests
                | RefusalCode::TooManyWaiting
                | RefusalCode::TokenWrongRole
                | RefusalCode::TokenBoundElsewhere
        );
        if !denied {
            return Ok(());
        }
        self.audit_refusal_of("token.use", token, role, spki_sha256, actor, refusal, now)
    }

    #[allow(clippy::too_many_arguments)]
    pub(super) fn audit_refusal(
        &self,
        action: &str,
        token: &str,
        role: Option<&str>,
        csr: Option<&Csr>,
        actor: &Actor,
        refusal: &Refusal,
        now: UnixTime,
    ) -> Result<(), Error> {
        let key = csr.map(|csr| csr.spki_sha256.as_str());
        self.audit_refusal_of(action, token, role, key, actor, refusal, now)
    }

    #[allow(clippy::too_many_arguments)]
    pub(super) fn audit_refusal_of(
        &self,
        action: &str,
        token: &str,
        role: Option<&str>,
        spki_sha256: Option<&str>,
        actor: &Actor,
        refusal: &Refusal,
        now: UnixTime,
    ) -> Result<(), Error> {
        let peer = match actor {
            Actor::Peer(address) => Some(*address),
            Actor::System | Actor::Uid(_) => None,
        };
        let Some(left_out) = lock(&self.refused).count(token, peer, now) else {
            return Ok(());
        };
        let mut event = AuditEvent::new(action, actor, now).refused(refusal.code.name());
        event.token = Some(token.to_owned());
        event.role = role.map(|role| shown(role).to_owned());
        event.spki_sha256 = spki_sha256.map(str::to_owned);
        event.left_out = (left_out > 0).then_some(left_out);
        self.record_audit(&event)
    }
}

/// No renewal reaches past this: the role's longest lease, or the end of the job where its token
/// tells it.
fn cap(
    grant: &Grant<'_>,
    max_lease: std::time::Duration,
    now: UnixTime,
) -> Result<UnixTime, Refusal> {
    let ends = grant.jwt.and_then(|jwt| jwt.job_ends);
    if let Some(ends) = ends.filter(|ends| *ends <= now) {
        return Err(Refusal::new(
            RefusalCode::JwtExpired,
            format!("the job of the token ended at {ends} at the latest: start it again"),
        ));
    }
    let cap = now.plus(max_lease);
    Ok(ends.map_or(cap, |ends| ends.min(cap)))
}

/// Addresses proposed by the book; given back unless the transaction was committed.
pub(super) struct Reservation<'a> {
    pub(super) authority: &'a Authority,
    pub(super) pool: &'a str,
    pub(super) addresses: Vec<IpAddr>,
}

impl Reservation<'_> {
    pub(super) fn keep(mut self) {
        self.addresses.clear();
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        lock(&self.authority.addresses).unreserve(self.pool, &self.addresses);
    }
}

fn spend(
    txn: &mut Txn,
    stored: &Stored<Token>,
    lease: &Lease,
    (csr, actor): (&Csr, &Actor),
    now: UnixTime,
) {
    let mut token = stored.value.clone();
    // What was reserved for it becomes its spend.
    token.spends.retain(|spend| spend.lease_id != lease.id);
    token.spends.push(TokenSpend {
        at: now,
        pending: false,
        spki_sha256: lease.spki_sha256.clone(),
        lease_id: lease.id.clone(),
        made_here: csr.made_here,
    });
    let token_key = key::token(&token.id);
    txn.at(&token_key, stored.revision).put(token_key, record::encode(&token));
    let mut event = AuditEvent::new("token.use", actor, now).lease(lease);
    event.token = Some(token.id);
    event.record(txn);
}

/// Reserves a token for a lease that waits for an operator.
pub(super) fn reserve(
    txn: &mut Txn,
    stored: &Stored<Token>,
    lease_id: &str,
    spki_sha256: &str,
    now: UnixTime,
) {
    let mut token = stored.value.clone();
    token.spends.push(TokenSpend {
        at: now,
        spki_sha256: spki_sha256.to_owned(),
        lease_id: lease_id.to_owned(),
        made_here: false,
        pending: true,
    });
    let token_key = key::token(&token.id);
    txn.at(&token_key, stored.revision).put(token_key, record::encode(&token));
}

pub(super) fn put_certificate(txn: &mut Txn, certificate: &CertRecord, lease_id: &str) {
    let cert_key = key::cert(&certificate.issuer, &certificate.serial);
    txn.absent(&cert_key)
        .put(cert_key, record::encode(certificate))
        .put(key::spki(&certificate.spki_sha256, lease_id), Vec::new());
}

/// What a bar means for an enrolment.
pub(super) fn refused_by(bar: &Bar) -> Refusal {
    let code = match bar.what {
        Barred::Run(_) => RefusalCode::RunBarred,
        _ => RefusalCode::KeyBarred,
    };
    Refusal::new(code, bar.sentence())
}

pub(super) fn lease_cert(certificate: &CertRecord) -> LeaseCert {
    LeaseCert {
        issuer: certificate.issuer.clone(),
        serial: certificate.serial.clone(),
        not_after: certificate.not_after,
    }
}
