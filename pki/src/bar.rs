//! Bars: what revocation keeps out after the leases it ended are gone. A barred key gets no
//! certificate and no lease, whatever token or certificate comes with it; a barred CI run opens no
//! lease, whatever key it has. Clients with shared keys and sites are barred in the records that
//! find their leases; this file lists and lifts all of them.
//!
//! A bar is written in the transaction that revokes, and whoever opens a lease does so on condition
//! that there is none: of the two, whichever is second sees the first. It stays until it is lifted.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::audit::{Actor, AuditEvent};
use crate::authority::Authority;
use crate::error::Error;
use crate::issue::sha256_hex;
use crate::lease::CiRef;
use crate::lease::book::ATTEMPTS;
use crate::record::{self, key};
use crate::revoke::RevocationReason;
use crate::store::{self, Outcome, Txn};
use crate::time::UnixTime;

/// Characters of a digest in a bar's name: more than anybody can make collide by accident.
const SHORT: usize = 16;

/// What is kept out.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Barred {
    /// A public key, by the SHA-256 of its SubjectPublicKeyInfo, hexadecimal.
    Key(String),
    /// A run of a CI platform.
    Run(RunName),
    /// A client with a shared key of its own: its identity with the keys it had when revoked.
    Client {
        /// For people.
        name: String,
        /// Digest of the identity.
        digest: String,
    },
    /// A site, by its name.
    Site(String),
}

impl Barred {
    /// The bar's short name, for listings and [`Authority::lift_bar`].
    pub fn id(&self) -> String {
        let short = |digest: &str| digest.get(..SHORT).unwrap_or(digest).to_owned();
        match self {
            Self::Key(hash) => format!("key-{}", short(hash)),
            Self::Run(run) => format!("run-{}", short(&run.digest())),
            Self::Client { digest, .. } => format!("client-{}", short(digest)),
            Self::Site(name) => format!("site-{name}"),
        }
    }
}

impl fmt::Display for Barred {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key(hash) => write!(f, "key sha256:{hash}"),
            Self::Run(run) => run.fmt(f),
            Self::Client { name, .. } => write!(f, "client {name}"),
            Self::Site(name) => write!(f, "site {name}"),
        }
    }
}

/// A run of a CI platform. Numbers of runs are unique in an issuer only, on some platforms only in
/// a project of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RunName {
    /// The issuer's URL.
    pub issuer: String,
    /// The project that numbers its own runs; empty where the issuer numbers all.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub project: String,
    /// The run's id or address.
    pub run: String,
}

impl RunName {
    /// The run of a lease by its id, if it has one.
    pub(crate) fn by_id(claims: &BTreeMap<String, String>, job: &CiRef) -> Option<Self> {
        let claim = |name: &str| claims.get(name).cloned();
        // Jenkins counts the builds of each job, and pods are named within a namespace.
        let project = match claims.contains_key("build_number") {
            true => claim("sub"),
            false => claim("kubernetes.io.namespace"),
        };
        let project = project.unwrap_or_default();
        Some(Self { issuer: claim("iss")?, project, run: job.run_id.clone()? })
    }

    /// The same by its address.
    pub(crate) fn by_url(claims: &BTreeMap<String, String>, job: &CiRef) -> Option<Self> {
        let issuer = claims.get("iss").cloned()?;
        Some(Self { issuer, project: String::new(), run: job.run_url.clone()? })
    }

    pub(crate) fn digest(&self) -> String {
        sha256_hex([self.issuer.as_str(), &self.project, &self.run].join("\0").as_bytes())
    }
}

impl fmt::Display for RunName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "run {} of {}", self.run, self.issuer)?;
        if !self.project.is_empty() {
            write!(f, " ({})", self.project)?;
        }
        Ok(())
    }
}

/// A bar on record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bar {
    /// What is kept out.
    pub what: Barred,
    /// Since when.
    pub at: UnixTime,
    /// Why, where it is recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<RevocationReason>,
    /// Who revoked, where it is recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<Actor>,
    /// A lease that was revoked, if there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<String>,
}

impl Bar {
    /// The operator's sentence: what is barred, since when, and what to do.
    pub fn sentence(&self) -> String {
        let why = self.reason.map(|reason| format!(" ({reason})")).unwrap_or_default();
        let fix = match &self.what {
            Barred::Key(_) => "make a new key, or",
            Barred::Run(_) => "start a new run, or",
            Barred::Client { .. } => "give it another key, or",
            Barred::Site(_) => "connect the site again, or",
        };
        let (what, at, id) = (&self.what, self.at, self.what.id());
        format!(
            "{what} was revoked at {at}{why} and is barred: {fix} lift the bar with runnel bar \
             lift {id}"
        )
    }
}

/// Where the bar on something is; `None` for what is barred in its own record.
pub(crate) fn bar_key(what: &Barred) -> Option<String> {
    match what {
        Barred::Key(hash) => Some(key::barred_spki(hash)),
        Barred::Run(run) => Some(key::barred_run(&run.digest())),
        Barred::Client { .. } | Barred::Site(_) => None,
    }
}

/// What must not be barred for a lease of this key and job to be opened.
pub(crate) fn of_lease(
    spki_sha256: &str,
    claims: &BTreeMap<String, String>,
    job: &CiRef,
) -> Vec<Barred> {
    let runs = [RunName::by_id(claims, job), RunName::by_url(claims, job)];
    let runs = runs.into_iter().flatten().map(Barred::Run);
    let key = (!spki_sha256.is_empty()).then(|| Barred::Key(spki_sha256.to_owned()));
    key.into_iter().chain(runs).collect()
}

impl Authority {
    /// The first bar on any of these, and otherwise the condition that there is none.
    pub(crate) fn unless_barred(
        &self,
        txn: &mut Txn,
        whats: &[Barred],
    ) -> Result<Option<Bar>, Error> {
        for bar_key in whats.iter().filter_map(bar_key) {
            if let Some(stored) = record::read::<Bar>(self.store.as_ref(), &bar_key)? {
                return Ok(Some(stored.value));
            }
            txn.absent(bar_key);
        }
        Ok(None)
    }

    /// Whether a public key is barred.
    ///
    /// # Errors
    /// When the store fails.
    pub fn key_bar(&self, spki_sha256: &str) -> Result<Option<Bar>, Error> {
        let bar = record::read::<Bar>(self.store.as_ref(), &key::barred_spki(spki_sha256))?;
        Ok(bar.map(|stored| stored.value))
    }

    /// Adds a bar to a transaction; false when it is there already.
    pub(crate) fn plan_bar(&self, txn: &mut Txn, bar: &Bar) -> Result<bool, Error> {
        let Some(bar_key) = bar_key(&bar.what) else { return Ok(false) };
        if self.store.get(&bar_key)?.is_some() {
            return Ok(false);
        }
        txn.absent(&bar_key).put(bar_key, record::encode(bar));
        Ok(true)
    }

    /// All bars: keys and runs, then clients with shared keys, then sites.
    ///
    /// # Errors
    /// When the store fails.
    pub fn bars(&self) -> Result<Vec<Bar>, Error> {
        let mut bars = Vec::new();
        for prefix in [key::BARRED_SPKI, key::BARRED_RUN] {
            for (bar_key, entry) in store::scan(self.store.as_ref(), prefix)? {
                bars.push(record::decode::<Bar>(&bar_key, &entry)?.value);
            }
        }
        bars.extend(self.holder_bars()?);
        bars.extend(self.site_bars()?);
        Ok(bars)
    }

    /// Lifts a bar, by the name it is listed with or the whole digest of a key; what it was.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none; [`Error::Invalid`] when the name fits several.
    pub fn lift_bar(&self, id: &str, actor: &Actor, now: UnixTime) -> Result<Bar, Error> {
        let wanted = id.trim().trim_start_matches("sha256:").to_ascii_lowercase();
        for _ in 0..ATTEMPTS {
            let mut found = self.bars()?;
            found.retain(|bar| match &bar.what {
                Barred::Key(hash) if *hash == wanted || format!("key-{hash}") == wanted => true,
                // Names of sites are as configured.
                Barred::Site(_) => bar.what.id() == id.trim(),
                what => what.id() == wanted,
            });
            let bar = match found.len() {
                0 => return Err(Error::not_found("bar", id)),
                1 => found.remove(0),
                _ => {
                    return Err(Error::Invalid(format!(
                        "{id} names {} bars: give the whole digest",
                        found.len()
                    )));
                }
            };
            let mut txn = Txn::new();
            match &bar.what {
                Barred::Key(_) | Barred::Run(_) => {
                    let bar_key = bar_key(&bar.what).unwrap_or_default();
                    let Some(entry) = self.store.get(&bar_key)? else { continue };
                    txn.at(&bar_key, entry.revision).delete(bar_key);
                }
                Barred::Client { digest, .. } => self.plan_lift_holder(&mut txn, digest)?,
                Barred::Site(name) => {
                    self.allow_site(name, actor, now)?;
                    return Ok(bar);
                }
            }
            let mut event = AuditEvent::new("bar.lift", actor, now).object(&bar.what);
            if let Barred::Key(hash) = &bar.what {
                event.spki_sha256 = Some(hash.clone());
            }
            event.lease_id = bar.lease.clone();
            event.record(&mut txn);
            if let Outcome::Committed(_) = self.store.transact(txn)? {
                return Ok(bar);
            }
        }
        Err(Error::Contended("the bar"))
    }
}
