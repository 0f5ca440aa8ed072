//! The lease decides: its end, its replacement, and races with handshakes under way.

use std::time::Duration;

use ike::Command;
use ike::event::CloseReason;
use ike::io::{Action, LeaseId, UniquePolicy};

use crate::harness::*;

fn release(pair: &mut Pair) {
    let lease = LeaseId(LEASE.to_owned());
    pair.command(Side::Server, Command::CloseLease(lease, CloseReason::Released));
}

#[test]
fn closing_a_lease_ends_its_tunnels() {
    let mut pair = Pair::connected();

    release(&mut pair);
    assert_eq!(pair.server.inbound(), []);
    pair.run();

    pair.assert_nothing_installed();
    assert_eq!(pair.server.ends(), [CloseReason::Released]);
    pair.assert_no_leaks();
}

#[test]
fn closing_another_lease_does_nothing() {
    let mut pair = Pair::connected();

    let lease = LeaseId("other".to_owned());
    pair.command(Side::Server, Command::CloseLease(lease, CloseReason::Revoked));
    pair.run();

    pair.assert_connected();
    pair.assert_no_leaks();
}

/// A handshake whose server is kept waiting for one kind of answer when the lease ends.
fn released_while(hold: fn(&Action) -> bool) {
    let mut pair = Setup::new().quiet().build();
    pair.server.hold = hold;
    pair.initiate();
    pair.run();
    assert_eq!(pair.server.held.len(), 1);

    release(&mut pair);
    pair.server.hold = |_| false;
    pair.release(Side::Server, 0);
    pair.run();

    pair.assert_nothing_installed();
    assert!(pair.server.established().is_empty());
    assert!(pair.client.established().is_empty());
    assert_eq!(pair.client.codes(), ["auth_refused"]);
    pair.assert_no_leaks();
}

#[test]
fn a_lease_that_ends_before_it_is_decided_does_not_come_up() {
    released_while(|action| matches!(action, Action::VerifyPeer(_)));
}

#[test]
fn a_lease_that_ends_while_it_is_decided_does_not_come_up() {
    released_while(|action| matches!(action, Action::Authorise(_)));
}

#[test]
fn a_lease_that_ends_while_we_sign_does_not_come_up() {
    released_while(|action| matches!(action, Action::Sign { .. }));
}

#[test]
fn a_lease_that_ends_while_the_spi_is_reserved_does_not_come_up() {
    released_while(|action| matches!(action, Action::AllocSpi));
}

#[test]
fn a_lease_that_ends_while_the_child_is_installed_does_not_come_up() {
    let mut pair = Setup::new().quiet().build();
    pair.server.hold = |action| matches!(action, Action::InstallChild(_));
    pair.initiate();
    pair.run();

    release(&mut pair);
    // The removal was asked for after the installation, and the driver keeps the order.
    assert_eq!(pair.server.removed.len(), 1);
    pair.run();

    assert!(pair.server.established().is_empty() && pair.client.established().is_empty());
    pair.server.held.clear();
    pair.assert_no_leaks();
}

#[test]
fn a_newer_connection_replaces_the_older() {
    let mut pair = Pair::connected();
    // RFC 7296 2.4: nothing of an earlier connection is wanted.
    pair.target.initial_contact = true;
    let old = pair.server.inbound();

    pair.initiate();
    pair.run();

    assert_eq!(pair.server.established().len(), 1);
    assert_ne!(pair.server.inbound(), old);
    assert_eq!(pair.server.ends(), [CloseReason::Replaced]);
    // The filter belongs to the lease, and the lease lives on.
    assert!(!pair.server.removed[0].1);
    pair.assert_connected();
    pair.assert_no_leaks();
}

#[test]
fn a_lease_may_keep_several_connections() {
    let mut setup = Setup::new().quiet();
    setup.grant.as_mut().unwrap().unique = UniquePolicy::Keep;
    let mut pair = Pair::connected_with(setup);

    pair.initiate();
    pair.run();

    assert_eq!(pair.server.established().len(), 2);
    pair.assert_no_leaks();
}

#[test]
fn a_lease_may_refuse_a_second_connection() {
    let mut setup = Setup::new().quiet();
    setup.grant.as_mut().unwrap().unique = UniquePolicy::Reject;
    let mut pair = Pair::connected_with(setup);

    pair.initiate();
    pair.run();

    assert_eq!(pair.server.codes(), ["lease_in_use"]);
    pair.assert_connected();
    pair.assert_no_leaks();
}

#[test]
fn an_updated_lease_moves_the_deadline() {
    let mut pair = Pair::connected();
    let mut grant = pair.server.grant.clone().unwrap();
    grant.deadline = ike::WallTime(pair.now.wall.0 + 60_000_000);

    let lease = LeaseId(LEASE.to_owned());
    pair.command(Side::Server, Command::UpdateLease(lease, grant));
    pair.run_for(Duration::from_secs(59));
    pair.assert_connected();
    pair.run_for(Duration::from_secs(1));

    pair.assert_nothing_installed();
    pair.assert_no_leaks();
}

#[test]
fn a_grant_that_has_expired_brings_nothing_up() {
    let mut setup = Setup::new().quiet();
    setup.grant.as_mut().unwrap().deadline = ike::WallTime(START);
    let mut pair = setup.build();

    pair.initiate();
    pair.run();

    assert_eq!(pair.server.codes(), ["lease_expired"]);
    pair.assert_nothing_installed();
    pair.assert_no_leaks();
}
