//! Hostile input and a flood, while an honest tunnel carries traffic.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

use super::scene::{Pings, Scene};
use crate::hostile::flood;
use crate::hostile::message::{self, Dice};
use crate::hostile::spoof::Spoofer;
use crate::lab::Lab;
use crate::lab::capture::Capture;
use crate::lab::gateway::Settings;
use crate::lab::host::Host;
use crate::lab::pkitool::P256;
use crate::lab::world::{GATEWAY, STORE, Shape};

/// Where the gateway listens.
const IKE_PORT: u16 = 500;
/// Where it listens for UDP-encapsulated traffic.
const NATT_PORT: u16 = 4500;
/// Seconds between two pings.
const PING_INTERVAL: f32 = 0.1;
/// Growth of resident memory allowed under a flood.
const GROWTH: u64 = 16 * 1024 * 1024;
/// UNSUPPORTED_CRITICAL_PAYLOAD (RFC 7296 3.10.1).
const UNSUPPORTED_CRITICAL_PAYLOAD: u16 = 1;
/// INVALID_MAJOR_VERSION.
const INVALID_MAJOR_VERSION: u16 = 5;

/// Pings beside the attack: through the tunnel, and as many to the gateway outside of it, which
/// tell what the network and this machine lose by themselves.
struct Pinger {
    inside: Pings,
    outside: Pings,
}

impl Pinger {
    fn start(host: &Host) -> Result<Self> {
        let inside = Pings::start(host, STORE, PING_INTERVAL)?;
        Ok(Self { inside, outside: Pings::start(host, GATEWAY, PING_INTERVAL)? })
    }

    /// Ends both when `at_least` were sent. The tunnel must not have lost more than the network.
    fn finish(self, lab: &Lab, at_least: u32) -> Result<()> {
        self.inside.reach(at_least)?;
        self.outside.reach(at_least)?;
        let (inside, outside) = (self.inside.finish()?, self.outside.finish()?);
        lab.step(&format!(
            "lost {} of {} pings in the tunnel, {} of {} outside of it",
            inside.lost.len(),
            inside.sent,
            outside.lost.len(),
            outside.sent
        ));
        if outside.lost.len() * 2 > usize::try_from(outside.sent)? {
            bail!("the network itself loses most pings: nothing can be told");
        }
        if inside.lost.len() > outside.lost.len() {
            bail!(
                "the tunnel lost {} of {} pings (numbers {:?}), the network around it {}",
                inside.lost.len(),
                inside.sent,
                inside.lost,
                outside.lost.len()
            );
        }
        Ok(())
    }
}

/// Truncated, oversized, unknown critical, wrong SPI, replayed and spoofed messages.
pub(super) fn messages(lab: &Lab) -> Result<()> {
    let scene = Scene::new(lab, Shape::default(), &Settings::default())?;
    let mut handshake = Capture::start(&scene.world.internet, "east", "udp")?;
    let (charon, _) = scene.connected(P256)?;
    scene.download(scene.world.runner(), 500_000)?;
    handshake.stop()?;
    let before = scene.gateway.sas()?;
    let [victim] = before.as_slice() else { bail!("expected one SA: {before:?}") };
    let pinger = Pinger::start(scene.world.runner())?;
    let resident = scene.gateway.resident()?;

    answers(&scene)?;
    lab.step("broken messages from a stranger");
    let catalogue = message::catalogue(1);
    let stranger = scene.world.internet.enter(|| UdpSocket::bind("203.0.113.1:0"))??;
    for bad in &catalogue {
        stranger.send_to(&bad.bytes, (GATEWAY, IKE_PORT))?;
        let mut marked = vec![0; 4];
        marked.extend(&bad.bytes);
        marked.truncate(65_000);
        stranger.send_to(&marked, (GATEWAY, NATT_PORT))?;
    }
    lab.step(&format!("{} messages sent", catalogue.len() * 2));

    lab.step("the same and forgeries from the victim's address");
    let mut dice = Dice::new(2);
    let mut spoofer = Spoofer::new(&scene.world.internet)?;
    let gateway: Ipv4Addr = GATEWAY.parse()?;
    let remote = victim["remote"].as_str().context("an SA without remote address")?;
    let victim_address: SocketAddrV4 = remote.parse().context("remote address")?;
    let natt = SocketAddrV4::new(gateway, NATT_PORT);
    for bad in catalogue.iter().filter(|bad| bad.bytes.len() < 1400) {
        let mut marked = vec![0; 4];
        marked.extend(&bad.bytes);
        spoofer.send(victim_address, natt, &marked)?;
    }
    let spi = |key: &str| -> Result<u64> {
        let text = victim[key].as_str().with_context(|| format!("an SA without {key}"))?;
        Ok(u64::from_str_radix(text.trim_start_matches("0x"), 16)?)
    };
    let (spi_i, spi_r) = (spi("spi_i")?, spi("spi_r")?);
    for exchange in [34, 35, 36, 37] {
        for id in [0, 1, 2, 3, 100, u32::MAX] {
            for response in [false, true] {
                let forged = message::forged(spi_i, spi_r, exchange, id, response, &mut dice);
                let mut marked = vec![0; 4];
                marked.extend(&forged);
                spoofer.send(victim_address, natt, &marked)?;
                stranger.send_to(&marked, natt)?;
            }
        }
    }
    lab.step("unprotected error notifies and forged ESP");
    let child = &victim["children"][0];
    let esp_spi = child["spi_in"].as_str().context("a child without SPI")?;
    let esp_spi = u32::from_str_radix(esp_spi.trim_start_matches("0x"), 16)?;
    for sequence in [0_u32, 1, 5, 1_000_000, u32::MAX] {
        let mut packet = esp_spi.to_be_bytes().to_vec();
        packet.extend(sequence.to_be_bytes());
        packet.extend(dice.bytes(120));
        spoofer.send(victim_address, natt, &packet)?;
        stranger.send_to(&packet, natt)?;
    }
    lab.step("a replay of everything the victim sent");
    let ours = format!("src host {}", victim_address.ip());
    let recorded_ike = handshake.udp_payloads(&format!("{ours} and udp port 500"))?;
    let recorded = handshake.udp_payloads(&format!("{ours} and udp port 4500"))?;
    if recorded.len() < 10 {
        bail!("only {} packets recorded for the replay", recorded.len());
    }
    for _ in 0..20 {
        for packet in &recorded_ike {
            spoofer.send(
                SocketAddrV4::new(*victim_address.ip(), 500),
                SocketAddrV4::new(gateway, IKE_PORT),
                packet,
            )?;
            stranger.send_to(packet, (GATEWAY, IKE_PORT))?;
        }
        for packet in &recorded {
            spoofer.send(victim_address, natt, packet)?;
            stranger.send_to(packet, natt)?;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    std::thread::sleep(Duration::from_secs(1));
    pinger.finish(lab, 10)?;

    let after = scene.gateway.sas()?;
    let [still] = after.as_slice() else { bail!("expected one SA after the attack: {after:?}") };
    for key in ["spi_i", "spi_r", "remote", "identity"] {
        if still[key] != victim[key] {
            bail!("the SA's {key} changed from {} to {}", victim[key], still[key]);
        }
    }
    if still["children"].as_array().map(Vec::len) != Some(1)
        || still["children"][0]["spi_in"] != child["spi_in"]
    {
        bail!("the child changed: {child} became {still}");
    }
    let grown = scene.gateway.resident()?.saturating_sub(resident);
    lab.step(&format!("resident memory grew by {} KiB", grown / 1024));
    if grown > GROWTH {
        bail!("resident memory grew by {} KiB", grown / 1024);
    }
    charon.terminate("net")?;
    scene.no_sas(Duration::from_secs(5))?;
    scene.finish()
}

/// The two pre-authentication errors that must be answered, and with what.
fn answers(scene: &Scene) -> Result<()> {
    /// A question is repeated every second, since datagrams may be lost, and answers limited.
    const TRIES: u32 = 30;
    let ask = |bytes: &[u8], what: &str| -> Result<Vec<u8>> {
        // A port of its own keeps late answers to other questions away.
        let socket = scene.world.internet.enter(|| UdpSocket::bind("203.0.113.1:0"))??;
        socket.set_read_timeout(Some(Duration::from_secs(1)))?;
        let mut answer = vec![0; 4096];
        for _ in 0..TRIES {
            socket.send_to(bytes, (GATEWAY, IKE_PORT))?;
            if let Ok(length) = socket.recv(&mut answer) {
                answer.truncate(length);
                return Ok(answer);
            }
        }
        bail!("no answer to {what}")
    };
    let answer = ask(&message::unknown_critical(&mut Dice::new(3)), "an unknown critical payload")?;
    match notify(&answer) {
        Some((UNSUPPORTED_CRITICAL_PAYLOAD, [200])) => {}
        other => bail!("an unknown critical payload was answered with {other:?}"),
    }
    let mut newer = message::sa_init(&mut Dice::new(4));
    newer[17] = 0x30;
    match notify(&ask(&newer, "major version 3")?) {
        Some((INVALID_MAJOR_VERSION, _)) => Ok(()),
        other => bail!("major version 3 was answered with {other:?}"),
    }
}

/// Type and data of the first payload, when it is a notify (RFC 7296 3.10).
fn notify(answer: &[u8]) -> Option<(u16, &[u8])> {
    if answer.get(16) != Some(&41) {
        return None;
    }
    let payload = answer.get(28..)?;
    let length = usize::from(u16::from_be_bytes(payload.get(2..4)?.try_into().ok()?));
    let spi_size = usize::from(*payload.get(5)?);
    let kind = u16::from_be_bytes(payload.get(6..8)?.try_into().ok()?);
    Some((kind, payload.get(8 + spi_size..length)?))
}

/// Up to 20,000 IKE_SA_INIT per second from spoofed addresses for a minute.
pub(super) fn flood(lab: &Lab) -> Result<()> {
    const RATE: u32 = 20_000;
    const LENGTH: Duration = Duration::from_secs(60);
    let scene = Scene::new(lab, Shape::default(), &Settings::default())?;
    // Answers to nobody end on the router, silently.
    scene.world.internet.ip(&format!("route add blackhole {}", flood::SOURCES))?;
    let (charon, _) = scene.connected(P256)?;
    scene.download(scene.world.runner(), 100_000)?;
    let resident = scene.gateway.resident()?;
    let pinger = Pinger::start(scene.world.runner())?;
    let target = SocketAddrV4::new(GATEWAY.parse()?, IKE_PORT);
    let mut highest = resident;
    let sent = std::thread::scope(|scope| {
        let attacker = scope.spawn(|| flood::run(&scene.world.internet, target, RATE, LENGTH));
        while !attacker.is_finished() {
            std::thread::sleep(Duration::from_millis(200));
            highest = highest.max(scene.gateway.resident()?);
        }
        attacker.join().map_err(|_| anyhow!("the attacker panicked"))?
    })?;
    std::thread::sleep(Duration::from_secs(1));
    let rate = sent / LENGTH.as_secs();
    lab.step(&format!("{sent} requests sent in {} s: {rate} per second", LENGTH.as_secs()));
    // A fifth is a flood still, many times what makes the gateway ask for cookies.
    if rate < u64::from(RATE) / 5 {
        bail!("only {rate} requests per second could be sent: that is no flood");
    }
    pinger.finish(lab, 500)?;
    let grown = highest - resident;
    lab.step(&format!(
        "resident memory {} KiB, grew by at most {} KiB",
        resident / 1024,
        grown / 1024
    ));
    if grown > GROWTH {
        bail!("resident memory grew by {} KiB", grown / 1024);
    }
    // A newcomer gets in while half-open entries of the flood still linger.
    charon.terminate("net")?;
    charon.initiate("net")?;
    scene.download(scene.world.runner(), 100_000)?;
    charon.terminate("net")?;
    scene.finish()
}
