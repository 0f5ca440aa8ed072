//! The store's contract: ordered keys, compare-and-swap transactions, hash-chained logs, watches.
//!
//! Values go in and come out synchronously. **Nothing is acknowledged before it is durable**:
//! when [`Store::transact`] returns `Committed`, the writes survive the loss of the process and
//! of power. Secondary indexes are keys written in the same transaction; expiry is an audited
//! transaction of the caller, never a backend's time-to-live.

mod memory;
mod replay;
mod sqlite;
#[cfg(test)]
mod suite;

use std::path::PathBuf;
use std::sync::mpsc;

pub use memory::MemoryStore;
pub(crate) use replay::{Replay, replay};
pub use sqlite::{SCHEMA_VERSION, SqliteStore};

/// A position in the store's history; every committed transaction has its own, rising by time.
pub type Revision = u64;

/// A stored value and the revision that wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The bytes.
    pub value: Vec<u8>,
    /// The transaction that wrote them.
    pub revision: Revision,
}

/// What must hold for a transaction to be applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// The key does not exist.
    Absent(String),
    /// The key exists and was last written by this revision.
    At(String, Revision),
}

impl Condition {
    /// The key the condition is about.
    pub fn key(&self) -> &str {
        match self {
            Self::Absent(key) | Self::At(key, _) => key,
        }
    }
}

/// One change of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Writes a value.
    Put(String, Vec<u8>),
    /// Removes a key; removing a missing key is not an error.
    Delete(String),
    /// Appends to a hash-chained log; the store assigns the sequence number.
    Append(&'static str, Vec<u8>),
    /// Removes a log's entries up to this position. Those that remain keep their numbers and hashes;
    /// who removes keeps what the first of them is to be compared with.
    Forget(&'static str, u64),
}

/// Conditions and changes that happen together or not at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    /// All must hold.
    pub conditions: Vec<Condition>,
    /// Applied in order.
    pub ops: Vec<Op>,
}

impl Txn {
    /// An empty transaction.
    pub fn new() -> Self {
        Self::default()
    }

    /// Requires that the key does not exist.
    pub fn absent(&mut self, key: impl Into<String>) -> &mut Self {
        self.conditions.push(Condition::Absent(key.into()));
        self
    }

    /// Requires that the key was last written by this revision.
    pub fn at(&mut self, key: impl Into<String>, revision: Revision) -> &mut Self {
        self.conditions.push(Condition::At(key.into(), revision));
        self
    }

    /// Writes a value.
    pub fn put(&mut self, key: impl Into<String>, value: impl Into<Vec<u8>>) -> &mut Self {
        self.ops.push(Op::Put(key.into(), value.into()));
        self
    }

    /// Removes a key.
    pub fn delete(&mut self, key: impl Into<String>) -> &mut Self {
        self.ops.push(Op::Delete(key.into()));
        self
    }

    /// Appends to a log.
    pub fn append(&mut self, log: &'static str, value: impl Into<Vec<u8>>) -> &mut Self {
        self.ops.push(Op::Append(log, value.into()));
        self
    }

    /// Removes a log's entries up to a position. Its last one stays in any case.
    pub fn forget(&mut self, log: &'static str, through: u64) -> &mut Self {
        self.ops.push(Op::Forget(log, through));
        self
    }
}

/// How a transaction ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Applied and durable.
    Committed(Revision),
    /// Nothing was changed: the condition on this key did not hold.
    Conflict(String),
}

/// One entry of a hash-chained log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// Position, from 1, without gaps.
    pub seq: u64,
    /// The value as appended.
    pub value: Vec<u8>,
    /// The hash of the entry before (32 zero bytes for the first).
    pub prev: [u8; 32],
    /// SHA-256 over `prev`, `seq` (8 bytes, big-endian) and the value.
    pub hash: [u8; 32],
}

impl LogEntry {
    /// The hash this entry must carry.
    pub fn expected_hash(prev: &[u8; 32], seq: u64, value: &[u8]) -> [u8; 32] {
        let mut context = ring::digest::Context::new(&ring::digest::SHA256);
        context.update(prev);
        context.update(&seq.to_be_bytes());
        context.update(value);
        let mut hash = [0u8; 32];
        hash.copy_from_slice(context.finish().as_ref());
        hash
    }
}

/// The end of a log as the store last wrote it, sealed: entries that are cut off or added behind
/// the store's back are missed or found by it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogHead {
    /// Position of the last entry.
    pub seq: u64,
    /// Its hash.
    pub hash: [u8; 32],
    /// The seal over both and the log's name; empty when it was written without one.
    pub seal: Vec<u8>,
}

/// The key that the ends of logs are sealed with. It lives outside the store, so that whoever can
/// write the store's file cannot rewrite a log unnoticed.
#[derive(Clone)]
pub struct LogSeal(ring::hmac::Key);

impl std::fmt::Debug for LogSeal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LogSeal")
    }
}

impl LogSeal {
    /// A key of its own for this purpose, from the sealing key.
    pub fn derive(sealing_key: &[u8; 32]) -> Self {
        let root = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, sealing_key);
        let derived = ring::hmac::sign(&root, b"runnel: ends of logs");
        Self(ring::hmac::Key::new(ring::hmac::HMAC_SHA256, derived.as_ref()))
    }

    /// The end of a log, sealed.
    pub fn head(&self, log: &str, seq: u64, hash: [u8; 32]) -> LogHead {
        let seal = ring::hmac::sign(&self.0, &Self::text(log, seq, &hash));
        LogHead { seq, hash, seal: seal.as_ref().to_vec() }
    }

    /// Whether the store sealed this end.
    pub fn opens(&self, log: &str, head: &LogHead) -> bool {
        let text = Self::text(log, head.seq, &head.hash);
        ring::hmac::verify(&self.0, &text, &head.seal).is_ok()
    }

    fn text(log: &str, seq: u64, hash: &[u8; 32]) -> Vec<u8> {
        [&seq.to_be_bytes()[..], hash, log.as_bytes()].concat()
    }
}

/// One change seen by a watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The transaction that made it.
    pub revision: Revision,
    /// The key.
    pub key: String,
    /// The new value, or `None` when the key was removed.
    pub value: Option<Vec<u8>>,
}

/// Changes under a prefix, in order, each after the moment the watch began.
///
/// A watcher that falls [`WATCH_BACKLOG`] changes behind is disconnected rather than let grow:
/// it reads the range again and watches anew.
#[derive(Debug)]
pub struct Watch {
    /// Changes have revisions above this one; read the range to learn what was there.
    pub since: Revision,
    /// The changes.
    pub changes: mpsc::Receiver<Change>,
}

/// How many changes a slow watcher may be behind before it is disconnected.
pub const WATCH_BACKLOG: usize = 4096;

/// Why the store failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Reading or writing failed.
    #[error("the store failed to {action}: {cause}; check the disk and the state directory")]
    Backend {
        /// What was attempted.
        action: &'static str,
        /// The backend's words.
        cause: String,
    },
    /// What must not be forgotten could not be noted, so nothing was changed.
    #[error(
        "nothing was changed, because the revocation journal cannot be written ({0}); {hint}",
        hint = crate::journal::WRITE_HINT
    )]
    Journal(String),
    /// The file was written by a later version of this program.
    #[error(
        "the state in {path} has schema version {found}, newer than the {known} this runnel \
         knows: install the version that wrote it or restore an older backup"
    )]
    NewerSchema {
        /// The store's file.
        path: PathBuf,
        /// The version found.
        found: i64,
        /// The latest version known.
        known: i64,
    },
    /// The store has been shut down.
    #[error("the store is closed")]
    Closed,
}

/// An ordered key-value store with compare-and-swap transactions.
pub trait Store: Send + Sync + std::fmt::Debug {
    /// The value of one key.
    ///
    /// # Errors
    /// When the backend fails.
    fn get(&self, key: &str) -> Result<Option<Entry>, StoreError>;

    /// Up to `limit` entries whose keys start with `prefix` and sort after `after`.
    ///
    /// # Errors
    /// When the backend fails.
    fn range(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, Entry)>, StoreError>;

    /// Applies all changes if all conditions hold; durable when it returns `Committed`.
    ///
    /// # Errors
    /// When the backend fails; the transaction is then not applied, unless the failure came
    /// while the outcome was being confirmed, which a repeat with the same conditions reveals.
    fn transact(&self, txn: Txn) -> Result<Outcome, StoreError>;

    /// Up to `limit` entries of a log with sequence numbers above `after`.
    ///
    /// # Errors
    /// When the backend fails.
    fn log(&self, log: &str, after: u64, limit: usize) -> Result<Vec<LogEntry>, StoreError>;

    /// The sealed end of a log; `None` for one that was never written.
    ///
    /// # Errors
    /// When the backend fails.
    fn log_head(&self, log: &str) -> Result<Option<LogHead>, StoreError>;

    /// Seals the ends of logs from now on; with `adopt` also those that have no seal, because an
    /// earlier version wrote them.
    ///
    /// A log that is `expected` or there, and whose end does not carry its seal or is not where the
    /// seal says, was tampered with: it is named in the answer, and goes on behind a gap that shows
    /// for ever.
    ///
    /// # Errors
    /// When the backend fails.
    fn seal_logs(
        &self,
        seal: LogSeal,
        expected: &[&str],
        adopt: bool,
    ) -> Result<Vec<String>, StoreError>;

    /// The store's file, if it has one.
    fn file(&self) -> Option<&std::path::Path> {
        None
    }

    /// Writes a copy of the whole store, as it is at one moment, to an empty file.
    ///
    /// # Errors
    /// When the backend fails, or has no file.
    fn snapshot(&self, _to: &std::path::Path) -> Result<(), StoreError> {
        Err(StoreError::Backend {
            action: "copy itself",
            cause: "only the embedded store has a file".to_owned(),
        })
    }

    /// Follows the changes under a prefix from now on.
    ///
    /// # Errors
    /// When the backend fails.
    fn watch(&self, prefix: &str) -> Result<Watch, StoreError>;
}

/// Reads a whole prefix in pages.
///
/// # Errors
/// When the backend fails.
pub fn scan(store: &dyn Store, prefix: &str) -> Result<Vec<(String, Entry)>, StoreError> {
    const PAGE: usize = 500;
    let mut all: Vec<(String, Entry)> = Vec::new();
    loop {
        let after = all.last().map(|(key, _)| key.clone());
        let page = store.range(prefix, after.as_deref(), PAGE)?;
        let full = page.len() == PAGE;
        all.extend(page);
        if !full {
            return Ok(all);
        }
    }
}

/// The registered watchers of an in-process backend.
#[derive(Debug, Default)]
pub(crate) struct Watchers(Vec<(String, mpsc::SyncSender<Change>)>);

impl Watchers {
    pub(crate) fn add(&mut self, prefix: &str) -> mpsc::Receiver<Change> {
        let (sender, receiver) = mpsc::sync_channel(WATCH_BACKLOG);
        self.0.push((prefix.to_owned(), sender));
        receiver
    }

    /// Tells every watcher about the changes; those that are gone or full are dropped.
    pub(crate) fn publish(&mut self, changes: &[Change]) {
        self.0.retain(|(prefix, sender)| {
            changes
                .iter()
                .filter(|change| change.key.starts_with(prefix.as_str()))
                .all(|change| sender.try_send(change.clone()).is_ok())
        });
    }
}
