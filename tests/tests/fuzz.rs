//! Replays the corpus of the fuzz targets that run whole engines or read what operators and files
//! say, and some scripts that are made on the spot.
#![allow(clippy::expect_used, clippy::print_stdout)]

use std::path::PathBuf;

use tests::sim::mangle;
use tests::sim::rng::Rng;

fn replay(target: &str, run: fn(&[u8])) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .expect("a corpus")
        .map(|file| file.expect("a file").path())
        .collect();
    files.sort();
    assert!(files.len() >= 4, "{target} has {} files", files.len());
    for file in files {
        println!("{}", file.display());
        run(&std::fs::read(&file).expect("readable"));
    }
}

#[test]
fn every_script_ends_with_a_new_connection_and_nothing_left() {
    replay("pair", mangle::pair);
}

#[test]
fn every_snapshot_is_read_or_refused() {
    replay("snapshot", mangle::snapshot);
}

#[test]
fn every_proposal_is_read_or_refused() {
    replay("proposal", mangle::proposal);
}

/// Without guidance by coverage, but on every run of the tests.
#[test]
fn random_scripts_end_with_a_new_connection_and_nothing_left() {
    for seed in 0..200 {
        let mut rng = Rng::new(seed, 0xf022);
        let mut script = Vec::new();
        for _ in 0..rng.below(120) {
            script.push(rng.below(256) as u8);
        }
        println!("{script:02x?}");
        mangle::pair(&script);
    }
}

/// Snapshots of an SA in the middle of rekeys, whole, cut and changed. `BLESS=1` writes them into
/// the corpus.
#[test]
fn snapshots_of_a_walk_are_read_whole_and_refused_or_read_when_changed() {
    use ike::Command;
    use std::time::Duration;
    use tests::sim::link::Weather;
    use tests::sim::world::World;

    let mut world = World::new(1, Weather::FINE, 3);
    for client in 1..=3 {
        world.connect(client);
    }
    world.run(Duration::from_secs(2));
    let children: Vec<_> = world.nodes[0].plane.keys().copied().collect();
    for child in children {
        world.command(0, Command::RekeyChild(child));
    }
    world.run(Duration::from_millis(8));
    let mut octets: Vec<Vec<u8>> = Vec::new();
    for node in &world.nodes {
        octets.extend(node.snapshots.values().map(|snapshot| snapshot.encode().to_vec()));
    }
    assert_eq!(octets.len(), 6);
    let bless = std::env::var_os("BLESS").is_some();
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/snapshot");
    for (number, octets) in octets.iter().enumerate() {
        if bless && number < 4 {
            std::fs::create_dir_all(&folder).expect("a folder");
            std::fs::write(folder.join(format!("sa_{number}")), octets).expect("written");
        }
        mangle::snapshot(octets);
        for at in 0..octets.len() {
            mangle::snapshot(&octets[..at]);
            for bit in [1, 0x80] {
                let mut changed = octets.clone();
                changed[at] ^= bit;
                mangle::snapshot(&changed);
            }
        }
    }
}
