//! The seam through which random bytes enter: serials, lease names, token secrets, nonces.
//!
//! Key generation and randomised signatures use the provider's own generator (`signer`), which
//! cannot be replaced; everything this crate draws itself comes through [`Entropy`].

use ring::rand::{SecureRandom, SystemRandom};

use crate::error::Error;

/// A source of unpredictable bytes.
pub trait Entropy: Send {
    /// Fills the whole buffer.
    ///
    /// # Errors
    /// When the source fails; the buffer must then not be used.
    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), Error>;
}

/// The operating system's generator.
#[derive(Debug)]
pub struct SystemEntropy(SystemRandom);

impl SystemEntropy {
    /// A handle to the operating system's generator.
    pub fn new() -> Self {
        Self(SystemRandom::new())
    }
}

impl Default for SystemEntropy {
    fn default() -> Self {
        Self::new()
    }
}

impl Entropy for SystemEntropy {
    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), Error> {
        self.0.fill(buffer).map_err(|_| Error::Crypto("the system's random generator failed"))
    }
}

impl<F: FnMut(&mut [u8]) -> Result<(), Error> + Send> Entropy for F {
    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), Error> {
        self(buffer)
    }
}

/// Crockford's alphabet in lower case: no i, l, o or u, so a person can copy it.
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

/// `length` random characters, five bits each, safe to read aloud and to put in a DNS label.
///
/// # Errors
/// When the source fails.
pub fn random_text(entropy: &mut dyn Entropy, length: usize) -> Result<String, Error> {
    let mut bytes = zeroize::Zeroizing::new(vec![0u8; length]);
    entropy.fill(&mut bytes)?;
    let symbol = |byte: &u8| char::from(*ALPHABET.get(usize::from(byte & 31)).unwrap_or(&b'0'));
    Ok(bytes.iter().map(symbol).collect())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A predictable source for tests: SHA-256 over a counter.
    pub(crate) struct Counting(pub(crate) u64);

    impl Entropy for Counting {
        fn fill(&mut self, buffer: &mut [u8]) -> Result<(), Error> {
            for chunk in buffer.chunks_mut(32) {
                self.0 += 1;
                let block = ring::digest::digest(&ring::digest::SHA256, &self.0.to_be_bytes());
                chunk.copy_from_slice(&block.as_ref()[..chunk.len()]);
            }
            Ok(())
        }
    }

    #[test]
    fn text_uses_only_the_unambiguous_alphabet() {
        let text = random_text(&mut SystemEntropy::new(), 400).unwrap();
        assert_eq!(text.len(), 400);
        assert!(text.bytes().all(|b| ALPHABET.contains(&b)));
        assert!(!text.contains(['i', 'l', 'o', 'u']));
    }
}
