//! The embedded store: one SQLite file in WAL mode, one writer thread with group commit.
//!
//! The writer collects the transactions that wait while the disk works and commits them
//! together, each with its own conditions and revision; `synchronous=FULL` makes every commit
//! reach the disk before anyone is answered. Readers have connections of their own and see only
//! committed state.

mod ends;
mod schema;
mod sql;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, mpsc};
use std::thread::JoinHandle;

use rusqlite::{Connection, OptionalExtension, params};

use super::{
    Entry, LogEntry, LogHead, LogSeal, Outcome, Revision, Store, StoreError, Txn, Watch, Watchers,
};
use crate::journal::Journal;

use ends::{FoundEnd, ROOM, ends, hash_of, head};
pub use schema::SCHEMA_VERSION;
pub(super) use schema::configure;
use schema::{SEALED_SINCE, create_private, migrate, open_reader};
use writer::{Job, Shared, Writer};
pub(super) use writer::{append, apply, write_head};

/// Idle reader connections kept open.
const IDLE_READERS: usize = 4;
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
            .query_row(sql::POSITION, [], |row| row.get::<_, i64>(0))
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
            .spawn(move || Writer::new(connection, publish, sealing, noting, continued).run(&queue))
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
                .prepare_cached(sql::GET)?
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
            let mut statement = connection.prepare_cached(match after {
                Some(_) => sql::RANGE_AFTER,
                None => sql::RANGE_FROM,
            })?;
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
            let mut statement = connection.prepare_cached(sql::LOG)?;
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
                .prepare_cached(sql::HEAD)?
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
