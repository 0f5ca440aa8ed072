//! A signer whose private key is in memory, loaded from PKCS#8.

use std::fmt;

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rsa::KeySize;
use ring::rand::SystemRandom;
use ring::signature::{
    self, ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P256_SHA256_FIXED_SIGNING,
    ECDSA_P384_SHA384_ASN1_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair,
    KeyPair, RsaEncoding, RsaKeyPair,
};
use zeroize::Zeroizing;

use super::{KeyAlgorithm, KeyKind, RawKey, SignatureScheme, Signer};
use crate::error::Error;

/// A private key held in memory.
pub struct FileSigner {
    algorithm: KeyAlgorithm,
    key: Key,
    public_key_der: Vec<u8>,
    pkcs8: Zeroizing<Vec<u8>>,
    random: SystemRandom,
}

enum Key {
    Ecdsa { asn1: Box<EcdsaKeyPair>, fixed: Box<EcdsaKeyPair> },
    Ed25519(Box<Ed25519KeyPair>),
    Rsa(Box<RsaKeyPair>),
}

impl FileSigner {
    /// Generates a key with the system's random generator. RSA takes a second or several.
    ///
    /// # Errors
    /// When the generator fails.
    pub fn generate(kind: KeyKind) -> Result<Self, Error> {
        let random = SystemRandom::new();
        let failed = |_| Error::Crypto("generating a key failed");
        let document = match kind {
            KeyKind::EcdsaP256 => {
                EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random)
            }
            KeyKind::EcdsaP384 => {
                EcdsaKeyPair::generate_pkcs8(&ECDSA_P384_SHA384_ASN1_SIGNING, &random)
            }
            KeyKind::Ed25519 => Ed25519KeyPair::generate_pkcs8(&random),
            KeyKind::Rsa3072 => return Self::generate_rsa(KeySize::Rsa3072),
            KeyKind::Rsa4096 => return Self::generate_rsa(KeySize::Rsa4096),
        }
        .map_err(failed)?;
        Self::from_pkcs8(Zeroizing::new(document.as_ref().to_vec()))
    }

    /// By aws-lc: ring makes no RSA keys.
    fn generate_rsa(size: KeySize) -> Result<Self, Error> {
        let failed = |_| Error::Crypto("generating an RSA key failed");
        let key = aws_lc_rs::rsa::KeyPair::generate(size).map_err(failed)?;
        let pkcs8: Pkcs8V1Der<'_> = key.as_der().map_err(failed)?;
        Self::from_pkcs8(Zeroizing::new(pkcs8.as_ref().to_vec()))
    }

    /// Loads a key from unencrypted PKCS#8 DER.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it is no key of a supported kind.
    pub fn from_pkcs8(pkcs8: Zeroizing<Vec<u8>>) -> Result<Self, Error> {
        let random = SystemRandom::new();
        let ecdsa = |asn1, fixed| {
            let asn1 = EcdsaKeyPair::from_pkcs8(asn1, &pkcs8, &random).ok()?;
            let fixed = EcdsaKeyPair::from_pkcs8(fixed, &pkcs8, &random).ok()?;
            Some(Key::Ecdsa { asn1: Box::new(asn1), fixed: Box::new(fixed) })
        };
        let p256 = || ecdsa(&ECDSA_P256_SHA256_ASN1_SIGNING, &ECDSA_P256_SHA256_FIXED_SIGNING);
        let p384 = || ecdsa(&ECDSA_P384_SHA384_ASN1_SIGNING, &ECDSA_P384_SHA384_FIXED_SIGNING);
        let (algorithm, key) = if let Some(key) = p256() {
            (KeyAlgorithm::EcdsaP256, key)
        } else if let Some(key) = p384() {
            (KeyAlgorithm::EcdsaP384, key)
        } else if let Ok(key) = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&pkcs8) {
            (KeyAlgorithm::Ed25519, Key::Ed25519(Box::new(key)))
        } else if let Ok(key) = RsaKeyPair::from_pkcs8(&pkcs8) {
            (KeyAlgorithm::Rsa, Key::Rsa(Box::new(key)))
        } else {
            return Err(Error::Invalid(
                "the private key is not PKCS#8 with ECDSA P-256/P-384, Ed25519 or RSA of 2048 to \
                 4096 bits: convert it with openssl pkcs8 -topk8 -nocrypt"
                    .to_owned(),
            ));
        };
        let raw = match &key {
            Key::Ecdsa { asn1, .. } => asn1.public_key().as_ref(),
            Key::Ed25519(key) => key.public_key().as_ref(),
            Key::Rsa(key) => key.public_key().as_ref(),
        };
        let public_key_der = rcgen::PublicKeyData::subject_public_key_info(&RawKey {
            algorithm: algorithm.rcgen(),
            raw,
        });
        Ok(Self { algorithm, key, public_key_der, pkcs8, random })
    }

    /// The private key as PKCS#8 DER, for sealing and for TLS.
    pub fn pkcs8(&self) -> &Zeroizing<Vec<u8>> {
        &self.pkcs8
    }

    fn sign_rsa(
        &self,
        key: &RsaKeyPair,
        padding: &'static dyn RsaEncoding,
        message: &[u8],
    ) -> Result<Vec<u8>, Error> {
        let mut out = vec![0; key.public().modulus_len()];
        key.sign(padding, &self.random, message, &mut out)
            .map_err(|_| Error::Crypto("signing with the RSA key failed"))?;
        Ok(out)
    }
}

impl Signer for FileSigner {
    fn public_key_der(&self) -> &[u8] {
        &self.public_key_der
    }

    fn algorithm(&self) -> KeyAlgorithm {
        self.algorithm
    }

    fn sign_with(&self, scheme: SignatureScheme, message: &[u8]) -> Result<Vec<u8>, Error> {
        use SignatureScheme as Scheme;
        let ecdsa = |key: &EcdsaKeyPair| {
            key.sign(&self.random, message)
                .map(|signature| signature.as_ref().to_vec())
                .map_err(|_| Error::Crypto("signing with the ECDSA key failed"))
        };
        match (&self.key, scheme) {
            (Key::Ecdsa { asn1, .. }, Scheme::EcdsaAsn1) => ecdsa(asn1),
            (Key::Ecdsa { fixed, .. }, Scheme::EcdsaFixed) => ecdsa(fixed),
            (Key::Ed25519(key), Scheme::Ed25519) => Ok(key.sign(message).as_ref().to_vec()),
            (Key::Rsa(key), scheme) => {
                let padding: &'static dyn RsaEncoding = match scheme {
                    Scheme::RsaPkcs1Sha256 => &signature::RSA_PKCS1_SHA256,
                    Scheme::RsaPkcs1Sha384 => &signature::RSA_PKCS1_SHA384,
                    Scheme::RsaPkcs1Sha512 => &signature::RSA_PKCS1_SHA512,
                    Scheme::RsaPssSha256 => &signature::RSA_PSS_SHA256,
                    Scheme::RsaPssSha384 => &signature::RSA_PSS_SHA384,
                    Scheme::RsaPssSha512 => &signature::RSA_PSS_SHA512,
                    _ => return Err(Error::Crypto("the signature scheme does not fit an RSA key")),
                };
                self.sign_rsa(key, padding, message)
            }
            _ => Err(Error::Crypto("the signature scheme does not fit the key")),
        }
    }
}

impl fmt::Debug for FileSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FileSigner({:?}, {} bytes sealed at rest)", self.algorithm, self.pkcs8.len())
    }
}
