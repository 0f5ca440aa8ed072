//! The audit trail outside the store.
//!
//! The store holds the truth, chained by hash and written in the transaction that makes the
//! change; what is here copies it: to a file beside the store, and to places elsewhere.

mod encode;
mod file;
mod https;
mod sink;
mod syslog;
mod tls;

pub use file::{AuditFile, Bounds, kept_files};
pub use sink::{Courier, Sink, SinkStatus};
