//! Rekeys by both ends without end, over the kernel's ESP.

use std::collections::BTreeSet;
use std::thread;

use anyhow::{Context, Result, anyhow, bail};

use super::{connected, finish, settings, state};
use crate::lab::Lab;
use crate::lab::charon::Charon;
use crate::lab::world::{STORE, Shape};
use crate::labs::scene::{Pings, Scene};
use crate::labs::sites::spis;

/// Rekeys that each end asks for.
const ROUNDS: usize = 6;

/// Both ends rekey the IKE SA and the child, often at once, while a ping runs every 10 ms: none
/// is lost.
pub(in crate::labs) fn storm(lab: &Lab) -> Result<()> {
    let scene = Scene::new(lab, Shape::default(), &settings())?;
    let host = scene.world.runner();
    let (charon, _) = connected(&scene, host, |_| {})?;
    let pinging = Pings::start(host, STORE, 0.01)?;
    pinging.reach(20)?;
    let (ours, theirs) = thread::scope(|scope| -> Result<_> {
        let theirs = scope.spawn(|| by_client(&charon));
        let ours = by_gateway(&scene)?;
        Ok((ours, theirs.join().map_err(|_| anyhow!("a thread panicked"))??))
    })?;
    // Packets under the last keys, too.
    scene.settle(&charon)?;
    let (_, received) = super::ping(host, STORE, 10, 0.01)?;
    let pinged = pinging.finish()?;
    lab.step(&format!(
        "{theirs} rekeys by strongSwan; {} children, {} pings, lost {:?}",
        ours.len(),
        pinged.sent,
        pinged.lost
    ));
    if received != 10 || !pinged.lost.is_empty() {
        bail!("lost {:?} of {} pings\n{}{}", pinged.lost, pinged.sent, state(&scene), lab.tails());
    }
    if ours.len() < 4 || theirs < 4 {
        bail!("this was no storm: {} children seen, {theirs} rekeys by strongSwan", ours.len());
    }
    finish(scene, &[&charon])
}

/// The gateway rekeys; returns the children it had.
fn by_gateway(scene: &Scene) -> Result<BTreeSet<String>> {
    let mut seen = BTreeSet::new();
    for _ in 0..ROUNDS {
        for sa in scene.gateway.sas()? {
            let id = sa["id"].as_u64().context("an SA without id")?.to_string();
            // An id that was replaced in between is no failure: the next round has the new one.
            scene.gateway.cli(&["sa", "rekey", &id])?;
            seen.extend(spis(&scene.gateway).map(|(_, child)| child));
        }
    }
    Ok(seen)
}

/// strongSwan rekeys; returns how often it could.
fn by_client(charon: &Charon) -> Result<usize> {
    let mut done = 0;
    for _ in 0..ROUNDS / 2 {
        for what in ["--child", "--ike"] {
            done += usize::from(charon.swanctl(&["--rekey", what, "net"])?.ok());
        }
    }
    Ok(done)
}
