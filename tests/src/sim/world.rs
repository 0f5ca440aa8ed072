//! Nodes, network and clock together; moves time from event to event.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use ike::io::{Datagram, DataplaneEvent};
use ike::wire::RedirectGateway;
use ike::{Command, Completion, Input, Now, Timestamp, Token, WallTime};

use super::crypto;
use super::link::{Link, Packet, Weather};
use super::node::{Effect, Kind, Node};
use super::pool::belongs;
use super::rng::Rng;

/// The wall clock at the start of every world.
pub const EPOCH: WallTime = WallTime(1_800_000_000_000_000);

/// A world.
pub struct World {
    /// Its seed.
    pub seed: u64,
    /// Both clocks.
    pub now: Now,
    /// Gateway first, then clients.
    pub nodes: Vec<Node>,
    /// What lies between them.
    pub link: Link,
    /// What happens next: by time, then by order of creation.
    agenda: BTreeMap<(Timestamp, u64), Happening>,
    sequence: u64,
    delays: Rng,
    seeds: Rng,
    /// The gateway each node connects to.
    home: Vec<usize>,
    /// Answers to actions that never come, in percent: a helper died, a queue was full.
    pub lost_answers: u64,
    /// How many of the addresses for those who move were given out.
    moves: u16,
    /// How often each node was sent elsewhere, since when.
    hops: Vec<(Timestamp, u32)>,
}

enum Happening {
    Arrive(Packet),
    /// A node's answer to an action of one of its lives.
    Complete(usize, u32, Token, Completion),
}

/// A client is sent elsewhere this often in this time at most.
const HOPS: (u32, Duration) = (5, Duration::from_secs(300));

/// The gateway's name.
pub const GATEWAY: &str = "gw.example.com";

/// The gateway's address.
pub fn gateway_address() -> IpAddr {
    IpAddr::from([192, 0, 2, 1])
}

/// The second gateway's name.
pub const OTHER_GATEWAY: &str = "gw2.example.com";

/// The second gateway's address.
pub fn other_gateway_address() -> IpAddr {
    IpAddr::from([192, 0, 2, 2])
}

/// A client's address; every third one sits behind a NAT box.
pub fn client_address(number: u8) -> IpAddr {
    IpAddr::from([198, 51, 100, number + 2])
}

impl World {
    /// One gateway and some clients; every third client is behind its own NAT box.
    pub fn new(seed: u64, weather: Weather, clients: u8) -> Self {
        Self::with_gateway(seed, weather, clients, super::setup::config(GATEWAY))
    }

    /// The same with a configuration for the gateway.
    pub fn with_gateway(
        seed: u64,
        weather: Weather,
        clients: u8,
        config: ike::EngineConfig,
    ) -> Self {
        crypto::reseed(seed);
        let now = Now { mono: Timestamp(1_000_000), wall: EPOCH };
        let mut seeds = Rng::new(seed, 0x5eed);
        let gateway = Node::with_config(
            config,
            GATEWAY,
            Kind::Gateway,
            gateway_address(),
            seeds.bytes(),
            now,
        );
        let mut nodes = vec![gateway];
        let mut link = Link::new(seed, weather);
        for number in 0..clients {
            let address = client_address(number);
            if number % 3 == 2 {
                link.nat(address, IpAddr::from([203, 0, 113, number + 2]));
            }
            let name = format!("client-{number}");
            nodes.push(Node::new(&name, Kind::Client(number), address, seeds.bytes(), now));
        }
        let home = vec![0; nodes.len()];
        let hops = vec![(now.mono, 0); nodes.len()];
        Self {
            seed,
            now,
            nodes,
            link,
            agenda: BTreeMap::new(),
            sequence: 0,
            delays: Rng::new(seed, 0xde1a),
            seeds,
            home,
            lost_answers: 0,
            moves: 0,
            hops,
        }
    }

    /// Adds a second gateway, behind all other nodes.
    pub fn add_gateway(&mut self) -> usize {
        let (name, address) = (OTHER_GATEWAY, other_gateway_address());
        let seed = self.seeds.bytes();
        self.nodes.push(Node::new(name, Kind::Gateway, address, seed, self.now));
        self.home.push(0);
        self.hops.push((self.now.mono, 0));
        self.nodes.len() - 1
    }

    /// The nodes that are gateways.
    pub fn gateways(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|node| self.nodes[*node].kind == Kind::Gateway).collect()
    }

    /// The gateway a client connects to.
    pub fn home(&self, client: usize) -> usize {
        self.home[client]
    }

    /// Sends a client to a gateway from now on.
    pub fn set_home(&mut self, client: usize, gateway: usize) {
        self.home[client] = gateway;
    }

    /// Ends a node's process without a word.
    pub fn crash(&mut self, node: usize) {
        self.nodes[node].crash();
    }

    /// Begins it again.
    pub fn restart(&mut self, node: usize) {
        if !self.nodes[node].down {
            return;
        }
        let seed = self.seeds.bytes();
        let effects = self.nodes[node].restart(self.now, seed);
        self.carry_out(node, effects);
    }

    /// Gives a client another address, behind a NAT box or not. The old one is gone.
    pub fn roam(&mut self, client: usize, behind_nat: bool) -> IpAddr {
        self.moves += 1;
        let [high, low] = self.moves.to_be_bytes();
        let address = IpAddr::from([100, 64, high, low]);
        if behind_nat {
            self.link.nat(address, IpAddr::from([203, 1, high, low]));
        }
        self.nodes[client].address = address;
        let moved: Vec<_> = self.nodes[client]
            .engine
            .sas()
            .filter(|sa| sa.state == ike::SaState::Established)
            .map(|sa| (sa.id, sa.local.port()))
            .collect();
        for (ike, port) in moved {
            let local = std::net::SocketAddr::new(address, port);
            self.command(client, Command::Move { ike, local });
        }
        address
    }

    /// The gateway.
    pub fn gateway(&mut self) -> &mut Node {
        &mut self.nodes[0]
    }

    /// Starts a client's connection to its gateway, as its user would.
    pub fn connect(&mut self, client: usize) {
        self.nodes[client].sent_by = None;
        self.initiate(client);
    }

    /// Connects a client to where its gateway sends it, but not for ever to and fro (RFC 5685 10).
    fn follow(&mut self, client: usize, to: &RedirectGateway) {
        let known = self.gateways().into_iter().find(|gateway| self.named(*gateway) == *to);
        let since = self.now.mono.since(self.hops[client].0);
        if since > HOPS.1 {
            self.hops[client] = (self.now.mono, 0);
        }
        self.hops[client].1 += 1;
        let Some(gateway) = known.filter(|_| self.hops[client].1 <= HOPS.0) else { return };
        let sender = self.named(self.home[client]);
        self.nodes[client].senders.push(sender.clone());
        self.nodes[client].sent_by = Some(sender);
        self.set_home(client, gateway);
        self.initiate(client);
    }

    /// A gateway as others name it.
    pub fn named(&self, gateway: usize) -> RedirectGateway {
        RedirectGateway::Fqdn(self.nodes[gateway].name.clone().into_bytes())
    }

    /// Sends a gateway's clients elsewhere, or no more.
    pub fn drain(&mut self, gateway: usize, to: Option<(RedirectGateway, bool)>) {
        self.nodes[gateway].draining = to;
        let nowhere = Command::Redirect { to: None, existing: false };
        let command = self.nodes[gateway].drain().unwrap_or(nowhere);
        self.command(gateway, command);
    }

    fn initiate(&mut self, client: usize) {
        let gateway = &self.nodes[self.home[client]];
        let peer = self.nodes[client].peer(gateway.address, &gateway.name);
        self.command(client, Command::Initiate(Box::new(peer)));
    }

    /// Sets everybody's wall clock forward or back; drivers notice within a second.
    pub fn set_clock(&mut self, by_seconds: i64) {
        self.now.wall = WallTime(self.now.wall.0 + by_seconds * 1_000_000);
        for node in 0..self.nodes.len() {
            self.handle(node, Input::Timeout);
        }
    }

    /// A packet leaves through each of a node's children, and the other end's data plane reports
    /// what is odd about it: that it comes from elsewhere (RFC 7296 2.23), or is for nobody.
    pub fn send_esp(&mut self, from: usize) {
        let outbound = |child: &&ike::io::InstallChild| child.outbound_active && child.hosts.encap;
        let children = self.nodes[from].plane.values().filter(outbound);
        let packets: Vec<_> = children.map(|child| (child.spi_out, child.hosts)).collect();
        for (spi, hosts) in packets {
            if hosts.local.ip() != self.nodes[from].address {
                continue;
            }
            let packet =
                Packet { from: hosts.local, to: hosts.remote, encap: true, payload: Vec::new() };
            let arrivals = self.link.carry(self.now.mono, packet);
            let Some((_, packet)) = arrivals.into_iter().next() else { continue };
            let to = packet.to.ip();
            let Some(node) = self.nodes.iter().position(|node| node.address == to) else {
                continue;
            };
            let known = self.nodes[node].plane.values().find(|child| child.spi_in == spi);
            let remote = packet.from;
            let event = match known {
                Some(child) if child.hosts.remote == remote => continue,
                Some(child) => DataplaneEvent::Mapping { child: child.child, remote },
                None => DataplaneEvent::NoSa { spi, remote },
            };
            self.handle(node, Input::Dataplane(event));
        }
    }

    /// Gives a node a command.
    pub fn command(&mut self, node: usize, command: Command) {
        self.handle(node, Input::Command(command));
    }

    /// Gives a node an input and puts what follows on the agenda.
    pub fn handle(&mut self, node: usize, input: Input) {
        let now = self.now;
        let Some(host) = self.nodes.get_mut(node) else { return };
        let effects = host.handle(now, input);
        self.carry_out(node, effects);
    }

    fn carry_out(&mut self, node: usize, effects: Vec<Effect>) {
        let now = self.now;
        let (address, life) = (self.nodes[node].address, self.nodes[node].life);
        for effect in effects {
            match effect {
                // Nothing is sent from an address the host has no more.
                Effect::Send(packet) if packet.from.ip() != address => {}
                Effect::Send(packet) => {
                    for (at, packet) in self.link.carry(now.mono, packet) {
                        self.schedule(at, Happening::Arrive(packet));
                    }
                }
                Effect::Follow(to) => self.follow(node, &to),
                Effect::Command(command) => self.command(node, command),
                Effect::Complete(..) if self.delays.chance(self.lost_answers) => {}
                Effect::Complete(token, completion) => {
                    let delay = Duration::from_micros(50 + self.delays.below(3000));
                    self.schedule(
                        now.mono + delay,
                        Happening::Complete(node, life, token, completion),
                    );
                }
            }
        }
    }

    fn schedule(&mut self, at: Timestamp, happening: Happening) {
        self.sequence += 1;
        self.agenda.insert((at, self.sequence), happening);
    }

    /// Lets the world run for a while of virtual time.
    pub fn run(&mut self, span: Duration) {
        let end = self.now.mono + span;
        while let Some(at) = self.next_time().filter(|at| *at <= end) {
            self.advance(at);
            self.step();
        }
        self.advance(end);
    }

    fn advance(&mut self, to: Timestamp) {
        let passed = i64::try_from(to.since(self.now.mono).as_micros()).unwrap_or(0);
        self.now.mono = self.now.mono.max(to);
        self.now.wall = WallTime(self.now.wall.0 + passed);
    }

    fn next_time(&self) -> Option<Timestamp> {
        let agenda = self.agenda.keys().next().map(|(at, _)| *at);
        let up = self.nodes.iter().filter(|node| !node.down);
        let timers = up.filter_map(|node| node.engine.poll_timeout());
        agenda.into_iter().chain(timers.map(|deadline| deadline.at)).min()
    }

    /// Does everything that is due now: first what arrives, then timers.
    fn step(&mut self) {
        while let Some(entry) = self.agenda.first_entry() {
            if entry.key().0 > self.now.mono {
                break;
            }
            match entry.remove() {
                Happening::Complete(node, life, token, completion) => {
                    if self.nodes[node].life == life {
                        self.handle(node, Input::Completion(token, completion));
                    }
                }
                Happening::Arrive(packet) => {
                    let to = packet.to.ip();
                    let Some(node) = self.nodes.iter().position(|n| n.address == to) else {
                        continue;
                    };
                    let datagram = Datagram {
                        local: packet.to,
                        remote: packet.from,
                        encap: packet.encap,
                        payload: packet.payload,
                    };
                    self.handle(node, Input::Datagram(datagram));
                }
            }
        }
        for node in 0..self.nodes.len() {
            let due = |world: &Self| {
                let node = &world.nodes[node];
                !node.down && node.engine.poll_timeout().is_some_and(|d| d.at <= world.now.mono)
            };
            // A timer that re-arms itself for now would hang the world: bounded.
            for _ in 0..64 {
                if !due(self) {
                    break;
                }
                self.handle(node, Input::Timeout);
            }
            if due(self) {
                let deadline = self.nodes[node].engine.poll_timeout();
                let name = self.nodes[node].name.clone();
                self.nodes[node].violations.push(format!("{name}: {deadline:?} never passes"));
            }
        }
    }

    /// Looks at the gateways' leases.
    pub fn check_leases(&mut self) {
        let now = self.now;
        for node in self.nodes.iter_mut().filter(|node| node.kind == Kind::Gateway && !node.down) {
            let faults = node.pool.faults(now, &node.engine);
            let faults = faults.into_iter().map(|fault| format!("{}: {fault}", node.name));
            for fault in faults {
                if !node.violations.contains(&fault) {
                    node.violations.push(fault);
                }
            }
        }
    }

    /// Every rule broken so far, with the seed to see it again.
    pub fn violations(&self) -> Vec<String> {
        self.nodes.iter().flat_map(|node| node.violations.clone()).collect()
    }

    /// Children that both a client and a gateway have installed, with keys that fit.
    pub fn working_children(&self, client: usize) -> usize {
        let Some(client) = self.nodes.get(client) else {
            return 0;
        };
        let gateways = self.gateways();
        let theirs = || gateways.iter().flat_map(|gateway| self.nodes[*gateway].plane.values());
        client
            .plane
            .values()
            .filter(|ours| {
                theirs().any(|theirs| {
                    theirs.spi_in == ours.spi_out
                        && theirs.spi_out == ours.spi_in
                        && theirs.keys_in == ours.keys_out
                        && theirs.keys_out == ours.keys_in
                })
            })
            .count()
    }

    /// Children of a client that no gateway has, or the other way round.
    pub fn half_children(&self, client: usize) -> usize {
        let Some(node) = self.nodes.get(client) else {
            return 0;
        };
        let at = |gateway: usize| {
            let children = self.nodes[gateway].plane.values();
            children.filter(|child| belongs(&child.lease, &node.name)).count()
        };
        let theirs: usize = self.gateways().into_iter().map(at).sum();
        let working = self.working_children(client);
        (node.plane.len() - working) + (theirs - working)
    }

    /// Closes everything everywhere in fine weather and names what is left: nothing may be.
    pub fn leaks_after_shutdown(&mut self) -> Vec<String> {
        self.link.weather = Weather::FINE;
        for node in 0..self.nodes.len() {
            let address = self.nodes[node].address;
            self.link.partition(address, false);
            self.restart(node);
            self.command(node, Command::Shutdown);
        }
        self.run(Duration::from_secs(120));
        let mut leaks = self.violations();
        for node in &self.nodes {
            leaks.extend(
                node.engine.leaks().into_iter().map(|leak| format!("{}: {leak}", node.name)),
            );
            let stats = node.engine.stats();
            if !node.engine.is_idle() {
                leaks.push(format!("{}: not idle: {stats:?}", node.name));
            }
            let timer = node.engine.poll_timeout();
            if let Some(left) = timer.filter(|t| t.reason != ike::io::TimerKind::CookieSecret) {
                leaks.push(format!("{}: timer {left:?} is left", node.name));
            }
            if node.kex.pending() > 0 {
                leaks.push(format!("{}: {} private keys are left", node.name, node.kex.pending()));
            }
            for child in node.plane.values() {
                leaks.push(format!("{}: child {:08x} is left", node.name, child.spi_in));
            }
            for (client, sas) in node.pool.held().filter(|(_, sas)| !sas.is_empty()) {
                leaks.push(format!("{}: {client}'s lease is in use by {sas:?}", node.name));
            }
            for id in node.snapshots.keys() {
                leaks.push(format!("{}: a snapshot of {id:?} is left", node.name));
            }
        }
        leaks
    }
}
