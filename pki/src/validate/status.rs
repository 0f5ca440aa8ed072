//! Is a certificate of a validated path still good: answers of responders and lists, judged
//! (RFC 6960 3.2, RFC 5280 6.3). Fetching them is the caller's.

use der::asn1::{Null, ObjectIdentifier, OctetString};
use der::{Decode, Encode};
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use x509_cert::serial_number::SerialNumber;
use x509_cert::spki::AlgorithmIdentifierOwned;
use x509_ocsp::{
    BasicOcspResponse, CertId, CertStatus, OcspGeneralizedTime, OcspRequest, OcspResponse,
    OcspResponseStatus, Request, ResponderId, SingleResponse, TbsRequest, Version,
};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{DistributionPointName, GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;

use super::cert::Cert;
use super::crl::RevocationList;
use super::{der as octets, name, path, point, signature};
use crate::serial::Serial;
use crate::time::UnixTime;

/// How far clocks may differ.
const SKEW: std::time::Duration = std::time::Duration::from_secs(300);
/// How long an answer counts that promises no next one.
const NO_NEXT_UPDATE: std::time::Duration = std::time::Duration::from_secs(60);
/// Places of one kind looked at in one certificate.
const MAX_PLACES: usize = 4;

/// What a source says of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// Not revoked, as far as known until this instant.
    Good {
        /// When the source is to be asked again.
        until: UnixTime,
    },
    /// Revoked.
    Revoked {
        /// Since when.
        at: UnixTime,
        /// Why, if the source says so.
        reason: String,
    },
}

/// Why an answer or a list says nothing. `Display` is a part of a sentence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct StatusError(pub String);

pub(super) fn unusable(why: impl Into<String>) -> StatusError {
    StatusError(why.into())
}

/// A certificate whose standing is wanted, with the CA that issued it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatusQuestion {
    /// The subject, for people.
    pub subject: String,
    /// Its serial number.
    pub serial: Serial,
    /// Whether it is a CA's.
    pub is_ca: bool,
    /// Where it says that a responder is (RFC 5280 4.2.2.1), plain HTTP only.
    pub ocsp: Vec<String>,
    /// Where it says that revocation lists are (RFC 5280 4.2.1.13), plain HTTP only.
    pub crl: Vec<String>,
    certificate: Vec<u8>,
    issuer: Vec<u8>,
    /// Further certificates of the issuer in the path, with other keys.
    rekeyed: Vec<Vec<u8>>,
}

/// The questions of a validated path (leaf first, anchor last): one for each certificate but the
/// anchor's.
pub fn questions(path: &[Vec<u8>]) -> Vec<StatusQuestion> {
    let ends = (1..path.len()).filter_map(|above| Some((path.get(above - 1)?, path.get(above..)?)));
    ends.filter_map(|(cert, above)| ask(cert, above)).collect()
}

fn ask(der: &[u8], above: &[Vec<u8>]) -> Option<StatusQuestion> {
    let (issuer, higher) = above.split_first()?;
    let is_issuer = |der: &&Vec<u8>| {
        X509Certificate::from_der(der).is_ok_and(|(_, higher)| {
            X509Certificate::from_der(issuer).is_ok_and(|(_, issuer)| {
                name::same(higher.subject().as_raw(), issuer.subject().as_raw())
            })
        })
    };
    let (_, x509) = X509Certificate::from_der(der).ok()?;
    let (mut ocsp, mut crl) = (Vec::new(), Vec::new());
    for extension in x509.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::AuthorityInfoAccess(access) => {
                for description in &access.accessdescs {
                    if description.access_method.to_id_string() == "1.3.6.1.5.5.7.48.1" {
                        ocsp.extend(place(&description.access_location));
                    }
                }
            }
            ParsedExtension::CRLDistributionPoints(points) => {
                for point in &points.points {
                    // Lists of other issuers, and of some reasons only, prove nothing good.
                    if point.crl_issuer.is_some() || point.reasons.is_some() {
                        continue;
                    }
                    if let Some(DistributionPointName::FullName(names)) = &point.distribution_point
                    {
                        crl.extend(names.iter().filter_map(place));
                    }
                }
            }
            _ => {}
        }
    }
    ocsp.truncate(MAX_PLACES);
    crl.truncate(MAX_PLACES);
    Some(StatusQuestion {
        subject: name::render(x509.subject()),
        serial: Serial::from_bytes(x509.raw_serial()),
        is_ca: x509.basic_constraints().ok().flatten().is_some_and(|basic| basic.value.ca),
        ocsp,
        crl,
        certificate: der.to_vec(),
        issuer: issuer.clone(),
        rekeyed: higher.iter().filter(is_issuer).cloned().collect(),
    })
}

fn place(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::URI(uri) if uri.starts_with("http://") => Some((*uri).to_owned()),
        _ => None,
    }
}

impl StatusQuestion {
    /// The OCSP request, DER: SHA-1 CertID, which every responder knows, and no nonce, so that
    /// prepared answers do (RFC 5019).
    ///
    /// # Errors
    /// When the certificate cannot be named in a request.
    pub fn request(&self) -> Result<Vec<u8>, StatusError> {
        let request = Request { req_cert: self.cert_id()?, single_request_extensions: None };
        let tbs_request = TbsRequest {
            version: Version::V1,
            requestor_name: None,
            request_list: vec![request],
            request_extensions: None,
        };
        OcspRequest { tbs_request, optional_signature: None }
            .to_der()
            .map_err(|cause| unusable(format!("the request cannot be encoded ({cause})")))
    }

    /// Judges a responder's answer (DER): for this certificate, in time, signed by the issuer or
    /// by a signer it delegated (RFC 6960 3.2, 4.2.2.2).
    ///
    /// # Errors
    /// Why it says nothing.
    pub fn answer(&self, response: &[u8], now: UnixTime) -> Result<Standing, StatusError> {
        let parsed = OcspResponse::from_der(response)
            .map_err(|cause| unusable(format!("the answer does not parse ({cause})")))?;
        if parsed.response_status != OcspResponseStatus::Successful {
            return Err(unusable(format!("the responder answers {:?}", parsed.response_status)));
        }
        let bytes = parsed.response_bytes.ok_or_else(|| unusable("the answer is empty"))?;
        if bytes.response_type != ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.48.1.1") {
            return Err(unusable("the answer is of a type that is not understood here"));
        }
        let basic_der = bytes.response.as_bytes();
        let basic = BasicOcspResponse::from_der(basic_der)
            .map_err(|cause| unusable(format!("the answer does not parse ({cause})")))?;
        let wanted = self.cert_id()?;
        let single = basic
            .tbs_response_data
            .responses
            .iter()
            .find(|single| same_certificate(&single.cert_id, &wanted))
            .ok_or_else(|| unusable("the answer is about another certificate"))?;
        self.signed(&basic, basic_der, now)?;
        self.standing(single, now)
    }

    fn standing(&self, single: &SingleResponse, now: UnixTime) -> Result<Standing, StatusError> {
        let extensions = single.single_extensions.iter().flatten();
        if extensions.into_iter().any(|extension| extension.critical) {
            return Err(unusable("the answer has a critical extension that is not understood"));
        }
        let this_update = instant(&single.this_update);
        if this_update > now.plus(SKEW) {
            return Err(unusable(format!("the answer is of the future ({this_update})")));
        }
        let until = match &single.next_update {
            Some(next) => instant(next),
            None => this_update.plus(SKEW).min(now.plus(NO_NEXT_UPDATE)),
        };
        if until.plus(SKEW) < now || (single.next_update.is_none() && until < now) {
            return Err(unusable(format!("the answer was good until {until}")));
        }
        match &single.cert_status {
            CertStatus::Good(_) => Ok(Standing::Good { until }),
            CertStatus::Revoked(info) => Ok(Standing::Revoked {
                at: instant(&info.revocation_time),
                reason: info
                    .revocation_reason
                    .map_or_else(|| "no reason given".to_owned(), |reason| format!("{reason:?}")),
            }),
            CertStatus::Unknown(_) => Err(unusable("the responder does not know the certificate")),
        }
    }

    /// The issuer's own signature, or that of a certificate it issued for OCSP.
    fn signed(
        &self,
        basic: &BasicOcspResponse,
        basic_der: &[u8],
        now: UnixTime,
    ) -> Result<(), StatusError> {
        let data =
            octets::signed(basic_der).ok_or_else(|| unusable("the answer does not parse"))?;
        let issuer = parse(&self.issuer)?;
        let issuer = Cert::read(&self.issuer, &issuer);
        let responder = &basic.tbs_response_data.responder_id;
        if is_responder(responder, &issuer) && signature::verify(issuer.spki(), data).is_ok() {
            return Ok(());
        }
        for certificate in basic.certs.iter().flatten().take(MAX_PLACES) {
            let der = certificate.to_der().unwrap_or_default();
            let Ok(x509) = parse(&der) else { continue };
            let signer = Cert::read(&der, &x509);
            if !is_responder(responder, &signer) || signature::verify(signer.spki(), data).is_err()
            {
                continue;
            }
            let refused = |why: &str| {
                let signer = name::render(x509.subject());
                Err(unusable(format!("the signer of the answer ({signer}) {why}")))
            };
            let issued = signer.may_be_issued_by(&issuer)
                && signer
                    .signed()
                    .is_some_and(|data| signature::verify(issuer.spki(), data).is_ok());
            if !issued {
                return refused("was not issued by the CA of the certificate");
            }
            if !signer.extended_usage.is_some_and(|usage| usage.ocsp_signing) {
                return refused("may not sign OCSP (extended key usage without OCSPSigning)");
            }
            if let Some(trouble) = &signer.trouble {
                return refused(trouble);
            }
            return match path::in_time(&x509, now) {
                Ok(()) => Ok(()),
                Err(error) => Err(unusable(error.to_string())),
            };
        }
        Err(unusable("the answer is signed by nobody the CA vouches for"))
    }

    /// Judges a revocation list (RFC 5280 6.3.3).
    ///
    /// # Errors
    /// Why it says nothing.
    pub fn listed(&self, list: &RevocationList, now: UnixTime) -> Result<Standing, StatusError> {
        let x509 = parse(&self.certificate)?;
        let issuers: Vec<(&[u8], X509Certificate<'_>)> = [&self.issuer]
            .into_iter()
            .chain(&self.rekeyed)
            .map(|der| Ok((der.as_slice(), parse(der)?)))
            .collect::<Result<_, StatusError>>()?;
        let issuers: Vec<Cert<'_>> =
            issuers.iter().map(|(der, x509)| Cert::read(der, x509)).collect();
        list.judge(
            &Cert::read(&self.certificate, &x509),
            &issuers,
            &point::names_of(&x509),
            self.is_ca,
            now.minus(SKEW),
            now.plus(SKEW),
        )
    }

    fn cert_id(&self) -> Result<CertId, StatusError> {
        const SHA1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.14.3.2.26");
        let failed = |cause: der::Error| unusable(format!("it cannot be asked for ({cause})"));
        let issuer = parse(&self.issuer)?;
        let hash = |data: &[u8]| {
            OctetString::new(digest(&SHA1_FOR_LEGACY_USE_ONLY, data).as_ref()).map_err(failed)
        };
        let x509 = parse(&self.certificate)?;
        Ok(CertId {
            hash_algorithm: AlgorithmIdentifierOwned {
                oid: SHA1,
                parameters: Some(der::Any::from(Null)),
            },
            issuer_name_hash: hash(x509.issuer().as_raw())?,
            issuer_key_hash: hash(&issuer.public_key().subject_public_key.data)?,
            serial_number: SerialNumber::new(self.serial.as_bytes()).map_err(failed)?,
        })
    }
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, StatusError> {
    match X509Certificate::from_der(der) {
        Ok((_, x509)) => Ok(x509),
        Err(cause) => Err(unusable(format!("a certificate does not parse ({cause})"))),
    }
}

/// Parameters of the hash algorithm are absent or NULL, both mean the same.
fn same_certificate(left: &CertId, right: &CertId) -> bool {
    left.hash_algorithm.oid == right.hash_algorithm.oid
        && left.issuer_name_hash == right.issuer_name_hash
        && left.issuer_key_hash == right.issuer_key_hash
        && left.serial_number == right.serial_number
}

fn is_responder(id: &ResponderId, cert: &Cert<'_>) -> bool {
    match id {
        ResponderId::ByName(responder) => {
            let der = responder.to_der().unwrap_or_default();
            name::same(&der, cert.x509.subject().as_raw())
        }
        ResponderId::ByKey(hash) => {
            let key = &cert.x509.public_key().subject_public_key.data;
            hash.as_bytes() == digest(&SHA1_FOR_LEGACY_USE_ONLY, key).as_ref()
        }
    }
}

fn instant(time: &OcspGeneralizedTime) -> UnixTime {
    let seconds = time.0.to_unix_duration().as_secs();
    UnixTime::from_secs(i64::try_from(seconds).unwrap_or(i64::MAX))
}
