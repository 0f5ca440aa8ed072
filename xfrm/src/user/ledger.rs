//! Sequence numbers of child SAs, kept where they outlive the process.
//!
//! A child SA that goes on after a restart goes on with its keys. What it sends must be numbered
//! above everything it has sent, or (key, IV) pairs repeat (RFC 4106 3.1); what it accepts must be
//! above everything it has accepted, or packets can be replayed (RFC 4303 3.4.3). Both numbers are
//! counted right in the file: there is no instant at which it lags behind.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::mem::size_of;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::child::locked;
use super::shared_words::SharedWords;

/// The first word of the file; another layout has another one.
const MAGIC: u64 = 0x5275_6e6e_656c_7331;

/// Children at most; what is more is not kept.
const SLOTS: usize = 65_536;

/// Words of one slot: two cache lines, so that what is sent and what is received (by different
/// threads) never share one.
const SLOT_WORDS: usize = 16;

/// Words before the first slot: the magic, and how many slots were ever used.
const HEADER_WORDS: usize = SLOT_WORDS;
const USED: usize = 1;

/// Octets of the file.
pub const SEQUENCES_OCTETS: u64 = ((HEADER_WORDS + SLOTS * SLOT_WORDS) * size_of::<u64>()) as u64;

/// Words of a slot.
const SPIS: usize = 0;
const SENT: usize = 1;
const RECEIVED: usize = 8;

/// The file, and which of its slots are free.
#[derive(Debug)]
pub(super) struct Ledger {
    words: SharedWords,
    slots: Mutex<Slots>,
    /// What is in the file stays there from now on.
    sealed: AtomicBool,
}

#[derive(Debug, Default)]
struct Slots {
    free: Vec<usize>,
    /// Slots of an earlier process, by SPIs.
    left: HashMap<u64, usize>,
    used: usize,
}

/// The two numbers of a child.
#[derive(Debug)]
pub(super) enum Record {
    /// Nobody takes it over.
    Volatile([AtomicU64; 2]),
    /// In the file; given back when it is dropped.
    Kept(Arc<Ledger>, usize),
}

impl Ledger {
    /// Opens or makes the file (mode 0600). One of another layout begins anew.
    ///
    /// # Errors
    /// What the operating system refuses.
    pub(super) fn open(path: &Path) -> io::Result<Arc<Self>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC).open(path)?;
        Self::over(&file)
    }

    fn over(file: &File) -> io::Result<Arc<Self>> {
        let mut magic = [0; size_of::<u64>()];
        if file.read_at(&mut magic, 0)? < magic.len() || u64::from_ne_bytes(magic) != MAGIC {
            // Also gives back what memory it had.
            file.set_len(0)?;
        }
        let words = SharedWords::map(file, HEADER_WORDS + SLOTS * SLOT_WORDS)?;
        let ledger = Self { words, slots: Mutex::default(), sealed: AtomicBool::new(false) };
        ledger.word(0).store(MAGIC, Ordering::Relaxed);
        {
            let mut slots = locked(&ledger.slots);
            let used = usize::try_from(ledger.word(USED).load(Ordering::Relaxed));
            slots.used = used.unwrap_or(SLOTS).min(SLOTS);
            for slot in 0..slots.used {
                match ledger.slot(slot, SPIS).load(Ordering::Relaxed) {
                    0 => slots.free.push(slot),
                    spis => {
                        slots.left.insert(spis, slot);
                    }
                }
            }
        }
        Ok(Arc::new(ledger))
    }

    /// A record that begins at nothing sent and nothing received.
    pub(super) fn fresh(self: &Arc<Self>, spi_in: u32, spi_out: u32, sent: u64) -> Record {
        let mut slots = locked(&self.slots);
        // One that nobody took over is of no use to anybody once its SPIs are given anew.
        let stale = slots.left.remove(&spis(spi_in, spi_out));
        let slot = stale.or_else(|| slots.free.pop()).or_else(|| {
            let next = (slots.used < SLOTS).then_some(slots.used)?;
            slots.used = next.saturating_add(1);
            self.word(USED).store(slots.used as u64, Ordering::Relaxed);
            Some(next)
        });
        let slot = slot.or_else(|| {
            let any = slots.left.keys().next().copied()?;
            slots.left.remove(&any)
        });
        let Some(slot) = slot else {
            return Record::volatile(sent);
        };
        // The name last: a slot with a name always has its own numbers.
        self.slot(slot, SPIS).store(0, Ordering::Release);
        self.slot(slot, SENT).store(sent, Ordering::Release);
        self.slot(slot, RECEIVED).store(0, Ordering::Release);
        self.slot(slot, SPIS).store(spis(spi_in, spi_out), Ordering::Release);
        Record::Kept(Arc::clone(self), slot)
    }

    /// The record that an earlier process left of a child.
    pub(super) fn left(self: &Arc<Self>, spi_in: u32, spi_out: u32) -> Option<Record> {
        let slot = locked(&self.slots).left.remove(&spis(spi_in, spi_out))?;
        Some(Record::Kept(Arc::clone(self), slot))
    }

    /// From now on records stay in the file when they are dropped.
    pub(super) fn seal(&self) {
        self.sealed.store(true, Ordering::Relaxed);
    }

    fn give_back(&self, slot: usize) {
        if self.sealed.load(Ordering::Relaxed) {
            return;
        }
        self.slot(slot, SPIS).store(0, Ordering::Relaxed);
        locked(&self.slots).free.push(slot);
    }

    fn slot(&self, slot: usize, word: usize) -> &AtomicU64 {
        self.word(HEADER_WORDS + slot * SLOT_WORDS + word)
    }

    fn word(&self, index: usize) -> &AtomicU64 {
        // Slots come from `slots`, which counts to SLOTS; the file is mapped for as many.
        #[allow(clippy::indexing_slicing)]
        &self.words.words()[index]
    }
}

impl Record {
    /// One that ends with the process.
    pub(super) fn volatile(sent: u64) -> Self {
        Self::Volatile([AtomicU64::new(sent), AtomicU64::new(0)])
    }

    /// The last sequence number used.
    pub(super) fn sent(&self) -> &AtomicU64 {
        match self {
            Self::Volatile([sent, _]) => sent,
            Self::Kept(ledger, slot) => ledger.slot(*slot, SENT),
        }
    }

    /// The highest sequence number accepted.
    pub(super) fn received(&self) -> &AtomicU64 {
        match self {
            Self::Volatile([_, received]) => received,
            Self::Kept(ledger, slot) => ledger.slot(*slot, RECEIVED),
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if let Self::Kept(ledger, slot) = self {
            ledger.give_back(*slot);
        }
    }
}

fn spis(spi_in: u32, spi_out: u32) -> u64 {
    u64::from(spi_in) << 32 | u64::from(spi_out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(record: &Record) -> (u64, u64) {
        (record.sent().load(Ordering::Relaxed), record.received().load(Ordering::Relaxed))
    }

    #[test]
    fn a_killed_process_leaves_its_numbers_to_the_next() {
        let file = tempfile::tempfile().unwrap();
        let ledger = Ledger::over(&file).unwrap();
        let one = ledger.fresh(1000, 2000, 0);
        let other = ledger.fresh(1001, 2001, 5);
        one.sent().store(70, Ordering::Relaxed);
        one.received().store(90, Ordering::Relaxed);
        // Nothing is dropped in a process that is killed.
        std::mem::forget((one, other));

        let next = Ledger::over(&file).unwrap();
        let one = next.left(1000, 2000).unwrap();
        assert_eq!(numbers(&one), (70, 90));
        assert!(next.left(1000, 2000).is_none(), "one child takes it over");
        assert!(next.left(1000, 2001).is_none(), "both SPIs name it");
        assert_eq!(numbers(&next.left(1001, 2001).unwrap()), (5, 0));
    }

    #[test]
    fn what_ended_is_not_taken_over_and_its_slot_is_used_again() {
        let file = tempfile::tempfile().unwrap();
        let ledger = Ledger::over(&file).unwrap();
        drop(ledger.fresh(1000, 2000, 3));
        let again = ledger.fresh(1001, 2001, 0);
        assert_eq!(numbers(&again), (0, 0), "and begins at nothing");
        assert_eq!(locked(&ledger.slots).used, 1);
        ledger.seal();
        drop(again);
        let next = Ledger::over(&file).unwrap();
        assert!(next.left(1000, 2000).is_none());
        assert!(next.left(1001, 2001).is_some(), "it was sealed before the end");
    }

    #[test]
    fn a_full_file_keeps_no_more_and_takes_what_nobody_took_over_first() {
        let file = tempfile::tempfile().unwrap();
        let ledger = Ledger::over(&file).unwrap();
        let all: Vec<Record> = (0..SLOTS as u32).map(|spi| ledger.fresh(spi, 1, 0)).collect();
        assert!(matches!(ledger.fresh(1, 2, 9), Record::Volatile(_)));
        std::mem::forget(all);
        let next = Ledger::over(&file).unwrap();
        assert!(matches!(next.fresh(1, 2, 9), Record::Kept(..)));
    }

    #[test]
    fn a_file_of_another_layout_begins_anew() {
        let file = tempfile::tempfile().unwrap();
        let ledger = Ledger::over(&file).unwrap();
        std::mem::forget(ledger.fresh(1000, 2000, 3));
        ledger.word(0).store(1, Ordering::Relaxed);
        drop(ledger);
        let next = Ledger::over(&file).unwrap();
        assert!(next.left(1000, 2000).is_none());
        assert_eq!(locked(&next.slots).used, 0);
    }
}
