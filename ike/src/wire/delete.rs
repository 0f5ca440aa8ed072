//! Delete payload (RFC 7296 3.11).

use super::writer::fit16;
use super::{ChildSpi, Field, Part, PayloadType, ProtocolId, Reader, WireError, Writer};

/// The most SPIs accepted in one payload.
pub const MAX_DELETE_SPIS: usize = 2048;

const PART: Part = Part::Payload(PayloadType::Delete);

/// Which SAs the sender has closed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delete {
    /// The IKE SA that carries the message.
    Ike,
    /// Child SAs, named by the SPI of the sender's inbound half.
    Child {
        /// ESP or AH.
        protocol: ProtocolId,
        /// The SPIs.
        spis: Vec<ChildSpi>,
    },
}

impl Delete {
    /// Deletes ESP SAs.
    pub fn esp(spis: Vec<ChildSpi>) -> Self {
        Self::Child { protocol: ProtocolId::Esp, spis }
    }

    pub(super) fn parse(mut r: Reader<'_>) -> Result<Self, WireError> {
        let protocol = ProtocolId::from(r.u8()?);
        let spi_size = r.u8()?;
        let count = usize::from(r.u16()?);
        if protocol == ProtocolId::Ike {
            // RFC 7296 3.11: an IKE SA is deleted by its message's SPIs, not by listed ones.
            if count != 0 {
                return Err(r.invalid(Field::Count));
            }
            r.finish()?;
            return Ok(Self::Ike);
        }
        if spi_size != 4 {
            return Err(r.invalid(Field::SpiSize));
        }
        if count > MAX_DELETE_SPIS {
            return Err(WireError::TooMany { part: PART, limit: MAX_DELETE_SPIS });
        }
        if count.checked_mul(4) != Some(r.remaining()) {
            return Err(r.invalid(Field::Count));
        }
        let mut spis = Vec::with_capacity(count);
        while !r.is_empty() {
            spis.push(ChildSpi(r.u32()?));
        }
        Ok(Self::Child { protocol, spis })
    }

    pub(super) fn write(&self, w: &mut Writer) -> Result<(), WireError> {
        match self {
            Self::Ike => {
                w.u8(ProtocolId::Ike.value());
                w.u8(0);
                w.u16(0);
            }
            Self::Child { protocol, spis } => {
                if *protocol == ProtocolId::Ike {
                    return Err(WireError::Invalid { part: PART, field: Field::SpiSize, at: 0 });
                }
                if spis.len() > MAX_DELETE_SPIS {
                    return Err(WireError::TooMany { part: PART, limit: MAX_DELETE_SPIS });
                }
                w.u8(protocol.value());
                w.u8(4);
                w.u16(fit16(spis.len(), PART)?);
                spis.iter().for_each(|spi| w.u32(spi.0));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(body: &[u8]) -> Result<Delete, WireError> {
        Delete::parse(Reader::new(body, PART, 0))
    }

    #[test]
    fn child_spis() {
        // RFC 7296 3.11, figure 17
        let body = [3, 4, 0, 2, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff];

        let delete = parse(&body).unwrap();

        assert_eq!(delete, Delete::esp(vec![ChildSpi(1), ChildSpi(0xffff_ffff)]));
        let mut w = Writer::new();
        delete.write(&mut w).unwrap();
        assert_eq!(w.into_vec(), body);
    }

    #[test]
    fn the_ike_sa_has_no_spi() {
        assert_eq!(parse(&[1, 0, 0, 0]), Ok(Delete::Ike));
        assert_eq!(
            parse(&[1, 8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1]),
            Err(WireError::Invalid { part: PART, field: Field::Count, at: 4 })
        );
    }

    #[test]
    fn count_must_be_what_follows() {
        for body in [&[3, 4, 0, 2, 0, 0, 0, 1][..], &[3, 4, 0, 0, 0, 0, 0, 1]] {
            assert_eq!(
                parse(body),
                Err(WireError::Invalid { part: PART, field: Field::Count, at: 4 })
            );
        }
    }

    #[test]
    fn spis_have_four_octets() {
        assert_eq!(
            parse(&[3, 8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1]),
            Err(WireError::Invalid { part: PART, field: Field::SpiSize, at: 4 })
        );
    }
}
