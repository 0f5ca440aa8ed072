//! Verifies signatures on certificates, revocation lists and OCSP responses.

use super::der::{self, SignedData};
use crate::ecdsa;

/// Why a signature is not good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SignatureFailure {
    /// The algorithm, the key or their combination is not accepted.
    Unsupported,
    /// It was not made over this data with this key.
    Invalid,
}

/// Verifies with the key of a SubjectPublicKeyInfo (DER). Accepted: ECDSA on P-256 and P-384 with
/// SHA-256 or SHA-384, on P-521 with SHA-2, Ed25519, RSA of 2048 to 8192 bits (PKCS#1, PSS) with
/// SHA-2.
pub(super) fn verify(spki: &[u8], data: SignedData<'_>) -> Result<(), SignatureFailure> {
    let (key_algorithm, key) = der::public_key(spki).ok_or(SignatureFailure::Unsupported)?;
    let mut result = Err(SignatureFailure::Unsupported);
    let p521 = [ecdsa::P521_SHA512, ecdsa::P521_SHA384, ecdsa::P521_SHA256];
    for algorithm in webpki::ALL_VERIFICATION_ALGS.iter().chain(&p521) {
        if algorithm.signature_alg_id().as_ref() != data.algorithm
            || algorithm.public_key_alg_id().as_ref() != key_algorithm
        {
            continue;
        }
        if algorithm.verify_signature(key, data.message, data.signature).is_ok() {
            return Ok(());
        }
        result = Err(SignatureFailure::Invalid);
    }
    result
}
