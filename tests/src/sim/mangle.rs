//! Two engines and a link between them that does what a script of octets says: for fuzzing.
//!
//! The script starts exchanges, loses, cuts, changes and repeats datagrams, and lets an end say
//! nonsense under its own keys. Afterwards the network is fine again: nobody may have panicked, a
//! new connection must come up, and when both shut down nothing may be left.

use std::time::Duration;

use ike::Command;
use ike::crypto::{EspSuite, IkeSuite};
use ike::event::CloseReason;
use ike::snapshot::Snapshot;

use super::crypto;
use super::link::{Change, Weather};
use super::ops::live;
use super::world::World;

/// Steps of a script at most: a longer one only takes longer.
const STEPS: usize = 64;

/// A script, read from the front; what is missing at its end is zero.
struct Script<'a>(&'a [u8]);

impl Script<'_> {
    fn octet(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn word(&mut self) -> usize {
        usize::from(self.octet()) << 8 | usize::from(self.octet())
    }
}

/// Runs a script.
///
/// # Panics
/// When an engine does, when nobody can connect afterwards, and when something is left over.
pub fn pair(data: &[u8]) {
    let mut world = World::new(1, Weather::FINE, 1);
    let mut script = Script(data);
    world.connect(1);
    for _ in 0..STEPS {
        if script.0.is_empty() {
            break;
        }
        step(&mut world, &mut script);
    }
    world.link.changes.clear();
    world.link.drop_next(0);
    // A lie that nobody has told yet is forgotten with the rest of the stream's state.
    crypto::reseed(2);
    for node in [0, 1] {
        world.restart(node);
    }
    world.run(Duration::from_secs(90));
    if world.working_children(1) == 0 {
        world.connect(1);
        world.run(Duration::from_secs(5));
    }
    assert!(world.working_children(1) > 0, "no new connection comes up");
    assert_eq!(world.leaks_after_shutdown(), Vec::<String>::new());
}

fn step(world: &mut World, script: &mut Script<'_>) {
    let operation = script.octet();
    let node = usize::from(operation >> 7);
    match operation & 0x0f {
        0 => world.run(Duration::from_millis(u64::from(script.octet()) * 10)),
        1 => world.run(Duration::from_millis(u64::from(script.octet()) / 4)),
        2 | 3 => {
            let (at, with) = (script.word() % 2048, script.octet().max(1));
            world.link.changes.push(Change::Flip(at, with));
        }
        4 => {
            let len = script.word() % 2048;
            world.link.changes.push(Change::Cut(len));
        }
        5 => world.link.changes.push(Change::Twice),
        6 => world.link.drop_next(1 + u32::from(script.octet() % 4)),
        7..=9 => {
            let (at, with) = (script.word() % 2048, script.octet().max(1));
            crypto::lie_next(at, with);
        }
        10 => {
            let children: Vec<_> = world.nodes[node].plane.keys().copied().collect();
            for child in children {
                world.command(node, Command::RekeyChild(child));
            }
        }
        11 => {
            for id in live(world, node) {
                world.command(node, Command::RekeyIke(id));
            }
        }
        12 => {
            let child = world.nodes[node].plane.keys().next().copied();
            if let Some(child) = child {
                world.command(node, Command::CloseChild(child, CloseReason::Operator));
            }
        }
        13 => {
            for id in live(world, node) {
                world.command(node, Command::CloseIkeSa(id, CloseReason::Operator));
            }
        }
        14 => {
            world.crash(node);
            world.restart(node);
        }
        _ => world.connect(1),
    }
}

/// Octets that claim to be a snapshot: what is taken is written the same again.
///
/// # Panics
/// When it is not.
pub fn snapshot(data: &[u8]) {
    if let Ok(snapshot) = Snapshot::decode(data) {
        let encoded = snapshot.encode();
        let again = Snapshot::decode(&encoded).ok();
        assert!(again.is_some_and(|again| again == snapshot), "a snapshot changes by being read");
    }
}

/// Text that claims to be a proposal: what is taken is written so that it means the same.
///
/// # Panics
/// When it is not.
pub fn proposal(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(suites) = IkeSuite::parse_proposal(text) {
        for suite in suites {
            assert_eq!(suite.to_string().parse::<IkeSuite>().ok(), Some(suite));
        }
    }
    if let Ok(suites) = EspSuite::parse_proposal(text) {
        for suite in suites {
            assert_eq!(suite.to_string().parse::<EspSuite>().ok(), Some(suite));
        }
    }
}
