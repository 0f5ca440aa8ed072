//! A hop on the way that is narrower than either end knows.

use anyhow::{Result, bail};

use super::{connected, finish, settings, state};
use crate::lab::Lab;
use crate::lab::world::Shape;
use crate::labs::scene::Scene;

/// Bytes of a download that must cross the hop in many full packets.
const LARGE: u64 = 3_000_000;

/// The hop's MTU; ends and gateway have 1500.
const NARROW: u32 = 1300;

/// First the hop is silent about what it drops (a black hole), then it says so: downloads arrive
/// in both cases.
pub(in crate::labs) fn narrow(lab: &Lab) -> Result<()> {
    let scene = Scene::new(lab, Shape::default(), &settings())?;
    let host = scene.world.runner();
    let (internet, private) = (&scene.world.internet, &scene.world.private);
    // The client's side of the hop knows its own link.
    internet.ip(&format!("link set west1 mtu {NARROW}"))?;
    host.ip(&format!("link set eth0 mtu {NARROW}"))?;
    let (charon, _) = connected(&scene, host, |_| {})?;
    internet.nft(
        "table ip hole { chain out { type filter hook output priority 0; \
         icmp type destination-unreachable counter drop; }\n}",
    )?;
    // A sender finds a silent hop by itself (RFC 4821) when it is told to look.
    private.sysctl("net/ipv4/tcp_mtu_probing", "1")?;
    let got = scene.download(host, LARGE)?;
    let rules = internet.run("nft", &["list", "table", "ip", "hole"])?;
    if rules.contains("packets 0 ") {
        bail!("the hop was never too narrow: {rules}");
    }
    lab.step(&format!("{LARGE} bytes through a black hole in {:.1} s", got.total));
    private.sysctl("net/ipv4/tcp_mtu_probing", "0")?;
    internet.run("nft", &["delete", "table", "ip", "hole"])?;
    private.ip("tcp_metrics flush all")?;
    let got = scene.download(host, LARGE)?;
    lab.step(&format!("{LARGE} bytes through an honest hop in {:.1} s", got.total));
    let vip = charon.virtual_addresses()?;
    let learnt = private.ip(&format!("route get {}", vip.join("")))?;
    if !learnt.contains(" mtu ") {
        bail!("the sender learnt no size: {learnt}{}", state(&scene));
    }
    finish(scene, &[&charon])
}
