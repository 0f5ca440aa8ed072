//! Requests and answers of the admin socket.

use ipnet::IpNet;
use pki::signer::KeyKind;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The protocol's version; an unknown one is refused with both numbers.
pub const VERSION: u32 = 2;

/// Items of one answer: so many that few are needed, so few that none is slow.
pub const MAX_PAGE: usize = 5_000;

/// Longest request line, bytes.
pub const MAX_LINE: usize = 64 * 1024;

/// One request line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Envelope {
    /// [`VERSION`].
    pub v: u32,
    /// What is wanted.
    #[serde(flatten)]
    pub request: Request,
}

/// Which part of a long listing is wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Paging {
    /// What comes after this, [`Page::next`] of the page before; the beginning without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// At most so many, and never more than [`MAX_PAGE`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
}

impl Paging {
    /// How many the page may have.
    pub fn size(&self) -> usize {
        self.limit.unwrap_or(MAX_PAGE).clamp(1, MAX_PAGE)
    }
}

/// A part of a long listing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page<T> {
    /// What is on it.
    pub items: Vec<T>,
    /// Where the next one begins; none after the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// What the operator wants.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Request {
    /// What runs, since when, and what needs attention.
    Status,
    /// Stop; with `keep` leave the tunnels for the next start.
    Stop {
        /// Leave tunnels.
        keep: bool,
    },
    /// Read the configuration again.
    Reload,
    /// Make a one-time token.
    TokenCreate {
        /// Role of the leases it opens.
        role: String,
        /// Life in seconds.
        ttl: u64,
        /// How many leases it opens.
        uses: u32,
        /// Only clients in this network may spend it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        from: Option<IpNet>,
        /// Only this key may spend it: SHA-256 of its SubjectPublicKeyInfo, hexadecimal.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        key: Option<String>,
    },
    /// Tokens that can still be used, or could recently.
    TokenList(Paging),
    /// Make a token unusable.
    TokenRevoke {
        /// Its id (not the secret).
        id: String,
    },
    /// Leases.
    LeaseList {
        /// Ended ones too.
        all: bool,
        /// Which part of the listing.
        #[serde(flatten)]
        paging: Paging,
    },
    /// One lease.
    LeaseShow {
        /// Id, or certificate serial.
        id: String,
    },
    /// Leases that wait for approval.
    LeasePending,
    /// Let a lease that waits be opened.
    LeaseApprove {
        /// Its id.
        id: String,
    },
    /// Refuse a lease that waits.
    LeaseDeny {
        /// Its id.
        id: String,
        /// Why; its client is told.
        reason: Option<String>,
    },
    /// End leases because their work is done.
    LeaseRelease {
        /// Which.
        selector: Selector,
    },
    /// End leases because they must not be trusted any more.
    LeaseRevoke {
        /// Which.
        selector: Selector,
        /// Reason for the certificate (RFC 5280 5.3.1).
        reason: String,
    },
    /// The leases that revoking would end.
    RevokePreview {
        /// Which.
        selector: Selector,
    },
    /// What revocation keeps out.
    BarList(Paging),
    /// Let something in again.
    BarLift {
        /// The bar's id.
        id: String,
    },
    /// Certificates that were issued.
    CertList {
        /// Expired ones too.
        all: bool,
        /// Which part of the listing.
        #[serde(flatten)]
        paging: Paging,
    },
    /// One certificate.
    CertShow {
        /// Serial number, hexadecimal.
        serial: String,
    },
    /// Revoke one certificate and end what hangs on it.
    CertRevoke {
        /// Serial number, hexadecimal.
        serial: String,
        /// Reason (RFC 5280 5.3.1).
        reason: String,
    },
    /// The root certificate.
    CaRoot,
    /// The authorities: names, ends, CRL.
    CaStatus,
    /// A CA's revocation list.
    CaCrl {
        /// The CA's name in URLs; none: the one that issues now.
        place: Option<String>,
    },
    /// A request for a certificate of another issuing CA.
    CaCsr {
        /// The kind of key; none: the configured one.
        key: Option<KeyKind>,
        /// The common name to ask for.
        common_name: Option<String>,
        /// Another request than the one that waits.
        anew: bool,
    },
    /// Take the certificate that was asked for into use.
    CaImport {
        /// PEM: the certificate with its chain.
        certificates: String,
    },
    /// Keep the revocation list of a root that is kept elsewhere.
    CaImportCrl {
        /// The list, DER, base64.
        crl: String,
    },
    /// Write a backup of the whole state.
    Backup {
        /// The file, an absolute path.
        to: std::path::PathBuf,
        /// The file with its passphrase or recovery key, an absolute path.
        key_file: std::path::PathBuf,
    },
    /// Another issuing CA from now on.
    CaRotate {
        /// The kind of key; none: the configured one.
        key: Option<KeyKind>,
        /// Another root as well.
        root: bool,
    },
    /// The oldest root leaves.
    CaRetire,
    /// Revoke an issuing CA that issues no more, with all that hangs on it.
    CaRevoke {
        /// Its name in URLs.
        place: String,
        /// Reason (RFC 5280 5.3.1).
        reason: String,
    },
    /// IKE SAs with their children.
    SaList,
    /// One IKE SA.
    SaShow {
        /// Its id.
        id: u64,
    },
    /// Rekey one IKE SA with its children now.
    SaRekey {
        /// Its id.
        id: u64,
    },
    /// Close one IKE SA: DELETE to the peer, the lease stays.
    SaClose {
        /// Its id.
        id: u64,
    },
    /// Send clients to another gateway: new ones from now on, and those that are connected.
    Drain {
        /// Its name or address; none: nobody is sent any more.
        to: Option<String>,
    },
    /// Tunnels to other gateways.
    SiteList,
    /// Connect a site at once, also when its lease was revoked.
    SiteConnect {
        /// Its name.
        name: String,
    },
    /// Recent refusals and the machine's checks.
    Doctor,
    /// Whether anything was done to the audit trail since it was written.
    AuditVerify,
    /// The public key that the trail's checkpoints are signed with.
    AuditKey,
    /// Events of the audit trail, oldest first.
    AuditTail {
        /// Those after this position; none: the latest.
        after: Option<u64>,
        /// This many at most.
        last: usize,
        /// Of this lease only.
        lease: Option<String>,
        /// Whose action begins so.
        action: Option<String>,
    },
}

/// Which leases.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Selector {
    /// By lease id.
    Id(String),
    /// By certificate serial, hexadecimal.
    Serial(String),
    /// By the identity, and those below it.
    Identity(String),
    /// By role.
    Role(String),
    /// By public key: SHA-256 of its SubjectPublicKeyInfo, hexadecimal.
    Key(String),
    /// By the CI run they were opened for.
    Run {
        /// Its id or URL.
        run: String,
        /// The issuer, by name or URL.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        issuer: Option<String>,
    },
    /// By the issuer of the token that opened them.
    Issuer(String),
}

impl Selector {
    /// The same for the PKI.
    ///
    /// # Errors
    /// When a serial number is none.
    pub fn to_pki(&self) -> Result<pki::RevokeSelector, pki::Error> {
        use pki::RevokeSelector as Pki;
        Ok(match self {
            Self::Id(id) => Pki::Lease(id.clone()),
            Self::Serial(serial) => Pki::Serial(serial.parse()?),
            Self::Identity(prefix) => Pki::Identity(prefix.clone()),
            Self::Role(role) => Pki::Role(role.clone()),
            Self::Key(hash) => Pki::Spki(hash.clone()),
            Self::Run { run, issuer } => Pki::Run { run: run.clone(), issuer: issuer.clone() },
            Self::Issuer(issuer) => Pki::Issuer(issuer.clone()),
        })
    }
}

impl std::fmt::Display for Selector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Id(id) => f.write_str(id),
            Self::Serial(serial) => write!(f, "serial {serial}"),
            Self::Identity(identity) => write!(f, "identity {identity}"),
            Self::Role(role) => write!(f, "role {role}"),
            Self::Key(hash) => write!(f, "key {hash}"),
            Self::Run { run, issuer: None } => write!(f, "run {run}"),
            Self::Run { run, issuer: Some(issuer) } => write!(f, "run {run} of {issuer}"),
            Self::Issuer(issuer) => write!(f, "issuer {issuer}"),
        }
    }
}

/// One answer line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// [`VERSION`].
    pub v: u32,
    /// The result, when it worked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Value>,
    /// Why not, when it did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<AdminError>,
}

/// Why a request was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdminError {
    /// Machine-readable kind.
    pub code: ErrorCode,
    /// One sentence, with what to do.
    pub message: String,
}

impl AdminError {
    /// An error of this kind.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

/// Kinds of refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// No such object.
    NotFound,
    /// The request makes no sense.
    BadRequest,
    /// Understood, and not allowed.
    Denied,
    /// It should have worked.
    Failed,
}
