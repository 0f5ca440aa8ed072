//! Authentication payload (RFC 7296 3.8) and the digital signature body of RFC 7427 3.

use super::writer::fit8;
use super::{AuthMethod, Field, Part, PayloadType, Reader, WireError, Writer};

/// Proof of identity. `Debug` prints the data's length only.
#[derive(Clone, PartialEq, Eq)]
pub struct Authentication {
    /// How the data was computed.
    pub method: AuthMethod,
    /// Signature or MAC; for [`AuthMethod::DigitalSignature`] a [`SignatureData`].
    pub data: Vec<u8>,
}

/// The body of a digital signature: algorithm and value (RFC 7427 3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignatureData {
    /// DER of the `AlgorithmIdentifier`, at most 255 octets.
    pub algorithm: Vec<u8>,
    /// The signature's value.
    pub signature: Vec<u8>,
}

impl Authentication {
    /// A payload of `method`.
    pub fn new(method: AuthMethod, data: Vec<u8>) -> Self {
        Self { method, data }
    }

    /// A payload of method 14 (RFC 7427).
    ///
    /// # Errors
    /// [`WireError::TooLong`] when the algorithm identifier exceeds 255 octets.
    pub fn digital_signature(body: &SignatureData) -> Result<Self, WireError> {
        Ok(Self::new(AuthMethod::DigitalSignature, body.join()?))
    }

    pub(super) fn parse(mut r: Reader<'_>) -> Result<Self, WireError> {
        let method = r.u8()?.into();
        r.take(3)?; // reserved
        Ok(Self { method, data: r.rest().to_vec() })
    }

    pub(super) fn write(&self, w: &mut Writer) {
        w.u8(self.method.value());
        w.bytes(&[0; 3]);
        w.bytes(&self.data);
    }
}

impl SignatureData {
    /// Splits the data of a method 14 payload. The DER itself is not looked into.
    ///
    /// # Errors
    /// When the algorithm identifier is empty or longer than the data.
    pub fn split(data: &[u8]) -> Result<Self, WireError> {
        let mut r = Reader::new(data, Part::Signature, 0);
        let length = usize::from(r.u8()?);
        if length == 0 {
            return Err(r.invalid(Field::Algorithm));
        }
        Ok(Self { algorithm: r.take(length)?.to_vec(), signature: r.rest().to_vec() })
    }

    /// The data of a method 14 payload.
    ///
    /// # Errors
    /// [`WireError::TooLong`] when the algorithm identifier exceeds 255 octets.
    pub fn join(&self) -> Result<Vec<u8>, WireError> {
        let mut w = Writer::new();
        w.u8(fit8(self.algorithm.len(), Part::Signature)?);
        w.bytes(&self.algorithm);
        w.bytes(&self.signature);
        Ok(w.into_vec())
    }
}

impl std::fmt::Debug for Authentication {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authentication")
            .field("method", &self.method)
            .field("octets", &self.data.len())
            .finish()
    }
}

impl TryFrom<&Authentication> for SignatureData {
    type Error = WireError;

    /// Splits a method 14 payload.
    fn try_from(auth: &Authentication) -> Result<Self, WireError> {
        if auth.method != AuthMethod::DigitalSignature {
            return Err(WireError::Missing { payload: PayloadType::Auth });
        }
        Self::split(&auth.data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PART: Part = Part::Payload(PayloadType::Auth);

    /// RFC 7427 A.3.2: ecdsa-with-SHA256.
    const ECDSA_SHA256: [u8; 12] =
        [0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];

    #[test]
    fn method_and_data() {
        // RFC 7296 3.8, figure 14
        let body = [14, 0xff, 0xff, 0xff, 0xaa, 0xbb];

        let auth = Authentication::parse(Reader::new(&body, PART, 0)).unwrap();

        assert_eq!(auth, Authentication::new(AuthMethod::DigitalSignature, vec![0xaa, 0xbb]));
        let mut w = Writer::new();
        auth.write(&mut w);
        assert_eq!(w.into_vec(), [14, 0, 0, 0, 0xaa, 0xbb]);
    }

    #[test]
    fn digital_signature_splits_into_algorithm_and_value() {
        let body = [&[12][..], &ECDSA_SHA256, &[1, 2, 3]].concat();

        let split = SignatureData::split(&body).unwrap();

        assert_eq!(split.algorithm, ECDSA_SHA256);
        assert_eq!(split.signature, [1, 2, 3]);
        assert_eq!(split.join().unwrap(), body);
    }

    #[test]
    fn algorithm_identifier_must_be_there() {
        assert_eq!(
            SignatureData::split(&[0, 1, 2]),
            Err(WireError::Invalid { part: Part::Signature, field: Field::Algorithm, at: 1 })
        );
        assert_eq!(
            SignatureData::split(&[12, 0x30]),
            Err(WireError::Truncated { part: Part::Signature, at: 1, missing: 11 })
        );
        let long = SignatureData { algorithm: vec![0; 256], signature: vec![] };
        assert!(long.join().is_err());
    }

    #[test]
    fn debug_hides_the_data() {
        let auth = Authentication::new(AuthMethod::SharedKeyMic, vec![0xab; 32]);

        assert_eq!(format!("{auth:?}"), "Authentication { method: SharedKeyMic, octets: 32 }");
    }
}
