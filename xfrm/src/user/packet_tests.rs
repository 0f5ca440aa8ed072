//! Parsing of good, odd and hostile packets.

use super::build::{checksums_ok, ip, tcp, udp};
use super::*;
use proptest::prelude::*;

#[test]
fn ports_and_icmp_types_are_seen_in_both_families() {
    let packet = Packet::parse(&udp("10.0.0.1", 5, "10.0.0.2", 53, b"q")).unwrap();
    assert_eq!((packet.protocol, packet.upper), (UDP, Upper::Ports(5, 53)));
    assert_eq!(packet.len, 29);
    let packet = Packet::parse(&tcp("fd00::1", "fd00::2", 1, 2, &[], b"")).unwrap();
    assert_eq!((packet.protocol, packet.upper), (TCP, Upper::Ports(40000, 443)));
    assert!(packet.is_v6() && packet.dont_fragment);
    let packet = Packet::parse(&ip("fd00::1", "fd00::2", ICMPV6, &[128, 3, 0, 0])).unwrap();
    assert_eq!(packet.upper, Upper::Icmp(0x8003));
    let packet = Packet::parse(&ip("10.0.0.1", "10.0.0.2", 47, &[0; 8])).unwrap();
    assert_eq!(packet.upper, Upper::Opaque);
}

#[test]
fn ipv6_extension_headers_are_followed() {
    let mut upper = vec![60, 0, 1, 4, 0, 0, 0, 0]; // hop-by-hop, then destination options
    upper.extend([44, 0, 1, 4, 0, 0, 0, 0]); // then a first fragment
    upper.extend([UDP, 0, 0, 1, 0, 0, 0, 9]);
    upper.extend([0, 7, 0, 8, 0, 8, 0, 0]);
    let packet = Packet::parse(&ip("fd00::1", "fd00::2", 0, &upper)).unwrap();
    assert_eq!(packet.fragment, Fragment::First(9));
    assert_eq!((packet.protocol, packet.upper), (UDP, Upper::Ports(7, 8)));
    assert_eq!(packet.upper_offset, 64);
}

#[test]
fn later_fragments_show_no_ports() {
    let mut packet = udp("10.0.0.1", 5, "10.0.0.2", 53, &[0; 64]);
    put16(&mut packet, 6, 3);
    let parsed = Packet::parse(&packet).unwrap();
    assert_eq!(parsed.fragment, Fragment::Later(0x1234, 24));
    assert_eq!(parsed.upper, Upper::Opaque);
}

#[test]
fn lengths_that_lie_are_refused_and_excess_is_ignored() {
    let good = udp("10.0.0.1", 5, "10.0.0.2", 53, b"data");
    for (at, value) in [(0, 0x44u8), (0, 0x4f), (0, 0x55), (3, 19), (2, 1)] {
        let mut bad = good.clone();
        bad[at] = value;
        assert_eq!(Packet::parse(&bad), None, "byte {at} = {value:#x}");
    }
    let mut padded = good.clone();
    padded.extend([0; 100]);
    assert_eq!(Packet::parse(&padded).unwrap().len, good.len());
    for len in 0..good.len() {
        assert_eq!(Packet::parse(&good[..len]), None);
    }
}

#[test]
fn an_extension_chain_without_end_is_not_followed_forever() {
    let upper: Vec<u8> = (0..20).flat_map(|_| [60, 0, 0, 0, 0, 0, 0, 0]).collect();
    let packet = Packet::parse(&ip("fd00::1", "fd00::2", 60, &upper)).unwrap();
    assert_eq!((packet.protocol, packet.upper), (60, Upper::Opaque));
    let beyond = ip("fd00::1", "fd00::2", 60, &[6, 255, 0, 0, 0, 0, 0, 0]);
    assert_eq!(Packet::parse(&beyond), None);
}

#[test]
fn incremental_checksums_equal_full_ones() {
    let mut packet = tcp("10.0.0.1", "10.0.0.2", 1, 0x10, &[], b"hello");
    assert!(checksums_ok(&packet));
    let old = be16(&packet, 34).unwrap();
    put16(&mut packet, 34, 0xbeef);
    assert!(!checksums_ok(&packet));
    update_checksum(&mut packet, 36, old, 0xbeef);
    assert!(checksums_ok(&packet));
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), v in 0u8..2) {
        if let Some(first) = bytes.first_mut() {
            *first = (*first & 0x0f) | if v == 0 { 0x40 } else { 0x60 };
        }
        if let Some(packet) = Packet::parse(&bytes) {
            prop_assert!(packet.len <= bytes.len() && packet.upper_offset <= packet.len);
        }
    }

    #[test]
    fn the_wide_sum_equals_the_definition(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let mut slow = 0u32;
        for pair in bytes.chunks(2) {
            slow += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            slow = (slow & 0xffff) + (slow >> 16);
        }
        prop_assert_eq!(fold(sum(0, &bytes)), slow as u16);
    }
}
