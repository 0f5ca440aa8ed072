//! Leases of peers that prove who they are without a certificate of ours: with a shared key, or with
//! a certificate of an external CA.
//!
//! Such a lease is opened at the first connection and found again by the peer's identity: while it
//! lives, the peer comes back to the same lease and addresses. Each proof of the key moves its end,
//! as a renewed certificate does, up to the role's cap. A revoked lease bars its identity until the
//! key is another one; for that a digest of the key is kept, sealed.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::open::{LEASE_ID_LEN, Reservation};
use crate::audit::{Actor, AuditEvent};
use crate::authority::{Access, AccessError, Authority, lock};
use crate::entropy::random_text;
use crate::error::Error;
use crate::issue::{base64_bytes, sha256_hex};
use crate::lease::book::{ATTEMPTS, Step};
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

    /// Whether leases that came through this door are opened by whoever proves a key.
    pub(crate) fn opens(door: &str) -> bool {
        matches!(door, Self::DOOR | Self::EXTERNAL)
    }

    fn record_key(&self) -> String {
        let id = sha256_hex(&[&[self.id.kind], self.id.data].concat());
        match self.door {
            Self::DOOR => key::holder(&id),
            // No identity of one door meets one of the other.
            door => key::holder(&format!("{door}-{id}")),
        }
    }
}

/// Which lease an identity has, and which key opened it.
#[derive(Debug, Serialize, Deserialize)]
struct HolderRecord {
    lease: String,
    /// SHA-256 of the key in hexadecimal, sealed: a weak key could be guessed from it.
    #[serde(with = "base64_bytes")]
    key: Vec<u8>,
    /// The lease was revoked, before or after it ended: this key opens no other. Said here because
    /// ended leases are forgotten some day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    barred: Option<UnixTime>,
}

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
            let stored = record::read::<HolderRecord>(self.store.as_ref(), &record_key)?;
            if let Some(stored) = &stored
                && let Some(at) = stored.value.barred
                && self.is_key_of(&record_key, &stored.value, holder)?
            {
                let (name, lease) = (holder.name.to_owned(), stored.value.lease.clone());
                return Err(AccessError::HolderRevoked { name, lease, at });
            }
            if let Some(stored) = &stored
                && let Some(lease) = self.lease(&stored.value.lease)?
            {
                let same_key = self.is_key_of(&record_key, &stored.value, holder)?;
                if lease.state == LeaseState::Revoked && same_key {
                    let (name, at) = (holder.name.to_owned(), lease.state_since);
                    return Err(AccessError::HolderRevoked { name, lease: lease.id, at });
                }
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
            if let Some(access) =
                self.open_holder(holder, &record_key, stored.as_ref(), &actor, now)?
            {
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

    /// Bars the keys that opened these leases, as part of a transaction; the leases whose key was
    /// not barred before.
    pub(crate) fn bar_holders(
        &self,
        txn: &mut Txn,
        leases: &BTreeSet<&str>,
        now: UnixTime,
    ) -> Result<BTreeSet<String>, Error> {
        let mut barred = BTreeSet::new();
        if leases.is_empty() {
            return Ok(barred);
        }
        // As many as there are clients with keys of their own.
        for (holder_key, entry) in store::scan(self.store.as_ref(), key::HOLDER)? {
            let stored = record::decode::<HolderRecord>(&holder_key, &entry)?;
            if leases.contains(stored.value.lease.as_str()) && stored.value.barred.is_none() {
                barred.insert(stored.value.lease.clone());
                let record = HolderRecord { barred: Some(now), ..stored.value };
                txn.at(&holder_key, stored.revision).put(holder_key, record::encode(&record));
            }
        }
        Ok(barred)
    }

    fn is_key_of(
        &self,
        record_key: &str,
        record: &HolderRecord,
        holder: &KeyHolder<'_>,
    ) -> Result<bool, Error> {
        let digest = self.sealer.open(record_key, &record.key)?;
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
        holder: &KeyHolder<'_>,
        record_key: &str,
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
            first_connected: None,
            end: None,
            door: holder.door.to_owned(),
            token: None,
            claims: Default::default(),
            ci_ref: CiRef::default(),
            policy_version: settings.policy_version,
        };
        lease.deadline = state::deadline(&lease, &settings.timers);

        let mut txn = Txn::new();
        let lease_key = key::lease(&id);
        txn.absent(&lease_key).put(lease_key, record::encode(&lease));
        match before {
            Some(before) => txn.at(record_key, before.revision),
            None => txn.absent(record_key),
        };
        let digest = Zeroizing::new(sha256_hex(holder.key));
        let key =
            self.with_entropy(|entropy| self.sealer.seal(record_key, digest.as_bytes(), entropy))?;
        txn.put(record_key, record::encode(&HolderRecord { lease: id.clone(), key, barred: None }));
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
}
