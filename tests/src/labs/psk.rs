//! Clients that authenticate with a shared key (RFC 7296 2.15, 4).

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::refusals::{expect_refusal, refusal_lines};
use super::scene::Scene;
use crate::lab::Lab;
use crate::lab::charon::{Charon, Options};
use crate::lab::gateway::{ID, Settings};
use crate::lab::swanctl::{Conf, Connection};
use crate::lab::world::{GATEWAY, PRIVATE_NET, Shape};

const CLIENT: &str = "runner-7.example.com";
const KEY: &str = "correct horse battery staple";

/// Right, wrong and unknown; the gateway with the key and with its certificate; reconnection,
/// revocation, change of the key.
pub(super) fn run(lab: &Lab) -> Result<()> {
    let key = lab.path("psk.key");
    write_key(lab, KEY)?;
    let section = |id: &str, more: &str| {
        let file = key.display();
        format!("\n[[psk]]\nid = \"{id}\"\nfile = \"{file}\"\nrole = \"builder\"\n{more}\n")
    };
    let more = section(CLIENT, "") + &section("runner@example.com", "gateway = \"certificate\"");
    let settings = Settings { more, ..Settings::default() };
    let scene = Scene::new(lab, Shape::default(), &settings)?;
    let host = scene.world.runner().clone();
    let charon = Charon::start(&host, &Options::default())?;

    lab.step("both sides with the key");
    load(&charon, CLIENT, "psk", KEY)?;
    charon.initiate("net")?;
    scene.agree(&charon)?;
    scene.download(&host, 10_000)?;
    let sas = charon.sas()?;
    if !sas.contains("ESTABLISHED") || !sas.contains(CLIENT) {
        bail!("strongSwan lists no SA of {CLIENT}: {sas}");
    }
    let first = scene.lease_in_state("active", || lease(&scene, CLIENT))?;
    if first["door"] != "psk" || first["role"] != "builder" {
        bail!("odd lease: {first}");
    }
    let address = charon.virtual_addresses()?;

    lab.step("a reconnection gets the same lease and address");
    charon.terminate("net")?;
    charon.initiate("net")?;
    scene.agree(&charon)?;
    scene.download(&host, 10_000)?;
    if lease(&scene, CLIENT)?["id"] != first["id"] || charon.virtual_addresses()? != address {
        bail!("another lease or address after a reconnection");
    }
    charon.terminate("net")?;

    load(&charon, CLIENT, "psk", "another key of the same sort")?;
    refused(&scene, &charon, "wrong key", "wrong_shared_key")?;
    load(&charon, "stranger.example.com", "psk", KEY)?;
    refused(&scene, &charon, "unknown identity", "unknown_identity")?;

    lab.step("the gateway with its certificate");
    let est = scene.est()?;
    for (number, file) in est.ca_certs(&host, &lab.path("ca.pem"))?.iter().enumerate() {
        charon.install(file, &format!("x509ca/ca-{number}.pem"))?;
    }
    load(&charon, "runner@example.com", "pubkey", KEY)?;
    let before = charon.log().len();
    charon.initiate("net")?;
    scene.agree(&charon)?;
    scene.download(&host, 10_000)?;
    let said = format!("authentication of '{ID}' with ECDSA_WITH_SHA256_DER successful");
    charon.expect_log(before, &said, Duration::from_secs(1))?;
    charon.terminate("net")?;

    lab.step("a revoked lease ends its tunnel and bars the key");
    load(&charon, CLIENT, "psk", KEY)?;
    charon.initiate("net")?;
    scene.gateway.told(&["lease", "revoke", first["id"].as_str().unwrap_or_default()])?;
    scene.no_sas(Duration::from_secs(3))?;
    scene.no_download(&host)?;
    refused(&scene, &charon, "revoked", "revoked")?;

    lab.step("another key lifts the bar; a file that others can read is refused");
    write_key(lab, "a key nobody has seen before")?;
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644))?;
    let said = scene.gateway.cli(&["reload"])?;
    if said.ok() || !said.all().contains("chmod 600") {
        bail!("a key file of mode 0644 was taken: {}", said.all());
    }
    write_key(lab, "a key nobody has seen before")?;
    scene.gateway.told(&["reload"])?;
    load(&charon, CLIENT, "psk", "a key nobody has seen before")?;
    charon.initiate("net")?;
    scene.agree(&charon)?;
    scene.download(&host, 10_000)?;
    if lease(&scene, CLIENT)?["id"] == first["id"] {
        bail!("a revoked lease came back");
    }

    lab.step("a key that is taken away ends its tunnel");
    write_key(lab, "once more another key, unknown")?;
    scene.gateway.told(&["reload"])?;
    scene.no_sas(Duration::from_secs(5))?;
    let log = scene.gateway.log();
    for secret in [KEY, "a key nobody has seen before"] {
        if log.contains(secret) || charon_free(&scene, secret)? {
            bail!("the gateway shows a key");
        }
    }
    scene.finish()
}

fn write_key(lab: &Lab, key: &str) -> Result<()> {
    let path = lab.path("psk.key");
    fs::write(&path, format!("{key}\n"))?;
    Ok(fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?)
}

/// Whether `doctor` or the leases show a secret.
fn charon_free(scene: &Scene, secret: &str) -> Result<bool> {
    let shown = [
        scene.gateway.cli(&["doctor", "-o", "json"])?.all(),
        scene.gateway.told(&["lease", "list", "--all", "-o", "json"])?,
    ];
    Ok(shown.iter().any(|text| text.contains(secret)))
}

/// Loads the connection `net` and its secret.
fn load(charon: &Charon, id: &str, remote_auth: &str, key: &str) -> Result<()> {
    let connection = Connection {
        remote_addr: GATEWAY.to_owned(),
        vips: vec!["0.0.0.0".to_owned()],
        local_auth: "psk".to_owned(),
        remote_auth: remote_auth.to_owned(),
        local_id: id.to_owned(),
        remote_id: ID.to_owned(),
        remote_ts: PRIVATE_NET.to_owned(),
        ..Connection::default()
    };
    let secrets = Conf::new().section("secrets", |s| {
        s.section("ike-gw", |k| {
            k.set("id-a", ID).set("id-b", id).set("secret", &format!("\"{key}\""))
        })
    });
    charon.load(&[connection], secrets.text())
}

fn refused(scene: &Scene, charon: &Charon, what: &str, code: &str) -> Result<()> {
    let before = refusal_lines(&scene.gateway.log()).len();
    expect_refusal(scene, charon, what, "AUTH_FAILED")?;
    let newest = scene.gateway.refusals()?.into_iter().next().context("no refusal")?;
    if newest["code"] != code {
        bail!("{what}: the refusal is {newest}, expected {code}");
    }
    if refusal_lines(&scene.gateway.log()).len() != before + 1 {
        bail!("{what}: not exactly one line for the operator");
    }
    Ok(())
}

/// The newest live lease of an identity.
fn lease(scene: &Scene, subject: &str) -> Result<Value> {
    let all = scene.gateway.json(&["lease", "list"])?;
    let list = all.as_array().context("the lease list is no list")?;
    let found = list.iter().find(|lease| lease["subject"] == subject).cloned();
    found.with_context(|| format!("no lease of {subject} in {all}"))
}
