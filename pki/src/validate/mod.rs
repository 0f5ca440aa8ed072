//! Is this peer who it claims to be: chain to a trust anchor, and identity.

mod cert;
mod constraints;
mod crl;
mod der;
mod identity;
pub(crate) mod name;
pub(crate) mod path;
mod pattern;
mod point;
mod policy;
mod rules;
mod signature;
mod status;

pub use crl::RevocationList;
pub use identity::render as render_ike_id;
pub use name::{render_der as render_dn, same as same_dn};
pub use pattern::{DnPattern, SanPattern};
pub use status::{Standing, StatusError, StatusQuestion, questions};

use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use crate::serial::Serial;
use crate::time::UnixTime;

/// A subject alternative name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum San {
    /// dNSName.
    Dns(String),
    /// rfc822Name.
    Email(String),
    /// uniformResourceIdentifier.
    Uri(String),
    /// iPAddress.
    Ip(std::net::IpAddr),
}

impl std::fmt::Display for San {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Dns(name) => write!(f, "DNS:{name}"),
            Self::Email(name) => write!(f, "email:{name}"),
            Self::Uri(name) => write!(f, "URI:{name}"),
            Self::Ip(address) => write!(f, "IP:{address}"),
        }
    }
}

/// A peer whose chain and identity were verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedPeer {
    /// The leaf certificate, DER.
    pub certificate: Vec<u8>,
    /// The issuer's short name in the store.
    pub issuer_id: String,
    /// The issuer's name for display.
    pub issuer: String,
    /// The leaf's serial number.
    pub serial: Serial,
    /// The earliest end of validity over the chain, trust anchor included.
    pub not_after: UnixTime,
    /// The leaf's public key: SubjectPublicKeyInfo, DER.
    pub spki: Vec<u8>,
    /// SHA-256 of `spki`, hexadecimal.
    pub spki_sha256: String,
    /// The subject for display, as strongSwan prints it.
    pub subject: String,
    /// The subject alternative names.
    pub sans: Vec<San>,
    /// The path that was validated, DER: the leaf first, the trust anchor last.
    pub path: Vec<Vec<u8>>,
}

/// Why a peer was not accepted. `Display` is the operator's sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// No certificate was sent.
    #[error("the peer sent no certificate: set `certs` in its configuration")]
    NoCertificate,
    /// A certificate does not parse.
    #[error("the peer's certificate {position} does not parse ({cause}): reissue it")]
    Malformed {
        /// Position in the peer's list, the leaf being 0.
        position: usize,
        /// What did not parse.
        cause: String,
    },
    /// More certificates than a chain needs.
    #[error("the peer sent {0} certificates, more than {max} are not looked at: send the chain only", max = MAX_CHAIN)]
    TooMany(usize),
    /// No path to a trust anchor.
    #[error(
        "certificate {subject} was issued by {issuer}, which leads to none of the trusted roots \
         ({trusted}): enrol with this gateway or add that root"
    )]
    UnknownIssuer {
        /// The leaf's subject.
        subject: String,
        /// The leaf's issuer.
        issuer: String,
        /// The trusted roots.
        trusted: String,
    },
    /// A certificate of the chain has expired.
    #[error("certificate {subject} expired at {not_after}, it is {now}: renew or enrol again")]
    Expired {
        /// The certificate's subject.
        subject: String,
        /// Its end.
        not_after: UnixTime,
        /// The time of the check.
        now: UnixTime,
    },
    /// A certificate of the chain is not valid yet.
    #[error(
        "certificate {subject} is not valid before {not_before}, it is {now}: check both clocks"
    )]
    NotYetValid {
        /// The certificate's subject.
        subject: String,
        /// Its beginning.
        not_before: UnixTime,
        /// The time of the check.
        now: UnixTime,
    },
    /// A signature in the chain does not verify.
    #[error(
        "the signature on certificate {subject} by {issuer} does not verify: the certificate was \
         altered or another CA of the same name signed it; enrol again"
    )]
    BadSignature {
        /// The leaf's subject.
        subject: String,
        /// The leaf's issuer.
        issuer: String,
    },
    /// The extended key usage does not allow IKE clients.
    #[error(
        "certificate {subject} has extended key usage {found}, none of clientAuth, ipsecIKE, \
         ikeIntermediate or any: issue it with clientAuth"
    )]
    WrongUsage {
        /// The leaf's subject.
        subject: String,
        /// The usages found.
        found: String,
    },
    /// The certificate may not sign (key usage without digitalSignature).
    #[error("certificate {subject} has a key usage without digitalSignature: reissue it")]
    NotForSigning {
        /// The leaf's subject.
        subject: String,
    },
    /// The algorithm is not supported.
    #[error(
        "certificate {subject} or its chain uses an algorithm that is not supported: use ECDSA \
         P-256/P-384/P-521, Ed25519 or RSA of 2048 to 8192 bits with SHA-2"
    )]
    UnsupportedAlgorithm {
        /// The leaf's subject.
        subject: String,
    },
    /// The list of the root revokes the CA that issued the certificate.
    #[error(
        "certificate {subject} was issued by {issuer}, which its root's revocation list has \
         revoked: enrol again once another CA issues"
    )]
    IssuerRevoked {
        /// The leaf's subject.
        subject: String,
        /// The leaf's issuer.
        issuer: String,
    },
    /// Another rule of path validation failed.
    #[error("the chain of certificate {subject} is not valid: {cause}")]
    InvalidPath {
        /// The leaf's subject.
        subject: String,
        /// The rule.
        cause: String,
    },
    /// The IKE identity is not one of the certificate's.
    #[error(
        "the peer calls itself {id} but its certificate says {certificate}: set `id` in its \
         `local` section to one of these"
    )]
    IdentityMismatch {
        /// The IKE identity.
        id: String,
        /// The certificate's subject and alternative names.
        certificate: String,
    },
    /// The IKE identity is of a type that cannot be matched with a certificate.
    #[error("the peer's identity has type {0}: use a DN, FQDN, e-mail or IP address identity")]
    UnsupportedIdentity(u8),
}

/// The longest list of certificates looked at.
pub const MAX_CHAIN: usize = 10;

/// An IKE identification payload's content (RFC 7296 3.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IkeId<'a> {
    /// The ID type: 1 IPv4, 2 FQDN, 3 e-mail, 5 IPv6, 9 DN.
    pub kind: u8,
    /// The identification data.
    pub data: &'a [u8],
}

/// Verifies a peer's chain against trust anchors (DER) and, when given, its IKE identity.
///
/// # Errors
/// What differed and what to do.
pub fn verify_peer(
    chain: &[Vec<u8>],
    anchors: &[Vec<u8>],
    id: Option<IkeId<'_>>,
    now: UnixTime,
) -> Result<VerifiedPeer, PeerError> {
    let (peer, subject_der) = path::verify(chain, anchors, now)?;
    if let Some(id) = id {
        identity::check(id, &subject_der, &peer.sans)?;
    }
    Ok(peer)
}

/// The last instant of a certificate, if it parses.
pub fn end_of_validity(der: &[u8]) -> Option<UnixTime> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    Some(path::validity(&certificate).1)
}

/// The issuer's short name and the serial number of a certificate, if it parses.
pub(crate) fn issued_as(der: &[u8]) -> Option<(String, Serial)> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let issuer = crate::ca::issuer_id(certificate.issuer().as_raw());
    Some((issuer, Serial::from_bytes(certificate.raw_serial())))
}

/// The serial number of a certificate, if it parses.
pub fn serial_of(der: &[u8]) -> Option<Serial> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    Some(Serial::from_bytes(certificate.raw_serial()))
}
