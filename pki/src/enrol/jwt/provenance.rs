//! What a certificate says about the CI job it was issued to, under the object identifiers that
//! Sigstore's CA gave such claims (1.3.6.1.4.1.57264.1): whoever verifies a signature or a peer can
//! read from the certificate alone which project, revision and run it was.

use std::collections::BTreeMap;

use crate::lease::CiRef;

/// The arc below which each claim has a number.
pub(crate) const ARC: [u64; 8] = [1, 3, 6, 1, 4, 1, 57264, 1];

/// The numbers of the claims.
mod number {
    pub(super) const ISSUER: u64 = 8;
    pub(super) const BUILD_SIGNER_URI: u64 = 9;
    pub(super) const RUNNER_ENVIRONMENT: u64 = 11;
    pub(super) const REPOSITORY_URI: u64 = 12;
    pub(super) const REPOSITORY_DIGEST: u64 = 13;
    pub(super) const REPOSITORY_REF: u64 = 14;
    pub(super) const REPOSITORY_ID: u64 = 15;
    pub(super) const OWNER_URI: u64 = 16;
    pub(super) const OWNER_ID: u64 = 17;
    pub(super) const BUILD_CONFIG_URI: u64 = 18;
    pub(super) const BUILD_TRIGGER: u64 = 20;
    pub(super) const RUN_URI: u64 = 21;
    pub(super) const ENVIRONMENT: u64 = 23;
}

/// The claims of a lease by number, in ascending order; none for leases of no job. A value that
/// was cut when it was kept is left out: it would say something else.
pub(crate) fn claims(kept: &BTreeMap<String, String>, job: &CiRef) -> Vec<(u64, String)> {
    let one = |name: &str| {
        kept.get(name).filter(|value| !value.is_empty() && !value.ends_with('…')).cloned()
    };
    let Some(issuer) = one("iss") else { return Vec::new() };
    let mut said = vec![
        (number::ISSUER, Some(issuer)),
        (number::RUNNER_ENVIRONMENT, one("runner_environment")),
        (number::REPOSITORY_DIGEST, one("sha")),
        (number::RUN_URI, job.run_url.clone()),
        (number::ENVIRONMENT, one("environment")),
    ];
    // Where the platform's pages are, is what comes before the project in the run's address.
    let server = |project: &str| {
        let url = job.run_url.as_deref()?;
        Some(url.split_once(&format!("/{project}/"))?.0.to_owned())
    };
    if let (Some(repository), Some(id)) = (one("repository"), one("repository_id")) {
        let server = server(&repository);
        let at = |path: Option<String>| Some(format!("{}/{}", server.as_deref()?, path?));
        let owner = repository.split_once('/').map(|(owner, _)| owner.to_owned());
        let attempt = job.run_url.clone().zip(one("run_attempt"));
        said.retain(|(number, _)| *number != number::RUN_URI);
        said.extend([
            (number::RUN_URI, attempt.map(|(run, attempt)| format!("{run}/attempts/{attempt}"))),
            (number::BUILD_SIGNER_URI, at(one("job_workflow_ref"))),
            (number::REPOSITORY_URI, at(Some(repository))),
            (number::REPOSITORY_REF, one("ref")),
            (number::REPOSITORY_ID, Some(id)),
            (number::OWNER_URI, at(owner)),
            (number::OWNER_ID, one("repository_owner_id")),
            (number::BUILD_CONFIG_URI, at(one("workflow_ref"))),
            (number::BUILD_TRIGGER, one("event_name")),
        ]);
    } else if let (Some(project), Some(id)) = (one("project_path"), one("project_id")) {
        let server = server(&project);
        let at = |path: &str| Some(format!("{}/{path}", server.as_deref()?));
        let owner = project.rsplit_once('/').map(|(owner, _)| owner);
        said.extend([
            (number::REPOSITORY_URI, at(&project)),
            (number::REPOSITORY_REF, one("ref_path").or_else(|| one("ref"))),
            (number::REPOSITORY_ID, Some(id)),
            (number::OWNER_URI, owner.and_then(at)),
            (number::OWNER_ID, one("namespace_id")),
            (number::BUILD_TRIGGER, one("pipeline_source")),
        ]);
    }
    let mut said: Vec<(u64, String)> =
        said.into_iter().filter_map(|(number, value)| Some((number, value?))).collect();
    said.sort();
    said
}
