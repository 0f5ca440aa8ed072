//! Reauthentication, make-before-break (RFC 7296 2.8.3): a second IKE SA with the same peer takes
//! over from the first, and no packet is lost in between.
//!
//! As responder a connection without INITIAL_CONTACT under a lease that has one already is such a
//! second one: the first stays until the peer deletes it, for a while. Until then we send on the
//! first one's child, because the peer receives on the new one only when our answer has arrived.
//!
//! As initiator we begin one in good time before the peer's certificate, the lease or what the peer
//! announced (RFC 4478) ends, and delete the first when the second is complete.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::config::FirstChild;
use crate::engine::Engine;
use crate::event::{Blame, Refusal};
use crate::exchange::about;
use crate::io::{
    Action, ChildSaId, Grant, IkeSaId, LeaseId, PeerProof, TimerKind, UniquePolicy, VerifiedPeer,
};
use crate::sa::IkeSa;
use crate::sa::child::Child;
use crate::sa::context::{Ctx, Deferred, Purpose, refusal};
use crate::sa::timers::TimerKey;
use crate::time::Timestamp;
use crate::wire::{NotifyType, Payloads};

/// How long the first SA stays when the peer does not delete it.
const OVERLAP: Duration = Duration::from_secs(30);

/// How long we go on sending on the first SA's child, when the peer does not delete it.
const ACTIVATE_AFTER: Duration = Duration::from_secs(5);

/// One reauthentication with one certificate or shared key in this time is enough: a peer that
/// comes again has been told of an end that neither can move, and would never stop.
const LOOP_WINDOW: Duration = Duration::from_secs(30);

/// Time kept for our own reauthentication, at most: a fifth of what is left, but not more.
const MARGIN: Duration = Duration::from_secs(600);

/// After a reauthentication that failed.
const AGAIN: Duration = Duration::from_secs(30);

/// What is remembered of reauthentications while the lease has an SA.
#[derive(Debug, Default)]
pub(crate) struct Reauths {
    /// The last one of a lease: with which certificate, if any, and when.
    latest: BTreeMap<LeaseId, (Option<Vec<u8>>, Timestamp)>,
    /// Children that are to send when those of an older SA go.
    heirs: BTreeMap<ChildSaId, (IkeSaId, LeaseId)>,
}

impl Reauths {
    /// The lease has no established SA any more.
    pub(crate) fn forget(&mut self, lease: &LeaseId) {
        self.latest.remove(lease);
    }

    /// An IKE SA was rekeyed.
    pub(crate) fn succeeded(&mut self, old: IkeSaId, new: IkeSaId) {
        self.heirs.values_mut().filter(|(ike, _)| *ike == old).for_each(|(ike, _)| *ike = new);
    }

    /// The child sends, or is gone.
    pub(crate) fn settled(&mut self, child: ChildSaId) {
        self.heirs.remove(&child);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.latest.is_empty() && self.heirs.is_empty()
    }
}

/// Whether a connection that is about to be established is a second one beside the first.
pub(crate) fn overlaps(ctx: &Ctx, grant: &Grant, initial_contact: bool) -> bool {
    grant.unique == UniquePolicy::Replace && !initial_contact && ctx.leases.is_up(&grant.lease)
}

/// Refuses who authenticates over and over with what cannot move the end it was told of: the same
/// certificate, or the key it shares with us.
pub(crate) fn check(
    ctx: &mut Ctx,
    sa: &IkeSa,
    grant: &Grant,
    verified: &VerifiedPeer,
) -> Result<(), Box<Refusal>> {
    let (with, proof, fix) = match &verified.proof {
        PeerProof::Certificate { serial, .. } => (
            Some(serial.clone()),
            "certificate",
            "renew the certificate first (strongSwan: `over_time` must be shorter than the \
             certificate's life)",
        ),
        PeerProof::SharedKey => (
            None,
            "shared key",
            "let the role's `ttl` be longer than the client's time for authenticating again \
             (strongSwan: `reauth_time`, and `over_time` before an announced end)",
        ),
    };
    let now = ctx.now.mono;
    let latest = ctx.reauths.latest.get(&grant.lease);
    let before = latest.filter(|(last, at)| *last == with && now.since(*at) < LOOP_WINDOW);
    if let Some((_, at)) = before {
        let ago = now.since(*at).as_secs();
        return Err(Box::new(about(
            sa,
            refusal(
                Blame::Incompatible,
                Some(NotifyType::AuthenticationFailed),
                "reauth_loop",
                format!(
                    "the peer authenticates again with the {proof} it authenticated again with \
                     {ago} s ago"
                ),
                fix,
            ),
        )));
    }
    ctx.reauths.latest.insert(grant.lease.clone(), (with, now));
    Ok(())
}

/// A child of ours waits until the first SA's child goes, or the peer has had time enough.
pub(crate) fn wait_to_send(ctx: &mut Ctx, sa: &IkeSa, child: ChildSaId) {
    let Some(lease) = sa.lease_id() else {
        return;
    };
    ctx.reauths.heirs.insert(child, (sa.id, lease));
    let key = TimerKey::sub(sa.id, TimerKind::Activate, child.0);
    ctx.timers.set(key, ctx.now.mono + ACTIVATE_AFTER);
}

/// The children of an SA are about to go: those that wait for that now send, before they do.
pub(crate) fn hand_over(ctx: &mut Ctx, sa: &IkeSa) {
    let Some(lease) = sa.lease_id() else {
        return;
    };
    let heirs: Vec<(ChildSaId, IkeSaId)> = ctx
        .reauths
        .heirs
        .iter()
        .filter(|(_, (ike, of))| *ike != sa.id && *of == lease)
        .map(|(child, (ike, _))| (*child, *ike))
        .collect();
    for (child, ike) in heirs {
        ctx.reauths.settled(child);
        ctx.act(ike, Purpose::Activate(child), Action::ActivateChild(child));
        ctx.deferred.push_back(Deferred::Activated { ike, child });
    }
}

/// A second SA of the lease is up: the others go by themselves if the peer does not delete them.
pub(crate) fn limit_overlap(engine: &mut Engine, lease: &LeaseId, keep: IkeSaId) {
    let at = engine.ctx.now.mono + OVERLAP;
    for id in engine.sas.ids() {
        let older = engine.sas.get(id).is_some_and(|sa| {
            id != keep && sa.is_established() && sa.lease_id().as_ref() == Some(lease)
        });
        if older {
            engine.ctx.timers.set(TimerKey::new(id, TimerKind::Overlap), at);
        }
    }
}

/// After a restart: where a lease has several SAs and wants one, the overlap begins again, and
/// what waited to send still takes over when an older SA goes.
pub(crate) fn restored(engine: &mut Engine) {
    let mut newest: BTreeMap<LeaseId, IkeSaId> = BTreeMap::new();
    let mut several = BTreeSet::new();
    for id in engine.sas.ids() {
        let lease = engine.sas.get(id).filter(|sa| replaceable(sa)).and_then(IkeSa::lease_id);
        let Some(lease) = lease else { continue };
        if newest.insert(lease.clone(), id).is_some() {
            several.insert(lease);
        }
    }
    // Each looks through all SAs: for the few that need it.
    for (lease, keep) in newest.into_iter().filter(|(lease, _)| several.contains(lease)) {
        limit_overlap(engine, &lease, keep);
    }
    for sa in engine.sas.iter() {
        let Some(lease) = sa.lease_id() else { continue };
        // Not what is closed already, nor what waits for a predecessor beside it.
        let waits = |child: &Child| {
            let follows = sa.children.values().any(|other| other.replaced_by == Some(child.id));
            !child.outbound_active && !child.removed && !follows
        };
        for child in sa.children.values().filter(|child| waits(child)) {
            engine.ctx.reauths.heirs.insert(child.id, (sa.id, lease.clone()));
        }
    }
}

fn replaceable(sa: &IkeSa) -> bool {
    sa.auth.as_ref().is_some_and(|auth| auth.grant.unique == UniquePolicy::Replace)
}

/// As initiator: the peer may announce when it wants us to have authenticated again (RFC 4478 3).
/// True when it did.
pub(crate) fn heard(ctx: &Ctx, sa: &mut IkeSa, payloads: &Payloads) -> bool {
    let announced = payloads.notify(NotifyType::AuthLifetime).and_then(|n| n.number().ok());
    let Some(seconds) = announced.filter(|_| sa.peer.is_some()) else {
        return false;
    };
    sa.reauth_by = Some(ctx.now.mono + Duration::from_secs(seconds.into()));
    true
}

/// As initiator: when to authenticate again, if there is time for it at all.
pub(crate) fn arm(ctx: &mut Ctx, sa: &IkeSa) {
    let (Some(auth), Some(_)) = (&sa.auth, &sa.peer) else {
        return;
    };
    let now = ctx.now;
    let ends = auth.grant.deadline.until(now.wall);
    let left = sa.reauth_by.map_or(ends, |by| by.since(now.mono).min(ends));
    let margin = left.checked_div(5).unwrap_or_default().min(MARGIN);
    let after = left.saturating_sub(margin);
    if after >= LOOP_WINDOW {
        ctx.timers.set(TimerKey::new(sa.id, TimerKind::Reauth), now.mono + after);
    }
}

/// As initiator: a second SA with the same peer, which replaces this one.
pub(crate) fn start(engine: &mut Engine, old: IkeSaId) {
    let peer = engine.sas.get(old).filter(|sa| sa.is_established()).and_then(|sa| sa.peer.clone());
    let Some(mut peer) = peer else {
        return;
    };
    // The first SA is to live on until the second is complete.
    peer.initial_contact = false;
    // Nor is what it carries to be without a child for a moment.
    if engine.sas.get(old).is_some_and(|sa| !sa.children.is_empty()) {
        peer.first_child = FirstChild::WithIkeAuth;
    }
    crate::exchange::init::initiate(engine, *peer, Some(old));
}

/// A reauthentication of ours failed: the first SA stays, and another try follows.
pub(crate) fn again(engine: &mut Engine, old: IkeSaId) {
    if engine.sas.get(old).is_some_and(IkeSa::is_established) {
        let at = engine.ctx.now.mono + AGAIN;
        engine.ctx.timers.set(TimerKey::new(old, TimerKind::Reauth), at);
    }
}
