//! Audit events: one value per state change, stored in the transaction that makes the change.
//!
//! The store chains them by hash. Events carry names and numbers, never secrets.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::store::Txn;
use crate::time::UnixTime;

/// The log that holds the events.
pub(crate) const LOG: &str = "audit";

/// Who caused a change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Actor {
    /// The gateway itself: a timer, dead peer detection, the first start.
    System,
    /// A local operator on the admin socket, by user id.
    Uid(u32),
    /// The enrolling or connected peer, by address.
    Peer(IpAddr),
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::System => f.write_str("system"),
            Self::Uid(uid) => write!(f, "uid:{uid}"),
            Self::Peer(address) => write!(f, "peer:{address}"),
        }
    }
}

/// Whether the action was carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuditOutcome {
    /// It was.
    Success,
    /// It was refused.
    Failure,
}

/// One event. Absent fields are not written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditEvent {
    /// When.
    pub at: UnixTime,
    /// Dotted code: `lease.create`, `token.use`, `ca.create`.
    pub action: String,
    /// Carried out or refused.
    pub outcome: AuditOutcome,
    /// Who.
    pub actor: Actor,
    /// The lease concerned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_id: Option<String>,
    /// The certificate's serial number, lower-case hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// The role.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// The identity URI.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
    /// The token's public name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// SHA-256 of the public key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spki_sha256: Option<String>,
    /// Why, in a few words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// How many events like this one came before it and were not written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_out: Option<u64>,
}

impl AuditEvent {
    /// A successful event without details.
    pub fn new(action: &str, actor: &Actor, at: UnixTime) -> Self {
        Self {
            at,
            action: action.to_owned(),
            outcome: AuditOutcome::Success,
            actor: actor.clone(),
            lease_id: None,
            serial: None,
            role: None,
            identity: None,
            token: None,
            spki_sha256: None,
            reason: None,
            left_out: None,
        }
    }

    /// The same event as a refusal.
    #[must_use]
    pub fn refused(mut self, reason: impl ToString) -> Self {
        self.outcome = AuditOutcome::Failure;
        self.reason = Some(reason.to_string());
        self
    }

    /// The same event with a reason.
    #[must_use]
    pub fn reason(mut self, reason: impl ToString) -> Self {
        self.reason = Some(reason.to_string());
        self
    }

    /// The same event about a lease: its id, role, identity and key.
    #[must_use]
    pub fn lease(mut self, lease: &crate::lease::Lease) -> Self {
        self.lease_id = Some(lease.id.clone());
        self.role = Some(lease.role.clone());
        self.identity = Some(lease.identity.clone());
        self.spki_sha256 = Some(lease.spki_sha256.clone()).filter(|spki| !spki.is_empty());
        self
    }

    /// The same event about a certificate.
    #[must_use]
    pub fn serial(mut self, serial: impl ToString) -> Self {
        self.serial = Some(serial.to_string());
        self
    }

    /// Puts the event into the transaction that makes the change.
    pub(crate) fn record(&self, txn: &mut Txn) {
        txn.append(LOG, crate::record::encode(self));
    }
}

/// An event as stored, with its place in the hash chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AuditRecord {
    /// Position, from 1, without gaps.
    pub seq: u64,
    /// The event.
    pub event: AuditEvent,
    /// The entry's hash, hexadecimal.
    pub hash: String,
}
