//! What people and machines see of the gateway: the log, refusals with their fixes, the audit
//! trail. Observes; decides nothing.

pub mod audit;
mod journal;
mod lives;
pub mod log;
mod plain;
mod refusals;

pub use journal::Journal;
pub use lives::Lives;
pub(crate) use plain::plain;
pub use refusals::{Refusals, Report};
