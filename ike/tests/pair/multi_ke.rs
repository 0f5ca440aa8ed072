//! Several key exchanges in a new IKE SA: IKE_INTERMEDIATE (RFC 9242, RFC 9370 2.2.2).

use std::time::Duration;

use ike::crypto::{KeMethod, KexRequest, KexResponse};
use ike::io::{Action, Completion};
use ike::wire::{ExchangeType, Message, NotifyType};

use crate::harness::*;

const TWO: &str = "aes256gcm16-prfsha384-x25519-ke1_ecp256";
const THREE: &str = "aes256gcm16-prfsha384-x25519-ke1_ecp256-ke3_ecp384";
const ESP: &str = "aes256gcm16-noesn";

fn setup(suite: &str) -> Setup {
    Setup::new().quiet().suites(suite, ESP)
}

fn exchanges(pair: &mut Pair) -> Vec<ExchangeType> {
    std::iter::from_fn(|| pair.step()).map(|flight| flight.exchange()).collect()
}

fn announces_intermediate(flight: &Flight) -> bool {
    let message = Message::parse(&flight.datagram.payload).unwrap();
    message.payloads.has_notify(NotifyType::IntermediateExchangeSupported)
}

#[test]
fn each_additional_key_exchange_is_one_exchange_before_ike_auth() {
    use ExchangeType::{IkeAuth, IkeIntermediate, IkeSaInit};

    for (suite, additional) in [(TWO, 1), (THREE, 2)] {
        let mut pair = setup(suite).build();
        pair.initiate();
        assert!(announces_intermediate(&pair.wire[0]));
        pair.step();
        assert!(announces_intermediate(&pair.wire[0]));
        let seen = exchanges(&mut pair);

        let mut expected = vec![IkeSaInit];
        expected.extend(vec![IkeIntermediate; 2 * additional]);
        expected.extend([IkeAuth; 2]);
        assert_eq!(seen, expected);
        pair.assert_connected();
        let suite = Some(suite.to_owned());
        assert_eq!(pair.server.established()[0].suite, suite);
        assert_eq!(pair.client.established()[0].suite, suite);
        pair.assert_no_leaks();
    }
}

#[test]
fn without_additional_key_exchanges_nothing_is_announced() {
    let mut pair = setup("aes256gcm16-prfsha384-x25519").build();
    pair.initiate();
    assert!(!announces_intermediate(&pair.wire[0]));
    pair.step();
    assert!(!announces_intermediate(&pair.wire[0]));
    pair.run();

    pair.assert_connected();
    pair.assert_no_leaks();
}

#[test]
fn several_key_exchanges_are_preferred_where_both_sides_can() {
    let both = "aes256gcm16-prfsha384-x25519-ecp256";
    for (client, server, agreed) in [(TWO, both, None), (both, TWO, None), (TWO, TWO, Some(TWO))] {
        let mut setup = setup(both);
        // Each side has the classical suite besides what the case gives it.
        let with = |text: &str| [ike(text), ike(both)].concat();
        setup.server.ike_suites = with(server);
        setup.client.ike_suites = with(client);
        setup.target.ike_suites = with(client);
        // Even where it costs another round trip (RFC 7296 1.2).
        setup.target.first_ke = KeMethod::Ecp256;
        let pair = Pair::connected_with(setup);

        let agreed = agreed.unwrap_or("aes256gcm16-prfsha384-ecp256");
        assert_eq!(pair.server.established()[0].suite.as_deref(), Some(agreed));
        pair.assert_no_leaks();
    }
}

#[test]
fn each_message_of_the_handshake_may_be_lost_or_repeated() {
    for n in 0..8 {
        for twice in [false, true] {
            let mut pair = setup(THREE).build();
            pair.initiate();
            for _ in 0..n {
                pair.step();
            }
            let flight = pair.lose();
            if twice {
                pair.deliver(flight.clone());
                pair.deliver(flight);
            }
            pair.run_for(Duration::from_secs(20));

            pair.assert_connected();
            pair.assert_no_leaks();
        }
    }
}

/// A repeated request comes under the keys its answer has replaced.
#[test]
fn a_repeated_key_exchange_gets_the_same_answer_again() {
    let mut pair = setup(TWO).build();
    pair.initiate();
    pair.step();
    pair.step();
    let request = pair.wire[0].clone();
    assert_eq!(request.exchange(), ExchangeType::IkeIntermediate);
    pair.step();
    let answer = pair.lose();
    let replayed = pair.server.engine.stats().replayed_responses;

    pair.deliver(request.clone());
    assert_eq!(pair.lose(), answer);
    assert_eq!(pair.server.engine.stats().replayed_responses, replayed + 1);
    // Only what is the peer's is answered.
    let mut forged = request;
    *forged.datagram.payload.last_mut().unwrap() ^= 1;
    pair.deliver(forged);
    assert!(pair.wire.is_empty());

    pair.run_for(Duration::from_secs(5));
    pair.assert_connected();
    pair.assert_no_leaks();
}

#[test]
fn fragments_of_the_key_exchange_are_put_together() {
    let mut setup = setup(THREE);
    setup.client.fragment_size = 120;
    setup.server.fragment_size = 120;
    let mut pair = setup.build();
    pair.initiate();
    pair.step();
    pair.step();
    assert!(pair.wire.len() > 1);
    // In any order.
    pair.wire.make_contiguous().reverse();
    pair.run();

    pair.assert_connected();
    pair.assert_no_leaks();
}

#[test]
fn a_cookie_and_another_group_come_before() {
    let mut setup = setup(TWO);
    setup.server.limits.cookie_threshold = 0;
    let offered = [ike(TWO), ike("aes256gcm16-prfsha384-ecp384")].concat();
    setup.client.ike_suites = offered.clone();
    setup.target.ike_suites = offered;
    setup.target.first_ke = KeMethod::Ecp384;
    let mut pair = Pair::connected_with(setup);

    assert_eq!(pair.server.established()[0].suite.as_deref(), Some(TWO));
    assert_eq!(pair.server.engine.stats().cookies, 1);
    assert!(pair.server.refusals().is_empty());
    pair.run();
    pair.assert_no_leaks();
}

/// The responder computes nothing before an authentic message, and then one thing at a time.
#[test]
fn a_responder_computes_only_what_authentic_messages_ask_for() {
    let computed = |pair: &Pair| {
        let actions = pair.server.outputs.iter().filter_map(|output| match output {
            ike::Output::Action(_, Action::KeyExchange(request)) => Some(request),
            _ => None,
        });
        let agrees = |request: &&KexRequest| matches!(request, KexRequest::Agree { .. });
        actions.filter(agrees).count()
    };
    let mut pair = setup(TWO).build();
    pair.initiate();
    pair.step();
    pair.step();
    assert_eq!(computed(&pair), 0);
    // Somebody who saw the SPIs sends garbage: one secret is computed, and then no more.
    let genuine = pair.wire[0].clone();
    for octet in 0..50 {
        let mut forged = genuine.clone();
        *forged.datagram.payload.last_mut().unwrap() ^= octet + 1;
        pair.deliver(forged);
    }
    assert_eq!(computed(&pair), 1);
    assert_eq!(pair.wire.len(), 1);
    pair.run();

    assert_eq!(computed(&pair), 2);
    pair.assert_connected();
    pair.assert_no_leaks();
}

/// Changes our public value of the additional key exchange on the way to the engine.
fn with_public(change: fn(Vec<u8>) -> Vec<u8>) -> Pair {
    let mut pair = setup(TWO).build();
    pair.initiate();
    pair.step();
    pair.client.late = |action| {
        matches!(action, Action::KeyExchange(KexRequest::Generate { group: KeMethod::Ecp256, .. }))
    };
    pair.step();
    let (token, completion) = pair.client.answers.remove(0);
    let Completion::KeyExchange(Ok(KexResponse::Generated { handle, public })) = completion else {
        panic!("no key pair");
    };
    let changed = KexResponse::Generated { handle, public: change(public) };
    let answer = ike::Input::Completion(token, Completion::KeyExchange(Ok(changed)));
    pair.input(Side::Client, answer);
    pair
}

#[test]
fn a_public_value_of_another_length_ends_the_handshake() {
    let mut pair = with_public(|public| public[..63].to_vec());
    pair.run();

    assert_eq!(pair.server.codes(), ["key_exchange"]);
    let refusal = pair.server.refusals()[0].clone();
    assert_eq!(refusal.notify, Some(NotifyType::InvalidSyntax));
    assert!(refusal.what.contains("ecp256 has 63 octets instead of 64"), "{}", refusal.what);
    assert_eq!(pair.client.codes(), ["key_exchange"]);
    pair.assert_nothing_installed();
    pair.assert_no_leaks();
}

#[test]
fn a_public_value_that_is_no_point_ends_the_handshake() {
    let mut pair = with_public(|public| vec![0xff; public.len()]);
    pair.run();

    assert_eq!(pair.server.codes(), ["key_exchange"]);
    assert_eq!(pair.client.codes(), ["key_exchange"]);
    pair.assert_nothing_installed();
    pair.assert_no_leaks();
}

#[test]
fn a_handshake_that_stops_between_its_key_exchanges_ends() {
    for n in 2..6 {
        let mut pair = setup(THREE).build();
        pair.initiate();
        for _ in 0..n {
            pair.step();
        }
        for _ in 0..120 {
            pair.wait(Duration::from_secs(1));
            pair.wire.clear();
        }

        assert_eq!(pair.server.engine.sas().count(), 0, "after {n} messages");
        assert_eq!(pair.client.engine.sas().count(), 0, "after {n} messages");
        pair.assert_no_leaks();
    }
}

#[test]
fn an_action_nobody_answers_ends_the_handshake() {
    for side in [Side::Client, Side::Server] {
        let mut pair = setup(TWO).build();
        pair.initiate();
        pair.step();
        pair.peer(side).late = |action| {
            matches!(
                action,
                Action::KeyExchange(KexRequest::Generate { group: KeMethod::Ecp256, .. })
            )
        };
        pair.run_for(Duration::from_secs(120));

        assert!(pair.client.established().is_empty(), "{side:?}");
        assert_eq!(pair.peer(side).codes(), ["overloaded"]);
        pair.peer(side).late = |_| false;
        while !pair.peer(side).answers.is_empty() {
            pair.answer_late(side, 0);
        }
        pair.assert_no_leaks();
    }
}

#[test]
fn a_restart_keeps_the_connection_and_its_suite() {
    let mut pair = Pair::connected_with(setup(THREE));
    for side in [Side::Client, Side::Server] {
        pair.restart(side);
        pair.run();
        pair.assert_connected();
        let suite = pair.peer(side).established()[0].suite.clone();
        assert_eq!(suite.as_deref(), Some(THREE));
    }
}
