//! What can be wrong with a message, where, and which notify tells the peer.

use super::{NotifyType, PayloadType};

/// The structure in which an error was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The 28-byte IKE header (RFC 7296 3.1).
    Header,
    /// A generic payload header (RFC 7296 3.2).
    GenericHeader,
    /// The body of a payload.
    Payload(PayloadType),
    /// A proposal substructure (RFC 7296 3.3.1).
    Proposal,
    /// A transform substructure (RFC 7296 3.3.2).
    Transform,
    /// A transform attribute (RFC 7296 3.3.5).
    Attribute,
    /// A traffic selector substructure (RFC 7296 3.13.1).
    Selector,
    /// A configuration attribute (RFC 7296 3.15.1).
    CfgAttribute,
    /// The data of a notification of this type.
    Notify(NotifyType),
    /// The body of a digital signature (RFC 7427 3).
    Signature,
    /// The padding inside an Encrypted payload (RFC 7296 3.14).
    Padding,
    /// The whole message.
    Message,
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Header => f.write_str("IKE header"),
            Self::GenericHeader => f.write_str("payload header"),
            Self::Payload(kind) => write!(f, "{kind} payload"),
            Self::Proposal => f.write_str("proposal"),
            Self::Transform => f.write_str("transform"),
            Self::Attribute => f.write_str("transform attribute"),
            Self::Selector => f.write_str("traffic selector"),
            Self::CfgAttribute => f.write_str("configuration attribute"),
            Self::Notify(kind) => write!(f, "{kind} notification data"),
            Self::Signature => f.write_str("digital signature"),
            Self::Padding => f.write_str("padding"),
            Self::Message => f.write_str("message"),
        }
    }
}

/// The field whose value contradicts the specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// A length field that contradicts its structure.
    Length,
    /// An SPI that must not be zero.
    Spi,
    /// An SPI size that the protocol does not have.
    SpiSize,
    /// The "last substructure" octet contradicts what follows.
    More,
    /// A count that contradicts what follows.
    Count,
    /// A range whose start lies after its end.
    Range,
    /// A nonce outside 16 to 256 octets.
    Nonce,
    /// An address whose length its type does not have.
    Address,
    /// A list whose length is no multiple of its element.
    List,
    /// A fragment number outside 1 to the total.
    FragmentNumber,
    /// A fragment that does not belong to the message being reassembled.
    FragmentHeader,
    /// An ADDKE slot outside 1 to 7.
    AddKe,
    /// An identity type of a REDIRECT gateway that is not defined.
    GatewayType,
    /// The length of the ASN.1 algorithm identifier.
    Algorithm,
    /// A configuration attribute type beyond 15 bits.
    AttributeType,
}

impl std::fmt::Display for Field {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Length => "length",
            Self::Spi => "SPI",
            Self::SpiSize => "SPI size",
            Self::More => "more/last marker",
            Self::Count => "count",
            Self::Range => "range",
            Self::Nonce => "nonce length",
            Self::Address => "address length",
            Self::List => "list length",
            Self::FragmentNumber => "fragment number",
            Self::FragmentHeader => "fragment header",
            Self::AddKe => "additional key exchange number",
            Self::GatewayType => "gateway identity type",
            Self::Algorithm => "algorithm identifier length",
            Self::AttributeType => "attribute type",
        })
    }
}

/// Why bytes are not a message, or a message not bytes. Offsets count from the datagram's start,
/// or from the start of the decrypted payload chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The data ends inside a structure.
    #[error("{part} ends at offset {at}, {missing} octets short")]
    Truncated {
        /// The structure.
        part: Part,
        /// Where the missing field begins.
        at: usize,
        /// How many octets are missing.
        missing: usize,
    },
    /// Octets follow where the structure should end.
    #[error("{extra} octets too many in {part} at offset {at}")]
    Trailing {
        /// The structure.
        part: Part,
        /// Where the surplus begins.
        at: usize,
        /// How many octets are too many.
        extra: usize,
    },
    /// The header's length is not the datagram's (RFC 7296 3.1).
    #[error("header says {header} octets, datagram has {datagram}")]
    DatagramLength {
        /// The header's length field.
        header: u32,
        /// The datagram's length.
        datagram: usize,
    },
    /// A field's value contradicts the specification.
    #[error("bad {field} in {part} at offset {at}")]
    Invalid {
        /// The structure.
        part: Part,
        /// The field.
        field: Field,
        /// Where the structure or field lies.
        at: usize,
    },
    /// The major version is not 2 (RFC 7296 2.5).
    #[error("major version {major}")]
    MajorVersion {
        /// The peer's major version.
        major: u8,
    },
    /// More elements than this implementation accepts.
    #[error("more than {limit} elements of {part}")]
    TooMany {
        /// The element counted.
        part: Part,
        /// The limit.
        limit: usize,
    },
    /// An element larger than this implementation accepts, or than its length field can say.
    #[error("{part} of {length} octets exceeds {limit}")]
    TooLong {
        /// The structure.
        part: Part,
        /// Its length.
        length: usize,
        /// The limit.
        limit: usize,
    },
    /// A payload occurs twice that may occur once.
    #[error("second {payload} payload")]
    Duplicate {
        /// The payload.
        payload: PayloadType,
    },
    /// A payload stands where it must not: an Encrypted payload inside another, or not last.
    #[error("{payload} payload out of place")]
    Misplaced {
        /// The payload.
        payload: PayloadType,
    },
    /// A payload of unknown type has its critical bit set (RFC 7296 2.5).
    #[error("unsupported critical payload {payload}")]
    UnsupportedCritical {
        /// The payload.
        payload: PayloadType,
    },
    /// A payload that the operation needs is absent.
    #[error("{payload} payload missing")]
    Missing {
        /// The payload.
        payload: PayloadType,
    },
    /// The integrity check failed, or the cipher refused: the octets prove nothing.
    #[error("integrity check failed")]
    Integrity,
    /// The datagram limit leaves no room for content.
    #[error("datagrams of {limit} octets leave no room")]
    NoRoom {
        /// The limit asked for.
        limit: usize,
    },
}

/// The notification that tells a peer about a [`WireError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorNotify {
    /// INVALID_SYNTAX: only inside a cryptographically protected response (RFC 7296 3.10.1).
    InvalidSyntax,
    /// UNSUPPORTED_CRITICAL_PAYLOAD with the payload's type.
    UnsupportedCriticalPayload(PayloadType),
    /// INVALID_MAJOR_VERSION.
    InvalidMajorVersion,
}

impl WireError {
    /// The notification that answers this error, or none where RFC 7296 wants silence or where
    /// the fault is ours.
    pub fn notify(&self) -> Option<ErrorNotify> {
        match self {
            Self::UnsupportedCritical { payload } => {
                Some(ErrorNotify::UnsupportedCriticalPayload(*payload))
            }
            // RFC 7296 2.5: only a higher major version is answered.
            Self::MajorVersion { major } if *major > 2 => Some(ErrorNotify::InvalidMajorVersion),
            Self::MajorVersion { .. } | Self::Integrity | Self::NoRoom { .. } => None,
            // The UDP length disagrees with the header: nothing in it can be trusted.
            Self::DatagramLength { .. } => None,
            Self::Truncated { .. }
            | Self::Trailing { .. }
            | Self::Invalid { .. }
            | Self::TooMany { .. }
            | Self::TooLong { .. }
            | Self::Duplicate { .. }
            | Self::Misplaced { .. }
            | Self::Missing { .. } => Some(ErrorNotify::InvalidSyntax),
        }
    }
}

impl ErrorNotify {
    /// The notify type.
    pub fn kind(&self) -> NotifyType {
        match self {
            Self::InvalidSyntax => NotifyType::InvalidSyntax,
            Self::UnsupportedCriticalPayload(_) => NotifyType::UnsupportedCriticalPayload,
            Self::InvalidMajorVersion => NotifyType::InvalidMajorVersion,
        }
    }
}
