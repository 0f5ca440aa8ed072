//! MOBIKE (RFC 4555).

use std::time::Duration;

use ike::event::{CloseReason, Event};
use ike::io::{Action, Completion};
use ike::wire::{ExchangeType, Notify, NotifyType, Payloads};
use ike::{Command, Input};

use crate::harness::*;
use crate::spy::Spy;

const ELSEWHERE: &str = "203.0.113.77";

fn mobile() -> Setup {
    let mut setup = Setup::new().quiet();
    setup.target.mobike = true;
    setup
}

fn roam(pair: &mut Pair, ip: &str) {
    let ike = pair.client.established()[0].id;
    let local = address(ip, 4500);
    pair.command(Side::Client, Command::Move { ike, local });
}

#[test]
fn mobike_peers_move_to_port_4500_at_once_without_udp_for_esp() {
    let pair = Pair::connected_with(mobile());

    let sa = &pair.server.established()[0];
    assert_eq!((sa.remote, sa.encap), (address(CLIENT_IP, 4500), true));
    assert!(!pair.server.plane.values().next().unwrap().hosts.encap);
    pair.assert_no_leaks();
}

#[test]
fn esp_follows_when_the_peer_has_proven_to_be_there() {
    let mut pair = Pair::connected_with(mobile());
    let hosts = |peer: &Peer| peer.plane.values().next().unwrap().hosts;
    let before = hosts(&pair.server);

    roam(&mut pair, ELSEWHERE);
    // --> INFORMATIONAL { N(UPDATE_SA_ADDRESSES), N(NAT-D) x 2 } from the new address
    let update = pair.step().unwrap();
    assert_eq!(update.datagram.remote, address(ELSEWHERE, 4500));
    assert_eq!(pair.server.established()[0].remote, address(ELSEWHERE, 4500));
    assert_eq!(hosts(&pair.server), before);
    // <-- INFORMATIONAL { N(NAT-D) x 2 }; <-- INFORMATIONAL { N(COOKIE2) }
    assert_eq!(pair.wire.len(), 2);
    assert!(pair.wire.iter().all(|flight| flight.datagram.local == address(ELSEWHERE, 4500)));
    pair.step();
    assert_eq!(hosts(&pair.client).local, address(ELSEWHERE, 4500));
    pair.step();
    assert_eq!(hosts(&pair.server), before);
    // --> INFORMATIONAL { N(COOKIE2) }
    pair.step();
    assert_eq!(hosts(&pair.server).remote, address(ELSEWHERE, 4500));

    assert!(pair.server.events.iter().any(|event| matches!(event, Event::Moved { .. })));
    pair.assert_connected();
    pair.assert_no_leaks();
}

/// A data plane may be unable to take a child to where its peer is: another peer there may have
/// the same SPI. A new child begins at the right place.
#[test]
fn a_child_that_cannot_be_moved_is_rekeyed() {
    let mut pair = Pair::connected_with(mobile());
    let before = pair.server.inbound();
    pair.server.hold = |action| matches!(action, Action::UpdateHosts { .. });

    roam(&mut pair, ELSEWHERE);
    pair.run();
    assert_eq!(pair.server.inbound(), before);
    let (token, _) = pair.server.held.remove(0);
    let refused = Completion::UpdateHosts(Err("it exists".to_owned()));
    pair.input(Side::Server, Input::Completion(token, refused));
    pair.run();

    assert_ne!(pair.server.inbound(), before);
    let child = pair.server.plane.values().next().unwrap();
    assert_eq!(child.hosts.remote, address(ELSEWHERE, 4500));
    pair.assert_connected();
}

#[test]
fn a_nat_on_the_new_path_is_found_and_esp_goes_in_udp() {
    let mut pair = Pair::connected_with(mobile());
    assert!(!pair.server.plane.values().next().unwrap().hosts.encap);

    pair.nat = Some(Nat { public: "198.18.0.1".parse().unwrap(), offset: 10_000 });
    let ike = pair.client.established()[0].id;
    // The client has another address behind the NAT.
    pair.command(Side::Client, Command::Move { ike, local: address("10.0.0.5", 4500) });
    pair.run();

    let sa = &pair.server.established()[0];
    assert_eq!(sa.nat, (true, false));
    assert!(matches!(pair.server.events.last(), Some(Event::Moved { nat: true, .. })));
    let hosts = pair.server.plane.values().next().unwrap().hosts;
    assert_eq!((hosts.remote, hosts.encap), (address("198.18.0.1", 14_500), true));
    assert!(pair.client.plane.values().next().unwrap().hosts.encap);
    pair.assert_connected();
    pair.assert_no_leaks();
}

#[test]
fn a_faked_nat_is_repeated_in_the_answer() {
    let mut setup = mobile();
    setup.server.force_encap = true;
    let mut pair = Pair::connected_with(setup);

    roam(&mut pair, ELSEWHERE);
    pair.run();

    assert!(pair.client.plane.values().next().unwrap().hosts.encap);
    assert!(pair.server.plane.values().next().unwrap().hosts.encap);
    pair.assert_no_leaks();
}

#[test]
fn the_peer_may_move_again_before_it_is_proven() {
    let mut pair = Pair::connected_with(mobile());
    roam(&mut pair, ELSEWHERE);
    pair.step();
    roam(&mut pair, "203.0.113.78");

    pair.run_for(Duration::from_secs(30));

    let hosts = pair.server.plane.values().next().unwrap().hosts;
    assert_eq!(hosts.remote, address("203.0.113.78", 4500));
    pair.assert_connected();
    pair.assert_no_leaks();
}

#[test]
fn each_message_of_a_move_may_be_lost() {
    for n in 0..4 {
        let mut pair = Pair::connected_with(mobile());
        roam(&mut pair, ELSEWHERE);
        for _ in 0..n {
            pair.step();
        }
        pair.lose();
        pair.run_for(Duration::from_secs(20));

        let hosts = pair.server.plane.values().next().unwrap().hosts;
        assert_eq!(hosts.remote, address(ELSEWHERE, 4500), "message {n}");
        pair.assert_connected();
        pair.assert_no_leaks();
    }
}

/// A datagram of the client, who is elsewhere now.
fn from_elsewhere(mut flight: Flight) -> Flight {
    flight.datagram.remote = address(ELSEWHERE, 4500);
    flight.datagram.local = address(SERVER_IP, 4500);
    flight.datagram.encap = true;
    flight
}

#[test]
fn who_does_not_echo_the_cookie_is_closed() {
    let mut pair = Pair::connected_with(mobile());
    let mut spy = Spy::of(&pair);
    let mut update = Payloads::new();
    update.push_notify(Notify::new(NotifyType::UpdateSaAddresses));
    let kind = ExchangeType::Informational;
    let said = spy.say(&pair, Side::Client, kind, false, 2, &update);
    pair.deliver(from_elsewhere(said));
    pair.wire.clear();

    let empty = Payloads::new();
    let said = spy.say(&pair, Side::Client, kind, true, 0, &empty);
    pair.deliver(from_elsewhere(said));

    assert_eq!(pair.server.codes(), ["cookie2"]);
    assert_eq!(pair.server.inbound(), []);
    assert!(matches!(pair.server.ends().as_slice(), [CloseReason::Failed(_)]));
}

#[test]
fn no_nats_allowed_refuses_a_changed_address() {
    let mut pair = Pair::connected_with(mobile());
    let mut spy = Spy::of(&pair);
    let mut update = Payloads::new();
    update.push_notify(Notify::new(NotifyType::UpdateSaAddresses));
    let claimed = [192, 0, 2, 10, 198, 51, 100, 1, 0x11, 0x94, 0x11, 0x94];
    update.push_notify(Notify::with_data(NotifyType::NoNatsAllowed, claimed.to_vec()));

    let said = spy.say(&pair, Side::Client, ExchangeType::Informational, false, 2, &update);
    pair.deliver(from_elsewhere(said));

    let answer = spy.hear(&pair.lose()).payloads().unwrap();
    assert!(answer.has_notify(NotifyType::UnexpectedNatDetected));
    assert_eq!(pair.server.established()[0].remote, address(CLIENT_IP, 4500));
}

#[test]
fn without_agreement_an_update_is_ignored() {
    let mut pair = Pair::connected();
    let mut spy = Spy::of(&pair);
    let mut update = Payloads::new();
    update.push_notify(Notify::new(NotifyType::UpdateSaAddresses));

    let said = spy.say(&pair, Side::Client, ExchangeType::Informational, false, 2, &update);
    pair.deliver(from_elsewhere(said));

    assert_eq!(pair.server.established()[0].remote, address(CLIENT_IP, 500));
    assert_eq!(pair.wire.len(), 1);
}

#[test]
fn cookie2_of_the_peer_is_echoed() {
    let mut pair = Pair::connected_with(mobile());
    let mut spy = Spy::of(&pair);
    let mut probe = Payloads::new();
    probe.push_notify(Notify::with_data(NotifyType::Cookie2, vec![9; 20]));

    let said = spy.say(&pair, Side::Client, ExchangeType::Informational, false, 2, &probe);
    pair.deliver(said);

    let answer = spy.hear(&pair.lose()).payloads().unwrap();
    assert_eq!(answer.notify(NotifyType::Cookie2).unwrap().data, vec![9; 20]);
}

#[test]
fn auth_lifetime_is_announced_in_good_time_and_not_when_the_end_is_near() {
    for (left, announced) in [(3600u32, Some(3540)), (600, Some(570)), (100, None)] {
        let mut setup = Setup::new().quiet();
        let deadline = START + i64::from(left) * 1_000_000;
        setup.grant.as_mut().unwrap().deadline = ike::WallTime(deadline);
        setup.server.timers.min_auth_lifetime = Duration::from_secs(120);
        let mut pair = setup.build();
        pair.initiate();
        pair.step();
        pair.step();
        pair.step();
        let spy = Spy::of(&pair);

        let answer = spy.hear(&pair.wire[0]).payloads().unwrap();

        let told = answer.notify(NotifyType::AuthLifetime).map(|n| n.number().unwrap());
        assert_eq!(told, announced);
        pair.run();
        pair.assert_no_leaks();
    }
}
