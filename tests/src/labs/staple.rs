//! OCSP inside IKE (RFC 4806): a client that can ask nobody else gets the answers from the gateway.

use std::time::Duration;

use anyhow::{Result, bail};
use serde_json::Value;

use super::external::{load_with, trust_gateway};
use super::refusals::expect_refusal;
use super::scene::{Scene, install};
use crate::lab::charon::{Charon, Options};
use crate::lab::gateway::Settings;
use crate::lab::pkitool::{Authority, P256};
use crate::lab::responder::Responder;
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
    scene.agree(&charon)?;
    let log = charon.log();
    let new = log.get(before..).unwrap_or_default();
    if new.matches("certificate status is good").count() < 2 {
        bail!("strongSwan did not check both certificates: {new}");
    }
    scene.download(&host, 10_000)?;
    charon.terminate("net")?;
    scene.finish()
}

/// The client brings the answer about its own certificate, of a CA whose responder the gateway
/// cannot reach, and asks for those about the gateway's, whose service the client cannot reach.
pub(super) fn both(lab: &Lab) -> Result<()> {
    /// On the router between both, which keeps the gateway from it.
    const RESPONDER: &str = "198.51.100.1:8888";
    let corp = Authority::new(&lab.path("corp"), "Corp Root", P256)?;
    let url = format!("http://{RESPONDER}");
    let job = corp.issue("job", "CN=job", "job.corp.example", P256, &["--ocsp", &url])?;
    let more = format!(
        "\n[[role.match]]\nca = \"corp\"\nsan = \"*.corp.example\"\n\n[[ca]]\nname = \"corp\"\n\
         certificate = \"{}\"\nrevocation = \"strict\"\ntimeout = \"1s\"\n",
        corp.cert.display()
    );
    let scene = Scene::new(lab, Shape::default(), &Settings { more, ..Settings::default() })?;
    let host = scene.world.runner().clone();
    scene.world.internet.nft(
        "table ip kept { chain out { type filter hook input priority 0; \
         ip saddr 203.0.113.2 tcp dport 8888 reject with tcp reset; }\n\
         chain past { type filter hook forward priority 0; \
         tcp dport 8080 reject with tcp reset; }\n}",
    )?;
    let mut responder = Responder::start(&scene.world.internet, &corp, 8888, &[(&job.1, false)])?;
    let options = Options { root: Some(next::root()?), fetch: true, ..Options::default() };
    let charon = Charon::start(&host, &options)?;
    trust_gateway(&scene, &charon, &host)?;
    charon.install(&corp.cert, "x509ca/corp.pem")?;
    let load = |name: &str, ocsp: &str| {
        load_with(&charon, &[("job", &job)], |connection| {
            connection.name = name.to_owned();
            if name == "beside" {
                // What differs makes strongSwan begin an IKE SA of its own.
                connection.ike = "aes128gcm16-prfsha256-ecp256".to_owned();
            }
            connection.extra.push(("ocsp".to_owned(), ocsp.to_owned()));
            if ocsp == "both" {
                connection.revocation = "strict".to_owned();
            }
        })
    };

    load("net", "never")?;
    expect_refusal(&scene, &charon, "nobody vouches for the client", "AUTH_FAILED")?;
    refused_for(&scene, "certificate_status_unknown", "nobody says")?;

    lab.step("each brings what the other asks for");
    load("net", "both")?;
    let before = charon.log().len();
    charon.initiate("net")?;
    scene.agree(&charon)?;
    scene.download(&host, 10_000)?;
    let log = charon.log();
    let new = log.get(before..).unwrap_or_default();
    if !new.contains("sending OCSP status for certificate \"CN=job\"")
        || new.matches("certificate status is good").count() < 2
    {
        bail!("strongSwan did not answer, or did not check both certificates: {new}");
    }

    lab.step("it connects once more with an answer that says revoked: that ends its tunnel, too");
    responder.serve(&[(&job.1, true)])?;
    charon.swanctl(&["--flush-certs"])?;
    load("beside", "both")?;
    let before = charon.log().len();
    if charon.try_initiate("beside")?.ok() {
        bail!("a certificate that its client shows to be revoked was accepted");
    }
    let soon = Duration::from_secs(5);
    charon.expect_log(before, "received AUTHENTICATION_FAILED notify error", soon)?;
    charon.expect_log(before, "received DELETE for IKE_SA net", soon)?;
    scene.no_sas(soon)?;
    scene.no_download(&host)?;
    refused_for(&scene, "certificate_revoked", "says the answer the peer brought along")?;
    scene.finish()
}

/// The newest refusal has this code and says this.
fn refused_for(scene: &Scene, code: &str, says: &str) -> Result<()> {
    let said = |refusal: &Value| refusal["what"].as_str().is_some_and(|what| what.contains(says));
    match scene.gateway.refusals()?.first() {
        Some(newest) if newest["code"] == code && said(newest) => Ok(()),
        other => bail!("expected a refusal `{code}`, found {other:?}"),
    }
}
