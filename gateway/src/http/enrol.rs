//! The enrolment listener: EST and the JSON interface behind one address.

use super::problem::is_json;
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
        match is_json(&request.path) {
            true => self.api.answer(request).await,
            false => self.est.answer(request).await,
        }
    }
}
