//! One-time tokens: a secret that opens one lease (or a few) of one role.

use std::fmt;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::time::UnixTime;

/// What a token is created for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenCreate {
    /// The role its leases get.
    pub role: String,
    /// How long it can be spent.
    pub ttl: Duration,
    /// How many leases it opens.
    pub uses: u32,
    /// Only clients in this network may spend it.
    pub bound_net: Option<IpNet>,
    /// Only this key may spend it: SHA-256 of its SubjectPublicKeyInfo, hexadecimal.
    pub bound_spki: Option<String>,
}

impl TokenCreate {
    /// A token for one lease of a role, good for fifteen minutes, bound to nothing else.
    pub fn new(role: impl Into<String>) -> Self {
        Self {
            role: role.into(),
            ttl: Duration::from_secs(900),
            uses: 1,
            bound_net: None,
            bound_spki: None,
        }
    }
}

/// Where a token stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenState {
    /// It can be spent.
    Valid,
    /// All its uses are spent.
    Spent,
    /// Its time is over.
    Expired,
    /// An operator revoked it.
    Revoked,
}

/// One use of a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenSpend {
    /// When.
    pub at: UnixTime,
    /// By which key.
    pub spki_sha256: String,
    /// The lease it opened.
    pub lease_id: String,
}

/// The record of a token; the secret itself is not in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// The public name, also the part of the token before the hyphen.
    pub id: String,
    /// SHA-256 of the whole token, hexadecimal. The secret has 130 random bits, so a plain hash
    /// resists guessing.
    pub hash: String,
    /// The role.
    pub role: String,
    /// When it was created.
    pub created: UnixTime,
    /// When it stops being accepted.
    pub expires: UnixTime,
    /// How many leases it opens in all.
    pub uses: u32,
    /// The network it is bound to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bound_net: Option<IpNet>,
    /// The key it is bound to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bound_spki: Option<String>,
    /// When it was revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<UnixTime>,
    /// Its uses so far.
    #[serde(default)]
    pub spends: Vec<TokenSpend>,
}

impl Token {
    /// Where it stands at an instant.
    pub fn state(&self, now: UnixTime) -> TokenState {
        if self.revoked.is_some() {
            TokenState::Revoked
        } else if self.spends.len() >= usize::try_from(self.uses).unwrap_or(usize::MAX) {
            TokenState::Spent
        } else if now >= self.expires {
            TokenState::Expired
        } else {
            TokenState::Valid
        }
    }
}

/// The text of a token, shown once to whoever created it.
#[derive(Clone, PartialEq, Eq)]
pub struct TokenSecret(Zeroizing<String>);

impl TokenSecret {
    pub(crate) fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The text, to be printed once and never logged.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for TokenSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenSecret({} bytes)", self.0.len())
    }
}
