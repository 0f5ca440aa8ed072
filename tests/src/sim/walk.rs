//! Random walks: a seed decides the weather, the clients and what happens to them; afterwards the
//! network is fine again and everything must converge, work, and leave nothing behind.

use std::fmt;
use std::time::Duration;

use super::crypto::{self, mix};
use super::link::Weather;
use super::node::{Happened, Node};
use super::rng::Rng;
use super::settle::settle;
use super::world::World;
use super::{ops, scene};

/// What went wrong in a walk; the seed replays it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The walk's seed.
    pub seed: u64,
    /// Every rule that was broken.
    pub broken: Vec<String>,
    /// What had been done to the world.
    pub story: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {} (replay: cargo xtask sim --walks 1 --seed {})", self.seed, self.seed)?;
        for line in &self.story {
            writeln!(f, "    {line}")?;
        }
        for line in &self.broken {
            writeln!(f, "  BROKEN {line}")?;
        }
        Ok(())
    }
}

/// What a walk did, for the report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Summary {
    /// Datagrams sent.
    pub sent: u64,
    /// Datagrams lost.
    pub lost: u64,
    /// IKE SAs established at the gateway.
    pub established: u64,
    /// A digest of every byte on the wire and every event: equal for equal seeds. Zero when the
    /// walk was not replayed.
    pub digest: u64,
}

/// Runs the walk of a seed, and then each engine's part of it again, which must give the same
/// bytes.
///
/// # Errors
/// Every broken rule.
pub fn walk(seed: u64) -> Result<Summary, Failure> {
    run(seed, true)
}

/// Runs the walk of a seed once.
///
/// # Errors
/// Every broken rule.
pub fn walk_once(seed: u64) -> Result<Summary, Failure> {
    run(seed, false)
}

/// Everything the hosts of a seed's walk were given and gave, in order: for looking into a failure.
pub fn tell(seed: u64) -> Vec<String> {
    let (world, ..) = play(seed, true);
    let mut lines = Vec::new();
    for node in &world.nodes {
        let mut outputs = node.outputs.iter();
        let mut engine = None;
        for (now, happened) in &node.record {
            let given = match happened {
                Happened::Input(input) => brief(input),
                Happened::Restart(_, found) => format!("restart with {} snapshots", found.len()),
            };
            let at = now.mono.0;
            lines.push((at, format!("{:11.4} {} < {given}", at as f64 / 1e6, node.name)));
            for output in again(&mut engine, node, *now, happened).into_iter().zip(&mut outputs) {
                let text = match output.1 {
                    ike::Output::Transmit(sent) => {
                        format!("to {} {}", sent.remote, header(&sent.payload))
                    }
                    ike::Output::Checkpoint(_) => continue,
                    other => short(format!("{other:?}")),
                };
                lines.push((at, format!("{:11.4} {}   > {text}", at as f64 / 1e6, node.name)));
            }
        }
    }
    lines.sort_by_key(|(at, _)| *at);
    lines.into_iter().map(|(_, line)| line).collect()
}

fn brief(input: &ike::Input) -> String {
    match input {
        ike::Input::Datagram(got) => format!("from {} {}", got.remote, header(&got.payload)),
        other => short(format!("{other:?}")),
    }
}

fn header(message: &[u8]) -> String {
    match ike::wire::Header::peek(message) {
        Ok(header) => {
            let kind = if header.flags.response { "answer" } else { "request" };
            let (i, r) = (header.spi_i.0 & 0xffff, header.spi_r.0 & 0xffff);
            format!("{i:04x}/{r:04x} {} {kind} {}", header.exchange, header.message_id)
        }
        Err(error) => error.to_string(),
    }
}

fn short(text: String) -> String {
    text.chars().take(260).collect()
}

fn run(seed: u64, replayed: bool) -> Result<Summary, Failure> {
    let (world, broken, story, established) = play(seed, replayed);
    if !broken.is_empty() {
        return Err(Failure { seed, broken, story });
    }
    Ok(Summary {
        sent: world.link.sent,
        lost: world.link.lost,
        established,
        digest: digest(&world),
    })
}

fn play(seed: u64, replayed: bool) -> (World, Vec<String>, Vec<String>, u64) {
    let mut rng = Rng::new(seed, 0x3a1c);
    let weather = Weather {
        loss: rng.below(30),
        duplicate: rng.below(25),
        delay: Duration::from_millis(1 + rng.below(60)),
        jitter: Duration::from_millis(rng.below(100)),
        straggle: rng.below(8),
    };
    let clients = 1 + rng.below(4) as u8;
    let mut world = World::new(seed, weather, clients);
    if rng.chance(30) {
        world.add_gateway();
    }
    for node in &mut world.nodes {
        node.recording = replayed;
    }
    if rng.chance(20) {
        world.lost_answers = 1 + rng.below(3);
    }
    let mut story = vec![scene::set(&mut world, &mut rng)];
    for client in 1..=usize::from(clients) {
        world.connect(client);
    }
    for _ in 0..3 + rng.below(12) {
        let client = 1 + rng.below(u64::from(clients)) as usize;
        let what = ops::act(&mut world, &mut rng, client);
        story.push(format!("{:9.3} s: {what}", world.now.mono.0 as f64 / 1e6));
        world.run(Duration::from_millis(rng.below(8000)));
        world.check_leases();
    }
    let mut broken = settle(&mut world);
    let established =
        world.gateways().iter().map(|gw| world.nodes[*gw].engine.stats().established).sum();
    broken.extend(world.leaks_after_shutdown());
    if crypto::iv_reuses() > 0 {
        broken.push(format!("{} IKE messages under a key and IV of another", crypto::iv_reuses()));
    }
    if replayed {
        replay(&world, &mut broken);
    }
    (world, broken, story, established)
}

/// The same inputs give the same bytes.
fn replay(world: &World, broken: &mut Vec<String>) {
    for node in &world.nodes {
        crypto::forget_ivs();
        let mut engine = None;
        let mut outputs = Vec::with_capacity(node.outputs.len());
        for (now, happened) in &node.record {
            outputs.extend(again(&mut engine, node, *now, happened));
        }
        if outputs != node.outputs {
            let at = outputs.iter().zip(&node.outputs).position(|(a, b)| a != b);
            broken.push(format!("{}: a replay differs from output {at:?} on", node.name));
        }
    }
}

/// Gives another engine what a node's was given, and takes what comes out. One that cannot be made
/// gives nothing, which is a difference.
fn again(
    engine: &mut Option<ike::Engine>,
    node: &Node,
    now: ike::Now,
    happened: &Happened,
) -> Vec<ike::Output> {
    match happened {
        Happened::Input(input) => {
            if engine.is_none() {
                let start = ike::Timestamp(1_000_000).min(now.mono);
                let first = ike::Now { mono: start, wall: super::world::EPOCH };
                let config = super::setup::config(&node.name);
                *engine = ike::Engine::new(config, &crypto::PROVIDER, node.seed, first).ok();
            }
            if let Some(engine) = engine {
                engine.handle(now, input.clone());
            }
        }
        Happened::Restart(seed, snapshots) => {
            let config = engine
                .as_ref()
                .map_or_else(|| super::setup::config(&node.name), |old| old.config().clone());
            let found = snapshots.clone();
            *engine = ike::Engine::restore(config, &crypto::PROVIDER, *seed, now, found).ok();
        }
    }
    engine
        .as_mut()
        .map_or_else(Vec::new, |engine| std::iter::from_fn(|| engine.poll_output()).collect())
}

fn digest(world: &World) -> u64 {
    let mut state = 0;
    for node in &world.nodes {
        for output in &node.outputs {
            let text = match output {
                ike::Output::Transmit(transmit) => transmit.payload.clone(),
                other => format!("{other:?}").into_bytes(),
            };
            let mixed = mix(8, state, &[&text]);
            state = mixed.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        }
    }
    state
}
