//! Moves an installed child to other outer addresses (MOBIKE, NAT rebinding) without a packet
//! lost or sent in clear.

use super::KernelPlane;
use super::apply::{Over, Step};
use super::encode::{self, Half, Sequence};
use crate::error::PlaneError;
use crate::model::{ChildId, ChildSpec, Hosts, Mode};

/// Sequence numbers skipped by the outbound SA for a new destination: more than the old one can
/// send between the reading of its counter and the change of policy, so that none is used twice
/// under one key.
const COUNTER_JUMP: u64 = 1 << 16;

impl KernelPlane {
    pub(super) fn move_child(&mut self, child: ChildId, hosts: &Hosts) -> Result<(), PlaneError> {
        let spec = self.known(child)?.clone();
        let former = spec.hosts;
        if former == *hosts {
            return Ok(());
        }
        if hosts.local.is_ipv4() != hosts.remote.is_ipv4() {
            return Err(PlaneError::Conflict(format!(
                "outer addresses {} and {} are of different families",
                hosts.local, hosts.remote
            )));
        }
        let ends = |hosts: &Hosts| (hosts.local.ip(), hosts.remote.ip(), hosts.encap);
        if spec.mode == Mode::Transport && ends(&former) != ends(hosts) {
            // RFC 4555 1.2: what it carries is between the former addresses themselves.
            return Err(PlaneError::Conflict(format!(
                "child {} is in transport mode, which ends with the addresses it is between; \
                 connect again instead of moving it",
                spec.id.0
            )));
        }
        if ends(&former) != ends(hosts) {
            self.devices.remove(&child);
        }
        let same_inbound = former.encap == hosts.encap && former.local.ip() == hosts.local.ip();
        let same_outbound = same_inbound && former.remote.ip() == hosts.remote.ip();
        // From now on: a mapping event about the new address is no news.
        self.index.insert(child, spec.spi_in, spec.spi_out, *hosts);
        let moved = self.move_parts(&spec, hosts, same_inbound, same_outbound);
        match moved {
            Ok(()) => {
                if let Some(spec) = self.children.get_mut(&child) {
                    spec.hosts = *hosts;
                }
                Ok(())
            }
            Err(error) => {
                self.index.insert(child, spec.spi_in, spec.spi_out, former);
                Err(error)
            }
        }
    }

    fn move_parts(
        &mut self,
        spec: &ChildSpec,
        hosts: &Hosts,
        same_inbound: bool,
        same_outbound: bool,
    ) -> Result<(), PlaneError> {
        // What arrives must be accepted before we send from or to the new address.
        if same_inbound {
            self.update_ports(spec, hosts, Half::In)?;
        } else {
            self.replace_inbound(spec, hosts)?;
        }
        let outbound = if same_outbound {
            self.update_ports(spec, hosts, Half::Out)
        } else {
            self.replace_outbound(spec, hosts)
        };
        if outbound.is_err() {
            let back = if same_inbound {
                self.update_ports(spec, &spec.hosts, Half::In)
            } else {
                let moved = ChildSpec { hosts: *hosts, ..spec.clone() };
                self.replace_inbound(&moved, &spec.hosts)
            };
            if let Err(error) = back {
                tracing::warn!(child = spec.id.0, %error, "inbound half stays moved");
            }
        }
        outbound
    }

    /// Ports change in place; nothing else does.
    pub(super) fn update_ports(
        &mut self,
        spec: &ChildSpec,
        hosts: &Hosts,
        half: Half,
    ) -> Result<(), PlaneError> {
        if !hosts.encap {
            return Ok(());
        }
        // The kernel finds the SA by our address inbound and the peer's outbound; the latter is
        // unchanged here, the former's source address it does not check.
        let (destination, spi) = match half {
            Half::In => (hosts.local.ip(), spec.spi_in),
            Half::Out => (hosts.remote.ip(), spec.spi_out),
        };
        let Some(state) = self.state(destination, spi)? else {
            return Err(expired(spec));
        };
        let message = encode::update_sa(self.context, spec, hosts, half, state.ends_after);
        self.netlink.request(&format!("change the ports of child {}", spec.id.0), message)
    }

    /// Another encapsulation or address of ours: a new inbound SA that goes on with the replay
    /// window of the old one.
    pub(super) fn replace_inbound(
        &mut self,
        spec: &ChildSpec,
        hosts: &Hosts,
    ) -> Result<(), PlaneError> {
        let (old, new) = (spec.hosts.local.ip(), hosts.local.ip());
        let Some(state) = self.state(old, spec.spi_in)? else {
            return Err(expired(spec));
        };
        let sequence = Sequence { sent: 0, ..state.sequence };
        let what = format!("move the inbound SA {}", spec.spi_in);
        let restore = encode::new_sa(self.context, spec, &spec.hosts, Half::In, &sequence);
        let install = Step {
            what: what.clone(),
            message: encode::new_sa(self.context, spec, hosts, Half::In, &sequence),
            undo: Some(encode::delete_sa(new, spec.spi_in)),
            over: None,
        };
        let delete = Step {
            what,
            message: encode::delete_sa(old, spec.spi_in),
            undo: Some(restore),
            over: None,
        };
        // With the same address the two cannot coexist: SPI and address name an SA.
        self.run(if old == new { vec![delete, install] } else { vec![install, delete] })
    }

    /// Another destination: a new outbound SA at a higher counter, the policy, then the old one.
    pub(super) fn replace_outbound(
        &mut self,
        spec: &ChildSpec,
        hosts: &Hosts,
    ) -> Result<(), PlaneError> {
        let (old, new) = (spec.hosts.remote.ip(), hosts.remote.ip());
        let Some(state) = self.state(old, spec.spi_out)? else {
            return Err(expired(spec));
        };
        let jumped = state.sequence.sent.saturating_add(COUNTER_JUMP);
        if !spec.esn && jumped > u64::from(u32::MAX) {
            return Err(PlaneError::Conflict(format!(
                "child {} has used up its sequence numbers; rekey it instead of moving it",
                spec.id.0
            )));
        }
        let sequence = Sequence { sent: jumped, ..Sequence::default() };
        let what = format!("move the outbound SA {}", spec.spi_out);
        let install = Step {
            what: what.clone(),
            message: encode::new_sa(self.context, spec, hosts, Half::Out, &sequence),
            undo: Some(encode::delete_sa(new, spec.spi_out)),
            // A packet between the deletion and this leaves a larval SA.
            over: Some(Over {
                destination: new,
                spi: spec.spi_out,
                message: encode::fill_sa(self.context, spec, hosts, Half::Out, &sequence),
            }),
        };
        let flows = self.sends_to(spec);
        let (policies, _) = self.policy_steps(spec, hosts, &flows);
        if old == new {
            // Only encapsulation or our own address changed: the two cannot coexist. Between the
            // two the policy finds no SA and holds packets back; nothing leaves in clear.
            let restored = Sequence { sent: jumped.saturating_add(COUNTER_JUMP), ..sequence };
            let restore = encode::new_sa(self.context, spec, &spec.hosts, Half::Out, &restored);
            let delete = Step {
                what,
                message: encode::delete_sa(old, spec.spi_out),
                undo: Some(restore),
                over: None,
            };
            return self.run([delete, install].into_iter().chain(policies).collect());
        }
        self.run(std::iter::once(install).chain(policies).collect())?;
        self.run_deletions("remove a former SA", vec![encode::delete_sa(old, spec.spi_out)])
    }
}

/// Its counters went with it, so a new one under the same keys would repeat sequence numbers.
fn expired(spec: &ChildSpec) -> PlaneError {
    PlaneError::Conflict(format!(
        "child {} has expired in the kernel; rekey it instead of moving it",
        spec.id.0
    ))
}
