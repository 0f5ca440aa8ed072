//! Replays the fuzz targets' corpus.

use std::path::PathBuf;

use crate::samples::samples;
use crate::targets::TARGETS;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/corpus")
}

#[test]
fn samples_are_the_committed_octets() {
    let bless = std::env::var_os("BLESS").is_some();
    for (target, name, octets) in samples() {
        let path = folder().join(target).join(name);
        assert!(!octets.is_empty() && octets.len() <= 1024, "{name}: {} octets", octets.len());
        if bless {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, &octets).unwrap();
        }
        let committed = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert!(committed == octets, "{target}/{name} is encoded differently than before");
    }
}

#[test]
fn every_file_runs_through_its_target() {
    for (target, run) in TARGETS {
        let mut files: Vec<_> = std::fs::read_dir(folder().join(target))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        files.sort();
        assert!(files.len() >= 6, "{target} has {} files", files.len());
        for file in files {
            println!("{}", file.display());
            run(&std::fs::read(&file).unwrap());
        }
    }
}

#[test]
fn every_sample_runs_through_every_target_cut_and_changed() {
    for (_, _, octets) in samples() {
        for (_, run) in TARGETS {
            for cut in (0..octets.len()).step_by(octets.len() / 8 + 1) {
                run(&octets[..cut]);
                let mut changed = octets.clone();
                changed[cut] ^= 0x80;
                run(&changed);
            }
        }
    }
}
