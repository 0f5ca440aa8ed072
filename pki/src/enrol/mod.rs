//! Enrolment: from a proof of entitlement and a key to a lease and a certificate.
//!
//! Protocols are pure request → decision functions: no sockets, no clock.

pub mod approval;
mod cancel;
pub mod csrattrs;
pub mod est;
pub mod exchange;
mod holder;
pub mod jwt;
pub mod keygen;
mod limits;
mod open;
mod own;
pub mod pkcs7;
pub(crate) mod refused;
mod renew;
pub mod token;

pub(crate) use holder::HolderRecord;
pub use holder::KeyHolder;
pub(crate) use limits::Limiter;
pub use limits::{LimitKind, Limits, OpenRate};
pub use own::RELEASE_PREFIX;

use crate::time::UnixTime;

/// Why an enrolment was refused; decides the HTTP status and names the audit reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RefusalCode {
    /// No such resource.
    NotFound,
    /// The resource exists, the method does not.
    MethodNotAllowed,
    /// No credentials were sent.
    CredentialsMissing,
    /// The body is not a certification request.
    MalformedRequest,
    /// The request is larger than any certification request.
    TooLarge,
    /// The key or signature algorithm of the request is not accepted.
    UnacceptableKey,
    /// The request asks for a name that its certificate does not get.
    UnacceptableName,
    /// The request is not signed by the key it carries.
    BadSelfSignature,
    /// No token has this value.
    TokenUnknown,
    /// The token's time is over.
    TokenExpired,
    /// An operator revoked the token.
    TokenRevoked,
    /// The token opened its lease already, for another key or too long ago.
    TokenSpent,
    /// The token belongs to another role.
    TokenWrongRole,
    /// The token is bound to another key or network.
    TokenBoundElsewhere,
    /// The role does not exist (any more).
    UnknownRole,
    /// The lease this proof stands for has ended.
    LeaseEnded,
    /// The presented client certificate proves nothing here.
    CertificateUnusable,
    /// The lease's certificate is still too young to be renewed again.
    RenewalTooEarly,
    /// The key was revoked, and is barred since.
    KeyBarred,
    /// The CI run was revoked, and is barred since.
    RunBarred,
    /// A job or a role has as many live leases as it may.
    TooManyLeases,
    /// Leases were opened too often.
    TooManyRequests,
    /// No address is free.
    PoolExhausted,
    /// The CI platform's token is no token.
    JwtMalformed,
    /// It is of an issuer that is not configured.
    JwtUnknownIssuer,
    /// It is signed with an algorithm that its issuer may not use.
    JwtAlgorithm,
    /// The issuer's keys could not be fetched.
    JwtKeysUnavailable,
    /// It is signed with a key that the issuer does not have.
    JwtUnknownKey,
    /// Its signature does not verify.
    JwtBadSignature,
    /// What its presenter is told of all tokens that nobody is known to have signed.
    JwtNotProven,
    /// It was issued for somebody else.
    JwtWrongAudience,
    /// Its time is over.
    JwtExpired,
    /// Its time has not come.
    JwtNotYetValid,
    /// It lives longer than such tokens may.
    JwtTooLongLived,
    /// Its cluster does not accept it: the pod is deleted, mostly.
    JwtReviewDenied,
    /// Its cluster cannot be asked, and must be.
    JwtReviewUnavailable,
    /// It is good, and no rule gives it a role.
    JwtNoRule,
    /// It opened a lease for another key.
    TokenReplay,
    /// An operator must approve it first; the same key asks again.
    ApprovalPending,
    /// An operator has denied it, or none approved it in time.
    ApprovalDenied,
    /// Too many wait for an operator.
    TooManyWaiting,
    /// Clients of this role make their keys themselves.
    ServerKeysOff,
    /// The token opened a lease for a key that was made here, which is not given twice.
    KeyNotRepeated,
    /// The key that is made here is wanted encrypted beyond TLS.
    KeyEncryption,
    /// The operation is not offered.
    NotImplemented,
    /// The audit trail cannot be written, and nothing is issued without it.
    AuditUnavailable,
    /// The store or the signer failed; trying again may work.
    Unavailable,
}

impl RefusalCode {
    /// A stable word for logs, metrics and audit.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotFound => "not_found",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::CredentialsMissing => "credentials_missing",
            Self::MalformedRequest => "malformed_request",
            Self::TooLarge => "too_large",
            Self::UnacceptableKey => "unacceptable_key",
            Self::UnacceptableName => "unacceptable_name",
            Self::BadSelfSignature => "bad_self_signature",
            Self::TokenUnknown => "token_unknown",
            Self::TokenExpired => "token_expired",
            Self::TokenRevoked => "token_revoked",
            Self::TokenSpent => "token_spent",
            Self::TokenWrongRole => "token_wrong_role",
            Self::TokenBoundElsewhere => "token_bound_elsewhere",
            Self::UnknownRole => "unknown_role",
            Self::LeaseEnded => "lease_ended",
            Self::CertificateUnusable => "certificate_unusable",
            Self::RenewalTooEarly => "renewal_too_early",
            Self::KeyBarred => "key_barred",
            Self::RunBarred => "run_barred",
            Self::TooManyLeases => "too_many_leases",
            Self::TooManyRequests => "too_many_requests",
            Self::PoolExhausted => "pool_exhausted",
            Self::JwtMalformed => "jwt_malformed",
            Self::JwtUnknownIssuer => "jwt_unknown_issuer",
            Self::JwtAlgorithm => "jwt_algorithm",
            Self::JwtKeysUnavailable => "jwt_keys_unavailable",
            Self::JwtUnknownKey => "jwt_unknown_key",
            Self::JwtBadSignature => "jwt_bad_signature",
            Self::JwtNotProven => "jwt_not_proven",
            Self::JwtWrongAudience => "jwt_wrong_audience",
            Self::JwtExpired => "jwt_expired",
            Self::JwtNotYetValid => "jwt_not_yet_valid",
            Self::JwtTooLongLived => "jwt_too_long_lived",
            Self::JwtReviewDenied => "jwt_review_denied",
            Self::JwtReviewUnavailable => "jwt_review_unavailable",
            Self::JwtNoRule => "jwt_no_rule",
            Self::TokenReplay => "token_replay",
            Self::ApprovalPending => "approval_pending",
            Self::ApprovalDenied => "approval_denied",
            Self::TooManyWaiting => "too_many_waiting",
            Self::ServerKeysOff => "server_keys_off",
            Self::KeyNotRepeated => "key_not_repeated",
            Self::KeyEncryption => "key_encryption",
            Self::NotImplemented => "not_implemented",
            Self::AuditUnavailable => "audit_unavailable",
            Self::Unavailable => "unavailable",
        }
    }

    /// The HTTP status.
    pub const fn status(self) -> u16 {
        match self {
            Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::TooLarge => 413,
            Self::CredentialsMissing
            | Self::TokenUnknown
            | Self::JwtMalformed
            | Self::JwtUnknownIssuer
            | Self::JwtAlgorithm
            | Self::JwtUnknownKey
            | Self::JwtBadSignature
            | Self::JwtNotProven
            | Self::JwtKeysUnavailable
            | Self::JwtWrongAudience
            | Self::JwtExpired
            | Self::JwtNotYetValid
            | Self::JwtTooLongLived => 401,
            Self::MalformedRequest
            | Self::UnacceptableKey
            | Self::UnacceptableName
            | Self::KeyEncryption
            | Self::BadSelfSignature => 400,
            Self::TokenExpired
            | Self::TokenRevoked
            | Self::TokenSpent
            | Self::TokenWrongRole
            | Self::TokenBoundElsewhere
            | Self::JwtNoRule
            | Self::JwtReviewDenied
            | Self::TokenReplay
            | Self::UnknownRole
            | Self::LeaseEnded
            | Self::ServerKeysOff
            | Self::ApprovalDenied
            | Self::KeyBarred
            | Self::RunBarred
            | Self::CertificateUnusable => 403,
            Self::ApprovalPending => 202,
            Self::KeyNotRepeated => 409,
            Self::RenewalTooEarly | Self::TooManyLeases | Self::TooManyRequests => 429,
            Self::NotImplemented => 501,
            Self::PoolExhausted
            | Self::JwtReviewUnavailable
            | Self::TooManyWaiting
            | Self::AuditUnavailable
            | Self::Unavailable => 503,
        }
    }
}

/// Seconds until an issuer's keys may have been fetched again, for whoever comes with a new one.
const NOT_PROVEN_WAIT: u64 = 30;
/// Characters of a refusal's sentence.
const MAX_DETAIL: usize = 600;
/// Characters shown of a name that a stranger sent. No role is longer.
const MAX_SHOWN: usize = 64;

/// A name from a stranger, cut to what real ones need, for sentences and records.
pub(crate) fn shown(name: &str) -> &str {
    name.char_indices().nth(MAX_SHOWN).map_or(name, |(end, _)| name.get(..end).unwrap_or_default())
}

/// A refused enrolment.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct Refusal {
    /// The kind.
    pub code: RefusalCode,
    /// One sentence for the operator's log: what differed and what to do. The client is told
    /// it too, except where it would help a guesser.
    pub detail: String,
    /// How the token of a CI platform was judged.
    pub trace: Option<Box<jwt::Trace>>,
    /// How long to wait before trying again, when that is known.
    pub wait: Option<std::time::Duration>,
    /// The lease that waits for an operator.
    pub pending: Option<Box<approval::PendingLease>>,
}

impl Refusal {
    /// A refusal with its sentence: what differed, a colon, and what to do.
    pub fn new(code: RefusalCode, detail: impl Into<String>) -> Self {
        let mut detail = detail.into();
        // Reasons name what strangers sent; whoever writes a sentence cuts it where it knows
        // better, and none gets past this.
        if let Some((end, _)) = detail.char_indices().nth(MAX_DETAIL) {
            detail.truncate(end);
            detail.push('…');
        }
        Self { code, detail, trace: None, wait: None, pending: None }
    }

    pub(crate) fn after(mut self, wait: std::time::Duration) -> Self {
        self.wait = Some(wait);
        self
    }

    /// The `Retry-After` header's value: whole seconds, because not every client understands dates.
    pub fn retry_after(&self) -> Option<u64> {
        if self.public_code() == RefusalCode::JwtNotProven {
            return Some(NOT_PROVEN_WAIT);
        }
        let known = self.wait.map(|wait| wait.as_secs().saturating_add(1));
        known.or((self.code.status() == 503).then_some(5))
    }

    pub(crate) fn with_trace(mut self, trace: jwt::Trace) -> Self {
        self.trace = Some(Box::new(trace));
        self
    }

    /// The code the client is told. A token that nobody is known to have signed could be
    /// anybody's: whether its issuer is configured here, and what of it is not right, is told to the
    /// operator alone.
    pub fn public_code(&self) -> RefusalCode {
        match self.code {
            RefusalCode::JwtUnknownIssuer
            | RefusalCode::JwtAlgorithm
            | RefusalCode::JwtKeysUnavailable
            | RefusalCode::JwtUnknownKey
            | RefusalCode::JwtBadSignature => RefusalCode::JwtNotProven,
            code => code,
        }
    }

    /// What the client is told: for token failures only that the token is not accepted.
    pub fn public_detail(&self) -> &str {
        match self.code {
            // Whether a token exists is told to nobody who cannot present it.
            RefusalCode::TokenUnknown => "the token is not accepted",
            RefusalCode::AuditUnavailable => {
                "this gateway issues nothing while its audit trail cannot be written; try again \
                 later"
            }
            RefusalCode::Unavailable => "the service cannot answer now; try again",
            // What rules want is told to those they are about, by the trace.
            RefusalCode::JwtNoRule => "no rule gives this token a role; see the trace",
            // How the cluster is reached is no business of its pods.
            RefusalCode::JwtReviewUnavailable => {
                "the cluster cannot be asked about the token now; try again"
            }
            RefusalCode::TokenReplay => {
                "the token opened a lease for another key: each key needs a token of its own"
            }
            RefusalCode::ApprovalPending => "an operator must approve this; ask again later",
            RefusalCode::TooManyWaiting => "too many wait for an operator; try again later",
            _ if self.public_code() == RefusalCode::JwtNotProven => {
                "the token is not signed by anybody whose tokens are accepted here: send it as the \
                 platform issued it; if the platform has new keys since a moment, try again in 30 s"
            }
            _ => &self.detail,
        }
    }
}

impl Refusal {
    /// The refusal as its client is told it (RFC 9457), with how its token was judged.
    pub fn problem(&self) -> serde_json::Value {
        let code = self.public_code();
        let mut problem = serde_json::json!({
            "type": format!("urn:runnel:problem:{}", code.name()),
            "title": code.name().replace('_', " "),
            "status": code.status(),
            "detail": self.public_detail(),
        });
        let trace = self.trace.as_ref().filter(|_| code != RefusalCode::JwtNotProven);
        if let (Some(trace), Some(problem)) = (trace, problem.as_object_mut())
            && let Ok(trace) = serde_json::to_value(trace.public())
        {
            problem.insert("trace".to_owned(), trace);
        }
        problem
    }
}

impl From<crate::error::Error> for Refusal {
    fn from(error: crate::error::Error) -> Self {
        use crate::error::Error;
        let code = match error {
            Error::PoolExhausted { .. } => RefusalCode::PoolExhausted,
            Error::Held(_) => RefusalCode::AuditUnavailable,
            _ => RefusalCode::Unavailable,
        };
        Self::new(code, error.to_string())
    }
}

/// A lease with the certificate that was issued for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enrolled {
    /// The lease.
    pub lease: crate::lease::Lease,
    /// The certificate, DER.
    pub certificate: Vec<u8>,
    /// The certificate's last instant.
    pub not_after: UnixTime,
    /// Whether this repeats an earlier answer (a retry after a lost reply).
    pub replayed: bool,
}
