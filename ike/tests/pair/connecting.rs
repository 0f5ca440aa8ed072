//! Two gateways that connect to each other at the same time: one of the two IKE SAs stays, both
//! sides agree on which, and packets flow all the while.

use std::collections::BTreeSet;
use std::time::Duration;

use ike::io::{Command, UniquePolicy};
use ike::wire::ExchangeType;
use ike::{IkeSaView, SaState};

use crate::harness::*;

/// Two gateways of which each knows the other as a site.
fn gateways(seeds: (u8, u8)) -> Pair {
    let mut setup = Setup::new().quiet();
    setup.seeds = seeds;
    let behind = [vec![net("10.30.0.0", "10.30.255.255")], vec![net("10.20.0.0", "10.20.0.255")]];
    setup.target.request_ipv4 = false;
    setup.target.request_ipv6 = false;
    setup.target.initial_contact = true;
    setup.target.ts_local = behind[0].clone();
    setup.target.ts_remote = behind[1].clone();
    let mut pair = setup.build();
    for (side, own, others) in [(Side::Client, 0, 1), (Side::Server, 1, 0)] {
        let grant = pair.peer(side).grant.as_mut().unwrap();
        grant.addresses = vec![];
        grant.allowed = behind[own].clone();
        grant.networks = behind[others].clone();
        grant.unique = UniquePolicy::Replace;
    }
    pair
}

fn connect(pair: &mut Pair, side: Side) {
    let mut target = pair.target.clone();
    if side == Side::Server {
        (target.local, target.remote) = (target.remote, target.local);
        (target.ts_local, target.ts_remote) = (target.ts_remote, target.ts_local);
        let own = target.expected.replace(target.identity).unwrap();
        target.identity = own;
    }
    pair.command(side, Command::Initiate(Box::new(target)));
}

/// Delivers the oldest message of an exchange to one side.
fn deliver(pair: &mut Pair, to: Side, exchange: ExchangeType) {
    let wanted = |flight: &Flight| flight.to == to && flight.exchange() == exchange;
    let at = pair.wire.iter().position(wanted).unwrap();
    let flight = pair.wire.remove(at).unwrap();
    pair.deliver(flight);
}

/// Both IKE_SA_INITs are done, both IKE_AUTH requests on the wire.
fn crossing(seeds: (u8, u8)) -> Pair {
    let mut pair = gateways(seeds);
    connect(&mut pair, Side::Client);
    connect(&mut pair, Side::Server);
    for to in [Side::Server, Side::Client, Side::Client, Side::Server] {
        deliver(&mut pair, to, ExchangeType::IkeSaInit);
    }
    assert_eq!(pair.wire.len(), 2);
    pair
}

fn spis(sas: &[IkeSaView]) -> Vec<(u64, u64)> {
    sas.iter().map(|sa| sa.spis).collect()
}

/// Time passes second by second, and packets arrive in each.
fn settle(pair: &mut Pair) {
    for _ in 0..40 {
        pair.run_for(Duration::from_secs(1));
        pair.assert_traffic_flows();
    }
}

/// Both have the one with the lower SPIs, and nothing of the other.
fn assert_one(mut pair: Pair, both: &BTreeSet<(u64, u64)>) -> (u64, u64) {
    let by_chance = |spis: &&(u64, u64)| (spis.0 << 8, spis.1 << 8);
    let survivor = *both.iter().min_by_key(by_chance).unwrap();
    assert_eq!(spis(&pair.client.established()), [survivor]);
    assert_eq!(spis(&pair.server.established()), [survivor]);
    pair.assert_connected();
    pair.assert_traffic_flows();
    assert!(pair.client.engine.sas().all(|sa| sa.state == SaState::Established));
    // Each end may rekey and close it as ever.
    let child = *pair.server.plane.keys().next().unwrap();
    pair.command(Side::Server, Command::RekeyChild(child));
    pair.run();
    pair.assert_connected();
    pair.assert_no_leaks();
    survivor
}

/// Runs a crossing until either side's SA was the one that stays.
fn each_winner(script: impl Fn(&mut Pair)) {
    let mut winners = BTreeSet::new();
    for seed in 0..32 {
        let mut pair = crossing((seed, seed.wrapping_add(77)));
        script(&mut pair);
        settle(&mut pair);
        // Both made one; which stays is told by who made it.
        let all = all_spis(&pair);
        let client = pair.client.established()[0].role;
        assert_one(pair, &all);
        winners.insert(format!("{client:?}"));
        if winners.len() == 2 {
            return;
        }
    }
    panic!("only {winners:?} ever stayed");
}

/// The SPIs of all SAs that ever came up.
fn all_spis(pair: &Pair) -> BTreeSet<(u64, u64)> {
    let both = pair.client.events.iter().chain(&pair.server.events);
    both.filter_map(|event| match event {
        ike::Event::IkeUp { spis, .. } => Some(*spis),
        _ => None,
    })
    .collect()
}

#[test]
fn of_two_connections_that_cross_both_sides_keep_the_same() {
    // RFC 7296 2.4, 2.8.1.
    each_winner(|pair| {
        for to in [Side::Server, Side::Client, Side::Client, Side::Server] {
            deliver(pair, to, ExchangeType::IkeAuth);
        }
        pair.assert_traffic_flows();
        assert_eq!(all_spis(pair).len(), 2);
    });
}

#[test]
fn the_answers_may_come_in_the_other_order() {
    // RFC 7296 2.4.
    each_winner(|pair| {
        for to in [Side::Client, Side::Server, Side::Server, Side::Client] {
            deliver(pair, to, ExchangeType::IkeAuth);
        }
        pair.assert_traffic_flows();
    });
}

/// One side's IKE_AUTH, with INITIAL_CONTACT, arrives when the other's connection is complete.
#[test]
fn one_connection_may_be_complete_before_the_other_is_asked_for() {
    // RFC 7296 2.4.
    for first in [Side::Client, Side::Server] {
        each_winner(|pair| {
            let at = pair.wire.iter().position(|flight| flight.to == first).unwrap();
            let late = pair.wire.remove(at).unwrap();
            deliver(pair, first.other(), ExchangeType::IkeAuth);
            deliver(pair, first, ExchangeType::IkeAuth);
            pair.assert_traffic_flows();
            pair.deliver(late);
            pair.assert_traffic_flows();
            assert_eq!(all_spis(pair).len(), 2);
        });
    }
}

/// The peer was restarted just after the connection came up, and has none: INITIAL_CONTACT is true.
#[test]
fn a_peer_that_was_restarted_at_once_has_the_connection_it_makes() {
    // RFC 7296 2.4.
    for seed in 0..8 {
        let mut pair = gateways((seed, seed.wrapping_add(77)));
        connect(&mut pair, Side::Client);
        pair.run();
        pair.assert_connected();
        let old = pair.client.established()[0].spis;
        pair.server.snapshots.clear();
        pair.restart(Side::Server);
        connect(&mut pair, Side::Server);
        pair.run_for(Duration::from_secs(120));

        pair.assert_connected();
        pair.assert_traffic_flows();
        assert_ne!(pair.client.established()[0].spis, old, "seed {seed}");
        assert_eq!(spis(&pair.client.established()), spis(&pair.server.established()));
    }
}

/// The connection of the server's making carries nothing: the client does not let it reach what it
/// wants. Both sides keep the other one, whatever the SPIs say.
#[test]
fn the_one_that_carries_a_child_stays() {
    for seed in 0..8 {
        let mut pair = gateways((seed, seed.wrapping_add(77)));
        pair.client.grant.as_mut().unwrap().networks = vec![net("10.99.0.0", "10.99.0.255")];
        connect(&mut pair, Side::Client);
        connect(&mut pair, Side::Server);
        pair.run();
        assert_eq!(all_spis(&pair).len(), 2);
        assert_eq!(pair.client.plane.len(), 1, "seed {seed}: one child between them");
        settle(&mut pair);

        pair.assert_connected();
        assert_eq!(pair.client.established()[0].role, ike::SaRole::Initiator);
        assert_eq!(spis(&pair.client.established()), spis(&pair.server.established()));
        pair.assert_no_leaks();
    }
}

/// What stays by its SPIs loses its child before the other one is closed: then that one stays.
#[test]
fn the_only_one_that_still_carries_a_child_is_not_closed() {
    for closes in [Side::Client, Side::Server] {
        for seed in 0..8 {
            let mut pair = crossing((seed, seed.wrapping_add(77)));
            pair.run();
            let all = all_spis(&pair);
            let by_chance = |spis: &&(u64, u64)| (spis.0 << 8, spis.1 << 8);
            let first = *all.iter().min_by_key(by_chance).unwrap();
            pair.run_for(Duration::from_secs(3));
            let sas = pair.peer(closes).established();
            let child = sas.iter().find(|sa| sa.spis == first).unwrap().children[0].id;
            pair.command(closes, Command::CloseChild(child, ike::event::CloseReason::Operator));
            pair.run();
            for _ in 0..150 {
                pair.run_for(Duration::from_secs(1));
                pair.assert_mirrored(1);
            }

            pair.assert_connected();
            pair.assert_traffic_flows();
            assert_ne!(spis(&pair.client.established()), [first], "seed {seed}");
            assert_eq!(spis(&pair.client.established()), spis(&pair.server.established()));
            pair.assert_no_leaks();
        }
    }
}

/// Without INITIAL_CONTACT the child of the one that goes was to be sent on after a while, which
/// would be until its end only.
#[test]
fn nothing_is_ever_sent_on_the_one_that_goes() {
    for seed in 0..8 {
        let mut pair = gateways((seed, seed.wrapping_add(77)));
        pair.target.initial_contact = false;
        connect(&mut pair, Side::Client);
        connect(&mut pair, Side::Server);
        for to in [Side::Server, Side::Client, Side::Client, Side::Server] {
            deliver(&mut pair, to, ExchangeType::IkeSaInit);
        }
        for to in [Side::Server, Side::Client, Side::Client, Side::Server] {
            deliver(&mut pair, to, ExchangeType::IkeAuth);
        }
        let children = |peer: &Peer| -> Vec<(bool, ike::io::ChildSaId)> {
            let of = |sa: IkeSaView| (sa.role == ike::SaRole::Initiator, sa.children[0].id);
            peer.established().into_iter().map(of).collect()
        };
        let both = [children(&pair.client), children(&pair.server)];
        settle(&mut pair);

        let survivor = pair.client.established()[0].spis;
        for (peer, children) in [&pair.client, &pair.server].into_iter().zip(both) {
            let kept = peer.established()[0].children[0].id;
            // Who made the one that stays never turns to the other.
            for (ours, id) in children {
                let gone = id != kept && !ours;
                assert!(!gone || !peer.activated.contains(&id), "seed {seed}: {:?}", peer.side);
            }
        }
        let all = all_spis(&pair);
        assert_eq!(assert_one(pair, &all), survivor);
    }
}

/// RFC 7296 2.4: a connection does not become young again by a rekey of its IKE SA, so a peer that
/// was restarted after it has left it behind.
#[test]
fn a_rekeyed_connection_is_not_young() {
    for seed in 0..4 {
        let mut pair = gateways((seed, seed.wrapping_add(77)));
        connect(&mut pair, Side::Client);
        pair.run_for(Duration::from_secs(100));
        let ike = pair.client.established()[0].id;
        pair.command(Side::Client, Command::RekeyIke(ike));
        pair.run();
        // Nor by a restart.
        pair.restart(Side::Client);
        pair.run();
        let old = pair.client.established()[0].spis;
        pair.server.snapshots.clear();
        pair.restart(Side::Server);
        connect(&mut pair, Side::Server);
        pair.run();

        assert_eq!(pair.client.established().len(), 1, "seed {seed}");
        assert_ne!(pair.client.established()[0].spis, old);
        assert_eq!(spis(&pair.client.established()), spis(&pair.server.established()));
    }
}

/// RFC 7296 2.4: whether the peer still has an SA is asked, not taken for granted.
#[test]
fn a_restart_between_the_two_leaves_the_one_that_lives() {
    for seed in 0..8 {
        let mut pair = crossing((seed, seed.wrapping_add(77)));
        let at = pair.wire.iter().position(|flight| flight.to == Side::Client).unwrap();
        let late = pair.wire.remove(at).unwrap();
        deliver(&mut pair, Side::Server, ExchangeType::IkeAuth);
        deliver(&mut pair, Side::Client, ExchangeType::IkeAuth);
        // The server was making one, too, and does not know of it any more: the client, for which
        // it is complete, asks before it lets go of its own.
        pair.restart(Side::Server);
        pair.run();
        pair.deliver(late);
        pair.run_for(Duration::from_secs(200));

        assert_eq!(spis(&pair.client.established()), spis(&pair.server.established()));
        assert_eq!(pair.client.established().len(), 1, "seed {seed}");
        pair.assert_mirrored(1);
    }
}
