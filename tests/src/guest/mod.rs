//! A virtual machine with a kernel that has ESP, for labs whose names begin with `kernel-`.
//!
//! The guest boots Debian's kernel under QEMU with a small initramfs of our own making. Its root
//! is this machine's, read-only over 9p with a tmpfs on top, so every program a lab needs is
//! there; what it writes disappears with it, except what goes to the results share. Programs of
//! this workspace come from a folder that `cargo xtask` fills ([`folder`]).

mod initramfs;
mod qemu;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// Set inside the guest.
const INSIDE: &str = "RUNNEL_LAB_GUEST";

/// Names the folder `cargo xtask` fills.
const FOLDER: &str = "RUNNEL_GUEST_DIR";

/// Longest time the guest may take to boot and to read its programs for the first time, on a
/// machine that does other things.
const START_LIMIT: Duration = Duration::from_secs(240);

/// Longest time a lab may take then, on average: several times what it takes on a quiet machine.
const LAB_LIMIT: Duration = Duration::from_secs(120);

/// Software emulation is about this much slower than the machine itself.
const PATIENCE: u32 = 4;

/// See [`pace`].
const PACE: u32 = 50;

/// Configuration of a `pki` that asks over HTTP, in the guest.
pub const EST_CONF: &str = "/run/guest/est.conf";

/// What the shares are called.
const HOST_TAG: &str = "host";
const PROGRAMS_TAG: &str = "programs";
const RESULTS_TAG: &str = "results";

/// Where the shares are mounted in the guest.
const PROGRAMS: &str = "/run/guest/programs";
const RESULTS: &str = "/run/guest/results";

/// The folder with the guest's kernel and programs: `kernel/` (an unpacked package) and `bin/`.
///
/// # Errors
/// When `cargo xtask` did not say where it is.
pub fn folder() -> Result<PathBuf> {
    let folder = env::var_os(FOLDER).map(PathBuf::from);
    folder.context("kernel labs run in a virtual machine: start them with `cargo xtask lab NAME`")
}

/// Whether this process runs in the guest.
#[must_use]
pub fn inside() -> bool {
    env::var_os(INSIDE).is_some()
}

/// How many times longer than on the machine itself a wait may take.
#[must_use]
pub fn patience() -> u32 {
    if inside() { PATIENCE } else { 1 }
}

/// How many times longer than on the machine itself the pause between two looks is: a look often
/// starts a program, which takes the time of what is waited for.
#[must_use]
pub fn pace() -> u32 {
    if inside() { PACE } else { 1 }
}

/// Runs labs in one boot of the guest; its lines are printed as they come. Returns how many
/// passed and failed.
///
/// # Errors
/// When the guest does not start, or ends before all labs have.
pub fn run(labs: &[&str], verbose: bool, keep_below: &Path) -> Result<(usize, usize)> {
    let folder = folder()?;
    let kernel = Kernel::find(&folder.join("kernel"))?;
    let results = folder.join(format!("results-{}", std::process::id()));
    let _ = fs::remove_dir_all(&results);
    fs::create_dir_all(&results)?;
    fs::write(results.join("job.sh"), job(labs, verbose))?;
    let initramfs = results.join("initramfs");
    initramfs::build(&kernel, &initramfs)?;
    let limit = START_LIMIT + LAB_LIMIT * u32::try_from(labs.len())?;
    let ended = qemu::boot(&qemu::Machine {
        kernel: &kernel.image,
        initramfs: &initramfs,
        programs: &folder,
        results: &results,
        limit,
    });
    let counted = fs::read_to_string(results.join("tally")).ok().and_then(|text| tally(&text));
    keep(&results.join("labs"), keep_below)?;
    let _ = fs::remove_dir_all(&results);
    match (ended, counted) {
        (Ok(()), Some(counted)) if counted.0 + counted.1 == labs.len() => Ok(counted),
        (Ok(()), _) => bail!("the guest ended before its labs did"),
        (Err(error), _) => Err(error),
    }
}

/// What the guest runs once it is up.
fn job(labs: &[&str], verbose: bool) -> String {
    let verbose = if verbose { "--verbose " } else { "" };
    let names = labs.join(" ");
    format!(
        "cd {RESULTS}\n{INSIDE}=1 {PROGRAMS}/bin/labs --results {RESULTS} {verbose}{names} 2>&1\n"
    )
}

/// Writes the result of labs where the machine outside reads it.
///
/// # Errors
/// When the results share refuses.
pub fn report(results: &Path, passed: usize, failed: usize) -> Result<()> {
    Ok(fs::write(results.join("tally"), format!("{passed} {failed}\n"))?)
}

fn tally(text: &str) -> Option<(usize, usize)> {
    let (passed, failed) = text.trim().split_once(' ')?;
    Some((passed.parse().ok()?, failed.parse().ok()?))
}

/// Moves logs of failed labs to where those of other labs are.
fn keep(from: &Path, to: &Path) -> Result<()> {
    let Ok(entries) = fs::read_dir(from) else { return Ok(()) };
    fs::create_dir_all(to)?;
    for entry in entries.flatten() {
        let target = to.join(entry.file_name());
        let _ = fs::remove_dir_all(&target);
        let target = target.display().to_string();
        crate::lab::cmd::run("mv", &[&entry.path().display().to_string(), &target])?;
    }
    Ok(())
}

/// An unpacked kernel package.
struct Kernel {
    root: PathBuf,
    version: String,
    image: PathBuf,
}

impl Kernel {
    fn find(root: &Path) -> Result<Self> {
        let boot = root.join("boot");
        let entries = fs::read_dir(&boot)
            .with_context(|| format!("no kernel for the guest in {}", boot.display()))?;
        let version = entries.flatten().find_map(|entry| {
            entry.file_name().to_string_lossy().strip_prefix("vmlinuz-").map(str::to_owned)
        });
        let version = version.context("the kernel package has no kernel")?;
        let image = boot.join(format!("vmlinuz-{version}"));
        Ok(Self { root: root.to_owned(), version, image })
    }

    /// Module files in the order in which they are to be loaded.
    fn modules(&self, names: &[&str]) -> Result<Vec<PathBuf>> {
        let root = self.root.display().to_string();
        let mut words = vec!["-d", root.as_str(), "-S", &self.version, "--show-depends", "-a"];
        words.extend(names);
        let said = crate::lab::cmd::run("modprobe", &words)?;
        let mut files: Vec<PathBuf> = Vec::new();
        for line in said.lines() {
            if let Some(path) = line.trim().strip_prefix("insmod ") {
                let path = PathBuf::from(path.split_whitespace().next().unwrap_or(path));
                if !files.contains(&path) {
                    files.push(path);
                }
            }
        }
        Ok(files)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_two_numbers_are_a_tally() {
        assert_eq!(tally("3 1\n"), Some((3, 1)));
        assert_eq!(tally("3"), None);
        assert_eq!(tally("three 1"), None);
    }

    #[test]
    fn the_job_names_its_labs() {
        let job = job(&["kernel-a", "kernel-b"], true);
        assert!(job.contains("--verbose kernel-a kernel-b"), "{job}");
    }
}
