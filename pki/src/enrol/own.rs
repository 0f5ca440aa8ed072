//! What the holder of a lease may do with it, and how it proves to be the holder: with its
//! certificate, the token that opened the lease or another one of the same job, or the lease's release
//! token.

use std::net::IpAddr;

use super::token::TokenSecret;
use super::{Enrolled, Refusal, RefusalCode, jwt};
use crate::audit::Actor;
use crate::authority::Authority;
use crate::csr::Csr;
use crate::error::Error;
use crate::issue::CertRecord;
use crate::lease::Lease;
use crate::record::{self, key};
use crate::time::UnixTime;
use crate::validate::{self, VerifiedPeer};

/// How release tokens begin.
pub const RELEASE_PREFIX: &str = "rt-";
/// How often a renewal is tried again when another writer was faster.
const ATTEMPTS: usize = 64;

/// A certificate that has expired stands for its lease only as long as the lease has its key: the
/// key may have been replaced because somebody else has it. `asked` is the key that a request for
/// another certificate proves.
///
/// # Errors
/// [`RefusalCode::CertificateUnusable`].
pub(super) fn refuse_replaced(
    lease: &Lease,
    peer: &VerifiedPeer,
    asked: Option<&str>,
    now: UnixTime,
) -> Result<(), Refusal> {
    let current = lease.spki_sha256.as_str();
    if now <= peer.not_after || peer.spki_sha256 == current || asked == Some(current) {
        return Ok(());
    }
    Err(Refusal::new(
        RefusalCode::CertificateUnusable,
        format!(
            "certificate {} expired at {}, and lease {} has another key since: use its latest \
             certificate",
            peer.serial, peer.not_after, lease.id
        ),
    ))
}

impl Authority {
    /// The secret that reads and ends a lease, and renews it for the key that it has, for whoever
    /// cleans up after a job.
    ///
    /// It is made of the sealing key, so that nothing is stored and a repeated answer has it again.
    pub fn release_token(&self, lease_id: &str) -> TokenSecret {
        let tag = self.sealer.tag("release", lease_id.as_bytes());
        TokenSecret::new(format!("{RELEASE_PREFIX}{}", crate::issue::hex(&tag)))
    }

    /// Whether a text is the release token of a lease, existing or not.
    pub fn is_release_token(&self, lease_id: &str, text: &str) -> bool {
        let expected = self.release_token(lease_id);
        // Both are digested first, so that the comparison's time tells nothing.
        let digest = |text: &str| self.sealer.tag("compare", text.as_bytes());
        digest(expected.expose()) == digest(text.trim())
    }

    /// The lease a bearer credential stands for: a token of its CI job, the one-time token that
    /// opened it, or its release token. `lease_id` is the lease that is asked for. A token of
    /// several uses, which several may hold, stands for none of its leases.
    ///
    /// # Errors
    /// Why it stands for no lease, or for another one; [`RefusalCode::NotFound`] when the lease
    /// is not on record any more.
    pub fn lease_of_bearer(
        &self,
        lease_id: &str,
        text: &str,
        now: UnixTime,
    ) -> Result<Lease, Refusal> {
        let other = || {
            Refusal::new(
                RefusalCode::CertificateUnusable,
                format!(
                    "the credential did not open lease {:?}: use the lease's release token, or \
                     the token that opened it",
                    super::shown(lease_id)
                ),
            )
        };
        if jwt::jws::looks_like_jwt(text) {
            return self.lease_of_job(lease_id, text, now);
        }
        let opened = if text.trim().starts_with(RELEASE_PREFIX) {
            self.is_release_token(lease_id, text)
        } else {
            let token = self.find_token(text)?.value;
            if token.uses > 1 {
                return Err(Refusal::new(
                    RefusalCode::CertificateUnusable,
                    format!(
                        "token {} opens {} leases and so proves which is yours of none: use the \
                         lease's release token, or prove its certificate in TLS",
                        token.id, token.uses
                    ),
                ));
            }
            token.revoked.is_none() && token.spends.iter().any(|spend| spend.lease_id == lease_id)
        };
        if !opened {
            return Err(other());
        }
        if let Some(refusal) = self.pending_refusal(lease_id, now)? {
            return Err(refusal);
        }
        self.lease(lease_id)?.ok_or_else(|| {
            Refusal::new(
                RefusalCode::NotFound,
                format!("lease {lease_id} ended long ago and is not on record any more"),
            )
        })
    }

    /// The lease whose certificate a client has proven in TLS, and that certificate. One that has
    /// expired still renews within the lease's grace.
    ///
    /// # Errors
    /// [`RefusalCode::CertificateUnusable`] with the reason.
    pub fn lease_of_chain(
        &self,
        chain: &[Vec<u8>],
        now: UnixTime,
    ) -> Result<(Lease, VerifiedPeer), Refusal> {
        let unusable = |detail: String| Refusal::new(RefusalCode::CertificateUnusable, detail);
        let peer = self.proven_peer(chain, now)?;
        let lease = self.lease_by_serial(Some(&peer.issuer_id), &peer.serial)?;
        // Another CA may have given the same name and serial number to another key.
        let cert_key = key::cert(&peer.issuer_id, &peer.serial);
        let record = record::read::<CertRecord>(self.store.as_ref(), &cert_key)?;
        let issued = record.is_some_and(|record| record.value.spki_sha256 == peer.spki_sha256);
        let lease = lease.filter(|_| issued).ok_or_else(|| {
            unusable(format!("certificate {} belongs to no lease: enrol first", peer.serial))
        })?;
        refuse_replaced(&lease, &peer, None, now)?;
        Ok((lease, peer))
    }

    /// The peer of a chain that was proven in TLS, judged at the certificate's last instant if
    /// that is over: the lease decides how long it still renews.
    pub(crate) fn proven_peer(
        &self,
        chain: &[Vec<u8>],
        now: UnixTime,
    ) -> Result<VerifiedPeer, Refusal> {
        let at = match chain.first().map(|leaf| validate::end_of_validity(leaf)) {
            Some(Some(not_after)) => now.min(not_after),
            _ => now,
        };
        self.ca()
            .verify_peer(chain, None, at)
            .map_err(|error| Refusal::new(RefusalCode::CertificateUnusable, error.to_string()))
    }

    /// Issues another certificate for a lease to the key it has. The request is signed by that
    /// key, which proves as much as the old certificate would; another key needs the certificate.
    ///
    /// # Errors
    /// [`RefusalCode::CertificateUnusable`] for another key, else as [`renew`](Self::renew).
    pub fn renew_same_key(
        &self,
        lease_id: &str,
        csr: &Csr,
        client: Option<IpAddr>,
        now: UnixTime,
    ) -> Result<Enrolled, Refusal> {
        let actor = client.map_or(Actor::System, Actor::Peer);
        for _ in 0..ATTEMPTS {
            let stored = self
                .stored_lease(lease_id)?
                .ok_or_else(|| Refusal::from(Error::not_found("lease", lease_id)))?;
            if stored.value.spki_sha256 != csr.spki_sha256 {
                return Err(Refusal::new(
                    RefusalCode::CertificateUnusable,
                    format!(
                        "the request is for another key than that of lease {lease_id}: renew with \
                         the same key, or prove the old certificate in TLS"
                    ),
                ));
            }
            if let Some(enrolled) = self.renew_lease(&stored, csr, &actor, now)? {
                return Ok(enrolled);
            }
        }
        Err(Error::Contended("the renewal").into())
    }

    /// The role of a one-time token, for clients that do not name it.
    ///
    /// # Errors
    /// [`RefusalCode::TokenUnknown`].
    pub fn role_of_token(&self, text: &str) -> Result<String, Refusal> {
        Ok(self.find_token(text)?.value.role)
    }
}
