//! `cargo xtask demo`: the whole story on one machine, told as it happens.
#![allow(clippy::print_stdout)] // telling is its purpose

use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::lab::charon::{Charon, Options};
use crate::lab::gateway::{Gateway, ID, Settings};
use crate::lab::http;
use crate::lab::pkitool::{self, P256};
use crate::lab::world::{FORBIDDEN, GATEWAY, STORE, STORE_PORT, Shape, World};
use crate::lab::{Lab, cleanup, wait};

use super::bench::handshake_ms;
use super::daemon::{difference, footprint};
use super::scene::{Credentials, Scene, install};

/// Size of the demo's artifact.
const ARTIFACT: u64 = 20_000_000;

/// Runs the story and cleans up whatever happens.
///
/// # Errors
/// When any step does not do what the story says.
pub fn run() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("the demo builds network namespaces: run it as root");
    }
    cleanup::sweep_leftovers();
    cleanup::on_signals()?;
    let lab = Lab::new("demo", false)?;
    let outcome = story(&lab);
    if outcome.is_err() {
        println!("\n{}", lab.tails());
    }
    println!("\nCleaning up ...");
    drop(lab);
    outcome
}

struct Teller {
    started: Instant,
    step: Instant,
    number: u32,
}

impl Teller {
    fn chapter(&mut self, title: &str) {
        self.number += 1;
        self.step = Instant::now();
        println!("\n{}. {title}", self.number);
    }

    fn command(line: &str) {
        println!("   $ {line}");
    }

    fn say(&self, line: &str) {
        println!("     {line}");
    }

    fn done(&self, line: &str) {
        println!("     {line}  [{:.2} s]", self.step.elapsed().as_secs_f64());
    }
}

fn story(lab: &Lab) -> Result<()> {
    let mut tell = Teller { started: Instant::now(), step: Instant::now(), number: 0 };
    println!(
        "Runnel demo: a CI runner fetches an artifact from a private network, and is shut out."
    );
    println!();
    println!("   runner 198.51.100.10 --- internet --- gateway {GATEWAY} --- private 10.20.0.0/16");
    println!(
        "   strongSwan, unmodified                 runnel                artifact store {STORE}"
    );

    tell.chapter("Four hosts are made from network namespaces; the artifact store starts");
    let world = World::new(lab, Shape::default())?;
    let before = footprint(&world.gateway)?;
    tell.done("done");

    tell.chapter("The gateway starts, with a role that may reach one port of one host");
    let settings =
        Settings { allow: vec![format!("{STORE}:{STORE_PORT}/tcp")], ..Settings::default() };
    Teller::command("runnel up");
    let gateway = Gateway::start(&world.gateway, &settings)?;
    let scene = Scene::around(world, gateway)?;
    let status = scene.gateway.json(&["status"])?;
    tell.say(&format!(
        "data plane: {} ({})",
        text(&status["dataplane"]["kind"]),
        text(&status["dataplane"]["why"])
    ));
    tell.done("root and issuing CA created, listening");

    let runner = scene.world.runner().clone();
    tell.chapter("Before enrolment the store is out of reach");
    Teller::command(&format!("curl {}", scene.store.url(ARTIFACT)));
    scene.no_download(&runner)?;
    tell.done("no answer, as it should be");

    tell.chapter("An operator lets one runner in; the runner enrols with strongSwan's own tools");
    let credentials = enrol(&scene)?;
    let lease = scene.gateway.lease(&credentials.serial)?;
    let id = text(&lease["id"]);
    tell.say(&format!("certificate for {}", text(&lease["subject"])));
    tell.done(&format!("lease {id}, address {}", text(&lease["addresses"][0])));

    tell.chapter("The runner connects");
    let charon = Charon::start(&runner, &Options::default())?;
    install(&charon, &credentials)?;
    charon.load(&[scene.connection(&credentials)], "")?;
    Teller::command("swanctl --initiate --child net");
    charon.initiate("net")?;
    let handshake = handshake_ms(&charon.log())?;
    tell.done(&format!("tunnel up {handshake:.0} ms after the first IKE message"));

    tell.chapter("The runner downloads the artifact through the tunnel");
    Teller::command(&format!("curl {}", scene.store.url(ARTIFACT)));
    let asked = tell.started.elapsed();
    let got = scene.download(&runner, ARTIFACT)?;
    let first_byte = asked.as_secs_f64() + got.first_byte;
    let rate = got.bytes as f64 * 8.0 / got.total / 1e6;
    tell.done(&format!(
        "{} MB in {:.2} s ({rate:.0} Mb/s), every byte checked",
        got.bytes / 1_000_000,
        got.total
    ));
    tell.say(&format!("first byte {first_byte:.2} s after the demo began"));

    tell.chapter("A host outside the allow list is refused");
    let forbidden: SocketAddr = scene.forbidden.address();
    Teller::command(&format!("curl http://{forbidden}/"));
    let outside = http::download(&runner, &scene.forbidden.url(1), Duration::from_millis(1500));
    if outside.is_ok() || scene.forbidden.requests() > 0 {
        bail!("{FORBIDDEN} answered although the role does not allow it");
    }
    tell.done("no answer: the role allows one port of one host");

    tell.chapter("The job is over: the operator releases the lease");
    Teller::command(&format!("runnel lease release {id}"));
    let mark = charon.log().len();
    let released = scene.gateway.json(&["lease", "release", &id])?;
    tell.say(&format!(
        "{} tunnel(s) closed within {} ms",
        released["sas_closed"], released["elapsed_ms"]
    ));
    charon.expect_log(mark, "received DELETE for IKE_SA", Duration::from_secs(5))?;
    tell.done("the runner was told (DELETE)");

    tell.chapter("The same download now fails, and so does a new connection");
    Teller::command(&format!("curl {}", scene.store.url(ARTIFACT)));
    scene.no_download(&runner)?;
    tell.say("no answer");
    Teller::command("swanctl --initiate --child net");
    let said = charon.try_initiate("net")?;
    if said.ok() {
        bail!("the released certificate opened another tunnel");
    }
    let refusal =
        wait::until(&scene.lab, "the refusal to be listed", Duration::from_secs(45), || {
            Ok(scene.gateway.refusals()?.first().cloned())
        })?;
    tell.say(&format!("runner:  {}", refusal_line(&said.all())));
    tell.done(&format!("gateway: {}; {}", text(&refusal["what"]), text(&refusal["fix"])));

    drop(charon);
    tell.chapter("The gateway stops");
    let mut scene = scene;
    let code = scene.gateway.stop()?;
    if code != 0 {
        bail!("runnel stopped with exit code {code}");
    }
    let left = difference(&before, &footprint(&scene.world.gateway)?);
    if !left.is_empty() {
        bail!("the gateway left traces:\n{}", left.join("\n"));
    }
    tell.done("no interface, route, rule or SA left behind");
    println!(
        "\nThe whole story took {:.1} s; first byte through the tunnel after {first_byte:.2} s; \
         handshake {handshake:.0} ms.",
        tell.started.elapsed().as_secs_f64(),
    );
    Ok(())
}

fn enrol(scene: &Scene) -> Result<Credentials> {
    let host = scene.world.runner();
    let dir = host.dir()?.join("enrolled");
    fs::create_dir_all(&dir)?;
    Teller::command("runnel token create --role builder");
    let token = scene.gateway.token()?;
    Teller::command("pki --gen --type ecdsa --size 256 --outform pem > key.pem");
    pkitool::generate(P256, &dir.join("key.pem"))?;
    Teller::command("pki --req --in key.pem --type priv --dn CN=ci > req.der");
    Teller::command(&format!(
        "pki --estca --url https://{ID}:8443 --cacert root.pem --caout ca.pem"
    ));
    Teller::command(&format!(
        "pki --est --url https://{ID}:8443 --cacert root.pem --in req.der --userpass builder:TOKEN"
    ));
    scene.enrol_with(host, &dir, &token)
}

fn text(value: &serde_json::Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn refusal_line(said: &str) -> String {
    let line = said
        .lines()
        .find(|line| line.contains("AUTH_FAILED") || line.contains("AUTHENTICATION_FAILED"));
    line.unwrap_or("refused").trim().to_owned()
}
