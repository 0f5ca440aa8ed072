//! From sites to enforcement: filters, routes and IKE selectors.

use std::net::IpAddr;

use ike::wire::TrafficSelector;
use ipnet::IpNet;
use pki::SITE_ROLE;
use xfrm::model::{AllowRule, SiteFilter, SiteRoute};

use crate::config::{Config, Site};

/// The role a site's tunnels have in listings and leases.
pub fn site_role(site: &str) -> String {
    format!("{SITE_ROLE}{site}")
}

/// The site whose role this is.
pub fn site_of_role(role: &str) -> Option<&str> {
    role.strip_prefix(SITE_ROLE)
}

/// The packet filter of every site.
pub fn site_filters(config: &Config) -> Vec<SiteFilter> {
    let filter = |site: &Site| SiteFilter {
        site: site.name.clone(),
        local: site.local.clone(),
        remote: site.networks.clone(),
        allow: site
            .allow
            .iter()
            .map(|entry| AllowRule {
                destination: entry.net,
                protocol: entry.protocol,
                ports: entry.ports,
            })
            .collect(),
    };
    config.sites.iter().map(filter).collect()
}

/// The routes to every site. What this machine itself sends there comes from its address in the
/// networks of our side, when it has one.
pub fn site_routes(config: &Config, own: &[IpAddr]) -> Vec<SiteRoute> {
    let route = |site: &Site, network: IpNet| {
        let source = own.iter().find(|address| {
            address.is_ipv4() == network.addr().is_ipv4()
                && site.local.iter().any(|net| net.contains(*address))
        });
        SiteRoute { network, source: source.copied() }
    };
    config
        .sites
        .iter()
        .flat_map(|site| site.networks.iter().map(move |network| route(site, *network)))
        .collect()
}

/// Networks as selectors: every protocol and port.
pub fn selectors(networks: &[IpNet]) -> Vec<TrafficSelector> {
    networks.iter().map(|net| TrafficSelector::addresses(net.network(), net.broadcast())).collect()
}
