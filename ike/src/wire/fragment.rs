//! IKE fragmentation (RFC 7383): splitting a message over Encrypted Fragment payloads and putting
//! it together again.

use std::collections::BTreeMap;

use zeroize::Zeroizing;

use super::encrypted::{FRAGMENT_FIELDS_LEN, GENERIC_LEN, seal_part};
use super::{
    ExchangeType, Field, Flags, Frame, HEADER_LEN, Header, IkeSpi, Opened, Part, PayloadType,
    Plaintext, SkCipher, WireError,
};

const PART: Part = Part::Payload(PayloadType::Skf);

/// Encodes payloads (`first_inner`, `plaintext`: from [`Payloads::encode`](super::Payloads)) as one
/// message when it has at most `max_len` octets, else as fragments of at most that many, counted
/// from the header's first octet to the ICV's last one. `fill_iv` must never give the same IV twice
/// under one key.
///
/// # Errors
/// [`WireError::NoRoom`] when a fragment could hold nothing, [`WireError::TooMany`] when there would
/// be more than 65535, [`WireError::Integrity`] when the cipher refuses.
pub fn seal_fragments(
    header: Header,
    first_inner: PayloadType,
    plaintext: &[u8],
    max_len: usize,
    cipher: &dyn SkCipher,
    fill_iv: &mut dyn FnMut(&mut [u8]),
) -> Result<Vec<Vec<u8>>, WireError> {
    // RFC 7383 2.5.1: a message is split only when it has to be.
    if room(max_len, 0, cipher).is_some_and(|room| plaintext.len() <= room) {
        let whole = seal_part(header, first_inner, None, plaintext, cipher, fill_iv)?;
        return Ok(vec![whole]);
    }
    let no_room = WireError::NoRoom { limit: max_len };
    let room = room(max_len, FRAGMENT_FIELDS_LEN, cipher).filter(|room| *room > 0);
    let chunks = plaintext.chunks(room.ok_or(no_room)?);
    let limit = usize::from(u16::MAX);
    let total =
        u16::try_from(chunks.len()).map_err(|_| WireError::TooMany { part: PART, limit })?;
    // RFC 7383 2.5: the type of the first payload is told by the first fragment only.
    let first = |number| if number == 1 { first_inner } else { PayloadType::None };
    (1u16..=total)
        .zip(chunks)
        .map(|(number, chunk)| {
            let fragment = Some((number, total));
            seal_part(header, first(number), fragment, chunk, cipher, fill_iv)
        })
        .collect()
}

/// How many octets of payloads fit a message of `max_len` octets, when it can be one at all.
fn room(max_len: usize, fields: usize, cipher: &dyn SkCipher) -> Option<usize> {
    // A payload's length has 16 bits, whatever the datagram could hold.
    let payload_max = max_len.checked_sub(HEADER_LEN)?.min(usize::from(u16::MAX));
    let encrypted = [GENERIC_LEN, fields, cipher.iv_len(), cipher.icv_len()]
        .into_iter()
        .try_fold(payload_max, usize::checked_sub)?;
    let unusable = encrypted.checked_rem(cipher.block_len())?;
    encrypted.checked_sub(unusable)?.checked_sub(1)
}

/// How much one message in fragments may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FragmentLimits {
    /// The most fragments.
    pub fragments: u16,
    /// The most octets of decrypted content in all of them.
    pub bytes: usize,
}

impl Default for FragmentLimits {
    /// 128 fragments (some clients send them as small as 500 octets) and 64 KiB.
    fn default() -> Self {
        Self { fragments: 128, bytes: 64 * 1024 }
    }
}

/// What a fragment did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// It was stored; others are missing.
    Stored {
        /// How many are there.
        have: u16,
        /// How many there will be.
        total: u16,
    },
    /// It is known already, or the message is complete: nothing was decrypted, and so nothing of
    /// the fragment is authenticated.
    Duplicate {
        /// The fragment's number: a responder answers a repeated first one (RFC 7383 2.6.1).
        number: u16,
    },
    /// It belongs to an earlier attempt with fewer fragments (RFC 7383 2.6): nothing was decrypted.
    Superseded,
    /// The message is complete.
    Complete(Opened),
}

/// Puts together the fragments of one message: of one direction, one message ID. Only fragments
/// whose integrity was verified are stored or change anything.
#[derive(Debug, Default)]
pub struct Reassembler {
    limits: FragmentLimits,
    state: State,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Empty,
    Collecting(Collection),
    Done(Identity),
}

/// What all fragments of a message have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    spis: (IkeSpi, IkeSpi),
    exchange: ExchangeType,
    flags: Flags,
    message_id: u32,
}

impl From<&Header> for Identity {
    fn from(header: &Header) -> Self {
        Self {
            spis: (header.spi_i, header.spi_r),
            exchange: header.exchange,
            flags: header.flags,
            message_id: header.message_id,
        }
    }
}

#[derive(Debug)]
struct Collection {
    identity: Identity,
    total: u16,
    bytes: usize,
    fragments: BTreeMap<u16, Opened>,
}

impl Reassembler {
    /// An empty one.
    pub fn new(limits: FragmentLimits) -> Self {
        Self { limits, state: State::Empty }
    }

    /// How many octets of content are stored.
    pub fn stored_bytes(&self) -> usize {
        match &self.state {
            State::Collecting(collection) => collection.bytes,
            State::Empty | State::Done(_) => 0,
        }
    }

    /// Takes a fragment.
    ///
    /// # Errors
    /// [`WireError::Integrity`] when it fails its check, others when it is malformed, exceeds the
    /// limits or is of another message. What was stored stays.
    pub fn insert(
        &mut self,
        frame: &Frame<'_>,
        cipher: &dyn SkCipher,
    ) -> Result<Progress, WireError> {
        let Some((number, total)) = frame.fragment() else {
            return Err(WireError::Misplaced { payload: PayloadType::Sk });
        };
        if total > self.limits.fragments {
            let limit = usize::from(self.limits.fragments);
            return Err(WireError::TooMany { part: PART, limit });
        }
        let identity = Identity::from(frame.header());
        match &self.state {
            State::Empty => {}
            State::Collecting(Collection { identity: ours, .. }) | State::Done(ours)
                if *ours != identity =>
            {
                return Err(WireError::Invalid { part: PART, field: Field::FragmentHeader, at: 0 });
            }
            State::Done(_) => return Ok(Progress::Duplicate { number }),
            State::Collecting(collection) if total < collection.total => {
                return Ok(Progress::Superseded);
            }
            State::Collecting(collection) => {
                if total == collection.total && collection.fragments.contains_key(&number) {
                    return Ok(Progress::Duplicate { number });
                }
            }
        }
        let opened = frame.open(cipher)?;
        self.store(identity, number, total, opened)
    }

    fn store(
        &mut self,
        identity: Identity,
        number: u16,
        total: u16,
        opened: Opened,
    ) -> Result<Progress, WireError> {
        let length = opened.plaintext.as_bytes().len();
        let known = match &self.state {
            State::Collecting(collection) if collection.total == total => collection.bytes,
            _ => 0,
        };
        let bytes = known.saturating_add(length);
        if bytes > self.limits.bytes {
            return Err(WireError::TooLong { part: PART, length: bytes, limit: self.limits.bytes });
        }
        // RFC 7383 2.6: more fragments than before means that the sender split anew, smaller.
        if !matches!(&self.state, State::Collecting(collection) if collection.total == total) {
            let fragments = BTreeMap::new();
            self.state = State::Collecting(Collection { identity, total, bytes: 0, fragments });
        }
        let State::Collecting(collection) = &mut self.state else {
            return Ok(Progress::Superseded);
        };
        collection.bytes = bytes;
        collection.fragments.insert(number, opened);
        let have = u16::try_from(collection.fragments.len()).unwrap_or(u16::MAX);
        if have < total {
            return Ok(Progress::Stored { have, total });
        }
        let complete = collection.join()?;
        self.state = State::Done(identity);
        Ok(Progress::Complete(complete))
    }
}

impl Collection {
    fn join(&self) -> Result<Opened, WireError> {
        let Some(first) = self.fragments.get(&1) else {
            return Err(WireError::Missing { payload: PayloadType::Skf });
        };
        let mut plaintext = Zeroizing::new(Vec::with_capacity(self.bytes));
        for fragment in self.fragments.values() {
            plaintext.extend_from_slice(fragment.plaintext.as_bytes());
        }
        Ok(Opened {
            header: first.header,
            first_inner: first.first_inner,
            plaintext: Plaintext(plaintext),
            front: None,
        })
    }
}
