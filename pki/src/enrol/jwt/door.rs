//! The door: a token of a CI platform opens one lease.

use std::borrow::Cow;
use std::net::IpAddr;

use serde_json::Value;

use super::claims::{self, Claims};
use super::judge::{Accepted, examine, recognise};
use super::jwks::KeySet;
use super::jws;
use super::trace::Trace;
use super::{Issuer, IssuerKeys, KeysWanted};
use crate::audit::Actor;
use crate::authority::{Authority, lock};
use crate::csr::Csr;
use crate::enrol::open::Grant;
use crate::enrol::token::REPLAY_WINDOW;
use crate::enrol::{Enrolled, Refusal, RefusalCode};
use crate::error::Error;
use crate::issue::sha256_hex;
use crate::time::UnixTime;

/// How often an enrolment is tried again when another writer was faster.
const ATTEMPTS: usize = 64;

impl Authority {
    /// Whether an issuer's keys are to be fetched for a token. Nothing is, for a token that is
    /// refused anyhow: strangers must not have us fetch for them.
    pub fn jwt_keys_wanted(&self, token: &str, now: UnixTime) -> KeysWanted {
        let settings = self.settings();
        let text = token;
        let Ok(token) = jws::parse(token) else { return KeysWanted::No };
        let mut trace = Trace::default();
        let Ok(issuer) = recognise(&mut trace, &settings.issuers, &token) else {
            return KeysWanted::No;
        };
        let all = Claims::read(&token.claims);
        let failed = |at| {
            let (verdicts, _) = claims::registered(&token.claims, &all, issuer, at);
            verdicts.into_iter().find(|(step, _)| !step.ok).map(|(_, code)| code)
        };
        let hopeless = match failed(now) {
            None => false,
            // Whoever waits for an operator may do so longer than the token lives.
            Some(RefusalCode::JwtExpired) => match self.reserved_at(text, now) {
                Ok(Some(at)) => failed(at).is_some(),
                Ok(None) | Err(_) => true,
            },
            Some(_) => true,
        };
        if hopeless || !issuer.algorithms.contains(&token.algorithm) {
            return KeysWanted::No;
        }
        lock(&self.keyring).wanted(issuer, token.kid.as_deref(), token.algorithm, now)
    }

    /// Takes an issuer's key set as fetched, or why it could not be fetched. Keys that are there
    /// stay when a fetch fails.
    ///
    /// # Errors
    /// One sentence about a set without a usable key.
    pub fn jwt_keys_fetched(
        &self,
        issuer: &Issuer,
        fetched: Result<Vec<u8>, String>,
        now: UnixTime,
    ) -> Result<usize, String> {
        self.keep_keys(issuer, None, fetched, now)
    }

    /// The same for keys that were fetched on behalf of a token. Another token whose key is not
    /// among them is told to wait for the next fetch; this one is refused.
    ///
    /// # Errors
    /// As [`jwt_keys_fetched`](Self::jwt_keys_fetched).
    pub fn jwt_keys_fetched_for(
        &self,
        issuer: &Issuer,
        token: &str,
        fetched: Result<Vec<u8>, String>,
        now: UnixTime,
    ) -> Result<usize, String> {
        self.keep_keys(issuer, Some(sha256_hex(token.as_bytes())), fetched, now)
    }

    fn keep_keys(
        &self,
        issuer: &Issuer,
        token: Option<String>,
        fetched: Result<Vec<u8>, String>,
        now: UnixTime,
    ) -> Result<usize, String> {
        let set = fetched.and_then(|octets| KeySet::parse(&octets));
        let result = set.as_ref().map(KeySet::len).map_err(Clone::clone);
        lock(&self.keyring).fetched(issuer, set, token, now);
        result
    }

    /// A key that is not there while none is fetched: the issuer may have it by now.
    pub(super) fn or_wait(&self, token: &str, refusal: Refusal, now: UnixTime) -> Refusal {
        if refusal.code != RefusalCode::JwtUnknownKey {
            return refusal;
        }
        let settings = self.settings();
        let issuer = jws::parse(token)
            .ok()
            .and_then(|token| recognise(&mut Trace::default(), &settings.issuers, &token).ok());
        let digest = sha256_hex(token.as_bytes());
        let wait =
            issuer.and_then(|issuer| lock(&self.keyring).looked_for_again(issuer, &digest, now));
        let Some(wait) = wait else { return refusal };
        let mut later = Refusal::new(RefusalCode::JwtKeysUnavailable, refusal.detail).after(wait);
        later.trace = refusal.trace;
        later
    }

    /// Judges a token with the keys that are there.
    ///
    /// # Errors
    /// Why it is not accepted, with the trace.
    pub fn jwt_examine(
        &self,
        token: &str,
        role: Option<&str>,
        now: UnixTime,
    ) -> Result<Accepted, Refusal> {
        let settings = self.settings();
        let keys = |issuer: &Issuer| self.jwt_keys(issuer, now);
        let (trace, judged) = examine(&settings.issuers, &settings.rules, keys, token, role, now);
        self.note_clock(&trace, token, now);
        judged.map_err(|refusal| self.or_wait(token, refusal, now))
    }

    /// How the keys of each configured issuer are, in the order of the configuration.
    pub fn issuer_keys(&self, now: UnixTime) -> Vec<IssuerKeys> {
        let settings = self.settings();
        lock(&self.keyring).told(&settings.issuers, now)
    }

    /// What a token of proven origin says about its issuer's clock.
    fn note_clock(&self, trace: &Trace, token: &str, now: UnixTime) {
        let proven = trace.token.iter().any(|step| step.ok && step.field == "signature");
        let Some(issuer) = trace.issuer.as_ref().filter(|_| proven) else { return };
        let Ok(token) = jws::parse(token) else { return };
        if let Some(issued) = token.claims.get("iat").and_then(Value::as_i64) {
            lock(&self.keyring).note_clock(issuer, issued.saturating_sub(now.secs()));
        }
    }

    /// Opens a lease with a token of a CI platform, or repeats the answer to the same key.
    ///
    /// A token opens one lease. For [`REPLAY_WINDOW`] the same key gets the same answer again,
    /// also after a crash; another key never does.
    ///
    /// # Errors
    /// The reason with the trace; it is also written to the audit log when the token is genuine.
    pub fn enrol_with_jwt(
        &self,
        role: Option<&str>,
        token: &str,
        csr: &Csr,
        client: Option<IpAddr>,
        now: UnixTime,
    ) -> Result<Enrolled, Refusal> {
        let accepted = self.jwt_admit(role, token, client, now)?;
        self.enrol_accepted(&accepted, csr, client, now)
    }

    /// Judges a token that is to open a lease. What is refused though it is genuine is audited.
    ///
    /// # Errors
    /// Why it is not accepted, with the trace.
    pub fn jwt_admit(
        &self,
        role: Option<&str>,
        token: &str,
        client: Option<IpAddr>,
        now: UnixTime,
    ) -> Result<Accepted, Refusal> {
        let actor = client.map_or(Actor::System, Actor::Peer);
        let judged = self.jwt_examine(token, role, now);
        // Whoever waits for an operator may do so longer than the token lives: it is judged at the
        // time it was reserved.
        let (judged, reviewed) = match judged {
            Err(refusal) if refusal.code == RefusalCode::JwtExpired => {
                match self.reserved_at(token, now)? {
                    // Nobody confirms an expired token, and this one was reviewed when it was
                    // reserved.
                    Some(at) => (self.jwt_examine(token, role, at), true),
                    None => (Err(refusal), false),
                }
            }
            judged => (judged, false),
        };
        let judged = judged.or_else(|refusal| {
            if refusal.code == RefusalCode::JwtNoRule {
                let issuer =
                    refusal.trace.as_ref().and_then(|t| t.issuer.clone()).unwrap_or_default();
                let name = format!("jwt of {issuer}");
                self.audit_refusal("token.use", &name, role, None, &actor, &refusal, now)?;
            }
            Err(refusal)
        })?;
        if reviewed {
            return Ok(judged);
        }
        self.pass_review(judged, token, &actor, now)
    }

    /// Opens a lease with a token that was judged just now.
    ///
    /// # Errors
    /// As [`enrol_with_jwt`](Self::enrol_with_jwt).
    pub fn enrol_accepted(
        &self,
        accepted: &Accepted,
        csr: &Csr,
        client: Option<IpAddr>,
        now: UnixTime,
    ) -> Result<Enrolled, Refusal> {
        // Requests with one token take turns: all but the first would sign in vain.
        let _turn = self.token_turn(&accepted.digest);
        self.enrol_accepted_in_turn(accepted, csr, client, false, now)
    }

    /// The same while the token's turn is held. `counted`: the limits know of it already.
    pub(in crate::enrol) fn enrol_accepted_in_turn(
        &self,
        accepted: &Accepted,
        csr: &Csr,
        client: Option<IpAddr>,
        mut counted: bool,
        now: UnixTime,
    ) -> Result<Enrolled, Refusal> {
        let actor = client.map_or(Actor::System, Actor::Peer);
        self.refuse_older(accepted, &csr.spki_sha256, &actor, now)?;
        for _ in 0..ATTEMPTS {
            let reserved = if let Some(spent) = self.jwt_spend(&accepted.digest)? {
                let own = spent.token.is_none() && spent.spki_sha256 == csr.spki_sha256;
                if own && spent.pending {
                    Some(spent.lease_id)
                } else if own && now < spent.at.plus(REPLAY_WINDOW) {
                    return self.replay(&spent.lease_id, &csr.spki_sha256, now);
                } else {
                    let key = &csr.spki_sha256;
                    return Err(self.refuse_spent(accepted, &spent, key, &actor, now)?);
                }
            } else {
                None
            };
            let grant = Grant::of_job(accepted, reserved, actor.clone());
            match self.open_within_limits(&grant, &mut counted, csr, now) {
                Ok(Some(enrolled)) => {
                    // The lease is durable: what is left over is forgotten another time.
                    let _ = self.forget_spent(now);
                    return Ok(enrolled);
                }
                Ok(None) => {}
                Err(refusal) => {
                    let (name, role) = (accepted.name(), Some(accepted.role.as_str()));
                    let key = Some(csr.spki_sha256.as_str());
                    self.audit_denied(&name, role, key, &actor, &refusal, now)?;
                    return Err(refusal);
                }
            }
        }
        Err(Error::Contended("the enrolment").into())
    }

    pub(super) fn jwt_keys(
        &self,
        issuer: &Issuer,
        now: UnixTime,
    ) -> Result<Cow<'static, KeySet>, String> {
        lock(&self.keyring).keys(issuer, now).cloned().map(Cow::Owned)
    }
}
