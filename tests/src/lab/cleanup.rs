//! Removes what labs leave behind: namespaces, the processes inside them, temporary directories.
//!
//! Everything is found by prefix, never by a process name, so nothing that is not a lab's can be
//! hit. The prefix holds the process id of its owner; leftovers of a dead owner are removed at the
//! next start.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::cmd;

/// Beginning of the name of every namespace and temporary directory of a lab.
pub const PREFIX: &str = "rlab";

/// Where labs keep what must not reach a disk, in folders with the same names.
pub const MEMORY: &str = "/dev/shm";

/// How long a swept process may take to end before SIGKILL.
const GRACE: Duration = Duration::from_millis(300);

/// Removes one lab: its directory `prefix`, its namespaces `prefix-NAME`, their processes.
///
/// Errors are ignored: this runs on exit paths, where nothing better can be done.
pub fn sweep(prefix: &str) {
    sweep_matching(&|name| belongs(name, prefix));
}

/// Removes every lab of one process.
fn sweep_owner(pid: u32) {
    sweep_matching(&|name| owner(name) == Some(pid));
}

/// Whether a namespace or directory is the lab's own: `rlab7x1` must not take `rlab7x12`.
fn belongs(name: &str, prefix: &str) -> bool {
    name.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}

fn sweep_matching(wanted: &dyn Fn(&str) -> bool) {
    let namespaces = namespaces(wanted);
    for signal in [Signal::TERM, Signal::KILL] {
        let mut pids = Vec::new();
        for namespace in &namespaces {
            pids.extend(pids_in(namespace));
        }
        for pid in &pids {
            if let Some(pid) = Pid::from_raw(*pid) {
                let _ = kill_process(pid, signal);
            }
        }
        let deadline = Instant::now() + GRACE;
        while pids.iter().any(|pid| Path::new(&format!("/proc/{pid}")).exists())
            && Instant::now() < deadline
        {
            thread::sleep(Duration::from_millis(10));
        }
    }
    for namespace in &namespaces {
        let _ = cmd::run("ip", &["netns", "del", namespace]);
    }
    remove_dirs(wanted);
}

/// Sweeps what labs whose owner no longer lives have left.
pub fn sweep_leftovers() {
    let mut owners: Vec<u32> =
        namespaces(&|name| owner(name).is_some()).iter().filter_map(|n| owner(n)).collect();
    if let Ok(entries) = fs::read_dir(std::env::temp_dir()) {
        owners.extend(entries.flatten().filter_map(|e| owner(&e.file_name().to_string_lossy())));
    }
    owners.sort_unstable();
    owners.dedup();
    for owner in owners {
        if !is_lab_process(owner) {
            sweep_owner(owner);
        }
    }
}

/// Sweeps and exits when the process is told to stop (Ctrl-C, SIGTERM, closed terminal).
///
/// # Errors
/// When the handlers cannot be installed.
pub fn on_signals() -> anyhow::Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            sweep_owner(std::process::id());
            std::process::exit(128 + signal);
        }
    });
    Ok(())
}

fn namespaces(wanted: &dyn Fn(&str) -> bool) -> Vec<String> {
    let Ok(entries) = fs::read_dir("/run/netns") else { return Vec::new() };
    entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| wanted(name))
        .collect()
}

fn pids_in(namespace: &str) -> Vec<i32> {
    let text = cmd::run("ip", &["netns", "pids", namespace]).unwrap_or_default();
    let me = i32::try_from(std::process::id()).unwrap_or(0);
    text.lines().filter_map(|line| line.trim().parse().ok()).filter(|pid| *pid != me).collect()
}

fn remove_dirs(wanted: &dyn Fn(&str) -> bool) {
    for place in [std::env::temp_dir(), PathBuf::from(MEMORY)] {
        let Ok(entries) = fs::read_dir(place) else { continue };
        for entry in entries.flatten() {
            if wanted(&entry.file_name().to_string_lossy()) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }
}

fn owner(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.split_once('x')?.0.parse().ok()
}

fn is_lab_process(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == "labs")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sweep_takes_its_own_lab_only() {
        assert!(belongs("rlab7x1", "rlab7x1"));
        assert!(belongs("rlab7x1-gateway", "rlab7x1"));
        assert!(!belongs("rlab7x12-gateway", "rlab7x1"));
        assert!(!belongs("rlab7x12", "rlab7x1"));
    }

    #[test]
    fn the_owner_is_read_from_the_name() {
        assert_eq!(owner("rlab123x4-run"), Some(123));
        assert_eq!(owner("rlab123x4"), Some(123));
        assert_eq!(owner("other123x4"), None);
        assert_eq!(owner("rlabx4"), None);
    }
}
