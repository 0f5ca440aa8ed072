//! EAP payload (RFC 7296 3.16, RFC 3748 4).

use super::writer::fit16;
use super::{EapCode, EapType, Field, Part, PayloadType, Reader, WireError, Writer};

/// An EAP message. `Debug` prints the data's length only: some methods carry passwords.
#[derive(Clone, PartialEq, Eq)]
pub struct Eap {
    /// Request, response, success or failure.
    pub code: EapCode,
    /// Matches responses with requests.
    pub identifier: u8,
    /// The method; exactly requests and responses have one.
    pub method: Option<EapType>,
    /// The method's data.
    pub data: Vec<u8>,
}

impl Eap {
    /// EAP-Success.
    pub fn success(identifier: u8) -> Self {
        Self { code: EapCode::Success, identifier, method: None, data: Vec::new() }
    }

    /// EAP-Failure.
    pub fn failure(identifier: u8) -> Self {
        Self { code: EapCode::Failure, identifier, method: None, data: Vec::new() }
    }

    /// A request of `method`.
    pub fn request(identifier: u8, method: EapType, data: Vec<u8>) -> Self {
        Self { code: EapCode::Request, identifier, method: Some(method), data }
    }

    /// A response of `method`.
    pub fn response(identifier: u8, method: EapType, data: Vec<u8>) -> Self {
        Self { code: EapCode::Response, identifier, method: Some(method), data }
    }

    /// Parses a bare EAP message, as an EAP method or RADIUS carries it.
    ///
    /// # Errors
    /// When its length field is not its length, or its code does not allow its content.
    pub fn from_bytes(message: &[u8]) -> Result<Self, WireError> {
        Self::parse(Reader::new(message, Part::Payload(PayloadType::Eap), 0))
    }

    /// The bare EAP message.
    ///
    /// # Errors
    /// [`WireError::TooLong`] beyond 65535 octets, [`WireError::Invalid`] when a code has content
    /// that it must not have, or lacks a method.
    pub fn to_bytes(&self) -> Result<Vec<u8>, WireError> {
        let mut w = Writer::new();
        self.write(&mut w)?;
        Ok(w.into_vec())
    }

    pub(super) fn parse(mut r: Reader<'_>) -> Result<Self, WireError> {
        let total = r.remaining();
        let code = EapCode::from(r.u8()?);
        let identifier = r.u8()?;
        // RFC 7296 3.16: the length is the payload's without its generic header.
        if usize::from(r.u16()?) != total {
            return Err(r.invalid(Field::Length));
        }
        let method = match has_method(code) {
            true => Some(EapType::from(r.u8()?)),
            false => None,
        };
        if is_final(code) && !r.is_empty() {
            return Err(r.invalid(Field::Length));
        }
        Ok(Self { code, identifier, method, data: r.rest().to_vec() })
    }

    pub(super) fn write(&self, w: &mut Writer) -> Result<(), WireError> {
        let part = Part::Payload(PayloadType::Eap);
        let wrong = self.method.is_some() != has_method(self.code)
            || (is_final(self.code) && !self.data.is_empty());
        if wrong {
            return Err(WireError::Invalid { part, field: Field::Length, at: 0 });
        }
        let head: usize = if self.method.is_some() { 5 } else { 4 };
        w.u8(self.code.value());
        w.u8(self.identifier);
        w.u16(fit16(head.saturating_add(self.data.len()), part)?);
        if let Some(method) = self.method {
            w.u8(method.value());
        }
        w.bytes(&self.data);
        Ok(())
    }
}

fn has_method(code: EapCode) -> bool {
    matches!(code, EapCode::Request | EapCode::Response)
}

fn is_final(code: EapCode) -> bool {
    matches!(code, EapCode::Success | EapCode::Failure)
}

impl std::fmt::Debug for Eap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Eap")
            .field("code", &self.code)
            .field("identifier", &self.identifier)
            .field("method", &self.method)
            .field("octets", &self.data.len())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PART: Part = Part::Payload(PayloadType::Eap);

    #[test]
    fn request_has_a_method() {
        // RFC 3748 4.1
        let message = [1, 7, 0, 8, 13, 0x20, 1, 2];

        let eap = Eap::from_bytes(&message).unwrap();

        assert_eq!(eap, Eap::request(7, EapType::Tls, vec![0x20, 1, 2]));
        assert_eq!(eap.to_bytes().unwrap(), message);
    }

    #[test]
    fn success_and_failure_are_four_octets() {
        // RFC 3748 4.2
        assert_eq!(Eap::from_bytes(&[3, 7, 0, 4]), Ok(Eap::success(7)));
        assert_eq!(Eap::from_bytes(&[4, 8, 0, 4]), Ok(Eap::failure(8)));
        assert_eq!(
            Eap::from_bytes(&[3, 7, 0, 5, 1]),
            Err(WireError::Invalid { part: PART, field: Field::Length, at: 4 })
        );
    }

    #[test]
    fn length_must_be_the_payloads() {
        for message in [&[1, 7, 0, 9, 13, 0, 0, 0][..], &[1, 7, 0, 7, 13, 0, 0, 0]] {
            assert_eq!(
                Eap::from_bytes(message),
                Err(WireError::Invalid { part: PART, field: Field::Length, at: 4 })
            );
        }
    }

    #[test]
    fn request_without_method_is_truncated() {
        assert_eq!(
            Eap::from_bytes(&[1, 7, 0, 4]),
            Err(WireError::Truncated { part: PART, at: 4, missing: 1 })
        );
        let none = Eap { method: None, ..Eap::request(1, EapType::Tls, vec![]) };
        assert!(none.to_bytes().is_err());
    }

    #[test]
    fn debug_hides_the_data() {
        let eap = Eap::response(1, EapType::Gtc, b"password".to_vec());

        assert!(!format!("{eap:?}").contains("112"));
        assert!(format!("{eap:?}").contains("octets: 8"));
    }
}
