//! One host of the simulation: an engine and the world's side of its actions.
//!
//! The node plays driver: it executes actions (key exchange, signatures, authorisation, an ESP
//! plane that is a map), and keeps what an observer needs to judge the run.
#![allow(clippy::expect_used)]
// The contract's own error type; one is made per refused handshake.
#![allow(clippy::result_large_err)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ike::config::{
    Continuity, Credential, EngineConfig, Limits, LocalAuth, PeerConfig, RemoteAuth, Timers, Volume,
};
use ike::crypto::{CryptoProvider, EspSuite, IkeSuite, KeMethod, KexExecutor, SignatureScheme};
use ike::event::{Blame, Refusal};
use ike::io::{
    Authorise, ChildSaId, ChildUse, CredentialId, Grant, IkeSaId, InstallChild, LeaseId, PeerProof,
    UniquePolicy, VerifiedPeer, VerifyPeer,
};
use ike::snapshot::Snapshot;
use ike::wire::{IdType, Identification, NotifyType, TrafficSelector};
use ike::{Action, Completion, Engine, Event, Now, Output, Token, WallTime};

use super::crypto;
use super::link::Packet;

/// What kind of host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Answers, hands out addresses.
    Gateway,
    /// Initiates, asks for an address.
    Client(u8),
}

/// What happened to a node, for replay.
#[derive(Debug, Clone)]
pub enum Happened {
    /// Its engine was given this.
    Input(ike::Input),
    /// Its process ended and began again: the new engine's seed, and what it found.
    Restart([u8; 32], Vec<Snapshot>),
}

/// A host.
pub struct Node {
    /// Its name: its identity and its certificate.
    pub name: String,
    /// Gateway or client.
    pub kind: Kind,
    /// Its own address.
    pub address: IpAddr,
    /// The engine under test.
    pub engine: Engine,
    /// Its half of key exchanges.
    pub kex: KexExecutor,
    /// Child SAs installed now.
    pub plane: BTreeMap<ChildSaId, InstallChild>,
    /// Everything the engine reported.
    pub events: Vec<Event>,
    /// The configuration in force.
    pub config: EngineConfig,
    /// What a restart finds: the last checkpoint of each IKE SA.
    pub snapshots: BTreeMap<IkeSaId, Snapshot>,
    /// Its process has ended and has not begun again.
    pub down: bool,
    /// How often its process began again: what older ones asked for is for nobody.
    pub life: u32,
    /// As client: whether it says that it can move (RFC 4555).
    pub mobike: bool,
    /// As gateway: who may reach less than others.
    pub narrowed: BTreeSet<String>,
    /// Everything that happened to it, with its time, for replay.
    pub record: Vec<(Now, Happened)>,
    /// Every output, for comparison with a replay.
    pub outputs: Vec<Output>,
    /// Identities whose leases have ended.
    pub ended: BTreeSet<String>,
    /// Seed the engine was made with.
    pub seed: [u8; 32],
    /// Violations found while executing actions.
    pub violations: Vec<String>,
    /// Keep `record` and `outputs`.
    pub recording: bool,
    /// Life of a lease.
    pub lease_life: Duration,
    next_spi: u32,
    used_keys: BTreeSet<Vec<u8>>,
    provider: &'static CryptoProvider,
}

/// What a node wants of the world after an output.
pub enum Effect {
    /// Put this on the network.
    Send(Packet),
    /// Feed this back after a while.
    Complete(Token, Completion),
}

/// The configuration of a simulated engine: short lists, real timers.
pub fn config(name: &str) -> EngineConfig {
    EngineConfig {
        shard: 0,
        identity: identity(name),
        credentials: vec![Credential {
            id: CredentialId(0),
            chain: vec![certificate(name)],
            authorities: vec![[7; 20]],
            ocsp: Vec::new(),
            schemes: vec![SignatureScheme::EcdsaSha256],
        }],
        trust_anchor_hashes: vec![[7; 20]],
        request_ocsp: false,
        ike_suites: ike_suites(),
        esp_suites: esp_suites(name),
        force_encap: false,
        fragment_size: 1232,
        eap_tls: false,
        eap_only: false,
        ppk: false,
        timers: Timers::default(),
        volume: Volume::default(),
        limits: Limits::default(),
        continuity: Continuity::default(),
    }
}

fn ike_suites() -> Vec<IkeSuite> {
    [SEVERAL, "aes256gcm16-prfsha384-curve25519", "aes128gcm16-prfsha256-ecp256"]
        .into_iter()
        .map(|text| text.parse().expect("a suite"))
        .collect()
}

/// Two key exchanges (RFC 9370): every node accepts them, every second client offers them.
const SEVERAL: &str = "aes256gcm16-prfsha384-curve25519-ke1_mlkem768";

/// What a client offers: the even ones know one key exchange only.
fn offered(kind: Kind) -> Vec<IkeSuite> {
    let several = matches!(kind, Kind::Client(number) if number % 2 == 1);
    ike_suites().into_iter().filter(|suite| several || suite.additional.is_empty()).collect()
}

/// One client rekeys its children with two key exchanges, the others with none.
fn esp_suites(name: &str) -> Vec<EspSuite> {
    let texts = match name {
        "client-1" => ["aes256gcm16-curve25519-ke1_mlkem768", "aes128gcm16"],
        _ => ["aes256gcm16", "aes128gcm16"],
    };
    texts.into_iter().map(|text| text.parse().expect("a suite")).collect()
}

/// The identity of a name.
pub fn identity(name: &str) -> Identification {
    Identification { id_type: IdType::Fqdn, data: name.as_bytes().to_vec() }
}

fn certificate(name: &str) -> Vec<u8> {
    let mut der = b"simulated certificate of ".to_vec();
    der.extend_from_slice(name.as_bytes());
    der
}

fn private_key(name: &str) -> Vec<u8> {
    crypto::mix(32, KEYS, &[name.as_bytes()])
}

/// Domain of private keys.
const KEYS: u64 = 0x6b;

/// A far wall time for what never ends in a walk.
const FAR: WallTime = WallTime(i64::MAX / 2);

impl Node {
    /// A host with a fresh engine.
    pub fn new(name: &str, kind: Kind, address: IpAddr, seed: [u8; 32], now: Now) -> Self {
        Self::with_config(config(name), name, kind, address, seed, now)
    }

    /// A host with a fresh engine of that configuration.
    pub fn with_config(
        config: EngineConfig,
        name: &str,
        kind: Kind,
        address: IpAddr,
        seed: [u8; 32],
        now: Now,
    ) -> Self {
        Self::with_provider(&crypto::PROVIDER, config, name, kind, address, seed, now)
    }

    /// A host whose engine uses that cryptography provider. Certificates and signatures stay the
    /// world's own.
    pub fn with_provider(
        provider: &'static CryptoProvider,
        config: EngineConfig,
        name: &str,
        kind: Kind,
        address: IpAddr,
        seed: [u8; 32],
        now: Now,
    ) -> Self {
        Self {
            name: name.to_owned(),
            kind,
            address,
            engine: Engine::new(config.clone(), provider, seed, now)
                .expect("the simulated configuration is valid"),
            config,
            snapshots: BTreeMap::new(),
            down: false,
            life: 0,
            mobike: false,
            narrowed: BTreeSet::new(),
            kex: KexExecutor::new(provider),
            plane: BTreeMap::new(),
            events: Vec::new(),
            record: Vec::new(),
            outputs: Vec::new(),
            ended: BTreeSet::new(),
            seed,
            violations: Vec::new(),
            recording: false,
            lease_life: Duration::from_secs(7200),
            next_spi: 0x1000,
            used_keys: BTreeSet::new(),
            provider,
        }
    }

    /// Its process ends without a word: the engine, the private halves and the data plane go.
    pub fn crash(&mut self) {
        self.down = true;
        self.life += 1;
        self.plane.clear();
        self.kex = KexExecutor::new(self.provider);
    }

    /// Its process begins again with what was checkpointed, as octets.
    pub fn restart(&mut self, now: Now, seed: [u8; 32]) -> Vec<Effect> {
        self.down = false;
        let mut found = Vec::new();
        for (id, snapshot) in &self.snapshots {
            match Snapshot::decode(&snapshot.encode()) {
                Ok(snapshot) => found.push(snapshot),
                Err(error) => {
                    self.violations.push(format!("{}: snapshot {id:?}: {error}", self.name))
                }
            }
        }
        if self.recording {
            self.record.push((now, Happened::Restart(seed, found.clone())));
        }
        match Engine::restore(self.config.clone(), self.provider, seed, now, found) {
            Ok(engine) => self.engine = engine,
            Err(error) => self.violations.push(format!("{}: no restart: {error}", self.name)),
        }
        self.handle(now, ike::Input::Timeout)
    }

    /// What a client asks of a gateway.
    pub fn peer(&self, gateway: IpAddr, gateway_name: &str) -> PeerConfig {
        let any = |start: &str, end: &str| TrafficSelector {
            protocol: 0,
            start_port: 0,
            end_port: u16::MAX,
            start: start.parse().expect("an address"),
            end: end.parse().expect("an address"),
        };
        PeerConfig {
            name: gateway_name.to_owned(),
            local: SocketAddr::new(self.address, 500),
            remote: SocketAddr::new(gateway, 500),
            identity: identity(&self.name),
            expected: Some(identity(gateway_name)),
            local_auth: LocalAuth::Certificate(CredentialId(0)),
            remote_auth: RemoteAuth::Certificate,
            ppk: None,
            ike_suites: offered(self.kind),
            esp_suites: esp_suites(&self.name),
            first_ke: KeMethod::Curve25519,
            request_ipv4: true,
            request_ipv6: false,
            ts_local: vec![any("0.0.0.0", "255.255.255.255")],
            ts_remote: vec![any("10.20.0.0", "10.20.255.255")],
            first_child: ike::config::FirstChild::WithIkeAuth,
            transport: false,
            mobike: self.mobike,
            follow_redirects: false,
            redirected_from: None,
            initial_contact: !self.engine.sas().any(|sa| sa.state == ike::SaState::Established),
        }
    }

    /// Gives the engine an input and collects what it wants of the world.
    pub fn handle(&mut self, now: Now, input: ike::Input) -> Vec<Effect> {
        if self.down {
            return Vec::new();
        }
        if self.recording {
            self.record.push((now, Happened::Input(input.clone())));
        }
        if let ike::Input::Command(ike::Command::Reconfigure(config)) = &input {
            self.config = (**config).clone();
        }
        self.engine.handle(now, input);
        let mut effects = Vec::new();
        while let Some(output) = self.engine.poll_output() {
            if self.recording {
                self.outputs.push(output.clone());
            }
            match output {
                Output::Transmit(transmit) => effects.push(Effect::Send(Packet {
                    from: transmit.local,
                    to: transmit.remote,
                    encap: transmit.encap,
                    payload: transmit.payload,
                })),
                Output::Action(token, action) => {
                    let completion = self.execute(now, action);
                    effects.push(Effect::Complete(token, completion));
                }
                Output::Event(event) => self.events.push(event),
                Output::Checkpoint(checkpoint) => {
                    match checkpoint.snapshot {
                        Some(snapshot) => self.snapshots.insert(checkpoint.ike, *snapshot),
                        None => self.snapshots.remove(&checkpoint.ike),
                    };
                }
            }
        }
        effects
    }

    fn execute(&mut self, now: Now, action: Action) -> Completion {
        match action {
            Action::KeyExchange(request) => Completion::KeyExchange(Ok(self.kex.execute(request))),
            Action::Sign { message, .. } => {
                Completion::Sign(Ok(crypto::sign(&private_key(&self.name), &message)))
            }
            Action::VerifyPeer(request) => Completion::VerifyPeer(self.verify(&request)),
            // Simulated hosts have certificates only.
            Action::SharedKey(_) => Completion::SharedKey(Err(nobody("unknown_identity"))),
            Action::Ppk(_) => Completion::Ppk(Err(nobody("unknown_ppk"))),
            Action::EapTls(_) => Completion::EapTls(Err(nobody("eap_tls"))),
            Action::Authorise(request) => Completion::Authorise(self.authorise(now, &request)),
            Action::AllocSpi => {
                self.next_spi += 1;
                Completion::AllocSpi(Ok(self.next_spi))
            }
            Action::InstallChild(spec) => {
                self.install(*spec);
                Completion::InstallChild(Ok(()))
            }
            Action::ActivateChild(child) => {
                if self.plane.contains_key(&child) {
                    self.send_through(child);
                } else {
                    self.violations.push(format!("{}: {child:?} is not there to send", self.name));
                }
                Completion::ActivateChild(Ok(()))
            }
            Action::UpdateHosts { child, hosts } => {
                if let Some(spec) = self.plane.get_mut(&child) {
                    spec.hosts = hosts;
                }
                Completion::UpdateHosts(Ok(()))
            }
            Action::RemoveChild { child, .. } => match self.plane.remove(&child) {
                Some(_) => Completion::RemoveChild(Ok(ChildUse::default())),
                None => {
                    self.violations.push(format!("{}: removed {child:?} twice", self.name));
                    Completion::RemoveChild(Err("not installed".to_owned()))
                }
            },
            Action::SolvePuzzle(_) => {
                Completion::SolvePuzzle(Err("simulated hosts solve no puzzles".to_owned()))
            }
            Action::QueryUse(_) => Completion::QueryUse(Ok(ChildUse::default())),
        }
    }

    fn install(&mut self, spec: InstallChild) {
        let twin = self.plane.values().find(|other| other.spi_in == spec.spi_in);
        if let Some(twin) = twin {
            self.violations.push(format!(
                "{}: inbound SPI {:08x} of {:?} is already {:?}'s",
                self.name, spec.spi_in, spec.child, twin.child
            ));
        }
        // One key, one life: the same outbound key in two SAs would repeat (key, IV) pairs. What
        // is restored says so, and its sequence numbers go on above those used.
        if self.used_keys.insert(spec.keys_out.encr.clone()) == spec.restored {
            self.violations.push(format!(
                "{}: outbound key of {:?} used before: {}",
                self.name, spec.child, !spec.restored
            ));
        }
        let (child, active) = (spec.child, spec.outbound_active);
        self.plane.insert(child, spec);
        if active {
            self.send_through(child);
        }
    }

    /// Packets leave through this child from now on, and no more through those it replaces.
    fn send_through(&mut self, child: ChildSaId) {
        let mut replaced = self.plane.get(&child).and_then(|spec| spec.rekeys);
        while let Some(spec) = replaced.and_then(|old| self.plane.get_mut(&old)) {
            spec.outbound_active = false;
            replaced = spec.rekeys;
        }
        if let Some(spec) = self.plane.get_mut(&child) {
            spec.outbound_active = true;
        }
    }

    fn refusal(&self, code: &'static str, request: &VerifyPeer) -> Refusal {
        Refusal {
            ike: Some(request.ike),
            remote: Some(request.remote),
            identity: Some(request.identity.clone()),
            blame: Blame::Incompatible,
            notify: Some(NotifyType::AuthenticationFailed),
            code,
            what: code.to_owned(),
            fix: String::new(),
        }
    }

    fn verify(&self, request: &VerifyPeer) -> Result<Box<VerifiedPeer>, Refusal> {
        let name = request
            .certificates
            .first()
            .and_then(|der| der.strip_prefix(b"simulated certificate of ".as_slice()))
            .and_then(|name| std::str::from_utf8(name).ok())
            .ok_or_else(|| self.refusal("unknown_issuer", request))?;
        if request.identity != identity(name) {
            return Err(self.refusal("identity_mismatch", request));
        }
        if !crypto::verify(&private_key(name), &request.message, &request.signature) {
            return Err(self.refusal("bad_signature", request));
        }
        if self.ended.contains(name) {
            return Err(self.refusal("revoked", request));
        }
        Ok(Box::new(VerifiedPeer {
            identity: name.to_owned(),
            proof: PeerProof::Certificate {
                issuer: b"simulated CA".to_vec(),
                serial: name.as_bytes().to_vec(),
                not_after: FAR,
            },
        }))
    }

    fn authorise(&self, now: Now, request: &Authorise) -> Result<Box<Grant>, Refusal> {
        let name = request.peer.identity.clone();
        if self.ended.contains(&name) {
            return Err(Refusal {
                ike: Some(request.ike),
                remote: Some(request.remote),
                identity: Some(request.identity.clone()),
                blame: Blame::Incompatible,
                notify: Some(NotifyType::AuthenticationFailed),
                code: "lease_ended",
                what: "its lease has ended".to_owned(),
                fix: String::new(),
            });
        }
        Ok(Box::new(self.grant(now, &name)))
    }

    /// What a name may do.
    pub fn grant(&self, now: Now, name: &str) -> Grant {
        let number: u8 = name.rsplit('-').next().and_then(|n| n.parse().ok()).unwrap_or(0);
        let gateway = self.kind == Kind::Gateway;
        let life = i64::try_from(self.lease_life.as_micros()).unwrap_or(i64::MAX / 4);
        let last = if self.narrowed.contains(name) { 0 } else { 255 };
        Grant {
            lease: LeaseId(format!("lease-{name}")),
            role: "builder".to_owned(),
            reqid: u32::from(number) + 1,
            addresses: if gateway { vec![IpAddr::from([10, 77, 0, number + 2])] } else { vec![] },
            dns: Vec::new(),
            allowed: vec![TrafficSelector {
                protocol: 0,
                start_port: 0,
                end_port: u16::MAX,
                start: IpAddr::from([10, 20, 0, 0]),
                end: IpAddr::from([10, 20, last, 255]),
            }],
            networks: Vec::new(),
            transport: false,
            deadline: if gateway { WallTime(now.wall.0.saturating_add(life)) } else { FAR },
            unique: UniquePolicy::Replace,
        }
    }
}

/// The refusal of what no simulated host has.
fn nobody(code: &'static str) -> Refusal {
    Refusal {
        ike: None,
        remote: None,
        identity: None,
        blame: Blame::Incompatible,
        notify: Some(NotifyType::AuthenticationFailed),
        code,
        what: code.to_owned(),
        fix: String::new(),
    }
}
