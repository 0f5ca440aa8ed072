//! Backups: one file with the whole store, encrypted with a passphrase or a recovery key, and how it
//! comes back.
//!
//! The store holds the CA's keys sealed, so nobody who opens a backup has them without the sealing
//! key as well, which is never in it. What was revoked after a backup is in the revocation journal
//! (`journal`), which is not in it either: it must outlive what is restored.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::pbkdf2;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::audit::{Actor, AuditEvent};
use crate::authority::{Authority, DATABASE};
use crate::error::Error;
use crate::failpoint;
use crate::record::key;
use crate::seal::sync_directory;
use crate::time::UnixTime;

/// Octets encrypted at once.
const CHUNK: usize = 1 << 20;
/// Octets of a tag.
const TAG: usize = 16;
/// Rounds of PBKDF2-HMAC-SHA256: a fraction of a second.
const ROUNDS: u32 = 600_000;
/// The most that a file may ask for: another would keep us computing.
const MAX_ROUNDS: u32 = 10_000_000;
/// A passphrase has at least so many octets.
const MIN_PASSPHRASE: usize = 12;
/// The first line of a backup is no longer than this.
const MAX_HEAD: u64 = 4_096;

/// What a backup says of itself, unencrypted but authenticated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupHead {
    /// The format.
    runnel_backup: u32,
    /// When it was made.
    pub created: UnixTime,
    /// SHA-256 of the root that runners pin, hexadecimal.
    pub root_sha256: String,
    /// For the key.
    salt: String,
    rounds: u32,
}

/// A passphrase or recovery key, read from a file.
pub struct BackupKey(Zeroizing<Vec<u8>>);

impl std::fmt::Debug for BackupKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BackupKey({} bytes)", self.0.len())
    }
}

impl BackupKey {
    /// Reads it from a file that others cannot read: one line of text.
    ///
    /// # Errors
    /// When it cannot be read, others can read it, or it is too short.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let octets = std::fs::read(path).map(Zeroizing::new).map_err(|cause| {
            Error::file("read the backup's key", path, &cause, "check the path and its permissions")
        })?;
        #[cfg(unix)]
        if std::fs::metadata(path)
            .is_ok_and(|found| std::os::unix::fs::MetadataExt::mode(&found) & 0o077 != 0)
        {
            return Err(Error::Invalid(format!(
                "others can read the backup's key {0}: chmod 600 {0}",
                path.display()
            )));
        }
        let text = octets.trim_ascii();
        if text.len() < MIN_PASSPHRASE {
            return Err(Error::Invalid(format!(
                "the backup's key {} has {} octets: give at least {MIN_PASSPHRASE}, such as the \
                 output of openssl rand -hex 32",
                path.display(),
                text.len()
            )));
        }
        Ok(Self(Zeroizing::new(text.to_vec())))
    }

    fn derive(&self, head: &BackupHead) -> Result<LessSafeKey, Error> {
        let foreign = || Error::Invalid("the file is no backup that this runnel reads".to_owned());
        let salt = STANDARD.decode(&head.salt).map_err(|_| foreign())?;
        let rounds = NonZeroU32::new(head.rounds).filter(|rounds| rounds.get() <= MAX_ROUNDS);
        let mut key = Zeroizing::new([0; 32]);
        let rounds = rounds.ok_or_else(foreign)?;
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, rounds, &salt, &self.0, key.as_mut());
        let key = UnboundKey::new(&AES_256_GCM, key.as_ref())
            .map_err(|_| Error::Crypto("the backup's key is not usable"))?;
        Ok(LessSafeKey::new(key))
    }
}

/// Each file has a key of its own, so the number of the chunk is a nonce.
fn nonce(number: u64) -> Nonce {
    let mut nonce = [0; NONCE_LEN];
    for (to, from) in nonce.iter_mut().skip(NONCE_LEN - 8).zip(number.to_be_bytes()) {
        *to = from;
    }
    Nonce::assume_unique_for_key(nonce)
}

/// A chunk is bound to the first line and to whether more follow: none can be cut off.
fn bound(head: &str, last: bool) -> Vec<u8> {
    [head.as_bytes(), &[u8::from(last)]].concat()
}

/// The unencrypted copy that a backup is made from, in the state directory: never where others may
/// read or write.
const COPY: &str = "runnel.db.copy";

/// Removes the copy of a backup that a kill ended. Only who has the state directory alone may.
pub(crate) fn remove_copy(state_dir: &Path) {
    let _ = std::fs::remove_file(state_dir.join(COPY));
}

/// Creates a file for its owner alone; never one that is there, or that a link leads to.
fn private(path: &Path) -> std::io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

fn encrypt(from: &Path, to: &Path, head: &BackupHead, key: &BackupKey) -> Result<(), Error> {
    let sealing = key.derive(head)?;
    let text = serde_json::to_string(head).unwrap_or_default();
    let run = || -> std::io::Result<()> {
        let mut input = File::open(from)?;
        let mut left = input.metadata()?.len();
        let mut output = BufWriter::new(private(to)?);
        output.write_all(text.as_bytes())?;
        output.write_all(b"\n")?;
        let mut number = 0;
        loop {
            let mut chunk = Vec::with_capacity(CHUNK + TAG);
            Read::by_ref(&mut input).take(CHUNK as u64).read_to_end(&mut chunk)?;
            left = left.saturating_sub(chunk.len() as u64);
            let last = left == 0;
            sealing
                .seal_in_place_append_tag(nonce(number), Aad::from(bound(&text, last)), &mut chunk)
                .map_err(|_| std::io::Error::other("encryption failed"))?;
            output.write_all(&chunk)?;
            number += 1;
            if last {
                break;
            }
        }
        output.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()
    };
    run()
        .map_err(|cause| Error::file("write the backup", to, &cause, "check space and permissions"))
}

/// Decrypts a backup into a file; what it says of itself.
fn decrypt(from: &Path, to: &Path, key: &BackupKey) -> Result<BackupHead, Error> {
    let unreadable = |cause: &std::io::Error| {
        Error::file("read the backup", from, cause, "check the path and its permissions")
    };
    let foreign =
        || Error::Invalid(format!("{} is no backup that this runnel reads", from.display()));
    let mut input = BufReader::new(File::open(from).map_err(|cause| unreadable(&cause))?);
    let mut text = String::new();
    input.by_ref().take(MAX_HEAD).read_line(&mut text).map_err(|cause| unreadable(&cause))?;
    let text = text.trim_end().to_owned();
    let head: BackupHead = serde_json::from_str(&text).map_err(|_| foreign())?;
    if head.runnel_backup != 1 {
        return Err(foreign());
    }
    let opening = key.derive(&head)?;
    let mut output = private(to)
        .map_err(|cause| Error::file("create", to, &cause, "check space and permissions"))?;
    let mut number = 0;
    loop {
        let mut chunk = Vec::with_capacity(CHUNK + TAG);
        input
            .by_ref()
            .take((CHUNK + TAG) as u64)
            .read_to_end(&mut chunk)
            .map_err(|cause| unreadable(&cause))?;
        let last = input.fill_buf().map_err(|cause| unreadable(&cause))?.is_empty();
        let plain = opening
            .open_in_place(nonce(number), Aad::from(bound(&text, last)), &mut chunk)
            .map_err(|_| {
                Error::Invalid(format!(
                    "{} does not open with this key: give the one it was made with; or the file is \
                     damaged or cut off",
                    from.display()
                ))
            })?;
        output
            .write_all(plain)
            .map_err(|cause| Error::file("write", to, &cause, "check the space"))?;
        number += 1;
        if last {
            break;
        }
    }
    output.sync_all().map_err(|cause| Error::file("write", to, &cause, "check the space"))?;
    Ok(head)
}

impl Authority {
    /// Writes a backup of the whole store as it is now, while work goes on. The file is there whole
    /// or not at all.
    ///
    /// # Errors
    /// When the store has no file, or files cannot be written.
    pub fn backup(
        &self,
        to: &Path,
        key: &BackupKey,
        actor: &Actor,
        now: UnixTime,
    ) -> Result<BackupHead, Error> {
        let mut salt = [0; 16];
        self.with_entropy(|entropy| entropy.fill(&mut salt))?;
        let head = BackupHead {
            runnel_backup: 1,
            created: now.floor_to_second(),
            root_sha256: self.root_fingerprint(),
            salt: STANDARD.encode(salt),
            rounds: ROUNDS,
        };
        let database = self.store.file().ok_or_else(|| {
            Error::Invalid("the store is in memory: there is nothing to back up".to_owned())
        })?;
        let plain = database.with_file_name(COPY);
        private(&plain).map_err(|cause| {
            let hint = "wait for the backup that is under way, or make the directory writable";
            Error::file("copy the store to", &plain, &cause, hint)
        })?;
        let mut new = to.as_os_str().to_owned();
        new.push(".new");
        let new = PathBuf::from(new);
        // What a kill left of the last one.
        let _ = std::fs::remove_file(&new);
        let made = self
            .store
            .snapshot(&plain)
            .map_err(Error::from)
            .and_then(|()| encrypt(&plain, &new, &head, key))
            .and_then(|()| {
                std::fs::rename(&new, to)
                    .and_then(|()| {
                        let parent = to.parent().filter(|parent| !parent.as_os_str().is_empty());
                        sync_directory(parent.unwrap_or(Path::new(".")))
                    })
                    .map_err(|cause| {
                        Error::file("write the backup", to, &cause, "check the permissions")
                    })
            });
        let _ = std::fs::remove_file(&plain);
        let _ = std::fs::remove_file(&new);
        made?;
        self.record_audit(
            &AuditEvent::new("state.backup", actor, now).reason(to.display().to_string()),
        )?;
        Ok(head)
    }
}

/// Puts a backup's store in the place of the one in a state directory that nobody uses; the one that
/// was there stays beside it as `runnel.db.before-restore`, with a number when that is there already.
/// The next opening brings it up to the revocation journal.
///
/// # Errors
/// When the backup does not open, the store that is there cannot be kept or files cannot be written;
/// the store is then as it was.
pub fn restore(state_dir: &Path, backup: &Path, key: &BackupKey) -> Result<BackupHead, Error> {
    let database = state_dir.join(DATABASE);
    let new = state_dir.join("runnel.db.restored");
    let unplaced = |cause: &std::io::Error| {
        Error::file("put the restored store into", state_dir, cause, "check space and permissions")
    };
    // What a kill left of the last one.
    for ending in ["", "-journal", "-wal", "-shm"] {
        remove(&state_dir.join(format!("runnel.db.restored{ending}")))
            .map_err(|cause| unplaced(&cause))?;
    }
    let restored = decrypt(backup, &new, key)
        .and_then(|head| mark_restored(&new).map(|()| head))
        .and_then(|head| keep_before(&database).map(|()| head));
    let head = match restored {
        Ok(head) => head,
        Err(error) => {
            let _ = std::fs::remove_file(&new);
            return Err(error);
        }
    };
    let place = || -> std::io::Result<()> {
        // What the old one had not written to its file would be taken for the new one's.
        for ending in ["runnel.db-wal", "runnel.db-shm"] {
            remove(&state_dir.join(ending))?;
        }
        failpoint::hit("restore.before_rename");
        std::fs::rename(&new, &database)?;
        sync_directory(state_dir)?;
        failpoint::hit("restore.after_rename");
        Ok(())
    };
    place().map_err(|cause| unplaced(&cause))?;
    Ok(head)
}

/// Removes a file that may not be there.
fn remove(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => Err(cause),
        _ => Ok(()),
    }
}

/// Has the next opening know that the store went back in time, also when nothing that is journaled
/// has changed since.
fn mark_restored(store: &Path) -> Result<(), Error> {
    let mark = || -> rusqlite::Result<()> {
        let flags = rusqlite::OpenFlags::default() - rusqlite::OpenFlags::SQLITE_OPEN_CREATE;
        let connection = rusqlite::Connection::open_with_flags(store, flags)?;
        // One file until it has its name.
        connection.pragma_update(None, "journal_mode", "DELETE")?;
        let sql = "INSERT OR REPLACE INTO entries (key, value, revision)
                   SELECT ?1, x'', revision FROM position WHERE only = 1";
        connection.execute(sql, [key::RESTORED]).map(drop)
    };
    mark().map_err(|cause| {
        Error::Invalid(format!(
            "the backup's store cannot be used ({cause}): take another backup, or check the space"
        ))
    })
}

/// Copies the store that is there whole, under a name that nothing has yet.
fn keep_before(database: &Path) -> Result<(), Error> {
    if !database.exists() {
        return Ok(());
    }
    let whole = || -> rusqlite::Result<i64> {
        let old = rusqlite::Connection::open(database)?;
        old.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))
    };
    let unkept = |cause: String| {
        Error::Invalid(format!(
            "the store that is there, {}, cannot be kept whole ({cause}): stop whoever uses it; if it \
             is damaged, move it away together with its -wal and -shm files",
            database.display()
        ))
    };
    match whole() {
        Ok(0) => {}
        Ok(_) => return Err(unkept("it is in use".to_owned())),
        Err(cause) => return Err(unkept(cause.to_string())),
    }
    let copy = || -> std::io::Result<()> {
        let mut number = 1;
        let mut to = loop {
            let name = match number {
                1 => format!("{DATABASE}.before-restore"),
                _ => format!("{DATABASE}.before-restore-{number}"),
            };
            match private(&database.with_file_name(name)) {
                Err(cause) if cause.kind() == std::io::ErrorKind::AlreadyExists => number += 1,
                other => break other?,
            }
        };
        std::io::copy(&mut File::open(database)?, &mut to)?;
        to.sync_all()
    };
    copy().map_err(|cause| unkept(cause.to_string()))
}
