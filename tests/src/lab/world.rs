//! The network most labs live in.
//!
//! ```text
//! runner ── [home NAT] ── internet ── [site NAT] ── gateway ── private
//! runner2 ──┘                                       10.20.0.1   10.20.0.10  artifact store
//!                                                   fd20::1     10.20.0.99  a host outside the list
//! ```
//! Without NAT the runner is 198.51.100.10 and the gateway 203.0.113.2. The gateway's outer
//! address lies outside the network it protects: kernel-libipsec needs that.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Context, Result};

use super::Lab;
use super::host::Host;
use super::leaks::Side;

/// The address clients use for the gateway, in every shape.
pub const GATEWAY: &str = "203.0.113.2";
/// The artifact store's address.
pub const STORE: &str = "10.20.0.10";
/// The artifact store's IPv6 address.
pub const STORE6: &str = "fd20::10";
/// A host of the private network that no role may reach.
pub const FORBIDDEN: &str = "10.20.0.99";
/// Port of the artifact store.
pub const STORE_PORT: u16 = 8081;
/// The private network.
pub const PRIVATE_NET: &str = "10.20.0.0/16";
/// The private network, IPv6.
pub const PRIVATE_NET6: &str = "fd20::/64";
/// Addresses handed to runners.
pub const POOL: &str = "10.77.0.0/16";
/// IPv6 addresses handed to runners.
pub const POOL6: &str = "fd77::/64";

/// The gateway's own address of the pool.
pub const POOL_GATEWAY: &str = "10.77.0.1";
/// The same, IPv6.
pub const POOL_GATEWAY6: &str = "fd77::1";
/// Outer addresses of runners, as the internet sees them.
pub const RUNNERS: &str = "198.51.0.0/16";

/// What differs from the plain network.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// MTU of the path between runner and gateway.
    pub mtu: u32,
    /// Runners sit behind a NAT.
    pub runner_nat: bool,
    /// The gateway sits behind a NAT that forwards its ports.
    pub gateway_nat: bool,
    /// One or two runners.
    pub runners: u8,
}

impl Default for Shape {
    fn default() -> Self {
        Self { mtu: 1500, runner_nat: false, gateway_nat: false, runners: 1 }
    }
}

/// The hosts of one lab.
pub struct World {
    /// The lab.
    pub lab: Lab,
    /// The CI runners; at least one.
    pub runners: Vec<Host>,
    /// The router between everybody.
    pub internet: Host,
    /// The host that runs the gateway; `wan` outside, `lan` inside.
    pub gateway: Host,
    /// The private network's only machine, with all its addresses.
    pub private: Host,
    /// The NAT box of the runners; `wan` outside.
    pub home: Option<Host>,
    /// The gateway's NAT box, kept alive.
    _site: Option<Host>,
}

impl World {
    /// Builds the network. From then on the leak check watches it.
    ///
    /// # Errors
    /// When the kernel refuses any part of it.
    pub fn new(lab: &Lab, shape: Shape) -> Result<Self> {
        let mut names: Vec<String> = (1..=shape.runners).map(runner_name).collect();
        let fixed = [("private", true), ("site", shape.gateway_nat), ("home", shape.runner_nat)];
        let fixed = fixed.into_iter().filter_map(|(name, wanted)| wanted.then_some(name));
        names.extend(fixed.chain(["internet", "gateway"]).map(str::to_owned));
        let mut drafts = Host::all(lab, &names)?.into_iter().map(Draft::new);
        let mut runners: Vec<Draft> = drafts.by_ref().take(shape.runners.into()).collect();
        let mut next = || drafts.next().context("a host that was made");
        let mut private = next()?;
        let mut site = if shape.gateway_nat { Some(next()?) } else { None };
        let mut home = if shape.runner_nat { Some(next()?) } else { None };
        let (mut internet, mut gateway) = (next()?, next()?);

        // Inside.
        gateway.cable("lan", &mut private, "eth0", 1500);
        gateway.address("lan", "10.20.0.1/16");
        gateway.address("lan", "fd20::1/64");
        private.address("eth0", "10.20.0.10/16");
        private.address("eth0", "10.20.0.99/16");
        private.address("eth0", "fd20::10/64");
        private.route("default via 10.20.0.1");
        private.route("default via fd20::1");

        // The gateway's side of the internet.
        if let Some(site) = &mut site {
            internet.cable("east", site, "wan", shape.mtu);
            gateway.cable("wan", site, "inner", shape.mtu);
            site.address("wan", "203.0.113.2/24");
            site.address("inner", "192.168.50.1/24");
            site.route("default via 203.0.113.1");
            gateway.address("wan", "192.168.50.2/24");
            gateway.route("default via 192.168.50.1");
        } else {
            internet.cable("east", &mut gateway, "wan", shape.mtu);
            gateway.address("wan", "203.0.113.2/24");
            gateway.route("default via 203.0.113.1");
        }
        internet.address("east", "203.0.113.1/24");

        // The runners' side.
        if let Some(home) = &mut home {
            internet.cable("west", home, "wan", shape.mtu);
            home.address("wan", "198.51.100.10/24");
            home.route("default via 198.51.100.1");
            internet.address("west", "198.51.100.1/24");
        }
        for (number, runner) in (1_u32..).zip(&mut runners) {
            if let Some(home) = &mut home {
                let port = format!("port{number}");
                home.cable(&port, runner, "eth0", shape.mtu);
                home.address(&port, &format!("192.168.{number}.1/24"));
                runner.address("eth0", &format!("192.168.{number}.10/24"));
                runner.route(&format!("default via 192.168.{number}.1"));
            } else {
                let (port, net) = (format!("west{number}"), 99 + number);
                internet.cable(&port, runner, "eth0", shape.mtu);
                internet.address(&port, &format!("198.51.{net}.1/24"));
                runner.address("eth0", &format!("198.51.{net}.10/24"));
                runner.route(&format!("default via 198.51.{net}.1"));
            }
        }

        let drafts = || {
            let ends = runners.iter().chain([&private]);
            ends.chain(&site).chain(&home).chain([&internet, &gateway])
        };
        for draft in drafts().filter(|draft| !draft.cables.is_empty()) {
            draft.host.batch(&draft.cables)?;
        }
        for draft in drafts() {
            draft.host.batch(&draft.lines)?;
        }
        for draft in site.iter().chain(&home).chain([&internet, &gateway]) {
            draft.host.forward()?;
        }
        if let Some(site) = &site {
            site.host.nft(
                "table ip lab_dnat { chain pre { type nat hook prerouting priority -100; \
                 iifname \"wan\" udp dport { 500, 4500 } dnat to 192.168.50.2; \
                 iifname \"wan\" tcp dport { 8443, 8080 } dnat to 192.168.50.2; }\n}",
            )?;
            site.host.masquerade("wan")?;
        }
        if let Some(home) = &home {
            home.host.masquerade("wan")?;
        }

        let leaks = lab.leaks();
        leaks.protect(&[POOL, POOL6, PRIVATE_NET, PRIVATE_NET6])?;
        leaks.home(&[PRIVATE_NET, PRIVATE_NET6, "127.0.0.0/8", "fe80::/10", "::/128"])?;
        leaks.home(&[POOL_GATEWAY, POOL_GATEWAY6])?;
        leaks.watch(&internet.host, Side::Outside)?;
        leaks.watch(&private.host, Side::Inside)?;
        Ok(Self {
            lab: lab.clone(),
            runners: runners.into_iter().map(|draft| draft.host).collect(),
            internet: internet.host,
            gateway: gateway.host,
            private: private.host,
            home: home.map(|draft| draft.host),
            _site: site.map(|draft| draft.host),
        })
    }

    /// The first runner.
    ///
    /// # Panics
    /// Never: a world has at least one runner.
    #[must_use]
    pub fn runner(&self) -> &Host {
        &self.runners[0]
    }

    /// The artifact store's address and port.
    #[must_use]
    pub fn store(&self) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 20, 0, 10)), STORE_PORT)
    }

    /// The host no role may reach, same port as the store.
    #[must_use]
    pub fn forbidden(&self) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 20, 0, 99)), STORE_PORT)
    }
}

/// A host and what `ip` is to do on it: first the cables that begin there, then everything else.
struct Draft {
    host: Host,
    cables: Vec<String>,
    lines: Vec<String>,
}

impl Draft {
    fn new(host: Host) -> Self {
        Self { host, cables: Vec::new(), lines: vec!["link set lo up".to_owned()] }
    }

    /// As [`super::host::cable`].
    fn cable(&mut self, name: &str, peer: &mut Self, peer_name: &str, mtu: u32) {
        self.cables.push(format!(
            "link add name {name} mtu {mtu} type veth peer name {peer_name} mtu {mtu} netns {}",
            peer.host.namespace()
        ));
        self.lines.push(format!("link set {name} up"));
        peer.lines.push(format!("link set {peer_name} up"));
    }

    /// As [`Host::address`], on an interface that is up.
    fn address(&mut self, interface: &str, address: &str) {
        let nodad = if address.contains(':') { " nodad" } else { "" };
        self.lines.push(format!("addr add {address} dev {interface}{nodad}"));
    }

    /// As [`Host::route`].
    fn route(&mut self, route: &str) {
        self.lines.push(format!("route add {route}"));
    }
}

fn runner_name(number: u8) -> String {
    if number == 1 { "runner".to_owned() } else { format!("runner{number}") }
}
