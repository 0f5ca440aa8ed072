//! Rekeying IKE SAs (RFC 7296 1.3.2, 2.18).

use std::time::Duration;

use ike::event::{CloseReason, Event};
use ike::wire::Header;
use ike::{Command, SaState};

use crate::harness::*;

fn rekey(pair: &mut Pair, side: Side) {
    let id = pair.peer(side).established()[0].id;
    pair.command(side, Command::RekeyIke(id));
}

#[test]
fn either_side_rekeys_and_the_children_move() {
    for side in [Side::Client, Side::Server] {
        let mut pair = Pair::connected();
        let children = (pair.client.inbound(), pair.server.inbound());
        let old = pair.server.established()[0].clone();

        rekey(&mut pair, side);
        // --> CREATE_CHILD_SA { SA, Ni, KEi }
        pair.step().unwrap();
        let states = |peer: &Peer| peer.engine.sas().map(|sa| sa.state).collect::<Vec<_>>();
        assert_eq!(states(pair.peer(side.other())), [SaState::Rekeyed, SaState::Established]);
        // <-- CREATE_CHILD_SA { SA, Nr, KEr }
        pair.step().unwrap();
        assert_eq!(states(pair.peer(side)), [SaState::Rekeyed, SaState::Established]);
        // --> INFORMATIONAL { D } on the old SA
        pair.run();

        pair.assert_connected();
        assert_eq!((pair.client.inbound(), pair.server.inbound()), children);
        let new = pair.server.established()[0].clone();
        assert_ne!(new.spis, old.spis);
        assert_eq!(new.lease, old.lease);
        assert_eq!(new.children.len(), 1);
        assert_eq!(pair.server.ends(), [CloseReason::Rekeyed]);
        assert!(pair.server.removed.is_empty());
        // The new SA works in both directions, and on the wire who rekeyed is its initiator.
        for closer in [Side::Client, Side::Server] {
            let child = *pair.peer(closer).plane.keys().next().unwrap();
            pair.command(closer, Command::RekeyChild(child));
            let request = &pair.wire.front().unwrap().datagram.payload;
            assert_eq!(Header::peek(request).unwrap().flags.initiator, closer == side);
            pair.run();
            pair.assert_connected();
        }
        pair.assert_no_leaks();
    }
}

#[test]
fn the_timers_rekey_over_and_over() {
    let mut setup = Setup::new().quiet();
    setup.client.timers.rekey_ike = Duration::from_secs(100);
    setup.server.timers.rekey_ike = Duration::from_secs(100);
    setup.client.timers.rekey_child = Duration::from_secs(30);
    setup.server.timers.dpd = Duration::from_secs(10);
    let mut pair = Pair::connected_with(setup);

    pair.run_for(Duration::from_secs(1000));

    let ups = pair.client.events.iter().filter(|e| matches!(e, Event::IkeUp { .. })).count();
    assert!(ups >= 10, "{ups} IKE SAs");
    pair.assert_connected();
    pair.assert_traffic_flows();
    pair.assert_no_leaks();
}

#[test]
fn each_message_of_a_rekey_may_be_lost_or_repeated() {
    for n in 0..4 {
        for twice in [false, true] {
            let mut pair = Pair::connected();
            rekey(&mut pair, Side::Client);
            for _ in 0..n {
                pair.step();
            }
            let flight = pair.lose();
            if twice {
                pair.deliver(flight.clone());
                pair.deliver(flight);
            }
            pair.run_for(Duration::from_secs(40));

            pair.assert_connected();
            pair.assert_no_leaks();
        }
    }
}

#[test]
fn another_group_is_taken_when_the_peer_insists() {
    let mut setup = Setup::new().quiet();
    setup.client.ike_suites = ike("aes256gcm16-prfsha384-x25519-ecp256");
    let mut pair = Pair::connected_with(setup);
    let mut config = pair.server.config.clone();
    config.ike_suites = ike("aes256gcm16-prfsha384-ecp256");
    pair.command(Side::Server, Command::Reconfigure(Box::new(config)));

    rekey(&mut pair, Side::Client);
    pair.run();

    pair.assert_connected();
    let suite = pair.server.established()[0].suite.clone();
    assert_eq!(suite.as_deref(), Some("aes256gcm16-prfsha384-ecp256"));
    pair.assert_no_leaks();
}

#[test]
fn no_common_proposal_keeps_the_old_sa() {
    let mut pair = Pair::connected();
    let mut config = pair.server.config.clone();
    config.ike_suites = ike("chacha20poly1305-prfsha256-ecp384");
    pair.command(Side::Server, Command::Reconfigure(Box::new(config)));

    rekey(&mut pair, Side::Client);
    pair.run();

    assert_eq!(pair.server.codes(), ["no_proposal_chosen"]);
    assert_eq!(pair.client.codes(), ["rekey_refused"]);
    pair.assert_connected();
    pair.assert_no_leaks();
}

#[test]
fn an_old_sa_nobody_deletes_does_not_stay() {
    let mut pair = Pair::connected();
    rekey(&mut pair, Side::Client);
    pair.step();
    pair.step();
    pair.wire.clear();

    for _ in 0..40 {
        pair.wait(Duration::from_secs(1));
        pair.wire.clear();
    }

    assert_eq!(pair.server.engine.sas().count(), 1);
    assert_eq!(pair.client.engine.sas().count(), 1);
    pair.assert_connected();
    pair.assert_no_leaks();
}

#[test]
fn the_deadline_goes_along() {
    let mut setup = Setup::new().quiet();
    setup.grant.as_mut().unwrap().deadline = ike::WallTime(START + 60_000_000);
    let mut pair = Pair::connected_with(setup);
    rekey(&mut pair, Side::Client);
    pair.run_for(Duration::from_secs(59));
    pair.assert_connected();

    pair.run_for(Duration::from_secs(1));

    pair.assert_nothing_installed();
    pair.assert_no_leaks();
}

#[test]
fn a_restart_after_a_rekey_finds_the_new_sa_only() {
    let mut pair = Pair::connected();
    rekey(&mut pair, Side::Client);
    pair.run();
    assert_eq!(pair.server.snapshots.len(), 1);

    pair.restart(Side::Server);
    pair.assert_connected();
    rekey(&mut pair, Side::Server);
    pair.run();

    pair.assert_connected();
}
