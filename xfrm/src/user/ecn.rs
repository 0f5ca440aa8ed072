//! Explicit congestion notification across the tunnel (RFC 6040) and the outer DSCP.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::packet;

const ECN: u8 = 0x03;
const NOT_ECT: u8 = 0;
const ECT1: u8 = 1;
const ECT0: u8 = 2;
const CE: u8 = 3;

/// TOS of the outer header: normal mode copies ECN (RFC 6040 4.1); the DSCP is copied like the
/// kernel does by default (RFC 4301 5.1.2).
pub(super) fn outer_tos(inner: u8) -> u8 {
    inner
}

/// What to do with an inner packet of `inner` TOS that came in an outer packet of `outer` TOS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decapsulation {
    /// Leave it.
    Keep,
    /// Give it this TOS.
    Set(u8),
    /// Drop it: congestion was experienced by a transport that cannot be told.
    Drop,
}

/// The table of RFC 6040 figure 4.
pub(super) fn decapsulate(inner: u8, outer: u8) -> Decapsulation {
    match (inner & ECN, outer & ECN) {
        (NOT_ECT, CE) => Decapsulation::Drop,
        (ECT0 | ECT1, CE) => Decapsulation::Set(inner | CE),
        (ECT0, ECT1) => Decapsulation::Set((inner & !ECN) | ECT1),
        _ => Decapsulation::Keep,
    }
}

/// Writes the TOS or traffic class of a packet and keeps the IPv4 header checksum right.
pub(super) fn set_tos(bytes: &mut [u8], tos: u8) {
    match bytes.first().map(|first| first >> 4) {
        Some(4) => {
            let old = packet::be16(bytes, 0).unwrap_or(0);
            if let Some(byte) = bytes.get_mut(1) {
                *byte = tos;
            }
            packet::update_checksum(bytes, 10, old, (old & 0xff00) | u16::from(tos));
        }
        Some(6) => {
            if let Some(word) = packet::be32(bytes, 0) {
                packet::put32(bytes, 0, (word & 0xf00f_ffff) | (u32::from(tos) << 20));
            }
        }
        _ => {}
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests {
    use super::super::packet::Packet;
    use super::super::packet::build::{checksums_ok, udp};
    use super::*;

    #[test]
    fn figure_4_of_rfc_6040() {
        use Decapsulation::{Drop, Keep, Set};
        // Rows: inner Not-ECT, ECT(0), ECT(1), CE; columns: outer Not-ECT, ECT(0), ECT(1), CE.
        let table = [
            (NOT_ECT, [Keep, Keep, Keep, Drop]),
            (ECT0, [Keep, Keep, Set(ECT1), Set(CE)]),
            (ECT1, [Keep, Keep, Keep, Set(CE)]),
            (CE, [Keep, Keep, Keep, Keep]),
        ];
        for (inner, row) in table {
            for (outer, want) in [NOT_ECT, ECT0, ECT1, CE].into_iter().zip(row) {
                assert_eq!(decapsulate(inner, outer), want, "inner {inner} outer {outer}");
            }
        }
        assert_eq!(decapsulate(0xb8 | ECT0, CE), Set(0xb8 | CE));
    }

    #[test]
    fn the_mark_is_written_in_both_families() {
        for (source, to) in [("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")] {
            let mut bytes = udp(source, 1, to, 2, b"x");
            set_tos(&mut bytes, 0xbb);
            assert_eq!(Packet::parse(&bytes).unwrap().tos, 0xbb);
            assert!(checksums_ok(&bytes));
        }
    }
}
