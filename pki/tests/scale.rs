//! What an operation reads does not depend on how many leases there are, live or ended. (That no
//! statement of the store walks a table is a test of the store.)
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::*;
use pki::store::{
    Entry, LogEntry, LogHead, LogSeal, MemoryStore, Outcome, Store, StoreError, Txn, Watch,
};
use pki::*;

/// A store that counts the entries it gives away.
#[derive(Debug, Default)]
struct Counting {
    inner: MemoryStore,
    read: AtomicUsize,
}

impl Store for Counting {
    fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.read.fetch_add(1, Ordering::Relaxed);
        self.inner.get(key)
    }
    fn range(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, Entry)>, StoreError> {
        let found = self.inner.range(prefix, after, limit)?;
        self.read.fetch_add(found.len(), Ordering::Relaxed);
        Ok(found)
    }
    fn transact(&self, txn: Txn) -> Result<Outcome, StoreError> {
        self.inner.transact(txn)
    }
    fn log(&self, log: &str, after: u64, limit: usize) -> Result<Vec<LogEntry>, StoreError> {
        let found = self.inner.log(log, after, limit)?;
        self.read.fetch_add(found.len(), Ordering::Relaxed);
        Ok(found)
    }
    fn log_head(&self, log: &str) -> Result<Option<LogHead>, StoreError> {
        self.inner.log_head(log)
    }
    fn seal_logs(
        &self,
        seal: LogSeal,
        expected: &[&str],
        adopt: bool,
    ) -> Result<Vec<String>, StoreError> {
        self.inner.seal_logs(seal, expected, adopt)
    }
    fn snapshot(&self, to: &Path) -> Result<(), StoreError> {
        self.inner.snapshot(to)
    }
    fn watch(&self, prefix: &str) -> Result<Watch, StoreError> {
        self.inner.watch(prefix)
    }
}

/// What each operation of a lease's life reads beside so many other leases.
fn reads(live: usize, ended: usize) -> Vec<(&'static str, usize)> {
    let store = Arc::new(Counting::default());
    let authority = authority_on(Arc::<Counting>::clone(&store));
    for number in 0..live + ended {
        let (_, enrolled) = enrolled(&authority);
        authority.connected(&enrolled.lease.id, NOW).unwrap();
        if number < ended {
            authority.release(&enrolled.lease.id, "client", &OPERATOR, NOW).unwrap();
        }
    }
    let (_, other) = enrolled(&authority);
    let mut counts = Vec::new();
    let mut count = |what, operation: &mut dyn FnMut()| {
        let before = store.read.load(Ordering::Relaxed);
        operation();
        counts.push((what, store.read.load(Ordering::Relaxed) - before));
    };
    let (client, token) = (Client::new(), token(&authority));
    let mut opened = None;
    count("enrol", &mut || opened = Some(client.enrol(&authority, &token, after(1))));
    let enrolled = opened.unwrap();
    let id = &enrolled.lease.id;
    let cert = enrolled.lease.cert().unwrap();
    count("find by id", &mut || assert!(authority.lease(id).unwrap().is_some()));
    count("find by certificate", &mut || {
        assert!(authority.lease_by_serial(None, &cert.serial).unwrap().is_some());
    });
    let address = enrolled.lease.addresses[0];
    count("find by address", &mut || {
        assert!(authority.lease_by_address(address).unwrap().is_some());
    });
    count("authorise", &mut || {
        let peer = peer(&authority, &enrolled, after(2));
        authority.authorise(&peer, after(2)).unwrap();
    });
    count("connect", &mut || drop(authority.connected(id, after(2)).unwrap()));
    let later = after(2_400);
    let holder = peer(&authority, &enrolled, later);
    count("renew", &mut || {
        drop(authority.renew(&holder, &Client::new().csr(), None, later).unwrap())
    });
    count("disconnect", &mut || drop(authority.disconnected(id, "gone", later).unwrap()));
    count("release", &mut || drop(authority.release(id, "client", &OPERATOR, later).unwrap()));
    let selector = RevokeSelector::Lease(other.lease.id.clone());
    count("revoke", &mut || {
        let reason = RevocationReason::KeyCompromise;
        assert_eq!(authority.revoke(&selector, reason, &OPERATOR, later).unwrap().revoked_now, 1);
    });
    count("record", &mut || {
        authority.record_audit(&AuditEvent::new("test.event", &OPERATOR, later)).unwrap();
    });
    count("sign the trail", &mut || authority.checkpoint("hour", later).unwrap());
    counts
}

#[test]
fn no_operation_reads_more_beside_many_leases() {
    let (few, many) = (reads(2, 2), reads(40, 80));
    assert_eq!(few, many);
    for (what, count) in many {
        assert!(count <= 40, "{what} reads {count} entries");
    }
}
