//! Tokens of CI platforms: real signatures of every accepted algorithm, and everything that must
//! not open a lease.
#![allow(clippy::unwrap_used, clippy::panic)]

mod certificate;
#[path = "../common/mod.rs"]
mod common;
mod keys;
#[path = "../../../tests/src/oidc.rs"]
#[allow(dead_code, unreachable_pub)]
mod oidc;
mod spent;

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use common::*;
use oidc::IssuerKey;
use pki::enrol::jwt::{ClaimPattern, ClaimRule, Issuer, IssuerKind, JobDeadline, KeySource, jwks};
use pki::*;
use serde_json::{Value, json};

const EST: &str = "/.well-known/est/simpleenroll";

/// One RSA key for all tests: making one takes a while.
fn rsa() -> &'static IssuerKey {
    static KEY: OnceLock<IssuerKey> = OnceLock::new();
    KEY.get_or_init(|| IssuerKey::rs256("rsa-1"))
}

fn issuer(name: &str, kind: IssuerKind, iss: &str) -> Issuer {
    Issuer::new(name, kind, iss, AUDIENCE, KeySource::File("/nowhere".into()))
}

fn rule(role: &str, issuer: &str, claims: &[(&str, &[&str])]) -> ClaimRule {
    let claims = claims.iter().map(|(name, wanted)| {
        ((*name).to_owned(), wanted.iter().map(|text| ClaimPattern::new(*text)).collect())
    });
    let (role, issuer, claims) = (role.into(), issuer.into(), claims.collect());
    ClaimRule { role, number: 1, issuer, claims, manual: None }
}

fn configured(issuers: Vec<Issuer>, rules: Vec<ClaimRule>, keys: &[&IssuerKey]) -> Authority {
    let authority = authority();
    let settings = Settings { issuers: issuers.clone(), rules, ..settings() };
    authority.reconfigure(settings).unwrap();
    for issuer in &issuers {
        // Long enough ago for an unknown key to be none of the issuer's.
        let earlier = NOW.minus(Duration::from_secs(60));
        authority.jwt_keys_fetched(issuer, Ok(oidc::jwks(keys)), earlier).unwrap();
    }
    authority
}

/// GitHub with one rule for one repository.
fn github() -> Authority {
    let settings = github_settings();
    configured(settings.issuers, settings.rules, &[rsa()])
}

fn claims(jti: &str) -> Value {
    oidc::github(NOW.secs(), AUDIENCE, jti)
}

/// The same claims with some others; `null` removes one.
fn with(mut claims: Value, changes: Value) -> Value {
    for (name, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => claims.as_object_mut().unwrap().remove(name),
            value => claims.as_object_mut().unwrap().insert(name.clone(), value.clone()),
        };
    }
    claims
}

fn enrol(authority: &Authority, token: &str, client: &Client) -> Result<Enrolled, Refusal> {
    authority.enrol_with_jwt(None, token, &client.csr(), "192.0.2.7".parse().ok(), NOW)
}

fn refused(authority: &Authority, token: &str) -> Refusal {
    enrol(authority, token, &Client::new()).unwrap_err()
}

/// The field that failed, of the token or of the rules.
fn failed(refusal: &Refusal) -> &str {
    let trace = refusal.trace.as_ref().unwrap_or_else(|| panic!("no trace: {refusal:?}"));
    trace.failed().map_or("", |step| step.field.as_str())
}

#[test]
fn a_job_of_each_algorithm_opens_a_lease() {
    // RFC 7515 5.2, RFC 7518 3.1, RFC 8037 3.1.
    let iss = "https://ci.example.com";
    let (es, ed) = (IssuerKey::es256("es-1"), IssuerKey::eddsa("ed-1"));
    let keys = [rsa(), &es, &ed];
    let rules = vec![rule("builder", "ci", &[("sub", &["build"])])];
    let authority = configured(vec![issuer("ci", IssuerKind::Generic, iss)], rules, &keys);
    for key in keys {
        let token = key.sign(&json!({
            "iss": iss, "aud": AUDIENCE, "sub": "build", "jti": key.kid,
            "iat": NOW.secs(), "exp": NOW.secs() + 60,
        }));
        let enrolled = enrol(&authority, &token, &Client::new()).unwrap();
        assert_eq!(enrolled.lease.door, "jwt", "{}", key.algorithm());
        assert_eq!(enrolled.lease.identity, "spiffe://ci.example.com/ci/ci/build");
        // One octet of the signed part or of the signature decides.
        let mut altered = token.into_bytes();
        for at in [40, altered.len() - 20] {
            altered[at] = if altered[at] == b'A' { b'B' } else { b'A' };
            let refusal = refused(&authority, std::str::from_utf8(&altered).unwrap());
            assert_eq!(refusal.code.status(), 401, "{refusal:?}");
        }
    }
}

#[test]
fn a_github_job_enrols_over_est_with_the_token_in_its_request() {
    // RFC 7030 4.2.1, RFC 2985 5.4.1.
    let authority = github();
    let token = rsa().sign(&claims("est"));
    let body = base64(&Client::new().csr_with_password(&token)).into_bytes();
    let reply = authority.est(&est_request(EST, None, &body), NOW);
    assert_eq!(reply.status, 200, "{reply:?}");
    let EstOutcome::Issued { lease_id, role, .. } = &reply.outcome else { panic!("{reply:?}") };
    assert_eq!(role, "builder");
    let lease = authority.lease(lease_id).unwrap().unwrap();
    assert_eq!(lease.identity, "spiffe://ci.example.com/ci/github/9919/123456");
    assert_eq!(
        lease.ci_ref.run_url.as_deref(),
        Some("https://github.com/octo/app/actions/runs/7001")
    );
    assert_eq!(lease.ci_ref.run_id.as_deref(), Some("7001"));
    assert_eq!(lease.ci_ref.job_id.as_deref(), Some("88001"));
    assert_eq!(lease.claims["ref"], "refs/heads/main");
    assert_eq!(lease.claims["actor"], "mona");
    let stored = format!("{lease:?}{:?}", authority.audit(0, 100).unwrap());
    assert!(!stored.contains(&token[..60]), "a token is stored");

    // The URL may name the role; another role has no rule.
    let labelled = format!("/builder{EST}");
    let again = authority.est(&est_request(&labelled, None, &body), after(60));
    assert!(matches!(again.outcome, EstOutcome::Issued { replayed: true, .. }), "{again:?}");
    let other = authority.est(&est_request(&format!("/deployer{EST}"), None, &body), NOW);
    let EstOutcome::Refused(refusal) = &other.outcome else { panic!("{other:?}") };
    assert_eq!((other.status, refusal.code), (403, RefusalCode::JwtNoRule));
}

/// The table of what must not open a lease, with the reason and the field the trace blames.
#[test]
fn what_is_wrong_with_a_token_is_named() {
    // RFC 7519 4.1, 7.2.
    use RefusalCode as Code;
    let authority = github();
    let now = NOW.secs();
    let cases = [
        ("audience", json!({"aud": "https://other.example.com"}), Code::JwtWrongAudience, "aud"),
        ("no audience", json!({"aud": null}), Code::JwtWrongAudience, "aud"),
        ("audience prefix", json!({"aud": format!("{AUDIENCE}/")}), Code::JwtWrongAudience, "aud"),
        ("audience number", json!({"aud": 7}), Code::JwtWrongAudience, "aud"),
        ("issuer", json!({"iss": "https://evil.example.com"}), Code::JwtUnknownIssuer, "iss"),
        ("issuer slash", json!({"iss": format!("{GITHUB}/")}), Code::JwtUnknownIssuer, "iss"),
        ("no issuer", json!({"iss": null}), Code::JwtUnknownIssuer, "iss"),
        ("expired", json!({"exp": now - 60}), Code::JwtExpired, "exp"),
        ("no end", json!({"exp": null}), Code::JwtExpired, "exp"),
        ("end as text", json!({"exp": "tomorrow"}), Code::JwtExpired, "exp"),
        ("not yet", json!({"nbf": now + 61}), Code::JwtNotYetValid, "nbf"),
        ("begin as text", json!({"nbf": "0"}), Code::JwtNotYetValid, "nbf"),
        ("issued later", json!({"iat": now + 61}), Code::JwtNotYetValid, "iat"),
        ("long", json!({"exp": now + 86_401, "iat": now}), Code::JwtTooLongLived, "lifetime"),
        ("for ever", json!({"exp": 1e300, "iat": null}), Code::JwtTooLongLived, "lifetime"),
        ("repository", json!({"repository_id": "123457"}), Code::JwtNoRule, "repository_id"),
        ("no repository", json!({"repository_id": null}), Code::JwtNoRule, "repository_id"),
        // Pull requests run code that nobody has reviewed, those from forks strangers' code.
        ("pull request", json!({"event_name": "pull_request"}), Code::JwtNoRule, "event_name"),
        ("fork", json!({"event_name": "pull_request_target"}), Code::JwtNoRule, "event_name"),
        ("no event", json!({"event_name": null}), Code::JwtNoRule, "event_name"),
    ];
    for (name, changes, code, field) in cases {
        let token = rsa().sign(&with(claims(name), changes));
        let refusal = refused(&authority, &token);
        assert_eq!((refusal.code, failed(&refusal)), (code, field), "{name}: {refusal:?}");
        assert!(refusal.detail.contains(": "), "{name} says no remedy: {}", refusal.detail);
    }
    assert!(authority.leases(true).unwrap().is_empty());
    // Clocks that differ by less than a minute do no harm, and lists of audiences are usual.
    let near = json!({
        "exp": now - 59, "nbf": now + 60, "iat": now + 60, "aud": ["https://x", AUDIENCE],
    });
    enrol(&authority, &rsa().sign(&with(claims("near"), near)), &Client::new()).unwrap();
}

#[test]
fn forged_signatures_open_nothing() {
    // RFC 7515 5.2, RFC 8725 3.1, 3.2.
    use RefusalCode as Code;
    let authority = github();
    let good = claims("forged");
    let payload = oidc::encode(good.to_string().as_bytes());
    let unsigned = |header: Value, signature: &[u8]| {
        let header = oidc::encode(header.to_string().as_bytes());
        format!("{header}.{payload}.{}", oidc::encode(signature))
    };
    let other = IssuerKey::rs256("rsa-1");
    let curve = IssuerKey::es256("rsa-1");
    let hmac = {
        // The classic: the public key taken for a shared secret.
        let header = oidc::encode(json!({"alg": "HS256", "kid": "rsa-1"}).to_string().as_bytes());
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &rsa().public_octets());
        let tag = ring::hmac::sign(&key, format!("{header}.{payload}").as_bytes());
        format!("{header}.{payload}.{}", oidc::encode(tag.as_ref()))
    };
    let header = |header: Value| rsa().sign_as(&header, &good);
    let long = rsa().sign(&with(good.clone(), json!({"pad": "x".repeat(16 * 1024)})));
    let cases = [
        ("alg none", unsigned(json!({"alg": "none"}), b""), Code::JwtAlgorithm),
        ("alg None", unsigned(json!({"alg": "None", "kid": "rsa-1"}), b""), Code::JwtAlgorithm),
        ("HS256 with the public key", hmac, Code::JwtAlgorithm),
        ("RS384", header(json!({"alg": "RS384", "kid": "rsa-1"})), Code::JwtAlgorithm),
        ("no algorithm", header(json!({"kid": "rsa-1"})), Code::JwtAlgorithm),
        ("not this issuer's", curve.sign(&good), Code::JwtAlgorithm),
        ("unknown key", header(json!({"alg": "RS256", "kid": "rsa-2"})), Code::JwtUnknownKey),
        ("another's key", other.sign(&good), Code::JwtBadSignature),
        (
            "empty signature",
            unsigned(json!({"alg": "RS256", "kid": "rsa-1"}), b""),
            Code::JwtBadSignature,
        ),
        (
            "crit",
            header(json!({"alg": "RS256", "kid": "rsa-1", "crit": ["x"], "x": 1})),
            Code::JwtMalformed,
        ),
        (
            "type",
            header(json!({"alg": "RS256", "kid": "rsa-1", "typ": "logout+jwt"})),
            Code::JwtMalformed,
        ),
        ("kid number", header(json!({"alg": "RS256", "kid": 1})), Code::JwtMalformed),
        ("too long", long, Code::JwtMalformed),
        ("two parts", "eyJhIjoxfQ.e30".to_owned(), Code::JwtMalformed),
        ("four parts", format!("{}.AAAA", rsa().sign(&good)), Code::JwtMalformed),
        ("padding", format!("{}=", rsa().sign(&good)), Code::JwtMalformed),
        (
            "no object",
            format!("{}.W10.AAAA", oidc::encode(b"{\"alg\":\"RS256\"}")),
            Code::JwtMalformed,
        ),
    ];
    for (name, token, code) in cases {
        let refusal = refused(&authority, &token);
        assert_eq!(refusal.code, code, "{name}: {refusal:?}");
        assert_eq!(refusal.code.status(), 401, "{name}");
        let public = refusal.problem().to_string();
        assert!(!public.contains("123456"), "{name} tells what rules want: {public}");
    }
    assert!(authority.leases(true).unwrap().is_empty());
    // A token that names no key is tried with the only one there is.
    enrol(&authority, &header(json!({"alg": "RS256"})), &Client::new()).unwrap();
}

#[test]
fn both_shapes_of_githubs_subject() {
    let by_id = github();
    let old = claims("old");
    let new = with(claims("new"), json!({"sub": "repo:octo@9919/app@123456:ref:refs/heads/main"}));
    // With numbers in the rule the shape does not matter.
    for token in [rsa().sign(&old), rsa().sign(&new)] {
        let lease = enrol(&by_id, &token, &Client::new()).unwrap().lease;
        assert_eq!(lease.identity, "spiffe://ci.example.com/ci/github/9919/123456");
    }
    // A subject in the rule is compared as it stands, and the trace says what is the matter.
    let rules = |sub: &str| vec![rule("builder", "github", &[("sub", &[sub])])];
    let issuers = || vec![issuer("github", IssuerKind::Github, GITHUB)];
    let named = configured(issuers(), rules("repo:octo/app:*"), &[rsa()]);
    enrol(&named, &rsa().sign(&old), &Client::new()).unwrap();
    let refusal = refused(&named, &rsa().sign(&new));
    assert_eq!((refusal.code, failed(&refusal)), (RefusalCode::JwtNoRule, "sub"));
    let hint = refusal.trace.as_ref().unwrap().failed().unwrap().hint.clone().unwrap();
    assert!(hint.contains("repository_id"), "{hint}");
    let numbered = configured(issuers(), rules("repo:octo@9919/app@123456:*"), &[rsa()]);
    enrol(&numbered, &rsa().sign(&new), &Client::new()).unwrap();
    assert_eq!(refused(&numbered, &rsa().sign(&old)).code, RefusalCode::JwtNoRule);
    // With an environment the subject ends otherwise.
    let environment = json!({
        "sub": "repo:octo@9919/app@123456:environment:prod%3Aeu", "environment": "prod:eu",
    });
    let lease = enrol(&by_id, &rsa().sign(&with(claims("env"), environment)), &Client::new());
    let identity = lease.unwrap().lease.identity;
    assert_eq!(identity, "spiffe://ci.example.com/ci/github/9919/123456/env/prod_3aeu");
}

#[test]
fn rules_of_roles_are_tried_in_order_and_traced() {
    // RFC 9457 3.
    let rules = vec![
        rule(
            "deployer",
            "github",
            &[
                ("repository_id", &["123456"]),
                ("environment", &["production"]),
                ("ref", &["refs/heads/main", "refs/tags/v*"]),
            ],
        ),
        rule("builder", "github", &[("repository_id", &["123456", "123457"])]),
    ];
    let issuers = vec![issuer("github", IssuerKind::Github, GITHUB)];
    let authority = configured(issuers, rules, &[rsa()]);
    let role = |changes: Value| {
        let token = rsa().sign(&with(claims(&changes.to_string()), changes));
        enrol(&authority, &token, &Client::new()).unwrap().lease.role
    };
    assert_eq!(role(json!({"environment": "production"})), "deployer");
    assert_eq!(role(json!({"environment": "production", "ref": "refs/tags/v1"})), "deployer");
    assert_eq!(role(json!({"environment": "production", "ref": "refs/heads/x"})), "builder");
    assert_eq!(role(json!({"repository_id": "123457"})), "builder");

    // Whom a rule is about is told what it wants; others only what did not match.
    let at = |role: &str, changes: Value| {
        let token = rsa().sign(&with(claims("told"), changes));
        authority.enrol_with_jwt(Some(role), &token, &Client::new().csr(), None, NOW).unwrap_err()
    };
    let own = at("deployer", json!({"environment": "staging"})).problem();
    let field = |problem: &Value, name: &str| {
        let fields = problem["trace"]["rules"][0]["fields"].as_array().unwrap().clone();
        fields.into_iter().find(|field| field["field"] == name).unwrap()
    };
    assert_eq!(own["status"], 403);
    assert_eq!(own["trace"]["issuer"], "github");
    assert_eq!(field(&own, "environment")["wanted"], "production");
    assert_eq!(field(&own, "environment")["found"], "staging");
    assert_eq!(field(&own, "environment")["ok"], false);
    assert_eq!(field(&own, "repository_id")["ok"], true);
    assert!(own["trace"]["rules"][0].get("rule").is_none(), "how many there are is told nobody");
    let stranger = at("deployer", json!({"repository_id": "666"}));
    assert_eq!(stranger.trace.as_ref().unwrap().rules.len(), 1, "the operator sees it");
    let stranger = stranger.problem();
    assert_eq!(stranger["trace"]["rules"], json!([]), "{stranger}");
    assert!(!stranger.to_string().contains("production"), "{stranger}");
}

#[test]
fn gitlab_and_kubernetes_jobs() {
    let issuers = vec![
        issuer("gitlab", IssuerKind::Gitlab, "https://gitlab.com"),
        issuer("k8s", IssuerKind::Kubernetes, "https://kubernetes.default.svc.cluster.local"),
    ];
    let rules = vec![
        rule("deployer", "gitlab", &[("project_id", &["20"]), ("ref_protected", &["true"])]),
        rule(
            "builder",
            "k8s",
            &[
                ("sub", &["system:serviceaccount:ci:builder"]),
                ("kubernetes.io.pod.name", &["build-*"]),
            ],
        ),
    ];
    let authority = configured(issuers, rules, &[rsa()]);
    let job = oidc::gitlab(NOW.secs(), AUDIENCE, "1");
    let lease = enrol(&authority, &rsa().sign(&job), &Client::new()).unwrap().lease;
    assert_eq!(lease.identity, "spiffe://ci.example.com/ci/gitlab/72/20");
    assert_eq!(lease.ci_ref.run_url.as_deref(), Some("https://gitlab.com/group/app/-/jobs/302"));
    assert_eq!(lease.ci_ref.run_id.as_deref(), Some("574"));
    for (name, changes, field) in [
        // In a fork's pipeline the project is the fork.
        ("fork", json!({"project_id": "21"}), "project_id"),
        ("branch", json!({"ref_protected": "false"}), "ref_protected"),
        ("merge request", json!({"pipeline_source": "merge_request_event"}), "pipeline_source"),
    ] {
        let token = rsa().sign(&with(oidc::gitlab(NOW.secs(), AUDIENCE, name), changes));
        let refusal = refused(&authority, &token);
        assert_eq!((refusal.code, failed(&refusal)), (RefusalCode::JwtNoRule, field), "{name}");
    }
    let twice = json!({"kubernetes.io.pod.name": "build-x"});
    let twice = with(oidc::kubernetes(NOW.secs(), AUDIENCE, "twice"), twice);
    let refusal = refused(&authority, &rsa().sign(&twice));
    assert_eq!(failed(&refusal), "kubernetes.io.pod.name", "said in two ways: {refusal:?}");
    let pod = oidc::kubernetes(NOW.secs(), AUDIENCE, "2");
    let lease = enrol(&authority, &rsa().sign(&pod), &Client::new()).unwrap().lease;
    assert_eq!(lease.identity, "spiffe://ci.example.com/ci/k8s/ns/ci/sa/builder");
    assert_eq!(lease.ci_ref.job_id.as_deref(), Some("93c2"));
}

#[test]
fn a_rule_without_a_project_is_refused() {
    let authority = authority();
    let settings = |claims: &[(&str, &[&str])]| Settings {
        issuers: vec![issuer("github", IssuerKind::Github, GITHUB)],
        rules: vec![rule("builder", "github", claims)],
        ..settings()
    };
    let error = authority.reconfigure(settings(&[("ref", &["refs/heads/main"])])).unwrap_err();
    assert!(error.to_string().contains("add repository_id"), "{error}");
    assert!(authority.reconfigure(settings(&[])).is_err());
    authority.reconfigure(settings(&[("repository_id", &["1"])])).unwrap();
}
