//! The CA's life with stock clients: an issuing CA below a root that is kept elsewhere, and a
//! rotation with everybody connected.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::endings::{background_ping, mark, nothing_behind_the_mark, now};
use super::refusals::expect_refusal;
use super::scene::Scene;
use crate::lab::capture::Capture;
use crate::lab::charon::{Charon, Options};
use crate::lab::gateway::{Gateway, Settings};
use crate::lab::pkitool::{Authority, P256, RSA4096};
use crate::lab::world::{POOL, STORE, Shape, World};
use crate::lab::{Lab, cmd, wait};

/// A second is what it must take; a machine with other work gets more.
const SECONDS_TO_END: f64 = 5.0;

/// What the root's owner writes into the issuing CA's certificate.
const EXTENSIONS: &str = "basicConstraints=critical,CA:TRUE,pathlen:0\n\
                          keyUsage=critical,keyCertSign,cRLSign\n\
                          subjectKeyIdentifier=hash\n\
                          authorityKeyIdentifier=keyid\n\
                          crlDistributionPoints=URI:http://gw.example.com:8080/crl/root.crl\n";

/// `ca csr` before the first start, signed by openssl with a root that `pki` made; `ca import`,
/// `ca import --crl`; then a stock client enrols and connects, strict about revocation.
pub(super) fn offline(lab: &Lab) -> Result<()> {
    let world = World::new(lab, Shape::default())?;
    let mut gateway = Gateway::prepare(&world.gateway, &Settings::default())?;
    let config = gateway.config().display().to_string();
    let with_config = |words: &[&str]| -> Vec<String> {
        words.iter().chain(&["--config", &config]).map(|word| (*word).to_owned()).collect()
    };
    let told = |gateway: &Gateway, words: &[&str]| {
        let words = with_config(words);
        gateway.told(&words.iter().map(String::as_str).collect::<Vec<_>>())
    };

    lab.step("runnel ca csr: a request, and no root of its own");
    let request = lab.path("issuing.csr");
    fs::write(&request, told(&gateway, &["ca", "csr", "--key", "ecdsa-p384"])?)?;
    gateway.launch(&[])?;
    let code = gateway.process()?.wait(lab, Duration::from_secs(20))?;
    if code != 1 || !gateway.log().contains("waits for its certificate") {
        bail!("`up` should say that the CA waits, and exit 1: {code}\n{}", gateway.log());
    }

    lab.step("the root's owner signs it; a chain without the root is refused");
    let root = Authority::new(&lab.path("offline-root"), "Example Root", RSA4096)?;
    let issuing = lab.path("issuing.pem");
    sign(lab, &root, &request, &issuing)?;
    let refused = gateway.cli(&["ca", "import", &issuing.display().to_string()])?;
    if refused.ok() || !refused.all().contains("would not be accepted") {
        bail!("a chain without root should be refused: {}", refused.all());
    }
    let chain = lab.path("chain.pem");
    fs::write(&chain, fs::read_to_string(&root.cert)? + &fs::read_to_string(&issuing)?)?;
    let said = told(&gateway, &["ca", "import", &chain.display().to_string()])?;
    if !said.contains("ca import --crl") {
        bail!("the missing list of the root should be told: {said}");
    }
    gateway.up(&[])?;
    let status = gateway.json(&["status"])?;
    let warned = |status: &serde_json::Value| status["warnings"].to_string().contains("--crl");
    if !warned(&status) {
        bail!("`status` should warn that the root's list is missing: {status}");
    }
    let list = lab.path("root.crl");
    fs::write(&list, root.revocation_list(&[])?)?;
    gateway.told(&["ca", "import", "--crl", &list.display().to_string()])?;

    lab.step("a stock client enrols below that root and connects, strict about revocation");
    let scene = Scene::around(world, gateway)?;
    let host = scene.world.runner().clone();
    if scene.gateway.told(&["ca", "root"])?.trim() != fs::read_to_string(&root.cert)?.trim() {
        bail!("`ca root` is not the root that was imported");
    }
    let credentials = scene.enrol(&host, "first", P256)?;
    let est = scene.est()?;
    let options = Options { fetch: true, hosts: Some(est.hosts), ..Options::default() };
    let charon = Charon::start(&host, &options)?;
    scene.load(&charon, &credentials, |connection| {
        connection.revocation = "strict".to_owned();
    })?;
    charon.initiate("net")?;
    scene.agree(&charon)?;
    scene.download(&host, 1_000_000)?;

    lab.step("nothing is signed here with a root that is elsewhere");
    let rotate = scene.gateway.cli(&["ca", "rotate"])?;
    if rotate.ok() || !rotate.all().contains("runnel ca csr") {
        bail!("`ca rotate` should point to `ca csr`: {}", rotate.all());
    }

    lab.step("the root's owner revokes the issuing CA: the tunnel ends before the import answers");
    let before = charon.log().len();
    fs::write(&list, root.revocation_list(&[&issuing])?)?;
    let mut inside = Capture::start(&scene.world.private, "eth0", "icmp")?;
    let _pinging = background_ping(&host, STORE)?;
    wait::holds(lab, "pings to pass", Duration::from_secs(45), || {
        // A file that is being written may end within a packet.
        Ok(inside.count("icmp[icmptype] == icmp-echo").is_ok_and(|count| count >= 10))
    })?;
    scene.without_tunnel()?;
    let asked = now();
    let said = scene.gateway.told(&["ca", "import", "--crl", &list.display().to_string()])?;
    for words in ["nothing is issued from now on", "1 lease(s) ended", "1 IKE SA(s) closed"] {
        if !said.contains(words) {
            bail!("the import should say `{words}`: {said}");
        }
    }
    mark(&scene)?;
    inside.stop()?;
    nothing_behind_the_mark(lab, &inside)?;
    let inner = inside.times(&format!("icmp[icmptype] == icmp-echo and src net {POOL}"))?;
    // The last one may have come before the question.
    let passed = (inner.last().context("no ping was ever seen")? - asked).max(0.0);
    lab.step(&format!("packets of the tunnel passed for {:.0} ms after that", passed * 1000.0));
    if passed > SECONDS_TO_END {
        bail!("packets passed for {passed:.3} s after the import was asked for");
    }
    if !scene.gateway.sas()?.is_empty() {
        bail!("there is still an SA after the answer");
    }
    let lease = scene.gateway.lease(&credentials.serial)?;
    if lease["state"] != "revoked" {
        bail!("the lease should be revoked: {lease}");
    }
    scene.no_download(&host)?;
    charon.expect_log(before, "received DELETE for IKE_SA", Duration::from_secs(15))?;
    expect_refusal(&scene, &charon, "a certificate of a revoked CA", "AUTH_FAILED")?;
    let refusals = scene.gateway.refusals()?;
    if refusals.first().is_none_or(|newest| newest["code"] != "issuer_revoked") {
        bail!("the refusal should be issuer_revoked: {refusals:?}");
    }
    scene.finish()
}

/// openssl as the root's owner.
fn sign(lab: &Lab, root: &Authority, request: &Path, to: &Path) -> Result<()> {
    let extensions = lab.path("ca.cnf");
    fs::write(&extensions, EXTENSIONS)?;
    let text = |path: &Path| path.display().to_string();
    let (ca, key) = (text(&root.cert), text(&root.cert.with_file_name("ca-key.pem")));
    let files = ["-in", &text(request), "-extfile", &text(&extensions), "-out", &text(to)];
    let words = ["x509", "-req", "-days", "1", "-sha256", "-set_serial", "4711"];
    cmd::run("openssl", &[&words[..], &["-CA", &ca, "-CAkey", &key], &files].concat())?;
    Ok(())
}

/// A runner that knows only the first root is connected while issuing CA and root change: its
/// tunnel stays, it connects anew, it renews; a new runner with the old pin enrols; another that
/// knows only the new root connects as well.
pub(super) fn rotation(lab: &Lab) -> Result<()> {
    let scene = Scene::new(lab, Shape::default(), &Settings::default())?;
    let (charon, credentials) = scene.connected(P256)?;
    let host = scene.world.runner().clone();
    let pinned = scene.est()?;

    lab.step("runnel ca rotate, then --root with RSA, while the tunnel carries traffic");
    scene.gateway.told(&["ca", "rotate"])?;
    let text = scene.gateway.told(&["ca", "rotate", "--root", "--key", "rsa-3072"])?;
    if !text.contains("next root") || !text.contains("runnel ca retire") {
        bail!("`ca rotate --root` should say what comes next: {text}");
    }
    scene.download(&host, 1_000_000)?;
    scene.agree(&charon)?;
    let status = scene.gateway.json(&["ca", "status"])?;
    let kinds: Vec<&str> = status["authorities"]
        .as_array()
        .map(|all| all.iter().filter_map(|one| one["name"].as_str()).collect())
        .unwrap_or_default();
    if kinds != ["root", "root", "issuing", "issuing", "issuing"] {
        bail!("two roots and three issuing CAs are expected: {status}");
    }

    lab.step("the runner connects anew, knowing only the first root");
    charon.terminate("net")?;
    scene.no_sas(Duration::from_secs(10))?;
    charon.initiate("net")?;
    scene.agree(&charon)?;
    scene.download(&host, 1_000_000)?;

    lab.step("it renews over TLS with the old certificate");
    let said = pinned.renew(&host, &credentials.request, &credentials.cert, &credentials.key)?;
    if !said.ok() {
        bail!("the renewal failed: {}", said.all());
    }
    let renewed = lab.path("renewed.pem");
    fs::write(&renewed, &said.out)?;
    issued_by_next(&scene, &renewed)?;
    charon.terminate("net")?;
    scene.no_sas(Duration::from_secs(10))?;

    lab.step("a new runner enrols with the old pin, and connects");
    let second = scene.enrol(&host, "second", P256)?;
    issued_by_next(&scene, &second.cert)?;
    scene.load(&charon, &second, |_| {})?;
    charon.initiate("net")?;
    scene.agree(&charon)?;
    scene.download(&host, 1_000_000)?;
    charon.terminate("net")?;
    scene.no_sas(Duration::from_secs(10))?;

    lab.step("a runner that knows only the new root");
    let mut third = scene.enrol(&host, "third", P256)?;
    let next = lab.path("next-root.pem");
    let place = status["authorities"][1]["place"].as_str().unwrap_or_default().to_owned();
    let url = format!("http://{}:8080/{place}.cer", crate::lab::world::GATEWAY);
    let der = lab.path("next-root.cer");
    let got = cmd::output(host.command("curl").args(["-sSf", "-o"]).arg(&der).arg(&url))?;
    if !got.ok() {
        bail!("the new root is not served at {url}: {}", got.all());
    }
    let text = |path: &Path| path.display().to_string();
    cmd::run("openssl", &["x509", "-inform", "DER", "-in", &text(&der), "-out", &text(&next)])?;
    third.chain = vec![next];
    let options = Options { hosts: Some(pinned.hosts.clone()), ..Options::default() };
    drop(charon);
    let charon = Charon::start(&host, &options)?;
    scene.load(&charon, &third, |_| {})?;
    charon.initiate("net")?;
    scene.download(&host, 1_000_000)?;

    lab.step("the old root does not retire while certificates below it live");
    let retire = scene.gateway.cli(&["ca", "retire"])?;
    if retire.ok() || !retire.all().contains("may live until") {
        bail!("`ca retire` should say until when to wait: {}", retire.all());
    }
    scene.finish()
}

/// The certificate comes from the CA that issues now.
fn issued_by_next(scene: &Scene, cert: &Path) -> Result<()> {
    let status = scene.gateway.json(&["ca", "status"])?;
    let issuing = status["authorities"][2]["subject"].as_str().unwrap_or_default().to_owned();
    let printed = crate::lab::pkitool::print(cert)?;
    if issuing.is_empty() || !printed.contains(&issuing) {
        bail!("not issued by {issuing}: {printed}");
    }
    Ok(())
}
