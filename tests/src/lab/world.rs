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

use anyhow::Result;

use super::Lab;
use super::host::{Host, cable};

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
    /// Builds the network.
    ///
    /// # Errors
    /// When the kernel refuses any part of it.
    pub fn new(lab: &Lab, shape: Shape) -> Result<Self> {
        let internet = Host::new(lab, "internet")?;
        internet.forward()?;
        let gateway = Host::new(lab, "gateway")?;
        gateway.forward()?;
        let private = Host::new(lab, "private")?;
        let (mut home_box, mut site_box) = (None, None);

        // Inside.
        cable(&gateway, "lan", &private, "eth0", 1500)?;
        gateway.address("lan", "10.20.0.1/16")?;
        gateway.address("lan", "fd20::1/64")?;
        private.address("eth0", "10.20.0.10/16")?;
        private.address("eth0", "10.20.0.99/16")?;
        private.address("eth0", "fd20::10/64")?;
        private.route("default via 10.20.0.1")?;
        private.route("default via fd20::1")?;

        // The gateway's side of the internet.
        if shape.gateway_nat {
            let site = Host::new(lab, "site")?;
            site.forward()?;
            cable(&site, "wan", &internet, "east", shape.mtu)?;
            cable(&site, "inner", &gateway, "wan", shape.mtu)?;
            site.address("wan", "203.0.113.2/24")?;
            site.address("inner", "192.168.50.1/24")?;
            site.route("default via 203.0.113.1")?;
            gateway.address("wan", "192.168.50.2/24")?;
            gateway.route("default via 192.168.50.1")?;
            site.nft(
                "table ip lab_dnat { chain pre { type nat hook prerouting priority -100; \
                 iifname \"wan\" udp dport { 500, 4500 } dnat to 192.168.50.2; \
                 iifname \"wan\" tcp dport { 8443, 8080 } dnat to 192.168.50.2; }\n}",
            )?;
            site.masquerade("wan")?;
            site_box = Some(site);
        } else {
            cable(&gateway, "wan", &internet, "east", shape.mtu)?;
            gateway.address("wan", "203.0.113.2/24")?;
            gateway.route("default via 203.0.113.1")?;
        }
        internet.address("east", "203.0.113.1/24")?;

        // The runners' side.
        let mut runners = Vec::new();
        if shape.runner_nat {
            let home = Host::new(lab, "home")?;
            home.forward()?;
            cable(&home, "wan", &internet, "west", shape.mtu)?;
            home.address("wan", "198.51.100.10/24")?;
            home.route("default via 198.51.100.1")?;
            home.masquerade("wan")?;
            internet.address("west", "198.51.100.1/24")?;
            for number in 1..=shape.runners {
                let runner = Host::new(lab, &runner_name(number))?;
                let port = format!("port{number}");
                cable(&runner, "eth0", &home, &port, shape.mtu)?;
                home.address(&port, &format!("192.168.{number}.1/24"))?;
                runner.address("eth0", &format!("192.168.{number}.10/24"))?;
                runner.route(&format!("default via 192.168.{number}.1"))?;
                runners.push(runner);
            }
            home_box = Some(home);
        } else {
            for number in 1..=shape.runners {
                let runner = Host::new(lab, &runner_name(number))?;
                let port = format!("west{number}");
                let net = 99 + u32::from(number);
                cable(&runner, "eth0", &internet, &port, shape.mtu)?;
                internet.address(&port, &format!("198.51.{net}.1/24"))?;
                runner.address("eth0", &format!("198.51.{net}.10/24"))?;
                runner.route(&format!("default via 198.51.{net}.1"))?;
                runners.push(runner);
            }
        }
        Ok(Self {
            lab: lab.clone(),
            runners,
            internet,
            gateway,
            private,
            home: home_box,
            _site: site_box,
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

fn runner_name(number: u8) -> String {
    if number == 1 { "runner".to_owned() } else { format!("runner{number}") }
}
