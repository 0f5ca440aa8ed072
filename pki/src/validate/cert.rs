//! A certificate as path validation sees it: what its extensions say, once.

use std::collections::BTreeSet;

use x509_cert::der::Decode;
use x509_cert::ext::pkix::NameConstraints as StrictConstraints;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{
    BasicConstraints, ExtendedKeyUsage, GeneralName, KeyUsage, NameConstraints, ParsedExtension,
    PolicyConstraints, PolicyInformation,
};
use x509_parser::prelude::FromDer;

use super::name::{self, Normal};
use super::{PeerError, der};

/// Qualifiers that are understood in a critical policies extension: CPS pointer and user notice.
const QUALIFIERS: [&str; 2] = ["1.3.6.1.5.5.7.2.1", "1.3.6.1.5.5.7.2.2"];

/// See the module.
pub(super) struct Cert<'a> {
    pub(super) der: &'a [u8],
    pub(super) x509: &'a X509Certificate<'a>,
    pub(super) subject: Normal,
    pub(super) issuer: Normal,
    pub(super) basic: Option<&'a BasicConstraints>,
    pub(super) key_usage: Option<&'a KeyUsage>,
    pub(super) extended_usage: Option<&'a ExtendedKeyUsage<'a>>,
    pub(super) name_constraints: Option<&'a NameConstraints<'a>>,
    pub(super) alternative_names: &'a [GeneralName<'a>],
    pub(super) policies: Option<BTreeSet<String>>,
    pub(super) mappings: Option<Vec<(String, String)>>,
    pub(super) policy_constraints: Option<&'a PolicyConstraints>,
    pub(super) inhibit_any_policy: Option<u32>,
    pub(super) authority_key: Option<&'a [u8]>,
    pub(super) subject_key: Option<&'a [u8]>,
    /// An extension that must be understood and is not, or one that does not parse.
    pub(super) trouble: Option<String>,
}

/// Parses the DER of a certificate, to its last octet.
pub(super) fn parse(der: &[u8], position: usize) -> Result<X509Certificate<'_>, PeerError> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok((rest, _)) => Err(PeerError::Malformed {
            position,
            cause: format!("{} octets follow it", rest.len()),
        }),
        Err(cause) => Err(PeerError::Malformed { position, cause: cause.to_string() }),
    }
}

impl<'a> Cert<'a> {
    pub(super) fn read(der: &'a [u8], x509: &'a X509Certificate<'a>) -> Self {
        let mut cert = Self {
            der,
            x509,
            subject: name::normalise(x509.subject()),
            issuer: name::normalise(x509.issuer()),
            basic: None,
            key_usage: None,
            extended_usage: None,
            name_constraints: None,
            alternative_names: &[],
            policies: None,
            mappings: None,
            policy_constraints: None,
            inhibit_any_policy: None,
            authority_key: None,
            subject_key: None,
            trouble: None,
        };
        // RFC 5280 4.1.1.2: the algorithm is said twice, inside and outside of what is signed.
        if x509.signature_algorithm != x509.tbs_certificate.signature {
            cert.trouble = Some("it names two signature algorithms".to_owned());
        }
        let mut seen = BTreeSet::new();
        for extension in x509.extensions() {
            let oid = extension.oid.to_id_string();
            // RFC 5280 4.2: no extension twice.
            if !seen.insert(oid.clone()) {
                cert.trouble.get_or_insert(format!("it has the extension {oid} twice"));
            }
            let parsed = extension.parsed_extension();
            let unread = match parsed {
                ParsedExtension::NameConstraints(read) => unread_constraints(extension.value, read),
                _ => None,
            };
            let trouble = cert.take(&oid, extension.critical, parsed);
            if let Some(trouble) = unread.or(trouble) {
                cert.trouble.get_or_insert(trouble);
            }
        }
        cert
    }

    fn take(
        &mut self,
        oid: &str,
        critical: bool,
        parsed: &'a ParsedExtension<'a>,
    ) -> Option<String> {
        use ParsedExtension as P;
        match parsed {
            P::BasicConstraints(basic) => self.basic = Some(basic),
            P::KeyUsage(usage) => self.key_usage = Some(usage),
            P::ExtendedKeyUsage(usage) => self.extended_usage = Some(usage),
            P::NameConstraints(constraints) => {
                let both = [&constraints.permitted_subtrees, &constraints.excluded_subtrees];
                let mut bases = both.into_iter().flatten().flatten().map(|subtree| &subtree.base);
                // 4.2.1.10: an address and its mask.
                if bases.any(|base| is_invalid(base, [8, 32])) {
                    return Some("its name constraints do not parse".to_owned());
                }
                self.name_constraints = Some(constraints);
            }
            P::SubjectAlternativeName(names) => {
                if names.general_names.iter().any(|name| is_invalid(name, [4, 16])) {
                    return Some("its alternative names do not parse".to_owned());
                }
                self.alternative_names = &names.general_names;
            }
            P::CertificatePolicies(policies) => {
                if critical && !policies.iter().all(understood) {
                    return Some(
                        "its critical policies have a qualifier that is not understood here"
                            .to_owned(),
                    );
                }
                let ids = policies.iter().map(|policy| policy.policy_id.to_id_string());
                self.policies = Some(ids.collect());
            }
            P::PolicyMappings(mappings) => {
                let pairs = mappings.mappings.iter().map(|mapping| {
                    let from = mapping.issuer_domain_policy.to_id_string();
                    (from, mapping.subject_domain_policy.to_id_string())
                });
                self.mappings = Some(pairs.collect());
            }
            P::PolicyConstraints(constraints) => self.policy_constraints = Some(constraints),
            P::InhibitAnyPolicy(inhibit) => self.inhibit_any_policy = Some(inhibit.skip_certs),
            P::AuthorityKeyIdentifier(key) => {
                self.authority_key = key.key_identifier.as_ref().map(|id| id.0);
            }
            P::SubjectKeyIdentifier(key) => self.subject_key = Some(key.0),
            P::CRLDistributionPoints(_) | P::IssuerAlternativeName(_) => {}
            P::ParseError { .. } if critical || oid.starts_with("2.5.29.") => {
                return Some(format!("its extension {oid} does not parse"));
            }
            _ if critical => {
                return Some(format!(
                    "it has a critical extension that is not understood here ({oid})"
                ));
            }
            _ => {}
        }
        None
    }

    /// Issuer and subject are the same name (RFC 5280 3.2).
    pub(super) fn self_issued(&self) -> bool {
        self.subject == self.issuer
    }

    /// Whether `issuer` may have signed this one, by names and key identifiers alone.
    pub(super) fn may_be_issued_by(&self, issuer: &Self) -> bool {
        let keys_fit = match (self.authority_key, issuer.subject_key) {
            (Some(wanted), Some(has)) => wanted == has,
            _ => true,
        };
        keys_fit && self.issuer == issuer.subject
    }

    pub(super) fn signed(&self) -> Option<der::SignedData<'a>> {
        der::signed(self.der)
    }

    pub(super) fn spki(&self) -> &'a [u8] {
        self.x509.public_key().raw
    }
}

fn is_invalid(name: &GeneralName<'_>, address_lengths: [usize; 2]) -> bool {
    match name {
        GeneralName::Invalid(..) => true,
        GeneralName::IPAddress(octets) => !address_lengths.contains(&octets.len()),
        _ => false,
    }
}

/// What is wrong with name constraints that were read as `read`. That reader skips subtrees it
/// does not understand, which would lift them, so they are read once more, strictly.
fn unread_constraints(value: &[u8], read: &NameConstraints<'_>) -> Option<String> {
    let Ok(strict) = StrictConstraints::from_der(value) else {
        return Some("its name constraints do not parse".to_owned());
    };
    let both = [
        (strict.permitted_subtrees, read.permitted_subtrees.as_ref()),
        (strict.excluded_subtrees, read.excluded_subtrees.as_ref()),
    ];
    // 4.2.1.10: one of both must be there, and none may be an empty list.
    let mut empty = true;
    for (strict, read) in both {
        let strict_len = strict.as_ref().map(Vec::len);
        if strict_len != read.map(Vec::len) || strict_len == Some(0) {
            return Some("its name constraints do not parse".to_owned());
        }
        empty = empty && strict.is_none();
        if strict.iter().flatten().any(|tree| tree.minimum != 0 || tree.maximum.is_some()) {
            return Some("its name constraints have distances, which RFC 5280 forbids".to_owned());
        }
    }
    empty.then(|| "its name constraints are empty".to_owned())
}

fn understood(policy: &PolicyInformation<'_>) -> bool {
    policy.policy_qualifiers.iter().flatten().all(|qualifier| {
        QUALIFIERS.contains(&qualifier.policy_qualifier_id.to_id_string().as_str())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trouble(value: &[u8]) -> Option<String> {
        match NameConstraints::from_der(value) {
            Ok((_, read)) => unread_constraints(value, &read),
            Err(_) => Some("unreadable".to_owned()),
        }
    }

    /// A subtree that a lenient reader skips would lift the limit of a critical extension.
    #[test]
    fn name_constraints_are_read_whole_or_refused() {
        let base = *b"\x82\x05a.com";
        let tree = |rest: &[u8]| {
            let body = [&base[..], rest].concat();
            [&[0x30, u8::try_from(body.len()).unwrap()], &body[..]].concat()
        };
        let list =
            |tag: u8, trees: &[u8]| [&[tag, u8::try_from(trees.len()).unwrap()], trees].concat();
        let sequence = |body: &[u8]| list(0x30, body);
        let good = list(0xa0, &tree(&[]));

        assert_eq!(trouble(&sequence(&good)), None);
        assert_eq!(trouble(&sequence(&[good.clone(), list(0xa1, &tree(&[]))].concat())), None);
        for (what, value) in [
            ("nothing", sequence(&[])),
            ("an empty list", sequence(&[0xa0, 0])),
            ("a broken list after a good one", sequence(&[&good[..], &[0xa1, 2, 4, 0]].concat())),
            ("both in the wrong order", sequence(&[list(0xa1, &tree(&[])), good.clone()].concat())),
            ("a minimum", sequence(&list(0xa0, &tree(&[0x80, 1, 1])))),
            ("a maximum", sequence(&list(0xa0, &tree(&[0x81, 1, 1])))),
            ("more behind it", [sequence(&good), vec![5, 0]].concat()),
        ] {
            assert!(trouble(&value).is_some(), "{what}");
        }
    }
}
