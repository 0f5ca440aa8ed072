//! Ends: DELETE from either side, both at once, lost, repeated (RFC 7296 1.4.1, 2.25.2).

use std::time::Duration;

use ike::Command;
use ike::event::{CloseReason, Event};
use ike::io::{Action, Output};
use ike::{SaState, WallTime};

use crate::harness::*;

fn close(pair: &mut Pair, side: Side) {
    let id = pair.peer(side).established()[0].id;
    pair.command(side, Command::CloseIkeSa(id, CloseReason::Operator));
}

#[test]
fn either_side_closes_both() {
    for side in [Side::Client, Side::Server] {
        let mut pair = Pair::connected();

        close(&mut pair, side);
        // The closing side's data plane is clean before anything is sent.
        assert_eq!(pair.peer(side).inbound(), []);
        assert_eq!(pair.peer(side.other()).inbound().len(), 1);
        pair.step();
        pair.assert_nothing_installed();
        pair.run();

        assert_eq!(pair.peer(side).engine.sas().count(), 0);
        assert_eq!(pair.peer(side).ends(), [CloseReason::Operator]);
        assert_eq!(pair.peer(side.other()).ends(), [CloseReason::PeerDeleted]);
        pair.assert_no_leaks();
    }
}

#[test]
fn the_data_plane_is_told_before_the_peer() {
    let mut pair = Pair::connected();
    let before = pair.server.outputs.len();

    close(&mut pair, Side::Server);

    let order: Vec<_> = pair.server.outputs[before..]
        .iter()
        .filter_map(|output| match output {
            Output::Action(_, Action::RemoveChild { last, .. }) => Some(format!("remove {last}")),
            Output::Checkpoint(checkpoint) => {
                Some(format!("keep {}", checkpoint.snapshot.is_some()))
            }
            Output::Transmit(_) => Some("transmit".to_owned()),
            _ => None,
        })
        .collect();
    assert_eq!(order, ["remove true", "keep false", "transmit"]);
    pair.assert_no_leaks();
}

#[test]
fn both_close_at_once() {
    let mut pair = Pair::connected();

    close(&mut pair, Side::Client);
    close(&mut pair, Side::Server);
    pair.assert_nothing_installed();
    pair.run();

    assert!(pair.client.alive().is_empty() && pair.server.alive().is_empty());
    assert_eq!(pair.client.engine.stats().retransmissions, 0);
    pair.assert_no_leaks();
}

#[test]
fn a_lost_delete_is_sent_again_from_the_tombstone() {
    let mut pair = Pair::connected();
    close(&mut pair, Side::Server);
    pair.lose();
    assert_eq!(pair.server.engine.sas().next().unwrap().state, SaState::Closing);
    assert_eq!(pair.client.inbound().len(), 1);

    pair.run_for(Duration::from_secs(2));

    pair.assert_nothing_installed();
    assert_eq!(pair.server.engine.sas().count(), 0);
    pair.assert_no_leaks();
}

#[test]
fn a_lost_answer_to_delete_is_repeated() {
    let mut pair = Pair::connected();
    close(&mut pair, Side::Server);
    pair.step();
    pair.lose();
    assert_eq!(pair.client.engine.sas().next().unwrap().state, SaState::Lingering);

    pair.run_for(Duration::from_secs(2));

    assert_eq!(pair.server.engine.sas().count(), 0);
    assert_eq!(pair.client.engine.stats().replayed_responses, 1);
    pair.assert_no_leaks();
}

#[test]
fn a_tombstone_does_not_stay_forever() {
    let mut pair = Pair::connected();
    close(&mut pair, Side::Server);

    for _ in 0..31 {
        pair.wire.clear();
        pair.wait(Duration::from_secs(1));
    }
    pair.wire.clear();

    assert_eq!(pair.server.engine.sas().count(), 0);
    // The client learns it only by its own means.
    assert_eq!(pair.client.established().len(), 1);
    pair.assert_no_leaks();
}

#[test]
fn one_child_is_closed_and_the_ike_sa_stays() {
    for side in [Side::Client, Side::Server] {
        let mut pair = Pair::connected();
        let child = *pair.peer(side).plane.keys().next().unwrap();

        pair.command(side, Command::CloseChild(child, CloseReason::Operator));
        assert_eq!(pair.peer(side).inbound(), []);
        pair.run();

        pair.assert_nothing_installed();
        for peer in [&pair.client, &pair.server] {
            assert_eq!(peer.established()[0].children.len(), 0);
        }
        pair.assert_no_leaks();
    }
}

#[test]
fn both_close_the_child_at_once() {
    let mut pair = Pair::connected();
    for side in [Side::Client, Side::Server] {
        let child = *pair.peer(side).plane.keys().next().unwrap();
        pair.command(side, Command::CloseChild(child, CloseReason::Operator));
    }

    pair.run();

    pair.assert_nothing_installed();
    assert_eq!(pair.client.established().len(), 1);
    assert_eq!(pair.server.established().len(), 1);
    assert_eq!(pair.server.removed.len(), 1);
    pair.assert_no_leaks();
}

#[test]
fn final_counters_arrive_with_the_end_of_a_child() {
    let mut pair = Pair::connected();
    close(&mut pair, Side::Server);

    let down = pair.server.events.iter().find_map(|event| match event {
        Event::ChildDown { usage, reason, .. } => Some((usage.is_some(), reason.clone())),
        _ => None,
    });

    assert_eq!(down, Some((true, CloseReason::Operator)));
    pair.run();
    pair.assert_no_leaks();
}

#[test]
fn the_grants_deadline_ends_everything() {
    let mut setup = Setup::new().quiet();
    setup.grant.as_mut().unwrap().deadline = WallTime(START + 3_600_000_000);
    // A client that is not told of the end does not authenticate again before it.
    setup.server.timers.min_auth_lifetime = Duration::from_secs(86_400);
    let mut pair = Pair::connected_with(setup);

    pair.run_for(Duration::from_secs(3599));
    pair.assert_connected();
    pair.run_for(Duration::from_secs(1));

    pair.assert_nothing_installed();
    assert_eq!(pair.server.ends(), [CloseReason::Expired]);
    assert_eq!(pair.client.ends(), [CloseReason::PeerDeleted]);
    pair.assert_no_leaks();
}

#[test]
fn a_jump_of_the_wall_clock_is_honoured_at_the_next_input() {
    let mut pair = Pair::connected();

    pair.now.wall = WallTime(pair.now.wall.0 + 90_000_000_000);
    pair.input(Side::Server, ike::Input::Timeout);

    assert_eq!(pair.server.inbound(), []);
    pair.run();
    pair.assert_nothing_installed();
    pair.assert_no_leaks();
}

#[test]
fn a_wall_clock_set_back_gives_no_extra_wakeups_and_no_early_end() {
    let mut pair = Pair::connected();

    pair.now.wall = WallTime(pair.now.wall.0 - 90_000_000_000);
    pair.run_for(Duration::from_secs(86_400));
    pair.assert_connected();
    pair.run_for(Duration::from_secs(90_000));

    pair.assert_nothing_installed();
    pair.assert_no_leaks();
}

#[test]
fn shutdown_closes_everything_and_then_the_engine_is_idle() {
    let mut pair = Pair::connected();

    pair.command(Side::Server, Command::Shutdown);
    assert!(!pair.server.engine.is_idle());
    pair.run();

    assert!(pair.server.engine.is_idle());
    pair.assert_nothing_installed();
    pair.assert_no_leaks();
}
