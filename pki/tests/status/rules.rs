//! RFC 5280 6.3.3 letter by letter, and 6.1.3 (a) (3), which asks for it: for each rule a list that
//! says that a certificate is good, and one that differs in nothing else and does not.

use der::asn1::{BitString, ObjectIdentifier, OctetString};
use der::{Decode, Encode};
use x509_cert::crl::CertificateList;
use x509_cert::ext::Extension;

use super::*;

/// Every rule, in the RFC's order. Left out are (h), (i) and (k), which are about delta lists: those
/// are not used, as (c) leaves to choice, and refused.
const RULES: &[&str] = &[
    "6.1.3 (a)(3)",
    "6.3.3 (a)",
    "6.3.3 (b)(1)",
    "6.3.3 (b)(2)(i)",
    "6.3.3 (b)(2)(ii)",
    "6.3.3 (b)(2)(iii)",
    "6.3.3 (b)(2)(iv)",
    "6.3.3 (c)",
    "6.3.3 (d)",
    "6.3.3 (e)",
    "6.3.3 (f)",
    "6.3.3 (g)",
    "6.3.3 (j)",
    "6.3.3 (l)",
];

type Verdict = Result<Standing, StatusError>;

/// A rule, a list that obeys it, one that does not, and what is said of that.
struct Vector(&'static str, Verdict, Verdict, &'static str);

const ISSUING_POINT: &str = "2.5.29.28";
const DELTA: &str = "2.5.29.27";

/// A complete list of this CA with one more critical extension, signed.
fn extended(ca: &Ca, oid: &str, value: &[u8]) -> Result<RevocationList, StatusError> {
    let now = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(NOW.secs().unsigned_abs());
    let params = CertificateRevocationListParams {
        this_update: now,
        next_update: now + Duration::from_secs(600),
        crl_number: SerialNumber::from(7),
        issuing_distribution_point: None,
        revoked_certs: Vec::new(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let der = params.signed_by(ca).unwrap().der().to_vec();
    let mut list = CertificateList::from_der(&der).unwrap();
    let extension = Extension {
        extn_id: ObjectIdentifier::new(oid).unwrap(),
        critical: true,
        extn_value: OctetString::new(value).unwrap(),
    };
    list.tbs_cert_list.crl_extensions.get_or_insert_with(Vec::new).push(extension);
    let signed = list.tbs_cert_list.to_der().unwrap();
    let signature = rcgen::SigningKey::sign(ca.key(), &signed).unwrap();
    list.signature = BitString::from_bytes(&signature).unwrap();
    RevocationList::parse(list.to_der().unwrap())
}

/// The question about a CA below this one.
fn about_a_ca(ca: &Ca) -> StatusQuestion {
    let point = || vec![CrlDistributionPoint { uris: vec![PLACE.to_owned()] }];
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "Below");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.crl_distribution_points = point();
    let below = Ca::signed_by(params, KeyPair::generate().unwrap(), ca).unwrap();
    let mut params = CertificateParams::new(vec!["r-1.example.com".to_owned()]).unwrap();
    params.crl_distribution_points = point();
    let leaf = params.signed_by(&KeyPair::generate().unwrap(), &below).unwrap();
    let path = [leaf.der().to_vec(), below.der().to_vec(), ca.der().to_vec()];
    let question = questions(&path).remove(1);
    assert!(question.is_ca);
    question
}

#[test]
fn each_rule_of_revocation_lists_accepts_and_refuses() {
    let usages = || vec![KeyUsagePurpose::CrlSign, KeyUsagePurpose::KeyCertSign];
    let (ours, twin, other) = (ca("CA", usages()), ca("CA", usages()), ca("Other", usages()));
    let (leaf, lower) = (question(&ours), about_a_ca(&ours));
    let judged = |question: &StatusQuestion, list: Result<RevocationList, StatusError>| {
        question.listed(&list?, NOW)
    };
    let complete = || judged(&leaf, list(&ours, None, false));
    let of = |point| judged(&leaf, list(&ours, point, false));
    let of_ca = |point| judged(&lower, list(&ours, point, false));
    let with = |oid, value: &[u8]| judged(&leaf, extended(&ours, oid, value));
    let at = |secs| leaf.listed(&list(&ours, None, false).unwrap(), after(secs));
    let revoked = || judged(&leaf, list(&ours, None, true));
    let may_not = ca("CA", vec![KeyUsagePurpose::KeyCertSign]);
    let unsigned = question(&may_not).listed(&ca_list_without_usage(&may_not), NOW);
    let elsewhere = part("http://crl.example.com/2.crl", None);
    // onlySomeReasons: keyCompromise.
    let some = || with(ISSUING_POINT, &[0x30, 4, 0x83, 2, 6, 0x40]);
    let limit = |scope| part(PLACE, Some(scope));
    let vectors = [
        Vector("6.1.3 (a)(3)", complete(), revoked(), "revoked"),
        Vector("6.3.3 (a)", at(0), at(4_000), "was good until"),
        Vector("6.3.3 (b)(1)", complete(), judged(&leaf, list(&other, None, false)), "another CA"),
        Vector(
            "6.3.3 (b)(1)",
            with(ISSUING_POINT, &[0x30, 0]),
            with(ISSUING_POINT, &[0x30, 3, 0x84, 1, 0xff]),
            "indirect",
        ),
        Vector("6.3.3 (b)(2)(i)", of(part(PLACE, None)), of(elsewhere), "does not cover"),
        Vector(
            "6.3.3 (b)(2)(ii)",
            of_ca(limit(CrlScope::CaCertsOnly)),
            of_ca(limit(CrlScope::UserCertsOnly)),
            "does not cover",
        ),
        Vector(
            "6.3.3 (b)(2)(iii)",
            of(limit(CrlScope::UserCertsOnly)),
            of(limit(CrlScope::CaCertsOnly)),
            "does not cover",
        ),
        Vector(
            "6.3.3 (b)(2)(iv)",
            with(ISSUING_POINT, &[0x30, 0]),
            with(ISSUING_POINT, &[0x30, 3, 0x85, 1, 0xff]),
            "does not cover",
        ),
        Vector("6.3.3 (c)", complete(), with(DELTA, &[2, 1, 6]), "critical extension"),
        Vector("6.3.3 (d)", with(ISSUING_POINT, &[0x30, 0]), some(), "some reasons"),
        Vector("6.3.3 (e)", complete(), some(), "some reasons"),
        Vector("6.3.3 (f)", complete(), unsigned, "key usage"),
        Vector(
            "6.3.3 (g)",
            complete(),
            judged(&leaf, list(&twin, None, false)),
            "signature of the list",
        ),
        Vector("6.3.3 (j)", complete(), revoked(), "revoked"),
        Vector("6.3.3 (l)", complete(), some(), "some reasons"),
    ];
    for Vector(rule, good, bad, says) in &vectors {
        assert_eq!(*good, Ok(Standing::Good { until: after(600) }), "{rule}");
        let told = match bad {
            Ok(Standing::Revoked { at, .. }) => format!("revoked at {at}"),
            Ok(standing) => panic!("{rule} is not obeyed and says {standing:?}"),
            Err(error) => error.to_string(),
        };
        assert!(told.contains(says), "{rule}: {told}");
    }
    let mut missing = RULES.to_vec();
    missing.retain(|rule| !vectors.iter().any(|vector| vector.0 == *rule));
    assert!(missing.is_empty(), "no vectors for {missing:?}");
    assert!(vectors.iter().all(|vector| RULES.contains(&vector.0)));
}
