//! `runnel drain`

use super::{Context, Failure, output};
use crate::admin::proto::Request;

const EXAMPLES: &str = "\
Examples:
  runnel drain --to gw2.example.com     before maintenance: clients move over by themselves
  runnel drain --off                    stay from now on; who has moved does not come back
  runnel status -o json | jq .ike_sas   how many are left";

/// Send clients to another gateway (RFC 5685)
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Name or address of the other gateway
    #[arg(long, value_name = "HOST", required_unless_present = "off", conflicts_with = "off")]
    to: Option<String>,
    /// Send nobody away any more
    #[arg(long)]
    off: bool,
}

pub(super) fn run(context: &Context, args: &Args) -> Result<(), Failure> {
    let to = args.to.clone();
    let done: String = context.client()?.ask(Request::Drain { to })?;
    output::line(&done);
    Ok(())
}
