//! The plane's beginning, and what a killed instance left.

use std::collections::{BTreeMap, BTreeSet};

use super::apply::Step;
use super::encode::{self, Context};
use super::events::{Index, Threads};
use super::{KernelConfig, KernelPlane, decode, suites};
use crate::Dataplane;
use crate::dataplane::EventSink;
use crate::error::PlaneError;
use crate::model::PlaneKind;
use crate::netlink::{Message, Netlink, Protocol};
use crate::route::RouteSocket;

impl KernelPlane {
    /// Makes the xfrm interface (down; the tunnel's network brings it up), removes what a killed
    /// instance with the same `if_id` left, and installs the inbound policies.
    ///
    /// # Errors
    /// [`PlaneError::Unsupported`] when the kernel has no ESP; [`PlaneError::Conflict`] when the
    /// interface name is somebody else's; otherwise the kernel's refusal.
    pub fn open(config: KernelConfig, sink: &EventSink) -> Result<Self, PlaneError> {
        let mut routes = RouteSocket::open()?;
        if let Some(link) = routes.link(&config.interface)? {
            if link.xfrm_if_id != Some(config.if_id) {
                return Err(PlaneError::Conflict(format!(
                    "interface {} exists and is not Runnel's; choose another name or remove it",
                    config.interface
                )));
            }
            routes.delete_link(&config.interface)?;
        }
        routes.add_xfrm_interface(&config.interface, config.if_id)?;
        let interface = config.interface.clone();
        match Self::on_interface(config, sink) {
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

    /// As [`Self::open`], on an interface somebody else made and keeps. Works without ESP in the
    /// kernel, with no suite then.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn on_interface(config: KernelConfig, sink: &EventSink) -> Result<Self, PlaneError> {
        let mut netlink = Netlink::open(Protocol::Xfrm)?;
        let sa_dir = matches!(
            netlink.try_query(encode::ask_for_direction())?,
            Err(refusal) if refusal.errno == libc::EINVAL
        );
        let context = Context { if_id: config.if_id, sa_dir };
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
            senders: BTreeMap::new(),
            policies_made: 0,
            reserved: BTreeSet::new(),
        };
        plane.purge()?;
        let steps = encode::wide_policies(context)
            .into_iter()
            .map(|message| Step {
                what: "install an inbound policy".to_owned(),
                message,
                undo: None,
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

    /// Removes every policy and SA with our `if_id`; returns how many there were.
    pub(super) fn purge(&mut self) -> Result<usize, PlaneError> {
        let ours = self.context.if_id;
        let policies =
            self.netlink.dump("list policies", &encode::dump_policies(), |_, payload| {
                decode::policy(payload).map(|policy| (policy.if_id == ours).then_some(policy))
            })?;
        let sas = self.dump_sas()?;
        let found = policies.len() + sas.len();
        let mut messages: Vec<Message> = policies
            .into_iter()
            .map(|policy| encode::delete_policy_by_index(self.context, policy.index))
            .collect();
        messages.extend(sas.into_iter().map(|sa| encode::delete_sa(sa.destination, sa.spi)));
        self.run_deletions("remove an SA or policy", messages)?;
        Ok(found)
    }
}
