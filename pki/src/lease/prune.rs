//! Forgetting ended leases, some time after their end.
//!
//! What they leave behind stays as long as it matters: a revoked certificate until it would have
//! expired, a bar until it is lifted, the audit trail as long as it is configured. A token that is forgotten is
//! unknown, and as such refused.

use crate::audit::{Actor, AuditEvent};
use crate::authority::{Authority, lock};
use crate::enrol::HolderRecord;
use crate::enrol::token::Token;
use crate::error::Error;
use crate::lease::Lease;
use crate::lease::pool::{AddressRecord, parse_key};
use crate::record::{self, Stored, key};
use crate::store::{Outcome, Txn};
use crate::time::UnixTime;

/// Leases forgotten by one transaction.
const BATCH: usize = 64;
/// Leases or tokens looked at by one call: whoever calls has other things to do.
const LOOKED_AT: usize = 1_024;

impl Authority {
    /// Forgets leases that ended longer ago than the settings' retention, and tokens that stopped
    /// being accepted before that; how many leases. Call it again from time to time.
    ///
    /// # Errors
    /// When the store fails; what was forgotten before stays so.
    pub fn prune(&self, now: UnixTime) -> Result<usize, Error> {
        let before = now.minus(self.settings().keep_ended);
        let mut pruned = 0;
        let mut cursor: Option<String> = None;
        for _ in 0..LOOKED_AT / BATCH {
            let page = self.store.range(key::ENDED, cursor.as_deref(), BATCH)?;
            let ended =
                page.iter().filter_map(|(ended, _)| Some((ended, key::parse_ended(ended)?)));
            let due: Vec<_> = ended.take_while(|(_, (at, _))| *at <= before).collect();
            cursor = due.last().map(|(ended, _)| (*ended).clone());
            let mut txn = Txn::new();
            let mut count = 0;
            for (ended, (_, id)) in &due {
                let stored = self.stored_lease(id)?;
                // Its certificates are still good for somebody who looks at nothing else.
                let valid = |lease: &Lease| lease.certs.iter().any(|c| c.not_after >= now);
                if stored.as_ref().is_some_and(|stored| valid(&stored.value)) {
                    continue;
                }
                txn.delete((*ended).clone());
                if let Some(stored) = stored {
                    self.forget(&mut txn, &stored)?;
                    count += 1;
                }
            }
            if count > 0 {
                AuditEvent::new("lease.prune", &Actor::System, now)
                    .reason(format!("{count} lease(s) that ended before {before}"))
                    .record(&mut txn);
            }
            // A conflict leaves the batch for the next time.
            if !txn.ops.is_empty() && matches!(self.store.transact(txn)?, Outcome::Committed(_)) {
                pruned += count;
            }
            if due.len() < BATCH {
                break;
            }
        }
        self.sweep_pending(now)?;
        self.prune_tokens(before)?;
        self.prune_holders()?;
        self.prune_addresses(now)?;
        Ok(pruned)
    }

    /// Everything that belongs to a lease and to nothing else.
    fn forget(&self, txn: &mut Txn, stored: &Stored<Lease>) -> Result<(), Error> {
        let lease = &stored.value;
        let lease_key = key::lease(&lease.id);
        txn.at(&lease_key, stored.revision).delete(lease_key);
        if !lease.spki_sha256.is_empty() {
            txn.delete(key::spki(&lease.spki_sha256, &lease.id));
        }
        for cert in &lease.certs {
            let cert_key = key::cert(&cert.issuer, &cert.serial);
            let record = record::read::<crate::issue::CertRecord>(self.store.as_ref(), &cert_key)?;
            if let Some(record) = record {
                txn.delete(key::spki(&record.value.spki_sha256, &lease.id)).delete(cert_key);
            }
        }
        Ok(())
    }

    /// Identities whose last lease is forgotten: every certificate of an external CA is one.
    fn prune_holders(&self) -> Result<(), Error> {
        let mut cursor = lock(&self.pruned_holders_to);
        let page = self.store.range(key::HOLDER, cursor.as_deref(), LOOKED_AT)?;
        *cursor = page.last().map(|(holder_key, _)| holder_key.clone());
        let mut txn = Txn::new();
        for (holder_key, entry) in page {
            let holder = record::decode::<HolderRecord>(&holder_key, &entry)?;
            if holder.value.is_free() && self.stored_lease(&holder.value.lease)?.is_none() {
                txn.at(&holder_key, holder.revision).delete(holder_key);
            }
        }
        if !txn.ops.is_empty() {
            self.store.transact(txn)?;
        }
        Ok(())
    }

    /// Addresses that have rested are as good as those that were never used. In a large network the
    /// next lease gets one of the latter, so without this each lease would leave a record for ever.
    fn prune_addresses(&self, now: UnixTime) -> Result<(), Error> {
        let mut cursor = lock(&self.pruned_addresses_to);
        for _ in 0..LOOKED_AT / BATCH {
            let page = self.store.range(key::ADDRESS, cursor.as_deref(), BATCH)?;
            *cursor = page.last().map(|(address_key, _)| address_key.clone());
            let looked_at = page.len();
            let (mut txn, mut rested) = (Txn::new(), Vec::new());
            for (address_key, entry) in page {
                let address = record::decode::<AddressRecord>(&address_key, &entry)?;
                if address.value.resting_until.is_some_and(|until| until <= now) {
                    rested.extend(parse_key(&address_key));
                    txn.at(&address_key, address.revision).delete(address_key);
                }
            }
            // One that a lease got meanwhile leaves the others for the next round.
            if !txn.ops.is_empty() && matches!(self.store.transact(txn)?, Outcome::Committed(_)) {
                let mut book = lock(&self.addresses);
                for (pool, address) in rested {
                    book.forget_rested(&pool, address, now);
                }
            }
            if looked_at < BATCH {
                *cursor = None;
                break;
            }
        }
        Ok(())
    }

    fn prune_tokens(&self, before: UnixTime) -> Result<(), Error> {
        let mut cursor = lock(&self.pruned_to);
        let page = self.store.range(key::TOKEN, cursor.as_deref(), LOOKED_AT)?;
        *cursor = page.last().map(|(token_key, _)| token_key.clone());
        let mut txn = Txn::new();
        for (token_key, entry) in page {
            let token = record::decode::<Token>(&token_key, &entry)?;
            if token.value.expires <= before {
                txn.at(&token_key, token.revision).delete(token_key);
            }
        }
        if !txn.ops.is_empty() {
            self.store.transact(txn)?;
        }
        Ok(())
    }
}
