//! Two userspace planes in network namespaces, with real TUN devices, real sockets and the
//! kernel's TCP on top. Needs root; says so and passes otherwise.
//!
//! ```text
//! client ns            router ns             gateway ns
//! 10.77.0.5 ─ tun ─ 192.0.2.1 ─ 192.0.2.254 | 198.51.100.254 ─ 198.51.100.1 ─ tun ─ 10.20.0.1
//! ```
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

mod user_common;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use user_common::{PATIENCE, networks, spec, wait_for};
use xfrm::model::{ChildId, EspSuite, Hosts, Spi};
use xfrm::udp::{BindOptions, UdpPort};
use xfrm::user::{TunSource, UserPlane, UserPlaneConfig};
use xfrm::{Dataplane, PlaneError, PlaneEvent};

const CLIENT: [&str; 2] = ["10.77.0.5", "fd77::5"];
const SERVER: [&str; 2] = ["10.20.0.1", "fd20::1"];
const PORT: u16 = 4500;

fn unprivileged() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("skipped: namespaces and TUN devices need root");
    }
    !root
}

fn sh(command: &str) {
    let mut words = command.split_whitespace();
    let status = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(status.status.success(), "{command}: {}", String::from_utf8_lossy(&status.stderr));
}

/// Runs in a thread of another network namespace; what it starts stays there.
fn inside<T: Send + 'static>(space: &str, body: impl FnOnce() -> T + Send + 'static) -> T {
    spawn_inside(space, body).join().unwrap()
}

fn spawn_inside<T: Send + 'static>(
    space: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> std::thread::JoinHandle<T> {
    let path = format!("/run/netns/{space}");
    std::thread::spawn(move || {
        use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
        let file = std::fs::File::open(path).unwrap();
        let network = Some(LinkNameSpaceType::Network);
        move_into_link_name_space(std::os::fd::AsFd::as_fd(&file), network).unwrap();
        body()
    })
}

/// Three namespaces, gone when dropped.
struct Spaces {
    client: String,
    router: String,
    gateway: String,
}

impl Spaces {
    fn new(name: &str) -> Self {
        let prefix = format!("xuser-{}-{name}", std::process::id());
        let spaces = Self {
            client: format!("{prefix}-c"),
            router: format!("{prefix}-r"),
            gateway: format!("{prefix}-g"),
        };
        let Self { client, router, gateway } = &spaces;
        for space in [client, router, gateway] {
            sh(&format!("ip netns add {space}"));
            sh(&format!("ip -n {space} link set lo up"));
        }
        for (space, device, address, via) in [
            (client, "rc", "192.0.2.1", "192.0.2.254"),
            (gateway, "rg", "198.51.100.1", "198.51.100.254"),
        ] {
            sh(&format!("ip -n {space} link add eth0 type veth peer name {device} netns {router}"));
            sh(&format!("ip -n {space} address add {address}/24 dev eth0"));
            sh(&format!("ip -n {space} link set eth0 up"));
            sh(&format!("ip -n {router} address add {via}/24 dev {device}"));
            sh(&format!("ip -n {router} link set {device} up"));
            sh(&format!("ip -n {space} route add default via {via}"));
        }
        sh(&format!("ip netns exec {router} sysctl -qw net.ipv4.ip_forward=1"));
        spaces
    }

    /// The link between router and gateway becomes narrow; only the router's end knows.
    fn narrow(&self, mtu: u16) {
        sh(&format!("ip -n {} link set rg mtu {mtu}", self.router));
    }
}

impl Drop for Spaces {
    fn drop(&mut self) {
        for space in [&self.client, &self.router, &self.gateway] {
            let _ = Command::new("ip").args(["netns", "delete", space]).output();
        }
    }
}

/// A running plane, another handle on its port, and the sizes of the IKE messages it received.
type Started = (UserPlane, UdpPort, mpsc::Receiver<usize>);

fn start(space: &str, ours: [&'static str; 2], theirs: [&'static str; 2]) -> Started {
    let started = inside(space, move || {
        let any = SocketAddr::new("0.0.0.0".parse().unwrap(), PORT);
        let port = UdpPort::bind(any, &BindOptions::default()).unwrap();
        let handle = port.try_clone().unwrap();
        let (sender, received) = mpsc::channel();
        let sender = Mutex::new(sender);
        let sink = move |event| {
            if let PlaneEvent::Ike { payload, .. } = event {
                let _ = sender.lock().unwrap().send(payload.len());
            }
        };
        let config = UserPlaneConfig {
            tun: TunSource::Create { name: "runnel0".into() },
            tun_mtu: None,
            sockets: vec![port],
            workers: 2,
            sequences: None,
        };
        (UserPlane::start(config, Arc::new(sink)).unwrap(), handle, received)
    });
    for (address, other) in ours.iter().zip(theirs) {
        let nodad = if address.contains(':') { " nodad" } else { "" };
        let bits = if address.contains(':') { 128 } else { 32 };
        sh(&format!("ip -n {space} address add {address}/{bits} dev runnel0{nodad}"));
        sh(&format!("ip -n {space} route add {other}/{bits} dev runnel0"));
    }
    started
}

struct Tunnel {
    // Planes first: their threads end before the namespaces go.
    client: UserPlane,
    gateway: UserPlane,
    client_port: UdpPort,
    ike_at_gateway: mpsc::Receiver<usize>,
    spaces: Spaces,
}

impl Tunnel {
    fn new(name: &str, suite: EspSuite) -> Self {
        let spaces = Spaces::new(name);
        let (mut client, client_port, _) = start(&spaces.client, CLIENT, SERVER);
        let (mut gateway, _, ike_at_gateway) = start(&spaces.gateway, SERVER, CLIENT);
        let (spi_c, spi_g) = (client.alloc_spi().unwrap(), gateway.alloc_spi().unwrap());
        let outer = |text: &str| SocketAddr::new(text.parse::<IpAddr>().unwrap(), PORT);
        let (near, far) = (outer("192.0.2.1"), outer("198.51.100.1"));
        let (ours, theirs) =
            (networks(&["10.20.0.0/16", "fd20::/64"]), networks(&["10.77.0.5/32", "fd77::5/128"]));
        let mut at_gateway = spec(1, suite, spi_g, spi_c);
        at_gateway.hosts = Hosts { local: far, remote: near, encap: true };
        (at_gateway.local_selectors, at_gateway.remote_selectors) = (ours.clone(), theirs.clone());
        let mut at_client = spec(1, suite, spi_c, spi_g);
        std::mem::swap(&mut at_client.keys_in, &mut at_client.keys_out);
        at_client.hosts = Hosts { local: near, remote: far, encap: true };
        (at_client.local_selectors, at_client.remote_selectors) = (theirs, ours);
        // Paths are measured where the socket would be.
        let space = spaces.gateway.clone();
        gateway = inside(&space, move || {
            gateway.install(&at_gateway).unwrap();
            gateway
        });
        let space = spaces.client.clone();
        client = inside(&space, move || {
            client.install(&at_client).unwrap();
            client
        });
        Self { client, gateway, client_port, ike_at_gateway, spaces }
    }

    /// Pushes a patterned stream from one end to the other and checks every byte.
    fn push(&self, upload: bool, family: usize, megabytes: usize) -> f64 {
        let (from, to, address) = if upload {
            (&self.spaces.client, &self.spaces.gateway, SERVER[family])
        } else {
            (&self.spaces.gateway, &self.spaces.client, CLIENT[family])
        };
        let address = SocketAddr::new(address.parse().unwrap(), 5201);
        let listener = inside(to, move || TcpListener::bind(address).unwrap());
        let total = megabytes << 20;
        let pattern: Arc<Vec<u8>> = Arc::new((0..(1 << 20)).map(|n: u32| (n / 3) as u8).collect());
        let sent = Arc::clone(&pattern);
        let sender = spawn_inside(from, move || {
            let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(10)).unwrap();
            stream.set_write_timeout(Some(Duration::from_secs(30))).unwrap();
            for _ in 0..megabytes {
                stream.write_all(&sent).unwrap();
            }
        });
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let started = Instant::now();
        let mut got = 0;
        let mut buffer = vec![0; 1 << 18];
        while got < total {
            let len = stream.read(&mut buffer).unwrap();
            assert!(len > 0, "the stream ended after {got} bytes");
            let mut at = got;
            for chunk in buffer[..len].chunks((1 << 20) - got % (1 << 20)) {
                let from = at % (1 << 20);
                assert_eq!(chunk, &pattern[from..from + chunk.len()], "at byte {at}");
                at += chunk.len();
            }
            got += len;
        }
        sender.join().unwrap();
        total as f64 * 8.0 / started.elapsed().as_secs_f64() / 1e9
    }
}

#[test]
fn tcp_streams_pass_intact_in_both_directions_and_families() {
    if unprivileged() {
        return;
    }
    let tunnel = Tunnel::new("tcp", EspSuite::Aes256Gcm16);
    for family in [0, 1] {
        for upload in [true, false] {
            let speed = tunnel.push(upload, family, 64);
            println!("family {family}, upload {upload}: {speed:.2} Gb/s");
        }
    }
    let stats = tunnel.gateway.stats();
    // Without "replay": a packet that a busy machine lets others overtake too far is dropped as
    // one, and TCP sends it again.
    let bad = ["auth", "malformed", "ts", "too_big", "expired"];
    let wrong: Vec<_> =
        stats.drops.iter().filter(|(name, count)| bad.contains(name) && *count > 0).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn an_upload_survives_a_path_that_becomes_narrow() {
    if unprivileged() {
        return;
    }
    let tunnel = Tunnel::new("mtu", EspSuite::Aes256Gcm16);
    // The client's interface says 1500; only the router's answers tell of 1300.
    tunnel.push(true, 0, 4);
    tunnel.spaces.narrow(1300);
    for family in [0, 1] {
        tunnel.push(true, family, 16);
    }
    // Full-size packets are refused at the tunnel's entrance, not fragmented behind it.
    wait_for("the tunnel to have learnt the path", || {
        let stats = tunnel.client.stats();
        stats.drops.iter().any(|(name, count)| *name == "too_big" && *count > 0)
    });
    // An IKE message larger than the path still arrives, in fragments.
    let to = SocketAddr::new("198.51.100.1".parse().unwrap(), PORT);
    tunnel.client_port.send_ike(&[0x42; 6000], "192.0.2.1".parse().unwrap(), to, true).unwrap();
    assert_eq!(tunnel.ike_at_gateway.recv_timeout(PATIENCE), Ok(6000));
}

#[test]
fn the_interface_vanishes_with_the_plane_and_its_name_is_taken_until_then() {
    if unprivileged() {
        return;
    }
    let spaces = Spaces::new("tun");
    let (mut plane, ..) = start(&spaces.gateway, SERVER, CLIENT);
    assert_eq!(plane.interface(), "runnel0");
    // Neither a single queue nor several may join it.
    for workers in [1, 2] {
        let second = inside(&spaces.gateway, move || {
            let any = "0.0.0.0:0".parse().unwrap();
            let config = UserPlaneConfig {
                tun: TunSource::Create { name: "runnel0".into() },
                tun_mtu: None,
                sockets: vec![UdpPort::bind(any, &BindOptions::default()).unwrap()],
                workers,
                sequences: None,
            };
            UserPlane::start(config, Arc::new(|_| {})).map(drop)
        });
        let Err(PlaneError::System { reason, .. }) = second else { panic!("{second:?}") };
        assert!(reason.contains("another process"), "{reason}");
    }
    plane.shutdown().unwrap();
    let link = Command::new("ip")
        .args(["-n", &spaces.gateway, "link", "show", "runnel0"])
        .output()
        .unwrap();
    assert!(!link.status.success(), "the interface is gone");
    inside(&spaces.gateway, || xfrm::user::probe().unwrap());
    assert!(plane.usage(ChildId(1)).is_err());
    assert_ne!(plane.alloc_spi().unwrap(), Spi(0));
}

#[test]
fn several_queues_and_sockets_share_the_work() {
    if unprivileged() {
        return;
    }
    let spaces = Spaces::new("many");
    let plane = inside(&spaces.gateway, || {
        let options = BindOptions { reuse_port: true, ..BindOptions::default() };
        let any = SocketAddr::new("0.0.0.0".parse().unwrap(), PORT);
        let config = UserPlaneConfig {
            tun: TunSource::Create { name: "runnel%d".into() },
            tun_mtu: Some(1280),
            sockets: (0..2).map(|_| UdpPort::bind(any, &options).unwrap()).collect(),
            workers: 3,
            sequences: None,
        };
        UserPlane::start(config, Arc::new(|_| {})).unwrap()
    });
    assert_eq!(plane.interface(), "runnel0");
    let path = format!("/sys/class/net/{}/mtu", plane.interface());
    let mtu =
        Command::new("ip").args(["netns", "exec", &spaces.gateway, "cat", &path]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&mtu.stdout).trim(), "1280");
}
