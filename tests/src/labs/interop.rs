//! Rekeys without end, moves, and smaller things stock strongSwan does to a gateway.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use super::scene::{Scene, ping};
use super::sites::spis;
use crate::lab::Lab;
use crate::lab::capture::{Capture, ESP_IN_UDP};
use crate::lab::charon::{Charon, Options};
use crate::lab::gateway::Settings;
use crate::lab::http;
use crate::lab::pkitool::{P256, RSA2048};
use crate::lab::wait;
use crate::lab::world::{PRIVATE_NET, PRIVATE_NET6, STORE, STORE_PORT, Shape};

/// How long the storm lasts.
const STORM: Duration = Duration::from_secs(60);

/// Both ends rekey the IKE SA and the child every second or two, often at once, while a ping runs
/// every 10 ms: none is lost.
pub(super) fn storm(lab: &Lab) -> Result<()> {
    let scene = Scene::new(lab, Shape::default(), &Settings::default())?;
    let (charon, _) = scene.connected(P256)?;
    let host = scene.world.runner();
    let count = u32::try_from(STORM.as_millis() / 10)?;
    let ends = Instant::now() + STORM - Duration::from_secs(1);
    let mut seen = Vec::new();
    let (sent, received) = thread::scope(|scope| -> Result<(u32, u32)> {
        let pinging = scope.spawn(|| ping(host, STORE, count, 0.01));
        let theirs = scope.spawn(|| -> Result<u32> {
            let mut done = 0;
            while Instant::now() < ends {
                for args in [["--rekey", "--child", "net"], ["--rekey", "--ike", "net"]] {
                    done += u32::from(charon.swanctl(&args)?.ok());
                    thread::sleep(Duration::from_millis(700));
                }
            }
            Ok(done)
        });
        let mut ours = 0;
        while Instant::now() < ends {
            // An id that was replaced in between is no failure: the next round has the new one.
            for sa in scene.gateway.sas()? {
                let id = sa["id"].as_u64().context("an SA without id")?.to_string();
                ours += u32::from(scene.gateway.cli(&["sa", "rekey", &id])?.ok());
                seen.extend(spis(&scene.gateway).ok());
            }
            thread::sleep(Duration::from_millis(900));
        }
        let theirs = theirs.join().map_err(|_| anyhow!("a thread panicked"))??;
        lab.step(&format!("{ours} rekeys by the gateway, {theirs} by strongSwan"));
        // How many there are is the machine's business.
        if ours < 4 || theirs < 4 {
            bail!("this was no storm: {ours} and {theirs} rekeys in {STORM:?}");
        }
        pinging.join().map_err(|_| anyhow!("ping panicked"))?
    })?;
    let (mut ike, mut child): (Vec<String>, Vec<String>) = seen.into_iter().unzip();
    for list in [&mut ike, &mut child] {
        list.sort();
        list.dedup();
    }
    lab.step(&format!(
        "{received} of {sent} pings over {} IKE SAs and {} children",
        ike.len(),
        child.len()
    ));
    if sent != count || received != sent {
        bail!("{} of {sent} pings lost, {count} wanted\n{}", sent - received, lab.tails());
    }
    if ike.len() < 4 || child.len() < 4 {
        bail!("too few SAs were seen for so many rekeys");
    }
    // Both ends agree on one IKE SA and one child.
    wait::holds(lab, "one IKE SA with one child at both ends", Duration::from_secs(20), || {
        let sas = charon.sas()?;
        let one = sas.matches("ESTABLISHED").count() == 1 && sas.matches("INSTALLED").count() == 1;
        Ok(one && spis(&scene.gateway).is_ok_and(|(_, child)| !child.is_empty()))
    })?;
    scene.agree(&charon)?;
    scene.download(host, 1_000_000)?;
    charon.terminate("net")?;
    scene.no_sas(Duration::from_secs(5))?;
    scene.finish()
}

/// The gateway rekeys the child when it has carried `child_bytes`; downloads in between arrive, and
/// both ends have the same SPIs.
pub(super) fn volume(lab: &Lab) -> Result<()> {
    const DOWNLOADS: usize = 6;
    let settings = Settings { ike: "child_bytes = \"2MB\"\n".to_owned(), ..Settings::default() };
    let scene = Scene::new(lab, Shape::default(), &settings)?;
    let (charon, _) = scene.connected(P256)?;
    let host = scene.world.runner();
    let mut children = vec![spis(&scene.gateway)?.1];
    let (first_ike, _) = spis(&scene.gateway)?;
    for _ in 0..DOWNLOADS {
        scene.download(host, 1_000_000)?;
        // A rekey that this one caused is over before the next one begins.
        wait::holds(
            lab,
            "one child with the same SPI at both ends",
            Duration::from_secs(10),
            || {
                let (ike, child) = spis(&scene.gateway)?;
                if ike != first_ike {
                    bail!("the IKE SA was rekeyed, too");
                }
                let theirs = charon.sas()?;
                let one = theirs.matches("INSTALLED").count() == 1 && theirs.contains(&child);
                if one && !children.contains(&child) {
                    children.push(child);
                }
                Ok(one)
            },
        )?;
        thread::sleep(Duration::from_millis(300));
    }
    lab.step(&format!("{} children for {DOWNLOADS} MB, 2 MB each", children.len()));
    // Six megabytes and what is around them: at least two rekeys, and not one for each download.
    if children.len() < 3 || children.len() >= DOWNLOADS {
        bail!("{} children were made for {DOWNLOADS} MB: {children:?}", children.len());
    }
    charon.terminate("net")?;
    scene.no_sas(Duration::from_secs(5))?;
    scene.finish()
}

/// A client changes its address while it downloads (RFC 4555): the TCP connection stays.
pub(super) fn mobike(lab: &Lab) -> Result<()> {
    const SIZE: u64 = 100_000_000;
    const NEW: &str = "198.51.100.77";
    let scene = Scene::new(lab, Shape::default(), &Settings::default())?;
    let host = scene.world.runner();
    host.sysctl("net/ipv4/conf/eth0/promote_secondaries", "1")?;
    let credentials = scene.enrol(host, "enrolled", P256)?;
    let charon = scene.runner(host, &credentials, |c| {
        c.extra.push(("mobike".to_owned(), "yes".to_owned()));
    })?;
    charon.initiate("net")?;
    let before = remote(&scene)?;
    if before.contains(NEW) {
        bail!("the client is at {before} already");
    }
    let addresses = charon.virtual_addresses()?;
    let requests = scene.store.requests();
    thread::scope(|scope| -> Result<()> {
        let download = scope.spawn(|| scene.download(host, SIZE));
        thread::sleep(Duration::from_millis(500));
        host.address("eth0", &format!("{NEW}/24"))?;
        host.ip("addr del 198.51.100.10/24 dev eth0")?;
        if download.is_finished() {
            bail!("the download was over before the client moved");
        }
        let got = download.join().map_err(|_| anyhow!("the download panicked"))??;
        lab.step(&format!("{} MB in {:.2} s over the move", SIZE / 1_000_000, got.total));
        Ok(())
    })?;
    if scene.store.requests() != requests + 1 {
        bail!("the download was made with {} requests", scene.store.requests() - requests);
    }
    wait::holds(lab, "the gateway to see the new address", Duration::from_secs(10), || {
        Ok(remote(&scene)?.contains(NEW))
    })?;
    if charon.virtual_addresses()? != addresses {
        bail!("the virtual addresses changed: {:?}", charon.virtual_addresses()?);
    }
    if !charon.sas()?.contains(NEW) {
        bail!("strongSwan does not list its own new address: {}", charon.sas()?);
    }
    scene.settle(&charon)?;
    scene.download(host, 1_000_000)?;
    charon.terminate("net")?;
    scene.no_sas(Duration::from_secs(5))?;
    scene.finish()
}

/// The peer's address of the only IKE SA.
pub(super) fn remote(scene: &Scene) -> Result<String> {
    let sas = scene.gateway.sas()?;
    let [sa] = sas.as_slice() else { bail!("expected one IKE SA: {sas:?}") };
    Ok(sa["remote"].as_str().context("an SA without remote")?.to_owned())
}

/// The configuration payload: addresses of both families and a DNS server (RFC 7296 2.19), the
/// same at both ends.
pub(super) fn config_payload(lab: &Lab) -> Result<()> {
    const SERVERS: [&str; 2] = ["10.20.0.53", "fd20::53"];
    let settings = Settings { pool: format!("dns = {SERVERS:?}"), ..Settings::default() };
    let scene = Scene::new(lab, Shape::default(), &settings)?;
    let host = scene.world.runner();
    let credentials = scene.enrol(host, "enrolled", P256)?;
    // What strongSwan tells a script of the child.
    let (script, told) = (lab.path("updown.sh"), lab.path("told"));
    let text =
        format!("#!/bin/sh\nenv | grep ^PLUTO_ > {0}.part\nmv {0}.part {0}\n", told.display());
    fs::write(&script, text)?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o700))?;
    let charon = scene.runner(host, &credentials, |c| {
        c.vips = vec!["0.0.0.0".to_owned(), "::".to_owned()];
        c.remote_ts = format!("{PRIVATE_NET},{PRIVATE_NET6}");
        c.updown = script.display().to_string();
    })?;
    charon.initiate("net")?;
    let told = wait::until(lab, "strongSwan to run the script", Duration::from_secs(5), || {
        Ok(fs::read_to_string(&told).ok())
    })?;
    for (server, family) in SERVERS.iter().zip([4, 6]) {
        let line = format!("PLUTO_DNS{family}_1={server}");
        if !told.lines().any(|said| said == line) {
            bail!("strongSwan did not get `{line}`: {told}");
        }
    }
    let mut theirs = charon.virtual_addresses()?;
    let sas = scene.gateway.sas()?;
    let ours = sas.first().and_then(|sa| sa["addresses"].as_array()).context("no addresses")?;
    let mut ours: Vec<String> =
        ours.iter().filter_map(|address| address.as_str().map(str::to_owned)).collect();
    ours.sort();
    theirs.sort();
    if ours != theirs || ours.len() != 2 {
        bail!("the gateway says {ours:?}, the client {theirs:?}");
    }
    scene.agree(&charon)?;
    scene.download(host, 100_000)?;
    charon.terminate("net")?;
    scene.no_sas(Duration::from_secs(5))?;
    scene.finish()
}

/// A client that asks for ESP in UDP where there is no NAT.
pub(super) fn force_encap(lab: &Lab) -> Result<()> {
    let scene = Scene::new(lab, Shape::default(), &Settings::default())?;
    let host = scene.world.runner();
    let mut capture = Capture::start(&scene.world.internet, "east", "ip")?;
    let credentials = scene.enrol(host, "enrolled", P256)?;
    let charon = scene.runner(host, &credentials, |c| c.encap = true)?;
    charon.initiate("net")?;
    scene.agree(&charon)?;
    if !charon.sas()?.contains("TUNNEL-in-UDP") {
        bail!("strongSwan does not list ESP in UDP: {}", charon.sas()?);
    }
    scene.download(host, 1_000_000)?;
    charon.terminate("net")?;
    capture.stop()?;
    let (in_udp, plain) = (capture.count(ESP_IN_UDP)?, capture.count("ip proto 50")?);
    if in_udp < 50 || plain > 0 {
        bail!("{in_udp} ESP packets in UDP and {plain} without were seen");
    }
    scene.finish()
}

/// Selectors with a range of ports are narrowed to it at both ends (RFC 7296 2.9).
pub(super) fn port_range(lab: &Lab) -> Result<()> {
    let scene = Scene::new(lab, Shape::default(), &Settings::default())?;
    let host = scene.world.runner();
    let outside = http::Server::start(&scene.world.private, format!("{STORE}:9999").parse()?)?;
    let credentials = scene.enrol(host, "enrolled", P256)?;
    let (low, high) = (STORE_PORT - 10, STORE_PORT + 10);
    let charon = scene.runner(host, &credentials, |c| {
        c.remote_ts = format!("{STORE}/32[tcp/{low}-{high}]");
    })?;
    charon.initiate("net")?;
    let theirs = charon.sas()?;
    let ours = scene.gateway.sas()?[0]["children"][0].to_string();
    for (who, said) in [("strongSwan", &theirs), ("the gateway", &ours)] {
        if !said.contains(&format!("{low}-{high}")) {
            bail!("{who} does not list the range {low}-{high}: {said}");
        }
    }
    scene.download(host, 100_000)?;
    let got = http::download(host, &outside.url(1), Duration::from_millis(1500));
    if got.is_ok() || outside.requests() > 0 {
        bail!("a port outside the range answers");
    }
    charon.terminate("net")?;
    scene.finish()
}

/// RSA signatures with PSS padding (RFC 7427).
pub(super) fn pss(lab: &Lab) -> Result<()> {
    let scene = Scene::new(lab, Shape::default(), &Settings::default())?;
    let host = scene.world.runner();
    let credentials = scene.enrol(host, "enrolled", RSA2048)?;
    let charon = Charon::start(host, &Options { rsa_pss: true, ..Options::default() })?;
    scene.load(&charon, &credentials, |_| {})?;
    let from = charon.log().len();
    charon.initiate("net")?;
    charon.expect_log(from, "RSA_EMSA_PSS", Duration::from_secs(2))?;
    scene.agree(&charon)?;
    scene.download(host, 100_000)?;
    charon.terminate("net")?;
    scene.finish()
}
