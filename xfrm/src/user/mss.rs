//! TCP maximum segment size clamping (RFC 9293 3.7.1) on SYN packets of both families.
//!
//! Keeps connections through the tunnel from sending segments that would not fit, also where ICMP
//! is filtered.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::packet::{Packet, TCP, be16, put16, update_checksum};

const SYN: u8 = 0x02;
const OPTION_END: u8 = 0;
const OPTION_NOP: u8 = 1;
const OPTION_MSS: u8 = 2;
const TCP_HEADER: usize = 20;
const CHECKSUM_AT: usize = 16;

/// Lowers the MSS option of a SYN to `limit`; the packet's TCP checksum must be complete and
/// stays right. A SYN without the option is left alone: its peer then assumes 536 or 1220.
pub(super) fn clamp(bytes: &mut [u8], packet: &Packet, limit: u16) {
    if packet.protocol != TCP || !matches!(packet.fragment, super::packet::Fragment::Whole) {
        return;
    }
    let Some(segment) = bytes.get_mut(packet.upper_offset..packet.len) else { return };
    let (Some(words), Some(flags)) = (segment.get(12).map(|b| b >> 4), segment.get(13)) else {
        return;
    };
    if flags & SYN == 0 {
        return;
    }
    let end = usize::from(words).saturating_mul(4).min(segment.len());
    let mut at = TCP_HEADER;
    while at < end {
        match segment.get(at).copied() {
            None | Some(OPTION_END) => return,
            Some(OPTION_NOP) => at = at.saturating_add(1),
            Some(kind) => {
                let len = segment.get(at.saturating_add(1)).map_or(0, |len| usize::from(*len));
                if len < 2 || at.saturating_add(len) > end {
                    return;
                }
                if kind == OPTION_MSS && len == 4 {
                    lower(segment, at.saturating_add(2), limit);
                    return;
                }
                at = at.saturating_add(len);
            }
        }
    }
}

fn lower(segment: &mut [u8], at: usize, limit: u16) {
    let Some(old) = be16(segment, at).filter(|old| *old > limit) else { return };
    put16(segment, at, limit);
    // The option may begin at an odd offset: then its bytes are halves of two checksum words.
    if at.is_multiple_of(2) {
        update_checksum(segment, CHECKSUM_AT, old, limit);
    } else {
        update_checksum(segment, CHECKSUM_AT, old.swap_bytes(), limit.swap_bytes());
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests {
    use super::super::packet::build::{checksums_ok, tcp};
    use super::*;
    use proptest::prelude::*;

    const PAIRS: [(&str, &str); 2] = [("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")];

    fn clamped(mut bytes: Vec<u8>, limit: u16) -> Vec<u8> {
        let packet = Packet::parse(&bytes).unwrap();
        clamp(&mut bytes, &packet, limit);
        bytes
    }

    fn mss_at(bytes: &[u8], option: usize) -> u16 {
        let packet = Packet::parse(bytes).unwrap();
        be16(bytes, packet.upper_offset + TCP_HEADER + option).unwrap()
    }

    #[test]
    fn a_large_mss_is_lowered_and_checksums_stay_right() {
        for (source, to) in PAIRS {
            for flags in [SYN, SYN | 0x10] {
                let bytes = clamped(tcp(source, to, 1, flags, &[2, 4, 5, 180], b""), 1338);
                assert_eq!(mss_at(&bytes, 2), 1338);
                assert!(checksums_ok(&bytes));
            }
        }
    }

    #[test]
    fn an_option_at_an_odd_offset_keeps_the_checksum_right() {
        for (source, to) in PAIRS {
            let options = [1, 2, 4, 5, 180, 1, 1, 1];
            let bytes = clamped(tcp(source, to, 1, SYN, &options, b""), 1000);
            assert_eq!(mss_at(&bytes, 3), 1000);
            assert!(checksums_ok(&bytes));
        }
    }

    #[test]
    fn small_values_other_packets_and_broken_options_are_left_alone() {
        for (source, to) in PAIRS {
            for (flags, options) in [
                (SYN, &[2u8, 4, 4, 0][..]),
                (0x10, &[2, 4, 5, 180]),
                (SYN, &[]),
                (SYN, &[1, 1, 1, 0]),
                (SYN, &[3, 0, 2, 4]),
                (SYN, &[3, 200, 2, 4]),
                (SYN, &[1, 1, 1, 2]),
            ] {
                let bytes = tcp(source, to, 1, flags, options, b"");
                assert_eq!(clamped(bytes.clone(), 1338), bytes, "{options:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn hostile_options_never_panic(options in proptest::collection::vec(any::<u8>(), 0..40), words in 0u8..16) {
            let mut options = options;
            options.resize(options.len().next_multiple_of(4).min(40), 0);
            let mut bytes = tcp("10.0.0.1", "10.0.0.2", 1, SYN, &options, b"");
            bytes[32] = words << 4;
            let before = bytes.clone();
            let after = clamped(bytes, 500);
            prop_assert_eq!(after.len(), before.len());
        }
    }
}
