//! Deliveries against the service: what each is answered, what ends, what is written down, and that
//! the document says so.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;

use pki::Lease;
use pki::enrol::jwt::{ClaimPattern, ClaimRule, Issuer, IssuerKind, JwtAlgorithm, KeySource};
use pki::hook::{HookSecret, HookSource};
use pki::store::MemoryStore;
use ring::hmac;
use serde_json::Value;

use super::*;
use crate::admin::view;
use crate::http::{Limited, Rate};
use crate::test_issuer as oidc;

const SECRET: &[u8] = b"what the platform signs with";
const AUDIENCE: &str = "https://gw.example.com:8443";

/// Who ends leases says that it begins, and waits for a word.
type Held = Arc<Mutex<Option<(mpsc::Sender<()>, mpsc::Receiver<()>)>>>;

/// Ends leases without tunnels.
struct Ender {
    authority: Arc<Authority>,
    held: Held,
    broken: Arc<AtomicBool>,
}

impl EndLeases for Ender {
    fn release(
        &self,
        leases: &[String],
        cause: &str,
        actor: &Actor,
    ) -> Result<view::Ended, EndError> {
        if let Some((begun, go_on)) = &*self.held.lock().unwrap() {
            begun.send(()).unwrap();
            go_on.recv().expect("the delivery was given up");
        }
        if self.broken.load(Ordering::Relaxed) {
            return Err(EndError::NotConfirmed("the data plane does not answer".to_owned()));
        }
        for lease in leases {
            self.authority.release(lease, cause, actor, now())?;
        }
        Ok(view::Ended {
            revoked: leases.len(),
            leases: leases.to_vec(),
            sas_closed: leases.len(),
            crl_number: Some(1),
            elapsed_ms: 1,
            already: false,
            cancelled: Vec::new(),
            barred: Vec::new(),
            keys_barred: 0,
        })
    }

    fn revoke(&self, _: &str, _: &str, _: &Actor) -> Result<view::Ended, EndError> {
        panic!("a job that is over is no reason to revoke")
    }
}

struct Fixture {
    service: HookService,
    authority: Arc<Authority>,
    refusals: Arc<Refusals>,
    held: Held,
    broken: Arc<AtomicBool>,
    runtime: tokio::runtime::Runtime,
    document: Value,
    seen: BTreeSet<(String, u16)>,
    key: oidc::IssuerKey,
    jobs: u64,
}

impl Fixture {
    fn new() -> Self {
        let mut settings = pki::Settings::new("ci.example.com");
        let network = "10.77.0.0/24".parse().unwrap();
        settings.pools.insert("runners".to_owned(), pki::PoolConfig::new(vec![network]));
        settings.roles.insert("builder".to_owned(), pki::RoleProfile::new("runners"));
        let (files, key) = (KeySource::File("/nowhere".into()), oidc::IssuerKey::eddsa("k"));
        let iss = "https://token.actions.githubusercontent.com";
        let mut github = Issuer::new("github", IssuerKind::Github, iss, AUDIENCE, files);
        github.algorithms = vec![JwtAlgorithm::EdDsa];
        settings.issuers = vec![github.clone()];
        settings.rules = vec![ClaimRule {
            role: "builder".to_owned(),
            number: 1,
            issuer: "github".to_owned(),
            claims: [("repository_id".to_owned(), vec![ClaimPattern::new("123456")])].into(),
            manual: None,
        }];
        let store = Arc::new(MemoryStore::new());
        let options = pki::Options::new(settings);
        let authority = Authority::with_store(store, &[7; 32], options, now()).unwrap();
        let authority = Arc::new(authority);
        authority.jwt_keys_fetched(&github, Ok(oidc::jwks(&[&key])), now()).unwrap();
        let (refusals, broken) = (Arc::<Refusals>::default(), Arc::new(AtomicBool::new(false)));
        let held = Held::default();
        let ender = Ender {
            authority: Arc::clone(&authority),
            held: Arc::clone(&held),
            broken: Arc::clone(&broken),
        };
        let source = |kind: HookKind, iss: &str| HookSource {
            kind,
            issuer: kind.name().to_owned(),
            iss: iss.to_owned(),
            secrets: vec![HookSecret::new(SECRET)],
        };
        let sources =
            vec![source(HookKind::Github, iss), source(HookKind::Gitlab, "https://gitlab.com")];
        let service = HookService::new(
            Arc::clone(&authority),
            Arc::clone(&refusals),
            Box::new(ender),
            Arc::new(HookSources::new(sources)),
        );
        Self {
            service,
            authority,
            refusals,
            held,
            broken,
            runtime: tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap(),
            document: serde_json::from_str(OPENAPI).unwrap(),
            seen: BTreeSet::new(),
            key,
            jobs: 88_000,
        }
    }

    /// A lease of a new job, and the job's number.
    fn job(&mut self) -> (Lease, u64) {
        self.jobs += 1;
        let mut claims = oidc::github(now().secs(), AUDIENCE, &format!("j{}", self.jobs));
        claims["check_run_id"] = json!(self.jobs.to_string());
        let token = self.key.sign(&claims);
        let csr = rcgen::CertificateParams::default()
            .serialize_request(&rcgen::KeyPair::generate().unwrap())
            .unwrap();
        let csr = pki::enrol::est::parse_csr(csr.pem().unwrap().as_bytes()).unwrap();
        let enrolled = self.authority.enrol_with_jwt(None, &token, &csr, None, now()).unwrap();
        (enrolled.lease, self.jobs)
    }

    fn state(&self, lease: &Lease) -> Lease {
        self.authority.lease(&lease.id).unwrap().unwrap()
    }

    fn ask(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> (u16, Value) {
        let reply =
            self.runtime.block_on(self.service.answer(request(method, path, headers, body)));
        let answer: Value = serde_json::from_slice(&reply.body).unwrap();
        if reply.status != 404 {
            self.documented(path, &reply, &answer);
        }
        (reply.status, answer)
    }

    fn documented(&mut self, path: &str, reply: &Reply, answer: &Value) {
        let operations = self.document["paths"][path].as_object().unwrap();
        let responses = &operations.values().next().unwrap()["responses"];
        let content = &responses[reply.status.to_string()]["content"];
        let schema = &content[&reply.headers[0].1]["schema"];
        assert!(schema.is_object(), "{path}: {} is not documented", reply.status);
        if let Some(name) = schema["$ref"].as_str().and_then(|name| name.rsplit('/').next()) {
            let schema = &self.document["components"]["schemas"][name];
            let (answer, known) = (answer.as_object().unwrap(), &schema["properties"]);
            assert!(answer.keys().all(|field| known[field].is_object()), "{answer:?}");
            for field in schema["required"].as_array().unwrap() {
                assert!(answer.contains_key(field.as_str().unwrap()), "{field} is missing");
            }
        }
        self.seen.insert((path.to_owned(), reply.status));
    }

    fn github(&mut self, event: &str, id: &str, body: &[u8]) -> (u16, Value) {
        let signature = sign(SECRET, body);
        let headers = [
            ("x-github-event", event),
            ("x-github-delivery", id),
            ("x-hub-signature-256", &signature),
        ];
        self.ask("POST", "/v1/hooks/github", &headers, body)
    }

    fn actions(&self) -> Vec<(String, Option<String>)> {
        let records = self.authority.audit(0, 1_000).unwrap();
        records.into_iter().map(|record| (record.event.action, record.event.reason)).collect()
    }
}

fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Request {
    let mut map = hyper::HeaderMap::new();
    for (name, value) in headers {
        let name = hyper::header::HeaderName::from_bytes(name.as_bytes()).unwrap();
        map.insert(name, value.parse().unwrap());
    }
    Request {
        method: method.to_owned(),
        path: path.to_owned(),
        headers: map,
        body: body.to_vec().into(),
        peer: "192.0.2.7:4711".parse().unwrap(),
        client_chain: Vec::new(),
        id: "1-1".to_owned(),
    }
}

fn sign(secret: &[u8], body: &[u8]) -> String {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), body);
    let hex: String = tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256={hex}")
}

fn completed(job: u64) -> Vec<u8> {
    let about = json!({"id": job, "run_id": 7001, "run_attempt": 1});
    let all = json!({"action": "completed", "workflow_job": about, "repository": {"id": 123456}});
    all.to_string().into_bytes()
}

fn delivered(body: &[u8]) -> Request {
    let signature = sign(SECRET, body);
    let headers = [("x-github-event", "workflow_job"), ("x-hub-signature-256", &signature)];
    request("POST", "/v1/hooks/github", &headers, body)
}

#[test]
fn a_delivery_that_is_being_handled_is_not_said_to_be_handled() {
    let mut fixture = Fixture::new();
    let (lease, job) = fixture.job();
    let body = completed(job);
    let (begun, has_begun) = mpsc::channel();
    let (go_on, told) = mpsc::channel();
    *fixture.held.lock().unwrap() = Some((begun, told));
    let service = fixture.service.clone();
    let deliver = |service: HookService| {
        let request = delivered(&body);
        fixture.runtime.spawn(async move { service.answer(request).await })
    };
    // The first never comes to an end: whoever handled it is gone.
    let first = deliver(service.clone());
    has_begun.recv().unwrap();
    let meanwhile = fixture.runtime.block_on(service.answer(delivered(&body)));
    assert_eq!(meanwhile.status, 503);
    assert!(meanwhile.headers.iter().any(|(name, _)| *name == "retry-after"), "{meanwhile:?}");
    drop(go_on);
    assert_eq!(fixture.runtime.block_on(first).unwrap().status, 500);
    assert!(fixture.state(&lease).state.is_live());
    // So it may come again.
    *fixture.held.lock().unwrap_or_else(PoisonError::into_inner) = None;
    fixture.held.clear_poison();
    let (status, answer) = fixture.github("workflow_job", "d9", &body);
    assert_eq!((status, &answer["outcome"]), (200, &json!("ended")), "{answer}");
    assert!(!fixture.state(&lease).state.is_live());
}

#[test]
fn a_job_that_is_over_waits_for_no_operator() {
    let mut fixture = Fixture::new();
    let mut settings = (*fixture.authority.settings()).clone();
    settings.roles.get_mut("builder").unwrap().manual = true;
    fixture.authority.reconfigure(settings).unwrap();
    let token = fixture.key.sign(&oidc::github(now().secs(), AUDIENCE, "waits"));
    let csr = rcgen::CertificateParams::default()
        .serialize_request(&rcgen::KeyPair::generate().unwrap())
        .unwrap();
    let csr = pki::enrol::est::parse_csr(csr.pem().unwrap().as_bytes()).unwrap();
    let refused = fixture.authority.enrol_with_jwt(None, &token, &csr, None, now()).unwrap_err();
    let id = refused.pending.unwrap().id;
    // The job that the issuer for tests signs for.
    let (status, answer) = fixture.github("workflow_job", "d1", &completed(88_001));
    assert_eq!((status, &answer["outcome"]), (200, &json!("ended")), "{answer}");
    assert_eq!(answer["leases"], json!([id]));
    let pending = fixture.authority.pending_leases(now()).unwrap();
    assert_eq!(pending[0].state(), "denied");
    assert!(fixture.actions().iter().any(|(action, _)| action == "hook.job_over"));
}

#[test]
fn deliveries_are_answered_as_the_document_says() {
    let mut fixture = Fixture::new();
    let (lease, job) = fixture.job();
    let (other, _) = fixture.job();
    let body = completed(job);

    // Nobody without the secret learns anything, or ends anything.
    let wrong = sign(b"another secret, as long as it", &body);
    let event = ("x-github-event", "workflow_job");
    let mut strangers = BTreeSet::new();
    for headers in [
        vec![event],
        vec![event, ("x-hub-signature-256", &wrong)],
        vec![event, ("x-hub-signature-256", "sha1=00")],
        vec![event, ("x-gitlab-token", "what the platform signs with")],
    ] {
        let (status, answer) = fixture.ask("POST", "/v1/hooks/github", &headers, &body);
        assert_eq!(status, 401, "{headers:?}");
        strangers.insert(answer.to_string());
    }
    assert_eq!(strangers.len(), 1, "strangers are told the same: {strangers:?}");
    assert!(fixture.state(&lease).state.is_live());
    let codes: Vec<String> = fixture.refusals.recent().into_iter().map(|r| r.code).collect();
    assert!(codes.contains(&"hook_bad_signature".to_owned()), "{codes:?}");
    assert!(codes.contains(&"hook_unsigned".to_owned()), "{codes:?}");

    // A failure is told, and the same delivery may come again.
    fixture.broken.store(true, Ordering::Relaxed);
    assert_eq!(fixture.github("workflow_job", "d1", &body).0, 503);
    fixture.broken.store(false, Ordering::Relaxed);

    let (status, answer) = fixture.github("workflow_job", "d1", &body);
    assert_eq!((status, &answer["outcome"]), (200, &json!("ended")), "{answer}");
    assert_eq!((&answer["leases"], &answer["sas_closed"]), (&json!([lease.id]), &json!(1)));
    let ended = fixture.state(&lease);
    let end = ended.end.unwrap();
    assert_eq!((end.cause.as_str(), end.actor), ("job", Actor::Peer([192, 0, 2, 7].into())));
    assert!(fixture.state(&other).state.is_live(), "another job's lease ended");

    for id in ["d1", "d2"] {
        let (status, answer) = fixture.github("workflow_job", id, &body);
        assert_eq!((status, &answer["outcome"]), (200, &json!("duplicate")), "{answer}");
    }
    let (status, answer) = fixture.github("workflow_job", "d1", &completed(1));
    assert_eq!((status, &answer["title"]), (409, &json!("replayed")));
    let (status, answer) = fixture.github("workflow_job", "d3", &completed(1));
    assert_eq!((status, &answer["outcome"]), (202, &json!("unknown_job")));
    assert_eq!(answer["reason"], "the job has no live lease here");
    let (status, answer) = fixture.github("ping", "d4", b"{\"zen\":\"x\"}");
    assert_eq!((status, &answer["outcome"]), (202, &json!("ignored")));
    assert_eq!(fixture.github("workflow_job", "d5", b"payload=x").0, 400);
    let large = vec![b' '; MAX_BODY + 1];
    assert_eq!(fixture.github("workflow_job", "d6", &large).0, 413);

    let actions = fixture.actions();
    let ended = ("hook.job_over".to_owned(), Some("1 lease(s) ended".to_owned()));
    assert_eq!(actions.iter().filter(|action| **action == ended).count(), 1, "{actions:?}");
    assert!(actions.contains(&("lease.release".to_owned(), Some("job".to_owned()))));
    let refused = actions.iter().filter(|(action, _)| action == "hook.refuse").count();
    assert_eq!(refused, 1, "of one peer one a minute is written down: {actions:?}");
}

#[test]
fn gitlab_has_a_door_of_its_own() {
    let mut fixture = Fixture::new();
    let body = json!({
        "object_kind": "build", "build_id": 302, "build_status": "success",
        "pipeline_id": 574, "project_id": 20,
    });
    let body = body.to_string().into_bytes();
    let token = ("x-gitlab-token", std::str::from_utf8(SECRET).unwrap());
    let path = "/v1/hooks/gitlab";
    let named = [token, ("idempotency-key", "k1")];
    let (status, answer) = fixture.ask("POST", path, &named, &body);
    assert_eq!((status, &answer["outcome"]), (202, &json!("unknown_job")));
    let (status, answer) = fixture.ask("POST", path, &[token], &body);
    assert_eq!((status, &answer["outcome"]), (200, &json!("duplicate")));
    assert_eq!(fixture.ask("POST", path, &named, &[&body[..], b" "].concat()).0, 409);
    assert_eq!(fixture.ask("POST", path, &[], &body).0, 401);
    assert_eq!(fixture.ask("POST", path, &[token], b"no JSON").0, 400);
    assert_eq!(fixture.ask("GET", path, &[token], b"").0, 405);
    assert_eq!(fixture.ask("GET", "/v1/hooks/github", &[], b"").0, 405);
    assert_eq!(fixture.ask("DELETE", "/v1/openapi.json", &[], b"").0, 405);
    assert_eq!(fixture.ask("GET", "/v1/openapi.json", &[], b"").0, 200);
    assert_eq!(fixture.ask("POST", "/v1/leases", &[], b"").0, 404);
    let signature = sign(SECRET, &body);
    let signed = [("x-hub-signature-256", signature.as_str())];
    assert_eq!(fixture.ask("POST", path, &signed, &body).0, 401, "GitHub's way is not GitLab's");
    let documented = |path: &str| {
        let operations = fixture.document["paths"][path].as_object().unwrap();
        let responses = operations.values().next().unwrap()["responses"].as_object().unwrap();
        responses.keys().map(|status| status.parse().unwrap()).collect::<BTreeSet<u16>>()
    };
    assert!(documented(path).contains(&429));
    assert_eq!(documented(path), documented("/v1/hooks/github"));
}

#[test]
fn whoever_delivers_too_often_waits() {
    let fixture = Fixture::new();
    let rate = Rate { per_second: 1, burst: 3 };
    let refusals = Arc::clone(&fixture.refusals);
    let limited = Limited::new(Arc::new(fixture.service.clone()), rate, refusals, "[hooks]");
    let statuses: Vec<u16> = (0..6)
        .map(|_| {
            let unsigned = request("POST", "/v1/hooks/github", &[], b"{}");
            fixture.runtime.block_on(limited.answer(unsigned)).status
        })
        .collect();
    assert_eq!(statuses[..3], [401; 3]);
    assert!(statuses[3..].contains(&429), "{statuses:?}");
    let codes: Vec<String> = fixture.refusals.recent().into_iter().map(|r| r.code).collect();
    assert!(codes.contains(&"hooks_too_many_requests".to_owned()), "{codes:?}");
}
