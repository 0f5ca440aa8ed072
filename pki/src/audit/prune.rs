//! Forgetting the oldest records, once they are old enough, signed, and wherever they must be.
//!
//! What is forgotten was verified before: records behind something that was done to the trail stay,
//! because they are what shows it.

use std::time::Duration;

use super::begin::{self, Beginning};
use super::chain::{PAGE, Walk};
use super::{Actor, AuditEvent, LOG, ecs};
use crate::authority::{Authority, lock};
use crate::error::Error;
use crate::record::{self, key};
use crate::store::{Outcome, Txn};
use crate::time::UnixTime;

/// Records forgotten by one call at most.
const BATCH: u64 = 2_048;
/// Records looked at by one call at most: whoever calls has other things to do.
const LOOKED_AT: usize = 4 * PAGE;
/// Fewer than a batch wait so long for more, or the trail would fill with notes about it.
const SLACK: Duration = Duration::from_secs(24 * 3_600);

/// How far the trail was looked at.
#[derive(Debug, Default)]
pub(crate) struct Looked {
    walk: Walk,
    /// What was written before it was old enough.
    before: Option<UnixTime>,
    /// Up to here it may be forgotten: a checkpoint that is old enough itself stands for it.
    signed: u64,
    /// What was done to the trail behind that.
    fault: Option<String>,
}

impl Looked {
    /// Nothing to be forgotten; an error when a fault is what keeps it.
    fn nothing(&self) -> Result<u64, Error> {
        match &self.fault {
            Some(fault) => Err(Error::Invalid(fault.clone())),
            None => Ok(0),
        }
    }
}

impl Authority {
    /// Forgets the trail's records that are older than `keep`, of those up to `delivered` (where
    /// everybody has them who is to have them) and only what a checkpoint behind them stands for; how
    /// many. A bounded number: call it again from time to time.
    ///
    /// # Errors
    /// When the store fails, and when something was done to the trail among these records: then
    /// everything from there on is kept.
    pub fn prune_audit(&self, keep: Duration, delivered: u64, now: UnixTime) -> Result<u64, Error> {
        let before = now.minus(keep);
        let stored = begin::stored(self.store.as_ref())?;
        let begun = stored.as_ref().map_or(0, |(beginning, _)| beginning.record);
        let oldest = self.store.log(LOG, 0, 1)?;
        if let Some(again) = oldest.first().filter(|oldest| oldest.seq <= begun) {
            return Err(Error::Invalid(format!(
                "the audit trail is kept as it is, because record {} was forgotten and is there \
                 again: see `runnel audit verify`",
                again.seq
            )));
        }
        let mut looked = lock(&self.audit_looked);
        // A clock that was set back: what was old enough by it may not be.
        if looked.before.is_some_and(|then| before < then) {
            *looked = Looked::default();
        }
        looked.before = Some(before);
        self.look_on(&mut looked, stored.as_ref().map(|(begin, _)| begin), before)?;
        let through = looked.signed.min(delivered).min(begun.saturating_add(BATCH));
        if through <= begun {
            return looked.nothing();
        }
        let oldest = oldest.first().and_then(|entry| ecs::decode(&entry.value).ok());
        let worth_it = oldest.is_some_and(|event| event.at <= before.minus(SLACK));
        if through - begun < BATCH && !worth_it {
            return looked.nothing();
        }
        let last = self.store.log(LOG, through - 1, 1)?;
        let Some(last) = last.first().filter(|last| last.seq == through) else { return Ok(0) };
        let mut txn = Txn::new();
        match &stored {
            Some((_, revision)) => txn.at(key::AUDIT_BEGINNING, *revision),
            None => txn.absent(key::AUDIT_BEGINNING),
        };
        let beginning = Beginning::sign(self.sealer.checkpoints(), through, &last.hash, now);
        txn.put(key::AUDIT_BEGINNING, record::encode(&beginning)).forget(LOG, through);
        AuditEvent::new("audit.prune", &Actor::System, now)
            .reason(format!("records {} to {through}, older than {before}", begun + 1))
            .record(&mut txn);
        match self.store.transact(txn)? {
            Outcome::Committed(_) => Ok(through - begun),
            Outcome::Conflict(_) => Ok(0),
        }
    }

    /// Goes on verifying the trail, from where it begins up to records that are too new.
    fn look_on(
        &self,
        looked: &mut Looked,
        begun: Option<&Beginning>,
        before: UnixTime,
    ) -> Result<(), Error> {
        let first = begun.map_or(0, |beginning| beginning.record);
        if looked.walk.last() == 0 || looked.walk.last() < first {
            let walk = Walk::begun(Some(self.checkpoint_key()), begun);
            *looked = Looked { walk, before: looked.before, ..Looked::default() };
        }
        for _ in 0..LOOKED_AT / PAGE {
            if looked.fault.is_some() {
                return Ok(());
            }
            let page = self.store.log(LOG, looked.walk.last(), PAGE)?;
            for entry in &page {
                if ecs::decode(&entry.value).is_ok_and(|event| event.at > before) {
                    return Ok(());
                }
                looked.walk.record(entry, None);
                // What a fault is found behind may go, what it may concern may not.
                if let Some(fault) = looked.walk.fault() {
                    looked.fault = Some(format!(
                        "the audit trail is kept from record {} on, because {}: see `runnel audit \
                         verify`",
                        fault.seq, fault.what
                    ));
                    return Ok(());
                }
                looked.signed = looked.walk.signed().unwrap_or(looked.signed);
            }
            if page.len() < PAGE {
                return Ok(());
            }
        }
        Ok(())
    }
}
