//! A lab: a few hosts made of network namespaces, the daemons that run on them, and everything
//! needed to find out afterwards what happened.
//!
//! A [`Lab`] owns a working directory and a prefix. Every namespace, process and file of the lab
//! carries the prefix or lives in the directory, so one sweep removes all of it on every exit
//! path: normal return, error, panic, Ctrl-C, and (at the next start) `kill -9`.

pub mod capture;
pub mod charon;
pub mod cleanup;
pub mod cmd;
pub mod gateway;
pub mod host;
pub mod http;
pub mod leaks;
pub mod next;
pub mod pkitool;
pub mod process;
pub mod responder;
pub mod swanctl;
pub mod wait;
pub mod world;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use leaks::Leaks;

/// Lines of each log shown when a wait runs out or a lab fails.
const TAIL_LINES: usize = 12;

static SEQUENCE: AtomicU32 = AtomicU32::new(0);

/// One running lab. Cheap to clone; the last clone dropped removes everything the lab made.
#[derive(Clone)]
pub struct Lab(Arc<Inner>);

struct Inner {
    name: String,
    prefix: String,
    dir: PathBuf,
    started: Instant,
    verbose: bool,
    logs: Mutex<Vec<(String, PathBuf)>>,
    leaks: Leaks,
}

impl Lab {
    /// Creates an empty lab with its own prefix and working directory.
    ///
    /// The directory lies in the system's temporary directory, because Unix socket paths are
    /// limited to 107 bytes and a checkout can lie anywhere.
    ///
    /// # Errors
    /// When the directory cannot be created.
    pub fn new(name: &str, verbose: bool) -> Result<Self> {
        let sequence = SEQUENCE.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("{}{}x{sequence}", cleanup::PREFIX, std::process::id());
        let dir = std::env::temp_dir().join(&prefix);
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        Ok(Self(Arc::new(Inner {
            name: name.to_owned(),
            prefix,
            dir,
            started: Instant::now(),
            verbose,
            logs: Mutex::new(Vec::new()),
            leaks: Leaks::default(),
        })))
    }

    /// The lab's name, as given on the command line.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The prefix of every namespace of this lab.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.0.prefix
    }

    /// The lab's working directory; removed with the lab.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.0.dir
    }

    /// A file or folder of the working directory.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.dir.join(name)
    }

    /// Time since the lab began.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.0.started.elapsed()
    }

    /// What must not be seen outside of tunnels, or come out of one.
    #[must_use]
    pub fn leaks(&self) -> &Leaks {
        &self.0.leaks
    }

    /// Registers a log whose last lines are shown when something goes wrong.
    pub fn watch_log(&self, label: &str, path: &Path) {
        self.logs().push((label.to_owned(), path.to_owned()));
    }

    /// Prints one step of the lab when it runs verbosely.
    #[allow(clippy::print_stdout)] // a developer's terminal is this crate's user interface
    pub fn step(&self, text: &str) {
        if self.0.verbose {
            println!("  [{:>7.3}s] {text}", self.elapsed().as_secs_f64());
        }
    }

    /// The last lines of every registered log, for error messages.
    #[must_use]
    pub fn tails(&self) -> String {
        let mut out = String::new();
        for (label, path) in self.logs().iter() {
            let text = fs::read_to_string(path).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            let from = lines.len().saturating_sub(TAIL_LINES);
            out.push_str(&format!("--- last lines of {label}\n"));
            for line in lines.iter().skip(from) {
                out.push_str(&format!("    {line}\n"));
            }
        }
        out
    }

    /// Copies the working directory (logs, configurations, captures) to `target`.
    ///
    /// # Errors
    /// When copying fails.
    pub fn keep(&self, target: &Path) -> Result<()> {
        if target.exists() {
            fs::remove_dir_all(target)?;
        }
        fs::create_dir_all(target)?;
        let from = format!("{}/.", self.0.dir.display());
        // A share of the guest's takes no sockets, and nobody listens any more.
        cmd::run("find", &[&from, "-type", "s", "-delete"])?;
        cmd::run("cp", &["-r", "--no-preserve=ownership", &from, &target.display().to_string()])?;
        Ok(())
    }

    fn logs(&self) -> MutexGuard<'_, Vec<(String, PathBuf)>> {
        self.0.logs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.leaks.end();
        cleanup::sweep(&self.prefix);
    }
}
