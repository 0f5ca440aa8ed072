//! The state directory: one process at a time, its store, its sealing key and its journal.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::backup;
use crate::error::Error;
use crate::journal::{self, Found};
use crate::profile::Options;
use crate::record::key;
use crate::rollback::{self, Reconciled, Standing};
use crate::seal::{self, SealKey, Sealer};
use crate::store::{LogSeal, SqliteStore, Store};
use crate::time::UnixTime;

/// How long the lock of the state directory is waited for: one second.
const LOCK_TRIES: u32 = 50;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// The store's file in the state directory.
pub(crate) const DATABASE: &str = "runnel.db";

/// A state directory that this process alone has open.
#[derive(Debug)]
pub(crate) struct StateDirectory {
    pub(super) path: PathBuf,
    pub(crate) store: SqliteStore,
    pub(crate) key: SealKey,
    /// The sealing key lies in the directory.
    pub(super) key_beside: bool,
    pub(super) standing: Standing,
    pub(super) mended: Vec<PathBuf>,
    pub(super) lock: std::fs::File,
}

impl StateDirectory {
    /// Opens it, creating it and its sealing key when they are missing.
    pub(crate) fn open(path: &Path, options: &mut Options, now: UnixTime) -> Result<Self, Error> {
        let given_key = options.seal_key.as_deref().map(seal::read_key).transpose()?;
        create_directory(path)?;
        let lock = lock_directory(path)?;
        backup::remove_copy(path);
        let store = SqliteStore::open(&path.join(DATABASE))?;
        let key_file = path.join(seal::KEY_FILE);
        let key_beside = given_key.is_none();
        let key = match given_key {
            Some(key) => key,
            None if key_file.exists() => seal::read_key(&key_file)?,
            None if store.get(key::SEAL_CHECK)?.is_some() => {
                return Err(Error::Seal(format!(
                    "{} is missing, and with it the CA's keys are unreadable: restore it or give \
                     the sealing key with --seal-key",
                    key_file.display()
                )));
            }
            None => seal::create_key(path, options.entropy.as_mut())?,
        };
        if let Some(check) = store.get(key::SEAL_CHECK)? {
            // Before the journal, which another key does not open either.
            Sealer::new(&key)?.open(key::SEAL_CHECK, &check.value)?;
        }
        let places = [Some(path.join(journal::FILE)), options.journal.clone()];
        let found = Found::look(places.into_iter().flatten().collect(), &key)?;
        let Reconciled { store, standing, mended } = rollback::reconcile(
            store,
            found,
            &LogSeal::derive(&key),
            options.accept_loss.as_deref(),
            options.entropy.as_mut(),
            now,
        )?;
        Ok(Self { path: path.to_owned(), store, key, key_beside, standing, mended, lock })
    }

    /// Makes the names in it durable.
    pub(crate) fn sync(&self) -> Result<(), Error> {
        sync(&self.path)
    }
}

pub(super) fn sync(path: &Path) -> Result<(), Error> {
    seal::sync_directory(path).map_err(|cause| Error::file("sync", path, &cause, "check the disk"))
}

fn create_directory(path: &Path) -> Result<(), Error> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path).map_err(|cause| {
        Error::file("create the state directory", path, &cause, "choose another with --state")
    })
}

fn lock_directory(path: &Path) -> Result<std::fs::File, Error> {
    let file = path.join("lock");
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let failed = |cause: &std::io::Error| {
        Error::file("lock", &file, cause, "check the owner and permissions of the state directory")
    };
    let lock = options.open(&file).map_err(|cause| failed(&cause))?;
    // A process that is just ending, or a child that it has forked and that has not started its
    // program yet, holds the lock a little longer.
    for _ in 0..LOCK_TRIES {
        match lock.try_lock() {
            Ok(()) => return Ok(lock),
            Err(std::fs::TryLockError::WouldBlock) => std::thread::sleep(LOCK_PAUSE),
            Err(std::fs::TryLockError::Error(cause)) => return Err(failed(&cause)),
        }
    }
    Err(Error::InUse(path.to_owned()))
}
