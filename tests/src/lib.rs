//! What Runnel claims, checked from outside: interop labs against unmodified strongSwan in
//! network namespaces, hostile input, crash tests and paired benchmarks.
//!
//! This crate is only ever run by developers and CI. It prints to the terminal and needs root for
//! everything that builds a network.

pub mod alloc;
#[cfg(feature = "providers")]
pub mod authority;
pub mod guest;
#[cfg(feature = "providers")]
pub mod handshake;
pub mod hostile;
pub mod lab;
pub mod labs;
pub mod oidc;
pub mod real;
pub mod sim;
pub mod stopwatch;
