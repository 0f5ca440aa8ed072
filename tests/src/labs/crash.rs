//! Kills the gateway at every failpoint, starts it again, and compares everything it had
//! acknowledged: tokens, certificates, releases, revocations, the CA itself.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::scene::{Scene, install};
use crate::lab::charon::{Charon, Options};
use crate::lab::gateway::{Build, Gateway, Settings, same_serial};
use crate::lab::host::Host;
use crate::lab::pkitool::{self, Est, P256};
use crate::lab::world::{Shape, World};
use crate::lab::{Lab, cmd};

/// Exit code of a process that aborted (SIGABRT).
const ABORTED: i32 = 128 + 6;

/// What the gateway has acknowledged and must therefore still know.
#[derive(Default, Clone)]
struct Promised {
    root: String,
    tokens: Vec<String>,
    serials: Vec<String>,
    released: Vec<String>,
    revoked: Vec<String>,
}

/// Visits every failpoint.
pub(super) fn run(lab: &Lab) -> Result<()> {
    let settings = Settings { build: Build::Failpoints, ..Settings::default() };
    let world = World::new(lab, Shape::default())?;
    let program = Build::Failpoints.path()?.display().to_string();
    let text = cmd::run(&program, &["debug", "failpoints"])?;
    let names: Vec<&str> = text.lines().map(str::trim).filter(|name| !name.is_empty()).collect();
    if names.len() < 5 {
        bail!("only {} failpoints: {names:?}", names.len());
    }
    // One healthy state with something of every kind in it; each failpoint gets a copy.
    let gateway = Gateway::start(&world.gateway, &settings)?;
    let mut scene = Scene::around(world, gateway)?;
    let mut promised =
        Promised { root: scene.gateway.told(&["ca", "root"])?, ..Promised::default() };
    for name in ["kept", "released", "revoked", "to-release", "to-revoke"] {
        let host = scene.world.runner().clone();
        let made = scene.enrol(&host, name, P256)?;
        promised.serials.push(made.serial.clone());
        match name {
            "released" => release(&scene, &made.serial, &mut promised)?,
            "revoked" => revoke(&scene, &made.serial, &mut promised)?,
            _ => {}
        }
    }
    scene.gateway.stop()?;
    let healthy = lab.path("healthy");
    copy(&scene.gateway.state(), &healthy)?;

    let mut unvisited = BTreeSet::new();
    for name in names {
        if !visit(&mut scene, name, &healthy, &promised)? {
            unvisited.insert(name.to_owned());
        }
    }
    if !unvisited.is_empty() {
        bail!("no scenario reaches these failpoints: {unvisited:?}");
    }
    Ok(())
}

/// Dies at `name` in whatever scenario reaches it; false when none does.
fn visit(scene: &mut Scene, name: &str, healthy: &Path, promised: &Promised) -> Result<bool> {
    let mut known = promised.clone();
    // A first start: nothing exists yet.
    wipe(&scene.gateway)?;
    if dies_at_start(scene, name)? {
        scene.gateway.up(&[])?;
        let root = scene.gateway.told(&["ca", "root"])?;
        scene.lab.step(&format!("{name}: at first start"));
        let again = {
            scene.gateway.kill()?;
            scene.gateway.up(&[])?;
            scene.gateway.told(&["ca", "root"])?
        };
        if root != again {
            bail!("{name}: the root changed between two starts after a crash");
        }
        scene.gateway.stop()?;
        return Ok(true);
    }
    scene.gateway.kill()?;
    // A start with state, then every operation.
    wipe(&scene.gateway)?;
    copy(healthy, &scene.gateway.state())?;
    let died = if dies_at_start(scene, name)? {
        "at a start with state"
    } else {
        match operate(scene, &mut known)? {
            Some(during) => during,
            None => {
                scene.gateway.kill()?;
                return Ok(false);
            }
        }
    };
    scene.gateway.up(&[]).with_context(|| format!("{name}: start after the crash"))?;
    compare(scene, &known).with_context(|| format!("{name}, {died}"))?;
    retry(scene, &known).with_context(|| format!("{name}, {died}: retry"))?;
    scene.lab.step(&format!("{name}: {died}"));
    scene.gateway.kill()?;
    Ok(true)
}

/// Starts with the failpoint armed; true when it died before it answered.
fn dies_at_start(scene: &mut Scene, name: &str) -> Result<bool> {
    scene.gateway.launch(&[("RUNNEL_FAILPOINT", name)])?;
    let lab = scene.lab.clone();
    crate::lab::wait::until(&lab, "start or death", Duration::from_secs(20), || {
        if let Some(code) = scene.gateway.process()?.ended()? {
            if code != ABORTED {
                bail!("{name}: ended with code {code} instead of dying\n{}", lab.tails());
            }
            return Ok(Some(true));
        }
        Ok(scene.gateway.cli(&["status", "-o", "json"])?.ok().then_some(false))
    })
}

/// Does one thing after another until the process dies; what was acknowledged goes to `known`.
fn operate(scene: &mut Scene, known: &mut Promised) -> Result<Option<&'static str>> {
    let host = scene.world.runner().clone();
    let dir = host.dir()?.join("crash");
    fs::create_dir_all(&dir)?;

    let made = scene.gateway.json(&["token", "create", "--role", "builder"]);
    if let Ok(made) = &made {
        known.tokens.push(made["token"].as_str().unwrap_or_default().to_owned());
    }
    if died(scene)? {
        return Ok(Some("token create"));
    }
    made?;

    // A key of its own, so that the retry after the crash is recognisable.
    let key = dir.join("key.pem");
    pkitool::generate(P256, &key)?;
    let request = dir.join("req.der");
    pkitool::request(&key, "CN=ci", &request)?;
    let token = known.tokens.last().cloned().context("no token")?;
    let est = est(scene)?;
    let said = est.enrol(&host, &request, &format!("builder:{token}"))?;
    let cert = dir.join("cert.pem");
    if said.ok() {
        fs::write(&cert, &said.out)?;
        known.serials.push(pkitool::serial(&cert)?);
    }
    if died(scene)? {
        return Ok(Some("enrolment"));
    }
    if !said.ok() {
        bail!("enrolment failed without a crash: {}\n{}", said.all(), scene.lab.tails());
    }

    if connect(scene, &host, &dir)? {
        return Ok(Some("connect"));
    }
    let (to_release, to_revoke) = (known.serials[3].clone(), known.serials[4].clone());
    let result = release(scene, &to_release, known);
    if died(scene)? {
        return Ok(Some("release"));
    }
    result?;
    let result = revoke(scene, &to_revoke, known);
    if died(scene)? {
        return Ok(Some("revoke"));
    }
    result?;
    // A clean stop is the last thing that can reach a failpoint.
    let code = scene.gateway.stop()?;
    Ok((code == ABORTED).then_some("stop"))
}

/// Connects with the certificate in `dir`; true when the gateway died of it.
fn connect(scene: &mut Scene, host: &Host, dir: &Path) -> Result<bool> {
    let chain = host.dir()?.join("kept").join("ca.pem");
    let mut files = vec![chain.clone()];
    let second = chain.with_file_name("ca-1.pem");
    if second.exists() {
        files.push(second);
    }
    let cert = dir.join("cert.pem");
    let credentials = super::scene::Credentials {
        key: dir.join("key.pem"),
        request: dir.join("req.der"),
        subject: pkitool::subject(&cert)?,
        serial: pkitool::serial(&cert)?,
        cert,
        chain: files,
        token: String::new(),
    };
    let options = Options { retransmit_timeout: 0.2, retransmit_tries: 2, ..Options::default() };
    let mut charon = Charon::start(host, &options)?;
    install(&charon, &credentials)?;
    charon.load(&[scene.connection(&credentials)], "")?;
    let said = charon.try_initiate("net")?;
    let dead = died(scene)?;
    if !dead && !said.ok() {
        bail!("cannot connect although nothing crashed: {}\n{}", said.all(), scene.lab.tails());
    }
    if !dead {
        charon.terminate("net")?;
    }
    charon.stop()?;
    Ok(dead || died(scene)?)
}

/// Everything acknowledged must still be true.
fn compare(scene: &Scene, known: &Promised) -> Result<()> {
    if scene.gateway.told(&["ca", "root"])? != known.root {
        bail!("the root is another one");
    }
    for serial in &known.serials {
        let lease = scene.gateway.lease(serial)?;
        let state = lease["state"].as_str().unwrap_or_default().to_owned();
        let ended = |list: &[String]| list.iter().any(|other| same_serial(other, serial));
        if ended(&known.released) && state != "released" {
            bail!("the released lease of {serial} is {state}");
        }
        if ended(&known.revoked) && state != "revoked" {
            bail!("the revoked lease of {serial} is {state}");
        }
    }
    let crl = scene.lab.path("crash.crl");
    fs::write(&crl, scene.gateway.told(&["ca", "crl"])?)?;
    let crl = crl.display().to_string();
    let crl = cmd::run("openssl", &["crl", "-noout", "-text", "-in", &crl])?.to_uppercase();
    for serial in &known.revoked {
        if !crl.contains(&serial.trim_start_matches('0').to_uppercase()) {
            bail!("the CRL has lost {serial}");
        }
    }
    let status = scene.gateway.json(&["status"])?;
    if status["sas_without_lease"] != 0 {
        bail!("there are SAs without a live lease: {status}");
    }
    Ok(())
}

/// The client tries again, as it would: the token opens exactly one lease, whatever happened.
fn retry(scene: &Scene, known: &Promised) -> Result<()> {
    let host = scene.world.runner();
    let dir = host.dir()?.join("crash");
    let Some(token) = known.tokens.last() else { return Ok(()) };
    let request = dir.join("req.der");
    if !request.exists() {
        return Ok(());
    }
    let before: Vec<String> = known.serials.clone();
    let est = est(scene)?;
    let said = est.enrol(host, &request, &format!("builder:{token}"))?;
    if !said.ok() {
        bail!(
            "same token and same key are refused after a crash: {}\n{}",
            said.all(),
            scene.lab.tails()
        );
    }
    let cert = dir.join("retry.pem");
    fs::write(&cert, &said.out)?;
    let serial = pkitool::serial(&cert)?;
    let enrolled_before_crash = before.len() > 5;
    if enrolled_before_crash && !before.last().is_some_and(|last| same_serial(last, &serial)) {
        bail!("an acknowledged enrolment was answered with another certificate on retry");
    }
    let other = dir.join("other.pem");
    let other_request = dir.join("other.der");
    pkitool::generate(P256, &other)?;
    pkitool::request(&other, "CN=ci", &other_request)?;
    let stolen = est.enrol(host, &other_request, &format!("builder:{token}"))?;
    if stolen.ok() {
        bail!("a spent token opened a second lease after a crash");
    }
    let all = scene.gateway.json(&["lease", "list", "--all"])?;
    if all.as_array().map(Vec::len) != Some(6) {
        bail!("five leases and one more were expected: {all}");
    }
    Ok(())
}

fn release(scene: &Scene, serial: &str, known: &mut Promised) -> Result<()> {
    let lease = scene.gateway.lease(serial)?;
    let id = lease["id"].as_str().context("a lease without id")?;
    scene.gateway.told(&["lease", "release", id])?;
    known.released.push(serial.to_owned());
    Ok(())
}

fn revoke(scene: &Scene, serial: &str, known: &mut Promised) -> Result<()> {
    scene.gateway.told(&["cert", "revoke", serial])?;
    known.revoked.push(serial.to_owned());
    Ok(())
}

/// The enrolment server without asking the gateway, which may be dead.
fn est(scene: &Scene) -> Result<Est> {
    Ok(Est {
        url: format!("https://{}:8443", crate::lab::gateway::ID),
        root: scene.lab.path("root.pem"),
        hosts: scene.lab.path("hosts"),
    })
}

/// A death is visible a moment after the command that caused it has failed.
fn died(scene: &mut Scene) -> Result<bool> {
    for _ in 0..10 {
        if let Some(code) = scene.gateway.process()?.ended()? {
            if code != ABORTED {
                bail!("runnel ended with code {code}\n{}", scene.lab.tails());
            }
            return Ok(true);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(false)
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
