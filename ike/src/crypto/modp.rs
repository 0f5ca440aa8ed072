//! MODP groups 14, 15 and 16 (RFC 3526) in constant time, the same in every provider.
//!
//! Neither `ring` nor `aws-lc-rs` has them; native clients need them (RFC 8247 2.4). Exponents are
//! short, at least twice the group's strength (RFC 7296 5, NIST SP 800-56A), because a full one
//! costs ten times as much and gains nothing in a safe-prime group.

mod primes;

use std::fmt;
use std::sync::LazyLock;

use crypto_bigint::modular::{FixedMontyForm, FixedMontyParams};
use crypto_bigint::{Odd, U512, U2048, U3072, U4096, Uint};
use ring::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroizing;

use super::kex::check_len;
use super::{
    CryptoError, KexKind, KexSecret, KeyExchangeGroup, KeyShare, SecretBytes, SharedSecret,
};
use crate::wire::KeMethod;

/// 2048-bit group 14.
pub static MODP_2048: Modp<{ U2048::LIMBS }> = Modp {
    method: KeMethod::Modp2048,
    name: "modp2048",
    exponent_bits: 384,
    params: LazyLock::new(|| params(primes::P2048)),
};
/// 3072-bit group 15.
pub static MODP_3072: Modp<{ U3072::LIMBS }> = Modp {
    method: KeMethod::Modp3072,
    name: "modp3072",
    exponent_bits: 384,
    params: LazyLock::new(|| params(primes::P3072)),
};
/// 4096-bit group 16.
pub static MODP_4096: Modp<{ U4096::LIMBS }> = Modp {
    method: KeMethod::Modp4096,
    name: "modp4096",
    exponent_bits: 512,
    params: LazyLock::new(|| params(primes::P4096)),
};

/// A safe-prime group with generator 2.
pub struct Modp<const LIMBS: usize> {
    method: KeMethod,
    name: &'static str,
    exponent_bits: u32,
    params: LazyLock<FixedMontyParams<LIMBS>>,
}

fn params<const LIMBS: usize>(prime: &str) -> FixedMontyParams<LIMBS> {
    // The modulus is public, so variable time is fine; the low bit of each prime is set.
    FixedMontyParams::new_vartime(Odd::from_be_hex(prime))
}

impl<const LIMBS: usize> Modp<LIMBS> {
    const PUBLIC_LEN: usize = Uint::<LIMBS>::BYTES;

    /// base^exponent mod p, padded to the length of p (RFC 7296 2.14, 3.4).
    fn power(&self, base: &Uint<LIMBS>, exponent: &U512) -> Zeroizing<Vec<u8>> {
        let result = FixedMontyForm::new(base, &self.params)
            .pow_bounded_exp(exponent, self.exponent_bits)
            .retrieve();
        let result = Zeroizing::new(result);
        let mut octets = Zeroizing::new(Vec::with_capacity(Self::PUBLIC_LEN));
        for limb in result.as_limbs().iter().rev() {
            octets.extend_from_slice(&limb.0.to_be_bytes());
        }
        octets
    }

    /// RFC 6989 2.1: 1 < y < p - 1.
    fn check(&self, public: &[u8]) -> Result<Uint<LIMBS>, CryptoError> {
        check_len(self.name, Self::PUBLIC_LEN, public)?;
        let y = Uint::<LIMBS>::from_be_slice(public);
        let p_minus_1 = self.params.modulus().as_ref().wrapping_sub(&Uint::ONE);
        if y > Uint::ONE && y < p_minus_1 {
            Ok(y)
        } else {
            Err(CryptoError::PublicValueInvalid { group: self.name })
        }
    }

    fn share(&'static self, exponent: Zeroizing<U512>) -> KeyShare {
        let public = self.power(&Uint::from_u8(2), &exponent).to_vec();
        KeyShare { public, secret: Box::new(Secret { group: self, exponent }) }
    }
}

impl<const LIMBS: usize> fmt::Debug for Modp<LIMBS> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl<const LIMBS: usize> KeyExchangeGroup for &'static Modp<LIMBS> {
    fn method(&self) -> KeMethod {
        self.method
    }

    fn name(&self) -> &'static str {
        self.name
    }

    fn kind(&self) -> KexKind {
        KexKind::DiffieHellman
    }

    fn initiator_public_len(&self) -> usize {
        Modp::<LIMBS>::PUBLIC_LEN
    }

    fn generate(&self) -> Result<KeyShare, CryptoError> {
        let mut octets = Zeroizing::new([0; U512::BYTES]);
        let used = self.exponent_bits as usize / 8;
        let tail = octets.split_at_mut(U512::BYTES - used).1;
        SystemRandom::new().fill(tail).map_err(|_| CryptoError::Library("random source"))?;
        Ok(self.share(Zeroizing::new(U512::from_be_slice(octets.as_ref()))))
    }
}

struct Secret<const LIMBS: usize> {
    group: &'static Modp<LIMBS>,
    exponent: Zeroizing<U512>,
}

impl<const LIMBS: usize> KexSecret for Secret<LIMBS> {
    fn agree(self: Box<Self>, peer_public: &[u8]) -> Result<SharedSecret, CryptoError> {
        let y = self.group.check(peer_public)?;
        Ok(SecretBytes::from(self.group.power(&y, &self.exponent)))
    }
}

#[cfg(test)]
mod tests;
