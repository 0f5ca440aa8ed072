//! IKE fragmentation (RFC 7383): after IKE_SA_INIT, in both directions.

use std::time::Duration;

use ike::wire::{ExchangeType, Header, PayloadType};

use crate::harness::*;

/// Certificates so large that IKE_AUTH takes several datagrams each way.
fn large() -> Setup {
    let mut setup = Setup::new().quiet();
    for config in [&mut setup.client, &mut setup.server] {
        config.credentials[0].chain.push(vec![0x30; 3000]);
        config.fragment_size = 600;
    }
    setup
}

fn is_fragment(flight: &Flight) -> bool {
    Header::peek(&flight.datagram.payload).unwrap().next_payload == PayloadType::Skf
}

/// A pair whose client's IKE_AUTH request is on the wire.
fn at_auth() -> Pair {
    let mut pair = large().build();
    pair.initiate();
    pair.step();
    pair.step();
    pair
}

#[test]
fn large_messages_go_in_fragments_that_fit() {
    let mut pair = at_auth();

    assert!(pair.wire.len() >= 5, "{} fragments", pair.wire.len());
    for flight in &pair.wire {
        assert!(is_fragment(flight));
        assert!(flight.datagram.payload.len() <= 600);
        assert_eq!(flight.exchange(), ExchangeType::IkeAuth);
    }
    while pair.wire[0].to == Side::Server {
        pair.step();
    }
    assert!(pair.wire.len() >= 5 && pair.wire.iter().all(is_fragment));
    pair.run();

    pair.assert_connected();
    pair.assert_no_leaks();
}

#[test]
fn fragments_may_come_in_any_order_and_twice() {
    let mut pair = at_auth();
    let twice: Vec<_> = pair.wire.iter().cloned().collect();
    pair.wire = pair.wire.drain(..).rev().collect();
    pair.wire.extend(twice);

    pair.run();

    pair.assert_connected();
    assert_eq!(pair.server.engine.sas().count(), 1);
    pair.assert_no_leaks();
}

#[test]
fn a_lost_fragment_of_the_request_comes_with_the_retransmission() {
    let mut pair = at_auth();
    pair.wire.remove(2);

    pair.run();
    pair.assert_nothing_installed();
    pair.run_for(Duration::from_secs(2));

    pair.assert_connected();
    assert_eq!(pair.client.engine.stats().retransmissions, 1);
    pair.assert_no_leaks();
}

#[test]
fn a_lost_fragment_of_the_response_is_answered_from_the_cache_once() {
    let mut pair = at_auth();
    while pair.wire[0].to == Side::Server {
        pair.step();
    }
    let response = pair.wire.len();
    pair.wire.remove(1);
    pair.run();
    pair.assert_connected_server_only();

    pair.wait(Duration::from_secs(1));
    while pair.wire[0].to == Side::Server {
        pair.step();
    }
    // Of all the repeated fragments, only the first asks for the response (RFC 7383 2.6.1).
    assert_eq!(pair.wire.len(), response);
    pair.run();

    pair.assert_connected();
    pair.assert_no_leaks();
}

#[test]
fn an_incomplete_message_is_given_up() {
    let mut pair = at_auth();
    pair.wire.truncate(2);
    pair.run();
    let reasons = |pair: &Pair| pair.server.engine.poll_timeout().unwrap().reason;
    assert_eq!(reasons(&pair), ike::io::TimerKind::Reassembly);

    pair.wait(Duration::from_secs(16));
    pair.wire.clear();

    assert_eq!(reasons(&pair), ike::io::TimerKind::HalfOpen);
    pair.assert_no_leaks();
}

#[test]
fn a_forged_fragment_changes_nothing() {
    let mut pair = at_auth();
    let mut forged = pair.wire[0].clone();
    *forged.datagram.payload.last_mut().unwrap() ^= 1;
    pair.wire.push_front(forged);

    pair.run();

    pair.assert_connected();
    assert_eq!(pair.server.engine.stats().bad_icv, 1);
    pair.assert_no_leaks();
}

impl Pair {
    fn assert_connected_server_only(&self) {
        assert_eq!(self.server.established().len(), 1);
        assert_eq!(self.client.inbound(), Vec::<u32>::new());
    }
}
