//! The enrolment listener: EST and the JSON interface behind one address.

use super::{ApiService, EstService, Reply, Request, Service};

/// Both services.
#[derive(Debug)]
pub struct EnrolService {
    /// `/.well-known/est`
    pub est: EstService,
    /// `/v1`
    pub api: ApiService,
}

impl Service for EnrolService {
    async fn answer(&self, request: Request) -> Reply {
        // A label before the well-known part may be any word, so that one decides.
        let json = request.path.starts_with("/v1/") && !request.path.contains("/.well-known/");
        match json {
            true => self.api.answer(request).await,
            false => self.est.answer(request).await,
        }
    }
}
