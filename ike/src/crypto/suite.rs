//! Cipher suites: what one SA runs with, and the text form of it.
//!
//! The text is strongSwan's proposal syntax (`aes256gcm16-prfsha384-ecp384`), because that is what
//! stands in the clients' configuration and what operators compare with. A proposal may name
//! several algorithms of a type, the preferred one first; it stands for every combination.

mod text;

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use self::text::{INTEG, KEX, PRF, Tokens, token_name};
use super::weak::WeakAlgorithm;
use super::{CryptoError, CryptoProvider, Encryption, IkeKeyLengths, Prf};
use crate::wire::{EncrId, IntegId, KeMethod, PrfId};

/// Additional key exchanges of one SA at most (RFC 9370: ADDKE1 to ADDKE7).
pub const MAX_ADDITIONAL: u8 = 7;

/// The algorithms of an IKE SA.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IkeSuite {
    /// Transform type 1.
    pub encryption: Encryption,
    /// Transform type 3; `None` exactly when the encryption is an AEAD.
    pub integ: Option<IntegId>,
    /// Transform type 2.
    pub prf: PrfId,
    /// Transform type 4.
    pub kex: KeMethod,
    /// Additional key exchanges in the order of their transform types.
    pub additional: Vec<AdditionalKex>,
}

/// The algorithms of an ESP SA.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EspSuite {
    /// Transform type 1.
    pub encryption: Encryption,
    /// Transform type 3; `None` exactly when the encryption is an AEAD.
    pub integ: Option<IntegId>,
    /// Transform type 5: 64-bit sequence numbers.
    pub esn: bool,
    /// Transform type 4: a key exchange of its own (PFS). Never used in IKE_AUTH, where the
    /// child SA shares the IKE SA's (RFC 7296 1.2).
    pub kex: Option<KeMethod>,
    /// Additional key exchanges.
    pub additional: Vec<AdditionalKex>,
}

/// One additional key exchange (RFC 9370).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AdditionalKex {
    /// 1 to 7 for ADDKE1 to ADDKE7.
    pub slot: u8,
    /// The method; [`KeMethod::None`] when it may be left out.
    pub method: KeMethod,
}

/// Why a proposal text was not understood.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SuiteError {
    /// No algorithm has this name.
    #[error("`{0}` names no algorithm known here")]
    Unknown(String),
    /// The algorithm is known and refused.
    #[error("`{token}`: {weak}")]
    Weak {
        /// As written.
        token: String,
        /// Why, and what to do.
        weak: &'static WeakAlgorithm,
    },
    /// The proposal lacks a type of algorithm.
    #[error("`{proposal}` names no {missing}")]
    Missing {
        /// As written.
        proposal: String,
        /// What is missing.
        missing: &'static str,
    },
    /// An integrity algorithm beside an AEAD, or both kinds of encryption in one proposal.
    #[error("`{0}` combines AEAD and integrity algorithms: write one proposal for each")]
    MixedAead(String),
    /// A type of algorithm that has no place here.
    #[error("`{proposal}`: {what} has no place in this kind of proposal")]
    Misplaced {
        /// As written.
        proposal: String,
        /// What does not belong.
        what: &'static str,
    },
    /// One suite was asked for, several combinations were written.
    #[error("`{0}` stands for several suites where one is wanted")]
    Several(String),
    /// Every combination has one key exchange method twice.
    #[error("`{0}` makes one key exchange twice: name another one (RFC 9370 2.2.1)")]
    Repeated(String),
    /// The proposal stands for too many combinations.
    #[error("`{0}` stands for more than 512 combinations: write fewer algorithms")]
    TooMany(String),
}

impl Encryption {
    /// An algorithm with a KEY_LENGTH attribute.
    #[must_use]
    pub const fn with_bits(id: EncrId, bits: u16) -> Self {
        Self { id, key_bits: Some(bits) }
    }

    /// ChaCha20-Poly1305, which has no KEY_LENGTH attribute (RFC 7634).
    #[must_use]
    pub const fn chacha20_poly1305() -> Self {
        Self { id: EncrId::ChaCha20Poly1305, key_bits: None }
    }

    /// Octets of keying material in ESP and IKE: the key, then the salt of an AEAD (RFC 4106 8.1,
    /// RFC 5282 7.1, RFC 7634 2). `None` for algorithms not implemented here.
    #[must_use]
    pub fn keymat_len(self) -> Option<usize> {
        Some(self.key_len()? + self.salt_len())
    }

    /// Octets of the key alone.
    #[must_use]
    pub fn key_len(self) -> Option<usize> {
        match (self.id, self.key_bits) {
            (
                EncrId::AesCbc | EncrId::AesGcm8 | EncrId::AesGcm12 | EncrId::AesGcm16,
                Some(bits @ (128 | 192 | 256)),
            ) => Some(usize::from(bits / 8)),
            (EncrId::ChaCha20Poly1305, None) => Some(32),
            _ => None,
        }
    }

    /// Octets of salt behind the key.
    #[must_use]
    pub fn salt_len(self) -> usize {
        if self.is_aead() { 4 } else { 0 }
    }

    /// Octets of explicit IV in each packet.
    #[must_use]
    pub fn iv_len(self) -> usize {
        if self.is_aead() { 8 } else { 16 }
    }

    /// Octets of checksum of an AEAD; 0 otherwise.
    #[must_use]
    pub fn icv_len(self) -> usize {
        match self.id {
            EncrId::AesGcm8 => 8,
            EncrId::AesGcm12 => 12,
            EncrId::AesGcm16 | EncrId::ChaCha20Poly1305 => 16,
            _ => 0,
        }
    }

    /// True when it protects integrity itself.
    #[must_use]
    pub fn is_aead(self) -> bool {
        self.id.is_aead()
    }
}

impl fmt::Display for Encryption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let suffix = match self.id {
            EncrId::AesCbc => "",
            EncrId::AesGcm8 => "gcm8",
            EncrId::AesGcm12 => "gcm12",
            EncrId::AesGcm16 => "gcm16",
            EncrId::ChaCha20Poly1305 => return f.write_str("chacha20poly1305"),
            other => {
                write!(f, "{other}")?;
                return self.key_bits.map_or(Ok(()), |bits| write!(f, "_{bits}"));
            }
        };
        match self.key_bits {
            Some(bits) => write!(f, "aes{bits}{suffix}"),
            None => write!(f, "aes{suffix}"),
        }
    }
}

/// Octets of an integrity algorithm's key; `None` for algorithms not implemented here.
#[must_use]
pub fn integ_key_len(id: IntegId) -> Option<usize> {
    match id {
        IntegId::HmacSha2_256_128 => Some(32),
        IntegId::HmacSha2_384_192 => Some(48),
        IntegId::HmacSha2_512_256 => Some(64),
        _ => None,
    }
}

/// Octets of an integrity algorithm's checksum; `None` for algorithms not implemented here.
#[must_use]
pub fn integ_icv_len(id: IntegId) -> Option<usize> {
    integ_key_len(id).map(|len| len / 2)
}

/// strongSwan's name of a key exchange method, for messages and configuration.
#[must_use]
pub fn kex_name(method: KeMethod) -> String {
    token_name(KEX, method).map_or_else(|| method.to_string(), str::to_owned)
}

impl IkeSuite {
    /// Every combination a proposal text stands for, preferred first.
    ///
    /// # Errors
    /// [`SuiteError`] naming the token.
    pub fn parse_proposal(text: &str) -> Result<Vec<Self>, SuiteError> {
        let tokens = Tokens::parse(text)?;
        if !tokens.esn.is_empty() {
            return Err(tokens.misplaced("esn"));
        }
        let prfs = tokens.prfs();
        let kex = tokens.required(&tokens.kex, "key exchange method")?;
        tokens.bound(tokens.additional().len())?;
        let mut suites = Vec::new();
        for (encryption, integ) in tokens.protection()? {
            for &prf in &prfs {
                for &kex in kex {
                    let additional = tokens.additional().into_iter();
                    for additional in additional.filter(|more| distinct(kex, more)) {
                        suites.push(Self { encryption, integ, prf, kex, additional });
                    }
                    tokens.bound(suites.len())?;
                }
            }
        }
        if suites.is_empty() {
            return Err(SuiteError::Repeated(text.to_owned()));
        }
        Ok(suites)
    }

    /// Proposals offered when the configuration names none, strongest first: with ML-KEM beside an
    /// elliptic curve, so that neither a quantum computer nor a flaw in ML-KEM alone opens what was
    /// recorded; then AEADs, then what RFC 8247 requires and native clients offer (AES-CBC with
    /// SHA-2).
    pub const DEFAULT_PROPOSALS: &'static [&'static str] = &[
        "aes256gcm16-aes128gcm16-chacha20poly1305-prfsha384-prfsha512-prfsha256\
         -x25519-ecp384-ecp256-ke1_mlkem768-ke1_mlkem1024",
        "aes256-aes128-sha256-sha384-sha512-prfsha256-prfsha384-prfsha512\
         -x25519-ecp384-ecp256-ke1_mlkem768",
        "aes256gcm16-aes128gcm16-chacha20poly1305-prfsha384-prfsha512-prfsha256\
         -x25519-ecp384-ecp521-ecp256-modp4096-modp3072-modp2048",
        "aes256-aes128-sha256-sha384-sha512-prfsha256-prfsha384-prfsha512\
         -x25519-ecp384-ecp521-ecp256-modp4096-modp3072-modp2048",
    ];

    /// The combinations of [`Self::DEFAULT_PROPOSALS`].
    #[must_use]
    pub fn defaults() -> Vec<Self> {
        Self::DEFAULT_PROPOSALS
            .iter()
            .filter_map(|text| Self::parse_proposal(text).ok())
            .flatten()
            .collect()
    }

    /// Additional key exchanges that are made, in order.
    #[must_use]
    pub fn additional_methods(&self) -> Vec<KeMethod> {
        additional_methods(&self.additional)
    }

    /// Whether there is any of [`IkeSuite::additional_methods`].
    #[must_use]
    pub fn has_additional(&self) -> bool {
        self.additional.iter().any(|kex| kex.method != KeMethod::None)
    }

    /// True when `provider` implements every algorithm.
    #[must_use]
    pub fn supported_by(&self, provider: &CryptoProvider) -> bool {
        provider.cipher(self.encryption).is_some()
            && self.integ.is_none_or(|id| provider.integ(id).is_some())
            && provider.prf(self.prf).is_some()
            && provider.group(self.kex).is_some()
            && additional_supported(&self.additional, provider)
    }

    /// Lengths of the SK_ keys.
    ///
    /// # Errors
    /// [`CryptoError::Unsupported`] when the provider lacks an algorithm.
    pub fn key_lengths(&self, provider: &CryptoProvider) -> Result<IkeKeyLengths, CryptoError> {
        let encr = provider
            .cipher(self.encryption)
            .ok_or(CryptoError::Unsupported("the encryption algorithm"))?
            .key_len();
        let integ = match self.integ {
            None => 0,
            Some(id) => provider
                .integ(id)
                .ok_or(CryptoError::Unsupported("the integrity algorithm"))?
                .key_len(),
        };
        let prf = provider
            .prf(self.prf)
            .map(Prf::key_len)
            .ok_or(CryptoError::Unsupported("the pseudorandom function"))?;
        Ok(IkeKeyLengths { prf, integ, encr })
    }
}

impl EspSuite {
    /// Every combination a proposal text stands for, preferred first. Without `esn` or `noesn`
    /// both are meant, 64-bit sequence numbers first.
    ///
    /// # Errors
    /// [`SuiteError`] naming the token.
    pub fn parse_proposal(text: &str) -> Result<Vec<Self>, SuiteError> {
        let tokens = Tokens::parse(text)?;
        if !tokens.prf.is_empty() {
            return Err(tokens.misplaced("a pseudorandom function"));
        }
        let esn = if tokens.esn.is_empty() { &[true, false][..] } else { &tokens.esn };
        tokens.bound(tokens.additional().len())?;
        if !tokens.additional.is_empty() {
            tokens.required(&tokens.kex, "key exchange method")?;
        }
        let kex: Vec<Option<KeMethod>> = if tokens.kex.is_empty() {
            vec![None]
        } else {
            // RFC 7296 3.3.6: NONE lets the peer leave PFS out.
            tokens.kex.iter().map(|&kex| (kex != KeMethod::None).then_some(kex)).collect()
        };
        let mut suites = Vec::new();
        for (encryption, integ) in tokens.protection()? {
            for &esn in esn {
                for &kex in &kex {
                    // Without a key exchange of its own there are no further ones.
                    let additional = match kex {
                        Some(first) => tokens
                            .additional()
                            .into_iter()
                            .filter(|more| distinct(first, more))
                            .collect(),
                        None => vec![Vec::new()],
                    };
                    for additional in additional {
                        suites.push(Self { encryption, integ, esn, kex, additional });
                    }
                    tokens.bound(suites.len())?;
                }
            }
        }
        if suites.is_empty() {
            return Err(SuiteError::Repeated(text.to_owned()));
        }
        Ok(suites)
    }

    /// Proposals offered when the configuration names none, strongest first. PFS methods are
    /// accepted in rekeys as the IKE proposals allow them.
    pub const DEFAULT_PROPOSALS: &'static [&'static str] = &[
        "aes256gcm16-aes128gcm16-chacha20poly1305-esn-noesn",
        "aes256-aes128-sha256-sha384-sha512-esn-noesn",
    ];

    /// The combinations of [`Self::DEFAULT_PROPOSALS`].
    #[must_use]
    pub fn defaults() -> Vec<Self> {
        Self::DEFAULT_PROPOSALS
            .iter()
            .filter_map(|text| Self::parse_proposal(text).ok())
            .flatten()
            .collect()
    }

    /// Additional key exchanges that are made, in order.
    #[must_use]
    pub fn additional_methods(&self) -> Vec<KeMethod> {
        additional_methods(&self.additional)
    }

    /// True when `provider` implements the key exchanges; what protects packets is the data
    /// plane's.
    #[must_use]
    pub fn supported_by(&self, provider: &CryptoProvider) -> bool {
        self.kex.is_none_or(|method| provider.group(method).is_some())
            && additional_supported(&self.additional, provider)
    }

    /// Octets of encryption keying material (with salt) and of integrity key, for one direction.
    ///
    /// # Errors
    /// [`CryptoError::Unsupported`] for an algorithm not implemented here.
    pub fn key_lengths(&self) -> Result<(usize, usize), CryptoError> {
        let encr = self
            .encryption
            .keymat_len()
            .ok_or(CryptoError::Unsupported("the encryption algorithm"))?;
        let integ = match self.integ {
            None => 0,
            Some(id) => {
                integ_key_len(id).ok_or(CryptoError::Unsupported("the integrity algorithm"))?
            }
        };
        Ok((encr, integ))
    }

    /// Octets of IV, ICV and cipher block: what a packet's overhead is computed from.
    #[must_use]
    pub fn packet_lengths(&self) -> (usize, usize, usize) {
        let icv = match self.integ {
            Some(id) => integ_icv_len(id).unwrap_or_default(),
            None => self.encryption.icv_len(),
        };
        // ESP pads to four octets even for stream ciphers (RFC 4303 2.4).
        (self.encryption.iv_len(), icv, if self.encryption.is_aead() { 4 } else { 16 })
    }
}

impl FromStr for IkeSuite {
    type Err = SuiteError;

    fn from_str(text: &str) -> Result<Self, SuiteError> {
        single(Self::parse_proposal(text)?, text)
    }
}

impl FromStr for EspSuite {
    type Err = SuiteError;

    /// Unlike in a proposal, leaving `esn` out means 32-bit sequence numbers, as in `Display`.
    fn from_str(text: &str) -> Result<Self, SuiteError> {
        let mut suites = Self::parse_proposal(text)?;
        if !text.split('-').any(|token| matches!(token, "esn" | "noesn")) {
            suites.retain(|suite| !suite.esn);
        }
        single(suites, text)
    }
}

impl fmt::Display for IkeSuite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.encryption)?;
        if let Some(integ) = self.integ {
            write_token(f, INTEG, integ)?;
        }
        write_token(f, PRF, self.prf)?;
        write_token(f, KEX, self.kex)?;
        write_additional(f, &self.additional)
    }
}

impl fmt::Display for EspSuite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.encryption)?;
        if let Some(integ) = self.integ {
            write_token(f, INTEG, integ)?;
        }
        if let Some(kex) = self.kex {
            write_token(f, KEX, kex)?;
        }
        write_additional(f, &self.additional)?;
        f.write_str(if self.esn { "-esn" } else { "" })
    }
}

fn single<S>(mut suites: Vec<S>, text: &str) -> Result<S, SuiteError> {
    match (suites.pop(), suites.is_empty()) {
        (Some(suite), true) => Ok(suite),
        _ => Err(SuiteError::Several(text.to_owned())),
    }
}

fn additional_methods(additional: &[AdditionalKex]) -> Vec<KeMethod> {
    additional.iter().map(|kex| kex.method).filter(|method| *method != KeMethod::None).collect()
}

/// One method twice adds nothing (RFC 9370 2.2.1).
fn distinct(first: KeMethod, additional: &[AdditionalKex]) -> bool {
    let methods = additional_methods(additional);
    let mut earlier = vec![first];
    methods.into_iter().all(|method| {
        let new = !earlier.contains(&method);
        earlier.push(method);
        new
    })
}

fn additional_supported(additional: &[AdditionalKex], provider: &CryptoProvider) -> bool {
    additional
        .iter()
        .all(|kex| kex.method == KeMethod::None || provider.group(kex.method).is_some())
}

fn write_additional(f: &mut fmt::Formatter<'_>, additional: &[AdditionalKex]) -> fmt::Result {
    additional.iter().try_for_each(|kex| write!(f, "-ke{}_{}", kex.slot, kex_name(kex.method)))
}

fn write_token<T: Copy + PartialEq + fmt::Display>(
    f: &mut fmt::Formatter<'_>,
    table: &[(&str, T)],
    value: T,
) -> fmt::Result {
    match token_name(table, value) {
        Some(name) => write!(f, "-{name}"),
        None => write!(f, "-{value}"),
    }
}

#[cfg(test)]
mod tests;
