//! Pseudorandom functions and prf+ (RFC 7296 2.13).

use std::fmt;

use zeroize::Zeroizing;

use super::{CryptoError, SecretBytes};
use crate::wire::{IntegId, PrfId};

/// A negotiated pseudorandom function (transform type 2).
pub trait Prf: fmt::Debug + Send + Sync {
    /// The number on the wire.
    fn id(&self) -> PrfId;

    /// Octets of output.
    fn output_len(&self) -> usize;

    /// Preferred key length in octets: the length of SK_d, SK_pi and SK_pr (RFC 7296 2.14).
    fn key_len(&self) -> usize {
        self.output_len()
    }

    /// True for the two PRFs that take a key of one length only (AES-XCBC, AES-CMAC), for which
    /// SKEYSEED uses the first 64 bits of each nonce (RFC 7296 2.14). HMAC takes any key.
    fn fixed_key(&self) -> bool {
        false
    }

    /// prf(key, parts[0] | parts[1] | ...).
    fn compute(&self, key: &[u8], parts: &[&[u8]]) -> SecretBytes;
}

/// A negotiated integrity algorithm (transform type 3).
pub trait Integrity: fmt::Debug + Send + Sync {
    /// The number on the wire.
    fn id(&self) -> IntegId;

    /// Octets of key, fixed per algorithm (RFC 4868 section 2.1.1).
    fn key_len(&self) -> usize;

    /// Octets of the truncated checksum.
    fn icv_len(&self) -> usize;

    /// The truncated checksum over the concatenation of `parts`.
    fn compute(&self, key: &[u8], parts: &[&[u8]]) -> Vec<u8>;

    /// Compares in constant time.
    ///
    /// # Errors
    /// [`CryptoError::Authentication`] when `icv` is not the checksum.
    fn verify(&self, key: &[u8], parts: &[&[u8]], icv: &[u8]) -> Result<(), CryptoError> {
        if super::constant_time_eq(&self.compute(key, parts), icv) {
            Ok(())
        } else {
            Err(CryptoError::Authentication)
        }
    }
}

/// prf+(key, parts[0] | parts[1] | ...), the first `len` octets (RFC 7296 2.13).
///
/// # Errors
/// [`CryptoError::PrfPlusLength`] beyond 255 blocks, where the block counter would wrap.
pub fn prf_plus(
    prf: &dyn Prf,
    key: &[u8],
    parts: &[&[u8]],
    len: usize,
) -> Result<SecretBytes, CryptoError> {
    let block_len = prf.output_len().max(1);
    if len.div_ceil(block_len) > 255 {
        return Err(CryptoError::PrfPlusLength(len));
    }
    // Reserved at once: a growing vector would leave unwiped copies behind.
    let mut out = Zeroizing::new(Vec::with_capacity(len.saturating_add(block_len)));
    let mut previous = SecretBytes::default();
    for counter in 1..=u8::MAX {
        if out.len() >= len {
            break;
        }
        let counter = [counter];
        let mut input = Vec::with_capacity(parts.len() + 2);
        input.push(previous.expose());
        input.extend_from_slice(parts);
        input.push(&counter);
        let block = prf.compute(key, &input);
        out.extend_from_slice(block.expose());
        previous = block;
    }
    out.truncate(len);
    Ok(out.into())
}
