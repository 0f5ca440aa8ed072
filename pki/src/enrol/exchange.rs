//! Token exchange (RFC 8693): the token of a CI platform for a one-time token of ours.
//!
//! For clients that can put no token of a platform into a request: the one-time token is short
//! enough for HTTP Basic, opens one lease of one role for one key, and lives no longer than the
//! token it was given for.

use std::net::IpAddr;
use std::time::Duration;

use zeroize::Zeroizing;

use super::jwt::{Accepted, JwtSpend};
use super::open::Grant;
use super::token::{ID_LEN, REPLAY_WINDOW, Token, TokenSecret, normal_hash};
use super::{Refusal, RefusalCode};
use crate::audit::{Actor, AuditEvent};
use crate::authority::Authority;
use crate::entropy::random_text;
use crate::error::Error;
use crate::failpoint;
use crate::issue::{hex, sha256_hex};
use crate::record::{self, key};
use crate::store::{Outcome, Txn};
use crate::time::UnixTime;

/// The longest life of a token that was given for another.
const MAX_TTL: Duration = Duration::from_secs(900);
/// How often an exchange is tried again when another writer was faster.
const ATTEMPTS: usize = 64;

/// A token that was given for a platform's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchanged {
    /// Its record.
    pub token: Token,
    /// Its text.
    pub secret: TokenSecret,
    /// Whether it repeats an earlier answer.
    pub replayed: bool,
}

impl Authority {
    /// Gives a one-time token for a platform's token that was judged just now, bound to a key by the
    /// SHA-256 of its SubjectPublicKeyInfo.
    ///
    /// The platform's token is spent by it. For [`REPLAY_WINDOW`] the same key gets the same token
    /// again; it is made of the sealing key, so that its text is stored nowhere.
    ///
    /// # Errors
    /// That the token was spent before, its run or the key barred, or its rate used up; what is wrong
    /// with the hash.
    pub fn token_exchange(
        &self,
        accepted: &Accepted,
        spki_sha256: &str,
        client: Option<IpAddr>,
        now: UnixTime,
    ) -> Result<Exchanged, Refusal> {
        self.may_issue()?;
        let spki = normal_hash(spki_sha256)
            .map_err(|error| Refusal::new(RefusalCode::MalformedRequest, error.to_string()))?;
        let actor = client.map_or(Actor::System, Actor::Peer);
        let _turn = self.token_turn(accepted.digest());
        self.refuse_older(accepted, &spki, &actor, now)?;
        let grant = Grant::of_job(accepted, None, actor.clone());
        let mut counted = false;
        for _ in 0..ATTEMPTS {
            if let Some(spent) = self.jwt_spend(accepted.digest())? {
                if let Some(given) = self.given_again(accepted, &spent, &spki, now)? {
                    return Ok(given);
                }
                return Err(self.refuse_spent(accepted, &spent, &spki, &actor, now)?);
            }
            let mut txn = Txn::new();
            // It opens no lease, and costs as much: a record that is kept for as long.
            let judged = self.refuse_barred(&mut txn, &grant, &spki).and_then(|()| match counted {
                true => Ok(()),
                false => self.within_rates(&grant, now),
            });
            if let Err(refusal) = judged {
                let (name, role) = (accepted.name(), Some(accepted.role.as_str()));
                self.audit_denied(&name, role, Some(&spki), &actor, &refusal, now)?;
                return Err(refusal);
            }
            counted = true;
            let id = self.with_entropy(|entropy| random_text(entropy, ID_LEN))?;
            let secret = self.exchanged_secret(accepted, &spki, &id);
            let token = Token {
                hash: sha256_hex(secret.expose().as_bytes()),
                role: accepted.role.clone(),
                created: now,
                expires: now.plus(MAX_TTL).min(accepted.good_until()),
                uses: 1,
                bound_net: None,
                bound_spki: Some(spki.clone()),
                revoked: None,
                spends: Vec::new(),
                job: Some(Box::new(accepted.clone())),
                id,
            };
            let token_key = key::token(&token.id);
            let spent = JwtSpend {
                token: Some(token.id.clone()),
                ..JwtSpend::new(accepted, "", &spki, now)
            };
            txn.absent(&token_key).put(token_key, record::encode(&token));
            spent.put(&mut txn, accepted);
            let mut event = AuditEvent::new("token.exchange", &actor, now);
            event.token = Some(token.id.clone());
            event.role = Some(token.role.clone());
            event.spki_sha256 = Some(spki.clone());
            event.reason = Some(accepted.name());
            event.record(&mut txn);
            failpoint::hit("token.create.before_commit");
            if let Outcome::Committed(_) = self.store.transact(txn).map_err(Error::from)? {
                failpoint::hit("token.create.after_commit");
                return Ok(Exchanged { token, secret, replayed: false });
            }
        }
        Err(Error::Contended("the exchange").into())
    }

    fn given_again(
        &self,
        accepted: &Accepted,
        spent: &JwtSpend,
        spki: &str,
        now: UnixTime,
    ) -> Result<Option<Exchanged>, Refusal> {
        let Some(id) = &spent.token else { return Ok(None) };
        if spent.spki_sha256 != *spki || now >= spent.at.plus(REPLAY_WINDOW) {
            return Ok(None);
        }
        let token = record::read::<Token>(self.store.as_ref(), &key::token(id))?;
        let secret = self.exchanged_secret(accepted, spki, id);
        Ok(token.map(|token| Exchanged { token: token.value, secret, replayed: true }))
    }

    /// The text of the token: 128 bits that only the sealing key gives.
    fn exchanged_secret(&self, accepted: &Accepted, spki: &str, id: &str) -> TokenSecret {
        let of = format!("{}\0{spki}\0{id}", accepted.digest());
        let secret = Zeroizing::new(hex(&self.sealer.tag("exchange", of.as_bytes())));
        TokenSecret::new(format!("{id}-{}", *secret))
    }
}
