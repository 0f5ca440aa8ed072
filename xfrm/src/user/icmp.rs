//! ICMP errors about packets the tunnel cannot carry (RFC 792, RFC 1191, RFC 4443).
//!
//! They leave through the tunnel interface towards the sender, as if from the packet's
//! destination: the only address the network behind is sure to route to this interface.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::packet::{
    self, Fragment, ICMP, ICMPV6, Packet, Upper, V4_HEADER, V6_HEADER, finish_v4_header, fold,
    put16, put32,
};

/// What the error says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The packet does not fit; the largest that does.
    TooBig(u16),
    /// Nobody is connected there.
    Unreachable,
    /// The policy forbids it.
    Prohibited,
}

/// Octets of an IPv4 offender quoted at most (RFC 1812 4.3.2.3: the error stays within 576).
const QUOTE_V4: usize = 548;
/// The whole ICMPv6 error stays within the minimum MTU (RFC 4443 2.4c).
const QUOTE_V6: usize = 1280 - V6_HEADER - 8;
const HOP_LIMIT: u8 = 64;

/// Builds the error about `bytes`, or `None` where none may be sent (RFC 1122 3.2.2, RFC 4443
/// 2.4e).
pub(super) fn error(bytes: &[u8], offender: &Packet, kind: Kind) -> Option<Vec<u8>> {
    if !answerable(offender, kind) {
        return None;
    }
    let v6 = offender.is_v6();
    let (icmp_type, code, value) = match (kind, v6) {
        (Kind::TooBig(mtu), false) => (3, 4, u32::from(mtu)),
        (Kind::TooBig(mtu), true) => (2, 0, u32::from(mtu)),
        (Kind::Unreachable, false) => (3, 1, 0),
        (Kind::Unreachable, true) => (1, 3, 0),
        (Kind::Prohibited, false) => (3, 13, 0),
        (Kind::Prohibited, true) => (1, 1, 0),
    };
    let quote = bytes.get(..offender.len.min(if v6 { QUOTE_V6 } else { QUOTE_V4 }))?;
    let body = quote.len().checked_add(8)?;
    let header = if v6 { V6_HEADER } else { V4_HEADER };
    let mut out = vec![0u8; header.checked_add(body)?];
    let (ip, icmp) = out.split_at_mut_checked(header)?;
    put16(icmp, 0, u16::from_be_bytes([icmp_type, code]));
    put32(icmp, 4, value);
    icmp.get_mut(8..)?.copy_from_slice(quote);
    // The error goes back, so source and destination change places.
    match (offender.destination, offender.source) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let checksum = !fold(packet::sum(0, icmp));
            put16(icmp, 2, checksum);
            put16(ip, 0, 0x4500);
            put16(ip, 2, u16::try_from(body.checked_add(header)?).ok()?);
            put16(ip, 8, u16::from_be_bytes([HOP_LIMIT, ICMP]));
            ip.get_mut(12..16)?.copy_from_slice(&source.octets());
            ip.get_mut(16..20)?.copy_from_slice(&destination.octets());
            finish_v4_header(ip);
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let start = packet::pseudo(source.into(), destination.into(), ICMPV6, body);
            let checksum = !fold(packet::sum(start, icmp));
            put16(icmp, 2, checksum);
            put32(ip, 0, 0x6000_0000);
            put16(ip, 4, u16::try_from(body).ok()?);
            put16(ip, 6, u16::from_be_bytes([ICMPV6, HOP_LIMIT]));
            ip.get_mut(8..24)?.copy_from_slice(&source.octets());
            ip.get_mut(24..40)?.copy_from_slice(&destination.octets());
        }
        _ => return None,
    }
    Some(out)
}

/// What a packet is about, for the selectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Subject {
    /// Itself.
    Itself,
    /// It is an ICMP error about this packet, which went the other way.
    Quoted(Packet),
    /// It is an ICMP error about something unreadable.
    Unreadable,
}

/// Finds out whether a packet is an ICMP error, and about what. Redirects and source quenches
/// (RFC 6633) count as themselves: they are instructions, not errors.
pub(super) fn subject(bytes: &[u8], packet: &Packet) -> Subject {
    let is_error = match (packet.protocol, packet.upper) {
        (ICMP, Upper::Icmp(value)) => matches!(value >> 8, 3 | 11 | 12),
        (ICMPV6, Upper::Icmp(value)) => matches!(value >> 8, 1..=4),
        _ => false,
    };
    if !is_error {
        return Subject::Itself;
    }
    packet
        .upper_offset
        .checked_add(8)
        .and_then(|quote| bytes.get(quote..packet.len))
        .and_then(Packet::parse_quote)
        .map_or(Subject::Unreadable, Subject::Quoted)
}

fn answerable(offender: &Packet, kind: Kind) -> bool {
    let one_host = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => {
            !(ip.is_multicast() || ip.is_broadcast() || ip.is_unspecified() || ip.is_loopback())
        }
        IpAddr::V6(ip) => !(ip.is_multicast() || ip.is_unspecified() || ip.is_loopback()),
    };
    if !one_host(offender.source) || matches!(offender.fragment, Fragment::Later(..)) {
        return false;
    }
    // RFC 4443 2.4e: too-big may answer multicast, but this tunnel carries none.
    if !one_host(offender.destination) {
        return false;
    }
    match (offender.protocol, offender.upper) {
        (ICMP, Upper::Icmp(value)) => {
            let icmp_type = value >> 8;
            // Destination unreachable, source quench, redirect, time exceeded, parameter problem.
            !matches!(icmp_type, 3 | 4 | 5 | 11 | 12)
        }
        // ICMPv6 errors have types below 128; too-big must still be told about those.
        (ICMPV6, Upper::Icmp(value)) => (value >> 8) >= 128,
        (ICMP | ICMPV6, _) => matches!(kind, Kind::TooBig(_)),
        _ => true,
    }
}

/// At most so many errors a second (RFC 1812 4.3.2.8, RFC 4443 2.4f).
#[derive(Debug)]
pub(super) struct Limiter {
    per_second: u32,
    left: u32,
    refilled: Instant,
}

impl Limiter {
    pub(super) fn new(per_second: u32, now: Instant) -> Self {
        Self { per_second, left: per_second, refilled: now }
    }

    /// Takes one permit if there is one.
    pub(super) fn allow(&mut self, now: Instant) -> bool {
        if now.saturating_duration_since(self.refilled) >= Duration::from_secs(1) {
            self.refilled = now;
            self.left = self.per_second;
        }
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests {
    use super::super::packet::build::{checksums_ok, ip, udp};
    use super::*;

    fn about(bytes: &[u8], kind: Kind) -> Option<Vec<u8>> {
        error(bytes, &Packet::parse(bytes).unwrap(), kind)
    }

    #[test]
    fn too_big_tells_the_mtu_and_quotes_the_offender() {
        let offender = udp("10.20.0.1", 1, "10.77.0.5", 2, &[7; 1400]);
        let bytes = about(&offender, Kind::TooBig(1338)).unwrap();
        assert!(checksums_ok(&bytes));
        let packet = Packet::parse(&bytes).unwrap();
        assert_eq!(packet.upper, Upper::Icmp(0x0304));
        assert_eq!(packet.destination.to_string(), "10.20.0.1");
        assert_eq!(packet.source.to_string(), "10.77.0.5");
        assert_eq!(packet::be16(&bytes, 26), Some(1338));
        assert_eq!(bytes.len(), 576);
        assert_eq!(bytes[28..], offender[..QUOTE_V4]);

        let offender = udp("fd20::1", 1, "fd77::5", 2, &[7; 1400]);
        let bytes = about(&offender, Kind::TooBig(1280)).unwrap();
        assert!(checksums_ok(&bytes));
        let packet = Packet::parse(&bytes).unwrap();
        assert_eq!(packet.upper, Upper::Icmp(0x0200));
        assert_eq!(packet::be32(&bytes, 44), Some(1280));
        assert_eq!(bytes.len(), 1280);
        assert_eq!(bytes[48..], offender[..QUOTE_V6]);
    }

    #[test]
    fn unreachable_and_prohibited_have_their_codes() {
        let v4 = udp("10.20.0.1", 1, "10.77.0.5", 2, b"x");
        let v6 = udp("fd20::1", 1, "fd77::5", 2, b"x");
        for (bytes, kind, want) in [
            (&v4, Kind::Unreachable, 0x0301),
            (&v4, Kind::Prohibited, 0x030d),
            (&v6, Kind::Unreachable, 0x0103),
            (&v6, Kind::Prohibited, 0x0101),
        ] {
            let error = about(bytes, kind).unwrap();
            assert!(checksums_ok(&error));
            assert_eq!(Packet::parse(&error).unwrap().upper, Upper::Icmp(want));
        }
    }

    #[test]
    fn no_error_about_errors_fragments_or_many_hosts() {
        let icmp_error = ip("10.20.0.1", "10.77.0.5", ICMP, &[3, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(about(&icmp_error, Kind::Unreachable), None);
        let icmp6_error = ip("fd20::1", "fd77::5", ICMPV6, &[1, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(about(&icmp6_error, Kind::Unreachable), None);
        let echo = ip("10.20.0.1", "10.77.0.5", ICMP, &[8, 0, 0, 0, 0, 0, 0, 0]);
        assert!(about(&echo, Kind::Unreachable).is_some());
        let mut later = udp("10.20.0.1", 1, "10.77.0.5", 2, &[0; 32]);
        put16(&mut later, 6, 2);
        assert_eq!(about(&later, Kind::Unreachable), None);
        for (source, to) in [
            ("10.20.0.1", "224.0.0.1"),
            ("10.20.0.1", "255.255.255.255"),
            ("0.0.0.0", "10.77.0.5"),
            ("fd20::1", "ff02::2"),
            ("::", "fd77::5"),
        ] {
            assert_eq!(about(&udp(source, 1, to, 2, b"x"), Kind::Unreachable), None, "{to}");
        }
    }

    #[test]
    fn the_limiter_refills_every_second() {
        let start = Instant::now();
        let mut limiter = Limiter::new(3, start);
        let allowed = |limiter: &mut Limiter, at| (0..10).filter(|_| limiter.allow(at)).count();
        assert_eq!(allowed(&mut limiter, start), 3);
        assert_eq!(allowed(&mut limiter, start + Duration::from_millis(900)), 0);
        assert_eq!(allowed(&mut limiter, start + Duration::from_millis(1000)), 3);
    }
}
