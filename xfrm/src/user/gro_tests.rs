//! Joining and taking apart again gives the same packets.

use super::super::offload::Segments;
use super::super::packet::build::{checksums_ok, tcp, udp};
use super::*;
use proptest::prelude::*;

const PAIRS: [(&str, &str); 2] = [("10.20.0.1", "10.77.0.5"), ("fd20::1", "fd77::5")];
const TIMESTAMP: [u8; 12] = [1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2];

/// What is written for these packets: the vnet header and bytes of each, and how many are in it.
fn written(packets: &[Vec<u8>]) -> Vec<(Vnet, Vec<u8>, usize)> {
    let mut owned = packets.to_vec();
    let mut coalescer = Coalescer::with_capacity(8);
    for bytes in &mut owned {
        let packet = Packet::parse(bytes).unwrap();
        coalescer.push(bytes, &packet);
    }
    let mut out = Vec::new();
    coalescer.finish(|vnet, parts, count| out.push((vnet, parts.concat(), count)));
    out
}

/// What the kernel would make of it.
fn split_again(written: &[(Vnet, Vec<u8>, usize)]) -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    for (vnet, bytes, count) in written {
        if !vnet.is_super() {
            assert_eq!(*count, 1);
            out.push(bytes.clone());
            continue;
        }
        let packet = Packet::parse(bytes).unwrap();
        assert_eq!(packet.len, bytes.len(), "the IP length covers the super-packet");
        let mut whole = bytes.clone();
        vnet.complete_checksum(&mut whole).unwrap();
        assert!(checksums_ok(&whole), "the pseudo header's sum is in place");
        let segments = Segments::plan(vnet, bytes, &packet).unwrap();
        assert_eq!(segments.count(), *count);
        for index in 0..segments.count() {
            let mut segment = vec![0; segments.len(index)];
            segments.write(index, bytes, &mut segment).unwrap();
            out.push(segment);
        }
    }
    out
}

fn stream(pair: (&str, &str), seq: u32, sizes: &[usize]) -> Vec<Vec<u8>> {
    let mut at = seq;
    sizes
        .iter()
        .enumerate()
        .map(|(index, size)| {
            let data: Vec<u8> = (0..*size).map(|n| (n + index) as u8).collect();
            let mut bytes = tcp(pair.0, pair.1, at, ACK, &TIMESTAMP, &data);
            at = at.wrapping_add(*size as u32);
            if pair.0.contains('.') {
                put16(&mut bytes, 4, 0x1234 + index as u16);
                finish_v4_header(&mut bytes);
            }
            bytes
        })
        .collect()
}

#[test]
fn neighbours_join_and_come_apart_identically() {
    for pair in PAIRS {
        let packets = stream(pair, u32::MAX - 2000, &[1000, 1000, 1000, 1000, 300]);
        let out = written(&packets);
        assert_eq!(out.iter().map(|item| item.2).collect::<Vec<_>>(), [5]);
        assert_eq!(split_again(&out), packets);
    }
}

#[test]
fn two_connections_interleaved_join_separately() {
    let (first, second) = (stream(PAIRS[0], 1, &[700; 4]), stream(PAIRS[1], 1, &[800; 4]));
    let mixed: Vec<_> =
        first.iter().zip(&second).flat_map(|(a, b)| [a.clone(), b.clone()]).collect();
    let out = written(&mixed);
    assert_eq!(out.iter().map(|item| item.2).collect::<Vec<_>>(), [4, 4]);
    assert_eq!(split_again(&out), [first, second].concat());
}

#[test]
fn push_ends_a_super_packet_and_survives() {
    let mut packets = stream(PAIRS[0], 1, &[500; 4]);
    packets[1] = {
        let mut bytes = tcp(PAIRS[0].0, PAIRS[0].1, 501, ACK | PSH, &TIMESTAMP, &[3; 500]);
        put16(&mut bytes, 4, 0x1235);
        finish_v4_header(&mut bytes);
        bytes
    };
    let out = written(&packets);
    assert_eq!(out.iter().map(|item| item.2).collect::<Vec<_>>(), [2, 2]);
    assert_eq!(split_again(&out), packets);
}

#[test]
fn what_differs_is_not_joined() {
    let base = stream(PAIRS[0], 1, &[500, 500]);
    let change = |at: usize, value: u8| {
        let mut second = base[1].clone();
        second[at] = value;
        put16(&mut second, 36, 0);
        let packet = Packet::parse(&second).unwrap();
        let pseudo = packet::pseudo(packet.source, packet.destination, TCP, packet.len - 20);
        let checksum = !fold(packet::sum(pseudo, &second[20..]));
        put16(&mut second, 36, checksum);
        finish_v4_header(&mut second);
        assert!(checksums_ok(&second));
        vec![base[0].clone(), second]
    };
    for (what, packets) in [
        ("TOS", change(1, 0x02)),
        ("TTL", change(8, 63)),
        ("source port", change(21, 1)),
        ("a gap", change(27, 0xff)),
        ("acknowledgement", change(31, 98)),
        ("SYN", change(33, ACK | 0x02)),
        ("FIN", change(33, ACK | 0x01)),
        ("URG", change(33, ACK | 0x20)),
        ("CWR", change(33, ACK | 0x80)),
        ("window", change(34, 0x11)),
        ("timestamp", change(47, 9)),
    ] {
        let out = written(&packets);
        assert_eq!(out.len(), 2, "{what}");
        assert_eq!(split_again(&out), packets, "{what}");
    }
}

#[test]
fn without_df_identifications_must_follow_each_other() {
    let mut packets = stream(PAIRS[0], 1, &[500; 3]);
    for bytes in &mut packets {
        put16(bytes, 6, 0);
        finish_v4_header(bytes);
    }
    assert_eq!(written(&packets).len(), 1);
    put16(&mut packets[1], 4, 0x7777);
    finish_v4_header(&mut packets[1]);
    assert_eq!(written(&packets).len(), 3);
}

#[test]
fn a_wrong_checksum_is_never_repaired() {
    for pair in PAIRS {
        let mut packets = stream(pair, 1, &[500; 3]);
        *packets[1].last_mut().unwrap() ^= 1;
        let out = written(&packets);
        assert_eq!(out.iter().map(|item| item.2).collect::<Vec<_>>(), [1, 1, 1]);
        assert_eq!(split_again(&out), packets);
    }
    let mut packets = stream(PAIRS[0], 1, &[500; 2]);
    packets[1][10] ^= 1;
    assert_eq!(written(&packets).len(), 2);
}

#[test]
fn a_super_packet_stays_within_its_bounds() {
    let packets = stream(PAIRS[0], 1, &[1400; 130]);
    let out = written(&packets);
    assert!(out.iter().all(|item| item.1.len() <= MAX_LEN && item.2 <= MAX_SEGMENTS));
    assert_eq!(split_again(&out), packets);
}

proptest! {
    #[test]
    fn any_mixture_comes_apart_in_order_per_connection(
        steps in proptest::collection::vec((0usize..2, 1usize..40, any::<bool>(), any::<bool>()), 1..60),
    ) {
        let mut seqs = [100u32, 200];
        let mut ids = [1u16, 1];
        let mut packets = Vec::new();
        for (which, size, skip, datagram) in steps {
            let (source, to) = PAIRS[which];
            if datagram && skip {
                packets.push(udp(source, 40000, to, 443, &vec![1; size]));
                continue;
            }
            if skip {
                seqs[which] += 7;
            }
            let mut bytes = tcp(source, to, seqs[which], ACK, &[], &vec![2; size * 10]);
            seqs[which] += size as u32 * 10;
            if which == 0 {
                put16(&mut bytes, 4, ids[0]);
                ids[0] += 1;
                finish_v4_header(&mut bytes);
            }
            packets.push(bytes);
        }
        let again = split_again(&written(&packets));
        for (source, _) in PAIRS {
            let source: std::net::IpAddr = source.parse().unwrap();
            for protocol in [TCP, packet::UDP] {
                let of = |list: &[Vec<u8>]| -> Vec<Vec<u8>> {
                    list.iter()
                        .filter(|bytes| {
                            let packet = Packet::parse(bytes).unwrap();
                            packet.source == source && packet.protocol == protocol
                        })
                        .cloned()
                        .collect()
                };
                prop_assert_eq!(of(&again), of(&packets));
            }
        }
    }
}
