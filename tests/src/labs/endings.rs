//! How access ends: release, revocation, a vanished client.

use std::fs;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::refusals::expect_refusal;
use super::scene::{Credentials, Scene, ping};
use crate::lab::capture::{Capture, ESP_IN_UDP};
use crate::lab::gateway::Settings;
use crate::lab::host::Host;
use crate::lab::pkitool::P256;
use crate::lab::process::Process;
use crate::lab::world::{GATEWAY, POOL, STORE, Shape};
use crate::lab::{Lab, wait};

/// Seconds after an end that was seen from outside in which a packet that was on its way may still
/// be seen.
pub(super) const GRACE: f64 = 0.5;

/// `runnel lease release` ends the tunnel at once, even when the peer hears nothing of it.
pub(super) fn release(lab: &Lab) -> Result<()> {
    ends_at_once(lab, |scene, serial| {
        let lease = scene.gateway.lease(serial)?;
        let id = lease["id"].as_str().context("a lease without id")?;
        scene.gateway.json(&["lease", "release", id])?;
        let answered = now();
        mark(scene)?;
        Ok(("released", answered))
    })
}

/// `runnel cert revoke` does the same and lists the certificate in the CRL.
pub(super) fn revoke(lab: &Lab) -> Result<()> {
    ends_at_once(lab, |scene, serial| {
        scene.gateway.json(&["cert", "revoke", serial])?;
        let answered = now();
        mark(scene)?;
        let crl = lab.path("issuing.crl");
        let text = scene.gateway.told(&["ca", "crl"])?;
        std::fs::write(&crl, text)?;
        let crl = crl.display().to_string();
        let printed = crate::lab::cmd::run("openssl", &["crl", "-noout", "-text", "-in", &crl])?;
        let plain = serial.trim_start_matches('0').to_ascii_uppercase();
        if !printed.to_ascii_uppercase().contains(&plain) {
            bail!("the CRL does not list {serial}: {printed}");
        }
        Ok(("revoked", answered))
    })
}

/// `end` ends the access of a certificate's serial; it returns the state that the lease is in then,
/// and when the command was answered.
fn ends_at_once(
    lab: &Lab,
    end: impl FnOnce(&Scene, &str) -> Result<(&'static str, f64)>,
) -> Result<()> {
    let scene = Scene::new(lab, Shape::default(), &Settings::default())?;
    let (charon, credentials) = scene.connected(P256)?;
    let host = scene.world.runner();
    scene.download(host, 100_000)?;
    let mut outside = Capture::start(&scene.world.internet, "east", "udp")?;
    let mut inside = Capture::start(&scene.world.private, "eth0", "icmp")?;
    let _pinging = background_ping(host, STORE)?;
    // The peer does not hear the DELETE at first: only the gateway can stop its packets.
    scene.world.internet.nft(
        "table ip deaf { chain pass { type filter hook forward priority 0; \
         ip saddr 203.0.113.2 udp sport { 500, 4500 } @th,64,32 0 drop; }\n}",
    )?;
    wait::holds(lab, "pings to pass", Duration::from_secs(45), || {
        // A file that is being written may end within a packet.
        Ok(inside.count("icmp[icmptype] == icmp-echo").is_ok_and(|count| count >= 10))
    })?;
    let peer_before = charon.log().len();
    let asked = now();
    let (state, answered) = end(&scene, &credentials.serial)?;
    lab.step(&format!("answered in {:.0} ms", (answered - asked) * 1000.0));
    if !scene.gateway.sas()?.is_empty() {
        bail!("there is still an SA after the answer");
    }
    std::thread::sleep(Duration::from_millis(2500));
    inside.stop()?;
    nothing_behind_the_mark(lab, &inside)?;
    // Now the peer may hear the retransmitted DELETE.
    scene.without_tunnel()?;
    scene.world.internet.run("nft", &["delete", "table", "ip", "deaf"])?;
    charon.expect_log(peer_before, "received DELETE for IKE_SA", Duration::from_secs(15))?;
    outside.stop()?;
    let sent: Vec<f64> = outside.times(&format!("({ESP_IN_UDP}) and src host {GATEWAY}"))?;
    if let Some(last) = sent.last()
        && *last > answered + GRACE
    {
        bail!("the gateway sent ESP {:.3} s after the answer", last - answered);
    }
    let deletes = outside
        .times(&format!("udp port 4500 and udp[8:4] = 0 and src host {GATEWAY}"))?
        .into_iter()
        .filter(|time| *time >= asked)
        .count();
    if deletes < 2 {
        bail!("the DELETE was sent {deletes} times to a deaf peer; it must be repeated");
    }
    let lease = scene.gateway.lease(&credentials.serial)?;
    if lease["state"] != state {
        bail!("the lease is {} instead of {state}", lease["state"]);
    }
    scene.no_download(host)?;
    wait::holds(lab, "the client to drop its SA", Duration::from_secs(5), || {
        Ok(!charon.sas()?.contains("ESTABLISHED"))
    })?;
    expect_refusal(&scene, &charon, &format!("reconnect with a {state} lease"), "AUTH_FAILED")?;
    scene.no_download(host)?;
    scene.finish()
}

/// A client that vanishes is noticed, its SA removed, its lease lost; it may come back.
pub(super) fn dead_peer(lab: &Lab) -> Result<()> {
    let settings = Settings { ike: "dpd = \"1s\"".to_owned(), ..Settings::default() };
    let scene = Scene::new(lab, Shape::default(), &settings)?;
    let (mut charon, credentials) = scene.connected(P256)?;
    let host = scene.world.runner().clone();
    scene.download(&host, 10_000)?;
    charon.process().kill()?;
    let vanished = std::time::Instant::now();
    scene.no_sas(Duration::from_secs(90))?;
    lab.step(&format!("noticed after {:.1} s", vanished.elapsed().as_secs_f64()));
    let lease = lost(&scene, &credentials)?;
    drop(charon);
    // What the killed daemon left on its host would answer for it.
    let _ = host.ip("link del ipsec0");
    let _ = host.ip("route flush table 220");
    let address = lease["addresses"][0].as_str().context("a lease without address")?;
    let _ = host.ip(&format!("addr del {address}/32 dev eth0"));
    lab.step("nothing is sent to where the client was");
    let filter = format!("({ESP_IN_UDP}) and src host {GATEWAY}");
    let mut outside = Capture::start(&scene.world.internet, "east", &filter)?;
    let (_, answered) = ping(&scene.world.private, address, 5, 0.2)?;
    outside.stop()?;
    let sent = outside.count("udp")?;
    if answered != 0 || sent != 0 {
        bail!(
            "a lost client's address answered {answered} pings, and {sent} ESP packets were sent"
        );
    }
    let mut back = scene.runner(&host, &credentials, |_| {})?;
    back.initiate("net")?;
    scene.download(&host, 10_000)?;
    if back.virtual_addresses()?.first().map(String::as_str) != Some(address) {
        bail!("the client came back to another address than {address}");
    }

    // Gone for good: what is left of the default 90 s is not waited for.
    back.process().kill()?;
    scene.no_sas(Duration::from_secs(90))?;
    lost(&scene, &credentials)?;
    let text = fs::read_to_string(scene.gateway.config())?;
    fs::write(scene.gateway.config(), format!("{text}\n[lease]\nlost_grace = \"10s\"\n"))?;
    scene.gateway.told(&["reload"])?;
    drop(back);
    let _ = host.ip("link del ipsec0");
    let _ = host.ip("route flush table 220");
    let _ = host.ip(&format!("addr del {address}/32 dev eth0"));
    let lease = wait::until(lab, "the lease to be released", Duration::from_secs(60), || {
        let lease = scene.gateway.lease(&credentials.serial)?;
        Ok((lease["state"] == "released").then_some(lease))
    })?;
    if !lease["ended"].as_str().unwrap_or_default().ends_with("lost") {
        bail!("the lease ended otherwise: {lease}");
    }
    lab.step("its certificate opens nothing any more");
    let late = scene.runner(&host, &credentials, |_| {})?;
    expect_refusal(&scene, &late, "a lease that was lost for too long", "AUTH_FAILED")?;
    scene.no_download(&host)?;
    scene.finish()
}

/// Waits until the lease of a client that is gone is lost.
fn lost(scene: &Scene, credentials: &Credentials) -> Result<Value> {
    wait::until(&scene.lab, "the lease to be lost", Duration::from_secs(5), || {
        let lease = scene.gateway.lease(&credentials.serial)?;
        Ok((lease["state"] == "lost").then_some(lease))
    })
}

/// Sends a packet of the gateway's own behind the last one of a tunnel, once an end was answered:
/// where both are captured, their order says more than clocks do.
pub(super) fn mark(scene: &Scene) -> Result<()> {
    match ping(&scene.world.gateway, STORE, 1, 0.2)? {
        (1, 1) => Ok(()),
        (sent, answered) => bail!("the gateway's own ping: {sent} sent, {answered} answered"),
    }
}

/// Packets of the tunnel had stopped before the answer.
pub(super) fn nothing_behind_the_mark(lab: &Lab, inside: &Capture) -> Result<()> {
    let inner = inside.times(&format!("icmp[icmptype] == icmp-echo and src net {POOL}"))?;
    let marks = inside.times(&format!("icmp[icmptype] == icmp-echo and not src net {POOL}"))?;
    let last = inner.last().context("no ping was ever seen")?;
    let mark = marks.first().context("the gateway's own packet was not seen")?;
    lab.step(&format!("last inner packet {:.3} s before the mark behind the answer", mark - last));
    if last > mark {
        bail!("inner packets still passed after the answer");
    }
    Ok(())
}

pub(super) fn background_ping(host: &Host, address: &str) -> Result<Process> {
    let mut command: Command = host.command("ping");
    command.args(["-n", "-i", "0.05", "-W", "1", address]);
    Process::start(host.lab(), "ping", command, &host.dir()?.join("ping.log"))
}

pub(super) fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}
