//! HTTP: enrolment over TLS, revocation status in the clear, and the page inside the tunnel.
//!
//! Own accept loop, HTTP/1.1 only: stock enrolment clients need header and body in one TLS write
//! with a length, and per-connection limits are ours to set.

mod est;
mod page;
mod server;
mod status;
mod tls;

pub use est::EstService;
pub use page::PageService;
pub use server::{Limits, Reply, Request, Service, serve};
pub use status::StatusService;
pub use tls::{CertificateSlot, acceptor};
