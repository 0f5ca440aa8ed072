//! SubjectPublicKeyInfo (RFC 5280 4.1.2.7) of the key types that can authenticate an IKE SA.

use super::der::{self, Malformed, Reader};
use super::scheme::{self, SignatureScheme};
use crate::crypto::SignatureError;

const RSA_ENCRYPTION: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
const EC_PUBLIC_KEY: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
const SECP256R1: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const SECP384R1: &[u8] = &[0x2b, 0x81, 0x04, 0x00, 0x22];
const SECP521R1: &[u8] = &[0x2b, 0x81, 0x04, 0x00, 0x23];

/// Shortest RSA modulus accepted, in bits (RFC 8247 section 4.1.1).
const RSA_MIN_BITS: usize = 2048;
/// Longest RSA modulus accepted: bounds what one unauthenticated signature can cost.
const RSA_MAX_BITS: usize = 8192;

/// NIST curves of ECDSA keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Curve {
    /// secp256r1.
    P256,
    /// secp384r1.
    P384,
    /// secp521r1.
    P521,
}

impl Curve {
    /// Octets of one coordinate or scalar.
    #[must_use]
    pub const fn scalar_len(self) -> usize {
        match self {
            Self::P256 => 32,
            Self::P384 => 48,
            Self::P521 => 66,
        }
    }

    /// The scheme that IKE's classic ECDSA methods 9, 10 and 11 tie to this curve (RFC 4754).
    #[must_use]
    pub const fn classic_scheme(self) -> SignatureScheme {
        match self {
            Self::P256 => SignatureScheme::EcdsaSha256,
            Self::P384 => SignatureScheme::EcdsaSha384,
            Self::P521 => SignatureScheme::EcdsaSha512,
        }
    }
}

/// Which paddings an RSA key may be used with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RsaUse {
    /// A plain rsaEncryption key.
    Any,
    /// An id-RSASSA-PSS key without parameters.
    Pss,
    /// An id-RSASSA-PSS key tied to one scheme.
    PssOnly(SignatureScheme),
}

/// A public key, borrowed from its DER.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PublicKey<'a> {
    /// RSA.
    Rsa {
        /// PKCS#1 RSAPublicKey, DER.
        pkcs1: &'a [u8],
        /// Length of the modulus in bits.
        bits: usize,
        /// Allowed paddings.
        usage: RsaUse,
    },
    /// ECDSA on a named curve.
    Ec {
        /// The curve.
        curve: Curve,
        /// The uncompressed point, 0x04 first.
        point: &'a [u8],
    },
    /// Ed25519.
    Ed25519 {
        /// The 32-octet key.
        key: &'a [u8],
    },
}

impl<'a> PublicKey<'a> {
    /// Reads a DER SubjectPublicKeyInfo.
    ///
    /// # Errors
    /// [`SignatureError`] naming the malformed part, a too short RSA modulus or the unknown
    /// algorithm or curve.
    pub fn from_spki(spki: &'a [u8]) -> Result<Self, SignatureError> {
        const SHAPE: SignatureError =
            SignatureError::MalformedKey("not a DER SubjectPublicKeyInfo");
        let shape = |Malformed| SHAPE;
        let mut outer = Reader::new(spki);
        let mut inner = outer.nested(der::SEQUENCE).map_err(shape)?;
        outer.finish().map_err(shape)?;
        let mut algorithm = inner.nested(der::SEQUENCE).map_err(shape)?;
        let bits = inner.octet_bits().map_err(shape)?;
        inner.finish().map_err(shape)?;

        match algorithm.element(der::OID).map_err(shape)? {
            RSA_ENCRYPTION => {
                algorithm.element(der::NULL).map_err(shape)?;
                algorithm.finish().map_err(shape)?;
                rsa(bits, RsaUse::Any)
            }
            scheme::RSASSA_PSS if algorithm.is_empty() => rsa(bits, RsaUse::Pss),
            scheme::RSASSA_PSS => rsa(bits, RsaUse::PssOnly(scheme::pss_parameters(algorithm)?)),
            EC_PUBLIC_KEY => {
                let curve = algorithm.element(der::OID).map_err(|Malformed| {
                    SignatureError::MalformedKey("only named elliptic curves are accepted")
                })?;
                algorithm.finish().map_err(shape)?;
                ec(curve, bits)
            }
            scheme::ED25519 => {
                algorithm.finish().map_err(shape)?;
                if bits.len() == 32 {
                    Ok(Self::Ed25519 { key: bits })
                } else {
                    Err(SignatureError::MalformedKey("an Ed25519 key has 32 octets"))
                }
            }
            other => Err(SignatureError::Unsupported(scheme::dotted(other))),
        }
    }

    /// A name for messages.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Rsa { usage: RsaUse::Any, .. } => "RSA",
            Self::Rsa { .. } => "RSASSA-PSS",
            Self::Ec { curve: Curve::P256, .. } => "ECDSA P-256",
            Self::Ec { curve: Curve::P384, .. } => "ECDSA P-384",
            Self::Ec { curve: Curve::P521, .. } => "ECDSA P-521",
            Self::Ed25519 { .. } => "Ed25519",
        }
    }

    /// True when a signature of `scheme` can have been made with this key.
    #[must_use]
    pub fn fits(&self, scheme: SignatureScheme) -> bool {
        match self {
            Self::Rsa { usage: RsaUse::Any, .. } => scheme.is_rsa(),
            Self::Rsa { usage: RsaUse::Pss, .. } => scheme.is_rsa_pss(),
            Self::Rsa { usage: RsaUse::PssOnly(only), .. } => scheme == *only,
            Self::Ec { .. } => scheme.is_ecdsa(),
            Self::Ed25519 { .. } => scheme == SignatureScheme::Ed25519,
        }
    }
}

fn rsa(pkcs1: &[u8], usage: RsaUse) -> Result<PublicKey<'_>, SignatureError> {
    const SHAPE: SignatureError = SignatureError::MalformedKey("not a DER RSAPublicKey");
    let shape = |Malformed| SHAPE;
    let mut outer = Reader::new(pkcs1);
    let mut inner = outer.nested(der::SEQUENCE).map_err(shape)?;
    outer.finish().map_err(shape)?;
    let modulus = inner.unsigned().map_err(shape)?;
    inner.unsigned().map_err(shape)?;
    inner.finish().map_err(shape)?;

    let leading = modulus.first().map_or(0, |b| b.leading_zeros() as usize);
    let bits = modulus.len().saturating_mul(8).saturating_sub(leading);
    match bits {
        ..RSA_MIN_BITS => Err(SignatureError::RsaTooShort(bits)),
        RSA_MIN_BITS..=RSA_MAX_BITS => Ok(PublicKey::Rsa { pkcs1, bits, usage }),
        _ => Err(SignatureError::RsaTooLong(bits)),
    }
}

fn ec<'a>(curve: &[u8], point: &'a [u8]) -> Result<PublicKey<'a>, SignatureError> {
    let curve = match curve {
        SECP256R1 => Curve::P256,
        SECP384R1 => Curve::P384,
        SECP521R1 => Curve::P521,
        other => {
            return Err(SignatureError::Unsupported(format!("curve {}", scheme::dotted(other))));
        }
    };
    match point {
        [4, coordinates @ ..] if coordinates.len() == 2 * curve.scalar_len() => {
            Ok(PublicKey::Ec { curve, point })
        }
        _ => Err(SignatureError::MalformedKey("not an uncompressed point of its curve")),
    }
}
