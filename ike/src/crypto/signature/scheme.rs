//! Signature schemes and their RFC 7427 AlgorithmIdentifiers.

use super::der::{self, Malformed, Reader};
use crate::crypto::{HashFunction, SignatureError};
use crate::wire::HashAlgorithm;

/// What RFC 7427 (and RFC 8420 for EdDSA) lets a signature say about itself.
///
/// An ECDSA identifier names the hash alone; the curve comes from the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SignatureScheme {
    /// Ed25519 (RFC 8420).
    Ed25519,
    /// ECDSA with SHA2-256.
    EcdsaSha256,
    /// ECDSA with SHA2-384.
    EcdsaSha384,
    /// ECDSA with SHA2-512.
    EcdsaSha512,
    /// RSASSA-PSS with SHA2-256 throughout and a 32-octet salt.
    RsaPssSha256,
    /// RSASSA-PSS with SHA2-384 throughout and a 48-octet salt.
    RsaPssSha384,
    /// RSASSA-PSS with SHA2-512 throughout and a 64-octet salt.
    RsaPssSha512,
    /// RSASSA-PKCS1-v1_5 with SHA2-256.
    RsaPkcs1Sha256,
    /// RSASSA-PKCS1-v1_5 with SHA2-384.
    RsaPkcs1Sha384,
    /// RSASSA-PKCS1-v1_5 with SHA2-512.
    RsaPkcs1Sha512,
}

// Object identifiers, contents octets only.
const SHA1_WITH_RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x05];
const MGF1: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x08];
pub(super) const RSASSA_PSS: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0a];
const SHA256_WITH_RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0b];
const SHA384_WITH_RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0c];
const SHA512_WITH_RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0d];
const ECDSA_WITH_SHA1: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x01];
const ECDSA_WITH_SHA256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
const ECDSA_WITH_SHA384: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x03];
const ECDSA_WITH_SHA512: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x04];
pub(super) const ED25519: &[u8] = &[0x2b, 0x65, 0x70];
const ED448: &[u8] = &[0x2b, 0x65, 0x71];
const SHA1: &[u8] = &[0x2b, 0x0e, 0x03, 0x02, 0x1a];
const SHA256: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01];
const SHA384: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x02];
const SHA512: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x03];

impl SignatureScheme {
    /// Every scheme, strongest first; the order in which a signer prefers them.
    pub const ALL: [Self; 10] = [
        Self::Ed25519,
        Self::EcdsaSha512,
        Self::EcdsaSha384,
        Self::EcdsaSha256,
        Self::RsaPssSha512,
        Self::RsaPssSha384,
        Self::RsaPssSha256,
        Self::RsaPkcs1Sha512,
        Self::RsaPkcs1Sha384,
        Self::RsaPkcs1Sha256,
    ];

    /// A name for messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ed25519 => "Ed25519",
            Self::EcdsaSha256 => "ECDSA with SHA2-256",
            Self::EcdsaSha384 => "ECDSA with SHA2-384",
            Self::EcdsaSha512 => "ECDSA with SHA2-512",
            Self::RsaPssSha256 => "RSASSA-PSS with SHA2-256",
            Self::RsaPssSha384 => "RSASSA-PSS with SHA2-384",
            Self::RsaPssSha512 => "RSASSA-PSS with SHA2-512",
            Self::RsaPkcs1Sha256 => "RSASSA-PKCS1-v1_5 with SHA2-256",
            Self::RsaPkcs1Sha384 => "RSASSA-PKCS1-v1_5 with SHA2-384",
            Self::RsaPkcs1Sha512 => "RSASSA-PKCS1-v1_5 with SHA2-512",
        }
    }

    /// The hash over the message; `None` for Ed25519, which takes the message whole.
    #[must_use]
    pub const fn hash(self) -> Option<HashFunction> {
        match self {
            Self::Ed25519 => None,
            Self::EcdsaSha256 | Self::RsaPssSha256 | Self::RsaPkcs1Sha256 => {
                Some(HashFunction::Sha256)
            }
            Self::EcdsaSha384 | Self::RsaPssSha384 | Self::RsaPkcs1Sha384 => {
                Some(HashFunction::Sha384)
            }
            Self::EcdsaSha512 | Self::RsaPssSha512 | Self::RsaPkcs1Sha512 => {
                Some(HashFunction::Sha512)
            }
        }
    }

    /// The entry of SIGNATURE_HASH_ALGORITHMS the other side must have announced
    /// (RFC 7427 section 4; Identity for EdDSA, RFC 8420 section 2).
    #[must_use]
    pub const fn hash_algorithm(self) -> HashAlgorithm {
        match self.hash() {
            None => HashAlgorithm::Identity,
            Some(HashFunction::Sha1) => HashAlgorithm::Sha1,
            Some(HashFunction::Sha256) => HashAlgorithm::Sha2_256,
            Some(HashFunction::Sha384) => HashAlgorithm::Sha2_384,
            Some(HashFunction::Sha512) => HashAlgorithm::Sha2_512,
        }
    }

    /// The DER AlgorithmIdentifier of RFC 7427 appendix A.
    #[must_use]
    pub fn algorithm_identifier(self) -> Vec<u8> {
        let mut contents = Vec::with_capacity(68);
        der::push_element(&mut contents, der::OID, self.oid());
        match self {
            Self::Ed25519 | Self::EcdsaSha256 | Self::EcdsaSha384 | Self::EcdsaSha512 => {}
            Self::RsaPkcs1Sha256 | Self::RsaPkcs1Sha384 | Self::RsaPkcs1Sha512 => {
                der::push_element(&mut contents, der::NULL, &[]);
            }
            Self::RsaPssSha256 => push_pss(&mut contents, SHA256, 32),
            Self::RsaPssSha384 => push_pss(&mut contents, SHA384, 48),
            Self::RsaPssSha512 => push_pss(&mut contents, SHA512, 64),
        }
        sequence(&contents)
    }

    /// Reads a DER AlgorithmIdentifier.
    ///
    /// # Errors
    /// Names what is refused: SHA-1, PSS with default parameters, unknown algorithms.
    pub fn from_algorithm_identifier(der: &[u8]) -> Result<Self, SignatureError> {
        const SHAPE: SignatureError =
            SignatureError::MalformedAlgorithm("not a DER AlgorithmIdentifier");
        let mut outer = Reader::new(der);
        let mut inner = outer.nested(der::SEQUENCE).map_err(|Malformed| SHAPE)?;
        outer.finish().map_err(|Malformed| SHAPE)?;
        let oid = inner.element(der::OID).map_err(|Malformed| SHAPE)?;
        let scheme = match oid {
            ED25519 => Self::Ed25519,
            ECDSA_WITH_SHA256 => Self::EcdsaSha256,
            ECDSA_WITH_SHA384 => Self::EcdsaSha384,
            ECDSA_WITH_SHA512 => Self::EcdsaSha512,
            SHA256_WITH_RSA => Self::RsaPkcs1Sha256,
            SHA384_WITH_RSA => Self::RsaPkcs1Sha384,
            SHA512_WITH_RSA => Self::RsaPkcs1Sha512,
            RSASSA_PSS => return pss_parameters(inner),
            SHA1_WITH_RSA | ECDSA_WITH_SHA1 => return Err(SignatureError::Sha1),
            ED448 => return Err(SignatureError::Unsupported("Ed448".to_owned())),
            other => return Err(SignatureError::Unsupported(dotted(other))),
        };
        if scheme.is_rsa() && inner.peek() == Some(der::NULL) {
            // RFC 4055 section 5: NULL is to be sent, absence to be accepted.
            null(&mut inner).map_err(|Malformed| SHAPE)?;
        }
        inner.finish().map_err(|Malformed| {
            SignatureError::MalformedAlgorithm("parameters where none are allowed")
        })?;
        Ok(scheme)
    }

    /// True for both RSA paddings.
    #[must_use]
    pub const fn is_rsa(self) -> bool {
        self.is_rsa_pss()
            || matches!(self, Self::RsaPkcs1Sha256 | Self::RsaPkcs1Sha384 | Self::RsaPkcs1Sha512)
    }

    /// True for RSASSA-PSS.
    #[must_use]
    pub const fn is_rsa_pss(self) -> bool {
        matches!(self, Self::RsaPssSha256 | Self::RsaPssSha384 | Self::RsaPssSha512)
    }

    /// True for ECDSA.
    #[must_use]
    pub const fn is_ecdsa(self) -> bool {
        matches!(self, Self::EcdsaSha256 | Self::EcdsaSha384 | Self::EcdsaSha512)
    }

    const fn oid(self) -> &'static [u8] {
        match self {
            Self::Ed25519 => ED25519,
            Self::EcdsaSha256 => ECDSA_WITH_SHA256,
            Self::EcdsaSha384 => ECDSA_WITH_SHA384,
            Self::EcdsaSha512 => ECDSA_WITH_SHA512,
            Self::RsaPssSha256 | Self::RsaPssSha384 | Self::RsaPssSha512 => RSASSA_PSS,
            Self::RsaPkcs1Sha256 => SHA256_WITH_RSA,
            Self::RsaPkcs1Sha384 => SHA384_WITH_RSA,
            Self::RsaPkcs1Sha512 => SHA512_WITH_RSA,
        }
    }
}

fn sequence(contents: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(contents.len() + 4);
    der::push_element(&mut out, der::SEQUENCE, contents);
    out
}

/// RSASSA-PSS-params of RFC 4055 section 3.1 with one hash throughout.
fn push_pss(out: &mut Vec<u8>, hash_oid: &[u8], salt_len: u8) {
    let mut hash = Vec::new();
    der::push_element(&mut hash, der::OID, hash_oid);
    der::push_element(&mut hash, der::NULL, &[]);
    let hash = sequence(&hash);

    let mut mgf = Vec::new();
    der::push_element(&mut mgf, der::OID, MGF1);
    mgf.extend_from_slice(&hash);

    let mut salt = Vec::new();
    der::push_unsigned(&mut salt, &[salt_len]);

    let mut params = Vec::new();
    der::push_element(&mut params, 0xa0, &hash);
    der::push_element(&mut params, 0xa1, &sequence(&mgf));
    der::push_element(&mut params, 0xa2, &salt);
    der::push_element(out, der::SEQUENCE, &params);
}

/// Parameters of id-RSASSA-PSS in a signature's AlgorithmIdentifier.
pub(super) fn pss_parameters(mut inner: Reader<'_>) -> Result<SignatureScheme, SignatureError> {
    const SHAPE: SignatureError = SignatureError::MalformedAlgorithm("RSASSA-PSS parameters");
    if inner.is_empty() {
        return Err(SignatureError::PssDefaultParameters);
    }
    let mut params = inner.nested(der::SEQUENCE).map_err(|Malformed| SHAPE)?;
    inner.finish().map_err(|Malformed| SHAPE)?;

    let mut hash = None;
    let mut mgf = None;
    let mut salt = None;
    if params.peek() == Some(0xa0) {
        let mut field = params.nested(0xa0).map_err(|Malformed| SHAPE)?;
        hash = Some(hash_identifier(&mut field).map_err(|Malformed| SHAPE)?);
        field.finish().map_err(|Malformed| SHAPE)?;
    }
    if params.peek() == Some(0xa1) {
        let mut field = params.nested(0xa1).map_err(|Malformed| SHAPE)?;
        let mut function = field.nested(der::SEQUENCE).map_err(|Malformed| SHAPE)?;
        field.finish().map_err(|Malformed| SHAPE)?;
        if function.element(der::OID).map_err(|Malformed| SHAPE)? != MGF1 {
            return Err(SignatureError::PssParameters);
        }
        mgf = Some(hash_identifier(&mut function).map_err(|Malformed| SHAPE)?);
        function.finish().map_err(|Malformed| SHAPE)?;
    }
    if params.peek() == Some(0xa2) {
        let mut field = params.nested(0xa2).map_err(|Malformed| SHAPE)?;
        salt = Some(field.unsigned().map_err(|Malformed| SHAPE)?);
        field.finish().map_err(|Malformed| SHAPE)?;
    }
    if params.peek() == Some(0xa3) {
        let mut field = params.nested(0xa3).map_err(|Malformed| SHAPE)?;
        let trailer = field.unsigned().map_err(|Malformed| SHAPE)?;
        field.finish().map_err(|Malformed| SHAPE)?;
        if trailer != [1] {
            return Err(SignatureError::PssParameters);
        }
    }
    params.finish().map_err(|Malformed| SHAPE)?;

    // An absent hash or mask function defaults to SHA-1 (RFC 4055 section 3.1).
    let (Some(hash), Some(mgf)) = (hash, mgf) else {
        return Err(SignatureError::PssDefaultParameters);
    };
    if hash == SHA1 || mgf == SHA1 {
        return Err(SignatureError::Sha1);
    }
    if hash != mgf {
        return Err(SignatureError::PssParameters);
    }
    // An absent salt length defaults to 20, which fits none of these.
    match (hash, salt) {
        (SHA256, Some([32])) => Ok(SignatureScheme::RsaPssSha256),
        (SHA384, Some([48])) => Ok(SignatureScheme::RsaPssSha384),
        (SHA512, Some([64])) => Ok(SignatureScheme::RsaPssSha512),
        (SHA256 | SHA384 | SHA512, _) => Err(SignatureError::PssParameters),
        (other, _) => {
            Err(SignatureError::Unsupported(format!("RSASSA-PSS and hash {}", dotted(other))))
        }
    }
}

/// The OID of a hash AlgorithmIdentifier, whose parameters are NULL or absent (RFC 4055 2.1).
fn hash_identifier<'a>(reader: &mut Reader<'a>) -> Result<&'a [u8], Malformed> {
    let mut inner = reader.nested(der::SEQUENCE)?;
    let oid = inner.element(der::OID)?;
    if !inner.is_empty() {
        null(&mut inner)?;
    }
    inner.finish()?;
    Ok(oid)
}

fn null(reader: &mut Reader<'_>) -> Result<(), Malformed> {
    if reader.element(der::NULL)?.is_empty() { Ok(()) } else { Err(Malformed) }
}

/// Dotted form of an object identifier for messages; bounded, as the peer chose it.
pub(super) fn dotted(oid: &[u8]) -> String {
    const SHOWN: usize = 16;
    let mut arcs = Vec::new();
    let mut arc = 0u64;
    for octet in oid.iter().take(4 * SHOWN) {
        arc = (arc << 7) | u64::from(octet & 0x7f);
        if octet & 0x80 == 0 {
            if arcs.is_empty() {
                let first = (arc / 40).min(2);
                arcs.push(first);
                arc -= first * 40;
            }
            arcs.push(arc);
            arc = 0;
        }
        if arcs.len() >= SHOWN {
            break;
        }
    }
    let arcs: Vec<String> = arcs.iter().map(u64::to_string).collect();
    format!("OID {}", arcs.join("."))
}
