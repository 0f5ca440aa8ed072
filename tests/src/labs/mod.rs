//! The labs themselves: each one a function with a name, run by `cargo xtask lab NAME`.

mod baseline;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Result, anyhow};

use crate::lab::{Lab, cleanup};

/// One lab of the registry.
pub struct Entry {
    /// Name on the command line.
    pub name: &'static str,
    /// One line for `--list`.
    pub about: &'static str,
    /// The lab.
    pub run: fn(&Lab) -> Result<()>,
}

/// Every lab, cheapest first.
pub const ALL: &[Entry] = &[Entry {
    name: "baseline",
    about: "strongSwan to strongSwan over kernel-libipsec: the lab machinery itself",
    run: baseline::run,
}];

/// Runs labs one after another and prints one line each; returns how many passed and failed.
///
/// # Errors
/// When a name is unknown or the process may not build networks.
#[allow(clippy::print_stdout)] // a developer's terminal is this crate's user interface
pub fn run(names: &[String], verbose: bool, keep_below: &Path) -> Result<(usize, usize)> {
    let mut chosen = Vec::new();
    for name in names {
        let entry = ALL.iter().find(|entry| entry.name == name);
        chosen.push(entry.ok_or_else(|| anyhow!("there is no lab `{name}`; see --list"))?);
    }
    if names.is_empty() {
        chosen.extend(ALL);
    }
    if !rustix::process::geteuid().is_root() {
        return Err(anyhow!("labs build network namespaces: run them as root"));
    }
    cleanup::sweep_leftovers();
    cleanup::on_signals()?;
    let (mut passed, mut failed) = (0, 0);
    for entry in chosen {
        let started = Instant::now();
        let outcome = one(entry, verbose, keep_below);
        let seconds = started.elapsed().as_secs_f64();
        match outcome {
            Ok(()) => {
                passed += 1;
                println!("ok    {:<18} {seconds:>6.1} s", entry.name);
            }
            Err((error, kept)) => {
                failed += 1;
                println!("FAIL  {:<18} {seconds:>6.1} s  {error:#}", entry.name);
                println!("      logs and captures: {}", kept.display());
            }
        }
    }
    Ok((passed, failed))
}

fn one(entry: &Entry, verbose: bool, keep_below: &Path) -> Result<(), (anyhow::Error, PathBuf)> {
    let kept = keep_below.join(entry.name);
    let _ = std::fs::remove_dir_all(&kept);
    let lab = Lab::new(entry.name, verbose).map_err(|error| (error, kept.clone()))?;
    let outcome = catch_unwind(AssertUnwindSafe(|| (entry.run)(&lab)))
        .unwrap_or_else(|panic| Err(anyhow!("panicked: {}", panic_text(panic.as_ref()))));
    outcome.map_err(|error| match lab.keep(&kept) {
        Ok(()) => (error, kept),
        Err(why) => (error.context(format!("logs not kept: {why:#}")), kept),
    })
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .unwrap_or_default()
}
