//! The catalogue of rekeys, deletes and their collisions (RFC 7296 1.4.1, 2.8, 2.25), step by
//! step: after each message, what is installed at both ends, by SPI.
//!
//! What a side has is written as one line: its IKE SAs in the order in which they were first seen,
//! named `A`, `B`, ..., each with the child SAs it owns, as the client's and the server's inbound
//! SPI counted from 1. `*` marks the child that packets leave through; `~` an IKE SA that was
//! replaced, `-` one whose DELETE is out, `.` one that only repeats its last answer. So
//! `A~[] B[1/1 2/2*]` has rekeyed its IKE SA, and its child under the new one.

mod child_collision;
mod child_multi_ke;
mod child_rekey;
mod delete;
mod ike_collision;
mod ike_multi_ke;
mod ike_rekey;
mod mixed;

use std::collections::BTreeSet;
use std::fmt::Write;
use std::time::Duration;

use ike::event::CloseReason;
use ike::io::{ChildSaId, DataplaneEvent, IkeSaId};
use ike::wire::{Delete, ExchangeType, Header, NotifyType, Payload, Payloads};
use ike::{Command, Input, SaState};

use crate::harness::*;
use crate::spy::Spy;

use Side::{Client, Server};

/// SPIs of the data planes are counted from these.
const FIRST_CLIENT_SPI: u32 = 0xc000_0000;
const FIRST_SERVER_SPI: u32 = 0x5000_0000;

/// A connected pair under observation.
struct Stage {
    pair: Pair,
    spy: Spy,
    /// IKE SAs by the order in which they were first seen.
    names: Vec<(u64, u64)>,
    /// Nonces of CREATE_CHILD_SA exchanges under the first IKE SA, with who initiated each.
    nonces: Vec<(Side, bool, Vec<u8>)>,
    heard: BTreeSet<Vec<u8>>,
}

impl Stage {
    fn new() -> Self {
        Self::with(Setup::new().quiet())
    }

    fn with(setup: Setup) -> Self {
        let pair = Pair::connected_with(setup);
        let spy = Spy::of(&pair);
        let mut stage =
            Self { pair, spy, names: Vec::new(), nonces: Vec::new(), heard: BTreeSet::new() };
        stage.see("A[1/1*]", "A[1/1*]");
        stage
    }

    // --- what happens ---------------------------------------------------------------------------

    fn rekey_child(&mut self, side: Side, child: &str) {
        let child = self.child(side, child);
        self.command(side, Command::RekeyChild(child));
    }

    fn close_child(&mut self, side: Side, child: &str) {
        let child = self.child(side, child);
        self.command(side, Command::CloseChild(child, CloseReason::Operator));
    }

    /// The data plane says that a limit of a child is reached.
    fn expire(&mut self, side: Side, child: &str, hard: bool) {
        let child = self.child(side, child);
        self.pair.input(side, Input::Dataplane(DataplaneEvent::Expire { child, hard }));
        self.listen();
    }

    fn rekey_ike(&mut self, side: Side) {
        let id = self.ike_sa(side);
        self.command(side, Command::RekeyIke(id));
    }

    fn close_ike(&mut self, side: Side) {
        let id = self.ike_sa(side);
        self.command(side, Command::CloseIkeSa(id, CloseReason::Operator));
    }

    fn command(&mut self, side: Side, command: Command) {
        self.pair.command(side, command);
        self.listen();
    }

    /// Delivers the oldest datagram for one side.
    fn to(&mut self, side: Side) {
        let flight = self.hold(side);
        self.late(flight);
    }

    /// Takes the oldest datagram for one side off the wire.
    fn hold(&mut self, side: Side) -> Flight {
        let at = self.pair.wire.iter().position(|flight| flight.to == side);
        let at = at.unwrap_or_else(|| panic!("nothing on the wire for {side:?}"));
        self.pair.wire.remove(at).unwrap()
    }

    /// Delivers what was held back.
    fn late(&mut self, flight: Flight) {
        self.pair.deliver(flight);
        self.listen();
    }

    /// Delivers everything until nobody has more to say.
    fn run(&mut self) {
        while let Some(to) = self.pair.wire.front().map(|flight| flight.to) {
            self.to(to);
        }
    }

    /// A DELETE that its side's engine would not send: `child` is named by its own SPI.
    fn forge_delete(&mut self, from: Side, message_id: u32, child: &str) -> Flight {
        let spi = spis(child, from);
        let delete = Payload::Delete(Delete::esp(vec![ike::wire::ChildSpi(spi)]));
        let payloads = Payloads::from(vec![delete]);
        let exchange = ExchangeType::Informational;
        self.spy.say(&self.pair, from, exchange, false, message_id, &payloads)
    }

    // --- what is seen ---------------------------------------------------------------------------

    /// Both sides' SAs; packets that either sends now arrive.
    fn see(&mut self, client: &str, server: &str) {
        self.see_without_traffic(client, server);
        self.pair.assert_traffic_flows();
    }

    /// Both sides' SAs, where one of them is closing what the other still sends on.
    fn see_without_traffic(&mut self, client: &str, server: &str) {
        let found = (self.line(Client), self.line(Server));
        assert_eq!(found, (sorted(client), sorted(server)));
    }

    /// The same on both sides, and nothing more to come.
    fn settled(self, line: &str) {
        self.settled_on(line, true);
    }

    /// Both have no child any more.
    fn settled_without_child(self, line: &str) {
        self.settled_on(line, false);
    }

    fn settled_on(mut self, line: &str, traffic: bool) {
        assert!(self.pair.wire.is_empty(), "there is more to come: {:?}", self.pair.wire);
        // What only repeats answers goes away; nothing else may move.
        self.pair.run_for(Duration::from_secs(60));
        self.see_without_traffic(line, line);
        if traffic {
            self.pair.assert_traffic_flows();
            self.pair.assert_mirrored(1);
        }
        self.pair.assert_no_leaks();
    }

    /// Whether a message of the first IKE SA holds a notification.
    fn tells(&self, flight: &Flight, kind: NotifyType) -> bool {
        self.spy.hear(flight).payloads().unwrap().has_notify(kind)
    }

    /// Who initiated the exchange with the lowest of the four nonces (RFC 7296 2.8.1).
    fn loser(&self) -> Side {
        assert_eq!(self.nonces.len(), 4, "two exchanges have four nonces");
        self.nonces.iter().min_by_key(|(.., nonce)| nonce).unwrap().0
    }

    /// What the two exchanges made, the survivor first.
    fn outcome<'a>(&self, clients: &'a str, servers: &'a str) -> (&'a str, &'a str) {
        match self.loser() {
            Client => (servers, clients),
            Server => (clients, servers),
        }
    }

    /// Notes the nonces of what is on the wire.
    fn listen(&mut self) {
        for flight in &self.pair.wire {
            let Ok(header) = Header::peek(&flight.datagram.payload) else { continue };
            let new = self.heard.insert(flight.datagram.payload.clone());
            if !new || header.exchange != ExchangeType::CreateChildSa {
                continue;
            }
            if self.names.first() != Some(&(header.spi_i.0, header.spi_r.0)) {
                continue;
            }
            let Ok(payloads) = self.spy.hear(flight).payloads() else { continue };
            let answer = header.flags.response;
            let initiator = if answer { flight.to } else { flight.to.other() };
            if let Some(nonce) = payloads.nonce() {
                self.nonces.push((initiator, answer, nonce.as_bytes().to_vec()));
            }
        }
    }

    fn line(&mut self, side: Side) -> String {
        let peer = match side {
            Client => &self.pair.client,
            Server => &self.pair.server,
        };
        let mut owned = BTreeSet::new();
        let mut lines = Vec::new();
        for sa in peer.engine.sas() {
            let known = self.names.iter().position(|spis| *spis == sa.spis);
            let place = known.unwrap_or_else(|| {
                self.names.push(sa.spis);
                self.names.len() - 1
            });
            let mut line = String::from((b'A' + place as u8) as char);
            line.push_str(match sa.state {
                SaState::Established => "",
                SaState::Rekeyed => "~",
                SaState::Closing => "-",
                SaState::Lingering => ".",
                SaState::HalfOpen | SaState::Authenticating => "?",
            });
            let mut children = Vec::new();
            for child in &sa.children {
                // What is still being installed is not in the data plane yet.
                let Some(installed) = peer.plane.get(&child.id) else { continue };
                assert_eq!((installed.spi_in, installed.spi_out), (child.spi_in, child.spi_out));
                owned.insert(child.id);
                let (c, s) = match side {
                    Client => (child.spi_in, child.spi_out),
                    Server => (child.spi_out, child.spi_in),
                };
                let mut name = format!("{}/{}", c - FIRST_CLIENT_SPI, s - FIRST_SERVER_SPI);
                if peer.sending == Some(child.id) {
                    name.push('*');
                }
                children.push(name);
            }
            write!(line, "[{}]", children.join(" ")).unwrap();
            lines.push(line);
        }
        let orphans = peer.plane.keys().filter(|id| !owned.contains(id)).count();
        assert_eq!(orphans, 0, "{side:?}: children in the data plane that no IKE SA owns");
        sorted(&lines.join(" "))
    }

    fn child(&mut self, side: Side, name: &str) -> ChildSaId {
        let spi = spis(name, side);
        let plane = &self.pair.peer(side).plane;
        let child = plane.values().find(|child| child.spi_in == spi);
        child.unwrap_or_else(|| panic!("{side:?} has no child {name}")).child
    }

    fn ike_sa(&mut self, side: Side) -> IkeSaId {
        let established = self.pair.peer(side).established();
        assert_eq!(established.len(), 1, "{side:?}'s IKE SAs");
        established[0].id
    }
}

/// A child's inbound SPI of one side.
fn spis(name: &str, side: Side) -> u32 {
    let (client, server) = name.split_once('/').unwrap();
    match side {
        Client => FIRST_CLIENT_SPI + client.parse::<u32>().unwrap(),
        Server => FIRST_SERVER_SPI + server.parse::<u32>().unwrap(),
    }
}

/// The IKE SAs of a line, and the children of each, in one order.
fn sorted(line: &str) -> String {
    let mut sas: Vec<String> = line
        .split_inclusive(']')
        .map(str::trim)
        .map(|sa| {
            let (name, children) = sa.trim_end_matches(']').split_once('[').unwrap_or((sa, ""));
            let mut children: Vec<&str> = children.split_whitespace().collect();
            children.sort_unstable();
            format!("{name}[{}]", children.join(" "))
        })
        .filter(|sa| sa != "[]")
        .collect();
    sas.sort();
    sas.join(" ")
}

/// Runs a collision until each of the four nonces has been the lowest once. The script gives the
/// line on which the two must settle.
fn each_outcome(setup: impl Fn() -> Setup, script: impl Fn(&mut Stage) -> String) {
    let mut seen = BTreeSet::new();
    for seed in 0..64 {
        let mut setup = setup();
        setup.seeds = (seed, seed.wrapping_add(100));
        let mut stage = Stage::with(setup);
        let line = script(&mut stage);
        assert_eq!(stage.nonces.len(), 4, "two exchanges have four nonces");
        let lowest = stage.nonces.iter().min_by_key(|(.., nonce)| nonce).unwrap();
        seen.insert((lowest.0, lowest.1));
        stage.settled(&line);
        if seen.len() == 4 {
            return;
        }
    }
    panic!("only {seen:?} of four outcomes were seen");
}

fn quiet() -> Setup {
    Setup::new().quiet()
}

/// Both sides' SAs, the line of `side` first.
fn see(stage: &mut Stage, side: Side, own: &str, others: &str) {
    match side {
        Client => stage.see(own, others),
        Server => stage.see(others, own),
    }
}
