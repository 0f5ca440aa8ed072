//! The peer's child SAs: new ones and rekeyed ones.

use crate::crypto::keymat::Nonces;
use crate::crypto::{EspSuite, suite};
use crate::event::{Blame, CloseReason};
use crate::exchange::auth::{ChildRefused, child_refused, esp_refused, ts_unacceptable};
use crate::exchange::create_child::{
    self, Requesting, Responding, abandon_request, abandon_response, ike_rekey_under_way,
    respond_error, retry_later,
};
use crate::exchange::kex::Kex;
use crate::exchange::rekey_child::{ACTIVATE_AFTER, Collision, successor_gone};
use crate::exchange::{Task, followup, send_response, transport};
use crate::io::{Action, ChildSaId, TimerKind};
use crate::policy::narrowing;
use crate::policy::proposal::{self, Accepted, Chosen, EspKex};
use crate::sa::IkeSa;
use crate::sa::child::{self, ChildState, NewChild, remove_from_dataplane};
use crate::sa::context::{Ctx, Purpose};
use crate::sa::timers::TimerKey;
use crate::wire::{
    Nonce, Notify, NotifyType, Payload, Payloads, Proposal, SecurityAssociation, TrafficSelector,
    TrafficSelectors,
};

/// Children of one IKE SA at most: a peer cannot fill the data plane.
const MAX_CHILDREN: usize = 16;

/// See the module.
#[derive(Debug)]
pub(crate) struct ChildAnswer {
    handle: u64,
    pub(super) rekeys: Option<ChildSaId>,
    /// What it replaces was closed here meanwhile: nothing is to take its place.
    pub(super) unwanted: bool,
    ni: Nonce,
    nr: Nonce,
    chosen: Chosen<EspSuite>,
    ts_local: Vec<TrafficSelector>,
    ts_remote: Vec<TrafficSelector>,
    more: bool,
    transport: bool,
    kex: Option<Kex>,
    spi_in: Option<u32>,
    installing: Option<ChildSaId>,
}

impl ChildAnswer {
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
}

/// The peer asks for a child.
pub(crate) fn process_request(
    ctx: &mut Ctx,
    sa: &mut IkeSa,
    payloads: &Payloads,
    offer: &SecurityAssociation,
    ni: &Nonce,
) {
    // Whatever becomes of the request: it tells that the peer lacks what an earlier one made.
    forget_unheard(ctx, sa, payloads);
    forget_twin(ctx, sa, offer);
    // RFC 7296 2.25.2: not while we are rekeying the IKE SA, on neither side of that: until our
    // own rekey is decided, the children are not yet those of what the peer's rekey made.
    if sa.redundant || ike_rekey_under_way(sa) {
        return respond_error(ctx, sa, Notify::new(NotifyType::TemporaryFailure));
    }
    let awaiting = awaits_answer(sa);
    let rekeys = match rekeyed_child(sa, payloads, awaiting) {
        Ok(rekeys) => rekeys,
        Err(notify) if notify.kind == NotifyType::ChildSaNotFound => {
            let spi = notify.child_spi().map(|spi| spi.0).unwrap_or_default();
            let what = format!("the peer rekeys child SA {spi:08x}, which is not there any more");
            let kind = (Blame::Misbehaved, "child_sa_not_found");
            let fix = "nothing: the peer lets go of it (RFC 7296 2.25.1)";
            return create_child::refuse(ctx, sa, notify, kind, what, fix);
        }
        Err(notify) => return respond_error(ctx, sa, notify),
    };
    if let Some(Requesting::Child(request)) = sa.requesting.as_deref()
        && rekeys.is_some()
        && request.rekeys() == rekeys
        && request.is_answered()
    {
        // RFC 7296 2.25.1: for us it is replaced already. The peer has answered our rekey, so it
        // has what replaces it too.
        return respond_error(ctx, sa, Notify::new(NotifyType::TemporaryFailure));
    }
    if rekeys.is_none() && sa.children.len() >= MAX_CHILDREN {
        let what = format!("the peer asks for more than {MAX_CHILDREN} child SAs");
        let kind = (Blame::Incompatible, "no_additional_sas");
        let fix = "let the peer put more selectors into one child SA";
        let notify = Notify::new(NotifyType::NoAdditionalSas);
        return create_child::refuse(ctx, sa, notify, kind, what, fix);
    }
    let plan = decide(ctx, sa, payloads, offer).map(|mut plan| {
        plan_transport(ctx, sa, payloads, rekeys, &mut plan);
        plan
    });
    match plan {
        Ok(plan) => begin(ctx, sa, rekeys, ni, plan),
        Err(Decision::WrongGroup(notify)) => respond_error(ctx, sa, notify),
        Err(Decision::Refused(refused)) => {
            ctx.refuse(refused.refusal);
            respond_error(ctx, sa, refused.notify);
        }
    }
}

/// The peer rekeys again what it has rekeyed already: it never got our answer, and has asked anew
/// after message ids were synchronised (RFC 6311). What we made for it is of no use.
fn forget_unheard(ctx: &mut Ctx, sa: &mut IkeSa, payloads: &Payloads) {
    let named = payloads.notify(NotifyType::RekeySa).and_then(Notify::child_spi);
    let old = named.and_then(|spi| sa.children.values().find(|child| child.spi_out == spi.0));
    let Some((old, new)) = old
        .filter(|old| old.state == ChildState::Up)
        .and_then(|old| old.replaced_by.map(|new| (old.id, new)))
        .filter(|(_, new)| sa.children.get(new).is_some_and(|new| new.by_peer))
    else {
        return;
    };
    if let Some(Requesting::Child(request)) = sa.requesting.as_deref_mut()
        && request.collision.as_ref().is_some_and(|collision| collision.child == new)
    {
        request.collision = None;
    }
    forget(ctx, sa, new, CloseReason::Rekeyed);
    ctx.act(sa.id, Purpose::Activate(old), Action::ActivateChild(old));
}

/// The peer offers for a child the SPI of one that we have made for it: it has none of that SPI, so
/// it never got our answer to the same request, and has asked anew after message ids were
/// synchronised (RFC 6311).
fn forget_twin(ctx: &mut Ctx, sa: &mut IkeSa, offer: &SecurityAssociation) {
    let offered = offer.proposals.iter().filter_map(Proposal::child_spi).next();
    let twin = sa.children.values().find(|child| {
        child.state == ChildState::Up && offered.is_some_and(|spi| spi.0 == child.spi_out)
    });
    if let Some(twin) = twin.map(|twin| twin.id) {
        forget(ctx, sa, twin, CloseReason::Replaced);
    }
}

/// A child that the peer does not have goes without a word.
fn forget(ctx: &mut Ctx, sa: &mut IkeSa, id: ChildSaId, reason: CloseReason) {
    remove_from_dataplane(ctx, sa, id, reason);
    successor_gone(sa, id);
    sa.children.remove(&id);
    ctx.timers.cancel(TimerKey::sub(sa.id, TimerKind::Activate, id.0));
}

/// Whether our own request for a child is out: the peer may have the child that it makes already,
/// and we do not.
fn awaits_answer(sa: &IkeSa) -> bool {
    matches!(
        sa.requesting.as_deref(),
        Some(Requesting::Child(request)) if request.is_sent() && request.installing().is_none()
    )
}

/// The child a REKEY_SA notify names, by the SPI the peer receives on (RFC 7296 1.3.3).
fn rekeyed_child(
    sa: &IkeSa,
    payloads: &Payloads,
    awaiting: bool,
) -> Result<Option<ChildSaId>, Notify> {
    let Some(notify) = payloads.notify(NotifyType::RekeySa) else {
        return Ok(None);
    };
    let found = notify
        .child_spi()
        .and_then(|spi| sa.children.values().find(|child| child.spi_out == spi.0));
    match found {
        None if awaiting => Err(Notify::new(NotifyType::TemporaryFailure)),
        None => Err(Notify {
            protocol: notify.protocol,
            spi: notify.spi.clone(),
            kind: NotifyType::ChildSaNotFound,
            data: Vec::new(),
        }),
        // RFC 7296 2.25.1: it is being closed, or was replaced already.
        Some(child) if !child.is_up() || child.replaced_by.is_some() => {
            Err(Notify::new(NotifyType::TemporaryFailure))
        }
        Some(child) => Ok(Some(child.id)),
    }
}

struct Plan {
    chosen: Chosen<EspSuite>,
    ts_local: Vec<TrafficSelector>,
    ts_remote: Vec<TrafficSelector>,
    more: bool,
    transport: bool,
    peer_public: Option<Vec<u8>>,
}

enum Decision {
    /// INVALID_KE_PAYLOAD.
    WrongGroup(Notify),
    Refused(Box<ChildRefused>),
}

fn decide(
    ctx: &Ctx,
    sa: &IkeSa,
    payloads: &Payloads,
    offer: &SecurityAssociation,
) -> Result<Plan, Decision> {
    let ours = &ctx.config.esp_suites;
    let accepted = Accepted::from(ctx.config.ike_suites.as_slice());
    let ke = payloads.ke();
    let kex = EspKex::Offered(ke.map(|ke| ke.method), &accepted);
    let Some(chosen) = proposal::choose_esp(ours, offer, kex) else {
        return Err(Decision::Refused(esp_refused(sa, ours, offer)));
    };
    let peer_public = match chosen.suite.kex {
        None => None,
        Some(group) => match ke.filter(|ke| ke.method == group) {
            Some(ke) => Some(ke.data.clone()),
            None => return Err(Decision::WrongGroup(Notify::invalid_ke(group))),
        },
    };
    let Some(auth) = sa.auth.as_deref() else {
        let what = "no lease".to_owned();
        let notify = NotifyType::TemporaryFailure;
        let refused = child_refused(sa, notify, Blame::Internal, "internal", what, "report this");
        return Err(Decision::Refused(refused));
    };
    let offered =
        |ts: Option<&TrafficSelectors>| ts.map(|ts| ts.selectors.clone()).unwrap_or_default();
    let (ts_i, ts_r) = (offered(payloads.ts_i()), offered(payloads.ts_r()));
    let (remote_allowed, local_allowed) = allowed(sa, &auth.grant);
    let remote = narrowing::narrow(&ts_i, &remote_allowed);
    if remote.selectors.is_empty() {
        let refused = ts_unacceptable(sa, "the peer's", &ts_i, &remote_allowed);
        return Err(Decision::Refused(refused));
    }
    let local = narrowing::narrow(&ts_r, &local_allowed);
    if local.selectors.is_empty() {
        return Err(Decision::Refused(ts_unacceptable(sa, "our", &ts_r, &local_allowed)));
    }
    Ok(Plan {
        chosen,
        ts_local: local.selectors,
        ts_remote: remote.selectors,
        more: local.more || remote.more,
        transport: false,
        peer_public,
    })
}

/// Whether the child is in transport mode, which a rekey keeps.
fn plan_transport(
    ctx: &mut Ctx,
    sa: &IkeSa,
    payloads: &Payloads,
    rekeys: Option<ChildSaId>,
    plan: &mut Plan,
) {
    if !transport::is_said(payloads) {
        return;
    }
    let granted = match rekeys.and_then(|old| sa.children.get(&old)) {
        Some(old) => old.transport,
        None => sa.auth.as_ref().is_some_and(|auth| auth.grant.transport),
    };
    plan.transport = transport::agree(ctx, sa, granted, &mut plan.ts_local, &mut plan.ts_remote);
}

/// What the peer's side and ours may be: as gateway what the lease says, as client
/// what we were told to establish.
pub(super) fn allowed(
    sa: &IkeSa,
    grant: &crate::io::Grant,
) -> (Vec<TrafficSelector>, Vec<TrafficSelector>) {
    if let Some(peer) = &sa.peer {
        let local = if grant.addresses.is_empty() {
            peer.ts_local.clone()
        } else {
            narrowing::hosts(&grant.addresses)
        };
        return (peer.ts_remote.clone(), local);
    }
    if sa.is_client() {
        // After a restart: what was asked for is not known any more, what came of it is.
        let of = |side: fn(&child::Child) -> &Vec<TrafficSelector>| {
            sa.children.values().flat_map(|child| side(child).clone()).collect()
        };
        return (of(|child| &child.ts_remote), of(|child| &child.ts_local));
    }
    (sa.peer_side(grant), grant.allowed.clone())
}

fn begin(ctx: &mut Ctx, sa: &mut IkeSa, rekeys: Option<ChildSaId>, ni: &Nonce, plan: Plan) {
    // Our own rekey of the same child that is not yet sent gives way, and comes back if nothing
    // comes of the peer's.
    if let Some(Requesting::Child(request)) = sa.requesting.as_deref()
        && rekeys.is_some()
        && request.rekeys() == rekeys
        && !request.is_sent()
    {
        abandon_request(ctx, sa);
        sa.active = None;
        if let Some(child) = rekeys {
            retry_later(ctx, sa, &Task::RekeyChild(child));
        }
    }
    let Some(nr) = create_child::fresh_nonce(&mut sa.rng) else {
        return;
    };
    let handle = ctx.fresh_id();
    let mut kex = None;
    if let (Some(group), Some(public)) = (plan.chosen.suite.kex, &plan.peer_public) {
        let additional = plan.chosen.suite.additional_methods();
        kex = Kex::answer(ctx, sa, handle, group, public, additional);
        if kex.is_none() {
            let name = suite::kex_name(group);
            let what = format!("the peer's public value for {name} is none of that method");
            let notify = Notify::new(NotifyType::InvalidSyntax);
            let kind = (Blame::Malformed, "invalid_ke");
            return create_child::refuse(ctx, sa, notify, kind, what, "check the peer's software");
        }
    }
    ctx.act(sa.id, Purpose::RespondSpi(handle), Action::AllocSpi);
    sa.responding = Some(Box::new(Responding::Child(ChildAnswer {
        handle,
        rekeys,
        unwanted: false,
        ni: ni.clone(),
        nr,
        chosen: plan.chosen,
        ts_local: plan.ts_local,
        ts_remote: plan.ts_remote,
        more: plan.more,
        transport: plan.transport,
        kex,
        spi_in: None,
        installing: None,
    })));
}

/// The child that the peer is rekeying.
pub(super) fn rekeying(sa: &IkeSa) -> Option<ChildSaId> {
    match sa.responding.as_deref()? {
        Responding::Child(response) => response.rekeys,
        Responding::Ike(_) => None,
    }
}

fn response(sa: &mut IkeSa) -> Option<&mut ChildAnswer> {
    match sa.responding.as_deref_mut() {
        Some(Responding::Child(response)) => Some(response),
        _ => None,
    }
}

pub(crate) fn answer_spi(ctx: &mut Ctx, sa: &mut IkeSa, answer: Result<u32, String>) {
    match answer {
        Ok(spi) => {
            if let Some(response) = response(sa) {
                response.spi_in = Some(spi);
            }
            answer_proceed(ctx, sa);
        }
        Err(why) => unavailable(ctx, sa, &why),
    }
}

/// Something the answer waited for is there.
pub(crate) fn answer_proceed(ctx: &mut Ctx, sa: &mut IkeSa) {
    if !create_child::answer_settled(ctx, sa) {
        return;
    }
    let Some(response) = response(sa) else {
        return;
    };
    let Some(spi_in) = response.spi_in.filter(|_| response.installing.is_none()) else {
        return;
    };
    if response.unwanted {
        // RFC 7296 2.25.1: we are closing what it rekeys.
        return create_child::put_off(ctx, sa);
    }
    if response.kex.as_ref().is_some_and(Kex::has_more) {
        let payloads = answer_to(response, spi_in);
        return followup::await_next(ctx, sa, payloads);
    }
    let spi_out = <[u8; 4]>::try_from(response.chosen.spi.as_slice()).map(u32::from_be_bytes);
    let shared = response.kex.as_ref().map(Kex::secrets).unwrap_or_default();
    let shared: Vec<_> = shared.into_iter().cloned().collect();
    let (ni, nr) = (response.ni.clone(), response.nr.clone());
    let (suite, rekeys) = (response.chosen.suite.clone(), response.rekeys);
    let (ts_local, ts_remote) = (response.ts_local.clone(), response.ts_remote.clone());
    let transport = response.transport;
    let (Some(protection), Ok(spi_out)) = (&sa.protection, spi_out) else {
        return unavailable(ctx, sa, "no keys");
    };
    // What it was to replace may have ended between two key exchanges.
    let replaces = rekeys.is_some_and(|old| sa.children.contains_key(&old));
    let nonces = Nonces { i: ni.as_bytes(), r: nr.as_bytes() };
    let shared: Vec<_> = shared.iter().collect();
    let keys = child::derive_keys(protection, &suite, nonces, &shared, false);
    let Ok((keys_in, keys_out)) = keys else {
        return unavailable(ctx, sa, "no keys");
    };
    let new = NewChild {
        spi_in,
        spi_out,
        suite,
        keys_in,
        keys_out,
        ts_local,
        ts_remote,
        transport,
        outbound_active: !replaces,
        rekeys,
    };
    let installing = child::install(ctx, sa, new);
    if let Some(response) = self::response(sa) {
        response.installing = installing;
    }
}

pub(crate) fn answer_installed(
    ctx: &mut Ctx,
    sa: &mut IkeSa,
    new: ChildSaId,
    answer: Result<(), String>,
) {
    if let Err(why) = answer {
        remove_from_dataplane(ctx, sa, new, CloseReason::Failed(why.clone()));
        sa.children.remove(&new);
        return unavailable(ctx, sa, &why);
    }
    if response(sa).is_some_and(|response| response.unwanted) {
        // RFC 7296 2.25.1: what it rekeys was closed here meanwhile.
        remove_from_dataplane(ctx, sa, new, CloseReason::Operator);
        sa.children.remove(&new);
        return create_child::put_off(ctx, sa);
    }
    let Some(responding) = sa.responding.take() else {
        return;
    };
    let Responding::Child(response) = *responding else {
        return;
    };
    child::up(ctx, sa, new, response.rekeys);
    if let Some(old) = response.rekeys {
        replaced(ctx, sa, old, new, (response.ni.clone(), response.nr.clone()));
    }
    let payloads = answer_to(&response, response.spi_in.unwrap_or_default());
    send_response(ctx, sa, sa.answering, &payloads);
    create_child::answered(ctx, sa);
}

/// What the answer in work says: all of it in CREATE_CHILD_SA, the key exchange alone after.
fn answer_to(response: &ChildAnswer, spi_in: u32) -> Payloads {
    if let Some(kex) = response.kex.as_ref().filter(|kex| kex.followup) {
        return Payloads::from(vec![Payload::Ke(kex.payload())]);
    }
    let mut payloads = Payloads::from(vec![
        Payload::Sa(proposal::answer_esp(&response.chosen, spi_in)),
        Payload::Nonce(response.nr.clone()),
    ]);
    if let Some(kex) = &response.kex {
        payloads.push(Payload::Ke(kex.payload()));
    }
    payloads.push(Payload::TsI(TrafficSelectors::new(response.ts_remote.clone())));
    payloads.push(Payload::TsR(TrafficSelectors::new(response.ts_local.clone())));
    if response.transport {
        payloads.push_notify(transport::notify());
    }
    if response.more {
        payloads.push_notify(Notify::new(NotifyType::AdditionalTsPossible));
    }
    payloads
}

/// The peer has rekeyed `old`. When we are doing so too, which of the new ones stays is known
/// only with the peer's answer to us.
fn replaced(ctx: &mut Ctx, sa: &mut IkeSa, old: ChildSaId, new: ChildSaId, nonces: (Nonce, Nonce)) {
    let at = ctx.now.mono.after(ACTIVATE_AFTER);
    ctx.timers.set(TimerKey::sub(sa.id, TimerKind::Activate, new.0), at);
    ctx.timers.cancel(TimerKey::sub(sa.id, TimerKind::RekeyChild, old.0));
    if let Some(Requesting::Child(request)) = sa.requesting.as_deref_mut()
        && request.rekeys() == Some(old)
    {
        request.collision = Some(Collision { nonces, child: new });
    } else {
        sa.tasks.retain(|task| *task != crate::exchange::Task::RekeyChild(old));
    }
    if let Some(child) = sa.children.get_mut(&old) {
        child.replaced_by = Some(new);
    }
}

fn unavailable(ctx: &mut Ctx, sa: &mut IkeSa, why: &str) {
    let refused = child_refused(
        sa,
        NotifyType::TemporaryFailure,
        Blame::Internal,
        "data_plane",
        format!("the data plane refused a child SA: {why}"),
        "see the gateway's log for the data plane",
    );
    ctx.refuse(refused.refusal);
    abandon_response(ctx, sa);
    respond_error(ctx, sa, refused.notify);
    create_child::answered(ctx, sa);
}
