//! Issuance: the server composes every field of a certificate; the request gives only the key.

use std::net::IpAddr;

use rcgen::{
    CertificateParams, CrlDistributionPoint, CustomExtension, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use serde::{Deserialize, Serialize};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;
use x509_parser::time::ASN1Time;

use crate::ca::CaKey;
use crate::enrol::jwt::provenance;
use crate::error::Error;
use crate::revoke::Revocation;
use crate::serial::Serial;
use crate::signer::RcgenKey;
use crate::time::UnixTime;
use crate::validate::{San, name, path};

/// Certificates are valid from a little before now: runners' clocks lag at boot.
pub(crate) const BACKDATE: std::time::Duration = std::time::Duration::from_secs(60);

/// An issued certificate on record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertRecord {
    /// The issuer's short name.
    pub issuer: String,
    /// The serial number.
    pub serial: Serial,
    /// The subject, as strongSwan prints it.
    pub subject: String,
    /// The alternative names, as text.
    pub sans: Vec<String>,
    /// SHA-256 of the public key, hexadecimal.
    pub spki_sha256: String,
    /// First instant of validity.
    pub not_before: UnixTime,
    /// Last instant of validity.
    pub not_after: UnixTime,
    /// The lease it belongs to; the gateway's own certificate has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_id: Option<String>,
    /// Its revocation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<Revocation>,
    /// It is a CA's, issued by a root of ours.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ca: bool,
    /// The certificate, DER.
    #[serde(with = "base64_bytes")]
    pub der: Vec<u8>,
}

impl CertRecord {
    /// Reads the record's fields from a certificate.
    pub(crate) fn from_der(der: Vec<u8>, lease_id: Option<String>) -> Result<Self, Error> {
        let unreadable = || Error::Encode("it does not parse".to_owned());
        let (_, certificate) = X509Certificate::from_der(&der).map_err(|_| unreadable())?;
        let (not_before, not_after) = path::validity(&certificate);
        Ok(Self {
            issuer: crate::ca::issuer_id(certificate.issuer().as_raw()),
            serial: Serial::from_bytes(certificate.raw_serial()),
            subject: name::render(certificate.subject()),
            sans: path::sans(&certificate).iter().map(San::to_string).collect(),
            spki_sha256: sha256_hex(certificate.public_key().raw),
            ca: certificate.is_ca(),
            not_before,
            not_after,
            lease_id,
            revoked: None,
            der: der.clone(),
        })
    }
}

/// The names of a client certificate, composed from the lease.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ClientNames {
    pub(crate) common_name: String,
    pub(crate) organisation: String,
    pub(crate) dns: String,
    /// One URI: the shape of a SPIFFE X.509 SVID.
    pub(crate) uri: String,
    /// The lease's addresses, for roles that want them named.
    pub(crate) addresses: Vec<IpAddr>,
    /// What is said about the CI job, by number.
    pub(crate) job: Vec<(u64, String)>,
}

impl ClientNames {
    /// The alternative names as [`San`] shows them.
    pub(crate) fn sans(&self) -> Vec<String> {
        let addresses = self.addresses.iter().map(|address| San::Ip(*address));
        [San::Dns(self.dns.clone()), San::Uri(self.uri.clone())]
            .into_iter()
            .chain(addresses)
            .map(|san| san.to_string())
            .collect()
    }
}

/// What else a certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Terms {
    pub(crate) serial: Serial,
    pub(crate) not_before: UnixTime,
    pub(crate) not_after: UnixTime,
    pub(crate) status_url: Option<String>,
}

/// Issues a client certificate for a public key (SubjectPublicKeyInfo DER).
pub(crate) fn client(
    ca: CaKey<'_>,
    names: &ClientNames,
    terms: &Terms,
    spki: &[u8],
) -> Result<Vec<u8>, Error> {
    let mut params = base(terms, &names.common_name, &names.organisation)?;
    params.subject_alt_names =
        vec![SanType::DnsName(ia5(&names.dns)?), SanType::URI(ia5(&names.uri)?)];
    params.subject_alt_names.extend(names.addresses.iter().copied().map(SanType::IpAddress));
    for (number, value) in &names.job {
        params.custom_extensions.push(job_claim(*number, value)?);
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    sign(ca, params, terms, spki)
}

/// A claim about a CI job: a UTF8String in an extension of its own, which nobody need understand.
fn job_claim(number: u64, value: &str) -> Result<CustomExtension, Error> {
    use der::Encode;
    use der::asn1::Utf8StringRef;

    let oid = [provenance::ARC.as_slice(), &[number]].concat();
    let content = Utf8StringRef::new(value).and_then(|text| text.to_der());
    let content = content.map_err(|cause: der::Error| Error::Encode(cause.to_string()))?;
    Ok(CustomExtension::from_oid_content(&oid, content))
}

/// Issues the gateway's certificate.
pub(crate) fn server(
    ca: CaKey<'_>,
    common_name: &str,
    organisation: &str,
    dns: &[String],
    addresses: &[IpAddr],
    terms: &Terms,
    spki: &[u8],
) -> Result<Vec<u8>, Error> {
    let mut params = base(terms, common_name, organisation)?;
    for name in dns {
        params.subject_alt_names.push(SanType::DnsName(ia5(name)?));
    }
    params.subject_alt_names.extend(addresses.iter().copied().map(SanType::IpAddress));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        // id-kp-ipsecIKE and iKEIntermediate: some IKE stacks insist on one of them.
        ExtendedKeyUsagePurpose::Other(vec![1, 3, 6, 1, 5, 5, 7, 3, 17]),
        ExtendedKeyUsagePurpose::Other(vec![1, 3, 6, 1, 5, 5, 8, 2, 2]),
    ];
    sign(ca, params, terms, spki)
}

/// Issues the certificate of a delegated OCSP signer (RFC 6960 4.2.2.2): the CA vouches for it until
/// it ends, so nobody asks for its own status (id-pkix-ocsp-nocheck).
pub(crate) fn ocsp_signer(
    ca: CaKey<'_>,
    common_name: &str,
    organisation: &str,
    terms: &Terms,
    spki: &[u8],
) -> Result<Vec<u8>, Error> {
    const NO_CHECK: &[u64] = &[1, 3, 6, 1, 5, 5, 7, 48, 1, 5];
    let mut params = base(terms, common_name, organisation)?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::OcspSigning];
    params.custom_extensions = vec![CustomExtension::from_oid_content(NO_CHECK, vec![5, 0])];
    sign(ca, params, terms, spki)
}

fn sign(
    ca: CaKey<'_>,
    mut params: CertificateParams,
    terms: &Terms,
    spki: &[u8],
) -> Result<Vec<u8>, Error> {
    // An explicit end entity carries basicConstraints and a subject key identifier.
    params.is_ca = IsCa::ExplicitNoCa;
    params.use_authority_key_identifier_extension = true;
    if let Some(url) = &terms.status_url {
        status(&mut params, url, ca.place)?;
    }
    let subject_key = SubjectPublicKeyInfo::from_der(spki)?;
    let key = RcgenKey::new(ca.signer)?;
    let issuer = rcgen::Issuer::from_ca_cert_der(&ca.certificate.into(), &key)?;
    Ok(key.made(params.signed_by(&subject_key, &issuer))?.der().to_vec())
}

/// Names the places where the status of a certificate is told; `issuer` is its issuer's name in URLs.
pub(crate) fn status(params: &mut CertificateParams, url: &str, issuer: &str) -> Result<(), Error> {
    let url = url.trim_end_matches('/');
    params.crl_distribution_points =
        vec![CrlDistributionPoint { uris: vec![format!("{url}/crl/{issuer}.crl")] }];
    params.custom_extensions.push(authority_information(url, issuer)?);
    Ok(())
}

/// Parameters with subject, serial and validity.
pub(crate) fn base(
    terms: &Terms,
    common_name: &str,
    organisation: &str,
) -> Result<CertificateParams, Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.distinguished_name.push(DnType::OrganizationName, organisation);
    params.serial_number = Some(SerialNumber::from_slice(terms.serial.as_bytes()));
    params.not_before = asn1_time(terms.not_before)?.to_datetime();
    params.not_after = asn1_time(terms.not_after)?.to_datetime();
    Ok(params)
}

pub(crate) fn asn1_time(time: UnixTime) -> Result<ASN1Time, Error> {
    ASN1Time::from_timestamp(time.secs())
        .map_err(|_| Error::Invalid(format!("the time {time} does not fit a certificate")))
}

/// Authority information access (RFC 5280 4.2.2.1): OCSP responder and the issuer's certificate.
fn authority_information(url: &str, issuer: &str) -> Result<CustomExtension, Error> {
    use der::Encode;
    use der::asn1::{Ia5String, ObjectIdentifier};
    use x509_cert::ext::pkix::name::GeneralName;
    use x509_cert::ext::pkix::{AccessDescription, AuthorityInfoAccessSyntax};

    const OCSP: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.48.1");
    const CA_ISSUERS: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.48.2");
    let failed = |cause: der::Error| Error::Encode(cause.to_string());
    let at = |method, location: String| -> Result<AccessDescription, Error> {
        let uri = Ia5String::new(&location).map_err(failed)?;
        Ok(AccessDescription {
            access_method: method,
            access_location: GeneralName::UniformResourceIdentifier(uri),
        })
    };
    let access = AuthorityInfoAccessSyntax(vec![
        at(OCSP, format!("{url}/ocsp"))?,
        at(CA_ISSUERS, format!("{url}/{issuer}.cer"))?,
    ]);
    let content = access.to_der().map_err(failed)?;
    Ok(CustomExtension::from_oid_content(&[1, 3, 6, 1, 5, 5, 7, 1, 1], content))
}

fn ia5(text: &str) -> Result<rcgen::string::Ia5String, Error> {
    Ok(text.try_into()?)
}

pub(crate) fn pem(der: &[u8], label: &str) -> String {
    use base64::Engine;
    let body = base64::engine::general_purpose::STANDARD.encode(der);
    let mut out = format!("-----BEGIN {label}-----\n");
    for line in body.as_bytes().chunks(64) {
        out.push_str(&String::from_utf8_lossy(line));
        out.push('\n');
    }
    out.push_str(&format!("-----END {label}-----\n"));
    out
}

pub(crate) fn sha256_hex(data: &[u8]) -> String {
    hex(ring::digest::digest(&ring::digest::SHA256, data).as_ref())
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes as base64 text in JSON records.
pub(crate) mod base64_bytes {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&STANDARD.encode(bytes))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(from)?;
        STANDARD.decode(text).map_err(serde::de::Error::custom)
    }
}
