//! Outbound policies: which child sends to an inner address.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};

use super::KernelPlane;
use super::apply::Step;
use super::encode;
use crate::error::PlaneError;
use crate::model::{ChildId, ChildSpec, Hosts};

/// Who sends to an inner address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sender {
    pub(super) child: ChildId,
    pub(super) policy: u32,
}

impl KernelPlane {
    /// The requests that make a child the sender for its inner addresses, each with its reversal,
    /// and who sends then.
    pub(super) fn policy_steps(
        &mut self,
        spec: &ChildSpec,
        hosts: &Hosts,
        inners: &[IpNet],
    ) -> (Vec<Step>, Vec<(IpNet, Sender)>) {
        let mut steps = Vec::with_capacity(inners.len());
        let mut senders = Vec::with_capacity(inners.len());
        for &inner in inners {
            let former = self.senders.get(&inner).copied();
            // An earlier run's policy is replaced in place, so that it is never missing.
            let left = self.left.policies.remove(&inner).map(|policy| policy.index);
            let index = former.map(|sender| sender.policy).or(left);
            let policy = index.unwrap_or_else(|| self.next_index());
            let before = former.and_then(|sender| self.children.get(&sender.child));
            let undo = match before {
                Some(before) => encode::outbound_policy(
                    self.context,
                    before,
                    &before.hosts,
                    inner,
                    policy,
                    true,
                ),
                None => encode::delete_outbound_policy(self.context, inner),
            };
            let message =
                encode::outbound_policy(self.context, spec, hosts, inner, policy, index.is_some());
            let what = format!("install the outbound policy for {inner}");
            steps.push(Step { what, message, undo: Some(undo), over: None });
            senders.push((inner, Sender { child: spec.id, policy }));
        }
        (steps, senders)
    }

    pub(super) fn next_index(&mut self) -> u32 {
        self.policies_made = self.policies_made.wrapping_add(1);
        encode::outbound_index(self.policies_made)
    }

    /// Inner addresses of a child for which it is the sender now.
    pub(super) fn sends_to(&self, spec: &ChildSpec) -> Vec<IpNet> {
        let mut inners = inner_networks(spec);
        inners.retain(|inner| self.senders.get(inner).is_some_and(|s| s.child == spec.id));
        inners
    }

    /// Deletes the outbound policies of inner addresses.
    pub(super) fn delete_policies(&mut self, inners: &[IpNet]) -> Result<(), PlaneError> {
        const WHAT: &str = "remove an outbound policy";
        let doomed: Vec<(IpNet, u32)> = inners
            .iter()
            .filter_map(|inner| self.senders.get(inner).map(|sender| (*inner, sender.policy)))
            .collect();
        let messages = doomed
            .iter()
            .map(|(_, index)| encode::delete_policy_by_index(self.context, *index))
            .collect();
        for (result, (inner, _)) in self.netlink.batch(messages)?.into_iter().zip(&doomed) {
            match result {
                Ok(()) => {}
                // The index was a stranger's already, so the kernel chose another.
                Err(refusal) if refusal.errno == libc::ENOENT => {
                    let message = encode::delete_outbound_policy(self.context, *inner);
                    self.run_deletions(WHAT, vec![message])?;
                }
                Err(refusal) => return Err(refusal.into_error(WHAT)),
            }
            self.senders.remove(inner);
        }
        Ok(())
    }
}

/// The peer's inner addresses as the prefixes that policies are made of.
pub(super) fn inner_networks(spec: &ChildSpec) -> Vec<IpNet> {
    let mut networks: Vec<IpNet> = Vec::new();
    for selector in &spec.remote_selectors {
        match (selector.start, selector.end) {
            (IpAddr::V4(start), IpAddr::V4(end)) => {
                networks.extend(Ipv4Subnets::new(start, end, 0).map(IpNet::V4));
            }
            (IpAddr::V6(start), IpAddr::V6(end)) => {
                networks.extend(Ipv6Subnets::new(start, end, 0).map(IpNet::V6));
            }
            // Mixed families match nothing.
            _ => {}
        }
    }
    networks.sort();
    networks.dedup();
    networks
}
