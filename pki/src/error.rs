//! Errors of the crate. Each `Display` is one sentence an operator can act on.

use std::path::PathBuf;

use crate::store::StoreError;
use crate::time::UnixTime;

/// Why an operation failed, by blame.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// The store failed or its contents cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file or directory of the state could not be used.
    #[error("cannot {action} {path}: {cause}; {hint}")]
    File {
        /// What was attempted, as a verb: "read", "create".
        action: &'static str,
        /// The file concerned.
        path: PathBuf,
        /// The system's words.
        cause: String,
        /// What the operator can do.
        hint: &'static str,
    },
    /// Another process has this state directory open.
    #[error(
        "the state directory {0} is in use by another runnel: stop that one or choose another \
         directory with --state"
    )]
    InUse(PathBuf),
    /// The sealing key is missing or does not open what it sealed.
    #[error("{0}")]
    Seal(String),
    /// The state may be older than what was revoked since.
    #[error("{0}")]
    Rollback(String),
    /// A record in the store does not parse.
    #[error("the record {key} is damaged ({cause}): restore the state directory from a backup")]
    Damaged {
        /// The store key.
        key: String,
        /// What did not parse.
        cause: String,
    },
    /// A cryptographic operation failed.
    #[error("{0}")]
    Crypto(&'static str),
    /// The token that holds a CA's key does not do what is asked.
    #[error("{0}")]
    Token(String),
    /// The token that holds a CA's key is not there, or stopped working.
    #[error("{0}")]
    TokenAway(String),
    /// Building a certificate or CRL failed.
    #[error("cannot build the certificate: {0}")]
    Encode(String),
    /// A setting or argument is not usable.
    #[error("{0}")]
    Invalid(String),
    /// Nothing matches the selector.
    #[error("no {what} {selector}")]
    NotFound {
        /// The kind of thing: "lease", "certificate", "token".
        what: &'static str,
        /// What was asked for.
        selector: String,
    },
    /// The lease cannot take this step in its present state.
    #[error("lease {id} is {state} since {since}: {advice}")]
    LeaseState {
        /// The lease.
        id: String,
        /// Its present state.
        state: crate::lease::LeaseState,
        /// Since when.
        since: UnixTime,
        /// What to do instead.
        advice: &'static str,
    },
    /// The audit trail must be written before anything is issued, and cannot be.
    #[error(
        "nothing is issued while the audit trail cannot be written ({0}): make it writable, or set \
         required = false in [audit]"
    )]
    Held(String),
    /// The imported list of the root says that the CA that issues is revoked.
    #[error(
        "the root's revocation list says that the issuing CA is revoked, so nothing is issued: make \
         a request for another with `runnel ca csr --new`, have it signed and bring it in with \
         `runnel ca import`"
    )]
    IssuingRevoked,
    /// The root's key is not in this state directory.
    #[error(
        "the root's key is kept elsewhere, so nothing is signed with it here: make a request with \
         `runnel ca csr`, have it signed there and bring it in with `runnel ca import`"
    )]
    RootOffline,
    /// The root's revocation list was not imported.
    #[error(
        "the root's key is kept elsewhere and its revocation list is not here: make it there and \
         bring it in with `runnel ca import --crl FILE`"
    )]
    NoRootList,
    /// The pool has no free address.
    #[error(
        "pool {pool} has no free IPv{family} address ({in_use} leased, {quarantined} in \
         quarantine): enlarge it or end leases"
    )]
    PoolExhausted {
        /// The pool's name.
        pool: String,
        /// 4 or 6.
        family: u8,
        /// Addresses held by live leases.
        in_use: usize,
        /// Addresses waiting out their quarantine.
        quarantined: usize,
    },
    /// Concurrent writers kept winning; the operation may be tried again.
    #[error("the store was too busy to settle {0}: try again")]
    Contended(&'static str),
}

impl Error {
    /// The token that holds a key is the cause.
    pub(crate) const fn is_of_token(&self) -> bool {
        matches!(self, Self::Token(_) | Self::TokenAway(_))
    }

    pub(crate) fn not_found(what: &'static str, selector: impl ToString) -> Self {
        Self::NotFound { what, selector: selector.to_string() }
    }

    pub(crate) fn file(
        action: &'static str,
        path: &std::path::Path,
        cause: &std::io::Error,
        hint: &'static str,
    ) -> Self {
        Self::File { action, path: path.to_owned(), cause: cause.to_string(), hint }
    }
}

impl From<rcgen::Error> for Error {
    fn from(error: rcgen::Error) -> Self {
        Self::Encode(error.to_string())
    }
}
