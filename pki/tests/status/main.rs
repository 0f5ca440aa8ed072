//! Judging what responders and lists say about certificates: our own responder and lists are the
//! honest ones, rcgen makes the others.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "../common/mod.rs"]
mod common;
mod rules;

use std::time::Duration;

use common::*;
use pki::validate::{RevocationList, Standing, StatusError, StatusQuestion, questions};
use pki::*;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer,
    CrlDistributionPoint, CrlIssuingDistributionPoint, CrlScope, DnType, IsCa, KeyIdMethod,
    KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber,
};

type Ca = CertifiedIssuer<'static, KeyPair>;

const PLACE: &str = "http://crl.example.com/1.crl";
const SERIAL: [u8; 2] = [0x12, 0x34];

/// The questions of one runner of our own CA: about its certificate and about the issuing CA.
fn ours(authority: &Authority, enrolled: &Enrolled) -> [StatusQuestion; 2] {
    let peer = peer(authority, enrolled, NOW);
    questions(&peer.path).try_into().unwrap_or_else(|_| panic!("two questions"))
}

fn why(result: Result<Standing, StatusError>) -> String {
    result.map(|standing| panic!("{standing:?}")).unwrap_err().to_string()
}

#[test]
fn answers_of_an_honest_responder_are_believed() {
    // RFC 6960 3.2, 4.2.2.2.
    let authority = authority();
    let (_, enrolled) = enrolled(&authority);
    let [leaf, issuing] = ours(&authority, &enrolled);
    assert!(!leaf.is_ca && issuing.is_ca);
    for question in [&leaf, &issuing] {
        let reply = authority.ocsp(&question.request().unwrap(), NOW);
        let standing = question.answer(&reply.der, NOW).unwrap();
        assert_eq!(standing, Standing::Good { until: after(300) });
        assert!(question.answer(&reply.der, after(600)).is_ok(), "within the skew of clocks");
        assert!(why(question.answer(&reply.der, after(700))).contains("was good until"));
    }
    let early = authority.ocsp(&leaf.request().unwrap(), after(900));
    assert!(why(leaf.answer(&early.der, NOW)).contains("of the future"));

    let selector = RevokeSelector::Lease(enrolled.lease.id.clone());
    authority.revoke(&selector, RevocationReason::KeyCompromise, &OPERATOR, after(1)).unwrap();
    let reply = authority.ocsp(&leaf.request().unwrap(), after(2));
    let standing = leaf.answer(&reply.der, after(2)).unwrap();
    let reason = "KeyCompromise".to_owned();
    assert_eq!(standing, Standing::Revoked { at: after(1), reason });
}

#[test]
fn answers_that_prove_nothing() {
    // RFC 6960 3.2, 4.2.2.2.
    let authority = authority();
    let (_, first) = enrolled(&authority);
    let (_, second) = enrolled(&authority);
    let [leaf, _] = ours(&authority, &first);
    let [other, _] = ours(&authority, &second);
    let reply = authority.ocsp(&leaf.request().unwrap(), NOW).der;

    assert!(why(other.answer(&reply, NOW)).contains("about another certificate"));
    assert!(why(leaf.answer(b"garbage", NOW)).contains("does not parse"));
    let stranger = common::authority();
    let unauthorised = stranger.ocsp(&leaf.request().unwrap(), NOW).der;
    assert!(why(leaf.answer(&unauthorised, NOW)).contains("Unauthorized"));
    let mut said = Vec::new();
    for position in 0..reply.len() {
        let mut forged = reply.clone();
        forged[position] ^= 1;
        if let Ok(standing) = leaf.answer(&forged, NOW) {
            // The signer's certificate may have other bits where nothing depends on them.
            assert_eq!(standing, leaf.answer(&reply, NOW).unwrap(), "octet {position}");
            said.push(position);
        }
    }
    assert!(said.len() < 16, "{said:?}");
}

/// RFC 6960 4.2.2.2: a certificate of the CA is no delegation by itself.
#[test]
fn an_answer_signed_by_another_certificate_of_the_ca_is_refused() {
    use der::{Decode, Encode};
    let authority = authority();
    let (client, enrolled) = enrolled(&authority);
    let [leaf, _] = ours(&authority, &enrolled);
    let reply = authority.ocsp(&leaf.request().unwrap(), NOW).der;
    let mut response = x509_ocsp::OcspResponse::from_der(&reply).unwrap();
    let octets = response.response_bytes.clone().unwrap().response;
    let mut basic = x509_ocsp::BasicOcspResponse::from_der(octets.as_bytes()).unwrap();
    let certificate = x509_cert::Certificate::from_der(&enrolled.certificate).unwrap();
    let name = certificate.tbs_certificate.subject.clone();
    basic.tbs_response_data.responder_id = x509_ocsp::ResponderId::ByName(name);
    let tbs = basic.tbs_response_data.to_der().unwrap();
    let signature = rcgen::SigningKey::sign(&client.key, &tbs).unwrap();
    basic.signature = der::asn1::BitString::from_bytes(&signature).unwrap();
    basic.certs = Some(vec![certificate]);
    let bytes = response.response_bytes.as_mut().unwrap();
    bytes.response = der::asn1::OctetString::new(basic.to_der().unwrap()).unwrap();
    let refused = why(leaf.answer(&response.to_der().unwrap(), NOW));
    assert!(refused.contains("without OCSPSigning"), "{refused}");
}

#[test]
fn our_own_lists_are_believed() {
    let authority = authority();
    let (_, enrolled) = enrolled(&authority);
    let [leaf, issuing] = ours(&authority, &enrolled);
    let list = RevocationList::parse(authority.crl(NOW).unwrap().der.clone()).unwrap();
    let roots = RevocationList::parse(authority.root_crl(NOW).unwrap().der.clone()).unwrap();
    assert_eq!(leaf.listed(&list, NOW).unwrap(), Standing::Good { until: after(3_600) });
    assert!(matches!(issuing.listed(&roots, NOW).unwrap(), Standing::Good { .. }));
    assert!(why(leaf.listed(&roots, NOW)).contains("of another CA"));
    assert!(why(leaf.listed(&list, after(4_000))).contains("was good until"));
    let selector = RevokeSelector::Lease(enrolled.lease.id.clone());
    authority.revoke(&selector, RevocationReason::Superseded, &OPERATOR, after(1)).unwrap();
    let list = RevocationList::parse(authority.crl(after(2)).unwrap().der.clone()).unwrap();
    let Standing::Revoked { at, reason } = leaf.listed(&list, after(2)).unwrap() else { panic!() };
    assert_eq!((at, reason.as_str()), (after(1), "Superseded"));
}

fn ca(name: &str, usages: Vec<KeyUsagePurpose>) -> Ca {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = usages;
    Ca::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// A certificate of this CA that names one list.
fn question(ca: &Ca) -> StatusQuestion {
    let mut params = CertificateParams::new(vec!["r-1.example.com".to_owned()]).unwrap();
    params.serial_number = Some(SerialNumber::from_slice(&SERIAL));
    params.crl_distribution_points = vec![CrlDistributionPoint { uris: vec![PLACE.to_owned()] }];
    let leaf = params.signed_by(&KeyPair::generate().unwrap(), ca).unwrap();
    let path = [leaf.der().to_vec(), ca.der().to_vec()];
    let question = questions(&path).remove(0);
    assert_eq!((question.crl.as_slice(), question.ocsp.len()), (&[PLACE.to_owned()][..], 0));
    question
}

fn list(
    ca: &Ca,
    point: Option<CrlIssuingDistributionPoint>,
    revoked: bool,
) -> Result<RevocationList, StatusError> {
    let now = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(NOW.secs().unsigned_abs());
    let entry = RevokedCertParams {
        serial_number: SerialNumber::from_slice(&SERIAL),
        revocation_time: now,
        reason_code: None,
        invalidity_date: None,
    };
    let params = CertificateRevocationListParams {
        this_update: now,
        next_update: now + Duration::from_secs(600),
        crl_number: SerialNumber::from(7),
        issuing_distribution_point: point,
        revoked_certs: if revoked { vec![entry] } else { Vec::new() },
        key_identifier_method: KeyIdMethod::Sha256,
    };
    RevocationList::parse(params.signed_by(ca).unwrap().der().to_vec())
}

fn part(place: &str, scope: Option<CrlScope>) -> Option<CrlIssuingDistributionPoint> {
    let distribution_point = CrlDistributionPoint { uris: vec![place.to_owned()] };
    Some(CrlIssuingDistributionPoint { distribution_point, scope })
}

/// RFC 5280 5.2.5, 6.3.3 (b): a partition speaks for the certificates that name it.
#[test]
fn partitions_cover_what_names_them() {
    let ca = ca("Partitioned", vec![KeyUsagePurpose::CrlSign, KeyUsagePurpose::KeyCertSign]);
    let question = question(&ca);
    for (covers, point) in [
        (true, None),
        (true, part(PLACE, None)),
        (true, part(PLACE, Some(CrlScope::UserCertsOnly))),
        (false, part(PLACE, Some(CrlScope::CaCertsOnly))),
        (false, part("http://crl.example.com/2.crl", None)),
    ] {
        let what = format!("{point:?}");
        let good = question.listed(&list(&ca, point.clone(), false).unwrap(), NOW);
        let revoked = question.listed(&list(&ca, point, true).unwrap(), NOW);
        if covers {
            assert_eq!(good.unwrap(), Standing::Good { until: after(600) }, "{what}");
            assert!(matches!(revoked.unwrap(), Standing::Revoked { .. }), "{what}");
        } else {
            assert!(why(good).contains("does not cover"), "{what}");
            assert!(why(revoked).contains("does not cover"), "{what}");
        }
    }
}

#[test]
fn lists_that_prove_nothing() {
    // RFC 5280 6.3.3.
    let usages = || vec![KeyUsagePurpose::CrlSign, KeyUsagePurpose::KeyCertSign];
    let (ours, twin) = (ca("CA", usages()), ca("CA", usages()));
    let question_ = question(&ours);
    let forged = list(&twin, None, false).unwrap();
    assert!(why(question_.listed(&forged, NOW)).contains("signature of the list"));
    let may_not = ca("CA", vec![KeyUsagePurpose::KeyCertSign]);
    let unsigned = ca_list_without_usage(&may_not);
    assert!(why(question(&may_not).listed(&unsigned, NOW)).contains("key usage"));
    let early =
        question_.listed(&list(&ours, None, false).unwrap(), NOW.minus(Duration::from_secs(3_600)));
    assert!(why(early).contains("of the future"));
    for damaged in [b"".to_vec(), b"garbage".to_vec(), vec![0x30, 0x03, 2, 1, 1]] {
        assert!(RevocationList::parse(damaged).is_err());
    }
}

/// RFC 5280 5.2.4, 5.2.5: what says only what changed, or what others revoked, proves nothing good.
#[test]
fn delta_lists_and_indirect_lists_are_refused_by_name() {
    use der::asn1::{ObjectIdentifier, OctetString};
    use der::{Decode, Encode};
    use x509_cert::crl::CertificateList;
    use x509_cert::ext::Extension;
    let ca = ca("CA", vec![KeyUsagePurpose::CrlSign, KeyUsagePurpose::KeyCertSign]);
    let params = CertificateRevocationListParams {
        this_update: rcgen::date_time_ymd(2026, 1, 1),
        next_update: rcgen::date_time_ymd(2027, 1, 1),
        crl_number: SerialNumber::from(7),
        issuing_distribution_point: None,
        revoked_certs: Vec::new(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let der = params.signed_by(&ca).unwrap().der().to_vec();
    // DeltaCRLIndicator: base list 6. IssuingDistributionPoint: indirectCRL TRUE.
    let cases: [(&str, &[u8], &str); 2] = [
        ("2.5.29.27", &[2, 1, 6], "2.5.29.27"),
        ("2.5.29.28", &[0x30, 3, 0x84, 1, 0xff], "indirect"),
    ];
    for (oid, value, words) in cases {
        let mut list = CertificateList::from_der(&der).unwrap();
        let extension = Extension {
            extn_id: ObjectIdentifier::new(oid).unwrap(),
            critical: true,
            extn_value: OctetString::new(value).unwrap(),
        };
        list.tbs_cert_list.crl_extensions.get_or_insert_with(Vec::new).push(extension);
        let refused = RevocationList::parse(list.to_der().unwrap()).unwrap_err().to_string();
        assert!(refused.contains(words), "{refused}");
    }
}

/// rcgen refuses to sign with a CA that may not: the same key under a certificate that may.
fn ca_list_without_usage(ca: &Ca) -> RevocationList {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::CrlSign];
    let key = KeyPair::from_pem(&ca.key().serialize_pem()).unwrap();
    list(&Ca::self_signed(params, key).unwrap(), None, false).unwrap()
}
