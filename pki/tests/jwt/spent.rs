//! What a token opens, once, and what its record is good for afterwards.

use super::*;

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
    later(7_000, "soon");
    let presented = |secs| {
        let token = &tokens[&0];
        authority.lease_of_jwt(token, after(secs)).is_ok()
    };
    assert!(presented(300));
    later(9_000, "late");
    // What is left is the lease; the token says nothing about it any more.
    assert!(!presented(300), "64 records stay for ever");
}

/// A platform gives a job as many tokens as it asks for, and the first is over before the job is.
#[test]
fn another_token_of_the_same_job_reads_and_releases_its_lease() {
    let authority = github();
    let opened = enrol(&authority, &rsa().sign(&claims("first")), &Client::new()).unwrap();
    let id = opened.lease.id.as_str();
    let ask = |token: &str, secs| authority.lease_of_bearer(id, token, after(secs));
    let later = rsa().sign(&oidc::github(NOW.secs() + 1_800, AUDIENCE, "later"));
    assert_eq!(ask(&later, 1_800).unwrap().id, id);
    // It is not spent by that: the job may open another lease with it.
    let client = Client::new();
    let second = authority.enrol_with_jwt(None, &later, &client.csr(), None, after(1_801)).unwrap();
    assert_ne!(second.lease.id, id);
    assert_eq!(ask(&later, 1_802).unwrap().id, id, "whatever lease it opened itself");

    let refused = |changes: Value| {
        let token = rsa().sign(&with(claims("other"), changes));
        ask(&token, 1).unwrap_err().code
    };
    for (what, changes) in [
        ("another job of the run", json!({"check_run_id": "88002"})),
        ("another attempt at the run", json!({"run_attempt": "2"})),
        ("another run", json!({"run_id": "7002"})),
        ("another repository", json!({"repository_id": "123457"})),
        ("a token that names no job", json!({"check_run_id": null})),
        ("an empty name", json!({"check_run_id": ""})),
        ("several", json!({"check_run_id": ["88001", "88002"]})),
    ] {
        assert_eq!(refused(changes), RefusalCode::TokenUnknown, "{what}");
    }
    // Presented again when its time is over, and altered.
    let late = ask(&rsa().sign(&claims("late")), 400).unwrap_err();
    assert_eq!(late.code, RefusalCode::JwtExpired);
    let forged = IssuerKey::rs256("rsa-1").sign(&claims("forged"));
    assert_eq!(ask(&forged, 1).unwrap_err().code, RefusalCode::JwtBadSignature);
    // No lease is found by asking for names.
    let nowhere = authority.lease_of_bearer("r-nosuchlease", &later, after(1_802)).unwrap_err();
    assert_eq!(nowhere.code, RefusalCode::CertificateUnusable);
}

#[test]
fn a_job_of_another_issuer_with_the_same_numbers_is_another_job() {
    let ghes = issuer("ghes", IssuerKind::Github, "https://ghes.example.com/_services/token");
    let mut settings = github_settings();
    settings.issuers.push(ghes);
    settings.issuers.push(issuer("any", IssuerKind::Generic, "https://any.example.com"));
    settings.rules.push(rule("builder", "any", &[("sub", &["a"])]));
    let authority = configured(settings.issuers, settings.rules, &[rsa()]);
    let opened = enrol(&authority, &rsa().sign(&claims("first")), &Client::new()).unwrap();
    let id = opened.lease.id.as_str();
    let theirs = json!({"iss": "https://ghes.example.com/_services/token"});
    let token = rsa().sign(&with(claims("theirs"), theirs));
    let refused = authority.lease_of_bearer(id, &token, NOW).unwrap_err();
    assert_eq!(refused.code, RefusalCode::TokenUnknown);
    // What names a job of a generic issuer is not known: the token that opened the lease it is.
    let generic = |jti: &str| {
        let claims = json!({"iss": "https://any.example.com", "sub": "a", "jti": jti});
        rsa().sign(&with(claims_of_any(), claims))
    };
    let (first, second) = (generic("one"), generic("two"));
    let opened = enrol(&authority, &first, &Client::new()).unwrap();
    let ask = |token: &str| authority.lease_of_bearer(&opened.lease.id, token, NOW);
    assert_eq!(ask(&first).unwrap().id, opened.lease.id);
    assert_eq!(ask(&second).unwrap_err().code, RefusalCode::TokenUnknown);
}

fn claims_of_any() -> Value {
    json!({"aud": AUDIENCE, "iat": NOW.secs(), "exp": NOW.secs() + 300})
}
