//! What crosses the additional key exchanges of a rekey (RFC 9370 2.2.4), and what a peer may make
//! of them.

use std::time::Duration;

use ike::Command;
use ike::crypto::{KeMethod, KexRequest};
use ike::io::Action;
use ike::policy::proposal::offer_esp;
use ike::wire::{
    ChildSpi, ExchangeType, Header, Nonce, Notify, NotifyType, Payload, Payloads, ProtocolId,
    TrafficSelectors,
};

use crate::harness::*;
use crate::spy::Spy;

/// One key exchange in the handshake, three in a rekey of the child.
const IKE: &str = "aes256gcm16-prfsha384-x25519";
const ESP: &str = "aes256gcm16-x25519-ke1_ecp256-ke2_ecp384-noesn";

fn connected() -> Pair {
    Pair::connected_with(Setup::new().quiet().suites(IKE, ESP))
}

fn rekey_child(pair: &mut Pair, side: Side) {
    let child = *pair.peer(side).plane.keys().next().unwrap();
    pair.command(side, Command::RekeyChild(child));
}

/// A CREATE_CHILD_SA of the server's for a child like the one there is; `rekeys` is what the server
/// receives on.
fn create_child(pair: &Pair, rekeys: Option<u32>) -> Payloads {
    let child = pair.server.plane.values().next().unwrap();
    let mut payloads = Payloads::new();
    if let Some(spi) = rekeys {
        let about = Notify::about(NotifyType::RekeySa, ProtocolId::Esp, ChildSpi(spi));
        payloads.push_notify(about);
    }
    payloads.push(Payload::Sa(offer_esp(&esp("aes256gcm16-noesn"), 0x7777_0001)));
    payloads.push(Payload::Nonce(Nonce::new(vec![8; 32]).unwrap()));
    payloads.push(Payload::TsI(TrafficSelectors::new(child.ts_local.clone())));
    payloads.push(Payload::TsR(TrafficSelectors::new(child.ts_remote.clone())));
    payloads
}

#[test]
fn a_child_made_meanwhile_does_not_send_the_last_public_value_again() {
    let mut pair = connected();
    let mut spy = Spy::of(&pair);
    rekey_child(&mut pair, Side::Client);
    for _ in 0..3 {
        pair.step();
    }
    // The first IKE_FOLLOWUP_KE is answered; its secret takes time.
    pair.client.hold = |action| matches!(action, Action::KeyExchange(KexRequest::Agree { .. }));
    pair.step();
    assert_eq!(pair.client.held.len(), 1);
    assert!(pair.wire.is_empty());

    let asked = create_child(&pair, None);
    let asked = spy.say(&pair, Side::Server, ExchangeType::CreateChildSa, false, 0, &asked);
    pair.deliver(asked);

    let sent: Vec<_> = pair.wire.iter().map(Flight::exchange).collect();
    assert_eq!(sent, [ExchangeType::CreateChildSa], "only the answer");
    pair.client.hold = |_| false;
    pair.wire.clear();
    pair.release(Side::Client, 0);
    let next = spy.hear(&pair.wire[0]).payloads().unwrap();
    assert_eq!(next.ke().unwrap().method, KeMethod::Ecp384);
}

/// Both rekey the same child. The server is done and waits for the client's additional key exchange,
/// to know which of the two new children stays; the client gives up and rekeys what it has.
#[test]
fn what_waits_for_a_crossing_rekey_goes_on_when_the_peer_begins_anew() {
    let many = "aes256gcm16-prfsha384-x25519-ke1_ecp256";
    let mut setup = Setup::new().quiet().suites(many, "aes256gcm16-x25519-ke1_ecp256-noesn");
    setup.server.esp_suites = esp("aes256gcm16-noesn");
    setup.client.esp_suites.extend(esp("aes256gcm16-noesn"));
    let mut pair = Pair::connected_with(setup);
    rekey_child(&mut pair, Side::Server);
    rekey_child(&mut pair, Side::Client);
    pair.client.hold = |action| matches!(action, Action::KeyExchange(KexRequest::Agree { .. }));
    // Both requests and both answers.
    for _ in 0..4 {
        pair.step().unwrap();
    }
    assert_eq!((pair.wire.len(), pair.client.held.len()), (0, 1));
    assert_eq!((pair.client.plane.len(), pair.server.plane.len()), (2, 1));

    // The client's shared secret comes too late.
    let made = *pair.client.plane.keys().last().unwrap();
    pair.command(Side::Client, Command::RekeyChild(made));
    pair.run_for(Duration::from_secs(20));
    pair.client.hold = |_| false;
    pair.release(Side::Client, 0);
    pair.run_for(Duration::from_secs(60));

    pair.assert_connected();
    pair.assert_traffic_flows();
    pair.assert_no_leaks();
}

/// RFC 7296 2.25.1: CHILD_SA_NOT_FOUND would have the peer remove what both have just made.
#[test]
fn a_child_whose_last_key_exchange_is_not_heard_of_yet_is_not_unknown() {
    let mut pair = connected();
    let mut spy = Spy::of(&pair);
    let before = pair.server.inbound();
    rekey_child(&mut pair, Side::Client);
    for _ in 0..5 {
        pair.step();
    }
    let last = pair.lose();
    assert_eq!(last.exchange(), ExchangeType::IkeFollowupKe);
    let new = *pair.server.inbound().iter().find(|spi| !before.contains(spi)).unwrap();

    let asked = create_child(&pair, Some(new));
    let asked = spy.say(&pair, Side::Server, ExchangeType::CreateChildSa, false, 0, &asked);
    pair.deliver(asked);

    let answer = spy.hear(&pair.wire[0]).payloads().unwrap();
    assert!(answer.has_notify(NotifyType::TemporaryFailure), "{answer:?}");
    pair.wire.clear();
    pair.deliver(last);
    assert!(pair.client.plane.values().any(|child| child.spi_out == new));
}

#[test]
fn asking_for_another_group_does_not_talk_us_out_of_additional_key_exchanges() {
    let many = "aes256gcm16-prfsha384-x25519-ecp384-ke1_ecp256";
    let mut setup = Setup::new().quiet().suites(many, "aes256gcm16-x25519-ecp384-ke1_ecp256-noesn");
    setup.server.ike_suites = ike("aes256gcm16-prfsha384-ecp384-ke1_ecp256");
    setup.server.esp_suites = esp("aes256gcm16-noesn");
    let mut pair = Pair::connected_with(setup);
    let old = pair.client.inbound();

    rekey_child(&mut pair, Side::Client);
    pair.run();

    let suites: Vec<_> =
        pair.client.established()[0].children.iter().map(|c| c.suite.to_string()).collect();
    assert_ne!(pair.client.inbound(), old);
    assert_eq!(suites, ["aes256gcm16-ecp384-ke1_ecp256"]);
    pair.assert_mirrored(1);
}

/// A driver under load refuses first what serves strangers, and IKE_INTERMEDIATE still does.
#[test]
fn every_key_exchange_of_a_handshake_is_a_strangers() {
    let several = "aes256gcm16-prfsha384-x25519-ke1_ecp256-ke2_ecp384";
    let mut pair = Setup::new().quiet().suites(several, "aes256gcm16-noesn").build();
    pair.server.hold = |action| matches!(action, Action::KeyExchange(_));
    pair.initiate();
    let mut seen = 0;
    for _ in 0..100 {
        if pair.server.held.is_empty() {
            if pair.step().is_none() {
                break;
            }
            continue;
        }
        let (token, action) = &pair.server.held[0];
        if !matches!(action, Action::KeyExchange(KexRequest::Drop { .. })) {
            assert!(pair.server.engine.serves_stranger(*token), "{action:?}");
            seen += 1;
        }
        pair.release(Side::Server, 0);
    }
    pair.assert_connected();
    assert_eq!(seen, 6, "a key pair and a secret for each of three methods");
}

#[test]
fn a_successor_waits_as_long_as_the_crossing_rekey_takes() {
    for late in [Side::Client, Side::Server] {
        let several = "aes256gcm16-prfsha384-x25519-ke1_ecp256-ke2_ecp384";
        let mut setup = Setup::new().quiet().suites(several, "aes256gcm16-noesn");
        for timers in [&mut setup.client.timers, &mut setup.server.timers] {
            timers.tombstone = Duration::from_secs(3);
        }
        let mut pair = Pair::connected_with(setup);
        let (ours, theirs) = (pair.client.established()[0].id, pair.server.established()[0].id);
        pair.command(Side::Client, Command::RekeyIke(ours));
        pair.command(Side::Server, Command::RekeyIke(theirs));
        // One side's answers take their time, the other's come at once.
        let mut held = Vec::new();
        for _ in 0..200 {
            let Some(flight) = pair.wire.pop_front() else { break };
            let slow = flight.to == late && flight.exchange() == ExchangeType::IkeFollowupKe;
            if slow && Header::peek(&flight.datagram.payload).unwrap().flags.response {
                held.push(flight);
            } else {
                pair.deliver(flight);
            }
        }
        assert!(!held.is_empty());
        pair.wait(Duration::from_secs(5));
        pair.run_for(Duration::from_secs(60));

        pair.assert_connected();
        pair.assert_traffic_flows();
        let (client, server) = (pair.client.established(), pair.server.established());
        assert_eq!(client[0].spis, server[0].spis, "{late:?}");
        pair.assert_no_leaks();
    }
}
