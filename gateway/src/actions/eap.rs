//! The TLS server of EAP-TLS (RFC 5216, RFC 9190), on one thread of its own.
//!
//! A conversation is a TLS connection without a socket. What strangers can make it hold is bounded:
//! conversations in number and time, and each by the TLS library's own limit on a handshake's
//! messages. A slow or hostile one delays other conversations, never another handshake.

// A completion carries its refusal by value; boxing it here would only add a move.
#![allow(clippy::result_large_err)]

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ike::SaRole;
use ike::crypto::SecretBytes;
use ike::event::Refusal;
use ike::io::{Completion, EapTlsAnswer, EapTlsDone, EapTlsRequest, IkeSaId, Token};
use rustls::{AlertDescription, Error, ProtocolVersion, ServerConfig, ServerConnection};

use super::{Peers, Rank, Workers};
use crate::driver::{EngineHandle, Message};

/// Conversations at most. Each holds some tens of kilobytes.
const CONVERSATIONS: usize = 512;

/// Life of a conversation: that of a half-open IKE SA.
const LIFE: Duration = Duration::from_secs(30);

/// Octets of the master session key (RFC 5216 2.3).
const MSK_LEN: usize = 64;

/// EAP's number for TLS (RFC 5216 3.1).
const EAP_TLS: u8 = 13;

/// See the module.
pub struct EapServer {
    worker: Workers,
    table: Arc<Table>,
}

impl std::fmt::Debug for EapServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EapServer").finish_non_exhaustive()
    }
}

struct Table {
    config: Arc<ServerConfig>,
    peers: Arc<Peers>,
    conversations: Mutex<BTreeMap<IkeSaId, Conversation>>,
}

struct Conversation {
    tls: ServerConnection,
    since: Instant,
}

impl EapServer {
    /// A server with the gateway's certificate.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(config: Arc<ServerConfig>, peers: Arc<Peers>) -> std::io::Result<Self> {
        let table = Table { config, peers, conversations: Mutex::default() };
        Ok(Self { worker: Workers::start(1)?, table: Arc::new(table) })
    }

    /// Gives a peer's messages to the TLS, on the caller's thread.
    ///
    /// # Errors
    /// The refusal, explained.
    pub fn answer(&self, request: &EapTlsRequest) -> Result<Box<EapTlsAnswer>, Refusal> {
        self.table.answer(request)
    }

    /// Hands a peer's messages to the TLS; the answer goes to the engine.
    pub(super) fn submit(
        &self,
        request: Box<EapTlsRequest>,
        token: Token,
        engine: &EngineHandle,
    ) -> Option<Completion> {
        let busy = self.table.peers.busy(Some(request.ike), Some(request.remote));
        let (table, engine) = (Arc::clone(&self.table), engine.clone());
        let accepted = self.worker.submit(
            Rank::Stranger,
            Box::new(move || {
                let answer = Completion::EapTls(table.answer(&request));
                engine.post(Message::Completion(token, answer));
            }),
        );
        if accepted { None } else { Some(Completion::EapTls(Err(busy))) }
    }
}

impl Table {
    fn answer(&self, request: &EapTlsRequest) -> Result<Box<EapTlsAnswer>, Refusal> {
        if request.role != SaRole::Responder {
            let what = "this gateway does not authenticate itself with EAP-TLS".to_owned();
            let fix = "authenticate with a certificate or a shared key";
            return Err(self.peers.refuse_eap(request, "eap_tls", what, fix));
        }
        let mut conversation = self.take(request)?;
        let tls = &mut conversation.tls;
        feed(tls, &request.data).map_err(|error| self.failed(request, &error))?;
        let mut send = Vec::new();
        flush(tls, &mut send);
        if tls.is_handshaking() {
            self.conversations().insert(request.ike, conversation);
            return Ok(Box::new(EapTlsAnswer { send, done: None }));
        }
        let chain: Vec<Vec<u8>> = tls
            .peer_certificates()
            .unwrap_or_default()
            .iter()
            .map(|certificate| certificate.to_vec())
            .collect();
        let peer = self.peers.verify_eap(request, &chain)?;
        let msk = master_session_key(tls).map_err(|error| self.failed(request, &error))?;
        if tls.protocol_version() == Some(ProtocolVersion::TLSv1_3) {
            // RFC 9190 2.5: one octet of zero says that the handshake is over.
            let _ = tls.writer().write_all(&[0]);
            flush(tls, &mut send);
        }
        let done = Some(EapTlsDone { msk, peer });
        Ok(Box::new(EapTlsAnswer { send, done }))
    }

    /// The conversation of an IKE SA, or a new one.
    fn take(&self, request: &EapTlsRequest) -> Result<Conversation, Refusal> {
        let mut conversations = self.conversations();
        conversations.retain(|_, conversation| conversation.since.elapsed() < LIFE);
        if let Some(conversation) = conversations.remove(&request.ike) {
            return Ok(conversation);
        }
        if conversations.len() >= CONVERSATIONS {
            return Err(self.peers.busy(Some(request.ike), Some(request.remote)));
        }
        let tls = ServerConnection::new(Arc::clone(&self.config))
            .map_err(|error| self.failed(request, &error))?;
        Ok(Conversation { tls, since: Instant::now() })
    }

    fn failed(&self, request: &EapTlsRequest, error: &Error) -> Refusal {
        let fix = match error {
            Error::AlertReceived(
                AlertDescription::UnknownCA
                | AlertDescription::BadCertificate
                | AlertDescription::CertificateUnknown
                | AlertDescription::AccessDenied,
            ) => {
                "the client does not accept the gateway's certificate: give it the root \
                 (`runnel ca root`), and let it expect the gateway's id (strongSwan: `id` or \
                 `aaa_id` in `remote`)"
            }
            Error::NoCertificatesPresented => {
                "let the client send its certificate (strongSwan: `certs` in `local`)"
            }
            _ => "compare the TLS versions and algorithms of both sides: 1.2 or 1.3, with ECDHE",
        };
        let what = format!("the TLS handshake of EAP-TLS failed: {error}");
        self.peers.refuse_eap(request, "eap_tls", what, fix)
    }

    fn conversations(&self) -> std::sync::MutexGuard<'_, BTreeMap<IkeSaId, Conversation>> {
        self.conversations.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn feed(tls: &mut ServerConnection, mut data: &[u8]) -> Result<(), Error> {
    while !data.is_empty() {
        match tls.read_tls(&mut data) {
            Ok(0) => return Err(Error::General("data after the end".to_owned())),
            Ok(_) => {
                tls.process_new_packets()?;
            }
            Err(error) => return Err(Error::General(error.to_string())),
        }
    }
    Ok(())
}

fn flush(tls: &mut ServerConnection, out: &mut Vec<u8>) {
    while tls.wants_write() {
        // Writing to memory does not fail.
        if !tls.write_tls(out).is_ok_and(|written| written > 0) {
            return;
        }
    }
}

/// The key that AUTH is made with.
fn master_session_key(tls: &ServerConnection) -> Result<SecretBytes, Error> {
    let (label, context): (&[u8], Option<&[u8]>) = match tls.protocol_version() {
        // RFC 9190 2.3
        Some(ProtocolVersion::TLSv1_3) => (b"EXPORTER_EAP_TLS_Key_Material", Some(&[EAP_TLS])),
        // RFC 5216 2.3
        _ => (b"client EAP encryption", None),
    };
    // MSK and EMSK; an exporter's output depends on its length in TLS 1.3 (RFC 8446 7.5).
    let material =
        zeroize::Zeroizing::new(tls.export_keying_material([0; 2 * MSK_LEN], label, context)?);
    Ok(SecretBytes::copy_from(material.get(..MSK_LEN).unwrap_or_default()))
}
