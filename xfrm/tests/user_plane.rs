//! Two userspace planes talk to each other over loopback UDP, each with a socket pair in place of
//! its TUN queue: no privilege needed. A relay in between plays the hostile network.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

mod user_common;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use user_common::{End, Relay, keys, networks, packet, spec, wait_for};
use xfrm::model::{ChildId, EspSuite, Hosts, Limits, Mode, Selector, Spi};
use xfrm::udp::{BindOptions, UdpPort};
use xfrm::{Dataplane, PlaneError, PlaneEvent};

/// Inner addresses: the client's and those behind the gateway.
const CLIENT: &str = "10.77.0.5";
const SERVER: &str = "10.20.0.1";
const CLIENT6: &str = "fd77::5";
const SERVER6: &str = "fd20::1";

struct Pair {
    client: End,
    gateway: End,
    relay: Relay,
}

impl Pair {
    /// Both ends up, one child installed on each, every datagram through the relay.
    fn new(suite: EspSuite) -> Self {
        Self::with(suite, |_| {})
    }

    fn with(suite: EspSuite, change: impl Fn(&mut xfrm::model::ChildSpec)) -> Self {
        let (client, gateway) = (End::new("client"), End::new("gateway"));
        let relay = Relay::new(client.address(), gateway.address());
        let mut pair = Self { client, gateway, relay };
        pair.install(1, suite, change);
        pair
    }

    fn install(&mut self, id: u64, suite: EspSuite, change: impl Fn(&mut xfrm::model::ChildSpec)) {
        let (to_client, to_gateway) =
            (self.client.plane.alloc_spi().unwrap(), self.gateway.plane.alloc_spi().unwrap());
        let (ours, theirs) =
            (networks(&["10.20.0.0/16", "fd20::/64"]), networks(&["10.77.0.5/32", "fd77::5/128"]));
        let mut gateway = spec(id, suite, to_gateway, to_client);
        gateway.hosts = Hosts {
            local: self.gateway.address(),
            remote: self.relay.towards_client(),
            encap: true,
        };
        (gateway.local_selectors, gateway.remote_selectors) = (ours.clone(), theirs.clone());
        let mut client = spec(id, suite, to_client, to_gateway);
        std::mem::swap(&mut client.keys_in, &mut client.keys_out);
        client.hosts = Hosts {
            local: self.client.address(),
            remote: self.relay.towards_gateway(),
            encap: true,
        };
        (client.local_selectors, client.remote_selectors) = (theirs, ours);
        change(&mut gateway);
        self.gateway.plane.install(&gateway).unwrap();
        self.client.plane.install(&client).unwrap();
    }

    fn drops(&self, reason: &str) -> u64 {
        self.gateway.drops(reason)
    }
}

#[test]
fn packets_of_both_families_pass_both_ways_with_every_suite() {
    for suite in End::new("probe").plane.capabilities().suites {
        let mut pair = Pair::new(suite);
        for (near, far) in [(CLIENT, SERVER), (CLIENT6, SERVER6)] {
            for size in [0, 1, 57, 1300] {
                let out = packet::udp(near, 1000, far, 53, &vec![size as u8; size]);
                pair.client.inject(&out);
                assert_eq!(pair.gateway.next_packet(), out, "{} {size}", suite.name());
                let back = packet::udp(far, 53, near, 1000, &vec![!size as u8; size]);
                pair.gateway.inject(&back);
                assert_eq!(pair.client.next_packet(), back, "{} {size}", suite.name());
            }
        }
        let usage = pair.gateway.plane.usage(ChildId(1)).unwrap();
        assert_eq!((usage.packets_in, usage.packets_out, usage.seq_out), (8, 8, 8));
        assert_eq!(usage.bytes_in, usage.bytes_out);
        assert!(usage.idle_in_micros.is_some_and(|idle| idle < 5_000_000));
        assert_eq!(pair.gateway.total_drops() + pair.client.total_drops(), 0);
    }
}

#[test]
fn a_replayed_packet_is_dropped_and_counted() {
    let mut pair = Pair::new(EspSuite::Aes256Gcm16);
    let out = packet::udp(CLIENT, 1, SERVER, 2, b"once");
    pair.relay.duplicate(true);
    pair.client.inject(&out);
    assert_eq!(pair.gateway.next_packet(), out);
    wait_for("the replay to be counted", || pair.drops("replay") == 1);
    assert!(pair.gateway.no_packet());
    let usage = pair.gateway.plane.usage(ChildId(1)).unwrap();
    assert_eq!((usage.packets_in, usage.drops_replay), (1, 1));
}

#[test]
fn a_tampered_packet_is_dropped_and_does_not_disturb_the_window() {
    let mut pair = Pair::new(EspSuite::Aes256Gcm16);
    // The damaged copy arrives first and claims the sequence number of the good one.
    pair.relay.tampered_copy_first(true);
    for round in 0..20u8 {
        let out = packet::udp(CLIENT, 1, SERVER, 2, &[round; 100]);
        pair.client.inject(&out);
        assert_eq!(pair.gateway.next_packet(), out);
    }
    wait_for("the damage to be counted", || pair.drops("auth") == 20);
    assert_eq!(pair.gateway.plane.usage(ChildId(1)).unwrap().drops_auth, 20);
}

#[test]
fn a_foreign_inner_source_is_dropped_by_the_receiver() {
    // The client's own plane would refuse to send it, so the client is told it owns more.
    let pair = Pair::new(EspSuite::Aes256Gcm16);
    let spoofed = packet::udp("10.77.0.6", 1, SERVER, 2, b"not mine");
    pair.client.inject(&spoofed);
    wait_for("the sender's own check", || pair.client.drops("policy") == 1);
    assert!(pair.gateway.no_packet());

    let mut pair = Pair::with(EspSuite::Aes256Gcm16, |gateway| {
        gateway.remote_selectors = networks(&["10.77.0.99/32"]);
    });
    pair.client.inject(&packet::udp(CLIENT, 1, SERVER, 2, b"not mine"));
    wait_for("the receiver's check", || pair.drops("ts") == 1);
    assert!(pair.gateway.no_packet());
    assert_eq!(pair.gateway.plane.usage(ChildId(1)).unwrap().drops_selector, 1);
}

#[test]
fn ports_of_the_selectors_bind_in_both_directions() {
    let web = Selector {
        start: SERVER.parse().unwrap(),
        end: SERVER.parse().unwrap(),
        protocol: 17,
        start_port: 53,
        end_port: 53,
    };
    let pair = Pair::with(EspSuite::Aes256Gcm16, |gateway| gateway.local_selectors = vec![web]);
    let query = packet::udp(CLIENT, 1000, SERVER, 53, b"q");
    pair.client.inject(&query);
    assert_eq!(pair.gateway.next_packet(), query);
    pair.client.inject(&packet::udp(CLIENT, 1000, SERVER, 54, b"q"));
    wait_for("the port to be refused inbound", || pair.drops("ts") == 1);
    pair.gateway.inject(&packet::udp(SERVER, 54, CLIENT, 1000, b"a"));
    wait_for("the port to be refused outbound", || pair.drops("policy") == 1);
    // The refusal is told to the local sender: administratively prohibited.
    let error = pair.gateway.next_packet();
    assert_eq!(packet::icmp(&error), Some((3, 13)));
    assert!(pair.client.no_packet());
}

#[test]
fn an_address_nobody_has_is_answered_with_host_unreachable() {
    let pair = Pair::new(EspSuite::Aes256Gcm16);
    pair.gateway.inject(&packet::udp(SERVER, 1, "10.77.0.200", 2, b"x"));
    assert_eq!(packet::icmp(&pair.gateway.next_packet()), Some((3, 1)));
    pair.gateway.inject(&packet::udp(SERVER6, 1, "fd77::200", 2, b"x"));
    assert_eq!(packet::icmp(&pair.gateway.next_packet()), Some((1, 3)));
    wait_for("both to be counted", || pair.drops("no_child") == 2);
}

#[test]
fn a_packet_too_big_is_answered_or_fragmented() {
    let pair = Pair::new(EspSuite::Aes256Gcm16);
    // The interface's MTU bounds the tunnel here: loopback itself carries 64 KiB.
    for (near, far, want) in [(CLIENT, SERVER, (3, 4)), (CLIENT6, SERVER6, (2, 0))] {
        let big = packet::udp(near, 1, far, 2, &[7; 1500]);
        pair.client.inject(&big);
        let error = pair.client.next_packet();
        assert_eq!(packet::icmp(&error), Some(want));
        let at = if want == (3, 4) { 26 } else { 46 };
        assert_eq!(u16::from_be_bytes([error[at], error[at + 1]]), 1438);
    }
    let mut allowed = packet::udp(CLIENT, 1, SERVER, 2, &[7; 3000]);
    packet::allow_fragments(&mut allowed);
    pair.client.inject(&allowed);
    let pieces: Vec<_> = (0..3).map(|_| pair.gateway.next_packet()).collect();
    assert!(pieces.iter().all(|piece| piece.len() <= 1438));
    let payload: Vec<u8> = pieces.iter().flat_map(|piece| piece[20..].to_vec()).collect();
    assert_eq!(payload, allowed[20..]);
    assert!(pair.gateway.no_packet());
}

#[test]
fn tcp_segment_sizes_are_clamped_in_both_directions() {
    let pair = Pair::new(EspSuite::Aes256Gcm16);
    for (near, far, limit) in [(CLIENT, SERVER, 1398), (CLIENT6, SERVER6, 1378)] {
        pair.client.inject(&packet::syn(near, far, 1460));
        assert_eq!(packet::mss(&pair.gateway.next_packet()), limit);
        pair.gateway.inject(&packet::syn(far, near, 9000));
        assert_eq!(packet::mss(&pair.client.next_packet()), limit);
    }
}

#[test]
fn ike_keepalives_and_strangers_are_told_apart() {
    let pair = Pair::new(EspSuite::Aes256Gcm16);
    let stranger = UdpPort::bind("127.0.0.1:0".parse().unwrap(), &BindOptions::default()).unwrap();
    let (source, to) = (stranger.local_addr().ip(), pair.gateway.address());
    stranger.send_keepalive(source, to).unwrap();
    stranger.send_ike(&[0x42; 28], source, to, true).unwrap();
    stranger.send_ike(&[0x42; 27], source, to, true).unwrap();
    stranger.send(&[0x11; 60], source, to).unwrap();
    stranger.send(&[0x11; 3], source, to).unwrap();
    stranger.send(&[], source, to).unwrap();
    let events = pair.gateway.events(2);
    assert_eq!(
        events[0],
        PlaneEvent::Ike { local: to, remote: stranger.local_addr(), payload: vec![0x42; 28] }
    );
    let unknown =
        PlaneEvent::NoSa { spi: Spi(0x1111_1111), local: to, remote: stranger.local_addr() };
    assert_eq!(events[1], unknown);
    wait_for("the short ones to be counted", || pair.drops("malformed") == 2);
}

#[test]
fn reports_of_unknown_spis_are_rate_limited() {
    const PER_SECOND: u64 = 20;
    let started = Instant::now();
    let pair = Pair::new(EspSuite::Aes256Gcm16);
    let stranger = UdpPort::bind("127.0.0.1:0".parse().unwrap(), &BindOptions::default()).unwrap();
    for n in 0..500u32 {
        let mut bytes = [0x22u8; 60];
        bytes[..4].copy_from_slice(&(1000 + n).to_be_bytes());
        stranger.send(&bytes, stranger.local_addr().ip(), pair.gateway.address()).unwrap();
    }
    wait_for("all to be counted", || pair.drops("no_sa") == 500);
    let reported = pair.gateway.events_so_far().len() as u64;
    // A second may have begun before the first message, and one is not over.
    let allowed = PER_SECOND * (started.elapsed().as_secs() + 2);
    assert!((1..=allowed).contains(&reported), "{reported} reports, {allowed} allowed");
}

#[test]
fn a_new_outer_address_is_reported_but_followed_only_when_told() {
    let mut pair = Pair::new(EspSuite::Aes256Gcm16);
    let old = pair.relay.towards_client();
    let moved = pair.relay.rebind();
    pair.client.inject(&packet::udp(CLIENT, 1, SERVER, 2, b"from elsewhere"));
    pair.gateway.next_packet();
    assert_eq!(pair.gateway.events(1), [PlaneEvent::Mapping { child: ChildId(1), remote: moved }]);
    assert_ne!(old, moved);
    let hosts = Hosts { local: pair.gateway.address(), remote: moved, encap: true };
    pair.gateway.plane.update_hosts(ChildId(1), &hosts).unwrap();
    let back = packet::udp(SERVER, 2, CLIENT, 1, b"found you");
    pair.gateway.inject(&back);
    assert_eq!(pair.client.next_packet(), back);
    pair.client.inject(&packet::udp(CLIENT, 1, SERVER, 2, b"again"));
    pair.gateway.next_packet();
    assert!(pair.gateway.events_so_far().is_empty(), "the new place is known now");
}

#[test]
fn removal_is_final_for_both_directions() {
    let mut pair = Pair::new(EspSuite::Aes256Gcm16);
    pair.client.inject(&packet::udp(CLIENT, 1, SERVER, 2, b"before"));
    pair.gateway.next_packet();
    let usage = pair.gateway.plane.remove(ChildId(1)).unwrap();
    assert_eq!(usage.packets_in, 1);
    assert!(pair.gateway.plane.children().is_empty());
    pair.client.inject(&packet::udp(CLIENT, 1, SERVER, 2, b"after"));
    wait_for("the packet to meet no SA", || pair.drops("no_sa") == 1);
    pair.gateway.inject(&packet::udp(SERVER, 2, CLIENT, 1, b"after"));
    assert_eq!(packet::icmp(&pair.gateway.next_packet()), Some((3, 1)));
    assert!(pair.client.no_packet());
    assert!(matches!(pair.gateway.plane.remove(ChildId(1)), Err(PlaneError::Unknown(_))));
    assert!(matches!(pair.gateway.plane.usage(ChildId(1)), Err(PlaneError::Unknown(_))));
}

#[test]
fn a_responder_s_new_child_receives_at_once_and_sends_when_told() {
    let mut pair = Pair::new(EspSuite::Aes256Gcm16);
    pair.install(2, EspSuite::ChaCha20Poly1305, |gateway| gateway.outbound_active = false);
    assert_eq!(pair.gateway.plane.children(), [ChildId(1), ChildId(2)]);
    let back = packet::udp(SERVER, 2, CLIENT, 1, b"old child");
    pair.gateway.inject(&back);
    assert_eq!(pair.client.next_packet(), back);
    assert_eq!(pair.gateway.plane.usage(ChildId(1)).unwrap().packets_out, 1);
    // The client (initiator) already sends on the new one.
    pair.client.inject(&packet::udp(CLIENT, 1, SERVER, 2, b"new child"));
    pair.gateway.next_packet();
    assert_eq!(pair.gateway.plane.usage(ChildId(2)).unwrap().packets_in, 1);
    pair.gateway.plane.activate_outbound(ChildId(2)).unwrap();
    pair.gateway.inject(&back);
    assert_eq!(pair.client.next_packet(), back);
    assert_eq!(pair.gateway.plane.usage(ChildId(2)).unwrap().packets_out, 1);
    // The redundant one goes; the older takes over without a gap.
    pair.gateway.plane.remove(ChildId(2)).unwrap();
    pair.gateway.inject(&back);
    assert_eq!(pair.client.next_packet(), back);
    assert_eq!(pair.gateway.plane.usage(ChildId(1)).unwrap().packets_out, 2);
}

#[test]
fn limits_raise_one_soft_and_one_hard_event_and_then_nothing_passes() {
    let pair = Pair::with(EspSuite::Aes256Gcm16, |gateway| {
        gateway.limits =
            Limits { soft_packets: Some(3), hard_packets: Some(5), ..Limits::default() };
    });
    for _ in 0..5 {
        pair.client.inject(&packet::udp(CLIENT, 1, SERVER, 2, b"x"));
        pair.gateway.next_packet();
    }
    let expire = |hard| PlaneEvent::Expire { child: ChildId(1), hard };
    assert_eq!(pair.gateway.events(2), [expire(false), expire(true)]);
    pair.client.inject(&packet::udp(CLIENT, 1, SERVER, 2, b"x"));
    wait_for("inbound to have stopped", || pair.drops("expired") == 1);
    pair.gateway.inject(&packet::udp(SERVER, 2, CLIENT, 1, b"x"));
    wait_for("outbound to have stopped", || pair.drops("policy") == 1);
    assert!(pair.client.no_packet());
    assert!(pair.gateway.events_so_far().is_empty());
}

#[test]
fn sequence_numbers_never_wrap() {
    let mut pair = Pair::with(EspSuite::Aes256Gcm16, |gateway| {
        gateway.first_seq_out = u64::from(u32::MAX) - 2;
    });
    let back = packet::udp(SERVER, 2, CLIENT, 1, b"x");
    for _ in 0..2 {
        pair.gateway.inject(&back);
        assert_eq!(pair.client.next_packet(), back);
    }
    pair.gateway.inject(&back);
    wait_for("the exhausted child to stop", || pair.drops("expired") == 1);
    let expire = |hard| PlaneEvent::Expire { child: ChildId(1), hard };
    assert_eq!(pair.gateway.events(2), [expire(false), expire(true)]);
    assert_eq!(pair.gateway.plane.usage(ChildId(1)).unwrap().seq_out, u64::from(u32::MAX));
    assert!(pair.client.no_packet());
}

#[test]
fn extended_sequence_numbers_pass_the_boundary() {
    let (client, gateway) = (End::new("client"), End::new("gateway"));
    let relay = Relay::new(client.address(), gateway.address());
    let mut pair = Pair { client, gateway, relay };
    let to_client = pair.client.plane.alloc_spi().unwrap();
    let to_gateway = pair.gateway.plane.alloc_spi().unwrap();
    let mut ours = spec(1, EspSuite::Aes256Gcm16, to_gateway, to_client);
    ours.esn = true;
    ours.first_seq_out = (1 << 32) - 3;
    ours.hosts =
        Hosts { local: pair.gateway.address(), remote: pair.relay.towards_client(), encap: true };
    ours.local_selectors = networks(&["10.20.0.0/16"]);
    ours.remote_selectors = networks(&["10.77.0.5/32"]);
    let mut theirs = spec(1, EspSuite::Aes256Gcm16, to_client, to_gateway);
    theirs.esn = true;
    std::mem::swap(&mut theirs.keys_in, &mut theirs.keys_out);
    theirs.hosts =
        Hosts { local: pair.client.address(), remote: pair.relay.towards_gateway(), encap: true };
    (theirs.local_selectors, theirs.remote_selectors) =
        (ours.remote_selectors.clone(), ours.local_selectors.clone());
    pair.gateway.plane.install(&ours).unwrap();
    pair.client.plane.install(&theirs).unwrap();
    for n in 0..6u8 {
        let back = packet::udp(SERVER, 2, CLIENT, 1, &[n]);
        pair.gateway.inject(&back);
        assert_eq!(pair.client.next_packet(), back, "packet {n}");
    }
    assert_eq!(pair.gateway.plane.usage(ChildId(1)).unwrap().seq_out, (1 << 32) + 3);
}

#[test]
fn super_packets_are_split_sealed_joined_and_written_whole() {
    let mut pair = Pair::new(EspSuite::Aes256Gcm16);
    let data: Vec<u8> = (0..60_000u32).map(|n| (n / 7) as u8).collect();
    let mut sent = 0;
    for (near, far) in [(CLIENT, SERVER), (CLIENT6, SERVER6)] {
        let whole = packet::tcp(near, far, 1000, &data);
        // Only what waits in the socket together can be joined, and on a busy
        // machine the relay may bring the segments one by one. So the content
        // must be right every time, the joining once.
        let joined = (0..50).any(|_| {
            pair.client.inject_super(&whole, 1350);
            sent += 1;
            let mut received = Vec::new();
            let mut writes = 0;
            while received.len() < data.len() {
                let bytes = pair.gateway.next_packet();
                received.extend_from_slice(packet::tcp_payload(&bytes));
                writes += 1;
            }
            assert_eq!(received, data);
            writes < 20
        });
        assert!(joined, "45 segments never took fewer than 20 writes");
    }
    assert_eq!(pair.gateway.plane.usage(ChildId(1)).unwrap().packets_in, sent * 45);
    // Too large for the tunnel: one answer, nothing sent.
    pair.client.inject_super(&packet::tcp(CLIENT, SERVER, 1, &data), 1460);
    assert_eq!(packet::icmp(&pair.client.next_packet()), Some((3, 4)));
    assert!(pair.gateway.no_packet());
}

#[test]
fn fragments_follow_their_first_under_port_selectors() {
    let dns = Selector {
        start: SERVER.parse().unwrap(),
        end: SERVER.parse().unwrap(),
        protocol: 17,
        start_port: 53,
        end_port: 53,
    };
    let pair = Pair::with(EspSuite::Aes256Gcm16, |gateway| gateway.local_selectors = vec![dns]);
    for (port, passes) in [(53u16, true), (54, false)] {
        let mut whole = packet::udp(CLIENT, 1, SERVER, port, &[9; 3000]);
        whole[5] = port as u8; // its own identification
        packet::allow_fragments(&mut whole);
        pair.client.inject(&whole);
        if passes {
            let got: usize = (0..3).map(|_| pair.gateway.next_packet().len() - 20).sum();
            assert_eq!(got, 3008);
        }
    }
    wait_for("the first fragment to be refused", || pair.drops("ts") == 1);
    wait_for("its followers to be refused", || pair.drops("fragment") == 2);
    assert!(pair.gateway.no_packet());
}

#[test]
fn congestion_marks_cross_the_tunnel() {
    let pair = Pair::new(EspSuite::Aes256Gcm16);
    let capable = packet::with_tos(&packet::udp(CLIENT, 1, SERVER, 2, b"x"), 0x02);
    pair.client.inject(&capable);
    assert_eq!(pair.gateway.next_packet(), capable);
    assert_eq!(pair.relay.last_tos(), 0x02, "the outer header shows the inner class");
    pair.relay.mark_congestion(true);
    pair.client.inject(&capable);
    assert_eq!(pair.gateway.next_packet(), packet::with_tos(&capable, 0x03));
    pair.client.inject(&packet::udp(CLIENT, 1, SERVER, 2, b"not capable"));
    wait_for("the mark that cannot be passed on", || pair.drops("ecn") == 1);
}

#[test]
fn installation_refuses_what_it_cannot_do_and_leaves_nothing() {
    let mut end = End::new("gateway");
    let spi = end.plane.alloc_spi().unwrap();
    let mut good = spec(1, EspSuite::Aes256Gcm16, spi, Spi(0x4000));
    good.hosts = Hosts {
        local: end.address(),
        remote: "127.0.0.1:9".parse::<SocketAddr>().unwrap(),
        encap: true,
    };
    good.remote_selectors = networks(&["10.77.0.5/32"]);
    for change in [
        (|s| s.mode = Mode::Transport) as fn(&mut xfrm::model::ChildSpec),
        |s| s.hosts.encap = false,
        |s| s.hosts.remote = "[::1]:9".parse().unwrap(),
        |s| s.replay_window = 5000,
        |s| s.spi_in = Spi(255),
        |s| s.keys_in.encr.truncate(3),
    ] {
        let mut bad = good.clone();
        change(&mut bad);
        assert!(matches!(end.plane.install(&bad), Err(PlaneError::Unsupported { .. })));
        assert!(end.plane.children().is_empty());
    }
    end.plane.install(&good).unwrap();
    let conflict = |end: &mut End, change: fn(&mut xfrm::model::ChildSpec)| {
        let mut other = good.clone();
        (other.id, other.spi_in) = (ChildId(2), Spi(0x7777));
        change(&mut other);
        let result = end.plane.install(&other);
        assert!(matches!(result, Err(PlaneError::Conflict(_))), "{result:?}");
        assert_eq!(end.plane.children(), [ChildId(1)]);
    };
    conflict(&mut end, |s| s.id = ChildId(1));
    conflict(&mut end, |s| s.reqid = 99);
    let mut same_spi = good.clone();
    same_spi.id = ChildId(2);
    assert!(matches!(end.plane.install(&same_spi), Err(PlaneError::Conflict(_))));
    let unknown = end.plane.activate_outbound(ChildId(9));
    assert!(matches!(unknown, Err(PlaneError::Unknown(_))));
    end.plane.shutdown().unwrap();
    assert!(end.plane.children().is_empty());
    assert!(end.plane.install(&good).is_err());
}

#[test]
fn control_operations_under_load_return_quickly() {
    let mut pair = Pair::new(EspSuite::Aes256Gcm16);
    let out = packet::udp(CLIENT, 1, SERVER, 2, &[5; 1000]);
    let end = Instant::now() + Duration::from_millis(1500);
    let (mut fastest, mut slowest) = (Duration::MAX, Duration::ZERO);
    let mut id = 10;
    while Instant::now() < end {
        for _ in 0..50 {
            pair.client.inject(&out);
        }
        let started = Instant::now();
        pair.install(id, EspSuite::Aes256Gcm16, |_| {});
        pair.gateway.plane.remove(ChildId(id)).unwrap();
        pair.client.plane.remove(ChildId(id)).unwrap();
        let took = started.elapsed();
        (fastest, slowest) = (fastest.min(took), slowest.max(took));
        while pair.gateway.try_packet().is_some() {}
        id += 1;
    }
    // A single round may have to wait for a busy machine, all of them only for the load.
    assert!(fastest < Duration::from_millis(500), "{fastest:?}");
    assert!(slowest < Duration::from_secs(30), "{slowest:?}");
    let usage = pair.gateway.plane.usage(ChildId(1)).unwrap();
    assert!(usage.packets_in > 0);
    assert_eq!(keys(EspSuite::Aes256Gcm16, 1).encr.len(), 36);
}
