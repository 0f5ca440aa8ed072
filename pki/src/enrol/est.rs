//! EST (RFC 7030, 8951): paths, bodies and answers as values.

use std::net::SocketAddr;

use super::Refusal;

/// An HTTP request to the EST service.
#[derive(Clone, Copy, Debug)]
pub struct EstRequest<'a> {
    /// The method, in upper case.
    pub method: &'a str,
    /// The path of the request target, without query.
    pub path: &'a str,
    /// The `Authorization` header.
    pub authorization: Option<&'a str>,
    /// The body.
    pub body: &'a [u8],
    /// The client's address.
    pub peer: Option<SocketAddr>,
    /// The certificate chain the client proved in TLS, leaf first, DER; empty without one.
    pub client_chain: &'a [Vec<u8>],
}

/// An HTTP answer. Its body is short: send it with its header in one write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EstReply {
    /// The status code.
    pub status: u16,
    /// Headers beside `Content-Length`, which the sender adds.
    pub headers: Vec<(&'static str, String)>,
    /// The body.
    pub body: Vec<u8>,
    /// What it means, for logs and metrics.
    pub outcome: EstOutcome,
}

/// What an EST answer means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EstOutcome {
    /// The CA certificates were sent.
    CaCerts,
    /// There are no attributes to ask for.
    CsrAttrs,
    /// A certificate was issued.
    Issued {
        /// The lease.
        lease_id: String,
        /// The certificate's serial number.
        serial: String,
        /// The role.
        role: String,
        /// Whether it repeats an earlier answer.
        replayed: bool,
        /// Whether it renews a lease.
        renewed: bool,
    },
    /// The request was refused.
    Refused(Refusal),
}
