//! `[[site]]`: another gateway with networks behind it.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::error::ConfigError;
use super::keyfile::read_key;
use super::model::{DataplaneChoice, PeerId, Pool, Site};
use super::read::named;
use super::section::{Findings, Section};
use super::value;

impl Site {
    /// The identity it proves.
    pub fn peer_id(&self) -> Option<PeerId> {
        PeerId::parse(&self.id)
    }

    /// Whether a tunnel made under these terms may go on under the others: only what may be opened
    /// through it differs, which the packet filter obeys at once.
    pub fn has_same_tunnel(&self, after: &Self) -> bool {
        let terms = |site: &Self| {
            (
                site.remote.clone(),
                site.id.clone(),
                (site.connect, site.follow_redirects, site.childless, site.transport),
                site.anchors.clone(),
                site.psk.clone(),
                site.local.clone(),
                site.networks.clone(),
            )
        };
        terms(self) == terms(after)
    }
}

/// Networks on one side of a site at most: the peer's list of selectors holds this many.
const MAX_NETWORKS: usize = 32;

pub(super) fn site_list(
    sections: Vec<Section<'_, '_>>,
    pools: &[Pool],
    own_id: Option<&str>,
    plane: DataplaneChoice,
    found: &mut Findings<'_>,
) -> Vec<Site> {
    let mut sites: Vec<Site> = Vec::new();
    for mut section in sections {
        let Some(name) = named(&mut section, found) else {
            section.finish_quietly();
            continue;
        };
        let site = site(&mut section, name, found);
        let at = section.offset;
        if sites.iter().any(|other| other.name == site.name) {
            found.error(at, format!("site \"{}\" is there twice; rename one", site.name));
        }
        if own_id.is_some_and(|own| own.eq_ignore_ascii_case(&site.id)) {
            found.error(
                section.place("id"),
                format!("site \"{}\" has this gateway's own id; name the other one's", site.name),
            );
        }
        if let Some(other) = sites
            .iter()
            .find(|other| !site.id.is_empty() && other.id.eq_ignore_ascii_case(&site.id))
        {
            found.error(
                section.place("id"),
                format!(
                    "sites \"{}\" and \"{}\" have the same id \"{}\"; a gateway is one site",
                    other.name, site.name, site.id
                ),
            );
        }
        if site.transport && plane == DataplaneChoice::Userspace {
            found.error(section.place("mode"), no_transport(&site.name));
        }
        overlaps(&section, &site, &sites, pools, found);
        sites.push(site);
        section.finish(&[], found);
    }
    sites
}

fn site(section: &mut Section<'_, '_>, name: String, found: &mut Findings<'_>) -> Site {
    let remote = section.string("remote", found).and_then(|(host, at)| {
        let fits = host.parse::<IpAddr>().is_ok_and(|address| !address.is_unspecified())
            || (host.parse::<IpAddr>().is_err() && value::dns_name(&host));
        if !fits {
            found.error(at, format!("`remote = \"{host}\"` must be a DNS name or an IP address of the other gateway, without a port"));
        }
        fits.then_some(host)
    });
    let id = match section.string("id", found) {
        Some((id, at)) => {
            if !value::dns_name(&id) && id.parse::<IpAddr>().is_err() {
                found.error(at, format!("`id = \"{id}\"` must be the DNS name or IP address in the other gateway's certificate"));
            }
            id
        }
        None => match &remote {
            Some(remote) => remote.clone(),
            None => {
                if !section.has("id") && !section.has("remote") {
                    found.error(section.offset, format!("site \"{name}\" has neither `remote` nor `id`; add remote = \"HOST\" to connect to it, or id = \"NAME\" to wait for it"));
                }
                String::new()
            }
        },
    };
    let connect = match section.string("start", found) {
        Some((word, at)) => match word.as_str() {
            "now" => {
                if remote.is_none() && !section.has("remote") {
                    found.error(at, format!("site \"{name}\" is to connect now, but has no `remote`; add remote = \"HOST\""));
                }
                true
            }
            "wait" => false,
            _ => {
                found.error(at, format!("`start = \"{word}\"` must be \"now\" (connect, and again whenever the tunnel is lost) or \"wait\" (for the other side)"));
                false
            }
        },
        None => remote.is_some(),
    };
    let transport = mode(section, found);
    let follow_redirects = section.boolean("follow_redirects", found).unwrap_or(false);
    let childless = section.boolean("childless", found).unwrap_or(false);
    if childless && !connect {
        found.error(section.place("childless"), format!("site \"{name}\" is waited for, and `childless` is for the side that connects; remove it, or add remote = \"HOST\""));
    }
    let ca_at = section.place("ca");
    let ca = section.string("ca", found).map(|(path, _)| PathBuf::from(path));
    let local = networks(section, "local_networks", &name, found);
    let networks = networks(section, "remote_networks", &name, found);
    if transport {
        hosts(section, &name, (&local, &networks), remote.as_deref(), found);
    }
    let mut allow = Vec::new();
    for (text, at) in section.strings("allow", found).unwrap_or_default() {
        match value::allow_entry(&text) {
            Ok(entry) => {
                if !local.iter().any(|net| net.contains(&entry.net)) {
                    found.error(at, format!("{} is not within `local_networks` of site \"{name}\": its packets would not fit the tunnel; add the network or remove the entry", entry.net));
                }
                allow.push(entry);
            }
            Err(why) => found.error(at, why),
        }
    }
    allow.sort();
    allow.dedup();
    let psk_at = section.place("psk_file");
    let psk_file = section.string("psk_file", found).map(|(path, _)| PathBuf::from(path));
    if ca.is_some() && psk_file.is_some() {
        found.error(psk_at, format!("site \"{name}\" has both `ca` and `psk_file`; it proves itself with a certificate or with a shared key, keep one"));
    }
    Site {
        name,
        remote,
        id,
        connect,
        follow_redirects,
        childless,
        transport,
        ca,
        ca_line: found.line(ca_at),
        psk_file,
        psk_line: found.line(psk_at),
        psk: None,
        anchors: Vec::new(),
        local,
        networks,
        allow,
    }
}

/// The refusal of transport mode in the userspace plane: its packets would pass beside the tunnel
/// interface.
pub(crate) fn no_transport(site: &str) -> String {
    format!(
        "site \"{site}\" asks for transport mode, which only the kernel data plane has: set \
         dataplane = \"kernel\", or remove `mode` and give both hosts an address each for tunnel \
         mode to join (in `local_networks` and `remote_networks`)"
    )
}

/// `mode`; true for transport mode.
fn mode(section: &mut Section<'_, '_>, found: &mut Findings<'_>) -> bool {
    match section.string("mode", found) {
        Some((word, _)) if word == "transport" => true,
        Some((word, at)) if word != "tunnel" => {
            found.error(at, format!("`mode = \"{word}\"` must be \"tunnel\" or \"transport\""));
            false
        }
        _ => false,
    }
}

/// In transport mode the networks are the two machines' own addresses.
fn hosts(
    section: &Section<'_, '_>,
    site: &str,
    (local, remote): (&[IpNet], &[IpNet]),
    gateway: Option<&str>,
    found: &mut Findings<'_>,
) {
    let is_host = |net: &IpNet| net.prefix_len() == net.max_prefix_len();
    for (key, networks) in [("local_networks", local), ("remote_networks", remote)] {
        // None at all has been said already.
        if networks.len() > 1 || networks.iter().any(|net| !is_host(net)) {
            found.error(section.place(key), format!("site \"{site}\" is in transport mode, which joins two machines: `{key}` must be the one outer address of the machine on that side, like \"192.0.2.1/32\"; or remove `mode`"));
        }
    }
    if let ([ours], [theirs]) = (local, remote) {
        if ours.addr().is_ipv4() != theirs.addr().is_ipv4() {
            found.error(section.place("remote_networks"), format!("site \"{site}\" is in transport mode between {ours} and {theirs}, which are of different families; name addresses of one"));
        }
        let outer = gateway.and_then(|host| host.parse::<IpAddr>().ok());
        if outer.is_some_and(|outer| outer != theirs.addr()) {
            found.error(section.place("remote_networks"), format!("site \"{site}\" is in transport mode, where `remote_networks` is the address in `remote` itself; write remote_networks = [\"{}\"]", outer.map_or_else(String::new, |outer| IpNet::from(outer).to_string())));
        }
    }
}

fn networks(
    section: &mut Section<'_, '_>,
    key: &'static str,
    site: &str,
    found: &mut Findings<'_>,
) -> Vec<IpNet> {
    let place = section.place(key);
    let mistakes = found.errors.len();
    let mut networks: Vec<IpNet> = Vec::new();
    for (text, at) in section.strings(key, found).unwrap_or_default() {
        let Ok(net) = text.parse::<IpNet>() else {
            found.error(at, format!("\"{text}\" in `{key}` is not a network; write it like \"10.30.0.0/16\" or \"fd30::/64\""));
            continue;
        };
        if net.trunc() != net {
            found.error(at, format!("{net} has host bits set; write \"{}\"", net.trunc()));
        } else if net.prefix_len() == 0 {
            found.error(at, format!("{net} in `{key}` would take the tunnel's own packets along; name the networks behind the gateway"));
        } else if let Some(other) = networks.iter().find(|other| overlap(other, &net)) {
            found.error(at, format!("{net} overlaps {other} in `{key}`; leave one out"));
        } else {
            networks.push(net);
        }
    }
    if networks.is_empty() && found.errors.len() == mistakes {
        found.error(
            place,
            format!("site \"{site}\" has no `{key}`; add {key} = [\"10.30.0.0/16\"]"),
        );
    }
    if networks.len() > MAX_NETWORKS {
        found.error(
            place,
            format!(
                "`{key}` has {} networks, at most {MAX_NETWORKS} fit; join some",
                networks.len()
            ),
        );
    }
    networks
}

/// What is behind a site must not be anywhere else.
fn overlaps(
    section: &Section<'_, '_>,
    site: &Site,
    sites: &[Site],
    pools: &[Pool],
    found: &mut Findings<'_>,
) {
    let at = section.place("remote_networks");
    for net in &site.networks {
        if let Some(own) = site.local.iter().find(|own| overlap(own, net)) {
            found.error(at, format!("{net} of site \"{}\" overlaps {own} on our own side; the networks of both sides must differ", site.name));
        }
        for pool in pools {
            if let Some(taken) = pool.addresses.iter().find(|taken| overlap(taken, net)) {
                found.error(at, format!("{net} of site \"{}\" overlaps {taken} of pool \"{}\"; choose another pool, or renumber the site", site.name, pool.name));
            }
        }
        for other in sites {
            if let Some(taken) = other.networks.iter().find(|taken| overlap(taken, net)) {
                found.error(at, format!("{net} of site \"{}\" overlaps {taken} of site \"{}\"; a network is behind one gateway", site.name, other.name));
            }
        }
        let outer = site.remote.as_ref().and_then(|host| host.parse::<IpAddr>().ok());
        if !site.transport && outer.is_some_and(|outer| net.contains(&outer)) {
            found.error(at, format!("{net} of site \"{}\" holds its own gateway's address {}: the tunnel would swallow itself; leave that address out", site.name, site.remote.as_deref().unwrap_or_default()));
        }
    }
}

fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

/// Reads the root certificates and shared keys that sites name; paths are relative to the
/// configuration file.
pub(super) fn read_files(sites: &mut [Site], file: &Path) -> Vec<ConfigError> {
    let mut errors = Vec::new();
    let place = |path: &Path| file.parent().map_or_else(|| path.to_owned(), |dir| dir.join(path));
    for site in sites {
        let name = site.name.clone();
        let mut wrong = |line: usize, key: &str, why: String| {
            let message = format!("`{key}` of site \"{name}\": {why}");
            errors.push(ConfigError { line, message });
        };
        if let Some(path) = site.ca.as_deref().map(place) {
            match anchors(&path) {
                Ok(anchors) => site.anchors = anchors,
                Err(why) => {
                    wrong(site.ca_line, "ca", format!("{}: {why}", path.display()));
                }
            }
        }
        if let Some(path) = site.psk_file.as_deref().map(place) {
            match read_key(&path) {
                Ok(key) => site.psk = Some(key),
                Err(why) => wrong(site.psk_line, "psk_file", why),
            }
        }
    }
    errors
}

fn anchors(path: &Path) -> Result<Vec<Vec<u8>>, String> {
    let text = std::fs::read(path)
        .map_err(|error| format!("{}; check path, owner and mode", crate::sys::reason(&error)))?;
    let mut anchors = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(&text) {
        let der = certificate.map_err(|_| "broken PEM; export the certificate again".to_owned())?;
        if x509_parser::parse_x509_certificate(&der).is_err() {
            return Err("holds what is no certificate; export it again".to_owned());
        }
        anchors.push(der.to_vec());
    }
    if anchors.is_empty() {
        let what = "holds no certificate; put the other side's root there (`runnel ca root` there)";
        return Err(what.to_owned());
    }
    Ok(anchors)
}
