//! EAP-TLS within IKE_AUTH (RFC 7296 2.16, RFC 5216, RFC 9190), with or without our own AUTH in the
//! first response (RFC 5998).
//!
//! The identity in IDi is a claim until the TLS handshake has proven it; the lease is asked for
//! only then, and after the peer's AUTH has tied the EAP conversation to this IKE SA.

use crate::crypto::SecretBytes;
use crate::eap::{EapError, EapTls, Heard};
use crate::event::{Blame, Refusal};
use crate::exchange::auth::{Own, shared};
use crate::exchange::{certs, send_response};
use crate::io::{Action, EapTlsAnswer, EapTlsRequest, VerifiedPeer};
use crate::sa::IkeSa;
use crate::sa::context::{Ctx, Purpose, refusal};
use crate::view::SaRole;
use crate::wire::{AuthMethod, Eap, ExchangeType, NotifyType, Payload, Payloads};

use super::{claim, fail, responder, responder_in, sign, verified};

/// How far EAP is.
#[derive(Debug)]
pub(super) struct EapTask {
    /// The peer wants no AUTH of ours before EAP is over (RFC 5998).
    only: bool,
    conversation: Option<EapTls>,
    /// The TLS handshake is complete: the key, and who the peer is.
    done: Option<(SecretBytes, Box<VerifiedPeer>)>,
    /// EAP-Success is sent.
    succeeded: bool,
}

impl EapTask {
    pub(super) fn new(only: bool) -> Self {
        Self { only, conversation: None, done: None, succeeded: false }
    }

    /// EAP-Failure, when there is a conversation to end.
    pub(super) fn failure(&self) -> Option<Eap> {
        let conversation = self.conversation.as_ref().filter(|_| !self.succeeded)?;
        Some(conversation.failure())
    }
}

/// Proves who we are, unless EAP alone shall do that, and begins the conversation.
pub(super) fn begin(ctx: &mut Ctx, sa: &mut IkeSa) {
    let Some(responder) = responder_in(&mut sa.phase) else {
        return;
    };
    if responder.eap.as_ref().is_some_and(|eap| eap.only) {
        return first(ctx, sa, None);
    }
    match claim::own_certificate(
        ctx,
        &responder.authorities,
        &sa.traits.hashes,
        responder.wants_ocsp,
    ) {
        Ok(own) => {
            responder.own = Some(own);
            sign(ctx, sa);
        }
        Err(refused) => {
            let identity = Some(responder.id_i.id.clone());
            fail(ctx, sa, Refusal { identity, ..*refused });
        }
    }
}

/// Our AUTH for the first response.
pub(super) fn signed(ctx: &mut Ctx, sa: &mut IkeSa, auth: Payload) {
    if responder(sa).is_some_and(|responder| responder.own.is_some()) {
        first(ctx, sa, Some(auth));
    }
}

/// The first response: IDr, perhaps CERT and AUTH, and the first EAP request.
fn first(ctx: &mut Ctx, sa: &mut IkeSa, auth: Option<Payload>) {
    let identifier = sa.rng.array::<1>().first().copied().unwrap_or_default();
    let Some(responder) = responder(sa) else {
        return;
    };
    let mut payloads = Payloads::from(vec![Payload::id_r(responder.id_r.clone())]);
    if let (Some(auth), Some(Own::Certificate { chain, ocsp, .. })) = (auth, responder.own.take()) {
        certs::payloads(chain).chain(certs::staples(ocsp)).for_each(|cert| payloads.push(cert));
        payloads.push(auth);
    }
    let (conversation, request) = EapTls::start(identifier);
    if let Some(eap) = &mut responder.eap {
        eap.conversation = Some(conversation);
    }
    payloads.push(Payload::Eap(request));
    respond(ctx, sa, &payloads);
}

/// A response after which it is the peer's turn.
fn respond(ctx: &mut Ctx, sa: &mut IkeSa, payloads: &Payloads) {
    ctx.half_open.authenticating(sa.id, false);
    send_response(ctx, sa, ExchangeType::IkeAuth, payloads);
}

fn say(ctx: &mut Ctx, sa: &mut IkeSa, eap: Eap) {
    respond(ctx, sa, &Payloads::from(vec![Payload::Eap(eap)]));
}

/// A later request of the peer.
pub(super) fn process_request(ctx: &mut Ctx, sa: &mut IkeSa, payloads: &Payloads) {
    let (ike, remote) = (sa.id, sa.path.remote);
    let Some(responder) = responder(sa) else {
        return;
    };
    let identity = responder.id_i.id.clone();
    let Some(eap) = &mut responder.eap else {
        return fail(ctx, sa, unexpected());
    };
    if eap.succeeded {
        if claim::after_eap(responder, payloads) {
            return claim::begin(ctx, sa, payloads);
        }
        return fail(ctx, sa, unexpected());
    }
    let (Some(answer), Some(conversation)) = (payloads.eap(), &mut eap.conversation) else {
        return fail(ctx, sa, unexpected());
    };
    match conversation.hear(answer) {
        Ok(Heard::Reply(request)) => say(ctx, sa, request),
        Ok(Heard::Tls(data)) if eap.done.is_none() => {
            let role = SaRole::Responder;
            let request = EapTlsRequest { ike, remote, role, identity, data };
            ctx.act(ike, Purpose::EapTls, Action::EapTls(Box::new(request)));
        }
        Ok(Heard::Acknowledged) if eap.done.is_some() => {
            let success = conversation.success();
            eap.succeeded = true;
            say(ctx, sa, success);
        }
        Ok(Heard::Tls(_) | Heard::Acknowledged) => fail(ctx, sa, refused(&EapError::OutOfTurn)),
        Err(error) => fail(ctx, sa, refused(&error)),
    }
}

/// Our TLS server's word.
pub(in crate::exchange::auth) fn answered(
    ctx: &mut Ctx,
    sa: &mut IkeSa,
    answer: Result<Box<EapTlsAnswer>, Refusal>,
) {
    let Some(responder) = responder(sa) else {
        return;
    };
    let identity = responder.id_i.id.clone();
    let Some((eap, conversation)) = responder.eap.as_mut().and_then(|eap| {
        eap.conversation.as_mut().map(|conversation| (&mut eap.done, conversation))
    }) else {
        return;
    };
    let answer = match answer {
        Ok(answer) => *answer,
        Err(refused) => {
            let identity = refused.identity.clone().or(Some(identity));
            return fail(ctx, sa, Refusal { identity, ..refused });
        }
    };
    *eap = answer.done.map(|done| (done.msk, done.peer));
    if answer.send.is_empty() {
        let error = EapError::OutOfTurn;
        return fail(ctx, sa, refused(&error));
    }
    match conversation.send(answer.send) {
        Ok(request) => say(ctx, sa, request),
        Err(error) => fail(ctx, sa, refused(&error)),
    }
}

/// The peer's AUTH, made with EAP's key: the conversation was with who made this IKE SA
/// (RFC 7296 2.16).
pub(super) fn check_auth(ctx: &mut Ctx, sa: &mut IkeSa) {
    let (Some(protection), Some(responder)) = (&sa.protection, responder_in(&mut sa.phase)) else {
        return;
    };
    let done = responder.eap.as_mut().and_then(|eap| eap.done.take());
    let (Some((msk, peer)), Some(claim)) = (done, responder.claim.take()) else {
        return fail(ctx, sa, unexpected());
    };
    let octets = responder.peer_octets(protection);
    let right = claim.method() == AuthMethod::SharedKeyMic
        && !msk.is_empty()
        && shared::is_right(protection, &msk, &octets, claim.data());
    if !right {
        let refused = refusal(
            Blame::Misbehaved,
            Some(NotifyType::AuthenticationFailed),
            "wrong_eap_auth",
            "the client's AUTH was not made with the key of its EAP-TLS",
            "check the client's software; if it persists, someone is between",
        );
        let identity = Some(responder.id_i.id.clone());
        return fail(ctx, sa, Refusal { identity, ..refused });
    }
    responder.shared = msk;
    responder.own = Some(Own::SharedKey);
    verified(ctx, sa, Ok(peer));
}

fn unexpected() -> Refusal {
    refusal(
        Blame::Misbehaved,
        Some(NotifyType::InvalidSyntax),
        "eap_out_of_turn",
        "the client's IKE_AUTH request lacks the EAP or AUTH payload that is due",
        "check the client's software",
    )
}

fn refused(error: &EapError) -> Refusal {
    let (blame, code, fix) = match error {
        EapError::OtherMethod(_) => (
            Blame::Incompatible,
            "eap_method",
            "let the client use EAP-TLS (strongSwan: `auth = eap-tls`)",
        ),
        _ => (Blame::Misbehaved, "eap_tls", "check the client's software"),
    };
    let failed = Some(NotifyType::AuthenticationFailed);
    refusal(blame, failed, code, error.to_string(), fix)
}
