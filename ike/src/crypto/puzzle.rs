//! Client puzzles (RFC 8019 7.1): four different keys K with which prf(K, cookie) ends in as many
//! zero bits as were asked for. Finding them costs the peer time; checking them costs four PRFs.

use super::{CryptoProvider, Prf, PrfId};

/// Keys in a solution (RFC 8019 8.2).
const KEYS: usize = 4;

/// Octets of a key at most: the longest preferred length of a PRF.
const MAX_KEY: usize = 64;

/// The hardest puzzle worth solving, in bits: about a second of HMAC-SHA2.
pub const MAX_DIFFICULTY: u8 = 20;

/// How much harder than expected a solution may be to find, as a power of two: one in e^64.
const MARGIN: u32 = 6;

/// A puzzle to be solved: slow, so it is work for the driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Puzzle {
    /// The PRF the responder chose.
    pub prf: PrfId,
    /// Zero bits asked for.
    pub difficulty: u8,
    /// The cookie: what the PRF is taken of.
    pub cookie: Vec<u8>,
}

impl Puzzle {
    /// The PUZZLE notification's data (RFC 8019 8.1).
    pub fn data(prf: PrfId, difficulty: u8) -> Vec<u8> {
        let [high, low] = prf.value().to_be_bytes();
        vec![high, low, difficulty]
    }

    /// Reads it; `None` when it is no puzzle.
    pub fn read(data: &[u8], cookie: &[u8]) -> Option<Self> {
        let &[high, low, difficulty] = data else {
            return None;
        };
        let prf = PrfId::from(u16::from_be_bytes([high, low]));
        Some(Self { prf, difficulty, cookie: cookie.to_vec() })
    }

    /// Solves it.
    ///
    /// # Errors
    /// One sentence, when the provider lacks the PRF or the puzzle is too hard.
    pub fn solve(&self, crypto: &CryptoProvider) -> Result<Vec<u8>, String> {
        let prf = crypto.prf(self.prf).filter(|prf| !prf.fixed_key());
        let prf = prf.ok_or_else(|| format!("the puzzle's PRF {} is not known", self.prf))?;
        if self.difficulty > MAX_DIFFICULTY {
            return Err(format!("a puzzle of {} bits is too hard", self.difficulty));
        }
        let expected = 1_u64.checked_shl(u32::from(self.difficulty)).unwrap_or(u64::MAX);
        let tries = expected.saturating_mul(KEYS as u64).saturating_mul(1 << MARGIN);
        let solution: Vec<[u8; 8]> = (0..tries)
            .map(u64::to_be_bytes)
            .filter(|key| zero_bits(prf, key, &self.cookie) >= self.difficulty)
            .take(KEYS)
            .collect();
        if solution.len() < KEYS {
            return Err("no solution was found".to_owned());
        }
        Ok(solution.concat())
    }
}

/// Zero bits of the weakest key of a solution: what its finder spent. 0 when it is none.
pub(crate) fn effort(prf: &dyn Prf, cookie: &[u8], solution: &[u8]) -> u8 {
    let len = solution.len().checked_div(KEYS).unwrap_or_default();
    if solution.len().checked_rem(KEYS) != Some(0) || !(1..=MAX_KEY).contains(&len) {
        return 0;
    }
    let mut keys: Vec<&[u8]> = solution.chunks(len).collect();
    keys.sort_unstable();
    keys.dedup();
    if keys.len() != KEYS {
        return 0;
    }
    keys.iter().map(|key| zero_bits(prf, key, cookie)).min().unwrap_or(0)
}

/// The PRF for a puzzle: the first of the peer's that takes keys of any length.
pub(crate) fn choose_prf<'a>(
    crypto: &CryptoProvider,
    offered: impl Iterator<Item = PrfId> + 'a,
) -> Option<&'static dyn Prf> {
    let mut offered = offered;
    offered.find_map(|id| crypto.prf(id).filter(|prf| !prf.fixed_key()))
}

fn zero_bits(prf: &dyn Prf, key: &[u8], cookie: &[u8]) -> u8 {
    let mut bits: u32 = 0;
    for octet in prf.compute(key, &[cookie]).expose().iter().rev() {
        bits = bits.saturating_add(octet.trailing_zeros());
        if *octet != 0 {
            break;
        }
    }
    u8::try_from(bits).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::ring::PROVIDER;

    #[test]
    fn a_solution_shows_the_effort_it_took_and_only_for_its_cookie() {
        let prf = PROVIDER.prf(PrfId::HmacSha2_256).unwrap();
        let puzzle = Puzzle { prf: PrfId::HmacSha2_256, difficulty: 9, cookie: vec![7; 36] };
        let solution = puzzle.solve(&PROVIDER).unwrap();

        assert!(effort(prf, &puzzle.cookie, &solution) >= 9);
        assert!(effort(prf, &[8; 36], &solution) < 9);
        assert_eq!(effort(prf, &puzzle.cookie, &solution[..31]), 0);
        // The same key four times is one key.
        let (first, _) = solution.split_at(8);
        assert_eq!(effort(prf, &puzzle.cookie, &first.repeat(4)), 0);
    }

    #[test]
    fn zero_bits_are_counted_from_the_end() {
        let prf = PROVIDER.prf(PrfId::HmacSha2_256).unwrap();
        let key = (0_u64..)
            .map(u64::to_be_bytes)
            .find(|key| zero_bits(prf, key, b"cookie") >= 10)
            .unwrap();
        let out = prf.compute(&key, &[b"cookie"]);
        let [.., before, last] = out.expose() else { panic!("too short") };
        assert_eq!((*last, before & 3), (0, 0));
    }

    #[test]
    fn what_cannot_be_solved_is_said() {
        let hard = Puzzle { prf: PrfId::HmacSha2_256, difficulty: 40, cookie: Vec::new() };
        assert!(hard.solve(&PROVIDER).unwrap_err().contains("too hard"));
        let data = Puzzle::data(PrfId::HmacSha2_256, 12);
        assert_eq!(Puzzle::read(&data, b"c").unwrap().difficulty, 12);
        assert_eq!(Puzzle::read(&data[..2], b"c"), None);
    }
}
