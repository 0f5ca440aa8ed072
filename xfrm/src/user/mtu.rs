//! Tunnel MTU: the largest inner packet that fits the path in one outer datagram.
//!
//! ESP in UDP costs the outer IP header, 8 bytes of UDP, 8 of ESP, the IV, padding to the cipher's
//! block including two trailer bytes, and the ICV (RFC 4303 2, RFC 3948 2.1).
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use crate::model::EspSuite;

/// Ethernet's MTU, assumed where the path's is unknown.
pub const DEFAULT_PATH_MTU: u16 = 1500;
/// Smallest MTU a tunnel may show to inner IPv6 (RFC 8200 5); below it the outer packet is
/// fragmented instead.
pub const MIN_INNER_V6: u16 = 1280;
/// Smallest MTU a tunnel may show to inner IPv4 (RFC 791: every host takes 576).
pub const MIN_INNER_V4: u16 = 576;

const UDP_HEADER: u16 = 8;
const ESP_HEADER: u16 = 8;
/// Pad length and next header (RFC 4303 2.5, 2.6).
const ESP_TRAILER: u16 = 2;

/// Length of the outer IP header.
pub fn outer_header(outer_v6: bool) -> u16 {
    if outer_v6 { 40 } else { 20 }
}

/// Largest inner packet that fits a path of `path` bytes, before the family's minimum is applied.
pub fn tunnel_mtu(path: u16, suite: EspSuite, outer_v6: bool) -> u16 {
    let (iv, icv, block) = suite.wire_lengths();
    let narrow = |len: usize| u16::try_from(len).unwrap_or(u16::MAX);
    let fixed = outer_header(outer_v6)
        .saturating_add(UDP_HEADER)
        .saturating_add(ESP_HEADER)
        .saturating_add(narrow(iv))
        .saturating_add(narrow(icv));
    let room = path.saturating_sub(fixed);
    let padding = room.checked_rem(narrow(block)).unwrap_or(0);
    room.saturating_sub(padding).saturating_sub(ESP_TRAILER)
}

/// The MTU inner packets of one family may use: [`tunnel_mtu`], but never below what that family
/// demands of every link.
pub fn inner_mtu(tunnel: u16, inner_v6: bool) -> u16 {
    tunnel.max(if inner_v6 { MIN_INNER_V6 } else { MIN_INNER_V4 })
}

/// TCP maximum segment size for inner packets of one family.
pub fn mss(tunnel: u16, inner_v6: bool) -> u16 {
    inner_mtu(tunnel, inner_v6).saturating_sub(if inner_v6 { 60 } else { 40 })
}

/// MTU for the tunnel interface itself when nothing is configured: what the commonest suite
/// leaves of a 1500-byte path. Children with less answer with ICMP on their own.
pub fn interface_mtu(path: u16, outer_v6: bool) -> u16 {
    tunnel_mtu(path, EspSuite::Aes256Gcm16, outer_v6).max(MIN_INNER_V6)
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests {
    use super::*;

    #[test]
    fn known_paths_and_suites() {
        use EspSuite::*;
        for (path, suite, v6, want) in [
            // 1500 - 20 - 8 - 8 - 8 - 16 = 1440, a multiple of 4; less the trailer.
            (1500, Aes128Gcm16, false, 1438),
            (1500, Aes256Gcm16, false, 1438),
            (1500, ChaCha20Poly1305, false, 1438),
            (1500, Aes256Gcm16, true, 1418),
            (1400, Aes256Gcm16, false, 1338),
            // 1500 - 20 - 8 - 8 - 16 - 16 = 1432, down to 1424 = 89 blocks.
            (1500, Aes128CbcSha256, false, 1422),
            (1500, Aes256CbcSha384, false, 1422),
            // 1500 - 20 - 8 - 8 - 16 - 32 = 1416, down to 1408 = 88 blocks.
            (1500, Aes256CbcSha512, false, 1406),
            (1500, Aes256CbcSha512, true, 1390),
            (1280, Aes256Gcm16, true, 1198),
            (60, Aes256Gcm16, false, 0),
            (0, Aes256Gcm16, false, 0),
        ] {
            assert_eq!(tunnel_mtu(path, suite, v6), want, "{path} {} v6={v6}", suite.name());
        }
    }

    #[test]
    fn the_sealed_packet_of_that_size_fits_and_one_byte_more_does_not() {
        for suite in [
            EspSuite::Aes256Gcm16,
            EspSuite::Aes128CbcSha256,
            EspSuite::Aes256CbcSha384,
            EspSuite::Aes256CbcSha512,
        ] {
            let (iv, icv, block) = suite.wire_lengths();
            let outer = |inner: usize| 28 + 8 + iv + (inner + 2).next_multiple_of(block) + icv;
            for path in 576..1600u16 {
                let mtu = usize::from(tunnel_mtu(path, suite, false));
                assert!(outer(mtu) <= usize::from(path));
                assert!(outer(mtu + 1) > usize::from(path));
            }
        }
    }

    #[test]
    fn segment_sizes_respect_each_family_s_minimum() {
        assert_eq!((mss(1438, false), mss(1438, true)), (1398, 1378));
        assert_eq!((mss(1198, false), mss(1198, true)), (1158, 1220));
        assert_eq!((mss(100, false), mss(100, true)), (536, 1220));
        assert_eq!(interface_mtu(1500, false), 1438);
        assert_eq!(interface_mtu(1280, true), 1280);
    }
}
