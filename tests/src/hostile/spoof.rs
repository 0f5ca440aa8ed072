//! UDP datagrams with any source address, sent through a raw socket of a lab's own host.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::lab::host::Host;

/// IP protocol number of "raw": the kernel takes our IP header as it is.
const IPPROTO_RAW: i32 = 255;

/// A sender with no address of its own.
pub struct Spoofer {
    socket: Socket,
    buffer: Vec<u8>,
}

impl Spoofer {
    /// Opens the raw socket on a host.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn new(host: &Host) -> Result<Self> {
        let socket = host
            .enter(|| Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(IPPROTO_RAW))))?
            .context("cannot open a raw socket")?;
        Ok(Self { socket, buffer: Vec::with_capacity(2048) })
    }

    /// Sends one datagram that must fit the path.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn send(&mut self, from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) -> Result<()> {
        fill(&mut self.buffer, from, to, payload);
        self.socket
            .send_to(&self.buffer, &SockAddr::from(SocketAddrV4::new(*to.ip(), 0)))
            .with_context(|| format!("cannot send {} bytes as {from}", self.buffer.len()))?;
        Ok(())
    }
}

/// Writes an IPv4 packet with a UDP header; checksums are left to the kernel (IP) and out (UDP,
/// allowed over IPv4 by RFC 768).
fn fill(buffer: &mut Vec<u8>, from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) {
    let octets = |address: &Ipv4Addr| address.octets();
    let udp_length = u16::try_from(payload.len() + 8).unwrap_or(u16::MAX);
    let total = udp_length.saturating_add(20);
    buffer.clear();
    buffer.extend([0x45, 0]);
    buffer.extend(total.to_be_bytes());
    buffer.extend([0, 0, 0, 0, 64, 17, 0, 0]);
    buffer.extend(octets(from.ip()));
    buffer.extend(octets(to.ip()));
    buffer.extend(from.port().to_be_bytes());
    buffer.extend(to.port().to_be_bytes());
    buffer.extend(udp_length.to_be_bytes());
    buffer.extend([0, 0]);
    buffer.extend(payload);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_and_addresses_are_in_place() {
        let mut buffer = Vec::new();
        let from = SocketAddrV4::new(Ipv4Addr::new(1, 2, 3, 4), 500);
        let to = SocketAddrV4::new(Ipv4Addr::new(5, 6, 7, 8), 4500);
        fill(&mut buffer, from, to, &[9; 10]);
        assert_eq!(buffer.len(), 38);
        assert_eq!(buffer[2..4], [0, 38]);
        assert_eq!(buffer[12..20], [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(buffer[20..26], [1, 244, 17, 148, 0, 18]);
    }
}
