//! Packet captures of a lab's own interfaces with tcpdump.

use std::fs;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::host::Host;
use super::process::Process;
use super::{Lab, cmd, wait};

/// A running capture.
pub struct Capture {
    lab: Lab,
    process: Process,
    file: PathBuf,
}

impl Capture {
    /// Starts capturing on an interface of a host and waits until tcpdump listens.
    ///
    /// # Errors
    /// When tcpdump does not come up.
    pub fn start(host: &Host, interface: &str, filter: &str) -> Result<Self> {
        Self::named(host, interface, interface, filter)
    }

    /// As [`Capture::start`], for a file of this name: more than one on an interface.
    ///
    /// # Errors
    /// As there.
    pub fn named(host: &Host, interface: &str, name: &str, filter: &str) -> Result<Self> {
        let file = host.dir()?.join(format!("{name}.pcap"));
        let log = host.dir()?.join(format!("{name}.tcpdump.log"));
        // What a former capture of this name said and saw is not this one's.
        for former in [&file, &log] {
            let _ = fs::remove_file(former);
        }
        let mut command = host.command("tcpdump");
        command.args(["-i", interface, "-U", "--immediate-mode", "-Z", "root", "-n", "-w"]);
        command.arg(&file).arg(filter);
        let label = format!("tcpdump on {}", host.name());
        let process = Process::start(host.lab(), &label, command, &log)?;
        wait::holds(host.lab(), &label, Duration::from_secs(5), || {
            Ok(process.log().contains("listening on"))
        })?;
        Ok(Self { lab: host.lab().clone(), process, file })
    }

    /// The capture file.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Ends the capture, so that the file is complete.
    ///
    /// # Errors
    /// When tcpdump does not end.
    pub fn stop(&mut self) -> Result<()> {
        self.process.stop(&self.lab.clone(), Duration::from_secs(5)).map(drop)
    }

    /// Ends the capture once it holds a datagram that `host`, which captures, sends to `to` now:
    /// whatever passed before is in the file, and the capture was alive.
    ///
    /// # Errors
    /// When the datagram does not show up.
    pub fn drain(&mut self, host: &Host, to: &str) -> Result<()> {
        host.enter(|| UdpSocket::bind("0.0.0.0:0")?.send_to(b"last", (to, DISCARD)))??;
        wait::holds(&self.lab, "the capture's last datagram", Duration::from_secs(5), || {
            // A file that is being written may end within a packet.
            Ok(self.count(&format!("{LAST} and dst host {to}")).is_ok_and(|count| count > 0))
        })?;
        self.stop()
    }

    /// Times (seconds since the epoch) of the captured packets that match a filter.
    ///
    /// # Errors
    /// When tcpdump cannot read the file.
    pub fn times(&self, filter: &str) -> Result<Vec<f64>> {
        let file = self.file.display().to_string();
        let text = cmd::run("tcpdump", &["-r", &file, "-n", "-tt", filter])?;
        text.lines()
            .map(|line| {
                let word = line.split_whitespace().next().unwrap_or_default();
                word.parse().with_context(|| format!("no time in tcpdump line `{line}`"))
            })
            .collect()
    }

    /// Number of captured packets that match a filter.
    ///
    /// # Errors
    /// As [`Capture::times`].
    pub fn count(&self, filter: &str) -> Result<usize> {
        Ok(self.times(filter)?.len())
    }

    /// UDP payloads of the captured packets that match a filter, in order.
    ///
    /// # Errors
    /// When the file is not a capture of Ethernet frames.
    pub fn udp_payloads(&self, filter: &str) -> Result<Vec<Vec<u8>>> {
        let selected = self.file.with_extension("selected.pcap");
        let (from, to) = (self.file.display().to_string(), selected.display().to_string());
        cmd::run("tcpdump", &["-r", &from, "-Z", "root", "-n", "-w", &to, filter])?;
        let bytes = fs::read(&selected)?;
        parse_pcap(&bytes).context("not an Ethernet capture of IPv4")
    }
}

/// Port of the datagram that [`Capture::drain`] sends; nobody listens there.
const DISCARD: u16 = 9;

/// Filter for that datagram.
const LAST: &str = "udp dst port 9";

/// Filter for ESP directly in IP.
pub const PLAIN_ESP: &str = "ip proto 50";

/// Filter for ESP in UDP on port 4500 (no non-ESP marker, longer than a keepalive).
pub const ESP_IN_UDP: &str = "udp port 4500 and udp[8:4] != 0 and udp[4:2] > 9";

/// Filter for IKE messages on either port.
pub const IKE: &str = "udp port 500 or (udp port 4500 and udp[8:4] = 0)";

fn parse_pcap(bytes: &[u8]) -> Option<Vec<Vec<u8>>> {
    /// Global header of the classic format.
    const HEADER: usize = 24;
    /// Ethernet header.
    const ETHERNET: usize = 14;
    let mut payloads = Vec::new();
    let mut at = HEADER;
    while at < bytes.len() {
        let length = bytes.get(at + 8..at + 12)?;
        let length = usize::try_from(u32::from_le_bytes(length.try_into().ok()?)).ok()?;
        let packet = bytes.get(at + 16 + ETHERNET..at + 16 + length)?;
        let ip_header = usize::from(packet.first()? & 0xf) * 4;
        payloads.push(packet.get(ip_header + 8..)?.to_vec());
        at += 16 + length;
    }
    Some(payloads)
}
