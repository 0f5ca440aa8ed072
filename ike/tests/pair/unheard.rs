//! A synchronisation of message ids that the peer does not answer (RFC 6311): it may have no place
//! for one now. That must not cost the SA.

use std::time::Duration;

use ike::Command;
use ike::event::CloseReason;
use ike::wire::{ExchangeType, Header, NotifyType};

use crate::harness::*;
use crate::spy::Spy;

/// A wire that loses synchronisations, and nothing else.
struct Lossy {
    spy: Spy,
    spi: u64,
}

impl Lossy {
    fn of(pair: &Pair) -> Self {
        Self { spy: Spy::of(pair), spi: pair.client.established()[0].spis.0 }
    }

    fn lose(&self, pair: &mut Pair) {
        pair.wire.retain(|flight| {
            let header = Header::peek(&flight.datagram.payload).unwrap();
            let other = header.message_id != 0
                || header.exchange != ExchangeType::Informational
                || header.spi_i.0 != self.spi;
            let says_ids = || {
                let payloads = self.spy.hear(flight).payloads().unwrap();
                payloads.has_notify(NotifyType::MessageIdSync)
            };
            other || !says_ids()
        });
    }

    /// Lets time pass.
    fn pass(&self, pair: &mut Pair, seconds: u64) {
        for _ in 0..seconds * 2 {
            pair.wait(Duration::from_millis(500));
            for _ in 0..100 {
                self.lose(pair);
                if pair.step().is_none() {
                    break;
                }
            }
        }
    }
}

fn assert_both_talk(pair: &mut Pair) {
    for side in [Side::Client, Side::Server] {
        let child = *pair.peer(side).plane.keys().next().unwrap();
        let before = pair.peer(side).inbound();
        pair.command(side, Command::RekeyChild(child));
        pair.run();
        pair.assert_mirrored(1);
        assert_ne!(pair.peer(side).inbound(), before, "{side:?} could not rekey");
    }
}

#[test]
fn a_peer_that_answers_no_synchronisation_but_everything_else_keeps_its_sa() {
    for side in [Side::Client, Side::Server] {
        let mut pair = Pair::connected();
        let lossy = Lossy::of(&pair);
        pair.restart(side);
        lossy.pass(&mut pair, 60);

        assert_eq!(pair.peer(side).ends(), []);
        pair.assert_connected();
        assert_both_talk(&mut pair);
    }
}

/// Each would wait for the other: it for its answer, we for ours.
#[test]
fn a_peer_in_the_middle_of_a_request_gets_its_answer_all_the_same() {
    let mut pair = Pair::connected();
    let lossy = Lossy::of(&pair);
    let child = *pair.client.plane.keys().next().unwrap();
    let before = pair.client.inbound();
    pair.restart(Side::Server);
    lossy.lose(&mut pair);
    pair.command(Side::Client, Command::RekeyChild(child));

    lossy.pass(&mut pair, 10);

    pair.assert_mirrored(1);
    assert_ne!(pair.client.inbound(), before);
    lossy.pass(&mut pair, 60);
    assert_eq!((pair.client.ends(), pair.server.ends()), (vec![], vec![]));
    assert_both_talk(&mut pair);
}

#[test]
fn the_peers_rekey_of_the_ike_sa_is_taken_too() {
    let mut pair = Pair::connected();
    let lossy = Lossy::of(&pair);
    let id = pair.client.established()[0].id;
    pair.restart(Side::Server);
    lossy.lose(&mut pair);
    pair.command(Side::Client, Command::RekeyIke(id));

    lossy.pass(&mut pair, 120);

    pair.assert_connected();
    assert_ne!(pair.client.established()[0].id, id);
    assert_eq!(pair.server.codes(), Vec::<&str>::new());
    assert_both_talk(&mut pair);
}

#[test]
fn what_was_under_way_before_the_restart_is_said_again_with_its_old_id() {
    let mut pair = Pair::connected();
    let lossy = Lossy::of(&pair);
    let child = *pair.server.plane.keys().next().unwrap();
    pair.command(Side::Server, Command::CloseChild(child, CloseReason::Operator));
    let delete = pair.lose();
    pair.restart(Side::Server);

    lossy.pass(&mut pair, 30);
    assert_eq!(pair.client.inbound().len(), 1);
    let mut seen = false;
    for _ in 0..60 {
        pair.wait(Duration::from_secs(1));
        lossy.lose(&mut pair);
        seen |= pair.wire.front() == Some(&delete);
        pair.run();
    }

    assert!(seen, "the same octets again");
    pair.assert_nothing_installed();
    assert_eq!(pair.server.ends(), []);
}

#[test]
fn a_child_made_before_the_restart_is_deleted_after_it_without_synchronisation_too() {
    let mut pair = Pair::connected();
    let lossy = Lossy::of(&pair);
    let child = *pair.server.plane.keys().next().unwrap();
    let old = pair.server.inbound();
    pair.command(Side::Server, Command::RekeyChild(child));
    pair.step();
    pair.wire.clear();
    assert_eq!(pair.client.inbound().len(), 2);

    pair.restart(Side::Server);
    lossy.pass(&mut pair, 90);

    pair.assert_mirrored(1);
    assert_eq!(pair.server.inbound(), old);
    assert_both_talk(&mut pair);
}

/// RFC 6311 5.1: in silence. The ids are among what a snapshot keeps.
#[test]
fn ids_that_were_told_before_our_restart_are_not_taken_again_after_it() {
    let mut pair = Pair::connected();
    pair.restart(Side::Server);
    let asked = pair.step().unwrap();
    pair.run();
    pair.restart(Side::Client);
    pair.run();
    let seen = pair.client.outputs.len();

    pair.deliver(asked);

    assert_eq!(pair.client.outputs.len(), seen);
    assert_both_talk(&mut pair);
}
