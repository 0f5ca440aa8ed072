//! AES-CBC (RFC 3602) with a separate integrity algorithm, encrypt-then-MAC (RFC 7296 3.14).
//!
//! The checksum is compared before anything is decrypted, so padding reveals nothing. The peer's
//! padding is checked by the Encrypted payload's codec.

use std::fmt;
use std::marker::PhantomData;

use aes_gcm::aead::consts::U16;
use aes_gcm::aes::cipher::{Array, BlockCipherDecrypt, BlockCipherEncrypt, BlockSizeUser, KeyInit};
use aes_gcm::aes::{Aes128, Aes192, Aes256};

use super::cipher::check_len;
use super::{CipherAlgorithm, CryptoError, Encryption, Integrity, KeyedCipher, SecretBytes};
use crate::wire::EncrId;

/// Octets of a block and of the IV.
const BLOCK_LEN: usize = 16;

pub(super) static AES_256_CBC: Cbc<Aes256> = Cbc::new(256, "aes256");
pub(super) static AES_192_CBC: Cbc<Aes192> = Cbc::new(192, "aes192");
pub(super) static AES_128_CBC: Cbc<Aes128> = Cbc::new(128, "aes128");

pub(super) struct Cbc<Aes> {
    encryption: Encryption,
    name: &'static str,
    key_len: usize,
    cipher: PhantomData<fn() -> Aes>,
}

impl<Aes> Cbc<Aes> {
    const fn new(bits: u16, name: &'static str) -> Self {
        Self {
            encryption: Encryption::with_bits(EncrId::AesCbc, bits),
            name,
            key_len: (bits / 8) as usize,
            cipher: PhantomData,
        }
    }
}

impl<Aes> fmt::Debug for Cbc<Aes> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl<Aes> CipherAlgorithm for Cbc<Aes>
where
    Aes: BlockCipherEncrypt + BlockCipherDecrypt + BlockSizeUser<BlockSize = U16> + KeyInit,
    Aes: Send + Sync + 'static,
{
    fn encryption(&self) -> Encryption {
        self.encryption
    }

    fn name(&self) -> &'static str {
        self.name
    }

    fn is_aead(&self) -> bool {
        false
    }

    fn key_len(&self) -> usize {
        self.key_len
    }

    fn keyed(
        &self,
        key: &SecretBytes,
        integrity: Option<(&'static dyn Integrity, &SecretBytes)>,
    ) -> Result<Box<dyn KeyedCipher>, CryptoError> {
        let (integ, integ_key) =
            integrity.ok_or(CryptoError::Unsupported("CBC without an integrity algorithm"))?;
        check_len(self.name, self.key_len, key.len())?;
        check_len("the integrity key", integ.key_len(), integ_key.len())?;
        let aes = Aes::new_from_slice(key.expose()).map_err(|_| CryptoError::Library("AES key"))?;
        Ok(Box::new(KeyedCbc { name: self.name, aes, integ, integ_key: integ_key.clone() }))
    }
}

struct KeyedCbc<Aes> {
    name: &'static str,
    aes: Aes,
    integ: &'static dyn Integrity,
    integ_key: SecretBytes,
}

impl<Aes> fmt::Debug for KeyedCbc<Aes> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyedCbc")
            .field("name", &self.name)
            .field("integ", &self.integ)
            .finish_non_exhaustive()
    }
}

impl<Aes> KeyedCipher for KeyedCbc<Aes>
where
    Aes: BlockCipherEncrypt + BlockCipherDecrypt + BlockSizeUser<BlockSize = U16> + Send + Sync,
{
    fn iv_len(&self) -> usize {
        BLOCK_LEN
    }

    fn icv_len(&self) -> usize {
        self.integ.icv_len()
    }

    fn block_len(&self) -> usize {
        BLOCK_LEN
    }

    fn seal(&self, iv: &[u8], aad: &[u8], plaintext: &mut [u8]) -> Result<Vec<u8>, CryptoError> {
        encrypt(&self.aes, iv, plaintext)?;
        Ok(self.integ.compute(self.integ_key.expose(), &[aad, iv, plaintext]))
    }

    fn open(
        &self,
        iv: &[u8],
        aad: &[u8],
        ciphertext: &mut [u8],
        icv: &[u8],
    ) -> Result<(), CryptoError> {
        check_iv(iv)?;
        self.integ.verify(self.integ_key.expose(), &[aad, iv, ciphertext], icv)?;
        decrypt(&self.aes, iv, ciphertext).map_err(|_| CryptoError::Authentication)
    }
}

fn check_iv(iv: &[u8]) -> Result<[u8; BLOCK_LEN], CryptoError> {
    iv.try_into().map_err(|_| CryptoError::KeyLength {
        what: "CBC initialization vector",
        expected: BLOCK_LEN,
        actual: iv.len(),
    })
}

fn blocks(data: &mut [u8]) -> Result<&mut [[u8; BLOCK_LEN]], CryptoError> {
    let actual = data.len();
    let (blocks, rest) = data.as_chunks_mut();
    if rest.is_empty() {
        Ok(blocks)
    } else {
        Err(CryptoError::KeyLength {
            what: "CBC data",
            expected: actual.next_multiple_of(BLOCK_LEN),
            actual,
        })
    }
}

fn encrypt<Aes>(aes: &Aes, iv: &[u8], data: &mut [u8]) -> Result<(), CryptoError>
where
    Aes: BlockCipherEncrypt + BlockSizeUser<BlockSize = U16>,
{
    let mut previous = check_iv(iv)?;
    for block in blocks(data)? {
        xor(block, &previous);
        let mut state = Array::from(*block);
        aes.encrypt_block(&mut state);
        *block = state.into();
        previous = *block;
    }
    Ok(())
}

fn decrypt<Aes>(aes: &Aes, iv: &[u8], data: &mut [u8]) -> Result<(), CryptoError>
where
    Aes: BlockCipherDecrypt + BlockSizeUser<BlockSize = U16>,
{
    let mut previous = check_iv(iv)?;
    for block in blocks(data)? {
        let ciphertext = *block;
        let mut state = Array::from(ciphertext);
        aes.decrypt_block(&mut state);
        *block = state.into();
        xor(block, &previous);
        previous = ciphertext;
    }
    Ok(())
}

fn xor(block: &mut [u8; BLOCK_LEN], with: &[u8; BLOCK_LEN]) {
    for (octet, with) in block.iter_mut().zip(with) {
        *octet ^= with;
    }
}
