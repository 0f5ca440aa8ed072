//! Post-quantum preshared keys beside certificates (RFC 8784).

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use anyhow::{Result, bail};

use super::refusals::expect_refusal;
use super::scene::{Credentials, Scene, install};
use super::sites::spis;
use crate::lab::charon::{Charon, Options};
use crate::lab::gateway::Settings;
use crate::lab::pkitool::P256;
use crate::lab::swanctl::Conf;
use crate::lab::world::Shape;
use crate::lab::{Lab, wait};

const ID: &str = "ppk-lab";
const KEY: &str = "0x8f3c1d5e7a9b2c4d6e8f0a1b2c3d4e5f60718293a4b5c6d7e8f9012345678901";

/// Optional first, then required.
pub(super) fn run(lab: &Lab) -> Result<()> {
    let key = lab.path("ppk.key");
    fs::write(&key, format!("{KEY}\n"))?;
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600))?;
    let section = |required: bool| {
        let file = key.display();
        format!("\n[[ppk]]\nid = \"{ID}\"\nfile = \"{file}\"\nrequired = {required}\n")
    };
    let settings = Settings { more: section(false), ..Settings::default() };
    let scene = Scene::new(lab, Shape::default(), &settings)?;
    let host = scene.world.runner().clone();
    let credentials = scene.enrol(&host, "enrolled", P256)?;
    let charon = Charon::start(&host, &Options::default())?;
    install(&charon, &credentials)?;

    lab.step("both have the key");
    connects(&scene, &charon, &credentials, Some((ID, KEY, true)), "using PPK")?;
    lab.step("another name, not required: without it");
    connects(&scene, &charon, &credentials, Some(("other", KEY, false)), "peer didn't use PPK")?;
    lab.step("the client has none");
    connects(&scene, &charon, &credentials, None, "established")?;

    let wrong = "0x00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
    load(&scene, &charon, &credentials, Some((ID, wrong, true)))?;
    expect_refusal(&scene, &charon, "wrong key", "AUTH_FAILED")?;
    code(&scene, "signature_invalid")?;
    load(&scene, &charon, &credentials, Some(("other", KEY, true)))?;
    expect_refusal(&scene, &charon, "unknown name", "AUTH_FAILED")?;
    code(&scene, "unknown_ppk")?;

    lab.step("from now on the gateway requires it");
    let config = fs::read_to_string(scene.gateway.config())?;
    fs::write(scene.gateway.config(), config.replace("required = false", "required = true"))?;
    scene.gateway.told(&["reload"])?;
    connects(&scene, &charon, &credentials, Some((ID, KEY, false)), "using PPK")?;
    load(&scene, &charon, &credentials, None)?;
    expect_refusal(&scene, &charon, "absent though required", "AUTH_FAILED")?;
    code(&scene, "ppk_required")?;
    load(&scene, &charon, &credentials, Some(("other", KEY, false)))?;
    expect_refusal(&scene, &charon, "another key though required", "AUTH_FAILED")?;
    code(&scene, "ppk_required")?;
    scene.finish()
}

type Ppk<'a> = Option<(&'a str, &'a str, bool)>;

/// Loads the connection with a key: name, value, required.
fn load(scene: &Scene, charon: &Charon, credentials: &Credentials, ppk: Ppk<'_>) -> Result<()> {
    let mut connection = scene.connection(credentials);
    let mut secrets = Conf::new();
    if let Some((id, key, required)) = ppk {
        connection.extra.push(("ppk_id".to_owned(), id.to_owned()));
        let required = if required { "yes" } else { "no" };
        connection.extra.push(("ppk_required".to_owned(), required.to_owned()));
        secrets = secrets
            .section("secrets", |s| s.section("ppk-lab", |k| k.set("id", id).set("secret", key)));
    }
    charon.load(&[connection], secrets.text())
}

/// Connects, and rekeys child and IKE SA with what was mixed in, which both ends then have;
/// strongSwan must say `says`.
fn connects(
    scene: &Scene,
    charon: &Charon,
    credentials: &Credentials,
    ppk: Ppk<'_>,
    says: &str,
) -> Result<()> {
    load(scene, charon, credentials, ppk)?;
    let before = charon.log().len();
    charon.initiate("net")?;
    let host = charon.host().clone();
    scene.download(&host, 10_000)?;
    let log = charon.log();
    let log = log.get(before..).unwrap_or_default();
    if !log.contains(says) {
        bail!("strongSwan does not say `{says}`:\n{log}");
    }
    for what in ["--child", "--ike"] {
        let (ike, child) = spis(&scene.gateway)?;
        let said = charon.swanctl(&["--rekey", what, "net"])?;
        if !said.ok() {
            bail!("the rekey failed: {}", said.all());
        }
        wait::holds(&scene.lab, "the rekey at both ends", Duration::from_secs(5), || {
            Ok(spis(&scene.gateway).is_ok_and(|(new_ike, new_child)| {
                if what == "--ike" { new_ike != ike } else { new_child != child }
            }))
        })?;
        scene.settle(charon)?;
        scene.download(&host, 10_000)?;
    }
    charon.terminate("net")?;
    scene.no_sas(Duration::from_secs(5))
}

fn code(scene: &Scene, code: &str) -> Result<()> {
    match scene.gateway.refusals()?.first() {
        Some(newest) if newest["code"] == code => Ok(()),
        other => bail!("expected a refusal `{code}`, found {other:?}"),
    }
}
