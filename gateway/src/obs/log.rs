//! The log, on standard error.

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Starts logging. `RUST_LOG` wins over `filter`.
///
/// # Errors
/// A sentence when the filter cannot be read.
pub fn init(filter: &str, format: LogFormat) -> Result<(), String> {
    let wanted = std::env::var("RUST_LOG").ok().filter(|text| !text.is_empty());
    let wanted = wanted.as_deref().unwrap_or(filter);
    // Whatever the filter says, these never get below INFO: they would log whole messages.
    let capped = format!("{wanted},rustls=info,hyper=info,netlink_proto=info");
    let filter = EnvFilter::try_new(&capped).map_err(|error| {
        format!("\"{wanted}\" is not a log filter ({error}); write info, debug, or info,ike=debug")
    })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false);
    // An error means that a test's logger is there already, which is fine.
    let _ = match format {
        LogFormat::Text => builder.with_ansi(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    Ok(())
}
