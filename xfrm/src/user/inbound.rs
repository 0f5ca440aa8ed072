//! Packets from the outer network: encapsulation socket → ESP → tunnel interface.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};

use super::child::{Child, locked};
use super::counters::DropReason;
use super::ecn::{self, Decapsulation};
use super::esp::{self, NEXT_IPV4, NEXT_IPV6, NEXT_NONE, OpenError};
use super::fragment::{self, Tracker};
use super::gro::{Coalescer, MAX_SEGMENTS};
use super::icmp::{self, Limiter};
use super::mss;
use super::mtu;
use super::packet::Packet;
use super::plane::{Shared, clock};
use super::selector::{Direction, Verdict, judge_subject};
use super::sys;
use super::tun::TunQueue;
use crate::dataplane::PlaneEvent;
use crate::model::Spi;
use crate::udp::{Datagram, NON_ESP_MARKER, RecvRing, UdpPort};

/// Buffers per read; with UDP GRO each may hold dozens of datagrams.
const SLOTS: usize = 16;
/// Unknown SPIs reported a second; more tell nothing new and cost the control plane.
const NO_SA_PER_SECOND: u32 = 20;
/// Length of an IKE header (RFC 7296 3.1); less is no IKE message.
const IKE_HEADER: usize = 28;

/// What a worker keeps between batches.
struct Worker<'a> {
    shared: &'a Shared,
    tracker: Tracker,
    no_sa: Limiter,
    events: Vec<PlaneEvent>,
    now: Instant,
    uptime: Duration,
}

/// The thread of one encapsulation socket: until the plane stops.
pub(super) fn run(shared: &Shared, index: usize, queue: &TunQueue) {
    let Some(port) = shared.ports.get(index) else { return };
    let mut ring = RecvRing::with_slots(SLOTS);
    let (now, uptime) = clock(shared);
    let mut worker = Worker {
        shared,
        tracker: Tracker::default(),
        no_sa: Limiter::new(NO_SA_PER_SECOND, now),
        events: Vec::new(),
        now,
        uptime,
    };
    while !shared.stopping() {
        match port.recv(&mut ring) {
            Ok(()) => worker.batch(&mut ring, queue),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => wait(shared, port),
            Err(error) => {
                tracing::debug!(%error, "receive failed");
                drain_errors(shared, port);
                wait(shared, port);
            }
        }
    }
}

fn wait(shared: &Shared, port: &UdpPort) {
    let mut fds = [PollFd::new(port, PollFlags::IN), PollFd::new(&shared.wake, PollFlags::IN)];
    if poll(&mut fds, None).is_err() {
        return;
    }
    if fds.first().is_some_and(|fd| fd.revents().contains(PollFlags::ERR)) {
        drain_errors(shared, port);
    }
}

/// ICMP errors about packets we sent: a narrower path is measured again.
fn drain_errors(shared: &Shared, port: &UdpPort) {
    while let Ok(Some(error)) = sys::recv_error(port.as_fd()) {
        if let (libc::EMSGSIZE, Some(remote)) = (error.errno, error.remote) {
            shared.keeper.request(remote.ip());
        }
    }
}

impl Worker<'_> {
    fn batch(&mut self, ring: &mut RecvRing, queue: &TunQueue) {
        (self.now, self.uptime) = clock(self.shared);
        {
            // Held until the last write: a removal waits for it.
            let table = self.shared.table();
            let mut coalescer = Coalescer::with_capacity(MAX_SEGMENTS);
            // Neighbours nearly always belong to the same child.
            let mut last: Option<&Child> = None;
            for datagram in ring.datagrams() {
                let (from, to, tos) = (datagram.remote, datagram.local, datagram.tos);
                let Some((spi, seq)) = self.triage(&datagram) else { continue };
                let child = match last.filter(|child| child.spi_in == spi) {
                    Some(child) => child,
                    None => match table.by_spi(spi) {
                        Some(child) => child,
                        None => {
                            self.no_sa(spi, to, from);
                            continue;
                        }
                    },
                };
                last = Some(child);
                match self.accept(child, seq, datagram.payload, from, tos) {
                    Ok((bytes, packet)) => coalescer.push(bytes, &packet),
                    Err(reason) => self.shared.drops.add(reason, 1),
                }
            }
            self.write(coalescer, queue);
        }
        self.shared.deliver(&mut self.events);
    }

    /// Sorts a datagram by its first bytes (RFC 3948 2); SPI and sequence number if it is ESP.
    fn triage(&mut self, datagram: &Datagram<'_>) -> Option<(u32, u32)> {
        match &*datagram.payload {
            [0xff] => None,
            bytes if bytes.first_chunk() == Some(&NON_ESP_MARKER) => {
                match bytes.get(NON_ESP_MARKER.len()..) {
                    Some(message) if message.len() >= IKE_HEADER => {
                        self.events.push(PlaneEvent::Ike {
                            local: datagram.local,
                            remote: datagram.remote,
                            payload: message.to_vec(),
                        });
                    }
                    _ => self.shared.drops.add(DropReason::Malformed, 1),
                }
                None
            }
            bytes => {
                let header = esp::header(bytes);
                if header.is_none() {
                    self.shared.drops.add(DropReason::Malformed, 1);
                }
                header
            }
        }
    }

    fn no_sa(&mut self, spi: u32, local: SocketAddr, remote: SocketAddr) {
        self.shared.drops.add(DropReason::NoSa, 1);
        if self.no_sa.allow(self.now) {
            self.events.push(PlaneEvent::NoSa { spi: Spi(spi), local, remote });
        }
    }

    /// Every check between an ESP packet and the tunnel interface.
    fn accept<'p>(
        &mut self,
        child: &Child,
        seq_low: u32,
        payload: &'p mut [u8],
        remote: SocketAddr,
        outer_tos: u8,
    ) -> Result<(&'p mut [u8], Packet), DropReason> {
        if child.expired() {
            return Err(DropReason::Expired);
        }
        let replayed = || {
            child.drops_replay.fetch_add(1, Ordering::Relaxed);
            DropReason::Replay
        };
        let seq = {
            let window = locked(&child.replay);
            let seq = window.infer(seq_low);
            if !window.check(seq) {
                return Err(replayed());
            }
            seq
        };
        let (next, range) = child.opener.open(seq, payload).map_err(|error| match error {
            OpenError::Auth => {
                child.drops_auth.fetch_add(1, Ordering::Relaxed);
                DropReason::Auth
            }
            OpenError::Length | OpenError::Padding => DropReason::Malformed,
        })?;
        let newest = child.accept_sequence(seq).ok_or_else(replayed)?;
        if newest {
            child.seen_from(remote, self.now, &mut self.events);
        }
        let bytes = payload.get_mut(range).ok_or(DropReason::Malformed)?;
        match next {
            NEXT_NONE => return Err(DropReason::Dummy),
            NEXT_IPV4 | NEXT_IPV6 => {}
            _ => return Err(DropReason::Malformed),
        }
        let packet = Packet::parse(bytes).ok_or(DropReason::Malformed)?;
        if packet.is_v6() != (next == NEXT_IPV6) {
            return Err(DropReason::Malformed);
        }
        self.permitted(child, bytes, &packet).inspect_err(|_| {
            child.drops_selector.fetch_add(1, Ordering::Relaxed);
        })?;
        // What follows the packet is padding for traffic flow confidentiality (RFC 4303 2.7).
        let bytes = bytes.get_mut(..packet.len).ok_or(DropReason::Malformed)?;
        match ecn::decapsulate(packet.tos, outer_tos) {
            Decapsulation::Keep => {}
            Decapsulation::Set(tos) => ecn::set_tos(bytes, tos),
            Decapsulation::Drop => return Err(DropReason::Ecn),
        }
        mss::clamp(bytes, &packet, mtu::mss(child.tunnel_mtu(), packet.is_v6()));
        child.received(packet.len as u64, self.uptime, &mut self.events);
        Ok((bytes, packet))
    }

    /// Source and destination against the selectors (RFC 4301 5.2 step 4).
    fn permitted(
        &mut self,
        child: &Child,
        bytes: &[u8],
        packet: &Packet,
    ) -> Result<(), DropReason> {
        if fragment::evasive(packet) {
            return Err(DropReason::Fragment);
        }
        let subject = icmp::subject(bytes, packet);
        match judge_subject(&child.local, &child.remote, packet, &subject, Direction::Inbound) {
            Verdict::Pass => {
                self.tracker.note(child.id.0, packet, self.now);
                Ok(())
            }
            Verdict::PassIfFirstDid => {
                if self.tracker.first_passed(child.id.0, packet, self.now) {
                    Ok(())
                } else {
                    Err(DropReason::Fragment)
                }
            }
            Verdict::Refuse => Err(DropReason::Selector),
        }
    }

    fn write(&self, coalescer: Coalescer<'_>, queue: &TunQueue) {
        let mut failed = 0u64;
        coalescer.finish(|vnet, parts, packets| {
            let head = vnet.to_bytes();
            let mut slices = [IoSlice::new(&[]); MAX_SEGMENTS + 1];
            let mut used = 0usize;
            let parts = std::iter::once(&head[..]).chain(parts.iter().copied());
            for (slot, part) in slices.iter_mut().zip(parts) {
                *slot = IoSlice::new(part);
                used = used.saturating_add(1);
            }
            if queue.write(slices.get(..used).unwrap_or_default()).is_err() {
                failed = failed.saturating_add(packets as u64);
            }
        });
        if failed > 0 {
            self.shared.drops.add(DropReason::TunFailed, failed);
        }
    }
}
