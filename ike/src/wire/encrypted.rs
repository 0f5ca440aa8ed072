//! Encrypted payload (RFC 7296 3.14, RFC 5282 for AEAD): framing and padding around a cipher that
//! comes from outside.
//!
//! Nothing before [`Frame::open`] succeeds is authenticated: every error up to there means that
//! the datagram is dropped without an answer (RFC 7296 2.21.2, 2.4).

use zeroize::Zeroizing;

use super::chain::RawChain;
use super::writer::fit16;
use super::{Field, HEADER_LEN, Header, Part, PayloadType, Payloads, Reader, WireError, Writer};

/// Length of a generic payload header.
pub(super) const GENERIC_LEN: usize = 4;
/// Length of the fragment number and total of an Encrypted Fragment payload (RFC 7383 2.5).
pub(super) const FRAGMENT_FIELDS_LEN: usize = 4;

/// A cipher refused or failed. Deliberately says nothing more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cipher failed")]
pub struct CipherError;

/// What protects one direction of an IKE SA. Both AEAD and encrypt-then-MAC fit:
///
/// - an AEAD authenticates `aad` and the ciphertext (RFC 5282 5.1), and uses `iv` in its nonce;
/// - a MAC covers `aad`, `iv` and the ciphertext, which together are the message from its first
///   octet to the last one before the ICV (RFC 7296 3.14).
pub trait SkCipher {
    /// Length of the IV on the wire in octets.
    fn iv_len(&self) -> usize;

    /// Length of the integrity check value in octets.
    fn icv_len(&self) -> usize;

    /// The ciphertext's length is a multiple of this: 1 for AEAD and counter modes, at most 256.
    fn block_len(&self) -> usize;

    /// Encrypts `buffer` in place and fills `icv`, which has [`SkCipher::icv_len`] octets.
    ///
    /// # Errors
    /// When the cipher cannot be used with these lengths.
    fn seal(
        &self,
        aad: &[u8],
        iv: &[u8],
        buffer: &mut [u8],
        icv: &mut [u8],
    ) -> Result<(), CipherError>;

    /// Verifies `icv` in constant time, then decrypts `buffer` in place.
    ///
    /// # Errors
    /// When the check fails; `buffer` is then meaningless.
    fn open(&self, aad: &[u8], iv: &[u8], buffer: &mut [u8], icv: &[u8])
    -> Result<(), CipherError>;
}

/// Octets that were encrypted: erased when dropped; `Debug` prints their length.
#[derive(Clone, PartialEq, Eq)]
pub struct Plaintext(pub(super) Zeroizing<Vec<u8>>);

impl Plaintext {
    /// The octets: an encoded chain of payloads.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for Plaintext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Plaintext({} octets)", self.0.len())
    }
}

/// An Encrypted payload that was not opened.
#[derive(Clone, PartialEq, Eq)]
pub struct EncryptedPayload {
    /// Type of the first payload inside; none for an empty message.
    pub first_inner: PayloadType,
    /// IV, ciphertext and ICV.
    pub body: Vec<u8>,
}

/// An Encrypted Fragment payload that was not opened (RFC 7383 2.5).
#[derive(Clone, PartialEq, Eq)]
pub struct EncryptedFragment {
    /// Type of the first payload inside; none in all fragments but the first.
    pub first_inner: PayloadType,
    /// Number, counting from 1.
    pub number: u16,
    /// How many fragments the message has.
    pub total: u16,
    /// IV, ciphertext and ICV.
    pub body: Vec<u8>,
}

impl EncryptedFragment {
    pub(super) fn parse(mut r: Reader<'_>, first_inner: PayloadType) -> Result<Self, WireError> {
        let (number, total) = fragment_fields(&mut r)?;
        Ok(Self { first_inner, number, total, body: r.rest().to_vec() })
    }
}

impl std::fmt::Debug for EncryptedPayload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EncryptedPayload")
            .field("first_inner", &self.first_inner)
            .field("octets", &self.body.len())
            .finish()
    }
}

impl std::fmt::Debug for EncryptedFragment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EncryptedFragment")
            .field("first_inner", &self.first_inner)
            .field("number", &self.number)
            .field("total", &self.total)
            .field("octets", &self.body.len())
            .finish()
    }
}

/// The parts of a datagram that ends in an Encrypted or Encrypted Fragment payload. Nothing is
/// authenticated yet.
#[derive(Debug, Clone, Copy)]
pub struct Frame<'a> {
    header: Header,
    kind: PayloadType,
    first_inner: PayloadType,
    fragment: Option<(u16, u16)>,
    aad: &'a [u8],
    body: &'a [u8],
}

impl<'a> Frame<'a> {
    /// Finds the Encrypted payload of a datagram; payloads before it are skipped unread.
    ///
    /// # Errors
    /// Those of [`Header::parse`] and of the payload headers; [`WireError::Missing`] when there is
    /// no Encrypted payload.
    pub fn locate(datagram: &'a [u8]) -> Result<Self, WireError> {
        let header = Header::parse(datagram)?;
        let chain = datagram.get(HEADER_LEN..).unwrap_or_default();
        for raw in RawChain::new(header.next_payload, chain, HEADER_LEN) {
            let raw = raw?;
            if !matches!(raw.kind, PayloadType::Sk | PayloadType::Skf) {
                continue;
            }
            let mut r = Reader::new(raw.body, Part::Payload(raw.kind), raw.at);
            let fragment = match raw.kind {
                PayloadType::Skf => Some(fragment_fields(&mut r)?),
                _ => None,
            };
            let aad = datagram.get(..r.at()).unwrap_or_default();
            let (kind, first_inner) = (raw.kind, raw.next);
            return Ok(Self { header, kind, first_inner, fragment, aad, body: r.rest() });
        }
        Err(WireError::Missing { payload: PayloadType::Sk })
    }

    /// The message's header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Number and total of an Encrypted Fragment payload.
    pub fn fragment(&self) -> Option<(u16, u16)> {
        self.fragment
    }

    /// Type of the first payload inside.
    pub fn first_inner(&self) -> PayloadType {
        self.first_inner
    }

    /// The octets from the message's first one to the last one before the IV.
    pub fn aad(&self) -> &'a [u8] {
        self.aad
    }

    /// IV, ciphertext and ICV.
    pub fn body(&self) -> &'a [u8] {
        self.body
    }

    /// Verifies and decrypts the payload, and removes its padding.
    ///
    /// # Errors
    /// [`WireError::Integrity`] when the check fails, others when lengths are impossible.
    pub fn open(&self, cipher: &dyn SkCipher) -> Result<Opened, WireError> {
        let part = Part::Payload(self.kind);
        let mut r = Reader::new(self.body, part, self.aad.len());
        let iv = r.take(cipher.iv_len())?;
        let at = r.at();
        let Some(length) = r.remaining().checked_sub(cipher.icv_len()) else {
            let missing = cipher.icv_len().saturating_sub(r.remaining());
            return Err(WireError::Truncated { part, at, missing });
        };
        // At least the pad length octet is encrypted.
        if length == 0 || length.checked_rem(cipher.block_len()) != Some(0) {
            return Err(WireError::Invalid { part, field: Field::Length, at });
        }
        let mut buffer = Zeroizing::new(r.take(length)?.to_vec());
        let icv = r.rest();
        cipher.open(self.aad, iv, &mut buffer, icv).map_err(|_| WireError::Integrity)?;
        unpad(&mut buffer)?;
        Ok(Opened {
            header: self.header,
            first_inner: self.first_inner,
            plaintext: Plaintext(buffer),
            front: self.fragment.is_none().then(|| self.aad.to_vec()),
        })
    }
}

/// What an Encrypted payload held, authenticated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    /// The message's header; of the first fragment when it came in fragments.
    pub header: Header,
    /// Type of the first payload inside.
    pub first_inner: PayloadType,
    /// The payloads inside, encoded, without padding.
    pub plaintext: Plaintext,
    /// The octets in front of the IV as they came, when the message came whole.
    pub(super) front: Option<Vec<u8>>,
}

impl Opened {
    /// What AUTH covers of this message when it is an IKE_INTERMEDIATE (RFC 9242 3.3.2), as
    /// [`int_auth_octets`], but made of the octets that came: reserved bits and payloads in front
    /// of the Encrypted payload included.
    ///
    /// # Errors
    /// [`WireError::TooLong`] when the lengths do not fit.
    pub fn int_auth(&self) -> Result<Vec<u8>, WireError> {
        let plaintext = self.plaintext.as_bytes();
        let Some(front) = &self.front else {
            return int_auth_octets(&self.header, self.first_inner, plaintext);
        };
        let part = Part::Payload(PayloadType::Sk);
        let payload = fit16(plaintext.len().saturating_add(GENERIC_LEN), part)?;
        let length = front.len().saturating_add(plaintext.len());
        let limit = usize::from(u16::MAX);
        let length32 =
            u32::try_from(length).map_err(|_| WireError::TooLong { part, length, limit })?;
        let mut out = front.clone();
        // The header's length is its last field, and so is the Encrypted payload's.
        let fields =
            [(HEADER_LEN, &length32.to_be_bytes()[..]), (front.len(), &payload.to_be_bytes()[..])];
        for (end, value) in fields {
            let place = end.checked_sub(value.len()).and_then(|start| out.get_mut(start..end));
            if let Some(place) = place {
                place.copy_from_slice(value);
            }
        }
        out.extend_from_slice(plaintext);
        Ok(out)
    }

    /// Parses the payloads inside.
    ///
    /// # Errors
    /// Those of [`Payloads::parse`]; the peer made them, so its request is answered with
    /// [`WireError::notify`].
    pub fn payloads(&self) -> Result<Payloads, WireError> {
        Payloads::parse(self.first_inner, self.plaintext.as_bytes())
    }
}

/// Opens a datagram that holds an Encrypted payload; fragments go to a
/// [`Reassembler`](super::Reassembler).
///
/// # Errors
/// Those of [`Frame::locate`] and [`Frame::open`]; [`WireError::Misplaced`] for a fragment.
pub fn open(datagram: &[u8], cipher: &dyn SkCipher) -> Result<Opened, WireError> {
    let frame = Frame::locate(datagram)?;
    if frame.fragment.is_some() {
        return Err(WireError::Misplaced { payload: PayloadType::Skf });
    }
    frame.open(cipher)
}

/// Encodes payloads inside an Encrypted payload. `fill_iv` must never give the same IV twice under
/// one key.
///
/// # Errors
/// Those of [`Payloads::encode`]; [`WireError::Integrity`] when the cipher refuses.
pub fn seal(
    header: Header,
    payloads: &Payloads,
    cipher: &dyn SkCipher,
    fill_iv: &mut dyn FnMut(&mut [u8]),
) -> Result<Vec<u8>, WireError> {
    let (first_inner, plaintext) = payloads.encode()?;
    seal_plaintext(header, first_inner, &Zeroizing::new(plaintext), cipher, fill_iv)
}

/// The same for payloads that are encoded already.
///
/// # Errors
/// [`WireError::TooLong`] when they do not fit one message.
pub fn seal_plaintext(
    header: Header,
    first_inner: PayloadType,
    plaintext: &[u8],
    cipher: &dyn SkCipher,
    fill_iv: &mut dyn FnMut(&mut [u8]),
) -> Result<Vec<u8>, WireError> {
    seal_part(header, first_inner, None, plaintext, cipher, fill_iv)
}

/// Encodes a whole message or a fragment of one.
pub(super) fn seal_part(
    header: Header,
    first_inner: PayloadType,
    fragment: Option<(u16, u16)>,
    plaintext: &[u8],
    cipher: &dyn SkCipher,
    fill_iv: &mut dyn FnMut(&mut [u8]),
) -> Result<Vec<u8>, WireError> {
    let (kind, fields_len) = match fragment {
        None => (PayloadType::Sk, 0),
        Some(_) => (PayloadType::Skf, FRAGMENT_FIELDS_LEN),
    };
    let part = Part::Payload(kind);
    let too_long = |length| WireError::TooLong { part, length, limit: usize::from(u16::MAX) };
    let (iv_len, icv_len) = (cipher.iv_len(), cipher.icv_len());
    let (padded, pad_len) = padding(plaintext.len(), cipher.block_len())?;
    let payload_len = [GENERIC_LEN, fields_len, iv_len, padded, icv_len]
        .into_iter()
        .fold(0, usize::saturating_add);
    let payload_len16 = fit16(payload_len, part)?;
    let length = payload_len.saturating_add(HEADER_LEN);

    let mut w = Writer::with_capacity(length);
    let length32 = u32::try_from(length).map_err(|_| too_long(length))?;
    Header { next_payload: kind, length: length32, ..header }.write(&mut w);
    w.u8(first_inner.value());
    w.u8(0);
    w.u16(payload_len16);
    if let Some((number, total)) = fragment {
        w.u16(number);
        w.u16(total);
    }
    let aad_len = w.len();
    // Encrypted where it stands. What fails in between is wiped.
    let mut out = Zeroizing::new(w.into_vec());
    out.resize(length, 0);
    let (aad, rest) = out.split_at_mut_checked(aad_len).ok_or_else(|| too_long(length))?;
    let (iv, rest) = rest.split_at_mut_checked(iv_len).ok_or_else(|| too_long(length))?;
    let (body, icv) = rest.split_at_mut_checked(padded).ok_or_else(|| too_long(length))?;
    fill_iv(iv);
    if let Some(start) = body.get_mut(..plaintext.len()) {
        start.copy_from_slice(plaintext);
    }
    if let Some(last) = body.last_mut() {
        *last = pad_len;
    }
    cipher.seal(aad, iv, body, icv).map_err(|_| WireError::Integrity)?;
    Ok(std::mem::take(&mut *out))
}

/// The octets `IntAuth_A | IntAuth_P` of RFC 9242 3.3.2, which the AUTH payload covers for every
/// IKE_INTERMEDIATE message: header and Encrypted payload header with their lengths adjusted to a
/// message without IV, padding and ICV, then the payloads inside. For a message that came in
/// fragments they are those of the message before it was split.
///
/// # Errors
/// [`WireError::TooLong`] when the lengths do not fit.
pub fn int_auth_octets(
    header: &Header,
    first_inner: PayloadType,
    plaintext: &[u8],
) -> Result<Vec<u8>, WireError> {
    let part = Part::Payload(PayloadType::Sk);
    let payload_len = fit16(plaintext.len().saturating_add(GENERIC_LEN), part)?;
    let header_len = u32::try_from(HEADER_LEN).unwrap_or_default();
    let length = u32::from(payload_len).saturating_add(header_len);
    let mut w = Writer::new();
    Header { next_payload: PayloadType::Sk, length, ..*header }.write(&mut w);
    w.u8(first_inner.value());
    w.u8(0);
    w.u16(payload_len);
    w.bytes(plaintext);
    Ok(w.into_vec())
}

fn fragment_fields(r: &mut Reader<'_>) -> Result<(u16, u16), WireError> {
    let wrong = r.invalid(Field::FragmentNumber);
    let (number, total) = (r.u16()?, r.u16()?);
    // RFC 7383 2.5: both count from 1.
    if number == 0 || number > total { Err(wrong) } else { Ok((number, total)) }
}

/// The length with padding and the pad length octet, a multiple of `block`, and the length of the
/// padding.
fn padding(length: usize, block: usize) -> Result<(usize, u8), WireError> {
    let wrong = WireError::Invalid { part: Part::Padding, field: Field::Length, at: length };
    let with_octet = length.saturating_add(1);
    let padded = with_octet.checked_next_multiple_of(block).ok_or(wrong)?;
    let pad_len = u8::try_from(padded.saturating_sub(with_octet)).map_err(|_| wrong)?;
    Ok((padded, pad_len))
}

/// Removes padding of any content and the pad length octet.
fn unpad(buffer: &mut Vec<u8>) -> Result<(), WireError> {
    let at = buffer.len().saturating_sub(1);
    let wrong = WireError::Invalid { part: Part::Padding, field: Field::Length, at };
    let pad_len = usize::from(buffer.pop().ok_or(wrong)?);
    let length = buffer.len().checked_sub(pad_len).ok_or(wrong)?;
    buffer.truncate(length);
    Ok(())
}
