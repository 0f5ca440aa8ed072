//! The `runnel` binary: one cryptography provider, a locked-down process, then the command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    // Before anything can ask for a default: rustls panics when it has to guess between two.
    gateway::sys::install_crypto_provider();
    gateway::sys::harden();
    gateway::cli::main()
}
