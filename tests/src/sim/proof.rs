//! How simulated hosts prove who they are: certificates that say a name, keys made of names.
// The contract's own error type; one is made per refused handshake.
#![allow(clippy::result_large_err)]

use std::net::SocketAddr;

use ike::WallTime;
use ike::crypto::SecretBytes;
use ike::event::{Blame, Refusal};
use ike::io::{
    IkeSaId, OwnProof, PeerProof, PpkRequest, SharedKey, SharedKeyRequest, VerifiedPeer, VerifyPeer,
};
use ike::wire::{Identification, NotifyType};

use super::crypto;
use super::setup::identity;

/// A far wall time for what never ends in a walk.
pub const FAR: WallTime = WallTime(i64::MAX / 2);

/// The certificate of a name.
pub fn certificate(name: &str) -> Vec<u8> {
    let mut der = b"simulated certificate of ".to_vec();
    der.extend_from_slice(name.as_bytes());
    der
}

/// The key of that certificate, which also verifies.
pub fn private_key(name: &str) -> Vec<u8> {
    crypto::mix(32, PRIVATE, &[name.as_bytes()])
}

/// The name of a client's post-quantum preshared key.
pub fn ppk_name(client: &str) -> Vec<u8> {
    format!("ppk-{client}").into_bytes()
}

/// How gateways prove who they are to a client with a shared key (RFC 7296 2.15: each side has its
/// own method).
pub fn of_gateway(client: &str) -> OwnProof {
    if client.ends_with(['1', '2']) { OwnProof::Certificate } else { OwnProof::SharedKey }
}

/// Domains of keys.
const PRIVATE: u64 = 0x6b;
const SHARED: u64 = 0x6c;
const POST_QUANTUM: u64 = 0x6d;

/// A refusal of what a peer showed.
pub fn refusal(
    code: &'static str,
    ike: IkeSaId,
    remote: SocketAddr,
    identity: Option<&Identification>,
) -> Refusal {
    Refusal {
        ike: Some(ike),
        remote: Some(remote),
        identity: identity.cloned(),
        blame: Blame::Incompatible,
        notify: Some(NotifyType::AuthenticationFailed),
        code,
        what: code.to_owned(),
        fix: String::new(),
    }
}

/// Whose certificate and signature it is.
pub fn verify(request: &VerifyPeer) -> Result<Box<VerifiedPeer>, Refusal> {
    let refuse = |code| refusal(code, request.ike, request.remote, Some(&request.identity));
    let name = request
        .certificates
        .first()
        .and_then(|der| der.strip_prefix(b"simulated certificate of ".as_slice()))
        .and_then(|name| std::str::from_utf8(name).ok())
        .ok_or_else(|| refuse("unknown_issuer"))?;
    if request.identity != identity(name) {
        return Err(refuse("identity_mismatch"));
    }
    if !crypto::verify(&private_key(name), &request.message, &request.signature) {
        return Err(refuse("bad_signature"));
    }
    Ok(Box::new(VerifiedPeer {
        identity: name.to_owned(),
        proof: PeerProof::Certificate {
            issuer: b"simulated CA".to_vec(),
            serial: name.as_bytes().to_vec(),
            not_after: FAR,
        },
    }))
}

/// The key that a client and the gateways share, asked for by the host of this name.
pub fn shared_key(
    own: &str,
    gateway: bool,
    request: &SharedKeyRequest,
) -> Result<Box<SharedKey>, Refusal> {
    let peer = request.peer.as_ref();
    let peer = peer.and_then(Identification::as_text).ok_or_else(|| {
        refusal("unknown_identity", request.ike, request.remote, request.peer.as_ref())
    })?;
    let client = if gateway { peer } else { own };
    let key = SecretBytes::new(crypto::mix(32, SHARED, &[client.as_bytes()]));
    Ok(Box::new(SharedKey { key, own: of_gateway(client) }))
}

/// The post-quantum preshared key of a name, if this host has such keys.
pub fn ppk(known: bool, request: &PpkRequest) -> Result<SecretBytes, Refusal> {
    if !known {
        return Err(refusal("unknown_ppk", request.ike, request.remote, request.peer.as_ref()));
    }
    Ok(SecretBytes::new(crypto::mix(32, POST_QUANTUM, &[&request.id])))
}
