//! NIST's public suite for path validation (PKITS 1.0.1): every certificate of a test, with its
//! expected outcome.
//!
//! `cargo xtask vectors` fetches the data, which is not ours to pass on. Each test is judged as the
//! gateway judges a client of an external CA in strict mode: a valid path, and for each certificate
//! below the anchor a list that says it is good.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use pki::UnixTime;
use pki::validate::{RevocationList, Standing, StatusError, questions, render_dn, verify_peer};
use x509_parser::prelude::*;

/// SHA-256 over every file's name and content, in order of names.
const DIGEST: &str = "a2469ba79bb2f93e609e6c880b339af2df503a8ffa472cf7294717d8304cd71d";

/// Within the validity of everything that is valid (2010 to 2030).
const NOW: UnixTime = UnixTime::from_secs(1_600_000_000);

/// How many tests there are.
const TESTS: usize = 223;

/// Tests whose names do not say how they end with the initial policy set anyPolicy and no policy
/// required (PKITS 4.8 and 4.12.3).
const POLICIES: [(&str, bool); 20] = [
    ("AllCertificatesNoPoliciesTest2EE", true),
    ("AllCertificatesSamePoliciesTest10EE", true),
    ("AllCertificatesSamePoliciesTest13EE", true),
    ("AllCertificatesanyPolicyTest11EE", true),
    ("AnyPolicyTest14EE", true),
    ("CPSPointerQualifierTest20EE", true),
    ("DifferentPoliciesTest12EE", false),
    ("DifferentPoliciesTest3EE", true),
    ("DifferentPoliciesTest4EE", false),
    ("DifferentPoliciesTest5EE", false),
    ("DifferentPoliciesTest7EE", false),
    ("DifferentPoliciesTest8EE", false),
    ("DifferentPoliciesTest9EE", false),
    ("OverlappingPoliciesTest6EE", true),
    ("UserNoticeQualifierTest15EE", true),
    ("UserNoticeQualifierTest16EE", true),
    ("UserNoticeQualifierTest17EE", true),
    ("UserNoticeQualifierTest18EE", true),
    ("UserNoticeQualifierTest19EE", true),
    ("inhibitAnyPolicyTest3EE", true),
];

/// Tests that end well with what Runnel does not do. Here they end with a refusal, in these words.
const REFUSED: [(&str, &str); 18] = [
    // A peer's own certificate is no CA's; the path above it is as good as the suite says.
    ("OverlappingPoliciesTest6EE", "is a CA certificate"),
    ("ValidonlyContainsCACertsTest13EE", "is a CA certificate"),
    ("ValidpathLenConstraintTest14EE", "is a CA certificate"),
    ("ValidpathLenConstraintTest8EE", "is a CA certificate"),
    // DSA is no algorithm of IKEv2 certificates any more.
    ("ValidDSAParameterInheritanceTest5EE", "algorithm that is not supported"),
    ("ValidDSASignaturesTest4EE", "algorithm that is not supported"),
    // Lists signed with a key that is in no certificate of the path.
    ("ValidBasicSelfIssuedCRLSigningKeyTest6EE", "signature of the list does not verify"),
    ("ValidBasicSelfIssuedNewWithOldTest4EE", "signature of the list does not verify"),
    ("ValidSeparateCertificateandCRLKeysTest19EE", "does not allow it to sign lists"),
    // Lists of another issuer's certificates, and those that such certificates name.
    ("ValidIDPwithindirectCRLTest22EE", "indirect"),
    ("ValidIDPwithindirectCRLTest24EE", "indirect"),
    ("ValidIDPwithindirectCRLTest25EE", "indirect"),
    ("ValidcRLIssuerTest28EE", "does not cover the certificate"),
    ("ValidcRLIssuerTest29EE", "does not cover the certificate"),
    ("ValidcRLIssuerTest30EE", "no list of its issuer"),
    ("ValidcRLIssuerTest33EE", "no list of its issuer"),
    // Lists of some reasons only are not put together.
    ("ValidonlySomeReasonsTest18EE", "some reasons"),
    ("ValidonlySomeReasonsTest19EE", "does not cover the certificate"),
];

/// Tests whose outcome only a delta list tells, which RFC 5280 5.2.4 leaves to choice: a certificate
/// that it takes off hold, and one that it revokes first.
const DELTA: [(&str, bool); 2] =
    [("ValiddeltaCRLTest5EE", false), ("InvaliddeltaCRLTest4EE", true)];

#[test]
fn the_public_suite_of_path_validation() {
    let suite = Suite::read();
    let mut wrong = Vec::new();
    let mut judged = 0;
    for (name, certificate) in suite.certificates.iter().filter(|(name, _)| name.ends_with("EE")) {
        judged += 1;
        let outcome = suite.judge(certificate);
        let refused = REFUSED.iter().find(|(known, _)| *known == name);
        let as_expected = match (refused, &outcome) {
            (Some((_, words)), Err(why)) => why.contains(words),
            (Some(_), Ok(())) => false,
            (None, outcome) => outcome.is_ok() == expected(name),
        };
        if !as_expected {
            wrong.push(format!("{name}: {outcome:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(judged, TESTS);
}

fn expected(name: &str) -> bool {
    match POLICIES.iter().chain(&DELTA).find(|(known, _)| *known == name) {
        Some((_, valid)) => *valid,
        None if name.starts_with("Valid") => true,
        None if name.starts_with("Invalid") => false,
        None => panic!("{name} is unknown"),
    }
}

struct Suite {
    /// By file name.
    certificates: BTreeMap<String, Vec<u8>>,
    /// By subject.
    by_subject: BTreeMap<String, Vec<Vec<u8>>>,
    /// By issuer.
    lists: BTreeMap<String, Vec<Result<RevocationList, StatusError>>>,
}

/// A name as names are compared, roughly; what fits is compared again by the code under test.
fn same(name: &X509Name<'_>) -> String {
    render_dn(name.as_raw()).to_lowercase().split_whitespace().collect()
}

impl Suite {
    fn read() -> Self {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().join("pkits");
        assert!(
            folder.exists(),
            "the public test vectors are not in {}: fetch them with `cargo xtask vectors`",
            folder.display()
        );
        let mut digest = ring::digest::Context::new(&ring::digest::SHA256);
        let mut read = |part: &str| {
            let mut files: Vec<PathBuf> = std::fs::read_dir(folder.join(part))
                .unwrap()
                .map(|file| file.unwrap().path())
                .collect();
            files.sort();
            let each = files.into_iter().map(|path| {
                let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
                let octets = std::fs::read(path).unwrap();
                digest.update(name.as_bytes());
                digest.update(&octets);
                (name, octets)
            });
            each.collect::<BTreeMap<_, _>>()
        };
        let certificates = read("certs");
        let mut by_subject: BTreeMap<String, Vec<Vec<u8>>> = BTreeMap::new();
        for der in certificates.values() {
            let (_, certificate) = X509Certificate::from_der(der).unwrap();
            by_subject.entry(same(certificate.subject())).or_default().push(der.clone());
        }
        let mut lists: BTreeMap<String, Vec<_>> = BTreeMap::new();
        for der in read("crls").into_values() {
            let (_, list) = CertificateRevocationList::from_der(&der).unwrap();
            let issuer = same(list.issuer());
            lists.entry(issuer).or_default().push(RevocationList::parse(der));
        }
        let found: String =
            digest.finish().as_ref().iter().map(|octet| format!("{octet:02x}")).collect();
        assert_eq!(found, DIGEST, "this is not the suite: remove the folder and fetch it again");
        Self { certificates, by_subject, lists }
    }

    fn judge(&self, certificate: &[u8]) -> Result<(), String> {
        let anchor = &self.certificates["TrustAnchorRootCertificate"];
        let peer = verify_peer(&self.chain(certificate), std::slice::from_ref(anchor), None, NOW)
            .map_err(|error| error.to_string())?;
        for (question, issuer) in questions(&peer.path).iter().zip(&peer.path[1..]) {
            let (_, issuer) = X509Certificate::from_der(issuer).unwrap();
            let of_issuer = self.lists.get(&same(issuer.subject())).into_iter().flatten();
            let mut good = false;
            let mut why = vec![question.subject.clone()];
            for list in of_issuer {
                match list
                    .as_ref()
                    .map_err(Clone::clone)
                    .and_then(|list| question.listed(list, NOW))
                {
                    Ok(Standing::Good { .. }) => good = true,
                    Ok(Standing::Revoked { .. }) => return Err("revoked".to_owned()),
                    Err(error) => why.push(error.0),
                }
            }
            if why.len() == 1 {
                why.push("no list of its issuer".to_owned());
            }
            if !good {
                return Err(why.join(": "));
            }
        }
        Ok(())
    }

    /// The certificate with everything above it, by names.
    fn chain(&self, certificate: &[u8]) -> Vec<Vec<u8>> {
        let mut chain = vec![certificate.to_vec()];
        let mut next = 0;
        while let Some(der) = chain.get(next).cloned() {
            next += 1;
            let (_, below) = X509Certificate::from_der(&der).unwrap();
            let above = self.by_subject.get(&same(below.issuer())).into_iter().flatten();
            for candidate in above {
                let is_root = *candidate == self.certificates["TrustAnchorRootCertificate"];
                if !is_root && !chain.contains(candidate) {
                    chain.push(candidate.clone());
                }
            }
        }
        chain
    }
}
