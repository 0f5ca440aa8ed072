//! What the cluster says of a service account's token (Kubernetes TokenReview): it knows that a pod
//! is deleted, which no signature tells. The caller asks; this decides when, and what it means.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use super::judge::{Genuine, genuine};
use super::trace::{Step, Trace};
use super::{Accepted, Issuer};
use crate::audit::{Actor, AuditEvent};
use crate::authority::{Authority, lock};
use crate::enrol::{Refusal, RefusalCode, shown};
use crate::issue::sha256_hex;
use crate::time::UnixTime;

/// An answer counts this long: a job that asks twice in a moment is not asked about twice.
const KEPT: Duration = Duration::from_secs(10);
/// So long nobody is asked again after there was no answer, about any token of the issuer.
const LEFT_ALONE: Duration = Duration::from_secs(5);
/// A token is judged by an answer this much longer than it keeps others from asking: between the
/// two the request waits for its turn.
const JUDGED_WITHIN: Duration = Duration::from_secs(20);
/// Answers kept at most.
const MAX_KEPT: usize = 4_096;
/// Characters of the cluster's words that are shown.
const MAX_WORDS: usize = 200;

/// Where the cluster is asked about tokens of an issuer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenReview {
    /// The API server, `https://HOST[:PORT]`.
    pub url: String,
    /// PEM file with the CAs it is trusted by, instead of the system's.
    pub ca: Option<PathBuf>,
    /// File with the token we show it; read each time, because it is rotated.
    pub token_file: PathBuf,
    /// Tokens are refused while it does not answer; otherwise their signature is enough then.
    pub strict: bool,
}

/// What the cluster says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reviewed {
    /// The token is good, for our audience.
    Good,
    /// It is not: its pod or account is deleted, mostly.
    Denied(String),
    /// There is no answer.
    Unreachable(String),
}

/// The body of the question.
pub fn question(token: &str, audience: &str) -> Vec<u8> {
    let spec = json!({"token": token, "audiences": [audience]});
    let whole =
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": spec});
    whole.to_string().into_bytes()
}

/// Reads the answer.
pub fn answer(octets: &[u8], audience: &str) -> Reviewed {
    let Ok(document) = serde_json::from_slice::<Value>(octets) else {
        return Reviewed::Unreachable("its answer is no JSON".to_owned());
    };
    let status = &document["status"];
    if document["kind"] != "TokenReview" || !status.is_object() {
        return Reviewed::Unreachable("its answer is no TokenReview".to_owned());
    }
    if status["authenticated"] != true {
        let words = status["error"].as_str().unwrap_or("it is not authenticated");
        return Reviewed::Denied(words.chars().take(MAX_WORDS).collect());
    }
    // An authenticator that knows nothing of audiences names none, and has not looked at ours.
    let ours = |audiences: &Vec<Value>| audiences.iter().any(|one| one == audience);
    match status["audiences"].as_array().is_some_and(ours) {
        true => Reviewed::Good,
        false => Reviewed::Denied("it was not confirmed for our audience".to_owned()),
    }
}

/// Answers that count now.
#[derive(Debug, Default)]
pub(crate) struct Reviews {
    /// By the digest of the token.
    kept: BTreeMap<String, (UnixTime, Reviewed)>,
    /// By the name of the issuer: why its cluster gave none.
    silent: BTreeMap<String, (UnixTime, String)>,
}

impl Reviews {
    fn keep(&mut self, issuer: &str, digest: String, reviewed: Reviewed, now: UnixTime) {
        if let Reviewed::Unreachable(why) = reviewed {
            self.silent.insert(issuer.to_owned(), (now.plus(LEFT_ALONE), why));
            return;
        }
        self.silent.remove(issuer);
        if self.kept.len() >= MAX_KEPT {
            self.kept.retain(|_, (until, _)| counts(*until, JUDGED_WITHIN, now));
        }
        if self.kept.len() < MAX_KEPT || self.kept.contains_key(&digest) {
            self.kept.insert(digest, (now.plus(KEPT), reviewed));
        }
    }

    /// What is known of a token; what ended longer than `late` ago is not.
    fn get(&self, issuer: &str, digest: &str, late: Duration, now: UnixTime) -> Option<Reviewed> {
        let kept = self.kept.get(digest).filter(|(until, _)| counts(*until, late, now));
        let silent = || {
            // Not late: a silence of before is no answer for a token that nobody has asked about.
            let (_, why) =
                self.silent.get(issuer).filter(|(until, _)| counts(*until, Duration::ZERO, now))?;
            Some(Reviewed::Unreachable(why.clone()))
        };
        kept.map(|(_, reviewed)| reviewed.clone()).or_else(silent)
    }
}

fn counts(until: UnixTime, late: Duration, now: UnixTime) -> bool {
    // A clock that was set back must not keep an answer.
    now < until.plus(late) && until <= now.plus(KEPT)
}

impl Authority {
    /// The issuer whose cluster is to be asked about a token, before the token is judged. It is for
    /// tokens alone that the issuer's key has signed: strangers must not have us ask.
    pub fn jwt_review_wanted(&self, token: &str, now: UnixTime) -> Option<Issuer> {
        let settings = self.settings();
        if settings.issuers.iter().all(|issuer| issuer.review.is_none()) {
            return None;
        }
        let keys = |issuer: &Issuer| self.jwt_keys(issuer, now);
        let judged = genuine(&mut Trace::default(), &settings.issuers, keys, token, now);
        let Genuine { issuer, .. } = judged.ok()?;
        issuer.review.as_ref()?;
        let known = lock(&self.reviews).get(&issuer.name, &digest(token), Duration::ZERO, now);
        known.is_none().then(|| issuer.clone())
    }

    /// Takes what the cluster of its issuer said of a token.
    pub fn jwt_reviewed(&self, issuer: &Issuer, token: &str, reviewed: Reviewed, now: UnixTime) {
        lock(&self.reviews).keep(&issuer.name, digest(token), reviewed, now);
    }

    /// Whether the cluster lets a token pass that is good otherwise.
    pub(super) fn pass_review(
        &self,
        accepted: Accepted,
        token: &str,
        actor: &Actor,
        now: UnixTime,
    ) -> Result<Accepted, Refusal> {
        let settings = self.settings();
        let issuer = settings.issuers.iter().find(|issuer| issuer.name == accepted.issuer);
        let Some(review) = issuer.and_then(|issuer| issuer.review.as_ref()) else {
            return Ok(accepted);
        };
        let reviewed =
            lock(&self.reviews).get(&accepted.issuer, &digest(token), JUDGED_WITHIN, now);
        let refused = |code, found: &str, detail: String| {
            let mut trace = Trace { issuer: Some(accepted.issuer.clone()), ..Trace::default() };
            trace.token.push(Step::new("signature", true, "by a key of the issuer", None));
            let found = Some(shown(found).to_owned());
            trace.token.push(Step::new("review", false, "a token that the cluster knows", found));
            Refusal::new(code, detail).with_trace(trace)
        };
        match &reviewed {
            Some(Reviewed::Good) => Ok(accepted),
            Some(Reviewed::Denied(why)) => {
                let detail = format!(
                    "the cluster of issuer {} does not accept the token ({why}): its pod or service \
                     account may be deleted; enrol from a pod that runs",
                    accepted.issuer
                );
                let refusal = refused(RefusalCode::JwtReviewDenied, why, detail);
                let (name, role) = (accepted.name(), Some(accepted.role.as_str()));
                self.audit_refusal("token.use", &name, role, None, actor, &refusal, now)?;
                Err(refusal)
            }
            Some(Reviewed::Unreachable(_)) | None if review.strict || reviewed.is_none() => {
                let why = match &reviewed {
                    Some(Reviewed::Unreachable(why)) => why.as_str(),
                    // That is no reason to accept what it may have denied.
                    _ => "it was not asked in time",
                };
                let detail = format!(
                    "the cluster of issuer {} does not answer about the token ({why}): see that the \
                     gateway reaches {}, or set unreachable = \"accept\"",
                    accepted.issuer, review.url
                );
                Err(refused(RefusalCode::JwtReviewUnavailable, "no answer", detail)
                    .after(LEFT_ALONE))
            }
            Some(Reviewed::Unreachable(_)) | None => {
                let event = AuditEvent::new("token.review", actor, now)
                    .object(&accepted.issuer)
                    .refused("unreachable");
                self.record_refusal(&format!("review by {}", accepted.issuer), None, event)?;
                Ok(accepted)
            }
        }
    }
}

fn digest(token: &str) -> String {
    // Spaces around it do not make it another.
    sha256_hex(token.trim().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    const AUDIENCE: &str = "https://gw.example.com";

    fn read(status: Value) -> Reviewed {
        let document = json!({"kind": "TokenReview", "status": status});
        answer(document.to_string().as_bytes(), AUDIENCE)
    }

    #[test]
    fn only_what_is_confirmed_for_us_is_good() {
        let good = json!({"authenticated": true, "audiences": ["x", AUDIENCE]});
        assert_eq!(read(good), Reviewed::Good);
        for status in [
            json!({"authenticated": true}),
            json!({"authenticated": true, "audiences": ["x"]}),
            json!({"authenticated": "true", "audiences": [AUDIENCE]}),
            json!({"audiences": [AUDIENCE]}),
            json!({}),
        ] {
            assert!(matches!(read(status.clone()), Reviewed::Denied(_)), "{status}");
        }
        let gone = json!({"error": "pod \"a\" not found".repeat(100)});
        let Reviewed::Denied(words) = read(gone) else { panic!("it is good") };
        assert_eq!(words.chars().count(), MAX_WORDS);
        for octets in
            [&b"no JSON"[..], b"{}", b"{\"kind\":\"TokenReview\"}", b"{\"kind\":\"Status\"}"]
        {
            assert!(matches!(answer(octets, AUDIENCE), Reviewed::Unreachable(_)));
        }
    }

    #[test]
    fn answers_count_briefly_and_are_bounded() {
        let at = UnixTime::from_secs;
        let mut reviews = Reviews::default();
        reviews.keep("k8s", "a".to_owned(), Reviewed::Good, at(100));
        let asked = |reviews: &Reviews, now| reviews.get("k8s", "a", Duration::ZERO, now);
        assert_eq!(asked(&reviews, at(109)), Some(Reviewed::Good));
        assert_eq!(asked(&reviews, at(110)), None);
        assert_eq!(asked(&reviews, at(50)), None, "the clock was set back");
        // Whoever was told at the last moment that it is known is judged by it still.
        let judged = |now| reviews.get("k8s", "a", JUDGED_WITHIN, now);
        assert_eq!(judged(at(129)), Some(Reviewed::Good));
        assert_eq!((judged(at(130)), judged(at(50))), (None, None));
        for n in 0..2 * MAX_KEPT {
            reviews.keep("k8s", n.to_string(), Reviewed::Good, at(100));
        }
        assert!(reviews.kept.len() <= MAX_KEPT);
    }

    #[test]
    fn a_cluster_that_does_not_answer_is_left_alone_about_all_its_tokens() {
        let at = UnixTime::from_secs;
        let mut reviews = Reviews::default();
        let denied = Reviewed::Denied("gone".to_owned());
        let silent = Reviewed::Unreachable("no answer".to_owned());
        reviews.keep("k8s", "gone".to_owned(), denied.clone(), at(100));
        reviews.keep("k8s", "a".to_owned(), silent.clone(), at(101));
        let get = |reviews: &Reviews, issuer, token, now| {
            reviews.get(issuer, token, Duration::ZERO, at(now))
        };
        assert_eq!(get(&reviews, "k8s", "b", 105), Some(silent));
        assert_eq!(get(&reviews, "k8s", "b", 106), None);
        assert_eq!(get(&reviews, "other", "b", 105), None, "another cluster");
        assert_eq!(get(&reviews, "k8s", "gone", 105), Some(denied), "what it said still counts");
        reviews.keep("k8s", "c".to_owned(), Reviewed::Good, at(102));
        assert_eq!(get(&reviews, "k8s", "b", 103), None, "it answers again");
    }
}
