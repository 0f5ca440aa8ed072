//! Redirect (RFC 5685): at the first exchange, in IKE_AUTH, and later.

use std::time::Duration;

use ike::event::{CloseReason, Event};
use ike::io::Action;
use ike::wire::{
    ExchangeType, Flags, Header, IkeSpi, Message, Notify, NotifyType, Payloads, RedirectGateway,
};
use ike::{Command, Input};

use crate::harness::*;

fn elsewhere() -> RedirectGateway {
    RedirectGateway::Fqdn(b"gw2.example.com".to_vec())
}

fn pair() -> Pair {
    let mut setup = Setup::new().quiet();
    setup.target.follow_redirects = true;
    setup.build()
}

fn drain(pair: &mut Pair, existing: bool) {
    let to = Some(elsewhere());
    pair.command(Side::Server, Command::Redirect { to, existing });
}

/// Where the client was told to go.
fn sent_to(pair: &Pair) -> Vec<RedirectGateway> {
    pair.client
        .events
        .iter()
        .filter_map(|event| match event {
            Event::Redirected { to, connection, .. } => {
                assert_eq!(connection, "gw");
                Some(to.clone())
            }
            _ => None,
        })
        .collect()
}

#[test]
fn a_new_client_is_redirected_at_once_and_nothing_is_kept_of_it() {
    let mut pair = pair();
    drain(&mut pair, false);
    pair.initiate();
    pair.run();

    assert_eq!(sent_to(&pair), [elsewhere()]);
    assert_eq!(pair.client.ends(), [CloseReason::Redirected]);
    assert_eq!(pair.server.engine.sas().count(), 0);
    assert_eq!(pair.server.engine.stats().redirected, 1);

    // When the gateway is no longer drained, the next one stays.
    pair.command(Side::Server, Command::Redirect { to: None, existing: false });
    pair.initiate();
    pair.run();
    pair.assert_connected();
    pair.assert_no_leaks();
}

#[test]
fn a_client_that_knows_no_redirect_is_served() {
    let mut pair = Setup::new().quiet().build();
    drain(&mut pair, true);
    pair.initiate();
    pair.run();

    pair.assert_connected();
    drain(&mut pair, true);
    pair.run();
    pair.assert_connected();
    pair.assert_no_leaks();
}

#[test]
fn a_redirect_without_the_clients_nonce_is_ignored() {
    let mut pair = pair();
    pair.initiate();
    let request = Message::parse(&pair.wire.front().unwrap().datagram.payload).unwrap();
    let header = Header::new(
        request.header.spi_i,
        IkeSpi::ZERO,
        ExchangeType::IkeSaInit,
        Flags::RESPONSE,
        0,
    );
    for nonce in [&[][..], &[0; 32]] {
        let mut payloads = Payloads::new();
        payloads.push_notify(Notify::redirect(&elsewhere(), nonce).unwrap());
        let mut forged = pair.wire.front().unwrap().datagram.clone();
        std::mem::swap(&mut forged.local, &mut forged.remote);
        forged.payload = Message { header, payloads }.encode().unwrap();
        pair.input(Side::Client, Input::Datagram(forged));
    }
    pair.run();

    assert_eq!(sent_to(&pair), []);
    pair.assert_connected();
    pair.assert_no_leaks();
}

#[test]
fn a_client_that_came_from_there_is_not_sent_back() {
    let mut setup = Setup::new().quiet();
    setup.target.follow_redirects = true;
    setup.target.redirected_from = Some(elsewhere());
    let mut pair = setup.build();
    drain(&mut pair, false);
    pair.initiate();
    let first = Message::parse(&pair.wire.front().unwrap().datagram.payload).unwrap();
    assert!(first.payloads.has_notify(NotifyType::RedirectedFrom));
    assert!(!first.payloads.has_notify(NotifyType::RedirectSupported));
    pair.run();

    pair.assert_connected();
    pair.assert_no_leaks();
}

#[test]
fn a_client_is_redirected_in_ike_auth_when_draining_begins_meanwhile() {
    let mut pair = pair();
    pair.server.hold = |action| matches!(action, Action::Authorise(_));
    pair.initiate();
    pair.run();
    drain(&mut pair, true);
    pair.server.hold = |_| false;
    pair.release(Side::Server, 0);
    pair.run();

    assert_eq!(sent_to(&pair), [elsewhere()]);
    pair.assert_nothing_installed();
    assert_eq!(pair.server.ends(), [CloseReason::PeerDeleted]);
    pair.assert_no_leaks();
}

#[test]
fn who_is_redirected_when_it_authenticates_again_goes_once_and_keeps_what_it_has() {
    let mut setup = Setup::new().quiet();
    setup.target.follow_redirects = true;
    let mut pair = Pair::connected_with(setup);
    drain(&mut pair, false);
    let ike = pair.client.established()[0].id;

    pair.command(Side::Client, Command::Reauthenticate(ike));
    pair.run_for(Duration::from_secs(120));

    assert_eq!(sent_to(&pair), [elsewhere()]);
    assert_eq!(pair.client.ends(), [CloseReason::Redirected]);
    pair.assert_connected();
    assert_eq!(pair.client.established()[0].id, ike);
    pair.assert_no_leaks();
}

#[test]
fn connected_clients_are_told_and_go() {
    let mut setup = Setup::new().quiet();
    setup.target.follow_redirects = true;
    let mut pair = Pair::connected_with(setup);
    drain(&mut pair, false);
    pair.run();
    pair.assert_connected();

    drain(&mut pair, true);
    pair.run();
    assert_eq!(sent_to(&pair), [elsewhere()]);
    assert_eq!(pair.client.ends(), [CloseReason::Redirected]);
    assert_eq!(pair.server.ends(), [CloseReason::PeerDeleted]);
    pair.assert_nothing_installed();
    pair.assert_no_leaks();
}

/// Found by simulation: what tells of it is lost, and meanwhile the client rekeys the IKE SA. It would
/// hear of it on an SA that it does not use any more.
#[test]
fn a_client_that_rekeys_while_it_is_told_is_told_again() {
    let mut pair = pair();
    pair.initiate();
    pair.run();
    drain(&mut pair, true);
    let told = pair.lose();
    let id = pair.client.established()[0].id;
    pair.command(Side::Client, Command::RekeyIke(id));
    pair.run();
    pair.deliver(told);
    pair.run_for(Duration::from_secs(10));

    assert_eq!(sent_to(&pair), [elsewhere()]);
    assert_eq!(pair.client.ends().last(), Some(&CloseReason::Redirected));
}

#[test]
fn a_client_that_does_not_go_is_closed_after_a_while() {
    let mut setup = Setup::new().quiet();
    setup.target.follow_redirects = true;
    let mut pair = Pair::connected_with(setup);
    drain(&mut pair, true);
    // The client answers; its DELETE is lost.
    pair.step();
    pair.step();
    pair.wire.clear();
    assert_eq!(pair.server.established().len(), 1);
    while let Some(due) = pair.server.engine.poll_timeout() {
        pair.wire.clear();
        pair.wait(due.at.since(pair.now.mono));
        if pair.server.established().is_empty() {
            break;
        }
    }
    assert_eq!(pair.server.ends(), [CloseReason::Redirected]);
}

#[test]
fn who_is_drained_after_a_restart_is_still_told() {
    let mut setup = Setup::new().quiet();
    setup.target.follow_redirects = true;
    let mut pair = Pair::connected_with(setup);
    pair.restart(Side::Server);
    pair.run_for(Duration::from_secs(1));
    drain(&mut pair, true);
    pair.run();

    assert_eq!(sent_to(&pair), [elsewhere()]);
    assert!(pair.server.established().is_empty());
}
