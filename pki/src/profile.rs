//! Settings: trust domain, roles, pools, key algorithms. Plain data given by the caller.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use crate::csr::{Csr, CsrKey};
use crate::enrol::jwt::{ClaimRule, Issuer, Pin};
use crate::enrol::{Limits, OpenRate};
use crate::enrol::{Refusal, RefusalCode};
use crate::entropy::{Entropy, SystemEntropy};
use crate::error::Error;
use crate::issue::ClientNames;
use crate::lease::LeaseTimers;
use crate::signer::{KeyKind, TokenUri};

/// What a role's leases and certificates look like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoleProfile {
    /// The pool its addresses come from.
    pub pool: String,
    /// A certificate's life.
    pub ttl: Duration,
    /// A lease's life, renewals included.
    pub max_lease: Duration,
    /// The kinds of key its clients may have, the preferred one first; empty: any that is safe.
    pub keys: Vec<KeyKind>,
    /// Whether keys are made here for clients that ask.
    pub server_keys: bool,
    /// Live leases at once; `None`: as many as there are addresses.
    pub max_leases: Option<u32>,
    /// How often one may be opened by enrolment.
    pub rate: Option<OpenRate>,
    /// Leases wait for an operator's approval.
    pub manual: bool,
    /// Certificates name the lease's addresses.
    pub san_address: bool,
    /// Requests that ask for names which the certificate does not get are refused.
    pub verify_names: bool,
}

impl RoleProfile {
    /// A role on a pool, with certificates of one hour and leases of at most a day.
    pub fn new(pool: impl Into<String>) -> Self {
        Self {
            pool: pool.into(),
            ttl: Duration::from_secs(3_600),
            max_lease: Duration::from_secs(86_400),
            keys: Vec::new(),
            server_keys: false,
            max_leases: None,
            rate: None,
            manual: false,
            san_address: false,
            verify_names: false,
        }
    }

    /// Whether a client of the role may have this key.
    pub(crate) fn check_key(&self, role: &str, key: CsrKey) -> Result<(), Refusal> {
        if self.keys.is_empty() || self.keys.iter().any(|kind| key.is(*kind)) {
            return Ok(());
        }
        Err(self.other_key(role, &format!("carries an {key} key")))
    }

    /// Whether a key of this kind may be made for a client of the role.
    pub(crate) fn check_kind(&self, role: &str, kind: KeyKind) -> Result<(), Refusal> {
        if self.keys.is_empty() || self.keys.contains(&kind) {
            return Ok(());
        }
        Err(self.other_key(role, &format!("asks for an {kind} key")))
    }

    /// Whether a request asks for no other names than the certificate gets, where the role wants
    /// to know.
    pub(crate) fn check_names(
        &self,
        role: &str,
        csr: &Csr,
        names: &ClientNames,
    ) -> Result<(), Refusal> {
        let granted = names.sans();
        let strange = csr.names.iter().find(|name| !granted.contains(name));
        match strange.filter(|_| self.verify_names) {
            None => Ok(()),
            Some(name) => Err(Refusal::new(
                RefusalCode::UnacceptableName,
                format!(
                    "the request asks for {name:?}, which the certificate does not get ({} it \
                     does): leave it out, or set csr_sans = \"ignore\" for role {role}",
                    granted.join(", ")
                ),
            )),
        }
    }

    /// The names of a certificate of the role.
    pub(crate) fn names(
        &self,
        trust_domain: &str,
        (id, dns, uri): (&str, String, String),
        addresses: &[IpAddr],
        job: Vec<(u64, String)>,
    ) -> ClientNames {
        ClientNames {
            common_name: id.to_owned(),
            organisation: trust_domain.to_owned(),
            dns,
            uri,
            addresses: if self.san_address { addresses.to_vec() } else { Vec::new() },
            job,
        }
    }

    fn other_key(&self, role: &str, what: &str) -> Refusal {
        let kinds: Vec<&str> = self.keys.iter().map(|kind| kind.name()).collect();
        Refusal::new(
            RefusalCode::UnacceptableKey,
            format!(
                "the request {what}, role {role} takes {}: use a key of that kind",
                kinds.join(" or ")
            ),
        )
    }
}

/// An address pool: the first usable address of each network is the gateway's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolConfig {
    /// IPv4 and IPv6 networks, in order of use.
    pub networks: Vec<IpNet>,
    /// How long a released address rests, so that nobody inherits another's state.
    pub quarantine: Duration,
}

impl PoolConfig {
    /// A pool with the default quarantine of ten minutes.
    pub fn new(networks: Vec<IpNet>) -> Self {
        Self { networks, quarantine: Duration::from_secs(600) }
    }
}

/// Settings that may change while running.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The organisation in subjects, the suffix of DNS names, the host of SPIFFE identities.
    pub trust_domain: String,
    /// Roles by name.
    pub roles: BTreeMap<String, RoleProfile>,
    /// Pools by name.
    pub pools: BTreeMap<String, PoolConfig>,
    /// OIDC issuers whose tokens open leases.
    pub issuers: Vec<Issuer>,
    /// Which of their tokens get which role; the first that matches counts.
    pub rules: Vec<ClaimRule>,
    /// How many leases there may be, and how often one may be opened.
    pub limits: Limits,
    /// The periods of a lease's life.
    pub timers: LeaseTimers,
    /// How long ended leases and tokens are remembered.
    pub keep_ended: Duration,
    /// Base URL of the CRL and OCSP service over plain HTTP, such as `http://gw.example:8080`;
    /// certificates name it when it is set.
    pub status_url: Option<String>,
}

impl Settings {
    /// Settings without roles or pools.
    pub fn new(trust_domain: impl Into<String>) -> Self {
        Self {
            trust_domain: trust_domain.into(),
            roles: BTreeMap::new(),
            pools: BTreeMap::new(),
            issuers: Vec::new(),
            rules: Vec::new(),
            limits: Limits::default(),
            timers: LeaseTimers::default(),
            keep_ended: Duration::from_secs(7 * 86_400),
            status_url: None,
        }
    }

    /// Checks what can be checked without the store.
    ///
    /// # Errors
    /// One sentence naming the first setting that cannot work.
    pub fn validate(&self) -> Result<(), Error> {
        let domain = &self.trust_domain;
        if !is_dns_name(domain) {
            return Err(Error::Invalid(format!(
                "trust_domain {domain:?} is not a DNS name: use something like ci.example.com"
            )));
        }
        if domain.len() > 64 {
            // RFC 5280 appendix A: ub-organization-name is 64.
            return Err(Error::Invalid(format!(
                "trust_domain {domain:?} has {} characters: at most 64 fit a certificate subject",
                domain.len()
            )));
        }
        for (name, role) in &self.roles {
            if !is_dns_label(name) {
                return Err(Error::Invalid(format!(
                    "role {name:?} cannot be part of a DNS name: use a-z, 0-9 and hyphens, at \
                     most 63"
                )));
            }
            if !self.pools.contains_key(&role.pool) {
                return Err(Error::Invalid(format!(
                    "role {name} uses pool {:?}, which is not defined: add a [[pool]] of that name",
                    role.pool
                )));
            }
            if role.ttl < Duration::from_secs(60) || role.ttl > Duration::from_secs(86_400) {
                return Err(Error::Invalid(format!(
                    "role {name} has ttl {} s: choose between 60 s and 24 h",
                    role.ttl.as_secs()
                )));
            }
        }
        for (name, pool) in &self.pools {
            if name.is_empty() || name.contains('/') {
                return Err(Error::Invalid(format!("pool name {name:?} must not contain '/'")));
            }
            crate::lease::pool::check(name, pool)?;
        }
        self.check_rules()?;
        self.check_overlaps()
    }

    /// A rule without a project would let everybody in who can run a job on the platform.
    fn check_rules(&self) -> Result<(), Error> {
        for rule in &self.rules {
            let of = || format!("rule {} of role {}", rule.number, rule.role);
            let issuer = self.issuers.iter().find(|issuer| issuer.name == rule.issuer);
            let issuer = issuer.ok_or_else(|| {
                Error::Invalid(format!("{} names the unknown issuer {:?}", of(), rule.issuer))
            })?;
            if let Pin::Missing(add) = rule.pin(issuer.kind) {
                return Err(Error::Invalid(format!("{} is about no project: add {add}", of())));
            }
            if !self.roles.contains_key(&rule.role) {
                return Err(Error::Invalid(format!("{} is of an unknown role", of())));
            }
        }
        for (position, issuer) in self.issuers.iter().enumerate() {
            let earlier = self.issuers.iter().take(position);
            if earlier.clone().any(|other| other.issuer == issuer.issuer) {
                return Err(Error::Invalid(format!(
                    "issuer {} is there twice: merge the sections",
                    issuer.issuer
                )));
            }
            if issuer.audience.is_empty() {
                return Err(Error::Invalid(format!("issuer {} has no audience", issuer.name)));
            }
        }
        Ok(())
    }

    /// One address must not belong to two networks: it would be handed out twice.
    fn check_overlaps(&self) -> Result<(), Error> {
        let all = || {
            let pools = self.pools.iter();
            pools.flat_map(|(name, pool)| pool.networks.iter().map(move |net| (name, net)))
        };
        for (position, (name, network)) in all().enumerate() {
            let overlapping = all().skip(position + 1).find(|(_, other)| {
                network.contains(&other.network()) || other.contains(&network.network())
            });
            if let Some((other_name, other)) = overlapping {
                return Err(Error::Invalid(format!(
                    "network {network} of pool {name} overlaps {other} of pool {other_name}: \
                     separate them"
                )));
            }
        }
        Ok(())
    }
}

/// How an authority is opened.
pub struct Options {
    /// Settings that may change while running.
    pub settings: Settings,
    /// A file with the sealing key; without it `seal.key` in the state directory is used.
    pub seal_key: Option<PathBuf>,
    /// The kind of the CA's keys created at the first start.
    pub key: KeyKind,
    /// The token in which CA keys are made from now on, and that holds those made there before.
    pub token: Option<TokenUri>,
    /// A second place of the revocation journal.
    pub journal: Option<PathBuf>,
    /// Everything good is revoked when the revocation journal is lost; the time of the last audit
    /// record says that this is meant.
    pub accept_loss: Option<String>,
    /// Where serials, names and token secrets get their randomness.
    pub entropy: Box<dyn Entropy>,
}

impl Options {
    /// Default options: ECDSA P-256 keys, the system's generator, `seal.key`.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            seal_key: None,
            key: KeyKind::EcdsaP256,
            token: None,
            journal: None,
            accept_loss: None,
            entropy: Box::new(SystemEntropy::new()),
        }
    }
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options")
            .field("settings", &self.settings)
            .field("seal_key", &self.seal_key)
            .field("key", &self.key)
            .field("token", &self.token)
            .field("journal", &self.journal)
            .finish_non_exhaustive()
    }
}

/// Letters, digits and inner hyphens, in lower case, 1 to 63 of them (RFC 1123 2.1).
pub(crate) fn is_dns_label(label: &str) -> bool {
    (1..=63).contains(&label.len())
        && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !label.starts_with('-')
        && !label.ends_with('-')
}

pub(crate) fn is_dns_name(name: &str) -> bool {
    name.len() <= 253 && name.split('.').all(is_dns_label)
}
