//! What a peer has proved, from the proof to the moment its authorisation takes effect.
//!
//! A proof is judged on one thread, authorised on another and takes effect on a third; meanwhile
//! its lease may end, and a reload may replace what it was judged by. Both are noticed when it
//! takes effect.

use std::sync::atomic::Ordering;

use ike::crypto::SecretBytes;
use ike::event::Refusal;
use ike::io::{Authorise, Grant};
use ike::time::WallTime;
use pki::Access;

use super::context::Context;
use super::{ExternalPeer, Peers, lock, now};
use crate::config::Site;
use crate::lease::Epoch;

/// A verified peer, and the site it is, or what the external CA of its certificate says.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) peer: pki::VerifiedPeer,
    pub(super) site: Option<Site>,
    pub(super) external: Option<ExternalPeer>,
}

/// What a proof was judged by.
#[derive(Debug)]
pub(super) enum Terms {
    /// The certificate, and the configuration's words about it.
    Certificate(Box<Known>),
    /// The key that a client or a site shares with the gateway.
    SharedKey(SecretBytes),
}

/// A proof, and the configuration it was judged under.
#[derive(Debug)]
pub(super) struct Proof {
    pub(super) generation: u64,
    pub(super) terms: Terms,
}

impl Proof {
    /// Whether nobody else has to be asked about it.
    pub(super) fn is_settled(&self) -> bool {
        match &self.terms {
            Terms::Certificate(known) => known.external.is_none(),
            Terms::SharedKey(_) => true,
        }
    }
}

/// What was decided about a peer, and when.
#[derive(Debug)]
pub struct Decision {
    epoch: Epoch,
    generation: u64,
    terms: Option<Terms>,
    result: Result<Box<Grant>, Refusal>,
}

impl Peers {
    /// Finds the lease of what a peer proved and what it grants. Takes effect with
    /// [`Peers::confirm`].
    pub fn authorise(&self, request: &Authorise) -> Decision {
        let epoch = self.registry.epoch();
        let Some(Proof { generation, terms }) = lock(&self.verified).remove(&request.ike) else {
            // Thousands of handshakes overtook this one; the client tries again.
            let result = Err(self.busy(Some(request.ike), Some(request.remote)));
            return Decision { epoch, generation: self.generation(), terms: None, result };
        };
        let result = self.grant(request, &terms);
        Decision { epoch, generation, terms: Some(terms), result }
    }

    /// Checks an authorisation again at the moment it takes effect.
    ///
    /// # Errors
    /// The refusal, when the lease ended meanwhile, or the configuration that is in force now does
    /// not accept the proof.
    pub fn confirm(&self, request: &Authorise, decision: Decision) -> Result<Box<Grant>, Refusal> {
        let grant = decision.result?;
        let context = Context::of(request);
        if self.registry.ended_since(&grant.lease, decision.epoch) {
            return Err(context.refuse(
                "lease_ended",
                format!("lease {} ended while its peer was connecting", grant.lease.0),
                "enrol again".to_owned(),
            ));
        }
        if decision.generation == self.generation() {
            return Ok(grant);
        }
        let accepted = decision.terms.is_some_and(|terms| self.is_still_accepted(request, &terms));
        let lease = self.authority.lease(&grant.lease.0).ok().flatten();
        let lease = lease.filter(|lease| accepted && lease.state.is_live());
        let again = lease.and_then(|lease| self.regrant(&lease, &grant.role, grant.deadline));
        again.map(Box::new).ok_or_else(|| {
            context.refuse(
                "configuration_changed",
                format!(
                    "the configuration was reloaded while {} was connecting, and does not accept \
                     what it proved any more",
                    request.identity
                ),
                "give the peer the key or certificate that is configured now".to_owned(),
            )
        })
    }

    /// The configuration, the keys and the external CAs were replaced: proofs that were judged by
    /// the ones before are looked at again. Whoever calls this looks at established tunnels after.
    pub fn configuration_changed(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
    }

    /// Whether a proof would be judged the same now; what depends on the lease is not looked at.
    fn is_still_accepted(&self, request: &Authorise, terms: &Terms) -> bool {
        match terms {
            Terms::SharedKey(key) => {
                self.key_of(&request.identity).is_some_and(|(now, _)| now == *key)
            }
            Terms::Certificate(known) => {
                let config = self.config.get();
                match &known.site {
                    Some(site) => {
                        config.site(&site.name).is_some_and(|now| site.has_same_tunnel(now))
                    }
                    None => config.site_of(&request.identity).is_none(),
                }
            }
        }
    }

    fn grant(&self, request: &Authorise, terms: &Terms) -> Result<Box<Grant>, Refusal> {
        let context = Context::of(request);
        let known = match terms {
            Terms::SharedKey(_) if self.config.get().site_of(&request.identity).is_some() => {
                return self.grant_shared(request, &context);
            }
            Terms::SharedKey(_) => {
                self.check_ppk(request, &context)?;
                return self.grant_holder(request, &context);
            }
            Terms::Certificate(known) => known,
        };
        if let Some(site) = &known.site {
            return self.grant_site(&site.name, &known.peer, &context);
        }
        self.check_ppk(request, &context)?;
        let access = match &known.external {
            Some(external) => self.authorise_external(request, external),
            None => self.authority.authorise(&known.peer, now()),
        };
        self.grant_lease(&access.map_err(|error| context.access(&error))?, &context)
    }

    /// What a client's lease grants it.
    pub(super) fn grant_lease(
        &self,
        access: &Access,
        context: &Context,
    ) -> Result<Box<Grant>, Refusal> {
        let deadline = WallTime(access.deadline.micros());
        let grant = self.regrant(&access.lease, &access.lease.role, deadline).ok_or_else(|| {
            let (role, pool) = (&access.lease.role, &access.lease.pool);
            context.refuse(
                "unknown_role",
                format!("role {role} or pool {pool} is not configured"),
                "add it to the configuration, or enrol with another role".to_owned(),
            )
        })?;
        Ok(Box::new(grant))
    }
}
