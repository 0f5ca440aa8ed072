//! IKE_FOLLOWUP_KE (RFC 9370 2.2.4): the additional key exchanges of a CREATE_CHILD_SA. What that
//! makes comes into being with the last of them; until then it lives under the link its answers
//! carry.

use std::time::Duration;

use crate::event::Blame;
use crate::exchange::create_child::{
    self, Requesting, Responding, abandon_response, answered, requesting_kex, retry_later,
};
use crate::exchange::kex::Kex;
use crate::exchange::{Task, about, rekey_child, rekey_ike, send_request, send_response};
use crate::io::TimerKind;
use crate::sa::IkeSa;
use crate::sa::context::{Ctx, refusal};
use crate::sa::timers::TimerKey;
use crate::wire::{ExchangeType, Notify, NotifyType, Payload, Payloads};

/// How long what the peer began is kept for its next key exchange. It retransmits within it.
const KEEP: Duration = Duration::from_secs(20);

/// Octets of our links; they tell a peer's attempts apart, and are no secret.
const LINK_LEN: usize = 8;

/// Sends our next key exchange when its key pair is there.
pub(crate) fn send(ctx: &mut Ctx, sa: &mut IkeSa) {
    let task = match sa.requesting.as_deref() {
        Some(Requesting::Child(request)) => request.task(),
        Some(Requesting::Ike(_)) => Task::RekeyIke,
        None => return,
    };
    let Some(kex) = requesting_kex(sa) else {
        return;
    };
    if !kex.followup || kex.public.is_empty() {
        return;
    }
    // Without the link it was sent already.
    let Some(link) = kex.link.take() else {
        return;
    };
    let mut payloads = Payloads::from(vec![Payload::Ke(kex.payload())]);
    payloads.push_notify(Notify::with_data(NotifyType::AdditionalKeyExchange, link));
    sa.active = Some(task);
    send_request(ctx, sa, ExchangeType::IkeFollowupKe, &payloads);
}

/// Notes what the peer's answer says about key exchanges to come: the link to them.
///
/// # Errors
/// A sentence, when there are some and no link.
pub(crate) fn note_link(kex: &mut Kex, payloads: &Payloads) -> Result<(), &'static str> {
    kex.link = None;
    if kex.has_more() {
        let link = payloads.notify(NotifyType::AdditionalKeyExchange);
        let missing = "the peer's answer does not lead to the key exchanges it agreed on";
        kex.link = Some(link.ok_or(missing)?.data.clone());
    }
    Ok(())
}

/// The peer's answer to our key exchange.
pub(crate) fn process_response(ctx: &mut Ctx, sa: &mut IkeSa, task: &Task, payloads: &Payloads) {
    if let Some(error) = payloads.error_notify() {
        let kind = error.kind;
        if !matches!(kind, NotifyType::StateNotFound | NotifyType::TemporaryFailure) {
            let what = format!("the peer refused an additional key exchange with {kind}");
            refused(ctx, sa, Blame::Incompatible, Some(kind), what);
        }
        return fail(ctx, sa, task);
    }
    let read = requesting_kex(sa).ok_or("no key exchange is under way").and_then(|kex| {
        let ke = payloads.ke().filter(|ke| ke.method == kex.group);
        let ke = ke.ok_or("the peer's answer lacks the additional key exchange")?;
        note_link(kex, payloads)?;
        Ok(ke.data.clone())
    });
    match read {
        Ok(public) => create_child::with_requesting_kex(ctx, sa, |ctx, sa, kex| {
            kex.agree(ctx, sa, public, true);
        }),
        Err(what) => {
            refused(ctx, sa, Blame::Misbehaved, None, what.to_owned());
            fail(ctx, sa, task);
        }
    }
}

fn fail(ctx: &mut Ctx, sa: &mut IkeSa, task: &Task) {
    match sa.requesting.as_deref() {
        Some(Requesting::Child(_)) => rekey_child::request_failed(ctx, sa),
        Some(Requesting::Ike(_)) => rekey_ike::request_failed(ctx, sa),
        None => retry_later(ctx, sa, task),
    }
}

fn refused(ctx: &mut Ctx, sa: &IkeSa, blame: Blame, notify: Option<NotifyType>, what: String) {
    let fix = "the old SA stays in use; check the peer's software";
    ctx.refuse(about(sa, refusal(blame, notify, "rekey_refused", what, fix)));
}

/// Answers the request in work with what is to say and the link to the peer's next key exchange,
/// which is now waited for.
pub(crate) fn await_next(ctx: &mut Ctx, sa: &mut IkeSa, mut payloads: Payloads) {
    let link = sa.rng.bytes(LINK_LEN);
    if let Some(kex) = answering_kex(sa) {
        kex.link = Some(link.clone());
    }
    payloads.push_notify(Notify::with_data(NotifyType::AdditionalKeyExchange, link));
    let at = ctx.now.mono.after(KEEP);
    ctx.timers.set(TimerKey::new(sa.id, TimerKind::FollowupKe), at);
    send_response(ctx, sa, sa.answering, &payloads);
    answered(ctx, sa);
}

/// The peer's next key exchange.
pub(crate) fn process_request(ctx: &mut Ctx, sa: &mut IkeSa, payloads: &Payloads) {
    let link = payloads.notify(NotifyType::AdditionalKeyExchange).map(|notify| &notify.data);
    let known =
        answering_kex(sa).is_some_and(|kex| kex.link.is_some() && kex.link.as_ref() == link);
    if !known {
        // Given up, or of before a restart: the peer begins again (RFC 9370 2.2.4).
        let what = "the peer's additional key exchange belongs to no rekey that is under way";
        let kind = (Blame::Misbehaved, "state_not_found");
        let notify = Notify::new(NotifyType::StateNotFound);
        let fix = "nothing: the peer begins the rekey again";
        return create_child::refuse(ctx, sa, notify, kind, what, fix);
    }
    ctx.timers.cancel(TimerKey::new(sa.id, TimerKind::FollowupKe));
    let Some(mut responding) = sa.responding.take() else {
        return;
    };
    let accepted = match (responding.kex_mut(), payloads.ke()) {
        (Some(kex), Some(ke)) => {
            kex.link = None;
            kex.next_answer(ctx, sa, ke)
        }
        _ => false,
    };
    sa.responding = Some(responding);
    if !accepted {
        let what = "the peer's additional key exchange is not the one agreed on".to_owned();
        refused(ctx, sa, Blame::Misbehaved, Some(NotifyType::InvalidSyntax), what);
        abandon_response(ctx, sa);
        create_child::respond_error(ctx, sa, Notify::new(NotifyType::InvalidSyntax));
        answered(ctx, sa);
    }
}

/// The peer's next key exchange did not come.
pub(crate) fn expired(ctx: &mut Ctx, sa: &mut IkeSa) {
    if is_awaited(sa) {
        let what = "the peer began a rekey and did not go on with its key exchanges".to_owned();
        refused(ctx, sa, Blame::Misbehaved, None, what);
        abandon_response(ctx, sa);
        answered(ctx, sa);
    }
}

/// A key exchange of the peer is waited for.
pub(crate) fn is_awaited(sa: &mut IkeSa) -> bool {
    answering_kex(sa).is_some_and(|kex| kex.link.is_some())
}

fn answering_kex(sa: &mut IkeSa) -> Option<&mut Kex> {
    sa.responding.as_deref_mut().and_then(Responding::kex_mut)
}
