//! The four messages, undisturbed (RFC 7296 1.2).

use ike::event::Event;
use ike::wire::ExchangeType;

use crate::harness::*;

#[test]
fn four_messages_make_an_ike_sa_and_a_child() {
    let mut pair = Setup::new().quiet().build();
    pair.initiate();

    // --> IKE_SA_INIT { SAi1, KEi, Ni, N(NAT-D) x 2, N(FRAG), N(HASHES) }
    let flight = pair.step().unwrap();
    assert_eq!((flight.to, flight.exchange()), (Side::Server, ExchangeType::IkeSaInit));
    assert_eq!(pair.server.engine.stats().half_open, 1);
    // <-- IKE_SA_INIT { SAr1, KEr, Nr, ... }
    pair.step().unwrap();
    pair.assert_nothing_installed();
    // --> IKE_AUTH { IDi, CERT, AUTH, CP(request), SAi2, TSi, TSr }
    let flight = pair.step().unwrap();
    assert_eq!((flight.to, flight.exchange()), (Side::Server, ExchangeType::IkeAuth));
    assert_eq!(pair.server.inbound(), [0x5000_0001]);
    assert_eq!(pair.server.outbound(), [0xc000_0001]);
    assert_eq!(pair.client.inbound(), []);
    assert_eq!(pair.server.engine.stats().half_open, 0);
    // <-- IKE_AUTH { IDr, CERT, AUTH, CP(reply), SAr2, TSi, TSr }
    pair.step().unwrap();
    assert_eq!(pair.client.inbound(), [0xc000_0001]);
    assert_eq!(pair.client.outbound(), [0x5000_0001]);

    pair.assert_connected();
    assert!(pair.wire.is_empty());
    pair.assert_no_leaks();
}

#[test]
fn the_client_gets_its_addresses_and_only_what_it_may_reach() {
    let pair = Pair::connected();

    let child = pair.client.plane.values().next().unwrap();
    assert_eq!(child.ts_local, [net("10.77.0.2", "10.77.0.2"), net("fd77::2", "fd77::2")]);
    assert_eq!(child.ts_remote, [net("10.20.0.0", "10.20.0.255")]);
    let sa = &pair.client.established()[0];
    assert_eq!(
        sa.addresses,
        ["10.77.0.2".parse::<std::net::IpAddr>().unwrap(), "fd77::2".parse().unwrap()]
    );
    assert_eq!(sa.identity.as_deref(), Some("gw.example.com"));
    let sa = &pair.server.established()[0];
    assert_eq!(sa.lease.as_ref().unwrap().0, LEASE);
    assert_eq!(sa.suite.as_deref(), Some("aes256gcm16-prfsha384-x25519"));
    pair.assert_no_leaks();
}

#[test]
fn both_sides_report_what_came_up() {
    let pair = Pair::connected();

    for peer in [&pair.client, &pair.server] {
        assert!(
            matches!(peer.events.as_slice(), [Event::IkeUp { .. }, Event::ChildUp { .. }]),
            "{:?}",
            peer.events
        );
    }
    pair.assert_no_leaks();
}

#[test]
fn ed25519_keys_authenticate_both_sides() {
    let pair = Pair::connected_with(Setup::with_keys(Key::ed25519(), Key::ed25519()).quiet());

    pair.assert_no_leaks();
}

#[test]
fn every_suite_makes_a_tunnel() {
    let cases = [
        ("aes128gcm16-prfsha256-ecp256", "aes128gcm16-noesn"),
        ("aes256gcm16-prfsha512-ecp384", "aes256gcm16-esn"),
        ("chacha20poly1305-prfsha256-x25519", "chacha20poly1305-noesn"),
        ("aes256-sha256-prfsha256-modp2048", "aes256-sha256-noesn"),
        ("aes128-sha512-prfsha384-ecp256", "aes128-sha384-esn"),
    ];
    for (ike_suite, esp_suite) in cases {
        let mut setup = Setup::new().quiet();
        setup.server.ike_suites = ike(ike_suite);
        setup.server.esp_suites = esp(esp_suite);
        setup.target.ike_suites = ike(ike_suite);
        setup.target.esp_suites = esp(esp_suite);
        setup.target.first_ke = setup.target.ike_suites[0].kex;

        let pair = Pair::connected_with(setup);

        let sa = &pair.client.established()[0];
        assert_eq!(sa.suite.as_deref(), Some(ike_suite));
        assert_eq!(sa.children[0].suite, esp(esp_suite)[0]);
        pair.assert_no_leaks();
    }
}
