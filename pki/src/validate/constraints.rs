//! Name constraints (RFC 5280 4.2.1.10, 6.1.3 (b) and (c), 6.1.4 (g)).
//!
//! Instead of intersecting subtrees on the way down, every name is compared with the constraints of
//! every CA above it, which is the same.

use x509_parser::extensions::{GeneralName, NameConstraints};

use super::cert::Cert;
use super::name::{self, Normal};

/// Comparisons of one path: 32 KB hold some thousands of names.
const MAX_COMPARISONS: usize = 20_000;

/// The constraints of the CAs walked so far.
#[derive(Debug, Default)]
pub(super) struct Constraints<'a> {
    above: Vec<&'a NameConstraints<'a>>,
    comparisons: usize,
}

impl<'a> Constraints<'a> {
    /// 6.1.4 (g).
    pub(super) fn add(&mut self, cert: &'a Cert<'_>) {
        self.above.extend(cert.name_constraints);
    }

    /// 6.1.3 (b) and (c) for the subject and every alternative name.
    pub(super) fn check(&mut self, cert: &Cert<'_>) -> Result<(), String> {
        if self.above.is_empty() {
            return Ok(());
        }
        let subject = GeneralName::DirectoryName(cert.x509.subject().clone());
        let mut names: Vec<&GeneralName<'_>> = cert.alternative_names.iter().collect();
        if cert.x509.subject().iter().next().is_some() {
            names.push(&subject);
        }
        // Without alternative names the address in the subject counts.
        let mut emails: Vec<GeneralName<'_>> = Vec::new();
        if cert.alternative_names.is_empty() {
            for attribute in cert.x509.subject().iter_email() {
                let Ok(email) = attribute.as_str() else {
                    return Err("the mail address in its subject cannot be read".to_owned());
                };
                emails.push(GeneralName::RFC822Name(email));
            }
        }
        names.extend(&emails);
        let refused = |name: &GeneralName<'_>| {
            format!("a CA above it does not allow this name: {}", shown(name))
        };
        for constraints in &self.above {
            for name in &names {
                let mut permitted = None;
                for subtree in constraints.permitted_subtrees.iter().flatten() {
                    self.comparisons += 1;
                    if let Some(matches) = compare(name, &subtree.base)? {
                        permitted = Some(permitted == Some(true) || matches);
                    }
                }
                if permitted == Some(false) {
                    return Err(refused(name));
                }
                for subtree in constraints.excluded_subtrees.iter().flatten() {
                    self.comparisons += 1;
                    if compare(name, &subtree.base)? == Some(true) {
                        return Err(refused(name));
                    }
                }
                if self.comparisons > MAX_COMPARISONS {
                    return Err("its names and constraints are too many to compare".to_owned());
                }
            }
        }
        Ok(())
    }
}

/// Whether a name lies in a subtree; `None` when they are of different forms.
///
/// # Errors
/// When the form cannot be compared: it must be refused then (RFC 5280 4.2.1.10).
fn compare(name: &GeneralName<'_>, base: &GeneralName<'_>) -> Result<Option<bool>, String> {
    use GeneralName as G;
    Ok(Some(match (name, base) {
        (G::DNSName(name), G::DNSName(base)) => dns(name, base),
        (G::RFC822Name(name), G::RFC822Name(base)) => match name.rsplit_once('@') {
            Some((local, host)) => email(local, host, base),
            None => return Err(format!("{} is no mail address to compare", shown_text(name))),
        },
        (G::URI(name), G::URI(base)) => match uri_host(name) {
            Some(host) => host_in(host, base),
            None => return Err(format!("the URI {} names no host to compare", shown_text(name))),
        },
        (G::IPAddress(name), G::IPAddress(base)) => address(name, base),
        (G::DirectoryName(name), G::DirectoryName(base)) => {
            name::normalise(name).is_below(&name::normalise(base))
        }
        (name, base) if std::mem::discriminant(name) == std::mem::discriminant(base) => {
            return Err(
                "a CA above it constrains names of a form that is not understood here".to_owned()
            );
        }
        _ => return Ok(None),
    }))
}

/// Adding labels on the left keeps a name in the subtree. A leading dot, which some CAs write,
/// means at least one more label.
fn dns(name: &str, base: &str) -> bool {
    let (name, base) = (undotted(name), undotted(base));
    base.is_empty() || same_or_below(name, base)
}

/// Without the dot of the root: `a.example.` is `a.example`.
fn undotted(name: &str) -> &str {
    name.strip_suffix('.').unwrap_or(name)
}

fn same_or_below(name: &str, base: &str) -> bool {
    if let Some(parent) = base.strip_prefix('.') {
        return below(name, parent);
    }
    name.eq_ignore_ascii_case(base) || below(name, base)
}

fn below(name: &str, parent: &str) -> bool {
    let Some(cut) = name.len().checked_sub(parent.len() + 1) else { return false };
    cut > 0
        && name.is_char_boundary(cut)
        && name.get(cut..).is_some_and(|rest| {
            rest.strip_prefix('.').is_some_and(|rest| rest.eq_ignore_ascii_case(parent))
        })
}

/// A mailbox, all mailboxes of a host, or (leading dot) of the hosts below a domain.
fn email(local: &str, host: &str, base: &str) -> bool {
    match base.rsplit_once('@') {
        Some((base_local, base_host)) => {
            local == base_local && undotted(host).eq_ignore_ascii_case(undotted(base_host))
        }
        None => host_in(host, base),
    }
}

/// The host itself, or (leading dot) a host below the domain; an empty base is every host, so
/// that excluding it excludes all.
fn host_in(host: &str, base: &str) -> bool {
    let (host, base) = (undotted(host), undotted(base));
    if base.is_empty() {
        return true;
    }
    match base.strip_prefix('.') {
        Some(parent) => below(host, parent),
        None => host.eq_ignore_ascii_case(base),
    }
}

/// The host name of a URI with an authority; none for addresses.
fn uri_host(uri: &str) -> Option<&str> {
    let (_, rest) = uri.split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next()?;
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let host = host.split_once(':').map_or(host, |(host, _)| host);
    let is_name =
        !host.is_empty() && !host.starts_with('[') && host.parse::<std::net::Ipv4Addr>().is_err();
    is_name.then_some(host)
}

/// Address and mask, each as long as the name.
fn address(name: &[u8], base: &[u8]) -> bool {
    if base.len() != name.len() * 2 {
        return false;
    }
    let (network, mask) = base.split_at(name.len());
    name.iter().zip(network).zip(mask).all(|((name, network), mask)| name & mask == network & mask)
}

fn shown(name: &GeneralName<'_>) -> String {
    match name {
        GeneralName::DNSName(text) | GeneralName::RFC822Name(text) | GeneralName::URI(text) => {
            shown_text(text)
        }
        GeneralName::DirectoryName(name) => name::render(name),
        GeneralName::IPAddress(octets) => crate::issue::hex(octets),
        _ => "one of another form".to_owned(),
    }
}

fn shown_text(text: &str) -> String {
    text.chars().take(256).map(|c| if c.is_control() { '?' } else { c }).collect()
}

impl Normal {
    /// Whether this name begins with all of the base's RDNs.
    fn is_below(&self, base: &Self) -> bool {
        self.0.starts_with(&base.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_subtrees() {
        use GeneralName as G;
        for (expected, name, base) in [
            (true, G::DNSName("a.example.com"), G::DNSName("example.com")),
            (true, G::DNSName("EXAMPLE.com"), G::DNSName("example.COM")),
            (false, G::DNSName("badexample.com"), G::DNSName("example.com")),
            (false, G::DNSName("example.com"), G::DNSName(".example.com")),
            (true, G::DNSName("a.example.com"), G::DNSName(".example.com")),
            (true, G::DNSName("anything"), G::DNSName("")),
            (false, G::DNSName("com"), G::DNSName("example.com")),
            (true, G::RFC822Name("a@example.com"), G::RFC822Name("example.com")),
            (false, G::RFC822Name("a@x.example.com"), G::RFC822Name("example.com")),
            (true, G::RFC822Name("a@x.example.com"), G::RFC822Name(".example.com")),
            (true, G::RFC822Name("a@EXAMPLE.com"), G::RFC822Name("a@example.com")),
            (false, G::RFC822Name("A@example.com"), G::RFC822Name("a@example.com")),
            (true, G::RFC822Name("a@example.com"), G::RFC822Name("")),
            (true, G::RFC822Name("a@example.com."), G::RFC822Name("example.com")),
            (true, G::DNSName("a.example.com"), G::DNSName("example.com.")),
            (true, G::URI("https://a.example.com./"), G::URI("a.example.com")),
            (true, G::URI("https://a.example.com/"), G::URI("")),
            (true, G::URI("spiffe://ci.example.com/x"), G::URI("ci.example.com")),
            (true, G::URI("https://u@a.example.com:8443/x"), G::URI(".example.com")),
            (false, G::URI("https://a.example.org/"), G::URI(".example.com")),
            (true, G::IPAddress(&[10, 1, 2, 3]), G::IPAddress(&[10, 1, 0, 0, 255, 255, 0, 0])),
            (false, G::IPAddress(&[10, 2, 2, 3]), G::IPAddress(&[10, 1, 0, 0, 255, 255, 0, 0])),
            (false, G::IPAddress(&[0; 16]), G::IPAddress(&[10, 1, 0, 0, 255, 255, 0, 0])),
        ] {
            assert_eq!(compare(&name, &base), Ok(Some(expected)), "{name:?} {base:?}");
        }
        assert_eq!(compare(&G::DNSName("a"), &G::URI("a")), Ok(None));
        // What cannot be compared is refused, not let through.
        assert!(compare(&G::RFC822Name("nobody"), &G::RFC822Name("example.com")).is_err());
        assert!(compare(&G::URI("urn:x"), &G::URI("example.com")).is_err());
        assert!(compare(&G::URI("https://192.0.2.1/"), &G::URI("example.com")).is_err());
        let oid = || x509_parser::der_parser::oid!(1.2.3);
        assert!(compare(&G::RegisteredID(oid()), &G::RegisteredID(oid())).is_err());
    }
}
