//! Liveness (RFC 7296 2.4): an empty INFORMATIONAL request, but only after silence, and only when
//! the data plane has not heard from the peer either.

use std::time::Duration;

use crate::exchange::{Task, advance, send_request};
use crate::io::{Action, ChildUse, TimerKind};
use crate::sa::IkeSa;
use crate::sa::context::{Ctx, Purpose};
use crate::sa::timers::TimerKey;
use crate::wire::{ExchangeType, Payload, Payloads, VendorId};

/// What a liveness check is filled up with: a payload that any message may carry and that means
/// nothing to others (RFC 7296 3.12).
const ROOM: &[u8] = b"room for a crash token ";

/// Arms the timer for the next check.
pub(crate) fn arm(ctx: &mut Ctx, sa: &IkeSa, after: Duration) {
    if ctx.config.timers.dpd.is_zero() {
        return;
    }
    ctx.timers.set(TimerKey::new(sa.id, TimerKind::Dpd), ctx.now.mono + after);
}

/// The timer fired.
pub(crate) fn due(ctx: &mut Ctx, sa: &mut IkeSa) {
    let interval = ctx.config.timers.dpd;
    let silence = ctx.now.mono.since(sa.last_heard);
    if silence < interval {
        return arm(ctx, sa, interval.saturating_sub(silence));
    }
    if sa.window.outstanding().is_some() || sa.active.is_some() || sa.use_queries > 0 {
        // Whatever is under way tells as much.
        return arm(ctx, sa, interval);
    }
    let children: Vec<_> =
        sa.children.values().filter(|child| child.is_up()).map(|child| child.id).collect();
    arm(ctx, sa, interval);
    if children.is_empty() {
        return ask(ctx, sa);
    }
    sa.use_idle = None;
    for child in children {
        sa.use_queries = sa.use_queries.saturating_add(1);
        ctx.act(sa.id, Purpose::Use(child), Action::QueryUse(child));
    }
}

/// The data plane says when it last heard from the peer.
pub(crate) fn used(ctx: &mut Ctx, sa: &mut IkeSa, answer: Result<ChildUse, String>) {
    sa.use_queries = sa.use_queries.saturating_sub(1);
    if let Ok(ChildUse { idle_in: Some(idle), .. }) = answer {
        sa.use_idle = Some(sa.use_idle.map_or(idle, |known| known.min(idle)));
    }
    if sa.use_queries > 0 || !sa.is_established() {
        return;
    }
    let interval = ctx.config.timers.dpd;
    match sa.use_idle.take() {
        Some(idle) if idle < interval => arm(ctx, sa, interval.saturating_sub(idle)),
        _ => ask(ctx, sa),
    }
}

fn ask(ctx: &mut Ctx, sa: &mut IkeSa) {
    sa.enqueue(Task::Liveness);
    advance(ctx, sa);
}

/// Our request. A peer that has lost the SA answers with no more octets than it got, so what is
/// asked of one that makes crash tokens is long enough for its token (RFC 6290 5).
pub(crate) fn build(ctx: &mut Ctx, sa: &mut IkeSa) -> bool {
    let mut payloads = Payloads::new();
    if let Some(token) = &sa.peer_token {
        let room = ROOM.iter().copied().cycle().take(token.len());
        payloads.push(Payload::VendorId(VendorId(room.collect())));
    }
    send_request(ctx, sa, ExchangeType::Informational, &payloads);
    true
}
