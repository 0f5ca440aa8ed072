//! Revocation lists of external CAs (RFC 5280 5 and 6.3): complete ones and partitions; no deltas
//! and no lists in another's name.

use std::collections::{BTreeMap, BTreeSet};

use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;
use x509_parser::x509::ReasonCode;

use super::cert::Cert;
use super::der;
use super::name::{self, Normal};
use super::point::{PointName, Scope};
use super::signature;
use super::status::{Standing, StatusError, unusable};
use crate::time::UnixTime;

/// The extension that limits a list.
const ISSUING_POINT: &str = "2.5.29.28";
/// What an entry takes beside its own octets: the tree's node and the number on the heap.
const ENTRY_OVERHEAD: usize = 48;

/// A parsed list. Nothing in it is trusted before it is judged with its issuer.
#[derive(Debug)]
pub struct RevocationList {
    der: Vec<u8>,
    issuer: Normal,
    this_update: UnixTime,
    next_update: Option<UnixTime>,
    /// By serial number, as [`integer`] has it.
    revoked: BTreeMap<Box<[u8]>, (UnixTime, Option<ReasonCode>)>,
    scope: Scope,
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
        let issuer = name::normalise(list.issuer());
        let mut scope = Scope::default();
        let mut seen = BTreeSet::new();
        for extension in list.extensions() {
            let oid = extension.oid.to_id_string();
            // RFC 5280 5.2: as in certificates, none twice.
            if !seen.insert(oid.clone()) {
                return Err(unusable(format!("the list has the extension {oid} twice")));
            }
            if oid == ISSUING_POINT {
                scope = Scope::read(extension.value, &issuer)?;
                continue;
            }
            match extension.parsed_extension() {
                ParsedExtension::CRLNumber(_) | ParsedExtension::AuthorityKeyIdentifier(_) => {}
                // A delta list among them (2.5.29.27).
                _ if extension.critical => {
                    return Err(unusable(format!(
                        "the list has a critical extension that is not understood here ({oid})"
                    )));
                }
                _ => {}
            }
        }
        let mut revoked = BTreeMap::new();
        for entry in list.iter_revoked_certificates() {
            let mut reason = None;
            for extension in entry.extensions() {
                match extension.parsed_extension() {
                    ParsedExtension::ReasonCode(code) => reason = Some(*code),
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
            revoked.insert(integer(entry.raw_serial()).into(), (at, reason));
        }
        Ok(Self {
            issuer,
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

    /// What it takes in memory, octets, roughly: its entries take more there than in the list.
    pub fn size(&self) -> usize {
        let entry = size_of::<(Box<[u8]>, (UnixTime, Option<ReasonCode>))>() + ENTRY_OVERHEAD;
        size_of::<Self>() + self.der.len() + self.revoked.len() * entry
    }

    /// RFC 5280 6.3.3 for a certificate and the CA that issued it: `issuers` are its certificates in
    /// the path, the one that issued first. One of their keys must have signed the list (a CA whose
    /// key was changed signs all with the new one). `places` are the names of the certificate's
    /// distribution points.
    pub(super) fn judge(
        &self,
        cert: &Cert<'_>,
        issuers: &[Cert<'_>],
        places: &[PointName],
        is_ca: bool,
        earliest: UnixTime,
        latest: UnixTime,
    ) -> Result<Standing, StatusError> {
        if issuers.iter().all(|issuer| self.issuer != issuer.subject) {
            return Err(unusable("the list is of another CA"));
        }
        let may_sign = |issuer: &&Cert<'_>| issuer.key_usage.is_none_or(|usage| usage.crl_sign());
        let signers: Vec<&Cert<'_>> = issuers.iter().filter(may_sign).collect();
        if signers.is_empty() {
            return Err(unusable("the CA's key usage does not allow it to sign lists"));
        }
        let signed = der::signed(&self.der).is_some_and(|data| {
            signers.iter().any(|signer| signature::verify(signer.spki(), data).is_ok())
        });
        if !signed {
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
        if !self.scope.covers(places, is_ca) {
            return Err(unusable("the list is a part that does not cover the certificate"));
        }
        if let Some((at, reason)) = self.revoked.get(integer(cert.x509.raw_serial())) {
            let reason =
                reason.map_or_else(|| "no reason given".to_owned(), |code| code.to_string());
            return Ok(Standing::Revoked { at: *at, reason });
        }
        if self.scope.some_reasons {
            return Err(unusable("the list covers some reasons of revocation only"));
        }
        Ok(Standing::Good { until })
    }
}

/// The content of an INTEGER without what its sign does not need, so that one number has one form.
/// Serial numbers may be negative: RFC 5280 4.1.2.2 asks to cope with those who do not obey it.
fn integer(content: &[u8]) -> &[u8] {
    match content {
        [0, next, ..] if *next < 0x80 => integer(&content[1..]),
        [0xff, next, ..] if *next >= 0x80 => integer(&content[1..]),
        _ => content,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_has_one_form_and_its_sign() {
        for (content, form) in [
            (&[0, 0, 1][..], &[1][..]),
            (&[0, 0x80], &[0, 0x80]),
            (&[0x80], &[0x80]),
            (&[0xff, 0xff, 0x80], &[0x80]),
            (&[0xff, 0x7f], &[0xff, 0x7f]),
            (&[0, 0], &[0]),
            (&[], &[]),
        ] {
            assert_eq!(integer(content), form, "{content:?}");
        }
    }
}
