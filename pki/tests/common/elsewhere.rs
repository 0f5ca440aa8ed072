//! A CA that is not the gateway's.

use pki::{Csr, UnixTime};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose,
};

use super::{NOW, after};

/// A CA that somebody keeps elsewhere.
pub struct Elsewhere {
    pub key: KeyPair,
    pub params: CertificateParams,
    pub der: Vec<u8>,
}

impl Elsewhere {
    pub fn root(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let params = ca_params(name);
        let der = params.self_signed(&key).unwrap().der().to_vec();
        Self { key, params, der }
    }

    pub fn below(name: &str, above: &Self) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = ca_params(name);
        params.use_authority_key_identifier_extension = true;
        let der = params.signed_by(&key, &above.issuer()).unwrap().der().to_vec();
        Self { key, params, der }
    }

    pub fn issuer(&self) -> rcgen::Issuer<'_, &KeyPair> {
        rcgen::Issuer::from_params(&self.params, &self.key)
    }

    /// Signs what `ca csr` printed, with a name and key identifier of its own choice.
    pub fn sign(&self, request: &str, name: &str) -> Vec<u8> {
        let mut params = ca_params(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_identifier_method = KeyIdMethod::PreSpecified(vec![0xa5; 20]);
        self.sign_as(request, params)
    }

    pub fn sign_as(&self, request: &str, mut params: CertificateParams) -> Vec<u8> {
        let (_, request) = x509_parser::pem::parse_x509_pem(request.as_bytes()).unwrap();
        assert_eq!(request.label, "CERTIFICATE REQUEST");
        let csr = Csr::from_der(&request.contents).unwrap();
        let subject = rcgen::SubjectPublicKeyInfo::from_der(&csr.spki).unwrap();
        params.use_authority_key_identifier_extension = true;
        params.signed_by(&subject, &self.issuer()).unwrap().der().to_vec()
    }

    /// Its revocation list, good for a month.
    pub fn list(&self, revoked: &[u8]) -> Vec<u8> {
        self.numbered(revoked, 41)
    }

    /// Its list of this number, with nothing in it.
    pub fn list_of(&self, number: u64) -> Vec<u8> {
        self.numbered(&[], number)
    }

    /// Its list of this number, with one certificate or none.
    pub fn numbered(&self, revoked: &[u8], number: u64) -> Vec<u8> {
        let time = |at: UnixTime| {
            x509_parser::time::ASN1Time::from_timestamp(at.secs()).unwrap().to_datetime()
        };
        let entry = |der: &[u8]| rcgen::RevokedCertParams {
            serial_number: rcgen::SerialNumber::from_slice(
                pki::validate::serial_of(der).unwrap().as_bytes(),
            ),
            revocation_time: time(NOW),
            reason_code: None,
            invalidity_date: None,
        };
        let params = rcgen::CertificateRevocationListParams {
            this_update: time(NOW),
            next_update: time(after(30 * 86_400)),
            crl_number: number.into(),
            issuing_distribution_point: None,
            revoked_certs: if revoked.is_empty() { Vec::new() } else { vec![entry(revoked)] },
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer()).unwrap().der().to_vec()
    }
}

/// What a CA says of itself.
pub fn ca_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CountryName, "DE");
    params.distinguished_name.push(DnType::OrganizationName, "Example GmbH");
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2060, 1, 1);
    params
}
