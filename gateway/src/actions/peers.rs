//! Who a peer is, and what it may have: the PKI's answers in the engine's words.

// A completion carries its refusal by value; boxing it here would only add a move.
#![allow(clippy::result_large_err)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use ike::crypto::{CryptoProvider, SecretBytes};
use ike::event::{Blame, Refusal};
use ike::io::{
    Authorise, EapTlsRequest, Grant, IkeSaId, LeaseId, OwnProof, PeerProof, PpkRequest, SharedKey,
    SharedKeyRequest, UniquePolicy, VerifiedPeer, VerifyPeer,
};
use ike::time::WallTime;
use ike::wire::{Identification, NotifyType};
use pki::validate::PeerError;
use pki::{Access, AccessError, Authority, IkeId, KeyHolder, Lease, UnixTime};

use super::PeerKeys;
use super::externals::{ExternalPeer, Externals};
use crate::config::Site;
use crate::lease::{Epoch, LeaseRegistry};
use crate::live::LiveConfig;
use crate::policy;
use crate::revocation::RevocationChecks;
use crate::service::identification;
use crate::sys::clock;

mod external;

/// Verifies and authorises peers.
#[derive(Debug)]
pub struct Peers {
    authority: Arc<Authority>,
    registry: Arc<LeaseRegistry>,
    config: LiveConfig,
    keys: RwLock<Arc<PeerKeys>>,
    provider: &'static CryptoProvider,
    externals: RwLock<Arc<Externals>>,
    checks: OnceLock<RevocationChecks>,
    /// The certificates behind live leases of external CAs.
    live: Mutex<BTreeMap<String, ExternalPeer>>,
    /// Verified, not yet authorised: the engine carries a digest of this between the two.
    verified: Mutex<BTreeMap<IkeSaId, Known>>,
}

/// A verified peer, and the site it is, or what the external CA of its certificate says.
#[derive(Debug)]
struct Known {
    peer: pki::VerifiedPeer,
    site: Option<String>,
    external: Option<ExternalPeer>,
}

/// What was proved with a shared key is to be proved again in this time.
const SHARED_KEY_LIFE: Duration = Duration::from_secs(86_400);

/// Peers between verification and authorisation at most; the engine authorises at once, so more
/// than a few mean handshakes that were given up.
const WAITING: usize = 4096;

impl Peers {
    /// Over the PKI and the current configuration.
    pub fn new(
        authority: Arc<Authority>,
        registry: Arc<LeaseRegistry>,
        config: LiveConfig,
        keys: PeerKeys,
        provider: &'static CryptoProvider,
    ) -> Self {
        let keys = RwLock::new(Arc::new(keys));
        Self {
            authority,
            registry,
            config,
            keys,
            provider,
            externals: RwLock::default(),
            checks: OnceLock::new(),
            live: Mutex::default(),
            verified: Mutex::default(),
        }
    }

    /// Replaces the shared keys. Tunnels made with others end with [`Peers::regrant`].
    pub fn replace_keys(&self, keys: PeerKeys) {
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
    }

    fn keys(&self) -> Arc<PeerKeys> {
        Arc::clone(&self.keys.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Validates the chain, matches the identity, verifies the AUTH signature (RFC 7296 2.15) and,
    /// for certificates of external CAs, asks for their standing. Tells `done` the answer, at once
    /// or when those asked have said theirs.
    pub fn verify(
        self: &Arc<Self>,
        request: &VerifyPeer,
        done: impl FnOnce(Result<Box<VerifiedPeer>, Refusal>) + Send + 'static,
    ) {
        let context = Context {
            ike: Some(request.ike),
            remote: Some(request.remote),
            identity: Some(request.identity.clone()),
        };
        match self.prove(request, &context) {
            Err(refusal) => done(Err(refusal)),
            Ok((known, answer)) if known.external.is_none() => {
                self.remember(request.ike, known);
                done(Ok(answer));
            }
            Ok((known, answer)) => self.look_into(request, known, answer, context, done),
        }
    }

    /// Chain, identity and signature.
    fn prove(
        &self,
        request: &VerifyPeer,
        context: &Context,
    ) -> Result<(Known, Box<VerifiedPeer>), Refusal> {
        let id = IkeId { kind: request.identity.id_type.value(), data: &request.identity.data };
        let site = self.site_of(request, context)?;
        if let Some(site) = site.as_ref().filter(|site| site.psk_file.is_some()) {
            return Err(context.refuse(
                "psk_expected",
                format!("site {} presents a certificate, but shares a key with us", site.name),
                "let it use the shared key (strongSwan: `auth = psk`), or give the site a `ca`"
                    .to_owned(),
            ));
        }
        let anchors = site.as_ref().map(|site| site.anchors.as_slice()).unwrap_or_default();
        let chain = &request.certificates;
        let validated = if !anchors.is_empty() {
            pki::validate::verify_peer(chain, anchors, Some(id), now()).map(|peer| (peer, None))
        } else if site.is_some() {
            self.authority.verify_peer(chain, Some(id), now()).map(|peer| (peer, None))
        } else {
            self.validate(chain, id)
        };
        let (peer, external) = validated.map_err(|error| context.peer(&error))?;
        if let Some(expected) = &request.expected
            && *expected != request.identity
        {
            return Err(context.refuse(
                "identity_mismatch",
                format!("the peer is {}, we expected {expected}", request.identity),
                "correct the expected identity of this connection".to_owned(),
            ));
        }
        let (spki, message, signature) = (&peer.spki, &request.message, &request.signature);
        let verified = if request.rsa_classic {
            self.provider.verify_rsa_classic(spki, message, signature)
        } else {
            self.provider.verify(request.scheme, spki, message, signature)
        };
        verified.map_err(|error| {
            context.refuse(
                "signature_invalid",
                format!(
                    "the AUTH signature ({}) does not verify with the key of certificate {}: \
                     {error}",
                    request.scheme.name(),
                    peer.subject
                ),
                "check that the client's private key belongs to its certificate".to_owned(),
            )
        })?;
        let answer = verified_peer(&request.identity, &peer, context)?;
        let known = Known { peer, site: site.map(|site| site.name), external };
        Ok((known, Box::new(answer)))
    }

    /// Checks the certificate that a peer proved with EAP-TLS (RFC 5216 5.2). It must be of our own
    /// CA, whose revocations are known without asking anybody.
    ///
    /// # Errors
    /// The refusal, explained.
    pub fn verify_eap(
        &self,
        request: &EapTlsRequest,
        chain: &[Vec<u8>],
    ) -> Result<Box<VerifiedPeer>, Refusal> {
        let context = Context::of_eap(request);
        let id = IkeId { kind: request.identity.id_type.value(), data: &request.identity.data };
        let peer = self
            .authority
            .verify_peer(chain, Some(id), now())
            .map_err(|error| context.peer(&error))?;
        let answer = verified_peer(&request.identity, &peer, &context)?;
        self.remember(request.ike, Known { peer, site: None, external: None });
        Ok(Box::new(answer))
    }

    /// A refusal about EAP-TLS.
    pub fn refuse_eap(
        &self,
        request: &EapTlsRequest,
        code: &'static str,
        what: String,
        fix: &str,
    ) -> Refusal {
        Context::of_eap(request).refuse(code, what, fix.to_owned())
    }

    /// Finds a post-quantum preshared key (RFC 8784).
    ///
    /// # Errors
    /// The refusal, explained.
    pub fn ppk(&self, request: &PpkRequest) -> Result<SecretBytes, Refusal> {
        let keys = self.keys();
        let found = request.peer.as_ref().and_then(|peer| keys.ppk(&request.id, peer));
        found.cloned().ok_or_else(|| {
            let context = Context {
                ike: Some(request.ike),
                remote: Some(request.remote),
                identity: request.peer.clone(),
            };
            let name = String::from_utf8_lossy(&request.id).escape_debug().to_string();
            context.refuse(
                "unknown_ppk",
                format!(
                    "the client insists on the post-quantum preshared key \"{name}\", which is \
                     not known for it here"
                ),
                "add a [[ppk]] section with this id, or correct the client (strongSwan: `ppk_id`)"
                    .to_owned(),
            )
        })
    }

    /// Whether a client used the post-quantum preshared key that it must use.
    fn check_ppk(&self, request: &Authorise, context: &Context) -> Result<(), Refusal> {
        let keys = self.keys();
        let Some(ppk) = keys.required_ppk(&request.identity).filter(|_| !request.ppk) else {
            return Ok(());
        };
        Err(context.refuse(
            "ppk_required",
            format!(
                "the client does not use the post-quantum preshared key \"{}\", which is required",
                ppk.id
            ),
            "give the client the key (strongSwan: `ppk_id` and a `ppk` secret), or set \
             `required = false`"
                .to_owned(),
        ))
    }

    fn remember(&self, ike: IkeSaId, known: Known) {
        let mut verified = lock(&self.verified);
        verified.insert(ike, known);
        if verified.len() > WAITING {
            verified.pop_first();
        }
    }

    /// Finds the key that a peer shares with the gateway (RFC 7296 2.15).
    ///
    /// # Errors
    /// The refusal, explained.
    pub fn shared_key(&self, request: &SharedKeyRequest) -> Result<Box<SharedKey>, Refusal> {
        let context = Context {
            ike: Some(request.ike),
            remote: Some(request.remote),
            identity: request.peer.clone(),
        };
        let config = self.config.get();
        let asked = |site: &&Site| request.peer.as_ref() == Some(&identification(&site.id));
        if let Some(key) = config.sites.iter().find(asked).and_then(|site| site.psk.clone()) {
            return Ok(Box::new(SharedKey { key, own: OwnProof::SharedKey }));
        }
        let keys = self.keys();
        let found = request.peer.as_ref().and_then(|peer| keys.psk(peer));
        if let Some(found) = found {
            let shares = found.psk.gateway_shares;
            let own = if shares { OwnProof::SharedKey } else { OwnProof::Certificate };
            return Ok(Box::new(SharedKey { key: found.key.clone(), own }));
        }
        if keys.is_empty() {
            return Err(context.refuse(
                "psk_not_offered",
                "the client authenticates with a shared key, which is not offered".to_owned(),
                "let the client authenticate with its certificate (strongSwan: `auth = pubkey`), \
                 or add a [[psk]] section for it"
                    .to_owned(),
            ));
        }
        let claimed = request.peer.as_ref().map(ToString::to_string).unwrap_or_default();
        Err(context.refuse(
            "unknown_identity",
            format!("no [[psk]] section has the id {claimed} that the client claims"),
            "add one with its key, or correct the client's identity (strongSwan: `id` in `local`)"
                .to_owned(),
        ))
    }

    /// Finds the lease of the presented certificate and what it grants. The epoch tells whether
    /// the answer is still good when it takes effect (see [`LeaseRegistry`]).
    pub fn authorise(&self, request: &Authorise) -> (Epoch, Result<Box<Grant>, Refusal>) {
        let epoch = self.registry.epoch();
        (epoch, self.grant(request))
    }

    /// Checks an authorisation again at the moment it takes effect.
    ///
    /// # Errors
    /// The refusal, when the lease ended meanwhile.
    pub fn confirm(
        &self,
        request: &Authorise,
        epoch: Epoch,
        result: Result<Box<Grant>, Refusal>,
    ) -> Result<Box<Grant>, Refusal> {
        let grant = result?;
        if self.registry.ended_since(&grant.lease, epoch) {
            return Err(Context::of(request).refuse(
                "lease_ended",
                format!("lease {} ended while its peer was connecting", grant.lease.0),
                "enrol again".to_owned(),
            ));
        }
        Ok(grant)
    }

    /// The refusal when there is no capacity to decide.
    pub fn busy(&self, ike: Option<IkeSaId>, remote: Option<SocketAddr>) -> Refusal {
        Refusal {
            ike,
            remote,
            identity: None,
            blame: Blame::Internal,
            notify: Some(NotifyType::TemporaryFailure),
            code: "busy",
            what: super::BUSY.to_owned(),
            fix: "the client may try again; add capacity if this persists".to_owned(),
        }
    }

    fn grant(&self, request: &Authorise) -> Result<Box<Grant>, Refusal> {
        let context = Context::of(request);
        if request.peer.proof == PeerProof::SharedKey {
            if self.shares_with_site(&request.identity) {
                return self.grant_shared(request, &context);
            }
            self.check_ppk(request, &context)?;
            return self.grant_holder(request, &context);
        }
        let known = lock(&self.verified).remove(&request.ike).ok_or_else(|| {
            // Thousands of handshakes overtook this one; the client tries again.
            self.busy(Some(request.ike), Some(request.remote))
        })?;
        let Known { peer, site, external } = known;
        if let Some(site) = site {
            return self.grant_site(&site, &peer, &context);
        }
        self.check_ppk(request, &context)?;
        let access = match external {
            Some(external) => self.authorise_external(request, external),
            None => self.authority.authorise(&peer, now()),
        };
        self.grant_lease(&access.map_err(|error| context.access(&error))?, &context)
    }

    /// What a client's lease grants it.
    fn grant_lease(&self, access: &Access, context: &Context) -> Result<Box<Grant>, Refusal> {
        let deadline = WallTime(access.deadline.micros());
        let grant = self.regrant(&access.lease, &access.lease.role, deadline).ok_or_else(|| {
            let (role, pool) = (&access.lease.role, &access.lease.pool);
            context.refuse(
                "unknown_role",
                format!("role {role} or pool {pool} is not configured"),
                "add it to the configuration, or enrol with another role".to_owned(),
            )
        })?;
        Ok(Box::new(grant))
    }

    /// Whether a site shares a key with us under this identity.
    fn shares_with_site(&self, id: &Identification) -> bool {
        let shares = |site: &Site| site.psk.is_some() && identification(&site.id) == *id;
        self.config.get().sites.iter().any(shares)
    }

    /// The lease of a client that proved its shared key.
    fn grant_holder(&self, request: &Authorise, context: &Context) -> Result<Box<Grant>, Refusal> {
        let keys = self.keys();
        // A reload may have taken the key away since it was proven.
        let peer = keys.psk(&request.identity).ok_or_else(|| {
            context.refuse(
                "unknown_identity",
                format!("the [[psk]] section of {} is gone", request.identity),
                "put it back, or stop the client".to_owned(),
            )
        })?;
        let client = Some(request.remote.ip().to_canonical());
        let access = peer.holder(|holder| self.authority.authorise_holder(holder, client, now()));
        self.grant_lease(&access.map_err(|error| context.access(&error))?, context)
    }

    /// Whether the configuration still knows the shared key that a client's lease was opened with.
    fn is_still_shared(&self, lease: &Lease) -> bool {
        let keys = self.keys();
        keys.psk_of(lease).is_some_and(|peer| {
            peer.holder(|holder| self.authority.is_lease_of(lease, holder)).unwrap_or(false)
        })
    }

    /// Which site a peer claims to be: the one we connect to, or the one with that identity.
    fn site_of(&self, request: &VerifyPeer, context: &Context) -> Result<Option<Site>, Refusal> {
        let config = self.config.get();
        let Some(name) = &request.connection else {
            let claimed = |site: &&Site| identification(&site.id) == request.identity;
            return Ok(config.sites.iter().find(claimed).cloned());
        };
        let site = config.site(name).cloned().ok_or_else(|| {
            context.refuse(
                "unknown_site",
                format!("site {name} is not configured any more"),
                "nothing, if it was removed; else add it to the configuration".to_owned(),
            )
        })?;
        Ok(Some(site))
    }

    /// A site's lease. One that our own CA certified has the lease of its certificate; one that
    /// another certified gets a lease for this.
    fn grant_site(
        &self,
        site: &str,
        peer: &pki::VerifiedPeer,
        context: &Context,
    ) -> Result<Box<Grant>, Refusal> {
        let config = self.config.get();
        let foreign = config.site(site).is_some_and(|site| !site.anchors.is_empty());
        let (lease, deadline) = if foreign {
            let proved = pki::SitePeer {
                site,
                subject: &peer.subject,
                spki_sha256: &peer.spki_sha256,
                until: peer.not_after,
            };
            let lease = self.authority.site_lease(&proved, now());
            (lease.map_err(|error| context.access(&error))?, peer.not_after)
        } else {
            let access = self.authority.authorise(peer, now());
            let access = access.map_err(|error| context.access(&error))?;
            (access.lease, access.deadline)
        };
        let deadline = WallTime(deadline.micros());
        let grant = self.regrant(&lease, &policy::site_role(site), deadline).ok_or_else(|| {
            context.refuse(
                "unknown_site",
                format!("site {site} is not configured any more"),
                "nothing, if it was removed; else add it to the configuration".to_owned(),
            )
        })?;
        Ok(Box::new(grant))
    }

    /// The lease of a site that has proved that it knows the shared key. The key has no end, so the
    /// lease has one, which every new authentication moves.
    fn grant_shared(&self, request: &Authorise, context: &Context) -> Result<Box<Grant>, Refusal> {
        let config = self.config.get();
        let known =
            |site: &&Site| site.psk.is_some() && identification(&site.id) == request.identity;
        let unknown = || {
            context.refuse(
                "unknown_site",
                format!("no site shares a key with {} any more", request.identity),
                "nothing, if it was removed; else add it to the configuration".to_owned(),
            )
        };
        let site = config.sites.iter().find(known).ok_or_else(unknown)?;
        let until = now().plus(SHARED_KEY_LIFE);
        let proved = pki::SitePeer { site: &site.name, subject: &site.id, spki_sha256: "", until };
        let lease = self.authority.site_lease(&proved, now());
        let lease = lease.map_err(|error| context.access(&error))?;
        let deadline = WallTime(until.micros());
        self.regrant(&lease, &policy::site_role(&site.name), deadline)
            .map(Box::new)
            .ok_or_else(unknown)
    }

    /// What a lease grants under the configuration in force, to a client of a role or to a site;
    /// `None` when role, pool or site are not configured, or the shared key is not that a client's
    /// lease was opened with.
    pub fn regrant(&self, lease: &Lease, role: &str, deadline: WallTime) -> Option<Grant> {
        let config = self.config.get();
        if let Some(site) = policy::site_of_role(role) {
            let site = config.site(site)?;
            let id = LeaseId(lease.id.clone());
            return Some(Grant {
                reqid: self.registry.reqid(&id),
                lease: id,
                role: role.to_owned(),
                addresses: Vec::new(),
                dns: Vec::new(),
                allowed: policy::selectors(&site.local),
                networks: policy::selectors(&site.networks),
                deadline,
                unique: UniquePolicy::Replace,
            });
        }
        let holds = match lease.door.as_str() {
            KeyHolder::DOOR => self.is_still_shared(lease),
            KeyHolder::EXTERNAL => self.is_still_matched(lease),
            _ => true,
        };
        if !holds {
            return None;
        }
        let (role, pool) = (config.role(&lease.role)?, config.pool(&lease.pool)?);
        let id = LeaseId(lease.id.clone());
        Some(Grant {
            reqid: self.registry.reqid(&id),
            lease: id,
            role: lease.role.clone(),
            addresses: lease.addresses.clone(),
            dns: pool.dns.clone(),
            allowed: policy::allowed_selectors(role, pool),
            networks: Vec::new(),
            deadline,
            unique: UniquePolicy::Replace,
        })
    }
}

/// Who a refusal is about.
struct Context {
    ike: Option<IkeSaId>,
    remote: Option<SocketAddr>,
    identity: Option<Identification>,
}

impl Context {
    fn of(request: &Authorise) -> Self {
        Self {
            ike: Some(request.ike),
            remote: Some(request.remote),
            identity: Some(request.identity.clone()),
        }
    }

    fn of_eap(request: &EapTlsRequest) -> Self {
        Self {
            ike: Some(request.ike),
            remote: Some(request.remote),
            identity: Some(request.identity.clone()),
        }
    }

    fn refuse(&self, code: &'static str, what: String, fix: String) -> Refusal {
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

    fn peer(&self, error: &PeerError) -> Refusal {
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

    fn access(&self, error: &AccessError) -> Refusal {
        let code = match error {
            AccessError::NoLease { .. } => "no_lease",
            AccessError::Revoked { .. } | AccessError::HolderRevoked { .. } => "revoked",
            AccessError::Failed(pki::Error::PoolExhausted { .. }) => "pool_exhausted",
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

/// A checked peer in the engine's words.
fn verified_peer(
    identity: &Identification,
    peer: &pki::VerifiedPeer,
    context: &Context,
) -> Result<VerifiedPeer, Refusal> {
    let issuer = issuer_name(&peer.certificate).ok_or_else(|| {
        context.refuse(
            "certificate_malformed",
            format!("certificate {} does not parse", peer.subject),
            "enrol again".to_owned(),
        )
    })?;
    Ok(VerifiedPeer {
        identity: display_identity(identity, &peer.subject),
        proof: PeerProof::Certificate {
            issuer,
            serial: peer.serial.as_bytes().to_vec(),
            not_after: WallTime(peer.not_after.micros()),
        },
    })
}

fn display_identity(identity: &Identification, subject: &str) -> String {
    match identity.as_text() {
        Some(_) => identity.to_string(),
        None if identity.as_address().is_some() => identity.to_string(),
        None => subject.to_owned(),
    }
}

fn issuer_name(certificate: &[u8]) -> Option<Vec<u8>> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    Some(certificate.issuer().as_raw().to_vec())
}

/// A distinguished name in DER, as people write it.
pub fn distinguished_name(der: &[u8]) -> Option<String> {
    use x509_parser::prelude::FromDer;
    let (_, name) = x509_parser::x509::X509Name::from_der(der).ok()?;
    Some(name.to_string())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn now() -> UnixTime {
    UnixTime::from_micros(clock::wall().0)
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
