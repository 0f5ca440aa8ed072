//! Identification payloads (RFC 7296 3.5).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Field, IdType, Part, PayloadType, Reader, WireError, Writer};

/// An identity as it goes over the wire.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identification {
    /// What the data is.
    pub id_type: IdType,
    /// The identity, without terminator.
    pub data: Vec<u8>,
}

impl Identification {
    /// An identity of `id_type`.
    pub fn new(id_type: IdType, data: Vec<u8>) -> Self {
        Self { id_type, data }
    }

    /// A host name.
    pub fn fqdn(name: &str) -> Self {
        Self::new(IdType::Fqdn, name.as_bytes().to_vec())
    }

    /// A mail address.
    pub fn rfc822(address: &str) -> Self {
        Self::new(IdType::Rfc822Addr, address.as_bytes().to_vec())
    }

    /// A distinguished name in DER.
    pub fn dn(der: Vec<u8>) -> Self {
        Self::new(IdType::DerAsn1Dn, der)
    }

    /// An opaque key identifier.
    pub fn key_id(octets: Vec<u8>) -> Self {
        Self::new(IdType::KeyId, octets)
    }

    /// An address.
    pub fn address(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => Self::new(IdType::Ipv4Addr, v4.octets().to_vec()),
            IpAddr::V6(v6) => Self::new(IdType::Ipv6Addr, v6.octets().to_vec()),
        }
    }

    /// The address of an identity that is one.
    pub fn as_address(&self) -> Option<IpAddr> {
        match self.id_type {
            IdType::Ipv4Addr => {
                Some(Ipv4Addr::from(<[u8; 4]>::try_from(self.data.as_slice()).ok()?).into())
            }
            IdType::Ipv6Addr => {
                Some(Ipv6Addr::from(<[u8; 16]>::try_from(self.data.as_slice()).ok()?).into())
            }
            _ => None,
        }
    }

    /// The text of a host name or mail address in valid UTF-8.
    pub fn as_text(&self) -> Option<&str> {
        match self.id_type {
            IdType::Fqdn | IdType::Rfc822Addr => std::str::from_utf8(&self.data).ok(),
            _ => None,
        }
    }

    fn length_is_right(&self) -> bool {
        match self.id_type {
            IdType::Ipv4Addr => self.data.len() == 4,
            IdType::Ipv6Addr => self.data.len() == 16,
            _ => true,
        }
    }
}

/// For operators: text and addresses as they are, other types as their name and hexadecimal digits.
/// Control characters are escaped.
impl std::fmt::Display for Identification {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(address) = self.as_address() {
            return write!(f, "{address}");
        }
        if let Some(text) = self.as_text() {
            return write!(f, "{}", text.escape_debug());
        }
        write!(f, "{}:", self.id_type)?;
        self.data.iter().try_for_each(|octet| write!(f, "{octet:02x}"))
    }
}

/// An identity with the reserved octets it came with, which the peer's AUTH covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdPayload {
    /// The identity.
    pub id: Identification,
    /// Reserved octets: zero unless a peer sent others.
    pub reserved: [u8; 3],
}

impl IdPayload {
    /// The octets after the generic header: `RestOfInitIDPayload` of RFC 7296 2.15.
    pub fn body(&self) -> Vec<u8> {
        let mut out = vec![self.id.id_type.value()];
        out.extend_from_slice(&self.reserved);
        out.extend_from_slice(&self.id.data);
        out
    }

    pub(super) fn parse(mut r: Reader<'_>) -> Result<Self, WireError> {
        let id_type = r.u8()?.into();
        let reserved = r.array()?;
        let wrong = r.invalid(Field::Address);
        let id = Identification { id_type, data: r.rest().to_vec() };
        if !id.length_is_right() {
            return Err(wrong);
        }
        Ok(Self { id, reserved })
    }

    pub(super) fn write(&self, w: &mut Writer) -> Result<(), WireError> {
        if !self.id.length_is_right() {
            let part = Part::Payload(PayloadType::IdI);
            return Err(WireError::Invalid { part, field: Field::Address, at: 0 });
        }
        w.bytes(&self.body());
        Ok(())
    }
}

impl From<Identification> for IdPayload {
    fn from(id: Identification) -> Self {
        Self { id, reserved: [0; 3] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PART: Part = Part::Payload(PayloadType::IdR);

    #[test]
    fn body_keeps_reserved_octets_for_the_signature() {
        // RFC 7296 2.15: IDType | RESERVED | data
        let body = [2, 9, 9, 9, b'g', b'w'];

        let id = IdPayload::parse(Reader::new(&body, PART, 0)).unwrap();

        assert_eq!(id.id, Identification::fqdn("gw"));
        assert_eq!(id.body(), body);
    }

    #[test]
    fn addresses_have_the_length_of_their_family() {
        for body in [&[1, 0, 0, 0, 10, 0, 0][..], &[5, 0, 0, 0, 1, 2, 3, 4]] {
            assert_eq!(
                IdPayload::parse(Reader::new(body, PART, 0)),
                Err(WireError::Invalid { part: PART, field: Field::Address, at: 4 })
            );
        }
        let wrong = IdPayload::from(Identification::new(IdType::Ipv4Addr, vec![1]));
        assert!(wrong.write(&mut Writer::new()).is_err());
    }

    #[test]
    fn display_is_for_people() {
        let v6 = "2001:db8::1".parse().unwrap();

        assert_eq!(Identification::address([10, 0, 0, 1].into()).to_string(), "10.0.0.1");
        assert_eq!(Identification::address(v6).to_string(), "2001:db8::1");
        assert_eq!(Identification::fqdn("gw.example.com").to_string(), "gw.example.com");
        assert_eq!(Identification::rfc822("ci@example.com").to_string(), "ci@example.com");
        assert_eq!(Identification::dn(vec![0x30, 0x00]).to_string(), "DER_ASN1_DN:3000");
        assert_eq!(Identification::key_id(vec![0xab]).to_string(), "KEY_ID:ab");
    }

    #[test]
    fn display_escapes_what_would_forge_a_log_line() {
        assert_eq!(Identification::fqdn("a\nb\x1b[0m").to_string(), "a\\nb\\u{1b}[0m");
    }
}
