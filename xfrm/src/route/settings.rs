//! Settings and routes of this machine that drop tunnelled packets without a word.

use std::fs;
use std::net::IpAddr;

use ipnet::IpNet;

use super::ops::RouteSocket;
use super::{Problem, ProblemKind};
use crate::error::PlaneError;
use crate::model::PlaneKind;

/// rp_filter's strict mode (RFC 3704 2.2).
const STRICT: &str = "1";

fn read(family: &str, interface: &str, key: &str) -> String {
    let path = format!("/proc/sys/net/{family}/conf/{interface}/{key}");
    fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default()
}

/// See [`super::settings_report`].
pub(super) fn report(
    socket: &mut RouteSocket,
    tunnel: &str,
    plane: PlaneKind,
    inside: &[IpNet],
) -> Result<Vec<Problem>, PlaneError> {
    let mut problems = Vec::new();
    for net in inside {
        let decision = socket.decide(representative(*net))?;
        let name = match decision.interface {
            Some(index) => socket.link_by_index(index)?.map(|link| link.name),
            None => None,
        };
        if decision.local || name.as_deref() == Some(tunnel) {
            continue;
        }
        problems.push(astray(net, tunnel, plane, name.as_deref()));
    }
    if plane == PlaneKind::Kernel {
        problems.extend(without_ipsec(tunnel));
    }
    Ok(problems)
}

/// Addresses of clients or sites that do not lead to the tunnel.
fn astray(net: &IpNet, tunnel: &str, plane: PlaneKind, other: Option<&str>) -> Problem {
    let family = if net.addr().is_ipv6() { "-6 " } else { "" };
    let to = other.map_or_else(|| "nowhere".to_owned(), |other| format!("to {other}"));
    let mut sentence = format!(
        "packets for {net} go {to} instead of {tunnel}; see `ip {family}rule` and `ip {family}route \
         get {}`, and remove the rule or route that is in the way",
        representative(*net)
    );
    // IPsec's own packets are exempt from the filter; those of a TUN device are not. The stricter
    // of the two values counts.
    let strict = ["all", tunnel].iter().map(|interface| read("ipv4", interface, "rp_filter")).max();
    let filtered = net.addr().is_ipv4() && strict.as_deref() == Some(STRICT);
    if plane == PlaneKind::Userspace && filtered {
        let key = tunnel.replace('.', "/");
        sentence.push_str(&format!(
            "; rp_filter drops what comes from there, too (`sysctl -w \
             net.ipv4.conf.{key}.rp_filter=2` makes it lenient)"
        ));
    }
    Problem { kind: ProblemKind::ReversePath, subject: net.to_string(), sentence }
}

/// Switches that take an interface out of IPsec.
fn without_ipsec(interface: &str) -> Vec<Problem> {
    let key = interface.replace('.', "/");
    [
        ("disable_xfrm", "sends nothing through IPsec, so no packet reaches a client"),
        ("disable_policy", "accepts packets whatever SA they came by"),
    ]
    .into_iter()
    .filter(|(switch, _)| !matches!(read("ipv4", interface, switch).as_str(), "0" | ""))
    .map(|(switch, effect)| Problem {
        kind: ProblemKind::Switch,
        subject: interface.to_owned(),
        sentence: format!(
            "with {switch} set, {interface} {effect}; run `sysctl -w net.ipv4.conf.{key}.{switch}=0`"
        ),
    })
    .collect()
}

/// An address that is a client's: a pool's first host is the gateway's own.
fn representative(network: IpNet) -> IpAddr {
    network.hosts().nth(1).or_else(|| network.hosts().next()).unwrap_or_else(|| network.addr())
}
