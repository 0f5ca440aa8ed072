//! Verification of peers: chains that are accepted and chains that are not, and the words.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::*;
use pki::validate::verify_peer;
use pki::*;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose as Eku,
    IsCa, KeyPair, KeyUsagePurpose, SanType,
};

type Ca = CertifiedIssuer<'static, KeyPair>;

/// Seconds from NOW.
type Span = (i64, i64);

const YEAR: i64 = 365 * 86_400;
const DAYS: Span = (-86_400, 86_400);

fn params(name: &str, (from, until): Span) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let at = |secs: i64| epoch + std::time::Duration::from_secs((NOW.secs() + secs) as u64);
    params.not_before = at(from);
    params.not_after = at(until);
    params
}

fn ca_params(name: &str, span: Span) -> CertificateParams {
    let mut params = params(name, span);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn root(name: &str, span: Span) -> Ca {
    Ca::self_signed(ca_params(name, span), KeyPair::generate().unwrap()).unwrap()
}

fn below(issuer: &Ca, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Ca {
    let mut params = ca_params(name, (-YEAR, YEAR));
    change(&mut params);
    Ca::signed_by(params, KeyPair::generate().unwrap(), issuer).unwrap()
}

fn leaf(issuer: &Ca, change: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
    let mut params = params("r-1", DAYS);
    params.extended_key_usages = vec![Eku::ClientAuth];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.subject_alt_names = vec![SanType::DnsName("r-1.example.com".try_into().unwrap())];
    change(&mut params);
    let key = KeyPair::generate().unwrap();
    params.signed_by(&key, issuer).unwrap().der().to_vec()
}

fn der(ca: &Ca) -> Vec<u8> {
    ca.der().to_vec()
}

fn verify(chain: &[Vec<u8>], anchor: &Ca) -> Result<VerifiedPeer, PeerError> {
    verify_peer(chain, &[der(anchor)], None, NOW)
}

#[test]
fn intermediates_may_come_in_any_order_and_with_the_root() {
    let root = root("Root", (-YEAR, YEAR));
    let upper = below(&root, "Upper", |_| {});
    let lower = below(&upper, "Lower", |_| {});
    let leaf = leaf(&lower, |_| {});
    let other = below(&root, "Unrelated", |_| {});
    for chain in [
        vec![leaf.clone(), der(&lower), der(&upper)],
        vec![leaf.clone(), der(&upper), der(&lower)],
        vec![leaf.clone(), der(&root), der(&upper), der(&other), der(&lower)],
    ] {
        let peer = verify(&chain, &root).unwrap();
        assert_eq!((peer.subject.as_str(), peer.issuer.as_str()), ("CN=r-1", "CN=Lower"));
        assert_eq!(peer.sans, [San::Dns("r-1.example.com".to_owned())]);
    }
    assert!(matches!(verify(&[leaf, der(&lower)], &root), Err(PeerError::UnknownIssuer { .. })));
}

#[test]
fn chains_on_p521_are_verified_with_every_hash() {
    // RFC 5280 6.1, RFC 5758 3.2.
    for algorithm in [
        &rcgen::PKCS_ECDSA_P521_SHA256,
        &rcgen::PKCS_ECDSA_P521_SHA384,
        &rcgen::PKCS_ECDSA_P521_SHA512,
    ] {
        let key = || KeyPair::generate_for(algorithm).unwrap();
        let root = Ca::self_signed(ca_params("Root", (-YEAR, YEAR)), key()).unwrap();
        let sub = Ca::signed_by(ca_params("Sub", (-YEAR, YEAR)), key(), &root).unwrap();
        let mut chain = vec![leaf(&sub, |_| {}), der(&sub)];
        assert!(verify(&chain, &root).is_ok(), "{algorithm:?}");
        let at = chain[0].len() - 1;
        chain[0][at] ^= 1;
        assert!(
            matches!(verify(&chain, &root), Err(PeerError::BadSignature { .. })),
            "{algorithm:?}"
        );
    }
}

#[test]
fn the_earliest_end_in_the_chain_counts() {
    let end = |root_end, ca_end, leaf_end| {
        let root = root("Root", (-YEAR, root_end));
        let ca = below(&root, "CA", |p| p.not_after = params("", (0, ca_end)).not_after);
        let leaf = leaf(&ca, |p| p.not_after = params("", (0, leaf_end)).not_after);
        verify(&[leaf, der(&ca)], &root).unwrap().not_after
    };
    assert_eq!(end(300, 200, 100), after(100));
    assert_eq!(end(300, 50, 100), after(50));
    assert_eq!(end(20, 50, 100), after(20));
}

#[test]
fn accepted_key_usages() {
    let root = root("Root", (-YEAR, YEAR));
    let ipsec_ike = Eku::Other(vec![1, 3, 6, 1, 5, 5, 7, 3, 17]);
    let ike_intermediate = Eku::Other(vec![1, 3, 6, 1, 5, 5, 8, 2, 2]);
    for usages in [
        vec![],
        vec![Eku::ClientAuth],
        vec![Eku::ServerAuth, Eku::ClientAuth],
        vec![ipsec_ike],
        vec![Eku::ServerAuth, ike_intermediate],
        vec![Eku::Any],
    ] {
        let leaf = leaf(&root, |p| p.extended_key_usages = usages.clone());
        assert!(verify(&[leaf], &root).is_ok(), "{usages:?}");
    }
    let wrong = leaf(&root, |p| p.extended_key_usages = vec![Eku::ServerAuth, Eku::CodeSigning]);
    let Err(PeerError::WrongUsage { found, .. }) = verify(&[wrong], &root) else { panic!() };
    assert_eq!(found, "serverAuth, codeSigning");
    let wrong = leaf(&root, |p| p.key_usages = vec![KeyUsagePurpose::KeyAgreement]);
    assert!(matches!(verify(&[wrong], &root), Err(PeerError::NotForSigning { .. })));
    let fine = leaf(&root, |p| p.key_usages = vec![KeyUsagePurpose::ContentCommitment]);
    assert!(verify(&[fine], &root).is_ok());
    let fine = leaf(&root, |p| p.key_usages = vec![]);
    assert!(verify(&[fine], &root).is_ok());
}

#[test]
fn refused_chains_and_why() {
    let root_ca = root("Root", (-YEAR, YEAR));
    let twin = root("Root", (-YEAR, YEAR));
    let other = root("Other", (-YEAR, YEAR));
    let expired_ca = below(&root_ca, "Old CA", |p| p.not_after = params("", (0, -10)).not_after);
    let short_ca =
        below(&root_ca, "CA 0", |p| p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)));
    let sub_ca = below(&short_ca, "CA 1", |_| {});
    let not_a_ca = below(&root_ca, "No CA", |p| {
        p.is_ca = IsCa::ExplicitNoCa;
        p.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    });
    let good = leaf(&root_ca, |_| {});
    let mut broken = good.clone();
    *broken.last_mut().unwrap() ^= 1;
    let span = |from, until| {
        leaf(&root_ca, |p| {
            let times = params("", (from, until));
            (p.not_before, p.not_after) = (times.not_before, times.not_after);
        })
    };
    let constrained = below(&root_ca, "Constrained", |p| {
        p.name_constraints = Some(rcgen::NameConstraints {
            permitted_subtrees: vec![rcgen::GeneralSubtree::DnsName("example.org".to_owned())],
            excluded_subtrees: vec![],
        });
    });
    let critical = leaf(&root_ca, |p| {
        let mut extension =
            rcgen::CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 9999, 1], vec![5, 0]);
        extension.set_criticality(true);
        p.custom_extensions = vec![extension];
    });

    let cases: Vec<(&str, Vec<Vec<u8>>, &str)> = vec![
        ("nothing", vec![], "sent no certificate"),
        ("garbage", vec![b"garbage".to_vec()], "certificate 0 does not parse"),
        ("garbage behind", vec![good.clone(), vec![0x30, 3]], "certificate 1 does not parse"),
        ("trailing octets", vec![[good.clone(), vec![0]].concat()], "1 octets follow it"),
        ("too many", vec![good.clone(); 11], "11 certificates"),
        (
            "other root",
            vec![leaf(&other, |_| {})],
            "issued by CN=Other, which leads to none of the trusted roots (CN=Root)",
        ),
        ("other root sent along", vec![leaf(&other, |_| {}), der(&other)], "none of the trusted"),
        ("root's namesake", vec![leaf(&twin, |_| {})], "does not verify"),
        ("altered signature", vec![broken], "does not verify"),
        ("expired", vec![span(-100, -1)], "expired at 2026-11-21T23:59:59Z"),
        ("not yet valid", vec![span(10, 100)], "not valid before 2026-11-22T00:00:10Z"),
        (
            "expired CA",
            vec![leaf(&expired_ca, |_| {}), der(&expired_ca)],
            "certificate CN=Old CA expired",
        ),
        (
            "path too long",
            vec![leaf(&sub_ca, |_| {}), der(&sub_ca), der(&short_ca)],
            "allows fewer CAs below itself",
        ),
        ("issuer is no CA", vec![leaf(&not_a_ca, |_| {}), der(&not_a_ca)], "not a CA certificate"),
        ("a CA as peer", vec![der(&short_ca)], "key usage without digitalSignature"),
        (
            "a CA that may sign",
            vec![leaf(&root_ca, |p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained))],
            "is a CA certificate",
        ),
        (
            "name constraints",
            vec![leaf(&constrained, |_| {}), der(&constrained)],
            "does not allow this name",
        ),
        (
            "unknown critical extension",
            vec![critical],
            "a critical extension that is not understood",
        ),
    ];
    for (what, chain, expected) in cases {
        let error = match verify(&chain, &root_ca) {
            Ok(_) => panic!("{what} was accepted"),
            Err(error) => error.to_string(),
        };
        assert!(error.contains(expected), "{what}: {error}");
    }
    assert!(verify(&[good], &root_ca).is_ok());
}

#[test]
fn validity_is_inclusive_to_the_second() {
    let root = root("Root", (-YEAR, YEAR));
    let leaf = leaf(&root, |p| {
        let times = params("", (0, 10));
        (p.not_before, p.not_after) = (times.not_before, times.not_after);
    });
    let at = |micros: i64| {
        let now = UnixTime::from_micros(NOW.micros() + micros);
        verify_peer(std::slice::from_ref(&leaf), &[der(&root)], None, now).is_ok()
    };
    assert!(!at(-1) && at(0) && at(10_000_000) && at(10_999_999) && !at(11_000_000));
}

#[test]
fn an_expired_trust_anchor_ends_its_chains() {
    let root = root("Root", (-YEAR, -5));
    let leaf = leaf(&root, |_| {});
    assert!(matches!(
        verify(&[leaf], &root),
        Err(PeerError::Expired { subject, .. }) if subject == "CN=Root"
    ));
}

#[test]
fn extra_anchors_are_trusted_beside_the_first() {
    let (first, second) = (root("First", (-YEAR, YEAR)), root("Second", (-YEAR, YEAR)));
    let leaf = leaf(&second, |_| {});
    assert!(verify(std::slice::from_ref(&leaf), &first).is_err());
    let anchors = [der(&first), der(&second)];
    assert!(verify_peer(&[leaf], &anchors, None, NOW).is_ok());
}

#[test]
fn an_issued_certificate_matches_its_own_identities_only() {
    use x509_parser::prelude::*;
    let authority = authority();
    let (_, enrolled) = enrolled(&authority);
    let (_, other) = common::enrolled(&authority);
    let subject = |der: &[u8]| {
        let (_, certificate) = X509Certificate::from_der(der).unwrap();
        certificate.subject().as_raw().to_vec()
    };
    let (own_dn, other_dn) = (subject(&enrolled.certificate), subject(&other.certificate));
    let chain = [enrolled.certificate.clone()];
    let check = |kind, data: &[u8]| {
        authority.verify_peer(&chain, Some(IkeId { kind, data }), after(1)).map(|peer| peer.serial)
    };
    let serial = Ok(enrolled.lease.certs[0].serial.clone());
    assert_eq!(check(9, &own_dn), serial);
    assert_eq!(check(2, enrolled.lease.dns_name.as_bytes()), serial);
    assert!(matches!(check(9, &other_dn), Err(PeerError::IdentityMismatch { .. })));
    assert!(matches!(
        check(2, other.lease.dns_name.as_bytes()),
        Err(PeerError::IdentityMismatch { .. })
    ));
}
