//! Reauthentication by an unmodified client (RFC 7296 2.8.3, RFC 4478).

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

use super::scene::{Credentials, Scene, install, ping};
use crate::lab::charon::{Charon, Options};
use crate::lab::gateway::Settings;
use crate::lab::pkitool::P256;
use crate::lab::swanctl::Connection;
use crate::lab::world::{STORE, Shape};
use crate::lab::{Lab, wait};

const SOON: Duration = Duration::from_secs(10);

/// A runner that reauthenticates with the new IKE SA first.
fn connected(scene: &Scene, change: impl FnOnce(&mut Connection)) -> Result<(Charon, Credentials)> {
    let host = scene.world.runner();
    let credentials = scene.enrol(host, "enrolled", P256)?;
    let options = Options { make_before_break: true, ..Options::default() };
    let charon = Charon::start(host, &options)?;
    install(&charon, &credentials)?;
    let mut connection = scene.connection(&credentials);
    change(&mut connection);
    charon.load(&[connection], "")?;
    charon.initiate("net")?;
    Ok((charon, credentials))
}

fn settings() -> Settings {
    Settings { allow: vec![STORE.to_owned()], ..Settings::default() }
}

/// The only IKE SA's id and virtual addresses.
fn only_sa(scene: &Scene) -> Result<(u64, String)> {
    let sas = scene.gateway.sas()?;
    let [sa] = sas.as_slice() else { bail!("expected one IKE SA: {sas:?}") };
    Ok((sa["id"].as_u64().context("no id")?, sa["addresses"].to_string()))
}

fn reauthenticate(charon: &Charon) -> Result<()> {
    let said = charon.swanctl(&["--rekey", "--ike", "net", "--reauth"])?;
    if !said.ok() {
        bail!("strongSwan does not reauthenticate: {}", said.all());
    }
    Ok(())
}

/// The client's second IKE SA takes over from its first under a running ping.
pub(super) fn make_before_break(lab: &Lab) -> Result<()> {
    let scene = Scene::new(lab, Shape::default(), &settings())?;
    let (charon, _) = connected(&scene, |_| {})?;
    let (first, address) = only_sa(&scene)?;
    let here = charon.virtual_addresses()?;
    let (sent, received) = thread::scope(|scope| -> Result<(u32, u32)> {
        let pinging = scope.spawn(|| ping(scene.world.runner(), STORE, 400, 0.01));
        thread::sleep(Duration::from_millis(1000));
        reauthenticate(&charon)?;
        pinging.join().map_err(|_| anyhow!("ping panicked"))?
    })?;
    lab.step(&format!("{received} of {sent} pings answered"));
    wait::holds(lab, "the first SA to be gone", SOON, || Ok(scene.gateway.sas()?.len() == 1))?;
    let (second, after) = only_sa(&scene)?;
    if second == first || after != address || charon.virtual_addresses()? != here {
        bail!("SA {first} with {address} became SA {second} with {after}");
    }
    if sent != received {
        bail!("{} of {sent} pings were lost", sent - received);
    }
    let log = scene.gateway.log();
    if !log.contains("peer deleted it") {
        bail!("the client did not delete its first SA\n{}", lab.tails());
    }
    scene.download(scene.world.runner(), 1_000_000)?;
    charon.terminate("net")?;
    scene.no_sas(SOON)?;
    scene.finish()
}

/// The announced end makes the client authenticate again; with the same certificate it would do so
/// over and over, which is stopped without ending the tunnel.
pub(super) fn early(lab: &Lab) -> Result<()> {
    let settings = Settings {
        ttl: "1m".to_owned(),
        ike: "announce_lifetime = \"1s\"".to_owned(),
        ..settings()
    };
    let scene = Scene::new(lab, Shape::default(), &settings)?;
    // The certificate lives a minute; 57 s are announced, so it comes after 9 s, and then at once.
    let (charon, _) = connected(&scene, |connection| {
        connection.extra.push(("over_time".to_owned(), "48s".to_owned()));
    })?;
    if !charon.log().contains("AUTH_LFT") {
        bail!("no AUTH_LIFETIME arrived\n{}", lab.tails());
    }
    let (first, address) = only_sa(&scene)?;
    wait::holds(lab, "the client to authenticate again", Duration::from_secs(25), || {
        Ok(only_sa(&scene).is_ok_and(|(id, _)| id != first))
    })?;
    let (_, after) = only_sa(&scene)?;
    if after != address {
        bail!("the address changed from {address} to {after}");
    }
    wait::holds(lab, "the loop to be stopped", Duration::from_secs(25), || {
        Ok(scene.gateway.refusals()?.iter().any(|refusal| refusal["code"] == "reauth_loop"))
    })?;
    let (sent, received) = ping(scene.world.runner(), STORE, 10, 0.05)?;
    if sent != received {
        bail!("the refused reauthentication cost the tunnel: {received} of {sent} pings");
    }
    drop(charon);
    scene.finish()
}

/// Revocation ends the tunnel at once, and a reauthentication with the certificate is refused.
pub(super) fn revoked(lab: &Lab) -> Result<()> {
    let scene = Scene::new(lab, Shape::default(), &settings())?;
    let (charon, credentials) = connected(&scene, |_| {})?;
    reauthenticate(&charon)?;
    wait::holds(lab, "the first SA to be gone", SOON, || Ok(scene.gateway.sas()?.len() == 1))?;
    scene.gateway.told(&["cert", "revoke", &credentials.serial])?;
    if !scene.gateway.sas()?.is_empty() {
        bail!("the tunnel of a revoked certificate is up: {:?}", scene.gateway.sas()?);
    }
    if ping(scene.world.runner(), STORE, 2, 0.1)?.1 != 0 {
        bail!("packets of a revoked certificate pass");
    }
    let said = charon.try_initiate("net")?;
    if said.ok() || !charon.log().contains("AUTH_FAILED") {
        bail!("a revoked certificate was accepted: {}", said.all());
    }
    let refused = scene.gateway.refusals()?;
    if !refused.iter().any(|refusal| refusal["what"].to_string().contains("revoked")) {
        bail!("no refusal names the revocation: {refused:?}");
    }
    scene.finish()
}
