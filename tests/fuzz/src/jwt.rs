//! Targets for what the issuers of CI tokens and their jobs send. Panics are findings.

use std::borrow::Cow;
use std::collections::BTreeMap;

use pki::UnixTime;
use pki::enrol::jwt::jwks::{self, KeySet};
use pki::enrol::jwt::{ClaimPattern, ClaimRule, Issuer, IssuerKind, KeySource, examine};

/// A target's name and function.
pub type Target = (&'static str, fn(&[u8]));

/// All targets of this module.
pub const TARGETS: [Target; 2] = [("jwt", fuzz_jwt), ("jwks", fuzz_jwks)];

const NOW: UnixTime = UnixTime::from_secs(1_795_305_600);
const AUDIENCE: &str = "https://gw.example.com";
/// An Ed25519 key whose secret nobody has.
const KEYS: &str = r#"{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"k","alg":"EdDSA",
    "x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;
const ISSUERS: [(IssuerKind, &str); 5] = [
    (IssuerKind::Github, "https://token.actions.githubusercontent.com"),
    (IssuerKind::Gitlab, "https://gitlab.com"),
    (IssuerKind::Jenkins, "https://jenkins.example.com/oidc"),
    (IssuerKind::Kubernetes, "https://kubernetes.default.svc"),
    (IssuerKind::Generic, "https://ci.example.com"),
];

fn issuers() -> Vec<Issuer> {
    let issuer = |(kind, iss): (IssuerKind, &str)| {
        let keys = KeySource::File("/nowhere".into());
        let mut issuer = Issuer::new(kind.name(), kind, iss, AUDIENCE, keys);
        issuer.algorithms = pki::JwtAlgorithm::ALL.to_vec();
        issuer
    };
    ISSUERS.into_iter().map(issuer).collect()
}

fn rules() -> Vec<ClaimRule> {
    let rule = |(kind, _): (IssuerKind, &str)| {
        let patterns = ["repo:octo/*", "*a*b*"].map(ClaimPattern::new).to_vec();
        let claims = BTreeMap::from([("sub".to_owned(), patterns)]);
        let (role, issuer) = ("builder".to_owned(), kind.name().to_owned());
        ClaimRule { role, number: 1, issuer, claims, manual: None }
    };
    ISSUERS.into_iter().map(rule).collect()
}

/// A token: nothing is accepted that the key did not sign, and what is told stays short.
pub fn fuzz_jwt(data: &[u8]) {
    let Ok(token) = std::str::from_utf8(data) else { return };
    let set = KeySet::parse(KEYS.as_bytes()).expect("the key is one");
    let keys = |_: &Issuer| Ok(Cow::Borrowed(&set));
    let (trace, judged) = examine(&issuers(), &rules(), keys, token, None, NOW);
    let refusal = judged.expect_err("nobody can sign with this key");
    assert!(trace.failed().is_some(), "{refusal:?}");
    assert!(refusal.detail.chars().count() <= 601);
    assert!(refusal.problem().to_string().len() < 64 * 1024);
}

/// A key set, or the discovery document that names it.
pub fn fuzz_jwks(data: &[u8]) {
    if let Ok(set) = KeySet::parse(data) {
        assert!(!set.is_empty() && set.len() <= 64);
    }
    if let Ok(uri) = jwks::jwks_uri(data, ISSUERS[0].1) {
        assert!(uri.starts_with("https://"));
    }
}

/// Seeds: name, target and octets that reach deep.
pub fn seeds() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    // {"alg":"EdDSA","kid":"k"} . {"iss":"https://ci.example.com","sub":"ab","aud":...} . 64 zeros
    let token = format!(
        "eyJhbGciOiJFZERTQSIsImtpZCI6ImsifQ.eyJpc3MiOiJodHRwczovL2NpLmV4YW1wbGUuY29tIiwic3ViIjoiYW\
         IiLCJhdWQiOiJodHRwczovL2d3LmV4YW1wbGUuY29tIiwiZXhwIjoxNzk1MzA1NzAwfQ.{}",
        "A".repeat(86)
    );
    let set = r#"{"keys":[{"kty":"RSA","n":"AQAB","e":"AQAB"},{"kty":"EC","crv":"P-256","x":"","y":""}]}"#;
    let document =
        format!(r#"{{"issuer":"{}","jwks_uri":"https://keys.example.com/x"}}"#, ISSUERS[0].1);
    vec![
        ("jwt", "eddsa", token.into_bytes()),
        ("jwks", "usable", KEYS.as_bytes().to_vec()),
        ("jwks", "unusable", set.as_bytes().to_vec()),
        ("jwks", "discovery", document.into_bytes()),
    ]
}
