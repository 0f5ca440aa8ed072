//! Ciphers that protect nothing, for exercising the framing around real ones.

use ike::wire::{CipherError, SkCipher};

/// Shaped like an AEAD: 8 octets of IV, 16 of ICV, no padding.
pub struct ToyAead(pub u64);

/// Shaped like AES-CBC with an HMAC: 16 octets of IV, 12 of ICV, blocks of 16.
pub struct ToyCbcMac(pub u64);

impl SkCipher for ToyAead {
    fn iv_len(&self) -> usize {
        8
    }

    fn icv_len(&self) -> usize {
        16
    }

    fn block_len(&self) -> usize {
        1
    }

    fn seal(
        &self,
        aad: &[u8],
        iv: &[u8],
        buffer: &mut [u8],
        icv: &mut [u8],
    ) -> Result<(), CipherError> {
        key_stream(self.0, iv, buffer);
        mac(self.0, &[aad, &[0xff], iv, buffer], icv);
        Ok(())
    }

    fn open(
        &self,
        aad: &[u8],
        iv: &[u8],
        buffer: &mut [u8],
        icv: &[u8],
    ) -> Result<(), CipherError> {
        let mut expected = [0; 16];
        mac(self.0, &[aad, &[0xff], iv, buffer], &mut expected);
        if icv != expected {
            return Err(CipherError);
        }
        key_stream(self.0, iv, buffer);
        Ok(())
    }
}

impl SkCipher for ToyCbcMac {
    fn iv_len(&self) -> usize {
        16
    }

    fn icv_len(&self) -> usize {
        12
    }

    fn block_len(&self) -> usize {
        16
    }

    fn seal(
        &self,
        aad: &[u8],
        iv: &[u8],
        buffer: &mut [u8],
        icv: &mut [u8],
    ) -> Result<(), CipherError> {
        if !buffer.len().is_multiple_of(16) {
            return Err(CipherError);
        }
        key_stream(self.0, iv, buffer);
        mac(self.0, &[aad, iv, buffer], icv);
        Ok(())
    }

    fn open(
        &self,
        aad: &[u8],
        iv: &[u8],
        buffer: &mut [u8],
        icv: &[u8],
    ) -> Result<(), CipherError> {
        let mut expected = [0; 12];
        mac(self.0, &[aad, iv, buffer], &mut expected);
        if icv != expected {
            return Err(CipherError);
        }
        key_stream(self.0, iv, buffer);
        Ok(())
    }
}

/// Fills IVs by counting.
pub fn counting_iv() -> impl FnMut(&mut [u8]) {
    let mut count = 0u64;
    move |iv| {
        count += 1;
        iv.fill(0);
        iv.iter_mut().rev().zip(count.to_le_bytes()).for_each(|(slot, octet)| *slot = octet);
    }
}

fn key_stream(key: u64, iv: &[u8], buffer: &mut [u8]) {
    let mut state = mix(key, iv) | 1;
    for octet in buffer {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        *octet ^= state.to_le_bytes()[3];
    }
}

fn mac(key: u64, parts: &[&[u8]], out: &mut [u8]) {
    let state = parts.iter().fold(key, |state, part| mix(state, part));
    for (index, octet) in out.iter_mut().enumerate() {
        let word = mix(state, &[u8::try_from(index / 8).unwrap_or(0xff)]);
        *octet = word.to_le_bytes()[index % 8];
    }
}

/// FNV-1a with a finaliser.
fn mix(seed: u64, octets: &[u8]) -> u64 {
    let mut state = seed ^ 0xcbf2_9ce4_8422_2325;
    for octet in octets {
        state = (state ^ u64::from(*octet)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    (state ^ (state >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9)
}
