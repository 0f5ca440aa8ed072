//! The operating system: clocks, process hygiene, readiness. No policy.

pub mod clock;
pub mod failpoint;
mod file;
pub mod net;
mod notify;
mod process;
pub mod queue;

pub use file::read_small;
pub use notify::notify;
pub use process::{harden, has_net_admin, hostname, install_crypto_provider, reason};
