//! Developer commands: `cargo xtask demo | test | lab | sim | vectors | fuzz | bench`.
//!
//! This program only installs, builds and starts things; what is tested lives in the `tests`
//! crate. It stays small, so that it builds in seconds on a machine that has nothing yet.
#![allow(clippy::print_stdout, clippy::print_stderr)] // a command-line program

mod docs;
mod fuzz;
mod guest;
mod matrix;
mod next;
mod packages;
mod run;
mod test;
mod vectors;

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Parser, Subcommand};

use run::Program;

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about = "Developer commands of Runnel")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show the whole story on this machine: enrol, connect, download, release (root).
    Demo,
    /// Install what tests need and run everything.
    Test {
        /// Leave out the labs, which need root and network namespaces.
        #[arg(long)]
        fast: bool,
    },
    /// Run interop labs with their steps; logs and captures stay in target/labs/NAME when one
    /// fails (root).
    Lab {
        /// Names of the labs.
        #[arg(required_unless_present = "list")]
        names: Vec<String>,
        /// List the labs.
        #[arg(long)]
        list: bool,
    },
    /// Check the commands and links in the README and the documents.
    Docs,
    /// Run simulation walks; a failing seed prints itself.
    Sim {
        /// Number of walks.
        #[arg(long)]
        walks: u64,
        /// Seed of the first walk; 1 when left out.
        #[arg(long)]
        seed: Option<u64>,
    },
    /// Fetch the public vectors that the tests of path validation need.
    Vectors,
    /// Fuzz one target for a while (needs a nightly toolchain).
    Fuzz {
        /// Name of the target.
        target: String,
        /// How long, in seconds.
        #[arg(long)]
        seconds: u64,
    },
    /// Run a paired benchmark; the last line printed is one JSON object (root).
    Bench {
        /// Name of the benchmark.
        #[arg(required_unless_present = "list")]
        name: Option<String>,
        /// List the benchmarks.
        #[arg(long)]
        list: bool,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match dispatch(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: Command) -> Result<()> {
    match command {
        Command::Demo => demo(),
        Command::Test { fast } => test::all(fast),
        Command::Lab { list: true, .. } => labs(&["--list"]),
        Command::Lab { names, .. } => {
            prepare_labs()?;
            let in_guest = |name: &String| name.starts_with(guest::PREFIX);
            // The build with failpoints is for labs on this machine.
            run::build_lab_programs(!names.iter().all(in_guest))?;
            if names.iter().any(in_guest) {
                guest::prepare()?;
                guest::programs()?;
            }
            if names.iter().any(|name| next::needed_by(name)) {
                next::prepare()?;
            }
            let words = std::iter::once("--verbose").chain(names.iter().map(String::as_str));
            labs(&words.collect::<Vec<_>>())
        }
        Command::Docs => {
            Program::cargo(["build", "--quiet", "--workspace", "--bins"]).run()?;
            docs::check()
        }
        Command::Sim { walks, seed } => sim(walks, seed),
        Command::Vectors => vectors::prepare(),
        Command::Fuzz { target, seconds } => fuzz::run(&target, seconds),
        Command::Bench { list: true, .. } => labs(&["--list-benchmarks"]),
        Command::Bench { name, .. } => bench(&name.unwrap_or_default()),
    }
}

fn demo() -> Result<()> {
    prepare_labs()?;
    println!("Building runnel and the demo (the first build takes a few minutes) ...");
    run::build_lab_programs(false)?;
    Program::built("labs").args(["--demo"]).run()
}

fn bench(name: &str) -> Result<()> {
    if name == "handshake" {
        // No network, no root: engines only.
        let words = ["run", "--release", "--quiet", "-p", "tests", "--bin", "handshake"];
        return Program::cargo(words).run();
    }
    if ["store", "enrolment"].contains(&name) {
        // Disk and C libraries decide: the profile that builds in a minute is enough.
        let words =
            ["run", "--profile", "sim", "--quiet", "-p", "tests", "--bin", "authority", "--", name];
        return Program::cargo(words).run();
    }
    prepare_labs()?;
    run::build_release_gateway()?;
    Program::cargo(["build", "--quiet", "--workspace", "--bin", "labs"]).run()?;
    Program::built("labs").args(["--bench", name]).run()
}

fn sim(walks: u64, seed: Option<u64>) -> Result<()> {
    run::build_simulation()?;
    let mut args = vec!["--walks".to_owned(), walks.to_string()];
    if let Some(seed) = seed {
        args.extend(["--seed".to_owned(), seed.to_string()]);
    }
    Program::simulation().args(args).run()
}

/// Everything a lab needs of the machine: root, a TUN device, Debian packages.
fn prepare_labs() -> Result<()> {
    if !run::is_root()? {
        bail!("this builds network namespaces and needs root: run it with sudo or in a root shell");
    }
    packages::install(packages::LABS)?;
    if !std::path::Path::new("/dev/net/tun").exists() {
        bail!("/dev/net/tun is missing: load the `tun` module or give this container the device");
    }
    Ok(())
}

fn labs(args: &[&str]) -> Result<()> {
    Program::cargo(["build", "--quiet", "--workspace", "--bin", "labs"]).run()?;
    Program::built("labs")
        .args(args.iter().copied())
        .env(guest::VARIABLE, &guest::folder().display().to_string())
        .env(next::VARIABLE, &next::folder().display().to_string())
        .run()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_documented_commands_parse() {
        for line in [
            "demo",
            "test",
            "test --fast",
            "lab --list",
            "lab baseline",
            "lab kernel-connect kernel-suites",
            "sim --walks 10 --seed 3",
            "vectors",
            "fuzz message --seconds 5",
            "bench tunnel",
            "bench handshake",
            "bench store",
            "bench enrolment",
            "bench revoke",
            "bench --list",
        ] {
            let words = std::iter::once("xtask").chain(line.split(' '));
            assert!(Cli::try_parse_from(words).is_ok(), "{line}");
        }
        assert!(Cli::try_parse_from(["xtask", "lab"]).is_err());
    }
}
