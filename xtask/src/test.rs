//! `cargo xtask test`: everything that must pass, in the order of what fails fastest.

use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::matrix::Ran;
use crate::run::{self, Program};
use crate::{docs, guest, matrix, next, packages, prepare_labs, vectors};

/// Runs all checks; labs too unless `fast`.
///
/// The last line printed is `N passed, N failed`, counting steps and labs.
pub(crate) fn all(fast: bool) -> Result<()> {
    packages::install(packages::BUILD)?;
    if !fast {
        prepare_labs()?;
    }
    let mut tally = Tally::default();
    let mut ran = Ran::default();
    if !fast {
        // Only the labs that run it fail without it.
        tally.step("strongSwan of the next suite", next::prepare);
        tally.step("kernel of the guest", guest::prepare);
    }
    // Only the test that judges them fails without them.
    tally.step("public test vectors", vectors::prepare);
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
    tally.step("tests", || tests(&["--workspace"], &mut ran));
    // Everything else has just passed without them; named like this, all but the test is built.
    let crash = ["--workspace", "--features", "gateway/failpoints", "--test", "crash"];
    tally.step("failpoints", || tests(&crash, &mut ran));
    tally.step("simulation", || crate::sim(WALKS, None));
    tally.step("documents", docs::check);
    if !fast && built {
        // `cargo test` of the whole workspace may have replaced the binaries.
        let programs = || run::build_lab_programs(true).and_then(|()| guest::programs());
        if tally.step("lab programs", programs) {
            let (passed, failed) = labs(&mut ran)?;
            tally.passed += passed;
            tally.failed += failed;
        }
    }
    if fast {
        println!("the RFC matrix is not compared with the labs, which did not run");
    }
    tally.step("RFC matrix", || matrix::check(&ran, !fast));
    println!("{} passed, {} failed", tally.passed, tally.failed);
    if tally.failed > 0 {
        bail!("some checks failed");
    }
    Ok(())
}

/// Simulation walks of one run: with their build they take less than five minutes on two cores
/// (about 2.5 ms each, and a minute and a half of compiling). More: `cargo xtask sim`.
const WALKS: u64 = 100_000;

/// The seed of every property test, so that one commit gives one result. Each plain `cargo test`
/// draws its own.
const PROPERTY_SEED: &str = "20261122";

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

/// Runs tests, notes those that passed, and shows everything else that they print.
fn tests(words: &[&str], ran: &mut Ran) -> Result<()> {
    // One failure must not hide what follows it.
    let words = ["test", "--no-fail-fast"].iter().chain(words);
    let program = Program::cargo(words).env("PROPTEST_RNG_SEED", PROPERTY_SEED);
    program.lines(|line| match passed_test(line) {
        Some(name) => {
            ran.tests.insert(name.to_owned());
        }
        None if line.trim().is_empty() => {}
        None => println!("{line}"),
    })
}

/// The name of a test that its line says has passed, without its modules.
fn passed_test(line: &str) -> Option<&str> {
    let name = line.strip_prefix("test ")?.strip_suffix(" ... ok")?;
    let name = name.strip_suffix(" - should panic").unwrap_or(name);
    Some(name.rsplit_once("::").map_or(name, |(_, last)| last))
}

/// Runs every lab, passing its lines through, and returns the counts of its last line.
fn labs(ran: &mut Ran) -> Result<(u32, u32)> {
    println!("==> labs");
    let program = Program::built("labs")
        .env(guest::VARIABLE, &guest::folder().display().to_string())
        .env(next::VARIABLE, &next::folder().display().to_string());
    let mut counts = None;
    let outcome = program.lines(|line| match tally_line(line) {
        Some(found) => counts = Some(found),
        None => {
            ran.labs.extend(passed_lab(line).map(str::to_owned));
            println!("{line}");
        }
    });
    // A lab that failed is in the counts.
    counts.with_context(|| match outcome {
        Ok(()) => "the labs ended without a result".to_owned(),
        Err(error) => format!("the labs ended without a result: {error:#}"),
    })
}

/// The name of a lab that its line says has passed, here or in the guest.
fn passed_lab(line: &str) -> Option<&str> {
    let line = line.strip_prefix("guest: ").unwrap_or(line);
    line.strip_prefix("ok ")?.split_whitespace().next()
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

    #[test]
    fn what_passed_is_told_by_its_line() {
        assert_eq!(passed_test("test a::b::it_works ... ok"), Some("it_works"));
        assert_eq!(passed_test("test it_panics - should panic ... ok"), Some("it_panics"));
        assert_eq!(passed_test("test it_fails ... FAILED"), None);
        assert_eq!(passed_test("test it_sleeps ... ignored"), None);
        assert_eq!(passed_lab("ok    ipv6   0.7 s"), Some("ipv6"));
        assert_eq!(passed_lab("guest: ok    kernel-plane   9.7 s"), Some("kernel-plane"));
        assert_eq!(passed_lab("guest:   [  9.7s] ok    so far"), None);
        assert_eq!(passed_lab("FAIL  ipv6   0.7 s  why"), None);
    }
}
