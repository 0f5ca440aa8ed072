//! Leases of peers that prove who they are without a certificate of ours: with a shared key, or with
//! a certificate of an external CA.
//!
//! Such a lease is opened at the first connection and found again by the peer's identity: while it
//! lives, the peer comes back to the same lease and addresses. Each proof of the key moves its end,
//! as a renewed certificate does, up to the role's cap.
//!
//! A revoked lease bars what opened it. The key of a certificate is barred itself, wherever it turns
//! up. A shared key is barred for its identity, and remembered when the identity has another key
//! since: going back to it opens nothing. For that a digest of it is kept, sealed.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::open::{LEASE_ID_LEN, Reservation};
use crate::audit::{Actor, AuditEvent};
use crate::authority::{Access, AccessError, Authority, lock};
use crate::bar::{Bar, Barred};
use crate::entropy::{Entropy, random_text};
use crate::error::Error;
use crate::issue::{base64_bytes, sha256_hex};
use crate::lease::book::{ATTEMPTS, Step, put_live};
use crate::lease::state;
use crate::lease::{CiRef, Lease, LeaseEvent, LeaseState};
use crate::record::{self, Stored, key};
use crate::store::{self, Outcome, Txn};
use crate::time::UnixTime;
use crate::validate::IkeId;

/// A peer that proved that it has a key: one it shares with the gateway, or that of a certificate of
/// an external CA.
#[derive(Clone, Copy)]
pub struct KeyHolder<'a> {
    /// Its identity as configured.
    pub id: IkeId<'a>,
    /// The same for people.
    pub name: &'a str,
    /// The role it has.
    pub role: &'a str,
    /// The key; of a certificate the public one.
    pub key: &'a [u8],
    /// How it came in, [`Lease::door`]: [`KeyHolder::DOOR`] or [`KeyHolder::EXTERNAL`].
    pub door: &'static str,
}

impl fmt::Debug for KeyHolder<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyHolder")
            .field("name", &self.name)
            .field("role", &self.role)
            .field("key_octets", &self.key.len())
            .finish()
    }
}

impl KeyHolder<'_> {
    /// How such leases are named in [`Lease::door`].
    pub const DOOR: &'static str = "psk";
    /// How leases of certificates of external CAs are named in [`Lease::door`].
    pub const EXTERNAL: &'static str = "x509";

    /// Whether the identities of leases that came through this door are barred: of a shared key
    /// always, of a certificate when its CA revoked it and no operator its key.
    pub(crate) fn is_barred_by_identity(door: &str, actor: &Actor) -> bool {
        door == Self::DOOR || (door == Self::EXTERNAL && *actor == Actor::System)
    }

    /// What its record is found by.
    fn digest(&self) -> String {
        let id = sha256_hex(&[&[self.id.kind], self.id.data].concat());
        match self.door {
            Self::DOOR => id,
            // No identity of one door meets one of the other.
            door => format!("{door}-{id}"),
        }
    }

    fn record_key(&self) -> String {
        key::holder(&self.digest())
    }

    /// The key of a certificate is barred wherever it turns up.
    fn barred_by(&self) -> Vec<Barred> {
        match self.door {
            Self::EXTERNAL => vec![Barred::Key(sha256_hex(self.key))],
            _ => Vec::new(),
        }
    }
}

/// Which lease an identity has, and which key opened it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct HolderRecord {
    /// The latest lease.
    pub(crate) lease: String,
    /// SHA-256 of the key in hexadecimal, sealed: a weak key could be guessed from it.
    #[serde(with = "base64_bytes")]
    key: Vec<u8>,
    /// When this key opened its first lease.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key_since: Option<UnixTime>,
    /// A lease of this key was revoked, before or after it ended: the key opens no other. Said here
    /// because ended leases are forgotten some day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    barred: Option<UnixTime>,
    /// Keys the identity had before that are barred: as many as an operator has revoked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    former: Vec<FormerKey>,
    /// The identity for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    name: String,
}

/// A barred key that its identity has no more.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct FormerKey {
    #[serde(with = "base64_bytes")]
    key: Vec<u8>,
    at: UnixTime,
    lease: String,
}

impl HolderRecord {
    /// Whether nothing would be lost with the record once its lease is forgotten.
    pub(crate) fn is_free(&self) -> bool {
        self.barred.is_none() && self.former.is_empty()
    }

    /// The bar on the identity, with the latest lease that was revoked.
    fn bar(&self, digest: &str) -> Option<Bar> {
        let former = self.former.last().map(|former| (former.at, former.lease.clone()));
        let (at, lease) = self.barred.map(|at| (at, self.lease.clone())).or(former)?;
        let name = self.name.clone();
        let what = Barred::Client { name, digest: digest.to_owned() };
        Some(Bar { what, at, reason: None, actor: None, lease: Some(lease) })
    }
}

/// A holder's record and where it is.
pub(crate) type StoredHolder = (String, Stored<HolderRecord>);

impl Authority {
    /// Decides the access of a peer that proved a shared key: the lease it has, or a new one.
    ///
    /// # Errors
    /// Why there is none.
    pub fn authorise_holder(
        &self,
        holder: &KeyHolder<'_>,
        client: Option<IpAddr>,
        now: UnixTime,
    ) -> Result<Access, AccessError> {
        self.may_issue()?;
        let actor = client.map_or(Actor::System, Actor::Peer);
        let record_key = holder.record_key();
        // Two connections of one identity take turns: the second finds the first one's lease.
        let _turn = self.token_turn(record_key.trim_start_matches(key::HOLDER));
        for _ in 0..ATTEMPTS {
            let mut txn = Txn::new();
            if let Some(bar) = self.unless_barred(&mut txn, &holder.barred_by())? {
                return Err(AccessError::KeyBarred(Box::new(bar)));
            }
            let stored = record::read::<HolderRecord>(self.store.as_ref(), &record_key)?;
            if let Some(stored) = &stored
                && let Some((lease, at)) = self.bar_of_key(&record_key, &stored.value, holder)?
            {
                return Err(AccessError::HolderRevoked { name: holder.name.to_owned(), lease, at });
            }
            if let Some(stored) = &stored
                && let Some(lease) = self.lease(&stored.value.lease)?
            {
                let same_key = self.is_key_of(&record_key, &stored.value, holder)?;
                let timers = self.settings().timers;
                if state::renewable(&lease, now, &timers).is_ok() {
                    if !same_key || lease.role != holder.role {
                        self.release(&lease.id, "superseded", &Actor::System, now)?;
                    } else if let Some(access) = self.prolong_holder(&lease, &actor, now)? {
                        return Ok(access);
                    } else {
                        continue;
                    }
                }
            }
            let opened = self.open_holder(txn, holder, stored.as_ref(), &actor, now)?;
            if let Some(access) = opened {
                return Ok(access);
            }
        }
        Err(Error::Contended("the lease").into())
    }

    /// Whether a lease is what this holder would get again: same identity, role and key.
    ///
    /// # Errors
    /// When the store fails.
    pub fn is_lease_of(&self, lease: &Lease, holder: &KeyHolder<'_>) -> Result<bool, Error> {
        let record_key = holder.record_key();
        let stored = record::read::<HolderRecord>(self.store.as_ref(), &record_key)?;
        match stored {
            Some(stored) if stored.value.lease == lease.id && lease.role == holder.role => {
                self.is_key_of(&record_key, &stored.value, holder)
            }
            _ => Ok(false),
        }
    }

    /// The record of the identity that a lease was opened for.
    pub(crate) fn holder_of(&self, lease: &Lease) -> Result<Option<StoredHolder>, Error> {
        if let Some(digest) = &lease.holder {
            let holder_key = key::holder(digest);
            let stored = record::read(self.store.as_ref(), &holder_key)?;
            return Ok(stored.map(|stored| (holder_key, stored)));
        }
        // A lease of a version that did not note it.
        for (holder_key, entry) in store::scan(self.store.as_ref(), key::HOLDER)? {
            let stored = record::decode::<HolderRecord>(&holder_key, &entry)?;
            if stored.value.lease == lease.id {
                return Ok(Some((holder_key, stored)));
            }
        }
        Ok(None)
    }

    /// Whether a lease is older than the key its identity has now.
    pub(crate) fn had_another_key(lease: &Lease, holder: &HolderRecord) -> bool {
        holder.lease != lease.id && holder.key_since.is_some_and(|since| lease.created < since)
    }

    /// Bars the key that an identity has, as part of a transaction; false when it was barred before.
    pub(crate) fn bar_holder(&self, txn: &mut Txn, holder: &StoredHolder, now: UnixTime) -> bool {
        let (holder_key, stored) = holder;
        if stored.value.barred.is_some() {
            return false;
        }
        let record = HolderRecord { barred: Some(now), ..stored.value.clone() };
        txn.at(holder_key, stored.revision).put(holder_key, record::encode(&record));
        true
    }

    /// The identities that are barred.
    pub(crate) fn holder_bars(&self) -> Result<Vec<Bar>, Error> {
        let mut bars = Vec::new();
        for (holder_key, entry) in store::scan(self.store.as_ref(), key::HOLDER)? {
            let record = record::decode::<HolderRecord>(&holder_key, &entry)?.value;
            bars.extend(record.bar(holder_key.trim_start_matches(key::HOLDER)));
        }
        Ok(bars)
    }

    /// Lifts the bars on all keys of an identity, as part of a transaction.
    pub(crate) fn plan_lift_holder(&self, txn: &mut Txn, digest: &str) -> Result<(), Error> {
        let holder_key = key::holder(digest);
        let stored = record::read::<HolderRecord>(self.store.as_ref(), &holder_key)?;
        if let Some(Stored { value, revision }) = stored {
            let record = HolderRecord { barred: None, former: Vec::new(), ..value };
            txn.at(&holder_key, revision).put(holder_key, record::encode(&record));
        }
        Ok(())
    }

    /// The lease and time of the bar on the key that a holder proved, if there is one.
    fn bar_of_key(
        &self,
        record_key: &str,
        record: &HolderRecord,
        holder: &KeyHolder<'_>,
    ) -> Result<Option<(String, UnixTime)>, Error> {
        if let Some(at) = record.barred
            && self.is_key_of(record_key, record, holder)?
        {
            return Ok(Some((record.lease.clone(), at)));
        }
        for former in &record.former {
            if self.is_digest(record_key, &former.key, holder)? {
                return Ok(Some((former.lease.clone(), former.at)));
            }
        }
        Ok(None)
    }

    fn is_key_of(
        &self,
        record_key: &str,
        record: &HolderRecord,
        holder: &KeyHolder<'_>,
    ) -> Result<bool, Error> {
        self.is_digest(record_key, &record.key, holder)
    }

    fn is_digest(
        &self,
        record_key: &str,
        sealed: &[u8],
        holder: &KeyHolder<'_>,
    ) -> Result<bool, Error> {
        let digest = self.sealer.open(record_key, sealed)?;
        Ok(digest.as_slice() == sha256_hex(holder.key).as_bytes())
    }

    /// The key was proven again: the lease lives on. `None` when it has moved meanwhile.
    fn prolong_holder(
        &self,
        lease: &Lease,
        actor: &Actor,
        now: UnixTime,
    ) -> Result<Option<Access>, AccessError> {
        let settings = self.settings();
        let profile = settings.roles.get(&lease.role).ok_or_else(|| AccessError::UnknownRole {
            lease: lease.id.clone(),
            role: lease.role.clone(),
        })?;
        let event = LeaseEvent::Renewed(now.plus(profile.ttl).floor_to_second());
        let step = Step { action: "lease.renew", reason: Some(lease.door.clone()) };
        match self.step(&lease.id, &event, actor, &step, now) {
            Ok(change) => Ok(Some(Access { deadline: change.lease.expires, lease: change.lease })),
            Err(Error::LeaseState { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// `None` when another writer was faster and everything must be judged again.
    fn open_holder(
        &self,
        mut txn: Txn,
        holder: &KeyHolder<'_>,
        before: Option<&Stored<HolderRecord>>,
        actor: &Actor,
        now: UnixTime,
    ) -> Result<Option<Access>, Error> {
        let settings = self.settings();
        let profile =
            settings.roles.get(holder.role).ok_or_else(|| Error::not_found("role", holder.role))?;
        let addresses = lock(&self.addresses).reserve(&profile.pool, now)?;
        let reservation = Reservation { authority: self, pool: &profile.pool, addresses };
        let id =
            self.with_entropy(|entropy| Ok(format!("r-{}", random_text(entropy, LEASE_ID_LEN)?)))?;
        let hard_cap = now.plus(profile.max_lease);
        let mut lease = Lease {
            identity: format!("spiffe://{}/role/{}/{id}", settings.trust_domain, holder.role),
            id: id.clone(),
            role: holder.role.to_owned(),
            subject: holder.name.to_owned(),
            dns_name: String::new(),
            // A shared key is a secret, its digest too.
            spki_sha256: match holder.door {
                KeyHolder::EXTERNAL => sha256_hex(holder.key),
                _ => String::new(),
            },
            certs: Vec::new(),
            pool: profile.pool.clone(),
            addresses: reservation.addresses.clone(),
            created: now,
            expires: now.plus(profile.ttl).min(hard_cap).floor_to_second(),
            hard_cap,
            state: LeaseState::Issued,
            state_since: now,
            deadline: None,
            orphaned: false,
            first_connected: None,
            end: None,
            door: holder.door.to_owned(),
            token: None,
            holder: Some(holder.digest()),
            claims: Default::default(),
            ci_ref: CiRef::default(),
            policy_version: self.policy_version(),
        };
        lease.deadline = state::deadline(&lease, &settings.timers);

        let lease_key = key::lease(&id);
        txn.absent(&lease_key).put(lease_key, record::encode(&lease));
        put_live(&mut txn, &lease);
        if !lease.spki_sha256.is_empty() {
            txn.put(key::spki(&lease.spki_sha256, &id), Vec::new());
        }
        let record_key = holder.record_key();
        match before {
            Some(before) => txn.at(&record_key, before.revision),
            None => txn.absent(&record_key),
        };
        let record = self.next_record(holder, before.map(|stored| &stored.value), &id, now)?;
        txn.put(record_key, record::encode(&record));
        if let Some(deadline) = lease.deadline {
            txn.put(key::due(deadline, &id), Vec::new());
        }
        if let Some((address, resting_until)) = self.claim_addresses(&mut txn, &lease, now)? {
            drop(reservation);
            self.learn(&profile.pool, address, resting_until);
            return Ok(None);
        }
        AuditEvent::new("lease.create", actor, now)
            .lease(&lease)
            .reason(holder.door)
            .record(&mut txn);
        match self.store.transact(txn)? {
            Outcome::Committed(_) => {
                reservation.keep();
                Ok(Some(Access { deadline: lease.expires, lease }))
            }
            Outcome::Conflict(_) => Ok(None),
        }
    }

    /// What is remembered of an identity that gets another lease.
    fn next_record(
        &self,
        holder: &KeyHolder<'_>,
        before: Option<&HolderRecord>,
        lease: &str,
        now: UnixTime,
    ) -> Result<HolderRecord, Error> {
        let record_key = holder.record_key();
        let digest = Zeroizing::new(sha256_hex(holder.key));
        let seal =
            |entropy: &mut dyn Entropy| self.sealer.seal(&record_key, digest.as_bytes(), entropy);
        let mut record = HolderRecord {
            lease: lease.to_owned(),
            key: self.with_entropy(seal)?,
            key_since: Some(now),
            barred: None,
            former: Vec::new(),
            name: holder.name.to_owned(),
        };
        if let Some(before) = before {
            record.former = before.former.clone();
            if self.is_key_of(&record_key, before, holder)? {
                record.key_since = before.key_since;
            } else if let Some(at) = before.barred {
                let (key, lease) = (before.key.clone(), before.lease.clone());
                record.former.push(FormerKey { key, at, lease });
            }
        }
        Ok(record)
    }
}
