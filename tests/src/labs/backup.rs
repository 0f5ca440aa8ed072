//! A backup comes back, and nothing that was revoked or spent since comes back with it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use anyhow::{Result, bail};

use super::openssl::{ocsp, text, verify};
use super::scene::Scene;
use crate::lab::Lab;
use crate::lab::gateway::Settings;
use crate::lab::pkitool::{self, P256};
use crate::lab::world::Shape;

/// Enrol A and B; backup; revoke A, spend a token; restore: A is out, the token spent, B works.
pub(super) fn run(lab: &Lab) -> Result<()> {
    let mut scene = Scene::new(lab, Shape::default(), &Settings::default())?;
    let (charon, revoked) = scene.connected(P256)?;
    let host = scene.world.runner().clone();
    let kept = scene.enrol(&host, "kept", P256)?;
    let token = scene.gateway.token()?;

    lab.step("runnel backup, while a tunnel is up");
    let (key, file) = (lab.path("backup.key"), lab.path("gateway.backup"));
    fs::write(&key, "correct horse battery staple\n")?;
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600))?;
    let words = ["--key-file", &text(&key), &text(&file)];
    scene.gateway.told(&[&["backup"][..], &words].concat())?;

    lab.step("afterwards: a revocation, a spent token, a new list");
    scene.gateway.told(&["cert", "revoke", &revoked.serial, "--reason", "key-compromise"])?;
    scene.no_sas(Duration::from_secs(10))?;
    let dir = host.dir()?.join("spender");
    fs::create_dir_all(&dir)?;
    pkitool::generate(P256, &dir.join("key.pem"))?;
    scene.enrol_with(&host, &dir, &token)?;
    verify(lab, &scene, &revoked.cert, false)?;
    let number = list_number(&scene)?;

    lab.step("runnel restore, while nothing runs; a wrong key changes nothing");
    let running = scene.gateway.cli(&[&["restore"][..], &words].concat())?;
    if running.ok() {
        bail!("a running gateway's state was replaced");
    }
    scene.gateway.stop()?;
    fs::write(&key, "another passphrase\n")?;
    let refused = scene.gateway.cli(&[&["restore"][..], &words].concat())?;
    if refused.ok() || !refused.all().contains("does not open with this key") {
        bail!("a wrong key should be refused: {}", refused.all());
    }
    fs::write(&key, "correct horse battery staple\n")?;
    let config = text(&scene.gateway.config());
    let said = scene.gateway.told(&[&["restore", "--config", &config][..], &words].concat())?;
    if !said.contains("stays revoked") {
        bail!("`restore` should say that later changes came back: {said}");
    }
    scene.gateway.up(&[])?;

    lab.step("the revoked one is out: list, OCSP, IKE, EST; its token and the spent one too");
    verify(lab, &scene, &revoked.cert, false)?;
    ocsp(lab, &scene, &revoked.cert, "revoked")?;
    let now = list_number(&scene)?;
    if now <= number {
        bail!("the list has number {now} after {number}");
    }
    if charon.try_initiate("net")?.ok() {
        bail!("the revoked client connected");
    }
    let est = scene.est()?;
    if est.renew(&host, &revoked.request, &revoked.cert, &revoked.key)?.ok() {
        bail!("the revoked client renewed its certificate");
    }
    let late = host.dir()?.join("late");
    fs::create_dir_all(&late)?;
    pkitool::generate(P256, &late.join("key.pem"))?;
    if scene.enrol_with(&host, &late, &token).is_ok() {
        bail!("the spent token opened another lease");
    }

    lab.step("the other one works");
    verify(lab, &scene, &kept.cert, true)?;
    scene.load(&charon, &kept, |_| {})?;
    charon.initiate("net")?;
    scene.agree(&charon)?;
    scene.download(&host, 1_000_000)?;

    lab.step("without the journal nothing starts, and it is said how to go on");
    scene.gateway.stop()?;
    fs::remove_file(scene.gateway.state().join("revocations.journal"))?;
    scene.gateway.launch(&[])?;
    let code = scene.gateway.process()?.wait(lab, Duration::from_secs(20))?;
    let log = scene.gateway.log();
    let Some((_, rest)) = log.split_once("--accept-loss-after ").filter(|_| code == 1) else {
        bail!("`up` should refuse without the journal: {code}\n{log}");
    };
    let time = rest.split(['`', ' ']).next().unwrap_or_default().to_owned();
    scene.gateway.told(&["restore", "--config", &config, "--accept-loss-after", &time])?;
    scene.gateway.up(&[])?;
    verify(lab, &scene, &kept.cert, false)?;
    scene.finish()
}

fn list_number(scene: &Scene) -> Result<u64> {
    let status = scene.gateway.json(&["ca", "status"])?;
    match status["crl_number"].as_u64() {
        Some(number) => Ok(number),
        None => bail!("no number in {status}"),
    }
}
