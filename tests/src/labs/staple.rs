//! OCSP inside IKE (RFC 4806): a client that can ask nobody else gets the answers from the gateway.

use anyhow::{Result, bail};

use super::scene::{Scene, install};
use crate::lab::charon::{Charon, Options};
use crate::lab::gateway::Settings;
use crate::lab::pkitool::P256;
use crate::lab::world::Shape;
use crate::lab::{Lab, next};

/// strongSwan 6 with `ocsp = request` and `revocation = strict`, without any way to fetch.
pub(super) fn ocsp(lab: &Lab) -> Result<()> {
    let scene = Scene::new(lab, Shape::default(), &Settings::default())?;
    let host = scene.world.runner().clone();
    let credentials = scene.enrol(&host, "enrolled", P256)?;
    let options = Options {
        root: Some(next::root()?),
        revocation: Some("ocsp".to_owned()),
        ..Options::default()
    };
    let charon = Charon::start(&host, &options)?;
    install(&charon, &credentials)?;
    let mut connection = scene.connection(&credentials);
    connection.revocation = "strict".to_owned();

    lab.step("without asking in IKE the client knows nothing, and refuses");
    charon.load(&[connection.clone()], "")?;
    if charon.try_initiate("net")?.ok() {
        bail!("a strict client connected although it could ask nobody");
    }

    lab.step("asking in IKE it gets an answer about both certificates");
    connection.extra.push(("ocsp".to_owned(), "request".to_owned()));
    charon.load(&[connection], "")?;
    let before = charon.log().len();
    charon.initiate("net")?;
    let log = charon.log();
    let new = log.get(before..).unwrap_or_default();
    if new.matches("certificate status is good").count() < 2 {
        bail!("strongSwan did not check both certificates: {new}");
    }
    scene.download(&host, 10_000)?;
    charon.terminate("net")?;
    scene.finish()
}
