//! `runnel debug`: for the project's own tests; not part of the stable command line.

use clap::Subcommand;

use super::{Failure, output};

/// Developer commands
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Names of the places where a test build can be made to crash
    Failpoints,
}

pub(super) fn run(command: &Command) -> Result<(), Failure> {
    match command {
        Command::Failpoints => {
            for name in crate::sys::failpoint::all() {
                output::line(name);
            }
            if !cfg!(feature = "failpoints") {
                return Err(Failure::Failed(
                    "this build has no failpoints; build with --features failpoints".to_owned(),
                ));
            }
        }
    }
    Ok(())
}
