//! Certificate policies (RFC 5280 6.1.2 (a), (d) to (f), 6.1.3 (d) to (f), 6.1.4 (a), (b), (h) to
//! (j), 6.1.5 (a), (b), (g)) with the initial policy set `anyPolicy`: does the path assert a policy
//! where one is required?
//!
//! The tree of RFC 5280 grows exponentially with mappings (RFC 9618). Only whether its lowest level
//! is empty decides here, and a node exists as soon as it has one parent, so the lowest level alone
//! is kept: one node per policy.

use std::collections::{BTreeMap, BTreeSet};

use super::cert::Cert;

/// Policies or mappings of one certificate looked at; more are refused.
const MAX_POLICIES: usize = 64;

const ANY_POLICY: &str = "2.5.29.32.0";

/// The state between two certificates.
#[derive(Debug)]
pub(super) struct Policies {
    /// The lowest level of the tree: each valid policy with the policies expected below it.
    level: BTreeMap<String, BTreeSet<String>>,
    explicit: u32,
    mapping: u32,
    inhibit_any: u32,
}

impl Policies {
    /// For a path of `length` certificates below the trust anchor.
    pub(super) fn new(length: usize) -> Self {
        let all = u32::try_from(length).unwrap_or(u32::MAX).saturating_add(1);
        let any = || ANY_POLICY.to_owned();
        Self {
            level: BTreeMap::from([(any(), BTreeSet::from([any()]))]),
            explicit: all,
            mapping: all,
            inhibit_any: all,
        }
    }

    /// 6.1.3 (d) to (f).
    pub(super) fn process(&mut self, cert: &Cert<'_>, last: bool) -> Result<(), String> {
        self.level = match &cert.policies {
            None => BTreeMap::new(),
            Some(policies) if policies.len() > MAX_POLICIES => {
                return Err(format!("it has more than {MAX_POLICIES} policies"));
            }
            Some(policies) => self.below(policies, last, cert.self_issued()),
        };
        self.required()
    }

    fn below(
        &self,
        policies: &BTreeSet<String>,
        last: bool,
        self_issued: bool,
    ) -> BTreeMap<String, BTreeSet<String>> {
        let mut next: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let mut add = |policy: &str| {
            next.insert(policy.to_owned(), BTreeSet::from([policy.to_owned()]));
        };
        let any_above = self.level.contains_key(ANY_POLICY);
        let expected: BTreeSet<&String> = self.level.values().flatten().collect();
        for policy in policies.iter().filter(|policy| *policy != ANY_POLICY) {
            // (d)(1)
            if expected.contains(policy) || any_above {
                add(policy);
            }
        }
        let any_counts = self.inhibit_any > 0 || (!last && self_issued);
        if policies.contains(ANY_POLICY) && any_counts {
            // (d)(2)
            for policy in expected {
                if !policies.contains(policy) || policy == ANY_POLICY {
                    add(policy);
                }
            }
        }
        next
    }

    /// 6.1.4 (a), (b), (h) to (j).
    pub(super) fn prepare(&mut self, cert: &Cert<'_>) -> Result<(), String> {
        if let Some(mappings) = &cert.mappings {
            if mappings.len() > MAX_POLICIES {
                return Err(format!("it has more than {MAX_POLICIES} policy mappings"));
            }
            if mappings.iter().any(|(from, to)| from == ANY_POLICY || to == ANY_POLICY) {
                return Err("it maps anyPolicy, which RFC 5280 4.2.1.5 forbids".to_owned());
            }
            self.map(mappings);
        }
        if !cert.self_issued() {
            for counter in [&mut self.explicit, &mut self.mapping, &mut self.inhibit_any] {
                *counter = counter.saturating_sub(1);
            }
        }
        if let Some(constraints) = &cert.policy_constraints {
            if let Some(skip) = constraints.require_explicit_policy {
                self.explicit = self.explicit.min(skip);
            }
            if let Some(skip) = constraints.inhibit_policy_mapping {
                self.mapping = self.mapping.min(skip);
            }
        }
        if let Some(skip) = cert.inhibit_any_policy {
            self.inhibit_any = self.inhibit_any.min(skip);
        }
        Ok(())
    }

    fn map(&mut self, mappings: &[(String, String)]) {
        let mut targets: BTreeMap<&String, BTreeSet<String>> = BTreeMap::new();
        for (from, to) in mappings {
            targets.entry(from).or_default().insert(to.clone());
        }
        for (from, to) in targets {
            if self.mapping == 0 {
                self.level.remove(from);
            } else if self.level.contains_key(from) || self.level.contains_key(ANY_POLICY) {
                self.level.insert(from.clone(), to);
            }
        }
    }

    /// 6.1.5 (a), (b), (g).
    pub(super) fn wrap_up(mut self, cert: &Cert<'_>) -> Result<(), String> {
        self.explicit = self.explicit.saturating_sub(1);
        if let Some(constraints) = &cert.policy_constraints
            && constraints.require_explicit_policy == Some(0)
        {
            self.explicit = 0;
        }
        self.required()
    }

    fn required(&self) -> Result<(), String> {
        if self.explicit == 0 && self.level.is_empty() {
            return Err("a CA above it requires a certificate policy that the path does not have \
                        throughout"
                .to_owned());
        }
        Ok(())
    }
}
