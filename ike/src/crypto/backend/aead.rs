//! AEAD algorithms with 16-octet tags (RFC 5282, RFC 7634).

use super::super::{lib::aead, shim};
use crate::crypto::cipher::check_len;
use crate::crypto::{
    CipherAlgorithm, CryptoError, Encryption, Integrity, KeyedCipher, SecretBytes,
};
use crate::wire::EncrId;

/// Octets of salt behind the key.
const SALT_LEN: usize = 4;
/// Octets of explicit IV.
const IV_LEN: usize = 8;
/// Octets of tag.
const TAG_LEN: usize = 16;

#[derive(Debug)]
pub(in super::super) struct Aead {
    encryption: Encryption,
    name: &'static str,
    algorithm: &'static aead::Algorithm,
    key_len: usize,
}

impl Aead {
    pub(in super::super) const fn gcm(
        bits: u16,
        name: &'static str,
        algorithm: &'static aead::Algorithm,
    ) -> Self {
        Self {
            encryption: Encryption::with_bits(EncrId::AesGcm16, bits),
            name,
            algorithm,
            key_len: (bits / 8) as usize,
        }
    }
}

pub(in super::super) static AES_256_GCM: Aead = Aead::gcm(256, "aes256gcm16", &aead::AES_256_GCM);
pub(in super::super) static AES_128_GCM: Aead = Aead::gcm(128, "aes128gcm16", &aead::AES_128_GCM);
pub(in super::super) static CHACHA20_POLY1305: Aead = Aead {
    encryption: Encryption::chacha20_poly1305(),
    name: "chacha20poly1305",
    algorithm: &aead::CHACHA20_POLY1305,
    key_len: 32,
};

impl CipherAlgorithm for Aead {
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
        let key = aead::UnboundKey::new(self.algorithm, key)
            .map_err(|_| CryptoError::Library("AEAD key"))?;
        Ok(Box::new(KeyedAead { name: self.name, key: aead::LessSafeKey::new(key), salt }))
    }
}

struct KeyedAead {
    name: &'static str,
    key: aead::LessSafeKey,
    salt: [u8; SALT_LEN],
}

impl KeyedAead {
    fn nonce(&self, iv: &[u8]) -> Result<aead::Nonce, CryptoError> {
        check_len("AEAD initialization vector", IV_LEN, iv.len())?;
        let mut nonce = [0; aead::NONCE_LEN];
        let (salt, explicit) = nonce.split_at_mut(SALT_LEN);
        salt.copy_from_slice(&self.salt);
        explicit.copy_from_slice(iv);
        Ok(aead::Nonce::assume_unique_for_key(nonce))
    }
}

impl std::fmt::Debug for KeyedAead {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyedAead").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Drop for KeyedAead {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.salt);
    }
}

impl KeyedCipher for KeyedAead {
    fn iv_len(&self) -> usize {
        IV_LEN
    }

    fn icv_len(&self) -> usize {
        TAG_LEN
    }

    fn block_len(&self) -> usize {
        1
    }

    fn seal(&self, iv: &[u8], aad: &[u8], plaintext: &mut [u8]) -> Result<Vec<u8>, CryptoError> {
        self.key
            .seal_in_place_separate_tag(self.nonce(iv)?, aead::Aad::from(aad), plaintext)
            .map(|tag| tag.as_ref().to_vec())
            .map_err(|_| CryptoError::Library("AEAD seal"))
    }

    fn open(
        &self,
        iv: &[u8],
        aad: &[u8],
        ciphertext: &mut [u8],
        icv: &[u8],
    ) -> Result<(), CryptoError> {
        shim::open(&self.key, self.nonce(iv)?, aead::Aad::from(aad), ciphertext, icv)
            .ok_or(CryptoError::Authentication)
    }
}
