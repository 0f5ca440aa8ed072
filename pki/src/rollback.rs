//! A store that is older than what was revoked since: found at every start by the revocation journal,
//! and brought up to it before anything else happens.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::audit::{self, Actor, AuditEvent};
use crate::authority::Authority;
use crate::crl::Crl;
use crate::entropy::{Entropy, random_text};
use crate::error::Error;
use crate::issue::CertRecord;
use crate::journal::Found;
use crate::record::{self, key};
use crate::revoke::{Order, RevocationReason, RevokedEntry};
use crate::select::RevokeSelector;
use crate::serial::Serial;
use crate::store::{self, LogSeal, Outcome, Replay, SqliteStore, Store, Txn};
use crate::time::UnixTime;

/// Revocation lists that somebody may have seen although nothing is left of them: numbers go on
/// above the seconds of the clock, which no gateway overtakes by publishing.
const LISTS: u64 = 1_000_000;
/// No token of a CI platform lives longer.
const TOKEN_LIFE: std::time::Duration = std::time::Duration::from_secs(25 * 3_600);

/// What is left to be done after the store was brought up to its journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pending {
    /// Lists that may have been published in between, at most.
    lists: u64,
    /// Nothing is known of what happened since: everything that was good is revoked.
    #[serde(default)]
    lost: bool,
}

/// What a start found.
#[derive(Debug)]
pub(crate) enum Standing {
    /// The store is as new as its journal.
    Current,
    /// It went back, and got so many later changes again.
    Replayed(usize),
}

/// What a start found where state and journal are.
#[derive(Debug)]
pub(crate) struct Reconciled {
    pub(crate) store: SqliteStore,
    pub(crate) standing: Standing,
    /// Places of the journal that were damaged, and written anew from another.
    pub(crate) mended: Vec<PathBuf>,
}

/// Compares a store with its journal. A store that went back is closed, brought up to the journal
/// and opened again; the journal is then kept by it.
pub(crate) fn reconcile(
    store: SqliteStore,
    found: Found,
    seal: &LogSeal,
    accept_loss: Option<&str>,
    entropy: &mut dyn Entropy,
    now: UnixTime,
) -> Result<Reconciled, Error> {
    let (mut store, mut found) = (store, found);
    let restored = store.get(key::RESTORED)?.is_some();
    let mended = found.damaged().to_vec();
    let known = store.get(key::JOURNAL)?;
    let known = known.map(|entry| String::from_utf8_lossy(&entry.value).into_owned());
    let fits = match (known.as_deref(), found.epoch()) {
        (Some(known), Some(epoch)) => known == epoch,
        (Some(_), None) => false,
        (None, _) => true,
    };
    let fresh = random_text(entropy, 16)?;
    let places: Vec<_> = found.places().iter().map(|place| place.to_string_lossy()).collect();
    let places = record::encode(&places);
    if !fits {
        let last = last_record(&store)?;
        if accept_loss.is_none_or(|accepted| accepted != last.to_string()) {
            return Err(unknown(&store, found.epoch().is_some(), last));
        }
        let records = store.log_head(audit::LOG)?.map_or(0, |head| head.seq);
        let journal = found.afresh().open(&fresh, store.revision(), records)?;
        store.keep_journal(journal)?;
        let pending = Pending { lists: LISTS, lost: true };
        let mut txn = Txn::new();
        txn.put(key::JOURNAL, fresh).put(key::REPLAY, record::encode(&pending));
        txn.put(key::JOURNAL_PLACES, places).delete(key::RESTORED);
        store.transact(txn)?;
        return Ok(Reconciled { store, standing: Standing::Current, mended });
    }
    none_is_missing(&store, &found)?;
    found.decide(store.revision(), restored);
    let mut standing = Standing::Current;
    // A restored store may have used revisions, numbers and positions that the journal says nothing
    // about, because nothing that is journaled changed.
    if restored || found.last() > store.revision() {
        let facts = found.facts_after(store.revision());
        let (revision, records) = found.reserved();
        let head = store.log_head(audit::LOG)?.map_or(0, |head| head.seq);
        let pending = Pending { lists: revision.saturating_sub(store.revision()), lost: false };
        let event = AuditEvent::new("state.restore", &Actor::System, now).reason(format!(
            "the store was at revision {} of {}: {} later changes were written again",
            store.revision(),
            found.last(),
            facts.len()
        ));
        let replay = Replay {
            facts: &facts,
            revision: revision.max(store.revision() + 1),
            records: records.max(head),
            event: audit::encode(&event),
            marker: (key::REPLAY, record::encode(&pending)),
            done: key::RESTORED,
        };
        let path = store.path().to_owned();
        drop(store);
        store::replay(&path, &replay, seal)?;
        store = SqliteStore::open(&path)?;
        standing = Standing::Replayed(facts.len());
    }
    let records = store.log_head(audit::LOG)?.map_or(0, |head| head.seq);
    let journal = found.open(&fresh, store.revision(), records)?;
    let epoch = journal.epoch().to_owned();
    store.keep_journal(journal)?;
    let mut txn = Txn::new();
    if known.is_none() {
        txn.put(key::JOURNAL, epoch);
    }
    if store.get(key::JOURNAL_PLACES)?.is_none_or(|known| known.value != places) {
        txn.put(key::JOURNAL_PLACES, places);
    }
    if !txn.ops.is_empty() {
        store.transact(txn)?;
    }
    Ok(Reconciled { store, standing, mended })
}

/// A second place that had the journal and has none is not there: what lies there now is what was
/// below its mount, and the journal would go on where nobody looks for it.
fn none_is_missing(store: &SqliteStore, found: &Found) -> Result<(), Error> {
    let known = record::read::<Vec<String>>(store, key::JOURNAL_PLACES)?;
    let known = known.map(|stored| stored.value).unwrap_or_default();
    let Some((first, others)) = found.places().split_first() else { return Ok(()) };
    let gone = others.iter().find(|place| {
        found.missing().contains(place)
            && known.iter().any(|known| **known == place.to_string_lossy())
    });
    gone.map_or(Ok(()), |place| {
        Err(Error::Rollback(format!(
            "the revocation journal is missing at its second place {}: mount it; if it is lost, copy \
             {} there, or take journal out of [pki]",
            place.display(),
            first.display()
        )))
    })
}

/// When the store's last audit record was written.
fn last_record(store: &SqliteStore) -> Result<UnixTime, Error> {
    let head = store.log_head(audit::LOG)?.map_or(0, |head| head.seq);
    let entries = store.log(audit::LOG, head.saturating_sub(1), 1)?;
    Ok(entries.first().map_or(UnixTime::from_secs(0), |entry| audit::record(entry).event.at))
}

fn unknown(store: &SqliteStore, another: bool, last: UnixTime) -> Error {
    let what = match another {
        true => "the revocation journal is that of another state",
        false => "the revocation journal is missing",
    };
    Error::Rollback(format!(
        "{what}, so nobody knows what was revoked or spent after the last record of {} ({last}): put \
         the newest journal ({}) back beside it or name its second place with journal in [pki]; if \
         there is none any more, `runnel restore --accept-loss-after {last}` revokes everything that \
         was good then",
        store.path().display(),
        crate::journal::FILE
    ))
}

impl Authority {
    /// Does what is left to be done after the store was brought up to its journal. A start that is
    /// killed here does it again.
    pub(crate) fn finish_replay(&self, now: UnixTime) -> Result<(), Error> {
        let Some(stored) = record::read::<Pending>(self.store.as_ref(), key::REPLAY)? else {
            return Ok(());
        };
        let pending = stored.value;
        self.revoke_listed()?;
        self.skip_lists(&pending, now)?;
        if pending.lost {
            self.revoke_every_lease(now)?;
        }
        let mut txn = Txn::new();
        txn.at(key::REPLAY, stored.revision).delete(key::REPLAY);
        crate::failpoint::hit("replay.before_end");
        match self.store.transact(txn)? {
            Outcome::Committed(_) => Ok(()),
            Outcome::Conflict(_) => Err(Error::Contended("the restored state")),
        }
    }

    /// The index of revocations came back; certificates and leases follow it.
    fn revoke_listed(&self) -> Result<(), Error> {
        for (revoked_key, entry) in store::scan(self.store.as_ref(), key::REVOKED)? {
            let revoked = record::decode::<RevokedEntry>(&revoked_key, &entry)?.value;
            let issuer = revoked_key.strip_prefix(key::REVOKED).and_then(|k| k.split_once('/'));
            let Some((issuer, _)) = issuer else { continue };
            let cert_key = key::cert(issuer, &revoked.serial);
            let stored = record::read::<CertRecord>(self.store.as_ref(), &cert_key)?;
            let Some(certificate) = stored.map(|stored| stored.value) else { continue };
            if certificate.revoked.is_some() {
                continue;
            }
            let (reason, at) = (revoked.reason, revoked.at);
            if certificate.lease_id.is_some() {
                self.revoke_one(&revoked.serial, reason, at)?;
            } else {
                // The gateway's own, or that of a CA below one of our roots.
                let order = Order { reason, actor: &Actor::System, now: at };
                self.revoke_bare(issuer, &revoked.serial, &order)?;
            }
        }
        Ok(())
    }

    fn revoke_one(
        &self,
        serial: &Serial,
        reason: RevocationReason,
        at: UnixTime,
    ) -> Result<(), Error> {
        // Bars came back as they were: nothing is barred anew.
        let selector = RevokeSelector::Serial(serial.clone());
        match self.revoke(&selector, reason, &Actor::System, at) {
            Ok(_) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Numbers of revocation lists go on above all that may have been published.
    fn skip_lists(&self, pending: &Pending, now: UnixTime) -> Result<(), Error> {
        let ca = self.ca();
        for issuer in ca.issuer_ids() {
            let crl_key = key::crl(issuer);
            let stored = record::read::<Crl>(self.store.as_ref(), &crl_key)?;
            let number = stored.map_or(0, |stored| stored.value.number) + pending.lists;
            let seconds = u64::try_from(now.secs()).unwrap_or(0);
            let number = if pending.lost { number.max(seconds) } else { number };
            let mut txn = Txn::new();
            txn.put(crl_key, record::encode(&Crl::outdated(number)));
            self.store.transact(txn)?;
        }
        Ok(())
    }

    /// Nothing that was good before is good after.
    fn revoke_every_lease(&self, now: UnixTime) -> Result<(), Error> {
        for lease in self.leases(false)? {
            let selector = RevokeSelector::Lease(lease.id);
            match self.revoke(&selector, RevocationReason::Superseded, &Actor::System, now) {
                Ok(_) | Err(Error::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let lost = "the state was restored with loss";
        self.cancel_meant(|_| true, lost, &Actor::System, now)?;
        for token in self.tokens()? {
            self.token_revoke(&token.id, &Actor::System, now)?;
        }
        let mut txn = Txn::new();
        txn.put(key::JWT_FLOOR, record::encode(&now));
        AuditEvent::new("state.accept_loss", &Actor::System, now)
            .reason("nothing is known of what was revoked and spent: everything good was revoked")
            .record(&mut txn);
        self.store.transact(txn)?;
        Ok(())
    }

    /// Until when a CI platform's token that was issued then (`None`: it does not say) is refused,
    /// because the record of those that were spent is lost.
    pub(crate) fn jwt_floor(
        &self,
        issued: Option<UnixTime>,
        now: UnixTime,
    ) -> Result<Option<UnixTime>, Error> {
        let floor = record::read::<UnixTime>(self.store.as_ref(), key::JWT_FLOOR)?;
        Ok(floor.map(|stored| stored.value).filter(|floor| match issued {
            Some(issued) => issued < *floor,
            None => now < floor.plus(TOKEN_LIFE),
        }))
    }
}
