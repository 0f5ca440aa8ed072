//! What an earlier run of this instance left in the kernel, and its taking over; and the
//! comparison of what should be installed with what is.
//!
//! The SAs themselves are never made again: the kernel holds their counters, so no sequence number
//! repeats and no packet meets a gap.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::KernelPlane;
use super::decode::{PolicyState, SaState, Wanted};
use super::encode::{self, Half};
use super::flow::{Flow, flows};
use super::policies::Sender;
use super::transport::{self, Companion};
use crate::dataplane::PlaneEvent;
use crate::error::PlaneError;
use crate::model::{ChildSpec, Hosts, Limits, Spi, Usage};
use crate::netlink::Message;

/// Direction of outbound policies in the kernel's answers (`XFRM_POLICY_OUT`).
const OUT: u8 = 1;

/// What nobody has taken over yet.
#[derive(Debug, Default)]
pub(super) struct Left {
    sas: BTreeMap<Spi, Vec<SaState>>,
    /// Outbound policies by what they select.
    pub(super) policies: BTreeMap<Flow, PolicyState>,
    /// The other policies of children in transport mode.
    pub(super) companions: BTreeMap<Companion, PolicyState>,
}

impl Left {
    fn take(&mut self, spi: Spi, reqid: u32) -> Vec<SaState> {
        let (ours, others): (Vec<_>, Vec<_>) =
            self.sas.remove(&spi).unwrap_or_default().into_iter().partition(|sa| sa.reqid == reqid);
        if !others.is_empty() {
            self.sas.insert(spi, others);
        }
        ours
    }
}

impl KernelPlane {
    /// Looks for what a killed instance left.
    pub(super) fn find_left(&mut self) -> Result<(), PlaneError> {
        for sa in self.dump_sas()? {
            self.left.sas.entry(sa.spi).or_default().push(sa);
        }
        for policy in self.dump_policies()? {
            match (policy.direction, policy.flow) {
                (OUT, Some(flow)) if policy.protects => {
                    // A new policy must not get the index of one that is there.
                    let number = encode::outbound_number(policy.index).unwrap_or_default();
                    self.policies_made = self.policies_made.max(number);
                    self.left.policies.insert(flow, policy);
                }
                (direction, Some(flow)) if flow.between.is_some() => {
                    let companion = Companion::new(direction, flow, policy.protects);
                    self.left.companions.insert(companion, policy);
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Removes what nobody took over.
    pub(super) fn remove_left(&mut self) -> Result<usize, PlaneError> {
        let policies = self.left.policies.values().chain(self.left.companions.values());
        let policies =
            policies.map(|policy| encode::delete_policy_by_index(policy.if_id, policy.index));
        let sas = self.left.sas.values().flatten().map(delete);
        let messages: Vec<Message> = policies.chain(sas).collect();
        let count = messages.len();
        self.run_deletions("remove what an earlier run left", messages)?;
        self.left = Left::default();
        Ok(count)
    }

    pub(super) fn adopt_child(&mut self, spec: &ChildSpec) -> Result<bool, PlaneError> {
        self.check(spec)?;
        let inbound = self.left.take(spec.spi_in, spec.reqid);
        let outbound = self.left.take(spec.spi_out, spec.reqid);
        let (inbound, mut surplus) = newest(inbound, |sa| sa.sequence.received);
        let (outbound, more) = newest(outbound, |sa| sa.sequence.sent);
        surplus.extend(more);
        let (Some(inbound), Some(outbound)) = (&inbound, &outbound) else {
            surplus.extend(inbound.into_iter().chain(outbound));
            let messages = surplus.iter().map(delete).collect();
            self.run_deletions("remove half a child of an earlier run", messages)?;
            return Ok(false);
        };
        let from = outer(outbound, Half::Out, &spec.hosts);
        let known = ChildSpec { hosts: from, ..spec.clone() };
        for flow in flows(spec) {
            let sends = |policy: &&PolicyState| {
                policy.sender.is_some_and(|to| (to.spi, to.reqid) == (spec.spi_out, spec.reqid))
            };
            if let Some(policy) = self.left.policies.get(&flow).filter(sends) {
                self.senders.insert(flow, Sender { child: spec.id, policy: policy.index });
            }
        }
        // What is made anew is made without.
        let device = outbound.device.filter(|_| from == spec.hosts);
        self.devices.extend(device.map(|device| (spec.id, device)));
        let companions = self.companion_steps(spec);
        self.enlist(known.clone());
        self.index.insert(spec.id, spec.spi_in, spec.spi_out, spec.hosts);
        // Copies from a move that was under way when the process died.
        let messages = surplus.iter().map(delete).collect();
        let done = self
            .run_deletions("remove a former SA", messages)
            .and_then(|()| self.bring_to(&known, inbound, spec))
            .and_then(|()| self.run(companions));
        for flow in self.sends_to(spec) {
            self.left.policies.remove(&flow);
        }
        for companion in flows(spec).iter().flat_map(transport::companions) {
            self.left.companions.remove(&companion);
        }
        match done {
            Ok(()) => {
                self.children.insert(spec.id, spec.clone());
                Ok(true)
            }
            Err(error) => {
                self.give_up(spec, [inbound, outbound]);
                Err(error)
            }
        }
    }

    /// Makes what was found into what should be: addresses, encapsulation, and who sends.
    fn bring_to(
        &mut self,
        known: &ChildSpec,
        inbound: &SaState,
        spec: &ChildSpec,
    ) -> Result<(), PlaneError> {
        let hosts = &spec.hosts;
        let received = outer(inbound, Half::In, hosts);
        if (received.encap, received.local.ip()) != (hosts.encap, hosts.local.ip()) {
            let former = ChildSpec { hosts: received, ..spec.clone() };
            self.replace_inbound(&former, hosts)?;
        } else if received != *hosts {
            self.update_ports(spec, hosts, Half::In)?;
        }
        let sent = known.hosts;
        let ends = |hosts: &Hosts| (hosts.encap, hosts.local.ip(), hosts.remote.ip());
        if ends(&sent) != ends(hosts) {
            self.replace_outbound(known, hosts)?;
        } else if sent != *hosts {
            self.update_ports(spec, hosts, Half::Out)?;
        }
        if !spec.outbound_active {
            return Ok(());
        }
        let wanted = Wanted {
            source: hosts.local.ip(),
            destination: hosts.remote.ip(),
            spi: spec.spi_out,
            reqid: spec.reqid,
        };
        let mut carried = flows(spec);
        carried.retain(|flow| {
            self.left.policies.get(flow).is_none_or(|policy| policy.sender != Some(wanted))
        });
        let (steps, senders) = self.policy_steps(spec, hosts, &carried);
        self.run(steps)?;
        self.senders.extend(senders);
        Ok(())
    }

    /// After a failure: nothing of the child passes a packet.
    fn give_up(&mut self, spec: &ChildSpec, sas: [&SaState; 2]) {
        let flows = self.sends_to(spec);
        let mut messages: Vec<Message> = sas.map(delete).into();
        messages.push(encode::delete_sa(spec.hosts.local.ip(), spec.spi_in));
        messages.push(encode::delete_sa(spec.hosts.remote.ip(), spec.spi_out));
        let policies = self.delete_policies(&flows);
        let sas = self.run_deletions("remove an SA that could not be taken over", messages);
        self.strike(spec.id);
        let companions = self.remove_companions(spec);
        for error in [policies, sas, companions].into_iter().filter_map(Result::err) {
            tracing::warn!(child = spec.id.0, %error, "a part of the child stays");
        }
        self.index.remove(spec.id, spec.spi_in, spec.spi_out);
    }

    /// What events would have said: children that are gone, or past a limit.
    pub(super) fn missed(&mut self) -> Result<Vec<PlaneEvent>, PlaneError> {
        let installed = self.installed()?;
        let mut events = Vec::new();
        for spec in self.children.values() {
            let inbound = installed.get(&(spec.hosts.local.ip(), spec.spi_in));
            let outbound = installed.get(&(spec.hosts.remote.ip(), spec.spi_out));
            let hard = inbound.is_none() || outbound.is_none();
            if hard || is_due(&spec.limits, &super::stats::usage(inbound, outbound)) {
                events.push(PlaneEvent::Expire { child: spec.id, hard });
            }
        }
        Ok(events)
    }
}

fn delete(sa: &SaState) -> Message {
    encode::delete_sa(sa.destination, sa.spi)
}

/// The SA that was used last, by its counter, and the others. Larval ones are no SAs.
fn newest(sas: Vec<SaState>, counter: impl Fn(&SaState) -> u64) -> (Option<SaState>, Vec<SaState>) {
    let mut surplus = Vec::new();
    let mut best: Option<SaState> = None;
    for sa in sas {
        if sa.larval || best.as_ref().is_some_and(|best| counter(best) >= counter(&sa)) {
            surplus.push(sa);
        } else {
            surplus.extend(best.replace(sa));
        }
    }
    (best, surplus)
}

/// Where an SA's packets go; ports that the kernel does not hold are those that should be.
fn outer(sa: &SaState, half: Half, wanted: &Hosts) -> Hosts {
    let ports = match half {
        Half::In => sa.encap.map(|(remote, local)| (local, remote)),
        Half::Out => sa.encap,
    };
    let (local_port, remote_port) = ports.unwrap_or((wanted.local.port(), wanted.remote.port()));
    let (local, remote) = match half {
        Half::In => (sa.destination, sa.source),
        Half::Out => (sa.source, sa.destination),
    };
    Hosts {
        local: SocketAddr::new(local, local_port),
        remote: SocketAddr::new(remote, remote_port),
        encap: sa.encap.is_some(),
    }
}

/// Whether a soft limit is reached in one direction.
fn is_due(limits: &Limits, usage: &Usage) -> bool {
    let reached = |limit: Option<u64>, counters: [u64; 2]| {
        limit.is_some_and(|limit| counters.iter().any(|counter| *counter >= limit))
    };
    reached(limits.soft_bytes, [usage.bytes_in, usage.bytes_out])
        || reached(limits.soft_packets, [usage.packets_in, usage.packets_out])
}
