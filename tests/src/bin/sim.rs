//! Simulation walks of the IKEv2 engine: `sim --walks N [--seed S] [--replay-every R] [--tell]`.
//!
//! Each seed is one walk (see `tests::sim::walk`). A failing seed prints itself and its story, and
//! fails the run; the same seed fails again in the same way. Every R-th walk (and a single one) is
//! also replayed, engine by engine, and must give the same bytes. `--tell` first prints everything
//! that the hosts of the first walk were given and gave.
#![allow(clippy::print_stdout)]

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use tests::sim::walk::{Failure, Summary, tell, walk, walk_once};

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(message) => {
            println!("{message}");
            ExitCode::from(2)
        }
    }
}

/// A line of progress after this many walks.
const PROGRESS: u64 = 20_000;

/// How many failures are told in full; more would hide them.
const TOLD: usize = 20;

struct Arguments {
    walks: u64,
    seed: u64,
    replay_every: u64,
    tell: bool,
}

#[derive(Default)]
struct Totals {
    summary: Summary,
    done: u64,
    failed: usize,
}

fn run() -> Result<bool, String> {
    let Arguments { walks, seed: first, replay_every, tell: told } = arguments()?;
    if told {
        for line in tell(first) {
            println!("{line}");
        }
    }
    let next = AtomicU64::new(first);
    let end = first.saturating_add(walks);
    let totals: Mutex<Totals> = Mutex::new(Totals::default());
    let started = Instant::now();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        return;
                    }
                    let replayed = walks == 1 || (seed - first).is_multiple_of(replay_every);
                    let outcome = if replayed { walk(seed) } else { walk_once(seed) };
                    let mut all = totals.lock().unwrap_or_else(PoisonError::into_inner);
                    count(&mut all, outcome);
                    if all.done.is_multiple_of(PROGRESS) {
                        let seconds = started.elapsed().as_secs();
                        println!("{} of {walks} walks in {seconds} s", all.done);
                    }
                }
            });
        }
    });
    let Totals { summary, failed, .. } =
        totals.into_inner().unwrap_or_else(PoisonError::into_inner);
    println!(
        "{} datagrams sent, {} lost, {} IKE SAs established at gateways",
        summary.sent, summary.lost, summary.established
    );
    println!("{} passed, {failed} failed", walks - failed as u64);
    Ok(failed == 0)
}

fn count(all: &mut Totals, outcome: Result<Summary, Failure>) {
    all.done += 1;
    match outcome {
        Ok(one) => {
            all.summary.sent += one.sent;
            all.summary.lost += one.lost;
            all.summary.established += one.established;
        }
        Err(failure) => {
            all.failed += 1;
            if all.failed <= TOLD {
                println!("{failure}");
            } else {
                println!("seed {} too", failure.seed);
            }
        }
    }
}

fn arguments() -> Result<Arguments, String> {
    const USAGE: &str = "usage: sim --walks N [--seed S] [--replay-every R] [--tell]";
    let mut found = Arguments { walks: 1000, seed: 1, replay_every: 16, tell: false };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        if argument == "--tell" {
            found.tell = true;
            continue;
        }
        let slot = match argument.as_str() {
            "--walks" => &mut found.walks,
            "--seed" => &mut found.seed,
            "--replay-every" => &mut found.replay_every,
            _ => return Err(format!("unknown argument {argument}; {USAGE}")),
        };
        *slot = arguments
            .next()
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| format!("{argument} takes a whole number; {USAGE}"))?;
    }
    found.replay_every = found.replay_every.max(1);
    Ok(found)
}
