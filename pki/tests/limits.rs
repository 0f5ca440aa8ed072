//! Limits of enrolment: who met which, when to come back, and what a restart forgets.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;
#[path = "../../tests/src/oidc.rs"]
#[allow(dead_code, unreachable_pub)]
mod oidc;

use std::sync::Arc;

use common::*;
use oidc::IssuerKey;
use pki::enrol::jwt::JwtAlgorithm;
use pki::store::{MemoryStore, Store};
use pki::*;
use serde_json::json;

/// GitHub with limits of the test's making.
struct Gate {
    authority: Authority,
    store: Arc<dyn Store>,
    settings: Settings,
    key: IssuerKey,
}

fn rate(per_second: u32, burst: u32) -> OpenRate {
    OpenRate { per_second, burst }
}

impl Gate {
    fn new(change: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = github_settings();
        settings.issuers[0].algorithms = vec![JwtAlgorithm::EdDsa];
        settings.limits = Limits {
            identity: rate(1_000, 1_000),
            issuer: rate(1_000, 1_000),
            leases_per_job: 1_000,
        };
        change(&mut settings);
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let key = IssuerKey::eddsa("k");
        let authority = Self::open(&store, &settings, &key);
        Self { authority, store, settings, key }
    }

    fn open(store: &Arc<dyn Store>, settings: &Settings, key: &IssuerKey) -> Authority {
        let options = Options::new(settings.clone());
        let authority = Authority::with_store(Arc::clone(store), &[7; 32], options, NOW).unwrap();
        authority.jwt_keys_fetched(&settings.issuers[0], Ok(oidc::jwks(&[key])), NOW).unwrap();
        authority
    }

    fn restart(&mut self) {
        self.authority = Self::open(&self.store, &self.settings, &self.key);
    }

    fn token(&self, jti: &str, job: &str) -> String {
        let mut claims = oidc::github(NOW.secs(), AUDIENCE, jti);
        claims["check_run_id"] = json!(job);
        self.key.sign(&claims)
    }

    fn enrol(&self, jti: &str, job: &str, at: UnixTime) -> Result<Enrolled, Refusal> {
        let token = self.token(jti, job);
        self.authority.enrol_with_jwt(None, &token, &Client::new().csr(), None, at)
    }
}

#[test]
fn the_defaults_let_a_burst_of_runners_in_and_no_loop() {
    let limits = Settings::new("ci.example.com").limits;
    assert_eq!(limits.leases_per_job, 5);
    assert_eq!((limits.identity, limits.issuer), (rate(20, 100), rate(100, 1_000)));
}

#[test]
fn a_job_has_so_many_live_leases_and_a_restart_forgets_none() {
    // RFC 6585 4.
    let mut gate = Gate::new(|settings| settings.limits.leases_per_job = 2);
    let first = gate.enrol("a", "1", NOW).unwrap();
    let client = Client::new();
    let second = gate.token("b", "1");
    let enrolled = gate.authority.enrol_with_jwt(None, &second, &client.csr(), None, NOW).unwrap();
    let met = gate.enrol("c", "1", NOW).unwrap_err();
    assert_eq!((met.code, met.code.status()), (RefusalCode::TooManyLeases, 429));
    assert!(met.retry_after().unwrap() > 0 && met.public_detail().contains("leases_per_job"));
    gate.enrol("d", "2", NOW).unwrap();
    // A lost answer is repeated, whatever the limits say.
    let again = gate.authority.enrol_with_jwt(None, &second, &client.csr(), None, after(60));
    assert_eq!(again.unwrap().lease.id, enrolled.lease.id);

    gate.restart();
    let met = gate.enrol("c", "1", after(1)).unwrap_err();
    assert_eq!(met.code, RefusalCode::TooManyLeases, "a restart made room");
    assert_eq!(gate.authority.limits_met()[&LimitKind::Job], 1);
    // What is refused spends nothing, and an end makes room.
    gate.authority.release(&first.lease.id, "client", &OPERATOR, after(2)).unwrap();
    gate.enrol("c", "1", after(3)).unwrap();
    assert_eq!(gate.enrol("e", "1", after(3)).unwrap_err().code, RefusalCode::TooManyLeases);
    // Those that never connected expire, all of them.
    gate.authority.expire_due(after(400)).unwrap();
    assert_eq!(gate.authority.leases(false).unwrap().len(), 0);
    let events = gate.authority.audit(0, 1_000).unwrap();
    let told =
        events.iter().any(|record| record.event.reason.as_deref() == Some("too_many_leases"));
    assert!(told, "the trail does not tell");
}

#[test]
fn a_role_has_so_many_live_leases_whatever_opened_them() {
    // RFC 6585 4.
    let gate = Gate::new(|settings| {
        settings.roles.get_mut("builder").unwrap().max_leases = Some(2);
    });
    let enrolled = gate.enrol("a", "1", NOW).unwrap();
    let with_token = |role: &str| {
        let create = TokenCreate::new(role);
        let (_, secret) = gate.authority.token_create(&create, &OPERATOR, NOW).unwrap();
        let csr = Client::new().csr();
        gate.authority.enrol_with_token(role, secret.expose(), &csr, None, NOW)
    };
    with_token("builder").unwrap();
    for met in [gate.enrol("b", "2", NOW).unwrap_err(), with_token("builder").unwrap_err()] {
        assert_eq!(met.code, RefusalCode::TooManyLeases);
        assert!(met.detail.contains("role builder has 2"), "{}", met.detail);
    }
    with_token("deployer").unwrap();
    assert_eq!(gate.authority.limits_met()[&LimitKind::RoleLeases], 2);
    let revoke = RevokeSelector::Lease(enrolled.lease.id);
    gate.authority.revoke(&revoke, RevocationReason::Unspecified, &OPERATOR, after(1)).unwrap();
    gate.enrol("b", "2", after(2)).unwrap();
}

#[test]
fn identities_issuers_and_roles_have_rates_of_their_own() {
    // RFC 6585 4.
    let opened = |gate: &Gate, at| {
        (0..20).filter(|n| gate.enrol(&format!("{at}-{n}"), &n.to_string(), at).is_ok()).count()
    };
    type Change = fn(&mut Settings);
    let cases: [(LimitKind, Change); 3] = [
        (LimitKind::Identity, |settings| settings.limits.identity = rate(2, 5)),
        (LimitKind::Issuer, |settings| settings.limits.issuer = rate(2, 5)),
        (LimitKind::Role, |settings| {
            settings.roles.get_mut("builder").unwrap().rate = Some(rate(2, 5));
        }),
    ];
    for (kind, change) in cases {
        let gate = Gate::new(change);
        assert_eq!(opened(&gate, NOW), 5, "{kind:?}");
        let met = gate.enrol("late", "99", NOW).unwrap_err();
        assert_eq!((met.code, met.retry_after()), (RefusalCode::TooManyRequests, Some(1)));
        assert_eq!(gate.authority.limits_met()[&kind], 16);
        // The same token is good when it is time.
        gate.enrol("late", "99", after(1)).unwrap();
        assert_eq!(opened(&gate, after(1)), 1, "{kind:?}");
    }
}

#[test]
fn a_hundred_jobs_tokens_at_once_open_no_more_than_the_limits() {
    let gate = Gate::new(|settings| {
        settings.limits.leases_per_job = 3;
        settings.roles.get_mut("builder").unwrap().max_leases = Some(7);
    });
    let opened = std::thread::scope(|scope| {
        let gate = &gate;
        let threads: Vec<_> = (0..100)
            .map(|n| {
                let job = (n % 4).to_string();
                scope.spawn(move || gate.enrol(&n.to_string(), &job, NOW).is_ok())
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).filter(|ok| *ok).count()
    });
    assert_eq!(opened, 7);
    let leases = gate.authority.leases(false).unwrap();
    for job in 0..4 {
        let job = job.to_string();
        let of_job = leases.iter().filter(|lease| lease.ci_ref.job_id.as_ref() == Some(&job));
        assert!(of_job.count() <= 3, "job {job} has too many");
    }
}
