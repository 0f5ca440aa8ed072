//! Revoking many leases while they do not stand still, and revoking what a slip of the hand means.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::meddled::{Meddle, Meddled};
use common::*;
use pki::store::*;
use pki::*;
use serde_json::{Value, json};

/// Before each transaction that ends more leases than this, one of them moves.
#[derive(Debug)]
struct Restless {
    still: usize,
    moves: AtomicUsize,
}

impl Restless {
    fn store(still: usize) -> Arc<Meddled<Self>> {
        Arc::new(Meddled::new(Self { still, moves: AtomicUsize::new(0) }))
    }
}

impl Meddle for Restless {
    fn transact(&self, store: &MemoryStore, txn: Txn) -> Result<Outcome, StoreError> {
        let moved = txn.conditions.iter().filter(|is| matches!(is, Condition::At(..)));
        let leases: Vec<&str> =
            moved.map(Condition::key).filter(|key| key.starts_with("lease/")).collect();
        if leases.len() > self.still {
            let nth = self.moves.fetch_add(1, Ordering::Relaxed);
            let lease = leases[nth * 7919 % leases.len()];
            let mut renewal = Txn::new();
            renewal.put(lease, store.get(lease)?.unwrap().value);
            store.transact(renewal)?;
        }
        store.transact(txn)
    }
}

/// Live leases like the given one, each with a key and a certificate of its own.
fn multiply(store: &dyn Store, lease: &Lease, count: usize) {
    let stored = |key: &str| -> Value {
        serde_json::from_slice(&store.get(key).unwrap().unwrap().value).unwrap()
    };
    let cert = &lease.certs[0];
    let (mut record, mut certificate) = (
        stored(&format!("lease/{}", lease.id)),
        stored(&format!("cert/{}/{}", cert.issuer, cert.serial)),
    );
    let due = lease.deadline.unwrap().micros();
    let mut txn = Txn::new();
    for number in 0..count {
        let (id, serial) = (format!("r-{number:010}"), format!("7{number:039x}"));
        let hash = format!("{number:064x}");
        record["id"] = json!(id);
        record["spki_sha256"] = json!(hash);
        record["addresses"] = json!([]);
        record["certs"][0]["serial"] = json!(serial);
        certificate["serial"] = json!(serial);
        certificate["spki_sha256"] = json!(hash);
        certificate["lease_id"] = json!(id);
        txn.put(format!("lease/{id}"), record.to_string())
            .put(format!("cert/{}/{serial}", cert.issuer), certificate.to_string())
            .put(format!("spki/{hash}/{id}"), Vec::new())
            .put(format!("due/{due:020}/{id}"), Vec::new());
    }
    store.transact(txn).unwrap();
}

#[test]
fn thousands_of_leases_that_are_being_renewed_are_revoked() {
    const COUNT: usize = 3_000;
    let store = Restless::store(64);
    let authority = authority_on(Arc::clone(&store) as Arc<dyn Store>);
    let (_, first) = enrolled(&authority);
    multiply(store.as_ref(), &first.lease, COUNT - 1);
    assert_eq!(authority.leases(false).unwrap().len(), COUNT);

    let reason = RevocationReason::KeyCompromise;
    let role = RevokeSelector::Role("builder".into());
    let outcome = authority.revoke(&role, reason, &OPERATOR, after(1)).unwrap();

    assert!(store.by.moves.load(Ordering::Relaxed) > 0, "they did move");
    assert_eq!(outcome.failed, None);
    assert_eq!((outcome.revoked_now, outcome.barred_keys), (COUNT, COUNT));
    let ended: BTreeSet<&str> = outcome.changes.iter().map(|c| c.lease.id.as_str()).collect();
    assert_eq!((ended.len(), outcome.changes.len()), (COUNT, COUNT), "each once");
    assert!(outcome.changes.iter().all(|change| change.end_tunnels));
    assert!(authority.leases(false).unwrap().is_empty());
    assert_eq!(authority.crl(after(2)).unwrap().entries, COUNT);
}

#[test]
fn what_never_stands_still_is_told_beside_what_was_revoked() {
    for (still, ends) in [(0, false), (1, true)] {
        // Enrolment's one lease is new: its condition is that there is none.
        let authority = authority_on(Restless::store(still));
        let leases: Vec<_> = (0..3).map(|_| enrolled(&authority).1.lease).collect();
        let role = RevokeSelector::Role("builder".into());
        let reason = RevocationReason::Unspecified;
        let outcome = authority.revoke(&role, reason, &OPERATOR, after(1));
        if ends {
            assert_eq!(outcome.unwrap().changes.len(), leases.len(), "one by one");
        } else {
            assert_eq!(outcome, Err(Error::Contended("the revocation")));
        }
    }
}

fn invalid(authority: &Authority, selector: &RevokeSelector) -> String {
    let looked = authority.select(selector).unwrap_err();
    let reason = RevocationReason::KeyCompromise;
    let revoked = authority.revoke(selector, reason, &OPERATOR, after(1)).unwrap_err();
    assert_eq!(looked, revoked);
    match revoked {
        Error::Invalid(told) => told,
        other => panic!("{other}"),
    }
}

#[test]
fn an_identity_that_names_all_or_nothing_is_refused() {
    let authority = authority();
    let (_, enrolled) = enrolled(&authority);
    for identity in ["", "/", "spiffe:", "spiffe://", "spiffe:///role", "builder"] {
        let told = invalid(&authority, &RevokeSelector::Identity(identity.to_owned()));
        assert!(told.contains("spiffe://ci.example.com/"), "{told}");
    }
    let cut = enrolled.lease.identity.get(..enrolled.lease.identity.len() - 1).unwrap();
    let part = RevokeSelector::Identity(cut.to_owned());
    assert!(authority.select(&part).unwrap().is_empty(), "not at a segment's end");
}

#[test]
fn a_certificates_fingerprint_is_not_taken_for_a_key() {
    let authority = authority();
    let (_, enrolled) = enrolled(&authority);
    let digest = ring::digest::digest(&ring::digest::SHA256, &enrolled.certificate);
    let hash: String = digest.as_ref().iter().map(|octet| format!("{octet:02x}")).collect();
    let told = invalid(&authority, &RevokeSelector::Spki(hash));
    assert!(told.contains(&enrolled.lease.certs[0].serial.to_string()), "{told}");
    assert!(told.contains(&enrolled.lease.spki_sha256), "{told}");
    assert!(authority.bars().unwrap().is_empty());
}

fn github() -> (Arc<MemoryStore>, Authority) {
    let store = Arc::new(MemoryStore::new());
    let options = Options::new(github_settings());
    let shared = Arc::clone(&store) as Arc<dyn Store>;
    (store, Authority::with_store(shared, &[7; 32], options, NOW).unwrap())
}

fn run(run: &str, issuer: &str) -> RevokeSelector {
    RevokeSelector::Run { run: run.to_owned(), issuer: Some(issuer.to_owned()) }
}

#[test]
fn a_run_is_found_by_every_form_of_its_address() {
    let (store, authority) = github();
    let (_, enrolled) = enrolled(&authority);
    let key = format!("lease/{}", enrolled.lease.id);
    let mut record: Value =
        serde_json::from_slice(&store.get(&key).unwrap().unwrap().value).unwrap();
    record["ci_ref"] = json!({
        "run_id": "4711", "run_url": "https://github.com/Octo/App/actions/runs/4711"
    });
    record["claims"] = json!({ "iss": GITHUB });
    let mut txn = Txn::new();
    txn.put(key, record.to_string());
    store.transact(txn).unwrap();
    for form in [
        "4711",
        "https://github.com/Octo/App/actions/runs/4711",
        "https://github.com/octo/app/actions/runs/4711/",
        "https://GitHub.com/octo/app/actions/runs/4711/attempts/1",
        "https://github.com/octo/app/actions/runs/4711/job/12?pr=3",
    ] {
        for issuer in ["github", GITHUB, "https://token.actions.githubusercontent.com/"] {
            let found = authority.select(&run(form, issuer)).unwrap();
            assert_eq!(found.len(), 1, "{form} of {issuer}");
        }
    }
    let told = invalid(&authority, &run("4711", "gitlub"));
    assert!(told.contains("gitlub") && told.contains("github"), "{told}");
    let told = invalid(&authority, &RevokeSelector::Issuer("gitlub".into()));
    assert!(told.contains("github"), "{told}");
}

#[test]
fn a_run_without_a_lease_is_barred_so_that_it_matches_or_not_at_all() {
    let (_, authority) = github();
    let reason = RevocationReason::Unspecified;
    let revoke = |form: &str| authority.revoke(&run(form, "github"), reason, &OPERATOR, after(1));
    let outcome = revoke("https://github.com/octo/app/actions/runs/4711/attempts/2").unwrap();
    assert_eq!(outcome.barred, [format!("run 4711 of {GITHUB}")], "as every lease of it is named");
    assert!(revoke("4711").unwrap().barred.is_empty(), "it is the same run");
    for form in ["https://github.com/octo/app", "https://gitlab.com/a/b/-/x/1", "47i1", ""] {
        let told = revoke(form).unwrap_err();
        assert!(matches!(told, Error::Invalid(_)), "{form}: {told}");
    }
    assert_eq!(authority.bars().unwrap().len(), 1);
}
