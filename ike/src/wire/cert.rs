//! Certificate and Certificate Request payloads (RFC 7296 3.6 and 3.7, RFC 4806 for OCSP).

use super::{CertEncoding, Field, Part, PayloadType, Reader, WireError, Writer};

/// The largest certificate, revocation list or OCSP response accepted, in octets.
pub const MAX_CERT_LEN: usize = 32 * 1024;

/// One certificate, or what stands for it.
#[derive(Clone, PartialEq, Eq)]
pub struct Certificate {
    /// What the data is.
    pub encoding: CertEncoding,
    /// The data; DER for X.509.
    pub data: Vec<u8>,
}

/// Where a certificate can be fetched (RFC 7296 3.6, encodings 12 and 13).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HashAndUrl {
    /// SHA-1 of the replaced value.
    pub sha1: [u8; 20],
    /// Where to fetch it: visible ASCII.
    pub url: String,
}

impl Certificate {
    /// A payload of `encoding`.
    pub fn new(encoding: CertEncoding, data: Vec<u8>) -> Self {
        Self { encoding, data }
    }

    /// An X.509 certificate in DER (encoding 4).
    pub fn x509(der: Vec<u8>) -> Self {
        Self::new(CertEncoding::X509Signature, der)
    }

    /// The place a certificate of encoding 12 or 13 can be fetched from; none for other encodings
    /// and for places that are no visible ASCII.
    pub fn hash_and_url(&self) -> Option<HashAndUrl> {
        if !matches!(self.encoding, CertEncoding::HashAndUrlX509 | CertEncoding::HashAndUrlBundle) {
            return None;
        }
        let (sha1, url) = self.data.split_first_chunk::<20>()?;
        if url.is_empty() || !url.iter().all(u8::is_ascii_graphic) {
            return None;
        }
        Some(HashAndUrl { sha1: *sha1, url: String::from_utf8(url.to_vec()).ok()? })
    }

    pub(super) fn parse(mut r: Reader<'_>) -> Result<Self, WireError> {
        let encoding = r.u8()?.into();
        let length = r.remaining();
        if length > MAX_CERT_LEN {
            let part = Part::Payload(PayloadType::Cert);
            return Err(WireError::TooLong { part, length, limit: MAX_CERT_LEN });
        }
        Ok(Self { encoding, data: r.rest().to_vec() })
    }

    pub(super) fn write(&self, w: &mut Writer) -> Result<(), WireError> {
        if self.data.len() > MAX_CERT_LEN {
            let part = Part::Payload(PayloadType::Cert);
            return Err(WireError::TooLong { part, length: self.data.len(), limit: MAX_CERT_LEN });
        }
        w.u8(self.encoding.value());
        w.bytes(&self.data);
        Ok(())
    }
}

impl std::fmt::Debug for Certificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Certificate")
            .field("encoding", &self.encoding)
            .field("octets", &self.data.len())
            .finish()
    }
}

/// Which certificates the sender would accept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertRequest {
    /// The encoding asked for.
    pub encoding: CertEncoding,
    /// For the encodings of [`CertRequest::hashes`] concatenated SHA-1 hashes, else opaque.
    pub authorities: Vec<u8>,
}

impl CertRequest {
    /// Asks for X.509 certificates below any of these authorities, each named by the SHA-1 of its
    /// `SubjectPublicKeyInfo`. An empty list means any (RFC 7296 3.7).
    pub fn x509(authorities: &[[u8; 20]]) -> Self {
        Self { encoding: CertEncoding::X509Signature, authorities: authorities.concat() }
    }

    /// The hashes of a request for X.509 certificates, hash-and-URL or OCSP responses (of
    /// responders, RFC 4806 3.1); nothing for other encodings.
    pub fn hashes(&self) -> impl Iterator<Item = [u8; 20]> + '_ {
        let listed = if is_hash_list(self.encoding) { self.authorities.as_slice() } else { &[] };
        listed.as_chunks::<20>().0.iter().copied()
    }

    pub(super) fn parse(mut r: Reader<'_>) -> Result<Self, WireError> {
        let encoding = r.u8()?.into();
        if is_hash_list(encoding) && !r.remaining().is_multiple_of(20) {
            return Err(r.invalid(Field::List));
        }
        Ok(Self { encoding, authorities: r.rest().to_vec() })
    }

    pub(super) fn write(&self, w: &mut Writer) -> Result<(), WireError> {
        if is_hash_list(self.encoding) && !self.authorities.len().is_multiple_of(20) {
            let part = Part::Payload(PayloadType::CertReq);
            return Err(WireError::Invalid { part, field: Field::List, at: 0 });
        }
        w.u8(self.encoding.value());
        w.bytes(&self.authorities);
        Ok(())
    }
}

fn is_hash_list(encoding: CertEncoding) -> bool {
    matches!(
        encoding,
        CertEncoding::X509Signature
            | CertEncoding::HashAndUrlX509
            | CertEncoding::HashAndUrlBundle
            | CertEncoding::OcspContent
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reader(body: &[u8]) -> Reader<'_> {
        Reader::new(body, Part::Payload(PayloadType::CertReq), 32)
    }

    #[test]
    fn certificate_is_encoding_and_data() {
        // RFC 7296 3.6, figure 12
        let cert = Certificate::parse(reader(&[4, 0x30, 0x82])).unwrap();

        assert_eq!(cert, Certificate::x509(vec![0x30, 0x82]));
        assert_eq!(cert.hash_and_url(), None);
    }

    #[test]
    fn hash_and_url_splits() {
        let data = [&[7; 20][..], b"http://ca.example.com/1"].concat();

        let place = Certificate::new(CertEncoding::HashAndUrlX509, data).hash_and_url().unwrap();

        assert_eq!(place.sha1, [7; 20]);
        assert_eq!(place.url, "http://ca.example.com/1");
    }

    #[test]
    fn urls_of_other_octets_are_none() {
        for tail in [&b""[..], b"http://a b", b"http://a\n", b"http://\xff"] {
            let data = [&[7; 20][..], tail].concat();
            let cert = Certificate::new(CertEncoding::HashAndUrlX509, data);
            assert_eq!(cert.hash_and_url(), None, "{tail:?}");
        }
    }

    #[test]
    fn oversized_certificates_are_refused_both_ways() {
        let body = vec![4; MAX_CERT_LEN + 2];

        assert!(matches!(Certificate::parse(reader(&body)), Err(WireError::TooLong { .. })));
        let cert = Certificate::x509(body);
        assert!(matches!(cert.write(&mut Writer::new()), Err(WireError::TooLong { .. })));
    }

    #[test]
    fn request_lists_hashes() {
        // RFC 7296 3.7
        let body = [&[4][..], &[1; 20], &[2; 20]].concat();

        let request = CertRequest::parse(reader(&body)).unwrap();

        assert_eq!(request.hashes().collect::<Vec<_>>(), [[1; 20], [2; 20]]);
        assert_eq!(request, CertRequest::x509(&[[1; 20], [2; 20]]));
    }

    #[test]
    fn a_hash_cut_short_is_invalid() {
        assert_eq!(
            CertRequest::parse(reader(&[4, 1, 2, 3])),
            Err(WireError::Invalid {
                part: Part::Payload(PayloadType::CertReq),
                field: Field::List,
                at: 33
            })
        );
    }

    #[test]
    fn other_encodings_keep_their_authorities_opaque() {
        let request = CertRequest::parse(reader(&[1, 9, 9, 9])).unwrap();

        assert_eq!(request.authorities, [9, 9, 9]);
        assert_eq!(request.hashes().count(), 0);
    }
}
