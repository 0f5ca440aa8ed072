//! The store in memory: for tests and simulations; it forgets everything with the process.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{
    Change, Condition, Entry, LogEntry, LogHead, LogSeal, Op, Outcome, Revision, Store, StoreError,
    Txn, Watch, Watchers,
};

/// A [`Store`] that lives in memory.
#[derive(Debug, Default)]
pub struct MemoryStore(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    revision: Revision,
    entries: BTreeMap<String, Entry>,
    logs: BTreeMap<String, Vec<LogEntry>>,
    heads: BTreeMap<String, LogHead>,
    seal: Option<LogSeal>,
    watchers: Watchers,
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store for MemoryStore {
    fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        Ok(self.inner().entries.get(key).cloned())
    }

    fn range(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, Entry)>, StoreError> {
        let start = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        Ok(self
            .inner()
            .entries
            .range::<str, _>((start, Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix))
            .take(limit)
            .map(|(key, entry)| (key.clone(), entry.clone()))
            .collect())
    }

    fn transact(&self, txn: Txn) -> Result<Outcome, StoreError> {
        let mut inner = self.inner();
        for condition in &txn.conditions {
            let found = inner.entries.get(condition.key()).map(|entry| entry.revision);
            let holds = match condition {
                Condition::Absent(_) => found.is_none(),
                Condition::At(_, revision) => found == Some(*revision),
            };
            if !holds {
                return Ok(Outcome::Conflict(condition.key().to_owned()));
            }
        }
        inner.revision += 1;
        let revision = inner.revision;
        let mut changes = Vec::new();
        for op in txn.ops {
            match op {
                Op::Put(key, value) => {
                    changes.push(Change { revision, key: key.clone(), value: Some(value.clone()) });
                    inner.entries.insert(key, Entry { value, revision });
                }
                Op::Delete(key) => {
                    if inner.entries.remove(&key).is_some() {
                        changes.push(Change { revision, key, value: None });
                    }
                }
                Op::Append(log, value) => {
                    let entries = inner.logs.entry(log.to_owned()).or_default();
                    let prev = entries.last().map_or([0; 32], |entry| entry.hash);
                    let seq = entries.last().map_or(1, |entry| entry.seq + 1);
                    let hash = LogEntry::expected_hash(&prev, seq, &value);
                    entries.push(LogEntry { seq, value, prev, hash });
                    let head = match &inner.seal {
                        Some(seal) => seal.head(log, seq, hash),
                        None => LogHead { seq, hash, seal: Vec::new() },
                    };
                    inner.heads.insert(log.to_owned(), head);
                }
                Op::Forget(log, through) => {
                    let entries = inner.logs.entry(log.to_owned()).or_default();
                    let last = entries.last().map_or(0, |entry| entry.seq);
                    entries.retain(|entry| entry.seq > through || entry.seq == last);
                }
            }
        }
        inner.watchers.publish(&changes);
        Ok(Outcome::Committed(revision))
    }

    fn log(&self, log: &str, after: u64, limit: usize) -> Result<Vec<LogEntry>, StoreError> {
        let inner = self.inner();
        let entries = inner.logs.get(log).map(Vec::as_slice).unwrap_or_default();
        Ok(entries.iter().filter(|entry| entry.seq > after).take(limit).cloned().collect())
    }

    fn log_head(&self, log: &str) -> Result<Option<LogHead>, StoreError> {
        Ok(self.inner().heads.get(log).cloned())
    }

    fn seal_logs(
        &self,
        seal: LogSeal,
        _expected: &[&str],
        _adopt: bool,
    ) -> Result<Vec<String>, StoreError> {
        self.inner().seal = Some(seal);
        Ok(Vec::new())
    }

    fn watch(&self, prefix: &str) -> Result<Watch, StoreError> {
        let mut inner = self.inner();
        let changes = inner.watchers.add(prefix);
        Ok(Watch { since: inner.revision, changes })
    }
}
