//! Fetches the public test vectors of path validation: NIST's PKITS, as Debian packages it for
//! Python's cryptography. Nothing is installed. Whether it is the right data the test says.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::run::{Program, target_dir};

/// Has PKITS among much else.
const PACKAGE: &str = "python3-cryptography-vectors";
/// Where in it.
const WITHIN: &str = "usr/lib/python3/dist-packages/cryptography_vectors/x509/PKITS_data";
/// What of it is kept.
const KEPT: [&str; 2] = ["certs", "crls"];

/// Where the test looks for it.
fn folder() -> PathBuf {
    target_dir().join("pkits")
}

/// Fills the folder unless it is filled already.
///
/// # Errors
/// When the package cannot be had.
pub(crate) fn prepare() -> Result<()> {
    let folder = folder();
    if folder.exists() {
        return Ok(());
    }
    println!("Fetching the PKITS test vectors (29 MB) into {}", folder.display());
    let scratch = target_dir().join("pkits.new");
    let _ = fs::remove_dir_all(&scratch);
    fs::create_dir_all(scratch.join("root"))?;
    if download(&scratch).is_err() {
        // A machine that has never fetched the package lists fails the first time.
        Program::system("apt-get").args(["update", "-qq"]).run()?;
        download(&scratch).with_context(|| {
            format!(
                "the test vectors cannot be had: unpack Debian's {PACKAGE} elsewhere and put {} \
                 of its {WITHIN} into {}",
                KEPT.join(" and "),
                folder.display()
            )
        })?;
    }
    let files = fs::read_dir(&scratch)?.flatten().map(|file| file.path());
    let package = files
        .into_iter()
        .find(|path| path.extension().is_some_and(|end| end == "deb"))
        .context("apt-get download left no package")?;
    let root = scratch.join("root");
    let words = ["-x".to_owned(), package.display().to_string(), root.display().to_string()];
    Program::system("dpkg").args(words).run()?;
    let whole = scratch.join("kept");
    fs::create_dir(&whole)?;
    for part in KEPT {
        fs::rename(root.join(WITHIN).join(part), whole.join(part))
            .with_context(|| format!("{PACKAGE} has no {part} in {WITHIN}"))?;
    }
    // Last, so that the folder is there whole or not at all.
    fs::rename(whole, folder)?;
    fs::remove_dir_all(scratch)?;
    Ok(())
}

fn download(to: &Path) -> Result<()> {
    let mut command = Program::system("apt-get").into_command();
    let output = command
        .args(["download", "-qq", PACKAGE])
        .current_dir(to)
        .output()
        .context("cannot start apt-get")?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
