//! Super-packets taken apart as the kernel would do it.

use super::super::packet::build::{checksums_ok, tcp, udp};
use super::*;

const PAIRS: [(&str, &str); 2] = [("10.20.0.1", "10.77.0.5"), ("fd20::1", "fd77::5")];
const TIMESTAMP: [u8; 12] = [1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2];

fn super_vnet(gso_type: u8, size: u16, packet: &Packet) -> Vnet {
    Vnet {
        flags: NEEDS_CSUM,
        gso_type,
        header_len: 0,
        gso_size: size,
        csum_start: packet.upper_offset as u16,
        csum_offset: if gso_type & !GSO_ECN == GSO_UDP_L4 { 6 } else { 16 },
    }
}

fn take_apart(vnet: &Vnet, bytes: &[u8]) -> Vec<Vec<u8>> {
    let packet = Packet::parse(bytes).unwrap();
    let segments = Segments::plan(vnet, bytes, &packet).unwrap();
    (0..segments.count())
        .map(|index| {
            let mut out = vec![0; segments.len(index)];
            segments.write(index, bytes, &mut out).unwrap();
            assert!(out.len() <= segments.max_len());
            out
        })
        .collect()
}

#[test]
fn tcp_segments_carry_their_own_numbers_flags_and_checksums() {
    let data: Vec<u8> = (0..5000u32).map(|n| (n * 7) as u8).collect();
    for (source, to) in PAIRS {
        let start = u32::MAX - 1500; // the sequence number wraps inside
        let bytes = tcp(source, to, start, ACK | PSH | FIN | CWR, &TIMESTAMP, &data);
        let packet = Packet::parse(&bytes).unwrap();
        let kind = if packet.is_v6() { GSO_TCPV6 } else { GSO_TCPV4 };
        let segments = take_apart(&super_vnet(kind | GSO_ECN, 1400, &packet), &bytes);
        assert_eq!(segments.len(), 4);
        let mut joined = Vec::new();
        for (index, segment) in segments.iter().enumerate() {
            assert!(checksums_ok(segment), "segment {index}");
            let parsed = Packet::parse(segment).unwrap();
            assert_eq!(parsed.len, segment.len());
            let upper = &segment[parsed.upper_offset..];
            assert_eq!(be32(upper, 4), Some(start.wrapping_add(1400 * index as u32)));
            let want = match index {
                0 => ACK | CWR,
                3 => ACK | PSH | FIN,
                _ => ACK,
            };
            assert_eq!(upper[13], want, "flags of segment {index}");
            assert_eq!(upper[20..32], TIMESTAMP);
            if !parsed.is_v6() {
                assert_eq!(be16(segment, 4), Some(0x1234 + index as u16));
            }
            joined.extend_from_slice(&upper[32..]);
        }
        assert_eq!(joined, data);
    }
}

const ACK: u8 = 0x10;

#[test]
fn udp_segments_carry_their_own_lengths_and_checksums() {
    let data: Vec<u8> = (0..2500u32).map(|n| n as u8).collect();
    for (source, to) in PAIRS {
        let bytes = udp(source, 5, to, 6, &data);
        let packet = Packet::parse(&bytes).unwrap();
        let segments = take_apart(&super_vnet(GSO_UDP_L4, 1000, &packet), &bytes);
        let lens: Vec<_> = segments.iter().map(|s| s.len() - packet.upper_offset).collect();
        assert_eq!(lens, [1008, 1008, 508]);
        let joined: Vec<u8> = segments
            .iter()
            .inspect(|segment| assert!(checksums_ok(segment)))
            .flat_map(|segment| segment[packet.upper_offset + 8..].to_vec())
            .collect();
        assert_eq!(joined, data);
    }
}

#[test]
fn headers_that_lie_are_refused() {
    let bytes = tcp("10.20.0.1", "10.77.0.5", 1, ACK, &[], &[1; 3000]);
    let packet = Packet::parse(&bytes).unwrap();
    let plan = |vnet: Vnet, bytes: &[u8]| Segments::plan(&vnet, bytes, &packet).is_none();
    let good = super_vnet(GSO_TCPV4, 1400, &packet);
    assert!(!plan(good, &bytes));
    assert!(plan(Vnet { gso_size: 0, ..good }, &bytes));
    assert!(plan(Vnet { gso_type: GSO_UDP_L4, ..good }, &bytes));
    assert!(plan(Vnet { gso_type: 3, ..good }, &bytes));
    let mut short_header = bytes.clone();
    short_header[32] = 0x40;
    assert!(plan(good, &short_header));
    let mut long_header = bytes[..45].to_vec();
    long_header[32] = 0xf0;
    let mut packet = packet;
    packet.len = 45;
    assert!(Segments::plan(&good, &long_header, &packet).is_none());
}

#[test]
fn a_checksum_left_to_us_is_completed() {
    for (source, to) in PAIRS {
        for complete in [tcp(source, to, 1, ACK, &[], b"odd"), udp(source, 1, to, 2, b"odd")] {
            let packet = Packet::parse(&complete).unwrap();
            let offset = if packet.protocol == TCP { 16 } else { 6 };
            let mut bytes = complete.clone();
            let upper_len = packet.len - packet.upper_offset;
            let pseudo =
                packet::pseudo(packet.source, packet.destination, packet.protocol, upper_len);
            put16(&mut bytes, packet.upper_offset + offset, fold(pseudo));
            let vnet = Vnet {
                flags: NEEDS_CSUM,
                csum_start: packet.upper_offset as u16,
                csum_offset: offset as u16,
                ..Vnet::default()
            };
            vnet.complete_checksum(&mut bytes).unwrap();
            assert_eq!(bytes, complete);
        }
    }
    let mut bytes = vec![0; 40];
    let vnet = Vnet { flags: NEEDS_CSUM, csum_start: 39, csum_offset: 0, ..Vnet::default() };
    assert_eq!(vnet.complete_checksum(&mut bytes), None);
}

#[test]
fn the_device_header_round_trips() {
    let vnet = Vnet::tcp_super(true, 40, 72, 1388);
    let mut bytes = vnet.to_bytes().to_vec();
    bytes.push(0x60);
    let (parsed, rest) = Vnet::split(&mut bytes).unwrap();
    assert_eq!((parsed, rest), (vnet, &mut [0x60][..]));
    assert!(vnet.is_super() && !Vnet::default().is_super());
    assert!(Vnet::split(&mut [0; 9]).is_none());
}
