//! Address pools: which address the next lease gets.
//!
//! The store decides (an address is a key, taken by a conditional write); this book in memory
//! only proposes, so that finding a free address needs no scan. Addresses are proposed in
//! order, the one released longest ago last, and rest for the pool's quarantine in between.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::profile::PoolConfig;
use crate::record::{self, Stored, key};
use crate::store::{self, Store};
use crate::time::UnixTime;

/// The record of an address that was handed out at least once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AddressRecord {
    /// The lease that holds it, or held it last.
    pub(crate) lease: String,
    /// Once released: until when nobody gets it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) resting_until: Option<UnixTime>,
}

/// Proposes addresses of all pools.
#[derive(Debug, Default)]
pub(crate) struct AddressBook {
    pools: BTreeMap<String, Pool>,
}

#[derive(Debug, Default)]
struct Pool {
    v4: Family,
    v6: Family,
}

#[derive(Debug, Default)]
struct Family {
    /// First and last client address of each network, in order of use.
    ranges: Vec<(u128, u128)>,
    /// The last address proposed.
    last: Option<u128>,
    taken: BTreeSet<u128>,
    resting: BTreeMap<u128, UnixTime>,
}

impl AddressBook {
    /// Reads what is taken and resting.
    pub(crate) fn load(store: &dyn Store) -> Result<Self, Error> {
        let mut book = Self::default();
        for (key, entry) in store::scan(store, key::ADDRESS)? {
            let Stored { value, .. } = record::decode::<AddressRecord>(&key, &entry)?;
            let Some((pool, address)) = parse_key(&key) else {
                return Err(Error::Damaged { key, cause: "not an address key".to_owned() });
            };
            match value.resting_until {
                Some(until) => book.rest(&pool, address, until),
                None => book.take(&pool, address),
            }
        }
        for pool in book.pools.values_mut() {
            pool.v4.resume_after_highest();
            pool.v6.resume_after_highest();
        }
        Ok(book)
    }

    /// Adopts the networks of the settings; what is taken or resting stays so.
    pub(crate) fn configure(&mut self, pools: &BTreeMap<String, PoolConfig>) {
        for (name, pool) in &mut self.pools {
            if !pools.contains_key(name) {
                pool.v4.ranges.clear();
                pool.v6.ranges.clear();
            }
        }
        for (name, config) in pools {
            let pool = self.pools.entry(name.clone()).or_default();
            let ranges = |v4: bool| {
                let networks = config.networks.iter().filter(|net| net.addr().is_ipv4() == v4);
                networks.filter_map(client_range).collect()
            };
            pool.v4.ranges = ranges(true);
            pool.v6.ranges = ranges(false);
        }
    }

    /// Reserves one address of each family the pool has, IPv4 first.
    pub(crate) fn reserve(&mut self, name: &str, now: UnixTime) -> Result<Vec<IpAddr>, Error> {
        let pool = self.pools.get_mut(name).ok_or_else(|| Error::not_found("pool", name))?;
        let exhausted = |family: u8, of: &Family| Error::PoolExhausted {
            pool: name.to_owned(),
            family,
            in_use: of.taken.len(),
            quarantined: of.resting.values().filter(|until| **until > now).count(),
        };
        let mut addresses = Vec::with_capacity(2);
        if !pool.v4.ranges.is_empty() {
            let v4 = pool.v4.next(now).ok_or_else(|| exhausted(4, &pool.v4))?;
            addresses.push(ip(v4, true));
        }
        if !pool.v6.ranges.is_empty() {
            match pool.v6.next(now) {
                Some(v6) => addresses.push(ip(v6, false)),
                None => {
                    let error = exhausted(6, &pool.v6);
                    self.unreserve(name, &addresses);
                    return Err(error);
                }
            }
        }
        Ok(addresses)
    }

    /// Gives back a reservation that was not committed.
    pub(crate) fn unreserve(&mut self, pool: &str, addresses: &[IpAddr]) {
        for address in addresses {
            self.family(pool, *address).taken.remove(&number(*address));
        }
    }

    /// Marks an address as held by a lease.
    pub(crate) fn take(&mut self, pool: &str, address: IpAddr) {
        let family = self.family(pool, address);
        family.resting.remove(&number(address));
        family.taken.insert(number(address));
    }

    /// Marks an address as released and resting.
    pub(crate) fn rest(&mut self, pool: &str, address: IpAddr, until: UnixTime) {
        let family = self.family(pool, address);
        family.taken.remove(&number(address));
        family.resting.insert(number(address), until);
    }

    /// Forgets that an address rested; what a lease has by now stays its.
    pub(crate) fn forget_rested(&mut self, pool: &str, address: IpAddr, now: UnixTime) {
        let resting = &mut self.family(pool, address).resting;
        if resting.get(&number(address)).is_some_and(|until| *until <= now) {
            resting.remove(&number(address));
        }
    }

    fn family(&mut self, pool: &str, address: IpAddr) -> &mut Family {
        let pool = self.pools.entry(pool.to_owned()).or_default();
        if address.is_ipv4() { &mut pool.v4 } else { &mut pool.v6 }
    }
}

impl Family {
    /// Takes the next free address after the last one, wrapping around once.
    fn next(&mut self, now: UnixTime) -> Option<u128> {
        let found = self
            .last
            .and_then(|last| self.first_free_after(last, now))
            .or_else(|| self.first_free_from_start(now))?;
        self.last = Some(found);
        self.resting.remove(&found);
        self.taken.insert(found);
        Some(found)
    }

    /// The first free address in the rest of the range that holds `last`, or in those after it.
    fn first_free_after(&self, last: u128, now: UnixTime) -> Option<u128> {
        let at = self.ranges.iter().position(|(first, end)| (*first..=*end).contains(&last))?;
        let (_, end) = self.ranges.get(at)?;
        let rest_of_range = if last < *end { self.free_within(last + 1, *end, now) } else { None };
        rest_of_range.or_else(|| {
            let mut following = self.ranges.iter().skip(at + 1);
            following.find_map(|(first, end)| self.free_within(*first, *end, now))
        })
    }

    fn first_free_from_start(&self, now: UnixTime) -> Option<u128> {
        self.ranges.iter().find_map(|(first, last)| self.free_within(*first, *last, now))
    }

    fn free_within(&self, first: u128, last: u128, now: UnixTime) -> Option<u128> {
        let mut taken = self.taken.range(first..=last).copied().peekable();
        let mut candidate = first;
        loop {
            let is_taken = taken.next_if_eq(&candidate).is_some();
            let rests = self.resting.get(&candidate).is_some_and(|until| *until > now);
            if !is_taken && !rests {
                return Some(candidate);
            }
            if candidate == last {
                return None;
            }
            candidate += 1;
        }
    }

    fn resume_after_highest(&mut self) {
        let taken = self.taken.last().copied();
        let resting = self.resting.last_key_value().map(|(address, _)| *address);
        self.last = taken.max(resting);
    }
}

/// Refuses networks without room for the gateway and one client.
pub(crate) fn check(name: &str, pool: &PoolConfig) -> Result<(), Error> {
    if pool.networks.is_empty() {
        return Err(Error::Invalid(format!("pool {name} has no addresses: add a network to it")));
    }
    for network in &pool.networks {
        if client_range(network).is_none() {
            return Err(Error::Invalid(format!(
                "pool {name} has network {network}, too small for the gateway and a client: use \
                 /30 or larger (IPv6: /126)"
            )));
        }
    }
    Ok(())
}

/// The gateway's own address in a network: the first usable one.
pub(crate) fn gateway_address(network: &IpNet) -> IpNet {
    let (first, _) = bounds(network);
    let skip = u128::from(host_bits(network) > 1);
    let v4 = network.addr().is_ipv4();
    // The address lies in the network, so the prefix length fits its family.
    IpNet::new(ip(first + skip, v4), network.prefix_len()).unwrap_or(*network)
}

/// First and last client address. Network and broadcast addresses are skipped (in IPv6 the
/// subnet-router anycast address, RFC 4291 2.6.1), except in two-address networks (RFC 3021,
/// RFC 6164), which have neither.
fn client_range(network: &IpNet) -> Option<(u128, u128)> {
    let (first, last) = bounds(network);
    match host_bits(network) {
        0 => None,
        1 => Some((last, last)),
        _ if network.addr().is_ipv4() => Some((first + 2, last - 1)),
        _ => Some((first + 2, last)),
    }
}

fn bounds(network: &IpNet) -> (u128, u128) {
    (number(network.network()), number(network.broadcast()))
}

fn host_bits(network: &IpNet) -> u8 {
    network.max_prefix_len() - network.prefix_len()
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

fn ip(number: u128, v4: bool) -> IpAddr {
    match u32::try_from(number) {
        Ok(number) if v4 => Ipv4Addr::from(number).into(),
        _ => Ipv6Addr::from(number).into(),
    }
}

/// The pool and address of an address key.
pub(crate) fn parse_key(key: &str) -> Option<(String, IpAddr)> {
    let mut parts = key.strip_prefix(key::ADDRESS)?.splitn(3, '/');
    let (pool, family, digits) = (parts.next()?, parts.next()?, parts.next()?);
    let address = match family {
        "4" => Ipv4Addr::from(u32::from_str_radix(digits, 16).ok()?).into(),
        "6" => Ipv6Addr::from(u128::from_str_radix(digits, 16).ok()?).into(),
        _ => return None,
    };
    Some((pool.to_owned(), address))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn book(networks: &[&str]) -> AddressBook {
        let networks = networks.iter().map(|net| net.parse().unwrap()).collect();
        let mut book = AddressBook::default();
        book.configure(&BTreeMap::from([("p".to_owned(), PoolConfig::new(networks))]));
        book
    }

    fn addresses(found: &[IpAddr]) -> String {
        found.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    }

    fn at(secs: i64) -> UnixTime {
        UnixTime::from_secs(secs)
    }

    #[test]
    fn skips_network_gateway_and_broadcast() {
        let mut book = book(&["10.0.0.0/29", "fd00::/125"]);
        let mut seen = Vec::new();
        while let Ok(found) = book.reserve("p", at(0)) {
            seen.push(addresses(&found));
        }
        assert_eq!(
            seen,
            [
                "10.0.0.2 fd00::2",
                "10.0.0.3 fd00::3",
                "10.0.0.4 fd00::4",
                "10.0.0.5 fd00::5",
                "10.0.0.6 fd00::6"
            ]
        );
    }

    #[test]
    fn knows_its_own_address_in_every_kind_of_network() {
        for (network, own) in [
            ("10.77.0.0/16", "10.77.0.1/16"),
            ("10.0.0.0/30", "10.0.0.1/30"),
            ("10.0.0.4/31", "10.0.0.4/31"),
            ("fd77::/64", "fd77::1/64"),
            ("fd77::/127", "fd77::/127"),
        ] {
            let network: IpNet = network.parse().unwrap();
            assert_eq!(gateway_address(&network).to_string(), own);
        }
    }

    #[test]
    fn uses_networks_in_order_and_wraps_around() {
        let mut book = book(&["10.0.1.0/30", "10.0.0.0/30"]);
        assert_eq!(addresses(&book.reserve("p", at(0)).unwrap()), "10.0.1.2");
        assert_eq!(addresses(&book.reserve("p", at(0)).unwrap()), "10.0.0.2");
        book.rest("p", "10.0.1.2".parse().unwrap(), at(10));
        assert!(matches!(
            book.reserve("p", at(9)),
            Err(Error::PoolExhausted { family: 4, in_use: 1, quarantined: 1, .. })
        ));
        assert_eq!(addresses(&book.reserve("p", at(10)).unwrap()), "10.0.1.2");
    }

    #[test]
    fn a_missing_second_family_returns_the_first() {
        let mut book = book(&["10.0.0.0/24", "fd00::/127"]);
        book.reserve("p", at(0)).unwrap();
        assert!(matches!(
            book.reserve("p", at(0)),
            Err(Error::PoolExhausted { family: 6, in_use: 1, .. })
        ));
        assert_eq!(book.pools["p"].v4.taken.len(), 1);
    }

    #[test]
    fn the_largest_networks_do_not_overflow() {
        let mut book = book(&["0.0.0.0/0", "::/0"]);
        assert_eq!(addresses(&book.reserve("p", at(0)).unwrap()), "0.0.0.2 ::2");
    }

    proptest! {
        /// Against a plain list of who holds what since when.
        #[test]
        fn no_address_twice_and_quarantine_respected(
            steps in proptest::collection::vec((any::<bool>(), 0usize..32, 0i64..30), 1..200)
        ) {
            const QUARANTINE: Duration = Duration::from_secs(60);
            let mut book = book(&["10.0.0.0/28", "10.0.9.0/29"]);
            let mut now = at(0);
            let mut held: Vec<IpAddr> = Vec::new();
            let mut resting: Vec<(IpAddr, UnixTime)> = Vec::new();
            for (reserve, choice, step) in steps {
                now = now.plus(Duration::from_secs(step.unsigned_abs()));
                if reserve {
                    let blocked = resting.iter().filter(|(_, until)| *until > now).count();
                    match book.reserve("p", now) {
                        Ok(found) => {
                            let address = found[0];
                            prop_assert!(!held.contains(&address));
                            prop_assert!(
                                !resting.iter().any(|(a, until)| *a == address && *until > now)
                            );
                            resting.retain(|(a, _)| *a != address);
                            held.push(address);
                        }
                        Err(_) => prop_assert_eq!(held.len() + blocked, 13 + 5),
                    }
                } else if !held.is_empty() {
                    let address = held.remove(choice % held.len());
                    let until = now.plus(QUARANTINE);
                    book.rest("p", address, until);
                    resting.push((address, until));
                }
            }
        }
    }
}
