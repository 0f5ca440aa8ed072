//! The rules of RFC 5280 6.1 over one path whose signatures hold, and those of RFC 4945 for IKE.

use x509_parser::x509::X509Version;

use super::cert::Cert;
use super::constraints::Constraints;
use super::policy::Policies;
use super::{PeerError, name, path};
use crate::time::UnixTime;

/// Extended key usages that allow an IKE peer; a certificate without the extension is allowed too
/// (RFC 4945 5.1.3.12).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct IkeUsages {
    client_auth: bool,
    ipsec_ike: bool,
    /// What older stacks ask for.
    ike_intermediate: bool,
}

impl IkeUsages {
    const ALL: Self = Self { client_auth: true, ipsec_ike: true, ike_intermediate: true };

    fn of(cert: &Cert<'_>) -> Self {
        let Some(usage) = cert.extended_usage.filter(|usage| !usage.any) else { return Self::ALL };
        let has = |wanted: &str| usage.other.iter().any(|oid| oid.to_id_string() == wanted);
        Self {
            client_auth: usage.client_auth,
            ipsec_ike: has("1.3.6.1.5.5.7.3.17"),
            ike_intermediate: has("1.3.6.1.5.5.8.2.2"),
        }
    }

    /// What a CA is limited to, everything below it is.
    fn and(self, other: Self) -> Self {
        Self {
            client_auth: self.client_auth && other.client_auth,
            ipsec_ike: self.ipsec_ike && other.ipsec_ike,
            ike_intermediate: self.ike_intermediate && other.ike_intermediate,
        }
    }

    fn any(self) -> bool {
        self.client_auth || self.ipsec_ike || self.ike_intermediate
    }
}

/// What the peer's own certificate must say, whoever issued it.
pub(super) fn end_entity(leaf: &Cert<'_>) -> Result<(), PeerError> {
    let subject = || name::render(leaf.x509.subject());
    // RFC 4945 5.1.3.2: either bit allows the IKE signature.
    if leaf.key_usage.is_some_and(|usage| !usage.digital_signature() && !usage.non_repudiation()) {
        return Err(PeerError::NotForSigning { subject: subject() });
    }
    if leaf.basic.is_some_and(|basic| basic.ca) {
        return Err(PeerError::InvalidPath {
            subject: subject(),
            cause: "it is a CA certificate and cannot be a peer's own".to_owned(),
        });
    }
    if !IkeUsages::of(leaf).any() {
        let found = leaf.extended_usage.map(path::usages).unwrap_or_default();
        return Err(PeerError::WrongUsage { subject: subject(), found });
    }
    Ok(())
}

/// Judges the certificates below an anchor, the one the anchor issued first, the leaf last.
pub(super) fn check(
    certs: &[&Cert<'_>],
    anchor: &Cert<'_>,
    now: UnixTime,
) -> Result<(), PeerError> {
    let invalid = |cert: &Cert<'_>, cause: String| PeerError::InvalidPath {
        subject: name::render(cert.x509.subject()),
        cause,
    };
    path::in_time(anchor.x509, now)?;
    let mut policies = Policies::new(certs.len());
    let mut constraints = Constraints::default();
    let mut usages = IkeUsages::ALL;
    // 6.1.1 (d) and RFC 5937: what the anchor's own certificate limits holds as well.
    let mut cas_left = anchor.basic.and_then(|basic| basic.path_len_constraint);
    if anchor.x509.version() == X509Version::V3 {
        issuer_may_sign(anchor).map_err(|cause| invalid(anchor, cause))?;
        // A limit of the anchor that cannot be read must not be lost.
        if let Some(trouble) = &anchor.trouble {
            return Err(invalid(anchor, trouble.clone()));
        }
    }
    constraints.add(anchor);
    usages = usages.and(IkeUsages::of(anchor));

    for (index, cert) in certs.iter().enumerate() {
        let last = index + 1 == certs.len();
        // 6.1.3 (a)(2); signature and names hold already.
        path::in_time(cert.x509, now)?;
        let judged = |result: Result<(), String>| result.map_err(|cause| invalid(cert, cause));
        if cert.x509.version() != X509Version::V3 {
            return Err(invalid(cert, "it is not of version 3".to_owned()));
        }
        if let Some(trouble) = &cert.trouble {
            return Err(invalid(cert, trouble.clone()));
        }
        // 6.1.3 (b), (c)
        if last || !cert.self_issued() {
            judged(constraints.check(cert))?;
        }
        judged(policies.process(cert, last))?;
        usages = usages.and(IkeUsages::of(cert));
        if last {
            break;
        }
        // 6.1.4
        judged(policies.prepare(cert))?;
        constraints.add(cert);
        judged(issuer_may_sign(cert))?;
        if !cert.self_issued() {
            cas_left = match cas_left {
                Some(0) => {
                    let cause = "a CA above it allows fewer CAs below itself".to_owned();
                    return Err(invalid(cert, cause));
                }
                left => left.map(|left| left - 1),
            };
        }
        let own = cert.basic.and_then(|basic| basic.path_len_constraint);
        cas_left = match (cas_left, own) {
            (Some(left), Some(own)) => Some(left.min(own)),
            (left, own) => left.or(own),
        };
    }
    let Some(leaf) = certs.last() else { return Ok(()) };
    policies.wrap_up(leaf).map_err(|cause| invalid(leaf, cause))?;
    if !usages.any() {
        let cause = "a CA above it is not for IKE (extended key usage)".to_owned();
        return Err(invalid(leaf, cause));
    }
    Ok(())
}

/// 6.1.4 (k), (n).
fn issuer_may_sign(ca: &Cert<'_>) -> Result<(), String> {
    if !ca.basic.is_some_and(|basic| basic.ca) {
        return Err("it issued another certificate but is not a CA certificate".to_owned());
    }
    if ca.key_usage.is_some_and(|usage| !usage.key_cert_sign()) {
        return Err("it issued another certificate, which its key usage does not allow".to_owned());
    }
    Ok(())
}
