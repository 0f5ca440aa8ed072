//! Patterns that certificates of external CAs are matched with: `C=CH, O=Example, CN=*` for the
//! subject, `*.runners.example.com` for alternative names.

use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::name::{self, Normal, Value};
use super::{San, path};

/// A distinguished name whose values may be `*`: as many RDNs as the pattern has, in its order,
/// each of the pattern's type, with the pattern's value or any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnPattern {
    rdns: Vec<(String, Option<String>)>,
}

impl DnPattern {
    /// Reads `TYPE=VALUE, TYPE=VALUE, ...`; a comma or backslash in a value is written behind a
    /// backslash.
    ///
    /// # Errors
    /// What cannot be read, one sentence.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut rdns = Vec::new();
        for part in split(text) {
            let (kind, value) = part
                .split_once('=')
                .ok_or_else(|| format!("\"{part}\" is not TYPE=VALUE, like CN=*"))?;
            let kind = kind.trim();
            let oid = match name::oid_of(kind) {
                Some(oid) => oid.to_owned(),
                None if is_oid(kind) => kind.to_owned(),
                None => {
                    return Err(format!(
                        "\"{kind}\" is no attribute type known here: write C, O, OU, CN, L, ST, \
                         E, DC, UID, serialNumber or its number like 2.5.4.3"
                    ));
                }
            };
            let value = name::fold(value);
            if value.is_empty() {
                return Err(format!("\"{part}\" has no value: write * for any"));
            }
            rdns.push((oid, (value != "*").then_some(value)));
        }
        if rdns.is_empty() {
            return Err("the pattern is empty".to_owned());
        }
        Ok(Self { rdns })
    }

    /// Whether a certificate's subject matches.
    pub fn matches(&self, certificate: &[u8]) -> bool {
        let Ok((_, x509)) = X509Certificate::from_der(certificate) else { return false };
        let Normal(rdns) = name::normalise(x509.subject());
        rdns.len() == self.rdns.len()
            && rdns.iter().zip(&self.rdns).all(|(rdn, (kind, value))| match rdn.as_slice() {
                [attribute] => {
                    attribute.kind == *kind
                        && value.as_ref().is_none_or(|value| match &attribute.value {
                            Value::Text(text) => text == value,
                            Value::Other(..) => false,
                        })
                }
                _ => false,
            })
    }
}

/// Splits at commas that no backslash precedes.
fn split(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut escaped = false;
    for c in text.chars() {
        match (escaped, c) {
            (false, '\\') => escaped = true,
            (false, ',') => parts.push(String::new()),
            (_, c) => {
                escaped = false;
                if let Some(part) = parts.last_mut() {
                    part.push(c);
                }
            }
        }
    }
    parts.retain(|part| !part.trim().is_empty());
    parts
}

fn is_oid(text: &str) -> bool {
    text.contains('.')
        && text.split('.').all(|arc| !arc.is_empty() && arc.bytes().all(|b| b.is_ascii_digit()))
}

/// An alternative name: a DNS name, `*.DOMAIN` for every name below a domain, a mailbox,
/// `*@DOMAIN` for every mailbox of a domain, an address, or a URI, whose end may be `*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SanPattern {
    /// One DNS name, lower case.
    Dns(String),
    /// Every DNS name below a domain.
    Below(String),
    /// One mailbox.
    Email(String),
    /// Every mailbox of a domain.
    EmailAt(String),
    /// An address.
    Ip(std::net::IpAddr),
    /// One URI.
    Uri(String),
    /// Every URI that begins so.
    UriPrefix(String),
}

impl SanPattern {
    /// Reads a pattern.
    ///
    /// # Errors
    /// What cannot be read, one sentence.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wildcard = || {
            format!(
                "\"{text}\": write * only as \"*.DOMAIN\", \"*@DOMAIN\" or at the end of a URI's \
                 path"
            )
        };
        if let Some((_, rest)) = text.split_once("://") {
            return match text.strip_suffix('*') {
                // A prefix must reach into the path, or another host would match.
                Some(prefix) if rest.contains('/') && !prefix.contains('*') => {
                    Ok(Self::UriPrefix(prefix.to_owned()))
                }
                None if !text.contains('*') => Ok(Self::Uri(text.to_owned())),
                _ => Err(wildcard()),
            };
        }
        if let Ok(address) = text.parse() {
            return Ok(Self::Ip(address));
        }
        let folded = text.to_ascii_lowercase();
        let pattern = if let Some(domain) = folded.strip_prefix("*@") {
            Self::EmailAt(domain.to_owned())
        } else if let Some(domain) = folded.strip_prefix("*.") {
            Self::Below(domain.to_owned())
        } else if folded.contains('@') {
            Self::Email(folded)
        } else {
            Self::Dns(folded)
        };
        match &pattern {
            Self::EmailAt(name) | Self::Below(name) | Self::Email(name) | Self::Dns(name)
                if name.contains('*') || name.trim().is_empty() =>
            {
                Err(wildcard())
            }
            _ => Ok(pattern),
        }
    }

    /// Whether one of a certificate's alternative names matches.
    pub fn matches(&self, certificate: &[u8]) -> bool {
        let Ok((_, x509)) = X509Certificate::from_der(certificate) else { return false };
        path::sans(&x509).iter().any(|san| self.fits(san))
    }

    fn fits(&self, san: &San) -> bool {
        match (self, san) {
            (Self::Dns(wanted), San::Dns(name)) => name.eq_ignore_ascii_case(wanted),
            (Self::Below(domain), San::Dns(name)) => {
                let name = name.to_ascii_lowercase();
                let label = name.strip_suffix(domain).and_then(|rest| rest.strip_suffix('.'));
                label.is_some_and(|label| !label.is_empty())
            }
            (Self::Email(wanted), San::Email(name)) => name.eq_ignore_ascii_case(wanted),
            (Self::EmailAt(domain), San::Email(name)) => {
                name.rsplit_once('@').is_some_and(|(_, host)| host.eq_ignore_ascii_case(domain))
            }
            (Self::Ip(wanted), San::Ip(address)) => address == wanted,
            (Self::Uri(wanted), San::Uri(name)) => name == wanted,
            (Self::UriPrefix(prefix), San::Uri(name)) => name.starts_with(prefix),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(rdns: &[(rcgen::DnType, &str)]) -> Vec<u8> {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        for (kind, value) in rdns {
            params.distinguished_name.push(kind.clone(), *value);
        }
        params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    #[test]
    fn subjects_match_rdn_by_rdn() {
        use rcgen::DnType as T;
        let der = certificate(&[
            (T::CountryName, "CH"),
            (T::OrganizationName, "Example, Inc"),
            (T::OrganizationalUnitName, "CI"),
            (T::CommonName, "runner-7"),
        ]);
        for (expected, pattern) in [
            (true, r"C=CH, O=Example\, Inc, OU=CI, CN=runner-7"),
            (true, r"c=ch,o=EXAMPLE\, inc,ou=*,cn=*"),
            (true, "C=*, O=*, OU=CI, 2.5.4.3=*"),
            (false, "C=*, O=*, OU=Sales, CN=*"),
            (false, "C=*, O=*, CN=*"),
            (false, "C=*, O=*, OU=CI, CN=*, E=*"),
            (false, "O=*, C=*, OU=CI, CN=*"),
            (false, "C=*, O=*, OU=CI, CN=runner-*"),
        ] {
            assert_eq!(DnPattern::parse(pattern).unwrap().matches(&der), expected, "{pattern}");
        }
        for pattern in ["", "CN", "CN=", "Nonsense=x", " , "] {
            assert!(DnPattern::parse(pattern).is_err(), "{pattern}");
        }
    }

    #[test]
    fn alternative_names_match() {
        let dns = |name: &str| San::Dns(name.to_owned());
        let email = |name: &str| San::Email(name.to_owned());
        let uri = |name: &str| San::Uri(name.to_owned());
        for (expected, pattern, san) in [
            (true, "a.example.com", dns("A.example.com")),
            (true, "*.example.com", dns("a.b.EXAMPLE.com")),
            (false, "*.example.com", dns("example.com")),
            (false, "*.example.com", dns("badexample.com")),
            (false, "*.example.com", email("a@x.example.com")),
            (true, "*@example.com", email("a@Example.com")),
            (false, "*@example.com", email("a@b.example.com")),
            (true, "a@example.com", email("A@example.com")),
            (true, "10.0.0.1", San::Ip("10.0.0.1".parse().unwrap())),
            (true, "spiffe://ci.example.com/ci/*", uri("spiffe://ci.example.com/ci/7")),
            (false, "spiffe://ci.example.com/ci/*", uri("spiffe://ci.example.com/x")),
            (true, "spiffe://ci.example.com/x", uri("spiffe://ci.example.com/x")),
        ] {
            assert_eq!(SanPattern::parse(pattern).unwrap().fits(&san), expected, "{pattern}");
        }
        for pattern in ["", "*", "*.", "a.*.com", "*@", "https://*", "https://host*", "**.x"] {
            assert!(SanPattern::parse(pattern).is_err(), "{pattern}");
        }
    }
}
