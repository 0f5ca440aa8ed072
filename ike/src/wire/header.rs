//! The IKE header (RFC 7296 3.1).

use super::{ExchangeType, Field, Part, PayloadType, Reader, WireError, Writer};

/// The header's length in octets.
pub const HEADER_LEN: usize = 28;

/// The SPI of one side of an IKE SA; zero for a responder that has not answered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IkeSpi(pub u64);

impl IkeSpi {
    /// The SPI of a responder that has not answered.
    pub const ZERO: Self = Self(0);

    /// Whether it is zero.
    pub fn is_zero(self) -> bool {
        self.0 == 0
    }
}

impl std::fmt::Display for IkeSpi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// The SPI of an ESP or AH SA.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChildSpi(pub u32);

impl std::fmt::Display for ChildSpi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

/// Protocol version, four bits each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version {
    /// Major version: 2.
    pub major: u8,
    /// Minor version: ignored on receipt.
    pub minor: u8,
}

impl Version {
    /// IKEv2.
    pub const V2: Self = Self { major: 2, minor: 0 };
}

/// The header's flags; bits without a meaning are dropped (RFC 7296 3.1).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Flags {
    /// R: the message answers a request of the same message ID.
    pub response: bool,
    /// V: the sender could speak a higher major version.
    pub version: bool,
    /// I: the sender is the original initiator of the IKE SA.
    pub initiator: bool,
}

impl Flags {
    /// A request of the original initiator.
    pub const REQUEST: Self = Self { response: false, version: false, initiator: true };
    /// A response of the original responder.
    pub const RESPONSE: Self = Self { response: true, version: false, initiator: false };

    /// Flags of a message of the side `initiator`.
    pub fn new(initiator: bool, response: bool) -> Self {
        Self { response, version: false, initiator }
    }

    /// The octet on the wire.
    pub fn bits(self) -> u8 {
        let bit = |set: bool, bit: u8| if set { bit } else { 0 };
        bit(self.response, 0x20) | bit(self.version, 0x10) | bit(self.initiator, 0x08)
    }
}

impl From<u8> for Flags {
    fn from(bits: u8) -> Self {
        Self { response: bits & 0x20 != 0, version: bits & 0x10 != 0, initiator: bits & 0x08 != 0 }
    }
}

/// The header of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The original initiator's SPI, never zero.
    pub spi_i: IkeSpi,
    /// The original responder's SPI, zero in the first request.
    pub spi_r: IkeSpi,
    /// Type of the first payload. Encoding a message fills it in.
    pub next_payload: PayloadType,
    /// Protocol version.
    pub version: Version,
    /// Exchange type.
    pub exchange: ExchangeType,
    /// Flags.
    pub flags: Flags,
    /// Message ID.
    pub message_id: u32,
    /// Length of the whole message in octets. Encoding a message fills it in.
    pub length: u32,
}

impl Header {
    /// The header of a message to be encoded.
    pub fn new(
        spi_i: IkeSpi,
        spi_r: IkeSpi,
        exchange: ExchangeType,
        flags: Flags,
        message_id: u32,
    ) -> Self {
        Self {
            spi_i,
            spi_r,
            next_payload: PayloadType::None,
            version: Version::V2,
            exchange,
            flags,
            message_id,
            length: 0,
        }
    }

    /// Parses the header of a datagram (without the non-ESP marker) and checks what costs nothing:
    /// the length is the datagram's, the version ours, the initiator's SPI not zero.
    ///
    /// # Errors
    /// The first check that fails. For an answer to a foreign version, use [`Header::peek`].
    pub fn parse(datagram: &[u8]) -> Result<Self, WireError> {
        let header = Self::peek(datagram)?;
        // RFC 7296 2.5: an equal major version is ours; the minor version is ignored.
        if header.version.major != 2 {
            return Err(WireError::MajorVersion { major: header.version.major });
        }
        if usize::try_from(header.length) != Ok(datagram.len()) {
            return Err(WireError::DatagramLength {
                header: header.length,
                datagram: datagram.len(),
            });
        }
        if header.spi_i.is_zero() {
            return Err(WireError::Invalid { part: Part::Header, field: Field::Spi, at: 0 });
        }
        Ok(header)
    }

    /// Reads the fields without judging them.
    ///
    /// # Errors
    /// [`WireError::Truncated`] when there are fewer than [`HEADER_LEN`] octets.
    pub fn peek(datagram: &[u8]) -> Result<Self, WireError> {
        let Some(fields) = datagram.first_chunk::<HEADER_LEN>() else {
            return Err(WireError::Truncated {
                part: Part::Header,
                at: datagram.len(),
                missing: HEADER_LEN.saturating_sub(datagram.len()),
            });
        };
        let mut r = Reader::new(fields, Part::Header, 0);
        let spi_i = IkeSpi(r.u64()?);
        let spi_r = IkeSpi(r.u64()?);
        let next_payload = r.u8()?.into();
        let version = r.u8()?;
        Ok(Self {
            spi_i,
            spi_r,
            next_payload,
            version: Version { major: version >> 4, minor: version & 0x0f },
            exchange: r.u8()?.into(),
            flags: r.u8()?.into(),
            message_id: r.u32()?,
            length: r.u32()?,
        })
    }

    /// Appends the header as it is.
    pub fn write(&self, w: &mut Writer) {
        w.u64(self.spi_i.0);
        w.u64(self.spi_r.0);
        w.u8(self.next_payload.value());
        w.u8((self.version.major << 4) | (self.version.minor & 0x0f));
        w.u8(self.exchange.value());
        w.u8(self.flags.bits());
        w.u32(self.message_id);
        w.u32(self.length);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7296 3.1, figure 4.
    const HEADER: [u8; 28] = [
        0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, // initiator's SPI
        0, 0, 0, 0, 0, 0, 0, 0, // responder's SPI
        33, 0x20, 34, 0x08, // SA, 2.0, IKE_SA_INIT, initiator
        0, 0, 0, 0, // message ID
        0, 0, 0, 28, // length
    ];

    #[test]
    fn parses_and_writes_every_field() {
        let header = Header::parse(&HEADER).unwrap();

        assert_eq!(header.spi_i, IkeSpi(0x0102_0304_0506_0708));
        assert!(header.spi_r.is_zero());
        assert_eq!(header.next_payload, PayloadType::Sa);
        assert_eq!(header.version, Version::V2);
        assert_eq!(header.exchange, ExchangeType::IkeSaInit);
        assert_eq!(header.flags, Flags::REQUEST);
        let mut w = Writer::new();
        header.write(&mut w);
        assert_eq!(w.into_vec(), HEADER);
    }

    #[test]
    fn length_must_be_the_datagrams() {
        let mut long = HEADER.to_vec();
        long.push(0);

        assert_eq!(
            Header::parse(&long),
            Err(WireError::DatagramLength { header: 28, datagram: 29 })
        );
    }

    #[test]
    fn foreign_major_versions_are_refused_and_higher_minor_ones_accepted() {
        // RFC 7296 2.5
        let with_version = |version| {
            let mut bytes = HEADER;
            bytes[17] = version;
            Header::parse(&bytes)
        };

        assert_eq!(with_version(0x30), Err(WireError::MajorVersion { major: 3 }));
        assert_eq!(with_version(0x10), Err(WireError::MajorVersion { major: 1 }));
        assert_eq!(with_version(0x25).unwrap().version, Version { major: 2, minor: 5 });
    }

    #[test]
    fn the_initiators_spi_must_not_be_zero() {
        let mut bytes = HEADER;
        bytes[..8].fill(0);

        assert_eq!(
            Header::parse(&bytes),
            Err(WireError::Invalid { part: Part::Header, field: Field::Spi, at: 0 })
        );
    }

    #[test]
    fn reserved_flag_bits_are_ignored() {
        let mut bytes = HEADER;
        bytes[19] = 0xcf;

        assert_eq!(Header::parse(&bytes).unwrap().flags.bits(), 0x08);
    }

    #[test]
    fn short_datagrams_say_what_is_missing() {
        assert_eq!(
            Header::parse(&HEADER[..20]),
            Err(WireError::Truncated { part: Part::Header, at: 20, missing: 8 })
        );
    }
}
