//! The contract every data plane keeps.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::error::PlaneError;
use crate::model::{Capabilities, ChildId, ChildSpec, Hosts, PlaneKind, PlaneStats, Spi, Usage};

/// Something that happened in the data plane, for the control plane to act on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PlaneEvent {
    /// An IKE datagram arrived on an encapsulation socket (UDP 4500); the non-ESP marker is
    /// already removed (RFC 3948 2.2).
    Ike {
        /// Our address and port it was sent to.
        local: SocketAddr,
        /// The sender.
        remote: SocketAddr,
        /// The IKE message.
        payload: Vec<u8>,
    },
    /// An ESP packet for an SPI nobody installed (RFC 7296 2.21.4); rate-limited by the plane.
    NoSa {
        /// The unknown SPI.
        spi: Spi,
        /// Our address.
        local: SocketAddr,
        /// The sender.
        remote: SocketAddr,
    },
    /// A soft or hard limit of a child SA was reached.
    Expire {
        /// The child.
        child: ChildId,
        /// `false`: soft (rekey now); `true`: hard (the plane has stopped using it).
        hard: bool,
    },
    /// Authenticated packets of the child now come from another outer address (NAT rebinding).
    Mapping {
        /// The child.
        child: ChildId,
        /// The new outer address and port of the peer.
        remote: SocketAddr,
    },
    /// A packet matched an outbound policy that has no SA: the sender's outbound half is gone, or
    /// is being replaced at this moment. [`Dataplane::resync`] tells which.
    Acquire {
        /// Whose policy it is, when that is known.
        child: Option<ChildId>,
        /// Inner destination.
        destination: IpAddr,
    },
    /// Events may have been lost (ENOBUFS); [`Dataplane::resync`] makes up for them.
    Lost,
}

/// Receives events from plane threads. Must not block: drop when the receiver is full.
pub type EventSink = Arc<dyn Fn(PlaneEvent) + Send + Sync>;

/// A data plane: installs, updates and removes child SAs and reports on them.
///
/// Operations are make-before-break: inbound before outbound on installation, outbound before
/// inbound on removal. All methods return only when the effect is in force (for removal: no
/// further packet of that child passes). Secrets in [`ChildSpec`] are zeroized on drop.
pub trait Dataplane: Send {
    /// Which plane this is.
    fn kind(&self) -> PlaneKind;

    /// What it can do; the control plane negotiates only within this.
    fn capabilities(&self) -> Capabilities;

    /// Name of the interface that carries inner packets, for routes and the firewall.
    fn interface(&self) -> &str;

    /// Reserves an inbound SPI (>= 256) that collides with nothing installed here.
    ///
    /// # Errors
    /// When the kernel refuses or none is free.
    fn alloc_spi(&mut self) -> Result<Spi, PlaneError>;

    /// Installs both halves of a child SA. With `spec.outbound_active == false` (we are the
    /// responder of a rekey) the outbound half is prepared but the old child keeps sending until
    /// [`Dataplane::activate_outbound`] (RFC 7296 2.8).
    ///
    /// # Errors
    /// [`PlaneError::Unsupported`], [`PlaneError::Conflict`] or the kernel's refusal; nothing
    /// stays installed then.
    fn install(&mut self, spec: &ChildSpec) -> Result<(), PlaneError>;

    /// Takes over a child that an earlier run of this instance installed under the same keys: what it
    /// sends goes on above every sequence number used, and what was accepted is not accepted again.
    /// Where the SAs themselves outlived the process (in the kernel) they stay: only what differs
    /// from `spec` is changed, the outer addresses and who sends; `first_seq_out` and `limits` have no
    /// effect then.
    ///
    /// `false` when nothing is left of it, or no whole child (what was there is gone then), or when
    /// this plane keeps nothing beyond its process.
    ///
    /// # Errors
    /// As [`Dataplane::install`]; nothing of the child stays then.
    fn adopt(&mut self, spec: &ChildSpec) -> Result<bool, PlaneError> {
        let _ = spec;
        Ok(false)
    }

    /// Ends the taking over: removes what an earlier run left and nobody adopted, and returns how
    /// many SAs and policies that were.
    ///
    /// # Errors
    /// The kernel's refusal.
    fn reconcile(&mut self) -> Result<usize, PlaneError> {
        Ok(0)
    }

    /// Makes up for events that were lost: compares every child with what is really installed and
    /// returns what should have been reported. A child past its limits, or gone, is
    /// [`PlaneEvent::Expire`] again at each call until the control plane has acted on it. Mappings
    /// are not among them: they are repeated for as long as packets come from the new address. A
    /// plane whose events come from its own threads loses none.
    ///
    /// # Errors
    /// The kernel's refusal.
    fn resync(&mut self) -> Result<Vec<PlaneEvent>, PlaneError> {
        Ok(Vec::new())
    }

    /// Makes this child the one that sends for its inner addresses.
    ///
    /// # Errors
    /// [`PlaneError::Unknown`].
    fn activate_outbound(&mut self, child: ChildId) -> Result<(), PlaneError>;

    /// Moves a child to other outer addresses without losing packets (MOBIKE, NAT rebinding).
    ///
    /// # Errors
    /// [`PlaneError::Unknown`], or the kernel's refusal.
    fn update_hosts(&mut self, child: ChildId, hosts: &Hosts) -> Result<(), PlaneError>;

    /// Removes both halves and returns the final counters.
    ///
    /// # Errors
    /// [`PlaneError::Unknown`].
    fn remove(&mut self, child: ChildId) -> Result<Usage, PlaneError>;

    /// Counters and last use of one child.
    ///
    /// # Errors
    /// [`PlaneError::Unknown`].
    fn usage(&mut self, child: ChildId) -> Result<Usage, PlaneError>;

    /// Counters of several children, those that are installed. Cheaper than asking for each.
    ///
    /// # Errors
    /// The kernel's refusal.
    fn usages(&mut self, children: &[ChildId]) -> Result<BTreeMap<ChildId, Usage>, PlaneError> {
        let mut usages = BTreeMap::new();
        for child in children {
            match self.usage(*child) {
                Ok(usage) => {
                    usages.insert(*child, usage);
                }
                Err(PlaneError::Unknown(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(usages)
    }

    /// Children installed now, in order of their id.
    fn children(&self) -> Vec<ChildId>;

    /// Counters of the whole plane (drops by reason).
    fn stats(&self) -> PlaneStats;

    /// Removes every SA, policy, route and interface this plane made, and ends its threads.
    ///
    /// # Errors
    /// When something could not be removed; names it.
    fn shutdown(&mut self) -> Result<(), PlaneError>;

    /// Ends the plane's threads and leaves what the next process can go on with.
    ///
    /// # Errors
    /// As [`Dataplane::shutdown`].
    fn detach(&mut self) -> Result<(), PlaneError> {
        self.shutdown()
    }
}
