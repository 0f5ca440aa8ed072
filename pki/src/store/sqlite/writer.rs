//! The writer: transactions that wait while the disk works are committed together.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, mpsc};

use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};

use super::{failed, lock, signed, sql};
use crate::failpoint;
use crate::journal::{Fact, Journal, is_journaled};
use crate::store::{
    Change, Condition, LogEntry, LogHead, LogSeal, Op, Outcome, Revision, StoreError, Txn, Watchers,
};

/// How many waiting transactions share one commit at most.
const GROUP: usize = 256;
/// What the writer publishes after each commit.
#[derive(Debug, Default)]
pub(super) struct Shared {
    pub(super) revision: Revision,
    pub(super) watchers: Watchers,
}

#[derive(Debug)]
pub(super) struct Job {
    pub(super) txn: Txn,
    /// Ends of logs to seal as they are.
    pub(super) heads: Vec<(String, LogHead)>,
    pub(super) reply: mpsc::SyncSender<Result<Outcome, StoreError>>,
}

/// The writer's state.
pub(super) struct Writer {
    connection: Connection,
    shared: Arc<Mutex<Shared>>,
    seal: Arc<OnceLock<LogSeal>>,
    journal: Arc<Mutex<Option<Journal>>>,
    ends: Ends,
    revision: Revision,
}

impl Writer {
    /// Writes through this connection; logs are continued where `ends` says.
    pub(super) fn new(
        connection: Connection,
        shared: Arc<Mutex<Shared>>,
        seal: Arc<OnceLock<LogSeal>>,
        journal: Arc<Mutex<Option<Journal>>>,
        ends: Ends,
    ) -> Self {
        let revision = lock(&shared).revision;
        Self { connection, shared, seal, journal, ends, revision }
    }

    /// Works until nobody is left who could ask.
    pub(super) fn run(mut self, queue: &mpsc::Receiver<Job>) {
        while let Ok(first) = queue.recv() {
            let mut group = vec![first];
            while group.len() < GROUP
                && let Ok(job) = queue.try_recv()
            {
                group.push(job);
            }
            self.commit(group);
        }
    }

    /// Commits all of them together. One that cannot be written must not take the others with it:
    /// each is then tried by itself.
    fn commit(&mut self, group: Vec<Job>) {
        let written = write_group(
            &mut self.connection,
            &group,
            self.revision,
            &self.seal,
            &self.ends,
            &self.journal,
        );
        match written {
            Ok(written) => self.answer(group, written),
            Err(error) if group.len() > 1 && !concerns_all(&error) => {
                for job in group {
                    self.commit(vec![job]);
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

    fn answer(&mut self, group: Vec<Job>, written: Written) {
        self.ends.extend(written.ends);
        {
            let mut shared = lock(&self.shared);
            self.revision = written.revision;
            shared.revision = written.revision;
            shared.watchers.publish(&written.changes);
        }
        for (job, outcome) in group.into_iter().zip(written.outcomes) {
            // Whoever stopped waiting finds the result in the store.
            let _ = job.reply.send(Ok(outcome));
        }
    }
}

/// Whether the disk or the file is the cause, and so the next transaction would fail as well, after
/// as long a wait. What the journal does not take may be of one transaction alone.
fn concerns_all(error: &NotWritten) -> bool {
    use rusqlite::ErrorCode::{
        CannotOpen, DatabaseBusy, DatabaseCorrupt, DatabaseLocked, DiskFull, NotADatabase,
        ReadOnly, SystemIoFailure,
    };
    let NotWritten::Sqlite(error) = error else { return false };
    matches!(
        error.sqlite_error_code(),
        Some(
            CannotOpen
                | DatabaseBusy
                | DatabaseCorrupt
                | DatabaseLocked
                | DiskFull
                | NotADatabase
                | ReadOnly
                | SystemIoFailure
        )
    )
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
pub(super) type Ends = BTreeMap<String, (u64, [u8; 32])>;

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
    transaction.execute(sql::ADVANCE, [signed(revision)])?;
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
    let mut statement = transaction.prepare_cached(sql::REVISION)?;
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

pub(in crate::store) fn apply(
    transaction: &Transaction<'_>,
    op: &Op,
    revision: Revision,
    changes: &mut Vec<Change>,
) -> rusqlite::Result<()> {
    match op {
        Op::Put(key, value) => {
            transaction.prepare_cached(sql::PUT)?.execute(params![key, value, signed(revision)])?;
            changes.push(Change { revision, key: key.clone(), value: Some(value.clone()) });
        }
        Op::Delete(key) => {
            let removed = transaction.prepare_cached(sql::DELETE)?.execute([key])?;
            if removed > 0 {
                changes.push(Change { revision, key: key.clone(), value: None });
            }
        }
        Op::Forget(log, through) => {
            transaction.prepare_cached(sql::FORGET)?.execute(params![log, signed(*through)])?;
        }
        // Logs have ends to keep: see `append`.
        Op::Append(..) => {}
    }
    Ok(())
}

/// Appends to a log behind `last`; the new end.
pub(in crate::store) fn append(
    transaction: &Transaction<'_>,
    log: &str,
    value: &[u8],
    last: Option<(u64, [u8; 32])>,
) -> rusqlite::Result<(u64, [u8; 32])> {
    let (seq, prev) = last.map_or((1, [0; 32]), |(seq, hash)| (seq + 1, hash));
    let hash = LogEntry::expected_hash(&prev, seq, value);
    transaction.prepare_cached(sql::APPEND)?.execute(params![
        log,
        signed(seq),
        prev,
        hash,
        value
    ])?;
    Ok((seq, hash))
}

pub(in crate::store) fn write_head(
    transaction: &Transaction<'_>,
    log: &str,
    end: &LogHead,
) -> rusqlite::Result<()> {
    transaction.prepare_cached(sql::WRITE_HEAD)?.execute(params![
        log,
        signed(end.seq),
        end.hash,
        end.seal
    ])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{SqliteStore, Store};

    fn job(key: &str) -> (Job, mpsc::Receiver<Result<Outcome, StoreError>>) {
        let (reply, answer) = mpsc::sync_channel(1);
        let mut txn = Txn::new();
        txn.put(key, "value").append("audit", key);
        (Job { txn, heads: Vec::new(), reply }, answer)
    }

    #[test]
    fn a_transaction_that_cannot_be_written_takes_no_other_with_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("test.db");
        drop(SqliteStore::open(&path).unwrap());
        let connection = Connection::open(&path).unwrap();
        connection
            .execute_batch(
                "CREATE TRIGGER refuse BEFORE INSERT ON entries WHEN NEW.key = 'bad'
                 BEGIN SELECT RAISE(ABORT, 'refused'); END",
            )
            .unwrap();
        let mut writer = Writer::new(
            connection,
            Arc::default(),
            Arc::default(),
            Arc::default(),
            Ends::default(),
        );
        let keys = ["one", "bad", "two", "three"];
        let (group, answers): (Vec<_>, Vec<_>) = keys.into_iter().map(job).unzip();

        writer.commit(group);

        let answers: Vec<_> = answers.into_iter().map(|answer| answer.recv().unwrap()).collect();
        let committed: Vec<_> = answers.iter().map(Result::is_ok).collect();
        assert_eq!(committed, [true, false, true, true], "{answers:?}");
        assert!(answers[1].as_ref().unwrap_err().to_string().contains("refused"));
        assert_eq!(answers[3], Ok(Outcome::Committed(3)));
        drop(writer);
        let store = SqliteStore::open(&path).unwrap();
        assert!(store.get("bad").unwrap().is_none());
        let log = store.log("audit", 0, 10).unwrap();
        let values: Vec<_> = log.iter().map(|entry| entry.value.as_slice()).collect();
        assert_eq!(values, [&b"one"[..], b"two", b"three"], "the log has no gap");
        assert_eq!(log[2].prev, log[1].hash);
    }
}
