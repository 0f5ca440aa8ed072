//! Snapshots of live IKE SAs in memory-backed files.
//!
//! They hold session keys. On a disk these would outlive the tunnels and break forward secrecy, so
//! they are written to a tmpfs or not at all. One file for each IKE SA, replaced as a whole.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ike::io::{Checkpoint, IkeSaId};
use ike::snapshot::Snapshot;
use rustix::fs::{FallocateFlags, fallocate, statfs};
use xfrm::user::SEQUENCES_OCTETS;

use crate::config::Gateway;
use crate::sys;

/// The file system that is in memory alone: tmpfs (`statfs(2)`). ramfs has no room to reserve.
const IN_MEMORY: u64 = 0x0102_1994;

/// Longer than any snapshot: a grant has few selectors, and one response is kept.
const LONGEST: u64 = 4 * 1024 * 1024;

/// How files of snapshots end.
const SUFFIX: &str = ".sa";

/// Counted sequence numbers of the userspace data plane.
const SEQUENCES: &str = "sequences";

/// See the module.
#[derive(Debug)]
pub struct Checkpoints {
    folder: Option<PathBuf>,
    failed: Arc<AtomicBool>,
}

impl Checkpoints {
    /// Keeps nothing.
    pub fn none() -> Self {
        Self { folder: None, failed: Arc::default() }
    }

    /// As the configuration says; see [`open`](Self::open).
    ///
    /// # Errors
    /// A sentence on why nothing is kept.
    pub fn of(config: &Gateway, state: &Path) -> Result<Self, String> {
        if !config.keep_tunnels {
            // A former start may have kept some; they are not to lie about.
            remove(&config.runtime.join(name_of(state)));
            return Err("`keep_tunnels = false` in [gateway]".to_owned());
        }
        Self::open(&config.runtime, state)
    }

    /// Snapshots of the instance with this state directory, below `runtime`; made when missing.
    ///
    /// # Errors
    /// A sentence on why nothing can be kept there.
    pub fn open(runtime: &Path, state: &Path) -> Result<Self, String> {
        private(runtime)?;
        let kind = statfs(runtime).map_err(|error| refused(runtime, &error.into()))?.f_type;
        // The type of `f_type` differs by architecture; the magic numbers are 32 bits.
        #[allow(clippy::cast_sign_loss, clippy::unnecessary_cast)]
        if kind as u64 & 0xffff_ffff != IN_MEMORY {
            return Err(format!(
                "{} is on a disk, where session keys must not lie; set `runtime` in [gateway] to a \
                 folder on a tmpfs",
                runtime.display()
            ));
        }
        let folder = runtime.join(name_of(state));
        private(&folder)?;
        // Room for the sequence numbers, before the data plane relies on it.
        let room = folder.join(SEQUENCES);
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600);
        options
            .open(&room)
            .and_then(|file| Ok(fallocate(file, FallocateFlags::empty(), 0, SEQUENCES_OCTETS)?))
            .map_err(|error| refused(&room, &error))?;
        Ok(Self { folder: Some(folder), failed: Arc::default() })
    }

    /// Where sequence numbers are counted, when anything is kept.
    pub fn sequences(&self) -> Option<PathBuf> {
        self.folder.as_ref().map(|folder| folder.join(SEQUENCES))
    }

    /// Whether the last snapshot could not be stored.
    pub fn failing(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.failed)
    }

    /// Everything that an earlier process left. What cannot be read is told and removed.
    pub fn load(&self) -> Vec<Snapshot> {
        let Some(folder) = &self.folder else { return Vec::new() };
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error) => {
                tracing::warn!("{}", refused(folder, &error));
                return Vec::new();
            }
        };
        let mut found = Vec::new();
        for path in entries.flatten().map(|entry| entry.path()) {
            if path.file_name().is_some_and(|name| name == SEQUENCES) {
                continue;
            }
            let whole = path.file_name().is_some_and(|n| n.to_string_lossy().ends_with(SUFFIX));
            // A file under another name was being written when the process was killed.
            match if whole { read(&path).map(Some) } else { Ok(None) } {
                Ok(Some(snapshot)) => {
                    found.push(snapshot);
                    continue;
                }
                Ok(None) => {}
                Err(why) => tracing::warn!(
                    file = %path.display(), why,
                    "a tunnel of the earlier run does not go on; its client connects again"
                ),
            }
            let _ = fs::remove_file(&path);
        }
        found.sort_by_key(|snapshot| snapshot.ike);
        found
    }

    /// Stores a checkpoint. In effect when this returns, also for a process that is killed then.
    pub fn store(&mut self, checkpoint: &Checkpoint) {
        let Some(path) = self.path(checkpoint.ike) else { return };
        let done = match &checkpoint.snapshot {
            Some(snapshot) => write(&path, &snapshot.encode()),
            None => return self.forget(checkpoint.ike),
        };
        match done {
            Ok(()) => self.failed.store(false, Ordering::Relaxed),
            Err(error) => {
                // An older one is worse than none: it would say again what was said since.
                self.forget(checkpoint.ike);
                if !self.failed.swap(true, Ordering::Relaxed) {
                    tracing::error!(
                        file = %path.display(), error = %sys::reason(&error),
                        "tunnels are not kept for a restart; make room there"
                    );
                }
            }
        }
    }

    /// Forgets an IKE SA.
    pub fn forget(&self, ike: IkeSaId) {
        let Some(path) = self.path(ike) else { return };
        if let Err(error) = fs::remove_file(&path)
            && error.kind() != ErrorKind::NotFound
        {
            tracing::error!(file = %path.display(), %error, "an ended tunnel is still kept; remove the file");
        }
    }

    /// Removes everything: no tunnel is left for a next start.
    pub fn end(self) {
        self.folder.iter().for_each(|folder| remove(folder));
    }

    fn path(&self, ike: IkeSaId) -> Option<PathBuf> {
        Some(self.folder.as_ref()?.join(format!("{}{SUFFIX}", ike.0)))
    }
}

/// Removes the folder of an instance with all that is in it.
fn remove(folder: &Path) {
    if let Err(error) = fs::remove_dir_all(folder)
        && error.kind() != ErrorKind::NotFound
    {
        tracing::warn!("{}", refused(folder, &error));
    }
}

/// A folder of this user alone, made when missing.
fn private(folder: &Path) -> Result<(), String> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(|error| refused(folder, &error))?;
    let found = fs::symlink_metadata(folder).map_err(|error| refused(folder, &error))?;
    let ours = found.is_dir()
        && found.uid() == rustix::process::geteuid().as_raw()
        && found.mode() & 0o022 == 0;
    if ours {
        return Ok(());
    }
    Err(format!(
        "{} is not a folder that only this user can write to; remove it, or set `runtime` in \
         [gateway] to another",
        folder.display()
    ))
}

/// The folder of an instance: its state directory's path, which only one can use, as a digest.
fn name_of(state: &Path) -> String {
    let path = fs::canonicalize(state).unwrap_or_else(|_| state.to_owned());
    let digest = ring::digest::digest(&ring::digest::SHA256, path.as_os_str().as_encoded_bytes());
    digest.as_ref().iter().take(8).map(|octet| format!("{octet:02x}")).collect()
}

fn read(path: &Path) -> Result<Snapshot, String> {
    let mut octets = zeroize::Zeroizing::new(Vec::new());
    File::open(path)
        .and_then(|file| file.take(LONGEST).read_to_end(&mut octets))
        .map_err(|error| sys::reason(&error))?;
    let snapshot = Snapshot::decode(&octets).map_err(|error| error.to_string())?;
    // A clock that went back since counts as no time.
    let since = fs::metadata(path).and_then(|file| file.modified()).ok();
    let since = since.and_then(|written| written.elapsed().ok()).unwrap_or_default();
    Ok(snapshot.aged(since))
}

/// Under another name first: the file always holds one checkpoint or the other.
fn write(path: &Path, octets: &[u8]) -> io::Result<()> {
    let fresh = path.with_extension("new");
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let done = options
        .open(&fresh)
        .and_then(|mut file| file.write_all(octets))
        .and_then(|()| fs::rename(&fresh, path));
    if done.is_err() {
        // It has keys, and takes the room that is short.
        let _ = fs::remove_file(&fresh);
    }
    done
}

fn refused(path: &Path, error: &io::Error) -> String {
    format!(
        "{} cannot be used: {}; check its owner and mode, or set `runtime` in [gateway]",
        path.display(),
        sys::reason(error)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Files that are no snapshots need no engine to make them; real ones are in the labs and in
    /// the engine's own tests.
    fn kept(folder: &Path) -> Checkpoints {
        Checkpoints { folder: Some(folder.to_owned()), failed: Arc::default() }
    }

    #[test]
    fn session_keys_are_not_written_to_a_disk() {
        // What a build directory lies on; the tests of a tmpfs need one.
        let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let disk = statfs(folder.path()).unwrap().f_type;
        if disk as u64 & 0xffff_ffff == IN_MEMORY {
            return;
        }
        let error = Checkpoints::open(folder.path(), folder.path()).unwrap_err();
        assert!(error.contains("is on a disk") && error.contains("tmpfs"), "{error}");
    }

    #[test]
    fn a_folder_that_others_can_write_to_is_not_used() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let error = Checkpoints::open(folder.path(), folder.path()).unwrap_err();
        assert!(error.contains("only this user can write to"), "{error}");
        let link = folder.path().join("link");
        std::os::unix::fs::symlink("/run", &link).unwrap();
        assert!(Checkpoints::open(&link, folder.path()).unwrap_err().contains("is not a folder"));
    }

    #[test]
    fn what_cannot_be_read_is_removed_and_hinders_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = kept(folder.path());
        fs::write(folder.path().join("7.sa"), b"rubbish").unwrap();
        fs::write(folder.path().join("8.new"), b"half").unwrap();
        fs::write(folder.path().join(SEQUENCES), b"numbers").unwrap();
        assert!(checkpoints.load().is_empty());
        let left: Vec<_> = fs::read_dir(folder.path()).unwrap().flatten().collect();
        assert_eq!(left.len(), 1, "{left:?}");
        assert!(folder.path().join(SEQUENCES).exists());
        // Forgetting what is not there is no error.
        checkpoints.forget(IkeSaId(7));
    }

    #[test]
    fn a_file_always_holds_one_whole_checkpoint_for_nobody_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("7.sa");
        write(&path, b"first").unwrap();
        write(&path, b"second, longer").unwrap();
        write(&path, b"third").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"third");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn two_state_directories_have_folders_of_their_own() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        assert_eq!(name_of(one.path()), name_of(&one.path().join(".")));
        assert_ne!(name_of(one.path()), name_of(other.path()));
    }
}
