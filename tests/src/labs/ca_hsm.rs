//! The CA's keys in a PKCS#11 token (SoftHSM): stock clients, revocation, restart, a token that goes
//! away and comes back, a wrong PIN, every kind of key.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::openssl::{issuing_cert, ocsp, text, verify};
use super::scene::Scene;
use crate::lab::charon::{Charon, Options};
use crate::lab::gateway::{Gateway, Settings};
use crate::lab::pkitool::P256;
use crate::lab::world::{Shape, World};
use crate::lab::{Lab, cmd};

const MODULE: &str = "/usr/lib/softhsm/libsofthsm2.so";
const PIN: &str = "6471-lab";
const CONF: &str = "SOFTHSM2_CONF";

/// A token of SoftHSM below the lab's folder.
struct Token {
    conf: PathBuf,
    store: PathBuf,
    pin: PathBuf,
}

impl Token {
    fn new(lab: &Lab) -> Result<Self> {
        let store = lab.path("tokens");
        fs::create_dir_all(&store)?;
        let (conf, pin) = (lab.path("softhsm2.conf"), lab.path("pin"));
        let text =
            format!("directories.tokendir = {}\nobjectstore.backend = file\n", store.display());
        fs::write(&conf, text)?;
        fs::write(&pin, format!("{PIN}\n"))?;
        fs::set_permissions(&pin, fs::Permissions::from_mode(0o600))?;
        let token = Self { conf, store, pin };
        let words = ["--init-token", "--free", "--label", "lab ca", "--so-pin", "4711-so"];
        cmd::checked(token.with(Command::new("softhsm2-util").args(words).args(["--pin", PIN])))?;
        Ok(token)
    }

    fn with<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.env(CONF, &self.conf)
    }

    fn uri(&self) -> String {
        format!(
            "pkcs11:token=lab%20ca;object=runnel-ca?module-path={MODULE}&pin-source=file:{}",
            self.pin.display()
        )
    }

    /// Takes the token out, or puts it in again.
    fn present(&self, there: bool) -> Result<()> {
        let away = self.store.with_extension("away");
        let (from, to) = if there { (&away, &self.store) } else { (&self.store, &away) };
        fs::rename(from, to).context("moving the token")
    }
}

/// First start with both CAs' keys in the token, and all that is signed with them.
pub(super) fn run(lab: &Lab) -> Result<()> {
    let token = Token::new(lab)?;
    let world = World::new(lab, Shape::default())?;
    let mut gateway = Gateway::prepare(&world.gateway, &Settings::default())?;
    let config = fs::read_to_string(gateway.config())?;
    let key = format!("[pki]\nca_key = {:?}\nca_key_kind = \"ecdsa-p384\"\n", token.uri());
    fs::write(gateway.config(), config.replace("[pki]\n", &key))?;
    let conf = token.conf.display().to_string();
    let environment = [(CONF, conf.as_str())];

    lab.step("a wrong PIN is said at the first start, and nothing is left behind");
    fs::write(&token.pin, "0000-wrong\n")?;
    gateway.launch(&environment)?;
    let code = gateway.process()?.wait(lab, Duration::from_secs(20))?;
    let log = gateway.log();
    if code != 1 || !log.contains("refused the PIN") || gateway.state().exists() {
        bail!("`up` should refuse, naming the PIN's file: {code}\n{log}");
    }
    if log.contains("0000-wrong") {
        bail!("the PIN is in the log:\n{log}");
    }
    fs::write(&token.pin, format!("{PIN}\n"))?;

    lab.step(
        "first start: root and issuing CA are made in the token; a runner enrols and connects",
    );
    gateway.up(&environment)?;
    let status = gateway.told(&["ca", "status"])?;
    if !status.contains("in token \"lab ca\" (object \"runnel-ca\")") {
        bail!("`ca status` should say where the key is: {status}");
    }
    let mut scene = Scene::around(world, gateway)?;
    let host = scene.world.runner().clone();
    let credentials = scene.enrol(&host, "first", P256)?;
    verify(lab, &scene, &credentials.cert, true)?;
    let est = scene.est()?;
    let options = Options { fetch: true, hosts: Some(est.hosts), ..Options::default() };
    let charon = Charon::start(&host, &options)?;
    scene.load(&charon, &credentials, |connection| connection.revocation = "strict".to_owned())?;
    charon.initiate("net")?;
    scene.agree(&charon)?;
    scene.download(&host, 1_000_000)?;

    lab.step("the token goes away: the tunnel stays, nothing is issued, and it is said why");
    token.present(false)?;
    scene.download(&host, 1_000_000)?;
    let refused = scene.gateway.token().and_then(|secret| {
        let dir = host.dir()?.join("away");
        fs::create_dir_all(&dir)?;
        crate::lab::pkitool::generate(P256, &dir.join("key.pem"))?;
        Ok(scene.enrol_with(&host, &dir, &secret).is_err())
    })?;
    if !refused {
        bail!("a certificate was issued without the token");
    }
    let warned = scene.gateway.json(&["status"])?["warnings"].to_string();
    if !warned.contains("nothing new is signed") || !warned.contains("lab ca") {
        bail!("`status` should say that the token is away: {warned}");
    }
    lab.step("it comes back: the next request is signed");
    token.present(true)?;
    let second = scene.enrol(&host, "second", P256)?;
    verify(lab, &scene, &second.cert, true)?;
    let warned = scene.gateway.json(&["status"])?["warnings"].to_string();
    if warned.contains("nothing new is signed") {
        bail!("`status` should be content again: {warned}");
    }

    lab.step("revocation: list and OCSP answer of the token's CA, checked by openssl");
    scene.gateway.told(&["cert", "revoke", &credentials.serial])?;
    scene.no_sas(Duration::from_secs(10))?;
    verify(lab, &scene, &credentials.cert, false)?;
    ocsp(lab, &scene, &credentials.cert, "revoked")?;
    ocsp(lab, &scene, &second.cert, "good")?;

    lab.step("restart without the token: runners connect; with it again: rotation to every kind");
    scene.gateway.stop()?;
    token.present(false)?;
    scene.gateway.up(&environment)?;
    scene.load(&charon, &second, |connection| connection.revocation = "ifuri".to_owned())?;
    charon.initiate("net")?;
    scene.download(&host, 1_000_000)?;
    token.present(true)?;
    for (kind, algorithm) in
        [("ecdsa-p256", "prime256v1"), ("rsa-3072", "3072 bit"), ("ed25519", "ED25519")]
    {
        let said = scene.gateway.cli(&["ca", "rotate", "--key", kind])?;
        if kind == "ed25519" && said.all().contains("CKM_EDDSA") {
            lab.step("this SoftHSM has no Ed25519, which is said");
            continue;
        }
        if !said.ok() {
            bail!("`ca rotate --key {kind}` failed: {}", said.all());
        }
        let issuing = issuing_cert(lab, &scene)?;
        let text = cmd::run("openssl", &["x509", "-noout", "-text", "-in", &text(&issuing)])?;
        if !text.contains(algorithm) {
            bail!("the issuing CA should be {kind}: {text}");
        }
        let name = format!("kind-{kind}");
        let issued = scene.enrol(&host, &name, P256)?;
        verify(lab, &scene, &issued.cert, true)?;
        ocsp(lab, &scene, &issued.cert, "good")?;
    }

    lab.step("a request for a CA below another root, with a key of the token");
    let request = lab.path("issuing.csr");
    fs::write(&request, scene.gateway.told(&["ca", "csr", "--key", "rsa-3072"])?)?;
    cmd::run("openssl", &["req", "-verify", "-noout", "-in", &text(&request)])?;
    scene.finish()
}
