//! IKE_AUTH as initiator.

mod answer;
mod eap;
mod first_child;

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::config::{FirstChild, LocalAuth, PpkUse, RemoteAuth};
use crate::crypto::{IkeKeys, SecretBytes};
use crate::event::{Blame, CloseReason, Refusal};
use crate::exchange::auth::{
    AuthTask, Exchanged, Own, check_grant, ppk, remember, shared, still_granted, up,
};
use crate::exchange::certs;
use crate::exchange::config::Wanted;
use crate::exchange::{Task, about, advance, config, continuity, reauth, redirect, send_request};
use crate::io::{
    Action, Authorise, ChildSaId, Grant, LeaseId, PpkRequest, SharedKey, SharedKeyRequest,
    TimerKind, VerifiedPeer,
};
use crate::sa::child;
use crate::sa::context::{Ctx, Deferred, Purpose, refusal};
use crate::sa::lifecycle::{self, Tell};
use crate::sa::protect::Protection;
use crate::sa::timers::TimerKey;
use crate::sa::{IkeSa, Phase};
use crate::view::SaRole;
use crate::wire::{
    ExchangeType, IdPayload, Identification, Notify, NotifyType, Payload, Payloads,
    TrafficSelectors,
};

use answer::{check_shared_key, note_answer, peer_refuses, verify};
use eap::{EAP_TIME, EapTask};
use first_child::ChildOffer;

pub(super) use eap::{answered as eap_tls, too_slow};
pub(super) use first_child::installed;

/// An IKE_AUTH of ours under way.
#[derive(Debug)]
pub(crate) struct Initiator {
    exchanged: Exchanged,
    own: Own,
    /// Our AUTH.
    auth: Option<Payload>,
    /// EAP-TLS instead of our AUTH, until it is over.
    eap: Option<EapTask>,
    /// One side or both authenticate with a shared key.
    shares: bool,
    shared: Option<SecretBytes>,
    /// The post-quantum preshared key agreed on, until it is mixed in.
    ppk: Option<PpkUse>,
    ppk_key: Option<SecretBytes>,
    /// The keys before it was.
    unmixed: Option<Arc<IkeKeys>>,
    /// The data of AUTH for a responder that does not have it.
    auth_without_ppk: Option<Vec<u8>>,
    spi: Option<Result<u32, String>>,
    sent: bool,
    /// The child we asked for.
    offer: ChildOffer,
    peer_id: Option<Identification>,
    response: Option<Payloads>,
    verified: Option<Box<VerifiedPeer>>,
    child: Option<ChildSaId>,
    /// Leases that ended while it was not known whose handshake this is.
    pub(super) killed: BTreeSet<LeaseId>,
}

/// The keys are there: asks for what our proof and the first child need.
pub(crate) fn begin(ctx: &mut Ctx, sa: &mut IkeSa, exchanged: Exchanged) {
    let Some(peer) = &sa.peer else {
        return lifecycle::finish(ctx, sa);
    };
    if peer.first_child != FirstChild::WithIkeAuth && !sa.traits.childless {
        return no_childless(ctx, sa);
    }
    let own = match peer.local_auth {
        LocalAuth::SharedKey | LocalAuth::EapTls => Own::SharedKey,
        LocalAuth::Certificate(credential) => {
            let credentials = ctx.config.credentials.iter().filter(|ours| ours.id == credential);
            let Some((ours, how)) = certs::choose(credentials, &[], &sa.traits.hashes) else {
                return no_credential(ctx, sa);
            };
            let ocsp = if sa.traits.wants_ocsp { ours.ocsp.clone() } else { Vec::new() };
            Own::Certificate { credential, how, chain: ours.chain.clone(), ocsp }
        }
    };
    let shares =
        peer.local_auth == LocalAuth::SharedKey || peer.remote_auth == RemoteAuth::SharedKey;
    let find = shares.then(|| SharedKeyRequest {
        ike: sa.id,
        remote: sa.path.remote,
        role: SaRole::Initiator,
        local: peer.identity.clone(),
        peer: peer.expected.clone(),
    });
    let eap = (peer.local_auth == LocalAuth::EapTls).then(|| {
        let only = peer.remote_auth == RemoteAuth::EapTls;
        EapTask::new(only, peer.identity.to_string().into_bytes())
    });
    let mut ppk = peer.ppk.clone().filter(|_| sa.traits.ppk);
    if eap.is_some() {
        if ppk.take().is_some_and(|ppk| ppk.required) {
            return no_ppk_with_eap(ctx, sa);
        }
        ctx.timers.set(TimerKey::new(sa.id, TimerKind::HalfOpen), ctx.now.mono.after(EAP_TIME));
    }
    let find_ppk = ppk.as_ref().map(|ppk| PpkRequest {
        ike: sa.id,
        remote: sa.path.remote,
        role: SaRole::Initiator,
        peer: peer.expected.clone(),
        id: ppk.id.clone(),
    });
    let initiator = Initiator {
        exchanged,
        own,
        auth: None,
        eap,
        shares,
        shared: None,
        ppk,
        ppk_key: None,
        unmixed: None,
        auth_without_ppk: None,
        spi: None,
        sent: false,
        offer: ChildOffer::default(),
        peer_id: None,
        response: None,
        verified: None,
        child: None,
        killed: BTreeSet::new(),
    };
    sa.phase = Phase::Authenticating(Box::new(AuthTask::Initiator(Box::new(initiator))));
    if let Some(find) = find {
        ctx.act(sa.id, Purpose::SharedKey, Action::SharedKey(Box::new(find)));
    }
    if let Some(find) = find_ppk {
        ctx.act(sa.id, Purpose::Ppk, Action::Ppk(Box::new(find)));
    }
    prove_if_ready(ctx, sa);
    if !is_childless(sa) {
        ctx.act(sa.id, Purpose::AuthSpi, Action::AllocSpi);
    }
}

/// Whether IKE_AUTH makes no child (RFC 6023).
fn is_childless(sa: &IkeSa) -> bool {
    sa.peer.as_ref().is_some_and(|peer| peer.first_child != FirstChild::WithIkeAuth)
}

/// The peer did not say that it takes an IKE SA without a child (RFC 6023 3).
fn no_childless(ctx: &mut Ctx, sa: &mut IkeSa) {
    let what = "the peer does not announce that it makes IKE SAs without a child SA (RFC 6023)";
    let fix = "let it (strongSwan: `childless = allow`), or make the first child SA with IKE_AUTH";
    let refused = refusal(Blame::Incompatible, None, "childless_unsupported", what, fix);
    ctx.refuse(about(sa, refused));
    lifecycle::down(ctx, sa, CloseReason::Failed(what.to_owned()));
    lifecycle::finish(ctx, sa);
}

/// Makes our AUTH, or asks for its signature, once every key it needs is here; with an optional
/// post-quantum preshared key also what AUTH is without it (RFC 8784 3).
fn prove_if_ready(ctx: &mut Ctx, sa: &mut IkeSa) {
    let (Some(protection), Some(peer)) = (&mut sa.protection, &sa.peer) else {
        return;
    };
    let Some(initiator) = initiator_in(&mut sa.phase) else {
        return;
    };
    let waits = (initiator.shares && initiator.shared.is_none())
        || (initiator.ppk.is_some() && initiator.ppk_key.is_none());
    if waits || initiator.unmixed.is_some() || initiator.auth.is_some() {
        return;
    }
    if initiator.eap.is_some() {
        // AUTH comes last (RFC 7296 2.16).
        return send_if_ready(ctx, sa);
    }
    let id = IdPayload::from(peer.identity.clone());
    let octets = |initiator: &Initiator, protection: &Protection| {
        initiator.exchanged.octets(protection, SaRole::Initiator, &id.body())
    };
    let mut without = None;
    if let (Some(ppk), Some(key)) = (&initiator.ppk, initiator.ppk_key.take()) {
        if !ppk.required {
            without = Some(octets(initiator, protection));
        }
        initiator.unmixed = Some(protection.shared_keys());
        if let Err(error) = protection.mix_ppk(&key) {
            return fail(ctx, sa, Blame::Internal, "internal", error.to_string());
        }
    }
    let with = octets(initiator, protection);
    match &initiator.own {
        Own::Certificate { credential, how, .. } => {
            let (credential, scheme) = (*credential, how.scheme);
            let sign = |message| Action::Sign { credential, scheme, message };
            ctx.act(sa.id, Purpose::Sign, sign(with));
            if let Some(without) = without {
                ctx.act(sa.id, Purpose::SignWithoutPpk, sign(without));
            }
        }
        Own::SharedKey => {
            let key = initiator.shared.clone().unwrap_or_default();
            let mic = |octets: &[u8]| shared::mic(protection, &key, octets);
            initiator.auth = Some(Payload::Auth(mic(&with)));
            initiator.auth_without_ppk = without.map(|octets| mic(&octets).data);
        }
    }
    send_if_ready(ctx, sa);
}

/// The post-quantum preshared key (RFC 8784).
pub(super) fn ppk_found(ctx: &mut Ctx, sa: &mut IkeSa, answer: Result<SecretBytes, Refusal>) {
    let Some(initiator) = initiator(sa) else {
        return;
    };
    match answer {
        Ok(key) => initiator.ppk_key = Some(key),
        Err(_) if initiator.ppk.as_ref().is_some_and(|ppk| !ppk.required) => initiator.ppk = None,
        Err(refused) => return fail_with(ctx, sa, refused),
    }
    prove_if_ready(ctx, sa);
}

/// What AUTH is for a responder without the post-quantum preshared key.
pub(super) fn signed_without_ppk(ctx: &mut Ctx, sa: &mut IkeSa, answer: Result<Vec<u8>, String>) {
    match made(sa, answer) {
        Some(Ok(Payload::Auth(auth))) => {
            if let Some(initiator) = initiator(sa) {
                initiator.auth_without_ppk = Some(auth.data);
            }
            send_if_ready(ctx, sa);
        }
        Some(Err(why)) => fail_signing(ctx, sa, &why),
        _ => {}
    }
}

/// A signature as an AUTH payload; `None` when nobody asked for one.
fn made(sa: &mut IkeSa, answer: Result<Vec<u8>, String>) -> Option<Result<Payload, String>> {
    let Own::Certificate { how, .. } = &initiator(sa)?.own else {
        return None;
    };
    let how = *how;
    Some(answer.and_then(|signature| {
        certs::auth_payload(how, signature).map_err(|error| error.to_string())
    }))
}

fn fail_signing(ctx: &mut Ctx, sa: &mut IkeSa, why: &str) {
    fail(ctx, sa, Blame::Internal, "sign", format!("our signature failed: {why}"));
}

/// Both would have to be mixed into one AUTH after EAP (RFC 8784 3), which is not implemented. An
/// optional one is left out.
fn no_ppk_with_eap(ctx: &mut Ctx, sa: &mut IkeSa) {
    let what = "a post-quantum preshared key cannot be used together with EAP";
    let fix = "authenticate with a certificate or a shared key, or leave the `ppk` out";
    ctx.refuse(about(sa, refusal(Blame::Internal, None, "ppk_with_eap", what, fix)));
    lifecycle::down(ctx, sa, CloseReason::Failed(what.to_owned()));
    lifecycle::finish(ctx, sa);
}

fn no_credential(ctx: &mut Ctx, sa: &mut IkeSa) {
    let refused = about(
        sa,
        refusal(
            Blame::Incompatible,
            None,
            "no_credential",
            "our credential cannot sign in a way the peer verifies",
            "use a certificate of another key type",
        ),
    );
    ctx.refuse(refused);
    let reason = CloseReason::Failed("no usable credential".to_owned());
    lifecycle::down(ctx, sa, reason);
    lifecycle::finish(ctx, sa);
}

fn initiator(sa: &mut IkeSa) -> Option<&mut Initiator> {
    initiator_in(&mut sa.phase)
}

/// The same, with the rest of the SA free to be looked at.
fn initiator_in(phase: &mut Phase) -> Option<&mut Initiator> {
    match phase {
        Phase::Authenticating(task) => match task.as_mut() {
            AuthTask::Initiator(initiator) => Some(initiator),
            AuthTask::Responder(_) => None,
        },
        _ => None,
    }
}

pub(super) fn signed(ctx: &mut Ctx, sa: &mut IkeSa, answer: Result<Vec<u8>, String>) {
    match made(sa, answer) {
        Some(Ok(auth)) => {
            if let Some(initiator) = initiator(sa) {
                initiator.auth = Some(auth);
            }
            send_if_ready(ctx, sa);
        }
        Some(Err(why)) => fail_signing(ctx, sa, &why),
        None => {}
    }
}

/// The key shared with the peer, for our AUTH, its AUTH, or both.
pub(super) fn shared_key(ctx: &mut Ctx, sa: &mut IkeSa, answer: Result<Box<SharedKey>, Refusal>) {
    let expected = sa.peer.as_ref().and_then(|peer| peer.expected.clone());
    let Some(initiator) = initiator(sa) else {
        return;
    };
    match answer {
        Ok(found) if found.key.is_empty() => {
            return fail_with(ctx, sa, shared::empty_key(expected.as_ref()));
        }
        Ok(found) => initiator.shared = Some(found.key),
        Err(refused) => return fail_with(ctx, sa, refused),
    }
    prove_if_ready(ctx, sa);
}

pub(super) fn spi(ctx: &mut Ctx, sa: &mut IkeSa, answer: Result<u32, String>) {
    if let Some(initiator) = initiator(sa) {
        initiator.spi = Some(answer);
    }
    send_if_ready(ctx, sa);
}

fn send_if_ready(ctx: &mut Ctx, sa: &mut IkeSa) {
    let childless = is_childless(sa);
    let Some(initiator) = initiator(sa) else {
        return;
    };
    let optional = initiator.ppk.as_ref().is_some_and(|ppk| !ppk.required);
    if initiator.sent
        || (initiator.auth.is_none() && initiator.eap.is_none())
        || (optional && initiator.auth_without_ppk.is_none())
    {
        return;
    }
    let spi = match &initiator.spi {
        None if childless => None,
        None => return,
        Some(Ok(spi)) => Some(*spi),
        Some(Err(why)) => {
            let what = format!("the data plane gave no SPI: {why}");
            return fail(ctx, sa, Blame::Internal, "data_plane", what);
        }
    };
    initiator.sent = true;
    let offer = match spi {
        Some(_) => first_child::offer(ctx, sa),
        None => ChildOffer::default(),
    };
    let Some(initiator) = self::initiator(sa) else {
        return;
    };
    initiator.offer = offer.clone();
    let (own, auth) = (initiator.own.clone(), initiator.auth.take());
    let eap_only = initiator.eap.as_ref().is_some_and(EapTask::is_only);
    let ppk = initiator.ppk.clone();
    let without = initiator.auth_without_ppk.take();
    let Some(peer) = &sa.peer else {
        return;
    };
    let mut payloads = Payloads::from(vec![Payload::id_i(peer.identity.clone())]);
    if let Own::Certificate { chain, ocsp, .. } = own {
        certs::payloads(chain).chain(certs::staples(ocsp)).for_each(|cert| payloads.push(cert));
    }
    if peer.remote_auth == RemoteAuth::Certificate
        && let Some(request) = certs::request(&ctx.config.trust_anchor_hashes)
    {
        payloads.push(request);
        if let Some(request) = certs::ocsp_request(ctx.config.request_ocsp) {
            payloads.push(request);
        }
    }
    if let Some(expected) = &peer.expected {
        payloads.push(Payload::id_r(expected.clone()));
    }
    if let Some(auth) = auth {
        payloads.push(auth);
    }
    if eap_only {
        payloads.push_notify(Notify::new(NotifyType::EapOnlyAuthentication));
    }
    if let Some(request) = config::request(peer) {
        payloads.push(Payload::Cp(request));
    }
    if let Some(spi) = spi {
        first_child::request(&peer.esp_suites, spi, &offer, &mut payloads);
    }
    if let Some(ppk) = &ppk {
        payloads.push_notify(ppk::identity(&ppk.id));
        without.into_iter().for_each(|data| payloads.push_notify(ppk::without(data)));
    }
    // RFC 4555 1.2: it says nothing of transport mode.
    if peer.mobike && !offer.transport {
        payloads.push_notify(Notify::new(NotifyType::MobikeSupported));
    }
    continuity::offer(ctx, sa, &mut payloads);
    if peer.initial_contact {
        payloads.push_notify(Notify::new(NotifyType::InitialContact));
    }
    send_request(ctx, sa, ExchangeType::IkeAuth, &payloads);
}

pub(super) fn process_response(ctx: &mut Ctx, sa: &mut IkeSa, payloads: &Payloads) {
    let expected = sa.peer.as_ref().and_then(|peer| peer.expected.clone());
    continuity::heard(ctx, sa, payloads);
    reauth::heard(ctx, sa, payloads);
    if initiator(sa).is_some_and(|initiator| initiator.eap.is_some()) {
        return eap::process_response(ctx, sa, payloads);
    }
    let (Some(protection), Some(initiator)) = (&mut sa.protection, initiator_in(&mut sa.phase))
    else {
        return;
    };
    let (Some(id_r), Some(auth)) = (payloads.id_r(), payloads.auth()) else {
        return peer_refuses(ctx, sa, payloads);
    };
    if let Some(keys) = initiator.unmixed.take()
        && !payloads.has_notify(NotifyType::PpkIdentity)
    {
        // The responder did without the post-quantum preshared key (RFC 8784 3).
        if initiator.ppk.as_ref().is_some_and(|ppk| ppk.required) {
            let what = "the peer does not use the post-quantum preshared key, which is required";
            return fail(ctx, sa, Blame::Incompatible, "ppk_refused", what.to_owned());
        }
        protection.unmix(keys);
        initiator.ppk = None;
    }
    note_answer(sa, payloads, &id_r.id);
    if sa.peer.as_ref().is_some_and(|peer| peer.remote_auth == RemoteAuth::SharedKey) {
        let (Some(protection), Some(initiator)) = (&sa.protection, initiator_in(&mut sa.phase))
        else {
            return;
        };
        let octets = initiator.exchanged.octets(protection, SaRole::Responder, &id_r.body());
        let key = initiator.shared.take().unwrap_or_default();
        let answer = check_shared_key(protection, &key, &octets, auth, id_r, expected);
        return verified(ctx, sa, answer.map_err(|refused| *refused));
    }
    verify(ctx, sa, payloads, id_r, auth);
}

pub(super) fn verified(ctx: &mut Ctx, sa: &mut IkeSa, answer: Result<Box<VerifiedPeer>, Refusal>) {
    let (id, remote, connection) = (sa.id, sa.path.remote, sa.connection());
    let Some(initiator) = initiator(sa) else {
        return;
    };
    let peer = match answer {
        Ok(peer) => peer,
        Err(refused) => return fail_with(ctx, sa, refused),
    };
    if initiator.eap.as_ref().is_some_and(EapTask::awaits_signature) {
        return eap::signature_checked(ctx, sa, peer);
    }
    let Some(identity) = initiator.peer_id.clone() else {
        return;
    };
    let selectors =
        |ts: Option<&TrafficSelectors>| ts.map(|ts| ts.selectors.clone()).unwrap_or_default();
    let response = initiator.response.as_ref();
    let authorise = Authorise {
        ike: id,
        remote,
        peer: (*peer).clone(),
        identity,
        wants_ipv4: false,
        wants_ipv6: false,
        initial_contact: false,
        ppk: initiator.ppk.is_some(),
        ts_remote: selectors(response.and_then(Payloads::ts_r)),
        ts_local: selectors(response.and_then(Payloads::ts_i)),
        connection,
    };
    initiator.verified = Some(peer);
    ctx.act(id, Purpose::Authorise, Action::Authorise(Box::new(authorise)));
}

pub(super) fn authorised(ctx: &mut Ctx, sa: &mut IkeSa, answer: Result<Box<Grant>, Refusal>) {
    let Some(initiator) = initiator(sa) else {
        return;
    };
    let killed = initiator.killed.clone();
    let (Some(verified), Some(identity), Some(response)) =
        (initiator.verified.take(), initiator.peer_id.clone(), initiator.response.clone())
    else {
        return;
    };
    let mut grant = match answer {
        Ok(grant) => *grant,
        Err(refused) => return fail_with(ctx, sa, refused),
    };
    // RFC 5685 6: a gateway that has proved who it is may send us on.
    if let Some(to) = redirect::in_protected(sa, &response) {
        return redirect::follow(ctx, sa, to, Tell::Peer);
    }
    if let Err(refused) = check_grant(ctx, sa, &grant, &killed) {
        return fail_with(ctx, sa, *refused);
    }
    // As initiator the addresses are ours, and come from the peer.
    let asked = sa.peer.as_deref().map(Wanted::by).unwrap_or_default();
    let (addresses, dns) = config::received(asked, response.cp());
    grant.addresses = addresses;
    grant.dns = dns;
    grant.transport = sa.peer.as_ref().is_some_and(|peer| peer.transport);
    remember(ctx, sa, &verified, identity, grant);
    if is_childless(sa) {
        return match response.sa() {
            None => complete(ctx, sa, None),
            Some(_) => {
                let what = "the peer made a child SA that was not asked for".to_owned();
                fail(ctx, sa, Blame::Misbehaved, "bad_child", what)
            }
        };
    }
    match first_child::install(ctx, sa, &response) {
        Ok(Some(child)) => {
            if let Some(initiator) = self::initiator(sa) {
                initiator.child = Some(child);
            }
        }
        Ok(None) => complete(ctx, sa, None),
        Err(what) => fail(ctx, sa, Blame::Misbehaved, "bad_child", what),
    }
}

fn complete(ctx: &mut Ctx, sa: &mut IkeSa, child: Option<ChildSaId>) {
    if let Err(refused) = still_granted(ctx, sa) {
        return fail_with(ctx, sa, *refused);
    }
    let first_child = sa.peer.as_ref().map(|peer| peer.first_child).unwrap_or_default();
    let response = initiator(sa).and_then(|initiator| initiator.response.take());
    let none_made = child.is_none() && first_child == FirstChild::WithIkeAuth;
    let none_made = none_made.then(|| first_child::none_made(&response.unwrap_or_default()));
    if let Some((_, why)) = none_made.as_ref().filter(|_| sa.replaces.is_some()) {
        // It would carry nothing, and the one it is to replace does.
        let what = format!("we authenticated again in vain: {why}");
        return fail(ctx, sa, Blame::Incompatible, "reauth_without_child", what);
    }
    sa.phase = Phase::Established;
    up(ctx, sa, false);
    if let Some(id) = child {
        child::up(ctx, sa, id, None);
    }
    // Of an SA that is known by now.
    if let Some((told, what)) = none_made {
        let fix = "compare ESP proposals and selectors of both sides";
        let refused = about(sa, refusal(Blame::Incompatible, told, "child_refused", what, fix));
        ctx.refuse(refused);
    }
    if let Some(old) = sa.replaces.take() {
        ctx.deferred.push_back(Deferred::Superseded { old, new: sa.id });
    }
    if first_child == FirstChild::Separately {
        sa.enqueue(Task::CreateChild);
        advance(ctx, sa);
    }
    ctx.checkpoint(sa);
}

fn fail(ctx: &mut Ctx, sa: &mut IkeSa, blame: Blame, code: &'static str, what: String) {
    let fix = "compare both sides' configuration";
    fail_with(ctx, sa, refusal(blame, None, code, what, fix));
}

/// Ends the handshake. When the peer may have established the SA, it is deleted properly.
pub(super) fn fail_with(ctx: &mut Ctx, sa: &mut IkeSa, refused: Refusal) {
    let sent = initiator(sa).is_some_and(|initiator| initiator.sent);
    let identity = initiator(sa).and_then(|initiator| initiator.peer_id.clone());
    let refused = about(sa, Refusal { identity: refused.identity.clone().or(identity), ..refused });
    let reason = CloseReason::Failed(refused.what.clone());
    ctx.refuse(refused);
    lifecycle::clear_dataplane(ctx, sa, &reason);
    lifecycle::down(ctx, sa, reason);
    if sent { lifecycle::bury(ctx, sa, Tell::Peer) } else { lifecycle::finish(ctx, sa) }
}
