//! One engine and all that carries out its actions.

use std::collections::BTreeMap;
use std::time::Duration;

use ike::config::EngineConfig;
use ike::crypto::{CryptoProvider, KexExecutor, KexResponse, SecretBytes, Signer};
use ike::event::{CloseReason, Event, Refusal};
use ike::io::{
    Action, ChildSaId, ChildUse, Completion, EapTlsAnswer, EapTlsDone, EapTlsRequest, Grant,
    IkeSaId, Input, InstallChild, Output, PeerProof, SharedKey, SharedKeyRequest, Token,
    VerifiedPeer, VerifyPeer,
};
use ike::snapshot::Snapshot;
use ike::wire::Identification;
use ike::{Engine, IkeSaView, Now, SaRole, SaState, WallTime};

use super::{Key, Side};

/// One engine with everything around it.
pub struct Peer {
    pub side: Side,
    pub engine: Engine,
    pub config: EngineConfig,
    pub(super) crypto: &'static CryptoProvider,
    pub(super) seed: [u8; 32],
    pub(super) kex: KexExecutor,
    pub(super) key: Key,
    /// The keys shared with peers, by identity.
    pub shared_keys: BTreeMap<Identification, SharedKey>,
    /// Post-quantum preshared keys, by name.
    pub ppks: BTreeMap<Vec<u8>, SecretBytes>,
    /// What Authorise answers; `None` refuses.
    pub grant: Option<Grant>,
    /// Another key than the server's, as the client of EAP-TLS.
    pub msk: Option<SecretBytes>,
    /// Actions to be kept back.
    pub hold: fn(&Action) -> bool,
    pub held: Vec<(Token, Action)>,
    /// Actions that are done at once and answered later.
    pub late: fn(&Action) -> bool,
    pub answers: Vec<(Token, Completion)>,
    /// Child SAs installed.
    pub plane: BTreeMap<ChildSaId, InstallChild>,
    /// How long ago ESP came in, as the data plane says.
    pub idle_in: Option<Duration>,
    /// What was asked to be removed, in order.
    pub removed: Vec<(ChildSaId, bool)>,
    pub activated: Vec<ChildSaId>,
    /// The child that packets leave through.
    pub sending: Option<ChildSaId>,
    pub events: Vec<Event>,
    /// Everything that came out, in order.
    pub outputs: Vec<Output>,
    /// Everything that went in, for replay.
    pub inputs: Vec<(Now, Input)>,
    pub snapshots: BTreeMap<IkeSaId, Snapshot>,
    next_spi: u32,
}

impl Peer {
    pub(super) fn new(
        side: Side,
        crypto: &'static CryptoProvider,
        config: EngineConfig,
        key: Key,
        seed: u8,
        now: Now,
    ) -> Self {
        let seed = [seed; 32];
        Self {
            side,
            engine: Engine::new(config.clone(), crypto, seed, now).unwrap(),
            config,
            crypto,
            seed,
            kex: KexExecutor::new(crypto),
            key,
            shared_keys: BTreeMap::new(),
            ppks: BTreeMap::new(),
            grant: None,
            msk: None,
            hold: |_| false,
            held: Vec::new(),
            late: |_| false,
            answers: Vec::new(),
            plane: BTreeMap::new(),
            idle_in: None,
            removed: Vec::new(),
            activated: Vec::new(),
            sending: None,
            events: Vec::new(),
            outputs: Vec::new(),
            inputs: Vec::new(),
            snapshots: BTreeMap::new(),
            next_spi: match side {
                Side::Client => 0xc000_0001,
                Side::Server => 0x5000_0001,
            },
        }
    }

    /// The SPIs of inbound halves in the data plane.
    /// Private halves of key exchanges that are held.
    pub fn key_pairs(&self) -> usize {
        self.kex.pending()
    }

    pub fn inbound(&self) -> Vec<u32> {
        self.plane.values().map(|child| child.spi_in).collect()
    }

    /// The SPIs of outbound halves in the data plane.
    pub fn outbound(&self) -> Vec<u32> {
        self.plane.values().map(|child| child.spi_out).collect()
    }

    /// SAs that are neither closing nor only remembered.
    pub fn alive(&self) -> Vec<IkeSaView> {
        self.engine
            .sas()
            .filter(|sa| !matches!(sa.state, SaState::Closing | SaState::Lingering))
            .collect()
    }

    pub fn established(&self) -> Vec<IkeSaView> {
        self.engine.sas().filter(|sa| sa.state == SaState::Established).collect()
    }

    pub fn refusals(&self) -> Vec<&Refusal> {
        self.events
            .iter()
            .filter_map(|event| match event {
                Event::Refused(refusal) => Some(refusal),
                _ => None,
            })
            .collect()
    }

    /// The codes of what was refused, in order.
    pub fn codes(&self) -> Vec<&'static str> {
        self.refusals().iter().map(|refusal| refusal.code).collect()
    }

    /// Why IKE SAs ended, in order.
    pub fn ends(&self) -> Vec<CloseReason> {
        self.events
            .iter()
            .filter_map(|event| match event {
                Event::IkeDown { reason, .. } => Some(reason.clone()),
                _ => None,
            })
            .collect()
    }

    pub(super) fn answer(&mut self, now: Now, action: Action) -> Completion {
        match action {
            Action::KeyExchange(request) => {
                Completion::KeyExchange(Ok::<KexResponse, _>(self.kex.execute(request)))
            }
            Action::Sign { scheme, message, .. } => Completion::Sign(
                self.key.signer.sign(scheme, &message).map_err(|error| error.to_string()),
            ),
            Action::VerifyPeer(verify) => Completion::VerifyPeer(self.verify(now, &verify)),
            Action::SharedKey(request) => Completion::SharedKey(self.shared_key(&request)),
            Action::Ppk(request) => Completion::Ppk(match self.ppks.get(&request.id) {
                Some(key) => Ok(key.clone()),
                None => Err(refusal("unknown_ppk")),
            }),
            Action::EapTls(request) => Completion::EapTls(self.eap_tls(&request)),
            Action::Authorise(_) => Completion::Authorise(match &self.grant {
                Some(grant) => Ok(Box::new(grant.clone())),
                None => Err(refusal("no_lease")),
            }),
            Action::AllocSpi => {
                let spi = self.next_spi;
                self.next_spi += 1;
                Completion::AllocSpi(Ok(spi))
            }
            Action::InstallChild(child) => {
                if child.outbound_active {
                    self.sending = Some(child.child);
                }
                self.plane.insert(child.child, *child);
                Completion::InstallChild(Ok(()))
            }
            Action::ActivateChild(child) => {
                self.activated.push(child);
                self.sending = Some(child);
                Completion::ActivateChild(Ok(()))
            }
            Action::UpdateHosts { child, hosts } => {
                if let Some(child) = self.plane.get_mut(&child) {
                    child.hosts = hosts;
                }
                Completion::UpdateHosts(Ok(()))
            }
            Action::RemoveChild { child, last } => {
                self.plane.remove(&child);
                if self.sending == Some(child) {
                    self.sending = None;
                }
                self.removed.push((child, last));
                Completion::RemoveChild(Ok(ChildUse::default()))
            }
            Action::SolvePuzzle(puzzle) => Completion::SolvePuzzle(puzzle.solve(self.crypto)),
            Action::QueryUse(_) => {
                Completion::QueryUse(Ok(ChildUse { idle_in: self.idle_in, ..ChildUse::default() }))
            }
        }
    }

    fn shared_key(&self, request: &SharedKeyRequest) -> Result<Box<SharedKey>, Refusal> {
        let peer = request.peer.as_ref().ok_or_else(|| refusal("no_peer"))?;
        let found = self.shared_keys.get(peer).ok_or_else(|| refusal("unknown_identity"))?;
        Ok(Box::new(found.clone()))
    }

    /// Stands for a TLS server: `hello` is answered at length, `finished` proves the identity.
    fn eap_tls(&self, request: &EapTlsRequest) -> Result<Box<EapTlsAnswer>, Refusal> {
        if request.role == SaRole::Initiator {
            return self.eap_tls_client(request);
        }
        match request.data.as_slice() {
            b"hello" => Ok(Box::new(EapTlsAnswer { send: vec![0x16; 1500], done: None })),
            b"finished" => {
                let proof = PeerProof::Certificate {
                    issuer: b"test".to_vec(),
                    serial: vec![1],
                    not_after: WallTime(super::START + 3_600_000_000),
                };
                let peer = VerifiedPeer { identity: request.identity.to_string(), proof };
                let msk = SecretBytes::copy_from(super::MSK);
                let done = Some(EapTlsDone { msk, peer: Box::new(peer) });
                Ok(Box::new(EapTlsAnswer { send: b"finished too".to_vec(), done }))
            }
            b"silence" => Ok(Box::new(EapTlsAnswer { send: Vec::new(), done: None })),
            _ => Err(refusal("certificate_expired")),
        }
    }

    /// Stands for the TLS client that talks to that server.
    fn eap_tls_client(&self, request: &EapTlsRequest) -> Result<Box<EapTlsAnswer>, Refusal> {
        let say = |send: &[u8], done| Ok(Box::new(EapTlsAnswer { send: send.to_vec(), done }));
        match request.data.as_slice() {
            b"" => say(b"hello", None),
            b"finished too" => {
                let proof = PeerProof::Certificate {
                    issuer: b"tls".to_vec(),
                    serial: vec![2],
                    not_after: WallTime(super::START + 3_600_000_000),
                };
                let peer = VerifiedPeer { identity: request.identity.to_string(), proof };
                let msk = self.msk.clone().unwrap_or(SecretBytes::copy_from(super::MSK));
                say(b"", Some(EapTlsDone { msk, peer: Box::new(peer) }))
            }
            _ if request.data.len() == 1500 => say(b"finished", None),
            _ => Err(refusal("tls_client")),
        }
    }

    fn verify(&self, now: Now, verify: &VerifyPeer) -> Result<Box<VerifiedPeer>, Refusal> {
        let VerifyPeer { scheme, message, signature, certificates, .. } = verify;
        let spki = certificates.first().ok_or_else(|| refusal("no_certificate"))?;
        let result = if verify.rsa_classic {
            self.crypto.verify_rsa_classic(spki, message, signature)
        } else {
            self.crypto.verify(*scheme, spki, message, signature)
        };
        result.map_err(|_| refusal("bad_signature"))?;
        if verify.expected.as_ref().is_some_and(|expected| *expected != verify.identity) {
            return Err(refusal("identity_mismatch"));
        }
        Ok(Box::new(VerifiedPeer {
            identity: verify.identity.to_string(),
            proof: PeerProof::Certificate {
                issuer: b"test".to_vec(),
                serial: vec![1],
                not_after: WallTime(now.wall.0 + 3_600_000_000),
            },
        }))
    }
}

fn refusal(code: &'static str) -> Refusal {
    Refusal {
        ike: None,
        remote: None,
        identity: None,
        blame: ike::event::Blame::Incompatible,
        notify: Some(ike::wire::NotifyType::AuthenticationFailed),
        code,
        what: code.to_owned(),
        fix: String::new(),
    }
}
