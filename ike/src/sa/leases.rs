//! What each lease holds over all of its IKE SAs.
//!
//! Every handshake asks several times. Names of leases are texts that lie anywhere in memory, and a
//! tree of thousands compares dozens of them on the way to one; so the order is that of a hash, and
//! the names are compared only where it is the same.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::io::{ChildSaId, LeaseId};

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    /// By the hash of their names; hardly ever more than one of each.
    by_hash: BTreeMap<u64, Vec<Held>>,
}

/// What one lease holds.
#[derive(Debug)]
struct Held {
    lease: LeaseId,
    /// Established IKE SAs.
    established: u32,
    /// Children in the data plane.
    children: Vec<ChildSaId>,
}

impl Leases {
    /// Whether the lease has an established IKE SA.
    pub(crate) fn is_up(&self, lease: &LeaseId) -> bool {
        let bucket = self.by_hash.get(&hash(lease)).map(Vec::as_slice).unwrap_or_default();
        bucket.iter().any(|held| held.lease == *lease && held.established > 0)
    }

    /// One more IKE SA of the lease is established.
    pub(crate) fn up(&mut self, lease: &LeaseId) {
        let held = self.entry(lease);
        held.established = held.established.saturating_add(1);
    }

    /// The opposite of [`Leases::up`]; whether it was the last.
    pub(crate) fn down(&mut self, lease: &LeaseId) -> bool {
        self.change(lease, |held| {
            let last = held.established == 1;
            held.established = held.established.saturating_sub(1);
            last
        })
        .unwrap_or(false)
    }

    /// A child of the lease goes into the data plane.
    pub(crate) fn child_in(&mut self, lease: &LeaseId, child: ChildSaId) {
        let children = &mut self.entry(lease).children;
        if !children.contains(&child) {
            children.push(child);
        }
    }

    /// A child of the lease leaves the data plane; whether it was the last.
    pub(crate) fn child_out(&mut self, lease: &LeaseId, child: ChildSaId) -> bool {
        self.change(lease, |held| {
            held.children.retain(|held| *held != child);
            held.children.is_empty()
        })
        .unwrap_or(true)
    }

    /// Whether no lease holds anything.
    pub(crate) fn is_empty(&self) -> bool {
        self.by_hash.is_empty()
    }

    fn entry(&mut self, lease: &LeaseId) -> &mut Held {
        let bucket = self.by_hash.entry(hash(lease)).or_insert_with(|| Vec::with_capacity(1));
        let at = bucket.iter().position(|held| held.lease == *lease).unwrap_or_else(|| {
            bucket.push(Held { lease: lease.clone(), established: 0, children: Vec::new() });
            bucket.len() - 1
        });
        &mut bucket[at]
    }

    /// Changes what a lease holds, and forgets it when that is nothing.
    fn change<R>(&mut self, lease: &LeaseId, change: impl FnOnce(&mut Held) -> R) -> Option<R> {
        let hash = hash(lease);
        let bucket = self.by_hash.get_mut(&hash)?;
        let at = bucket.iter().position(|held| held.lease == *lease)?;
        let held = bucket.get_mut(at)?;
        let result = change(held);
        if held.established == 0 && held.children.is_empty() {
            bucket.remove(at);
            if bucket.is_empty() {
                self.by_hash.remove(&hash);
            }
        }
        Some(result)
    }
}

/// The same for the same name, always.
fn hash(lease: &LeaseId) -> u64 {
    let mut hasher = DefaultHasher::new();
    lease.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_held_by_its_sas_and_by_its_children_and_then_forgotten() {
        let mut leases = Leases::default();
        let (a, b) = (LeaseId("a".to_owned()), LeaseId("b".to_owned()));
        leases.child_in(&a, ChildSaId(1));
        leases.child_in(&a, ChildSaId(1));
        assert!(!leases.is_up(&a), "a child alone is no connection");
        leases.up(&a);
        leases.up(&a);
        leases.up(&b);

        assert!(!leases.down(&a));
        assert!(leases.down(&a));
        assert!(!leases.is_up(&a) && leases.is_up(&b));
        leases.child_in(&a, ChildSaId(2));
        assert!(!leases.child_out(&a, ChildSaId(1)));
        assert!(leases.child_out(&a, ChildSaId(2)));
        assert!(leases.child_out(&a, ChildSaId(2)), "of nothing, nothing is left");
        assert!(!leases.down(&a));
        assert!(leases.down(&b));
        assert!(leases.is_empty());
    }
}
