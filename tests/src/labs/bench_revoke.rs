//! Revocation at 1,000 live tunnels: how long until it is answered, and that nothing passes by then.
#![allow(clippy::print_stdout)] // numbers for people, then one JSON object for programs

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::{Value, json};

use super::bench::round2;
use super::many::{Fleet, enrol};
use super::runner::PORTS;
use super::scene::Scene;
use crate::lab::gateway::{Build, Settings};
use crate::lab::world::{GATEWAY, Shape};
use crate::lab::{Lab, wait};

/// Tunnels that are live at every revocation.
const LIVE: usize = 1_000;
/// Revocations measured, one after the other.
const REVOCATIONS: usize = 200;
/// Longest measuring.
const LIMIT: Duration = Duration::from_secs(60);
/// All are connected in this time, on however slow a machine.
const CONNECTED: Duration = Duration::from_secs(120);

/// The gateway is the release build with the userspace plane; the runners are engines with real
/// cryptography, as in the lab `many-runners`. A lease's packets pass while the firewall's map holds
/// its address: that it does not is looked at after each answer.
pub(super) fn run() -> Result<Value> {
    let lab = Lab::new("bench", false)?;
    let settings = Settings {
        enrol: "rate = 100000\nburst = 100000".to_owned(),
        addresses: vec!["10.77.0.0/16".to_owned()],
        build: Build::Release,
        ..Settings::default()
    };
    let scene = Scene::new(&lab, Shape::default(), &settings)?;
    let runners = LIVE + REVOCATIONS;
    println!("enrolling {runners} runners with the stock client");
    let identities = enrol(&scene, runners)?;
    let gateway = SocketAddr::new(GATEWAY.parse()?, PORTS.0);
    let mut fleet = scene.world.runner().enter(|| {
        let mut fleet = Fleet::new(identities, gateway)?;
        fleet.connect(CONNECTED)?;
        anyhow::Ok(fleet)
    })??;
    println!("{runners} tunnels are up");

    let stop = AtomicBool::new(false);
    let report = std::thread::scope(|scope| {
        // They go on answering meanwhile, as runners do.
        let fleet = scope.spawn(|| -> Result<()> {
            while !stop.load(Ordering::Relaxed) {
                fleet.work()?;
            }
            fleet.close()
        });
        let report = measure(&scene, runners);
        stop.store(true, Ordering::Relaxed);
        let closed = fleet.join().map_err(|_| anyhow!("the runners panicked"))?;
        let report = report?;
        closed.map(|()| report)
    })
    .with_context(|| lab.tails())?;
    scene.finish()?;
    Ok(report)
}

fn measure(scene: &Scene, runners: usize) -> Result<Value> {
    wait::holds(&scene.lab, "every lease to be active", Duration::from_secs(30), || {
        let status = scene.gateway.json(&["status"])?;
        Ok(status["leases"]["active"] == runners && status["child_sas"] == runners)
    })?;
    let leases = scene.gateway.json(&["lease", "list"])?;
    let leases = leases.as_array().context("no list of leases")?;
    let (mut inside, mut outside) = (Vec::new(), Vec::new());
    let started = Instant::now();
    for lease in leases.iter().take(REVOCATIONS) {
        if started.elapsed() > LIMIT {
            break;
        }
        let (id, address) = (&lease["id"], &lease["addresses"][0]);
        let id = id.as_str().context("a lease without id")?;
        let address = address.as_str().context("a lease without address")?;
        ensure!(passes(scene, address)?, "packets of {address} did not pass before");
        let asked = Instant::now();
        let ended = scene.gateway.json(&["lease", "revoke", id])?;
        outside.push(asked.elapsed().as_secs_f64() * 1e3);
        if passes(scene, address)? {
            bail!("packets of {address} pass after {id} was revoked: {ended}");
        }
        ensure!(ended["sas_closed"] == 1, "no tunnel was closed: {ended}");
        inside.push(ended["elapsed_ms"].as_f64().context("no time in the answer")?);
    }
    let status = scene.gateway.json(&["status"])?;
    let left = runners - inside.len();
    ensure!(status["child_sas"] == left, "{} child SAs are left, not {left}", status["child_sas"]);
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load: f64 = load.split_whitespace().next().unwrap_or_default().parse().unwrap_or(0.0);
    Ok(json!({
        "bench": "revoke",
        "live_tunnels": left,
        "revocations": inside.len(),
        "p50_ms": quantile(&mut inside, 50),
        "p99_ms": quantile(&mut inside, 99),
        "target_ms": 100,
        "command_p50_ms": round2(quantile(&mut outside, 50)),
        "command_p99_ms": round2(quantile(&mut outside, 99)),
        "load_average": load,
    }))
}

/// Whether the firewall lets packets of a lease's address through.
fn passes(scene: &Scene, address: &str) -> Result<bool> {
    let rules = scene.gateway.host().run("nft", &["list", "ruleset"])?;
    let of_it = |word: &str| word.trim_matches(',') == address;
    Ok(rules.split_whitespace().any(of_it))
}

fn quantile(values: &mut [f64], percent: usize) -> f64 {
    values.sort_by(f64::total_cmp);
    let index = (values.len() * percent / 100).min(values.len().saturating_sub(1));
    values.get(index).copied().unwrap_or(f64::NAN)
}
