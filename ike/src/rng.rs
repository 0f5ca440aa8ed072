//! Randomness that replays: ChaCha20 from the seed the driver gave, one stream per SA, so that
//! what one SA draws never depends on what happens to another.

use rand_chacha::ChaCha20Rng;
use rand_core::{Rng, SeedableRng};

/// The engine's own stream: SPIs and cookie secrets.
const ENGINE_STREAM: u64 = 0;

/// The seed from which every stream is made.
#[derive(Clone)]
pub(crate) struct Seed([u8; 32]);

impl std::fmt::Debug for Seed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Seed")
    }
}

impl Seed {
    pub(crate) fn new(seed: [u8; 32]) -> Self {
        Self(seed)
    }

    /// The engine's stream.
    pub(crate) fn engine(&self) -> SaRng {
        self.stream(ENGINE_STREAM)
    }

    /// The stream of one SA; `id` is never zero and never repeats under one seed.
    pub(crate) fn stream(&self, id: u64) -> SaRng {
        let mut rng = ChaCha20Rng::from_seed(self.0);
        rng.set_stream(id);
        SaRng(rng)
    }
}

/// One stream.
pub(crate) struct SaRng(ChaCha20Rng);

impl SaRng {
    /// Fills `out` with random octets.
    pub(crate) fn fill(&mut self, out: &mut [u8]) {
        self.0.fill_bytes(out);
    }

    /// `len` random octets.
    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        self.fill(&mut out);
        out
    }

    /// A random array.
    pub(crate) fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        self.fill(&mut out);
        out
    }

    /// A random number.
    pub(crate) fn u64(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// A number below `bound`; zero for a zero bound. The bias is of no matter for jitter.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.u64().checked_rem(bound).unwrap_or(0)
    }
}

impl std::fmt::Debug for SaRng {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SaRng")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_repeat_themselves_and_differ_from_each_other() {
        let seed = Seed::new([7; 32]);

        assert_eq!(seed.stream(1).array::<32>(), seed.stream(1).array::<32>());
        assert_ne!(seed.stream(1).array::<32>(), seed.stream(2).array::<32>());
        assert_ne!(seed.engine().array::<32>(), seed.stream(1).array::<32>());
    }
}
