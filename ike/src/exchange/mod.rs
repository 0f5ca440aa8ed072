//! What is said: one file per elementary operation, each with `build` (our request), `process`
//! (the peer's request, or the answer to ours) and, where two can cross, `collide`.

pub(crate) mod auth;
pub(crate) mod certs;
pub(crate) mod collision;
pub(crate) mod config;
pub(crate) mod continuity;
pub(crate) mod crash;
pub(crate) mod create_child;
pub(crate) mod delete;
pub(crate) mod dpd;
pub(crate) mod duplicate;
pub(crate) mod followup;
pub(crate) mod informational;
pub(crate) mod init;
pub(crate) mod intermediate;
pub(crate) mod kex;
pub(crate) mod mobike;
pub(crate) mod mobility;
pub(crate) mod natd;
pub(crate) mod nonces;
pub(crate) mod reauth;
pub(crate) mod redirect;
pub(crate) mod rekey_child;
pub(crate) mod rekey_ike;
pub(crate) mod sync;
pub(crate) mod transport;

use crate::event::{Blame, CloseReason, Refusal};
use crate::io::{ChildSaId, TimerKind};
use crate::sa::context::{Ctx, Deferred, refusal};
use crate::sa::lifecycle::{self, Tell};
use crate::sa::protect::Framing;
use crate::sa::timers::TimerKey;
use crate::sa::window::backoff;
use crate::sa::{IkeSa, Path, Phase};
use crate::wire::{ExchangeType, Header, Opened, Payloads, WireError};

/// Something we want to tell the peer of an established IKE SA.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Task {
    /// Close the IKE SA.
    DeleteIke,
    /// Close one child SA.
    DeleteChild(ChildSaId),
    /// Ask whether the peer lives.
    Liveness,
    /// Make a child SA that replaces none.
    CreateChild,
    /// Replace a child SA.
    RekeyChild(ChildSaId),
    /// Replace the IKE SA.
    RekeyIke,
    /// MOBIKE: tell the peer where we are now.
    UpdateAddresses,
    /// Send the peer to another gateway (RFC 5685 4).
    Redirect,
    /// MOBIKE: see whether the peer is where it says.
    Routability(mobike::Probe),
    /// Agree on message ids after a restart.
    Synchronise,
    /// Tell our crash token of a rekeyed IKE SA.
    CrashToken,
}

/// Sends the next request when the window is free (RFC 7296 2.3: one at a time).
pub(crate) fn advance(ctx: &mut Ctx, sa: &mut IkeSa) {
    if sa.requesting.is_none() {
        sa.unfinished = None;
    }
    if !matches!(sa.phase, Phase::Established | Phase::Rekeyed | Phase::Closing) {
        return;
    }
    // What is sent while this SA is being replaced would belong to neither.
    let handing_over =
        |deferred: &Deferred| matches!(deferred, Deferred::Succeed { old, .. } if *old == sa.id);
    if ctx.deferred.iter().any(handing_over) {
        return;
    }
    while sa.active.is_none()
        && sa.requesting.is_none()
        && sa.window.outstanding().is_none()
        && !create_child::ike_rekey_answering(sa)
    {
        let Some(task) = sa.tasks.pop_front() else {
            return;
        };
        if build(ctx, sa, &task) && !matches!(sa.phase, Phase::Lingering) {
            sa.active = Some(task);
        }
    }
}

/// Starts a task; false when there is nothing left to do for it.
fn build(ctx: &mut Ctx, sa: &mut IkeSa, task: &Task) -> bool {
    match task {
        Task::DeleteIke => delete::build_ike(ctx, sa),
        Task::DeleteChild(child) => delete::build_child(ctx, sa, *child),
        Task::Liveness => dpd::build(ctx, sa),
        Task::CreateChild => create_child::build_new_child(ctx, sa),
        Task::RekeyChild(child) => create_child::build_child_rekey(ctx, sa, *child),
        Task::RekeyIke => create_child::build_ike_rekey(ctx, sa),
        Task::UpdateAddresses => mobike::build_update(ctx, sa),
        Task::Redirect => redirect::build(ctx, sa),
        Task::Routability(probe) => mobike::build_probe(ctx, sa, probe),
        Task::Synchronise => sync::build(ctx, sa),
        Task::CrashToken => crash::build(ctx, sa),
    }
}

/// An authentic response to our outstanding request.
pub(crate) fn process_response(ctx: &mut Ctx, sa: &mut IkeSa, opened: &Opened) {
    let task = sa.active.take();
    let payloads = match opened.payloads() {
        Ok(payloads) => payloads,
        Err(error) if matches!(sa.phase, Phase::Authenticating(_)) => {
            return auth::malformed_response(ctx, sa, error);
        }
        Err(error) if matches!(sa.phase, Phase::Intermediate(_)) => {
            return intermediate::malformed_response(ctx, sa, &error.to_string());
        }
        Err(error) => {
            // RFC 7296 2.21.3: nothing can be said about a bad response; the exchange has failed.
            // What a check of the path came to is reported by itself.
            let probing = matches!(task, Some(Task::Routability(_)));
            if !probing {
                let refused = malformed(sa, error);
                ctx.refuse(refused);
            }
            let creating =
                matches!(task, Some(Task::CreateChild | Task::RekeyChild(_) | Task::RekeyIke));
            if creating && sa.is_established() && sa.requesting.is_some() {
                create_child::request_failed(ctx, sa);
                return advance(ctx, sa);
            }
            Payloads::new()
        }
    };
    match (task, &sa.phase) {
        (_, Phase::Authenticating(_)) => auth::process_response(ctx, sa, &payloads),
        (_, Phase::Intermediate(_)) => {
            intermediate::process_response(ctx, sa, opened, &payloads);
        }
        (Some(Task::DeleteIke), _) => delete::process_ike_response(ctx, sa),
        (Some(Task::DeleteChild(child)), _) => delete::process_child_response(ctx, sa, child),
        (
            Some(task @ (Task::CreateChild | Task::RekeyChild(_) | Task::RekeyIke)),
            Phase::Established,
        ) if opened.header.exchange == ExchangeType::IkeFollowupKe => {
            followup::process_response(ctx, sa, &task, &payloads);
        }
        (Some(Task::CreateChild), Phase::Established) => {
            create_child::process_child_response(ctx, sa, None, &payloads);
        }
        (Some(Task::RekeyChild(child)), Phase::Established) => {
            create_child::process_child_response(ctx, sa, Some(child), &payloads);
        }
        (Some(Task::RekeyIke), Phase::Established) => {
            create_child::process_ike_response(ctx, sa, &payloads);
        }
        (Some(Task::UpdateAddresses), Phase::Established) => {
            mobike::process_update_response(ctx, sa, &payloads);
        }
        (Some(Task::Redirect), Phase::Established) => redirect::told(ctx, sa),
        (Some(Task::Routability(probe)), Phase::Established) => {
            mobike::process_probe_response(ctx, sa, &probe, &payloads);
        }
        // Whatever follows, DELETE too, goes on from the ids agreed on.
        (Some(Task::Synchronise), _) => {
            sync::process_response(ctx, sa, &payloads);
        }
        (None, Phase::Established) => {
            if let Some(spi) = sa.orphan.take() {
                create_child::process_orphan(ctx, sa, spi, &payloads);
            }
        }
        // A closing SA only empties its window; liveness is proven by the answer itself.
        _ => {}
    }
    advance(ctx, sa);
}

/// An authentic request, new and in order.
pub(crate) fn process_request(ctx: &mut Ctx, sa: &mut IkeSa, opened: &Opened) {
    let payloads = match opened.payloads().and_then(|payloads| {
        payloads.check_critical()?;
        Ok(payloads)
    }) {
        Ok(payloads) => payloads,
        Err(error) => return refuse_malformed(ctx, sa, opened, error),
    };
    match opened.header.exchange {
        ExchangeType::IkeIntermediate if matches!(sa.phase, Phase::HalfOpen(_)) => {
            intermediate::process_request(ctx, sa, opened, &payloads);
        }
        ExchangeType::IkeAuth if auth::expects_auth(sa) => {
            auth::process_request(ctx, sa, payloads);
        }
        // Until IKE_AUTH is complete nobody is authenticated, and nothing else has a place.
        exchange if auth::expects_request(sa) => {
            let what = format!("the peer sent {exchange} before IKE_AUTH was complete");
            refuse_request(ctx, sa, opened, what, invalid_syntax());
        }
        ExchangeType::Informational => {
            informational::process_request(ctx, sa, &payloads);
        }
        ExchangeType::CreateChildSa => {
            create_child::process_request(ctx, sa, &payloads);
        }
        ExchangeType::IkeFollowupKe => {
            followup::process_request(ctx, sa, &payloads);
        }
        exchange => {
            let what = format!("the peer sent {exchange}, which has no place here");
            refuse_request(ctx, sa, opened, what, invalid_syntax());
        }
    }
    advance(ctx, sa);
}

/// Answers an authentic request that cannot be understood (RFC 7296 2.21.3).
fn refuse_malformed(ctx: &mut Ctx, sa: &mut IkeSa, opened: &Opened, error: WireError) {
    use crate::wire::{ErrorNotify, Notify};

    let notify = match error.notify() {
        Some(ErrorNotify::UnsupportedCriticalPayload(payload)) => {
            Notify::unsupported_critical(payload)
        }
        _ => invalid_syntax(),
    };
    refuse_request(ctx, sa, opened, error.to_string(), notify);
}

fn invalid_syntax() -> crate::wire::Notify {
    crate::wire::Notify::new(crate::wire::NotifyType::InvalidSyntax)
}

fn refuse_request(
    ctx: &mut Ctx,
    sa: &mut IkeSa,
    opened: &Opened,
    what: String,
    notify: crate::wire::Notify,
) {
    let code = match notify.kind {
        crate::wire::NotifyType::UnsupportedCriticalPayload => "unsupported_critical_payload",
        _ => "invalid_syntax",
    };
    let refused = about(
        sa,
        refusal(Blame::Malformed, Some(notify.kind), code, what, "check the peer's software"),
    );
    if auth::expects_request(sa) {
        // A fatal error of IKE_AUTH ends the IKE SA (RFC 7296 2.21.2).
        auth::refuse_request(ctx, sa, opened.header.exchange, notify, refused);
        return;
    }
    ctx.refuse(refused);
    let mut payloads = Payloads::new();
    payloads.push_notify(notify);
    send_response(ctx, sa, opened.header.exchange, &payloads);
}

/// A refusal because of bytes that are no message.
pub(crate) fn malformed(sa: &IkeSa, error: WireError) -> Refusal {
    about(
        sa,
        refusal(
            Blame::Malformed,
            None,
            "invalid_syntax",
            format!("the peer's message is malformed: {error}"),
            "check the peer's software",
        ),
    )
}

/// Fills in which SA a refusal is about.
pub(crate) fn about(sa: &IkeSa, mut refusal: Refusal) -> Refusal {
    refusal.ike = Some(sa.id);
    refusal.remote = Some(sa.path.remote);
    if refusal.identity.is_none() {
        refusal.identity = sa.auth.as_ref().map(|auth| auth.identity.clone());
    }
    refusal
}

/// Sends a request of an IKE SA that has keys.
pub(crate) fn send_request(
    ctx: &mut Ctx,
    sa: &mut IkeSa,
    exchange: ExchangeType,
    payloads: &Payloads,
) {
    let header = sa.header(exchange, false, sa.window.next_request());
    let path = sa.path;
    let Some(packets) = seal(ctx, sa, header, payloads, path) else {
        return unsendable(ctx, sa);
    };
    sa.window.sent(exchange, packets.clone());
    if sa.traits.message_id_sync {
        sa.window.keep(payloads);
    }
    ctx.checkpoint(sa);
    transmit(ctx, path, packets);
    arm_retransmit(ctx, sa);
}

/// Answers the request in work, and keeps the answer for when it comes again.
pub(crate) fn send_response(
    ctx: &mut Ctx,
    sa: &mut IkeSa,
    exchange: ExchangeType,
    payloads: &Payloads,
) {
    match seal_response(ctx, sa, exchange, payloads) {
        Some(packets) => send_sealed(ctx, sa, packets),
        None => unsendable(ctx, sa),
    }
}

/// The datagrams of an answer to the request in work. What depends on the answer being possible
/// at all asks for them first.
pub(crate) fn seal_response(
    ctx: &mut Ctx,
    sa: &mut IkeSa,
    exchange: ExchangeType,
    payloads: &Payloads,
) -> Option<Vec<Vec<u8>>> {
    let header = sa.header(exchange, true, sa.window.next_expected());
    seal(ctx, sa, header, payloads, sa.reply)
}

/// A message of ours could not be made: the SA would wait for its effect forever.
fn unsendable(ctx: &mut Ctx, sa: &mut IkeSa) {
    match sa.phase {
        Phase::Lingering => {}
        Phase::Closing => lifecycle::finish(ctx, sa),
        _ => {
            let reason = CloseReason::Failed("our message could not be encoded".to_owned());
            lifecycle::close(ctx, sa, reason, Tell::Nobody);
        }
    }
}

/// Sends the sealed answer.
pub(crate) fn send_sealed(ctx: &mut Ctx, sa: &mut IkeSa, packets: Vec<Vec<u8>>) {
    let path = sa.reply;
    sa.inbox.clear(false);
    sa.window.respond(packets.clone());
    ctx.checkpoint(sa);
    transmit(ctx, path, packets);
}

fn seal(
    ctx: &mut Ctx,
    sa: &mut IkeSa,
    header: Header,
    payloads: &Payloads,
    path: Path,
) -> Option<Vec<Vec<u8>>> {
    let protection = sa.protection.as_ref()?;
    let fragment_size = sa.traits.fragmentation.then_some(ctx.config.fragment_size);
    let framing = Framing { fragment_size, encap: path.encap };
    match protection.seal(header, payloads, &mut sa.rng, framing) {
        Ok(packets) => Some(packets),
        Err(error) => {
            let refused = about(
                sa,
                refusal(
                    Blame::Internal,
                    None,
                    "encode",
                    format!("our own message could not be encoded: {error}"),
                    "report this as a defect",
                ),
            );
            ctx.refuse(refused);
            None
        }
    }
}

pub(crate) fn transmit(ctx: &mut Ctx, path: Path, packets: Vec<Vec<u8>>) {
    for packet in packets {
        ctx.transmit(path.datagram(packet));
    }
}

/// Arms the retransmission timer of the outstanding request.
pub(crate) fn arm_retransmit(ctx: &mut Ctx, sa: &IkeSa) {
    let Some(outstanding) = sa.window.outstanding() else {
        return;
    };
    let at = ctx.now.mono + backoff(&ctx.config.timers, outstanding.tries);
    ctx.timers.set(TimerKey::new(sa.id, TimerKind::Retransmit), at);
}

/// Sends the outstanding request again; false when the peer had all its chances.
pub(crate) fn retransmit(ctx: &mut Ctx, sa: &mut IkeSa) -> bool {
    let Some(packets) = sa.window.retransmit(ctx.config.timers.retransmit_tries) else {
        return sa.window.outstanding().is_none() || sync::fall_back(ctx, sa);
    };
    let packets = packets.to_vec();
    ctx.stats.retransmissions = ctx.stats.retransmissions.saturating_add(1);
    transmit(ctx, sa.path, packets);
    arm_retransmit(ctx, sa);
    true
}
