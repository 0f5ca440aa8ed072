//! Reads an OCSP request (RFC 6960 4.1), with bounds on everything a stranger can send.

use der::Decode;
use der::asn1::ObjectIdentifier;
use x509_cert::ext::Extension;
use x509_ocsp::{CertId, OcspRequest};

use super::MAX_REQUEST;

/// Certificates asked for in one request at most; stock clients ask for one.
const MAX_QUESTIONS: usize = 16;
/// Longest nonce echoed (RFC 9654 2.1).
const MAX_NONCE: usize = 128;

const NONCE: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.48.1.2");

/// What was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asked {
    /// At least one.
    pub(super) certificates: Vec<CertId>,
    /// To be echoed as it is.
    pub(super) nonce: Option<Extension>,
}

/// Why a request is answered with `malformedRequest`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed;

/// Reads a request. Its signature, if any, is not looked at: the answer is no secret
/// (RFC 6960 4.1.2 leaves that to the responder).
pub(super) fn read(der: &[u8]) -> Result<Asked, Malformed> {
    if der.len() > MAX_REQUEST {
        return Err(Malformed);
    }
    let request = OcspRequest::from_der(der).map_err(|_| Malformed)?.tbs_request;
    if !(1..=MAX_QUESTIONS).contains(&request.request_list.len()) {
        return Err(Malformed);
    }
    let mut nonce = None;
    for extension in request.request_extensions.unwrap_or_default() {
        if extension.extn_id == NONCE {
            if nonce.is_some() || !acceptable(&extension) {
                return Err(Malformed);
            }
            // RFC 6960 4.4: no extension of a response needs to be critical.
            nonce = Some(Extension { critical: false, ..extension });
        } else if extension.critical {
            return Err(Malformed);
        }
    }
    let mut certificates = Vec::with_capacity(request.request_list.len());
    for request in request.request_list {
        let extensions = request.single_request_extensions.unwrap_or_default();
        if extensions.iter().any(|extension| extension.critical) {
            return Err(Malformed);
        }
        certificates.push(request.req_cert);
    }
    Ok(Asked { certificates, nonce })
}

/// RFC 8954 2.1 and RFC 9654 2.1: an OCTET STRING of 1 to 128 octets. Old clients leave the tag and
/// length out.
fn acceptable(nonce: &Extension) -> bool {
    let value = nonce.extn_value.as_bytes();
    let length = match der::asn1::OctetStringRef::from_der(value) {
        Ok(inner) => inner.as_bytes().len(),
        Err(_) => value.len(),
    };
    (1..=MAX_NONCE).contains(&length)
}
