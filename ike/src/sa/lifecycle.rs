//! How an IKE SA begins to live and how it ends. Every end takes the same way: the data plane
//! first, then the timers, then, if the peer is to know, a tombstone that retransmits DELETE.

use std::time::Duration;

use crate::event::{CloseReason, Event};
use crate::exchange::{self, Task, advance, dpd};
use crate::io::{ChildSaId, TimerKind, Transmit};
use crate::sa::child::remove_from_dataplane;
use crate::sa::context::{Ctx, Deferred};
use crate::sa::timers::TimerKey;
use crate::sa::{IkeSa, Phase, jittered};

/// How long a failed handshake's answer is kept for a request that comes again. A peer
/// retransmits a few times within it.
const FAILED_LINGER: Duration = Duration::from_secs(10);

/// Byte of a NAT keepalive (RFC 3948 2.3).
const KEEPALIVE: u8 = 0xff;

/// Whether the peer hears of the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tell {
    /// DELETE, retransmitted from a tombstone.
    Peer,
    /// It knows already, or does not answer.
    Nobody,
}

/// Starts the timers of an SA that is now established.
pub(crate) fn established(ctx: &mut Ctx, sa: &mut IkeSa) {
    sa.phase = Phase::Established;
    sa.forgeries = 0;
    sa.last_heard = ctx.now.mono;
    ctx.timers.cancel(TimerKey::new(sa.id, TimerKind::HalfOpen));
    let rekey = ctx.config.timers.rekey_ike;
    if !rekey.is_zero() {
        let at = ctx.now.mono + jittered(&mut sa.rng, rekey);
        ctx.timers.set(TimerKey::new(sa.id, TimerKind::RekeyIke), at);
    }
    dpd::arm(ctx, sa, ctx.config.timers.dpd);
    arm_keepalive(ctx, sa);
    let deadline = sa.auth.as_ref().map(|auth| auth.grant.deadline);
    ctx.timers.set_wall(sa.id, deadline);
    exchange::reauth::arm(ctx, sa);
}

/// NAT keepalives are ours to send only when the NAT is in front of us (RFC 3948 4). What we fake
/// to the peer is no NAT.
pub(crate) fn arm_keepalive(ctx: &mut Ctx, sa: &IkeSa) {
    let interval = ctx.config.timers.keepalive;
    if sa.traits.we_behind_nat && sa.path.encap && !interval.is_zero() {
        ctx.timers.set(TimerKey::new(sa.id, TimerKind::Keepalive), ctx.now.mono + interval);
    }
}

/// Sends one keepalive.
pub(crate) fn keepalive(ctx: &mut Ctx, sa: &IkeSa) {
    ctx.transmit(Transmit {
        local: sa.path.local,
        remote: sa.path.remote,
        encap: false,
        payload: vec![KEEPALIVE],
    });
    arm_keepalive(ctx, sa);
}

/// Ends an IKE SA, whatever its phase.
pub(crate) fn close(ctx: &mut Ctx, sa: &mut IkeSa, reason: CloseReason, tell: Tell) {
    match &sa.phase {
        Phase::Closing if tell == Tell::Nobody => {
            // Never longer than it was to be.
            let left = ctx.timers.at(TimerKey::new(sa.id, TimerKind::Tombstone));
            let left = left.map_or(Duration::MAX, |at| at.since(ctx.now.mono));
            linger(ctx, sa, left.min(ctx.config.timers.tombstone));
        }
        Phase::Closing | Phase::Lingering => {}
        Phase::InitSent(_) | Phase::HalfOpen(_) | Phase::Intermediate(_) => {
            exchange::init::abandon(ctx, sa);
            if sa.is_initiator() {
                down(ctx, sa, reason);
            }
            finish(ctx, sa);
        }
        Phase::Authenticating(_) => exchange::auth::abandon(ctx, sa, reason, tell),
        Phase::Established | Phase::Rekeyed => {
            clear_dataplane(ctx, sa, &reason);
            down(ctx, sa, reason);
            bury(ctx, sa, tell);
        }
    }
}

/// Takes all children out of the data plane.
pub(crate) fn clear_dataplane(ctx: &mut Ctx, sa: &mut IkeSa, reason: &CloseReason) {
    exchange::reauth::hand_over(ctx, sa);
    let children: Vec<ChildSaId> = sa.children.keys().copied().collect();
    for child in children {
        remove_from_dataplane(ctx, sa, child, reason.clone());
    }
}

/// Reports the end and lets nothing of the SA come back.
pub(crate) fn down(ctx: &mut Ctx, sa: &mut IkeSa, reason: CloseReason) {
    if sa.close_reason.is_some() {
        return;
    }
    if let Some(old) = sa.replaces.take() {
        ctx.deferred.push_back(Deferred::ReauthFailed(old));
    }
    uncount(ctx, sa);
    ctx.forget(sa.id);
    let (lease, connection) = (sa.lease_id(), sa.connection());
    let event = Event::IkeDown { ike: sa.id, lease, reason: reason.clone(), connection };
    ctx.ike_down(sa.id, event);
    sa.close_reason = Some(reason);
}

/// The SA is no longer one of its lease's established SAs.
pub(crate) fn uncount(ctx: &mut Ctx, sa: &mut IkeSa) {
    if std::mem::take(&mut sa.counted)
        && let Some(lease) = sa.lease_id()
    {
        ctx.lease_down(&lease);
    }
}

/// Turns an SA without data plane into a tombstone.
pub(crate) fn bury(ctx: &mut Ctx, sa: &mut IkeSa, tell: Tell) {
    ctx.timers.cancel_sa(sa.id);
    exchange::create_child::abandon(ctx, sa);
    sa.children.clear();
    sa.tasks.clear();
    match tell {
        Tell::Nobody => linger(ctx, sa, ctx.config.timers.tombstone),
        Tell::Peer => {
            sa.phase = Phase::Closing;
            if sa.window.outstanding().is_none() {
                sa.active = None;
            } else {
                // One request at a time: DELETE follows the answer to what is out.
                exchange::arm_retransmit(ctx, sa);
            }
            sa.tasks.push_back(Task::DeleteIke);
            let at = ctx.now.mono + ctx.config.timers.tombstone;
            ctx.timers.set(TimerKey::new(sa.id, TimerKind::Tombstone), at);
            advance(ctx, sa);
        }
    }
}

/// Keeps only the response cache, for a request whose answer was lost.
pub(crate) fn linger(ctx: &mut Ctx, sa: &mut IkeSa, duration: Duration) {
    ctx.timers.cancel_sa(sa.id);
    sa.phase = Phase::Lingering;
    sa.active = None;
    sa.tasks.clear();
    sa.window.answered();
    exchange::sync::give_up(sa);
    let at = ctx.now.mono + duration;
    ctx.timers.set(TimerKey::new(sa.id, TimerKind::Tombstone), at);
}

/// Keeps the answer of a failed handshake for a while.
pub(crate) fn linger_failed(ctx: &mut Ctx, sa: &mut IkeSa) {
    linger(ctx, sa, ctx.config.timers.tombstone.min(FAILED_LINGER));
}

/// The SA holds nothing any more.
pub(crate) fn finish(ctx: &mut Ctx, sa: &mut IkeSa) {
    ctx.timers.cancel_sa(sa.id);
    sa.phase = Phase::Lingering;
    ctx.deferred.push_back(Deferred::Remove(sa.id));
}

/// The peer did not answer a request of ours in all its transmissions.
pub(crate) fn peer_dead(ctx: &mut Ctx, sa: &mut IkeSa) {
    match &sa.phase {
        Phase::InitSent(_) => exchange::init::unanswered(ctx, sa),
        Phase::Closing | Phase::Lingering => finish(ctx, sa),
        phase => {
            if matches!(phase, Phase::Intermediate(_) | Phase::Authenticating(_)) {
                exchange::init::silenced(ctx, sa);
            }
            sa.window.answered();
            sa.active = None;
            close(ctx, sa, CloseReason::PeerDead, Tell::Nobody);
            finish(ctx, sa);
        }
    }
}
