//! The configuration payload (RFC 7296 2.19, 3.15): virtual addresses and DNS servers.

use std::net::IpAddr;

use crate::config::PeerConfig;
use crate::io::Grant;
use crate::wire::{CfgAttr, CfgType, Configuration};

/// Prefix length of a single IPv6 address: a client is not given a network.
const HOST_PREFIX: u8 = 128;

/// What a peer asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Wanted {
    pub(crate) ipv4: bool,
    pub(crate) ipv6: bool,
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
                CfgAttr::Ip4Address(_) => wanted.ipv4 = true,
                CfgAttr::Ip6Address(_) => wanted.ipv6 = true,
                _ => {}
            }
        }
        wanted
    }

    /// It asked for an address at all.
    pub(crate) fn any(self) -> bool {
        self.ipv4 || self.ipv6
    }

    fn wants(self, address: &IpAddr) -> bool {
        if address.is_ipv4() { self.ipv4 } else { self.ipv6 }
    }
}

/// Our answer; `None` when nothing was asked for. Addresses of a family that was not asked for
/// are left out; DNS servers go along.
pub(crate) fn reply(wanted: Wanted, grant: &Grant) -> Option<Configuration> {
    if !wanted.any() {
        return None;
    }
    let addresses = grant.addresses.iter().filter(|address| wanted.wants(address));
    let addresses = addresses.map(|address| match address {
        IpAddr::V4(v4) => CfgAttr::Ip4Address(Some(*v4)),
        IpAddr::V6(v6) => CfgAttr::Ip6Address(Some((*v6, HOST_PREFIX))),
    });
    let dns = grant.dns.iter().map(|server| match server {
        IpAddr::V4(v4) => CfgAttr::Ip4Dns(Some(*v4)),
        IpAddr::V6(v6) => CfgAttr::Ip6Dns(Some(*v6)),
    });
    Some(Configuration::new(CfgType::Reply, addresses.chain(dns).collect()))
}

/// Whether the grant holds an address the peer asked for.
pub(crate) fn satisfiable(wanted: Wanted, grant: &Grant) -> bool {
    grant.addresses.iter().any(|address| wanted.wants(address))
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

/// The addresses and DNS servers of an answer.
pub(crate) fn received(answer: Option<&Configuration>) -> (Vec<IpAddr>, Vec<IpAddr>) {
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
    (addresses, dns)
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
            received(Some(&answer)),
            (vec!["10.77.0.2".parse().unwrap()], vec!["10.0.0.53".parse().unwrap()])
        );
    }

    #[test]
    fn who_asks_for_nothing_gets_no_answer() {
        assert_eq!(reply(Wanted::of(None), &grant(&["10.77.0.2"])), None);
        assert!(!satisfiable(Wanted { ipv4: false, ipv6: true }, &grant(&["10.77.0.2"])));
    }
}
