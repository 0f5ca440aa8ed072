//! The TLS octets of an EAP-TLS conversation (RFC 5216 2.1.5, 3.1), the same for either side:
//! flags, lengths, fragments and their bounds.

use super::{EapError, FRAGMENT, LENGTH, MAX_TLS, MORE};

/// What is on its way, in both directions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Stream {
    /// What is being sent, and how much of it is.
    out: Vec<u8>,
    sent: usize,
    /// What has come of the other side's messages, and how much it announced.
    pub(super) inbound: Vec<u8>,
    announced: Option<usize>,
}

/// What an EAP-TLS packet holds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Packet<'a> {
    pub(super) flags: u8,
    announced: Option<usize>,
    pub(super) data: &'a [u8],
}

impl<'a> Packet<'a> {
    pub(super) fn parse(octets: &'a [u8]) -> Result<Self, EapError> {
        // An acknowledgement may leave the flags out.
        let (flags, data) = match octets.split_first() {
            Some((flags, data)) => (*flags, data),
            None => (0, &[][..]),
        };
        if flags & LENGTH == 0 {
            return Ok(Self { flags, announced: None, data });
        }
        let (length, data) = data.split_first_chunk().ok_or(EapError::Malformed)?;
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        Ok(Self { flags, announced: Some(length), data })
    }

    /// It acknowledges a fragment, or says nothing.
    pub(super) fn is_empty(&self) -> bool {
        self.data.is_empty() && self.flags & (MORE | LENGTH) == 0
    }
}

impl Stream {
    /// Begins to send.
    pub(super) fn send(&mut self, tls: Vec<u8>) -> Result<(), EapError> {
        if tls.len() > MAX_TLS {
            return Err(EapError::TooLong);
        }
        self.out = tls;
        self.sent = 0;
        Ok(())
    }

    /// There are fragments to come of what is being sent.
    pub(super) fn is_sending(&self) -> bool {
        self.sent < self.out.len()
    }

    /// The next fragment's packet.
    pub(super) fn next(&mut self) -> Vec<u8> {
        let rest = self.out.get(self.sent..).unwrap_or_default();
        let (part, more) = match rest.split_at_checked(FRAGMENT) {
            Some((part, [_, ..])) => (part, true),
            _ => (rest, false),
        };
        let first = self.sent == 0;
        let mut data = vec![if more { MORE } else { 0 }];
        if more && first {
            // RFC 5216 3.1: the first fragment names the length of all.
            let length = u32::try_from(self.out.len()).unwrap_or(u32::MAX);
            data = vec![MORE | LENGTH];
            data.extend_from_slice(&length.to_be_bytes());
        }
        data.extend_from_slice(part);
        self.sent = self.sent.saturating_add(part.len());
        data
    }

    /// One fragment of the other side's messages: all of them with the last one, `None` before.
    pub(super) fn collect(&mut self, packet: Packet<'_>) -> Result<Option<Vec<u8>>, EapError> {
        let Packet { flags, announced, data } = packet;
        if let Some(length) = announced {
            if length > MAX_TLS {
                return Err(EapError::TooLong);
            }
            if self.announced.is_some_and(|before| before != length) {
                return Err(EapError::Malformed);
            }
            self.announced = Some(length);
        }
        let total = self.inbound.len().saturating_add(data.len());
        if total > MAX_TLS {
            return Err(EapError::TooLong);
        }
        if self.announced.is_some_and(|announced| total > announced) {
            return Err(EapError::Malformed);
        }
        self.inbound.extend_from_slice(data);
        if flags & MORE != 0 {
            // A fragment without octets would be acknowledged for ever.
            return if data.is_empty() { Err(EapError::Malformed) } else { Ok(None) };
        }
        // TLS says something or is silent; to a client nothing would mean the beginning.
        if total == 0 {
            return Err(EapError::Malformed);
        }
        if self.announced.take().is_some_and(|announced| announced != total) {
            return Err(EapError::Malformed);
        }
        Ok(Some(std::mem::take(&mut self.inbound)))
    }
}
