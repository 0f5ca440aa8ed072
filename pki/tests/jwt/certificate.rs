//! What the certificate of a job says, and how long its lease may last.

use x509_parser::prelude::*;

use super::*;

const ARC: &str = "1.3.6.1.4.1.57264.1.";

/// The claims in a certificate, by number, as whoever reads it finds them.
fn said(certificate: &[u8]) -> BTreeMap<u32, String> {
    let (_, certificate) = X509Certificate::from_der(certificate).unwrap();
    let ours = certificate.extensions().iter().filter_map(|extension| {
        let number = extension.oid.to_id_string().strip_prefix(ARC)?.parse().unwrap();
        assert!(!extension.critical, "nobody need understand it");
        // UTF8String, whose length takes a second octet from 128 on.
        let (head, text) = match extension.value {
            [0x0c, 0x81, length, text @ ..] if *length > 0x7f => (*length, text),
            [0x0c, length, text @ ..] if *length <= 0x7f => (*length, text),
            other => panic!("{number} is {other:02x?}"),
        };
        assert_eq!(usize::from(head), text.len());
        Some((number, String::from_utf8(text.to_vec()).unwrap()))
    });
    ours.collect()
}

fn texts(expected: &[(u32, &str)]) -> BTreeMap<u32, String> {
    expected.iter().map(|(number, text)| (*number, (*text).to_owned())).collect()
}

#[test]
fn the_certificate_of_a_github_job_says_what_sigstores_would() {
    // Sigstore OID information, 1.3.6.1.4.1.57264.1.8 to .23.
    let authority = github();
    let client = Client::new();
    let opened = enrol(&authority, &rsa().sign(&claims("said")), &client).unwrap();
    let workflow = "https://github.com/octo/app/.github/workflows/build.yml@refs/heads/main";
    let expected = texts(&[
        (8, GITHUB),
        (9, workflow),
        (11, "github-hosted"),
        (12, "https://github.com/octo/app"),
        (13, "de3d86d22c6a3dc46c0f1c7a1b0f4f3d3b9a1c55"),
        (14, "refs/heads/main"),
        (15, "123456"),
        (16, "https://github.com/octo"),
        (17, "9919"),
        (18, workflow),
        (20, "push"),
        (21, "https://github.com/octo/app/actions/runs/7001/attempts/1"),
    ]);
    assert_eq!(said(&opened.certificate), expected);
    // The next certificate of the lease says the same; a peer is none the wiser for it.
    let peer = peer(&authority, &opened, after(1));
    let renewed = authority.renew(&peer, &client.csr(), None, after(1)).unwrap();
    assert_eq!(said(&renewed.certificate), expected);
    let with_token = enrolled(&authority).1;
    assert_eq!(said(&with_token.certificate), BTreeMap::new(), "no job, no claims");
}

#[test]
fn the_certificate_of_a_gitlab_job_names_project_and_job() {
    let gitlab = issuer("gitlab", IssuerKind::Gitlab, "https://gitlab.com");
    let rules = vec![rule("builder", "gitlab", &[("project_id", &["20"])])];
    let authority = configured(vec![gitlab], rules, &[rsa()]);
    let environment = json!({"environment": "production", "project_path": "group/sub/app"});
    let token = rsa().sign(&with(oidc::gitlab(NOW.secs(), AUDIENCE, "said"), environment));
    let opened = enrol(&authority, &token, &Client::new()).unwrap();
    let expected = texts(&[
        (8, "https://gitlab.com"),
        (11, "gitlab-hosted"),
        (12, "https://gitlab.com/group/sub/app"),
        (13, "714a629c0b401fdce83e847fc9589983fc6f46bc"),
        (14, "refs/heads/main"),
        (15, "20"),
        (16, "https://gitlab.com/group/sub"),
        (17, "72"),
        (20, "push"),
        (21, "https://gitlab.com/group/sub/app/-/jobs/302"),
        (23, "production"),
    ]);
    assert_eq!(said(&opened.certificate), expected);
}

#[test]
fn a_claim_that_was_too_long_to_be_kept_is_not_said() {
    let authority = github();
    let long = json!({"ref": format!("refs/heads/{}", "x".repeat(300)), "sha": ""});
    let opened = enrol(&authority, &rsa().sign(&with(claims("long"), long)), &Client::new());
    let said = said(&opened.unwrap().certificate);
    assert!(!said.contains_key(&14) && !said.contains_key(&13), "{said:?}");
    assert_eq!(said.get(&15).map(String::as_str), Some("123456"));
}

#[test]
fn a_gitlab_lease_ends_with_its_job() {
    let gitlab = issuer("gitlab", IssuerKind::Gitlab, "https://gitlab.com");
    let rules = vec![rule("builder", "gitlab", &[("project_id", &["20"])])];
    let authority = configured(vec![gitlab], rules, &[rsa()]);
    let lives = |secs: i64, jti: &str| {
        let claims = oidc::gitlab(NOW.secs(), AUDIENCE, jti);
        let token = rsa().sign(&with(claims, json!({"exp": NOW.secs() + secs})));
        enrol(&authority, &token, &Client::new()).unwrap()
    };
    // The token of a job with a timeout lives as long as the job; clocks differ by a minute.
    let timed = lives(1_800, "timed");
    assert_eq!((timed.lease.hard_cap, timed.not_after), (after(1_860), after(1_860)));
    // One of five minutes says nothing about its job.
    let short = lives(300, "short");
    assert_eq!((short.lease.hard_cap, short.not_after), (after(86_400), after(3_600)));
    // The role's own bounds hold all the same.
    assert_eq!(lives(80_000, "long").not_after, after(3_600));
}

#[test]
fn an_issuer_may_name_the_claim_with_the_jobs_end() {
    let mut any = issuer("any", IssuerKind::Generic, "https://any.example.com");
    any.job_deadline = JobDeadline::Claim("job_ends".to_owned());
    let rules = vec![rule("builder", "any", &[("sub", &["a"])])];
    let authority = configured(vec![any], rules, &[rsa()]);
    let ask = |jti: &str, ends: Value| {
        let claims = json!({
            "iss": "https://any.example.com", "aud": AUDIENCE, "sub": "a", "jti": jti,
            "exp": NOW.secs() + 300, "job_ends": ends
        });
        enrol(&authority, &rsa().sign(&with(claims, json!({}))), &Client::new())
    };
    assert_eq!(ask("soon", json!(NOW.secs() + 600)).unwrap().lease.hard_cap, after(660));
    assert_eq!(ask("untold", json!("tomorrow")).unwrap().lease.hard_cap, after(86_400));
    let over = ask("over", json!(NOW.secs() - 60)).unwrap_err();
    assert_eq!(over.code, RefusalCode::JwtExpired);
    assert!(over.detail.contains("the job of the token ended"), "{over}");
    // Refused, it has opened nothing, and no address is gone.
    assert_eq!(authority.leases(true).unwrap().len(), 2);
}
