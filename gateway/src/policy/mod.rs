//! From roles to enforcement: what a role's allow list means for IKE selectors and for the packet
//! filter.
//!
//! Both come from the same entries. The filter is always exact; the selectors may be wider when
//! the list is long, because a peer must be told at most [`MAX_SELECTORS`] of them.

mod selectors;
mod sites;

use ipnet::IpNet;
use xfrm::model::{AllowRule, RoleFilter, TunnelNetwork};

pub use selectors::{MAX_SELECTORS, allowed_selectors};
pub use sites::{against_sites, selectors, site_filters, site_of_role, site_role, site_routes};

use crate::config::{AllowEntry, Config, Pool, Role, Site};

/// What a role may reach: its allow list and its pool's DNS servers.
pub fn reach(role: &Role, pool: &Pool) -> Vec<AllowEntry> {
    const DNS: u16 = 53;
    let mut entries = role.allow.clone();
    for server in &pool.dns {
        for protocol in [6, 17] {
            entries.push(AllowEntry {
                net: IpNet::from(*server),
                protocol: Some(protocol),
                ports: Some((DNS, DNS)),
            });
        }
    }
    entries.sort();
    entries.dedup();
    entries
}

/// The policy as text, one thing a line: equal texts mean the same access for everybody. Names no
/// secret. What only describes the gateway itself (listeners, timers, proposals) is not in it.
pub fn text(config: &Config) -> String {
    let mut lines = Vec::new();
    for role in &config.roles {
        let Role { name, pool, ttl, max_lease, keys, server_keys, .. } = role;
        let Role { max_leases, rate, manual, allow, matches, claims, .. } = role;
        let Role { san_address, verify_names, .. } = role;
        lines.push(format!("role {name} {pool} {ttl:?} {max_lease:?} {keys:?} {server_keys}"));
        lines.push(format!("role {name} limits {max_leases:?} {rate:?} manual {manual}"));
        lines.push(format!("role {name} names {san_address} {verify_names}"));
        let mut allow = allow.clone();
        allow.sort();
        lines.extend(allow.iter().map(|entry| format!("role {name} allow {entry}")));
        lines.extend(matches.iter().map(|rule| format!("role {name} match {rule:?}")));
        lines.extend(claims.iter().map(|rule| format!("role {name} claims {rule:?}")));
    }
    for pool in &config.pools {
        let Pool { name, addresses, dns, masquerade, .. } = pool;
        lines.push(format!("pool {name} {addresses:?} {dns:?} {masquerade}"));
    }
    for issuer in &config.issuers {
        lines.push(format!("{issuer:?}"));
    }
    for ca in &config.cas {
        lines.push(format!("ca {} {} {:?}", ca.name, ca.certificate.display(), ca.revocation));
    }
    for client in &config.psks {
        lines.push(format!("psk {:?} {}", client.id, client.role));
    }
    for site in &config.sites {
        let Site { name, id, local, networks, allow, transport, .. } = site;
        let mode = if *transport { " transport" } else { "" };
        lines.push(format!("site {name} {id} {local:?} {networks:?} {allow:?}{mode}"));
    }
    lines.join("\n")
}

/// Everything on our side that a tunnel may lead to.
pub fn destinations(config: &Config) -> Vec<IpNet> {
    let of_roles = config.roles.iter().flat_map(|role| role.allow.iter().map(|entry| entry.net));
    of_roles.chain(config.sites.iter().flat_map(|site| site.local.iter().copied())).collect()
}

/// The packet filter of every role.
pub fn role_filters(config: &Config) -> Vec<RoleFilter> {
    config
        .roles
        .iter()
        .filter_map(|role| {
            let pool = config.pool(&role.pool)?;
            let allow = reach(role, pool)
                .into_iter()
                .map(|entry| AllowRule {
                    destination: entry.net,
                    protocol: entry.protocol,
                    ports: entry.ports,
                })
                .collect();
            let own_ports = vec![config.pki.status_listen.port()];
            Some(RoleFilter { role: role.name.clone(), allow, own_ports })
        })
        .collect()
}

/// The networks of every pool with the gateway's own address in each.
pub fn tunnel_networks(config: &Config) -> Vec<TunnelNetwork> {
    config
        .pools
        .iter()
        .flat_map(|pool| {
            pool.addresses.iter().map(|network| TunnelNetwork {
                network: *network,
                gateway: Pool::gateway_address(*network),
                masquerade: pool.masquerade,
            })
        })
        .collect()
}
