//! One-time tokens: a secret that opens one lease (or a few) of one role.

use std::fmt;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::jwt::Accepted;
use super::{Refusal, RefusalCode, shown};
use crate::audit::{Actor, AuditEvent};
use crate::authority::Authority;
use crate::entropy::random_text;
use crate::error::Error;
use crate::failpoint;
use crate::issue::sha256_hex;
use crate::record::{self, Stored, key};
use crate::store::{self, Outcome, Txn};
use crate::time::UnixTime;

/// How long the key that spent a token gets the same answer again.
pub const REPLAY_WINDOW: Duration = Duration::from_secs(300);
/// Characters of the public name.
pub(super) const ID_LEN: usize = 6;
/// Characters of the secret: 130 bits.
const SECRET_LEN: usize = 26;
/// The longest life of a token.
const MAX_TTL: Duration = Duration::from_secs(7 * 86_400);
/// Times another writer may win before a token operation gives up.
const ATTEMPTS: usize = 16;

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
    /// Whether the key was made here.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub made_here: bool,
    /// The lease waits for an operator: it is reserved.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pending: bool,
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
    /// The job it was given to, for the token of its platform.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<Box<Accepted>>,
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

/// What presenting a token comes to.
#[derive(Debug)]
pub(crate) enum Presented {
    /// It may open a lease: spend it in the transaction that does.
    Fresh(Stored<Token>),
    /// It is reserved for this lease, which waits for an operator.
    Reserved(Stored<Token>, String),
    /// This key spent it a moment ago: the answer is that lease again.
    Replay(String),
}

/// Who presents a token, for what.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Presenter<'a> {
    pub(crate) role: &'a str,
    pub(crate) spki_sha256: &'a str,
    pub(crate) address: Option<std::net::IpAddr>,
    pub(crate) now: UnixTime,
}

/// Judges a token record against its presenter. Pure; the order of the checks decides which
/// reason the operator reads.
///
/// # Errors
/// The first reason why it opens nothing.
pub(crate) fn judge(token: Stored<Token>, by: Presenter<'_>) -> Result<Presented, Refusal> {
    let Token { id, role, .. } = &token.value;
    let refuse = |code, detail: String| Err(Refusal::new(code, detail));
    if by.role != role {
        return refuse(
            RefusalCode::TokenWrongRole,
            format!(
                "token {id} is for role {role}, not {:?}: use {role} as user name",
                shown(by.role)
            ),
        );
    }
    if let Some(revoked) = token.value.revoked {
        return refuse(
            RefusalCode::TokenRevoked,
            format!("token {id} was revoked at {revoked}: create a new one"),
        );
    }
    if let Some(bound) = &token.value.bound_spki
        && bound != by.spki_sha256
    {
        return refuse(
            RefusalCode::TokenBoundElsewhere,
            format!(
                "token {id} is bound to key sha256:{bound}, the request carries sha256:{}",
                by.spki_sha256
            ),
        );
    }
    if let Some(net) = &token.value.bound_net
        && !by.address.is_some_and(|address| net.contains(&address.to_canonical()))
    {
        let from = by.address.map_or("nowhere".to_owned(), |address| address.to_string());
        return refuse(
            RefusalCode::TokenBoundElsewhere,
            format!("token {id} is bound to {net}, the client is at {from}"),
        );
    }
    // The latest spend by this key decides: within the window it is a retry after a lost answer.
    let own = token.value.spends.iter().rev().find(|spend| spend.spki_sha256 == by.spki_sha256);
    if let Some(spend) = own.filter(|spend| spend.pending) {
        let lease = spend.lease_id.clone();
        return Ok(Presented::Reserved(token, lease));
    }
    if let Some(spend) = own
        && by.now < spend.at.plus(REPLAY_WINDOW)
    {
        return Ok(Presented::Replay(spend.lease_id.clone()));
    }
    match token.value.state(by.now) {
        TokenState::Valid => Ok(Presented::Fresh(token)),
        TokenState::Expired => refuse(
            RefusalCode::TokenExpired,
            format!("token {id} expired at {}: create a new one", token.value.expires),
        ),
        TokenState::Spent | TokenState::Revoked => {
            let last = token.value.spends.last();
            let (at, spki) = last
                .map_or((token.value.created, ""), |spend| (spend.at, spend.spki_sha256.as_str()));
            refuse(
                RefusalCode::TokenSpent,
                format!("token {id} already spent at {at} by key sha256:{spki}: create a new one"),
            )
        }
    }
}

impl Authority {
    /// Judges a token, of which what was reserved for a lease that waits no more is free again if
    /// it opens several: its key may ask anew.
    ///
    /// # Errors
    /// The first reason why it opens nothing.
    pub(super) fn judge_reserved(
        &self,
        token: Stored<Token>,
        by: Presenter<'_>,
    ) -> Result<Presented, Refusal> {
        match judge(token, by)? {
            Presented::Reserved(mut token, lease)
                if token.value.uses > 1 && self.waiting(&lease, by.now)?.is_none() =>
            {
                token.value.spends.retain(|spend| spend.lease_id != lease);
                judge(token, by)
            }
            judged => Ok(judged),
        }
    }

    /// Creates a one-time token. The secret is in the answer and nowhere else.
    ///
    /// # Errors
    /// When the role does not exist or the limits make no sense.
    pub fn token_create(
        &self,
        create: &TokenCreate,
        actor: &Actor,
        now: UnixTime,
    ) -> Result<(Token, TokenSecret), Error> {
        let settings = self.settings();
        if !settings.roles.contains_key(&create.role) {
            let known: Vec<_> = settings.roles.keys().map(String::as_str).collect();
            return Err(Error::Invalid(format!(
                "there is no role {:?}: use one of {}",
                create.role,
                known.join(", ")
            )));
        }
        if create.ttl.is_zero() || create.ttl > MAX_TTL {
            return Err(Error::Invalid(format!(
                "a token cannot live {} s: choose up to 7 days",
                create.ttl.as_secs()
            )));
        }
        if create.uses == 0 || create.uses > 1_000 {
            return Err(Error::Invalid(format!(
                "a token cannot have {} uses: choose 1 to 1000",
                create.uses
            )));
        }
        let bound_spki = match &create.bound_spki {
            Some(hash) => Some(normal_hash(hash)?),
            None => None,
        };
        for _ in 0..ATTEMPTS {
            let (id, secret) = self.with_entropy(|entropy| {
                Ok((
                    random_text(entropy, ID_LEN)?,
                    Zeroizing::new(random_text(entropy, SECRET_LEN)?),
                ))
            })?;
            let secret = TokenSecret::new(format!("{id}-{}", *secret));
            let token = Token {
                hash: sha256_hex(secret.expose().as_bytes()),
                id,
                role: create.role.clone(),
                created: now,
                expires: now.plus(create.ttl),
                uses: create.uses,
                bound_net: create.bound_net,
                bound_spki: bound_spki.clone(),
                revoked: None,
                job: None,
                spends: Vec::new(),
            };
            let token_key = key::token(&token.id);
            let mut txn = Txn::new();
            txn.absent(&token_key).put(&token_key, record::encode(&token));
            let mut event = AuditEvent::new("token.create", actor, now);
            event.token = Some(token.id.clone());
            event.role = Some(token.role.clone());
            event.spki_sha256.clone_from(&token.bound_spki);
            event.reason = token.bound_net.map(|net| format!("for clients in {net}"));
            event.record(&mut txn);
            failpoint::hit("token.create.before_commit");
            // A taken name means another draw.
            if let Outcome::Committed(_) = self.store.transact(txn)? {
                failpoint::hit("token.create.after_commit");
                return Ok((token, secret));
            }
        }
        Err(Error::Contended("the new token"))
    }

    /// All tokens on record, by name.
    ///
    /// # Errors
    /// When the store fails.
    pub fn tokens(&self) -> Result<Vec<Token>, Error> {
        store::scan(self.store.as_ref(), key::TOKEN)?
            .iter()
            .map(|(key, entry)| Ok(record::decode::<Token>(key, entry)?.value))
            .collect()
    }

    /// Revokes a token by its public name; repeating it changes nothing. Leases it opened
    /// stay; those that wait for an operator are denied.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none of that name.
    pub fn token_revoke(&self, id: &str, actor: &Actor, now: UnixTime) -> Result<Token, Error> {
        // People paste the whole token; its name is the part before the hyphen.
        let id = id.split('-').next().unwrap_or(id);
        let token_key = key::token(id);
        for _ in 0..ATTEMPTS {
            let stored = record::read::<Token>(self.store.as_ref(), &token_key)?
                .ok_or_else(|| Error::not_found("token", id))?;
            let mut token = stored.value;
            if token.revoked.is_some() {
                self.cancel_of_token(&token.id, actor, now)?;
                return Ok(token);
            }
            token.revoked = Some(now);
            let mut txn = Txn::new();
            txn.at(&token_key, stored.revision).put(&token_key, record::encode(&token));
            let mut event = AuditEvent::new("token.revoke", actor, now);
            event.token = Some(token.id.clone());
            event.role = Some(token.role.clone());
            event.record(&mut txn);
            if let Outcome::Committed(_) = self.store.transact(txn)? {
                self.cancel_of_token(&token.id, actor, now)?;
                return Ok(token);
            }
        }
        Err(Error::Contended("the token"))
    }

    /// Finds the record of a presented token.
    ///
    /// # Errors
    /// [`RefusalCode::TokenUnknown`]; the sentence, for the log, says which part was wrong.
    pub(crate) fn find_token(&self, text: &str) -> Result<Stored<Token>, Refusal> {
        let unknown = |detail: String| Refusal::new(RefusalCode::TokenUnknown, detail);
        let text = text.trim();
        let (id, _) = text
            .split_once('-')
            .filter(|(id, _)| id.len() == ID_LEN && id.bytes().all(|b| b.is_ascii_alphanumeric()))
            .ok_or_else(|| {
                unknown("the password is no token: give role:token as printed".to_owned())
            })?;
        let token = record::read::<Token>(self.store.as_ref(), &key::token(id))?
            .ok_or_else(|| unknown(format!("there is no token {id}: create one")))?;
        // Comparing hashes of high-entropy secrets leaks nothing useful through timing.
        if token.value.hash != sha256_hex(text.as_bytes()) {
            return Err(unknown(format!("token {id} was presented with a wrong secret")));
        }
        Ok(token)
    }
}

pub(crate) fn normal_hash(text: &str) -> Result<String, Error> {
    let hash: String = text
        .trim_start_matches("sha256:")
        .chars()
        .filter(|c| *c != ':')
        .map(|c| c.to_ascii_lowercase())
        .collect();
    if hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_hexdigit()) {
        Ok(hash)
    } else {
        Err(Error::Invalid(format!(
            "{text:?} is not a SHA-256 key hash: give 64 hexadecimal digits"
        )))
    }
}
