//! Keys made here for clients that cannot make one (RFC 7030 4.4).
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;
#[path = "../../tests/src/oidc.rs"]
#[allow(dead_code, unreachable_pub)]
mod oidc;

use std::sync::Arc;

use common::*;
use pki::signer::KeyKind;
use pki::store::MemoryStore;
use pki::*;

const PATH: &str = "/.well-known/est/serverkeygen";

/// Builders may have keys made, deployers make them.
fn authority_for(keys: &[KeyKind]) -> Authority {
    let mut settings = github_settings();
    let profile =
        RoleProfile { server_keys: true, keys: keys.to_vec(), ..RoleProfile::new("runners") };
    settings.roles.insert("builder".to_owned(), profile);
    let store = Arc::new(MemoryStore::new());
    Authority::with_store(store, &[7; 32], Options::new(settings), NOW).unwrap()
}

fn ask(authority: &Authority, role: &str, secret: &TokenSecret, body: &[u8]) -> EstReply {
    let credentials = basic(role, secret.expose());
    authority.est(&est_request(PATH, Some(&credentials), body), after(1))
}

/// The parts of a multipart/mixed answer: type and decoded content.
fn parts(reply: &EstReply) -> Vec<(String, Vec<u8>)> {
    assert_eq!(reply.status, 200, "{}", String::from_utf8_lossy(&reply.body));
    let (_, kind) = reply.headers.iter().find(|(name, _)| *name == "Content-Type").unwrap();
    let boundary = kind.strip_prefix("multipart/mixed; boundary=").unwrap();
    assert!(reply.headers.contains(&("Cache-Control", "no-store".to_owned())));
    let text = std::str::from_utf8(&reply.body).unwrap();
    let (inner, end) = text.split_once(&format!("--{boundary}--")).unwrap();
    assert_eq!(end, "\r\n");
    let part = |part: &str| {
        let (head, body) = part.split_once("\r\n\r\n").unwrap();
        let kind = head.lines().find_map(|line| line.strip_prefix("Content-Type: ")).unwrap();
        assert!(head.contains("Content-Transfer-Encoding: base64"));
        (kind.to_owned(), unbase64(body.trim_end().as_bytes()))
    };
    inner.split(&format!("--{boundary}\r\n")).skip(1).map(part).collect()
}

fn problem(reply: &EstReply) -> String {
    String::from_utf8_lossy(&reply.body).into_owned()
}

#[test]
fn the_key_comes_with_its_certificate_in_two_parts() {
    for kind in KeyKind::ALL {
        let authority = authority_for(&[kind]);
        let secret = token(&authority);
        // The key of the request is not looked at, nor is its signature.
        let mut request = Client::new().csr_der();
        *request.last_mut().unwrap() ^= 1;
        let body = base64(&request).into_bytes();
        let reply = ask(&authority, "builder", &secret, &body);
        let parts = parts(&reply);
        let kinds: Vec<&str> = parts.iter().map(|(kind, _)| kind.as_str()).collect();
        assert_eq!(kinds, ["application/pkcs8", "application/pkcs7-mime; smime-type=certs-only"]);
        let public = openssl(&["pkey", "-inform", "DER", "-pubout"], &parts[0].1);
        let EstOutcome::Issued { lease_id, serial, replayed: false, .. } = &reply.outcome else {
            panic!("{:?}", reply.outcome)
        };
        let issued = authority.certificate(&serial.parse().unwrap()).unwrap().unwrap().der;
        let certified = openssl(&["x509", "-inform", "DER", "-pubkey", "-noout"], &issued);
        assert_eq!(public, certified, "{kind}");
        let sent = openssl(&["pkcs7", "-inform", "DER", "-print_certs"], &parts[1].1);
        let pem = openssl(&["x509", "-inform", "DER"], &issued);
        assert!(sent.contains(&pem), "{kind}: {sent}");
        let lease = authority.lease(lease_id).unwrap().unwrap();
        assert_eq!((lease.state, lease.role.as_str()), (LeaseState::Issued, "builder"));
        if kind == KeyKind::Ed25519 {
            // Version 1 without the public key (RFC 8410 7), which every reader knows.
            assert_eq!((parts[0].1.len(), &parts[0].1[..5]), (48, &[0x30, 0x2e, 2, 1, 0][..]));
        }
        let trail = authority.audit(0, 100).unwrap();
        let created = trail.iter().find(|record| record.event.action == "lease.create").unwrap();
        assert_eq!(created.event.reason.as_deref(), Some("server_keygen"));
    }
}

#[test]
fn a_key_is_given_once() {
    let authority = authority_for(&[]);
    let secret = token(&authority);
    let body = Client::new().body();
    assert_eq!(parts(&ask(&authority, "builder", &secret, &body)).len(), 2);
    let again = ask(&authority, "builder", &secret, &body);
    assert_eq!(again.status, 409);
    assert!(problem(&again).contains("ask for a new token"), "{}", problem(&again));
    assert_eq!(authority.leases(true).unwrap().len(), 1);
    let spend = &authority.tokens().unwrap()[0].spends[0];
    assert!(spend.made_here);
    // Who has the key may repeat its enrolment like anybody else.
    let other = authority.enrol_with_token(
        "builder",
        secret.expose(),
        &Client::new().csr(),
        None,
        after(2),
    );
    assert_eq!(other.unwrap_err().code, RefusalCode::TokenSpent);
}

#[test]
fn nothing_of_the_key_is_on_record_or_in_the_trail() {
    let store = Arc::new(MemoryStore::new());
    let mut settings = settings();
    settings.roles.get_mut("builder").unwrap().server_keys = true;
    let options = Options::new(settings);
    let authority = Authority::with_store(store.clone(), &[7; 32], options, NOW).unwrap();
    let secret = token(&authority);
    let body = Client::new().body();
    let parts = parts(&ask(&authority, "builder", &secret, &body));
    // RFC 5915 3: the scalar of 32 octets follows version 1.
    let pkcs8 = &parts[0].1;
    let at = pkcs8.windows(5).position(|window| window == [2, 1, 1, 4, 0x20]).unwrap() + 5;
    let scalar = &pkcs8[at..at + 32];
    let mut all: Vec<u8> = format!("{:?}", authority.audit(0, 1_000).unwrap()).into_bytes();
    for (key, entry) in store::Store::range(store.as_ref(), "", None, 10_000).unwrap() {
        all.extend([key.as_bytes(), b"\n", &entry.value, b"\n"].concat());
    }
    let is_there = |octets: &[u8]| {
        let list: Vec<String> = octets.iter().map(u8::to_string).collect();
        let hex: String = octets.iter().map(|octet| format!("{octet:02x}")).collect();
        let mut forms = vec![octets.to_vec(), hex.into_bytes(), list.join(",").into_bytes()];
        // Within something larger in base64 it begins at one of three places of a group.
        forms.extend((0..3).map(|skip| {
            let rest = &octets[skip..];
            base64(&rest[..rest.len() / 3 * 3]).into_bytes()
        }));
        forms.iter().any(|form| all.windows(form.len()).any(|window| window == form))
    };
    // What is kept of it is found so: its public key within the certificate.
    let point = pkcs8.windows(4).position(|window| window == [3, 0x42, 0, 4]).unwrap() + 4;
    assert!(is_there(&pkcs8[point..point + 64]));
    assert!(!is_there(scalar));
}

#[test]
fn roles_that_do_not_allow_it_make_no_key_and_spend_nothing() {
    let authority = authority_for(&[]);
    let create = TokenCreate::new("deployer");
    let secret = authority.token_create(&create, &OPERATOR, NOW).unwrap().1;
    let body = Client::new().body();
    let reply = ask(&authority, "deployer", &secret, &body);
    assert_eq!(reply.status, 403);
    assert!(problem(&reply).contains("allow_server_keygen"), "{}", problem(&reply));
    assert!(authority.tokens().unwrap()[0].spends.is_empty());
    assert!(authority.leases(true).unwrap().is_empty());
    // Strangers learn no more than that they are strangers.
    let stranger = authority.est(&est_request(PATH, None, &body), NOW);
    assert_eq!(stranger.status, 401);
}

#[test]
fn a_token_bound_to_a_key_gets_no_other() {
    let authority = authority_for(&[]);
    let bound_spki = Some(Client::new().csr().spki_sha256);
    let create = TokenCreate { bound_spki, ..TokenCreate::new("builder") };
    let secret = authority.token_create(&create, &OPERATOR, NOW).unwrap().1;
    let reply = ask(&authority, "builder", &secret, &Client::new().body());
    assert_eq!(reply.status, 403);
    assert!(problem(&reply).contains("which its client has"), "{}", problem(&reply));
}

#[test]
fn encryption_beyond_tls_is_refused_by_name() {
    let authority = authority_for(&[]);
    let secret = token(&authority);
    for oid in [&[1, 2, 840, 113_549, 1, 9, 16, 2, 37], &[1, 2, 840, 113_549, 1, 9, 16, 2, 54]] {
        let values = vec![0x31, 0x04, 0x04, 0x02, 0xab, 0xcd];
        let attribute = rcgen::Attribute { oid, values };
        let params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        let key = Client::new().key;
        let request = params.serialize_request_with_attributes(&key, vec![attribute]).unwrap();
        let reply = ask(&authority, "builder", &secret, base64(request.der()).as_bytes());
        assert_eq!(reply.status, 400);
        assert!(problem(&reply).contains("DecryptKeyIdentifier"), "{}", problem(&reply));
    }
    let reply = ask(&authority, "builder", &secret, b"AAAA");
    assert_eq!(reply.status, 400);
    assert_eq!(ask(&authority, "builder", &secret, &Client::new().body()).status, 200);
}

#[test]
fn a_kind_the_role_does_not_take_is_not_made() {
    let authority = authority_for(&[KeyKind::EcdsaP384]);
    let secret = token(&authority);
    let keyed =
        |kind| authority.enrol_with_token_keyed("builder", secret.expose(), Some(kind), None, NOW);
    let refusal = keyed(KeyKind::Rsa3072).unwrap_err();
    assert_eq!(refusal.code, RefusalCode::UnacceptableKey);
    let (_, key) = keyed(KeyKind::EcdsaP384).unwrap();
    let shown = format!("{key:?}");
    let secret_part = base64(&key.pkcs8()[30..60]);
    assert!(!shown.contains(&secret_part) && shown.contains("bytes sealed"), "{shown}");
    let pem = key.pem();
    assert!(pem.lines().all(|line| line.len() <= 64) && pem.ends_with("KEY-----\n"));
    assert!(openssl(&["pkey", "-noout", "-text"], pem.as_bytes()).contains("P-384"));
}

/// An authority with the key of an issuer whose jobs may have keys made.
fn for_jobs(change: impl FnOnce(&mut Settings)) -> (Authority, oidc::IssuerKey) {
    let authority = authority_for(&[]);
    let key = oidc::IssuerKey::eddsa("k");
    let mut settings = (*authority.settings()).clone();
    settings.issuers[0].algorithms = vec![JwtAlgorithm::EdDsa];
    change(&mut settings);
    let issuer = settings.issuers[0].clone();
    authority.reconfigure(settings).unwrap();
    authority.jwt_keys_fetched(&issuer, Ok(oidc::jwks(&[&key])), NOW).unwrap();
    (authority, key)
}

#[test]
fn of_requests_at_one_time_one_gets_a_key_and_no_other_is_a_thief() {
    let (authority, key) = for_jobs(|_| {});
    let jwt = key.sign(&oidc::github(NOW.secs(), AUDIENCE, "parallel"));
    let accepted = authority.jwt_admit(None, &jwt, None, after(1)).unwrap();
    let secret = token(&authority);
    let start = std::sync::Barrier::new(8);
    let outcomes: Vec<Result<(), RefusalCode>> = std::thread::scope(|scope| {
        let ask = |n: usize| {
            let (authority, accepted, secret, start) = (&authority, &accepted, &secret, &start);
            scope.spawn(move || {
                start.wait();
                let kind = Some(KeyKind::EcdsaP256);
                let made = match n % 2 {
                    0 => authority.enrol_accepted_keyed(accepted, kind, None, after(1)),
                    _ => authority.enrol_with_token_keyed(
                        "builder",
                        secret.expose(),
                        kind,
                        None,
                        after(1),
                    ),
                };
                made.map(drop).map_err(|refusal| refusal.code)
            })
        };
        let asked: Vec<_> = (0..8).map(ask).collect();
        asked.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 2);
    let refused: Vec<_> = outcomes.into_iter().filter_map(Result::err).collect();
    assert_eq!(refused, [RefusalCode::KeyNotRepeated; 6]);
    let trail = authority.audit(0, 1_000).unwrap();
    assert!(trail.iter().all(|record| record.event.action != "token.replay"));
}

#[test]
fn who_may_open_nothing_has_no_key_made() {
    let (authority, key) = for_jobs(|settings| settings.limits.leases_per_job = 1);
    let ask = |jti: &str, now| {
        let jwt = key.sign(&oidc::github(NOW.secs(), AUDIENCE, jti));
        let accepted = authority.jwt_admit(None, &jwt, None, now).unwrap();
        authority.enrol_accepted_keyed(&accepted, None, None, now).map(|(enrolled, _)| enrolled)
    };
    let opened = ask("a", after(1)).unwrap().lease.id;
    assert_eq!(ask("b", after(1)).unwrap_err().code, RefusalCode::TooManyLeases);
    // That has spent nothing; a token that opened a lease for a client's own key makes none.
    authority.release(&opened, "client", &OPERATOR, after(2)).unwrap();
    ask("b", after(3)).unwrap();
    let jwt = key.sign(&oidc::github(NOW.secs(), AUDIENCE, "own"));
    let selector =
        RevokeSelector::Run { run: "7001".to_owned(), issuer: Some("github".to_owned()) };
    let reason = RevocationReason::PrivilegeWithdrawn;
    let outcome = authority.revoke(&selector, reason, &OPERATOR, after(4)).unwrap();
    assert_eq!(ask("c", after(5)).unwrap_err().code, RefusalCode::RunBarred);
    assert!(!outcome.barred.is_empty());
    let bar = authority.bars().unwrap().into_iter().find(|bar| matches!(bar.what, Barred::Run(_)));
    authority.lift_bar(&bar.unwrap().what.id(), &OPERATOR, after(6)).unwrap();
    authority.enrol_with_jwt(None, &jwt, &Client::new().csr(), None, after(7)).unwrap();
    let spent = ask("own", after(8)).unwrap_err();
    assert_eq!(spent.code, RefusalCode::TokenReplay);
    assert!(spent.detail.contains("for a key that is made here"), "{spent}");
}

#[test]
fn a_job_has_its_key_made_once() {
    let (authority, key) = for_jobs(|_| {});
    let jwt = key.sign(&oidc::github(NOW.secs(), AUDIENCE, "made"));
    let body = base64(&Client::new().csr_with_password(&jwt)).into_bytes();
    let reply = authority.est(&est_request(PATH, None, &body), after(1));
    assert_eq!(parts(&reply).len(), 2);
    let again = authority.est(&est_request(PATH, None, &body), after(2));
    assert_eq!(again.status, 409, "{}", problem(&again));
    let lease = authority.lease_of_jwt(&jwt, after(3)).unwrap();
    assert_eq!(lease.ci_ref.run_id.as_deref(), Some("7001"));
}
