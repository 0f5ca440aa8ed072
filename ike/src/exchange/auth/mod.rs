//! IKE_AUTH (RFC 7296 1.2, 2.15, 2.21.2): who we are to each other, and the first child SA.
//!
//! What the outside has to say (signature, verification, lease, SPI, installation) arrives in any
//! order; the exchange goes on when everything it needs is there. A peer is told only that it
//! failed; why is for the operator.

mod initiator;
mod ppk;
mod responder;
mod shared;

use std::sync::Arc;

use crate::crypto::SecretBytes;
use crate::crypto::keymat::auth_octets;
use crate::event::{Blame, CloseReason, Event, Refusal, Selectors};
use crate::exchange::certs::SigningMethod;
use crate::exchange::{about, malformed, reauth};
use crate::io::{
    ChildSaId, CredentialId, EapTlsAnswer, Grant, LeaseId, SharedKey, UniquePolicy, VerifiedPeer,
};
use crate::policy::limits::Source;
use crate::sa::context::{Ctx, Deferred, refusal};
use crate::sa::lifecycle::{self, Tell};
use crate::sa::protect::Protection;
use crate::sa::{Authenticated, IkeSa, Phase};
use crate::view::SaRole;
use crate::wire::{
    Delete, ExchangeType, Identification, Nonce, Notify, NotifyType, Opened, Payloads,
    TrafficSelector, WireError,
};

use initiator::Initiator;
use responder::Responder;

pub(crate) use initiator::begin as begin_initiator;
pub(crate) use responder::{
    esp_refused, expects_auth, expects_request, process_request, refuse_request,
};

/// What IKE_SA_INIT left: nonces, and both messages as they went over the wire.
#[derive(Debug)]
pub(crate) struct Exchanged {
    pub(crate) ni: Nonce,
    pub(crate) nr: Nonce,
    pub(crate) request: Vec<u8>,
    pub(crate) response: Vec<u8>,
    /// What AUTH covers of IKE_INTERMEDIATE, if there was any (RFC 9242 3.3.2).
    pub(crate) int_auth: Option<Vec<u8>>,
}

impl Exchanged {
    /// What AUTH of one side covers (RFC 7296 2.15), whichever way it is made: its first message,
    /// the other side's nonce, and the body of its ID payload under its SK_p; and what was said in
    /// IKE_INTERMEDIATE.
    pub(crate) fn octets(
        &self,
        protection: &Protection,
        author: SaRole,
        id_body: &[u8],
    ) -> Vec<u8> {
        let keys = protection.keys();
        let (sk_p, message, nonce) = match author {
            SaRole::Initiator => (&keys.pi, &self.request, &self.nr),
            SaRole::Responder => (&keys.pr, &self.response, &self.ni),
        };
        let int_auth = self.int_auth.as_deref();
        auth_octets(protection.prf(), sk_p, message, nonce.as_bytes(), id_body, int_auth)
    }
}

/// How we prove our identity.
#[derive(Debug, Clone)]
pub(crate) enum Own {
    /// By a signature with the key of a certificate.
    Certificate {
        credential: CredentialId,
        how: SigningMethod,
        chain: Vec<Vec<u8>>,
        /// For a peer that asked.
        ocsp: Vec<Vec<u8>>,
    },
    /// With the key shared with the peer.
    SharedKey,
}

/// IKE_AUTH under way.
#[derive(Debug)]
pub(crate) enum AuthTask {
    Responder(Box<Responder>),
    Initiator(Box<Initiator>),
}

/// The answer to our IKE_AUTH request.
pub(crate) fn process_response(ctx: &mut Ctx, sa: &mut IkeSa, payloads: &Payloads) {
    initiator::process_response(ctx, sa, payloads);
}

/// The answer to our IKE_AUTH request is none.
pub(crate) fn malformed_response(ctx: &mut Ctx, sa: &mut IkeSa, error: WireError) {
    let refused = malformed(sa, error);
    initiator::fail_with(ctx, sa, refused);
}

/// Our signature is there, or is not.
pub(crate) fn signed(ctx: &mut Ctx, sa: &mut IkeSa, answer: Result<Vec<u8>, String>) {
    match role(sa) {
        Some(Role::Responder) => responder::signed(ctx, sa, answer),
        Some(Role::Initiator) => initiator::signed(ctx, sa, answer),
        None => {}
    }
}

/// The peer's proof of identity was checked.
pub(crate) fn verified(ctx: &mut Ctx, sa: &mut IkeSa, answer: Result<Box<VerifiedPeer>, Refusal>) {
    match role(sa) {
        Some(Role::Responder) => responder::verified(ctx, sa, answer),
        Some(Role::Initiator) => initiator::verified(ctx, sa, answer),
        None => {}
    }
}

/// The key shared with the peer is there, or there is none.
pub(crate) fn shared_key(ctx: &mut Ctx, sa: &mut IkeSa, answer: Result<Box<SharedKey>, Refusal>) {
    match role(sa) {
        Some(Role::Responder) => responder::shared_key(ctx, sa, answer),
        Some(Role::Initiator) => initiator::shared_key(ctx, sa, answer),
        None => {}
    }
}

/// The post-quantum preshared key is there, or there is none.
pub(crate) fn ppk(ctx: &mut Ctx, sa: &mut IkeSa, answer: Result<SecretBytes, Refusal>) {
    match role(sa) {
        Some(Role::Responder) => responder::ppk_found(ctx, sa, answer),
        Some(Role::Initiator) => initiator::ppk_found(ctx, sa, answer),
        None => {}
    }
}

/// Our signature for a responder without the post-quantum preshared key.
pub(crate) fn signed_without_ppk(ctx: &mut Ctx, sa: &mut IkeSa, answer: Result<Vec<u8>, String>) {
    if matches!(role(sa), Some(Role::Initiator)) {
        initiator::signed_without_ppk(ctx, sa, answer);
    }
}

/// Our TLS answers the peer's, or gives up.
pub(crate) fn eap_tls(ctx: &mut Ctx, sa: &mut IkeSa, answer: Result<Box<EapTlsAnswer>, Refusal>) {
    match role(sa) {
        Some(Role::Responder) => responder::eap_tls(ctx, sa, answer),
        Some(Role::Initiator) => initiator::eap_tls(ctx, sa, answer),
        None => {}
    }
}

/// The lease was decided.
pub(crate) fn authorised(ctx: &mut Ctx, sa: &mut IkeSa, answer: Result<Box<Grant>, Refusal>) {
    match role(sa) {
        Some(Role::Responder) => responder::authorised(ctx, sa, answer),
        Some(Role::Initiator) => initiator::authorised(ctx, sa, answer),
        None => {}
    }
}

/// An SPI was reserved.
pub(crate) fn spi(ctx: &mut Ctx, sa: &mut IkeSa, answer: Result<u32, String>) {
    match role(sa) {
        Some(Role::Responder) => responder::spi(ctx, sa, answer),
        Some(Role::Initiator) => initiator::spi(ctx, sa, answer),
        None => {}
    }
}

/// The child was installed, or was not. False when the child is not of this exchange.
pub(crate) fn installed(
    ctx: &mut Ctx,
    sa: &mut IkeSa,
    child: ChildSaId,
    answer: Result<(), String>,
) {
    match role(sa) {
        Some(Role::Responder) => responder::installed(ctx, sa, child, answer),
        Some(Role::Initiator) => initiator::installed(ctx, sa, child, answer),
        None => {}
    }
}

/// As initiator: whether a request is about a connection that we know nothing of yet, because the
/// IKE_AUTH response is still on its way. Answered now it would be lost; the peer says it again.
/// That there is no connection any more can be taken at any time, and an empty request asks only
/// whether we live.
pub(crate) fn is_too_early(sa: &IkeSa, opened: &Opened) -> bool {
    matches!(role(sa), Some(Role::Initiator))
        && opened.header.exchange == ExchangeType::Informational
        && opened.payloads().is_ok_and(|payloads| {
            !payloads.is_empty()
                && !payloads.has_notify(NotifyType::AuthenticationFailed)
                && !payloads.deletes().any(|delete| *delete == Delete::Ike)
        })
}

/// Ends a handshake: the operator, a timer or a lease's end wants it so.
pub(crate) fn abandon(ctx: &mut Ctx, sa: &mut IkeSa, reason: CloseReason, tell: Tell) {
    lifecycle::clear_dataplane(ctx, sa, &reason);
    if matches!(role(sa), Some(Role::Responder)) {
        let refused = refusal(
            Blame::Incompatible,
            (tell == Tell::Peer).then_some(NotifyType::AuthenticationFailed),
            "handshake_ended",
            format!("the peer's handshake was ended: {reason}"),
            "let the peer connect again, unless its lease has ended",
        );
        ctx.refuse(about(sa, refused));
    }
    match role(sa) {
        Some(Role::Responder) if tell == Tell::Peer => responder::reject(ctx, sa),
        Some(Role::Initiator) => {
            lifecycle::down(ctx, sa, reason);
            // The peer may have established it already.
            lifecycle::bury(ctx, sa, tell);
        }
        _ => lifecycle::finish(ctx, sa),
    }
}

/// A handshake was not over in time. True when that was ours to end and to report.
pub(crate) fn too_slow(ctx: &mut Ctx, sa: &mut IkeSa) -> bool {
    let ours = matches!(role(sa), Some(Role::Initiator));
    if ours {
        initiator::too_slow(ctx, sa);
    }
    ours
}

/// A lease has ended. What is under way for it, or may turn out to be, must not come up.
pub(crate) fn close_lease(ctx: &mut Ctx, sa: &mut IkeSa, lease: &LeaseId, reason: &CloseReason) {
    if sa.lease_id().as_ref() == Some(lease) {
        abandon(ctx, sa, reason.clone(), Tell::Peer);
        return;
    }
    match &mut sa.phase {
        Phase::Authenticating(task) => match task.as_mut() {
            AuthTask::Responder(responder) => responder.killed.insert(lease.clone()),
            AuthTask::Initiator(initiator) => initiator.killed.insert(lease.clone()),
        },
        _ => false,
    };
}

/// Something outside did not answer in time.
pub(crate) fn unanswered(what: &str) -> Refusal {
    refusal(
        Blame::Internal,
        Some(NotifyType::AuthenticationFailed),
        "timeout",
        format!("{what} took too long"),
        "see the gateway's log for what is slow",
    )
}

enum Role {
    Responder,
    Initiator,
}

fn role(sa: &IkeSa) -> Option<Role> {
    match &sa.phase {
        Phase::Authenticating(task) => Some(match task.as_ref() {
            AuthTask::Responder(_) => Role::Responder,
            AuthTask::Initiator(_) => Role::Initiator,
        }),
        _ => None,
    }
}

/// Why a grant cannot be used.
fn check_grant(
    ctx: &Ctx,
    sa: &IkeSa,
    grant: &Grant,
    killed: &std::collections::BTreeSet<LeaseId>,
) -> Result<(), Box<Refusal>> {
    let failed = NotifyType::AuthenticationFailed;
    if killed.contains(&grant.lease) {
        return Err(Box::new(about(
            sa,
            refusal(
                Blame::Incompatible,
                Some(failed),
                "lease_ended",
                format!("lease {} ended while the peer was connecting", grant.lease.0),
                "enrol again",
            ),
        )));
    }
    if grant.deadline <= ctx.now.wall {
        return Err(Box::new(about(
            sa,
            refusal(
                Blame::Incompatible,
                Some(failed),
                "lease_expired",
                format!("lease {} or the peer's certificate has expired", grant.lease.0),
                "enrol again, and compare both clocks",
            ),
        )));
    }
    if grant.unique == UniquePolicy::Reject && ctx.leases.is_up(&grant.lease) {
        return Err(Box::new(about(
            sa,
            refusal(
                Blame::Incompatible,
                Some(failed),
                "lease_in_use",
                format!("lease {} is connected already and allows one connection", grant.lease.0),
                "close the other connection, or let the role replace or keep it",
            ),
        )));
    }
    Ok(())
}

/// The same again when everything else is done: meanwhile another handshake of the lease may
/// have been faster, or the lease may have ended.
fn still_granted(ctx: &Ctx, sa: &IkeSa) -> Result<(), Box<Refusal>> {
    let killed = match &sa.phase {
        Phase::Authenticating(task) => match task.as_ref() {
            AuthTask::Responder(responder) => responder.killed.clone(),
            AuthTask::Initiator(initiator) => initiator.killed.clone(),
        },
        _ => std::collections::BTreeSet::new(),
    };
    match &sa.auth {
        Some(auth) => check_grant(ctx, sa, &auth.grant, &killed),
        None => Ok(()),
    }
}

/// Remembers who the peer is and what it may have.
fn remember(
    ctx: &Ctx,
    sa: &mut IkeSa,
    verified: &VerifiedPeer,
    identity: Identification,
    grant: Grant,
) {
    sa.auth = Some(Box::new(Authenticated {
        name: verified.identity.clone(),
        identity,
        grant: Arc::new(grant),
        established_at: ctx.now.mono,
        connected_at: ctx.now.mono,
    }));
}

/// The report that an IKE SA is established.
pub(crate) fn ike_up(sa: &IkeSa) -> Option<Event> {
    let auth = sa.auth.as_ref()?;
    Some(Event::IkeUp {
        ike: sa.id,
        spis: (sa.spi_i.0, sa.spi_r.0),
        local: sa.path.local,
        remote: sa.path.remote,
        nat: sa.traits.peer_behind_nat,
        identity: auth.name.clone(),
        lease: auth.grant.lease.clone(),
        role: auth.grant.role.clone(),
        suite: sa.protection.as_ref()?.suite().clone(),
        addresses: auth.grant.addresses.clone(),
        connection: sa.connection(),
    })
}

/// The IKE SA is established.
fn up(ctx: &mut Ctx, sa: &mut IkeSa, initial_contact: bool) {
    let Some(auth) = &mut sa.auth else {
        return;
    };
    auth.established_at = ctx.now.mono;
    auth.connected_at = ctx.now.mono;
    let grant = &auth.grant;
    let lease = grant.lease.clone();
    let keep = sa.id;
    if initial_contact {
        ctx.deferred.push_back(Deferred::ReplaceOthers { lease: lease.clone(), keep });
    } else if reauth::overlaps(ctx, grant, initial_contact) {
        ctx.deferred.push_back(Deferred::Overlap { lease: lease.clone(), keep });
    }
    sa.counted = true;
    ctx.leases.up(&lease);
    ctx.half_open.remove(sa.id);
    ctx.half_open.authenticated(Source::from(sa.path.remote.ip()), ctx.now.mono);
    ctx.stats.established = ctx.stats.established.saturating_add(1);
    if let Some(event) = ike_up(sa) {
        ctx.event(event);
    }
    lifecycle::established(ctx, sa);
}

/// A child that was asked for and cannot be made; the IKE SA lives on (RFC 7296 1.2, 2.21.2).
#[derive(Debug)]
pub(crate) struct ChildRefused {
    pub(crate) notify: Notify,
    pub(crate) refusal: Refusal,
}

pub(crate) fn child_refused(
    sa: &IkeSa,
    notify: NotifyType,
    blame: Blame,
    code: &'static str,
    what: String,
    fix: impl Into<String>,
) -> Box<ChildRefused> {
    Box::new(ChildRefused {
        notify: Notify::new(notify),
        refusal: about(sa, refusal(blame, Some(notify), code, what, fix)),
    })
}

/// No selector is left after narrowing.
pub(crate) fn ts_unacceptable(
    sa: &IkeSa,
    side: &str,
    offered: &[TrafficSelector],
    allowed: &[TrafficSelector],
) -> Box<ChildRefused> {
    child_refused(
        sa,
        NotifyType::TsUnacceptable,
        Blame::Incompatible,
        "ts_unacceptable",
        format!(
            "no common selectors on {side} side: the peer asked for {}, allowed are {}",
            Selectors(offered.to_vec()),
            Selectors(allowed.to_vec())
        ),
        "change the client's `remote_ts` or `local_ts`, or the role's allow list",
    )
}
