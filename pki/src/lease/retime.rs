//! Other periods for leases that live already.

use crate::authority::Authority;
use crate::error::Error;
use crate::lease::book::{ATTEMPTS, move_deadline};
use crate::lease::state::deadline;
use crate::record::{self, key};
use crate::store::{self, Outcome, Txn};

/// Leases of one transaction.
const BATCH: usize = 256;

impl Authority {
    /// Has every live lease end when the periods in force say; how many have another deadline now.
    /// One that is overdue by them is found by the next [`expire_due`](Self::expire_due), which has
    /// its tunnels ended.
    ///
    /// # Errors
    /// When the store fails; the leases that are not done keep their deadlines, and are looked at
    /// again when those come.
    pub(crate) fn retime(&self) -> Result<usize, Error> {
        let due = store::scan(self.store.as_ref(), key::DUE)?;
        let ids = due.iter().filter_map(|(due, _)| key::parse_due(due)).map(|(_, id)| id);
        let ids: Vec<&str> = ids.collect();
        let mut moved = 0;
        for batch in ids.chunks(BATCH) {
            moved += match self.retime_all(batch)? {
                Some(moved) => moved,
                // One of them changed meanwhile: one by one.
                None => batch.iter().map(|id| self.retime_one(id)).sum::<Result<usize, _>>()?,
            };
        }
        Ok(moved)
    }

    fn retime_one(&self, id: &str) -> Result<usize, Error> {
        for _ in 0..ATTEMPTS {
            if let Some(moved) = self.retime_all(&[id])? {
                return Ok(moved);
            }
        }
        Err(Error::Contended("the lease"))
    }

    /// All in one transaction; `None`: somebody else was faster with one of them.
    fn retime_all(&self, ids: &[&str]) -> Result<Option<usize>, Error> {
        let settings = self.settings();
        let mut txn = Txn::new();
        let mut moved = 0;
        for id in ids {
            let Some(stored) = self.stored_lease(id)? else { continue };
            let mut lease = stored.value.clone();
            lease.deadline = deadline(&lease, &settings.timers);
            if lease.deadline == stored.value.deadline {
                continue;
            }
            let lease_key = key::lease(id);
            txn.at(&lease_key, stored.revision).put(lease_key, record::encode(&lease));
            move_deadline(&mut txn, &stored.value, &lease);
            moved += 1;
        }
        if moved == 0 {
            return Ok(Some(0));
        }
        let committed = matches!(self.store.transact(txn)?, Outcome::Committed(_));
        Ok(committed.then_some(moved))
    }
}
