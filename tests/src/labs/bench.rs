//! Paired benchmarks: Runnel and strongSwan's kernel-libipsec take turns as the gateway of the
//! same runner, over the same network, in the same run.
#![allow(clippy::print_stdout)] // numbers for people, then one JSON object for programs

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::baseline::Baseline;
use super::scene::{Scene, ping};
use crate::lab::charon::Charon;
use crate::lab::gateway::{Build, Gateway, Settings};
use crate::lab::host::Host;
use crate::lab::pkitool::P256;
use crate::lab::process::Process;
use crate::lab::world::{STORE, Shape, World};
use crate::lab::{Lab, cleanup, wait};

/// A benchmark's name and what it measures.
pub const ALL: &[(&str, &str)] = &[
    (
        "tunnel",
        "TCP through the tunnel and handshake time, Runnel and kernel-libipsec as gateway in turns",
    ),
    ("handshake", "handshakes of the engine alone against their cryptography; memory per IKE SA"),
    ("store", "enrolment and look-up beside a million ended leases, against an empty store"),
    (
        "enrolment",
        "enrolments a second against fsync and signing rate; a revocation list of 100,000",
    ),
    ("revoke", "revocation of one lease at 1,000 live tunnels, until no packet of it passes"),
];

/// Turns of each gateway.
const TURNS: usize = 4;
/// Seconds of each TCP measurement.
const SECONDS: u32 = 4;
/// Handshakes measured in each turn.
const HANDSHAKES: usize = 5;

/// What one turn measured.
#[derive(Debug, Default, Clone)]
struct Turn {
    /// Runner to private network, Mb/s.
    up: f64,
    /// Private network to runner, Mb/s.
    down: f64,
    /// CPU seconds of the gateway process per gigabyte carried.
    cpu_per_gb: f64,
    /// Milliseconds from the first IKE message to the child SA.
    handshakes: Vec<f64>,
    /// Pings without an answer before the load began.
    pings_lost: u32,
}

/// Runs a benchmark by name; the last line printed is one JSON object.
///
/// # Errors
/// When the name is unknown or a gateway does not work.
pub fn run(name: &str) -> Result<()> {
    if !["tunnel", "revoke"].contains(&name) {
        bail!("there is no benchmark `{name}`; see --list");
    }
    if !rustix::process::geteuid().is_root() {
        bail!("benchmarks build network namespaces: run them as root");
    }
    cleanup::sweep_leftovers();
    cleanup::on_signals()?;
    if name == "revoke" {
        println!("{}", super::bench_revoke::run()?);
        return Ok(());
    }
    let mut ours = Vec::new();
    let mut theirs = Vec::new();
    for turn in 1..=TURNS {
        let runnel = runnel_turn()?;
        print_turn("runnel", turn, &runnel);
        ours.push(runnel);
        let strongswan = strongswan_turn()?;
        print_turn("kernel-libipsec", turn, &strongswan);
        theirs.push(strongswan);
    }
    println!("{}", report(&ours, &theirs));
    Ok(())
}

fn runnel_turn() -> Result<Turn> {
    let lab = Lab::new("bench", false)?;
    let world = World::new(&lab, Shape::default())?;
    let settings = Settings { build: Build::Release, ..Settings::default() };
    let gateway = Gateway::start(&world.gateway, &settings)?;
    let mut scene = Scene::around(world, gateway)?;
    let credentials = scene.enrol(scene.world.runner(), "enrolled", P256)?;
    let charon = scene.runner(scene.world.runner(), &credentials, |_| {})?;
    let pid = scene.gateway.process()?.pid();
    measure(&scene.world, &charon, pid)
}

fn strongswan_turn() -> Result<Turn> {
    let lab = Lab::new("bench", false)?;
    let world = World::new(&lab, Shape::default())?;
    let mut peers = Baseline::start(&world)?;
    let pid = peers.gateway.process().pid();
    measure(&world, &peers.runner, pid)
}

fn measure(world: &World, charon: &Charon, gateway_pid: u32) -> Result<Turn> {
    let mut turn = Turn::default();
    for _ in 0..HANDSHAKES {
        let mark = charon.log().len();
        charon.initiate("net")?;
        turn.handshakes.push(handshake_ms(charon.log().get(mark..).unwrap_or_default())?);
        charon.terminate("net")?;
    }
    charon.initiate("net")?;
    let _server = iperf_server(&world.private)?;
    let (sent, received) = ping(world.runner(), STORE, 20, 0.05)?;
    turn.pings_lost = sent - received;
    let cpu = cpu_seconds(gateway_pid)?;
    let (up, up_bytes) = iperf(world.runner(), false)?;
    let (down, down_bytes) = iperf(world.runner(), true)?;
    turn.up = up;
    turn.down = down;
    turn.cpu_per_gb = (cpu_seconds(gateway_pid)? - cpu) / ((up_bytes + down_bytes) / 1e9);
    charon.terminate("net")?;
    Ok(turn)
}

fn iperf_server(host: &Host) -> Result<Process> {
    let mut command = host.command("iperf3");
    command.args(["-s", "-B", STORE]);
    let log = host.dir()?.join("iperf3.log");
    let process = Process::start(host.lab(), "iperf3 server", command, &log)?;
    wait::holds(host.lab(), "the iperf3 server", Duration::from_secs(5), || {
        Ok(host.run("ss", &["-ltn"])?.contains(":5201"))
    })?;
    Ok(process)
}

/// One TCP stream; returns (Mb/s, bytes) as the receiver counted them.
fn iperf(host: &Host, reverse: bool) -> Result<(f64, f64)> {
    let seconds = SECONDS.to_string();
    let mut words = vec!["-c", STORE, "-t", &seconds, "-O", "1", "-J"];
    if reverse {
        words.push("-R");
    }
    let started = Instant::now();
    let said = host.output("iperf3", &words)?;
    let all: Value = serde_json::from_str(&said.out)
        .with_context(|| format!("iperf3 said after {:?}: {}", started.elapsed(), said.all()))?;
    let received = &all["end"]["sum_received"];
    let bits = received["bits_per_second"].as_f64();
    let bytes = received["bytes"].as_f64();
    match (bits, bytes) {
        (Some(bits), Some(bytes)) if bits > 0.0 => Ok((bits / 1e6, bytes)),
        _ => bail!("iperf3 measured nothing: {all}"),
    }
}

/// User and system time of a process so far.
fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> =
        stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: Option<f64> = fields
        .get(11)
        .zip(fields.get(12))
        .and_then(|(user, system)| Some(user.parse::<f64>().ok()? + system.parse::<f64>().ok()?));
    // The clock tick of /proc is 100 Hz on every Linux this runs on.
    Ok(ticks.context("no CPU time in /proc")? / 100.0)
}

/// Milliseconds from "initiating" to "established" in strongSwan's own log.
pub(super) fn handshake_ms(log: &str) -> Result<f64> {
    let at = |line: &str| -> Option<f64> {
        let clock = line.split_whitespace().next()?;
        let mut parts = clock.split(':').map(|part| part.parse::<f64>().ok());
        Some((parts.next()?? * 3600.0 + parts.next()?? * 60.0 + parts.next()??) * 1000.0)
    };
    let first = log.lines().find(|line| line.contains("initiating IKE_SA")).and_then(at);
    let last = log
        .lines()
        .find(|line| line.contains("CHILD_SA") && line.contains("established"))
        .and_then(at);
    match (first, last) {
        (Some(first), Some(last)) if last >= first => Ok(last - first),
        _ => bail!("no handshake in the strongSwan log: {log}"),
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => 0.0,
        n if n % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

fn print_turn(who: &str, number: usize, turn: &Turn) {
    println!(
        "turn {number} {who:<16} up {:>6.0} Mb/s  down {:>6.0} Mb/s  {:>5.2} CPU s/GB  handshake {:>5.1} ms",
        turn.up,
        turn.down,
        turn.cpu_per_gb,
        median(turn.handshakes.clone())
    );
}

fn report(ours: &[Turn], theirs: &[Turn]) -> Value {
    let middle = |turns: &[Turn], pick: fn(&Turn) -> f64| median(turns.iter().map(pick).collect());
    let handshake =
        |turns: &[Turn]| median(turns.iter().flat_map(|t| t.handshakes.clone()).collect());
    let side = |turns: &[Turn]| {
        json!({
            "up_mbps": middle(turns, |t| t.up).round(),
            "down_mbps": middle(turns, |t| t.down).round(),
            "gateway_cpu_seconds_per_gb": round2(middle(turns, |t| t.cpu_per_gb)),
            "handshake_ms": round2(handshake(turns)),
            "pings_lost": turns.iter().map(|t| t.pings_lost).sum::<u32>(),
        })
    };
    let up = middle(ours, |t| t.up) / middle(theirs, |t| t.up);
    let down = middle(ours, |t| t.down) / middle(theirs, |t| t.down);
    json!({
        "bench": "tunnel",
        // The mean of both directions, so that neither can hide the other.
        "ratio_to_kernel_libipsec": round2(f64::midpoint(up, down)),
        "ratio_up": round2(up),
        "ratio_down": round2(down),
        "handshake_ms": round2(handshake(ours)),
        "turns": ours.len(),
        "runnel": side(ours),
        "kernel_libipsec": side(theirs),
    })
}

pub(super) fn round2(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handshake_is_read_from_the_log() {
        let log = "09:30:00.100 01[IKE] initiating IKE_SA net[1] to 203.0.113.2\n\
                   09:30:00.111 05[IKE] CHILD_SA net{1} established with SPIs a b\n";
        assert!((handshake_ms(log).unwrap() - 11.0).abs() < 0.01);
    }

    #[test]
    fn the_median_of_an_even_count_is_the_mean_of_the_middle() {
        assert!((median(vec![4.0, 1.0, 3.0, 2.0]) - 2.5).abs() < f64::EPSILON);
    }
}
