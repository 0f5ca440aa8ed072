//! IKE_INTERMEDIATE (RFC 9242): the additional key exchanges of a new IKE SA (RFC 9370 2.2.2), one
//! exchange for each, between IKE_SA_INIT and IKE_AUTH. Every one of them replaces all keys; what
//! was said in them is covered by AUTH.
//!
//! Nobody is authenticated here, but who sends an authentic request has made the key exchange of
//! IKE_SA_INIT and receives at its address. It costs a responder one operation for each exchange
//! that was negotiated, each only after the one before; the half-open SA holds one request's
//! answer and the keys it came under besides.

use std::collections::VecDeque;

use crate::crypto::keymat::{self, Nonces};
use crate::crypto::{
    IkeSuite, KeMethod, KexKind, KexRequest, KexResponse, SecretBytes, SharedSecret, suite,
};
use crate::event::{Blame, CloseReason};
use crate::exchange::auth::Exchanged;
use crate::exchange::{about, auth, init, seal_response, send_request, send_sealed};
use crate::io::Action;
use crate::sa::context::{Ctx, Purpose, refusal};
use crate::sa::lifecycle;
use crate::sa::protect::Protection;
use crate::sa::{IkeSa, Phase};
use crate::view::SaRole;
use crate::wire::{
    ExchangeType, KeyExchange, Notify, NotifyType, Opened, Payload, Payloads, WireError,
    int_auth_octets,
};

/// The additional key exchanges of one handshake.
#[derive(Debug)]
pub(crate) struct Chain {
    /// Those to come, in order.
    todo: VecDeque<KeMethod>,
    /// At least one is made.
    made: bool,
    int_auth_i: SecretBytes,
    int_auth_r: SecretBytes,
    /// Names the one under way to the actions it waits for.
    handle: u64,
    /// Its private half is held outside.
    held: bool,
    /// Our public value, as responder until the secret is there.
    public: Vec<u8>,
}

/// An initiator between IKE_SA_INIT and IKE_AUTH.
#[derive(Debug)]
pub(crate) struct Intermediate {
    exchanged: Exchanged,
    pub(crate) chain: Chain,
}

impl Chain {
    pub(crate) fn of(suite: &IkeSuite) -> Self {
        let none = || SecretBytes::new(Vec::new());
        Self {
            todo: suite.additional_methods().into(),
            made: false,
            int_auth_i: none(),
            int_auth_r: none(),
            handle: 0,
            held: false,
            public: Vec::new(),
        }
    }

    /// Nothing is to come before IKE_AUTH.
    pub(crate) fn is_done(&self) -> bool {
        self.todo.is_empty()
    }

    /// What AUTH covers besides, when IKE_AUTH begins with this message id (RFC 9242 3.3.2).
    pub(crate) fn int_auth(&self, message_id: u32) -> Option<Vec<u8>> {
        self.made.then(|| keymat::int_auth(&self.int_auth_i, &self.int_auth_r, message_id))
    }

    /// A message was sent or received under these keys; `octets` are what AUTH covers of it.
    fn record(
        &mut self,
        protection: &Protection,
        author: SaRole,
        octets: Result<Vec<u8>, WireError>,
    ) -> Result<(), String> {
        let octets = octets.map_err(|error| error.to_string())?;
        let (previous, sk_p) = match author {
            SaRole::Initiator => (&mut self.int_auth_i, &protection.keys().pi),
            SaRole::Responder => (&mut self.int_auth_r, &protection.keys().pr),
        };
        *previous = keymat::int_auth_step(protection.prf(), sk_p, previous, &octets, &[]);
        self.made = true;
        Ok(())
    }

    /// Lets go of the private half.
    pub(crate) fn release(&mut self, ctx: &mut Ctx, sa: crate::io::IkeSaId) {
        if std::mem::take(&mut self.held) {
            ctx.drop_key_pair(sa, self.handle);
        }
    }
}

/// As initiator, IKE_SA_INIT is done: goes on with what was negotiated.
pub(crate) fn begin(ctx: &mut Ctx, sa: &mut IkeSa, exchanged: Exchanged) {
    let Some(chain) = sa.protection.as_ref().map(|protection| Chain::of(protection.suite())) else {
        return lifecycle::finish(ctx, sa);
    };
    sa.phase = Phase::Intermediate(Box::new(Intermediate { exchanged, chain }));
    next(ctx, sa);
}

/// The next key exchange, or IKE_AUTH when there is none.
fn next(ctx: &mut Ctx, sa: &mut IkeSa) {
    let Phase::Intermediate(state) = &mut sa.phase else {
        return;
    };
    if let Some(group) = state.chain.todo.front().copied() {
        let handle = ctx.fresh_id();
        state.chain.handle = handle;
        state.chain.held = true;
        let request = KexRequest::Generate { handle, group };
        ctx.act(sa.id, Purpose::IntermediateKeyPair, Action::KeyExchange(request));
        return;
    }
    let int_auth = state.chain.int_auth(sa.window.next_request());
    let phase = std::mem::replace(&mut sa.phase, Phase::Lingering);
    if let Phase::Intermediate(state) = phase {
        let exchanged = Exchanged { int_auth, ..state.exchanged };
        auth::begin_initiator(ctx, sa, exchanged);
    }
}

fn chain(sa: &mut IkeSa) -> Option<&mut Chain> {
    match &mut sa.phase {
        Phase::Intermediate(state) => Some(&mut state.chain),
        Phase::HalfOpen(half_open) => Some(&mut half_open.chain),
        _ => None,
    }
}

/// Our public value is there, for either role; as responder of a KEM the secret too.
pub(crate) fn key_pair(ctx: &mut Ctx, sa: &mut IkeSa, answer: Result<KexResponse, String>) {
    let initiator = matches!(sa.phase, Phase::Intermediate(_));
    let id = sa.id;
    let Some(chain) = chain(sa) else {
        return;
    };
    match answer {
        Ok(KexResponse::Generated { public, .. }) if initiator => {
            if let Err(why) = request(ctx, sa, public) {
                failed(ctx, sa, &why);
            }
        }
        Ok(KexResponse::Generated { public, .. }) => {
            let peer_public = std::mem::replace(&mut chain.public, public);
            let request = KexRequest::Agree { handle: chain.handle, peer_public };
            chain.held = false;
            ctx.act(id, Purpose::IntermediateSecret, Action::KeyExchange(request));
        }
        Ok(KexResponse::Encapsulated { public, secret, .. }) if !initiator => {
            respond(ctx, sa, public, &secret);
        }
        Ok(KexResponse::Failed { error, .. }) => refused_value(ctx, sa, &error.to_string()),
        Ok(_) => unanswered(ctx, sa, "an answer of another kind"),
        Err(why) => unanswered(ctx, sa, &why),
    }
}

/// The shared secret is there, for either role.
pub(crate) fn secret(ctx: &mut Ctx, sa: &mut IkeSa, answer: Result<KexResponse, String>) {
    match answer {
        Ok(KexResponse::Agreed { secret, .. }) => match sa.phase {
            Phase::Intermediate(_) => {
                if let Some(chain) = chain(sa) {
                    chain.todo.pop_front();
                }
                match rekey(ctx, sa, &secret) {
                    Ok(()) => next(ctx, sa),
                    Err(why) => failed(ctx, sa, &why),
                }
            }
            _ => {
                if let Some(chain) = chain(sa) {
                    let public = std::mem::take(&mut chain.public);
                    respond(ctx, sa, public, &secret);
                }
            }
        },
        Ok(KexResponse::Failed { error, .. }) => refused_value(ctx, sa, &error.to_string()),
        Ok(_) => unanswered(ctx, sa, "an answer of another kind"),
        Err(why) => unanswered(ctx, sa, &why),
    }
}

/// Sends our key exchange, as initiator.
fn request(ctx: &mut Ctx, sa: &mut IkeSa, public: Vec<u8>) -> Result<(), String> {
    let exchange = ExchangeType::IkeIntermediate;
    let header = sa.header(exchange, false, sa.window.next_request());
    let (Phase::Intermediate(state), Some(protection)) = (&mut sa.phase, &sa.protection) else {
        return Ok(());
    };
    let Some(method) = state.chain.todo.front().copied() else {
        return Ok(());
    };
    let payloads = Payloads::from(vec![Payload::Ke(KeyExchange::new(method, public))]);
    let (first, plaintext) = payloads.encode().map_err(|error| error.to_string())?;
    let octets = int_auth_octets(&header, first, &plaintext);
    state.chain.record(protection, SaRole::Initiator, octets)?;
    send_request(ctx, sa, exchange, &payloads);
    Ok(())
}

/// The peer's answer to our key exchange.
pub(crate) fn process_response(
    ctx: &mut Ctx,
    sa: &mut IkeSa,
    opened: &Opened,
    payloads: &Payloads,
) {
    let (Phase::Intermediate(state), Some(protection)) = (&mut sa.phase, &sa.protection) else {
        return;
    };
    if let Some(error) = payloads.error_notify() {
        let what = format!("the peer answered IKE_INTERMEDIATE with {}", error.kind);
        return failed(ctx, sa, &what);
    }
    let chain = &mut state.chain;
    let expected = chain.todo.front().copied();
    let Some(ke) = payloads.ke().filter(|ke| Some(ke.method) == expected) else {
        return failed(ctx, sa, "the peer's answer lacks the key exchange that was agreed on");
    };
    let recorded = chain.record(protection, SaRole::Responder, opened.int_auth());
    if let Err(why) = recorded {
        return failed(ctx, sa, &why);
    }
    chain.held = false;
    let request = KexRequest::Agree { handle: chain.handle, peer_public: ke.data.clone() };
    ctx.act(sa.id, Purpose::IntermediateSecret, Action::KeyExchange(request));
}

/// The answer to our key exchange is none.
pub(crate) fn malformed_response(ctx: &mut Ctx, sa: &mut IkeSa, why: &str) {
    failed(ctx, sa, why);
}

/// The peer's key exchange: an authentic request, new and in order.
pub(crate) fn process_request(ctx: &mut Ctx, sa: &mut IkeSa, opened: &Opened, payloads: &Payloads) {
    match examine(ctx, sa, opened, payloads) {
        Ok(request) => {
            ctx.act(sa.id, Purpose::IntermediateKeyPair, Action::KeyExchange(request));
        }
        Err(what) => refuse(ctx, sa, what),
    }
}

/// Ends the handshake with an answer, as responder.
fn refuse(ctx: &mut Ctx, sa: &mut IkeSa, what: String) {
    let notify = Notify::new(NotifyType::InvalidSyntax);
    let fix = "check the client's software";
    let refused = refusal(Blame::Misbehaved, Some(notify.kind), "key_exchange", what, fix);
    let refused = about(sa, refused);
    auth::refuse_request(ctx, sa, ExchangeType::IkeIntermediate, notify, refused);
}

/// The peer's value is none of its method.
fn refused_value(ctx: &mut Ctx, sa: &mut IkeSa, why: &str) {
    match sa.phase {
        Phase::HalfOpen(_) => refuse(ctx, sa, format!("an additional key exchange failed: {why}")),
        _ => failed(ctx, sa, why),
    }
}

fn examine(
    ctx: &mut Ctx,
    sa: &mut IkeSa,
    opened: &Opened,
    payloads: &Payloads,
) -> Result<KexRequest, String> {
    let (Phase::HalfOpen(half_open), Some(protection)) = (&mut sa.phase, &sa.protection) else {
        return Err("IKE_INTERMEDIATE has no place here".to_owned());
    };
    let chain = &mut half_open.chain;
    let group = chain
        .todo
        .front()
        .copied()
        .ok_or("the client sent an IKE_INTERMEDIATE that was not agreed on")?;
    let ke = payloads.ke().ok_or("the client's IKE_INTERMEDIATE has no key exchange")?;
    let name = suite::kex_name(group);
    if ke.method != group {
        let sent = suite::kex_name(ke.method);
        return Err(format!("the client's additional key exchange is {sent} instead of {name}"));
    }
    let implementation =
        ctx.crypto.group(group).ok_or_else(|| format!("{name} is not implemented"))?;
    let length = implementation.initiator_public_len();
    if ke.data.len() != length {
        let sent = ke.data.len();
        return Err(format!("the client's value for {name} has {sent} octets instead of {length}"));
    }
    chain.record(protection, SaRole::Initiator, opened.int_auth())?;
    let handle = ctx.fresh_id();
    chain.handle = handle;
    Ok(match implementation.kind() {
        KexKind::Kem => KexRequest::Encapsulate { handle, group, peer_public: ke.data.clone() },
        KexKind::DiffieHellman => {
            // The peer's value waits where ours will be.
            chain.public = ke.data.clone();
            chain.held = true;
            KexRequest::Generate { handle, group }
        }
    })
}

/// Sends our key exchange under the old keys, as responder; then the new ones are in force.
fn respond(ctx: &mut Ctx, sa: &mut IkeSa, public: Vec<u8>, secret: &SharedSecret) {
    let exchange = ExchangeType::IkeIntermediate;
    let header = sa.header(exchange, true, sa.window.next_expected());
    let (Phase::HalfOpen(half_open), Some(protection)) = (&mut sa.phase, &sa.protection) else {
        return;
    };
    let Some(method) = half_open.chain.todo.pop_front() else {
        return;
    };
    let payloads = Payloads::from(vec![Payload::Ke(KeyExchange::new(method, public))]);
    let recorded =
        payloads.encode().map_err(|error| error.to_string()).and_then(|(first, octets)| {
            let octets = int_auth_octets(&header, first, &octets);
            half_open.chain.record(protection, SaRole::Responder, octets)
        });
    let sealed = seal_response(ctx, sa, exchange, &payloads);
    match (recorded, sealed) {
        (Ok(()), Some(packets)) => match rekey(ctx, sa, secret) {
            Ok(()) => send_sealed(ctx, sa, packets),
            Err(why) => failed(ctx, sa, &why),
        },
        (Err(why), _) => failed(ctx, sa, &why),
        (_, None) => failed(ctx, sa, "our answer could not be encoded"),
    }
}

/// SKEYSEED(n) and all keys anew (RFC 9370 2.2.2). As responder the old ones tell for a while
/// whether a repeated request is the peer's.
fn rekey(ctx: &mut Ctx, sa: &mut IkeSa, secret: &SharedSecret) -> Result<(), String> {
    let (ni, nr) = match &sa.phase {
        Phase::Intermediate(state) => (&state.exchanged.ni, &state.exchanged.nr),
        Phase::HalfOpen(half_open) => (&half_open.ni, &half_open.nr),
        _ => return Ok(()),
    };
    let nonces = Nonces { i: ni.as_bytes(), r: nr.as_bytes() };
    let spis = (sa.spi_i, sa.spi_r);
    let initiator = sa.is_initiator();
    let Some(old) = sa.protection.take() else {
        return Ok(());
    };
    let new = Protection::intermediate(&old, ctx.crypto, initiator, spis, nonces, secret);
    match new {
        Ok(new) => sa.protection = Some(Box::new(new)),
        Err(error) => {
            sa.protection = Some(old);
            return Err(error.to_string());
        }
    }
    if !initiator {
        sa.earlier = Some(old);
    }
    Ok(())
}

/// Our side did not compute.
fn unanswered(ctx: &mut Ctx, sa: &mut IkeSa, why: &str) {
    let refused = init::overloaded(sa, why);
    ctx.refuse(refused);
    let reason = CloseReason::Failed(why.to_owned());
    lifecycle::close(ctx, sa, reason, lifecycle::Tell::Nobody);
}

/// The handshake has come to nothing.
fn failed(ctx: &mut Ctx, sa: &mut IkeSa, why: &str) {
    let what = format!("an additional key exchange failed: {why}");
    let fix = "check the peer's software, or this machine when it happens with every peer";
    let refused = about(sa, refusal(Blame::Misbehaved, None, "key_exchange", what, fix));
    ctx.refuse(refused);
    let reason = CloseReason::Failed(why.to_owned());
    lifecycle::close(ctx, sa, reason, lifecycle::Tell::Nobody);
}
