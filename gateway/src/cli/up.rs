//! `runnel up`

use super::sealing::SealKeyArg;
use super::{Context, Failure};
use crate::obs::log::LogFormat;

const EXAMPLES: &str = "\
Examples:
  runnel up                                          built-in pool and role, state in /var/lib/runnel
  runnel --config gw.toml --state /srv/runnel up
  runnel up --log debug --log-format json

It runs in the foreground until SIGTERM or `runnel stop`, which end every tunnel and remove every
interface, route and rule. Starting again keeps CA, leases and tokens. SIGHUP reloads.";

/// Run the gateway; the first start creates CA and state and prints how to enrol a runner
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// What to log: a level, or a filter like info,gateway=debug
    #[arg(long, value_name = "FILTER", default_value = "info")]
    log: String,
    /// How to log
    #[arg(long, value_enum, default_value_t = LogFormat::Text, value_name = "FORMAT")]
    log_format: LogFormat,
    #[command(flatten)]
    sealing: SealKeyArg,
}

pub(super) fn run(context: &Context, args: Args) -> Result<(), Failure> {
    let config = super::check::load(context)?;
    crate::obs::log::init(&args.log, args.log_format).map_err(Failure::Usage)?;
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let options = crate::up::Options {
        config,
        config_path: context.config.clone(),
        state: context.state.clone(),
        seal_key: args.sealing.file(),
        say: &super::output::line,
    };
    crate::up::run(options).map_err(Failure::failed)
}
