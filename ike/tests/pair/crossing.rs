//! Exchanges that cross (RFC 7296 2.8.1, 2.8.2, 2.25): whatever order their messages arrive in,
//! whatever is lost or repeated, both sides come to the same SAs, and no packet is lost on the way
//! where none must be.

use std::time::Duration;

use ike::Command;
use ike::event::{CloseReason, Event};
use ike::io::Action;

use crate::harness::*;

/// Something one side starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Op {
    RekeyChild,
    RekeyIke,
    CloseChild,
    CloseIke,
}

fn start(pair: &mut Pair, side: Side, op: Op) {
    let id = pair.peer(side).established()[0].id;
    let child = *pair.peer(side).plane.keys().next().unwrap();
    pair.command(
        side,
        match op {
            Op::RekeyChild => Command::RekeyChild(child),
            Op::RekeyIke => Command::RekeyIke(id),
            Op::CloseChild => Command::CloseChild(child, CloseReason::Operator),
            Op::CloseIke => Command::CloseIkeSa(id, CloseReason::Operator),
        },
    );
}

/// Suites with one key exchange in a rekey of the IKE SA and none in that of a child.
const ONE: (&str, &str) = ("aes256gcm16-prfsha384-x25519", "aes256gcm16-esn-noesn");

/// Suites with two in each (RFC 9370).
const SEVERAL: (&str, &str) =
    ("aes256gcm16-prfsha384-x25519-ke1_ecp256", "aes256gcm16-x25519-ke1_ecp256-noesn");

/// A small generator: a failing seed is enough to repeat a walk.
struct Walk(u64);

impl Walk {
    fn below(&mut self, bound: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % bound
    }
}

/// Walks per pair of operations; `CROSSING_SEEDS` asks for more.
fn seeds() -> u64 {
    std::env::var("CROSSING_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(150)
}

/// Both sides start something; datagrams then arrive in a random order, some lost, some twice,
/// some late. Then the network heals.
fn walk(seed: u64, client: Op, server: Op, suites: (&str, &str)) -> Pair {
    let mut setup = Setup::new().quiet().suites(suites.0, suites.1);
    setup.seeds = (seed as u8, (seed >> 8) as u8);
    let mut pair = Pair::connected_with(setup);
    let mut walk = Walk(seed);
    let began = pair.now.mono;
    let closes = [client, server].iter().any(|op| matches!(op, Op::CloseChild | Op::CloseIke));
    if walk.below(2) == 0 {
        // What actions take decides over the order of things too.
        pair.client.late = |_| true;
        pair.server.late = |_| true;
    }
    if walk.below(2) == 0 {
        start(&mut pair, Side::Client, client);
        start(&mut pair, Side::Server, server);
    } else {
        start(&mut pair, Side::Server, server);
        start(&mut pair, Side::Client, client);
    }
    for _ in 0..walk.below(30) {
        let side = if walk.below(2) == 0 { Side::Client } else { Side::Server };
        let late = pair.peer(side).answers.len();
        if late > 0 && walk.below(2) == 0 {
            let at = walk.below(late);
            pair.answer_late(side, at);
            continue;
        }
        if pair.wire.is_empty() || walk.below(8) == 0 {
            pair.wait(Duration::from_millis(walk.below(1500) as u64));
            continue;
        }
        let at = walk.below(pair.wire.len());
        let flight = pair.wire.remove(at).unwrap();
        match walk.below(10) {
            0 => {}
            1 => {
                pair.deliver(flight.clone());
                pair.wire.push_back(flight);
            }
            _ => pair.deliver(flight),
        }
        // After five seconds a responder trusts that its answer arrived, which it may not have.
        if !closes && pair.now.mono.since(began) < Duration::from_secs(5) {
            pair.assert_traffic_flows();
        }
    }
    for side in [Side::Client, Side::Server] {
        pair.peer(side).late = |_| false;
        while let late @ 1.. = pair.peer(side).answers.len() {
            let at = walk.below(late);
            pair.answer_late(side, at);
        }
    }
    pair.run_for(Duration::from_secs(120));
    pair
}

fn converges(client: Op, server: Op, children: usize, ike_sas: usize) {
    converges_with(ONE, client, server, children, ike_sas);
}

fn converges_with(suites: (&str, &str), client: Op, server: Op, children: usize, ike_sas: usize) {
    for seed in 0..seeds() {
        let pair = std::panic::catch_unwind(|| {
            let pair = walk(seed, client, server, suites);
            assert_eq!(pair.client.established().len(), ike_sas, "client's IKE SAs");
            assert_eq!(pair.server.established().len(), ike_sas, "server's IKE SAs");
            assert_eq!(pair.client.engine.sas().count(), ike_sas, "client's remains");
            assert_eq!(pair.server.engine.sas().count(), ike_sas, "server's remains");
            pair.assert_mirrored(children);
            if children > 0 {
                pair.assert_traffic_flows();
            }
            let spis = |peer: &Peer| peer.established().first().map(|sa| sa.spis);
            assert_eq!(spis(&pair.client), spis(&pair.server));
            pair.assert_no_leaks();
        });
        if let Err(panic) = pair {
            eprintln!("{client:?} against {server:?}: seed {seed}");
            std::panic::resume_unwind(panic);
        }
    }
}

#[test]
fn child_rekey_against_child_rekey() {
    converges(Op::RekeyChild, Op::RekeyChild, 1, 1);
}

#[test]
fn ike_rekey_against_ike_rekey() {
    converges(Op::RekeyIke, Op::RekeyIke, 1, 1);
}

#[test]
fn child_rekey_against_ike_rekey() {
    converges(Op::RekeyChild, Op::RekeyIke, 1, 1);
    converges(Op::RekeyIke, Op::RekeyChild, 1, 1);
}

#[test]
fn child_rekey_against_close_of_the_ike_sa() {
    converges(Op::RekeyChild, Op::CloseIke, 0, 0);
    converges(Op::CloseIke, Op::RekeyChild, 0, 0);
}

#[test]
fn ike_rekey_against_close_of_the_ike_sa() {
    converges(Op::RekeyIke, Op::CloseIke, 0, 0);
    converges(Op::CloseIke, Op::RekeyIke, 0, 0);
}

#[test]
fn close_against_close() {
    converges(Op::CloseChild, Op::CloseChild, 0, 1);
    converges(Op::CloseIke, Op::CloseIke, 0, 0);
    converges(Op::CloseChild, Op::CloseIke, 0, 0);
}

#[test]
fn a_child_closed_while_the_ike_sa_is_rekeyed() {
    converges(Op::CloseChild, Op::RekeyIke, 0, 1);
    converges(Op::RekeyIke, Op::CloseChild, 0, 1);
}

/// RFC 9370 2.2.4: what is made comes into being with the last of several exchanges, and the peer's
/// may cross any of them.
#[test]
fn rekeys_of_several_key_exchanges_cross() {
    converges_with(SEVERAL, Op::RekeyChild, Op::RekeyChild, 1, 1);
    converges_with(SEVERAL, Op::RekeyIke, Op::RekeyIke, 1, 1);
    converges_with(SEVERAL, Op::RekeyChild, Op::RekeyIke, 1, 1);
    converges_with(SEVERAL, Op::RekeyIke, Op::RekeyChild, 1, 1);
}

#[test]
fn closes_cross_rekeys_of_several_key_exchanges() {
    converges_with(SEVERAL, Op::RekeyChild, Op::CloseIke, 0, 0);
    converges_with(SEVERAL, Op::CloseIke, Op::RekeyIke, 0, 0);
    converges_with(SEVERAL, Op::CloseChild, Op::RekeyIke, 0, 1);
}

/// Rekeying a child that the other side closes at the same time ends either with the new child,
/// when the rekey was answered first, or with none; never with halves.
#[test]
fn a_child_closed_while_it_is_rekeyed() {
    for seed in 0..seeds() {
        for (client, server) in [(Op::RekeyChild, Op::CloseChild), (Op::CloseChild, Op::RekeyChild)]
        {
            let pair = walk(seed, client, server, ONE);
            assert_eq!(pair.client.established().len(), 1, "seed {seed}");
            assert_eq!(pair.client.plane.len(), pair.server.plane.len(), "seed {seed}");
            pair.assert_mirrored(pair.client.plane.len());
            pair.assert_no_leaks();
        }
    }
}

/// Delivers the oldest datagram to one side.
fn deliver_to(pair: &mut Pair, side: Side) {
    let at = pair.wire.iter().position(|flight| flight.to == side).unwrap();
    let flight = pair.wire.remove(at).unwrap();
    pair.deliver(flight);
}

fn installs(action: &Action) -> bool {
    matches!(action, Action::InstallChild(_))
}

fn crossing(seed: u8) -> Pair {
    let mut setup = Setup::new().quiet();
    setup.seeds = (seed, seed.wrapping_add(100));
    let mut pair = Pair::connected_with(setup);
    start(&mut pair, Side::Client, Op::RekeyChild);
    start(&mut pair, Side::Server, Op::RekeyChild);
    pair.server.late = installs;
    pair
}

fn settles_on_one_child(mut pair: Pair) {
    pair.server.late = |_| false;
    pair.run_for(Duration::from_secs(30));
    pair.assert_connected();
    pair.assert_traffic_flows();
    assert!(pair.client.plane.values().all(|child| Some(child.child) == pair.client.sending));
    assert!(pair.server.plane.values().all(|child| Some(child.child) == pair.server.sending));
    pair.assert_no_leaks();
}

/// Our rekey is answered and its child is being installed when the peer's request comes: for us
/// the child is replaced already, and the peer, which answered, knows by what.
#[test]
fn a_rekey_that_comes_while_ours_is_being_installed_is_put_off() {
    for seed in 0..20 {
        let mut pair = crossing(seed);
        deliver_to(&mut pair, Side::Client);
        while pair.wire.iter().filter(|flight| flight.to == Side::Server).count() > 1 {
            let answer = pair.wire.pop_back().unwrap();
            pair.deliver(answer);
        }
        assert_eq!(pair.server.answers.len(), 1, "its own child is being installed");
        deliver_to(&mut pair, Side::Server);
        assert_eq!(pair.server.answers.len(), 1, "no second child is made");
        pair.answer_late(Side::Server, 0);
        settles_on_one_child(pair);
    }
}

/// The answer to our rekey comes while the peer's is being worked on: whose child stays is decided
/// when both are known.
#[test]
fn an_answer_that_comes_while_the_peers_rekey_is_being_installed_waits_for_it() {
    for seed in 0..20 {
        let mut pair = crossing(seed);
        deliver_to(&mut pair, Side::Server);
        assert_eq!(pair.server.answers.len(), 1, "the peer's child is being installed");
        deliver_to(&mut pair, Side::Client);
        deliver_to(&mut pair, Side::Server);
        assert_eq!(pair.server.answers.len(), 1, "its own child waits");
        while !pair.server.answers.is_empty() {
            pair.answer_late(Side::Server, 0);
        }
        settles_on_one_child(pair);
    }
}

/// What is to be closed while the peer's IKE rekey is being answered is closed under the
/// successor, where the peer looks for it.
#[test]
fn a_child_closed_while_the_peers_ike_rekey_is_answered_is_closed_under_the_successor() {
    let mut pair = Pair::connected();
    pair.server.late = |_| true;
    start(&mut pair, Side::Client, Op::RekeyIke);
    pair.step();
    start(&mut pair, Side::Server, Op::CloseChild);
    pair.server.late = |_| false;
    while !pair.server.answers.is_empty() {
        pair.answer_late(Side::Server, 0);
    }
    pair.run_for(Duration::from_secs(60));
    assert_eq!((pair.client.established().len(), pair.server.established().len()), (1, 1));
    pair.assert_mirrored(0);
    pair.assert_no_leaks();
}

/// Both rekey the child at once, nothing lost: the nonces decide, and each outcome is seen.
#[test]
fn the_lowest_nonce_loses() {
    let mut winners = std::collections::BTreeSet::new();
    for seed in 0..40 {
        let mut setup = Setup::new().quiet();
        setup.seeds = (seed, seed.wrapping_add(100));
        let mut pair = Pair::connected_with(setup);
        start(&mut pair, Side::Client, Op::RekeyChild);
        start(&mut pair, Side::Server, Op::RekeyChild);
        // Both requests arrive before any answer.
        pair.step();
        pair.step();
        assert_eq!(pair.client.inbound().len(), 2);
        assert_eq!(pair.server.inbound().len(), 2);
        pair.assert_traffic_flows();
        pair.run();

        pair.assert_connected();
        pair.assert_traffic_flows();
        // Whose new child survived is seen from who got the answer to its own request.
        let own = pair.client.plane.values().next().unwrap().outbound_active;
        winners.insert(own);
        pair.assert_no_leaks();
    }
    assert_eq!(winners.len(), 2, "both outcomes must have been seen");
}

/// RFC 7296 2.25.1: a child that is closed while its successor is being installed is not
/// followed by it, whichever side rekeys.
#[test]
fn a_child_closed_while_its_successor_is_installed_has_none() {
    for (rekeys, closes) in [
        (Side::Client, Side::Client),
        (Side::Server, Side::Server),
        (Side::Client, Side::Server),
        (Side::Server, Side::Client),
    ] {
        let mut pair = Pair::connected();
        let old = *pair.peer(closes).plane.keys().next().unwrap();
        pair.peer(closes).late = installs;
        start(&mut pair, rekeys, Op::RekeyChild);
        pair.run();
        assert_eq!(pair.peer(closes).answers.len(), 1, "the successor is being installed");

        pair.command(closes, Command::CloseChild(old, CloseReason::Operator));
        pair.peer(closes).late = |_| false;
        pair.answer_late(closes, 0);
        pair.run_for(Duration::from_secs(60));

        pair.assert_mirrored(0);
        assert_eq!((pair.client.established().len(), pair.server.established().len()), (1, 1));
        let ups = |peer: &Peer| {
            let up = |event: &&Event| matches!(event, Event::ChildUp { .. });
            peer.events.iter().filter(up).count()
        };
        assert_eq!(ups(pair.peer(closes)), 1, "the successor never came up");
        pair.assert_no_leaks();
    }
}
