//! The engine: routes inputs to SAs, and nothing else. What an input means is decided in
//! `exchange`; what is kept, in `sa`.

mod command;
mod complete;
pub(crate) mod receive;

use std::collections::{BTreeMap, BTreeSet};

use crate::config::EngineConfig;
use crate::crypto::cookie::CookieJar;
use crate::crypto::{CryptoProvider, PrfId};
use crate::error::EngineError;
use crate::event::{CloseReason, Event};
use crate::exchange::{
    self, Task, advance, create_child, dpd, duplicate, followup, init, reauth, rekey_child,
    rekey_ike,
};
use crate::io::{ChildSaId, Deadline, IkeSaId, Input, Output, TimerKind, Token};
use crate::policy::limits::Source;
use crate::rng::{SaRng, Seed};
use crate::sa::context::{Ctx, Deferred, Purpose};
use crate::sa::lifecycle::{self, Tell};
use crate::sa::table::SaTable;
use crate::sa::timers::TimerKey;
use crate::sa::{IkeSa, Phase};
use crate::time::{Now, Timestamp};
use crate::view::{EngineStats, IkeSaView, SaRole};
use crate::wire::{HEADER_LEN, Header, IkeSpi};

/// Answers to strangers per second at most, beyond cookies and key exchange hints: refusals and
/// version errors. More would make us a tool of who forges source addresses.
const STRANGER_RATE: u64 = 20;

/// Crash tokens shown per second at most, to all and to one source: after a restart a fleet asks
/// within its liveness checks' interval, and nobody who asks for many keeps others from theirs.
const TOKEN_RATE: (u64, u64) = (2000, 50);

/// Bits of an id below the shard's number.
const SHARD_SHIFT: u32 = 48;

/// The sans-IO IKEv2 engine.
///
/// - Made by [`Engine::new`], or by [`Engine::restore`] with what was checkpointed.
/// - Changed by [`Engine::handle`] alone, whose times never go back.
/// - Asked by `poll_*`: after each change [`Engine::poll_output`] until `None`, then
///   [`Engine::poll_timeout`].
/// - Looked at by [`Engine::sas`], [`Engine::stats`] and [`Engine::is_idle`].
#[derive(Debug)]
pub struct Engine {
    pub(crate) ctx: Ctx,
    pub(crate) sas: SaTable,
    pub(crate) rng: SaRng,
    pub(crate) jar: CookieJar,
    strangers: (Timestamp, u64),
    /// Crash tokens shown in this second.
    tokens: (Timestamp, u64),
    /// By whom they were asked for; no more than are shown.
    tokens_of: BTreeMap<Source, u64>,
    cookie_mode: bool,
    /// After [`Command::Shutdown`]: nothing new begins.
    pub(crate) stopping: bool,
}

impl Engine {
    /// An engine without SAs. The seed must be fresh for every engine: nonces, SPIs and IVs come
    /// from it.
    ///
    /// # Errors
    /// [`EngineError`] when the configuration names what the provider lacks.
    pub fn new(
        config: EngineConfig,
        crypto: &'static CryptoProvider,
        seed: [u8; 32],
        now: Now,
    ) -> Result<Self, EngineError> {
        let config = usable(config, crypto)?;
        let prf = crypto.prf(PrfId::HmacSha2_256).ok_or(EngineError::NoCookiePrf(crypto.name))?;
        let seed = Seed::new(seed);
        let mut rng = seed.engine();
        let jar = CookieJar::new(prf, rng.array());
        let first_id = (u64::from(config.shard) << SHARD_SHIFT).saturating_add(1);
        let ctx = Ctx::new(config, crypto, seed, now, first_id);
        Ok(Self {
            ctx,
            sas: SaTable::default(),
            rng,
            jar,
            strangers: (now.mono, 0),
            tokens: (now.mono, 0),
            tokens_of: BTreeMap::new(),
            cookie_mode: false,
            stopping: false,
        })
    }

    /// Whether an engine can work with a configuration: to be asked before
    /// [`Command::Reconfigure`], which can only report that it cannot.
    ///
    /// # Errors
    /// As [`Engine::new`].
    pub fn check(
        config: &EngineConfig,
        crypto: &'static CryptoProvider,
    ) -> Result<(), EngineError> {
        usable(config.clone(), crypto).map(|_| ())
    }

    /// Takes one input. Never blocks, never panics, whatever the input.
    pub fn handle(&mut self, now: Now, input: Input) {
        self.ctx.now = Now { mono: now.mono.max(self.ctx.now.mono), wall: now.wall };
        self.expire();
        match input {
            Input::Datagram(datagram) => self.datagram(datagram),
            Input::Timeout => self.timeout(),
            Input::Command(command) => self.command(command),
            Input::Completion(token, completion) => self.completion(token, completion),
            Input::Dataplane(event) => self.dataplane(event),
        }
        self.run_deferred();
        self.report_cookie_mode();
    }

    /// The next output, or `None` when all are taken.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.ctx.out.pop_front()
    }

    /// When [`Input::Timeout`] is wanted, and what for; `None` when nothing waits.
    ///
    /// Deadlines of leases and certificates are wall-clock times, reckoned here with the clock as
    /// it was at the last [`Engine::handle`]. A clock that is set forward is noticed by `handle`
    /// alone, so a driver gives [`Input::Timeout`] at least once a second, whatever this says.
    pub fn poll_timeout(&self) -> Option<Deadline> {
        self.ctx.timers.next(self.ctx.now)
    }

    /// Nothing is alive or waits for an answer: after [`Command::Shutdown`] the driver may stop.
    pub fn is_idle(&self) -> bool {
        self.ctx.pending.is_empty()
            && self.ctx.out.is_empty()
            && self.sas.iter().all(|sa| matches!(sa.phase, Phase::Lingering))
    }

    /// Whether an action in flight serves a peer of whom nothing is known yet but its address: a
    /// driver under load does what serves others first, and refuses this first.
    pub fn serves_stranger(&self, token: Token) -> bool {
        self.ctx.pending.get(&token).is_some_and(|pending| {
            // IKE_INTERMEDIATE, too, comes before the peer has shown who it is.
            let early = matches!(
                pending.purpose,
                Purpose::InitKeyPair
                    | Purpose::InitSecret
                    | Purpose::IntermediateKeyPair
                    | Purpose::IntermediateSecret
            );
            early && self.sas.get(pending.sa).is_some_and(|sa| !sa.is_initiator())
        })
    }

    /// Our crash token for an IKE SA with these SPIs, the initiator's first, and our role in it;
    /// `None` when none are made (RFC 6290).
    pub fn crash_token(&self, spis: (u64, u64), role: SaRole) -> Option<Vec<u8>> {
        exchange::crash::token(&self.ctx, (IkeSpi(spis.0), IkeSpi(spis.1)), role)
    }

    /// Every IKE SA, in the order of their names.
    pub fn sas(&self) -> impl Iterator<Item = IkeSaView> + '_ {
        let now = self.ctx.now.mono;
        self.sas.iter().map(move |sa| sa.view(now))
    }

    /// One IKE SA.
    pub fn sa(&self, id: IkeSaId) -> Option<IkeSaView> {
        self.sas.get(id).map(|sa| sa.view(self.ctx.now.mono))
    }

    /// What an IKE SA waits for, in no particular order.
    pub fn timers(&self, id: IkeSaId) -> Vec<Deadline> {
        self.ctx.timers.of(id, self.ctx.now)
    }

    /// Counters.
    pub fn stats(&self) -> EngineStats {
        EngineStats {
            ike_sas: self.sas.len(),
            half_open: self.ctx.half_open.len(),
            children: self
                .sas
                .iter()
                .flat_map(|sa| sa.children.values())
                .filter(|child| !child.removed)
                .count(),
            actions: self.ctx.pending.len(),
            ..self.ctx.stats
        }
    }

    /// The configuration in force.
    pub fn config(&self) -> &EngineConfig {
        &self.ctx.config
    }

    /// What is held for nothing: timers and half-open places of SAs that do not exist, leases
    /// counted for nobody, children of nobody. Always empty; tests and the gateway's self-check
    /// ask.
    pub fn leaks(&self) -> Vec<String> {
        let mut out = Vec::new();
        let ids: BTreeSet<IkeSaId> = self.sas.ids().into_iter().collect();
        let waiting: BTreeSet<IkeSaId> = self.ctx.pending.values().map(|p| p.sa).collect();
        for owner in self.ctx.timers.owners() {
            let engine = owner == ENGINE;
            if !engine && !ids.contains(&owner) && !waiting.contains(&owner) {
                out.push(format!("timer of {owner:?}, which is gone"));
            }
        }
        if ids.is_empty() {
            if !self.ctx.half_open.is_empty() {
                out.push(format!("{} half-open places", self.ctx.half_open.len()));
            }
            if !self.ctx.leases.is_empty() {
                out.push(format!("leases {:?}", self.ctx.leases));
            }
            if !self.ctx.reauths.is_empty() {
                out.push(format!("reauthentications {:?}", self.ctx.reauths));
            }
        }
        out
    }

    /// Runs `work` on an SA with the context beside it.
    pub(crate) fn with_sa<R>(
        &mut self,
        id: IkeSaId,
        work: impl FnOnce(&mut Ctx, &mut IkeSa) -> R,
    ) -> Option<R> {
        let sa = self.sas.get_mut(id)?;
        Some(work(&mut self.ctx, sa))
    }

    /// Carries out what an SA's work means for others.
    pub(crate) fn run_deferred(&mut self) {
        while let Some(deferred) = self.ctx.deferred.pop_front() {
            match deferred {
                Deferred::Remove(id) => self.remove(id),
                Deferred::ReplaceOthers { lease, keep } => {
                    let crossing = duplicate::crossed_by(self, &lease, keep, true);
                    let kept: Vec<IkeSaId> = std::iter::once(keep).chain(crossing).collect();
                    self.close_lease(&lease, &kept, &CloseReason::Replaced);
                    if let Some(other) = crossing {
                        duplicate::settle(self, keep, other);
                    }
                }
                Deferred::Adopt(sa) => self.adopt(sa),
                Deferred::Succeed { old, new, delete } => self.succeed(old, new, delete),
                Deferred::Retire(id) => {
                    self.with_sa(id, |ctx, sa| {
                        lifecycle::close(ctx, sa, CloseReason::PeerDeleted, Tell::Nobody);
                    });
                }
                Deferred::Overlap { lease, keep } => {
                    match duplicate::crossed_by(self, &lease, keep, false) {
                        Some(other) => duplicate::settle(self, keep, other),
                        None => reauth::limit_overlap(self, &lease, keep),
                    }
                }
                Deferred::Activated { ike, child } => {
                    self.with_sa(ike, |ctx, sa| rekey_child::activated(ctx, sa, child));
                }
                Deferred::Superseded { old, new } => self.supersede(old, new),
                Deferred::ReauthFailed(old) => reauth::again(self, old),
                Deferred::Redundant(id) => {
                    // The peer closes it. If it does not, the timer does.
                    let at = self.ctx.now.mono + self.ctx.config.timers.tombstone;
                    if self.sas.get(id).is_some_and(IkeSa::is_established) {
                        self.ctx.timers.set(TimerKey::new(id, TimerKind::Tombstone), at);
                    }
                }
            }
        }
    }

    /// Counts a datagram that was dropped before anything about it was authenticated.
    pub(crate) fn dropped(&mut self) {
        self.ctx.stats.dropped = self.ctx.stats.dropped.saturating_add(1);
    }

    /// Whether a stranger may be answered with an error now.
    pub(crate) fn may_answer_stranger(&mut self) -> bool {
        within(&mut self.strangers, self.ctx.now.mono, STRANGER_RATE)
    }

    /// Whether a crash token may be shown now.
    pub(crate) fn may_show_token(&mut self, source: Source) -> bool {
        let (all, each) = TOKEN_RATE;
        let now = self.ctx.now.mono;
        if now.since(self.tokens.0) >= std::time::Duration::from_secs(1) {
            self.tokens_of.clear();
        }
        if self.tokens_of.get(&source).is_some_and(|shown| *shown >= each)
            || !within(&mut self.tokens, now, all)
        {
            return false;
        }
        let shown = self.tokens_of.entry(source).or_default();
        *shown = shown.saturating_add(1);
        true
    }

    /// Reports when the cookie mode changed.
    fn report_cookie_mode(&mut self) {
        let is = self.ctx.half_open.update_cookie_mode(&self.ctx.config.limits);
        if is != self.cookie_mode {
            self.cookie_mode = is;
            self.ctx.event(Event::CookieMode(is));
        }
    }

    fn remove(&mut self, id: IkeSaId) {
        if let Some(mut sa) = self.sas.remove(id) {
            lifecycle::uncount(&mut self.ctx, &mut sa);
        }
        self.ctx.timers.cancel_sa(id);
        self.ctx.half_open.remove(id);
    }

    fn adopt(&mut self, sa: Box<IkeSa>) {
        if self.sas.by_spi(sa.own_spi()).is_some() {
            // One chance in 2^56: the peer will find nobody there and start again.
            self.ctx.timers.cancel_sa(sa.id);
            return;
        }
        self.sas.insert(sa);
    }

    fn supersede(&mut self, old: IkeSaId, new: IkeSaId) {
        let asks = self.with_sa(old, |ctx, sa| {
            let asks = create_child::asks_for_new(ctx, sa);
            let another = sa.carries();
            lifecycle::close(ctx, sa, CloseReason::Replaced, Tell::Peer);
            asks.then_some(another)
        });
        let Some(Some(another)) = asks else { return };
        // What was wanted of the old one is still wanted, but for a first child where the new one
        // makes that by itself.
        self.with_sa(new, |ctx, sa| {
            let first = !sa.children.is_empty() || create_child::asks_for_new(ctx, sa);
            if another || !first {
                sa.enqueue(Task::CreateChild);
                advance(ctx, sa);
            }
        });
    }

    fn succeed(&mut self, old: IkeSaId, new: IkeSaId, delete: bool) {
        let Some(mut successor) = self.sas.take(new) else {
            self.with_sa(old, advance);
            return;
        };
        self.with_sa(old, |ctx, old| rekey_ike::succeed(ctx, old, &mut successor, delete));
        self.sas.insert(successor);
    }

    // --- time ----------------------------------------------------------------------------------

    /// Ends what the wall clock ends, at every input: a jump of the clock is no excuse.
    fn expire(&mut self) {
        while let Some(id) = self.ctx.timers.pop_wall(self.ctx.now.wall) {
            self.with_sa(id, |ctx, sa| {
                lifecycle::close(ctx, sa, CloseReason::Expired, Tell::Peer);
            });
            self.run_deferred();
        }
    }

    fn timeout(&mut self) {
        while let Some(key) = self.ctx.timers.pop(self.ctx.now.mono) {
            self.timer(key);
            self.run_deferred();
        }
    }

    fn timer(&mut self, key: TimerKey) {
        if key.sa == ENGINE {
            if key.kind == TimerKind::CookieSecret {
                self.jar.rotate(self.rng.array());
                self.arm_cookie_secret();
            }
            return;
        }
        if key.kind == TimerKind::Reauth {
            return reauth::start(self, key.sa);
        }
        if key.kind == TimerKind::Action {
            return self.lost(Token(key.sub));
        }
        if key.kind == TimerKind::HalfOpen {
            return self.too_slow(key.sa);
        }
        if key.kind == TimerKind::Overlap && key.sub == 0 {
            return duplicate::due(self, key.sa);
        }
        self.with_sa(key.sa, |ctx, sa| match key.kind {
            TimerKind::Retransmit => {
                if init::retransmit_due(ctx, sa) && !exchange::retransmit(ctx, sa) {
                    lifecycle::peer_dead(ctx, sa);
                }
            }
            TimerKind::Dpd => dpd::due(ctx, sa),
            TimerKind::RekeyIke => {
                sa.enqueue(Task::RekeyIke);
                advance(ctx, sa);
            }
            TimerKind::RekeyChild => {
                sa.enqueue(Task::RekeyChild(ChildSaId(key.sub)));
                advance(ctx, sa);
            }
            TimerKind::CreateChild => {
                sa.enqueue(Task::CreateChild);
                advance(ctx, sa);
            }
            TimerKind::Keepalive => lifecycle::keepalive(ctx, sa),
            TimerKind::Tombstone if sa.redundant && sa.is_established() => {
                lifecycle::close(ctx, sa, CloseReason::Rekeyed, Tell::Peer);
            }
            TimerKind::Tombstone => lifecycle::finish(ctx, sa),
            TimerKind::Activate => rekey_child::activate(ctx, sa, ChildSaId(key.sub)),
            TimerKind::FollowupKe => followup::expired(ctx, sa),
            TimerKind::Reassembly => sa.inbox.clear(key.sub != 0),
            TimerKind::Overlap => lifecycle::close(ctx, sa, CloseReason::Redirected, Tell::Peer),
            TimerKind::Action
            | TimerKind::HalfOpen
            | TimerKind::Deadline
            | TimerKind::Reauth
            | TimerKind::CookieSecret => {}
        });
    }

    /// A handshake was not finished in time. Of strangers that never came to IKE_AUTH a few are
    /// reported each second: often one who cannot be heard any more is among them.
    fn too_slow(&mut self, id: IkeSaId) {
        let stranger = self.sas.get(id).is_some_and(init::is_stranger);
        let report = stranger && self.may_answer_stranger();
        self.with_sa(id, |ctx, sa| {
            if exchange::auth::too_slow(ctx, sa) {
                return;
            }
            if report {
                ctx.refuse(init::unfinished(sa));
            }
            let reason = CloseReason::Failed("the handshake took too long".to_owned());
            lifecycle::close(ctx, sa, reason, Tell::Nobody);
        });
    }

    /// Cookie secrets change only while cookies may be asked for: an idle engine has no timer.
    pub(crate) fn arm_cookie_secret(&mut self) {
        let key = TimerKey::new(ENGINE, TimerKind::CookieSecret);
        if self.ctx.half_open.is_empty() || self.ctx.timers.is_set(key) {
            return;
        }
        let at = self.ctx.now.mono + self.ctx.config.timers.cookie_secret;
        self.ctx.timers.set(key, at);
    }
}

/// Owner of the engine's own timers; no SA has this id.
const ENGINE: IkeSaId = IkeSaId(0);

/// Counts in whole seconds; whether the count is within the rate.
fn within(counted: &mut (Timestamp, u64), now: Timestamp, rate: u64) -> bool {
    if now.since(counted.0) >= std::time::Duration::from_secs(1) {
        *counted = (now, 0);
    }
    counted.1 = counted.1.saturating_add(1);
    counted.1 <= rate
}

/// Checks a configuration.
fn usable(
    config: EngineConfig,
    crypto: &'static CryptoProvider,
) -> Result<EngineConfig, EngineError> {
    if config.ike_suites.is_empty() {
        return Err(EngineError::NoIkeSuite);
    }
    if config.esp_suites.is_empty() {
        return Err(EngineError::NoEspSuite);
    }
    let ike = config.ike_suites.iter().filter(|suite| !suite.supported_by(crypto));
    let esp = config.esp_suites.iter().filter(|suite| !suite.supported_by(crypto));
    let mut unsupported = ike.map(ToString::to_string).chain(esp.map(ToString::to_string));
    let found = unsupported.next();
    match found {
        Some(suite) => Err(EngineError::UnsupportedSuite { suite, provider: crypto.name }),
        None => Ok(config),
    }
}

/// The shard whose SA a datagram belongs to, from our SPI's first octet; `None` for a first
/// request, which any shard may take (by a hash of source and SPI, so that a repeated one goes the
/// same way), and for what is no IKE message.
pub fn shard_of(datagram: &[u8]) -> Option<u8> {
    let header = Header::peek(datagram.get(..HEADER_LEN)?).ok()?;
    let ours = if header.flags.initiator { header.spi_r } else { header.spi_i };
    if ours == IkeSpi::ZERO {
        return None;
    }
    ours.0.to_be_bytes().first().copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{ExchangeType, Flags, Writer};

    fn header(spi_i: u64, spi_r: u64, initiator: bool) -> Vec<u8> {
        let mut w = Writer::new();
        let flags = Flags::new(initiator, false);
        Header::new(IkeSpi(spi_i), IkeSpi(spi_r), ExchangeType::Informational, flags, 0)
            .write(&mut w);
        w.into_vec()
    }

    #[test]
    fn a_datagram_names_its_shard_in_the_spi_that_is_ours() {
        let (theirs, ours) = (0xaa00_0000_0000_0001, 0x0500_0000_0000_0002);

        assert_eq!(shard_of(&header(theirs, ours, true)), Some(5));
        assert_eq!(shard_of(&header(ours, theirs, false)), Some(5));
        assert_eq!(shard_of(&header(theirs, 0, true)), None);
        assert_eq!(shard_of(&[0; 27]), None);
    }
}
