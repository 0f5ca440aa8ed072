//! Distribution points (RFC 5280 4.2.1.13, 5.2.5): which part of its issuer's revocations a list
//! holds, and which parts a certificate names.
//!
//! Read strictly: a reader that skips what it does not understand would take a part for the whole,
//! and what another part revokes for good.

use der::{Decode, Encode};
use x509_cert::ext::pkix::CrlDistributionPoints;
use x509_cert::ext::pkix::crl::dp::IssuingDistributionPoint;
use x509_cert::ext::pkix::name::{DistributionPointName, GeneralName};
use x509_cert::name::RdnSequence;
use x509_parser::certificate::X509Certificate;

use super::name::{self, Normal};
use super::status::{StatusError, unusable};

/// The extension of certificates.
const POINTS: &str = "2.5.29.31";

/// A name of a distribution point, in comparable form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum PointName {
    Uri(String),
    Directory(Normal),
}

/// What a list is limited to.
#[derive(Debug, Default)]
pub(super) struct Scope {
    /// Names of the part; none: every one.
    names: Option<Vec<PointName>>,
    only_users: bool,
    only_cas: bool,
    only_attributes: bool,
    pub(super) some_reasons: bool,
}

impl Scope {
    /// Of an issuing distribution point (its DER) in a list of this issuer.
    pub(super) fn read(value: &[u8], issuer: &Normal) -> Result<Self, StatusError> {
        let point = IssuingDistributionPoint::from_der(value)
            .map_err(|_| unusable("the list's issuing distribution point does not parse"))?;
        if point.indirect_crl {
            return Err(unusable("the list is one of several issuers (indirect)"));
        }
        Ok(Self {
            names: point.distribution_point.map(|names| comparable(&names, issuer)),
            only_users: point.only_contains_user_certs,
            only_cas: point.only_contains_ca_certs,
            only_attributes: point.only_contains_attribute_certs,
            some_reasons: point.only_some_reasons.is_some(),
        })
    }

    /// RFC 5280 6.3.3 (b) (2), for a certificate whose points have these names.
    pub(super) fn covers(&self, names: &[PointName], is_ca: bool) -> bool {
        let named =
            self.names.as_ref().is_none_or(|ours| ours.iter().any(|name| names.contains(name)));
        let kind = if is_ca { !self.only_users } else { !self.only_cas };
        named && kind && !self.only_attributes
    }
}

/// The names of a certificate's points. Those of other issuers, and of some reasons only, prove
/// nothing good and are left out.
pub(super) fn names_of(certificate: &X509Certificate<'_>) -> Vec<PointName> {
    let issuer = name::normalise(certificate.issuer());
    let extension = certificate.extensions().iter().find(|one| one.oid.to_id_string() == POINTS);
    let points = extension.and_then(|one| CrlDistributionPoints::from_der(one.value).ok());
    let whole = |point: &&x509_cert::ext::pkix::crl::dp::DistributionPoint| {
        point.crl_issuer.is_none() && point.reasons.is_none()
    };
    points
        .iter()
        .flat_map(|points| points.0.iter().filter(whole))
        .filter_map(|point| point.distribution_point.as_ref())
        .flat_map(|names| comparable(names, &issuer))
        .collect()
}

/// Names of forms that nothing is compared by are left out.
fn comparable(names: &DistributionPointName, issuer: &Normal) -> Vec<PointName> {
    let directory = |name: &RdnSequence| {
        let normal = name::normal(&name.to_der().ok()?)?;
        Some(PointName::Directory(normal))
    };
    match names {
        DistributionPointName::FullName(names) => names
            .iter()
            .filter_map(|name| match name {
                GeneralName::UniformResourceIdentifier(uri) => {
                    Some(PointName::Uri(uri.as_str().to_owned()))
                }
                GeneralName::DirectoryName(name) => directory(name),
                _ => None,
            })
            .collect(),
        DistributionPointName::NameRelativeToCRLIssuer(rdn) => {
            match directory(&RdnSequence(vec![rdn.clone()])) {
                Some(PointName::Directory(Normal(last))) => {
                    let whole = issuer.0.iter().cloned().chain(last).collect();
                    vec![PointName::Directory(Normal(whole))]
                }
                _ => Vec::new(),
            }
        }
    }
}
