//! Packets from the tunnel interface: child by destination → ESP → encapsulation socket.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::io::{self, IoSlice};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, poll};

use super::child::Child;
use super::counters::DropReason;
use super::ecn;
use super::esp::{NEXT_IPV4, NEXT_IPV6};
use super::fragment::{self, Tracker};
use super::icmp::{self, Kind, Limiter};
use super::mss;
use super::mtu;
use super::offload::{Segments, VNET, Vnet};
use super::packet::Packet;
use super::plane::{Shared, clock};
use super::sender::Sender;
use super::table::{Route, Table};
use super::tun::TunQueue;
use crate::dataplane::PlaneEvent;

/// Packets (or super-packets) sealed before they are sent.
const READS: usize = 32;
/// Largest packet of the device: 64 KiB and its header.
const READ_BUFFER: usize = VNET + 65_536;
/// ICMP errors a second.
const ERRORS_PER_SECOND: u32 = 100;

/// What a worker keeps between batches.
struct Worker<'a> {
    shared: &'a Shared,
    queue: &'a TunQueue,
    sender: Sender,
    tracker: Tracker,
    errors: Limiter,
    events: Vec<PlaneEvent>,
    /// A segment or fragment before it is sealed.
    scratch: Vec<u8>,
    now: Instant,
}

/// The thread of one TUN queue: until the plane stops.
pub(super) fn run(shared: &Shared, queue: &TunQueue) {
    let mut buffer = vec![0u8; READ_BUFFER];
    let (now, _) = clock(shared);
    let mut worker = Worker {
        shared,
        queue,
        sender: Sender::new(),
        tracker: Tracker::default(),
        errors: Limiter::new(ERRORS_PER_SECOND, now),
        events: Vec::new(),
        scratch: Vec::new(),
        now,
    };
    let mut broken = false;
    while !shared.stopping() {
        match queue.read(&mut buffer) {
            Ok(len) => {
                broken = false;
                worker.batch(&mut buffer, len);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => wait(shared, queue),
            Err(error) => {
                // Set down it may come back up; deleted it will not. Say it once.
                if !std::mem::replace(&mut broken, true) {
                    tracing::error!(%error, "the tunnel interface cannot be read: was it deleted?");
                }
                wait_briefly(shared);
            }
        }
    }
}

fn wait(shared: &Shared, queue: &TunQueue) {
    let mut fds = [PollFd::new(queue, PollFlags::IN), PollFd::new(&shared.wake, PollFlags::IN)];
    let ready = poll(&mut fds, None).is_ok();
    let broken = PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL;
    if !ready || fds.first().is_some_and(|fd| fd.revents().intersects(broken)) {
        wait_briefly(shared);
    }
}

/// Keeps a broken descriptor from spinning.
fn wait_briefly(shared: &Shared) {
    let timeout = rustix::event::Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
    let _ = poll(&mut [PollFd::new(&shared.wake, PollFlags::IN)], Some(&timeout));
}

impl Worker<'_> {
    /// Seals the packet in the buffer and what else is waiting, then sends it all.
    fn batch(&mut self, buffer: &mut [u8], len: usize) {
        (self.now, _) = clock(self.shared);
        {
            // Held until the last datagram is sent: a removal waits for it.
            let table = self.shared.table();
            let mut next = Some(len);
            for _ in 0..READS {
                let Some(len) = next else { break };
                if let Some(bytes) = buffer.get_mut(..len)
                    && let Err(reason) = self.packet(&table, bytes)
                {
                    self.shared.drops.add(reason, 1);
                }
                if self.sender.is_full() {
                    break;
                }
                next = self.queue.read(buffer).ok();
            }
            self.sender.flush(self.shared);
        }
        self.shared.deliver(&mut self.events);
    }

    fn packet(&mut self, table: &Table, bytes: &mut [u8]) -> Result<(), DropReason> {
        let (vnet, bytes) = Vnet::split(bytes).ok_or(DropReason::Malformed)?;
        let packet = Packet::parse(bytes).ok_or(DropReason::Malformed)?;
        let bytes = bytes.get_mut(..packet.len).ok_or(DropReason::Malformed)?;
        let child = match self.route(table, bytes, &packet) {
            Ok(child) => child,
            Err((reason, kind)) => {
                if let Some(kind) = kind {
                    self.answer(bytes, &packet, kind);
                }
                return Err(reason);
            }
        };
        let limit = mtu::inner_mtu(child.tunnel_mtu(), packet.is_v6());
        if vnet.is_super() {
            let segments = Segments::plan(&vnet, bytes, &packet).ok_or(DropReason::Malformed)?;
            return self.segments(child, bytes, &packet, &segments, limit);
        }
        vnet.complete_checksum(bytes).ok_or(DropReason::Malformed)?;
        mss::clamp(bytes, &packet, mtu::mss(child.tunnel_mtu(), packet.is_v6()));
        if packet.len <= usize::from(limit) {
            return self.seal(child, &packet, packet.len, 1, |_, out| {
                out.copy_from_slice(bytes);
                Some(())
            });
        }
        if packet.dont_fragment {
            self.answer(bytes, &packet, Kind::TooBig(limit));
            return Err(DropReason::TooBig);
        }
        self.fragments(child, bytes, limit)
    }

    fn route<'t>(
        &mut self,
        table: &'t Table,
        bytes: &[u8],
        packet: &Packet,
    ) -> Result<&'t Child, (DropReason, Option<Kind>)> {
        match table.route(packet, &icmp::subject(bytes, packet)) {
            Route::Child(child) => {
                self.tracker.note(child.id.0, packet, self.now);
                Ok(child)
            }
            Route::ChildIfFirstDid(child) => {
                if self.tracker.first_passed(child.id.0, packet, self.now) {
                    Ok(child)
                } else {
                    Err((DropReason::Fragment, None))
                }
            }
            Route::Refused => Err((DropReason::Policy, Some(Kind::Prohibited))),
            Route::Nobody => Err((DropReason::NoChild, Some(Kind::Unreachable))),
        }
    }

    /// Seals every segment of a super-packet.
    fn segments(
        &mut self,
        child: &Child,
        bytes: &[u8],
        packet: &Packet,
        segments: &Segments,
        limit: u16,
    ) -> Result<(), DropReason> {
        if segments.max_len() <= usize::from(limit) {
            let count = segments.count();
            let last = segments.len(count.saturating_sub(1));
            let full = segments.len(0);
            // All but the last have one size: sealed side by side they leave as one UDP
            // super-packet.
            let (regular, rest) =
                if last == full { (count, None) } else { (count.saturating_sub(1), Some(last)) };
            self.seal(child, packet, full, regular, |at, out| segments.write(at, bytes, out))?;
            return match rest {
                Some(len) => self.seal(child, packet, len, 1, |_, out| {
                    segments.write(count.saturating_sub(1), bytes, out)
                }),
                None => Ok(()),
            };
        }
        let mut scratch = std::mem::take(&mut self.scratch);
        let mut result = Ok(());
        for index in 0..segments.count() {
            scratch.clear();
            scratch.resize(segments.len(index), 0);
            result = match segments.write(index, bytes, &mut scratch) {
                None => Err(DropReason::Malformed),
                Some(()) if packet.dont_fragment => {
                    // One answer, about the first segment, stands for all.
                    let first = Packet::parse(&scratch).ok_or(DropReason::Malformed);
                    first.and_then(|first| {
                        self.answer(&scratch, &first, Kind::TooBig(limit));
                        Err(DropReason::TooBig)
                    })
                }
                Some(()) => self.fragments(child, &scratch, limit),
            };
            if result.is_err() {
                break;
            }
        }
        self.scratch = scratch;
        result
    }

    /// Fragments a packet before sealing (RFC 4301 8.2.1 leaves the choice; before is what a
    /// receiver without reassembly of ESP can take).
    fn fragments(&mut self, child: &Child, bytes: &[u8], limit: u16) -> Result<(), DropReason> {
        let packet = Packet::parse(bytes).ok_or(DropReason::Malformed)?;
        if packet.len <= usize::from(limit) {
            return self.seal(child, &packet, packet.len, 1, |_, out| {
                out.copy_from_slice(bytes.get(..packet.len)?);
                Some(())
            });
        }
        let mut result = Ok(());
        fragment::split(bytes, &packet, usize::from(limit), |piece| {
            let sealed = self.seal(child, &packet, piece.len(), 1, |_, out| {
                out.copy_from_slice(piece);
                Some(())
            });
            if sealed.is_err() {
                result = sealed;
            }
        })
        .ok_or(DropReason::Malformed)?;
        result
    }

    /// Seals `count` packets of `len` bytes; `fill` writes each.
    fn seal(
        &mut self,
        child: &Child,
        packet: &Packet,
        len: usize,
        count: usize,
        mut fill: impl FnMut(usize, &mut [u8]) -> Option<()>,
    ) -> Result<(), DropReason> {
        if count == 0 {
            return Ok(());
        }
        if child.expired() {
            return Err(DropReason::Expired);
        }
        let first =
            child.take_sequence(count as u64, &mut self.events).ok_or(DropReason::Expired)?;
        let hosts = child.hosts();
        let tos = ecn::outer_tos(packet.tos);
        let next = if packet.is_v6() { NEXT_IPV6 } else { NEXT_IPV4 };
        let sealed = child.sealer.sealed_len(len);
        let offset = child.sealer.payload_offset();
        for (at, seq) in (0..count).zip(first..) {
            let sealer = &child.sealer;
            self.sender
                .push(sealed, &hosts, tos, |out| {
                    fill(at, out.get_mut(offset..offset.checked_add(len)?)?)?;
                    sealer.seal(seq, next, len, out)
                })
                .ok_or(DropReason::Malformed)?;
        }
        child.sent((len as u64).saturating_mul(count as u64), count as u64, &mut self.events);
        Ok(())
    }

    /// Tells the sender of a packet why it does not pass.
    fn answer(&mut self, bytes: &[u8], packet: &Packet, kind: Kind) {
        if !self.errors.allow(self.now) {
            return;
        }
        if let Some(error) = icmp::error(bytes, packet, kind) {
            let head = Vnet::default().to_bytes();
            // A full queue loses the answer like any network may.
            let _ = self.queue.write(&[IoSlice::new(&head), IoSlice::new(&error)]);
        }
    }
}
