//! Runs interop labs; `cargo xtask lab` is its usual caller.
#![allow(clippy::print_stdout, clippy::print_stderr)] // a command-line program

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use tests::{guest, labs};

const USAGE: &str =
    "usage: labs [--list | --list-benchmarks | --demo | --bench NAME | [--verbose] NAME...]";

fn main() -> ExitCode {
    let mut names = Vec::new();
    let mut verbose = false;
    // Given in the guest only: where its logs and counts go.
    let mut results = None;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--demo" => return exit(labs::demo::run()),
            "--bench" => return exit(labs::bench::run(&arguments.next().unwrap_or_default())),
            "--list-benchmarks" => {
                for (name, about) in labs::bench::ALL {
                    println!("{name:<18} {about}");
                }
                return ExitCode::SUCCESS;
            }
            "--list" => {
                for entry in labs::ALL {
                    println!("{:<18} {}", entry.name, entry.about);
                }
                return ExitCode::SUCCESS;
            }
            "--verbose" | "-v" => verbose = true,
            "--results" => results = arguments.next().map(PathBuf::from),
            flag if flag.starts_with('-') => {
                eprintln!("{USAGE}");
                return ExitCode::from(2);
            }
            name => names.push(name.to_owned()),
        }
    }
    let kept = results.as_ref().map_or_else(|| PathBuf::from("target/labs"), |r| r.join("labs"));
    let ran = labs::run(&names, verbose, &kept).and_then(|(passed, failed)| {
        results.as_deref().map_or(Ok(()), |path: &Path| guest::report(path, passed, failed))?;
        Ok((passed, failed))
    });
    match ran {
        Ok((passed, failed)) => {
            println!("{passed} passed, {failed} failed");
            if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn exit(outcome: anyhow::Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
