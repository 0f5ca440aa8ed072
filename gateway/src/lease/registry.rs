//! What the gateway itself must know about leases: their request ids, and which ended lately.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ike::io::LeaseId;

/// Request ids begin here, out of the way of policies that others number from 1.
const FIRST_REQID: u32 = 0x4000;

/// Endings remembered. An authorisation that is older than the oldest of them is refused, which
/// costs its peer one retry; none is ever let through by forgetting.
const ENDINGS: usize = 4096;

/// A moment in the order of endings (see [`LeaseRegistry::epoch`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Epoch(u64);

#[derive(Debug, Default)]
struct Inner {
    endings: u64,
    forgotten: u64,
    ended: BTreeMap<LeaseId, u64>,
    order: BTreeMap<u64, LeaseId>,
    reqids: BTreeMap<LeaseId, u32>,
    used: BTreeSet<u32>,
    next: u32,
}

/// See the module.
///
/// Authorising a peer reads the store on one thread and takes effect on another; a lease can end
/// in between. Whoever authorises notes the [`epoch`](Self::epoch) first; when the answer takes
/// effect, [`ended_since`](Self::ended_since) tells whether it is stale.
#[derive(Debug, Default)]
pub struct LeaseRegistry {
    inner: Mutex<Inner>,
}

impl LeaseRegistry {
    /// Now, in the order of endings.
    pub fn epoch(&self) -> Epoch {
        Epoch(self.lock().endings)
    }

    /// The lease has ended (durably, in the store): answers decided before are stale.
    pub fn end(&self, lease: &LeaseId) {
        let mut inner = self.lock();
        inner.endings += 1;
        let now = inner.endings;
        if let Some(before) = inner.ended.insert(lease.clone(), now) {
            inner.order.remove(&before);
        }
        inner.order.insert(now, lease.clone());
        while inner.order.len() > ENDINGS {
            if let Some((at, lease)) = inner.order.pop_first() {
                inner.ended.remove(&lease);
                inner.forgotten = at;
            }
        }
    }

    /// Whether the lease may have ended after `epoch`.
    pub fn ended_since(&self, lease: &LeaseId, epoch: Epoch) -> bool {
        let inner = self.lock();
        epoch.0 < inner.forgotten || inner.ended.get(lease).is_some_and(|at| *at > epoch.0)
    }

    /// The lease's request id; the first call chooses it.
    pub fn reqid(&self, lease: &LeaseId) -> u32 {
        let mut inner = self.lock();
        if let Some(reqid) = inner.reqids.get(lease) {
            return *reqid;
        }
        let mut reqid = inner.next.max(FIRST_REQID);
        while inner.used.contains(&reqid) {
            reqid = reqid.checked_add(1).unwrap_or(FIRST_REQID);
        }
        inner.next = reqid.checked_add(1).unwrap_or(FIRST_REQID);
        inner.used.insert(reqid);
        inner.reqids.insert(lease.clone(), reqid);
        reqid
    }

    /// Gives a lease the request id it had before a restart; false when another lease has it, or
    /// this one has another.
    pub fn take(&self, lease: &LeaseId, reqid: u32) -> bool {
        let mut inner = self.lock();
        if let Some(held) = inner.reqids.get(lease) {
            return *held == reqid;
        }
        if reqid < FIRST_REQID || !inner.used.insert(reqid) {
            return false;
        }
        inner.reqids.insert(lease.clone(), reqid);
        true
    }

    /// The request id, if one was ever chosen.
    pub fn known_reqid(&self, lease: &LeaseId) -> Option<u32> {
        self.lock().reqids.get(lease).copied()
    }

    /// The lease is over and nothing of it is installed: its request id may be used again.
    pub fn forget(&self, lease: &LeaseId) {
        let mut inner = self.lock();
        if let Some(reqid) = inner.reqids.remove(lease) {
            inner.used.remove(&reqid);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(name: &str) -> LeaseId {
        LeaseId(name.to_owned())
    }

    #[test]
    fn an_answer_decided_before_the_end_is_stale() {
        let registry = LeaseRegistry::default();
        let before = registry.epoch();
        registry.end(&lease("a"));
        let after = registry.epoch();
        assert!(registry.ended_since(&lease("a"), before));
        assert!(!registry.ended_since(&lease("b"), before));
        // A renewed lease may connect again.
        assert!(!registry.ended_since(&lease("a"), after));
    }

    #[test]
    fn forgetting_endings_fails_closed() {
        let registry = LeaseRegistry::default();
        let ancient = registry.epoch();
        for i in 0..=ENDINGS {
            registry.end(&lease(&i.to_string()));
        }
        assert_eq!(registry.lock().ended.len(), ENDINGS);
        assert!(registry.ended_since(&lease("never seen"), ancient));
        assert!(!registry.ended_since(&lease("never seen"), registry.epoch()));
    }

    #[test]
    fn request_ids_are_unique_and_stable() {
        let registry = LeaseRegistry::default();
        let a = registry.reqid(&lease("a"));
        let b = registry.reqid(&lease("b"));
        assert!(a >= FIRST_REQID && a != b);
        assert_eq!(registry.reqid(&lease("a")), a);
        assert_eq!(registry.known_reqid(&lease("c")), None);
        registry.forget(&lease("a"));
        assert_eq!(registry.known_reqid(&lease("a")), None);
        assert_ne!(registry.reqid(&lease("d")), a, "not at once");
    }

    #[test]
    fn a_request_id_of_an_earlier_run_is_taken_once() {
        let registry = LeaseRegistry::default();
        assert!(registry.take(&lease("a"), FIRST_REQID));
        assert!(registry.take(&lease("a"), FIRST_REQID), "several SAs of a lease share it");
        assert!(!registry.take(&lease("a"), FIRST_REQID + 7));
        assert!(!registry.take(&lease("b"), FIRST_REQID), "it is the other one's");
        assert!(!registry.take(&lease("b"), 1), "never ours");
        assert_ne!(registry.reqid(&lease("b")), FIRST_REQID, "nor chosen anew");
    }
}
