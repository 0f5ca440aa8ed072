//! `runnel bar`

use clap::Subcommand;

use super::output::{OutputArg, line, table};
use super::{Context, Failure};
use crate::admin::proto::Request;
use crate::admin::view::Bar;
use crate::obs::plain;

const LIST: &str = "\
Examples:
  runnel bar list
  runnel bar list -o json | jq -r '.[] | select(.kind == \"run\") | .id'";
const LIFT: &str = "\
Examples:
  runnel bar lift key-9c4166f0b1e2a3d4     the key may enrol again; its ended leases stay ended
  runnel bar lift 9c41...                  by the whole SHA-256 of the key";

/// What revocation keeps out: keys, CI runs, clients with shared keys, sites
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// All bars
    #[command(after_help = LIST)]
    List {
        #[command(flatten)]
        output: OutputArg,
    },
    /// Let what is barred in again
    #[command(after_help = LIFT)]
    Lift {
        /// The bar's id, from `bar list`
        id: String,
    },
}

pub(super) fn run(context: &Context, command: Command) -> Result<(), Failure> {
    let mut client = context.client()?;
    match command {
        Command::List { output } => {
            let bars: Vec<Bar> = client.ask(Request::BarList)?;
            output.print(&bars, |bars| list(bars));
        }
        Command::Lift { id } => {
            let bar: Bar = client.ask(Request::BarLift { id })?;
            line(&format!("{} is barred no more", plain(&bar.what)));
        }
    }
    Ok(())
}

fn list(bars: &[Bar]) -> String {
    let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    let rows: Vec<_> = bars
        .iter()
        .map(|bar| {
            vec![
                bar.id.clone(),
                bar.since.clone(),
                or_none(&bar.reason),
                or_none(&bar.by),
                or_none(&bar.lease),
                plain(&bar.what),
            ]
        })
        .collect();
    table(&["ID", "SINCE", "REASON", "BY", "LEASE", "WHAT"], &rows)
}
