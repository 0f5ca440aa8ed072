//! Addresses: NAT detection, the move to port 4500, rebinding, keepalives (RFC 7296 2.11, 2.23).

use std::time::Duration;

use ike::Output;
use ike::event::Event;

use crate::harness::*;

const NAT: &str = "203.0.113.1";

fn behind_nat(setup: Setup) -> Pair {
    let mut pair = setup.build();
    pair.nat = Some(Nat { public: NAT.parse().unwrap(), offset: 10_000 });
    pair.initiate();
    pair.run();
    pair.assert_connected();
    pair
}

fn keepalives(peer: &Peer) -> usize {
    peer.outputs
        .iter()
        .filter(|output| matches!(output, Output::Transmit(t) if t.payload == [0xff]))
        .count()
}

#[test]
fn without_nat_everything_stays_on_port_500_and_esp_goes_plain() {
    let pair = Pair::connected();

    let sa = &pair.server.established()[0];
    assert_eq!((sa.nat, sa.encap), ((false, false), false));
    assert!(matches!(pair.server.events[0], Event::IkeUp { nat: false, .. }));
    assert_eq!(sa.remote, address(CLIENT_IP, 500));
    assert!(!pair.server.plane.values().next().unwrap().hosts.encap);
    pair.assert_no_leaks();
}

#[test]
fn a_client_behind_nat_moves_to_port_4500_and_esp_goes_in_udp() {
    let pair = behind_nat(Setup::new().quiet());

    let server = &pair.server.established()[0];
    assert_eq!((server.nat, server.encap), ((true, false), true));
    assert_eq!(server.remote, address(NAT, 14_500));
    assert_eq!(server.local, address(SERVER_IP, 4500));
    let client = &pair.client.established()[0];
    assert_eq!(client.nat, (false, true));
    // The peer of the one is behind it, that of the other is not.
    assert!(matches!(pair.server.events[0], Event::IkeUp { nat: true, .. }));
    assert!(matches!(pair.client.events[0], Event::IkeUp { nat: false, .. }));
    let hosts = pair.server.plane.values().next().unwrap().hosts;
    assert!(hosts.encap);
    assert_eq!(hosts.remote, address(NAT, 14_500));
    pair.assert_no_leaks();
}

#[test]
fn who_is_behind_the_nat_keeps_it_open() {
    let mut pair = behind_nat(Setup::new().quiet());

    pair.run_for(Duration::from_secs(61));

    assert_eq!(keepalives(&pair.client), 3);
    assert_eq!(keepalives(&pair.server), 0);
    pair.assert_no_leaks();
}

#[test]
fn a_faked_nat_forces_udp_and_costs_no_keepalives_of_ours() {
    let mut setup = Setup::new().quiet();
    setup.server.force_encap = true;
    let mut pair = Pair::connected_with(setup);

    assert!(pair.server.plane.values().next().unwrap().hosts.encap);
    assert!(pair.client.plane.values().next().unwrap().hosts.encap);
    assert_eq!(pair.server.established()[0].nat, (false, false));
    assert_eq!(pair.client.established()[0].nat, (true, false));
    assert_eq!(pair.server.established()[0].remote, address(CLIENT_IP, 4500));
    pair.run_for(Duration::from_secs(61));
    assert_eq!(keepalives(&pair.server), 0);
    pair.assert_no_leaks();
}

#[test]
fn a_rebound_nat_is_followed_by_fresh_messages() {
    let mut setup = Setup::new().quiet();
    setup.client.timers.dpd = Duration::from_secs(10);
    let mut pair = behind_nat(setup);

    // The NAT forgets its mapping and gives the client another port.
    pair.nat = Some(Nat { public: NAT.parse().unwrap(), offset: 20_000 });
    pair.run_for(Duration::from_secs(10));

    assert_eq!(pair.server.established()[0].remote, address(NAT, 24_500));
    assert_eq!(pair.server.plane.values().next().unwrap().hosts.remote, address(NAT, 24_500));
    assert!(pair.server.events.iter().any(|event| matches!(event, Event::Moved { nat: true, .. })));
    pair.assert_connected();
    pair.assert_no_leaks();
}

#[test]
fn authentic_esp_moves_the_sa_too() {
    let mut pair = behind_nat(Setup::new().quiet());
    let child = *pair.server.plane.keys().next().unwrap();
    pair.nat = Some(Nat { public: NAT.parse().unwrap(), offset: 20_000 });

    let remote = address(NAT, 24_500);
    let event = ike::io::DataplaneEvent::Mapping { child, remote };
    pair.input(Side::Server, ike::Input::Dataplane(event));

    assert_eq!(pair.server.plane.values().next().unwrap().hosts.remote, remote);
    pair.assert_no_leaks();
}

#[test]
fn a_repeated_message_from_elsewhere_moves_nothing() {
    let mut setup = Setup::new().quiet();
    setup.client.timers.dpd = Duration::from_secs(10);
    let mut pair = behind_nat(setup);
    pair.wait(Duration::from_secs(10));
    let check = pair.step().unwrap();
    pair.run();

    let mut replayed = check;
    replayed.datagram.remote = address("203.0.113.66", 4500);
    let before = pair.server.outputs.len();
    pair.nat = None;
    pair.deliver(replayed);
    pair.wire.clear();
    pair.nat = Some(Nat { public: NAT.parse().unwrap(), offset: 10_000 });

    assert_eq!(pair.server.established()[0].remote, address(NAT, 14_500));
    assert!(pair.server.outputs[before..].iter().all(|o| matches!(o, Output::Transmit(_))));
    pair.assert_no_leaks();
}

#[test]
fn a_peer_without_nat_is_not_followed() {
    let mut setup = Setup::new().quiet();
    setup.client.timers.dpd = Duration::from_secs(10);
    let mut pair = Pair::connected_with(setup);
    pair.wait(Duration::from_secs(10));
    pair.wire[0].datagram.remote = address("192.0.2.77", 500);

    pair.step();

    // The answer goes back to where the request came from (RFC 7296 2.11); the SA stays.
    let answer = pair.wire.pop_front().unwrap();
    assert_eq!(answer.datagram.local, address("192.0.2.77", 500));
    assert_eq!(pair.server.established()[0].remote, address(CLIENT_IP, 500));
    pair.wire.clear();
    pair.run_for(Duration::from_secs(3));
    pair.assert_no_leaks();
}
