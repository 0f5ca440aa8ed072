//! CREATE_CHILD_SA (RFC 7296 1.3): the frame around new child SAs, rekeyed child SAs and rekeyed
//! IKE SAs. Here is decided whether a request can be taken at all; what it makes is in
//! `rekey_child` and `rekey_ike`.

use std::time::Duration;

use crate::crypto::KexResponse;
use crate::event::{Blame, CloseReason};
use crate::exchange::kex::Kex;
use crate::exchange::rekey_child::{ChildAnswer, ChildRequest};
use crate::exchange::rekey_ike::{IkeAnswer, IkeRequest};
use crate::exchange::{
    Task, about, advance, followup, nonces, rekey_child, rekey_ike, send_response,
};
use crate::io::{ChildSaId, TimerKind};
use crate::rng::SaRng;
use crate::sa::context::{Ctx, Deferred, Purpose, refusal};
use crate::sa::timers::TimerKey;
use crate::sa::{IkeSa, Phase, lifecycle};
use crate::wire::{Nonce, Notify, NotifyType, Payloads, ProtocolId};

pub(crate) use rekey_child::{
    build as build_child_rekey, build_new as build_new_child,
    process_response as process_child_response,
};
pub(crate) use rekey_ike::{build as build_ike_rekey, process_response as process_ike_response};

/// Octets of our nonces.
const NONCE_LEN: usize = 32;

/// How long a peer that said TEMPORARY_FAILURE is left alone (RFC 7296 2.25), at least; the same
/// again at most is added by chance, so that two peers do not collide forever.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// A CREATE_CHILD_SA of ours.
#[derive(Debug)]
pub(crate) enum Requesting {
    Child(ChildRequest),
    Ike(IkeRequest),
}

/// A CREATE_CHILD_SA of the peer's.
#[derive(Debug)]
pub(crate) enum Responding {
    Child(ChildAnswer),
    Ike(IkeAnswer),
}

impl Requesting {
    pub(crate) fn kex_mut(&mut self) -> Option<&mut Kex> {
        match self {
            Self::Child(request) => request.kex_mut(),
            Self::Ike(request) => Some(&mut request.kex),
        }
    }
}

impl Responding {
    pub(crate) fn kex_mut(&mut self) -> Option<&mut Kex> {
        match self {
            Self::Child(response) => response.kex_mut(),
            Self::Ike(response) => Some(&mut response.kex),
        }
    }

    fn into_kex(self) -> Option<Kex> {
        match self {
            Self::Child(response) => response.into_kex(),
            Self::Ike(response) => Some(response.kex),
        }
    }
}

/// The key exchange of our own request.
pub(crate) fn requesting_kex(sa: &mut IkeSa) -> Option<&mut Kex> {
    sa.requesting.as_deref_mut().and_then(Requesting::kex_mut)
}

/// Works on the key exchange of our own request with the SA beside it.
pub(crate) fn with_requesting_kex(
    ctx: &mut Ctx,
    sa: &mut IkeSa,
    work: impl FnOnce(&mut Ctx, &IkeSa, &mut Kex),
) {
    let mut requesting = sa.requesting.take();
    if let Some(kex) = requesting.as_deref_mut().and_then(Requesting::kex_mut) {
        work(ctx, sa, kex);
    }
    sa.requesting = requesting;
}

/// Whether the secrets of our own request are all there; if not, the next key exchange is begun or
/// sent as far as it can be.
pub(crate) fn request_settled(ctx: &mut Ctx, sa: &mut IkeSa) -> bool {
    let mut settled = true;
    with_requesting_kex(ctx, sa, |ctx, sa, kex| {
        settled = kex.is_agreed() && !kex.next_request(ctx, sa);
    });
    if !settled {
        followup::send(ctx, sa);
    }
    settled
}

/// Whether the secret for the answer in work is there.
pub(crate) fn answer_settled(ctx: &mut Ctx, sa: &mut IkeSa) -> bool {
    let mut responding = sa.responding.take();
    let kex = responding.as_deref_mut().and_then(Responding::kex_mut);
    let settled = kex.is_none_or(|kex| kex.settled(ctx, sa));
    sa.responding = responding;
    settled
}

/// A nonce of ours.
pub(crate) fn fresh_nonce(rng: &mut SaRng) -> Option<Nonce> {
    Nonce::new(rng.bytes(NONCE_LEN)).ok()
}

/// The peer's request.
pub(crate) fn process_request(ctx: &mut Ctx, sa: &mut IkeSa, payloads: &Payloads) {
    // RFC 7296 2.25.2: nothing is made under an SA that is being closed or was replaced.
    if !sa.is_established() {
        return respond_error(ctx, sa, Notify::new(NotifyType::TemporaryFailure));
    }
    let given_up = followup::is_awaited(sa);
    if given_up {
        // The peer has given up what it began before.
        abandon_response(ctx, sa);
    }
    serve(ctx, sa, payloads);
    if given_up && sa.responding.is_none() {
        // Our own exchange may have waited for what is not to come.
        answered(ctx, sa);
    }
}

fn serve(ctx: &mut Ctx, sa: &mut IkeSa, payloads: &Payloads) {
    let (Some(offer), Some(ni)) = (payloads.sa(), payloads.nonce()) else {
        let what = "CREATE_CHILD_SA without proposals or nonce";
        let notify = Notify::new(NotifyType::InvalidSyntax);
        let kind = (Blame::Malformed, "invalid_syntax");
        return refuse(ctx, sa, notify, kind, what, "check the peer's software");
    };
    let short = sa.protection.as_ref().map(|protection| nonces::check(protection.prf(), ni));
    if let Some(Err(refused)) = short {
        ctx.refuse(about(sa, *refused));
        return respond_error(ctx, sa, Notify::new(NotifyType::InvalidSyntax));
    }
    let ike = offer.proposals.first().is_some_and(|first| first.protocol == ProtocolId::Ike);
    if ike {
        rekey_ike::process_request(ctx, sa, payloads, offer, ni);
    } else {
        rekey_child::process_request(ctx, sa, payloads, offer, ni);
    }
}

/// Answers with an error and nothing else.
pub(crate) fn respond_error(ctx: &mut Ctx, sa: &mut IkeSa, notify: Notify) {
    let mut payloads = Payloads::new();
    payloads.push_notify(notify);
    send_response(ctx, sa, sa.answering, &payloads);
}

/// Answers with an error, and tells the operator why.
pub(crate) fn refuse(
    ctx: &mut Ctx,
    sa: &mut IkeSa,
    notify: Notify,
    (blame, code): (Blame, &'static str),
    what: impl Into<String>,
    fix: &str,
) {
    let refused = about(sa, refusal(blame, Some(notify.kind), code, what, fix));
    ctx.refuse(refused);
    respond_error(ctx, sa, notify);
}

/// Tries again later.
pub(crate) fn retry_later(ctx: &mut Ctx, sa: &mut IkeSa, task: &Task) {
    let key = match task {
        Task::RekeyIke => TimerKey::new(sa.id, TimerKind::RekeyIke),
        Task::CreateChild => TimerKey::new(sa.id, TimerKind::CreateChild),
        Task::RekeyChild(child) => TimerKey::sub(sa.id, TimerKind::RekeyChild, child.0),
        _ => return,
    };
    let micros = u64::try_from(RETRY_AFTER.as_micros()).unwrap_or(u64::MAX);
    let jitter = Duration::from_micros(sa.rng.below(micros));
    let at = ctx.now.mono.after(RETRY_AFTER).after(jitter);
    ctx.timers.set(key, at);
}

/// An SPI was reserved for a child of ours.
pub(crate) fn spi(ctx: &mut Ctx, sa: &mut IkeSa, purpose: &Purpose, answer: Result<u32, String>) {
    match purpose {
        Purpose::RequestSpi(handle) if requesting(sa) == Some(*handle) => {
            rekey_child::request_spi(ctx, sa, answer);
        }
        Purpose::RespondSpi(handle) if responding(sa) == Some(*handle) => {
            rekey_child::answer_spi(ctx, sa, answer);
        }
        _ => {}
    }
}

/// A key exchange operation is done.
pub(crate) fn key_exchange(
    ctx: &mut Ctx,
    sa: &mut IkeSa,
    purpose: &Purpose,
    answer: Result<KexResponse, String>,
) {
    let answer = match answer {
        Ok(KexResponse::Failed { error, .. }) => Err(error.to_string()),
        other => other,
    };
    let (Purpose::RequestKeyPair(handle)
    | Purpose::RequestSecret(handle)
    | Purpose::RespondKeyPair(handle)
    | Purpose::RespondSecret(handle)) = purpose
    else {
        return;
    };
    let ours = matches!(purpose, Purpose::RequestKeyPair(_) | Purpose::RequestSecret(_));
    let current = if ours { requesting(sa) } else { responding(sa) };
    if current != Some(*handle) {
        return;
    }
    match answer {
        Ok(response) => {
            let kex = if ours {
                requesting_kex(sa)
            } else {
                sa.responding.as_deref_mut().and_then(Responding::kex_mut)
            };
            if let Some(kex) = kex {
                kex.absorb(response);
            }
            proceed(ctx, sa, ours);
        }
        Err(why) => {
            let refused = about(
                sa,
                refusal(
                    Blame::Misbehaved,
                    None,
                    "key_exchange",
                    format!("the key exchange of a rekey failed: {why}"),
                    "check the peer's software",
                ),
            );
            ctx.refuse(refused);
            fail(ctx, sa, ours);
        }
    }
}

/// A child was installed, or was not.
pub(crate) fn installed(
    ctx: &mut Ctx,
    sa: &mut IkeSa,
    child: ChildSaId,
    answer: Result<(), String>,
) {
    let of_ours = matches!(
        sa.requesting.as_deref(),
        Some(Requesting::Child(request)) if request.installing() == Some(child)
    );
    let of_theirs = matches!(
        sa.responding.as_deref(),
        Some(Responding::Child(response)) if response.installing() == Some(child)
    );
    if of_ours {
        rekey_child::request_installed(ctx, sa, child, answer);
    } else if of_theirs {
        rekey_child::answer_installed(ctx, sa, child, answer);
    }
}

/// The SPI that our outstanding request proposes for a child, for a snapshot.
pub(crate) fn proposed_spi(sa: &IkeSa) -> Option<u32> {
    match sa.requesting.as_deref()? {
        Requesting::Child(request) => request.proposed_spi(),
        Requesting::Ike(_) => None,
    }
}

/// Whether our request is answered, and what it makes is not in place yet.
pub(crate) fn unfinished(sa: &IkeSa) -> bool {
    match sa.requesting.as_deref() {
        Some(Requesting::Child(request)) => request.is_answered(),
        Some(Requesting::Ike(request)) => request.is_answered(),
        None => false,
    }
}

/// After a restart, the answer to a CREATE_CHILD_SA whose nonce and keys are lost. A child that it
/// made is deleted; the old one lives on. A successor of the IKE SA that it made has taken the
/// children along on the peer's side: nothing is left to be used.
pub(crate) fn process_orphan(
    ctx: &mut Ctx,
    sa: &mut IkeSa,
    spi_in: Option<u32>,
    payloads: &Payloads,
) {
    if payloads.has_notify(NotifyType::AdditionalKeyExchange) || payloads.error_notify().is_some() {
        // Nothing has come of it yet, and nothing will.
        return;
    }
    let Some(proposal) = payloads.sa().and_then(|answer| answer.proposals.first()) else {
        // The last IKE_FOLLOWUP_KE, whose answer names no SPI.
        if payloads.ke().is_some() {
            orphaned_by_followup(ctx, sa, spi_in);
        }
        return;
    };
    if let (Some(spi_in), Some(spi_out)) = (spi_in, proposal.child_spi()) {
        rekey_child::delete_unknown(ctx, sa, spi_in, spi_out.0);
    } else if proposal.protocol == ProtocolId::Ike {
        orphaned_by_followup(ctx, sa, None);
    }
}

/// The peer has made a child that receives on `spi_in`, or a successor of the IKE SA.
fn orphaned_by_followup(ctx: &mut Ctx, sa: &mut IkeSa, spi_in: Option<u32>) {
    match spi_in {
        Some(spi_in) => rekey_child::delete_unknown(ctx, sa, spi_in, 0),
        None => {
            let reason = CloseReason::Failed("restarted in the middle of a rekey".to_owned());
            lifecycle::close(ctx, sa, reason, lifecycle::Tell::Peer);
        }
    }
}

/// Deletes the child that the peer may have made of the SPI we proposed before a restart. A DELETE
/// names the sender's SPI, so the peer's need not be known.
pub(crate) fn delete_orphan(ctx: &mut Ctx, sa: &mut IkeSa, spi_in: u32) {
    rekey_child::delete_unknown(ctx, sa, spi_in, 0);
}

/// Lets go of everything under way: the IKE SA ends.
pub(crate) fn abandon(ctx: &mut Ctx, sa: &mut IkeSa) {
    abandon_request(ctx, sa);
    abandon_response(ctx, sa);
}

/// Lets go of our own request.
pub(crate) fn abandon_request(ctx: &mut Ctx, sa: &mut IkeSa) {
    if let Some(requesting) = sa.requesting.take() {
        let kex = match *requesting {
            Requesting::Child(request) => request.into_kex(),
            Requesting::Ike(request) => {
                // Nobody decides over it any more.
                ctx.deferred.extend(request.crossing().map(Deferred::Redundant));
                Some(request.kex)
            }
        };
        if let Some(kex) = kex {
            kex.release(ctx, sa);
        }
    }
}

fn requesting(sa: &IkeSa) -> Option<u64> {
    match sa.requesting.as_deref()? {
        Requesting::Child(request) => Some(request.handle()),
        Requesting::Ike(request) => Some(request.kex.handle),
    }
}

fn responding(sa: &IkeSa) -> Option<u64> {
    match sa.responding.as_deref()? {
        Responding::Child(response) => Some(response.handle()),
        Responding::Ike(response) => Some(response.kex.handle),
    }
}

fn proceed(ctx: &mut Ctx, sa: &mut IkeSa, ours: bool) {
    match (ours, is_child(sa, ours)) {
        (true, true) => rekey_child::request_proceed(ctx, sa),
        (true, false) => rekey_ike::request_proceed(ctx, sa),
        (false, true) => rekey_child::answer_proceed(ctx, sa),
        (false, false) => rekey_ike::answer_proceed(ctx, sa),
    }
}

/// Our own request came to nothing, which was reported.
pub(crate) fn request_failed(ctx: &mut Ctx, sa: &mut IkeSa) {
    fail(ctx, sa, true);
}

fn fail(ctx: &mut Ctx, sa: &mut IkeSa, ours: bool) {
    match (ours, is_child(sa, ours)) {
        (true, true) => rekey_child::request_failed(ctx, sa),
        (true, false) => rekey_ike::request_failed(ctx, sa),
        (false, _) => put_off(ctx, sa),
    }
}

/// Makes nothing of the peer's request; it may ask again later.
pub(crate) fn put_off(ctx: &mut Ctx, sa: &mut IkeSa) {
    abandon_response(ctx, sa);
    respond_error(ctx, sa, Notify::new(NotifyType::TemporaryFailure));
    answered(ctx, sa);
}

fn is_child(sa: &IkeSa, ours: bool) -> bool {
    if ours {
        matches!(sa.requesting.as_deref(), Some(Requesting::Child(_)))
    } else {
        matches!(sa.responding.as_deref(), Some(Responding::Child(_)))
    }
}

/// Lets go of what the peer began.
pub(crate) fn abandon_response(ctx: &mut Ctx, sa: &mut IkeSa) {
    ctx.timers.cancel(TimerKey::new(sa.id, TimerKind::FollowupKe));
    if let Some(kex) = sa.responding.take().and_then(|responding| responding.into_kex()) {
        kex.release(ctx, sa);
    }
}

/// Whether we have something under way that makes, replaces or closes a child
/// (RFC 7296 2.25.2). What was under way before a restart counts: it may have made a child at the
/// peer, which can be closed only under the IKE SA it belongs to.
pub(crate) fn child_work_under_way(sa: &IkeSa) -> bool {
    matches!(sa.requesting.as_deref(), Some(Requesting::Child(_)))
        || sa.orphan.is_some()
        || matches!(sa.active, Some(Task::CreateChild | Task::DeleteChild(_) | Task::RekeyChild(_)))
}

/// The peer's request is answered: what waited for that goes on. Our own exchange does when it
/// crosses the peer's, since both outcomes decide what stays.
pub(crate) fn answered(ctx: &mut Ctx, sa: &mut IkeSa) {
    if sa.requesting.is_some() && sa.window.outstanding().is_none() {
        proceed(ctx, sa, true);
    }
    advance(ctx, sa);
}

/// Whether a child SA is still to be made that replaces none.
pub(crate) fn asks_for_new(ctx: &Ctx, sa: &IkeSa) -> bool {
    sa.tasks.contains(&Task::CreateChild)
        || sa.active == Some(Task::CreateChild)
        || matches!(sa.requesting.as_deref(), Some(Requesting::Child(r)) if r.rekeys().is_none())
        || ctx.timers.is_set(TimerKey::new(sa.id, TimerKind::CreateChild))
}

/// Whether the peer's IKE rekey is being answered.
pub(crate) fn ike_rekey_answering(sa: &IkeSa) -> bool {
    matches!(sa.responding.as_deref(), Some(Responding::Ike(_)))
}

/// Whether our own IKE rekey is under way.
pub(crate) fn ike_rekey_under_way(sa: &IkeSa) -> bool {
    matches!(sa.requesting.as_deref(), Some(Requesting::Ike(_)))
}

/// Whether the SA can make anything now.
pub(crate) fn may_request(sa: &IkeSa) -> bool {
    matches!(sa.phase, Phase::Established) && sa.requesting.is_none() && sa.responding.is_none()
}
