//! Netlink framing: messages, attributes, and a builder for both.

use std::fmt;

use netlink_packet_core::Emitable;
use zeroize::Zeroizing;

use crate::error::PlaneError;

/// Length of `struct nlmsghdr`.
pub(super) const HEADER_LEN: usize = 16;
/// Length of `struct nlattr`.
const ATTR_HEADER_LEN: usize = 4;
/// The low 14 bits of an attribute's type are its kind.
const ATTR_KIND_MASK: u16 = 0x3fff;
/// Set on attributes that contain attributes.
const ATTR_NESTED: u16 = 0x8000;

const fn align4(length: usize) -> usize {
    (length + 3) & !3
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

/// One netlink message of a datagram.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Message type.
    pub kind: u16,
    /// `NLM_F_*`.
    pub flags: u16,
    /// Sequence number of the request it answers.
    pub sequence: u32,
    /// Port id of the socket it is meant for.
    pub port: u32,
    /// What follows the header.
    pub payload: &'a [u8],
}

impl fmt::Debug for Frame<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Frame(type {}, {} bytes)", self.kind, self.payload.len())
    }
}

/// Splits a datagram into messages; stops after the first malformed one.
#[derive(Debug, Clone)]
pub struct Frames<'a> {
    rest: &'a [u8],
}

impl<'a> Frames<'a> {
    /// Messages of one datagram.
    pub fn new(datagram: &'a [u8]) -> Self {
        Self { rest: datagram }
    }
}

impl<'a> Iterator for Frames<'a> {
    type Item = Result<Frame<'a>, PlaneError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let parsed = parse_frame(self.rest);
        self.rest = match &parsed {
            Some((_, rest)) => rest,
            None => &[],
        };
        Some(match parsed {
            Some((frame, _)) => Ok(frame),
            None => Err(PlaneError::Malformed("header exceeds its datagram".to_owned())),
        })
    }
}

fn parse_frame(bytes: &[u8]) -> Option<(Frame<'_>, &[u8])> {
    let length = usize::try_from(u32_at(bytes, 0)?).ok()?;
    let frame = Frame {
        kind: u16_at(bytes, 4)?,
        flags: u16_at(bytes, 6)?,
        sequence: u32_at(bytes, 8)?,
        port: u32_at(bytes, 12)?,
        payload: bytes.get(HEADER_LEN..length)?,
    };
    // The last message of a datagram may lack its padding.
    let rest = bytes.get(align4(length)..).unwrap_or(&[]);
    Some((frame, rest))
}

/// One attribute.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Attr<'a> {
    /// Its kind, without the nested and byte-order flags.
    pub kind: u16,
    /// Its value.
    pub value: &'a [u8],
}

impl fmt::Debug for Attr<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Attr({}, {} bytes)", self.kind, self.value.len())
    }
}

/// Walks a run of attributes; stops after the first malformed one.
#[derive(Debug, Clone)]
pub struct Attrs<'a> {
    rest: &'a [u8],
}

impl<'a> Attrs<'a> {
    /// Attributes of a message after its fixed part, or of a nested attribute.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The value of the first attribute of a kind.
    ///
    /// # Errors
    /// When an attribute before it is malformed.
    pub fn find_kind(bytes: &'a [u8], kind: u16) -> Result<Option<&'a [u8]>, PlaneError> {
        for attr in Self::new(bytes) {
            let attr = attr?;
            if attr.kind == kind {
                return Ok(Some(attr.value));
            }
        }
        Ok(None)
    }
}

impl<'a> Iterator for Attrs<'a> {
    type Item = Result<Attr<'a>, PlaneError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let parsed = parse_attr(self.rest);
        self.rest = match &parsed {
            Some((_, rest)) => rest,
            None => &[],
        };
        Some(match parsed {
            Some((attr, _)) => Ok(attr),
            None => Err(PlaneError::Malformed("attribute exceeds its message".to_owned())),
        })
    }
}

fn parse_attr(bytes: &[u8]) -> Option<(Attr<'_>, &[u8])> {
    let length = usize::from(u16_at(bytes, 0)?);
    let kind = u16_at(bytes, 2)? & ATTR_KIND_MASK;
    let value = bytes.get(ATTR_HEADER_LEN..length)?;
    Some((Attr { kind, value }, bytes.get(align4(length)..).unwrap_or(&[])))
}

/// The kind of the attribute that starts at an offset of a whole message.
pub(super) fn attr_kind_at(message: &[u8], offset: usize) -> Option<u16> {
    Some(u16_at(message, offset.checked_add(2)?)? & ATTR_KIND_MASK)
}

/// A `u32` in host order.
///
/// # Errors
/// When the value has another length.
pub fn attr_u32(value: &[u8]) -> Result<u32, PlaneError> {
    value.try_into().map(u32::from_ne_bytes).map_err(|_| wrong_length(4, value.len()))
}

/// A `u32` in network order.
///
/// # Errors
/// When the value has another length.
pub fn attr_u32_be(value: &[u8]) -> Result<u32, PlaneError> {
    value.try_into().map(u32::from_be_bytes).map_err(|_| wrong_length(4, value.len()))
}

/// A `u64` in network order.
///
/// # Errors
/// When the value has another length.
pub fn attr_u64_be(value: &[u8]) -> Result<u64, PlaneError> {
    value.try_into().map(u64::from_be_bytes).map_err(|_| wrong_length(8, value.len()))
}

fn wrong_length(wanted: usize, got: usize) -> PlaneError {
    PlaneError::Malformed(format!("attribute of {got} bytes where {wanted} are due"))
}

/// A request under construction: header, fixed part, attributes. Zeroized on drop.
#[derive(Clone, PartialEq, Eq)]
pub struct Message {
    bytes: Zeroizing<Vec<u8>>,
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Message(type {}, {} bytes)", self.kind(), self.bytes.len())
    }
}

impl Message {
    /// A message of a type with `NLM_F_*` flags besides `NLM_F_REQUEST`, and its fixed part.
    pub fn new(kind: u16, flags: u16, fixed: &[u8]) -> Self {
        let mut message = Self::with_capacity(kind, flags, 256);
        message.append(fixed);
        message
    }

    /// A message whose payload one of the packet crates writes. Allocated once, so that keys are
    /// never left behind by a growing buffer.
    pub fn emit(kind: u16, flags: u16, payload: &impl Emitable) -> Self {
        let length = payload.buffer_len();
        let mut message = Self::with_capacity(kind, flags, align4(length));
        message.bytes.resize(HEADER_LEN + length, 0);
        if let Some(space) = message.bytes.get_mut(HEADER_LEN..) {
            payload.emit(space);
        }
        message.pad();
        message
    }

    /// Appends an attribute.
    #[must_use]
    pub fn attr(mut self, kind: u16, value: &[u8]) -> Self {
        self.put_attr(kind, value);
        self
    }

    /// Appends an attribute whose value is a zero-terminated string.
    #[must_use]
    pub fn attr_str(self, kind: u16, value: &str) -> Self {
        let mut bytes = Vec::with_capacity(value.len() + 1);
        bytes.extend_from_slice(value.as_bytes());
        bytes.push(0);
        self.attr(kind, &bytes)
    }

    /// Appends an attribute that contains those the closure appends.
    #[must_use]
    pub fn nest(mut self, kind: u16, inside: impl FnOnce(Self) -> Self) -> Self {
        let start = self.bytes.len();
        self.append_raw(&[0; 2]);
        self.append_raw(&(kind | ATTR_NESTED).to_ne_bytes());
        let mut message = inside(self);
        // Values never reach 64 KiB: messages are built from bounded parts.
        let length = u16::try_from(message.bytes.len() - start).unwrap_or(u16::MAX);
        if let Some(place) = message.bytes.get_mut(start..start + 2) {
            place.copy_from_slice(&length.to_ne_bytes());
        }
        message
    }

    /// Message type.
    pub fn kind(&self) -> u16 {
        u16_at(&self.bytes, 4).unwrap_or_default()
    }

    /// The whole message as it goes out, header included.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Adds flags and sets the sequence number and length, just before sending.
    pub(crate) fn seal(&mut self, flags: u16, sequence: u32) {
        let flags = flags | u16_at(&self.bytes, 6).unwrap_or_default();
        let length = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        if let Some(header) = self.bytes.get_mut(..HEADER_LEN) {
            let (first, rest) = header.split_at_mut(6);
            first[..4].copy_from_slice(&length.to_ne_bytes());
            rest[..2].copy_from_slice(&flags.to_ne_bytes());
            rest[2..6].copy_from_slice(&sequence.to_ne_bytes());
        }
    }

    fn with_capacity(kind: u16, flags: u16, payload: usize) -> Self {
        let mut bytes = Zeroizing::new(Vec::with_capacity(HEADER_LEN + payload));
        bytes.resize(HEADER_LEN, 0);
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        Self { bytes }
    }

    fn put_attr(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(ATTR_HEADER_LEN + value.len()).unwrap_or(u16::MAX);
        self.append_raw(&length.to_ne_bytes());
        self.append_raw(&kind.to_ne_bytes());
        self.append(value);
    }

    fn append(&mut self, bytes: &[u8]) {
        self.append_raw(bytes);
        self.pad();
    }

    fn append_raw(&mut self, bytes: &[u8]) {
        let needed = self.bytes.len() + bytes.len() + 4;
        if needed > self.bytes.capacity() {
            let mut larger = Zeroizing::new(Vec::with_capacity(needed * 2));
            larger.extend_from_slice(&self.bytes);
            // The old buffer is zeroized as it is dropped.
            self.bytes = larger;
        }
        self.bytes.extend_from_slice(bytes);
    }

    fn pad(&mut self) {
        let padded = align4(self.bytes.len());
        self.bytes.resize(padded, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reparse(message: &Message) -> Vec<u8> {
        let mut message = message.clone();
        message.seal(0x5, 7);
        message.bytes().to_vec()
    }

    #[test]
    fn builds_and_parses_nested_attributes() {
        let message = Message::new(0x0a0c, 0x400, &[1, 0, 0, 0])
            .attr_str(1, "runnel")
            .nest(3, |m| m.nest(1, |m| m.attr(1, &[10, 0, 0, 2])))
            .attr(9, &[5]);
        let bytes = reparse(&message);
        let frame = Frames::new(&bytes).next().unwrap().unwrap();
        assert_eq!((frame.kind, frame.flags, frame.sequence), (0x0a0c, 0x405, 7));
        let attrs: Vec<_> = Attrs::new(&frame.payload[4..]).map(Result::unwrap).collect();
        assert_eq!(attrs[0], Attr { kind: 1, value: b"runnel\0" });
        assert_eq!(attrs[1].kind, 3);
        let inner = Attrs::find_kind(attrs[1].value, 1).unwrap().unwrap();
        assert_eq!(Attrs::find_kind(inner, 1).unwrap().unwrap(), [10, 0, 0, 2]);
        assert_eq!(attrs[2], Attr { kind: 9, value: &[5] });
        assert_eq!(attrs.len(), 3);
    }

    #[test]
    fn two_byte_values_are_padded() {
        let message = Message::new(1, 0, &[]).attr(1, &[1, 2]).attr(2, &[3, 4]);
        let kinds: Vec<_> =
            Attrs::new(&message.bytes()[HEADER_LEN..]).map(|a| a.unwrap().value.to_vec()).collect();
        assert_eq!(kinds, [vec![1, 2], vec![3, 4]]);
        assert_eq!(message.bytes().len(), HEADER_LEN + 16);
    }

    #[test]
    fn debug_shows_no_payload() {
        let message = Message::new(0x10, 0, &[0x41; 8]);
        assert_eq!(format!("{message:?}"), "Message(type 16, 24 bytes)");
    }

    #[test]
    fn every_truncation_is_an_error_or_fewer_messages() {
        let mut message = Message::new(2, 0, &[0; 8]).attr(1, b"abc").attr(2, b"defg");
        message.seal(0, 1);
        let whole = message.bytes().to_vec();
        for end in 0..whole.len() {
            for frame in Frames::new(&whole[..end]).flatten() {
                for attr in Attrs::new(&frame.payload[8.min(frame.payload.len())..]) {
                    let _ = attr;
                }
            }
            assert!(Frames::new(&whole[..end]).all(|frame| frame.is_err()), "cut at {end}");
        }
    }

    #[test]
    fn a_length_below_the_header_ends_the_walk() {
        let mut walk = Attrs::new(&[3, 0, 1, 0, 0, 0, 0, 0]);
        assert!(walk.next().unwrap().is_err());
        assert!(walk.next().is_none());
        let mut frames = Frames::new(&[0; 32]);
        assert!(frames.next().unwrap().is_err());
        assert!(frames.next().is_none());
    }
}
