//! What strangers, slow actions and shutdown must not bring about.

use std::time::Duration;

use ike::event::{CloseReason, Event};
use ike::io::{Action, ChildSaId, Command, Completion, Input, UniquePolicy};
use ike::wire::{ExchangeType, Header, Message, Notify, NotifyType, Payload, Payloads};

use crate::harness::*;
use crate::spy::Spy;

/// A handshake whose IKE_AUTH request is on the wire.
fn at_ike_auth(setup: Setup) -> Pair {
    let mut pair = setup.build();
    pair.initiate();
    pair.step();
    pair.step();
    pair
}

#[test]
fn failed_handshakes_do_not_exceed_the_places_for_half_open_ones() {
    let mut setup = Setup::new().quiet();
    setup.server.limits.cookie_threshold = 2;
    setup.server.limits.max_half_open = 2;
    setup.grant = None;
    let mut pair = setup.build();
    for host in 1..20u8 {
        let mut target = pair.target.clone();
        target.local = address(&format!("192.0.2.{}", host % 3 + 1), 500);
        pair.command(Side::Client, Command::Initiate(Box::new(target)));
        pair.run();
        assert!(pair.server.engine.stats().half_open <= 2);
        assert!(pair.server.engine.sas().count() <= 2);
    }
}

#[test]
fn nothing_new_begins_after_shutdown() {
    let mut pair = Setup::new().quiet().build();
    pair.initiate();
    pair.command(Side::Server, Command::Shutdown);
    pair.step();
    assert_eq!(pair.server.engine.sas().count(), 0);
    assert!(pair.server.engine.is_idle());

    pair.command(Side::Client, Command::Shutdown);
    pair.initiate();
    assert_eq!(pair.client.engine.sas().count(), 0);
}

#[test]
fn the_end_of_an_ike_sa_is_reported_after_those_of_its_children() {
    let mut pair = Pair::connected();
    pair.server.hold = |action| matches!(action, Action::RemoveChild { .. });
    let id = pair.server.established()[0].id;
    pair.command(Side::Server, Command::CloseIkeSa(id, CloseReason::Operator));
    assert_eq!(pair.server.ends(), []);
    pair.server.hold = |_| false;
    pair.release(Side::Server, 0);

    let order: Vec<_> = pair
        .server
        .events
        .iter()
        .filter(|event| matches!(event, Event::ChildDown { .. } | Event::IkeDown { .. }))
        .map(|event| matches!(event, Event::IkeDown { .. }))
        .collect();
    assert_eq!(order, [false, true]);
    pair.assert_no_leaks();
}

#[test]
fn a_child_that_never_came_up_does_not_go_down() {
    let mut setup = Setup::new().quiet();
    setup.server.timers.action = Duration::from_secs(60);
    let mut pair = at_ike_auth(setup);
    pair.server.hold = |action| matches!(action, Action::InstallChild(_));
    pair.run();
    assert_eq!(pair.server.held.len(), 1);
    pair.command(
        Side::Server,
        Command::CloseLease(ike::io::LeaseId(LEASE.to_owned()), CloseReason::Revoked),
    );
    assert!(!pair.server.removed.is_empty());
    assert!(!pair.server.events.iter().any(|event| matches!(event, Event::ChildDown { .. })));
    // The operator hears of it once.
    assert_eq!(pair.server.codes(), ["handshake_ended"]);
}

#[test]
fn what_has_ended_takes_no_new_request() {
    let mut pair = Pair::connected();
    let mut spy = Spy::of(&pair);
    let delete = Payloads::from(vec![Payload::Delete(ike::wire::Delete::Ike)]);
    let first = spy.say(&pair, Side::Client, ExchangeType::Informational, false, 2, &delete);
    let second = spy.say(&pair, Side::Client, ExchangeType::Informational, false, 3, &delete);
    pair.deliver(first.clone());
    assert_eq!(pair.wire.len(), 1);
    pair.deliver(second);
    assert_eq!(pair.wire.len(), 1, "a new request is not answered");
    pair.deliver(first);
    assert_eq!(pair.wire.len(), 2, "the last one is, again");
    pair.wait(Duration::from_secs(31));
    assert_eq!(pair.server.engine.sas().count(), 0);
}

#[test]
fn one_copy_without_the_cookie_does_not_spoil_the_handshake() {
    // RFC 7296 2.6, 2.15.
    let mut setup = Setup::new().quiet();
    setup.server.limits.cookie_threshold = 0;
    let mut pair = setup.build();
    pair.initiate();
    let bare = pair.wire[0].clone();
    pair.step();
    // The load is over, and a copy of the first request arrives before the one with the cookie.
    let mut config = pair.server.config.clone();
    config.limits.cookie_threshold = 64;
    pair.command(Side::Server, Command::Reconfigure(Box::new(config)));
    pair.deliver(bare);
    let late = pair.wire.pop_back().unwrap();
    assert_eq!(Header::peek(&late.datagram.payload).unwrap().exchange, ExchangeType::IkeSaInit);
    pair.run();
    pair.assert_connected();
}

#[test]
fn another_request_with_the_same_nonce_is_not_taken_for_the_first() {
    let mut pair = Setup::new().quiet().build();
    pair.initiate();
    let real = pair.wire[0].clone();
    // Someone has seen it and is faster, with another public value.
    let mut message = Message::parse(&real.datagram.payload).unwrap();
    message.payloads = message
        .payloads
        .iter()
        .map(|payload| match payload {
            Payload::Ke(ke) => {
                let mut ke = ke.clone();
                ke.data.fill(9);
                Payload::Ke(ke)
            }
            other => other.clone(),
        })
        .collect::<Vec<_>>()
        .into();
    let mut forged = real;
    forged.datagram.payload = message.encode().unwrap();
    pair.deliver(forged);
    pair.wire.pop_back();
    pair.run();
    pair.assert_connected();
}

#[test]
fn a_restored_child_says_so() {
    let mut pair = Pair::connected();
    assert!(pair.server.plane.values().all(|child| !child.restored));
    pair.restart(Side::Server);
    assert!(pair.server.plane.values().all(|child| child.restored));
    assert_eq!(pair.server.plane.len(), 1);
}

#[test]
fn a_handshake_that_runs_out_of_time_is_reported_once() {
    let mut pair = at_ike_auth(Setup::new().quiet());
    pair.server.hold = |action| matches!(action, Action::VerifyPeer(_));
    pair.step();
    pair.server.config.timers.action = Duration::from_secs(3600);
    pair.wait(Duration::from_secs(40));
    assert_eq!(pair.server.refusals().len(), 1, "{:?}", pair.server.refusals());
}

#[test]
fn two_handshakes_of_a_lease_that_allows_one_do_not_both_come_up() {
    let mut setup = Setup::new().quiet();
    setup.grant.as_mut().unwrap().unique = UniquePolicy::Reject;
    let mut pair = setup.build();
    pair.server.hold = |action| matches!(action, Action::InstallChild(_));
    pair.initiate();
    pair.run();
    pair.initiate();
    pair.run();
    assert_eq!(pair.server.held.len(), 2);
    pair.server.hold = |_| false;
    pair.release(Side::Server, 1);
    pair.release(Side::Server, 0);
    pair.run();
    assert_eq!(pair.server.established().len(), 1);
    assert_eq!(pair.server.codes(), ["lease_in_use"]);
    assert_eq!(pair.server.plane.len(), 1);
}

#[test]
fn what_cannot_be_told_to_the_peer_is_not_established() {
    let mut setup = Setup::new().quiet();
    setup.server.credentials[0].chain.push(vec![0; 70_000]);
    let mut pair = setup.build();
    pair.initiate();
    pair.run();
    assert_eq!(pair.server.codes(), ["encode"]);
    assert!(!pair.server.events.iter().any(|event| matches!(event, Event::IkeUp { .. })));
    assert_eq!(pair.server.plane.len(), 0);
    assert_eq!(pair.client.codes(), ["auth_refused"]);
}

#[test]
fn a_repeated_cookie_does_not_use_up_restarts() {
    let mut setup = Setup::new().quiet();
    setup.server.limits.cookie_threshold = 0;
    let mut pair = setup.build();
    pair.initiate();
    pair.step();
    let cookie = pair.wire[0].clone();
    pair.step();
    let sent = pair.wire.len();
    for _ in 0..20 {
        pair.deliver(cookie.clone());
    }
    assert_eq!(pair.wire.len(), sent);
    pair.run();
    pair.assert_connected();
}

#[test]
fn a_replayed_request_reflects_little_to_addresses_never_seen() {
    let mut pair = Pair::connected();
    let mut spy = Spy::of(&pair);
    let request =
        spy.say(&pair, Side::Client, ExchangeType::Informational, false, 2, &Payloads::new());
    pair.deliver(request.clone());
    pair.wire.clear();
    for port in 1..100 {
        let mut replay = request.clone();
        replay.datagram.remote = address("203.0.113.80", port);
        pair.deliver(replay);
    }
    assert_eq!(pair.wire.len(), 1);
    pair.deliver(request);
    assert_eq!(pair.wire.len(), 2);
}

#[test]
fn a_client_without_a_virtual_address_is_told_to_ask_for_one() {
    let mut setup = Setup::new().quiet();
    setup.target.request_ipv4 = false;
    setup.target.request_ipv6 = false;
    setup.target.ts_local = vec![net(CLIENT_IP, CLIENT_IP)];
    let mut pair = setup.build();
    pair.initiate();
    pair.run();
    let refusals = pair.server.refusals();
    assert_eq!(refusals[0].code, "ts_unacceptable");
    assert!(refusals[0].fix.contains("vips"), "{}", refusals[0].fix);
}

#[test]
fn a_configuration_that_cannot_be_used_is_reported() {
    let mut pair = Pair::connected();
    let mut config = pair.server.config.clone();
    config.ike_suites.clear();
    assert!(ike::Engine::check(&config, &ike::crypto::ring::PROVIDER).is_err());
    pair.command(Side::Server, Command::Reconfigure(Box::new(config)));
    assert_eq!(pair.server.codes(), ["configuration"]);
}

/// The peer rekeys the child our unanswered request has made there: it is there, only we do not
/// know yet (RFC 7296 2.25).
#[test]
fn a_child_we_are_about_to_know_is_not_denied() {
    let mut pair = Pair::connected();
    let rekey = |pair: &mut Pair, side, child: ChildSaId| {
        pair.command(side, Command::RekeyChild(child));
    };
    let old = *pair.server.plane.keys().next().unwrap();
    rekey(&mut pair, Side::Server, old);
    pair.step();
    // The answer is lost, again and again, until the client sends on the new child.
    for _ in 0..6 {
        pair.wire.clear();
        pair.wait(Duration::from_secs(1));
    }
    pair.wire.clear();
    let new = *pair.client.plane.keys().last().unwrap();
    assert_eq!(pair.client.sending, Some(new));
    rekey(&mut pair, Side::Client, new);
    pair.step();
    pair.run_for(Duration::from_secs(60));
    pair.assert_connected();
    pair.assert_traffic_flows();
    pair.assert_no_leaks();
}

/// The same when the peer closes it.
#[test]
fn a_child_closed_before_we_know_it_does_not_come_up() {
    let mut pair = Pair::connected();
    let old = *pair.server.plane.keys().next().unwrap();
    pair.command(Side::Server, Command::RekeyChild(old));
    pair.step();
    pair.wire.clear();
    let new = *pair.client.plane.keys().last().unwrap();
    pair.command(Side::Client, Command::CloseChild(new, CloseReason::Operator));
    pair.run_for(Duration::from_secs(60));
    pair.assert_mirrored(pair.client.plane.len());
    pair.assert_no_leaks();
}

#[test]
fn an_unprotected_error_is_forgotten_when_the_handshake_goes_on() {
    let mut setup = Setup::new().quiet();
    setup.server.limits.cookie_threshold = 0;
    let mut pair = setup.build();
    pair.initiate();
    let request = Header::peek(&pair.wire[0].datagram.payload).unwrap();
    let header = Header { flags: ike::wire::Flags::RESPONSE, ..request };
    let mut payloads = Payloads::new();
    payloads.push_notify(Notify::new(NotifyType::NoProposalChosen));
    let mut spoofed = pair.wire[0].clone();
    spoofed.to = Side::Client;
    spoofed.datagram.payload = Message { header, payloads }.encode().unwrap();
    std::mem::swap(&mut spoofed.datagram.local, &mut spoofed.datagram.remote);
    pair.deliver(spoofed);
    // The real server asks for a cookie; the answer to that is lost once.
    pair.step();
    pair.step();
    pair.wire.clear();
    pair.run_for(Duration::from_secs(10));
    pair.assert_connected();
}

#[test]
fn a_driver_can_tell_work_for_strangers_from_work_for_peers() {
    let mut pair = Setup::new().quiet().build();
    pair.initiate();
    let key_pair = |action: &Action| matches!(action, Action::KeyExchange(_));
    pair.server.hold = key_pair;
    pair.step();
    let (token, _) = pair.server.held[0].clone();
    assert!(pair.server.engine.serves_stranger(token));
    pair.server.hold = |_| false;
    pair.release(Side::Server, 0);
    pair.run();

    pair.server.hold = key_pair;
    let ike = pair.client.established()[0].id;
    pair.command(Side::Client, Command::RekeyIke(ike));
    pair.run();
    let (token, _) = pair.server.held[0].clone();
    assert!(!pair.server.engine.serves_stranger(token), "an authenticated peer's rekey");
}

#[test]
fn a_key_exchange_the_driver_has_no_time_for_costs_only_a_try() {
    let mut pair = Setup::new().quiet().build();
    pair.initiate();
    pair.server.hold = |action| matches!(action, Action::KeyExchange(_));
    pair.step();
    let (token, _) = pair.server.held.remove(0);
    let busy = Completion::KeyExchange(Err("too many handshakes".to_owned()));
    pair.input(Side::Server, Input::Completion(token, busy));
    assert_eq!(pair.server.codes(), ["overloaded"]);
    assert_eq!(pair.server.engine.sas().count(), 0);

    pair.server.hold = |_| false;
    pair.run_for(Duration::from_secs(2));
    assert_eq!(pair.server.established().len(), 1);
}
