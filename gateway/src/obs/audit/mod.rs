//! The audit trail outside the store.
//!
//! The store holds the truth, chained by hash and written in the transaction that makes the
//! change; what is here copies it: to a file beside the store, and to places elsewhere.

mod file;

pub use file::AuditFile;
