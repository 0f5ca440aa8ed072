//! Enrolment with the stock client of strongSwan 5.9.8: what it gets, and what it is refused.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::scene::{Credentials, Scene};
use crate::lab::gateway::{Settings, same_serial};
use crate::lab::pkitool::{self, ED25519, P256, P384};
use crate::lab::world::Shape;
use crate::lab::{Lab, cmd};

/// `pki --estca` and `pki --est` with a one-time token: certificate, lease, retries, refusals.
pub(super) fn run(lab: &Lab) -> Result<()> {
    let mut scene = Scene::new(lab, Shape::default(), &Settings::default())?;
    let host = scene.world.runner().clone();
    let first = scene.enrol(&host, "first", P256)?;
    lab.step(&format!("enrolled {}", first.subject));
    certificate(&first)?;
    let lease = scene.gateway.lease(&first.serial)?;
    if lease["state"] != "issued" || lease["role"] != "builder" {
        bail!("a fresh lease looks odd: {lease}");
    }
    let id = lease["id"].clone();

    lab.step("same token, same key: the same lease again");
    retry_gets_same_lease(&scene, &first, &id)?;

    lab.step("same token, another key: refused with the reason");
    let other = host.dir()?.join("other.pem");
    let other_request = host.dir()?.join("other.der");
    pkitool::generate(P384, &other)?;
    pkitool::request(&other, "CN=ci", &other_request)?;
    let est = scene.est()?;
    let spent = est.enrol(&host, &other_request, &format!("builder:{}", first.token))?;
    refused(&spent, "403", "a spent token with another key")?;
    if !scene.gateway.log().to_lowercase().contains("token") {
        bail!("runnel's log does not say why the token was refused\n{}", lab.tails());
    }

    lab.step("no token, a wrong token, a token of another role: refused");
    let wrong = est.enrol(&host, &other_request, "builder:not-a-token")?;
    refused(&wrong, "401", "a wrong token")?;
    let unused = scene.gateway.token()?;
    let role = est.enrol(&host, &other_request, &format!("admin:{unused}"))?;
    refused(&role, "40", "a token for another role")?;

    lab.step("the unused token still works, for an Ed25519 key");
    let dir = host.dir()?.join("third");
    fs::create_dir_all(&dir)?;
    pkitool::generate(ED25519, &dir.join("key.pem"))?;
    let third = scene.enrol_with(&host, &dir, &unused)?;
    if scene.gateway.lease(&third.serial)?["id"] == id {
        bail!("two tokens opened one lease");
    }

    lab.step("tokens bound to a network and to a key: refused elsewhere, with the reason");
    bound_tokens(&scene)?;

    lab.step("killed and started again: still the same lease for the same key");
    scene.gateway.kill()?;
    scene.gateway.up(&[])?;
    retry_gets_same_lease(&scene, &first, &id)?;
    let all = scene.gateway.json(&["lease", "list", "--all"])?;
    if all.as_array().map(Vec::len) != Some(3) {
        bail!("three enrolments must leave three leases: {all}");
    }
    scene.finish()
}

/// `runnel token create --from` and `--key`.
fn bound_tokens(scene: &Scene) -> Result<()> {
    let host = scene.world.runner();
    let dir = host.dir()?.join("bound");
    fs::create_dir_all(&dir)?;
    let (key, request) = (dir.join("key.pem"), dir.join("req.der"));
    pkitool::generate(P256, &key)?;
    pkitool::request(&key, "CN=ci", &request)?;
    let make = |option: &str, value: &str| -> Result<String> {
        let words = ["token", "create", "--role", "builder", option, value];
        let made = scene.gateway.json(&words)?;
        Ok(made["token"].as_str().context("no token in the answer")?.to_owned())
    };
    let est = scene.est()?;
    let elsewhere = format!("builder:{}", make("--from", "203.0.113.0/24")?);
    refused(&est.enrol(host, &request, &elsewhere)?, "403", "a token of another network")?;
    let another = format!("builder:{}", make("--key", &"ab".repeat(32))?);
    refused(&est.enrol(host, &request, &another)?, "403", "a token of another key")?;
    let log = scene.gateway.log();
    for reason in ["is bound to 203.0.113.0/24, the client is at", "is bound to key sha256:abab"] {
        if !log.contains(reason) {
            bail!("the log does not say \"{reason}\"\n{}", scene.lab.tails());
        }
    }
    let own = format!("builder:{}", make("--key", &pkitool::public_key_hash(&key)?)?);
    let said = est.enrol(host, &request, &own)?;
    if !said.ok() {
        bail!("a token bound to the very key was refused: {}\n{}", said.all(), scene.lab.tails());
    }
    Ok(())
}

fn retry_gets_same_lease(
    scene: &Scene,
    credentials: &Credentials,
    id: &serde_json::Value,
) -> Result<()> {
    let est = scene.est()?;
    let userpass = format!("builder:{}", credentials.token);
    let again = est.enrol(scene.world.runner(), &credentials.request, &userpass)?;
    if !again.ok() {
        bail!("a retry with the same key was refused: {}\n{}", again.all(), scene.lab.tails());
    }
    let file = credentials.cert.with_file_name("again.pem");
    fs::write(&file, &again.out)?;
    let serial = pkitool::serial(&file)?;
    let lease = scene.gateway.lease(&serial)?;
    if lease["id"] != *id {
        bail!("a retry with the same key opened another lease: {lease}");
    }
    if !same_serial(&serial, &credentials.serial) {
        bail!("a retry with the same key got another certificate");
    }
    Ok(())
}

fn refused(said: &cmd::Said, code: &str, what: &str) -> Result<()> {
    if said.ok() || !said.all().contains(&format!("HTTP {code}")) {
        bail!("{what} should be refused with HTTP {code}: {}", said.all());
    }
    Ok(())
}

/// The certificate chains to the root and names its holder the two ways clients and policy use.
fn certificate(credentials: &Credentials) -> Result<()> {
    let text = |path: &Path| path.display().to_string();
    let bundle = credentials.cert.with_file_name("bundle.pem");
    let mut pem = String::new();
    let mut roots: Vec<PathBuf> = Vec::new();
    for file in &credentials.chain {
        let printed = pkitool::print(file)?;
        if printed.contains("self-signed") {
            roots.push(file.clone());
        }
        pem.push_str(&fs::read_to_string(file)?);
    }
    fs::write(&bundle, pem)?;
    let root = roots.first().context("estca returned no self-signed root")?;
    cmd::run(
        "openssl",
        &[
            "verify",
            "-x509_strict",
            "-CAfile",
            &text(root),
            "-untrusted",
            &text(&bundle),
            &text(&credentials.cert),
        ],
    )?;
    let cert = text(&credentials.cert);
    let names = cmd::run("openssl", &["x509", "-noout", "-ext", "subjectAltName", "-in", &cert])?;
    if !names.contains("URI:spiffe://ci.example.com/") || !names.contains("DNS:") {
        bail!("the certificate lacks its DNS or SPIFFE name: {names}");
    }
    Ok(())
}
