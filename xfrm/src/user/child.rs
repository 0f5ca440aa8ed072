//! One installed child SA: keys, counters, window and outer addresses, shared by the workers.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use super::esp::Transform;
use super::ledger::Record;
use super::mtu;
use super::replay::ReplayWindow;
use crate::dataplane::PlaneEvent;
use crate::error::PlaneError;
use crate::model::{ChildId, ChildSpec, EspSuite, Hosts, Limits, Offload, Selector, Usage};

/// Numbers left when a rekey is asked for: more than two minutes at a million packets a second.
const SEQUENCE_RESERVE: u64 = 1 << 27;
/// A child reports new addresses of its peer this far apart, whatever they are: each report costs
/// the control plane an exchange, and a peer may send every packet from another place.
const MAPPING_INTERVAL: Duration = Duration::from_secs(1);

/// Takes a lock whatever happened to its last holder: the data are counters and bitmaps, valid
/// after every step.
pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Inner bytes and packets of one direction.
#[derive(Debug, Default)]
struct Volume {
    bytes: AtomicU64,
    packets: AtomicU64,
}

impl Volume {
    /// Adds and returns the new totals.
    fn add(&self, bytes: u64, packets: u64) -> (u64, u64) {
        (
            self.bytes.fetch_add(bytes, Ordering::Relaxed).wrapping_add(bytes),
            self.packets.fetch_add(packets, Ordering::Relaxed).wrapping_add(packets),
        )
    }
}

#[derive(Debug)]
pub(super) struct Child {
    pub(super) id: ChildId,
    pub(super) reqid: u32,
    pub(super) spi_in: u32,
    pub(super) suite: EspSuite,
    pub(super) local: Vec<Selector>,
    pub(super) remote: Vec<Selector>,
    /// Packets to the peer.
    pub(super) sealer: Transform,
    /// Packets from the peer.
    pub(super) opener: Transform,
    pub(super) replay: Mutex<ReplayWindow>,
    limits: Limits,
    hosts: RwLock<Hosts>,
    tunnel_mtu: AtomicU16,
    /// The last sequence number used, and the highest accepted.
    record: Record,
    seq_end: u64,
    received: Volume,
    sent: Volume,
    /// Microseconds from the plane's start to the last accepted packet, plus one; 0 for none.
    last_in: AtomicU64,
    pub(super) drops_replay: AtomicU64,
    pub(super) drops_auth: AtomicU64,
    pub(super) drops_selector: AtomicU64,
    soft_raised: AtomicBool,
    expired: AtomicBool,
    /// When a new outer address was reported last.
    reported: Mutex<Option<Instant>>,
}

impl Child {
    /// A child with its sequence numbers, which an earlier process may have counted.
    pub(super) fn new(spec: &ChildSpec, record: Record) -> Result<Self, PlaneError> {
        let received = record.received().load(Ordering::Relaxed);
        Ok(Self {
            id: spec.id,
            reqid: spec.reqid,
            spi_in: spec.spi_in.0,
            suite: spec.suite,
            local: spec.local_selectors.clone(),
            remote: spec.remote_selectors.clone(),
            sealer: Transform::new(spec.suite, &spec.keys_out, spec.spi_out.0, spec.esn)?,
            opener: Transform::new(spec.suite, &spec.keys_in, spec.spi_in.0, spec.esn)?,
            replay: Mutex::new(ReplayWindow::resume(spec.replay_window, spec.esn, received)),
            limits: spec.limits,
            hosts: RwLock::new(spec.hosts),
            tunnel_mtu: AtomicU16::new(mtu::MIN_INNER_V6),
            record,
            seq_end: if spec.esn { u64::MAX } else { u64::from(u32::MAX) },
            received: Volume::default(),
            sent: Volume::default(),
            last_in: AtomicU64::new(0),
            drops_replay: AtomicU64::new(0),
            drops_auth: AtomicU64::new(0),
            drops_selector: AtomicU64::new(0),
            soft_raised: AtomicBool::new(false),
            expired: AtomicBool::new(false),
            reported: Mutex::new(None),
        })
    }

    pub(super) fn hosts(&self) -> Hosts {
        *self.hosts.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_hosts(&self, hosts: Hosts) {
        *self.hosts.write().unwrap_or_else(PoisonError::into_inner) = hosts;
    }

    /// Largest inner packet that fits the path, before the family's minimum.
    pub(super) fn tunnel_mtu(&self) -> u16 {
        self.tunnel_mtu.load(Ordering::Relaxed)
    }

    /// Takes over the path's MTU; the interface's own bounds it. Returns whether it changed.
    pub(super) fn set_path_mtu(&self, path: u16, interface: u16) -> bool {
        let outer_v6 = self.hosts().remote.is_ipv6();
        let mtu = mtu::tunnel_mtu(path, self.suite, outer_v6).min(interface);
        self.tunnel_mtu.swap(mtu, Ordering::Relaxed) != mtu
    }

    pub(super) fn expired(&self) -> bool {
        self.expired.load(Ordering::Relaxed)
    }

    pub(super) fn packets_out(&self) -> u64 {
        self.sent.packets.load(Ordering::Relaxed)
    }

    /// Takes `count` sequence numbers and returns the first; `None` when they are used up: a
    /// number also is the AEAD's IV and never comes twice under a key (RFC 4303 3.3.3).
    pub(super) fn take_sequence(&self, count: u64, events: &mut Vec<PlaneEvent>) -> Option<u64> {
        let sent = self.record.sent();
        let taken = sent.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| {
            last.checked_add(count).filter(|last| *last <= self.seq_end)
        });
        match taken {
            Ok(last) => {
                if last >= self.seq_end.saturating_sub(SEQUENCE_RESERVE) {
                    self.raise(false, events);
                }
                last.checked_add(1)
            }
            Err(_) => {
                self.raise(true, events);
                None
            }
        }
    }

    /// Records an authenticated packet of the peer: `None` when another thread has accepted its
    /// number meanwhile, otherwise whether it is the newest so far.
    pub(super) fn accept_sequence(&self, seq: u64) -> Option<bool> {
        let mut window = locked(&self.replay);
        let newest = window.accept(seq)?;
        if newest {
            // Within the lock: what is kept never goes back.
            self.record.received().store(seq, Ordering::Relaxed);
        }
        Some(newest)
    }

    /// Counts packets sent to the peer.
    pub(super) fn sent(&self, bytes: u64, packets: u64, events: &mut Vec<PlaneEvent>) {
        let (bytes, packets) = self.sent.add(bytes, packets);
        self.check_limits(bytes, packets, events);
    }

    /// Counts an accepted packet of the peer; `now` is the time since the plane's start.
    pub(super) fn received(&self, bytes: u64, now: Duration, events: &mut Vec<PlaneEvent>) {
        let (bytes, packets) = self.received.add(bytes, 1);
        let micros = u64::try_from(now.as_micros()).unwrap_or(u64::MAX);
        self.last_in.store(micros.saturating_add(1), Ordering::Relaxed);
        self.check_limits(bytes, packets, events);
    }

    fn check_limits(&self, bytes: u64, packets: u64, events: &mut Vec<PlaneEvent>) {
        let over = |limit: Option<u64>, value: u64| limit.is_some_and(|limit| value >= limit);
        if over(self.limits.soft_bytes, bytes) || over(self.limits.soft_packets, packets) {
            self.raise(false, events);
        }
        if over(self.limits.hard_bytes, bytes) || over(self.limits.hard_packets, packets) {
            self.raise(true, events);
        }
    }

    fn raise(&self, hard: bool, events: &mut Vec<PlaneEvent>) {
        let flag = if hard { &self.expired } else { &self.soft_raised };
        // The load keeps the cache line shared once the flag is up.
        if !flag.load(Ordering::Relaxed) && !flag.swap(true, Ordering::Relaxed) {
            events.push(PlaneEvent::Expire { child: self.id, hard });
        }
    }

    /// Notes where an authenticated, newest packet came from; a new place is reported, never
    /// followed from here (RFC 7296 2.23 leaves that to the control plane).
    pub(super) fn seen_from(&self, remote: SocketAddr, now: Instant, events: &mut Vec<PlaneEvent>) {
        if self.hosts().remote == remote {
            return;
        }
        let mut reported = locked(&self.reported);
        // What is left out comes with a later packet: the newest place wins in the end.
        let recently =
            reported.is_some_and(|at| now.saturating_duration_since(at) < MAPPING_INTERVAL);
        if !recently {
            *reported = Some(now);
            events.push(PlaneEvent::Mapping { child: self.id, remote });
        }
    }

    /// Counters now; `now` is the time since the plane's start.
    pub(super) fn usage(&self, now: Duration) -> Usage {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let now = u64::try_from(now.as_micros()).unwrap_or(u64::MAX);
        Usage {
            bytes_in: load(&self.received.bytes),
            bytes_out: load(&self.sent.bytes),
            packets_in: load(&self.received.packets),
            packets_out: load(&self.sent.packets),
            idle_in_micros: load(&self.last_in).checked_sub(1).map(|last| now.saturating_sub(last)),
            seq_out: load(self.record.sent()),
            drops_replay: load(&self.drops_replay),
            drops_auth: load(&self.drops_auth),
            drops_selector: load(&self.drops_selector),
            offload: Offload::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Mode, SaKeys, Spi};

    fn child() -> Child {
        let keys = SaKeys { encr: vec![1; 36], integ: Vec::new() };
        let hosts = Hosts {
            local: "192.0.2.1:4500".parse().unwrap(),
            remote: "198.51.100.1:4500".parse().unwrap(),
            encap: true,
        };
        let spec = ChildSpec {
            id: ChildId(1),
            reqid: 1,
            spi_in: Spi(1000),
            spi_out: Spi(2000),
            suite: EspSuite::Aes256Gcm16,
            keys_in: keys.clone(),
            keys_out: keys,
            mode: Mode::Tunnel,
            hosts,
            local_selectors: Vec::new(),
            remote_selectors: Vec::new(),
            esn: false,
            replay_window: 64,
            first_seq_out: 0,
            limits: Limits::default(),
            outbound_active: true,
        };
        Child::new(&spec, Record::volatile(0)).unwrap()
    }

    fn from(port: u16) -> SocketAddr {
        SocketAddr::from(([203, 0, 113, 9], port))
    }

    #[test]
    fn a_peer_of_many_addresses_is_reported_once_a_second() {
        let child = child();
        let start = Instant::now();
        let mut events = Vec::new();
        for port in 1..=1000 {
            let now = start + Duration::from_millis(u64::from(port) * 2);
            child.seen_from(from(port), now, &mut events);
            // That the control plane follows is no reason to report more.
            child.set_hosts(Hosts { remote: from(port), ..child.hosts() });
        }
        assert_eq!(events.len(), 2, "in two seconds");
        child.seen_from(from(2000), start + Duration::from_secs(9), &mut events);
        let last = PlaneEvent::Mapping { child: ChildId(1), remote: from(2000) };
        assert_eq!(events.last(), Some(&last), "a real move is reported");
    }
}
