//! Stateless cookies (RFC 7296 2.6).
//!
//! Cookie = version | prf(secret, |Ni| | Ni | IPi | SPIi | version), HMAC-SHA2-256 as prf; the
//! length in front keeps any two inputs apart. The engine's RNG supplies the secrets; the one
//! before the current is still honoured, so that a cookie given out just before a change works.

use std::fmt;
use std::net::IpAddr;

use super::{Prf, SecretBytes, constant_time_eq};

/// Longest cookie made; RFC 7296 2.6 allows 1 to 64 octets.
pub const MAX_COOKIE_LEN: usize = 4 + 32;

/// Cookie secrets: the current and the previous.
pub struct CookieJar {
    prf: &'static dyn Prf,
    current: (u32, SecretBytes),
    previous: Option<(u32, SecretBytes)>,
}

impl CookieJar {
    /// Starts with one secret of 32 random octets; `prf` is a provider's HMAC-SHA2-256.
    #[must_use]
    pub fn new(prf: &'static dyn Prf, secret: [u8; 32]) -> Self {
        Self { prf, current: (0, SecretBytes::copy_from(&secret)), previous: None }
    }

    /// Makes `secret` the current one and keeps the one it replaces for checking.
    pub fn rotate(&mut self, secret: [u8; 32]) {
        let next = (self.current.0.wrapping_add(1), SecretBytes::copy_from(&secret));
        self.previous = Some(std::mem::replace(&mut self.current, next));
    }

    /// The cookie for an initiator's nonce, source address and SPI. The port is left out:
    /// a NAT may change it between the two requests.
    #[must_use]
    pub fn cookie(&self, nonce: &[u8], source: IpAddr, spi_i: [u8; 8]) -> Vec<u8> {
        let (version, secret) = &self.current;
        self.compute(*version, secret, nonce, source, spi_i)
    }

    /// True when `cookie` was given out for these values under a secret still honoured.
    #[must_use]
    pub fn check(&self, cookie: &[u8], nonce: &[u8], source: IpAddr, spi_i: [u8; 8]) -> bool {
        let Some(&version) = cookie.first_chunk::<4>() else {
            return false;
        };
        let version = u32::from_be_bytes(version);
        std::iter::once(&self.current)
            .chain(self.previous.as_ref())
            .filter(|(known, _)| *known == version)
            .any(|(known, secret)| {
                constant_time_eq(&self.compute(*known, secret, nonce, source, spi_i), cookie)
            })
    }

    fn compute(
        &self,
        version: u32,
        secret: &SecretBytes,
        nonce: &[u8],
        source: IpAddr,
        spi_i: [u8; 8],
    ) -> Vec<u8> {
        let version = version.to_be_bytes();
        let mut cookie = version.to_vec();
        let nonce_len = (nonce.len() as u64).to_be_bytes();
        let (v4, v6);
        let source: &[u8] = match source {
            IpAddr::V4(address) => {
                v4 = address.octets();
                &v4
            }
            IpAddr::V6(address) => {
                v6 = address.octets();
                &v6
            }
        };
        // SPIi and version have fixed lengths, so the nonce's length makes the address's known.
        let parts: [&[u8]; 5] = [&nonce_len, nonce, source, &spi_i, &version];
        cookie.extend_from_slice(self.prf.compute(secret.expose(), &parts).expose());
        cookie.truncate(MAX_COOKIE_LEN);
        cookie
    }
}

impl fmt::Debug for CookieJar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CookieJar").field("version", &self.current.0).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;
    use crate::crypto::{PrfId, ring};

    const SPI: [u8; 8] = [1, 2, 3, 4, 5, 6, 7, 8];
    const V4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

    fn jar() -> CookieJar {
        CookieJar::new(ring::PROVIDER.prf(PrfId::HmacSha2_256).unwrap(), [7; 32])
    }

    #[test]
    fn a_cookie_returns_to_the_nonce_address_and_spi_it_was_made_for() {
        let jar = jar();
        let cookie = jar.cookie(&[9; 32], V4, SPI);
        assert_eq!(cookie.len(), MAX_COOKIE_LEN);
        assert_eq!(cookie, jar.cookie(&[9; 32], V4, SPI));
        assert!(jar.check(&cookie, &[9; 32], V4, SPI));
        assert!(!jar.check(&cookie, &[9; 31], V4, SPI));
        assert!(!jar.check(&cookie, &[8; 32], V4, SPI));
        assert!(!jar.check(&cookie, &[9; 32], IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2)), SPI));
        assert!(!jar.check(&cookie, &[9; 32], IpAddr::V6(Ipv6Addr::LOCALHOST), SPI));
        assert!(!jar.check(&cookie, &[9; 32], V4, [0; 8]));
    }

    #[test]
    fn damaged_and_foreign_cookies_are_refused() {
        let jar = jar();
        let cookie = jar.cookie(&[9; 32], V4, SPI);
        for at in 0..cookie.len() {
            let mut damaged = cookie.clone();
            damaged[at] ^= 1;
            assert!(!jar.check(&damaged, &[9; 32], V4, SPI));
            assert!(!jar.check(&cookie[..at], &[9; 32], V4, SPI));
        }
        assert!(!jar.check(&[&cookie[..], &[0]].concat(), &[9; 32], V4, SPI));
        let other = CookieJar::new(ring::PROVIDER.prf(PrfId::HmacSha2_256).unwrap(), [8; 32]);
        assert!(!other.check(&cookie, &[9; 32], V4, SPI));
    }

    #[test]
    fn a_cookie_lives_through_one_change_of_the_secret() {
        let mut jar = jar();
        let first = jar.cookie(&[9; 32], V4, SPI);
        jar.rotate([1; 32]);
        assert!(jar.check(&first, &[9; 32], V4, SPI));
        let second = jar.cookie(&[9; 32], V4, SPI);
        assert_ne!(first, second);
        jar.rotate([2; 32]);
        assert!(!jar.check(&first, &[9; 32], V4, SPI));
        assert!(jar.check(&second, &[9; 32], V4, SPI));
        assert!(!format!("{jar:?}").contains("[2, 2"));
    }
}
