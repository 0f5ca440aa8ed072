//! The contract of [`Store`] as tests, run on every backend.

use std::sync::mpsc::TryRecvError;
use std::sync::{Arc, Barrier};

use proptest::prelude::*;

use super::*;

fn put(key: &str, value: &str) -> Txn {
    let mut txn = Txn::new();
    txn.put(key, value);
    txn
}

fn committed(store: &dyn Store, txn: Txn) -> Revision {
    match store.transact(txn).unwrap() {
        Outcome::Committed(revision) => revision,
        Outcome::Conflict(key) => panic!("conflict on {key}"),
    }
}

fn values(entries: &[(String, Entry)]) -> Vec<(&str, &str)> {
    entries
        .iter()
        .map(|(key, entry)| (key.as_str(), std::str::from_utf8(&entry.value).unwrap()))
        .collect()
}

fn reads_what_was_written(store: &dyn Store) {
    assert_eq!(store.get("a").unwrap(), None);
    let first = committed(store, put("a", "1"));
    let entry = store.get("a").unwrap().unwrap();
    assert_eq!((entry.value.as_slice(), entry.revision), (&b"1"[..], first));
    let second = committed(store, put("a", "2"));
    assert!(second > first);
    assert_eq!(store.get("a").unwrap().unwrap().revision, second);
    let mut delete = Txn::new();
    delete.delete("a").delete("never there");
    committed(store, delete);
    assert_eq!(store.get("a").unwrap(), None);
    committed(store, put("empty", ""));
    assert_eq!(store.get("empty").unwrap().unwrap().value, b"");
}

fn a_failed_condition_changes_nothing(store: &dyn Store) {
    let revision = committed(store, put("a", "1"));
    let mut txn = Txn::new();
    txn.at("a", revision).absent("b").put("a", "2").put("b", "2").append("log", "x");
    committed(store, txn.clone());
    // Both conditions are false now; the first in order is named.
    assert_eq!(store.transact(txn).unwrap(), Outcome::Conflict("a".to_owned()));
    let mut absent = Txn::new();
    absent.absent("b").put("c", "3").append("log", "y");
    assert_eq!(store.transact(absent).unwrap(), Outcome::Conflict("b".to_owned()));
    let mut missing = Txn::new();
    missing.at("never there", 1).put("c", "3");
    assert_eq!(store.transact(missing).unwrap(), Outcome::Conflict("never there".to_owned()));
    assert_eq!(store.get("c").unwrap(), None);
    assert_eq!(store.log("log", 0, 10).unwrap().len(), 1);
}

fn ranges_are_ordered_paged_and_bounded_by_their_prefix(store: &dyn Store) {
    for key in ["p/2", "p/1", "p/10", "p", "q/1", "o/9", "p0"] {
        committed(store, put(key, key));
    }
    let all = store.range("p/", None, 10).unwrap();
    assert_eq!(values(&all), [("p/1", "p/1"), ("p/10", "p/10"), ("p/2", "p/2")]);
    let first = store.range("p/", None, 2).unwrap();
    assert_eq!(values(&first), [("p/1", "p/1"), ("p/10", "p/10")]);
    let rest = store.range("p/", Some("p/10"), 2).unwrap();
    assert_eq!(values(&rest), [("p/2", "p/2")]);
    assert!(store.range("p/", Some("p/2"), 2).unwrap().is_empty());
    // A position before the prefix is no position within it.
    assert_eq!(store.range("p/", Some("a"), 10).unwrap().len(), 3);
    assert_eq!(store.range("", None, 100).unwrap().len(), 7);
    assert_eq!(store.range("p/", None, 0).unwrap().len(), 0);
    assert!(store.range("zz", None, 10).unwrap().is_empty());
}

fn scans_read_every_page(store: &dyn Store) {
    let mut txn = Txn::new();
    for number in 0..1_203 {
        txn.put(format!("s/{number:05}"), "x");
    }
    committed(store, txn);
    assert_eq!(scan(store, "s/").unwrap().len(), 1_203);
}

fn logs_are_numbered_and_chained(store: &dyn Store) {
    for value in ["one", "two", "three"] {
        let mut txn = Txn::new();
        txn.append("audit", value).append("other", value);
        committed(store, txn);
    }
    let entries = store.log("audit", 0, 10).unwrap();
    assert_eq!(entries.iter().map(|entry| entry.seq).collect::<Vec<_>>(), [1, 2, 3]);
    let mut prev = [0; 32];
    for entry in &entries {
        assert_eq!(entry.prev, prev);
        assert_eq!(entry.hash, LogEntry::expected_hash(&prev, entry.seq, &entry.value));
        prev = entry.hash;
    }
    assert_eq!(store.log("audit", 1, 1).unwrap(), entries[1..2]);
    assert_eq!(store.log("nothing", 0, 10).unwrap(), []);
}

fn old_entries_of_a_log_can_be_forgotten(store: &dyn Store) {
    for value in ["one", "two", "three"] {
        let mut txn = Txn::new();
        txn.append("audit", value).append("other", value);
        committed(store, txn);
    }
    let before = store.log("audit", 0, 10).unwrap();
    let mut txn = Txn::new();
    txn.forget("audit", 2).append("audit", "four").put("with it", "1");
    committed(store, txn);
    let after = store.log("audit", 0, 10).unwrap();
    assert_eq!(after.iter().map(|entry| entry.seq).collect::<Vec<_>>(), [3, 4]);
    assert_eq!((&after[0], after[1].prev), (&before[2], before[2].hash));
    assert_eq!(store.log("other", 0, 10).unwrap().len(), 3, "of this log only");
    // The last one stays: the log goes on behind it.
    let mut txn = Txn::new();
    txn.forget("audit", u64::MAX);
    committed(store, txn);
    assert_eq!(store.log("audit", 0, 10).unwrap(), after[1..]);
    assert_eq!(store.log_head("audit").unwrap().unwrap().seq, 4);
    // Nor does a transaction forget that is not applied.
    let mut txn = Txn::new();
    txn.absent("with it").forget("other", 2);
    store.transact(txn).unwrap();
    assert_eq!(store.log("other", 0, 10).unwrap().len(), 3);
}

fn watches_see_changes_in_order_from_their_start(store: &dyn Store) {
    let before = committed(store, put("w/a", "0"));
    let watch = store.watch("w/").unwrap();
    assert_eq!(watch.since, before);
    let mut txn = Txn::new();
    txn.put("w/b", "1").delete("w/a").put("elsewhere", "2");
    let revision = committed(store, txn);
    let change = |key: &str, value: Option<&str>| Change {
        revision,
        key: key.to_owned(),
        value: value.map(|value| value.as_bytes().to_vec()),
    };
    assert_eq!(watch.changes.recv().unwrap(), change("w/b", Some("1")));
    assert_eq!(watch.changes.recv().unwrap(), change("w/a", None));
    let mut refused = Txn::new();
    refused.absent("w/b").put("w/b", "3");
    store.transact(refused).unwrap();
    assert_eq!(watch.changes.try_recv(), Err(TryRecvError::Empty));
}

fn a_slow_watcher_is_cut_off_instead_of_growing(store: &dyn Store) {
    let watch = store.watch("").unwrap();
    let mut txn = Txn::new();
    for number in 0..=WATCH_BACKLOG {
        txn.put(format!("{number}"), "x");
    }
    committed(store, txn);
    assert_eq!(watch.changes.iter().count(), WATCH_BACKLOG);
}

fn one_of_many_racing_writers_wins(store: Arc<dyn Store>) {
    const WRITERS: usize = 16;
    let start = Arc::new(Barrier::new(WRITERS));
    let threads: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let (store, start) = (Arc::clone(&store), Arc::clone(&start));
            std::thread::spawn(move || {
                start.wait();
                let mut txn = Txn::new();
                txn.absent("race").put("race", writer.to_string()).append("race", "x");
                matches!(store.transact(txn).unwrap(), Outcome::Committed(_))
            })
        })
        .collect();
    let winners = threads.into_iter().filter_map(|thread| thread.join().unwrap().then_some(()));
    assert_eq!(winners.count(), 1);
    assert_eq!(store.log("race", 0, 10).unwrap().len(), 1);
}

macro_rules! suite {
    ($backend:ident, $open:expr, $($case:ident),* $(,)?) => {
        mod $backend {
            use super::*;
            $(
                #[test]
                fn $case() {
                    let (_keep, store) = $open;
                    super::$case(&store);
                }
            )*
            #[test]
            fn one_of_many_racing_writers_wins() {
                let (_keep, store) = $open;
                super::one_of_many_racing_writers_wins(Arc::new(store));
            }
        }
    };
}

macro_rules! on_every_backend {
    ($($case:ident),* $(,)?) => {
        suite!(memory, ((), MemoryStore::new()), $($case),*);
        suite!(sqlite, open_sqlite(), $($case),*);
    };
}

on_every_backend!(
    reads_what_was_written,
    a_failed_condition_changes_nothing,
    ranges_are_ordered_paged_and_bounded_by_their_prefix,
    scans_read_every_page,
    logs_are_numbered_and_chained,
    old_entries_of_a_log_can_be_forgotten,
    watches_see_changes_in_order_from_their_start,
    a_slow_watcher_is_cut_off_instead_of_growing,
);

fn open_sqlite() -> (tempfile::TempDir, SqliteStore) {
    let directory = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(&directory.path().join("test.db")).unwrap();
    (directory, store)
}

#[derive(Clone, Debug)]
enum Action {
    Put(u8, u8),
    Delete(u8),
    PutIfAbsent(u8, u8),
    Append(u8),
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        (0u8..6, any::<u8>()).prop_map(|(key, value)| Action::Put(key, value)),
        (0u8..6).prop_map(Action::Delete),
        (0u8..6, any::<u8>()).prop_map(|(key, value)| Action::PutIfAbsent(key, value)),
        any::<u8>().prop_map(Action::Append),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// The backends differ in nothing a caller can see.
    #[test]
    fn backends_agree(
        txns in proptest::collection::vec(proptest::collection::vec(action(), 1..5), 1..12)
    ) {
        let memory = MemoryStore::new();
        let (_directory, sqlite) = open_sqlite();
        for actions in txns {
            let mut txn = Txn::new();
            for action in actions {
                match action {
                    Action::Put(key, value) => txn.put(format!("k{key}"), vec![value]),
                    Action::Delete(key) => txn.delete(format!("k{key}")),
                    Action::PutIfAbsent(key, value) => {
                        txn.absent(format!("k{key}")).put(format!("k{key}"), vec![value])
                    }
                    Action::Append(value) => txn.append("log", vec![value]),
                };
            }
            prop_assert_eq!(memory.transact(txn.clone()), sqlite.transact(txn));
        }
        prop_assert_eq!(memory.range("", None, 100), sqlite.range("", None, 100));
        prop_assert_eq!(memory.log("log", 0, 1000), sqlite.log("log", 0, 1000));
    }
}

#[test]
fn sqlite_keeps_everything_across_a_reopen() {
    let (directory, store) = open_sqlite();
    let mut txn = Txn::new();
    txn.put("a", "1").append("log", "x");
    let revision = committed(&store, txn);
    drop(store);
    let store = SqliteStore::open(&directory.path().join("test.db")).unwrap();
    assert_eq!(store.get("a").unwrap().unwrap().revision, revision);
    assert_eq!(committed(&store, put("a", "2")), revision + 1);
    let mut txn = Txn::new();
    txn.append("log", "y");
    committed(&store, txn);
    let log = store.log("log", 0, 10).unwrap();
    assert_eq!(log[1].prev, log[0].hash);
}

#[test]
fn a_newer_schema_is_refused_and_left_alone() {
    let (directory, store) = open_sqlite();
    committed(&store, put("a", "1"));
    drop(store);
    let path = directory.path().join("test.db");
    let raw = rusqlite::Connection::open(&path).unwrap();
    raw.pragma_update(None, "user_version", SCHEMA_VERSION + 1).unwrap();
    drop(raw);
    let error = SqliteStore::open(&path).unwrap_err();
    assert!(matches!(error, StoreError::NewerSchema { found, .. } if found == SCHEMA_VERSION + 1));
    assert!(error.to_string().contains("install the version that wrote it"), "{error}");
    let raw = rusqlite::Connection::open(&path).unwrap();
    let rows: i64 = raw.query_row("SELECT count(*) FROM entries", [], |row| row.get(0)).unwrap();
    assert_eq!(rows, 1);
}

#[test]
fn a_file_that_is_no_database_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("test.db");
    std::fs::write(&path, "this is not a database, it is a note of some length").unwrap();
    assert!(matches!(SqliteStore::open(&path), Err(StoreError::Backend { .. })));
    assert!(SqliteStore::open(&directory.path().join("missing/test.db")).is_err());
}

#[cfg(unix)]
#[test]
fn the_database_is_readable_by_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let (directory, store) = open_sqlite();
    committed(&store, put("a", "1"));
    for file in std::fs::read_dir(directory.path()).unwrap() {
        let file = file.unwrap();
        let mode = file.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{:?}", file.file_name());
    }
}
