//! MOBIKE (RFC 4555) over the kernel's ESP: the same SAs, other addresses.

use anyhow::{Result, bail};

use super::{SOON, answered, connected, dual, esp, finish, pings, settings, state, watch};
use crate::lab::Lab;
use crate::lab::capture::{ESP_IN_UDP, PLAIN_ESP};
use crate::lab::wait;
use crate::lab::world::{GATEWAY, STORE, STORE6, Shape};
use crate::labs::interop::remote;
use crate::labs::scene::Scene;
use crate::labs::sites::spis;

/// Where the client begins.
const FIRST: &str = "198.51.100.10";
/// Another address without a NAT.
const OTHER: &str = "198.51.100.77";
/// An address that a NAT hides behind [`NAT`].
const HIDDEN: &str = "198.51.100.88";
const NAT: &str = "203.0.113.1";

/// A client moves to another address, behind a NAT, and out of it: both ends keep their SAs and
/// move them, and packets go on.
pub(in crate::labs) fn mobike(lab: &Lab) -> Result<()> {
    let scene = Scene::new(lab, Shape::default(), &settings())?;
    let mut watch = watch(&scene)?;
    let host = scene.world.runner();
    host.sysctl("net/ipv4/conf/eth0/promote_secondaries", "1")?;
    scene.world.internet.nft(&format!(
        "table ip hides {{ chain post {{ type nat hook postrouting priority 100; \
         ip saddr {HIDDEN} meta l4proto udp masquerade to :20000-29999; }}\n}}"
    ))?;
    let (charon, _) = connected(&scene, host, |c| {
        dual(c);
        c.extra.push(("mobike".to_owned(), "yes".to_owned()));
    })?;
    let from = charon.log().len();
    let first = (spis(&scene.gateway)?, charon.virtual_addresses()?);
    pings(&scene, host, STORE)?;
    for (old, new, seen) in [(FIRST, OTHER, OTHER), (OTHER, HIDDEN, NAT), (HIDDEN, FIRST, FIRST)] {
        lab.step(&format!("from {old} to {new}"));
        host.address("eth0", &format!("{new}/24"))?;
        host.ip(&format!("addr del {old}/24 dev eth0"))?;
        wait::holds(lab, &format!("the gateway to see {seen}"), SOON, || {
            Ok(remote(&scene)?.starts_with(&format!("{seen}:")))
        })?;
        answered(&scene, host)?;
        for address in [STORE, STORE6] {
            pings(&scene, host, address)?;
        }
        scene.settle(&charon)?;
        let now = (spis(&scene.gateway)?, charon.virtual_addresses()?);
        if now != first {
            bail!("other SPIs or addresses than before: {first:?}, {now:?}");
        }
        let states = scene.world.gateway.ip("xfrm state list nokeys")?;
        // The inbound SA needs no new source: SPI and our own address name it.
        if states.matches("proto esp").count() != 2
            || !states.contains(&format!("src {GATEWAY} dst {seen}"))
            || states.contains("encap type espinudp") != (new == HIDDEN)
        {
            bail!("the SAs in the gateway's kernel were not moved to {seen}: {}", state(&scene));
        }
    }
    let log = charon.log();
    if log.get(from..).unwrap_or_default().contains("with SPIs") {
        bail!("a child was made instead of moved: {log}");
    }
    scene.download(host, 300_000)?;
    esp(&scene, &mut watch)?;
    for (what, filter) in [
        ("plain ESP to the first address", format!("{PLAIN_ESP} and dst host {FIRST}")),
        ("plain ESP to the other", format!("{PLAIN_ESP} and dst host {OTHER}")),
        ("ESP in UDP to the NAT", format!("{ESP_IN_UDP} and dst host {NAT}")),
        ("ESP in UDP from the NAT", format!("{ESP_IN_UDP} and src host {NAT}")),
    ] {
        let count = watch.count(&filter)?;
        lab.step(&format!("{count} packets of {what}"));
        if count < 10 {
            bail!("only {count} packets of {what}");
        }
    }
    finish(scene, &[&charon])
}
