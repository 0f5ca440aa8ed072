//! Received TCP segments joined into super-packets for the tunnel interface (GRO).
//!
//! Only what the kernel could split again into the very same packets is joined: neighbours of one
//! connection, equal but for sequence number, length, identification, PSH and checksums, and only
//! when their checksums are right, because the kernel computes new ones.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::offload::Vnet;
use super::packet::{
    self, Fragment, Packet, TCP, V4_HEADER, V6_HEADER, be16, be32, finish_v4_header, fold, put16,
};

const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
/// Super-packets of other connections looked back over.
const LOOK_BACK: usize = 8;
/// Segments of a super-packet at most; keeps the gather list short.
pub(super) const MAX_SEGMENTS: usize = 64;
/// Largest IP packet.
const MAX_LEN: usize = 65_535;

/// A received inner packet and its place in a chain.
#[derive(Debug)]
struct Member<'a> {
    bytes: &'a mut [u8],
    /// Where the TCP payload begins.
    payload_at: usize,
    next: Option<usize>,
}

/// One write to the tunnel interface.
#[derive(Debug)]
struct Item {
    head: usize,
    tail: usize,
    /// What joins next must continue; `None` when nothing may.
    open: Option<Open>,
    segments: usize,
    len: usize,
    upper_offset: usize,
}

#[derive(Debug, Clone, Copy)]
struct Open {
    next_seq: u32,
    next_id: u16,
    size: usize,
}

/// What of a packet matters for joining.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    seq: u32,
    id: u16,
    push: bool,
    upper_offset: usize,
    payload_at: usize,
    payload: usize,
}

/// Collects the packets of one batch in order and joins what can be joined.
#[derive(Debug, Default)]
pub(super) struct Coalescer<'a> {
    members: Vec<Member<'a>>,
    items: Vec<Item>,
}

impl<'a> Coalescer<'a> {
    pub(super) fn with_capacity(packets: usize) -> Self {
        Self { members: Vec::with_capacity(packets), items: Vec::with_capacity(packets) }
    }

    /// Adds a packet; `bytes` holds just the packet.
    pub(super) fn push(&mut self, bytes: &'a mut [u8], packet: &Packet) {
        let candidate = candidate(bytes, packet);
        let index = self.members.len();
        let payload_at = candidate.map_or(0, |candidate| candidate.payload_at);
        let joined = candidate.and_then(|candidate| self.find(bytes, &candidate));
        let len = bytes.len();
        self.members.push(Member { bytes, payload_at, next: None });
        match (joined, candidate) {
            (Some(at), Some(candidate)) => self.join(at, index, &candidate),
            _ => self.items.push(Item {
                head: index,
                tail: index,
                open: candidate.filter(|candidate| !candidate.push).map(|candidate| Open {
                    next_seq: candidate.seq.wrapping_add(candidate.payload as u32),
                    next_id: candidate.id.wrapping_add(1),
                    size: candidate.payload,
                }),
                segments: 1,
                len,
                upper_offset: packet.upper_offset,
            }),
        }
    }

    /// The item a candidate continues. The search stops at the newest item of its connection, so
    /// the order within a connection is kept.
    fn find(&self, bytes: &[u8], candidate: &Candidate) -> Option<usize> {
        for (at, item) in self.items.iter().enumerate().rev().take(LOOK_BACK) {
            let Some(head) = self.members.get(item.head) else { continue };
            if !same_connection(head.bytes, item.upper_offset, bytes, candidate.upper_offset) {
                continue;
            }
            let open = item.open?;
            let dont_fragment =
                be16(bytes, 6)? & 0x4000 != 0 || candidate.upper_offset != V4_HEADER;
            let fits = candidate.seq == open.next_seq
                && candidate.payload <= open.size
                && (dont_fragment || candidate.id == open.next_id)
                && item.segments < MAX_SEGMENTS
                && item.len.checked_add(candidate.payload)? <= MAX_LEN
                && same_headers(head.bytes, bytes, candidate);
            return fits.then_some(at);
        }
        None
    }

    fn join(&mut self, at: usize, index: usize, candidate: &Candidate) {
        let Some(item) = self.items.get_mut(at) else { return };
        if let Some(tail) = self.members.get_mut(item.tail) {
            tail.next = Some(index);
        }
        item.tail = index;
        item.segments = item.segments.saturating_add(1);
        item.len = item.len.saturating_add(candidate.payload);
        let short = item.open.is_none_or(|open| candidate.payload < open.size);
        item.open = match item.open {
            Some(open) if !short && !candidate.push => Some(Open {
                next_seq: candidate.seq.wrapping_add(candidate.payload as u32),
                next_id: candidate.id.wrapping_add(1),
                size: open.size,
            }),
            _ => None,
        };
        if candidate.push
            && let Some(head) = self.members.get_mut(item.head)
            && let Some(flags) = head.bytes.get_mut(item.upper_offset.saturating_add(13))
        {
            *flags |= PSH;
        }
    }

    /// Hands every packet or super-packet to `write` in order, as vnet header and its parts, with
    /// the number of packets in it.
    pub(super) fn finish(mut self, mut write: impl FnMut(Vnet, &[&[u8]], usize)) {
        for item in &self.items {
            let mut vnet = Vnet::default();
            if item.segments > 1
                && let Some(head) = self.members.get_mut(item.head)
            {
                vnet = super_header(head, item).unwrap_or_default();
            }
            let mut parts: Vec<&[u8]> = Vec::with_capacity(item.segments);
            let mut at = Some(item.head);
            while let Some(member) = at.and_then(|at| self.members.get(at)) {
                let from = if parts.is_empty() { 0 } else { member.payload_at };
                parts.push(member.bytes.get(from..).unwrap_or_default());
                at = member.next;
            }
            write(vnet, &parts, item.segments);
        }
    }
}

/// Rewrites the first packet's headers for the whole super-packet.
fn super_header(head: &mut Member<'_>, item: &Item) -> Option<Vnet> {
    let v6 = item.upper_offset == V6_HEADER;
    let size = head.bytes.len().checked_sub(head.payload_at)?;
    let (ip, upper) = head.bytes.split_at_mut_checked(item.upper_offset)?;
    let addresses = if v6 {
        put16(ip, 4, u16::try_from(item.len.checked_sub(V6_HEADER)?).ok()?);
        ip.get(8..40)?
    } else {
        put16(ip, 2, u16::try_from(item.len).ok()?);
        finish_v4_header(ip);
        ip.get(12..20)?
    };
    let upper_len = item.len.checked_sub(item.upper_offset)?;
    let pseudo = u64::from(TCP).checked_add(upper_len as u64)?;
    put16(upper, 16, fold(packet::sum(pseudo, addresses)));
    Some(Vnet::tcp_super(
        v6,
        u16::try_from(item.upper_offset).ok()?,
        u16::try_from(head.payload_at).ok()?,
        u16::try_from(size).ok()?,
    ))
}

fn candidate(bytes: &[u8], packet: &Packet) -> Option<Candidate> {
    let plain = if packet.is_v6() { V6_HEADER } else { V4_HEADER };
    if packet.protocol != TCP
        || packet.fragment != Fragment::Whole
        || packet.upper_offset != plain
        || packet.len != bytes.len()
    {
        return None;
    }
    let upper = bytes.get(plain..)?;
    let flags = *upper.get(13)?;
    if flags & !PSH != ACK {
        return None;
    }
    let tcp_header = usize::from(*upper.get(12)? >> 4).checked_mul(4)?;
    if tcp_header < 20 {
        return None;
    }
    let payload = upper.len().checked_sub(tcp_header).filter(|payload| *payload > 0)?;
    let pseudo = packet::pseudo(packet.source, packet.destination, TCP, upper.len());
    if fold(packet::sum(pseudo, upper)) != 0xffff {
        return None;
    }
    if !packet.is_v6() && fold(packet::sum(0, bytes.get(..plain)?)) != 0xffff {
        return None;
    }
    Some(Candidate {
        seq: be32(upper, 4)?,
        id: be16(bytes, 4)?,
        push: flags & PSH != 0,
        upper_offset: plain,
        payload_at: plain.checked_add(tcp_header)?,
        payload,
    })
}

fn same_connection(a: &[u8], a_offset: usize, b: &[u8], b_offset: usize) -> bool {
    let addresses = if b_offset == V6_HEADER { 8..40 } else { 12..20 };
    // Protocol too: a UDP packet of the same ports is no part of the connection.
    let protocol = if b_offset == V6_HEADER { 6 } else { 9 };
    let ports = |bytes: &[u8]| be32(bytes, b_offset);
    a_offset == b_offset
        && a.first().map(|first| first >> 4) == b.first().map(|first| first >> 4)
        && a.get(protocol) == b.get(protocol)
        && a.get(addresses.clone()) == b.get(addresses)
        && ports(a) == ports(b)
}

/// Everything that the kernel copies from the first segment to all others.
fn same_headers(a: &[u8], b: &[u8], candidate: &Candidate) -> bool {
    let same = |range: std::ops::Range<usize>| a.get(range.clone()) == b.get(range);
    let ip = if candidate.upper_offset == V6_HEADER {
        // Version, class and flow label; next header and hop limit.
        same(0..4) && same(6..8)
    } else {
        // Version, header length and TOS; flags and offset; TTL.
        same(0..2) && same(6..9)
    };
    let tcp = candidate.upper_offset;
    let at = |offset: usize| tcp.saturating_add(offset);
    // Acknowledgement number, header length, window, urgent pointer and options.
    ip && same(at(8)..at(13)) && same(at(14)..at(16)) && same(at(18)..candidate.payload_at)
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
#[path = "gro_tests.rs"]
mod tests;
