//! ESP packets (RFC 4303): sealing and opening in place, one object per direction of a child SA.
//!
//! A packet is `SPI · sequence number · IV · payload · padding · pad length · next header · ICV`.
//! AEADs authenticate the header and, with extended sequence numbers, the unsent high half
//! (RFC 4106 5); their IV is the sequence number, which never repeats under a key. CBC suites
//! authenticate everything before the ICV, with the high half appended (RFC 4303 2.2.1), and
//! derive an unpredictable IV by encrypting the sequence number under a key of its own
//! (NIST SP 800-38A appendix C).
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::ops::Range;

use aes::{Aes128, Aes256, Block};
use cbc::cipher::{BlockCipherEncrypt, BlockModeDecrypt, BlockModeEncrypt, InnerIvInit, KeyInit};
use ring::aead::{self, LessSafeKey, Nonce, UnboundKey};
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroizing;

use crate::error::PlaneError;
use crate::model::{EspSuite, SaKeys};

/// SPI and sequence number.
pub(super) const HEADER: usize = 8;
/// Pad length and next header.
const TRAILER: usize = 2;

/// Next header of an IPv4 packet in tunnel mode.
pub(super) const NEXT_IPV4: u8 = 4;
/// Next header of an IPv6 packet in tunnel mode.
pub(super) const NEXT_IPV6: u8 = 41;
/// Next header of a dummy packet (RFC 4303 2.6).
pub(super) const NEXT_NONE: u8 = 59;

/// Why a packet could not be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OpenError {
    /// Too short for its suite, or not whole cipher blocks.
    Length,
    /// The ICV is wrong.
    Auth,
    /// Authentic, but the padding is not what RFC 4303 2.4 demands.
    Padding,
}

/// SPI and the sent half of the sequence number.
pub(super) fn header(packet: &[u8]) -> Option<(u32, u32)> {
    let spi = packet.first_chunk::<4>()?;
    let seq = packet.get(4..)?.first_chunk::<4>()?;
    Some((u32::from_be_bytes(*spi), u32::from_be_bytes(*seq)))
}

enum Aes {
    Short(Box<Aes128>),
    Long(Box<Aes256>),
}

enum Cipher {
    Aead { key: LessSafeKey, salt: [u8; 4] },
    Cbc { aes: Aes, iv: Box<Aes256>, mac: hmac::Key },
}

/// Keys and layout of one direction.
pub(super) struct Transform {
    spi: u32,
    esn: bool,
    cipher: Cipher,
    iv: usize,
    icv: usize,
    block: usize,
}

impl std::fmt::Debug for Transform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Transform({:08x})", self.spi)
    }
}

impl Transform {
    /// Prepares keys; `encr` ends with the salt for AEADs (RFC 4106 8.1).
    ///
    /// # Errors
    /// When the keys do not have the suite's lengths.
    pub(super) fn new(
        suite: EspSuite,
        keys: &SaKeys,
        spi: u32,
        esn: bool,
    ) -> Result<Self, PlaneError> {
        let (iv, icv, block) = suite.wire_lengths();
        let cipher = cipher(suite, keys).ok_or_else(|| PlaneError::Unsupported {
            plane: "userspace",
            what: format!(
                "use keys of {}+{} bytes with {}",
                keys.encr.len(),
                keys.integ.len(),
                suite.name()
            ),
            fix: "derive the lengths of EspSuite::key_lengths",
        })?;
        Ok(Self { spi, esn, cipher, iv, icv, block })
    }

    /// Where the payload begins in a packet.
    pub(super) fn payload_offset(&self) -> usize {
        HEADER.saturating_add(self.iv)
    }

    /// Length of the whole packet for a payload of `inner` bytes.
    pub(super) fn sealed_len(&self, inner: usize) -> usize {
        let body = inner.saturating_add(TRAILER);
        let body = body.checked_next_multiple_of(self.block).unwrap_or(body);
        self.payload_offset().saturating_add(body).saturating_add(self.icv)
    }

    /// Seals `out`, which is exactly [`Transform::sealed_len`] long and holds the payload of
    /// `inner` bytes at [`Transform::payload_offset`]. `None` when the lengths do not fit.
    #[must_use]
    pub(super) fn seal(&self, seq: u64, next: u8, inner: usize, out: &mut [u8]) -> Option<()> {
        if out.len() != self.sealed_len(inner) {
            return None;
        }
        let (front, icv) = out.split_at_mut_checked(out.len().checked_sub(self.icv)?)?;
        front.get_mut(..4)?.copy_from_slice(&self.spi.to_be_bytes());
        front.get_mut(4..HEADER)?.copy_from_slice(&(seq as u32).to_be_bytes());
        let (head, body) = front.split_at_mut_checked(self.payload_offset())?;
        let padding = body.get_mut(inner..)?;
        let pad_len = padding.len().checked_sub(TRAILER)?;
        let (pad, trailer) = padding.split_at_mut_checked(pad_len)?;
        for (byte, value) in pad.iter_mut().zip(1u8..) {
            *byte = value;
        }
        trailer.copy_from_slice(&[u8::try_from(pad_len).ok()?, next]);
        let iv = head.get_mut(HEADER..)?;
        match &self.cipher {
            Cipher::Aead { key, salt } => {
                iv.copy_from_slice(&seq.to_be_bytes());
                let nonce = nonce(salt, iv)?;
                let tag = match self.aad(head, seq) {
                    Aad::Short(aad) => {
                        key.seal_in_place_separate_tag(nonce, aead::Aad::from(aad), body)
                    }
                    Aad::Long(aad) => {
                        key.seal_in_place_separate_tag(nonce, aead::Aad::from(aad), body)
                    }
                };
                icv.copy_from_slice(tag.ok()?.as_ref());
            }
            Cipher::Cbc { aes, iv: iv_key, mac } => {
                let mut block = Block::default();
                block.get_mut(8..)?.copy_from_slice(&seq.to_be_bytes());
                iv_key.encrypt_block(&mut block);
                iv.copy_from_slice(&block);
                let (blocks, rest) = Block::slice_as_chunks_mut(body);
                if !rest.is_empty() {
                    return None;
                }
                match aes {
                    Aes::Short(aes) => {
                        cbc::Encryptor::inner_iv_init(&**aes, &block).encrypt_blocks(blocks);
                    }
                    Aes::Long(aes) => {
                        cbc::Encryptor::inner_iv_init(&**aes, &block).encrypt_blocks(blocks);
                    }
                }
                let tag = self.mac(mac, seq, &[head, body]);
                icv.copy_from_slice(tag.as_ref().get(..self.icv)?);
            }
        }
        Some(())
    }

    /// Checks and decrypts a packet in place; `seq` is its full sequence number. Returns the next
    /// header and where the payload lies.
    pub(super) fn open(
        &self,
        seq: u64,
        packet: &mut [u8],
    ) -> Result<(u8, Range<usize>), OpenError> {
        let offset = self.payload_offset();
        let len = packet.len();
        let body_end = len.checked_sub(self.icv).ok_or(OpenError::Length)?;
        let body_len = body_end.checked_sub(offset).ok_or(OpenError::Length)?;
        // RFC 4303 2.4: four-byte alignment holds for AEADs too, but only blocks are vital.
        let ragged = body_len.checked_rem(self.block.min(body_len.max(1))) != Some(0);
        if body_len < TRAILER || (self.block > 4 && ragged) {
            return Err(OpenError::Length);
        }
        let (head, rest) = packet.split_at_mut_checked(offset).ok_or(OpenError::Length)?;
        match &self.cipher {
            Cipher::Aead { key, salt } => {
                let iv = head.get(HEADER..).ok_or(OpenError::Length)?;
                let nonce = nonce(salt, iv).ok_or(OpenError::Length)?;
                match self.aad(head, seq) {
                    Aad::Short(aad) => key.open_in_place(nonce, aead::Aad::from(aad), rest),
                    Aad::Long(aad) => key.open_in_place(nonce, aead::Aad::from(aad), rest),
                }
                .map_err(|_| OpenError::Auth)?;
            }
            Cipher::Cbc { aes, mac, .. } => {
                let (body, icv) = rest.split_at_mut_checked(body_len).ok_or(OpenError::Length)?;
                let tag = self.mac(mac, seq, &[head, body]);
                let tag = tag.as_ref().get(..self.icv).ok_or(OpenError::Length)?;
                if !constant_time_eq(tag, icv) {
                    return Err(OpenError::Auth);
                }
                let iv = head.get(HEADER..).ok_or(OpenError::Length)?;
                let iv = Block::try_from(iv).map_err(|_| OpenError::Length)?;
                let (blocks, _) = Block::slice_as_chunks_mut(body);
                match aes {
                    Aes::Short(aes) => {
                        cbc::Decryptor::inner_iv_init(&**aes, &iv).decrypt_blocks(blocks);
                    }
                    Aes::Long(aes) => {
                        cbc::Decryptor::inner_iv_init(&**aes, &iv).decrypt_blocks(blocks);
                    }
                }
            }
        }
        let body = rest.get(..body_len).ok_or(OpenError::Length)?;
        let [.., pad_len, next] = body else { return Err(OpenError::Length) };
        let inner = body_len
            .checked_sub(TRAILER)
            .and_then(|room| room.checked_sub(usize::from(*pad_len)))
            .ok_or(OpenError::Padding)?;
        let padding = body.get(inner..body_len.saturating_sub(TRAILER)).unwrap_or_default();
        // RFC 4303 2.4: the receiver SHOULD inspect the padding 1, 2, 3, ...
        if !padding.iter().zip(1u8..=255).all(|(byte, want)| *byte == want) {
            return Err(OpenError::Padding);
        }
        Ok((*next, offset..offset.saturating_add(inner)))
    }

    fn aad(&self, head: &[u8], seq: u64) -> Aad {
        let mut short = [0u8; HEADER];
        for (to, from) in short.iter_mut().zip(head) {
            *to = *from;
        }
        if !self.esn {
            return Aad::Short(short);
        }
        // RFC 4106 5: SPI, high half, low half.
        let mut long = [0u8; 12];
        let seq = seq.to_be_bytes();
        for (to, from) in long.iter_mut().zip(short.iter().take(4).chain(&seq)) {
            *to = *from;
        }
        Aad::Long(long)
    }

    fn mac(&self, key: &hmac::Key, seq: u64, parts: &[&[u8]]) -> hmac::Tag {
        let mut context = hmac::Context::with_key(key);
        for part in parts {
            context.update(part);
        }
        if self.esn {
            context.update(&((seq >> 32) as u32).to_be_bytes());
        }
        context.sign()
    }
}

enum Aad {
    Short([u8; HEADER]),
    Long([u8; 12]),
}

fn nonce(salt: &[u8; 4], iv: &[u8]) -> Option<Nonce> {
    let mut bytes = [0u8; aead::NONCE_LEN];
    let (front, back) = bytes.split_at_mut_checked(salt.len())?;
    front.copy_from_slice(salt);
    back.copy_from_slice(iv.first_chunk::<8>()?);
    Some(Nonce::assume_unique_for_key(bytes))
}

fn constant_time_eq(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let difference = a.iter().zip(b).fold(0u8, |sum, (a, b)| sum | (a ^ b));
    std::hint::black_box(difference) == 0
}

fn cipher(suite: EspSuite, keys: &SaKeys) -> Option<Cipher> {
    let aead = |algorithm: &'static aead::Algorithm| {
        if !keys.integ.is_empty() {
            return None;
        }
        let (key, salt) = keys.encr.split_last_chunk::<4>()?;
        let key = UnboundKey::new(algorithm, key).ok()?;
        Some(Cipher::Aead { key: LessSafeKey::new(key), salt: *salt })
    };
    let cbc = |algorithm: hmac::Algorithm| {
        let (encr_len, integ_len) = suite.key_lengths();
        if keys.encr.len() != encr_len || keys.integ.len() != integ_len {
            return None;
        }
        let aes = match encr_len {
            16 => Aes::Short(Box::new(Aes128::new_from_slice(&keys.encr).ok()?)),
            _ => Aes::Long(Box::new(Aes256::new_from_slice(&keys.encr).ok()?)),
        };
        let mut iv = Zeroizing::new([0u8; 32]);
        SystemRandom::new().fill(iv.as_mut()).ok()?;
        let iv = Box::new(Aes256::new_from_slice(iv.as_ref()).ok()?);
        Some(Cipher::Cbc { aes, iv, mac: hmac::Key::new(algorithm, &keys.integ) })
    };
    match suite {
        EspSuite::Aes128Gcm16 => aead(&aead::AES_128_GCM),
        EspSuite::Aes256Gcm16 => aead(&aead::AES_256_GCM),
        EspSuite::ChaCha20Poly1305 => aead(&aead::CHACHA20_POLY1305),
        EspSuite::Aes128CbcSha256 | EspSuite::Aes256CbcSha256 => cbc(hmac::HMAC_SHA256),
        EspSuite::Aes256CbcSha384 => cbc(hmac::HMAC_SHA384),
        EspSuite::Aes256CbcSha512 => cbc(hmac::HMAC_SHA512),
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
#[path = "esp_tests.rs"]
mod tests;
