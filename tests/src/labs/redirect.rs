//! Draining a gateway: an unmodified client moves to another one (RFC 5685).
//!
//! ```text
//! runner ── internet ── gateway   (203.0.113.2) ── private 10.20.0.10
//!               └────── gateway2  (192.0.2.2)   ──────┘
//! ```
//! Both gateways have one identity and one CA: the second begins with a copy of the first's state.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::scene::{Scene, ping};
use crate::lab::charon::Charon;
use crate::lab::gateway::{Gateway, ID, Settings};
use crate::lab::host::{Host, cable};
use crate::lab::pkitool::P256;
use crate::lab::world::{GATEWAY, PRIVATE_NET, STORE, Shape, World};
use crate::lab::{Lab, wait};

/// The second gateway's outer address.
const SECOND: &str = "192.0.2.2";
const SOON: Duration = Duration::from_secs(15);

/// The host of the second gateway, which reaches the same private machine.
fn second_host(world: &World) -> Result<Host> {
    let host = Host::new(&world.lab, "gateway2")?;
    host.forward()?;
    cable(&host, "wan", &world.internet, "south", 1500)?;
    host.address("wan", "192.0.2.2/24")?;
    world.internet.address("south", "192.0.2.1/24")?;
    host.route("default via 192.0.2.1")?;
    cable(&host, "lan", &world.private, "eth1", 1500)?;
    world.lab.leaks().home(&["10.21.0.0/24"])?;
    host.address("lan", "10.21.0.1/24")?;
    world.private.address("eth1", "10.21.0.10/24")?;
    host.route("10.20.0.0/16 via 10.21.0.10")?;
    Ok(host)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
    }
    fs::set_permissions(to, fs::metadata(from)?.permissions())?;
    Ok(())
}

/// Runnel on the other side of a site goes where the gateway it connects to sends it, connected or
/// new, because its configuration allows that.
pub(super) fn site(lab: &Lab) -> Result<()> {
    const OFFICE: &str = "office.example.com";
    let world = World::new(lab, Shape::default())?;
    let settings = Settings::default();
    let mut first = Gateway::start(&world.gateway, &settings)?;
    let root = lab.path("root.pem");
    fs::write(&root, first.told(&["ca", "root"])?)?;
    first.stop()?;
    let beside = second_host(&world)?;
    let central = |ca: &Path| Settings {
        more: format!(
            "[[site]]\nname = \"office\"\nid = \"{OFFICE}\"\nca = {ca:?}\n\
             local_networks = [\"{PRIVATE_NET}\"]\nremote_networks = [\"10.30.0.0/16\"]\n"
        ),
        ..settings.clone()
    };
    let office = Settings {
        id: OFFICE.to_owned(),
        addresses: vec!["10.88.0.0/16".to_owned()],
        allow: vec!["10.30.0.10".to_owned()],
        more: format!(
            "[[site]]\nname = \"main\"\nremote = \"{GATEWAY}\"\nid = \"{ID}\"\nca = {root:?}\n\
             local_networks = [\"10.30.0.0/16\"]\nremote_networks = [\"{PRIVATE_NET}\"]\n\
             follow_redirects = true\n"
        ),
        ..settings.clone()
    };
    let mut office = Gateway::start(world.runner(), &office)?;
    let theirs = lab.path("office.pem");
    fs::write(&theirs, office.told(&["ca", "root"])?)?;
    let mut second = Gateway::prepare(&beside, &central(&theirs))?;
    copy(&first.state(), &second.state())?;
    second.up(&[])?;
    first.up(&[])?;
    first.reload(&central(&theirs))?;

    let at = |gateway: &Gateway, address: &str| -> Result<bool> {
        let sas = office.sas()?;
        let there = |sa: &serde_json::Value| {
            sa["remote"].as_str().is_some_and(|remote| remote.starts_with(address))
        };
        Ok(count(gateway)? == 1 && sas.len() == 1 && sas.iter().all(there))
    };
    wait::holds(lab, "the site at the first gateway", SOON, || at(&first, GATEWAY))?;
    lab.step("the first gateway is drained: the connected site moves");
    first.told(&["drain", "--to", SECOND])?;
    wait::holds(lab, "the site at the second gateway", SOON, || at(&second, SECOND))?;
    if count(&first)? != 0 {
        bail!("the first gateway still has the site: {:?}", first.sas()?);
    }

    lab.step("a new connection to the first gateway ends at the second");
    let id = office.sas()?.first().and_then(|sa| sa["id"].as_u64()).context("no SA")?;
    office.told(&["sa", "close", &id.to_string()])?;
    wait::holds(lab, "the site at the second gateway again", SOON, || at(&second, SECOND))?;
    for gateway in [&mut office, &mut second, &mut first] {
        if gateway.json(&["status"])?["sas_without_lease"] != 0 {
            bail!("there are SAs without a live lease");
        }
        let code = gateway.stop()?;
        if code != 0 {
            bail!("a gateway stopped with {code}\n{}", lab.tails());
        }
    }
    Ok(())
}

fn count(gateway: &Gateway) -> Result<usize> {
    Ok(gateway.sas()?.len())
}

/// strongSwan lists one IKE SA, with this gateway.
fn at(charon: &Charon, gateway: &str) -> Result<()> {
    let what = format!("strongSwan to have one SA, with {gateway}");
    wait::holds(charon.host().lab(), &what, SOON, || {
        let sas = charon.sas()?;
        let remotes: Vec<&str> =
            sas.lines().filter(|line| line.trim_start().starts_with("remote '")).collect();
        let one = sas.matches("ESTABLISHED").count() == 1 && remotes.len() == 1;
        Ok(one && remotes.iter().all(|line| line.contains(&format!("@ {gateway}["))))
    })
}

/// A client moves while connected, at its next connection, and stays when draining is over.
pub(super) fn run(lab: &Lab) -> Result<()> {
    // The private machine knows one way back, so the second gateway speaks for its clients.
    let settings = Settings {
        pool: "masquerade = true".to_owned(),
        allow: vec![STORE.to_owned()],
        ..Settings::default()
    };
    let mut scene = Scene::new(lab, Shape::default(), &settings)?;
    let host = scene.world.runner().clone();
    let credentials = scene.enrol(&host, "enrolled", P256)?;
    scene.gateway.stop()?;
    let beside = second_host(&scene.world)?;
    let mut second = Gateway::prepare(&beside, &settings)?;
    copy(&scene.gateway.state(), &second.state())?;
    scene.gateway.up(&[])?;
    second.up(&[])?;

    let charon = scene.runner(&host, &credentials, |_| {})?;
    charon.initiate("net")?;
    if (count(&scene.gateway)?, count(&second)?) != (1, 0) {
        bail!("the client did not connect to the first gateway");
    }
    let address = charon.virtual_addresses()?;
    // The second gateway counts the SA before the client has read its answer.
    let moved = || -> Result<bool> {
        let sas = charon.sas()?;
        Ok((count(&scene.gateway)?, count(&second)?) == (0, 1)
            && sas.contains("INSTALLED")
            && sas.contains(SECOND)
            && charon.virtual_addresses().is_ok_and(|now| now == address))
    };

    lab.step("the first gateway is drained: the connected client moves");
    scene.gateway.told(&["drain", "--to", SECOND])?;
    let what = format!("the client at the second gateway with the same address {address:?}");
    wait::holds(lab, &what, SOON, moved)?;
    let (sent, received) = ping(&host, STORE, 5, 0.1)?;
    if sent != received {
        bail!("{received} of {sent} pings through the second gateway\n{}", lab.tails());
    }
    let status = scene.gateway.json(&["status"])?;
    if status["draining_to"] != SECOND {
        bail!("`status` does not say that the gateway is drained: {status}");
    }

    lab.step("a new connection to the first gateway ends at the second");
    charon.terminate("net")?;
    let from = charon.log().len();
    charon.initiate("net")?;
    charon.expect_log(from, "REDIR", SOON)?;
    wait::holds(lab, "the new connection at the second gateway", SOON, moved)?;

    lab.step("when draining is over, new connections stay");
    charon.terminate("net")?;
    scene.gateway.told(&["drain", "--off"])?;
    charon.initiate("net")?;
    wait::holds(lab, "the connection at the first gateway", SOON, || {
        Ok(count(&scene.gateway)? == 1)
    })?;
    at(&charon, GATEWAY)?;
    scene.agree(&charon)?;
    charon.terminate("net")?;
    let code = second.stop().context("the second gateway")?;
    if code != 0 {
        bail!("the second gateway stopped with {code}");
    }
    scene.finish()
}
