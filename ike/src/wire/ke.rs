//! Key Exchange payload (RFC 7296 3.4): DH group or KEM of RFC 9370 and its public data.

use super::{KeMethod, Reader, WireError, Writer};

/// The public data of a key exchange. Its length is checked by the method, not here.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyExchange {
    /// The method the data belongs to.
    pub method: KeMethod,
    /// Public value, encapsulation key or ciphertext.
    pub data: Vec<u8>,
}

impl KeyExchange {
    /// A payload of `method`.
    pub fn new(method: KeMethod, data: Vec<u8>) -> Self {
        Self { method, data }
    }

    pub(super) fn parse(mut r: Reader<'_>) -> Result<Self, WireError> {
        let method = r.u16()?.into();
        r.u16()?; // reserved
        Ok(Self { method, data: r.rest().to_vec() })
    }

    pub(super) fn write(&self, w: &mut Writer) {
        w.u16(self.method.value());
        w.u16(0);
        w.bytes(&self.data);
    }
}

impl std::fmt::Debug for KeyExchange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyExchange")
            .field("method", &self.method)
            .field("octets", &self.data.len())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Part, PayloadType};

    const PART: Part = Part::Payload(PayloadType::Ke);

    #[test]
    fn group_reserved_and_data() {
        // RFC 7296 3.4, figure 10; the reserved octets are not zero and must be ignored.
        let body = [0, 31, 0xff, 0xff, 1, 2, 3];

        let ke = KeyExchange::parse(Reader::new(&body, PART, 0)).unwrap();

        assert_eq!(ke, KeyExchange::new(KeMethod::Curve25519, vec![1, 2, 3]));
        let mut w = Writer::new();
        ke.write(&mut w);
        assert_eq!(w.into_vec(), [0, 31, 0, 0, 1, 2, 3]);
    }

    #[test]
    fn shorter_than_its_fixed_part_is_truncated() {
        let error = KeyExchange::parse(Reader::new(&[0, 31, 0], PART, 32)).unwrap_err();

        assert_eq!(error, WireError::Truncated { part: PART, at: 34, missing: 1 });
    }
}
