//! Message id synchronisation after a restart or a takeover (RFC 6311), both roles.
//!
//! What goes on from a snapshot may have missed the last messages, so it tells the peer ids above
//! all that may have been used, and hears where the peer is. Until the answer is there it sends
//! nothing else and, at first, takes no request. The message has id 0, so integrity protection alone
//! does not show that it is fresh: a request must name ids above all that was seen, and an answer
//! must carry our nonce.
//!
//! Silence is the only refusal there is, and does not say why: the peer may have seen higher ids, or
//! be in the middle of an exchange that leaves it no place for a synchronisation. In the second case
//! it waits for us as we do for it. So after some silence its next request is taken, if it has the
//! id that the snapshot expects; and when all transmissions went unanswered, a request with the old
//! ids has its chance before the peer counts as dead.

use crate::engine::receive::may_stray;
use crate::exchange::{Task, advance, create_child, seal, transmit};
use crate::io::TimerKind;
use crate::sa::context::Ctx;
use crate::sa::timers::TimerKey;
use crate::sa::window::Outstanding;
use crate::sa::{IkeSa, Path};
use crate::wire::{
    ExchangeType, Frame, Header, MessageIdSync, Notify, NotifyType, Opened, Payloads,
};

/// How far our ids go beyond those of the snapshot: a peer that has seen a higher one than we tell
/// does not answer. With one request at a time this is as many exchanges as a snapshot may lack.
const JUMP: u32 = 64;

/// The last id that a peer may name: from ids that are as good as used up the count would wrap
/// around, and recorded requests would be new again (RFC 7296 2.2).
const LAST_SYNCHRONISED: u32 = 1 << 31;

/// Transmissions without an answer after which the peer's requests are taken. Most answers come to
/// the first; who replays an old request to an old snapshot must keep the peer's answer away as long.
const PATIENCE: u32 = 2;

/// What an SA knows of synchronisations.
#[derive(Debug, Default)]
pub(crate) struct Sync {
    /// What we told, until the answer is there.
    asked: Option<MessageIdSync>,
    /// Our ids before they were raised, and the request that was out.
    before: Option<(u32, Option<Outstanding>)>,
    /// What the peer told last, and the answer, which is repeated to the same octets.
    answered: Option<(MessageIdSync, Vec<Vec<u8>>)>,
}

/// What the peer told last, for a snapshot.
pub(crate) fn told(sa: &IkeSa) -> Option<MessageIdSync> {
    sa.sync.as_ref()?.answered.as_ref().map(|(told, _)| *told)
}

/// What a snapshot kept: the same is not answered once more, whoever says it again.
pub(crate) fn restore(sa: &mut IkeSa, told: Option<MessageIdSync>) {
    if let Some(told) = told {
        sa.sync.get_or_insert_default().answered = Some((told, Vec::new()));
    }
}

/// A restored SA begins with a synchronisation. What was under way is given up when that succeeds:
/// the peer may have answered it, and its id is among those skipped.
pub(crate) fn begin(ctx: &mut Ctx, sa: &mut IkeSa) {
    let before = (sa.window.next_request(), sa.window.answered());
    sa.sync.get_or_insert_default().before = Some(before);
    sa.window.jump(sa.window.next_request().saturating_add(JUMP), sa.window.next_expected());
    sa.tasks.push_front(Task::Synchronise);
    advance(ctx, sa);
}

/// Our request; false when it cannot be made.
pub(crate) fn build(ctx: &mut Ctx, sa: &mut IkeSa) -> bool {
    let asked = MessageIdSync {
        nonce: u32::from_be_bytes(sa.rng.array()),
        next_send: sa.window.next_request(),
        next_receive: sa.window.next_expected(),
    };
    let mut payloads = Payloads::new();
    payloads.push_notify(Notify::message_id_sync(asked));
    let path = sa.path;
    let header = sa.header(ExchangeType::Informational, false, 0);
    let Some(packets) = seal(ctx, sa, header, &payloads, path) else {
        return false;
    };
    sa.window.sent_aside(0, ExchangeType::Informational, packets.clone());
    sa.sync.get_or_insert_default().asked = Some(asked);
    // The skipped ids count as used: the next start skips further.
    ctx.checkpoint(sa);
    transmit(ctx, path, packets);
    crate::exchange::arm_retransmit(ctx, sa);
    true
}

/// Whether our request waits for its answer.
pub(crate) fn waiting(sa: &IkeSa) -> bool {
    sa.sync.as_ref().is_some_and(|sync| sync.asked.is_some())
}

/// Whether our request has gone unanswered for a while.
pub(crate) fn is_unheard(sa: &IkeSa) -> bool {
    waiting(sa) && sa.window.outstanding().is_some_and(|request| request.tries >= PATIENCE)
}

/// Nobody answered our request: goes on with the ids of before. False when that is no way out.
pub(crate) fn fall_back(ctx: &mut Ctx, sa: &mut IkeSa) -> bool {
    if !sa.is_established() || !waiting(sa) {
        return false;
    }
    let Some((next_request, outstanding)) = sa.sync.as_mut().and_then(|sync| sync.before.take())
    else {
        return false;
    };
    give_up(sa);
    sa.active = None;
    sa.window.fall_back(next_request, outstanding);
    match sa.window.outstanding().map(|request| request.packets.clone()) {
        Some(packets) => {
            ctx.checkpoint(sa);
            let path = sa.path;
            transmit(ctx, path, packets);
            crate::exchange::arm_retransmit(ctx, sa);
        }
        None => {
            delete_orphan(ctx, sa);
            sa.enqueue(Task::Liveness);
            advance(ctx, sa);
        }
    }
    true
}

/// Whether a response answers our request. Old ones, replayed, carry other nonces.
pub(crate) fn fits(sa: &IkeSa, opened: &Opened) -> bool {
    let asked = sa.sync.as_ref().and_then(|sync| sync.asked);
    let said = opened.payloads().ok().and_then(|payloads| said(&payloads));
    matches!((asked, said), (Some(asked), Some(said)) if said.nonce == asked.nonce
        && said.next_receive >= asked.next_send
        && said.next_send >= asked.next_receive)
}

/// The peer's answer, which [`fits`].
pub(crate) fn process_response(ctx: &mut Ctx, sa: &mut IkeSa, payloads: &Payloads) {
    if let Some(sync) = &mut sa.sync {
        (sync.asked, sync.before) = (None, None);
    }
    let Some(said) = said(payloads) else {
        return;
    };
    sa.window.jump(said.next_receive, said.next_send);
    delete_orphan(ctx, sa);
}

/// The peer may have made the child that was asked for when we stopped.
pub(crate) fn delete_orphan(ctx: &mut Ctx, sa: &mut IkeSa) {
    if let Some(Some(spi)) = sa.orphan.take()
        && sa.is_established()
    {
        create_child::delete_orphan(ctx, sa, spi);
    }
}

/// Nobody waits for the answer any more.
pub(crate) fn give_up(sa: &mut IkeSa) {
    if let Some(sync) = &mut sa.sync {
        sync.asked = None;
    }
}

/// Whether a message can be a synchronisation at all. Nothing else tells so before decryption:
/// the first request of a rekeyed IKE SA has id 0, too.
pub(crate) fn may_be(sa: &IkeSa, header: &Header) -> bool {
    sa.traits.message_id_sync
        && sa.is_established()
        && header.exchange == ExchangeType::Informational
        && header.message_id == 0
}

/// Takes a synchronisation of the peer; false when the message is something else.
pub(crate) fn process_request(ctx: &mut Ctx, sa: &mut IkeSa, frame: &Frame, path: Path) -> bool {
    let Some(protection) = sa.protection.as_deref() else {
        return false;
    };
    let payloads = protection.open(frame).ok().and_then(|opened| opened.payloads().ok());
    let Some(told) = payloads.and_then(|payloads| said(&payloads)) else {
        return false;
    };
    let repeated = sa
        .sync
        .as_ref()
        .and_then(|sync| sync.answered.as_ref())
        .filter(|(last, _)| last.next_send >= told.next_send);
    // RFC 6311 5.1: in silence, what is not above all that was seen.
    if told.next_send < sa.window.next_expected() || sa.window.is_busy() {
        return true;
    }
    if let Some((last, packets)) = repeated {
        // Whoever replays it from addresses of others has us send no more.
        if *last == told
            && !packets.is_empty()
            && (path == sa.path || may_stray(&mut sa.strayed, ctx))
        {
            let packets = packets.clone();
            transmit(ctx, path, packets);
        }
        return true;
    }
    answer(ctx, sa, told, path);
    true
}

fn answer(ctx: &mut Ctx, sa: &mut IkeSa, told: MessageIdSync, path: Path) {
    let next_send = sa.window.next_request().max(told.next_receive);
    let next_receive = sa.window.next_expected().max(told.next_send);
    let mut payloads = Payloads::new();
    let said = MessageIdSync { nonce: told.nonce, next_send, next_receive };
    payloads.push_notify(Notify::message_id_sync(said));
    let header = sa.header(ExchangeType::Informational, true, 0);
    let Some(packets) = seal(ctx, sa, header, &payloads, path) else {
        return;
    };
    sa.last_heard = ctx.now.mono;
    sa.inbox.clear(false);
    sa.inbox.clear(true);
    for side in [0, 1] {
        ctx.timers.cancel(TimerKey::sub(sa.id, TimerKind::Reassembly, side));
    }
    let sync = sa.sync.get_or_insert_default();
    sync.answered = Some((told, packets.clone()));
    // Its ids are those that count now.
    sync.before = None;
    let outstanding = if waiting(sa) {
        // Both restarted: ours goes on, with ids that are high enough for either.
        sa.window.expect(next_receive);
        sa.window.request_from(next_send);
        None
    } else {
        let outstanding = sa.window.answered();
        sa.window.jump(next_send, next_receive);
        outstanding
    };
    ctx.checkpoint(sa);
    transmit(ctx, path, packets);
    let Some(outstanding) = outstanding else {
        return advance(ctx, sa);
    };
    ctx.timers.cancel(TimerKey::new(sa.id, TimerKind::Retransmit));
    match outstanding.payloads {
        // Whoever took over may not know of our request: it is sent again under the next id.
        Some(payloads) => {
            crate::exchange::send_request(ctx, sa, outstanding.exchange, &payloads);
        }
        // It was sent before our own restart.
        None => {
            sa.active = None;
            delete_orphan(ctx, sa);
            sa.enqueue(Task::Liveness);
            advance(ctx, sa);
        }
    }
}

fn said(payloads: &Payloads) -> Option<MessageIdSync> {
    let said = payloads.notify(NotifyType::MessageIdSync)?.as_message_id_sync().ok()?;
    (said.next_send.max(said.next_receive) <= LAST_SYNCHRONISED).then_some(said)
}
