//! The file: made private, brought to the schema of this version, opened for reading.

use std::path::Path;

use rusqlite::{Connection, TransactionBehavior};

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
