//! An engine that goes on from an old snapshot tells an unmodified strongSwan new message ids
//! (RFC 6311), and both keep their SAs.

use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use ike::config::EngineConfig;
use ike::crypto::ring::PROVIDER;
use ike::io::{Command, Grant};
use ike::snapshot::Snapshot;
use ike::wire::{Identification, TrafficSelector};
use ike::{ChildView, IkeSaView, Input, SaState};

use super::runner::{PORTS, Runner, now};
use crate::lab::Lab;
use crate::lab::charon::{Charon, Options};
use crate::lab::gateway::ID;
use crate::lab::pkitool::{Authority, P256};
use crate::lab::swanctl::Connection;
use crate::lab::world::{GATEWAY, PRIVATE_NET, Shape, World};
use crate::real::{Identity, Party, any_grant, config, p256_key, p256_request};

/// For anything that takes a few messages.
const SOON: Duration = Duration::from_secs(20);
/// Liveness checks of each side that the snapshot does not know of, at least.
const UNKNOWN: usize = 2;
/// How much silence of strongSwan's we bear, more or less than it bears of ours, which is a second.
const OFTEN: Duration = Duration::from_millis(200);
const RARELY: Duration = Duration::from_secs(60);
/// With a cipher whose IVs strongSwan counts by message ids (AES-GCM), it fails to write the answer,
/// whose id is 0, and gives up the SA.
const SUITE: &str = "aes256-sha256-x25519";

/// The gateway is an engine with real cryptography; its snapshot is taken when its client has just
/// connected, and used after both sides have gone on.
pub(super) fn run(lab: &Lab) -> Result<()> {
    let world = World::new(lab, Shape::default())?;
    let authority = Authority::new(&lab.path("ca"), "Lab CA", P256)?;
    let charon = client(&world, &authority)?;
    let identity = identity(lab, &authority)?;
    let mut engine = world.gateway.enter(|| Restarting::listen(identity))??;
    charon.swanctl(&["--initiate", "--timeout", "-1", "--child", "net"])?;
    engine.until(lab, "a tunnel", |engine| Ok(engine.child().is_ok() && settled(&charon)?))?;
    let (before, child) = engine.child()?;
    agree(&charon, &before, &child)?;
    let old = engine.snapshot()?;
    let (next_request, next_expected) = (old.next_request, old.next_expected);

    lab.step("both sides ask whether the other lives");
    let from = charon.log().len();
    let count = |what: &str| charon.log().get(from..).unwrap_or_default().matches(what).count();
    engine.until(lab, "our liveness checks", |_| {
        Ok(count("parsed INFORMATIONAL request") >= UNKNOWN)
    })?;
    // strongSwan asks only when it hears nothing from us.
    engine.silence(RARELY)?;
    engine.until(lab, "strongSwan's liveness checks", |_| {
        Ok(count("parsed INFORMATIONAL response") >= UNKNOWN)
    })?;

    lab.step("the engine is made anew from what it was when it had connected");
    let from = charon.log().len();
    let said = |text: &str| charon.log().get(from..).is_some_and(|log| log.contains(text));
    engine.restart(old)?;
    engine.until(lab, "the synchronisation", |_| {
        Ok(said("parsed INFORMATIONAL request 0 [ N(MSG_ID_SYN) ]")
            && said("generating INFORMATIONAL response 0 [ N(MSG_ID_SYN) ]"))
    })?;
    // The snapshot expects an earlier id than strongSwan's next liveness check has.
    // One answer of before may still have been on its way.
    engine.until(lab, "answers to strongSwan's next checks", |_| {
        let log = charon.log();
        let new = log.get(from..).unwrap_or_default();
        Ok(new.matches("parsed INFORMATIONAL response").count() > 1)
    })?;
    if said(&format!("parsed INFORMATIONAL response {next_expected} ")) {
        bail!("strongSwan began at {next_expected} again\n{}", lab.tails());
    }
    let (after, same) = engine.child()?;
    if after.spis != before.spis || spis(&same) != spis(&child) {
        bail!("other SAs after the restart: {before:?}, {after:?}");
    }
    agree(&charon, &after, &same)?;

    lab.step("we rekey the child, strongSwan the IKE SA");
    engine.tell(Command::RekeyChild(child.id))?;
    engine.until(lab, "the new child at both ends", |engine| {
        let new = engine.child().is_ok_and(|(_, new)| spis(&new) != spis(&child));
        Ok(new && said("parsed CREATE_CHILD_SA request") && settled(&charon)?)
    })?;
    if (0..=next_request + 16).any(|id| said(&format!("parsed CREATE_CHILD_SA request {id} "))) {
        bail!("the rekey has an id that may have been used\n{}", lab.tails());
    }
    charon.swanctl(&["--rekey", "--ike", "net"])?;
    engine.until(lab, "the new IKE SA at both ends", |engine| {
        let new = engine.child().is_ok_and(|(new, _)| new.spis != before.spis);
        Ok(new && settled(&charon)?)
    })?;
    let (sa, child) = engine.child()?;
    agree(&charon, &sa, &child)?;
    engine.tell(Command::Shutdown)?;
    engine.until(lab, "strongSwan to have no SA", |_| Ok(charon.sas()?.trim().is_empty()))
}

/// strongSwan as the client, which asks every second whether the gateway lives. It speaks to one
/// port only.
fn client(world: &World, authority: &Authority) -> Result<Charon> {
    let host = world.runner();
    let charon = Charon::start(host, &Options::default())?;
    let name = "runner.example.com";
    let (key, cert) = authority.issue("runner", &format!("CN={name}"), name, P256, &[])?;
    charon.install(&authority.cert, "x509ca/ca.pem")?;
    charon.install(&cert, "x509/host.pem")?;
    charon.install(&key, "private/host.pem")?;
    let extra = [("send_cert", "always"), ("remote_port", "4500"), ("local_port", "4500")];
    let connection = Connection {
        remote_addr: GATEWAY.to_owned(),
        vips: vec!["0.0.0.0".to_owned()],
        local_id: name.to_owned(),
        remote_id: ID.to_owned(),
        remote_ts: PRIVATE_NET.to_owned(),
        ike: SUITE.to_owned(),
        dpd: 1,
        extra: extra.map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec(),
        ..Connection::default()
    };
    charon.load(&[connection], "")?;
    Ok(charon)
}

/// The gateway's key and certificate.
fn identity(lab: &Lab, authority: &Authority) -> Result<Identity> {
    let (signer, public_key) = p256_key()?;
    let request = lab.path("request.der");
    std::fs::write(&request, p256_request(&signer, &public_key)?)?;
    let chain = vec![authority.certify(&request, ID)?];
    Ok(Identity { name: Identification::fqdn(ID), signer: Box::new(signer), chain })
}

/// The private network for one address.
fn grant(number: u64) -> Grant {
    let address = |last| IpAddr::from([10, 77, 0, last]);
    let network = |last| IpAddr::from([10, 20, last, last]);
    Grant {
        addresses: vec![address(7)],
        allowed: vec![TrafficSelector::addresses(network(0), network(255))],
        ..any_grant(number)
    }
}

/// SPIs of a child, ours first.
fn spis(child: &ChildView) -> (u32, u32) {
    (child.spi_in, child.spi_out)
}

/// Whether strongSwan has one IKE SA with one child.
fn settled(charon: &Charon) -> Result<bool> {
    let sas = charon.sas()?;
    Ok(sas.matches("ESTABLISHED").count() == 1 && sas.matches("INSTALLED").count() == 1)
}

/// strongSwan lists these SAs and no others.
fn agree(charon: &Charon, sa: &IkeSaView, child: &ChildView) -> Result<()> {
    let sas = charon.sas()?;
    let (ours, theirs) = sa.spis;
    let ike = [format!("{ours:016x}_i"), format!("{theirs:016x}_r")];
    let halves = [format!("in  {:08x}", child.spi_out), format!("out {:08x}", child.spi_in)];
    if !settled(charon)? || !ike.iter().chain(&halves).all(|text| sas.contains(text.as_str())) {
        bail!("strongSwan has other SAs than {ike:?} and {halves:?}: {sas}");
    }
    Ok(())
}

/// A gateway that can lose all but a snapshot.
struct Restarting {
    runner: Runner,
    config: EngineConfig,
    local: SocketAddr,
    started: Instant,
}

impl Restarting {
    /// A gateway for whoever comes.
    fn listen(identity: Identity) -> Result<Self> {
        let (ike, esp) = (SUITE.parse()?, "aes256gcm16".parse()?);
        let mut config = config(&identity, &[ike], &[esp]);
        config.timers.dpd = OFTEN;
        let (local, started) = (SocketAddr::new(GATEWAY.parse()?, PORTS.1), Instant::now());
        let (signer, seed) = (identity.signer, [0x31; 32]);
        let mut party = Party::new(config.clone(), &PROVIDER, signer, grant, seed, now(started))?;
        // Then it keeps what the engine wants stored.
        party.meter.on = true;
        Ok(Self { runner: Runner::at(party, local)?, config, local, started })
    }

    /// The only IKE SA and its only child.
    fn child(&self) -> Result<(IkeSaView, ChildView)> {
        let sas = self.runner.party.engine.sas();
        let sas: Vec<IkeSaView> = sas.filter(|sa| sa.state == SaState::Established).collect();
        match sas.as_slice() {
            [sa] if sa.children.len() == 1 => Ok((sa.clone(), sa.children[0].clone())),
            _ => bail!("expected one IKE SA with one child: {sas:?}"),
        }
    }

    /// What the engine wanted stored last.
    fn snapshot(&self) -> Result<Snapshot> {
        let last = self.runner.party.stored.last().and_then(|last| last.snapshot.as_deref());
        let last = last.context("nothing was stored")?.clone();
        if last.children.len() != 1 {
            bail!("the snapshot has {} children", last.children.len());
        }
        Ok(last)
    }

    /// Forgets everything but the snapshot.
    fn restart(&mut self, snapshot: Snapshot) -> Result<()> {
        let (config, seed) = (self.config.clone(), [0x32; 32]);
        self.runner.party.restart(config, seed, now(self.started), [snapshot])?;
        self.runner.give(self.started, Input::Timeout)
    }

    /// Bears this much silence of the peer before it asks.
    fn silence(&mut self, silence: Duration) -> Result<()> {
        self.config.timers.dpd = silence;
        self.tell(Command::Reconfigure(Box::new(self.config.clone())))
    }

    fn tell(&mut self, command: Command) -> Result<()> {
        self.runner.give(self.started, Input::Command(command))
    }

    /// Works until something holds.
    fn until(
        &mut self,
        lab: &Lab,
        what: &str,
        mut holds: impl FnMut(&Self) -> Result<bool>,
    ) -> Result<()> {
        let by = Instant::now() + SOON;
        while !holds(self)? {
            if Instant::now() > by {
                bail!("waited {SOON:?} for {what}\n{}", lab.tails());
            }
            self.runner.work(self.started, self.local, true)?;
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}
