//! Both sides connect to each other at the same time: two IKE SAs under one lease, one of each
//! side's making. Which of them stays is decided by what both sides know, so that each comes to the
//! same answer alone: the one with the lower SPIs, the shards in front left out. Whoever made the
//! other closes it, after both have had time to send on the one that stays: no packet is lost.
//!
//! INITIAL_CONTACT (RFC 7296 2.4) was said before the sender knew of the other SA, so it ends none
//! that came up at the same time. If it was meant (the peer was restarted just then), the SA it
//! should have ended is found dead.

use std::time::Duration;

use crate::engine::Engine;
use crate::exchange::{Task, advance, reauth};
use crate::io::{Action, ChildSaId, IkeSaId, LeaseId, TimerKind, UniquePolicy};
use crate::sa::IkeSa;
use crate::sa::context::Purpose;
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
    let we_made = engine.sas.get(new)?.peer.is_some();
    let crosses = |sa: &&IkeSa| {
        sa.id != new
            && sa.is_established()
            && sa.peer.is_some() != we_made
            && sa.auth.as_ref().is_some_and(|auth| {
                auth.grant.lease == *lease
                    && auth.grant.unique == UniquePolicy::Replace
                    && now.since(auth.established_at) < young
            })
    };
    engine.sas.iter().find(crosses).map(|sa| sa.id)
}

/// Decides between the two.
pub(crate) fn settle(engine: &mut Engine, new: IkeSaId, other: IkeSaId, claimed: bool) {
    let we_made = |id| engine.sas.get(id).is_some_and(|sa| sa.peer.is_some());
    let (ours, theirs) = if we_made(new) { (new, other) } else { (other, new) };
    let spis = |id| engine.sas.get(id).map(|sa| (sa.spi_i.0 & CHANCE, sa.spi_r.0 & CHANCE));
    let ours_stays = spis(ours) < spis(theirs);
    let now = engine.ctx.now.mono;
    // The peer has ours for certain; theirs only when our answer has arrived.
    engine.with_sa(theirs, |ctx, sa| {
        for child in up(sa) {
            if let Some(child) = sa.children.get_mut(&child) {
                child.outbound_active = false;
            }
            reauth::wait_to_send(ctx, sa, child);
            if ours_stays {
                ctx.timers.cancel(TimerKey::sub(sa.id, TimerKind::Activate, child.0));
            }
        }
        if ours_stays {
            ctx.timers.set(TimerKey::new(sa.id, TimerKind::Overlap), now + CLOSE_THEIRS_AFTER);
        }
        ctx.checkpoint(sa);
    });
    engine.with_sa(ours, |ctx, sa| {
        for child in up(sa) {
            ctx.act(sa.id, Purpose::Activate(child), Action::ActivateChild(child));
        }
        if !ours_stays {
            ctx.timers.set(TimerKey::new(sa.id, TimerKind::Overlap), now + CLOSE_AFTER);
        }
        if claimed {
            sa.enqueue(Task::Liveness);
            advance(ctx, sa);
        }
    });
}

/// Whether the lease has another SA that lives: only then does one go for it.
pub(crate) fn has_another(engine: &Engine, id: IkeSaId) -> bool {
    let lease = engine.sas.get(id).and_then(IkeSa::lease_id);
    let other = |sa: &IkeSa| sa.id != id && sa.is_established() && sa.lease_id() == lease;
    engine.sas.iter().any(other)
}

/// The children that packets may leave through.
fn up(sa: &IkeSa) -> Vec<ChildSaId> {
    let current = sa.children.values().filter(|child| !child.removed && child.outbound_active);
    current.map(|child| child.id).collect()
}
