//! RFC 5280 6.1.1 to 6.1.5 letter by letter: for each rule a path that obeys it, and one that differs
//! in nothing else and is refused for it.

use super::*;

/// Every rule, in the RFC's order. The revocation of 6.1.3 (a) (3) and 6.3.3 is judged by its own
/// tests (`each_rule_of_revocation_lists_accepts_and_refuses`).
const RULES: &[&str] = &[
    "6.1.1 (a)",
    "6.1.1 (b)",
    "6.1.1 (c)",
    "6.1.1 (d)",
    "6.1.1 (e)",
    "6.1.1 (f)",
    "6.1.1 (g)",
    "6.1.1 (h)",
    "6.1.1 (i)",
    "6.1.2 (a)",
    "6.1.2 (b)",
    "6.1.2 (c)",
    "6.1.2 (d)",
    "6.1.2 (e)",
    "6.1.2 (f)",
    "6.1.2 (g)",
    "6.1.2 (h)",
    "6.1.2 (i)",
    "6.1.2 (j)",
    "6.1.2 (k)",
    "6.1.3 (a)(1)",
    "6.1.3 (a)(2)",
    "6.1.3 (a)(4)",
    "6.1.3 (b)",
    "6.1.3 (c)",
    "6.1.3 (d)(1)(i)",
    "6.1.3 (d)(1)(ii)",
    "6.1.3 (d)(2)",
    "6.1.3 (d)(3)",
    "6.1.3 (e)",
    "6.1.3 (f)",
    "6.1.4 (a)",
    "6.1.4 (b)(1)",
    "6.1.4 (b)(2)",
    "6.1.4 (c)",
    "6.1.4 (d)",
    "6.1.4 (e)",
    "6.1.4 (f)",
    "6.1.4 (g)(1)",
    "6.1.4 (g)(2)",
    "6.1.4 (h)(1)",
    "6.1.4 (h)(2)",
    "6.1.4 (h)(3)",
    "6.1.4 (i)(1)",
    "6.1.4 (i)(2)",
    "6.1.4 (j)",
    "6.1.4 (k)",
    "6.1.4 (l)",
    "6.1.4 (m)",
    "6.1.4 (n)",
    "6.1.4 (o)",
    "6.1.5 (a)",
    "6.1.5 (b)",
    "6.1.5 (c)",
    "6.1.5 (d)",
    "6.1.5 (e)",
    "6.1.5 (f)",
    "6.1.5 (g)",
];

type Verdict = Result<VerifiedPeer, PeerError>;

/// A rule, a path that obeys it, one that does not, and what is said of that.
struct Vector(&'static str, Verdict, Verdict, &'static str);

const NO_WAY: &str = "leads to none of the trusted roots";
const BAD_SIGNATURE: &str = "does not verify";
const NO_ALGORITHM: &str = "an algorithm that is not supported";
const NO_POLICY: &str = "requires a certificate policy";
const NAME: &str = "does not allow this name";
const TOO_DEEP: &str = "allows fewer CAs below itself";

type Extensions = Vec<CustomExtension>;

/// A path over CAs of these names, each with its extensions, the highest first.
fn path(cas: &[(&str, Extensions)], last: Extensions) -> Verdict {
    let root_ca = root(|_| {});
    let mut chain: Vec<Ca> = Vec::new();
    for (name, extensions) in cas {
        let issuer = chain.last().unwrap_or(&root_ca);
        let next = below(issuer, name, |p| p.custom_extensions = extensions.clone());
        chain.push(next);
    }
    let leaf = leaf(chain.last().unwrap(), |p| p.custom_extensions = last);
    let ders: Vec<Vec<u8>> = std::iter::once(leaf).chain(chain.iter().rev().map(der)).collect();
    verify(&ders, &root_ca)
}

/// As [`with_extensions`], of policies only.
fn asserting(first: Extensions, second: &[u8], last: &[u8]) -> Verdict {
    let of = |numbers: &[u8]| match numbers {
        [] => vec![],
        numbers => vec![policies(numbers)],
    };
    with_extensions(first, of(second), of(last))
}

/// A CA of this name with this key, below an issuer or by itself.
fn with_key(issuer: Option<&Ca>, name: &str, key: KeyPair) -> Ca {
    let params = ca_params(name);
    match issuer {
        Some(issuer) => Ca::signed_by(params, key, issuer).unwrap(),
        None => Ca::self_signed(params, key).unwrap(),
    }
}

fn same_key(ca: &Ca) -> KeyPair {
    KeyPair::try_from(ca.key().serialize_der()).unwrap()
}

/// A leaf that does not say which key issued it.
fn unnamed(issuer: &Ca) -> Vec<u8> {
    leaf(issuer, |p| p.use_authority_key_identifier_extension = false)
}

/// The leaf of this CA, judged with another of its name or key in its place.
fn in_place(issuer: &Ca, other: &Ca, anchor: Option<&Ca>) -> [Verdict; 2] {
    let leaf = unnamed(issuer);
    [issuer, other].map(|ca| match anchor {
        Some(anchor) => verify(&[leaf.clone(), der(ca)], anchor),
        None => verify(std::slice::from_ref(&leaf), ca),
    })
}

fn permitting(names: &[&str]) -> NameConstraints {
    let permitted_subtrees =
        names.iter().map(|name| GeneralSubtree::DnsName((*name).to_owned())).collect();
    NameConstraints { permitted_subtrees, excluded_subtrees: vec![] }
}

fn excluding(name: &str) -> NameConstraints {
    let excluded_subtrees = vec![GeneralSubtree::DnsName(name.to_owned())];
    NameConstraints { permitted_subtrees: vec![], excluded_subtrees }
}

/// The leaf r-1.example.com under two CAs with these constraints.
fn limited(upper: Option<NameConstraints>, lower: Option<NameConstraints>) -> Verdict {
    let root_ca = root(|_| {});
    let upper = below(&root_ca, "Upper", |p| p.name_constraints = upper);
    let lower = below(&upper, "Lower", |p| p.name_constraints = lower);
    verify(&[leaf(&lower, |_| {}), der(&lower), der(&upper)], &root_ca)
}

/// The same leaf under an anchor with these.
fn limited_anchor(constraints: Option<NameConstraints>) -> Verdict {
    let anchor = root(|p| p.name_constraints = constraints);
    verify(&[leaf(&anchor, |_| {})], &anchor)
}

/// Two CAs, with how many each allows below itself.
fn lengths(upper: Option<u8>, lower: &str) -> Verdict {
    let root_ca = root(|_| {});
    let constraint = upper.map_or(BasicConstraints::Unconstrained, BasicConstraints::Constrained);
    let upper = below(&root_ca, "Upper", |p| p.is_ca = IsCa::Ca(constraint));
    let lower = below(&upper, lower, |_| {});
    verify(&[leaf(&lower, |_| {}), der(&lower), der(&upper)], &root_ca)
}

/// A CA with this change between leaf and anchor.
fn through(change: impl FnOnce(&mut CertificateParams)) -> Verdict {
    let root_ca = root(|_| {});
    let ca = below(&root_ca, "CA", change);
    verify(&[leaf(&ca, |_| {}), der(&ca)], &root_ca)
}

fn strange(critical: bool) -> Extensions {
    let mut extension = CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 9999, 1], vec![5, 0]);
    extension.set_criticality(critical);
    vec![extension]
}

fn explicit() -> CustomExtension {
    constraints(Some(0), None)
}

/// 6.1.1: what goes in. The policy inputs (c), (e), (f), (g) have the RFC's widest values, which the
/// first path of each shows; only certificates narrow them.
fn inputs() -> Vec<Vector> {
    let root_ca = root(|_| {});
    let (ca, other) = (below(&root_ca, "CA", |_| {}), below(&root_ca, "Other", |_| {}));
    let chain = [leaf(&ca, |_| {}), der(&ca)];
    let gap = [chain[0].clone(), der(&other)];
    let stranger = root(|p| p.distinguished_name.push(DnType::LocalityName, "elsewhere"));
    let at = |days: u64| verify_peer(&chain, &[der(&root_ca)], None, after(days * 86_400));
    let mapped = |mapping| {
        with_extensions(
            vec![policies(&[1]), constraints(Some(0), mapping)],
            vec![policies(&[1]), mappings(&[(1, 2)])],
            vec![policies(&[2])],
        )
    };
    let any = |inhibit: Option<u8>| {
        let inhibit = inhibit.map(inhibit_any);
        let first = [policies(&[ANY]), explicit()].into_iter().chain(inhibit).collect();
        asserting(first, &[ANY], &[1])
    };
    let throughout = |last: &[u8]| asserting(vec![policies(&[ANY]), explicit()], &[ANY], last);
    vec![
        Vector("6.1.1 (a)", verify(&chain, &root_ca), verify(&gap, &root_ca), NO_WAY),
        Vector("6.1.1 (b)", at(0), at(2), "expired at"),
        Vector("6.1.1 (c)", throughout(&[7]), throughout(&[]), NO_POLICY),
        Vector("6.1.1 (d)", verify(&chain, &root_ca), verify(&chain, &stranger), NO_WAY),
        Vector("6.1.1 (e)", mapped(None), mapped(Some(0)), NO_POLICY),
        Vector(
            "6.1.1 (f)",
            asserting(vec![], &[], &[]),
            asserting(vec![explicit()], &[], &[]),
            NO_POLICY,
        ),
        Vector("6.1.1 (g)", any(None), any(Some(0)), NO_POLICY),
        // RFC 5937: an anchor's own constraints are inputs.
        Vector(
            "6.1.1 (h)",
            limited_anchor(None),
            limited_anchor(Some(permitting(&["example.org"]))),
            NAME,
        ),
        Vector(
            "6.1.1 (i)",
            limited_anchor(None),
            limited_anchor(Some(excluding("example.com"))),
            NAME,
        ),
    ]
}

/// 6.1.2: what the state begins with.
fn initialization() -> Vec<Vector> {
    let depth = |skip| asserting(vec![constraints(Some(skip), None)], &[], &[]);
    let any = |skip| asserting(vec![policies(&[1]), explicit(), inhibit_any(skip)], &[ANY], &[1]);
    let mapping = |skip| {
        with_extensions(
            vec![policies(&[1]), constraints(Some(0), Some(skip))],
            vec![policies(&[1]), mappings(&[(1, 2)])],
            vec![policies(&[2])],
        )
    };
    let keyed = |algorithm| {
        let anchor = with_key(None, "Root", KeyPair::generate().unwrap());
        in_place(&anchor, &with_key(None, "Root", KeyPair::generate_for(algorithm).unwrap()), None)
    };
    let [algorithm, other_algorithm] = keyed(&rcgen::PKCS_ED25519);
    let [key, other_key] = keyed(&rcgen::PKCS_ECDSA_P256_SHA256);
    let [curve, other_curve] = keyed(&rcgen::PKCS_ECDSA_P384_SHA384);
    let anchor = root(|_| {});
    let renamed = with_key(None, "Another", same_key(&anchor));
    let [named, other_name] = in_place(&anchor, &renamed, None);
    let allowing = |constraint| {
        let anchor = root(|p| p.is_ca = IsCa::Ca(constraint));
        let upper = below(&anchor, "Upper", |_| {});
        let lower = below(&upper, "Lower", |_| {});
        verify(&[leaf(&lower, |_| {}), der(&lower), der(&upper)], &anchor)
    };
    vec![
        Vector(
            "6.1.2 (a)",
            asserting(vec![policies(&[1]), explicit()], &[1], &[1]),
            asserting(vec![explicit()], &[1], &[1]),
            NO_POLICY,
        ),
        Vector(
            "6.1.2 (b)",
            limited(None, None),
            limited(Some(permitting(&["example.org"])), None),
            NAME,
        ),
        Vector(
            "6.1.2 (c)",
            limited(None, None),
            limited(Some(excluding("example.com")), None),
            NAME,
        ),
        Vector("6.1.2 (d)", depth(3), depth(1), NO_POLICY),
        Vector("6.1.2 (e)", any(1), any(0), NO_POLICY),
        Vector("6.1.2 (f)", mapping(1), mapping(0), NO_POLICY),
        Vector("6.1.2 (g)", algorithm, other_algorithm, NO_ALGORITHM),
        Vector("6.1.2 (h)", key, other_key, BAD_SIGNATURE),
        Vector("6.1.2 (i)", curve, other_curve, BAD_SIGNATURE),
        Vector("6.1.2 (j)", named, other_name, NO_WAY),
        Vector(
            "6.1.2 (k)",
            allowing(BasicConstraints::Unconstrained),
            allowing(BasicConstraints::Constrained(1)),
            TOO_DEEP,
        ),
    ]
}

/// 6.1.3: each certificate.
fn processing() -> Vec<Vector> {
    let root_ca = root(|_| {});
    let ca = below(&root_ca, "CA", |_| {});
    let good = leaf(&ca, |_| {});
    let mut altered = good.clone();
    *altered.last_mut().unwrap() ^= 1;
    let of = |leaf: Vec<u8>| verify(&[leaf, der(&ca)], &root_ca);
    let late = leaf(&ca, |p| p.not_before = params("").not_after);
    let renamed = with_key(Some(&root_ca), "Another", same_key(&ca));
    let [named, other_name] = in_place(&ca, &renamed, Some(&root_ca));
    let throughout = |numbers: [&[u8]; 3]| {
        asserting(vec![policies(numbers[0]), explicit()], numbers[1], numbers[2])
    };
    let inhibited = asserting(vec![policies(&[1]), explicit(), inhibit_any(0)], &[ANY], &[1]);
    vec![
        Vector("6.1.3 (a)(1)", of(good.clone()), of(altered), BAD_SIGNATURE),
        Vector("6.1.3 (a)(2)", of(good), of(late), "not valid before"),
        Vector("6.1.3 (a)(4)", named, other_name, NO_WAY),
        Vector(
            "6.1.3 (b)",
            limited(None, Some(permitting(&["example.com"]))),
            limited(None, Some(permitting(&["example.org"]))),
            NAME,
        ),
        Vector(
            "6.1.3 (c)",
            limited(None, Some(excluding("example.org"))),
            limited(None, Some(excluding("r-1.example.com"))),
            NAME,
        ),
        Vector(
            "6.1.3 (d)(1)(i)",
            throughout([&[1], &[1], &[1]]),
            throughout([&[1], &[1], &[2]]),
            NO_POLICY,
        ),
        Vector(
            "6.1.3 (d)(1)(ii)",
            throughout([&[ANY], &[ANY], &[7]]),
            throughout([&[ANY], &[1], &[7]]),
            NO_POLICY,
        ),
        Vector("6.1.3 (d)(2)", throughout([&[1], &[ANY], &[1]]), inhibited, NO_POLICY),
        Vector(
            "6.1.3 (d)(3)",
            throughout([&[1, 2], &[1, 2], &[2]]),
            throughout([&[1, 2], &[1], &[2]]),
            NO_POLICY,
        ),
        Vector(
            "6.1.3 (e)",
            throughout([&[1], &[1], &[1]]),
            throughout([&[1], &[1], &[]]),
            NO_POLICY,
        ),
        Vector(
            "6.1.3 (f)",
            asserting(vec![policies(&[1])], &[], &[1]),
            throughout([&[1], &[], &[1]]),
            NO_POLICY,
        ),
    ]
}

/// 6.1.4 (a), (b), (h) to (j): what a CA says of policies.
fn policies_below() -> Vec<Vector> {
    let mapping = |pairs: &[(u8, u8)]| {
        let first = vec![policies(&[1]), explicit(), mappings(pairs)];
        asserting(first, &[2], &[2])
    };
    let inhibited = |from: Option<u8>| {
        path(
            &[
                ("CA 1", vec![policies(&[1]), constraints(Some(0), from)]),
                ("CA 2", vec![policies(&[1]), mappings(&[(1, 2)])]),
            ],
            vec![policies(&[2])],
        )
    };
    // A CA that only changed its key counts for none of the three (h).
    let required = |second: &str| {
        path(&[("CA 1", vec![constraints(Some(2), None)]), (second, vec![])], vec![])
    };
    let mapped = |second: &str| {
        path(
            &[
                ("CA 1", vec![policies(&[1]), constraints(Some(0), Some(1))]),
                (second, vec![policies(&[1])]),
                ("CA 3", vec![policies(&[1]), mappings(&[(1, 2)])]),
            ],
            vec![policies(&[2])],
        )
    };
    let any = |second: &str| {
        path(
            &[
                ("CA 1", vec![policies(&[1]), explicit(), inhibit_any(1)]),
                (second, vec![policies(&[1])]),
            ],
            vec![policies(&[ANY])],
        )
    };
    let explicit_of = |skip: u8| asserting(vec![constraints(Some(skip), None)], &[], &[]);
    let any_of =
        |skip| asserting(vec![policies(&[1]), explicit(), inhibit_any(skip)], &[ANY], &[1]);
    vec![
        Vector("6.1.4 (a)", mapping(&[(1, 2)]), mapping(&[(ANY, 2)]), "maps anyPolicy"),
        Vector("6.1.4 (a)", mapping(&[(1, 2)]), mapping(&[(1, ANY)]), "maps anyPolicy"),
        Vector("6.1.4 (b)(1)", mapping(&[(1, 2)]), mapping(&[(1, 3)]), NO_POLICY),
        Vector("6.1.4 (b)(2)", inhibited(None), inhibited(Some(0)), NO_POLICY),
        Vector("6.1.4 (h)(1)", required("CA 1"), required("CA 2"), NO_POLICY),
        Vector("6.1.4 (h)(2)", mapped("CA 1"), mapped("CA 2"), NO_POLICY),
        Vector("6.1.4 (h)(3)", any("CA 1"), any("CA 2"), NO_POLICY),
        Vector("6.1.4 (i)(1)", explicit_of(3), explicit_of(0), NO_POLICY),
        Vector("6.1.4 (i)(2)", inhibited(Some(1)), inhibited(Some(0)), NO_POLICY),
        Vector("6.1.4 (j)", any_of(1), any_of(0), NO_POLICY),
    ]
}

/// The rest of 6.1.4: who may issue, with which key, whom.
fn issuers() -> Vec<Vector> {
    let root_ca = root(|_| {});
    let ca = below(&root_ca, "CA", |_| {});
    let renamed = with_key(Some(&root_ca), "Another", same_key(&ca));
    let [named, other_name] = in_place(&ca, &renamed, Some(&root_ca));
    let keyed = |algorithm| {
        let other = with_key(Some(&root_ca), "CA", KeyPair::generate_for(algorithm).unwrap());
        in_place(&ca, &other, Some(&root_ca))
    };
    let [key, other_key] = keyed(&rcgen::PKCS_ECDSA_P256_SHA256);
    let [curve, other_curve] = keyed(&rcgen::PKCS_ECDSA_P384_SHA384);
    let [algorithm, other_algorithm] = keyed(&rcgen::PKCS_ED25519);
    let own = |constraint: BasicConstraints| {
        let lower = below(&root_ca, "Lower", |p| p.is_ca = IsCa::Ca(constraint));
        let last = below(&lower, "Last", |_| {});
        verify(&[leaf(&last, |_| {}), der(&last), der(&lower)], &root_ca)
    };
    vec![
        Vector("6.1.4 (c)", named, other_name, NO_WAY),
        Vector("6.1.4 (d)", key, other_key, BAD_SIGNATURE),
        Vector("6.1.4 (e)", curve, other_curve, BAD_SIGNATURE),
        Vector("6.1.4 (f)", algorithm, other_algorithm, NO_ALGORITHM),
        Vector(
            "6.1.4 (g)(1)",
            limited(
                Some(permitting(&["example.com", "example.org"])),
                Some(permitting(&["example.com"])),
            ),
            limited(
                Some(permitting(&["example.com", "example.org"])),
                Some(permitting(&["example.org"])),
            ),
            NAME,
        ),
        // What a CA permits, one above it may have ruled out.
        Vector(
            "6.1.4 (g)(1)",
            limited(Some(permitting(&["example.com"])), Some(permitting(&["example.com"]))),
            limited(Some(permitting(&["example.org"])), Some(permitting(&["example.com"]))),
            NAME,
        ),
        Vector(
            "6.1.4 (g)(2)",
            limited(Some(excluding("example.org")), Some(excluding("example.net"))),
            limited(Some(excluding("example.com")), Some(excluding("example.net"))),
            NAME,
        ),
        Vector("6.1.4 (k)", through(|_| {}), through(|p| p.is_ca = IsCa::NoCa), "is not a CA"),
        Vector(
            "6.1.4 (k)",
            through(|_| {}),
            through(|p| p.is_ca = IsCa::ExplicitNoCa),
            "is not a CA",
        ),
        // Self-issued certificates do not count.
        Vector("6.1.4 (l)", lengths(Some(0), "Upper"), lengths(Some(0), "Lower"), TOO_DEEP),
        Vector(
            "6.1.4 (m)",
            own(BasicConstraints::Constrained(1)),
            own(BasicConstraints::Constrained(0)),
            TOO_DEEP,
        ),
        Vector(
            "6.1.4 (n)",
            through(|p| p.key_usages = vec![KeyUsagePurpose::KeyCertSign]),
            through(|p| p.key_usages = vec![KeyUsagePurpose::CrlSign]),
            "key usage does not allow",
        ),
        Vector(
            "6.1.4 (o)",
            through(|p| p.custom_extensions = strange(false)),
            through(|p| p.custom_extensions = strange(true)),
            "critical extension that is not understood",
        ),
    ]
}

/// 6.1.5: the target.
fn wrap_up() -> Vec<Vector> {
    let root_ca = root(|_| {});
    let explicit_of = |skip| asserting(vec![constraints(Some(skip), None)], &[], &[]);
    let own = |first, second, mut last: Extensions| {
        last.push(explicit());
        with_extensions(first, second, last)
    };
    // (c) to (e): the key that comes out is the one in the certificate, with algorithm and curve.
    let keyed = |algorithm| {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let mut params = params("r-1");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let good = params.signed_by(&key, &root_ca).unwrap().der().to_vec();
        let public = rcgen::PublicKeyData::der_bytes(&key).to_vec();
        let at = good.windows(public.len()).position(|window| window == public).unwrap();
        let mut other = good.clone();
        other[at + public.len() - 1] ^= 1;
        let good = verify(&[good], &root_ca);
        let spki = &good.as_ref().unwrap().spki;
        assert!(spki.windows(public.len()).any(|window| window == public));
        assert_eq!(*spki, rcgen::PublicKeyData::subject_public_key_info(&key));
        (good, verify(&[other], &root_ca))
    };
    let [key, curve, algorithm] =
        [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519]
            .map(keyed);
    let ending = |extensions: Extensions| {
        verify(&[leaf(&root_ca, |p| p.custom_extensions = extensions)], &root_ca)
    };
    let throughout = |last: &[u8]| asserting(vec![policies(&[1, 2]), explicit()], &[1, 2], last);
    vec![
        Vector("6.1.5 (a)", explicit_of(3), explicit_of(2), NO_POLICY),
        Vector(
            "6.1.5 (b)",
            own(vec![policies(&[1])], vec![policies(&[1])], vec![policies(&[1])]),
            own(vec![policies(&[1])], vec![], vec![policies(&[1])]),
            NO_POLICY,
        ),
        Vector("6.1.5 (c)", key.0, key.1, BAD_SIGNATURE),
        Vector("6.1.5 (d)", curve.0, curve.1, BAD_SIGNATURE),
        Vector("6.1.5 (e)", algorithm.0, algorithm.1, BAD_SIGNATURE),
        Vector(
            "6.1.5 (f)",
            ending(strange(false)),
            ending(strange(true)),
            "critical extension that is not understood",
        ),
        Vector("6.1.5 (g)", throughout(&[2]), throughout(&[3]), NO_POLICY),
    ]
}

#[test]
fn each_rule_accepts_and_refuses() {
    let vectors =
        [inputs(), initialization(), processing(), policies_below(), issuers(), wrap_up()];
    let vectors: Vec<Vector> = vectors.into_iter().flatten().collect();
    let mut wrong = Vec::new();
    for Vector(rule, good, bad, says) in &vectors {
        if let Err(error) = good {
            wrong.push(format!("{rule} is obeyed and refused: {error}"));
        }
        match bad {
            Ok(peer) => wrong.push(format!("{rule} is not obeyed and accepted: {peer:?}")),
            Err(error) if !error.to_string().contains(says) => {
                wrong.push(format!("{rule} is not what it is refused for: {error}"));
            }
            Err(_) => {}
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let mut missing = RULES.to_vec();
    missing.retain(|rule| !vectors.iter().any(|vector| vector.0 == *rule));
    assert!(missing.is_empty(), "no vectors for {missing:?}");
    assert!(vectors.iter().all(|vector| RULES.contains(&vector.0)));
}
