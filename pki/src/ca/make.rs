//! Certificates of CAs: roots, issuing CAs, roots certified by roots, and requests.

use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, DnValue, IsCa, KeyIdMethod,
    KeyUsagePurpose,
};
use x509_parser::certificate::X509Certificate;
use x509_parser::der_parser::asn1_rs::Tag;
use x509_parser::extensions::ParsedExtension;

use super::record::{self, ISSUING_KEY, IssuingRecord, PendingRecord, ROOT_KEY, RootRecord};
use super::{CaKey, issuer_id};
use crate::entropy::{Entropy, random_text};
use crate::error::Error;
use crate::issue::{self, BACKDATE, Terms};
use crate::profile::Settings;
use crate::seal::Sealer;
use crate::serial::Serial;
use crate::signer::{KeyKind, RcgenKey, SharedSigner, Signer};
use crate::time::UnixTime;
use crate::validate::path;

const DAY: u64 = 86_400;
const ROOT_LIFE: Duration = Duration::from_secs(20 * 365 * DAY);
const ISSUING_LIFE: Duration = Duration::from_secs(10 * 365 * DAY);

/// What making a CA needs.
pub(crate) struct Maker<'a> {
    pub(crate) settings: &'a Settings,
    pub(crate) sealer: &'a Sealer,
    pub(crate) entropy: &'a mut dyn Entropy,
    pub(crate) now: UnixTime,
    /// The public keys of CAs that are there: none of them gets a second certificate of ours.
    pub(crate) taken: Vec<Vec<u8>>,
}

impl Maker<'_> {
    /// A root with its key.
    pub(super) fn root(
        &mut self,
        kind: KeyKind,
        place: Option<&str>,
    ) -> Result<(RootRecord, SharedSigner), Error> {
        let terms = self.terms(ROOT_LIFE)?;
        let (signer, key) = self.key(kind, ROOT_KEY)?;
        let mut root = issue::base(&terms, &self.name("Root")?, &self.settings.trust_domain)?;
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        root.key_usages = usages();
        let by = RcgenKey::new(signer.as_ref())?;
        let der = by.made(root.self_signed(&by))?.der().to_vec();
        let place = place.map_or_else(|| id_of(&der), |place| Ok(place.to_owned()))?;
        Ok((RootRecord::own(der, key, &place), signer))
    }

    /// An issuing CA below a root.
    pub(super) fn issuing(
        &mut self,
        kind: KeyKind,
        root: CaKey<'_>,
        place: Option<&str>,
    ) -> Result<IssuingRecord, Error> {
        let mut terms = self.terms(ISSUING_LIFE)?;
        let (_, root_end) = path::validity(&record::parse(root.certificate)?);
        terms.not_after = terms.not_after.min(root_end);
        let (signer, key) = self.key(kind, ISSUING_KEY)?;
        let mut issuing = issue::base(&terms, &self.name("Issuing")?, &self.settings.trust_domain)?;
        issuing.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        issuing.key_usages = usages();
        let der = self.below(issuing, signer.as_ref(), root)?;
        let place = place.map_or_else(|| id_of(&der), |place| Ok(place.to_owned()))?;
        Ok(IssuingRecord::new(der, key, &place, &id_of(root.certificate)?))
    }

    /// The same root certified by another, for those who know only the other: name, key and key
    /// identifier are those of the self-signed certificate. `None` when the name is one that
    /// cannot be written again as it was.
    pub(super) fn cross(&mut self, root: &[u8], by: CaKey<'_>) -> Result<Option<Vec<u8>>, Error> {
        let parsed = record::parse(root)?;
        let (_, end) = path::validity(&parsed);
        let (_, other_end) = path::validity(&record::parse(by.certificate)?);
        let mut terms = self.terms(ROOT_LIFE)?;
        terms.not_after = terms.not_after.min(end).min(other_end);
        let mut cross = issue::base(&terms, "", "")?;
        let Some(name) = name_of(&parsed) else { return Ok(None) };
        cross.distinguished_name = name;
        if let Some(id) = key_identifier(root) {
            cross.key_identifier_method = KeyIdMethod::PreSpecified(id);
        }
        cross.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        cross.key_usages = usages();
        let subject = rcgen::SubjectPublicKeyInfo::from_der(parsed.public_key().raw)?;
        let der = self.signed(cross, &subject, by)?;
        Ok((record::parse(&der)?.subject().as_raw() == parsed.subject().as_raw()).then_some(der))
    }

    /// A key whose certificate another CA is asked for (RFC 2986).
    pub(super) fn request(
        &mut self,
        kind: KeyKind,
        common_name: Option<&str>,
    ) -> Result<PendingRecord, Error> {
        let (signer, key) = self.key(kind, ISSUING_KEY)?;
        let name = common_name.map_or_else(|| self.name("Issuing"), |name| Ok(name.to_owned()))?;
        let terms = self.terms(ISSUING_LIFE)?;
        let mut request = issue::base(&terms, &name, &self.settings.trust_domain)?;
        request.serial_number = None;
        request.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        request.key_usages = usages();
        let by = RcgenKey::new(signer.as_ref())?;
        let csr = by.made(request.serialize_request(&by))?.der().to_vec();
        Ok(PendingRecord { key, csr, created: self.now })
    }

    /// A key for a CA, where the CA's keys are: made here, or in the token.
    fn key(&mut self, kind: KeyKind, purpose: &str) -> Result<(SharedSigner, Vec<u8>), Error> {
        let made = self.sealer.make_key(kind, purpose, &self.taken, self.entropy)?;
        self.taken.push(made.0.public_key_der().to_vec());
        Ok(made)
    }

    fn below(
        &self,
        params: CertificateParams,
        subject: &dyn Signer,
        by: CaKey<'_>,
    ) -> Result<Vec<u8>, Error> {
        self.signed(params, &RcgenKey::new(subject)?, by)
    }

    fn signed(
        &self,
        mut params: CertificateParams,
        subject: &impl rcgen::PublicKeyData,
        by: CaKey<'_>,
    ) -> Result<Vec<u8>, Error> {
        params.use_authority_key_identifier_extension = true;
        if let Some(url) = &self.settings.status_url {
            issue::status(&mut params, url, by.place)?;
        }
        let key = RcgenKey::new(by.signer)?;
        let issuer = rcgen::Issuer::from_ca_cert_der(&by.certificate.into(), &key)?;
        Ok(key.made(params.signed_by(subject, &issuer))?.der().to_vec())
    }

    fn terms(&mut self, life: Duration) -> Result<Terms, Error> {
        let now = self.now.floor_to_second();
        Ok(Terms {
            serial: Serial::random(self.entropy)?,
            not_before: now.minus(BACKDATE),
            not_after: now.plus(life),
            status_url: None,
        })
    }

    /// No CA may share its name with another: issuer and serial identify a certificate.
    fn name(&mut self, kind: &str) -> Result<String, Error> {
        Ok(format!("Runnel {kind} CA {}", random_text(self.entropy, 6)?))
    }
}

/// A certificate's subject to write into another; `None` for kinds of text that cannot be.
fn name_of(certificate: &X509Certificate<'_>) -> Option<DistinguishedName> {
    let mut name = DistinguishedName::new();
    for attribute in certificate.subject().iter_attributes() {
        let oid: Vec<u64> = attribute.attr_type().iter()?.collect();
        let text = attribute.as_str().ok()?;
        let value = match attribute.attr_value().tag() {
            Tag::Utf8String => DnValue::Utf8String(text.to_owned()),
            Tag::PrintableString => DnValue::PrintableString(text.try_into().ok()?),
            Tag::Ia5String => DnValue::Ia5String(text.try_into().ok()?),
            _ => return None,
        };
        name.push(DnType::CustomDnType(oid), value);
    }
    Some(name)
}

fn usages() -> Vec<KeyUsagePurpose> {
    vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign]
}

/// A CA's short name.
pub(super) fn id_of(der: &[u8]) -> Result<String, Error> {
    Ok(issuer_id(record::parse(der)?.subject().as_raw()))
}

/// The subject key identifier of a certificate (DER, RFC 5280 4.2.1.2).
pub(crate) fn key_identifier(der: &[u8]) -> Option<Vec<u8>> {
    let certificate = record::parse(der).ok()?;
    certificate.iter_extensions().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
        _ => None,
    })
}
