//! Tokens of CI platforms (OIDC, RFC 7519) as proof of entitlement: nothing secret is stored with
//! the runner or with us.
//!
//! `jws` takes a token apart, `jwks` verifies it, `keyring` knows when keys are to be fetched,
//! `claims` and `rules` judge what it says, `judge` all of it, `context` turns that into identity and
//! job and `provenance` into what certificates say of it, `door` opens leases, `job` finds them again and `spent` remembers with what. Each step leaves a line in a [`Trace`],
//! for whoever has to find out why not.

mod claims;
mod context;
mod door;
mod job;
mod judge;
pub mod jwks;
pub mod jws;
mod keyring;
pub(crate) mod provenance;
pub mod review;
mod rules;
mod spent;
mod trace;

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use claims::{Claims, LEEWAY, MAX_LIFE};
pub use context::JobContext;
pub use judge::{Accepted, examine};
pub(crate) use keyring::Keyring;
pub use keyring::{IssuerKeys, KeysWanted};
pub(crate) use review::Reviews;
pub use review::{Reviewed, TokenReview};
pub use rules::{ClaimPattern, ClaimRule, Pin, known_claims, takes_wildcard};
pub use spent::JwtSpend;
pub(crate) use spent::reserve;
pub use trace::{RuleTrace, Step, Trace};

/// A signature algorithm of a token (RFC 7518 3.1, RFC 8037). There are no others: a symmetric one
/// would take an issuer's public key for a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum JwtAlgorithm {
    /// RSA PKCS#1 v1.5 with SHA-256.
    #[serde(rename = "RS256")]
    Rs256,
    /// ECDSA on P-256 with SHA-256.
    #[serde(rename = "ES256")]
    Es256,
    /// Ed25519.
    #[serde(rename = "EdDSA")]
    EdDsa,
}

impl JwtAlgorithm {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Rs256, Self::Es256, Self::EdDsa];

    /// Its name in a token's header.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rs256 => "RS256",
            Self::Es256 => "ES256",
            Self::EdDsa => "EdDSA",
        }
    }

    /// The algorithm of this name, if it is one that is ever accepted.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.name() == name)
    }
}

impl fmt::Display for JwtAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A CI platform: decides which claims pin a project, and what they are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum IssuerKind {
    /// GitHub Actions.
    Github,
    /// GitLab CI/CD.
    Gitlab,
    /// Jenkins with its OpenID Connect provider plugin.
    Jenkins,
    /// Kubernetes service accounts.
    Kubernetes,
    /// Any other issuer.
    Generic,
}

impl IssuerKind {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Github, Self::Gitlab, Self::Jenkins, Self::Kubernetes, Self::Generic];

    /// Its name in configurations.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Github => "github",
            Self::Gitlab => "gitlab",
            Self::Jenkins => "jenkins",
            Self::Kubernetes => "kubernetes",
            Self::Generic => "generic",
        }
    }

    /// The algorithms its tokens are signed with, unless configured otherwise.
    pub fn algorithms(self) -> Vec<JwtAlgorithm> {
        match self {
            Self::Github | Self::Gitlab | Self::Jenkins => vec![JwtAlgorithm::Rs256],
            Self::Kubernetes => vec![JwtAlgorithm::Rs256, JwtAlgorithm::Es256],
            Self::Generic => JwtAlgorithm::ALL.to_vec(),
        }
    }
}

/// Where an issuer's keys come from. The caller fetches them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// The issuer's discovery document names them, over HTTPS.
    Discovery {
        /// PEM file with the CAs its server is trusted by, instead of the system's.
        ca: Option<PathBuf>,
    },
    /// A file with the key set, for issuers that cannot be reached.
    File(PathBuf),
}

/// How an issuer's tokens say until when their job may run. No lease of theirs outlives that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JobDeadline {
    /// They do not.
    Unknown,
    /// By `exp`, if they live longer than five minutes: GitLab's live as long as their job may run,
    /// or five minutes where it has no timeout.
    Lifetime,
    /// By this claim, a NumericDate (RFC 7519 2).
    Claim(String),
}

/// An OIDC issuer whose tokens open leases.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issuer {
    /// Its name in rules and identities.
    pub name: String,
    /// The platform.
    pub kind: IssuerKind,
    /// `iss`, exactly.
    pub issuer: String,
    /// What `aud` must be or contain.
    pub audience: String,
    /// The algorithms its tokens may be signed with.
    pub algorithms: Vec<JwtAlgorithm>,
    /// Where its keys come from.
    pub keys: KeySource,
    /// Who is asked about each token beside; Kubernetes only.
    pub review: Option<TokenReview>,
    /// How its tokens say until when their job may run.
    pub job_deadline: JobDeadline,
}

impl Issuer {
    /// An issuer with its platform's algorithms.
    pub fn new(
        name: impl Into<String>,
        kind: IssuerKind,
        issuer: impl Into<String>,
        audience: impl Into<String>,
        keys: KeySource,
    ) -> Self {
        Self {
            name: name.into(),
            kind,
            issuer: issuer.into(),
            audience: audience.into(),
            algorithms: kind.algorithms(),
            keys,
            review: None,
            job_deadline: match kind {
                IssuerKind::Gitlab => JobDeadline::Lifetime,
                _ => JobDeadline::Unknown,
            },
        }
    }
}
