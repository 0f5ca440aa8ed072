//! The door: a token of a CI platform opens one lease.

use std::borrow::Cow;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::claims::{self, Claims};
use super::jwks::{KeyError, KeySet};
use super::jws::{self, JwsError, Unverified};
use super::trace::{Step, Trace};
use super::{ClaimRule, Issuer, IssuerKeys, JobContext, JwtAlgorithm, KeysWanted};
use crate::audit::Actor;
use crate::authority::{Authority, lock};
use crate::csr::Csr;
use crate::enrol::open::Grant;
use crate::enrol::token::REPLAY_WINDOW;
use crate::enrol::{Enrolled, Refusal, RefusalCode, shown};
use crate::error::Error;
use crate::issue::sha256_hex;
use crate::lease::Lease;
use crate::record::{self, Stored, key};
use crate::store::{Outcome, Txn};
use crate::time::UnixTime;

/// How often an enrolment is tried again when another writer was faster.
const ATTEMPTS: usize = 64;
/// Spent tokens forgotten at once, when so many cannot be presented any more.
const PRUNE_BATCH: usize = 64;
/// They are kept this much longer than they are good: clocks are set back, too.
const PRUNE_MARGIN: std::time::Duration = std::time::Duration::from_secs(3_600);

/// A token that is good and what it gives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// The configured issuer.
    pub issuer: String,
    /// The role.
    pub role: String,
    /// Which of the role's rules matched, from 1.
    pub rule: usize,
    /// The job.
    pub context: JobContext,
    /// Names the token without giving it away: a digest of issuer and `jti`, or of the signed
    /// part for issuers without `jti`.
    pub(crate) digest: String,
    /// It is refused from here on.
    pub(crate) good_until: UnixTime,
    /// When it was issued, if it says so.
    pub(crate) issued: Option<UnixTime>,
}

impl Accepted {
    pub(crate) fn digest(&self) -> &str {
        &self.digest
    }

    pub(crate) const fn good_until(&self) -> UnixTime {
        self.good_until
    }

    /// The token's name in listings and audit.
    pub fn name(&self) -> String {
        name(&self.digest)
    }
}

fn name(digest: &str) -> String {
    format!("jwt-{}", digest.get(..16).unwrap_or_default())
}

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

/// Judges a token: its form, its issuer's signature, its registered claims, the issuer's rules.
/// Spends nothing. `keys` gives the keys of an issuer, or says why there are none; `role` limits
/// the rules to those of one role.
///
/// The trace tells every step, whether the token is accepted or not.
pub fn examine<'k>(
    issuers: &[Issuer],
    rules: &[ClaimRule],
    keys: impl FnOnce(&Issuer) -> Result<Cow<'k, KeySet>, String>,
    token: &str,
    role: Option<&str>,
    now: UnixTime,
) -> (Trace, Result<Accepted, Refusal>) {
    let mut trace = Trace::default();
    let judged = genuine(&mut trace, issuers, keys, token, now)
        .and_then(|genuine| entitled(&mut trace, genuine, rules, role));
    let judged = judged.map_err(|refusal| refusal.with_trace(trace.clone()));
    (trace, judged)
}

/// A token that its issuer made for us and that is good now; whatever it may give.
pub(super) struct Genuine<'i> {
    pub(super) issuer: &'i Issuer,
    claims: Claims,
    digest: String,
    good_until: UnixTime,
    issued: Option<UnixTime>,
}

/// Judges everything about a token but what it gives.
pub(super) fn genuine<'i, 'k>(
    trace: &mut Trace,
    issuers: &'i [Issuer],
    keys: impl FnOnce(&Issuer) -> Result<Cow<'k, KeySet>, String>,
    token: &str,
    now: UnixTime,
) -> Result<Genuine<'i>, Refusal> {
    let token = jws::parse(token).map_err(|error| {
        let (field, code) = match error {
            JwsError::Algorithm(_) => ("algorithm", RefusalCode::JwtAlgorithm),
            _ => ("form", RefusalCode::JwtMalformed),
        };
        let found = match &error {
            JwsError::Algorithm(name) => Some(name.clone()),
            _ => None,
        };
        trace.token.push(Step::new(field, false, error.to_string(), found));
        Refusal::new(code, format!("{error}: send the token as the CI platform issued it"))
    })?;
    let issuer = recognise(trace, issuers, &token)?;
    trace.issuer = Some(issuer.name.clone());
    accepted_algorithm(trace, issuer, token.algorithm)?;
    let set = keys(issuer).map_err(|why| {
        let wanted = format!("the keys of {}", issuer.issuer);
        trace.token.push(Step::new("key", false, wanted, Some(why.clone())));
        Refusal::new(
            RefusalCode::JwtKeysUnavailable,
            format!(
                "the keys of issuer {} are not there ({why}): see that the gateway reaches {} or \
                 give the keys with static_jwks",
                issuer.name, issuer.issuer
            ),
        )
    })?;
    signed(trace, issuer, &set, &token)?;
    let all = Claims::read(&token.claims);
    let (verdicts, good_until) = claims::registered(&token.claims, &all, issuer, now);
    let failed = verdicts.iter().find(|(step, _)| !step.ok).cloned();
    trace.token.extend(verdicts.into_iter().map(|(step, _)| step));
    if let Some((step, code)) = failed {
        return Err(Refusal::new(code, claim_sentence(issuer, &step, code)));
    }
    let issued = token.claims.get("iat").and_then(claims::instant);
    let digest = digest_of(&issuer.issuer, &token);
    Ok(Genuine { issuer, claims: all, digest, good_until, issued })
}

/// What a token is known by when it is presented again.
fn digest_of(issuer: &str, token: &Unverified<'_>) -> String {
    let spent = match token.claims.get("jti").and_then(Value::as_str) {
        Some(jti) if !jti.is_empty() => format!("jti\0{issuer}\0{jti}").into_bytes(),
        // The signed part, not the whole: some signatures have a second valid form.
        _ => [b"jws\0".as_slice(), token.signed].concat(),
    };
    sha256_hex(&spent)
}

/// Judges what a token gives.
fn entitled(
    trace: &mut Trace,
    genuine: Genuine<'_>,
    rules: &[ClaimRule],
    role: Option<&str>,
) -> Result<Accepted, Refusal> {
    let Genuine { issuer, claims, digest, good_until, issued } = genuine;
    let rule = choose(trace, issuer, rules, &claims, role)?;
    trace.role = Some(rule.role.clone());
    Ok(Accepted {
        issuer: issuer.name.clone(),
        role: rule.role.clone(),
        rule: rule.number,
        context: JobContext::new(issuer, rule, &claims),
        digest,
        good_until,
        issued,
    })
}

/// The configured issuer a token claims to be of.
fn recognise<'i>(
    trace: &mut Trace,
    issuers: &'i [Issuer],
    token: &Unverified<'_>,
) -> Result<&'i Issuer, Refusal> {
    let claimed = token.claims.get("iss").and_then(Value::as_str);
    let known = issuers.iter().find(|issuer| Some(issuer.issuer.as_str()) == claimed);
    let names: Vec<&str> = issuers.iter().map(|issuer| issuer.issuer.as_str()).collect();
    let wanted = match names.as_slice() {
        [] => "an issuer; none is configured".to_owned(),
        names => names.join(" or "),
    };
    let found = claimed.map(|text| text.chars().take(200).collect());
    trace.token.push(Step::new("iss", known.is_some(), wanted, found));
    known.ok_or_else(|| {
        Refusal::new(
            RefusalCode::JwtUnknownIssuer,
            match claimed {
                Some(claimed) => {
                    let claimed: String = claimed.chars().take(200).collect();
                    format!("the token is of issuer {claimed:?}, which is not configured: add an [[issuer]] section with exactly this issuer")
                }
                None => "the token names no issuer: send one of a configured [[issuer]]".to_owned(),
            },
        )
    })
}

fn accepted_algorithm(
    trace: &mut Trace,
    issuer: &Issuer,
    algorithm: JwtAlgorithm,
) -> Result<(), Refusal> {
    let names: Vec<&str> = issuer.algorithms.iter().map(|algorithm| algorithm.name()).collect();
    let ok = issuer.algorithms.contains(&algorithm);
    let found = Some(algorithm.name().to_owned());
    trace.token.push(Step::new("algorithm", ok, names.join(" or "), found));
    if ok {
        return Ok(());
    }
    Err(Refusal::new(
        RefusalCode::JwtAlgorithm,
        format!(
            "the token is signed with {algorithm}, issuer {} may use {}: add it to its algorithms \
             if it is meant to",
            issuer.name,
            names.join(" or ")
        ),
    ))
}

fn signed(
    trace: &mut Trace,
    issuer: &Issuer,
    set: &KeySet,
    token: &Unverified<'_>,
) -> Result<(), Refusal> {
    let error = match set.verify(token) {
        Ok(kid) => {
            let found = Some(format!("by key {:?}", shown(&kid)));
            trace.token.push(Step::new("signature", true, "by a key of the issuer", found));
            return Ok(());
        }
        Err(error) => error,
    };
    let (field, code, fix) = match error {
        KeyError::Unknown(..) | KeyError::Ambiguous(..) => (
            "key",
            RefusalCode::JwtUnknownKey,
            "the key may be new and is looked for again in 30 s, or the token is not of this issuer",
        ),
        KeyError::BadSignature(_) => (
            "signature",
            RefusalCode::JwtBadSignature,
            "the token was altered or is not of this issuer",
        ),
    };
    let found = Some(error.to_string());
    trace.token.push(Step::new(field, false, "a key of the issuer", found));
    Err(Refusal::new(code, format!("{error} (issuer {}): {fix}", issuer.name)))
}

fn claim_sentence(issuer: &Issuer, step: &Step, code: RefusalCode) -> String {
    let found = step.found.as_deref().unwrap_or("not there");
    let name = &issuer.name;
    match code {
        RefusalCode::JwtWrongAudience => format!(
            "the token of issuer {name} is for audience {found:?}, not for {}: ask the platform \
             for a token with that audience",
            issuer.audience
        ),
        RefusalCode::JwtExpired => {
            format!("the token of issuer {name} expired at {found}: ask for a new one in the job")
        }
        RefusalCode::JwtTooLongLived => format!(
            "the token of issuer {name} lives {found}, longer than 24 h: have the platform issue \
             shorter ones"
        ),
        _ => format!(
            "the token of issuer {name} is good only from {found} on ({}): compare the clocks",
            step.field
        ),
    }
}

/// The first rule that matches.
fn choose<'r>(
    trace: &mut Trace,
    issuer: &Issuer,
    rules: &'r [ClaimRule],
    all: &Claims,
    role: Option<&str>,
) -> Result<&'r ClaimRule, Refusal> {
    let candidates = rules
        .iter()
        .filter(|rule| rule.issuer == issuer.name && role.is_none_or(|role| rule.role == role));
    for rule in candidates {
        let compared = rule.compare(issuer.kind, all);
        let matched = compared.matched;
        trace.rules.push(compared);
        if matched {
            return Ok(rule);
        }
    }
    let subject = all.one("sub").map(|text| text.chars().take(200).collect::<String>());
    let of = match role {
        Some(role) => format!("role {:?}", shown(role)),
        None => "any role".to_owned(),
    };
    let failed = match trace.failed() {
        Some(step) => format!(
            "; {} is {:?}, wanted {}",
            step.field,
            step.found.as_deref().unwrap_or("not there"),
            step.wanted.as_deref().unwrap_or_default()
        ),
        None => String::new(),
    };
    Err(Refusal::new(
        RefusalCode::JwtNoRule,
        format!(
            "no rule of {of} matches the token of issuer {} for {:?} ({} looked at{failed}): see \
             runnel identity test, and add a [[role.match]] if it is to have access",
            issuer.name,
            subject.unwrap_or_default(),
            trace.rules.len(),
        ),
    ))
}

impl Authority {
    /// Whether an issuer's keys are to be fetched for a token. Nothing is, for a token that is
    /// refused anyhow: strangers must not have us fetch for them.
    pub fn jwt_keys_wanted(&self, token: &str, now: UnixTime) -> KeysWanted {
        let settings = self.settings();
        let Ok(token) = jws::parse(token) else { return KeysWanted::No };
        let mut trace = Trace::default();
        let Ok(issuer) = recognise(&mut trace, &settings.issuers, &token) else {
            return KeysWanted::No;
        };
        let all = Claims::read(&token.claims);
        let (verdicts, _) = claims::registered(&token.claims, &all, issuer, now);
        let hopeless = verdicts.iter().any(|(step, _)| !step.ok)
            || !issuer.algorithms.contains(&token.algorithm);
        if hopeless {
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
    fn or_wait(&self, token: &str, refusal: Refusal, now: UnixTime) -> Refusal {
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
        let judged = match judged {
            Err(refusal) if refusal.code == RefusalCode::JwtExpired => {
                match self.reserved_at(token, now)? {
                    Some(at) => self.jwt_examine(token, role, at),
                    None => Err(refusal),
                }
            }
            judged => judged,
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
        let actor = client.map_or(Actor::System, Actor::Peer);
        // Requests with one token take turns: all but the first would sign in vain.
        let _turn = self.token_turn(&accepted.digest);
        self.refuse_older(accepted, &csr.spki_sha256, &actor, now)?;
        let mut counted = false;
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
            let grant = Grant {
                role: accepted.role.clone(),
                door: "jwt",
                token: None,
                jwt: Some(accepted),
                reserved,
                actor: actor.clone(),
            };
            match self.open_within_limits(&grant, &mut counted, csr, now) {
                Ok(Some(enrolled)) => {
                    // The lease is durable: what is left over is forgotten another time.
                    let _ = self.forget_spent(now);
                    return Ok(enrolled);
                }
                Ok(None) => {}
                Err(refusal) => {
                    let (name, role) = (accepted.name(), Some(accepted.role.as_str()));
                    self.audit_denied(&name, role, csr, &actor, &refusal, now)?;
                    return Err(refusal);
                }
            }
        }
        Err(Error::Contended("the enrolment").into())
    }

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
    fn reserved_at(&self, token: &str, now: UnixTime) -> Result<Option<UnixTime>, Error> {
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

    pub(super) fn jwt_keys(
        &self,
        issuer: &Issuer,
        now: UnixTime,
    ) -> Result<Cow<'static, KeySet>, String> {
        lock(&self.keyring).keys(issuer, now).cloned().map(Cow::Owned)
    }

    /// The lease a token opened, for whoever still has the token: it may be read and released
    /// with it as long as the token is good, whatever the rules say by then.
    ///
    /// # Errors
    /// Why the token is not accepted; [`RefusalCode::TokenUnknown`] when it opened none.
    pub fn lease_of_jwt(&self, token: &str, now: UnixTime) -> Result<Lease, Refusal> {
        let settings = self.settings();
        let mut trace = Trace::default();
        let keys = |issuer: &Issuer| self.jwt_keys(issuer, now);
        let digest = match genuine(&mut trace, &settings.issuers, keys, token, now) {
            Ok(genuine) => genuine.digest,
            Err(refusal) => return Err(self.or_wait(token, refusal.with_trace(trace), now)),
        };
        let lease = match self.jwt_spend(&digest)? {
            Some(spent) => {
                if let Some(refusal) = self.pending_refusal(&spent.lease_id, now)? {
                    return Err(refusal);
                }
                self.lease(&spent.lease_id)?
            }
            None => None,
        };
        lease.ok_or_else(|| {
            Refusal::new(
                RefusalCode::TokenUnknown,
                format!("token {} opened no lease that is on record", name(&digest)),
            )
        })
    }

    /// Forgets tokens that cannot be presented any more.
    fn forget_spent(&self, now: UnixTime) -> Result<(), Error> {
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
    let mut step = Step::new("spent", false, "a token that opened no lease", Some(found));
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
        step.found = Some(format!("opened a lease at {at}"));
        step.hint = Some("another key asks".to_owned());
        Refusal::new(
            RefusalCode::TokenReplay,
            format!(
                "token {name} of issuer {} opened lease {lease_id} at {at} for key \
                 sha256:{spki_sha256} and is now presented with key sha256:{asking}: somebody may have \
                 copied it; look at what its job prints, or ask for one token for each key",
                accepted.issuer
            ),
        )
    };
    trace.token.push(step);
    refusal.with_trace(trace)
}
