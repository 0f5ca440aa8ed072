//! Refusals about a peer, in the engine's words.

use std::net::SocketAddr;

use ike::event::{Blame, Refusal};
use ike::io::{Authorise, EapTlsRequest, IkeSaId};
use ike::wire::{Identification, NotifyType};
use pki::AccessError;
use pki::validate::PeerError;

/// Who a refusal is about.
pub(super) struct Context {
    pub(super) ike: Option<IkeSaId>,
    pub(super) remote: Option<SocketAddr>,
    pub(super) identity: Option<Identification>,
}

impl Context {
    pub(super) fn of(request: &Authorise) -> Self {
        Self {
            ike: Some(request.ike),
            remote: Some(request.remote),
            identity: Some(request.identity.clone()),
        }
    }

    pub(super) fn of_eap(request: &EapTlsRequest) -> Self {
        Self {
            ike: Some(request.ike),
            remote: Some(request.remote),
            identity: Some(request.identity.clone()),
        }
    }

    pub(super) fn refuse(&self, code: &'static str, what: String, fix: String) -> Refusal {
        Refusal {
            ike: self.ike,
            remote: self.remote,
            identity: self.identity.clone(),
            blame: Blame::Incompatible,
            notify: Some(NotifyType::AuthenticationFailed),
            code,
            what,
            fix,
        }
    }

    pub(super) fn peer(&self, error: &PeerError) -> Refusal {
        let code = match error {
            PeerError::NoCertificate => "no_certificate",
            PeerError::Malformed { .. } => "certificate_malformed",
            PeerError::TooMany(_) => "too_many_certificates",
            PeerError::UnknownIssuer { .. } => "unknown_issuer",
            PeerError::Expired { .. } => "certificate_expired",
            PeerError::NotYetValid { .. } => "certificate_not_yet_valid",
            PeerError::BadSignature { .. } => "certificate_signature_invalid",
            PeerError::WrongUsage { .. } => "certificate_wrong_usage",
            PeerError::NotForSigning { .. } => "certificate_not_for_signing",
            PeerError::UnsupportedAlgorithm { .. } => "certificate_algorithm_unsupported",
            PeerError::IdentityMismatch { .. } => "identity_mismatch",
            PeerError::UnsupportedIdentity(_) => "identity_unsupported",
            PeerError::IssuerRevoked { .. } => "issuer_revoked",
            PeerError::InvalidPath { .. } => "certificate_path_invalid",
        };
        let (what, fix) = match error {
            PeerError::InvalidPath { .. } => (
                error.to_string(),
                "reissue the certificate with a chain that follows RFC 5280".to_owned(),
            ),
            _ => split(&error.to_string()),
        };
        self.refuse(code, what, fix)
    }

    pub(super) fn access(&self, error: &AccessError) -> Refusal {
        let code = match error {
            AccessError::NoLease { .. } => "no_lease",
            AccessError::Revoked { .. } | AccessError::HolderRevoked { .. } => "revoked",
            AccessError::Failed(pki::Error::PoolExhausted { .. }) => "pool_exhausted",
            AccessError::KeyBarred(_) => "key_barred",
            AccessError::LeaseNotLive { .. } => "lease_ended",
            AccessError::UnknownRole { .. } => "unknown_role",
            AccessError::Failed(_) => "internal",
        };
        let (what, fix) = split(&error.to_string());
        let mut refusal = self.refuse(code, what, fix);
        if matches!(error, AccessError::Failed(_)) {
            refusal.blame = Blame::Internal;
            refusal.notify = Some(NotifyType::TemporaryFailure);
        }
        refusal
    }
}

/// The PKI's sentences are `what: fix`; the last colon followed by a space parts them.
fn split(sentence: &str) -> (String, String) {
    match sentence.rsplit_once(": ") {
        Some((what, fix)) => (what.to_owned(), fix.to_owned()),
        None => (sentence.to_owned(), "see `runnel doctor`".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_part_into_what_and_fix() {
        let error = PeerError::NoCertificate.to_string();
        let (what, fix) = split(&error);
        assert_eq!(what, "the peer sent no certificate");
        assert!(fix.starts_with("set `certs`"), "{fix}");
        assert_eq!(split("nothing to part").1, "see `runnel doctor`");
    }
}
