//! Closing SAs (RFC 7296 1.4.1). The data plane goes first, the peer is told after: access must
//! end even when nobody answers.

use crate::event::CloseReason;
use crate::exchange::{Task, rekey_child, send_request};
use crate::io::ChildSaId;
use crate::sa::child::{ChildState, remove_from_dataplane};
use crate::sa::context::Ctx;
use crate::sa::{IkeSa, lifecycle};
use crate::wire::{ChildSpi, Delete, ExchangeType, Payload, Payloads, ProtocolId};

/// DELETE of the IKE SA.
pub(crate) fn build_ike(ctx: &mut Ctx, sa: &mut IkeSa) -> bool {
    let payloads = Payloads::from(vec![Payload::Delete(Delete::Ike)]);
    send_request(ctx, sa, ExchangeType::Informational, &payloads);
    true
}

/// The peer has let go of the IKE SA too.
pub(crate) fn process_ike_response(ctx: &mut Ctx, sa: &mut IkeSa) {
    lifecycle::finish(ctx, sa);
}

/// DELETE of a child SA.
pub(crate) fn build_child(ctx: &mut Ctx, sa: &mut IkeSa, id: ChildSaId) -> bool {
    let Some(child) = sa.children.get_mut(&id) else {
        return false;
    };
    child.state = ChildState::Deleting;
    let delete = Delete::esp(vec![ChildSpi(child.spi_in)]);
    let payloads = Payloads::from(vec![Payload::Delete(delete)]);
    send_request(ctx, sa, ExchangeType::Informational, &payloads);
    true
}

/// The peer has deleted its half, or does not know the SA any more: it is gone either way.
pub(crate) fn process_child_response(ctx: &mut Ctx, sa: &mut IkeSa, id: ChildSaId) {
    let reason = match sa.children.get(&id).map(|child| child.replaced_by) {
        Some(None) => CloseReason::Operator,
        _ => CloseReason::Rekeyed,
    };
    remove_from_dataplane(ctx, sa, id, reason);
    rekey_child::successor_gone(sa, id);
    sa.children.remove(&id);
}

/// Closes a child on our side: data plane, then DELETE.
pub(crate) fn close_child(ctx: &mut Ctx, sa: &mut IkeSa, id: ChildSaId, reason: CloseReason) {
    if reason != CloseReason::Expired {
        // At a limit its successor is what is waited for.
        rekey_child::closed(sa, id);
    }
    // What was replaced goes: packets leave through what replaces it.
    rekey_child::predecessor_gone(ctx, sa, id);
    remove_from_dataplane(ctx, sa, id, reason);
    sa.enqueue(Task::DeleteChild(id));
}

/// The peer closes child SAs: ours go too, and the answer names their inbound halves, except
/// where our own DELETE for the same SA is already under way (RFC 7296 1.4.1).
pub(crate) fn process_children(
    ctx: &mut Ctx,
    sa: &mut IkeSa,
    protocol: ProtocolId,
    spis: &[ChildSpi],
) -> Option<Delete> {
    if protocol != ProtocolId::Esp {
        return None;
    }
    let mut answer = Vec::new();
    for spi in spis {
        let Some(child) = sa.children.values().find(|child| child.spi_out == spi.0) else {
            rekey_child::unknown_closed(sa, spi.0);
            continue;
        };
        let id = child.id;
        let ours_is_out = sa.active == Some(Task::DeleteChild(id));
        if !ours_is_out {
            answer.push(ChildSpi(child.spi_in));
        }
        let reason = match child.replaced_by {
            Some(_) => CloseReason::Rekeyed,
            None => CloseReason::PeerDeleted,
        };
        rekey_child::predecessor_gone(ctx, sa, id);
        remove_from_dataplane(ctx, sa, id, reason);
        rekey_child::successor_gone(sa, id);
        sa.tasks
            .retain(|task| !matches!(task, Task::DeleteChild(c) | Task::RekeyChild(c) if *c == id));
        if !ours_is_out {
            sa.children.remove(&id);
        }
    }
    (!answer.is_empty()).then(|| Delete::esp(answer))
}
