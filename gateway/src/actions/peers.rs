//! Who a peer is, and what it may have: the PKI's answers in the engine's words.

// A completion carries its refusal by value; boxing it here would only add a move.
#![allow(clippy::result_large_err)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};

use ike::crypto::CryptoProvider;
use ike::event::{Blame, Refusal};
use ike::io::{
    EapTlsRequest, Grant, IkeSaId, LeaseId, PeerProof, UniquePolicy, VerifiedPeer, VerifyPeer,
};
use ike::time::WallTime;
use ike::wire::{Identification, NotifyType};
use pki::{Authority, IkeId, KeyHolder, Lease, UnixTime};

use super::PeerKeys;
use super::externals::{ExternalPeer, Externals};
use crate::lease::{LeaseEnder, LeaseRegistry};
use crate::live::LiveConfig;
use crate::policy;
use crate::revocation::RevocationChecks;
use crate::sys::clock;
use context::Context;
use proof::{Known, Proof, Terms};

mod context;
mod external;
mod proof;
mod shared;
mod site;

pub use proof::Decision;

/// Verifies and authorises peers.
#[derive(Debug)]
pub struct Peers {
    authority: Arc<Authority>,
    registry: Arc<LeaseRegistry>,
    config: LiveConfig,
    keys: RwLock<Arc<PeerKeys>>,
    provider: &'static CryptoProvider,
    externals: RwLock<Arc<Externals>>,
    checks: OnceLock<(RevocationChecks, LeaseEnder)>,
    /// The certificates behind live leases of external CAs.
    live: Mutex<BTreeMap<String, ExternalPeer>>,
    /// Verified, not yet authorised: the engine carries a digest of this between the two.
    verified: Mutex<BTreeMap<IkeSaId, Proof>>,
    /// How often the configuration was replaced.
    generation: AtomicU64,
}

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
            generation: AtomicU64::new(0),
        }
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
            Ok((proof, answer)) if proof.is_settled() => {
                self.remember(request.ike, proof);
                done(Ok(answer));
            }
            Ok((proof, answer)) => self.look_into(request, proof, answer, context, done),
        }
    }

    /// Chain, identity and signature.
    fn prove(
        &self,
        request: &VerifyPeer,
        context: &Context,
    ) -> Result<(Proof, Box<VerifiedPeer>), Refusal> {
        let generation = self.generation();
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
        let terms = Terms::Certificate(Box::new(Known { peer, site, external }));
        Ok((Proof { generation, terms }, Box::new(answer)))
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
        let generation = self.generation();
        let id = IkeId { kind: request.identity.id_type.value(), data: &request.identity.data };
        let peer = self
            .authority
            .verify_peer(chain, Some(id), now())
            .map_err(|error| context.peer(&error))?;
        let answer = verified_peer(&request.identity, &peer, &context)?;
        let terms = Terms::Certificate(Box::new(Known { peer, site: None, external: None }));
        self.remember(request.ike, Proof { generation, terms });
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

    fn remember(&self, ike: IkeSaId, proof: Proof) {
        let mut verified = lock(&self.verified);
        verified.insert(ike, proof);
        if verified.len() > WAITING {
            verified.pop_first();
        }
    }

    fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
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

    /// The request id of a lease that has, or had, a tunnel.
    pub fn known_reqid(&self, lease: &LeaseId) -> Option<u32> {
        self.registry.known_reqid(lease)
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
                transport: site.transport,
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
            transport: false,
            deadline,
            unique: UniquePolicy::Replace,
        })
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn now() -> UnixTime {
    UnixTime::from_micros(clock::wall().0)
}
