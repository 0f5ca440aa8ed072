//! What listings show. Field names are a contract with scripts; times are RFC 3339 in UTC.

mod audit;

use std::collections::BTreeMap;

use pki::CiRef;
use serde::{Deserialize, Serialize};

pub use audit::{AuditFault, AuditKey, AuditPart, AuditSigned, AuditVerdict};

/// `runnel status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Program version.
    pub version: String,
    /// Process id.
    pub pid: u32,
    /// IKE identity of the gateway.
    pub id: String,
    /// When this process became ready.
    pub started: String,
    /// Seconds since then.
    pub uptime_seconds: u64,
    /// Configuration file, or none for the built-in defaults.
    pub config: Option<String>,
    /// State directory.
    pub state: String,
    /// The data plane.
    pub dataplane: DataplaneStatus,
    /// Addresses served.
    pub listeners: Vec<Listener>,
    /// Pools.
    pub pools: Vec<PoolStatus>,
    /// Leases that have not ended.
    pub leases: LeaseCounts,
    /// Established IKE SAs.
    pub ike_sas: usize,
    /// Installed child SAs.
    pub child_sas: usize,
    /// Connections of peers that have not authenticated yet, of at most `ike.max_half_open`.
    pub half_open: usize,
    /// Tunnels of the earlier process that went on in this one.
    #[serde(default)]
    pub resumed: usize,
    /// Why tunnels end with this process; none: the next start goes on with them.
    #[serde(default)]
    pub tunnels_end_because: Option<String>,
    /// The gateway that clients are sent to, while this one is drained.
    pub draining_to: Option<String>,
    /// Tunnels to other gateways.
    pub sites: SiteCounts,
    /// SAs without a live lease; must be 0.
    pub sas_without_lease: usize,
    /// Exchanges refused since the start.
    pub refusals: u64,
    /// OIDC issuers and how their keys are.
    #[serde(default)]
    pub issuers: Vec<IssuerStatus>,
    /// Enrolments refused since the start because of a limit, by the limit; those that were not met
    /// are not there.
    #[serde(default)]
    pub limits_met: std::collections::BTreeMap<String, u64>,
    /// IKE datagrams dropped because the engine was busy.
    pub datagrams_dropped: u64,
    /// End of the issuing CA.
    pub ca_expires: String,
    /// Number of the current CRL.
    pub crl_number: u64,
    /// What needs attention, one sentence each.
    pub warnings: Vec<String>,
}

/// An OIDC issuer and its keys.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct IssuerStatus {
    /// Its name.
    pub name: String,
    /// How many keys of it there are.
    pub keys: usize,
    /// How old they are; none when they were never had.
    pub keys_age_seconds: Option<u64>,
    /// They are older than an hour: newer ones could not be had, or nobody came with a token.
    pub stale: bool,
    /// Tokens are verified with them.
    pub usable: bool,
    /// How often they were fetched, or read, since the start.
    pub fetches: u64,
    /// How often that failed.
    pub failures: u64,
    /// How it failed the last time.
    pub problem: Option<String>,
    /// How far the issuer's clock is ahead of ours, as its latest token shows it.
    pub clock_skew_seconds: Option<i64>,
}

/// Sites by state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteCounts {
    /// Configured.
    pub configured: usize,
    /// With a tunnel.
    pub connected: usize,
}

/// One site.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Site {
    /// Its name.
    pub name: String,
    /// `connected`, `connecting`, `retrying` or `waiting` (for the other side).
    pub state: String,
    /// Host or address of the other gateway, when we connect to it.
    pub remote: Option<String>,
    /// The identity it must prove.
    pub id: String,
    /// Networks on our side.
    pub local_networks: Vec<String>,
    /// Networks behind it.
    pub remote_networks: Vec<String>,
    /// Its lease, while connected.
    pub lease: Option<String>,
    /// Its IKE SAs.
    pub sas: Vec<u64>,
    /// Since when it is connected.
    pub since: Option<String>,
    /// Attempts since it was last up for a while.
    pub attempts: u32,
    /// Why the last attempt or tunnel ended.
    pub last_error: Option<String>,
}

/// Which plane, and why.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DataplaneStatus {
    /// `kernel` or `userspace`.
    pub kind: String,
    /// Its interface.
    pub interface: String,
    /// Why this one.
    pub why: String,
    /// What network devices are asked to do of the work; `runnel sa show` says what they do.
    #[serde(default)]
    pub offload: String,
    /// Packets it dropped, by reason.
    pub drops: BTreeMap<String, u64>,
    /// What the kernel counted behind them, by its own names; of everything in the network
    /// namespace. Empty with the userspace plane.
    pub counters: BTreeMap<String, u64>,
}

/// One served address.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Listener {
    /// What it serves.
    pub service: String,
    /// Where.
    pub address: String,
}

/// One address pool.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PoolStatus {
    /// Its name.
    pub name: String,
    /// Its networks.
    pub addresses: Vec<String>,
    /// The gateway's own addresses in it.
    pub gateway: Vec<String>,
}

/// Leases by state.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseCounts {
    /// Enrolled, not connected yet.
    pub issued: usize,
    /// Connected.
    pub active: usize,
    /// Was connected, may come back.
    pub lost: usize,
    /// Wait for an operator's approval.
    #[serde(default)]
    pub waiting: usize,
}

/// One token; never its secret.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Token {
    /// Its id.
    pub id: String,
    /// Role of the leases it opens.
    pub role: String,
    /// `usable`, `spent`, `expired` or `revoked`.
    pub state: String,
    /// Uses left.
    pub uses_left: u32,
    /// When it was made.
    pub created: String,
    /// When it ends.
    pub expires: String,
    /// Leases it opened.
    pub leases: Vec<String>,
    /// The network its client must be in.
    #[serde(default)]
    pub from: Option<String>,
    /// SHA-256 of the key that may spend it.
    #[serde(default)]
    pub key: Option<String>,
}

/// A token just made: the only time its secret is shown.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct NewToken {
    /// Its id, for `token revoke`.
    pub id: String,
    /// The secret itself.
    pub token: String,
    /// Role of the leases it opens.
    pub role: String,
    /// When it ends.
    pub expires: String,
    /// How many leases it opens.
    pub uses: u32,
    /// The network its client must be in.
    #[serde(default)]
    pub from: Option<String>,
    /// SHA-256 of the key that may spend it.
    #[serde(default)]
    pub key: Option<String>,
}

impl std::fmt::Debug for NewToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "NewToken({}, secret of {} bytes)", self.id, self.token.len())
    }
}

/// A lease that waits for approval.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pending {
    /// The id it will have.
    pub id: String,
    /// Its role.
    pub role: String,
    /// `pending`, `approved` or `denied`.
    pub state: String,
    /// How it was asked for.
    pub door: String,
    /// The token that is reserved for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// Its key: SHA-256 of the SubjectPublicKeyInfo, hexadecimal.
    pub key: String,
    /// Who asked.
    pub asked_by: String,
    /// When.
    pub created: String,
    /// When it ends by itself.
    pub expires: String,
    /// The CI job.
    #[serde(flatten)]
    pub job: pki::CiRef,
    /// Verified claims of its token.
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub claims: std::collections::BTreeMap<String, String>,
    /// Who decided, if somebody did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decided_by: Option<String>,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// One lease.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Lease {
    /// Its id.
    pub id: String,
    /// Its role.
    pub role: String,
    /// `issued`, `active`, `lost`, `lapsed`, `released`, `revoked` or `expired`; where it is listed
    /// what would end, also `pending` and `approved`.
    pub state: String,
    /// The identity in its certificate.
    pub identity: String,
    /// The certificate's subject.
    pub subject: String,
    /// The certificate's DNS name.
    pub dns: String,
    /// Serial of the certificate, hexadecimal.
    pub serial: String,
    /// Virtual addresses.
    pub addresses: Vec<String>,
    /// When it was opened.
    pub created: String,
    /// When it ends.
    pub expires: String,
    /// How it was opened.
    pub door: String,
    /// Its IKE SAs now.
    pub sas: Vec<u64>,
    /// Why it ended, when it did.
    pub ended: Option<String>,
    /// The CI job it was opened for, by the name of its verified claim.
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub claims: std::collections::BTreeMap<String, String>,
    /// Where the job is: `run_url`, `run_id` and `job_id`, as far as known.
    #[serde(flatten)]
    pub job: CiRef,
}

/// One certificate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cert {
    /// Serial, hexadecimal.
    pub serial: String,
    /// Subject.
    pub subject: String,
    /// `valid`, `expired` or `revoked`.
    pub state: String,
    /// Its lease.
    pub lease: Option<String>,
    /// Start.
    pub not_before: String,
    /// End.
    pub not_after: String,
    /// When it was revoked.
    pub revoked: Option<String>,
    /// Why.
    pub reason: Option<String>,
    /// The certificate itself (only in `cert show`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pem: Option<String>,
}

/// One authority.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Authority {
    /// `root` or `issuing`.
    pub name: String,
    /// Subject.
    pub subject: String,
    /// SHA-256 of the DER, hexadecimal, as clients pin it.
    pub sha256: String,
    /// Start.
    pub not_before: String,
    /// End.
    pub not_after: String,
    /// Its key is kept elsewhere.
    #[serde(default)]
    pub offline: bool,
    /// The token that holds its key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// It issues no more, and goes when what it issued has ended: then.
    #[serde(default)]
    pub retires: Option<String>,
    /// Its name in the URLs `/crl/PLACE.crl` and `/PLACE.cer` of the status service.
    #[serde(default)]
    pub place: String,
}

/// What a change of the CA did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CaChange {
    /// SHA-256 of the root that runners pin, hexadecimal.
    pub root_sha256: String,
    /// The CA that issues now.
    pub issuing: String,
    /// SHA-256 of the root that runners learn to know, hexadecimal.
    pub next_root_sha256: Option<String>,
    /// What the operator should know.
    pub notes: Vec<String>,
}

/// `runnel ca status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CaStatus {
    /// Root first.
    pub authorities: Vec<Authority>,
    /// Number of the current CRL.
    pub crl_number: u64,
    /// Until when it is good.
    pub crl_next_update: String,
    /// Revoked certificates in it.
    pub crl_entries: usize,
}

/// A backup.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Backup {
    /// The file.
    pub file: String,
    /// When it was made.
    pub created: String,
    /// SHA-256 of the root that runners pin, hexadecimal.
    pub root_sha256: String,
}

/// A PEM text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pem {
    /// The text.
    pub pem: String,
}

/// One IKE SA.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sa {
    /// Its id.
    pub id: u64,
    /// Identity of the peer.
    pub identity: String,
    /// Its lease.
    pub lease: Option<String>,
    /// Its role.
    pub role: Option<String>,
    /// Our address.
    pub local: String,
    /// The peer's.
    pub remote: String,
    /// Suite.
    pub suite: String,
    /// SPIs, initiator's first, hexadecimal.
    pub spi_i: String,
    /// Responder's SPI.
    pub spi_r: String,
    /// Virtual addresses.
    pub addresses: Vec<String>,
    /// Established.
    pub established: String,
    /// Which side of the first exchange we were: `initiator` or `responder`.
    pub side: String,
    /// A NAT in front of the peer, of us, both or none.
    pub nat: String,
    /// Packets from the client that its role does not allow, of all its lease's tunnels.
    #[serde(default)]
    pub refused: u64,
    /// It ends then at the latest.
    pub ends: Option<String>,
    /// Its children.
    pub children: Vec<Child>,
    /// What it waits for (only in `sa show`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub timers: Vec<Timer>,
    /// What happened to its lease's tunnels, oldest first (only in `sa show`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<Moment>,
}

/// A timer of an IKE SA.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timer {
    /// What for.
    pub what: String,
    /// Seconds until then.
    pub seconds: u64,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    /// When.
    pub time: String,
    /// What.
    pub what: String,
}

/// One child SA.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Child {
    /// Its id.
    pub id: u64,
    /// SPI of packets to us, hexadecimal.
    pub spi_in: String,
    /// SPI of packets to the peer.
    pub spi_out: String,
    /// Suite.
    pub suite: String,
    /// Our side's selectors.
    pub ts_local: String,
    /// The peer's.
    pub ts_remote: String,
    /// Inner bytes from the peer.
    pub bytes_in: u64,
    /// Inner bytes to the peer.
    pub bytes_out: u64,
    /// Packets from the peer.
    pub packets_in: u64,
    /// Packets to the peer.
    pub packets_out: u64,
    /// Seconds since the last packet from the peer.
    pub idle_seconds: Option<u64>,
    /// Packets dropped: replayed, forged, or not of this SA.
    pub drops: u64,
    /// Of these, replayed or too old.
    pub drops_replay: u64,
    /// Of these, with a wrong integrity check.
    pub drops_auth: u64,
    /// Of these, with inner addresses or ports that are not this SA's.
    pub drops_selector: u64,
    /// `tunnel` or `transport`.
    #[serde(default)]
    pub mode: String,
    /// What a network device does of the work: `none`, `crypto` or `packet`.
    #[serde(default)]
    pub offload: String,
    /// Bytes of the largest inner packet that fits the path to the peer, as far as it is known; only
    /// where one SA is shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Installed.
    pub installed: String,
}

/// What ending leases did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ended {
    /// Leases (or certificates) ended by this request.
    pub revoked: usize,
    /// Which.
    pub leases: Vec<String>,
    /// IKE SAs closed.
    pub sas_closed: usize,
    /// Number of the revocation list that says it; `None` while that is still to be made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crl_number: Option<u64>,
    /// How long it took, data plane included.
    pub elapsed_ms: u64,
    /// It had ended before: nothing was left to do.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub already: bool,
    /// Leases that waited for an operator, or for their client, and are denied now.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cancelled: Vec<String>,
    /// Clients with shared keys, sites and CI runs that this request bars.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub barred: Vec<String>,
    /// How many public keys this request bars.
    #[serde(default)]
    pub keys_barred: usize,
}

/// What revocation keeps out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Bar {
    /// Names the bar for `runnel bar lift`.
    pub id: String,
    /// `key`, `run`, `client` or `site`.
    pub kind: String,
    /// What is barred.
    pub what: String,
    /// RFC 3339.
    pub since: String,
    /// Why, where it is recorded.
    pub reason: Option<String>,
    /// Who revoked, where it is recorded.
    pub by: Option<String>,
    /// A lease that was revoked.
    pub lease: Option<String>,
}

/// `runnel doctor`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Doctor {
    /// Checks of the machine.
    pub checks: Vec<Check>,
    /// Recent refusals, newest first.
    pub refusals: Vec<RefusalView>,
}

/// One check of the machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// What was looked at.
    pub name: String,
    /// Whether it is as it should be.
    pub ok: bool,
    /// What was found, and what to do.
    pub detail: String,
}

/// One refusal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RefusalView {
    /// When it happened last.
    pub time: String,
    /// Machine-readable code.
    pub code: String,
    /// The peer.
    pub peer: String,
    /// The identity it claimed.
    pub identity: String,
    /// What the peer was told.
    pub notify: String,
    /// What differed.
    pub what: String,
    /// What to change.
    pub fix: String,
    /// How many times in a row.
    pub count: u64,
}
