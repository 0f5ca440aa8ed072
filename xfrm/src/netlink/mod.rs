//! A thin synchronous netlink socket: framing, sequencing, acknowledgements, batches, dumps.
//!
//! Duty: carry requests to the kernel and bring back its answers or one sentence about its
//! refusal. What the messages mean is the callers' business ([`crate::kernel`], [`crate::nft`],
//! [`crate::route`]).
//!
//! Two rules hold everywhere here:
//! - **No key reaches a log.** Requests carry ESP keys, and dumps of SAs return them. Buffers are
//!   zeroized, their `Debug` prints a length, the kernel is asked not to echo requests
//!   (`NETLINK_CAP_ACK`), and nothing here logs payloads.
//! - **A short or corrupt message is an error, never a panic.** Lengths are checked here before
//!   any parser of another crate sees the bytes, because those slice first.

mod refusal;
mod socket;
mod wire;

pub use refusal::Refusal;
pub use socket::{Event, EventSocket, Netlink, Protocol};
pub use wire::{Attr, Attrs, Frame, Frames, Message, attr_u32, attr_u32_be, attr_u64_be};
