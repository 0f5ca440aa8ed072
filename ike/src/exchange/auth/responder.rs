//! IKE_AUTH as responder.

mod claim;
mod eap;
mod first_child;

use std::collections::BTreeSet;
use std::time::Duration;

use crate::crypto::SecretBytes;
use crate::event::{Blame, CloseReason, Refusal};
use crate::exchange::auth::{
    AuthTask, Exchanged, Own, check_grant, ppk, remember, shared, still_granted, up,
};
use crate::exchange::certs;
use crate::exchange::config::{self, Wanted};
use crate::exchange::{
    about, continuity, reauth, redirect, seal_response, send_response, send_sealed, transport,
};
use crate::io::{Action, Authorise, Grant, LeaseId, VerifiedPeer};
use crate::policy::proposal;
use crate::sa::child;
use crate::sa::context::{Ctx, Purpose, refusal};
use crate::sa::lifecycle;
use crate::sa::protect::Protection;
use crate::sa::{IkeSa, Phase};
use crate::view::SaRole;
use crate::wire::{
    ExchangeType, IdPayload, Identification, Notify, NotifyType, Payload, Payloads,
    TrafficSelectors,
};

use claim::Claim;
use eap::EapTask;
use first_child::{ChildOffer, ChildOutcome};

pub(super) use claim::{ppk_found, shared_key};
pub(super) use eap::answered as eap_tls;
pub(crate) use first_child::esp_refused;
pub(super) use first_child::{installed, spi};

/// An IKE_AUTH request being worked on.
#[derive(Debug)]
pub(crate) struct Responder {
    exchanged: Exchanged,
    id_i: IdPayload,
    id_r: Identification,
    /// The peer's proof; with EAP it comes last.
    claim: Option<Claim>,
    /// EAP, when the peer asked for it by sending no AUTH.
    eap: Option<EapTask>,
    /// Authorities the peer named in CERTREQ.
    authorities: Vec<[u8; 20]>,
    /// The peer asked for OCSP answers about our certificate (RFC 4806).
    wants_ocsp: bool,
    /// The peer's certificates, until they are checked.
    certificates: Vec<Vec<u8>>,
    /// OCSP answers it sent about them.
    ocsp: Vec<Vec<u8>>,
    /// How we authenticate; with a shared key that is known when the key is.
    own: Option<Own>,
    /// The key shared with the peer, or EAP's.
    shared: SecretBytes,
    /// A post-quantum preshared key is part of the keys.
    ppk: bool,
    wanted: Wanted,
    initial_contact: bool,
    mobike: bool,
    offer: Option<ChildOffer>,
    verified: Option<Box<VerifiedPeer>>,
    /// Our AUTH.
    auth: Option<Payload>,
    child: ChildOutcome,
    /// Leases that ended while it was not known whose handshake this is.
    pub(super) killed: BTreeSet<LeaseId>,
}

/// Whether the peer's next request belongs to IKE_AUTH: nobody is authenticated.
pub(crate) fn expects_request(sa: &IkeSa) -> bool {
    match &sa.phase {
        Phase::HalfOpen(_) => true,
        Phase::Authenticating(task) => matches!(task.as_ref(), AuthTask::Responder(_)),
        _ => false,
    }
}

/// Whether that may be IKE_AUTH itself now: every key exchange is done.
pub(crate) fn expects_auth(sa: &IkeSa) -> bool {
    expects_request(sa)
        && (!matches!(sa.phase, Phase::HalfOpen(_)) || crate::exchange::init::ready_for_auth(sa))
}

/// An authentic request. Whoever sent it made the key exchange; who that is comes now.
pub(crate) fn process_request(ctx: &mut Ctx, sa: &mut IkeSa, mut payloads: Payloads) {
    if responder(sa).is_some() {
        ctx.half_open.authenticating(sa.id, true);
        return eap::process_request(ctx, sa, &payloads);
    }
    let Some(exchanged) = take_exchanged(sa) else {
        return;
    };
    continuity::heard(ctx, sa, &payloads);
    match claim::examine(ctx, sa, exchanged, &mut payloads) {
        Ok(responder) => {
            sa.phase = Phase::Authenticating(Box::new(AuthTask::Responder(Box::new(responder))));
            ctx.half_open.authenticating(sa.id, true);
            claim::begin(ctx, sa, &payloads);
        }
        Err(refused) => fail(ctx, sa, *refused),
    }
}

/// A fatal error in a request that was not examined.
pub(crate) fn refuse_request(
    ctx: &mut Ctx,
    sa: &mut IkeSa,
    exchange: ExchangeType,
    notify: Notify,
    refused: Refusal,
) {
    ctx.refuse(refused);
    crate::exchange::init::abandon(ctx, sa);
    answer_error(ctx, sa, exchange, notify);
}

fn take_exchanged(sa: &mut IkeSa) -> Option<Exchanged> {
    let phase = std::mem::replace(&mut sa.phase, Phase::Lingering);
    let Phase::HalfOpen(half_open) = phase else {
        sa.phase = phase;
        return None;
    };
    let half_open = *half_open;
    Some(Exchanged {
        ni: half_open.ni,
        nr: half_open.nr,
        request: half_open.request,
        response: half_open.response,
        int_auth: half_open.chain.int_auth(sa.window.next_expected()),
    })
}

impl Responder {
    /// What the peer's AUTH covers.
    fn peer_octets(&self, protection: &Protection) -> Vec<u8> {
        self.exchanged.octets(protection, SaRole::Initiator, &self.id_i.body())
    }

    /// What ours covers.
    fn own_octets(&self, protection: &Protection) -> Vec<u8> {
        let id = IdPayload::from(self.id_r.clone());
        self.exchanged.octets(protection, SaRole::Responder, &id.body())
    }
}

fn responder(sa: &mut IkeSa) -> Option<&mut Responder> {
    responder_in(&mut sa.phase)
}

/// The same, with the rest of the SA free to be looked at.
fn responder_in(phase: &mut Phase) -> Option<&mut Responder> {
    match phase {
        Phase::Authenticating(task) => match task.as_mut() {
            AuthTask::Responder(responder) => Some(responder),
            AuthTask::Initiator(_) => None,
        },
        _ => None,
    }
}

pub(super) fn verified(ctx: &mut Ctx, sa: &mut IkeSa, answer: Result<Box<VerifiedPeer>, Refusal>) {
    let (id, remote) = (sa.id, sa.path.remote);
    let Some(responder) = responder(sa) else {
        return;
    };
    let peer = match answer {
        Ok(peer) => peer,
        Err(refused) => {
            let identity = refused.identity.clone().or_else(|| Some(responder.id_i.id.clone()));
            let refused = Refusal { identity, ..refused };
            return fail(ctx, sa, refused);
        }
    };
    let (ts_i, ts_r) = responder
        .offer
        .as_ref()
        .map(|offer| (offer.ts_i.clone(), offer.ts_r.clone()))
        .unwrap_or_default();
    let authorise = Authorise {
        ike: id,
        remote,
        peer: (*peer).clone(),
        identity: responder.id_i.id.clone(),
        wants_ipv4: responder.wanted.ipv4(),
        wants_ipv6: responder.wanted.ipv6(),
        initial_contact: responder.initial_contact,
        ppk: responder.ppk,
        ts_remote: ts_i,
        ts_local: ts_r,
        connection: None,
    };
    responder.verified = Some(peer);
    ctx.act(id, Purpose::Authorise, Action::Authorise(Box::new(authorise)));
}

pub(super) fn authorised(ctx: &mut Ctx, sa: &mut IkeSa, answer: Result<Box<Grant>, Refusal>) {
    let Some(responder) = responder(sa) else {
        return;
    };
    let (identity, killed) = (responder.id_i.id.clone(), responder.killed.clone());
    let Some(verified) = responder.verified.take() else {
        return;
    };
    let grant = match answer {
        Ok(grant) => *grant,
        Err(refused) => {
            let identity = refused.identity.clone().or(Some(identity));
            return fail(ctx, sa, Refusal { identity, ..refused });
        }
    };
    if let Err(refused) = check_grant(ctx, sa, &grant, &killed) {
        return fail(ctx, sa, Refusal { identity: Some(identity), ..*refused });
    }
    let initial_contact = self::responder(sa).is_some_and(|responder| responder.initial_contact);
    if reauth::overlaps(ctx, &grant, initial_contact)
        && let Err(refused) = reauth::check(ctx, sa, &grant, &verified)
    {
        return fail(ctx, sa, Refusal { identity: Some(identity), ..*refused });
    }
    remember(ctx, sa, &verified, identity, grant);
    sign(ctx, sa);
    first_child::plan(ctx, sa);
    finish_if_ready(ctx, sa);
}

/// Makes our AUTH over our own IKE_SA_INIT response, or asks for its signature
/// (RFC 7296 2.15).
fn sign(ctx: &mut Ctx, sa: &mut IkeSa) {
    let (Some(protection), Some(responder)) = (&sa.protection, responder_in(&mut sa.phase)) else {
        return;
    };
    let message = responder.own_octets(protection);
    match &responder.own {
        Some(Own::Certificate { credential, how, .. }) => {
            let action = Action::Sign { credential: *credential, scheme: how.scheme, message };
            ctx.act(sa.id, Purpose::Sign, action);
        }
        Some(Own::SharedKey) => {
            let auth = shared::mic(protection, &responder.shared, &message);
            responder.auth = Some(Payload::Auth(auth));
        }
        None => {}
    }
}

pub(super) fn signed(ctx: &mut Ctx, sa: &mut IkeSa, answer: Result<Vec<u8>, String>) {
    let Some(responder) = responder(sa) else {
        return;
    };
    let Some(Own::Certificate { how, .. }) = &responder.own else {
        return;
    };
    let auth = answer.and_then(|signature| {
        certs::auth_payload(*how, signature).map_err(|error| error.to_string())
    });
    match auth {
        Ok(auth) if responder.eap.is_some() => eap::signed(ctx, sa, auth),
        Ok(auth) => {
            responder.auth = Some(auth);
            finish_if_ready(ctx, sa);
        }
        Err(why) => fail_signing(ctx, sa, &why),
    }
}

fn fail_signing(ctx: &mut Ctx, sa: &mut IkeSa, why: &str) {
    let refused = about(
        sa,
        refusal(
            Blame::Internal,
            Some(NotifyType::AuthenticationFailed),
            "sign",
            format!("our own signature failed: {why}"),
            "check the gateway's key and certificate",
        ),
    );
    fail(ctx, sa, refused);
}

/// Answers when signature and child are decided.
fn finish_if_ready(ctx: &mut Ctx, sa: &mut IkeSa) {
    let ready = responder(sa).is_some_and(|responder| {
        responder.auth.is_some()
            && matches!(
                responder.child,
                ChildOutcome::None | ChildOutcome::Refused(_) | ChildOutcome::Installed(..)
            )
    });
    if !ready {
        return;
    }
    if let Err(refused) = still_granted(ctx, sa) {
        return fail(ctx, sa, *refused);
    }
    let phase = std::mem::replace(&mut sa.phase, Phase::Lingering);
    let Phase::Authenticating(task) = phase else {
        sa.phase = phase;
        return;
    };
    let AuthTask::Responder(responder) = *task else {
        return;
    };
    let mut responder = *responder;
    let mut payloads = Payloads::new();
    if responder.eap.is_none() {
        payloads.push(Payload::id_r(responder.id_r.clone()));
    }
    if let Some(Own::Certificate { chain, ocsp, .. }) = responder.own.take() {
        certs::payloads(chain).chain(certs::staples(ocsp)).for_each(|cert| payloads.push(cert));
    }
    if let Some(auth) = responder.auth.take() {
        payloads.push(auth);
    }
    let (mut child_up, mut child_refused) = (None, None);
    // Whatever becomes of the child: a later one is between these addresses (RFC 6023 3 says so of
    // an IKE SA without one). A lack of addresses has a notify of its own (RFC 7296 3.15.4).
    let grant = sa.auth.as_ref().map(|auth| &auth.grant);
    let grant = grant.filter(|grant| config::satisfiable(responder.wanted, grant));
    if let Some(reply) = grant.and_then(|grant| config::reply(responder.wanted, grant)) {
        payloads.push(Payload::Cp(reply));
    }
    match responder.child {
        ChildOutcome::Installed(id, plan) => {
            payloads.push(Payload::Sa(proposal::answer_esp(&plan.chosen, plan.spi_in)));
            payloads.push(Payload::TsI(TrafficSelectors::new(plan.ts_remote)));
            payloads.push(Payload::TsR(TrafficSelectors::new(plan.ts_local)));
            if plan.transport {
                payloads.push_notify(transport::notify());
            }
            if plan.more {
                payloads.push_notify(Notify::new(NotifyType::AdditionalTsPossible));
            }
            child_up = Some(id);
        }
        ChildOutcome::Refused(refused) => {
            payloads.push_notify(refused.notify);
            child_refused = Some(refused.refusal);
        }
        _ => {}
    }
    if responder.ppk {
        payloads.push_notify(ppk::used());
    }
    if responder.mobike {
        sa.traits.mobike = true;
        payloads.push_notify(Notify::new(NotifyType::MobikeSupported));
    }
    if let Some(lifetime) = auth_lifetime(ctx, sa) {
        payloads.push_notify(lifetime);
    }
    continuity::reply(ctx, sa, &mut payloads);
    let sent_away = redirect::of_authenticated(ctx, sa);
    let sent_away = sent_away.filter(|_| child_up.is_none());
    if let Some(notify) = &sent_away {
        payloads.push_notify(notify.clone());
    }
    // Nothing is established that the peer cannot be told of.
    let Some(packets) = seal_response(ctx, sa, ExchangeType::IkeAuth, &payloads) else {
        lifecycle::clear_dataplane(ctx, sa, &CloseReason::Failed("encode".to_owned()));
        let failed = Notify::new(NotifyType::AuthenticationFailed);
        return answer_error(ctx, sa, ExchangeType::IkeAuth, failed);
    };
    up(ctx, sa, responder.initial_contact);
    if let Some(id) = child_up {
        child::up(ctx, sa, id, None);
    }
    // Of an SA that is known by now.
    if let Some(refused) = child_refused {
        ctx.refuse(refused);
    }
    if sent_away.is_some() {
        redirect::told(ctx, sa);
    }
    send_sealed(ctx, sa, packets);
}

/// When the peer must authenticate again (RFC 4478): in good time before the grant ends, with a
/// certificate it has renewed by then.
fn auth_lifetime(ctx: &Ctx, sa: &IkeSa) -> Option<Notify> {
    let grant = &sa.auth.as_ref()?.grant;
    let left = grant.deadline.until(ctx.now.wall);
    if left < ctx.config.timers.min_auth_lifetime {
        return None;
    }
    // A client may take the time as the very end; a twentieth is kept for the exchange itself.
    let margin = left.checked_div(20).unwrap_or_default().min(MARGIN);
    let announced = left.saturating_sub(margin).as_secs();
    Some(Notify::auth_lifetime(u32::try_from(announced).unwrap_or(u32::MAX)))
}

/// Time kept for reauthentication, at most.
const MARGIN: Duration = Duration::from_secs(60);

/// Ends the handshake: the peer hears AUTHENTICATION_FAILED and nothing more.
fn fail(ctx: &mut Ctx, sa: &mut IkeSa, refused: Refusal) {
    let refused = about(sa, refused);
    // What the peer must fix in its bytes it may know; why it is not trusted it may not.
    let notify = match refused.notify {
        Some(NotifyType::InvalidSyntax) => NotifyType::InvalidSyntax,
        _ => NotifyType::AuthenticationFailed,
    };
    let reason = CloseReason::Failed(refused.code.to_owned());
    ctx.refuse(Refusal { notify: Some(notify), ..refused });
    lifecycle::clear_dataplane(ctx, sa, &reason);
    answer_error(ctx, sa, ExchangeType::IkeAuth, Notify::new(notify));
}

/// Ends the handshake because the operator or the lease's end wants it so.
pub(super) fn reject(ctx: &mut Ctx, sa: &mut IkeSa) {
    let failed = Notify::new(NotifyType::AuthenticationFailed);
    answer_error(ctx, sa, ExchangeType::IkeAuth, failed);
}

fn answer_error(ctx: &mut Ctx, sa: &mut IkeSa, exchange: ExchangeType, notify: Notify) {
    let mut payloads = Payloads::new();
    if let Some(failure) = responder(sa).and_then(|responder| responder.eap.as_ref()?.failure()) {
        payloads.push(Payload::Eap(failure));
    }
    payloads.push_notify(notify);
    sa.phase = Phase::Lingering;
    ctx.half_open.authenticating(sa.id, false);
    sa.children.clear();
    // Between the messages of EAP it is the peer's turn, and nothing can be answered.
    if sa.window.is_busy() {
        send_response(ctx, sa, exchange, &payloads);
    }
    lifecycle::linger_failed(ctx, sa);
}
