//! A strict, bounded DER reader: just enough for public keys, algorithm identifiers and ECDSA
//! signatures. Nothing is copied, nothing recurses, and only the one canonical length encoding
//! is accepted.

pub(super) const INTEGER: u8 = 0x02;
pub(super) const BIT_STRING: u8 = 0x03;
pub(super) const NULL: u8 = 0x05;
pub(super) const OID: u8 = 0x06;
pub(super) const SEQUENCE: u8 = 0x30;

/// The DER was not what the grammar expects at this place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed;

/// Reads elements from the front of a slice.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(super) const fn new(input: &'a [u8]) -> Self {
        Self(input)
    }

    /// The tag of the next element, if there is one.
    pub(super) fn peek(&self) -> Option<u8> {
        self.0.first().copied()
    }

    /// Contents of the next element, which must have this tag.
    pub(super) fn element(&mut self, tag: u8) -> Result<&'a [u8], Malformed> {
        let (&found, rest) = self.0.split_first().ok_or(Malformed)?;
        if found != tag {
            return Err(Malformed);
        }
        let (len, rest) = length(rest)?;
        let (contents, rest) = rest.split_at_checked(len).ok_or(Malformed)?;
        self.0 = rest;
        Ok(contents)
    }

    /// The next element, opened.
    pub(super) fn nested(&mut self, tag: u8) -> Result<Reader<'a>, Malformed> {
        self.element(tag).map(Reader)
    }

    /// A non-negative INTEGER in its shortest form, without the sign octet.
    pub(super) fn unsigned(&mut self) -> Result<&'a [u8], Malformed> {
        match self.element(INTEGER)? {
            [] => Err(Malformed),
            [0] => Ok(&[]),
            [0, magnitude @ ..] if magnitude.first().is_some_and(|b| b & 0x80 != 0) => {
                Ok(magnitude)
            }
            [first, ..] if *first == 0 || first & 0x80 != 0 => Err(Malformed),
            magnitude => Ok(magnitude),
        }
    }

    /// A BIT STRING of whole octets.
    pub(super) fn octet_bits(&mut self) -> Result<&'a [u8], Malformed> {
        match self.element(BIT_STRING)?.split_first() {
            Some((0, contents)) => Ok(contents),
            _ => Err(Malformed),
        }
    }

    /// True at the end.
    pub(super) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Refuses trailing octets.
    pub(super) fn finish(self) -> Result<(), Malformed> {
        if self.is_empty() { Ok(()) } else { Err(Malformed) }
    }
}

/// Definite lengths of up to two octets, in the shortest form.
fn length(input: &[u8]) -> Result<(usize, &[u8]), Malformed> {
    match input {
        [len @ 0..=0x7f, rest @ ..] => Ok((usize::from(*len), rest)),
        [0x81, len @ 0x80..=0xff, rest @ ..] => Ok((usize::from(*len), rest)),
        [0x82, high @ 1..=0xff, low, rest @ ..] => {
            Ok((usize::from(u16::from_be_bytes([*high, *low])), rest))
        }
        _ => Err(Malformed),
    }
}

/// Appends one element. `contents` is at most a few hundred octets here.
pub(super) fn push_element(out: &mut Vec<u8>, tag: u8, contents: &[u8]) {
    out.push(tag);
    let [.., high, low] = contents.len().to_be_bytes();
    match (high, low) {
        (0, 0..=0x7f) => out.push(low),
        (0, _) => out.extend_from_slice(&[0x81, low]),
        _ => out.extend_from_slice(&[0x82, high, low]),
    }
    out.extend_from_slice(contents);
}

/// Appends a non-negative INTEGER given big-endian, with or without leading zeros.
pub(super) fn push_unsigned(out: &mut Vec<u8>, big_endian: &[u8]) {
    let start = big_endian.iter().position(|b| *b != 0).unwrap_or(big_endian.len());
    let magnitude = big_endian.get(start..).unwrap_or_default();
    let mut contents = Vec::with_capacity(magnitude.len() + 1);
    if magnitude.first().is_none_or(|b| b & 0x80 != 0) {
        contents.push(0);
    }
    contents.extend_from_slice(magnitude);
    push_element(out, INTEGER, &contents);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_have_one_encoding() {
        assert_eq!(Reader::new(&[4, 1, 7]).element(4), Ok(&[7u8][..]));
        assert_eq!(Reader::new(&[4, 0x81, 1, 7]).element(4), Err(Malformed));
        assert_eq!(Reader::new(&[4, 0x82, 0, 1, 7]).element(4), Err(Malformed));
        assert_eq!(Reader::new(&[4, 0x80, 7, 0, 0]).element(4), Err(Malformed));
        assert_eq!(Reader::new(&[4, 0x83, 0, 0, 1, 7]).element(4), Err(Malformed));
        assert_eq!(Reader::new(&[4, 2, 7]).element(4), Err(Malformed));
        assert_eq!(Reader::new(&[]).element(4), Err(Malformed));
    }

    #[test]
    fn integers_are_shortest_and_non_negative() {
        assert_eq!(Reader::new(&[2, 1, 0]).unsigned(), Ok(&[][..]));
        assert_eq!(Reader::new(&[2, 1, 0x7f]).unsigned(), Ok(&[0x7f][..]));
        assert_eq!(Reader::new(&[2, 2, 0, 0x80]).unsigned(), Ok(&[0x80][..]));
        assert_eq!(Reader::new(&[2, 2, 0, 0x7f]).unsigned(), Err(Malformed));
        assert_eq!(Reader::new(&[2, 1, 0x80]).unsigned(), Err(Malformed));
        assert_eq!(Reader::new(&[2, 0]).unsigned(), Err(Malformed));
    }

    #[test]
    fn written_elements_read_back() {
        for len in [0usize, 1, 0x7f, 0x80, 0xff, 0x100, 0x1234] {
            let mut out = Vec::new();
            push_element(&mut out, 4, &vec![9; len]);
            let mut reader = Reader::new(&out);
            assert_eq!(reader.element(4).map(<[u8]>::len), Ok(len));
            assert!(reader.is_empty());
        }
    }
}
