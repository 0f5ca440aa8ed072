//! Our request for a child SA: one that replaces another, or one beside those there are.

mod response;

use crate::crypto::keymat::Nonces;
use crate::crypto::{EspSuite, KeMethod};
use crate::event::{Blame, CloseReason};
use crate::exchange::create_child::{
    Requesting, abandon_request, may_request, request_settled, retry_later,
};
use crate::exchange::kex::Kex;
use crate::exchange::rekey_child::uninstalled::delete_uninstalled;
use crate::exchange::rekey_child::{Collision, activate, respond, successor_gone};
use crate::exchange::{Task, about, advance, create_child, send_request, transport};
use crate::io::{Action, ChildSaId, TimerKind};
use crate::policy::proposal;
use crate::sa::IkeSa;
use crate::sa::child::{self, NewChild, remove_from_dataplane};
use crate::sa::context::{Ctx, Purpose, refusal};
use crate::sa::timers::TimerKey;
use crate::wire::{
    ChildSpi, ExchangeType, Nonce, Notify, NotifyType, Payload, Payloads, ProtocolId,
    TrafficSelector, TrafficSelectors,
};

pub(crate) use response::process_response;

/// How many unknown SPIs the peer may close while our request is out.
const MAX_CLOSED: usize = 32;

/// See the module.
#[derive(Debug)]
pub(crate) struct ChildRequest {
    handle: u64,
    rekeys: Option<ChildSaId>,
    ni: Nonce,
    suites: Vec<EspSuite>,
    kex: Option<Kex>,
    /// Its group is the one the peer asked for with INVALID_KE_PAYLOAD.
    hinted: bool,
    spi_in: Option<u32>,
    sent: bool,
    answer: Option<Answer>,
    installing: Option<ChildSaId>,
    pub(super) collision: Option<Collision>,
    /// What it replaces was closed here meanwhile: nothing is to take its place.
    pub(super) unwanted: bool,
    /// SPIs the peer has closed that we do not know: what we asked for may be among them.
    closed: Vec<u32>,
}

#[derive(Debug)]
struct Answer {
    nr: Nonce,
    suite: EspSuite,
    spi_out: u32,
    ts_local: Vec<TrafficSelector>,
    ts_remote: Vec<TrafficSelector>,
    transport: bool,
}

impl ChildRequest {
    pub(crate) fn handle(&self) -> u64 {
        self.handle
    }

    pub(crate) fn installing(&self) -> Option<ChildSaId> {
        self.installing
    }

    pub(crate) fn kex_mut(&mut self) -> Option<&mut Kex> {
        self.kex.as_mut()
    }

    pub(crate) fn into_kex(self) -> Option<Kex> {
        self.kex
    }

    /// The SPI it proposes.
    pub(crate) fn proposed_spi(&self) -> Option<u32> {
        self.spi_in.filter(|_| self.sent)
    }

    /// What it replaces.
    pub(crate) fn rekeys(&self) -> Option<ChildSaId> {
        self.rekeys
    }

    /// What it is for.
    pub(crate) fn task(&self) -> Task {
        self.rekeys.map_or(Task::CreateChild, Task::RekeyChild)
    }

    /// The request is on its way, and so beyond recall.
    pub(super) fn is_sent(&self) -> bool {
        self.sent
    }

    /// The peer has answered it; what it makes is being installed.
    pub(crate) fn is_answered(&self) -> bool {
        self.answer.is_some() || self.installing.is_some()
    }
}

/// The peer closes a child we do not know: perhaps the one it has made for us, whose announcement
/// is still on its way.
pub(crate) fn unknown_closed(sa: &mut IkeSa, spi_out: u32) {
    if let Some(request) = request(sa)
        && request.sent
        && request.closed.len() < MAX_CLOSED
    {
        request.closed.push(spi_out);
    }
}

/// Starts a rekey; false when there is nothing to rekey.
pub(crate) fn build(ctx: &mut Ctx, sa: &mut IkeSa, id: ChildSaId) -> bool {
    let Some(child) = sa.children.get(&id) else {
        return false;
    };
    if !child.is_up() || child.replaced_by.is_some() {
        return false;
    }
    if !may_request(sa) {
        // The peer's own exchange is being answered: after that.
        retry_later(ctx, sa, &Task::RekeyChild(id));
        return false;
    }
    if !child.outbound_active {
        // The peer may not have our answer that made it, and so not know it.
        retry_later(ctx, sa, &Task::RekeyChild(id));
        return false;
    }
    let current = child.suite.clone();
    // A child made by IKE_AUTH has no group of its own; the configuration may want one now.
    let bare = |suite: &EspSuite| EspSuite { kex: None, additional: Vec::new(), ..suite.clone() };
    let configured = ctx.config.esp_suites.iter().find(|suite| bare(suite) == bare(&current));
    let wanted = configured.filter(|_| current.kex.is_none()).unwrap_or(&current);
    // Unless the peer has just asked for another group.
    let regroup = sa.regroup.take().filter(|(child, ..)| *child == Some(id));
    let hinted = regroup.is_some();
    let (group, additional) = match regroup {
        Some((_, group, additional)) => (Some(group), additional),
        None => (wanted.kex, wanted.additional.clone()),
    };
    // What runs is offered first; the rest of what we accept follows. With key exchanges every
    // suite has some, so that the peer may ask for another group than the first
    // (RFC 7296 1.3: INVALID_KE_PAYLOAD).
    let with =
        |suite: &EspSuite| EspSuite { kex: group, additional: additional.clone(), ..suite.clone() };
    let mut suites = vec![with(&current)];
    for suite in &ctx.config.esp_suites {
        let own = group.is_some() && suite.kex.is_some();
        let suite = if own { suite.clone() } else { with(suite) };
        if !suites.contains(&suite) {
            suites.push(suite);
        }
    }
    ctx.timers.cancel(TimerKey::sub(sa.id, TimerKind::RekeyChild, id.0));
    start(ctx, sa, Some(id), suites, group, hinted);
    true
}

/// Asks for a child beside those there are, with the selectors we were told to establish; false
/// when that cannot be.
pub(crate) fn build_new(ctx: &mut Ctx, sa: &mut IkeSa) -> bool {
    let Some(peer) = sa.peer.as_ref().filter(|_| sa.is_established()) else {
        return false;
    };
    let mut suites = peer.esp_suites.clone();
    if !may_request(sa) {
        retry_later(ctx, sa, &Task::CreateChild);
        return false;
    }
    let Some(first) = suites.first() else {
        return false;
    };
    let (local, remote) = offered(sa);
    if local.is_empty() || remote.is_empty() {
        // RFC 7296 2.9, 3.13: such a child would be one for no packet at all.
        let what = "a child SA needs selectors on both sides, and we have none to ask for";
        let fix = "say what our side's networks are, or let the peer assign us an address";
        let refused = refusal(Blame::Internal, None, "no_selectors", what, fix);
        ctx.refuse(about(sa, refused));
        return false;
    }
    // Unless the peer has just asked for another group.
    let regroup = sa.regroup.take().filter(|(child, ..)| child.is_none());
    let hinted = regroup.is_some();
    let (group, additional) = match regroup {
        Some((_, group, additional)) => (Some(group), additional),
        None => (first.kex, first.additional.clone()),
    };
    // The first one has what we begin with; either every suite has a key exchange or none.
    let first = EspSuite { kex: group, additional: additional.clone(), ..first.clone() };
    for suite in suites.iter_mut().filter(|suite| suite.kex.is_some() != group.is_some()) {
        (suite.kex, suite.additional) = (group, additional.clone());
    }
    suites.retain(|suite| *suite != first);
    suites.insert(0, first);
    ctx.timers.cancel(TimerKey::new(sa.id, TimerKind::CreateChild));
    start(ctx, sa, None, suites, group, hinted);
    true
}

/// Asks for what the request needs.
fn start(
    ctx: &mut Ctx,
    sa: &mut IkeSa,
    rekeys: Option<ChildSaId>,
    suites: Vec<EspSuite>,
    group: Option<KeMethod>,
    hinted: bool,
) {
    let Some(ni) = create_child::fresh_nonce(&mut sa.rng) else {
        return;
    };
    let handle = ctx.fresh_id();
    let kex = group.map(|group| Kex::request(ctx, sa, handle, group));
    ctx.act(sa.id, Purpose::RequestSpi(handle), Action::AllocSpi);
    sa.requesting = Some(Box::new(Requesting::Child(ChildRequest {
        handle,
        rekeys,
        ni,
        suites,
        kex,
        hinted,
        spi_in: None,
        sent: false,
        answer: None,
        installing: None,
        collision: None,
        unwanted: false,
        closed: Vec::new(),
    })));
}

fn request(sa: &mut IkeSa) -> Option<&mut ChildRequest> {
    match sa.requesting.as_deref_mut() {
        Some(Requesting::Child(request)) => Some(request),
        _ => None,
    }
}

pub(crate) fn request_spi(ctx: &mut Ctx, sa: &mut IkeSa, answer: Result<u32, String>) {
    match answer {
        Ok(spi) => {
            if let Some(request) = request(sa) {
                request.spi_in = Some(spi);
            }
            request_proceed(ctx, sa);
        }
        Err(why) => {
            report(ctx, sa, Blame::Internal, "data_plane", format!("no SPI for a rekey: {why}"));
            request_failed(ctx, sa);
        }
    }
}

/// Something the request waited for is there.
pub(crate) fn request_proceed(ctx: &mut Ctx, sa: &mut IkeSa) {
    let Some(request) = request(sa) else {
        return;
    };
    if request.answer.is_some() {
        if request.unwanted && request.kex.as_ref().is_some_and(Kex::has_more) {
            // Without the key exchanges to come the peer makes nothing.
            return finish(ctx, sa);
        }
        if request.kex.is_none() || request_settled(ctx, sa) {
            install(ctx, sa);
        }
        return;
    }
    let Some(spi_in) = request.spi_in else {
        return;
    };
    if request.sent || request.kex.as_ref().is_some_and(|kex| kex.public.is_empty()) {
        return;
    }
    let rekeys = request.rekeys;
    let mut payloads = Payloads::new();
    let (suites, ni) = (request.suites.clone(), request.ni.clone());
    let ke = request.kex.as_ref().map(Kex::payload);
    request.sent = true;
    let old = rekeys.map(|old| sa.children.get(&old).filter(|old| !old.removed));
    let (ts_local, ts_remote, transport) = match old {
        Some(Some(old)) => {
            let spi = ChildSpi(old.spi_in);
            payloads.push_notify(Notify::about(NotifyType::RekeySa, ProtocolId::Esp, spi));
            (old.ts_local.clone(), old.ts_remote.clone(), old.transport)
        }
        // The peer closed it while we were preparing.
        Some(None) => return finish(ctx, sa),
        None => {
            let (local, remote) = offered(sa);
            (local, remote, false)
        }
    };
    payloads.push(Payload::Sa(proposal::offer_esp(&suites, spi_in)));
    payloads.push(Payload::Nonce(ni));
    if let Some(ke) = ke {
        payloads.push(Payload::Ke(ke));
    }
    // The initiator of this exchange is i, whoever made the IKE SA (RFC 7296 2.9).
    payloads.push(Payload::TsI(TrafficSelectors::new(ts_local)));
    payloads.push(Payload::TsR(TrafficSelectors::new(ts_remote)));
    if transport {
        payloads.push_notify(transport::notify());
    }
    send_request(ctx, sa, ExchangeType::CreateChildSa, &payloads);
}

/// What we ask for in a child that replaces none: our side's selectors and the peer's.
fn offered(sa: &IkeSa) -> (Vec<TrafficSelector>, Vec<TrafficSelector>) {
    let Some(auth) = sa.auth.as_deref() else {
        return (Vec::new(), Vec::new());
    };
    let (remote, local) = respond::allowed(sa, &auth.grant);
    (local, remote)
}

/// Installs what was agreed, unless the peer's crossing rekey made it redundant.
fn install(ctx: &mut Ctx, sa: &mut IkeSa) {
    let crossing = respond::rekeying(sa);
    let Some(request) = request(sa) else {
        return;
    };
    if request.rekeys.is_some() && crossing == request.rekeys {
        // What the peer's exchange makes is to be known first; its answer is on the way.
        return;
    }
    let (Some(answer), Some(spi_in)) = (request.answer.take(), request.spi_in) else {
        return;
    };
    if request.closed.contains(&answer.spi_out) {
        return request_failed(ctx, sa);
    }
    let (rekeys, unwanted) = (request.rekeys, request.unwanted);
    let ni = request.ni.clone();
    let redundant = request
        .collision
        .as_ref()
        .is_some_and(|collision| collision.ours_is_redundant(&ni, &answer.nr));
    if redundant || unwanted {
        // RFC 7296 2.8.1: who made the redundant SA closes it. It was never installed here.
        delete_uninstalled(ctx, sa, spi_in, answer.spi_out, answer.suite);
        return finish(ctx, sa);
    }
    let shared = request.kex.as_ref().map(Kex::secrets).unwrap_or_default();
    let shared: Vec<_> = shared.into_iter().cloned().collect();
    let Some(protection) = &sa.protection else {
        return;
    };
    let nonces = Nonces { i: ni.as_bytes(), r: answer.nr.as_bytes() };
    let shared: Vec<_> = shared.iter().collect();
    let keys = child::derive_keys(protection, &answer.suite, nonces, &shared, true);
    let Ok((keys_in, keys_out)) = keys else {
        return request_failed(ctx, sa);
    };
    let new = NewChild {
        spi_in,
        spi_out: answer.spi_out,
        suite: answer.suite,
        keys_in,
        keys_out,
        ts_local: answer.ts_local,
        ts_remote: answer.ts_remote,
        transport: answer.transport,
        outbound_active: true,
        rekeys,
    };
    let installing = child::install(ctx, sa, new);
    if let Some(request) = self::request(sa) {
        request.installing = installing;
    }
}

pub(crate) fn request_installed(
    ctx: &mut Ctx,
    sa: &mut IkeSa,
    new: ChildSaId,
    answer: Result<(), String>,
) {
    let Some(request) = request(sa) else {
        return;
    };
    let unwanted = request.unwanted;
    let (old, collision) = (request.rekeys, request.collision.take());
    match answer {
        Ok(()) if unwanted => {
            // What it was to replace was closed meanwhile, and so it never came up.
            remove_from_dataplane(ctx, sa, new, CloseReason::Operator);
            sa.enqueue(Task::DeleteChild(new));
        }
        Ok(()) => {
            child::up(ctx, sa, new, old);
            // What the peer's crossing exchange made is redundant; the peer closes it.
            if let Some(collision) = collision
                && let Some(theirs) = sa.children.get_mut(&collision.child)
            {
                theirs.replaced_by = Some(new);
                let key = TimerKey::sub(sa.id, TimerKind::Activate, collision.child.0);
                ctx.timers.cancel(key);
                let key = TimerKey::sub(sa.id, TimerKind::RekeyChild, collision.child.0);
                ctx.timers.cancel(key);
            }
            if let Some(child) = old.and_then(|old| sa.children.get_mut(&old)) {
                child.replaced_by = Some(new);
                // The peer sends on it until it hears of its end, so it is removed only then.
                let old = child.id;
                sa.enqueue(Task::DeleteChild(old));
            }
        }
        Err(why) => {
            let what = format!("the data plane refused the rekeyed child SA: {why}");
            report(ctx, sa, Blame::Internal, "data_plane", what);
            remove_from_dataplane(ctx, sa, new, CloseReason::Failed(why));
            successor_gone(sa, new);
            sa.enqueue(Task::DeleteChild(new));
            retry_later(ctx, sa, &old.map_or(Task::CreateChild, Task::RekeyChild));
        }
    }
    finish(ctx, sa);
}

/// The exchange came to nothing; the old child lives on.
pub(crate) fn request_failed(ctx: &mut Ctx, sa: &mut IkeSa) {
    if let Some(request) = request(sa) {
        let task = request.task();
        // A child that the peer has made by now would stay its own for ever.
        let made = request.answer.take().zip(request.spi_in).filter(|(answer, _)| {
            !request.closed.contains(&answer.spi_out)
                && !request.kex.as_ref().is_some_and(Kex::has_more)
        });
        if let Some((answer, spi_in)) = made {
            delete_uninstalled(ctx, sa, spi_in, answer.spi_out, answer.suite);
        }
        retry_later(ctx, sa, &task);
    }
    finish(ctx, sa);
}

fn finish(ctx: &mut Ctx, sa: &mut IkeSa) {
    // The peer's crossing rekey stands when ours came to nothing, unless the peer has closed what
    // it made: for the peer ours was the better one.
    if let Some(request) = request(sa)
        && let Some(collision) = request.collision.take()
        && let Some(old) = request.rekeys
        && sa.children.contains_key(&collision.child)
    {
        match sa.children.get_mut(&old).filter(|old| !old.removed) {
            Some(child) => {
                child.replaced_by = Some(collision.child);
                ctx.timers.cancel(TimerKey::sub(sa.id, TimerKind::RekeyChild, old.0));
            }
            None => activate(ctx, sa, collision.child),
        }
    }
    abandon_request(ctx, sa);
    if sa.window.outstanding().is_none() {
        sa.active = None;
    }
    advance(ctx, sa);
}

fn report(ctx: &mut Ctx, sa: &IkeSa, blame: Blame, code: &'static str, what: String) {
    let fix = "the old SA stays in use; compare both sides' ESP proposals";
    let refused = about(sa, refusal(blame, None, code, what, fix));
    ctx.refuse(refused);
}
