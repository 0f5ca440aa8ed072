//! Enrolment over HTTPS: carries requests to the PKI's pure EST decisions and answers back.

use std::sync::Arc;

use hyper::header::AUTHORIZATION;
use pki::{Authority, EstOutcome, EstRequest, Refusal, UnixTime};

use super::{Reply, Request, Service};
use crate::obs::{Refusals, Report};
use crate::oidc::KeyFetcher;
use crate::sys::{clock, failpoint};

/// The enrolment service.
#[derive(Debug)]
pub struct EstService {
    authority: Arc<Authority>,
    refusals: Arc<Refusals>,
    keys: Arc<KeyFetcher>,
}

impl EstService {
    /// Over the PKI.
    pub fn new(authority: Arc<Authority>, refusals: Arc<Refusals>, keys: Arc<KeyFetcher>) -> Self {
        Self { authority, refusals, keys }
    }
}

impl Service for EstService {
    async fn answer(&self, request: Request) -> Reply {
        if let Some(token) = pki::enrol::est::request_token(&est(&request)) {
            self.keys.prepare_to_open(&token).await;
        }
        let (authority, refusals) = (Arc::clone(&self.authority), Arc::clone(&self.refusals));
        // Signing and the store's sync to disk block.
        let id = request.id.clone();
        let answered = super::blocking(&id, move || answer(&authority, &refusals, &request));
        match answered.await {
            Ok(reply) => reply,
            Err(error) => {
                tracing::error!(%error, "enrolment request failed");
                Reply::text(500, "internal error\n")
            }
        }
    }
}

/// The request as the PKI takes it.
fn est(request: &Request) -> EstRequest<'_> {
    EstRequest {
        method: &request.method,
        path: &request.path,
        authorization: request.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()),
        body: &request.body,
        peer: Some(request.peer),
        client_chain: &request.client_chain,
    }
}

fn answer(authority: &Authority, refusals: &Refusals, request: &Request) -> Reply {
    let reply = authority.est(&est(request), UnixTime::from_micros(clock::wall().0));
    log(&reply.outcome, request, reply.status, refusals);
    if matches!(reply.outcome, EstOutcome::Issued { .. }) {
        failpoint::hit("est.before_answer");
    }
    Reply { status: reply.status, headers: reply.headers, body: super::server::wiped(reply.body) }
}

fn log(outcome: &EstOutcome, request: &Request, status: u16, refusals: &Refusals) {
    let (peer, id) = (request.peer, &request.id);
    match outcome {
        EstOutcome::CaCerts => tracing::info!(%peer, request = %id, "CA certificates sent"),
        EstOutcome::CsrAttrs => tracing::debug!(%peer, request = %id, "CSR attributes sent"),
        EstOutcome::Issued { lease_id, serial, role, replayed, renewed } => tracing::info!(
            %peer, request = %id, lease = %lease_id, %serial, %role, replayed, renewed,
            "certificate issued"
        ),
        EstOutcome::Pending { lease_id, role, new } => log_waiting(lease_id, role, *new, request),
        EstOutcome::Refused(refusal) => report(refusal, request, status, refusals),
    }
}

/// Tells the operator of a lease that waits, once: its client asks again every few seconds.
pub(super) fn log_waiting(lease: &str, role: &str, new: bool, request: &Request) {
    let (peer, id) = (request.peer, &request.id);
    if new {
        tracing::info!(
            %peer, request = %id, %lease, %role,
            "a lease waits for approval: see runnel lease pending"
        );
    } else {
        tracing::debug!(%peer, request = %id, %lease, %role, "a lease still waits for approval");
    }
}

/// Tells the operator of a refusal.
pub(super) fn report(refusal: &Refusal, request: &Request, status: u16, refusals: &Refusals) {
    let (peer, id) = (request.peer, &request.id);
    let (what, fix) = match refusal.detail.rsplit_once(": ") {
        Some((what, fix)) => (what.to_owned(), fix.to_owned()),
        None => (refusal.detail.clone(), "see the enrolment guide".to_owned()),
    };
    refusals.report(
        &Report {
            code: format!("enrol_{}", refusal.code.name()),
            peer: peer.to_string(),
            source: Some(peer.ip()),
            identity: "-".to_owned(),
            told: format!("HTTP {status}, request {id}"),
            what,
            fix,
        },
        clock::now(),
    );
}
