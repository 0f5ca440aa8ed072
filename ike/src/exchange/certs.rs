//! Certificates, certificate requests, and the choice of how to sign (RFC 7296 3.6 to 3.8,
//! RFC 7427).

use crate::config::Credential;
use crate::crypto::{
    Curve, SignatureError, SignatureScheme, ecdsa_der_from_raw, ecdsa_raw_from_der,
};
use crate::wire::{
    AuthMethod, Authentication, CertEncoding, CertRequest, Certificate, HashAlgorithm, Notify,
    Payload, Payloads, SignatureData, WireError,
};

/// Hashes we accept in signatures, for SIGNATURE_HASH_ALGORITHMS; SHA-1 is not among them
/// (RFC 8247 3.2).
const HASHES: [HashAlgorithm; 4] = [
    HashAlgorithm::Sha2_256,
    HashAlgorithm::Sha2_384,
    HashAlgorithm::Sha2_512,
    HashAlgorithm::Identity,
];

/// How we authenticate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SigningMethod {
    pub(crate) method: AuthMethod,
    pub(crate) scheme: SignatureScheme,
}

/// The peer's proof, ready to be verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PeerSignature {
    pub(crate) scheme: SignatureScheme,
    pub(crate) rsa_classic: bool,
    /// DER for ECDSA.
    pub(crate) signature: Vec<u8>,
}

/// SIGNATURE_HASH_ALGORITHMS.
pub(crate) fn hashes_notify() -> Notify {
    Notify::signature_hashes(&HASHES)
}

/// CERTREQ for the authorities we trust; nothing when there are none.
pub(crate) fn request(trust_anchors: &[[u8; 20]]) -> Option<Payload> {
    (!trust_anchors.is_empty()).then(|| Payload::CertReq(CertRequest::x509(trust_anchors)))
}

/// CERTREQ for OCSP answers of any responder (RFC 4806 3.1).
pub(crate) fn ocsp_request(wanted: bool) -> Option<Payload> {
    let request = CertRequest { encoding: CertEncoding::OcspContent, authorities: Vec::new() };
    wanted.then_some(Payload::CertReq(request))
}

/// Whether the peer asks for OCSP answers about our certificate. Which responders it trusts does
/// not matter: there is one answer (RFC 4806 3.2).
pub(crate) fn wants_ocsp(payloads: &Payloads) -> bool {
    payloads.cert_requests().any(|request| request.encoding == CertEncoding::OcspContent)
}

/// The authorities a peer would accept; empty when it did not say.
pub(crate) fn requested(payloads: &Payloads) -> Vec<[u8; 20]> {
    payloads
        .cert_requests()
        .filter(|request| request.encoding == CertEncoding::X509Signature)
        .flat_map(CertRequest::hashes)
        .collect()
}

/// Picks the credential and how to sign with it: the first below an authority the peer named that
/// can sign in a way the peer verifies; else the first that can sign so. A CERTREQ is a wish, not
/// a condition (RFC 7296 3.7).
pub(crate) fn choose<'a>(
    credentials: impl Iterator<Item = &'a Credential> + Clone,
    authorities: &[[u8; 20]],
    peer_hashes: &[HashAlgorithm],
) -> Option<(&'a Credential, SigningMethod)> {
    let able = |credential: &'a Credential| {
        signing_method(&credential.schemes, peer_hashes).map(|method| (credential, method))
    };
    let named = |credential: &&Credential| {
        credential.authorities.iter().any(|hash| authorities.contains(hash))
    };
    credentials.clone().filter(named).find_map(able).or_else(|| credentials.clone().find_map(able))
}

/// Method 14 when the peer announced a hash our key can use, else the classic method of the key.
fn signing_method(
    schemes: &[SignatureScheme],
    peer_hashes: &[HashAlgorithm],
) -> Option<SigningMethod> {
    let digital = schemes.iter().find(|scheme| peer_hashes.contains(&scheme.hash_algorithm()));
    if let Some(&scheme) = digital {
        return Some(SigningMethod { method: AuthMethod::DigitalSignature, scheme });
    }
    schemes.iter().find_map(|&scheme| {
        let method = match scheme {
            SignatureScheme::EcdsaSha256 => AuthMethod::EcdsaSha256P256,
            SignatureScheme::EcdsaSha384 => AuthMethod::EcdsaSha384P384,
            SignatureScheme::EcdsaSha512 => AuthMethod::EcdsaSha512P521,
            // The classic method names no hash; SHA-1 is refused (RFC 8247 3.2).
            scheme if scheme.is_rsa() => {
                let scheme = SignatureScheme::RsaPkcs1Sha256;
                return Some(SigningMethod { method: AuthMethod::RsaSignature, scheme });
            }
            // Ed25519 exists only in method 14 (RFC 8420).
            _ => return None,
        };
        Some(SigningMethod { method, scheme })
    })
}

/// CERT payloads of a chain, end entity first.
pub(crate) fn payloads(chain: Vec<Vec<u8>>) -> impl Iterator<Item = Payload> {
    chain.into_iter().map(|der| Payload::Cert(Certificate::x509(der)))
}

/// CERT payloads of OCSP answers.
pub(crate) fn staples(answers: Vec<Vec<u8>>) -> impl Iterator<Item = Payload> {
    let cert = |answer| Certificate::new(CertEncoding::OcspContent, answer);
    answers.into_iter().map(cert).map(Payload::Cert)
}

/// OCSP answers the peer brought along, as many as it may bring certificates.
pub(crate) fn received_ocsp(payloads: &Payloads, max: usize) -> Vec<Vec<u8>> {
    payloads
        .certs()
        .filter(|cert| cert.encoding == CertEncoding::OcspContent)
        .take(max)
        .map(|cert| cert.data.clone())
        .collect()
}

/// The peer's X.509 certificates, in order.
pub(crate) fn received(payloads: &Payloads) -> Vec<Vec<u8>> {
    payloads
        .certs()
        .filter(|cert| cert.encoding == CertEncoding::X509Signature)
        .map(|cert| cert.data.clone())
        .collect()
}

/// The AUTH payload of our signature, which is DER for ECDSA.
///
/// # Errors
/// When the signer returned something that is no signature of its scheme.
pub(crate) fn auth_payload(
    how: SigningMethod,
    signature: Vec<u8>,
) -> Result<Payload, SigningFailed> {
    let data = match classic_curve(how.method) {
        Some(curve) => ecdsa_raw_from_der(curve, &signature)?,
        None if how.method == AuthMethod::DigitalSignature => {
            let algorithm = how.scheme.algorithm_identifier();
            SignatureData { algorithm, signature }.join()?
        }
        None => signature,
    };
    Ok(Payload::Auth(Authentication::new(how.method, data)))
}

/// Our signature could not be put into a payload.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SigningFailed {
    #[error(transparent)]
    Signature(#[from] SignatureError),
    #[error(transparent)]
    Wire(#[from] WireError),
}

/// Why a peer's AUTH payload cannot even be tried.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AuthRefused {
    #[error(
        "authentication method {0} is not accepted here: only certificates and shared keys are"
    )]
    Method(AuthMethod),
    #[error("{0}")]
    Signature(#[from] SignatureError),
    #[error("the AUTH payload is malformed: {0}")]
    Malformed(#[from] WireError),
}

/// Reads the peer's AUTH payload.
///
/// # Errors
/// [`AuthRefused`].
pub(crate) fn peer_signature(auth: &Authentication) -> Result<PeerSignature, AuthRefused> {
    if let Some(curve) = classic_curve(auth.method) {
        return Ok(PeerSignature {
            scheme: curve.classic_scheme(),
            rsa_classic: false,
            signature: ecdsa_der_from_raw(curve, &auth.data)?,
        });
    }
    match auth.method {
        AuthMethod::RsaSignature => Ok(PeerSignature {
            scheme: SignatureScheme::RsaPkcs1Sha256,
            rsa_classic: true,
            signature: auth.data.clone(),
        }),
        AuthMethod::DigitalSignature => {
            let body = SignatureData::split(&auth.data)?;
            let scheme = SignatureScheme::from_algorithm_identifier(&body.algorithm)?;
            Ok(PeerSignature { scheme, rsa_classic: false, signature: body.signature })
        }
        other => Err(AuthRefused::Method(other)),
    }
}

fn classic_curve(method: AuthMethod) -> Option<Curve> {
    match method {
        AuthMethod::EcdsaSha256P256 => Some(Curve::P256),
        AuthMethod::EcdsaSha384P384 => Some(Curve::P384),
        AuthMethod::EcdsaSha512P521 => Some(Curve::P521),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::CredentialId;

    fn credential(id: u32, schemes: &[SignatureScheme], authority: u8) -> Credential {
        Credential {
            id: CredentialId(id),
            chain: Vec::new(),
            schemes: schemes.to_vec(),
            authorities: vec![[authority; 20]],
            ocsp: Vec::new(),
        }
    }

    #[test]
    fn the_named_authority_decides_over_our_order() {
        let ours = [
            credential(1, &[SignatureScheme::EcdsaSha256], 1),
            credential(2, &[SignatureScheme::RsaPssSha256], 2),
        ];

        let (chosen, _) = choose(ours.iter(), &[[2; 20]], &[HashAlgorithm::Sha2_256]).unwrap();
        assert_eq!(chosen.id, CredentialId(2));
        let (chosen, _) = choose(ours.iter(), &[[9; 20]], &[HashAlgorithm::Sha2_256]).unwrap();
        assert_eq!(chosen.id, CredentialId(1));
    }

    #[test]
    fn without_announced_hashes_the_classic_methods_serve_and_ed25519_cannot() {
        let method = |scheme| signing_method(&[scheme], &[]).map(|how| how.method);

        assert_eq!(method(SignatureScheme::EcdsaSha384), Some(AuthMethod::EcdsaSha384P384));
        assert_eq!(method(SignatureScheme::RsaPssSha512), Some(AuthMethod::RsaSignature));
        assert_eq!(method(SignatureScheme::Ed25519), None);
    }

    #[test]
    fn method_14_survives_its_payload() {
        let how = SigningMethod {
            method: AuthMethod::DigitalSignature,
            scheme: SignatureScheme::RsaPssSha256,
        };

        let Payload::Auth(auth) = auth_payload(how, vec![7; 256]).unwrap() else {
            panic!("not AUTH");
        };
        let peer = peer_signature(&auth).unwrap();

        assert_eq!((peer.scheme, peer.signature), (how.scheme, vec![7; 256]));
    }

    #[test]
    fn what_is_no_signature_is_refused_by_name() {
        for (method, name) in [
            (AuthMethod::SharedKeyMic, "SHARED_KEY_MIC"),
            (AuthMethod::DssSignature, "DSS_SIGNATURE"),
        ] {
            let auth = Authentication::new(method, vec![0; 32]);

            let refused = peer_signature(&auth).unwrap_err();

            assert!(refused.to_string().contains(name), "{refused}");
        }
    }
}
