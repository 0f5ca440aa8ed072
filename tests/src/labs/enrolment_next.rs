//! Enrolment with clients other than strongSwan 5.9.8's: the `pki` of a newer strongSwan, and curl
//! with nothing but what RFC 7030 says.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::oidc;
use super::scene::{Credentials, Scene};
use crate::lab::charon::{Charon, Options};
use crate::lab::gateway::{ID, Settings};
use crate::lab::pkitool::{self, Est, P256, P384};
use crate::lab::world::Shape;
use crate::lab::{Lab, cmd, next};

/// Bytes downloaded through the tunnel.
const PROBE: u64 = 100_000;

pub(super) fn run(lab: &Lab) -> Result<()> {
    let scene = Scene::new(lab, Shape::default(), &Settings::default())?;
    let newer = Est { newer: Some(next::root()?), ..scene.est()? };

    lab.step("the newer pki: CA chain, a token at a label, renewal");
    let credentials = enrolled(&scene, &newer)?;
    renewed(&scene, &newer, &credentials)?;

    lab.step("the newer charon connects with that certificate");
    let host = scene.world.runner().clone();
    let options = Options { root: newer.newer.clone(), ..Options::default() };
    let charon = Charon::start(&host, &options)?;
    scene.load(&charon, &credentials, |_| {})?;
    charon.initiate("net")?;
    scene.agree(&charon)?;
    scene.download(&host, PROBE)?;
    drop(charon);

    lab.step("POST /v1/leases: the newer charon with the configuration made for it");
    let dir = host.dir()?.join("json");
    fs::create_dir_all(&dir)?;
    let options = Options { fetch: true, hosts: Some(newer.hosts.clone()), ..options };
    // One that does not say its version gets what all understand.
    for client in [Some("6.0.2"), None] {
        let token = scene.gateway.token()?;
        let (status, lease) = oidc::post(&scene, &newer, client, &token, &dir)?;
        if status != 201 {
            bail!("/v1/leases answered {status}: {lease}");
        }
        let (charon, _) = oidc::follow(&scene, &lease, &dir, &options)?;
        scene.download(&host, PROBE)?;
        drop(charon);
    }

    lab.step("curl: the three forms of a labelled URL, base64 with and without lines");
    for (number, path) in [
        "/.well-known/est/simpleenroll",
        "/.well-known/est/builder/simpleenroll",
        "/builder/.well-known/est/simpleenroll",
    ]
    .iter()
    .enumerate()
    {
        by_curl(&scene, path, number % 2 == 1)?;
    }
    scene.finish()
}

/// Enrols with `--label`, which no client before 5.9.11 has.
fn enrolled(scene: &Scene, est: &Est) -> Result<Credentials> {
    let host = scene.world.runner();
    let dir = host.dir()?.join("next");
    fs::create_dir_all(&dir)?;
    let file = |name: &str| dir.join(name);
    let (key, request, cert) = (file("key.pem"), file("req.der"), file("cert.pem"));
    pkitool::generate(P384, &key)?;
    pkitool::request(&key, "CN=ci", &request)?;
    let chain = est.ca_certs(host, &file("ca.pem"))?;
    let token = scene.gateway.token()?;
    let said = est.enrol_label(host, &request, &format!("builder:{token}"), "builder")?;
    if !said.ok() {
        bail!("pki --est --label failed: {}\n{}", said.all(), scene.lab.tails());
    }
    fs::write(&cert, &said.out)?;
    let (subject, serial) = (pkitool::subject(&cert)?, pkitool::serial(&cert)?);
    if scene.gateway.lease(&serial)?["role"] != "builder" {
        bail!("the lease has another role than the label says");
    }
    Ok(Credentials { key, request, cert, chain, subject, serial, token })
}

/// The certificate proves itself for the next one.
fn renewed(scene: &Scene, est: &Est, old: &Credentials) -> Result<()> {
    let host = scene.world.runner();
    let said = est.renew(host, &old.request, &old.cert, &old.key)?;
    if !said.ok() {
        bail!("pki --est --cert failed: {}\n{}", said.all(), scene.lab.tails());
    }
    let file = old.cert.with_file_name("renewed.pem");
    fs::write(&file, &said.out)?;
    let serial = pkitool::serial(&file)?;
    if serial == old.serial {
        bail!("a renewal must give another certificate");
    }
    let (before, after) = (scene.gateway.lease(&old.serial), scene.gateway.lease(&serial)?);
    if before.is_ok_and(|before| before["id"] != after["id"]) {
        bail!("a renewal opened another lease: {after}");
    }
    Ok(())
}

/// `curl` as the enrolment client, `openssl` for the rest.
fn by_curl(scene: &Scene, path: &str, lines: bool) -> Result<()> {
    let host = scene.world.runner();
    let dir = host.dir()?.join(format!("curl{}", path.len()));
    fs::create_dir_all(&dir)?;
    let file = |name: &str| dir.join(name);
    let text = |path: &Path| path.display().to_string();
    let (key, request, body) = (file("key.pem"), file("req.der"), file("req.b64"));
    pkitool::generate(P256, &key)?;
    let words = ["req", "-new", "-key", &text(&key), "-subj", "/CN=ci", "-outform", "DER", "-out"];
    cmd::run("openssl", &[&words[..], &[&text(&request)]].concat())?;
    // RFC 8951 2.1: whitespace inside is tolerated, and nothing says how it is encoded.
    let one = STANDARD.encode(fs::read(&request)?);
    let wrapped: Vec<&str> =
        one.as_bytes().chunks(64).map(std::str::from_utf8).collect::<Result<_, _>>()?;
    fs::write(&body, if lines { wrapped.join("\r\n") + "\r\n" } else { one.clone() })?;

    let est = scene.est()?;
    let answer = file("answer.b64");
    let (url, root) = (format!("https://{ID}:8443{path}"), text(&est.root));
    let user = format!("builder:{}", scene.gateway.token()?);
    let mut command = pkitool::with_hosts(host, &est.hosts);
    command.args(["curl", "-sS", "--max-time", "20", "-w", "%{http_code} %{content_type}"]);
    command.args(["--cacert", &root, "-u", &user, "-H", "Content-Type: application/pkcs10"]);
    command.args(["--data-binary", &format!("@{}", text(&body)), "-o", &text(&answer), &url]);
    let said = cmd::output(&mut command)?;
    // RFC 7030 4.2.3.
    if !said.out.starts_with("200 application/pkcs7-mime") {
        bail!("curl to {path}: {}\n{}", said.all(), scene.lab.tails());
    }
    let der: Vec<u8> =
        fs::read(&answer)?.into_iter().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let (p7, pem) = (file("answer.p7"), file("cert.pem"));
    fs::write(&p7, STANDARD.decode(der).context("the answer is no base64")?)?;
    let words = ["pkcs7", "-inform", "DER", "-in", &text(&p7), "-print_certs", "-out", &text(&pem)];
    cmd::run("openssl", &words)?;
    // The chain is in there too, in the order of a DER set.
    let all = fs::read_to_string(&pem)?;
    for (number, one) in all.split_inclusive("-----END CERTIFICATE-----").enumerate() {
        let cert = file(&format!("cert{number}.pem"));
        if one.contains("CERTIFICATE") {
            fs::write(&cert, one)?;
            let lease = scene.gateway.lease(&pkitool::serial(&cert)?);
            if lease.is_ok_and(|lease| lease["state"] == "issued" && lease["role"] == "builder") {
                return Ok(());
            }
        }
    }
    bail!("no certificate of the answer belongs to a fresh lease\n{all}")
}
