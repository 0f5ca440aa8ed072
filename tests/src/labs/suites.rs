//! Tables of certificate types and of IKE and ESP suites, each with real traffic.

use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::refusals::expect_refusal;
use super::scene::{Credentials, Scene};
use crate::lab::Lab;
use crate::lab::capture::Capture;
use crate::lab::charon::{Charon, Options};
use crate::lab::gateway::{ID, Settings};
use crate::lab::host::Host;
use crate::lab::pkitool::{ED25519, KeyType, P256, P384, P521, RSA2048};
use crate::lab::swanctl::Connection;
use crate::lab::world::Shape;

/// Bytes downloaded with each combination.
const PROBE: u64 = 200_000;

/// IKE suites as strongSwan writes them, and words that `sa list` must show for each.
const IKE_SUITES: [(&str, &[&str]); 13] = [
    ("aes256gcm16-prfsha256-x25519", &["aes256gcm16", "x25519"]),
    ("aes128gcm16-prfsha256-ecp256", &["aes128gcm16", "ecp256"]),
    ("aes256gcm16-prfsha384-ecp384", &["aes256gcm16", "prfsha384", "ecp384"]),
    ("chacha20poly1305-prfsha256-x25519", &["chacha20poly1305", "x25519"]),
    ("aes256-sha256-x25519", &["aes256", "sha256", "x25519"]),
    ("aes256-sha256-ecp256", &["aes256", "sha256", "ecp256"]),
    ("aes256gcm16-prfsha512-ecp384", &["aes256gcm16", "prfsha512", "ecp384"]),
    ("aes256gcm16-prfsha256-modp2048", &["modp2048"]),
    ("aes256gcm16-prfsha256-modp3072", &["modp3072"]),
    ("aes256gcm16-prfsha256-modp4096", &["modp4096"]),
    ("aes256gcm16-prfsha256-ecp521", &["ecp521"]),
    ("aes256-sha512-ecp256", &["aes256", "sha512", "prfsha512"]),
    ("aes128-sha256-modp2048", &["aes128", "sha256", "modp2048"]),
];

/// IKE suites that a gateway takes when it is told to.
const BY_CONFIGURATION: [(&str, &[&str]); 5] = [
    ("aes128gcm12-prfsha256-x25519", &["aes128gcm12"]),
    ("aes256gcm8-prfsha256-x25519", &["aes256gcm8"]),
    ("aes192gcm16-prfsha256-x25519", &["aes192gcm16"]),
    ("aes192-sha256-x25519", &["aes192", "sha256"]),
    ("aes256-sha384-ecp384", &["aes256", "sha384", "prfsha384"]),
];

const ESP_SUITES: [&str; 7] = [
    "aes256gcm16",
    "aes128gcm16",
    "chacha20poly1305",
    "aes256-sha256",
    "aes128-sha256",
    "aes256-sha384",
    "aes256-sha512",
];

/// Every kind of client key, with RFC 7427 and with classic signatures.
pub(super) fn certificates(lab: &Lab) -> Result<()> {
    /// A key type, whether strongSwan may use RFC 7427, and the scheme it then names as its own.
    const TABLE: [(KeyType, bool, &str); 8] = [
        (P256, true, "ECDSA_WITH_SHA256_DER"),
        (P384, true, "ECDSA_WITH_SHA384_DER"),
        (RSA2048, true, "RSA_EMSA_PKCS1_SHA2_256"),
        (ED25519, true, "ED25519"),
        (P256, false, "ECDSA-256 signature"),
        (P384, false, "ECDSA-384 signature"),
        (P521, true, "ECDSA_WITH_SHA512_DER"),
        (P521, false, "ECDSA-521 signature"),
    ];
    let scene = Scene::new(lab, Shape::default(), &Settings::default())?;
    let host = scene.world.runner().clone();
    for (number, (key, rfc7427, own)) in TABLE.into_iter().enumerate() {
        let style = if rfc7427 { "RFC 7427" } else { "classic" };
        lab.step(&format!("{} {} with {style} signatures", key.kind, key.bits));
        let credentials = scene.enrol(&host, &format!("key{number}"), key)?;
        let options = Options { signature_authentication: rfc7427, ..Options::default() };
        let mut charon = Charon::start(&host, &options)?;
        scene.load(&charon, &credentials, |_| {})?;
        let before = charon.log().len();
        charon.initiate("net").with_context(|| format!("{key:?} {style}"))?;
        let gateways = if rfc7427 { "ECDSA_WITH_SHA256_DER" } else { "ECDSA-256 signature" };
        signed(&charon, before, own, gateways)?;
        scene.agree(&charon)?;
        scene.download(&host, PROBE)?;
        if key == P521 {
            renewed(&scene, &host, &credentials)?;
        }
        charon.terminate("net")?;
        scene.no_sas(Duration::from_secs(5))?;
        charon.stop()?;
    }
    lab.step("classic RSA signs with SHA-1: refused, and the operator is told why");
    let credentials = scene.enrol(&host, "sha1", RSA2048)?;
    let options = Options { signature_authentication: false, ..Options::default() };
    let charon = Charon::start(&host, &options)?;
    scene.load(&charon, &credentials, |_| {})?;
    expect_refusal(&scene, &charon, "classic RSA", "AUTH_FAILED")?;
    let refusals = scene.gateway.refusals()?;
    let what = refusals.first().context("no refusal")?["what"].as_str().unwrap_or_default();
    if !what.contains("SHA-1") {
        bail!("the refusal of a SHA-1 signature does not name SHA-1: {what}");
    }
    scene.finish()
}

/// What strongSwan says of both signatures: its own, which the gateway took, and the gateway's.
fn signed(charon: &Charon, from: usize, own: &str, gateways: &str) -> Result<()> {
    let log = charon.log();
    let said: Vec<&str> = log
        .get(from..)
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.split_once("authentication of ").map(|(_, rest)| rest))
        .collect();
    let ours = format!("(myself) with {own} successful");
    let theirs = format!("'{ID}' with {gateways} successful");
    match said.as_slice() {
        [first, second] if first.ends_with(&ours) && *second == theirs => Ok(()),
        _ => bail!("expected `{ours}` and `{theirs}`, strongSwan says {said:?}"),
    }
}

/// The old certificate's key authenticates the request for the next one in TLS.
fn renewed(scene: &Scene, host: &Host, credentials: &Credentials) -> Result<()> {
    let Credentials { request, cert, key, .. } = credentials;
    let said = scene.est()?.renew(host, request, cert, key)?;
    if !said.ok() || !said.out.contains("BEGIN CERTIFICATE") {
        bail!("pki --est does not renew: {}", said.all());
    }
    Ok(())
}

/// Every IKE suite.
pub(super) fn ike(lab: &Lab) -> Result<()> {
    let scene = Scene::new(lab, Shape::default(), &Settings::default())?;
    let connects = |(suite, words): (&str, &[&str])| {
        lab.step(suite);
        attempt(
            &scene,
            |c| c.ike = suite.to_owned(),
            |sa| {
                let shown = sa["suite"].as_str().unwrap_or_default().to_lowercase();
                words.iter().all(|word| shown.contains(word))
            },
        )
        .with_context(|| format!("IKE suite {suite}"))
    };
    IKE_SUITES.into_iter().try_for_each(connects)?;
    let proposals = BY_CONFIGURATION.map(|(suite, _)| suite);
    let ike = format!("proposals = {proposals:?}");
    scene.gateway.reload(&Settings { ike, ..Settings::default() })?;
    BY_CONFIGURATION.into_iter().try_for_each(connects)?;
    scene.finish()
}

/// Every ESP suite.
pub(super) fn esp(lab: &Lab) -> Result<()> {
    let scene = Scene::new(lab, Shape::default(), &Settings::default())?;
    for suite in ESP_SUITES {
        lab.step(suite);
        attempt(
            &scene,
            |c| c.esp = suite.to_owned(),
            |sa| {
                let shown = sa["children"][0]["suite"].as_str().unwrap_or_default().to_lowercase();
                suite.split('-').all(|word| shown.contains(word))
            },
        )
        .with_context(|| format!("ESP suite {suite}"))?;
    }
    scene.finish()
}

/// IKE_SA_INIT asked for again: another group (INVALID_KE_PAYLOAD), and a cookie.
pub(super) fn init_retries(lab: &Lab) -> Result<()> {
    let settings = Settings {
        ike: "proposals = [\"aes256gcm16-prfsha256-x25519\"]\ncookie_threshold = 0".to_owned(),
        ..Settings::default()
    };
    let scene = Scene::new(lab, Shape::default(), &settings)?;
    let mut capture = Capture::start(&scene.world.internet, "east", "udp port 500")?;
    // strongSwan guesses the first group it lists; the gateway allows only the second.
    let suite = "aes256gcm16-prfsha256-ecp384-x25519";
    attempt(&scene, |c| c.ike = suite.to_owned(), |_| true)?;
    capture.stop()?;
    let requests = capture.count("src host 198.51.100.10")?;
    if requests < 3 {
        bail!("{requests} IKE_SA_INIT requests seen; a cookie and another group need three");
    }
    scene.finish()
}

/// Connects once with a changed connection, moves data, checks what `sa list` shows, disconnects.
fn attempt(
    scene: &Scene,
    change: impl FnOnce(&mut Connection),
    check: impl FnOnce(&serde_json::Value) -> bool,
) -> Result<()> {
    let host = scene.world.runner().clone();
    let credentials = scene.enrol(&host, "attempt", P256)?;
    let mut charon = scene.runner(&host, &credentials, change)?;
    charon.initiate("net")?;
    scene.agree(&charon)?;
    scene.download(&host, PROBE)?;
    let sas = scene.gateway.sas()?;
    let [sa] = sas.as_slice() else { bail!("expected one IKE SA: {sas:?}") };
    if !check(sa) {
        bail!("`sa list` shows another suite: {sa}");
    }
    charon.terminate("net")?;
    scene.no_sas(Duration::from_secs(5))?;
    charon.stop()
}
