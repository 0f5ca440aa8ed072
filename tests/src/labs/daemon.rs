//! The gateway as a process: a full stop leaves nothing, a restart keeps what was promised.

use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::scene::Scene;
use crate::lab::Lab;
use crate::lab::gateway::{Gateway, Settings};
use crate::lab::host::Host;
use crate::lab::pkitool::P256;
use crate::lab::world::{Shape, World};

/// Everything a gateway could leave on its host, as text for comparison.
pub(super) fn footprint(host: &Host) -> Result<String> {
    let mut text = String::new();
    for words in [
        "-o link show",
        "-o addr show",
        "route show table all",
        "-6 route show table all",
        "rule show",
        "-6 rule show",
        "xfrm state",
        "xfrm policy",
    ] {
        text.push_str(&format!("# ip {words}\n"));
        for line in host.ip(words)?.lines() {
            // Neighbour and multicast state comes and goes by itself.
            if !line.contains("multicast") && !line.contains("anycast") {
                text.push_str(line.split(" expires ").next().unwrap_or(line));
                text.push('\n');
            }
        }
    }
    text.push_str("# nft\n");
    text.push_str(&host.run("nft", &["list", "ruleset"])?);
    for key in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
        let path = format!("/proc/sys/{key}");
        let value = host.enter(|| std::fs::read_to_string(&path))??;
        text.push_str(&format!("# {key} {value}"));
    }
    Ok(text)
}

/// The lines that differ between two texts.
pub(super) fn difference(before: &str, after: &str) -> Vec<String> {
    let missing = before.lines().filter(|line| !after.lines().any(|other| other == *line));
    let added = after.lines().filter(|line| !before.lines().any(|other| other == *line));
    missing.map(|line| format!("- {line}")).chain(added.map(|line| format!("+ {line}"))).collect()
}

/// SIGTERM: DELETE to every peer, exit code 0, nothing left behind.
pub(super) fn stop(lab: &Lab) -> Result<()> {
    let shape = Shape { runners: 2, ..Shape::default() };
    let world = World::new(lab, shape)?;
    let before = footprint(&world.gateway)?;
    let gateway = Gateway::start(&world.gateway, &Settings::default())?;
    let mut scene = Scene::around(world, gateway)?;
    let mut charons = Vec::new();
    for host in &scene.world.runners {
        let credentials = scene.enrol(host, "enrolled", P256)?;
        let charon = scene.runner(host, &credentials, |_| {})?;
        charon.initiate("net")?;
        scene.download(host, 100_000)?;
        charons.push(charon);
    }
    if difference(&before, &footprint(&scene.world.gateway)?).is_empty() {
        bail!("the running gateway shows no trace: this lab would prove nothing");
    }
    let marks: Vec<usize> = charons.iter().map(|charon| charon.log().len()).collect();
    lab.leaks().own(&scene.gateway.leased()?)?;
    let code = scene.gateway.stop()?;
    if code != 0 {
        bail!("SIGTERM ended runnel with exit code {code}\n{}", lab.tails());
    }
    for (charon, mark) in charons.iter().zip(marks) {
        charon.expect_log(mark, "received DELETE for IKE_SA", Duration::from_secs(3))?;
    }
    let left = difference(&before, &footprint(&scene.world.gateway)?);
    if !left.is_empty() {
        bail!("a full stop left traces:\n{}", left.join("\n"));
    }
    let socket: Vec<_> = std::fs::read_dir(scene.gateway.state())?
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().ends_with(".sock"))
        .collect();
    if !socket.is_empty() {
        bail!("the admin socket is still there");
    }
    let status = scene.gateway.cli(&["status"])?;
    if status.code != 3 {
        bail!("`runnel status` without a running gateway exits with {}, not 3", status.code);
    }
    Ok(())
}

/// `kill -9` and a new start: same CA, same leases, same address; nothing of the old run leaks.
pub(super) fn restart(lab: &Lab) -> Result<()> {
    let world = World::new(lab, Shape::default())?;
    let before = footprint(&world.gateway)?;
    let gateway = Gateway::start(&world.gateway, &Settings::default())?;
    let mut scene = Scene::around(world, gateway)?;
    let (charon, credentials) = scene.connected(P256)?;
    let host = scene.world.runner().clone();
    scene.download(&host, 10_000)?;
    let root = scene.gateway.told(&["ca", "root"])?;
    let lease = scene.gateway.lease(&credentials.serial)?;
    let address = charon.virtual_addresses()?.first().cloned().context("no address")?;

    scene.gateway.kill()?;
    lab.step("killed");
    scene.no_download(&host)?;
    scene.gateway.up(&[])?;
    lab.step("up again");
    if scene.gateway.told(&["ca", "root"])? != root {
        bail!("the restart made another root");
    }
    let again = scene.gateway.lease(&credentials.serial)?;
    if again["id"] != lease["id"] || again["addresses"] != lease["addresses"] {
        bail!("the lease changed: {lease} became {again}");
    }
    // The client still believes in its old SA.
    let said = charon.swanctl(&["--terminate", "--ike", "net", "--force", "--timeout", "2"])?;
    lab.step(&format!("client forgot its SA: {}", said.out.trim().replace('\n', "; ")));
    charon.initiate("net")?;
    scene.download(&host, 10_000)?;
    if charon.virtual_addresses()?.first() != Some(&address) {
        bail!("the client came back to another address than {address}");
    }
    let status = scene.gateway.json(&["status"])?;
    if status["sas_without_lease"] != 0 {
        bail!("there are SAs without a live lease: {status}");
    }
    lab.leaks().own(&scene.gateway.leased()?)?;
    if scene.gateway.stop()? != 0 {
        bail!("runnel did not stop cleanly\n{}", lab.tails());
    }
    let left = difference(&before, &footprint(&scene.world.gateway)?);
    if !left.is_empty() {
        bail!("what the killed run left was not reconciled:\n{}", left.join("\n"));
    }
    Ok(())
}
