//! What openssl says of the gateway's certificates, lists and OCSP answers.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};

use super::scene::Scene;
use crate::lab::world::GATEWAY;
use crate::lab::{Lab, cmd, wait};

/// A path for a command line.
pub(super) fn text(path: &Path) -> String {
    path.display().to_string()
}

/// The certificate of the CA that issues now.
pub(super) fn issuing_cert(lab: &Lab, scene: &Scene) -> Result<PathBuf> {
    let path = lab.path("issuing-now.pem");
    let url = format!("http://{GATEWAY}:8080/issuing.pem");
    fetch(scene, &url, &path)?;
    Ok(path)
}

fn fetch(scene: &Scene, url: &str, to: &Path) -> Result<()> {
    let host = scene.world.runner();
    let got = cmd::output(host.command("curl").args(["-sSf", "-o"]).arg(to).arg(url))?;
    if !got.ok() {
        bail!("{url} is not served: {}", got.all());
    }
    Ok(())
}

/// `openssl verify -crl_check_all` agrees that the certificate is good, or that it is revoked.
pub(super) fn verify(lab: &Lab, scene: &Scene, cert: &Path, good: bool) -> Result<()> {
    let issuing = issuing_cert(lab, scene)?;
    let root = lab.path("root.pem");
    fs::write(&root, scene.gateway.told(&["ca", "root"])?)?;
    let lists = lab.path("lists.pem");
    let list = scene.gateway.told(&["ca", "crl"])?;
    fs::write(&lists, list + &scene.gateway.told(&["ca", "crl", "--of", "root"])?)?;
    let said = cmd::output(Command::new("openssl").args([
        "verify",
        "-crl_check_all",
        "-CAfile",
        &text(&root),
        "-untrusted",
        &text(&issuing),
        "-CRLfile",
        &text(&lists),
        &text(cert),
    ]))?;
    let as_wanted = if good { said.ok() } else { said.all().contains("certificate revoked") };
    if !as_wanted {
        bail!("openssl verify (wanted: {}): {}", if good { "good" } else { "revoked" }, said.all());
    }
    Ok(())
}

/// The gateway's OCSP answer, by `openssl ocsp`.
pub(super) fn ocsp(lab: &Lab, scene: &Scene, cert: &Path, wanted: &str) -> Result<()> {
    let (issuing, root) = (issuing_cert(lab, scene)?, lab.path("root.pem"));
    let host = scene.world.runner();
    wait::holds(lab, "the OCSP answer", Duration::from_secs(5), || {
        let said = cmd::output(host.command("openssl").args([
            "ocsp",
            "-issuer",
            &text(&issuing),
            "-cert",
            &text(cert),
            "-CAfile",
            &text(&root),
            "-verify_other",
            &text(&issuing),
            "-url",
            &format!("http://{GATEWAY}:8080/ocsp"),
        ]))?;
        let all = said.all();
        if !said.ok() || !all.contains("Response verify OK") {
            bail!("openssl ocsp: {all}");
        }
        Ok(all.contains(&format!(": {wanted}")))
    })
}
