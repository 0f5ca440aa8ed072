//! Errors of the data planes, each a sentence an operator can act on.

use thiserror::Error;

/// Why a data plane operation did not happen. Nothing is half-applied when it is returned.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PlaneError {
    /// The chosen plane cannot do this at all (see [`crate::model::Capabilities`]).
    #[error("the {plane} data plane cannot {what}; {fix}")]
    Unsupported {
        /// Plane that refused.
        plane: &'static str,
        /// What was asked for.
        what: String,
        /// What to do instead.
        fix: &'static str,
    },
    /// The kernel refused; `reason` is its extended-ack text where it gave one.
    #[error("the kernel refused to {what}: {reason} ({errno}); {fix}")]
    Kernel {
        /// Operation in words.
        what: String,
        /// Extended-ack text or the errno's description.
        reason: String,
        /// Positive errno.
        errno: i32,
        /// What to do about it.
        fix: String,
    },
    /// A system call outside netlink failed.
    #[error("{what}: {reason}; {fix}")]
    System {
        /// What was attempted, with the object's name.
        what: String,
        /// The operating system's words.
        reason: String,
        /// What to do about it.
        fix: String,
    },
    /// No child SA, lease or SPI of that name is installed.
    #[error("no such {0} is installed")]
    Unknown(String),
    /// The operation contradicts what is installed (an address or SPI twice).
    #[error("{0}")]
    Conflict(String),
    /// An answer of the kernel could not be parsed.
    #[error("malformed netlink message: {0}")]
    Malformed(String),
}
