//! `runnel revoke`

use super::lease::{Which, ended_text, list};
use super::output::OutputArg;
use super::{Context, Failure};
use crate::admin::proto::Request;
use crate::admin::view::{Ended, Lease};

const EXAMPLES: &str = "\
Examples:
  runnel revoke r-7f3k9q --reason key-compromise
  runnel revoke --serial 4f2a...                      one certificate, with its lease
  runnel revoke --key 9c41...                         every lease of a key (SHA-256)
  runnel revoke --identity spiffe://ci.example.com/ci/github/ --dry-run
  runnel revoke --run 4711 --issuer github            every lease of a CI run
  runnel revoke --role builder

All of it is one step: certificates revoked, tunnels closed, CRL and OCSP changed, the trail written.
Packets have stopped when this answers. Revocation sticks: the keys of the leases are barred, also of
those that had ended, and a run that is named so. `runnel bar list` shows and `runnel bar lift` ends
that; `runnel lease release` ends a lease without barring anything.";

/// End access now: leases, certificates and tunnels
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    #[command(flatten)]
    which: Which,
    /// Why, as in RFC 5280: unspecified, key-compromise, superseded, cessation-of-operation, ...
    #[arg(long, default_value = "unspecified")]
    reason: String,
    /// Only list what would end, with the leases that wait and would be denied
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    output: OutputArg,
}

pub(super) fn run(context: &Context, args: Args) -> Result<(), Failure> {
    let Args { which, reason, dry_run, output } = args;
    let selector = which.selector()?;
    let mut client = context.client()?;
    if dry_run {
        let leases: Vec<Lease> = client.ask(Request::RevokePreview { selector })?;
        output.print(&leases, |leases| list(leases));
    } else {
        let ended: Ended = client.ask(Request::LeaseRevoke { selector, reason })?;
        output.print(&ended, |ended| ended_text(ended, "revoked"));
    }
    Ok(())
}
