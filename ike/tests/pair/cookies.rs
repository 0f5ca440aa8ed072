//! Cookies and key exchange hints, alone and in both orders (RFC 7296 2.6, 2.6.1, 1.2).

use std::time::Duration;

use ike::crypto::KeMethod;
use ike::event::Event;
use ike::wire::{Message, NotifyType};

use crate::harness::*;

fn notifies(flight: &Flight) -> Vec<NotifyType> {
    let message = Message::parse(&flight.datagram.payload).unwrap();
    message.payloads.notifies().map(|notify| notify.kind).collect()
}

/// The server asks every new peer for a cookie; the client begins with P-256, the server wants
/// X25519 alone.
fn setup(cookies: bool, invalid_ke: bool) -> Pair {
    let mut setup = Setup::new().quiet();
    if cookies {
        setup.server.limits.cookie_threshold = 0;
    }
    if invalid_ke {
        setup.server.ike_suites = ike("aes256gcm16-prfsha384-x25519");
        setup.target.first_ke = KeMethod::Ecp256;
    }
    setup.build()
}

#[test]
fn a_cookie_costs_the_server_nothing_and_the_client_one_round_trip() {
    let mut pair = setup(true, false);
    pair.initiate();

    pair.step();
    assert_eq!(notifies(&pair.wire[0]), [NotifyType::Cookie]);
    assert_eq!(pair.server.engine.sas().count(), 0);
    assert_eq!(pair.server.engine.poll_timeout(), None);
    pair.step();
    // The cookie comes back first, and everything else unchanged.
    assert_eq!(notifies(&pair.wire[0])[0], NotifyType::Cookie);
    pair.run();

    pair.assert_connected();
    assert_eq!(pair.server.engine.stats().cookies, 1);
    pair.assert_no_leaks();
}

#[test]
fn another_address_cannot_use_the_cookie() {
    let mut pair = setup(true, false);
    pair.initiate();
    pair.step();
    pair.step();
    let mut stolen = pair.wire[0].clone();
    stolen.datagram.remote = address("203.0.113.9", 500);

    pair.deliver(stolen);

    assert_eq!(notifies(&pair.wire[1]), [NotifyType::Cookie]);
    assert_eq!(pair.server.engine.sas().count(), 0);
    pair.wire.pop_back();
    pair.run();
    pair.assert_connected();
    pair.assert_no_leaks();
}

#[test]
fn invalid_ke_payload_names_the_group_to_use() {
    let mut pair = setup(false, true);
    pair.initiate();

    pair.step();
    assert_eq!(notifies(&pair.wire[0]), [NotifyType::InvalidKePayload]);
    assert_eq!(pair.server.engine.sas().count(), 0);
    pair.run();

    pair.assert_connected();
    pair.assert_no_leaks();
}

#[test]
fn cookie_then_invalid_ke() {
    let mut pair = setup(true, true);
    pair.initiate();

    pair.step();
    assert_eq!(notifies(&pair.wire[0]), [NotifyType::Cookie]);
    pair.step();
    pair.step();
    assert_eq!(notifies(&pair.wire[0]), [NotifyType::InvalidKePayload]);
    pair.step();
    // RFC 7296 2.6.1: the cookie is sent again with the other group, which saves a round trip.
    assert_eq!(notifies(&pair.wire[0])[0], NotifyType::Cookie);
    pair.step();
    assert_eq!(pair.server.engine.stats().half_open, 1);
    pair.run();

    pair.assert_connected();
    assert_eq!(pair.server.engine.stats().cookies, 1);
    pair.assert_no_leaks();
}

#[test]
fn invalid_ke_then_cookie() {
    let mut pair = setup(false, true);
    pair.initiate();
    pair.step();
    assert_eq!(notifies(&pair.wire[0]), [NotifyType::InvalidKePayload]);

    // The server comes under load in between.
    let mut config = pair.server.config.clone();
    config.limits.cookie_threshold = 0;
    pair.command(Side::Server, ike::Command::Reconfigure(Box::new(config)));
    pair.step();
    pair.step();
    assert_eq!(notifies(&pair.wire[0]), [NotifyType::Cookie]);
    pair.run();

    pair.assert_connected();
    pair.assert_no_leaks();
}

#[test]
fn cookies_survive_one_change_of_the_secret() {
    let mut pair = setup(true, false);
    pair.initiate();
    pair.run();
    pair.assert_connected();
    pair.initiate();
    pair.step();
    pair.step();
    let with_cookie = pair.lose();

    // The secret changes while half-open SAs are there. A cookie is good for the one before, too,
    // and for none older (RFC 7296 2.6).
    let secret = pair.server.config.timers.cookie_secret + Duration::from_secs(1);
    let cookies = |pair: &Pair| pair.server.engine.stats().cookies;
    let before = cookies(&pair);
    for _ in 0..2 {
        pair.deliver(with_cookie.clone());
        assert_eq!(pair.server.engine.stats().half_open, 1);
        assert_eq!(cookies(&pair), before);
        pair.wait(secret);
        pair.wire.clear();
    }
    pair.deliver(with_cookie);
    assert_eq!(notifies(&pair.wire[0]), [NotifyType::Cookie]);
    assert_eq!(cookies(&pair), before + 1);
    assert_eq!(pair.server.engine.stats().half_open, 0);
    pair.wire.clear();
    pair.assert_no_leaks();
}

#[test]
fn a_source_over_its_share_returns_a_cookie_while_others_connect_at_once() {
    let mut setup = Setup::new().quiet();
    setup.server.limits.cookie_threshold = 8;
    let mut pair = setup.build();
    // The share is a quarter of the threshold.
    for _ in 0..3 {
        pair.initiate();
    }
    for _ in 0..3 {
        pair.step();
    }
    assert_eq!(notifies(&pair.wire[2]), [NotifyType::Cookie]);
    assert_eq!(pair.server.engine.stats().half_open, 2);

    // Another source is let in without.
    let mut other = pair.target.clone();
    other.local = address("192.0.2.99", 500);
    pair.wire.clear();
    pair.command(Side::Client, ike::Command::Initiate(Box::new(other)));
    pair.step();
    assert_ne!(notifies(&pair.wire[0]), [NotifyType::Cookie]);
    assert_eq!(pair.server.engine.stats().half_open, 3);
    pair.wire.clear();
    pair.assert_no_leaks();
}

#[test]
fn crossing_the_threshold_is_reported_both_ways() {
    let mut setup = Setup::new().quiet();
    setup.server.limits.cookie_threshold = 1;
    let mut pair = setup.build();
    pair.initiate();
    pair.run();

    let modes: Vec<_> = pair
        .server
        .events
        .iter()
        .filter_map(|event| match event {
            Event::CookieMode(on) => Some(*on),
            _ => None,
        })
        .collect();

    assert_eq!(modes, [true, false]);
    pair.assert_no_leaks();
}

#[test]
fn a_full_table_takes_nobody_else_from_the_same_source() {
    let mut setup = Setup::new().quiet();
    setup.server.limits.cookie_threshold = 0;
    setup.server.limits.max_half_open = 3;
    let mut pair = setup.build();
    for _ in 0..5 {
        pair.initiate();
    }
    // All cookies out and back; what the server answers after that is lost.
    for _ in 0..15 {
        pair.step();
    }

    assert_eq!(pair.server.engine.stats().half_open, 3);
    pair.wire.clear();
    pair.assert_no_leaks();
}

/// RFC 8019 4.1: under attack a handshake that its peer does not go on with is given up sooner,
/// and not one that goes on.
#[test]
fn under_attack_who_says_nothing_more_is_forgotten_sooner() {
    for (attack, seconds) in [(false, 30), (true, 15)] {
        let mut pair = setup(attack, false);
        pair.initiate();
        while pair.server.engine.stats().half_open == 0 {
            pair.step();
        }
        pair.wire.clear();
        let left = |pair: &Pair| pair.server.engine.stats().half_open;

        pair.wait(Duration::from_millis(seconds * 1000 - 100));
        assert_eq!(left(&pair), 1, "attack: {attack}");
        pair.wait(Duration::from_millis(200));
        assert_eq!(left(&pair), 0, "attack: {attack}");
    }
}

/// Whose IKE_AUTH has come has the whole time: EAP goes to and fro.
#[test]
fn under_attack_who_goes_on_has_the_whole_time() {
    let mut setup = Setup::new().quiet();
    setup.server.limits.cookie_threshold = 0;
    setup.server.eap_tls = true;
    setup.target.local_auth = ike::config::LocalAuth::EapTls;
    let mut pair = setup.build();
    pair.initiate();
    // IKE_SA_INIT with the cookie, the first IKE_AUTH and its answer.
    for _ in 0..6 {
        pair.step();
    }
    let next = pair.wire.pop_front().unwrap();
    assert_eq!(next.to, Side::Server);
    pair.wait(Duration::from_secs(20));
    pair.wire.clear();
    pair.deliver(next);
    pair.run();

    pair.assert_connected();
    pair.assert_no_leaks();
}
