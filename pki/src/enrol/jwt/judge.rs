//! The judgement of a token: its form, its issuer's signature, its registered claims, and what the
//! rules give it. Pure: nothing is spent or fetched.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::claims::{self, Claims};
use super::jwks::{KeyError, KeySet};
use super::jws::{self, JwsError, Unverified};
use super::trace::{Step, Trace};
use super::{ClaimRule, Issuer, JobContext, JwtAlgorithm};
use crate::enrol::{Refusal, RefusalCode, shown};
use crate::issue::sha256_hex;
use crate::time::UnixTime;

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
    /// When the job ends at the latest, if it says so; leeway included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) job_ends: Option<UnixTime>,
    /// Whether its lease waits for an operator, where the rule says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) manual: Option<bool>,
}

impl Accepted {
    pub(crate) fn digest(&self) -> &str {
        &self.digest
    }

    pub(crate) const fn good_until(&self) -> UnixTime {
        self.good_until
    }

    /// Whether its lease waits for an operator, where the rule says it.
    pub(crate) const fn manual(&self) -> Option<bool> {
        self.manual
    }

    /// The token's name in listings and audit.
    pub fn name(&self) -> String {
        name(&self.digest)
    }
}

pub(super) fn name(digest: &str) -> String {
    format!("jwt-{}", digest.get(..16).unwrap_or_default())
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
    pub(super) claims: Claims,
    pub(super) digest: String,
    good_until: UnixTime,
    issued: Option<UnixTime>,
    job_ends: Option<UnixTime>,
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
    let job_ends = claims::job_ends(&token.claims, &issuer.job_deadline);
    Ok(Genuine { issuer, claims: all, digest, good_until, issued, job_ends })
}

/// What a token is known by when it is presented again.
pub(super) fn digest_of(issuer: &str, token: &Unverified<'_>) -> String {
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
    let Genuine { issuer, claims, digest, good_until, issued, job_ends } = genuine;
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
        job_ends,
        manual: rule.manual,
    })
}

/// The configured issuer a token claims to be of.
pub(super) fn recognise<'i>(
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
