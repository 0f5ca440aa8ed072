//! The leases of a job.

use std::collections::BTreeMap;

use super::{HookKind, HookSource, JobOver};
use crate::authority::Authority;
use crate::bar::RunName;
use crate::error::Error;
use crate::lease::{CiRef, Lease};
use crate::record::key;
use crate::store;

impl Authority {
    /// The live leases of a job that is over, among those that tokens of the source's issuer opened.
    ///
    /// # Errors
    /// When the store fails.
    pub fn leases_of_job(&self, source: &HookSource, over: &JobOver) -> Result<Vec<Lease>, Error> {
        let run =
            RunName { issuer: source.iss.clone(), project: String::new(), run: over.run.clone() };
        let prefix = key::run_leases(&run.digest());
        let mut leases = Vec::new();
        for (job_key, _) in store::scan(self.store.as_ref(), &prefix)? {
            let id = job_key.rsplit('/').next().unwrap_or_default();
            let lease = self.lease(id)?.filter(|lease| lease.state.is_live());
            leases.extend(lease.filter(|lease| over.is_of(&lease.claims, &lease.ci_ref)));
        }
        Ok(leases)
    }
}

impl JobOver {
    /// Whether a lease of this run is the job's. Where its token named no job, only the end of the
    /// whole run is its end: other jobs of the run may have such leases, too.
    pub(crate) fn is_of(&self, claims: &BTreeMap<String, String>, ci_ref: &CiRef) -> bool {
        let claim = |name: &str| claims.get(name);
        let is = |name: &str, wanted: &String| claim(name) == Some(wanted);
        let (project, other) = match self.kind {
            HookKind::Github => ("repository_id", "repository_id"),
            // In pipelines of a fork's merge request `project_id` is the fork.
            HookKind::Gitlab => ("project_id", "job_project_id"),
        };
        if !is(project, &self.project) && !is(other, &self.project) {
            return false;
        }
        let attempts = self.attempt.as_ref().zip(claim("run_attempt"));
        let same_attempt = attempts.is_none_or(|(theirs, ours)| theirs == ours);
        match &self.job {
            Some(job) => ci_ref.job_id.as_ref() == Some(job),
            None => same_attempt,
        }
    }
}
