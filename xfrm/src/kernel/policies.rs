//! Outbound policies: which child sends a flow.

use super::KernelPlane;
use super::apply::Step;
use super::encode;
use super::flow::{Flow, flows};
use crate::error::PlaneError;
use crate::model::{ChildId, ChildSpec, Hosts};

/// Who sends a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sender {
    pub(super) child: ChildId,
    pub(super) policy: u32,
}

impl KernelPlane {
    /// The requests that make a child the sender of its flows, each with its reversal,
    /// and who sends then.
    pub(super) fn policy_steps(
        &mut self,
        spec: &ChildSpec,
        hosts: &Hosts,
        carried: &[Flow],
    ) -> (Vec<Step>, Vec<(Flow, Sender)>) {
        let mut steps = Vec::with_capacity(carried.len());
        let mut senders = Vec::with_capacity(carried.len());
        for flow in carried {
            let former = self.senders.get(flow).copied();
            // An earlier run's policy is replaced in place, so that it is never missing.
            let left = self.left.policies.remove(flow).map(|policy| policy.index);
            let index = former.map(|sender| sender.policy).or(left);
            let policy = index.unwrap_or_else(|| self.next_index());
            let before = former.and_then(|sender| self.children.get(&sender.child));
            let undo = match before {
                Some(before) => {
                    let context = self.context_of(before.id);
                    encode::outbound_policy(context, before, &before.hosts, flow, policy, true)
                }
                None => encode::delete_outbound_policy(self.context, flow),
            };
            let context = self.context_of(spec.id);
            let message =
                encode::outbound_policy(context, spec, hosts, flow, policy, index.is_some());
            let what = format!("install the outbound policy for {flow}");
            steps.push(Step { what, message, undo: Some(undo), over: None });
            senders.push((*flow, Sender { child: spec.id, policy }));
        }
        (steps, senders)
    }

    pub(super) fn next_index(&mut self) -> u32 {
        self.policies_made = self.policies_made.wrapping_add(1);
        encode::outbound_index(self.policies_made)
    }

    /// Flows of a child for which it is the sender now.
    pub(super) fn sends_to(&self, spec: &ChildSpec) -> Vec<Flow> {
        let mut flows = flows(spec);
        flows.retain(|flow| self.senders.get(flow).is_some_and(|s| s.child == spec.id));
        flows
    }

    /// Deletes the outbound policies of flows.
    pub(super) fn delete_policies(&mut self, flows: &[Flow]) -> Result<(), PlaneError> {
        const WHAT: &str = "remove an outbound policy";
        let doomed: Vec<(Flow, u32)> = flows
            .iter()
            .filter_map(|flow| self.senders.get(flow).map(|sender| (*flow, sender.policy)))
            .collect();
        let messages = doomed
            .iter()
            .map(|(flow, index)| {
                encode::delete_policy_by_index(encode::if_id_of(self.context, flow), *index)
            })
            .collect();
        for (result, (flow, _)) in self.netlink.batch(messages)?.into_iter().zip(&doomed) {
            match result {
                Ok(()) => {}
                // The index was a stranger's already, so the kernel chose another.
                Err(refusal) if refusal.errno == libc::ENOENT => {
                    let message = encode::delete_outbound_policy(self.context, flow);
                    self.run_deletions(WHAT, vec![message])?;
                }
                Err(refusal) => return Err(refusal.into_error(WHAT)),
            }
            self.senders.remove(flow);
        }
        Ok(())
    }
}
