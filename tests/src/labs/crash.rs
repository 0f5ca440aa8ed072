//! Kills the gateway at every failpoint, starts it again, and compares everything it had
//! acknowledged: the CA, tokens, certificates, renewals, releases, revocations.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::scene::{Credentials, Scene, install};
use crate::lab::charon::{Charon, Options};
use crate::lab::gateway::{Build, Gateway, ID, Settings, same_serial};
use crate::lab::pkitool::{self, Est, P256};
use crate::lab::world::{Shape, World};
use crate::lab::{Lab, cmd, wait};

/// Exit code of a process that aborted (SIGABRT).
const ABORTED: i32 = 128 + 6;

/// Failpoints that this scenario does not reach: the passing of hours does, or an operator who
/// approves a lease (the lab `approval` kills the gateway meanwhile). `pki`'s own crash test, which
/// owns the clock and both sides, visits them.
const ELSEWHERE: &[&str] = &[
    "expire.before_commit",
    "expire.after_commit",
    "pending.before_commit",
    "pending.after_commit",
    "approve.before_commit",
    "approve.after_commit",
];

/// Places that every operation passes: they are visited at several of its passes.
const OFTEN: &[&str] = &["store.before_commit", "store.after_commit", "audit.after_write"];

/// How many passes of those.
const PASSES: u32 = 8;

/// How long a process that aborted may take to be gone.
const DEATH_LIMIT: Duration = Duration::from_secs(45);

/// A look at a process that probably lives.
const GLANCE: Duration = Duration::from_millis(100);

/// What the gateway has acknowledged and must therefore still know.
#[derive(Default, Clone)]
struct Promised {
    root: String,
    /// Lease ids with their certificate's serial; `kept`, `released`, `revoked`, `to-release`,
    /// `to-revoke`, and what the crashing run added.
    leases: Vec<(String, String)>,
    released: Vec<String>,
    revoked: Vec<String>,
    revoked_serials: Vec<String>,
    /// A token that was acknowledged, and the serial it brought if that was too.
    token: Option<String>,
    enrolled: Option<String>,
    /// The CA that issues since a rotation.
    issuing: Option<String>,
}

/// Visits every failpoint.
pub(super) fn run(lab: &Lab) -> Result<()> {
    let settings = Settings {
        build: Build::Failpoints,
        ike: "dpd = \"1s\"".to_owned(),
        ..Settings::default()
    };
    let world = World::new(lab, Shape::default())?;
    let program = Build::Failpoints.path()?.display().to_string();
    let text = cmd::run(&program, &["debug", "failpoints"])?;
    let names: Vec<&str> = text.lines().map(str::trim).filter(|name| !name.is_empty()).collect();
    if names.len() < 20 {
        bail!("only {} failpoints: {names:?}", names.len());
    }
    let gateway = Gateway::start(&world.gateway, &settings)?;
    let mut crasher =
        Crasher { scene: Scene::around(world, gateway)?, healthy: lab.path("healthy") };
    let promised = crasher.prepare()?;
    let mut unvisited = Vec::new();
    for name in names {
        if ELSEWHERE.contains(&name) {
            continue;
        }
        if !crasher.visit(name, &promised)? {
            unvisited.push(name.to_owned());
        }
        if OFTEN.contains(&name) {
            for pass in 2..=PASSES {
                crasher.visit(&format!("{name}:{pass}"), &promised)?;
            }
        }
    }
    if !unvisited.is_empty() {
        bail!("no scenario reaches these failpoints: {unvisited:?}");
    }
    Ok(())
}

struct Crasher {
    scene: Scene,
    healthy: PathBuf,
}

impl Crasher {
    /// Makes one healthy state with something of every kind in it; each failpoint gets a copy.
    fn prepare(&mut self) -> Result<Promised> {
        let root = self.scene.gateway.told(&["ca", "root"])?;
        let mut promised = Promised { root, ..Promised::default() };
        for name in ["kept", "released", "revoked", "to-release", "to-revoke"] {
            let host = self.scene.world.runner().clone();
            let made = self.scene.enrol(&host, name, P256)?;
            let lease = self.scene.gateway.lease(&made.serial)?;
            let id = lease["id"].as_str().context("a lease without id")?.to_owned();
            promised.leases.push((id.clone(), made.serial.clone()));
            match name {
                "released" => self.release(&id, &mut promised)?,
                "revoked" => self.revoke(&id, &made.serial, &mut promised)?,
                _ => {}
            }
        }
        self.scene.gateway.stop()?;
        copy(&self.scene.gateway.state(), &self.healthy)?;
        Ok(promised)
    }

    /// Dies at `name` in whatever scenario reaches it; false when none does.
    fn visit(&mut self, name: &str, promised: &Promised) -> Result<bool> {
        // A first start: nothing exists yet.
        wipe(&self.scene.gateway)?;
        if self.dies_at_start(name)? {
            self.first_start(name)?;
            return Ok(true);
        }
        self.scene.gateway.kill()?;
        // A start with state, then every operation.
        let mut known = promised.clone();
        wipe(&self.scene.gateway)?;
        copy(&self.healthy, &self.scene.gateway.state())?;
        let died = if self.dies_at_start(name)? {
            "at a start with state"
        } else {
            match self.operate(&mut known).with_context(|| format!("{name} armed"))? {
                Some(during) => during,
                None => {
                    self.scene.gateway.kill()?;
                    return Ok(false);
                }
            }
        };
        let context = || format!("{name}, died {died}");
        self.scene.gateway.up(&[]).with_context(context)?;
        self.compare(&known).with_context(context)?;
        self.retry(&known).with_context(context)?;
        self.scene.lab.step(&format!("{name}: {died}"));
        self.scene.gateway.kill()?;
        Ok(true)
    }

    /// After a death during the first start: the next one succeeds, and its CA stays.
    fn first_start(&mut self, name: &str) -> Result<()> {
        let context = || format!("{name}, died at the first start");
        self.scene.gateway.up(&[]).with_context(context)?;
        let root = self.scene.gateway.told(&["ca", "root"])?;
        self.scene.gateway.kill()?;
        self.scene.gateway.up(&[]).with_context(context)?;
        if self.scene.gateway.told(&["ca", "root"])? != root {
            bail!("{name}: the root changed between two starts after a crash");
        }
        self.scene.lab.step(&format!("{name}: at the first start"));
        self.scene.gateway.kill()
    }

    /// Starts with the failpoint armed; true when it died before it answered.
    fn dies_at_start(&mut self, name: &str) -> Result<bool> {
        let gateway = &mut self.scene.gateway;
        gateway.launch(&[("RUNNEL_FAILPOINT", name)])?;
        let lab = self.scene.lab.clone();
        wait::until(&lab, "start or death", Duration::from_secs(20), || {
            if let Some(code) = gateway.process()?.ended()? {
                if code != ABORTED {
                    bail!("{name}: ended with code {code} instead of dying\n{}", lab.tails());
                }
                return Ok(Some(true));
            }
            Ok(gateway.cli(&["status", "-o", "json"])?.ok().then_some(false))
        })
    }

    /// Does one thing after another until the process dies; what was acknowledged goes to
    /// `known`.
    fn operate(&mut self, known: &mut Promised) -> Result<Option<&'static str>> {
        let made = self.scene.gateway.json(&["token", "create", "--role", "builder"]);
        if let Ok(made) = &made {
            known.token = made["token"].as_str().map(str::to_owned);
        }
        if self.died(made.is_err())? {
            return Ok(Some("in token create"));
        }
        made?;
        if self.enrol(known)? {
            return Ok(Some("in enrolment"));
        }
        if self.renew(known)? {
            return Ok(Some("in renewal"));
        }
        if self.connect()? {
            return Ok(Some("in connect or disconnect"));
        }
        let (id, _) = known.leases[3].clone();
        let outcome = self.release(&id, known);
        if self.died(outcome.is_err())? {
            return Ok(Some("in release"));
        }
        outcome?;
        let (id, serial) = known.leases[4].clone();
        let outcome = self.revoke(&id, &serial, known);
        if self.died(outcome.is_err())? {
            return Ok(Some("in revoke"));
        }
        outcome?;
        let rotated = self.scene.gateway.json(&["ca", "rotate"]);
        if let Ok(rotated) = &rotated {
            known.issuing = rotated["issuing"].as_str().map(str::to_owned);
        }
        if self.died(rotated.is_err())? {
            return Ok(Some("in rotation"));
        }
        rotated?;
        // A clean stop is the last thing that can reach a failpoint.
        let code = self.scene.gateway.stop()?;
        Ok((code == ABORTED).then_some("in stop"))
    }

    /// Enrols a new key with the token; true when the gateway died of it.
    fn enrol(&mut self, known: &mut Promised) -> Result<bool> {
        let dir = self.folder()?;
        pkitool::generate(P256, &dir.join("key.pem"))?;
        pkitool::request(&dir.join("key.pem"), "CN=ci", &dir.join("req.der"))?;
        let token = known.token.clone().context("no token")?;
        let host = self.scene.world.runner().clone();
        let said = self.est().enrol(&host, &dir.join("req.der"), &format!("builder:{token}"))?;
        if said.ok() {
            let cert = dir.join("cert.pem");
            fs::write(&cert, &said.out)?;
            known.enrolled = Some(pkitool::serial(&cert)?);
        }
        let dead = self.died(!said.ok())?;
        if !dead && !said.ok() {
            bail!("enrolment failed without a crash: {}\n{}", said.all(), self.scene.lab.tails());
        }
        Ok(dead)
    }

    /// Renews the certificate of `kept`; true when the gateway died of it.
    fn renew(&mut self, known: &mut Promised) -> Result<bool> {
        let host = self.scene.world.runner().clone();
        let kept = host.dir()?.join("kept");
        let said = self.est().renew(
            &host,
            &kept.join("req.der"),
            &kept.join("cert.pem"),
            &kept.join("key.pem"),
        )?;
        if said.ok() {
            let cert = kept.join("renewed.pem");
            fs::write(&cert, &said.out)?;
            known.leases[0].1 = pkitool::serial(&cert)?;
        }
        let dead = self.died(!said.ok())?;
        if !dead && !said.ok() {
            bail!("renewal failed without a crash: {}\n{}", said.all(), self.scene.lab.tails());
        }
        if dead && !said.ok() {
            // Not acknowledged: either serial is right.
            known.leases[0].1.clear();
        }
        Ok(dead)
    }

    /// Connects with the fresh certificate, then vanishes; true when the gateway died of it.
    fn connect(&mut self) -> Result<bool> {
        let host = self.scene.world.runner().clone();
        let dir = self.folder()?;
        let chain = host.dir()?.join("kept").join("ca.pem");
        let more = chain.with_file_name("ca-1.pem");
        let cert = dir.join("cert.pem");
        let credentials = Credentials {
            key: dir.join("key.pem"),
            request: dir.join("req.der"),
            subject: pkitool::subject(&cert)?,
            serial: pkitool::serial(&cert)?,
            cert,
            chain: [chain, more].into_iter().filter(|file| file.exists()).collect(),
            token: String::new(),
        };
        let mut charon = Charon::start(&host, &Options::default())?;
        install(&charon, &credentials)?;
        charon.load(&[self.scene.connection(&credentials)], "")?;
        let said = charon.try_initiate("net")?;
        let mut dead = self.died(!said.ok())?;
        if !dead && !said.ok() {
            bail!("cannot connect without a crash: {}\n{}", said.all(), self.scene.lab.tails());
        }
        if !dead {
            // The SA ends by the client's DELETE: its lease is lost, which is written too.
            let ended = charon.terminate("net");
            dead = self.died(ended.is_err())?;
            if !dead {
                ended?;
            }
        }
        charon.stop()?;
        Ok(dead)
    }

    /// Everything acknowledged must still be true.
    fn compare(&self, known: &Promised) -> Result<()> {
        let gateway = &self.scene.gateway;
        if gateway.told(&["ca", "root"])? != known.root {
            bail!("the root is another one");
        }
        for (id, serial) in &known.leases {
            let lease = gateway.json(&["lease", "show", id])?;
            if !serial.is_empty()
                && !same_serial(serial, lease["serial"].as_str().unwrap_or_default())
            {
                bail!("lease {id} forgot its certificate {serial}: {lease}");
            }
            if known.released.contains(id) && lease["state"] != "released" {
                bail!("the released lease {id} is {}", lease["state"]);
            }
            if known.revoked.contains(id) && lease["state"] != "revoked" {
                bail!("the revoked lease {id} is {}", lease["state"]);
            }
        }
        let authorities = gateway.json(&["ca", "status"])?["authorities"].clone();
        let named = |subject: &String| {
            authorities
                .as_array()
                .is_some_and(|all| all.iter().any(|ca| ca["subject"] == **subject))
        };
        if !known.issuing.as_ref().is_none_or(named) {
            bail!("the new issuing CA {:?} is gone: {authorities}", known.issuing);
        }
        // The first issuing CA issued them all, whoever issues now.
        let file = self.scene.lab.path("crash.crl");
        fs::write(&file, gateway.told(&["ca", "crl", "--of", "issuing"])?)?;
        let file = file.display().to_string();
        let crl = cmd::run("openssl", &["crl", "-noout", "-text", "-in", &file])?.to_uppercase();
        for serial in &known.revoked_serials {
            if !crl.contains(&serial.trim_start_matches('0').to_uppercase()) {
                bail!("the CRL has lost {serial}");
            }
        }
        let status = gateway.json(&["status"])?;
        if status["sas_without_lease"] != 0 {
            bail!("there are SAs without a live lease: {status}");
        }
        Ok(())
    }

    /// The client tries again, as it would: an acknowledged token opens exactly one lease.
    fn retry(&self, known: &Promised) -> Result<()> {
        let Some(token) = &known.token else { return Ok(()) };
        let userpass = format!("builder:{token}");
        let host = self.scene.world.runner();
        let dir = self.folder()?;
        let request = dir.join("req.der");
        let said = self.est().enrol(host, &request, &userpass)?;
        if !said.ok() {
            bail!(
                "same token, same key: refused after a crash: {}\n{}",
                said.all(),
                self.scene.lab.tails()
            );
        }
        fs::write(dir.join("retry.pem"), &said.out)?;
        let serial = pkitool::serial(&dir.join("retry.pem"))?;
        if known.enrolled.as_ref().is_some_and(|before| !same_serial(before, &serial)) {
            bail!("an acknowledged enrolment was answered with another certificate on retry");
        }
        pkitool::generate(P256, &dir.join("other.pem"))?;
        pkitool::request(&dir.join("other.pem"), "CN=ci", &dir.join("other.der"))?;
        if self.est().enrol(host, &dir.join("other.der"), &userpass)?.ok() {
            bail!("a spent token opened a second lease after a crash");
        }
        let all = self.scene.gateway.json(&["lease", "list", "--all"])?;
        if all.as_array().map(Vec::len) != Some(known.leases.len() + 1) {
            bail!("{} leases and one more were expected: {all}", known.leases.len());
        }
        Ok(())
    }

    fn release(&self, id: &str, known: &mut Promised) -> Result<()> {
        self.scene.gateway.told(&["lease", "release", id])?;
        known.released.push(id.to_owned());
        Ok(())
    }

    fn revoke(&self, id: &str, serial: &str, known: &mut Promised) -> Result<()> {
        self.scene.gateway.told(&["cert", "revoke", serial])?;
        known.revoked.push(id.to_owned());
        known.revoked_serials.push(serial.to_owned());
        Ok(())
    }

    /// The enrolment server without asking the gateway, which may be dead.
    fn est(&self) -> Est {
        Est {
            url: format!("https://{ID}:8443"),
            root: self.scene.lab.path("root.pem"),
            hosts: self.scene.lab.path("hosts"),
            newer: None,
        }
    }

    fn folder(&self) -> Result<PathBuf> {
        let dir = self.scene.world.runner().dir()?.join("crash");
        fs::create_dir_all(&dir)?;
        Ok(dir)
    }

    /// Whether the gateway is dead. A death is visible a moment after the command that caused it
    /// has `failed`; one that succeeded need not have caused any, and what it did cause is seen at
    /// the next.
    fn died(&mut self, failed: bool) -> Result<bool> {
        let limit = if failed { DEATH_LIMIT } else { GLANCE };
        let started = Instant::now();
        loop {
            if let Some(code) = self.scene.gateway.process()?.ended()? {
                if code != ABORTED {
                    bail!("runnel ended with code {code}\n{}", self.scene.lab.tails());
                }
                return Ok(true);
            }
            if started.elapsed() >= limit {
                return Ok(false);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn wipe(gateway: &Gateway) -> Result<()> {
    let state = gateway.state();
    if state.exists() {
        fs::remove_dir_all(&state)?;
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    cmd::run("cp", &["-a", &from.display().to_string(), &to.display().to_string()])?;
    Ok(())
}
