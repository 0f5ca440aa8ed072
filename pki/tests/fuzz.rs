//! Replays the corpus of the fuzz targets that read what strangers send about certificates, and
//! damages their seeds octet by octet.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

#[path = "../../tests/fuzz/src/jwt.rs"]
pub mod jwt;
#[path = "../../tests/fuzz/src/status.rs"]
pub mod status;

use std::path::PathBuf;

#[test]
fn the_corpus_of_certificates_and_status_requests_holds() {
    let corpus = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/corpus");
    let targets = status::TARGETS.into_iter().chain(jwt::TARGETS);
    let seeds: Vec<_> = status::seeds().into_iter().chain(jwt::seeds()).collect();
    for (name, target) in targets {
        let mut inputs: Vec<Vec<u8>> = std::fs::read_dir(corpus.join(name))
            .into_iter()
            .flatten()
            .map(|entry| std::fs::read(entry.unwrap().path()).unwrap())
            .collect();
        let own = seeds.iter().filter(|seed| seed.0 == name);
        inputs.extend(own.map(|seed| seed.2.clone()));
        assert!(!inputs.is_empty(), "{name} has no corpus");
        for input in inputs {
            target(&input);
            for position in 0..input.len() {
                let mut damaged = input.clone();
                damaged[position] ^= 1 << (position % 8);
                target(&damaged);
                target(&input[..position]);
            }
        }
    }
}
