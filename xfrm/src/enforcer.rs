//! A data plane, the firewall and the tunnel's network together, in the only safe order.
//!
//! Duty: decide *when* each part acts. XFRM (or the userspace plane) and nftables are separate
//! subsystems without a common transaction, so order replaces atomicity and every order fails
//! closed: a filter element is in force before the first SA that needs it, and removal begins
//! with the filter element. It never decides *what* a lease may do and keeps no clock.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::Dataplane;
use crate::error::PlaneError;
use crate::model::{
    ChildId, ChildSpec, Hosts, LeaseFilter, RoleFilter, Selector, SiteFilter, SiteRoute,
    TunnelNetwork, Usage,
};
use crate::nft::{FilterCounters, Firewall, FirewallConfig};
use crate::route::TunnelNet;

/// The packet filter of one instance, as the enforcer needs it.
pub trait PacketFilter: Send {
    /// Lets a lease's addresses use its role's chain. Repeating a binding is no error; another
    /// role for the same lease replaces the former in one transaction.
    ///
    /// # Errors
    /// [`PlaneError::Conflict`] when an address belongs to another lease, or the role is unknown;
    /// nothing is bound then.
    fn bind(&mut self, lease: &LeaseFilter) -> Result<(), PlaneError>;

    /// Stops every packet of the lease, live flows included. Unbinding what is not bound is no
    /// error.
    ///
    /// # Errors
    /// The kernel's refusal; the lease may then still be bound.
    fn unbind(&mut self, lease: &LeaseFilter) -> Result<(), PlaneError>;

    /// Replaces the allow lists of all roles in one transaction; bound leases stay bound.
    ///
    /// # Errors
    /// The former lists stay in force then.
    fn replace_roles(&mut self, roles: &[RoleFilter]) -> Result<(), PlaneError>;

    /// Replaces the filters of all sites in one transaction; bound ones stay bound.
    ///
    /// # Errors
    /// [`PlaneError::Conflict`] when a site that is to go is still bound. The former filters stay
    /// in force then.
    fn replace_sites(&mut self, sites: &[SiteFilter]) -> Result<(), PlaneError>;

    /// Counters of leases and of what was dropped.
    ///
    /// # Errors
    /// The kernel's refusal.
    fn counters(&mut self) -> Result<FilterCounters, PlaneError>;

    /// Puts the rules back when something else on the machine removed or changed them (a reloaded
    /// `nftables.service` flushes every table). True when it had to. Cheap enough to call every
    /// second: one query while nobody changes any rule. Until the call, traffic is as open as
    /// what is left of the rules.
    ///
    /// # Errors
    /// When they could not be put back.
    fn ensure(&mut self) -> Result<bool, PlaneError>;

    /// Removes every rule of this instance.
    ///
    /// # Errors
    /// The kernel's refusal.
    fn remove(&mut self) -> Result<(), PlaneError>;
}

/// Addresses and routes of the tunnel interface, as the enforcer needs them.
pub trait TunnelAddressing: Send {
    /// Gives the interface its addresses, MTU and routes and enables forwarding on it. Repairs
    /// what a killed instance left.
    ///
    /// # Errors
    /// [`PlaneError::Conflict`] when a pool overlaps something else on this machine, or the
    /// kernel's refusal; nothing of this call stays then.
    fn set_up(
        &mut self,
        interface: &str,
        networks: &[TunnelNetwork],
        mtu: u32,
    ) -> Result<(), PlaneError>;

    /// Replaces the routes of the networks behind sites. Before [`Self::set_up`] they are only
    /// remembered.
    ///
    /// # Errors
    /// [`PlaneError::Conflict`] when a network overlaps something else on this machine, or the
    /// kernel's refusal; the former routes stay then.
    fn set_sites(&mut self, sites: &[SiteRoute]) -> Result<(), PlaneError>;

    /// Changes the interface's MTU in bytes.
    ///
    /// # Errors
    /// The kernel's refusal.
    fn set_mtu(&mut self, mtu: u32) -> Result<(), PlaneError>;

    /// Removes everything [`Self::set_up`] made; returns sentences about what stayed.
    fn tear_down(&mut self) -> Vec<String>;
}

/// What [`Enforcer::bring_up`] needs besides the plane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunnelSetup {
    /// Name of this instance (`[a-z0-9_]*`, at most 32 characters); empty for the only one on a
    /// machine. Part of the nftables table's name.
    pub instance: String,
    /// Pools and the gateway's own address in each.
    pub networks: Vec<TunnelNetwork>,
    /// Allow lists.
    pub roles: Vec<RoleFilter>,
    /// Filters of sites.
    pub sites: Vec<SiteFilter>,
    /// Routes to sites.
    pub site_routes: Vec<SiteRoute>,
    /// MTU of the tunnel interface in bytes (see [`crate::route::tunnel_mtu`]).
    pub mtu: u32,
    /// Tunnels of an earlier process are to go on: should this start fail, they wait for the next,
    /// behind a firewall that lets nothing of them through.
    pub keep: bool,
}

/// One lease as the enforcer sees it.
#[derive(Debug)]
struct Lease {
    filter: LeaseFilter,
    /// The filter element is in force; false after a removal that then failed half-way.
    bound: bool,
    children: Vec<ChildId>,
}

/// Owns a plane, the firewall and the tunnel's network.
///
/// Calls block on netlink for well under a millisecond each; drive it from one thread.
pub struct Enforcer {
    plane: Box<dyn Dataplane>,
    filter: Box<dyn PacketFilter>,
    network: Box<dyn TunnelAddressing>,
    leases: BTreeMap<u32, Lease>,
    owners: BTreeMap<ChildId, u32>,
}

impl Enforcer {
    /// Installs the firewall, then addresses and routes, on the plane's interface: from the first
    /// moment the interface is up, everything on it is denied by default.
    ///
    /// # Errors
    /// Whatever a part refuses; what was already made is removed again, the plane included, unless
    /// it is to be kept and the firewall is in force.
    pub fn bring_up(
        mut plane: Box<dyn Dataplane>,
        setup: &TunnelSetup,
    ) -> Result<Self, PlaneError> {
        let config = FirewallConfig {
            instance: setup.instance.clone(),
            interface: plane.interface().to_owned(),
            networks: setup.networks.clone(),
            roles: setup.roles.clone(),
            sites: setup.sites.clone(),
            plane: plane.kind(),
        };
        let filter = match Firewall::install(&config) {
            Ok(filter) => filter,
            Err(error) => {
                // Nothing of ours guards what could be kept.
                abandon(plane.as_mut(), false);
                return Err(error);
            }
        };
        Self::with_parts(plane, Box::new(filter), Box::new(TunnelNet::default()), setup)
    }

    /// As [`Self::bring_up`] with a filter that is already in force and another network part;
    /// tests pass recording ones.
    ///
    /// # Errors
    /// As [`Self::bring_up`].
    pub fn with_parts(
        mut plane: Box<dyn Dataplane>,
        mut filter: Box<dyn PacketFilter>,
        mut network: Box<dyn TunnelAddressing>,
        setup: &TunnelSetup,
    ) -> Result<Self, PlaneError> {
        let interface = plane.interface().to_owned();
        let made = network
            .set_sites(&setup.site_routes)
            .and_then(|()| network.set_up(&interface, &setup.networks, setup.mtu));
        if let Err(error) = made {
            abandon(plane.as_mut(), setup.keep);
            if !setup.keep
                && let Err(second) = filter.remove()
            {
                tracing::warn!(error = %second, "firewall not removed after a failed start");
            }
            return Err(error);
        }
        Ok(Self { plane, filter, network, leases: BTreeMap::new(), owners: BTreeMap::new() })
    }

    /// Binds the lease (once) and installs the child: filter element, inbound, outbound.
    ///
    /// # Errors
    /// [`PlaneError::Conflict`] when the child's inner addresses are not the lease's or its
    /// reqid is another's; otherwise what the filter or the plane refuses. A lease that has no
    /// other child is unbound again.
    pub fn install_child(
        &mut self,
        spec: &ChildSpec,
        lease: &LeaseFilter,
    ) -> Result<(), PlaneError> {
        self.bind_and(spec, lease, |plane| plane.install(spec))
    }

    /// As [`install_child`](Self::install_child) for a child of an earlier process; see
    /// [`Dataplane::adopt`].
    ///
    /// # Errors
    /// As there, and [`PlaneError::Unknown`] when nothing is left of it.
    pub fn adopt_child(&mut self, spec: &ChildSpec, lease: &LeaseFilter) -> Result<(), PlaneError> {
        self.bind_and(spec, lease, |plane| match plane.adopt(spec)? {
            true => Ok(()),
            false => Err(PlaneError::Unknown(format!("child {} of an earlier run", spec.id.0))),
        })
    }

    fn bind_and(
        &mut self,
        spec: &ChildSpec,
        lease: &LeaseFilter,
        install: impl FnOnce(&mut dyn Dataplane) -> Result<(), PlaneError>,
    ) -> Result<(), PlaneError> {
        check_belongs(spec, lease)?;
        if self.owners.contains_key(&spec.id) {
            return Err(PlaneError::Conflict(format!("child {} is already installed", spec.id.0)));
        }
        let known = self.leases.get(&lease.reqid);
        if let Some(known) = known
            && (&known.filter.addresses, &known.filter.networks)
                != (&lease.addresses, &lease.networks)
        {
            return Err(PlaneError::Conflict(format!(
                "lease with reqid {} is bound to other addresses",
                lease.reqid
            )));
        }
        let fresh = known.is_none();
        if known.is_none_or(|k| !k.bound || k.filter != *lease) {
            self.filter.bind(lease)?;
            if let Some(known) = self.leases.get_mut(&lease.reqid) {
                known.bound = true;
                known.filter = lease.clone();
            }
        }
        if let Err(error) = install(self.plane.as_mut()) {
            if fresh && let Err(second) = self.filter.unbind(lease) {
                // No SA carries its packets, so nothing passes; keep it for the next removal.
                tracing::warn!(reqid = lease.reqid, error = %second, "filter element stays");
                self.leases.insert(
                    lease.reqid,
                    Lease { filter: lease.clone(), bound: true, children: Vec::new() },
                );
            }
            return Err(error);
        }
        let entry = self.leases.entry(lease.reqid).or_insert_with(|| Lease {
            filter: lease.clone(),
            bound: true,
            children: Vec::new(),
        });
        entry.children.push(spec.id);
        self.owners.insert(spec.id, lease.reqid);
        Ok(())
    }

    /// See [`Dataplane::activate_outbound`].
    ///
    /// # Errors
    /// As there.
    pub fn activate_outbound(&mut self, child: ChildId) -> Result<(), PlaneError> {
        self.plane.activate_outbound(child)
    }

    /// See [`Dataplane::update_hosts`]. The filter is unaffected: it knows inner addresses only.
    ///
    /// # Errors
    /// As there.
    pub fn update_hosts(&mut self, child: ChildId, hosts: &Hosts) -> Result<(), PlaneError> {
        self.plane.update_hosts(child, hosts)
    }

    /// Removes one child and returns its final counters. With the lease's last child its filter
    /// element goes first. A child of a rekey that is followed by another keeps the filter.
    ///
    /// # Errors
    /// [`PlaneError::Unknown`], or the first refusal; the SAs are removed even when the filter
    /// element could not be.
    pub fn remove_child(&mut self, child: ChildId) -> Result<Usage, PlaneError> {
        let reqid = self
            .owners
            .get(&child)
            .copied()
            .ok_or_else(|| PlaneError::Unknown(format!("child {}", child.0)))?;
        let last = self.leases.get(&reqid).is_some_and(|lease| lease.children.len() <= 1);
        let unbound = if last { self.unbind(reqid) } else { Ok(()) };
        let usage = match self.plane.remove(child) {
            // Gone already is what was asked for.
            Err(PlaneError::Unknown(_)) => Usage::default(),
            result => result?,
        };
        self.owners.remove(&child);
        if let Some(lease) = self.leases.get_mut(&reqid) {
            lease.children.retain(|id| *id != child);
        }
        unbound?;
        if last {
            self.leases.remove(&reqid);
        }
        Ok(usage)
    }

    /// Ends a lease: its filter element first, so that no packet passes from here on, then all
    /// its children. A lease without an SA ends without effect.
    ///
    /// # Errors
    /// The first refusal, after everything else was still attempted. Call again to retry what
    /// stayed.
    pub fn end_lease(&mut self, reqid: u32) -> Result<Vec<(ChildId, Usage)>, PlaneError> {
        let mut first = self.unbind(reqid).err();
        let children = self.leases.get(&reqid).map(|l| l.children.clone()).unwrap_or_default();
        let mut usages = Vec::with_capacity(children.len());
        for child in children {
            match self.plane.remove(child) {
                Ok(usage) => usages.push((child, usage)),
                // A hard limit may have removed it meanwhile; gone is what was asked for.
                Err(PlaneError::Unknown(_)) => usages.push((child, Usage::default())),
                Err(error) => {
                    first.get_or_insert(error);
                    continue;
                }
            }
            self.owners.remove(&child);
            if let Some(lease) = self.leases.get_mut(&reqid) {
                lease.children.retain(|id| *id != child);
            }
        }
        match first {
            Some(error) => Err(error),
            None => {
                self.leases.remove(&reqid);
                Ok(usages)
            }
        }
    }

    /// Replaces all allow lists at once; live flows obey the new ones from the next packet.
    ///
    /// # Errors
    /// The former lists stay in force then.
    pub fn replace_roles(&mut self, roles: &[RoleFilter]) -> Result<(), PlaneError> {
        self.filter.replace_roles(roles)
    }

    /// Replaces filters and routes of all sites. Those that go must have no children any more.
    ///
    /// # Errors
    /// [`PlaneError::Conflict`] when one that is to go still has a child, or when a network is
    /// something else's on this machine; filters are then replaced, and routes as they were.
    pub fn replace_sites(
        &mut self,
        sites: &[SiteFilter],
        routes: &[SiteRoute],
    ) -> Result<(), PlaneError> {
        self.filter.replace_sites(sites)?;
        self.network.set_sites(routes)
    }

    /// Gives a lease that has children another role, in one transaction.
    ///
    /// # Errors
    /// [`PlaneError::Unknown`] when the lease has no child; [`PlaneError::Conflict`] when the
    /// role is unknown (the former stays in force).
    pub fn change_role(&mut self, reqid: u32, role: &str) -> Result<(), PlaneError> {
        let lease = self
            .leases
            .get_mut(&reqid)
            .ok_or_else(|| PlaneError::Unknown(format!("lease with reqid {reqid}")))?;
        let filter = LeaseFilter { role: role.to_owned(), ..lease.filter.clone() };
        self.filter.bind(&filter)?;
        lease.filter = filter;
        lease.bound = true;
        Ok(())
    }

    /// Changes the MTU of the tunnel interface, in bytes.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn set_mtu(&mut self, mtu: u32) -> Result<(), PlaneError> {
        self.network.set_mtu(mtu)
    }

    /// Puts the firewall back if something else removed or changed it; call it every second. True
    /// when it had to. See [`PacketFilter::ensure`].
    ///
    /// # Errors
    /// When it could not be put back.
    pub fn ensure_filter(&mut self) -> Result<bool, PlaneError> {
        self.filter.ensure()
    }

    /// Counters of the firewall.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn filter_counters(&mut self) -> Result<FilterCounters, PlaneError> {
        self.filter.counters()
    }

    /// Reqids of the leases that have children or a filter element, in order.
    pub fn leases(&self) -> Vec<u32> {
        self.leases.keys().copied().collect()
    }

    /// Children of one lease, oldest first.
    pub fn children_of(&self, reqid: u32) -> Vec<ChildId> {
        self.leases.get(&reqid).map(|lease| lease.children.clone()).unwrap_or_default()
    }

    /// The plane, for SPIs and queries. Install and remove through the enforcer only.
    pub fn plane(&mut self) -> &mut dyn Dataplane {
        self.plane.as_mut()
    }

    /// Removes everything: filter elements, children, plane, routes, rules, in this order.
    /// Returns a sentence for each thing that could not be removed.
    pub fn shutdown(mut self) -> Vec<String> {
        let mut leftovers = Vec::new();
        for reqid in self.leases() {
            if let Err(error) = self.end_lease(reqid) {
                leftovers.push(error.to_string());
            }
        }
        if let Err(error) = self.plane.shutdown() {
            leftovers.push(error.to_string());
        }
        // Rules and the unreachable routes go after the plane: until then they are what keeps
        // packets for the pools from leaving in clear.
        leftovers.extend(self.network.tear_down());
        if let Err(error) = self.filter.remove() {
            leftovers.push(error.to_string());
        }
        leftovers
    }

    /// Ends without taking down what the next process goes on with: filter, routes and what the
    /// plane can leave. What it does not go on with, its start removes.
    ///
    /// # Errors
    /// What the plane could not end.
    pub fn detach(mut self) -> Result<(), PlaneError> {
        self.plane.detach()
    }

    fn unbind(&mut self, reqid: u32) -> Result<(), PlaneError> {
        if let Some(lease) = self.leases.get_mut(&reqid) {
            self.filter.unbind(&lease.filter)?;
            lease.bound = false;
        }
        Ok(())
    }
}

fn abandon(plane: &mut dyn Dataplane, keep: bool) {
    let done = if keep { plane.detach() } else { plane.shutdown() };
    if let Err(error) = done {
        tracing::warn!(error = %error, "data plane not removed after a failed start");
    }
}

/// A child may carry only its own lease's addresses: the filter knows nothing else.
fn check_belongs(spec: &ChildSpec, lease: &LeaseFilter) -> Result<(), PlaneError> {
    if spec.reqid != lease.reqid {
        return Err(PlaneError::Conflict(format!(
            "child {} has reqid {}, its lease has {}",
            spec.id.0, spec.reqid, lease.reqid
        )));
    }
    let its_own = |selector: &Selector| {
        let of = |address: &IpAddr| lease.networks.iter().position(|net| net.contains(address));
        let in_network = of(&selector.start).is_some_and(|net| of(&selector.end) == Some(net));
        in_network || (selector.start == selector.end && lease.addresses.contains(&selector.start))
    };
    match spec.remote_selectors.iter().find(|selector| !its_own(selector)) {
        Some(selector) => Err(PlaneError::Conflict(format!(
            "child {} covers {}-{}, which is not an address of its lease",
            spec.id.0, selector.start, selector.end
        ))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
