//! Follows the engine's events: leases become active and lost, the audit trail and the log are
//! written. Runs on its own thread, because the store syncs to disk.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use ike::event::{CloseReason, Event};
use ike::io::{ChildSaId, ChildUse, IkeSaId, LeaseId};
use pki::{Actor, AuditEvent, Authority, Carried, Lease, TunnelFacts, UnixTime};

use super::Tunnels;
use crate::obs::{Lives, Refusals, Report};
use crate::site::Sites;
use crate::sys::clock;

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
        }
    }

    /// Acts on one event.
    pub fn event(&mut self, event: &Event) {
        self.lives.note(event, clock::unix_seconds());
        self.sites.event(event, Instant::now());
        match event {
            Event::IkeUp {
                ike, spis, local, remote, identity, lease, suite, addresses, ..
            } => {
                tracing::info!(
                    ike = ike.0, %local, %remote, %identity, lease = %lease.0, %suite, ?addresses,
                    "IKE SA established"
                );
                let facts = TunnelFacts {
                    local: *local,
                    remote: *remote,
                    spi_i: spis.0,
                    spi_r: spis.1,
                    ike_suite: suite.clone(),
                    esp_suite: None,
                    carried: None,
                };
                self.connected(*ike, lease, facts);
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
            }
            Event::Moved { ike, from, to } => {
                tracing::info!(ike = ike.0, %from, %to, "peer moved");
                self.moved(*ike, *to);
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

    fn connected(&mut self, ike: IkeSaId, lease: &LeaseId, facts: TunnelFacts) {
        let tally = self.tallies.entry(ike).or_default();
        tally.facts = Some(facts.clone());
        tally.since = Some(Instant::now());
        self.up.entry(lease.clone()).or_default().insert(ike);
        match self.authority.connected(&lease.0, now()) {
            Ok(change) => {
                let peer = Actor::Peer(facts.remote.ip());
                let event = AuditEvent::new("ike.sa.up", &peer, now()).lease(&change.lease);
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
            if let Err(error) = self.authority.disconnected(&lease.0, &reason.to_string(), now()) {
                tracing::debug!(lease = %lease.0, %error, "disconnection not recorded");
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
            let mut event = AuditEvent::new("ike.sa.rekey", &Actor::System, now()).lease(&record);
            event.tunnel = facts;
            self.audit(&event);
        }
    }

    /// The tunnel goes on from another address.
    fn moved(&mut self, ike: IkeSaId, to: std::net::SocketAddr) {
        let Some(facts) = self.tallies.get_mut(&ike).and_then(|tally| tally.facts.as_mut()) else {
            return;
        };
        let from = std::mem::replace(&mut facts.remote, to);
        let facts = facts.clone();
        let lease = self.up.iter().find(|(_, sas)| sas.contains(&ike)).map(|(id, _)| id.clone());
        if let Some(record) = lease.and_then(|lease| self.lease(&lease)) {
            let event = AuditEvent::new("ike.sa.move", &Actor::Peer(to.ip()), now());
            self.audit(&event.lease(&record).tunnel(facts).reason(format!("from {from}")));
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
            let mut event =
                AuditEvent::new("ike.sa.down", &Actor::System, now()).lease(&record).reason(reason);
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

fn name(lease: Option<&LeaseId>) -> &str {
    lease.map_or("-", |lease| &lease.0)
}

fn now() -> UnixTime {
    UnixTime::from_micros(clock::wall().0)
}
