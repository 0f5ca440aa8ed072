//! INFORMATIONAL requests of the peer (RFC 7296 1.4): deletes, notifications, liveness.

use crate::event::{Blame, CloseReason};
use crate::exchange::{about, crash, delete, mobike, reauth, redirect, rekey_ike, send_response};
use crate::sa::context::{Ctx, refusal};
use crate::sa::{IkeSa, Phase, lifecycle};
use crate::wire::{Delete, ExchangeType, NotifyType, Payload, Payloads};

/// Answers one request. An empty one gets an empty answer; what is not understood is ignored.
pub(crate) fn process_request(ctx: &mut Ctx, sa: &mut IkeSa, payloads: &Payloads) {
    let mut answer = Payloads::new();
    if payloads.deletes().any(|delete| *delete == Delete::Ike) {
        return process_delete_ike(ctx, sa, &answer);
    }
    if let Some(token) = crash::told(payloads) {
        sa.peer_token = Some(token);
    }
    if payloads.has_notify(NotifyType::UpdateSaAddresses) {
        mobike::process_update(ctx, sa, payloads, &mut answer);
    }
    let deletes: Vec<Delete> = payloads.deletes().cloned().collect();
    for delete in deletes {
        if let Delete::Child { protocol, spis } = delete
            && let Some(ours) = delete::process_children(ctx, sa, protocol, &spis)
        {
            answer.push(Payload::Delete(ours));
        }
    }
    if sa.is_established() && reauth::heard(ctx, sa, payloads) {
        reauth::arm(ctx, sa);
    }
    // RFC 4555 3.7: return routability is proven by echoing the data.
    if let Some(cookie2) = payloads.notify(NotifyType::Cookie2) {
        answer.push_notify(cookie2.clone());
    }
    if payloads.has_notify(NotifyType::AuthenticationFailed)
        && matches!(sa.phase, Phase::Authenticating(_) | Phase::Established)
    {
        // RFC 7296 2.21.2: the initiator did not accept our AUTH; it will not use the SA.
        send_response(ctx, sa, ExchangeType::Informational, &answer);
        let what = "the peer did not accept our authentication".to_owned();
        let reason = CloseReason::Failed(what.clone());
        let fix = "see the peer's log for the reason";
        let told = Some(NotifyType::AuthenticationFailed);
        let refused = refusal(Blame::Incompatible, told, "auth_refused", what, fix);
        // An unfinished handshake reports its own end.
        if sa.is_established() {
            ctx.refuse(about(sa, refused));
        }
        return lifecycle::close(ctx, sa, reason, lifecycle::Tell::Nobody);
    }
    send_response(ctx, sa, ExchangeType::Informational, &answer);
    // RFC 5685 4: answered first, then we go.
    if sa.is_established()
        && let Some(to) = redirect::in_protected(sa, payloads)
    {
        return redirect::follow(ctx, sa, to, lifecycle::Tell::Peer);
    }
    mobike::probe_if_moved(ctx, sa);
}

/// The peer deletes the IKE SA, and with it all children. Our own DELETE, if one is out, is
/// answered by the fact (RFC 7296 1.4.1).
fn process_delete_ike(ctx: &mut Ctx, sa: &mut IkeSa, answer: &Payloads) {
    if sa.is_established() && rekey_ike::deleted_under_rekey(ctx, sa) {
        return send_response(ctx, sa, ExchangeType::Informational, answer);
    }
    // The data plane is clean before the peer hears so.
    lifecycle::close(ctx, sa, CloseReason::PeerDeleted, lifecycle::Tell::Nobody);
    send_response(ctx, sa, ExchangeType::Informational, answer);
}
