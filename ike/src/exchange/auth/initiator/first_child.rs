//! The first child SA, as initiator of IKE_AUTH: what is asked for, and what the peer makes of it.

use crate::crypto::EspSuite;
use crate::crypto::keymat::Nonces;
use crate::event::Blame;
use crate::exchange::transport::{self, Hindrance};
use crate::io::ChildSaId;
use crate::policy::{narrowing, proposal};
use crate::sa::IkeSa;
use crate::sa::child::{self, NewChild};
use crate::sa::context::Ctx;
use crate::wire::{NotifyType, Payload, Payloads, TrafficSelector, TrafficSelectors};

use super::{complete, fail, initiator};

/// The child SA we ask for.
#[derive(Debug, Clone, Default)]
pub(super) struct ChildOffer {
    local: Vec<TrafficSelector>,
    remote: Vec<TrafficSelector>,
    /// In transport mode, if the peer wants that too.
    pub(super) transport: bool,
}

/// Decides over what to ask for.
pub(super) fn offer(ctx: &mut Ctx, sa: &IkeSa) -> ChildOffer {
    let Some(peer) = &sa.peer else {
        return ChildOffer::default();
    };
    let (local, remote) = (our_side(sa), peer.ts_remote.clone());
    if peer.transport {
        match transport::selectors(sa, &local, &remote) {
            Ok((local, remote)) => return ChildOffer { local, remote, transport: true },
            Err(hindrance) => ctx.refuse(hindrance.report(sa)),
        }
    }
    ChildOffer { local, remote, transport: false }
}

/// Asks for it.
pub(super) fn request(suites: &[EspSuite], spi: u32, offer: &ChildOffer, payloads: &mut Payloads) {
    // The first child shares the IKE SA's key exchange (RFC 7296 1.2).
    let mut bare: Vec<EspSuite> = Vec::new();
    for suite in suites {
        let suite = EspSuite { kex: None, additional: Vec::new(), ..suite.clone() };
        if !bare.contains(&suite) {
            bare.push(suite);
        }
    }
    payloads.push(Payload::Sa(proposal::offer_esp(&bare, spi)));
    payloads.push(Payload::TsI(TrafficSelectors::new(offer.local.clone())));
    payloads.push(Payload::TsR(TrafficSelectors::new(offer.remote.clone())));
    if offer.transport {
        payloads.push_notify(transport::notify());
    }
}

/// Our side's selectors: everything of the families we want addresses of, as those are not known.
fn our_side(sa: &IkeSa) -> Vec<TrafficSelector> {
    let Some(peer) = &sa.peer else {
        return Vec::new();
    };
    if !peer.request_ipv4 && !peer.request_ipv6 {
        return peer.ts_local.clone();
    }
    let mut out = Vec::new();
    out.extend(peer.request_ipv4.then(TrafficSelector::any_v4));
    out.extend(peer.request_ipv6.then(TrafficSelector::any_v6));
    out
}

/// Installs the child the peer agreed to; `None` when it did not, which [`complete`] reports.
pub(super) fn install(
    ctx: &mut Ctx,
    sa: &mut IkeSa,
    response: &Payloads,
) -> Result<Option<ChildSaId>, String> {
    let (Some(answer), Some(ts_i), Some(ts_r)) = (response.sa(), response.ts_i(), response.ts_r())
    else {
        return Ok(None);
    };
    let Some(offer) = initiator(sa).map(|initiator| initiator.offer.clone()) else {
        return Ok(None);
    };
    let transport = transport::is_said(response);
    if transport && !offer.transport {
        return Err("the peer answered in transport mode, which was not asked for".to_owned());
    }
    let Some(peer) = &sa.peer else {
        return Ok(None);
    };
    let Some(chosen) = proposal::accept_esp(&peer.esp_suites, answer, None) else {
        return Err("the peer chose an ESP proposal that was not offered".to_owned());
    };
    if ts_i.selectors.is_empty()
        || ts_r.selectors.is_empty()
        || !narrowing::covers(&offer.local, &ts_i.selectors)
        || !narrowing::covers(&offer.remote, &ts_r.selectors)
    {
        return Err("the peer's selectors exceed those offered".to_owned());
    }
    let (ts_local, ts_remote) = (ts_i.selectors.clone(), ts_r.selectors.clone());
    let spi_out = <[u8; 4]>::try_from(chosen.spi.as_slice())
        .map(u32::from_be_bytes)
        .map_err(|_| "the peer's SPI is malformed".to_owned())?;
    let held = initiator(sa).map(|initiator| {
        (initiator.exchanged.ni.clone(), initiator.exchanged.nr.clone(), initiator.spi.clone())
    });
    let (Some((ni, nr, Some(Ok(spi_in)))), Some(protection)) = (held, &sa.protection) else {
        return Err("no keys".to_owned());
    };
    let nonces = Nonces { i: ni.as_bytes(), r: nr.as_bytes() };
    let (keys_in, keys_out) = child::derive_keys(protection, &chosen.suite, nonces, &[], true)
        .map_err(|error| error.to_string())?;
    let new = NewChild {
        spi_in,
        spi_out,
        suite: chosen.suite,
        keys_in,
        keys_out,
        ts_local,
        ts_remote,
        transport,
        outbound_active: true,
        rekeys: None,
    };
    if offer.transport && !transport {
        ctx.refuse(Hindrance::Peer.report(sa));
    }
    Ok(child::install(ctx, sa, new))
}

/// Why there is no child.
pub(super) fn none_made(response: &Payloads) -> (Option<NotifyType>, String) {
    let told = response.error_notify().map(|notify| notify.kind);
    let what = match told {
        Some(kind) => format!("the peer refused the child SA with {kind}"),
        None => "the peer made no child SA".to_owned(),
    };
    (told, what)
}

pub(in crate::exchange::auth) fn installed(
    ctx: &mut Ctx,
    sa: &mut IkeSa,
    id: ChildSaId,
    answer: Result<(), String>,
) {
    if initiator(sa).is_none_or(|initiator| initiator.child != Some(id)) {
        return;
    }
    match answer {
        Ok(()) => complete(ctx, sa, Some(id)),
        Err(why) => {
            let what = format!("the data plane refused the child SA: {why}");
            fail(ctx, sa, Blame::Internal, "data_plane", what);
        }
    }
}
