//! `cargo xtask fuzz`: coverage-guided fuzzing with libFuzzer on a nightly toolchain.

use anyhow::{Context, Result, bail};

use crate::run::{Program, root, target_dir};

/// Compiler flags that give libFuzzer its coverage, as `cargo fuzz` passes them.
const FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
     -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares \
     --cfg fuzzing -Zsanitizer=address -Cdebug-assertions -Ccodegen-units=1";

/// The C code of SQLite is built with the sanitizer of the system's compiler, whose runtime counts
/// its constants twice.
const ASAN_OPTIONS: &str = "detect_odr_violation=0";

/// Builds and runs one target. New inputs go to `tests/fuzz/corpus-grown/TARGET`; the corpus in
/// the repository is only read.
pub(crate) fn run(target: &str, seconds: u64) -> Result<()> {
    let folder = root().join("tests/fuzz");
    let targets = targets()?;
    if !targets.iter().any(|name| name == target) {
        bail!("there is no fuzz target `{target}`; there are: {}", targets.join(", "));
    }
    let triple = host_triple()?;
    let toolchain = nightly()?;
    let out = target_dir().join("fuzz");
    // `cargo` here is the pinned toolchain's; the wrapper of rustup chooses another by name.
    Program::system("rustup")
        .args(["run", &toolchain, "cargo", "build", "--release", "--manifest-path"])
        .args([folder.join("Cargo.toml").display().to_string().as_str()])
        .args(["--target", &triple, "--target-dir", &out.display().to_string(), "--bin", target])
        .env("RUSTFLAGS", FLAGS)
        .run()?;
    let grown = folder.join("corpus-grown").join(target);
    std::fs::create_dir_all(&grown)?;
    let seeds = folder.join("corpus").join(target);
    let artifacts = format!("{}/", grown.display());
    let mut words = vec![grown.display().to_string()];
    if seeds.exists() {
        words.push(seeds.display().to_string());
    }
    words.push(format!("-max_total_time={seconds}"));
    words.push(format!("-artifact_prefix={artifacts}"));
    let binary = out.join(&triple).join("release").join(target);
    Program::system(&binary.display().to_string())
        .args(&words)
        .env("ASAN_OPTIONS", ASAN_OPTIONS)
        .run()
}

fn targets() -> Result<Vec<String>> {
    let manifest = std::fs::read_to_string(root().join("tests/fuzz/Cargo.toml"))
        .context("cannot read tests/fuzz/Cargo.toml")?;
    let mut names = Vec::new();
    let mut in_bin = false;
    for line in manifest.lines() {
        if line.starts_with('[') {
            in_bin = line.trim() == "[[bin]]";
        } else if in_bin && let Some(rest) = line.strip_prefix("name") {
            names.push(
                rest.trim_matches(|c: char| c == '=' || c == '"' || c.is_whitespace()).to_owned(),
            );
        }
    }
    Ok(names)
}

fn host_triple() -> Result<String> {
    let text = Program::system("rustc").args(["-vV"]).output()?;
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc does not name its host")?.to_owned())
}

fn nightly() -> Result<String> {
    let list = Program::system("rustup")
        .args(["toolchain", "list"])
        .output()
        .context("fuzzing needs rustup and a nightly toolchain")?;
    let line = list.lines().find(|line| line.starts_with("nightly"));
    let line = line.context(
        "fuzzing needs a nightly toolchain: rustup toolchain install nightly --profile minimal",
    )?;
    Ok(line.split_whitespace().next().unwrap_or("nightly").to_owned())
}
