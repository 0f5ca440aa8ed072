//! The gateway's process dies; the kernel goes on, or is cleared.

use std::fs;

use anyhow::{Result, bail};

use super::{connected, pings, settings};
use crate::lab::Lab;
use crate::lab::gateway::Settings;
use crate::lab::world::{STORE, Shape};
use crate::labs::keep;
use crate::labs::scene::Scene;

/// Of the pings sent while no gateway runs only those are lost that meet the firewall before it has
/// the client's address again.
const SHARE: f32 = 0.5;

/// As lab `restart-tunnels`, over the kernel's ESP: packets pass while no gateway runs.
pub(in crate::labs) fn goes_on(lab: &Lab) -> Result<()> {
    keep::goes_on(lab, settings(), SHARE)
}

/// Killed, and started with the userspace plane: nothing of the kernel's carries packets any more,
/// and the client connects over the other plane.
pub(in crate::labs) fn other_plane(lab: &Lab) -> Result<()> {
    let mut scene = Scene::new(lab, Shape::default(), &settings())?;
    let host = scene.world.runner().clone();
    let (charon, _) = connected(&scene, &host, |_| {})?;
    pings(&scene, &host, STORE)?;
    let gateway = scene.world.gateway.clone();
    let left = || -> Result<(usize, usize)> {
        let sas = gateway.ip("xfrm state")?.matches("proto esp spi").count();
        // Sockets that bypass policies have entries of their own.
        let policies = gateway.ip("xfrm policy list nosock")?.matches("dir ").count();
        Ok((sas, policies))
    };
    scene.gateway.kill()?;
    if left()? != (2, 5) {
        bail!("a killed gateway left {:?} SAs and policies", left()?);
    }

    let userspace = Settings { gateway: "dataplane = \"userspace\"".to_owned(), ..settings() };
    fs::write(scene.gateway.config(), userspace.text())?;
    scene.gateway.up(&[])?;
    let link = gateway.ip("-d link show runnel0")?;
    if left()? != (0, 0) || link.contains("xfrm") || !link.contains("tun ") {
        bail!("{:?} SAs and policies of the kernel plane are left, and {link}", left()?);
    }
    // The client learns nothing of it: it is told to give up.
    charon.swanctl(&["--terminate", "--ike", "net", "--force"])?;
    charon.initiate("net")?;
    scene.agree(&charon)?;
    pings(&scene, &host, STORE)?;
    scene.download(&host, 100_000)?;
    if left()? != (0, 0) {
        bail!("the userspace plane has {:?} SAs and policies in the kernel", left()?);
    }
    charon.terminate("net")?;
    scene.finish()
}
