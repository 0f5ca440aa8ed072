//! The addresses of this machine, from procfs: enough to name them in a certificate.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Most addresses put in a certificate; a machine with more should name them in `listen`.
const MOST: usize = 32;

/// This network namespace's addresses that others could use to reach it, loopback last.
pub fn local_addresses() -> Vec<IpAddr> {
    let v4 = std::fs::read_to_string("/proc/net/fib_trie").unwrap_or_default();
    let v6 = std::fs::read_to_string("/proc/net/if_inet6").unwrap_or_default();
    let mut addresses: Vec<IpAddr> = parse_fib_trie(&v4).into_iter().map(IpAddr::V4).collect();
    addresses.extend(parse_if_inet6(&v6).into_iter().map(IpAddr::V6));
    addresses.sort_by_key(|address| (address.is_loopback(), *address));
    addresses.dedup();
    addresses.truncate(MOST);
    addresses
}

/// A leaf line `|-- 192.0.2.1` followed by `/32 host LOCAL` is an address of ours.
fn parse_fib_trie(text: &str) -> Vec<Ipv4Addr> {
    let mut found = Vec::new();
    let mut leaf = None;
    for line in text.lines() {
        let line = line.trim();
        if let Some(address) = line.strip_prefix("|-- ") {
            leaf = address.parse().ok();
        } else if line == "/32 host LOCAL"
            && let Some(address) = leaf
        {
            found.push(address);
        }
    }
    found
}

/// `fe800000... ifindex prefixlen scope flags name`; link-local scope (20) is left out.
fn parse_if_inet6(text: &str) -> Vec<Ipv6Addr> {
    text.lines()
        .filter_map(|line| {
            let mut fields = line.split_whitespace();
            let address = u128::from_str_radix(fields.next()?, 16).ok()?;
            let scope = fields.nth(2)?;
            (scope != "20").then(|| Ipv6Addr::from(address))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn procfs_tables_are_understood() {
        let trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\n\
                    Local:\n     |-- 127.0.0.0\n        /8 host LOCAL\n     |-- 192.0.2.1\n        \
                    /32 host LOCAL\n     |-- 192.0.2.255\n        /32 link BROADCAST\n";
        assert_eq!(parse_fib_trie(trie), [Ipv4Addr::new(192, 0, 2, 1)]);
        let inet6 = "00000000000000000000000000000001 01 80 10 80       lo\n\
                     fe800000000000000000000000000001 02 40 20 80     eth0\n\
                     20010db8000000000000000000000001 02 40 00 80     eth0\n";
        let expected: Vec<Ipv6Addr> = vec!["::1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
        assert_eq!(parse_if_inet6(inet6), expected);
    }
}
