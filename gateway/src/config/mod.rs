//! The configuration file: TOML in, checked plain data out.
//!
//! Duty: report every mistake at once, each with its line and what to write instead; supply the
//! built-in pool and role when there is no file. It opens nothing but the file itself.

mod audit;
mod error;
mod external;
mod hooks;
mod issuer;
mod keyfile;
mod keys;
mod limits;
mod model;
mod pool;
mod read;
mod role;
mod section;
mod site;
mod value;

use std::path::Path;

pub use audit::{Audit, AuditBody, AuditFormat, AuditSink, AuditTarget};
pub use error::{ConfigError, ConfigErrors};
pub use hooks::{HookFrom, Hooks};
pub use keyfile::read_key;
pub use model::{
    AllowEntry, Config, DataplaneChoice, Enrol, ExternalCa, Gateway, Ike, MatchRule, PeerId, Pki,
    Pool, Ppk, Psk, Revocation, Role, Site,
};
pub(crate) use site::no_transport;
pub use value::duration_text;

/// Where the configuration is looked for when `--config` is not given.
pub const DEFAULT_PATH: &str = "/etc/runnel/runnel.toml";

impl Config {
    /// Loads `path`; without one, [`DEFAULT_PATH`] if it exists, else the built-in configuration.
    ///
    /// # Errors
    /// Every mistake of the file, with lines.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigErrors> {
        let path = match path {
            Some(path) => path,
            None if Path::new(DEFAULT_PATH).exists() => Path::new(DEFAULT_PATH),
            None => return Ok(Self::built_in()),
        };
        let file = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|error| ConfigErrors {
            file: file.clone(),
            errors: vec![ConfigError {
                line: 0,
                message: match error.kind() {
                    std::io::ErrorKind::NotFound => "there is no such configuration file; create it, or leave --config out to use the built-in configuration".to_owned(),
                    _ => format!("cannot read the configuration: {error}; check the file's owner and mode"),
                },
            }],
        })?;
        let mut config = Self::parse(&text, &file)?;
        let errors = site::read_files(&mut config.sites, path);
        if !errors.is_empty() {
            return Err(ConfigErrors { file, errors });
        }
        config.source = Some(path.to_owned());
        Ok(config)
    }

    /// Parses the text of a configuration file; `file` is its name in messages.
    ///
    /// # Errors
    /// Every mistake, with lines.
    pub fn parse(text: &str, file: &str) -> Result<Self, ConfigErrors> {
        read::read(text, file)
    }

    /// What holds without any configuration: one pool, and one role that may reach only the
    /// status page on the gateway's tunnel addresses.
    pub fn built_in() -> Self {
        read::built_in()
    }
}

/// Whether a text is a DNS name or an IP address.
pub fn is_host(text: &str) -> bool {
    value::dns_name(text) || text.parse::<std::net::IpAddr>().is_ok()
}

#[cfg(test)]
mod tests;
