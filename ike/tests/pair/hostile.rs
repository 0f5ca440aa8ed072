//! What attackers send: nothing of it may end a handshake or an SA, or make us keep more than a
//! bounded amount (RFC 7296 2.4, 2.21, 5).

use std::time::Duration;

use ike::Output;
use ike::crypto::KexRequest;
use ike::event::CloseReason;
use ike::io::{Action, Datagram};
use ike::wire::{
    AuthMethod, Authentication, ExchangeType, Flags, Header, Message, Notify, NotifyType, Payload,
    PayloadType, Payloads,
};

use crate::harness::*;
use crate::spy::Spy;

fn to_server(payload: Vec<u8>) -> Flight {
    let datagram = Datagram {
        local: address(SERVER_IP, 500),
        remote: address(CLIENT_IP, 500),
        encap: false,
        payload,
    };
    Flight { to: Side::Server, datagram }
}

/// A response to the client's IKE_SA_INIT that anyone on the path could send.
fn spoofed_init(pair: &Pair, notify: Notify) -> Flight {
    let request = Header::peek(&pair.wire[0].datagram.payload).unwrap();
    let header = Header { flags: Flags::RESPONSE, ..request };
    let mut payloads = Payloads::new();
    payloads.push_notify(notify);
    let payload = Message { header, payloads }.encode().unwrap();
    let datagram = Datagram {
        local: address(CLIENT_IP, 500),
        remote: address(SERVER_IP, 500),
        encap: false,
        payload,
    };
    Flight { to: Side::Client, datagram }
}

#[test]
fn an_unprotected_error_does_not_end_a_handshake_that_goes_on() {
    for kind in [NotifyType::NoProposalChosen, NotifyType::InvalidSyntax] {
        let mut pair = Setup::new().quiet().build();
        pair.initiate();
        let spoofed = spoofed_init(&pair, Notify::new(kind));

        pair.deliver(spoofed);
        pair.run();

        pair.assert_connected();
        pair.assert_no_leaks();
    }
}

#[test]
fn endless_cookies_and_groups_do_not_hold_the_initiator() {
    let mut pair = Setup::new().quiet().build();
    pair.initiate();
    for n in 0..50u8 {
        let spoofed = spoofed_init(&pair, Notify::cookie(vec![n; 8]));
        pair.deliver(spoofed);
    }
    let sent = pair.wire.len();
    assert!(sent < 12, "{sent} requests");
    pair.wire.clear();
    pair.run_for(Duration::from_secs(60));
    assert!(pair.client.alive().is_empty() || pair.client.established().len() == 1);
    pair.assert_no_leaks();
}

#[test]
fn a_response_from_another_address_is_ignored() {
    let mut pair = Setup::new().quiet().build();
    pair.initiate();
    let mut spoofed = spoofed_init(&pair, Notify::cookie(vec![1; 8]));
    spoofed.datagram.remote = address("203.0.113.66", 500);

    pair.deliver(spoofed);

    assert_eq!(pair.wire.len(), 1);
    pair.run();
    pair.assert_connected();
    pair.assert_no_leaks();
}

#[test]
fn a_forged_ike_auth_does_not_kill_the_real_one() {
    let mut pair = Setup::new().quiet().build();
    pair.initiate();
    pair.step();
    pair.step();
    let mut forged = pair.wire[0].clone();
    *forged.datagram.payload.last_mut().unwrap() ^= 1;

    for _ in 0..10 {
        pair.deliver(forged.clone());
    }
    pair.assert_nothing_installed();
    assert_eq!(pair.server.engine.stats().bad_icv, 10);
    pair.run();

    pair.assert_connected();
    pair.assert_no_leaks();
}

#[test]
fn forged_ike_auths_without_end_are_reported_once_and_end_nothing() {
    let mut pair = Setup::new().quiet().build();
    pair.initiate();
    pair.step();
    pair.step();
    let real = pair.lose();
    let mut forged = real.clone();
    *forged.datagram.payload.last_mut().unwrap() ^= 1;

    for _ in 0..100 {
        pair.deliver(forged.clone());
    }

    assert_eq!(pair.server.codes(), ["forged_auth"]);
    pair.deliver(real);
    pair.run();
    pair.assert_connected();
    pair.assert_no_leaks();
}

/// RFC 8019 7.2: the keys are kept when a message does not fit them, so a puzzle for each IKE_AUTH
/// would be paid for nothing.
#[test]
fn forged_auth_messages_cost_one_shared_secret() {
    let mut pair = Setup::new().quiet().build();
    pair.initiate();
    pair.step();
    pair.step();
    let real = pair.lose();
    for n in 0..60_u8 {
        let mut forged = real.clone();
        let payload = &mut forged.datagram.payload;
        let at = payload.len() - 1 - usize::from(n);
        payload[at] ^= 1;
        pair.deliver(forged);
    }
    pair.deliver(real);
    pair.run();

    pair.assert_connected();
    let agreed = |output: &&Output| {
        matches!(output, Output::Action(_, Action::KeyExchange(KexRequest::Agree { .. })))
    };
    assert_eq!(pair.server.outputs.iter().filter(agreed).count(), 1);
    pair.assert_no_leaks();
}

#[test]
fn the_shared_secret_is_computed_once_for_all_that_waits_for_it() {
    let mut pair = Setup::new().quiet().build();
    pair.server.hold =
        |action| matches!(action, ike::Action::KeyExchange(ike::crypto::KexRequest::Agree { .. }));
    pair.initiate();
    pair.step();
    pair.step();
    let auth = pair.lose();
    let mut forged = auth.clone();
    *forged.datagram.payload.last_mut().unwrap() ^= 1;
    // Far more than is kept.
    for _ in 0..200 {
        pair.deliver(forged.clone());
    }
    assert_eq!(pair.server.held.len(), 1);

    pair.server.hold = |_| false;
    pair.release(Side::Server, 0);
    pair.deliver(auth);
    pair.run();

    pair.assert_connected();
    assert!(pair.server.engine.stats().bad_icv < 64);
    pair.assert_no_leaks();
}

#[test]
fn an_established_sa_ignores_what_is_not_authentic() {
    let mut setup = Setup::new().quiet();
    setup.client.timers.dpd = Duration::from_secs(10);
    let mut pair = Pair::connected_with(setup);
    pair.wait(Duration::from_secs(10));
    let real = pair.lose();
    let before = (pair.server.outputs.len(), pair.server.events.len());

    for at in 0..real.datagram.payload.len() {
        let mut forged = real.clone();
        forged.datagram.payload[at] ^= 0x40;
        pair.deliver(forged);
    }
    let mut short = real.clone();
    for len in 0..real.datagram.payload.len() {
        short.datagram.payload.truncate(real.datagram.payload.len() - len);
        if len > 0 {
            pair.deliver(short.clone());
        }
    }

    // Only the version byte may have earned an answer; nothing else came out.
    // A changed version is answered and reported, and only that.
    assert!(pair.server.outputs.len() <= before.0 + 2);
    assert!(pair.server.events.len() <= before.1 + 1);
    assert!(pair.server.codes().iter().all(|code| *code == "invalid_major_version"));
    pair.wire.clear();
    pair.deliver(real);
    pair.run();
    pair.assert_connected();
    pair.assert_no_leaks();
}

#[test]
fn a_higher_major_version_is_answered_rarely_and_never_when_it_is_an_answer() {
    let mut pair = Setup::new().quiet().build();
    pair.initiate();
    let request = pair.lose();
    let mut foreign = request.clone();
    foreign.datagram.payload[17] = 0x30;

    for _ in 0..100 {
        pair.deliver(foreign.clone());
    }
    let answers = pair.wire.len();
    assert!((1..=20).contains(&answers), "{answers} answers");
    let answer = Message::parse(&pair.wire[0].datagram.payload).unwrap();
    assert!(answer.payloads.has_notify(NotifyType::InvalidMajorVersion));
    pair.wire.clear();
    foreign.datagram.payload[19] |= 0x20;
    pair.wait(Duration::from_millis(1));
    pair.deliver(foreign);
    assert!(pair.wire.is_empty());

    // RFC 7296 2.5: a higher minor version is nothing to speak of.
    let mut minor = request;
    minor.datagram.payload[17] = 0x21;
    pair.deliver(minor);
    assert_eq!(pair.server.engine.stats().half_open, 1);
    pair.wire.clear();
    pair.assert_no_leaks();
}

#[test]
fn an_unknown_critical_payload_in_the_first_message_is_answered_and_nothing_kept() {
    let mut pair = Setup::new().quiet().build();
    pair.initiate();
    let request = Message::parse(&pair.lose().datagram.payload).unwrap();
    let with = |critical| {
        let mut payloads = request.payloads.clone();
        let payload = Payload::Unknown { kind: PayloadType::Unknown(200), body: vec![1, 2, 3] };
        payloads.push_item(ike::wire::Item { critical, payload });
        to_server(Message { header: request.header, payloads }.encode().unwrap())
    };

    pair.deliver(with(true));
    let answer = Message::parse(&pair.lose().datagram.payload).unwrap();
    let notify = answer.payloads.notify(NotifyType::UnsupportedCriticalPayload).unwrap();
    assert_eq!(notify.critical_payload().unwrap().value(), 200);
    assert_eq!(pair.server.engine.sas().count(), 0);

    // Without the critical bit it is as if it were not there.
    pair.deliver(with(false));
    assert_eq!(pair.server.engine.stats().half_open, 1);
    pair.wire.clear();
    pair.assert_no_leaks();
}

#[test]
fn an_unknown_critical_payload_in_ike_auth_ends_the_handshake() {
    let mut pair = Setup::new().quiet().build();
    pair.initiate();
    pair.step();
    pair.step();
    let mut spy = Spy::of(&pair);
    let mut payloads = Payloads::new();
    let payload = Payload::Unknown { kind: PayloadType::Unknown(201), body: vec![] };
    payloads.push_item(ike::wire::Item { critical: true, payload });
    let auth = spy.say(&pair, Side::Client, ExchangeType::IkeAuth, false, 1, &payloads);
    pair.lose();

    pair.deliver(auth);

    let answer = spy.hear(&pair.lose()).payloads().unwrap();
    assert!(answer.has_notify(NotifyType::UnsupportedCriticalPayload));
    assert_eq!(pair.server.codes(), ["unsupported_critical_payload"]);
    assert!(pair.server.alive().is_empty());
    pair.assert_no_leaks();
}

#[test]
fn an_unknown_critical_payload_later_ends_the_exchange_only() {
    let mut pair = Pair::connected();
    let mut spy = Spy::of(&pair);
    let mut payloads = Payloads::new();
    let payload = Payload::Unknown { kind: PayloadType::Unknown(201), body: vec![] };
    payloads.push_item(ike::wire::Item { critical: true, payload });

    let said = spy.say(&pair, Side::Client, ExchangeType::Informational, false, 2, &payloads);
    pair.deliver(said);

    let answer = spy.hear(&pair.lose()).payloads().unwrap();
    assert!(answer.has_notify(NotifyType::UnsupportedCriticalPayload));
    pair.assert_connected();
}

#[test]
fn authentic_nonsense_gets_invalid_syntax() {
    let mut pair = Pair::connected();
    let mut spy = Spy::of(&pair);

    // IKE_AUTH where it has no place.
    let said = spy.say(&pair, Side::Client, ExchangeType::IkeAuth, false, 2, &Payloads::new());
    pair.deliver(said);

    let answer = spy.hear(&pair.lose()).payloads().unwrap();
    assert!(answer.has_notify(NotifyType::InvalidSyntax));
    assert_eq!(pair.server.codes(), ["invalid_syntax"]);
    pair.assert_connected();
}

#[test]
fn unknown_notifies_are_ignored() {
    let mut pair = Pair::connected();
    let mut spy = Spy::of(&pair);
    let mut payloads = Payloads::new();
    payloads.push_notify(Notify::with_data(NotifyType::from(40_000), vec![1; 10]));
    payloads.push_notify(Notify::new(NotifyType::from(9_000)));

    let said = spy.say(&pair, Side::Client, ExchangeType::Informational, false, 2, &payloads);
    pair.deliver(said);

    let answer = spy.hear(&pair.lose()).payloads().unwrap();
    assert!(answer.is_empty());
    pair.assert_connected();
}

#[test]
fn message_ids_outside_the_window_are_dropped() {
    let mut pair = Pair::connected();
    let mut spy = Spy::of(&pair);
    for id in [0, 3, 99, u32::MAX] {
        let empty = Payloads::new();
        let said = spy.say(&pair, Side::Client, ExchangeType::Informational, false, id, &empty);
        pair.deliver(said);
    }
    assert!(pair.wire.is_empty());

    let said =
        spy.say(&pair, Side::Client, ExchangeType::Informational, false, 2, &Payloads::new());
    pair.deliver(said);

    assert_eq!(pair.wire.len(), 1);
    pair.assert_connected();
}

#[test]
fn a_message_that_claims_the_wrong_side_is_dropped() {
    let mut pair = Pair::connected();
    let mut spy = Spy::of(&pair);
    let said =
        spy.say(&pair, Side::Client, ExchangeType::Informational, false, 2, &Payloads::new());
    let mut reflected = said;
    reflected.datagram.payload[19] ^= 0x08;

    pair.deliver(reflected);

    assert!(pair.wire.is_empty());
    pair.assert_connected();
}

#[test]
fn eap_is_refused_by_name() {
    let mut pair = Setup::new().quiet().build();
    pair.initiate();
    pair.step();
    pair.step();
    pair.lose();
    let mut spy = Spy::of(&pair);
    let id = ike::wire::Identification::fqdn("eap.example.com");
    let payloads = Payloads::from(vec![Payload::id_i(id)]);

    let said = spy.say(&pair, Side::Client, ExchangeType::IkeAuth, false, 1, &payloads);
    pair.deliver(said);

    assert_eq!(pair.server.codes(), ["eap_not_offered"]);
    let answer = spy.hear(&pair.lose()).payloads().unwrap();
    assert!(answer.has_notify(NotifyType::AuthenticationFailed));
    pair.assert_no_leaks();
}

#[test]
fn a_method_that_is_neither_signature_nor_shared_key_is_refused_by_name() {
    let mut pair = Setup::new().quiet().build();
    pair.initiate();
    pair.step();
    pair.step();
    pair.lose();
    let mut spy = Spy::of(&pair);
    let id = ike::wire::Identification::fqdn("dss.example.com");
    let payloads = Payloads::from(vec![
        Payload::id_i(id),
        Payload::Cert(ike::wire::Certificate::x509(vec![1, 2, 3])),
        Payload::Auth(Authentication::new(AuthMethod::DssSignature, vec![0; 48])),
    ]);

    let said = spy.say(&pair, Side::Client, ExchangeType::IkeAuth, false, 1, &payloads);
    pair.deliver(said);

    assert_eq!(pair.server.codes(), ["auth_method"]);
    assert!(pair.server.refusals()[0].what.contains("DSS_SIGNATURE"));
    pair.wire.clear();
    pair.assert_no_leaks();
}

#[test]
fn the_peer_may_reject_our_authentication_later() {
    let mut pair = Pair::connected();
    let mut spy = Spy::of(&pair);
    let mut payloads = Payloads::new();
    payloads.push_notify(Notify::new(NotifyType::AuthenticationFailed));

    let said = spy.say(&pair, Side::Client, ExchangeType::Informational, false, 2, &payloads);
    pair.deliver(said);

    assert!(matches!(pair.server.ends().as_slice(), [CloseReason::Failed(_)]));
    assert_eq!(pair.server.inbound(), []);
}

#[test]
fn random_octets_do_nothing() {
    let mut pair = Pair::connected();
    let before = pair.server.outputs.len();
    let mut state = 1u64;
    for len in 0..600 {
        let payload = (0..len)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 56) as u8
            })
            .collect();
        pair.deliver(to_server(payload));
    }
    pair.wire.clear();

    // At most a few answers to what looked like a foreign version.
    assert!(pair.server.outputs.len() - before <= 2 * 20);
    pair.assert_connected();
    pair.assert_no_leaks();
}
