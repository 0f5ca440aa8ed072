//! Links, addresses, routes and forwarding of the tunnel's side, over netlink.
//!
//! Duty: give the tunnel interface its addresses and routes, take them away again, and say what
//! on this machine keeps packets from flowing. It changes nothing on interfaces that are not
//! Runnel's. Every pool also gets an `unreachable` route with the worst metric: when the tunnel
//! interface vanishes (`kill -9` of a userspace plane takes the TUN device along), packets for
//! clients are refused instead of leaving in clear by the default route.

mod forwarding;
mod ops;
mod settings;
#[cfg(any(test, feature = "fuzzing"))]
mod targets;

use std::net::IpAddr;

use ipnet::IpNet;

use self::ops::Target;
pub use self::ops::{Link, RouteSocket};
#[cfg(any(test, feature = "fuzzing"))]
pub use self::targets::route_message;
#[cfg(test)]
pub(crate) use self::targets::samples;
use crate::enforcer::TunnelAddressing;
use crate::error::PlaneError;
use crate::kernel::if_id_for;
use crate::model::{EspSuite, Mode, PlaneKind, SiteRoute, TunnelNetwork};

/// The metric of an instance's unreachable routes: worse than any in practical use, so that every
/// other route to a pool wins. Its lower bits tell instances apart, by their interface, so that
/// one finds what it left behind for networks it no longer has, and leaves others' alone.
fn unreachable_metric(interface: &str) -> u32 {
    0xff00_0000 | (if_id_for(interface) & 0x00ff_ffff)
}

/// IPv6 does not work on an interface below this MTU (RFC 8200 5).
const IPV6_MIN_MTU: u32 = 1280;

/// What kind of [`Problem`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProblemKind {
    /// An interface does not forward.
    Forwarding,
    /// There is no route to a destination.
    NoRoute,
    /// A client's or site's address does not lead to the tunnel interface.
    ReversePath,
    /// A switch takes the interface out of IPsec.
    Switch,
    /// An IPsec policy of another program is in the way.
    ForeignPolicy,
}

/// Something on this machine that keeps packets from flowing, as one sentence with its remedy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// What kind.
    pub kind: ProblemKind,
    /// The destination or interface concerned.
    pub subject: String,
    /// What is wrong and what to do, in one sentence.
    pub sentence: String,
}

/// Where packets to a destination go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteInfo {
    /// Outgoing interface; `None` for an unreachable destination.
    pub interface: Option<String>,
    /// The destination is an address of this machine.
    pub local: bool,
    /// Source address the kernel would choose.
    pub source: Option<IpAddr>,
    /// Effective MTU in bytes: the learnt path MTU, the route's, or the interface's.
    pub mtu: u32,
}

/// Finds the route to a destination.
///
/// # Errors
/// When netlink fails. An unreachable destination is no error.
pub fn route_to(destination: IpAddr) -> Result<RouteInfo, PlaneError> {
    let mut socket = RouteSocket::open()?;
    let decision = socket.decide(destination)?;
    let link = match decision.interface {
        Some(index) => socket.link_by_index(index)?,
        None => None,
    };
    let mtu = decision.mtu.or(link.as_ref().map(|link| link.mtu)).unwrap_or(1500);
    Ok(RouteInfo {
        interface: link.map(|link| link.name),
        local: decision.local,
        source: decision.source,
        mtu,
    })
}

/// Whether replies from these destinations can be forwarded to the tunnel: every interface that
/// leads to one must forward (IPv4 decides by the input interface; IPv6 machine-wide). Local
/// destinations need no forwarding. Empty when all is well.
///
/// # Errors
/// When netlink fails.
pub fn forwarding_report(destinations: &[IpNet]) -> Result<Vec<Problem>, PlaneError> {
    forwarding::report(&mut RouteSocket::open()?, destinations)
}

/// Routes and settings that drop packets of `inside` (pools, and networks behind sites) at the tunnel
/// interface: addresses that lead elsewhere, rp_filter, switches that turn IPsec off. Empty when all
/// is well.
///
/// # Errors
/// When netlink fails.
pub fn settings_report(
    tunnel: &str,
    plane: PlaneKind,
    inside: &[IpNet],
) -> Result<Vec<Problem>, PlaneError> {
    settings::report(&mut RouteSocket::open()?, tunnel, plane, inside)
}

/// MTU of the tunnel interface for a path MTU, in bytes: the largest inner packet whose ESP
/// packet fits (RFC 4303 2, RFC 3948 2.1).
pub fn tunnel_mtu(path_mtu: u32, suite: EspSuite, outer_ipv6: bool, encap: bool) -> u32 {
    let (iv, icv, block) = suite.wire_lengths();
    let outer = if outer_ipv6 { 40 } else { 20 } + if encap { 8 } else { 0 };
    let fixed = outer + 8 + iv as u32 + icv as u32;
    let room = path_mtu.saturating_sub(fixed);
    // Payload, padding, pad length and next header fill whole blocks.
    (room - room % block as u32).saturating_sub(2)
}

/// The largest packet a child SA carries over a path of `path_mtu` bytes: as [`tunnel_mtu`], in
/// transport mode with the packet's own header, which is the outer one then.
pub fn inner_mtu(path_mtu: u32, suite: EspSuite, outer_ipv6: bool, encap: bool, mode: Mode) -> u32 {
    let payload = tunnel_mtu(path_mtu, suite, outer_ipv6, encap);
    match mode {
        Mode::Tunnel => payload,
        Mode::Transport => payload.saturating_add(if outer_ipv6 { 40 } else { 20 }),
    }
}

/// Addresses and routes of one tunnel interface.
#[derive(Debug, Default)]
pub struct TunnelNet {
    socket: Option<RouteSocket>,
    interface: String,
    ipv6: bool,
    networks: Vec<TunnelNetwork>,
    sites: Vec<SiteRoute>,
}

impl TunnelNet {
    fn socket(&mut self) -> Result<&mut RouteSocket, PlaneError> {
        match &mut self.socket {
            Some(socket) => Ok(socket),
            empty => Ok(empty.insert(RouteSocket::open()?)),
        }
    }

    fn link(&mut self) -> Result<Link, PlaneError> {
        let name = self.interface.clone();
        self.socket()?.link(&name)?.ok_or_else(|| PlaneError::Unknown(format!("interface {name}")))
    }

    /// A pool or site must not overlap anything else on this machine: its packets would go astray.
    fn check_conflicts(
        &mut self,
        link: &Link,
        kind: &str,
        networks: &[IpNet],
    ) -> Result<(), PlaneError> {
        let socket = self.socket()?;
        let addresses = socket.addresses()?;
        for &pool in networks {
            let other = addresses
                .iter()
                .find(|(index, address)| *index != link.index && pool.contains(address));
            if let Some((index, address)) = other {
                let name = socket.link_by_index(*index)?.map(|l| l.name).unwrap_or_default();
                return Err(PlaneError::Conflict(format!(
                    "{kind} {pool} overlaps address {address} of interface {name}; choose another \
                     network or renumber the interface"
                )));
            }
            for route in socket.routes_within(pool)? {
                let leftover = route.ours && route.unreachable;
                if leftover || route.interface == Some(link.index) {
                    continue;
                }
                let name = match route.interface {
                    Some(index) => socket.link_by_index(index)?.map(|l| l.name),
                    None => None,
                };
                return Err(PlaneError::Conflict(format!(
                    "{kind} {pool} overlaps the existing route {}{}; choose another network or \
                     remove the route",
                    route.destination,
                    name.map(|name| format!(" to {name}")).unwrap_or_default()
                )));
            }
        }
        Ok(())
    }

    fn make(&mut self, link: &Link, mtu: u32) -> Result<(), PlaneError> {
        let networks = self.networks.clone();
        let interface = self.interface.clone();
        let sites = self.sites.clone();
        let ipv4 = self.all_networks().iter().any(|net| matches!(net, IpNet::V4(_)));
        let ipv6 = self.ipv6;
        let all = self.all_networks();
        let metric = unreachable_metric(&interface);
        let socket = self.socket()?;
        // The safety net first: from here on a pool is never without a route.
        for network in &all {
            socket.set_route(*network, Target::Unreachable { metric })?;
        }
        remove_former(socket, &all, metric)?;
        forwarding::enable_on(&interface, ipv4, ipv6)?;
        socket.set_link_up(link, mtu)?;
        for network in &networks {
            socket.add_address(link, network.gateway)?;
            let target = Target::Interface { index: link.index, source: Some(network.gateway) };
            socket.set_route(network.network.trunc(), target)?;
        }
        for site in &sites {
            let target = Target::Interface { index: link.index, source: site.source };
            socket.set_route(site.network.trunc(), target)?;
        }
        Ok(())
    }

    /// Pools and networks behind sites.
    fn all_networks(&self) -> Vec<IpNet> {
        let pools = self.networks.iter().map(|pool| pool.network.trunc());
        pools.chain(self.sites.iter().map(|site| site.network.trunc())).collect()
    }

    /// Routes the networks of sites that are new, and lets go of those that went.
    fn change_sites(&mut self, link: &Link, sites: &[SiteRoute]) -> Result<(), PlaneError> {
        let former = std::mem::take(&mut self.sites);
        let new: Vec<SiteRoute> = sites
            .iter()
            .filter(|site| {
                let network = site.network.trunc();
                !former.iter().any(|old| old.network.trunc() == network)
            })
            .cloned()
            .collect();
        let networks: Vec<IpNet> = new.iter().map(|site| site.network.trunc()).collect();
        if let Err(error) = self.check_conflicts(link, "the site's network", &networks) {
            self.sites = former;
            return Err(error);
        }
        // Both, until everything is done: a change that fails half-way is tried again by the next
        // one, and the end removes whatever may be there.
        self.sites = former.iter().chain(&new).cloned().collect();
        let pools = self.networks.iter().map(|pool| pool.network.trunc());
        let all: Vec<IpNet> = pools.chain(sites.iter().map(|site| site.network.trunc())).collect();
        self.ipv6 = all.iter().any(|net| matches!(net, IpNet::V6(_)));
        let ipv4 = all.iter().any(|net| matches!(net, IpNet::V4(_)));
        let metric = unreachable_metric(&self.interface);
        forwarding::enable_on(&self.interface, ipv4, self.ipv6)?;
        let socket = self.socket()?;
        for site in sites {
            let network = site.network.trunc();
            socket.set_route(network, Target::Unreachable { metric })?;
            let target = Target::Interface { index: link.index, source: site.source };
            socket.set_route(network, target)?;
        }
        for gone in former {
            let network = gone.network.trunc();
            if !all.contains(&network) {
                let target = Target::Interface { index: link.index, source: gone.source };
                socket.delete_route(network, target)?;
                socket.delete_route(network, Target::Unreachable { metric })?;
            }
        }
        self.sites = sites.to_vec();
        Ok(())
    }

    fn effective(&self, mtu: u32) -> u32 {
        if self.ipv6 { mtu.max(IPV6_MIN_MTU) } else { mtu }
    }
}

/// Deletes the unreachable routes a killed instance of this interface left for networks that are
/// no longer its own.
fn remove_former(
    socket: &mut RouteSocket,
    networks: &[IpNet],
    metric: u32,
) -> Result<(), PlaneError> {
    let everything = [IpAddr::from([0; 4]), IpAddr::from([0; 16])];
    for all in everything.into_iter().filter_map(|address| IpNet::new(address, 0).ok()) {
        for route in socket.routes_within(all)? {
            let former = route.ours && route.unreachable && route.metric == metric;
            let current = networks.contains(&route.destination);
            if former && !current {
                tracing::info!(network = %route.destination, "route of a former pool removed");
                socket.delete_route(route.destination, Target::Unreachable { metric })?;
            }
        }
    }
    Ok(())
}

impl TunnelAddressing for TunnelNet {
    fn set_up(
        &mut self,
        interface: &str,
        networks: &[TunnelNetwork],
        mtu: u32,
    ) -> Result<(), PlaneError> {
        self.interface = interface.to_owned();
        self.networks = networks.to_vec();
        self.ipv6 = self.all_networks().iter().any(|net| matches!(net, IpNet::V6(_)));
        let link = self.link()?;
        let pools: Vec<IpNet> = networks.iter().map(|pool| pool.network).collect();
        let behind: Vec<IpNet> = self.sites.iter().map(|site| site.network).collect();
        let checked = self
            .check_conflicts(&link, "pool", &pools)
            .and_then(|()| self.check_conflicts(&link, "the site's network", &behind));
        if let Err(error) = checked {
            // Nothing is ours to remove.
            self.networks.clear();
            self.sites.clear();
            return Err(error);
        }
        let mtu = self.effective(mtu);
        self.make(&link, mtu).inspect_err(|_| {
            for sentence in self.tear_down() {
                tracing::warn!(reason = %sentence, "left over after a failed start");
            }
        })
    }

    fn set_sites(&mut self, sites: &[SiteRoute]) -> Result<(), PlaneError> {
        if self.interface.is_empty() {
            self.sites = sites.to_vec();
            return Ok(());
        }
        if self.sites == sites {
            return Ok(());
        }
        let link = self.link()?;
        self.change_sites(&link, sites)
    }

    fn set_mtu(&mut self, mtu: u32) -> Result<(), PlaneError> {
        let link = self.link()?;
        let mtu = self.effective(mtu);
        self.socket()?.set_link_up(&link, mtu)
    }

    fn tear_down(&mut self) -> Vec<String> {
        let mut leftovers = Vec::new();
        let networks = std::mem::take(&mut self.networks);
        let sites = std::mem::take(&mut self.sites);
        let link = self.link().ok();
        let metric = unreachable_metric(&self.interface);
        let socket = match self.socket() {
            Ok(socket) => socket,
            Err(error) => return vec![error.to_string()],
        };
        let mut note = |result: Result<(), PlaneError>| {
            if let Err(error) = result {
                leftovers.push(error.to_string());
            }
        };
        for network in &networks {
            let pool = network.network.trunc();
            // A vanished interface took its address and route along.
            if let Some(link) = &link {
                let target = Target::Interface { index: link.index, source: Some(network.gateway) };
                note(socket.delete_route(pool, target));
                note(socket.delete_address(link, network.gateway));
            }
            note(socket.delete_route(pool, Target::Unreachable { metric }));
        }
        for site in &sites {
            let network = site.network.trunc();
            if let Some(link) = &link {
                let target = Target::Interface { index: link.index, source: site.source };
                note(socket.delete_route(network, target));
            }
            note(socket.delete_route(network, Target::Unreachable { metric }));
        }
        leftovers
    }
}
