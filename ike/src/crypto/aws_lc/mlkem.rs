//! ML-KEM (FIPS 203) as key exchange method (draft-ietf-ipsecme-ikev2-mlkem).

use aws_lc_rs::kem::{
    self, Algorithm, AlgorithmId, Ciphertext, DecapsulationKey, EncapsulationKey,
};

use crate::crypto::kex::check_len;
use crate::crypto::{
    CryptoError, KexKind, KexSecret, KeyExchangeGroup, KeyShare, SecretBytes, SharedSecret,
};
use crate::wire::KeMethod;

#[derive(Debug)]
pub(super) struct MlKem {
    method: KeMethod,
    name: &'static str,
    algorithm: fn() -> &'static Algorithm<AlgorithmId>,
    encapsulation_key_len: usize,
    ciphertext_len: usize,
}

pub(super) static ML_KEM_512: MlKem = MlKem {
    method: KeMethod::MlKem512,
    name: "mlkem512",
    algorithm: || &kem::ML_KEM_512,
    encapsulation_key_len: 800,
    ciphertext_len: 768,
};
pub(super) static ML_KEM_768: MlKem = MlKem {
    method: KeMethod::MlKem768,
    name: "mlkem768",
    algorithm: || &kem::ML_KEM_768,
    encapsulation_key_len: 1184,
    ciphertext_len: 1088,
};
pub(super) static ML_KEM_1024: MlKem = MlKem {
    method: KeMethod::MlKem1024,
    name: "mlkem1024",
    algorithm: || &kem::ML_KEM_1024,
    encapsulation_key_len: 1568,
    ciphertext_len: 1568,
};

impl KeyExchangeGroup for MlKem {
    fn method(&self) -> KeMethod {
        self.method
    }

    fn name(&self) -> &'static str {
        self.name
    }

    fn kind(&self) -> KexKind {
        KexKind::Kem
    }

    fn initiator_public_len(&self) -> usize {
        self.encapsulation_key_len
    }

    fn responder_public_len(&self) -> usize {
        self.ciphertext_len
    }

    fn generate(&self) -> Result<KeyShare, CryptoError> {
        let key = DecapsulationKey::generate((self.algorithm)())
            .map_err(|_| CryptoError::Library("ML-KEM key generation"))?;
        let public = key
            .encapsulation_key()
            .and_then(|public| public.key_bytes().map(|bytes| bytes.as_ref().to_vec()))
            .map_err(|_| CryptoError::Library("ML-KEM encapsulation key"))?;
        let secret = Box::new(Secret { name: self.name, ciphertext_len: self.ciphertext_len, key });
        Ok(KeyShare { public, secret })
    }

    fn encapsulate(&self, initiator_public: &[u8]) -> Result<(Vec<u8>, SharedSecret), CryptoError> {
        check_len(self.name, self.encapsulation_key_len, initiator_public)?;
        // FIPS 203 7.2: the library checks that the key's coefficients are reduced.
        let invalid = CryptoError::PublicValueInvalid { group: self.name };
        let key = EncapsulationKey::new((self.algorithm)(), initiator_public)
            .map_err(|_| invalid.clone())?;
        let (ciphertext, secret) = key.encapsulate().map_err(|_| invalid)?;
        Ok((ciphertext.as_ref().to_vec(), SecretBytes::copy_from(secret.as_ref())))
    }
}

struct Secret {
    name: &'static str,
    ciphertext_len: usize,
    key: DecapsulationKey<AlgorithmId>,
}

impl KexSecret for Secret {
    fn agree(self: Box<Self>, peer_public: &[u8]) -> Result<SharedSecret, CryptoError> {
        check_len(self.name, self.ciphertext_len, peer_public)?;
        // A wrong ciphertext yields an unrelated secret (implicit rejection), found out by AUTH.
        self.key
            .decapsulate(Ciphertext::from(peer_public))
            .map(|secret| SecretBytes::copy_from(secret.as_ref()))
            .map_err(|_| CryptoError::PublicValueInvalid { group: self.name })
    }
}
