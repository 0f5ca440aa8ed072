//! Anti-replay window of an inbound SA (RFC 4303 3.4.3), with extended sequence numbers
//! (RFC 4303 appendix A).
//!
//! The bitmap is a ring of 64-bit blocks with one block more than the window (the method of
//! RFC 6479): moving the window clears whole blocks and never shifts.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

/// Largest window offered, in packets.
pub(super) const MAX_WINDOW: u32 = 4096;

const BLOCK_BITS: u64 = 64;

/// Which sequence numbers were accepted.
#[derive(Debug, Clone)]
pub(super) struct ReplayWindow {
    /// Highest accepted sequence number; 0 before the first packet.
    top: u64,
    /// Packets; 0 turns the check off.
    window: u64,
    esn: bool,
    /// Power-of-two ring of blocks.
    blocks: Vec<u64>,
}

impl ReplayWindow {
    /// A window of `window` packets, rounded up to a multiple of 64 as far as the bitmap allows.
    pub(super) fn new(window: u32, esn: bool) -> Self {
        let window = u64::from(window.min(MAX_WINDOW));
        let needed = window.div_ceil(BLOCK_BITS).saturating_add(1);
        let blocks = usize::try_from(needed.next_power_of_two()).unwrap_or(1);
        Self { top: 0, window, esn, blocks: vec![0; blocks] }
    }

    /// The window of an SA that has accepted up to `top` before: nothing of that passes again.
    pub(super) fn resume(window: u32, esn: bool, top: u64) -> Self {
        let mut resumed = Self::new(window, esn);
        resumed.top = top;
        if top > 0 {
            resumed.blocks.fill(u64::MAX);
            if let Some(block) = resumed.block_mut(top / BLOCK_BITS) {
                // Those above the top in its block are still to come.
                *block = u64::MAX >> (BLOCK_BITS - 1).wrapping_sub(top % BLOCK_BITS);
            }
        }
        resumed
    }

    /// The full sequence number a received low half stands for.
    pub(super) fn infer(&self, low: u32) -> u64 {
        if !self.esn {
            return u64::from(low);
        }
        // RFC 4303 A2.2: the window's bottom decides in which subspace the number lies.
        const SUBSPACE: u64 = 1 << 32;
        let top_low = self.top % SUBSPACE;
        let top_high = self.top.wrapping_sub(top_low);
        let low = u64::from(low);
        let below = self.window.max(1).wrapping_sub(1);
        if top_low >= below {
            if low >= top_low.wrapping_sub(below) {
                top_high.wrapping_add(low)
            } else {
                top_high.wrapping_add(SUBSPACE).wrapping_add(low)
            }
        } else {
            let bottom = SUBSPACE.wrapping_sub(below.wrapping_sub(top_low));
            if low >= bottom && top_high != 0 {
                top_high.wrapping_sub(SUBSPACE).wrapping_add(low)
            } else {
                top_high.wrapping_add(low)
            }
        }
    }

    /// Whether a packet of this number may still be accepted; cheap, before decryption.
    pub(super) fn check(&self, seq: u64) -> bool {
        // RFC 4303 3.3.3: the first packet has number 1.
        if seq == 0 {
            return false;
        }
        if self.window == 0 || seq > self.top {
            return true;
        }
        if self.top.wrapping_sub(seq) >= self.window {
            return false;
        }
        self.block(seq).is_some_and(|block| block & bit(seq) == 0)
    }

    /// Records an authenticated packet; `None` when it must not be accepted after all, otherwise
    /// whether it is the newest so far.
    pub(super) fn accept(&mut self, seq: u64) -> Option<bool> {
        if !self.check(seq) {
            return None;
        }
        let newest = seq > self.top;
        if self.window == 0 {
            self.top = self.top.max(seq);
            return Some(newest);
        }
        if newest {
            let from = self.top / BLOCK_BITS;
            let steps = (seq / BLOCK_BITS).wrapping_sub(from).min(self.ring());
            for step in 1..=steps {
                if let Some(block) = self.block_mut(from.wrapping_add(step)) {
                    *block = 0;
                }
            }
            self.top = seq;
        }
        if let Some(block) = self.block_mut(seq / BLOCK_BITS) {
            *block |= bit(seq);
        }
        Some(newest)
    }

    fn ring(&self) -> u64 {
        self.blocks.len() as u64
    }

    fn slot(&self, index: u64) -> usize {
        // The ring's length is a power of two.
        (index & self.ring().wrapping_sub(1)) as usize
    }

    fn block(&self, seq: u64) -> Option<u64> {
        self.blocks.get(self.slot(seq / BLOCK_BITS)).copied()
    }

    fn block_mut(&mut self, index: u64) -> Option<&mut u64> {
        let slot = self.slot(index);
        self.blocks.get_mut(slot)
    }
}

fn bit(seq: u64) -> u64 {
    1u64.wrapping_shl((seq % BLOCK_BITS) as u32)
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    /// Remembers everything.
    struct Naive {
        window: u64,
        top: u64,
        seen: BTreeSet<u64>,
    }

    impl Naive {
        fn accept(&mut self, seq: u64) -> Option<bool> {
            if seq == 0
                || self.seen.contains(&seq)
                || (seq <= self.top && self.top - seq >= self.window)
            {
                return None;
            }
            self.seen.insert(seq);
            let newest = seq > self.top;
            self.top = self.top.max(seq);
            Some(newest)
        }
    }

    fn walk(window: u32, start: u64, steps: &[(bool, u64)]) {
        let mut real = ReplayWindow::new(window, true);
        let mut naive = Naive { window: u64::from(window), top: 0, seen: BTreeSet::new() };
        let mut at = start;
        for (forward, by) in steps {
            at = if *forward { at.saturating_add(*by) } else { at.saturating_sub(*by) };
            let checked = real.check(at);
            let accepted = naive.accept(at);
            assert_eq!(checked, accepted.is_some(), "sequence number {at}");
            assert_eq!(real.accept(at), accepted, "sequence number {at}");
        }
    }

    proptest! {
        #[test]
        fn the_bitmap_agrees_with_a_naive_set(
            window in prop_oneof![Just(32u32), Just(64), Just(65), Just(128), Just(1000), Just(4096)],
            start in prop_oneof![Just(1u64), Just(60), Just((1 << 32) - 5), Just(u64::MAX / 2)],
            steps in proptest::collection::vec(
                (any::<bool>(), prop_oneof![0u64..4, 0u64..200, 0u64..10_000]), 1..400),
        ) {
            walk(window, start, &steps);
        }

        #[test]
        fn a_resumed_window_takes_nothing_old_and_everything_new(
            window in prop_oneof![Just(0u32), Just(32), Just(64), Just(65), Just(1000), Just(4096)],
            top in prop_oneof![0u64..300, Just((1 << 32) - 1), 1u64..(1 << 40)],
            steps in proptest::collection::vec(0u64..5000, 1..200),
        ) {
            let mut resumed = ReplayWindow::resume(window, true, top);
            let mut naive = Naive { window: u64::from(window), top, seen: BTreeSet::new() };
            // Whatever was accepted before was accepted once.
            naive.seen.extend(top.saturating_sub(5000)..=top);
            for ahead in steps {
                let seq = top + ahead;
                if window > 0 {
                    prop_assert_eq!(resumed.accept(seq), naive.accept(seq), "{} of {}", seq, top);
                }
                let back = top.saturating_sub(ahead);
                prop_assert!(window == 0 || resumed.accept(back).is_none(), "{} again", back);
            }
        }

        #[test]
        fn extended_numbers_are_inferred_within_half_a_subspace(
            top in 1u64..(1 << 40), window in 32u32..4096, back in 0u64..4096, ahead in 1u64..(1 << 30),
        ) {
            let mut replay = ReplayWindow::new(window, true);
            replay.accept(top);
            let newer = top + ahead;
            prop_assert_eq!(replay.infer(newer as u32), newer);
            let older = top - back.min(u64::from(window) - 1).min(top - 1);
            prop_assert_eq!(replay.infer(older as u32), older);
        }
    }

    #[test]
    fn a_jump_over_the_whole_ring_forgets_every_bit() {
        let mut replay = ReplayWindow::new(64, false);
        for seq in 1..=200 {
            assert_eq!(replay.accept(seq), Some(true));
        }
        assert_eq!(replay.accept(1_000_000), Some(true));
        for seq in 1_000_000 - 63..1_000_000 {
            assert_eq!(replay.accept(seq), Some(false), "{seq}");
            assert_eq!(replay.accept(seq), None, "{seq}");
        }
        assert_eq!(replay.accept(1_000_000 - 64), None);
    }

    #[test]
    fn zero_is_never_a_sequence_number() {
        assert!(!ReplayWindow::new(64, false).check(0));
        assert!(!ReplayWindow::new(0, false).check(0));
    }

    #[test]
    fn a_window_of_zero_accepts_repetition() {
        let mut replay = ReplayWindow::new(0, false);
        assert_eq!(replay.accept(7), Some(true));
        assert_eq!(replay.accept(7), Some(false));
        assert_eq!(replay.accept(3), Some(false));
    }

    #[test]
    fn plain_numbers_are_taken_as_they_are() {
        let mut replay = ReplayWindow::new(64, false);
        replay.accept(u64::from(u32::MAX));
        assert_eq!(replay.infer(3), 3);
    }
}
