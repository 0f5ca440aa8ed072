//! Who asks: the credentials of a request to `/v1/leases`.

use pki::{Authority, Lease, Refusal, RefusalCode, UnixTime, VerifiedPeer};
use zeroize::Zeroizing;

use crate::http::Request;

/// What a request brings along.
pub(super) enum Credential<'r> {
    /// A token of any kind, in the header.
    Bearer(Zeroizing<String>),
    /// A certificate of ours, proven in TLS.
    Certificate(&'r [Vec<u8>]),
}

/// What the holder of a lease has proven.
pub(super) enum Holder {
    /// Its certificate.
    Certificate(Box<VerifiedPeer>),
    /// The token that opened the lease or one of the same job, or the release token.
    Bearer,
}

impl<'r> Credential<'r> {
    /// The token in the header.
    pub(super) fn bearer(request: &Request) -> Option<Zeroizing<String>> {
        let (scheme, token) = super::authorization(request)?.trim().split_once(' ')?;
        let token = token.trim();
        (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty())
            .then(|| Zeroizing::new(token.to_owned()))
    }

    /// The credential of a request about one lease; the header before the certificate.
    pub(super) fn of(request: &'r Request) -> Result<Self, Refusal> {
        if let Some(token) = Self::bearer(request) {
            return Ok(Self::Bearer(token));
        }
        if request.client_chain.is_empty() {
            return Err(Refusal::new(
                RefusalCode::CredentialsMissing,
                "the request has no credentials: send Authorization: Bearer with the release \
                 token, a token of the lease's job or the one-time token that opened it, or prove \
                 its certificate in TLS",
            ));
        }
        Ok(Self::Certificate(&request.client_chain))
    }

    /// The lease it stands for, if that is the one asked for.
    pub(super) fn lease(
        &self,
        authority: &Authority,
        id: &str,
        now: UnixTime,
    ) -> Result<(Lease, Holder), Refusal> {
        match self {
            Self::Bearer(token) => Ok((authority.lease_of_bearer(id, token, now)?, Holder::Bearer)),
            Self::Certificate(chain) => {
                let (lease, peer) = authority.lease_of_chain(chain, now)?;
                if lease.id != id {
                    return Err(Refusal::new(
                        RefusalCode::CertificateUnusable,
                        format!("the certificate is that of lease {}: ask for that one", lease.id),
                    ));
                }
                Ok((lease, Holder::Certificate(Box::new(peer))))
            }
        }
    }
}
