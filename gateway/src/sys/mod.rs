//! The operating system: clocks, process hygiene, readiness. No policy.

pub mod clock;
pub mod failpoint;
pub mod net;
mod notify;
mod process;
pub mod queue;

pub use notify::notify;
pub use process::{harden, has_net_admin, hostname, install_crypto_provider, reason};
