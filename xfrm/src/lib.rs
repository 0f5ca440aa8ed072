//! Data planes of Runnel behind one trait: what the packets do.
//!
//! Duty: move ESP packets between the tunnel interface and the outer network for the child SAs it
//! is given, enforce the packet filter of every lease, and own links, addresses and routes on the
//! tunnel side. It knows nothing of IKE, certificates or configuration files; its model
//! ([`model`]) is plain data of its own.
//!
//! Three planes implement [`Dataplane`]: [`kernel`] (XFRM over netlink), [`user`] (ESP in
//! userspace over a TUN device) and [`mock`] (records operations). [`probe`] finds out which of
//! them this machine can run.
//!
//! Packets of either plane meet the same nftables rules ([`nft`]) on the tunnel interface.
//! [`Enforcer`] puts a plane and the firewall together in the only safe order: filter element in,
//! then SAs; removal begins with the filter element.

pub mod enforcer;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
pub mod kernel;
pub mod mock;
pub mod model;
pub mod netlink;
pub mod netns;
pub mod nft;
pub mod probe;
pub mod route;
pub mod tcp;
pub mod udp;
pub mod user;

mod dataplane;
mod error;

pub use dataplane::{Dataplane, EventSink, PlaneEvent};
pub use enforcer::{Enforcer, TunnelSetup};
pub use error::PlaneError;
