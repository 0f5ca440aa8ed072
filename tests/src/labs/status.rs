//! Certificate status as others see it: the revocation lists and OCSP over plain HTTP, judged by
//! OpenSSL and by a strongSwan that insists on it.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::scene::{Scene, install};
use crate::lab::charon::{Charon, Options};
use crate::lab::gateway::{ID, Settings};
use crate::lab::pkitool::{P256, with_hosts};
use crate::lab::world::Shape;
use crate::lab::{Lab, cmd, wait};

/// Where the status service listens, as certificates name it.
const STATUS: &str = "http://gw.example.com:8080";

/// `openssl ocsp` with POST and with GET; strongSwan with `revocation = strict` accepts the
/// gateway by OCSP alone and by lists alone; after the revocation the answer is `revoked`.
pub(super) fn ocsp(lab: &Lab) -> Result<()> {
    let scene = Scene::new(lab, Shape::default(), &Settings::default())?;
    let host = scene.world.runner().clone();
    let credentials = scene.enrol(&host, "enrolled", P256)?;
    let est = scene.est()?;
    let files = lab.path("status");
    fs::create_dir_all(&files)?;
    let on_runner = |words: &[&str]| {
        let mut command = with_hosts(&host, &est.hosts);
        command.args(words);
        cmd::output(&mut command)
    };
    let text = |path: &Path| path.display().to_string();
    for name in ["root.pem", "issuing.pem"] {
        let to = text(&files.join(name));
        let said = on_runner(&["curl", "-sSf", "-o", &to, &format!("{STATUS}/{name}")])?;
        if !said.ok() {
            bail!("{name} is not served: {}", said.all());
        }
    }
    let (root, issuing) = (text(&files.join("root.pem")), text(&files.join("issuing.pem")));
    let cert = text(&credentials.cert);
    let bundle = text(&files.join("bundle.pem"));
    fs::write(&bundle, fs::read_to_string(&root)? + &fs::read_to_string(&issuing)?)?;
    let url = format!("{STATUS}/ocsp");
    let ask = |issuer: &str, cert: &str, more: &[&str]| -> Result<String> {
        let mut words = vec!["openssl", "ocsp"];
        words.extend(more);
        words.extend(["-issuer", issuer, "-cert", cert, "-url", &url, "-CAfile", &bundle]);
        let said = on_runner(&words)?;
        if !said.all().contains("Response verify OK") {
            bail!("openssl does not accept the answer: {}", said.all());
        }
        if said.all().contains("WARNING") {
            bail!("openssl frowns at the answer: {}", said.all());
        }
        Ok(said.out)
    };

    for more in [&["-nonce", "-sha1"][..], &["-no_nonce", "-sha256"]] {
        lab.step(&format!("POST {}: good", more.join(" ")));
        expect(&ask(&issuing, &cert, more)?, "cert.pem: good")?;
    }
    lab.step("the root about the issuing CA: good");
    expect(&ask(&root, &issuing, &["-nonce", "-sha1"])?, "issuing.pem: good")?;

    lab.step("GET: good, and a cache may keep it for a minute");
    let request = text(&files.join("request.der"));
    cmd::run(
        "openssl",
        &["ocsp", "-issuer", &issuing, "-cert", &cert, "-no_nonce", "-reqout", &request],
    )?;
    let encoded = cmd::run("openssl", &["base64", "-A", "-in", &request])?;
    let encoded = encoded.trim().replace('+', "%2B").replace('/', "%2F").replace('=', "%3D");
    let (answer, header) = (text(&files.join("answer.der")), text(&files.join("header")));
    let said =
        on_runner(&["curl", "-sSf", "-D", &header, "-o", &answer, &format!("{url}/{encoded}")])?;
    if !said.ok() {
        bail!("GET is not answered: {}", said.all());
    }
    let header = fs::read_to_string(&header)?.to_ascii_lowercase();
    expect(&header, "content-type: application/ocsp-response")?;
    expect(&header, "cache-control: max-age=")?;
    let printed = cmd::output(
        std::process::Command::new("openssl")
            .args(["ocsp", "-no_nonce", "-issuer", &issuing, "-cert", &cert])
            .args(["-respin", &answer, "-CAfile", &bundle]),
    )?;
    expect(&printed.all(), "Response verify OK")?;
    expect(&printed.all(), "cert.pem: good")?;

    for (what, options, log) in
        [("OCSP", "ocsp", "ocsp response is valid"), ("the lists", "crl", "crl is valid")]
    {
        lab.step(&format!("strongSwan with revocation = strict accepts the gateway by {what}"));
        strict(&scene, &credentials, options, log)?;
    }

    lab.step("revoked: the answer says so at once, and so does the list");
    scene.gateway.json(&["cert", "revoke", &credentials.serial, "--reason", "key-compromise"])?;
    let said = ask(&issuing, &cert, &["-no_nonce", "-sha1"])?;
    expect(&said, "cert.pem: revoked")?;
    expect(&said, "keyCompromise")?;
    let mut lists = String::new();
    for name in ["issuing", "root"] {
        let der = text(&files.join(format!("{name}.crl")));
        let said = on_runner(&["curl", "-sSf", "-o", &der, &format!("{STATUS}/crl/{name}.crl")])?;
        if !said.ok() {
            bail!("the list of the {name} CA is not served: {}", said.all());
        }
        lists.push_str(&cmd::run("openssl", &["crl", "-inform", "der", "-in", &der])?);
    }
    let crls = text(&files.join("crls.pem"));
    fs::write(&crls, lists)?;
    let said = cmd::output(
        std::process::Command::new("openssl")
            .args(["verify", "-crl_check_all", "-CAfile", &root, "-untrusted", &issuing])
            .args(["-CRLfile", &crls, &cert]),
    )?;
    expect(&said.all(), "certificate revoked")?;

    lab.step("the gateway's own certificate revoked: replaced at once, and strict clients connect");
    let other = scene.enrol(&host, "other", P256)?;
    let revoked = own_serial(&scene)?;
    scene.gateway.json(&["cert", "revoke", &revoked])?;
    let listed = scene.gateway.json(&["cert", "list", "--all"])?;
    let entries = listed.as_array().into_iter().flatten();
    let mut old = entries.filter(|cert| cert["serial"] == *revoked);
    if !old.all(|cert| cert["state"] == "revoked") {
        bail!("the revoked certificate is not listed as revoked: {listed}");
    }
    wait::holds(lab, "another certificate of the gateway", Duration::from_secs(45), || {
        Ok(own_serial(&scene).is_ok_and(|now| now != revoked))
    })?;
    strict(&scene, &other, "ocsp", "ocsp response is valid")?;
    scene.finish()
}

/// Serial of the gateway's own certificate.
fn own_serial(scene: &Scene) -> Result<String> {
    let all = scene.gateway.json(&["cert", "list"])?;
    let own = all.as_array().into_iter().flatten().find(|cert| {
        cert["subject"].as_str().unwrap_or_default().contains(ID) && cert["state"] != "revoked"
    });
    let serial = own.and_then(|cert| cert["serial"].as_str());
    Ok(serial
        .with_context(|| format!("the gateway's certificate is not listed: {all}"))?
        .to_owned())
}

/// A strongSwan that fetches and insists. `enable` is the one way it may learn a status.
fn checking(
    scene: &Scene,
    credentials: &super::scene::Credentials,
    enable: &str,
) -> Result<Charon> {
    let host = scene.world.runner();
    let options = Options {
        fetch: true,
        hosts: Some(scene.est()?.hosts),
        revocation: Some(enable.to_owned()),
        ..Options::default()
    };
    let charon = Charon::start(host, &options)?;
    install(&charon, credentials)?;
    let mut connection = scene.connection(credentials);
    connection.revocation = "strict".to_owned();
    charon.load(&[connection], "")?;
    Ok(charon)
}

fn strict(
    scene: &Scene,
    credentials: &super::scene::Credentials,
    enable: &str,
    log: &str,
) -> Result<()> {
    let mut charon = checking(scene, credentials, enable)?;
    charon.initiate("net")?;
    // One for the gateway, one for the issuing CA.
    if charon.log().matches(log).count() < 2 {
        bail!("strongSwan did not check both certificates: {}", scene.lab.tails());
    }
    scene.download(scene.world.runner(), 10_000)?;
    charon.terminate("net")?;
    scene.no_sas(Duration::from_secs(5))?;
    charon.stop()
}

fn expect(text: &str, word: &str) -> Result<()> {
    if !text.contains(word) {
        bail!("`{word}` is not in: {text}");
    }
    Ok(())
}
