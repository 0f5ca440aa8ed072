//! Tunnels outlive the gateway's process.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::scene::{Pings, Scene};
use crate::lab::charon::Charon;
use crate::lab::cleanup::MEMORY;
use crate::lab::gateway::Settings;
use crate::lab::pkitool::P256;
use crate::lab::world::{STORE, Shape};
use crate::lab::{Lab, wait};

/// Between two pings, in seconds.
const INTERVAL: f32 = 0.05;

/// How long a gateway may be away in this lab, start included.
const AWAY: Duration = Duration::from_secs(20);

/// Killed with `kill -9`, and left with `stop --keep`: the client makes no new connection, both ends
/// go on with the same SPIs, packets pass again, IKE goes on, and a revocation ends what went on.
pub(super) fn run(lab: &Lab) -> Result<()> {
    goes_on(lab, Settings::default(), PACKETS_WAIT)
}

/// Pings that may be lost for each interval in which no gateway runs: the userspace plane's packets
/// wait for the next process.
const PACKETS_WAIT: f32 = 1.0;

/// See [`run`]; `share` of the pings sent while no gateway runs may be lost.
pub(super) fn goes_on(lab: &Lab, settings: Settings, share: f32) -> Result<()> {
    let runtime = PathBuf::from(MEMORY).join(lab.prefix());
    let runtime_line = format!("runtime = {:?}\n", runtime.display().to_string());
    let settings =
        Settings { keep_tunnels: true, gateway: runtime_line + &settings.gateway, ..settings };
    let mut scene = Scene::new(lab, Shape::default(), &settings)?;
    let (charon, credentials) = scene.connected(P256)?;
    let host = scene.world.runner().clone();
    scene.download(&host, 100_000)?;
    if kept(&runtime)?.is_empty() {
        bail!("nothing is kept of a live tunnel in {}", runtime.display());
    }

    for way in ["kill", "keep"] {
        let before = scene.gateway.sas()?;
        let pings = Pings::start(&host, STORE, INTERVAL)?;
        pings.reach(10)?;
        let asked = connections(&charon);
        let started = lab.elapsed();
        if way == "kill" {
            scene.gateway.kill()?;
        } else {
            scene.gateway.told(&["stop", "--keep"])?;
        }
        scene.gateway.up(&[])?;
        let away = lab.elapsed().saturating_sub(started);
        let (ike, children) = names(&before)?;
        let after = wait::until(lab, "the same SAs as before", AWAY, || {
            let sas = scene.gateway.sas()?;
            Ok(names(&sas).ok().filter(|now| *now == (ike.clone(), children.clone())))
        })?;
        scene.settle(&charon)?;
        scene.download(&host, 100_000)?;
        let pinged = pings.finish()?;
        lab.step(&format!(
            "{way}: up after {} ms, {} of {} pings lost, SAs {after:?}",
            away.as_millis(),
            pinged.lost.len(),
            pinged.sent
        ));
        // Packets are lost while nobody is there, and not after.
        let bound = (away.as_secs_f32() / INTERVAL * share) as usize + 20;
        if pinged.lost.len() > bound {
            bail!("{} pings lost while the gateway was away for {away:?}", pinged.lost.len());
        }
        if connections(&charon) != asked {
            bail!("the client connected again\n{}", lab.tails());
        }
        if scene.gateway.lease(&credentials.serial)?["state"] != "active" {
            bail!("the lease is not active: {}", scene.gateway.lease(&credentials.serial)?);
        }
        let number = scene.gateway.sas()?.first().map(|sa| sa["id"].to_string());
        let number = number.context("no IKE SA")?;
        let life = scene.gateway.told(&["sa", "show", number.trim_matches('"')])?;
        if !life.contains("goes on after a restart") {
            bail!("`sa show` does not tell of the restart: {life}");
        }
        // Message ids and keys are right: both rekeys work, begun by either side.
        let said = charon.swanctl(&["--rekey", "--child", "net"])?;
        if !said.ok() {
            bail!("the child cannot be rekeyed after the restart: {}", said.all());
        }
        wait::holds(lab, "another child", AWAY, || {
            Ok(names(&scene.gateway.sas()?).is_ok_and(|(_, now)| now != children && now.len() == 1))
        })?;
        let said = charon.swanctl(&["--rekey", "--ike", "net"])?;
        if !said.ok() {
            bail!("the IKE SA cannot be rekeyed after the restart: {}", said.all());
        }
        wait::holds(lab, "another IKE SA", AWAY, || {
            Ok(names(&scene.gateway.sas()?).is_ok_and(|(now, _)| now != ike))
        })?;
        scene.settle(&charon)?;
        scene.download(&host, 100_000)?;
    }

    // What went on ends like any other.
    scene.gateway.told(&["cert", "revoke", &credentials.serial])?;
    scene.no_sas(AWAY)?;
    scene.no_download(&host)?;
    if !kept(&runtime)?.is_empty() {
        bail!("keys of an ended tunnel are still kept: {:?}", kept(&runtime)?);
    }
    scene.finish()?;
    let left: Vec<_> = fs::read_dir(&runtime)?.flatten().map(|entry| entry.path()).collect();
    if !left.is_empty() {
        bail!("a full stop left {left:?}");
    }
    Ok(())
}

/// How often the client began a connection.
fn connections(charon: &Charon) -> usize {
    charon.log().matches("generating IKE_SA_INIT request").count()
}

/// The SPIs of the only IKE SA, and of its children.
fn names(sas: &[Value]) -> Result<(String, Vec<String>)> {
    let [sa] = sas else { bail!("{} IKE SAs instead of one: {sas:?}", sas.len()) };
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let children = sa["children"].as_array().context("no list of children")?;
    let children = children.iter().map(|child| text(&child["spi_in"])).collect();
    Ok((text(&sa["spi_i"]) + &text(&sa["spi_r"]), children))
}

/// Files of live tunnels.
fn kept(runtime: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for instance in fs::read_dir(runtime)?.flatten() {
        let files = fs::read_dir(instance.path())?.flatten().map(|entry| entry.path());
        found.extend(files.filter(|path| path.extension().is_some_and(|end| end == "sa")));
    }
    Ok(found)
}
