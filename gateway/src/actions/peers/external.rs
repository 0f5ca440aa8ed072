//! Peers with certificates of external CAs: which CA, which role, which lease, and whether the
//! certificates still hold.

use std::sync::{Arc, Mutex, PoisonError};

use ike::event::Refusal;
use ike::io::{Authorise, IkeSaId, VerifiedPeer, VerifyPeer};
use pki::validate::PeerError;
use pki::{Access, AccessError, Actor, IkeId, KeyHolder, Lease};

use super::context::Context;
use super::proof::{Proof, Terms};
use super::{ExternalPeer, Externals, Peers, lock, now};
use crate::admin::proto::Selector;
use crate::lease::{EndError, LeaseEnder};
use crate::revocation::{RevocationChecks, Verdict};

impl Peers {
    /// Replaces the external CAs. Tunnels of others end with [`Peers::regrant`].
    pub fn replace_externals(&self, externals: Externals) {
        *self.externals.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(externals);
    }

    /// Who asks for the standing of external certificates, and who ends the leases of revoked ones;
    /// set once.
    pub fn check_with(&self, checks: RevocationChecks, ender: LeaseEnder) {
        let _ = self.checks.set((checks, ender));
    }

    /// The external CAs.
    pub fn externals(&self) -> Arc<Externals> {
        Arc::clone(&self.externals.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Asks again whether the certificates of external CAs with live tunnels are still good, and
    /// ends the tunnels of those that are not.
    pub fn recheck_externals(&self) {
        let Some((checks, ender)) = self.checks.get() else { return };
        let live = self.live_externals().into_iter();
        let peers = live.map(|(lease, peer)| ((lease, peer.ca), peer.sources, peer.peer.path));
        let ender = ender.clone();
        checks.recheck(peers.collect(), move |(lease, ca), what| {
            end_revoked(&ender, lease, &ca, &what);
        });
    }

    /// Leases of external certificates that are live, with the certificates.
    fn live_externals(&self) -> Vec<(String, ExternalPeer)> {
        let all = lock(&self.live).clone();
        let (live, ended): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|(id, _)| self.may_live(id));
        let mut kept = lock(&self.live);
        for (id, _) in &ended {
            kept.remove(id);
        }
        live
    }

    /// The chain up to our own root, or else to one of the external CAs.
    pub(super) fn validate(
        &self,
        chain: &[Vec<u8>],
        id: IkeId<'_>,
    ) -> Result<(pki::VerifiedPeer, Option<ExternalPeer>), PeerError> {
        let ours = match self.authority.verify_peer(chain, Some(id), now()) {
            Ok(peer) => return Ok((peer, None)),
            Err(error) => error,
        };
        let externals = self.externals();
        if externals.is_empty() || !matches!(ours, PeerError::UnknownIssuer { .. }) {
            return Err(ours);
        }
        match (externals.verify(chain, id, now()), ours) {
            (Ok(external), _) => Ok((external.peer.clone(), Some(external))),
            (
                Err(PeerError::UnknownIssuer { subject, issuer, trusted }),
                PeerError::UnknownIssuer { trusted: own, .. },
            ) => {
                let trusted = format!("{own}; {trusted}");
                Err(PeerError::UnknownIssuer { subject, issuer, trusted })
            }
            (Err(error), _) => Err(error),
        }
    }

    /// The rest of [`Peers::verify`] for an external certificate: it must have a role, and its
    /// standing must be tolerable.
    pub(super) fn look_into(
        self: &Arc<Self>,
        request: &VerifyPeer,
        proof: Proof,
        answer: Box<VerifiedPeer>,
        context: Context,
        done: impl FnOnce(Result<Box<VerifiedPeer>, Refusal>) + Send + 'static,
    ) {
        let busy = self.busy(Some(request.ike), Some(request.remote));
        let external = match &proof.terms {
            Terms::Certificate(known) => known.external.as_ref(),
            Terms::SharedKey(_) => None,
        };
        let (Some(external), Some((checks, ender))) = (external, self.checks.get()) else {
            return done(Err(busy));
        };
        if external.role.is_none() {
            return done(Err(context.refuse(
                "no_role",
                format!(
                    "certificate {} of ca \"{}\" matches no role",
                    external.peer.subject, external.ca
                ),
                "add a [[role.match]] that fits it, or let the client use another certificate"
                    .to_owned(),
            )));
        }
        let (sources, path) = (external.sources.clone(), external.peer.path.clone());
        let (ike, peers, ender) = (request.ike, Arc::clone(self), ender.clone());
        let (ca, certificate) = (external.ca.clone(), external.peer.certificate.clone());
        // Whichever of the two comes first takes it.
        let done = Arc::new(Mutex::new(Some(done)));
        let later = Arc::clone(&done);
        let accepted = checks.check(sources, &path, request.ocsp.clone(), move |verdict| {
            let Some(done) = lock(&later).take() else { return };
            if let Verdict::Revoked(what) = &verdict {
                // A peer that authenticates again: what it has goes on for no moment longer.
                for lease in peers.leases_of(&ca, &certificate) {
                    end_revoked(&ender, lease, &ca, what);
                }
            }
            done(peers.judge(ike, proof, answer, verdict, &context));
        });
        if !accepted && let Some(done) = lock(&done).take() {
            done(Err(busy));
        }
    }

    /// Whether a lease is live; one of which the store can say nothing now is looked into, too.
    fn may_live(&self, lease: &str) -> bool {
        match self.authority.lease(lease) {
            Ok(lease) => lease.is_some_and(|lease| lease.state.is_live()),
            Err(_) => true,
        }
    }

    /// Live leases opened with a certificate of a CA.
    fn leases_of(&self, ca: &str, certificate: &[u8]) -> Vec<String> {
        let same = |peer: &ExternalPeer| peer.ca == ca && peer.peer.certificate == certificate;
        let found: Vec<String> = {
            let known = lock(&self.live);
            known.iter().filter(|(_, peer)| same(peer)).map(|(lease, _)| lease.clone()).collect()
        };
        found.into_iter().filter(|lease| self.may_live(lease)).collect()
    }

    /// What the standing of an external peer's certificates means for it.
    fn judge(
        &self,
        ike: IkeSaId,
        proof: Proof,
        answer: Box<VerifiedPeer>,
        verdict: Verdict,
        context: &Context,
    ) -> Result<Box<VerifiedPeer>, Refusal> {
        match verdict {
            Verdict::Good(unknown) => {
                if let Some(unknown) = unknown {
                    tracing::info!(ike = ike.0, %unknown, "standing unknown, which is tolerated");
                }
                self.remember(ike, proof);
                Ok(answer)
            }
            Verdict::Revoked(what) => Err(context.refuse(
                "certificate_revoked",
                what,
                "get another certificate from that CA".to_owned(),
            )),
            Verdict::Unknown(what) => Err(context.refuse(
                "certificate_status_unknown",
                format!("nobody says that the certificate is good: {what}"),
                "make a responder or a list reachable from the gateway, or set \
                 revocation = \"soft\" for this [[ca]]"
                    .to_owned(),
            )),
        }
    }

    /// The lease of a certificate of an external CA: found again by CA, issuer and serial number,
    /// opened at the first connection.
    pub(super) fn authorise_external(
        &self,
        request: &Authorise,
        external: &ExternalPeer,
    ) -> Result<Access, AccessError> {
        let peer = &external.peer;
        // The name of the issuer alone would let one CA speak for another of the same name.
        let anchor = peer.path.last().map(Vec::as_slice).unwrap_or_default();
        let holder = KeyHolder {
            id: IkeId {
                kind: 0,
                data: &[anchor, peer.issuer_id.as_bytes(), peer.serial.as_bytes()].concat(),
            },
            name: &peer.subject,
            role: external.role.as_deref().unwrap_or_default(),
            key: &peer.spki,
            door: KeyHolder::EXTERNAL,
        };
        let client = Some(request.remote.ip().to_canonical());
        let mut access = self.authority.authorise_holder(&holder, client, now())?;
        access.deadline = access.deadline.min(peer.not_after);
        lock(&self.live).insert(access.lease.id.clone(), external.clone());
        Ok(access)
    }

    /// Whether the configuration still gives the certificate behind a lease its role.
    pub(super) fn is_still_matched(&self, lease: &Lease) -> bool {
        let externals = self.externals();
        lock(&self.live).get(&lease.id).is_some_and(|external| {
            let role = externals.role(&external.ca, &external.peer.certificate);
            externals.knows(&external.ca, external.peer.path.last())
                && role.as_ref() == Some(&lease.role)
        })
    }
}

/// Ends the lease of a revoked certificate, on a thread that may wait for the store and the data
/// plane.
fn end_revoked(ender: &LeaseEnder, lease: String, ca: &str, what: &str) {
    tracing::warn!(%lease, %ca, "{what}: its lease ends");
    let ender = ender.clone();
    drop(tokio::task::spawn_blocking(move || {
        let selector = Selector::Id(lease.clone());
        match ender.revoke(&selector, "unspecified", &Actor::System) {
            // A check beside this one may have been faster.
            Ok(_) | Err(EndError::NoMatch(_)) => {}
            Err(error) => tracing::error!(%lease, %error, "tunnel of a revoked certificate"),
        }
    }));
}
