//! Liveness checks (RFC 7296 2.4).

use std::time::Duration;

use ike::event::CloseReason;
use ike::io::Action;
use ike::wire::ExchangeType;

use crate::harness::*;

fn with_dpd(side: Side) -> Pair {
    let mut setup = Setup::new().quiet();
    match side {
        Side::Client => setup.client.timers.dpd = Duration::from_secs(10),
        Side::Server => setup.server.timers.dpd = Duration::from_secs(10),
    }
    Pair::connected_with(setup)
}

#[test]
fn silence_is_broken_by_a_check_in_either_direction() {
    for side in [Side::Client, Side::Server] {
        let mut pair = with_dpd(side);

        pair.wait(Duration::from_secs(10));
        assert_eq!(pair.wire.len(), 1);
        assert_eq!(pair.wire[0].exchange(), ExchangeType::Informational);
        assert_eq!(pair.wire[0].to, side.other());
        pair.run();

        pair.assert_connected();
        pair.run_for(Duration::from_secs(300));
        pair.assert_connected();
        pair.assert_no_leaks();
    }
}

#[test]
fn traffic_makes_checks_needless() {
    let mut pair = with_dpd(Side::Server);
    pair.server.idle_in = Some(Duration::from_secs(3));

    pair.wait(Duration::from_secs(10));

    assert!(pair.wire.is_empty());
    // The next look is when the traffic would be old enough.
    let next = pair.server.engine.poll_timeout().unwrap();
    assert_eq!(next.at.since(pair.now.mono), Duration::from_secs(7));
    pair.assert_no_leaks();
}

#[test]
fn a_peer_that_does_not_answer_is_dead() {
    let mut pair = with_dpd(Side::Server);

    for _ in 0..60 {
        pair.wait(Duration::from_secs(1));
        pair.wire.clear();
    }

    assert_eq!(pair.server.ends(), [CloseReason::PeerDead]);
    assert_eq!(pair.server.inbound(), []);
    assert_eq!(pair.server.engine.sas().count(), 0);
    pair.assert_no_leaks();
}

#[test]
fn a_check_survives_loss() {
    let mut pair = with_dpd(Side::Server);
    pair.wait(Duration::from_secs(10));
    pair.lose();

    pair.run_for(Duration::from_secs(5));

    pair.assert_connected();
    pair.assert_no_leaks();
}

#[test]
fn a_data_plane_that_does_not_answer_does_not_stop_the_check() {
    let mut pair = with_dpd(Side::Server);
    pair.server.hold = |action| matches!(action, Action::QueryUse(_));

    pair.wait(Duration::from_secs(10));
    assert!(pair.wire.is_empty());
    pair.wait(Duration::from_secs(15));

    assert_eq!(pair.wire.len(), 1);
    pair.server.hold = |_| false;
    pair.server.held.clear();
    pair.run();
    pair.assert_connected();
    pair.assert_no_leaks();
}
