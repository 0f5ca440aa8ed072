//! How much a child SA carries before it is rekeyed, and before it ends (RFC 7296 2.8,
//! RFC 4303 3.3.3).

use std::collections::BTreeSet;

use ike::config::Volume;
use ike::event::CloseReason;
use ike::io::{ChildLimits, ChildSaId, DataplaneEvent, InstallChild};
use ike::{Event, Input};

use crate::harness::*;

/// A pair whose server counts; the client does not.
fn counting(volume: Volume) -> Setup {
    let mut setup = Setup::new().quiet();
    setup.server.volume = volume;
    setup
}

fn only(peer: &Peer) -> &InstallChild {
    assert_eq!(peer.plane.len(), 1);
    peer.plane.values().next().unwrap()
}

/// Lets the server's child carry `bytes` in packets of 1000 bytes and do what a data plane does:
/// it says once that the soft limit is reached, and at the hard one it stops and says so.
fn carry(pair: &mut Pair, counters: &mut Counters, packets: u64) {
    for _ in 0..packets {
        let child = only(&pair.server);
        if counters.child != Some(child.child) {
            *counters = Counters { child: Some(child.child), ..Counters::default() };
        }
        if counters.stopped {
            return;
        }
        counters.packets += 1;
        let bytes = counters.packets * 1000;
        let over = |limit: Option<u64>, value: u64| limit.is_some_and(|limit| value >= limit);
        let ChildLimits { soft_bytes, hard_bytes, soft_packets, hard_packets } = child.limits;
        let (id, packets) = (child.child, counters.packets);
        let hard = over(hard_bytes, bytes) || over(hard_packets, packets);
        let soft = over(soft_bytes, bytes) || over(soft_packets, packets);
        if hard || (soft && !counters.told) {
            counters.told = true;
            counters.stopped = hard;
            let event = DataplaneEvent::Expire { child: id, hard };
            pair.input(Side::Server, Input::Dataplane(event));
        }
    }
}

#[derive(Debug, Default)]
struct Counters {
    child: Option<ChildSaId>,
    packets: u64,
    told: bool,
    stopped: bool,
}

#[test]
fn a_child_is_rekeyed_after_as_many_bytes_or_packets_as_configured() {
    for volume in [
        Volume { bytes: Some(100_000), packets: None },
        Volume { bytes: None, packets: Some(100) },
        Volume { bytes: Some(100_000_000), packets: Some(100) },
    ] {
        let mut pair = Pair::connected_with(counting(volume));
        let mut counters = Counters::default();
        let first = only(&pair.server).spi_in;

        carry(&mut pair, &mut counters, 89);
        assert!(pair.wire.is_empty(), "too early: {volume:?}");
        carry(&mut pair, &mut counters, 11);
        assert_eq!(pair.wire.len(), 1, "too late: {volume:?}");
        pair.run();

        pair.assert_connected();
        pair.assert_traffic_flows();
        assert_ne!(only(&pair.server).spi_in, first);
        // And the next one in its turn, whoever began the first one.
        let second = only(&pair.server).spi_in;
        carry(&mut pair, &mut counters, 100);
        pair.run();
        assert_ne!(only(&pair.server).spi_in, second);
        assert_eq!(pair.server.codes(), Vec::<&str>::new());
        pair.assert_no_leaks();
    }
}

/// A peer that does not let it be rekeyed does not keep the keys in use.
#[test]
fn at_twice_as_much_the_child_ends_whatever_became_of_the_rekey() {
    let mut pair = Pair::connected_with(counting(Volume { bytes: Some(100_000), packets: None }));
    let mut counters = Counters::default();

    carry(&mut pair, &mut counters, 100);
    assert_eq!(pair.wire.len(), 1);
    pair.lose();
    carry(&mut pair, &mut counters, 99);
    assert_eq!(pair.server.plane.len(), 1);
    carry(&mut pair, &mut counters, 1);

    assert!(counters.stopped);
    assert_eq!(pair.server.inbound(), Vec::<u32>::new());
    let down = |event: &Event| matches!(event, Event::ChildDown { reason, .. } if *reason == CloseReason::Expired);
    assert_eq!(pair.server.events.iter().filter(|event| down(event)).count(), 1);
}

#[test]
fn limits_vary_by_up_to_a_tenth_and_the_end_does_not() {
    let volume = Volume { bytes: Some(1_000_000), packets: Some(1_000) };
    let mut seen = BTreeSet::new();
    for seed in 0..32 {
        let mut setup = counting(volume);
        setup.seeds = (seed, seed);
        let pair = Pair::connected_with(setup);
        let limits = only(&pair.server).limits;
        let soft = limits.soft_bytes.unwrap();
        assert!((900_000..=1_000_000).contains(&soft), "{soft}");
        assert!((900..=1_000).contains(&limits.soft_packets.unwrap()));
        assert_eq!((limits.hard_bytes, limits.hard_packets), (Some(2_000_000), Some(2_000)));
        seen.insert(soft);
    }
    assert!(seen.len() > 16, "no jitter: {seen:?}");
}

#[test]
fn without_a_volume_only_sequence_numbers_are_a_limit() {
    for (suite, soft, hard) in [
        ("aes256gcm16-esn", None, None),
        ("aes256gcm16-noesn", Some(0xc000_0000), Some(0xffff_ffff)),
    ] {
        let setup = counting(Volume::default()).suites("aes256gcm16-prfsha384-x25519", suite);
        let pair = Pair::connected_with(setup);
        for peer in [&pair.client, &pair.server] {
            let limits = only(peer).limits;
            assert_eq!((limits.soft_bytes, limits.hard_bytes), (None, None));
            assert_eq!((limits.soft_packets, limits.hard_packets), (soft, hard), "{suite}");
        }
        pair.assert_no_leaks();
    }
}

#[test]
fn a_child_has_limits_again_after_a_restart() {
    let mut pair = Pair::connected_with(counting(Volume { bytes: Some(100_000), packets: None }));

    pair.restart(Side::Server);
    pair.run();

    let limits = only(&pair.server).limits;
    assert!(limits.soft_bytes.is_some_and(|soft| soft <= 100_000));
    assert_eq!(limits.hard_bytes, Some(200_000));
}
