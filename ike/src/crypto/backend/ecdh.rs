//! X25519 (RFC 8031) and the NIST curves (RFC 5903).

use super::super::{lib::agreement, shim};
use crate::crypto::kex::check_len;
use crate::crypto::{
    CryptoError, KexKind, KexSecret, KeyExchangeGroup, KeyShare, SecretBytes, SharedSecret,
    constant_time_eq,
};
use crate::wire::KeMethod;

/// How a public value stands in the KE payload.
#[derive(Debug, Clone, Copy)]
enum Encoding {
    /// The u-coordinate (RFC 8031 section 3).
    Montgomery,
    /// x | y without the 0x04 of SEC 1 (RFC 5903 section 7).
    Point,
}

#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Group {
    method: KeMethod,
    name: &'static str,
    algorithm: &'static agreement::Algorithm,
    encoding: Encoding,
    public_len: usize,
}

pub(in super::super) static X25519: Group = Group {
    method: KeMethod::Curve25519,
    name: "x25519",
    algorithm: &agreement::X25519,
    encoding: Encoding::Montgomery,
    public_len: 32,
};
pub(in super::super) static P256: Group =
    Group::nist(KeMethod::Ecp256, "ecp256", &agreement::ECDH_P256, 64);
pub(in super::super) static P384: Group =
    Group::nist(KeMethod::Ecp384, "ecp384", &agreement::ECDH_P384, 96);

impl Group {
    pub(in super::super) const fn nist(
        method: KeMethod,
        name: &'static str,
        algorithm: &'static agreement::Algorithm,
        public_len: usize,
    ) -> Self {
        Self { method, name, algorithm, encoding: Encoding::Point, public_len }
    }
}

impl KeyExchangeGroup for Group {
    fn method(&self) -> KeMethod {
        self.method
    }

    fn name(&self) -> &'static str {
        self.name
    }

    fn kind(&self) -> KexKind {
        KexKind::DiffieHellman
    }

    fn initiator_public_len(&self) -> usize {
        self.public_len
    }

    fn generate(&self) -> Result<KeyShare, CryptoError> {
        let rng = super::super::lib::rand::SystemRandom::new();
        let private = agreement::EphemeralPrivateKey::generate(self.algorithm, &rng)
            .map_err(|_| CryptoError::Library("key pair generation"))?;
        let public = private
            .compute_public_key()
            .map_err(|_| CryptoError::Library("public key computation"))?;
        let public = match (self.encoding, public.as_ref()) {
            (Encoding::Montgomery, public) | (Encoding::Point, [4, public @ ..]) => public.to_vec(),
            (Encoding::Point, _) => return Err(CryptoError::Library("point encoding")),
        };
        Ok(KeyShare { public, secret: Box::new(Secret { group: *self, private }) })
    }
}

struct Secret {
    group: Group,
    private: agreement::EphemeralPrivateKey,
}

impl KexSecret for Secret {
    fn agree(self: Box<Self>, peer_public: &[u8]) -> Result<SharedSecret, CryptoError> {
        let Self { group, private } = *self;
        check_len(group.name, group.public_len, peer_public)?;
        let invalid = CryptoError::PublicValueInvalid { group: group.name };
        let encoded = match group.encoding {
            Encoding::Montgomery => peer_public.to_vec(),
            Encoding::Point => [&[4], peer_public].concat(),
        };
        // The library checks that a point is on its curve (RFC 6989 2.3); the cofactor is 1.
        let peer = agreement::UnparsedPublicKey::new(group.algorithm, encoded);
        let secret = shim::agree(private, &peer).ok_or_else(|| invalid.clone())?;
        let secret = SecretBytes::new(secret);
        // RFC 7748 6.1, RFC 8031 3.2: points of small order lead to zero.
        if constant_time_eq(secret.expose(), &vec![0; secret.len()]) {
            return Err(invalid);
        }
        Ok(secret)
    }
}
