//! ESP in UDP: clients behind one NAT, a NAT that forgets, a client that dies and comes back.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{answered, connected, dual, esp, finish, pings, settings, state, traffic, watch};
use crate::lab::Lab;
use crate::lab::host::Host;
use crate::lab::pkitool::P256;
use crate::lab::wait;
use crate::lab::world::{POOL, RUNNERS, STORE, Shape};
use crate::labs::scene::{Scene, ping};

/// How long a changed mapping may take to be followed.
const FOLLOW: Duration = Duration::from_secs(20);

/// Two clients behind one NAT, one with both families; then the NAT forgets and gives both other
/// ports; then one dies without a word and comes back.
pub(in crate::labs) fn clients(lab: &Lab) -> Result<()> {
    let shape = Shape { runner_nat: true, runners: 2, ..Shape::default() };
    let scene = Scene::new(lab, shape, &settings())?;
    let mut watch = watch(&scene)?;
    let [first, second] = scene.world.runners.as_slice() else { bail!("expected two runners") };
    let (one, _) = connected(&scene, first, dual)?;
    traffic(&scene, first)?;
    let credentials = scene.enrol(second, "enrolled", P256)?;
    let mut two = scene.runner(second, &credentials, |_| {})?;
    two.initiate("net")?;
    scene.agree(&two)?;
    let address = two.virtual_addresses()?.first().cloned().context("no virtual address")?;
    for host in [first, second] {
        scene.download(host, 300_000)?;
    }
    // No selector of theirs holds the other's address.
    lab.leaks().expect_from_now(RUNNERS, POOL)?;
    if ping(first, &address, 2, 0.2)?.1 != 0 {
        bail!("one runner reaches the other through the gateway");
    }

    lab.step("the NAT forgets its mappings and makes others");
    let before = remotes(&scene)?;
    let spis = children(&scene)?;
    let home = scene.world.home.as_ref().context("no NAT")?;
    rebind(home)?;
    // ESP packets from the new ports are all that tells the gateway (RFC 7296 2.23).
    for host in [first, second] {
        answered(&scene, host)?;
    }
    let after = wait::until(lab, "the gateway to list the new ports", FOLLOW, || {
        let after = remotes(&scene)?;
        Ok(after.iter().all(|remote| !before.contains(remote)).then_some(after))
    })?;
    lab.step(&format!("{before:?} became {after:?}"));
    if children(&scene)? != spis {
        bail!("other children than before: {spis:?}, {:?}", scene.gateway.sas()?);
    }
    for host in [first, second] {
        pings(&scene, host, STORE)?;
    }

    lab.step("one dies without a word and comes back");
    two.process().kill()?;
    // What the dead daemon left in its kernel would go on for it.
    for words in ["xfrm state flush", "xfrm policy flush"] {
        second.ip(words)?;
    }
    let _ = second.ip("route flush table 220");
    let _ = second.ip(&format!("addr del {address}/32 dev eth0"));
    let two = scene.runner(second, &credentials, |_| {})?;
    two.initiate("net")?;
    pings(&scene, second, STORE)?;
    scene.download(second, 300_000)?;
    if two.virtual_addresses()? != [address] {
        bail!("it came back to another address: {:?}", two.virtual_addresses()?);
    }
    wait::holds(lab, "the old SAs to be gone", FOLLOW, || {
        let states = scene.world.gateway.ip("xfrm state")?;
        Ok(scene.gateway.sas()?.len() == 2 && states.matches("proto esp").count() == 4)
    })
    .with_context(|| state(&scene))?;
    pings(&scene, first, STORE)?;

    let (plain, in_udp) = esp(&scene, &mut watch)?;
    // Those from and to the NAT's later ports carry 4500 at one end, too.
    if in_udp < 500 || plain != 0 {
        bail!("{in_udp} ESP packets in UDP, {plain} without");
    }
    finish(scene, &[&one, &two])
}

/// A NAT that starts again: its outer link goes down, which makes it forget, and it has other
/// ports to give.
fn rebind(home: &Host) -> Result<()> {
    home.run("nft", &["delete", "table", "ip", "lab_nat"])?;
    home.nft(
        "table ip lab_nat { chain post { type nat hook postrouting priority 100; \
         oifname \"wan\" meta l4proto udp masquerade to :30000-39999; }\n}",
    )?;
    home.ip("link set wan down")?;
    home.ip("link set wan up")?;
    home.route("default via 198.51.100.1")
}

/// Where the gateway sees its peers.
fn remotes(scene: &Scene) -> Result<Vec<String>> {
    list(scene, |sa| sa["remote"].clone())
}

/// The SPIs of its children.
fn children(scene: &Scene) -> Result<Vec<String>> {
    list(scene, |sa| sa["children"][0]["spi_in"].clone())
}

fn list(scene: &Scene, field: impl Fn(&Value) -> Value) -> Result<Vec<String>> {
    let text = |sa| Some(field(sa).as_str()?.to_owned());
    let mut all: Vec<String> = scene.gateway.sas()?.iter().filter_map(text).collect();
    all.sort();
    Ok(all)
}
