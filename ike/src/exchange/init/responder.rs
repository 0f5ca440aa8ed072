//! IKE_SA_INIT as responder, from the first octet of a stranger to the half-open SA.

use crate::crypto::puzzle::{self, Puzzle};
use crate::crypto::{CryptoProvider, HashFunction, IkeSuite, KexKind, KexRequest, PrfId, suite};
use crate::engine::Engine;
use crate::event::{Blame, CloseReason, Refusal};
use crate::exchange::init::{HalfOpenSa, MAX_INIT_LEN, NONCE_LEN, Secret, read_traits};
use crate::exchange::intermediate::Chain;
use crate::exchange::{nonces, redirect};
use crate::io::{Action, Datagram, IkeSaId, TimerKind};
use crate::policy::limits::{Admission, Proof, Source};
use crate::policy::proposal::{self, Chosen};
use crate::sa::context::{Ctx, Purpose, refusal};
use crate::sa::table::InitKey;
use crate::sa::timers::TimerKey;
use crate::sa::{IkeSa, Path, PeerTraits, Phase, lifecycle};
use crate::view::SaRole;
use crate::wire::{
    ExchangeType, Flags, HEADER_LEN, Header, IkeSpi, KeMethod, KeyExchange, Message, Nonce, Notify,
    NotifyType, Payload, PayloadType, Payloads, SecurityAssociation, TransformId,
};

/// A request for a new IKE SA.
pub(crate) fn process_request(engine: &mut Engine, datagram: Datagram, header: Header) {
    if engine.stopping || datagram.payload.len() > MAX_INIT_LEN {
        return engine.dropped();
    }
    let Ok(mut message) = Message::parse(&datagram.payload) else {
        return engine.dropped();
    };
    if let Err(error) = message.payloads.check_critical() {
        if let Some(crate::wire::ErrorNotify::UnsupportedCriticalPayload(payload)) = error.notify()
            && engine.may_answer_stranger()
        {
            let notify = Notify::unsupported_critical(payload);
            let refused = refusal(
                Blame::Incompatible,
                Some(notify.kind),
                "unsupported_critical_payload",
                format!("an IKE_SA_INIT request has an unknown critical payload: {error}"),
                "check the peer's software",
            );
            engine.ctx.refuse(Refusal { remote: Some(datagram.remote), ..refused });
            answer_stateless(engine, &datagram, &header, notify);
        }
        return engine.dropped();
    }
    let payloads = &message.payloads;
    let (Some(offer), Some(ke), Some(ni)) = (payloads.sa(), payloads.ke(), payloads.nonce()) else {
        return engine.dropped();
    };

    // RFC 7296 2.1: the same request again gets the same response, never a second SA.
    let key = InitKey {
        spi_i: header.spi_i,
        ip: datagram.remote.ip(),
        nonce: ni.as_bytes().to_vec(),
        port: datagram.remote.port(),
        digest: digest(engine.ctx.crypto, payloads, &datagram.payload),
    };
    let source = Source::from(datagram.remote.ip());
    let spi_i = header.spi_i.0.to_be_bytes();
    let ip = datagram.remote.ip();
    let proved = payloads
        .notify(NotifyType::Cookie)
        .is_some_and(|cookie| engine.jar.check(&cookie.data, ni.as_bytes(), ip, spi_i));
    if let Some(id) = engine.sas.by_init(&key) {
        return answer_again(engine, id, datagram, proved);
    }
    // One solution is worth one place, whatever else a request with its cookie says.
    let worth = proved && !engine.sas.cookie_spent(&key);
    let effort = if worth { effort(engine.ctx.crypto, payloads) } else { 0 };
    let proof = Proof { cookie: proved, effort };
    let admission =
        engine.ctx.half_open.admit(&engine.ctx.config.limits, engine.ctx.now.mono, source, proof);
    let victim = match admission {
        Admission::Accept => None,
        Admission::Cookie { puzzle } => {
            let cookie = Notify::cookie(engine.jar.cookie(ni.as_bytes(), ip, spi_i));
            engine.ctx.stats.cookies = engine.ctx.stats.cookies.saturating_add(1);
            let prf = puzzle::choose_prf(engine.ctx.crypto, prfs(offer));
            // RFC 8019 7.1.1: the puzzle is about the cookie.
            let puzzle = puzzle.zip(prf).map(|(difficulty, prf)| {
                Notify::with_data(NotifyType::Puzzle, Puzzle::data(prf.id(), difficulty))
            });
            let notifies = std::iter::once(cookie).chain(puzzle).collect();
            return answer_with(engine, &datagram, &header, notifies);
        }
        Admission::Evict(victim) => Some(victim),
        Admission::Drop => return engine.dropped(),
    };
    if victim.is_none() && is_full(engine) {
        return engine.dropped();
    }

    // RFC 5685 3: nothing is kept of a peer that is sent away.
    if let Some(notify) = redirect::of_request(&engine.ctx, payloads) {
        engine.ctx.stats.redirected = engine.ctx.stats.redirected.saturating_add(1);
        return answer_stateless(engine, &datagram, &header, notify);
    }
    let Some(chosen) = chosen(&engine.ctx.config.ike_suites, payloads, offer, ke.method) else {
        if engine.may_answer_stranger() {
            let refused = no_proposal(&engine.ctx.config.ike_suites, offer);
            engine.ctx.refuse(Refusal { remote: Some(datagram.remote), ..refused });
            answer_stateless(engine, &datagram, &header, Notify::new(NotifyType::NoProposalChosen));
        }
        return;
    };
    let prf = engine.ctx.crypto.prf(chosen.suite.prf);
    if let Some(Err(refused)) = prf.map(|prf| nonces::check(prf, ni)) {
        if engine.may_answer_stranger() {
            engine.ctx.refuse(Refusal { remote: Some(datagram.remote), ..*refused });
            answer_stateless(engine, &datagram, &header, Notify::new(NotifyType::InvalidSyntax));
        }
        return engine.dropped();
    }
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
    // Nobody gives way to a request that is not taken.
    if let Some(victim) = victim {
        evict(engine, victim);
        if is_full(engine) {
            return engine.dropped();
        }
    }
    let kem = group.kind() == KexKind::Kem;
    let method = ke.method;
    let traits = read_traits(&engine.ctx, payloads, &header, Path::of(&datagram));
    let payloads = &mut message.payloads;
    let (Some(Payload::Nonce(ni)), Some(Payload::Ke(KeyExchange { data: peer_public, .. }))) =
        (payloads.take(PayloadType::Nonce), payloads.take(PayloadType::Ke))
    else {
        return;
    };
    begin(
        engine,
        datagram,
        header,
        key,
        (source, effort),
        New { traits, ni, peer_public, method, kem, chosen },
    );
}

fn is_full(engine: &Engine) -> bool {
    let limits = &engine.ctx.config.limits;
    engine.sas.len() >= limits.max_ike_sas || engine.ctx.half_open.len() >= limits.max_half_open
}

struct New {
    traits: PeerTraits,
    ni: Nonce,
    peer_public: Vec<u8>,
    method: KeMethod,
    kem: bool,
    chosen: Chosen<IkeSuite>,
}

/// The suite to go on with; several key exchanges only with who announces that it can make them
/// (RFC 9242 3.1, RFC 9370 2.1).
fn chosen(
    ours: &[IkeSuite],
    payloads: &Payloads,
    offer: &SecurityAssociation,
    sent: KeMethod,
) -> Option<Chosen<IkeSuite>> {
    let several = payloads.has_notify(NotifyType::IntermediateExchangeSupported);
    proposal::choose_ike(ours, offer, sent, several)
}

/// Makes the half-open SA and asks for our key pair.
fn begin(
    engine: &mut Engine,
    datagram: Datagram,
    header: Header,
    key: InitKey,
    (source, effort): (Source, u8),
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
    let now = engine.ctx.now.mono;
    let half_open = HalfOpenSa {
        began: now,
        ni: new.ni,
        nr,
        chain: Chain::of(&new.chosen.suite),
        chosen: new.chosen,
        request: datagram.payload,
        response: Vec::new(),
        peer_public: new.peer_public,
        handle,
        secret: Secret::Drawing,
        queue: Vec::new(),
    };
    let phase = Phase::HalfOpen(Box::new(half_open));
    let spis = (header.spi_i, spi_r);
    let mut sa = Box::new(IkeSa::new(id, SaRole::Responder, spis, path, rng, phase, now));
    sa.traits = new.traits;
    sa.window = crate::sa::window::Window::at(0, 1);
    engine.sas.insert(sa);
    engine.sas.index_init(key, id);
    engine.ctx.half_open.add(id, source, effort);
    engine.arm_cookie_secret();
    let whole = engine.ctx.config.timers.half_open;
    let patience = engine.ctx.half_open.patience(&engine.ctx.config.limits, source, whole);
    engine.ctx.timers.set(TimerKey::new(id, TimerKind::HalfOpen), now.after(patience));
    engine.ctx.act(id, Purpose::InitKeyPair, Action::KeyExchange(request));
}

/// The peer has said something authentic: from now on it has the whole time of a handshake.
pub(crate) fn heard(ctx: &mut Ctx, sa: &IkeSa) {
    if let Phase::HalfOpen(half_open) = &sa.phase {
        let at = half_open.began.after(ctx.config.timers.half_open);
        ctx.timers.set(TimerKey::new(sa.id, TimerKind::HalfOpen), at);
    }
}

/// Sends the response of a request that came again, when there is one yet.
///
/// The peer signs the last request it sent. A copy without a cookie may have made the SA before
/// the one with it came (RFC 7296 2.6), so that one counts; nobody but the peer has the cookie.
fn answer_again(engine: &mut Engine, id: IkeSaId, datagram: Datagram, proved: bool) {
    let Some(sa) = engine.sas.get_mut(id) else {
        return;
    };
    let Phase::HalfOpen(half_open) = &mut sa.phase else {
        return;
    };
    let path = Path::of(&datagram);
    if proved {
        half_open.request = datagram.payload;
    }
    if !half_open.response.is_empty() {
        let response = half_open.response.clone();
        engine.ctx.stats.replayed_responses = engine.ctx.stats.replayed_responses.saturating_add(1);
        engine.ctx.transmit(path.datagram(response));
    }
}

/// A digest of a request without its cookie, which is in front (RFC 7296 2.6), and without the
/// solution that follows (RFC 8019 7.1.2). Someone who has seen a request cannot have us take
/// another one for it.
fn digest(crypto: &CryptoProvider, payloads: &Payloads, bytes: &[u8]) -> Vec<u8> {
    let mut front = payloads.iter();
    let cookie = match front.next() {
        Some(Payload::Notify(first)) if first.kind == NotifyType::Cookie => {
            // Generic header, protocol, SPI size and type come before the data.
            first.data.len().saturating_add(first.spi.len()).saturating_add(8)
        }
        _ => 0,
    };
    let solution = match front.next() {
        Some(Payload::Unknown { kind: PayloadType::PuzzleSolution, body }) if cookie > 0 => {
            body.len().saturating_add(4)
        }
        _ => 0,
    };
    let proofs = cookie.saturating_add(solution);
    let body = bytes.get(HEADER_LEN.saturating_add(proofs)..).unwrap_or_default();
    crypto.digest(HashFunction::Sha256, &[body])
}

/// Answers without keeping anything (RFC 7296 2.6, 2.21.1).
fn answer_stateless(engine: &mut Engine, datagram: &Datagram, header: &Header, notify: Notify) {
    answer_with(engine, datagram, header, vec![notify]);
}

fn answer_with(engine: &mut Engine, datagram: &Datagram, header: &Header, notifies: Vec<Notify>) {
    let header =
        Header::new(header.spi_i, IkeSpi::ZERO, ExchangeType::IkeSaInit, Flags::RESPONSE, 0);
    let mut payloads = Payloads::new();
    notifies.into_iter().for_each(|notify| payloads.push_notify(notify));
    if let Ok(bytes) = (Message { header, payloads }).encode() {
        engine.ctx.transmit(Path::of(datagram).datagram(bytes));
    }
}

/// What the peer spent on a puzzle about its cookie, which is valid (RFC 8019 7.1.4). The PRF is
/// chosen as it was for the puzzle: the peer's offer is the same.
fn effort(crypto: &CryptoProvider, payloads: &Payloads) -> u8 {
    let solution = payloads.iter().find_map(|payload| match payload {
        Payload::Unknown { kind: PayloadType::PuzzleSolution, body } => Some(body),
        _ => None,
    });
    let (Some(solution), Some(cookie), Some(offer)) =
        (solution, payloads.notify(NotifyType::Cookie), payloads.sa())
    else {
        return 0;
    };
    puzzle::choose_prf(crypto, prfs(offer))
        .map_or(0, |prf| puzzle::effort(prf, &cookie.data, solution))
}

/// The PRFs of an offer, in its order.
fn prfs(offer: &SecurityAssociation) -> impl Iterator<Item = PrfId> + '_ {
    let transforms = offer.proposals.iter().flat_map(|proposal| proposal.transforms.iter());
    transforms.filter_map(|transform| match transform.id {
        TransformId::Prf(id) => Some(id),
        _ => None,
    })
}

fn evict(engine: &mut Engine, victim: IkeSaId) {
    let reason = CloseReason::Failed("its place was needed".to_owned());
    engine.with_sa(victim, |ctx, sa| match sa.phase {
        // A handshake that failed already: only its answer is kept.
        Phase::Lingering => lifecycle::finish(ctx, sa),
        _ => lifecycle::close(ctx, sa, reason, lifecycle::Tell::Nobody),
    });
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
