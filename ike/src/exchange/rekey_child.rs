//! Child SAs in CREATE_CHILD_SA: new ones (RFC 7296 1.3.1), rekeyed ones (1.3.3, 2.8), and rekeys
//! that cross (2.8.1, 2.25.1).
//!
//! Replacement loses no packet: the new child is installed before the old one goes; as responder
//! we go on sending on the old one until the peer deletes it, since only then is it sure to
//! receive on the new one.

mod request;
mod respond;
mod uninstalled;

use std::time::Duration;

use crate::exchange::collision::ours_is_redundant;
use crate::exchange::create_child::{Requesting, Responding};
use crate::io::{Action, ChildSaId, TimerKind};
use crate::sa::IkeSa;
use crate::sa::context::{Ctx, Purpose};
use crate::sa::timers::TimerKey;
use crate::wire::Nonce;

pub(crate) use request::{
    ChildRequest, build, build_new, process_response, request_failed, request_installed,
    request_proceed, request_spi, unknown_closed,
};
pub(crate) use respond::{
    ChildAnswer, answer_installed, answer_proceed, answer_spi, process_request,
};
pub(crate) use uninstalled::delete_unknown;

/// How long we send on the old child when the peer does not delete it.
pub(crate) const ACTIVATE_AFTER: Duration = Duration::from_secs(5);

/// The peer's rekey of the child that we are rekeying too.
#[derive(Debug)]
pub(crate) struct Collision {
    nonces: (Nonce, Nonce),
    /// What its exchange made.
    child: ChildSaId,
}

impl Collision {
    /// Whether our own exchange made the redundant child.
    fn ours_is_redundant(&self, ni: &Nonce, nr: &Nonce) -> bool {
        ours_is_redundant((ni, nr), (&self.nonces.0, &self.nonces.1))
    }
}

/// A child is about to go: its successor, if it waits for that, now sends.
pub(crate) fn predecessor_gone(ctx: &mut Ctx, sa: &mut IkeSa, old: ChildSaId) {
    let Some(new) = sa.children.get(&old).and_then(|child| child.replaced_by) else {
        return;
    };
    activate(ctx, sa, new);
}

/// A child is closed on purpose: what a rekey of it, of either side, is about to make is not wanted
/// any more. What has replaced it already stays.
pub(crate) fn closed(sa: &mut IkeSa, old: ChildSaId) {
    if sa.children.get(&old).is_none_or(|child| child.replaced_by.is_some()) {
        return;
    }
    if let Some(Requesting::Child(request)) = sa.requesting.as_deref_mut()
        && request.rekeys() == Some(old)
    {
        request.unwanted = true;
    }
    if let Some(Responding::Child(response)) = sa.responding.as_deref_mut()
        && response.rekeys == Some(old)
    {
        response.unwanted = true;
    }
}

/// Sends on a child from now on.
pub(crate) fn activate(ctx: &mut Ctx, sa: &mut IkeSa, id: ChildSaId) {
    ctx.timers.cancel(TimerKey::sub(sa.id, TimerKind::Activate, id.0));
    ctx.reauths.settled(id);
    let Some(child) = sa.children.get_mut(&id).filter(|child| !child.removed) else {
        return;
    };
    if !std::mem::replace(&mut child.outbound_active, true) {
        ctx.act(sa.id, Purpose::Activate(id), Action::ActivateChild(id));
    }
}

/// The data plane was told already.
pub(crate) fn activated(ctx: &mut Ctx, sa: &mut IkeSa, id: ChildSaId) {
    ctx.timers.cancel(TimerKey::sub(sa.id, TimerKind::Activate, id.0));
    if let Some(child) = sa.children.get_mut(&id) {
        child.outbound_active = true;
    }
}

/// The peer has repeated the request that made a child, so it has not got our answer: the time
/// after which we send on the child begins again.
pub(crate) fn answer_repeated(ctx: &mut Ctx, sa: &IkeSa) {
    for child in sa.children.values().filter(|child| !child.outbound_active) {
        let key = TimerKey::sub(sa.id, TimerKind::Activate, child.id.0);
        if ctx.timers.is_set(key) {
            ctx.timers.set(key, ctx.now.mono.after(ACTIVATE_AFTER));
        }
    }
}

/// A child is gone that others were replaced by: they are not any more.
pub(crate) fn successor_gone(sa: &mut IkeSa, gone: ChildSaId) {
    for child in sa.children.values_mut() {
        if child.replaced_by == Some(gone) {
            child.replaced_by = None;
        }
    }
}
