//! The configuration in force, replaced as a whole by a reload.

use std::sync::{Arc, PoisonError, RwLock};

use crate::config::Config;

/// A shared slot for the configuration; cheap to clone.
#[derive(Debug, Clone)]
pub struct LiveConfig {
    slot: Arc<RwLock<Arc<Config>>>,
}

impl LiveConfig {
    /// A slot with its first configuration.
    pub fn new(config: Config) -> Self {
        Self { slot: Arc::new(RwLock::new(Arc::new(config))) }
    }

    /// The configuration in force now.
    pub fn get(&self) -> Arc<Config> {
        Arc::clone(&self.slot.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts another into force.
    pub fn replace(&self, config: Config) {
        *self.slot.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
    }
}
