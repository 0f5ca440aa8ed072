//! Every statement that runs while the gateway works. Each finds its rows by a key: none becomes
//! slower with the number of ended leases, which a test of their plans sees to.

/// A value by its key.
pub(super) const GET: &str = "SELECT value, revision FROM entries WHERE key = ?1";
/// Entries behind a key, in order.
pub(super) const RANGE_AFTER: &str =
    "SELECT key, value, revision FROM entries WHERE key > ?1 ORDER BY key LIMIT ?2";
/// Entries from a key on, in order.
pub(super) const RANGE_FROM: &str =
    "SELECT key, value, revision FROM entries WHERE key >= ?1 ORDER BY key LIMIT ?2";
/// What a condition compares.
pub(super) const REVISION: &str = "SELECT revision FROM entries WHERE key = ?1";
/// Writes a value.
pub(super) const PUT: &str = "INSERT INTO entries (key, value, revision) VALUES (?1, ?2, ?3)
     ON CONFLICT (key) DO UPDATE SET value = excluded.value, revision = excluded.revision";
/// Removes a value.
pub(super) const DELETE: &str = "DELETE FROM entries WHERE key = ?1";
/// Records of a log behind a position.
pub(super) const LOG: &str =
    "SELECT seq, CAST(value AS BLOB), CAST(prev AS BLOB), CAST(hash AS BLOB) FROM logs
     WHERE log = ?1 AND seq > ?2 ORDER BY seq LIMIT ?3";
/// Appends a record. What somebody else put there gives way: it must not stop the log.
pub(super) const APPEND: &str =
    "INSERT OR REPLACE INTO logs (log, seq, prev, hash, value) VALUES (?1, ?2, ?3, ?4, ?5)";
/// Removes the records of a log up to a position, but the last.
pub(super) const FORGET: &str = "DELETE FROM logs WHERE log = ?1 AND seq <= ?2
     AND seq < (SELECT max(seq) FROM logs WHERE log = ?1)";
/// The end of a log.
pub(super) const HEAD: &str =
    "SELECT log, seq, CAST(hash AS BLOB), CAST(seal AS BLOB) FROM heads WHERE log = ?1";
/// Moves the end of a log.
pub(super) const WRITE_HEAD: &str =
    "INSERT INTO heads (log, seq, hash, seal) VALUES (?1, ?2, ?3, ?4)
     ON CONFLICT (log) DO UPDATE
     SET seq = excluded.seq, hash = excluded.hash, seal = excluded.seal";
/// The newest revision.
pub(super) const POSITION: &str = "SELECT revision FROM position WHERE only = 1";
/// Moves it.
pub(super) const ADVANCE: &str = "UPDATE position SET revision = ?1 WHERE only = 1";
/// The next log by name, at a start.
pub(super) const NEXT_LOG: &str = "SELECT min(log) FROM logs WHERE log > ?1";
/// The last record of a log up to a position, at a start.
pub(super) const LAST_BELOW: &str = "SELECT max(seq) FROM logs WHERE log = ?1 AND seq <= ?2";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::SqliteStore;

    const ALL: &[&str] = &[
        GET,
        RANGE_AFTER,
        RANGE_FROM,
        REVISION,
        PUT,
        DELETE,
        LOG,
        APPEND,
        FORGET,
        HEAD,
        WRITE_HEAD,
        POSITION,
        ADVANCE,
        NEXT_LOG,
        LAST_BELOW,
    ];

    fn plan(connection: &rusqlite::Connection, sql: &str) -> Vec<String> {
        let mut statement = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
        let parameters = vec![rusqlite::types::Null; statement.parameter_count()];
        let rows = statement
            .query_map(rusqlite::params_from_iter(parameters), |row| row.get::<_, String>(3))
            .unwrap();
        rows.map(Result::unwrap).collect()
    }

    #[test]
    fn no_statement_walks_a_table() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("test.db");
        drop(SqliteStore::open(&path).unwrap());
        let connection = rusqlite::Connection::open(&path).unwrap();
        // What the test would find.
        assert!(plan(&connection, "SELECT * FROM entries WHERE value = ?1")[0].starts_with("SCAN"));
        for sql in ALL {
            for step in plan(&connection, sql) {
                assert!(!step.contains("SCAN") && !step.contains("TEMP B-TREE"), "{sql}: {step}");
            }
        }
    }

    /// A statement that is written elsewhere would not be looked at.
    #[test]
    fn every_prepared_statement_is_one_of_these() {
        let sources = [include_str!("mod.rs"), include_str!("writer.rs"), include_str!("ends.rs")];
        for source in sources {
            let source = source.split("#[cfg(test)]").next().unwrap();
            for call in ["prepare_cached(", "prepare(", "query_row(\"", "execute(\""] {
                for (at, _) in source.match_indices(call) {
                    let argument = source[at + call.len()..].trim_start();
                    let cold = ["\"SELECT log, seq, CAST(hash", "VACUUM INTO"];
                    assert!(
                        argument.starts_with("sql::")
                            || argument.starts_with("match after")
                            || cold.iter().any(|cold| argument.starts_with(cold)),
                        "{call}{}",
                        argument.lines().next().unwrap()
                    );
                }
            }
        }
    }
}
