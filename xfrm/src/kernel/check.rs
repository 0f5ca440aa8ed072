//! What the plane refuses before it asks the kernel.

use super::flow::flows;
use super::{KernelPlane, MAX_WINDOW};
use crate::error::PlaneError;
use crate::model::{ChildSpec, PlaneKind};

/// Prefixes behind one peer at most: each is a policy.
const MAX_NETWORKS: usize = 128;

impl KernelPlane {
    pub(super) fn check(&self, spec: &ChildSpec) -> Result<(), PlaneError> {
        let unsupported = |what: String, fix| PlaneError::Unsupported {
            plane: PlaneKind::Kernel.name(),
            what,
            fix,
        };
        if self.children.contains_key(&spec.id) {
            return Err(PlaneError::Conflict(format!("child {} is already installed", spec.id.0)));
        }
        if self.index.is_inbound(spec.spi_in) {
            return Err(PlaneError::Conflict(format!("inbound SPI {} is in use", spec.spi_in)));
        }
        for keys in [&spec.keys_in, &spec.keys_out] {
            if (keys.encr.len(), keys.integ.len()) != spec.suite.key_lengths() {
                return Err(PlaneError::Conflict(format!(
                    "keys of child {} do not have the lengths of {}",
                    spec.id.0,
                    spec.suite.name()
                )));
            }
        }
        if spec.hosts.local.is_ipv4() != spec.hosts.remote.is_ipv4() {
            return Err(PlaneError::Conflict(format!(
                "outer addresses {} and {} are of different families",
                spec.hosts.local, spec.hosts.remote
            )));
        }
        Self::check_transport(spec)?;
        if spec.replay_window > MAX_WINDOW {
            return Err(unsupported(
                format!("keep a replay window of {}", spec.replay_window),
                "choose at most 4096",
            ));
        }
        if flows(spec).len() > MAX_NETWORKS {
            return Err(unsupported(
                format!("route more than {MAX_NETWORKS} networks to one peer"),
                "name whole networks instead of odd ranges",
            ));
        }
        Ok(())
    }
}
