//! Leases of sites: gateways with networks behind them, named in the configuration.
//!
//! A site enrols nowhere, so its lease is opened when its gateway has proved who it is, and
//! prolonged when it proves so again with a longer certificate. It ends like any other: with that
//! certificate, when the tunnel stays away, when an operator ends it. Only a revoked one stays
//! ended; otherwise the next connection opens another.

use serde::{Deserialize, Serialize};

use crate::audit::{Actor, AuditEvent};
use crate::authority::{AccessError, Authority};
use crate::bar::{Bar, Barred};
use crate::entropy::random_text;
use crate::error::Error;
use crate::lease::book::{ATTEMPTS, move_deadline};
use crate::lease::{CiRef, Lease, LeaseState, state};
use crate::record::{self, Stored, key};
use crate::store::{self, Outcome, Txn};
use crate::time::UnixTime;

/// What a lease's role begins with when it is a site's; no configured role can have this name.
pub const SITE_ROLE: &str = "site:";

/// Random characters of a lease id, as for other leases.
const LEASE_ID_LEN: usize = 10;

/// The gateway of a site, as it has proved itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SitePeer<'a> {
    /// The site's name.
    pub site: &'a str,
    /// Its certificate's subject, or its identity when it has none.
    pub subject: &'a str,
    /// SHA-256 of its public key, hexadecimal; empty when it has none.
    pub spki_sha256: &'a str,
    /// When what it proved itself with ends.
    pub until: UnixTime,
}

/// Which lease a site has or had last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct SiteRecord {
    lease: String,
    /// The lease was revoked: no other is opened until the operator allows it. Said here because
    /// ended leases are forgotten some day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    barred: Option<UnixTime>,
}

impl Lease {
    /// The name of the site whose lease this is.
    pub fn site(&self) -> Option<&str> {
        self.role.strip_prefix(SITE_ROLE)
    }
}

fn barred(lease: String, since: UnixTime) -> AccessError {
    AccessError::LeaseNotLive {
        lease,
        state: LeaseState::Revoked,
        since,
        advice: "allow the site again with `runnel site connect NAME`",
    }
}

/// Has the lease found by its key.
fn index(txn: &mut Txn, lease: &Lease) {
    if !lease.spki_sha256.is_empty() {
        txn.put(key::spki(&lease.spki_sha256, &lease.id), Vec::new());
    }
}

impl Authority {
    /// The live lease of a site: the one it has, prolonged to what its gateway proved itself with,
    /// or a new one.
    ///
    /// # Errors
    /// [`AccessError::LeaseNotLive`] when its last lease was revoked; otherwise the store's
    /// failure.
    pub fn site_lease(&self, peer: &SitePeer<'_>, now: UnixTime) -> Result<Lease, AccessError> {
        let site_key = key::site(peer.site);
        for _ in 0..ATTEMPTS {
            let pointer = record::read::<SiteRecord>(self.store.as_ref(), &site_key)?;
            let key = (!peer.spki_sha256.is_empty()).then(|| peer.spki_sha256.to_owned());
            let key: Vec<_> = key.into_iter().map(Barred::Key).collect();
            let mut txn = Txn::new();
            if let Some(bar) = self.unless_barred(&mut txn, &key)? {
                return Err(AccessError::KeyBarred(Box::new(bar)));
            }
            if let Some(pointer) = &pointer
                && let Some(since) = pointer.value.barred
            {
                return Err(barred(pointer.value.lease.clone(), since));
            }
            let former = match &pointer {
                Some(pointer) => self.stored_lease(&pointer.value.lease)?,
                None => None,
            };
            let done = match former {
                Some(former) if former.value.state == LeaseState::Revoked => {
                    return Err(barred(former.value.id, former.value.state_since));
                }
                Some(former)
                    if state::usable(&former.value, now, &self.settings().timers).is_ok() =>
                {
                    self.prolong(txn, &former, peer, now)?
                }
                _ => self.open_site(txn, &site_key, pointer.as_ref(), peer, now)?,
            };
            if let Some(lease) = done {
                return Ok(lease);
            }
        }
        Err(Error::Contended("the site's lease").into())
    }

    /// Lets a site whose lease was revoked connect again. One that has a live lease keeps it.
    ///
    /// # Errors
    /// When the store fails.
    pub fn allow_site(&self, site: &str, actor: &Actor, now: UnixTime) -> Result<(), Error> {
        let site_key = key::site(site);
        for _ in 0..ATTEMPTS {
            let Some(pointer) = record::read::<SiteRecord>(self.store.as_ref(), &site_key)? else {
                return Ok(());
            };
            let lease = self.lease(&pointer.value.lease)?;
            let revoked = lease.is_some_and(|lease| lease.state == LeaseState::Revoked);
            if !revoked && pointer.value.barred.is_none() {
                return Ok(());
            }
            let mut txn = Txn::new();
            txn.at(&site_key, pointer.revision).delete(site_key.clone());
            let event = AuditEvent::new("site.allow", actor, now).object(site);
            event.record(&mut txn);
            if let Outcome::Committed(_) = self.store.transact(txn)? {
                return Ok(());
            }
        }
        Err(Error::Contended("the site's lease"))
    }

    /// The lease that a site has or had last.
    pub(crate) fn lease_of_site(&self, site: &str) -> Result<Option<Lease>, Error> {
        match record::read::<SiteRecord>(self.store.as_ref(), &key::site(site))? {
            Some(pointer) => self.lease(&pointer.value.lease),
            None => Ok(None),
        }
    }

    /// Bars a site, whatever lease it has, as part of a transaction; whether it was not before.
    pub(crate) fn bar_site(&self, txn: &mut Txn, site: &str, now: UnixTime) -> Result<bool, Error> {
        let site_key = key::site(site);
        let pointer = record::read::<SiteRecord>(self.store.as_ref(), &site_key)?;
        let Some(pointer) = pointer.filter(|pointer| pointer.value.barred.is_none()) else {
            return Ok(false);
        };
        let record = SiteRecord { barred: Some(now), ..pointer.value };
        txn.at(&site_key, pointer.revision).put(site_key, record::encode(&record));
        Ok(true)
    }

    /// The sites that are barred.
    pub(crate) fn site_bars(&self) -> Result<Vec<Bar>, Error> {
        let mut bars = Vec::new();
        for (site_key, entry) in store::scan(self.store.as_ref(), key::SITE)? {
            let SiteRecord { lease, barred } = record::decode(&site_key, &entry)?.value;
            if let Some(at) = barred {
                let name = site_key.strip_prefix(key::SITE).unwrap_or_default().to_owned();
                let (what, lease) = (Barred::Site(name), Some(lease));
                bars.push(Bar { what, at, reason: None, actor: None, lease });
            }
        }
        Ok(bars)
    }

    /// `None` when another writer was faster.
    fn prolong(
        &self,
        mut txn: Txn,
        former: &Stored<Lease>,
        peer: &SitePeer<'_>,
        now: UnixTime,
    ) -> Result<Option<Lease>, Error> {
        self.may_issue()?;
        let mut lease = former.value.clone();
        lease.expires = peer.until;
        lease.hard_cap = peer.until;
        lease.subject = peer.subject.to_owned();
        lease.spki_sha256 = peer.spki_sha256.to_owned();
        lease.deadline = state::deadline(&lease, &self.settings().timers);
        if lease == former.value {
            return Ok(Some(lease));
        }
        let lease_key = key::lease(&lease.id);
        txn.at(&lease_key, former.revision).put(lease_key, record::encode(&lease));
        if former.value.spki_sha256 != lease.spki_sha256 {
            txn.delete(key::spki(&former.value.spki_sha256, &lease.id));
        }
        index(&mut txn, &lease);
        move_deadline(&mut txn, &former.value, &lease);
        let event = AuditEvent::new("lease.renew", &Actor::System, now).lease(&lease);
        event.reason("site").record(&mut txn);
        let committed = matches!(self.store.transact(txn)?, Outcome::Committed(_));
        Ok(committed.then_some(lease))
    }

    /// `None` when another writer was faster.
    fn open_site(
        &self,
        mut txn: Txn,
        site_key: &str,
        pointer: Option<&Stored<SiteRecord>>,
        peer: &SitePeer<'_>,
        now: UnixTime,
    ) -> Result<Option<Lease>, Error> {
        self.may_issue()?;
        let id =
            self.with_entropy(|entropy| Ok(format!("s-{}", random_text(entropy, LEASE_ID_LEN)?)))?;
        let settings = self.settings();
        let role = format!("{SITE_ROLE}{}", peer.site);
        let mut lease = Lease {
            id: id.clone(),
            identity: role.clone(),
            role,
            subject: peer.subject.to_owned(),
            dns_name: String::new(),
            spki_sha256: peer.spki_sha256.to_owned(),
            certs: Vec::new(),
            pool: String::new(),
            addresses: Vec::new(),
            created: now,
            expires: peer.until,
            hard_cap: peer.until,
            state: LeaseState::Issued,
            state_since: now,
            deadline: None,
            orphaned: false,
            first_connected: None,
            end: None,
            door: "site".to_owned(),
            token: None,
            holder: None,
            claims: Default::default(),
            ci_ref: CiRef::default(),
            policy_version: self.policy_version(),
        };
        lease.deadline = state::deadline(&lease, &settings.timers);
        index(&mut txn, &lease);
        match pointer {
            Some(pointer) => txn.at(site_key, pointer.revision),
            None => txn.absent(site_key),
        };
        txn.put(site_key, record::encode(&SiteRecord { lease: id.clone(), barred: None }));
        let lease_key = key::lease(&id);
        txn.absent(&lease_key).put(lease_key, record::encode(&lease));
        if let Some(deadline) = lease.deadline {
            txn.put(key::due(deadline, &id), Vec::new());
        }
        let event = AuditEvent::new("lease.create", &Actor::System, now).lease(&lease);
        event.reason("site").record(&mut txn);
        let committed = matches!(self.store.transact(txn)?, Outcome::Committed(_));
        Ok(committed.then_some(lease))
    }
}
