//! UDP 500 and 4500: which socket a message leaves by, and the thread that reads port 500.
//!
//! Port 4500 is read by the data plane, which hands IKE messages on; both share its sockets.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ike::io::{Datagram, Transmit};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use xfrm::PlaneError;
use xfrm::udp::{BindOptions, RecvRing, UdpPort};

use super::EngineHandle;

/// The IKE port (RFC 7296 2).
pub const IKE_PORT: u16 = 500;

/// The port of IKE and ESP in UDP (RFC 3948).
pub const NAT_PORT: u16 = 4500;

/// How soon the reader sees that it shall end.
const ATTENTION: Duration = Duration::from_millis(200);

/// Every socket IKE is sent from.
#[derive(Debug)]
pub struct IkeSockets {
    ports: Vec<UdpPort>,
}

impl IkeSockets {
    /// Binds both ports on every address; with `kernel_esp` the kernel takes ESP out of port 4500
    /// itself. An unspecified IPv6 address is left out on a machine
    /// without IPv6, as long as another address remains.
    ///
    /// # Errors
    /// The first address that cannot be bound, with what to do.
    pub fn bind(listen: &[IpAddr], kernel_esp: bool) -> Result<Self, PlaneError> {
        // Policies of whoever on this machine must not catch IKE itself.
        let plain = BindOptions { bypass_policies: true, ..BindOptions::default() };
        let encap = BindOptions { kernel_encap: kernel_esp, ..plain };
        let mut ports = Vec::new();
        for address in listen {
            if address.is_ipv6() && address.is_unspecified() && listen.len() > 1 && !has_ipv6() {
                tracing::info!("this machine has no IPv6: not listening on ::");
                continue;
            }
            for (port, options) in [(IKE_PORT, &plain), (NAT_PORT, &encap)] {
                ports.push(UdpPort::bind(SocketAddr::new(*address, port), options)?);
            }
        }
        Ok(Self { ports })
    }

    /// Handles on the sockets of one port.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn of_port(&self, number: u16) -> Result<Vec<UdpPort>, PlaneError> {
        self.ports
            .iter()
            .filter(|port| port.local_addr().port() == number)
            .map(UdpPort::try_clone)
            .collect()
    }

    /// The bound addresses.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.ports.iter().map(UdpPort::local_addr).collect()
    }

    /// Sends one message. Failures are what the network does to datagrams: IKE retransmits.
    pub fn send(&self, transmit: &Transmit) {
        let Some(port) = self.choose(transmit.local) else {
            tracing::warn!(local = %transmit.local, "no socket for this local address");
            return;
        };
        let source = transmit.local.ip();
        // A keepalive carries no marker whatever the port (RFC 3948 2.3).
        let result = if transmit.payload == [0xff] {
            port.send_keepalive(source, transmit.remote)
        } else {
            port.send_ike(&transmit.payload, source, transmit.remote, transmit.encap)
        };
        if let Err(error) = result {
            tracing::debug!(local = %transmit.local, remote = %transmit.remote, %error, "not sent");
        }
    }

    fn choose(&self, local: SocketAddr) -> Option<&UdpPort> {
        let fits = |port: &&UdpPort| {
            let bound = port.local_addr();
            bound.port() == local.port() && bound.is_ipv4() == local.is_ipv4()
        };
        let exact = self.ports.iter().filter(fits).find(|p| p.local_addr().ip() == local.ip());
        exact.or_else(|| {
            self.ports.iter().filter(fits).find(|port| port.local_addr().ip().is_unspecified())
        })
    }
}

/// Whether IPv6 sockets can be bound at all.
fn has_ipv6() -> bool {
    std::net::UdpSocket::bind("[::1]:0").is_ok() || std::net::UdpSocket::bind("[::]:0").is_ok()
}

/// Reads port 500 and hands datagrams to the engine.
#[derive(Debug)]
pub struct Receiver {
    ports: Vec<UdpPort>,
    engine: EngineHandle,
    stop: Arc<AtomicBool>,
}

impl Receiver {
    /// A reader of these sockets; it ends when `stop` becomes true.
    pub fn new(ports: Vec<UdpPort>, engine: EngineHandle, stop: Arc<AtomicBool>) -> Self {
        Self { ports, engine, stop }
    }

    /// Reads until it shall end.
    pub fn run(self) {
        let mut ring = RecvRing::new();
        let timeout = Timespec::try_from(ATTENTION).ok();
        while !self.stop.load(Ordering::Relaxed) {
            let mut waiting: Vec<PollFd<'_>> =
                self.ports.iter().map(|port| PollFd::new(port, PollFlags::IN)).collect();
            if let Err(error) = poll(&mut waiting, timeout.as_ref())
                && error != rustix::io::Errno::INTR
            {
                tracing::error!(%error, "cannot wait for IKE datagrams");
                std::thread::sleep(ATTENTION);
            }
            for (port, poll) in self.ports.iter().zip(&waiting) {
                if !poll.revents().is_empty() {
                    self.read(port, &mut ring);
                }
            }
        }
    }

    /// Takes one batch; what remains wakes the next poll at once, so that no socket starves.
    fn read(&self, port: &UdpPort, ring: &mut RecvRing) {
        match port.recv(ring) {
            Ok(()) => {
                for datagram in ring.datagrams() {
                    self.engine.datagram(Datagram {
                        local: datagram.local,
                        remote: datagram.remote,
                        encap: false,
                        payload: datagram.payload.to_vec(),
                    });
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => tracing::debug!(%error, "receiving failed"),
        }
    }
}
