//! Rekeying the IKE SA (RFC 7296 1.3.2, 2.18), and rekeys that cross (2.8.2, 2.25.2).
//!
//! The children move to the successor; the old SA only waits for its DELETE, which the initiator
//! of the rekey sends. When two rekeys cross, the children stay where they are until both nonces
//! pairs are known and both sides agree which successor survives.

use crate::crypto::keymat::Nonces;
use crate::crypto::{IkeSuite, suite};
use crate::event::{Blame, CloseReason, Event};
use crate::exchange::auth;
use crate::exchange::collision::ours_is_redundant;
use crate::exchange::create_child::{
    self, Requesting, Responding, abandon_request, answer_settled, child_work_under_way,
    ike_rekey_answering, may_request, request_settled, respond_error, retry_later,
    with_requesting_kex,
};
use crate::exchange::kex::Kex;
use crate::exchange::{
    Task, about, advance, crash, followup, nonces, redirect, send_request, send_response,
};
use crate::io::{ChildSaId, IkeSaId, TimerKind};
use crate::policy::proposal::{self, Chosen};
use crate::sa::context::{Ctx, Deferred, refusal};
use crate::sa::protect::Protection;
use crate::sa::timers::TimerKey;
use crate::sa::window::Window;
use crate::sa::{IkeSa, Phase, lifecycle};
use crate::view::SaRole;
use crate::wire::{
    ExchangeType, IkeSpi, KeMethod, Nonce, Notify, NotifyType, Payload, Payloads,
    SecurityAssociation,
};

/// Our rekey.
#[derive(Debug)]
pub(crate) struct IkeRequest {
    pub(crate) kex: Kex,
    ni: Nonce,
    spi: IkeSpi,
    suites: Vec<IkeSuite>,
    sent: bool,
    answer: Option<(Nonce, Chosen<IkeSuite>)>,
    /// The peer's crash token for the successor.
    token: Option<Box<[u8]>>,
    collision: Option<Collision>,
}

impl IkeRequest {
    /// What the peer's crossing rekey made, which waits for the outcome of ours.
    pub(crate) fn crossing(&self) -> Option<IkeSaId> {
        self.collision.as_ref().map(|collision| collision.successor)
    }

    /// The peer has answered it; its successor is not made yet.
    pub(crate) fn is_answered(&self) -> bool {
        self.answer.is_some()
    }
}

/// The peer's rekey, which crosses ours.
#[derive(Debug)]
struct Collision {
    nonces: (Nonce, Nonce),
    successor: IkeSaId,
}

/// The peer's rekey.
#[derive(Debug)]
pub(crate) struct IkeAnswer {
    pub(crate) kex: Kex,
    ni: Nonce,
    nr: Nonce,
    spi: IkeSpi,
    chosen: Chosen<IkeSuite>,
}

impl IkeAnswer {
    /// The new SA's SPIs, the initiator's first.
    fn spis(&self) -> (IkeSpi, IkeSpi) {
        let peer = <[u8; 8]>::try_from(self.chosen.spi.as_slice()).map(u64::from_be_bytes);
        (IkeSpi(peer.unwrap_or_default()), self.spi)
    }
}

/// Starts a rekey; false when it cannot be now.
pub(crate) fn build(ctx: &mut Ctx, sa: &mut IkeSa) -> bool {
    if !sa.is_established() {
        return false;
    }
    if !may_request(sa) {
        retry_later(ctx, sa, &Task::RekeyIke);
        return false;
    }
    let Some(suite) = sa.protection.as_ref().map(|protection| protection.suite().clone()) else {
        return false;
    };
    start(ctx, sa, suite.kex, suite)
}

fn start(ctx: &mut Ctx, sa: &mut IkeSa, group: KeMethod, current: IkeSuite) -> bool {
    let Some(ni) = create_child::fresh_nonce(&mut sa.rng) else {
        return false;
    };
    let handle = ctx.fresh_id();
    // What runs is offered first; then all else we accept.
    let mut first = IkeSuite { kex: group, ..current };
    // No method is used twice (RFC 9370 2.2.1).
    first.additional.retain(|kex| kex.method != group);
    let mut suites = vec![first];
    for suite in &ctx.config.ike_suites {
        if !suites.contains(suite) {
            suites.push(suite.clone());
        }
    }
    let spi = fresh_spi(ctx, sa);
    let kex = Kex::request(ctx, sa, handle, group);
    ctx.timers.cancel(TimerKey::new(sa.id, TimerKind::RekeyIke));
    sa.requesting = Some(Box::new(Requesting::Ike(IkeRequest {
        kex,
        ni,
        spi,
        suites,
        sent: false,
        answer: None,
        token: None,
        collision: None,
    })));
    true
}

/// A new SPI with our shard in front. Its 56 random bits do not meet another's; if they do, the
/// engine refuses the successor.
fn fresh_spi(ctx: &Ctx, sa: &mut IkeSa) -> IkeSpi {
    let [_, a, b, c, d, e, f, g] = sa.rng.array::<8>();
    IkeSpi(u64::from_be_bytes([ctx.config.shard, a, b, c, d, e, f, g | 1]))
}

fn request(sa: &mut IkeSa) -> Option<&mut IkeRequest> {
    match sa.requesting.as_deref_mut() {
        Some(Requesting::Ike(request)) => Some(request),
        _ => None,
    }
}

/// The key pair or the shared secret is there.
pub(crate) fn request_proceed(ctx: &mut Ctx, sa: &mut IkeSa) {
    let Some(request) = request(sa) else {
        return;
    };
    if request.answer.is_some() {
        // What the peer's crossing exchange makes is to be known first.
        if request_settled(ctx, sa) && !ike_rekey_answering(sa) {
            complete(ctx, sa);
        }
        return;
    }
    if request.sent || request.kex.public.is_empty() {
        return;
    }
    request.sent = true;
    let payloads = Payloads::from(vec![
        Payload::Sa(proposal::offer_ike(&request.suites, Some(request.spi))),
        Payload::Nonce(request.ni.clone()),
        Payload::Ke(request.kex.payload()),
    ]);
    send_request(ctx, sa, ExchangeType::CreateChildSa, &payloads);
}

/// The peer's answer.
pub(crate) fn process_response(ctx: &mut Ctx, sa: &mut IkeSa, payloads: &Payloads) {
    if let Some(error) = payloads.error_notify() {
        return refused(ctx, sa, error);
    }
    let Some(request) = request(sa) else {
        return;
    };
    let (Some(answer), Some(nr), Some(ke)) = (payloads.sa(), payloads.nonce(), payloads.ke())
    else {
        return fail(ctx, sa, "the peer's answer to an IKE rekey is incomplete");
    };
    let Some(chosen) = proposal::accept_ike(&request.suites, answer) else {
        return fail(ctx, sa, "the peer chose an IKE proposal that was not offered");
    };
    let spi = <[u8; 8]>::try_from(chosen.spi.as_slice()).map(u64::from_be_bytes);
    if !matches!(spi, Ok(spi) if spi != 0)
        || ke.method != request.kex.group
        || chosen.suite.kex != ke.method
    {
        return fail(ctx, sa, "the peer's SPI or key exchange does not fit our IKE rekey");
    }
    // The old SA's PRF makes the seed of the new one's, which makes the keys (RFC 7296 2.18).
    let prfs = [sa.protection.as_ref().map(|old| old.prf()), ctx.crypto.prf(chosen.suite.prf)];
    if let Some(refused) = prfs.into_iter().flatten().find_map(|prf| nonces::check(prf, nr).err()) {
        return fail(ctx, sa, &refused.what);
    }
    let Some(request) = self::request(sa) else {
        return;
    };
    request.kex.chosen(chosen.suite.additional_methods());
    if let Err(what) = followup::note_link(&mut request.kex, payloads) {
        return fail(ctx, sa, what);
    }
    request.answer = Some((nr.clone(), chosen));
    request.token = crash::told(payloads);
    let public = ke.data.clone();
    with_requesting_kex(ctx, sa, |ctx, sa, kex| kex.agree(ctx, sa, public, true));
}

fn refused(ctx: &mut Ctx, sa: &mut IkeSa, error: &Notify) {
    let current = sa.protection.as_ref().map(|protection| protection.suite().clone());
    match error.kind {
        NotifyType::InvalidKePayload => {
            let used = request(sa).map(|request| request.kex.group);
            let wanted = error.ke_method().ok().filter(|group| {
                Some(*group) != used
                    && ctx.config.ike_suites.iter().any(|suite| suite.kex == *group)
            });
            if let (Some(group), Some(current)) = (wanted, current) {
                let collision = request(sa).and_then(|request| request.collision.take());
                if collision.is_none() {
                    abandon_request(ctx, sa);
                    if start(ctx, sa, group, current) {
                        sa.active = Some(Task::RekeyIke);
                    }
                    return;
                }
                if let Some(request) = request(sa) {
                    request.collision = collision;
                }
            } else {
                report_hint(ctx, sa, error.kind);
                retry_later(ctx, sa, &Task::RekeyIke);
            }
        }
        NotifyType::TemporaryFailure => retry_later(ctx, sa, &Task::RekeyIke),
        kind => {
            let what = format!("the peer refused to rekey the IKE SA with {kind}");
            let fix = "the old SA stays in use; compare both sides' IKE proposals";
            let refused =
                about(sa, refusal(Blame::Incompatible, Some(kind), "rekey_refused", what, fix));
            ctx.refuse(refused);
            retry_later(ctx, sa, &Task::RekeyIke);
        }
    }
    finish_without(ctx, sa);
}

/// The peer asks for a group that it was given, or that we do not accept.
fn report_hint(ctx: &mut Ctx, sa: &IkeSa, kind: NotifyType) {
    let what = "the peer asks for a key exchange in an IKE rekey that cannot be used";
    let fix = "the old SA stays in use; compare both sides' IKE proposals";
    let refused = refusal(Blame::Incompatible, Some(kind), "rekey_refused", what, fix);
    ctx.refuse(about(sa, refused));
}

fn fail(ctx: &mut Ctx, sa: &mut IkeSa, what: &str) {
    let fix = "the old SA stays in use; check the peer's software";
    let refused = about(sa, refusal(Blame::Misbehaved, None, "bad_rekey", what, fix));
    ctx.refuse(refused);
    request_failed(ctx, sa);
}

/// The exchange came to nothing.
pub(crate) fn request_failed(ctx: &mut Ctx, sa: &mut IkeSa) {
    retry_later(ctx, sa, &Task::RekeyIke);
    finish_without(ctx, sa);
}

/// Our request is over without a successor; the peer's crossing one, if any, takes over.
fn finish_without(ctx: &mut Ctx, sa: &mut IkeSa) {
    if let Some(collision) = request(sa).and_then(|request| request.collision.take()) {
        let (old, new) = (sa.id, collision.successor);
        ctx.deferred.push_back(Deferred::Succeed { old, new, delete: false });
    }
    abandon_request(ctx, sa);
    if sa.window.outstanding().is_none() {
        sa.active = None;
    }
    advance(ctx, sa);
}

/// Both public values and nonces are known: makes the successor.
fn complete(ctx: &mut Ctx, sa: &mut IkeSa) {
    let Some(requesting) = sa.requesting.take() else {
        return;
    };
    let Requesting::Ike(request) = *requesting else {
        return;
    };
    let Some((nr, chosen)) = request.answer else {
        return;
    };
    let shared = request.kex.secrets();
    let peer_spi = <[u8; 8]>::try_from(chosen.spi.as_slice()).map(u64::from_be_bytes);
    let spis = (request.spi, IkeSpi(peer_spi.unwrap_or_default()));
    let nonces = Nonces { i: request.ni.as_bytes(), r: nr.as_bytes() };
    let made = sa
        .protection
        .as_deref()
        .map(|old| Protection::rekeyed(old, ctx.crypto, chosen.suite, true, spis, nonces, &shared));
    let Some(Ok(protection)) = made else {
        return fail(ctx, sa, "the keys of the new IKE SA could not be derived");
    };
    let mut new = successor(ctx, sa, SaRole::Initiator, spis, protection);
    new.peer_token = request.token;
    if crash::makes(ctx) {
        new.tasks.push_back(Task::CrashToken);
    }
    let id = new.id;
    let redundant = request.collision.as_ref().is_some_and(|collision| {
        let theirs = (&collision.nonces.0, &collision.nonces.1);
        ours_is_redundant((&request.ni, &nr), theirs)
    });
    match request.collision {
        Some(collision) if redundant => {
            // RFC 7296 2.8.2: who made the redundant SA closes it, and the other one survives.
            new.close_reason = Some(CloseReason::Rekeyed);
            lifecycle::bury(ctx, &mut new, lifecycle::Tell::Peer);
            ctx.deferred.push_back(Deferred::Adopt(new));
            let (old, new) = (sa.id, collision.successor);
            ctx.deferred.push_back(Deferred::Succeed { old, new, delete: false });
        }
        collision => {
            ctx.deferred.push_back(Deferred::Adopt(new));
            let (old, new) = (sa.id, id);
            ctx.deferred.push_back(Deferred::Succeed { old, new, delete: true });
            if let Some(collision) = collision {
                ctx.deferred.push_back(Deferred::Redundant(collision.successor));
            }
        }
    }
    sa.active = None;
}

/// An SA that replaces `old`, without children yet.
fn successor(
    ctx: &mut Ctx,
    old: &IkeSa,
    role: SaRole,
    spis: (IkeSpi, IkeSpi),
    protection: Protection,
) -> Box<IkeSa> {
    let id = IkeSaId(ctx.fresh_id());
    let rng = ctx.seed.stream(id.0);
    let now = ctx.now.mono;
    let mut new = Box::new(IkeSa::new(id, role, spis, old.path, rng, Phase::Established, now));
    new.window = Window::at(0, 0);
    new.protection = Some(Box::new(protection));
    new.connected_as = old.connected_as;
    new.traits = old.traits.clone();
    new.auth = old.auth.clone();
    new.peer = old.peer.clone();
    new.reauth_by = old.reauth_by;
    if let Some(auth) = &mut new.auth {
        auth.established_at = now;
    }
    new
}

/// Moves everything that lives from an IKE SA to its successor. `delete` says that the DELETE of
/// the old one is ours to send.
pub(crate) fn succeed(ctx: &mut Ctx, old: &mut IkeSa, new: &mut IkeSa, delete: bool) {
    if !old.is_established() || !new.is_established() {
        // What waited for the successor goes on without it.
        return advance(ctx, old);
    }
    new.children = std::mem::take(&mut old.children);
    let children: Vec<ChildSaId> = new.children.keys().copied().collect();
    for child in children {
        for kind in [TimerKind::RekeyChild, TimerKind::Activate] {
            let from = TimerKey::sub(old.id, kind, child.0);
            if let Some(at) = ctx.timers.at(from) {
                ctx.timers.cancel(from);
                ctx.timers.set(TimerKey::sub(new.id, kind, child.0), at);
            }
        }
    }
    if let Some(at) = ctx.timers.at(TimerKey::new(old.id, TimerKind::CreateChild)) {
        ctx.timers.set(TimerKey::new(new.id, TimerKind::CreateChild), at);
    }
    // Nor does a newer SA of the lease wait for longer than it was to.
    for sub in [0, redirect::SENT_AWAY] {
        if let Some(at) = ctx.timers.at(TimerKey::sub(old.id, TimerKind::Overlap, sub)) {
            ctx.timers.set(TimerKey::sub(new.id, TimerKind::Overlap, sub), at);
        }
    }
    ctx.reauths.succeeded(old.id, new.id);
    // What was queued for the children goes along; what was about the old SA does not.
    let tasks = std::mem::take(&mut old.tasks);
    new.tasks.extend(tasks.into_iter().filter(|task| {
        matches!(
            task,
            Task::CreateChild
                | Task::DeleteChild(_)
                | Task::RekeyChild(_)
                | Task::UpdateAddresses
                | Task::Redirect
        )
    }));
    // A peer that hears of it on the old SA only does not go: it is said again.
    if old.active == Some(Task::Redirect) {
        new.enqueue(Task::Redirect);
    }
    new.auth = old.auth.clone();
    if let Some(auth) = &mut new.auth {
        auth.established_at = ctx.now.mono;
    }
    new.path = old.path;
    new.traits = old.traits.clone();
    new.counted = std::mem::take(&mut old.counted);
    new.redundant = false;
    ctx.timers.cancel(TimerKey::new(new.id, TimerKind::Tombstone));
    new.close_reason = None;
    if let Some(event) = auth::ike_up(new) {
        ctx.event(event);
    }
    ctx.timers.cancel_sa(old.id);
    lifecycle::established(ctx, new);
    ctx.checkpoint(new);
    ctx.forget(old.id);
    let (lease, connection) = (old.lease_id(), old.connection());
    let reason = CloseReason::Rekeyed;
    ctx.event(Event::IkeDown { ike: old.id, lease, reason, connection });
    old.close_reason = Some(CloseReason::Rekeyed);
    old.phase = Phase::Rekeyed;
    crate::exchange::arm_retransmit(ctx, old);
    // Whoever is to delete the old SA may be gone: it does not stay forever.
    let at = ctx.now.mono.after(ctx.config.timers.tombstone);
    ctx.timers.set(TimerKey::new(old.id, TimerKind::Tombstone), at);
    if delete {
        old.tasks.push_back(Task::DeleteIke);
        advance(ctx, old);
    }
    advance(ctx, new);
}

/// The peer rekeys the IKE SA.
pub(crate) fn process_request(
    ctx: &mut Ctx,
    sa: &mut IkeSa,
    payloads: &Payloads,
    offer: &SecurityAssociation,
    ni: &Nonce,
) {
    // RFC 7296 2.25.2: not while we make, replace or close a child.
    // Nor when the peer has answered our own rekey: it has the successor already (2.25.1).
    if child_work_under_way(sa) || request(sa).is_some_and(|request| request.answer.is_some()) {
        return respond_error(ctx, sa, Notify::new(NotifyType::TemporaryFailure));
    }
    let Some(ke) = payloads.ke() else {
        let what = "the peer rekeys the IKE SA without a key exchange";
        let notify = Notify::new(NotifyType::InvalidSyntax);
        let kind = (Blame::Malformed, "invalid_syntax");
        return create_child::refuse(ctx, sa, notify, kind, what, "check the peer's software");
    };
    let ours = &ctx.config.ike_suites;
    let Some(chosen) = proposal::choose_ike(ours, offer, ke.method, true) else {
        let refused = about(
            sa,
            refusal(
                Blame::Incompatible,
                Some(NotifyType::NoProposalChosen),
                "no_proposal_chosen",
                format!(
                    "no common IKE proposal in a rekey: the peer offered {}; accepted here are {}",
                    proposal::text(offer),
                    proposal::suites_text(ours)
                ),
                "let the client's IKE proposal contain one of ours",
            ),
        );
        ctx.refuse(refused);
        return respond_error(ctx, sa, Notify::new(NotifyType::NoProposalChosen));
    };
    let prf = ctx.crypto.prf(chosen.suite.prf);
    if let Some(Err(refused)) = prf.map(|prf| nonces::check(prf, ni)) {
        ctx.refuse(about(sa, *refused));
        return respond_error(ctx, sa, Notify::new(NotifyType::InvalidSyntax));
    }
    if chosen.suite.kex != ke.method {
        let notify = Notify::invalid_ke(chosen.suite.kex);
        return respond_error(ctx, sa, notify);
    }
    // Before anything is computed for it: an SPI is 8 octets and never zero (RFC 7296 3.3.1, 3.1).
    let nr = create_child::fresh_nonce(&mut sa.rng);
    let (Some(nr), true) = (nr, chosen.spi.len() == 8 && chosen.spi.iter().any(|o| *o != 0)) else {
        let what = "the peer rekeys the IKE SA with an SPI that is not 8 octets, or zero";
        let notify = Notify::new(NotifyType::InvalidSyntax);
        let kind = (Blame::Malformed, "invalid_spi");
        return create_child::refuse(ctx, sa, notify, kind, what, "check the peer's software");
    };
    // Our own rekey that is not yet sent gives way, and comes back if nothing comes of the peer's.
    if request(sa).is_some_and(|request| !request.sent) {
        abandon_request(ctx, sa);
        sa.active = None;
        retry_later(ctx, sa, &Task::RekeyIke);
    }
    let handle = ctx.fresh_id();
    let additional = chosen.suite.additional_methods();
    let Some(kex) = Kex::answer(ctx, sa, handle, ke.method, &ke.data, additional) else {
        let what = format!("the peer's public value is none of {}", suite::kex_name(ke.method));
        let notify = Notify::new(NotifyType::InvalidSyntax);
        let kind = (Blame::Malformed, "invalid_ke");
        return create_child::refuse(ctx, sa, notify, kind, what, "check the peer's software");
    };
    let spi = fresh_spi(ctx, sa);
    sa.responding =
        Some(Box::new(Responding::Ike(IkeAnswer { kex, ni: ni.clone(), nr, spi, chosen })));
}

/// The key pair or the shared secret is there.
pub(crate) fn answer_proceed(ctx: &mut Ctx, sa: &mut IkeSa) {
    if !answer_settled(ctx, sa) {
        return;
    }
    let Some(responding) = sa.responding.take() else {
        return;
    };
    let response = match *responding {
        Responding::Ike(response) if !response.kex.has_more() => response,
        Responding::Ike(response) => {
            let payloads = answer(ctx, &response);
            sa.responding = Some(Box::new(Responding::Ike(response)));
            return followup::await_next(ctx, sa, payloads);
        }
        other => {
            sa.responding = Some(Box::new(other));
            return;
        }
    };
    let shared = response.kex.secrets();
    let spis = response.spis();
    let suite = response.chosen.suite.clone();
    let nonces = Nonces { i: response.ni.as_bytes(), r: response.nr.as_bytes() };
    let made = sa
        .protection
        .as_deref()
        .map(|old| Protection::rekeyed(old, ctx.crypto, suite, false, spis, nonces, &shared));
    let Some(Ok(protection)) = made else {
        respond_error(ctx, sa, Notify::new(NotifyType::TemporaryFailure));
        return create_child::answered(ctx, sa);
    };
    let payloads = answer(ctx, &response);
    let mut new = successor(ctx, sa, SaRole::Responder, spis, protection);
    if let Some(request) = request(sa) {
        // Two rekeys cross: the children wait for the peer's answer to ours.
        request.collision =
            Some(Collision { nonces: (response.ni, response.nr), successor: new.id });
        new.redundant = true;
        // Nobody has heard of it, so its end is no news.
        new.close_reason = Some(CloseReason::Rekeyed);
        // It waits as long as our request does, however many key exchanges that takes.
        ctx.deferred.push_back(Deferred::Adopt(new));
        send_response(ctx, sa, sa.answering, &payloads);
        return create_child::answered(ctx, sa);
    }
    succeed(ctx, sa, &mut new, false);
    ctx.deferred.push_back(Deferred::Adopt(new));
    send_response(ctx, sa, sa.answering, &payloads);
}

/// What the answer in work says: all of it in CREATE_CHILD_SA, the key exchange alone after.
fn answer(ctx: &Ctx, response: &IkeAnswer) -> Payloads {
    let ke = Payload::Ke(response.kex.payload());
    if response.kex.followup {
        return Payloads::from(vec![ke]);
    }
    let mut payloads = Payloads::from(vec![
        Payload::Sa(proposal::answer_ike(&response.chosen, Some(response.spi))),
        Payload::Nonce(response.nr.clone()),
        ke,
    ]);
    crash::tell(ctx, response.spis(), SaRole::Responder, &mut payloads);
    payloads
}

/// The peer deletes the old IKE SA while our rekey of it is under way and its own has a successor
/// ready: the children live on there. False when there is no such successor.
pub(crate) fn deleted_under_rekey(ctx: &mut Ctx, sa: &mut IkeSa) -> bool {
    let Some(collision) = request(sa).and_then(|request| request.collision.take()) else {
        return false;
    };
    let (old, new) = (sa.id, collision.successor);
    ctx.deferred.push_back(Deferred::Succeed { old, new, delete: false });
    ctx.deferred.push_back(Deferred::Retire(old));
    true
}
