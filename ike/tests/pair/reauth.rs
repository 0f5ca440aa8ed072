//! Reauthentication (RFC 7296 2.8.3, RFC 4478): make-before-break, from either role.

use std::time::Duration;

use ike::event::CloseReason;
use ike::io::{Action, Input, LeaseId, TimerKind, UniquePolicy};
use ike::{Command, Output};

use crate::harness::*;

/// A client with one connection that is about to have a second one.
fn second() -> Pair {
    let mut pair = Pair::connected();
    pair.initiate();
    pair.run();
    pair
}

/// Actions about children on the server since the given output, as (verb, child).
fn child_actions(pair: &Pair, from: usize) -> Vec<(&'static str, u64)> {
    let actions = pair.server.outputs.iter().skip(from).filter_map(|output| match output {
        Output::Action(_, action) => Some(action),
        _ => None,
    });
    actions
        .filter_map(|action| match action {
            Action::InstallChild(install) => Some(("install", install.child.0)),
            Action::ActivateChild(child) => Some(("activate", child.0)),
            Action::RemoveChild { child, .. } => Some(("remove", child.0)),
            _ => None,
        })
        .collect()
}

#[test]
fn the_first_sa_stays_until_the_peer_deletes_it_and_no_packet_is_lost() {
    let mut pair = Pair::connected();
    let (old_ike, old) = (pair.client.established()[0].id, pair.server.inbound());
    let from = pair.server.outputs.len();
    pair.initiate();
    pair.run();

    // Both live, with the same addresses, and we still send on the old child.
    assert_eq!(pair.server.established().len(), 2);
    assert!(pair.server.inbound().contains(&old[0]));
    let sas = pair.server.established();
    assert_eq!(sas[0].addresses, sas[1].addresses);
    assert!(sas[0].children[0].outbound_active && !sas[1].children[0].outbound_active);
    pair.assert_traffic_flows();

    // The peer deletes the first: we send on the second before the first goes.
    pair.command(Side::Client, Command::CloseIkeSa(old_ike, CloseReason::Operator));
    pair.run();
    let (first, new) = (sas[0].children[0].id.0, sas[1].children[0].id.0);
    assert_eq!(
        child_actions(&pair, from),
        [("install", new), ("activate", new), ("remove", first)]
    );
    assert_eq!(pair.server.ends(), [CloseReason::PeerDeleted]);
    assert!(pair.server.established()[0].children[0].outbound_active);
    assert!(!pair.server.removed[0].1, "the filter belongs to the lease, which lives on");
    pair.assert_connected();
    pair.assert_traffic_flows();
    pair.assert_no_leaks();
}

#[test]
fn a_first_sa_that_is_not_deleted_goes_by_itself() {
    let mut pair = second();

    // RFC 7296 2.8 for rekeys holds here: the peer has had time to receive.
    pair.wait(Duration::from_secs(5));
    assert!(pair.server.established()[1].children[0].outbound_active);
    assert_eq!(pair.server.established().len(), 2);

    pair.run_for(Duration::from_secs(30));
    assert_eq!(pair.server.ends(), [CloseReason::Replaced]);
    pair.assert_connected();
    pair.assert_no_leaks();
}

#[test]
fn the_second_reauthentication_with_one_certificate_is_refused_for_a_while() {
    let mut pair = second();

    pair.run_for(Duration::from_secs(20));
    pair.initiate();
    pair.run();
    assert_eq!(pair.server.codes(), ["reauth_loop"]);
    assert!(pair.server.refusals()[0].fix.starts_with("renew the certificate first"));
    assert!(!pair.server.established().is_empty(), "what is established stays");

    pair.run_for(Duration::from_secs(40));
    pair.initiate();
    pair.run();
    assert_eq!(pair.server.codes().len(), 1);
    assert_eq!(pair.client.codes(), ["auth_refused"]);
    pair.assert_no_leaks();
}

#[test]
fn a_lease_that_ends_during_the_overlap_ends_both() {
    let mut pair = second();
    let lease = LeaseId(LEASE.to_owned());

    pair.command(Side::Server, Command::CloseLease(lease, CloseReason::Revoked));
    assert_eq!(pair.server.inbound(), []);
    pair.run();

    assert_eq!(pair.server.ends(), [CloseReason::Revoked, CloseReason::Revoked]);
    pair.assert_nothing_installed();
    pair.assert_no_leaks();
}

#[test]
fn we_authenticate_again_before_the_announced_end() {
    // RFC 4478: the server's grant ends in two hours, which it announces.
    let mut setup = Setup::new().quiet();
    setup.grant.as_mut().unwrap().deadline = ike::WallTime(START + 7_200_000_000);
    let mut pair = Pair::connected_with(setup);
    let (old_client, old_server) = (pair.client.inbound(), pair.server.inbound());
    let due = pair.client.engine.poll_timeout().unwrap();
    assert_eq!(due.reason, TimerKind::Reauth);

    pair.server.grant.as_mut().unwrap().deadline = ike::WallTime(START + 14_400_000_000);
    pair.wait(Duration::from_secs(7_200 - 60 - 600));
    pair.run();

    // The client closed the first when the second was complete.
    pair.assert_connected();
    assert_ne!(pair.client.inbound(), old_client);
    assert_ne!(pair.server.inbound(), old_server);
    assert_eq!(pair.client.ends(), [CloseReason::Replaced]);
    assert_eq!(pair.server.ends(), [CloseReason::PeerDeleted]);
    assert_eq!(
        pair.server.established()[0].deadline,
        Some(ike::WallTime(START + 14_400_000_000)),
        "a renewed certificate moves the deadline"
    );
    pair.assert_no_leaks();
}

#[test]
fn a_reauthentication_of_ours_that_fails_keeps_the_first_and_is_tried_again() {
    let mut pair = Pair::connected();
    let ike = pair.client.established()[0].id;
    let before = pair.client.inbound();
    let grant = pair.server.grant.take();

    pair.command(Side::Client, Command::Reauthenticate(ike));
    pair.run();
    assert_eq!(pair.client.inbound(), before);
    assert_eq!(pair.client.codes(), ["auth_refused"]);

    pair.server.grant = grant;
    pair.wait(Duration::from_secs(30));
    pair.run();
    pair.assert_connected();
    assert_ne!(pair.client.inbound(), before);
    pair.assert_no_leaks();
}

#[test]
fn a_rekeyed_sa_still_authenticates_again() {
    let mut setup = Setup::new().quiet();
    setup.grant.as_mut().unwrap().deadline = ike::WallTime(START + 7_200_000_000);
    let mut pair = Pair::connected_with(setup);
    let ike = pair.client.established()[0].id;
    pair.command(Side::Client, Command::RekeyIke(ike));
    pair.run();

    pair.server.grant.as_mut().unwrap().deadline = ike::WallTime(START + 14_400_000_000);
    pair.wait(Duration::from_secs(7_200 - 60 - 600));
    pair.run();
    pair.assert_connected();
    assert!(pair.client.ends().contains(&CloseReason::Replaced));
    pair.assert_no_leaks();
}

#[test]
fn a_lease_that_keeps_several_connections_knows_no_reauthentication() {
    let mut setup = Setup::new().quiet();
    setup.grant.as_mut().unwrap().unique = UniquePolicy::Keep;
    let mut pair = Pair::connected_with(setup);
    for _ in 0..2 {
        pair.initiate();
        pair.run();
    }
    pair.input(Side::Server, Input::Timeout);
    assert_eq!(pair.server.established().len(), 3);
    assert!(pair.server.established().iter().all(|sa| sa.children[0].outbound_active));
    pair.assert_no_leaks();
}

#[test]
fn a_rekey_of_the_first_sa_does_not_prolong_the_overlap() {
    let mut pair = second();
    let first = pair.server.established()[0].id;
    pair.command(Side::Server, Command::RekeyIke(first));
    pair.run();
    assert_eq!(pair.server.established().len(), 2);

    pair.run_for(Duration::from_secs(31));
    assert_eq!(pair.server.ends(), [CloseReason::Rekeyed, CloseReason::Replaced]);
    pair.assert_connected();
    pair.assert_traffic_flows();
    pair.assert_no_leaks();
}

#[test]
fn a_rekey_of_the_second_sa_does_not_lose_what_waits_to_send() {
    let mut pair = second();
    let sas = pair.server.established();
    pair.command(Side::Server, Command::RekeyIke(sas[1].id));
    pair.run();
    let first = pair.client.established()[0].id;
    pair.command(Side::Client, Command::CloseIkeSa(first, CloseReason::Operator));
    pair.run();

    assert!(pair.server.established()[0].children[0].outbound_active);
    pair.assert_connected();
    pair.assert_traffic_flows();
    pair.assert_no_leaks();
}

#[test]
fn an_overlap_ends_after_a_restart_as_well() {
    let mut pair = second();
    pair.restart(Side::Server);
    assert_eq!(pair.server.established().len(), 2);

    pair.run_for(Duration::from_secs(31));
    assert_eq!(pair.server.established().len(), 1);
    assert!(pair.server.established()[0].children[0].outbound_active);
    pair.assert_connected();
}
