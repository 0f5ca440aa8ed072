//! A platform's token is exchanged for a one-time token of ours (RFC 8693).
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;
#[path = "../../tests/src/oidc.rs"]
#[allow(dead_code, unreachable_pub)]
mod oidc;

use std::sync::Arc;

use common::*;
use pki::enrol::jwt::Accepted;
use pki::store::MemoryStore;
use pki::*;

struct World {
    authority: Authority,
    key: oidc::IssuerKey,
}

impl World {
    fn new() -> Self {
        let key = oidc::IssuerKey::eddsa("k");
        let mut settings = github_settings();
        settings.issuers[0].algorithms = vec![JwtAlgorithm::EdDsa];
        let issuer = settings.issuers[0].clone();
        let store = Arc::new(MemoryStore::new());
        let authority =
            Authority::with_store(store, &[7; 32], Options::new(settings), NOW).unwrap();
        authority.jwt_keys_fetched(&issuer, Ok(oidc::jwks(&[&key])), NOW).unwrap();
        Self { authority, key }
    }

    fn jwt(&self, jti: &str) -> String {
        self.key.sign(&oidc::github(NOW.secs(), AUDIENCE, jti))
    }

    fn admit(&self, jwt: &str) -> Accepted {
        self.authority.jwt_admit(None, jwt, None, after(1)).unwrap()
    }

    fn exchange(&self, jwt: &str, spki: &str, now: UnixTime) -> Result<Exchanged, Refusal> {
        self.authority.token_exchange(&self.admit(jwt), spki, None, now)
    }
}

#[test]
fn the_lease_is_the_jobs_and_the_key_the_one_named() {
    let world = World::new();
    let (client, jwt) = (Client::new(), world.jwt("one"));
    let hash = client.csr().spki_sha256;
    let given = world.exchange(&jwt, &hash, after(1)).unwrap();
    assert!(given.secret.expose().len() <= 64, "short enough for HTTP Basic of stock clients");
    assert_eq!(given.token.role, "builder");
    // No longer than the job's own token, which lives five minutes.
    assert!(given.token.expires <= after(15 * 60));
    let text = given.secret.expose();
    let enrol = |csr: &Csr| world.authority.enrol_with_token("builder", text, csr, None, after(2));
    let thief = enrol(&Client::new().csr()).unwrap_err();
    assert_eq!(thief.code, RefusalCode::TokenBoundElsewhere);
    let lease = enrol(&client.csr()).unwrap().lease;
    assert_eq!(lease.door, "exchange");
    assert_eq!(lease.ci_ref.run_id.as_deref(), Some("7001"));
    assert!(lease.identity.contains("/ci/github/"), "{}", lease.identity);
    assert_eq!(lease.claims["repository"], "octo/app");
    // The job's token reads its lease, and opens no other.
    assert_eq!(world.authority.lease_of_jwt(&jwt, after(3)).unwrap().id, lease.id);
    let direct = world.authority.enrol_with_jwt(None, &jwt, &client.csr(), None, after(3));
    assert_eq!(direct.unwrap_err().code, RefusalCode::TokenSpent);
    // A lost answer is repeated.
    assert!(enrol(&client.csr()).unwrap().replayed);
    let actions: Vec<String> =
        world.authority.audit(0, 100).unwrap().into_iter().map(|r| r.event.action).collect();
    assert!(actions.iter().any(|action| action == "token.exchange"), "{actions:?}");
}

#[test]
fn the_same_key_gets_the_same_token_and_another_none() {
    let world = World::new();
    let jwt = world.jwt("two");
    let hash = Client::new().csr().spki_sha256;
    let first = world.exchange(&jwt, &hash, after(1)).unwrap();
    let again =
        world.exchange(&jwt, &format!("sha256:{}", hash.to_uppercase()), after(60)).unwrap();
    assert!(again.replayed && !first.replayed);
    assert_eq!(again.secret.expose(), first.secret.expose());
    let other = world.exchange(&jwt, &Client::new().csr().spki_sha256, after(2)).unwrap_err();
    assert_eq!(other.code, RefusalCode::TokenReplay);
    let late = world.exchange(&jwt, &hash, after(302)).unwrap_err();
    assert_eq!(late.code, RefusalCode::TokenSpent);
    assert!(late.detail.contains(&first.token.id), "{late}");
    assert_eq!(world.authority.tokens().unwrap().len(), 1);
    let trail = world.authority.audit(0, 100).unwrap();
    assert!(trail.iter().any(|record| record.event.action == "token.replay"));
    // The text is nowhere in the trail or the records.
    let kept = format!("{trail:?} {:?}", world.authority.tokens().unwrap());
    let (_, secret) = first.secret.expose().split_once('-').unwrap();
    assert!(!kept.contains(secret));
}

#[test]
fn a_token_that_opened_a_lease_is_not_exchanged() {
    let world = World::new();
    let (client, jwt) = (Client::new(), world.jwt("three"));
    world.authority.enrol_with_jwt(None, &jwt, &client.csr(), None, after(1)).unwrap();
    let refused = world.exchange(&jwt, &client.csr().spki_sha256, after(2)).unwrap_err();
    assert_eq!(refused.code, RefusalCode::TokenSpent);
    let malformed = world.exchange(&world.jwt("four"), "abc", after(2)).unwrap_err();
    assert_eq!(malformed.code, RefusalCode::MalformedRequest);
}

#[test]
fn a_barred_run_opens_nothing_with_an_exchanged_token() {
    let world = World::new();
    let (client, other) = (Client::new(), Client::new());
    let first = world.authority.enrol_with_jwt(None, &world.jwt("five"), &client.csr(), None, NOW);
    let lease = first.unwrap().lease;
    let given = world.exchange(&world.jwt("six"), &other.csr().spki_sha256, after(1)).unwrap();
    let selector = RevokeSelector::Run { run: lease.ci_ref.run_id.clone().unwrap(), issuer: None };
    let reason = RevocationReason::KeyCompromise;
    world.authority.revoke(&selector, reason, &OPERATOR, after(2)).unwrap();
    let text = given.secret.expose();
    let refused = world.authority.enrol_with_token("builder", text, &other.csr(), None, after(3));
    assert_eq!(refused.unwrap_err().code, RefusalCode::RunBarred);
}

#[test]
fn a_barred_run_or_key_is_given_no_token() {
    let world = World::new();
    let (client, other) = (Client::new(), Client::new());
    let create = TokenCreate::new("builder");
    let secret = world.authority.token_create(&create, &OPERATOR, NOW).unwrap().1;
    let lease = client.enrol(&world.authority, &secret, NOW).lease;
    let reason = RevocationReason::KeyCompromise;
    let revoke = |selector| world.authority.revoke(&selector, reason, &OPERATOR, after(1)).unwrap();
    revoke(RevokeSelector::Lease(lease.id));
    let jwt = world.jwt("seven");
    let barred = world.exchange(&jwt, &client.csr().spki_sha256, after(2)).unwrap_err();
    assert_eq!(barred.code, RefusalCode::KeyBarred);
    // The job's token is not spent by that: another key is welcome, until its run is barred.
    world.exchange(&jwt, &other.csr().spki_sha256, after(3)).unwrap();
    revoke(RevokeSelector::Run { run: "7001".to_owned(), issuer: Some("github".to_owned()) });
    let next = Client::new().csr().spki_sha256;
    let barred = world.exchange(&world.jwt("eight"), &next, after(4)).unwrap_err();
    assert_eq!(barred.code, RefusalCode::RunBarred);
    assert_eq!(world.authority.tokens().unwrap().len(), 2, "nothing was written down for it");
    let trail = world.authority.audit(0, 100).unwrap();
    let told = trail.iter().filter(|record| record.event.outcome == AuditOutcome::Failure);
    let reasons: Vec<_> = told.filter_map(|record| record.event.reason.as_deref()).collect();
    assert!(reasons.contains(&"key_barred") && reasons.contains(&"run_barred"), "{reasons:?}");
}

#[test]
fn exchanges_count_once_and_as_leases_that_are_opened() {
    // RFC 6585 4.
    let world = World::new();
    let mut settings = (*world.authority.settings()).clone();
    settings.limits.identity = OpenRate { per_second: 1, burst: 2 };
    world.authority.reconfigure(settings).unwrap();
    let clients = [Client::new(), Client::new()];
    let given = ["a", "b"].map(|jti| world.jwt(jti));
    let given: Vec<Exchanged> = given
        .iter()
        .zip(&clients)
        .map(|(jwt, client)| world.exchange(jwt, &client.csr().spki_sha256, after(1)).unwrap())
        .collect();
    let met = world.exchange(&world.jwt("c"), &Client::new().csr().spki_sha256, after(1));
    let met = met.unwrap_err();
    assert_eq!((met.code, met.code.status()), (RefusalCode::TooManyRequests, 429));
    assert_eq!(world.authority.limits_met()[&LimitKind::Identity], 1);
    // A lost answer is repeated, and what was given opens its leases.
    let again = world.jwt("a");
    let again = world.exchange(&again, &clients[0].csr().spki_sha256, after(1));
    assert!(again.unwrap().replayed);
    for (given, client) in given.iter().zip(&clients) {
        client.enrol(&world.authority, &given.secret, after(1));
    }
    assert!(world.exchange(&world.jwt("c"), &clients[0].csr().spki_sha256, after(3)).is_ok());
}
