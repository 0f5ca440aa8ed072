//! What `ring` and `aws-lc-rs` do alike, compiled once for each.
//!
//! The two libraries share one API; the parent module names its library `lib` and supplies, as
//! `shim`, the few calls whose signatures differ.

pub(super) mod aead;
pub(super) mod ecdh;
pub(super) mod hmac;
pub(super) mod sign;
pub(super) mod verify;
