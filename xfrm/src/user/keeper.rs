//! Follows the path MTU of every child in use.
//!
//! The kernel learns of a narrower path from ICMP and forgets it after some minutes. Workers ask
//! for a new measurement when the network complains; besides, children that send are measured
//! from time to time.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use super::child::locked;
use super::plane::Shared;
use crate::model::ChildId;

/// How often sending children are measured unasked.
const PERIOD: Duration = Duration::from_secs(15);
/// Requests are collected for so long: one narrow hop brings one ICMP error per packet in flight.
const GATHER: Duration = Duration::from_millis(20);

/// Requests of the workers.
#[derive(Debug, Default)]
pub(super) struct Keeper {
    requests: Mutex<BTreeSet<IpAddr>>,
    bell: Condvar,
}

impl Keeper {
    /// Asks for a measurement of the path to a peer.
    pub(super) fn request(&self, peer: IpAddr) {
        locked(&self.requests).insert(peer);
        self.bell.notify_one();
    }

    /// Lets the thread notice that the plane stops.
    pub(super) fn wake(&self) {
        // The lock orders this against the check of the flag before waiting.
        let _requests = locked(&self.requests);
        self.bell.notify_all();
    }
}

/// The thread: until the plane stops.
pub(super) fn run(shared: &Shared) {
    let mut sent: HashMap<ChildId, u64> = HashMap::new();
    while !shared.stopping() {
        let mut requests = locked(&shared.keeper.requests);
        if requests.is_empty() && !shared.stopping() {
            requests = shared
                .keeper
                .bell
                .wait_timeout(requests, PERIOD)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        let asked = !requests.is_empty();
        drop(requests);
        if shared.stopping() {
            return;
        }
        if asked {
            std::thread::sleep(GATHER);
        }
        let wanted = std::mem::take(&mut *locked(&shared.keeper.requests));
        let children: Vec<_> = shared.table().children().cloned().collect();
        let mut seen = HashMap::with_capacity(children.len());
        // One measurement per pair of addresses, whatever the number of children behind it.
        let mut due = BTreeMap::new();
        for child in children {
            let hosts = child.hosts();
            let packets = child.packets_out();
            let active = sent.get(&child.id).is_none_or(|before| *before != packets);
            seen.insert(child.id, packets);
            if wanted.contains(&hosts.remote.ip()) || (!asked && active) {
                due.entry((hosts.local.ip(), hosts.remote.ip()))
                    .or_insert_with(Vec::new)
                    .push(child);
            }
        }
        for ((_, remote), children) in due {
            let changed = children.iter().filter(|child| shared.measure(child)).count();
            if let (1.., Some(child)) = (changed, children.first()) {
                tracing::info!(%remote, tunnel_mtu = child.tunnel_mtu(), "path MTU changed");
            }
        }
        if !asked {
            sent = seen;
        }
    }
}
