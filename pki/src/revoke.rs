//! Revocation records: durable, keyed by issuer and serial, never by certificate hash.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::audit::{Actor, AuditEvent};
use crate::authority::Authority;
use crate::bar::{Bar, Barred, RunName};
use crate::enrol::KeyHolder;
use crate::enrol::jwt::IssuerKind;
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
    /// All live leases of a CI run.
    Run {
        /// Its id or address.
        run: String,
        /// The issuer, by its name or URL; needed when several have such a run.
        issuer: Option<String>,
    },
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
            Self::Run { run, issuer } => {
                let job = &lease.ci_ref;
                let of = |issuer: &String| is(lease.claims.get("iss"), issuer);
                (is(job.run_id.as_ref(), run) || is(job.run_url.as_ref(), run))
                    && issuer.as_ref().is_none_or(of)
            }
            Self::Issuer(issuer) => is(lease.claims.get("iss"), issuer),
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
            Self::Run { run, issuer: None } => write!(f, "run {run}"),
            Self::Run { run, issuer: Some(issuer) } => write!(f, "run {run} of {issuer}"),
            Self::Issuer(issuer) => write!(f, "issuer {issuer}"),
        }
    }
}

/// What a revocation did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RevokeOutcome {
    /// The serials that are revoked now, by this or an earlier call.
    pub serials: Vec<Serial>,
    /// How many of them this call revoked.
    pub revoked_now: usize,
    /// Names of clients with shared keys, of sites and of CI runs that are barred now, by this call.
    pub barred: Vec<String>,
    /// How many public keys this call barred.
    pub barred_keys: usize,
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

/// Numbers of runs are unique in an issuer, or in a project of it.
fn only_one_run(run: &str, leases: &[Lease]) -> Result<(), Error> {
    // By its address a run is the same in whatever project it has a number.
    let name = |lease: &Lease| match RunName::by_url(&lease.claims, &lease.ci_ref) {
        Some(by_url) if by_url.run == run => Some(by_url),
        _ => RunName::by_id(&lease.claims, &lease.ci_ref),
    };
    let runs: BTreeSet<RunName> = leases.iter().filter_map(name).collect();
    if runs.len() < 2 {
        return Ok(());
    }
    let issuers: BTreeSet<&str> = runs.iter().map(|run| run.issuer.as_str()).collect();
    let fix = match issuers.len() {
        1 => "give the address of the run",
        _ => "name the issuer",
    };
    let all: Vec<String> = runs.iter().map(ToString::to_string).collect();
    Err(Error::Invalid(format!("{run} is {}: {fix}", all.join(" and "))))
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
                let selector = self.with_issuer_url(selector);
                let mut leases = self.leases(false)?;
                leases.retain(|lease| selector.matches(lease));
                if let RevokeSelector::Run { run, .. } = &selector {
                    only_one_run(run, &leases)?;
                }
                Ok(leases)
            }
        }
    }

    /// The selector with issuers as leases know them.
    fn with_issuer_url(&self, selector: &RevokeSelector) -> RevokeSelector {
        let settings = self.settings();
        let url = |name: &String| {
            let known = settings.issuers.iter().find(|issuer| issuer.name == *name);
            known.map_or_else(|| name.clone(), |issuer| issuer.issuer.clone())
        };
        match selector {
            RevokeSelector::Issuer(issuer) => RevokeSelector::Issuer(url(issuer)),
            RevokeSelector::Run { run, issuer } => {
                RevokeSelector::Run { run: run.clone(), issuer: issuer.as_ref().map(url) }
            }
            other => other.clone(),
        }
    }

    /// Revokes certificates and ends their leases, all in one durable transaction, before it
    /// returns. The caller then ends the tunnels of the returned changes. Repeating it changes
    /// nothing.
    ///
    /// Revocation sticks: the public keys of the leases are barred, also when a lease had ended
    /// before, and other live leases of such a key end with them. A client with a shared key and a
    /// site are barred by their identity, whatever lease they have by now; so is a certificate of
    /// another CA, and not its key, when the gateway itself revokes because that CA did. A run is
    /// barred when it was selected as such. What was opened while this was on its way is ended, too. See
    /// [`Authority::lift_bar`].
    ///
    /// # Errors
    /// [`Error::NotFound`] when nothing matches; [`Error::Invalid`] when several runs do, or when a
    /// lease had ended and its client has another key since.
    pub fn revoke(
        &self,
        selector: &RevokeSelector,
        reason: RevocationReason,
        actor: &Actor,
        now: UnixTime,
    ) -> Result<RevokeOutcome, Error> {
        let bar = |what| Bar {
            what,
            at: now,
            reason: Some(reason),
            actor: Some(actor.clone()),
            lease: None,
        };
        let mut outcome = RevokeOutcome::default();
        let mut leases = self.select(selector)?;
        let asked: Vec<Bar> = self.asked_bars(selector, &leases)?.into_iter().map(bar).collect();
        if leases.is_empty() && asked.is_empty() {
            return self.revoke_alone(selector, reason, actor, now);
        }
        for _ in 0..ATTEMPTS {
            let keys = match actor {
                // The list of another CA said so, of one certificate: the CA may have given its key
                // another.
                Actor::System => BTreeSet::new(),
                // A job that is over ends its own lease; only its key's loss is about the key.
                Actor::Peer(_) if reason != RevocationReason::KeyCompromise => BTreeSet::new(),
                _ => self.keys_of(&leases)?,
            };
            let asked_for = |key: &Barred| asked.iter().any(|bar| bar.what == *key);
            let keys = keys.into_iter().filter(|key| !asked_for(key)).map(bar);
            let bars: Vec<Bar> = asked.iter().cloned().chain(keys).collect();
            let together = self.with_all_of(leases, &bars)?;
            if self.revoke_together(&together, &bars, reason, actor, now, &mut outcome)? {
                // A lease that was opened between the look and the commit did not see the bars; no
                // later one is.
                let late = self.opened_meanwhile(selector, &bars, &outcome)?;
                if late.is_empty() {
                    return Ok(outcome);
                }
                leases = late;
            } else {
                leases = self.select(selector)?;
            }
        }
        Err(Error::Contended("the revocation"))
    }

    /// What a selector names itself, whether or not it has a lease now.
    fn asked_bars(
        &self,
        selector: &RevokeSelector,
        leases: &[Lease],
    ) -> Result<Vec<Barred>, Error> {
        Ok(match self.with_issuer_url(selector) {
            RevokeSelector::Spki(hash) => vec![Barred::Key(normal_hash(&hash)?)],
            RevokeSelector::Run { run, issuer } => {
                let named = |lease: &Lease| {
                    let by_id = RunName::by_id(&lease.claims, &lease.ci_ref);
                    by_id.filter(|name| name.run == run).or_else(|| {
                        RunName::by_url(&lease.claims, &lease.ci_ref).filter(|n| n.run == run)
                    })
                };
                let name = match (leases.first(), issuer) {
                    (Some(lease), _) => named(lease),
                    // Without a lease only an address says which project's run is meant, unless the
                    // issuer numbers all of them.
                    (None, Some(issuer)) if run.contains("://") || self.numbers_runs(&issuer) => {
                        Some(RunName { issuer, project: String::new(), run })
                    }
                    (None, _) => None,
                };
                name.into_iter().map(Barred::Run).collect()
            }
            _ => Vec::new(),
        })
    }

    /// Whether an issuer's numbers of runs are unique in all of it.
    fn numbers_runs(&self, issuer: &str) -> bool {
        let settings = self.settings();
        settings.issuers.iter().any(|known| {
            known.issuer == issuer && matches!(known.kind, IssuerKind::Github | IssuerKind::Gitlab)
        })
    }

    /// The public keys of leases that are to be barred. A site is barred by its name.
    fn keys_of(&self, leases: &[Lease]) -> Result<BTreeSet<Barred>, Error> {
        let mut keys = BTreeSet::new();
        for lease in leases.iter().filter(|lease| lease.site().is_none()) {
            if !lease.spki_sha256.is_empty() {
                keys.insert(Barred::Key(lease.spki_sha256.clone()));
            }
            for cert in &lease.certs {
                let cert_key = key::cert(&cert.issuer, &cert.serial);
                if let Some(stored) = record::read::<CertRecord>(self.store.as_ref(), &cert_key)? {
                    keys.insert(Barred::Key(stored.value.spki_sha256));
                }
            }
        }
        Ok(keys)
    }

    /// Leases with those that must end with them: what their clients and sites have by now, and
    /// other live leases of barred keys.
    fn with_all_of(&self, leases: Vec<Lease>, bars: &[Bar]) -> Result<Vec<Lease>, Error> {
        let mut also = self.live_of_keys(bars)?;
        for lease in leases.iter().filter(|lease| !lease.state.is_live()) {
            if let Some(site) = lease.site() {
                also.extend(self.lease_of_site(site)?);
            } else if lease.door == KeyHolder::DOOR
                && let Some((_, holder)) = self.holder_of(lease)?
            {
                let current = self.lease(&holder.value.lease)?;
                if Self::had_another_key(lease, &holder.value) {
                    let (id, name, latest) = (&lease.id, &lease.subject, &holder.value.lease);
                    return Err(Error::Invalid(format!(
                        "lease {id} has ended, and {name} has another key since, which opened \
                         {latest}: revoke {latest} if {name} must stay out"
                    )));
                }
                also.extend(current);
            }
        }
        let mut together = leases;
        for lease in also.into_iter().filter(|lease| lease.state.is_live()) {
            if together.iter().all(|known| known.id != lease.id) {
                together.push(lease);
            }
        }
        Ok(together)
    }

    fn live_of_keys(&self, bars: &[Bar]) -> Result<Vec<Lease>, Error> {
        let mut live = Vec::new();
        for bar in bars {
            if let Barred::Key(hash) = &bar.what {
                live.extend(self.leases_by_spki(hash)?.into_iter().filter(|l| l.state.is_live()));
            }
        }
        Ok(live)
    }

    /// Live leases of barred keys and runs that no step so far has ended.
    fn opened_meanwhile(
        &self,
        selector: &RevokeSelector,
        bars: &[Bar],
        done: &RevokeOutcome,
    ) -> Result<Vec<Lease>, Error> {
        let mut late = self.live_of_keys(bars)?;
        if let RevokeSelector::Run { .. } = selector {
            late.extend(self.select(selector)?);
        }
        late.retain(|lease| done.changes.iter().all(|change| change.lease.id != lease.id));
        Ok(late)
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
        Ok(RevokeOutcome { serials, revoked_now, ..RevokeOutcome::default() })
    }

    /// Adds to the outcome; false when one of them moved meanwhile and all must be looked at again.
    fn revoke_together(
        &self,
        leases: &[Lease],
        bars: &[Bar],
        reason: RevocationReason,
        actor: &Actor,
        now: UnixTime,
        outcome: &mut RevokeOutcome,
    ) -> Result<bool, Error> {
        let event = LeaseEvent::Revoke { actor: actor.clone() };
        let step = Step { action: "lease.revoke", reason: Some(reason.name().to_owned()) };
        let mut txn = Txn::new();
        let mut plans = Vec::with_capacity(leases.len());
        for lease in leases {
            let plan = self.plan(&mut txn, &lease.id, &event, reason, actor, &step, now)?;
            plans.push(plan);
        }
        let mut barred = self.bar_clients(&mut txn, leases, actor, now)?;
        let mut barred_keys = 0;
        for bar in bars {
            let of = |lease: &&Lease| match &bar.what {
                Barred::Key(hash) => lease.spki_sha256 == *hash,
                _ => true,
            };
            let bar = Bar { lease: leases.iter().find(of).map(|l| l.id.clone()), ..bar.clone() };
            if !self.plan_bar(&mut txn, &bar)? {
                continue;
            }
            let mut event = AuditEvent::new("key.bar", actor, now).object(&bar.what).reason(reason);
            event.lease_id = bar.lease.clone();
            match &bar.what {
                Barred::Key(hash) => {
                    event.spki_sha256 = Some(hash.clone());
                    barred_keys += 1;
                }
                what => {
                    event.action = "run.bar".to_owned();
                    barred.push(what.to_string());
                }
            }
            event.record(&mut txn);
        }
        if !txn.ops.is_empty() && !self.commit(txn, step.action)? {
            return Ok(false);
        }
        outcome.barred.append(&mut barred);
        outcome.barred_keys += barred_keys;
        for plan in plans {
            self.settle(&plan, now);
            outcome.revoked_now += plan.moved.revoked;
            outcome.serials.extend(plan.moved.change.lease.certs.iter().map(|c| c.serial.clone()));
            outcome.changes.push(plan.moved.change);
        }
        Ok(true)
    }

    /// Bars clients with shared keys and sites, who open leases by themselves; the names of those
    /// who were not barred before.
    fn bar_clients(
        &self,
        txn: &mut Txn,
        leases: &[Lease],
        actor: &Actor,
        now: UnixTime,
    ) -> Result<Vec<String>, Error> {
        let mut seen = BTreeSet::new();
        let mut names = Vec::new();
        for lease in leases {
            let (name, new) = match lease.site() {
                Some(site) if seen.insert(key::site(site)) => {
                    (site, self.bar_site(txn, site, now)?)
                }
                None if KeyHolder::is_barred_by_identity(&lease.door, actor) => {
                    match self.holder_of(lease)? {
                        Some(holder) if seen.insert(holder.0.clone()) => {
                            (lease.subject.as_str(), self.bar_holder(txn, &holder, now))
                        }
                        _ => continue,
                    }
                }
                _ => continue,
            };
            if new {
                AuditEvent::new("key.bar", actor, now).lease(lease).object(name).record(txn);
                names.push(name.to_owned());
            }
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
