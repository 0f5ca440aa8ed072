//! Enrolment from token to certificate, over EST and directly.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::sync::{Arc, Barrier};
use std::time::Duration;

use common::*;
use pki::store::SqliteStore;
use pki::*;
use x509_parser::prelude::*;

fn refusal(reply: &EstReply) -> RefusalCode {
    match &reply.outcome {
        EstOutcome::Refused(refusal) => refusal.code,
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn a_token_opens_a_lease_over_est() {
    let authority = authority();
    let secret = token(&authority);
    let client = Client::new();
    let auth = basic("builder", secret.expose());
    let body = client.body();
    let reply =
        authority.est(&est_request("/.well-known/est/simpleenroll", Some(&auth), &body), NOW);
    assert_eq!(reply.status, 200, "{reply:?}");
    assert!(!reply.body.contains(&b'\n'), "some clients do not take wrapped base64");
    let EstOutcome::Issued { lease_id, serial, role, replayed, renewed } = &reply.outcome else {
        panic!("{reply:?}")
    };
    assert_eq!((role.as_str(), *replayed, *renewed), ("builder", false, false));

    let printed = openssl(&["pkcs7", "-inform", "DER", "-print_certs"], &unbase64(&reply.body));
    // Later versions of OpenSSL print names without the spaces.
    let names = printed.replace(" = ", "=");
    assert!(names.contains(&format!("CN={lease_id}, O=ci.example.com")), "{printed}");
    assert!(printed.contains("Runnel Issuing CA"), "{printed}");

    let lease = authority.lease(lease_id).unwrap().unwrap();
    assert_eq!(lease.state, LeaseState::Issued);
    assert_eq!(
        lease.addresses,
        ["10.77.0.2", "fd77::2"].map(|a| a.parse::<std::net::IpAddr>().unwrap())
    );
    assert_eq!(lease.hard_cap, after(86_400));
    assert_eq!(lease.expires, after(3_600));
    let serial: Serial = serial.parse().unwrap();
    assert_eq!(authority.lease_by_serial(None, &serial).unwrap(), Some(lease.clone()));
    assert_eq!(authority.leases_by_spki(&client.csr().spki_sha256).unwrap(), [lease]);
    let spent = &authority.tokens().unwrap()[0];
    assert_eq!(spent.state(NOW), TokenState::Spent);
}

#[test]
fn the_certificate_says_what_the_server_composed() {
    let authority = authority_with_status_url();
    let (_, enrolled) = enrolled(&authority);
    let (_, certificate) = X509Certificate::from_der(&enrolled.certificate).unwrap();
    let lease = &enrolled.lease;
    assert_eq!(lease.subject, format!("CN={}, O=ci.example.com", lease.id));
    let record = authority.certificate(&lease.certs[0].serial).unwrap().unwrap();
    assert_eq!(
        record.sans,
        [
            format!("DNS:{}.builder.runners.ci.example.com", lease.id),
            format!("URI:spiffe://ci.example.com/role/builder/{}", lease.id),
        ]
    );
    assert!(!certificate.is_ca());
    let eku = certificate.extended_key_usage().unwrap().unwrap().value;
    assert!(eku.client_auth && !eku.server_auth && !eku.any && eku.other.is_empty());
    let usage = certificate.key_usage().unwrap().unwrap().value;
    assert!(usage.digital_signature() && !usage.key_cert_sign());
    assert_eq!(certificate.validity().not_before.timestamp(), NOW.secs() - 60);
    assert_eq!(certificate.validity().not_after.timestamp(), NOW.secs() + 3_600);
    assert_eq!(certificate.raw_serial().len(), 16);

    let text = openssl(&["x509", "-inform", "DER", "-noout", "-text"], &enrolled.certificate);
    for expected in [
        "Authority Key Identifier",
        "Subject Key Identifier",
        "OCSP - URI:http://gw.example.com:8080/ocsp",
        "CA Issuers - URI:http://gw.example.com:8080/issuing.cer",
        "URI:http://gw.example.com:8080/crl/issuing.crl",
        "CA:FALSE",
    ] {
        assert!(text.contains(expected), "{expected} not in {text}");
    }
}

fn authority_with_status_url() -> Authority {
    let mut settings = settings();
    settings.status_url = Some("http://gw.example.com:8080/".to_owned());
    let store = Arc::new(pki::store::MemoryStore::new());
    Authority::with_store(store, &[7; 32], Options::new(settings), NOW).unwrap()
}

#[test]
fn openssl_verifies_what_was_issued() {
    let directory = tempfile::tempdir().unwrap();
    let authority = authority();
    let (_, enrolled) = enrolled(&authority);
    let file = |name: &str, content: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let root = file("root.pem", &authority.root_pem());
    let issuing = file("issuing.pem", &authority.issuing_pem());
    let crl = authority.crl(NOW).unwrap();
    let crl = file("crl.pem", &openssl(&["crl", "-inform", "DER"], &crl.der));
    let leaf = file("leaf.pem", &openssl(&["x509", "-inform", "DER"], &enrolled.certificate));
    let at = after(60).secs().to_string();
    let verify = [
        "verify",
        "-attime",
        &at,
        "-x509_strict",
        "-purpose",
        "sslclient",
        "-crl_check",
        "-CRLfile",
        &crl,
        "-CAfile",
        &root,
        "-untrusted",
        &issuing,
        &leaf,
    ];
    assert!(openssl(&verify, b"").contains(": OK"));
}

#[test]
fn cacerts_has_the_root_and_the_issuing_ca() {
    let authority = authority();
    for path in ["/.well-known/est/cacerts", "/ci/.well-known/est/cacerts"] {
        let reply = authority.est(&est_request(path, None, b""), NOW);
        assert_eq!(reply.status, 200);
        let printed = openssl(&["pkcs7", "-inform", "DER", "-print_certs"], &unbase64(&reply.body));
        assert_eq!(printed.matches("BEGIN CERTIFICATE").count(), 2);
        assert!(printed.contains("Root CA") && printed.contains("Issuing CA"));
    }
}

#[test]
fn the_same_key_gets_the_same_answer_for_five_minutes() {
    let authority = authority();
    let secret = token(&authority);
    let client = Client::new();
    let first = client.enrol(&authority, &secret, NOW);
    let again = client.enrol(&authority, &secret, after(299));
    assert!(again.replayed && !first.replayed);
    assert_eq!((&again.lease, &again.certificate), (&first.lease, &first.certificate));
    let late =
        authority.enrol_with_token("builder", secret.expose(), &client.csr(), None, after(300));
    assert_eq!(late.unwrap_err().code, RefusalCode::TokenSpent);
    assert_eq!(authority.leases(true).unwrap().len(), 1);
}

#[test]
fn another_key_is_told_when_and_by_whom_the_token_was_spent() {
    let authority = authority();
    let secret = token(&authority);
    let first = Client::new();
    first.enrol(&authority, &secret, NOW);
    let refused = authority
        .enrol_with_token("builder", secret.expose(), &Client::new().csr(), None, after(5))
        .unwrap_err();
    assert_eq!(refused.code, RefusalCode::TokenSpent);
    let expected = format!("already spent at {NOW} by key sha256:{}", first.csr().spki_sha256);
    assert!(refused.detail.contains(&expected), "{refused}");
    let last = authority.audit(0, 100).unwrap().pop().unwrap().event;
    assert_eq!((last.action.as_str(), last.outcome), ("token.use", AuditOutcome::Failure));
    assert_eq!(last.reason.as_deref(), Some("token_spent"));
}

#[test]
fn every_refusal_has_its_own_reason() {
    let authority = authority();
    let create = |change: &dyn Fn(&mut TokenCreate)| {
        let mut create = TokenCreate::new("builder");
        change(&mut create);
        authority.token_create(&create, &OPERATOR, NOW).unwrap()
    };
    let client = Client::new();
    let attempt = |role: &str, secret: &str, from: &str, secs| {
        let from = Some(from.parse().unwrap());
        authority
            .enrol_with_token(role, secret, &client.csr(), from, after(secs))
            .map(|enrolled| enrolled.lease.id)
            .map_err(|refusal| refusal.code)
    };
    let (token, secret) = create(&|_| {});
    let wrong = format!("{}-{}", token.id, "0".repeat(26));
    let (revoked, revoked_secret) = create(&|_| {});
    authority.token_revoke(&revoked.id, &OPERATOR, NOW).unwrap();
    let (_, bound_net) = create(&|c| c.bound_net = Some("192.0.2.0/24".parse().unwrap()));
    let (_, bound_key) = create(&|c| c.bound_spki = Some("ab".repeat(32)));
    let here = "192.0.2.1";
    use RefusalCode as Code;
    for (expected, role, secret, from, secs) in [
        (Code::TokenUnknown, "builder", "", here, 0),
        (Code::TokenUnknown, "builder", "hunter2", here, 0),
        (Code::TokenUnknown, "builder", "zzzzzz-0000", here, 0),
        (Code::TokenUnknown, "builder", wrong.as_str(), here, 0),
        (Code::TokenWrongRole, "deployer", secret.expose(), here, 0),
        (Code::TokenExpired, "builder", secret.expose(), here, 900),
        (Code::TokenRevoked, "builder", revoked_secret.expose(), here, 0),
        (Code::TokenBoundElsewhere, "builder", bound_net.expose(), "198.51.100.1", 0),
        (Code::TokenBoundElsewhere, "builder", bound_key.expose(), here, 0),
    ] {
        assert_eq!(attempt(role, secret, from, secs), Err(expected));
    }
    assert_eq!(authority.leases(true).unwrap(), []);
    assert!(attempt("builder", secret.expose(), here, 899).is_ok());
    // An IPv4 client of a dual-stack socket is the same client.
    assert!(attempt("builder", bound_net.expose(), "::ffff:192.0.2.9", 0).is_ok());
}

#[test]
fn tokens_are_short_hashed_and_printed_once() {
    let authority = authority();
    let (token, secret) =
        authority.token_create(&TokenCreate::new("builder"), &OPERATOR, NOW).unwrap();
    let credentials = format!("builder:{}", secret.expose());
    assert!(credentials.len() <= 60, "stock clients corrupt more than 174 octets");
    assert!(!format!("{secret:?}").contains(secret.expose()));
    assert!(!serde_json::to_string(&token).unwrap().contains(&secret.expose()[7..]));
    assert_eq!(authority.token_revoke(secret.expose(), &OPERATOR, NOW).unwrap().id, token.id);
    let wrong = [
        TokenCreate { role: "nobody".to_owned(), ..TokenCreate::new("") },
        TokenCreate { ttl: Duration::ZERO, ..TokenCreate::new("builder") },
        TokenCreate { uses: 0, ..TokenCreate::new("builder") },
        TokenCreate { bound_spki: Some("xyz".to_owned()), ..TokenCreate::new("builder") },
    ];
    for create in wrong {
        assert!(matches!(authority.token_create(&create, &OPERATOR, NOW), Err(Error::Invalid(_))));
    }
}

#[test]
fn a_token_of_several_uses_opens_that_many_leases() {
    let authority = authority();
    let create = TokenCreate { uses: 2, ..TokenCreate::new("builder") };
    let (_, secret) = authority.token_create(&create, &OPERATOR, NOW).unwrap();
    let first = Client::new().enrol(&authority, &secret, NOW);
    let second = Client::new().enrol(&authority, &secret, NOW);
    assert_ne!(first.lease.id, second.lease.id);
    assert_ne!(first.lease.addresses, second.lease.addresses);
    let third =
        authority.enrol_with_token("builder", secret.expose(), &Client::new().csr(), None, NOW);
    assert_eq!(third.unwrap_err().code, RefusalCode::TokenSpent);
}

#[test]
fn a_released_lease_is_not_handed_out_again_by_its_token() {
    let authority = authority();
    let secret = token(&authority);
    let client = Client::new();
    let lease = client.enrol(&authority, &secret, NOW).lease;
    authority.release(&lease.id, "client", &OPERATOR, after(1)).unwrap();
    let refused =
        authority.enrol_with_token("builder", secret.expose(), &client.csr(), None, after(2));
    assert_eq!(refused.unwrap_err().code, RefusalCode::LeaseEnded);
}

/// Races `contenders` enrolments; returns who won what.
fn race(
    authorities: &[Arc<Authority>],
    secret: &TokenSecret,
    contenders: usize,
) -> Vec<Result<Enrolled, Refusal>> {
    let start = Arc::new(Barrier::new(contenders));
    let threads: Vec<_> = (0..contenders)
        .map(|number| {
            let authority = Arc::clone(&authorities[number % authorities.len()]);
            let (start, secret) = (Arc::clone(&start), secret.clone());
            std::thread::spawn(move || {
                let csr = Client::new().csr();
                start.wait();
                authority.enrol_with_token("builder", secret.expose(), &csr, None, NOW)
            })
        })
        .collect();
    threads.into_iter().map(|thread| thread.join().unwrap()).collect()
}

fn assert_one_winner(authority: &Authority, results: Vec<Result<Enrolled, Refusal>>) {
    let (won, lost): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
    assert_eq!(won.len(), 1);
    for refused in lost {
        assert_eq!(refused.unwrap_err().code, RefusalCode::TokenSpent);
    }
    let leases = authority.leases(true).unwrap();
    assert_eq!(leases.len(), 1);
    assert_eq!(authority.certificates().unwrap().len(), 1);
    assert_eq!(leases[0], won.into_iter().next().unwrap().unwrap().lease);
}

#[test]
fn a_hundred_concurrent_spends_open_one_lease() {
    let directory = tempfile::tempdir().unwrap();
    let authority =
        Arc::new(Authority::open(directory.path(), Options::new(settings()), NOW).unwrap());
    let secret = token(&authority);
    let results = race(std::slice::from_ref(&authority), &secret, 100);
    assert_one_winner(&authority, results);
}

/// Two gateways over one store, with the pools the role has on each.
fn gateways(directory: &std::path::Path, pools: [&str; 2]) -> Vec<Arc<Authority>> {
    let store = Arc::new(SqliteStore::open(&directory.join("shared.db")).unwrap());
    let open = |pool: &str| {
        let mut settings = settings();
        let other = PoolConfig::new(vec!["10.99.0.0/24".parse().unwrap()]);
        settings.pools.insert("other".to_owned(), other);
        settings.roles.insert("builder".to_owned(), RoleProfile::new(pool));
        let store = Arc::clone(&store) as Arc<dyn store::Store>;
        Arc::new(Authority::with_store(store, &[7; 32], Options::new(settings), NOW).unwrap())
    };
    pools.map(open).into()
}

/// The pools differ, so nothing but the token's own record decides the race.
#[test]
fn two_gateways_on_one_store_do_not_spend_a_token_twice() {
    let directory = tempfile::tempdir().unwrap();
    let gateways = gateways(directory.path(), ["runners", "other"]);
    for round in 0..20 {
        let secret = token(&gateways[0]);
        let results = race(&gateways, &secret, 4);
        assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1, "round {round}");
    }
    assert_eq!(gateways[1].leases(false).unwrap().len(), 20);
}

/// Each gateway's book starts at the same address and knows nothing of the other's.
#[test]
fn two_gateways_on_one_store_do_not_lease_an_address_twice() {
    const LEASES: usize = 40;
    let directory = tempfile::tempdir().unwrap();
    let gateways = gateways(directory.path(), ["runners", "runners"]);
    let create = TokenCreate { uses: 1, ..TokenCreate::new("builder") };
    let start = Arc::new(Barrier::new(LEASES));
    let threads: Vec<_> = (0..LEASES)
        .map(|number| {
            let gateway = Arc::clone(&gateways[number % 2]);
            let (_, secret) = gateway.token_create(&create, &OPERATOR, NOW).unwrap();
            let start = Arc::clone(&start);
            std::thread::spawn(move || {
                start.wait();
                Client::new().enrol(&gateway, &secret, NOW).lease.addresses
            })
        })
        .collect();
    let addresses: std::collections::BTreeSet<_> =
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
    assert_eq!(addresses.len(), 2 * LEASES);
}

#[test]
fn paths_labels_and_methods() {
    let authority = authority();
    let secret = token(&authority);
    let body = Client::new().body();
    let auth = basic("builder", secret.expose());
    let post = |path: &str, auth: Option<&str>| authority.est(&est_request(path, auth, &body), NOW);
    use RefusalCode as Code;
    for (code, path) in [
        (Code::NotFound, "/"),
        (Code::NotFound, "/.well-known/est/"),
        (Code::NotFound, "/.well-known/est/unknown"),
        (Code::NotFound, "/a/.well-known/est/b/simpleenroll"),
        (Code::MethodNotAllowed, "/.well-known/est/cacerts"),
        (Code::NotImplemented, "/.well-known/est/fullcmc"),
        (Code::ServerKeysOff, "/.well-known/est/serverkeygen"),
        (Code::TokenWrongRole, "/.well-known/est/deployer/simpleenroll"),
        (Code::TokenWrongRole, "/deployer/.well-known/est/simpleenroll"),
        (Code::CredentialsMissing, "/.well-known/est/simplereenroll"),
    ] {
        let reply = post(path, Some(&auth));
        assert_eq!(refusal(&reply), code, "{path}");
        assert_eq!(reply.status, code.status());
        let problem: serde_json::Value = serde_json::from_slice(&reply.body).unwrap();
        assert_eq!(problem["status"], reply.status);
    }
    for header in [None, Some("Bearer abc"), Some("Basic ???"), Some("Basic"), Some("Basic YQ==")] {
        let reply = post("/.well-known/est/simpleenroll", header);
        assert_eq!((refusal(&reply), reply.status), (Code::CredentialsMissing, 401));
        assert!(reply.headers.iter().any(|(name, _)| *name == "WWW-Authenticate"));
    }
    assert_eq!(
        authority.est(&est_request("/.well-known/est/csrattrs", None, b""), NOW).status,
        204
    );
    assert_eq!(post("/builder/.well-known/est/simpleenroll", Some(&auth)).status, 200);
    // The role may come from the label alone.
    let secret = token(&authority);
    let anonymous = basic("", secret.expose());
    assert_eq!(post("/.well-known/est/builder/simpleenroll", Some(&anonymous)).status, 200);
}

#[test]
fn the_client_learns_nothing_about_tokens_it_cannot_present() {
    let authority = authority();
    let secret = token(&authority);
    let id = secret.expose().split('-').next().unwrap();
    let body = Client::new().body();
    let detail = |password: &str| {
        let auth = basic("builder", password);
        let reply =
            authority.est(&est_request("/.well-known/est/simpleenroll", Some(&auth), &body), NOW);
        serde_json::from_slice::<serde_json::Value>(&reply.body).unwrap()["detail"].clone()
    };
    assert_eq!(detail("zzzzzz-000"), detail(&format!("{id}-000")));
}

#[test]
fn exhausted_pools_answer_503_and_spend_nothing() {
    let mut settings = settings();
    let pool = PoolConfig::new(vec!["10.0.0.0/30".parse().unwrap()]);
    settings.pools.insert("runners".to_owned(), pool);
    let store = Arc::new(store::MemoryStore::new());
    let authority = Authority::with_store(store, &[7; 32], Options::new(settings), NOW).unwrap();
    let (_, first) = enrolled(&authority);
    let secret = token(&authority);
    let auth = basic("builder", secret.expose());
    let client = Client::new();
    let body = client.body();
    let request = est_request("/.well-known/est/simpleenroll", Some(&auth), &body);
    let reply = authority.est(&request, NOW);
    assert_eq!((refusal(&reply), reply.status), (RefusalCode::PoolExhausted, 503));
    assert!(reply.headers.contains(&("Retry-After", "5".to_owned())));

    authority.release(&first.lease.id, "client", &OPERATOR, NOW).unwrap();
    assert_eq!(authority.est(&request, after(599)).status, 503, "the address rests");
    let late = authority.token_create(
        &TokenCreate { ttl: Duration::from_secs(3_600), ..TokenCreate::new("builder") },
        &OPERATOR,
        NOW,
    );
    let second = client.enrol(&authority, &late.unwrap().1, after(600));
    assert_eq!(second.lease.addresses, first.lease.addresses);
}

#[test]
fn renewal_keeps_the_lease_and_may_change_the_key() {
    let authority = authority();
    let (_, first) = enrolled(&authority);
    authority.connected(&first.lease.id, after(10)).unwrap();
    let rekeyed = Client::new();
    let body = rekeyed.body();
    let chain = [first.certificate.clone()];
    let mut request = est_request("/.well-known/est/simplereenroll", None, &body);
    request.client_chain = &chain;
    let reply = authority.est(&request, after(2_400));
    assert_eq!(reply.status, 200, "{reply:?}");
    assert!(matches!(&reply.outcome, EstOutcome::Issued { lease_id, renewed: true, .. }
        if *lease_id == first.lease.id));
    let lease = authority.lease(&first.lease.id).unwrap().unwrap();
    assert_eq!((lease.certs.len(), lease.state), (2, LeaseState::Active));
    assert_eq!(lease.expires, after(2_400 + 3_600));
    assert_eq!(lease.addresses, first.lease.addresses);
    assert_eq!(lease.spki_sha256, rekeyed.csr().spki_sha256);
    assert_eq!(authority.leases_by_spki(&lease.spki_sha256).unwrap().len(), 1);
    assert_eq!(authority.leases_by_spki(&first.lease.spki_sha256).unwrap().len(), 1);
    // The old certificate is over, and so is what its key may do: somebody may have found it.
    let thief = Client::new();
    let body = thief.body();
    let mut request = est_request("/.well-known/est/simplereenroll", None, &body);
    request.client_chain = &chain;
    assert_eq!(refusal(&authority.est(&request, after(5_000))), RefusalCode::CertificateUnusable);
    let held = authority.lease_of_chain(&chain, after(5_000));
    assert_eq!(held.unwrap_err().code, RefusalCode::CertificateUnusable);
}

#[test]
fn renewal_works_until_the_grace_is_over_and_never_after_an_end() {
    let authority = authority();
    let (client, first) = enrolled(&authority);
    authority.connected(&first.lease.id, after(10)).unwrap();
    let chain = [first.certificate.clone()];
    let body = client.body();
    let mut request = est_request("/.well-known/est/simplereenroll", None, &body);
    request.client_chain = &chain;
    // The first renewal in the grace period revives the lapsed lease.
    authority.expire_due(after(3_600)).unwrap();
    let lapsed = authority.lease(&first.lease.id).unwrap().unwrap();
    assert_eq!(lapsed.state, LeaseState::Lapsed);
    assert_eq!(authority.est(&request, after(3_899)).status, 200);

    let (client, second) = enrolled(&authority);
    authority.connected(&second.lease.id, after(10)).unwrap();
    let chain = [second.certificate.clone()];
    let body = client.body();
    let mut request = est_request("/.well-known/est/simplereenroll", None, &body);
    request.client_chain = &chain;
    let late = authority.est(&request, after(3_900));
    assert_eq!(refusal(&late), RefusalCode::LeaseEnded);
    authority.release(&second.lease.id, "admin", &OPERATOR, after(20)).unwrap();
    assert_eq!(refusal(&authority.est(&request, after(30))), RefusalCode::LeaseEnded);
}

#[test]
fn only_the_authoritys_certificates_renew() {
    let (ours, theirs) = (authority(), authority());
    let (client, foreign) = enrolled(&theirs);
    let chain = [foreign.certificate.clone()];
    let body = client.body();
    let mut request = est_request("/.well-known/est/simplereenroll", None, &body);
    request.client_chain = &chain;
    assert_eq!(refusal(&ours.est(&request, after(10))), RefusalCode::CertificateUnusable);
    // The gateway's own certificate has no lease.
    let gateway = ours.server_identity(&ServerNames::new("gw.example.com"), NOW).unwrap();
    let chain = gateway.chain.clone();
    request.client_chain = &chain;
    assert_eq!(refusal(&ours.est(&request, after(10))), RefusalCode::CertificateUnusable);
}
