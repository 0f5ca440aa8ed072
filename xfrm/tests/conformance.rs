//! One suite for every data plane, written against the contract: what each says it can do, it
//! does, and what it refuses, it refuses alike.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

#[path = "support/mod.rs"]
mod support;

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;

use xfrm::kernel::{KernelConfig, KernelPlane};
use xfrm::mock::MockPlane;
use xfrm::model::{
    ChildId, ChildSpec, EspSuite, Hosts, Limits, Mode, PlaneKind, SaKeys, Selector, Spi, Usage,
};
use xfrm::udp::{BindOptions, UdpPort};
use xfrm::user::{TunSource, UserPlane, UserPlaneConfig};
use xfrm::{Dataplane, PlaneError};

fn keys(suite: EspSuite) -> SaKeys {
    let (encr, integ) = suite.key_lengths();
    SaKeys { encr: vec![0x5a; encr], integ: vec![0xa5; integ] }
}

/// A child that every plane accepts: tunnel mode, UDP encapsulation, the plane's first suite.
fn child(plane: &mut dyn Dataplane, id: u64) -> ChildSpec {
    let suite = plane.capabilities().suites[0];
    let inner: std::net::IpAddr = format!("10.77.0.{id}").parse().unwrap();
    ChildSpec {
        id: ChildId(id),
        reqid: u32::try_from(id).unwrap(),
        spi_in: plane.alloc_spi().unwrap(),
        spi_out: Spi(0xd000_0000 + u32::try_from(id).unwrap()),
        suite,
        keys_in: keys(suite),
        keys_out: keys(suite),
        mode: Mode::Tunnel,
        hosts: Hosts {
            local: "127.0.0.1:4500".parse().unwrap(),
            remote: "127.0.0.1:1025".parse().unwrap(),
            encap: true,
        },
        local_selectors: vec![Selector::network("10.20.0.0/24".parse().unwrap())],
        remote_selectors: vec![Selector::network(inner.into())],
        esn: false,
        replay_window: 32,
        first_seq_out: 0,
        limits: Limits::default(),
        outbound_active: true,
    }
}

fn assert_unknown<T: std::fmt::Debug>(result: Result<T, PlaneError>) {
    assert!(matches!(result, Err(PlaneError::Unknown(_))), "{result:?}");
}

/// One scenario on a fresh plane.
type Case = fn(&mut dyn Dataplane);

/// The suite. `make` makes a fresh plane with nothing installed.
fn conforms(mut make: impl FnMut() -> Box<dyn Dataplane>) {
    let cases: [(&str, Case); 12] = [
        ("SPIs are usable and different", spis),
        ("children come and go", children_come_and_go),
        ("what is not there is unknown", unknown),
        ("names and SPIs are taken once", taken_once),
        ("wrong keys are refused", wrong_keys),
        ("every declared suite installs", every_suite),
        ("undeclared capabilities are refused", undeclared),
        ("a rekey prepares, switches, removes", rekey),
        ("transport mode is between the two hosts", transport),
        ("a child moves", moves),
        ("a fresh plane has nothing to take over", nothing_left),
        ("a shut down plane is empty", shut_down),
    ];
    for (name, case) in cases {
        println!("{name}");
        let mut plane = make();
        assert_eq!(plane.children(), [], "{name}: starts empty");
        case(plane.as_mut());
        plane.shutdown().unwrap();
        assert_eq!(plane.children(), [], "{name}: ends empty");
    }
}

fn spis(plane: &mut dyn Dataplane) {
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..1_000 {
        let spi = plane.alloc_spi().unwrap();
        assert!(spi.0 >= 256, "reserved SPI {spi}");
        assert!(seen.insert(spi), "{spi} twice");
    }
}

fn children_come_and_go(plane: &mut dyn Dataplane) {
    let (first, second) = (child(plane, 2), child(plane, 1));
    plane.install(&first).unwrap();
    plane.install(&second).unwrap();
    assert_eq!(plane.children(), [ChildId(1), ChildId(2)], "in order of their id");
    let usage = plane.usage(first.id).unwrap();
    assert_eq!((usage.packets_in, usage.packets_out), (0, 0));
    assert_eq!(plane.remove(first.id).unwrap().packets_in, 0);
    assert_eq!(plane.children(), [second.id]);
    // An SPI may come back once its child is gone.
    plane.install(&ChildSpec { id: ChildId(3), ..first }).unwrap();
    assert_eq!(plane.children(), [ChildId(1), ChildId(3)]);
}

fn unknown(plane: &mut dyn Dataplane) {
    let spec = child(plane, 1);
    assert_unknown(plane.usage(spec.id));
    assert_unknown(plane.remove(spec.id));
    assert_unknown(plane.activate_outbound(spec.id));
    assert_unknown(plane.update_hosts(spec.id, &spec.hosts));
    plane.install(&spec).unwrap();
    plane.remove(spec.id).unwrap();
    assert_unknown(plane.remove(spec.id));
}

fn taken_once(plane: &mut dyn Dataplane) {
    let first = child(plane, 1);
    plane.install(&first).unwrap();
    let same_id = ChildSpec { id: first.id, ..child(plane, 2) };
    assert!(matches!(plane.install(&same_id), Err(PlaneError::Conflict(_))));
    let same_spi = ChildSpec { spi_in: first.spi_in, ..child(plane, 3) };
    assert!(matches!(plane.install(&same_spi), Err(PlaneError::Conflict(_))));
    assert_eq!(plane.children(), [first.id]);
    assert_eq!(plane.usage(first.id).unwrap(), Usage::default());
    // Two peers may choose the same SPI for what we send them.
    let mut same_out = ChildSpec { spi_out: first.spi_out, ..child(plane, 4) };
    same_out.hosts.remote = "127.0.0.2:1025".parse().unwrap();
    plane.install(&same_out).unwrap();
}

fn wrong_keys(plane: &mut dyn Dataplane) {
    let good = child(plane, 1);
    let mut short = good.clone();
    short.keys_in.encr.pop();
    assert!(plane.install(&short).is_err());
    let mut long = good.clone();
    long.keys_out.integ.push(1);
    assert!(plane.install(&long).is_err());
    assert_eq!(plane.children(), []);
    plane.install(&good).unwrap();
}

fn every_suite(plane: &mut dyn Dataplane) {
    let suites = plane.capabilities().suites;
    for (number, suite) in (1..).zip(suites) {
        let (keys_in, keys_out) = (keys(suite), keys(suite));
        let spec = ChildSpec { suite, keys_in, keys_out, ..child(plane, number) };
        plane.install(&spec).unwrap_or_else(|error| panic!("{}: {error}", suite.name()));
    }
}

fn undeclared(plane: &mut dyn Dataplane) {
    let can = plane.capabilities();
    let mut transport = child(plane, 1);
    transport.mode = Mode::Transport;
    if !can.transport_mode {
        assert!(matches!(plane.install(&transport), Err(PlaneError::Unsupported { .. })));
    }
    let mut plain = child(plane, 2);
    plain.hosts.encap = false;
    if !can.plain_esp {
        assert!(matches!(plane.install(&plain), Err(PlaneError::Unsupported { .. })));
    }
    let mut window = child(plane, 3);
    window.replay_window = can.max_replay_window + 1;
    assert!(matches!(plane.install(&window), Err(PlaneError::Unsupported { .. })));
    assert_eq!(plane.children(), []);
    window.replay_window = can.max_replay_window;
    plane.install(&window).unwrap();
    if can.esn {
        let esn = ChildSpec { esn: true, replay_window: 64, ..child(plane, 4) };
        plane.install(&esn).unwrap();
    }
}

fn rekey(plane: &mut dyn Dataplane) {
    let old = child(plane, 1);
    plane.install(&old).unwrap();
    let new = ChildSpec {
        reqid: old.reqid,
        remote_selectors: old.remote_selectors.clone(),
        outbound_active: false,
        ..child(plane, 2)
    };
    plane.install(&new).unwrap();
    plane.activate_outbound(new.id).unwrap();
    plane.activate_outbound(new.id).unwrap();
    plane.remove(old.id).unwrap();
    assert_eq!(plane.children(), [new.id]);
    // Removing the sender first leaves the other able to take over.
    let last =
        ChildSpec { reqid: old.reqid, remote_selectors: old.remote_selectors, ..child(plane, 3) };
    plane.install(&last).unwrap();
    plane.remove(last.id).unwrap();
    plane.activate_outbound(new.id).unwrap();
}

fn transport(plane: &mut dyn Dataplane) {
    let old = between(plane, 1);
    if !plane.capabilities().transport_mode {
        assert!(matches!(plane.install(&old), Err(PlaneError::Unsupported { .. })));
        return;
    }
    plane.install(&old).unwrap();
    // It is what the two are to each other: another address is another tunnel.
    let moved = Hosts { remote: "127.0.0.3:1025".parse().unwrap(), ..old.hosts };
    assert!(plane.update_hosts(old.id, &moved).is_err());
    plane.update_hosts(old.id, &old.hosts).unwrap();
    let new = ChildSpec { outbound_active: false, ..between(plane, 2) };
    plane.install(&new).unwrap();
    plane.activate_outbound(new.id).unwrap();
    plane.remove(old.id).unwrap();
    assert_eq!(plane.resync().unwrap(), []);
    // A client beside it changes nothing.
    let client = child(plane, 3);
    plane.install(&client).unwrap();
    plane.remove(new.id).unwrap();
    assert_eq!(plane.children(), [client.id]);
    let more = ChildSpec { remote_selectors: client.remote_selectors, ..between(plane, 4) };
    assert!(matches!(plane.install(&more), Err(PlaneError::Unsupported { .. })), "not the host");
}

/// A child in transport mode.
fn between(plane: &mut dyn Dataplane, number: u64) -> ChildSpec {
    let spec = child(plane, number);
    let host = |address: SocketAddr| vec![Selector::network(address.ip().into())];
    ChildSpec {
        mode: Mode::Transport,
        local_selectors: host(spec.hosts.local),
        remote_selectors: host(spec.hosts.remote),
        ..spec
    }
}

fn moves(plane: &mut dyn Dataplane) {
    let spec = child(plane, 1);
    plane.install(&spec).unwrap();
    if !plane.capabilities().update_hosts {
        return;
    }
    for remote in ["127.0.0.1:1026", "127.0.0.3:1026", "127.0.0.3:1026"] {
        let remote: SocketAddr = remote.parse().unwrap();
        plane.update_hosts(spec.id, &Hosts { remote, ..spec.hosts }).unwrap();
    }
    let local = "127.0.0.4:4500".parse().unwrap();
    plane.update_hosts(spec.id, &Hosts { local, ..spec.hosts }).unwrap();
    assert_eq!(plane.children(), [spec.id]);
    plane.remove(spec.id).unwrap();
}

fn nothing_left(plane: &mut dyn Dataplane) {
    let spec = child(plane, 1);
    assert!(!plane.adopt(&spec).unwrap());
    assert_eq!(plane.reconcile().unwrap(), 0);
    assert_eq!(plane.resync().unwrap(), []);
    plane.install(&spec).unwrap();
    assert_eq!(plane.reconcile().unwrap(), 0, "what is in use is not left over");
    assert_eq!(plane.resync().unwrap(), []);
    assert!(matches!(plane.adopt(&spec), Ok(false) | Err(PlaneError::Conflict(_))));
    assert_eq!(plane.children(), [spec.id]);
}

fn shut_down(plane: &mut dyn Dataplane) {
    for id in 1..=3 {
        let spec = child(plane, id);
        plane.install(&spec).unwrap();
    }
    plane.shutdown().unwrap();
    assert_eq!(plane.children(), []);
    assert_unknown(plane.remove(ChildId(1)));
}

#[test]
fn mock() {
    conforms(|| {
        let (plane, _) = MockPlane::new();
        assert_eq!(plane.kind(), PlaneKind::Mock);
        Box::new(plane)
    });
}

#[test]
fn userspace() {
    conforms(|| {
        let (_, tun) = UnixDatagram::pair().unwrap();
        let port = UdpPort::bind("127.0.0.1:0".parse().unwrap(), &BindOptions::default()).unwrap();
        let config = UserPlaneConfig {
            tun: TunSource::Descriptor { name: "test".to_owned(), fd: OwnedFd::from(tun) },
            tun_mtu: None,
            sockets: vec![port],
            workers: 1,
            sequences: None,
        };
        let plane = UserPlane::start(config, Arc::new(|_| {})).unwrap();
        assert_eq!(plane.kind(), PlaneKind::Userspace);
        Box::new(plane)
    });
}

#[test]
fn kernel() {
    support::in_namespace(|| {
        let make = || {
            let config =
                KernelConfig { interface: "lo".to_owned(), if_id: 0x77, ports: Vec::new() };
            let sink: xfrm::EventSink = Arc::new(|_| {});
            KernelPlane::on_interface(config, &sink).unwrap()
        };
        if make().capabilities().suites.is_empty() {
            println!("skipped: this kernel has no ESP; a kernel lab runs the suite in a guest");
            return;
        }
        conforms(|| Box::new(make()));
    });
}
