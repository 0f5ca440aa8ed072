//! Whole tunnels over the kernel's ESP on both ends: `runnel up` with the kernel data plane,
//! strongSwan with its kernel-netlink.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};

use super::scene::{Scene, ping};
use crate::lab::Lab;
use crate::lab::capture::{Capture, ESP_IN_UDP};
use crate::lab::charon::Charon;
use crate::lab::gateway::Settings;
use crate::lab::host::Host;
use crate::lab::http;
use crate::lab::pkitool::P256;
use crate::lab::process::Process;
use crate::lab::swanctl::Connection;
use crate::lab::wait;
use crate::lab::world::{
    FORBIDDEN, GATEWAY, PRIVATE_NET, PRIVATE_NET6, STORE, STORE_PORT, STORE6, Shape,
};

/// Bytes of a download: enough for a thousand packets, little enough for an emulated machine.
const BYTES: u64 = 1_000_000;

/// ESP directly in IP.
const PLAIN_ESP: &str = "ip proto 50";

/// Any protected flow in clear: on the outside no packet may carry an inner address.
const CLEAR: &str = "net 10.77.0.0/16 or net 10.20.0.0/16 or net fd77::/64 or net fd20::/64";

/// ESP suites the kernel plane must carry.
const SUITES: [&str; 4] = ["aes256gcm16", "aes128gcm16", "chacha20poly1305", "aes256-sha256"];

fn settings() -> Settings {
    Settings { gateway: "dataplane = \"kernel\"".to_owned(), ..Settings::default() }
}

/// Asks for both families.
fn dual(connection: &mut Connection) {
    connection.vips = vec!["0.0.0.0".to_owned(), "::".to_owned()];
    connection.remote_ts = format!("{PRIVATE_NET},{PRIVATE_NET6}");
}

fn connected(scene: &Scene, change: impl FnOnce(&mut Connection)) -> Result<(Charon, String)> {
    let host = scene.world.runner();
    let credentials = scene.enrol(host, "enrolled", P256)?;
    let charon = scene.runner(host, &credentials, change)?;
    charon.initiate("net")?;
    Ok((charon, credentials.serial))
}

/// Pings and downloads in both families; the filter holds.
fn traffic(scene: &Scene) -> Result<()> {
    let (lab, host) = (&scene.lab, scene.world.runner());
    for address in [STORE, STORE6] {
        let counts = ping(host, address, 5, 0.2)?;
        if counts != (5, 5) {
            bail!("pings to {address}: {counts:?}\n{}{}", state(scene), lab.tails());
        }
    }
    let got = scene.download(host, BYTES)?;
    lab.step(&format!("{BYTES} bytes over IPv4 in {:.1} s", got.total));
    let server6 =
        http::Server::start(&scene.world.private, format!("[{STORE6}]:{STORE_PORT}").parse()?)?;
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

/// The gateway's own word: how many children, and that they carried packets both ways.
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

/// Waits for the end of every SA, stops the gateway and looks at what it left.
fn finish(mut scene: Scene, charon: &Charon) -> Result<()> {
    charon.terminate("net")?;
    scene.no_sas(Duration::from_secs(5))?;
    let left = scene.world.gateway.ip("xfrm state")?;
    if !left.trim().is_empty() {
        bail!("SAs left after the tunnel's end: {left}");
    }
    if scene.gateway.log().contains("panicked") {
        bail!("runnel panicked: {}", scene.gateway.log());
    }
    let code = scene.gateway.stop()?;
    if code != 0 {
        bail!("runnel stopped with exit code {code}\n{}", scene.lab.tails());
    }
    nothing_left(&scene.world.gateway)
}

/// Plain ESP with both inner families.
pub(super) fn plain(lab: &Lab) -> Result<()> {
    let scene = Scene::new(lab, Shape::default(), &settings())?;
    let mut capture = Capture::start(&scene.world.internet, "east", "")?;
    let (charon, _) = connected(&scene, dual)?;
    traffic(&scene)?;
    counted(&scene)?;
    capture.stop()?;
    let (esp, encapsulated, clear) =
        (capture.count(PLAIN_ESP)?, capture.count(ESP_IN_UDP)?, capture.count(CLEAR)?);
    lab.step(&format!("{esp} ESP packets, {encapsulated} in UDP, {clear} in clear"));
    if esp < 500 || encapsulated != 0 || clear != 0 {
        bail!("{esp} ESP packets, {encapsulated} in UDP, {clear} in clear");
    }
    finish(scene, &charon)
}

/// ESP in UDP: the runner sits behind a NAT.
pub(super) fn encap(lab: &Lab) -> Result<()> {
    let shape = Shape { runner_nat: true, ..Shape::default() };
    let scene = Scene::new(lab, shape, &settings())?;
    let mut capture = Capture::start(&scene.world.internet, "east", "")?;
    let (charon, _) = connected(&scene, dual)?;
    traffic(&scene)?;
    counted(&scene)?;
    capture.stop()?;
    let (esp, encapsulated, clear) =
        (capture.count(PLAIN_ESP)?, capture.count(ESP_IN_UDP)?, capture.count(CLEAR)?);
    lab.step(&format!("{esp} ESP packets, {encapsulated} in UDP, {clear} in clear"));
    if encapsulated < 500 || esp != 0 || clear != 0 {
        bail!("{esp} ESP packets, {encapsulated} in UDP, {clear} in clear");
    }
    finish(scene, &charon)
}

/// Every ESP suite, with traffic.
pub(super) fn suites(lab: &Lab) -> Result<()> {
    let scene = Scene::new(lab, Shape::default(), &settings())?;
    let host = scene.world.runner().clone();
    let credentials = scene.enrol(&host, "enrolled", P256)?;
    let charon = scene.runner(&host, &credentials, |_| {})?;
    for suite in SUITES {
        scene.load(&charon, &credentials, |c| c.esp = suite.to_owned())?;
        charon.initiate("net").with_context(|| format!("ESP suite {suite}"))?;
        let counts = ping(&host, STORE, 3, 0.2)?;
        if counts != (3, 3) {
            bail!("pings with {suite}: {counts:?}\n{}{}", state(&scene), lab.tails());
        }
        scene.download(&host, 200_000).with_context(|| format!("ESP suite {suite}"))?;
        let sas = scene.gateway.sas()?;
        let shown = sas[0]["children"][0]["suite"].as_str().unwrap_or_default().to_lowercase();
        if !suite.split('-').all(|word| shown.contains(word)) {
            bail!("`sa list` shows {shown} instead of {suite}");
        }
        lab.step(suite);
        charon.terminate("net")?;
        scene.no_sas(Duration::from_secs(5))?;
    }
    scene.finish()
}

/// `runnel lease release` stops the packets of a peer that hears nothing of it.
pub(super) fn release(lab: &Lab) -> Result<()> {
    let scene = Scene::new(lab, Shape::default(), &settings())?;
    let (_charon, serial) = connected(&scene, |_| {})?;
    let host = scene.world.runner();
    let mut outside = Capture::start(&scene.world.internet, "east", "")?;
    let mut inside = Capture::start(&scene.world.private, "eth0", "icmp")?;
    let mut command = host.command("ping");
    command.args(["-n", "-i", "0.05", "-W", "1", STORE]);
    let _pinging = Process::start(lab, "ping", command, &host.dir()?.join("ping.log"))?;
    wait::holds(lab, "pings to pass", Duration::from_secs(5), || {
        // A file that is being written may end within a packet.
        Ok(inside.count("icmp[icmptype] == icmp-echo").is_ok_and(|count| count >= 10))
    })?;
    // The peer does not hear the DELETE: only the gateway can stop its packets.
    scene.world.internet.nft(
        "table ip deaf { chain pass { type filter hook forward priority 0; \
         ip saddr 203.0.113.2 udp sport { 500, 4500 } drop; }\n}",
    )?;
    let lease = scene.gateway.lease(&serial)?;
    let id = lease["id"].as_str().context("a lease without id")?.to_owned();
    scene.gateway.json(&["lease", "release", &id])?;
    let answered = now();
    let left = scene.world.gateway.ip("xfrm state")?;
    if !left.trim().is_empty() {
        bail!("there is still an SA after the answer: {left}");
    }
    std::thread::sleep(Duration::from_secs(3));
    inside.stop()?;
    outside.stop()?;
    let last = inside.times("icmp")?.last().copied().context("no ping was ever seen")?;
    lab.step(&format!("last inner packet {:+.3} s from the answer", last - answered));
    if last > answered {
        bail!("inner packets still passed {:.3} s after the answer", last - answered);
    }
    let after = |filter: &str| -> Result<usize> {
        Ok(outside.times(filter)?.into_iter().filter(|time| *time > answered).count())
    };
    if after(&format!("{PLAIN_ESP} and src host 198.51.100.10"))? < 10 {
        bail!("the peer did not go on sending, so nothing was shown");
    }
    if after(&format!("{PLAIN_ESP} and src host {GATEWAY}"))? > 0 {
        bail!("the gateway sent ESP after the answer");
    }
    let clear = outside.count(CLEAR)?;
    if clear > 0 {
        bail!("{clear} packets of the tunnel in clear outside");
    }
    scene.finish()
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}
