//! Transport mode (RFC 7296 1.3.1): agreed on by both sides, or tunnel mode.

use std::time::Duration;

use ike::wire::{
    ChildSpi, ExchangeType, Nonce, Notify, NotifyType, Payload, Payloads, Proposal, ProtocolId,
    SecurityAssociation, TrafficSelector, TrafficSelectors,
};
use ike::{Command, snapshot::Snapshot};

use crate::harness::*;
use crate::spy::Spy;

const NAT: &str = "203.0.113.9";

/// Two hosts that speak for themselves; both want transport mode.
fn hosts() -> Setup {
    let mut setup = Setup::new().quiet();
    let target = &mut setup.target;
    (target.request_ipv4, target.request_ipv6) = (false, false);
    target.ts_local = vec![TrafficSelector::any_v4()];
    target.transport = true;
    let grant = setup.grant.as_mut().unwrap();
    grant.addresses.clear();
    grant.allowed = vec![net("198.51.100.0", "198.51.100.255"), net(CLIENT_IP, CLIENT_IP)];
    grant.transport = true;
    setup
}

/// The modes of what is installed, the client's first: transport, or not.
fn modes(pair: &Pair) -> (Vec<bool>, Vec<bool>) {
    let of = |peer: &Peer| peer.plane.values().map(|child| child.transport).collect();
    (of(&pair.client), of(&pair.server))
}

fn rekey_child(pair: &mut Pair, side: Side) {
    let child = *pair.peer(side).plane.keys().next().unwrap();
    pair.command(side, Command::RekeyChild(child));
    pair.run();
    pair.assert_mirrored(1);
    pair.assert_traffic_flows();
}

#[test]
fn both_sides_agree_on_transport_mode_between_their_own_addresses() {
    let pair = Pair::connected_with(hosts());

    assert_eq!(modes(&pair), (vec![true], vec![true]));
    let child = pair.server.plane.values().next().unwrap();
    assert_eq!(child.ts_local, [net(SERVER_IP, SERVER_IP)]);
    assert_eq!(child.ts_remote, [net(CLIENT_IP, CLIENT_IP)]);
    assert!(!child.hosts.encap);
    assert_eq!((pair.client.codes(), pair.server.codes()), (vec![], vec![]));
    pair.assert_no_leaks();
}

#[test]
fn rekeys_of_either_side_keep_transport_mode() {
    let mut pair = Pair::connected_with(hosts());
    for side in [Side::Client, Side::Server] {
        rekey_child(&mut pair, side);
        assert_eq!(modes(&pair), (vec![true], vec![true]), "child rekey by {side:?}");

        let ike = pair.peer(side).established()[0].id;
        pair.command(side, Command::RekeyIke(ike));
        pair.run();
        pair.assert_connected();
        rekey_child(&mut pair, side.other());
        assert_eq!(modes(&pair), (vec![true], vec![true]), "after an IKE rekey by {side:?}");
    }
    assert_eq!((pair.client.codes(), pair.server.codes()), (vec![], vec![]));
    pair.assert_no_leaks();
}

#[test]
fn a_restart_of_either_side_keeps_transport_mode() {
    for side in [Side::Client, Side::Server] {
        let mut pair = Pair::connected_with(hosts());
        let snapshot = pair.peer(side).snapshots.values().next().unwrap().clone();
        assert!(snapshot.grant.transport && snapshot.children[0].transport);
        assert!(Snapshot::decode(&snapshot.encode()).unwrap() == snapshot);

        pair.restart(side);
        pair.run_for(Duration::from_secs(10));
        pair.assert_connected();
        assert_eq!(modes(&pair), (vec![true], vec![true]), "{side:?}");
        for rekeyed_by in [Side::Client, Side::Server] {
            rekey_child(&mut pair, rekeyed_by);
            assert_eq!(modes(&pair), (vec![true], vec![true]), "{side:?}, {rekeyed_by:?}");
        }
    }
}

/// RFC 7296 1.3.1: "If the responder declines the request, the Child SA will be established in
/// tunnel mode."
#[test]
fn a_responder_that_does_not_want_it_answers_in_tunnel_mode_and_both_report_it() {
    let mut setup = hosts();
    setup.grant.as_mut().unwrap().transport = false;

    let mut pair = Pair::connected_with(setup);

    assert_eq!(modes(&pair), (vec![false], vec![false]));
    assert_eq!(pair.server.codes(), ["transport_declined"]);
    assert_eq!(pair.client.codes(), ["transport_declined"]);
    assert!(pair.server.refusals()[0].what.contains("the lease has tunnel mode only"));
    assert!(pair.server.refusals()[0].fix.contains("mode = tunnel"));
    // What was agreed on is kept without a word.
    rekey_child(&mut pair, Side::Client);
    rekey_child(&mut pair, Side::Server);
    assert_eq!(modes(&pair), (vec![false], vec![false]));
    assert_eq!(pair.client.codes().len() + pair.server.codes().len(), 2);
    pair.assert_no_leaks();
}

/// RFC 7296 2.23.1: the addresses the two sides know are not the same.
#[test]
fn behind_a_nat_tunnel_mode_is_asked_for() {
    let mut setup = hosts();
    setup.grant.as_mut().unwrap().networks = vec![TrafficSelector::any_v4()];
    let mut pair = setup.build();
    pair.nat = Some(Nat { public: NAT.parse().unwrap(), offset: 10_000 });
    pair.initiate();
    pair.run();

    pair.assert_connected();
    assert_eq!(modes(&pair), (vec![false], vec![false]));
    assert_eq!(pair.client.codes(), ["transport_declined"]);
    assert!(pair.client.refusals()[0].what.contains("NAT"));
    assert_eq!(pair.server.codes(), Vec::<&str>::new());
    pair.assert_no_leaks();
}

/// The other side may ask all the same.
#[test]
fn behind_a_nat_tunnel_mode_is_answered() {
    let mut setup = hosts();
    setup.target.transport = false;
    setup.server.force_encap = true;
    let mut pair = setup.build();
    pair.initiate();
    pair.step();
    pair.step();
    let request = pair.lose();
    let mut spy = Spy::of(&pair);
    let mut payloads = spy.hear(&request).payloads().unwrap();
    payloads.push_notify(Notify::new(NotifyType::UseTransportMode));
    let mut said = spy.say(&pair, Side::Client, ExchangeType::IkeAuth, false, 1, &payloads);
    (said.datagram.local, said.datagram.remote, said.datagram.encap) =
        (request.datagram.local, request.datagram.remote, request.datagram.encap);
    pair.deliver(said);

    let answer = spy.hear(&pair.wire[0]).payloads().unwrap();
    assert!(answer.sa().is_some() && !answer.has_notify(NotifyType::UseTransportMode));
    assert_eq!(pair.server.codes(), ["transport_declined"]);
    assert_eq!(modes(&pair).1, [false]);
}

/// RFC 4555 1.2: MOBIKE says nothing of transport mode, so an SA has one or the other.
#[test]
fn transport_mode_goes_without_mobike() {
    let mut setup = hosts();
    setup.target.mobike = true;
    let pair = Pair::connected_with(setup);
    assert_eq!(modes(&pair), (vec![true], vec![true]));
    for peer in [&pair.client, &pair.server] {
        assert!(!peer.snapshots.values().next().unwrap().peer.mobike, "{:?}", peer.side);
    }
    pair.assert_no_leaks();
}

#[test]
fn selectors_without_the_two_addresses_are_for_tunnel_mode() {
    let mut setup = hosts();
    setup.target.ts_local = vec![net("10.30.0.0", "10.30.255.255")];
    setup.grant.as_mut().unwrap().networks = vec![net("10.30.0.0", "10.30.255.255")];

    let pair = Pair::connected_with(setup);

    assert_eq!(modes(&pair), (vec![false], vec![false]));
    assert_eq!(pair.client.codes(), ["transport_declined"]);
    assert!(pair.client.refusals()[0].what.contains("outer addresses"));
    pair.assert_no_leaks();
}

fn additional(transport: bool) -> Payloads {
    let transforms = esp("aes256gcm16-noesn")[0].clone();
    let transforms = vec![
        ike::wire::Transform::encr(transforms.encryption.id, transforms.encryption.key_bits),
        ike::wire::Transform::esn(ike::wire::EsnId::NoEsn),
    ];
    let proposal =
        Proposal::new(1, ProtocolId::Esp, transforms).with_child_spi(ChildSpi(0xc000_9999));
    let any = || TrafficSelectors::new(vec![TrafficSelector::any_v4()]);
    let mut payloads = Payloads::from(vec![
        Payload::Sa(SecurityAssociation::new(vec![proposal])),
        Payload::Nonce(Nonce::new(vec![3; 32]).unwrap()),
        Payload::TsI(any()),
        Payload::TsR(any()),
    ]);
    if transport {
        payloads.push_notify(Notify::new(NotifyType::UseTransportMode));
    }
    payloads
}

#[test]
fn an_additional_child_has_the_mode_it_asks_for_if_the_lease_allows_it() {
    for (asked, granted) in [(true, true), (true, false), (false, true)] {
        let mut setup = hosts();
        setup.target.transport = false;
        setup.grant.as_mut().unwrap().transport = granted;
        let mut pair = Pair::connected_with(setup);
        let mut spy = Spy::of(&pair);
        let kind = ExchangeType::CreateChildSa;

        let said = spy.say(&pair, Side::Client, kind, false, 2, &additional(asked));
        pair.deliver(said);

        let answer = spy.hear(&pair.lose()).payloads().unwrap();
        let agreed = asked && granted;
        assert_eq!(answer.has_notify(NotifyType::UseTransportMode), agreed);
        let new = pair.server.plane.values().next_back().unwrap();
        assert_eq!((new.spi_out, new.transport), (0xc000_9999, agreed));
        if agreed {
            assert_eq!(answer.ts_r().unwrap().selectors, [net(SERVER_IP, SERVER_IP)]);
        }
        let told = if asked && !granted { vec!["transport_declined"] } else { vec![] };
        assert_eq!(pair.server.codes(), told);
    }
}

/// A rekey whose answer the test rewrites.
fn rekey_answered(setup: Setup, change: fn(Payloads) -> Payloads) -> Pair {
    let mut pair = Pair::connected_with(setup);
    let mut spy = Spy::of(&pair);
    let child = *pair.client.plane.keys().next().unwrap();
    pair.command(Side::Client, Command::RekeyChild(child));
    pair.step();
    let answer = change(spy.hear(&pair.lose()).payloads().unwrap());
    assert_eq!(pair.server.plane.len(), 2);
    let said = spy.say(&pair, Side::Server, ExchangeType::CreateChildSa, true, 2, &answer);
    pair.deliver(said);
    pair.run();
    pair
}

/// What the peer made in another mode than was asked for is closed, and the old child stays.
#[test]
fn a_rekey_answered_in_another_mode_leaves_the_old_child() {
    let without = |payloads: Payloads| {
        let kept = payloads.iter().filter(
            |payload| !matches!(payload, Payload::Notify(n) if n.kind == NotifyType::UseTransportMode),
        );
        Payloads::from(kept.cloned().collect::<Vec<_>>())
    };
    let with = |mut payloads: Payloads| {
        payloads.push_notify(Notify::new(NotifyType::UseTransportMode));
        payloads
    };
    let mut tunnel = hosts();
    tunnel.target.transport = false;
    for (setup, change, mode) in [
        (hosts(), without as fn(Payloads) -> Payloads, true),
        (tunnel, with as fn(Payloads) -> Payloads, false),
    ] {
        let pair = rekey_answered(setup, change);

        pair.assert_connected();
        pair.assert_traffic_flows();
        assert_eq!(modes(&pair), (vec![mode], vec![mode]));
        assert_eq!(pair.client.codes(), ["bad_child"]);
        assert!(pair.client.refusals()[0].what.contains("another mode"));
    }
}
