//! ECDSA signatures that `ring` cannot verify, by aws-lc: all on P-521, and those with SHA-512.

use aws_lc_rs::signature::{
    ECDSA_P256_SHA512_ASN1, ECDSA_P384_SHA512_ASN1, ECDSA_P521_SHA256_ASN1, ECDSA_P521_SHA384_ASN1,
    ECDSA_P521_SHA512_ASN1, EcdsaVerificationAlgorithm, UnparsedPublicKey,
};
use rustls_pki_types::{
    AlgorithmIdentifier, InvalidSignature, SignatureVerificationAlgorithm, alg_id,
};

/// P-521 with SHA-256.
pub static P521_SHA256: &dyn SignatureVerificationAlgorithm = &Ecdsa {
    key: alg_id::ECDSA_P521,
    signature: alg_id::ECDSA_SHA256,
    verifier: &ECDSA_P521_SHA256_ASN1,
};

/// P-521 with SHA-384.
pub static P521_SHA384: &dyn SignatureVerificationAlgorithm = &Ecdsa {
    key: alg_id::ECDSA_P521,
    signature: alg_id::ECDSA_SHA384,
    verifier: &ECDSA_P521_SHA384_ASN1,
};

/// P-521 with SHA-512.
pub static P521_SHA512: &dyn SignatureVerificationAlgorithm = &Ecdsa {
    key: alg_id::ECDSA_P521,
    signature: alg_id::ECDSA_SHA512,
    verifier: &ECDSA_P521_SHA512_ASN1,
};

/// P-256 with SHA-512: TLS 1.2 does not bind a hash to a curve.
pub static P256_SHA512: &dyn SignatureVerificationAlgorithm = &Ecdsa {
    key: alg_id::ECDSA_P256,
    signature: alg_id::ECDSA_SHA512,
    verifier: &ECDSA_P256_SHA512_ASN1,
};

/// P-384 with SHA-512, for the same reason.
pub static P384_SHA512: &dyn SignatureVerificationAlgorithm = &Ecdsa {
    key: alg_id::ECDSA_P384,
    signature: alg_id::ECDSA_SHA512,
    verifier: &ECDSA_P384_SHA512_ASN1,
};

/// One combination of curve and hash.
#[derive(Debug)]
struct Ecdsa {
    key: AlgorithmIdentifier,
    signature: AlgorithmIdentifier,
    verifier: &'static EcdsaVerificationAlgorithm,
}

impl SignatureVerificationAlgorithm for Ecdsa {
    fn verify_signature(
        &self,
        public_key: &[u8],
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), InvalidSignature> {
        UnparsedPublicKey::new(self.verifier, public_key)
            .verify(message, signature)
            .map_err(|_| InvalidSignature)
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        self.key
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        self.signature
    }
}
