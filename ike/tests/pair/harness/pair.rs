//! Two peers, the wire between them, the clock, and what must hold.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ike::config::PeerConfig;
use ike::io::{Command, Datagram, Input, Output};
use ike::snapshot::Snapshot;
use ike::{Engine, Now, Timestamp, WallTime};

use super::{CLIENT_IP, Flight, Peer, START, Setup, Side};

/// A NAT in front of the client: its public address, and what it adds to ports.
#[derive(Debug, Clone, Copy)]
pub struct Nat {
    pub public: IpAddr,
    pub offset: u16,
}

/// Two engines on a wire.
pub struct Pair {
    pub now: Now,
    pub client: Peer,
    pub server: Peer,
    pub wire: VecDeque<Flight>,
    pub nat: Option<Nat>,
    pub target: PeerConfig,
}

impl Pair {
    /// Two engines with an established connection, nothing on the wire.
    pub fn connected() -> Self {
        Self::connected_with(Setup::new().quiet())
    }

    pub fn connected_with(setup: Setup) -> Self {
        let mut pair = setup.build();
        pair.initiate();
        pair.run();
        pair.assert_connected();
        pair
    }

    pub fn peer(&mut self, side: Side) -> &mut Peer {
        match side {
            Side::Client => &mut self.client,
            Side::Server => &mut self.server,
        }
    }

    /// Gives an engine one input, executes what comes out, and puts datagrams on the wire.
    pub fn input(&mut self, side: Side, input: Input) {
        let now = self.now;
        let mut inputs = VecDeque::from([input]);
        let mut sent = Vec::new();
        let peer = self.peer(side);
        while let Some(input) = inputs.pop_front() {
            peer.inputs.push((now, input.clone()));
            peer.engine.handle(now, input);
            while let Some(output) = peer.engine.poll_output() {
                peer.outputs.push(output.clone());
                match output {
                    Output::Transmit(transmit) => sent.push(transmit),
                    Output::Action(token, action) if (peer.hold)(&action) => {
                        peer.held.push((token, action));
                    }
                    Output::Action(token, action) => {
                        let late = (peer.late)(&action);
                        let completion = peer.answer(now, action);
                        if late {
                            peer.answers.push((token, completion));
                            continue;
                        }
                        inputs.push_back(Input::Completion(token, completion));
                    }
                    Output::Event(event) => peer.events.push(event),
                    Output::Checkpoint(checkpoint) => {
                        match checkpoint.snapshot {
                            Some(snapshot) => peer.snapshots.insert(checkpoint.ike, *snapshot),
                            None => peer.snapshots.remove(&checkpoint.ike),
                        };
                    }
                }
            }
        }
        for transmit in sent {
            self.put(side, transmit);
        }
    }

    fn put(&mut self, from: Side, transmit: ike::Transmit) {
        if transmit.payload == [0xff] {
            return;
        }
        let (mut local, mut remote) = (transmit.remote, transmit.local);
        if let Some(nat) = self.nat {
            match from {
                Side::Client => {
                    remote = SocketAddr::new(nat.public, remote.port() + nat.offset);
                }
                Side::Server => {
                    assert_eq!(local.ip(), nat.public, "the server must answer the NAT");
                    let inside = self
                        .client
                        .alive()
                        .first()
                        .map_or(CLIENT_IP.parse().unwrap(), |sa| sa.local.ip());
                    local = SocketAddr::new(inside, local.port().wrapping_sub(nat.offset));
                }
            }
        }
        let datagram = Datagram { local, remote, encap: transmit.encap, payload: transmit.payload };
        self.wire.push_back(Flight { to: from.other(), datagram });
    }

    /// One side's process ends without a word and starts again from its snapshots' octets, with
    /// an empty data plane.
    pub fn restart(&mut self, side: Side) {
        let now = self.now;
        let peer = self.peer(side);
        let snapshots: Vec<Snapshot> = peer
            .snapshots
            .values()
            .map(|snapshot| Snapshot::decode(&snapshot.encode()).unwrap())
            .collect();
        peer.seed = peer.seed.map(|octet| octet.wrapping_add(1));
        peer.engine =
            Engine::restore(peer.config.clone(), peer.crypto, peer.seed, now, snapshots).unwrap();
        peer.plane.clear();
        peer.held.clear();
        peer.answers.clear();
        self.input(side, Input::Timeout);
    }

    pub fn command(&mut self, side: Side, command: Command) {
        self.input(side, Input::Command(command));
    }

    /// The client starts a connection.
    pub fn initiate(&mut self) {
        let target = self.target.clone();
        self.command(Side::Client, Command::Initiate(Box::new(target)));
    }

    /// Delivers the oldest datagram on the wire.
    pub fn step(&mut self) -> Option<Flight> {
        let flight = self.wire.pop_front()?;
        self.deliver(flight.clone());
        Some(flight)
    }

    pub fn deliver(&mut self, flight: Flight) {
        self.input(flight.to, Input::Datagram(flight.datagram));
    }

    /// Loses the oldest datagram on the wire.
    pub fn lose(&mut self) -> Flight {
        self.wire.pop_front().expect("nothing on the wire")
    }

    /// Delivers until the wire is silent. The clock stands.
    pub fn run(&mut self) {
        for _ in 0..10_000 {
            if self.step().is_none() {
                return;
            }
        }
        panic!("the two never stop talking");
    }

    /// Lets time pass: fires timers in order and delivers what they send.
    pub fn run_for(&mut self, duration: Duration) {
        let end = self.now.mono + duration;
        self.run();
        for _ in 0..100_000 {
            let Some((at, side)) = self.next_timer().filter(|(at, _)| *at <= end) else {
                self.set_clock(end);
                return;
            };
            self.set_clock(at);
            self.input(side, Input::Timeout);
            self.run();
        }
        panic!("timers never end");
    }

    /// Lets time pass without delivering anything.
    pub fn wait(&mut self, duration: Duration) {
        let end = self.now.mono + duration;
        while let Some((at, side)) = self.next_timer().filter(|(at, _)| *at <= end) {
            self.set_clock(at);
            self.input(side, Input::Timeout);
        }
        self.set_clock(end);
    }

    fn next_timer(&self) -> Option<(Timestamp, Side)> {
        let next = |peer: &Peer| peer.engine.poll_timeout().map(|at| (at.at, peer.side));
        next(&self.client).into_iter().chain(next(&self.server)).min()
    }

    fn set_clock(&mut self, at: Timestamp) {
        let passed = at.since(self.now.mono);
        self.now.mono = self.now.mono.max(at);
        self.now.wall = WallTime(self.now.wall.0 + passed.as_micros() as i64);
    }

    /// Answers what was held back, in the order the test wants.
    pub fn release(&mut self, side: Side, index: usize) {
        let now = self.now;
        let peer = self.peer(side);
        let (token, action) = peer.held.remove(index);
        let completion = peer.answer(now, action);
        self.input(side, Input::Completion(token, completion));
    }

    /// Gives the engine one of the answers that are late.
    pub fn answer_late(&mut self, side: Side, index: usize) {
        let (token, completion) = self.peer(side).answers.remove(index);
        self.input(side, Input::Completion(token, completion));
    }

    /// One IKE SA and one child on each side, whose SPIs mirror each other.
    pub fn assert_connected(&self) {
        assert_eq!(self.client.established().len(), 1, "client: {:?}", self.client.events);
        assert_eq!(self.server.established().len(), 1, "server: {:?}", self.server.events);
        self.assert_mirrored(1);
    }

    /// `count` children, each installed on both sides with the same keys.
    pub fn assert_mirrored(&self, count: usize) {
        assert_eq!(self.client.plane.len(), count, "client's children");
        assert_eq!(self.server.plane.len(), count, "server's children");
        for ours in self.client.plane.values() {
            let theirs = self
                .server
                .plane
                .values()
                .find(|theirs| theirs.spi_in == ours.spi_out && theirs.spi_out == ours.spi_in)
                .expect("a child without its other half");
            assert!(ours.keys_in == theirs.keys_out && ours.keys_out == theirs.keys_in);
            assert_eq!(ours.suite, theirs.suite);
            assert_eq!(ours.ts_local, theirs.ts_remote);
            assert_eq!(ours.ts_remote, theirs.ts_local);
            assert_eq!(ours.hosts.encap, theirs.hosts.encap);
        }
    }

    /// What either side sends now, the other receives: nothing is lost in a rekey.
    pub fn assert_traffic_flows(&self) {
        for (from, to) in [(&self.client, &self.server), (&self.server, &self.client)] {
            let child = from.sending.and_then(|id| from.plane.get(&id));
            let child = child.unwrap_or_else(|| panic!("{:?} sends on nothing", from.side));
            assert!(
                to.inbound().contains(&child.spi_out),
                "{:?} sends on {:08x}, which the other does not receive",
                from.side,
                child.spi_out
            );
        }
    }

    pub fn assert_nothing_installed(&self) {
        assert_eq!(self.client.inbound(), Vec::<u32>::new());
        assert_eq!(self.server.inbound(), Vec::<u32>::new());
    }

    /// Shuts both down and looks for anything left: SAs, children, timers, actions, key pairs.
    pub fn assert_no_leaks(mut self) {
        self.command(Side::Client, Command::Shutdown);
        self.command(Side::Server, Command::Shutdown);
        self.run_for(Duration::from_secs(300));
        for peer in [&mut self.client, &mut self.server] {
            let side = peer.side;
            assert!(peer.engine.is_idle(), "{side:?} is not idle");
            assert_eq!(peer.engine.sas().count(), 0, "{side:?}: SAs left");
            assert_eq!(peer.engine.stats().actions, 0, "{side:?}: actions left");
            assert_eq!(peer.engine.poll_timeout(), None, "{side:?}: timers left");
            assert_eq!(peer.engine.leaks(), Vec::<String>::new(), "{side:?}");
            assert_eq!(peer.kex.pending(), 0, "{side:?}: key pairs left");
            assert_eq!(peer.plane.len(), 0, "{side:?}: children left");
            assert!(peer.snapshots.is_empty(), "{side:?}: snapshots of dead SAs");
        }
        for side in [Side::Client, Side::Server] {
            self.assert_replays(side);
        }
    }

    /// The recorded inputs, given to a second engine, yield the same outputs.
    pub fn assert_replays(&mut self, side: Side) {
        let peer = self.peer(side);
        let start = Now { mono: Timestamp(0), wall: WallTime(START) };
        let mut again = Engine::new(peer.config.clone(), peer.crypto, peer.seed, start).unwrap();
        let mut outputs = Vec::new();
        for (now, input) in &peer.inputs {
            again.handle(*now, input.clone());
            outputs.extend(std::iter::from_fn(|| again.poll_output()));
        }
        assert!(outputs == peer.outputs, "{side:?}: the replay differs");
    }
}
