//! `runnel check`

use super::{Context, Failure, output};
use crate::actions::{Externals, PeerKeys};
use crate::config::Config;
use crate::policy;

const EXAMPLES: &str = "\
Examples:
  runnel check                       the file `runnel up` would read
  runnel --config new.toml check     every mistake at once, with line numbers";

/// Check the configuration without touching anything
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {}

pub(super) fn run(context: &Context, _args: &Args) -> Result<(), Failure> {
    let config = load(context)?;
    PeerKeys::load(&config).map_err(|errors| Failure::failed(errors.join("\n")))?;
    Externals::load(&config).map_err(|errors| Failure::failed(errors.join("\n")))?;
    crate::oidc::check(&config).map_err(|errors| Failure::failed(errors.join("\n")))?;
    crate::hooks::check(&config).map_err(|errors| Failure::failed(errors.join("\n")))?;
    for warning in &config.warnings {
        output::error_line(&format!("warning: {warning}"));
    }
    let source = match &config.source {
        Some(path) => path.display().to_string(),
        None => "built-in configuration".to_owned(),
    };
    let mut text =
        format!("{source}: ok, {} pool(s), {} role(s)\n", config.pools.len(), config.roles.len());
    for site in &config.sites {
        let networks: Vec<_> = site.networks.iter().map(ToString::to_string).collect();
        let how = match &site.remote {
            Some(remote) if site.connect => format!("connects to {remote}"),
            _ => "waits for it".to_owned(),
        };
        text.push_str(&format!("  site {}: {}, {how}\n", site.name, networks.join(", ")));
    }
    for role in &config.roles {
        let Some(pool) = config.pool(&role.pool) else { continue };
        let exact = policy::reach(role, pool).len();
        let selectors = policy::allowed_selectors(role, pool).len();
        text.push_str(&format!(
            "  role {}: pool {}, {exact} allowed destination(s), {selectors} IKE selector(s)\n",
            role.name, pool.name
        ));
    }
    output::line(&text);
    Ok(())
}

/// Loads the configuration; every mistake is one line of the failure.
pub(super) fn load(context: &Context) -> Result<Config, Failure> {
    Config::load(context.config()).map_err(Failure::failed)
}
