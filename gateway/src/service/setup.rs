//! From the configuration to what PKI and engine are configured with.

use std::net::IpAddr;

use ike::config::{Continuity, EngineConfig, Limits, Timers, Volume};
use ike::crypto::{EspSuite, IkeSuite, SecretBytes, default_provider};
use ike::wire::Identification;
use pki::{PoolConfig, RoleProfile, ServerNames, Settings};
use xfrm::model::Capabilities;

use super::GatewayIdentity;
use crate::actions::plane_suite;
use crate::config::{Config, Pool};
use crate::sys;

/// The gateway's IKE identity: configured, or the machine's name.
pub fn gateway_id(config: &Config) -> String {
    config.gateway.id.clone().unwrap_or_else(|| dns_name(&sys::hostname()))
}

/// A host name clients can reach the gateway by: the id when it looks resolvable or is an
/// address, else the first address of this machine.
pub fn client_host(config: &Config, id: &str) -> String {
    if let Some(host) = config.enrol.url.as_deref().and_then(url_host) {
        return host.to_owned();
    }
    if id.contains('.') || id.contains(':') {
        return bracketed(id);
    }
    let listen = config.gateway.listen.iter().find(|address| !address.is_unspecified()).copied();
    let ours = |address: &IpAddr| {
        config.pools.iter().any(|pool| pool.addresses.iter().any(|net| net.contains(address)))
    };
    let address =
        listen.or_else(|| sys::net::local_addresses().into_iter().find(|found| !ours(found)));
    address.map_or_else(|| id.to_owned(), |address| bracketed(&address.to_string()))
}

/// The URL clients enrol at.
pub fn enrol_url(config: &Config, id: &str) -> String {
    config.enrol.url.clone().unwrap_or_else(|| {
        format!("https://{}:{}", client_host(config, id), config.enrol.listen.port())
    })
}

/// The names in the gateway's certificate: everything a client may reach it by.
pub fn server_names(config: &Config, id: &str) -> ServerNames {
    let mut addresses: Vec<IpAddr> =
        config.gateway.listen.iter().copied().filter(|a| !a.is_unspecified()).collect();
    if !config.enrol.listen.ip().is_unspecified() {
        addresses.push(config.enrol.listen.ip());
    }
    let anywhere = config.gateway.listen.iter().any(IpAddr::is_unspecified)
        || config.enrol.listen.ip().is_unspecified();
    // The tunnel's own addresses may or may not exist at this moment; they are always named.
    let tunnel: Vec<IpAddr> = config
        .pools
        .iter()
        .flat_map(|pool| pool.addresses.iter().map(|net| Pool::gateway_address(*net)))
        .collect();
    if anywhere {
        addresses.extend(sys::net::local_addresses());
    }
    addresses.extend(tunnel);
    addresses.sort();
    addresses.dedup();
    let mut dns: Vec<String> = Vec::new();
    if let Some(host) = config.enrol.url.as_deref().and_then(url_host)
        && host.parse::<IpAddr>().is_err()
        && !host.starts_with('[')
        && !host.eq_ignore_ascii_case(id)
    {
        dns.push(host.to_ascii_lowercase());
    }
    ServerNames { id: id.to_owned(), dns, addresses }
}

/// What the PKI is configured with.
pub fn pki_settings(config: &Config, id: &str) -> Settings {
    let domain = config.pki.trust_domain.clone().unwrap_or_else(|| id.to_ascii_lowercase());
    let mut settings = Settings::new(domain);
    for role in &config.roles {
        settings.roles.insert(
            role.name.clone(),
            RoleProfile {
                ttl: role.ttl,
                max_lease: role.max_lease,
                keys: role.keys.clone(),
                server_keys: role.server_keys,
                max_leases: role.max_leases,
                rate: role.rate,
                manual: role.manual,
                san_address: role.san_address,
                verify_names: role.verify_names,
                ..RoleProfile::new(role.pool.clone())
            },
        );
    }
    settings.limits = config.limits;
    settings.timers = config.lease;
    settings.issuers = config.issuers.clone();
    settings.rules = config.roles.iter().flat_map(|role| role.claims.iter().cloned()).collect();
    for pool in &config.pools {
        settings.pools.insert(
            pool.name.clone(),
            PoolConfig { networks: pool.addresses.clone(), quarantine: pool.quarantine },
        );
    }
    settings.keep_ended = config.pki.keep_ended;
    let port = config.pki.status_listen.port();
    settings.status_url = Some(format!("http://{}:{port}", client_host(config, id)));
    settings
}

/// What the engine is configured with, within what the data plane can do.
///
/// # Errors
/// A sentence about the first proposal that cannot be used.
pub fn engine_config(
    config: &Config,
    id: &str,
    identity: &GatewayIdentity,
    capabilities: &Capabilities,
    crash_secret: &SecretBytes,
) -> Result<EngineConfig, String> {
    let provider = default_provider();
    let mut ike_suites = Vec::new();
    for text in &config.ike.proposals {
        ike_suites.extend(IkeSuite::parse_proposal(text).map_err(|e| proposal(text, &e))?);
    }
    if ike_suites.is_empty() {
        ike_suites = IkeSuite::defaults();
    }
    ike_suites.retain(|suite| suite.supported_by(provider));
    let mut esp_suites = Vec::new();
    for text in &config.ike.esp_proposals {
        esp_suites.extend(EspSuite::parse_proposal(text).map_err(|e| proposal(text, &e))?);
    }
    if esp_suites.is_empty() {
        esp_suites = EspSuite::defaults();
    }
    esp_suites.retain(|suite| {
        (capabilities.esn || !suite.esn)
            && plane_suite(suite).is_some_and(|suite| capabilities.suites.contains(&suite))
    });
    Ok(EngineConfig {
        shard: 0,
        identity: identification(id),
        credentials: vec![identity.credential()],
        trust_anchor_hashes: anchor_hashes(config, identity),
        request_ocsp: false,
        ike_suites,
        esp_suites,
        force_encap: !capabilities.plain_esp,
        fragment_size: config.ike.fragment_size,
        eap_tls: config.ike.eap_tls,
        eap_only: config.ike.eap_only,
        ppk: !config.ppks.is_empty(),
        timers: Timers {
            dpd: config.ike.dpd,
            rekey_ike: config.ike.rekey,
            rekey_child: config.ike.child,
            min_auth_lifetime: config.ike.announce_lifetime,
            ..Timers::default()
        },
        volume: Volume { bytes: config.ike.child_bytes, packets: config.ike.child_packets },
        limits: Limits {
            cookie_threshold: config.ike.cookie_threshold,
            max_half_open: config.ike.max_half_open,
            ..Limits::default()
        },
        continuity: Continuity {
            crash_secret: Some(crash_secret.clone()),
            // A checkpoint is written before what depends on it is sent, on this machine.
            sync_after_restart: false,
            ..Continuity::default()
        },
    })
}

/// The authorities whose certificates we accept, as CERTREQ names them.
fn anchor_hashes(config: &Config, identity: &GatewayIdentity) -> Vec<[u8; 20]> {
    let mut hashes = identity.trust_anchor_hashes();
    for anchor in config.sites.iter().flat_map(|site| &site.anchors) {
        hashes.extend(crate::actions::spki_sha1(anchor).filter(|hash| !hashes.contains(hash)));
    }
    hashes
}

fn proposal(text: &str, error: &ike::crypto::suite::SuiteError) -> String {
    format!("proposal \"{text}\" cannot be used: {error}")
}

/// An IKE identity: an address, or else a DNS name.
pub fn identification(id: &str) -> Identification {
    match id.parse::<IpAddr>() {
        Ok(address) => Identification::address(address),
        Err(_) => Identification::fqdn(id),
    }
}

/// The host of `https://host:port/path`, brackets kept.
fn url_host(url: &str) -> Option<&str> {
    let rest = url.split_once("://")?.1;
    let authority = rest.split(['/', '?', '#']).next()?;
    let host = match authority.rfind(']') {
        Some(end) => authority.get(..=end)?,
        None => authority.split(':').next()?,
    };
    (!host.is_empty()).then_some(host)
}

fn bracketed(host: &str) -> String {
    match host.parse::<IpAddr>() {
        Ok(IpAddr::V6(_)) => format!("[{host}]"),
        _ => host.to_owned(),
    }
}

/// A machine's name as a DNS name: lower case, nothing but letters, digits, hyphens and dots.
fn dns_name(text: &str) -> String {
    let name: String = text
        .to_ascii_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' })
        .collect();
    let labels: Vec<&str> =
        name.split('.').map(|label| label.trim_matches('-')).filter(|l| !l.is_empty()).collect();
    if labels.is_empty() { "runnel".to_owned() } else { labels.join(".") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_found_in_urls() {
        assert_eq!(url_host("https://gw.example.com:8443"), Some("gw.example.com"));
        assert_eq!(url_host("https://[2001:db8::1]:8443/x"), Some("[2001:db8::1]"));
        assert_eq!(url_host("https://192.0.2.1/tenant"), Some("192.0.2.1"));
        assert_eq!(url_host("gw.example.com"), None);
    }

    #[test]
    fn host_names_become_dns_names() {
        assert_eq!(dns_name("Build_Host-1"), "build-host-1");
        assert_eq!(dns_name("-a-.B."), "a.b");
        assert_eq!(dns_name("___"), "runnel");
    }

    #[test]
    fn a_configured_id_names_the_gateway_everywhere() {
        let mut config = Config::built_in();
        config.gateway.id = Some("gw.example.com".to_owned());
        let id = gateway_id(&config);
        assert_eq!(client_host(&config, &id), "gw.example.com");
        assert_eq!(enrol_url(&config, &id), "https://gw.example.com:8443");
        let settings = pki_settings(&config, &id);
        assert_eq!(settings.trust_domain, "gw.example.com");
        assert_eq!(settings.status_url.as_deref(), Some("http://gw.example.com:8080"));
        settings.validate().unwrap();
        let names = server_names(&config, &id);
        assert!(names.addresses.contains(&"10.77.0.1".parse().unwrap()), "{names:?}");
        config.enrol.url = Some("https://enrol.example.com".to_owned());
        assert_eq!(server_names(&config, &id).dns, ["enrol.example.com"]);
    }
}
