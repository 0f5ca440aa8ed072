//! Revocation records: durable, keyed by issuer and serial, never by certificate hash.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::audit::Actor;
use crate::lease::LeaseChange;
use crate::serial::Serial;
use crate::time::UnixTime;

/// Why a certificate is revoked (RFC 5280 5.3.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RevocationReason {
    /// No reason given.
    #[default]
    Unspecified,
    /// The private key is known to others.
    KeyCompromise,
    /// The holder's role changed.
    AffiliationChanged,
    /// Another certificate replaces it.
    Superseded,
    /// The workload is done.
    CessationOfOperation,
    /// The right to it was withdrawn.
    PrivilegeWithdrawn,
}

impl RevocationReason {
    /// The name on command lines and in listings.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unspecified => "unspecified",
            Self::KeyCompromise => "key-compromise",
            Self::AffiliationChanged => "affiliation-changed",
            Self::Superseded => "superseded",
            Self::CessationOfOperation => "cessation-of-operation",
            Self::PrivilegeWithdrawn => "privilege-withdrawn",
        }
    }
}

impl fmt::Display for RevocationReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for RevocationReason {
    type Err = crate::error::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const ALL: [RevocationReason; 6] = [
            RevocationReason::Unspecified,
            RevocationReason::KeyCompromise,
            RevocationReason::AffiliationChanged,
            RevocationReason::Superseded,
            RevocationReason::CessationOfOperation,
            RevocationReason::PrivilegeWithdrawn,
        ];
        let wanted = text.to_ascii_lowercase().replace('_', "-");
        ALL.into_iter().find(|reason| reason.name() == wanted).ok_or_else(|| {
            let names = ALL.map(RevocationReason::name).join(", ");
            crate::error::Error::Invalid(format!("unknown reason {text:?}: use one of {names}"))
        })
    }
}

/// The record of a revocation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revocation {
    /// When.
    pub at: UnixTime,
    /// Why.
    pub reason: RevocationReason,
    /// Who.
    pub actor: Actor,
}

/// What to revoke.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RevokeSelector {
    /// One certificate of the embedded CA, and its lease.
    Serial(Serial),
    /// A lease with all its certificates.
    Lease(String),
    /// All leases of a public key (SHA-256, hexadecimal).
    Spki(String),
}

/// What a revocation did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RevokeOutcome {
    /// The serials that are revoked now, by this or an earlier call.
    pub serials: Vec<Serial>,
    /// How many of them this call revoked.
    pub revoked_now: usize,
    /// The leases concerned; end the tunnels of those that say so.
    pub changes: Vec<LeaseChange>,
}
