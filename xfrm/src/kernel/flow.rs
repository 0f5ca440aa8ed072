//! What an outbound policy selects: the traffic that one child carries to one destination.

use std::fmt;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};

use crate::model::{ChildSpec, Mode, Selector};

/// Traffic that one outbound policy takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Flow {
    /// Where it goes: inner addresses of the peer, in transport mode the peer itself.
    pub(super) destination: IpNet,
    /// In transport mode, what of it; in tunnel mode everything that was routed to the interface.
    pub(super) between: Option<Between>,
}

/// Traffic between two machines' own addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Between {
    /// Our address.
    pub(super) source: IpAddr,
    /// IP protocol; 0 is any.
    pub(super) protocol: u8,
    /// Our port; `None` is any.
    pub(super) source_port: Option<u16>,
    /// The peer's port; `None` is any.
    pub(super) destination_port: Option<u16>,
}

impl Flow {
    /// Everything to inner addresses.
    pub(super) fn to(destination: IpNet) -> Self {
        Self { destination, between: None }
    }
}

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.between.is_some() {
            self.destination.addr().fmt(f)
        } else {
            self.destination.fmt(f)
        }
    }
}

/// What a child carries. A child in transport mode that a policy cannot express carries nothing.
pub(super) fn flows(spec: &ChildSpec) -> Vec<Flow> {
    match spec.mode {
        Mode::Tunnel => inner_networks(spec).into_iter().map(Flow::to).collect(),
        Mode::Transport => between_hosts(spec).into_iter().collect(),
    }
}

/// The peer's inner addresses as the prefixes that policies are made of.
fn inner_networks(spec: &ChildSpec) -> Vec<IpNet> {
    let mut networks: Vec<IpNet> = Vec::new();
    for selector in &spec.remote_selectors {
        match (selector.start, selector.end) {
            (IpAddr::V4(start), IpAddr::V4(end)) => {
                networks.extend(Ipv4Subnets::new(start, end, 0).map(IpNet::V4));
            }
            (IpAddr::V6(start), IpAddr::V6(end)) => {
                networks.extend(Ipv6Subnets::new(start, end, 0).map(IpNet::V6));
            }
            // Mixed families match nothing.
            _ => {}
        }
    }
    networks.sort();
    networks.dedup();
    networks
}

/// The one selector of a child in transport mode. RFC 7296 1.3.1: between the two hosts' own
/// addresses; a policy of the kernel holds one protocol, and one port or all.
fn between_hosts(spec: &ChildSpec) -> Option<Flow> {
    let ([local], [remote]) = (spec.local_selectors.as_slice(), spec.remote_selectors.as_slice())
    else {
        return None;
    };
    let protocol = match (local.protocol, remote.protocol) {
        (0, one) | (one, 0) => one,
        (one, other) => (one == other).then_some(one)?,
    };
    if !spec.is_between_hosts() {
        return None;
    }
    let between = Between {
        source: local.start,
        protocol,
        source_port: port(local)?,
        destination_port: port(remote)?,
    };
    Some(Flow { destination: remote.start.into(), between: Some(between) })
}

/// One port or all. What RFC 7296 3.13.1 puts there for ICMP is not taken apart.
#[allow(clippy::option_option)]
fn port(selector: &Selector) -> Option<Option<u16>> {
    const ICMP: [u8; 2] = [1, 58];
    match (selector.start_port, selector.end_port) {
        (0, u16::MAX) => Some(None),
        (first, last) if first == last && !ICMP.contains(&selector.protocol) => Some(Some(first)),
        _ => None,
    }
}
