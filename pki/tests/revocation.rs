//! Revoking by selector: one transaction for all that is meant, and nothing else.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::*;
use pki::store::{MemoryStore, Store};
use pki::*;

fn revoke(authority: &Authority, selector: &RevokeSelector, at: u64) -> RevokeOutcome {
    authority.revoke(selector, RevocationReason::KeyCompromise, &OPERATOR, after(at)).unwrap()
}

fn ids(leases: &[Lease]) -> Vec<&str> {
    let mut ids: Vec<_> = leases.iter().map(|lease| lease.id.as_str()).collect();
    ids.sort_unstable();
    ids
}

fn run(run: &str, issuer: Option<&str>) -> RevokeSelector {
    RevokeSelector::Run { run: run.to_owned(), issuer: issuer.map(str::to_owned) }
}

fn holder<'a>(name: &'a str, key: &'a [u8]) -> KeyHolder<'a> {
    let id = IkeId { kind: 2, data: name.as_bytes() };
    KeyHolder { id, name, role: "builder", key, door: KeyHolder::DOOR }
}

/// Writes what an OIDC token would have brought into a lease's record.
fn as_job(store: &dyn Store, lease: &str, run: &str, issuer: &str) {
    let key = format!("lease/{lease}");
    let mut record: serde_json::Value =
        serde_json::from_slice(&store.get(&key).unwrap().unwrap().value).unwrap();
    record["ci_ref"] = serde_json::json!({ "run_id": run, "run_url": format!("https://ci/{run}") });
    record["claims"] = serde_json::json!({ "iss": issuer });
    let mut txn = pki::store::Txn::new();
    txn.put(key, record.to_string());
    store.transact(txn).unwrap();
}

#[test]
fn each_selector_means_its_leases_and_no_others() {
    let store = Arc::new(MemoryStore::new());
    let authority = authority_on(Arc::clone(&store) as Arc<dyn Store>);
    let leases: Vec<_> = (0..4).map(|_| enrolled(&authority).1.lease).collect();
    let deployer = authority.token_create(&TokenCreate::new("deployer"), &OPERATOR, NOW).unwrap().1;
    let deployed = authority
        .enrol_with_token("deployer", deployer.expose(), &Client::new().csr(), None, NOW)
        .unwrap()
        .lease;
    as_job(store.as_ref(), &leases[1].id, "4711", "https://token.ci.example");
    as_job(store.as_ref(), &leases[2].id, "4711", "https://other.example");
    let all: Vec<&str> = leases.iter().map(|lease| lease.id.as_str()).collect();
    let cases = [
        (RevokeSelector::Lease(leases[0].id.clone()), vec![all[0]]),
        (RevokeSelector::Serial(leases[0].certs[0].serial.clone()), vec![all[0]]),
        (RevokeSelector::Spki(format!("sha256:{}", leases[3].spki_sha256)), vec![all[3]]),
        (RevokeSelector::Role("deployer".into()), vec![deployed.id.as_str()]),
        (RevokeSelector::Role("nobody".into()), vec![]),
        (RevokeSelector::Identity("spiffe://ci.example.com/role/builder/".into()), all.clone()),
        (RevokeSelector::Identity(leases[2].identity.clone()), vec![all[2]]),
        (run("4711", Some("https://other.example")), vec![all[2]]),
        (run("https://ci/4711", Some("https://token.ci.example")), vec![all[1]]),
        (run("47", None), vec![]),
        (RevokeSelector::Issuer("https://token.ci.example".into()), vec![all[1]]),
    ];
    for (selector, mut expected) in cases {
        expected.sort_unstable();
        assert_eq!(ids(&authority.select(&selector).unwrap()), expected, "{selector}");
    }
    assert!(authority.leases(false).unwrap().len() == 5, "looking changes nothing");
}

#[test]
fn all_that_is_meant_is_revoked_in_one_transaction() {
    let store = Arc::new(MemoryStore::new());
    let authority = authority_on(Arc::clone(&store) as Arc<dyn Store>);
    let leases: Vec<_> = (0..5).map(|_| enrolled(&authority).1).collect();
    let watch = store.watch("").unwrap();

    let outcome = revoke(&authority, &RevokeSelector::Role("builder".into()), 1);

    assert_eq!((outcome.revoked_now, outcome.changes.len(), outcome.serials.len()), (5, 5, 5));
    assert!(outcome.changes.iter().all(|change| change.end_tunnels));
    let revisions: std::collections::BTreeSet<_> =
        watch.changes.try_iter().map(|change| change.revision).collect();
    assert_eq!(revisions.len(), 1, "one durable step for all");
    for enrolled in &leases {
        let serial = &enrolled.lease.certs[0].serial;
        assert!(authority.certificate(serial).unwrap().unwrap().revoked.is_some());
    }
    assert_eq!(authority.crl(after(1)).unwrap().entries, 5);
    let audit = authority.audit(0, 1_000).unwrap();
    let told = audit.iter().filter(|record| record.event.action == "lease.revoke").count();
    assert_eq!(told, 5);

    // Nothing is left to select; the leases themselves say so again.
    let again = authority.revoke(
        &RevokeSelector::Role("builder".into()),
        RevocationReason::KeyCompromise,
        &OPERATOR,
        after(2),
    );
    assert!(matches!(again, Err(Error::NotFound { .. })));
    let one = revoke(&authority, &RevokeSelector::Lease(leases[0].lease.id.clone()), 2);
    assert_eq!((one.revoked_now, one.changes[0].changed()), (0, false));
}

#[test]
fn a_shared_key_is_barred_also_when_its_lease_had_ended() {
    let authority = authority();
    let key = b"a key that leaked";
    let access = authority.authorise_holder(&holder("ci-7", key), None, NOW).unwrap();
    authority.release(&access.lease.id, "admin", &OPERATOR, after(1)).unwrap();

    let outcome = revoke(&authority, &RevokeSelector::Lease(access.lease.id.clone()), 2);

    assert_eq!(outcome.barred, ["ci-7"]);
    let refused = authority.authorise_holder(&holder("ci-7", key), None, after(3));
    assert!(matches!(refused, Err(AccessError::HolderRevoked { at, .. }) if at == after(2)));
    let again = revoke(&authority, &RevokeSelector::Lease(access.lease.id.clone()), 4);
    assert_eq!(again.barred, Vec::<String>::new(), "it was barred before");
    // Another key ends the bar.
    let fresh =
        authority.authorise_holder(&holder("ci-7", b"another key"), None, after(5)).unwrap();
    assert_ne!(fresh.lease.id, access.lease.id);
    let other = authority.authorise_holder(&holder("ci-8", key), None, after(6));
    assert!(other.is_ok(), "a bar is of one identity");
}

#[test]
fn a_bar_outlives_the_lease_it_came_from() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let authority = authority_on(Arc::clone(&store));
    let key = b"a key that leaked";
    let access = authority.authorise_holder(&holder("ci-7", key), None, NOW).unwrap();
    let site =
        SitePeer { site: "office", subject: "CN=gw", spki_sha256: "ab", until: after(3_600) };
    let office = authority.site_lease(&site, NOW).unwrap();
    for id in [&access.lease.id, &office.id] {
        assert_eq!(revoke(&authority, &RevokeSelector::Lease(id.clone()), 1).barred.len(), 1);
    }
    let month = 30 * 86_400;
    assert_eq!(authority.prune(after(month)).unwrap(), 2);
    assert!(authority.lease(&access.lease.id).unwrap().is_none());

    let restarted = Authority::with_store(store, &[7; 32], Options::new(settings()), after(month));
    let restarted = restarted.unwrap();
    let refused = restarted.authorise_holder(&holder("ci-7", key), None, after(month));
    assert!(matches!(refused, Err(AccessError::HolderRevoked { .. })), "{refused:?}");
    let later = SitePeer { until: after(month + 3_600), ..site };
    assert!(restarted.site_lease(&later, after(month)).is_err());
    restarted.allow_site("office", &OPERATOR, after(month)).unwrap();
    assert!(restarted.site_lease(&later, after(month)).is_ok());
}

#[test]
fn a_site_is_barred_also_when_its_lease_had_ended() {
    let authority = authority();
    let site =
        SitePeer { site: "office", subject: "CN=gw", spki_sha256: "ab", until: after(3_600) };
    let lease = authority.site_lease(&site, NOW).unwrap();
    authority.release(&lease.id, "admin", &OPERATOR, after(1)).unwrap();
    assert_eq!(revoke(&authority, &RevokeSelector::Lease(lease.id), 2).barred, ["office"]);
    assert!(matches!(
        authority.site_lease(&site, after(3)),
        Err(AccessError::LeaseNotLive { state: LeaseState::Revoked, .. })
    ));
}

#[test]
fn ended_leases_are_forgotten_when_their_time_is_over() {
    let mut settings = settings();
    settings.keep_ended = Duration::from_secs(7_200);
    let store = Arc::new(MemoryStore::new());
    let options = Options::new(settings);
    let authority =
        Authority::with_store(Arc::clone(&store) as Arc<dyn Store>, &[7; 32], options, NOW)
            .unwrap();
    let secret = token(&authority);
    let client = Client::new();
    let ended = client.enrol(&authority, &secret, NOW);
    let (_, live) = enrolled(&authority);
    authority.connected(&live.lease.id, after(1)).unwrap();
    let serial = ended.lease.certs[0].serial.clone();
    revoke(&authority, &RevokeSelector::Lease(ended.lease.id.clone()), 10);
    let before = store.range("", None, 10_000).unwrap().len();

    assert_eq!(authority.prune(after(10 + 7_199)).unwrap(), 0, "its time is not over");
    assert_eq!(authority.crl(after(3_000)).unwrap().entries, 1, "revoked while it would be valid");
    assert_eq!(authority.prune(after(10 + 7_200)).unwrap(), 1);

    assert!(authority.lease(&ended.lease.id).unwrap().is_none());
    assert!(authority.certificate(&serial).unwrap().is_none());
    assert_eq!(authority.leases_by_spki(&ended.lease.spki_sha256).unwrap(), []);
    assert!(authority.lease(&live.lease.id).unwrap().is_some(), "live ones stay");
    assert!(store.range("", None, 10_000).unwrap().len() < before);
    assert_eq!(store.range("ended/", None, 10).unwrap(), []);
    // Neither the certificate nor the token opens anything again.
    let stranger = validate::verify_peer(
        &[ended.certificate.clone(), authority.issuing_der()],
        &[authority.root_der()],
        None,
        after(20),
    )
    .unwrap();
    let refused = authority.authorise(&stranger, after(20));
    assert!(matches!(refused, Err(AccessError::NoLease { .. })), "{refused:?}");
    let late = authority.enrol_with_token(
        "builder",
        secret.expose(),
        &client.csr(),
        None,
        after(10 + 7_200),
    );
    assert!(matches!(late.unwrap_err().code, RefusalCode::TokenSpent | RefusalCode::TokenUnknown));
    assert!(authority.verify_audit().unwrap().is_sound());
}

#[test]
fn a_certificate_that_is_still_valid_keeps_its_lease_on_record() {
    let mut settings = settings();
    settings.keep_ended = Duration::from_secs(60);
    let options = Options::new(settings);
    let authority =
        Authority::with_store(Arc::new(MemoryStore::new()), &[7; 32], options, NOW).unwrap();
    let (_, enrolled) = enrolled(&authority);
    authority.release(&enrolled.lease.id, "client", &OPERATOR, after(1)).unwrap();
    assert_eq!(authority.prune(after(3_600)).unwrap(), 0);
    let peer = peer(&authority, &enrolled, after(3_000));
    assert!(matches!(
        authority.authorise(&peer, after(3_000)),
        Err(AccessError::LeaseNotLive { state: LeaseState::Released, .. })
    ));
    assert_eq!(authority.prune(after(3_601)).unwrap(), 1);
}

#[test]
fn many_ended_leases_are_forgotten_in_bounded_steps() {
    let mut settings = settings();
    settings
        .pools
        .insert("runners".to_owned(), PoolConfig::new(vec!["10.77.0.0/16".parse().unwrap()]));
    let options = Options::new(settings);
    let authority =
        Authority::with_store(Arc::new(MemoryStore::new()), &[7; 32], options, NOW).unwrap();
    let create = TokenCreate { uses: 200, ..TokenCreate::new("builder") };
    let secret = authority.token_create(&create, &OPERATOR, NOW).unwrap().1;
    for _ in 0..200 {
        let lease = Client::new().enrol(&authority, &secret, NOW).lease;
        authority.release(&lease.id, "client", &OPERATOR, after(1)).unwrap();
    }
    assert_eq!(authority.prune(after(8 * 86_400)).unwrap(), 200);
    assert_eq!(authority.prune(after(8 * 86_400)).unwrap(), 0);
    assert!(authority.leases(true).unwrap().is_empty() && authority.tokens().unwrap().is_empty());
}
