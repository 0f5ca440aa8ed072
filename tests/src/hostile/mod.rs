//! A sender of packets no honest client sends.
//!
//! It builds IKE messages byte by byte, independently of the `ike` crate's codec, and can put any
//! source address on them.

pub mod cookies;
pub mod flood;
pub mod message;
pub mod spoof;
