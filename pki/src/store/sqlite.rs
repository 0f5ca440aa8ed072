//! The embedded store: one SQLite file in WAL mode, one writer thread with group commit.
//!
//! The writer collects the transactions that wait while the disk works and commits them
//! together, each with its own conditions and revision; `synchronous=FULL` makes every commit
//! reach the disk before anyone is answered. Readers have connections of their own and see only
//! committed state.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, mpsc};
use std::thread::JoinHandle;

use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};

use super::{
    Change, Condition, Entry, LogEntry, LogHead, LogSeal, Op, Outcome, Revision, Store, StoreError,
    Txn, Watch, Watchers,
};
use crate::failpoint;
use crate::journal::{Fact, Journal, is_journaled};

/// How many waiting transactions share one commit at most.
const GROUP: usize = 256;
/// Idle reader connections kept open.
const IDLE_READERS: usize = 4;
/// Prepared statements kept by each connection.
const STATEMENTS: usize = 32;

/// The steps that bring a file from schema version `n` to `n + 1`, `n` being the index.
const MIGRATIONS: &[&str] = &[
    "
    CREATE TABLE entries (
        key      TEXT PRIMARY KEY NOT NULL,
        value    BLOB NOT NULL,
        revision INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE logs (
        log   TEXT NOT NULL,
        seq   INTEGER NOT NULL,
        prev  BLOB NOT NULL,
        hash  BLOB NOT NULL,
        value BLOB NOT NULL,
        PRIMARY KEY (log, seq)
    ) WITHOUT ROWID;
    CREATE TABLE position (
        only     INTEGER PRIMARY KEY CHECK (only = 1),
        revision INTEGER NOT NULL
    );
    INSERT INTO position (only, revision) VALUES (1, 0);
",
    "
    CREATE TABLE heads (
        log  TEXT PRIMARY KEY NOT NULL,
        seq  INTEGER NOT NULL,
        hash BLOB NOT NULL,
        seal BLOB NOT NULL
    ) WITHOUT ROWID;
    INSERT INTO heads (log, seq, hash, seal)
        SELECT log, seq, hash, x'' FROM logs AS entry
        WHERE seq = (SELECT max(seq) FROM logs WHERE logs.log = entry.log);
",
];

/// The first schema version whose logs have sealed ends.
const SEALED_SINCE: i64 = 2;

/// The schema version this build reads and writes.
pub const SCHEMA_VERSION: i64 = MIGRATIONS.len() as i64;

/// A [`Store`] in one SQLite file.
#[derive(Debug)]
pub struct SqliteStore {
    path: PathBuf,
    jobs: Mutex<Option<mpsc::Sender<Job>>>,
    shared: Arc<Mutex<Shared>>,
    readers: Mutex<Vec<Connection>>,
    seal: Arc<OnceLock<LogSeal>>,
    journal: Arc<Mutex<Option<Journal>>>,
    /// The ends of logs as they were found.
    found_ends: Mutex<Vec<FoundEnd>>,
    writer: Option<JoinHandle<()>>,
}

/// What the writer publishes after each commit.
#[derive(Debug, Default)]
struct Shared {
    revision: Revision,
    watchers: Watchers,
}

#[derive(Debug)]
struct Job {
    txn: Txn,
    /// Ends of logs to seal as they are.
    heads: Vec<(String, LogHead)>,
    reply: mpsc::SyncSender<Result<Outcome, StoreError>>,
}

impl SqliteStore {
    /// Opens the file, creating it (mode 0600) or migrating it when needed.
    ///
    /// # Errors
    /// [`StoreError::NewerSchema`] when a later version wrote the file, which is then left
    /// untouched; [`StoreError::Backend`] when it cannot be used.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        create_private(path).map_err(|cause| StoreError::Backend {
            action: "create its file",
            cause: format!("{}: {cause}", path.display()),
        })?;
        let mut connection = Connection::open(path).map_err(failed("open its file"))?;
        let found: i64 = connection
            .pragma_query_value(None, "user_version", |row| row.get(0))
            .map_err(failed("read its file"))?;
        if found > SCHEMA_VERSION {
            return Err(StoreError::NewerSchema {
                path: path.to_owned(),
                found,
                known: SCHEMA_VERSION,
            });
        }
        configure(&connection).map_err(failed("configure its file"))?;
        migrate(&mut connection, found).map_err(failed("migrate its file"))?;
        let revision = connection
            .query_row("SELECT revision FROM position", [], |row| row.get::<_, i64>(0))
            .map_err(failed("read its position"))?;
        let shared = Arc::new(Mutex::new(Shared {
            revision: revision.unsigned_abs(),
            watchers: Watchers::default(),
        }));
        let found_ends = ends(&connection).map_err(failed("read its logs"))?;
        let continued =
            found_ends.iter().map(|end| (end.log.clone(), (end.head.seq, end.head.hash)));
        let continued = continued.collect();
        let (jobs, queue) = mpsc::channel();
        let seal = Arc::new(OnceLock::new());
        let sealing = Arc::clone(&seal);
        let journal = Arc::new(Mutex::new(None));
        let noting = Arc::clone(&journal);
        let publish = Arc::clone(&shared);
        let writer = std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || write_loop(connection, &queue, &publish, &sealing, &noting, continued))
            .map_err(|cause| StoreError::Backend {
                action: "start its writer",
                cause: cause.to_string(),
            })?;
        Ok(Self {
            path: path.to_owned(),
            jobs: Mutex::new(Some(jobs)),
            shared,
            readers: Mutex::new(Vec::new()),
            seal,
            journal,
            found_ends: Mutex::new(found_ends),
            writer: Some(writer),
        })
    }

    /// Opens a file only to read it, as it is; writing to it fails.
    ///
    /// # Errors
    /// As [`open`](Self::open), and when an earlier version wrote the file.
    pub fn open_to_read(path: &Path) -> Result<Self, StoreError> {
        let connection = open_reader(path).map_err(failed("open its file"))?;
        let found: i64 = connection
            .pragma_query_value(None, "user_version", |row| row.get(0))
            .map_err(failed("read its file"))?;
        if found > SCHEMA_VERSION {
            let known = SCHEMA_VERSION;
            return Err(StoreError::NewerSchema { path: path.to_owned(), found, known });
        }
        if found < SEALED_SINCE {
            return Err(StoreError::Backend {
                action: "read its file",
                cause: "an earlier version wrote it; start this one once".to_owned(),
            });
        }
        Ok(Self {
            path: path.to_owned(),
            jobs: Mutex::new(None),
            shared: Arc::default(),
            readers: Mutex::new(vec![connection]),
            seal: Arc::default(),
            journal: Arc::default(),
            found_ends: Mutex::default(),
            writer: None,
        })
    }

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The newest revision.
    pub(crate) fn revision(&self) -> Revision {
        lock(&self.shared).revision
    }

    /// Notes in the journal what is committed from now on, before it is answered, and first what the
    /// journal lacks.
    pub(crate) fn keep_journal(&self, mut journal: Journal) -> Result<(), StoreError> {
        let records = self.log_head(crate::audit::LOG)?.map_or(0, |head| head.seq);
        let last = journal.last();
        let facts = self.read("compare itself with its journal", |connection| {
            super::replay::facts_since(connection, last)
        })?;
        journal.note(None, self.revision(), records, &facts).map_err(StoreError::Journal)?;
        *lock(&self.journal) = Some(journal);
        Ok(())
    }

    /// The journal that is kept.
    #[cfg(test)]
    pub(crate) fn journal(&self) -> Arc<Mutex<Option<Journal>>> {
        Arc::clone(&self.journal)
    }

    fn submit(&self, txn: Txn, heads: Vec<(String, LogHead)>) -> Result<Outcome, StoreError> {
        let (reply, answer) = mpsc::sync_channel(1);
        match lock(&self.jobs).as_ref() {
            Some(jobs) => jobs.send(Job { txn, heads, reply }).map_err(|_| StoreError::Closed)?,
            None => return Err(StoreError::Closed),
        }
        answer.recv().map_err(|_| StoreError::Closed)?
    }

    fn read<T>(
        &self,
        action: &'static str,
        query: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        let idle = lock(&self.readers).pop();
        let connection = match idle {
            Some(connection) => connection,
            None => open_reader(&self.path).map_err(failed("open a reader"))?,
        };
        let result = query(&connection).map_err(failed(action));
        let mut readers = lock(&self.readers);
        if readers.len() < IDLE_READERS {
            readers.push(connection);
        }
        result
    }
}

impl Drop for SqliteStore {
    fn drop(&mut self) {
        lock(&self.jobs).take();
        if let Some(writer) = self.writer.take() {
            // A panic of the writer has already been reported to those who waited for it.
            let _ = writer.join();
        }
    }
}

impl Store for SqliteStore {
    fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.read("read a key", |connection| {
            connection
                .prepare_cached("SELECT value, revision FROM entries WHERE key = ?1")?
                .query_row([key], |row| {
                    Ok(Entry { value: row.get(0)?, revision: row.get::<_, i64>(1)?.unsigned_abs() })
                })
                .optional()
        })
    }

    fn range(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, Entry)>, StoreError> {
        // `after` sorts at or above the prefix or not at all within it; comparing against both
        // keeps the query one index walk.
        let after = after.filter(|after| *after >= prefix);
        self.read("read a range", |connection| {
            let sql = if after.is_some() {
                "SELECT key, value, revision FROM entries WHERE key > ?1 ORDER BY key LIMIT ?2"
            } else {
                "SELECT key, value, revision FROM entries WHERE key >= ?1 ORDER BY key LIMIT ?2"
            };
            let mut statement = connection.prepare_cached(sql)?;
            let limit = i64::try_from(limit).unwrap_or(i64::MAX);
            let mut rows = statement.query(params![after.unwrap_or(prefix), limit])?;
            let mut found = Vec::new();
            while let Some(row) = rows.next()? {
                let key: String = row.get(0)?;
                if !key.starts_with(prefix) {
                    break;
                }
                let revision = row.get::<_, i64>(2)?.unsigned_abs();
                found.push((key, Entry { value: row.get(1)?, revision }));
            }
            Ok(found)
        })
    }

    fn transact(&self, txn: Txn) -> Result<Outcome, StoreError> {
        self.submit(txn, Vec::new())
    }

    fn log(&self, log: &str, after: u64, limit: usize) -> Result<Vec<LogEntry>, StoreError> {
        self.read("read a log", |connection| {
            let mut statement = connection.prepare_cached(
                "SELECT seq, CAST(value AS BLOB), CAST(prev AS BLOB), CAST(hash AS BLOB) FROM logs
                 WHERE log = ?1 AND seq > ?2 ORDER BY seq LIMIT ?3",
            )?;
            let after = i64::try_from(after).unwrap_or(i64::MAX);
            let limit = i64::try_from(limit).unwrap_or(i64::MAX);
            let rows = statement.query_map(params![log, after, limit], |row| {
                Ok(LogEntry {
                    seq: row.get::<_, i64>(0)?.unsigned_abs(),
                    value: row.get(1)?,
                    prev: hash_of(row, 2)?,
                    hash: hash_of(row, 3)?,
                })
            })?;
            rows.collect()
        })
    }

    fn log_head(&self, log: &str) -> Result<Option<LogHead>, StoreError> {
        self.read("read the end of a log", |connection| {
            connection
                .prepare_cached("SELECT log, seq, CAST(hash AS BLOB), CAST(seal AS BLOB) FROM heads WHERE log = ?1")?
                .query_row([log], |row| Ok(head(row)?.1))
                .optional()
        })
    }

    fn seal_logs(
        &self,
        seal: LogSeal,
        expected: &[&str],
        adopt: bool,
    ) -> Result<Vec<String>, StoreError> {
        let seal = self.seal.get_or_init(|| seal);
        let mut found = std::mem::take(&mut *lock(&self.found_ends));
        for log in expected {
            if !found.iter().any(|end| end.log == *log) {
                found.push(FoundEnd::nothing(log));
            }
        }
        let (mut sealed, mut broken) = (Vec::new(), Vec::new());
        for FoundEnd { log, head, last, below } in found {
            if adopt && head.seal.is_empty() && head.seq > 0 {
                sealed.push((log.clone(), seal.head(&log, head.seq, head.hash)));
            } else if !seal.opens(&log, &head) || head.seq != last {
                // It goes on behind a position that nothing will ever fill, and not where somebody
                // left no more room for what comes.
                let gap = [head.seq, last, below].into_iter().filter(|seq| *seq < ROOM).max();
                let gap = gap.unwrap_or(0) + 1;
                sealed.push((log.clone(), seal.head(&log, gap, [0; 32])));
                broken.push(log);
            }
        }
        if !sealed.is_empty() {
            self.submit(Txn::new(), sealed)?;
        }
        Ok(broken)
    }

    fn file(&self) -> Option<&Path> {
        Some(&self.path)
    }

    fn snapshot(&self, to: &Path) -> Result<(), StoreError> {
        let copy = || -> rusqlite::Result<()> {
            let flags = rusqlite::OpenFlags::default() - rusqlite::OpenFlags::SQLITE_OPEN_CREATE;
            let connection = Connection::open_with_flags(&self.path, flags)?;
            connection.busy_timeout(std::time::Duration::from_secs(10))?;
            connection.execute("VACUUM INTO ?1", [to.to_string_lossy()]).map(drop)
        };
        copy().map_err(failed("copy itself"))
    }

    fn watch(&self, prefix: &str) -> Result<Watch, StoreError> {
        let mut shared = lock(&self.shared);
        let changes = shared.watchers.add(prefix);
        Ok(Watch { since: shared.revision, changes })
    }
}

/// Creates the file empty and readable by its owner alone; an existing one is left as it is.
fn create_private(path: &Path) -> std::io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path).map(drop)
}

pub(super) fn configure(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(std::time::Duration::from_secs(10))?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // FULL syncs the log at every commit: an acknowledged change survives a power cut.
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    Ok(())
}

fn open_reader(path: &Path) -> rusqlite::Result<Connection> {
    let flags = rusqlite::OpenFlags::default() - rusqlite::OpenFlags::SQLITE_OPEN_CREATE;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(std::time::Duration::from_secs(10))?;
    connection.pragma_update(None, "query_only", true)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    Ok(connection)
}

/// Applies the missing migrations, each in its own transaction together with its version.
fn migrate(connection: &mut Connection, found: i64) -> rusqlite::Result<()> {
    let done = usize::try_from(found).unwrap_or(0);
    for (index, sql) in MIGRATIONS.iter().enumerate().skip(done) {
        let step = connection.transaction_with_behavior(TransactionBehavior::Exclusive)?;
        step.execute_batch(sql)?;
        step.pragma_update(None, "user_version", i64::try_from(index + 1).unwrap_or(i64::MAX))?;
        step.commit()?;
    }
    Ok(())
}

fn write_loop(
    mut connection: Connection,
    queue: &mpsc::Receiver<Job>,
    shared: &Mutex<Shared>,
    seal: &OnceLock<LogSeal>,
    journal: &Mutex<Option<Journal>>,
    mut ends: Ends,
) {
    let mut revision = lock(shared).revision;
    while let Ok(first) = queue.recv() {
        let mut group = vec![first];
        while group.len() < GROUP
            && let Ok(job) = queue.try_recv()
        {
            group.push(job);
        }
        match write_group(&mut connection, &group, revision, seal, &ends, journal) {
            Ok(written) => {
                ends.extend(written.ends);
                {
                    let mut shared = lock(shared);
                    revision = written.revision;
                    shared.revision = revision;
                    shared.watchers.publish(&written.changes);
                }
                for (job, outcome) in group.into_iter().zip(written.outcomes) {
                    // Whoever stopped waiting finds the result in the store.
                    let _ = job.reply.send(Ok(outcome));
                }
            }
            Err(error) => {
                let error = StoreError::from(error);
                for job in group {
                    let _ = job.reply.send(Err(error.clone()));
                }
            }
        }
    }
}

/// Notes what is about to be committed behind `base`: what cannot be noted is not committed.
fn note(
    journal: &mut Journal,
    base: Revision,
    revision: Revision,
    changes: &[Change],
    records: u64,
) -> Result<(), NotWritten> {
    let changes = changes.iter().filter(|change| is_journaled(&change.key));
    let facts: Vec<Fact> =
        changes.map(|change| (change.key.clone(), change.value.clone())).collect();
    journal.note(Some(base), revision, records, &facts).map_err(NotWritten::Journal)
}

/// Why nothing of a group was written.
#[derive(Debug)]
enum NotWritten {
    Sqlite(rusqlite::Error),
    /// The journal could not be written.
    Journal(String),
}

impl From<rusqlite::Error> for NotWritten {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

impl From<NotWritten> for StoreError {
    fn from(error: NotWritten) -> Self {
        match error {
            NotWritten::Sqlite(error) => failed("commit a transaction")(error),
            NotWritten::Journal(cause) => Self::Journal(cause),
        }
    }
}

struct Written {
    revision: Revision,
    outcomes: Vec<Outcome>,
    changes: Vec<Change>,
    ends: Ends,
}

/// Where each log is continued. Kept by the writer: what somebody else does to the file between two
/// commits shows as a gap instead of being sealed.
type Ends = BTreeMap<String, (u64, [u8; 32])>;

fn write_group(
    connection: &mut Connection,
    group: &[Job],
    mut revision: Revision,
    seal: &OnceLock<LogSeal>,
    before: &Ends,
    journal: &Mutex<Option<Journal>>,
) -> Result<Written, NotWritten> {
    let base = revision;
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let mut outcomes = Vec::with_capacity(group.len());
    let mut changes = Vec::new();
    let mut ends = Ends::new();
    for job in group {
        if let Some(key) = first_conflict(&transaction, &job.txn.conditions)? {
            outcomes.push(Outcome::Conflict(key));
            continue;
        }
        revision += 1;
        for op in &job.txn.ops {
            if let Op::Append(log, value) = op {
                let last = ends.get(*log).or_else(|| before.get(*log)).copied();
                ends.insert((*log).to_owned(), append(&transaction, log, value, last)?);
            } else {
                apply(&transaction, op, revision, &mut changes)?;
            }
        }
        for (log, head) in &job.heads {
            ends.insert(log.clone(), (head.seq, head.hash));
        }
        outcomes.push(Outcome::Committed(revision));
    }
    for (log, (seq, hash)) in &ends {
        let head = match seal.get() {
            Some(seal) => seal.head(log, *seq, *hash),
            None => LogHead { seq: *seq, hash: *hash, seal: Vec::new() },
        };
        write_head(&transaction, log, &head)?;
    }
    transaction.execute("UPDATE position SET revision = ?1", [signed(revision)])?;
    let records = ends.get(crate::audit::LOG).or_else(|| before.get(crate::audit::LOG));
    let records = records.map_or(0, |(seq, _)| *seq);
    let mut journal = lock(journal);
    if let Some(journal) = journal.as_mut() {
        note(journal, base, revision, &changes, records)?;
    }
    failpoint::hit("store.before_commit");
    let committed = transaction.commit();
    failpoint::hit("store.after_commit");
    if let Some(journal) = journal.as_mut() {
        match committed {
            Ok(()) => journal.committed(),
            Err(_) => journal.take_back(),
        }
    }
    committed?;
    Ok(Written { revision, outcomes, changes, ends })
}

fn first_conflict(
    transaction: &Transaction<'_>,
    conditions: &[Condition],
) -> rusqlite::Result<Option<String>> {
    let mut statement =
        transaction.prepare_cached("SELECT revision FROM entries WHERE key = ?1")?;
    for condition in conditions {
        let found: Option<i64> =
            statement.query_row([condition.key()], |row| row.get(0)).optional()?;
        let holds = match condition {
            Condition::Absent(_) => found.is_none(),
            Condition::At(_, revision) => found == Some(signed(*revision)),
        };
        if !holds {
            return Ok(Some(condition.key().to_owned()));
        }
    }
    Ok(None)
}

pub(super) fn apply(
    transaction: &Transaction<'_>,
    op: &Op,
    revision: Revision,
    changes: &mut Vec<Change>,
) -> rusqlite::Result<()> {
    match op {
        Op::Put(key, value) => {
            transaction
                .prepare_cached(
                    "INSERT INTO entries (key, value, revision) VALUES (?1, ?2, ?3)
                     ON CONFLICT (key) DO UPDATE
                     SET value = excluded.value, revision = excluded.revision",
                )?
                .execute(params![key, value, signed(revision)])?;
            changes.push(Change { revision, key: key.clone(), value: Some(value.clone()) });
        }
        Op::Delete(key) => {
            let removed =
                transaction.prepare_cached("DELETE FROM entries WHERE key = ?1")?.execute([key])?;
            if removed > 0 {
                changes.push(Change { revision, key: key.clone(), value: None });
            }
        }
        // Logs have ends to keep: see `append`.
        Op::Append(..) => {}
    }
    Ok(())
}

/// Appends to a log behind `last`; the new end.
pub(super) fn append(
    transaction: &Transaction<'_>,
    log: &str,
    value: &[u8],
    last: Option<(u64, [u8; 32])>,
) -> rusqlite::Result<(u64, [u8; 32])> {
    let (seq, prev) = last.map_or((1, [0; 32]), |(seq, hash)| (seq + 1, hash));
    let hash = LogEntry::expected_hash(&prev, seq, value);
    // What somebody else put there gives way: it must not stop the log.
    transaction
        .prepare_cached(
            "INSERT OR REPLACE INTO logs (log, seq, prev, hash, value) VALUES (?1, ?2, ?3, ?4, ?5)",
        )?
        .execute(params![log, signed(seq), prev, hash, value])?;
    Ok((seq, hash))
}

pub(super) fn write_head(
    transaction: &Transaction<'_>,
    log: &str,
    end: &LogHead,
) -> rusqlite::Result<()> {
    transaction
        .prepare_cached(
            "INSERT INTO heads (log, seq, hash, seal) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (log) DO UPDATE
             SET seq = excluded.seq, hash = excluded.hash, seal = excluded.seal",
        )?
        .execute(params![log, signed(end.seq), end.hash, end.seal])?;
    Ok(())
}

/// The end of a log as a start finds it.
#[derive(Debug)]
struct FoundEnd {
    log: String,
    head: LogHead,
    /// The position of the last entry that is there.
    last: u64,
    /// The last one below [`ROOM`].
    below: u64,
}

/// No log comes to have so many entries. An entry from here on was put there to stop the log, which
/// could not go on behind it.
const ROOM: u64 = 1 << 62;

impl FoundEnd {
    fn nothing(log: &str) -> Self {
        Self {
            log: log.to_owned(),
            head: LogHead { seq: 0, hash: [0; 32], seal: Vec::new() },
            last: 0,
            below: 0,
        }
    }
}

/// The ends of all logs, those included whose head is gone.
fn ends(connection: &Connection) -> rusqlite::Result<Vec<FoundEnd>> {
    let mut statement = connection.prepare("SELECT DISTINCT log FROM logs")?;
    let logs = statement.query_map([], |row| row.get(0))?;
    let logs: Vec<String> = logs.collect::<rusqlite::Result<_>>()?;
    let mut statement =
        connection.prepare("SELECT max(seq) FROM logs WHERE log = ?1 AND seq <= ?2")?;
    let mut last: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for log in logs {
        let mut below = |limit: i64| -> rusqlite::Result<u64> {
            let seq: Option<i64> = statement.query_row(params![log, limit], |row| row.get(0))?;
            Ok(seq.and_then(|seq| u64::try_from(seq).ok()).unwrap_or(0))
        };
        let found = (below(i64::MAX)?, below(signed(ROOM) - 1)?);
        last.insert(log, found);
    }
    let mut statement =
        connection.prepare("SELECT log, seq, CAST(hash AS BLOB), CAST(seal AS BLOB) FROM heads")?;
    let mut found = Vec::new();
    for row in statement.query_map([], head)? {
        let (log, head) = row?;
        let (last, below) = last.remove(&log).unwrap_or_default();
        found.push(FoundEnd { log, head, last, below });
    }
    let headless = last.into_iter();
    found.extend(headless.map(|(log, (last, below))| FoundEnd {
        last,
        below,
        ..FoundEnd::nothing(&log)
    }));
    Ok(found)
}

/// A hash as it is there. One of another length was not written by us, and equals none.
fn hash_of(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<[u8; 32]> {
    let octets: Vec<u8> = row.get(column)?;
    Ok(octets.try_into().unwrap_or_default())
}

fn head(row: &rusqlite::Row<'_>) -> rusqlite::Result<(String, LogHead)> {
    let seq = row.get::<_, i64>(1)?.unsigned_abs();
    Ok((row.get(0)?, LogHead { seq, hash: hash_of(row, 2)?, seal: row.get(3)? }))
}

/// SQLite's integers are signed; revisions stay far below the sign bit.
pub(super) fn signed(revision: Revision) -> i64 {
    i64::try_from(revision).unwrap_or(i64::MAX)
}

pub(super) fn failed<E: ToString>(action: &'static str) -> impl Fn(E) -> StoreError {
    move |cause| StoreError::Backend { action, cause: cause.to_string() }
}

/// A poisoned lock still guards consistent data here: no section panics half-way.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
