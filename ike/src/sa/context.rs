//! What every exchange works with beside its own SA: configuration, time, timers, outputs, the
//! actions in flight. An exchange never reaches another SA; what concerns others is deferred.

use std::collections::{BTreeMap, VecDeque};

use crate::config::EngineConfig;
use crate::crypto::{CryptoProvider, KexRequest};
use crate::event::{Blame, CloseReason, Event, Refusal};
use crate::exchange::reauth::Reauths;
use crate::io::{
    Action, Checkpoint, ChildSaId, IkeSaId, LeaseId, Output, TimerKind, Token, Transmit,
};
use crate::policy::limits::HalfOpen;
use crate::rng::Seed;
use crate::sa::IkeSa;
use crate::sa::leases::Leases;
use crate::sa::timers::{TimerKey, TimerQueue};
use crate::time::Now;
use crate::view::EngineStats;
use crate::wire::{NotifyType, RedirectGateway};

/// What an action in flight is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Our key pair for IKE_SA_INIT (or a KEM's encapsulation, as responder).
    InitKeyPair,
    /// g^ir of IKE_SA_INIT.
    InitSecret,
    /// The solution of the responder's puzzle with this number.
    Puzzle(u64),
    /// Our key pair for an IKE_INTERMEDIATE (or a KEM's encapsulation, as responder).
    IntermediateKeyPair,
    /// The shared secret of an IKE_INTERMEDIATE.
    IntermediateSecret,
    /// Our AUTH signature.
    Sign,
    /// The peer's chain and AUTH signature.
    Verify,
    /// The key shared with the peer.
    SharedKey,
    /// The post-quantum preshared key.
    Ppk,
    /// Our AUTH signature for a responder without the post-quantum preshared key.
    SignWithoutPpk,
    /// What our TLS answers in EAP-TLS.
    EapTls,
    /// The peer's lease.
    Authorise,
    /// The inbound SPI of the child SA that IKE_AUTH makes.
    AuthSpi,
    /// The inbound SPI of a child SA that the peer asks for in CREATE_CHILD_SA.
    RespondSpi(u64),
    /// The inbound SPI of a child SA that we ask for.
    RequestSpi(u64),
    /// Our key pair for the CREATE_CHILD_SA we answer (or a KEM's encapsulation).
    RespondKeyPair(u64),
    /// The shared secret of the CREATE_CHILD_SA we answer.
    RespondSecret(u64),
    /// Our key pair for the CREATE_CHILD_SA we send.
    RequestKeyPair(u64),
    /// The shared secret of the CREATE_CHILD_SA we sent.
    RequestSecret(u64),
    /// Installation of a child SA.
    Install(ChildSaId),
    /// The same after a restart.
    Reinstall(ChildSaId),
    /// Activation of a child SA's outbound half.
    Activate(ChildSaId),
    /// Move of a child SA.
    Move(ChildSaId),
    /// Removal of a child SA; its end is reported with the final counters.
    Remove { child: ChildSaId, lease: Option<LeaseId>, reason: CloseReason },
    /// Whether ESP came in lately.
    Use(ChildSaId),
    /// An answer nobody waits for: a forgotten key pair.
    Nothing,
}

/// An action in flight.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pending {
    pub(crate) sa: IkeSaId,
    pub(crate) purpose: Purpose,
}

/// What concerns other SAs than the one in work.
#[derive(Debug)]
pub(crate) enum Deferred {
    /// The SA holds nothing any more.
    Remove(IkeSaId),
    /// Close the lease's other SAs: a newer connection replaced them.
    ReplaceOthers { lease: LeaseId, keep: IkeSaId },
    /// An IKE SA made by rekeying another.
    Adopt(Box<IkeSa>),
    /// What lives under `old` goes on under `new`.
    Succeed { old: IkeSaId, new: IkeSaId, delete: bool },
    /// The peer has deleted the SA.
    Retire(IkeSaId),
    /// The peer will delete the SA, which never had children.
    Redundant(IkeSaId),
    /// A newer SA of the lease is up beside the others, which may stay for a while.
    Overlap { lease: LeaseId, keep: IkeSaId },
    /// The data plane was told to send on a child.
    Activated { ike: IkeSaId, child: ChildSaId },
    /// As initiator: `old` has a complete successor.
    Superseded { old: IkeSaId, new: IkeSaId },
    /// As initiator: the SA's successor did not come about.
    ReauthFailed(IkeSaId),
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Ctx {
    /// Every SA's randomness comes from here.
    pub(crate) seed: Seed,
    pub(crate) config: EngineConfig,
    pub(crate) crypto: &'static CryptoProvider,
    pub(crate) now: Now,
    pub(crate) timers: TimerQueue,
    pub(crate) out: VecDeque<Output>,
    pub(crate) pending: BTreeMap<Token, Pending>,
    pub(crate) deferred: VecDeque<Deferred>,
    pub(crate) half_open: HalfOpen,
    pub(crate) stats: EngineStats,
    /// What each lease holds: the filter goes with the last child, over all of its IKE SAs.
    pub(crate) leases: Leases,
    /// Where peers are sent that can be (RFC 5685).
    pub(crate) redirect: Option<RedirectGateway>,
    /// Reauthentications under way and lately.
    pub(crate) reauths: Reauths,
    /// IKE SAs whose children are being removed from the data plane: how many, and the report of
    /// the SA's own end, which waits for theirs.
    removing: BTreeMap<IkeSaId, (u32, Option<Event>)>,
    /// Ids of IKE SAs, child SAs, tokens and key exchanges: one counter, so that no two things
    /// in one log share a number.
    next_id: u64,
}

impl Ctx {
    pub(crate) fn new(
        config: EngineConfig,
        crypto: &'static CryptoProvider,
        seed: Seed,
        now: Now,
        first_id: u64,
    ) -> Self {
        Self {
            seed,
            config,
            crypto,
            now,
            timers: TimerQueue::default(),
            out: VecDeque::new(),
            pending: BTreeMap::new(),
            deferred: VecDeque::new(),
            half_open: HalfOpen::default(),
            stats: EngineStats::default(),
            leases: Leases::default(),
            redirect: None,
            reauths: Reauths::default(),
            removing: BTreeMap::new(),
            next_id: first_id.max(1),
        }
    }

    /// A number never given out before by this engine.
    pub(crate) fn fresh_id(&mut self) -> u64 {
        let id = self.next_id;
        self.next_id = self.next_id.saturating_add(1);
        id
    }

    /// Makes sure that no number up to `id` is given out again.
    pub(crate) fn reserve_id(&mut self, id: u64) {
        self.next_id = self.next_id.max(id.saturating_add(1));
    }

    /// Emits an action and waits for its answer.
    pub(crate) fn act(&mut self, sa: IkeSaId, purpose: Purpose, action: Action) -> Token {
        let token = Token(self.fresh_id());
        let timers = &self.config.timers;
        let adopts = matches!(purpose, Purpose::Reinstall(_));
        let at = self.now.mono + if adopts { timers.adoption } else { timers.action };
        self.timers.set(TimerKey::sub(sa, TimerKind::Action, token.0), at);
        self.pending.insert(token, Pending { sa, purpose });
        self.out.push_back(Output::Action(token, action));
        token
    }

    /// Takes an action that is answered or given up.
    pub(crate) fn take_pending(&mut self, token: Token) -> Option<Pending> {
        let pending = self.pending.remove(&token)?;
        self.timers.cancel(TimerKey::sub(pending.sa, TimerKind::Action, token.0));
        Some(pending)
    }

    /// Lets the driver forget a private key that will not be used.
    pub(crate) fn drop_key_pair(&mut self, sa: IkeSaId, handle: u64) {
        self.act(sa, Purpose::Nothing, Action::KeyExchange(KexRequest::Drop { handle }));
    }

    pub(crate) fn event(&mut self, event: Event) {
        self.out.push_back(Output::Event(event));
    }

    pub(crate) fn transmit(&mut self, transmit: Transmit) {
        self.out.push_back(Output::Transmit(transmit));
    }

    /// Reports a refusal.
    pub(crate) fn refuse(&mut self, refusal: Refusal) {
        self.stats.refused = self.stats.refused.saturating_add(1);
        self.event(Event::Refused(refusal));
    }

    /// Emits what must be stored before the next transmission.
    pub(crate) fn checkpoint(&mut self, sa: &IkeSa) {
        if let Some(snapshot) = sa.snapshot(self) {
            let snapshot = Some(Box::new(snapshot));
            self.out.push_back(Output::Checkpoint(Checkpoint { ike: sa.id, snapshot }));
        }
    }

    /// The SA must not come back after a restart.
    pub(crate) fn forget(&mut self, ike: IkeSaId) {
        self.out.push_back(Output::Checkpoint(Checkpoint { ike, snapshot: None }));
    }

    /// A child of the SA is being removed from the data plane.
    pub(crate) fn removing(&mut self, ike: IkeSaId) {
        let held = self.removing.entry(ike).or_default();
        held.0 = held.0.saturating_add(1);
    }

    /// A child of the SA is removed, or was given up: when it was the last, the SA's own end is
    /// reported.
    pub(crate) fn removed(&mut self, ike: IkeSaId) {
        let Some(held) = self.removing.get_mut(&ike) else {
            return;
        };
        held.0 = held.0.saturating_sub(1);
        if held.0 == 0
            && let Some((_, Some(event))) = self.removing.remove(&ike)
        {
            self.event(event);
        }
    }

    /// Reports the end of an SA, after the ends of its children with their final counters.
    pub(crate) fn ike_down(&mut self, ike: IkeSaId, event: Event) {
        match self.removing.get_mut(&ike) {
            Some(held) => held.1 = Some(event),
            None => self.event(event),
        }
    }

    /// One of the lease's established SAs ends.
    pub(crate) fn lease_down(&mut self, lease: &LeaseId) {
        if self.leases.down(lease) {
            self.reauths.forget(lease);
        }
    }
}

/// A refusal under construction: what every one of them says.
pub(crate) fn refusal(
    blame: Blame,
    notify: Option<NotifyType>,
    code: &'static str,
    what: impl Into<String>,
    fix: impl Into<String>,
) -> Refusal {
    Refusal {
        ike: None,
        remote: None,
        identity: None,
        blame,
        notify,
        code,
        what: what.into(),
        fix: fix.into(),
    }
}
