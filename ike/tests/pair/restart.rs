//! Snapshots: what is checkpointed before each transmission is enough to go on.

use std::time::Duration;

use ike::event::CloseReason;
use ike::io::{Action, Completion};
use ike::snapshot::{Snapshot, SnapshotError};
use ike::{Command, Input, Output, WallTime};

use crate::harness::*;

#[test]
fn a_snapshot_survives_its_octets() {
    let mut pair = Pair::connected_with(Setup::new());
    pair.run_for(Duration::from_secs(30));

    for peer in [&pair.client, &pair.server] {
        let snapshot = peer.snapshots.values().next().unwrap();
        let octets = snapshot.encode();

        assert!(Snapshot::decode(&octets).unwrap() == *snapshot);
        for len in 0..octets.len() {
            assert!(Snapshot::decode(&octets[..len]).is_err());
        }
        let mut newer = octets.to_vec();
        newer[0] = 99;
        assert_eq!(Snapshot::decode(&newer), Err(SnapshotError::Version(99)));
    }
    pair.assert_no_leaks();
}

#[test]
fn no_snapshot_shows_a_key() {
    let pair = Pair::connected();
    let snapshot = pair.server.snapshots.values().next().unwrap();

    let shown = format!("{snapshot:?}");

    assert!(shown.contains("ChildKeys(36+0 bytes)"), "{shown}");
    assert!(shown.contains("SecretBytes(48 octets)"), "{shown}");
    pair.assert_no_leaks();
}

#[test]
fn a_checkpoint_precedes_every_transmission_of_an_established_sa() {
    let mut pair = Pair::connected();
    let before = pair.server.outputs.len();
    let id = pair.client.established()[0].id;
    pair.command(Side::Client, Command::CloseIkeSa(id, CloseReason::Operator));
    pair.run();

    let at = |wanted: fn(&Output) -> bool| {
        pair.server.outputs[before..].iter().position(wanted).unwrap()
    };
    assert!(
        at(|output| matches!(output, Output::Checkpoint(_)))
            < at(|output| matches!(output, Output::Transmit(_)))
    );
    pair.assert_no_leaks();
}

#[test]
fn either_side_restarts_and_the_tunnel_goes_on() {
    for side in [Side::Client, Side::Server] {
        let mut setup = Setup::new().quiet();
        setup.client.timers.dpd = Duration::from_secs(10);
        setup.server.timers.dpd = Duration::from_secs(10);
        let mut pair = Pair::connected_with(setup);
        pair.run_for(Duration::from_secs(25));
        let inbound = pair.peer(side).inbound();

        pair.restart(side);

        assert_eq!(pair.peer(side).inbound(), inbound);
        pair.assert_connected();
        pair.run_for(Duration::from_secs(60));
        pair.assert_connected();
        let id = pair.peer(side).established()[0].id;
        pair.command(side, Command::CloseIkeSa(id, CloseReason::Operator));
        pair.run();
        pair.assert_nothing_installed();
    }
}

/// With thousands of tunnels the data plane takes a while until it has taken back the last.
#[test]
fn children_wait_for_a_data_plane_that_takes_its_time() {
    let mut pair = Pair::connected_with(Setup::new().quiet());
    pair.server.hold = |action| matches!(action, Action::InstallChild(_));

    pair.restart(Side::Server);
    pair.run_for(Duration::from_secs(120));
    assert_eq!(pair.server.held.len(), 1);
    pair.release(Side::Server, 0);
    pair.run();

    pair.assert_connected();
}

#[test]
fn a_data_plane_that_does_not_take_a_child_back_costs_this_child() {
    let mut pair = Pair::connected_with(Setup::new().quiet());
    pair.server.hold = |action| matches!(action, Action::InstallChild(_));

    pair.restart(Side::Server);
    let (token, _) = pair.server.held.remove(0);
    let refused = Completion::InstallChild(Err("unknown".to_owned()));
    pair.input(Side::Server, Input::Completion(token, refused));
    pair.run();

    assert!(pair.client.plane.is_empty(), "the peer was told");
    assert!(!pair.server.established().is_empty(), "the IKE SA stays");
}

/// A tunnel that carries packets is not written down between its rekeys: what a restart finds may
/// be as old as the keys, which must not live once more from then on.
#[test]
fn time_goes_on_while_nobody_runs() {
    let mut setup = Setup::new().quiet();
    setup.server.timers.rekey_child = Duration::from_secs(1000);
    let pair = Pair::connected_with(setup);
    let saved = pair.server.snapshots.values().next().unwrap().clone();
    let child = |snapshot: &Snapshot| (snapshot.children[0].age, snapshot.children[0].rekey_in);

    let (age, rekey_in) = child(&saved);
    let by = Duration::from_secs(400);
    let later = saved.clone().aged(by);
    assert_eq!(child(&later), (age + by, rekey_in.map(|left| left - by)));
    assert_eq!((later.age, later.connected_for), (saved.age + by, saved.connected_for + by));
    let overdue = saved.aged(Duration::from_secs(5000));
    assert_eq!(child(&overdue).1, Some(Duration::ZERO), "at once");
}

#[test]
fn a_request_under_way_is_sent_again_after_the_restart() {
    let mut setup = Setup::new().quiet();
    setup.server.continuity.message_id_sync = false;
    setup.server.timers.dpd = Duration::from_secs(10);
    let mut pair = Pair::connected_with(setup);
    pair.wait(Duration::from_secs(10));
    let check = pair.lose();

    pair.restart(Side::Server);
    pair.wait(Duration::from_secs(1));

    assert_eq!(pair.wire[0], check);
    pair.run();
    pair.assert_connected();
}

#[test]
fn a_repeated_request_is_answered_from_the_restored_cache() {
    let mut setup = Setup::new().quiet();
    setup.server.continuity.message_id_sync = false;
    setup.client.timers.dpd = Duration::from_secs(10);
    let mut pair = Pair::connected_with(setup);
    pair.wait(Duration::from_secs(10));
    let check = pair.step().unwrap();
    let answer = pair.lose();

    pair.restart(Side::Server);
    pair.deliver(check);

    assert_eq!(pair.wire[0], answer);
    pair.run();
    pair.assert_connected();
}

#[test]
fn a_lease_that_ended_meanwhile_ends_at_once() {
    let mut pair = Pair::connected();

    pair.now.wall = WallTime(pair.now.wall.0 + 90_000_000_000);
    pair.restart(Side::Server);
    pair.input(Side::Server, Input::Timeout);
    pair.run();

    assert_eq!(pair.server.ends(), [CloseReason::Expired]);
    pair.assert_nothing_installed();
}

#[test]
fn a_closed_sa_leaves_no_snapshot() {
    let mut pair = Pair::connected();
    assert_eq!(pair.server.snapshots.len(), 1);

    pair.command(Side::Server, Command::Shutdown);

    assert_eq!(pair.server.snapshots.len(), 0);
    pair.assert_no_leaks();
}

#[test]
fn a_child_made_while_we_were_away_is_deleted_and_the_old_one_rekeyed_again() {
    // RFC 7296 2.1, 2.25.1: the answer belongs to a request whose keys are lost.
    let mut setup = Setup::new().quiet();
    setup.server.continuity.message_id_sync = false;
    setup.server.timers.rekey_child = Duration::from_secs(1000);
    let mut pair = Pair::connected_with(setup);
    let child = *pair.server.plane.keys().next().unwrap();
    let old = pair.server.inbound();
    pair.command(Side::Server, Command::RekeyChild(child));
    // The client makes the child; its answer finds a server that has just started again.
    pair.step();
    assert_eq!(pair.client.inbound().len(), 2);

    pair.restart(Side::Server);
    assert_eq!(pair.server.inbound(), old);
    pair.run();

    pair.assert_mirrored(1);
    pair.run_for(Duration::from_secs(30));
    pair.assert_mirrored(1);
    assert_ne!(pair.server.inbound(), old);
}

#[test]
fn an_ike_sa_replaced_while_we_were_away_is_given_up() {
    let mut setup = Setup::new().quiet();
    setup.client.timers.dpd = Duration::from_secs(10);
    let mut pair = Pair::connected_with(setup);
    let id = pair.server.established()[0].id;
    pair.command(Side::Server, Command::RekeyIke(id));
    pair.step();

    pair.restart(Side::Server);
    pair.run_for(Duration::from_secs(120));

    pair.assert_nothing_installed();
    assert!(pair.client.alive().is_empty() && pair.server.alive().is_empty());
}

/// RFC 7296 2.25.2: what was asked before the restart may have made a child at the peer, which can
/// be closed only under the IKE SA that it belongs to. So that one is not replaced yet.
#[test]
fn an_ike_rekey_waits_for_what_was_asked_before_the_restart() {
    let mut pair = Pair::connected();
    let child = *pair.server.plane.keys().next().unwrap();
    pair.command(Side::Server, Command::RekeyChild(child));
    pair.step();
    assert_eq!(pair.client.inbound().len(), 2);
    pair.lose();
    pair.restart(Side::Server);

    let ike = pair.client.established()[0].id;
    pair.command(Side::Client, Command::RekeyIke(ike));
    pair.run_for(Duration::from_secs(60));

    pair.assert_connected();
    assert!(pair.client.ends().contains(&CloseReason::Rekeyed), "tried again, and done");
}

/// The answer to our rekey has come, and the new child is being installed: a restart in between
/// leaves no half of it at the peer.
#[test]
fn a_restart_between_an_answer_and_its_effect_leaves_no_half_child() {
    // RFC 7296 2.1: the request is out until its answer has had its effect.
    let mut pair = Pair::connected();
    pair.server.hold = |action| matches!(action, ike::io::Action::InstallChild(_));
    let child = *pair.server.plane.keys().next().unwrap();
    pair.command(Side::Server, Command::RekeyChild(child));
    pair.run();
    assert_eq!(pair.client.inbound().len(), 2);
    pair.server.hold = |_| false;

    pair.restart(Side::Server);
    pair.run_for(Duration::from_secs(60));

    pair.assert_connected();
    pair.assert_traffic_flows();
}

/// The client's rekey is answered, its answer is lost, and the gateway begins again: it does not
/// rekey what it has replaced, and both come to one child.
#[test]
fn what_was_replaced_before_the_restart_is_not_rekeyed_after_it() {
    // RFC 7296 2.8, 2.25.1.
    let mut setup = Setup::new();
    setup.client.timers.rekey_child = Duration::ZERO;
    let mut pair = Pair::connected_with(setup);
    let child = *pair.client.plane.keys().next().unwrap();
    pair.command(Side::Client, Command::RekeyChild(child));
    pair.step();
    assert_eq!(pair.server.inbound().len(), 2);
    pair.lose();

    pair.restart(Side::Server);
    assert_eq!(pair.server.inbound().len(), 2);
    // The client's copies are lost for longer than the gateway waits before it rekeys.
    for _ in 0..12 {
        pair.wire.retain(|flight| flight.exchange() != ike::wire::ExchangeType::CreateChildSa);
        pair.run();
        pair.wait(Duration::from_secs(1));
    }
    pair.run_for(Duration::from_secs(120));

    pair.assert_connected();
    pair.assert_traffic_flows();
}

/// The snapshot of a release before, whose time since the connection is that since the last rekey.
#[test]
fn a_snapshot_of_the_version_before_is_read() {
    let hex = include_str!("../data/snapshot-v5.hex").trim().as_bytes();
    let octet = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    let octets: Vec<u8> = hex.chunks(2).map(octet).collect();
    assert_eq!(octets[0], 5);

    let saved = Snapshot::decode(&octets).unwrap();

    assert_eq!((saved.next_request, saved.next_expected), (0, 4));
    assert_eq!(saved.identity, ike::wire::Identification::fqdn("client.example.com"));
    assert_eq!(saved.grant.lease.0, LEASE);
    assert_eq!(saved.connected_for, saved.age);
    let [child] = &saved.children[..] else { panic!("one child") };
    assert_eq!((child.spi_in, child.spi_out), (0x5000_0002, 0xc000_0002));
    assert!(child.by_peer && child.outbound_active);
    // What is written now is of the version of now, and says the same.
    let again = saved.encode();
    assert!(again[0] > 5 && Snapshot::decode(&again).unwrap() == saved);
    let mut older = octets;
    older[0] = 4;
    assert_eq!(Snapshot::decode(&older), Err(SnapshotError::Version(4)));
}
