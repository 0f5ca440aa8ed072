//! Packets of the TUN device with their vnet header: checksums the kernel left to us, and
//! super-packets (TSO, USO) taken apart into segments.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::packet::{
    self, Packet, TCP, UDP, V6_HEADER, be16, be32, finish_v4_header, fold, put16, put32,
};

/// Length of `struct virtio_net_hdr`.
pub(super) const VNET: usize = 10;

const NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
/// The connection uses ECN; handled for every segment anyway.
const GSO_ECN: u8 = 0x80;

const TCP_CHECKSUM: usize = 16;
const UDP_CHECKSUM: usize = 6;
const UDP_HEADER: usize = 8;
const TCP_FLAGS: usize = 13;
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;

/// The header before every packet of an `IFF_VNET_HDR` device, native endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Vnet {
    flags: u8,
    gso_type: u8,
    header_len: u16,
    gso_size: u16,
    csum_start: u16,
    csum_offset: u16,
}

impl Vnet {
    /// Splits a buffer read from the device.
    pub(super) fn split(bytes: &mut [u8]) -> Option<(Self, &mut [u8])> {
        let (head, packet) = bytes.split_at_mut_checked(VNET)?;
        let [flags, gso_type, h0, h1, g0, g1, s0, s1, o0, o1] = *head.first_chunk::<VNET>()?;
        let vnet = Self {
            flags,
            gso_type,
            header_len: u16::from_ne_bytes([h0, h1]),
            gso_size: u16::from_ne_bytes([g0, g1]),
            csum_start: u16::from_ne_bytes([s0, s1]),
            csum_offset: u16::from_ne_bytes([o0, o1]),
        };
        Some((vnet, packet))
    }

    /// For a TCP super-packet of `size` bytes of payload per segment, whose checksum field holds
    /// the sum of the pseudo header.
    pub(super) fn tcp_super(v6: bool, upper_offset: u16, header_len: u16, size: u16) -> Self {
        Self {
            flags: NEEDS_CSUM,
            gso_type: if v6 { GSO_TCPV6 } else { GSO_TCPV4 },
            header_len,
            gso_size: size,
            csum_start: upper_offset,
            csum_offset: TCP_CHECKSUM as u16,
        }
    }

    pub(super) fn to_bytes(self) -> [u8; VNET] {
        let [h0, h1] = self.header_len.to_ne_bytes();
        let [g0, g1] = self.gso_size.to_ne_bytes();
        let [s0, s1] = self.csum_start.to_ne_bytes();
        let [o0, o1] = self.csum_offset.to_ne_bytes();
        [self.flags, self.gso_type, h0, h1, g0, g1, s0, s1, o0, o1]
    }

    /// Whether the packet is a super-packet.
    pub(super) fn is_super(&self) -> bool {
        self.gso_type & !GSO_ECN != GSO_NONE && self.gso_size != 0
    }

    /// Computes the checksum the kernel left to us; `None` when the header lies.
    pub(super) fn complete_checksum(&self, bytes: &mut [u8]) -> Option<()> {
        if self.flags & NEEDS_CSUM == 0 {
            return Some(());
        }
        let start = usize::from(self.csum_start);
        let at = start.checked_add(usize::from(self.csum_offset))?;
        be16(bytes, at)?;
        // The field holds the pseudo header's sum, so summing over it includes that.
        let total = packet::sum(0, bytes.get(start..)?);
        let mut checksum = !fold(total);
        if checksum == 0 && usize::from(self.csum_offset) == UDP_CHECKSUM {
            checksum = 0xffff;
        }
        put16(bytes, at, checksum);
        Some(())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Tcp,
    Udp,
}

/// How a super-packet comes apart.
#[derive(Debug, Clone, Copy)]
pub(super) struct Segments {
    kind: Kind,
    upper_offset: usize,
    /// IP and upper headers, repeated in every segment.
    header: usize,
    /// Payload of every segment but the last.
    size: usize,
    payload: usize,
}

impl Segments {
    /// Plans the segments of a super-packet; `None` for what cannot be one.
    pub(super) fn plan(vnet: &Vnet, bytes: &[u8], packet: &Packet) -> Option<Self> {
        let (kind, upper) = match (vnet.gso_type & !GSO_ECN, packet.protocol) {
            (GSO_TCPV4 | GSO_TCPV6, TCP) => {
                let words = bytes.get(packet.upper_offset.checked_add(12)?)? >> 4;
                (Kind::Tcp, usize::from(words).checked_mul(4).filter(|len| *len >= 20)?)
            }
            (GSO_UDP_L4, UDP) => (Kind::Udp, UDP_HEADER),
            _ => return None,
        };
        let header = packet.upper_offset.checked_add(upper)?;
        let payload = packet.len.checked_sub(header)?;
        let size = usize::from(vnet.gso_size);
        // A super-packet without payload is a plain packet; zero size would never end.
        if size == 0 || payload == 0 {
            return None;
        }
        Some(Self { kind, upper_offset: packet.upper_offset, header, size, payload })
    }

    /// Number of segments.
    pub(super) fn count(&self) -> usize {
        self.payload.div_ceil(self.size.max(1))
    }

    /// Length of the segment of that index; the last may be shorter.
    pub(super) fn len(&self, index: usize) -> usize {
        let start = index.saturating_mul(self.size);
        self.header.saturating_add(self.payload.saturating_sub(start).min(self.size))
    }

    /// Largest segment.
    pub(super) fn max_len(&self) -> usize {
        self.len(0)
    }

    /// Writes a segment into `out`, which is [`Segments::len`] long, with its own lengths,
    /// numbers, flags and checksums.
    pub(super) fn write(&self, index: usize, bytes: &[u8], out: &mut [u8]) -> Option<()> {
        let start = index.checked_mul(self.size)?;
        let from = self.header.checked_add(start)?;
        let (head, body) = out.split_at_mut_checked(self.header)?;
        head.copy_from_slice(bytes.get(..self.header)?);
        body.copy_from_slice(bytes.get(from..from.checked_add(body.len())?)?);
        let last = index.checked_add(1)? == self.count();
        let (ip, upper) = out.split_at_mut_checked(self.upper_offset)?;
        match self.kind {
            Kind::Tcp => {
                let seq = be32(upper, 4)?.wrapping_add(start as u32);
                put32(upper, 4, seq);
                let flags = upper.get_mut(TCP_FLAGS)?;
                if !last {
                    *flags &= !(FIN | PSH);
                }
                if index != 0 {
                    *flags &= !CWR;
                }
                put16(upper, TCP_CHECKSUM, 0);
            }
            Kind::Udp => {
                let len = upper.len();
                put16(upper, 4, u16::try_from(len).ok()?);
                put16(upper, UDP_CHECKSUM, 0);
            }
        }
        let upper_len = upper.len();
        let ip_len = ip.len().checked_add(upper_len)?;
        if ip.first()? >> 4 == 4 {
            put16(ip, 2, u16::try_from(ip_len).ok()?);
            let id = be16(ip, 4)?.wrapping_add(index as u16);
            put16(ip, 4, id);
            finish_v4_header(ip);
        } else {
            put16(ip, 4, u16::try_from(ip_len.checked_sub(V6_HEADER)?).ok()?);
        }
        let protocol = if self.kind == Kind::Tcp { TCP } else { UDP };
        let addresses = if ip.first()? >> 4 == 4 { ip.get(12..20)? } else { ip.get(8..40)? };
        let pseudo = u64::from(protocol).checked_add(upper_len as u64)?;
        let total = packet::sum(packet::sum(pseudo, addresses), upper);
        let checksum = !fold(total);
        match self.kind {
            Kind::Tcp => put16(upper, TCP_CHECKSUM, checksum),
            // RFC 768: zero means no checksum.
            Kind::Udp => {
                put16(upper, UDP_CHECKSUM, if checksum == 0 { 0xffff } else { checksum });
            }
        }
        Some(())
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
#[path = "offload_tests.rs"]
mod tests;
