//! The text of the ruleset, as `nft -f -` reads it.
//!
//! Pure functions: configuration in, text out. Every name that reaches the text is checked
//! first, so that no configuration can write rules of its own.
//!
//! ```text
//! prerouting   a pool's address from any other interface        drop
//!              a site's address from any other interface        drop
//! forward      tunnel -> tunnel                                 drop
//!              network <-> site     source/destination -> sin.SITE, sout.SITE
//!              tunnel -> network    (reqid .) source -> fwd.ROLE, else drop
//!              network -> tunnel    reply, destination -> ret.ROLE, else drop
//! input        tunnel -> gateway    (reqid .) source -> loc.ROLE, else drop
//! output       gateway -> tunnel    reply, destination -> ret.ROLE, else drop
//!
//! A site in transport mode is one machine, whose packets pass beside the tunnel interface:
//! prerouting   from it in clear, but for IKE, ESP and ports of ours              drop
//! host_input   from it through an SA -> sloc.SITE, else drop
//! host_output  to it in clear, but for the same                                  drop
//! ```

use std::collections::BTreeSet;
use std::fmt::Write as _;

use ipnet::IpNet;

use super::FirewallConfig;
use crate::error::PlaneError;
use crate::model::{AllowRule, LeaseFilter, PlaneKind, RoleFilter, SiteFilter, TunnelNetwork};

const TCP: u8 = 6;
const UDP: u8 = 17;
const SCTP: u8 = 132;

/// Longest role name: chain names carry a prefix and the kernel's limit is above that.
const MAX_ROLE: usize = 64;
const MAX_INSTANCE: usize = 32;
/// IFNAMSIZ without its terminating zero.
const MAX_INTERFACE: usize = 15;

/// Kinds of chain a role has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ChainKind {
    /// Client to network.
    Forward,
    /// Client to the gateway itself.
    Local,
    /// Replies to the client.
    Return,
    /// From the client, and by no chain of its role accepted: counted for its lease, then dropped.
    Refused,
}

impl ChainKind {
    /// Those that each role and site has.
    pub(super) const ALL: [Self; 3] = [Self::Forward, Self::Local, Self::Return];
    /// Those that have maps of leases.
    pub(super) const MAPS: [Self; 4] = [Self::Forward, Self::Local, Self::Return, Self::Refused];

    /// Prefix of chain and map names.
    pub(super) fn prefix(self) -> &'static str {
        match self {
            Self::Forward => "fwd",
            Self::Local => "loc",
            Self::Return => "ret",
            Self::Refused => "ref",
        }
    }

    /// The same for sites.
    fn site_prefix(self) -> &'static str {
        match self {
            Self::Forward => "sin",
            Self::Local => "sloc",
            Self::Return => "sout",
            Self::Refused => "sref",
        }
    }
}

/// Name of the nftables table of an instance.
pub(super) fn table_name(instance: &str) -> String {
    if instance.is_empty() { "runnel".to_owned() } else { format!("runnel_{instance}") }
}

/// Name of a role's chain.
pub(super) fn chain_name(kind: ChainKind, role: &str) -> String {
    format!("{}.{role}", kind.prefix())
}

/// Name of the map for a kind of chain and address family.
pub(super) fn map_name(kind: ChainKind, ipv6: bool) -> String {
    format!("{}{}", kind.prefix(), if ipv6 { 6 } else { 4 })
}

fn site_chain(kind: ChainKind, site: &str) -> String {
    format!("{}.{site}", kind.site_prefix())
}

/// The map of a kind of chain by the networks of sites.
fn site_map(kind: ChainKind, ipv6: bool) -> String {
    format!("{}{}", kind.site_prefix(), if ipv6 { 6 } else { 4 })
}

/// The set of request ids by which a site's packets may come, in the kernel plane.
fn site_reqids(site: &str) -> String {
    format!("sreq.{site}")
}

/// Checks every name and rule that will appear in the text.
pub(super) fn check(config: &FirewallConfig) -> Result<(), PlaneError> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    if config.instance.len() > MAX_INSTANCE || !config.instance.chars().all(plain) {
        return Err(PlaneError::Conflict(format!(
            "instance name {:?} may have a-z, 0-9 and _ only, at most {MAX_INSTANCE}",
            config.instance
        )));
    }
    let interface = &config.interface;
    let safe = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    if interface.is_empty() || interface.len() > MAX_INTERFACE || !interface.chars().all(safe) {
        return Err(PlaneError::Conflict(format!(
            "interface name {interface:?} may have letters, digits, _, - and . only, at most \
             {MAX_INTERFACE}"
        )));
    }
    check_roles(&config.roles)?;
    check_sites(&config.sites)
}

/// Checks names and rules of sites.
pub(super) fn check_sites(sites: &[SiteFilter]) -> Result<(), PlaneError> {
    let as_roles: Vec<RoleFilter> = sites
        .iter()
        .map(|site| RoleFilter {
            role: site.site.clone(),
            allow: site.allow.clone(),
            own_ports: Vec::new(),
        })
        .collect();
    check_roles(&as_roles)
}

/// Checks names and rules of roles.
pub(super) fn check_roles(roles: &[RoleFilter]) -> Result<(), PlaneError> {
    for role in roles {
        let safe = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
        if role.role.is_empty() || role.role.len() > MAX_ROLE || !role.role.chars().all(safe) {
            return Err(PlaneError::Conflict(format!(
                "role name {:?} may have letters, digits, _ and - only, at most {MAX_ROLE}",
                role.role
            )));
        }
        for rule in &role.allow {
            let has_ports = matches!(rule.protocol, Some(TCP | UDP | SCTP));
            if rule.ports.is_some_and(|(first, last)| !has_ports || first > last) {
                return Err(PlaneError::Conflict(format!(
                    "role {}: ports of {} need tcp, udp or sctp and a rising range",
                    role.role, rule.destination
                )));
            }
        }
    }
    Ok(())
}

/// The whole table, in a form that replaces what is there in one transaction.
pub(super) fn base(config: &FirewallConfig) -> String {
    let table = table_name(&config.instance);
    let interface = &config.interface;
    let mut text = String::new();
    // Adding before deleting makes the deletion succeed whether or not the table exists.
    let _ = writeln!(text, "table inet {table}\ndelete table inet {table}\ntable inet {table} {{");
    for reason in super::DROP_REASONS {
        let _ = writeln!(text, "  counter drop_{reason} {{ }}");
    }
    for kind in ChainKind::MAPS {
        for ipv6 in [false, true] {
            let key = key_type(kind, ipv6, config.plane);
            let map = map_name(kind, ipv6);
            let _ = writeln!(text, "  map {map} {{ {key} : verdict; counter; }}");
        }
    }
    for kind in ChainKind::ALL {
        for ipv6 in [false, true] {
            let map = site_map(kind, ipv6);
            let family = if ipv6 { 6 } else { 4 };
            let _ = writeln!(
                text,
                "  map {map} {{ type ipv{family}_addr : verdict; flags interval; }}"
            );
        }
    }
    for role in &config.roles {
        role_chains(&mut text, role);
    }
    for site in &config.sites {
        site_chains(&mut text, site, config.plane);
    }
    let _ = write!(
        text,
        r#"
  chain from_client {{
    {fwd4} vmap @fwd4
    {fwd6} vmap @fwd6
    ip saddr vmap @sin4
    ip6 saddr vmap @sin6
    counter name drop_from_client
    {fwd4} vmap @ref4
    {fwd6} vmap @ref6
    drop
  }}
  chain to_gateway {{
    {fwd4} vmap @loc4
    {fwd6} vmap @loc6
    ip saddr vmap @sloc4
    ip6 saddr vmap @sloc6
    counter name drop_from_client
    {fwd4} vmap @ref4
    {fwd6} vmap @ref6
    drop
  }}
  chain to_client {{
    ip daddr vmap @sout4
    ip6 daddr vmap @sout6
    ct state established,related ct direction reply ip daddr vmap @ret4
    ct state established,related ct direction reply ip6 daddr vmap @ret6
    ip6 daddr ff00::/8 drop
    counter name drop_to_client drop
  }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    iifname "{interface}" oifname "{interface}" counter name drop_client_to_client drop
    iifname "{interface}" jump from_client
    oifname "{interface}" jump to_client
  }}
  chain input {{
    type filter hook input priority filter; policy accept;
    iifname "{interface}" jump to_gateway
  }}
  chain output {{
    type filter hook output priority filter; policy accept;
    oifname "{interface}" jump to_client
  }}
  chain clamp {{
    type filter hook forward priority mangle; policy accept;
    iifname "{interface}" tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu
    oifname "{interface}" tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu
  }}
"#,
        fwd4 = key_expression(false, config.plane),
        fwd6 = key_expression(true, config.plane),
    );
    spoofing(&mut text, config, &config.sites);
    host_chains(&mut text, &config.sites);
    masquerade(&mut text, interface, &config.networks);
    text.push_str("}\n");
    text
}

/// Replaces the chains of roles in one transaction: `add` and `keep` get the new rules,
/// `delete` goes.
pub(super) fn replace_roles(
    config: &FirewallConfig,
    roles: &[RoleFilter],
    emptied: &[String],
    delete: &[String],
) -> String {
    let table = table_name(&config.instance);
    let mut text = String::new();
    let names: Vec<&str> =
        roles.iter().map(|r| r.role.as_str()).chain(emptied.iter().map(String::as_str)).collect();
    for kind in ChainKind::ALL {
        for name in &names {
            let chain = chain_name(kind, name);
            let _ = writeln!(text, "add chain inet {table} {chain}");
            let _ = writeln!(text, "flush chain inet {table} {chain}");
        }
        for name in delete {
            let chain = chain_name(kind, name);
            let _ = writeln!(text, "flush chain inet {table} {chain}");
            let _ = writeln!(text, "delete chain inet {table} {chain}");
        }
    }
    let _ = writeln!(text, "table inet {table} {{");
    for role in roles {
        role_chains(&mut text, role);
    }
    text.push_str("}\n");
    text
}

fn key_type(kind: ChainKind, ipv6: bool, plane: PlaneKind) -> String {
    if kind != ChainKind::Return && plane == PlaneKind::Kernel {
        return format!("typeof {}", key_expression(ipv6, plane));
    }
    format!("type ipv{}_addr", if ipv6 { 6 } else { 4 })
}

/// What identifies a client's packet: its source, and in the kernel plane the SA it came by.
fn key_expression(ipv6: bool, plane: PlaneKind) -> String {
    let source = format!("{} saddr", ip_word(ipv6));
    match plane {
        PlaneKind::Kernel => format!("ipsec in reqid . {source}"),
        PlaneKind::Userspace | PlaneKind::Mock => source,
    }
}

fn ip_word(ipv6: bool) -> &'static str {
    if ipv6 { "ip6" } else { "ip" }
}

fn is_ipv6(net: &IpNet) -> bool {
    matches!(net, IpNet::V6(_))
}

fn role_chains(text: &mut String, role: &RoleFilter) {
    for kind in ChainKind::ALL {
        let _ = writeln!(text, "  chain {} {{", chain_name(kind, &role.role));
        if kind == ChainKind::Return {
            router_errors(text);
        }
        let mut errors = BTreeSet::new();
        for rule in &role.allow {
            // Only a rule that names one address opens the gateway itself: a wide network in an
            // allow list is not meant to include the gateway's own ssh.
            let wide = rule.destination.prefix_len() != full_length(rule);
            if wide && kind != ChainKind::Forward {
                for port in &role.own_ports {
                    let ports = Some((*port, *port));
                    allow(text, kind, &AllowRule { protocol: Some(TCP), ports, ..*rule });
                }
            }
            if kind != ChainKind::Local || !wide {
                allow(text, kind, rule);
                if kind != ChainKind::Return && errors.insert(rule.destination.trunc()) {
                    icmp_errors(text, rule);
                }
            }
        }
        text.push_str("  }\n");
    }
}

/// Errors come from any router on the way; conntrack ties them to a flow that the other side
/// opened.
fn router_errors(text: &mut String) {
    text.push_str(
        "    ct state related icmp type { destination-unreachable, time-exceeded, \
         parameter-problem } accept\n    ct state related icmpv6 type { \
         destination-unreachable, packet-too-big, time-exceeded, parameter-problem } \
         accept\n",
    );
}

fn full_length(rule: &AllowRule) -> u8 {
    rule.destination.max_prefix_len()
}

fn allow(text: &mut String, kind: ChainKind, rule: &AllowRule) {
    let (side, port) =
        if kind == ChainKind::Return { ("saddr", "sport") } else { ("daddr", "dport") };
    let net = rule.destination.trunc();
    let mut service = String::new();
    match (rule.protocol, rule.ports) {
        (Some(protocol), Some((first, last))) => {
            let name = match protocol {
                TCP => "tcp",
                UDP => "udp",
                _ => "sctp",
            };
            let _ = write!(service, " {name} {port} {first}-{last}");
        }
        (Some(protocol), None) => {
            let _ = write!(service, " meta l4proto {protocol}");
        }
        (None, _) => {}
    }
    let address = address_match(side, net);
    let state = if kind == ChainKind::Return { " ct state established" } else { "" };
    let _ = writeln!(text, "    {address}{service}{state} accept");
}

/// A client's own errors about what it receives from an allowed destination (port unreachable,
/// too big); conntrack ties them to a flow.
fn icmp_errors(text: &mut String, rule: &AllowRule) {
    let net = rule.destination.trunc();
    let types = if is_ipv6(&net) {
        "icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem }"
    } else {
        "icmp type { destination-unreachable, time-exceeded, parameter-problem }"
    };
    let _ = writeln!(text, "    {} ct state related {types} accept", address_match("daddr", net));
}

/// A match of one side's address. A prefix length of 0 leaves only the family to match.
fn address_match(side: &str, net: IpNet) -> String {
    let ipv6 = is_ipv6(&net);
    if net.prefix_len() == 0 {
        format!("meta nfproto {}", if ipv6 { "ipv6" } else { "ipv4" })
    } else {
        format!("{} {side} {net}", ip_word(ipv6))
    }
}

/// A site's chains. Hosts behind it open what its allow list names; hosts of ours open anything to
/// it, and its answers to them pass.
fn site_chains(text: &mut String, site: &SiteFilter, plane: PlaneKind) {
    let name = &site.site;
    if plane == PlaneKind::Kernel {
        let _ = writeln!(text, "  set {} {{ typeof ipsec in reqid; }}", site_reqids(name));
    }
    for kind in ChainKind::ALL {
        let _ = writeln!(text, "  chain {} {{", site_chain(kind, name));
        if kind == ChainKind::Return {
            router_errors(text);
            for local in &site.local {
                let _ = writeln!(text, "    {} accept", address_match("saddr", local.trunc()));
            }
        } else {
            if plane == PlaneKind::Kernel {
                let reqids = site_reqids(name);
                let _ = writeln!(
                    text,
                    "    ipsec in reqid != @{reqids} counter name drop_from_client drop"
                );
            }
            for rule in &site.allow {
                if kind != ChainKind::Local || rule.destination.prefix_len() == full_length(rule) {
                    allow(text, kind, rule);
                    icmp_errors(text, rule);
                }
            }
            for local in &site.local {
                let _ = writeln!(
                    text,
                    "    {} ct state established,related ct direction reply accept",
                    address_match("daddr", local.trunc())
                );
            }
        }
        text.push_str("  }\n");
    }
}

/// Replaces the chains of sites in one transaction; those of `gone` are deleted.
pub(super) fn replace_sites(
    config: &FirewallConfig,
    former: &[SiteFilter],
    sites: &[SiteFilter],
) -> String {
    let table = table_name(&config.instance);
    let mut text = String::new();
    let kept = |name: &str| sites.iter().any(|site| site.site == name);
    // First, because they lead to chains that may go.
    for chain in ["prerouting", "host_input", "host_output"] {
        let _ = writeln!(text, "flush chain inet {table} {chain}");
    }
    for site in former {
        for kind in ChainKind::ALL {
            let chain = site_chain(kind, &site.site);
            let _ = writeln!(text, "flush chain inet {table} {chain}");
            if !kept(&site.site) {
                let _ = writeln!(text, "delete chain inet {table} {chain}");
            }
        }
        if config.plane == PlaneKind::Kernel && !kept(&site.site) {
            let _ = writeln!(text, "delete set inet {table} {}", site_reqids(&site.site));
        }
    }
    let _ = writeln!(text, "table inet {table} {{");
    for site in sites {
        site_chains(&mut text, site, config.plane);
    }
    spoofing(&mut text, config, sites);
    host_chains(&mut text, sites);
    text.push_str("}\n");
    text
}

/// Puts a site's elements in, or takes them out.
pub(super) fn site_elements(config: &FirewallConfig, lease: &LeaseFilter, add: bool) -> String {
    let table = table_name(&config.instance);
    let verb = if add { "add" } else { "delete" };
    let mut text = String::new();
    if config.plane == PlaneKind::Kernel {
        let (set, reqid) = (site_reqids(&lease.role), lease.reqid);
        let _ = writeln!(text, "{verb} element inet {table} {set} {{ {reqid} }}");
    }
    for kind in ChainKind::ALL {
        for net in &lease.networks {
            let net = net.trunc();
            let (map, chain) = (site_map(kind, is_ipv6(&net)), site_chain(kind, &lease.role));
            let _ = if add {
                writeln!(text, "{verb} element inet {table} {map} {{ {net} : jump {chain} }}")
            } else {
                writeln!(text, "{verb} element inet {table} {map} {{ {net} }}")
            };
        }
    }
    text
}

/// Nobody but the tunnel may speak with the address of a client or a site.
fn spoofing(text: &mut String, config: &FirewallConfig, sites: &[SiteFilter]) {
    let interface = &config.interface;
    let pools = config.networks.iter().map(|network| network.network.trunc());
    let behind = sites.iter().filter(|site| site.hosts.is_none());
    let behind = behind.flat_map(|site| site.remote.iter().map(IpNet::trunc));
    text.push_str(
        "  chain prerouting {\n    type filter hook prerouting priority raw; policy accept;\n",
    );
    for net in pools.chain(behind) {
        let _ = writeln!(
            text,
            "    iifname != {{ \"{interface}\", \"lo\" }} {} saddr {net} counter name \
             drop_spoofed drop",
            ip_word(is_ipv6(&net))
        );
    }
    for (site, from_it, _) in host_pairs(sites) {
        in_clear(text, site, &format!("{from_it} meta ipsec missing"), "d", "drop_spoofed");
    }
    text.push_str("  }\n");
}

/// Sites in transport mode, with matches of what comes from the machine and of what goes to it.
fn host_pairs(sites: &[SiteFilter]) -> impl Iterator<Item = (&SiteFilter, String, String)> {
    sites.iter().filter(|site| site.hosts.is_some()).filter_map(|site| {
        let [local, remote] = [site.local.first()?.trunc(), site.remote.first()?.trunc()];
        let matches =
            |from, to| format!("{} {}", address_match("saddr", from), address_match("daddr", to));
        Some((site, matches(remote, local), matches(local, remote)))
    })
}

/// Drops what is between two machines without protection, but for what makes the protection: IKE,
/// ESP, neighbour discovery, and the ports that show whether certificates are good. `ours` is the
/// port on our side, `s` or `d`.
fn in_clear(text: &mut String, site: &SiteFilter, matched: &str, ours: &str, counter: &str) {
    let own_ports = site.hosts.iter().flat_map(|hosts| &hosts.own_ports);
    let mut except = vec!["meta l4proto esp".to_owned(), format!("udp {ours}port {{ 500, 4500 }}")];
    if matched.starts_with("ip6") {
        except.push("icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert }".to_owned());
    }
    except.extend(own_ports.map(|port| format!("tcp {ours}port {port}")));
    for exception in except {
        let _ = writeln!(text, "    {matched} {exception} accept");
    }
    let _ = writeln!(text, "    {matched} counter name {counter} drop");
}

/// The filter of machines in transport mode.
fn host_chains(text: &mut String, sites: &[SiteFilter]) {
    text.push_str(
        "  chain host_input {\n    type filter hook input priority filter; policy accept;\n",
    );
    for (site, from_it, _) in host_pairs(sites) {
        let protected = format!("{from_it} meta ipsec exists");
        let chain = site_chain(ChainKind::Local, &site.site);
        // Once there is a tunnel, the peer's policies lead what is open in clear through it.
        for port in site.hosts.iter().flat_map(|hosts| &hosts.own_ports) {
            let _ = writeln!(text, "    {protected} tcp dport {port} accept");
        }
        let _ = writeln!(text, "    {protected} jump {chain}");
        let _ = writeln!(text, "    {protected} counter name drop_from_client drop");
    }
    text.push_str(
        "  }\n  chain host_output {\n    type filter hook output priority filter; policy accept;\n",
    );
    for (site, _, to_it) in host_pairs(sites) {
        in_clear(text, site, &format!("{to_it} rt ipsec missing"), "s", "drop_to_client");
    }
    text.push_str("  }\n");
}

fn masquerade(text: &mut String, interface: &str, networks: &[TunnelNetwork]) {
    if !networks.iter().any(|network| network.masquerade) {
        return;
    }
    text.push_str(
        "  chain postrouting {\n    type nat hook postrouting priority srcnat; policy accept;\n",
    );
    for network in networks.iter().filter(|network| network.masquerade) {
        let net = network.network.trunc();
        let _ = writeln!(
            text,
            "    oifname != {{ \"{interface}\", \"lo\" }} {} saddr {net} masquerade",
            ip_word(is_ipv6(&net))
        );
    }
    text.push_str("  }\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(destination: &str, protocol: Option<u8>, ports: Option<(u16, u16)>) -> AllowRule {
        AllowRule { destination: destination.parse().unwrap(), protocol, ports }
    }

    fn role(allow: Vec<AllowRule>) -> RoleFilter {
        RoleFilter { role: "builder".to_owned(), allow, own_ports: vec![8080] }
    }

    fn config(roles: Vec<RoleFilter>) -> FirewallConfig {
        FirewallConfig {
            instance: String::new(),
            interface: "runnel0".to_owned(),
            networks: Vec::new(),
            roles,
            sites: Vec::new(),
            plane: PlaneKind::Userspace,
        }
    }

    #[test]
    fn a_wide_network_does_not_open_the_gateway() {
        let mut text = String::new();
        let wide = rule("10.0.0.0/8", None, None);
        let host = rule("10.77.0.1/32", Some(TCP), Some((80, 80)));
        role_chains(&mut text, &role(vec![wide, host]));
        let local = text.split("chain loc.builder").nth(1).unwrap().split('}').next().unwrap();
        // But for what a client needs to check certificates.
        let lines: Vec<_> = local.lines().filter(|line| line.contains("10.0.0.0/8")).collect();
        assert_eq!(lines, ["    ip daddr 10.0.0.0/8 tcp dport 8080-8080 accept"], "{local}");
        assert!(local.contains("ip daddr 10.77.0.1/32 tcp dport 80-80 accept"), "{local}");
    }

    #[test]
    fn nothing_from_the_client_is_accepted_for_being_established() {
        let text = base(&config(vec![role(vec![rule("10.0.0.0/8", Some(TCP), Some((443, 443)))])]));
        for chain in ["chain fwd.builder {", "chain from_client {", "chain to_gateway {"] {
            let body = text.split(chain).nth(1).unwrap().split("  }\n").next().unwrap();
            assert!(!body.contains("established"), "{body}");
        }
    }

    #[test]
    fn names_cannot_smuggle_rules() {
        let mut evil = config(vec![]);
        evil.interface = "x\" accept; #".to_owned();
        assert!(check(&evil).is_err());
        evil.interface = "tun*".to_owned();
        assert!(check(&evil).is_err());
        evil.interface = "tun0".to_owned();
        assert!(check(&evil).is_ok());
        evil.instance = "a b".to_owned();
        assert!(check(&evil).is_err());
        evil.instance = "second".to_owned();
        assert!(check(&evil).is_ok());
        evil.roles =
            vec![RoleFilter { role: "a { }".to_owned(), allow: vec![], own_ports: vec![] }];
        assert!(check(&evil).is_err());
    }

    #[test]
    fn ports_need_a_protocol_that_has_them() {
        for (protocol, ports, good) in [
            (Some(TCP), (1, 2), true),
            (Some(SCTP), (5, 5), true),
            (Some(1), (1, 2), false),
            (None, (1, 2), false),
            (Some(UDP), (3, 2), false),
        ] {
            let roles = [role(vec![rule("10.0.0.0/8", protocol, Some(ports))])];
            assert_eq!(check_roles(&roles).is_ok(), good, "{protocol:?} {ports:?}");
        }
    }
}
