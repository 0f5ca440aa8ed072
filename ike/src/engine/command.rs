//! What the operator, the policy and the data plane want of SAs.

use std::sync::Arc;

use crate::engine::{Engine, usable};
use crate::event::{Blame, CloseReason};
use crate::exchange::{self, Task, advance, auth, init, mobike, mobility, reauth, redirect};
use crate::io::{ChildSaId, Command, DataplaneEvent, Grant, IkeSaId, LeaseId};
use crate::sa::Phase;
use crate::sa::context::refusal;
use crate::sa::lifecycle::{self, Tell};

impl Engine {
    /// Does what the operator or the policy wants.
    pub(super) fn command(&mut self, command: Command) {
        match command {
            Command::Initiate(peer) => init::initiate(self, *peer, None),
            Command::Redirect { to, existing } => redirect::set(self, to, existing),
            Command::Reauthenticate(id) => reauth::start(self, id),
            Command::CloseIkeSa(id, reason) => {
                self.with_sa(id, |ctx, sa| lifecycle::close(ctx, sa, reason, Tell::Peer));
            }
            Command::CloseLease(lease, reason) => self.close_lease(&lease, &[], &reason),
            Command::CloseChild(child, reason) => {
                if let Some(id) = self.owner_of(child) {
                    self.with_sa(id, |ctx, sa| {
                        exchange::delete::close_child(ctx, sa, child, reason);
                        advance(ctx, sa);
                    });
                }
            }
            Command::CreateChild(id) => {
                self.with_sa(id, |ctx, sa| {
                    sa.enqueue(Task::CreateChild);
                    advance(ctx, sa);
                });
            }
            Command::RekeyIke(id) => {
                self.with_sa(id, |ctx, sa| {
                    sa.enqueue(Task::RekeyIke);
                    advance(ctx, sa);
                });
            }
            Command::RekeyChild(child) => {
                if let Some(id) = self.owner_of(child) {
                    self.with_sa(id, |ctx, sa| {
                        sa.enqueue(Task::RekeyChild(child));
                        advance(ctx, sa);
                    });
                }
            }
            Command::Move { ike, local } => {
                self.with_sa(ike, |ctx, sa| mobike::roam(ctx, sa, local));
            }
            Command::UpdateLease(lease, grant) => self.update_lease(&lease, &grant),
            Command::Reconfigure(config) => match usable(*config, self.ctx.crypto) {
                Ok(config) => self.ctx.config = config,
                Err(error) => {
                    let what = format!("the new configuration cannot be used: {error}");
                    let fix = "the old one stays in force; correct the proposals";
                    self.ctx.refuse(refusal(Blame::Internal, None, "configuration", what, fix));
                }
            },
            Command::Shutdown => {
                self.stopping = true;
                for id in self.sas.ids() {
                    self.with_sa(id, |ctx, sa| {
                        lifecycle::close(ctx, sa, CloseReason::Shutdown, Tell::Peer);
                    });
                }
            }
        }
    }

    fn owner_of(&self, child: ChildSaId) -> Option<IkeSaId> {
        self.sas.iter().find(|sa| sa.children.contains_key(&child)).map(|sa| sa.id)
    }

    /// Closes the SAs of a lease. Handshakes under way are included: whoever they turn out to be.
    pub(super) fn close_lease(&mut self, lease: &LeaseId, keep: &[IkeSaId], reason: &CloseReason) {
        for id in self.sas.ids() {
            if keep.contains(&id) {
                continue;
            }
            self.with_sa(id, |ctx, sa| match sa.phase {
                // A newer connection replaces what is established, not what is on its way.
                Phase::Authenticating(_) if keep.is_empty() => {
                    auth::close_lease(ctx, sa, lease, reason);
                }
                Phase::Established | Phase::Rekeyed if sa.lease_id().as_ref() == Some(lease) => {
                    lifecycle::close(ctx, sa, reason.clone(), Tell::Peer);
                }
                _ => {}
            });
        }
    }

    fn update_lease(&mut self, lease: &LeaseId, grant: &Grant) {
        for id in self.sas.ids() {
            self.with_sa(id, |ctx, sa| {
                let client = sa.is_client();
                let Some(auth) = sa.auth.as_mut().filter(|auth| auth.grant.lease == *lease) else {
                    return;
                };
                let mut grant = grant.clone();
                if client {
                    // As client these came from the peer, and from what we were told.
                    grant.addresses.clone_from(&auth.grant.addresses);
                    grant.dns.clone_from(&auth.grant.dns);
                    grant.transport = auth.grant.transport;
                }
                let deadline = grant.deadline;
                auth.grant = Arc::new(grant);
                if matches!(sa.phase, Phase::Established | Phase::Rekeyed) {
                    ctx.timers.set_wall(id, Some(deadline));
                    ctx.checkpoint(sa);
                }
            });
        }
        self.expire();
    }

    /// Takes a report of the data plane.
    pub(super) fn dataplane(&mut self, event: DataplaneEvent) {
        match event {
            DataplaneEvent::Expire { child, hard } => {
                let Some(id) = self.owner_of(child) else {
                    return;
                };
                self.with_sa(id, |ctx, sa| {
                    if hard {
                        exchange::delete::close_child(ctx, sa, child, CloseReason::Expired);
                    } else {
                        sa.enqueue(Task::RekeyChild(child));
                    }
                    advance(ctx, sa);
                });
            }
            DataplaneEvent::Mapping { child, remote } => {
                if let Some(id) = self.owner_of(child) {
                    self.with_sa(id, |ctx, sa| mobility::mapping(ctx, sa, remote));
                }
            }
            // An unprotected hint changes nothing (RFC 7296 2.21.4).
            DataplaneEvent::NoSa { .. } => {}
        }
    }
}
