//! From SAs to snapshots and back.

use std::sync::Arc;

use crate::config::EngineConfig;
use crate::crypto::CryptoProvider;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::exchange::{self, Task, create_child, dpd, rekey_child, sync};
use crate::io::{Action, ChildSaId, IkeSaId, InstallChild, TimerKind};
use crate::sa::child::{self, Child, ChildState};
use crate::sa::context::{Ctx, Purpose};
use crate::sa::lifecycle;
use crate::sa::protect::Protection;
use crate::sa::timers::TimerKey;
use crate::sa::window::{Cached, Outstanding, Window};
use crate::sa::{Authenticated, IkeSa, Path, PeerTraits, Phase};
use crate::snapshot::{
    SavedChild, SavedRequest, SavedResponse, SavedTraits, Snapshot, SnapshotError,
};
use crate::time::Now;
use crate::view::SaRole;
use crate::wire::ExchangeType;

impl IkeSa {
    /// What must survive, when there is anything: an SA that is not established starts again.
    pub(crate) fn snapshot(&self, ctx: &Ctx) -> Option<Snapshot> {
        if !self.is_established() || self.redundant {
            return None;
        }
        let auth = self.auth.as_deref()?;
        let protection = self.protection.as_deref()?;
        let now = ctx.now.mono;
        let left = |key| ctx.timers.at(key).map(|at| at.since(now));
        let traits = &self.traits;
        Some(Snapshot {
            ike: self.id,
            initiator: self.is_initiator(),
            client: self.is_client(),
            spi_i: self.spi_i,
            spi_r: self.spi_r,
            local: self.path.local,
            remote: self.path.remote,
            encap: self.path.encap,
            suite: protection.suite().clone(),
            keys: protection.shared_keys(),
            next_request: self.window.next_request(),
            next_expected: self.window.next_expected(),
            outstanding: saved_request(self),
            cached: self.window.cached().map(|response| SavedResponse {
                message_id: response.message_id,
                packets: response.packets.clone(),
            }),
            peer: SavedTraits {
                fragmentation: traits.fragmentation,
                peer_behind_nat: traits.peer_behind_nat,
                we_behind_nat: traits.we_behind_nat,
                nat_detection: traits.nat_detection,
                mobike: traits.mobike,
                redirect: traits.redirect,
                force_encap: traits.force_encap,
                hashes: traits.hashes.clone(),
                message_id_sync: traits.message_id_sync,
                token: self.peer_token.clone().map(Vec::from),
                synchronised: sync::told(self),
            },
            name: auth.name.clone(),
            identity: auth.identity.clone(),
            grant: Arc::clone(&auth.grant),
            age: now.since(auth.established_at),
            connected_for: now.since(auth.connected_at),
            rekey_in: left(TimerKey::new(self.id, TimerKind::RekeyIke)),
            children: self
                .children
                .values()
                .filter(|child| child.state != ChildState::Installing)
                .map(|child| SavedChild {
                    id: child.id,
                    spi_in: child.spi_in,
                    spi_out: child.spi_out,
                    suite: child.suite.clone(),
                    keys_in: child.keys_in.clone(),
                    keys_out: child.keys_out.clone(),
                    transport: child.transport,
                    ts_local: child.ts_local.clone(),
                    ts_remote: child.ts_remote.clone(),
                    hosts: child.hosts,
                    outbound_active: child.outbound_active,
                    replaced_by: child.replaced_by,
                    by_peer: child.by_peer,
                    closing: child.state == ChildState::Deleting,
                    age: now.since(child.installed_at),
                    rekey_in: left(TimerKey::sub(self.id, TimerKind::RekeyChild, child.id.0)),
                })
                .collect(),
        })
    }
}

/// The request to be sent again after a restart. A synchronisation is not, the next start makes
/// its own; then only what was asked for before the last start is still to be undone.
fn saved_request(sa: &IkeSa) -> Option<SavedRequest> {
    if sync::waiting(sa) {
        return sa.orphan.map(|child_spi| SavedRequest {
            message_id: sa.window.next_request(),
            exchange: ExchangeType::CreateChildSa,
            packets: Vec::new(),
            child_spi,
        });
    }
    outstanding(sa).map(|request| SavedRequest {
        message_id: request.message_id,
        exchange: request.exchange,
        packets: request.packets.clone(),
        child_spi: create_child::proposed_spi(sa).or(sa.orphan.flatten()),
    })
}

/// The request to be sent again after a restart: the one that waits for its answer, or the one
/// whose answer is being put into effect. What that would make is then made once more by nobody:
/// the peer repeats its answer, and is told to delete it.
fn outstanding(sa: &IkeSa) -> Option<&Outstanding> {
    let unfinished = sa.unfinished.as_ref().filter(|_| create_child::unfinished(sa));
    sa.window.outstanding().or(unfinished)
}

impl Engine {
    /// An engine that goes on with what was checkpointed. Every child is installed again with
    /// [`Action::InstallChild`] under its old name and SPIs: the driver reconciles, and the data
    /// plane goes on above every sequence number it may have used. An SA whose deadline has
    /// passed ends at the first [`Engine::handle`].
    ///
    /// The seed must be fresh, as in [`Engine::new`].
    ///
    /// # Errors
    /// As [`Engine::new`], and [`EngineError::Snapshot`] when an SA runs with an algorithm the
    /// provider lacks.
    pub fn restore(
        config: EngineConfig,
        crypto: &'static CryptoProvider,
        seed: [u8; 32],
        now: Now,
        snapshots: impl IntoIterator<Item = Snapshot>,
    ) -> Result<Self, EngineError> {
        let mut engine = Self::new(config, crypto, seed, now)?;
        let snapshots: Vec<Snapshot> = snapshots.into_iter().collect();
        // All names first: what is installed again draws new ones.
        for snapshot in &snapshots {
            engine.ctx.reserve_id(snapshot.ike.0);
            snapshot.children.iter().for_each(|child| engine.ctx.reserve_id(child.id.0));
        }
        for snapshot in snapshots {
            engine.restore_one(snapshot)?;
        }
        exchange::reauth::restored(&mut engine);
        Ok(engine)
    }

    fn restore_one(&mut self, saved: Snapshot) -> Result<(), EngineError> {
        let id: IkeSaId = saved.ike;
        let protection =
            Protection::from_keys(self.ctx.crypto, saved.suite, saved.initiator, saved.keys)
                .map_err(|_| SnapshotError::Unsupported)?;
        let now = self.ctx.now.mono;
        let role = |initiator| if initiator { SaRole::Initiator } else { SaRole::Responder };
        let (role, connected_as) = (role(saved.initiator), role(saved.client));
        let path = Path { local: saved.local, remote: saved.remote, encap: saved.encap };
        let spis = (saved.spi_i, saved.spi_r);
        let rng = self.ctx.seed.stream(id.0);
        let mut sa = Box::new(IkeSa::new(id, role, spis, path, rng, Phase::Established, now));
        sa.connected_as = connected_as;
        sa.protection = Some(Box::new(protection));
        sa.orphan = saved
            .outstanding
            .as_ref()
            .filter(|request| {
                matches!(
                    request.exchange,
                    ExchangeType::CreateChildSa | ExchangeType::IkeFollowupKe
                )
            })
            .map(|request| request.child_spi);
        sa.window = Window::restore(
            saved.next_request,
            saved.next_expected,
            saved.outstanding.filter(|request| !request.packets.is_empty()).map(|request| {
                Outstanding {
                    message_id: request.message_id,
                    exchange: request.exchange,
                    packets: request.packets,
                    tries: 0,
                    payloads: None,
                }
            }),
            saved.cached.map(|response| Cached {
                message_id: response.message_id,
                packets: response.packets,
            }),
        );
        sa.traits = PeerTraits {
            wants_ocsp: false,
            fragmentation: saved.peer.fragmentation,
            hashes: saved.peer.hashes,
            peer_behind_nat: saved.peer.peer_behind_nat,
            we_behind_nat: saved.peer.we_behind_nat,
            nat_detection: saved.peer.nat_detection,
            mobike: saved.peer.mobike,
            redirect: saved.peer.redirect,
            childless: false,
            ppk: false,
            force_encap: saved.peer.force_encap,
            message_id_sync: saved.peer.message_id_sync,
        };
        sa.peer_token = saved.peer.token.map(Vec::into_boxed_slice);
        sync::restore(&mut sa, saved.peer.synchronised);
        self.ctx.leases.up(&saved.grant.lease);
        self.ctx.timers.set_wall(id, Some(saved.grant.deadline));
        sa.counted = true;
        sa.auth = Some(Box::new(Authenticated {
            name: saved.name,
            identity: saved.identity,
            grant: saved.grant,
            established_at: now - saved.age,
            connected_at: now - saved.connected_for,
        }));
        for child in saved.children {
            self.restore_child(&mut sa, child);
        }
        // What we were closing is closed, and so is what our own rekey has replaced.
        let ours = |new: &ChildSaId| sa.children.get(new).is_none_or(|new| !new.by_peer);
        let replaced: Vec<ChildSaId> = sa
            .children
            .values()
            .filter(|child| child.removed || child.replaced_by.as_ref().is_some_and(ours))
            .map(|child| child.id)
            .collect();
        sa.tasks.extend(replaced.into_iter().map(Task::DeleteChild));
        let ctx = &mut self.ctx;
        // A rekey that was under way had no timer; it begins again.
        if !ctx.config.timers.rekey_ike.is_zero() {
            let left = saved.rekey_in.unwrap_or(ctx.config.timers.dpd);
            ctx.timers.set(TimerKey::new(id, TimerKind::RekeyIke), now + left);
        }
        let continuity = &ctx.config.continuity;
        if sa.traits.message_id_sync && continuity.message_id_sync && continuity.sync_after_restart
        {
            sync::begin(ctx, &mut sa);
        } else {
            if sa.window.outstanding().is_none() {
                sync::delete_orphan(ctx, &mut sa);
            }
            exchange::arm_retransmit(ctx, &sa);
        }
        dpd::arm(ctx, &sa, ctx.config.timers.dpd);
        lifecycle::arm_keepalive(ctx, &sa);
        self.sas.insert(sa);
        Ok(())
    }

    fn restore_child(&mut self, sa: &mut IkeSa, saved: SavedChild) {
        let Some(grant) = sa.auth.as_ref().map(|auth| &auth.grant) else {
            return;
        };
        let ctx = &mut self.ctx;
        let now = ctx.now.mono;
        let limits = child::limits(ctx, &mut sa.rng, &saved.suite);
        let action = InstallChild {
            ike: sa.id,
            child: saved.id,
            lease: grant.lease.clone(),
            role: grant.role.clone(),
            reqid: grant.reqid,
            addresses: if sa.is_client() { Vec::new() } else { grant.addresses.clone() },
            networks: grant.networks.clone(),
            spi_in: saved.spi_in,
            spi_out: saved.spi_out,
            suite: saved.suite.clone(),
            keys_in: saved.keys_in.clone(),
            keys_out: saved.keys_out.clone(),
            transport: saved.transport,
            // Its counters begin again.
            limits,
            deadline: grant.deadline,
            hosts: saved.hosts,
            ts_local: saved.ts_local.clone(),
            ts_remote: saved.ts_remote.clone(),
            outbound_active: saved.outbound_active,
            rekeys: None,
            restored: true,
        };
        let state = if saved.closing { ChildState::Deleting } else { ChildState::Up };
        sa.children.insert(
            saved.id,
            Box::new(Child {
                id: saved.id,
                state,
                spi_in: saved.spi_in,
                spi_out: saved.spi_out,
                suite: saved.suite,
                keys_in: saved.keys_in,
                keys_out: saved.keys_out,
                transport: saved.transport,
                ts_local: saved.ts_local,
                ts_remote: saved.ts_remote,
                hosts: saved.hosts,
                installed_at: now - saved.age,
                outbound_active: saved.outbound_active,
                removed: saved.closing,
                replaced_by: saved.replaced_by,
                by_peer: saved.by_peer,
            }),
        );
        if saved.closing {
            return;
        }
        ctx.leases.child_in(&action.lease, saved.id);
        if !saved.outbound_active {
            // The peer may never have got the answer that made it; then it asks again.
            let key = TimerKey::sub(sa.id, TimerKind::Activate, saved.id.0);
            ctx.timers.set(key, now.after(rekey_child::ACTIVATE_AFTER));
        }
        if saved.replaced_by.is_none() && !ctx.config.timers.rekey_child.is_zero() {
            let left = saved.rekey_in.unwrap_or(ctx.config.timers.dpd);
            let key = TimerKey::sub(sa.id, TimerKind::RekeyChild, saved.id.0);
            ctx.timers.set(key, now + left);
        }
        let purpose = Purpose::Reinstall(saved.id);
        ctx.act(sa.id, purpose, Action::InstallChild(Box::new(action)));
    }
}
