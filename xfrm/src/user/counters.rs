//! Dropped packets by reason.

use std::sync::atomic::{AtomicU64, Ordering};

/// Why a packet did not pass. The names appear in [`crate::model::PlaneStats`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DropReason {
    /// Not a well-formed IP or ESP packet.
    Malformed,
    /// ESP for an SPI nobody installed.
    NoSa,
    /// Sequence number seen before or older than the window.
    Replay,
    /// Integrity check failed.
    Auth,
    /// Inner addresses, protocol or ports are not of the SA they came in.
    Selector,
    /// A fragment whose first part was not seen, or one built to evade port checks.
    Fragment,
    /// Congestion experienced on the way, but the sender cannot understand the mark (RFC 6040).
    Ecn,
    /// Dummy packet of traffic flow confidentiality (RFC 4303 2.6), dropped as intended.
    Dummy,
    /// No child SA leads to the inner destination.
    NoChild,
    /// A child SA leads there but its selectors forbid this packet.
    Policy,
    /// Larger than the tunnel MTU and not to be fragmented; answered with ICMP.
    TooBig,
    /// The child SA reached a hard limit.
    Expired,
    /// The outer network refused or its queue was full.
    SendFailed,
    /// The tunnel interface refused or its queue was full.
    TunFailed,
}

const REASONS: [(DropReason, &str); 14] = [
    (DropReason::Malformed, "malformed"),
    (DropReason::NoSa, "no_sa"),
    (DropReason::Replay, "replay"),
    (DropReason::Auth, "auth"),
    (DropReason::Selector, "ts"),
    (DropReason::Fragment, "fragment"),
    (DropReason::Ecn, "ecn"),
    (DropReason::Dummy, "dummy"),
    (DropReason::NoChild, "no_child"),
    (DropReason::Policy, "policy"),
    (DropReason::TooBig, "too_big"),
    (DropReason::Expired, "expired"),
    (DropReason::SendFailed, "send_failed"),
    (DropReason::TunFailed, "tun_failed"),
];

impl DropReason {
    /// The reason's name in statistics.
    pub fn name(self) -> &'static str {
        REASONS.iter().find(|(reason, _)| *reason == self).map_or("other", |(_, name)| name)
    }
}

/// One counter per [`DropReason`].
#[derive(Debug, Default)]
pub(super) struct DropCounters([AtomicU64; REASONS.len()]);

impl DropCounters {
    pub(super) fn add(&self, reason: DropReason, packets: u64) {
        if let Some(counter) = self.0.get(reason as usize) {
            counter.fetch_add(packets, Ordering::Relaxed);
        }
    }

    /// Reasons in their fixed order, zeros included.
    pub(super) fn snapshot(&self) -> Vec<(&'static str, u64)> {
        let counts = self.0.iter().map(|counter| counter.load(Ordering::Relaxed));
        REASONS.iter().map(|(_, name)| *name).zip(counts).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_counts_under_its_own_name() {
        let counters = DropCounters::default();
        for (reason, name) in REASONS {
            counters.add(reason, 1 + reason as u64);
            assert_eq!(reason.name(), name);
            assert_eq!(counters.snapshot()[reason as usize], (name, 1 + reason as u64));
        }
    }
}
