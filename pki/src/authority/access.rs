//! What access a peer has, and why it has none.

use crate::bar::Bar;
use crate::error::Error;
use crate::lease::{Lease, LeaseState};
use crate::revoke::RevocationReason;
use crate::serial::Serial;
use crate::time::UnixTime;

/// A peer's access: what the gateway installs, and until when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// The lease found by the certificate's issuer and serial.
    pub lease: Lease,
    /// No SA lives past this instant: the earliest of certificate, chain and cap.
    pub deadline: UnixTime,
}

/// Why a verified peer gets no access. `Display` is the operator's sentence.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum AccessError {
    /// No lease has this certificate.
    #[error(
        "certificate {serial} of {subject} belongs to no lease: enrol with this gateway, or add a \
         role that matches certificates of {issuer}"
    )]
    NoLease {
        /// The serial number.
        serial: Serial,
        /// The subject.
        subject: String,
        /// The issuer.
        issuer: String,
    },
    /// The certificate is revoked.
    #[error("certificate {serial} of lease {lease} was revoked at {at} ({reason}): enrol again")]
    Revoked {
        /// The serial number.
        serial: Serial,
        /// The lease.
        lease: String,
        /// Since when.
        at: UnixTime,
        /// Why.
        reason: RevocationReason,
    },
    /// The lease has ended or lapsed.
    #[error("lease {lease} is {state} since {since}: {advice}")]
    LeaseNotLive {
        /// The lease.
        lease: String,
        /// Its state.
        state: LeaseState,
        /// Since when.
        since: UnixTime,
        /// What to do.
        advice: &'static str,
    },
    /// The holder's lease was revoked, and it still has the key it had then.
    #[error(
        "lease {lease} of {name} was revoked at {at}, which holds for the key it has: give {name} \
         another key, or lift the bar with runnel bar lift"
    )]
    HolderRevoked {
        /// Who.
        name: String,
        /// The lease.
        lease: String,
        /// Since when.
        at: UnixTime,
    },
    /// The peer's public key is barred.
    #[error("{}", .0.sentence())]
    KeyBarred(Box<Bar>),
    /// The lease's role is not configured any more.
    #[error("role {role} of lease {lease} is not configured: add it or enrol with another role")]
    UnknownRole {
        /// The lease.
        lease: String,
        /// The role.
        role: String,
    },
    /// The store failed.
    #[error(transparent)]
    Failed(#[from] Error),
}
