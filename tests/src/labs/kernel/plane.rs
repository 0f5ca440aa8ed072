//! The tests of the `xfrm` crate again, on a kernel that has ESP.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::lab::{Lab, cmd};

/// Test programs, as `cargo xtask` names them, and the tests of each to run.
const PROGRAMS: [(&str, &[&str]); 4] = [
    ("conformance", &["kernel"]),
    ("kernel_esp", &[]),
    ("kernel_route", &[]),
    ("nft_filter", &["kernel"]),
];

/// What a test prints when it finds no ESP; here that is a failure.
const SKIPPED: &str = "skipped:";

/// Runs them one after another.
pub(in crate::labs) fn tests(lab: &Lab) -> Result<()> {
    let here = std::env::current_exe()?;
    let folder = here.parent().context("this program lies nowhere")?.join("tests");
    for (name, filters) in PROGRAMS {
        lab.step(name);
        let mut command = Command::new(folder.join(name));
        command.args(filters).args(["--nocapture", "--test-threads", "1"]);
        let said = cmd::output(&mut command)?;
        fs::write(lab.path(&format!("{name}.log")), said.all())?;
        let all = said.all();
        if !said.ok() || all.contains(SKIPPED) {
            bail!("{name} failed or skipped something:\n{all}");
        }
        if all.contains("running 0 tests") {
            bail!("{name} has no test named {filters:?}");
        }
    }
    Ok(())
}
