//! Rules: which claims a token must have to get a role.

use std::collections::BTreeMap;
use std::fmt;

use super::IssuerKind;
use super::claims::Claims;
use super::trace::{RuleTrace, Step};

/// A wanted value. `*` stands for any characters, none included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimPattern(String);

impl ClaimPattern {
    /// A pattern.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Whether it is one value and no other.
    pub fn is_exact(&self) -> bool {
        !self.0.contains('*')
    }

    /// The characters before the first `*`.
    pub fn prefix(&self) -> &str {
        self.0.split('*').next().unwrap_or_default()
    }

    /// Whether a value matches. Upper and lower case differ.
    pub fn matches(&self, value: &str) -> bool {
        let mut parts = self.0.split('*');
        let first = parts.next().unwrap_or_default();
        let Some(mut rest) = value.strip_prefix(first) else { return false };
        if self.is_exact() {
            return rest.is_empty();
        }
        let mut parts: Vec<&str> = parts.collect();
        let last = parts.pop().unwrap_or_default();
        // The leftmost place for each leaves the most for the next.
        for part in parts {
            match rest.find(part) {
                Some(at) => rest = rest.get(at + part.len()..).unwrap_or_default(),
                None => return false,
            }
        }
        rest.ends_with(last)
    }
}

impl fmt::Display for ClaimPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Tokens of an issuer with these claims get a role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimRule {
    /// The role.
    pub role: String,
    /// Which of the role's rules it is, from 1, for messages.
    pub number: usize,
    /// The issuer's name.
    pub issuer: String,
    /// The claims: each must have one of its values.
    pub claims: BTreeMap<String, Vec<ClaimPattern>>,
    /// Whether its leases wait for an operator; `None`: as the role says.
    pub manual: Option<bool>,
}

/// Which project a rule is about, and how surely.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pin {
    /// It names the project by something that nobody else can come to have.
    Stable,
    /// It goes by names, which somebody else can come to have; with what to add.
    NameOnly(&'static str),
    /// It is about no project at all; with what to add.
    Missing(&'static str),
}

/// Claims of pull and merge requests, where strangers' code runs: a rule must name the event.
const EVENTS: [(IssuerKind, &str, &[&str]); 2] = [
    (IssuerKind::Github, "event_name", &["pull_request*"]),
    (
        IssuerKind::Gitlab,
        "pipeline_source",
        &["merge_request_event", "external_pull_request_event"],
    ),
];

const GITHUB: &[&str] = &[
    "sub",
    "repository",
    "repository_id",
    "repository_owner",
    "repository_owner_id",
    "repository_visibility",
    "environment",
    "environment_node_id",
    "ref",
    "ref_type",
    "ref_protected",
    "event_name",
    "runner_environment",
    "job_workflow_ref",
    "job_workflow_sha",
    "workflow",
    "workflow_ref",
    "workflow_sha",
    "head_ref",
    "base_ref",
    "actor",
    "actor_id",
    "run_id",
    "run_number",
    "run_attempt",
    "check_run_id",
    "sha",
    "enterprise",
    "enterprise_id",
];
const GITLAB: &[&str] = &[
    "sub",
    "project_id",
    "project_path",
    "namespace_id",
    "namespace_path",
    "ref",
    "ref_type",
    "ref_path",
    "ref_protected",
    "environment",
    "environment_protected",
    "deployment_tier",
    "environment_action",
    "pipeline_source",
    "pipeline_id",
    "job_id",
    "runner_environment",
    "runner_id",
    "ci_config_ref_uri",
    "ci_config_sha",
    "project_visibility",
    "user_id",
    "user_login",
    "user_email",
    "user_access_level",
    "groups_direct",
    "sha",
    "job_project_id",
    "job_project_path",
    "job_namespace_id",
    "job_namespace_path",
];
const KUBERNETES: &[&str] = &[
    "sub",
    "kubernetes.io.namespace",
    "kubernetes.io.serviceaccount.name",
    "kubernetes.io.serviceaccount.uid",
    "kubernetes.io.pod.name",
    "kubernetes.io.pod.uid",
    "kubernetes.io.node.name",
    "kubernetes.io.node.uid",
];

/// The claims a platform's tokens have; none where administrators choose them.
pub fn known_claims(kind: IssuerKind) -> &'static [&'static str] {
    match kind {
        IssuerKind::Github => GITHUB,
        IssuerKind::Gitlab => GITLAB,
        IssuerKind::Kubernetes => KUBERNETES,
        IssuerKind::Jenkins | IssuerKind::Generic => &[],
    }
}

/// Whether a claim's value may have wildcards: those that are paths or chosen by people. A number
/// or a project's name with a wildcard would be a mistake.
pub fn takes_wildcard(kind: IssuerKind, claim: &str) -> bool {
    match kind {
        IssuerKind::Generic | IssuerKind::Jenkins => true,
        _ => matches!(
            claim,
            "sub"
                | "ref"
                | "ref_path"
                | "environment"
                | "job_workflow_ref"
                | "workflow_ref"
                | "ci_config_ref_uri"
                | "kubernetes.io.pod.name"
        ),
    }
}

impl ClaimRule {
    /// Which project the rule is about.
    pub fn pin(&self, kind: IssuerKind) -> Pin {
        let has = |name: &str| self.claims.contains_key(name);
        match kind {
            IssuerKind::Github => {
                let subject = self.subject(|wanted| {
                    let prefix = wanted.prefix();
                    // repo:OWNER/REPO: or more, up to the first wildcard.
                    let repository = prefix.strip_prefix("repo:")?.split_once(':')?.0;
                    let (owner, name) = repository.split_once('/')?;
                    let numbered = |text: &str| {
                        text.rsplit_once('@').is_some_and(|(_, id)| {
                            !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_digit())
                        })
                    };
                    Some(numbered(owner) && numbered(name))
                });
                match (has("repository_id"), subject, has("repository")) {
                    (true, ..) | (_, Some(true), _) => Pin::Stable,
                    (_, Some(false), _) | (_, _, true) if has("repository_owner_id") => Pin::Stable,
                    (_, Some(false), _) | (_, _, true) => Pin::NameOnly("repository_id"),
                    _ => Pin::Missing("repository_id"),
                }
            }
            IssuerKind::Gitlab => {
                let subject = self.subject(|wanted| {
                    let prefix = wanted.prefix();
                    prefix.strip_prefix("project_path:")?.split_once(':').map(|_| false)
                });
                match (has("project_id"), subject.is_some() || has("project_path")) {
                    (true, _) => Pin::Stable,
                    (_, true) if has("namespace_id") => Pin::Stable,
                    (_, true) => Pin::NameOnly("project_id"),
                    _ => Pin::Missing("project_id"),
                }
            }
            // A job's URL, or a folder's with what is in it.
            IssuerKind::Jenkins => {
                // The first folder or job is named, up to its end.
                let within = |wanted: &ClaimPattern| {
                    let whole = wanted.is_exact() || wanted.prefix().ends_with('/');
                    let (_, inside) = wanted.prefix().split_once("/job/")?;
                    let name = inside.split('/').next().unwrap_or_default();
                    (whole && !name.is_empty()).then_some(true)
                };
                match self.subject(within) {
                    Some(_) => Pin::Stable,
                    None => Pin::Missing("sub (a job's URL, or a folder's with /*)"),
                }
            }
            IssuerKind::Kubernetes => {
                let account = self.subject(|prefix| {
                    let rest = prefix.prefix().strip_prefix("system:serviceaccount:")?;
                    rest.split_once(':').map(|_| true)
                });
                if account.is_some()
                    || has("kubernetes.io.serviceaccount.uid")
                    || has("kubernetes.io.namespace")
                {
                    Pin::Stable
                } else {
                    Pin::Missing("sub (system:serviceaccount:NAMESPACE:NAME)")
                }
            }
            IssuerKind::Generic => {
                // The subject up to the end of one of its parts; a project's number or name.
                let whole = |wanted: &ClaimPattern| {
                    let end = wanted.prefix().chars().next_back();
                    (wanted.is_exact() || end.is_some_and(|c| !c.is_alphanumeric()))
                        .then_some(!wanted.prefix().is_empty())
                };
                let exact = |wanted: &[ClaimPattern]| {
                    wanted.iter().all(|want| want.is_exact() && !want.prefix().is_empty())
                };
                let named = |number: bool| {
                    self.claims
                        .iter()
                        .any(|(name, wanted)| project_claim(name) == Some(number) && exact(wanted))
                };
                match (self.subject(whole) == Some(true), named(true), named(false)) {
                    (true, ..) | (_, true, _) => Pin::Stable,
                    (_, _, true) => Pin::NameOnly("the project's number, or sub"),
                    _ => Pin::Missing("sub, or the claim with the project's number"),
                }
            }
        }
    }

    /// Judges every wanted `sub` by what stands before its first wildcard: `None` as soon as one
    /// is no pin, else whether all of them are sure.
    fn subject(&self, judge: impl Fn(&ClaimPattern) -> Option<bool>) -> Option<bool> {
        let wanted = self.claims.get("sub")?;
        wanted.iter().try_fold(true, |sure, pattern| Some(judge(pattern)? && sure))
    }

    /// Compares the rule with a token, field by field.
    pub(super) fn compare(&self, kind: IssuerKind, claims: &Claims) -> RuleTrace {
        let mut fields = Vec::new();
        for (name, wanted) in &self.claims {
            let ok =
                claims.all(name).iter().any(|value| wanted.iter().any(|want| want.matches(value)));
            let text: Vec<String> = wanted.iter().map(ToString::to_string).collect();
            let mut step = Step::new(name, ok, text.join(" or "), claims.show(name));
            if !ok {
                step.hint = hint(name, wanted, claims);
            }
            fields.push(step);
        }
        for (_, name, denied) in EVENTS.iter().filter(|(of, ..)| *of == kind) {
            if self.claims.contains_key(*name) {
                continue;
            }
            let denied = denied.iter().map(|text| ClaimPattern::new(*text));
            let event = claims.one(name);
            let ok =
                event.is_some_and(|event| !denied.clone().any(|pattern| pattern.matches(event)));
            let mut step = Step::new(
                *name,
                ok,
                "not a pull or merge request, unless the rule names it",
                claims.show(name),
            );
            if !ok && event.is_some() {
                step.hint = Some(format!(
                    "add {name} to the rule if code that is under review may have this access"
                ));
            }
            fields.push(step);
        }
        let pins = || fields.iter().filter(|step| is_pin(kind, &step.field));
        let pinned = pins().next().is_some() && pins().all(|step| step.ok);
        RuleTrace {
            role: self.role.clone(),
            rule: self.number,
            matched: fields.iter().all(|step| step.ok),
            pinned,
            fields,
        }
    }
}

/// Whether a claim says which project, rather than which of its branches or jobs.
fn is_pin(kind: IssuerKind, claim: &str) -> bool {
    match kind {
        IssuerKind::Github => {
            matches!(claim, "sub" | "repository" | "repository_id" | "repository_owner_id")
        }
        IssuerKind::Gitlab => {
            matches!(claim, "sub" | "project_id" | "project_path" | "namespace_id")
        }
        IssuerKind::Kubernetes => {
            matches!(claim, "sub" | "kubernetes.io.serviceaccount.uid" | "kubernetes.io.namespace")
        }
        // Which claims say it is the administrator's choice there.
        IssuerKind::Jenkins => true,
        IssuerKind::Generic => claim == "sub" || project_claim(claim).is_some(),
    }
}

/// Whether a claim of an issuer that we know nothing about says which project: by a number (true)
/// or by a name, which somebody else can come to have.
fn project_claim(claim: &str) -> Option<bool> {
    const THINGS: [&str; 8] =
        ["repo", "project", "prj", "pipeline", "workspace", "stack", "job", "serviceaccount"];
    // The last part counts: other claims of a project say something else about it.
    let mut letters: String =
        claim.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_lowercase();
    let whole = letters.len();
    for number in ["uuid", "uid", "id"] {
        if let Some(thing) = letters.strip_suffix(number) {
            letters = thing.to_owned();
            break;
        }
    }
    let is_number = letters.len() < whole;
    let name = ["path", "name", "slug", "fullname"];
    let bare = name.iter().find_map(|name| letters.strip_suffix(name)).unwrap_or(&letters);
    let bare = bare.strip_suffix("repository").map_or(bare, |_| "repo");
    THINGS.iter().any(|thing| bare.ends_with(thing)).then_some(is_number)
}

/// Why a subject that looks right does not match: GitHub has two shapes of it.
fn hint(name: &str, wanted: &[ClaimPattern], claims: &Claims) -> Option<String> {
    let subject = claims.one(name).filter(|_| name == "sub")?;
    let plain = without_ids(subject)?;
    wanted.iter().any(|want| want.matches(&plain)).then(|| {
        "the token's subject carries numbers, as GitHub's do for repositories made, renamed or \
         moved since July 2026: match repository_id instead"
            .to_owned()
    })
}

/// `repo:OWNER@1/REPO@2:...` as `repo:OWNER/REPO:...`.
fn without_ids(subject: &str) -> Option<String> {
    let (repository, rest) = subject.strip_prefix("repo:")?.split_once(':')?;
    let (owner, name) = repository.split_once('/')?;
    let (owner, _) = owner.rsplit_once('@')?;
    let (name, _) = name.rsplit_once('@')?;
    Some(format!("repo:{owner}/{name}:{rest}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(claims: &[(&str, &str)]) -> ClaimRule {
        let claims = claims
            .iter()
            .map(|(name, value)| ((*name).to_owned(), vec![ClaimPattern::new(*value)]))
            .collect();
        ClaimRule { role: "builder".into(), number: 1, issuer: "x".into(), claims, manual: None }
    }

    #[test]
    fn wildcards_stand_for_any_characters() {
        for (pattern, value, matches) in [
            ("refs/heads/main", "refs/heads/main", true),
            ("refs/heads/main", "refs/heads/main2", false),
            ("refs/heads/*", "refs/heads/a/b", true),
            ("refs/heads/*", "refs/tags/a", false),
            ("*", "", true),
            ("a*b", "ab", true),
            ("a*b", "a", false),
            ("a*a", "a", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c-b", false),
            ("*x", "xyx", true),
            ("", "", true),
            ("", "a", false),
            ("Main", "main", false),
        ] {
            assert_eq!(ClaimPattern::new(pattern).matches(value), matches, "{pattern} {value}");
        }
    }

    #[test]
    fn a_rule_must_name_a_project() {
        use IssuerKind::{Generic, Github, Gitlab, Jenkins, Kubernetes};
        let stable = |kind, claims: &[(&str, &str)]| {
            assert_eq!(rule(claims).pin(kind), Pin::Stable, "{claims:?}");
        };
        let name = |kind, claims: &[(&str, &str)]| {
            assert!(matches!(rule(claims).pin(kind), Pin::NameOnly(_)), "{claims:?}");
        };
        let missing = |kind, claims: &[(&str, &str)]| {
            assert!(matches!(rule(claims).pin(kind), Pin::Missing(_)), "{claims:?}");
        };
        stable(Github, &[("repository_id", "1")]);
        stable(Github, &[("sub", "repo:octo@12/app@34:ref:refs/heads/main")]);
        stable(Github, &[("sub", "repo:octo@12/app@34:*")]);
        stable(Github, &[("repository", "octo/app"), ("repository_owner_id", "12")]);
        name(Github, &[("repository", "octo/app")]);
        name(Github, &[("sub", "repo:octo/app:*")]);
        name(Github, &[("sub", "repo:octo@x/app@34:*")]);
        missing(Github, &[]);
        missing(Github, &[("repository_owner_id", "12")]);
        missing(Github, &[("sub", "repo:octo/*")]);
        missing(Github, &[("sub", "repo:octo/app*")]);
        missing(Github, &[("ref", "refs/heads/main"), ("environment", "production")]);
        stable(Gitlab, &[("project_id", "7")]);
        stable(Gitlab, &[("project_path", "g/p"), ("namespace_id", "3")]);
        name(Gitlab, &[("project_path", "g/p")]);
        name(Gitlab, &[("sub", "project_path:g/p:ref_type:branch:ref:main")]);
        missing(Gitlab, &[("namespace_id", "3")]);
        missing(Gitlab, &[("sub", "project_path:g/*")]);
        stable(Jenkins, &[("sub", "https://ci.example.com/job/app/")]);
        stable(Jenkins, &[("sub", "https://ci.example.com/job/folder/*")]);
        missing(Jenkins, &[("sub", "https://ci.example.com/*")]);
        missing(Jenkins, &[("sub", "https://ci.example.com/job/*")]);
        missing(Jenkins, &[("sub", "https://ci.example.com/job/*/job/deploy/")]);
        missing(Jenkins, &[("build_number", "7")]);
        // Folders whose names begin alike are not one folder.
        missing(Jenkins, &[("sub", "https://ci.example.com/job/folder*")]);
        stable(Kubernetes, &[("sub", "system:serviceaccount:ci:builder")]);
        stable(Kubernetes, &[("kubernetes.io.namespace", "ci")]);
        missing(Kubernetes, &[("sub", "system:serviceaccount:*")]);
        stable(Generic, &[("sub", "build-7")]);
        stable(Generic, &[("sub", "organization:acme:pipeline:app:*")]);
        stable(Generic, &[("pipeline_id", "0184990a")]);
        stable(Generic, &[("oidc.circleci.com/project-id", "4d5c")]);
        stable(Generic, &[("repositoryUuid", "{a}"), ("branch", "main")]);
        name(Generic, &[("project_path", "g/p")]);
        name(Generic, &[("repository", "octo/app"), ("team", "ci")]);
        missing(Generic, &[("sub", "*")]);
        missing(Generic, &[("sub", "build-7*")]);
        missing(Generic, &[("aud", "x")]);
        // Everybody on the platform can have a branch or a team of that name.
        missing(Generic, &[("team", "ci")]);
        missing(Generic, &[("ref", "refs/heads/main"), ("environment", "production")]);
        missing(Generic, &[("project_id", "*")]);
        missing(Generic, &[("repository", "octo/*")]);
        missing(Generic, &[("repository_visibility", "private")]);
    }
}
