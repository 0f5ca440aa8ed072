//! The audit trail of a state directory that nobody has open: read, never written.

use std::io::BufRead;
use std::path::Path;

use super::chain::{self, ChainReport};
use super::checkpoint::{CheckpointKey, CheckpointVerifier};
use crate::authority::DATABASE;
use crate::error::Error;
use crate::seal;
use crate::store::{LogSeal, SqliteStore};

/// A trail with what its end was sealed with.
#[derive(Debug)]
pub struct Trail {
    store: SqliteStore,
    seal: Option<LogSeal>,
    key: Option<CheckpointVerifier>,
}

impl Trail {
    /// Opens the trail of a state directory. The sealing key is the one given, or the one in the
    /// directory; without either the end of the trail is not compared with its seal.
    ///
    /// # Errors
    /// One sentence saying what cannot be read.
    pub fn open(state_dir: &Path, seal_key: Option<&Path>) -> Result<Self, Error> {
        let database = state_dir.join(DATABASE);
        if !database.exists() {
            return Err(Error::File {
                action: "find",
                path: database,
                cause: "there is none".to_owned(),
                hint: "name the gateway's state directory with --state",
            });
        }
        let beside = state_dir.join(seal::KEY_FILE);
        let key = match seal_key {
            Some(path) => Some(seal::read_key(path)?),
            None if beside.exists() => Some(seal::read_key(&beside)?),
            None => None,
        };
        let store = SqliteStore::open_to_read(&database)?;
        let checkpoints = key.as_deref().map(CheckpointKey::derive).transpose()?;
        Ok(Self {
            store,
            seal: key.map(|key| LogSeal::derive(&key)),
            key: checkpoints.map(|key| key.verifier()),
        })
    }

    /// Verifies checkpoints with this public key, also where a sealing key lies beside them: who
    /// made up the trail may have made that up, too.
    #[must_use]
    pub fn signed_by(mut self, key: CheckpointVerifier) -> Self {
        self.key = Some(key);
        self
    }

    /// The public key of the trail's checkpoints, when the sealing key is at hand.
    pub fn checkpoint_key(&self) -> Option<CheckpointVerifier> {
        self.key
    }

    /// Looks at the whole trail ([`chain::verify_store`]).
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn verify(&self) -> Result<ChainReport, Error> {
        chain::verify_store(&self.store, self.seal.as_ref(), self.key)
    }

    /// Looks at a copy of it ([`chain::verify_copy`]).
    ///
    /// # Errors
    /// When trail or copy cannot be read.
    pub fn verify_copy(&self, lines: impl BufRead) -> Result<ChainReport, Error> {
        chain::verify_copy(&self.store, lines, self.key)
    }
}
