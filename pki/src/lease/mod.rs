//! The lease: one workload's identity, key, certificates, addresses and fate.
//!
//! `state` is the pure state machine, `pool` hands out addresses, `book` is the store's side.

pub(crate) mod book;
pub(crate) mod pool;
pub(crate) mod prune;
mod retime;
pub(crate) mod site;
pub(crate) mod state;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use site::{SITE_ROLE, SitePeer};
pub use state::{LeaseEvent, Transition, transition};

use crate::audit::Actor;
use crate::serial::Serial;
use crate::time::UnixTime;

/// Where a lease is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeaseState {
    /// A certificate was issued; no tunnel yet.
    Issued,
    /// At least one tunnel exists.
    Active,
    /// The last tunnel is gone; it may come back within the grace period.
    Lost,
    /// The certificate has expired; only renewal works, within the grace period.
    Lapsed,
    /// Ended by its owner, an operator, or because it stayed lost.
    Released,
    /// Ended by revocation.
    Revoked,
    /// Ended by time.
    Expired,
}

impl LeaseState {
    /// Whether the lease can still carry or regain a tunnel.
    pub const fn is_live(self) -> bool {
        matches!(self, Self::Issued | Self::Active | Self::Lost | Self::Lapsed)
    }

    /// The name used in listings.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Issued => "issued",
            Self::Active => "active",
            Self::Lost => "lost",
            Self::Lapsed => "lapsed",
            Self::Released => "released",
            Self::Revoked => "revoked",
            Self::Expired => "expired",
        }
    }
}

impl fmt::Display for LeaseState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A certificate of a lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseCert {
    /// The issuer's short name in the store (see [`crate::issuer_id`]).
    pub issuer: String,
    /// The serial number.
    pub serial: Serial,
    /// When it stops being valid.
    pub not_after: UnixTime,
}

/// How and why a lease ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseEnd {
    /// When.
    pub at: UnixTime,
    /// The cause in one word: `client`, `admin`, `job`, `lost`, `never_connected`, `expired`, `cap`,
    /// `revoked`.
    pub cause: String,
    /// Who.
    pub actor: Actor,
}

/// Links a lease to the CI job it was opened for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CiRef {
    /// Where the job can be looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_url: Option<String>,
    /// The platform's run or pipeline id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_id: Option<String>,
    /// The platform's job id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_id: Option<String>,
}

/// The record of a lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Short public name, `r-` and ten characters; also the certificate's common name.
    pub id: String,
    /// The role, which decides selectors and filter.
    pub role: String,
    /// The identity URI (SPIFFE).
    pub identity: String,
    /// The certificate's subject as strongSwan prints it; for the holder of a shared key, its IKE
    /// identity.
    pub subject: String,
    /// The DNS name in the certificate; empty without one.
    pub dns_name: String,
    /// SHA-256 of the public key (SubjectPublicKeyInfo DER), hexadecimal; empty without one.
    pub spki_sha256: String,
    /// The certificates issued so far, the current one last; none for the holder of a shared key.
    pub certs: Vec<LeaseCert>,
    /// The pool the addresses come from.
    pub pool: String,
    /// The virtual addresses, IPv4 before IPv6.
    pub addresses: Vec<IpAddr>,
    /// When it was opened.
    pub created: UnixTime,
    /// When the current certificate stops being valid, or a shared key must be proven again.
    pub expires: UnixTime,
    /// No renewal reaches past this instant.
    pub hard_cap: UnixTime,
    /// Where it is in its life.
    pub state: LeaseState,
    /// Since when.
    pub state_since: UnixTime,
    /// When something must happen if nothing else does; `None` once ended.
    pub deadline: Option<UnixTime>,
    /// It is lost because the gateway was restarted, not its client.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub orphaned: bool,
    /// When a tunnel was first up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_connected: Option<UnixTime>,
    /// How it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<LeaseEnd>,
    /// The door it came through: `token`, `jwt`, `reenrol`, `psk`.
    pub door: String,
    /// The one-time token's public name, for leases opened by one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// Digest of the IKE identity, for leases that are found by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder: Option<String>,
    /// Verified claims, for leases opened by an OIDC token.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub claims: BTreeMap<String, String>,
    /// The CI job.
    #[serde(default)]
    pub ci_ref: CiRef,
    /// The policy version in force when it was opened.
    #[serde(default)]
    pub policy_version: u64,
}

impl Lease {
    /// The current certificate.
    pub fn cert(&self) -> Option<&LeaseCert> {
        self.certs.last()
    }

    /// The virtual IPv4 address.
    pub fn v4(&self) -> Option<std::net::Ipv4Addr> {
        self.addresses.iter().find_map(|address| match address {
            IpAddr::V4(v4) => Some(*v4),
            IpAddr::V6(_) => None,
        })
    }

    /// The virtual IPv6 address.
    pub fn v6(&self) -> Option<std::net::Ipv6Addr> {
        self.addresses.iter().find_map(|address| match address {
            IpAddr::V6(v6) => Some(*v6),
            IpAddr::V4(_) => None,
        })
    }
}

/// The periods of a lease's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseTimers {
    /// A lease that has not connected within this time expires.
    pub connect_within: Duration,
    /// A lease whose last tunnel went stays lost this long before it is released.
    pub lost_grace: Duration,
    /// After the certificate's end, renewal works this long.
    pub renew_grace: Duration,
    /// The same as `lost_grace` for leases whose tunnel a restart of the gateway took. Longer:
    /// a client finds out only when it gives up sending to the process that is gone, which takes
    /// strongSwan 165 s (retransmissions) after at most 10 s (`dpd_delay`).
    pub restart_grace: Duration,
}

impl Default for LeaseTimers {
    fn default() -> Self {
        Self {
            connect_within: Duration::from_secs(300),
            lost_grace: Duration::from_secs(90),
            renew_grace: Duration::from_secs(300),
            restart_grace: Duration::from_secs(300),
        }
    }
}

/// What an operation did to a lease, for the caller to act on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseChange {
    /// The lease as it is now.
    pub lease: Lease,
    /// The state before.
    pub from: LeaseState,
    /// Whether its tunnels and filter must go now: it ended or lapsed.
    pub end_tunnels: bool,
}

impl LeaseChange {
    /// Whether the operation changed anything; repeating a release or revocation does not.
    pub fn changed(&self) -> bool {
        self.from != self.lease.state
    }
}
