//! Other periods in `[lease]` hold for the leases that live already.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::time::Duration;

use common::*;
use pki::*;

fn with(connect_within: u64, lost_grace: u64) -> Settings {
    let mut settings = settings();
    settings.timers.connect_within = Duration::from_secs(connect_within);
    settings.timers.lost_grace = Duration::from_secs(lost_grace);
    settings
}

/// What ended by now, each with its state and cause.
fn ended(authority: &Authority, secs: u64) -> Vec<(String, LeaseState, String, bool)> {
    let changes = authority.expire_due(after(secs)).unwrap();
    let told = changes.into_iter().map(|change| {
        let cause = change.lease.end.map(|end| end.cause).unwrap_or_default();
        (change.lease.id, change.lease.state, cause, change.end_tunnels)
    });
    told.collect()
}

/// A lease that never connected, one that was lost at 10, and one that is connected.
fn leases(authority: &Authority) -> [String; 3] {
    let ids = [(); 3].map(|()| enrolled(authority).1.lease.id);
    for id in &ids[1..] {
        authority.connected(id, after(1)).unwrap();
    }
    authority.disconnected(&ids[1], "dead peer", after(10)).unwrap();
    ids
}

#[test]
fn shorter_periods_end_leases_that_live_already() {
    let authority = authority();
    let [unused, lost, connected] = leases(&authority);
    assert_eq!(authority.next_deadline().unwrap(), Some(after(100)));
    authority.reconfigure(with(60, 20)).unwrap();
    assert_eq!(authority.next_deadline().unwrap(), Some(after(30)));
    assert_eq!(ended(&authority, 29), []);
    let gone = (lost, LeaseState::Released, "lost".to_owned(), true);
    assert_eq!(ended(&authority, 30), [gone]);
    assert_eq!(ended(&authority, 59), []);
    let gone = (unused, LeaseState::Expired, "never_connected".to_owned(), true);
    assert_eq!(ended(&authority, 60), [gone]);
    assert_eq!(authority.lease(&connected).unwrap().unwrap().state, LeaseState::Active);
}

#[test]
fn what_is_overdue_by_them_ends_at_once_and_denies_its_certificate() {
    let authority = authority();
    let [_, lost, _] = leases(&authority);
    assert_eq!(ended(&authority, 50), []);
    authority.reconfigure(with(300, 20)).unwrap();
    // Also before the timer comes to it.
    let refused = authority.connected(&lost, after(50)).unwrap_err();
    assert!(matches!(refused, Error::LeaseState { state: LeaseState::Released, .. }), "{refused}");
    assert_eq!(ended(&authority, 50).len(), 1);
    let lease = authority.lease(&lost).unwrap().unwrap();
    let certificate = authority.certificate(&lease.cert().unwrap().serial).unwrap().unwrap();
    assert!(certificate.revoked.is_some());
}

#[test]
fn longer_periods_give_them_more_time_and_the_same_ones_change_nothing() {
    let authority = authority();
    let [unused, lost, _] = leases(&authority);
    let records = authority.audit_end().unwrap();
    authority.reconfigure(with(300, 90)).unwrap();
    assert_eq!(authority.next_deadline().unwrap(), Some(after(100)));
    authority.reconfigure(with(900, 600)).unwrap();
    assert_eq!(ended(&authority, 609), []);
    assert_eq!(ended(&authority, 610)[0].0, lost);
    assert_eq!(ended(&authority, 899), []);
    assert_eq!(ended(&authority, 900)[0].0, unused);
    assert!(authority.audit_end().unwrap() > records);
    assert!(authority.verify_audit().unwrap().is_sound());
}

#[test]
fn many_are_all_done_also_at_a_start_with_another_configuration() {
    let directory = tempfile::tempdir().unwrap();
    let mut wide = with(300, 90);
    let networks = vec!["10.78.0.0/16".parse().unwrap()];
    wide.pools.insert("runners".to_owned(), PoolConfig::new(networks));
    let open = |settings: &Settings| {
        reopen(directory.path(), || Options::new(settings.clone()), after(1)).unwrap()
    };
    let authority = open(&wide);
    for _ in 0..300 {
        enrolled(&authority);
    }
    drop(authority);
    wide.timers.connect_within = Duration::from_secs(100);
    let authority = open(&wide);
    assert_eq!(ended(&authority, 99), []);
    assert_eq!(ended(&authority, 100).len(), 300);
}
