//! Certification requests (RFC 2986): only the public key is taken from them.
//!
//! Subject and extensions of a request are wishes of an unknown party. The alternative names are
//! read for roles that refuse wishes they do not grant, and never become part of a certificate.

use rustls_pki_types::SignatureVerificationAlgorithm;
use webpki::ring as verifier;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::cri_attributes::ParsedCriAttribute;
use x509_parser::der_parser::asn1_rs::Tag;
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

use der::{Decode, Encode};
use x509_cert::spki::SubjectPublicKeyInfoOwned;

use crate::ecdsa;
use crate::issue::sha256_hex;
use crate::signer::KeyKind;
use crate::validate::{San, path};

/// Trailing octets some clients add after the request.
const STRAY_OCTETS: usize = 4;

/// Characters of a name that a request asks for.
const MAX_NAME: usize = 512;

/// A request whose self-signature was verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Csr {
    /// The SubjectPublicKeyInfo, DER.
    pub spki: Vec<u8>,
    /// Its SHA-256, hexadecimal.
    pub spki_sha256: String,
    /// The kind of key.
    pub key: CsrKey,
    /// Whether the key was made here, so that nobody signed a request for it.
    pub made_here: bool,
    /// The alternative names it asks for, such as `DNS:a.example.com`, sorted.
    pub names: Vec<String>,
}

/// The kind of key a request carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CsrKey {
    /// ECDSA on P-256.
    P256,
    /// ECDSA on P-384.
    P384,
    /// ECDSA on P-521.
    P521,
    /// Ed25519.
    Ed25519,
    /// RSA with a modulus of so many bits.
    Rsa(usize),
}

impl CsrKey {
    /// Whether it is of this kind; an RSA key may be longer.
    pub const fn is(self, kind: KeyKind) -> bool {
        match (self, kind) {
            (Self::P256, KeyKind::EcdsaP256)
            | (Self::P384, KeyKind::EcdsaP384)
            | (Self::Ed25519, KeyKind::Ed25519) => true,
            (Self::Rsa(bits), KeyKind::Rsa3072) => bits >= 3_072,
            (Self::Rsa(bits), KeyKind::Rsa4096) => bits >= 4_096,
            _ => false,
        }
    }
}

impl std::fmt::Display for CsrKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::P256 => f.write_str("ecdsa-p256"),
            Self::P384 => f.write_str("ecdsa-p384"),
            Self::P521 => f.write_str("ecdsa-p521"),
            Self::Ed25519 => f.write_str("ed25519"),
            Self::Rsa(bits) => write!(f, "rsa-{bits}"),
        }
    }
}

/// Why a request is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CsrError {
    /// It does not parse.
    #[error("the request is not a PKCS#10 certification request ({0}): create it with pki --req")]
    Malformed(String),
    /// The signature does not verify with the key inside.
    #[error("the request is not signed by the key it carries: sign it with its own key")]
    BadSignature,
    /// The signature algorithm is too weak or unknown.
    #[error("the request is signed with {0}: use SHA-256 or better")]
    SignatureAlgorithm(String),
    /// The key is too weak or of an unknown kind.
    #[error(
        "the request carries {0}: use ECDSA P-256/P-384/P-521, Ed25519 or RSA of 2048 to 8192 bits"
    )]
    Key(String),
}

impl Csr {
    /// Parses a DER request, checks its key, and verifies that the key signed it.
    ///
    /// # Errors
    /// What is wrong and what to do.
    pub fn from_der(der: &[u8]) -> Result<Self, CsrError> {
        let (rest, request) = X509CertificationRequest::from_der(der)
            .map_err(|cause| CsrError::Malformed(cause.to_string()))?;
        if rest.len() > STRAY_OCTETS {
            return Err(CsrError::Malformed(format!("{} octets follow it", rest.len())));
        }
        let info = &request.certification_request_info;
        let kind = key_kind(&info.subject_pki)?;
        let oid = request.signature_algorithm.algorithm.to_id_string();
        let algorithms = verifiers(kind, &oid)?;
        let signature = request.signature_value.data.as_ref();
        let key = info.subject_pki.subject_public_key.data.as_ref();
        let verified = algorithms
            .iter()
            .any(|algorithm| algorithm.verify_signature(key, info.raw, signature).is_ok());
        if !verified {
            return Err(CsrError::BadSignature);
        }
        let spki = info.subject_pki.raw.to_vec();
        // A key is known by the hash of its encoding, so it may have only one.
        let canonical = SubjectPublicKeyInfoOwned::from_der(&spki).and_then(|info| info.to_der());
        if canonical.ok().as_deref() != Some(spki.as_slice())
            || info.subject_pki.subject_public_key.unused_bits != 0
        {
            return Err(CsrError::Malformed("the public key is not encoded as DER".to_owned()));
        }
        let names = names(&request);
        Ok(Self { spki_sha256: sha256_hex(&spki), spki, key: kind, made_here: false, names })
    }

    /// For a key that was made here, by its SubjectPublicKeyInfo.
    pub(crate) fn made_here(spki: Vec<u8>) -> Result<Self, CsrError> {
        let (_, info) = SubjectPublicKeyInfo::from_der(&spki)
            .map_err(|cause| CsrError::Malformed(cause.to_string()))?;
        let key = key_kind(&info)?;
        let names = Vec::new();
        Ok(Self { spki_sha256: sha256_hex(&spki), spki, key, made_here: true, names })
    }
}

/// The alternative names that a request asks for (RFC 2985 5.4.2), each cut to what real ones need.
fn names(request: &X509CertificationRequest<'_>) -> Vec<String> {
    let mut names: Vec<String> = request
        .certification_request_info
        .iter_attributes()
        .filter_map(|attribute| match attribute.parsed_attribute() {
            ParsedCriAttribute::ExtensionRequest(asked) => Some(&asked.extensions),
            _ => None,
        })
        .flatten()
        .filter_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(names) => Some(&names.general_names),
            _ => None,
        })
        .flatten()
        .map(|name| match path::san(name) {
            Some(San::Dns(dns)) => San::Dns(dns.trim_end_matches('.').to_ascii_lowercase()),
            Some(san) => san,
            None => San::Uri("a name of another kind".to_owned()),
        })
        .map(|san| san.to_string().chars().take(MAX_NAME).collect())
        .collect();
    names.sort();
    names.dedup();
    names
}

/// The challengePassword of a request, where a token may ride (PKCS#9, RFC 2985 5.4.1).
///
/// It is not kept in [`Csr`], which may be logged.
pub fn challenge_password(der: &[u8]) -> Option<zeroize::Zeroizing<String>> {
    let (_, request) = X509CertificationRequest::from_der(der).ok()?;
    request.certification_request_info.iter_attributes().find_map(|attribute| {
        match attribute.parsed_attribute() {
            ParsedCriAttribute::ChallengePassword(password) => {
                Some(zeroize::Zeroizing::new(password.0.clone()))
            }
            _ => None,
        }
    })
}

const OID_EC: &str = "1.2.840.10045.2.1";
const OID_P256: &str = "1.2.840.10045.3.1.7";
const OID_P384: &str = "1.3.132.0.34";
const OID_P521: &str = "1.3.132.0.35";
const OID_ED25519: &str = "1.3.101.112";
const OID_ED448: &str = "1.3.101.113";
const OID_RSA: &str = "1.2.840.113549.1.1.1";
const OID_RSA_PSS: &str = "1.2.840.113549.1.1.10";

fn key_kind(spki: &SubjectPublicKeyInfo<'_>) -> Result<CsrKey, CsrError> {
    let refuse = |what: &str| Err(CsrError::Key(what.to_owned()));
    match spki.algorithm.algorithm.to_id_string().as_str() {
        OID_EC => {
            // The tag decides: explicit curve parameters are a SEQUENCE.
            let curve = spki.algorithm.parameters.as_ref();
            let curve = curve.filter(|any| any.tag() == Tag::Oid).and_then(|any| any.as_oid().ok());
            match curve.map(|oid| oid.to_id_string()).as_deref() {
                Some(OID_P256) => Ok(CsrKey::P256),
                Some(OID_P384) => Ok(CsrKey::P384),
                Some(OID_P521) => Ok(CsrKey::P521),
                Some(other) => refuse(&format!("an ECDSA key on curve {}", short(other))),
                None => refuse("an ECDSA key without a named curve"),
            }
        }
        OID_ED25519 => Ok(CsrKey::Ed25519),
        OID_ED448 => refuse("an Ed448 key"),
        OID_RSA_PSS => refuse("an RSA key restricted to PSS"),
        OID_RSA => match spki.parsed() {
            Ok(PublicKey::RSA(rsa)) => {
                let modulus = crate::serial::Serial::from_bytes(rsa.modulus);
                let bits = bit_length(modulus.as_bytes());
                if (2048..=8192).contains(&bits) {
                    Ok(CsrKey::Rsa(bits))
                } else {
                    refuse(&format!("an RSA key of {bits} bits"))
                }
            }
            _ => refuse("an RSA key that does not parse"),
        },
        other => refuse(&format!("a key of algorithm {}", short(other))),
    }
}

/// An object identifier from a stranger, cut to what real ones need.
fn short(oid: &str) -> &str {
    oid.get(..64).unwrap_or(oid)
}

fn bit_length(bytes: &[u8]) -> usize {
    let leading = bytes.first().map_or(0, |first| first.leading_zeros());
    (bytes.len() * 8).saturating_sub(usize::try_from(leading).unwrap_or(0))
}

/// The verification algorithms for a key and a signature algorithm.
///
/// PSS names its hash in parameters; the three allowed ones are tried, all of them strong.
fn verifiers(
    kind: CsrKey,
    signature_oid: &str,
) -> Result<Vec<&'static dyn SignatureVerificationAlgorithm>, CsrError> {
    const RSA_SHA256: &str = "1.2.840.113549.1.1.11";
    const RSA_SHA384: &str = "1.2.840.113549.1.1.12";
    const RSA_SHA512: &str = "1.2.840.113549.1.1.13";
    const ECDSA_SHA256: &str = "1.2.840.10045.4.3.2";
    const ECDSA_SHA384: &str = "1.2.840.10045.4.3.3";
    const ECDSA_SHA512: &str = "1.2.840.10045.4.3.4";
    let refuse = |what: &str| Err(CsrError::SignatureAlgorithm(what.to_owned()));
    Ok(match (kind, signature_oid) {
        (CsrKey::P256, ECDSA_SHA256) => vec![verifier::ECDSA_P256_SHA256],
        (CsrKey::P256, ECDSA_SHA384) => vec![verifier::ECDSA_P256_SHA384],
        (CsrKey::P384, ECDSA_SHA256) => vec![verifier::ECDSA_P384_SHA256],
        (CsrKey::P384, ECDSA_SHA384) => vec![verifier::ECDSA_P384_SHA384],
        (CsrKey::P521, ECDSA_SHA256) => vec![ecdsa::P521_SHA256],
        (CsrKey::P521, ECDSA_SHA384) => vec![ecdsa::P521_SHA384],
        (CsrKey::P521, ECDSA_SHA512) => vec![ecdsa::P521_SHA512],
        (CsrKey::Ed25519, OID_ED25519) => vec![verifier::ED25519],
        (CsrKey::Rsa(_), RSA_SHA256) => vec![verifier::RSA_PKCS1_2048_8192_SHA256],
        (CsrKey::Rsa(_), RSA_SHA384) => vec![verifier::RSA_PKCS1_2048_8192_SHA384],
        (CsrKey::Rsa(_), RSA_SHA512) => vec![verifier::RSA_PKCS1_2048_8192_SHA512],
        (CsrKey::Rsa(_), OID_RSA_PSS) => vec![
            verifier::RSA_PSS_2048_8192_SHA256_LEGACY_KEY,
            verifier::RSA_PSS_2048_8192_SHA384_LEGACY_KEY,
            verifier::RSA_PSS_2048_8192_SHA512_LEGACY_KEY,
        ],
        (_, "1.2.840.113549.1.1.5" | "1.2.840.10045.4.1") => return refuse("SHA-1"),
        (_, "1.2.840.113549.1.1.4" | "1.2.840.113549.1.1.2") => return refuse("MD5 or MD2"),
        (CsrKey::P256 | CsrKey::P384, ECDSA_SHA512) => {
            return refuse("ECDSA with SHA-512, which does not fit the curve");
        }
        (_, other) => {
            return refuse(&format!("algorithm {}, which does not fit its key", short(other)));
        }
    })
}
