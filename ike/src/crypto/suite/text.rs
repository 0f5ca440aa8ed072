//! The tokens of a proposal text.

use super::{AdditionalKex, MAX_ADDITIONAL, SuiteError};
use crate::crypto::{Encryption, weak};
use crate::wire::{EncrId, IntegId, KeMethod, PrfId};

/// Combinations that one proposal text may stand for.
const MAX_COMBINATIONS: usize = 512;

// Names and values; the first name of a value is the one written.
pub(super) const INTEG: &[(&str, IntegId)] = &[
    ("sha256", IntegId::HmacSha2_256_128),
    ("sha384", IntegId::HmacSha2_384_192),
    ("sha512", IntegId::HmacSha2_512_256),
    ("sha2_256", IntegId::HmacSha2_256_128),
    ("sha2_384", IntegId::HmacSha2_384_192),
    ("sha2_512", IntegId::HmacSha2_512_256),
];
pub(super) const PRF: &[(&str, PrfId)] = &[
    ("prfsha256", PrfId::HmacSha2_256),
    ("prfsha384", PrfId::HmacSha2_384),
    ("prfsha512", PrfId::HmacSha2_512),
];
pub(super) const KEX: &[(&str, KeMethod)] = &[
    ("x25519", KeMethod::Curve25519),
    ("curve25519", KeMethod::Curve25519),
    ("ecp256", KeMethod::Ecp256),
    ("ecp384", KeMethod::Ecp384),
    ("ecp521", KeMethod::Ecp521),
    ("modp2048", KeMethod::Modp2048),
    ("modp3072", KeMethod::Modp3072),
    ("modp4096", KeMethod::Modp4096),
    ("mlkem512", KeMethod::MlKem512),
    ("mlkem768", KeMethod::MlKem768),
    ("mlkem1024", KeMethod::MlKem1024),
    ("none", KeMethod::None),
];
const GCM: &[(&str, EncrId)] = &[
    ("gcm16", EncrId::AesGcm16),
    ("gcm128", EncrId::AesGcm16),
    ("gcm", EncrId::AesGcm16),
    ("gcm12", EncrId::AesGcm12),
    ("gcm96", EncrId::AesGcm12),
    ("gcm8", EncrId::AesGcm8),
    ("gcm64", EncrId::AesGcm8),
    ("", EncrId::AesCbc),
];

fn encryption(token: &str) -> Option<Encryption> {
    if token == "chacha20poly1305" {
        return Some(Encryption::chacha20_poly1305());
    }
    let rest = token.strip_prefix("aes")?;
    [("128", 128), ("192", 192), ("256", 256)].into_iter().find_map(|(digits, bits)| {
        let mode = rest.strip_prefix(digits)?;
        Some(Encryption::with_bits(token_value(GCM, mode)?, bits))
    })
}

/// A proposal text, sorted by transform type.
#[derive(Debug, Default)]
pub(super) struct Tokens<'t> {
    text: &'t str,
    pub(super) encryption: Vec<Encryption>,
    pub(super) integ: Vec<IntegId>,
    pub(super) prf: Vec<PrfId>,
    pub(super) kex: Vec<KeMethod>,
    pub(super) additional: Vec<(u8, Vec<KeMethod>)>,
    pub(super) esn: Vec<bool>,
}

impl<'t> Tokens<'t> {
    pub(super) fn parse(text: &'t str) -> Result<Self, SuiteError> {
        let mut tokens = Self { text, ..Self::default() };
        for token in text.trim().split('-') {
            if let Some(found) = encryption(token) {
                push_new(&mut tokens.encryption, found);
            } else if let Some(found) = token_value(INTEG, token) {
                push_new(&mut tokens.integ, found);
            } else if let Some(found) = token_value(PRF, token) {
                push_new(&mut tokens.prf, found);
            } else if let Some(found) = token_value(KEX, token) {
                push_new(&mut tokens.kex, found);
            } else if let Some((slot, method)) = additional(token) {
                tokens.push_additional(slot, method);
            } else if token == "esn" {
                push_new(&mut tokens.esn, true);
            } else if token == "noesn" {
                push_new(&mut tokens.esn, false);
            } else if let Some(weak) = weak::by_token(token) {
                return Err(SuiteError::Weak { token: token.to_owned(), weak });
            } else {
                return Err(SuiteError::Unknown(token.to_owned()));
            }
        }
        Ok(tokens)
    }

    fn push_additional(&mut self, slot: u8, method: KeMethod) {
        match self.additional.iter_mut().find(|(known, _)| *known == slot) {
            Some((_, methods)) => push_new(methods, method),
            None => {
                self.additional.push((slot, vec![method]));
                self.additional.sort_by_key(|(slot, _)| *slot);
            }
        }
    }

    /// Encryption with integrity, checked to belong together.
    pub(super) fn protection(&self) -> Result<Vec<(Encryption, Option<IntegId>)>, SuiteError> {
        let encryption = self.required(&self.encryption, "encryption algorithm")?;
        let aead = encryption.iter().filter(|encryption| encryption.is_aead()).count();
        if aead == encryption.len() && self.integ.is_empty() {
            return Ok(encryption.iter().map(|&encryption| (encryption, None)).collect());
        }
        if aead > 0 {
            return Err(SuiteError::MixedAead(self.text.to_owned()));
        }
        let integ = self.required(&self.integ, "integrity algorithm")?;
        Ok(encryption
            .iter()
            .flat_map(|&encryption| integ.iter().map(move |&integ| (encryption, Some(integ))))
            .collect())
    }

    /// Pseudorandom functions: as written, else those of the integrity algorithms' hashes, else
    /// all of them.
    pub(super) fn prfs(&self) -> Vec<PrfId> {
        if !self.prf.is_empty() {
            return self.prf.clone();
        }
        let derived: Vec<PrfId> = self
            .integ
            .iter()
            .filter_map(|integ| match integ {
                IntegId::HmacSha2_256_128 => Some(PrfId::HmacSha2_256),
                IntegId::HmacSha2_384_192 => Some(PrfId::HmacSha2_384),
                IntegId::HmacSha2_512_256 => Some(PrfId::HmacSha2_512),
                _ => None,
            })
            .collect();
        if derived.is_empty() { PRF.iter().map(|(_, prf)| *prf).collect() } else { derived }
    }

    /// Every combination of additional key exchanges.
    pub(super) fn additional(&self) -> Vec<Vec<AdditionalKex>> {
        let mut combinations = vec![Vec::new()];
        for (slot, methods) in &self.additional {
            combinations = combinations
                .into_iter()
                .flat_map(|head: Vec<AdditionalKex>| {
                    methods.iter().map(move |&method| {
                        let mut combination = head.clone();
                        combination.push(AdditionalKex { slot: *slot, method });
                        combination
                    })
                })
                .take(MAX_COMBINATIONS + 1)
                .collect();
        }
        combinations
    }

    pub(super) fn required<'v, T>(
        &self,
        values: &'v [T],
        missing: &'static str,
    ) -> Result<&'v [T], SuiteError> {
        if values.is_empty() {
            Err(SuiteError::Missing { proposal: self.text.to_owned(), missing })
        } else {
            Ok(values)
        }
    }

    pub(super) fn bound(&self, combinations: usize) -> Result<(), SuiteError> {
        if combinations > MAX_COMBINATIONS {
            return Err(SuiteError::TooMany(self.text.to_owned()));
        }
        Ok(())
    }

    pub(super) fn misplaced(&self, what: &'static str) -> SuiteError {
        SuiteError::Misplaced { proposal: self.text.to_owned(), what }
    }
}

/// `ke1_mlkem768`
fn additional(token: &str) -> Option<(u8, KeMethod)> {
    let (slot, method) = token.strip_prefix("ke")?.split_once('_')?;
    let slot = slot.parse().ok().filter(|slot| (1..=MAX_ADDITIONAL).contains(slot))?;
    Some((slot, token_value(KEX, method)?))
}

fn push_new<T: PartialEq>(values: &mut Vec<T>, value: T) {
    if !values.contains(&value) {
        values.push(value);
    }
}

pub(super) fn token_name<'t, T: PartialEq>(table: &[(&'t str, T)], value: T) -> Option<&'t str> {
    table.iter().find(|(_, known)| *known == value).map(|(name, _)| *name)
}

fn token_value<T: Copy>(table: &[(&str, T)], token: &str) -> Option<T> {
    table.iter().find(|(name, _)| *name == token).map(|(_, value)| *value)
}
