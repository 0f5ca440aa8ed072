//! Gateway to gateway.
//!
//! ```text
//! private ── gateway ── internet ── runner (the other gateway) ── branch
//! 10.20.0.10                                                      10.30.0.10
//! ```

use std::fs;
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::scene::{Pinged, Pings, Scene, agreed, ping};
use crate::lab::capture::Capture;
use crate::lab::charon::{Charon, Options};
use crate::lab::gateway::{Gateway, ID, Settings};
use crate::lab::host::{Host, cable};
use crate::lab::http::{self, Server};
use crate::lab::pkitool::{Authority, KeyType, P256, RSA4096};
use crate::lab::swanctl::Connection;
use crate::lab::world::{FORBIDDEN, GATEWAY, PRIVATE_NET, STORE, Shape, World};
use crate::lab::{Lab, wait};

/// The other gateway's outer address.
pub(super) const OTHER: &str = "198.51.100.10";
/// Its identity.
pub(super) const OTHER_ID: &str = "branch.example.com";
/// The network behind it.
pub(super) const BRANCH_NET: &str = "10.30.0.0/16";
/// The machine in it.
pub(super) const BRANCH: &str = "10.30.0.10";
/// Its address that is in no allow list.
const BRANCH_FORBIDDEN: &str = "10.30.0.99";

/// Enough for a handshake and its retries.
pub(super) const SOON: Duration = Duration::from_secs(45);
/// Enough for a lost peer to be noticed.
const LATER: Duration = Duration::from_secs(150);

/// The network behind the other gateway, with a server in it.
pub(super) struct Branch {
    pub(super) host: Host,
    server: Server,
}

pub(super) fn branch(world: &World) -> Result<Branch> {
    let (runner, host) = (world.runner(), Host::new(&world.lab, "branch")?);
    runner.forward()?;
    world.lab.leaks().protect(&[BRANCH_NET])?;
    world.lab.leaks().own(&[BRANCH_NET])?;
    cable(runner, "lan", &host, "eth0", 1500)?;
    runner.address("lan", "10.30.0.1/16")?;
    host.address("eth0", "10.30.0.10/16")?;
    host.address("eth0", "10.30.0.99/16")?;
    host.route("default via 10.30.0.1")?;
    let server = Server::start(&host, "10.30.0.10:8081".parse()?)?;
    Ok(Branch { host, server })
}

/// A `[[site]]` as the first gateway has it.
pub(super) fn site(ca: &Path, more: &str) -> String {
    format!(
        "[[site]]\nname = \"branch\"\nid = \"{OTHER_ID}\"\nca = {ca:?}\n\
         local_networks = [\"{PRIVATE_NET}\"]\nremote_networks = [\"{BRANCH_NET}\"]\n\
         allow = [\"{STORE}/icmp\", \"{STORE}:8081/tcp\"]\n{more}\n"
    )
}

pub(super) fn state(gateway: &Gateway, site: &str) -> Result<Value> {
    let sites = gateway.json(&["site", "list"])?;
    let list = sites.as_array().context("the site list is no list")?;
    let found = list.iter().find(|entry| entry["name"] == site);
    Ok(found.with_context(|| format!("no site {site} in {sites}"))?.clone())
}

pub(super) fn connected(
    lab: &Lab,
    gateway: &Gateway,
    site: &str,
    limit: Duration,
) -> Result<Value> {
    wait::holds(lab, &format!("site {site} to be connected"), limit, || {
        Ok(state(gateway, site)?["state"] == "connected")
    })?;
    state(gateway, site)
}

/// Both networks reach each other, as far as they may.
fn traffic(world: &World, branch: &Branch, store: &Server) -> Result<()> {
    let limit = Duration::from_secs(60);
    for (from, to) in [(&world.private, BRANCH), (&branch.host, STORE)] {
        let (sent, received) = ping(from, to, 5, 0.1)?;
        if sent != received {
            bail!("{received} of {sent} pings from {} to {to}\n{}", from.name(), world.lab.tails());
        }
    }
    for (from, url) in
        [(&world.private, branch.server.url(5_000_000)), (&branch.host, store.url(5_000_000))]
    {
        let got = http::download(from, &url, limit).with_context(|| world.lab.tails())?;
        if got.bytes != 5_000_000 {
            bail!("{} bytes from {url}", got.bytes);
        }
    }
    Ok(())
}

/// Nothing passes between the networks.
fn no_traffic(world: &World, branch: &Branch) -> Result<()> {
    for (from, to) in [(&world.private, BRANCH), (&branch.host, STORE)] {
        let (_, received) = ping(from, to, 2, 0.2)?;
        if received != 0 {
            bail!("{} still reaches {to}", from.name());
        }
    }
    Ok(())
}

pub(super) fn sound(gateway: &mut Gateway, lab: &Lab) -> Result<()> {
    if let Some(code) = gateway.process()?.ended()? {
        bail!("runnel ended with code {code}\n{}", lab.tails());
    }
    let status = gateway.json(&["status"])?;
    if status["sas_without_lease"] != 0 {
        bail!("there are SAs without a live lease: {status}");
    }
    if let Some(line) = gateway.log().lines().find(|line| line.contains("panicked")) {
        bail!("runnel panicked: {line}");
    }
    match gateway.stop()? {
        0 => Ok(()),
        code => bail!("runnel stopped with exit code {code}\n{}", lab.tails()),
    }
}

/// Two Runnels: traffic in both directions, a restart of each, and a site that is removed.
pub(super) fn runnel(lab: &Lab) -> Result<()> {
    let world = World::new(lab, Shape::default())?;
    let branch = branch(&world)?;
    let store = Server::start(&world.private, world.store())?;
    let forbidden = Server::start(&world.private, world.forbidden())?;
    let ike = "dpd = \"1s\"".to_owned();
    let settings = Settings { ike: ike.clone(), ..Settings::default() };
    let other = Settings {
        id: OTHER_ID.to_owned(),
        ike,
        addresses: vec!["10.88.0.0/16".to_owned()],
        allow: vec![BRANCH.to_owned()],
        ..Settings::default()
    };
    let mut here = Gateway::start(&world.gateway, &settings)?;
    let mut there = Gateway::start(world.runner(), &other)?;
    let (root_here, root_there) = (lab.path("here.pem"), lab.path("there.pem"));
    fs::write(&root_here, here.told(&["ca", "root"])?)?;
    fs::write(&root_there, there.told(&["ca", "root"])?)?;

    lab.step("each learns of the other by a reload");
    here.reload(&Settings { more: site(&root_there, ""), ..settings.clone() })?;
    let theirs = format!(
        "[[site]]\nname = \"office\"\nremote = \"{GATEWAY}\"\nid = \"{ID}\"\nca = {root_here:?}\n\
         local_networks = [\"{BRANCH_NET}\"]\nremote_networks = [\"{PRIVATE_NET}\"]\n\
         allow = [\"{BRANCH}/icmp\", \"{BRANCH}:8081/tcp\"]\n"
    );
    there.reload(&Settings { more: theirs.clone(), ..other.clone() })?;
    let seen = connected(lab, &there, "office", SOON)?;
    let lease = seen["lease"].as_str().context("a connected site has no lease")?.to_owned();
    if !lease.starts_with("s-") {
        bail!("the site's lease is {lease}");
    }
    connected(lab, &here, "branch", SOON)?;
    if here.json(&["status"])?["sites"]["connected"] != 1 {
        bail!("`status` does not count the site");
    }
    traffic(&world, &branch, &store)?;

    lab.step("what neither side allows does not pass");
    let patience = Duration::from_millis(1500);
    if http::download(&branch.host, &forbidden.url(1), patience).is_ok()
        || ping(&branch.host, FORBIDDEN, 2, 0.2)?.1 != 0
        || ping(&world.private, BRANCH_FORBIDDEN, 2, 0.2)?.1 != 0
    {
        bail!("a host outside the allow list answers");
    }
    let sas = here.sas()?;
    let child = &sas.first().context("no SA")?["children"][0];
    if child["ts_local"] != "10.20.0.0-10.20.255.255"
        || child["ts_remote"] != "10.30.0.0-10.30.255.255"
    {
        bail!("other selectors: {child}");
    }

    lab.step("the initiator is killed and comes back");
    there.kill()?;
    no_traffic(&world, &branch)?;
    there.up(&[])?;
    connected(lab, &there, "office", SOON)?;
    traffic(&world, &branch, &store)?;
    wait::holds(lab, "the former SA to be replaced", SOON, || Ok(here.sas()?.len() == 1))?;

    lab.step("the responder is killed and comes back");
    here.kill()?;
    here.up(&[])?;
    wait::holds(lab, "a new SA at the responder", LATER, || Ok(!here.sas()?.is_empty()))?;
    connected(lab, &there, "office", SOON)?;
    traffic(&world, &branch, &store)?;

    lab.step("a revoked lease keeps the site away until the operator says otherwise");
    let lease = state(&there, "office")?["lease"].as_str().context("no lease")?.to_owned();
    there.told(&["lease", "revoke", &lease])?;
    no_traffic(&world, &branch)?;
    wait::holds(lab, "the refusal", SOON, || {
        Ok(there.refusals()?.iter().any(|refusal| {
            refusal["code"] == "lease_revoked"
                || refusal["what"].as_str().is_some_and(|what| what.contains(&lease))
        }))
    })?;
    there.told(&["site", "connect", "office"])?;
    connected(lab, &there, "office", SOON)?;
    traffic(&world, &branch, &store)?;

    lab.step("a site that is removed is gone at once, on both sides");
    there.reload(&other)?;
    wait::holds(lab, "the SA to be gone", SOON, || {
        Ok(here.sas()?.is_empty() && there.sas()?.is_empty())
    })?;
    // Nobody told that side any more what is to be protected; the other still knows.
    lab.leaks().expect_from_now(BRANCH_NET, PRIVATE_NET)?;
    no_traffic(&world, &branch)?;
    let routes = world.runner().ip("route show 10.20.0.0/16")?;
    if !routes.trim().is_empty() {
        bail!("a route of the removed site is left: {routes}");
    }
    sound(&mut there, lab)?;
    sound(&mut here, lab)
}

/// Two Runnels that share a key instead of certificates.
pub(super) fn shared_key(lab: &Lab) -> Result<()> {
    let world = World::new(lab, Shape::default())?;
    let branch = branch(&world)?;
    let store = Server::start(&world.private, world.store())?;
    let key = |name: &str, text: &str| -> Result<PathBuf> {
        let path = lab.path(name);
        fs::write(&path, text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        Ok(path)
    };
    let right = key("right.psk", "correct horse battery staple, and more\n")?;
    let wrong = key("wrong.psk", "something else that is long enough too\n")?;
    let section = |name: &str, id: &str, psk: &Path, sides: [&str; 2], more: &str| {
        format!(
            "[[site]]\nname = \"{name}\"\nid = \"{id}\"\npsk_file = {psk:?}\n\
             local_networks = [\"{}\"]\nremote_networks = [\"{}\"]\n{more}\n",
            sides[0], sides[1]
        )
    };
    let allow = format!("allow = [\"{STORE}/icmp\", \"{STORE}:8081/tcp\"]");
    let here = section("branch", OTHER_ID, &right, [PRIVATE_NET, BRANCH_NET], &allow);
    let settings = Settings { more: here, ..Settings::default() };
    let allow =
        format!("remote = \"{GATEWAY}\"\nallow = [\"{BRANCH}/icmp\", \"{BRANCH}:8081/tcp\"]");
    let there = |psk: &Path| Settings {
        id: OTHER_ID.to_owned(),
        addresses: vec!["10.88.0.0/16".to_owned()],
        allow: vec![BRANCH.to_owned()],
        more: section("office", ID, psk, [BRANCH_NET, PRIVATE_NET], &allow),
        ..Settings::default()
    };
    let mut gateway = Gateway::start(&world.gateway, &settings)?;
    let mut other = Gateway::start(world.runner(), &there(&wrong))?;
    wait::holds(lab, "the wrong key to be refused", SOON, || {
        Ok(!gateway.refusals()?.is_empty() && gateway.sas()?.is_empty())
    })?;
    no_traffic(&world, &branch)?;

    lab.step("the right key");
    other.reload(&there(&right))?;
    // Its next attempt by itself may be a while away, after so many refusals.
    other.told(&["site", "connect", "office"])?;
    let seen = connected(lab, &other, "office", SOON)?;
    if !seen["lease"].as_str().is_some_and(|lease| lease.starts_with("s-")) {
        bail!("the site has no lease: {seen}");
    }
    traffic(&world, &branch, &store)?;
    sound(&mut other, lab)?;
    sound(&mut gateway, lab)
}

/// A gateway that enrolled with us like a runner: its certificate's lease is the site's.
pub(super) fn own_authority(lab: &Lab) -> Result<()> {
    let settings = Settings::default();
    let scene = Scene::new(lab, Shape::default(), &settings)?;
    let branch = branch(&scene.world)?;
    let host = scene.world.runner().clone();
    let credentials = scene.enrol(&host, "enrolled", P256)?;
    let lease = scene.gateway.lease(&credentials.serial)?;
    let name = lease["dns"].as_str().context("the lease has no DNS name")?.to_owned();
    let more = format!(
        "[[site]]\nname = \"branch\"\nid = \"{name}\"\n\
         local_networks = [\"{PRIVATE_NET}\"]\nremote_networks = [\"{BRANCH_NET}\"]\n\
         allow = [\"{STORE}/icmp\", \"{STORE}:8081/tcp\"]\n"
    );
    scene.gateway.reload(&Settings { more, ..settings })?;
    let charon = scene.runner(&host, &credentials, |connection| {
        connection.vips.clear();
        connection.local_id = name.clone();
        connection.local_ts = BRANCH_NET.to_owned();
    })?;
    charon.initiate("net")?;
    let seen = connected(lab, &scene.gateway, "branch", SOON)?;
    scene.settle(&charon)?;
    if seen["lease"] != lease["id"] {
        bail!("the site has lease {}, its certificate {}", seen["lease"], lease["id"]);
    }
    traffic(&scene.world, &branch, &scene.store)?;
    scene.gateway.told(&["cert", "revoke", &credentials.serial])?;
    if !scene.gateway.sas()?.is_empty() || charon.try_initiate("net")?.ok() {
        bail!("a revoked gateway is let in");
    }
    // The peer was told to end it, and knows no better; our side must.
    lab.leaks().expect_from_now(BRANCH_NET, PRIVATE_NET)?;
    no_traffic(&scene.world, &branch)?;
    scene.finish()
}

/// strongSwan with a certificate of its own authority on the other side.
pub(super) struct Peer {
    pub(super) charon: Charon,
    pub(super) authority: Authority,
}

pub(super) fn strongswan(
    lab: &Lab,
    world: &World,
    gateway: &Gateway,
    (key, options): (KeyType, &Options),
    change: impl FnOnce(&mut Connection),
) -> Result<Peer> {
    let authority = Authority::new(&lab.path("branch-ca"), "CN=Branch CA", key)?;
    let san = OTHER_ID;
    let (private, cert) = authority.issue("branch", "CN=branch", san, key, &[])?;
    let charon = Charon::start(world.runner(), options)?;
    charon.install(&private, "private/host.pem")?;
    charon.install(&cert, "x509/host.pem")?;
    charon.install(&authority.cert, "x509ca/own.pem")?;
    let root = lab.path("root.pem");
    fs::write(&root, gateway.told(&["ca", "root"])?)?;
    charon.install(&root, "x509ca/gateway.pem")?;
    let mut connection = Connection {
        remote_addr: GATEWAY.to_owned(),
        local_id: OTHER_ID.to_owned(),
        remote_id: ID.to_owned(),
        local_ts: BRANCH_NET.to_owned(),
        remote_ts: PRIVATE_NET.to_owned(),
        ..Connection::default()
    };
    change(&mut connection);
    charon.load(&[connection], "")?;
    Ok(Peer { charon, authority })
}

/// strongSwan connects a network to ours.
pub(super) fn strongswan_initiator(lab: &Lab) -> Result<()> {
    let world = World::new(lab, Shape::default())?;
    let branch = branch(&world)?;
    let store = Server::start(&world.private, world.store())?;
    let settings = Settings::default();
    let mut gateway = Gateway::start(&world.gateway, &settings)?;
    let peer = strongswan(lab, &world, &gateway, (P256, &Options::default()), |_| {})?;
    gateway.reload(&Settings { more: site(&peer.authority.cert, ""), ..settings })?;
    peer.charon.initiate("net")?;
    let seen = connected(lab, &gateway, "branch", SOON)?;
    lab.step(&format!("connected as {}", seen["lease"]));
    agreed(lab, &gateway, &peer.charon)?;
    traffic(&world, &branch, &store)?;

    lab.step("rekeys from both ends lose nothing");
    rekeys(lab, &world, &gateway, &peer.charon)?;
    peer.charon.terminate("net")?;
    wait::holds(lab, "the SA to be gone", SOON, || Ok(gateway.sas()?.is_empty()))?;
    // The peer was told to end it, and knows no better; our side must.
    lab.leaks().expect_from_now(BRANCH_NET, PRIVATE_NET)?;
    no_traffic(&world, &branch)?;
    if state(&gateway, "branch")?["state"] != "waiting" {
        bail!("the site does not wait: {}", state(&gateway, "branch")?);
    }
    sound(&mut gateway, lab)
}

/// We connect to strongSwan, through our NAT, with RSA-4096 certificates that make fragments.
pub(super) fn strongswan_responder(lab: &Lab) -> Result<()> {
    let world = World::new(lab, Shape { gateway_nat: true, ..Shape::default() })?;
    let branch = branch(&world)?;
    let store = Server::start(&world.private, world.store())?;
    let settings = Settings { ike: "dpd = \"2s\"".to_owned(), ..Settings::default() };
    let mut gateway = Gateway::start(&world.gateway, &settings)?;
    // Our first guess is Curve25519, which this strongSwan does not take.
    let options = Options { cookie_threshold: 2, ..Options::default() };
    let peer = strongswan(lab, &world, &gateway, (RSA4096, &options), |connection| {
        connection.remote_addr = "%any".to_owned();
        connection.ike = "aes256gcm16-prfsha384-ecp384".to_owned();
    })?;
    let mut capture = Capture::start(&world.internet, "east", "udp port 500 or udp port 4500")?;
    let more = site(&peer.authority.cert, &format!("remote = \"{OTHER}\""));
    gateway.reload(&Settings { more, ..settings })?;
    connected(lab, &gateway, "branch", SOON)?;
    agreed(lab, &gateway, &peer.charon)?;
    traffic(&world, &branch, &store)?;

    lab.step("rekeys from both ends lose nothing");
    rekeys(lab, &world, &gateway, &peer.charon)?;

    lab.step("the peer deletes the SA and asks for a cookie when we come back");
    capture.stop()?;
    let inits = capture.udp_payloads("src host 203.0.113.2 and dst port 500")?;
    if inits.len() < 2 {
        bail!("{} IKE_SA_INIT requests; another group needs two", inits.len());
    }
    let strangers = half_open(&world.internet, &inits)?;
    let from = peer.charon.log().len();
    peer.charon.terminate("net")?;
    wait::holds(lab, "a request for a cookie in strongSwan's log", SOON, || {
        let log = peer.charon.log();
        let log = log.get(from..).unwrap_or_default();
        Ok(log.contains("sending COOKIE") || log.contains("N(COOKIE)"))
    })?;
    drop(strangers);
    connected(lab, &gateway, "branch", SOON)?;
    agreed(lab, &gateway, &peer.charon)?;
    traffic(&world, &branch, &store)?;

    lab.step("the IKE SA without a child, and the child after it (RFC 6023)");
    let from = peer.charon.log().len();
    let childless = format!("remote = \"{OTHER}\"\nchildless = true");
    let more = site(&peer.authority.cert, &childless);
    gateway.reload(&Settings { more, ike: "dpd = \"2s\"".to_owned(), ..Settings::default() })?;
    peer.charon.expect_log(from, "generating CREATE_CHILD_SA response", SOON)?;
    connected(lab, &gateway, "branch", SOON)?;
    agreed(lab, &gateway, &peer.charon)?;
    traffic(&world, &branch, &store)?;

    lab.step("the peer vanishes, is noticed, and comes back");
    let Peer { mut charon, authority } = peer;
    charon.process().kill()?;
    wait::holds(lab, "the loss to be noticed", LATER, || {
        Ok(state(&gateway, "branch")?["state"] != "connected")
    })?;
    // Without its daemon the peer knows no better; our side must.
    lab.leaks().expect_from_now(BRANCH_NET, PRIVATE_NET)?;
    no_traffic(&world, &branch)?;
    drop(authority);
    sound(&mut gateway, lab)
}

/// Leaves the peer with half-open SAs of strangers: our own first message under other SPIs.
fn half_open(internet: &Host, inits: &[Vec<u8>]) -> Result<Vec<UdpSocket>> {
    let init = inits.last().context("no IKE_SA_INIT captured")?;
    let mut sockets = Vec::new();
    for stranger in 1..=4u8 {
        let socket = internet.enter(|| UdpSocket::bind(("0.0.0.0", 0)))??;
        let mut message = init.clone();
        message.iter_mut().take(8).for_each(|octet| *octet = octet.wrapping_add(stranger));
        socket.send_to(&message, (OTHER, 500))?;
        socket.set_read_timeout(Some(SOON))?;
        sockets.push(socket);
    }
    // With an answer each, all of them have been counted.
    for socket in &sockets {
        socket.recv(&mut [0; 4096]).context("strongSwan does not answer a stranger")?;
    }
    Ok(sockets)
}

/// Each end rekeys the child and the IKE SA while a ping runs; every ping is answered.
fn rekeys(lab: &Lab, world: &World, gateway: &Gateway, charon: &Charon) -> Result<()> {
    let before = spis(gateway)?;
    let pings = Pings::start(&world.private, BRANCH, 0.01)?;
    pings.reach(30)?;
    let rekeyed = |what: &str, changed: &dyn Fn(&Spis) -> bool| {
        wait::until(lab, what, SOON, || {
            let one = spis(gateway).ok().filter(|now| !now.1.is_empty());
            Ok(one.filter(|now| changed(now)))
        })
    };
    let by_peer = |what: &str| -> Result<()> {
        let said = charon.swanctl(&["--rekey", what, "net"])?;
        if !said.ok() {
            bail!("strongSwan did not rekey: {}", said.all());
        }
        Ok(())
    };
    by_peer("--child")?;
    let child = rekeyed("another child SA, by strongSwan", &|now| now.1 != before.1)?;
    by_peer("--ike")?;
    let theirs = rekeyed("another IKE SA, by strongSwan", &|now| now.0 != child.0)?;
    let id = gateway.sas()?.first().and_then(|sa| sa["id"].as_u64()).context("no SA")?;
    gateway.told(&["sa", "rekey", &id.to_string()])?;
    rekeyed("another IKE SA and child SA, by the gateway", &|now| {
        now.0 != theirs.0 && now.1 != theirs.1
    })?;
    let Pinged { sent, lost } = pings.finish()?;
    if !lost.is_empty() {
        bail!("{} of {sent} pings lost during rekeys: numbers {lost:?}", lost.len());
    }
    agreed(lab, gateway, charon)?;
    lab.step(&format!("{sent} pings over rekeys by both ends"));
    Ok(())
}

/// SPIs of an IKE SA and of its child.
type Spis = (String, String);

/// SPIs of the only IKE SA and of its only child.
pub(super) fn spis(gateway: &Gateway) -> Result<Spis> {
    let sas = gateway.sas()?;
    let [sa] = sas.as_slice() else { bail!("expected one IKE SA: {sas:?}") };
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok((text(&sa["spi_i"]), text(&sa["children"][0]["spi_in"])))
}
