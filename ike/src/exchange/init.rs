//! IKE_SA_INIT (RFC 7296 1.2, 2.6, 2.7, 2.23), both roles. Everything here is before
//! authentication: cheap checks come before dear ones, what is kept is bounded, and nothing an
//! attacker sends ends a handshake.
//!
//! A half-open SA as responder holds the request (at most [`MAX_INIT_LEN`] octets), our response
//! (under 1 KiB plus the key exchange's public value) and, once IKE_AUTH arrives and while the
//! shared secret is computed, at most [`MAX_QUEUED`] octets of it. What IKE_INTERMEDIATE adds is
//! in `intermediate`.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

mod initiator;
mod responder;

use crate::crypto::keymat::Nonces;
use crate::crypto::{IkeSuite, KexRequest, KexResponse, SharedSecret};
use crate::event::{Blame, CloseReason, Refusal};
use crate::exchange::intermediate::{self, Chain};
use crate::exchange::{about, auth, certs, natd, redirect};
use crate::io::{Action, Datagram};
use crate::policy::proposal;
use crate::sa::context::{Ctx, Purpose, refusal};
use crate::sa::protect::Protection;
use crate::sa::{IkeSa, Path, PeerTraits, Phase, lifecycle};
use crate::time::Timestamp;
use crate::wire::{
    ExchangeType, Header, KeyExchange, Message, Nonce, Notify, NotifyType, Payload, Payloads,
};

pub(crate) use initiator::{
    InitSent, initiate, process_response, retransmit_due, silenced, solved, unanswered,
};
pub(crate) use responder::{heard, process_request};

/// Octets of an IKE_SA_INIT message at most; it travels unfragmented (RFC 7383 2.1).
pub(crate) const MAX_INIT_LEN: usize = 4096;

/// Octets of IKE_AUTH kept while the shared secret is computed.
const MAX_QUEUED: usize = 16 * 1024;

/// Datagrams of it at most: small ones cost more than their octets.
const MAX_HELD: usize = 64;

/// Octets of our nonces: half the longest PRF key is the least (RFC 7296 2.10).
const NONCE_LEN: usize = 32;

/// Forged IKE_AUTH messages of one half-open SA before the operator hears of them. They end
/// nothing: who sees the SPIs can send any number, and the SA ends with its handshake's time.
const MAX_FORGERIES: u32 = 64;

/// What is known between IKE_SA_INIT and IKE_AUTH, as responder.
#[derive(Debug)]
pub(crate) struct HalfOpenSa {
    /// When its first message came.
    began: Timestamp,
    pub(crate) ni: Nonce,
    pub(crate) nr: Nonce,
    chosen: proposal::Chosen<IkeSuite>,
    /// Additional key exchanges between this and IKE_AUTH.
    pub(crate) chain: Chain,
    /// The request and our response as they went over the wire: AUTH covers them.
    pub(crate) request: Vec<u8>,
    pub(crate) response: Vec<u8>,
    peer_public: Vec<u8>,
    handle: u64,
    secret: Secret,
    queue: Vec<Datagram>,
}

/// How far the key exchange is.
#[derive(Debug)]
enum Secret {
    /// Our key pair is being drawn.
    Drawing,
    /// Our public value is sent; the private half waits outside.
    Waiting,
    /// A KEM: the secret is known since our public value is.
    Known(SharedSecret),
    /// IKE_AUTH has come; the secret is being computed.
    Computing,
    /// The SA has its keys.
    Done,
}

/// Our key pair is there, for either role.
pub(crate) fn key_pair(ctx: &mut Ctx, sa: &mut IkeSa, answer: Result<KexResponse, String>) {
    let response = match answer {
        Ok(KexResponse::Failed { error, .. }) => {
            let why = error.to_string();
            Err((key_exchange_failed(sa, &why), why))
        }
        Ok(response) => Ok(response),
        Err(why) => Err((overloaded(sa, &why), why)),
    };
    match (&mut sa.phase, response) {
        (Phase::HalfOpen(half_open), Ok(KexResponse::Generated { public, .. })) => {
            half_open.secret = Secret::Waiting;
            respond(ctx, sa, public);
        }
        (Phase::HalfOpen(half_open), Ok(KexResponse::Encapsulated { public, secret, .. })) => {
            half_open.secret = Secret::Known(secret);
            respond(ctx, sa, public);
        }
        (Phase::InitSent(init), Ok(KexResponse::Generated { public, .. })) => {
            init.public = public;
            initiator::send(ctx, sa);
        }
        (Phase::HalfOpen(_) | Phase::InitSent(_), Err((refused, why))) => {
            ctx.refuse(refused);
            lifecycle::close(ctx, sa, CloseReason::Failed(why), lifecycle::Tell::Nobody);
        }
        _ => {}
    }
}

fn key_exchange_failed(sa: &IkeSa, why: &str) -> Refusal {
    about(
        sa,
        refusal(
            Blame::Misbehaved,
            None,
            "key_exchange",
            format!("the key exchange failed: {why}"),
            "check the peer's software, or this machine when it happens with every peer",
        ),
    )
}

/// Our side did not compute: no fault of the peer, who will say its request again.
pub(super) fn overloaded(sa: &IkeSa, why: &str) -> Refusal {
    about(
        sa,
        refusal(
            Blame::Internal,
            None,
            "overloaded",
            format!("a handshake was dropped before its key exchange: {why}"),
            "nothing when it passes: peers try again; when it stays, see who sends so many \
             requests, or give the gateway more cores",
        ),
    )
}

fn read_traits(ctx: &Ctx, payloads: &Payloads, header: &Header, path: Path) -> PeerTraits {
    let mut traits = PeerTraits {
        wants_ocsp: certs::wants_ocsp(payloads),
        fragmentation: payloads.has_notify(NotifyType::FragmentationSupported),
        hashes: payloads
            .notify(NotifyType::SignatureHashAlgorithms)
            .and_then(|notify| notify.hash_algorithms().ok())
            .unwrap_or_default(),
        childless: payloads.has_notify(NotifyType::ChildlessIkev2Supported),
        redirect: redirect::supported(payloads) && !redirect::came_from_there(ctx, payloads),
        ppk: ctx.config.ppk && payloads.has_notify(NotifyType::UsePpk),
        force_encap: ctx.config.force_encap,
        ..PeerTraits::default()
    };
    natd::process(&mut traits, payloads, ctx.crypto, (header.spi_i, header.spi_r), path);
    traits
}

/// Our response (RFC 7296 1.2).
fn respond(ctx: &mut Ctx, sa: &mut IkeSa, public: Vec<u8>) {
    let spis = (sa.spi_i, sa.spi_r);
    let path = sa.path;
    let header = sa.header(ExchangeType::IkeSaInit, true, 0);
    let Phase::HalfOpen(half_open) = &mut sa.phase else {
        return;
    };
    let mut payloads = Payloads::from(vec![
        Payload::Sa(proposal::answer_ike(&half_open.chosen, None)),
        Payload::Ke(KeyExchange::new(half_open.chosen.suite.kex, public)),
        Payload::Nonce(half_open.nr.clone()),
    ]);
    if sa.traits.nat_detection {
        let fake = ctx.config.force_encap;
        natd::build(&mut payloads, ctx.crypto, &mut sa.rng, spis, path, fake);
    }
    if let Some(request) = certs::request(&ctx.config.trust_anchor_hashes) {
        payloads.push(request);
        if let Some(request) = certs::ocsp_request(ctx.config.request_ocsp) {
            payloads.push(request);
        }
    }
    if sa.traits.fragmentation {
        payloads.push_notify(Notify::new(NotifyType::FragmentationSupported));
    }
    if !sa.traits.hashes.is_empty() {
        payloads.push_notify(certs::hashes_notify());
    }
    payloads.push_notify(Notify::new(NotifyType::ChildlessIkev2Supported));
    if !half_open.chain.is_done() {
        payloads.push_notify(Notify::new(NotifyType::IntermediateExchangeSupported));
    }
    if sa.traits.ppk {
        payloads.push_notify(Notify::new(NotifyType::UsePpk));
    }
    if let Ok(bytes) = (Message { header, payloads }).encode() {
        half_open.response = bytes.clone();
        ctx.transmit(path.datagram(bytes));
    }
}

/// Whether a message of this exchange may be the first under an SA's keys.
pub(crate) fn expects(sa: &IkeSa, exchange: ExchangeType) -> bool {
    match &sa.phase {
        Phase::HalfOpen(half_open) if half_open.chain.is_done() => {
            exchange == ExchangeType::IkeAuth
        }
        Phase::HalfOpen(_) => exchange == ExchangeType::IkeIntermediate,
        _ => false,
    }
}

/// Whether IKE_AUTH may come now, as responder.
pub(crate) fn ready_for_auth(sa: &IkeSa) -> bool {
    matches!(&sa.phase, Phase::HalfOpen(half_open) if half_open.chain.is_done())
}

/// A datagram that claims to be what comes next, before the SA has keys: asks for the shared
/// secret, and keeps the datagram for when it is there.
pub(crate) fn hold(ctx: &mut Ctx, sa: &mut IkeSa, datagram: Datagram) {
    let Phase::HalfOpen(half_open) = &mut sa.phase else {
        return;
    };
    if half_open.response.is_empty() {
        return;
    }
    let queued: usize = half_open.queue.iter().map(|held| held.payload.len()).sum();
    if half_open.queue.len() >= MAX_HELD
        || queued.saturating_add(datagram.payload.len()) > MAX_QUEUED
    {
        return;
    }
    half_open.queue.push(datagram);
    match std::mem::replace(&mut half_open.secret, Secret::Computing) {
        Secret::Waiting => {
            let peer_public = std::mem::take(&mut half_open.peer_public);
            let request = KexRequest::Agree { handle: half_open.handle, peer_public };
            ctx.act(sa.id, Purpose::InitSecret, Action::KeyExchange(request));
        }
        Secret::Known(secret) => derive(ctx, sa, &secret),
        other => half_open.secret = other,
    }
}

/// What [`hold`] kept, once the keys are there.
pub(crate) fn take_held(sa: &mut IkeSa) -> Vec<Datagram> {
    match &mut sa.phase {
        Phase::HalfOpen(half_open) if matches!(half_open.secret, Secret::Done) => {
            std::mem::take(&mut half_open.queue)
        }
        _ => Vec::new(),
    }
}

/// The shared secret is there, for either role.
pub(crate) fn secret(ctx: &mut Ctx, sa: &mut IkeSa, answer: Result<KexResponse, String>) {
    let (refused, why) = match answer {
        Ok(KexResponse::Agreed { secret, .. }) => return derive(ctx, sa, &secret),
        Ok(KexResponse::Failed { error, .. }) => {
            let why = error.to_string();
            (key_exchange_failed(sa, &why), why)
        }
        Ok(_) => {
            let why = "an answer of another kind".to_owned();
            (overloaded(sa, &why), why)
        }
        Err(why) => (overloaded(sa, &why), why),
    };
    ctx.refuse(refused);
    lifecycle::close(ctx, sa, CloseReason::Failed(why), lifecycle::Tell::Nobody);
}

fn derive(ctx: &mut Ctx, sa: &mut IkeSa, shared: &SharedSecret) {
    let (suite, ni, nr) = match &sa.phase {
        Phase::HalfOpen(half_open) => {
            (half_open.chosen.suite.clone(), &half_open.ni, &half_open.nr)
        }
        Phase::InitSent(init) => match &init.answer {
            Some(answer) => (answer.suite.clone(), &init.ni, &answer.nr),
            None => return,
        },
        _ => return,
    };
    let nonces = Nonces { i: ni.as_bytes(), r: nr.as_bytes() };
    let spis = (sa.spi_i, sa.spi_r);
    match Protection::initial(ctx.crypto, suite, sa.is_initiator(), spis, nonces, shared) {
        Ok(protection) => sa.protection = Some(Box::new(protection)),
        Err(error) => {
            let refused = key_exchange_failed(sa, &error.to_string());
            ctx.refuse(refused);
            let reason = CloseReason::Failed(error.to_string());
            return lifecycle::close(ctx, sa, reason, lifecycle::Tell::Nobody);
        }
    }
    match &mut sa.phase {
        Phase::HalfOpen(half_open) => half_open.secret = Secret::Done,
        Phase::InitSent(_) => {
            let phase = std::mem::replace(&mut sa.phase, Phase::Lingering);
            if let Phase::InitSent(init) = phase
                && let Some(answer) = init.answer
            {
                let exchanged = auth::Exchanged {
                    ni: init.ni,
                    nr: answer.nr,
                    request: init.request,
                    response: answer.message,
                    int_auth: None,
                };
                intermediate::begin(ctx, sa, exchanged);
            }
        }
        _ => {}
    }
}

/// A message that failed its check. The real one may still come, so the SA stays, for a while.
pub(crate) fn forged(ctx: &mut Ctx, sa: &mut IkeSa) {
    sa.forgeries = sa.forgeries.saturating_add(1);
    if sa.forgeries == MAX_FORGERIES && matches!(sa.phase, Phase::HalfOpen(_)) {
        let refused = about(
            sa,
            refusal(
                Blame::Misbehaved,
                None,
                "forged_auth",
                format!("{} IKE_AUTH messages failed their integrity check", sa.forgeries),
                "someone on the path injects messages, or the peer derives other keys",
            ),
        );
        ctx.refuse(refused);
    }
}

/// Whether a handshake is a responder's that never came to IKE_AUTH, of which nothing was reported.
pub(crate) fn is_stranger(sa: &IkeSa) -> bool {
    matches!(sa.phase, Phase::HalfOpen(_)) && sa.forgeries < MAX_FORGERIES
}

/// The end of such a handshake.
pub(crate) fn unfinished(sa: &IkeSa) -> Refusal {
    let what = format!("{} began a handshake and sent no valid IKE_AUTH", sa.path.remote);
    let fix = "see that UDP 4500 and large or fragmented packets pass on the way here, and look at \
               the client's log";
    about(sa, refusal(Blame::Incompatible, None, "handshake_unfinished", what, fix))
}

/// Lets go of what a handshake holds outside.
pub(crate) fn abandon(ctx: &mut Ctx, sa: &mut IkeSa) {
    let id = sa.id;
    match &mut sa.phase {
        Phase::HalfOpen(half_open) => half_open.chain.release(ctx, id),
        Phase::Intermediate(state) => state.chain.release(ctx, id),
        _ => {}
    }
    let handle = match &sa.phase {
        Phase::HalfOpen(half_open) => match half_open.secret {
            Secret::Drawing | Secret::Waiting => Some(half_open.handle),
            Secret::Known(_) | Secret::Computing | Secret::Done => None,
        },
        Phase::InitSent(init) if init.answer.is_none() => Some(init.handle),
        _ => None,
    };
    if let Some(handle) = handle {
        ctx.drop_key_pair(sa.id, handle);
    }
}
