//! One host of the simulation: an engine and the world's side of its actions.
//!
//! The node plays driver: it executes actions (key exchange, signatures, authorisation, an ESP
//! plane that is a map), and keeps what an observer needs to judge the run.
#![allow(clippy::expect_used)]
// The contract's own error type; one is made per refused handshake.
#![allow(clippy::result_large_err)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use ike::config::EngineConfig;
use ike::crypto::{CryptoProvider, KexExecutor};
use ike::event::Refusal;
use ike::io::{
    Authorise, ChildSaId, ChildUse, Grant, IkeSaId, InstallChild, LeaseId, UniquePolicy,
};
use ike::snapshot::Snapshot;
use ike::wire::{RedirectGateway, TrafficSelector};
use ike::{Action, Command, Completion, Engine, Event, Now, Output, Token};

use super::crypto;
use super::link::Packet;
use super::pool::Pool;
use super::proof::{self, FAR, refusal};
use super::setup::{Habits, config};
use super::tls::Tls;

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
    /// As client: in what it differs from others.
    pub habits: Habits,
    /// As client: the gateway that sent it to its present one (RFC 5685).
    pub sent_by: Option<RedirectGateway>,
    /// As client: every gateway that ever did.
    pub senders: Vec<RedirectGateway>,
    /// As client: how many children it has asked for beside the first.
    pub asked: usize,
    /// Its end of EAP-TLS.
    pub tls: Tls,
    /// As gateway: its leases.
    pub pool: Pool,
    /// As gateway: where it sends its clients, and whether those that are connected, too.
    pub draining: Option<(RedirectGateway, bool)>,
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
    /// As client: connect to this gateway now, which the present one named.
    Follow(RedirectGateway),
    /// Give this back at once.
    Command(Command),
}

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
            habits: Habits::default(),
            sent_by: None,
            senders: Vec::new(),
            asked: 0,
            tls: Tls::new(seed),
            pool: Pool::new(match address {
                IpAddr::V4(v4) => v4.octets()[3],
                IpAddr::V6(_) => 0,
            }),
            draining: None,
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
        self.tls.forget();
        self.kex = KexExecutor::new(self.provider);
    }

    /// Its process begins again with what was checkpointed, as octets. Its leases are in its store.
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
        self.pool.restarted(&self.engine);
        let mut effects = self.handle(now, ike::Input::Timeout);
        effects.extend(self.drain().map(Effect::Command));
        effects
    }

    /// The command that says where clients are sent.
    pub fn drain(&self) -> Option<Command> {
        let (to, existing) = self.draining.clone()?;
        Some(Command::Redirect { to: Some(to), existing })
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
                Output::Event(event) => {
                    effects.extend(self.follow_up(now, &event));
                    self.events.push(event);
                }
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

    /// What a driver does about an event.
    fn follow_up(&mut self, now: Now, event: &Event) -> Option<Effect> {
        if let Event::Redirected { to, .. } = event {
            return Some(Effect::Follow(to.clone()));
        }
        if self.kind != Kind::Gateway {
            return None;
        }
        let fault = self.pool.event(now, event);
        self.violations.extend(fault.map(|fault| format!("{}: {fault}", self.name)));
        // What the lease allows may have changed since it was asked.
        let Event::IkeUp { identity, lease, .. } = event else { return None };
        let grant = self.grant(identity).filter(|grant| grant.lease == *lease)?;
        Some(Effect::Command(Command::UpdateLease(lease.clone(), grant)))
    }

    fn execute(&mut self, now: Now, action: Action) -> Completion {
        match action {
            Action::KeyExchange(request) => Completion::KeyExchange(Ok(self.kex.execute(request))),
            Action::Sign { message, .. } => {
                Completion::Sign(Ok(crypto::sign(&proof::private_key(&self.name), &message)))
            }
            Action::VerifyPeer(request) => Completion::VerifyPeer(proof::verify(&request)),
            Action::SharedKey(request) => {
                let gateway = self.kind == Kind::Gateway;
                Completion::SharedKey(proof::shared_key(&self.name, gateway, &request))
            }
            Action::Ppk(request) => {
                let known = self.kind != Kind::Gateway || self.config.ppk;
                Completion::Ppk(proof::ppk(known, &request))
            }
            Action::EapTls(request) => {
                Completion::EapTls(self.tls.answer(now, &self.name, &request))
            }
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
            Action::SolvePuzzle(puzzle) => Completion::SolvePuzzle(puzzle.solve(self.provider)),
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

    /// Opens the lease of an authenticated peer.
    fn authorise(&mut self, now: Now, request: &Authorise) -> Result<Box<Grant>, Refusal> {
        let name = &request.peer.identity;
        if self.ended.contains(name) {
            let identity = Some(&request.identity);
            return Err(refusal("lease_ended", request.ike, request.remote, identity));
        }
        if self.kind == Kind::Gateway {
            self.pool.open(now, name, self.lease_life);
            let grant = self.grant(name).map(Box::new);
            return grant.ok_or_else(|| refusal("no_lease", request.ike, request.remote, None));
        }
        Ok(Box::new(Grant {
            lease: LeaseId(format!("to-{name}")),
            role: "gateway".to_owned(),
            reqid: 1,
            addresses: Vec::new(),
            dns: Vec::new(),
            allowed: vec![network(255)],
            networks: Vec::new(),
            transport: false,
            deadline: FAR,
            unique: UniquePolicy::Replace,
        }))
    }

    /// As gateway: what a client's lease allows now.
    pub fn grant(&self, client: &str) -> Option<Grant> {
        let lease = self.pool.of(client)?;
        Some(Grant {
            lease: lease.id.clone(),
            role: "builder".to_owned(),
            reqid: lease.reqid,
            addresses: vec![lease.address],
            dns: Vec::new(),
            allowed: vec![network(if self.narrowed.contains(client) { 0 } else { 255 })],
            networks: Vec::new(),
            transport: false,
            deadline: lease.deadline,
            unique: UniquePolicy::Replace,
        })
    }
}

/// Behind the gateways: 10.20.0.0 to 10.20.`last`.255.
fn network(last: u8) -> TrafficSelector {
    TrafficSelector {
        protocol: 0,
        start_port: 0,
        end_port: u16::MAX,
        start: IpAddr::from([10, 20, 0, 0]),
        end: IpAddr::from([10, 20, last, 255]),
    }
}
