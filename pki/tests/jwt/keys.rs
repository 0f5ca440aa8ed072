//! The keys of issuers: when they are fetched, how sets are read, and what a stranger learns.

use super::*;

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

#[test]
fn of_several_keys_of_one_name_the_one_that_signed_counts() {
    // RFC 7517 4.5: names should differ, and issuers exist whose do not.
    let settings = github_settings();
    let (old, new) = (IssuerKey::es256("same"), IssuerKey::es256("same"));
    let mut issuers = settings.issuers;
    issuers[0].algorithms = vec![JwtAlgorithm::Rs256, JwtAlgorithm::Es256];
    let rsa_of_that_name = IssuerKey::rs256("same");
    let keys = [&rsa_of_that_name, &old, &new];
    let authority = configured(issuers, settings.rules, &keys);
    for (number, key) in keys.iter().enumerate() {
        let token = key.sign(&claims(&format!("key {number}")));
        enrol(&authority, &token, &Client::new()).unwrap();
    }
    // The name alone opens nothing.
    let stranger = IssuerKey::es256("same").sign(&claims("stranger"));
    assert_eq!(refused(&authority, &stranger).code, RefusalCode::JwtBadSignature);
}
