//! The configuration payload (RFC 7296 2.19, 3.15): virtual addresses and DNS servers.

use std::net::IpAddr;

use crate::config::PeerConfig;
use crate::io::Grant;
use crate::wire::{CfgAttr, CfgType, Configuration};

/// Prefix length of a single IPv6 address: a client is not given a network.
const HOST_PREFIX: u8 = 128;

/// What a peer asked for: how many addresses of each family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Wanted {
    ipv4: usize,
    ipv6: usize,
}

impl Wanted {
    /// Reads a request; anything else asks for nothing.
    pub(crate) fn of(request: Option<&Configuration>) -> Self {
        let mut wanted = Self::default();
        let Some(request) = request.filter(|cp| cp.cfg_type == CfgType::Request) else {
            return wanted;
        };
        for attribute in &request.attributes {
            match attribute {
                CfgAttr::Ip4Address(_) => wanted.ipv4 = wanted.ipv4.saturating_add(1),
                CfgAttr::Ip6Address(_) => wanted.ipv6 = wanted.ipv6.saturating_add(1),
                _ => {}
            }
        }
        wanted
    }

    /// What we ask for as initiator.
    pub(crate) fn by(peer: &PeerConfig) -> Self {
        Self { ipv4: peer.request_ipv4.into(), ipv6: peer.request_ipv6.into() }
    }

    /// It asked for an address at all.
    pub(crate) fn any(self) -> bool {
        self.ipv4() || self.ipv6()
    }

    /// It asked for an IPv4 address.
    pub(crate) fn ipv4(self) -> bool {
        self.ipv4 > 0
    }

    /// It asked for an IPv6 address.
    pub(crate) fn ipv6(self) -> bool {
        self.ipv6 > 0
    }

    /// Of these addresses as many as were asked for of each family, which is the most that may be
    /// given (RFC 7296 3.15.1).
    fn choose(self, addresses: &[IpAddr]) -> impl Iterator<Item = IpAddr> {
        let v4 = addresses.iter().filter(|address| address.is_ipv4()).take(self.ipv4);
        let v6 = addresses.iter().filter(|address| address.is_ipv6()).take(self.ipv6);
        v4.chain(v6).copied()
    }
}

/// Our answer; `None` when nothing was asked for. Addresses of a family that was not asked for
/// are left out, and so are more than were asked for; DNS servers go along.
pub(crate) fn reply(wanted: Wanted, grant: &Grant) -> Option<Configuration> {
    if !wanted.any() {
        return None;
    }
    let addresses = wanted.choose(&grant.addresses).map(|address| match address {
        IpAddr::V4(v4) => CfgAttr::Ip4Address(Some(v4)),
        IpAddr::V6(v6) => CfgAttr::Ip6Address(Some((v6, HOST_PREFIX))),
    });
    let dns = grant.dns.iter().map(|server| match server {
        IpAddr::V4(v4) => CfgAttr::Ip4Dns(Some(*v4)),
        IpAddr::V6(v6) => CfgAttr::Ip6Dns(Some(*v6)),
    });
    Some(Configuration::new(CfgType::Reply, addresses.chain(dns).collect()))
}

/// Whether the grant holds an address the peer asked for.
pub(crate) fn satisfiable(wanted: Wanted, grant: &Grant) -> bool {
    wanted.choose(&grant.addresses).next().is_some()
}

/// Our request as initiator.
pub(crate) fn request(peer: &PeerConfig) -> Option<Configuration> {
    let mut attributes = Vec::new();
    if peer.request_ipv4 {
        attributes.extend([CfgAttr::Ip4Address(None), CfgAttr::Ip4Dns(None)]);
    }
    if peer.request_ipv6 {
        attributes.extend([CfgAttr::Ip6Address(None), CfgAttr::Ip6Dns(None)]);
    }
    (!attributes.is_empty()).then(|| Configuration::new(CfgType::Request, attributes))
}

/// The addresses and DNS servers of an answer. Addresses that were not asked for are not taken
/// (RFC 7296 3.15.1): they would become what we speak for.
pub(crate) fn received(
    asked: Wanted,
    answer: Option<&Configuration>,
) -> (Vec<IpAddr>, Vec<IpAddr>) {
    let mut addresses = Vec::new();
    let mut dns = Vec::new();
    let attributes = answer
        .filter(|cp| cp.cfg_type == CfgType::Reply)
        .map(|cp| cp.attributes.as_slice())
        .unwrap_or_default();
    for attribute in attributes {
        match attribute {
            CfgAttr::Ip4Address(Some(v4)) => addresses.push(IpAddr::V4(*v4)),
            CfgAttr::Ip6Address(Some((v6, _))) => addresses.push(IpAddr::V6(*v6)),
            CfgAttr::Ip4Dns(Some(v4)) => dns.push(IpAddr::V4(*v4)),
            CfgAttr::Ip6Dns(Some(v6)) => dns.push(IpAddr::V6(*v6)),
            _ => {}
        }
    }
    (asked.choose(&addresses).collect(), dns)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::{LeaseId, UniquePolicy};
    use crate::time::WallTime;

    fn grant(addresses: &[&str]) -> Grant {
        Grant {
            lease: LeaseId("l".to_owned()),
            role: "r".to_owned(),
            reqid: 1,
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            dns: vec!["10.0.0.53".parse().unwrap()],
            allowed: Vec::new(),
            networks: Vec::new(),
            transport: false,
            deadline: WallTime(0),
            unique: UniquePolicy::Replace,
        }
    }

    #[test]
    fn an_answer_holds_the_families_asked_for_and_dns() {
        let request = Configuration::new(CfgType::Request, vec![CfgAttr::Ip4Address(None)]);
        let wanted = Wanted::of(Some(&request));

        let answer = reply(wanted, &grant(&["10.77.0.2", "fd77::2"])).unwrap();

        assert_eq!(answer.cfg_type, CfgType::Reply);
        assert_eq!(
            received(wanted, Some(&answer)),
            (vec!["10.77.0.2".parse().unwrap()], vec!["10.0.0.53".parse().unwrap()])
        );
    }

    #[test]
    fn who_asks_for_nothing_gets_no_answer() {
        assert_eq!(reply(Wanted::of(None), &grant(&["10.77.0.2"])), None);
        assert!(!satisfiable(Wanted { ipv4: 0, ipv6: 1 }, &grant(&["10.77.0.2"])));
    }

    /// RFC 7296 3.15.1: several addresses of a family are asked for with an attribute for each;
    /// the answer holds up to as many, and what the lease has is all there is.
    #[test]
    fn several_addresses_of_a_family_are_given_up_to_as_many_as_were_asked_for() {
        let asked = |v4: usize, v6: usize| {
            let mut attributes = vec![CfgAttr::Ip4Address(None); v4];
            attributes.extend(vec![CfgAttr::Ip6Address(None); v6]);
            attributes.push(CfgAttr::Ip4Dns(None));
            Wanted::of(Some(&Configuration::new(CfgType::Request, attributes)))
        };
        let given = |wanted, addresses: &[&str]| -> Vec<String> {
            let answer = reply(wanted, &grant(addresses)).unwrap();
            received(wanted, Some(&answer)).0.iter().map(ToString::to_string).collect()
        };
        let many = ["10.77.0.2", "fd77::2", "10.77.0.3", "10.77.0.4", "fd77::3"];

        assert_eq!(given(asked(2, 0), &["10.77.0.2", "fd77::2"]), ["10.77.0.2"]);
        assert_eq!(given(asked(5, 1), &["10.77.0.2", "fd77::2"]), ["10.77.0.2", "fd77::2"]);
        assert_eq!(given(asked(1, 1), &many), ["10.77.0.2", "fd77::2"]);
        assert_eq!(given(asked(2, 0), &many), ["10.77.0.2", "10.77.0.3"]);
        assert_eq!(given(asked(0, 2), &many), ["fd77::2", "fd77::3"]);
    }

    #[test]
    fn addresses_that_were_not_asked_for_are_not_taken() {
        // RFC 7296 3.15.1
        let ips = ["10.77.0.2", "10.77.0.3", "fd77::2"].map(|ip| ip.parse::<IpAddr>().unwrap());
        let attributes = ips.iter().map(|ip| match ip {
            IpAddr::V4(v4) => CfgAttr::Ip4Address(Some(*v4)),
            IpAddr::V6(v6) => CfgAttr::Ip6Address(Some((*v6, HOST_PREFIX))),
        });
        let answer = Configuration::new(CfgType::Reply, attributes.collect());
        let taken = |ipv4, ipv6| received(Wanted { ipv4, ipv6 }, Some(&answer)).0;

        assert!(taken(0, 0).is_empty());
        assert_eq!(taken(1, 0), ips[..1]);
        assert_eq!(taken(1, 1), [ips[0], ips[2]]);
    }
}
