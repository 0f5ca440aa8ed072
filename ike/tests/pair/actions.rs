//! Answers from outside: in any order, late, never.

use std::time::Duration;

use ike::event::CloseReason;
use ike::io::{Action, Completion};
use ike::{Input, Token};

use crate::harness::*;

#[test]
fn sign_and_install_may_be_answered_in_any_order() {
    for first in [0, 1] {
        let mut pair = Setup::new().quiet().build();
        pair.server.hold = |action| matches!(action, Action::Sign { .. } | Action::InstallChild(_));
        pair.initiate();
        pair.run();
        assert_eq!(pair.server.held.len(), 2);
        assert_eq!(pair.client.established().len(), 0);

        pair.server.hold = |_| false;
        pair.release(Side::Server, first);
        assert!(pair.wire.is_empty());
        pair.release(Side::Server, 0);
        pair.run();

        pair.assert_connected();
        pair.assert_no_leaks();
    }
}

#[test]
fn the_initiators_answers_may_come_in_any_order() {
    let mut pair = Setup::new().quiet().build();
    pair.client.hold = |action| matches!(action, Action::Sign { .. } | Action::AllocSpi);
    pair.initiate();
    pair.run();
    assert_eq!(pair.client.held.len(), 2);

    pair.client.hold = |_| false;
    pair.release(Side::Client, 1);
    pair.release(Side::Client, 0);
    pair.run();

    pair.assert_connected();
    pair.assert_no_leaks();
}

/// A handshake in which the server never gets an answer to one kind of action.
fn lost(hold: fn(&Action) -> bool) -> Pair {
    let mut pair = Setup::new().quiet().build();
    pair.server.hold = hold;
    pair.initiate();
    pair.run();
    assert_eq!(pair.server.held.len(), 1);
    pair.run_for(Duration::from_secs(60));
    pair.server.hold = |_| false;
    assert!(pair.server.established().is_empty() || pair.server.plane.is_empty());
    pair
}

#[test]
fn an_answer_that_never_comes_ends_the_handshake() {
    let cases: [fn(&Action) -> bool; 3] = [
        |action| matches!(action, Action::VerifyPeer(_)),
        |action| matches!(action, Action::Authorise(_)),
        |action| matches!(action, Action::Sign { .. }),
    ];
    for hold in cases {
        let mut pair = lost(hold);

        assert_eq!(pair.server.engine.sas().count(), 0);
        pair.assert_nothing_installed();
        // And when it comes after all, nothing happens.
        pair.release(Side::Server, 0);
        assert_eq!(pair.server.engine.sas().count(), 0);
        pair.assert_no_leaks();
    }
}

#[test]
fn a_key_pair_that_never_comes_ends_the_half_open_sa() {
    let mut pair = Setup::new().quiet().build();
    pair.server.hold = |action| matches!(action, Action::KeyExchange(_));
    pair.initiate();
    pair.run();

    pair.wire.clear();
    pair.wait(Duration::from_secs(16));
    pair.wire.clear();

    assert_eq!(pair.server.engine.sas().count(), 0);
    assert_eq!(pair.server.codes(), ["overloaded"]);
    pair.server.held.clear();
    pair.server.hold = |_| false;
    pair.assert_no_leaks();
}

#[test]
fn a_data_plane_that_never_installs_leaves_an_ike_sa_without_child() {
    let cases: [fn(&Action) -> bool; 2] = [
        |action| matches!(action, Action::AllocSpi),
        |action| matches!(action, Action::InstallChild(_)),
    ];
    for hold in cases {
        let pair = lost(hold);

        // RFC 7296 2.21.2: the child failed, the IKE SA did not.
        assert_eq!(pair.server.codes(), ["data_plane"]);
        pair.assert_nothing_installed();
        pair.assert_no_leaks();
    }
}

#[test]
fn a_removal_that_is_never_answered_still_ends() {
    let mut pair = Pair::connected();
    pair.server.hold = |action| matches!(action, Action::RemoveChild { .. });
    let id = pair.server.established()[0].id;
    pair.command(Side::Server, ike::Command::CloseIkeSa(id, CloseReason::Operator));
    pair.run();

    assert!(!pair.server.engine.is_idle());
    pair.run_for(Duration::from_secs(16));

    assert!(pair.server.engine.is_idle());
    pair.server.hold = |_| false;
    pair.release(Side::Server, 0);
    pair.assert_no_leaks();
}

#[test]
fn answers_nobody_asked_for_are_ignored() {
    // RFC 7296 2.3: an answer belongs to a request.
    let mut pair = Pair::connected();
    for token in [0, 1, 999] {
        let nonsense = Completion::InstallChild(Err("no".to_owned()));
        pair.input(Side::Server, Input::Completion(Token(token), nonsense));
    }

    pair.assert_connected();
    pair.assert_no_leaks();
}

#[test]
fn one_slow_peer_does_not_hold_up_another() {
    let mut pair = Setup::new().quiet().build();
    pair.server.grant.as_mut().unwrap().unique = ike::io::UniquePolicy::Keep;
    pair.server.hold = |action| matches!(action, Action::Authorise(_));
    pair.initiate();
    pair.run();
    pair.server.hold = |_| false;

    pair.initiate();
    pair.run();

    assert_eq!(pair.server.established().len(), 1);
    pair.release(Side::Server, 0);
    pair.run();
    assert_eq!(pair.server.established().len(), 2);
    pair.assert_no_leaks();
}
