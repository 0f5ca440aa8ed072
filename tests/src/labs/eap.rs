//! Clients that prove their certificate with EAP-TLS (RFC 5216, RFC 5998).

use std::fs;
use std::time::Duration;

use anyhow::{Result, bail};

use super::refusals::expect_refusal;
use super::scene::{Credentials, Scene, install};
use crate::lab::Lab;
use crate::lab::charon::{Charon, Options};
use crate::lab::gateway::Settings;
use crate::lab::pkitool::{Authority, P256, P521, RSA4096};
use crate::lab::swanctl::Connection;
use crate::lab::world::Shape;

/// TLS octets in one EAP response of the client: its chain takes several.
const FRAGMENT: u32 = 300;

/// EAP-only and after a signature of the gateway's; fragments both ways; the same rules for leases
/// as without EAP.
pub(super) fn run(lab: &Lab) -> Result<()> {
    let settings =
        Settings { ike: "eap_tls = true\neap_only = true".to_owned(), ..Settings::default() };
    let scene = Scene::new(lab, Shape::default(), &settings)?;
    let host = scene.world.runner().clone();
    let credentials = scene.enrol(&host, "enrolled", P256)?;
    let options = Options { eap_tls: Some(FRAGMENT), ..Options::default() };
    let charon = Charon::start(&host, &options)?;
    install(&charon, &credentials)?;

    lab.step("EAP-only: both sides are proven by TLS alone");
    load(&scene, &charon, &credentials, "eap-tls", |_| {})?;
    let before = charon.log().len();
    charon.initiate("net")?;
    scene.agree(&charon)?;
    scene.download(&host, 10_000)?;
    expect(&charon, before, "EAP method EAP_TLS succeeded, MSK established")?;
    let log = charon.log();
    let log = log.get(before..).unwrap_or_default();
    let rounds = log.matches("EAP/RES/TLS").count();
    if rounds < 6 {
        bail!("only {rounds} EAP responses: nothing was sent in fragments");
    }
    if log.contains("authentication of 'gw.example.com' with ECDSA") {
        bail!("the gateway signed, though EAP alone was asked for");
    }
    scene.lease_in_state("active", || scene.gateway.lease(&credentials.serial))?;
    charon.terminate("net")?;

    lab.step("a key on P-521, with which this client's TLS stops at 1.2");
    let p521 = scene.enrol(&host, "p521", P521)?;
    install(&charon, &p521)?;
    load(&scene, &charon, &p521, "eap-tls", |_| {})?;
    charon.initiate("net")?;
    scene.agree(&charon)?;
    scene.download(&host, 10_000)?;
    charon.terminate("net")?;

    lab.step("a large key: more fragments");
    let large = scene.enrol(&host, "large", RSA4096)?;
    install(&charon, &large)?;
    load(&scene, &charon, &large, "eap-tls", |_| {})?;
    charon.initiate("net")?;
    scene.download(&host, 10_000)?;
    charon.terminate("net")?;

    install(&charon, &credentials)?;
    lab.step("the gateway signs first");
    change(&scene, "eap_only = true", "eap_only = false")?;
    load(&scene, &charon, &credentials, "pubkey", |_| {})?;
    let before = charon.log().len();
    charon.initiate("net")?;
    scene.download(&host, 10_000)?;
    expect(&charon, before, "authentication of 'gw.example.com' with ECDSA")?;
    expect(&charon, before, "EAP method EAP_TLS succeeded, MSK established")?;
    charon.terminate("net")?;

    change(&scene, "eap_only = false", "eap_only = true")?;

    load(&scene, &charon, &credentials, "eap-tls", |c| {
        c.local_id = "somebody-else.example.com".to_owned();
    })?;
    refused(&scene, &charon, "no certificate for the identity", "eap_tls")?;

    let foreign = Authority::new(&lab.path("foreign"), "Foreign CA", P256)?;
    let (key, cert) = foreign.issue("runner", "CN=runner", "runner.example.com", P256, &[])?;
    charon.install(&key, "private/foreign.pem")?;
    charon.install(&cert, "x509/foreign.pem")?;
    charon.install(&foreign.cert, "x509ca/foreign.pem")?;
    load(&scene, &charon, &credentials, "eap-tls", |c| {
        c.cert = "foreign.pem".to_owned();
        c.local_id = "runner.example.com".to_owned();
    })?;
    refused(&scene, &charon, "wrong CA", "unknown_issuer")?;

    lab.step("revocation ends the tunnel, and the certificate is refused");
    load(&scene, &charon, &credentials, "eap-tls", |_| {})?;
    charon.initiate("net")?;
    scene.gateway.told(&["cert", "revoke", &credentials.serial])?;
    scene.no_sas(Duration::from_secs(3))?;
    refused(&scene, &charon, "revoked", "revoked")?;

    lab.step("turned off");
    change(&scene, "eap_tls = true", "eap_tls = false")?;
    refused(&scene, &charon, "not offered", "eap_not_offered")?;
    scene.finish()
}

/// Changes the gateway's configuration while it runs.
fn change(scene: &Scene, from: &str, to: &str) -> Result<()> {
    let config = fs::read_to_string(scene.gateway.config())?;
    fs::write(scene.gateway.config(), config.replace(from, to))?;
    scene.gateway.told(&["reload"]).map(drop)
}

/// Loads the connection `net`, with EAP-TLS on our side.
fn load(
    scene: &Scene,
    charon: &Charon,
    credentials: &Credentials,
    remote_auth: &str,
    change: impl FnOnce(&mut Connection),
) -> Result<()> {
    let mut connection = scene.connection(credentials);
    connection.local_auth = "eap-tls".to_owned();
    connection.remote_auth = remote_auth.to_owned();
    change(&mut connection);
    charon.load(&[connection], "")
}

fn refused(scene: &Scene, charon: &Charon, what: &str, code: &str) -> Result<()> {
    expect_refusal(scene, charon, what, "AUTH_FAILED")?;
    match scene.gateway.refusals()?.first() {
        Some(newest) if newest["code"] == code => Ok(()),
        other => bail!("{what}: expected a refusal `{code}`, found {other:?}"),
    }
}

fn expect(charon: &Charon, from: usize, text: &str) -> Result<()> {
    charon.expect_log(from, text, Duration::from_secs(1))
}
