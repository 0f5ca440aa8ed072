//! Traffic selectors against inner packets (RFC 4301 4.4.1.1, RFC 7296 3.13.1).
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::net::IpAddr;

use super::icmp::Subject;
use super::packet::{Fragment, Packet, Upper};
use crate::model::Selector;

/// Which way a packet goes through a child SA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// From the peer: its addresses are the packet's source.
    Inbound,
    /// To the peer.
    Outbound,
}

/// Verdict of a pair of selector lists over one packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It may pass.
    Pass,
    /// A later fragment that may pass if its first fragment did: its ports are not in it.
    PassIfFirstDid,
    /// It may not.
    Refuse,
}

/// Judges a packet by the selectors of our side and of the peer's.
pub(super) fn judge(
    local: &[Selector],
    remote: &[Selector],
    packet: &Packet,
    direction: Direction,
) -> Verdict {
    let (near, far) = match direction {
        Direction::Outbound => (packet.source, packet.destination),
        Direction::Inbound => (packet.destination, packet.source),
    };
    let (near_port, far_port) = match (packet.upper, direction) {
        (Upper::Ports(source, destination), Direction::Outbound) => {
            (Some(source), Some(destination))
        }
        (Upper::Ports(source, destination), Direction::Inbound) => {
            (Some(destination), Some(source))
        }
        // RFC 4301 4.4.1.1: type and code are the value of both sides.
        (Upper::Icmp(value), _) => (Some(value), Some(value)),
        (Upper::Opaque, _) => (None, None),
    };
    let near = side(local, near, packet.protocol, near_port);
    let far = side(remote, far, packet.protocol, far_port);
    match (near, far) {
        (Side::Yes, Side::Yes) => Verdict::Pass,
        (Side::No, _) | (_, Side::No) => Verdict::Refuse,
        _ if matches!(packet.fragment, Fragment::Later(..)) => Verdict::PassIfFirstDid,
        _ => Verdict::Refuse,
    }
}

/// As [`judge`], but an ICMP error is judged by the packet it is about (RFC 4301 6): that one must
/// have been allowed the other way, and the error must go back to its sender. Its own header says
/// little: no selector for a service names ICMP, and any router on the way may send it. One that
/// comes from the peer must still have an address of the peer.
pub(super) fn judge_subject(
    local: &[Selector],
    remote: &[Selector],
    packet: &Packet,
    subject: &Subject,
    direction: Direction,
) -> Verdict {
    let quoted = match subject {
        Subject::Itself => return judge(local, remote, packet, direction),
        Subject::Unreadable => return Verdict::Refuse,
        Subject::Quoted(quoted) => quoted,
    };
    let (other_way, peer) = match direction {
        Direction::Inbound => (Direction::Outbound, packet.source),
        Direction::Outbound => (Direction::Inbound, packet.destination),
    };
    let returns = packet.destination == quoted.source && covers(remote, peer);
    match judge(local, remote, quoted, other_way) {
        Verdict::Pass if returns => Verdict::Pass,
        _ => Verdict::Refuse,
    }
}

/// Whether an address is covered by any selector, whatever the protocol.
pub(super) fn covers(selectors: &[Selector], address: IpAddr) -> bool {
    selectors.iter().any(|selector| within(selector, address))
}

#[derive(PartialEq, Eq)]
enum Side {
    Yes,
    /// Address and protocol fit, but the selector asks for ports the packet does not show.
    PortsUnknown,
    No,
}

fn side(selectors: &[Selector], address: IpAddr, protocol: u8, port: Option<u16>) -> Side {
    let mut found = Side::No;
    for selector in selectors {
        if !within(selector, address) || (selector.protocol != 0 && selector.protocol != protocol) {
            continue;
        }
        let any = selector.start_port == 0 && selector.end_port == u16::MAX;
        // RFC 7296 3.13.1: start 65535 and end 0 is OPAQUE, packets without visible ports.
        let opaque = selector.start_port == u16::MAX && selector.end_port == 0;
        match port {
            _ if any => return Side::Yes,
            None if opaque => return Side::Yes,
            Some(port) if (selector.start_port..=selector.end_port).contains(&port) => {
                return Side::Yes;
            }
            None => found = Side::PortsUnknown,
            Some(_) => {}
        }
    }
    found
}

fn within(selector: &Selector, address: IpAddr) -> bool {
    // Families compare unequal in the derived order of IpAddr, so ask for the family first.
    selector.start.is_ipv4() == address.is_ipv4()
        && selector.start <= address
        && address <= selector.end
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests {
    use super::super::icmp::subject;
    use super::super::packet::build::{ip, tcp, udp};
    use super::super::packet::{ICMP, ICMPV6, put16};
    use super::*;

    fn selector(start: &str, end: &str, protocol: u8, ports: (u16, u16)) -> Selector {
        Selector {
            start: start.parse().unwrap(),
            end: end.parse().unwrap(),
            protocol,
            start_port: ports.0,
            end_port: ports.1,
        }
    }

    fn any(address: &str) -> Selector {
        selector(address, address, 0, (0, u16::MAX))
    }

    fn verdict(local: &[Selector], remote: &[Selector], bytes: &[u8], way: Direction) -> Verdict {
        judge(local, remote, &Packet::parse(bytes).unwrap(), way)
    }

    use Direction::{Inbound, Outbound};
    use Verdict::{Pass, PassIfFirstDid, Refuse};

    #[test]
    fn addresses_are_checked_on_both_sides_and_in_both_directions() {
        let local = [selector("10.20.0.0", "10.20.0.255", 0, (0, u16::MAX))];
        let remote = [any("10.77.0.5")];
        let to_us = udp("10.77.0.5", 1000, "10.20.0.9", 53, b"");
        let to_peer = udp("10.20.0.9", 53, "10.77.0.5", 1000, b"");
        assert_eq!(verdict(&local, &remote, &to_us, Inbound), Pass);
        assert_eq!(verdict(&local, &remote, &to_peer, Outbound), Pass);
        assert_eq!(verdict(&local, &remote, &to_us, Outbound), Refuse);
        let foreign = udp("10.77.0.6", 1000, "10.20.0.9", 53, b"");
        assert_eq!(verdict(&local, &remote, &foreign, Inbound), Refuse);
        let outside = udp("10.77.0.5", 1000, "10.20.1.0", 53, b"");
        assert_eq!(verdict(&local, &remote, &outside, Inbound), Refuse);
    }

    #[test]
    fn protocol_and_ports_restrict() {
        let local = [
            selector("10.20.0.1", "10.20.0.1", 6, (443, 443)),
            selector("10.20.0.1", "10.20.0.1", 17, (53, 60)),
        ];
        let remote = [any("10.77.0.5")];
        let judge = |bytes: &[u8]| verdict(&local, &remote, bytes, Inbound);
        assert_eq!(judge(&tcp("10.77.0.5", "10.20.0.1", 1, 2, &[], b"")), Pass);
        assert_eq!(judge(&udp("10.77.0.5", 9, "10.20.0.1", 60, b"")), Pass);
        assert_eq!(judge(&udp("10.77.0.5", 9, "10.20.0.1", 61, b"")), Refuse);
        assert_eq!(judge(&udp("10.77.0.5", 9, "10.20.0.1", 443, b"")), Refuse);
        // A TCP packet too short to show its ports.
        assert_eq!(judge(&ip("10.77.0.5", "10.20.0.1", 6, &[0, 1])), Refuse);
    }

    #[test]
    fn icmp_type_and_code_are_the_ports() {
        let echo = [selector("10.20.0.1", "10.20.0.1", ICMP, (0x0800, 0x08ff))];
        let remote = [any("10.77.0.5")];
        let request = ip("10.77.0.5", "10.20.0.1", ICMP, &[8, 0, 0, 0]);
        let redirect = ip("10.77.0.5", "10.20.0.1", ICMP, &[5, 0, 0, 0]);
        assert_eq!(verdict(&echo, &remote, &request, Inbound), Pass);
        assert_eq!(verdict(&echo, &remote, &redirect, Inbound), Refuse);
    }

    #[test]
    fn later_fragments_depend_on_the_first_only_when_ports_are_restricted() {
        let mut later = udp("10.77.0.5", 9, "10.20.0.1", 53, &[0; 32]);
        put16(&mut later, 6, 2);
        let remote = [any("10.77.0.5")];
        assert_eq!(verdict(&[any("10.20.0.1")], &remote, &later, Inbound), Pass);
        let dns = [selector("10.20.0.1", "10.20.0.1", 17, (53, 53))];
        assert_eq!(verdict(&dns, &remote, &later, Inbound), PassIfFirstDid);
        let web = [selector("10.20.0.1", "10.20.0.1", 6, (443, 443))];
        assert_eq!(verdict(&web, &remote, &later, Inbound), Refuse);
    }

    #[test]
    fn opaque_selectors_take_only_packets_without_ports() {
        let opaque = [selector("10.20.0.1", "10.20.0.1", 0, (u16::MAX, 0))];
        let remote = [any("10.77.0.5")];
        let gre = ip("10.77.0.5", "10.20.0.1", 47, &[0; 8]);
        assert_eq!(verdict(&opaque, &remote, &gre, Inbound), Pass);
        let with_ports = udp("10.77.0.5", 9, "10.20.0.1", 53, b"");
        assert_eq!(verdict(&opaque, &remote, &with_ports, Inbound), Refuse);
    }

    /// An ICMP error from `source` to `to` that quotes the beginning of `offender`.
    fn error(source: &str, to: &str, kind: u8, offender: &[u8]) -> Vec<u8> {
        let mut upper = vec![kind, 1, 0, 0, 0, 0, 0, 0];
        let quote = if source.contains(':') { 48 } else { 28 };
        upper.extend(&offender[..quote]);
        ip(source, to, if source.contains(':') { ICMPV6 } else { ICMP }, &upper)
    }

    fn verdict_of_error(
        local: &Selector,
        remote: &Selector,
        bytes: &[u8],
        way: Direction,
    ) -> Verdict {
        let packet = Packet::parse(bytes).unwrap();
        judge_subject(&[*local], &[*remote], &packet, &subject(bytes, &packet), way)
    }

    #[test]
    fn an_icmp_error_is_judged_by_the_packet_it_is_about() {
        // The service is TCP 443 of one server; nothing names ICMP.
        let local = selector("10.20.0.1", "10.20.0.1", 6, (443, 443));
        let remote = any("10.77.0.5");
        let request = tcp("10.77.0.5", "10.20.0.1", 1, 2, &[], &[0; 64]);
        let mut reply = tcp("10.20.0.1", "10.77.0.5", 1, 2, &[], &[0; 64]);
        reply[20..24].copy_from_slice(&[1, 187, 0x9c, 0x40]);
        let judge = |bytes: &[u8], way| verdict_of_error(&local, &remote, bytes, way);

        // A router behind the gateway about the client's request; the client about the reply.
        assert_eq!(judge(&error("10.99.0.1", "10.77.0.5", 3, &request), Outbound), Pass);
        assert_eq!(judge(&error("10.77.0.5", "10.20.0.1", 11, &reply), Inbound), Pass);

        // About a packet that may not pass, to somebody else, or from somebody else.
        let ssh = udp("10.77.0.5", 9, "10.20.0.1", 443, &[0; 64]);
        assert_eq!(judge(&error("10.99.0.1", "10.77.0.5", 3, &ssh), Outbound), Refuse);
        assert_eq!(judge(&error("10.77.0.5", "10.20.0.2", 3, &reply), Inbound), Refuse);
        assert_eq!(judge(&error("10.77.0.6", "10.20.0.1", 3, &reply), Inbound), Refuse);
        // About its own packet, as if it had come back.
        assert_eq!(judge(&error("10.77.0.5", "10.20.0.1", 3, &request), Inbound), Refuse);
        // About nothing readable.
        let bare = ip("10.77.0.5", "10.20.0.1", ICMP, &[3, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(judge(&bare, Inbound), Refuse);
    }

    #[test]
    fn a_peer_may_not_send_errors_about_flows_of_others() {
        let local = any("fd20::1");
        let remote = any("fd77::5");
        let own = udp("fd20::1", 1, "fd77::5", 2, &[0; 64]);
        let others = udp("fd20::1", 1, "fd77::6", 2, &[0; 64]);
        let judge = |bytes: &[u8]| verdict_of_error(&local, &remote, bytes, Inbound);
        assert_eq!(judge(&error("fd77::5", "fd20::1", 2, &own)), Pass);
        assert_eq!(judge(&error("fd77::5", "fd20::1", 2, &others)), Refuse);
    }

    #[test]
    fn families_never_match_each_other() {
        let everything_v6 =
            [selector("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", 0, (0, u16::MAX))];
        assert!(!covers(&everything_v6, "10.0.0.1".parse().unwrap()));
        assert!(covers(&everything_v6, "fd00::1".parse().unwrap()));
    }
}
