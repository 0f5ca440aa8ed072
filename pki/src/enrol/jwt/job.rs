//! The lease of a job, for whoever has a token of that job: the one that opened the lease, or
//! another one that the platform gave the same job later.

use std::collections::BTreeMap;

use super::claims::Claims;
use super::judge::{genuine, name};
use super::trace::Trace;
use super::{Issuer, IssuerKind};
use crate::authority::Authority;
use crate::enrol::{Refusal, RefusalCode, shown};
use crate::lease::Lease;
use crate::time::UnixTime;

/// The claims that together name one job of a platform and no other: its project, the run and the
/// attempt at it, and the job. All of them must be there.
const fn naming(kind: IssuerKind) -> &'static [&'static str] {
    match kind {
        IssuerKind::Github => &["repository_id", "run_id", "run_attempt", "check_run_id"],
        IssuerKind::Gitlab => &["project_id", "pipeline_id", "job_id"],
        // A build has one job.
        IssuerKind::Jenkins => &["sub", "build_number"],
        IssuerKind::Kubernetes => &["kubernetes.io.namespace", "kubernetes.io.pod.uid"],
        // What names a job of such an issuer is not known.
        IssuerKind::Generic => &[],
    }
}

/// A token that its issuer made for us and that is good now.
struct Proven {
    issuer: Issuer,
    claims: Claims,
    digest: String,
}

impl Proven {
    /// Whether what is kept of another token's claims is of the same job. Claims that were cut when
    /// they were kept are like none.
    fn is_of(&self, kept: &BTreeMap<String, String>) -> bool {
        let names = naming(self.issuer.kind);
        let same = |name: &&str| {
            let ours = self.claims.one(name).filter(|value| !value.is_empty());
            ours.is_some() && ours == kept.get(*name).map(String::as_str)
        };
        // What Jenkins puts into `sub` is its administrator's choice: only a job's URL names a job.
        let names_a_job = self.issuer.kind != IssuerKind::Jenkins
            || self.claims.one("sub").is_some_and(|sub| sub.contains("/job/"));
        !names.is_empty()
            && names_a_job
            && kept.get("iss") == Some(&self.issuer.issuer)
            && names.iter().all(same)
    }
}

impl Authority {
    /// The lease a token opened, for whoever still has the token: it may be read and released
    /// with it as long as the token is good, whatever the rules say by then.
    ///
    /// # Errors
    /// Why the token is not accepted; [`RefusalCode::TokenUnknown`] when it opened none.
    pub fn lease_of_jwt(&self, token: &str, now: UnixTime) -> Result<Lease, Refusal> {
        let proven = self.proven(token, now)?;
        let Some(spent) = self.jwt_spend(&proven.digest)? else {
            return Err(opened_none(&proven));
        };
        if let Some(refusal) = self.pending_refusal(&spent.lease_id, now)? {
            return Err(refusal);
        }
        self.lease(&spent.lease_id)?.ok_or_else(|| opened_none(&proven))
    }

    /// The lease of this name, for whoever has the token that opened it, or another token of the
    /// same job: platforms give a job as many as it asks for.
    ///
    /// # Errors
    /// Why the token is not accepted, and that it is of another job, or of an issuer whose tokens
    /// do not name the job. Whether there is such a lease is not told.
    pub fn lease_of_job(
        &self,
        lease_id: &str,
        token: &str,
        now: UnixTime,
    ) -> Result<Lease, Refusal> {
        let proven = self.proven(token, now)?;
        let spent = self.jwt_spend(&proven.digest)?;
        let opened = spent.as_ref().is_some_and(|spent| spent.lease_id == lease_id);
        if let Some(waiting) = self.waiting(lease_id, now)?
            && (opened || proven.is_of(&waiting.claims))
        {
            return Err(waiting.refusal());
        }
        let lease = self.lease(lease_id)?;
        if let Some(lease) = lease.filter(|lease| opened || proven.is_of(&lease.claims)) {
            return Ok(lease);
        }
        match spent {
            Some(_) if !opened => Err(Refusal::new(
                RefusalCode::CertificateUnusable,
                format!(
                    "token {} did not open lease {:?} and is not of its job: use the lease's \
                     release token, or a token of its job",
                    name(&proven.digest),
                    shown(lease_id)
                ),
            )),
            _ => Err(opened_none(&proven)),
        }
    }

    fn proven(&self, token: &str, now: UnixTime) -> Result<Proven, Refusal> {
        let settings = self.settings();
        let mut trace = Trace::default();
        let keys = |issuer: &Issuer| self.jwt_keys(issuer, now);
        match genuine(&mut trace, &settings.issuers, keys, token, now) {
            Ok(genuine) => Ok(Proven {
                issuer: genuine.issuer.clone(),
                claims: genuine.claims,
                digest: genuine.digest,
            }),
            Err(refusal) => Err(self.or_wait(token, refusal.with_trace(trace), now)),
        }
    }
}

fn opened_none(proven: &Proven) -> Refusal {
    Refusal::new(
        RefusalCode::TokenUnknown,
        format!(
            "token {} opened no lease that is on record, and is not of the job of the lease that \
             is asked for: use the lease's release token, or a token of its job",
            name(&proven.digest)
        ),
    )
}
