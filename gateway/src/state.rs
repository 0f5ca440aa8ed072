//! The state directory: whose it is, which version wrote it, and that one instance uses it.
//!
//! Nothing is created until [`StateDir::create`], so that a start that cannot succeed leaves no
//! trace; a directory that this start created is removed again when the start fails.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use thiserror::Error;

/// The layout this program writes and the newest it can read.
pub const STATE_VERSION: u32 = 1;

/// How often, and how far apart, a lock is tried that somebody holds.
const LOCK_TRIES: u32 = 15;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// Why the state directory cannot be used. Each is one sentence with what to do.
#[derive(Debug, Error)]
pub enum StateError {
    /// Another instance holds the lock.
    #[error(
        "another runnel uses {0} already; stop it with `runnel --state {0} stop`, \
         or give this one its own --state directory"
    )]
    Busy(String),
    /// The directory was written by a newer version.
    #[error(
        "{path} was written by a newer runnel (state version {found}, this one knows up to \
         {STATE_VERSION}); run that newer version, or point --state at another directory"
    )]
    Newer {
        /// The directory.
        path: String,
        /// The version found.
        found: u32,
    },
    /// The version file makes no sense.
    #[error(
        "{0}/version does not hold a state version; restore the directory from a backup, \
         or point --state at another directory"
    )]
    BadVersion(String),
    /// Something that is not ours is there.
    #[error("{0} is not a runnel state directory; point --state at an empty or new directory")]
    Foreign(String),
    /// The operating system refused.
    #[error("cannot use the state directory {path}: {reason}; {fix}")]
    Io {
        /// The path that was refused.
        path: String,
        /// The operating system's words.
        reason: String,
        /// What to do.
        fix: &'static str,
    },
}

impl StateError {
    fn io(path: &Path, error: &std::io::Error) -> Self {
        let fix = match error.kind() {
            ErrorKind::PermissionDenied => {
                "run as root, or give this user the directory (owner, mode 0700)"
            }
            ErrorKind::NotADirectory | ErrorKind::AlreadyExists => {
                "a file is in the way: move it, or point --state at another directory"
            }
            ErrorKind::StorageFull => "make room on its file system",
            ErrorKind::ReadOnlyFilesystem => "point --state at a writable file system",
            _ => "check the path, its owner and its mode",
        };
        Self::Io { path: path.display().to_string(), reason: crate::sys::reason(error), fix }
    }
}

/// A state directory in use by this process; the lock lives as long as this value.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    lock: Option<File>,
    created: bool,
}

impl StateDir {
    /// Looks at `path` without changing anything: an existing directory must be readable, ours,
    /// of a known version, and free. Takes the lock when the directory exists.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn inspect(path: &Path) -> Result<Self, StateError> {
        let mut state = Self { path: path.to_owned(), lock: None, created: false };
        let metadata = match fs::metadata(path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                state.check_parent()?;
                return Ok(state);
            }
            Err(error) => return Err(StateError::io(path, &error)),
        };
        if !metadata.is_dir() {
            return Err(StateError::io(path, &std::io::Error::from(ErrorKind::NotADirectory)));
        }
        let mut entries = fs::read_dir(path).map_err(|e| StateError::io(path, &e))?;
        rustix::fs::access(path, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK)
            .map_err(|e| StateError::io(path, &std::io::Error::from(e)))?;
        match read_version(path)? {
            Some(found) if found > STATE_VERSION => {
                return Err(StateError::Newer { path: path.display().to_string(), found });
            }
            Some(_) => state.take_lock()?,
            // An empty directory (or one that only a service manager prepared) may be adopted;
            // anything else belongs to somebody.
            None if entries.all(|entry| entry.is_ok_and(|e| is_interrupted(&e.file_name()))) => {}
            None => return Err(StateError::Foreign(path.display().to_string())),
        }
        Ok(state)
    }

    /// Creates what is missing: the directory (0700), the lock and the version file.
    ///
    /// # Errors
    /// [`StateError`]; a directory created here is removed again.
    pub fn create(&mut self) -> Result<(), StateError> {
        let result = self.create_inner();
        if result.is_err() {
            self.undo();
        }
        result
    }

    fn create_inner(&mut self) -> Result<(), StateError> {
        if !self.path.exists() {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&self.path)
                .map_err(|e| StateError::io(&self.path, &e))?;
            self.created = true;
        }
        let mode = fs::metadata(&self.path).map_err(|e| StateError::io(&self.path, &e))?.mode();
        if mode & 0o077 != 0 {
            fs::set_permissions(&self.path, fs::Permissions::from_mode(0o700))
                .map_err(|e| StateError::io(&self.path, &e))?;
        }
        if self.lock.is_none() {
            self.take_lock()?;
        }
        let version = self.path.join("version");
        if !version.exists() {
            write_private(&version, format!("{STATE_VERSION}\n").as_bytes())
                .map_err(|e| StateError::io(&version, &e))?;
        }
        Ok(())
    }

    /// Removes the directory when this process created it; for a start that failed.
    pub fn undo(&mut self) {
        if self.created {
            self.created = false;
            if let Err(error) = fs::remove_dir_all(&self.path) {
                tracing::warn!(path = %self.path.display(), %error, "left behind");
            }
        }
    }

    /// The start succeeded: what was created stays.
    pub fn keep(&mut self) {
        self.created = false;
    }

    /// Whether the directory was created by this start.
    pub fn is_new(&self) -> bool {
        self.created
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes a file of an earlier version that nothing needs any more.
    pub fn forget(&self, name: &str) {
        match fs::remove_file(self.path.join(name)) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                tracing::warn!(name, %error, "a file of an earlier version stays");
            }
            _ => {}
        }
    }

    /// The admin socket inside `state`.
    pub fn socket(state: &Path) -> PathBuf {
        state.join("admin.sock")
    }

    /// Waits until no instance uses the directory; false when one still does in the end. The lock
    /// goes with the process, a moment after its sockets.
    pub fn wait_until_free(path: &Path, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        while matches!(Self::inspect(path), Err(StateError::Busy(_))) {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        true
    }

    fn take_lock(&mut self) -> Result<(), StateError> {
        let path = self.path.join("runnel.lock");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|e| StateError::io(&path, &e))?;
        // A process that is just ending, or a child that it has forked and that has not started its
        // program yet, holds the lock a little longer.
        for _ in 0..LOCK_TRIES {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {
                    self.lock = Some(file);
                    return Ok(());
                }
                Err(rustix::io::Errno::WOULDBLOCK) => std::thread::sleep(LOCK_PAUSE),
                Err(error) => return Err(StateError::io(&path, &std::io::Error::from(error))),
            }
        }
        Err(StateError::Busy(self.path.display().to_string()))
    }

    /// The nearest existing ancestor must let us create the directory.
    fn check_parent(&self) -> Result<(), StateError> {
        let mut parent = self.path.parent();
        while let Some(path) = parent {
            let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
            match fs::metadata(path) {
                Ok(metadata) if metadata.is_dir() => {
                    return rustix::fs::access(
                        path,
                        rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK,
                    )
                    .map_err(|e| StateError::io(path, &std::io::Error::from(e)));
                }
                Ok(_) => {
                    let error = std::io::Error::from(ErrorKind::NotADirectory);
                    return Err(StateError::io(path, &error));
                }
                Err(error) if error.kind() == ErrorKind::NotFound => parent = path.parent(),
                Err(error) => return Err(StateError::io(path, &error)),
            }
        }
        Ok(())
    }
}

/// What a start that was killed before it wrote the version may have left.
fn is_interrupted(name: &std::ffi::OsStr) -> bool {
    name == "runnel.lock" || name == "version.new"
}

/// Writes a file that only the owner can read, durably and in one step.
///
/// # Errors
/// The operating system's.
pub fn write_private(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let temporary = path.with_extension("new");
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    if let Some(parent) = path.parent() {
        File::open(parent)?.sync_all()?;
    }
    Ok(())
}

fn read_version(path: &Path) -> Result<Option<u32>, StateError> {
    let file = path.join("version");
    let mut text = String::new();
    match File::open(&file) {
        Ok(opened) => opened
            .take(32)
            .read_to_string(&mut text)
            .map_err(|_| StateError::BadVersion(path.display().to_string()))?,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(StateError::io(&file, &error)),
    };
    text.trim().parse().map(Some).map_err(|_| StateError::BadVersion(path.display().to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fresh() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        (dir, path)
    }

    #[test]
    fn inspecting_creates_nothing_and_creating_is_private() {
        let (_dir, path) = fresh();
        let mut state = StateDir::inspect(&path).unwrap();
        assert!(!path.exists());
        state.create().unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
        assert_eq!(fs::read_to_string(path.join("version")).unwrap(), "1\n");
        state.undo();
        assert!(!path.exists());
    }

    #[test]
    fn a_file_of_an_earlier_version_goes_once() {
        let (_parent, path) = fresh();
        let mut state = StateDir::inspect(&path).unwrap();
        state.create().unwrap();
        fs::write(path.join("crash.key"), [1; 32]).unwrap();
        state.forget("crash.key");
        assert!(!path.join("crash.key").exists());
        state.forget("crash.key");
    }

    #[test]
    fn a_second_instance_is_refused_in_one_sentence() {
        let (_dir, path) = fresh();
        let mut first = StateDir::inspect(&path).unwrap();
        first.create().unwrap();
        let error = StateDir::inspect(&path).unwrap_err().to_string();
        assert!(error.contains("another runnel uses"), "{error}");
        assert!(!error.contains('\n'));
        drop(first);
        StateDir::inspect(&path).unwrap();
    }

    #[test]
    fn a_newer_state_is_refused_and_left_alone() {
        let (_dir, path) = fresh();
        fs::create_dir(&path).unwrap();
        fs::write(path.join("version"), "99\n").unwrap();
        let error = StateDir::inspect(&path).unwrap_err();
        assert!(matches!(error, StateError::Newer { found: 99, .. }), "{error}");
        assert_eq!(fs::read_dir(&path).unwrap().count(), 1);
    }

    #[test]
    fn a_directory_of_somebody_else_is_refused() {
        let (_dir, path) = fresh();
        fs::create_dir(&path).unwrap();
        fs::write(path.join("thesis.tex"), "").unwrap();
        assert!(matches!(StateDir::inspect(&path), Err(StateError::Foreign(_))));
        fs::write(path.join("version"), "garbage").unwrap();
        assert!(matches!(StateDir::inspect(&path), Err(StateError::BadVersion(_))));
    }

    #[test]
    fn an_existing_directory_survives_a_failed_start() {
        let (_dir, path) = fresh();
        fs::create_dir(&path).unwrap();
        let mut state = StateDir::inspect(&path).unwrap();
        state.create().unwrap();
        state.undo();
        assert!(path.exists());
    }

    #[test]
    fn a_file_in_the_way_is_named() {
        let (_dir, path) = fresh();
        fs::write(&path, "").unwrap();
        let error = StateDir::inspect(&path).unwrap_err().to_string();
        assert!(error.contains("a file is in the way"), "{error}");
        let error = StateDir::inspect(&path.join("below")).unwrap_err().to_string();
        assert!(error.contains("not a directory") || error.contains("in the way"), "{error}");
    }
}
