//! A start that cannot succeed: exit code 1, one sentence, nothing half-created.

use std::fs;
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::daemon::{difference, footprint};
use crate::lab::gateway::{Gateway, Settings};
use crate::lab::host::Host;
use crate::lab::world::{Shape, World};
use crate::lab::{Lab, cmd};

/// One way to fail.
struct Case<'a> {
    what: &'a str,
    /// Words the sentence must hold.
    says: &'a [&'a str],
    /// Words before `runnel`.
    before: &'a [&'a str],
    /// Configuration text.
    config: String,
    /// State directory below the lab's folder.
    state: PathBuf,
}

/// Every kind of bad input to `runnel up`.
pub(super) fn run(lab: &Lab) -> Result<()> {
    let world = World::new(lab, Shape::default())?;
    let host = &world.gateway;
    let good = Settings::default().text();
    let fresh = |name: &str| lab.path("states").join(name);
    fs::create_dir_all(lab.path("states"))?;
    let gateway = Gateway::prepare(host, &Settings::default())?;
    let case = |what, says, before, config, state| {
        refuse(host, &gateway, &Case { what, says, before, config, state })
    };

    let misspelt = good.replace("allow =", "alow =");
    case("a bad configuration key", &["alow", "allow"], &[], misspelt, fresh("key"))?;

    let socket = host.enter(|| UdpSocket::bind("0.0.0.0:500"))?.context("bind")?;
    case("UDP port 500 occupied", &["500"], &[], good.clone(), fresh("udp"))?;
    drop(socket);
    let socket = host.enter(|| UdpSocket::bind("0.0.0.0:4500"))?.context("bind")?;
    case("UDP port 4500 occupied", &["4500"], &[], good.clone(), fresh("udp-natt"))?;
    drop(socket);
    let listener = host.listen("0.0.0.0:8443".parse()?)?;
    case("an occupied TCP port", &["8443"], &[], good.clone(), fresh("tcp"))?;
    drop(listener);

    let without = ["setpriv", "--bounding-set=-net_admin"];
    case("no NET_ADMIN", &["NET_ADMIN"], &without, good.clone(), fresh("cap"))?;

    let script = "mount -t tmpfs none /dev/net && exec \"$@\"";
    let no_tun = ["unshare", "-m", "sh", "-c", script, "sh"];
    case("no TUN device", &["/dev/net/tun"], &no_tun, good.clone(), fresh("tun"))?;

    let unreadable = fresh("unreadable");
    fs::create_dir_all(&unreadable)?;
    fs::set_permissions(&unreadable, fs::Permissions::from_mode(0o000))?;
    // Root may read everything unless these capabilities are gone.
    let blind = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"];
    case("an unreadable state directory", &["unreadable"], &blind, good.clone(), unreadable)?;

    case("a state path that is a file", &["file"], &[], good.clone(), gateway.config())?;
    case("not TOML at all", &["TOML"], &[], "[gateway\n".to_owned(), fresh("toml"))?;

    let mut gateway = gateway;
    gateway.up(&[])?;
    gateway.stop()?;
    fs::write(gateway.state().join("version"), "999\n")?;
    let newer = Case {
        what: "a state directory of a newer version",
        says: &["newer", "999"],
        before: &[],
        config: good,
        state: gateway.state(),
    };
    refuse(host, &gateway, &newer)
}

fn refuse(host: &Host, gateway: &Gateway, case: &Case<'_>) -> Result<()> {
    let lab = host.lab();
    let config = lab.path("bad.toml");
    fs::write(&config, &case.config)?;
    let existed = case.state.exists();
    let listing = |path: &PathBuf| cmd::run("ls", &["-laR", &path.display().to_string()]).ok();
    let (files, traces) = (listing(&case.state), footprint(host)?);
    let program = gateway.program().display().to_string();
    let mut words: Vec<&str> = case.before.to_vec();
    // `timeout` turns a start that wrongly succeeds into a failure of this case.
    words.extend(["timeout", "10", &program]);
    let (first, rest) = words.split_first().context("no program")?;
    let mut command: Command = host.command(first);
    command.args(rest).args(["up", "--config"]).arg(&config).arg("--state").arg(&case.state);
    let said = cmd::output(&mut command)?;
    let what = case.what;
    if said.code != 1 {
        bail!("{what}: exit code {} instead of 1: {}", said.code, said.all());
    }
    let lines: Vec<&str> = said.err.lines().filter(|line| !line.trim().is_empty()).collect();
    let [line] = lines.as_slice() else {
        bail!("{what}: expected one sentence, got: {}", said.all())
    };
    if let Some(word) = case.says.iter().find(|word| !line.contains(**word)) {
        bail!("{what}: the sentence does not mention {word}: {line}");
    }
    lab.step(&format!("{what}: {line}"));
    if existed != case.state.exists() || files != listing(&case.state) {
        bail!("{what}: the state directory was changed");
    }
    let left = difference(&traces, &footprint(host)?);
    if !left.is_empty() {
        bail!("{what}: left traces:\n{}", left.join("\n"));
    }
    Ok(())
}
