//! Plain ESP: both inner families, a client that lies about its address, every suite.

use anyhow::{Context, Result, bail};

use super::{SOON, connected, counted, dual, esp, finish, pings, settings, state, traffic, watch};
use crate::lab::Lab;
use crate::lab::charon::Charon;
use crate::lab::host::Host;
use crate::lab::pkitool::P256;
use crate::lab::world::{GATEWAY, STORE, Shape};
use crate::labs::scene::{Scene, ping_counts};

/// ESP suites the kernel plane must carry. 64-bit sequence numbers are two more code paths in the
/// kernel: with an AEAD, and with a separate integrity algorithm (`authencesn`).
const SUITES: [&str; 9] = [
    "aes256gcm16",
    "aes256gcm16-esn",
    "aes128gcm16",
    "chacha20poly1305",
    "aes128-sha256",
    "aes256-sha256",
    "aes256-sha256-esn",
    "aes256-sha384",
    "aes256-sha512",
];

/// The suite with which the lab ends.
const LAST: &str = SUITES[SUITES.len() - 1];

/// An address of the pool that no lease has.
const FOREIGN: &str = "10.77.77.77";

/// Both inner families; nothing in clear, no foreign source, nothing left behind.
pub(in crate::labs) fn plain(lab: &Lab) -> Result<()> {
    let scene = Scene::new(lab, Shape::default(), &settings())?;
    let mut watch = watch(&scene)?;
    let host = scene.world.runner();
    let (charon, _) = connected(&scene, host, dual)?;
    traffic(&scene, host)?;
    counted(&scene)?;
    liar(&scene, host)?;
    pings(&scene, host, STORE)?;
    let (plain, in_udp) = esp(&scene, &mut watch)?;
    if plain < 500 || in_udp != 0 {
        bail!("{plain} ESP packets, {in_udp} in UDP");
    }
    finish(scene, &[&charon])
}

/// A client sends another's address through its own SA: the gateway decrypts and drops.
fn liar(scene: &Scene, host: &Host) -> Result<()> {
    const COUNT: u64 = 5;
    let policies = host.ip("xfrm policy list dir out")?;
    let reqid = policies.split_once("reqid ").and_then(|(_, rest)| rest.split(' ').next());
    let reqid = reqid.with_context(|| format!("the client has no policy: {policies}"))?;
    host.ip(&format!("addr add {FOREIGN}/32 dev lo"))?;
    host.ip(&format!(
        "xfrm policy add src {FOREIGN}/32 dst {STORE}/32 dir out \
         tmpl src 198.51.100.10 dst {GATEWAY} proto esp reqid {reqid} mode tunnel"
    ))?;
    let received = || -> Result<u64> {
        let sas = scene.gateway.sas()?;
        sas[0]["children"][0]["packets_in"].as_u64().context("a child without counters")
    };
    let before = received()?;
    let count = COUNT.to_string();
    let said =
        host.output("ping", &["-n", "-c", &count, "-i", "0.2", "-W", "1", "-I", FOREIGN, STORE])?;
    let counts = ping_counts(&said.all()).with_context(|| said.all())?;
    let came = received()? - before;
    scene.lab.step(&format!("{came} packets with a foreign source came, {} answered", counts.1));
    if counts.1 != 0 {
        bail!("a foreign source is answered: {}{}", said.all(), state(scene));
    }
    if came < COUNT {
        bail!("only {came} packets with a foreign source came: this proves nothing");
    }
    Ok(())
}

/// Every ESP suite, the same at both ends, with traffic.
pub(in crate::labs) fn suites(lab: &Lab) -> Result<()> {
    let scene = Scene::new(lab, Shape::default(), &settings())?;
    let host = scene.world.runner().clone();
    let credentials = scene.enrol(&host, "enrolled", P256)?;
    let charon = scene.runner(&host, &credentials, |_| {})?;
    for suite in SUITES {
        let attempt = || -> Result<()> {
            scene.load(&charon, &credentials, |c| c.esp = suite.to_owned())?;
            charon.initiate("net")?;
            pings(&scene, &host, STORE)?;
            scene.download(&host, 100_000)?;
            shown(&scene, &charon, suite)
        };
        attempt().with_context(|| format!("ESP suite {suite}"))?;
        lab.step(suite);
        if suite != LAST {
            charon.terminate("net")?;
            scene.no_sas(SOON)?;
        }
    }
    finish(scene, &[&charon])
}

/// Both ends' own words: the suite, and the size of sequence numbers in both kernels.
fn shown(scene: &Scene, charon: &Charon, suite: &str) -> Result<()> {
    let sas = scene.gateway.sas()?;
    let ours = sas[0]["children"][0]["suite"].as_str().unwrap_or_default().to_lowercase();
    let esn = suite.ends_with("-esn");
    if !suite.split('-').all(|word| ours.contains(word)) || ours.ends_with("-esn") != esn {
        bail!("`sa list` shows {ours} instead of {suite}");
    }
    let theirs = charon.sas()?;
    if theirs.contains("/ESN") != esn {
        bail!("strongSwan does not say the same of 64-bit sequence numbers: {theirs}");
    }
    for host in [&scene.world.gateway, charon.host()] {
        let states = host.ip("xfrm state list nokeys")?;
        // Large windows are told under the heading of extended numbers, whatever the flag says.
        let flags = states.lines().filter(|line| line.trim_start().starts_with("replay-window"));
        let flags: Vec<bool> =
            flags.map(|line| line.split(' ').any(|word| word == "esn")).collect();
        if flags != [esn, esn] {
            bail!("{} has other SAs than two with ESN {esn}: {states}", host.name());
        }
    }
    Ok(())
}
