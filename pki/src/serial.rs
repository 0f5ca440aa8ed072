//! Certificate serial numbers.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::entropy::Entropy;
use crate::error::Error;

/// A certificate serial number; shown as lower-case hexadecimal without leading zeros.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Serial(Vec<u8>);

impl Serial {
    /// A positive random serial of 127 bits (RFC 5280 4.1.2.2 wants at most 20 octets).
    ///
    /// # Errors
    /// When the entropy source fails.
    pub fn random(entropy: &mut dyn Entropy) -> Result<Self, Error> {
        let mut bytes = [0u8; 16];
        entropy.fill(&mut bytes)?;
        // Clear the sign bit, set the next: always positive and always 16 octets.
        bytes[0] = bytes[0] & 0x7f | 0x40;
        Ok(Self(bytes.to_vec()))
    }

    /// From the content octets of the certificate's INTEGER, or any big-endian bytes.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let start = bytes.iter().position(|byte| *byte != 0).unwrap_or(bytes.len());
        Self(bytes.get(start..).unwrap_or_default().to_vec())
    }

    /// Big-endian bytes without leading zeros.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("00");
        }
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Serial({self})")
    }
}

impl FromStr for Serial {
    type Err = Error;

    /// Accepts what people paste: upper or lower case, colons, spaces, a leading `0x`.
    fn from_str(text: &str) -> Result<Self, Error> {
        let text = text.trim();
        let text = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")).unwrap_or(text);
        let digits: Option<Vec<u8>> = text
            .chars()
            .filter(|c| !matches!(c, ':' | ' '))
            .map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok()))
            .collect();
        let digits = digits.filter(|digits| !digits.is_empty()).ok_or_else(|| {
            Error::Invalid(format!("{text:?} is not a serial number: give hexadecimal digits"))
        })?;
        let bytes: Vec<u8> = digits
            .rchunks(2)
            .rev()
            .map(|pair| pair.iter().fold(0, |value, digit| value << 4 | digit))
            .collect();
        Ok(Self::from_bytes(&bytes))
    }
}

impl From<Serial> for String {
    fn from(serial: Serial) -> Self {
        serial.to_string()
    }
}

impl TryFrom<String> for Serial {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entropy::tests::Counting;

    #[test]
    fn reads_what_people_paste() {
        let expected = Serial::from_bytes(&[0x0a, 0xbc, 0x01]);
        for text in ["abc01", "0ABC01", "0A:BC:01", "0x0abc01", " 0a bc 01 "] {
            assert_eq!(text.parse::<Serial>().unwrap(), expected, "{text}");
        }
        assert_eq!(expected.to_string(), "0abc01");
        for text in ["", "0x", "xyz", "12g4", "-1", "١٢"] {
            assert!(text.parse::<Serial>().is_err(), "{text}");
        }
    }

    #[test]
    fn random_serials_are_positive_and_of_one_length() {
        let mut entropy = Counting(0);
        for _ in 0..200 {
            let serial = Serial::random(&mut entropy).unwrap();
            assert_eq!(serial.as_bytes().len(), 16);
            assert_eq!(serial.as_bytes()[0] & 0xc0, 0x40);
        }
    }
}
