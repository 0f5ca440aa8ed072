//! What the engine's own caller can do wrong. What peers do wrong is an [`crate::event::Refusal`].

use thiserror::Error;

use crate::crypto::KeMethod;

/// A configuration or snapshot the engine cannot work with.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum EngineError {
    /// The provider lacks an algorithm of a configured suite.
    #[error("suite {suite} is configured, but the crypto provider {provider} does not have it")]
    UnsupportedSuite {
        /// The suite.
        suite: String,
        /// The provider.
        provider: &'static str,
    },
    /// No IKE suite is configured.
    #[error("no IKE suite is configured")]
    NoIkeSuite,
    /// No ESP suite is configured.
    #[error("no ESP suite is configured")]
    NoEspSuite,
    /// The first key exchange is not among the offered suites.
    #[error("first key exchange {0} is in none of the offered suites")]
    FirstKe(KeMethod),
    /// The provider has no HMAC-SHA2-256, which cookies need.
    #[error("the crypto provider {0} has no HMAC-SHA2-256")]
    NoCookiePrf(&'static str),
    /// A snapshot cannot be read.
    #[error("snapshot: {0}")]
    Snapshot(#[from] crate::snapshot::SnapshotError),
}
