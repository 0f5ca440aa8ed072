//! The number of the policy in force: which roles there are, what they may reach, who gets them.
//!
//! Whoever configures the authority says what its policy is, as text. Each other text is another
//! policy with the next number, and the trail says when it came into force, by whom, and its digest.
//! The numbers go on over restarts, and over the restoration of a backup.

use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};

use super::{Actor, AuditEvent};
use crate::authority::Authority;
use crate::error::Error;
use crate::issue::hex;
use crate::record::{self, key};
use crate::store::{Outcome, Store, Txn};
use crate::time::UnixTime;

/// The record of the policy in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Policy {
    /// From 1.
    number: u64,
    /// SHA-256 of its text, hexadecimal.
    digest: String,
}

/// The number that was in force last; 0 when there was none.
pub(crate) fn current(store: &dyn Store) -> Result<u64, Error> {
    let stored = record::read::<Policy>(store, key::POLICY)?;
    Ok(stored.map_or(0, |stored| stored.value.number))
}

impl Authority {
    /// The number of the policy in force; 0 while nobody said what it is.
    pub fn policy_version(&self) -> u64 {
        self.policy.load(Ordering::Acquire)
    }

    /// Says what the policy in force is; its number. Leases that are opened from now on carry it.
    ///
    /// # Errors
    /// When the store fails.
    pub fn adopt_policy(&self, text: &str, actor: &Actor, now: UnixTime) -> Result<u64, Error> {
        let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
        let digest = hex(digest.as_ref());
        loop {
            let stored = record::read::<Policy>(self.store.as_ref(), key::POLICY)?;
            let before = stored.as_ref().map_or(0, |stored| stored.value.number);
            if stored.as_ref().is_some_and(|stored| stored.value.digest == digest) {
                self.policy.store(before, Ordering::Release);
                return Ok(before);
            }
            let number = before + 1;
            let mut txn = Txn::new();
            match &stored {
                Some(stored) => txn.at(key::POLICY, stored.revision),
                None => txn.absent(key::POLICY),
            };
            let policy = Policy { number, digest: digest.clone() };
            txn.put(key::POLICY, record::encode(&policy));
            let mut event = AuditEvent::new("policy.update", actor, now).object(&digest);
            event.policy_version = number;
            event.record(&mut txn);
            if let Outcome::Committed(_) = self.store.transact(txn)? {
                self.policy.store(number, Ordering::Release);
                return Ok(number);
            }
        }
    }
}
