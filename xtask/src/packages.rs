//! Installs the Debian packages that labs and the demo need, and says which first.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::run::Program;

/// A Debian package and a file that shows it is there.
pub(crate) struct Package {
    name: &'static str,
    proof: &'static [&'static str],
}

const fn package(name: &'static str, proof: &'static [&'static str]) -> Package {
    Package { name, proof }
}

/// What interop labs, the demo and benchmarks need.
pub(crate) const LABS: &[Package] = &[
    package("iproute2", &["/sbin/ip", "/usr/sbin/ip", "/bin/ip"]),
    package("nftables", &["/usr/sbin/nft"]),
    package("iputils-ping", &["/bin/ping", "/usr/bin/ping"]),
    package("tcpdump", &["/usr/bin/tcpdump", "/usr/sbin/tcpdump"]),
    package("curl", &["/usr/bin/curl"]),
    package("openssl", &["/usr/bin/openssl"]),
    package("iperf3", &["/usr/bin/iperf3"]),
    package("softhsm2", &["/usr/bin/softhsm2-util"]),
    package("util-linux", &["/usr/bin/setpriv", "/bin/setpriv"]),
    package("charon-systemd", &["/usr/sbin/charon-systemd"]),
    package("strongswan-swanctl", &["/usr/sbin/swanctl"]),
    package("strongswan-pki", &["/usr/bin/pki"]),
    package(
        "libcharon-extra-plugins",
        &["/usr/lib/ipsec/plugins/libstrongswan-kernel-libipsec.so"],
    ),
    package("libstrongswan-standard-plugins", &["/usr/lib/ipsec/plugins/libstrongswan-gcm.so"]),
    package("libstrongswan-extra-plugins", &["/usr/lib/ipsec/plugins/libstrongswan-curl.so"]),
];

/// What kernel labs need besides, to boot a virtual machine.
pub(crate) const GUEST: &[Package] = &[
    package("qemu-system-x86", &["/usr/bin/qemu-system-x86_64"]),
    package("busybox-static", &["/bin/busybox", "/usr/bin/busybox"]),
    package("kmod", &["/sbin/modprobe", "/usr/sbin/modprobe"]),
    package("binutils", &["/usr/bin/strip"]),
];

/// What building needs beside the Rust toolchain (SQLite and aws-lc are C).
pub(crate) const BUILD: &[Package] = &[package("gcc", &["/usr/bin/cc", "/usr/bin/gcc"])];

/// Installs the packages that are missing.
///
/// # Errors
/// When the machine is not Debian, the user is not root, or apt-get fails.
pub(crate) fn install(wanted: &[Package]) -> Result<()> {
    let missing: Vec<&str> =
        wanted.iter().filter(|package| !present(package)).map(|package| package.name).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if !std::path::Path::new("/usr/bin/apt-get").exists() {
        bail!("this machine has no apt-get: install the equivalents of {list} yourself");
    }
    if !crate::run::is_root()? {
        bail!("packages are missing and only root can install them: apt-get install {list}");
    }
    println!("Installing Debian packages: {list}");
    if apt(&["install", "-y", "--no-install-recommends"], &missing).is_err() {
        // A machine that has never fetched the package lists fails the first time.
        Program::system("apt-get").args(["update", "-qq"]).run()?;
        apt(&["install", "-y", "--no-install-recommends"], &missing)?;
    }
    let still: Vec<&str> = wanted.iter().filter(|p| !present(p)).map(|p| p.name).collect();
    if !still.is_empty() {
        bail!("apt-get installed {} but their files are not where expected", still.join(" "));
    }
    Ok(())
}

fn present(package: &Package) -> bool {
    package.proof.iter().any(|file| std::path::Path::new(file).exists())
}

fn apt(words: &[&str], packages: &[&str]) -> Result<()> {
    let output = Command::new("apt-get")
        .args(words)
        .args(packages)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .output()
        .context("cannot start apt-get")?;
    if !output.status.success() {
        bail!("apt-get failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
