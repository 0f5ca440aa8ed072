//! The two encodings of an ECDSA signature.
//!
//! IKE's classic methods 9, 10 and 11 carry r | s in fixed length (RFC 4754 section 7);
//! RFC 7427 carries the ASN.1 Ecdsa-Sig-Value (appendix A.3).

use super::der::{self, Malformed, Reader};
use super::spki::Curve;
use crate::crypto::SignatureError;

/// r | s to DER.
///
/// # Errors
/// [`SignatureError::MalformedSignature`] when the length is not twice the curve's scalar length.
pub fn ecdsa_der_from_raw(curve: Curve, raw: &[u8]) -> Result<Vec<u8>, SignatureError> {
    if raw.len() != 2 * curve.scalar_len() {
        return Err(SignatureError::MalformedSignature("r | s has the wrong length for its curve"));
    }
    let (r, s) = raw.split_at(curve.scalar_len());
    let mut contents = Vec::with_capacity(raw.len() + 6);
    der::push_unsigned(&mut contents, r);
    der::push_unsigned(&mut contents, s);
    let mut out = Vec::with_capacity(contents.len() + 3);
    der::push_element(&mut out, der::SEQUENCE, &contents);
    Ok(out)
}

/// DER to r | s.
///
/// # Errors
/// [`SignatureError::MalformedSignature`] for anything but the one canonical encoding, or
/// numbers too long for the curve.
pub fn ecdsa_raw_from_der(curve: Curve, der: &[u8]) -> Result<Vec<u8>, SignatureError> {
    const SHAPE: SignatureError = SignatureError::MalformedSignature("not a DER Ecdsa-Sig-Value");
    let shape = |Malformed| SHAPE;
    let mut outer = Reader::new(der);
    let mut inner = outer.nested(der::SEQUENCE).map_err(shape)?;
    outer.finish().map_err(shape)?;
    let numbers = [inner.unsigned().map_err(shape)?, inner.unsigned().map_err(shape)?];
    inner.finish().map_err(shape)?;

    let mut raw = Vec::with_capacity(2 * curve.scalar_len());
    for number in numbers {
        let padding = curve.scalar_len().checked_sub(number.len()).ok_or(SHAPE)?;
        raw.resize(raw.len() + padding, 0);
        raw.extend_from_slice(number);
    }
    Ok(raw)
}
