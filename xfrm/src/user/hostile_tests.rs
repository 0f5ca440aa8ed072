//! Arbitrary bytes through everything that looks into packets: no panic, no growth, no lie.

use std::time::Instant;

use proptest::prelude::*;

use super::esp::{self, Transform};
use super::fragment::{self, Tracker};
use super::gro::Coalescer;
use super::icmp::{self, Kind};
use super::offload::{Segments, VNET, Vnet};
use super::packet::{Packet, put16};
use super::replay::ReplayWindow;
use super::selector::{Direction, judge};
use super::{ecn, mss};
use crate::model::{EspSuite, SaKeys, Selector};

/// Bytes that get past the first checks often: version, header length and protocol are likely.
fn likely_packet() -> impl Strategy<Value = Vec<u8>> {
    let protocol =
        prop_oneof![Just(6u8), Just(17), Just(1), Just(58), Just(44), Just(0), any::<u8>()];
    (proptest::collection::vec(any::<u8>(), 0..400), any::<bool>(), protocol, any::<bool>())
        .prop_map(|(mut bytes, v6, protocol, right_length)| {
            let len = bytes.len() as u16;
            if bytes.len() >= 40 {
                bytes[0] = if v6 { 0x60 } else { 0x45 };
                bytes[if v6 { 6 } else { 9 }] = protocol;
                if right_length {
                    put16(&mut bytes, if v6 { 4 } else { 2 }, if v6 { len - 40 } else { len });
                }
            }
            bytes
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn every_look_into_a_packet_is_total(bytes in likely_packet(), vnet in any::<[u8; VNET]>(), mtu in 0u16..600) {
        let Some(packet) = Packet::parse(&bytes) else { return Ok(()) };
        let any4 = Selector::network("0.0.0.0/0".parse().unwrap());
        let web = Selector { protocol: 6, start_port: 443, end_port: 443, ..any4 };
        judge(&[any4], &[web], &packet, Direction::Inbound);
        judge(&[web], &[any4], &packet, Direction::Outbound);
        fragment::evasive(&packet);
        let mut tracker = Tracker::default();
        tracker.note(1, &packet, Instant::now());
        tracker.first_passed(1, &packet, Instant::now());
        let mut total = 0;
        let split = fragment::split(&bytes, &packet, usize::from(mtu), |piece| {
            assert!(piece.len() <= usize::from(mtu) && Packet::parse(piece).is_some());
            total += piece.len();
        });
        prop_assert!(split.is_none() || total >= packet.len - packet.upper_offset);
        for kind in [Kind::TooBig(mtu), Kind::Unreachable, Kind::Prohibited] {
            if let Some(error) = icmp::error(&bytes, &packet, kind) {
                prop_assert!(error.len() <= 1280 && Packet::parse(&error).is_some());
            }
        }
        let mut copy = bytes[..packet.len].to_vec();
        mss::clamp(&mut copy, &packet, mtu);
        ecn::set_tos(&mut copy, 3);
        prop_assert_eq!(Packet::parse(&copy).map(|again| again.len), Some(packet.len));
        // The device's header may lie as well.
        let mut read = [&vnet[..], &copy].concat();
        let (vnet, body) = Vnet::split(&mut read).unwrap();
        let _ = vnet.complete_checksum(body);
        if let Some(segments) = Segments::plan(&vnet, body, &packet) {
            for index in 0..segments.count() {
                let mut out = vec![0; segments.len(index)];
                let _ = segments.write(index, body, &mut out);
            }
        }
    }

    #[test]
    fn joining_arbitrary_packets_loses_and_invents_none(list in proptest::collection::vec(likely_packet(), 0..12)) {
        let mut list = list;
        let mut coalescer = Coalescer::with_capacity(4);
        let mut pushed = 0;
        for bytes in &mut list {
            if let Some(packet) = Packet::parse(bytes) {
                coalescer.push(&mut bytes[..packet.len], &packet);
                pushed += 1;
            }
        }
        let mut written = 0;
        coalescer.finish(|_, parts, packets| {
            assert_eq!(parts.len(), packets);
            written += packets;
        });
        prop_assert_eq!(written, pushed);
    }

    #[test]
    fn arbitrary_esp_is_refused(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), cbc in any::<bool>()) {
        let suite = if cbc { EspSuite::Aes256CbcSha256 } else { EspSuite::Aes128Gcm16 };
        let (encr, integ) = suite.key_lengths();
        let keys = SaKeys { encr: vec![1; encr], integ: vec![2; integ] };
        let transform = Transform::new(suite, &keys, 1, false).unwrap();
        let header = esp::header(&bytes);
        prop_assert_eq!(header.is_some(), bytes.len() >= 8);
        if let Some((_, seq)) = header {
            let window = ReplayWindow::new(64, true);
            window.check(window.infer(seq));
        }
        prop_assert!(transform.open(1, &mut bytes).is_err());
    }
}
