//! Key exchange with ML-KEM beside X25519 (RFC 9370), against a strongSwan that has it.

use std::time::Duration;

use anyhow::{Result, bail};

use super::scene::Scene;
use crate::lab::charon::{Charon, Options};
use crate::lab::gateway::Settings;
use crate::lab::pkitool::P256;
use crate::lab::world::Shape;
use crate::lab::{Lab, next, wait};

/// Bytes downloaded after each step.
const PROBE: u64 = 200_000;

/// How long a rekey may take.
const LIMIT: Duration = Duration::from_secs(10);

/// What strongSwan says to have agreed on, for IKE and for ESP.
const IKE: &str =
    "selected proposal: IKE:AES_GCM_16_256/PRF_HMAC_SHA2_384/CURVE_25519/KE1_ML_KEM_768";
const ESP: &str = "selected proposal: ESP:AES_GCM_16_256/CURVE_25519/NO_EXT_SEQ/KE1_ML_KEM_768";

pub(super) fn run(lab: &Lab) -> Result<()> {
    let scene = Scene::new(lab, Shape::default(), &Settings::default())?;
    let host = scene.world.runner().clone();
    let credentials = scene.enrol(&host, "enrolled", P256)?;
    // Key exchanges of more than a fragment.
    let options = Options { root: Some(next::root()?), fragment_size: 600, ..Options::default() };
    let mut charon = Charon::start(&host, &options)?;
    let version = charon.swanctl(&["--version", "--daemon"])?.out;
    lab.step(version.trim());
    scene.load(&charon, &credentials, |connection| {
        connection.ike = "aes256gcm16-prfsha384-x25519-ke1_mlkem768".to_owned();
        connection.esp = "aes256gcm16-x25519-ke1_mlkem768".to_owned();
    })?;

    lab.step("a connection");
    charon.initiate("net")?;
    scene.download(&host, PROBE)?;
    let view = View::of(&scene)?;
    expect(&view.suite, "x25519-ke1_mlkem768", "the gateway's IKE SA")?;
    charon.expect_log(0, IKE, LIMIT)?;
    charon.expect_log(0, "IKE_INTERMEDIATE", LIMIT)?;

    lab.step("a child rekey");
    let from = charon.log().len();
    rekey(&charon, "--child")?;
    let child = wait::until(lab, "another child SA with ML-KEM", LIMIT, || {
        let now = View::of(&scene)?;
        Ok((now.child != view.child && now.children == 1).then_some(now))
    })?;
    expect(&child.child_suite, "x25519-ke1_mlkem768", "the gateway's child SA")?;
    charon.expect_log(from, ESP, LIMIT)?;
    charon.expect_log(from, "IKE_FOLLOWUP_KE", LIMIT)?;
    scene.download(&host, PROBE)?;

    lab.step("an IKE rekey");
    let from = charon.log().len();
    rekey(&charon, "--ike")?;
    let ike = wait::until(lab, "another IKE SA with ML-KEM", LIMIT, || {
        let now = View::of(&scene)?;
        Ok((now.spi != child.spi && now.ike_sas == 1).then_some(now))
    })?;
    expect(&ike.suite, "x25519-ke1_mlkem768", "the gateway's rekeyed IKE SA")?;
    scene.settle(&charon)?;
    charon.expect_log(from, IKE, LIMIT)?;
    charon.expect_log(from, "IKE_FOLLOWUP_KE", LIMIT)?;
    scene.download(&host, PROBE)?;

    lab.step("both, by the gateway");
    let from = charon.log().len();
    scene.gateway.told(&["sa", "rekey", &ike.id])?;
    let both = wait::until(lab, "another IKE SA and child SA with ML-KEM", LIMIT, || {
        let now = View::of(&scene)?;
        let settled = now.ike_sas == 1 && now.children == 1;
        Ok((settled && now.spi != ike.spi && now.child != ike.child).then_some(now))
    })?;
    expect(&both.suite, "x25519-ke1_mlkem768", "the gateway's IKE SA")?;
    expect(&both.child_suite, "x25519-ke1_mlkem768", "the gateway's child SA")?;
    scene.settle(&charon)?;
    charon.expect_log(from, "parsed IKE_FOLLOWUP_KE request", LIMIT)?;
    scene.download(&host, PROBE)?;

    lab.step("ML-KEM-1024, and none");
    charon.terminate("net")?;
    scene.no_sas(Duration::from_secs(5))?;
    for suite in ["aes256gcm16-prfsha384-ecp384-ke1_mlkem1024", "aes256gcm16-prfsha384-x25519"] {
        scene.load(&charon, &credentials, |connection| connection.ike = suite.to_owned())?;
        charon.initiate("net")?;
        scene.agree(&charon)?;
        scene.download(&host, PROBE)?;
        expect(&View::of(&scene)?.suite, suite, "the gateway's IKE SA")?;
        charon.terminate("net")?;
        scene.no_sas(Duration::from_secs(5))?;
    }
    charon.stop()?;
    scene.finish()
}

fn rekey(charon: &Charon, what: &str) -> Result<()> {
    let said = charon.swanctl(&["--rekey", what, "net"])?;
    if !said.ok() {
        bail!("strongSwan does not rekey: {}", said.all());
    }
    Ok(())
}

fn expect(shown: &str, wanted: &str, what: &str) -> Result<()> {
    if !shown.contains(wanted) {
        bail!("{what} does not show {wanted}: {shown}");
    }
    Ok(())
}

/// What the gateway lists.
struct View {
    ike_sas: usize,
    id: String,
    spi: String,
    suite: String,
    children: usize,
    child: String,
    child_suite: String,
}

impl View {
    fn of(scene: &Scene) -> Result<Self> {
        let sas = scene.gateway.sas()?;
        let Some(sa) = sas.first() else { bail!("the gateway has no IKE SA") };
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        let child = &sa["children"][0];
        Ok(Self {
            ike_sas: sas.len(),
            id: sa["id"].to_string(),
            spi: text(&sa["spi_i"]),
            suite: text(&sa["suite"]),
            children: sa["children"].as_array().map_or(0, Vec::len),
            child: text(&child["spi_in"]),
            child_suite: text(&child["suite"]),
        })
    }
}
