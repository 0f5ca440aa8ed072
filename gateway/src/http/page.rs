//! The page on the gateway's tunnel addresses: tells a connected runner who it is. What the
//! built-in role may reach.

use std::sync::Arc;

use pki::{Authority, Lease};

use super::{Reply, Request, Service};
use crate::sys::clock;

/// The page.
#[derive(Debug)]
pub struct PageService {
    authority: Arc<Authority>,
    gateway: String,
}

impl PageService {
    /// Over the PKI; `gateway` is the gateway's id.
    pub fn new(authority: Arc<Authority>, gateway: String) -> Self {
        Self { authority, gateway }
    }
}

impl Service for PageService {
    async fn answer(&self, request: Request) -> Reply {
        if request.method != "GET" && request.method != "HEAD" {
            return Reply::text(405, "only GET is offered here\n");
        }
        let authority = Arc::clone(&self.authority);
        let source = request.peer.ip();
        let found = super::blocking(&request.id, move || authority.lease_by_address(source));
        match found.await {
            Ok(Ok(Some(lease))) => Reply::text(200, text(&self.gateway, &lease, &request)),
            Ok(Ok(None)) => Reply::text(403, format!("{source} has no lease here\n")),
            _ => Reply::text(503, "the page is not available now\n"),
        }
    }
}

fn text(gateway: &str, lease: &Lease, request: &Request) -> String {
    let left = lease.expires.secs().saturating_sub(clock::unix_seconds());
    format!(
        "You are connected to {gateway} as {}.\n\n\
         lease     {}\n\
         role      {}\n\
         identity  {}\n\
         address   {}\n\
         expires   {} (in {})\n",
        lease.dns_name,
        lease.id,
        lease.role,
        lease.identity,
        request.peer.ip(),
        lease.expires,
        clock::human(u64::try_from(left).unwrap_or(0)),
    )
}
