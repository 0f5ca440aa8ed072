//! EAP-TLS as initiator of IKE_AUTH (RFC 7296 2.16, RFC 5216, RFC 9190). The responder proves who
//! it is by a signature in its first response, or by the TLS alone (RFC 5998); AUTH of both sides is
//! made with EAP's key in the end.

use std::time::Duration;

use crate::crypto::SecretBytes;
use crate::eap::{EapError, EapTlsPeer, PeerHeard};
use crate::event::{Blame, Refusal};
use crate::exchange::auth::shared;
use crate::exchange::send_request;
use crate::io::{Action, EapTlsAnswer, EapTlsRequest, VerifiedPeer};
use crate::sa::IkeSa;
use crate::sa::context::{Ctx, Purpose, refusal};
use crate::view::SaRole;
use crate::wire::{AuthMethod, Eap, ExchangeType, IdPayload, Payload, Payloads};

use super::answer::{note_answer, peer_refuses, verify};
use super::{fail, fail_with, initiator, initiator_in, verified};

/// The whole conversation must be over in this time, however promptly a server asks for more.
pub(super) const EAP_TIME: Duration = Duration::from_secs(60);

/// How far EAP is.
#[derive(Debug)]
pub(super) struct EapTask {
    /// The responder need not sign.
    only: bool,
    conversation: EapTlsPeer,
    /// Who the responder is, as its first response said.
    id_r: Option<IdPayload>,
    /// Its first request, until its signature is checked.
    first: Option<Eap>,
    /// Who its signature proved it to be.
    signer: Option<Box<VerifiedPeer>>,
    /// The TLS handshake is complete: the key, and who the responder is by it.
    done: Option<(SecretBytes, Box<VerifiedPeer>)>,
    /// Our AUTH is out.
    concluded: bool,
}

impl EapTask {
    pub(super) fn new(only: bool, identity: Vec<u8>) -> Self {
        Self {
            only,
            conversation: EapTlsPeer::new(identity),
            id_r: None,
            first: None,
            signer: None,
            done: None,
            concluded: false,
        }
    }

    /// Nothing but EAP proves who the responder is.
    pub(super) fn is_only(&self) -> bool {
        self.only
    }

    /// A signature is being checked.
    pub(super) fn awaits_signature(&self) -> bool {
        self.first.is_some()
    }
}

/// A response of the peer, whichever it is.
pub(super) fn process_response(ctx: &mut Ctx, sa: &mut IkeSa, payloads: &Payloads) {
    let Some(eap) = task(sa) else {
        return;
    };
    if eap.concluded {
        return conclude(ctx, sa, payloads);
    }
    let Some(request) = payloads.eap().cloned() else {
        return peer_refuses(ctx, sa, payloads);
    };
    if eap.id_r.is_some() {
        return hear(ctx, sa, &request);
    }
    let Some(id_r) = payloads.id_r().cloned() else {
        return peer_refuses(ctx, sa, payloads);
    };
    let only = eap.only;
    eap.id_r = Some(id_r.clone());
    let expected = sa.peer.as_ref().and_then(|peer| peer.expected.clone());
    if let Some(initiator) = initiator(sa) {
        initiator.peer_id = Some(id_r.id.clone());
    }
    match payloads.auth() {
        Some(auth) => {
            if let Some(eap) = task(sa) {
                eap.first = Some(request);
            }
            verify(ctx, sa, payloads, &id_r, auth);
        }
        None if only => match expected.filter(|expected| *expected != id_r.id) {
            Some(expected) => {
                let what = format!("the peer is {}, we expected {expected}", id_r.id);
                fail(ctx, sa, Blame::Incompatible, "identity_mismatch", what);
            }
            None => hear(ctx, sa, &request),
        },
        None => {
            let what = "the peer does not sign, and EAP alone is not to prove who it is".to_owned();
            fail(ctx, sa, Blame::Incompatible, "auth_method", what);
        }
    }
}

/// The responder's signature is right: its EAP request is answered.
pub(super) fn signature_checked(ctx: &mut Ctx, sa: &mut IkeSa, peer: Box<VerifiedPeer>) {
    let Some(eap) = task(sa) else {
        return;
    };
    eap.signer = Some(peer);
    if let Some(request) = eap.first.take() {
        hear(ctx, sa, &request);
    }
}

fn hear(ctx: &mut Ctx, sa: &mut IkeSa, request: &Eap) {
    let (ike, remote) = (sa.id, sa.path.remote);
    let Some(eap) = task(sa) else {
        return;
    };
    match eap.conversation.hear(request) {
        Ok(PeerHeard::Reply(response)) => say(ctx, sa, response),
        Ok(PeerHeard::Tls(data)) => {
            let Some(identity) = eap.id_r.as_ref().map(|id_r| id_r.id.clone()) else {
                return;
            };
            let role = SaRole::Initiator;
            let request = EapTlsRequest { ike, remote, role, identity, data };
            ctx.act(ike, Purpose::EapTls, Action::EapTls(Box::new(request)));
        }
        Ok(PeerHeard::Success) if eap.done.is_some() => prove(ctx, sa),
        // Anyone on the way to an EAP server may say so.
        Ok(PeerHeard::Success) => refused(ctx, sa, &EapError::OutOfTurn),
        Err(error) => refused(ctx, sa, &error),
    }
}

/// Our TLS client's word.
pub(in crate::exchange::auth) fn answered(
    ctx: &mut Ctx,
    sa: &mut IkeSa,
    answer: Result<Box<EapTlsAnswer>, Refusal>,
) {
    let Some(eap) = task(sa) else {
        return;
    };
    let answer = match answer {
        Ok(answer) => *answer,
        Err(refused) => return fail_with(ctx, sa, refused),
    };
    if let Some(done) = answer.done {
        eap.done = Some((done.msk, done.peer));
    }
    if answer.send.is_empty() && eap.done.is_none() {
        return refused(ctx, sa, &EapError::OutOfTurn);
    }
    match eap.conversation.send(answer.send) {
        Ok(response) => say(ctx, sa, response),
        Err(error) => refused(ctx, sa, &error),
    }
}

/// Our AUTH, made with EAP's key: the conversation was with who made this IKE SA.
fn prove(ctx: &mut Ctx, sa: &mut IkeSa) {
    let (Some(protection), Some(peer)) = (&sa.protection, &sa.peer) else {
        return;
    };
    let Some(initiator) = initiator_in(&mut sa.phase) else {
        return;
    };
    let id = IdPayload::from(peer.identity.clone());
    let octets = initiator.exchanged.octets(protection, SaRole::Initiator, &id.body());
    let Some(eap) = &mut initiator.eap else {
        return;
    };
    let Some((msk, _)) = eap.done.as_ref().filter(|(msk, _)| !msk.is_empty()) else {
        return refused(ctx, sa, &EapError::OutOfTurn);
    };
    let auth = shared::mic(protection, msk, &octets);
    eap.concluded = true;
    let payloads = Payloads::from(vec![Payload::Auth(auth)]);
    send_request(ctx, sa, ExchangeType::IkeAuth, &payloads);
}

/// The last response: AUTH with the same key, and what the peer made of our wishes.
fn conclude(ctx: &mut Ctx, sa: &mut IkeSa, payloads: &Payloads) {
    let Some(auth) = payloads.auth() else {
        return peer_refuses(ctx, sa, payloads);
    };
    let (Some(protection), Some(initiator)) = (&sa.protection, initiator_in(&mut sa.phase)) else {
        return;
    };
    let Some(eap) = &mut initiator.eap else {
        return;
    };
    let (Some(id_r), Some((msk, by_tls))) = (eap.id_r.clone(), eap.done.take()) else {
        return;
    };
    let octets = initiator.exchanged.octets(protection, SaRole::Responder, &id_r.body());
    let right = auth.method == AuthMethod::SharedKeyMic
        && shared::is_right(protection, &msk, &octets, &auth.data);
    if !right {
        let what = "the peer's AUTH was not made with the key of its EAP-TLS".to_owned();
        return fail(ctx, sa, Blame::Misbehaved, "wrong_eap_auth", what);
    }
    let peer = eap.signer.take().unwrap_or(by_tls);
    // What follows is as without EAP.
    initiator.eap = None;
    note_answer(sa, payloads, &id_r.id);
    verified(ctx, sa, Ok(peer));
}

fn say(ctx: &mut Ctx, sa: &mut IkeSa, eap: Eap) {
    send_request(ctx, sa, ExchangeType::IkeAuth, &Payloads::from(vec![Payload::Eap(eap)]));
}

fn refused(ctx: &mut Ctx, sa: &mut IkeSa, error: &EapError) {
    fail(ctx, sa, Blame::Misbehaved, "eap_tls", error.to_string());
}

/// The server has had [`EAP_TIME`].
pub(in crate::exchange::auth) fn too_slow(ctx: &mut Ctx, sa: &mut IkeSa) {
    let what = format!("the peer did not finish EAP-TLS within {} s", EAP_TIME.as_secs());
    let fix = "see the peer's log, and that of the RADIUS server behind it, for what it waits for";
    fail_with(ctx, sa, refusal(Blame::Misbehaved, None, "eap_too_slow", what, fix));
}

fn task(sa: &mut IkeSa) -> Option<&mut EapTask> {
    initiator(sa)?.eap.as_mut()
}
