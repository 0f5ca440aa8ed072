//! Quick crash detection (RFC 6290): a side that has lost its memory proves it with a token.

use std::time::Duration;

use ike::crypto::SecretBytes;
use ike::event::CloseReason;
use ike::io::{Command, Datagram, Input};
use ike::wire::{Flags, Header, Message, Notify, NotifyType, Payload, Writer};
use ike::{Output, SaRole};

use crate::harness::*;

/// The server makes tokens, the client does not.
fn setup() -> Setup {
    let mut setup = Setup::new().quiet();
    setup.server.continuity.crash_secret = Some(SecretBytes::new(vec![0x5e; 32]));
    setup
}

/// The server starts again and remembers nothing but its configuration.
fn lose_memory(pair: &mut Pair) {
    pair.server.snapshots.clear();
    pair.restart(Side::Server);
    assert_eq!(pair.server.engine.sas().count(), 0);
}

/// A request by the client, on the wire.
fn ask(pair: &mut Pair) {
    let child = *pair.client.plane.keys().next().unwrap();
    pair.command(Side::Client, Command::RekeyChild(child));
}

#[test]
fn a_client_learns_at_once_that_the_server_has_lost_its_sas() {
    let mut pair = Pair::connected_with(setup());
    lose_memory(&mut pair);
    ask(&mut pair);
    pair.step();
    let shown = Message::parse(&pair.wire[0].datagram.payload).unwrap();
    assert!(shown.payloads.has_notify(NotifyType::InvalidIkeSpi));

    pair.run();

    assert_eq!(pair.client.ends(), [CloseReason::PeerDead]);
    assert_eq!(pair.client.codes(), ["peer_restarted"]);
    assert_eq!(pair.client.inbound(), Vec::<u32>::new());
}

#[test]
fn a_liveness_check_leaves_room_for_the_token() {
    let mut setup = setup();
    setup.client.timers.dpd = Duration::from_secs(10);
    let mut pair = Pair::connected_with(setup);
    lose_memory(&mut pair);

    pair.run_for(Duration::from_secs(11));

    assert_eq!(pair.client.ends(), [CloseReason::PeerDead]);
    assert_eq!(pair.client.codes(), ["peer_restarted"]);
}

#[test]
fn a_token_shown_again_neither_reports_nor_keeps_anything() {
    let mut pair = Pair::connected_with(setup());
    lose_memory(&mut pair);
    ask(&mut pair);
    pair.step();
    let shown = pair.step().unwrap();
    assert_eq!(pair.client.codes(), ["peer_restarted"]);

    for _ in 0..pair.client.config.timers.tombstone.as_secs() {
        pair.deliver(shown.clone());
        pair.wait(Duration::from_secs(1));
    }

    assert_eq!(pair.client.codes(), ["peer_restarted"]);
    assert_eq!(pair.client.engine.sas().count(), 0);
}

#[test]
fn the_right_token_may_stand_beside_others() {
    let mut pair = Pair::connected_with(setup());
    lose_memory(&mut pair);
    ask(&mut pair);
    pair.step();
    let mut shown = pair.lose();
    let mut message = Message::parse(&shown.datagram.payload).unwrap();
    let other = Notify::with_data(NotifyType::QuickCrashDetection, vec![9; 32]);
    message.payloads.push_front(Payload::Notify(other));
    shown.datagram.payload = message.encode().unwrap();

    pair.deliver(shown);

    assert_eq!(pair.client.ends(), [CloseReason::PeerDead]);
}

#[test]
fn a_rekeyed_sa_has_a_token_of_its_own_whoever_rekeyed_it() {
    for side in [Side::Client, Side::Server] {
        let mut pair = Pair::connected_with(setup());
        let id = pair.peer(side).established()[0].id;
        pair.command(side, Command::RekeyIke(id));
        pair.run();
        pair.assert_mirrored(1);

        lose_memory(&mut pair);
        ask(&mut pair);
        pair.run();

        assert_eq!(pair.client.ends().last(), Some(&CloseReason::PeerDead), "{side:?}");
    }
}

#[test]
fn a_restored_client_still_knows_the_token() {
    let mut setup = setup();
    setup.client.continuity.message_id_sync = false;
    let mut pair = Pair::connected_with(setup);
    pair.restart(Side::Client);
    lose_memory(&mut pair);
    ask(&mut pair);
    pair.run();
    assert_eq!(pair.client.ends(), [CloseReason::PeerDead]);
}

#[test]
fn another_token_and_an_error_without_one_prove_nothing() {
    for secret in [Some(SecretBytes::new(vec![1; 32])), None] {
        let mut pair = Pair::connected_with(setup());
        pair.server.config.continuity.crash_secret = secret;
        lose_memory(&mut pair);
        ask(&mut pair);
        pair.run();
        assert_eq!(pair.client.ends(), []);
        assert_eq!(pair.client.established().len(), 1);
    }
}

#[test]
fn the_token_of_an_sa_that_lives_is_shown_to_nobody() {
    let mut pair = Pair::connected_with(setup());
    let (spi_i, spi_r) = pair.server.established()[0].spis;
    let seen = pair.server.outputs.len();
    let exchange = ike::wire::ExchangeType::Informational;
    for (initiator, response) in [(true, false), (true, true), (false, false), (false, true)] {
        for spis in [(spi_i, spi_r), (spi_i, spi_r ^ 1), (spi_i ^ 1, spi_r), (spi_r, spi_i)] {
            let mut w = Writer::new();
            let (i, r) = (ike::wire::IkeSpi(spis.0), ike::wire::IkeSpi(spis.1));
            Header::new(i, r, exchange, Flags::new(initiator, response), 7).write(&mut w);
            let mut payload = w.into_vec();
            payload.extend([0; 400]);
            let length = u32::try_from(payload.len()).unwrap();
            payload[24..28].copy_from_slice(&length.to_be_bytes());
            let datagram = Datagram {
                local: pair.target.remote,
                remote: address("203.0.113.66", 500),
                encap: false,
                payload,
            };
            pair.input(Side::Server, Input::Datagram(datagram));
        }
    }
    let token = pair.server.engine.crash_token((spi_i, spi_r), SaRole::Responder).unwrap();
    for output in &pair.server.outputs[seen..] {
        if let Output::Transmit(transmit) = output {
            let shows = transmit.payload.windows(token.len()).any(|window| window == token);
            assert!(!shows, "a stranger got the token of a live SA");
        }
    }
}

#[test]
fn a_flood_of_unknown_spis_is_answered_at_a_bounded_rate_and_never_amplified() {
    let mut pair = Pair::connected_with(setup());
    ask(&mut pair);
    let asked = pair.lose();
    lose_memory(&mut pair);
    let mut answers = 0;
    for port in 1..1000 {
        let mut copy = asked.clone();
        copy.datagram.remote = address("203.0.113.66", port);
        let seen = pair.server.outputs.len();
        pair.deliver(copy);
        for output in &pair.server.outputs[seen..] {
            if let Output::Transmit(transmit) = output {
                answers += 1;
                assert!(transmit.payload.len() <= asked.datagram.payload.len());
            }
        }
    }
    assert!((1..=50).contains(&answers), "{answers}");
    // Others are still answered.
    let mut other = asked.clone();
    other.datagram.remote = address("203.0.113.67", 500);
    pair.wire.clear();
    pair.deliver(other);
    assert_eq!(pair.wire.len(), 1);
    let mut short = asked;
    short.datagram.payload.truncate(28);
    short.datagram.payload[24..28].copy_from_slice(&28_u32.to_be_bytes());
    pair.wire.clear();
    pair.deliver(short);
    assert!(pair.wire.is_empty(), "a header alone gets nothing longer back");
}

/// Two of our shards share the secret. Asked about the peer's SPI as if it were ours, the one that
/// does not know the SA must not make its token.
#[test]
fn a_token_is_good_for_one_role_only() {
    let mut pair = Pair::connected_with(setup());
    let spis = pair.server.established()[0].spis;
    let as_responder = pair.server.engine.crash_token(spis, SaRole::Responder).unwrap();
    lose_memory(&mut pair);
    let [shard, ..] = spis.0.to_be_bytes();
    pair.server.config.shard = shard;
    pair.restart(Side::Server);

    let mut w = Writer::new();
    let (i, r) = (ike::wire::IkeSpi(spis.0), ike::wire::IkeSpi(spis.1));
    let exchange = ike::wire::ExchangeType::Informational;
    Header::new(i, r, exchange, Flags::new(false, false), 7).write(&mut w);
    let mut payload = w.into_vec();
    payload.extend([0; 400]);
    let length = u32::try_from(payload.len()).unwrap();
    payload[24..28].copy_from_slice(&length.to_be_bytes());
    let (local, remote) = (pair.target.remote, address("203.0.113.66", 500));
    let datagram = Datagram { local, remote, encap: false, payload };
    pair.input(Side::Server, Input::Datagram(datagram));

    let shown = Message::parse(&pair.wire[0].datagram.payload).unwrap();
    let token = &shown.payloads.notify(NotifyType::QuickCrashDetection).unwrap().data;
    assert_ne!(*token, as_responder);
}
