//! The userspace data plane: ESP in UDP (RFC 3948, RFC 4303) over a TUN device.
//!
//! Duty: carry the packets of the installed child SAs between the encapsulation sockets and the
//! tunnel interface, and let nothing else pass. It knows no IKE: IKE datagrams leave as
//! [`PlaneEvent::Ike`]. It sets no address and no route.
//!
//! # Threads
//! One `inbound` thread per encapsulation socket and one `outbound` thread per TUN queue, all
//! moving batches; one `keeper` thread follows path MTUs. Each batch runs under one read lock of
//! the SA table, so a control operation that has taken the write lock is in force for every later
//! packet: after [`Dataplane::remove`] returns, no packet of that child is on its way to either
//! side. Events are delivered outside that lock.
//!
//! # Order of checks on a received packet
//! Length and marker → SA by SPI → anti-replay window → integrity and decryption → window update
//! → padding and next header → inner header → selectors of both directions → ECN → MSS. What a
//! stranger can send costs a hash lookup; what fails is counted by [`DropReason`] and never stops
//! anything.

#[cfg(doc)]
use crate::dataplane::{Dataplane, PlaneEvent};

mod child;
mod counters;
mod ecn;
mod esp;
mod fragment;
mod gro;
#[cfg(test)]
mod hostile_tests;
mod icmp;
mod inbound;
mod keeper;
mod ledger;
mod mss;
pub mod mtu;
mod offload;
mod outbound;
mod packet;
mod plane;
mod replay;
mod selector;
mod sender;
mod shared_words;
pub(crate) mod sys;
mod table;
#[cfg(any(test, feature = "fuzzing"))]
mod targets;
pub mod tun;

pub use counters::DropReason;
pub use ledger::SEQUENCES_OCTETS;
pub use plane::{TunSource, UserPlane, UserPlaneConfig};
#[cfg(test)]
pub(crate) use targets::samples;
#[cfg(any(test, feature = "fuzzing"))]
pub use targets::{esp_packet, inner_packet};
pub use tun::probe;
