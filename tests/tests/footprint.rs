//! What a peer that has not authenticated can cost: memory by a counting allocator, work by the
//! actions it causes. `docs/threat-model.md` states the same numbers.
#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::time::Duration;

use ike::config::{EngineConfig, Limits};
use ike::crypto::ring::PROVIDER;
use ike::crypto::{KexExecutor, KexRequest};
use ike::io::Datagram;
use ike::wire::{ExchangeType, Flags, Header, Identification, Message, Payload, VendorId, Writer};
use ike::{Action, Completion, Engine, Input, Now, Output, Timestamp, WallTime};
use tests::alloc::{self, Counting};
use tests::hostile::message::{Dice, sa_init};
use tests::real::{Identity, config, p256_key};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes of a half-open IKE SA of a peer that sends what clients send.
const HALF_OPEN: usize = 5 * 1024;
/// Bytes of one whose request is as long as any that is accepted.
const LONGEST_HALF_OPEN: usize = 9 * 1024;
/// Octets of the longest accepted request.
const LONGEST: usize = 4096;

/// An engine and what it asked for.
struct Gateway {
    engine: Engine,
    kex: KexExecutor,
    now: Now,
    generated: usize,
    agreed: usize,
    other: usize,
    sent: Vec<Vec<u8>>,
}

impl Gateway {
    fn new(limits: Limits) -> Self {
        let (signer, key) = p256_key().unwrap();
        let name = Identification::fqdn("gw.example.com");
        let identity = Identity { name, signer: Box::new(signer), chain: vec![key] };
        let suites = vec!["aes256gcm16-prfsha256-x25519".parse().unwrap()];
        let base = config(&identity, &suites, &["aes256gcm16".parse().unwrap()]);
        let now = Now { mono: Timestamp(0), wall: WallTime(1_800_000_000_000_000) };
        let engine = Engine::new(EngineConfig { limits, ..base }, &PROVIDER, [9; 32], now).unwrap();
        let kex = KexExecutor::new(&PROVIDER);
        Self { engine, kex, now, generated: 0, agreed: 0, other: 0, sent: Vec::new() }
    }

    fn give(&mut self, input: Input) {
        let mut inputs = std::collections::VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            self.engine.handle(self.now, input);
            while let Some(output) = self.engine.poll_output() {
                match output {
                    Output::Transmit(transmit) => self.sent.push(transmit.payload),
                    Output::Action(token, Action::KeyExchange(request)) => {
                        match &request {
                            KexRequest::Generate { .. } => self.generated += 1,
                            KexRequest::Drop { .. } => {}
                            _ => self.agreed += 1,
                        }
                        let response = self.kex.execute(request);
                        let completion = Completion::KeyExchange(Ok(response));
                        inputs.push_back(Input::Completion(token, completion));
                    }
                    Output::Action(..) => self.other += 1,
                    Output::Event(_) | Output::Checkpoint(_) => {}
                }
            }
        }
    }

    fn datagram(&mut self, remote: SocketAddr, payload: Vec<u8>) {
        let local = "198.51.100.1:500".parse().unwrap();
        self.give(Input::Datagram(Datagram { local, remote, encap: false, payload }));
    }

    fn wait(&mut self, time: Duration) {
        self.now.mono = self.now.mono + time;
        self.give(Input::Timeout);
    }
}

fn source(number: usize) -> SocketAddr {
    let [.., a, b] = number.to_be_bytes();
    SocketAddr::from(([203, 0, a, b], 500))
}

/// A first request as long as any that is accepted.
fn longest(dice: &mut Dice) -> Vec<u8> {
    let mut message = Message::parse(&sa_init(dice)).unwrap();
    let room = LONGEST - message.encode().unwrap().len() - 4;
    message.payloads.push(Payload::VendorId(VendorId(vec![0x5a; room])));
    let bytes = message.encode().unwrap();
    assert_eq!(bytes.len(), LONGEST);
    bytes
}

fn crowded() -> Limits {
    Limits { cookie_threshold: 4000, max_half_open: 4000, ..Limits::default() }
}

#[test]
fn a_stranger_holds_a_bounded_number_of_bytes_for_a_bounded_time() {
    alloc::start();
    const COUNT: usize = 900;
    for (make, most) in [
        (sa_init as fn(&mut Dice) -> Vec<u8>, HALF_OPEN),
        (longest as fn(&mut Dice) -> Vec<u8>, LONGEST_HALF_OPEN),
    ] {
        let mut dice = Dice::new(3);
        let mut gateway = Gateway::new(crowded());
        // The first round makes room in the engine's queues, which stays.
        for round in 0..2 {
            let before = alloc::now();
            for number in 0..COUNT {
                gateway.datagram(source(number), make(&mut dice));
                gateway.sent = Vec::new();
            }
            assert_eq!(gateway.engine.stats().half_open, COUNT);
            let each = alloc::since(before) / COUNT;
            assert!(each <= most, "{each} bytes each, at most {most} are promised");
            assert!(each > 200, "{each} bytes: is anything counted?");

            gateway.wait(Duration::from_secs(31));
            assert_eq!(gateway.engine.stats().half_open, 0);
            assert_eq!(gateway.kex.pending(), 0);
            let left = alloc::since(before);
            assert!(round == 0 || left < COUNT, "{left} bytes are left of {COUNT} handshakes");
        }
    }
}

#[test]
fn a_request_that_needs_a_cookie_costs_no_memory_and_no_key_exchange() {
    alloc::start();
    let mut dice = Dice::new(4);
    let mut gateway = Gateway::new(Limits { cookie_threshold: 1, ..crowded() });
    gateway.datagram(source(1), sa_init(&mut dice));
    gateway.sent = Vec::new();
    let (before, generated) = (alloc::now(), gateway.generated);
    for number in 0..2000 {
        gateway.datagram(source(number), sa_init(&mut dice));
        gateway.sent.clear();
    }
    assert_eq!(gateway.generated, generated);
    assert_eq!(gateway.engine.stats().cookies, 2000);
    let grown = alloc::since(before);
    assert!(grown < 4096, "{grown} bytes after 2000 requests without a cookie");
}

#[test]
fn a_stranger_causes_one_key_pair_and_one_shared_secret_whatever_it_sends() {
    alloc::start();
    let mut dice = Dice::new(5);
    let mut gateway = Gateway::new(crowded());
    let request = sa_init(&mut dice);
    for _ in 0..50 {
        gateway.datagram(source(1), request.clone());
    }
    assert_eq!((gateway.generated, gateway.agreed), (1, 0), "nothing before IKE_AUTH");

    let answer = Header::peek(&gateway.sent[0]).unwrap();
    for id in 0..200 {
        let mut w = Writer::new();
        let flags = Flags::new(true, false);
        Header::new(answer.spi_i, answer.spi_r, ExchangeType::IkeAuth, flags, 1).write(&mut w);
        let mut forged = w.into_vec();
        // An Encrypted payload of the right shape, full of nothing.
        forged[16] = 46;
        forged.extend([35, 0, 0, 84]);
        forged.extend(std::iter::repeat_n(id as u8, 80));
        let length = u32::try_from(forged.len()).unwrap();
        forged[24..28].copy_from_slice(&length.to_be_bytes());
        gateway.datagram(source(1), forged);
    }
    assert_eq!((gateway.generated, gateway.agreed), (1, 1));
    assert_eq!(gateway.other, 0, "no signature, no certificate, no lease for a forger");
}
