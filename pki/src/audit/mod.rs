//! Audit events: one value per state change, stored in the transaction that makes the change.
//!
//! The store chains them by hash and seals the chain's end; [`chain`] finds what was done to them
//! since, and [`checkpoint`]s let others find it. Events carry names and numbers, never secrets.

pub mod begin;
pub mod chain;
pub mod checkpoint;
mod ecs;
pub mod offline;
pub(crate) mod policy;
pub(crate) mod prune;
mod request;

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::lease::CiRef;
use crate::store::Txn;
use crate::time::UnixTime;

pub(crate) use ecs::encode;
pub use request::for_request;

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

/// What an IKE SA was negotiated to, and what it carried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunnelFacts {
    /// The gateway's address.
    pub local: SocketAddr,
    /// The peer's address; its NAT's, if there is one.
    pub remote: SocketAddr,
    /// A NAT is in front of the peer.
    #[serde(default)]
    pub nat: bool,
    /// SPI of the IKE SA's initiator.
    pub spi_i: u64,
    /// SPI of its responder.
    pub spi_r: u64,
    /// The IKE suite.
    pub ike_suite: String,
    /// The ESP suite of its latest child SA.
    pub esp_suite: Option<String>,
    /// What it carried, once it is over.
    pub carried: Option<Carried>,
}

/// What a tunnel carried while it was up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Carried {
    /// Octets from the peer.
    pub bytes_in: u64,
    /// Octets to the peer.
    pub bytes_out: u64,
    /// How long it was up, microseconds.
    pub micros: u64,
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
    /// The certificate's subject.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// Its issuer's short name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
    /// When it stops being valid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_after: Option<UnixTime>,
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
    /// The CI job of the lease.
    #[serde(default)]
    pub job: CiRef,
    /// The lease's virtual addresses.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    /// The policy version the lease was opened under.
    #[serde(default)]
    pub policy_version: u64,
    /// The tunnel concerned.
    #[serde(default)]
    pub tunnel: Option<TunnelFacts>,
    /// What else was acted on: a site, a gateway's name.
    #[serde(default)]
    pub object: Option<String>,
    /// Why, in a few words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// How many events like this one came before it and were not written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_out: Option<u64>,
    /// The HTTP request that caused it, by the id that its answer has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
    /// What a checkpoint signs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<checkpoint::Checkpoint>,
}

impl AuditEvent {
    /// A successful event without details, of the request that this thread works for
    /// ([`for_request`]).
    pub fn new(action: &str, actor: &Actor, at: UnixTime) -> Self {
        Self {
            at,
            action: action.to_owned(),
            outcome: AuditOutcome::Success,
            actor: actor.clone(),
            lease_id: None,
            serial: None,
            subject: None,
            issuer: None,
            not_after: None,
            role: None,
            identity: None,
            token: None,
            spki_sha256: None,
            job: CiRef::default(),
            addresses: Vec::new(),
            policy_version: 0,
            tunnel: None,
            object: None,
            reason: None,
            left_out: None,
            request: request::current(),
            checkpoint: None,
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

    /// The same event about something that has only a name.
    #[must_use]
    pub fn object(mut self, name: impl ToString) -> Self {
        self.object = Some(name.to_string());
        self
    }

    /// The same event about a tunnel.
    #[must_use]
    pub fn tunnel(mut self, facts: TunnelFacts) -> Self {
        self.tunnel = Some(facts);
        self
    }

    /// The same event about a lease: its id, role, identity, key, certificate, addresses and job.
    #[must_use]
    pub fn lease(mut self, lease: &crate::lease::Lease) -> Self {
        self.lease_id = Some(lease.id.clone());
        self.role = Some(lease.role.clone());
        self.identity = Some(lease.identity.clone());
        self.spki_sha256 = Some(lease.spki_sha256.clone()).filter(|spki| !spki.is_empty());
        self.job = lease.ci_ref.clone();
        self.addresses = lease.addresses.clone();
        self.policy_version = lease.policy_version;
        self.subject = Some(lease.subject.clone()).filter(|subject| !subject.is_empty());
        if let Some(cert) = lease.cert() {
            self.issuer = Some(cert.issuer.clone()).filter(|issuer| !issuer.is_empty());
            self.not_after = Some(cert.not_after);
            self.serial.get_or_insert_with(|| cert.serial.to_string());
        }
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
        txn.append(LOG, ecs::encode(self));
    }
}

/// An event as stored, with its place in the hash chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditRecord {
    /// Position, from 1, without gaps.
    pub seq: u64,
    /// The event.
    pub event: AuditEvent,
    /// The entry's hash, hexadecimal.
    pub hash: String,
    /// The entry as one JSON line (ECS names), with its place in the chain, without line end. A
    /// copy of these lines can be verified by itself ([`chain::verify_lines`]).
    pub line: String,
}

/// The action of a record in place of one that cannot be read.
pub const UNREADABLE: &str = "audit.unreadable";

/// Reads an entry of the log. One that somebody made unreadable must not keep back those behind it:
/// an event that says so stands in its place, under its number and hash.
pub(crate) fn record(entry: &crate::store::LogEntry) -> AuditRecord {
    let hash = crate::issue::hex(&entry.hash);
    let one_line = !entry.value.contains(&b'\n') && std::str::from_utf8(&entry.value).is_ok();
    let read = match one_line {
        true => ecs::decode(&entry.value),
        false => Err("it is not one line of text".to_owned()),
    };
    let (event, line) = match read {
        Ok(event) => (event, chain::render(entry)),
        Err(cause) => {
            let at = UnixTime::from_micros(0);
            let cause: String = cause.chars().filter(|c| !c.is_control()).take(200).collect();
            let event = AuditEvent::new(UNREADABLE, &Actor::System, at).refused(cause);
            let said = crate::store::LogEntry { value: ecs::encode(&event), ..entry.clone() };
            (event, chain::render(&said))
        }
    };
    AuditRecord { seq: entry.seq, event, hash, line }
}
