//! `runnel bar`

use clap::Subcommand;

use super::output::{OutputArg, line, table};
use super::paging::PageArgs;
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
  runnel bar lift 9c41...                  by the whole SHA-256 of the key
  runnel bar lift key-9c41... run-51d0...  several
  runnel bar lift --all --kind run         what lifting all bars of CI runs would let in
  runnel bar lift --all --kind run --yes   does it";

/// What revocation keeps out: keys, CI runs, clients with shared keys, sites
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// All bars
    #[command(after_help = LIST)]
    List {
        #[command(flatten)]
        pages: PageArgs,
        #[command(flatten)]
        output: OutputArg,
    },
    /// Let what is barred in again
    #[command(after_help = LIFT)]
    Lift {
        /// The bars' ids, from `bar list`
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        ids: Vec<String>,
        /// Every bar; without --yes they are only listed
        #[arg(long)]
        all: bool,
        /// With --all: only bars of this kind
        #[arg(long, requires = "all", conflicts_with = "ids", value_parser = ["key", "run", "client", "site"])]
        kind: Option<String>,
        /// With --all: lift them
        // What is required and conflicts with what is given is not asked for: both must be said.
        #[arg(long, requires = "all", conflicts_with = "ids")]
        yes: bool,
    },
}

pub(super) fn run(context: &Context, command: Command) -> Result<(), Failure> {
    let mut client = context.client()?;
    match command {
        Command::List { pages, output } => {
            let bars: Vec<Bar> = pages.list(&mut client, Request::BarList)?;
            output.print(&bars, |bars| list(bars));
        }
        Command::Lift { ids, all, kind, yes } => {
            let mut ids = ids;
            if all {
                let listed = PageArgs::default().list(&mut client, Request::BarList)?;
                let bars = of_kind(listed, kind.as_deref());
                if bars.is_empty() {
                    line("nothing is barred");
                    return Ok(());
                }
                if !yes {
                    line(&list(&bars));
                    return Err(Failure::failed(format!(
                        "{} bar(s) would be lifted, and what they keep out could enrol again; add \
                         --yes to do it",
                        bars.len()
                    )));
                }
                ids = bars.into_iter().map(|bar| bar.id).collect();
            }
            // One after the other: what was lifted is told even if the next one fails.
            for id in ids {
                let bar: Bar = client.ask(Request::BarLift { id })?;
                line(&format!("{} is barred no more", plain(&bar.what)));
            }
        }
    }
    Ok(())
}

fn of_kind(mut bars: Vec<Bar>, kind: Option<&str>) -> Vec<Bar> {
    bars.retain(|bar| kind.is_none_or(|kind| bar.kind == kind));
    bars
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_chosen_by_their_kind() {
        let bar = |id: &str, kind: &str| Bar {
            id: id.to_owned(),
            kind: kind.to_owned(),
            what: String::new(),
            since: String::new(),
            reason: None,
            by: None,
            lease: None,
        };
        let all = vec![bar("key-1", "key"), bar("run-1", "run"), bar("key-2", "key")];
        let ids = |kind| of_kind(all.clone(), kind).into_iter().map(|b| b.id).collect::<Vec<_>>();
        assert_eq!(ids(None), ["key-1", "run-1", "key-2"]);
        assert_eq!(ids(Some("key")), ["key-1", "key-2"]);
        assert!(ids(Some("site")).is_empty());
    }
}
