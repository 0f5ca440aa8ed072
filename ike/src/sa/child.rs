//! A child SA: what is installed in the data plane, and when it ends.

use crate::config::Volume;
use crate::crypto::keymat::{self, Nonces};
use crate::crypto::{CryptoError, EspSuite, SecretBytes, SharedSecret};
use crate::event::{CloseReason, Event, Selectors};
use crate::io::{
    Action, ChildKeys, ChildLimits, ChildSaId, ChildUse, Hosts, IkeSaId, InstallChild, LeaseId,
    TimerKind,
};
use crate::rng::SaRng;
use crate::sa::context::{Ctx, Purpose};
use crate::sa::protect::Protection;
use crate::sa::timers::TimerKey;
use crate::sa::{IkeSa, jittered};
use crate::time::Timestamp;
use crate::view::ChildView;
use crate::wire::TrafficSelector;

/// The last sequence number without ESN, and where a child is rekeyed before that: even at millions
/// of packets per second there are minutes left.
const SEQUENCE_END: u64 = 0xffff_ffff;
const SEQUENCE_SOFT: u64 = 0xc000_0000;

/// Where a child SA is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChildState {
    /// [`Action::InstallChild`] is not answered yet.
    Installing,
    /// Installed.
    Up,
    /// We are about to delete it: its DELETE is queued or sent. Removed from the data plane when
    /// the peer's half is gone too, or at once when it must end.
    Deleting,
}

/// A child SA of an IKE SA.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Child {
    pub(crate) id: ChildSaId,
    pub(crate) state: ChildState,
    pub(crate) spi_in: u32,
    pub(crate) spi_out: u32,
    pub(crate) suite: EspSuite,
    pub(crate) keys_in: ChildKeys,
    pub(crate) keys_out: ChildKeys,
    pub(crate) transport: bool,
    pub(crate) ts_local: Vec<TrafficSelector>,
    pub(crate) ts_remote: Vec<TrafficSelector>,
    pub(crate) hosts: Hosts,
    pub(crate) installed_at: Timestamp,
    pub(crate) outbound_active: bool,
    /// It is already gone from the data plane; only the DELETE exchange is left.
    pub(crate) removed: bool,
    /// Rekeyed: the successor, which survives this one.
    pub(crate) replaced_by: Option<ChildSaId>,
    /// A rekey of the peer's made it: the peer deletes what it replaces.
    pub(crate) by_peer: bool,
}

impl Child {
    /// Whether it is installed, and nobody closes it.
    pub(crate) fn is_up(&self) -> bool {
        self.state == ChildState::Up && !self.removed
    }

    pub(crate) fn view(&self, now: Timestamp) -> ChildView {
        ChildView {
            id: self.id,
            spi_in: self.spi_in,
            spi_out: self.spi_out,
            suite: self.suite.clone(),
            ts_local: self.ts_local.clone(),
            ts_remote: self.ts_remote.clone(),
            hosts: self.hosts,
            transport: self.transport,
            installed_at: self.installed_at,
            age: now.since(self.installed_at),
            outbound_active: self.outbound_active,
        }
    }
}

/// Takes a child out of the data plane, at once. What the peer is told comes later, if at all:
/// the end of a lease must not wait for the peer.
pub(crate) fn remove_from_dataplane(
    ctx: &mut Ctx,
    sa: &mut IkeSa,
    id: ChildSaId,
    reason: CloseReason,
) {
    let Some(child) = sa.children.get_mut(&id) else {
        return;
    };
    if std::mem::replace(&mut child.removed, true) {
        return;
    }
    // What never came up does not go down.
    let was_up = child.state != ChildState::Installing;
    child.state = ChildState::Deleting;
    ctx.timers.cancel(TimerKey::sub(sa.id, TimerKind::RekeyChild, id.0));
    ctx.timers.cancel(TimerKey::sub(sa.id, TimerKind::Activate, id.0));
    ctx.reauths.settled(id);
    let lease = sa.lease_id();
    let last = lease.as_ref().is_none_or(|lease| ctx.leases.child_out(lease, id));
    ctx.removing(sa.id);
    ctx.act(
        sa.id,
        Purpose::Remove { child: id, lease: lease.filter(|_| was_up), reason },
        Action::RemoveChild { child: id, last },
    );
}

/// What a child to be installed is made of.
#[derive(Debug)]
pub(crate) struct NewChild {
    pub(crate) spi_in: u32,
    pub(crate) spi_out: u32,
    pub(crate) suite: EspSuite,
    pub(crate) keys_in: ChildKeys,
    pub(crate) keys_out: ChildKeys,
    pub(crate) ts_local: Vec<TrafficSelector>,
    pub(crate) ts_remote: Vec<TrafficSelector>,
    /// Transport instead of tunnel mode.
    pub(crate) transport: bool,
    pub(crate) outbound_active: bool,
    pub(crate) rekeys: Option<ChildSaId>,
}

/// Has a child installed under the SA's lease. `None` when there is no lease.
pub(crate) fn install(ctx: &mut Ctx, sa: &mut IkeSa, new: NewChild) -> Option<ChildSaId> {
    let limits = limits(ctx, &mut sa.rng, &new.suite);
    let grant = &sa.auth.as_ref()?.grant;
    let id = ChildSaId(ctx.fresh_id());
    let hosts = sa.hosts();
    let child = Child {
        id,
        state: ChildState::Installing,
        spi_in: new.spi_in,
        spi_out: new.spi_out,
        suite: new.suite.clone(),
        keys_in: new.keys_in.clone(),
        keys_out: new.keys_out.clone(),
        transport: new.transport,
        ts_local: new.ts_local.clone(),
        ts_remote: new.ts_remote.clone(),
        hosts,
        installed_at: ctx.now.mono,
        outbound_active: new.outbound_active,
        removed: false,
        replaced_by: None,
        by_peer: !new.outbound_active,
    };
    let action = InstallChild {
        ike: sa.id,
        child: id,
        lease: grant.lease.clone(),
        role: grant.role.clone(),
        reqid: grant.reqid,
        addresses: if sa.is_client() { Vec::new() } else { grant.addresses.clone() },
        networks: grant.networks.clone(),
        spi_in: new.spi_in,
        spi_out: new.spi_out,
        suite: new.suite,
        keys_in: new.keys_in,
        keys_out: new.keys_out,
        transport: new.transport,
        limits,
        deadline: grant.deadline,
        hosts,
        ts_local: new.ts_local,
        ts_remote: new.ts_remote,
        outbound_active: new.outbound_active,
        rekeys: new.rekeys,
        restored: false,
    };
    ctx.leases.child_in(&action.lease, id);
    sa.children.insert(id, Box::new(child));
    ctx.act(sa.id, Purpose::Install(id), Action::InstallChild(Box::new(action)));
    Some(id)
}

/// How much a child of this suite may carry (RFC 7296 2.8).
pub(crate) fn limits(ctx: &Ctx, rng: &mut SaRng, suite: &EspSuite) -> ChildLimits {
    let Volume { bytes, packets } = ctx.config.volume;
    let mut limit = |after: Option<u64>| {
        let tenth = |after: u64| after.checked_div(10).unwrap_or_default();
        let soft = after.map(|after| after.saturating_sub(rng.below(tenth(after))));
        (soft, after.map(|after| after.saturating_mul(2)))
    };
    let (soft_bytes, hard_bytes) = limit(bytes);
    let (mut soft_packets, mut hard_packets) = limit(packets);
    if !suite.esn {
        // RFC 4303 3.3.3: a sequence number never comes twice under one key.
        let before = |limit: Option<u64>, end: u64| Some(limit.map_or(end, |limit| limit.min(end)));
        soft_packets = before(soft_packets, SEQUENCE_SOFT);
        hard_packets = before(hard_packets, SEQUENCE_END);
    }
    ChildLimits { soft_bytes, hard_bytes, soft_packets, hard_packets }
}

/// The keys of both directions (RFC 7296 2.17): ours to send is the initiator's when the exchange
/// that makes the child is ours.
///
/// # Errors
/// When the suite is not implemented, which its choice excludes.
pub(crate) fn derive_keys(
    protection: &Protection,
    suite: &EspSuite,
    nonces: Nonces<'_>,
    shared: &[&SharedSecret],
    we_initiate: bool,
) -> Result<(ChildKeys, ChildKeys), CryptoError> {
    let (encr, integ) = suite.key_lengths()?;
    let keys = keymat::ChildKeys::derive(
        protection.prf(),
        &protection.keys().d,
        nonces,
        shared,
        encr,
        integ,
    )?;
    let pair = |encr: &SecretBytes, integ: &SecretBytes| ChildKeys {
        encr: encr.expose().to_vec(),
        integ: integ.expose().to_vec(),
    };
    let (from_i, from_r) = (pair(&keys.ei, &keys.ai), pair(&keys.er, &keys.ar));
    Ok(if we_initiate { (from_r, from_i) } else { (from_i, from_r) })
}

/// The data plane has the child.
pub(crate) fn up(ctx: &mut Ctx, sa: &mut IkeSa, id: ChildSaId, rekeys: Option<ChildSaId>) {
    let Some(lease) = sa.lease_id() else {
        return;
    };
    let Some(child) = sa.children.get_mut(&id) else {
        return;
    };
    child.state = ChildState::Up;
    child.installed_at = ctx.now.mono;
    let event = Event::ChildUp {
        child: id,
        ike: sa.id,
        lease,
        spi_in: child.spi_in,
        spi_out: child.spi_out,
        suite: child.suite.clone(),
        ts_local: Selectors(child.ts_local.clone()),
        ts_remote: Selectors(child.ts_remote.clone()),
        rekeys,
    };
    ctx.event(event);
    arm_rekey(ctx, sa, id);
}

/// The data plane has let go of a child, with its final counters when it gave them.
pub(crate) fn down(
    ctx: &mut Ctx,
    ike: IkeSaId,
    child: ChildSaId,
    lease: Option<LeaseId>,
    reason: CloseReason,
    usage: Option<ChildUse>,
) {
    if let Some(lease) = lease {
        ctx.event(Event::ChildDown { child, ike, lease, reason, usage });
    }
}

/// Arms the rekey timer of a child that is now up.
pub(crate) fn arm_rekey(ctx: &mut Ctx, sa: &mut IkeSa, id: ChildSaId) {
    let after = ctx.config.timers.rekey_child;
    if after.is_zero() {
        return;
    }
    let at = ctx.now.mono + jittered(&mut sa.rng, after);
    ctx.timers.set(TimerKey::sub(sa.id, TimerKind::RekeyChild, id.0), at);
}
