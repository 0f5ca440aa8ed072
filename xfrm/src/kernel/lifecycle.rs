//! The plane's beginning, and what a killed instance left.

use std::collections::{BTreeMap, BTreeSet};

use super::adopt::Left;
use super::apply::Step;
use super::encode::{self, Context};
use super::events::{Index, Threads};
use super::{KernelConfig, KernelPlane, suites};
use crate::Dataplane;
use crate::dataplane::EventSink;
use crate::error::PlaneError;
use crate::model::{Offload, PlaneKind};
use crate::netlink::{Message, Netlink, Protocol};
use crate::route::RouteSocket;

/// What happens to SAs and policies that a killed instance left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Former {
    Remove,
    Keep,
}

impl KernelPlane {
    /// Makes the xfrm interface (down; the tunnel's network brings it up), removes what a killed
    /// instance with the same `if_id` left, and installs the inbound policies.
    ///
    /// # Errors
    /// [`PlaneError::Unsupported`] when the kernel has no ESP; [`PlaneError::Conflict`] when the
    /// interface name is somebody else's; otherwise the kernel's refusal.
    pub fn open(config: KernelConfig, sink: &EventSink) -> Result<Self, PlaneError> {
        Self::begin(config, sink, Former::Remove)
    }

    /// As [`Self::open`], but what a killed instance with the same `if_id` left stays in force:
    /// interface, SAs and policies. Take its children over with [`Dataplane::adopt`], then let
    /// [`Dataplane::reconcile`] remove the others.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn resume(config: KernelConfig, sink: &EventSink) -> Result<Self, PlaneError> {
        Self::begin(config, sink, Former::Keep)
    }

    fn begin(config: KernelConfig, sink: &EventSink, former: Former) -> Result<Self, PlaneError> {
        let mut routes = RouteSocket::open()?;
        let interface = config.interface.clone();
        let mut exists = false;
        if let Some(link) = routes.link(&interface)? {
            if link.xfrm_if_id != Some(config.if_id) {
                return Err(PlaneError::Conflict(format!(
                    "interface {interface} exists and is not Runnel's; choose another name or \
                     remove it"
                )));
            }
            exists = former == Former::Keep;
            if !exists {
                routes.delete_link(&interface)?;
            }
        }
        if !exists {
            routes.add_xfrm_interface(&interface, config.if_id)?;
        }
        match Self::start(config, sink, former) {
            Ok(mut plane) => {
                plane.owns_interface = true;
                if plane.suites.is_empty() {
                    plane.shutdown()?;
                    return Err(PlaneError::Unsupported {
                        plane: PlaneKind::Kernel.name(),
                        what: "encrypt".to_owned(),
                        fix: "use a kernel with ESP and AES-GCM, or dataplane = \"userspace\"",
                    });
                }
                Ok(plane)
            }
            Err(error) => {
                if let Err(second) = routes.delete_link(&interface) {
                    tracing::warn!(error = %second, "interface not removed after a failed start");
                }
                Err(error)
            }
        }
    }

    /// Removes what an earlier process with the kernel plane left, where another plane is used now:
    /// its SAs would go on carrying packets, and its interface has the name.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn purge_leftovers(interface: &str, if_id: u32) -> Result<(), PlaneError> {
        let mut routes = RouteSocket::open()?;
        let link = routes.link(interface)?;
        if link.is_none_or(|link| link.xfrm_if_id != Some(if_id)) {
            return Ok(());
        }
        let config = KernelConfig { interface: interface.to_owned(), if_id, ports: Vec::new() };
        let sink: EventSink = std::sync::Arc::new(|_| {});
        Self::on_interface(config, &sink)?.shutdown()?;
        routes.delete_link(interface)
    }

    /// As [`Self::open`], on an interface somebody else made and keeps. Works without ESP in the
    /// kernel, with no suite then.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn on_interface(config: KernelConfig, sink: &EventSink) -> Result<Self, PlaneError> {
        Self::start(config, sink, Former::Remove)
    }

    /// As [`Self::on_interface`], keeping what a killed instance left as [`Self::resume`] does.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn resume_on_interface(config: KernelConfig, sink: &EventSink) -> Result<Self, PlaneError> {
        Self::start(config, sink, Former::Keep)
    }

    fn start(config: KernelConfig, sink: &EventSink, former: Former) -> Result<Self, PlaneError> {
        let mut netlink = Netlink::open(Protocol::Xfrm)?;
        let sa_dir = matches!(
            netlink.try_query(encode::ask_for_direction())?,
            Err(refusal) if refusal.errno == libc::EINVAL
        );
        let context = Context { if_id: config.if_id, sa_dir, device: None };
        let suites = suites::supported(&mut netlink, context)?;
        let index = Index::default();
        let threads = Threads::start(&index, config.if_id, config.ports, sink)?;
        let mut plane = Self {
            netlink,
            context,
            interface: config.interface,
            owns_interface: false,
            suites,
            index,
            threads: Some(threads),
            children: BTreeMap::new(),
            carriers: BTreeMap::new(),
            senders: BTreeMap::new(),
            policies_made: 0,
            reserved: BTreeSet::new(),
            left: Left::default(),
            offload: Offload::None,
            devices: BTreeMap::new(),
            refusing: BTreeSet::new(),
        };
        match former {
            Former::Remove => {
                plane.purge()?;
            }
            Former::Keep => plane.find_left()?,
        }
        let steps = encode::wide_policies(context)
            .into_iter()
            .map(|message| Step {
                what: "install an inbound policy".to_owned(),
                message,
                undo: None,
                over: None,
            })
            .collect();
        if let Err(error) = plane.run(steps) {
            if let Err(second) = plane.purge() {
                tracing::warn!(error = %second, "policies not removed after a failed start");
            }
            return Err(error);
        }
        Ok(plane)
    }

    /// Removes every policy and SA of ours; returns how many there were.
    pub(super) fn purge(&mut self) -> Result<usize, PlaneError> {
        let policies = self.dump_policies()?;
        let sas = self.dump_sas()?;
        let found = policies.len() + sas.len();
        let mut messages: Vec<Message> = policies
            .into_iter()
            .map(|policy| encode::delete_policy_by_index(policy.if_id, policy.index))
            .collect();
        messages.extend(sas.into_iter().map(|sa| encode::delete_sa(sa.destination, sa.spi)));
        self.run_deletions("remove an SA or policy", messages)?;
        Ok(found)
    }
}
