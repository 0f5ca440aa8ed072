//! A data plane, filter and network that record operations and fail on demand.
//!
//! Duty: let control planes be tested without privileges, and prove the order of operations. The
//! mock keeps the same contract as the real planes (same refusals, same make-before-break), and
//! passes the same conformance suite.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::Dataplane;
use crate::dataplane::PlaneEvent;
use crate::enforcer::{PacketFilter, TunnelAddressing};
use crate::error::PlaneError;
use crate::model::{
    Capabilities, ChildId, ChildSpec, EspSuite, Hosts, LeaseFilter, Mode, PlaneKind, PlaneStats,
    RoleFilter, SiteFilter, SiteRoute, Spi, TunnelNetwork, Usage,
};
use crate::nft::FilterCounters;

/// Largest anti-replay window the mock accepts, the kernel's.
const MAX_WINDOW: u32 = 4096;

/// One recorded operation that took effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MockOp {
    /// A filter element went in.
    Bind {
        /// The lease's reqid.
        reqid: u32,
        /// Its role.
        role: String,
    },
    /// A filter element went out.
    Unbind {
        /// The lease's reqid.
        reqid: u32,
    },
    /// All allow lists were replaced; names of the roles.
    ReplaceRoles(Vec<String>),
    /// The firewall was removed.
    RemoveFilter,
    /// Addresses and routes were set up on the interface.
    SetUp {
        /// Interface name.
        interface: String,
        /// MTU in bytes.
        mtu: u32,
    },
    /// The interface's MTU was changed.
    SetMtu(u32),
    /// Addresses and routes were removed.
    TearDown,
    /// An SPI was reserved.
    AllocSpi(Spi),
    /// The inbound half went in.
    InstallIn(ChildId, Spi),
    /// The outbound half went in.
    InstallOut(ChildId, Spi),
    /// A child of an earlier run was taken over.
    Adopt(ChildId),
    /// What was left of an earlier run went.
    Reconcile,
    /// The child became the one that sends.
    Activate(ChildId),
    /// The child moved.
    UpdateHosts(ChildId, Hosts),
    /// The outbound half went out.
    RemoveOut(ChildId, Spi),
    /// The inbound half went out.
    RemoveIn(ChildId, Spi),
    /// The plane was shut down.
    Shutdown,
    /// Filters of sites were replaced; their names.
    ReplaceSites(Vec<String>),
    /// Networks of sites were routed.
    SetSites(Vec<ipnet::IpNet>),
}

/// Kind of operation, to make the next one fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum MockCall {
    /// [`PacketFilter::bind`].
    Bind,
    /// [`PacketFilter::unbind`].
    Unbind,
    /// [`PacketFilter::replace_roles`].
    ReplaceRoles,
    /// [`PacketFilter::remove`].
    RemoveFilter,
    /// [`TunnelAddressing::set_up`].
    SetUp,
    /// [`Dataplane::alloc_spi`].
    AllocSpi,
    /// The inbound half of [`Dataplane::install`].
    InstallIn,
    /// The outbound half of [`Dataplane::install`].
    InstallOut,
    /// [`Dataplane::activate_outbound`].
    Activate,
    /// [`Dataplane::update_hosts`].
    UpdateHosts,
    /// [`Dataplane::remove`].
    Remove,
    /// [`Dataplane::shutdown`].
    Shutdown,
}

#[derive(Debug, Default)]
struct Inner {
    ops: Vec<MockOp>,
    failures: VecDeque<(MockCall, PlaneError)>,
    children: BTreeMap<ChildId, ChildSpec>,
    active: BTreeMap<IpAddr, ChildId>,
    usage: BTreeMap<ChildId, Usage>,
    reserved: BTreeSet<Spi>,
    next_spi: u32,
    bound: BTreeMap<u32, LeaseFilter>,
    roles: Option<BTreeSet<String>>,
    left: BTreeMap<Spi, ChildSpec>,
    missed: Vec<PlaneEvent>,
}

/// Shared view of a mock: what was recorded, what to fail next. Clones share one state.
#[derive(Debug, Clone, Default)]
pub struct MockHandle(Arc<Mutex<Inner>>);

impl MockHandle {
    /// A fresh state.
    pub fn new() -> Self {
        Self::default()
    }

    /// A plane on this state.
    pub fn plane(&self) -> MockPlane {
        MockPlane { handle: self.clone(), interface: "mock0".to_owned() }
    }

    /// A filter on this state.
    pub fn filter(&self) -> MockFilter {
        MockFilter(self.clone())
    }

    /// A network on this state.
    pub fn network(&self) -> MockNetwork {
        MockNetwork(self.clone())
    }

    /// Takes the operations recorded so far.
    pub fn take_ops(&self) -> Vec<MockOp> {
        std::mem::take(&mut self.lock().ops)
    }

    /// Makes the next call of this kind fail with this error; several queue up.
    pub fn fail_next(&self, call: MockCall, error: PlaneError) {
        self.lock().failures.push_back((call, error));
    }

    /// Sets the counters reported for a child.
    pub fn set_usage(&self, child: ChildId, usage: Usage) {
        self.lock().usage.insert(child, usage);
    }

    /// Leaves a child as a killed instance does, for [`Dataplane::adopt`].
    pub fn leave(&self, spec: &ChildSpec) {
        self.lock().left.insert(spec.spi_in, spec.clone());
    }

    /// An event that was lost, for [`Dataplane::resync`].
    pub fn miss(&self, event: PlaneEvent) {
        self.lock().missed.push(event);
    }

    /// The specification a child was installed with, hosts as last updated.
    pub fn child(&self, child: ChildId) -> Option<ChildSpec> {
        self.lock().children.get(&child).cloned()
    }

    /// Which child sends to an inner address now.
    pub fn sender_to(&self, address: IpAddr) -> Option<ChildId> {
        self.lock().active.get(&address).copied()
    }

    /// Leases bound in the filter now.
    pub fn bound(&self) -> Vec<LeaseFilter> {
        self.lock().bound.values().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn check(&mut self, call: MockCall) -> Result<(), PlaneError> {
        match self.failures.iter().position(|(kind, _)| *kind == call) {
            Some(at) => match self.failures.remove(at) {
                Some((_, error)) => Err(error),
                None => Ok(()),
            },
            None => Ok(()),
        }
    }

    fn known(&self, child: ChildId) -> Result<&ChildSpec, PlaneError> {
        self.children.get(&child).ok_or_else(|| PlaneError::Unknown(format!("child {}", child.0)))
    }

    fn refuse(&self, spec: &ChildSpec) -> Result<(), PlaneError> {
        if self.children.contains_key(&spec.id) {
            return Err(PlaneError::Conflict(format!("child {} is already installed", spec.id.0)));
        }
        if self.children.values().any(|other| other.spi_in == spec.spi_in) {
            return Err(PlaneError::Conflict(format!("inbound SPI {} is in use", spec.spi_in)));
        }
        if (spec.keys_in.encr.len(), spec.keys_in.integ.len()) != spec.suite.key_lengths()
            || (spec.keys_out.encr.len(), spec.keys_out.integ.len()) != spec.suite.key_lengths()
        {
            return Err(PlaneError::Conflict(format!(
                "keys of child {} do not have the lengths of {}",
                spec.id.0,
                spec.suite.name()
            )));
        }
        if spec.mode == Mode::Transport && !spec.is_between_hosts() {
            return Err(PlaneError::Unsupported {
                plane: PlaneKind::Mock.name(),
                what: "carry these selectors in transport mode".to_owned(),
                fix: "name the two outer addresses",
            });
        }
        if spec.replay_window > MAX_WINDOW {
            return Err(PlaneError::Unsupported {
                plane: PlaneKind::Mock.name(),
                what: format!("keep a replay window of {}", spec.replay_window),
                fix: "choose at most 4096",
            });
        }
        Ok(())
    }

    fn activate(&mut self, child: ChildId) {
        if let Some(spec) = self.children.get(&child) {
            for selector in &spec.remote_selectors {
                self.active.insert(selector.start, child);
            }
        }
    }
}

/// The recording plane.
#[derive(Debug)]
pub struct MockPlane {
    handle: MockHandle,
    interface: String,
}

impl MockPlane {
    /// A plane with a state of its own.
    pub fn new() -> (Self, MockHandle) {
        let handle = MockHandle::new();
        (handle.plane(), handle)
    }
}

impl Dataplane for MockPlane {
    fn kind(&self) -> PlaneKind {
        PlaneKind::Mock
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            plain_esp: true,
            transport_mode: true,
            esn: true,
            max_replay_window: MAX_WINDOW,
            update_hosts: true,
            suites: vec![
                EspSuite::Aes256Gcm16,
                EspSuite::Aes128Gcm16,
                EspSuite::ChaCha20Poly1305,
                EspSuite::Aes256CbcSha256,
                EspSuite::Aes128CbcSha256,
                EspSuite::Aes256CbcSha384,
                EspSuite::Aes256CbcSha512,
            ],
        }
    }

    fn interface(&self) -> &str {
        &self.interface
    }

    fn alloc_spi(&mut self) -> Result<Spi, PlaneError> {
        let mut inner = self.handle.lock();
        inner.check(MockCall::AllocSpi)?;
        inner.next_spi = inner.next_spi.wrapping_add(1);
        let spi = Spi(0xc000_0000 | inner.next_spi);
        inner.reserved.insert(spi);
        inner.ops.push(MockOp::AllocSpi(spi));
        Ok(spi)
    }

    fn install(&mut self, spec: &ChildSpec) -> Result<(), PlaneError> {
        let mut inner = self.handle.lock();
        inner.refuse(spec)?;
        inner.check(MockCall::InstallIn)?;
        inner.ops.push(MockOp::InstallIn(spec.id, spec.spi_in));
        if let Err(error) = inner.check(MockCall::InstallOut) {
            inner.ops.push(MockOp::RemoveIn(spec.id, spec.spi_in));
            return Err(error);
        }
        inner.ops.push(MockOp::InstallOut(spec.id, spec.spi_out));
        inner.reserved.remove(&spec.spi_in);
        inner.children.insert(spec.id, spec.clone());
        if spec.outbound_active {
            inner.activate(spec.id);
        }
        Ok(())
    }

    fn adopt(&mut self, spec: &ChildSpec) -> Result<bool, PlaneError> {
        let mut inner = self.handle.lock();
        inner.refuse(spec)?;
        if inner.left.get(&spec.spi_in).is_none_or(|left| left.reqid != spec.reqid) {
            return Ok(false);
        }
        inner.left.remove(&spec.spi_in);
        inner.children.insert(spec.id, spec.clone());
        inner.ops.push(MockOp::Adopt(spec.id));
        if spec.outbound_active {
            inner.activate(spec.id);
        }
        Ok(true)
    }

    fn reconcile(&mut self) -> Result<usize, PlaneError> {
        let mut inner = self.handle.lock();
        let left = std::mem::take(&mut inner.left);
        inner.ops.push(MockOp::Reconcile);
        Ok(left.len())
    }

    fn resync(&mut self) -> Result<Vec<PlaneEvent>, PlaneError> {
        Ok(std::mem::take(&mut self.handle.lock().missed))
    }

    fn activate_outbound(&mut self, child: ChildId) -> Result<(), PlaneError> {
        let mut inner = self.handle.lock();
        inner.known(child)?;
        inner.check(MockCall::Activate)?;
        inner.activate(child);
        inner.ops.push(MockOp::Activate(child));
        Ok(())
    }

    fn update_hosts(&mut self, child: ChildId, hosts: &Hosts) -> Result<(), PlaneError> {
        let mut inner = self.handle.lock();
        let spec = inner.known(child)?;
        let ends = |hosts: &Hosts| (hosts.local.ip(), hosts.remote.ip(), hosts.encap);
        if spec.mode == Mode::Transport && ends(&spec.hosts) != ends(hosts) {
            return Err(PlaneError::Conflict("transport mode ends with its addresses".to_owned()));
        }
        inner.check(MockCall::UpdateHosts)?;
        if let Some(spec) = inner.children.get_mut(&child) {
            spec.hosts = *hosts;
        }
        inner.ops.push(MockOp::UpdateHosts(child, *hosts));
        Ok(())
    }

    fn remove(&mut self, child: ChildId) -> Result<Usage, PlaneError> {
        let mut inner = self.handle.lock();
        let spec = inner.known(child)?.clone();
        inner.check(MockCall::Remove)?;
        inner.children.remove(&child);
        inner.active.retain(|_, sender| *sender != child);
        inner.ops.push(MockOp::RemoveOut(child, spec.spi_out));
        inner.ops.push(MockOp::RemoveIn(child, spec.spi_in));
        Ok(inner.usage.remove(&child).unwrap_or_default())
    }

    fn usage(&mut self, child: ChildId) -> Result<Usage, PlaneError> {
        let inner = self.handle.lock();
        inner.known(child)?;
        Ok(inner.usage.get(&child).copied().unwrap_or_default())
    }

    fn children(&self) -> Vec<ChildId> {
        self.handle.lock().children.keys().copied().collect()
    }

    fn stats(&self) -> PlaneStats {
        PlaneStats::default()
    }

    fn shutdown(&mut self) -> Result<(), PlaneError> {
        let mut inner = self.handle.lock();
        inner.check(MockCall::Shutdown)?;
        inner.children.clear();
        inner.active.clear();
        inner.reserved.clear();
        inner.ops.push(MockOp::Shutdown);
        Ok(())
    }
}

/// The recording filter. Knows every role until roles are replaced.
#[derive(Debug)]
pub struct MockFilter(MockHandle);

impl PacketFilter for MockFilter {
    fn bind(&mut self, lease: &LeaseFilter) -> Result<(), PlaneError> {
        let mut inner = self.0.lock();
        inner.check(MockCall::Bind)?;
        if inner.roles.as_ref().is_some_and(|roles| !roles.contains(&lease.role)) {
            return Err(PlaneError::Conflict(format!("no role {} in the firewall", lease.role)));
        }
        let taken = inner.bound.values().any(|other| {
            other.reqid != lease.reqid
                && other.addresses.iter().any(|address| lease.addresses.contains(address))
        });
        if taken {
            return Err(PlaneError::Conflict("an address is bound to another lease".to_owned()));
        }
        inner.bound.insert(lease.reqid, lease.clone());
        inner.ops.push(MockOp::Bind { reqid: lease.reqid, role: lease.role.clone() });
        Ok(())
    }

    fn unbind(&mut self, lease: &LeaseFilter) -> Result<(), PlaneError> {
        let mut inner = self.0.lock();
        inner.check(MockCall::Unbind)?;
        if inner.bound.remove(&lease.reqid).is_some() {
            inner.ops.push(MockOp::Unbind { reqid: lease.reqid });
        }
        Ok(())
    }

    fn replace_roles(&mut self, roles: &[RoleFilter]) -> Result<(), PlaneError> {
        let mut inner = self.0.lock();
        inner.check(MockCall::ReplaceRoles)?;
        let names: Vec<String> = roles.iter().map(|role| role.role.clone()).collect();
        inner.roles = Some(names.iter().cloned().collect());
        inner.ops.push(MockOp::ReplaceRoles(names));
        Ok(())
    }

    fn replace_sites(&mut self, sites: &[SiteFilter]) -> Result<(), PlaneError> {
        let names = sites.iter().map(|site| site.site.clone()).collect();
        self.0.lock().ops.push(MockOp::ReplaceSites(names));
        Ok(())
    }

    fn counters(&mut self) -> Result<FilterCounters, PlaneError> {
        Ok(FilterCounters::default())
    }

    fn ensure(&mut self) -> Result<bool, PlaneError> {
        Ok(false)
    }

    fn remove(&mut self) -> Result<(), PlaneError> {
        let mut inner = self.0.lock();
        inner.check(MockCall::RemoveFilter)?;
        inner.bound.clear();
        inner.ops.push(MockOp::RemoveFilter);
        Ok(())
    }
}

/// The recording network.
#[derive(Debug)]
pub struct MockNetwork(MockHandle);

impl TunnelAddressing for MockNetwork {
    fn set_up(
        &mut self,
        interface: &str,
        _networks: &[TunnelNetwork],
        mtu: u32,
    ) -> Result<(), PlaneError> {
        let mut inner = self.0.lock();
        inner.check(MockCall::SetUp)?;
        inner.ops.push(MockOp::SetUp { interface: interface.to_owned(), mtu });
        Ok(())
    }

    fn set_sites(&mut self, sites: &[SiteRoute]) -> Result<(), PlaneError> {
        if !sites.is_empty() {
            let networks = sites.iter().map(|site| site.network).collect();
            self.0.lock().ops.push(MockOp::SetSites(networks));
        }
        Ok(())
    }

    fn set_mtu(&mut self, mtu: u32) -> Result<(), PlaneError> {
        self.0.lock().ops.push(MockOp::SetMtu(mtu));
        Ok(())
    }

    fn tear_down(&mut self) -> Vec<String> {
        self.0.lock().ops.push(MockOp::TearDown);
        Vec::new()
    }
}
