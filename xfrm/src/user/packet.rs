//! Inner IP packets: headers, upper layer, checksums. Reads hostile bytes; never panics.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Protocol numbers this plane looks into.
pub(super) const ICMP: u8 = 1;
pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
pub(super) const ICMPV6: u8 = 58;
const DCCP: u8 = 33;
const SCTP: u8 = 132;
const UDPLITE: u8 = 136;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;
/// IPv6 extension headers followed at most.
const MAX_EXTENSIONS: usize = 8;

/// Length of an IPv4 header without options.
pub(super) const V4_HEADER: usize = 20;
/// Length of an IPv6 header without extensions.
pub(super) const V6_HEADER: usize = 40;

/// What the upper layer shows for selector checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Upper {
    /// Source and destination port.
    Ports(u16, u16),
    /// ICMP type in the high byte and code in the low one (RFC 7296 3.13.1).
    Icmp(u16),
    /// The protocol has none, or the packet is too short to show them.
    Opaque,
}

/// Place of a packet in a fragmented datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fragment {
    /// Not fragmented.
    Whole,
    /// The first fragment of the datagram of this identification.
    First(u32),
    /// A later fragment; its offset in bytes.
    Later(u32, u16),
}

/// A parsed inner packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Packet {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    /// Protocol of the upper layer.
    pub(super) protocol: u8,
    pub(super) upper: Upper,
    pub(super) fragment: Fragment,
    /// Where the upper layer begins.
    pub(super) upper_offset: usize,
    /// Length by the IP header; bytes beyond it are not part of the packet.
    pub(super) len: usize,
    /// TOS or traffic class.
    pub(super) tos: u8,
    /// May not be fragmented on the way (always true for IPv6).
    pub(super) dont_fragment: bool,
}

impl Packet {
    pub(super) fn is_v6(&self) -> bool {
        self.source.is_ipv6()
    }

    /// Parses the packet at the beginning of `bytes`; `None` when it is not well-formed.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        Self::parse_as(bytes, Extent::Whole)
    }

    /// Parses the beginning of a packet, as ICMP errors quote it. Its length is what is there.
    pub(super) fn parse_quote(bytes: &[u8]) -> Option<Self> {
        Self::parse_as(bytes, Extent::Beginning)
    }

    fn parse_as(bytes: &[u8], extent: Extent) -> Option<Self> {
        match bytes.first()? >> 4 {
            4 => parse_v4(bytes, extent),
            6 => parse_v6(bytes, extent),
            _ => None,
        }
    }
}

/// How much of a packet there must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Extent {
    /// All of it.
    Whole,
    /// Its headers.
    Beginning,
}

impl Extent {
    /// The length to work with when a header says `claimed` and `present` bytes are there.
    fn length(self, claimed: usize, present: usize) -> Option<usize> {
        match self {
            Self::Whole => (claimed <= present).then_some(claimed),
            Self::Beginning => Some(claimed.min(present)),
        }
    }
}

/// Two bytes in network order.
pub(super) fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk::<2>().map(|pair| u16::from_be_bytes(*pair))
}

/// Four bytes in network order.
pub(super) fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk::<4>().map(|word| u32::from_be_bytes(*word))
}

/// Writes two bytes in network order; outside the slice it does nothing.
pub(super) fn put16(bytes: &mut [u8], at: usize, value: u16) {
    if let Some(pair) = bytes.get_mut(at..).and_then(|rest| rest.first_chunk_mut::<2>()) {
        *pair = value.to_be_bytes();
    }
}

/// Writes four bytes in network order; outside the slice it does nothing.
pub(super) fn put32(bytes: &mut [u8], at: usize, value: u32) {
    if let Some(word) = bytes.get_mut(at..).and_then(|rest| rest.first_chunk_mut::<4>()) {
        *word = value.to_be_bytes();
    }
}

fn parse_v4(bytes: &[u8], extent: Extent) -> Option<Packet> {
    let head = bytes.first_chunk::<V4_HEADER>()?;
    let [ihl, tos, l0, l1, i0, i1, f0, f1, _, protocol, _, _, s0, s1, s2, s3, d0, d1, d2, d3] =
        *head;
    let header = usize::from(ihl & 0x0f).checked_mul(4)?;
    let len = extent.length(usize::from(u16::from_be_bytes([l0, l1])), bytes.len())?;
    if header < V4_HEADER || len < header {
        return None;
    }
    let flags = u16::from_be_bytes([f0, f1]);
    let id = u32::from(u16::from_be_bytes([i0, i1]));
    let offset = (flags & 0x1fff).checked_mul(8)?;
    let fragment = match (offset, flags & 0x2000 != 0) {
        (0, false) => Fragment::Whole,
        (0, true) => Fragment::First(id),
        _ => Fragment::Later(id, offset),
    };
    Some(Packet {
        source: IpAddr::V4(Ipv4Addr::new(s0, s1, s2, s3)),
        destination: IpAddr::V4(Ipv4Addr::new(d0, d1, d2, d3)),
        protocol,
        upper: upper(bytes.get(header..len)?, protocol, fragment),
        fragment,
        upper_offset: header,
        len,
        tos,
        dont_fragment: flags & 0x4000 != 0,
    })
}

fn parse_v6(bytes: &[u8], extent: Extent) -> Option<Packet> {
    let head = bytes.first_chunk::<V6_HEADER>()?;
    let word = be32(head, 0)?;
    let payload = usize::from(be16(head, 4)?);
    // A payload length of zero would be a jumbogram (RFC 2675), which no tunnel carries.
    let len = extent.length(payload.checked_add(V6_HEADER)?, bytes.len())?;
    let source: [u8; 16] = *head.get(8..)?.first_chunk()?;
    let destination: [u8; 16] = *head.get(24..)?.first_chunk()?;
    let mut protocol = *head.get(6)?;
    let mut at = V6_HEADER;
    let mut fragment = Fragment::Whole;
    for _ in 0..MAX_EXTENSIONS {
        let extension = bytes.get(at..len).unwrap_or_default();
        match protocol {
            HOP_BY_HOP | ROUTING | DESTINATION => {
                let [next, words, ..] = *extension else { return None };
                protocol = next;
                at = at.checked_add(usize::from(words).checked_add(1)?.checked_mul(8)?)?;
            }
            AUTHENTICATION => {
                let [next, words, ..] = *extension else { return None };
                protocol = next;
                at = at.checked_add(usize::from(words).checked_add(2)?.checked_mul(4)?)?;
            }
            FRAGMENT => {
                let [next, _, o0, o1, i0, i1, i2, i3, ..] = *extension else { return None };
                let bits = u16::from_be_bytes([o0, o1]);
                let id = u32::from_be_bytes([i0, i1, i2, i3]);
                protocol = next;
                at = at.checked_add(8)?;
                fragment = match (bits & 0xfff8, bits & 1) {
                    // RFC 6946: an atomic fragment is a whole packet.
                    (0, 0) => Fragment::Whole,
                    (0, _) => Fragment::First(id),
                    (offset, _) => Fragment::Later(id, offset),
                };
                if matches!(fragment, Fragment::Later(..)) {
                    break;
                }
            }
            _ => break,
        }
        if at > len {
            return None;
        }
    }
    if at > len {
        return None;
    }
    Some(Packet {
        source: IpAddr::V6(Ipv6Addr::from(source)),
        destination: IpAddr::V6(Ipv6Addr::from(destination)),
        protocol,
        upper: upper(bytes.get(at..len)?, protocol, fragment),
        fragment,
        upper_offset: at,
        len,
        tos: ((word >> 20) & 0xff) as u8,
        dont_fragment: true,
    })
}

fn upper(payload: &[u8], protocol: u8, fragment: Fragment) -> Upper {
    if matches!(fragment, Fragment::Later(..)) {
        return Upper::Opaque;
    }
    match (protocol, payload) {
        (TCP | UDP | DCCP | SCTP | UDPLITE, [s0, s1, d0, d1, ..]) => {
            Upper::Ports(u16::from_be_bytes([*s0, *s1]), u16::from_be_bytes([*d0, *d1]))
        }
        (ICMP | ICMPV6, [kind, code, ..]) => Upper::Icmp(u16::from_be_bytes([*kind, *code])),
        _ => Upper::Opaque,
    }
}

/// Adds bytes to a ones' complement sum (RFC 1071); only the last chunk may have an odd length.
pub(super) fn sum(start: u64, bytes: &[u8]) -> u64 {
    // Carries collect in the high half of 64-bit lanes: no packet is long enough to overflow.
    let (words, rest) = bytes.as_chunks::<4>();
    let mut total = start;
    for word in words {
        total = total.wrapping_add(u64::from(u32::from_be_bytes(*word)));
    }
    let mut last = [0u8; 4];
    for (to, from) in last.iter_mut().zip(rest) {
        *to = *from;
    }
    total.wrapping_add(u64::from(u32::from_be_bytes(last)))
}

/// Folds a sum to 16 bits, not complemented.
pub(super) fn fold(total: u64) -> u16 {
    let mut total = total;
    while total > 0xffff {
        total = (total & 0xffff).wrapping_add(total >> 16);
    }
    total as u16
}

/// Sum of the pseudo header of TCP, UDP and ICMPv6 (RFC 9293 3.1, RFC 8200 8.1).
pub(super) fn pseudo(source: IpAddr, destination: IpAddr, protocol: u8, len: usize) -> u64 {
    let total = u64::from(protocol).wrapping_add(len as u64);
    let total = match source {
        IpAddr::V4(ip) => sum(total, &ip.octets()),
        IpAddr::V6(ip) => sum(total, &ip.octets()),
    };
    match destination {
        IpAddr::V4(ip) => sum(total, &ip.octets()),
        IpAddr::V6(ip) => sum(total, &ip.octets()),
    }
}

/// Computes and writes the header checksum of an IPv4 packet.
pub(super) fn finish_v4_header(packet: &mut [u8]) {
    put16(packet, 10, 0);
    let header = packet.first().map_or(0, |first| usize::from(first & 0x0f).saturating_mul(4));
    let total = sum(0, packet.get(..header).unwrap_or_default());
    put16(packet, 10, !fold(total));
}

/// Replaces 16 bits covered by the checksum at `at` (RFC 1624).
pub(super) fn update_checksum(packet: &mut [u8], at: usize, old: u16, new: u16) {
    if let Some(checksum) = be16(packet, at) {
        let total = u64::from(!checksum).wrapping_add(u64::from(!old)).wrapping_add(u64::from(new));
        put16(packet, at, !fold(total));
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
#[path = "packet_tests.rs"]
mod tests;

/// Builders for the tests of this plane.
#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
pub(super) mod build {
    use super::*;

    /// An IP packet of either family around an upper layer.
    pub(crate) fn ip(source: &str, destination: &str, protocol: u8, upper: &[u8]) -> Vec<u8> {
        let (source, destination): (IpAddr, IpAddr) =
            (source.parse().unwrap(), destination.parse().unwrap());
        let mut packet = Vec::new();
        match (source, destination) {
            (IpAddr::V4(s), IpAddr::V4(d)) => {
                packet.extend([0x45, 0, 0, 0, 0x12, 0x34, 0x40, 0, 64, protocol, 0, 0]);
                packet.extend(s.octets());
                packet.extend(d.octets());
                packet.extend(upper);
                let len = packet.len() as u16;
                put16(&mut packet, 2, len);
                finish_v4_header(&mut packet);
            }
            (IpAddr::V6(s), IpAddr::V6(d)) => {
                packet.extend([0x60, 0, 0, 0]);
                packet.extend((upper.len() as u16).to_be_bytes());
                packet.extend([protocol, 64]);
                packet.extend(s.octets());
                packet.extend(d.octets());
                packet.extend(upper);
            }
            _ => panic!("mixed families"),
        }
        packet
    }

    /// A UDP packet with its checksum.
    pub(crate) fn udp(source: &str, sport: u16, to: &str, dport: u16, data: &[u8]) -> Vec<u8> {
        let mut upper = Vec::new();
        upper.extend(sport.to_be_bytes());
        upper.extend(dport.to_be_bytes());
        upper.extend((8 + data.len() as u16).to_be_bytes());
        upper.extend([0, 0]);
        upper.extend(data);
        with_checksum(source, to, UDP, upper, 6)
    }

    /// A TCP packet with its checksum; `options` is a multiple of four bytes.
    pub(crate) fn tcp(
        source: &str,
        to: &str,
        seq: u32,
        flags: u8,
        options: &[u8],
        data: &[u8],
    ) -> Vec<u8> {
        let mut upper = Vec::new();
        upper.extend(40000u16.to_be_bytes());
        upper.extend(443u16.to_be_bytes());
        upper.extend(seq.to_be_bytes());
        upper.extend(99u32.to_be_bytes());
        upper.extend([(((20 + options.len()) / 4) as u8) << 4, flags, 0x10, 0, 0, 0, 0, 0]);
        upper.extend(options);
        upper.extend(data);
        with_checksum(source, to, TCP, upper, 16)
    }

    fn with_checksum(
        source: &str,
        to: &str,
        protocol: u8,
        mut upper: Vec<u8>,
        at: usize,
    ) -> Vec<u8> {
        let total = pseudo(source.parse().unwrap(), to.parse().unwrap(), protocol, upper.len());
        let checksum = !fold(sum(total, &upper));
        put16(&mut upper, at, checksum);
        ip(source, to, protocol, &upper)
    }

    /// Whether every checksum of the packet is right.
    pub(crate) fn checksums_ok(bytes: &[u8]) -> bool {
        let packet = Packet::parse(bytes).unwrap();
        let header_ok = packet.is_v6() || fold(sum(0, &bytes[..packet.upper_offset])) == 0xffff;
        let upper = &bytes[packet.upper_offset..packet.len];
        let start = match packet.protocol {
            ICMP => 0,
            protocol => pseudo(packet.source, packet.destination, protocol, upper.len()),
        };
        header_ok && fold(sum(start, upper)) == 0xffff
    }
}
