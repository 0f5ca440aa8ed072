//! How long to wait before the next attempt.

use std::time::Duration;

/// Before the second attempt.
const FIRST: Duration = Duration::from_secs(1);

/// Between later attempts at most.
const LONGEST: Duration = Duration::from_secs(60);

/// Exponential, with jitter: two gateways that lost each other do not meet at every attempt, nor
/// do a hundred branch offices come back in one second.
#[derive(Debug, Default)]
pub struct Backoff {
    attempts: u32,
}

impl Backoff {
    /// Counts an attempt.
    pub fn attempt(&mut self) {
        self.attempts = self.attempts.saturating_add(1);
    }

    /// Attempts so far.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Time until the next one: doubled each time, of which up to half is left to chance.
    pub fn delay(&self) -> Duration {
        self.delay_with(chance())
    }

    fn delay_with(&self, chance: u8) -> Duration {
        let doublings = self.attempts.saturating_sub(1).min(16);
        let full = FIRST.saturating_mul(1 << doublings).min(LONGEST);
        full / 2 + full / 2 * u32::from(chance) / u32::from(u8::MAX)
    }
}

/// One random octet. Without randomness the gateway would not have started.
fn chance() -> u8 {
    let mut octet = [0u8; 1];
    match rustix::rand::getrandom(&mut octet[..], rustix::rand::GetRandomFlags::empty()) {
        Ok(_) => octet[0],
        Err(_) => u8::MAX / 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_doubles_up_to_a_minute_and_half_of_it_is_chance() {
        let mut backoff = Backoff::default();
        let mut full = Vec::new();
        for _ in 0..10 {
            backoff.attempt();
            let (least, most) = (backoff.delay_with(0), backoff.delay_with(u8::MAX));
            assert_eq!(least * 2, most);
            assert!((least..=most).contains(&backoff.delay()));
            full.push(most.as_secs());
        }
        assert_eq!(full, [1, 2, 4, 8, 16, 32, 60, 60, 60, 60]);
    }
}
