//! The file: made private, brought to the schema of this version, opened for reading.

use std::path::Path;

use rusqlite::{Connection, TransactionBehavior};

/// Prepared statements kept by each connection.
const STATEMENTS: usize = 32;

/// Pages a reader may keep, in KiB and negative as SQLite wants it: among a million leases the default
/// of 2 MiB made one look-up in a hundred three times as long as in an empty store.
const READER_CACHE: i64 = -64 * 1024;

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
    // Values of a kilobyte in the tree of the keys leave room for three keys a page: a look-up among
    // a million went through ten pages. Keys have a tree of their own now, of four.
    "
    CREATE TABLE keyed (
        id       INTEGER PRIMARY KEY,
        key      TEXT UNIQUE NOT NULL,
        value    BLOB NOT NULL,
        revision INTEGER NOT NULL
    );
    INSERT INTO keyed (key, value, revision)
        SELECT key, value, revision FROM entries ORDER BY key;
    DROP TABLE entries;
    ALTER TABLE keyed RENAME TO entries;
",
];

/// The first schema version whose logs have sealed ends.
pub(super) const SEALED_SINCE: i64 = 2;

/// The schema version this build reads and writes.
pub const SCHEMA_VERSION: i64 = MIGRATIONS.len() as i64;

/// Creates the file empty and readable by its owner alone; an existing one is left as it is.
pub(super) fn create_private(path: &Path) -> std::io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path).map(drop)
}

pub(in crate::store) fn configure(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(std::time::Duration::from_secs(10))?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // FULL syncs the log at every commit: an acknowledged change survives a power cut.
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    Ok(())
}

pub(super) fn open_reader(path: &Path) -> rusqlite::Result<Connection> {
    let flags = rusqlite::OpenFlags::default() - rusqlite::OpenFlags::SQLITE_OPEN_CREATE;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(std::time::Duration::from_secs(10))?;
    connection.pragma_update(None, "query_only", true)?;
    connection.pragma_update(None, "cache_size", READER_CACHE)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    Ok(connection)
}

/// Applies the missing migrations, each in its own transaction together with its version.
pub(super) fn migrate(connection: &mut Connection, found: i64) -> rusqlite::Result<()> {
    let done = usize::try_from(found).unwrap_or(0);
    for (index, sql) in MIGRATIONS.iter().enumerate().skip(done) {
        let step = connection.transaction_with_behavior(TransactionBehavior::Exclusive)?;
        step.execute_batch(sql)?;
        step.pragma_update(None, "user_version", i64::try_from(index + 1).unwrap_or(i64::MAX))?;
        step.commit()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{SqliteStore, Store as _, scan};

    #[test]
    fn a_file_of_any_earlier_version_keeps_everything() {
        for found in 0..MIGRATIONS.len() {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("test.db");
            let connection = Connection::open(&path).unwrap();
            configure(&connection).unwrap();
            for sql in &MIGRATIONS[..found] {
                connection.execute_batch(sql).unwrap();
            }
            connection.pragma_update(None, "user_version", i64::try_from(found).unwrap()).unwrap();
            let mut written = Vec::new();
            if found > 0 {
                for number in (0..50).rev() {
                    let (key, value) = (format!("lease/{number:02}"), vec![number; 900]);
                    connection
                        .execute(
                            "INSERT INTO entries (key, value, revision) VALUES (?1, ?2, ?3)",
                            rusqlite::params![key, value, 100 - i64::from(number)],
                        )
                        .unwrap();
                    written.insert(0, (key, value, 100 - u64::from(number)));
                }
                connection.execute("UPDATE position SET revision = 100", []).unwrap();
            }
            drop(connection);

            let store = SqliteStore::open(&path).unwrap();
            let kept = scan(&store, "").unwrap();
            let kept: Vec<_> =
                kept.into_iter().map(|(key, entry)| (key, entry.value, entry.revision)).collect();
            assert_eq!(kept, written, "from version {found}");
            assert_eq!(store.get("lease/07").unwrap().is_some(), found > 0);
            let raw = Connection::open(&path).unwrap();
            let version: i64 =
                raw.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
            assert_eq!(version, SCHEMA_VERSION);
        }
    }
}
