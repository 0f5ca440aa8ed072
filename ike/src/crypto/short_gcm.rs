//! AES-GCM from RustCrypto: the tags and key lengths that `ring` and `aws-lc-rs` lack.
//!
//! Both do 16-octet tags only, and `ring` has no AES-192. RFC 8247 names none of these as more
//! than MAY; they exist for peers that insist.

use std::fmt;
use std::marker::PhantomData;

use aes_gcm::aead::array::ArraySize;
use aes_gcm::aead::consts::{U8, U12, U16};
use aes_gcm::aes::cipher::{BlockCipherEncrypt, BlockSizeUser, KeySizeUser};
use aes_gcm::aes::{Aes128, Aes192, Aes256};
use aes_gcm::{AeadInOut, AesGcm, Key, KeyInit, Nonce, Tag, TagSize};

use super::cipher::check_len;
use super::{CipherAlgorithm, CryptoError, Encryption, Integrity, KeyedCipher, SecretBytes};
use crate::wire::EncrId;

/// Octets of salt behind the key.
const SALT_LEN: usize = 4;
/// Octets of explicit IV.
const IV_LEN: usize = 8;

pub(super) static AES_192_GCM_16: Gcm<Aes192, U16> = Gcm::new(EncrId::AesGcm16, 192, "aes192gcm16");
pub(super) static AES_256_GCM_12: Gcm<Aes256, U12> = Gcm::new(EncrId::AesGcm12, 256, "aes256gcm12");
pub(super) static AES_192_GCM_12: Gcm<Aes192, U12> = Gcm::new(EncrId::AesGcm12, 192, "aes192gcm12");
pub(super) static AES_128_GCM_12: Gcm<Aes128, U12> = Gcm::new(EncrId::AesGcm12, 128, "aes128gcm12");
pub(super) static AES_256_GCM_8: Gcm<Aes256, U8> = Gcm::new(EncrId::AesGcm8, 256, "aes256gcm8");
pub(super) static AES_192_GCM_8: Gcm<Aes192, U8> = Gcm::new(EncrId::AesGcm8, 192, "aes192gcm8");
pub(super) static AES_128_GCM_8: Gcm<Aes128, U8> = Gcm::new(EncrId::AesGcm8, 128, "aes128gcm8");

pub(super) struct Gcm<Aes, T> {
    encryption: Encryption,
    name: &'static str,
    key_len: usize,
    cipher: PhantomData<fn() -> (Aes, T)>,
}

impl<Aes, T> Gcm<Aes, T> {
    const fn new(id: EncrId, bits: u16, name: &'static str) -> Self {
        Self {
            encryption: Encryption::with_bits(id, bits),
            name,
            key_len: (bits / 8) as usize,
            cipher: PhantomData,
        }
    }
}

impl<Aes, T> fmt::Debug for Gcm<Aes, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl<Aes, T> CipherAlgorithm for Gcm<Aes, T>
where
    Aes: BlockCipherEncrypt + BlockSizeUser<BlockSize = U16> + KeyInit + KeySizeUser,
    Aes: Send + Sync + 'static,
    T: ArraySize + TagSize + Send + Sync + 'static,
{
    fn encryption(&self) -> Encryption {
        self.encryption
    }

    fn name(&self) -> &'static str {
        self.name
    }

    fn is_aead(&self) -> bool {
        true
    }

    fn key_len(&self) -> usize {
        self.key_len + SALT_LEN
    }

    fn keyed(
        &self,
        key: &SecretBytes,
        integrity: Option<(&'static dyn Integrity, &SecretBytes)>,
    ) -> Result<Box<dyn KeyedCipher>, CryptoError> {
        if integrity.is_some() {
            return Err(CryptoError::Unsupported("an integrity algorithm beside an AEAD"));
        }
        check_len(self.name, self.key_len(), key.len())?;
        let Some((key, &salt)) = key.expose().split_last_chunk::<SALT_LEN>() else {
            return Err(CryptoError::Library("AEAD key"));
        };
        let key: &Key<AesGcm<Aes, U12, T>> =
            key.try_into().map_err(|_| CryptoError::Library("AEAD key"))?;
        Ok(Box::new(KeyedGcm::<Aes, T> { name: self.name, key: AesGcm::new(key), salt }))
    }
}

struct KeyedGcm<Aes, T: TagSize> {
    name: &'static str,
    key: AesGcm<Aes, U12, T>,
    salt: [u8; SALT_LEN],
}

impl<Aes, T: TagSize> KeyedGcm<Aes, T> {
    fn nonce(&self, iv: &[u8]) -> Result<Nonce<U12>, CryptoError> {
        check_len("AEAD initialization vector", IV_LEN, iv.len())?;
        let mut nonce = Nonce::<U12>::default();
        let (salt, explicit) = nonce.split_at_mut(SALT_LEN);
        salt.copy_from_slice(&self.salt);
        explicit.copy_from_slice(iv);
        Ok(nonce)
    }
}

impl<Aes, T: TagSize> fmt::Debug for KeyedGcm<Aes, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyedGcm").field("name", &self.name).finish_non_exhaustive()
    }
}

impl<Aes, T: TagSize> Drop for KeyedGcm<Aes, T> {
    fn drop(&mut self) {
        // The AES key schedule wipes itself.
        zeroize::Zeroize::zeroize(&mut self.salt);
    }
}

impl<Aes, T> KeyedCipher for KeyedGcm<Aes, T>
where
    Aes: BlockCipherEncrypt + BlockSizeUser<BlockSize = U16> + Send + Sync,
    T: ArraySize + TagSize + Send + Sync,
{
    fn iv_len(&self) -> usize {
        IV_LEN
    }

    fn icv_len(&self) -> usize {
        T::USIZE
    }

    fn block_len(&self) -> usize {
        1
    }

    fn seal(&self, iv: &[u8], aad: &[u8], plaintext: &mut [u8]) -> Result<Vec<u8>, CryptoError> {
        self.key
            .encrypt_inout_detached(&self.nonce(iv)?, aad, plaintext.into())
            .map(|tag| tag.to_vec())
            .map_err(|_| CryptoError::Library("AEAD seal"))
    }

    fn open(
        &self,
        iv: &[u8],
        aad: &[u8],
        ciphertext: &mut [u8],
        icv: &[u8],
    ) -> Result<(), CryptoError> {
        let tag = Tag::<T>::try_from(icv).map_err(|_| CryptoError::Authentication)?;
        self.key
            .decrypt_inout_detached(&self.nonce(iv)?, aad, ciphertext.into(), &tag)
            .map_err(|_| CryptoError::Authentication)
    }
}
