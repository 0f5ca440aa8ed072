//! A data plane and the firewall together, in the only safe order.

use crate::Dataplane;

/// Owns a plane and the firewall.
pub struct Enforcer {
    plane: Box<dyn Dataplane>,
}

impl Enforcer {
    /// The plane, for queries.
    pub fn plane(&mut self) -> &mut dyn Dataplane {
        self.plane.as_mut()
    }
}
