//! The life of leases in the store: connect, lose, release, revoke, expire, restart.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::collections::BTreeSet;
use std::sync::Arc;

use common::*;
use pki::store::{LogEntry, MemoryStore, Store};
use pki::*;
use proptest::prelude::*;
use x509_parser::prelude::*;

fn denied(authority: &Authority, enrolled: &Enrolled, now: UnixTime) -> AccessError {
    let peer = peer(authority, enrolled, now);
    authority.authorise(&peer, now).unwrap_err()
}

#[test]
fn a_verified_peer_gets_the_addresses_of_its_lease() {
    let authority = authority();
    let (_, enrolled) = enrolled(&authority);
    let access = authority.authorise(&peer(&authority, &enrolled, after(1)), after(1)).unwrap();
    assert_eq!(access.lease, enrolled.lease);
    assert_eq!(access.deadline, after(3_600));
}

#[test]
fn the_connect_timer_hands_over_to_the_certificate() {
    let authority = authority();
    let (_, enrolled) = enrolled(&authority);
    assert_eq!(authority.next_deadline().unwrap(), Some(after(300)));
    let change = authority.connected(&enrolled.lease.id, after(10)).unwrap();
    assert_eq!((change.from, change.lease.state), (LeaseState::Issued, LeaseState::Active));
    assert!(!authority.connected(&enrolled.lease.id, after(11)).unwrap().changed());
    assert_eq!(authority.next_deadline().unwrap(), Some(after(3_600)));
    assert_eq!(authority.expire_due(after(3_599)).unwrap(), []);
    let lapsed = authority.expire_due(after(3_600)).unwrap();
    assert_eq!(lapsed.len(), 1);
    assert!(lapsed[0].end_tunnels);
    assert_eq!(authority.next_deadline().unwrap(), Some(after(3_900)));
    let error = authority.connected(&enrolled.lease.id, after(3_601)).unwrap_err();
    assert!(error.to_string().contains("renew the certificate first"), "{error}");
    assert_eq!(authority.expire_due(after(3_900)).unwrap()[0].lease.state, LeaseState::Expired);
    assert_eq!(authority.next_deadline().unwrap(), None);
    assert_eq!(authority.leases(false).unwrap(), []);
}

/// What is committed must reach whoever ends the tunnels, and one bad record keeps back no other.
#[test]
fn a_damaged_lease_keeps_no_other_from_expiring() {
    let store = Arc::new(MemoryStore::new());
    let authority = authority_on(Arc::clone(&store) as Arc<dyn Store>);
    let ids: Vec<String> = (0..5).map(|_| enrolled(&authority).1.lease.id).collect();
    let mut txn = pki::store::Txn::new();
    txn.put(format!("lease/{}", ids[2]), "damaged");
    store.transact(txn).unwrap();

    let moved = authority.expire_due(after(300)).unwrap();

    let mut ended: Vec<_> = moved.iter().map(|change| change.lease.id.clone()).collect();
    ended.sort();
    let mut expected = ids.clone();
    expected.remove(2);
    expected.sort();
    assert_eq!(ended, expected);
    assert!(moved.iter().all(|change| change.end_tunnels));
    let told = authority.expire_due(after(301)).unwrap_err();
    assert!(told.to_string().contains(&ids[2]), "{told}");
}

#[test]
fn an_unused_lease_expires_and_its_certificate_is_revoked() {
    let authority = authority();
    let (_, enrolled) = enrolled(&authority);
    let expired = authority.expire_due(after(300)).unwrap();
    assert_eq!(expired[0].lease.end.as_ref().unwrap().cause, "never_connected");
    let serial = &enrolled.lease.certs[0].serial;
    assert!(authority.certificate(serial).unwrap().unwrap().revoked.is_some());
    assert!(matches!(
        denied(&authority, &enrolled, after(301)),
        AccessError::LeaseNotLive { state: LeaseState::Expired, .. }
    ));
}

#[test]
fn an_overdue_lease_is_refused_before_its_timer_ran() {
    let authority = authority();
    let (_, enrolled) = enrolled(&authority);
    assert!(matches!(
        denied(&authority, &enrolled, after(300)),
        AccessError::LeaseNotLive { state: LeaseState::Expired, since, .. } if since == after(300)
    ));
}

#[test]
fn a_lost_lease_is_released_after_its_grace() {
    let authority = authority();
    let (_, enrolled) = enrolled(&authority);
    let id = &enrolled.lease.id;
    authority.connected(id, after(10)).unwrap();
    let lost = authority.disconnected(id, "dead peer", after(100)).unwrap();
    assert_eq!((lost.lease.state, lost.end_tunnels), (LeaseState::Lost, false));
    assert!(authority.authorise(&peer(&authority, &enrolled, after(150)), after(150)).is_ok());
    let released = authority.expire_due(after(190)).unwrap();
    assert_eq!(released[0].lease.end.as_ref().unwrap().cause, "lost");
    assert!(matches!(
        denied(&authority, &enrolled, after(191)),
        AccessError::LeaseNotLive { state: LeaseState::Released, .. }
    ));
    let actions: Vec<_> = authority
        .audit(0, 100)
        .unwrap()
        .into_iter()
        .filter(|record| record.event.lease_id.as_ref() == Some(id))
        .map(|record| (record.event.action, record.event.reason.unwrap_or_default()))
        .collect();
    let expected = [
        ("token.use", ""),
        ("lease.create", "token"),
        ("lease.connect", ""),
        ("lease.lose", "dead peer"),
        ("lease.release", "lost"),
        ("cert.revoke", "cessation-of-operation"),
    ];
    assert_eq!(actions, expected.map(|(action, reason)| (action.to_owned(), reason.to_owned())));
}

#[test]
fn release_ends_everything_once() {
    let authority = authority();
    let (_, enrolled) = enrolled(&authority);
    let id = &enrolled.lease.id;
    authority.connected(id, after(10)).unwrap();
    let released = authority.release(id, "admin", &OPERATOR, after(20)).unwrap();
    assert!(released.end_tunnels && released.changed());
    let end = released.lease.end.clone().unwrap();
    assert_eq!((end.at, end.cause.as_str(), end.actor), (after(20), "admin", OPERATOR));
    let again = authority.release(id, "client", &Actor::System, after(30)).unwrap();
    assert!(!again.changed() && !again.end_tunnels);
    assert_eq!(again.lease, released.lease);
    assert!(matches!(
        denied(&authority, &enrolled, after(21)),
        AccessError::LeaseNotLive { state: LeaseState::Released, .. }
    ));
    assert!(matches!(
        authority.release("r-nobody", "admin", &OPERATOR, after(1)),
        Err(Error::NotFound { what: "lease", .. })
    ));
}

#[test]
fn revocation_by_serial_denies_and_lists() {
    let authority = authority();
    let (_, enrolled) = enrolled(&authority);
    authority.connected(&enrolled.lease.id, after(10)).unwrap();
    let serial = enrolled.lease.certs[0].serial.clone();
    let first = authority.crl(after(10)).unwrap();
    assert_eq!((first.number, first.entries), (1, 0));
    let revoke = |now| {
        authority
            .revoke(
                &RevokeSelector::Serial(serial.clone()),
                RevocationReason::KeyCompromise,
                &OPERATOR,
                now,
            )
            .unwrap()
    };
    let outcome = revoke(after(20));
    assert_eq!((outcome.revoked_now, &outcome.serials[..]), (1, std::slice::from_ref(&serial)));
    assert!(outcome.changes[0].end_tunnels);
    assert_eq!(outcome.changes[0].lease.state, LeaseState::Revoked);
    let error = denied(&authority, &enrolled, after(21));
    assert!(
        matches!(error, AccessError::Revoked { reason: RevocationReason::KeyCompromise, at, .. }
            if at == after(20)),
        "{error}"
    );
    let again = revoke(after(30));
    assert_eq!((again.revoked_now, again.changes[0].end_tunnels), (0, false));
    assert_eq!(again.serials, outcome.serials);

    let second = authority.crl(after(30)).unwrap();
    assert_eq!((second.number, second.entries), (2, 1));
    let (_, list) = CertificateRevocationList::from_der(&second.der).unwrap();
    let entry = list.iter_revoked_certificates().next().unwrap();
    assert_eq!(Serial::from_bytes(entry.raw_serial()), serial);
    assert_eq!(entry.revocation_date.timestamp(), after(20).secs());
    assert_eq!(entry.reason_code().unwrap().1.0, 1);
    // An unchanged list is not rebuilt until it ages; a rebuilt one drops what has expired.
    assert_eq!(authority.crl(after(900)).unwrap(), second);
    assert_eq!(authority.crl(after(931)).unwrap().number, 3);
    assert_eq!(authority.crl(after(3_700)).unwrap().entries, 0);
    // The record itself stays.
    assert!(authority.certificate(&serial).unwrap().unwrap().revoked.is_some());
}

#[test]
fn revocation_reaches_every_certificate_of_the_lease() {
    let authority = authority();
    let (_, enrolled) = enrolled(&authority);
    authority.connected(&enrolled.lease.id, after(10)).unwrap();
    let old = peer(&authority, &enrolled, after(20));
    let renewed = authority.renew(&old, &Client::new().csr(), None, after(20)).unwrap();
    let outcome = authority
        .revoke(
            &RevokeSelector::Spki(enrolled.lease.spki_sha256.clone()),
            RevocationReason::Unspecified,
            &OPERATOR,
            after(30),
        )
        .unwrap();
    assert_eq!((outcome.revoked_now, outcome.serials.len()), (2, 2));
    for certificate in [&enrolled, &renewed] {
        assert!(matches!(denied(&authority, certificate, after(31)), AccessError::Revoked { .. }));
    }
    assert_eq!(authority.crl(after(31)).unwrap().entries, 2);
    for selector in
        [RevokeSelector::Lease("r-x".into()), RevokeSelector::Serial("77".parse().unwrap())]
    {
        let none = authority.revoke(&selector, RevocationReason::Unspecified, &OPERATOR, NOW);
        assert!(matches!(none, Err(Error::NotFound { .. })));
    }
}

#[test]
fn a_foreign_certificate_with_our_names_and_serial_gets_nothing() {
    let authority = authority();
    let (_, enrolled) = enrolled(&authority);
    let mut forged = peer(&authority, &enrolled, after(1));
    forged.spki_sha256 = "ab".repeat(32);
    assert!(matches!(authority.authorise(&forged, after(1)), Err(AccessError::NoLease { .. })));
}

#[test]
fn a_role_that_was_removed_gives_no_access() {
    let authority = authority();
    let (_, enrolled) = enrolled(&authority);
    let mut settings = settings();
    settings.roles.remove("builder");
    authority.reconfigure(settings).unwrap();
    assert!(matches!(denied(&authority, &enrolled, after(1)), AccessError::UnknownRole { .. }));
}

#[test]
fn many_due_leases_move_together() {
    let authority = authority();
    for _ in 0..150 {
        enrolled(&authority);
    }
    let expired = authority.expire_due(after(300)).unwrap();
    let ids: BTreeSet<_> = expired.iter().map(|change| change.lease.id.clone()).collect();
    assert_eq!((expired.len(), ids.len()), (150, 150));
    assert_eq!(authority.leases(false).unwrap(), []);
    assert_eq!(authority.crl(after(300)).unwrap().entries, 150);
}

#[test]
fn a_restart_keeps_everything_and_orphans_the_active() {
    let directory = tempfile::tempdir().unwrap();
    let open = |now| Authority::open(directory.path(), Options::new(settings()), now).unwrap();
    let before = open(NOW);
    assert!(before.startup().created_ca && before.startup().seal_key_beside_state);
    let (_, active) = enrolled(&before);
    let (_, released) = enrolled(&before);
    before.connected(&active.lease.id, after(5)).unwrap();
    before.release(&released.lease.id, "client", &OPERATOR, after(6)).unwrap();
    let unspent = token(&before);
    let (root, crl) = (before.root_pem(), before.crl(after(7)).unwrap());
    drop(before);

    let now = open(after(10));
    assert_eq!((now.startup().created_ca, now.startup().orphaned), (false, 1));
    assert_eq!(now.root_pem(), root);
    assert_eq!(now.crl(after(11)).unwrap(), crl);
    let lost = now.lease(&active.lease.id).unwrap().unwrap();
    assert_eq!((lost.state, lost.deadline), (LeaseState::Lost, Some(after(310))));
    assert_eq!(now.connected(&active.lease.id, after(12)).unwrap().lease.state, LeaseState::Active);
    let error = denied(&now, &released, after(12));
    assert!(matches!(error, AccessError::LeaseNotLive { .. }), "{error}");
    // Neither the held nor the resting address is handed out.
    let third = Client::new().enrol(&now, &unspent, after(13));
    let held: BTreeSet<_> =
        [&active, &released].iter().flat_map(|e| e.lease.addresses.clone()).collect();
    assert!(third.lease.addresses.iter().all(|address| !held.contains(address)));
}

#[test]
fn the_audit_log_is_an_unbroken_chain() {
    let store = Arc::new(MemoryStore::new());
    let authority = authority_on(Arc::clone(&store) as Arc<dyn Store>);
    let (_, enrolled) = enrolled(&authority);
    authority.release(&enrolled.lease.id, "client", &OPERATOR, after(1)).unwrap();
    let event = AuditEvent::new("ike.sa.down", &Actor::System, after(2)).lease(&enrolled.lease);
    authority.record_audit(&event).unwrap();
    let mut prev = [0; 32];
    let entries = store.log("audit", 0, 100).unwrap();
    for (position, entry) in entries.iter().enumerate() {
        assert_eq!(entry.seq, position as u64 + 1);
        assert_eq!(entry.prev, prev);
        assert_eq!(entry.hash, LogEntry::expected_hash(&prev, entry.seq, &entry.value));
        prev = entry.hash;
    }
    let records = authority.audit(1, 2).unwrap();
    assert_eq!((records[0].seq, records[0].event.action.as_str()), (2, "token.create"));
    assert_eq!(records.len(), 2);
    assert_eq!(authority.audit(entries.len() as u64 - 1, 10).unwrap()[0].event, event);
}

#[derive(Clone, Debug)]
enum Step {
    Enrol,
    Connect(usize),
    Disconnect(usize),
    Renew(usize),
    Release(usize),
    Revoke(usize),
    Tick,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Enrol),
        3 => any::<usize>().prop_map(Step::Connect),
        2 => any::<usize>().prop_map(Step::Disconnect),
        2 => any::<usize>().prop_map(Step::Renew),
        2 => any::<usize>().prop_map(Step::Release),
        1 => any::<usize>().prop_map(Step::Revoke),
        4 => Just(Step::Tick),
    ]
}

/// What must hold in the store after every step.
fn check(authority: &Authority, store: &dyn Store, now: UnixTime, ticked: bool) {
    let all = authority.leases(true).unwrap();
    let live: Vec<_> = all.iter().filter(|lease| lease.state.is_live()).collect();
    let mut listed: Vec<_> = authority.leases(false).unwrap();
    listed.sort_by(|a, b| a.id.cmp(&b.id));
    assert_eq!(listed.iter().collect::<Vec<_>>(), live, "the index of deadlines is exact");
    let earliest = live.iter().filter_map(|lease| lease.deadline).min();
    assert_eq!(authority.next_deadline().unwrap(), earliest);
    assert!(!ticked || earliest.is_none_or(|deadline| deadline > now));

    let addresses: Vec<_> = live.iter().flat_map(|lease| lease.addresses.clone()).collect();
    let distinct: BTreeSet<_> = addresses.iter().collect();
    assert_eq!(distinct.len(), addresses.len(), "one address, one lease");
    let held = store
        .range("addr/", None, 1_000)
        .unwrap()
        .iter()
        .filter(|(_, entry)| !String::from_utf8_lossy(&entry.value).contains("resting"))
        .count();
    assert_eq!(held, addresses.len(), "the store holds what the leases say");

    for lease in &all {
        for cert in &lease.certs {
            let record = authority.certificate(&cert.serial).unwrap().unwrap();
            assert!(record.not_after <= lease.hard_cap, "no certificate past its lease");
            let ended_early = lease.end.as_ref().is_some_and(|end| end.at <= record.not_after);
            assert_eq!(record.revoked.is_some(), ended_early, "{lease:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn every_history_keeps_the_store_consistent(
        history in proptest::collection::vec((step(), 0u64..400), 1..30)
    ) {
        let store = Arc::new(MemoryStore::new());
        let mut settings = settings();
        settings.roles.get_mut("builder").unwrap().ttl = std::time::Duration::from_secs(600);
        settings.roles.get_mut("builder").unwrap().max_lease = std::time::Duration::from_secs(1_500);
        // Five addresses: they come round again within a history.
        settings.pools.get_mut("runners").unwrap().networks = vec!["10.0.0.0/29".parse().unwrap()];
        let options = Options::new(settings);
        let shared = Arc::clone(&store) as Arc<dyn Store>;
        let authority = Authority::with_store(shared, &[7; 32], options, NOW).unwrap();
        let csr = Client::new().csr();
        let mut released: Vec<(std::net::IpAddr, UnixTime)> = Vec::new();
        let mut now = NOW;
        for (step, pause) in history {
            now = now.plus(std::time::Duration::from_secs(pause));
            let leases = authority.leases(true).unwrap();
            let chosen = |index: usize| leases.get(index % leases.len().max(1)).cloned();
            let before: BTreeSet<_> = leases
                .iter()
                .filter(|lease| lease.state.is_live())
                .map(|lease| lease.id.clone())
                .collect();
            match step {
                Step::Enrol => {
                    let create = TokenCreate::new("builder");
                    let (_, secret) = authority.token_create(&create, &OPERATOR, now).unwrap();
                    let secret = secret.expose();
                    if let Ok(new) = authority.enrol_with_token("builder", secret, &csr, None, now) {
                        for address in &new.lease.addresses {
                            prop_assert!(
                                !released.iter().any(|(a, at)| a == address
                                    && now < at.plus(std::time::Duration::from_secs(600))),
                                "{} is still resting", address
                            );
                        }
                    }
                }
                Step::Connect(index) => {
                    if let Some(lease) = chosen(index) {
                        let _ = authority.connected(&lease.id, now);
                    }
                }
                Step::Disconnect(index) => {
                    if let Some(lease) = chosen(index) {
                        authority.disconnected(&lease.id, "test", now).unwrap();
                    }
                }
                Step::Renew(index) => {
                    if let Some(lease) = chosen(index) {
                        let der = authority.certificate(&lease.certs[0].serial).unwrap().unwrap().der;
                        let at = now.min(lease.certs[0].not_after);
                        let peer = authority.verify_peer(&[der], None, at).unwrap();
                        let _ = authority.renew(&peer, &csr, None, now);
                    }
                }
                Step::Release(index) => {
                    if let Some(lease) = chosen(index) {
                        authority.release(&lease.id, "client", &OPERATOR, now).unwrap();
                    }
                }
                Step::Revoke(index) => {
                    if let Some(lease) = chosen(index) {
                        let selector = RevokeSelector::Lease(lease.id);
                        let reason = RevocationReason::Unspecified;
                        authority.revoke(&selector, reason, &OPERATOR, now).unwrap();
                    }
                }
                Step::Tick => {
                    authority.expire_due(now).unwrap();
                }
            }
            for lease in authority.leases(true).unwrap() {
                if !lease.state.is_live() && before.contains(&lease.id) {
                    released.extend(lease.addresses.iter().map(|address| (*address, now)));
                }
            }
            check(&authority, store.as_ref(), now, matches!(step, Step::Tick));
        }
    }
}

#[test]
fn a_forgotten_lease_leaves_no_key_behind() {
    let store = Arc::new(MemoryStore::new());
    let authority = authority_on(Arc::clone(&store) as Arc<dyn Store>);
    let keys = || -> BTreeSet<String> {
        let all = store.range("", None, 10_000).unwrap();
        all.into_iter().map(|(key, _)| key).collect()
    };
    authority.crl(NOW).unwrap();
    let before = keys();
    let leases: Vec<Lease> = (0..200).map(|_| enrolled(&authority).1.lease).collect();
    for lease in &leases {
        authority.release(&lease.id, "client", &OPERATOR, after(1)).unwrap();
    }
    let (_, late) = enrolled(&authority);
    authority.release(&late.lease.id, "client", &OPERATOR, after(30 * 86_400)).unwrap();

    // A week and the certificates' life later; the list has no entries any more.
    let now = after(30 * 86_400 + 1);
    authority.prune(now).unwrap();
    authority.crl(now).unwrap();

    let left: Vec<String> = keys().difference(&before).cloned().collect();
    let of_late = |key: &&String| {
        key.contains(&late.lease.id)
            || key.contains(&late.lease.spki_sha256)
            || key.contains(&late.lease.certs[0].serial.to_string())
    };
    let (late_keys, others): (Vec<&String>, Vec<&String>) = left.iter().partition(of_late);
    assert!(!late_keys.is_empty(), "what ended just now stays");
    // Its two addresses rest, and the list is triggered by what was revoked.
    let prefixes: Vec<&str> = others.iter().map(|key| key.split('/').next().unwrap()).collect();
    assert_eq!(prefixes, ["addr", "addr", "crl-trigger"], "{others:?}");
}

#[test]
fn addresses_that_have_rested_are_forgotten_and_those_in_use_are_not() {
    let store = Arc::new(MemoryStore::new());
    let authority = authority_on(Arc::clone(&store) as Arc<dyn Store>);
    let addresses = || store.range("addr/", None, 1_000).unwrap().len();
    let first = enrolled(&authority).1.lease;
    let second = enrolled(&authority).1.lease;
    assert_eq!(addresses(), 4);
    authority.release(&first.id, "client", &OPERATOR, after(1)).unwrap();
    authority.prune(after(2)).unwrap();
    assert_eq!(addresses(), 4, "it rests");
    let quarantine = settings().pools["runners"].quarantine;
    authority.prune(after(1).plus(quarantine)).unwrap();
    assert_eq!(addresses(), 2, "of the lease that lives");
    // Every address is there to be had, and none twice.
    let mut held: BTreeSet<std::net::IpAddr> = second.addresses.iter().copied().collect();
    for _ in 0..20 {
        let token = token(&authority);
        let now = after(2).plus(quarantine);
        let lease = Client::new().enrol(&authority, &token, now).lease;
        assert!(lease.addresses.iter().all(|address| held.insert(*address)));
    }
}

#[test]
fn listings_are_read_by_pages_and_miss_nothing() {
    let authority = authority();
    let opened: Vec<Enrolled> = (0..7).map(|_| enrolled(&authority).1).collect();
    let mut ids: Vec<String> = opened.iter().map(|e| e.lease.id.clone()).collect();
    ids.sort();
    let ended = ids[3].clone();
    authority.release(&ended, "client", &OPERATOR, after(1)).unwrap();
    let all = |ended: bool, limit: usize| {
        let (mut found, mut after, mut pages): (Vec<String>, Option<String>, usize) =
            Default::default();
        loop {
            let page = authority.lease_page(ended, after.as_deref(), limit).unwrap();
            assert!(page.items.len() <= limit);
            found.extend(page.items.into_iter().map(|lease| lease.id));
            pages += 1;
            after = page.next;
            if after.is_none() {
                return (found, pages);
            }
            // What happens between two pages: deadlines move.
            authority.connected(&ids[6], NOW).unwrap();
            authority.disconnected(&ids[6], "test", NOW).unwrap();
        }
    };
    let live: Vec<String> = ids.iter().filter(|id| **id != ended).cloned().collect();
    assert_eq!(all(false, 2), (live.clone(), 3));
    assert_eq!(all(false, 6), (live.clone(), 1), "no page without anything on it");
    assert_eq!(all(false, 100), (live, 1));
    assert_eq!(all(true, 3), (ids.clone(), 3));

    let tokens = authority.tokens().unwrap();
    let first = authority.token_page(None, 5).unwrap();
    let second = authority.token_page(first.next.as_deref(), 5).unwrap();
    assert_eq!([first.items, second.items].concat(), tokens);
    assert_eq!(second.next, None);
    let valid = |record: &CertRecord| record.revoked.is_none();
    let first = authority.certificate_page(valid, None, 4).unwrap();
    let second = authority.certificate_page(valid, first.next.as_deref(), 4).unwrap();
    assert_eq!((first.items.len(), second.items.len(), second.next), (4, 2, None));
    assert!(authority.bar_page(Some("nothing"), 1).unwrap().items.is_empty());
}
