//! The checklist of RFC 7296 and its companions: one test a rule, for those rules that no other
//! file here has as its subject.

mod children;
mod costs;
mod messages;

use std::time::Duration;

use ike::crypto::KexRequest;
use ike::event::{CloseReason, Event};
use ike::io::{Action, Command, DataplaneEvent, Input, Output};
use ike::wire::{
    CertEncoding, Certificate, ChildSpi, Delete, EncrId, ExchangeType, Flags, Header, IkeSpi,
    KeyExchange, Message, MessageIdSync, Nonce, Notify, NotifyType, Payload, PayloadType, Payloads,
    Proposal, ProtocolId, SecurityAssociation, TrafficSelector, TrafficSelectors, Transform,
    TransformId,
};

use crate::harness::*;
use crate::spy::Spy;

/// A pair whose client has sent its first message, which was taken off the wire.
fn first_message() -> (Pair, Flight) {
    let mut pair = Setup::new().quiet().build();
    pair.initiate();
    let flight = pair.lose();
    (pair, flight)
}

/// A message without protection, with other payloads.
fn changed(flight: &Flight, change: impl FnOnce(&mut Message)) -> Flight {
    let mut message = Message::parse(&flight.datagram.payload).unwrap();
    change(&mut message);
    let mut flight = flight.clone();
    flight.datagram.payload = message.encode().unwrap();
    flight
}

/// The same payloads with one of them replaced.
fn replaced(payloads: &Payloads, with: &Payload) -> Payloads {
    let kind = with.kind();
    let swap =
        |payload: &Payload| if payload.kind() == kind { with.clone() } else { payload.clone() };
    Payloads::from(payloads.iter().map(swap).collect::<Vec<_>>())
}

fn answer_to(pair: &mut Pair, flight: Flight) -> Message {
    pair.deliver(flight);
    Message::parse(&pair.lose().datagram.payload).unwrap()
}

/// What the server says to an authentic request of the client.
fn told(
    pair: &mut Pair,
    spy: &mut Spy,
    kind: ExchangeType,
    id: u32,
    payloads: &Payloads,
) -> Payloads {
    let said = spy.say(pair, Side::Client, kind, false, id, payloads);
    pair.deliver(said);
    spy.hear(&pair.lose()).payloads().unwrap()
}

fn informational(pair: &mut Pair, spy: &mut Spy, id: u32, payloads: &Payloads) -> Payloads {
    told(pair, spy, ExchangeType::Informational, id, payloads)
}

/// A pair where the server has got the client's IKE_AUTH with more payloads than it wrote; the
/// AUTH payload does not cover them.
fn authenticated_with(setup: Setup, more: Vec<Payload>) -> (Pair, Payloads) {
    let mut pair = setup.build();
    pair.initiate();
    pair.step();
    pair.step();
    let request = pair.lose();
    let mut spy = Spy::of(&pair);
    let mut payloads = spy.hear(&request).payloads().unwrap();
    more.into_iter().for_each(|payload| payloads.push(payload));
    let said = spy.say(&pair, Side::Client, ExchangeType::IkeAuth, false, 1, &payloads);
    pair.deliver(said);
    let answer = spy.hear(&pair.wire[0]).payloads().unwrap();
    (pair, answer)
}
