//! IPv4 fragmentation of inner packets before encryption, and what to do with fragments that do
//! not show their ports.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::packet::{Fragment, Packet, TCP, be16, finish_v4_header, put16};

const MORE: u16 = 0x2000;
const OFFSET: u16 = 0x1fff;
/// Option numbers with this bit are copied into every fragment (RFC 791 3.1).
const COPIED: u8 = 0x80;

/// Splits an IPv4 packet that may be fragmented into pieces of at most `mtu` bytes (RFC 791 3.2)
/// and hands each to `emit`. `None` when the packet cannot be split so.
pub(super) fn split(
    bytes: &[u8],
    packet: &Packet,
    mtu: usize,
    mut emit: impl FnMut(&[u8]),
) -> Option<()> {
    if packet.is_v6() || packet.dont_fragment {
        return None;
    }
    let header = bytes.get(..packet.upper_offset)?;
    let payload = bytes.get(packet.upper_offset..packet.len)?;
    let flags = be16(bytes, 6)?;
    let later_header = copied_options(header)?;
    let mut at = 0usize;
    let mut piece = Vec::with_capacity(mtu);
    while at < payload.len() {
        let header = if at == 0 { header } else { &later_header };
        let room = mtu.checked_sub(header.len())?;
        // Every fragment but the last carries a multiple of eight bytes.
        let end = if payload.len().checked_sub(at)? <= room {
            payload.len()
        } else {
            let whole = room & !7;
            if whole == 0 {
                return None;
            }
            at.checked_add(whole)?
        };
        piece.clear();
        piece.extend_from_slice(header);
        piece.extend_from_slice(payload.get(at..end)?);
        let more = if end < payload.len() { MORE } else { flags & MORE };
        let units = u16::try_from(at.checked_div(8)?).ok()?;
        let offset = (flags & OFFSET).checked_add(units)?;
        let len = u16::try_from(piece.len()).ok()?;
        put16(&mut piece, 2, len);
        put16(&mut piece, 6, more | (offset & OFFSET));
        finish_v4_header(&mut piece);
        emit(&piece);
        at = end;
    }
    Some(())
}

/// The header for later fragments: only options that must be copied, padded to four bytes.
fn copied_options(header: &[u8]) -> Option<Vec<u8>> {
    let (fixed, mut options) = header.split_at_checked(20)?;
    let mut out = fixed.to_vec();
    while let Some(kind) = options.first().copied() {
        let len = match kind {
            0 => break,
            1 => 1,
            _ => usize::from(*options.get(1)?).max(2),
        };
        let (option, rest) = options.split_at_checked(len)?;
        if kind & COPIED != 0 {
            out.extend_from_slice(option);
        }
        options = rest;
    }
    out.resize(out.len().checked_next_multiple_of(4)?, 0);
    let words = u8::try_from(out.len().checked_div(4)?).ok()?;
    if let Some(first) = out.first_mut() {
        *first = 0x40 | words;
    }
    Some(out)
}

/// Fragments that exist only to get around port checks: a first one without the whole TCP header,
/// or a second one that would overwrite its flags (RFC 1858, RFC 3128).
pub(super) fn evasive(packet: &Packet) -> bool {
    if packet.protocol != TCP {
        return false;
    }
    let visible = packet.len.saturating_sub(packet.upper_offset);
    match packet.fragment {
        Fragment::Whole => false,
        Fragment::First(_) => visible < 20,
        Fragment::Later(_, offset) => offset < 20,
    }
}

/// A datagram whose first fragment passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Passed {
    child: u64,
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    id: u32,
}

/// Remembers first fragments that passed, so that their later fragments may pass too (stateful
/// fragment checking, RFC 4301 7.3). Bounded: under pressure the oldest are forgotten and their
/// later fragments dropped.
#[derive(Debug, Default)]
pub(super) struct Tracker {
    passed: VecDeque<(Instant, Passed)>,
}

/// Datagrams remembered.
const TRACKED: usize = 1024;
/// How long a later fragment may take: half of the reassembly time of RFC 791 is plenty.
const LIFETIME: Duration = Duration::from_secs(15);

impl Tracker {
    /// Notes that a packet passed, if it is a first fragment.
    pub(super) fn note(&mut self, child: u64, packet: &Packet, now: Instant) {
        let Some(key) = key(child, packet, matches!(packet.fragment, Fragment::First(_))) else {
            return;
        };
        if self.passed.len() >= TRACKED {
            self.passed.pop_front();
        }
        self.passed.push_back((now, key));
    }

    /// Whether the first fragment of this later fragment's datagram passed.
    pub(super) fn first_passed(&mut self, child: u64, packet: &Packet, now: Instant) -> bool {
        while let Some((at, _)) = self.passed.front() {
            if now.saturating_duration_since(*at) <= LIFETIME {
                break;
            }
            self.passed.pop_front();
        }
        let Some(wanted) = key(child, packet, true) else { return false };
        self.passed.iter().rev().any(|(_, passed)| *passed == wanted)
    }
}

fn key(child: u64, packet: &Packet, wanted: bool) -> Option<Passed> {
    let (Fragment::First(id) | Fragment::Later(id, _)) = packet.fragment else { return None };
    wanted.then_some(Passed {
        child,
        source: packet.source,
        destination: packet.destination,
        protocol: packet.protocol,
        id,
    })
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests {
    use super::super::packet::build::{checksums_ok, ip, udp};
    use super::super::packet::{V4_HEADER, fold, sum};
    use super::*;

    fn may_fragment(mut bytes: Vec<u8>) -> Vec<u8> {
        put16(&mut bytes, 6, 0);
        finish_v4_header(&mut bytes);
        bytes
    }

    fn pieces(bytes: &[u8], mtu: usize) -> Option<Vec<Vec<u8>>> {
        let mut out = Vec::new();
        let packet = Packet::parse(bytes).unwrap();
        split(bytes, &packet, mtu, |piece| out.push(piece.to_vec())).map(|()| out)
    }

    fn reassemble(pieces: &[Vec<u8>]) -> Vec<u8> {
        let mut payload = Vec::new();
        for piece in pieces {
            let packet = Packet::parse(piece).unwrap();
            let at = match packet.fragment {
                Fragment::Whole | Fragment::First(_) => 0,
                Fragment::Later(_, offset) => usize::from(offset),
            };
            assert_eq!(at, payload.len());
            payload.extend_from_slice(&piece[packet.upper_offset..packet.len]);
        }
        payload
    }

    #[test]
    fn pieces_fit_carry_right_headers_and_reassemble() {
        let bytes = may_fragment(udp("10.20.0.1", 1, "10.77.0.5", 2, &[9; 3000]));
        for mtu in [68, 576, 577, 583, 1338, 2999] {
            let pieces = pieces(&bytes, mtu).unwrap();
            for piece in &pieces {
                assert!(piece.len() <= mtu);
                assert_eq!(fold(sum(0, &piece[..V4_HEADER])), 0xffff);
            }
            let more = |piece: &Vec<u8>| be16(piece, 6).unwrap() & MORE != 0;
            assert!(pieces.iter().rev().skip(1).all(more) && !more(pieces.last().unwrap()));
            assert_eq!(reassemble(&pieces), bytes[V4_HEADER..]);
        }
    }

    #[test]
    fn a_fragment_can_be_fragmented_again() {
        let bytes = may_fragment(udp("10.20.0.1", 1, "10.77.0.5", 2, &[9; 3000]));
        let first_round = pieces(&bytes, 1400).unwrap();
        let again: Vec<_> =
            first_round.iter().flat_map(|piece| pieces(piece, 600).unwrap()).collect();
        assert_eq!(reassemble(&again), bytes[V4_HEADER..]);
        assert!(again[..again.len() - 1].iter().all(|p| be16(p, 6).unwrap() & MORE != 0));
    }

    #[test]
    fn only_copied_options_go_into_later_fragments() {
        let mut bytes = may_fragment(ip("10.20.0.1", "10.77.0.5", 17, &[5; 200]));
        // Router alert (copied), record route (not copied), end.
        let options = [0x94, 4, 0, 0, 7, 3, 4, 0];
        bytes.splice(20..20, options);
        bytes[0] = 0x47;
        let len = bytes.len() as u16;
        put16(&mut bytes, 2, len);
        finish_v4_header(&mut bytes);
        let pieces = pieces(&bytes, 100).unwrap();
        assert_eq!(pieces[0][..1], [0x47]);
        assert_eq!(pieces[1][20..24], [0x94, 4, 0, 0]);
        assert_eq!(pieces[1][0], 0x46);
        assert_eq!(reassemble(&pieces), bytes[28..]);
    }

    #[test]
    fn what_may_not_be_split_is_not() {
        assert_eq!(pieces(&udp("10.20.0.1", 1, "10.77.0.5", 2, &[9; 3000]), 1300), None);
        assert_eq!(pieces(&udp("fd20::1", 1, "fd77::5", 2, &[9; 3000]), 1300), None);
        let bytes = may_fragment(udp("10.20.0.1", 1, "10.77.0.5", 2, &[9; 300]));
        assert_eq!(pieces(&bytes, 24), None);
    }

    #[test]
    fn later_fragments_pass_only_after_their_first_of_the_same_child() {
        let bytes = may_fragment(udp("10.77.0.5", 1, "10.20.0.1", 53, &[9; 3000]));
        let parsed: Vec<_> =
            pieces(&bytes, 1400).unwrap().iter().map(|p| Packet::parse(p).unwrap()).collect();
        let now = Instant::now();
        let mut tracker = Tracker::default();
        assert!(!tracker.first_passed(1, &parsed[1], now));
        tracker.note(1, &parsed[1], now); // a later fragment proves nothing
        assert!(!tracker.first_passed(1, &parsed[1], now));
        tracker.note(1, &parsed[0], now);
        assert!(tracker.first_passed(1, &parsed[1], now));
        assert!(!tracker.first_passed(2, &parsed[1], now));
        assert!(!tracker.first_passed(1, &parsed[1], now + Duration::from_secs(16)));
    }

    #[test]
    fn the_tracker_is_bounded() {
        let mut tracker = Tracker::default();
        let now = Instant::now();
        let mut bytes = may_fragment(udp("10.77.0.5", 1, "10.20.0.1", 53, &[9; 30]));
        put16(&mut bytes, 6, MORE);
        for id in 0..5000u16 {
            put16(&mut bytes, 4, id);
            tracker.note(1, &Packet::parse(&bytes).unwrap(), now);
        }
        assert_eq!(tracker.passed.len(), TRACKED);
    }

    #[test]
    fn tiny_and_overlapping_tcp_fragments_are_evasive() {
        let mut first = ip("10.77.0.5", "10.20.0.1", TCP, &[0; 16]);
        put16(&mut first, 6, MORE);
        assert!(evasive(&Packet::parse(&first).unwrap()));
        let mut second = ip("10.77.0.5", "10.20.0.1", TCP, &[0; 64]);
        put16(&mut second, 6, 1);
        assert!(evasive(&Packet::parse(&second).unwrap()));
        put16(&mut second, 6, 3);
        assert!(!evasive(&Packet::parse(&second).unwrap()));
        let whole = ip("10.77.0.5", "10.20.0.1", TCP, &[0; 16]);
        assert!(!evasive(&Packet::parse(&whole).unwrap()));
        assert!(checksums_ok(&udp("10.77.0.5", 1, "10.20.0.1", 2, b"")));
    }
}
