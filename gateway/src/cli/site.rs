//! `runnel site`

use clap::Subcommand;

use super::output::{OutputArg, line, table};
use super::{Context, Failure};
use crate::admin::proto::Request;
use crate::admin::view::Site;

const LIST: &str = "\
Examples:
  runnel site list
  runnel site list -o json | jq '.[] | select(.state != \"connected\")'";
const CONNECT: &str = "\
Examples:
  runnel site connect office     now instead of at the next attempt; also after `lease revoke`";

/// Tunnels to other gateways
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Configured sites and how their tunnels are
    #[command(after_help = LIST)]
    List {
        #[command(flatten)]
        output: OutputArg,
    },
    /// Connect a site at once
    #[command(after_help = CONNECT)]
    Connect {
        /// Its name, from `site list`
        name: String,
    },
}

pub(super) fn run(context: &Context, command: &Command) -> Result<(), Failure> {
    let mut client = context.client()?;
    match command {
        Command::List { output } => {
            let sites: Vec<Site> = client.ask(Request::SiteList)?;
            output.print(&sites, |sites| list(sites));
        }
        Command::Connect { name } => {
            let done: String = client.ask(Request::SiteConnect { name: name.clone() })?;
            line(&done);
        }
    }
    Ok(())
}

fn list(sites: &[Site]) -> String {
    let rows: Vec<_> = sites
        .iter()
        .map(|site| {
            vec![
                site.name.clone(),
                site.state.clone(),
                site.remote.clone().unwrap_or_else(|| site.id.clone()),
                site.remote_networks.join(","),
                site.lease.clone().unwrap_or_else(|| "-".to_owned()),
                site.since.clone().unwrap_or_else(|| "-".to_owned()),
                site.last_error.clone().unwrap_or_else(|| "-".to_owned()),
            ]
        })
        .collect();
    table(&["NAME", "STATE", "PEER", "NETWORKS", "LEASE", "SINCE", "LAST ERROR"], &rows)
}
