//! `runnel doctor`

use super::output::{OutputArg, table};
use super::{Context, Failure};
use crate::admin::proto::Request;
use crate::admin::view::Doctor;

const EXAMPLES: &str = "\
Examples:
  runnel doctor              why a client was refused, and what to change
  runnel doctor -o json";

/// Recent refusals with their fixes, and checks of the machine
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    #[command(flatten)]
    output: OutputArg,
}

pub(super) fn run(context: &Context, args: &Args) -> Result<(), Failure> {
    let doctor: Doctor = context.client()?.ask(Request::Doctor)?;
    args.output.print(&doctor, text);
    match doctor.checks.iter().filter(|check| !check.ok).count() {
        0 => Ok(()),
        count => Err(Failure::Failed(format!("{count} check(s) found a problem"))),
    }
}

fn text(doctor: &Doctor) -> String {
    let rows: Vec<_> = doctor
        .checks
        .iter()
        .map(|check| {
            let mark = if check.ok { "ok" } else { "PROBLEM" };
            vec![mark.to_owned(), check.name.clone(), check.detail.clone()]
        })
        .collect();
    let mut text = table(&["", "CHECK", "FOUND"], &rows);
    if doctor.refusals.is_empty() {
        text.push_str("\nnobody was refused lately\n");
    }
    for refusal in &doctor.refusals {
        text.push_str(&format!(
            "\n{} {} from {} as {} ({} time(s), told {})\n  what: {}\n  fix:  {}\n",
            refusal.time,
            refusal.code,
            refusal.peer,
            refusal.identity,
            refusal.count,
            refusal.notify,
            refusal.what,
            refusal.fix,
        ));
    }
    text
}
