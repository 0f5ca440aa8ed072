//! A store in memory with something on the way of its transactions.

use std::fmt::Debug;

use pki::store::*;

/// What is on the way.
pub trait Meddle: Debug + Send + Sync {
    /// Commits the transaction to the store, with whatever comes before and after it.
    fn transact(&self, store: &MemoryStore, txn: Txn) -> Result<Outcome, StoreError>;
}

/// The store.
#[derive(Debug)]
pub struct Meddled<M> {
    pub store: MemoryStore,
    pub by: M,
}

impl<M> Meddled<M> {
    pub fn new(by: M) -> Self {
        Self { store: MemoryStore::new(), by }
    }
}

impl<M: Meddle> Store for Meddled<M> {
    fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.store.get(key)
    }

    fn range(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, Entry)>, StoreError> {
        self.store.range(prefix, after, limit)
    }

    fn transact(&self, txn: Txn) -> Result<Outcome, StoreError> {
        self.by.transact(&self.store, txn)
    }

    fn log(&self, log: &str, after: u64, limit: usize) -> Result<Vec<LogEntry>, StoreError> {
        self.store.log(log, after, limit)
    }

    fn log_head(&self, log: &str) -> Result<Option<LogHead>, StoreError> {
        self.store.log_head(log)
    }

    fn seal_logs(
        &self,
        seal: LogSeal,
        expected: &[&str],
        adopt: bool,
    ) -> Result<Vec<String>, StoreError> {
        self.store.seal_logs(seal, expected, adopt)
    }

    fn watch(&self, prefix: &str) -> Result<Watch, StoreError> {
        self.store.watch(prefix)
    }
}
