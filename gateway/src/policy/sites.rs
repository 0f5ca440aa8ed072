//! From sites to enforcement: filters, routes and IKE selectors.

use std::net::IpAddr;

use ike::wire::TrafficSelector;
use ipnet::IpNet;
use pki::SITE_ROLE;
use xfrm::model::{AllowRule, HostSite, SiteFilter, SiteRoute};

use crate::config::{Config, Site, no_transport};

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
        hosts: site
            .transport
            .then(|| HostSite { own_ports: vec![config.pki.status_listen.port()] }),
    };
    config.sites.iter().map(filter).collect()
}

/// The routes to every site; to one in transport mode it is the machine's own. What this machine itself sends there comes from its address in the
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
        .filter(|site| !site.transport)
        .flat_map(|site| site.networks.iter().map(move |network| route(site, *network)))
        .collect()
}

/// Why a data plane without transport mode cannot do what a site asks for; `None` when it can.
pub fn against_sites(config: &Config) -> Option<String> {
    config.sites.iter().find(|site| site.transport).map(|site| no_transport(&site.name))
}

/// Networks as selectors: every protocol and port.
pub fn selectors(networks: &[IpNet]) -> Vec<TrafficSelector> {
    networks.iter().map(|net| TrafficSelector::addresses(net.network(), net.broadcast())).collect()
}
