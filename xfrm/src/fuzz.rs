//! Bodies of the fuzz targets for what strangers and the kernel send to the data planes. The
//! committed corpus is replayed by a test here; libFuzzer runs the same functions.
#![allow(clippy::expect_used)]

pub use crate::kernel::kernel_message;
pub use crate::nft::nft_message;
pub use crate::route::route_message;
pub use crate::user::{esp_packet, inner_packet};

/// A target's name and function.
pub type Target = (&'static str, fn(&[u8]));

/// All targets of this crate.
pub const TARGETS: [Target; 5] = [
    ("esp", esp_packet),
    ("inner-packet", inner_packet),
    ("kernel-message", kernel_message),
    ("nft-message", nft_message),
    ("route-message", route_message),
];

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn the_corpus_of_packets_and_kernel_messages_holds() {
        let corpus = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/corpus");
        for (name, target) in TARGETS {
            let files = std::fs::read_dir(corpus.join(name)).expect("a corpus");
            let inputs: Vec<Vec<u8>> = files
                .map(|file| std::fs::read(file.expect("a file").path()).expect("readable"))
                .collect();
            assert!(inputs.len() >= 4, "{name} has {} files", inputs.len());
            for input in inputs {
                target(&input);
                for at in 0..input.len() {
                    let mut damaged = input.clone();
                    damaged[at] ^= 1 << (at % 8);
                    target(&damaged);
                    target(&input[..at]);
                }
            }
        }
    }

    /// `BLESS=1` writes the corpus: packets and messages made here, octet for octet.
    #[test]
    fn the_corpus_is_what_its_generators_make() {
        let corpus = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/corpus");
        let samples = crate::user::samples().into_iter().chain(crate::kernel::samples());
        let samples = samples.chain(crate::nft::samples()).chain(crate::route::samples());
        for (target, name, octets) in samples {
            let path = corpus.join(target).join(name);
            if std::env::var_os("BLESS").is_some() {
                std::fs::create_dir_all(corpus.join(target)).expect("a folder");
                std::fs::write(&path, &octets).expect("written");
            }
            let found = std::fs::read(&path).expect("BLESS=1 writes it");
            assert!(found == octets, "{}: BLESS=1 writes it anew", path.display());
        }
    }
}
