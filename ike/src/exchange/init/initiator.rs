//! IKE_SA_INIT as initiator.

use crate::config::PeerConfig;
use crate::crypto::puzzle::Puzzle;
use crate::crypto::{IkeSuite, KexRequest};
use crate::engine::Engine;
use crate::event::{Blame, CloseReason, Refusal};
use crate::exchange::init::{MAX_INIT_LEN, NONCE_LEN, read_traits};
use crate::exchange::{about, arm_retransmit, certs, natd, nonces, redirect};
use crate::io::{Action, Datagram, IkeSaId, TimerKind};
use crate::policy::proposal;
use crate::sa::context::{Ctx, Purpose, refusal};
use crate::sa::timers::TimerKey;
use crate::sa::{IkeSa, Path, Phase, lifecycle};
use crate::view::SaRole;
use crate::wire::{
    ExchangeType, IkeSpi, KeMethod, KeyExchange, Message, Nonce, Notify, NotifyType, Payload,
    PayloadType, Payloads,
};

/// IKE's own port.
const IKE_PORT: u16 = 500;

/// Where IKE moves when a NAT is found (RFC 7296 2.23).
const NAT_T_PORT: u16 = 4500;

/// How often an initiator follows COOKIE and INVALID_KE_PAYLOAD; a forger could send them forever.
const MAX_RESTARTS: u32 = 8;

/// An IKE_SA_INIT of ours under way.
#[derive(Debug)]
pub(crate) struct InitSent {
    pub(super) ni: Nonce,
    group: KeMethod,
    pub(super) handle: u64,
    pub(super) public: Vec<u8>,
    cookie: Option<Vec<u8>>,
    /// The solution of the puzzle about the cookie (RFC 8019).
    solution: Option<Vec<u8>>,
    /// Zero bits of the hardest puzzle about the cookie that was tried.
    tried: u8,
    /// A cookie whose puzzle is being solved, and the work's number.
    solving: Option<(u64, Vec<u8>)>,
    /// NAT detection, drawn once: a restart changes nothing but what it is for (RFC 7296 2.6).
    natd: Option<Payloads>,
    pub(super) request: Vec<u8>,
    restarts: u32,
    /// The response, while the shared secret is computed.
    pub(super) answer: Option<InitAnswer>,
    /// What an unprotected error said: believed only when nothing better comes.
    hint: Option<Refusal>,
}

#[derive(Debug)]
pub(super) struct InitAnswer {
    pub(super) nr: Nonce,
    pub(super) suite: IkeSuite,
    pub(super) message: Vec<u8>,
}

/// Starts a handshake as initiator, perhaps to replace an SA with the same peer.
pub(crate) fn initiate(engine: &mut Engine, peer: PeerConfig, replaces: Option<IkeSaId>) {
    if engine.stopping {
        return;
    }
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
        solution: None,
        tried: 0,
        solving: None,
        natd: None,
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
    sa.replaces = replaces;
    sa.traits.force_encap = engine.ctx.config.force_encap;
    engine.sas.insert(sa);
    let request = KexRequest::Generate { handle, group };
    engine.ctx.act(id, Purpose::InitKeyPair, Action::KeyExchange(request));
}

/// Our request, with what earlier answers demanded.
pub(super) fn send(ctx: &mut Ctx, sa: &mut IkeSa) {
    let (spis, path) = ((sa.spi_i, IkeSpi::ZERO), sa.path);
    let header = sa.header(ExchangeType::IkeSaInit, false, 0);
    let announced = redirect::announce(sa);
    let (Phase::InitSent(init), Some(peer)) = (&mut sa.phase, &sa.peer) else {
        return;
    };
    let mut payloads = Payloads::from(vec![
        Payload::Sa(proposal::offer_ike(&peer.ike_suites, None)),
        Payload::Ke(KeyExchange::new(init.group, init.public.clone())),
        Payload::Nonce(init.ni.clone()),
    ]);
    let natd = init.natd.get_or_insert_with(|| {
        let mut natd = Payloads::new();
        let fake = ctx.config.force_encap;
        natd::build(&mut natd, ctx.crypto, &mut sa.rng, spis, path, fake);
        natd
    });
    natd.iter().for_each(|payload| payloads.push(payload.clone()));
    payloads.push_notify(Notify::new(NotifyType::FragmentationSupported));
    payloads.push_notify(certs::hashes_notify());
    if peer.ppk.is_some() {
        payloads.push_notify(Notify::new(NotifyType::UsePpk));
    }
    announced.into_iter().for_each(|payload| payloads.push(payload));
    if peer.ike_suites.iter().any(|suite| !suite.additional_methods().is_empty()) {
        payloads.push_notify(Notify::new(NotifyType::IntermediateExchangeSupported));
    }
    if let Some(solution) = &init.solution {
        let kind = PayloadType::PuzzleSolution;
        payloads.push_front(Payload::Unknown { kind, body: solution.clone() });
    }
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
    let Phase::InitSent(init) = &sa.phase else {
        return;
    };
    if init.answer.is_some() || init.public.is_empty() {
        return;
    }
    let ni = init.ni.clone();
    if let Some(to) = redirect::in_init(sa, payloads, &ni) {
        return redirect::follow(ctx, sa, to, lifecycle::Tell::Nobody);
    }
    let (Phase::InitSent(init), Some(peer)) = (&mut sa.phase, &sa.peer) else {
        return;
    };
    let restartable = init.restarts < MAX_RESTARTS;
    if let Some(cookie) = payloads.notify(NotifyType::Cookie) {
        // The one in use again is a late copy of the answer that gave it.
        let solving = init.solving.as_ref().map(|(_, cookie)| cookie);
        let known = [init.cookie.as_ref(), solving];
        let mut new = !known.into_iter().flatten().any(|known| *known == cookie.data);
        let puzzle = payloads
            .notify(NotifyType::Puzzle)
            .and_then(|notify| Puzzle::read(&notify.data, &cookie.data));
        if let Some(puzzle) = &puzzle {
            // Its cookie comes again with harder work: what was sent was not enough.
            new |= puzzle.difficulty > init.tried;
        }
        if new && restartable && (1..=64).contains(&cookie.data.len()) {
            // One at a time: anyone can set puzzles, and the next answer names the right cookie.
            if puzzle.is_some() && init.solving.is_some() {
                return;
            }
            init.restarts = init.restarts.saturating_add(1);
            init.hint = None;
            if let Some(puzzle) = puzzle {
                let number = ctx.fresh_id();
                init.tried = puzzle.difficulty;
                init.solving = Some((number, cookie.data.clone()));
                // Asking again without the solution would only bring the puzzle again.
                ctx.timers.cancel(TimerKey::new(sa.id, TimerKind::Retransmit));
                ctx.act(sa.id, Purpose::Puzzle(number), Action::SolvePuzzle(puzzle));
                return;
            }
            init.solving = None;
            init.tried = 0;
            init.cookie = Some(cookie.data.clone());
            init.solution = None;
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
            init.hint = None;
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

/// A puzzle is solved, or cannot be: then the cookie alone goes back, and we are served when there
/// is room (RFC 8019 7.1.2).
pub(crate) fn solved(ctx: &mut Ctx, sa: &mut IkeSa, number: u64, answer: Result<Vec<u8>, String>) {
    let Phase::InitSent(init) = &mut sa.phase else {
        return;
    };
    // Another cookie may have taken the place of the one this puzzle was about.
    if init.answer.is_some() || init.solving.as_ref().is_none_or(|(asked, _)| *asked != number) {
        return;
    }
    init.cookie = init.solving.take().map(|(_, cookie)| cookie);
    init.solution = answer.ok();
    // A new key pair may be on its way: its request takes both along.
    if !init.public.is_empty() {
        send(ctx, sa);
    }
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
    // RFC 9370 2.1: several key exchanges need IKE_INTERMEDIATE.
    if !chosen.suite.additional_methods().is_empty()
        && !payloads.has_notify(NotifyType::IntermediateExchangeSupported)
    {
        return;
    }
    let prf = ctx.crypto.prf(chosen.suite.prf);
    if let Some(Err(refused)) = prf.map(|prf| nonces::check(prf, nr)) {
        // Nothing authenticates this: another response may still come.
        init.hint = Some(Refusal { notify: None, ..*refused });
        return;
    }
    let ppk = payloads.has_notify(NotifyType::UsePpk);
    if !ppk && peer.ppk.as_ref().is_some_and(|ppk| ppk.required) {
        // Nothing authenticates this: another response may still come (RFC 8784 3).
        init.hint = Some(refusal(
            Blame::Incompatible,
            None,
            "ppk_refused",
            "the peer does not offer to use post-quantum preshared keys, which is required",
            "give the peer the key, or do not require it",
        ));
        return;
    }
    init.hint = None;
    init.answer =
        Some(InitAnswer { nr: nr.clone(), suite: chosen.suite, message: datagram.payload.clone() });
    let request = KexRequest::Agree { handle: init.handle, peer_public: ke.data.clone() };
    sa.spi_r = message.header.spi_r;
    sa.traits = read_traits(ctx, payloads, &message.header, Path::of(datagram));
    sa.traits.ppk = ppk && peer.ppk.is_some();
    sa.window.answered();
    ctx.timers.cancel(TimerKey::new(sa.id, TimerKind::Retransmit));
    let nat = sa.traits.peer_behind_nat || sa.traits.we_behind_nat || sa.traits.force_encap;
    // RFC 4555 3.3: a MOBIKE peer may meet a NAT later, so it moves at once.
    let moves = nat || peer.mobike;
    if sa.traits.nat_detection && moves && !sa.path.encap {
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

/// The peer answered IKE_SA_INIT, and nothing after it.
pub(crate) fn silenced(ctx: &mut Ctx, sa: &IkeSa) {
    let what = format!("{} answers IKE_SA_INIT, but not what follows it", sa.path.remote);
    let fix = "check that UDP 4500 and large or fragmented packets pass, and see the peer's log";
    ctx.refuse(about(sa, refusal(Blame::Incompatible, None, "no_answer", what, fix)));
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
