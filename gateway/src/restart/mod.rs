//! Tunnels that outlive the process: what is kept of them, and which of them go on.
//!
//! Every IKE SA is written down at each exchange boundary, before what depends on it is sent. A
//! process that is killed, or that leaves (`runnel stop --keep`), has nothing to save any more; the
//! next one goes on where it was.

mod checkpoints;
mod resume;

pub use checkpoints::Checkpoints;
pub use resume::{choose, engine};
