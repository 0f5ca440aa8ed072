//! Security Association payload (RFC 7296 3.3, RFC 9370 for additional key exchanges).

use super::writer::fit8;
use super::{
    ChildSpi, EncrId, EsnId, Field, IkeSpi, IntegId, KeMethod, Part, PrfId, ProtocolId, Reader,
    TransformType, WireError, Writer,
};

/// The most proposals accepted in one payload.
pub const MAX_PROPOSALS: usize = 64;
/// The most transforms accepted in all proposals of one payload.
pub const MAX_TRANSFORMS: usize = 512;
/// The most attributes accepted in one transform.
pub const MAX_ATTRIBUTES: usize = 8;

/// Attribute type of a key length (RFC 7296 3.3.5).
const KEY_LENGTH: u16 = 14;
/// First bit of an attribute: the value stands in place of the length.
const FORMAT_TV: u16 = 0x8000;

/// Proposals in the order of preference.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SecurityAssociation {
    /// The proposals; exactly one in an answer.
    pub proposals: Vec<Proposal>,
}

/// One way to protect traffic: for every transform type one of the transforms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proposal {
    /// Number, counting from 1; an answer repeats the chosen one's.
    pub number: u8,
    /// IKE, ESP or AH.
    pub protocol: ProtocolId,
    /// The sender's SPI: empty for an initial IKE SA, 8 octets for a rekeyed one, 4 for ESP.
    pub spi: Vec<u8>,
    /// The transforms.
    pub transforms: Vec<Transform>,
}

/// One algorithm and its attributes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transform {
    /// What it is.
    pub id: TransformId,
    /// Its attributes.
    pub attributes: Vec<Attribute>,
}

/// A transform's type and number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TransformId {
    /// Encryption.
    Encr(EncrId),
    /// Pseudo-random function.
    Prf(PrfId),
    /// Integrity.
    Integ(IntegId),
    /// Key exchange method.
    Ke(KeMethod),
    /// Extended sequence numbers.
    Esn(EsnId),
    /// Additional key exchange method (RFC 9370).
    AddKe {
        /// 1 to 7.
        slot: u8,
        /// The method.
        method: KeMethod,
    },
    /// A transform of a type without a name here. A proposal that has one can be chosen only by
    /// who knows it (RFC 7296 3.3.6).
    Unknown {
        /// Transform type.
        kind: u8,
        /// Transform number.
        id: u16,
    },
}

/// An attribute of a transform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attribute {
    /// Key length in bits.
    KeyLength(u16),
    /// Another attribute with a value of two octets.
    Tv {
        /// The type, 15 bits.
        kind: u16,
        /// The value.
        value: u16,
    },
    /// An attribute with a value of any length. A key length in this form has no meaning.
    Tlv {
        /// The type, 15 bits.
        kind: u16,
        /// The value.
        value: Vec<u8>,
    },
}

impl SecurityAssociation {
    /// A payload of these proposals.
    pub fn new(proposals: Vec<Proposal>) -> Self {
        Self { proposals }
    }

    /// Whether proposals are numbered 1, 2, 3 and so on, as an offer must be (RFC 7296 3.3.1).
    pub fn is_numbered(&self) -> bool {
        self.proposals.iter().zip(1u8..).all(|(proposal, number)| proposal.number == number)
    }

    pub(super) fn parse(mut r: Reader<'_>) -> Result<Self, WireError> {
        let mut proposals = Vec::new();
        let mut transforms_left = MAX_TRANSFORMS;
        loop {
            if proposals.len() == MAX_PROPOSALS {
                return Err(WireError::TooMany { part: Part::Proposal, limit: MAX_PROPOSALS });
            }
            let more = r.u8()?;
            r.u8()?; // reserved
            let length = r.u16()?;
            let body = r.body(length, 4, Part::Proposal)?;
            let proposal = Proposal::parse(body, transforms_left)?;
            transforms_left = transforms_left.saturating_sub(proposal.transforms.len());
            proposals.push(proposal);
            if is_last(&r, more, 2, Part::Proposal)? {
                return Ok(Self { proposals });
            }
        }
    }

    pub(super) fn write(&self, w: &mut Writer) -> Result<(), WireError> {
        if self.proposals.is_empty() || self.proposals.len() > MAX_PROPOSALS {
            return Err(WireError::TooMany { part: Part::Proposal, limit: MAX_PROPOSALS });
        }
        let transforms = self.proposals.iter().map(|proposal| proposal.transforms.len());
        if transforms.fold(0, usize::saturating_add) > MAX_TRANSFORMS {
            return Err(WireError::TooMany { part: Part::Transform, limit: MAX_TRANSFORMS });
        }
        let mut last_at = 0;
        for proposal in &self.proposals {
            last_at = w.len();
            w.u8(2);
            proposal.write(w)?;
            w.set_len16(last_at.saturating_add(2), last_at, Part::Proposal)?;
        }
        w.set_u8(last_at, 0);
        Ok(())
    }
}

impl Proposal {
    /// A proposal without SPI.
    pub fn new(number: u8, protocol: ProtocolId, transforms: Vec<Transform>) -> Self {
        Self { number, protocol, spi: Vec::new(), transforms }
    }

    /// The same with the SPI of an ESP or AH SA.
    #[must_use]
    pub fn with_child_spi(self, spi: ChildSpi) -> Self {
        Self { spi: spi.0.to_be_bytes().to_vec(), ..self }
    }

    /// The same with the SPI of a rekeyed IKE SA.
    #[must_use]
    pub fn with_ike_spi(self, spi: IkeSpi) -> Self {
        Self { spi: spi.0.to_be_bytes().to_vec(), ..self }
    }

    /// The SPI of an ESP or AH SA.
    pub fn child_spi(&self) -> Option<ChildSpi> {
        <[u8; 4]>::try_from(self.spi.as_slice()).ok().map(|spi| ChildSpi(u32::from_be_bytes(spi)))
    }

    /// The SPI of a rekeyed IKE SA.
    pub fn ike_spi(&self) -> Option<IkeSpi> {
        <[u8; 8]>::try_from(self.spi.as_slice()).ok().map(|spi| IkeSpi(u64::from_be_bytes(spi)))
    }

    /// The transforms of one type, in order.
    pub fn of(&self, kind: TransformType) -> impl Iterator<Item = &Transform> + '_ {
        self.transforms.iter().filter(move |transform| transform.kind() == kind)
    }

    /// The key exchange methods offered in transform type 4, in order.
    pub fn ke_methods(&self) -> impl Iterator<Item = KeMethod> + '_ {
        self.transforms.iter().filter_map(|transform| match transform.id {
            TransformId::Ke(method) => Some(method),
            _ => None,
        })
    }

    fn spi_size_is_right(&self) -> bool {
        match self.protocol {
            // RFC 7296 3.3.1: none in an initial exchange, 8 octets in a rekey.
            ProtocolId::Ike => matches!(self.spi.len(), 0 | 8),
            ProtocolId::Esp | ProtocolId::Ah => self.spi.len() == 4,
            _ => true,
        }
    }

    fn parse(mut r: Reader<'_>, limit: usize) -> Result<Self, WireError> {
        let wrong = r.invalid(Field::SpiSize);
        let number = r.u8()?;
        let protocol = r.u8()?.into();
        let spi_size = r.u8()?;
        let count = usize::from(r.u8()?);
        let spi = r.take(usize::from(spi_size))?.to_vec();
        let mut proposal = Self { number, protocol, spi, transforms: Vec::new() };
        if !proposal.spi_size_is_right() {
            return Err(wrong);
        }
        if count > limit {
            return Err(WireError::TooMany { part: Part::Transform, limit: MAX_TRANSFORMS });
        }
        for left in (0..count).rev() {
            let at = r.at();
            let more = r.u8()?;
            r.u8()?; // reserved
            let length = r.u16()?;
            let body = r.body(length, 4, Part::Transform)?;
            proposal.transforms.push(Transform::parse(body)?);
            // The marker repeats what the count says; a contradiction is an error.
            if is_last(&r, more, 3, Part::Transform)? != (left == 0) {
                let (part, field) = (Part::Transform, Field::Count);
                return Err(WireError::Invalid { part, field, at });
            }
        }
        r.finish()?;
        Ok(proposal)
    }

    fn write(&self, w: &mut Writer) -> Result<(), WireError> {
        if !self.spi_size_is_right() {
            return Err(WireError::Invalid { part: Part::Proposal, field: Field::SpiSize, at: 0 });
        }
        w.u8(0);
        w.u16(0); // length, filled in by the payload
        w.u8(self.number);
        w.u8(self.protocol.value());
        w.u8(fit8(self.spi.len(), Part::Proposal)?);
        w.u8(fit8(self.transforms.len(), Part::Proposal)?);
        w.bytes(&self.spi);
        let mut last_at = None;
        for transform in &self.transforms {
            let at = w.len();
            last_at = Some(at);
            w.u8(3);
            w.u8(0);
            w.u16(0);
            transform.write(w)?;
            w.set_len16(at.saturating_add(2), at, Part::Transform)?;
        }
        if let Some(at) = last_at {
            w.set_u8(at, 0);
        }
        Ok(())
    }
}

impl Transform {
    /// A transform without attributes.
    pub fn new(id: TransformId) -> Self {
        Self { id, attributes: Vec::new() }
    }

    /// An encryption algorithm, with a key length in bits where it has several.
    pub fn encr(id: EncrId, key_bits: Option<u16>) -> Self {
        let attributes = key_bits.map(Attribute::KeyLength).into_iter().collect();
        Self { id: TransformId::Encr(id), attributes }
    }

    /// A pseudo-random function.
    pub fn prf(id: PrfId) -> Self {
        Self::new(TransformId::Prf(id))
    }

    /// An integrity algorithm.
    pub fn integ(id: IntegId) -> Self {
        Self::new(TransformId::Integ(id))
    }

    /// A key exchange method.
    pub fn ke(method: KeMethod) -> Self {
        Self::new(TransformId::Ke(method))
    }

    /// Extended sequence numbers or none.
    pub fn esn(id: EsnId) -> Self {
        Self::new(TransformId::Esn(id))
    }

    /// An additional key exchange method in slot 1 to 7 (RFC 9370).
    pub fn add_ke(slot: u8, method: KeMethod) -> Self {
        Self::new(TransformId::AddKe { slot, method })
    }

    /// The transform's type.
    pub fn kind(&self) -> TransformType {
        self.id.kind()
    }

    /// The key length in bits, when there is exactly that one attribute.
    pub fn key_bits(&self) -> Option<u16> {
        match self.attributes.as_slice() {
            [Attribute::KeyLength(bits)] => Some(*bits),
            _ => None,
        }
    }

    /// Whether it has an attribute other than a key length: such a transform must not be chosen by
    /// who does not know it (RFC 7296 3.3.6).
    pub fn has_unknown_attributes(&self) -> bool {
        self.attributes.iter().any(|attribute| !matches!(attribute, Attribute::KeyLength(_)))
    }

    fn parse(mut r: Reader<'_>) -> Result<Self, WireError> {
        let kind = r.u8()?;
        r.u8()?; // reserved
        let id = TransformId::from_wire(kind, r.u16()?);
        let mut attributes = Vec::new();
        while !r.is_empty() {
            if attributes.len() == MAX_ATTRIBUTES {
                return Err(WireError::TooMany { part: Part::Attribute, limit: MAX_ATTRIBUTES });
            }
            attributes.push(Attribute::parse(&mut r)?);
        }
        Ok(Self { id, attributes })
    }

    fn write(&self, w: &mut Writer) -> Result<(), WireError> {
        if self.attributes.len() > MAX_ATTRIBUTES {
            return Err(WireError::TooMany { part: Part::Attribute, limit: MAX_ATTRIBUTES });
        }
        if matches!(self.id, TransformId::AddKe { slot, .. } if !(1..=7).contains(&slot)) {
            return Err(WireError::Invalid { part: Part::Transform, field: Field::AddKe, at: 0 });
        }
        w.u8(self.id.kind().value());
        w.u8(0);
        w.u16(self.id.number());
        self.attributes.iter().try_for_each(|attribute| attribute.write(w))
    }
}

impl TransformId {
    /// The transform's type.
    pub fn kind(self) -> TransformType {
        match self {
            Self::Encr(_) => TransformType::Encr,
            Self::Prf(_) => TransformType::Prf,
            Self::Integ(_) => TransformType::Integ,
            Self::Ke(_) => TransformType::Ke,
            Self::Esn(_) => TransformType::Esn,
            // RFC 9370 4: ADDKE1 is type 6.
            Self::AddKe { slot, .. } => TransformType::from(slot.saturating_add(5)),
            Self::Unknown { kind, .. } => TransformType::from(kind),
        }
    }

    /// The transform's number within its type.
    pub fn number(self) -> u16 {
        match self {
            Self::Encr(id) => id.value(),
            Self::Prf(id) => id.value(),
            Self::Integ(id) => id.value(),
            Self::Ke(method) | Self::AddKe { method, .. } => method.value(),
            Self::Esn(id) => id.value(),
            Self::Unknown { id, .. } => id,
        }
    }

    /// The transform of a type and number.
    pub fn from_wire(kind: u8, id: u16) -> Self {
        match kind {
            1 => Self::Encr(id.into()),
            2 => Self::Prf(id.into()),
            3 => Self::Integ(id.into()),
            4 => Self::Ke(id.into()),
            5 => Self::Esn(id.into()),
            6..=12 => Self::AddKe { slot: kind.saturating_sub(5), method: id.into() },
            _ => Self::Unknown { kind, id },
        }
    }
}

impl Attribute {
    fn parse(r: &mut Reader<'_>) -> Result<Self, WireError> {
        let head = r.u16()?;
        let second = r.u16()?;
        let kind = head & !FORMAT_TV;
        Ok(match (head & FORMAT_TV != 0, kind) {
            (true, KEY_LENGTH) => Self::KeyLength(second),
            (true, kind) => Self::Tv { kind, value: second },
            (false, kind) => {
                let value = r.sub(usize::from(second), Part::Attribute)?.rest().to_vec();
                Self::Tlv { kind, value }
            }
        })
    }

    fn write(&self, w: &mut Writer) -> Result<(), WireError> {
        let (Self::Tv { kind, .. } | Self::Tlv { kind, .. }) = self else {
            if let Self::KeyLength(bits) = self {
                w.u16(FORMAT_TV | KEY_LENGTH);
                w.u16(*bits);
            }
            return Ok(());
        };
        if *kind & FORMAT_TV != 0 {
            let (part, field) = (Part::Attribute, Field::AttributeType);
            return Err(WireError::Invalid { part, field, at: 0 });
        }
        match self {
            Self::Tv { value, .. } => {
                w.u16(FORMAT_TV | kind);
                w.u16(*value);
            }
            Self::Tlv { value, .. } => {
                w.u16(*kind);
                w.u16(super::writer::fit16(value.len(), Part::Attribute)?);
                w.bytes(value);
            }
            Self::KeyLength(_) => {}
        }
        Ok(())
    }
}

/// Whether the marker `more` says that nothing follows, which must be true of `r`.
fn is_last(r: &Reader<'_>, more: u8, marker: u8, part: Part) -> Result<bool, WireError> {
    let last = match more {
        0 => true,
        m if m == marker => false,
        _ => return Err(WireError::Invalid { part, field: Field::More, at: r.at() }),
    };
    if last != r.is_empty() {
        return Err(WireError::Invalid { part, field: Field::More, at: r.at() });
    }
    Ok(last)
}

impl std::fmt::Display for TransformId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Encr(id) => write!(f, "{id}"),
            Self::Prf(id) => write!(f, "PRF_{id}"),
            Self::Integ(id) => write!(f, "{id}"),
            Self::Ke(method) => write!(f, "{method}"),
            Self::Esn(id) => write!(f, "{id}"),
            Self::AddKe { slot, method } => write!(f, "KE{slot}_{method}"),
            Self::Unknown { kind, id } => write!(f, "{kind}:{id}"),
        }
    }
}

/// `AES_CBC-256`, or `?` after the name when there are attributes that mean nothing here.
impl std::fmt::Display for Transform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.id)?;
        for attribute in &self.attributes {
            match attribute {
                Attribute::KeyLength(bits) => write!(f, "-{bits}")?,
                Attribute::Tv { .. } | Attribute::Tlv { .. } => f.write_str("?")?,
            }
        }
        Ok(())
    }
}

/// `IKE:AES_GCM_16-256/PRF_HMAC_SHA2_256/CURVE25519`.
impl std::fmt::Display for Proposal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:", self.protocol)?;
        for (index, transform) in self.transforms.iter().enumerate() {
            write!(f, "{}{transform}", if index == 0 { "" } else { "/" })?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "sa_tests.rs"]
mod tests;
