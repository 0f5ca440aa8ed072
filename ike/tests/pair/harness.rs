//! Two engines, a virtual clock and a wire between them that tests hold in their hands.
//!
//! Outputs are executed at once: key exchanges, signatures and their verification with a real
//! provider, the data plane as a table. Only the certificate chain is taken on trust: a
//! "certificate" here is a bare public key. Nothing moves on the wire until a test says so.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ike::config::{Credential, EngineConfig, Limits, PeerConfig, Timers};
use ike::crypto::ring::{PROVIDER, Pkcs8Signer};
use ike::crypto::{CryptoProvider, EspSuite, IkeSuite, KeMethod, KexExecutor, KexResponse, Signer};
use ike::event::{CloseReason, Event, Refusal};
use ike::io::{
    Action, ChildSaId, ChildUse, Command, Completion, CredentialId, Datagram, Grant, IkeSaId,
    Input, InstallChild, LeaseId, Output, Token, UniquePolicy, VerifiedPeer, VerifyPeer,
};
use ike::snapshot::Snapshot;
use ike::wire::{ExchangeType, Header, Identification, TrafficSelector};
use ike::{Engine, IkeSaView, Now, SaState, Timestamp, WallTime};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair};

pub const CLIENT_IP: &str = "192.0.2.10";
pub const SERVER_IP: &str = "198.51.100.1";
pub const LEASE: &str = "lease-1";

/// Wall clock at the start of every test, in microseconds since the epoch.
pub const START: i64 = 1_800_000_000_000_000;

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    Client,
    Server,
}

impl Side {
    pub fn other(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }
}

/// A datagram on the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flight {
    pub to: Side,
    pub datagram: Datagram,
}

impl Flight {
    pub fn exchange(&self) -> ExchangeType {
        Header::peek(&self.datagram.payload).unwrap().exchange
    }
}

/// A key pair whose public half stands for a certificate.
pub struct Key {
    signer: Pkcs8Signer,
    pub spki: Vec<u8>,
}

impl Key {
    pub fn ecdsa() -> Self {
        const PREFIX: [u8; 26] = [
            0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06,
            0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
        ];
        let random = SystemRandom::new();
        let alg = &ECDSA_P256_SHA256_ASN1_SIGNING;
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(alg, &random).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(alg, pkcs8.as_ref(), &random).unwrap();
        Self {
            signer: Pkcs8Signer::from_pkcs8(pkcs8.as_ref()).unwrap(),
            spki: [&PREFIX, pair.public_key().as_ref()].concat(),
        }
    }

    pub fn ed25519() -> Self {
        const PREFIX: [u8; 12] =
            [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        let pair = Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap();
        Self {
            signer: Pkcs8Signer::from_pkcs8(pkcs8.as_ref()).unwrap(),
            spki: [&PREFIX, pair.public_key().as_ref()].concat(),
        }
    }
}

/// One engine with everything around it.
pub struct Peer {
    pub side: Side,
    pub engine: Engine,
    pub config: EngineConfig,
    crypto: &'static CryptoProvider,
    seed: [u8; 32],
    kex: KexExecutor,
    key: Key,
    /// What Authorise answers; `None` refuses.
    pub grant: Option<Grant>,
    /// Actions to be kept back.
    pub hold: fn(&Action) -> bool,
    pub held: Vec<(Token, Action)>,
    /// Actions that are done at once and answered later.
    pub late: fn(&Action) -> bool,
    pub answers: Vec<(Token, Completion)>,
    /// Child SAs installed.
    pub plane: BTreeMap<ChildSaId, InstallChild>,
    /// How long ago ESP came in, as the data plane says.
    pub idle_in: Option<Duration>,
    /// What was asked to be removed, in order.
    pub removed: Vec<(ChildSaId, bool)>,
    pub activated: Vec<ChildSaId>,
    /// The child that packets leave through.
    pub sending: Option<ChildSaId>,
    pub events: Vec<Event>,
    /// Everything that came out, in order.
    pub outputs: Vec<Output>,
    /// Everything that went in, for replay.
    pub inputs: Vec<(Now, Input)>,
    pub snapshots: BTreeMap<IkeSaId, Snapshot>,
    next_spi: u32,
}

impl Peer {
    fn new(side: Side, config: EngineConfig, key: Key, seed: u8, now: Now) -> Self {
        let crypto: &'static CryptoProvider = &PROVIDER;
        let seed = [seed; 32];
        Self {
            side,
            engine: Engine::new(config.clone(), crypto, seed, now).unwrap(),
            config,
            crypto,
            seed,
            kex: KexExecutor::new(crypto),
            key,
            grant: None,
            hold: |_| false,
            held: Vec::new(),
            late: |_| false,
            answers: Vec::new(),
            plane: BTreeMap::new(),
            idle_in: None,
            removed: Vec::new(),
            activated: Vec::new(),
            sending: None,
            events: Vec::new(),
            outputs: Vec::new(),
            inputs: Vec::new(),
            snapshots: BTreeMap::new(),
            next_spi: match side {
                Side::Client => 0xc000_0001,
                Side::Server => 0x5000_0001,
            },
        }
    }

    /// The SPIs of inbound halves in the data plane.
    pub fn inbound(&self) -> Vec<u32> {
        self.plane.values().map(|child| child.spi_in).collect()
    }

    /// The SPIs of outbound halves in the data plane.
    pub fn outbound(&self) -> Vec<u32> {
        self.plane.values().map(|child| child.spi_out).collect()
    }

    /// SAs that are neither closing nor only remembered.
    pub fn alive(&self) -> Vec<IkeSaView> {
        self.engine
            .sas()
            .filter(|sa| !matches!(sa.state, SaState::Closing | SaState::Lingering))
            .collect()
    }

    pub fn established(&self) -> Vec<IkeSaView> {
        self.engine.sas().filter(|sa| sa.state == SaState::Established).collect()
    }

    pub fn refusals(&self) -> Vec<&Refusal> {
        self.events
            .iter()
            .filter_map(|event| match event {
                Event::Refused(refusal) => Some(refusal),
                _ => None,
            })
            .collect()
    }

    /// The codes of what was refused, in order.
    pub fn codes(&self) -> Vec<&'static str> {
        self.refusals().iter().map(|refusal| refusal.code).collect()
    }

    /// Why IKE SAs ended, in order.
    pub fn ends(&self) -> Vec<CloseReason> {
        self.events
            .iter()
            .filter_map(|event| match event {
                Event::IkeDown { reason, .. } => Some(reason.clone()),
                _ => None,
            })
            .collect()
    }

    fn answer(&mut self, now: Now, action: Action) -> Completion {
        match action {
            Action::KeyExchange(request) => {
                Completion::KeyExchange(Ok::<KexResponse, _>(self.kex.execute(request)))
            }
            Action::Sign { scheme, message, .. } => Completion::Sign(
                self.key.signer.sign(scheme, &message).map_err(|error| error.to_string()),
            ),
            Action::VerifyPeer(verify) => Completion::VerifyPeer(self.verify(now, &verify)),
            Action::Authorise(_) => Completion::Authorise(match &self.grant {
                Some(grant) => Ok(Box::new(grant.clone())),
                None => Err(refusal("no_lease")),
            }),
            Action::AllocSpi => {
                let spi = self.next_spi;
                self.next_spi += 1;
                Completion::AllocSpi(Ok(spi))
            }
            Action::InstallChild(child) => {
                if child.outbound_active {
                    self.sending = Some(child.child);
                }
                self.plane.insert(child.child, *child);
                Completion::InstallChild(Ok(()))
            }
            Action::ActivateChild(child) => {
                self.activated.push(child);
                self.sending = Some(child);
                Completion::ActivateChild(Ok(()))
            }
            Action::UpdateHosts { child, hosts } => {
                if let Some(child) = self.plane.get_mut(&child) {
                    child.hosts = hosts;
                }
                Completion::UpdateHosts(Ok(()))
            }
            Action::RemoveChild { child, last } => {
                self.plane.remove(&child);
                if self.sending == Some(child) {
                    self.sending = None;
                }
                self.removed.push((child, last));
                Completion::RemoveChild(Ok(ChildUse::default()))
            }
            Action::QueryUse(_) => {
                Completion::QueryUse(Ok(ChildUse { idle_in: self.idle_in, ..ChildUse::default() }))
            }
        }
    }

    fn verify(&self, now: Now, verify: &VerifyPeer) -> Result<Box<VerifiedPeer>, Refusal> {
        let VerifyPeer { scheme, message, signature, certificates, .. } = verify;
        let spki = certificates.first().ok_or_else(|| refusal("no_certificate"))?;
        let result = if verify.rsa_classic {
            self.crypto.verify_rsa_classic(spki, message, signature)
        } else {
            self.crypto.verify(*scheme, spki, message, signature)
        };
        result.map_err(|_| refusal("bad_signature"))?;
        if verify.expected.as_ref().is_some_and(|expected| *expected != verify.identity) {
            return Err(refusal("identity_mismatch"));
        }
        Ok(Box::new(VerifiedPeer {
            identity: verify.identity.to_string(),
            issuer: b"test".to_vec(),
            serial: vec![1],
            not_after: WallTime(now.wall.0 + 3_600_000_000),
        }))
    }
}

fn refusal(code: &'static str) -> Refusal {
    Refusal {
        ike: None,
        remote: None,
        identity: None,
        blame: ike::event::Blame::Incompatible,
        notify: Some(ike::wire::NotifyType::AuthenticationFailed),
        code,
        what: code.to_owned(),
        fix: String::new(),
    }
}

/// A NAT in front of the client: its public address, and what it adds to ports.
#[derive(Debug, Clone, Copy)]
pub struct Nat {
    pub public: IpAddr,
    pub offset: u16,
}

/// See the module.
pub struct Pair {
    pub now: Now,
    pub client: Peer,
    pub server: Peer,
    pub wire: VecDeque<Flight>,
    pub nat: Option<Nat>,
    pub target: PeerConfig,
}

/// What a pair is made of, to be changed by a test before it starts.
pub struct Setup {
    pub client: EngineConfig,
    pub server: EngineConfig,
    pub client_key: Key,
    pub server_key: Key,
    pub target: PeerConfig,
    pub grant: Option<Grant>,
    /// The client's and the server's.
    pub seeds: (u8, u8),
}

pub fn ike(text: &str) -> Vec<IkeSuite> {
    IkeSuite::parse_proposal(text).unwrap()
}

pub fn esp(text: &str) -> Vec<EspSuite> {
    EspSuite::parse_proposal(text).unwrap()
}

pub fn net(start: &str, end: &str) -> TrafficSelector {
    TrafficSelector::addresses(start.parse().unwrap(), end.parse().unwrap())
}

pub fn address(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap(), port)
}

fn config(name: &str, shard: u8, key: &Key) -> EngineConfig {
    EngineConfig {
        shard,
        identity: Identification::fqdn(name),
        credentials: vec![Credential {
            id: CredentialId(1),
            chain: vec![key.spki.clone()],
            schemes: key.signer.schemes().to_vec(),
            authorities: vec![[7; 20]],
        }],
        trust_anchor_hashes: vec![[7; 20]],
        ike_suites: ike("aes256gcm16-prfsha384-x25519-ecp256"),
        esp_suites: esp("aes256gcm16-esn-noesn"),
        force_encap: false,
        fragment_size: 1280,
        timers: Timers::default(),
        limits: Limits::default(),
    }
}

impl Setup {
    pub fn new() -> Self {
        Self::with_keys(Key::ecdsa(), Key::ecdsa())
    }

    pub fn with_keys(client_key: Key, server_key: Key) -> Self {
        let client = config("client.example.com", 1, &client_key);
        let server = config("gw.example.com", 2, &server_key);
        let target = PeerConfig {
            name: "gw".to_owned(),
            local: address(CLIENT_IP, 500),
            remote: address(SERVER_IP, 500),
            identity: Identification::fqdn("client.example.com"),
            expected: Some(Identification::fqdn("gw.example.com")),
            credential: CredentialId(1),
            ike_suites: client.ike_suites.clone(),
            esp_suites: client.esp_suites.clone(),
            first_ke: KeMethod::Curve25519,
            request_ipv4: true,
            request_ipv6: true,
            ts_local: vec![],
            ts_remote: vec![TrafficSelector::any_v4(), TrafficSelector::any_v6()],
            mobike: false,
        };
        let grant = Some(Grant {
            lease: LeaseId(LEASE.to_owned()),
            role: "builder".to_owned(),
            reqid: 7,
            addresses: vec!["10.77.0.2".parse().unwrap(), "fd77::2".parse().unwrap()],
            dns: vec!["10.20.0.53".parse().unwrap()],
            allowed: vec![net("10.20.0.0", "10.20.0.255")],
            deadline: WallTime(START + 86_400_000_000),
            unique: UniquePolicy::Replace,
        });
        Self { client, server, client_key, server_key, target, grant, seeds: (0xc1, 0x5e) }
    }

    /// No timer fires on its own but those of the handshake.
    pub fn quiet(mut self) -> Self {
        for timers in [&mut self.client.timers, &mut self.server.timers] {
            timers.dpd = Duration::ZERO;
            timers.rekey_ike = Duration::ZERO;
            timers.rekey_child = Duration::ZERO;
        }
        self
    }

    pub fn build(self) -> Pair {
        let now = Now { mono: Timestamp(0), wall: WallTime(START) };
        let mut client = Peer::new(Side::Client, self.client, self.client_key, self.seeds.0, now);
        let mut server =
            Peer::new(Side::Server, self.server, self.server_key, self.seeds.1 ^ 0xff, now);
        server.grant = self.grant;
        client.grant = Some(Grant {
            lease: LeaseId("site".to_owned()),
            role: "site".to_owned(),
            reqid: 1,
            addresses: vec![],
            dns: vec![],
            allowed: vec![],
            deadline: WallTime(START + 864_000_000_000),
            unique: UniquePolicy::Keep,
        });
        Pair { now, client, server, wire: VecDeque::new(), nat: None, target: self.target }
    }
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
