//! HMAC with SHA-2 as PRF (RFC 4868 2.1.2) and as integrity algorithm (2.1.1), and hashes.

use super::super::lib::{digest, hmac};
use crate::crypto::{HashFunction, Hasher, Integrity, Prf, SecretBytes};
use crate::wire::{IntegId, PrfId};

#[derive(Debug)]
struct HmacPrf {
    id: PrfId,
    algorithm: &'static hmac::Algorithm,
    output_len: usize,
}

pub(in super::super) static PRFS: &[&dyn Prf] = &[
    &HmacPrf { id: PrfId::HmacSha2_256, algorithm: &hmac::HMAC_SHA256, output_len: 32 },
    &HmacPrf { id: PrfId::HmacSha2_384, algorithm: &hmac::HMAC_SHA384, output_len: 48 },
    &HmacPrf { id: PrfId::HmacSha2_512, algorithm: &hmac::HMAC_SHA512, output_len: 64 },
];

impl Prf for HmacPrf {
    fn id(&self) -> PrfId {
        self.id
    }

    fn output_len(&self) -> usize {
        self.output_len
    }

    fn compute(&self, key: &[u8], parts: &[&[u8]]) -> SecretBytes {
        SecretBytes::copy_from(tag(*self.algorithm, key, parts).as_ref())
    }
}

/// Key length is that of the hash, the checksum half of it (RFC 4868 2.1.1).
#[derive(Debug)]
struct HmacInteg {
    id: IntegId,
    algorithm: &'static hmac::Algorithm,
    key_len: usize,
}

pub(in super::super) static INTEGS: &[&dyn Integrity] = &[
    &HmacInteg { id: IntegId::HmacSha2_256_128, algorithm: &hmac::HMAC_SHA256, key_len: 32 },
    &HmacInteg { id: IntegId::HmacSha2_384_192, algorithm: &hmac::HMAC_SHA384, key_len: 48 },
    &HmacInteg { id: IntegId::HmacSha2_512_256, algorithm: &hmac::HMAC_SHA512, key_len: 64 },
];

impl Integrity for HmacInteg {
    fn id(&self) -> IntegId {
        self.id
    }

    fn key_len(&self) -> usize {
        self.key_len
    }

    fn icv_len(&self) -> usize {
        self.key_len / 2
    }

    fn compute(&self, key: &[u8], parts: &[&[u8]]) -> Vec<u8> {
        let tag = tag(*self.algorithm, key, parts);
        let tag = tag.as_ref();
        tag.get(..self.icv_len()).unwrap_or(tag).to_vec()
    }
}

fn tag(algorithm: hmac::Algorithm, key: &[u8], parts: &[&[u8]]) -> hmac::Tag {
    let mut context = hmac::Context::with_key(&hmac::Key::new(algorithm, key));
    for part in parts {
        context.update(part);
    }
    context.sign()
}

#[derive(Debug)]
pub(in super::super) struct Hashes;

impl Hasher for Hashes {
    fn digest(&self, function: HashFunction, parts: &[&[u8]]) -> Vec<u8> {
        let algorithm = match function {
            HashFunction::Sha1 => &digest::SHA1_FOR_LEGACY_USE_ONLY,
            HashFunction::Sha256 => &digest::SHA256,
            HashFunction::Sha384 => &digest::SHA384,
            HashFunction::Sha512 => &digest::SHA512,
        };
        let mut context = digest::Context::new(algorithm);
        for part in parts {
            context.update(part);
        }
        context.finish().as_ref().to_vec()
    }
}
