//! Benchmarks of the authority; `cargo xtask bench store` and `enrolment` are their usual callers.
#![allow(clippy::print_stderr)] // a command-line program

use std::process::ExitCode;

fn main() -> ExitCode {
    let name = std::env::args().nth(1).unwrap_or_default();
    match tests::authority::run(&name) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
