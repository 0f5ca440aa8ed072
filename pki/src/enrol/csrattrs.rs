//! CSR attributes (RFC 7030 4.5, RFC 9908): what a role wants of a client's key, before the client
//! makes one.
//!
//! Names and extensions of a request are not looked at, so none are asked for.

use der::Encode;
use der::asn1::ObjectIdentifier;

use crate::error::Error;
use crate::signer::KeyKind;

const EC_PUBLIC_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
const P384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");
const ECDSA_SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.2");
const ECDSA_SHA384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.3");
const ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");
const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const RSA_SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.11");
/// id-aa-certificationRequestInfoTemplate (RFC 9908 3.4).
const TEMPLATE: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.16.2.61");

const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
/// `[0]` and `[1]`, IMPLICIT, constructed.
const CONTEXT_0: u8 = 0xa0;
const CONTEXT_1: u8 = 0xa1;

/// The CsrAttrs that ask for a key of this kind, DER: for clients of RFC 7030 as attribute of the
/// key type and signature algorithm, for those of RFC 9908 as template.
///
/// # Errors
/// [`Error::Encode`] never in practice: what is encoded is constant.
pub fn wanting(kind: KeyKind) -> Result<Vec<u8>, Error> {
    let (key, parameter, signature) = match kind {
        KeyKind::EcdsaP256 => (EC_PUBLIC_KEY, oid(P256)?, Some(ECDSA_SHA256)),
        KeyKind::EcdsaP384 => (EC_PUBLIC_KEY, oid(P384)?, Some(ECDSA_SHA384)),
        // RFC 9908 3.2: the values may be empty when nothing more is required.
        KeyKind::Ed25519 => (ED25519, Vec::new(), None),
        KeyKind::Rsa3072 | KeyKind::Rsa4096 => (RSA, bits(kind)?, Some(RSA_SHA256)),
    };
    let mut all = attribute(key, &parameter)?;
    if let Some(signature) = signature {
        all.extend(oid(signature)?);
    }
    all.extend(attribute(TEMPLATE, &template(kind)?)?);
    tlv(SEQUENCE, &all)
}

/// CertificationRequestInfoTemplate: version, no subject because none is required, the key, and no
/// attributes.
fn template(kind: KeyKind) -> Result<Vec<u8>, Error> {
    let (algorithm, key) = match kind {
        KeyKind::EcdsaP256 => ([oid(EC_PUBLIC_KEY)?, oid(P256)?].concat(), Vec::new()),
        KeyKind::EcdsaP384 => ([oid(EC_PUBLIC_KEY)?, oid(P384)?].concat(), Vec::new()),
        KeyKind::Ed25519 => (oid(ED25519)?, Vec::new()),
        KeyKind::Rsa3072 | KeyKind::Rsa4096 => {
            ([oid(RSA)?, vec![0x05, 0x00]].concat(), placeholder(kind)?)
        }
    };
    let key = [tlv(SEQUENCE, &algorithm)?, key].concat();
    let version = vec![INTEGER, 1, 0];
    tlv(SEQUENCE, &[version, tlv(CONTEXT_0, &key)?, tlv(CONTEXT_1, &[])?].concat())
}

/// RFC 9908 3.4: the length of an RSA key is told by a modulus that has it and is none.
fn placeholder(kind: KeyKind) -> Result<Vec<u8>, Error> {
    let mut modulus = vec![0; rsa_bits(kind) / 8 + 1];
    if let Some(first) = modulus.get_mut(1) {
        *first = 0x80;
    }
    let exponent = vec![INTEGER, 3, 1, 0, 1];
    let key = tlv(SEQUENCE, &[tlv(INTEGER, &modulus)?, exponent].concat())?;
    tlv(BIT_STRING, &[vec![0], key].concat())
}

const fn rsa_bits(kind: KeyKind) -> usize {
    match kind {
        KeyKind::Rsa4096 => 4_096,
        _ => 3_072,
    }
}

fn bits(kind: KeyKind) -> Result<Vec<u8>, Error> {
    u16::try_from(rsa_bits(kind)).unwrap_or(u16::MAX).to_der().map_err(failed)
}

fn attribute(name: ObjectIdentifier, value: &[u8]) -> Result<Vec<u8>, Error> {
    tlv(SEQUENCE, &[oid(name)?, tlv(SET, value)?].concat())
}

fn oid(oid: ObjectIdentifier) -> Result<Vec<u8>, Error> {
    oid.to_der().map_err(failed)
}

fn tlv(tag: u8, content: &[u8]) -> Result<Vec<u8>, Error> {
    let length = der::Length::try_from(content.len()).and_then(|length| length.to_der());
    Ok([&[tag], length.map_err(failed)?.as_slice(), content].concat())
}

fn failed(cause: der::Error) -> Error {
    Error::Encode(cause.to_string())
}
