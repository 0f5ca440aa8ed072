//! Clients with certificates of somebody else's CA (protocol scenarios multi-ca, pathlen,
//! crl-revoked, ocsp-signer-cert, ocsp-timeouts-unknown).

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::refusals::expect_refusal;
use super::scene::Scene;
use crate::lab::Lab;
use crate::lab::charon::{Charon, Options};
use crate::lab::gateway::{ID, Settings};
use crate::lab::host::Host;
use crate::lab::http::Shelf;
use crate::lab::pkitool::{Authority, P256, P521, RSA2048};
use crate::lab::responder::Responder;
use crate::lab::swanctl::Connection;
use crate::lab::wait;
use crate::lab::world::{GATEWAY, PRIVATE_NET, Shape};

/// Where the revocation list of the external CA is served.
const LIST: &str = "http://10.20.0.10:8090/corp.crl";
/// Where its OCSP responder listens.
const RESPONDER: &str = "http://10.20.0.10:8888";

/// Enough for whatever must come.
const SOON: Duration = Duration::from_secs(60);

/// The name of a client that has certificates of two CAs.
pub(super) const BOTH: &str = "both.corp.example";

/// Key and certificate of a client.
pub(super) type Pair = (PathBuf, PathBuf);

/// Rules by subject, sub-CAs, path length, lists by HTTP.
pub(super) fn ca(lab: &Lab) -> Result<()> {
    let corp = Authority::new(&lab.path("corp"), "Corp Root", RSA2048)?;
    let other = Authority::new(&lab.path("other"), "Other Root", P256)?;
    let sub = corp.intermediate_with(&lab.path("sub"), "Corp Sub", P521, &["--crl", LIST])?;
    let old = corp.intermediate_with(&lab.path("old"), "Corp Old", P256, &["--crl", LIST])?;
    let words = ["--pathlen", "0", "--crl", LIST];
    let narrow = corp.intermediate_with(&lab.path("narrow"), "Corp Narrow", P256, &words)?;
    let below = narrow.intermediate(&lab.path("below"), "Below Narrow", P256)?;
    let list = ["--crl", LIST];
    let subject = |unit: &str, name: &str| format!("C=CH, O=Corp, OU={unit}, CN={name}");
    let issue = |ca: &Authority, name: &str, unit: &str| {
        ca.issue(name, &subject(unit, name), &format!("{name}.corp.example"), P256, &list)
    };
    let good = issue(&corp, "good", "CI")?;
    let sales = issue(&corp, "sales", "Sales")?;
    let revoked = issue(&corp, "revoked", "CI")?;
    let stranger = issue(&other, "stranger", "CI")?;
    let under_sub =
        sub.issue("undersub", &subject("CI", "undersub"), "undersub.corp.example", P521, &[])?;
    let under_old = issue(&old, "underold", "CI")?;
    let too_long = issue(&below, "toolong", "CI")?;

    let settings = Settings {
        more: format!(
            "\n[[role.match]]\nca = \"corp\"\nsubject = \"C=CH, O=*, OU=CI, CN=*\"\n\n\
             [[ca]]\nname = \"corp\"\ncertificate = \"{}\"\nrevocation = \"soft\"\nrefresh = \"5s\"\n",
            corp.cert.display()
        ),
        ..Settings::default()
    };
    let scene = Scene::new(lab, Shape::default(), &settings)?;
    let corp_list = |certs: &[&Path]| corp.revocation_list(certs).map(String::into_bytes);
    let shelf = Shelf::start(
        &scene.world.private,
        "10.20.0.10:8090".parse()?,
        corp_list(&[&revoked.1, &old.cert])?,
    )?;
    let host = scene.world.runner().clone();
    let charon = Charon::start(&host, &Options::default())?;
    trust_gateway(&scene, &charon, &host)?;
    for (name, ca) in [("corp", &corp), ("other", &other), ("sub", &sub), ("old", &old)] {
        charon.install(&ca.cert, &format!("x509ca/{name}.pem"))?;
    }
    for (name, ca) in [("narrow", &narrow), ("below", &below)] {
        charon.install(&ca.cert, &format!("x509ca/{name}.pem"))?;
    }

    lab.step("a certificate that matches the rule: a lease of the role at the first connection");
    let address = accepted(&scene, &charon, &[("good", &good)])?;
    let lease = lease(&scene, "CN=good")?;
    if lease["door"] != "x509" || lease["role"] != "builder" {
        bail!("odd lease: {lease}");
    }
    lab.step("and the same address at the next");
    if accepted(&scene, &charon, &[("good", &good)])? != address {
        bail!("a reconnection got another address");
    }
    lab.step("a sub-CA sent along, its key and the client's on P-521");
    accepted(&scene, &charon, &[("undersub", &under_sub)])?;

    for (what, name, pair, says) in [
        ("another unit", "sales", &sales, "matches no role"),
        ("another CA", "stranger", &stranger, "none of the trusted roots"),
        ("revoked", "revoked", &revoked, "was revoked at"),
        ("of a revoked sub-CA", "underold", &under_old, "CN=Corp Old was revoked"),
        ("a path too long", "toolong", &too_long, "allows fewer CAs below itself"),
    ] {
        load(&charon, &[(name, pair)])?;
        expect_refusal(&scene, &charon, what, "AUTH_FAILED")?;
        let refusal = scene.gateway.refusals()?.first().cloned().context("no refusal")?;
        if !refusal["what"].as_str().unwrap_or_default().contains(says) {
            bail!("{what}: the refusal does not say `{says}`: {refusal}");
        }
    }

    lab.step("revoked while connected: the tunnel ends when the list says so");
    load(&charon, &[("good", &good)])?;
    charon.initiate("net")?;
    scene.download(&host, 10_000)?;
    let before = charon.log().len();
    shelf.put(corp_list(&[&revoked.1, &old.cert, &good.1])?);
    scene.no_sas(Duration::from_secs(20))?;
    charon.expect_log(before, "received DELETE for IKE_SA", Duration::from_secs(3))?;
    scene.no_download(&host)?;
    scene.finish()
}

/// A responder of OpenSSL with a delegated signer.
pub(super) fn ocsp(lab: &Lab) -> Result<()> {
    let corp = Authority::new(&lab.path("corp"), "Corp Root", P256)?;
    let issue = |name: &str| {
        let san = format!("{name}.corp.example");
        corp.issue(name, &format!("CN={name}"), &san, P256, &["--ocsp", RESPONDER])
    };
    let (good, revoked, unlisted) = (issue("good")?, issue("revoked")?, issue("unlisted")?);
    let (late, silent) = (issue("late")?, issue("silent")?);
    let known = [(&good, false), (&revoked, true), (&silent, false), (&late, false)];
    let known = known.map(|(pair, revoked)| (pair.1.as_path(), revoked));

    let section = |mode: &str| {
        format!(
            "\n[[role.match]]\nca = \"corp\"\nsan = \"*.corp.example\"\n\n[[ca]]\nname = \"corp\"\n\
             certificate = \"{}\"\nrevocation = \"{mode}\"\ntimeout = \"10s\"\n",
            corp.cert.display()
        )
    };
    let settings = Settings { more: section("strict"), ..Settings::default() };
    let scene = Scene::new(lab, Shape { runners: 2, ..Shape::default() }, &settings)?;
    let mut responder = Responder::start(&scene.world.private, &corp, 8888, &known)?;
    let host = scene.world.runner().clone();
    // The gateway's answer may take its time: the client waits for it.
    let patient = Options { retransmit_timeout: 20.0, ..Options::default() };
    let charon = Charon::start(&host, &patient)?;
    trust_gateway(&scene, &charon, &host)?;

    lab.step("good, says the delegated signer");
    accepted(&scene, &charon, &[("good", &good)])?;
    refused(&scene, &charon, "revoked", &revoked, "the OCSP responder http://10.20.0.10:8888")?;
    refused(&scene, &charon, "unlisted", &unlisted, "does not know the certificate")?;

    lab.step("a silent responder holds up nobody else");
    scene.world.private.nft(
        "table ip silent { chain in { type filter hook input priority 0; tcp dport 8888 drop; }\n}",
    )?;
    let other = scene.world.runners.get(1).context("two runners")?.clone();
    let own = scene.enrol(&other, "own", P256)?;
    let second = scene.runner(&other, &own, |_| {})?;
    load(&charon, &[("silent", &silent)])?;
    let from = charon.log().len();
    let (waited, connected) = std::thread::scope(|scope| -> Result<(Duration, Duration)> {
        let stuck = scope.spawn(|| {
            let started = Instant::now();
            let said = charon.try_initiate_within("net", SOON);
            said.map(|said| (said.ok(), started.elapsed()))
        });
        // With its certificate: from then on the gateway waits for the responder.
        charon.expect_log(from, "generating IKE_AUTH request", SOON)?;
        let started = Instant::now();
        second.initiate("net")?;
        let connected = started.elapsed();
        let (accepted, waited) =
            stuck.join().map_err(|_| anyhow::anyhow!("the first client panicked"))??;
        if accepted {
            bail!("a certificate of unknown standing was accepted in strict mode");
        }
        Ok((waited, connected))
    })?;
    lab.step(&format!("refused after {waited:.1?}; the other connected in {connected:.1?}"));
    // Held up, the other would have taken nearly as long.
    if connected > waited / 2 {
        bail!("refused after {waited:?}; the other connected in {connected:?}");
    }
    let refusal = wait::until(lab, "the refusal", SOON, || {
        let newest = scene.gateway.refusals()?.first().cloned();
        Ok(newest.filter(|refusal| refusal["code"] == "certificate_status_unknown"))
    })?;
    if !refusal["what"].as_str().unwrap_or_default().contains("no answer within 10 s") {
        bail!("odd refusal: {refusal}");
    }
    responder.kill()?;

    lab.step("soft: unknown is tolerated");
    let text = fs::read_to_string(scene.gateway.config())?;
    fs::write(scene.gateway.config(), text.replace("\"strict\"", "\"soft\""))?;
    scene.gateway.told(&["reload"])?;
    second.terminate("net")?;
    accepted(&scene, &charon, &[("late", &late)])?;
    scene.finish()
}

/// Our own root, which vouches for the gateway.
pub(super) fn trust_gateway(scene: &Scene, charon: &Charon, host: &Host) -> Result<()> {
    let to = host.dir()?.join("gateway-ca.pem");
    for (number, file) in scene.est()?.ca_certs(host, &to)?.iter().enumerate() {
        charon.install(file, &format!("x509ca/gateway-{number}.pem"))?;
    }
    Ok(())
}

/// Loads one connection that may use these certificates.
pub(super) fn load(charon: &Charon, pairs: &[(&str, &Pair)]) -> Result<()> {
    load_with(charon, pairs, |_| {})
}

/// As [`load`], with a connection that differs.
pub(super) fn load_with(
    charon: &Charon,
    pairs: &[(&str, &Pair)],
    change: impl FnOnce(&mut Connection),
) -> Result<()> {
    let mut files = Vec::new();
    for (name, (key, cert)) in pairs {
        charon.install(key, &format!("private/{name}.pem"))?;
        charon.install(cert, &format!("x509/{name}.pem"))?;
        files.push(format!("{name}.pem"));
    }
    let mut connection = Connection {
        remote_addr: GATEWAY.to_owned(),
        vips: vec!["0.0.0.0".to_owned()],
        cert: files.join(","),
        local_id: if pairs.len() > 1 { BOTH.to_owned() } else { String::new() },
        remote_id: ID.to_owned(),
        remote_ts: PRIVATE_NET.to_owned(),
        ..Connection::default()
    };
    change(&mut connection);
    charon.load(&[connection], "")
}

/// Connects, moves data, disconnects; the virtual address.
pub(super) fn accepted(
    scene: &Scene,
    charon: &Charon,
    pairs: &[(&str, &Pair)],
) -> Result<Vec<String>> {
    load(charon, pairs)?;
    charon.initiate("net")?;
    scene.agree(charon)?;
    scene.download(charon.host(), 10_000)?;
    let addresses = charon.virtual_addresses()?;
    charon.terminate("net")?;
    scene.no_sas(Duration::from_secs(5))?;
    Ok(addresses)
}

pub(super) fn refused(
    scene: &Scene,
    charon: &Charon,
    name: &str,
    pair: &Pair,
    says: &str,
) -> Result<()> {
    load(charon, &[(name, pair)])?;
    expect_refusal(scene, charon, name, "AUTH_FAILED")?;
    let refusal = scene.gateway.refusals()?.first().cloned().context("no refusal")?;
    if !refusal["what"].as_str().unwrap_or_default().contains(says) {
        bail!("{name}: the refusal does not say `{says}`: {refusal}");
    }
    Ok(())
}

/// The newest lease of a subject.
fn lease(scene: &Scene, subject: &str) -> Result<serde_json::Value> {
    let all = scene.gateway.json(&["lease", "list"])?;
    let list = all.as_array().context("the lease list is no list")?;
    let found =
        list.iter().find(|lease| lease["subject"].as_str().unwrap_or_default().contains(subject));
    found.cloned().with_context(|| format!("no lease of {subject} in {all}"))
}
