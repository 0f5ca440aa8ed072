//! IKE SAs as the operator sees them, and what may be done to one.

use ike::event::CloseReason;
use ike::io::{Command, IkeSaId};
use pki::{Actor, AuditEvent};
use xfrm::model::Mode;

use super::{Instance, PATIENCE, failed, no_sa, now, pki_error, views};
use crate::actions::plane_suite;
use crate::admin::proto::AdminError;
use crate::admin::view;
use crate::driver::Message;

impl Instance {
    pub(super) fn sas(&self) -> Result<Vec<view::Sa>, AdminError> {
        let mut sas = self.engine.sas(PATIENCE).map_err(failed)?;
        sas.retain(|sa| sa.state == ike::SaState::Established);
        let children = sas.iter().flat_map(|sa| sa.children.iter().map(|c| c.id)).collect();
        let usages = self.plane.usages(children).wait(PATIENCE).map_err(failed)?;
        let refused = self.plane.refused().wait(PATIENCE).map_err(failed)?;
        let of = |sa: &ike::IkeSaView| {
            let reqid = self.peers.known_reqid(sa.lease.as_ref()?)?;
            refused.get(&reqid).copied()
        };
        Ok(sas
            .iter()
            .map(|sa| view::Sa { refused: of(sa).unwrap_or_default(), ..views::sa(sa, &usages) })
            .collect())
    }

    /// One IKE SA with what it waits for and what happened to it.
    pub(super) fn sa(&self, id: u64) -> Result<view::Sa, AdminError> {
        let found = self.sas()?.into_iter().find(|sa| sa.id == id);
        let mut sa = found.ok_or_else(|| no_sa(id))?;
        let views = self.engine.sas(PATIENCE).map_err(failed)?;
        let children = views.iter().flat_map(|view| &view.children);
        for child in children {
            if let Some(shown) = sa.children.iter_mut().find(|shown| shown.id == child.id.0) {
                shown.mtu = self.inner_mtu(child);
            }
        }
        let look = move |engine: &ike::Engine| engine.timers(IkeSaId(id));
        sa.timers = views::timers(&self.engine.look(look, PATIENCE).map_err(failed)?);
        sa.history = sa.lease.as_deref().map(|lease| self.lives.of(lease)).unwrap_or_default();
        Ok(sa)
    }

    /// The largest inner packet of a child that fits the path to its peer, whose MTU the kernel knows
    /// from the route, or learnt.
    pub(super) fn inner_mtu(&self, child: &ike::ChildView) -> Option<u32> {
        let suite = plane_suite(&child.suite)?;
        let remote = child.hosts.remote.ip().to_canonical();
        let path = xfrm::route::route_to(remote).ok()?.mtu;
        let encap = child.hosts.encap || !self.facts.capabilities.plain_esp;
        let mode = if child.transport { Mode::Transport } else { Mode::Tunnel };
        Some(xfrm::route::inner_mtu(path, suite, remote.is_ipv6(), encap, mode))
    }

    pub(super) fn sa_rekey(&self, actor: &Actor, id: u64) -> Result<String, AdminError> {
        let sas = self.engine.sas(PATIENCE).map_err(failed)?;
        let of_it = |sa: &&ike::IkeSaView| sa.id.0 == id && sa.state == ike::SaState::Established;
        let sa = sas.iter().find(of_it).ok_or_else(|| no_sa(id))?;
        tracing::info!(%actor, ike = id, "asked to rekey an IKE SA");
        self.audit_sa("operator.sa.rekey", actor, sa)?;
        for child in &sa.children {
            self.engine.post(Message::Command(Command::RekeyChild(child.id)));
        }
        self.engine.post(Message::Command(Command::RekeyIke(sa.id)));
        Ok(format!(
            "rekeying IKE SA {id} and {} child SA(s); see `runnel sa list`",
            sa.children.len()
        ))
    }

    /// Writes down what an operator did to an IKE SA, before it is done.
    pub(super) fn audit_sa(
        &self,
        what: &str,
        actor: &Actor,
        sa: &ike::IkeSaView,
    ) -> Result<(), AdminError> {
        let mut event = AuditEvent::new(what, actor, now()).object(sa.id.0);
        if let Some(id) = &sa.lease
            && let Some(lease) = self.authority.lease(&id.0).map_err(pki_error)?
        {
            event = event.lease(&lease);
        }
        self.authority.record_audit(&event).map_err(pki_error)
    }

    pub(super) fn sa_close(&self, actor: &Actor, id: u64) -> Result<view::Ended, AdminError> {
        let started = std::time::Instant::now();
        tracing::info!(%actor, ike = id, "asked to close an IKE SA");
        let sas = self.engine.sas(PATIENCE).map_err(failed)?;
        let sa = sas.iter().find(|sa| sa.id.0 == id).ok_or_else(|| no_sa(id))?;
        self.audit_sa("operator.sa.close", actor, sa)?;
        let existed =
            self.engine.close_sa(IkeSaId(id), CloseReason::Operator, PATIENCE).map_err(failed)?;
        if !existed {
            return Err(no_sa(id));
        }
        // Its removal is ahead of this question in the plane's queue.
        self.plane.children().wait(PATIENCE).map_err(failed)?;
        Ok(view::Ended {
            revoked: 0,
            leases: Vec::new(),
            sas_closed: 1,
            crl_number: self.authority.crl(now()).ok().map(|crl| crl.number),
            elapsed_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
            already: false,
            cancelled: Vec::new(),
            barred: Vec::new(),
            keys_barred: 0,
        })
    }
}
