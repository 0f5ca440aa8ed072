//! A long-running process of a lab, ended by its process id.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::{Lab, cmd, wait};

/// How long a process may take to end after SIGTERM before it is killed on drop.
const PATIENCE: Duration = Duration::from_secs(3);

/// A child process whose output goes to a file. Dropping it ends the process.
pub struct Process {
    label: String,
    child: Child,
    log: PathBuf,
    code: Option<i32>,
}

impl Process {
    /// Starts `command`, both output streams appended to `log`, and watches that log.
    ///
    /// # Errors
    /// When the log cannot be created or the program cannot be started.
    pub fn start(lab: &Lab, label: &str, mut command: Command, log: &Path) -> Result<Self> {
        let out = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("cannot write {}", log.display()))?;
        let err = out.try_clone()?;
        let child = command
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .with_context(|| format!("cannot start `{}`", cmd::line(&command)))?;
        lab.watch_log(label, log);
        Ok(Self { label: label.to_owned(), child, log: log.to_owned(), code: None })
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything it printed so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The exit code when the process has ended (128 + number for a signal).
    ///
    /// # Errors
    /// When the state cannot be read.
    pub fn ended(&mut self) -> Result<Option<i32>> {
        use std::os::unix::process::ExitStatusExt;
        if self.code.is_none()
            && let Some(status) = self.child.try_wait()?
        {
            self.code = Some(status.code().unwrap_or(128 + status.signal().unwrap_or(0)));
        }
        Ok(self.code)
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw);
        let pid = pid.with_context(|| format!("{} has no process id", self.label))?;
        kill_process(pid, signal).with_context(|| format!("cannot signal {}", self.label))
    }

    /// Waits for the end of the process and returns its exit code.
    ///
    /// # Errors
    /// When it still runs after `limit`, as long as [`wait::until`] waits.
    pub fn wait(&mut self, lab: &Lab, limit: Duration) -> Result<i32> {
        let started = Instant::now();
        let limit = wait::bound(limit);
        loop {
            if let Some(code) = self.ended()? {
                return Ok(code);
            }
            if started.elapsed() >= limit {
                bail!(
                    "waited {:.1} s for {} to end\n{}",
                    limit.as_secs_f64(),
                    self.label,
                    lab.tails()
                );
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Asks the process to end (SIGTERM) and waits for it.
    ///
    /// # Errors
    /// As [`Process::wait`].
    pub fn stop(&mut self, lab: &Lab, limit: Duration) -> Result<i32> {
        if let Some(code) = self.ended()? {
            return Ok(code);
        }
        self.signal(Signal::TERM)?;
        self.wait(lab, limit)
    }

    /// Ends the process at once (SIGKILL).
    ///
    /// # Errors
    /// When it cannot be signalled or waited for.
    pub fn kill(&mut self) -> Result<()> {
        if self.ended()?.is_none() {
            self.child.kill()?;
            self.child.wait()?;
        }
        Ok(())
    }

    /// Resident memory in bytes.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn resident(&self) -> Result<u64> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let kib = text
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .and_then(|rest| rest.split_whitespace().next())
            .and_then(|word| word.parse::<u64>().ok())
            .with_context(|| format!("{} has no resident size", self.label))?;
        Ok(kib * 1024)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.ended(), Ok(Some(_))) {
            return;
        }
        let _ = self.signal(Signal::TERM);
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if matches!(self.ended(), Ok(Some(_))) {
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
