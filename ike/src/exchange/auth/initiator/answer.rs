//! What the responder says of itself in IKE_AUTH: kept, and checked.

use crate::crypto::SecretBytes;
use crate::event::{Blame, CloseReason, Refusal};
use crate::exchange::auth::shared;
use crate::exchange::{about, certs};
use crate::io::{Action, PeerProof, VerifiedPeer, VerifyPeer};
use crate::sa::IkeSa;
use crate::sa::context::{Ctx, Purpose, refusal};
use crate::sa::lifecycle;
use crate::sa::protect::Protection;
use crate::view::SaRole;
use crate::wire::{AuthMethod, Authentication, IdPayload, Identification, NotifyType, Payloads};

use super::{fail, initiator_in};

/// The peer's answer has no AUTH, and so no IKE SA (RFC 7296 2.21.2).
pub(super) fn peer_refuses(ctx: &mut Ctx, sa: &mut IkeSa, payloads: &Payloads) {
    let told = payloads.error_notify().map(|notify| notify.kind);
    let what = match told {
        Some(kind) => format!("the peer answered IKE_AUTH with {kind}"),
        None => "the peer's IKE_AUTH response lacks identity or authentication".to_owned(),
    };
    let fix = "see the peer's log for the reason";
    let refused = refusal(Blame::Incompatible, told, "auth_refused", what.clone(), fix);
    ctx.refuse(about(sa, refused));
    lifecycle::down(ctx, sa, CloseReason::Failed(what));
    lifecycle::finish(ctx, sa);
}

/// Keeps what the peer made of our wishes until it is authenticated and authorised.
pub(super) fn note_answer(sa: &mut IkeSa, payloads: &Payloads, id_r: &Identification) {
    let mobike = payloads.has_notify(NotifyType::MobikeSupported);
    let offered = sa.peer.as_ref().is_some_and(|peer| peer.mobike);
    let Some(initiator) = initiator_in(&mut sa.phase) else {
        return;
    };
    initiator.peer_id = Some(id_r.clone());
    initiator.response = Some(payloads.clone());
    sa.traits.mobike = mobike && offered && !initiator.offer.transport;
}

/// Has the peer's signature checked.
pub(super) fn verify(
    ctx: &mut Ctx,
    sa: &mut IkeSa,
    payloads: &Payloads,
    id_r: &IdPayload,
    auth: &Authentication,
) {
    let proof = match certs::peer_signature(auth) {
        Ok(proof) => proof,
        Err(error) => {
            return fail(ctx, sa, Blame::Incompatible, "auth_method", error.to_string());
        }
    };
    let (Some(protection), Some(initiator)) = (&sa.protection, initiator_in(&mut sa.phase)) else {
        return;
    };
    let verify = VerifyPeer {
        ike: sa.id,
        remote: sa.path.remote,
        identity: id_r.id.clone(),
        certificates: certs::received(payloads),
        scheme: proof.scheme,
        rsa_classic: proof.rsa_classic,
        message: initiator.exchanged.octets(protection, SaRole::Responder, &id_r.body()),
        signature: proof.signature,
        expected: sa.peer.as_ref().and_then(|peer| peer.expected.clone()),
        connection: sa.peer.as_ref().map(|peer| peer.name.clone()),
        ocsp: certs::received_ocsp(payloads, ctx.config.limits.max_certificates),
    };
    ctx.act(sa.id, Purpose::Verify, Action::VerifyPeer(Box::new(verify)));
}

/// A responder that authenticates with the shared key.
pub(super) fn check_shared_key(
    protection: &Protection,
    key: &SecretBytes,
    octets: &[u8],
    auth: &Authentication,
    id: &IdPayload,
    expected: Option<Identification>,
) -> Result<Box<VerifiedPeer>, Box<Refusal>> {
    let refuse = |code, what| {
        let fix = "compare both sides' configuration";
        Box::new(refusal(Blame::Incompatible, None, code, what, fix))
    };
    if auth.method != AuthMethod::SharedKeyMic {
        let what = format!("the peer authenticates with {}, expected a shared key", auth.method);
        return Err(refuse("auth_method", what));
    }
    if let Some(expected) = expected.filter(|expected| *expected != id.id) {
        let what = format!("the peer is {}, we expected {expected}", id.id);
        return Err(refuse("identity_mismatch", what));
    }
    if key.is_empty() || !shared::is_right(protection, key, octets, &auth.data) {
        return Err(Box::new(shared::wrong_key(&id.id)));
    }
    Ok(Box::new(VerifiedPeer { identity: id.id.to_string(), proof: PeerProof::SharedKey }))
}
