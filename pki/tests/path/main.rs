//! Path validation after RFC 5280 6.1, rule by rule, and beside webpki on what both can judge.
#![allow(clippy::unwrap_used, clippy::panic)]

mod alike;
#[path = "../common/mod.rs"]
mod common;
mod rules;

use common::*;
use pki::validate::verify_peer;
use pki::*;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, CidrSubnet, CustomExtension, DnType,
    ExtendedKeyUsagePurpose as Eku, GeneralSubtree, IsCa, KeyPair, KeyUsagePurpose,
    NameConstraints, SanType,
};

type Ca = CertifiedIssuer<'static, KeyPair>;

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Example");
    params.distinguished_name.push(DnType::CommonName, name);
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let at = |secs: i64| epoch + std::time::Duration::from_secs((NOW.secs() + secs) as u64);
    (params.not_before, params.not_after) = (at(-86_400), at(86_400));
    params
}

fn ca_params(name: &str) -> CertificateParams {
    let mut params = params(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    params
}

fn root(change: impl FnOnce(&mut CertificateParams)) -> Ca {
    let mut params = ca_params("Root");
    change(&mut params);
    Ca::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn below(issuer: &Ca, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Ca {
    let mut params = ca_params(name);
    change(&mut params);
    Ca::signed_by(params, KeyPair::generate().unwrap(), issuer).unwrap()
}

fn leaf(issuer: &Ca, change: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
    let mut params = params("r-1");
    params.extended_key_usages = vec![Eku::ClientAuth];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    params.subject_alt_names = vec![dns("r-1.example.com")];
    change(&mut params);
    params.signed_by(&KeyPair::generate().unwrap(), issuer).unwrap().der().to_vec()
}

fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().unwrap())
}

fn der(ca: &Ca) -> Vec<u8> {
    ca.der().to_vec()
}

fn verify(chain: &[Vec<u8>], anchor: &Ca) -> Result<VerifiedPeer, PeerError> {
    verify_peer(chain, &[der(anchor)], None, NOW)
}

/// Short DER by hand.
fn tlv(tag: u8, parts: &[Vec<u8>]) -> Vec<u8> {
    let content = parts.concat();
    let length = content.len();
    let head = if length < 128 { vec![tag, length as u8] } else { vec![tag, 0x81, length as u8] };
    [head, content].concat()
}

fn oid(last: u8) -> Vec<u8> {
    // 1.3.6.1.4.1.9999.1.N
    vec![6, 9, 0x2b, 6, 1, 4, 1, 0xce, 0x0f, 1, last]
}

/// anyPolicy, in the place of a number.
const ANY: u8 = 0;

fn policy(number: u8) -> Vec<u8> {
    if number == ANY { vec![6, 4, 0x55, 0x1d, 0x20, 0] } else { oid(number) }
}

fn extension(id: u64, critical: bool, content: Vec<u8>) -> CustomExtension {
    let mut extension = CustomExtension::from_oid_content(&[2, 5, 29, id], content);
    extension.set_criticality(critical);
    extension
}

fn policies(numbers: &[u8]) -> CustomExtension {
    let each: Vec<_> = numbers.iter().map(|number| tlv(0x30, &[policy(*number)])).collect();
    extension(32, true, tlv(0x30, &each))
}

fn mappings(pairs: &[(u8, u8)]) -> CustomExtension {
    let each: Vec<_> =
        pairs.iter().map(|(from, to)| tlv(0x30, &[policy(*from), policy(*to)])).collect();
    extension(33, true, tlv(0x30, &each))
}

fn constraints(explicit: Option<u8>, inhibit_mapping: Option<u8>) -> CustomExtension {
    let part = |tag, value: Option<u8>| value.map(|value| vec![tag, 1, value]).unwrap_or_default();
    extension(36, true, tlv(0x30, &[part(0x80, explicit), part(0x81, inhibit_mapping)]))
}

fn inhibit_any(skip: u8) -> CustomExtension {
    extension(54, true, vec![2, 1, skip])
}

/// A path root → CA 1 → CA 2 → leaf with these extensions on each.
fn with_extensions(
    first: Vec<CustomExtension>,
    second: Vec<CustomExtension>,
    last: Vec<CustomExtension>,
) -> Result<VerifiedPeer, PeerError> {
    let root = root(|_| {});
    let upper = below(&root, "CA 1", |p| p.custom_extensions = first);
    let lower = below(&upper, "CA 2", |p| p.custom_extensions = second);
    let leaf = leaf(&lower, |p| p.custom_extensions = last);
    verify(&[leaf, der(&lower), der(&upper)], &root)
}

/// RFC 5280 6.1.3 (d) to (f), 6.1.4 (a), (b), (h) to (j), 6.1.5 (a), (b).
#[test]
fn policies_and_their_constraints() {
    let explicit = || constraints(Some(0), None);
    let cases: Vec<(&str, bool, [Vec<CustomExtension>; 3])> = vec![
        ("critical policies alone", true, [vec![policies(&[1])], vec![], vec![policies(&[2])]]),
        (
            "required and asserted throughout",
            true,
            [vec![policies(&[1]), explicit()], vec![policies(&[1, 2])], vec![policies(&[1])]],
        ),
        (
            "required, missing in the middle",
            false,
            [vec![policies(&[1]), explicit()], vec![], vec![policies(&[1])]],
        ),
        (
            "required, another one at the end",
            false,
            [vec![policies(&[1]), explicit()], vec![policies(&[1])], vec![policies(&[2])]],
        ),
        (
            "required, none at the end",
            false,
            [vec![policies(&[1]), explicit()], vec![policies(&[1])], vec![]],
        ),
        (
            "anyPolicy passes any",
            true,
            [vec![policies(&[ANY]), explicit()], vec![policies(&[ANY])], vec![policies(&[7])]],
        ),
        (
            "anyPolicy inhibited below",
            false,
            [
                vec![policies(&[1]), explicit(), inhibit_any(0)],
                vec![policies(&[ANY])],
                vec![policies(&[1])],
            ],
        ),
        (
            "anyPolicy inhibited one certificate later",
            true,
            [
                vec![policies(&[1]), explicit(), inhibit_any(1)],
                vec![policies(&[ANY])],
                vec![policies(&[1])],
            ],
        ),
        (
            "mapped",
            true,
            [
                vec![policies(&[1]), explicit(), mappings(&[(1, 2)])],
                vec![policies(&[2])],
                vec![policies(&[2])],
            ],
        ),
        (
            "mapped away from what is asserted",
            false,
            [
                vec![policies(&[1]), explicit(), mappings(&[(1, 2)])],
                vec![policies(&[1])],
                vec![policies(&[1])],
            ],
        ),
        (
            "mapping inhibited above",
            false,
            [
                vec![policies(&[1]), constraints(Some(0), Some(0))],
                vec![policies(&[1]), mappings(&[(1, 2)])],
                vec![policies(&[2])],
            ],
        ),
        (
            "mapping of anyPolicy",
            false,
            [vec![policies(&[1]), mappings(&[(ANY, 2)])], vec![], vec![]],
        ),
        (
            "required only two certificates later",
            true,
            [vec![constraints(Some(3), None)], vec![], vec![]],
        ),
        ("required by the leaf itself", false, [vec![], vec![], vec![constraints(Some(0), None)]]),
        (
            "too many policies",
            false,
            [vec![policies(&(1..=70).collect::<Vec<u8>>()[..9])], vec![], vec![many_policies()]],
        ),
    ];
    for (what, good, [first, second, last]) in cases {
        let result = with_extensions(first, second, last);
        assert_eq!(result.is_ok(), good, "{what}: {result:?}");
    }
}

fn many_policies() -> CustomExtension {
    let each: Vec<u8> = (1..=65).flat_map(|n| tlv(0x30, &[oid(n)])).collect();
    let length = u16::try_from(each.len()).unwrap().to_be_bytes();
    extension(32, false, [vec![0x30, 0x82, length[0], length[1]], each].concat())
}

/// RFC 5280 4.2.1.4: a qualifier in a critical extension must be understood.
#[test]
fn unknown_policy_qualifiers_are_refused_where_they_are_critical() {
    let with = |critical, qualifier: Vec<u8>| {
        let info = tlv(0x30, &[qualifier, vec![0x16, 1, b'x']]);
        let content = tlv(0x30, &[tlv(0x30, &[oid(1), tlv(0x30, &[info])])]);
        with_extensions(vec![], vec![], vec![extension(32, critical, content)])
    };
    let cps = vec![6, 8, 0x2b, 6, 1, 5, 5, 7, 2, 1];
    assert!(with(true, cps).is_ok());
    assert!(with(false, oid(9)).is_ok());
    let refused = with(true, oid(9)).unwrap_err().to_string();
    assert!(refused.contains("qualifier"), "{refused}");
}

/// RFC 5280 4.2.1.10 for DNS names, addresses, mailboxes, URIs and directory names.
#[test]
fn name_constraints_of_every_form() {
    let subtree_dn = |organisation: &str| {
        let mut name = rcgen::DistinguishedName::new();
        name.push(DnType::OrganizationName, organisation);
        GeneralSubtree::DirectoryName(name)
    };
    let network = || GeneralSubtree::IpAddress(CidrSubnet::from_v4_prefix([10, 77, 0, 0], 16));
    let ip = |text: &str| SanType::IpAddress(text.parse().unwrap());
    let email = |text: &str| SanType::Rfc822Name(text.try_into().unwrap());
    let uri = |text: &str| SanType::URI(text.try_into().unwrap());
    let domain = |text: &str| GeneralSubtree::DnsName(text.to_owned());
    let cases = [
        (true, vec![domain("example.com")], vec![], vec![dns("a.example.com")]),
        (false, vec![domain("example.com")], vec![], vec![dns("example.org")]),
        (false, vec![domain("example.com")], vec![], vec![dns("a.example.com"), dns("b.org")]),
        (false, vec![], vec![domain("example.com")], vec![dns("a.EXAMPLE.com")]),
        (true, vec![], vec![domain("example.com")], vec![dns("a.example.org")]),
        (true, vec![domain("example.com")], vec![], vec![ip("192.0.2.1")]),
        (true, vec![network()], vec![], vec![ip("10.77.3.4")]),
        (false, vec![network()], vec![], vec![ip("10.78.3.4")]),
        (false, vec![network()], vec![], vec![ip("fd77::1")]),
        (false, vec![], vec![network()], vec![ip("10.77.3.4")]),
        (
            true,
            vec![GeneralSubtree::Rfc822Name("example.com".to_owned())],
            vec![],
            vec![email("a@example.com")],
        ),
        (
            false,
            vec![GeneralSubtree::Rfc822Name("example.com".to_owned())],
            vec![],
            vec![email("a@b.example.com")],
        ),
        (true, vec![subtree_dn("Example")], vec![], vec![]),
        (true, vec![subtree_dn("EXAMPLE")], vec![], vec![]),
        (false, vec![subtree_dn("Another")], vec![], vec![]),
        (false, vec![], vec![subtree_dn("Example")], vec![]),
        (true, vec![domain("example.com")], vec![], vec![uri("spiffe://ci.example.org/x")]),
    ];
    for (good, permitted_subtrees, excluded_subtrees, names) in cases {
        let what = format!("{permitted_subtrees:?} {excluded_subtrees:?} {names:?}");
        let limits = NameConstraints { permitted_subtrees, excluded_subtrees };
        let root_ca = root(|_| {});
        let limited = below(&root_ca, "Limited", |p| p.name_constraints = Some(limits.clone()));
        // They hold for the whole subtree, not for the next certificate alone.
        let lower = below(&limited, "Lower", |_| {});
        let leaf_der = leaf(&lower, |p| p.subject_alt_names = names.clone());
        let result = verify(&[leaf_der, der(&lower), der(&limited)], &root_ca);
        assert_eq!(result.is_ok(), good, "{what}: {result:?}");
        // RFC 5937: an anchor's constraints hold as well.
        let anchor = root(|p| p.name_constraints = Some(limits));
        let leaf_der = leaf(&anchor, |p| p.subject_alt_names = names);
        assert_eq!(verify(&[leaf_der], &anchor).is_ok(), good, "{what}, of the anchor");
    }
}

#[test]
fn every_rule_of_path_validation() {
    let root_ca = root(|_| {});
    let refused = |what: &str, chain: &[Vec<u8>], anchor: &Ca, expected: &str| {
        let error = verify(chain, anchor).map(|peer| panic!("{what}: {peer:?}")).unwrap_err();
        assert!(error.to_string().contains(expected), "{what}: {error}");
    };

    // 6.1.4 (k), (n): who may issue.
    let no_usage = below(&root_ca, "CA", |p| p.key_usages = vec![KeyUsagePurpose::CrlSign]);
    let chain = [leaf(&no_usage, |_| {}), der(&no_usage)];
    refused("keyCertSign", &chain, &root_ca, "key usage does not allow");
    let plain = below(&root_ca, "CA", |p| p.is_ca = IsCa::NoCa);
    let chain = [leaf(&plain, |_| {}), der(&plain)];
    refused("basicConstraints", &chain, &root_ca, "is not a CA certificate");

    // 6.1.4 (l), (m): path length, of the anchor as well; self-issued certificates do not count.
    let narrow = root(|p| p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)));
    let sub = below(&narrow, "Sub", |_| {});
    assert!(verify(&[leaf(&narrow, |_| {})], &narrow).is_ok());
    let chain = [leaf(&sub, |_| {}), der(&sub)];
    refused("the anchor's path length", &chain, &narrow, "allows fewer CAs below itself");
    let rolled = below(&narrow, "Root", |_| {});
    assert!(verify(&[leaf(&rolled, |_| {}), der(&rolled)], &narrow).is_ok());

    // 6.1.4 (o): critical extensions, in CAs as in leaves.
    let strange = |critical| {
        let mut extension =
            CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 9999, 1], vec![5, 0]);
        extension.set_criticality(critical);
        extension
    };
    let odd = below(&root_ca, "Odd", |p| p.custom_extensions = vec![strange(true)]);
    let chain = [leaf(&odd, |_| {}), der(&odd)];
    refused("critical extension", &chain, &root_ca, "critical extension that is not understood");
    let odd = below(&root_ca, "Odd", |p| p.custom_extensions = vec![strange(false)]);
    assert!(verify(&[leaf(&odd, |_| {}), der(&odd)], &root_ca).is_ok());

    // 4.2: no extension twice, and those of the standard parse.
    let twice = leaf(&root_ca, |p| {
        p.custom_extensions = vec![strange(false), strange(false)];
    });
    refused("twice", &[twice], &root_ca, "twice");
    let broken = leaf(&root_ca, |p| p.custom_extensions = vec![extension(36, false, vec![2, 1])]);
    refused("unparsable", &[broken], &root_ca, "does not parse");

    // 4.2.1.1: another key of the same name did not issue this one.
    let (one, two) = (below(&root_ca, "Same", |_| {}), below(&root_ca, "Same", |_| {}));
    let wanted = leaf(&one, |_| {});
    assert!(verify(&[wanted.clone(), der(&two), der(&one)], &root_ca).is_ok());
    refused("another key identifier", &[wanted, der(&two)], &root_ca, "none of the trusted");

    // What a CA is limited to, everything below it is.
    let for_servers = below(&root_ca, "TLS", |p| p.extended_key_usages = vec![Eku::ServerAuth]);
    let chain = [leaf(&for_servers, |_| {}), der(&for_servers)];
    refused("extended key usage of a CA", &chain, &root_ca, "not for IKE");
    let for_both = below(&root_ca, "Both", |p| {
        p.extended_key_usages = vec![Eku::ServerAuth, Eku::ClientAuth];
    });
    assert!(verify(&[leaf(&for_both, |_| {}), der(&for_both)], &root_ca).is_ok());

    // Depth: eight CAs between leaf and anchor, and no more than the list may hold.
    let mut cas = vec![below(&root_ca, "CA 0", |_| {})];
    for number in 1..9 {
        let next = below(&cas[number - 1], &format!("CA {number}"), |_| {});
        cas.push(next);
    }
    let chain_of = |count: usize| -> Vec<Vec<u8>> {
        let leaf = leaf(&cas[count - 1], |_| {});
        std::iter::once(leaf).chain(cas[..count].iter().map(der)).collect()
    };
    assert!(verify(&chain_of(8), &root_ca).is_ok());
    assert!(verify(&chain_of(9), &root_ca).is_err());
}

#[test]
fn the_path_that_was_found_is_told_leaf_first() {
    let root_ca = root(|_| {});
    let (upper, other) = (below(&root_ca, "Upper", |_| {}), below(&root_ca, "Other", |_| {}));
    let lower = below(&upper, "Lower", |_| {});
    let leaf_der = leaf(&lower, |_| {});
    let chain = [leaf_der.clone(), der(&other), der(&upper), der(&lower)];
    let path = verify(&chain, &root_ca).unwrap().path;
    assert_eq!(path, [leaf_der, der(&lower), der(&upper), der(&root_ca)]);
}

/// Eight CAs that all have one name and issued each other: orders without end, signatures with one.
#[test]
fn crossed_certificates_cost_a_bounded_number_of_signatures() {
    let unrelated = root(|p| {
        p.distinguished_name.push(DnType::LocalityName, "elsewhere");
    });
    let keys: Vec<Ca> =
        (0..3).map(|_| Ca::self_signed(maze(), KeyPair::generate().unwrap()).unwrap()).collect();
    let mut chain = vec![leaf(&keys[0], |p| p.use_authority_key_identifier_extension = false)];
    for issuer in &keys {
        for subject in &keys {
            let der = maze().signed_by(subject.key(), issuer).unwrap().der().to_vec();
            chain.push(der);
        }
    }
    let error = verify(&chain, &unrelated).unwrap_err().to_string();
    assert!(error.contains("in too many ways"), "{error}");
}

fn maze() -> CertificateParams {
    let mut params = ca_params("Maze");
    params.use_authority_key_identifier_extension = false;
    params.key_identifier_method = rcgen::KeyIdMethod::PreSpecified(vec![1]);
    params
}

/// RSA with PKCS#1 and PSS, made by OpenSSL; SHA-1 and short keys are refused.
#[test]
fn rsa_chains() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    std::fs::write(
        at("ext"),
        "[ca]\nbasicConstraints=critical,CA:true\nkeyUsage=critical,keyCertSign\n\
         [leaf]\nkeyUsage=digitalSignature\nextendedKeyUsage=clientAuth\n",
    )
    .unwrap();
    let make = |name: &str, bits: &str, extension: &str, issuer: Option<&str>, more: &[&str]| {
        let (key, csr, cert) =
            (at(&format!("{name}.key")), at(&format!("{name}.csr")), at(&format!("{name}.pem")));
        let bits = format!("rsa:{bits}");
        let subject = format!("/CN={name}");
        let request =
            ["req", "-new", "-newkey", &bits, "-nodes", "-keyout", &key, "-subj", &subject];
        openssl(&[&request[..], &["-out", &csr]].concat(), &[]);
        let file = at("ext");
        let mut words = vec!["x509", "-req", "-in", &csr, "-extfile", &file, "-days", "3650"];
        words.extend(["-extensions", extension, "-out", &cert]);
        let (ca, ca_key) = match issuer {
            Some(issuer) => (at(&format!("{issuer}.pem")), at(&format!("{issuer}.key"))),
            None => (String::new(), key.clone()),
        };
        if issuer.is_some() {
            words.extend(["-CA", &ca, "-CAkey", &ca_key, "-CAcreateserial"]);
        } else {
            words.extend(["-signkey", &ca_key]);
        }
        words.extend(more);
        openssl(&words, &[]);
        let der = at(&format!("{name}.der"));
        openssl(&["x509", "-in", &cert, "-outform", "der", "-out", &der], &[]);
        std::fs::read(der).unwrap()
    };
    let pss = ["-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:-1"];
    let anchor = make("root", "2048", "ca", None, &["-sha256"]);
    let sub = make("sub", "2048", "ca", Some("root"), &["-sha384"]);
    // OpenSSL dates what it makes by the real clock.
    let now = real_now().plus(std::time::Duration::from_secs(3_600));
    for (name, bits, more, good) in [
        ("pkcs1", "2048", vec!["-sha256"], true),
        ("sha512", "2048", vec!["-sha512"], true),
        ("pss", "2048", [&["-sha256"][..], &pss].concat(), true),
        ("sha1", "2048", vec!["-sha1"], false),
    ] {
        let leaf = make(name, bits, "leaf", Some("sub"), &more);
        let chain = [leaf, sub.clone()];
        let result = verify_peer(&chain, std::slice::from_ref(&anchor), None, now);
        assert_eq!(result.is_ok(), good, "{name}: {result:?}");
        if !good {
            assert!(matches!(result, Err(PeerError::UnsupportedAlgorithm { .. })), "{result:?}");
        }
    }
    let short = make("short", "1024", "ca", Some("root"), &["-sha256"]);
    let leaf = make("under", "2048", "leaf", Some("short"), &["-sha256"]);
    assert!(verify_peer(&[leaf, short], &[anchor], None, now).is_err());
}

#[allow(clippy::disallowed_methods)]
fn real_now() -> UnixTime {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    UnixTime::from_secs(since.as_secs() as i64)
}
