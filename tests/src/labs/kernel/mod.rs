//! Whole tunnels over the kernel's ESP on both ends: `runnel up` with the kernel data plane,
//! strongSwan with its kernel-netlink. They run in the guest, whose kernel has ESP.
//!
//! As every lab they are watched on both sides of the gateway ([`crate::lab::leaks`]); those about
//! the form of ESP also capture it: a label on an SA proves nothing about packets.

pub(super) mod endings;
pub(super) mod moves;
pub(super) mod mtu;
pub(super) mod nat;
pub(super) mod plane;
pub(super) mod rekey;
pub(super) mod restart;
pub(super) mod tunnel;

use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::scene::{Scene, ping};
use crate::lab::capture::{Capture, ESP_IN_UDP, PLAIN_ESP};
use crate::lab::charon::Charon;
use crate::lab::gateway::Settings;
use crate::lab::host::Host;
use crate::lab::http::{self, Server};
use crate::lab::pkitool::P256;
use crate::lab::swanctl::Connection;
use crate::lab::wait;
use crate::lab::world::{FORBIDDEN, GATEWAY, PRIVATE_NET, PRIVATE_NET6, STORE, STORE_PORT, STORE6};

/// Bytes of a download: enough for a thousand packets, little enough for an emulated machine.
const BYTES: u64 = 1_000_000;

/// What follows a tunnel's end.
const SOON: Duration = Duration::from_secs(5);

fn settings() -> Settings {
    Settings { gateway: "dataplane = \"kernel\"".to_owned(), ..Settings::default() }
}

/// Asks for both families.
fn dual(connection: &mut Connection) {
    connection.vips = vec!["0.0.0.0".to_owned(), "::".to_owned()];
    connection.remote_ts = format!("{PRIVATE_NET},{PRIVATE_NET6}");
}

/// Enrols and connects a runner; returns its certificate's serial, too.
fn connected(
    scene: &Scene,
    host: &Host,
    change: impl FnOnce(&mut Connection),
) -> Result<(Charon, String)> {
    let credentials = scene.enrol(host, "enrolled", P256)?;
    let charon = scene.runner(host, &credentials, change)?;
    scene.lab.step(&format!("{} has strongSwan", host.name()));
    charon.initiate("net")?;
    scene.agree(&charon)?;
    let again = charon.log().matches("[IKE] retransmit ").count();
    scene.lab.step(&format!("{} is connected; requests sent again: {again}", host.name()));
    Ok((charon, credentials.serial))
}

/// Every ping is answered.
fn pings(scene: &Scene, host: &Host, address: &str) -> Result<()> {
    let counts = ping(host, address, 5, 0.1)?;
    if counts != (5, 5) {
        let name = host.name();
        bail!("pings from {name} to {address}: {counts:?}\n{}{}", state(scene), scene.lab.tails());
    }
    Ok(())
}

/// Waits until a ping is answered.
fn answered(scene: &Scene, host: &Host) -> Result<()> {
    let what = format!("a ping of {} to be answered", host.name());
    wait::holds(&scene.lab, &what, SOON, || Ok(ping(host, STORE, 2, 0.2)?.1 > 0))
        .with_context(|| state(scene))
}

/// Pings and downloads in both families; the filter holds.
fn traffic(scene: &Scene, host: &Host) -> Result<()> {
    let lab = &scene.lab;
    for address in [STORE, STORE6] {
        pings(scene, host, address)?;
    }
    let got = scene.download(host, BYTES)?;
    lab.step(&format!("{BYTES} bytes over IPv4 in {:.1} s", got.total));
    let server6 = Server::start(&scene.world.private, format!("[{STORE6}]:{STORE_PORT}").parse()?)?;
    let got = http::download(host, &server6.url(BYTES), Duration::from_secs(60))
        .with_context(|| format!("over IPv6\n{}", lab.tails()))?;
    lab.step(&format!("{BYTES} bytes over IPv6 in {:.1} s", got.total));
    if ping(host, FORBIDDEN, 2, 0.2)?.1 != 0 {
        bail!("a host outside the role's list answers");
    }
    Ok(())
}

/// The gateway's SAs, policies, counters and rules, for error messages; keys are left out.
fn state(scene: &Scene) -> String {
    let host = &scene.world.gateway;
    let mut text = String::new();
    for (program, words) in [
        ("ip", "-s xfrm state list nokeys"),
        ("ip", "xfrm policy"),
        ("cat", "/proc/net/xfrm_stat"),
        ("nft", "list ruleset"),
    ] {
        let words: Vec<&str> = words.split(' ').collect();
        let said = host.output(program, &words).map(|said| said.all()).unwrap_or_default();
        // Counters at zero tell nothing.
        let lines = said.lines().filter(|line| !line.ends_with("\t0"));
        text.extend(lines.map(|line| format!("{line}\n")));
    }
    text
}

/// The gateway's own word: one child, which carried packets both ways.
fn counted(scene: &Scene) -> Result<()> {
    let sas = scene.gateway.sas()?;
    let [sa] = sas.as_slice() else { bail!("expected one IKE SA: {sas:?}") };
    let child = &sa["children"][0];
    for key in ["bytes_in", "bytes_out"] {
        if child[key].as_u64().unwrap_or(0) < BYTES / 100 {
            bail!("`sa list` shows no {key} after {BYTES} bytes: {sa}");
        }
    }
    Ok(())
}

/// A capture of what passes between clients and gateway.
fn watch(scene: &Scene) -> Result<Capture> {
    Capture::named(&scene.world.internet, "east", "watch", "ip")
}

/// Ends such a capture; returns the packets of ESP in it, directly in IP and in UDP.
fn esp(scene: &Scene, watch: &mut Capture) -> Result<(usize, usize)> {
    watch.drain(&scene.world.internet, GATEWAY)?;
    let (plain, in_udp) = (watch.count(PLAIN_ESP)?, watch.count(ESP_IN_UDP)?);
    scene.lab.step(&format!("{plain} packets of ESP in IP, {in_udp} in UDP"));
    Ok((plain, in_udp))
}

/// Nothing of the gateway's is left in the kernel after a stop.
fn nothing_left(host: &Host) -> Result<()> {
    for (what, words) in [("SAs", "xfrm state"), ("policies", "xfrm policy list nosock")] {
        let left = host.ip(words)?;
        if !left.trim().is_empty() {
            bail!("{what} left behind: {left}");
        }
    }
    if host.has_interface("runnel0")? {
        bail!("the interface was left behind");
    }
    Ok(())
}

/// Ends every tunnel, stops the gateway and looks at what it left. The leak check, which follows,
/// must have seen packets come out of tunnels, or it proves nothing.
fn finish(scene: Scene, charons: &[&Charon]) -> Result<()> {
    let leaks = scene.lab.leaks().clone();
    leaks.own(&scene.gateway.leased()?)?;
    let came = leaks.came_out();
    scene.lab.step(&format!("{came} packets came out of tunnels"));
    if came == 0 {
        bail!("no packet came out of a tunnel");
    }
    for charon in charons {
        charon.terminate("net")?;
    }
    scene.no_sas(SOON)?;
    no_state(&scene)?;
    let gateway = scene.world.gateway.clone();
    scene.finish()?;
    nothing_left(&gateway)
}

/// The gateway's kernel has no SA any more.
fn no_state(scene: &Scene) -> Result<()> {
    wait::holds(&scene.lab, "the gateway's kernel to have no SA", SOON, || {
        Ok(scene.world.gateway.ip("xfrm state")?.trim().is_empty())
    })
}
