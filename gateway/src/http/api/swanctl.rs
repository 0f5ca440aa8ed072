//! A runner's swanctl.conf, rendered for its lease and its version of strongSwan.

use std::fmt::Write;
use std::net::IpAddr;

use pki::Lease;

use crate::config::{Config, Role};
use crate::policy;

/// Networks written out; more become everything, which the gateway narrows anyhow.
const MAX_NETWORKS: usize = 16;
/// The first version that asks for OCSP answers inside IKE; older ones discard a connection with a
/// setting they do not know.
const STAPLES: [u32; 3] = [5, 9, 14];
/// What is assumed of a client that does not say: the oldest that enrols.
const OLDEST: [u32; 3] = [5, 9, 8];

/// What the file is made of.
pub(super) struct Client<'a> {
    /// The gateway's IKE identity.
    pub(super) gateway: &'a str,
    /// Where it is reached.
    pub(super) host: &'a str,
    /// The lease.
    pub(super) lease: &'a Lease,
    /// Its role.
    pub(super) role: Option<&'a Role>,
    /// strongSwan's version, if the client said it.
    pub(super) version: Option<&'a str>,
}

/// The file. Certificate, key and root lie where `swanctl` looks for them: `x509/ci.pem`,
/// `private/ci.pem`, `x509ca/gw.pem`.
pub(super) fn render(config: &Config, client: &Client<'_>) -> String {
    let Client { gateway, host, lease, .. } = client;
    let version = client.version.and_then(parse).unwrap_or(OLDEST);
    let families: Vec<&str> = lease
        .addresses
        .iter()
        .map(|address| if address.is_ipv4() { "0.0.0.0" } else { "::" })
        .collect();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let mut out = String::new();
    let mut line = |depth: usize, text: &str| {
        let _ = writeln!(out, "{:width$}{text}", "", width = depth * 2);
    };
    line(0, "connections {");
    line(1, "gw {");
    line(2, "version = 2");
    line(2, &format!("remote_addrs = {host}"));
    if !config.ike.proposals.is_empty() {
        line(2, &format!("proposals = {}", config.ike.proposals.join(",")));
    }
    if !families.is_empty() {
        line(2, &format!("vips = {}", families.join(",")));
    }
    // The client comes back by itself, however long the gateway was away: a stopping gateway deletes
    // the IKE SA (close_action), one that died answers nothing (dpd_action). Refusals end the
    // attempts all the same: keyingtries counts those that nobody answered.
    line(2, "keyingtries = 0");
    line(2, "dpd_delay = 10s");
    line(2, "rekey_time = 1h");
    // A certificate shorter than a tenth of rekey_time would otherwise be renewed in a loop.
    line(2, "over_time = 60s");
    line(2, "encap = yes");
    line(2, "fragmentation = yes");
    if version >= STAPLES {
        line(2, "ocsp = request");
    }
    line(2, "local {");
    line(3, "auth = pubkey");
    line(3, "certs = ci.pem");
    line(3, &format!("id = \"{}\"", lease.subject));
    line(2, "}");
    line(2, "remote {");
    line(3, "auth = pubkey");
    line(3, &format!("id = {gateway}"));
    line(3, "cacerts = gw.pem");
    line(3, "revocation = ifuri");
    line(2, "}");
    line(2, "children {");
    line(3, "net {");
    line(4, &format!("remote_ts = {}", networks(config, client)));
    if !config.ike.esp_proposals.is_empty() {
        line(4, &format!("esp_proposals = {}", config.ike.esp_proposals.join(",")));
    }
    line(4, "start_action = start");
    line(4, "dpd_action = restart");
    line(4, "close_action = start");
    line(3, "}");
    line(2, "}");
    line(1, "}");
    line(0, "}");
    out
}

/// The networks the role may reach, of the families the lease has addresses in.
fn networks(config: &Config, client: &Client<'_>) -> String {
    let has =
        |v4: bool| client.lease.addresses.iter().any(|address: &IpAddr| address.is_ipv4() == v4);
    let pool = client.role.and_then(|role| config.pool(&role.pool).map(|pool| (role, pool)));
    let reach = pool.map(|(role, pool)| policy::reach(role, pool)).unwrap_or_default();
    let mut networks: Vec<_> = reach.into_iter().map(|entry| entry.net).collect();
    networks.retain(|net| has(net.addr().is_ipv4()));
    networks.sort();
    networks.dedup();
    if (1..=MAX_NETWORKS).contains(&networks.len()) {
        let networks: Vec<String> = networks.iter().map(ToString::to_string).collect();
        return networks.join(",");
    }
    let all = [(true, "0.0.0.0/0"), (false, "::/0")];
    let all: Vec<&str> = all.into_iter().filter(|(v4, _)| has(*v4)).map(|(_, net)| net).collect();
    all.join(",")
}

/// A version like `5.9.8` or `6.0.1`; what follows is left out.
pub(super) fn parse(text: &str) -> Option<[u32; 3]> {
    let text = text.trim().trim_start_matches(['U', 'v']);
    let mut parts = text.split('.').map(|part| {
        let digits: String = part.chars().take_while(char::is_ascii_digit).collect();
        digits.parse::<u32>().ok()
    });
    Some([parts.next()??, parts.next()??, parts.next().flatten().unwrap_or(0)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_people_write_them() {
        assert_eq!(parse("5.9.8"), Some([5, 9, 8]));
        assert_eq!(parse("U5.9.8/K6.1"), Some([5, 9, 8]));
        assert_eq!(parse("6.0"), Some([6, 0, 0]));
        assert_eq!(parse("6.0.1-6"), Some([6, 0, 1]));
        assert_eq!(parse("six"), None);
        assert!(parse("6.0.0") > Some(STAPLES) && parse("5.9.8") < Some(STAPLES));
    }
}
