//! The record of tokens that opened a lease: each opens one, and is remembered until it cannot be
//! presented any more.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::judge::{Accepted, digest_of};
use super::jws;
use super::trace::{Step, Trace};
use crate::audit::Actor;
use crate::authority::Authority;
use crate::csr::Csr;
use crate::enrol::token::REPLAY_WINDOW;
use crate::enrol::{Refusal, RefusalCode};
use crate::error::Error;
use crate::lease::Lease;
use crate::record::{self, Stored, key};
use crate::store::{Outcome, Txn};
use crate::time::UnixTime;

/// Spent tokens forgotten at once, when so many cannot be presented any more.
const PRUNE_BATCH: usize = 64;
/// They are kept this much longer than they are good: a lease that was approved may be collected
/// for more than an hour yet, and clocks are set back, too.
const PRUNE_MARGIN: std::time::Duration = std::time::Duration::from_secs(2 * 3_600);

/// The record of a token that opened a lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JwtSpend {
    /// When.
    pub at: UnixTime,
    /// By which key.
    pub spki_sha256: String,
    /// The lease; empty while the one-time token that was given for it has opened none.
    pub lease_id: String,
    /// The token is refused from here on, and the record not needed.
    pub good_until: UnixTime,
    /// Whether the key was made here.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub made_here: bool,
    /// When it was reserved for a lease that an operator had to approve.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reserved: Option<UnixTime>,
    /// That lease still waits.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pending: bool,
    /// The one-time token that was given for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
}

impl Authority {
    /// Refuses a token from before the record of spent tokens was lost.
    pub(crate) fn refuse_older(
        &self,
        accepted: &Accepted,
        spki_sha256: &str,
        actor: &Actor,
        now: UnixTime,
    ) -> Result<(), Refusal> {
        let Some(floor) = self.jwt_floor(accepted.issued, now)? else { return Ok(()) };
        let refusal = Refusal::new(
            RefusalCode::TokenReplay,
            format!(
                "the token was issued before {floor}, when the record of spent tokens was lost: \
                 start the job again"
            ),
        );
        let (name, role) = (accepted.name(), Some(accepted.role.as_str()));
        let key = Some(spki_sha256);
        self.audit_refusal_of("token.replay", &name, role, key, actor, &refusal, now)?;
        Err(refusal)
    }

    /// When an expired token was reserved for a lease that still waits, or was opened just now.
    pub(super) fn reserved_at(
        &self,
        token: &str,
        now: UnixTime,
    ) -> Result<Option<UnixTime>, Error> {
        let Ok(token) = jws::parse(token) else { return Ok(None) };
        let issuer = token.claims.get("iss").and_then(Value::as_str).unwrap_or_default();
        let spent = self.jwt_spend(&digest_of(issuer, &token))?;
        let spent = spent.filter(|spent| spent.pending || now < spent.at.plus(REPLAY_WINDOW));
        Ok(spent.and_then(|spent| spent.reserved))
    }

    /// Writes down in the transaction that opens the lease that its token is spent.
    pub(crate) fn jwt_spent(
        &self,
        txn: &mut Txn,
        accepted: &Accepted,
        lease: &Lease,
        csr: &Csr,
        now: UnixTime,
    ) -> Result<(), Error> {
        let spent_key = key::jwt(&accepted.digest);
        let before = record::read::<JwtSpend>(self.store.as_ref(), &spent_key)?;
        if let Some(Stored { value, revision }) = before.filter(|before| before.value.pending) {
            let spent = JwtSpend { at: now, pending: false, ..value };
            txn.at(&spent_key, revision).put(spent_key, record::encode(&spent));
        } else {
            let spent = JwtSpend::new(accepted, &lease.id, &lease.spki_sha256, now);
            JwtSpend { made_here: csr.made_here, ..spent }.put(txn, accepted);
        }
        Ok(())
    }

    /// Refuses a token that is spent, and has it in the audit trail.
    pub(crate) fn refuse_spent(
        &self,
        accepted: &Accepted,
        spent: &JwtSpend,
        spki_sha256: &str,
        actor: &Actor,
        now: UnixTime,
    ) -> Result<Refusal, Error> {
        let refusal = already_spent(accepted, spent, spki_sha256);
        let action = match refusal.code {
            RefusalCode::TokenReplay => "token.replay",
            _ => "token.use",
        };
        let (name, role) = (accepted.name(), Some(accepted.role.as_str()));
        let key = Some(spki_sha256);
        self.audit_refusal_of(action, &name, role, key, actor, &refusal, now)?;
        Ok(refusal)
    }

    /// Writes down which lease was opened with the one-time token that a token was given for.
    pub(crate) fn note_exchanged(
        &self,
        txn: &mut Txn,
        accepted: &Accepted,
        lease_id: &str,
    ) -> Result<(), Error> {
        let spent_key = key::jwt(&accepted.digest);
        let spent = record::read::<JwtSpend>(self.store.as_ref(), &spent_key)?;
        if let Some(Stored { value, revision }) = spent {
            let spent = JwtSpend { lease_id: lease_id.to_owned(), ..value };
            txn.at(&spent_key, revision).put(spent_key, record::encode(&spent));
        }
        Ok(())
    }

    /// What a token opened.
    pub(crate) fn jwt_spend(&self, digest: &str) -> Result<Option<JwtSpend>, Error> {
        let spent = record::read::<JwtSpend>(self.store.as_ref(), &key::jwt(digest))?;
        Ok(spent.map(|spent| spent.value))
    }

    /// Forgets tokens that cannot be presented any more.
    pub(super) fn forget_spent(&self, now: UnixTime) -> Result<(), Error> {
        let due = self.store.range(key::JWT_DUE, None, PRUNE_BATCH)?;
        let over: Vec<&str> = due
            .iter()
            .filter_map(|(due, _)| key::parse_jwt_due(due))
            .take_while(|(until, _)| until.plus(PRUNE_MARGIN) <= now)
            .map(|(_, digest)| digest)
            .collect();
        if over.len() < PRUNE_BATCH {
            return Ok(());
        }
        let mut txn = Txn::new();
        for (due, _) in &due {
            txn.delete(due.clone());
        }
        for digest in over {
            let spent_key = key::jwt(digest);
            if let Some(entry) = self.store.get(&spent_key)? {
                txn.at(&spent_key, entry.revision).delete(spent_key);
            }
        }
        // Somebody else may have been faster: then it is done.
        match self.store.transact(txn)? {
            Outcome::Committed(_) | Outcome::Conflict(_) => Ok(()),
        }
    }
}

/// Reserves a token for a lease that waits for an operator.
pub(crate) fn reserve(
    txn: &mut Txn,
    accepted: &Accepted,
    lease_id: &str,
    spki_sha256: &str,
    now: UnixTime,
) {
    let spent = JwtSpend {
        reserved: Some(now),
        pending: true,
        ..JwtSpend::new(accepted, lease_id, spki_sha256, now)
    };
    spent.put(txn, accepted);
}

impl JwtSpend {
    /// Of a token that opens a lease now.
    pub(crate) fn new(
        accepted: &Accepted,
        lease_id: &str,
        spki_sha256: &str,
        now: UnixTime,
    ) -> Self {
        Self {
            at: now,
            spki_sha256: spki_sha256.to_owned(),
            lease_id: lease_id.to_owned(),
            good_until: accepted.good_until,
            made_here: false,
            reserved: None,
            pending: false,
            token: None,
        }
    }

    /// Writes it down, if the token was not spent before.
    pub(crate) fn put(&self, txn: &mut Txn, accepted: &Accepted) {
        let spent_key = key::jwt(&accepted.digest);
        txn.absent(&spent_key)
            .put(spent_key, record::encode(self))
            .put(key::jwt_due(accepted.good_until, &accepted.digest), Vec::new());
    }
}

fn already_spent(accepted: &Accepted, spent: &JwtSpend, asking: &str) -> Refusal {
    let (name, JwtSpend { at, spki_sha256, lease_id, .. }) = (accepted.name(), spent);
    let mut trace = Trace {
        issuer: Some(accepted.issuer.clone()),
        role: Some(accepted.role.clone()),
        ..Trace::default()
    };
    let found = match &spent.token {
        Some(token) => format!("was exchanged for token {token} at {at}"),
        None => format!("opened lease {lease_id} at {at}"),
    };
    let mut step = Step::new("spent", false, "a token that opened no lease", Some(found.clone()));
    let refusal = if let Some(token) = spent.token.as_ref().filter(|_| spki_sha256 == asking) {
        step.hint = Some("use the token it was exchanged for".to_owned());
        Refusal::new(
            RefusalCode::TokenSpent,
            format!(
                "token {name} was exchanged for the one-time token {token} at {at}: use that one, \
                 or ask for a new token"
            ),
        )
    } else if spki_sha256 == asking {
        step.hint = Some("the same key may ask again for 5 minutes".to_owned());
        Refusal::new(
            RefusalCode::TokenSpent,
            format!(
                "token {name} opened lease {lease_id} for this key at {at}, longer than 5 minutes \
                 ago: renew the lease's certificate or ask for a new token"
            ),
        )
    } else {
        // Which lease is no business of whoever copied the token.
        step.found = Some(match &spent.token {
            Some(_) => format!("was exchanged at {at}"),
            None => format!("opened a lease at {at}"),
        });
        step.hint = Some("another key asks".to_owned());
        let asking = match asking {
            "" => "for a key that is made here".to_owned(),
            hash => format!("with key sha256:{hash}"),
        };
        Refusal::new(
            RefusalCode::TokenReplay,
            format!(
                "token {name} of issuer {} {found} for key sha256:{spki_sha256} and is now presented \
                 {asking}: somebody may have copied it; look at what its job prints, \
                 or ask for one token for each key",
                accepted.issuer
            ),
        )
    };
    trace.token.push(step);
    refusal.with_trace(trace)
}
