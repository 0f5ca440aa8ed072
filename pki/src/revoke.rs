//! Revocation records: durable, keyed by issuer and serial, never by certificate hash.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::audit::{Actor, AuditEvent};
use crate::authority::Authority;
use crate::bar::{Bar, Barred};
use crate::enrol::KeyHolder;
use crate::error::Error;
use crate::failpoint;
use crate::issue::CertRecord;
use crate::lease::book::{ATTEMPTS, Step};
use crate::lease::{Lease, LeaseChange, LeaseEvent};
use crate::record::{self, key};
use crate::select::RevokeSelector;
use crate::serial::Serial;
use crate::store::{Outcome, Txn};
use crate::time::UnixTime;

/// Leases that one transaction may end: the store's writer does nothing else meanwhile.
const WHOLE: usize = 1_024;
/// Leases of one part when there are more.
const PART: usize = 256;
/// How often a transaction is tried again as it is before it is divided.
const TRIES: usize = 2;

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

/// What a revocation did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RevokeOutcome {
    /// The serials that are revoked now, by this or an earlier call.
    pub serials: Vec<Serial>,
    /// How many of them this call revoked.
    pub revoked_now: usize,
    /// Names of clients with shared keys, of sites and of CI runs that are barred now, by this call.
    pub barred: Vec<String>,
    /// How many public keys this call barred.
    pub barred_keys: usize,
    /// Leases that waited for an operator, or for their client, and are denied now.
    pub cancelled: Vec<String>,
    /// The leases concerned; end the tunnels of those that say so.
    pub changes: Vec<LeaseChange>,
    /// Leases that live on with certificates of a later CA than the one that was revoked: end their
    /// tunnels, which may have been made with its.
    pub renewed: Vec<Lease>,
    /// What failed after all this was done: the rest is still to be revoked.
    pub failed: Option<Error>,
}

impl RevokeOutcome {
    /// Nothing was done.
    fn is_empty(&self) -> bool {
        self.changes.is_empty()
            && self.barred.is_empty()
            && self.barred_keys == 0
            && self.cancelled.is_empty()
    }
}

/// A revocation as it was ordered.
pub(crate) struct Order<'a> {
    pub(crate) reason: RevocationReason,
    pub(crate) actor: &'a Actor,
    pub(crate) now: UnixTime,
}

impl Order<'_> {
    /// Why, for the client of a lease that waits.
    fn words(&self) -> String {
        format!("revoked: {}", self.reason)
    }

    fn bar(&self, what: Barred, lease: Option<String>) -> Bar {
        let (reason, actor) = (Some(self.reason), Some(self.actor.clone()));
        Bar { what, at: self.now, reason, actor, lease }
    }
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
    /// Revokes certificates and ends their leases durably, before it returns. The caller then ends
    /// the tunnels of the returned changes, also when there is a failure beside them. Repeating it
    /// changes nothing.
    ///
    /// It is one transaction, unless it is about more than 1,024 leases or they do not stand still:
    /// then it goes by parts, each with the bars of its leases, and nobody's renewals hold it up.
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
        let order = Order { reason, actor, now };
        let selector = self.normal(selector)?;
        let waiting = self.select_waiting(&selector)?;
        let mut leases = self.select(&selector)?;
        let asked = self.asked_bars(&selector, &leases, &waiting)?;
        let mut outcome = RevokeOutcome::default();
        if !waiting.is_empty() {
            outcome.cancelled = self.cancel(&waiting, &order.words(), actor, now)?;
            // What was opened before it could be denied.
            leases = self.select(&selector)?;
        }
        if leases.is_empty() && asked.is_empty() {
            return match outcome.is_empty() {
                true => self.revoke_alone(&selector, &order),
                false => Ok(outcome),
            };
        }
        match self.revoke_all(&selector, leases, &asked, &order, &mut outcome) {
            Ok(()) => Ok(outcome),
            Err(error) if outcome.is_empty() => Err(error),
            Err(error) => Ok(RevokeOutcome { failed: Some(error), ..outcome }),
        }
    }

    fn revoke_all(
        &self,
        selector: &RevokeSelector,
        mut leases: Vec<Lease>,
        asked: &[Barred],
        order: &Order<'_>,
        outcome: &mut RevokeOutcome,
    ) -> Result<(), Error> {
        for _ in 0..ATTEMPTS {
            let keys = match order.actor {
                // The list of another CA said so, of one certificate: the CA may have given its key
                // another.
                Actor::System => BTreeMap::new(),
                // A job that is over ends its own lease; only its key's loss is about the key.
                Actor::Peer(_) if order.reason != RevocationReason::KeyCompromise => {
                    BTreeMap::new()
                }
                _ => self.keys_of(&leases)?,
            };
            let mut bars: Vec<Bar> = Vec::with_capacity(asked.len() + keys.len());
            for what in asked {
                let of = |lease: &&Lease| match what {
                    Barred::Key(hash) => lease.spki_sha256 == *hash,
                    _ => true,
                };
                bars.push(order.bar(what.clone(), leases.iter().find(of).map(|l| l.id.clone())));
            }
            let keys = keys.into_iter().filter(|(key, _)| !asked.contains(key));
            bars.extend(keys.map(|(key, lease)| order.bar(key, Some(lease))));
            let together = self.with_all_of(leases, &bars)?;
            self.revoke_in_parts(&together, &bars, order, outcome)?;
            // A lease that was opened between the look and the commit did not see the bars; no
            // later one is.
            leases = self.opened_meanwhile(selector, &bars, outcome)?;
            // What waits cannot be opened any more: its client need not wait.
            let barred: Vec<&Barred> = bars.iter().map(|bar| &bar.what).collect();
            let cancelled = self.cancel_barred(&barred, &order.words(), order.actor, order.now)?;
            outcome.cancelled.extend(cancelled);
            if leases.is_empty() {
                return Ok(());
            }
        }
        Err(Error::Contended("the revocation"))
    }

    /// Ends all of them: at once while they are few and stand still, otherwise by parts, and those
    /// that keep moving one by one. One that cannot be ended keeps back no other.
    pub(crate) fn revoke_in_parts(
        &self,
        leases: &[Lease],
        bars: &[Bar],
        order: &Order<'_>,
        outcome: &mut RevokeOutcome,
    ) -> Result<(), Error> {
        // Each bar goes with its lease; what has none here goes first.
        let known: BTreeSet<&str> = leases.iter().map(|lease| lease.id.as_str()).collect();
        let mut bars_of: BTreeMap<Option<&str>, Vec<&Bar>> = BTreeMap::new();
        for bar in bars {
            let lease = bar.lease.as_deref().filter(|id| known.contains(id));
            bars_of.entry(lease).or_default().push(bar);
        }
        let whole = if leases.len() > WHOLE { PART } else { leases.len() };
        let mut parts: VecDeque<(&[Lease], usize)> =
            leases.chunks(whole.max(1)).map(|part| (part, 0)).collect();
        if leases.is_empty() {
            parts.push_back((&[], 0));
        }
        let mut contended = Ok(());
        let mut alone = bars_of.remove(&None).unwrap_or_default();
        // What one part was too large for the next ones are too large for as well.
        let mut most = usize::MAX;
        while let Some((part, tried)) = parts.pop_front() {
            let (first, second) = part.split_at(part.len() / 2);
            if part.len() > most {
                parts.push_front((second, 0));
                parts.push_front((first, 0));
                continue;
            }
            let of_part = part.iter().filter_map(|lease| bars_of.get(&Some(lease.id.as_str())));
            let bars: Vec<&Bar> = alone.iter().copied().chain(of_part.flatten().copied()).collect();
            if self.revoke_together(part, &bars, order, outcome)? {
                alone.clear();
                continue;
            }
            if first.is_empty() {
                match tried < ATTEMPTS {
                    true => parts.push_front((part, tried + 1)),
                    false => contended = Err(Error::Contended("the revocation")),
                }
            } else if tried < TRIES {
                parts.push_front((part, tried + 1));
            } else {
                most = second.len();
                parts.push_front((part, 0));
            }
        }
        contended
    }

    /// The public keys of leases that are to be barred, each with a lease that has it. A site is
    /// barred by its name.
    fn keys_of(&self, leases: &[Lease]) -> Result<BTreeMap<Barred, String>, Error> {
        let mut keys = BTreeMap::new();
        for lease in leases.iter().filter(|lease| lease.site().is_none()) {
            let mut note = |hash: String| {
                keys.entry(Barred::Key(hash)).or_insert_with(|| lease.id.clone());
            };
            if !lease.spki_sha256.is_empty() {
                note(lease.spki_sha256.clone());
            }
            for cert in &lease.certs {
                let cert_key = key::cert(&cert.issuer, &cert.serial);
                if let Some(stored) = record::read::<CertRecord>(self.store.as_ref(), &cert_key)? {
                    note(stored.value.spki_sha256);
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
        let mut known: BTreeSet<String> = leases.iter().map(|lease| lease.id.clone()).collect();
        let mut together = leases;
        for lease in also.into_iter().filter(|lease| lease.state.is_live()) {
            if known.insert(lease.id.clone()) {
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
        let done: BTreeSet<&str> = done.changes.iter().map(|c| c.lease.id.as_str()).collect();
        late.retain(|lease| !done.contains(lease.id.as_str()));
        Ok(late)
    }

    /// A certificate without a lease, like the gateway's own.
    fn revoke_alone(
        &self,
        selector: &RevokeSelector,
        order: &Order<'_>,
    ) -> Result<RevokeOutcome, Error> {
        let RevokeSelector::Serial(serial) = selector else {
            return Err(Error::not_found("lease matches", selector));
        };
        let record =
            self.certificate(serial)?.ok_or_else(|| Error::not_found("certificate", serial))?;
        if self.ca().roots.iter().any(|root| root.cross.contains(&record.der)) {
            return Err(Error::Invalid(format!(
                "certificate {serial} is that of a root by an older one, for runners that know only \
                 the older: it goes with the older root by `runnel ca retire`"
            )));
        }
        if record.ca {
            return Err(Error::Invalid(format!(
                "certificate {serial} is a CA's: `runnel ca status` names it, and `runnel ca revoke` \
                 revokes it with all that hangs on it"
            )));
        }
        let revoked_now = self.revoke_bare(&record.issuer, serial, order)?;
        let serials = vec![serial.clone()];
        Ok(RevokeOutcome { serials, revoked_now, ..RevokeOutcome::default() })
    }

    /// Adds to the outcome; false when one of them moved meanwhile and all must be looked at again.
    fn revoke_together(
        &self,
        leases: &[Lease],
        bars: &[&Bar],
        order: &Order<'_>,
        outcome: &mut RevokeOutcome,
    ) -> Result<bool, Error> {
        let Order { reason, actor, now } = *order;
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
            if !self.plan_bar(&mut txn, bar)? {
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
    pub(crate) fn revoke_bare(
        &self,
        issuer: &str,
        serial: &Serial,
        order: &Order<'_>,
    ) -> Result<usize, Error> {
        let Order { reason, actor, now } = *order;
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
