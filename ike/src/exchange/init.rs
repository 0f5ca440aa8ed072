//! IKE_SA_INIT (RFC 7296 1.2, 2.6, 2.7, 2.23), both roles. Everything here is before
//! authentication: cheap checks come before dear ones, what is kept is bounded, and nothing an
//! attacker sends ends a handshake.
//!
//! A half-open SA as responder holds the request (at most [`MAX_INIT_LEN`] octets), our response
//! (under 1 KiB plus the key exchange's public value) and, once IKE_AUTH arrives and while the
//! shared secret is computed, at most [`MAX_QUEUED`] octets of it.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

use crate::config::PeerConfig;
use crate::crypto::keymat::Nonces;
use crate::crypto::{IkeSuite, KexKind, KexRequest, KexResponse, SharedSecret, suite};
use crate::engine::Engine;
use crate::event::{Blame, CloseReason, Refusal};
use crate::exchange::{about, arm_retransmit, auth, certs, natd};
use crate::io::{Action, Datagram, IkeSaId, TimerKind};
use crate::policy::limits::{Admission, Source};
use crate::policy::proposal;
use crate::sa::context::{Ctx, Purpose, refusal};
use crate::sa::protect::Protection;
use crate::sa::table::InitKey;
use crate::sa::timers::TimerKey;
use crate::sa::{IkeSa, Path, PeerTraits, Phase, lifecycle};
use crate::view::SaRole;
use crate::wire::{
    ExchangeType, Flags, Header, IkeSpi, KeMethod, KeyExchange, Message, Nonce, Notify, NotifyType,
    Payload, Payloads, SecurityAssociation,
};

/// Octets of an IKE_SA_INIT message at most; it travels unfragmented (RFC 7383 2.1).
pub(crate) const MAX_INIT_LEN: usize = 4096;

/// Octets of IKE_AUTH kept while the shared secret is computed.
const MAX_QUEUED: usize = 16 * 1024;

/// Octets of our nonces: half the longest PRF key is the least (RFC 7296 2.10).
const NONCE_LEN: usize = 32;

/// Forged IKE_AUTH messages a half-open SA bears before it is given up. Only who sees the SPIs
/// can send any.
const MAX_FORGERIES: u32 = 64;

/// How often an initiator follows COOKIE and INVALID_KE_PAYLOAD; a forger could send them forever.
const MAX_RESTARTS: u32 = 8;

/// What is known between IKE_SA_INIT and IKE_AUTH, as responder.
#[derive(Debug)]
pub(crate) struct HalfOpenSa {
    pub(crate) ni: Nonce,
    pub(crate) nr: Nonce,
    pub(crate) suite: IkeSuite,
    number: u8,
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

/// An IKE_SA_INIT of ours under way.
#[derive(Debug)]
pub(crate) struct InitSent {
    ni: Nonce,
    group: KeMethod,
    handle: u64,
    public: Vec<u8>,
    cookie: Option<Vec<u8>>,
    request: Vec<u8>,
    restarts: u32,
    /// The response, while the shared secret is computed.
    answer: Option<InitAnswer>,
    /// What an unprotected error said: believed only when nothing better comes.
    hint: Option<Refusal>,
}

#[derive(Debug)]
struct InitAnswer {
    nr: Nonce,
    suite: IkeSuite,
    message: Vec<u8>,
}

/// A request for a new IKE SA.
pub(crate) fn process_request(engine: &mut Engine, datagram: Datagram, header: Header) {
    if datagram.payload.len() > MAX_INIT_LEN {
        return engine.dropped();
    }
    let Ok(message) = Message::parse(&datagram.payload) else {
        return engine.dropped();
    };
    if let Err(error) = message.payloads.check_critical() {
        if let Some(crate::wire::ErrorNotify::UnsupportedCriticalPayload(payload)) = error.notify()
            && engine.may_answer_stranger()
        {
            answer_stateless(engine, &datagram, &header, Notify::unsupported_critical(payload));
        }
        return engine.dropped();
    }
    let payloads = &message.payloads;
    let (Some(offer), Some(ke), Some(ni)) = (payloads.sa(), payloads.ke(), payloads.nonce()) else {
        return engine.dropped();
    };

    // RFC 7296 2.1: the same request again gets the same response, never a second SA.
    let key =
        InitKey { spi_i: header.spi_i, remote: datagram.remote, nonce: ni.as_bytes().to_vec() };
    if let Some(id) = engine.sas.by_init(&key) {
        return answer_again(engine, id, &datagram);
    }

    let source = Source::from(datagram.remote.ip());
    let spi_i = header.spi_i.0.to_be_bytes();
    let ip = datagram.remote.ip();
    let proved = payloads
        .notify(NotifyType::Cookie)
        .is_some_and(|cookie| engine.jar.check(&cookie.data, ni.as_bytes(), ip, spi_i));
    let admission =
        engine.ctx.half_open.admit(&engine.ctx.config.limits, engine.ctx.now.mono, source, proved);
    match admission {
        Admission::Accept => {}
        Admission::Cookie => {
            let cookie = engine.jar.cookie(ni.as_bytes(), ip, spi_i);
            engine.ctx.stats.cookies = engine.ctx.stats.cookies.saturating_add(1);
            return answer_stateless(engine, &datagram, &header, Notify::cookie(cookie));
        }
        Admission::Evict(victim) => evict(engine, victim),
        Admission::Drop => return engine.dropped(),
    }
    if engine.sas.len() >= engine.ctx.config.limits.max_ike_sas {
        return engine.dropped();
    }

    let Some(chosen) = proposal::choose_ike(&engine.ctx.config.ike_suites, offer, ke.method) else {
        if engine.may_answer_stranger() {
            let refused = no_proposal(&engine.ctx.config.ike_suites, offer);
            engine.ctx.refuse(Refusal { remote: Some(datagram.remote), ..refused });
            answer_stateless(engine, &datagram, &header, Notify::new(NotifyType::NoProposalChosen));
        }
        return;
    };
    if chosen.suite.kex != ke.method {
        let notify = Notify::invalid_ke(chosen.suite.kex);
        return answer_stateless(engine, &datagram, &header, notify);
    }
    let Some(group) = engine.ctx.crypto.group(ke.method) else {
        return engine.dropped();
    };
    if ke.data.len() != group.initiator_public_len() {
        if engine.may_answer_stranger() {
            let refused = refusal(
                Blame::Malformed,
                Some(NotifyType::InvalidSyntax),
                "invalid_ke",
                format!(
                    "the peer's public value for {} has {} octets instead of {}",
                    suite::kex_name(ke.method),
                    ke.data.len(),
                    group.initiator_public_len()
                ),
                "check the peer's software",
            );
            engine.ctx.refuse(Refusal { remote: Some(datagram.remote), ..refused });
            answer_stateless(engine, &datagram, &header, Notify::new(NotifyType::InvalidSyntax));
        }
        return engine.dropped();
    }
    let kem = group.kind() == KexKind::Kem;
    let (ni, peer_public, method) = (ni.clone(), ke.data.clone(), ke.method);
    let traits = read_traits(&engine.ctx, payloads, &header, Path::of(&datagram));
    begin(
        engine,
        datagram,
        header,
        key,
        source,
        New { traits, ni, peer_public, method, kem, suite: chosen.suite, number: chosen.number },
    );
}

struct New {
    traits: PeerTraits,
    ni: Nonce,
    peer_public: Vec<u8>,
    method: KeMethod,
    kem: bool,
    suite: IkeSuite,
    number: u8,
}

/// Makes the half-open SA and asks for our key pair.
fn begin(
    engine: &mut Engine,
    datagram: Datagram,
    header: Header,
    key: InitKey,
    source: Source,
    new: New,
) {
    let id = IkeSaId(engine.ctx.fresh_id());
    let handle = engine.ctx.fresh_id();
    let spi_r = engine.sas.fresh_spi(&mut engine.rng, engine.ctx.config.shard);
    let mut rng = engine.ctx.seed.stream(id.0);
    let Ok(nr) = Nonce::new(rng.bytes(NONCE_LEN)) else {
        return;
    };
    let request = if new.kem {
        let peer_public = new.peer_public.clone();
        KexRequest::Encapsulate { handle, group: new.method, peer_public }
    } else {
        KexRequest::Generate { handle, group: new.method }
    };
    let path = Path::of(&datagram);
    let half_open = HalfOpenSa {
        ni: new.ni,
        nr,
        suite: new.suite,
        number: new.number,
        request: datagram.payload,
        response: Vec::new(),
        peer_public: new.peer_public,
        handle,
        secret: Secret::Drawing,
        queue: Vec::new(),
    };
    let phase = Phase::HalfOpen(Box::new(half_open));
    let now = engine.ctx.now.mono;
    let spis = (header.spi_i, spi_r);
    let mut sa = Box::new(IkeSa::new(id, SaRole::Responder, spis, path, rng, phase, now));
    sa.traits = new.traits;
    sa.window = crate::sa::window::Window::at(0, 1);
    engine.sas.insert(sa);
    engine.sas.index_init(key, id);
    engine.ctx.half_open.add(id, source);
    engine.arm_cookie_secret();
    let at = now.after(engine.ctx.config.timers.half_open);
    engine.ctx.timers.set(TimerKey::new(id, TimerKind::HalfOpen), at);
    engine.ctx.act(id, Purpose::InitKeyPair, Action::KeyExchange(request));
}

fn read_traits(ctx: &Ctx, payloads: &Payloads, header: &Header, path: Path) -> PeerTraits {
    let mut traits = PeerTraits {
        fragmentation: payloads.has_notify(NotifyType::FragmentationSupported),
        hashes: payloads
            .notify(NotifyType::SignatureHashAlgorithms)
            .and_then(|notify| notify.hash_algorithms().ok())
            .unwrap_or_default(),
        childless: payloads.has_notify(NotifyType::ChildlessIkev2Supported),
        force_encap: ctx.config.force_encap,
        ..PeerTraits::default()
    };
    natd::process(&mut traits, payloads, ctx.crypto, (header.spi_i, header.spi_r), path);
    traits
}

/// Sends the response of a request that came again, when there is one yet.
fn answer_again(engine: &mut Engine, id: IkeSaId, datagram: &Datagram) {
    let Some(sa) = engine.sas.get(id) else {
        return;
    };
    if let Phase::HalfOpen(half_open) = &sa.phase
        && !half_open.response.is_empty()
    {
        let response = half_open.response.clone();
        engine.ctx.stats.replayed_responses = engine.ctx.stats.replayed_responses.saturating_add(1);
        engine.ctx.transmit(Path::of(datagram).datagram(response));
    }
}

/// Answers without keeping anything (RFC 7296 2.6, 2.21.1).
fn answer_stateless(engine: &mut Engine, datagram: &Datagram, header: &Header, notify: Notify) {
    let header =
        Header::new(header.spi_i, IkeSpi::ZERO, ExchangeType::IkeSaInit, Flags::RESPONSE, 0);
    let mut payloads = Payloads::new();
    payloads.push_notify(notify);
    if let Ok(bytes) = (Message { header, payloads }).encode() {
        engine.ctx.transmit(Path::of(datagram).datagram(bytes));
    }
}

fn evict(engine: &mut Engine, victim: IkeSaId) {
    let reason = CloseReason::Failed("its place was needed".to_owned());
    engine.with_sa(victim, |ctx, sa| lifecycle::close(ctx, sa, reason, lifecycle::Tell::Nobody));
    engine.run_deferred();
}

fn no_proposal(ours: &[IkeSuite], offer: &SecurityAssociation) -> Refusal {
    let fix = proposal::advice(offer).unwrap_or_else(|| {
        format!(
            "let the client's IKE proposal contain one of ours (strongSwan: `proposals = {}`)",
            ours.first().map(IkeSuite::to_string).unwrap_or_default()
        )
    });
    refusal(
        Blame::Incompatible,
        Some(NotifyType::NoProposalChosen),
        "no_proposal_chosen",
        format!(
            "no common IKE proposal: the peer offered {}; accepted here are {}",
            proposal::text(offer),
            proposal::suites_text(ours)
        ),
        fix,
    )
}

/// Our key pair is there, for either role.
pub(crate) fn key_pair(ctx: &mut Ctx, sa: &mut IkeSa, answer: Result<KexResponse, String>) {
    let response = match answer {
        Ok(KexResponse::Failed { error, .. }) => Err(error.to_string()),
        other => other,
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
            send(ctx, sa);
        }
        (Phase::HalfOpen(_) | Phase::InitSent(_), Err(why)) => {
            let refused = key_exchange_failed(sa, &why);
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

/// Our response (RFC 7296 1.2).
fn respond(ctx: &mut Ctx, sa: &mut IkeSa, public: Vec<u8>) {
    let spis = (sa.spi_i, sa.spi_r);
    let path = sa.path;
    let header = sa.header(ExchangeType::IkeSaInit, true, 0);
    let Phase::HalfOpen(half_open) = &mut sa.phase else {
        return;
    };
    let chosen = proposal::Chosen {
        number: half_open.number,
        suite: half_open.suite.clone(),
        spi: Vec::new(),
    };
    let mut payloads = Payloads::from(vec![
        Payload::Sa(proposal::answer_ike(&chosen, None)),
        Payload::Ke(KeyExchange::new(half_open.suite.kex, public)),
        Payload::Nonce(half_open.nr.clone()),
    ]);
    if sa.traits.nat_detection {
        let fake = ctx.config.force_encap;
        natd::build(&mut payloads, ctx.crypto, &mut sa.rng, spis, path, fake);
    }
    if let Some(request) = certs::request(&ctx.config.trust_anchor_hashes) {
        payloads.push(request);
    }
    if sa.traits.fragmentation {
        payloads.push_notify(Notify::new(NotifyType::FragmentationSupported));
    }
    if !sa.traits.hashes.is_empty() {
        payloads.push_notify(certs::hashes_notify());
    }
    payloads.push_notify(Notify::new(NotifyType::ChildlessIkev2Supported));
    if let Ok(bytes) = (Message { header, payloads }).encode() {
        half_open.response = bytes.clone();
        ctx.transmit(path.datagram(bytes));
    }
}

/// A datagram that claims to be IKE_AUTH, before the SA has keys: asks for the shared secret, and
/// keeps the datagram for when it is there.
pub(crate) fn hold(ctx: &mut Ctx, sa: &mut IkeSa, datagram: Datagram) {
    let Phase::HalfOpen(half_open) = &mut sa.phase else {
        return;
    };
    if half_open.response.is_empty() {
        return;
    }
    let queued: usize = half_open.queue.iter().map(|held| held.payload.len()).sum();
    if queued.saturating_add(datagram.payload.len()) > MAX_QUEUED {
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
    let why = match answer {
        Ok(KexResponse::Agreed { secret, .. }) => return derive(ctx, sa, &secret),
        Ok(KexResponse::Failed { error, .. }) => error.to_string(),
        Ok(_) => "an answer of another kind".to_owned(),
        Err(why) => why,
    };
    let refused = key_exchange_failed(sa, &why);
    ctx.refuse(refused);
    lifecycle::close(ctx, sa, CloseReason::Failed(why), lifecycle::Tell::Nobody);
}

fn derive(ctx: &mut Ctx, sa: &mut IkeSa, shared: &SharedSecret) {
    let (suite, ni, nr) = match &sa.phase {
        Phase::HalfOpen(half_open) => {
            (half_open.suite.clone(), half_open.ni.clone(), half_open.nr.clone())
        }
        Phase::InitSent(init) => match &init.answer {
            Some(answer) => (answer.suite.clone(), init.ni.clone(), answer.nr.clone()),
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
                };
                auth::begin_initiator(ctx, sa, exchanged);
            }
        }
        _ => {}
    }
}

/// A message that failed its check. The real one may still come, so the SA stays, for a while.
pub(crate) fn forged(ctx: &mut Ctx, sa: &mut IkeSa) {
    sa.forgeries = sa.forgeries.saturating_add(1);
    if sa.forgeries > MAX_FORGERIES && matches!(sa.phase, Phase::HalfOpen(_)) {
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
        let reason = CloseReason::Failed("too many forged messages".to_owned());
        lifecycle::close(ctx, sa, reason, lifecycle::Tell::Nobody);
    }
}

/// Lets go of what a handshake holds outside.
pub(crate) fn abandon(ctx: &mut Ctx, sa: &mut IkeSa) {
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

/// Starts a handshake as initiator.
pub(crate) fn initiate(engine: &mut Engine, peer: PeerConfig) {
    let id = IkeSaId(engine.ctx.fresh_id());
    let handle = engine.ctx.fresh_id();
    let spi_i = engine.sas.fresh_spi(&mut engine.rng, engine.ctx.config.shard);
    let mut rng = engine.ctx.seed.stream(id.0);
    let Ok(ni) = Nonce::new(rng.bytes(NONCE_LEN)) else {
        return;
    };
    let group = peer.first_ke;
    // Port 4500 is also allowed for the first message; it then carries the marker.
    let encap = peer.remote.port() == NAT_T_PORT;
    let path = Path { local: peer.local, remote: peer.remote, encap };
    let init = InitSent {
        ni,
        group,
        handle,
        public: Vec::new(),
        cookie: None,
        request: Vec::new(),
        restarts: 0,
        answer: None,
        hint: None,
    };
    let phase = Phase::InitSent(Box::new(init));
    let now = engine.ctx.now.mono;
    let spis = (spi_i, IkeSpi::ZERO);
    let mut sa = Box::new(IkeSa::new(id, SaRole::Initiator, spis, path, rng, phase, now));
    sa.peer = Some(Box::new(peer));
    sa.traits.force_encap = engine.ctx.config.force_encap;
    engine.sas.insert(sa);
    let request = KexRequest::Generate { handle, group };
    engine.ctx.act(id, Purpose::InitKeyPair, Action::KeyExchange(request));
}

/// Where IKE moves when a NAT is found (RFC 7296 2.23).
pub(crate) const NAT_T_PORT: u16 = 4500;

/// Our request, with what earlier answers demanded.
fn send(ctx: &mut Ctx, sa: &mut IkeSa) {
    let (spis, path) = ((sa.spi_i, IkeSpi::ZERO), sa.path);
    let header = sa.header(ExchangeType::IkeSaInit, false, 0);
    let (Phase::InitSent(init), Some(peer)) = (&mut sa.phase, &sa.peer) else {
        return;
    };
    let mut payloads = Payloads::from(vec![
        Payload::Sa(proposal::offer_ike(&peer.ike_suites, None)),
        Payload::Ke(KeyExchange::new(init.group, init.public.clone())),
        Payload::Nonce(init.ni.clone()),
    ]);
    natd::build(&mut payloads, ctx.crypto, &mut sa.rng, spis, path, ctx.config.force_encap);
    payloads.push_notify(Notify::new(NotifyType::FragmentationSupported));
    payloads.push_notify(certs::hashes_notify());
    if let Some(cookie) = &init.cookie {
        payloads.push_front(Payload::Notify(Notify::cookie(cookie.clone())));
    }
    let Ok(bytes) = (Message { header, payloads }).encode() else {
        return;
    };
    init.request = bytes.clone();
    if sa.window.outstanding().is_some() {
        sa.window.replace(vec![bytes.clone()]);
    } else {
        sa.window.sent(ExchangeType::IkeSaInit, vec![bytes.clone()]);
    }
    ctx.transmit(path.datagram(bytes));
    arm_retransmit(ctx, sa);
}

/// A response to our request. Nothing in it is authenticated: errors are only remembered, and
/// what does not fit is ignored.
pub(crate) fn process_response(ctx: &mut Ctx, sa: &mut IkeSa, datagram: &Datagram) {
    if datagram.payload.len() > MAX_INIT_LEN || datagram.remote != sa.path.remote {
        return;
    }
    let Ok(message) = Message::parse(&datagram.payload) else {
        return;
    };
    let payloads = &message.payloads;
    if payloads.check_critical().is_err() {
        return;
    }
    let (Phase::InitSent(init), Some(peer)) = (&mut sa.phase, &sa.peer) else {
        return;
    };
    if init.answer.is_some() || init.public.is_empty() {
        return;
    }
    let restartable = init.restarts < MAX_RESTARTS;
    if let Some(cookie) = payloads.notify(NotifyType::Cookie) {
        if restartable && (1..=64).contains(&cookie.data.len()) {
            init.restarts = init.restarts.saturating_add(1);
            init.cookie = Some(cookie.data.clone());
            send(ctx, sa);
        }
        return;
    }
    if let Some(wish) = payloads.notify(NotifyType::InvalidKePayload) {
        let group = wish.ke_method().ok().filter(|group| {
            *group != init.group && peer.ike_suites.iter().any(|suite| suite.kex == *group)
        });
        if let Some(group) = group.filter(|_| restartable) {
            init.restarts = init.restarts.saturating_add(1);
            let (old, handle) = (init.handle, ctx.fresh_id());
            init.handle = handle;
            init.group = group;
            init.public.clear();
            ctx.drop_key_pair(sa.id, old);
            let request = KexRequest::Generate { handle, group };
            ctx.act(sa.id, Purpose::InitKeyPair, Action::KeyExchange(request));
        }
        return;
    }
    if let Some(error) = payloads.error_notify() {
        let refused = refusal(
            Blame::Incompatible,
            Some(error.kind),
            "init_refused",
            format!(
                "the peer answered IKE_SA_INIT with {}; offered were {}",
                error.kind,
                proposal::suites_text(&peer.ike_suites)
            ),
            "compare the IKE proposals of both sides",
        );
        init.hint = Some(refused);
        return;
    }
    accept(ctx, sa, message, datagram);
}

/// A complete response.
fn accept(ctx: &mut Ctx, sa: &mut IkeSa, message: Message, datagram: &Datagram) {
    let (Phase::InitSent(init), Some(peer)) = (&mut sa.phase, &sa.peer) else {
        return;
    };
    let payloads = &message.payloads;
    let (Some(answer), Some(ke), Some(nr)) = (payloads.sa(), payloads.ke(), payloads.nonce())
    else {
        return;
    };
    if message.header.spi_r.is_zero() || ke.method != init.group {
        return;
    }
    let Some(chosen) = proposal::accept_ike(&peer.ike_suites, answer) else {
        return;
    };
    if chosen.suite.kex != init.group {
        return;
    }
    init.answer =
        Some(InitAnswer { nr: nr.clone(), suite: chosen.suite, message: datagram.payload.clone() });
    let request = KexRequest::Agree { handle: init.handle, peer_public: ke.data.clone() };
    sa.spi_r = message.header.spi_r;
    sa.traits = read_traits(ctx, payloads, &message.header, Path::of(datagram));
    sa.window.answered();
    ctx.timers.cancel(TimerKey::new(sa.id, TimerKind::Retransmit));
    let nat = sa.traits.peer_behind_nat || sa.traits.we_behind_nat || sa.traits.force_encap;
    if sa.traits.nat_detection && nat && !sa.path.encap {
        // RFC 7296 2.23: IKE_AUTH and all that follows go to port 4500.
        if sa.path.local.port() == IKE_PORT {
            sa.path.local.set_port(NAT_T_PORT);
        }
        if sa.path.remote.port() == IKE_PORT {
            sa.path.remote.set_port(NAT_T_PORT);
        }
        sa.path.encap = true;
    }
    ctx.act(sa.id, Purpose::InitSecret, Action::KeyExchange(request));
}

/// IKE's own port.
const IKE_PORT: u16 = 500;

/// The retransmission timer fired: an error that nobody contradicted in one interval is believed.
pub(crate) fn retransmit_due(ctx: &mut Ctx, sa: &mut IkeSa) -> bool {
    let Phase::InitSent(init) = &mut sa.phase else {
        return true;
    };
    let Some(hint) = init.hint.take() else {
        return true;
    };
    let reason = CloseReason::Failed(hint.what.clone());
    let refused = about(sa, hint);
    ctx.refuse(refused);
    lifecycle::close(ctx, sa, reason, lifecycle::Tell::Nobody);
    false
}

/// Nobody answered.
pub(crate) fn unanswered(ctx: &mut Ctx, sa: &mut IkeSa) {
    let refused = about(
        sa,
        refusal(
            Blame::Incompatible,
            None,
            "no_answer",
            format!("{} does not answer IKE_SA_INIT", sa.path.remote),
            "check the address, and that UDP 500 and 4500 pass",
        ),
    );
    ctx.refuse(refused);
    lifecycle::close(ctx, sa, CloseReason::PeerDead, lifecycle::Tell::Nobody);
}
