//! Path validation: from a peer's certificates to a trust anchor.
//!
//! `rustls-webpki` builds and checks the path; this module asks it the right questions and says
//! what was wrong in the operator's words.

use rustls_pki_types::{CertificateDer, TrustAnchor};
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;

use super::{MAX_CHAIN, PeerError, San, VerifiedPeer, name};
use crate::issue::sha256_hex;
use crate::serial::Serial;
use crate::time::UnixTime;

/// Extended key usages that allow an IKE peer, as OID content octets. A certificate without the
/// extension is allowed too (RFC 4945 5.1.3.12).
const IKE_USAGES: [&[u8]; 4] = [
    // id-kp-clientAuth
    &[0x2b, 6, 1, 5, 5, 7, 3, 2],
    // id-kp-ipsecIKE
    &[0x2b, 6, 1, 5, 5, 7, 3, 17],
    // iKEIntermediate, which older stacks ask for
    &[0x2b, 6, 1, 5, 5, 8, 2, 2],
    // anyExtendedKeyUsage
    &[0x55, 0x1d, 0x25, 0],
];

/// Verifies a chain (leaf first, the rest in any order) up to one of the anchors (DER).
///
/// # Errors
/// What differed and what to do.
pub(crate) fn verify(
    chain: &[Vec<u8>],
    anchors: &[Vec<u8>],
    now: UnixTime,
) -> Result<(VerifiedPeer, Vec<u8>), PeerError> {
    let leaf_der = chain.first().ok_or(PeerError::NoCertificate)?;
    if chain.len() > MAX_CHAIN {
        return Err(PeerError::TooMany(chain.len()));
    }
    let parsed: Vec<X509Certificate<'_>> = chain
        .iter()
        .enumerate()
        .map(|(position, der)| parse(der, position))
        .collect::<Result<_, _>>()?;
    let leaf = parsed.first().ok_or(PeerError::NoCertificate)?;
    let subject = name::render(leaf.subject());
    let issuer = name::render(leaf.issuer());

    in_time(leaf, now)?;
    if let Ok(Some(usage)) = leaf.key_usage()
        && !usage.value.digital_signature()
        && !usage.value.non_repudiation()
    {
        // RFC 4945 5.1.3.2: either bit allows the IKE signature.
        return Err(PeerError::NotForSigning { subject });
    }

    let context =
        Context { subject: &subject, issuer: &issuer, leaf, anchors, now, parsed: &parsed };
    let leaf_ref = CertificateDer::from(leaf_der.as_slice());
    let end_entity =
        EndEntityCert::try_from(&leaf_ref).map_err(|error| explain(&error, &context))?;
    let anchor_ders: Vec<CertificateDer<'_>> =
        anchors.iter().map(|der| CertificateDer::from(der.as_slice())).collect();
    let trust: Vec<TrustAnchor<'_>> =
        anchor_ders.iter().filter_map(|der| webpki::anchor_from_trusted_cert(der).ok()).collect();
    let intermediates: Vec<CertificateDer<'_>> =
        chain.iter().skip(1).map(|der| CertificateDer::from(der.as_slice())).collect();
    let seconds = std::time::Duration::from_secs(now.secs().max(0).unsigned_abs());
    let time = rustls_pki_types::UnixTime::since_unix_epoch(seconds);

    let attempt = |usage: KeyUsage| {
        end_entity.verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            &trust,
            &intermediates,
            time,
            usage,
            None,
            None,
        )
    };
    let mut result = Err(webpki::Error::UnknownIssuer);
    for usage in IKE_USAGES {
        result = attempt(KeyUsage::required_if_present(usage));
        match &result {
            Err(webpki::Error::RequiredEkuNotFoundContext(_)) => {}
            _ => break,
        }
    }
    let path = result.map_err(|error| explain(&error, &context))?;

    // The anchor's own validity counts as well: nothing outlives its chain.
    let mut not_after = end_of(leaf);
    for intermediate in path.intermediate_certificates() {
        if let Ok((_, certificate)) = X509Certificate::from_der(intermediate.der().as_ref()) {
            not_after = not_after.min(end_of(&certificate));
        }
    }
    for der in anchors {
        let Ok((_, anchor)) = X509Certificate::from_der(der) else { continue };
        if is_anchor(&anchor, path.anchor()) {
            in_time(&anchor, now)?;
            not_after = not_after.min(end_of(&anchor));
            break;
        }
    }

    let spki = leaf.public_key().raw.to_vec();
    let peer = VerifiedPeer {
        certificate: leaf_der.clone(),
        issuer_id: crate::ca::issuer_id(leaf.issuer().as_raw()),
        issuer,
        serial: Serial::from_bytes(leaf.raw_serial()),
        not_after,
        spki_sha256: sha256_hex(&spki),
        spki,
        subject,
        sans: sans(leaf),
    };
    Ok((peer, leaf.subject().as_raw().to_vec()))
}

fn parse(der: &[u8], position: usize) -> Result<X509Certificate<'_>, PeerError> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok((rest, _)) => Err(PeerError::Malformed {
            position,
            cause: format!("{} octets follow it", rest.len()),
        }),
        Err(cause) => Err(PeerError::Malformed { position, cause: cause.to_string() }),
    }
}

/// The first and the last instant of validity; the last second is part of it.
pub(crate) fn validity(certificate: &X509Certificate<'_>) -> (UnixTime, UnixTime) {
    let validity = certificate.validity();
    let at = |secs: i64| UnixTime::from_secs(secs);
    (at(validity.not_before.timestamp()), at(validity.not_after.timestamp()))
}

fn end_of(certificate: &X509Certificate<'_>) -> UnixTime {
    validity(certificate).1
}

fn in_time(certificate: &X509Certificate<'_>, now: UnixTime) -> Result<(), PeerError> {
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

fn is_anchor(certificate: &X509Certificate<'_>, anchor: &TrustAnchor<'_>) -> bool {
    // Trust anchors hold the contents of the sequences, without tag and length.
    certificate.subject().as_raw().ends_with(anchor.subject.as_ref())
        && certificate.public_key().raw.ends_with(anchor.subject_public_key_info.as_ref())
}

/// The alternative names of a certificate; kinds that are not used here are left out.
pub(crate) fn sans(certificate: &X509Certificate<'_>) -> Vec<San> {
    let Ok(Some(extension)) = certificate.subject_alternative_name() else { return Vec::new() };
    extension
        .value
        .general_names
        .iter()
        .filter_map(|name| match name {
            GeneralName::DNSName(dns) => Some(San::Dns((*dns).to_owned())),
            GeneralName::RFC822Name(email) => Some(San::Email((*email).to_owned())),
            GeneralName::URI(uri) => Some(San::Uri((*uri).to_owned())),
            GeneralName::IPAddress(octets) => match octets.len() {
                4 => <[u8; 4]>::try_from(*octets).ok().map(|octets| San::Ip(octets.into())),
                16 => <[u8; 16]>::try_from(*octets).ok().map(|octets| San::Ip(octets.into())),
                _ => None,
            },
            _ => None,
        })
        .collect()
}

struct Context<'a> {
    subject: &'a str,
    issuer: &'a str,
    leaf: &'a X509Certificate<'a>,
    parsed: &'a [X509Certificate<'a>],
    anchors: &'a [Vec<u8>],
    now: UnixTime,
}

fn explain(error: &webpki::Error, context: &Context<'_>) -> PeerError {
    use webpki::Error as E;
    let subject = context.subject.to_owned();
    match error {
        E::UnknownIssuer => PeerError::UnknownIssuer {
            subject,
            issuer: context.issuer.to_owned(),
            trusted: trusted(context.anchors),
        },
        E::CertExpired { .. } | E::CertNotValidYet { .. } => {
            // The leaf is in time, so it is one of the others.
            let others = context.parsed.iter().skip(1);
            match others.map(|certificate| in_time(certificate, context.now)).find_map(Result::err)
            {
                Some(error) => error,
                None => PeerError::InvalidPath { subject, cause: error.to_string() },
            }
        }
        E::InvalidSignatureForPublicKey => {
            PeerError::BadSignature { subject, issuer: context.issuer.to_owned() }
        }
        E::RequiredEkuNotFoundContext(_) => {
            PeerError::WrongUsage { subject, found: usages(context.leaf) }
        }
        E::UnsupportedSignatureAlgorithmContext(_)
        | E::UnsupportedSignatureAlgorithmForPublicKeyContext(_) => {
            PeerError::UnsupportedAlgorithm { subject }
        }
        E::CaUsedAsEndEntity => PeerError::InvalidPath {
            subject,
            cause: "it is a CA certificate and cannot be a peer's own".to_owned(),
        },
        E::EndEntityUsedAsCa => PeerError::InvalidPath {
            subject,
            cause: "its issuer is not a CA certificate".to_owned(),
        },
        E::UnsupportedCriticalExtension => PeerError::InvalidPath {
            subject,
            cause: "it has a critical extension that is not understood here".to_owned(),
        },
        E::PathLenConstraintViolated => PeerError::InvalidPath {
            subject,
            cause: "a CA above it allows fewer CAs below itself".to_owned(),
        },
        E::NameConstraintViolation => PeerError::InvalidPath {
            subject,
            cause: "a CA above it does not allow this name".to_owned(),
        },
        E::BadDer => PeerError::Malformed { position: 0, cause: error.to_string() },
        other => PeerError::InvalidPath { subject, cause: other.to_string() },
    }
}

fn trusted(anchors: &[Vec<u8>]) -> String {
    let names = anchors.iter().filter_map(|der| {
        X509Certificate::from_der(der).ok().map(|(_, anchor)| name::render(anchor.subject()))
    });
    let names: Vec<_> = names.collect();
    if names.is_empty() { "none".to_owned() } else { names.join("; ") }
}

fn usages(leaf: &X509Certificate<'_>) -> String {
    let Some(usage) =
        leaf.extensions().iter().find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::ExtendedKeyUsage(usage) => Some(usage),
            _ => None,
        })
    else {
        return "none".to_owned();
    };
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
