//! Fuzz targets: what a peer with keys, and a stranger without, can send through a tunnel.
#![allow(clippy::expect_used, clippy::indexing_slicing)]

use std::time::Instant;

use super::esp::{self, Transform};
use super::fragment::{self, Tracker};
use super::gro::Coalescer;
use super::icmp::{self, Kind};
use super::offload::{Segments, VNET, Vnet};
use super::packet::Packet;
use super::replay::ReplayWindow;
use super::selector::{Direction, judge, judge_subject};
use super::{ecn, mss};
use crate::model::{EspSuite, SaKeys, Selector};

const SPI: u32 = 0xc0de_0001;

/// One octet that chooses suite and numbering, four of sequence number, one of next header, then
/// the payload. As it is the packet is no ESP of ours; sealed by the peer it opens to the same.
pub fn esp_packet(data: &[u8]) {
    let Some((&[how, a, b, c, d, next], inner)) = data.split_first_chunk() else { return };
    let suite = match how % 4 {
        0 => EspSuite::Aes128Gcm16,
        1 => EspSuite::ChaCha20Poly1305,
        2 => EspSuite::Aes256CbcSha256,
        _ => EspSuite::Aes256CbcSha384,
    };
    let esn = how & 0x80 != 0;
    let (encr, integ) = suite.key_lengths();
    let keys = SaKeys { encr: vec![1; encr], integ: vec![2; integ] };
    let transform = Transform::new(suite, &keys, SPI, esn).expect("keys of the right length");
    let low = u32::from_be_bytes([a, b, c, d]);
    let window = ReplayWindow::new(64, esn);
    let seq = window.infer(low);

    let mut raw = inner.to_vec();
    assert!(transform.open(seq, &mut raw).is_err(), "opened without a key");
    if let Some((_, low)) = esp::header(inner) {
        window.check(window.infer(low));
    }

    let mut sealed = vec![0; transform.sealed_len(inner.len())];
    let at = transform.payload_offset();
    sealed[at..][..inner.len()].copy_from_slice(inner);
    transform.seal(seq, next, inner.len(), &mut sealed).expect("the lengths fit");
    assert_eq!(esp::header(&sealed), Some((SPI, low)));
    let last = sealed.len() - 1;
    let mut changed = sealed.clone();
    changed[usize::from(how) * 7 % last] ^= 1;
    let (_, claimed) = esp::header(&changed).expect("as long as before");
    let opened = transform.open(window.infer(claimed), &mut changed);
    assert!(opened.is_err(), "an altered packet was opened");
    let (found, range) = transform.open(seq, &mut sealed).expect("an authentic packet");
    assert_eq!((found, &sealed[range]), (next, inner));
    inner_packet(inner);
}

/// What was inside: everything that looks into it ends, stays within it, and invents nothing.
pub fn inner_packet(data: &[u8]) {
    let Some(packet) = Packet::parse(data) else { return };
    let now = Instant::now();
    assert!(packet.len <= data.len() && packet.upper_offset <= packet.len);
    let any = Selector::network("0.0.0.0/0".parse().expect("a network"));
    let web = Selector { protocol: 6, start_port: 443, end_port: 443, ..any };
    judge(&[any], &[web], &packet, Direction::Inbound);
    judge(&[web], &[any], &packet, Direction::Outbound);
    let subject = icmp::subject(data, &packet);
    judge_subject(&[any], &[web], &packet, &subject, Direction::Inbound);
    fragment::evasive(&packet);
    let mut tracker = Tracker::default();
    tracker.note(1, &packet, now);
    tracker.first_passed(1, &packet, now);
    for mtu in [68, 296, 576] {
        split(data, &packet, mtu);
        for kind in [Kind::TooBig(mtu), Kind::Unreachable, Kind::Prohibited] {
            if let Some(error) = icmp::error(data, &packet, kind) {
                assert!(error.len() <= 1280 && Packet::parse(&error).is_some());
            }
        }
    }
    let mut copy = data[..packet.len].to_vec();
    mss::clamp(&mut copy, &packet, 1300);
    ecn::set_tos(&mut copy, 3);
    let again = Packet::parse(&copy).expect("what was a packet still is one");
    assert_eq!(again.len, packet.len);
    offload(&copy, &again);
    join(&copy, &again);
}

fn split(data: &[u8], packet: &Packet, mtu: u16) {
    let mut total = 0;
    let done = fragment::split(data, packet, usize::from(mtu), |piece| {
        assert!(piece.len() <= usize::from(mtu) && Packet::parse(piece).is_some());
        total += piece.len();
    });
    assert!(done.is_none() || total >= packet.len - packet.upper_offset);
}

/// The device's header may lie about the packet, too.
fn offload(bytes: &[u8], packet: &Packet) {
    let mut head = [0; VNET];
    for (to, from) in head.iter_mut().zip(bytes.iter().rev()) {
        *to = *from;
    }
    let mut read = [&head[..], bytes].concat();
    let Some((vnet, body)) = Vnet::split(&mut read) else { return };
    let _ = vnet.complete_checksum(body);
    if let Some(segments) = Segments::plan(&vnet, body, packet) {
        for index in 0..segments.count() {
            let mut out = vec![0; segments.len(index)];
            let _ = segments.write(index, body, &mut out);
        }
    }
}

fn join(bytes: &[u8], packet: &Packet) {
    let mut copies = [bytes.to_vec(), bytes.to_vec(), bytes.to_vec()];
    let mut coalescer = Coalescer::with_capacity(4);
    for copy in &mut copies {
        coalescer.push(copy, packet);
    }
    let mut written = 0;
    coalescer.finish(|_, parts, packets| {
        assert_eq!(parts.len(), packets);
        written += packets;
    });
    assert_eq!(written, 3);
}

/// Seeds: target, name and octets that reach deep.
#[cfg(test)]
pub(crate) fn samples() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    use super::packet::build::{ip, tcp, udp};
    let (v4, v6) = (("10.77.0.2", "10.20.0.5"), ("fd77::2", "fd20::5"));
    let syn = tcp(v4.0, v4.1, 7, 2, &[2, 4, 5, 0xb4, 1, 3, 3, 7], b"");
    let data = tcp(v6.0, v6.1, 9, 0x10, &[], &[0x55; 120]);
    let dns = udp(v4.0, 5353, v4.1, 53, b"a question");
    let mut unreachable = vec![3, 1, 0, 0, 0, 0, 0, 0];
    unreachable.extend(&dns[..28]);
    let mut first = ip(v4.0, v4.1, 17, &[9; 40]);
    first[6] = 0x20;
    let mut extended = vec![6, 0, 1, 4, 0, 0, 0, 0];
    extended.extend(&data[40..]);
    let mut more = vec![17, 0, 0, 1, 0, 0, 0, 9];
    more.extend([9; 40]);
    let packets = [
        ("tcp_v4", syn.clone()),
        ("tcp_v6", data),
        ("udp", dns.clone()),
        ("unreachable", ip(v4.1, v4.0, 1, &unreachable)),
        ("fragment_v4", first),
        ("hop_by_hop", ip(v6.0, v6.1, 0, &extended)),
        ("fragment_v6", ip(v6.0, v6.1, 44, &more)),
    ];
    let esp = |how: u8, next: u8, inner: &[u8]| [&[how, 0, 0, 0, 5, next], inner].concat();
    let mut all = vec![
        ("esp", "gcm", esp(0, 4, &syn)),
        ("esp", "chacha_esn", esp(0x81, 4, &dns)),
        ("esp", "cbc", esp(2, 59, b"")),
        ("esp", "cbc_long", esp(0x83, 41, &[7; 33])),
    ];
    all.extend(packets.map(|(name, octets)| ("inner-packet", name, octets)));
    all
}
