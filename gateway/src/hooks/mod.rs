//! What the webhooks' listener needs from files: the platforms' secrets, and a public certificate
//! that is taken into use when its file changes.

mod certificate;

use std::sync::{Arc, PoisonError, RwLock};

use pki::hook::{HookSecret, HookSource};

use crate::config::{Config, read_key};

pub use certificate::{CertificateHealth, PublicCertificate, load};

/// Whose deliveries are believed now; replaced by a reload.
#[derive(Debug, Default)]
pub struct HookSources {
    current: RwLock<Arc<Vec<HookSource>>>,
}

impl HookSources {
    /// With these.
    pub fn new(sources: Vec<HookSource>) -> Self {
        Self { current: RwLock::new(Arc::new(sources)) }
    }

    /// Those in force now.
    pub fn get(&self) -> Arc<Vec<HookSource>> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts others into force.
    pub fn replace(&self, sources: Vec<HookSource>) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(sources);
    }
}

/// Reads every secret.
///
/// # Errors
/// One sentence for each file that cannot be used.
pub fn sources(config: &Config) -> Result<Vec<HookSource>, Vec<String>> {
    let (mut sources, mut errors) = (Vec::new(), Vec::new());
    for from in config.hooks.iter().flat_map(|hooks| &hooks.from) {
        let mut secrets = Vec::new();
        for path in &from.secrets {
            match read_key(path) {
                Ok(secret) => secrets.push(HookSecret::new(secret.expose())),
                Err(error) => errors.push(format!("[[hooks.from]] {}: {error}", from.issuer)),
            }
        }
        let (issuer, iss) = (from.issuer.clone(), from.iss.clone());
        sources.push(HookSource { kind: from.kind, issuer, iss, secrets });
    }
    if errors.is_empty() { Ok(sources) } else { Err(errors) }
}

/// Looks at the files that `[hooks]` and `[enrol]` name, so that mistakes show before a job ends.
///
/// # Errors
/// One sentence for each file that is no use.
pub fn check(config: &Config) -> Result<(), Vec<String>> {
    let mut errors = sources(config).err().unwrap_or_default();
    let hooks = config.hooks.as_ref().and_then(|hooks| hooks.certificate.as_ref());
    for (section, files) in [("[hooks]", hooks), ("[enrol]", config.enrol.certificate.as_ref())] {
        if let Some((chain, key)) = files
            && let Err(error) = load(chain, key)
        {
            errors.push(format!("{section}: {error}"));
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}
