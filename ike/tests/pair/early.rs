//! What a gateway tells a client whose IKE_AUTH response was lost: the client knows nothing of the
//! connection yet, so it takes it when it does, and does not answer before (RFC 7296 2.2, 2.21.2).

use std::time::Duration;

use ike::Command;
use ike::event::{CloseReason, Event};
use ike::wire::RedirectGateway;

use crate::harness::*;

/// The server is connected, and its response is lost.
fn half_connected() -> Pair {
    let mut setup = Setup::new().quiet();
    setup.target.follow_redirects = true;
    let mut pair = setup.build();
    pair.initiate();
    // --> IKE_SA_INIT, <-- IKE_SA_INIT, --> IKE_AUTH
    for _ in 0..3 {
        pair.step().unwrap();
    }
    pair.lose();
    assert_eq!((pair.server.established().len(), pair.client.established().len()), (1, 0));
    pair
}

#[test]
fn a_child_that_the_gateway_closed_meanwhile_does_not_stay_with_the_client() {
    let mut pair = half_connected();
    let child = *pair.server.plane.keys().next().unwrap();
    pair.command(Side::Server, Command::CloseChild(child, CloseReason::Operator));
    // <-- INFORMATIONAL { D }, which is not answered
    pair.step().unwrap();
    assert_eq!(pair.wire.len(), 0);

    pair.run_for(Duration::from_secs(5));

    pair.assert_nothing_installed();
    assert_eq!((pair.server.established().len(), pair.client.established().len()), (1, 1));
    pair.assert_no_leaks();
}

#[test]
fn a_client_that_is_sent_away_meanwhile_goes() {
    let mut pair = half_connected();
    let to = Some(RedirectGateway::Fqdn(b"gw2.example.com".to_vec()));
    pair.command(Side::Server, Command::Redirect { to, existing: true });

    pair.run_for(Duration::from_secs(5));

    let went = |event: &Event| matches!(event, Event::Redirected { .. });
    assert!(pair.client.events.iter().any(went), "{:?}", pair.client.events);
    pair.assert_nothing_installed();
    pair.assert_no_leaks();
}

#[test]
fn a_connection_that_ended_meanwhile_is_given_up_at_once() {
    let mut pair = half_connected();
    let ike = pair.server.established()[0].id;
    pair.command(Side::Server, Command::CloseIkeSa(ike, CloseReason::Operator));

    pair.run();

    assert_eq!(pair.client.engine.stats().half_open, 0);
    assert!(pair.client.alive().is_empty(), "{:?}", pair.client.alive());
    pair.assert_no_leaks();
}

/// RFC 7383 2.6: a request that came too early in fragments is put together again when it is
/// repeated, or its sender would take us for dead.
#[test]
fn what_came_too_early_in_fragments_is_taken_when_it_is_repeated() {
    let mut setup = Setup::new().quiet();
    setup.target.follow_redirects = true;
    setup.server.fragment_size = 160;
    let mut pair = setup.build();
    pair.initiate();
    for _ in 0..3 {
        pair.step().unwrap();
    }
    assert!(pair.wire.len() > 1, "the response goes in fragments");
    pair.wire.clear();
    let name = format!("{}.example.com", "gw2".repeat(60));
    let to = Some(RedirectGateway::Fqdn(name.into_bytes()));
    pair.command(Side::Server, Command::Redirect { to, existing: true });
    assert!(pair.wire.len() > 1, "and so does the request");

    pair.run_for(Duration::from_secs(12));

    let went = |event: &Event| matches!(event, Event::Redirected { .. });
    assert!(pair.client.events.iter().any(went), "{:?}", pair.client.events);
    assert_eq!(pair.server.ends(), [CloseReason::PeerDeleted]);
    pair.assert_no_leaks();
}
