//! Redirect (RFC 5685): peers are sent to another gateway, new ones at once and existing ones when
//! this gateway is drained. As initiator we go where we are sent, if the connection allows it.
//!
//! A peer that does not announce REDIRECT_SUPPORTED is served as ever.

use crate::engine::Engine;
use crate::event::{CloseReason, Event};
use crate::exchange::{Task, advance, send_request};
use crate::io::TimerKind;
use crate::sa::IkeSa;
use crate::sa::context::Ctx;
use crate::sa::lifecycle::{self, Tell};
use crate::sa::timers::TimerKey;
use crate::wire::{ExchangeType, Nonce, Notify, NotifyType, Payload, Payloads, RedirectGateway};
use std::time::Duration;

/// Tells the end of what was sent away from the end of what was replaced.
pub(crate) const SENT_AWAY: u64 = 1;

/// A peer that was sent away has this long to go by itself (RFC 5685 6).
const GOING: Duration = Duration::from_secs(30);

/// The gateway new peers and, from now on, existing ones are sent to; `None`: nobody is.
pub(crate) fn set(engine: &mut Engine, to: Option<RedirectGateway>, existing: bool) {
    engine.ctx.redirect = to;
    if engine.ctx.redirect.is_none() || !existing {
        return;
    }
    for id in engine.sas.ids() {
        engine.with_sa(id, |ctx, sa| {
            if sa.is_established() && !sa.is_client() && sa.traits.redirect {
                sa.enqueue(Task::Redirect);
                advance(ctx, sa);
            }
        });
    }
}

/// Where the sender of a first request is sent, if it may be sent at all (RFC 5685 3, 5).
pub(crate) fn of_request(ctx: &Ctx, payloads: &Payloads) -> Option<Notify> {
    let to = ctx.redirect.as_ref().filter(|_| supported(payloads))?;
    if came_from_there(ctx, payloads) {
        return None;
    }
    let nonce = payloads.nonce().map(Nonce::as_bytes).unwrap_or_default();
    Notify::redirect(to, nonce).ok()
}

/// Two gateways that send a peer to each other would have it run to and fro.
pub(crate) fn came_from_there(ctx: &Ctx, payloads: &Payloads) -> bool {
    let from = payloads.notify(NotifyType::RedirectedFrom).and_then(|n| n.as_redirect().ok());
    from.is_some_and(|(from, _)| Some(&from) == ctx.redirect.as_ref())
}

/// Whether the sender of a first request can be redirected: one that was says so, too.
pub(crate) fn supported(payloads: &Payloads) -> bool {
    payloads.has_notify(NotifyType::RedirectSupported)
        || payloads.has_notify(NotifyType::RedirectedFrom)
}

/// Where a peer that has just authenticated is sent (RFC 5685 6): it gets no child.
pub(crate) fn of_authenticated(ctx: &Ctx, sa: &IkeSa) -> Option<Notify> {
    let to = ctx.redirect.as_ref().filter(|_| sa.traits.redirect)?;
    Notify::redirect(to, &[]).ok()
}

/// Tells an established peer to go (RFC 5685 4).
pub(crate) fn build(ctx: &mut Ctx, sa: &mut IkeSa) -> bool {
    let Some(notify) = of_authenticated(ctx, sa) else {
        return false;
    };
    let mut payloads = Payloads::new();
    payloads.push_notify(notify);
    send_request(ctx, sa, ExchangeType::Informational, &payloads);
    true
}

/// It knows, and has some time.
pub(crate) fn told(ctx: &mut Ctx, sa: &IkeSa) {
    let key = TimerKey::sub(sa.id, TimerKind::Overlap, SENT_AWAY);
    ctx.timers.set(key, ctx.now.mono + GOING);
}

/// As initiator: what an IKE_SA_INIT request of ours says about redirection.
pub(crate) fn announce(sa: &IkeSa) -> Option<Payload> {
    let peer = sa.peer.as_ref().filter(|peer| peer.follow_redirects)?;
    let from = peer.redirected_from.as_ref().and_then(|from| Notify::redirected_from(from).ok());
    let kind = NotifyType::RedirectSupported;
    Some(Payload::Notify(from.unwrap_or_else(|| Notify::new(kind))))
}

/// As initiator: where an IKE_SA_INIT response sends us. Without our nonce it may be forged.
pub(crate) fn in_init(sa: &IkeSa, payloads: &Payloads, ni: &Nonce) -> Option<RedirectGateway> {
    let (to, nonce) = named(sa, payloads)?;
    (nonce == ni.as_bytes()).then_some(to)
}

/// As initiator: where a protected message sends us.
pub(crate) fn in_protected(sa: &IkeSa, payloads: &Payloads) -> Option<RedirectGateway> {
    named(sa, payloads).map(|(to, _)| to)
}

fn named(sa: &IkeSa, payloads: &Payloads) -> Option<(RedirectGateway, Vec<u8>)> {
    sa.peer.as_ref().filter(|peer| peer.follow_redirects)?;
    let (to, nonce) = payloads.notify(NotifyType::Redirect)?.as_redirect().ok()?;
    Some((to, nonce.to_vec()))
}

/// As initiator: we go. The driver connects to the other gateway.
pub(crate) fn follow(ctx: &mut Ctx, sa: &mut IkeSa, to: RedirectGateway, tell: Tell) {
    if let Some(connection) = sa.connection() {
        ctx.event(Event::Redirected { ike: sa.id, connection, to });
    }
    // It was to replace another, which is not tried again: every try would be sent away, too, and
    // make one more connection. The other lives on until its end, since a redirect in IKE_SA_INIT
    // is anybody's who saw our nonce, and must not cost an established SA.
    sa.replaces = None;
    lifecycle::close(ctx, sa, CloseReason::Redirected, tell);
}
