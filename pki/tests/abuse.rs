//! What a client with a valid token or certificate, or a stranger, can make the authority do.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::*;
use pki::*;

fn refusals(authority: &Authority) -> Vec<AuditEvent> {
    let all = authority.audit(0, 10_000).unwrap().into_iter().map(|record| record.event);
    all.filter(|event| event.outcome == AuditOutcome::Failure).collect()
}

#[test]
fn a_spent_token_does_not_fill_the_audit_log() {
    let authority = authority();
    let secret = token(&authority);
    Client::new().enrol(&authority, &secret, NOW);
    let csr = Client::new().csr();
    let role = "b".repeat(48_000);
    let attempt = |from: &str, secs| {
        let from = Some(from.parse().unwrap());
        authority.enrol_with_token(&role, secret.expose(), &csr, from, after(secs)).unwrap_err()
    };
    for _ in 0..500 {
        assert!(attempt("192.0.2.1", 10).detail.len() < 1_000);
    }
    let written = refusals(&authority);
    assert_eq!(written.len(), 1);
    assert_eq!((written[0].role.as_deref(), written[0].left_out), (Some(&role[..64]), None));
    attempt("192.0.2.2", 11);
    attempt("192.0.2.1", 70);
    let written = refusals(&authority);
    assert_eq!(written.len(), 3, "each peer, each minute");
    assert_eq!(written[2].left_out, Some(499));
}

#[test]
fn long_names_of_strangers_are_cut_in_every_sentence() {
    let authority = authority();
    let secret = token(&authority);
    let body = Client::new().body();
    let long = "x".repeat(40_000);
    let inside = format!("/.well-known/est/{long}/simpleenroll");
    let label = format!("/.well-known/est/{}/simpleenroll", "y".repeat(40_000));
    let auth = basic(&long, secret.expose());
    for path in [&inside, &label, &"/.well-known/est/simpleenroll".to_owned(), &long] {
        let reply = authority.est(&est_request(path, Some(&auth), &body), NOW);
        let EstOutcome::Refused(refusal) = &reply.outcome else { panic!("{reply:?}") };
        assert!(refusal.detail.len() < 1_000, "{} octets", refusal.detail.len());
        assert!(reply.body.len() < 1_500, "{} octets", reply.body.len());
    }
    // A name of many octets a character is cut between characters.
    let auth = basic(&"\u{1f600}".repeat(200), secret.expose());
    let path = "/.well-known/est/simpleenroll";
    assert_eq!(authority.est(&est_request(path, Some(&auth), &body), NOW).status, 403);
}

#[test]
fn a_stranger_is_turned_away_before_any_signature_is_verified() {
    let authority = authority();
    let mut der = Client::new().csr_der();
    *der.last_mut().unwrap() ^= 1;
    let body = base64(&der).into_bytes();
    let path = "/.well-known/est/simpleenroll";
    let status = |password: &str| {
        let auth = basic("builder", password);
        authority.est(&est_request(path, Some(&auth), &body), NOW).status
    };
    assert_eq!(status("zzzzzz-00000000000000000000000000"), 401);
    assert_eq!(
        status(token(&authority).expose()),
        400,
        "its own fault is told to a token's holder"
    );
}

#[test]
fn a_lease_is_renewed_ahead_of_time_once() {
    let authority = authority();
    let (_, first) = enrolled(&authority);
    authority.connected(&first.lease.id, after(10)).unwrap();
    let old = peer(&authority, &first, after(20));
    let renew = |client: &Client, secs| authority.renew(&old, &client.csr(), None, after(secs));
    let second = Client::new();
    let renewed = renew(&second, 20).unwrap();
    assert!(!renewed.replayed);

    // A lost answer is repeated, nothing else is given.
    let again = renew(&second, 30).unwrap();
    assert_eq!((again.replayed, &again.certificate), (true, &renewed.certificate));
    let third = Client::new();
    for secs in [30, 300, 1_800] {
        let refused = renew(&third, secs).unwrap_err();
        assert_eq!((refused.code, refused.code.status()), (RefusalCode::RenewalTooEarly, 429));
        let told = secs + refused.retry_after().unwrap();
        assert!(
            (1_820..=1_821).contains(&told),
            "half of the certificate's life is over at {told}"
        );
    }
    assert_eq!(renew(&second, 330).unwrap_err().code, RefusalCode::RenewalTooEarly);
    let lease = authority.lease(&first.lease.id).unwrap().unwrap();
    assert_eq!((lease.certs.len(), lease.expires), (2, after(20 + 3_600)));

    // Half of the latest certificate's life is over.
    assert!(!renew(&third, 1_820).unwrap().replayed);
    assert_eq!(authority.lease(&first.lease.id).unwrap().unwrap().certs.len(), 3);
}

/// As the lease's cap comes near, certificates and their halves become ever shorter.
#[test]
fn a_lease_never_has_more_than_four_valid_certificates() {
    let authority = authority();
    let (_, first) = enrolled(&authority);
    authority.connected(&first.lease.id, after(10)).unwrap();
    let mut latest = first;
    for secs in (20..86_400).step_by(60) {
        let now = after(secs);
        let peer = peer(&authority, &latest, now);
        match authority.renew(&peer, &Client::new().csr(), None, now) {
            Ok(renewed) => latest = renewed,
            Err(refusal) => assert_eq!(refusal.code, RefusalCode::RenewalTooEarly, "{refusal}"),
        }
        let lease = authority.lease(&latest.lease.id).unwrap().unwrap();
        let valid = lease.certs.iter().filter(|cert| cert.not_after > now).count();
        assert!((1..=4).contains(&valid), "{valid} at {secs}");
        assert!(lease.certs.len() < 70, "{} certificates in a day", lease.certs.len());
    }
    assert_eq!(latest.not_after, after(86_400), "it could always renew in time");
}

#[test]
fn a_lease_is_found_by_its_address_while_it_lives() {
    let authority = authority();
    let (_, enrolled) = enrolled(&authority);
    let find = |address: &str| {
        let lease = authority.lease_by_address(address.parse().unwrap()).unwrap();
        lease.map(|lease| lease.id)
    };
    let id = enrolled.lease.id;
    assert_eq!(find("10.77.0.2").as_ref(), Some(&id));
    assert_eq!(find("fd77::2").as_ref(), Some(&id));
    assert_eq!(find("::ffff:10.77.0.2").as_ref(), Some(&id), "on a socket for both families");
    assert_eq!(find("10.77.0.3"), None);
    assert_eq!(find("192.0.2.1"), None);
    authority.release(&id, "client", &OPERATOR, after(1)).unwrap();
    assert_eq!(find("10.77.0.2"), None, "it rests");
}
