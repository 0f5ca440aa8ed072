//! Executes what the engine wants done and cannot do itself.
//!
//! Cheap key exchanges run where they are asked for; signatures, validation and authorisation run
//! on a few worker threads; everything about packets runs on the data plane's thread, in the
//! order it was asked for.

mod eap;
mod externals;
mod keys;
mod peers;
mod plane;
mod translate;
mod workers;

use std::sync::Arc;

use ike::crypto::{CryptoProvider, KexExecutor, KexOutcome, KexRequest};
use ike::io::{Action, Completion, CredentialId, Token};
use ike::wire::KeMethod;

pub use eap::EapServer;
pub use externals::{ExternalPeer, Externals, spki_sha1};
pub use keys::PeerKeys;
pub use peers::{Decision, Peers};
pub use plane::{Confirmation, PlaneHandle, PlaneThread, report};
pub use translate::suite as plane_suite;
pub use workers::{Rank, Workers};

use crate::driver::{EngineHandle, Message};

/// Signs with the gateway's keys.
pub trait Signers: Send + Sync + std::fmt::Debug {
    /// Signs `message` with a credential's key; ECDSA results are DER.
    ///
    /// # Errors
    /// One sentence.
    fn sign(
        &self,
        credential: CredentialId,
        scheme: ike::crypto::SignatureScheme,
        message: &[u8],
    ) -> Result<Vec<u8>, String>;
}

/// Hands each action to whoever executes it. Lives on the engine's thread.
#[derive(Debug)]
pub struct Dispatcher {
    provider: &'static CryptoProvider,
    kex: KexExecutor,
    workers: Arc<Workers>,
    plane: PlaneHandle,
    peers: Arc<Peers>,
    eap: EapServer,
    signers: Arc<dyn Signers>,
    engine: EngineHandle,
}

impl Dispatcher {
    /// A dispatcher for one engine.
    pub fn new(
        provider: &'static CryptoProvider,
        workers: Arc<Workers>,
        plane: PlaneHandle,
        peers: Arc<Peers>,
        eap: EapServer,
        signers: Arc<dyn Signers>,
        engine: EngineHandle,
    ) -> Self {
        let kex = KexExecutor::new(provider);
        Self { provider, kex, workers, plane, peers, eap, signers, engine }
    }

    /// Every child of an earlier process that goes on has been dispatched.
    pub fn adopted(&self) {
        self.plane.adopted();
    }

    /// Executes or hands on. A completion that is ready at once is returned. Work for a stranger
    /// waits behind all other, and is refused first.
    pub fn dispatch(&mut self, token: Token, action: Action, stranger: bool) -> Option<Completion> {
        match action {
            Action::KeyExchange(request) => {
                let rank = if stranger { Rank::Stranger } else { Rank::Peer };
                self.key_exchange(token, request, rank)
            }
            Action::Sign { credential, scheme, message } => {
                let signers = Arc::clone(&self.signers);
                self.work(Completion::Sign(Err(BUSY.to_owned())), move || {
                    Message::Completion(
                        token,
                        Completion::Sign(signers.sign(credential, scheme, &message)),
                    )
                })
            }
            Action::VerifyPeer(request) => {
                let (peers, engine) = (Arc::clone(&self.peers), self.engine.clone());
                let refusal = peers.busy(Some(request.ike), Some(request.remote));
                let ours = request.connection.is_some();
                let rank = if ours { Rank::Peer } else { Rank::Claimant };
                // The answer may wait for others; this worker does not.
                let job = move || {
                    peers.verify(&request, move |result| {
                        engine.post(Message::Completion(token, Completion::VerifyPeer(result)));
                    });
                };
                let accepted = self.workers.submit(rank, Box::new(job));
                if accepted { None } else { Some(Completion::VerifyPeer(Err(refusal))) }
            }
            Action::SharedKey(request) => {
                Some(Completion::SharedKey(self.peers.shared_key(&request)))
            }
            Action::Ppk(request) => Some(Completion::Ppk(self.peers.ppk(&request))),
            Action::EapTls(request) => self.eap.submit(request, token, &self.engine),
            Action::Authorise(request) => {
                let peers = Arc::clone(&self.peers);
                let refusal = peers.busy(Some(request.ike), Some(request.remote));
                self.work(Completion::Authorise(Err(refusal)), move || {
                    let decision = peers.authorise(&request);
                    Message::Authorised { token, request, decision: Box::new(decision) }
                })
            }
            Action::SolvePuzzle(puzzle) => {
                let provider = self.provider;
                self.work(Completion::SolvePuzzle(Err(BUSY.to_owned())), move || {
                    Message::Completion(token, Completion::SolvePuzzle(puzzle.solve(provider)))
                })
            }
            Action::AllocSpi
            | Action::InstallChild(_)
            | Action::ActivateChild(_)
            | Action::UpdateHosts { .. }
            | Action::RemoveChild { .. }
            | Action::QueryUse(_) => {
                self.plane.action(token, action);
                None
            }
        }
    }

    /// Takes back what a worker computed for a key exchange.
    pub fn absorb(&mut self, outcome: KexOutcome) -> Completion {
        Completion::KeyExchange(Ok(self.kex.absorb(outcome)))
    }

    /// Private halves held: zero when no handshake is under way.
    pub fn pending_key_exchanges(&self) -> usize {
        self.kex.pending()
    }

    fn key_exchange(
        &mut self,
        token: Token,
        request: KexRequest,
        rank: Rank,
    ) -> Option<Completion> {
        if is_cheap(&request) {
            return Some(Completion::KeyExchange(Ok(self.kex.execute(request))));
        }
        let handle = request.handle();
        let job = self.kex.prepare(request);
        let engine = self.engine.clone();
        let run = move || engine.post(Message::KeyExchanged(token, job.run()));
        let accepted = self.workers.submit(rank, Box::new(run));
        if accepted {
            return None;
        }
        self.kex.execute(KexRequest::Drop { handle });
        Some(Completion::KeyExchange(Err(BUSY.to_owned())))
    }

    fn work(
        &self,
        busy: Completion,
        job: impl FnOnce() -> Message + Send + 'static,
    ) -> Option<Completion> {
        let engine = self.engine.clone();
        let accepted = self.workers.submit(Rank::Peer, Box::new(move || engine.post(job())));
        if accepted { None } else { Some(busy) }
    }
}

const BUSY: &str = "the gateway has more handshakes under way than it can work on";

/// Elliptic curves cost tens of microseconds, less than two thread switches under load; MODP and
/// the key encapsulations go to the workers. The group of an `Agree` shows in the public value's
/// length: no curve's exceeds that of P-521.
fn is_cheap(request: &KexRequest) -> bool {
    const P521_POINT: usize = 132;
    match request {
        KexRequest::Drop { .. } => true,
        KexRequest::Generate { group, .. } => matches!(
            *group,
            KeMethod::Curve25519 | KeMethod::Ecp256 | KeMethod::Ecp384 | KeMethod::Ecp521
        ),
        KexRequest::Agree { peer_public, .. } => peer_public.len() <= P521_POINT,
        KexRequest::Encapsulate { .. } => false,
    }
}
