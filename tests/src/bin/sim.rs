//! Simulation walks of the IKEv2 engine: `sim --walks N [--seed S]`.
//!
//! Each seed is one walk (see `tests::sim::walk`). A failing seed prints itself and its story, and
//! fails the run; the same seed fails again in the same way.
#![allow(clippy::print_stdout)]

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use tests::sim::walk::{Failure, Summary, walk};

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

fn run() -> Result<bool, String> {
    let (walks, first) = arguments()?;
    let next = AtomicU64::new(first);
    let end = first.saturating_add(walks);
    let failures: Mutex<Vec<Failure>> = Mutex::new(Vec::new());
    let totals: Mutex<Summary> = Mutex::new(Summary::default());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        return;
                    }
                    match walk(seed) {
                        Ok(one) => {
                            let mut all = totals.lock().unwrap_or_else(PoisonError::into_inner);
                            all.sent += one.sent;
                            all.lost += one.lost;
                            all.established += one.established;
                        }
                        Err(failure) => {
                            println!("{failure}");
                            failures.lock().unwrap_or_else(PoisonError::into_inner).push(failure);
                        }
                    }
                }
            });
        }
    });
    let totals = totals.into_inner().unwrap_or_else(PoisonError::into_inner);
    let failed = failures.into_inner().unwrap_or_else(PoisonError::into_inner).len() as u64;
    println!(
        "{} datagrams sent, {} lost, {} IKE SAs established at gateways",
        totals.sent, totals.lost, totals.established
    );
    println!("{} passed, {failed} failed", walks - failed);
    Ok(failed == 0)
}

fn arguments() -> Result<(u64, u64), String> {
    const USAGE: &str = "usage: sim --walks N [--seed S]";
    let (mut walks, mut seed) = (1000, 1);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let slot = match argument.as_str() {
            "--walks" => &mut walks,
            "--seed" => &mut seed,
            _ => return Err(format!("unknown argument {argument}; {USAGE}")),
        };
        *slot = arguments
            .next()
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| format!("{argument} takes a whole number; {USAGE}"))?;
    }
    Ok((walks, seed))
}
