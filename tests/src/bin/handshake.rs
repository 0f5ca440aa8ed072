//! The handshake benchmark; `cargo xtask bench handshake` is its usual caller.
#![allow(clippy::print_stderr)] // a command-line program

use std::process::ExitCode;

use tests::alloc::Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn main() -> ExitCode {
    match tests::handshake::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
