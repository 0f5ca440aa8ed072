//! What the peer answers to our request for a child SA.

use crate::event::{Blame, CloseReason};
use crate::exchange::create_child::{retry_later, with_requesting_kex};
use crate::exchange::rekey_child::request::{
    Answer, finish, install, offered, report, request, request_failed,
};
use crate::exchange::rekey_child::uninstalled::delete_unknown;
use crate::exchange::{Task, about, followup, nonces, transport};
use crate::io::ChildSaId;
use crate::policy::{narrowing, proposal};
use crate::sa::IkeSa;
use crate::sa::child::remove_from_dataplane;
use crate::sa::context::{Ctx, refusal};
use crate::wire::{Notify, NotifyType, Payloads};

/// The peer's answer.
pub(crate) fn process_response(
    ctx: &mut Ctx,
    sa: &mut IkeSa,
    rekeys: Option<ChildSaId>,
    payloads: &Payloads,
) {
    if let Some(error) = payloads.error_notify() {
        return match rekeys {
            Some(id) => refused(ctx, sa, id, error),
            None => new_refused(ctx, sa, error),
        };
    }
    match read(sa, rekeys, payloads) {
        Ok((answer, ke)) => {
            let Some(request) = request(sa) else {
                return;
            };
            request.answer = Some(answer);
            match ke {
                Some(ke) => with_requesting_kex(ctx, sa, |ctx, sa, kex| {
                    kex.agree(ctx, sa, ke, true);
                }),
                None => install(ctx, sa),
            }
        }
        Err(what) => {
            report(ctx, sa, Blame::Misbehaved, "bad_child", what.to_owned());
            undo(ctx, sa, payloads);
            request_failed(ctx, sa);
        }
    }
}

/// The peer has made a child of our request that we do not: it is closed again.
fn undo(ctx: &mut Ctx, sa: &mut IkeSa, payloads: &Payloads) {
    if payloads.has_notify(NotifyType::AdditionalKeyExchange) {
        return;
    }
    let spi_in = request(sa).and_then(|request| request.spi_in);
    let made = payloads.sa().and_then(|answer| answer.proposals.first()?.child_spi());
    if let (Some(spi_in), Some(spi_out)) = (spi_in, made) {
        delete_unknown(ctx, sa, spi_in, spi_out.0);
    }
}

/// The peer's public value in its answer.
type PeerPublic = Option<Vec<u8>>;

fn read(
    sa: &mut IkeSa,
    rekeys: Option<ChildSaId>,
    payloads: &Payloads,
) -> Result<(Answer, PeerPublic), &'static str> {
    let old = rekeys.and_then(|old| sa.children.get(&old));
    let transport = transport::is_said(payloads);
    if old.map_or(rekeys.is_none() && transport, |old| old.transport != transport) {
        return Err("the peer answered in another mode (tunnel or transport) than was asked for");
    }
    let old = match rekeys {
        Some(_) => old.map(|old| (old.ts_local.clone(), old.ts_remote.clone())),
        None => Some(offered(sa)),
    };
    let prf = sa.protection.as_ref().map(|protection| protection.prf());
    let request = request(sa).ok_or("the peer answered a rekey that is not under way")?;
    let (Some(answer), Some(nr), Some(ts_i), Some(ts_r)) =
        (payloads.sa(), payloads.nonce(), payloads.ts_i(), payloads.ts_r())
    else {
        return Err("the peer's answer to a rekey is incomplete");
    };
    if prf.is_some_and(|prf| nonces::check(prf, nr).is_err()) {
        return Err("the peer's nonce is shorter than half of the PRF's key (RFC 7296 2.10)");
    }
    let group = request.kex.as_ref().map(|kex| kex.group);
    let chosen = proposal::accept_esp(&request.suites, answer, group)
        .ok_or("the peer chose an ESP proposal that was not offered")?;
    let ke = match (group, payloads.ke()) {
        (None, _) => None,
        (Some(group), Some(ke)) if ke.method == group => Some(ke.data.clone()),
        (Some(_), _) => return Err("the peer's answer lacks our group's public value"),
    };
    if let Some(kex) = &mut request.kex {
        kex.chosen(chosen.suite.additional_methods());
        followup::note_link(kex, payloads)?;
    }
    // Nothing may grow: what the peer widened was not asked for.
    if let Some((local, remote)) = old
        && (ts_i.selectors.is_empty()
            || ts_r.selectors.is_empty()
            || !narrowing::covers(&local, &ts_i.selectors)
            || !narrowing::covers(&remote, &ts_r.selectors))
    {
        return Err("the peer's selectors exceed those offered");
    }
    let spi_out = <[u8; 4]>::try_from(chosen.spi.as_slice())
        .map(u32::from_be_bytes)
        .map_err(|_| "the peer's SPI is malformed")?;
    let answer = Answer {
        nr: nr.clone(),
        suite: chosen.suite,
        spi_out,
        ts_local: ts_i.selectors.clone(),
        ts_remote: ts_r.selectors.clone(),
        transport,
    };
    Ok((answer, ke))
}

/// The peer answered with an error.
fn refused(ctx: &mut Ctx, sa: &mut IkeSa, id: ChildSaId, error: &Notify) {
    let task = Task::RekeyChild(id);
    match error.kind {
        NotifyType::InvalidKePayload => {
            if !regroup(ctx, sa, Some(id), error) {
                let what = "the peer asks for a key exchange in a child rekey that cannot be used";
                report(ctx, sa, Blame::Incompatible, "rekey_refused", what.to_owned());
                retry_later(ctx, sa, &task);
            }
        }
        NotifyType::TemporaryFailure => retry_later(ctx, sa, &task),
        NotifyType::ChildSaNotFound => {
            // RFC 7296 2.25.1: the peer has no such SA, so it is of no use.
            remove_from_dataplane(ctx, sa, id, CloseReason::PeerDeleted);
            sa.children.remove(&id);
        }
        kind => {
            let what = format!("the peer refused to rekey a child SA with {kind}");
            report(ctx, sa, Blame::Incompatible, "rekey_refused", what);
            retry_later(ctx, sa, &task);
        }
    }
    finish(ctx, sa);
}

/// The peer asks for another group (RFC 7296 1.3): asks again with that one, at once. False when it
/// asks for what it was given, changes its mind, or names one we do not accept: no end would be in
/// sight.
fn regroup(ctx: &Ctx, sa: &mut IkeSa, rekeys: Option<ChildSaId>, error: &Notify) -> bool {
    let wanted = error
        .ke_method()
        .ok()
        .filter(|group| ctx.config.ike_suites.iter().any(|suite| suite.kex == *group));
    // What was offered with the first group goes with the other one too: nobody talks us out of an
    // additional key exchange. No method is used twice (RFC 9370 2.2.1).
    let Some(request) = request(sa).filter(|request| !request.hinted) else {
        return false;
    };
    let used = request.kex.as_ref().map(|kex| kex.group);
    let (Some(group), Some(used), Some(first)) = (wanted, used, request.suites.first()) else {
        return false;
    };
    let mut additional = first.additional.clone();
    let task = request.task();
    if group == used {
        return false;
    }
    additional.retain(|kex| kex.method != group);
    sa.regroup = Some((rekeys, group, additional));
    sa.tasks.push_front(task);
    true
}

/// The peer does not make the new child.
fn new_refused(ctx: &mut Ctx, sa: &mut IkeSa, error: &Notify) {
    let task = Task::CreateChild;
    if error.kind == NotifyType::InvalidKePayload && regroup(ctx, sa, None, error) {
        return finish(ctx, sa);
    }
    if error.kind != NotifyType::TemporaryFailure {
        let what = format!("the peer refused the child SA with {}", error.kind);
        let fix = "compare ESP proposals, key exchanges and selectors of both sides";
        let kind = Some(error.kind);
        let refused = refusal(Blame::Incompatible, kind, "child_refused", what, fix);
        ctx.refuse(about(sa, refused));
    }
    retry_later(ctx, sa, &task);
    finish(ctx, sa);
}
