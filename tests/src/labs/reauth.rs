//! Reauthentication by an unmodified client (RFC 7296 2.8.3, RFC 4478).

use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

use super::external::{load_with, trust_gateway};
use super::scene::{Credentials, Scene, install, ping};
use crate::lab::charon::{Charon, Options};
use crate::lab::gateway::Settings;
use crate::lab::http::Shelf;
use crate::lab::pkitool::{Authority, P256};
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

/// Waits until the only IKE SA is another than `first`, and tells as [`only_sa`] does.
fn other_sa(scene: &Scene, first: u64) -> Result<(u64, String)> {
    wait::until(&scene.lab, "another SA in place of the first", SOON, || {
        Ok(only_sa(scene).ok().filter(|(id, _)| *id != first))
    })
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
    let (second, after) = other_sa(&scene, first)?;
    if after != address || charon.virtual_addresses()? != here {
        bail!("SA {first} with {address} became SA {second} with {after}");
    }
    if sent != received {
        bail!("{} of {sent} pings were lost", sent - received);
    }
    scene.settle(&charon)?;
    wait::holds(lab, "the client to have deleted its first SA", SOON, || {
        Ok(scene.gateway.log().contains("peer deleted it"))
    })?;
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
    charon.expect_log(0, "AUTH_LFT", SOON)?;
    let (first, address) = only_sa(&scene)?;
    let (_, after) = other_sa(&scene, first)?;
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
    scene.settle(&charon)?;
    drop(charon);
    scene.finish()
}

/// A certificate of another CA is revoked while its tunnel is up, and nobody has told the gateway
/// when the client authenticates again by its own clock: that is refused, and the first tunnel ends.
pub(super) fn revoked(lab: &Lab) -> Result<()> {
    const PLACE: &str = "10.20.0.10:8090";
    // The gateway looks at the list again after five seconds, which have passed by then.
    const AFTER: &str = "8s";
    let corp = Authority::new(&lab.path("corp"), "Corp Root", P256)?;
    let url = format!("http://{PLACE}/corp.crl");
    let pair = corp.issue("job", "CN=job", "job.corp.example", P256, &["--crl", &url])?;
    let more = format!(
        "\n[[role.match]]\nca = \"corp\"\nsan = \"*.corp.example\"\n\n[[ca]]\nname = \"corp\"\n\
         certificate = \"{}\"\nrevocation = \"strict\"\nrefresh = \"5s\"\ntimeout = \"10s\"\n",
        corp.cert.display()
    );
    let scene = Scene::new(lab, Shape::default(), &Settings { more, ..settings() })?;
    let list = |certs: &[&Path]| corp.revocation_list(certs).map(String::into_bytes);
    let shelf = Shelf::start(&scene.world.private, PLACE.parse()?, list(&[])?)?;
    let bad = list(&[&pair.1])?;

    let host = scene.world.runner();
    let options =
        Options { make_before_break: true, retransmit_timeout: 10.0, ..Options::default() };
    let charon = Charon::start(host, &options)?;
    trust_gateway(&scene, &charon, host)?;
    load_with(&charon, &[("job", &pair)], |connection| {
        for (key, value) in [("reauth_time", AFTER), ("rand_time", "0s"), ("over_time", "10s")] {
            connection.extra.push((key.to_owned(), value.to_owned()));
        }
    })?;
    charon.initiate("net")?;
    let before = charon.log().len();
    let mut held = shelf.hold();
    scene.agree(&charon)?;
    scene.download(host, 10_000)?;
    let (first, _) = only_sa(&scene)?;
    let address = charon.virtual_addresses()?;

    lab.step("the client authenticates again while the gateway waits for the list");
    charon.expect_log(before, "reauthenticating IKE_SA net[1]", Duration::from_secs(20))?;
    charon.expect_log(before, "generating IKE_AUTH request 1", Duration::from_secs(5))?;
    let still = scene.gateway.sas()?;
    if !still.iter().any(|sa| sa["id"] == first) || ping(host, STORE, 2, 0.1)?.1 != 2 {
        bail!("the first tunnel did not wait for the second: {still:?}");
    }
    if charon.virtual_addresses()? != address {
        bail!("the address changed: {:?}", charon.virtual_addresses()?);
    }

    lab.step("the list says that the certificate is revoked");
    *held = bad;
    drop(held);
    charon.expect_log(before, "received AUTHENTICATION_FAILED notify error", SOON)?;
    charon.expect_log(before, "received DELETE for IKE_SA net[1]", SOON)?;
    scene.no_sas(SOON)?;
    if charon.log().get(before..).is_some_and(|log| log.contains("established between")) {
        bail!("the second connection was established\n{}", lab.tails());
    }
    wait::holds(lab, "strongSwan to have no SA", SOON, || {
        let sas = charon.sas()?;
        Ok(!sas.contains("ESTABLISHED") && !sas.contains("INSTALLED"))
    })?;
    scene.no_download(host)?;
    let refused = wait::until(lab, "a refusal", SOON, || {
        Ok(Some(scene.gateway.refusals()?).filter(|refused| !refused.is_empty()))
    })?;
    let [refusal] = refused.as_slice() else { bail!("expected one refusal: {refused:?}") };
    let what = refusal["what"].as_str().unwrap_or_default();
    if refusal["code"] != "certificate_revoked" || !what.contains("CN=job was revoked at") {
        bail!("odd refusal: {refusal}");
    }
    wait::holds(lab, "the lease to be revoked", SOON, || {
        Ok(scene.gateway.json(&["lease", "list", "--all"])?[0]["state"] == "revoked")
    })?;
    scene.finish()
}
