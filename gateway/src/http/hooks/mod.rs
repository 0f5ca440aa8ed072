//! `/v1/hooks`: CI platforms say that a job is over, and its leases end. The document that describes
//! it, `openapi.json`, is served with it and tested against it.

use std::sync::{Arc, Mutex, PoisonError};

use pki::hook::{self, Deliveries, Delivery, HookError, HookKind, JobOver, Seen, Told};
use pki::{Actor, AuditEvent, Authority, UnixTime};
use serde_json::json;

use super::problem::{allowing, problem};
use super::{EndLeases, Reply, Request, Service};
use crate::hooks::HookSources;
use crate::lease::EndError;
use crate::obs::{Refusals, Report};
use crate::sys::clock;

/// The document that describes this interface.
pub const OPENAPI: &str = include_str!("openapi.json");
/// The largest delivery that is looked at, octets: a job with a hundred steps has a tenth of it.
const MAX_BODY: usize = 512 * 1024;
/// What is received at most: of what is too large just enough to see that.
pub const MAX_RECEIVED: usize = MAX_BODY + 1;
/// Connections at once: each may hold a body before anybody knows who sent it.
pub const MAX_CONNECTIONS: usize = 64;

/// The service. Cheap to clone.
#[derive(Clone)]
pub struct HookService(Arc<Inner>);

struct Inner {
    authority: Arc<Authority>,
    refusals: Arc<Refusals>,
    ender: Box<dyn EndLeases>,
    sources: Arc<HookSources>,
    seen: Mutex<Deliveries>,
}

impl std::fmt::Debug for HookService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HookService").field("sources", &self.0.sources).finish_non_exhaustive()
    }
}

impl HookService {
    /// Over the PKI.
    pub fn new(
        authority: Arc<Authority>,
        refusals: Arc<Refusals>,
        ender: Box<dyn EndLeases>,
        sources: Arc<HookSources>,
    ) -> Self {
        let seen = Mutex::default();
        Self(Arc::new(Inner { authority, refusals, ender, sources, seen }))
    }
}

impl Service for HookService {
    async fn answer(&self, request: Request) -> Reply {
        let inner = Arc::clone(&self.0);
        // Ending leases waits for the store and for the data plane.
        let id = request.id.clone();
        match super::blocking(&id, move || inner.answer(&request)).await {
            Ok(reply) => reply,
            Err(error) => {
                tracing::error!(%error, "webhook failed");
                problem(500, "hook_internal", "the request failed inside")
            }
        }
    }
}

/// Why a delivery is not acted on.
enum Refused {
    /// It is not believed, or not understood.
    Hook(HookError),
    /// It is too long.
    TooLarge(usize),
    /// Another delivery had its name.
    NameTaken,
    /// It came before and is being handled.
    UnderWay,
    /// The leases could not be ended.
    NotEnded(EndError),
}

impl From<HookError> for Refused {
    fn from(error: HookError) -> Self {
        Self::Hook(error)
    }
}

impl From<EndError> for Refused {
    fn from(error: EndError) -> Self {
        Self::NotEnded(error)
    }
}

impl From<pki::Error> for Refused {
    fn from(error: pki::Error) -> Self {
        Self::NotEnded(error.into())
    }
}

impl Inner {
    fn answer(&self, request: &Request) -> Reply {
        let kind = match (request.path.as_str(), request.method.as_str()) {
            ("/v1/hooks/github", "POST") => HookKind::Github,
            ("/v1/hooks/gitlab", "POST") => HookKind::Gitlab,
            ("/v1/openapi.json", "GET" | "HEAD") => {
                return Reply::new(200, "application/json", OPENAPI.as_bytes().to_vec());
            }
            (path @ ("/v1/hooks/github" | "/v1/hooks/gitlab" | "/v1/openapi.json"), _) => {
                let detail = "this method is not offered there: see /v1/openapi.json";
                let methods = if path == "/v1/openapi.json" { "GET, HEAD" } else { "POST" };
                return allowing(problem(405, "hook_method_not_allowed", detail), methods);
            }
            _ => return problem(404, "hook_not_found", "there is no such resource"),
        };
        self.take(kind, request).unwrap_or_else(|refused| self.refuse(kind, request, &refused))
    }

    fn take(&self, kind: HookKind, request: &Request) -> Result<Reply, Refused> {
        if request.body.len() > MAX_BODY {
            return Err(Refused::TooLarge(request.body.len()));
        }
        let (delivery, now) = (delivery(kind, request), now());
        let sources = self.sources.get();
        let source = hook::verify(&sources, kind, &delivery, now)?;
        let issuer = source.issuer.as_str();
        let over = match hook::read(kind, delivery.event, delivery.body)? {
            Told::Over(over) => over,
            Told::Nothing(why) => return Ok(told(202, "ignored", Some(why), Ended::default())),
        };
        match self.seen().begin(issuer, delivery.id, delivery.body) {
            Seen::New => {}
            Seen::Again => {
                let why = "this delivery was handled before";
                return Ok(told(200, "duplicate", Some(why), Ended::default()));
            }
            Seen::UnderWay => return Err(Refused::UnderWay),
            Seen::OtherBody => return Err(Refused::NameTaken),
        }
        let mut handling = Handling { inner: self, issuer, body: delivery.body, done: false };
        let ended = self.end(source, &over, request, now)?;
        handling.done = true;
        drop(handling);
        tracing::info!(
            peer = %request.peer, request = %request.id, issuer, %over, leases = ended.leases.len(),
            "a job is over"
        );
        Ok(match ended.leases.is_empty() {
            true => {
                let why = "the job has no live lease here";
                told(202, "unknown_job", Some(why), ended)
            }
            false => told(200, "ended", None, ended),
        })
    }

    /// Ends the leases of a job, those that wait for an operator first; each is tried, and then the
    /// first failure is told.
    fn end(
        &self,
        source: &hook::HookSource,
        over: &JobOver,
        request: &Request,
        now: UnixTime,
    ) -> Result<Ended, Refused> {
        let actor = Actor::Peer(request.peer.ip());
        let mut leases = self.authority.cancel_of_job(source, over, &actor, now)?;
        let live = self.authority.leases_of_job(source, over)?;
        let live: Vec<String> = live.into_iter().map(|lease| lease.id).collect();
        let done = match live.is_empty() {
            true => Ok(0),
            false => self.ender.release(&live, "job", &actor).map(|done| done.sas_closed),
        };
        leases.extend(live);
        if !leases.is_empty() {
            let reason = match &done {
                Ok(_) => format!("{} lease(s) ended", leases.len()),
                Err(error) => format!("{} lease(s) were to end: {error}", leases.len()),
            };
            let event = AuditEvent::new("hook.job_over", &actor, now).object(over).reason(reason);
            self.authority.record_audit(&event)?;
        }
        Ok(Ended { leases, sas_closed: done? })
    }

    fn refuse(&self, kind: HookKind, request: &Request, refused: &Refused) -> Reply {
        let (code, status, detail, public) = match refused {
            Refused::Hook(error) => {
                (error.name(), error.status(), error.to_string(), error.public_detail())
            }
            Refused::TooLarge(length) => {
                let detail = format!(
                    "the delivery has {length} octets, more than {MAX_BODY}: deliver job events only"
                );
                ("too_large", 413, detail.clone(), detail)
            }
            Refused::NameTaken => {
                let detail = "another delivery had the same name with another body: somebody \
                              repeats deliveries, or the platform numbers them anew";
                ("replayed", 409, detail.to_owned(), detail.to_owned())
            }
            Refused::UnderWay => {
                let detail = "this delivery is being handled: deliver it again if that fails";
                ("under_way", 503, detail.to_owned(), detail.to_owned())
            }
            Refused::NotEnded(error) => {
                let public = "the leases could not be ended now; deliver it again".to_owned();
                ("not_ended", 503, error.to_string(), public)
            }
        };
        let (peer, what) = (request.peer, format!("{} webhook", kind.name()));
        let (said, fix) = detail.split_once(": ").unwrap_or((&detail, "see `runnel doctor`"));
        self.refusals.report(
            &Report {
                code: format!("hook_{code}"),
                peer: peer.to_string(),
                source: Some(peer.ip()),
                identity: what.clone(),
                told: format!("HTTP {status}, request {}", request.id),
                what: said.to_owned(),
                fix: fix.to_owned(),
            },
            clock::now(),
        );
        let actor = Actor::Peer(peer.ip());
        let event = AuditEvent::new("hook.refuse", &actor, now()).object(&what).refused(code);
        let source = Some(peer.ip().to_canonical());
        if let Err(error) = self.authority.record_refusal(&what, source, event) {
            tracing::error!(%error, "refused webhook not recorded");
        }
        let told = if status == 401 { "not_accepted" } else { code };
        let mut reply = problem(status, &format!("hook_{told}"), &public);
        if status == 503 {
            reply.headers.push(("retry-after", "5".to_owned()));
        }
        reply
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Deliveries> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A delivery that is being handled: it may come again unless that was done, whatever ended it.
struct Handling<'a> {
    inner: &'a Inner,
    issuer: &'a str,
    body: &'a [u8],
    done: bool,
}

impl Drop for Handling<'_> {
    fn drop(&mut self) {
        let mut seen = self.inner.seen();
        match self.done {
            true => seen.done(self.issuer, self.body),
            false => seen.failed(self.issuer, self.body),
        }
    }
}

/// What a delivery ended.
#[derive(Default)]
struct Ended {
    leases: Vec<String>,
    sas_closed: usize,
}

fn delivery(kind: HookKind, request: &Request) -> Delivery<'_> {
    let header = |name: &str| request.headers.get(name).and_then(|value| value.to_str().ok());
    let body = &request.body[..];
    match kind {
        HookKind::Github => Delivery {
            event: header("x-github-event"),
            id: header("x-github-delivery"),
            hub_signature: header("x-hub-signature-256"),
            body,
            ..Delivery::default()
        },
        HookKind::Gitlab => Delivery {
            event: header("x-gitlab-event"),
            id: header("idempotency-key").or_else(|| header("webhook-id")),
            token: header("x-gitlab-token"),
            webhook_id: header("webhook-id"),
            webhook_timestamp: header("webhook-timestamp"),
            webhook_signature: header("webhook-signature"),
            body,
            ..Delivery::default()
        },
    }
}

fn told(status: u16, outcome: &str, reason: Option<&str>, ended: Ended) -> Reply {
    let Ended { leases, sas_closed } = ended;
    let mut answer = json!({"outcome": outcome, "leases": leases, "sas_closed": sas_closed});
    if let (Some(reason), Some(object)) = (reason, answer.as_object_mut()) {
        object.insert("reason".to_owned(), reason.into());
    }
    Reply::new(status, "application/json", answer.to_string().into_bytes())
}

fn now() -> UnixTime {
    UnixTime::from_micros(clock::wall().0)
}

#[cfg(test)]
mod tests;
