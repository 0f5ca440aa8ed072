//! Signature verification.

use super::super::lib::signature::{self, UnparsedPublicKey, VerificationAlgorithm};
use super::super::shim;
use crate::crypto::{Curve, PublicKey, SignatureError, SignatureScheme, SignatureVerifier};

#[derive(Debug)]
pub(in super::super) struct Verifier;

impl SignatureVerifier for Verifier {
    fn supports(&self, scheme: SignatureScheme, key: &PublicKey<'_>) -> bool {
        algorithm(scheme, key).is_some()
    }

    fn verify(
        &self,
        scheme: SignatureScheme,
        key: &PublicKey<'_>,
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), SignatureError> {
        let algorithm = algorithm(scheme, key)
            .ok_or_else(|| SignatureError::Unsupported(scheme.name().to_owned()))?;
        UnparsedPublicKey::new(algorithm, octets(key))
            .verify(message, signature)
            .map_err(|_| SignatureError::Mismatch)
    }

    fn is_rsa_sha1(&self, key: &PublicKey<'_>, message: &[u8], signature: &[u8]) -> bool {
        matches!(key, PublicKey::Rsa { .. })
            && UnparsedPublicKey::new(
                &signature::RSA_PKCS1_2048_8192_SHA1_FOR_LEGACY_USE_ONLY,
                octets(key),
            )
            .verify(message, signature)
            .is_ok()
    }
}

fn octets<'a>(key: &PublicKey<'a>) -> &'a [u8] {
    match key {
        PublicKey::Rsa { pkcs1, .. } => pkcs1,
        PublicKey::Ec { point, .. } => point,
        PublicKey::Ed25519 { key } => key,
    }
}

fn algorithm(
    scheme: SignatureScheme,
    key: &PublicKey<'_>,
) -> Option<&'static dyn VerificationAlgorithm> {
    use SignatureScheme as S;
    Some(match (key, scheme) {
        (PublicKey::Rsa { .. }, S::RsaPkcs1Sha256) => &signature::RSA_PKCS1_2048_8192_SHA256,
        (PublicKey::Rsa { .. }, S::RsaPkcs1Sha384) => &signature::RSA_PKCS1_2048_8192_SHA384,
        (PublicKey::Rsa { .. }, S::RsaPkcs1Sha512) => &signature::RSA_PKCS1_2048_8192_SHA512,
        (PublicKey::Rsa { .. }, S::RsaPssSha256) => &signature::RSA_PSS_2048_8192_SHA256,
        (PublicKey::Rsa { .. }, S::RsaPssSha384) => &signature::RSA_PSS_2048_8192_SHA384,
        (PublicKey::Rsa { .. }, S::RsaPssSha512) => &signature::RSA_PSS_2048_8192_SHA512,
        (PublicKey::Ec { curve: Curve::P256, .. }, S::EcdsaSha256) => {
            &signature::ECDSA_P256_SHA256_ASN1
        }
        (PublicKey::Ec { curve: Curve::P256, .. }, S::EcdsaSha384) => {
            &signature::ECDSA_P256_SHA384_ASN1
        }
        (PublicKey::Ec { curve: Curve::P384, .. }, S::EcdsaSha256) => {
            &signature::ECDSA_P384_SHA256_ASN1
        }
        (PublicKey::Ec { curve: Curve::P384, .. }, S::EcdsaSha384) => {
            &signature::ECDSA_P384_SHA384_ASN1
        }
        (PublicKey::Ed25519 { .. }, S::Ed25519) => &signature::ED25519,
        (PublicKey::Ec { curve, .. }, scheme) => return shim::ecdsa_algorithm(*curve, scheme),
        _ => return None,
    })
}
