//! Sealed datagrams on their way to the encapsulation sockets: laid side by side, joined into UDP
//! super-packets (GSO), sent in batches.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::io;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::counters::DropReason;
use super::plane::{Shared, port_for};
use super::sys::{BATCH, SendItem};
use crate::model::Hosts;
use crate::udp::UdpPort;

/// Room for several super-packets of the device.
const CAPACITY: usize = 768 * 1024;
/// Flushed when fuller than this: a whole super-packet of the smallest segments Linux makes (48
/// bytes of payload, each with headers and ESP overhead) still fits.
const HIGH_WATER: usize = CAPACITY - 384 * 1024;
/// Datagrams in one UDP super-packet at most (`UDP_MAX_SEGMENTS`).
const MAX_SEGMENTS: usize = 64;
/// Bytes in one UDP super-packet at most.
const MAX_RUN: usize = 65_000;
/// How long a full socket buffer may hold up a batch, and with it every control operation.
const PATIENCE: Duration = Duration::from_millis(10);

/// Neighbouring datagrams to one place; all of `segment` bytes but the last.
#[derive(Debug, Clone, Copy)]
struct Run {
    start: usize,
    len: usize,
    segment: usize,
    count: usize,
    closed: bool,
    hosts: Hosts,
    tos: u8,
}

/// The send queue of one worker.
pub(super) struct Sender {
    buffer: Vec<u8>,
    used: usize,
    runs: Vec<Run>,
    gso: bool,
}

impl Sender {
    pub(super) fn new() -> Self {
        Self { buffer: vec![0; CAPACITY], used: 0, runs: Vec::with_capacity(256), gso: true }
    }

    pub(super) fn is_full(&self) -> bool {
        self.used > HIGH_WATER
    }

    /// Appends a datagram of `len` bytes that `fill` writes; `None` when it failed or there is no
    /// room.
    pub(super) fn push(
        &mut self,
        len: usize,
        hosts: &Hosts,
        tos: u8,
        fill: impl FnOnce(&mut [u8]) -> Option<()>,
    ) -> Option<()> {
        let end = self.used.checked_add(len)?;
        fill(self.buffer.get_mut(self.used..end)?)?;
        let start = std::mem::replace(&mut self.used, end);
        if let Some(run) = self.runs.last_mut() {
            let fits = !run.closed
                && self.gso
                && run.hosts == *hosts
                && run.tos == tos
                && len <= run.segment
                && run.count < MAX_SEGMENTS
                && run.len.checked_add(len)? <= MAX_RUN;
            if fits {
                run.len = run.len.checked_add(len)?;
                run.count = run.count.checked_add(1)?;
                run.closed = len < run.segment;
                return Some(());
            }
        }
        let run = Run { start, len, segment: len, count: 1, closed: false, hosts: *hosts, tos };
        self.runs.push(run);
        Some(())
    }

    /// Sends everything.
    pub(super) fn flush(&mut self, shared: &Shared) {
        let mut rest = self.runs.as_slice();
        let mut failed = 0usize;
        while let Some(first) = rest.first() {
            let local = first.hosts.local;
            let same = rest.iter().take(BATCH).take_while(|run| run.hosts.local == local).count();
            let (batch, after) = rest.split_at(same);
            rest = after;
            match port_for(&shared.ports, local) {
                Some(port) => {
                    failed = failed.saturating_add(send(
                        shared,
                        port,
                        &self.buffer,
                        batch,
                        &mut self.gso,
                    ));
                }
                None => failed = failed.saturating_add(batch.iter().map(|run| run.count).sum()),
            }
        }
        if failed > 0 {
            shared.drops.add(DropReason::SendFailed, failed as u64);
        }
        self.runs.clear();
        self.used = 0;
    }
}

fn item<'b>(buffer: &'b [u8], run: &Run) -> SendItem<'b> {
    let end = run.start.saturating_add(run.len);
    SendItem {
        bytes: buffer.get(run.start..end).unwrap_or_default(),
        remote: run.hosts.remote,
        source: run.hosts.local.ip(),
        tos: run.tos,
        segment: if run.count > 1 { run.segment } else { 0 },
    }
}

/// Sends a batch through one port; returns how many datagrams were lost.
fn send(shared: &Shared, port: &UdpPort, buffer: &[u8], batch: &[Run], gso: &mut bool) -> usize {
    let mut failed = 0usize;
    let mut patience = 1u32;
    let mut rest = batch;
    while let Some(first) = rest.first() {
        let mut items = [SendItem {
            bytes: &[],
            remote: first.hosts.remote,
            source: first.hosts.local.ip(),
            tos: 0,
            segment: 0,
        }; BATCH];
        let count = rest.len().min(BATCH);
        for (slot, run) in items.iter_mut().zip(rest) {
            *slot = item(buffer, run);
        }
        match port.send_batch(items.get(..count).unwrap_or_default()) {
            Ok(sent) => {
                rest = rest.get(sent.max(1)..).unwrap_or_default();
                continue;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && patience > 0 => {
                patience = patience.saturating_sub(1);
                let _ = poll(
                    &mut [PollFd::new(port, PollFlags::OUT)],
                    Some(&Timespec { tv_sec: 0, tv_nsec: PATIENCE.subsec_nanos().into() }),
                );
                continue;
            }
            Err(error) => {
                failed = failed.saturating_add(retry_singly(shared, port, buffer, first, &error));
                // A path without checksum offload refuses every super-packet.
                if matches!(error.raw_os_error(), Some(libc::EIO | libc::EOPNOTSUPP)) {
                    *gso = false;
                }
            }
        }
        rest = rest.get(1..).unwrap_or_default();
    }
    failed
}

/// Sends the datagrams of a refused run one by one, in fragments if need be: until the path is
/// measured again, and for inner IPv6 of 1280 bytes on a path that takes less.
fn retry_singly(
    shared: &Shared,
    port: &UdpPort,
    buffer: &[u8],
    run: &Run,
    error: &io::Error,
) -> usize {
    let too_large = matches!(error.raw_os_error(), Some(libc::EMSGSIZE | libc::EINVAL));
    if too_large {
        shared.keeper.request(run.hosts.remote.ip());
    } else if run.count <= 1 {
        return 1;
    }
    let whole = item(buffer, run);
    let singles = |bytes| SendItem { bytes, segment: 0, ..whole };
    let mut failed = 0usize;
    for bytes in whole.bytes.chunks(run.segment.max(1)) {
        let single = [singles(bytes)];
        let sent = if too_large {
            port.send_fragmented(&single)
        } else {
            port.send_batch(&single).map(drop)
        };
        if sent.is_err() {
            failed = failed.saturating_add(1);
        }
    }
    failed
}
