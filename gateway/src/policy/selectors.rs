//! Narrowing a role's reach to a list of IKE traffic selectors a peer can hold.
//!
//! A list of at most [`MAX_SELECTORS`] is passed on exactly. A longer one loses first its
//! protocols and ports, then neighbouring networks are joined, cheapest first, until it fits. The
//! result always covers the exact list; what is too wide in it, the packet filter drops.

use ike::wire::TrafficSelector;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::reach;
use crate::config::{AllowEntry, Pool, Role};

/// Selectors a peer is given at most; every peer seen so far holds this many.
pub const MAX_SELECTORS: usize = 32;

/// The selectors of what a role may reach, at most [`MAX_SELECTORS`].
pub fn allowed_selectors(role: &Role, pool: &Pool) -> Vec<TrafficSelector> {
    narrow(&reach(role, pool), MAX_SELECTORS).iter().map(selector).collect()
}

fn narrow(entries: &[AllowEntry], most: usize) -> Vec<AllowEntry> {
    let exact = without_covered(entries);
    if exact.len() <= most {
        return exact;
    }
    let mut networks: Vec<IpNet> = exact.iter().map(|entry| entry.net).collect();
    networks = IpNet::aggregate(&networks);
    while networks.len() > most {
        networks.sort();
        // The pair of neighbours whose common network is smallest widens the least.
        let best = networks
            .windows(2)
            .enumerate()
            .filter_map(|(index, pair)| match pair {
                [left, right] => Some((spare_bits(common(*left, *right)?), index)),
                _ => None,
            })
            .min();
        let Some((_, index)) = best else { break };
        let joined = networks
            .get(index)
            .zip(networks.get(index + 1))
            .and_then(|(left, right)| common(*left, *right));
        let Some(joined) = joined else { break };
        networks.retain(|network| !joined.contains(network));
        networks.push(joined);
    }
    networks.sort();
    networks.into_iter().map(|net| AllowEntry { net, protocol: None, ports: None }).collect()
}

/// Drops entries that another entry covers.
fn without_covered(entries: &[AllowEntry]) -> Vec<AllowEntry> {
    let covers = |wide: &AllowEntry, narrow: &AllowEntry| {
        wide.net.contains(&narrow.net)
            && (wide.protocol.is_none() || wide.protocol == narrow.protocol)
            && match (wide.ports, narrow.ports) {
                (None, _) => true,
                (Some(_), None) => false,
                (Some((from, to)), Some((low, high))) => from <= low && high <= to,
            }
    };
    let mut kept: Vec<AllowEntry> = Vec::new();
    for entry in entries {
        if kept.iter().any(|other| covers(other, entry)) {
            continue;
        }
        kept.retain(|other| !covers(entry, other));
        kept.push(*entry);
    }
    kept
}

/// Address bits a network leaves free: how much joining into it widens. Comparable across
/// families because both are compared only within one.
fn spare_bits(net: IpNet) -> u8 {
    net.max_prefix_len().saturating_sub(net.prefix_len())
}

/// The smallest network that holds both; `None` for different families.
fn common(left: IpNet, right: IpNet) -> Option<IpNet> {
    match (left, right) {
        (IpNet::V4(a), IpNet::V4(b)) => {
            let differ = u32::from(a.network()) ^ u32::from(b.network());
            let shared = u8::try_from(differ.leading_zeros()).unwrap_or(0);
            let prefix = shared.min(a.prefix_len()).min(b.prefix_len());
            Ipv4Net::new(a.network(), prefix).ok().map(|net| IpNet::V4(net.trunc()))
        }
        (IpNet::V6(a), IpNet::V6(b)) => {
            let differ = u128::from(a.network()) ^ u128::from(b.network());
            let shared = u8::try_from(differ.leading_zeros()).unwrap_or(0);
            let prefix = shared.min(a.prefix_len()).min(b.prefix_len());
            Ipv6Net::new(a.network(), prefix).ok().map(|net| IpNet::V6(net.trunc()))
        }
        _ => None,
    }
}

fn selector(entry: &AllowEntry) -> TrafficSelector {
    let (start_port, end_port) = entry.ports.unwrap_or((0, u16::MAX));
    TrafficSelector {
        protocol: entry.protocol.unwrap_or(0),
        start_port,
        end_port,
        start: entry.net.network(),
        end: entry.net.broadcast(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(net: &str, port: Option<u16>) -> AllowEntry {
        AllowEntry {
            net: net.parse().unwrap(),
            protocol: port.map(|_| 6),
            ports: port.map(|port| (port, port)),
        }
    }

    fn covers_all(narrowed: &[AllowEntry], entries: &[AllowEntry]) -> bool {
        entries.iter().all(|entry| narrowed.iter().any(|wide| wide.net.contains(&entry.net)))
    }

    #[test]
    fn a_short_list_stays_exact_without_what_is_covered_twice() {
        let list = [
            entry("10.20.0.10/32", Some(443)),
            entry("10.20.0.0/24", None),
            entry("10.21.0.1/32", Some(22)),
        ];
        let narrowed = narrow(&list, 32);
        assert_eq!(narrowed, [entry("10.20.0.0/24", None), entry("10.21.0.1/32", Some(22))]);
    }

    #[test]
    fn a_long_list_becomes_covering_networks_within_the_bound() {
        let mut list: Vec<AllowEntry> =
            (0..200u32).map(|i| entry(&format!("10.{}.{}.7/32", i % 7, i), Some(443))).collect();
        list.extend((0..60u32).map(|i| entry(&format!("fd00:{i:x}::1/128"), Some(53))));
        let narrowed = narrow(&list, 32);
        assert!(narrowed.len() <= 32 && narrowed.len() > 8, "{}", narrowed.len());
        assert!(covers_all(&narrowed, &list));
        assert!(narrowed.iter().all(|entry| entry.net.prefix_len() > 0), "never everything");
    }

    #[test]
    fn adjacent_networks_join_without_widening() {
        let list: Vec<AllowEntry> =
            (0..64u32).map(|i| entry(&format!("10.0.0.{i}/32"), Some(443))).collect();
        assert_eq!(narrow(&list, 32), [entry("10.0.0.0/26", None)]);
    }

    #[test]
    fn dns_servers_of_the_pool_are_implied() {
        let mut config = crate::config::Config::built_in();
        config.pools[0].dns = vec!["10.20.0.53".parse().unwrap()];
        let selectors = allowed_selectors(&config.roles[0], &config.pools[0]);
        let dns: Vec<u8> =
            selectors.iter().filter(|ts| ts.start_port == 53).map(|ts| ts.protocol).collect();
        assert_eq!(dns, [6, 17]);
        let filters = super::super::role_filters(&config);
        assert_eq!(filters[0].allow.len(), 4);
    }
}
