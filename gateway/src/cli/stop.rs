//! `runnel stop`

use std::time::Duration;

use super::{Context, Failure, output};
use crate::admin::proto::Request;
use crate::state::StateDir;

const EXAMPLES: &str = "\
Examples:
  runnel stop          DELETE to every peer; no interface, route, rule or SA stays behind
  runnel stop --keep   before an upgrade: clients hear nothing, and the next start goes on with
                       their tunnels";

/// Longest wait for the end: answers to DELETE are awaited for a few seconds.
const PATIENCE: Duration = Duration::from_secs(20);

/// Stop the running instance fully and wait until it is gone
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Close no tunnel: the next start goes on with all of them
    #[arg(long)]
    keep: bool,
}

pub(super) fn run(context: &Context, args: &Args) -> Result<(), Failure> {
    let mut client = context.client()?;
    let () = client.ask(Request::Stop { keep: args.keep })?;
    if client.wait_for_end(PATIENCE) && StateDir::wait_until_free(&context.state, PATIENCE) {
        output::line("stopped");
        Ok(())
    } else {
        Err(Failure::Failed(format!(
            "the instance is still stopping after {} s; see its log",
            PATIENCE.as_secs()
        )))
    }
}
