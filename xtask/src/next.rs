//! Unpacks a newer strongSwan than this machine's into a folder of its own, for labs about what
//! only that one can (ML-KEM, OCSP in-band). Nothing is installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::run::{Program, target_dir};

/// Tells the labs where the folder is.
pub(crate) const VARIABLE: &str = "RUNNEL_NEXT_DIR";

/// Labs that need it.
const LABS: [&str; 4] = ["mlkem", "ocsp-in-ike", "ocsp-in-ike-both", "enrolment-next"];

/// The Debian suite it comes from: Debian 13's strongSwan 6.0.1 is built without ML-KEM.
const SUITE: &str = "forky";

/// What runs in it; what these depend on comes along.
const PACKAGES: [&str; 6] = [
    "base-files",
    "charon-systemd",
    "strongswan-pki",
    "libcharon-extra-plugins",
    "libstrongswan-standard-plugins",
    "libstrongswan-extra-plugins",
];

/// Where Debian is, unless this machine's own lists say otherwise.
const MIRROR: &str = "http://deb.debian.org/debian";

/// Marks a folder in which nothing is missing.
const COMPLETE: &str = "complete";

/// How often a mirror is asked before it counts as out of reach.
const TRIES: u32 = 3;

/// Between two tries: long enough for a mirror that is being updated to settle.
const PAUSE: Duration = Duration::from_secs(20);

/// The folder.
pub(crate) fn folder() -> PathBuf {
    target_dir().join("strongswan-next")
}

/// Whether a lab needs the folder.
pub(crate) fn needed_by(lab: &str) -> bool {
    LABS.contains(&lab)
}

/// Fills the folder unless it is filled already.
///
/// # Errors
/// When the packages cannot be had.
pub(crate) fn prepare() -> Result<()> {
    let folder = folder();
    if folder.join(COMPLETE).exists() {
        return Ok(());
    }
    println!("Fetching strongSwan from Debian's suite {SUITE} into {}", folder.display());
    for attempt in 1..TRIES {
        match fetch(&folder) {
            Ok(()) => return Ok(()),
            Err(error) => println!("try {attempt} of {TRIES}: {error:#}"),
        }
        thread::sleep(PAUSE);
    }
    fetch(&folder)
}

/// Fills the folder from the beginning.
fn fetch(folder: &Path) -> Result<()> {
    let _ = fs::remove_dir_all(folder);
    let apt = Apt::new(&folder.join("apt"))?;
    apt.run(&["update", "-qq"])?;
    let mut words = vec!["install", "-qq", "-y", "--no-install-recommends", "--download-only"];
    words.extend(PACKAGES);
    apt.run(&words)?;
    let root = folder.join("root");
    fs::create_dir_all(&root)?;
    for package in apt.packages()? {
        let words = ["-x".to_owned(), package.display().to_string(), root.display().to_string()];
        Program::system("dpkg").args(words).run()?;
    }
    if !root.join("usr/sbin/charon-systemd").exists() {
        bail!("Debian's packages of {SUITE} have no charon-systemd where it was expected");
    }
    // A place to put a lab's names.
    fs::write(root.join("etc/hosts"), b"")?;
    fs::remove_dir_all(folder.join("apt"))?;
    fs::write(folder.join(COMPLETE), b"")?;
    Ok(())
}

/// An apt of its own: lists, cache and the state of an empty machine, so that everything the
/// packages need is downloaded and nothing is installed.
struct Apt {
    dir: PathBuf,
}

impl Apt {
    fn new(dir: &Path) -> Result<Self> {
        for folder in ["etc/preferences.d", "state/lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(dir.join(folder))?;
        }
        fs::write(dir.join("state/status"), b"")?;
        let keyring = "/usr/share/keyrings/debian-archive-keyring.gpg";
        let source = format!("deb [signed-by={keyring}] {} {SUITE} main\n", mirror());
        fs::write(dir.join("etc/sources.list"), source)?;
        Ok(Self { dir: dir.to_owned() })
    }

    fn run(&self, words: &[&str]) -> Result<()> {
        let dir = self.dir.display();
        let settings = [
            format!("Dir::Etc={dir}/etc"),
            format!("Dir::Etc::sourcelist={dir}/etc/sources.list"),
            "Dir::Etc::sourceparts=/dev/null".to_owned(),
            format!("Dir::State={dir}/state"),
            format!("Dir::State::status={dir}/state/status"),
            format!("Dir::Cache={dir}/cache"),
            "APT::Sandbox::User=root".to_owned(),
            "Acquire::Languages=none".to_owned(),
            // Descriptions of programs for people.
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
        ];
        let mut command = Program::system("apt-get").into_command();
        for setting in settings {
            command.args(["-o", &setting]);
        }
        let output = command
            .args(words)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .output()
            .context("cannot start apt-get")?;
        if !output.status.success() {
            bail!(
                "strongSwan of Debian's suite {SUITE} cannot be had: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(())
    }

    fn packages(&self) -> Result<Vec<PathBuf>> {
        let files = fs::read_dir(self.dir.join("cache/archives"))?.flatten();
        let is_package = |path: &PathBuf| path.extension().is_some_and(|end| end == "deb");
        Ok(files.map(|file| file.path()).filter(is_package).collect())
    }
}

/// The mirror this machine gets Debian from.
fn mirror() -> String {
    let words = ["indextargets", "--format", "$(REPO_URI)", "Origin: Debian", "Component: main"];
    let said = Program::system("apt-get").args(words).output().unwrap_or_default();
    said.lines()
        .find(|line| line.trim_end_matches('/').ends_with("/debian"))
        .map_or_else(|| MIRROR.to_owned(), |line| line.trim_end_matches('/').to_owned())
}
