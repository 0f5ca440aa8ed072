//! Webhooks of CI platforms: a delivery that says that a job is over ends the job's leases.
//!
//! `sign` proves who sent a delivery, `told` reads what it says, `book` finds the leases. Nothing
//! here is believed before the signature is verified over the octets as they came.

mod book;
mod seen;
mod sign;
mod told;

use std::fmt;

use zeroize::Zeroizing;

pub use seen::{Deliveries, Seen};
pub use sign::{TOLERANCE, verify};
pub use told::{JobOver, Told, read};

/// A platform whose deliveries are understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HookKind {
    /// `workflow_job` and `workflow_run` of GitHub.
    Github,
    /// Job events of GitLab.
    Gitlab,
}

impl HookKind {
    /// Its name in paths and sentences.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Github => "github",
            Self::Gitlab => "gitlab",
        }
    }
}

/// A secret shared with a platform.
#[derive(Clone, PartialEq, Eq)]
pub struct HookSecret(Zeroizing<Vec<u8>>);

impl HookSecret {
    /// The octets of a secret.
    pub fn new(octets: &[u8]) -> Self {
        Self(Zeroizing::new(octets.to_vec()))
    }
}

impl fmt::Debug for HookSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HookSecret({} octets)", self.0.len())
    }
}

/// Whose deliveries are believed: an issuer's platform, with every secret that is good now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookSource {
    /// The platform.
    pub kind: HookKind,
    /// The issuer's name in the configuration.
    pub issuer: String,
    /// `iss` of its tokens: only leases that they opened are ended.
    pub iss: String,
    /// Its secrets; several while one replaces another.
    pub secrets: Vec<HookSecret>,
}

/// A delivery as it came. Not `Debug`: its header carries a secret with some platforms.
#[derive(Clone, Copy, Default)]
pub struct Delivery<'a> {
    /// `X-GitHub-Event` or `X-Gitlab-Event`.
    pub event: Option<&'a str>,
    /// What names the delivery: `X-GitHub-Delivery`, `Idempotency-Key` or `X-Gitlab-Event-UUID`.
    pub id: Option<&'a str>,
    /// `X-Hub-Signature-256`.
    pub hub_signature: Option<&'a str>,
    /// `X-Gitlab-Token`.
    pub token: Option<&'a str>,
    /// `webhook-id`, `webhook-timestamp` and `webhook-signature` of signed GitLab deliveries.
    pub webhook_id: Option<&'a str>,
    /// See [`webhook_id`](Self::webhook_id).
    pub webhook_timestamp: Option<&'a str>,
    /// See [`webhook_id`](Self::webhook_id).
    pub webhook_signature: Option<&'a str>,
    /// The body, octet for octet.
    pub body: &'a [u8],
}

/// Why a delivery is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HookError {
    /// It has neither signature nor token.
    #[error("the delivery has no signature: set the webhook's secret on the platform")]
    Unsigned,
    /// No secret verifies it.
    #[error(
        "the delivery is signed with none of the secrets of [[hooks.from]]: compare the webhook's \
         secret on the platform with the files"
    )]
    BadSignature,
    /// No secret of this platform is configured.
    #[error("no [[hooks.from]] is about an issuer of this platform: add one with its secret")]
    NoSource,
    /// It was signed too long ago, or too far in the future.
    #[error(
        "the delivery was signed more than 5 minutes from now: compare the clocks, or it is replayed"
    )]
    Stale,
    /// Its body is not what the platform sends.
    #[error("the delivery's {0}: have the platform send it as application/json")]
    Malformed(&'static str),
}

impl HookError {
    /// A stable word for logs and audit.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unsigned => "unsigned",
            Self::BadSignature => "bad_signature",
            Self::NoSource => "no_source",
            Self::Stale => "stale",
            Self::Malformed(_) => "malformed",
        }
    }

    /// The HTTP status.
    pub const fn status(self) -> u16 {
        match self {
            Self::Malformed(_) => 400,
            _ => 401,
        }
    }

    /// What the sender is told: whoever has no secret learns only that it is not accepted.
    pub fn public_detail(self) -> String {
        match self {
            Self::Malformed(_) => self.to_string(),
            _ => "the delivery is not signed with a secret that is accepted here".to_owned(),
        }
    }
}
