//! Who asks for the revocation list while many others do: it is made few times, and nobody is told
//! that it failed.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::{Arc, Barrier, Condvar, Mutex};

use common::meddled::{Meddle, Meddled};
use common::*;
use pki::store::*;
use pki::*;
use x509_parser::prelude::{CertificateRevocationList, FromDer};

const MANY: usize = 100;

/// Lets the first list be written when so many revocations are on record.
#[derive(Debug, Default)]
struct Gate {
    revoked: Mutex<usize>,
    all: Condvar,
}

fn puts(txn: &Txn, prefix: &str) -> bool {
    txn.ops.iter().any(|op| matches!(op, Op::Put(key, _) if key.starts_with(prefix)))
}

impl Meddle for Gate {
    fn transact(&self, store: &MemoryStore, txn: Txn) -> Result<Outcome, StoreError> {
        if puts(&txn, "crl/") {
            let revoked = self.revoked.lock().unwrap();
            drop(self.all.wait_while(revoked, |revoked| *revoked < MANY).unwrap());
        }
        let revokes = puts(&txn, "revoked/");
        let outcome = store.transact(txn)?;
        if revokes && matches!(outcome, Outcome::Committed(_)) {
            *self.revoked.lock().unwrap() += 1;
            self.all.notify_all();
        }
        Ok(outcome)
    }
}

#[test]
fn a_hundred_releases_at_once_share_two_lists() {
    let authority = authority_on(Arc::new(Meddled::new(Gate::default())));
    let leases: Vec<Enrolled> = (0..MANY).map(|_| enrolled(&authority).1).collect();
    let barrier = Barrier::new(MANY);
    let end = |enrolled: &Enrolled| {
        barrier.wait();
        authority.release(&enrolled.lease.id, "client", &OPERATOR, after(1)).unwrap();
        // Clocks are read before the wait, so they differ.
        authority.crl(after(1 + u64::from(enrolled.lease.id.as_bytes()[2]) % 3)).unwrap()
    };
    let lists: Vec<Arc<Crl>> = std::thread::scope(|scope| {
        let threads: Vec<_> = leases.iter().map(|lease| scope.spawn(|| end(lease))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for (enrolled, crl) in leases.iter().zip(&lists) {
        let (_, list) = CertificateRevocationList::from_der(&crl.der).unwrap();
        let serial = &enrolled.lease.certs[0].serial;
        let mut listed = list.iter_revoked_certificates();
        assert!(
            listed.any(|entry| Serial::from_bytes(entry.raw_serial()) == *serial),
            "list {} does not say what its caller did",
            crl.number
        );
    }
    // The first was begun before all had ended; the next one says everything.
    let newest = lists.iter().map(|crl| crl.number).max().unwrap();
    assert!(newest <= 2, "{newest} lists were made");
}

#[test]
fn a_list_that_is_there_is_not_read_again() {
    let authority = authority();
    let list = authority.crl(after(5)).unwrap();
    assert!(Arc::ptr_eq(&list, &authority.crl(after(600)).unwrap()));
    // A clock that was read a moment earlier asks for no new one; one that was set back does.
    assert!(Arc::ptr_eq(&list, &authority.crl(NOW).unwrap()));
    assert_eq!(authority.crl(NOW.minus(std::time::Duration::from_secs(60))).unwrap().number, 2);
}
