//! Lease operations on the store.
