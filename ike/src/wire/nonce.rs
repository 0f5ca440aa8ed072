//! Nonce payload (RFC 7296 3.9).

use super::{Field, Part, PayloadType, Reader, WireError, Writer};

/// A nonce of 16 to 256 octets. `Debug` prints its length only.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Nonce(Vec<u8>);

impl Nonce {
    /// Shortest nonce (RFC 7296 3.9).
    pub const MIN: usize = 16;
    /// Longest nonce (RFC 7296 3.9).
    pub const MAX: usize = 256;

    /// A nonce of these octets.
    ///
    /// # Errors
    /// [`WireError::Invalid`] when there are fewer than 16 or more than 256.
    pub fn new(octets: Vec<u8>) -> Result<Self, WireError> {
        if (Self::MIN..=Self::MAX).contains(&octets.len()) {
            return Ok(Self(octets));
        }
        let part = Part::Payload(PayloadType::Nonce);
        Err(WireError::Invalid { part, field: Field::Nonce, at: 0 })
    }

    /// The octets. Nonces are ordered as RFC 7296 2.8.1 compares them: octet by octet, a prefix
    /// being lower.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub(super) fn parse(mut r: Reader<'_>) -> Result<Self, WireError> {
        let error = r.invalid(Field::Nonce);
        Self::new(r.rest().to_vec()).map_err(|_| error)
    }

    pub(super) fn write(&self, w: &mut Writer) {
        w.bytes(&self.0);
    }
}

impl std::fmt::Debug for Nonce {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Nonce({} octets)", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn length_is_16_to_256_octets() {
        // RFC 7296 3.9
        assert!(Nonce::new(vec![0; 15]).is_err());
        assert!(Nonce::new(vec![0; 16]).is_ok());
        assert!(Nonce::new(vec![0; 256]).is_ok());
        assert!(Nonce::new(vec![0; 257]).is_err());
    }

    #[test]
    fn debug_hides_the_octets() {
        assert_eq!(format!("{:?}", Nonce::new(vec![0xab; 32]).unwrap()), "Nonce(32 octets)");
    }

    #[test]
    fn order_is_octet_by_octet() {
        let low = Nonce::new([vec![1; 16], vec![9; 200]].concat()).unwrap();
        let high = Nonce::new(vec![2; 16]).unwrap();

        assert!(low < high);
    }
}
