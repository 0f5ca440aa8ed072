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

#[cfg(test)]
mod tests {
    use super::*;

    /// Where the body of a target is, by the path its shim calls it with.
    fn body(call: &str) -> Option<(String, String)> {
        let (module, function) = call.rsplit_once("::")?;
        let (root, file) = module.split_once("::")?;
        let file = match root {
            "runnel_fuzz" => format!("tests/fuzz/src/{file}.rs"),
            "tests" => format!("tests/src/{}.rs", file.replace("::", "/")),
            "xfrm" => format!("xfrm/src/{}.rs", file.replace("::", "/")),
            _ => return None,
        };
        Some((file, function.to_owned()))
    }

    /// libFuzzer's programs need another compiler, so the tests never build them: what there is
    /// beside the bodies, which they do build, is three lines of one form.
    #[test]
    fn every_target_is_a_call_of_a_body_that_the_tests_compile_and_replay() {
        let readme = std::fs::read_to_string(root().join("tests/fuzz/README.md")).unwrap();
        let names = targets().unwrap();
        assert!(names.len() >= 20, "{names:?}");
        for name in names {
            let shim = root().join(format!("tests/fuzz/fuzz_targets/{name}.rs"));
            let text = std::fs::read_to_string(&shim).unwrap();
            let call = text
                .strip_prefix("#![no_main]\n\nlibfuzzer_sys::fuzz_target!(|data: &[u8]| ")
                .and_then(|rest| rest.strip_suffix("(data));\n"))
                .unwrap_or_else(|| panic!("{name} is not of the form of the others"));
            let (file, function) = body(call).unwrap_or_else(|| panic!("{name} calls {call}"));
            let source = std::fs::read_to_string(root().join(&file)).unwrap();
            // In `xfrm` the bodies lie beside what they look into.
            let declared = source.contains(&format!("pub fn {function}(data: &[u8])"))
                || source.contains(&format!("(\"{name}\", {function})"));
            assert!(declared, "{file} has no {function}");
            assert!(readme.contains(&format!("| `{name}` |")), "{name} is not in the table");
            let corpus = std::fs::read_dir(root().join("tests/fuzz/corpus").join(&name));
            assert!(corpus.is_ok_and(|files| files.count() > 0), "{name} has no corpus");
        }
    }
}
