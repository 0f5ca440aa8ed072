//! Links, addresses, routes and forwarding of the tunnel's side, over netlink.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::enforcer::TunnelAddressing;
use crate::error::PlaneError;
use crate::model::{EspSuite, TunnelNetwork};

/// Something on this machine that keeps packets from flowing, as one sentence with its remedy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
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
pub fn route_to(_destination: IpAddr) -> Result<RouteInfo, PlaneError> {
    Err(PlaneError::Unknown("route".to_owned()))
}

/// Whether replies from these destinations can be forwarded to the tunnel: every interface that
/// leads to one must forward (IPv4 decides by the input interface; IPv6 machine-wide). Local
/// destinations need no forwarding. Empty when all is well.
///
/// # Errors
/// When netlink fails.
pub fn forwarding_report(_destinations: &[IpNet]) -> Result<Vec<Problem>, PlaneError> {
    Ok(Vec::new())
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

/// Addresses and routes of one tunnel interface.
#[derive(Debug, Default)]
pub struct TunnelNet {}

impl TunnelAddressing for TunnelNet {
    fn set_up(
        &mut self,
        _interface: &str,
        _networks: &[TunnelNetwork],
        _mtu: u32,
    ) -> Result<(), PlaneError> {
        Ok(())
    }
    fn set_mtu(&mut self, _mtu: u32) -> Result<(), PlaneError> {
        Ok(())
    }
    fn tear_down(&mut self) -> Vec<String> {
        Vec::new()
    }
}
