//! Traffic selectors: intersection and narrowing (RFC 7296 2.9).

use std::net::IpAddr;

use crate::wire::TrafficSelector;

/// Selectors in one answer at most. More would make the message grow and the peer's policy table
/// with it; a grant has at most 32.
pub const MAX_NARROWED: usize = 64;

/// What narrowing came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Narrowed {
    /// What both sides allow, in the order of the offer.
    pub selectors: Vec<TrafficSelector>,
    /// More was possible than fits: ADDITIONAL_TS_POSSIBLE.
    pub more: bool,
}

/// The traffic that both selectors allow.
pub fn intersect(a: &TrafficSelector, b: &TrafficSelector) -> Option<TrafficSelector> {
    if a.start.is_ipv4() != b.start.is_ipv4() {
        return None;
    }
    let protocol = match (a.protocol, b.protocol) {
        (0, other) | (other, 0) => other,
        (x, y) if x == y => x,
        _ => return None,
    };
    let (start_port, end_port) = match (a.is_opaque(), b.is_opaque()) {
        (false, false) => {
            let (start, end) = (a.start_port.max(b.start_port), a.end_port.min(b.end_port));
            if start > end {
                return None;
            }
            (start, end)
        }
        // OPAQUE is within ANY, and within no other range (RFC 7296 3.13.1).
        (true, true) => (u16::MAX, 0),
        (true, false) if b.is_any_port() => (u16::MAX, 0),
        (false, true) if a.is_any_port() => (u16::MAX, 0),
        _ => return None,
    };
    let (start, end) = (a.start.max(b.start), a.end.min(b.end));
    (start <= end).then_some(TrafficSelector { protocol, start_port, end_port, start, end })
}

/// Whether all of `inner` is allowed by `outer`.
pub fn contains(outer: &TrafficSelector, inner: &TrafficSelector) -> bool {
    intersect(outer, inner).as_ref() == Some(inner)
}

/// Whether every selector of `inner` lies within one of `outer`.
pub fn covers(outer: &[TrafficSelector], inner: &[TrafficSelector]) -> bool {
    inner.iter().all(|inner| outer.iter().any(|outer| contains(outer, inner)))
}

/// What of an offer is allowed: every pair's intersection, in the order of the offer, so that a
/// first selector taken from a packet (RFC 7296 2.9) stays first; parts of others left out.
pub fn narrow(offered: &[TrafficSelector], allowed: &[TrafficSelector]) -> Narrowed {
    let mut selectors: Vec<TrafficSelector> = Vec::new();
    for offer in offered {
        for allow in allowed {
            let Some(both) = intersect(offer, allow) else {
                continue;
            };
            if selectors.iter().any(|known| contains(known, &both)) {
                continue;
            }
            if selectors.len() >= MAX_NARROWED {
                return Narrowed { selectors, more: true };
            }
            // A wider one makes those within it superfluous, but the first keeps its place: it
            // may stand for the packet that started this.
            let keep = selectors.first().copied();
            selectors.retain(|known| Some(*known) == keep || !contains(&both, known));
            selectors.push(both);
        }
    }
    Narrowed { selectors, more: false }
}

/// Selectors of single hosts.
pub fn hosts(addresses: &[IpAddr]) -> Vec<TrafficSelector> {
    addresses.iter().map(|&address| TrafficSelector::addresses(address, address)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(start: &str, end: &str) -> TrafficSelector {
        TrafficSelector::addresses(start.parse().unwrap(), end.parse().unwrap())
    }

    fn port(selector: TrafficSelector, protocol: u8, start: u16, end: u16) -> TrafficSelector {
        TrafficSelector { protocol, start_port: start, end_port: end, ..selector }
    }

    #[test]
    fn intersection_is_the_smaller_of_everything() {
        let wide = net("10.0.0.0", "10.0.255.255");
        let web = port(net("10.0.1.0", "10.1.0.0"), 6, 80, 443);

        let both = intersect(&wide, &web).unwrap();

        assert_eq!(both, port(net("10.0.1.0", "10.0.255.255"), 6, 80, 443));
        assert_eq!(intersect(&web, &wide), Some(both));
    }

    #[test]
    fn protocols_ports_families_and_ranges_that_differ_have_nothing_in_common() {
        let host = net("10.0.0.1", "10.0.0.1");
        let tcp80 = port(host, 6, 80, 80);

        assert_eq!(intersect(&tcp80, &port(host, 17, 80, 80)), None);
        assert_eq!(intersect(&tcp80, &port(host, 6, 81, 90)), None);
        assert_eq!(intersect(&tcp80, &net("10.0.0.2", "10.0.0.3")), None);
        assert_eq!(intersect(&host, &net("fd00::1", "fd00::2")), None);
    }

    #[test]
    fn opaque_ports_are_within_any_and_within_opaque_only() {
        let host = net("10.0.0.1", "10.0.0.1");
        let opaque = port(host, 17, u16::MAX, 0);

        assert_eq!(intersect(&opaque, &host), Some(opaque));
        assert_eq!(intersect(&opaque, &opaque), Some(opaque));
        assert_eq!(intersect(&opaque, &port(host, 17, 1, 100)), None);
    }

    #[test]
    fn narrowing_keeps_the_order_of_the_offer_and_leaves_out_parts() {
        let allowed = [net("10.20.0.0", "10.20.0.255"), net("10.30.0.5", "10.30.0.5")];
        let packet = port(net("10.30.0.5", "10.30.0.5"), 6, 443, 443);

        let narrowed = narrow(&[packet, TrafficSelector::any_v4()], &allowed);

        assert_eq!(narrowed.selectors, [packet, allowed[0], allowed[1]]);
        assert!(!narrowed.more);
    }

    #[test]
    fn an_offer_outside_what_is_allowed_leaves_nothing() {
        let narrowed =
            narrow(&[net("192.168.0.0", "192.168.255.255")], &[net("10.0.0.0", "10.0.0.9")]);

        assert_eq!(narrowed.selectors, []);
    }

    #[test]
    fn what_does_not_fit_is_reported() {
        let many: Vec<_> =
            (0..=255u8).map(|n| net(&format!("10.0.{n}.1"), &format!("10.0.{n}.1"))).collect();

        let narrowed = narrow(&[TrafficSelector::any_v4()], &many);

        assert_eq!(narrowed.selectors.len(), MAX_NARROWED);
        assert!(narrowed.more);
    }

    #[test]
    fn covering_is_per_selector() {
        let outer = [net("10.0.0.0", "10.0.0.255"), net("fd00::", "fd00::ff")];

        assert!(covers(&outer, &[net("10.0.0.7", "10.0.0.7"), net("fd00::1", "fd00::1")]));
        assert!(!covers(&outer, &[net("10.0.0.7", "10.0.1.7")]));
        assert!(covers(&outer, &[]));
    }
}
