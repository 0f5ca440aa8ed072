//! Certification requests of every kind, made with openssl: which are accepted, and why not.
//!
//! The requests lie in `vectors/csr`; their keys were thrown away.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::{NOW, authority, token};
use pki::{Csr, CsrError};
use x509_parser::prelude::*;

fn vector(name: &str) -> Vec<u8> {
    let path = format!("{}/tests/vectors/csr/{name}.pem", env!("CARGO_MANIFEST_DIR"));
    let pem = std::fs::read(&path).unwrap_or_else(|cause| panic!("{path}: {cause}"));
    pki::enrol::est::decode_body(&pem).unwrap()
}

#[test]
fn accepted_keys_and_signatures() {
    for name in [
        "p256-sha256",
        "p256-sha384",
        "p384-sha384",
        "p384-sha256",
        "p521-sha512",
        "rsa2048-sha256",
        "rsa2048-sha512",
        "rsa4096-sha384",
        "rsa2048-pss-sha256",
        "ed25519",
        "wants-ca",
        "empty-san",
        "challenge-password",
    ] {
        let csr = Csr::from_der(&vector(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(csr.spki_sha256.len(), 64);
    }
}

#[test]
fn every_vector_with_an_accepted_key_gets_a_certificate_for_that_key() {
    for name in
        ["p256-sha256", "p384-sha384", "p521-sha512", "rsa2048-sha256", "rsa4096-sha384", "ed25519"]
    {
        let authority = authority();
        let csr = Csr::from_der(&vector(name)).unwrap();
        let secret = token(&authority);
        let enrolled = authority
            .enrol_with_token("builder", secret.expose(), &csr, None, NOW)
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let (_, certificate) = X509Certificate::from_der(&enrolled.certificate).unwrap();
        assert_eq!(certificate.public_key().raw, csr.spki, "{name}");
    }
}

#[test]
fn refused_keys_and_signatures_say_why() {
    let key = |what: &str| CsrError::Key(what.to_owned());
    let signature = |what: &str| CsrError::SignatureAlgorithm(what.to_owned());
    for (name, expected) in [
        ("rsa1024-sha256", key("an RSA key of 1024 bits")),
        ("secp256k1-sha256", key("an ECDSA key on curve 1.3.132.0.10")),
        ("explicit-curve", key("an ECDSA key without a named curve")),
        ("rsa-pss-key", key("an RSA key restricted to PSS")),
        ("ed448", key("an Ed448 key")),
        ("dsa2048-sha256", key("a key of algorithm 1.2.840.10040.4.1")),
        ("p256-sha1", signature("SHA-1")),
        ("rsa2048-sha1", signature("SHA-1")),
        ("rsa2048-md5", signature("MD5 or MD2")),
        ("p256-sha512", signature("ECDSA with SHA-512, which does not fit the curve")),
    ] {
        assert_eq!(Csr::from_der(&vector(name)), Err(expected), "{name}");
    }
}

#[test]
fn a_request_not_signed_by_its_own_key_is_refused() {
    for name in ["p256-sha256", "p521-sha512", "rsa2048-sha256", "rsa2048-pss-sha256", "ed25519"] {
        let der = vector(name);
        let mut altered_signature = der.clone();
        *altered_signature.last_mut().unwrap() ^= 1;
        assert_eq!(Csr::from_der(&altered_signature), Err(CsrError::BadSignature), "{name}");
        // The subject is signed too.
        let mut altered_subject = der.clone();
        let at = der.windows(6).position(|window| window == b"runner").unwrap();
        altered_subject[at] = b'R';
        assert_eq!(Csr::from_der(&altered_subject), Err(CsrError::BadSignature), "{name}");
    }
}

#[test]
fn a_few_stray_octets_are_tolerated_more_are_not() {
    let der = vector("p256-sha256");
    let with = |extra: usize| Csr::from_der(&[der.clone(), vec![0; extra]].concat());
    assert_eq!(with(2), with(0));
    assert!(with(0).is_ok());
    assert!(matches!(with(5), Err(CsrError::Malformed(_))));
    assert!(matches!(Csr::from_der(&der[..der.len() - 1]), Err(CsrError::Malformed(_))));
    assert!(matches!(Csr::from_der(b""), Err(CsrError::Malformed(_))));
}

#[test]
fn wishes_for_authority_and_names_are_not_granted() {
    let authority = authority();
    let csr = Csr::from_der(&vector("wants-ca")).unwrap();
    let secret = token(&authority);
    let enrolled = authority.enrol_with_token("builder", secret.expose(), &csr, None, NOW).unwrap();
    let (_, certificate) = X509Certificate::from_der(&enrolled.certificate).unwrap();
    assert!(!certificate.is_ca());
    let usage = certificate.key_usage().unwrap().unwrap().value;
    assert!(!usage.key_cert_sign() && !usage.crl_sign());
    let eku = certificate.extended_key_usage().unwrap().unwrap().value;
    assert!(!eku.any && !eku.server_auth);
    let record = authority.certificate(&enrolled.lease.certs[0].serial).unwrap().unwrap();
    assert!(record.sans.iter().all(|san| !san.contains("root.example.com")));
    assert!(!record.subject.contains("runner"));
}

#[test]
fn the_challenge_password_is_readable_but_not_kept() {
    let der = vector("challenge-password");
    let password = pki::challenge_password(&der).unwrap();
    assert_eq!(password.as_str(), "eyJhbGciOiJFUzI1NiJ9.e30.c2ln");
    let csr = format!("{:?}", Csr::from_der(&der).unwrap());
    assert!(!csr.contains("eyJ"));
    assert_eq!(pki::challenge_password(&vector("p256-sha256")), None);
}
