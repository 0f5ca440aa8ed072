//! What a walk's seed decides before it begins: who the clients are, and how gateways are set up.

use std::time::Duration;

use ike::Command;
use ike::config::EngineConfig;
use ike::crypto::SecretBytes;

use super::crypto;
use super::node::Kind;
use super::rng::Rng;
use super::setup::Habits;
use super::world::World;

/// Draws the scene, and says what it is.
pub fn set(world: &mut World, rng: &mut Rng) -> String {
    let gateways = gateways(rng);
    for number in 0..world.nodes.len() {
        let mut config = world.nodes[number].config.clone();
        if world.nodes[number].kind == Kind::Gateway {
            gateways.apply(&mut config);
            world.nodes[number].lease_life = gateways.lease_life;
        } else {
            world.nodes[number].habits = habits(rng, &gateways);
        }
        let name = &world.nodes[number].name;
        let secret = rng.chance(50).then(|| crypto::mix(32, TOKENS, &[name.as_bytes()]));
        config.continuity.crash_secret = secret.map(SecretBytes::new);
        config.continuity.message_id_sync = rng.chance(80);
        // Checkpoints are never behind here: with or without, nothing may get lost.
        config.continuity.sync_after_restart = config.continuity.crash_secret.is_some();
        world.command(number, Command::Reconfigure(Box::new(config)));
    }
    let clients = world.nodes.iter().filter(|node| node.kind != Kind::Gateway);
    let habits: Vec<_> = clients.map(|node| node.habits).collect();
    let faults = if rng.chance(25) { 1 + rng.below(10) } else { 0 };
    world.nodes.iter_mut().for_each(|node| node.tls.faults = faults);
    let (count, lost) = (world.gateways().len(), world.lost_answers);
    let weather = world.link.weather;
    format!(
        "{habits:?}, {count} times {gateways:?}, {lost} % of answers lost, {faults} % of TLS fails, {weather:?}"
    )
}

/// Domain of the secrets of crash tokens.
const TOKENS: u64 = 0x7c;

fn habits(rng: &mut Rng, gateways: &Gateways) -> Habits {
    // Who insists on what the gateways lack never connects.
    let eap = gateways.eap && rng.chance(40);
    Habits {
        mobike: rng.chance(50),
        follows: rng.chance(60),
        shared_key: rng.chance(30),
        eap: eap.then(|| gateways.eap_only && rng.chance(50)),
        ppk: (!eap && rng.chance(30)).then(|| gateways.ppk && rng.chance(50)),
        childless: rng.chance(15),
        several: rng.chance(30),
    }
}

/// How the gateways of a walk are set up.
#[derive(Debug)]
struct Gateways {
    /// Leases last this long,
    lease_life: Duration,
    /// and clients hear of it however short it is (RFC 4478).
    announced: bool,
    ppk: bool,
    /// They let clients prove who they are with EAP-TLS,
    eap: bool,
    /// and need not sign then.
    eap_only: bool,
    /// Half-open SAs from which cookies, and soon puzzles, are asked for.
    crowded: Option<usize>,
}

fn gateways(rng: &mut Rng) -> Gateways {
    let short = rng.chance(30);
    let lease_life = Duration::from_secs(if short { 120 + rng.below(240) } else { 7200 });
    let crowded = rng.chance(20).then(|| 1 + rng.below(2) as usize);
    Gateways {
        lease_life,
        announced: rng.chance(60),
        ppk: rng.chance(50),
        eap: rng.chance(50),
        eap_only: rng.chance(60),
        crowded,
    }
}

impl Gateways {
    fn apply(&self, config: &mut EngineConfig) {
        config.ppk = self.ppk;
        config.eap_tls = self.eap;
        config.eap_only = self.eap_only;
        if self.announced {
            config.timers.min_auth_lifetime = Duration::ZERO;
        }
        if let Some(threshold) = self.crowded {
            config.limits.cookie_threshold = threshold;
            config.limits.max_half_open = 4 * threshold;
        }
    }
}
