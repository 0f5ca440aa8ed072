//! What a verified token says: the registered claims, and the rest by name.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Map, Value};

use super::trace::Step;
use super::{Issuer, JobDeadline};
use crate::enrol::RefusalCode;
use crate::time::UnixTime;

/// Clocks may differ by this much: a machine at boot has not asked for the time yet.
pub const LEEWAY: Duration = Duration::from_secs(60);
/// A token of GitLab that lives no longer says nothing about its job.
const UNTOLD: Duration = Duration::from_secs(300);
/// The longest life of a token. GitLab's live as long as their job may run.
pub const MAX_LIFE: Duration = Duration::from_secs(24 * 3_600);
/// Claims looked at, nested ones counted one by one.
const MAX_CLAIMS: usize = 256;
/// Levels of nesting looked at.
const MAX_DEPTH: usize = 4;
/// Octets of a value shown in a trace.
const MAX_SHOWN: usize = 200;

/// A token's claims by name. Claims within claims are named by path, with dots; a claim that is a
/// list has several values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claims(BTreeMap<String, Vec<String>>);

impl Claims {
    /// Reads the claims of a token. What is too many or too deep is left out, and then matches
    /// nothing.
    pub fn read(object: &Map<String, Value>) -> Self {
        let mut claims = Self::default();
        claims.gather("", object, 0);
        claims
    }

    fn gather(&mut self, prefix: &str, object: &Map<String, Value>, depth: usize) {
        for (name, value) in object {
            if self.0.len() >= MAX_CLAIMS {
                return;
            }
            let name = match prefix {
                "" => name.clone(),
                prefix => format!("{prefix}.{name}"),
            };
            // A name and a path that read the same would be a way to say another's claim.
            if let Some(said) = self.0.get_mut(&name) {
                said.clear();
                continue;
            }
            match value {
                Value::Object(inner) if depth < MAX_DEPTH => self.gather(&name, inner, depth + 1),
                Value::Array(items) => {
                    self.0.insert(name, items.iter().filter_map(scalar).collect());
                }
                other => {
                    if let Some(text) = scalar(other) {
                        self.0.insert(name, vec![text]);
                    }
                }
            }
        }
    }

    /// The values of a claim; none when the token does not have it.
    pub fn all(&self, name: &str) -> &[String] {
        self.0.get(name).map_or(&[], Vec::as_slice)
    }

    /// A claim that is one text, number or truth value.
    pub fn one(&self, name: &str) -> Option<&str> {
        match self.all(name) {
            [only] => Some(only),
            _ => None,
        }
    }

    /// A claim for a trace.
    pub(super) fn show(&self, name: &str) -> Option<String> {
        let values = self.0.get(name)?;
        let mut text = values.join(", ");
        if let Some((end, _)) = text.char_indices().nth(MAX_SHOWN) {
            text.truncate(end);
            text.push('…');
        }
        Some(text)
    }
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(flag.to_string()),
        _ => None,
    }
}

/// A claim that fails, with the code of the refusal.
pub(super) type Verdicts = Vec<(Step, RefusalCode)>;

/// Judges the registered claims of a token of this issuer (RFC 7519 4.1), and says until when it
/// is good, leeway included. Every claim is judged, so that a trace shows all that is wrong.
pub(super) fn registered(
    object: &Map<String, Value>,
    claims: &Claims,
    issuer: &Issuer,
    now: UnixTime,
) -> (Verdicts, UnixTime) {
    let audience = match object.get("aud") {
        Some(Value::String(_) | Value::Array(_)) => claims.all("aud").contains(&issuer.audience),
        _ => false,
    };
    let mut steps = vec![(
        Step::new("aud", audience, issuer.audience.as_str(), claims.show("aud")),
        RefusalCode::JwtWrongAudience,
    )];
    let at = |name: &str| object.get(name).map(|value| instant(value).ok_or(()));
    let show = |time: Option<Result<UnixTime, ()>>| match time {
        Some(Ok(time)) => Some(time.to_string()),
        Some(Err(())) => Some("no number of seconds".to_owned()),
        None => None,
    };
    let mut step = |name: &str, ok: bool, wanted: String, code| {
        steps.push((Step::new(name, ok, wanted, show(at(name))), code));
    };
    let (exp, nbf, iat) = (at("exp"), at("nbf"), at("iat"));
    let good_until = match exp {
        Some(Ok(exp)) => exp.plus(LEEWAY),
        _ => now,
    };
    step("exp", now < good_until, format!("after {now}"), RefusalCode::JwtExpired);
    let begun = |time: Option<Result<UnixTime, ()>>| match time {
        Some(Ok(time)) => time <= now.plus(LEEWAY),
        Some(Err(())) => false,
        // Both are optional (4.1.5, 4.1.6): Jenkins has no nbf.
        None => true,
    };
    if nbf.is_some() {
        step("nbf", begun(nbf), format!("not after {now}"), RefusalCode::JwtNotYetValid);
    }
    if iat.is_some() {
        step("iat", begun(iat), format!("not after {now}"), RefusalCode::JwtNotYetValid);
    }
    // Without iat the time that is left must do.
    let begin = match iat {
        Some(Ok(iat)) => iat.min(now.plus(LEEWAY)),
        _ => now.plus(LEEWAY),
    };
    if let Some(Ok(exp)) = exp
        && exp.since(begin) > MAX_LIFE
    {
        let (wanted, found) = ("at most 24 h", format!("{} s", exp.since(begin).as_secs()));
        steps.push((
            Step::new("lifetime", false, wanted, Some(found)),
            RefusalCode::JwtTooLongLived,
        ));
    }
    (steps, good_until)
}

/// When a token's job ends at the latest, if the token says so, with the leeway of all its times.
pub(super) fn job_ends(object: &Map<String, Value>, deadline: &JobDeadline) -> Option<UnixTime> {
    let at = |name: &str| object.get(name).and_then(instant);
    let ends = match deadline {
        JobDeadline::Unknown => return None,
        JobDeadline::Claim(name) => at(name)?,
        JobDeadline::Lifetime => {
            let (begun, over) = (at("iat").or_else(|| at("nbf"))?, at("exp")?);
            if over.since(begun) <= UNTOLD {
                return None;
            }
            over
        }
    };
    Some(ends.plus(LEEWAY))
}

/// A NumericDate (RFC 7519 2): seconds, perhaps with a fraction.
pub(super) fn instant(value: &Value) -> Option<UnixTime> {
    if let Some(secs) = value.as_i64() {
        return Some(UnixTime::from_secs(secs));
    }
    let secs = value.as_f64().filter(|secs| secs.is_finite())?;
    // Saturates, which is what a time beyond all others should do.
    Some(UnixTime::from_micros((secs * 1e6) as i64))
}
