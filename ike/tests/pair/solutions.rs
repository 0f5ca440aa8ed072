//! What a puzzle's solution buys (RFC 8019), and what it does not.

use std::time::Duration;

use ike::io::Action;
use ike::wire::{
    Message, Notify, NotifyType, Payload, Payloads, Proposal, SecurityAssociation, TransformType,
};

use crate::harness::*;
use crate::puzzles::{PLACES, besiege};

/// A client that connected before, the siege, and the client's next requests: the first, and the
/// one with the solution.
fn solved() -> (Pair, Flight, Flight) {
    let mut setup = Setup::new().quiet();
    setup.server.limits.cookie_threshold = PLACES;
    setup.server.limits.max_half_open = PLACES;
    let mut pair = Pair::connected_with(setup);
    besiege(&mut pair);
    pair.initiate();
    let first = pair.step().unwrap();
    pair.step();
    let solved = pair.lose();
    assert!(pair.wire.is_empty());
    (pair, first, solved)
}

/// The same message with other payloads.
fn altered(flight: &Flight, change: impl Fn(&Payload) -> Payload) -> Flight {
    let mut message = Message::parse(&flight.datagram.payload).unwrap();
    let mut payloads = Payloads::new();
    message.payloads.iter().for_each(|payload| payloads.push(change(payload)));
    message.payloads = payloads;
    let mut flight = flight.clone();
    flight.datagram.payload = message.encode().unwrap();
    flight
}

fn half_open_of(pair: &Pair, remote: &Flight) -> usize {
    let ip = remote.datagram.remote.ip();
    let of_ip = pair.server.engine.sas().filter(|sa| sa.remote.ip() == ip).count();
    of_ip - pair.server.established().len()
}

fn names(pair: &Pair) -> Vec<ike::io::IkeSaId> {
    pair.server.engine.sas().map(|sa| sa.id).collect()
}

#[test]
fn one_solution_is_worth_one_place() {
    let (mut pair, _, solved) = solved();
    pair.deliver(solved.clone());
    assert_eq!(half_open_of(&pair, &solved), 1);

    for port in 600..610 {
        let mut again = solved.clone();
        again.datagram.remote.set_port(port);
        pair.deliver(again);
    }
    let other = altered(&solved, |payload| match payload {
        Payload::Notify(notify) if notify.kind == NotifyType::NatDetectionSourceIp => {
            Payload::Notify(Notify { data: vec![7; 20], ..notify.clone() })
        }
        other => other.clone(),
    });
    assert_ne!(other, solved);
    pair.deliver(other);

    assert_eq!(half_open_of(&pair, &solved), 1, "its cookie is spent");
}

#[test]
fn nobody_gives_way_to_a_request_that_is_refused() {
    let (mut pair, _, solved) = solved();
    let before = names(&pair);

    let short = altered(&solved, |payload| match payload {
        Payload::Ke(ke) => {
            let mut ke = ke.clone();
            ke.data.pop();
            Payload::Ke(ke)
        }
        other => other.clone(),
    });
    let foreign = altered(&solved, |payload| match payload {
        Payload::Sa(sa) => {
            let proposals = sa.proposals.iter().map(|proposal| {
                let transforms = proposal.transforms.iter();
                let keep = |kind: TransformType| kind != TransformType::Encr;
                let kept = transforms.filter(|transform| keep(transform.kind())).cloned();
                Proposal::new(proposal.number, proposal.protocol, kept.collect())
            });
            Payload::Sa(SecurityAssociation::new(proposals.collect()))
        }
        other => other.clone(),
    });
    for (request, error) in
        [(short, NotifyType::InvalidSyntax), (foreign, NotifyType::NoProposalChosen)]
    {
        pair.deliver(request);
        let answer = Message::parse(&pair.lose().datagram.payload).unwrap();
        assert!(answer.payloads.has_notify(error), "{answer:?}");
        assert_eq!(names(&pair), before);
    }

    pair.deliver(solved);
    pair.run();
    let established = pair.server.established();
    assert!(established.iter().any(|sa| !before.contains(&sa.id)), "the solution was good");
    assert_eq!(pair.server.engine.stats().half_open, PLACES - 1);
}

#[test]
fn a_copy_without_cookie_and_solution_is_the_same_request() {
    let (mut pair, first, solved) = solved();
    pair.deliver(solved);
    let answer = pair.lose();

    pair.deliver(first);

    assert_eq!(pair.wire.pop_front(), Some(answer));
}

#[test]
fn only_the_puzzle_in_work_is_answered_and_only_one_is_in_work() {
    let mut setup = Setup::new().quiet();
    setup.server.limits.cookie_threshold = 2;
    setup.server.limits.max_half_open = PLACES;
    let mut pair = setup.build();
    besiege(&mut pair);
    pair.client.hold = |action| matches!(action, Action::SolvePuzzle(_));
    pair.initiate();
    pair.step();
    let asked = pair.step().unwrap();
    assert_eq!(pair.client.held.len(), 1);

    // Other puzzles, and time: the peer is at work already.
    let cookie = |data: u8| {
        altered(&asked, move |payload| match payload {
            Payload::Notify(notify) if notify.kind == NotifyType::Cookie => {
                Payload::Notify(Notify::cookie(vec![data; 36]))
            }
            other => other.clone(),
        })
    };
    pair.deliver(cookie(1));
    pair.deliver(cookie(2));
    assert_eq!(pair.client.held.len(), 1);
    pair.wait(Duration::from_secs(5));
    let ours = pair.target.local;
    pair.wire.retain(|flight| flight.datagram.remote == ours);
    assert!(pair.wire.is_empty(), "to ask again would only bring the puzzle again");

    // A cookie without a puzzle is a shorter way; the solution comes too late.
    let mut plain = cookie(3);
    let mut message = Message::parse(&plain.datagram.payload).unwrap();
    message.payloads = Payloads::from(vec![Payload::Notify(Notify::cookie(vec![3; 36]))]);
    plain.datagram.payload = message.encode().unwrap();
    pair.deliver(plain);
    let sent = Message::parse(&pair.lose().datagram.payload).unwrap();
    assert_eq!(sent.payloads.notify(NotifyType::Cookie).unwrap().data, vec![3; 36]);
    pair.release(Side::Client, 0);
    assert!(pair.wire.is_empty(), "the answer to a puzzle that does not count any more");
}

#[test]
fn who_has_a_cookie_is_told_of_the_puzzle_when_places_run_out_meanwhile() {
    let mut setup = Setup::new().quiet();
    setup.server.limits.cookie_threshold = 0;
    setup.server.limits.max_half_open = PLACES;
    let mut pair = setup.build();
    pair.initiate();
    pair.step();
    pair.step();
    let with_cookie = pair.lose();
    let message = Message::parse(&with_cookie.datagram.payload).unwrap();
    assert!(message.payloads.has_notify(NotifyType::Cookie));
    besiege(&mut pair);

    pair.deliver(with_cookie);
    let told = Message::parse(&pair.wire[0].datagram.payload).unwrap();
    assert!(told.payloads.has_notify(NotifyType::Puzzle), "{told:?}");
    pair.run();

    assert_eq!(pair.server.established().len(), 1);
}
