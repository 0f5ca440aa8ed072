//! What stands for the TLS of EAP-TLS: three messages with names and numbers in them, and a key that
//! both ends make of what both have heard. The server's is long enough for fragments (RFC 5216
//! 2.1.5). Sometimes it fails, or the two ends come to different keys, as if somebody were between.
// The contract's own error type; one is made per refused handshake.
#![allow(clippy::result_large_err)]

use std::collections::BTreeMap;

use ike::crypto::SecretBytes;
use ike::event::Refusal;
use ike::io::{EapTlsAnswer, EapTlsDone, EapTlsRequest, IkeSaId, PeerProof, VerifiedPeer};
use ike::{Now, SaRole, Timestamp};

use super::crypto;
use super::proof::{self, FAR, refusal};
use super::rng::Rng;
use super::setup::identity;

/// A conversation that nobody goes on with is forgotten after so many microseconds: longer than a
/// half-open SA lives.
const LIFE: u64 = 60_000_000;

/// Octets of a server's certificates, more than an EAP packet of ours holds.
const CERTIFICATES: usize = 2500;

/// Domain of the key.
const MSK: u64 = 0x6e;

/// What both ends have said so far.
#[derive(Debug)]
struct Conversation {
    since: Timestamp,
    transcript: Vec<u8>,
}

/// One host's TLS.
#[derive(Debug)]
pub struct Tls {
    conversations: BTreeMap<IkeSaId, Conversation>,
    rng: Rng,
    /// So many steps in a hundred go wrong.
    pub faults: u64,
}

impl Tls {
    /// The TLS of a host.
    pub fn new(seed: [u8; 32]) -> Self {
        let seed = seed.first_chunk().map_or(0, |octets| u64::from_le_bytes(*octets));
        Self { conversations: BTreeMap::new(), rng: Rng::new(seed, 0x715), faults: 0 }
    }

    /// The process has ended.
    pub fn forget(&mut self) {
        self.conversations.clear();
    }

    /// The next message of a host, and the end when it has come.
    ///
    /// # Errors
    /// When the peer's is not what is due, or something goes wrong here.
    pub fn answer(
        &mut self,
        now: Now,
        own: &str,
        request: &EapTlsRequest,
    ) -> Result<Box<EapTlsAnswer>, Refusal> {
        let refuse = || refusal("tls", request.ike, request.remote, Some(&request.identity));
        self.conversations.retain(|_, old| now.mono.0 < old.since.0 + LIFE);
        let found = self.conversations.remove(&request.ike);
        if self.rng.chance(self.faults) {
            return Err(refuse());
        }
        let begun = || Conversation { since: now.mono, transcript: Vec::new() };
        let mut conversation = found.unwrap_or_else(begun);
        let transcript = &mut conversation.transcript;
        let first = transcript.is_empty();
        transcript.extend_from_slice(&request.data);
        let (send, complete) = match (request.role, first) {
            // ClientHello
            (SaRole::Initiator, true) if request.data.is_empty() => {
                ([b"hello".as_slice(), &self.rng.bytes()].concat(), false)
            }
            // ServerHello, Certificate, CertificateRequest
            (SaRole::Responder, true) if request.data.starts_with(b"hello") => {
                let mut hello = shown(own, &self.rng.bytes(), b"");
                hello.resize(CERTIFICATES, 0);
                (hello, false)
            }
            // Certificate, CertificateVerify, Finished
            (SaRole::Initiator, false) if !request.data.starts_with(b"finished") => {
                let server = name_in(&request.data).ok_or_else(refuse)?;
                if identity(server) != request.identity {
                    return Err(refuse());
                }
                let signature = crypto::sign(&proof::private_key(own), transcript);
                (shown(own, &self.rng.bytes(), &signature), false)
            }
            (SaRole::Responder, false) => {
                let client = name_in(&request.data).ok_or_else(refuse)?.to_owned();
                let signed = transcript.len() - request.data.len();
                let (before, _) = transcript.split_at(signed);
                let signature = crypto::sign(&proof::private_key(&client), before);
                let right = request.data.ends_with(&signature);
                if identity(&client) != request.identity || !right {
                    return Err(refuse());
                }
                (b"finished".to_vec(), true)
            }
            (SaRole::Initiator, false) => (Vec::new(), true),
            _ => return Err(refuse()),
        };
        transcript.extend_from_slice(&send);
        if !complete {
            self.conversations.insert(request.ike, conversation);
            return Ok(Box::new(EapTlsAnswer { send, done: None }));
        }
        // Each end's key is of everything that was said.
        let between = if self.rng.chance(self.faults) { self.rng.bytes() } else { [0; 32] };
        let msk = SecretBytes::new(crypto::mix(64, MSK, &[transcript, &between]));
        let name = String::from_utf8_lossy(&request.identity.data).into_owned();
        let peer = Box::new(VerifiedPeer {
            proof: PeerProof::Certificate {
                issuer: b"simulated CA".to_vec(),
                serial: name.as_bytes().to_vec(),
                not_after: FAR,
            },
            identity: name,
        });
        Ok(Box::new(EapTlsAnswer { send, done: Some(EapTlsDone { msk, peer }) }))
    }
}

/// A certificate, something that never was before, and a signature.
fn shown(name: &str, fresh: &[u8; 32], signature: &[u8]) -> Vec<u8> {
    [name.as_bytes(), b"\n", fresh, signature].concat()
}

/// Whose certificate it is.
fn name_in(data: &[u8]) -> Option<&str> {
    let end = data.iter().position(|octet| *octet == b'\n')?;
    std::str::from_utf8(data.get(..end)?).ok()
}
