//! Runs programs of the workspace and of the toolchain.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// A program about to be run in the workspace's root.
pub(crate) struct Program {
    name: String,
    command: Command,
}

impl Program {
    /// `cargo` with the given words.
    pub(crate) fn cargo<S: AsRef<str>>(words: impl IntoIterator<Item = S>) -> Self {
        let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
        Self::new("cargo", &cargo).args(words)
    }

    /// A program of the development build.
    pub(crate) fn built(name: &str) -> Self {
        Self::new(name, &target_dir().join("debug").join(name).display().to_string())
    }

    /// The simulation, built by [`build_simulation`].
    pub(crate) fn simulation() -> Self {
        Self::new("sim", &target_dir().join("sim/sim").display().to_string())
    }

    /// Any program.
    pub(crate) fn system(name: &str) -> Self {
        Self::new(name, name)
    }

    fn new(name: &str, path: &str) -> Self {
        let mut command = Command::new(path);
        command.current_dir(root());
        Self { name: name.to_owned(), command }
    }

    /// Adds words.
    pub(crate) fn args<S: AsRef<str>>(mut self, words: impl IntoIterator<Item = S>) -> Self {
        for word in words {
            self.command.arg(word.as_ref());
        }
        self
    }

    /// Sets an environment variable.
    pub(crate) fn env(mut self, key: &str, value: &str) -> Self {
        self.command.env(key, value);
        self
    }

    /// Runs it with this terminal's streams.
    pub(crate) fn run(mut self) -> Result<()> {
        let line = self.line();
        let status = self.command.status().with_context(|| format!("cannot start `{line}`"))?;
        if !status.success() {
            bail!("`{line}` failed ({status})");
        }
        Ok(())
    }

    /// Runs it and hands each line of its standard output to `each` as it comes.
    pub(crate) fn lines(mut self, mut each: impl FnMut(&str)) -> Result<()> {
        let line = self.line();
        let mut child = self
            .command
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start `{line}`"))?;
        let out = child.stdout.take().context("it has no output")?;
        for text in BufReader::new(out).lines() {
            each(&text?);
        }
        let status = child.wait()?;
        if !status.success() {
            bail!("`{line}` failed ({status})");
        }
        Ok(())
    }

    /// Runs it and returns its standard output.
    pub(crate) fn output(mut self) -> Result<String> {
        let line = self.line();
        let output = self
            .command
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot start `{line}`"))?;
        if !output.status.success() {
            bail!("`{line}` failed: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The prepared command, for callers that need more than this.
    pub(crate) fn into_command(self) -> Command {
        self.command
    }

    fn line(&self) -> String {
        let mut line = self.name.clone();
        for word in self.command.get_args() {
            line.push(' ');
            line.push_str(&word.to_string_lossy());
        }
        line
    }
}

/// The workspace's root folder.
pub(crate) fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().map(PathBuf::from).unwrap_or_default()
}

/// Where cargo puts what it builds.
pub(crate) fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Whether this process is root.
pub(crate) fn is_root() -> Result<bool> {
    let status = std::fs::read_to_string("/proc/self/status").context("cannot read /proc")?;
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    Ok(line.and_then(|ids| ids.split_whitespace().nth(1)) == Some("0"))
}

/// Builds `runnel` and `labs`; with `failpoints` also the build of `runnel` that crash tests kill.
pub(crate) fn build_lab_programs(failpoints: bool) -> Result<()> {
    if failpoints {
        // Cargo keeps both variants' artifacts; only the name in `debug/` is shared.
        Program::cargo(["build", "--workspace", "--bins", "--features", "gateway/failpoints"])
            .run()?;
        let debug = target_dir().join("debug");
        std::fs::copy(debug.join("runnel"), debug.join("runnel-failpoints"))
            .context("cannot copy the failpoints build of runnel")?;
    }
    // The whole workspace, so that every command agrees on the features of shared dependencies
    // and nothing is compiled twice.
    Program::cargo(["build", "--workspace", "--bins"]).run()
}

/// Builds the optimised `runnel` that benchmarks measure.
pub(crate) fn build_release_gateway() -> Result<()> {
    Program::cargo(["build", "--release", "-p", "gateway", "--bin", "runnel"]).run()
}

/// Builds the simulation in a profile of its own: fast code, and only what it needs.
pub(crate) fn build_simulation() -> Result<()> {
    Program::cargo([
        "build",
        "--quiet",
        "--profile",
        "sim",
        "-p",
        "tests",
        "--no-default-features",
        "--bin",
        "sim",
    ])
    .run()
}
