//! A CI platform's webhook says that the job is over: the job's tunnel ends.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use ring::hmac;
use serde_json::{Value, json};

use super::endings::{background_ping, mark, nothing_behind_the_mark};
use super::oidc::{claims, enrol};
use super::refusals::expect_refusal;
use super::scene::Scene;
use crate::lab::capture::Capture;
use crate::lab::gateway::{Gateway, Settings};
use crate::lab::host::Host;
use crate::lab::pkitool::{self, Est, P256, with_hosts};
use crate::lab::world::{STORE, Shape, World};
use crate::lab::{Lab, cmd, wait};
use crate::oidc::{self, IssuerKey};

/// Another name of the gateway, in a certificate of another CA: platforms do not know ours.
const URL: &str = "https://gw.example.com:8444/v1/hooks/github";
const SECRET: &str = "the secret that the platform was given";

/// A stock client that a CI token let in goes on through deliveries that nobody signed, and ends
/// with the signed one.
pub(super) fn run(lab: &Lab) -> Result<()> {
    let world = World::new(lab, Shape::default())?;
    let key = IssuerKey::rs256("2026-11");
    let dir = world.gateway.dir()?.join("platform");
    let authority = pkitool::Authority::new(&dir, "Public CA", P256)?;
    let (private, cert) = authority.issue("hooks", "CN=hooks", "gw.example.com", P256, &[])?;
    let (keys, old, new) = (dir.join("keys.json"), dir.join("old"), dir.join("new"));
    fs::write(&keys, oidc::jwks(&[&key]))?;
    for (path, secret) in [(&old, "the one before the rotation"), (&new, SECRET)] {
        fs::write(path, secret)?;
        cmd::run("chmod", &["600", &path.display().to_string()])?;
    }
    let more = format!(
        "[[role.match]]\nissuer = \"github\"\nrepository_id = \"123456\"\n\n\
         [[issuer]]\nname = \"github\"\nkind = \"github\"\nissuer = \"https://127.0.0.1:9443\"\n\
         static_jwks = {keys:?}\n\n\
         [hooks]\ncert = {cert:?}\nkey = {private:?}\n\n\
         [[hooks.from]]\nissuer = \"github\"\nsecrets = [{old:?}, {new:?}]\n"
    );
    let gateway = Gateway::start(&world.gateway, &Settings { more, ..Settings::default() })?;
    let scene = Scene::around(world, gateway)?;
    let host = scene.world.runner().clone();
    let est = scene.est()?;

    lab.step("a job enrols with its token and connects");
    let job = enrol(&scene, &est, &host, "job", &key.sign(&claims("1")))?;
    let charon = scene.runner(&host, &job, |_| {})?;
    charon.initiate("net")?;
    scene.agree(&charon)?;
    let mut inside = Capture::start(&scene.world.private, "eth0", "icmp")?;
    let _pinging = background_ping(&host, STORE)?;
    wait::holds(lab, "pings to pass", Duration::from_secs(45), || {
        Ok(inside.count("icmp[icmptype] == icmp-echo").is_ok_and(|count| count >= 10))
    })?;

    lab.step("unsigned, wrongly signed and other jobs' deliveries end nothing");
    let platform = Platform { est: &est, host: &host, ca: authority.cert.clone() };
    let body = delivery(88_001);
    let foreign = signature("some other secret, just as long", &body);
    for header in [String::new(), foreign] {
        let (status, said) = platform.deliver("wrong", &header, &body)?;
        if status != 401 {
            bail!("a delivery that nobody signed is answered {status}: {said}");
        }
    }
    let other = delivery(88_002);
    let (status, said) = platform.deliver("other", &signature(SECRET, &other), &other)?;
    if status != 202 || said["outcome"] != "unknown_job" {
        bail!("another job's end should find nothing: {status} {said}");
    }
    if scene.gateway.sas()?.len() != 1 {
        bail!("the tunnel ended with a delivery that is not about it");
    }

    lab.step("the signed delivery ends the tunnel before it is answered");
    let before = charon.log().len();
    scene.without_tunnel()?;
    let (status, said) = platform.deliver("right", &signature(SECRET, &body), &body)?;
    mark(&scene)?;
    if status != 200 || said["outcome"] != "ended" || said["sas_closed"] != 1 {
        bail!("the delivery should have closed one tunnel: {status} {said}");
    }
    if !scene.gateway.sas()?.is_empty() {
        bail!("there is still an SA after the answer");
    }
    charon.expect_log(before, "received DELETE for IKE_SA", Duration::from_secs(15))?;
    wait::holds(lab, "the client to drop its SA", Duration::from_secs(5), || {
        Ok(!charon.sas()?.contains("ESTABLISHED"))
    })?;
    std::thread::sleep(Duration::from_secs(1));
    inside.stop()?;
    nothing_behind_the_mark(lab, &inside)?;
    let lease = scene.gateway.lease(&job.serial)?;
    if lease["state"] != "released" || lease["ended"].as_str().is_none_or(|e| !e.contains("job")) {
        bail!("the lease should be released because its job is over: {lease}");
    }
    let (status, said) = platform.deliver("again", &signature(SECRET, &body), &body)?;
    if status != 200 || said["outcome"] != "duplicate" {
        bail!("a delivery that comes again should change nothing: {status} {said}");
    }
    expect_refusal(&scene, &charon, "reconnect after the job", "AUTH_FAILED")?;
    scene.no_download(&host)?;
    scene.finish()
}

fn delivery(job: u64) -> String {
    let about = json!({
        "id": job, "run_id": 7001, "run_attempt": 1, "status": "completed",
        "check_run_url": format!("https://api.github.com/repos/octo/app/check-runs/{job}"),
    });
    json!({"action": "completed", "workflow_job": about, "repository": {"id": 123_456}}).to_string()
}

fn signature(secret: &str, body: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    let tag = hmac::sign(&key, body.as_bytes());
    let hex: String = tag.as_ref().iter().map(|octet| format!("{octet:02x}")).collect();
    format!("X-Hub-Signature-256: sha256={hex}\n")
}

/// Who delivers: curl, which trusts the public CA alone.
struct Platform<'a> {
    est: &'a Est,
    host: &'a Host,
    ca: PathBuf,
}

impl Platform<'_> {
    fn deliver(&self, name: &str, signature: &str, body: &str) -> Result<(u16, Value)> {
        let (header, data) = (self.file("header.txt")?, self.file("delivery.json")?);
        let lines = format!(
            "Content-Type: application/json\nX-GitHub-Event: workflow_job\n\
             X-GitHub-Delivery: {name}\n{signature}"
        );
        fs::write(&header, lines)?;
        fs::write(&data, body)?;
        let at = |path: &Path| format!("@{}", path.display());
        let mut command = with_hosts(self.host, &self.est.hosts);
        command.args(["curl", "-sS", "--max-time", "20", "-w", "\n%{http_code}", "--cacert"]);
        command.arg(&self.ca).arg("-H").arg(at(&header));
        command.arg("--data-binary").arg(at(&data)).arg(URL);
        let said = cmd::output(&mut command)?;
        let (body, status) = said
            .out
            .trim_end()
            .rsplit_once('\n')
            .with_context(|| format!("curl failed: {}", said.all()))?;
        let json =
            serde_json::from_str(body).with_context(|| format!("no JSON: {}", said.all()))?;
        Ok((status.trim().parse()?, json))
    }

    fn file(&self, name: &str) -> Result<PathBuf> {
        Ok(self.host.dir()?.join(name))
    }
}
