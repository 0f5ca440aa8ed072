//! Children in transport mode: packets between the two machines' own addresses.
//!
//! Such packets never pass the xfrm interface, so neither their SAs nor their policies may carry
//! its `if_id`: the kernel would look for them among what leaves that interface. A label tells
//! which instance they are of: on an SA an output mark under an empty mask, which changes no
//! packet; on a policy a number where the kernel keeps, and never enforces, a limit in bytes.
//!
//! Inbound policies are as narrow as the outbound one, and demand an SA, whichever: the lease's own
//! is the firewall's business, as in tunnel mode. Neighbour discovery stays outside: without it the two could not even exchange ESP.

use std::net::IpAddr;

use netlink_packet_xfrm::constants::{
    IPPROTO_ICMPV6, XFRM_MODE_TRANSPORT, XFRM_MSG_NEWPOLICY, XFRM_MSG_UPDPOLICY, XFRM_POLICY_IN,
    XFRM_POLICY_OUT,
};

use super::KernelPlane;
use super::apply::Step;
use super::encode::{self, Context};
use super::flow::{Between, Flow, flows};
use crate::error::PlaneError;
use crate::model::{ChildSpec, Mode, PlaneKind};
use crate::netlink::Message;

/// Neighbour solicitation and advertisement (RFC 4861 4.3, 4.4).
const NEIGHBOUR_DISCOVERY: [u16; 2] = [135, 136];

/// A policy of a flow besides its outbound one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Companion {
    direction: u8,
    flow: Flow,
    /// What it selects must have come through an SA; otherwise it passes in clear.
    protects: bool,
}

impl Companion {
    /// As the kernel reports it.
    pub(super) fn new(direction: u8, flow: Flow, protects: bool) -> Self {
        Self { direction, flow, protects }
    }

    /// `XFRM_MSG_NEWPOLICY` or `XFRM_MSG_UPDPOLICY`.
    fn install(&self, kind: u16, context: Context) -> Message {
        let template = self.flow.between.filter(|_| self.protects).map(|between| {
            let mut template = encode::template(XFRM_MODE_TRANSPORT);
            template.family = encode::family(between.source);
            template
        });
        let selector = encode::selector(&self.flow);
        encode::host_policy(kind, context, selector, (self.direction, 0), template)
    }

    /// `XFRM_MSG_DELPOLICY`.
    fn delete(&self) -> Message {
        encode::delete_policy(0, encode::selector(&self.flow), 0, self.direction)
    }
}

/// The policies of a flow besides its outbound one, the protecting one first.
pub(super) fn companions(flow: &Flow) -> Vec<Companion> {
    let Some(between) = flow.between else { return Vec::new() };
    let (ours, theirs) = (between.source, flow.destination.addr());
    let back = Between {
        source: theirs,
        protocol: between.protocol,
        source_port: between.destination_port,
        destination_port: between.source_port,
    };
    let back = Flow { destination: ours.into(), between: Some(back) };
    let mut companions = vec![Companion::new(XFRM_POLICY_IN, back, true)];
    if ours.is_ipv6() && [0, IPPROTO_ICMPV6].contains(&between.protocol) {
        for kind in NEIGHBOUR_DISCOVERY {
            // The kernel has the type of ICMP where other protocols have the source port.
            let discovery = |source: IpAddr, destination: IpAddr| Flow {
                destination: destination.into(),
                between: Some(Between {
                    source,
                    protocol: IPPROTO_ICMPV6,
                    source_port: Some(kind),
                    destination_port: None,
                }),
            };
            companions.push(Companion::new(XFRM_POLICY_OUT, discovery(ours, theirs), false));
            companions.push(Companion::new(XFRM_POLICY_IN, discovery(theirs, ours), false));
        }
    }
    companions
}

impl KernelPlane {
    /// What a child in transport mode needs besides its SAs and outbound policy, as far as no other
    /// child made it. A stranger's policy for the same traffic is a refusal, never replaced.
    pub(super) fn companion_steps(&self, spec: &ChildSpec) -> Vec<Step> {
        let mut steps = Vec::new();
        for flow in flows(spec) {
            for companion in self.orphaned(&flow) {
                let there = self.left.companions.contains_key(&companion);
                let kind = if there { XFRM_MSG_UPDPOLICY } else { XFRM_MSG_NEWPOLICY };
                steps.push(Step {
                    what: format!("install a policy for what is between us and {flow}"),
                    message: companion.install(kind, self.context),
                    undo: Some(companion.delete()),
                    over: None,
                });
            }
        }
        steps
    }

    /// Removes what flows of a child needed that no child carries any more.
    pub(super) fn remove_companions(&mut self, spec: &ChildSpec) -> Result<(), PlaneError> {
        let doomed = flows(spec).into_iter().flat_map(|flow| self.orphaned(&flow));
        let messages = doomed.map(|companion| companion.delete()).collect();
        self.run_deletions("remove a policy between two hosts", messages)
    }

    /// The companions of a flow that are nobody's while no child carries it.
    fn orphaned(&self, flow: &Flow) -> Vec<Companion> {
        let mut companions = companions(flow);
        if self.carriers.contains_key(flow) {
            return Vec::new();
        }
        if !self.is_alone(flow) {
            companions.retain(|companion| companion.protects);
        }
        companions
    }

    /// Whether no child carries another flow between the same hosts.
    fn is_alone(&self, flow: &Flow) -> bool {
        let source = |flow: &Flow| flow.between.map(|between| between.source);
        let same =
            |other: &Flow| other.destination == flow.destination && source(other) == source(flow);
        !self.carriers.keys().any(|other| other != flow && same(other))
    }

    /// Whether a policy can select what a child in transport mode is to carry.
    pub(super) fn check_transport(spec: &ChildSpec) -> Result<(), PlaneError> {
        if spec.mode == Mode::Transport && flows(spec).is_empty() {
            return Err(PlaneError::Unsupported {
                plane: PlaneKind::Kernel.name(),
                what: "carry these selectors in transport mode".to_owned(),
                fix: "let both sides ask for the two outer addresses themselves, with at most one \
                      protocol and one port each, or for tunnel mode",
            });
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "transport_tests.rs"]
mod tests;
