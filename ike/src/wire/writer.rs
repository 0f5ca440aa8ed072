//! Writes big-endian fields and fills in lengths afterwards.

use super::{Part, WireError};

/// An output buffer of IKE structures.
#[derive(Debug, Default)]
pub struct Writer {
    out: Vec<u8>,
}

impl Writer {
    /// An empty buffer.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty buffer with room for so many octets.
    pub(super) fn with_capacity(octets: usize) -> Self {
        Self { out: Vec::with_capacity(octets) }
    }

    /// How many octets are written.
    pub fn len(&self) -> usize {
        self.out.len()
    }

    /// Whether nothing is written.
    pub fn is_empty(&self) -> bool {
        self.out.is_empty()
    }

    /// Appends one octet.
    pub fn u8(&mut self, value: u8) {
        self.out.push(value);
    }

    /// Appends two octets.
    pub fn u16(&mut self, value: u16) {
        self.bytes(&value.to_be_bytes());
    }

    /// Appends four octets.
    pub fn u32(&mut self, value: u32) {
        self.bytes(&value.to_be_bytes());
    }

    /// Appends eight octets.
    pub fn u64(&mut self, value: u64) {
        self.bytes(&value.to_be_bytes());
    }

    /// Appends octets.
    pub fn bytes(&mut self, value: &[u8]) {
        self.out.extend_from_slice(value);
    }

    /// Overwrites the octet at `at`, which was written before.
    pub(super) fn set_u8(&mut self, at: usize, value: u8) {
        if let Some(slot) = self.out.get_mut(at) {
            *slot = value;
        }
    }

    /// Overwrites the four octets from `at`, which were written before.
    pub(super) fn set_u32(&mut self, at: usize, value: u32) {
        if let Some(slot) = self.out.get_mut(at..).and_then(|tail| tail.first_chunk_mut::<4>()) {
            *slot = value.to_be_bytes();
        }
    }

    /// Writes, at `at`, how many octets lie between `start` and the end.
    ///
    /// # Errors
    /// [`WireError::TooLong`] when they do not fit 16 bits.
    pub(super) fn set_len16(
        &mut self,
        at: usize,
        start: usize,
        part: Part,
    ) -> Result<(), WireError> {
        let length = self.out.len().saturating_sub(start);
        let value = fit16(length, part)?;
        if let Some(slot) = self.out.get_mut(at..).and_then(|tail| tail.first_chunk_mut::<2>()) {
            *slot = value.to_be_bytes();
        }
        Ok(())
    }

    /// The octets written.
    pub fn into_vec(self) -> Vec<u8> {
        self.out
    }
}

/// A length as 16 bits.
///
/// # Errors
/// [`WireError::TooLong`] when it does not fit.
pub(super) fn fit16(length: usize, part: Part) -> Result<u16, WireError> {
    let limit = usize::from(u16::MAX);
    u16::try_from(length).map_err(|_| WireError::TooLong { part, length, limit })
}

/// A length or count as 8 bits.
///
/// # Errors
/// [`WireError::TooLong`] when it does not fit.
pub(super) fn fit8(length: usize, part: Part) -> Result<u8, WireError> {
    let limit = usize::from(u8::MAX);
    u8::try_from(length).map_err(|_| WireError::TooLong { part, length, limit })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_filled_in_afterwards() {
        let mut w = Writer::new();
        w.u16(0);
        w.u32(0x0102_0304);
        w.set_len16(0, 0, Part::Proposal).unwrap();

        assert_eq!(w.into_vec(), [0, 6, 1, 2, 3, 4]);
    }

    #[test]
    fn lengths_that_do_not_fit_are_errors() {
        assert_eq!(
            fit16(65_536, Part::Message),
            Err(WireError::TooLong { part: Part::Message, length: 65_536, limit: 65_535 })
        );
        assert_eq!(fit8(255, Part::Proposal), Ok(255));
        assert!(fit8(256, Part::Proposal).is_err());
    }
}
