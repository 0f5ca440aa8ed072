//! Certs-only PKCS#7 (RFC 5652 5.1 without content or signers), the shape of EST answers.

use cms::content_info::ContentInfo;
use der::{Decode, Encode};

use crate::error::Error;

/// Wraps certificates (DER) in a certs-only message, DER.
///
/// # Errors
/// [`Error::Encode`] when a certificate does not parse.
pub fn certs_only(certificates: &[Vec<u8>]) -> Result<Vec<u8>, Error> {
    let failed = |cause: der::Error| Error::Encode(cause.to_string());
    let path: Vec<x509_cert::Certificate> = certificates
        .iter()
        .map(|der| x509_cert::Certificate::from_der(der))
        .collect::<Result<_, _>>()
        .map_err(failed)?;
    ContentInfo::try_from(path).and_then(|info| info.to_der()).map_err(failed)
}
