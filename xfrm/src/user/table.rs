//! The SA table: children by id, by inbound SPI, and by inner destination.
//!
//! Workers hold its read lock for a whole batch, so it holds only what a packet needs.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use super::child::Child;
use super::icmp::Subject;
use super::packet::Packet;
use super::selector::{Direction, Verdict, covers, judge_subject};
use crate::error::PlaneError;
use crate::model::{ChildId, Selector};

#[derive(Debug, Default)]
pub(super) struct Table {
    by_id: BTreeMap<ChildId, Arc<Child>>,
    by_spi: HashMap<u32, Arc<Child>>,
    outbound: Outbound,
}

/// Where an outbound packet goes.
#[derive(Debug)]
pub(super) enum Route<'a> {
    /// Into this child.
    Child(&'a Arc<Child>),
    /// Into this child if the first fragment of its datagram went there.
    ChildIfFirstDid(&'a Arc<Child>),
    /// A peer has that address, but no child of it takes this packet.
    Refused,
    /// No peer has that address.
    Nobody,
}

impl Table {
    pub(super) fn by_id(&self, id: ChildId) -> Result<&Arc<Child>, PlaneError> {
        self.by_id.get(&id).ok_or_else(|| unknown(id))
    }

    pub(super) fn by_spi(&self, spi: u32) -> Option<&Arc<Child>> {
        self.by_spi.get(&spi)
    }

    pub(super) fn children(&self) -> impl Iterator<Item = &Arc<Child>> {
        self.by_id.values()
    }

    /// Adds a child without letting it send.
    ///
    /// # Errors
    /// [`PlaneError::Conflict`] when its id or SPI is taken, or another lease has its addresses.
    pub(super) fn insert(&mut self, child: Arc<Child>) -> Result<(), PlaneError> {
        if self.by_id.contains_key(&child.id) {
            return Err(PlaneError::Conflict(format!("child {} is installed twice", child.id.0)));
        }
        if self.by_spi.contains_key(&child.spi_in) {
            return Err(PlaneError::Conflict(format!("SPI {:08x} is in use", child.spi_in)));
        }
        if let Some((other, selector)) = self.outbound.taken(&child) {
            return Err(PlaneError::Conflict(format!(
                "inner addresses {}-{} of child {} already belong to child {} of another lease",
                selector.start, selector.end, child.id.0, other.0
            )));
        }
        self.by_spi.insert(child.spi_in, Arc::clone(&child));
        self.by_id.insert(child.id, child);
        Ok(())
    }

    /// Makes a child the first choice for its inner addresses.
    pub(super) fn activate(&mut self, id: ChildId) -> Result<(), PlaneError> {
        let child = Arc::clone(self.by_id(id)?);
        self.outbound.remove(&child);
        self.outbound.add(&child);
        Ok(())
    }

    /// Takes a child out of every direction.
    pub(super) fn remove(&mut self, id: ChildId) -> Result<Arc<Child>, PlaneError> {
        let child = self.by_id.remove(&id).ok_or_else(|| unknown(id))?;
        self.outbound.remove(&child);
        self.by_spi.remove(&child.spi_in);
        Ok(child)
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Finds the child for an outbound packet: the narrowest range that holds its destination
    /// first, and within one range the child activated last. An older child takes over where a
    /// newer one is gone or exhausted.
    pub(super) fn route(&self, packet: &Packet, subject: &Subject) -> Route<'_> {
        let destination = packet.destination;
        let exact = self.outbound.exact.get(&destination).into_iter().flatten();
        let ranges = self
            .outbound
            .ranges
            .iter()
            .filter(|(selector, _)| covers(std::slice::from_ref(selector), destination))
            .map(|(_, child)| child);
        let mut route = Route::Nobody;
        for child in exact.chain(ranges) {
            if child.expired() {
                route = Route::Refused;
                continue;
            }
            let way = Direction::Outbound;
            match judge_subject(&child.local, &child.remote, packet, subject, way) {
                Verdict::Pass => return Route::Child(child),
                Verdict::PassIfFirstDid => return Route::ChildIfFirstDid(child),
                Verdict::Refuse => route = Route::Refused,
            }
        }
        route
    }
}

fn unknown(id: ChildId) -> PlaneError {
    PlaneError::Unknown(format!("child SA (id {})", id.0))
}

/// Children that send, by the peer's inner addresses. Nearly all are single addresses.
#[derive(Debug, Default)]
struct Outbound {
    /// The last activated first.
    exact: HashMap<IpAddr, Vec<Arc<Child>>>,
    /// Ordered by size of the range, then the last activated first.
    ranges: Vec<(Selector, Arc<Child>)>,
}

impl Outbound {
    fn add(&mut self, child: &Arc<Child>) {
        for selector in &child.remote {
            if selector.start == selector.end {
                let children = self.exact.entry(selector.start).or_default();
                if children.first().is_none_or(|first| first.id != child.id) {
                    children.insert(0, Arc::clone(child));
                }
            } else {
                let at = self.ranges.partition_point(|(other, _)| width(other) < width(selector));
                self.ranges.insert(at, (*selector, Arc::clone(child)));
            }
        }
    }

    fn remove(&mut self, child: &Child) {
        for selector in child.remote.iter().filter(|selector| selector.start == selector.end) {
            if let Some(children) = self.exact.get_mut(&selector.start) {
                children.retain(|other| other.id != child.id);
                if children.is_empty() {
                    self.exact.remove(&selector.start);
                }
            }
        }
        if child.remote.iter().any(|selector| selector.start != selector.end) {
            self.ranges.retain(|(_, other)| other.id != child.id);
        }
    }

    /// A child of another lease with the very same range of addresses.
    fn taken(&self, child: &Child) -> Option<(ChildId, Selector)> {
        child.remote.iter().find_map(|selector| {
            let foreign = |other: &&Arc<Child>| other.reqid != child.reqid;
            let exact = self.exact.get(&selector.start).into_iter().flatten().find(foreign);
            let single = selector.start == selector.end;
            let found = exact.filter(|_| single).or_else(|| {
                self.ranges
                    .iter()
                    .filter(|(range, _)| range.start == selector.start && range.end == selector.end)
                    .map(|(_, other)| other)
                    .find(foreign)
            });
            found.map(|other| (other.id, *selector))
        })
    }
}

/// Size of a range, IPv4 before IPv6 (they never compete).
fn width(selector: &Selector) -> (bool, u128) {
    match (selector.start, selector.end) {
        (IpAddr::V4(start), IpAddr::V4(end)) => {
            (false, u128::from(u32::from(end).saturating_sub(u32::from(start))))
        }
        (IpAddr::V6(start), IpAddr::V6(end)) => {
            (true, u128::from(end).saturating_sub(u128::from(start)))
        }
        // Mixed families match nothing.
        _ => (true, u128::MAX),
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
