//! Whether this machine forwards packets, and switching it on where it is Runnel's to switch.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::ops::RouteSocket;
use super::{Problem, ProblemKind};
use crate::error::PlaneError;

fn conf(family: &str, interface: &str, key: &str) -> String {
    format!("/proc/sys/net/{family}/conf/{interface}/{key}")
}

fn is_on(path: &str) -> bool {
    fs::read_to_string(path).is_ok_and(|text| !matches!(text.trim(), "0" | ""))
}

fn set(path: &str, value: &str) -> Result<(), PlaneError> {
    if fs::read_to_string(path).is_ok_and(|text| text.trim() == value) {
        return Ok(());
    }
    fs::write(path, value).map_err(|error| PlaneError::System {
        what: format!("cannot write {value} to {path}"),
        reason: describe(&error),
        fix: "run as root with /proc/sys writable, or set it beforehand with sysctl".to_owned(),
    })
}

fn describe(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_owned()
}

/// Prepares the tunnel interface before it comes up: it forwards, needs no link-local address
/// and believes no router advertisement.
pub(super) fn enable_on(interface: &str, ipv4: bool, ipv6: bool) -> Result<(), PlaneError> {
    if ipv4 {
        // IPv4 forwarding is decided by the interface a packet came in on.
        set(&conf("ipv4", interface, "forwarding"), "1")?;
    }
    if ipv6 {
        set(&conf("ipv6", interface, "disable_ipv6"), "0")?;
        set(&conf("ipv6", interface, "accept_ra"), "0")?;
        set(&conf("ipv6", interface, "forwarding"), "1")?;
        // Without a link there is nobody to solicit; the kernel would try for each interface.
        let addr_gen_mode = conf("ipv6", interface, "addr_gen_mode");
        if fs::exists(&addr_gen_mode).unwrap_or(false) {
            set(&addr_gen_mode, "1")?;
        }
        // Newer kernels can forward from one interface without the machine-wide switch.
        let force = conf("ipv6", interface, "force_forwarding");
        if fs::exists(&force).unwrap_or(false) {
            set(&force, "1")?;
        }
    }
    Ok(())
}

/// See [`super::forwarding_report`].
pub(super) fn report(
    socket: &mut RouteSocket,
    destinations: &[IpNet],
) -> Result<Vec<Problem>, PlaneError> {
    let mut problems = Vec::new();
    let mut seen = BTreeSet::new();
    for destination in destinations {
        let decision = socket.decide(representative(*destination))?;
        if decision.local {
            continue;
        }
        let Some(index) = decision.interface else {
            problems.push(Problem {
                kind: ProblemKind::NoRoute,
                subject: destination.to_string(),
                sentence: format!(
                    "no route leads from this machine to {destination}, which a role allows; add \
                     one with `ip route add {destination} via ROUTER`"
                ),
            });
            continue;
        };
        let ipv6 = matches!(destination, IpNet::V6(_));
        if !seen.insert((index, ipv6)) {
            continue;
        }
        let name = socket.link_by_index(index)?.map_or_else(|| index.to_string(), |link| link.name);
        if let Some(sentence) = missing(&name, ipv6, destination) {
            problems.push(Problem { kind: ProblemKind::Forwarding, subject: name, sentence });
        }
    }
    Ok(problems)
}

fn missing(interface: &str, ipv6: bool, destination: &IpNet) -> Option<String> {
    if ipv6 {
        let forwards = is_on(&conf("ipv6", "all", "forwarding"))
            || is_on(&conf("ipv6", interface, "force_forwarding"));
        (!forwards).then(|| {
            format!(
                "this machine does not forward IPv6, so replies from {destination} cannot reach \
                 the tunnels; run `sysctl -w net.ipv6.conf.all.forwarding=1`"
            )
        })
    } else {
        (!is_on(&conf("ipv4", interface, "forwarding"))).then(|| {
            // The dotted form of sysctl would split an interface name that has dots itself.
            let key = interface.replace('.', "/");
            format!(
                "interface {interface} does not forward IPv4, so replies from {destination} \
                 cannot reach the tunnels; run `sysctl -w net.ipv4.conf.{key}.forwarding=1`"
            )
        })
    }
}

/// One address that stands for a network: the first host; for the whole Internet one reserved
/// for documentation, which the default route carries.
fn representative(network: IpNet) -> IpAddr {
    match network {
        IpNet::V4(net) if net.prefix_len() == 0 => Ipv4Addr::new(192, 0, 2, 1).into(),
        IpNet::V6(net) if net.prefix_len() == 0 => {
            Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into()
        }
        _ => network.hosts().next().unwrap_or_else(|| network.addr()),
    }
}
