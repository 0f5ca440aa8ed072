//! What was looked at and what came of it, for operators and for the one who was refused.

use serde::Serialize;

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    /// The field: a claim's name, or `signature`, `key`, `algorithm`.
    pub field: String,
    /// Whether it is as it must be.
    pub ok: bool,
    /// What it must be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wanted: Option<String>,
    /// What it is; absent when the token does not have it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub found: Option<String>,
    /// What else helps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl Step {
    /// A step without a hint.
    pub(super) fn new(
        field: impl Into<String>,
        ok: bool,
        wanted: impl Into<String>,
        found: Option<String>,
    ) -> Self {
        Self { field: field.into(), ok, wanted: Some(wanted.into()), found, hint: None }
    }
}

/// One rule against the token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RuleTrace {
    /// The role it gives.
    pub role: String,
    /// Which of the role's rules, from 1; 0 and left out where that is nobody's business.
    #[serde(skip_serializing_if = "is_zero")]
    pub rule: usize,
    /// Whether all its fields match.
    pub matched: bool,
    /// Whether the token comes from the project that the rule is about.
    #[serde(skip)]
    pub pinned: bool,
    /// Its fields.
    pub fields: Vec<Step>,
}

fn is_zero(number: &usize) -> bool {
    *number == 0
}

/// How a token was judged.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Trace {
    /// The configured issuer that was recognised.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
    /// The token itself: form, signature, registered claims.
    pub token: Vec<Step>,
    /// The issuer's rules, in order; empty when the token itself is not accepted.
    pub rules: Vec<RuleTrace>,
    /// The role it gets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
}

impl Trace {
    /// What the presenter is told.
    ///
    /// Of a token whose signature does not verify anybody can be the author: only what is wrong
    /// with it, and nothing of what is configured here. Of a genuine one all about itself, and of
    /// the rules those that are about its project: on a public platform everybody can have a token
    /// that is good but for that, and how many others may enter, and who, is not everybody's
    /// business.
    #[must_use]
    pub fn public(&self) -> Self {
        // A token that is judged again once it opened a lease was verified before.
        let genuine = |step: &Step| step.ok && step.field == "signature" || step.field == "spent";
        if !self.token.iter().any(genuine) {
            let failed = self.token.iter().filter(|step| !step.ok).cloned();
            let bare = failed.map(|mut step| {
                // What a token must look like is no secret.
                if step.field != "form" {
                    (step.wanted, step.hint) = (None, None);
                }
                // That names keys of the issuer.
                if matches!(step.field.as_str(), "key" | "signature") {
                    step.found = None;
                }
                step
            });
            return Self { token: bare.collect(), ..Self::default() };
        }
        let mut told = self.clone();
        told.rules.retain(|rule| rule.pinned);
        for rule in &mut told.rules {
            rule.rule = 0;
        }
        told
    }

    /// The field that failed first: of the token, or of the rule that came closest.
    pub fn failed(&self) -> Option<&Step> {
        let closest = || {
            let open = self.rules.iter().filter(|rule| !rule.matched);
            open.max_by_key(|rule| (rule.pinned, rule.fields.iter().filter(|f| f.ok).count()))
        };
        self.token
            .iter()
            .find(|step| !step.ok)
            .or_else(|| closest()?.fields.iter().find(|step| !step.ok))
    }
}
