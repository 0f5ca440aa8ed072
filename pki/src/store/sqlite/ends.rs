//! Where a start finds the ends of logs.

use std::collections::BTreeMap;

use rusqlite::{Connection, params};

use super::{signed, sql};
use crate::store::LogHead;

/// The end of a log as a start finds it.
#[derive(Debug)]
pub(super) struct FoundEnd {
    pub(super) log: String,
    pub(super) head: LogHead,
    /// The position of the last entry that is there.
    pub(super) last: u64,
    /// The last one below [`ROOM`].
    pub(super) below: u64,
}

/// No log comes to have so many entries. An entry from here on was put there to stop the log, which
/// could not go on behind it.
pub(super) const ROOM: u64 = 1 << 62;

impl FoundEnd {
    pub(super) fn nothing(log: &str) -> Self {
        Self {
            log: log.to_owned(),
            head: LogHead { seq: 0, hash: [0; 32], seal: Vec::new() },
            last: 0,
            below: 0,
        }
    }
}

/// The ends of all logs, those included whose head is gone.
pub(super) fn ends(connection: &Connection) -> rusqlite::Result<Vec<FoundEnd>> {
    // By their names one after the other: a trail may have millions of records.
    let mut next = connection.prepare(sql::NEXT_LOG)?;
    let mut statement = connection.prepare(sql::LAST_BELOW)?;
    let mut last: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    let mut before = String::new();
    while let Some(log) = next.query_row([&before], |row| row.get::<_, Option<String>>(0))? {
        before.clone_from(&log);
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
pub(super) fn hash_of(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<[u8; 32]> {
    let octets: Vec<u8> = row.get(column)?;
    Ok(octets.try_into().unwrap_or_default())
}

pub(super) fn head(row: &rusqlite::Row<'_>) -> rusqlite::Result<(String, LogHead)> {
    let seq = row.get::<_, i64>(1)?.unsigned_abs();
    Ok((row.get(0)?, LogHead { seq, hash: hash_of(row, 2)?, seal: row.get(3)? }))
}
