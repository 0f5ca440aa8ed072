//! Tokens of CI platforms: real signatures of every accepted algorithm, and everything that must
//! not open a lease.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;
#[path = "../../tests/src/oidc.rs"]
#[allow(dead_code, unreachable_pub)]
mod oidc;

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use common::*;
use oidc::IssuerKey;
use pki::enrol::jwt::{ClaimPattern, ClaimRule, Issuer, IssuerKind, KeySource, jwks};
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
    ClaimRule { role: role.into(), number: 1, issuer: issuer.into(), claims: claims.collect() }
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
fn a_token_opens_one_lease_for_one_key() {
    // RFC 7519 4.1.7.
    let authority = github();
    let token = rsa().sign(&claims("once"));
    let (first, thief) = (Client::new(), Client::new());
    let opened = enrol(&authority, &token, &first).unwrap();
    // The same key repeats a lost answer; a new token with the same jti is the same token.
    let again = enrol(&authority, &token, &first).unwrap();
    assert_eq!((again.replayed, &again.lease.id), (true, &opened.lease.id));
    assert_eq!(again.certificate, opened.certificate);
    let reissued = rsa().sign(&with(claims("once"), json!({"exp": NOW.secs() + 200})));
    for token in [&token, &reissued] {
        let refusal = enrol(&authority, token, &thief).unwrap_err();
        assert_eq!((refusal.code, failed(&refusal)), (RefusalCode::TokenReplay, "spent"));
        assert_eq!(refusal.code.status(), 403);
        assert!(refusal.detail.contains(&opened.lease.id), "{}", refusal.detail);
        assert!(!refusal.problem()["detail"].as_str().unwrap().contains(&opened.lease.spki_sha256));
    }
    let late = |secs| authority.enrol_with_jwt(None, &token, &first.csr(), None, after(secs));
    assert!(late(299).unwrap().replayed);
    assert_eq!(late(300).unwrap_err().code, RefusalCode::TokenSpent);
    assert_eq!(late(361).unwrap_err().code, RefusalCode::JwtExpired);
    assert_eq!(authority.leases(true).unwrap().len(), 1);

    let events = authority.audit(0, 100).unwrap();
    let replay = events.iter().find(|record| record.event.action == "token.replay").unwrap();
    assert_eq!(replay.event.outcome, AuditOutcome::Failure);
    assert_eq!(replay.event.spki_sha256, Some(thief.csr().spki_sha256));
    assert_eq!(replay.event.token, opened.lease.token);
    let text = format!("{events:?}");
    assert!(!text.contains("eyJ"), "a token in the audit log");
}

#[test]
fn a_token_without_a_number_is_spent_by_what_it_says() {
    let iss = "https://jenkins.example.com/oidc";
    let rules =
        vec![rule("builder", "jenkins", &[("sub", &["https://jenkins.example.com/job/ci/*"])])];
    let authority = configured(vec![issuer("jenkins", IssuerKind::Jenkins, iss)], rules, &[rsa()]);
    let token = rsa().sign(&oidc::jenkins(NOW.secs(), AUDIENCE));
    let opened = enrol(&authority, &token, &Client::new()).unwrap();
    assert_eq!(refused(&authority, &token).code, RefusalCode::TokenReplay);
    let url = opened.lease.ci_ref.run_url.unwrap();
    assert_eq!(url, "https://jenkins.example.com/job/ci/job/app/41/");
    // The next build has another token.
    let next = with(oidc::jenkins(NOW.secs(), AUDIENCE), json!({"build_number": 42}));
    enrol(&authority, &rsa().sign(&next), &Client::new()).unwrap();
    let outside = with(next, json!({"sub": "https://jenkins.example.com/job/cicd/"}));
    assert_eq!(refused(&authority, &rsa().sign(&outside)).code, RefusalCode::JwtNoRule);
}

#[test]
fn a_signature_with_a_second_valid_form_is_the_same_token() {
    // RFC 7519 4.1.7: its `jti` tells tokens apart, not their octets.
    let iss = "https://ci.example.com";
    let key = IssuerKey::es256("es-1");
    let rules = vec![rule("builder", "ci", &[("sub", &["build"])])];
    let authority = configured(vec![issuer("ci", IssuerKind::Generic, iss)], rules, &[&key]);
    let claims = json!({"iss": iss, "aud": AUDIENCE, "sub": "build", "exp": NOW.secs() + 60});
    let token = key.sign(&claims);
    enrol(&authority, &token, &Client::new()).unwrap();
    // ECDSA signatures are not unique: signing again gives another one for the same claims.
    let twin = key.sign(&claims);
    assert_ne!(token, twin);
    assert_eq!(refused(&authority, &twin).code, RefusalCode::TokenReplay);
}

#[test]
fn a_hundred_keys_with_one_token_get_one_lease() {
    // RFC 7519 4.1.7.
    let authority = Arc::new(github());
    let token = rsa().sign(&claims("race"));
    let threads: Vec<_> = (0..100)
        .map(|_| {
            let (authority, token) = (Arc::clone(&authority), token.clone());
            std::thread::spawn(move || enrol(&authority, &token, &Client::new()).is_ok())
        })
        .collect();
    let opened = threads.into_iter().filter(|_| true).map(|t| t.join().unwrap());
    assert_eq!(opened.filter(|opened| *opened).count(), 1);
    assert_eq!(authority.leases(true).unwrap().len(), 1);
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
fn keys_are_fetched_for_tokens_that_could_be_good() {
    // RFC 7517 5.
    let authority = authority();
    let github = issuer("github", IssuerKind::Github, GITHUB);
    let rules = vec![rule("builder", "github", &[("repository_id", &["123456"])])];
    let settings = Settings { issuers: vec![github.clone()], rules, ..settings() };
    authority.reconfigure(settings).unwrap();
    let token = rsa().sign(&claims("keys"));
    let wanted = |token: &str, secs| authority.jwt_keys_wanted(token, after(secs));
    assert_eq!(wanted(&token, 0), KeysWanted::First(github.clone()));
    for changes in [
        json!({"exp": NOW.secs() - 61}),
        json!({"aud": "https://other.example.com"}),
        json!({"iss": "https://evil.example.com"}),
    ] {
        let token = rsa().sign(&with(claims("keys"), changes));
        assert_eq!(wanted(&token, 0), KeysWanted::No);
    }
    assert_eq!(wanted("eyJ.x.y", 0), KeysWanted::No);
    let refusal = refused(&authority, &token);
    assert_eq!((refusal.code, refusal.code.status()), (RefusalCode::JwtKeysUnavailable, 401));
    assert!(authority.jwt_keys_fetched(&github, Err("no answer".to_owned()), NOW).is_err());
    assert!(refused(&authority, &token).detail.contains("no answer"));
    authority.jwt_keys_fetched(&github, Ok(oidc::jwks(&[rsa()])), after(5)).unwrap();
    enrol(&authority, &token, &Client::new()).unwrap();
    // Rotated: the old key is gone with the next set.
    let next = IssuerKey::rs256("rsa-2");
    let rotated = next.sign(&claims("rotated"));
    assert_eq!(refused(&authority, &rotated).code, RefusalCode::JwtUnknownKey);
    assert_eq!(wanted(&rotated, 34), KeysWanted::No, "asked for half a minute ago");
    assert_eq!(wanted(&rotated, 35), KeysWanted::First(github.clone()));
    authority.jwt_keys_fetched(&github, Ok(oidc::jwks(&[&next])), after(35)).unwrap();
    enrol(&authority, &rotated, &Client::new()).unwrap();
    assert_eq!(refused(&authority, &rsa().sign(&claims("old"))).code, RefusalCode::JwtUnknownKey);
}

/// Whoever cannot sign for an issuer learns nothing of what is configured, not even which issuers.
#[test]
fn tokens_that_nobody_is_known_to_have_signed_are_answered_alike() {
    // RFC 8725 3.8; RFC 9457 3.
    let settings = github_settings();
    let mut issuers = settings.issuers.clone();
    issuers.push(issuer("new", IssuerKind::Generic, "https://new.example.com"));
    let authority = authority();
    authority.reconfigure(Settings { issuers: issuers.clone(), ..settings }).unwrap();
    let earlier = NOW.minus(Duration::from_secs(60));
    authority.jwt_keys_fetched(&issuers[0], Ok(oidc::jwks(&[rsa()])), earlier).unwrap();
    let stranger = IssuerKey::rs256("rsa-1");
    let good = claims("told");
    let of = |iss: &str| with(claims("told"), json!({"iss": iss}));
    let unknown = IssuerKey::rs256("rsa-9");
    let mut answers = std::collections::BTreeSet::new();
    for (token, code) in [
        (stranger.sign(&good), RefusalCode::JwtBadSignature),
        (unknown.sign(&good), RefusalCode::JwtUnknownKey),
        (stranger.sign(&of("https://ci.corp.example")), RefusalCode::JwtUnknownIssuer),
        (stranger.sign(&of("https://new.example.com")), RefusalCode::JwtKeysUnavailable),
        (IssuerKey::es256("rsa-1").sign(&good), RefusalCode::JwtAlgorithm),
    ] {
        let refusal = refused(&authority, &token);
        assert_eq!(refusal.code, code, "the operator is told");
        answers.insert((
            refusal.code.status(),
            refusal.retry_after(),
            refusal.problem().to_string(),
        ));
        let body = base64(&Client::new().csr_with_password(&token)).into_bytes();
        let reply = authority.est(&est_request(EST, None, &body), NOW);
        let wait = reply.headers.iter().find(|(name, _)| *name == "Retry-After").unwrap();
        let text = String::from_utf8(reply.body).unwrap();
        answers.insert((reply.status, wait.1.parse().ok(), text));
    }
    assert_eq!(answers.len(), 1, "a stranger can tell them apart: {answers:#?}");
    let (status, _, text) = answers.first().unwrap();
    assert_eq!(*status, 401);
    for secret in ["github", "RS256", "builder", "repository_id", "wanted", "rsa-1", "trace"] {
        assert!(!text.contains(secret), "{secret}: {text}");
    }
}

#[test]
fn a_key_that_may_be_there_by_now_is_worth_another_try() {
    let settings = github_settings();
    let authority = configured(settings.issuers.clone(), settings.rules, &[rsa()]);
    let github = &settings.issuers[0];
    let next = IssuerKey::rs256("rsa-2");
    let (first, second) = (next.sign(&claims("first")), next.sign(&claims("second")));
    authority.jwt_keys_fetched_for(github, &first, Ok(oidc::jwks(&[rsa()])), NOW).unwrap();
    let at = |token: &str, secs| {
        let csr = Client::new().csr();
        authority.enrol_with_jwt(None, token, &csr, None, after(secs)).unwrap_err()
    };

    assert_eq!(at(&first, 1).code, RefusalCode::JwtUnknownKey, "its keys were fetched just now");
    let wait = at(&second, 10);

    assert_eq!(
        (wait.code, wait.wait),
        (RefusalCode::JwtKeysUnavailable, Some(Duration::from_secs(20)))
    );
    assert_eq!(wait.retry_after(), Some(30), "by then the keys are fetched again");
    assert_eq!(authority.jwt_keys_wanted(&second, after(31)), KeysWanted::First(github.clone()));
}

#[test]
fn a_request_that_is_refused_anyhow_has_no_keys_fetched() {
    let client = Client::new();
    let body = base64(&client.csr_with_password(&rsa().sign(&claims("get")))).into_bytes();
    let post = est_request(EST, None, &body);
    assert!(pki::enrol::est::request_token(&post).is_some());
    let get = EstRequest { method: "GET", ..post };
    assert!(pki::enrol::est::request_token(&get).is_none());
    assert_eq!(github().est(&get, NOW).status, 405);
}

#[test]
fn a_spent_token_reads_its_lease() {
    let authority = github();
    let token = rsa().sign(&claims("read"));
    let unspent = authority.lease_of_jwt(&token, NOW).unwrap_err();
    assert_eq!(unspent.code, RefusalCode::TokenUnknown);
    let opened = enrol(&authority, &token, &Client::new()).unwrap();
    assert_eq!(authority.lease_of_jwt(&token, after(200)).unwrap().id, opened.lease.id);
    // A job that is under way when its rule is taken away may still clean up.
    let without = Settings { rules: Vec::new(), ..github_settings() };
    authority.reconfigure(without).unwrap();
    assert_eq!(refused(&authority, &token).code, RefusalCode::JwtNoRule);
    assert_eq!(authority.lease_of_jwt(&token, after(200)).unwrap().id, opened.lease.id);
    let expired = authority.lease_of_jwt(&token, after(400)).unwrap_err();
    assert_eq!(expired.code, RefusalCode::JwtExpired);
}

#[test]
fn spent_tokens_are_forgotten_when_they_are_no_good_any_more() {
    let authority = github();
    let later = |secs: i64, jti: &str| {
        let token = rsa().sign(&oidc::github(NOW.secs() + secs, AUDIENCE, jti));
        let secs = u64::try_from(secs).unwrap();
        authority.enrol_with_jwt(None, &token, &Client::new().csr(), None, after(secs)).unwrap();
        token
    };
    let mut tokens = BTreeMap::new();
    for number in 0..64 {
        tokens.insert(number, later(0, &format!("n{number}")));
    }
    later(3_000, "soon");
    let presented = |secs| {
        let token = &tokens[&0];
        authority.lease_of_jwt(token, after(secs)).is_ok()
    };
    assert!(presented(300));
    later(5_000, "late");
    // What is left is the lease; the token says nothing about it any more.
    assert!(!presented(300), "64 records stay for ever");
}

#[test]
fn key_sets_are_read_carefully() {
    // RFC 7517 4, 5.
    let good = rsa().jwk();
    let set = |keys: Value| jwks::KeySet::parse(json!({ "keys": keys }).to_string().as_bytes());
    assert_eq!(set(json!([good])).unwrap().len(), 1);
    let change = |changes: Value| with(good.clone(), changes);
    for (name, key) in [
        ("for encryption", change(json!({"use": "enc"}))),
        ("for signing only", change(json!({"key_ops": ["sign"]}))),
        ("for PSS", change(json!({"alg": "PS256"}))),
        ("symmetric", json!({"kty": "oct", "k": "AAAA", "alg": "HS256"})),
        ("too short", change(json!({"n": oidc::encode(&[0xff; 128])}))),
        ("without modulus", change(json!({"n": null}))),
        ("off the list", json!({"kty": "EC", "crv": "P-521", "x": "AA", "y": "AA"})),
        ("cut off", json!({"kty": "OKP", "crv": "Ed25519", "x": "AAAA"})),
        ("no object", json!("x")),
    ] {
        assert!(set(json!([key.clone()])).is_err(), "{name}");
        assert_eq!(set(json!([key, good])).unwrap().len(), 1, "{name} beside a good one");
    }
    assert!(set(json!({})).is_err() && set(json!([])).is_err());
    assert!(set(Value::Array(vec![good.clone(); 65])).is_err());
    assert!(jwks::KeySet::parse(b"").is_err());
    assert!(jwks::KeySet::parse(&vec![b' '; jwks::MAX_KEY_SET + 1]).is_err());

    let document = |iss: &str, uri: &str| json!({"issuer": iss, "jwks_uri": uri}).to_string();
    let uri = |text: String| jwks::jwks_uri(text.as_bytes(), GITHUB);
    assert_eq!(
        uri(document(GITHUB, "https://keys.example.com/1")).unwrap(),
        "https://keys.example.com/1"
    );
    assert!(uri(document("https://evil.example.com", "https://x")).unwrap_err().contains("evil"));
    assert!(uri(document(GITHUB, "http://keys.example.com")).unwrap_err().contains("https"));
    assert!(uri("{}".to_owned()).is_err() && uri("x".to_owned()).is_err());
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

#[test]
fn the_state_of_each_issuers_keys_is_told() {
    // RFC 7517 5.
    let settings = github_settings();
    let authority = authority();
    authority.reconfigure(settings.clone()).unwrap();
    let github = &settings.issuers[0];
    let told = |secs| authority.issuer_keys(after(secs)).remove(0);
    let first = told(0);
    assert_eq!(
        (first.name.as_str(), first.keys, first.fetched, first.fetches),
        ("github", 0, None, 0)
    );
    assert!(!first.usable);
    authority.jwt_keys_fetched(github, Ok(oidc::jwks(&[rsa()])), NOW).unwrap();
    let had = told(60);
    assert_eq!((had.keys, had.fetched, had.usable, had.stale), (1, Some(NOW), true, false));
    for secs in [3_700, 3_800] {
        let failed = authority.jwt_keys_fetched(github, Err("no answer".to_owned()), after(secs));
        assert!(failed.is_err());
    }
    let stale = told(4_000);
    assert_eq!((stale.fetches, stale.failures, stale.stale, stale.usable), (3, 2, true, true));
    assert_eq!(stale.problem.as_deref(), Some("no answer"));
    assert!(!told(86_400).usable, "after a day nothing is verified with them");
    // The platform's clock against ours, as its genuine tokens show it, and nobody else's.
    assert_eq!(stale.clock_skew, None);
    let ahead = rsa().sign(&with(claims("ahead"), json!({"iat": NOW.secs() + 40})));
    enrol(&authority, &ahead, &Client::new()).unwrap();
    assert_eq!(told(4_000).clock_skew, Some(40));
    let forged = IssuerKey::rs256("rsa-1").sign(&with(claims("x"), json!({"iat": NOW.secs() - 9})));
    refused(&authority, &forged);
    assert_eq!(told(4_000).clock_skew, Some(40));
}
