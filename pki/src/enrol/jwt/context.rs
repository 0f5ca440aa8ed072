//! What a verified token says about the job: the identity of its lease, and what audit shows.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::claims::Claims;
use super::{ClaimRule, Issuer, IssuerKind};
use crate::issue::sha256_hex;
use crate::lease::CiRef;

/// Characters of a claim's value that are kept.
const MAX_VALUE: usize = 256;
/// Characters of one segment of an identity; longer ones are named by their digest.
const MAX_SEGMENT: usize = 100;

/// The job a token was issued to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobContext {
    /// The path of the identity URI, without the trust domain.
    pub path: String,
    /// Where the job is found again.
    pub ci_ref: CiRef,
    /// What is kept of the claims.
    pub claims: BTreeMap<String, String>,
}

/// Claims that say what ran, for audit and listings.
fn kept(kind: IssuerKind) -> &'static [&'static str] {
    match kind {
        IssuerKind::Github => &[
            "sub",
            "repository",
            "repository_id",
            "repository_owner_id",
            "ref",
            "environment",
            "event_name",
            "run_id",
            "run_attempt",
            "check_run_id",
            "actor",
            "workflow_ref",
            "job_workflow_ref",
            "sha",
            "runner_environment",
        ],
        IssuerKind::Gitlab => &[
            "sub",
            "project_path",
            "project_id",
            "namespace_id",
            "job_project_id",
            "ref",
            "ref_path",
            "ref_protected",
            "environment",
            "pipeline_source",
            "pipeline_id",
            "job_id",
            "user_login",
            "sha",
            "runner_environment",
        ],
        IssuerKind::Jenkins => &["sub", "build_number"],
        IssuerKind::Kubernetes => &[
            "sub",
            "kubernetes.io.namespace",
            "kubernetes.io.serviceaccount.name",
            "kubernetes.io.serviceaccount.uid",
            "kubernetes.io.pod.name",
            "kubernetes.io.pod.uid",
            "kubernetes.io.node.name",
        ],
        IssuerKind::Generic => &["sub"],
    }
}

impl JobContext {
    pub(super) fn new(issuer: &Issuer, rule: &ClaimRule, claims: &Claims) -> Self {
        let wanted = rule.claims.keys().map(String::as_str);
        let names = kept(issuer.kind).iter().copied().chain(wanted);
        let kept = names
            .filter_map(|name| Some((name.to_owned(), claims.show(name)?)))
            .map(|(name, value)| (name, value.chars().take(MAX_VALUE).collect()))
            .chain([("iss".to_owned(), issuer.issuer.clone())])
            .collect();
        Self { path: path(issuer, claims), ci_ref: ci_ref(issuer, claims), claims: kept }
    }
}

/// `/ci/ISSUER/...`, of the platform's lasting numbers where it has some.
fn path(issuer: &Issuer, claims: &Claims) -> String {
    let subject = || claims.one("sub").unwrap_or("unknown");
    let of = |name: &str| claims.one(name).unwrap_or("unknown");
    let mut segments: Vec<&str> = vec!["ci", &issuer.name];
    match issuer.kind {
        IssuerKind::Github => segments.extend([of("repository_owner_id"), of("repository_id")]),
        IssuerKind::Gitlab => segments.extend([of("namespace_id"), of("project_id")]),
        IssuerKind::Jenkins => {
            let rest = subject().strip_prefix(&issuer.issuer).unwrap_or_else(subject);
            segments.extend(rest.split('/').filter(|part| !part.is_empty()).take(32));
        }
        IssuerKind::Kubernetes => {
            match subject().strip_prefix("system:serviceaccount:").and_then(|r| r.split_once(':')) {
                Some((namespace, name)) => segments.extend(["ns", namespace, "sa", name]),
                None => segments.push(subject()),
            }
        }
        IssuerKind::Generic => segments.push(subject()),
    }
    if matches!(issuer.kind, IssuerKind::Github | IssuerKind::Gitlab)
        && let Some(environment) = claims.one("environment").filter(|text| !text.is_empty())
    {
        segments.extend(["env", environment]);
    }
    segments.into_iter().fold(String::new(), |path, part| path + "/" + &segment(part))
}

/// A path segment of a SPIFFE id: letters, digits, dots, hyphens; every other octet as `_` and two
/// hexadecimal digits, so that no two names become one.
fn segment(text: &str) -> String {
    let only_dots = text.bytes().all(|byte| byte == b'.');
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'.' if only_dots => out.push_str("_2e"),
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'-' => out.push(char::from(byte)),
            other => out.push_str(&format!("_{other:02x}")),
        }
    }
    if out.is_empty() {
        return "_".to_owned();
    }
    if out.len() > MAX_SEGMENT { format!("_{}", sha256_hex(text.as_bytes())) } else { out }
}

fn ci_ref(issuer: &Issuer, claims: &Claims) -> CiRef {
    let of = |name: &str| claims.one(name).map(|text| text.chars().take(MAX_VALUE).collect());
    let text = |name: &str| -> Option<String> { of(name) };
    let (run_url, run_id, job_id): (Option<String>, Option<String>, Option<String>) =
        match issuer.kind {
            IssuerKind::Github => {
                let server = match issuer.issuer.as_str() {
                    "https://token.actions.githubusercontent.com" => "https://github.com",
                    other => other.strip_suffix("/_services/token").unwrap_or(other),
                };
                let url = text("repository")
                    .zip(text("run_id"))
                    .map(|(repository, run)| format!("{server}/{repository}/actions/runs/{run}"));
                (url, text("run_id"), text("check_run_id"))
            }
            IssuerKind::Gitlab => {
                let server = issuer.issuer.trim_end_matches('/');
                let url = text("project_path")
                    .zip(text("job_id"))
                    .map(|(project, job)| format!("{server}/{project}/-/jobs/{job}"));
                (url, text("pipeline_id"), text("job_id"))
            }
            IssuerKind::Jenkins => {
                let url = text("sub").filter(|sub| sub.starts_with("http")).map(|job| {
                    let job = job.trim_end_matches('/');
                    match text("build_number") {
                        Some(build) => format!("{job}/{build}/"),
                        None => format!("{job}/"),
                    }
                });
                (url, text("build_number"), None)
            }
            IssuerKind::Kubernetes => {
                (None, text("kubernetes.io.pod.name"), text("kubernetes.io.pod.uid"))
            }
            IssuerKind::Generic => (None, None, None),
        };
    CiRef { run_url, run_id, job_id }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_names_become_one_segment() {
        for (text, expected) in [
            ("production", "production"),
            ("a b", "a_20b"),
            ("a_b", "a_5fb"),
            ("a/b", "a_2fb"),
            ("..", "_2e_2e"),
            ("v1.2", "v1.2"),
            ("", "_"),
        ] {
            assert_eq!(segment(text), expected);
        }
        let long = segment(&"x".repeat(200));
        assert_eq!(long.len(), 65);
        assert_ne!(long, segment(&"x".repeat(201)));
    }
}
