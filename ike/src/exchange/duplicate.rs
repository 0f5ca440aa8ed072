//! Both sides connect to each other at the same time: two IKE SAs under one lease, one of each
//! side's making. Which of them stays is decided by what both sides know, so that each comes to the
//! same answer alone: one that carries a child before one that carries none, then the one with the
//! lower SPIs, the shards in front left out. Whoever made the other closes it, after both have had
//! time to send on the one that stays: no packet is lost. What each carries is looked at again then,
//! since a child may have come or gone meanwhile: the only one that carries is never closed.
//!
//! INITIAL_CONTACT (RFC 7296 2.4) was said before the sender knew of the other SA, so it ends none
//! that came up at the same time. If it was meant (the peer was restarted just then), the SA it
//! should have ended is found dead.

use std::time::Duration;

use crate::engine::Engine;
use crate::event::CloseReason;
use crate::exchange::{Task, advance, reauth};
use crate::io::{Action, ChildSaId, IkeSaId, LeaseId, TimerKind, UniquePolicy};
use crate::sa::IkeSa;
use crate::sa::context::Purpose;
use crate::sa::lifecycle::{self, Tell};
use crate::sa::timers::TimerKey;

/// What we made does not cross an SA that came up longer ago: a handshake does not take so long.
const YOUNG: Duration = Duration::from_secs(30);

/// Nor does what the peer made with INITIAL_CONTACT cross one that came up longer ago: the peer was
/// restarted.
const YOUNG_IF_CLAIMED: Duration = Duration::from_secs(5);

/// All of an SPI but its shard.
const CHANCE: u64 = u64::MAX >> 8;

/// When we close what we made and is not needed: both sides send on the other one by then.
const CLOSE_AFTER: Duration = Duration::from_secs(10);

/// When we close what the peer made, and has not closed itself: if ours is dead, that is known by
/// then.
const CLOSE_THEIRS_AFTER: Duration = Duration::from_secs(120);

/// When an SA that is to go, but alone carries a child, is looked at again.
const LOOK_AGAIN_AFTER: Duration = Duration::from_secs(30);

/// The SA of the other side's making that came up while `new` was under way. `claimed` is that the
/// peer said INITIAL_CONTACT with `new`.
pub(crate) fn crossed_by(
    engine: &Engine,
    lease: &LeaseId,
    new: IkeSaId,
    claimed: bool,
) -> Option<IkeSaId> {
    let young = if claimed { YOUNG_IF_CLAIMED } else { YOUNG };
    let now = engine.ctx.now.mono;
    let we_made = engine.sas.get(new)?.is_client();
    let crosses = |sa: &&IkeSa| {
        sa.id != new
            && sa.is_established()
            && sa.is_client() != we_made
            && sa.auth.as_ref().is_some_and(|auth| {
                auth.grant.lease == *lease
                    && auth.grant.unique == UniquePolicy::Replace
                    && now.since(auth.connected_at) < young
            })
    };
    engine.sas.iter().find(crosses).map(|sa| sa.id)
}

/// Decides between the two.
pub(crate) fn settle(engine: &mut Engine, new: IkeSaId, other: IkeSaId) {
    let (ours, theirs) = if we_made(engine, new) { (new, other) } else { (other, new) };
    let ours_stays = survivor(engine, ours, theirs) == ours;
    let now = engine.ctx.now.mono;
    // The peer has ours for certain; theirs only when our answer has arrived.
    send_on(engine, ours, theirs);
    engine.with_sa(theirs, |ctx, sa| {
        if ours_stays {
            ctx.timers.set(TimerKey::new(sa.id, TimerKind::Overlap), now + CLOSE_THEIRS_AFTER);
            return;
        }
        for child in up(sa) {
            reauth::wait_to_send(ctx, sa, child);
        }
    });
    if !ours_stays {
        let key = TimerKey::new(ours, TimerKind::Overlap);
        engine.ctx.timers.set(key, now + CLOSE_AFTER);
    }
    // What is kept may be of an earlier run of the peer's.
    for id in [ours, theirs] {
        engine.with_sa(id, |ctx, sa| {
            sa.enqueue(Task::Liveness);
            advance(ctx, sa);
        });
    }
}

/// The time is over of an SA that another of its lease was to replace: it goes, unless things have
/// changed.
pub(crate) fn due(engine: &mut Engine, id: IkeSaId) {
    let others = others(engine, id);
    let carries = |id: IkeSaId| engine.sas.get(id).is_some_and(IkeSa::carries);
    match others[..] {
        // What it was to make room for is gone.
        [] => return,
        [other] if cross(engine, id, other) && survivor(engine, id, other) == id => {
            return turn(engine, id, other);
        }
        // Whether the peer knows the other one at all will be told soon.
        [other] if cross(engine, id, other) && engine.sas.get(other).is_some_and(is_asked) => {
            let at = engine.ctx.now.mono + CLOSE_AFTER;
            return engine.ctx.timers.set(TimerKey::new(id, TimerKind::Overlap), at);
        }
        _ if carries(id) && !others.iter().copied().any(carries) => {
            let at = engine.ctx.now.mono + LOOK_AGAIN_AFTER;
            return engine.ctx.timers.set(TimerKey::new(id, TimerKind::Overlap), at);
        }
        _ => {}
    }
    engine.with_sa(id, |ctx, sa| lifecycle::close(ctx, sa, CloseReason::Replaced, Tell::Peer));
}

/// It is the other one that goes.
fn turn(engine: &mut Engine, stays: IkeSaId, goes: IkeSaId) {
    let after = if we_made(engine, goes) { CLOSE_AFTER } else { CLOSE_THEIRS_AFTER };
    let at = engine.ctx.now.mono + after;
    send_on(engine, stays, goes);
    let key = TimerKey::new(goes, TimerKind::Overlap);
    if !engine.ctx.timers.is_set(key) {
        engine.ctx.timers.set(key, at);
    }
}

/// Packets leave through the children of `one`; those of `other` wait until these go.
fn send_on(engine: &mut Engine, one: IkeSaId, other: IkeSaId) {
    engine.with_sa(other, |ctx, sa| {
        for id in up(sa) {
            if let Some(child) = sa.children.get_mut(&id) {
                child.outbound_active = false;
            }
            reauth::wait_to_send(ctx, sa, id);
            // Not after a time of its own.
            ctx.timers.cancel(TimerKey::sub(sa.id, TimerKind::Activate, id.0));
        }
        ctx.checkpoint(sa);
    });
    engine.with_sa(one, |ctx, sa| {
        for id in up(sa) {
            ctx.reauths.settled(id);
            ctx.timers.cancel(TimerKey::sub(sa.id, TimerKind::Activate, id.0));
            if let Some(child) = sa.children.get_mut(&id) {
                child.outbound_active = true;
            }
            ctx.act(sa.id, Purpose::Activate(id), Action::ActivateChild(id));
        }
        ctx.checkpoint(sa);
    });
}

/// Which of two that cross stays.
fn survivor(engine: &Engine, one: IkeSaId, other: IkeSaId) -> IkeSaId {
    let rank = |id| {
        let sa = engine.sas.get(id);
        sa.map(|sa| (!sa.carries(), sa.spi_i.0 & CHANCE, sa.spi_r.0 & CHANCE))
    };
    if rank(one) < rank(other) { one } else { other }
}

/// Whether two SAs of a lease came up at the same time, one of each side's making.
fn cross(engine: &Engine, one: IkeSaId, other: IkeSaId) -> bool {
    let of = |id| {
        let sa = engine.sas.get(id)?;
        let auth = sa.auth.as_ref()?;
        let replaces = auth.grant.unique == UniquePolicy::Replace;
        replaces.then_some((sa.is_client(), auth.connected_at))
    };
    of(one).zip(of(other)).is_some_and(|((ours, at), (theirs, then))| {
        ours != theirs && at.since(then).max(then.since(at)) < YOUNG
    })
}

fn we_made(engine: &Engine, id: IkeSaId) -> bool {
    engine.sas.get(id).is_some_and(IkeSa::is_client)
}

/// The lease's other SAs that live.
fn others(engine: &Engine, id: IkeSaId) -> Vec<IkeSaId> {
    let lease = engine.sas.get(id).and_then(IkeSa::lease_id);
    let other = |sa: &&IkeSa| sa.id != id && sa.is_established() && sa.lease_id() == lease;
    engine.sas.iter().filter(other).map(|sa| sa.id).collect()
}

/// Whether the peer is being asked if it lives, and has not answered.
fn is_asked(sa: &IkeSa) -> bool {
    sa.active == Some(Task::Liveness) || sa.tasks.contains(&Task::Liveness)
}

/// The children that packets may leave through: none that waits for what it replaces.
fn up(sa: &IkeSa) -> Vec<ChildSaId> {
    let follows = |id| sa.children.values().any(|old| !old.removed && old.replaced_by == Some(id));
    let current = sa.children.values().filter(|child| child.is_up());
    current.map(|child| child.id).filter(|id| !follows(*id)).collect()
}
