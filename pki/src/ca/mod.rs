//! The embedded CA: root and issuing CA (`ca`), and the gateway's own certificate (`server`).
//!
//! Both CAs are created in one transaction of the store, so a crash leaves a whole CA or none.

mod server;

use std::sync::Arc;

use rcgen::{BasicConstraints, IsCa, KeyUsagePurpose};
use serde::{Deserialize, Serialize};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

pub use server::{ServerIdentity, ServerNames};

use crate::entropy::{Entropy, random_text};
use crate::error::Error;
use crate::issue::{self, BACKDATE, Terms, base64_bytes};
use crate::profile::Settings;
use crate::seal::Sealer;
use crate::serial::Serial;
use crate::signer::{FileSigner, KeyAlgorithm, RcgenKey, SharedSigner, Signer};
use crate::time::UnixTime;
use crate::validate::{name, path};

const ROOT_DAYS: u64 = 20 * 365;
const ISSUING_DAYS: u64 = 10 * 365;
const DAY: u64 = 86_400;
const ROOT_KEY: &str = "ca/root-key";
const ISSUING_KEY: &str = "ca/issuing-key";

/// One CA certificate for `ca status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CaCertificate {
    /// "root" or "issuing".
    pub kind: &'static str,
    /// The subject.
    pub subject: String,
    /// The serial number.
    pub serial: Serial,
    /// SHA-256 of the DER, hexadecimal.
    pub sha256: String,
    /// First instant of validity.
    pub not_before: UnixTime,
    /// Last instant of validity.
    pub not_after: UnixTime,
}

/// The CA's certificates.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CaStatus {
    /// Root first.
    pub certificates: Vec<CaCertificate>,
    /// The issuing key's kind.
    pub algorithm: KeyAlgorithm,
}

/// The short name of an issuer in the store: the first 16 hexadecimal digits of SHA-256 over
/// its name's DER. Certificates are identified by issuer and serial (RFC 5280 4.1.2.2).
pub fn issuer_id(issuer_name_der: &[u8]) -> String {
    let mut hash = issue::sha256_hex(issuer_name_der);
    hash.truncate(16);
    hash
}

/// The stored CA. The root's key is only opened when it has something to sign.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct CaRecord {
    #[serde(with = "base64_bytes")]
    root_der: Vec<u8>,
    #[serde(with = "base64_bytes")]
    root_key: Vec<u8>,
    #[serde(with = "base64_bytes")]
    issuing_der: Vec<u8>,
    #[serde(with = "base64_bytes")]
    issuing_key: Vec<u8>,
    created: UnixTime,
}

/// A CA's certificate with its key: what signs certificates, lists and delegations.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CaKey<'a> {
    pub(crate) certificate: &'a [u8],
    pub(crate) signer: &'a dyn Signer,
}

/// The loaded CA.
#[derive(Debug)]
pub(crate) struct Ca {
    pub(crate) root_der: Vec<u8>,
    pub(crate) root_id: String,
    pub(crate) issuing_der: Vec<u8>,
    pub(crate) issuing_signer: SharedSigner,
    pub(crate) issuer_id: String,
    pub(crate) not_after: UnixTime,
}

impl CaRecord {
    /// Makes keys and certificates; nothing is stored yet.
    pub(crate) fn create(
        settings: &Settings,
        algorithm: KeyAlgorithm,
        sealer: &Sealer,
        entropy: &mut dyn Entropy,
        now: UnixTime,
    ) -> Result<Self, Error> {
        let trust_domain = &settings.trust_domain;
        let now = now.floor_to_second();
        // A rebuilt CA must not share its name with its predecessor: issuer and serial identify.
        let mark = random_text(entropy, 6)?;
        let mut terms = |days: u64| -> Result<Terms, Error> {
            Ok(Terms {
                serial: Serial::random(entropy)?,
                not_before: now.minus(BACKDATE),
                not_after: now.plus(std::time::Duration::from_secs(days * DAY)),
                status_url: None,
            })
        };
        let (root_terms, issuing_terms) = (terms(ROOT_DAYS)?, terms(ISSUING_DAYS)?);
        let usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];

        let root_signer = FileSigner::generate(algorithm)?;
        let root_key = RcgenKey::new(&root_signer)?;
        let root_name = format!("Runnel Root CA {mark}");
        let mut root = issue::base(&root_terms, &root_name, trust_domain)?;
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        root.key_usages = usages.clone();
        let root_der = root.self_signed(&root_key)?.der().to_vec();

        let issuing_signer = FileSigner::generate(algorithm)?;
        let issuing_name = format!("Runnel Issuing CA {mark}");
        let mut issuing = issue::base(&issuing_terms, &issuing_name, trust_domain)?;
        issuing.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        issuing.key_usages = usages;
        issuing.use_authority_key_identifier_extension = true;
        if let Some(url) = &settings.status_url {
            issue::status(&mut issuing, url, "root")?;
        }
        let issuer = rcgen::Issuer::from_params(&root, &root_key);
        let issuing_der =
            issuing.signed_by(&RcgenKey::new(&issuing_signer)?, &issuer)?.der().to_vec();

        Ok(Self {
            root_key: sealer.seal(ROOT_KEY, root_signer.pkcs8(), entropy)?,
            issuing_key: sealer.seal(ISSUING_KEY, issuing_signer.pkcs8(), entropy)?,
            root_der,
            issuing_der,
            created: now,
        })
    }

    /// Opens the issuing key and checks that key and certificates belong together.
    pub(crate) fn load(&self, sealer: &Sealer) -> Result<Ca, Error> {
        let damaged = |cause: &str| Error::Damaged {
            key: crate::record::key::CA.to_owned(),
            cause: cause.to_owned(),
        };
        let signer = FileSigner::from_pkcs8(sealer.open(ISSUING_KEY, &self.issuing_key)?)?;
        let (_, issuing) = X509Certificate::from_der(&self.issuing_der)
            .map_err(|_| damaged("the issuing certificate does not parse"))?;
        if issuing.public_key().raw != signer.public_key_der() {
            return Err(damaged("the issuing key does not belong to its certificate"));
        }
        let (_, root) = X509Certificate::from_der(&self.root_der)
            .map_err(|_| damaged("the root certificate does not parse"))?;
        Ok(Ca {
            root_der: self.root_der.clone(),
            root_id: issuer_id(root.subject().as_raw()),
            issuing_der: self.issuing_der.clone(),
            issuing_signer: Arc::new(signer),
            issuer_id: issuer_id(issuing.subject().as_raw()),
            not_after: path::validity(&issuing).1,
        })
    }

    /// Opens the root's key, which signs once in a while: its revocation list and the certificate
    /// of its OCSP signer.
    pub(crate) fn open_root(&self, sealer: &Sealer) -> Result<FileSigner, Error> {
        FileSigner::from_pkcs8(sealer.open(ROOT_KEY, &self.root_key)?)
    }
}

impl Ca {
    /// The issuing CA.
    pub(crate) fn issuing(&self) -> CaKey<'_> {
        CaKey { certificate: &self.issuing_der, signer: self.issuing_signer.as_ref() }
    }

    pub(crate) fn status(&self) -> CaStatus {
        let kinds = [("root", &self.root_der), ("issuing", &self.issuing_der)];
        let certificates = kinds.into_iter().filter_map(|(kind, der)| {
            let (_, certificate) = X509Certificate::from_der(der).ok()?;
            let (not_before, not_after) = path::validity(&certificate);
            Some(CaCertificate {
                kind,
                subject: name::render(certificate.subject()),
                serial: Serial::from_bytes(certificate.raw_serial()),
                sha256: issue::sha256_hex(der),
                not_before,
                not_after,
            })
        });
        CaStatus {
            certificates: certificates.collect(),
            algorithm: self.issuing_signer.algorithm(),
        }
    }
}
