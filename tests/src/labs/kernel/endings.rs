//! How access ends: packets stop at once, whatever the peer hears of it.

use anyhow::{Context, Result, bail};

use super::{connected, no_state, nothing_left, settings};
use crate::lab::Lab;
use crate::lab::capture::{Capture, PLAIN_ESP};
use crate::lab::host::Host;
use crate::lab::wait;
use crate::lab::world::{GATEWAY, STORE, Shape};
use crate::labs::endings::{background_ping, now};
use crate::labs::scene::Scene;

/// What peers send.
const ECHO: &str = "icmp[icmptype] == icmp-echo";

/// `lease release` and `cert revoke` stop the packets of peers that hear nothing of it.
pub(in crate::labs) fn stops(lab: &Lab) -> Result<()> {
    let shape = Shape { runners: 2, ..Shape::default() };
    let scene = Scene::new(lab, shape, &settings())?;
    // The peers do not hear the DELETE: only the gateway can stop their packets.
    let deaf = "table ip deaf { chain pass { type filter hook forward priority 0; \
                ip saddr 203.0.113.2 udp sport { 500, 4500 } drop; }\n}";
    let [first, second] = scene.world.runners.as_slice() else { bail!("expected two runners") };
    let (_one, released) = connected(&scene, first, |_| {})?;
    let (_two, revoked) = connected(&scene, second, |_| {})?;
    scene.world.internet.nft(deaf)?;
    let lease = scene.gateway.lease(&released)?;
    let lease = lease["id"].as_str().context("a lease without id")?.to_owned();
    stop(&scene, first, "198.51.100.10", &["lease", "release", &lease])?;
    stop(&scene, second, "198.51.101.10", &["cert", "revoke", &revoked])?;
    no_state(&scene)?;
    let gateway = scene.world.gateway.clone();
    scene.finish()?;
    nothing_left(&gateway)
}

/// While a peer pings: a command whose answer is the last that the peer's packets outlive.
fn stop(scene: &Scene, host: &Host, outer: &str, words: &[&str]) -> Result<()> {
    /// Packets the peer sends in vain until this has been shown.
    const IN_VAIN: usize = 20;
    let (lab, internet, private) = (&scene.lab, &scene.world.internet, &scene.world.private);
    let sas = scene.gateway.sas()?.len();
    let mut outside = Capture::start(internet, "east", "")?;
    let mut inside = Capture::start(private, "eth0", "ip")?;
    let pinging = background_ping(host, STORE)?;
    // A file that is being written may end within a packet.
    wait::holds(lab, "pings to pass", super::SOON, || {
        Ok(inside.count(ECHO).is_ok_and(|count| count >= 10))
    })?;
    scene.gateway.json(words)?;
    let answered = now();
    if scene.gateway.sas()?.len() != sas - 1 {
        bail!("there is still an SA after the answer: {:?}", scene.gateway.sas()?);
    }
    let from_peer = format!("{PLAIN_ESP} and src host {outer}");
    wait::holds(lab, "the peer to send in vain", super::SOON, || {
        let times = outside.times(&from_peer).unwrap_or_default();
        Ok(times.into_iter().filter(|time| *time > answered).count() >= IN_VAIN)
    })?;
    drop(pinging);
    outside.drain(internet, GATEWAY)?;
    inside.drain(private, "10.20.0.1")?;
    let last = inside.times(ECHO)?.last().copied().context("no ping was ever seen")?;
    let what = words.join(" ");
    lab.step(&format!("{what}: last inner packet {:+.3} s from the answer", last - answered));
    if last > answered {
        bail!("{what}: inner packets still passed {:.3} s after the answer", last - answered);
    }
    let to_peer = format!("{PLAIN_ESP} and src host {GATEWAY} and dst host {outer}");
    let late = outside.times(&to_peer)?.into_iter().filter(|time| *time > answered).count();
    if late > 0 {
        bail!("{what}: {late} ESP packets after the answer");
    }
    Ok(())
}
