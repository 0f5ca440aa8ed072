//! Which leases a revocation means. What is given by hand is understood in every form that people
//! copy it in, and refused when it can mean nothing: a revocation that misses is worse than an error.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::authority::Authority;
use crate::bar::{Barred, RunName};
use crate::enrol::approval::PendingLease;
use crate::enrol::jwt::{Issuer, IssuerKind};
use crate::enrol::token::normal_hash;
use crate::error::Error;
use crate::issue::{CertRecord, sha256_hex};
use crate::lease::{CiRef, Lease};
use crate::record::{self, key};
use crate::serial::Serial;
use crate::store;

/// What to revoke.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RevokeSelector {
    /// One certificate of the embedded CA, and its lease.
    Serial(Serial),
    /// A lease with all its certificates.
    Lease(String),
    /// All leases of a public key (SHA-256, hexadecimal).
    Spki(String),
    /// All live leases of an identity (a SPIFFE id) and of those below it, by whole segments.
    Identity(String),
    /// All live leases of a role.
    Role(String),
    /// All live leases of a CI run.
    Run {
        /// Its id, or its address in any form the platform shows.
        run: String,
        /// The issuer, by its name or URL; needed when several have such a run.
        issuer: Option<String>,
    },
    /// All live leases that a token of this issuer opened, by its name or URL.
    Issuer(String),
}

impl RevokeSelector {
    /// Whether a lease is meant; for those selectors that say so of each lease.
    fn matches(&self, lease: Facts<'_>) -> bool {
        let of = |issuer: &String| lease.claims.get("iss") == Some(issuer);
        match self {
            Self::Identity(wanted) => is_at_or_below(lease.identity, wanted),
            Self::Role(role) => lease.role == role,
            Self::Run { run, issuer } => {
                is_of_run(lease.job, run) && issuer.as_ref().is_none_or(of)
            }
            Self::Issuer(issuer) => of(issuer),
            Self::Serial(_) | Self::Lease(_) | Self::Spki(_) => false,
        }
    }
}

impl fmt::Display for RevokeSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Serial(serial) => write!(f, "serial {serial}"),
            Self::Lease(id) => write!(f, "lease {id}"),
            Self::Spki(hash) => write!(f, "key {hash}"),
            Self::Identity(identity) => write!(f, "identity {identity}"),
            Self::Role(role) => write!(f, "role {role}"),
            Self::Run { run, issuer: None } => write!(f, "run {run}"),
            Self::Run { run, issuer: Some(issuer) } => write!(f, "run {run} of {issuer}"),
            Self::Issuer(issuer) => write!(f, "issuer {issuer}"),
        }
    }
}

/// Only at a `/` one name ends: `.../123` is not `.../1234`.
fn is_at_or_below(identity: &str, wanted: &str) -> bool {
    let wanted = wanted.trim_end_matches('/');
    identity.strip_prefix(wanted).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// What is compared, of a lease that is open or waits for an operator.
#[derive(Clone, Copy)]
pub(crate) struct Facts<'a> {
    identity: &'a str,
    role: &'a str,
    claims: &'a BTreeMap<String, String>,
    job: &'a CiRef,
}

impl<'a> From<&'a Lease> for Facts<'a> {
    fn from(lease: &'a Lease) -> Self {
        let Lease { identity, role, claims, ci_ref: job, .. } = lease;
        Self { identity, role, claims, job }
    }
}

impl<'a> From<&'a PendingLease> for Facts<'a> {
    fn from(pending: &'a PendingLease) -> Self {
        let PendingLease { identity, role, claims, ci_ref: job, .. } = pending;
        Self { identity, role, claims, job }
    }
}

fn is_of_run(job: &CiRef, run: &str) -> bool {
    let Some(wanted) = Address::parse(run) else {
        return job.run_id.as_deref() == Some(run);
    };
    job.run_url.as_deref().and_then(Address::parse).is_some_and(|has| {
        let same_id = || wanted.id.is_some() && wanted.id == job.run_id;
        has.project == wanted.project && (has.path == wanted.path || same_id())
    })
}

/// The address of a run as platforms show it: with an attempt, a job, a query behind it.
#[derive(Debug, PartialEq, Eq)]
struct Address {
    /// Up to the project, in lower case where the platform does not tell cases apart; the whole
    /// address where no project shows.
    project: String,
    /// What follows and names the run.
    path: String,
    /// The platform's number of it, if it shows.
    id: Option<String>,
    /// In the form that leases have it, but for a slash at the end.
    plain: String,
}

impl Address {
    /// `None` for what is no address.
    fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.trim().split_once("://")?;
        let rest = rest.split(['?', '#']).next().unwrap_or_default().trim_end_matches('/');
        let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let server = format!("{scheme}://{host}").to_ascii_lowercase();
        // Where a number names the run: what stands behind it names a part of the run.
        for (mark, is_run) in
            [("/actions/runs/", true), ("/-/pipelines/", true), ("/-/jobs/", false)]
        {
            let Some((project, behind)) = path.split_once(mark) else { continue };
            let number = behind.split('/').next().unwrap_or_default();
            if number.is_empty() || !number.bytes().all(|octet| octet.is_ascii_digit()) {
                continue;
            }
            return Some(Self {
                project: format!("{server}{}", project.to_ascii_lowercase()),
                path: format!("{mark}{number}"),
                id: is_run.then(|| number.to_owned()),
                plain: format!("{server}{project}{mark}{number}"),
            });
        }
        let plain = format!("{server}{path}");
        Some(Self { project: plain.clone(), path: String::new(), id: None, plain })
    }
}

/// Numbers of runs are unique in an issuer, or in a project of it.
fn only_one_run<'a>(run: &str, leases: impl Iterator<Item = Facts<'a>>) -> Result<(), Error> {
    let runs: BTreeSet<RunName> = leases.filter_map(|lease| run_of(lease, run)).collect();
    if runs.len() < 2 {
        return Ok(());
    }
    let issuers: BTreeSet<&str> = runs.iter().map(|run| run.issuer.as_str()).collect();
    let fix = match issuers.len() {
        1 => "give the address of the run",
        _ => "name the issuer",
    };
    let all: Vec<String> = runs.iter().map(ToString::to_string).collect();
    Err(Error::Invalid(format!("{run} is {}: {fix}", all.join(" and "))))
}

/// The name of a lease's run in the form it was asked for. By its address a run is the same in
/// whatever project it has a number.
fn run_of(lease: Facts<'_>, run: &str) -> Option<RunName> {
    let by_id = || RunName::by_id(lease.claims, lease.job);
    let Some(wanted) = Address::parse(run) else { return by_id() };
    let by_url = RunName::by_url(lease.claims, lease.job)?;
    let same = Address::parse(&by_url.run).is_some_and(|has| has.path == wanted.path);
    if same { Some(by_url) } else { by_id() }
}

impl Authority {
    /// The leases a selector means: for a lease, certificate or key also those that have ended,
    /// otherwise the live ones.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a selector that can mean nothing, or several runs; when the store
    /// fails.
    pub fn select(&self, selector: &RevokeSelector) -> Result<Vec<Lease>, Error> {
        match self.normal(selector)? {
            RevokeSelector::Lease(id) => Ok(self.lease(&id)?.into_iter().collect()),
            RevokeSelector::Serial(serial) => {
                Ok(self.lease_by_serial(None, &serial)?.into_iter().collect())
            }
            RevokeSelector::Spki(hash) => {
                let mut leases = self.leases_by_spki(&hash)?;
                // Clients of external CAs and sites enrol nowhere, so no index knows their keys.
                let known: BTreeSet<String> = leases.iter().map(|lease| lease.id.clone()).collect();
                let others = self.leases(false)?.into_iter();
                leases.extend(
                    others.filter(|lease| lease.spki_sha256 == hash && !known.contains(&lease.id)),
                );
                if leases.is_empty() {
                    self.is_no_certificate(&hash)?;
                }
                Ok(leases)
            }
            selector => {
                let mut leases = self.leases(false)?;
                leases.retain(|lease| selector.matches(lease.into()));
                if let RevokeSelector::Run { run, .. } = &selector {
                    only_one_run(run, leases.iter().map(Facts::from))?;
                }
                Ok(leases)
            }
        }
    }

    /// The leases a selector means that wait for an operator, or for their client.
    ///
    /// # Errors
    /// As [`select`](Self::select).
    pub fn select_waiting(&self, selector: &RevokeSelector) -> Result<Vec<PendingLease>, Error> {
        let selector = self.normal(selector)?;
        let mut waiting = self.undenied()?;
        waiting.retain(|pending| match &selector {
            RevokeSelector::Lease(id) => pending.id == *id,
            RevokeSelector::Spki(hash) => pending.spki_sha256 == *hash,
            selector => selector.matches(pending.into()),
        });
        if let RevokeSelector::Run { run, .. } = &selector {
            let live = self.select(&selector)?;
            let both = live.iter().map(Facts::from).chain(waiting.iter().map(Facts::from));
            only_one_run(run, both)?;
        }
        Ok(waiting)
    }

    /// The selector in the terms of leases, if it can mean any.
    pub(crate) fn normal(&self, selector: &RevokeSelector) -> Result<RevokeSelector, Error> {
        Ok(match selector {
            RevokeSelector::Spki(hash) => RevokeSelector::Spki(normal_hash(hash)?),
            RevokeSelector::Identity(identity) => {
                let domain = identity.strip_prefix("spiffe://").and_then(|p| p.split('/').next());
                if domain.is_none_or(str::is_empty) {
                    return Err(Error::Invalid(format!(
                        "{identity:?} is no identity: give it with its trust domain, like \
                         spiffe://{}/ci/github/OWNER (`runnel lease list` shows them)",
                        self.settings().trust_domain
                    )));
                }
                selector.clone()
            }
            RevokeSelector::Issuer(issuer) => RevokeSelector::Issuer(self.issuer_url(issuer)?),
            RevokeSelector::Run { run, issuer } => {
                let issuer = issuer.as_ref().map(|issuer| self.issuer_url(issuer)).transpose()?;
                RevokeSelector::Run { run: run.trim().to_owned(), issuer }
            }
            other => other.clone(),
        })
    }

    /// The URL of an issuer by its name or URL, as tokens have it.
    fn issuer_url(&self, name: &str) -> Result<String, Error> {
        let bare = |url: &str| url.trim().trim_end_matches('/').to_ascii_lowercase();
        let settings = self.settings();
        let known = settings
            .issuers
            .iter()
            .find(|known| known.name == name || bare(&known.issuer) == bare(name));
        if let Some(known) = known {
            return Ok(known.issuer.clone());
        }
        // One that was configured once has its leases still.
        let leases = self.leases(false)?;
        let mut before = leases.iter().filter_map(|lease| lease.claims.get("iss"));
        before.find(|url| bare(url) == bare(name)).cloned().ok_or_else(|| {
            let names: Vec<&str> = settings.issuers.iter().map(|i| i.name.as_str()).collect();
            Error::Invalid(format!(
                "no issuer {name} is configured and no live lease is of it: the issuers are {}",
                if names.is_empty() { "none".to_owned() } else { names.join(", ") }
            ))
        })
    }

    /// A certificate's fingerprint looks like a key's and would bar what no key has.
    fn is_no_certificate(&self, hash: &str) -> Result<(), Error> {
        for (cert_key, entry) in store::scan(self.store.as_ref(), key::CERT)? {
            let certificate = record::decode::<CertRecord>(&cert_key, &entry)?.value;
            if sha256_hex(&certificate.der) == hash {
                return Err(Error::Invalid(format!(
                    "{hash} is the fingerprint of certificate {serial}, not of its key: use \
                     --serial {serial}, or --key {key}",
                    serial = certificate.serial,
                    key = certificate.spki_sha256
                )));
            }
        }
        Ok(())
    }

    /// What a normal selector names itself, whether or not it has a lease now.
    pub(crate) fn asked_bars(
        &self,
        selector: &RevokeSelector,
        leases: &[Lease],
        waiting: &[PendingLease],
    ) -> Result<Vec<Barred>, Error> {
        let first = leases.first().map(Facts::from).or(waiting.first().map(Facts::from));
        Ok(match selector {
            RevokeSelector::Spki(hash) => vec![Barred::Key(hash.clone())],
            RevokeSelector::Run { run, issuer } => {
                let name = match (first, issuer) {
                    (Some(lease), _) => run_of(lease, run),
                    (None, Some(issuer)) => self.run_without_lease(run, issuer)?,
                    (None, None) => None,
                };
                name.into_iter().map(Barred::Run).collect()
            }
            _ => Vec::new(),
        })
    }

    /// Without a lease only an address says which project's run is meant, unless the issuer numbers
    /// all of them.
    fn run_without_lease(&self, run: &str, issuer: &str) -> Result<Option<RunName>, Error> {
        let settings = self.settings();
        let known = settings.issuers.iter().find(|known| known.issuer == issuer);
        let numbers =
            |known: &Issuer| matches!(known.kind, IssuerKind::Github | IssuerKind::Gitlab);
        let name =
            |run: String| Some(RunName { issuer: issuer.to_owned(), project: String::new(), run });
        let Some(address) = Address::parse(run) else {
            let is_number = run.bytes().all(|octet| octet.is_ascii_digit()) && !run.is_empty();
            return match known.is_some_and(numbers) {
                true if !is_number => Err(Error::Invalid(format!(
                    "{run:?} is no run of {issuer}: give its number or its address"
                ))),
                true => Ok(name(run.to_owned())),
                false => Ok(None),
            };
        };
        let Some(known) = known else { return Ok(name(address.plain)) };
        let is_job = address.path.starts_with("/-/jobs/");
        Ok(match known.kind {
            IssuerKind::Github | IssuerKind::Gitlab => match (&address.id, is_job) {
                (Some(id), _) => name(id.clone()),
                (None, true) => name(address.plain),
                (None, false) => {
                    return Err(Error::Invalid(format!(
                        "{run} is not the address of a run of {issuer}: copy it from the run's page"
                    )));
                }
            },
            // Its builds have a slash behind them.
            IssuerKind::Jenkins => name(format!("{}/", address.plain)),
            IssuerKind::Kubernetes | IssuerKind::Generic => name(address.plain),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_the_same_in_every_form_that_people_copy() {
        let same = [
            "https://github.com/Octo/App/actions/runs/4711",
            "https://github.com/octo/app/actions/runs/4711/",
            "HTTPS://GitHub.com/octo/app/actions/runs/4711/attempts/2",
            " https://github.com/octo/app/actions/runs/4711/job/99?pr=1#step:3:1",
        ];
        let of = |text| {
            let address = Address::parse(text).unwrap();
            (address.project, address.path, address.id)
        };
        for text in same {
            assert_eq!(of(text), of(same[0]), "{text}");
        }
        let others = [
            "https://github.com/octo/app/actions/runs/47110",
            "https://github.com/octo/app2/actions/runs/4711",
            "https://github.com/octo/app/actions/runs",
            "https://github.example/octo/app/actions/runs/4711",
        ];
        for text in others {
            assert_ne!(of(text), of(same[0]), "{text}");
        }
        assert_eq!(Address::parse("4711"), None);
        // Jenkins tells cases of its jobs apart.
        assert_ne!(of("https://ci/job/A/7/"), of("https://ci/job/a/7/"));
        assert_eq!(of("https://CI/job/A/7"), of("https://ci/job/A/7/"));
    }

    #[test]
    fn an_identity_ends_at_a_segment() {
        let identity = "spiffe://ci.example/ci/github/1234";
        for above in ["spiffe://ci.example", "spiffe://ci.example/ci/github/", identity] {
            assert!(is_at_or_below(identity, above), "{above}");
        }
        for other in ["spiffe://ci.example/ci/github/123", "spiffe://ci.exam"] {
            assert!(!is_at_or_below(identity, other), "{other}");
        }
    }
}
