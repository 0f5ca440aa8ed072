//! The plane itself: what it shares with its threads, and the control operations.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ring::rand::{SecureRandom, SystemRandom};
use rustix::event::{EventfdFlags, eventfd};

use super::child::Child;
use super::counters::DropCounters;
use super::keeper::{self, Keeper};
use super::ledger::{Ledger, Record};
use super::table::Table;
use super::tun::{self, TunQueue};
use super::{inbound, mtu, outbound, replay};
use crate::dataplane::{Dataplane, EventSink, PlaneEvent};
use crate::error::PlaneError;
use crate::model::{
    Capabilities, ChildId, ChildSpec, EspSuite, Hosts, Mode, PlaneKind, PlaneStats, Spi, Usage,
};
use crate::udp::{UdpPort, path_mtu};

const PLANE: &str = "userspace";
/// Queues (and sending threads) when the configuration leaves it to us.
const MAX_AUTO_WORKERS: usize = 8;
/// SPIs below are reserved (RFC 4303 2.1).
const FIRST_SPI: u32 = 256;
/// SPIs handed out and not yet installed that are remembered; a negotiation that failed never
/// gives one back.
const RESERVED_SPIS: usize = 65_536;

/// Where the tunnel interface comes from.
#[derive(Debug)]
pub enum TunSource {
    /// Create it; the name may end in `%d` for the first free number.
    Create {
        /// Interface name, at most 15 characters.
        name: String,
    },
    /// Packets come and go over this descriptor, one per read and write and each after a
    /// `virtio_net_hdr`, as a TUN device does it (an inherited queue, or a socket pair in tests).
    Descriptor {
        /// Name reported by [`Dataplane::interface`].
        name: String,
        /// The descriptor; becomes non-blocking.
        fd: OwnedFd,
    },
}

/// What a [`UserPlane`] needs to start.
#[derive(Debug)]
pub struct UserPlaneConfig {
    /// The tunnel interface.
    pub tun: TunSource,
    /// Its MTU; `None` computes it for a path of 1500 bytes ([`mtu::interface_mtu`]).
    pub tun_mtu: Option<u16>,
    /// Encapsulation ports (UDP 4500), each read by its own thread; several on one address
    /// (`reuse_port`) spread peers over threads.
    pub sockets: Vec<UdpPort>,
    /// Queues of the tunnel interface, each read by its own thread; 0 takes one per core.
    pub workers: usize,
    /// Where sequence numbers are counted, so that the next process can go on with the children of
    /// this one ([`Dataplane::adopt`]). On a tmpfs, in a folder of this user alone.
    pub sequences: Option<PathBuf>,
}

/// What the threads and the control operations share.
pub(super) struct Shared {
    table: RwLock<Table>,
    pub(super) drops: DropCounters,
    pub(super) ports: Vec<UdpPort>,
    pub(super) interface_mtu: u16,
    pub(super) started: Instant,
    pub(super) keeper: Keeper,
    sink: EventSink,
    stopping: AtomicBool,
    /// Readable once the plane stops; every thread polls it.
    pub(super) wake: OwnedFd,
}

impl Shared {
    /// The table for one batch. Control operations wait for the batch to end.
    pub(super) fn table(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn table_mut(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// Delivers events; never call it with the table locked, the sink may call the plane.
    pub(super) fn deliver(&self, events: &mut Vec<PlaneEvent>) {
        for event in events.drain(..) {
            (self.sink)(event);
        }
    }

    /// Measures the path of a child now; returns whether its tunnel MTU changed.
    pub(super) fn measure(&self, child: &Child) -> bool {
        let hosts = child.hosts();
        let path = path_mtu(hosts.local.ip(), hosts.remote).unwrap_or(mtu::DEFAULT_PATH_MTU);
        child.set_path_mtu(path, self.interface_mtu)
    }
}

/// ESP in userspace over a TUN device. Dropping it stops it.
pub struct UserPlane {
    shared: Arc<Shared>,
    interface: String,
    threads: Vec<JoinHandle<()>>,
    reserved: HashSet<u32>,
    random: SystemRandom,
    ledger: Option<Arc<Ledger>>,
}

impl std::fmt::Debug for UserPlane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UserPlane")
            .field("interface", &self.interface)
            .field("children", &self.children().len())
            .finish_non_exhaustive()
    }
}

impl UserPlane {
    /// Creates the tunnel interface, sets its MTU, brings it up and starts the threads.
    ///
    /// # Errors
    /// When there is no TUN device, no permission, or no encapsulation port; nothing stays then.
    pub fn start(config: UserPlaneConfig, sink: EventSink) -> Result<Self, PlaneError> {
        let UserPlaneConfig { tun, tun_mtu, sockets, workers, sequences } = config;
        if sockets.is_empty() {
            return Err(PlaneError::Unsupported {
                plane: PLANE,
                what: "run without an encapsulation port".into(),
                fix: "bind UDP 4500 first",
            });
        }
        let ledger = sequences
            .map(|path| Ledger::open(&path).map_err(|error| unkept(&path, &error)))
            .transpose()?;
        let mtu = tun_mtu.unwrap_or_else(|| mtu::interface_mtu(mtu::DEFAULT_PATH_MTU, false));
        let (interface, queues) = match tun {
            TunSource::Create { name } => tun::create(&name, queue_count(workers), mtu)?,
            TunSource::Descriptor { name, fd } => {
                let queue = TunQueue::from_fd(fd).map_err(|error| system("use a queue", &error))?;
                (name, vec![queue])
            }
        };
        for port in &sockets {
            port.enable_gro();
            port.enable_error_queue();
            port.enable_dont_fragment();
        }
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|error| system("create an event descriptor", &error.into()))?;
        let shared = Arc::new(Shared {
            table: RwLock::default(),
            drops: DropCounters::default(),
            ports: sockets,
            interface_mtu: mtu,
            started: Instant::now(),
            keeper: Keeper::default(),
            sink,
            stopping: AtomicBool::new(false),
            wake,
        });
        let mut plane = Self {
            shared,
            interface,
            threads: Vec::new(),
            reserved: HashSet::new(),
            random: SystemRandom::new(),
            ledger,
        };
        // On an early return dropping the plane stops the threads that already run.
        plane.spawn_all(queues)?;
        tracing::info!(interface = %plane.interface, mtu, "userspace data plane started");
        Ok(plane)
    }

    fn spawn_all(&mut self, queues: Vec<TunQueue>) -> Result<(), PlaneError> {
        for index in 0..self.shared.ports.len() {
            let Some(queue) = queues.get(index % queues.len().max(1)) else { continue };
            let queue = queue.try_clone().map_err(|error| system("share a queue", &error))?;
            self.spawn("esp-in", move |shared| inbound::run(&shared, index, &queue))?;
        }
        for queue in queues {
            self.spawn("esp-out", move |shared| outbound::run(&shared, &queue))?;
        }
        self.spawn("esp-mtu", |shared| keeper::run(&shared))
    }

    fn spawn(
        &mut self,
        name: &str,
        body: impl FnOnce(Arc<Shared>) + Send + 'static,
    ) -> Result<(), PlaneError> {
        let shared = Arc::clone(&self.shared);
        let thread = std::thread::Builder::new()
            .name(name.into())
            .spawn(move || body(shared))
            .map_err(|error| system("start a thread", &error))?;
        self.threads.push(thread);
        Ok(())
    }

    fn stop(&mut self) {
        if self.shared.stopping.swap(true, Ordering::Relaxed) {
            return;
        }
        self.shared.table_mut().clear();
        if let Err(error) = rustix::io::write(&self.shared.wake, &1u64.to_ne_bytes()) {
            tracing::warn!(%error, "data plane threads could not be woken");
        }
        self.shared.keeper.wake();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a data plane thread had panicked");
            }
        }
    }

    fn add(&mut self, spec: &ChildSpec, record: Record) -> Result<(), PlaneError> {
        let child = Arc::new(Child::new(spec, record)?);
        self.shared.measure(&child);
        let mut table = self.shared.table_mut();
        table.insert(child)?;
        if spec.outbound_active {
            table.activate(spec.id)?;
        }
        self.reserved.remove(&spec.spi_in.0);
        Ok(())
    }

    fn check(&self, spec: &ChildSpec) -> Result<(), PlaneError> {
        let refuse = |what: &str, fix: &'static str| {
            Err(PlaneError::Unsupported { plane: PLANE, what: what.into(), fix })
        };
        if self.shared.stopping() {
            return refuse("install a child after it was stopped", "start it again");
        }
        if spec.mode != Mode::Tunnel {
            return refuse("do transport mode", "negotiate tunnel mode");
        }
        if spec.replay_window > replay::MAX_WINDOW {
            return refuse("keep so large a replay window", "use at most 4096 packets");
        }
        if spec.spi_in.0 < FIRST_SPI || spec.spi_out.0 == 0 {
            return refuse("use a reserved SPI", "take SPIs from alloc_spi");
        }
        check_hosts(&spec.hosts)
    }
}

fn check_hosts(hosts: &Hosts) -> Result<(), PlaneError> {
    let refuse = |what: &str, fix: &'static str| {
        Err(PlaneError::Unsupported { plane: PLANE, what: what.into(), fix })
    };
    if !hosts.encap {
        return refuse("send plain ESP", "negotiate UDP encapsulation (fake NAT detection)");
    }
    if hosts.local.is_ipv4() != hosts.remote.is_ipv4() {
        return refuse("tunnel between two address families", "use one family outside");
    }
    Ok(())
}

fn queue_count(workers: usize) -> usize {
    if workers > 0 {
        return workers;
    }
    std::thread::available_parallelism().map_or(1, usize::from).min(MAX_AUTO_WORKERS)
}

fn unkept(path: &Path, error: &std::io::Error) -> PlaneError {
    PlaneError::System {
        what: format!("cannot keep sequence numbers in {}", path.display()),
        reason: error.to_string(),
        fix: "make room there (8 MiB), and see that it belongs to this user".into(),
    }
}

fn system(what: &str, error: &std::io::Error) -> PlaneError {
    PlaneError::System {
        what: format!("cannot {what}"),
        reason: error.to_string(),
        fix: "raise the limits of the process (LimitNOFILE=, TasksMax=)".into(),
    }
}

impl Dataplane for UserPlane {
    fn kind(&self) -> PlaneKind {
        PlaneKind::Userspace
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            plain_esp: false,
            transport_mode: false,
            esn: true,
            max_replay_window: replay::MAX_WINDOW,
            update_hosts: true,
            suites: vec![
                EspSuite::Aes128Gcm16,
                EspSuite::Aes256Gcm16,
                EspSuite::ChaCha20Poly1305,
                EspSuite::Aes128CbcSha256,
                EspSuite::Aes256CbcSha256,
                EspSuite::Aes256CbcSha384,
                EspSuite::Aes256CbcSha512,
            ],
        }
    }

    fn interface(&self) -> &str {
        &self.interface
    }

    fn alloc_spi(&mut self) -> Result<Spi, PlaneError> {
        if self.reserved.len() >= RESERVED_SPIS {
            self.reserved.clear();
        }
        for _ in 0..64 {
            let mut bytes = [0u8; 4];
            self.random.fill(&mut bytes).map_err(|_| PlaneError::System {
                what: "choose an SPI".into(),
                reason: "the system gives no random numbers".into(),
                fix: "check /dev/urandom and getrandom(2)".into(),
            })?;
            let spi = u32::from_ne_bytes(bytes);
            let free = spi >= FIRST_SPI && self.shared.table().by_spi(spi).is_none();
            if free && self.reserved.insert(spi) {
                return Ok(Spi(spi));
            }
        }
        Err(PlaneError::Conflict("no free SPI was found in 64 random tries".into()))
    }

    fn install(&mut self, spec: &ChildSpec) -> Result<(), PlaneError> {
        self.check(spec)?;
        let record = match &self.ledger {
            Some(ledger) => ledger.fresh(spec.spi_in.0, spec.spi_out.0, spec.first_seq_out),
            None => Record::volatile(spec.first_seq_out),
        };
        self.add(spec, record)
    }

    fn adopt(&mut self, spec: &ChildSpec) -> Result<bool, PlaneError> {
        self.check(spec)?;
        match self.ledger.as_ref().and_then(|l| l.left(spec.spi_in.0, spec.spi_out.0)) {
            Some(record) => self.add(spec, record).map(|()| true),
            None => Ok(false),
        }
    }

    fn activate_outbound(&mut self, child: ChildId) -> Result<(), PlaneError> {
        self.shared.table_mut().activate(child)
    }

    fn update_hosts(&mut self, child: ChildId, hosts: &Hosts) -> Result<(), PlaneError> {
        check_hosts(hosts)?;
        let child = Arc::clone(self.shared.table().by_id(child)?);
        child.set_hosts(*hosts);
        self.shared.measure(&child);
        // Batches that still use the old addresses end before this returns.
        drop(self.shared.table_mut());
        Ok(())
    }

    fn remove(&mut self, child: ChildId) -> Result<Usage, PlaneError> {
        // The write lock is granted when every running batch has been handed to the kernel, and
        // later batches no longer find the child.
        let removed = self.shared.table_mut().remove(child)?;
        Ok(removed.usage(self.shared.started.elapsed()))
    }

    fn usage(&mut self, child: ChildId) -> Result<Usage, PlaneError> {
        let now = self.shared.started.elapsed();
        Ok(self.shared.table().by_id(child)?.usage(now))
    }

    fn children(&self) -> Vec<ChildId> {
        self.shared.table().children().map(|child| child.id).collect()
    }

    fn stats(&self) -> PlaneStats {
        PlaneStats { drops: self.shared.drops.snapshot(), counters: Vec::new() }
    }

    fn shutdown(&mut self) -> Result<(), PlaneError> {
        self.stop();
        Ok(())
    }

    fn detach(&mut self) -> Result<(), PlaneError> {
        if let Some(ledger) = &self.ledger {
            ledger.seal();
        }
        self.shutdown()
    }
}

impl Drop for UserPlane {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Time since the plane's start, taken once per batch.
pub(super) fn clock(shared: &Shared) -> (Instant, Duration) {
    let now = Instant::now();
    (now, now.saturating_duration_since(shared.started))
}

/// The port a child of these outer addresses sends from.
pub(super) fn port_for(ports: &[UdpPort], local: SocketAddr) -> Option<&UdpPort> {
    let fits = |port: &&UdpPort| {
        let bound = port.local_addr();
        bound.is_ipv4() == local.is_ipv4()
            && (bound.ip() == local.ip() || bound.ip().is_unspecified())
    };
    ports
        .iter()
        .filter(fits)
        .find(|port| port.local_addr().port() == local.port())
        .or_else(|| ports.iter().find(fits))
}
