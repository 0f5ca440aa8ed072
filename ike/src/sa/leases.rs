//! What each lease holds over all of its IKE SAs.
//!
//! Every handshake asks several times. Names of leases are texts that lie anywhere in memory, and a
//! tree of thousands reads a dozen of them on the way to one; so this is a table by hash. Its hash
//! has no random part, since the same inputs must give the same outputs, and nobody iterates over it.
//! Names are made by the gateway: nobody else can choose them to fall together.

#![allow(clippy::disallowed_types)] // its hash is fixed, and nobody iterates

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, DefaultHasher};

use crate::io::{ChildSaId, LeaseId};

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    by_name: HashMap<LeaseId, Held, BuildHasherDefault<DefaultHasher>>,
}

/// What one lease holds.
#[derive(Debug, Default)]
struct Held {
    /// Established IKE SAs.
    established: u32,
    /// Children in the data plane.
    children: Vec<ChildSaId>,
}

impl Leases {
    /// Whether the lease has an established IKE SA.
    pub(crate) fn is_up(&self, lease: &LeaseId) -> bool {
        self.by_name.get(lease).is_some_and(|held| held.established > 0)
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
        self.by_name.is_empty()
    }

    fn entry(&mut self, lease: &LeaseId) -> &mut Held {
        self.by_name.entry(lease.clone()).or_default()
    }

    /// Changes what a lease holds, and forgets it when that is nothing.
    fn change<R>(&mut self, lease: &LeaseId, change: impl FnOnce(&mut Held) -> R) -> Option<R> {
        let held = self.by_name.get_mut(lease)?;
        let result = change(held);
        if held.established == 0 && held.children.is_empty() {
            self.by_name.remove(lease);
        }
        Some(result)
    }
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
