//! The gateway: composes the IKE engine, the data plane and the PKI into the program `runnel`.
//!
//! ```text
//! cli ──► admin socket ──► service (leases, tokens, certificates, SAs)
//!                             │
//! http (EST, CRL, page) ──────┤
//!                             ▼
//! driver (sockets, clock) ─► ike::Engine ─► actions (workers, data plane thread)
//!                             │
//!                             └─► obs (log, audit, refusals)
//! ```
//!
//! The only crate with an async runtime. `ike`, `xfrm` and `pki` know nothing of each other; what
//! one needs of another is translated here.

pub mod actions;
pub mod admin;
pub mod cli;
pub mod config;
pub mod driver;
mod fetch;
pub mod hooks;
pub mod http;
pub mod lease;
pub mod live;
pub mod obs;
pub mod oidc;
pub mod policy;
pub mod restart;
pub mod revocation;
pub mod service;
pub mod site;
pub mod state;
pub mod sys;
pub mod up;

/// An OIDC issuer for tests.
#[cfg(test)]
#[path = "../../tests/src/oidc.rs"]
#[allow(dead_code, unreachable_pub)]
mod test_issuer;
