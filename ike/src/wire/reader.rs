//! A cursor over untrusted octets that fails instead of panicking.

use super::{Field, Part, WireError};

/// Reads big-endian fields from a slice and knows where it is, for errors.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    rest: &'a [u8],
    at: usize,
    part: Part,
}

impl<'a> Reader<'a> {
    /// Begins at the first octet of `data`, which lies at offset `at` of the message.
    pub fn new(data: &'a [u8], part: Part, at: usize) -> Self {
        Self { rest: data, at, part }
    }

    /// The offset of the next octet.
    pub fn at(&self) -> usize {
        self.at
    }

    /// How many octets are left.
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// An [`WireError::Invalid`] of this structure at the current offset.
    pub fn invalid(&self, field: Field) -> WireError {
        WireError::Invalid { part: self.part, field, at: self.at }
    }

    /// Takes `n` octets.
    ///
    /// # Errors
    /// [`WireError::Truncated`] when fewer are left.
    pub fn take(&mut self, n: usize) -> Result<&'a [u8], WireError> {
        let Some((head, tail)) = self.rest.split_at_checked(n) else {
            let missing = n.saturating_sub(self.rest.len());
            return Err(WireError::Truncated { part: self.part, at: self.at, missing });
        };
        self.rest = tail;
        self.at = self.at.saturating_add(n);
        Ok(head)
    }

    /// Takes an array.
    ///
    /// # Errors
    /// [`WireError::Truncated`] when fewer octets are left.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    /// Takes one octet.
    ///
    /// # Errors
    /// [`WireError::Truncated`] when none is left.
    pub fn u8(&mut self) -> Result<u8, WireError> {
        self.array::<1>().map(|[octet]| octet)
    }

    /// Takes two octets.
    ///
    /// # Errors
    /// [`WireError::Truncated`] when fewer are left.
    pub fn u16(&mut self) -> Result<u16, WireError> {
        self.array().map(u16::from_be_bytes)
    }

    /// Takes four octets.
    ///
    /// # Errors
    /// [`WireError::Truncated`] when fewer are left.
    pub fn u32(&mut self) -> Result<u32, WireError> {
        self.array().map(u32::from_be_bytes)
    }

    /// Takes eight octets.
    ///
    /// # Errors
    /// [`WireError::Truncated`] when fewer are left.
    pub fn u64(&mut self) -> Result<u64, WireError> {
        self.array().map(u64::from_be_bytes)
    }

    /// Takes a substructure of `n` octets as a reader of its own.
    ///
    /// # Errors
    /// [`WireError::Truncated`] when fewer are left.
    pub fn sub(&mut self, n: usize, part: Part) -> Result<Reader<'a>, WireError> {
        let at = self.at;
        Ok(Reader::new(self.take(n)?, part, at))
    }

    /// Takes a substructure whose length field said `length`, of which `header` octets were read.
    ///
    /// # Errors
    /// [`WireError::Invalid`] when the length is smaller than the header, [`WireError::Truncated`]
    /// when fewer octets are left.
    pub fn body(
        &mut self,
        length: u16,
        header: usize,
        part: Part,
    ) -> Result<Reader<'a>, WireError> {
        let Some(n) = usize::from(length).checked_sub(header) else {
            return Err(WireError::Invalid { part, field: Field::Length, at: self.at });
        };
        let at = self.at;
        match self.sub(n, part) {
            Err(WireError::Truncated { missing, .. }) => {
                Err(WireError::Truncated { part, at, missing })
            }
            other => other,
        }
    }

    /// Takes all that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        self.at = self.at.saturating_add(self.rest.len());
        std::mem::take(&mut self.rest)
    }

    /// Asserts that nothing is left.
    ///
    /// # Errors
    /// [`WireError::Trailing`] when something is.
    pub fn finish(self) -> Result<(), WireError> {
        if self.rest.is_empty() {
            return Ok(());
        }
        Err(WireError::Trailing { part: self.part, at: self.at, extra: self.rest.len() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_fields_in_network_order_and_counts_offsets() {
        let mut r = Reader::new(&[1, 2, 3, 4, 5, 6, 7, 8], Part::Header, 100);

        assert_eq!(r.u8(), Ok(1));
        assert_eq!(r.u16(), Ok(0x0203));
        assert_eq!(r.u32(), Ok(0x0405_0607));
        assert_eq!(r.at(), 107);
        assert_eq!(r.u16(), Err(WireError::Truncated { part: Part::Header, at: 107, missing: 1 }));
        assert_eq!(r.rest(), [8]);
        assert_eq!(r.finish(), Ok(()));
    }

    #[test]
    fn body_shorter_than_its_header_is_invalid() {
        let mut r = Reader::new(&[0; 8], Part::GenericHeader, 0);

        assert_eq!(
            r.body(3, 4, Part::Proposal).map(|_| ()),
            Err(WireError::Invalid { part: Part::Proposal, field: Field::Length, at: 0 })
        );
        assert_eq!(
            r.body(20, 4, Part::Proposal).map(|_| ()),
            Err(WireError::Truncated { part: Part::Proposal, at: 0, missing: 8 })
        );
    }

    #[test]
    fn finish_reports_what_is_left() {
        let r = Reader::new(&[0; 3], Part::Transform, 9);

        assert_eq!(r.finish(), Err(WireError::Trailing { part: Part::Transform, at: 9, extra: 3 }));
    }
}
