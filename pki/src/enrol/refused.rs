//! How often refused uses of tokens are written to the audit log.
//!
//! The log is durable and kept: whoever holds a token, even a spent one, could fill the disk and
//! keep the store busy by repeating it. The first refusal of a token for a peer is written, then
//! one a minute with the number left out since.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use crate::time::UnixTime;

/// Refusals of one token for one peer are written this far apart.
const INTERVAL: Duration = Duration::from_secs(60);
/// Peers remembered one by one. The rest share one entry for each token.
const MAX_ENTRIES: usize = 1024;

#[derive(Debug)]
struct Entry {
    written: UnixTime,
    left_out: u64,
}

/// Refusals written lately, by token and peer.
#[derive(Debug, Default)]
pub(crate) struct RefusedTokens {
    entries: BTreeMap<(String, Option<IpAddr>), Entry>,
}

impl RefusedTokens {
    /// Counts a refusal. `Some` when it is to be written, with the number left out before it.
    pub(crate) fn count(
        &mut self,
        token: &str,
        peer: Option<IpAddr>,
        now: UnixTime,
    ) -> Option<u64> {
        let mut key = (token.to_owned(), peer.map(origin));
        if !self.entries.contains_key(&key) && self.entries.len() >= MAX_ENTRIES {
            // An entry with a number to tell stays until a refusal tells it, unless room is needed.
            self.entries.retain(|_, entry| now < entry.written.plus(INTERVAL));
            if self.entries.len() >= MAX_ENTRIES {
                key.1 = None;
            }
        }
        match self.entries.get_mut(&key) {
            // A clock that was set back must not silence the log.
            Some(entry) if entry.written <= now && now < entry.written.plus(INTERVAL) => {
                entry.left_out = entry.left_out.saturating_add(1);
                None
            }
            Some(entry) => {
                entry.written = now;
                Some(std::mem::take(&mut entry.left_out))
            }
            None => {
                self.entries.insert(key, Entry { written: now, left_out: 0 });
                Some(0)
            }
        }
    }
}

/// One IPv6 host has a whole /64.
fn origin(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: i64) -> UnixTime {
        UnixTime::from_secs(secs)
    }

    #[test]
    fn one_a_minute_is_written_with_the_number_left_out() {
        let mut refused = RefusedTokens::default();
        let peer = Some("192.0.2.1".parse().unwrap());
        assert_eq!(refused.count("a", peer, at(0)), Some(0));
        for second in 1..60 {
            assert_eq!(refused.count("a", peer, at(second)), None);
        }
        assert_eq!(refused.count("b", peer, at(5)), Some(0), "another token");
        assert_eq!(refused.count("a", Some("192.0.2.2".parse().unwrap()), at(5)), Some(0));
        assert_eq!(refused.count("a", peer, at(60)), Some(59));
        assert_eq!(refused.count("a", peer, at(120)), Some(0));
        assert_eq!(refused.count("a", peer, at(7)), Some(0), "the clock was set back");
    }

    #[test]
    fn many_addresses_are_bounded_in_memory_and_records() {
        let mut refused = RefusedTokens::default();
        let mut written = 0;
        for host in 0..100_000u128 {
            let one_network = IpAddr::V6(Ipv6Addr::from_bits((0x2001_0db8 << 96) + host));
            written += usize::from(refused.count("a", Some(one_network), at(1)).is_some());
        }
        assert_eq!(written, 1);
        for network in 0..100_000u128 {
            let peer = IpAddr::V6(Ipv6Addr::from_bits((0x2001_0db9 << 96) + (network << 64)));
            written += usize::from(refused.count("a", Some(peer), at(1)).is_some());
        }
        assert!(refused.entries.len() <= MAX_ENTRIES + 1);
        assert!(written <= MAX_ENTRIES + 1, "{written}");
    }
}
