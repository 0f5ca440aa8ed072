//! `cargo xtask test`: everything that must pass, in the order of what fails fastest.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::run::{self, Program};
use crate::{docs, guest, matrix, next, packages, prepare_labs};

/// Runs all checks; labs too unless `fast`.
///
/// The last line printed is `N passed, N failed`, counting steps and labs.
pub(crate) fn all(fast: bool) -> Result<()> {
    packages::install(packages::BUILD)?;
    if !fast {
        prepare_labs()?;
        next::prepare()?;
    }
    let mut tally = Tally::default();
    tally.step("format", || Program::cargo(["fmt", "--all", "--check"]).run());
    tally.step("lints", || {
        Program::cargo([
            "clippy",
            "--quiet",
            "--workspace",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ])
        .run()
    });
    // Integration tests start `runnel`; the failpoints build comes first, because the plain one
    // must be what stays in the target folder.
    let built = tally.step("build", || run::build_lab_programs(true));
    tally.step("tests", || Program::cargo(["test", "--quiet", "--workspace"]).run());
    tally.step("failpoints", || {
        Program::cargo(["test", "--quiet", "-p", "pki", "--features", "failpoints"]).run()
    });
    tally.step("simulation", || crate::sim(WALKS, None));
    tally.step("documents", docs::check);
    tally.step("RFC matrix", matrix::check);
    if !fast && built {
        // `cargo test` of the whole workspace may have replaced the binaries.
        if tally.step("lab programs", || run::build_lab_programs(true)) {
            let (passed, failed) = labs()?;
            tally.passed += passed;
            tally.failed += failed;
        }
    }
    println!("{} passed, {} failed", tally.passed, tally.failed);
    if tally.failed > 0 {
        bail!("some checks failed");
    }
    Ok(())
}

/// Simulation walks of one run: with their build they take less than five minutes on two cores
/// (about 2.5 ms each, and a minute and a half of compiling). More: `cargo xtask sim`.
const WALKS: u64 = 100_000;

#[derive(Default)]
struct Tally {
    passed: u32,
    failed: u32,
}

impl Tally {
    fn step(&mut self, name: &str, work: impl FnOnce() -> Result<()>) -> bool {
        println!("==> {name}");
        let started = Instant::now();
        let outcome = work();
        let seconds = started.elapsed().as_secs_f64();
        match outcome {
            Ok(()) => {
                self.passed += 1;
                println!("ok    {name:<18} {seconds:>6.1} s");
                true
            }
            Err(error) => {
                self.failed += 1;
                println!("FAIL  {name:<18} {seconds:>6.1} s  {error:#}");
                false
            }
        }
    }
}

/// Runs every lab, passing its lines through, and returns the counts of its last line.
fn labs() -> Result<(u32, u32)> {
    println!("==> labs");
    let mut child = Program::built("labs")
        .env(guest::VARIABLE, &guest::folder().display().to_string())
        .env(next::VARIABLE, &next::folder().display().to_string())
        .into_command()
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start the labs")?;
    let out = child.stdout.take().context("the labs have no output")?;
    let mut counts = None;
    for line in BufReader::new(out).lines() {
        let line = line?;
        match tally_line(&line) {
            Some(found) => counts = Some(found),
            None => println!("{line}"),
        }
    }
    child.wait()?;
    counts.context("the labs ended without a result")
}

fn tally_line(line: &str) -> Option<(u32, u32)> {
    let (passed, failed) = line.split_once(" passed, ")?;
    Some((passed.parse().ok()?, failed.strip_suffix(" failed")?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_of_the_labs_is_read() {
        assert_eq!(tally_line("12 passed, 1 failed"), Some((12, 1)));
        assert_eq!(tally_line("ok    baseline   0.7 s"), None);
    }
}
