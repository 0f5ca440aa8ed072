//! Follows the engine's events: leases become active and lost, the audit trail and the log are
//! written. Runs on its own thread, because the store syncs to disk.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ike::event::{CloseReason, Event, Refusal};
use ike::io::{ChildSaId, ChildUse, IkeSaId, LeaseId};
use ike::snapshot::Snapshot;
use ike::wire::NotifyType;
use pki::{Actor, AuditEvent, Authority, Carried, Lease, TunnelFacts, UnixTime};

use super::Tunnels;
use crate::obs::{Lives, Refusals, Report};
use crate::site::Sites;
use crate::sys::clock;

/// Moves of one tunnel are written down this far apart: a peer can move with every packet, and the
/// trail is kept for long.
const MOVES: Duration = Duration::from_secs(30);

/// See the module.
#[derive(Debug)]
pub struct Follower {
    authority: Arc<Authority>,
    tunnels: Tunnels,
    refusals: Arc<Refusals>,
    lives: Arc<Lives>,
    sites: Arc<Sites>,
    up: BTreeMap<LeaseId, BTreeSet<IkeSaId>>,
    tallies: BTreeMap<IkeSaId, Tally>,
    /// Tunnels with moves that are not written down yet.
    moving: BTreeSet<IkeSaId>,
    /// Leases whose last tunnel is gone while that could not be recorded, with how it went.
    lost: BTreeMap<LeaseId, String>,
}

/// What an IKE SA carried. Its end is written down when the last child has told its counters,
/// which is after the IKE SA itself is gone.
#[derive(Debug, Default)]
struct Tally {
    facts: Option<TunnelFacts>,
    /// When it came up; for a rekeyed one when the first of its line did.
    since: Option<Instant>,
    children: BTreeSet<ChildSaId>,
    bytes_in: u64,
    bytes_out: u64,
    ended: Option<(LeaseId, CloseReason)>,
    moves: Moves,
}

/// Moves of a tunnel and what of them is written down.
#[derive(Debug, Default)]
struct Moves {
    written: Option<Instant>,
    /// Where the tunnel was before those that are not written down, and how many they are.
    pending: Option<(SocketAddr, u64)>,
}

impl Moves {
    fn note(&mut self, from: SocketAddr) {
        let (_, count) = self.pending.get_or_insert((from, 0));
        *count = count.saturating_add(1);
    }

    /// What is to be written now: where from, and how many moves more than this one there were.
    fn due(&mut self, now: Instant) -> Option<(SocketAddr, u64)> {
        if self.written.is_some_and(|written| now.duration_since(written) < MOVES) {
            return None;
        }
        let (from, count) = self.pending.take()?;
        self.written = Some(now);
        Some((from, count.saturating_sub(1)))
    }
}

impl Follower {
    /// A follower that has seen nothing.
    pub fn new(
        authority: Arc<Authority>,
        tunnels: Tunnels,
        refusals: Arc<Refusals>,
        lives: Arc<Lives>,
        sites: Arc<Sites>,
    ) -> Self {
        Self {
            authority,
            tunnels,
            refusals,
            lives,
            sites,
            up: BTreeMap::new(),
            tallies: BTreeMap::new(),
            moving: BTreeSet::new(),
            lost: BTreeMap::new(),
        }
    }

    /// Writes down what has waited long enough. To be called every second or so.
    pub fn tick(&mut self, now: Instant) {
        for ike in std::mem::take(&mut self.moving) {
            self.write_moves(ike, now);
        }
        for (lease, reason) in std::mem::take(&mut self.lost) {
            self.record_lost(lease, reason);
        }
    }

    /// A tunnel of the earlier process goes on in this one.
    pub fn resumed(&mut self, snapshot: &Snapshot) {
        let (ike, lease) = (snapshot.ike, &snapshot.grant.lease);
        self.lives.resumed(ike, lease, clock::unix_seconds());
        let suite = snapshot.children.last().map(|child| child.suite.to_string());
        let facts = TunnelFacts {
            local: snapshot.local,
            remote: snapshot.remote,
            nat: snapshot.peer.peer_behind_nat,
            spi_i: snapshot.spi_i.0,
            spi_r: snapshot.spi_r.0,
            ike_suite: snapshot.suite.to_string(),
            esp_suite: suite,
            carried: None,
        };
        self.connected(ike, lease, facts, "ike.sa.resume");
        if let Some(tally) = self.tallies.get_mut(&ike) {
            tally.since = Instant::now().checked_sub(snapshot.connected_for).or(tally.since);
            let alive = snapshot.children.iter().filter(|child| !child.closing);
            tally.children = alive.map(|child| child.id).collect();
        }
    }

    /// Acts on one event.
    pub fn event(&mut self, event: &Event) {
        self.lives.note(event, clock::unix_seconds());
        self.sites.event(event, Instant::now());
        match event {
            Event::IkeUp {
                ike,
                spis,
                local,
                remote,
                nat,
                identity,
                lease,
                suite,
                addresses,
                ..
            } => {
                tracing::info!(
                    ike = ike.0, %local, %remote, nat, %identity, lease = %lease.0, %suite, ?addresses,
                    "IKE SA established"
                );
                let facts = TunnelFacts {
                    local: *local,
                    remote: *remote,
                    nat: *nat,
                    spi_i: spis.0,
                    spi_r: spis.1,
                    ike_suite: suite.to_string(),
                    esp_suite: None,
                    carried: None,
                };
                self.connected(*ike, lease, facts, "ike.sa.up");
            }
            Event::IkeDown { ike, lease, reason, .. } => {
                tracing::info!(ike = ike.0, lease = %name(lease.as_ref()), %reason, "IKE SA closed");
                if let Some(lease) = lease {
                    self.disconnected(*ike, lease, reason);
                }
            }
            Event::ChildUp {
                child,
                ike,
                lease,
                spi_in,
                spi_out,
                suite,
                ts_local,
                ts_remote,
                rekeys,
            } => {
                tracing::info!(
                    ike = ike.0, child = child.0, lease = %lease.0,
                    spi_in = %format_args!("{spi_in:08x}"),
                    spi_out = %format_args!("{spi_out:08x}"),
                    %suite, %ts_local, %ts_remote, rekeys = rekeys.map(|c| c.0),
                    "child SA installed"
                );
                let tally = self.tallies.entry(*ike).or_default();
                tally.children.insert(*child);
                if let Some(facts) = &mut tally.facts {
                    facts.esp_suite = Some(suite.to_string());
                }
            }
            Event::ChildDown { child, ike, lease, reason, usage } => {
                let ChildUse { bytes_in, bytes_out, .. } = usage.unwrap_or_default();
                tracing::info!(
                    ike = ike.0, child = child.0, lease = %lease.0, %reason, bytes_in, bytes_out,
                    "child SA removed"
                );
                if let Some(tally) = self.tallies.get_mut(ike) {
                    tally.children.remove(child);
                    tally.bytes_in = tally.bytes_in.saturating_add(bytes_in);
                    tally.bytes_out = tally.bytes_out.saturating_add(bytes_out);
                    self.settle(*ike);
                }
            }
            Event::Refused(refusal) => {
                self.refusals.report(&Report::from(refusal), clock::now());
                self.refused(refusal);
            }
            Event::Moved { ike, from, to, nat } => {
                tracing::debug!(ike = ike.0, %from, %to, nat, "peer moved");
                self.moved(*ike, *to, *nat, Instant::now());
            }
            Event::Redirected { ike, connection, to } => {
                tracing::info!(ike = ike.0, site = %connection, ?to, "sent to another gateway");
            }
            Event::CookieMode(on) => {
                if *on {
                    tracing::warn!("many half-open IKE SAs: new peers must return a cookie");
                } else {
                    tracing::info!("cookies are no longer asked for");
                }
            }
        }
    }

    /// Writes down who did not prove who it is, or may not come in: bounded, because everybody can
    /// be refused as often as it likes.
    fn refused(&self, refusal: &Refusal) {
        let Some((peer, event)) = auth_failure(refusal, wall_now()) else { return };
        let what = format!("ike {}", refusal.code);
        if let Err(error) = self.authority.record_refusal(&what, peer, event) {
            tracing::error!(%error, "refused authentication not recorded");
        }
    }

    fn connected(
        &mut self,
        ike: IkeSaId,
        lease: &LeaseId,
        facts: TunnelFacts,
        action: &'static str,
    ) {
        let tally = self.tallies.entry(ike).or_default();
        tally.facts = Some(facts.clone());
        tally.since = Some(Instant::now());
        self.up.entry(lease.clone()).or_default().insert(ike);
        self.lost.remove(lease);
        match self.authority.connected(&lease.0, wall_now()) {
            Ok(change) => {
                let peer = Actor::Peer(facts.remote.ip());
                let event = AuditEvent::new(action, &peer, wall_now()).lease(&change.lease);
                self.audit(&event.tunnel(facts));
            }
            Err(error) => {
                // It ended between authorisation and establishment; its tunnels end with it.
                tracing::warn!(lease = %lease.0, %error, "tunnel of an ended lease closed");
                if let Some(record) = self.lease(lease)
                    && let Err(error) = self.tunnels.end(&record, CloseReason::Revoked)
                {
                    tracing::error!(lease = %lease.0, %error, "tunnel not confirmed closed");
                }
            }
        }
    }

    fn disconnected(&mut self, ike: IkeSaId, lease: &LeaseId, reason: &CloseReason) {
        let last = match self.up.get_mut(lease) {
            Some(sas) => {
                sas.remove(&ike);
                sas.is_empty()
            }
            None => false,
        };
        if *reason == CloseReason::Rekeyed {
            self.succeed(ike, lease);
        } else {
            self.tallies.entry(ike).or_default().ended = Some((lease.clone(), reason.clone()));
            self.settle(ike);
        }
        if last {
            self.up.remove(lease);
            self.record_lost(lease.clone(), reason.to_string());
        }
    }

    /// Durably: a lease that only seemed active would keep its address until its certificate ends.
    fn record_lost(&mut self, lease: LeaseId, reason: String) {
        match self.authority.disconnected(&lease.0, &reason, wall_now()) {
            Ok(_) => {}
            Err(error @ (pki::Error::NotFound { .. } | pki::Error::LeaseState { .. })) => {
                tracing::debug!(lease = %lease.0, %error, "disconnection not recorded");
            }
            Err(error) => {
                tracing::warn!(lease = %lease.0, %error, "disconnection not recorded yet");
                self.lost.insert(lease, reason);
            }
        }
    }

    /// A rekeyed IKE SA's children live on under its successor, which came up just before.
    fn succeed(&mut self, old: IkeSaId, lease: &LeaseId) {
        let Some(successor) = self.up.get(lease).and_then(|sas| sas.last().copied()) else {
            return;
        };
        let before = self.tallies.remove(&old).unwrap_or_default();
        let tally = self.tallies.entry(successor).or_default();
        tally.since = before.since.or(tally.since);
        // A rekey is no way to have more moves written.
        tally.moves = before.moves;
        self.moving.insert(successor);
        if let (Some(now), Some(before)) = (&mut tally.facts, before.facts)
            && now.esp_suite.is_none()
        {
            now.esp_suite = before.esp_suite;
        }
        let facts = tally.facts.clone();
        tally.children.extend(before.children);
        tally.bytes_in = tally.bytes_in.saturating_add(before.bytes_in);
        tally.bytes_out = tally.bytes_out.saturating_add(before.bytes_out);
        if let Some(record) = self.lease(lease) {
            let mut event =
                AuditEvent::new("ike.sa.rekey", &Actor::System, wall_now()).lease(&record);
            event.tunnel = facts;
            self.audit(&event);
        }
    }

    /// The tunnel goes on from another address.
    fn moved(&mut self, ike: IkeSaId, to: SocketAddr, nat: bool, now: Instant) {
        let Some(tally) = self.tallies.get_mut(&ike) else { return };
        let Some(facts) = &mut tally.facts else { return };
        let from = std::mem::replace(&mut facts.remote, to);
        facts.nat = nat;
        tally.moves.note(from);
        self.write_moves(ike, now);
    }

    fn write_moves(&mut self, ike: IkeSaId, now: Instant) {
        let Some(tally) = self.tallies.get_mut(&ike) else { return };
        let Some((from, more)) = tally.moves.due(now) else {
            if tally.moves.pending.is_some() {
                self.moving.insert(ike);
            }
            return;
        };
        let Some(facts) = tally.facts.clone() else { return };
        let to = facts.remote;
        tracing::info!(ike = ike.0, %from, %to, more, "peer moved");
        let lease = self.up.iter().find(|(_, sas)| sas.contains(&ike)).map(|(id, _)| id.clone());
        if let Some(record) = lease.and_then(|lease| self.lease(&lease)) {
            let peer = Actor::Peer(to.ip());
            let mut event = AuditEvent::new("ike.sa.move", &peer, wall_now()).lease(&record);
            event.left_out = (more > 0).then_some(more);
            self.audit(&event.tunnel(facts).reason(format!("from {from}")));
        }
    }

    /// Writes the end of an IKE SA down once everything about it is known.
    fn settle(&mut self, ike: IkeSaId) {
        let complete = |tally: &Tally| tally.ended.is_some() && tally.children.is_empty();
        if !self.tallies.get(&ike).is_some_and(complete) {
            return;
        }
        let Some(Tally { facts, since, bytes_in, bytes_out, ended: Some((lease, reason)), .. }) =
            self.tallies.remove(&ike)
        else {
            return;
        };
        if let Some(record) = self.lease(&lease) {
            let lived = since.map(|since| since.elapsed().as_micros()).unwrap_or_default();
            let micros = u64::try_from(lived).unwrap_or(u64::MAX);
            let carried = Some(Carried { bytes_in, bytes_out, micros });
            let mut event = AuditEvent::new("ike.sa.down", &Actor::System, wall_now())
                .lease(&record)
                .reason(reason);
            event.tunnel = facts.map(|facts| TunnelFacts { carried, ..facts });
            self.audit(&event);
        }
    }

    fn lease(&self, lease: &LeaseId) -> Option<Lease> {
        match self.authority.lease(&lease.0) {
            Ok(lease) => lease,
            Err(error) => {
                tracing::error!(lease = %lease.0, %error, "lease not readable");
                None
            }
        }
    }

    fn audit(&self, event: &AuditEvent) {
        if let Err(error) = self.authority.record_audit(event) {
            tracing::error!(action = %event.action, %error, "audit event not recorded");
        }
    }
}

/// The event of a refused authentication, and who was refused.
fn auth_failure(refusal: &Refusal, at: UnixTime) -> Option<(Option<IpAddr>, AuditEvent)> {
    if refusal.notify != Some(NotifyType::AuthenticationFailed) {
        return None;
    }
    let report = Report::from(refusal).clean();
    let peer = report.source.map(|source| source.to_canonical());
    let actor = peer.map_or(Actor::System, Actor::Peer);
    let event = AuditEvent::new("ike.sa.auth_fail", &actor, at);
    Some((peer, event.refused(&report.code).object(&report.identity)))
}

fn name(lease: Option<&LeaseId>) -> &str {
    lease.map_or("-", |lease| &lease.0)
}

fn wall_now() -> UnixTime {
    UnixTime::from_micros(clock::wall().0)
}

#[cfg(test)]
mod tests {
    use ike::event::Blame;

    use super::*;

    #[test]
    fn a_refused_authentication_is_told_with_who_and_why() {
        let refusal = |notify: Option<NotifyType>| Refusal {
            ike: Some(IkeSaId(1)),
            remote: Some("192.0.2.7:4500".parse().unwrap()),
            identity: None,
            blame: Blame::Incompatible,
            notify,
            code: "unknown_issuer",
            what: "the certificate is from another CA".to_owned(),
            fix: "enrol".to_owned(),
        };
        let at = UnixTime::from_secs(7);
        let failed = refusal(Some(NotifyType::AuthenticationFailed));
        let (peer, event) = auth_failure(&failed, at).unwrap();
        assert_eq!(peer, "192.0.2.7".parse().ok());
        assert_eq!((event.action.as_str(), event.at), ("ike.sa.auth_fail", at));
        assert_eq!(event.reason.as_deref(), Some("unknown_issuer"));
        assert_eq!(event.outcome, pki::AuditOutcome::Failure);
        assert_eq!(event.actor, Actor::Peer("192.0.2.7".parse().unwrap()));
        // Others are no matter of who it is.
        assert!(auth_failure(&refusal(Some(NotifyType::NoProposalChosen)), at).is_none());
        assert!(auth_failure(&refusal(None), at).is_none());
    }

    #[test]
    fn a_peer_that_moves_with_every_packet_is_written_down_now_and_then() {
        let address = |port: u16| SocketAddr::from(([192, 0, 2, 7], port));
        let (start, mut moves, mut written) = (Instant::now(), Moves::default(), Vec::new());
        for second in 0..60u16 {
            for packet in 0..100 {
                moves.note(address(second * 100 + packet + 1));
                written.extend(moves.due(start + Duration::from_secs(second.into())));
            }
        }
        written.extend(moves.due(start + Duration::from_secs(60)));
        assert_eq!(written[0], (address(1), 0), "the first at once");
        assert_eq!(written[1], (address(2), 2_999), "the rest together");
        assert_eq!(written.len(), 3);
        let told: u64 = written.iter().map(|(_, more)| more + 1).sum();
        assert_eq!(told, 6_000, "none is lost");
        assert_eq!(moves.due(start + Duration::from_secs(600)), None);
    }
}
