//! The kernel data plane: XFRM over netlink.
//!
//! Duty: keep exactly the SAs and policies in the kernel that the children given to it need, on
//! one xfrm interface of its own. Everything it makes carries the interface's `if_id`, so it
//! tells its own from strangers' and never touches theirs.
//!
//! # What is installed
//! - Four wide inbound policies (`in` and `fwd` for IPv4 and IPv6): what leaves the interface
//!   must have come through some ESP tunnel SA of ours. *Which* client may use which source is
//!   the firewall's business (reqid and address).
//! - Beside the interface, for a child in transport mode, its SAs and policies between the two
//!   machines' own addresses ([`transport`]).
//! - Per child two SAs. Per inner address one outbound policy whose template names the client's
//!   outer addresses, the lease's reqid and the SPI of the SA that sends now. Naming the SPI
//!   makes the switch at a rekey one policy update, at the moment the control plane chooses.
//!
//! # Order
//! Installation: inbound SA, outbound SA, policy. Removal: policy, outbound SA, inbound SA. A
//! move of the peer: new outbound SA, policy, then the old one goes. Keys stay here for moves
//! and are never read back from the kernel.

mod adopt;
mod apply;
mod check;
mod conflicts;
mod decode;
mod encode;
mod events;
mod flow;
mod hosts;
mod lifecycle;
mod offload;
mod policies;
#[cfg(test)]
mod recorded;
mod stats;
mod suites;
#[cfg(any(test, feature = "fuzzing"))]
mod targets;
mod transport;

use std::collections::{BTreeMap, BTreeSet};

use ring::rand::{SecureRandom, SystemRandom};

use self::adopt::Left;
pub use self::conflicts::conflicting_policies;
use self::encode::Context;
use self::events::{Index, Threads};
use self::flow::{Flow, flows};
use self::offload::Device;
use self::policies::Sender;
pub use self::suites::missing_suites;
pub(crate) use self::suites::try_esp;
#[cfg(any(test, feature = "fuzzing"))]
pub use self::targets::kernel_message;
#[cfg(test)]
pub(crate) use self::targets::samples;
use crate::Dataplane;
use crate::dataplane::PlaneEvent;
use crate::error::PlaneError;
use crate::model::{
    Capabilities, ChildId, ChildSpec, EspSuite, Hosts, Offload, PlaneKind, PlaneStats, Spi, Usage,
};
use crate::netlink::Netlink;
use crate::route::RouteSocket;
use crate::udp::UdpPort;

/// SPIs 1 to 255 are reserved (RFC 4303 2.1).
const FIRST_SPI: u32 = 256;
/// SPIs handed out and not yet installed that are remembered.
const RESERVED_SPIS: usize = 65_536;
/// Largest anti-replay window of the kernel (`XFRMA_REPLAY_ESN_MAX`).
const MAX_WINDOW: u32 = 4096;

/// How the plane is set up.
#[derive(Debug)]
pub struct KernelConfig {
    /// Name of the xfrm interface to make.
    pub interface: String,
    /// Its identifier, other than 0 and unique to this instance; see [`if_id_for`].
    pub if_id: u32,
    /// Bound encapsulation ports (UDP 4500), opened with `kernel_encap` and `bypass_policies`.
    pub ports: Vec<UdpPort>,
}

/// An identifier for an interface that is the same at every start (FNV-1a of its name).
pub fn if_id_for(interface: &str) -> u32 {
    let hash = interface
        .bytes()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    hash.max(1)
}

/// The kernel data plane.
#[derive(Debug)]
pub struct KernelPlane {
    netlink: Netlink,
    context: Context,
    interface: String,
    owns_interface: bool,
    suites: Vec<EspSuite>,
    index: Index,
    threads: Option<Threads>,
    children: BTreeMap<ChildId, ChildSpec>,
    /// Children by what they can carry.
    carriers: BTreeMap<Flow, BTreeSet<ChildId>>,
    /// Which child sends a flow, and its policy's index.
    senders: BTreeMap<Flow, Sender>,
    policies_made: u32,
    reserved: BTreeSet<Spi>,
    left: Left,
    /// What devices are asked for.
    offload: Offload,
    /// Devices with work of a child.
    devices: BTreeMap<ChildId, Device>,
    /// What devices will never do.
    refusing: BTreeSet<Device>,
}

impl KernelPlane {
    fn known(&self, child: ChildId) -> Result<&ChildSpec, PlaneError> {
        self.children.get(&child).ok_or_else(|| PlaneError::Unknown(format!("child {}", child.0)))
    }

    fn enlist(&mut self, spec: ChildSpec) {
        for flow in flows(&spec) {
            self.carriers.entry(flow).or_default().insert(spec.id);
        }
        self.children.insert(spec.id, spec);
    }

    fn strike(&mut self, child: ChildId) {
        self.devices.remove(&child);
        let Some(spec) = self.children.remove(&child) else { return };
        for flow in flows(&spec) {
            if let Some(carriers) = self.carriers.get_mut(&flow) {
                carriers.remove(&child);
                if carriers.is_empty() {
                    self.carriers.remove(&flow);
                }
            }
        }
    }
}

impl Dataplane for KernelPlane {
    fn kind(&self) -> PlaneKind {
        PlaneKind::Kernel
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            plain_esp: true,
            transport_mode: true,
            esn: true,
            max_replay_window: MAX_WINDOW,
            update_hosts: true,
            suites: self.suites.clone(),
        }
    }

    fn interface(&self) -> &str {
        &self.interface
    }

    fn alloc_spi(&mut self) -> Result<Spi, PlaneError> {
        // The kernel's own allocation needs our outer address, which is not known this early;
        // a random number collides with a stranger's SA as good as never, and NEWSA tells.
        let random = SystemRandom::new();
        // A negotiation that failed never gives its SPI back.
        if self.reserved.len() >= RESERVED_SPIS {
            self.reserved.clear();
        }
        loop {
            let mut bytes = [0; 4];
            random.fill(&mut bytes).map_err(|_| PlaneError::System {
                what: "cannot choose an SPI".to_owned(),
                reason: "no randomness".to_owned(),
                fix: "check that getrandom(2) is permitted".to_owned(),
            })?;
            let spi = Spi(u32::from_be_bytes(bytes));
            if spi.0 >= FIRST_SPI && !self.index.is_inbound(spi) && self.reserved.insert(spi) {
                return Ok(spi);
            }
        }
    }

    fn install(&mut self, spec: &ChildSpec) -> Result<(), PlaneError> {
        self.check(spec)?;
        for device in self.devices(spec) {
            self.devices.extend(device.map(|device| (spec.id, device)));
            let (steps, senders) = self.installation(spec);
            // Before the SAs, so that not even their first event finds nobody.
            self.index.insert(spec.id, spec.spi_in, spec.spi_out, spec.hosts);
            match (self.run(steps), device) {
                (Ok(()), _) => {
                    self.reserved.remove(&spec.spi_in);
                    self.senders.extend(senders);
                    self.enlist(spec.clone());
                    break;
                }
                (Err(error), device) => {
                    self.index.remove(spec.id, spec.spi_in, spec.spi_out);
                    self.devices.remove(&spec.id);
                    match device {
                        Some(device) => self.refused(device, &error),
                        None => return Err(error),
                    }
                }
            }
        }
        Ok(())
    }

    fn adopt(&mut self, spec: &ChildSpec) -> Result<bool, PlaneError> {
        self.adopt_child(spec)
    }

    fn reconcile(&mut self) -> Result<usize, PlaneError> {
        self.remove_left()
    }

    fn resync(&mut self) -> Result<Vec<PlaneEvent>, PlaneError> {
        self.missed()
    }

    fn activate_outbound(&mut self, child: ChildId) -> Result<(), PlaneError> {
        let spec = self.known(child)?.clone();
        let (steps, senders) = self.policy_steps(&spec, &spec.hosts, &flows(&spec));
        self.run(steps)?;
        self.senders.extend(senders);
        Ok(())
    }

    fn update_hosts(&mut self, child: ChildId, hosts: &Hosts) -> Result<(), PlaneError> {
        self.move_child(child, hosts)
    }

    fn remove(&mut self, child: ChildId) -> Result<Usage, PlaneError> {
        let spec = self.known(child)?.clone();
        let mut orphans = Vec::new();
        for flow in self.sends_to(&spec) {
            // The newest other child that carries it goes on sending.
            let carriers = self.carriers.get(&flow).into_iter().flatten();
            let heir = carriers.rev().find(|other| **other != child);
            match heir.and_then(|heir| self.children.get(heir)).cloned() {
                Some(heir) => {
                    let (steps, senders) = self.policy_steps(&heir, &heir.hosts, &[flow]);
                    self.run(steps)?;
                    self.senders.extend(senders);
                }
                None => orphans.push(flow),
            }
        }
        self.delete_policies(&orphans)?;
        let usage = self.usage_of(&spec)?;
        self.run_deletions(
            "remove an SA",
            vec![
                encode::delete_sa(spec.hosts.remote.ip(), spec.spi_out),
                encode::delete_sa(spec.hosts.local.ip(), spec.spi_in),
            ],
        )?;
        self.strike(child);
        self.index.remove(child, spec.spi_in, spec.spi_out);
        self.remove_companions(&spec)?;
        Ok(usage)
    }

    fn usage(&mut self, child: ChildId) -> Result<Usage, PlaneError> {
        let spec = self.known(child)?.clone();
        self.usage_of(&spec)
    }

    fn usages(&mut self, children: &[ChildId]) -> Result<BTreeMap<ChildId, Usage>, PlaneError> {
        self.usages_of(children)
    }

    fn children(&self) -> Vec<ChildId> {
        self.children.keys().copied().collect()
    }

    fn stats(&self) -> PlaneStats {
        // Of the whole namespace: the kernel has no finer ones.
        let text = std::fs::read_to_string("/proc/thread-self/net/xfrm_stat").unwrap_or_default();
        stats::parse_stats(&text)
    }

    /// The kernel goes on by itself, interface included.
    fn detach(&mut self) -> Result<(), PlaneError> {
        if let Some(mut threads) = self.threads.take() {
            threads.stop();
        }
        Ok(())
    }

    fn shutdown(&mut self) -> Result<(), PlaneError> {
        if let Some(mut threads) = self.threads.take() {
            threads.stop();
        }
        self.children.clear();
        self.carriers.clear();
        self.senders.clear();
        self.reserved.clear();
        self.left = Left::default();
        self.devices.clear();
        self.index = Index::default();
        self.purge()?;
        if self.owns_interface {
            RouteSocket::open()?.delete_link(&self.interface)?;
            self.owns_interface = false;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
