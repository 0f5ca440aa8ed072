//! The CA of a gateway that does not run: a request before the first start, and everything else.

use std::path::Path;

use super::change::Imported;
use super::import::nothing_awaited;
use super::make::Maker;
use super::record::CaRecord;
use crate::audit::{Actor, AuditEvent};
use crate::authority::{Authority, StateDirectory};
use crate::error::Error;
use crate::failpoint;
use crate::issue;
use crate::profile::Options;
use crate::record::{self, key};
use crate::seal::Sealer;
use crate::signer::KeyKind;
use crate::store::{Outcome, Revision, Store, Txn};
use crate::time::UnixTime;

/// A state directory opened for work on its CA. A gateway's first start makes a root of its own;
/// with a request before that it gets none.
#[derive(Debug)]
pub struct CaSetup {
    state: State,
    broken_trail: bool,
}

#[derive(Debug)]
enum State {
    /// There is no CA yet, or nothing of it but a request.
    Before(Box<Before>),
    /// There is one.
    After(Box<Authority>),
}

#[derive(Debug)]
struct Before {
    state: StateDirectory,
    sealer: Sealer,
    options: Options,
}

impl CaSetup {
    /// Opens the directory, creating it and its sealing key when they are missing.
    ///
    /// # Errors
    /// As [`Authority::open`]; also while a gateway runs on it.
    pub fn open(state_dir: &Path, mut options: Options, now: UnixTime) -> Result<Self, Error> {
        options.settings.validate()?;
        let state = StateDirectory::open(state_dir, &mut options, now)?;
        let stored = record::read::<CaRecord>(&state.store, key::CA)?;
        if stored.is_some_and(|stored| !stored.value.is_awaiting()) {
            let authority = Authority::over_resting(state, options, now)?;
            let broken_trail = authority.startup().broken_trail;
            return Ok(Self { state: State::After(Box::new(authority)), broken_trail });
        }
        let sealer = Sealer::new(&state.key)?.with_token(options.token.clone());
        if let Some(check) = state.store.get(key::SEAL_CHECK)? {
            sealer.open(key::SEAL_CHECK, &check.value)?;
        }
        let broken_trail = !state.store.seal_logs(sealer.log_seal(), &[], false)?.is_empty();
        let before = Box::new(Before { state, sealer, options });
        Ok(Self { state: State::Before(before), broken_trail })
    }

    /// The end of the audit trail was not as this program had left it: `audit verify` says more.
    pub fn broken_trail(&self) -> bool {
        self.broken_trail
    }

    /// The CA's state, opened to be looked at or brought up to its journal; `None` before there is one.
    pub fn authority(&self) -> Option<&Authority> {
        match &self.state {
            State::Before(_) => None,
            State::After(authority) => Some(authority),
        }
    }

    /// As [`Authority::ca_request`].
    ///
    /// # Errors
    /// When the store fails.
    pub fn request(
        &mut self,
        kind: KeyKind,
        common_name: Option<&str>,
        anew: bool,
        actor: &Actor,
        now: UnixTime,
    ) -> Result<String, Error> {
        let before = match &mut self.state {
            State::Before(before) => before,
            State::After(authority) => {
                return authority.ca_request(kind, common_name, anew, actor, now);
            }
        };
        let (record, revision) = before.read()?;
        if !anew && let Some(pem) = record.as_ref().and_then(CaRecord::pending_pem) {
            return Ok(pem);
        }
        let pending = before.maker(now).request(kind, common_name)?;
        let pem = issue::pem(&pending.csr, "CERTIFICATE REQUEST");
        before.commit("ca.request", &CaRecord::awaiting(pending), revision, actor, now)?;
        Ok(pem)
    }

    /// As [`Authority::ca_import`].
    ///
    /// # Errors
    /// [`Error::Invalid`] with what is wrong with the file.
    pub fn import(
        &mut self,
        certificates: &[Vec<u8>],
        actor: &Actor,
        now: UnixTime,
    ) -> Result<Imported, Error> {
        let before = match &mut self.state {
            State::Before(before) => before,
            State::After(authority) => return authority.ca_import(certificates, actor, now),
        };
        let (record, revision) = before.read()?;
        let mut record = record.ok_or_else(nothing_awaited)?;
        let notes = record.import(&mut before.maker(now), certificates)?;
        record.load(&before.sealer)?;
        before.commit("ca.import", &record, revision, actor, now)?;
        Ok(Imported { change: record.change()?, notes })
    }

    /// As [`Authority::ca_import_list`].
    ///
    /// # Errors
    /// [`Error::Invalid`] with what is wrong with the list.
    pub fn import_list(
        &mut self,
        list: &[u8],
        actor: &Actor,
        now: UnixTime,
    ) -> Result<Imported, Error> {
        match &mut self.state {
            State::Before(_) => Err(Error::Invalid(
                "there is no CA that the list is about: import its certificate first".to_owned(),
            )),
            State::After(authority) => {
                let (imported, outcome) = authority.ca_import_list(list, actor, now)?;
                outcome.failed.map_or(Ok(imported), Err)
            }
        }
    }
}

impl Before {
    fn read(&self) -> Result<(Option<CaRecord>, Option<Revision>), Error> {
        let stored = record::read::<CaRecord>(&self.state.store, key::CA)?;
        Ok(stored.map_or((None, None), |stored| (Some(stored.value), Some(stored.revision))))
    }

    fn maker(&mut self, now: UnixTime) -> Maker<'_> {
        Maker {
            settings: &self.options.settings,
            sealer: &self.sealer,
            entropy: self.options.entropy.as_mut(),
            now,
            taken: Vec::new(),
        }
    }

    fn commit(
        &mut self,
        action: &'static str,
        record: &CaRecord,
        revision: Option<Revision>,
        actor: &Actor,
        now: UnixTime,
    ) -> Result<(), Error> {
        let mut txn = Txn::new();
        match revision {
            Some(revision) => txn.at(key::CA, revision),
            None => {
                let check = Authority::mark(&self.sealer, self.options.entropy.as_mut())?;
                txn.absent(key::CA).put(key::SEAL_CHECK, check)
            }
        };
        txn.put(key::CA, record::encode(record));
        AuditEvent::new(action, actor, now).record(&mut txn);
        failpoint::hit("ca.before_change");
        match self.state.store.transact(txn)? {
            Outcome::Committed(_) => {
                failpoint::hit("ca.after_change");
                self.state.sync()
            }
            Outcome::Conflict(_) => Err(Error::Contended("the CA")),
        }
    }
}
