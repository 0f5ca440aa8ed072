//! Decides and encodes answers (RFC 6960 4.2, RFC 5019 for what may be cached).

use std::time::Duration;

use der::asn1::{BitString, GeneralizedTime, Null, ObjectIdentifier, OctetString};
use der::{Decode, Encode};
use ring::digest::{self, Algorithm};
use x509_cert::Certificate;
use x509_cert::ext::pkix::CrlReason;
use x509_cert::spki::AlgorithmIdentifierOwned;
use x509_ocsp::{
    BasicOcspResponse, CertId, CertStatus, OcspGeneralizedTime, OcspResponse, ResponderId,
    ResponseData, RevokedInfo, SingleResponse, Version,
};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::delegate::Delegate;
use super::request::{self, Asked};
use crate::authority::{Authority, lock};
use crate::error::Error;
use crate::issue::CertRecord;
use crate::record::{self, key};
use crate::revoke::{Revocation, RevocationReason};
use crate::serial::Serial;
use crate::signer::{KeyAlgorithm, Signer};
use crate::time::UnixTime;

/// What `nextUpdate` promises. Clients keep an answer this long, so this is how late they may
/// learn of a revocation.
const LIFE: Duration = Duration::from_secs(300);
/// An answer without nonce is given again this long, if the status is still the same.
const KEEP: Duration = Duration::from_secs(60);
/// Answers kept at most.
const MAX_KEPT: usize = 4_096;
/// Longest CertID kept, octets: SHA-512 and a serial number of 20 octets fit.
const MAX_KEPT_ID: usize = 192;

/// An answer to an OCSP request.
#[derive(Clone, Debug, PartialEq)]
pub struct OcspReply {
    /// What it says.
    pub status: OcspStatus,
    /// The `OCSPResponse`, DER.
    pub der: Vec<u8>,
    /// Until when caches on the way may repeat it; `None` for answers to one client only.
    pub cache_until: Option<UnixTime>,
    /// What failed, for [`OcspStatus::InternalError`].
    pub error: Option<Error>,
}

/// The `responseStatus` (RFC 6960 4.2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OcspStatus {
    /// A signed answer.
    Successful,
    /// The request does not parse.
    MalformedRequest,
    /// No answer could be made.
    InternalError,
    /// None of the certificates is of a CA answered for here.
    Unauthorized,
}

/// What an answer without nonce depends on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Question {
    /// The short name of the CA.
    issuer: String,
    /// The CertID as it was asked: its hash algorithm and parameters are echoed.
    cert_id: Vec<u8>,
}

/// A signed answer, and until when caches may repeat it.
type Signed = (Vec<u8>, Option<UnixTime>);

/// An answer that was given.
#[derive(Debug)]
pub(super) struct Answered {
    at: UnixTime,
    revoked: bool,
    /// Who signed it.
    signer: Serial,
    der: Vec<u8>,
}

impl Authority {
    /// Answers an OCSP request (DER) about certificates of the issuing CA and of the root. Says
    /// what holds at this moment: a revocation that has been acknowledged shows.
    pub fn ocsp(&self, request: &[u8], now: UnixTime) -> OcspReply {
        let plain = |status, response: OcspResponse| OcspReply {
            status,
            der: response.to_der().unwrap_or_default(),
            cache_until: None,
            error: None,
        };
        let Ok(asked) = request::read(request) else {
            return plain(OcspStatus::MalformedRequest, OcspResponse::malformed_request());
        };
        match self.ocsp_answer(&asked, now) {
            Ok(Some((der, cache_until))) => {
                OcspReply { status: OcspStatus::Successful, der, cache_until, error: None }
            }
            Ok(None) => plain(OcspStatus::Unauthorized, OcspResponse::unauthorized()),
            Err(error) => OcspReply {
                error: Some(error),
                ..plain(OcspStatus::InternalError, OcspResponse::internal_error())
            },
        }
    }

    /// Our answer about one of our own certificates (DER), without nonce: what the gateway staples
    /// in IKE (RFC 4806). `None` when no CA of ours issued it.
    ///
    /// # Errors
    /// When the store or the signer fails.
    pub fn ocsp_for(&self, certificate: &[u8], now: UnixTime) -> Result<Option<Vec<u8>>, Error> {
        let unreadable = |_| Error::Encode("it does not parse".to_owned());
        let subject = Certificate::from_der(certificate).map_err(unreadable)?;
        let issuer = subject.tbs_certificate.issuer.to_der().map_err(encoding)?;
        for issuer_der in self.ca_certificates() {
            let (_, ca) = X509Certificate::from_der(&issuer_der)
                .map_err(|_| Error::Encode("the CA does not parse".to_owned()))?;
            if ca.subject().as_raw() != issuer {
                continue;
            }
            let hash = |data| OctetString::new(digest_of(&digest::SHA1_FOR_LEGACY_USE_ONLY, data));
            let cert_id = CertId {
                hash_algorithm: AlgorithmIdentifierOwned {
                    oid: SHA1,
                    parameters: Some(der::Any::from(Null)),
                },
                issuer_name_hash: hash(&issuer).map_err(encoding)?,
                issuer_key_hash: hash(&ca.public_key().subject_public_key.data)
                    .map_err(encoding)?,
                serial_number: subject.tbs_certificate.serial_number,
            };
            let asked = Asked { certificates: vec![cert_id], nonce: None };
            return Ok(self.ocsp_answer(&asked, now)?.map(|(der, _)| der));
        }
        Ok(None)
    }

    /// `None` when no CA of ours is meant.
    fn ocsp_answer(&self, asked: &Asked, now: UnixTime) -> Result<Option<Signed>, Error> {
        let found: Vec<Option<String>> =
            asked.certificates.iter().map(|id| self.issuer_of(id)).collect::<Result<_, _>>()?;
        let Some(issuer) = found.iter().flatten().next() else { return Ok(None) };
        let now = now.floor_to_second();
        let mut statuses = Vec::with_capacity(found.len());
        for (id, of) in asked.certificates.iter().zip(&found) {
            // One signer speaks for one CA: what others issued is unknown to it.
            let record =
                if of.as_ref() == Some(issuer) { self.status_record(issuer, id)? } else { None };
            statuses.push(record);
        }
        let question = match (asked.certificates.as_slice(), statuses.as_slice(), &asked.nonce) {
            ([id], [Some(record)], None) => {
                let question =
                    Question { issuer: issuer.clone(), cert_id: id.to_der().map_err(encoding)? };
                let small = question.cert_id.len() <= MAX_KEPT_ID;
                small.then_some((question, record.revoked.is_some()))
            }
            _ => None,
        };
        let delegate = self.ocsp_delegate(issuer, now)?;
        if let Some((question, revoked)) = &question
            && let Some(kept) = lock(&self.ocsp).answers.get(question)
            && kept.revoked == *revoked
            && kept.signer == delegate.serial
            && (kept.at..kept.at.plus(KEEP)).contains(&now)
        {
            return Ok(Some((kept.der.clone(), Some(kept.at.plus(KEEP)))));
        }
        let der = encode(&delegate, asked, &statuses, now)?;
        let Some((question, revoked)) = question else { return Ok(Some((der, None))) };
        let mut memory = lock(&self.ocsp);
        if memory.answers.len() >= MAX_KEPT {
            memory.answers.retain(|_, kept| (kept.at..kept.at.plus(KEEP)).contains(&now));
        }
        if memory.answers.len() < MAX_KEPT {
            let signer = delegate.serial.clone();
            memory
                .answers
                .insert(question, Answered { at: now, revoked, signer, der: der.clone() });
        }
        Ok(Some((der, Some(now.plus(KEEP)))))
    }

    /// Which of our CAs a CertID means, by the hashes of name and key; its short name. A root that
    /// is kept offline is answered for elsewhere.
    fn issuer_of(&self, id: &CertId) -> Result<Option<String>, Error> {
        let Some(algorithm) = hash_algorithm(&id.hash_algorithm.oid) else { return Ok(None) };
        let ca = self.ca();
        let issuing = ca.issuing.iter().map(|issuing| (&issuing.id, &issuing.der));
        let roots = ca.roots.iter().filter(|root| !root.offline).map(|root| (&root.id, &root.der));
        for (issuer, der) in issuing.chain(roots) {
            let (_, certificate) = X509Certificate::from_der(der)
                .map_err(|_| Error::Encode("the CA does not parse".to_owned()))?;
            let name = digest_of(algorithm, certificate.subject().as_raw());
            let key = digest_of(algorithm, &certificate.public_key().subject_public_key.data);
            if id.issuer_name_hash.as_bytes() == name && id.issuer_key_hash.as_bytes() == key {
                return Ok(Some(issuer.clone()));
            }
        }
        Ok(None)
    }

    /// The record of a certificate; `None` when we issued none of that serial.
    fn status_record(&self, issuer_id: &str, id: &CertId) -> Result<Option<Known>, Error> {
        let ca = self.ca();
        let serial = Serial::from_bytes(id.serial_number.as_bytes());
        let cert_key = key::cert(issuer_id, &serial);
        let record = record::read::<CertRecord>(self.store.as_ref(), &cert_key)?;
        if record.is_none()
            && let Some(root) = ca.root_of(issuer_id)
            // Itself; what else it issued is on record.
            && crate::validate::issued_as(&root.der) == Some((issuer_id.to_owned(), serial))
        {
            return Ok(Some(Known { revoked: None }));
        }
        Ok(record.map(|stored| Known { revoked: stored.value.revoked }))
    }
}

/// A certificate we issued.
struct Known {
    revoked: Option<Revocation>,
}

const SHA1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.14.3.2.26");

/// SHA-1 is what stock clients use here; it only names the issuer.
fn hash_algorithm(oid: &ObjectIdentifier) -> Option<&'static Algorithm> {
    const SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.1");
    const SHA384: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.2");
    const SHA512: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.3");
    match *oid {
        SHA1 => Some(&digest::SHA1_FOR_LEGACY_USE_ONLY),
        SHA256 => Some(&digest::SHA256),
        SHA384 => Some(&digest::SHA384),
        SHA512 => Some(&digest::SHA512),
        _ => None,
    }
}

fn digest_of(algorithm: &'static Algorithm, data: &[u8]) -> Vec<u8> {
    digest::digest(algorithm, data).as_ref().to_vec()
}

fn encode(
    delegate: &Delegate,
    asked: &Asked,
    statuses: &[Option<Known>],
    now: UnixTime,
) -> Result<Vec<u8>, Error> {
    let certificate = Certificate::from_der(&delegate.certificate).map_err(encoding)?;
    let key = &certificate.tbs_certificate.subject_public_key_info.subject_public_key;
    let key_hash = digest_of(&digest::SHA1_FOR_LEGACY_USE_ONLY, key.raw_bytes());
    let (this_update, next_update) = (time(now)?, time(now.plus(LIFE).min(delegate.not_after))?);
    let responses = asked
        .certificates
        .iter()
        .zip(statuses)
        .map(|(id, known)| {
            Ok(SingleResponse {
                cert_id: id.clone(),
                cert_status: status(known.as_ref())?,
                this_update,
                next_update: Some(next_update),
                single_extensions: None,
            })
        })
        .collect::<Result<Vec<_>, Error>>()?;
    let tbs_response_data = ResponseData {
        version: Version::V1,
        responder_id: ResponderId::ByKey(OctetString::new(key_hash).map_err(encoding)?),
        produced_at: this_update,
        responses,
        response_extensions: asked.nonce.clone().map(|nonce| vec![nonce]),
    };
    let tbs = tbs_response_data.to_der().map_err(encoding)?;
    let signature = BitString::from_bytes(&delegate.signer.sign(&tbs)?).map_err(encoding)?;
    let basic = BasicOcspResponse {
        tbs_response_data,
        signature_algorithm: signature_algorithm(delegate.signer.algorithm()),
        signature,
        certs: Some(vec![certificate]),
    };
    OcspResponse::successful(basic).and_then(|response| response.to_der()).map_err(encoding)
}

fn status(known: Option<&Known>) -> Result<CertStatus, Error> {
    let Some(known) = known else { return Ok(CertStatus::unknown()) };
    let Some(revocation) = &known.revoked else { return Ok(CertStatus::good()) };
    let revocation_reason = match revocation.reason {
        // RFC 6960 4.2.1: as in a CRL, "unspecified" is said by leaving the reason out.
        RevocationReason::Unspecified => None,
        RevocationReason::KeyCompromise => Some(CrlReason::KeyCompromise),
        RevocationReason::AffiliationChanged => Some(CrlReason::AffiliationChanged),
        RevocationReason::Superseded => Some(CrlReason::Superseded),
        RevocationReason::CessationOfOperation => Some(CrlReason::CessationOfOperation),
        RevocationReason::PrivilegeWithdrawn => Some(CrlReason::PrivilegeWithdrawn),
    };
    let revocation_time = time(revocation.at.floor_to_second())?;
    Ok(CertStatus::Revoked(RevokedInfo { revocation_time, revocation_reason }))
}

fn signature_algorithm(algorithm: KeyAlgorithm) -> AlgorithmIdentifierOwned {
    let (oid, parameters) = match algorithm {
        KeyAlgorithm::EcdsaP256 => ("1.2.840.10045.4.3.2", None),
        KeyAlgorithm::EcdsaP384 => ("1.2.840.10045.4.3.3", None),
        KeyAlgorithm::Ed25519 => ("1.3.101.112", None),
        KeyAlgorithm::Rsa => ("1.2.840.113549.1.1.11", Some(der::Any::from(Null))),
    };
    AlgorithmIdentifierOwned { oid: ObjectIdentifier::new_unwrap(oid), parameters }
}

fn time(at: UnixTime) -> Result<OcspGeneralizedTime, Error> {
    let seconds = u64::try_from(at.secs()).unwrap_or(0);
    GeneralizedTime::from_unix_duration(Duration::from_secs(seconds))
        .map(OcspGeneralizedTime)
        .map_err(encoding)
}

fn encoding(cause: der::Error) -> Error {
    Error::Encode(cause.to_string())
}
