//! Leases on the gateway's side: what ties SAs and filters to them, and how they end.
//!
//! The PKI decides and remembers; here is what must happen to tunnels when it does.

mod end;
mod follow;
mod registry;

pub use end::{EndError, LeaseEnder, Tunnels};
pub use follow::Follower;
pub use registry::{Epoch, LeaseRegistry};
