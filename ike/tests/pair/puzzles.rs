//! Puzzles (RFC 8019): against many sources that each hold little, who solves one is served first.

use std::time::Duration;

use ike::io::{Action, Command, Completion, Input};
use ike::wire::{Message, NotifyType, Payload, PayloadType};

use crate::harness::*;

/// Places for half-open SAs.
pub const PLACES: usize = 8;

/// A server whose places are all taken by as many sources, and a client that has yet to ask.
fn besieged() -> Pair {
    let mut setup = Setup::new().quiet();
    setup.server.limits.cookie_threshold = 2;
    setup.server.limits.max_half_open = PLACES;
    let mut pair = setup.build();
    besiege(&mut pair);
    pair
}

/// Takes every place of the server, each for another source.
pub fn besiege(pair: &mut Pair) {
    for host in 1..=PLACES {
        let mut target = pair.target.clone();
        target.local = address(&format!("203.0.113.{host}"), 500);
        let before = pair.client.engine.sas().map(|sa| sa.id).max();
        pair.client.hold = |action| matches!(action, Action::SolvePuzzle(_));
        pair.command(Side::Client, Command::Initiate(Box::new(target)));
        // A cookie alone, if that is asked for: attackers of that kind do no work.
        for _ in 0..8 {
            let Some(flight) = pair.wire.pop_front() else { break };
            if flight.to == Side::Client {
                let message = Message::parse(&flight.datagram.payload).unwrap();
                if message.payloads.ke().is_some() {
                    break;
                }
            }
            pair.deliver(flight);
            for (token, _) in std::mem::take(&mut pair.client.held) {
                let lazy = Completion::SolvePuzzle(Err("no".to_owned()));
                pair.input(Side::Client, Input::Completion(token, lazy));
            }
        }
        pair.wire.clear();
        assert_eq!(pair.server.engine.stats().half_open, host, "after {before:?}");
    }
    pair.client.hold = |_| false;
}

#[test]
fn who_solves_the_puzzle_connects_though_every_place_is_taken() {
    let mut pair = besieged();
    pair.initiate();
    pair.step();
    let asked = Message::parse(&pair.wire[0].datagram.payload).unwrap();
    assert!(asked.payloads.has_notify(NotifyType::Cookie));
    let puzzle = &asked.payloads.notify(NotifyType::Puzzle).unwrap().data;
    assert_eq!(puzzle.len(), 3, "a PRF and a number of bits");
    assert_eq!(puzzle[2], 16, "the table is full");
    pair.step();
    let solved = Message::parse(&pair.wire[0].datagram.payload).unwrap();
    assert!(solved.payloads.iter().any(|payload| matches!(
        payload,
        Payload::Unknown { kind: PayloadType::PuzzleSolution, .. }
    )));

    pair.run();

    assert_eq!(pair.server.established().len(), 1);
    assert_eq!(pair.server.engine.stats().half_open, PLACES - 1);
}

#[test]
fn who_cannot_solve_it_is_served_when_there_is_room_again() {
    let mut pair = besieged();
    pair.target.initial_contact = true;
    pair.client.hold = |action| matches!(action, Action::SolvePuzzle(_));
    pair.initiate();
    pair.step();
    pair.step();
    let (token, _) = pair.client.held.remove(0);
    let unable = Completion::SolvePuzzle(Err("too hard".to_owned()));
    pair.input(Side::Client, Input::Completion(token, unable));
    pair.step();
    pair.step();
    assert!(pair.wire.is_empty(), "no place yet, and the same puzzle is no news");
    assert_eq!(pair.server.engine.stats().half_open, PLACES);

    // The handshakes of the siege run out of time, while the client goes on asking.
    pair.server.config.limits.max_half_open = PLACES + 1;
    let roomier = Box::new(pair.server.config.clone());
    pair.command(Side::Server, Command::Reconfigure(roomier));
    pair.run_for(Duration::from_secs(10));
    assert_eq!(pair.server.established().len(), 1);
}

#[test]
fn a_damaged_solution_is_as_good_as_none() {
    let mut pair = besieged();
    pair.initiate();
    pair.step();
    pair.step();
    let mut flight = pair.lose();
    let mut message = Message::parse(&flight.datagram.payload).unwrap();
    let mut payloads = ike::wire::Payloads::new();
    for payload in message.payloads.iter() {
        payloads.push(match payload {
            Payload::Unknown { kind: PayloadType::PuzzleSolution, body } => {
                let body = body.iter().map(|octet| octet ^ 0x55).collect();
                Payload::Unknown { kind: PayloadType::PuzzleSolution, body }
            }
            other => other.clone(),
        });
    }
    message.payloads = payloads;
    flight.datagram.payload = message.encode().unwrap();
    pair.deliver(flight);
    let again = Message::parse(&pair.wire[0].datagram.payload).unwrap();
    assert!(again.payloads.has_notify(NotifyType::Puzzle));
    assert_eq!(pair.server.engine.stats().half_open, PLACES);
}
