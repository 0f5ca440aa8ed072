//! Path validation (RFC 5280 6.1): from a peer's certificates to a trust anchor.
//!
//! Paths are searched from the leaf upwards, with bounds on depth and on signatures verified: the
//! certificates come from a stranger. A path that reaches an anchor is judged by `rules`; the first
//! good one counts, and of the others the one that came furthest is explained.

use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{ExtendedKeyUsage, GeneralName};
use x509_parser::prelude::FromDer;

use super::cert::{self, Cert};
use super::signature::{self, SignatureFailure};
use super::{MAX_CHAIN, PeerError, San, VerifiedPeer, name, rules};
use crate::issue::sha256_hex;
use crate::serial::Serial;
use crate::time::UnixTime;

/// Certificates between leaf and anchor at most.
const MAX_INTERMEDIATES: usize = 8;
/// Signatures verified for one peer at most: enough for any honest chain, and for a few ways round.
const MAX_SIGNATURES: usize = 40;

/// Verifies a chain (leaf first, the rest in any order) up to one of the anchors (DER).
///
/// # Errors
/// What differed and what to do.
pub(crate) fn verify(
    chain: &[Vec<u8>],
    anchors: &[Vec<u8>],
    now: UnixTime,
) -> Result<(VerifiedPeer, Vec<u8>), PeerError> {
    if chain.len() > MAX_CHAIN {
        return Err(PeerError::TooMany(chain.len()));
    }
    let parsed: Vec<X509Certificate<'_>> = chain
        .iter()
        .enumerate()
        .map(|(position, der)| cert::parse(der, position))
        .collect::<Result<_, _>>()?;
    let parsed_anchors: Vec<(&[u8], X509Certificate<'_>)> = anchors
        .iter()
        .filter_map(|der| Some((der.as_slice(), X509Certificate::from_der(der).ok()?.1)))
        .collect();
    let certs: Vec<Cert<'_>> =
        chain.iter().zip(&parsed).map(|(der, x509)| Cert::read(der, x509)).collect();
    let anchors: Vec<Cert<'_>> =
        parsed_anchors.iter().map(|(der, x509)| Cert::read(der, x509)).collect();
    let leaf = certs.first().ok_or(PeerError::NoCertificate)?;

    in_time(leaf.x509, now)?;
    rules::end_entity(leaf)?;
    let mut search = Search {
        certs: &certs,
        anchors: &anchors,
        now,
        signatures: MAX_SIGNATURES,
        furthest: None,
    };
    let mut path = vec![0];
    let Some(anchor) = search.extend(&mut path) else {
        let unknown = search.unknown_issuer();
        return Err(search.furthest.map_or(unknown, |(_, error)| error));
    };
    let path: Vec<&Cert<'_>> =
        path.iter().filter_map(|index| certs.get(*index)).chain([anchor]).collect();

    // The anchor's own validity counts as well: nothing outlives its chain.
    let ends = path.iter().map(|cert| validity(cert.x509).1);
    let spki = leaf.spki().to_vec();
    let peer = VerifiedPeer {
        certificate: leaf.der.to_vec(),
        issuer_id: crate::ca::issuer_id(leaf.x509.issuer().as_raw()),
        issuer: name::render(leaf.x509.issuer()),
        serial: Serial::from_bytes(leaf.x509.raw_serial()),
        not_after: ends.min().unwrap_or_default(),
        spki_sha256: sha256_hex(&spki),
        spki,
        subject: name::render(leaf.x509.subject()),
        sans: sans(leaf.x509),
        path: path.iter().map(|cert| cert.der.to_vec()).collect(),
    };
    Ok((peer, leaf.x509.subject().as_raw().to_vec()))
}

/// How far a failed attempt came.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Reached {
    Nobody,
    BadSignature,
    Exhausted,
    Anchor,
}

struct Search<'a> {
    certs: &'a [Cert<'a>],
    anchors: &'a [Cert<'a>],
    now: UnixTime,
    signatures: usize,
    furthest: Option<(Reached, PeerError)>,
}

impl<'a> Search<'a> {
    /// Extends a path of verified signatures (indices, leaf first) up to an anchor.
    fn extend(&mut self, path: &mut Vec<usize>) -> Option<&'a Cert<'a>> {
        let (certs, anchors) = (self.certs, self.anchors);
        let top = certs.get(*path.last()?)?;
        for anchor in anchors.iter().filter(|anchor| top.may_be_issued_by(anchor)) {
            if !self.signed_by(top, anchor) {
                continue;
            }
            let below: Vec<&Cert<'_>> =
                path.iter().rev().filter_map(|index| certs.get(*index)).collect();
            match rules::check(&below, anchor, self.now) {
                Ok(()) => return Some(anchor),
                Err(error) => self.note(Reached::Anchor, error),
            }
        }
        if path.len() <= MAX_INTERMEDIATES {
            for (index, candidate) in certs.iter().enumerate().skip(1) {
                if path.contains(&index)
                    || !top.may_be_issued_by(candidate)
                    || !self.signed_by(top, candidate)
                {
                    continue;
                }
                path.push(index);
                if let Some(anchor) = self.extend(path) {
                    return Some(anchor);
                }
                path.pop();
            }
        }
        let error = self.unknown_issuer();
        self.note(Reached::Nobody, error);
        None
    }

    fn signed_by(&mut self, cert: &Cert<'_>, issuer: &Cert<'_>) -> bool {
        let subject = || name::render(cert.x509.subject());
        let Some(left) = self.signatures.checked_sub(1) else {
            let cause = "its certificates can be ordered in too many ways".to_owned();
            let error = PeerError::InvalidPath { subject: self.leaf_subject(), cause };
            self.note(Reached::Exhausted, error);
            return false;
        };
        self.signatures = left;
        let result = match cert.signed() {
            Some(data) => signature::verify(issuer.spki(), data),
            None => Err(SignatureFailure::Unsupported),
        };
        let error = match result {
            Ok(()) => return true,
            Err(SignatureFailure::Unsupported) => {
                PeerError::UnsupportedAlgorithm { subject: subject() }
            }
            Err(SignatureFailure::Invalid) => {
                let issuer = name::render(cert.x509.issuer());
                PeerError::BadSignature { subject: subject(), issuer }
            }
        };
        self.note(Reached::BadSignature, error);
        false
    }

    /// The first error of those that came furthest is the one to tell.
    fn note(&mut self, reached: Reached, error: PeerError) {
        if self.furthest.as_ref().is_none_or(|(before, _)| reached > *before) {
            self.furthest = Some((reached, error));
        }
    }

    fn leaf_subject(&self) -> String {
        self.certs.first().map(|leaf| name::render(leaf.x509.subject())).unwrap_or_default()
    }

    fn unknown_issuer(&self) -> PeerError {
        let issuer = self.certs.first().map(|leaf| name::render(leaf.x509.issuer()));
        let names: Vec<String> =
            self.anchors.iter().map(|anchor| name::render(anchor.x509.subject())).collect();
        PeerError::UnknownIssuer {
            subject: self.leaf_subject(),
            issuer: issuer.unwrap_or_default(),
            trusted: if names.is_empty() { "none".to_owned() } else { names.join("; ") },
        }
    }
}

/// The first and the last instant of validity; the last second is part of it.
pub(crate) fn validity(certificate: &X509Certificate<'_>) -> (UnixTime, UnixTime) {
    let validity = certificate.validity();
    let at = |secs: i64| UnixTime::from_secs(secs);
    (at(validity.not_before.timestamp()), at(validity.not_after.timestamp()))
}

pub(super) fn in_time(certificate: &X509Certificate<'_>, now: UnixTime) -> Result<(), PeerError> {
    let (not_before, not_after) = validity(certificate);
    let subject = || name::render(certificate.subject());
    // Seconds decide, as in the certificate.
    if now.secs() < not_before.secs() {
        return Err(PeerError::NotYetValid { subject: subject(), not_before, now });
    }
    if now.secs() > not_after.secs() {
        return Err(PeerError::Expired { subject: subject(), not_after, now });
    }
    Ok(())
}

/// The alternative names of a certificate; kinds that are not used here are left out.
pub(crate) fn sans(certificate: &X509Certificate<'_>) -> Vec<San> {
    let Ok(Some(extension)) = certificate.subject_alternative_name() else { return Vec::new() };
    extension.value.general_names.iter().filter_map(san).collect()
}

/// One alternative name, if its kind is used here.
pub(crate) fn san(name: &GeneralName<'_>) -> Option<San> {
    match name {
        GeneralName::DNSName(dns) => Some(San::Dns((*dns).to_owned())),
        GeneralName::RFC822Name(email) => Some(San::Email((*email).to_owned())),
        GeneralName::URI(uri) => Some(San::Uri((*uri).to_owned())),
        GeneralName::IPAddress(octets) => match octets.len() {
            4 => <[u8; 4]>::try_from(*octets).ok().map(|octets| San::Ip(octets.into())),
            16 => <[u8; 16]>::try_from(*octets).ok().map(|octets| San::Ip(octets.into())),
            _ => None,
        },
        _ => None,
    }
}

/// Extended key usages as people write them.
pub(super) fn usages(usage: &ExtendedKeyUsage<'_>) -> String {
    let named = [
        (usage.server_auth, "serverAuth"),
        (usage.code_signing, "codeSigning"),
        (usage.email_protection, "emailProtection"),
        (usage.time_stamping, "timeStamping"),
        (usage.ocsp_signing, "OCSPSigning"),
    ];
    let mut found: Vec<String> =
        named.iter().filter(|(set, _)| *set).map(|(_, name)| (*name).to_owned()).collect();
    found.extend(usage.other.iter().map(|oid| oid.to_id_string()));
    if found.is_empty() { "none".to_owned() } else { found.join(", ") }
}
