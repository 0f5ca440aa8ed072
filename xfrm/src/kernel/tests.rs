//! The plane on a real kernel, as far as it needs no ESP there.

use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::stats::parse_stats;
use super::*;
use crate::dataplane::{EventSink, PlaneEvent};
use crate::model::{Limits, Mode, SaKeys, Selector};
use crate::netlink::Message;
use crate::netns::in_fresh_namespace;

/// Runs a test in a fresh namespace with a plane on its `lo` (this needs no xfrm interface).
fn with_plane(test: impl FnOnce(KernelPlane, Arc<Mutex<Vec<PlaneEvent>>>) + Send) {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: needs root to make a network namespace");
        return;
    }
    in_fresh_namespace(|| {
        let events = Arc::new(Mutex::new(Vec::new()));
        let theirs = events.clone();
        let sink: EventSink = Arc::new(move |event| theirs.lock().unwrap().push(event));
        let config = KernelConfig { interface: "lo".to_owned(), if_id: 0x77, ports: Vec::new() };
        test(KernelPlane::on_interface(config, &sink).unwrap(), events);
    })
    .unwrap();
}

fn spec(number: u32) -> ChildSpec {
    let keys = SaKeys { encr: vec![7; 36], integ: Vec::new() };
    let v4 = std::net::Ipv4Addr::from(0x0a4d_0000 + number);
    let v6 = std::net::Ipv6Addr::from((0xfd77_u128 << 112) + u128::from(number));
    ChildSpec {
        id: ChildId(number.into()),
        reqid: number,
        spi_in: Spi(0x1_0000 + number),
        spi_out: Spi(0x2_0000 + number),
        suite: EspSuite::Aes256Gcm16,
        keys_in: keys.clone(),
        keys_out: keys,
        mode: Mode::Tunnel,
        hosts: Hosts {
            local: "192.0.2.1:4500".parse().unwrap(),
            remote: (std::net::Ipv4Addr::from(0x6440_0000 + number), 4500).into(),
            encap: true,
        },
        local_selectors: Vec::new(),
        remote_selectors: [IpAddr::from(v4), v6.into()]
            .map(|address| Selector::network(address.into()))
            .to_vec(),
        esn: false,
        replay_window: 32,
        first_seq_out: 0,
        limits: Limits::default(),
        outbound_active: true,
    }
}

fn policies(plane: &mut KernelPlane) -> Vec<decode::PolicyState> {
    plane
        .netlink
        .dump("list policies", &encode::dump_policies(), |_, payload| {
            decode::policy(payload).map(Some)
        })
        .unwrap()
}

#[test]
fn ten_thousand_dual_stack_clients_are_twenty_thousand_and_four_policies() {
    with_plane(|mut plane, _| {
        let (mut first, mut last) = (Duration::ZERO, Duration::ZERO);
        for number in 0..10_000 {
            let spec = spec(number);
            let (steps, senders) = plane.policy_steps(&spec, &spec.hosts, &flows(&spec));
            let started = Instant::now();
            plane.run(steps).unwrap();
            plane.senders.extend(senders);
            match number {
                0..1_000 => first += started.elapsed(),
                9_000.. => last += started.elapsed(),
                _ => {}
            }
        }
        println!("policies of 1,000 clients: first {first:?}, last {last:?}");
        let started = Instant::now();
        let all = policies(&mut plane);
        println!("dumped: {:?}", started.elapsed());
        let count = |direction: u8| all.iter().filter(|p| p.direction == direction).count();
        assert_eq!((count(0), count(1), count(2)), (2, 20_000, 2));
        assert!(all.iter().all(|policy| policy.if_id == 0x77));
        // Each virtual address has a policy that names its client's outer addresses and reqid.
        let outbound: BTreeMap<Flow, decode::Wanted> = all
            .iter()
            .filter(|policy| policy.direction == 1)
            .map(|policy| (policy.flow.unwrap(), policy.sender.unwrap()))
            .collect();
        assert_eq!(outbound.len(), 20_000);
        for number in 0..10_000 {
            let spec = spec(number);
            for flow in flows(&spec) {
                let Hosts { local, remote, .. } = spec.hosts;
                let wanted = outbound[&flow];
                assert_eq!((wanted.source, wanted.destination), (local.ip(), remote.ip()));
                assert_eq!(wanted.reqid, spec.reqid);
            }
        }
        let indexes: BTreeSet<u32> = all.iter().map(|policy| policy.index).collect();
        let known: Vec<u32> = plane.senders.values().map(|sender| sender.policy).collect();
        assert!(known.iter().all(|index| indexes.contains(index)), "the kernel took our indexes");
        let some: Vec<Flow> = plane.senders.keys().take(1_000).copied().collect();
        let started = Instant::now();
        plane.delete_policies(&some).unwrap();
        println!("removed 1,000: {:?}", started.elapsed());
        assert_eq!(policies(&mut plane).len(), 19_004);
        let started = Instant::now();
        plane.shutdown().unwrap();
        println!("removed: {:?}", started.elapsed());
        assert_eq!(policies(&mut plane), []);
    });
}

#[test]
fn a_killed_instance_is_cleaned_up_and_strangers_are_left_alone() {
    with_plane(|mut plane, _| {
        let stranger = Context { if_id: 5, sa_dir: false, device: None };
        let message = encode::wide_policies(stranger).remove(0);
        plane.netlink.request("add a policy", message).unwrap();
        let spec = spec(1);
        let (steps, _) = plane.policy_steps(&spec, &spec.hosts, &flows(&spec)[..1]);
        plane.run(steps).unwrap();
        assert_eq!(policies(&mut plane).len(), 6);

        let config = KernelConfig { interface: "lo".to_owned(), if_id: 0x77, ports: Vec::new() };
        let sink: EventSink = Arc::new(|_| {});
        let mut next = KernelPlane::on_interface(config, &sink).unwrap();
        assert_eq!(policies(&mut next).len(), 5, "four of ours, one of the stranger's");
        next.shutdown().unwrap();
        let left = policies(&mut next);
        assert_eq!(left.iter().map(|policy| policy.if_id).collect::<Vec<_>>(), [5]);
    });
}

#[test]
fn a_refused_sa_leaves_nothing_behind() {
    with_plane(|mut plane, _| {
        if !plane.capabilities().suites.is_empty() {
            println!("skipped: this kernel has ESP, which kernel labs exercise");
            return;
        }
        let error = plane.install(&spec(1)).unwrap_err();
        let PlaneError::Kernel { what, reason, fix, .. } = &error else { panic!("{error}") };
        assert!(what.contains("inbound SA 00010001"), "{what}");
        assert!(reason.contains("algorithm not found"), "{reason}");
        assert!(fix.contains("CONFIG_CRYPTO_GCM"), "{fix}");
        assert_eq!(policies(&mut plane).len(), 4);
        assert_eq!(plane.dump_sas().unwrap(), []);
        assert_eq!(plane.children(), []);
        assert!(!plane.index.is_inbound(Spi(0x1_0001)));
    });
}

#[test]
fn a_taken_policy_index_does_not_keep_the_policy() {
    with_plane(|mut plane, _| {
        let spec = spec(1);
        let carried = flows(&spec);
        let taken = encode::outbound_index(1);
        let stranger = Context { if_id: 5, sa_dir: false, device: None };
        let message =
            encode::outbound_policy(stranger, &spec, &spec.hosts, &carried[0], taken, false);
        plane.netlink.request("add a policy", message).unwrap();
        let (steps, senders) = plane.policy_steps(&spec, &spec.hosts, &carried);
        plane.run(steps).unwrap();
        plane.senders.extend(senders);
        assert_eq!(policies(&mut plane).len(), 7);
        plane.delete_policies(&carried).unwrap();
        let left: Vec<u32> = policies(&mut plane)
            .iter()
            .filter(|policy| policy.direction == 1)
            .map(|policy| policy.if_id)
            .collect();
        assert_eq!(left, [5], "only the stranger's");
    });
}

#[test]
fn an_expired_sa_of_ours_is_an_event() {
    use netlink_packet_xfrm::state::AllocSpiMessage;
    use netlink_packet_xfrm::{Address, XfrmAttrs};

    with_plane(|mut plane, events| {
        // Larval SAs live three seconds, then the kernel reports them as expired: the same message
        // as for a limit that was reached.
        std::fs::write("/proc/sys/net/core/xfrm_acq_expires", "3").unwrap();
        let spec = spec(1);
        let mut ask = AllocSpiMessage::default();
        ask.spi_info.info.id.daddr = Address::from_ip(&spec.hosts.local.ip());
        ask.spi_info.info.id.proto = 50;
        ask.spi_info.info.saddr = Address::from_ip(&spec.hosts.remote.ip());
        ask.spi_info.info.family = encode::family(spec.hosts.local.ip());
        ask.spi_info.info.mode = 1;
        ask.spi_info.info.reqid = spec.reqid;
        (ask.spi_info.min, ask.spi_info.max) = (spec.spi_in.0, spec.spi_in.0);
        for (if_id, spi) in [(0x77, spec.spi_in.0), (0x78, spec.spi_in.0 + 1)] {
            (ask.spi_info.min, ask.spi_info.max) = (spi, spi);
            ask.nlas = vec![XfrmAttrs::IfId(if_id)];
            let message = Message::emit(0x16, 0, &ask);
            let (_, answer) = plane.netlink.query("allocate an SPI", message).unwrap();
            let state = decode::sa(&answer).unwrap();
            assert_eq!((state.spi, state.owner), (Spi(spi), if_id));
            assert_eq!(state.destination, spec.hosts.local.ip());
        }
        assert_eq!(plane.dump_sas().unwrap().len(), 1, "the other is a stranger's");
        plane.index.insert(spec.id, spec.spi_in, spec.spi_out, spec.hosts);
        plane.index.insert(ChildId(2), Spi(spec.spi_in.0 + 1), spec.spi_out, spec.hosts);
        let deadline = Instant::now() + Duration::from_secs(30);
        while events.lock().unwrap().is_empty() {
            assert!(Instant::now() < deadline, "no expiry in thirty seconds");
            std::thread::sleep(Duration::from_millis(20));
        }
        plane.shutdown().unwrap();
        let expired = PlaneEvent::Expire { child: spec.id, hard: true };
        assert_eq!(*events.lock().unwrap(), [expired]);
    });
}

#[test]
fn ike_on_the_encapsulation_port_reaches_the_sink() {
    use crate::udp::BindOptions;

    if !rustix::process::geteuid().is_root() {
        println!("skipped: needs root to make a network namespace");
        return;
    }
    in_fresh_namespace(|| {
        let mut routes = RouteSocket::open().unwrap();
        let lo = routes.link("lo").unwrap().unwrap();
        routes.set_link_up(&lo, 65_536).unwrap();
        let options =
            BindOptions { kernel_encap: true, bypass_policies: true, ..BindOptions::default() };
        let port = UdpPort::bind("127.0.0.1:4500".parse().unwrap(), &options).unwrap();
        let (send, receive) = std::sync::mpsc::channel();
        let send = Mutex::new(send);
        let sink: EventSink = Arc::new(move |event| send.lock().unwrap().send(event).unwrap());
        let config = KernelConfig { interface: "lo".to_owned(), if_id: 7, ports: vec![port] };
        let mut plane = KernelPlane::on_interface(config, &sink).unwrap();

        let peer = std::net::UdpSocket::bind("127.0.0.1:1025").unwrap();
        // A keepalive and an ESP packet for nobody stay in the kernel.
        peer.send_to(&[0xff], "127.0.0.1:4500").unwrap();
        peer.send_to(&[0xc0, 0, 0, 1, 0, 0, 0, 1, 9, 9, 9, 9], "127.0.0.1:4500").unwrap();
        peer.send_to(b"\0\0\0\0IKE message", "127.0.0.1:4500").unwrap();
        assert_eq!(
            receive.recv_timeout(Duration::from_secs(10)).unwrap(),
            PlaneEvent::Ike {
                local: "127.0.0.1:4500".parse().unwrap(),
                remote: "127.0.0.1:1025".parse().unwrap(),
                payload: b"IKE message".to_vec(),
            }
        );
        plane.shutdown().unwrap();
    })
    .unwrap();
}

#[test]
fn names_give_stable_different_identifiers() {
    assert_eq!(if_id_for("runnel0"), if_id_for("runnel0"));
    assert_ne!(if_id_for("runnel0"), if_id_for("runnel1"));
    assert_ne!(if_id_for(""), 0);
}

#[test]
fn counters_are_summed_by_reason_and_kept_by_name() {
    let text = "XfrmInNoStates 3\nXfrmOutNoStates 2\nXfrmInStateSeqError 1\nXfrmInError 0\n\
                XfrmNew 9\nbad\nXfrmInHdrError x\n";
    let stats = parse_stats(text);
    assert_eq!(stats.drops, [("no_sa", 5), ("other", 9), ("replay", 1)]);
    let kept = [("XfrmInNoStates", 3), ("XfrmOutNoStates", 2), ("XfrmInStateSeqError", 1)];
    let kept = kept.into_iter().chain([("XfrmNew", 9)]);
    assert_eq!(stats.counters, kept.map(|(n, v)| (n.to_owned(), v)).collect::<Vec<_>>());
}
