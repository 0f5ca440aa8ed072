//! The program under test, `runnel`, as a process on a host and through its command line.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::cmd::{self, Said};
use super::host::Host;
use super::process::Process;
use super::{Lab, wait};

/// How long `runnel up` may take to answer on its admin socket.
const START_LIMIT: Duration = Duration::from_secs(20);

/// The gateway's IKE identity in labs.
pub const ID: &str = "gw.example.com";

/// Which build of `runnel` a lab runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Build {
    /// The development build.
    Plain,
    /// The development build with named failpoints.
    Failpoints,
    /// The optimised build.
    Release,
}

impl Build {
    /// The program file, found beside this program.
    ///
    /// # Errors
    /// When it has not been built.
    pub fn path(self) -> Result<PathBuf> {
        let here = std::env::current_exe()?;
        let debug = here.parent().context("this program lies nowhere")?;
        let path = match self {
            Self::Plain => debug.join("runnel"),
            Self::Failpoints => debug.join("runnel-failpoints"),
            Self::Release => debug.with_file_name("release").join("runnel"),
        };
        if !path.exists() {
            bail!("{} is missing: run this through cargo xtask, which builds it", path.display());
        }
        Ok(path)
    }
}

/// What a lab's configuration file says; anything else keeps its default.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The IKE identity.
    pub id: String,
    /// More lines of `[gateway]`.
    pub gateway: String,
    /// Lines of `[ike]`.
    pub ike: String,
    /// More lines of `[enrol]`.
    pub enrol: String,
    /// Networks of the only pool.
    pub addresses: Vec<String>,
    /// More lines of `[[pool]]`.
    pub pool: String,
    /// Life of certificates.
    pub ttl: String,
    /// What the role `builder` may reach.
    pub allow: Vec<String>,
    /// More sections.
    pub more: String,
    /// Tunnels outlive the process; kept in [`Gateway::runtime`].
    pub keep_tunnels: bool,
    /// The build that is run.
    pub build: Build,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            id: ID.to_owned(),
            gateway: String::new(),
            ike: String::new(),
            enrol: String::new(),
            addresses: vec![super::world::POOL.to_owned(), super::world::POOL6.to_owned()],
            pool: String::new(),
            ttl: "1h".to_owned(),
            allow: vec![super::world::STORE.to_owned(), super::world::STORE6.to_owned()],
            more: String::new(),
            keep_tunnels: false,
            build: Build::Plain,
        }
    }
}

impl Settings {
    /// The configuration file's text.
    #[must_use]
    pub fn text(&self) -> String {
        let Self {
            keep_tunnels, id, gateway, ike, enrol, addresses, pool, ttl, allow, more, ..
        } = self;
        format!(
            "[gateway]\nid = \"{id}\"\nkeep_tunnels = {keep_tunnels}\n{gateway}\n\n[ike]\n{ike}\n\n\
             [pki]\ntrust_domain = \"ci.example.com\"\n\n\
             [enrol]\nurl = \"https://{id}:8443\"\n{enrol}\n\n\
             [[pool]]\nname = \"runners\"\naddresses = {addresses:?}\n{pool}\n\n\
             [[role]]\nname = \"builder\"\npool = \"runners\"\nttl = \"{ttl}\"\nallow = {allow:?}\n\n{more}\n"
        )
    }
}

/// A `runnel up` on a host, with its configuration and state.
pub struct Gateway {
    host: Host,
    program: PathBuf,
    dir: PathBuf,
    process: Option<Process>,
    starts: u32,
}

impl Gateway {
    /// Writes the configuration without starting anything.
    ///
    /// # Errors
    /// When the program has not been built or the file cannot be written.
    pub fn prepare(host: &Host, settings: &Settings) -> Result<Self> {
        let dir = host.dir()?.join("runnel");
        fs::create_dir_all(&dir)?;
        fs::write(dir.join("runnel.toml"), settings.text())?;
        let program = settings.build.path()?;
        Ok(Self { host: host.clone(), program, dir, process: None, starts: 0 })
    }

    /// Starts `runnel up` and waits until it answers.
    ///
    /// # Errors
    /// When it does not come up; the message holds its last lines.
    pub fn start(host: &Host, settings: &Settings) -> Result<Self> {
        let mut gateway = Self::prepare(host, settings)?;
        gateway.up(&[])?;
        Ok(gateway)
    }

    /// Starts `runnel up` again with the same state, with further environment variables.
    ///
    /// # Errors
    /// As [`Gateway::start`].
    pub fn up(&mut self, environment: &[(&str, &str)]) -> Result<()> {
        self.launch(environment)?;
        wait::holds(&self.lab().clone(), "`runnel up` to answer", START_LIMIT, || {
            if let Some(code) = self.process()?.ended()? {
                bail!("`runnel up` ended with code {code}\n{}", self.host.lab().tails());
            }
            Ok(self.cli(&["status", "-o", "json"])?.ok())
        })
    }

    /// Starts `runnel up` without waiting for it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn launch(&mut self, environment: &[(&str, &str)]) -> Result<()> {
        self.starts += 1;
        let mut command = self.host.command(&self.program.display().to_string());
        command.args(["up", "--config"]).arg(self.config()).arg("--state").arg(self.state());
        command.envs(environment.iter().copied());
        let log = self.dir.join(format!("runnel-{}.log", self.starts));
        self.process = Some(Process::start(self.host.lab(), "runnel", command, &log)?);
        Ok(())
    }

    /// The configuration file.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.dir.join("runnel.toml")
    }

    /// The state directory.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// The host it runs on.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The program file.
    #[must_use]
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// The running process.
    ///
    /// # Errors
    /// When it was never started.
    pub fn process(&mut self) -> Result<&mut Process> {
        self.process.as_mut().context("runnel was not started")
    }

    /// Everything the current process printed.
    #[must_use]
    pub fn log(&self) -> String {
        self.process.as_ref().map(Process::log).unwrap_or_default()
    }

    /// Resident memory in bytes.
    ///
    /// # Errors
    /// When it does not run.
    pub fn resident(&self) -> Result<u64> {
        self.process.as_ref().context("runnel was not started")?.resident()
    }

    /// Writes another configuration and has the running gateway read it.
    ///
    /// # Errors
    /// When it refuses.
    pub fn reload(&self, settings: &Settings) -> Result<()> {
        fs::write(self.config(), settings.text())?;
        self.told(&["reload"]).map(drop)
    }

    /// Stops with SIGTERM and returns the exit code.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn stop(&mut self) -> Result<i32> {
        let lab = self.lab().clone();
        self.process()?.stop(&lab, Duration::from_secs(15))
    }

    /// Kills it (SIGKILL).
    ///
    /// # Errors
    /// When it was never started.
    pub fn kill(&mut self) -> Result<()> {
        self.process()?.kill()
    }

    /// Runs a `runnel` command on the gateway's host against its state directory.
    ///
    /// # Errors
    /// Only when it cannot be started.
    pub fn cli(&self, words: &[&str]) -> Result<Said> {
        cmd::output(&mut self.command(words))
    }

    /// The command [`Gateway::cli`] runs.
    #[must_use]
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = self.host.command(&self.program.display().to_string());
        command.args(words).arg("--state").arg(self.state());
        command
    }

    /// Runs a `runnel` command that must succeed; its standard output is the result.
    ///
    /// # Errors
    /// When it fails.
    pub fn told(&self, words: &[&str]) -> Result<String> {
        let said = self.cli(words)?;
        if !said.ok() {
            bail!("`runnel {}` failed ({}): {}", words.join(" "), said.code, said.all().trim());
        }
        Ok(said.out)
    }

    /// Runs a listing with `-o json`.
    ///
    /// # Errors
    /// When it fails or prints no JSON.
    pub fn json(&self, words: &[&str]) -> Result<Value> {
        let mut all = words.to_vec();
        all.extend(["-o", "json"]);
        let text = self.told(&all)?;
        serde_json::from_str(&text).with_context(|| format!("no JSON from {words:?}: {text}"))
    }

    /// Makes a one-time token for the role `builder`.
    ///
    /// # Errors
    /// When it is refused.
    pub fn token(&self) -> Result<String> {
        let made = self.json(&["token", "create", "--role", "builder"])?;
        Ok(made["token"].as_str().context("no token in the answer")?.to_owned())
    }

    /// The lease that owns a certificate serial, ended ones included.
    ///
    /// # Errors
    /// When there is none.
    pub fn lease(&self, serial: &str) -> Result<Value> {
        let all = self.json(&["lease", "list", "--all"])?;
        let list = all.as_array().context("the lease list is no list")?;
        list.iter()
            .find(|lease| same_serial(lease["serial"].as_str().unwrap_or_default(), serial))
            .cloned()
            .with_context(|| format!("no lease with serial {serial} in {all}"))
    }

    /// Addresses of all leases that there ever were.
    ///
    /// # Errors
    /// When the command fails.
    pub fn leased(&self) -> Result<Vec<String>> {
        let all = self.json(&["lease", "list", "--all"])?;
        let list = all.as_array().context("the lease list is no list")?;
        let addresses = list.iter().filter_map(|lease| lease["addresses"].as_array()).flatten();
        Ok(addresses.filter_map(|address| address.as_str().map(str::to_owned)).collect())
    }

    /// The IKE SAs.
    ///
    /// # Errors
    /// When the command fails.
    pub fn sas(&self) -> Result<Vec<Value>> {
        let all = self.json(&["sa", "list"])?;
        Ok(all.as_array().context("the SA list is no list")?.clone())
    }

    /// Recent refusals, newest first.
    ///
    /// # Errors
    /// When the command fails.
    pub fn refusals(&self) -> Result<Vec<Value>> {
        // `doctor` exits with 1 when a check of the machine fails; its output counts here.
        let said = self.cli(&["doctor", "-o", "json"])?;
        let all: Value = serde_json::from_str(&said.out)
            .with_context(|| format!("no JSON from doctor: {}", said.all()))?;
        Ok(all["refusals"].as_array().context("doctor lists no refusals")?.clone())
    }

    fn lab(&self) -> &Lab {
        self.host.lab()
    }
}

/// Serial numbers compared by value: case, colons and leading zeros do not matter.
#[must_use]
pub fn same_serial(a: &str, b: &str) -> bool {
    let plain = |text: &str| {
        let hex: String = text.chars().filter(char::is_ascii_hexdigit).collect();
        hex.trim_start_matches('0').to_ascii_lowercase()
    };
    plain(a) == plain(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serials_are_compared_by_value() {
        assert!(same_serial("0A:1b", "a1B"));
        assert!(!same_serial("0A:1b", "a1c"));
    }

    #[test]
    fn lists_become_toml_arrays() {
        assert!(
            Settings::default().text().contains("addresses = [\"10.77.0.0/16\", \"fd77::/64\"]")
        );
    }
}
