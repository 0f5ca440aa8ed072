//! Paths between runner and gateway: NAT on either side, small MTU, fragments, both families.

use std::net::UdpSocket;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

use super::scene::{Scene, ping};
use crate::lab::capture::{Capture, ESP_IN_UDP, IKE};
use crate::lab::charon::{Charon, Options};
use crate::lab::gateway::{Gateway, ID, Settings};
use crate::lab::http;
use crate::lab::pkitool::{Authority, P256, RSA4096};
use crate::lab::world::{
    FORBIDDEN, GATEWAY, POOL, PRIVATE_NET, PRIVATE_NET6, RUNNERS, STORE, STORE_PORT, STORE6, Shape,
    World,
};
use crate::lab::{Lab, wait};

/// The runner behind a NAT.
pub(super) fn nat_runner(lab: &Lab) -> Result<()> {
    simple(lab, Shape { runner_nat: true, ..Shape::default() })
}

/// The gateway behind a NAT that forwards its ports.
pub(super) fn nat_gateway(lab: &Lab) -> Result<()> {
    simple(lab, Shape { gateway_nat: true, ..Shape::default() })
}

fn simple(lab: &Lab, shape: Shape) -> Result<()> {
    let behind_nat = shape.runner_nat;
    let scene = Scene::new(lab, shape, &Settings::default())?;
    let mut capture = Capture::start(&scene.world.internet, "east", "udp")?;
    let (charon, _) = scene.connected(P256)?;
    scene.download(scene.world.runner(), 2_000_000)?;
    charon.terminate("net")?;
    scene.no_sas(Duration::from_secs(5))?;
    scene.no_download(scene.world.runner())?;
    for action in ["ike.sa.up", "ike.sa.down"] {
        let record = wait::until(lab, action, Duration::from_secs(30), || {
            let records = scene.gateway.json(&["audit", "tail", "--action", action])?;
            Ok(records.get(0).cloned())
        })?;
        let nat = record.get("client.nat.ip").filter(|nat| **nat == record["source.ip"]);
        // A client whose ESP only goes in UDP claims a NAT where there is none (RFC 7296 2.23).
        if behind_nat && (nat.is_none() || record.get("client.nat.port").is_none()) {
            bail!("the trail should say that the client is behind a NAT: {record}");
        }
    }
    capture.stop()?;
    let esp = capture.count(ESP_IN_UDP)?;
    // Segmentation offload may carry many packets as one.
    if esp < 100 {
        bail!("only {esp} ESP packets seen on the way");
    }
    scene.finish()
}

/// Both of them.
pub(super) fn double_nat(lab: &Lab) -> Result<()> {
    simple(lab, Shape { runner_nat: true, gateway_nat: true, ..Shape::default() })
}

/// Two runners behind one NAT: own addresses, own traffic, none between them.
pub(super) fn nat_two_runners(lab: &Lab) -> Result<()> {
    let shape = Shape { runner_nat: true, runners: 2, ..Shape::default() };
    let scene = Scene::new(lab, shape, &Settings::default())?;
    let mut charons = Vec::new();
    let mut addresses = Vec::new();
    for host in &scene.world.runners {
        let credentials = scene.enrol(host, "enrolled", P256)?;
        let charon = scene.runner(host, &credentials, |_| {})?;
        charon.initiate("net")?;
        addresses.extend(charon.virtual_addresses()?);
        charons.push(charon);
    }
    lab.step(&format!("virtual addresses {addresses:?}"));
    let [one, two] = addresses.as_slice() else { bail!("expected two addresses: {addresses:?}") };
    if one == two {
        bail!("both runners got {one}");
    }
    thread::scope(|scope| {
        let downloads: Vec<_> = scene
            .world
            .runners
            .iter()
            .map(|host| scope.spawn(|| scene.download(host, 5_000_000)))
            .collect();
        for download in downloads {
            download.join().map_err(|_| anyhow!("a download panicked"))??;
        }
        anyhow::Ok(())
    })?;
    // The client routes nothing but the private network into its tunnel; route the other runner's
    // address there too, so that only the gateway can refuse.
    // No selector of theirs holds the other's address.
    lab.leaks().expect_from_now(RUNNERS, POOL)?;
    let (_, received) = ping(scene.world.runner(), two, 3, 0.2)?;
    if received != 0 {
        bail!("one runner reaches the other through the gateway");
    }
    for charon in &charons {
        scene.agree(charon)?;
        charon.terminate("net")?;
    }
    scene.no_sas(Duration::from_secs(5))?;
    scene.finish()
}

/// A 50 MB download over an underlay of MTU 1400, and too-big answered towards the tunnel.
pub(super) fn mtu(lab: &Lab) -> Result<()> {
    let scene = Scene::new(lab, Shape { mtu: 1400, ..Shape::default() }, &Settings::default())?;
    let mut capture = Capture::start(&scene.world.internet, "east", "udp port 4500")?;
    let (charon, _) = scene.connected(P256)?;
    let got = scene.download(scene.world.runner(), 50_000_000)?;
    lab.step(&format!("50 MB in {:.2} s", got.total));
    too_big(&scene, &charon)?;
    capture.stop()?;
    let fragments = capture.count("ip[6:2] & 0x3fff != 0 and src host 203.0.113.2")?;
    if fragments > 0 {
        bail!("the gateway sent {fragments} outer fragments; the tunnel MTU is too large");
    }
    charon.terminate("net")?;
    scene.finish()
}

/// A datagram towards the runner that does not fit is answered with the size that would; the
/// sender then fragments, and the datagram arrives.
fn too_big(scene: &Scene, charon: &Charon) -> Result<()> {
    /// Fits the private network, not the tunnel.
    const SIZE: usize = 1440;
    let (private, runner) = (&scene.world.private, scene.world.runner());
    let server = private.enter(|| UdpSocket::bind((STORE, 7777)))??;
    server.set_read_timeout(Some(Duration::from_secs(30)))?;
    let client = runner.enter(|| UdpSocket::bind(("0.0.0.0", 0)))??;
    client.set_read_timeout(Some(Duration::from_secs(2)))?;
    let address = charon.virtual_addresses()?.first().cloned().context("no virtual address")?;
    let mut buffer = [0; 2048];
    for attempt in 1..=15 {
        client.send_to(b"hello", (STORE, 7777))?;
        let (_, from) = server.recv_from(&mut buffer).context("the store hears nothing")?;
        // Linux sets "don't fragment" until it has learnt the path.
        let _ = server.send_to(&[7; SIZE], from);
        if client.recv(&mut buffer).is_ok_and(|length| length == SIZE) {
            let learnt = private.ip(&format!("route get {address}"))?;
            scene.lab.step(&format!("arrived at attempt {attempt}; learnt: {}", learnt.trim()));
            if !learnt.contains(" mtu ") {
                bail!("the datagram arrived, but the sender learnt no size: {learnt}");
            }
            return Ok(());
        }
    }
    bail!("a datagram too big for the tunnel never arrived, whatever its sender learnt");
}

/// Virtual addresses of both families, with traffic in both.
pub(super) fn ipv6(lab: &Lab) -> Result<()> {
    let scene = Scene::new(lab, Shape::default(), &Settings::default())?;
    let store6 = format!("[{STORE6}]:{STORE_PORT}").parse()?;
    let server6 = http::Server::start(&scene.world.private, store6)?;
    let host = scene.world.runner();
    let credentials = scene.enrol(host, "enrolled", P256)?;
    let charon = scene.runner(host, &credentials, |c| {
        c.vips = vec!["0.0.0.0".to_owned(), "::".to_owned()];
        c.remote_ts = format!("{PRIVATE_NET},{PRIVATE_NET6}");
    })?;
    charon.initiate("net")?;
    scene.agree(&charon)?;
    let addresses = charon.virtual_addresses()?;
    lab.step(&format!("virtual addresses {addresses:?}"));
    if !addresses.iter().any(|a| a.contains(':')) || !addresses.iter().any(|a| a.contains('.')) {
        bail!("expected one address of each family: {addresses:?}");
    }
    scene.download(host, 2_000_000)?;
    let got = http::download(host, &server6.url(2_000_000), Duration::from_secs(60))
        .with_context(|| format!("over IPv6\n{}", lab.tails()))?;
    lab.step(&format!("2 MB over IPv6 in {:.3} s", got.total));
    charon.terminate("net")?;
    scene.no_sas(Duration::from_secs(5))?;
    scene.finish()
}

/// IKE fragments in both directions with an RSA-4096 key; then a foreign RSA-4096 chain, whose
/// many fragments are reassembled only to be refused for the right reason.
pub(super) fn fragmentation(lab: &Lab) -> Result<()> {
    /// Bytes of an IP packet, on both ends.
    const SIZE: u32 = 576;
    let settings = Settings { ike: format!("fragment_size = {SIZE}"), ..Settings::default() };
    let scene = Scene::new(lab, Shape::default(), &settings)?;
    let host = scene.world.runner().clone();
    let mut capture = Capture::start(&scene.world.internet, "east", "udp")?;
    let options = Options { fragment_size: SIZE, ..Options::default() };
    let credentials = scene.enrol(&host, "enrolled", RSA4096)?;
    let mut charon = Charon::start(&host, &options)?;
    scene.load(&charon, &credentials, |_| {})?;
    charon.initiate("net")?;
    scene.agree(&charon)?;
    scene.download(&host, 1_000_000)?;
    charon.terminate("net")?;
    scene.no_sas(Duration::from_secs(5))?;
    charon.stop()?;

    lab.step("a foreign RSA-4096 chain");
    let root = Authority::new(&lab.path("foreign"), "Foreign Root", RSA4096)?;
    let issuing = root.intermediate(&lab.path("foreign-issuing"), "Foreign Issuing", RSA4096)?;
    let (key, cert) = issuing.issue("runner", "CN=runner", "runner.example.com", RSA4096, &[])?;
    let charon = Charon::start(&host, &options)?;
    charon.install(&key, "private/host.pem")?;
    charon.install(&cert, "x509/host.pem")?;
    charon.install(&root.cert, "x509ca/foreign.pem")?;
    charon.install(&issuing.cert, "x509ca/foreign-issuing.pem")?;
    for (number, file) in credentials.chain.iter().enumerate() {
        charon.install(file, &format!("x509ca/ca-{number}.pem"))?;
    }
    let mut connection = scene.connection(&credentials);
    connection.local_id = "runner.example.com".to_owned();
    connection.remote_id = ID.to_owned();
    charon.load(&[connection], "")?;
    let said = charon.try_initiate("net")?;
    if said.ok() || !said.all().contains("AUTH_FAILED") {
        bail!("a foreign chain must be refused with AUTHENTICATION_FAILED: {}", said.all());
    }

    capture.stop()?;
    for (what, filter) in [
        ("from the runner", format!("({IKE}) and dst host {GATEWAY} and udp port 4500")),
        ("from the gateway", format!("({IKE}) and src host {GATEWAY} and udp port 4500")),
    ] {
        let sizes: Vec<usize> =
            capture.udp_payloads(&filter)?.iter().map(|p| p.len() + 28).collect();
        lab.step(&format!("IP packet sizes {what}: {sizes:?}"));
        // SKF payloads: next payload 53 at byte 16 of the IKE header, after the non-ESP marker.
        let fragments =
            capture.udp_payloads(&filter)?.iter().filter(|p| p.get(20) == Some(&53)).count();
        if fragments < 3 {
            bail!("only {fragments} IKE fragments {what}");
        }
        let limit = usize::try_from(SIZE)? + 32;
        if sizes.iter().any(|size| *size > limit) {
            bail!("a fragment {what} is larger than {SIZE} bytes: {sizes:?}");
        }
    }
    scene.finish()
}

/// The role's allow list: an address, a port and a protocol outside it are dropped, and the
/// gateway's own ports are closed towards the tunnel.
pub(super) fn allow_list(lab: &Lab) -> Result<()> {
    let settings = Settings {
        allow: vec![format!("{STORE}:{STORE_PORT}/tcp")],
        pool: "dns = [\"10.20.0.53\"]".to_owned(),
        ..Settings::default()
    };
    let scene = Scene::new(lab, Shape::default(), &settings)?;
    scene.world.private.address("eth0", "10.20.0.53/16")?;
    let dns = http::Server::start(&scene.world.private, "10.20.0.53:53".parse()?)?;
    let dns_other = http::Server::start(&scene.world.private, "10.20.0.53:9999".parse()?)?;
    let other_port = http::Server::start(&scene.world.private, format!("{STORE}:9999").parse()?)?;
    let gateway_port = http::Server::start(&scene.world.gateway, "10.20.0.1:9998".parse()?)?;
    let (charon, _) = scene.connected(P256)?;
    let host = scene.world.runner();
    scene.download(host, 10_000)?;
    lab.step("the pool's DNS server is implied, its port 53 only");
    http::download(host, &dns.url(100), Duration::from_secs(60))?;
    // What no selector holds the client asks in clear.
    lab.leaks().expect_from_now(RUNNERS, PRIVATE_NET)?;
    for (what, server) in [
        ("another port of the DNS server", &dns_other),
        ("a forbidden host", &scene.forbidden),
        ("a forbidden port", &other_port),
        ("a port of the gateway itself", &gateway_port),
    ] {
        lab.step(what);
        let got = http::download(host, &server.url(1), Duration::from_millis(1500));
        if got.is_ok() || server.requests() > 0 {
            bail!("{what} answers");
        }
    }
    for address in [STORE, FORBIDDEN] {
        if ping(host, address, 2, 0.2)?.1 != 0 {
            bail!("ping to {address} passes, though only one TCP port is allowed");
        }
    }
    charon.terminate("net")?;
    scene.finish()
}

/// An allow list too long for the wire: selectors become covering networks, so the client itself
/// sends what the role forbids, and only the gateway's filter can refuse it.
pub(super) fn allow_filter(lab: &Lab) -> Result<()> {
    let mut allow = vec![format!("{STORE}:{STORE_PORT}/tcp")];
    // Every other address around the forbidden one: more than 32 entries, and it lies between.
    allow.extend((50..=150).filter(|n| n % 2 == 0).map(|n| format!("10.20.0.{n}:22/tcp")));
    let settings = Settings { allow, ..Settings::default() };
    let scene = Scene::new(lab, Shape::default(), &settings)?;
    let other_port = http::Server::start(&scene.world.private, format!("{STORE}:9999").parse()?)?;
    let gateway_port = http::Server::start(&scene.world.gateway, "10.20.0.1:9998".parse()?)?;
    let (charon, _) = scene.connected(P256)?;
    let host = scene.world.runner();
    scene.download(host, 10_000)?;
    let mut inside =
        Capture::start(&scene.world.private, "eth0", "tcp port 8081 or tcp port 9999")?;
    let carried = || -> Result<u64> {
        let sas = scene.gateway.sas()?;
        sas[0]["children"][0]["packets_in"].as_u64().context("a child without counters")
    };
    lab.leaks().expect_from_now(RUNNERS, "10.20.0.1")?;
    for (what, server) in [
        ("a forbidden host", &scene.forbidden),
        ("a forbidden port", &other_port),
        ("a port of the gateway itself", &gateway_port),
    ] {
        let before = carried()?;
        let got = http::download(host, &server.url(1), Duration::from_millis(1500));
        if got.is_ok() || server.requests() > 0 {
            bail!("{what} answers");
        }
        lab.step(&format!("{what}: {} packets came and were dropped", carried()? - before));
        if what == "a forbidden host" && carried()? == before {
            bail!("the client never sent anything to {what}: this lab proves nothing");
        }
    }
    inside.stop()?;
    let leaked = inside.count(&format!("dst host {FORBIDDEN} or dst port 9999"))?;
    if leaked > 0 {
        bail!("{leaked} forbidden packets reached the private network");
    }
    charon.terminate("net")?;
    scene.finish()
}

/// A private network without a route back to the pool, behind a gateway that forwards on its
/// inner interface only: `masquerade` and Runnel's own care for its interface make it work.
pub(super) fn masquerade(lab: &Lab) -> Result<()> {
    let world = World::new(lab, Shape::default())?;
    world.private.ip("route del default")?;
    // The operator forwards where replies come in; the tunnel's side is Runnel's business.
    world.gateway.sysctl("net/ipv4/ip_forward", "0")?;
    world.gateway.sysctl("net/ipv4/conf/lan/forwarding", "1")?;
    let settings = Settings { pool: "masquerade = true".to_owned(), ..Settings::default() };
    let gateway = Gateway::start(&world.gateway, &settings)?;
    let scene = Scene::around(world, gateway)?;
    let mut capture = Capture::start(&scene.world.private, "eth0", "tcp")?;
    let (charon, _) = scene.connected(P256)?;
    scene.download(scene.world.runner(), 1_000_000)?;
    capture.stop()?;
    if capture.count("src net 10.77.0.0/16")? > 0 {
        bail!("virtual addresses reach the private network although they are masqueraded");
    }
    charon.terminate("net")?;
    scene.finish()
}
