//! `/v1/leases`: enrolment for whoever speaks JSON. The document that describes it,
//! `openapi.json`, is served with it and tested against it.

mod answers;
mod credential;
mod exchange;
mod swanctl;

use std::ops::ControlFlow;
use std::sync::Arc;

use hyper::header::AUTHORIZATION;
use pki::enrol::est;
use pki::enrol::jwt::jws;
use pki::signer::KeyKind;
use pki::{Actor, Authority, Enrolled, Lease, Refusal, RefusalCode, UnixTime};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::problem::allowing;
use super::{Reply, Request, Service};
use crate::admin::view::Ended;
use crate::lease::EndError;
use crate::live::LiveConfig;
use crate::obs::Refusals;
use crate::oidc::KeyFetcher;
use crate::sys::{clock, failpoint};
use credential::{Credential, Holder};

/// The document that describes this interface.
pub const OPENAPI: &str = include_str!("openapi.json");
/// The largest body; a request with an RSA-8192 key fits twice.
const MAX_BODY: usize = 32 * 1024;

/// Ends leases with their tunnels.
pub trait EndLeases: Send + Sync + 'static {
    /// The work of these leases is done; `cause` says in one word who says so. Each is tried.
    ///
    /// # Errors
    /// [`EndError`], of the first that could not be ended.
    fn release(&self, leases: &[String], cause: &str, actor: &Actor) -> Result<Ended, EndError>;

    /// A lease must not be trusted any more.
    ///
    /// # Errors
    /// [`EndError`].
    fn revoke(&self, lease: &str, reason: &str, actor: &Actor) -> Result<Ended, EndError>;
}

/// The service.
pub struct Api {
    /// The PKI.
    pub authority: Arc<Authority>,
    /// Where refusals are reported.
    pub refusals: Arc<Refusals>,
    /// Fetches issuers' keys.
    pub keys: Arc<KeyFetcher>,
    /// The configuration in force.
    pub config: LiveConfig,
    /// Ends leases.
    pub ender: Box<dyn EndLeases>,
    /// The gateway's IKE identity.
    pub gateway: String,
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Api").field("gateway", &self.gateway).finish_non_exhaustive()
    }
}

/// `POST /v1/leases`
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Create {
    csr: Option<String>,
    role: Option<String>,
    client: Option<String>,
    key_type: Option<String>,
}

/// `POST /v1/leases/{id}/renew`
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Renew {
    csr: String,
    client: Option<String>,
}

/// `POST /v1/leases/{id}/revoke`
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Revoke {
    reason: Option<String>,
}

/// A service that several listeners may share.
#[derive(Debug)]
pub struct ApiService(pub Arc<Api>);

impl Service for ApiService {
    async fn answer(&self, request: Request) -> Reply {
        // Nothing is fetched for what is refused anyhow.
        let (bearer, opens) = match resource(&request) {
            Ok(Resource::Exchange) => (exchange::subject(&request.body), true),
            Ok(Resource::Create) => (Credential::bearer(&request), true),
            Ok(_) => (Credential::bearer(&request), false),
            Err(_) => (None, false),
        };
        if let Some(token) = bearer.filter(|token| jws::looks_like_jwt(token)) {
            match opens {
                true => self.0.keys.prepare_to_open(&token).await,
                // A pod that is deleted may still release what it has.
                false => self.0.keys.prepare(&token).await,
            }
        }
        let api = Arc::clone(&self.0);
        let id = request.id.clone();
        match super::blocking(&id, move || api.handle(&request)).await {
            Ok(reply) => reply,
            Err(error) => {
                tracing::error!(%error, "a request to /v1 failed");
                problem(&Refusal::new(RefusalCode::Unavailable, "the request failed inside"))
            }
        }
    }
}

/// What a request asks for.
enum Resource<'r> {
    OpenApi,
    Exchange,
    Create,
    Show(&'r str),
    Release(&'r str),
    Renew(&'r str),
    Revoke(&'r str),
}

/// The parts of a path. One spelling only: what counts requests must see the same resources.
fn parts(path: &str) -> Vec<&str> {
    let path = path.strip_prefix("/v1/").unwrap_or_default();
    path.strip_suffix('/').unwrap_or(path).split('/').collect()
}

/// The methods of a resource; `None`: there is no such resource.
fn offered(path: &str) -> Option<&'static str> {
    match parts(path).as_slice() {
        ["openapi.json"] => Some("GET, HEAD"),
        ["leases", _] => Some("GET, HEAD, DELETE"),
        ["token" | "leases"] | ["leases", _, "renew" | "revoke"] => Some("POST"),
        _ => None,
    }
}

fn resource(request: &Request) -> Result<Resource<'_>, Refusal> {
    let path = parts(&request.path);
    let method = request.method.as_str();
    Ok(match (path.as_slice(), method) {
        (["openapi.json"], "GET" | "HEAD") => Resource::OpenApi,
        (["token"], "POST") => Resource::Exchange,
        (["leases"], "POST") => Resource::Create,
        (["leases", id], "GET" | "HEAD") => Resource::Show(id),
        (["leases", id], "DELETE") => Resource::Release(id),
        (["leases", id, "renew"], "POST") => Resource::Renew(id),
        (["leases", id, "revoke"], "POST") => Resource::Revoke(id),
        _ if offered(&request.path).is_some() => {
            return Err(Refusal::new(
                RefusalCode::MethodNotAllowed,
                format!("{method} is not offered there: see /v1/openapi.json"),
            ));
        }
        _ => {
            return Err(Refusal::new(
                RefusalCode::NotFound,
                "there is no such resource: see /v1/openapi.json",
            ));
        }
    })
}

impl Api {
    fn handle(&self, request: &Request) -> Reply {
        self.route(request).unwrap_or_else(|refusal| {
            if let Some(pending) = &refusal.pending {
                super::est::log_waiting(&pending.id, &pending.role, pending.new, request);
                return answers::waiting(&self.authority, pending, refusal.retry_after());
            }
            super::est::report(&refusal, request, refusal.code.status(), &self.refusals);
            match offered(&request.path).filter(|_| refusal.code == RefusalCode::MethodNotAllowed) {
                Some(methods) => allowing(problem(&refusal), methods),
                None => problem(&refusal),
            }
        })
    }

    fn route(&self, request: &Request) -> Result<Reply, Refusal> {
        match resource(request)? {
            Resource::OpenApi => {
                Ok(Reply::new(200, "application/json", OPENAPI.as_bytes().to_vec()))
            }
            Resource::Exchange => Ok(self.exchange(request)),
            Resource::Create => self.create(request),
            Resource::Show(id) => self.show(id, request),
            Resource::Release(id) => self.release(id, request),
            Resource::Renew(id) => self.renew(id, request),
            Resource::Revoke(id) => self.revoke(id, request),
        }
    }

    /// A one-time token for a platform's. Errors have a form of their own.
    fn exchange(&self, request: &Request) -> Reply {
        self.exchanged(request).unwrap_or_else(|refused| {
            super::est::report(&refused.refusal, request, refused.status(), &self.refusals);
            refused.reply()
        })
    }

    fn exchanged(&self, request: &Request) -> Result<Reply, exchange::Refused> {
        bounded(request)?;
        let asked = exchange::Parameters::read(&request.body)?;
        let (client, now) = (Some(request.peer.ip()), now());
        let accepted =
            self.authority.jwt_admit(asked.role.as_deref(), &asked.subject, client, now)?;
        let given = self.authority.token_exchange(&accepted, &asked.spki_sha256, client, now)?;
        tracing::info!(
            peer = %request.peer, request = %request.id, token = %given.token.id,
            role = %given.token.role, replayed = given.replayed, "token exchanged"
        );
        failpoint::hit("est.before_answer");
        Ok(exchange::given(&given, now))
    }

    fn create(&self, request: &Request) -> Result<Reply, Refusal> {
        let credential = Credential::bearer(request).ok_or_else(|| {
            Refusal::new(
                RefusalCode::CredentialsMissing,
                "the request has no credentials: send Authorization: Bearer with the CI \
                 platform's token, or one from runnel token create",
            )
        })?;
        let body: Create = body(request)?;
        version(body.client.as_deref())?;
        let wanted = Wanted::of(&body)?;
        let (client, now) = (Some(request.peer.ip()), now());
        let authority = &self.authority;
        let (enrolled, key) = if jws::looks_like_jwt(&credential) {
            // The token first: whose is not accepted costs no more than its signature.
            let accepted = authority.jwt_admit(body.role.as_deref(), &credential, client, now)?;
            match wanted {
                Wanted::Csr(csr) => {
                    let csr = est::parse_csr(csr.as_bytes())?;
                    (authority.enrol_accepted(&accepted, &csr, client, now)?, None)
                }
                Wanted::Key(kind) => {
                    let made = authority.enrol_accepted_keyed(&accepted, kind, client, now)?;
                    (made.0, Some(made.1))
                }
            }
        } else {
            let role = match &body.role {
                Some(role) => role.clone(),
                None => authority.role_of_token(&credential)?,
            };
            match wanted {
                Wanted::Csr(csr) => {
                    let csr = est::parse_csr(csr.as_bytes())?;
                    (authority.enrol_with_token(&role, &credential, &csr, client, now)?, None)
                }
                Wanted::Key(kind) => {
                    let made =
                        authority.enrol_with_token_keyed(&role, &credential, kind, client, now)?;
                    (made.0, Some(made.1))
                }
            }
        };
        failpoint::hit("est.before_answer");
        let status = if enrolled.replayed { 200 } else { 201 };
        let key = key.map(|key| key.pem());
        self.issued(status, &enrolled, key.as_deref(), body.client.as_deref(), request)
    }

    fn show(&self, id: &str, request: &Request) -> Result<Reply, Refusal> {
        let (lease, _) = self.holder(id, request)?;
        let config = self.config.get();
        Ok(answers::json(200, &answers::Shown::new(&config, &lease)))
    }

    fn renew(&self, id: &str, request: &Request) -> Result<Reply, Refusal> {
        let (_, holder) = self.holder(id, request)?;
        let body: Renew = body(request)?;
        version(body.client.as_deref())?;
        let csr = est::parse_csr(body.csr.as_bytes())?;
        let (client, now) = (Some(request.peer.ip()), now());
        let enrolled = match holder {
            Holder::Certificate(peer) => self.authority.renew(&peer, &csr, client, now)?,
            Holder::Bearer => self.authority.renew_same_key(id, &csr, client, now)?,
        };
        self.issued(200, &enrolled, None, body.client.as_deref(), request)
    }

    fn release(&self, id: &str, request: &Request) -> Result<Reply, Refusal> {
        let actor = Actor::Peer(request.peer.ip());
        let lease = match self.holder_or_cancel(id, request, &actor)? {
            ControlFlow::Continue(lease) => lease,
            ControlFlow::Break(cancelled) => return Ok(answers::json(200, &cancelled)),
        };
        let ended = self.ender.release(&[lease.id], "client", &actor);
        Ok(answers::json(200, &ended.map_err(not_ended)?))
    }

    fn revoke(&self, id: &str, request: &Request) -> Result<Reply, Refusal> {
        // Who may not is told that, whatever the body says.
        if let Err(refusal) = self.holder(id, request)
            && refusal.pending.is_none()
        {
            return Err(refusal);
        }
        let body: Revoke = match request.body.is_empty() {
            true => Revoke { reason: None },
            false => body(request)?,
        };
        let reason = body.reason.as_deref().unwrap_or("unspecified");
        if let Err(error) = reason.parse::<pki::RevocationReason>() {
            return Err(Refusal::new(RefusalCode::MalformedRequest, error.to_string()));
        }
        let actor = Actor::Peer(request.peer.ip());
        let lease = match self.holder_or_cancel(id, request, &actor)? {
            ControlFlow::Continue(lease) => lease,
            ControlFlow::Break(cancelled) => return Ok(answers::json(200, &cancelled)),
        };
        let ended = self.ender.revoke(&lease.id, reason, &actor);
        Ok(answers::json(200, &ended.map_err(not_ended)?))
    }

    /// The lease that is to end. One that waits for an operator is taken back at once, before there
    /// is anything else to end.
    fn holder_or_cancel(
        &self,
        id: &str,
        request: &Request,
        actor: &Actor,
    ) -> Result<ControlFlow<Ended, Lease>, Refusal> {
        let held = match self.holder(id, request) {
            Err(Refusal { pending: Some(pending), .. }) => {
                match self.authority.cancel_pending(&pending.id, actor, now()) {
                    Ok(()) => return Ok(ControlFlow::Break(cancelled(pending.id))),
                    // It was opened at this moment.
                    Err(pki::Error::NotFound { .. }) => self.holder(id, request),
                    Err(error) => Err(error.into()),
                }
            }
            held => held,
        };
        held.map(|(lease, _)| ControlFlow::Continue(lease))
    }

    /// The lease of a request that proves to be its holder's.
    fn holder(&self, id: &str, request: &Request) -> Result<(Lease, Holder), Refusal> {
        Credential::of(request)?.lease(&self.authority, id, now())
    }

    fn issued(
        &self,
        status: u16,
        enrolled: &Enrolled,
        key: Option<&String>,
        version: Option<&str>,
        request: &Request,
    ) -> Result<Reply, Refusal> {
        let lease = &enrolled.lease;
        tracing::info!(
            peer = %request.peer, request = %request.id, lease = %lease.id, role = %lease.role,
            replayed = enrolled.replayed, "certificate issued"
        );
        let config = self.config.get();
        let host = crate::service::client_host(&config, &self.gateway);
        let swanctl = swanctl::render(
            &config,
            &swanctl::Client {
                gateway: &self.gateway,
                host: &host,
                lease,
                role: config.role(&lease.role),
                version,
            },
        );
        let answer =
            answers::Issued::new(&self.authority, &config, &self.gateway, enrolled, key, swanctl);
        Ok(answers::json(status, &answer))
    }
}

/// What ended with a lease that waited: nothing but the waiting.
fn cancelled(id: String) -> Ended {
    Ended {
        revoked: 0,
        leases: Vec::new(),
        sas_closed: 0,
        crl_number: None,
        elapsed_ms: 0,
        already: false,
        cancelled: vec![id],
        barred: Vec::new(),
        keys_barred: 0,
    }
}

/// Whose key a lease is to be for.
enum Wanted<'b> {
    /// The one that this request is for.
    Csr(&'b str),
    /// One that is made here, of this kind or the role's.
    Key(Option<KeyKind>),
}

impl<'b> Wanted<'b> {
    fn of(body: &'b Create) -> Result<Self, Refusal> {
        let malformed = |detail: String| Refusal::new(RefusalCode::MalformedRequest, detail);
        match (&body.csr, body.key_type.as_deref()) {
            (Some(csr), None) => Ok(Self::Csr(csr)),
            (None, Some("any")) => Ok(Self::Key(None)),
            (None, Some(name)) => match name.parse() {
                Ok(kind) => Ok(Self::Key(Some(kind))),
                Err(_) => Err(malformed(format!(
                    "key_type is none of any, {}: choose one of them",
                    KeyKind::ALL.map(KeyKind::name).join(", ")
                ))),
            },
            (Some(_), Some(_)) => Err(malformed(
                "the body has a csr and a key_type: send the csr for a key of yours, or key_type \
                 to have one made"
                    .to_owned(),
            )),
            (None, None) => Err(malformed("the body has no csr: send one, PEM".to_owned())),
        }
    }
}

fn bounded(request: &Request) -> Result<(), Refusal> {
    if request.body.len() <= MAX_BODY {
        return Ok(());
    }
    Err(Refusal::new(
        RefusalCode::TooLarge,
        format!("the body has {} octets, more than {MAX_BODY}", request.body.len()),
    ))
}

fn body<T: DeserializeOwned>(request: &Request) -> Result<T, Refusal> {
    bounded(request)?;
    serde_json::from_slice(&request.body).map_err(|error| {
        Refusal::new(
            RefusalCode::MalformedRequest,
            // The parser's own words quote the body, which may hold a secret.
            format!(
                "the body is not what /v1/openapi.json describes (line {}, column {}): correct it",
                error.line(),
                error.column()
            ),
        )
    })
}

fn version(client: Option<&str>) -> Result<(), Refusal> {
    match client {
        Some(text) if swanctl::parse(text).is_none() => Err(Refusal::new(
            RefusalCode::MalformedRequest,
            "client is no version of strongSwan: write it like 5.9.8, or leave it out",
        )),
        _ => Ok(()),
    }
}

fn not_ended(error: EndError) -> Refusal {
    Refusal::new(RefusalCode::Unavailable, error.to_string())
}

fn problem(refusal: &Refusal) -> Reply {
    let body = refusal.problem().to_string().into_bytes();
    let mut reply = Reply::new(refusal.code.status(), "application/problem+json", body);
    if refusal.code.status() == 401 {
        reply.headers.push(("www-authenticate", "Bearer".to_owned()));
    }
    if let Some(seconds) = refusal.retry_after() {
        reply.headers.push(("retry-after", seconds.to_string()));
    }
    reply
}

fn now() -> UnixTime {
    UnixTime::from_micros(clock::wall().0)
}

/// What a request's `Authorization` header holds.
fn authorization(request: &Request) -> Option<&str> {
    request.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok())
}

#[cfg(test)]
mod listener;
#[cfg(test)]
mod tests;
