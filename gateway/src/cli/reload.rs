//! `runnel reload`

use super::{Context, Failure, output};
use crate::admin::proto::Request;

const EXAMPLES: &str = "\
Examples:
  runnel check && runnel reload      new roles and allow lists bite on live tunnels at once";

/// Read the configuration again; live tunnels stay
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {}

pub(super) fn run(context: &Context, _args: &Args) -> Result<(), Failure> {
    let done: String = context.client()?.ask(Request::Reload)?;
    output::line(&done);
    Ok(())
}
