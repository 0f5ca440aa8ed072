//! What people and machines see of the gateway: the log, refusals with their fixes, the audit
//! trail. Observes; decides nothing.

pub mod audit;
mod journal;
pub mod log;
mod refusals;

pub use journal::Journal;
pub use refusals::{Refusals, Report};
