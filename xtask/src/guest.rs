//! Fills the folder from which kernel labs boot: a kernel with ESP and the programs to run in it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::packages;
use crate::run::{Program, target_dir};

/// Labs whose name begins so run in the guest.
pub(crate) const PREFIX: &str = "kernel-";

/// Tells the labs where the folder is.
pub(crate) const VARIABLE: &str = "RUNNEL_GUEST_DIR";

/// Names Debian's kernel of today.
const META_PACKAGE: &str = "linux-image-amd64";

/// Integration tests of the `xfrm` crate that the guest runs again.
const TESTS: [&str; 4] = ["conformance", "kernel_esp", "kernel_route", "nft_filter"];

/// The folder.
pub(crate) fn folder() -> PathBuf {
    target_dir().join("guest")
}

/// Gets everything a boot needs except the programs of this workspace.
///
/// # Errors
/// When a package cannot be had.
pub(crate) fn prepare() -> Result<()> {
    if std::env::consts::ARCH != "x86_64" {
        bail!("kernel labs boot an x86_64 guest; this machine is {}", std::env::consts::ARCH);
    }
    packages::install(packages::GUEST)?;
    let kernel = folder().join("kernel");
    if kernel.join("complete").exists() {
        return Ok(());
    }
    let package = fetch(&folder().join("download"))?;
    // Unpacked, not installed: its installation scripts are slow and of no use to a guest.
    let _ = fs::remove_dir_all(&kernel);
    fs::create_dir_all(&kernel)?;
    let root = kernel.display().to_string();
    Program::system("dpkg").args(["-x", &package.display().to_string(), &root]).run()?;
    let modules = fs::read_dir(kernel.join("lib/modules"))?.flatten().next();
    let version = modules.context("the kernel package has no modules")?.file_name();
    Program::system("depmod").args(["-b", &root, &version.to_string_lossy()]).run()?;
    fs::write(kernel.join("complete"), b"")?;
    fs::remove_file(package)?;
    Ok(())
}

/// Downloads the package that Debian's meta-package names today.
fn fetch(into: &Path) -> Result<PathBuf> {
    fs::create_dir_all(into)?;
    let ask = || Program::system("apt-cache").args(["depends", META_PACKAGE]).output();
    let mut said = ask().unwrap_or_default();
    if dependency(&said).is_none() {
        // A machine that has never fetched the package lists knows no packages.
        Program::system("apt-get").args(["update", "-qq"]).run()?;
        said = ask()?;
    }
    let name = dependency(&said).context("apt-cache names no kernel package")?;
    println!("Fetching the guest's kernel: {name}");
    let mut command = Program::system("apt-get").args(["download", "-qq", name]).into_command();
    let output = command.current_dir(into).output().context("cannot start apt-get")?;
    if !output.status.success() {
        bail!("apt-get download failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let mut files = fs::read_dir(into)?.flatten().map(|entry| entry.path());
    files
        .find(|path| path.to_string_lossy().contains(name))
        .with_context(|| format!("apt-get did not download {name}"))
}

/// The first package that `apt-cache depends` names.
fn dependency(said: &str) -> Option<&str> {
    said.lines().find_map(|line| line.trim().strip_prefix("Depends: "))
}

/// Copies `runnel`, `labs` and the tests of the data planes, which must have been built, without
/// what only debuggers read: under emulation every byte counts.
///
/// # Errors
/// When one has not been built.
pub(crate) fn programs() -> Result<()> {
    let bin = folder().join("bin");
    fs::create_dir_all(bin.join("tests"))?;
    let debug = target_dir().join("debug");
    for name in ["runnel", "labs"] {
        strip(&debug.join(name), &bin.join(name))?;
    }
    let mut words = vec!["test", "--quiet", "--workspace", "--no-run", "--message-format", "json"];
    for name in TESTS {
        words.extend(["--test", name]);
    }
    let said = Program::cargo(words).output()?;
    for name in TESTS {
        let built = executable(&said, name).with_context(|| format!("no test program {name}"))?;
        strip(Path::new(&built), &bin.join("tests").join(name))?;
    }
    Ok(())
}

/// The file of a test program, from cargo's messages (one JSON object a line).
fn executable(messages: &str, name: &str) -> Option<String> {
    let target = format!("\"name\":\"{name}\"");
    messages.lines().filter(|line| line.contains(&target)).find_map(|line| {
        let (_, rest) = line.split_once("\"executable\":\"")?;
        rest.split_once('"').map(|(path, _)| path.to_owned())
    })
}

fn strip(from: &Path, to: &Path) -> Result<()> {
    let (from, to) = (from.display().to_string(), to.display().to_string());
    Program::system("strip").args(["-o", &to, &from]).run()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_package_is_read_from_the_dependencies() {
        let said = "linux-image-amd64\n  Depends: linux-image-6.1.0-56-amd64\n";
        assert_eq!(dependency(said), Some("linux-image-6.1.0-56-amd64"));
        assert_eq!(dependency(""), None);
    }

    #[test]
    fn the_program_is_read_from_cargos_messages() {
        let said = "{\"target\":{\"name\":\"a\"},\"executable\":null}\n\
                    {\"target\":{\"name\":\"b\"},\"executable\":\"/x/b-1\"}\n";
        assert_eq!(executable(said, "b").as_deref(), Some("/x/b-1"));
        assert_eq!(executable(said, "a"), None);
    }
}
