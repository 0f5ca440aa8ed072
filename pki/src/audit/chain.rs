//! The audit trail's hash chain: its lines, and what was done to them.
//!
//! Every record names the hash of the one before it, so that whoever changes, removes, moves or adds
//! one must rewrite all that follow; the store seals the last hash with a key that is not in it. A
//! line holds the record as stored behind its place in the chain, and can be verified without the
//! store.

use std::io::BufRead;
use std::time::Duration;

use super::LOG;
use super::begin::{self, Beginning};
use super::checkpoint::{Broken, CheckpointVerifier, Checkpoints, Signed};
use crate::error::Error;
use crate::issue::hex;
use crate::store::{LogEntry, LogHead, LogSeal, Store};
use crate::time::UnixTime;

/// Records read at once.
pub(super) const PAGE: usize = 1_000;
/// Faults told; a trail that is broken everywhere needs no longer list.
const MAX_FAULTS: usize = 100;
/// Looks at an end that moves while it is being looked at.
const LOOKS: usize = 4;

const SEQUENCE: &str = "{\"event.sequence\":";
const HASH: &str = ",\"event.hash\":\"";
const PREVIOUS: &str = "\",\"runnel.audit.previous\":\"";

/// What is wrong at one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// A record is not what was written.
    Edited,
    /// The record before this one is not the one it was written after.
    Rewritten,
    /// Records are missing between two others.
    Missing,
    /// A record stands behind a later one, or twice.
    Misplaced,
    /// Records are missing at the end.
    Truncated,
    /// Records were added that the gateway did not write.
    Added,
    /// The sealed end is gone or not sealed by this gateway.
    Unsealed,
    /// A line of a copy is no line of a trail.
    Unreadable,
    /// A copy's record is not the trail's.
    Differs,
    /// A checkpoint is not signed by this gateway.
    Forged,
    /// Nothing is signed by this gateway.
    Unsigned,
    /// The last checkpoint is older than it may be: the end is missing, or the gateway is down.
    Stale,
}

impl FaultKind {
    /// The word in listings.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Edited => "edited",
            Self::Rewritten => "rewritten",
            Self::Missing => "missing",
            Self::Misplaced => "misplaced",
            Self::Truncated => "truncated",
            Self::Added => "added",
            Self::Unsealed => "unsealed",
            Self::Unreadable => "unreadable",
            Self::Differs => "differs",
            Self::Forged => "forged",
            Self::Unsigned => "unsigned",
            Self::Stale => "stale",
        }
    }
}

/// One fault of a trail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainFault {
    /// The kind.
    pub kind: FaultKind,
    /// The record, or the first of several.
    pub seq: u64,
    /// In a copy: its line, from 1.
    pub line: Option<u64>,
    /// One sentence.
    pub what: String,
}

/// What a look at a trail found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChainReport {
    /// Records looked at.
    pub records: u64,
    /// The first record; 0 when there is none.
    pub first: u64,
    /// The last record.
    pub last: u64,
    /// The last record's hash, hexadecimal.
    pub hash: String,
    /// Whether the end was compared with its seal.
    pub sealed: bool,
    /// The last checkpoint, when there was a key to verify it with.
    pub signed: Option<Signed>,
    /// Of a trail whose oldest records were forgotten: the last of them.
    pub forgotten: Option<u64>,
    /// What is wrong; empty: nothing was touched.
    pub faults: Vec<ChainFault>,
}

impl ChainReport {
    /// Nothing was touched.
    pub fn is_sound(&self) -> bool {
        self.faults.is_empty()
    }

    fn fault(&mut self, kind: FaultKind, seq: u64, line: Option<u64>, what: String) {
        if self.faults.len() < MAX_FAULTS {
            self.faults.push(ChainFault { kind, seq, line, what });
        }
    }
}

/// A record as a line: its place in the chain, then what was stored.
pub fn render(entry: &LogEntry) -> String {
    let (hash, previous) = (hex(&entry.hash), hex(&entry.prev));
    let head = format!("{SEQUENCE}{}{HASH}{hash}{PREVIOUS}{previous}\"", entry.seq);
    let value = String::from_utf8_lossy(&entry.value);
    match value.strip_prefix('{') {
        Some("}") => format!("{head}}}"),
        Some(rest) => format!("{head},{rest}"),
        None => format!("{head},{value}"),
    }
}

/// A line as the record it was made from; `None` when no record has this line.
pub fn parse(line: &str) -> Option<LogEntry> {
    let (seq, rest) = line.strip_prefix(SEQUENCE)?.split_once(HASH)?;
    let (hash, rest) = rest.split_once(PREVIOUS)?;
    let (previous, rest) = rest.split_once('"')?;
    let value = match rest.strip_prefix(',') {
        Some(rest) => format!("{{{rest}"),
        None => format!("{{{rest}"),
    };
    let entry = LogEntry {
        seq: seq.parse().ok()?,
        value: value.into_bytes(),
        prev: octets(previous)?,
        hash: octets(hash)?,
    };
    (render(&entry) == line).then_some(entry)
}

pub(super) fn octets(text: &str) -> Option<[u8; 32]> {
    let mut octets = [0u8; 32];
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if pairs.len() != octets.len() || !rest.is_empty() {
        return None;
    }
    for (octet, pair) in octets.iter_mut().zip(pairs) {
        let [high, low] = pair.map(|digit| char::from(digit).to_digit(16));
        *octet = u8::try_from(high? * 16 + low?).ok()?;
    }
    Some(octets)
}

/// Follows a chain record by record.
#[derive(Debug, Default)]
pub(super) struct Walk {
    report: ChainReport,
    last_hash: [u8; 32],
    checkpoints: Checkpoints,
}

impl Walk {
    fn with(verifier: Option<CheckpointVerifier>) -> Self {
        Self { checkpoints: Checkpoints::with(verifier), ..Self::default() }
    }

    /// Over a trail whose oldest records may have been forgotten.
    pub(super) fn begun(
        verifier: Option<CheckpointVerifier>,
        beginning: Option<&Beginning>,
    ) -> Self {
        let mut walk = Self::with(verifier);
        let Some(beginning) = beginning else { return walk };
        if verifier.is_some_and(|verifier| !beginning.is_of(&verifier)) {
            let what = format!(
                "the beginning behind record {} was forged, or signed by another gateway: who wrote \
                 it may have removed what is missing before",
                beginning.record
            );
            walk.report.fault(FaultKind::Forged, beginning.record, None, what);
        }
        if verifier.is_none() {
            let what = format!(
                "the trail begins behind record {}: whether this gateway forgot what came before \
                 cannot be told without its key (--seal-key, or --key)",
                beginning.record
            );
            walk.report.fault(FaultKind::Unsigned, beginning.record, None, what);
        }
        walk.report.last = beginning.record;
        walk.report.forgotten = Some(beginning.record);
        if let Some(hash) = beginning.octets() {
            walk.last_hash = hash;
            walk.checkpoints.begin(beginning.record + 1, hash);
        }
        walk
    }

    /// The last record so far.
    pub(super) fn last(&self) -> u64 {
        self.report.last
    }

    /// The last record that a verified checkpoint stands for.
    pub(super) fn signed(&self) -> Option<u64> {
        self.checkpoints.signed.as_ref().map(|signed| signed.record)
    }

    /// What is wrong so far.
    pub(super) fn fault(&self) -> Option<&ChainFault> {
        self.report.faults.first()
    }

    pub(super) fn record(&mut self, entry: &LogEntry, line: Option<u64>) {
        let seq = entry.seq;
        let last = self.report.last;
        self.report.records += 1;
        let whole = LogEntry::expected_hash(&entry.prev, seq, &entry.value) == entry.hash;
        if !whole {
            let what = format!("record {seq} was edited: its hash is not that of what it says");
            self.report.fault(FaultKind::Edited, seq, line, what);
        } else if seq == last + 1
            && (self.report.first > 0 || seq == 1 || self.report.forgotten.is_some())
            && entry.prev != self.last_hash
        {
            let what = match last {
                0 => format!("record {seq} was rewritten: it names a record before the first"),
                _ if self.report.first == 0 => {
                    format!("record {seq} was rewritten: the trail does not begin with it as it is")
                }
                _ => format!(
                    "record {last} or {seq} was rewritten: {seq} was not written after {last} as it is"
                ),
            };
            self.report.fault(FaultKind::Rewritten, seq, line, what);
        }
        if seq <= last && self.report.first == 0 {
            let what = format!("record {seq} was forgotten and is there again: somebody added it");
            self.report.fault(FaultKind::Added, seq, line, what);
            return;
        }
        if seq <= last {
            let what = match seq == last {
                true => format!("record {seq} is there twice"),
                false => format!("record {seq} stands behind record {last}"),
            };
            self.report.fault(FaultKind::Misplaced, seq, line, what);
            return;
        }
        if self.report.first == 0 {
            self.report.first = seq;
            if self.report.forgotten.is_none() {
                self.checkpoints.begin(seq, entry.prev);
            }
        }
        if seq > last + 1 && (self.report.records > 1 || line.is_none()) {
            let what = missing(last + 1, seq - 1);
            self.report.fault(FaultKind::Missing, last + 1, line, what);
        }
        if whole && Checkpoints::is_one(&entry.value) {
            match self.checkpoints.met(seq, &entry.value) {
                Ok(()) => {}
                Err(Broken::Forged(what)) => {
                    self.report.fault(FaultKind::Forged, seq, line, what);
                }
                Err(Broken::Other(what)) => {
                    self.report.fault(FaultKind::Rewritten, seq, line, what);
                }
            }
        }
        self.checkpoints.passed(seq, entry.hash);
        self.report.last = seq;
        self.last_hash = entry.hash;
    }

    fn end(mut self, head: Option<&LogHead>, seal: Option<&LogSeal>) -> ChainReport {
        let last = self.report.last;
        let Some(head) = head else {
            // Even a new gateway has written down that it made its CA.
            let what = match last {
                0 => "the trail is empty: all of it was removed",
                _ => "the trail has no sealed end: it was removed",
            };
            self.report.fault(FaultKind::Unsealed, last, None, what.to_owned());
            return self.told();
        };
        if let Some(seal) = seal {
            self.report.sealed = true;
            if !seal.opens(LOG, head) {
                let what =
                    "the end of the trail was not sealed by this gateway: it was rewritten, \
                            or this is another gateway's sealing key"
                        .to_owned();
                self.report.fault(FaultKind::Unsealed, head.seq, None, what);
            }
        }
        if head.seq > last {
            let what = format!("{} at the end", missing(last + 1, head.seq));
            self.report.fault(FaultKind::Truncated, last + 1, None, what);
        } else if head.seq < last {
            let what = format!("the trail ends with record {}: what follows was added", head.seq);
            self.report.fault(FaultKind::Added, head.seq + 1, None, what);
        } else if head.hash != self.last_hash {
            let what = format!("record {last} was rewritten: it is not the one that was sealed");
            self.report.fault(FaultKind::Rewritten, last, None, what);
        }
        self.told()
    }

    fn told(mut self) -> ChainReport {
        if self.report.last > 0 {
            self.report.hash = hex(&self.last_hash);
        }
        self.report.signed = self.checkpoints.signed;
        self.report
    }
}

fn missing(first: u64, last: u64) -> String {
    match first == last {
        true => format!("record {first} is missing"),
        false => format!("records {first} to {last} are missing"),
    }
}

/// Verifies the trail in a store, up to its sealed end. Without the seal's key everything but the end
/// is proven only against itself.
///
/// # Errors
/// When the store fails.
pub fn verify_store(
    store: &dyn Store,
    seal: Option<&LogSeal>,
    key: Option<CheckpointVerifier>,
) -> Result<ChainReport, Error> {
    let mut beginning = begin::stored(store)?;
    let mut walk = Walk::begun(key, beginning.as_ref().map(|(beginning, _)| beginning));
    let mut position = 0;
    let mut look = 0;
    loop {
        let page = store.log(LOG, position, PAGE)?;
        // What is forgotten meanwhile is not missing.
        if page.first().is_some_and(|first| first.seq > walk.last() + 1) {
            let now = begin::stored(store)?;
            if now != beginning {
                walk = Walk::begun(key, now.as_ref().map(|(beginning, _)| beginning));
                (beginning, position) = (now, 0);
                continue;
            }
        }
        for entry in &page {
            walk.record(entry, None);
            position = entry.seq;
        }
        if !page.is_empty() {
            continue;
        }
        // What is written meanwhile moves the end: only one that stays where it is tells something.
        let head = store.log_head(LOG)?;
        look += 1;
        if head.as_ref().is_none_or(|head| head.seq == position) || look >= LOOKS {
            return Ok(walk.end(head.as_ref(), seal));
        }
    }
}

/// What the signed checkpoints of a copy must show.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// The gateway's public key; without one checkpoints are only compared with the records.
    pub key: Option<CheckpointVerifier>,
    /// The last checkpoint is no older at this instant.
    pub fresh: Option<(Duration, UnixTime)>,
}

/// Verifies lines by themselves: the audit file, or what a log shipper kept of it. Lines may begin
/// with any record (the file was rotated), but must go on without a gap. What is missing at the end
/// only the trail itself can tell.
///
/// # Errors
/// When reading fails.
pub fn verify_lines(lines: impl BufRead) -> std::io::Result<ChainReport> {
    let mut walk = Walk::default();
    read_lines(&mut walk, lines)?;
    Ok(walk.told())
}

/// Verifies the files of one copy, the oldest first, away from the trail: with the public key of its
/// checkpoints nobody who has not the gateway's sealing key can have written it otherwise.
///
/// # Errors
/// When reading fails.
pub fn verify_files<R: BufRead>(
    files: impl IntoIterator<Item = R>,
    wanted: &Wanted,
) -> std::io::Result<ChainReport> {
    let mut walk = Walk::with(wanted.key);
    for file in files {
        read_lines(&mut walk, file)?;
    }
    let mut report = walk.told();
    if wanted.key.is_none() {
        return Ok(report);
    }
    match (&report.signed, wanted.fresh) {
        (None, _) => {
            let what = "no checkpoint of this gateway is in it: nothing of it is proven".to_owned();
            report.fault(FaultKind::Unsigned, report.last, None, what);
        }
        (Some(Signed { at, record, .. }), Some((age, now))) if now.since(*at) > age => {
            let what = format!(
                "the last checkpoint is of {at} and stands for record {record}: what came after it \
                 was cut off, or the gateway does not run"
            );
            report.fault(FaultKind::Stale, report.last + 1, None, what);
        }
        _ => {}
    }
    Ok(report)
}

fn read_lines(walk: &mut Walk, mut lines: impl BufRead) -> std::io::Result<()> {
    let mut number = 0;
    let mut line = Vec::new();
    loop {
        line.clear();
        if lines.read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        number += 1;
        let text = line.strip_suffix(b"\n").map(std::str::from_utf8);
        match text.and_then(Result::ok).and_then(parse) {
            Some(entry) => walk.record(&entry, Some(number)),
            None => {
                let seq = walk.report.last + 1;
                let what = format!("line {number} is no line of an audit trail");
                walk.report.fault(FaultKind::Unreadable, seq, Some(number), what);
            }
        }
    }
}

/// Verifies lines, and that they are copies of the trail in a store: the last one is enough, because
/// it stands for all before it.
///
/// # Errors
/// When the store fails or the lines cannot be read.
pub fn verify_copy(
    store: &dyn Store,
    lines: impl BufRead,
    key: Option<CheckpointVerifier>,
) -> Result<ChainReport, Error> {
    let mut walk = Walk::with(key);
    read_lines(&mut walk, lines).map_err(|cause| {
        Error::Invalid(format!("cannot read the copy of the audit trail: {cause}"))
    })?;
    let mut report = walk.told();
    if report.last > 0 {
        let original = store.log(LOG, report.last - 1, 1)?;
        let same = original
            .first()
            .is_some_and(|entry| entry.seq == report.last && hex(&entry.hash) == report.hash);
        let begun = begin::stored(store)?.map(|(beginning, _)| beginning);
        let forgotten = begun.as_ref().map_or(0, |beginning| beginning.record);
        if report.last < forgotten {
            // Nothing is left to compare it with: the checkpoint at its end proves it, or nothing does.
            let proven = |signed: &Signed| signed.checkpoint == report.last;
            if !report.signed.as_ref().is_some_and(proven) {
                let what = format!(
                    "the trail has forgotten its records up to {forgotten}, and the copy does not end \
                     with a checkpoint that was verified: what stands behind the last one is not proven"
                );
                report.fault(FaultKind::Unsigned, report.last, None, what);
            }
        } else if report.last == forgotten && begun.is_some_and(|b| b.hash == report.hash) {
            // The signed beginning is what the copy ends with.
        } else if !same {
            let what = format!("record {} of the copy is not that of the trail", report.last);
            report.fault(FaultKind::Differs, report.last, None, what);
        }
    }
    Ok(report)
}
