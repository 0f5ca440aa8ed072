//! strongSwan on both ends: proves the lab machinery, and is the yardstick of the benchmark.

use std::time::Duration;

use anyhow::{Result, bail};

use crate::lab::Lab;
use crate::lab::capture::{Capture, ESP_IN_UDP};
use crate::lab::charon::{Charon, Options};
use crate::lab::host::Host;
use crate::lab::http::{self, Server};
use crate::lab::pkitool::{Authority, P256};
use crate::lab::swanctl::{Conf, Connection};
use crate::lab::world::{GATEWAY, POOL, PRIVATE_NET, RUNNERS, STORE, Shape, World};

/// Both ends of the baseline, ready to connect.
pub(crate) struct Baseline {
    /// strongSwan as the gateway.
    pub(crate) gateway: Charon,
    /// strongSwan as the runner.
    pub(crate) runner: Charon,
}

impl Baseline {
    /// Starts strongSwan on both ends with certificates of a common authority.
    ///
    /// # Errors
    /// When either end does not come up.
    pub(crate) fn start(world: &World) -> Result<Self> {
        world.lab.leaks().own(&[POOL])?;
        let authority = Authority::new(&world.lab.path("ca"), "Baseline CA", P256)?;
        let gateway = peer(&world.gateway, &authority, "gw.example.com")?;
        let pool = Conf::new().section("pools", |p| p.section("vips", |v| v.set("addrs", POOL)));
        gateway.load(
            &[Connection {
                pools: vec!["vips".to_owned()],
                local_id: "gw.example.com".to_owned(),
                local_ts: PRIVATE_NET.to_owned(),
                ..Connection::default()
            }],
            pool.text(),
        )?;
        let runner = peer(world.runner(), &authority, "runner.example.com")?;
        runner.load(
            &[Connection {
                remote_addr: GATEWAY.to_owned(),
                vips: vec!["0.0.0.0".to_owned()],
                local_id: "runner.example.com".to_owned(),
                remote_id: "gw.example.com".to_owned(),
                remote_ts: PRIVATE_NET.to_owned(),
                ..Connection::default()
            }],
            "",
        )?;
        Ok(Self { gateway, runner })
    }
}

fn peer(host: &Host, authority: &Authority, name: &str) -> Result<Charon> {
    let charon = Charon::start(host, &Options::default())?;
    let (key, cert) = authority.issue(name, &format!("CN={name}"), name, P256, &[])?;
    charon.install(&authority.cert, "x509ca/ca.pem")?;
    charon.install(&cert, "x509/host.pem")?;
    charon.install(&key, "private/host.pem")?;
    Ok(charon)
}

/// Connects and downloads over every shape of path the other labs use.
pub(super) fn run(lab: &Lab) -> Result<()> {
    let plain = Shape::default();
    over(lab, plain)?;
    for (name, shape) in [
        ("runner-nat", Shape { runner_nat: true, ..plain }),
        ("gateway-nat", Shape { gateway_nat: true, ..plain }),
    ] {
        lab.step(name);
        over(&Lab::new(name, false)?, shape)?;
    }
    Ok(())
}

fn over(lab: &Lab, shape: Shape) -> Result<()> {
    let world = World::new(lab, shape)?;
    let server = Server::start(&world.private, world.store())?;
    let mut capture = Capture::start(&world.internet, "east", "udp")?;
    let peers = Baseline::start(&world)?;
    peers.runner.initiate("net")?;
    lab.step("connected");
    let got = http::download(world.runner(), &server.url(1_000_000), Duration::from_secs(60))?;
    lab.step(&format!("downloaded {} bytes in {:.3} s", got.bytes, got.total));
    peers.runner.terminate("net")?;
    capture.stop()?;
    let esp = capture.count(ESP_IN_UDP)?;
    if esp < 100 {
        bail!("only {esp} ESP packets seen for a download of 1 MB");
    }
    lab.leaks().verdict()?;
    let _in_clear = lab.leaks().expect(RUNNERS, STORE)?;
    if http::download(world.runner(), &server.url(1), Duration::from_secs(1)).is_ok() {
        bail!("the store answers without a tunnel");
    }
    lab.leaks().verdict()
}
