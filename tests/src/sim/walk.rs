//! Random walks: a seed decides the weather, the clients and what happens to them; afterwards the
//! network is fine again and everything must converge, work, and leave nothing behind.

use std::fmt;
use std::time::Duration;

use ike::event::CloseReason;
use ike::io::{IkeSaId, LeaseId};
use ike::{Command, SaState};

use super::crypto::mix;
use super::link::Weather;
use super::rng::Rng;
use super::world::{World, client_address};

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
    /// A digest of every byte on the wire and every event: equal for equal seeds.
    pub digest: u64,
}

/// Longest time after the last fault until both ends agree: a full retransmission series (about
/// 42 s), found by a liveness check (10 s), the half-open time (30 s) and some slack.
const CONVERGENCE: Duration = Duration::from_secs(150);

/// Runs the walk of a seed.
///
/// # Errors
/// Every broken rule.
pub fn walk(seed: u64) -> Result<Summary, Failure> {
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
    for node in &mut world.nodes {
        node.recording = true;
    }
    let mut story = vec![format!("{clients} clients, {weather:?}")];
    for client in 1..=usize::from(clients) {
        world.connect(client);
    }
    for _ in 0..3 + rng.below(12) {
        let client = 1 + rng.below(u64::from(clients)) as usize;
        let what = act(&mut world, &mut rng, client);
        story.push(format!("{:9.3} s: {what}", world.now.mono.0 as f64 / 1e6));
        world.run(Duration::from_millis(rng.below(8000)));
    }
    let mut broken = Vec::new();
    settle(&mut world, clients, &mut broken);
    replay(&world, &mut broken);
    let established = world.gateway().engine.stats().established;
    broken.extend(world.leaks_after_shutdown());
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

fn act(world: &mut World, rng: &mut Rng, client: usize) -> String {
    let name = world.nodes[client].name.clone();
    match rng.below(11) {
        0 | 1 => {
            world.connect(client);
            format!("{name} connects (again)")
        }
        2 => {
            for id in live(world, client) {
                world.command(client, Command::CloseIkeSa(id, CloseReason::Operator));
            }
            format!("{name} closes")
        }
        3 => {
            world.gateway().ended.insert(name.clone());
            let lease = LeaseId(format!("lease-{name}"));
            world.command(0, Command::CloseLease(lease, CloseReason::Revoked));
            format!("{name} is revoked")
        }
        4 => {
            let address = client_address(client as u8 - 1);
            world.link.partition(address, true);
            world.run(Duration::from_millis(rng.below(60_000)));
            world.link.partition(address, false);
            format!("{name} was cut off")
        }
        5 => {
            let count = 1 + rng.below(4) as u32;
            world.link.drop_next(count);
            format!("the next {count} datagrams are lost")
        }
        6 => {
            for id in live(world, 0) {
                if rng.chance(30) {
                    world.command(0, Command::CloseIkeSa(id, CloseReason::Operator));
                }
            }
            "the gateway closes some".to_owned()
        }
        7 | 8 => {
            let node = if rng.chance(50) { client } else { 0 };
            for id in live(world, node) {
                world.command(node, Command::RekeyIke(id));
            }
            format!("{} rekeys its IKE SAs", world.nodes[node].name)
        }
        9 => {
            // Both at once: what RFC 7296 2.8 is mostly about.
            for node in [client, 0] {
                let children: Vec<_> = world.nodes[node].plane.keys().copied().collect();
                for child in children {
                    world.command(node, Command::RekeyChild(child));
                }
            }
            format!("{name} and the gateway rekey their children")
        }
        _ => "time passes".to_owned(),
    }
}

fn live(world: &World, node: usize) -> Vec<IkeSaId> {
    world.nodes[node]
        .engine
        .sas()
        .filter(|sa| sa.state == SaState::Established)
        .map(|sa| sa.id)
        .collect()
}

/// The network is fine: both ends must come to agree, and everyone who may connect must be able to.
fn settle(world: &mut World, clients: u8, broken: &mut Vec<String>) {
    world.link.weather = Weather::FINE;
    world.link.drop_next(0);
    world.run(CONVERGENCE);
    for client in 1..=usize::from(clients) {
        let name = world.nodes[client].name.clone();
        let half = world.half_children(client);
        if half > 0 {
            broken.push(format!("{name}: {half} children on one side only after convergence"));
        }
        if world.gateway().ended.contains(&name) {
            let left = world
                .gateway()
                .plane
                .values()
                .filter(|child| child.lease.0 == format!("lease-{name}"))
                .count();
            if left > 0 {
                broken.push(format!("{name}: revoked, and {left} children live"));
            }
            continue;
        }
        if world.working_children(client) == 0 {
            world.connect(client);
            world.run(Duration::from_secs(5));
        }
        if world.working_children(client) == 0 {
            broken.push(format!("{name}: cannot connect in fine weather"));
        }
        let outbound = world.nodes[0]
            .plane
            .values()
            .filter(|child| child.lease.0 == format!("lease-{name}") && child.outbound_active)
            .count();
        if outbound > 1 {
            broken.push(format!("{name}: {outbound} live outbound children at the gateway"));
        }
    }
}

/// The same inputs give the same bytes.
fn replay(world: &World, broken: &mut Vec<String>) {
    for node in &world.nodes {
        let Some((start, _)) = node.record.first() else { continue };
        let first =
            ike::Now { mono: start.mono.min(ike::Timestamp(1_000_000)), wall: super::world::EPOCH };
        let config = super::node::config(&node.name);
        let Ok(mut again) = ike::Engine::new(config, &super::crypto::PROVIDER, node.seed, first)
        else {
            broken.push(format!("{}: the configuration is not accepted again", node.name));
            continue;
        };
        let mut outputs = Vec::with_capacity(node.outputs.len());
        for (now, input) in &node.record {
            again.handle(*now, input.clone());
            while let Some(output) = again.poll_output() {
                outputs.push(output);
            }
        }
        if outputs != node.outputs {
            let at = outputs.iter().zip(&node.outputs).position(|(a, b)| a != b);
            broken.push(format!("{}: a replay differs from output {at:?} on", node.name));
        }
    }
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
