//! Webhooks of CI platforms: who is believed, what is understood, which leases are meant.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;
#[path = "../../tests/src/oidc.rs"]
#[allow(dead_code, unreachable_pub)]
mod oidc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use common::*;
use oidc::IssuerKey;
use pki::enrol::jwt::{ClaimPattern, ClaimRule, Issuer, IssuerKind, JwtAlgorithm, KeySource};
use pki::hook::{
    Delivery, HookError, HookKind, HookSecret, HookSource, JobOver, Told, read, verify,
};
use pki::*;
use ring::hmac;
use serde_json::{Value, json};

const OLD: &[u8] = b"the secret before the rotation";
const NEW: &[u8] = b"the secret after the rotation";
const GITLAB: &str = "https://gitlab.com";

fn source(kind: HookKind, iss: &str, secrets: &[&[u8]]) -> HookSource {
    let secrets = secrets.iter().map(|octets| HookSecret::new(octets)).collect();
    HookSource { kind, issuer: kind.name().to_owned(), iss: iss.to_owned(), secrets }
}

fn tag(secret: &[u8], text: &[u8]) -> hmac::Tag {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), text)
}

/// As GitHub writes it.
fn hub(secret: &[u8], body: &[u8]) -> String {
    let hex: String = tag(secret, body).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256={hex}")
}

#[test]
fn the_example_of_githubs_documentation_verifies() {
    // "Validating webhook deliveries" of GitHub's documentation gives these values to test with.
    let sources = [source(HookKind::Github, GITHUB, &[b"It's a Secret to Everybody"])];
    let signature = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
    let delivery =
        Delivery { hub_signature: Some(signature), body: b"Hello, World!", ..Delivery::default() };
    assert!(verify(&sources, HookKind::Github, &delivery, NOW).is_ok());
    let altered = Delivery { body: b"Hello, World?", ..delivery };
    assert_eq!(verify(&sources, HookKind::Github, &altered, NOW), Err(HookError::BadSignature));
}

#[test]
fn github_deliveries_are_believed_by_any_secret_and_by_nothing_else() {
    let sources = [
        source(HookKind::Gitlab, GITLAB, &[b"another platform's secret"]),
        source(HookKind::Github, GITHUB, &[OLD, NEW]),
    ];
    let body = b"{\"zen\":\"Keep it logically awesome.\"}";
    let judge = |delivery: Delivery<'_>| {
        let judged = verify(&sources, HookKind::Github, &delivery, NOW);
        judged.map(|source| source.issuer.clone())
    };
    let bare = Delivery { body, ..Delivery::default() };
    for secret in [OLD, NEW] {
        let signature = hub(secret, body);
        let signed = Delivery { hub_signature: Some(&signature), ..bare };
        assert_eq!(judge(signed).as_deref(), Ok("github"));
        let upper = signature.to_uppercase().replace("SHA256", "sha256");
        assert!(judge(Delivery { hub_signature: Some(&upper), ..bare }).is_ok());
        for body in [&body[1..], b"", b"{}"] {
            assert_eq!(judge(Delivery { body, ..signed }), Err(HookError::BadSignature));
        }
    }
    assert_eq!(judge(bare), Err(HookError::Unsigned));
    let foreign = hub(b"another platform's secret", body);
    let short = hub(NEW, body)[..40].to_owned();
    let sha1 = format!("sha1={}", "0".repeat(40));
    for wrong in [&foreign, &short, &sha1, "sha256=", "sha256=zz", "", &"a".repeat(4_000)] {
        let refused = judge(Delivery { hub_signature: Some(wrong), ..bare }).unwrap_err();
        assert_eq!(refused.status(), 401, "{wrong}");
    }
    // The secret itself proves nothing to GitHub's door, nor does GitLab's way.
    let text = std::str::from_utf8(NEW).unwrap();
    assert_eq!(judge(Delivery { token: Some(text), ..bare }), Err(HookError::Unsigned));
    let none = verify(&sources[..1], HookKind::Github, &bare, NOW);
    assert_eq!(none, Err(HookError::Unsigned));
    let signature = hub(NEW, body);
    let signed = Delivery { hub_signature: Some(&signature), ..bare };
    assert_eq!(verify(&sources[..1], HookKind::Github, &signed, NOW), Err(HookError::NoSource));
}

#[test]
fn gitlab_deliveries_are_believed_by_token_or_signature() {
    let encoded = format!("whsec_{}", STANDARD.encode(b"thirty-two octets of a real secret"));
    let sources = [source(HookKind::Gitlab, GITLAB, &[OLD, NEW, encoded.as_bytes()])];
    let judge = |delivery: &Delivery<'_>, now| {
        verify(&sources, HookKind::Gitlab, delivery, now).map(|_| ())
    };
    let body = b"{\"object_kind\":\"build\"}";
    let bare = Delivery { body, ..Delivery::default() };
    for secret in [OLD, NEW] {
        let token = std::str::from_utf8(secret).unwrap();
        assert_eq!(judge(&Delivery { token: Some(token), ..bare }, NOW), Ok(()));
        let (longer, upper) = (format!("{token}x"), token.to_uppercase());
        for wrong in [longer.as_str(), &token[1..], upper.as_str()] {
            let refused = judge(&Delivery { token: Some(wrong), ..bare }, NOW);
            assert_eq!(refused, Err(HookError::BadSignature), "{wrong}");
        }
    }
    assert_eq!(judge(&bare, NOW), Err(HookError::Unsigned));

    let time = NOW.secs().to_string();
    let sign = |secret: &[u8], id: &str| {
        let text = [format!("{id}.{time}.").as_bytes(), body].concat();
        format!("v1,{}", STANDARD.encode(tag(secret, &text)))
    };
    let signed = |signature| Delivery {
        webhook_id: Some("delivery-1"),
        webhook_timestamp: Some(&time),
        webhook_signature: Some(signature),
        ..bare
    };
    // Of several secrets each signs; one that is known is enough.
    let both = format!("v1,AAAA {}", sign(b"thirty-two octets of a real secret", "delivery-1"));
    let good = sign(NEW, "delivery-1");
    for good in [&good, &both] {
        assert_eq!(judge(&signed(good), NOW), Ok(()));
        assert_eq!(judge(&signed(good), after(300)), Ok(()));
        assert_eq!(judge(&signed(good), after(301)), Err(HookError::Stale), "a replay");
    }
    let other = sign(NEW, "delivery-2");
    assert_eq!(judge(&signed(&other), NOW), Err(HookError::BadSignature), "another's name");
    // A token beside a signature that does not verify helps nobody.
    let token = std::str::from_utf8(NEW).ok();
    let beside = Delivery { token, ..signed(&other) };
    assert_eq!(judge(&beside, NOW), Err(HookError::BadSignature));
    let undated = Delivery { webhook_timestamp: None, ..signed(&good) };
    assert_eq!(judge(&undated, NOW), Err(HookError::BadSignature));
}

fn told(kind: HookKind, event: &str, body: &Value) -> Result<Told, HookError> {
    read(kind, Some(event), body.to_string().as_bytes())
}

fn over(
    kind: HookKind,
    project: &str,
    run: &str,
    attempt: Option<&str>,
    job: Option<&str>,
) -> Told {
    let own = |text: Option<&str>| text.map(str::to_owned);
    Told::Over(JobOver {
        kind,
        project: project.to_owned(),
        run: run.to_owned(),
        attempt: own(attempt),
        job: own(job),
    })
}

#[test]
fn what_github_says_of_jobs_and_runs() {
    let kind = HookKind::Github;
    let job = json!({
        "action": "completed",
        "workflow_job": {
            "id": 1, "run_id": 7001, "run_attempt": 2,
            "check_run_url": "https://api.github.com/repos/octo/app/check-runs/88001",
        },
        "repository": {"id": 123456},
    });
    let expected = over(kind, "123456", "7001", Some("2"), Some("88001"));
    assert_eq!(told(kind, "workflow_job", &job), Ok(expected));
    let mut bare = job.clone();
    bare["workflow_job"].as_object_mut().unwrap().remove("check_run_url");
    let expected = over(kind, "123456", "7001", Some("2"), Some("1"));
    assert_eq!(told(kind, "workflow_job", &bare), Ok(expected));
    let run = json!({
        "action": "completed",
        "workflow_run": {"id": 7001, "run_attempt": 2},
        "repository": {"id": 123456},
    });
    let expected = over(kind, "123456", "7001", Some("2"), None);
    assert_eq!(told(kind, "workflow_run", &run), Ok(expected));
    for (event, document) in [
        ("ping", json!({"zen": "x"})),
        ("push", json!({})),
        ("workflow_job", json!({"action": "in_progress"})),
        ("workflow_run", json!({"action": "requested"})),
    ] {
        assert!(matches!(told(kind, event, &document), Ok(Told::Nothing(_))), "{event}");
    }
    for part in ["repository", "workflow_job"] {
        let mut broken = job.clone();
        broken[part] = json!({"id": "1; drop"});
        assert!(matches!(told(kind, "workflow_job", &broken), Err(HookError::Malformed(_))));
    }
    assert!(matches!(read(kind, None, b"{}"), Err(HookError::Malformed(_))));
    assert!(matches!(read(kind, Some("ping"), b"payload=%7B%7D"), Err(HookError::Malformed(_))));
}

#[test]
fn what_gitlab_says_of_jobs() {
    let kind = HookKind::Gitlab;
    let job = |status: &str| {
        json!({
            "object_kind": "build", "build_id": 302, "build_status": status,
            "pipeline_id": 574, "project_id": 20,
        })
    };
    for status in ["success", "failed", "canceled", "skipped"] {
        let expected = over(kind, "20", "574", None, Some("302"));
        assert_eq!(told(kind, "Job Hook", &job(status)), Ok(expected));
    }
    for status in ["created", "pending", "running", "canceling", "manual"] {
        assert!(matches!(told(kind, "Job Hook", &job(status)), Ok(Told::Nothing(_))), "{status}");
    }
    let push = json!({"object_kind": "push", "project_id": 20});
    assert!(matches!(told(kind, "Push Hook", &push), Ok(Told::Nothing(_))));
    let mut broken = job("success");
    broken["build_id"] = json!(null);
    assert!(matches!(told(kind, "Job Hook", &broken), Err(HookError::Malformed(_))));
}

/// GitHub and GitLab with one rule each, and a key that signs for both.
fn platforms() -> (Authority, IssuerKey) {
    let (authority, key) = (authority(), IssuerKey::eddsa("k"));
    let issuer = |name: &str, kind, iss: &str| {
        let mut issuer = Issuer::new(name, kind, iss, AUDIENCE, KeySource::File("/nowhere".into()));
        issuer.algorithms = vec![JwtAlgorithm::EdDsa];
        issuer
    };
    let rule = |issuer: &str, claim: &str, value: &str| ClaimRule {
        role: "builder".to_owned(),
        number: 1,
        issuer: issuer.to_owned(),
        claims: [(claim.to_owned(), vec![ClaimPattern::new(value)])].into(),
        manual: None,
    };
    let issuers = vec![
        issuer("github", IssuerKind::Github, GITHUB),
        issuer("ghes", IssuerKind::Github, "https://ghes.example.com/_services/token"),
        issuer("gitlab", IssuerKind::Gitlab, GITLAB),
    ];
    let rules = vec![
        rule("github", "repository_id", "123456"),
        rule("ghes", "repository_id", "123456"),
        rule("gitlab", "project_id", "20"),
    ];
    let settings = Settings { issuers: issuers.clone(), rules, ..settings() };
    authority.reconfigure(settings).unwrap();
    for issuer in &issuers {
        authority.jwt_keys_fetched(issuer, Ok(oidc::jwks(&[&key])), NOW).unwrap();
    }
    (authority, key)
}

#[test]
fn a_job_that_is_over_means_its_own_leases_and_no_others() {
    let (authority, key) = platforms();
    let mut number = 0;
    let mut open = |mut claims: Value, changes: &[(&str, Option<&str>)]| {
        number += 1;
        claims["jti"] = json!(format!("j{number}"));
        for (name, value) in changes {
            match value {
                Some(value) => claims[*name] = json!(value),
                None => drop(claims.as_object_mut().unwrap().remove(*name)),
            }
        }
        let token = key.sign(&claims);
        let csr = Client::new().csr();
        authority.enrol_with_jwt(None, &token, &csr, None, NOW).unwrap().lease.id
    };
    let github = || oidc::github(NOW.secs(), AUDIENCE, "x");
    let gitlab = || oidc::gitlab(NOW.secs(), AUDIENCE, "x");
    let job = open(github(), &[]);
    let twin = open(github(), &[]);
    let other_job = open(github(), &[("check_run_id", Some("88002"))]);
    let second_attempt =
        open(github(), &[("run_attempt", Some("2")), ("check_run_id", Some("88003"))]);
    let nameless = open(github(), &[("check_run_id", None)]);
    let ghes = open(github(), &[("iss", Some("https://ghes.example.com/_services/token"))]);
    let lab = open(gitlab(), &[]);
    let lab_other = open(gitlab(), &[("job_id", Some("303"))]);

    let hub = source(HookKind::Github, GITHUB, &[NEW]);
    let found = |source: &HookSource, told: Told| {
        let Told::Over(over) = told else { panic!("{told:?}") };
        let mut ids: Vec<String> =
            authority.leases_of_job(source, &over).unwrap().into_iter().map(|l| l.id).collect();
        ids.sort();
        ids
    };
    let sorted = |mut ids: Vec<&String>| {
        ids.sort();
        ids.into_iter().cloned().collect::<Vec<_>>()
    };
    let kind = HookKind::Github;
    let one = |project, job| over(kind, project, "7001", Some("1"), Some(job));
    assert_eq!(found(&hub, one("123456", "88001")), sorted(vec![&job, &twin]));
    assert_eq!(found(&hub, one("123456", "88002")), [other_job.as_str()]);
    // Another repository's webhook with the same secret says nothing about this one's jobs.
    assert!(found(&hub, one("999", "88001")).is_empty());
    assert!(found(&hub, over(kind, "123456", "7002", None, Some("88001"))).is_empty());
    let run = |attempt| over(kind, "123456", "7001", Some(attempt), None);
    let first = sorted(vec![&job, &twin, &other_job, &nameless]);
    assert_eq!(found(&hub, run("1")), first);
    assert_eq!(found(&hub, run("2")), [second_attempt]);
    let enterprise = source(HookKind::Github, "https://ghes.example.com/_services/token", &[NEW]);
    assert_eq!(found(&enterprise, run("1")), [ghes]);

    let lab_source = source(HookKind::Gitlab, GITLAB, &[NEW]);
    let of = |project, job| over(HookKind::Gitlab, project, "574", None, Some(job));
    assert_eq!(found(&lab_source, of("20", "302")), [lab]);
    assert_eq!(found(&lab_source, of("20", "303")), [lab_other]);
    assert!(found(&lab_source, of("21", "302")).is_empty());

    // What has ended is not there any more.
    authority.release(&job, "job", &Actor::System, after(5)).unwrap();
    assert_eq!(found(&hub, one("123456", "88001")), [twin]);
}
