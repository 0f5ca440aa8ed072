//! Revocation lists of external CAs (RFC 5280 5 and 6.3): complete ones and partitions; no deltas
//! and no lists in another's name.

use std::collections::BTreeMap;

use x509_parser::extensions::{DistributionPointName, GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;

use super::cert::Cert;
use super::der::{self, SignedData};
use super::name::{self, Normal};
use super::signature;
use super::status::{Standing, StatusError, unusable};
use crate::serial::Serial;
use crate::time::UnixTime;

/// A parsed list. Nothing in it is trusted before it is judged with its issuer.
#[derive(Debug)]
pub struct RevocationList {
    der: Vec<u8>,
    issuer: Normal,
    this_update: UnixTime,
    next_update: Option<UnixTime>,
    revoked: BTreeMap<Serial, (UnixTime, String)>,
    scope: Scope,
}

/// What the issuing distribution point limits the list to.
#[derive(Debug, Default)]
struct Scope {
    /// Names of the partition; none: every one.
    names: Option<Vec<String>>,
    only_users: bool,
    only_cas: bool,
    only_attributes: bool,
    some_reasons: bool,
}

impl RevocationList {
    /// Parses a list, DER.
    ///
    /// # Errors
    /// What is not understood.
    pub fn parse(der: Vec<u8>) -> Result<Self, StatusError> {
        let broken = || unusable("the list does not parse");
        let (rest, list) = CertificateRevocationList::from_der(&der).map_err(|_| broken())?;
        if !rest.is_empty() || list.signature_algorithm != list.tbs_cert_list.signature {
            return Err(broken());
        }
        let mut scope = Scope::default();
        for extension in list.extensions() {
            match extension.parsed_extension() {
                ParsedExtension::IssuingDistributionPoint(point) => {
                    if point.indirect_crl {
                        return Err(unusable("the list is one of several issuers (indirect)"));
                    }
                    scope.names = match &point.distribution_point {
                        None => None,
                        Some(DistributionPointName::FullName(names)) => {
                            Some(names.iter().filter_map(uri).collect())
                        }
                        Some(DistributionPointName::NameRelativeToCRLIssuer(_)) => Some(Vec::new()),
                    };
                    scope.only_users = point.only_contains_user_certs;
                    scope.only_cas = point.only_contains_ca_certs;
                    scope.only_attributes = point.only_contains_attribute_certs;
                    scope.some_reasons = point.only_some_reasons.is_some();
                }
                ParsedExtension::CRLNumber(_) | ParsedExtension::AuthorityKeyIdentifier(_) => {}
                // A delta list among them (2.5.29.27).
                _ if extension.critical => {
                    let oid = extension.oid.to_id_string();
                    return Err(unusable(format!(
                        "the list has a critical extension that is not understood here ({oid})"
                    )));
                }
                _ => {}
            }
        }
        let mut revoked = BTreeMap::new();
        for entry in list.iter_revoked_certificates() {
            let mut reason = "no reason given".to_owned();
            for extension in entry.extensions() {
                match extension.parsed_extension() {
                    ParsedExtension::ReasonCode(code) => reason = code.to_string(),
                    _ if extension.critical => {
                        return Err(unusable(
                            "an entry of the list has a critical extension that is not \
                             understood here",
                        ));
                    }
                    _ => {}
                }
            }
            let at = UnixTime::from_secs(entry.revocation_date.timestamp());
            revoked.insert(Serial::from_bytes(entry.raw_serial()), (at, reason));
        }
        Ok(Self {
            issuer: name::normalise(list.issuer()),
            this_update: UnixTime::from_secs(list.last_update().timestamp()),
            next_update: list.next_update().map(|next| UnixTime::from_secs(next.timestamp())),
            revoked,
            scope,
            der,
        })
    }

    /// When a newer one is promised; it says nothing good afterwards.
    pub fn next_update(&self) -> Option<UnixTime> {
        self.next_update
    }

    /// Its size, octets.
    pub fn size(&self) -> usize {
        self.der.len()
    }

    /// RFC 5280 6.3.3 for a certificate and the CA that issued both. `places` is where the
    /// certificate says that its lists are.
    pub(super) fn judge(
        &self,
        cert: &Cert<'_>,
        issuer: &Cert<'_>,
        places: &[String],
        is_ca: bool,
        earliest: UnixTime,
        latest: UnixTime,
    ) -> Result<Standing, StatusError> {
        if self.issuer != issuer.subject {
            return Err(unusable("the list is of another CA"));
        }
        if issuer.key_usage.is_some_and(|usage| !usage.crl_sign()) {
            return Err(unusable("the CA's key usage does not allow it to sign lists"));
        }
        let signed: Option<SignedData<'_>> = der::signed(&self.der);
        if signed.is_none_or(|data| signature::verify(issuer.spki(), data).is_err()) {
            return Err(unusable("the signature of the list does not verify"));
        }
        if self.this_update > latest {
            let at = self.this_update;
            return Err(unusable(format!("the list is of the future ({at})")));
        }
        let Some(until) = self.next_update else {
            return Err(unusable("the list does not say when the next one comes"));
        };
        if until < earliest {
            return Err(unusable(format!("the list was good until {until}")));
        }
        let Scope { names, only_users, only_cas, only_attributes, some_reasons } = &self.scope;
        let for_another =
            names.as_ref().is_some_and(|names| !names.iter().any(|name| places.contains(name)));
        if for_another || *only_attributes || (*only_users && is_ca) || (*only_cas && !is_ca) {
            return Err(unusable("the list is a part that does not cover the certificate"));
        }
        let serial = Serial::from_bytes(cert.x509.raw_serial());
        if let Some((at, reason)) = self.revoked.get(&serial) {
            return Ok(Standing::Revoked { at: *at, reason: reason.clone() });
        }
        if *some_reasons {
            return Err(unusable("the list covers some reasons of revocation only"));
        }
        Ok(Standing::Good { until })
    }
}

fn uri(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::URI(uri) => Some((*uri).to_owned()),
        _ => None,
    }
}
