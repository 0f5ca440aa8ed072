//! The store's side of the revocation journal: what changed since a revision, and writing it into a
//! store that went back in time.

use std::path::Path;

use rusqlite::{Connection, TransactionBehavior, params};

use super::sqlite::{append, apply, configure, failed, signed, write_head};
use super::{LogSeal, Op, Revision, StoreError};
use crate::audit;
use crate::failpoint;
use crate::journal::{Fact, JOURNALED};

/// What a store that went back gets.
pub(crate) struct Replay<'a> {
    /// The changes it lacks, the older first.
    pub(crate) facts: &'a [Fact],
    /// It goes on above this revision.
    pub(crate) revision: Revision,
    /// Its audit trail goes on above this position.
    pub(crate) records: u64,
    /// What the trail says about it.
    pub(crate) event: Vec<u8>,
    /// A key that says what is left to be done, with its value.
    pub(crate) marker: (&'static str, Vec<u8>),
    /// A key that goes with it.
    pub(crate) done: &'static str,
}

/// The journaled keys that were written after a revision.
pub(super) fn facts_since(
    connection: &Connection,
    revision: Revision,
) -> rusqlite::Result<Vec<Fact>> {
    let mut statement = connection
        .prepare("SELECT key, value FROM entries WHERE key >= ?1 AND key < ?2 AND revision > ?3")?;
    let mut facts = Vec::new();
    for prefix in JOURNALED {
        let end = format!("{prefix}\u{10ffff}");
        let rows = statement.query_map(params![prefix, end, signed(revision)], |row| {
            Ok((row.get::<_, String>(0)?, Some(row.get::<_, Vec<u8>>(1)?)))
        })?;
        for row in rows {
            facts.push(row?);
        }
    }
    Ok(facts)
}

/// Writes all of it in one transaction. Nobody else has the file open.
pub(crate) fn replay(path: &Path, replay: &Replay<'_>, seal: &LogSeal) -> Result<(), StoreError> {
    let run = || -> rusqlite::Result<()> {
        let mut connection = Connection::open(path)?;
        configure(&connection)?;
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut changes = Vec::new();
        for (key, value) in replay.facts {
            let op = match value {
                Some(value) => Op::Put(key.clone(), value.clone()),
                None => Op::Delete(key.clone()),
            };
            apply(&transaction, &op, replay.revision, &mut changes)?;
        }
        let (key, value) = &replay.marker;
        let marker = Op::Put((*key).to_owned(), value.clone());
        apply(&transaction, &marker, replay.revision, &mut changes)?;
        let done = Op::Delete(replay.done.to_owned());
        apply(&transaction, &done, replay.revision, &mut changes)?;
        let last = Some((replay.records, [0; 32]));
        let (seq, hash) = append(&transaction, audit::LOG, &replay.event, last)?;
        write_head(&transaction, audit::LOG, &seal.head(audit::LOG, seq, hash))?;
        transaction.execute(
            "UPDATE position SET revision = ?1 WHERE only = 1",
            [signed(replay.revision)],
        )?;
        failpoint::hit("replay.before_commit");
        transaction.commit()?;
        failpoint::hit("replay.after_commit");
        Ok(())
    };
    run().map_err(failed("write what its journal has"))
}
