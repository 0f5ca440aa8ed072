//! Root certificate and revocation lists over plain HTTP, for clients that cannot reach anything
//! else yet. Everything served here is signed or pinned.

use std::sync::Arc;

use pki::{Authority, UnixTime};

use super::{Reply, Request, Service};
use crate::sys::clock;

/// The status service.
#[derive(Debug)]
pub struct StatusService {
    authority: Arc<Authority>,
}

impl StatusService {
    /// Over the PKI.
    pub fn new(authority: Arc<Authority>) -> Self {
        Self { authority }
    }
}

impl Service for StatusService {
    async fn answer(&self, request: Request) -> Reply {
        if request.method != "GET" && request.method != "HEAD" {
            return Reply::text(405, "only GET is offered here\n");
        }
        match request.path.as_str() {
            "/root.pem" => self.pem(self.authority.root_pem()),
            "/issuing.pem" => self.pem(self.authority.issuing_pem()),
            "/crl/issuing.crl" => self.crl().await,
            _ => Reply::text(404, "here are /root.pem, /issuing.pem and /crl/issuing.crl\n"),
        }
    }
}

impl StatusService {
    fn pem(&self, pem: String) -> Reply {
        Reply::new(200, "application/x-pem-file", pem.into_bytes())
    }

    async fn crl(&self) -> Reply {
        let authority = Arc::clone(&self.authority);
        let now = UnixTime::from_micros(clock::wall().0);
        match super::blocking(move || authority.crl(now)).await {
            Ok(Ok(crl)) => Reply::new(200, "application/pkix-crl", crl.der),
            Ok(Err(error)) => {
                tracing::error!(%error, "CRL not available");
                Reply::text(503, "the CRL is not available now\n")
            }
            Err(error) => {
                tracing::error!(%error, "CRL request failed");
                Reply::text(500, "internal error\n")
            }
        }
    }
}
