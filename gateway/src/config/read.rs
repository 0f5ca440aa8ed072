//! Walks the document section by section and checks what the sections say of each other.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use pki::signer::{KeyKind, TokenUri};
use toml::de::DeTable;
use xfrm::model::Offload;

use super::audit;
use super::error::{ConfigError, ConfigErrors};
use super::external;
use super::hooks;
use super::issuer;
use super::keys;
use super::limits;
use super::model::{AllowEntry, Config, DataplaneChoice, Enrol, Gateway, Ike, Pki, Pool, Role};
use super::pool::pool_list;
use super::role::role_list;
use super::section::{Findings, Section};
use super::site::site_list;
use super::value;
use crate::http::Rate;

const MB: u64 = 1_000_000;
const PB: u64 = 1_000_000_000_000_000;
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);
/// The status page of the built-in role.
const STATUS_PAGE_PORT: u16 = 80;

/// Sections that the design has and this version has not.
const LATER: &[(&str, &str)] = &[("ha", "gateway pairs")];

pub(super) fn read(text: &str, file: &str) -> Result<Config, ConfigErrors> {
    let mut found = Findings::new(text);
    let (document, syntax) = DeTable::parse_recoverable(text);
    for error in &syntax {
        let at = error.span().map_or(0, |span| span.start);
        found.error(at, format!("not valid TOML: {}", error.message().replace('\n', "; ")));
    }
    let mut config = Config { pools: Vec::new(), roles: Vec::new(), ..built_in() };
    // After a syntax error the rest of the document may be read wrongly: more messages would
    // mislead.
    if syntax.is_empty() {
        let mut top = Section::new("the file", document.get_ref(), 0);
        if let Some(section) = top.table("gateway", "[gateway]", &mut found) {
            gateway(section, &mut config.gateway, &mut found);
        }
        if let Some(section) = top.table("ike", "[ike]", &mut found) {
            ike(section, &mut config.ike, &mut found);
        }
        if let Some(section) = top.table("pki", "[pki]", &mut found) {
            pki(section, &mut config.pki, &mut found);
        }
        if let Some(section) = top.table("enrol", "[enrol]", &mut found) {
            enrol(section, &mut config.enrol, &mut found);
        }
        if let Some(section) = top.table("limits", "[limits]", &mut found) {
            config.limits = limits::limits(section, &mut found);
        }
        if let Some(section) = top.table("lease", "[lease]", &mut found) {
            config.lease = limits::timers(section, &mut found);
        }
        if let Some(section) = top.table("audit", "[audit]", &mut found) {
            config.audit = audit::audit(section, &mut found);
        }
        let pools = top.tables("pool", "[[pool]]", &mut found);
        let roles = top.tables("role", "[[role]]", &mut found);
        if let Some(sections) = top.tables("ca", "[[ca]]", &mut found) {
            config.cas = external::cas(sections, &mut found);
        }
        if let Some(sections) = top.tables("issuer", "[[issuer]]", &mut found) {
            let audience = config.enrol.url.as_deref();
            config.issuers = issuer::issuers(sections, audience, &mut found);
        }
        if let Some(section) = top.table("hooks", "[hooks]", &mut found) {
            config.hooks = Some(hooks::hooks(section, &config.issuers, &mut found));
        }
        let built_in = built_in();
        config.pools = match pools {
            Some(sections) => pool_list(sections, &mut found),
            None => built_in.pools,
        };
        config.roles = match roles {
            Some(sections) => role_list(sections, &config, &mut found),
            None => default_roles(&config.pools),
        };
        if let Some(sections) = top.tables("site", "[[site]]", &mut found) {
            let own = config.gateway.id.clone();
            let plane = config.gateway.dataplane;
            config.sites = site_list(sections, &config.pools, own.as_deref(), plane, &mut found);
        }
        if let Some(sections) = top.tables("psk", "[[psk]]", &mut found) {
            config.psks = keys::psks(sections, &config.roles, &config.sites, &mut found);
        }
        if let Some(sections) = top.tables("ppk", "[[ppk]]", &mut found) {
            config.ppks = keys::ppks(sections, &mut found);
        }
        top.finish(LATER, &mut found);
    }
    if !found.errors.is_empty() {
        let mut errors = found.errors;
        errors.sort_by_key(|error| error.line);
        return Err(ConfigErrors { file: file.to_owned(), errors });
    }
    config.warnings = found
        .warnings
        .iter()
        .map(|ConfigError { line, message }| format!("{file}:{line}: {message}"))
        .collect();
    Ok(config)
}

pub(super) fn built_in() -> Config {
    let pool = Pool {
        name: "runners".to_owned(),
        addresses: vec![
            net(IpAddr::V4(Ipv4Addr::new(10, 77, 0, 0)), 16),
            net(IpAddr::V6(Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 0)), 64),
        ],
        dns: Vec::new(),
        masquerade: false,
        quarantine: 10 * MINUTE,
    };
    let pools = vec![pool];
    let any = |port| SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port);
    Config {
        gateway: Gateway {
            id: None,
            listen: vec![IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)],
            dataplane: DataplaneChoice::Auto,
            offload: Offload::None,
            interface: "runnel0".to_owned(),
            keep_tunnels: true,
            runtime: PathBuf::from("/run/runnel"),
            redirect_to: None,
        },
        ike: Ike {
            rekey: HOUR,
            child: 25 * MINUTE,
            child_bytes: None,
            child_packets: None,
            dpd: Duration::from_secs(10),
            announce_lifetime: 30 * MINUTE,
            proposals: Vec::new(),
            esp_proposals: Vec::new(),
            fragment_size: 1232,
            cookie_threshold: 64,
            max_half_open: 2048,
            eap_tls: false,
            eap_only: true,
        },
        pki: Pki {
            trust_domain: None,
            status_listen: any(8080),
            keep_ended: 7 * DAY,
            ca_key: KeyKind::EcdsaP256,
            ca_token: None,
            journal: None,
        },
        enrol: Enrol {
            listen: any(8443),
            url: None,
            rate: Rate { per_second: 20, burst: 100 },
            certificate: None,
        },
        limits: pki::Limits::default(),
        lease: pki::LeaseTimers::default(),
        hooks: None,
        audit: audit::Audit::default(),
        roles: default_roles(&pools),
        sites: Vec::new(),
        psks: Vec::new(),
        cas: Vec::new(),
        issuers: Vec::new(),
        ppks: Vec::new(),
        pools,
        source: None,
        warnings: Vec::new(),
    }
}

/// Never fails for the literal prefixes it is called with.
fn net(address: IpAddr, prefix: u8) -> IpNet {
    IpNet::new(address, prefix).unwrap_or_else(|_| IpNet::from(address))
}

/// One role `builder` in the first pool that may reach only the gateway's status page.
fn default_roles(pools: &[Pool]) -> Vec<Role> {
    pools
        .first()
        .map(|pool| Role {
            name: "builder".to_owned(),
            pool: pool.name.clone(),
            ttl: HOUR,
            max_lease: DAY,
            keys: Vec::new(),
            server_keys: false,
            max_leases: None,
            rate: None,
            manual: false,
            san_address: false,
            verify_names: false,
            allow: pool
                .addresses
                .iter()
                .map(|network| AllowEntry {
                    net: IpNet::from(Pool::gateway_address(*network)),
                    protocol: Some(6),
                    ports: Some((STATUS_PAGE_PORT, STATUS_PAGE_PORT)),
                })
                .collect(),
            matches: Vec::new(),
            claims: Vec::new(),
        })
        .into_iter()
        .collect()
}

fn gateway(mut section: Section<'_, '_>, out: &mut Gateway, found: &mut Findings<'_>) {
    if let Some((id, at)) = section.string("id", found) {
        if value::dns_name(&id) || id.parse::<IpAddr>().is_ok() {
            out.id = Some(id);
        } else {
            found.error(at, format!("`id = \"{id}\"` must be a DNS name like \"gw.example.com\" or an IP address: clients compare it with the certificate"));
        }
    }
    let at = section.place("listen");
    if let Some(listen) = section.addresses("listen", found) {
        if listen.is_empty() {
            found.error(
                at,
                "`listen` is empty; name at least one address, like [\"0.0.0.0\", \"::\"]",
            );
        }
        out.listen = listen;
    }
    if let Some((word, at)) = section.string("dataplane", found) {
        match word.as_str() {
            "auto" => out.dataplane = DataplaneChoice::Auto,
            "kernel" => out.dataplane = DataplaneChoice::Kernel,
            "userspace" => out.dataplane = DataplaneChoice::Userspace,
            _ => found.error(
                at,
                format!("`dataplane = \"{word}\"` must be \"auto\", \"kernel\" or \"userspace\""),
            ),
        }
    }
    if let Some((word, at)) = section.string("offload", found) {
        match [Offload::None, Offload::Crypto, Offload::Packet].iter().find(|o| o.name() == word) {
            Some(Offload::None) => out.offload = Offload::None,
            Some(_) if out.dataplane == DataplaneChoice::Userspace => found.error(
                at,
                format!("`offload = \"{word}\"` is for the kernel data plane; remove it, or set dataplane = \"kernel\""),
            ),
            Some(offload) => out.offload = *offload,
            None => found.error(
                at,
                format!("`offload = \"{word}\"` must be \"none\", \"crypto\" or \"packet\""),
            ),
        }
    }
    if let Some((host, at)) = section.string("redirect_to", found) {
        if value::dns_name(&host) || host.parse::<IpAddr>().is_ok() {
            out.redirect_to = Some(host);
        } else {
            found.error(at, format!("`redirect_to = \"{host}\"` must be a DNS name or an IP address of another gateway"));
        }
    }
    if let Some(keep) = section.boolean("keep_tunnels", found) {
        out.keep_tunnels = keep;
    }
    if let Some((path, at)) = section.string("runtime", found) {
        if path.starts_with('/') {
            out.runtime = PathBuf::from(path);
        } else {
            found.error(at, format!("`runtime = \"{path}\"` must be an absolute path of a folder on a tmpfs, like \"/run/runnel\""));
        }
    }
    if let Some((name, at)) = section.string("interface", found) {
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        if (1..=15).contains(&name.len()) && name.chars().all(fits) {
            out.interface = name;
        } else {
            found.error(
                at,
                format!("`interface = \"{name}\"` must be 1 to 15 letters, digits, - or _"),
            );
        }
    }
    section.finish(&[], found);
}

fn ike(mut section: Section<'_, '_>, out: &mut Ike, found: &mut Findings<'_>) {
    if let Some(rekey) = section.duration("rekey", MINUTE..=7 * DAY, found) {
        out.rekey = rekey;
    }
    if let Some(child) = section.duration("child", MINUTE..=DAY, found) {
        out.child = child;
    }
    if let Some(bytes) = section.size("child_bytes", MB..=PB, found) {
        out.child_bytes = Some(bytes);
    }
    if let Some(packets) = section.number("child_packets", 1000..=1_000_000_000_000_000, found) {
        out.child_packets = Some(packets);
    }
    if let Some(dpd) = section.duration("dpd", Duration::ZERO..=HOUR, found) {
        out.dpd = dpd;
    }
    if let Some(least) = section.duration("announce_lifetime", Duration::ZERO..=30 * DAY, found) {
        out.announce_lifetime = least;
    }
    if let Some(list) = section.strings("proposals", found) {
        out.proposals = proposals(list, "proposals", found, |text| {
            ike::crypto::IkeSuite::parse_proposal(text).map(|_| ()).map_err(|why| why.to_string())
        });
    }
    if let Some(list) = section.strings("esp_proposals", found) {
        out.esp_proposals = proposals(list, "esp_proposals", found, |text| {
            ike::crypto::EspSuite::parse_proposal(text).map(|_| ()).map_err(|why| why.to_string())
        });
    }
    if let Some(size) = section.number("fragment_size", 576..=65_000, found) {
        out.fragment_size = usize::try_from(size).unwrap_or(out.fragment_size);
    }
    if let Some(count) = section.number("cookie_threshold", 0..=1_000_000, found) {
        out.cookie_threshold = usize::try_from(count).unwrap_or(out.cookie_threshold);
    }
    if let Some(count) = section.number("max_half_open", 1..=1_000_000, found) {
        out.max_half_open = usize::try_from(count).unwrap_or(out.max_half_open);
    }
    if let Some(flag) = section.boolean("eap_tls", found) {
        out.eap_tls = flag;
    }
    if let Some(flag) = section.boolean("eap_only", found) {
        out.eap_only = flag;
    }
    if out.max_half_open < out.cookie_threshold {
        found.error(
            section.place("max_half_open"),
            format!(
                "`max_half_open` ({}) is below `cookie_threshold` ({}): spoofed packets alone could fill the table; raise it or lower the threshold",
                out.max_half_open, out.cookie_threshold
            ),
        );
    }
    section.finish(&[], found);
}

/// Proposals that parse; each that does not is a mistake at its own line.
fn proposals(
    list: Vec<(String, usize)>,
    key: &str,
    found: &mut Findings<'_>,
    check: impl Fn(&str) -> Result<(), String>,
) -> Vec<String> {
    list.into_iter()
        .filter_map(|(text, at)| match check(&text) {
            Ok(()) => Some(text),
            Err(why) => {
                found.error(at, format!("\"{text}\" in `{key}`: {why}"));
                None
            }
        })
        .collect()
}

fn pki(mut section: Section<'_, '_>, out: &mut Pki, found: &mut Findings<'_>) {
    if let Some((domain, at)) = section.string("trust_domain", found) {
        if value::dns_name(&domain) {
            out.trust_domain = Some(domain.to_ascii_lowercase());
        } else {
            found.error(
                at,
                format!("`trust_domain = \"{domain}\"` must be a DNS name like \"ci.example.com\""),
            );
        }
    }
    if let Some(listen) = section.socket("status_listen", found) {
        out.status_listen = listen;
    }
    if let Some(keep) = section.duration("keep_ended", HOUR..=3650 * DAY, found) {
        out.keep_ended = keep;
    }
    if let Some((name, at)) = section.string("ca_key", found) {
        if name.starts_with(TokenUri::SCHEME) {
            match TokenUri::parse(&name) {
                Ok(uri) => out.ca_token = Some(uri),
                Err(error) => found.error(at, format!("`ca_key`: {error}")),
            }
        } else {
            match name.parse() {
                Ok(kind) => out.ca_key = kind,
                Err(error) => found.error(at, format!("`ca_key`: {error}")),
            }
        }
    }
    if let Some((path, at)) = section.string("journal", found) {
        let path = std::path::PathBuf::from(path);
        if path.is_absolute() {
            out.journal = Some(path);
        } else {
            found.error(
                at,
                "`journal` must be an absolute path of a file on another disk".to_owned(),
            );
        }
    }
    if let Some((name, at)) = section.string("ca_key_kind", found) {
        match name.parse() {
            Ok(kind) if out.ca_token.is_some() => out.ca_key = kind,
            Ok(_) => found.error(
                at,
                "`ca_key_kind` is for keys in a token: write the kind as ca_key, or the token's \
                 pkcs11: URI"
                    .to_owned(),
            ),
            Err(error) => found.error(at, format!("`ca_key_kind`: {error}")),
        }
    }
    section.finish(&[], found);
}

fn enrol(mut section: Section<'_, '_>, out: &mut Enrol, found: &mut Findings<'_>) {
    if let Some(listen) = section.socket("listen", found) {
        out.listen = listen;
    }
    if let Some((url, at)) = section.string("url", found) {
        let rest = url.strip_prefix("https://").unwrap_or("");
        if rest.is_empty() || rest.contains(['/', '?', '#', '@', ' ']) {
            found.error(at, format!("`url = \"{url}\"` must be https://HOST[:PORT] without a path: clients append /.well-known/est"));
        } else {
            out.url = Some(url);
        }
    }
    if let Some(rate) = section.number("rate", 1..=100_000, found) {
        out.rate.per_second = u32::try_from(rate).unwrap_or(out.rate.per_second);
    }
    if let Some(burst) = section.number("burst", 1..=1_000_000, found) {
        out.rate.burst = u32::try_from(burst).unwrap_or(out.rate.burst);
    }
    let mut path = |key: &'static str| {
        let (text, at) = section.string(key, found)?;
        let path = std::path::PathBuf::from(&text);
        if !path.is_absolute() {
            found.error(at, format!("`{key} = \"{text}\"` must be an absolute path"));
        }
        Some(path)
    };
    match (path("certificate"), path("key")) {
        (Some(certificate), Some(key)) => out.certificate = Some((certificate, key)),
        (None, None) => {}
        (certificate, _) => {
            let missing = if certificate.is_some() { "key" } else { "certificate" };
            found.error(
                section.offset,
                format!("[enrol] has `certificate` or `key` without the other; add {missing}"),
            );
        }
    }
    section.finish(&[], found);
}

pub(super) fn named(section: &mut Section<'_, '_>, found: &mut Findings<'_>) -> Option<String> {
    let Some((name, at)) = section.string("name", found) else {
        if !section.has("name") {
            found.error(section.offset, "this section has no name; add name = \"...\"");
        }
        return None;
    };
    match value::name(&name) {
        Ok(()) => Some(name),
        Err(why) => {
            found.error(at, why);
            None
        }
    }
}
