//! The embedded CA: root, issuing CA, and the gateway's own certificate.

use std::net::IpAddr;

use serde::Serialize;

use crate::signer::{FileSigner, SharedSigner};
use crate::time::UnixTime;

/// The names in the gateway's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerNames {
    /// The gateway's id: a DNS name or an address in text; the common name and first SAN.
    pub id: String,
    /// Further DNS names.
    pub dns: Vec<String>,
    /// Addresses.
    pub addresses: Vec<IpAddr>,
}

/// The gateway's key and certificate.
#[derive(Clone, Debug)]
pub struct ServerIdentity {
    /// Leaf, then issuing CA, DER.
    pub chain: Vec<Vec<u8>>,
    /// The private key behind the signing seam.
    pub signer: SharedSigner,
    /// The same key, for TLS stacks that want PKCS#8 (see [`FileSigner::pkcs8`]).
    pub file_signer: std::sync::Arc<FileSigner>,
    /// When the certificate ends.
    pub not_after: UnixTime,
    /// When to ask for a new one.
    pub renew_at: UnixTime,
}

/// One CA certificate for `ca status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CaCertificate {
    /// "root" or "issuing".
    pub kind: &'static str,
    /// The subject.
    pub subject: String,
    /// The serial number.
    pub serial: crate::serial::Serial,
    /// SHA-256 of the DER, hexadecimal.
    pub sha256: String,
    /// First instant of validity.
    pub not_before: UnixTime,
    /// Last instant of validity.
    pub not_after: UnixTime,
    /// The key's kind.
    pub algorithm: crate::signer::KeyAlgorithm,
}

/// The CA's certificates.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CaStatus {
    /// Root first.
    pub certificates: Vec<CaCertificate>,
}

/// The short name of an issuer in the store: the first 16 hexadecimal digits of SHA-256 over
/// its name's DER. Certificates are identified by issuer and serial (RFC 5280 4.1.2.2).
pub fn issuer_id(issuer_name_der: &[u8]) -> String {
    let mut hash = crate::issue::sha256_hex(issuer_name_der);
    hash.truncate(16);
    hash
}

#[derive(Debug)]
pub(crate) struct Ca;
