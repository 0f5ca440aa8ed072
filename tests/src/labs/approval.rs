//! Leases that wait for an operator, asked for by a stock client that polls (RFC 7030 4.2.3).

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::scene::{Credentials, Scene};
use crate::lab::gateway::Settings;
use crate::lab::host::Host;
use crate::lab::pkitool::{self, Est, P256};
use crate::lab::process::Process;
use crate::lab::world::{STORE, Shape};
use crate::lab::{Lab, wait};

/// Enough for a request, and for what is told to wait ten seconds.
const SOON: Duration = Duration::from_secs(60);

/// A client in the background.
struct Polling {
    process: Process,
    dir: PathBuf,
    token: String,
}

pub(super) fn run(lab: &Lab) -> Result<()> {
    let role = format!(
        "[[role]]\nname = \"watched\"\npool = \"runners\"\nallow = [\"{STORE}\"]\n\
         approval = \"manual\"\n"
    );
    let settings = Settings { more: role, ..Settings::default() };
    let mut scene = Scene::new(lab, Shape::default(), &settings)?;
    let host = scene.world.runner().clone();
    let est = scene.est()?;

    lab.step("stock pki asks, is told to wait, and polls");
    let mut polling = Polling::start(&scene, &host, &est, "approved")?;
    let id = waiting(&scene)?;
    if polling.process.ended()?.is_some() {
        bail!("the client did not wait: {}", polling.process.log());
    }

    lab.step("the gateway is killed meanwhile; the operator approves after its start");
    scene.gateway.kill()?;
    scene.gateway.up(&[])?;
    if waiting(&scene)? != id {
        bail!("another lease waits after the restart");
    }
    scene.gateway.told(&["lease", "approve", &id])?;
    let code = polling.process.wait(lab, SOON)?;
    if code != 0 {
        bail!("pki --est ended with {code}: {}\n{}", polling.process.log(), lab.tails());
    }
    let credentials = polling.credentials(&est, &host)?;
    let lease = scene.gateway.lease(&credentials.serial)?;
    if lease["id"] != *id || lease["role"] != "watched" {
        bail!("the client got another lease than was approved: {lease}");
    }
    let charon = scene.runner(&host, &credentials, |_| {})?;
    charon.initiate("net")?;
    scene.agree(&charon)?;
    scene.download(&host, 10_000)?;

    lab.step("another is denied: the client gives up, and the token stays with it");
    let mut polling = Polling::start(&scene, &host, &est, "denied")?;
    let id = waiting(&scene)?;
    let preview = scene.gateway.json(&["revoke", "--role", "watched", "--dry-run"])?;
    let listed = preview.as_array().into_iter().flatten().any(|lease| lease["id"] == *id);
    if !listed || preview.as_array().map(Vec::len) != Some(2) {
        bail!("a revocation would deny what waits, and says so: {preview}");
    }
    scene.gateway.told(&["lease", "deny", &id, "--reason", "not this one"])?;
    if polling.process.wait(lab, SOON)? == 0 {
        bail!("a denied client got a certificate");
    }
    if !polling.process.log().contains("HTTP 403") {
        bail!("the client was not told: {}", polling.process.log());
    }
    let all = scene.gateway.json(&["lease", "list", "--all"])?;
    if all.as_array().map(Vec::len) != Some(1) {
        bail!("one approval must leave one lease: {all}");
    }
    drop(charon);
    scene.finish()
}

/// The id of the only lease that waits.
fn waiting(scene: &Scene) -> Result<String> {
    wait::until(&scene.lab, "a lease that waits", SOON, || {
        let all = scene.gateway.json(&["lease", "pending"])?;
        let list = all.as_array().context("the pending leases are no list")?;
        let mut open = list.iter().filter(|lease| lease["state"] == "pending");
        let id = open.next().and_then(|lease| lease["id"].as_str()).map(str::to_owned);
        Ok(id.filter(|_| open.next().is_none()))
    })
}

impl Polling {
    fn start(scene: &Scene, host: &Host, est: &Est, name: &str) -> Result<Self> {
        let dir = host.dir()?.join(name);
        fs::create_dir_all(&dir)?;
        let text = |path: &Path| path.display().to_string();
        let (key, request) = (dir.join("key.pem"), dir.join("req.der"));
        pkitool::generate(P256, &key)?;
        pkitool::request(&key, "CN=ci", &request)?;
        let made = scene.gateway.json(&["token", "create", "--role", "watched"])?;
        let token = made["token"].as_str().context("no token in the answer")?.to_owned();
        let mut command = pkitool::with_hosts(host, &est.hosts);
        let script = format!("exec \"$@\" > {}", text(&dir.join("cert.pem")));
        command.args(["sh", "-c", &script, "sh", "pki", "--est", "--url", &est.url]);
        command.args(["--cacert", &text(&est.root), "--in", &text(&request)]);
        command.args(["--userpass", &format!("watched:{token}"), "--outform", "pem"]);
        command.args(["--interval", "3", "--maxpolltime", "120"]);
        let process = Process::start(&scene.lab, name, command, &dir.join("pki.log"))?;
        Ok(Self { process, dir, token })
    }

    /// What the client has now.
    fn credentials(self, est: &Est, host: &Host) -> Result<Credentials> {
        let file = |name: &str| self.dir.join(name);
        let chain = est.ca_certs(host, &file("ca.pem"))?;
        let cert = file("cert.pem");
        let (subject, serial) = (pkitool::subject(&cert)?, pkitool::serial(&cert)?);
        let (key, request) = (file("key.pem"), file("req.der"));
        Ok(Credentials { key, request, cert, chain, subject, serial, token: self.token })
    }
}
