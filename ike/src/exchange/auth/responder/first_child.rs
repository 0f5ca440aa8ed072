//! The first child SA, as responder of IKE_AUTH: whether it can be, its SPI, its installation.

use crate::crypto::EspSuite;
use crate::crypto::keymat::Nonces;
use crate::event::{Blame, CloseReason};
use crate::exchange::auth::{ChildRefused, child_refused, ts_unacceptable};
use crate::exchange::config::{self, Wanted};
use crate::exchange::{reauth, redirect, transport};
use crate::io::{Action, ChildSaId};
use crate::policy::narrowing;
use crate::policy::proposal::{self, Chosen, EspKex};
use crate::sa::IkeSa;
use crate::sa::child::{self, NewChild};
use crate::sa::context::{Ctx, Purpose};
use crate::wire::{
    NotifyType, Payload, PayloadType, Payloads, SecurityAssociation, TrafficSelector,
};

use super::{finish_if_ready, responder, responder_in};

/// The child SA the peer asks for.
#[derive(Debug)]
pub(super) struct ChildOffer {
    sa: SecurityAssociation,
    pub(super) ts_i: Vec<TrafficSelector>,
    pub(super) ts_r: Vec<TrafficSelector>,
    /// The peer wants transport mode.
    transport: bool,
}

/// How far the child SA is.
#[derive(Debug)]
pub(super) enum ChildOutcome {
    /// The lease is not known yet.
    Undecided,
    /// Asked for none (RFC 6023).
    None,
    /// Cannot be.
    Refused(Box<ChildRefused>),
    /// Its SPI is being reserved.
    Planned(Plan),
    /// It is being installed.
    Installing(ChildSaId, Plan),
    /// It is there.
    Installed(ChildSaId, Plan),
}

#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) chosen: Chosen<EspSuite>,
    pub(super) ts_local: Vec<TrafficSelector>,
    pub(super) ts_remote: Vec<TrafficSelector>,
    pub(super) more: bool,
    pub(super) transport: bool,
    pub(super) spi_in: u32,
}

/// Takes what the peer asks for; `None` when it asks for no child.
pub(super) fn offer(payloads: &mut Payloads) -> Option<ChildOffer> {
    let transport = transport::is_said(payloads);
    let mut selectors = |kind| match payloads.take(kind) {
        Some(Payload::TsI(ts) | Payload::TsR(ts)) => ts.selectors,
        _ => Vec::new(),
    };
    let (ts_i, ts_r) = (selectors(PayloadType::TsI), selectors(PayloadType::TsR));
    match payloads.take(PayloadType::Sa) {
        Some(Payload::Sa(sa)) => Some(ChildOffer { sa, ts_i, ts_r, transport }),
        _ => None,
    }
}

/// Decides over the child SA, and reserves its SPI.
pub(super) fn plan(ctx: &mut Ctx, sa: &mut IkeSa) {
    let offer = match responder(sa) {
        Some(responder) => match responder.offer.take() {
            Some(offer) => offer,
            None => {
                responder.child = ChildOutcome::None;
                return;
            }
        },
        None => return,
    };
    // RFC 5685 6: who is sent away gets no child.
    if redirect::of_authenticated(ctx, sa).is_some() {
        if let Some(responder) = responder(sa) {
            responder.child = ChildOutcome::None;
        }
        return;
    }
    let wanted = responder(sa).map(|responder| responder.wanted).unwrap_or_default();
    let outcome = match decide(ctx, sa, &offer, wanted) {
        Ok(mut plan) => {
            if offer.transport {
                plan_transport(ctx, sa, &mut plan);
            }
            ctx.act(sa.id, Purpose::AuthSpi, Action::AllocSpi);
            ChildOutcome::Planned(plan)
        }
        Err(refused) => ChildOutcome::Refused(refused),
    };
    if let Some(responder) = responder(sa) {
        responder.child = outcome;
    }
}

fn decide(
    ctx: &Ctx,
    sa: &IkeSa,
    offer: &ChildOffer,
    wanted: Wanted,
) -> Result<Plan, Box<ChildRefused>> {
    let Some(grant) = sa.auth.as_ref().map(|auth| &auth.grant) else {
        let what = "no lease".to_owned();
        let notify = NotifyType::TemporaryFailure;
        return Err(child_refused(sa, notify, Blame::Internal, "internal", what, "report this"));
    };
    if wanted.any() && !config::satisfiable(wanted, grant) {
        return Err(child_refused(
            sa,
            NotifyType::InternalAddressFailure,
            Blame::Incompatible,
            "no_address",
            format!("lease {} has no address of the family asked for", grant.lease.0),
            "let the client ask for a family the role's pool has (strongSwan: `vips`)",
        ));
    }
    let ours = &ctx.config.esp_suites;
    let Some(chosen) = proposal::choose_esp(ours, &offer.sa, EspKex::Ignored) else {
        return Err(esp_refused(sa, ours, &offer.sa));
    };
    let hosts = sa.peer_side(grant);
    let remote = narrowing::narrow(&offer.ts_i, &hosts);
    if remote.selectors.is_empty() {
        let mut refused = ts_unacceptable(sa, "the client's", &offer.ts_i, &hosts);
        if !wanted.any() && grant.networks.is_empty() && !grant.addresses.is_empty() {
            refused.refusal.fix = "let the client ask for its virtual address (strongSwan: \
                                   `vips = 0.0.0.0`, and `::` for IPv6)"
                .to_owned();
        }
        return Err(refused);
    }
    let local = narrowing::narrow(&offer.ts_r, &grant.allowed);
    if local.selectors.is_empty() {
        return Err(ts_unacceptable(sa, "our", &offer.ts_r, &grant.allowed));
    }
    Ok(Plan {
        chosen,
        ts_local: local.selectors,
        ts_remote: remote.selectors,
        more: local.more || remote.more,
        transport: false,
        spi_in: 0,
    })
}

/// The peer asked for transport mode: whether it is. An SA with a child of that mode does without
/// MOBIKE.
fn plan_transport(ctx: &mut Ctx, sa: &mut IkeSa, plan: &mut Plan) {
    let granted = sa.auth.as_ref().is_some_and(|auth| auth.grant.transport);
    plan.transport = transport::agree(ctx, sa, granted, &mut plan.ts_local, &mut plan.ts_remote);
    if plan.transport
        && let Some(responder) = responder(sa)
    {
        responder.mobike = false;
    }
}

/// No common ESP proposal.
pub(crate) fn esp_refused(
    sa: &IkeSa,
    ours: &[EspSuite],
    offer: &SecurityAssociation,
) -> Box<ChildRefused> {
    let fix = proposal::advice(offer).unwrap_or_else(|| {
        format!(
            "let the client's ESP proposal contain one of ours (strongSwan: `esp_proposals = {}`)",
            ours.first().map(EspSuite::to_string).unwrap_or_default()
        )
    });
    child_refused(
        sa,
        NotifyType::NoProposalChosen,
        Blame::Incompatible,
        "no_esp_proposal_chosen",
        format!(
            "no common ESP proposal: the peer offered {}; accepted here are {}",
            proposal::text(offer),
            proposal::suites_text(ours)
        ),
        fix,
    )
}

pub(in crate::exchange::auth) fn spi(ctx: &mut Ctx, sa: &mut IkeSa, answer: Result<u32, String>) {
    let Some(responder) = responder(sa) else {
        return;
    };
    if !matches!(responder.child, ChildOutcome::Planned(_)) {
        return;
    }
    let outcome = std::mem::replace(&mut responder.child, ChildOutcome::Undecided);
    let ChildOutcome::Planned(mut plan) = outcome else {
        return;
    };
    let outcome = match answer {
        Ok(spi) => {
            plan.spi_in = spi;
            install(ctx, sa, plan)
        }
        Err(why) => ChildOutcome::Refused(unavailable(sa, &why)),
    };
    if let Some(responder) = super::responder(sa) {
        responder.child = outcome;
    }
    finish_if_ready(ctx, sa);
}

fn unavailable(sa: &IkeSa, why: &str) -> Box<ChildRefused> {
    child_refused(
        sa,
        NotifyType::TemporaryFailure,
        Blame::Internal,
        "data_plane",
        format!("the data plane refused the child SA: {why}"),
        "see the gateway's log for the data plane",
    )
}

fn install(ctx: &mut Ctx, sa: &mut IkeSa, plan: Plan) -> ChildOutcome {
    let initial_contact = responder(sa).is_some_and(|responder| responder.initial_contact);
    let grant = sa.auth.as_ref().map(|auth| &auth.grant);
    let overlaps = grant.is_some_and(|grant| reauth::overlaps(ctx, grant, initial_contact));
    let (Some(protection), Some(responder)) = (&sa.protection, responder_in(&mut sa.phase)) else {
        return ChildOutcome::Refused(unavailable(sa, "no keys"));
    };
    let exchanged = &responder.exchanged;
    let nonces = Nonces { i: exchanged.ni.as_bytes(), r: exchanged.nr.as_bytes() };
    let keys = child::derive_keys(protection, &plan.chosen.suite, nonces, &[], false);
    let spi_out = <[u8; 4]>::try_from(plan.chosen.spi.as_slice()).map(u32::from_be_bytes);
    let (Ok((keys_in, keys_out)), Ok(spi_out)) = (keys, spi_out) else {
        return ChildOutcome::Refused(unavailable(sa, "no keys"));
    };
    let new = NewChild {
        spi_in: plan.spi_in,
        spi_out,
        suite: plan.chosen.suite.clone(),
        keys_in,
        keys_out,
        ts_local: plan.ts_local.clone(),
        ts_remote: plan.ts_remote.clone(),
        transport: plan.transport,
        // Beside an SA that is in use: the peer receives on this one when our answer is there.
        outbound_active: !overlaps,
        rekeys: None,
    };
    match child::install(ctx, sa, new) {
        Some(id) => {
            if overlaps {
                reauth::wait_to_send(ctx, sa, id);
            }
            ChildOutcome::Installing(id, plan)
        }
        None => ChildOutcome::Refused(unavailable(sa, "no lease")),
    }
}

pub(in crate::exchange::auth) fn installed(
    ctx: &mut Ctx,
    sa: &mut IkeSa,
    id: ChildSaId,
    answer: Result<(), String>,
) {
    let Some(responder) = responder(sa) else {
        return;
    };
    if !matches!(responder.child, ChildOutcome::Installing(child, _) if child == id) {
        return;
    }
    let outcome = std::mem::replace(&mut responder.child, ChildOutcome::Undecided);
    let ChildOutcome::Installing(_, plan) = outcome else {
        return;
    };
    match answer {
        Ok(()) => responder.child = ChildOutcome::Installed(id, plan),
        Err(why) => {
            let reason = CloseReason::Failed(why.clone());
            child::remove_from_dataplane(ctx, sa, id, reason);
            sa.children.remove(&id);
            let refused = unavailable(sa, &why);
            if let Some(responder) = super::responder(sa) {
                responder.child = ChildOutcome::Refused(refused);
            }
        }
    }
    finish_if_ready(ctx, sa);
}
