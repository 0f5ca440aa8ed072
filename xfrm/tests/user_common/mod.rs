//! What the tests of the userspace plane share: an end without privileges, a hostile relay, and
//! hand-made packets.
#![allow(dead_code, missing_docs, unreachable_pub)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

pub mod packet;

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use xfrm::model::{ChildId, ChildSpec, EspSuite, Hosts, Limits, Mode, SaKeys, Selector, Spi};
use xfrm::udp::{BindOptions, RecvRing, UdpPort};
use xfrm::user::{TunSource, UserPlane, UserPlaneConfig};
use xfrm::{Dataplane, PlaneEvent};

/// Longer than anything takes on a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Long enough for a packet that should not come to come.
const SILENCE: Duration = Duration::from_millis(60);
const VNET: usize = 10;

pub fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

pub fn networks(list: &[&str]) -> Vec<Selector> {
    list.iter().map(|net| Selector::network(net.parse().unwrap())).collect()
}

pub fn keys(suite: EspSuite, salt: u8) -> SaKeys {
    let (encr, integ) = suite.key_lengths();
    SaKeys {
        encr: (0..encr as u8).map(|n| n ^ salt).collect(),
        integ: (0..integ as u8).map(|n| n ^ !salt).collect(),
    }
}

/// A child as the gateway sees it; addresses and selectors are the test's.
pub fn spec(id: u64, suite: EspSuite, spi_in: Spi, spi_out: Spi) -> ChildSpec {
    let nowhere: SocketAddr = "127.0.0.1:9".parse().unwrap();
    ChildSpec {
        id: ChildId(id),
        reqid: 1,
        spi_in,
        spi_out,
        suite,
        keys_in: keys(suite, 0x11 ^ id as u8),
        keys_out: keys(suite, 0x77 ^ id as u8),
        mode: Mode::Tunnel,
        hosts: Hosts { local: nowhere, remote: nowhere, encap: true },
        local_selectors: Vec::new(),
        remote_selectors: Vec::new(),
        esn: false,
        replay_window: 1024,
        first_seq_out: 0,
        limits: Limits::default(),
        outbound_active: true,
    }
}

/// A plane whose TUN queue is one end of a socket pair; the test holds the other.
pub struct End {
    pub plane: UserPlane,
    tun: UnixDatagram,
    port: SocketAddr,
    events: mpsc::Receiver<PlaneEvent>,
}

impl End {
    pub fn new(name: &str) -> Self {
        let any = UdpPort::bind("127.0.0.1:0".parse().unwrap(), &BindOptions::default()).unwrap();
        Self::over(name, any, None)
    }

    /// An end on this port that counts its sequence numbers in a file.
    pub fn over(name: &str, socket: UdpPort, sequences: Option<PathBuf>) -> Self {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        ours.set_read_timeout(Some(PATIENCE)).unwrap();
        let port = socket.local_addr();
        let (sender, events) = mpsc::channel();
        let config = UserPlaneConfig {
            tun: TunSource::Descriptor { name: name.into(), fd: OwnedFd::from(theirs) },
            tun_mtu: None,
            sockets: vec![socket],
            workers: 1,
            sequences,
        };
        let sender = Mutex::new(sender);
        let sink = Arc::new(move |event| drop(sender.lock().unwrap().send(event)));
        let plane = UserPlane::start(config, sink).unwrap();
        Self { plane, tun: ours, port, events }
    }

    pub fn address(&self) -> SocketAddr {
        self.port
    }

    /// Hands the plane a packet as the network stack would.
    pub fn inject(&self, packet: &[u8]) {
        self.tun.send(&[&[0; VNET], packet].concat()).unwrap();
    }

    /// Hands the plane a TCP super-packet with a partial checksum.
    pub fn inject_super(&self, packet: &[u8], size: u16) {
        let (bytes, upper) = packet::with_partial_checksum(packet);
        let kind = if upper == 40 { 4u8 } else { 1 };
        let mut vnet = vec![1u8, kind, 0, 0];
        vnet.extend(size.to_ne_bytes());
        vnet.extend((upper as u16).to_ne_bytes());
        vnet.extend(16u16.to_ne_bytes());
        self.tun.send(&[vnet, bytes].concat()).unwrap();
    }

    /// The next packet the plane writes towards the network stack.
    pub fn next_packet(&self) -> Vec<u8> {
        let mut buffer = vec![0; VNET + 65_536];
        let len = self.tun.recv(&mut buffer).expect("a packet from the plane");
        packet::check(&buffer[..VNET], &buffer[VNET..len]);
        buffer[VNET..len].to_vec()
    }

    pub fn try_packet(&self) -> Option<Vec<u8>> {
        self.tun.set_nonblocking(true).unwrap();
        let mut buffer = vec![0; VNET + 65_536];
        let got = self.tun.recv(&mut buffer).ok();
        self.tun.set_nonblocking(false).unwrap();
        got.map(|len| buffer[VNET..len].to_vec())
    }

    pub fn no_packet(&self) -> bool {
        std::thread::sleep(SILENCE);
        self.try_packet().is_none()
    }

    pub fn events(&self, count: usize) -> Vec<PlaneEvent> {
        (0..count).map(|_| self.events.recv_timeout(PATIENCE).expect("an event")).collect()
    }

    pub fn events_so_far(&self) -> Vec<PlaneEvent> {
        std::thread::sleep(SILENCE);
        self.events.try_iter().collect()
    }

    pub fn drops(&self, reason: &str) -> u64 {
        let stats = self.plane.stats();
        stats.drops.iter().find(|(name, _)| *name == reason).expect("a known reason").1
    }

    pub fn total_drops(&self) -> u64 {
        self.plane.stats().drops.iter().map(|(_, count)| count).sum()
    }
}

/// Forwards datagrams between two ends and misbehaves when told. Towards either end it shows one
/// address; [`Relay::rebind`] changes the one the gateway sees.
pub struct Relay {
    shared: Arc<Shared>,
    client_side: SocketAddr,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    gateway_side: Mutex<Arc<UdpPort>>,
    duplicate: AtomicBool,
    tamper: AtomicBool,
    congestion: AtomicBool,
    last_tos: AtomicU8,
    stop: AtomicBool,
}

impl Relay {
    pub fn new(client: SocketAddr, gateway: SocketAddr) -> Self {
        let client_side = bind();
        let shared = Arc::new(Shared {
            gateway_side: Mutex::new(Arc::new(bind())),
            duplicate: AtomicBool::new(false),
            tamper: AtomicBool::new(false),
            congestion: AtomicBool::new(false),
            last_tos: AtomicU8::new(0),
            stop: AtomicBool::new(false),
        });
        let address = client_side.local_addr();
        let thread = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || shared.run(&client_side, client, gateway)
        });
        Self { shared, client_side: address, thread: Some(thread) }
    }

    pub fn towards_gateway(&self) -> SocketAddr {
        self.client_side
    }

    pub fn towards_client(&self) -> SocketAddr {
        self.shared.gateway_side.lock().unwrap().local_addr()
    }

    /// A NAT box that forgot its mapping.
    pub fn rebind(&self) -> SocketAddr {
        let port = bind();
        let address = port.local_addr();
        *self.shared.gateway_side.lock().unwrap() = Arc::new(port);
        address
    }

    pub fn duplicate(&self, on: bool) {
        self.shared.duplicate.store(on, Ordering::SeqCst);
    }

    pub fn tampered_copy_first(&self, on: bool) {
        self.shared.tamper.store(on, Ordering::SeqCst);
    }

    pub fn mark_congestion(&self, on: bool) {
        self.shared.congestion.store(on, Ordering::SeqCst);
    }

    pub fn last_tos(&self) -> u8 {
        self.shared.last_tos.load(Ordering::SeqCst)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn bind() -> UdpPort {
    UdpPort::bind("127.0.0.1:0".parse().unwrap(), &BindOptions::default()).unwrap()
}

impl Shared {
    fn run(&self, client_side: &UdpPort, client: SocketAddr, gateway: SocketAddr) {
        let mut ring = RecvRing::new();
        while !self.stop.load(Ordering::SeqCst) {
            let gateway_side = Arc::clone(&self.gateway_side.lock().unwrap());
            let mut idle = true;
            if client_side.recv(&mut ring).is_ok() {
                idle = false;
                // Looked at after the datagrams came: those sent after a rebind leave by its port.
                let gateway_side = Arc::clone(&self.gateway_side.lock().unwrap());
                for datagram in ring.datagrams() {
                    self.last_tos.store(datagram.tos, Ordering::SeqCst);
                    self.forward(datagram.payload, datagram.tos, &gateway_side, gateway);
                }
            }
            if gateway_side.recv(&mut ring).is_ok() {
                idle = false;
                for datagram in ring.datagrams() {
                    self.forward(datagram.payload, datagram.tos, client_side, client);
                }
            }
            if idle {
                std::thread::sleep(Duration::from_micros(200));
            }
        }
    }

    fn forward(&self, bytes: &mut [u8], tos: u8, from: &UdpPort, to: SocketAddr) {
        let source: IpAddr = from.local_addr().ip();
        if self.tamper.load(Ordering::SeqCst)
            && let Some(last) = bytes.last_mut()
        {
            *last ^= 1;
            let _ = from.send(bytes, source, to);
            if let Some(last) = bytes.last_mut() {
                *last ^= 1;
            }
        }
        let copies = if self.duplicate.load(Ordering::SeqCst) { 2 } else { 1 };
        let congested = self.congestion.load(Ordering::SeqCst);
        for _ in 0..copies {
            if congested || tos != 0 {
                let socket = socket2::SockRef::from(from);
                let tos = if congested { tos | 3 } else { tos };
                socket.set_tos_v4(tos.into()).unwrap();
            }
            let _ = from.send(bytes, source, to);
        }
    }
}
