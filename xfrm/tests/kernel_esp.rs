//! The kernel plane where the kernel has ESP: what a killed instance left is taken over while
//! packets pass, and limits, mappings and missing SAs are events.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

#[path = "kernel_esp/offload.rs"]
mod offload;
#[path = "support/mod.rs"]
mod support;
#[path = "kernel_esp/transport.rs"]
mod transport;

use std::io::{BufRead, BufReader, Read};
use std::net::{IpAddr, SocketAddr};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use support::{Host, in_namespace, sh};
use xfrm::kernel::{KernelConfig, KernelPlane};
use xfrm::model::{ChildId, ChildSpec, EspSuite, Hosts, Limits, Mode, SaKeys, Selector, Spi};
use xfrm::udp::{BindOptions, UdpPort};
use xfrm::{Dataplane, EventSink, PlaneEvent};

const IF_ID: u32 = 0x77;
/// Emulated machines are slow.
const PATIENCE: Duration = Duration::from_secs(60);

/// The gateway's own address behind it, which the client talks to.
const INSIDE: &str = "10.20.0.1";

fn has_esp() -> bool {
    let mut opened = match KernelPlane::open(config("try", 0x99, Vec::new()), &sink().0) {
        Ok(plane) => plane,
        Err(why) => {
            println!("skipped: {why}; a kernel lab runs this in a guest");
            return false;
        }
    };
    opened.shutdown().unwrap();
    true
}

fn config(interface: &str, if_id: u32, ports: Vec<UdpPort>) -> KernelConfig {
    KernelConfig { interface: interface.to_owned(), if_id, ports }
}

fn sink() -> (EventSink, Receiver<PlaneEvent>) {
    let (send, receive) = mpsc::channel();
    let send = Mutex::new(send);
    (Arc::new(move |event| drop(send.lock().unwrap().send(event))), receive)
}

/// A UDP port whose ESP the kernel takes out.
fn port(address: &str) -> UdpPort {
    let options =
        BindOptions { kernel_encap: true, bypass_policies: true, ..BindOptions::default() };
    UdpPort::bind(address.parse().unwrap(), &options).unwrap()
}

fn keys(byte: u8) -> SaKeys {
    SaKeys { encr: vec![byte; 36], integ: Vec::new() }
}

/// The gateway's half of client `number` (10.77.0.number), at 192.0.2.2.
fn spec(number: u32, encap: bool) -> ChildSpec {
    let inner: IpAddr = format!("10.77.0.{number}").parse().unwrap();
    ChildSpec {
        id: ChildId(number.into()),
        reqid: number,
        spi_in: Spi(0x1_0000 + number),
        spi_out: Spi(0x2_0000 + number),
        suite: EspSuite::Aes256Gcm16,
        keys_in: keys(1),
        keys_out: keys(2),
        mode: Mode::Tunnel,
        hosts: Hosts {
            local: "192.0.2.1:4500".parse().unwrap(),
            remote: "192.0.2.2:4500".parse().unwrap(),
            encap,
        },
        local_selectors: vec![Selector::network("10.20.0.0/24".parse().unwrap())],
        remote_selectors: vec![Selector::network(inner.into())],
        esn: true,
        replay_window: 4096,
        first_seq_out: 0,
        limits: Limits::default(),
        outbound_active: true,
    }
}

/// The client's half.
fn mirrored(spec: &ChildSpec) -> ChildSpec {
    ChildSpec {
        spi_in: spec.spi_out,
        spi_out: spec.spi_in,
        keys_in: spec.keys_out.clone(),
        keys_out: spec.keys_in.clone(),
        hosts: Hosts { local: spec.hosts.remote, remote: spec.hosts.local, ..spec.hosts },
        local_selectors: spec.remote_selectors.clone(),
        remote_selectors: spec.local_selectors.clone(),
        limits: Limits::default(),
        ..spec.clone()
    }
}

/// A client machine with a plane and one child, and the way to it.
struct Client {
    host: Host,
    plane: Arc<Mutex<KernelPlane>>,
}

impl Client {
    fn new(spec: &ChildSpec) -> Self {
        let host = Host::new();
        host.connect("wan", "wan-c");
        sh("ip addr add 192.0.2.1/24 dev wan && ip addr add 192.0.2.9/24 dev wan");
        sh(&format!("ip addr add {INSIDE}/32 dev lo"));
        host.sh("ip addr add 192.0.2.2/24 dev wan-c");
        let theirs = mirrored(spec);
        let plane = host.run(move || {
            let encap = theirs.hosts.encap;
            let ports = encap.then(|| vec![port("192.0.2.2:4500"), port("192.0.2.2:1025")]);
            let config = config("tun", 5, ports.unwrap_or_default());
            let mut plane = KernelPlane::open(config, &sink().0).unwrap();
            plane.install(&theirs).unwrap();
            let inner = theirs.local_selectors[0].start;
            sh(&format!("ip addr add {inner}/32 dev tun && ip link set tun up mtu 1400"));
            sh(&format!("ip route add 10.20.0.0/24 dev tun src {inner}"));
            Arc::new(Mutex::new(plane))
        });
        Self { host, plane }
    }

    /// Pings the gateway's inside; how many answers came.
    fn ping(&self, count: u32) -> u32 {
        answers(&self.host.sh(&format!("ping -q -c {count} -i 0.05 -W 2 {INSIDE} || true")))
    }
}

fn answers(said: &str) -> u32 {
    let (before, _) = said.split_once(" received").expect("ping's summary");
    before.rsplit(' ').next().unwrap().parse().unwrap()
}

/// Routes the pool to the tunnel, as the tunnel's network does.
fn route_pool() {
    sh("ip link set gw up mtu 1400 && ip route replace 10.77.0.0/24 dev gw");
}

fn await_event(events: &Receiver<PlaneEvent>, wanted: &PlaneEvent) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let event = events.recv_timeout(left).unwrap_or_else(|_| panic!("no {wanted:?}"));
        if event == *wanted {
            return;
        }
        println!("meanwhile {event:?}");
    }
}

#[test]
fn a_killed_instance_is_taken_over_without_losing_a_packet() {
    in_namespace(|| {
        if !has_esp() {
            return;
        }
        let (kept, stranger) = (spec(2, false), spec(3, false));
        let mut plane = KernelPlane::open(config("gw", IF_ID, Vec::new()), &sink().0).unwrap();
        let mut other = KernelPlane::open(config("gw2", 0x78, Vec::new()), &sink().0).unwrap();
        let theirs = ChildSpec {
            spi_in: Spi(0x3_0000),
            spi_out: Spi(0x4_0000),
            hosts: Hosts { remote: "192.0.2.3:4500".parse().unwrap(), ..kept.hosts },
            ..spec(4, false)
        };
        other.install(&theirs).unwrap();
        plane.install(&kept).unwrap();
        plane.install(&stranger).unwrap();
        route_pool();
        let client = Client::new(&kept);
        assert_eq!(client.ping(5), 5, "{}", sh("ip -s xfrm state list nokeys; ip xfrm policy"));

        let (tell, told) = mpsc::channel();
        std::thread::scope(|scope| {
            let client = &client;
            scope.spawn(move || {
                let said = client.host.sh(&format!("ping -q -c 300 -i 0.01 -W 2 {INSIDE} || true"));
                tell.send(answers(&said)).unwrap();
            });
            std::thread::sleep(Duration::from_millis(500));
            // Without shutdown(), as when the process is killed.
            drop(plane);
            let mut plane =
                KernelPlane::resume(config("gw", IF_ID, Vec::new()), &sink().0).unwrap();
            assert_eq!(plane.children(), []);
            assert!(plane.adopt(&kept).unwrap());
            assert!(!plane.adopt(&spec(9, false)).unwrap(), "was never there");
            // Two SAs and a policy of the child that nobody adopted.
            assert_eq!(plane.reconcile().unwrap(), 3);
            assert_eq!(plane.reconcile().unwrap(), 0);
            assert_eq!(told.recv_timeout(PATIENCE).unwrap(), 300, "packets were lost");

            assert_eq!(plane.children(), [kept.id]);
            let usage = plane.usage(kept.id).unwrap();
            assert!(usage.packets_in >= 305, "its counters went on: {usage:?}");
            assert_eq!(plane.resync().unwrap(), []);
            let states = sh("ip xfrm state list nokeys");
            assert!(states.contains("0x00030000"), "another instance's: {states}");
            assert!(!states.contains("0x00010003"), "{states}");
            assert_eq!(other.usage(theirs.id).unwrap().packets_in, 0);
            plane.remove(kept.id).unwrap();
            plane.shutdown().unwrap();
        });
        other.shutdown().unwrap();
        assert_eq!(sh("ip xfrm state; ip xfrm policy list nosock"), "");
    });
}

#[test]
fn what_is_taken_over_becomes_what_the_state_says() {
    in_namespace(|| {
        if !has_esp() {
            return;
        }
        let installed = spec(2, false);
        let mut plane = KernelPlane::open(config("gw", IF_ID, Vec::new()), &sink().0).unwrap();
        // The state says .2, where the client is; the kernel still has .3 and our other address.
        let mut before = installed.clone();
        before.hosts.remote = "192.0.2.3:4500".parse().unwrap();
        before.hosts.local = "192.0.2.9:4500".parse().unwrap();
        before.outbound_active = false;
        let client = Client::new(&installed);
        plane.install(&before).unwrap();
        route_pool();
        assert_eq!(client.ping(2), 0);
        drop(plane);
        let mut plane = KernelPlane::resume(config("gw", IF_ID, Vec::new()), &sink().0).unwrap();
        assert!(plane.adopt(&installed).unwrap());
        assert_eq!(plane.reconcile().unwrap(), 0);
        assert_eq!(client.ping(5), 5, "{}", sh("ip -s xfrm state list nokeys; ip xfrm policy"));

        // Half of it is not enough, and is not left either.
        sh("ip xfrm state delete src 192.0.2.2 dst 192.0.2.1 proto esp spi 0x10002");
        drop(plane);
        let mut plane = KernelPlane::resume(config("gw", IF_ID, Vec::new()), &sink().0).unwrap();
        assert!(!plane.adopt(&installed).unwrap());
        assert_eq!(sh("ip xfrm state"), "");
        plane.install(&installed).unwrap();
        // The policy was replaced in place.
        assert_eq!(plane.reconcile().unwrap(), 0);
        assert_eq!(sh("ip xfrm policy list dir out | grep -c '^src'").trim(), "1");
        plane.shutdown().unwrap();
        assert_eq!(sh("ip xfrm state; ip xfrm policy list nosock"), "");
    });
}

#[test]
fn limits_and_missing_sas_are_events() {
    in_namespace(|| {
        if !has_esp() {
            return;
        }
        let mut limited = spec(2, false);
        limited.limits.soft_packets = Some(5);
        limited.limits.hard_packets = Some(10);
        let (sink, events) = sink();
        let mut plane = KernelPlane::open(config("gw", IF_ID, Vec::new()), &sink).unwrap();
        plane.install(&limited).unwrap();
        route_pool();
        let client = Client::new(&limited);
        assert_eq!(client.ping(6), 6);
        await_event(&events, &PlaneEvent::Expire { child: limited.id, hard: false });
        let due = [PlaneEvent::Expire { child: limited.id, hard: false }];
        assert_eq!(plane.resync().unwrap(), due, "as if it had been lost");
        assert!(client.ping(8) < 8, "it stops at its hard limit");
        let gone = PlaneEvent::Expire { child: limited.id, hard: true };
        await_event(&events, &gone);
        assert_eq!(plane.resync().unwrap(), std::slice::from_ref(&gone));

        // The policy stays: what it sends has no SA, which is an event and never goes in clear.
        sh("ip xfrm state delete src 192.0.2.1 dst 192.0.2.2 proto esp spi 0x20002 || true");
        sh("ping -c 1 -W 1 10.77.0.2 || true");
        let destination = "10.77.0.2".parse().unwrap();
        await_event(&events, &PlaneEvent::Acquire { child: Some(limited.id), destination });
        assert_eq!(plane.resync().unwrap(), [gone], "a larval SA is none");
        let moved = Hosts { remote: "192.0.2.7:4500".parse().unwrap(), ..limited.hosts };
        let refused = plane.update_hosts(limited.id, &moved).unwrap_err().to_string();
        assert!(refused.contains("expired"), "{refused}");
        plane.remove(limited.id).unwrap();
        assert_eq!(plane.resync().unwrap(), []);
        assert_eq!(sh("ip xfrm state"), "");
        plane.shutdown().unwrap();
    });
}

#[test]
fn a_new_mapping_is_an_event_and_is_followed() {
    in_namespace(|| {
        if !has_esp() {
            return;
        }
        let spec = spec(2, true);
        let (sink, events) = sink();
        let client = Client::new(&spec);
        let config = config("gw", IF_ID, vec![port("192.0.2.1:4500")]);
        let mut plane = KernelPlane::open(config, &sink).unwrap();
        plane.install(&spec).unwrap();
        route_pool();
        assert_eq!(client.ping(3), 3);
        let states = sh("ip xfrm state list nokeys");
        assert!(states.contains("encap type espinudp sport 4500 dport 4500"), "{states}");
        assert!(states.contains("replay_window 4096"), "{states}");

        // The client's NAT gives it another port.
        let theirs = mirrored(&spec);
        let moved = Hosts { local: "192.0.2.2:1025".parse().unwrap(), ..theirs.hosts };
        client.plane.lock().unwrap().update_hosts(theirs.id, &moved).unwrap();
        client.ping(1);
        let remote: SocketAddr = "192.0.2.2:1025".parse().unwrap();
        await_event(&events, &PlaneEvent::Mapping { child: spec.id, remote });
        plane.update_hosts(spec.id, &Hosts { remote, ..spec.hosts }).unwrap();
        assert_eq!(client.ping(3), 3);
        plane.shutdown().unwrap();
    });
}

#[test]
fn our_address_changes_under_traffic() {
    in_namespace(|| {
        if !has_esp() {
            return;
        }
        let spec = spec(2, false);
        let mut plane = KernelPlane::open(config("gw", IF_ID, Vec::new()), &sink().0).unwrap();
        plane.install(&spec).unwrap();
        route_pool();
        let client = Client::new(&spec);
        // A packet that meets the gap between the two outbound SAs makes the kernel hold their name
        // with a larval one.
        let mut flood = Command::new("ping")
            .args(["-q", "-f", "-w", "60", "10.77.0.2"])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        for turn in 0..60 {
            let local = if turn % 2 == 0 { "192.0.2.9:4500" } else { "192.0.2.1:4500" };
            let hosts = Hosts { local: local.parse().unwrap(), ..spec.hosts };
            plane.update_hosts(spec.id, &hosts).unwrap();
        }
        flood.kill().unwrap();
        flood.wait().unwrap();
        assert_eq!(plane.resync().unwrap(), []);
        assert_eq!(client.ping(3), 3, "{}", sh("ip -s xfrm state list nokeys; ip xfrm policy"));
        plane.shutdown().unwrap();
    });
}

#[test]
fn the_outer_header_takes_marks_of_the_inner_one() {
    in_namespace(|| {
        if !has_esp() {
            return;
        }
        let spec = spec(2, false);
        let mut plane = KernelPlane::open(config("gw", IF_ID, Vec::new()), &sink().0).unwrap();
        plane.install(&spec).unwrap();
        route_pool();
        let client = Client::new(&spec);
        let (mut tcpdump, mut said) = client.host.run(|| {
            let mut tcpdump = Command::new("tcpdump")
                .args(["-l", "-c", "1", "-v", "-n", "-i", "wan-c"])
                .arg("ip proto 50 and dst host 192.0.2.2")
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .expect("tcpdump");
            let mut errors = BufReader::new(tcpdump.stderr.take().unwrap()).lines();
            let listens = |line: Result<String, _>| line.unwrap().contains("listening");
            assert!(errors.by_ref().any(listens), "tcpdump does not listen");
            let said = BufReader::new(tcpdump.stdout.take().unwrap());
            (tcpdump, said)
        });
        // Expedited forwarding, ECT(1), not to be fragmented.
        sh("ping -c 1 -W 2 -M do -Q 0xb9 10.77.0.2");
        let mut outer = String::new();
        said.read_to_string(&mut outer).unwrap();
        tcpdump.wait().unwrap();
        assert!(outer.contains("tos 0xb9") && outer.contains("flags [DF]"), "{outer}");
        plane.shutdown().unwrap();
    });
}
