//! Requests to the kernel: batches that are taken back when a part is refused, deletions, and
//! questions about SAs.

use std::net::IpAddr;

use super::KernelPlane;
use super::decode::{self, PolicyState, SaState};
use super::encode::{self, Half, Sequence};
use super::flow::{Flow, flows};
use super::policies::Sender;
use crate::error::PlaneError;
use crate::model::{ChildSpec, Spi};
use crate::netlink::{Message, Refusal};

/// One request of a sequence, and how to take it back.
pub(super) struct Step {
    pub(super) what: String,
    pub(super) message: Message,
    pub(super) undo: Option<Message>,
    /// For a new SA whose name a larval one may have taken: how it takes its place.
    pub(super) over: Option<Over>,
}

/// See [`Step::over`].
pub(super) struct Over {
    pub(super) destination: IpAddr,
    pub(super) spi: Spi,
    pub(super) message: Message,
}

impl KernelPlane {
    /// What installs a child, and who sends then.
    pub(super) fn installation(&mut self, spec: &ChildSpec) -> (Vec<Step>, Vec<(Flow, Sender)>) {
        let fresh = Sequence::default();
        let sent = Sequence { sent: spec.first_seq_out, ..Sequence::default() };
        let (context, hosts, suite) = (self.context_of(spec.id), &spec.hosts, spec.suite.name());
        let mut steps = vec![
            Step {
                what: format!("install the inbound SA {} ({suite})", spec.spi_in),
                message: encode::new_sa(context, spec, hosts, Half::In, &fresh),
                undo: Some(encode::delete_sa(hosts.local.ip(), spec.spi_in)),
                over: None,
            },
            Step {
                what: format!("install the outbound SA {} ({suite})", spec.spi_out),
                message: encode::new_sa(context, spec, hosts, Half::Out, &sent),
                undo: Some(encode::delete_sa(hosts.remote.ip(), spec.spi_out)),
                over: None,
            },
        ];
        steps.extend(self.companion_steps(spec));
        let mut senders = Vec::new();
        if spec.outbound_active {
            let (policies, theirs) = self.policy_steps(spec, hosts, &flows(spec));
            steps.extend(policies);
            senders = theirs;
        }
        (steps, senders)
    }

    /// Runs requests in one batch; after a refusal takes back, newest first, what took effect.
    pub(super) fn run(&mut self, steps: Vec<Step>) -> Result<(), PlaneError> {
        let mut rest = Vec::with_capacity(steps.len());
        let mut messages = Vec::with_capacity(steps.len());
        for step in steps {
            messages.push(step.message);
            rest.push((step.what, step.undo, step.over));
        }
        let results = self.netlink.batch(messages)?;
        let mut first = None;
        let mut done = Vec::new();
        for (mut result, (what, undo, over)) in results.into_iter().zip(rest) {
            if let (Err(refusal), Some(over)) = (&result, over)
                && refusal.errno == libc::EEXIST
            {
                match self.fill_larval(over) {
                    Ok(Some(filled)) => result = filled,
                    Ok(None) => {}
                    // What took effect is taken back below.
                    Err(error) => {
                        first.get_or_insert(error);
                        continue;
                    }
                }
            }
            match result {
                Ok(()) => done.extend(undo),
                Err(refusal) => {
                    first.get_or_insert_with(|| refusal.into_error(what));
                }
            }
        }
        match first {
            None => Ok(()),
            Some(error) => {
                done.reverse();
                for result in self.netlink.batch(done)? {
                    if let Err(refusal) = result {
                        tracing::warn!(%refusal, "could not take back a part of a failed change");
                    }
                }
                Err(error)
            }
        }
    }

    /// Installs over an SA that waits to be filled; `None` when what is there is none.
    fn fill_larval(&mut self, over: Over) -> Result<Option<Result<(), Refusal>>, PlaneError> {
        if !self.is_larval(over.destination, over.spi)? {
            return Ok(None);
        }
        self.netlink.try_request(over.message).map(Some)
    }

    /// Runs deletions; what is gone already is as good.
    pub(super) fn run_deletions(
        &mut self,
        what: &str,
        messages: Vec<Message>,
    ) -> Result<(), PlaneError> {
        let gone = |refusal: &Refusal| matches!(refusal.errno, libc::ESRCH | libc::ENOENT);
        let results = self.netlink.batch(messages)?;
        match results.into_iter().filter_map(Result::err).find(|refusal| !gone(refusal)) {
            Some(refusal) => Err(refusal.into_error(what)),
            None => Ok(()),
        }
    }

    /// Policies of ours.
    pub(super) fn dump_policies(&mut self) -> Result<Vec<PolicyState>, PlaneError> {
        let ours = self.context.if_id;
        self.netlink.dump("list policies", &encode::dump_policies(), |_, payload| {
            decode::policy(payload).map(|policy| (policy.owner == ours).then_some(policy))
        })
    }

    /// SAs of ours, larval ones among them.
    pub(super) fn dump_sas(&mut self) -> Result<Vec<SaState>, PlaneError> {
        let ours = self.context.if_id;
        self.netlink.dump("list SAs", &encode::dump_sas(), |_, payload| {
            decode::sa(payload).map(|sa| (sa.owner == ours).then_some(sa))
        })
    }

    /// One SA's state; `None` when the kernel no longer has it.
    pub(super) fn state(
        &mut self,
        destination: IpAddr,
        spi: Spi,
    ) -> Result<Option<SaState>, PlaneError> {
        Ok(self.found(destination, spi)?.filter(|sa| !sa.larval))
    }

    /// Whether a larval SA, which a packet without an SA or an allocation made, has this name.
    fn is_larval(&mut self, destination: IpAddr, spi: Spi) -> Result<bool, PlaneError> {
        let ours = self.context.if_id;
        Ok(self.found(destination, spi)?.is_some_and(|sa| sa.larval && sa.owner == ours))
    }

    fn found(&mut self, destination: IpAddr, spi: Spi) -> Result<Option<SaState>, PlaneError> {
        match self.netlink.try_query(encode::get_sa(destination, spi))? {
            Ok((_, payload)) => decode::sa(&payload).map(Some),
            Err(refusal) if refusal.errno == libc::ESRCH => Ok(None),
            Err(refusal) => Err(refusal.into_error(format!("show SA {spi}"))),
        }
    }
}
