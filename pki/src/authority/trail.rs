//! The audit trail of the authority: reading, verifying and adding to it, and how far it was brought
//! elsewhere.

use super::{Authority, lock};
use crate::audit::chain::ChainReport;
use crate::audit::checkpoint::{CHECKPOINT, CheckpointVerifier, EVERY};
use crate::audit::{self, Actor, AuditEvent, AuditRecord};
use crate::error::Error;
use crate::record::{self, key};
use crate::store::Txn;
use crate::time::UnixTime;

impl Authority {
    /// Audit events after a position, oldest first. What stands behind the trail's end was put
    /// there by somebody else and is none.
    ///
    /// # Errors
    /// When the store fails.
    pub fn audit(&self, after: u64, limit: usize) -> Result<Vec<AuditRecord>, Error> {
        let entries = self.store.log(audit::LOG, after, limit)?;
        // The end as it is after reading: what was read by then is before it.
        let end = self.audit_end()?;
        Ok(entries.iter().take_while(|entry| entry.seq <= end).map(audit::record).collect())
    }

    /// Looks at the whole audit trail: whether anything was edited, removed, moved or added since
    /// it was written.
    ///
    /// # Errors
    /// When the store fails; what is wrong with the trail is in the report.
    pub fn verify_audit(&self) -> Result<ChainReport, Error> {
        let key = self.checkpoint_key();
        audit::chain::verify_store(self.store.as_ref(), Some(&self.sealer.log_seal()), Some(key))
    }

    /// Looks at a copy of the trail: its lines by themselves, and that they are the trail's.
    ///
    /// # Errors
    /// When the store fails or the copy cannot be read.
    pub fn verify_audit_copy(&self, lines: impl std::io::BufRead) -> Result<ChainReport, Error> {
        audit::chain::verify_copy(self.store.as_ref(), lines, Some(self.checkpoint_key()))
    }

    /// The position of the last audit event; 0 when there is none.
    ///
    /// # Errors
    /// When the store fails.
    pub fn audit_end(&self) -> Result<u64, Error> {
        Ok(self.store.log_head(audit::LOG)?.map_or(0, |head| head.seq))
    }

    /// How far the trail was brought to a place elsewhere; 0 when nothing was.
    ///
    /// # Errors
    /// When the store fails.
    pub fn audit_position(&self, sink: &str) -> Result<u64, Error> {
        let stored = record::read(self.store.as_ref(), &key::audit_sink(sink))?;
        Ok(stored.map_or(0, |stored| stored.value))
    }

    /// Remembers how far the trail was brought, durably.
    ///
    /// # Errors
    /// When the store fails.
    pub fn set_audit_position(&self, sink: &str, position: u64) -> Result<(), Error> {
        let mut txn = Txn::new();
        txn.put(key::audit_sink(sink), record::encode(&position));
        self.store.transact(txn).map(drop).map_err(Error::from)
    }

    /// Appends an event of the caller's own (tunnel up and down, policy changes).
    ///
    /// # Errors
    /// When the store fails.
    pub fn record_audit(&self, event: &AuditEvent) -> Result<(), Error> {
        let mut txn = Txn::new();
        event.record(&mut txn);
        self.store.transact(txn)?;
        Ok(())
    }

    /// Writes a refusal down, bounded: of one kind (`what`) and peer the first, then one a minute
    /// with the number left out; peers beyond what is remembered share one such allowance.
    ///
    /// # Errors
    /// When the store fails.
    pub fn record_refusal(
        &self,
        what: &str,
        peer: Option<std::net::IpAddr>,
        mut event: AuditEvent,
    ) -> Result<(), Error> {
        let left_out = lock(&self.refused).count(what, peer, event.at);
        let Some(left_out) = left_out else { return Ok(()) };
        event.left_out = (left_out > 0).then_some(left_out);
        self.record_audit(&event)
    }

    /// The public key of this gateway's checkpoints.
    pub fn checkpoint_key(&self) -> CheckpointVerifier {
        self.sealer.checkpoints().verifier()
    }

    /// Signs the trail as it is now and writes that down, with the reason in one word.
    ///
    /// # Errors
    /// When the store fails, and when the trail's end is not as this gateway wrote it.
    pub fn checkpoint(&self, why: &str, now: UnixTime) -> Result<(), Error> {
        let Some(head) = self.store.log_head(audit::LOG)? else { return Ok(()) };
        // Whoever can write to the file must not get a signature for what they wrote.
        // An end of before would do for that, too: its seal is true, and the checkpoint is behind it.
        let old = lock(&self.last_checkpoint).is_some_and(|(_, record)| head.seq <= record);
        if old || !self.sealer.log_seal().opens(audit::LOG, &head) {
            return Err(Error::Seal(
                "the end of the audit trail is not as this gateway wrote it, so it is not signed: \
                 somebody writes to the store; see `runnel audit verify`"
                    .to_owned(),
            ));
        }
        let mut event = AuditEvent::new(CHECKPOINT, &Actor::System, now).reason(why);
        event.checkpoint = Some(self.sealer.checkpoints().sign(head.seq, &head.hash, now));
        self.record_audit(&event)?;
        *lock(&self.last_checkpoint) = Some((now, head.seq));
        Ok(())
    }

    /// The same when it is due: at the first call after a start, which also signs what a crash left
    /// unsigned, and then every hour. Whether it was.
    ///
    /// # Errors
    /// As [`checkpoint`](Self::checkpoint).
    pub fn checkpoint_when_due(&self, now: UnixTime) -> Result<bool, Error> {
        let last = lock(&self.last_checkpoint).map(|(at, _)| at);
        let why = match last {
            None => "start",
            // A clock that was set back would otherwise put it off.
            Some(last) if now < last || now.since(last) >= EVERY => "hour",
            Some(_) => return Ok(false),
        };
        self.checkpoint(why, now)?;
        Ok(true)
    }
}
