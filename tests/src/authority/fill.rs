//! Fills a store with leases as the authority writes them: what it wrote for one is written again
//! under other names, in the order of the keys, because opening a million one by one takes hours.

use std::path::Path;

use anyhow::{Context, Result};
use pki::store::{Outcome, SqliteStore, Store, Txn, scan};
use pki::{Lease, RevocationReason};

use super::{OPERATOR, ROLE, enrol, now, open, request, token};

/// Writes of one transaction.
const TOGETHER: usize = 10_000;

/// A lease and what the store holds of it.
struct Model {
    lease: Lease,
    records: Vec<(String, String)>,
}

/// What becomes of the model before it is looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Life {
    /// It waits for its first tunnel.
    Live,
    /// It was used, released, and its address rested.
    Ended,
    /// Its certificate is on the revocation list.
    Revoked,
}

/// Numbers of the copies: those of different lives differ.
fn first(life: Life) -> usize {
    match life {
        Life::Live => 0,
        Life::Ended => 1_000_000_000,
        Life::Revoked => 2_000_000_000,
    }
}

/// The id of a copy.
pub(super) fn lease_id(life: Life, number: usize) -> String {
    format!("r-{:010}", first(life) + number)
}

/// The serial number of a copy, as text as long as the model's.
pub(super) fn serial(model: &str, life: Life, number: usize) -> String {
    let width = model.len().saturating_sub(2);
    // Positive, as the model is.
    format!("01{:0width$}", first(life) + number)
}

/// Writes so many leases of a kind into the store of a directory that nobody has open; the serial
/// number of the one they are made after.
///
/// # Errors
/// When the authority or the store refuses.
pub(super) fn fill(directory: &Path, life: Life, count: usize) -> Result<String> {
    let model = model(directory, life)?;
    let serial = model.lease.cert().context("no certificate")?.serial.to_string();
    let store = SqliteStore::open(&directory.join("runnel.db"))?;
    let mut txn = Txn::new();
    // One kind of key after the other: each grows at its end only.
    for (key, value) in &model.records {
        for number in 0..count {
            let (key, value) = copy(&model.lease, &serial, key, value, life, number);
            txn.put(key, value);
            if txn.ops.len() == TOGETHER {
                commit(&store, std::mem::take(&mut txn))?;
            }
        }
    }
    commit(&store, txn)?;
    Ok(serial)
}

fn commit(store: &SqliteStore, txn: Txn) -> Result<()> {
    match store.transact(txn)? {
        Outcome::Committed(_) => Ok(()),
        Outcome::Conflict(key) => anyhow::bail!("conflict on {key}"),
    }
}

fn model(directory: &Path, life: Life) -> Result<Model> {
    let authority = open(directory)?;
    let (_, enrolled) = enrol(&authority, &token(&authority)?, &request()?)?;
    let id = enrolled.lease.id.clone();
    match life {
        Life::Live => {}
        Life::Ended => {
            authority.connected(&id, now())?;
            authority.release(&id, "client", &OPERATOR, now())?;
        }
        Life::Revoked => {
            let selector = pki::RevokeSelector::Lease(id.clone());
            authority.revoke(&selector, RevocationReason::KeyCompromise, &OPERATOR, now())?;
        }
    }
    let lease = authority.lease(&id)?.context("the lease is gone")?;
    drop(authority);
    let store = SqliteStore::open(&directory.join("runnel.db"))?;
    let serial = lease.cert().context("no certificate")?.serial.to_string();
    // What is forgotten when an address has rested, a token and a released certificate have expired.
    let gone: &[&str] = match life {
        Life::Live | Life::Revoked => &["token/"],
        Life::Ended => &["token/", "addr/", "revoked/"],
    };
    let concerns =
        |key: &str, value: &str| key.contains(&id) || key.contains(&serial) || value.contains(&id);
    let mut records = Vec::new();
    for (key, entry) in scan(&store, "")? {
        let value = String::from_utf8_lossy(&entry.value).into_owned();
        if concerns(&key, &value) && !gone.iter().any(|prefix| key.starts_with(prefix)) {
            records.push((key, value));
        }
    }
    anyhow::ensure!(records.len() >= 3, "only {} records of a lease of {ROLE}", records.len());
    Ok(Model { lease, records })
}

/// A record of the model under a copy's names.
fn copy(
    model: &Lease,
    serial_text: &str,
    key: &str,
    value: &str,
    life: Life,
    number: usize,
) -> (String, String) {
    let spki = format!("{:064x}", first(life) + number);
    let mut pairs = vec![
        (model.id.clone(), lease_id(life, number)),
        (serial_text.to_owned(), serial(serial_text, life, number)),
        (model.spki_sha256.clone(), spki),
    ];
    if let Some(address) = model.v4() {
        // Away from where the authority begins to choose.
        let other = u32::from(std::net::Ipv4Addr::new(10, 128, 0, 0));
        let other = other.saturating_add(u32::try_from(number).unwrap_or(0));
        pairs.push((format!("{:08x}", u32::from(address)), format!("{other:08x}")));
        let other = std::net::Ipv4Addr::from(other);
        pairs.push((format!("\"{address}\""), format!("\"{other}\"")));
    }
    let renamed = |text: &str| {
        pairs.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from.as_str(), to))
    };
    (renamed(key), renamed(value))
}
