//! Opening the state directory: first start, later starts, and everything that stops it.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use common::*;
use pki::signer::{KeyAlgorithm, SignatureScheme, Signer};
use pki::*;
use x509_parser::prelude::*;

fn open(directory: &Path) -> Result<Authority, Error> {
    Authority::open(directory, Options::new(settings()), NOW)
}

fn open_again(directory: &Path) -> Result<Authority, Error> {
    reopen(directory, || Options::new(settings()), NOW)
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn the_first_start_creates_private_state() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("deep/state");
    let authority = open(&state).unwrap();
    assert!(authority.startup().created_ca && authority.is_exclusive());
    assert_eq!(mode(&state), 0o700);
    for file in ["seal.key", "runnel.db", "lock"] {
        assert_eq!(mode(&state.join(file)), 0o600, "{file}");
    }
    assert_eq!(authority.audit(0, 1).unwrap()[0].event.action, "ca.create");
    let status = authority.ca_status();
    assert_eq!(status.certificates.iter().map(|c| c.kind).collect::<Vec<_>>(), ["root", "issuing"]);
    assert_eq!(status.certificates[0].sha256, authority.root_fingerprint());
    let pems = [authority.root_pem(), authority.issuing_pem()].concat();
    let text = openssl(&["x509", "-noout", "-text"], pems.as_bytes());
    assert!(text.contains("CA:TRUE") && text.contains("Certificate Sign, CRL Sign"), "{text}");
    assert!(text.contains("ASN1 OID: prime256v1"), "{text}");
}

#[test]
fn no_private_key_lies_in_the_store_in_clear() {
    let directory = tempfile::tempdir().unwrap();
    let authority = open(directory.path()).unwrap();
    let identity = authority.server_identity(&ServerNames::new("gw.example.com"), NOW).unwrap();
    let pkcs8 = identity.signer.pkcs8().to_vec();
    // The private scalar follows the ECPrivateKey header; look for it raw and as base64.
    let scalar = &pkcs8[36..68];
    drop(authority);
    let files = std::fs::read_dir(directory.path()).unwrap();
    let database: Vec<u8> =
        files.flat_map(|file| std::fs::read(file.unwrap().path()).unwrap()).collect();
    assert!(database.len() > 4_096);
    let contains = |needle: &[u8]| database.windows(needle.len()).any(|window| window == needle);
    assert!(!contains(scalar));
    assert!((0..3).all(|skip| !contains(&base64(&scalar[skip..]).as_bytes()[..32])));
    assert!(!format!("{identity:?}").contains(&base64(&pkcs8)));
}

#[test]
fn one_process_at_a_time() {
    let directory = tempfile::tempdir().unwrap();
    let first = open(directory.path()).unwrap();
    let error = open(directory.path()).unwrap_err();
    assert_eq!(error, Error::InUse(directory.path().to_owned()));
    drop(first);
    assert!(open_again(directory.path()).is_ok());
}

#[test]
fn a_lost_or_wrong_sealing_key_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let root = open(directory.path()).unwrap().root_pem();
    let key = directory.path().join("seal.key");
    let original = std::fs::read(&key).unwrap();
    std::fs::remove_file(&key).unwrap();
    let error = open_again(directory.path()).unwrap_err().to_string();
    assert!(error.contains("seal.key is missing"), "{error}");
    assert!(!key.exists(), "a new key would only hide the loss");

    std::fs::write(&key, "00".repeat(32)).unwrap();
    let error = open_again(directory.path()).unwrap_err().to_string();
    assert!(error.contains("does not open"), "{error}");
    std::fs::write(&key, "short").unwrap();
    let error = open_again(directory.path()).unwrap_err().to_string();
    assert!(error.contains("has 5 bytes: it must be 32"), "{error}");

    // The same key given from elsewhere.
    let elsewhere = directory.path().join("credential");
    std::fs::write(&elsewhere, original).unwrap();
    std::fs::remove_file(&key).unwrap();
    let options = || {
        let mut options = Options::new(settings());
        options.seal_key = Some(elsewhere.clone());
        options
    };
    let authority = reopen(directory.path(), options, NOW).unwrap();
    assert_eq!(authority.root_pem(), root);
    assert!(!authority.startup().seal_key_beside_state && !key.exists());
}

#[test]
fn mistakes_leave_nothing_behind() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state");
    let mut bad_settings = settings();
    bad_settings.roles.insert("x".to_owned(), RoleProfile::new("no such pool"));
    let error = Authority::open(&state, Options::new(bad_settings), NOW).unwrap_err();
    assert!(error.to_string().contains("which is not defined"), "{error}");
    let mut options = Options::new(settings());
    options.seal_key = Some(directory.path().join("missing"));
    let error = Authority::open(&state, options, NOW).unwrap_err().to_string();
    assert!(error.contains("cannot read the sealing key"), "{error}");
    assert!(!state.exists());

    std::fs::write(&state, "a file").unwrap();
    let error = open(&state).unwrap_err().to_string();
    assert!(error.contains("cannot create the state directory"), "{error}");
}

#[test]
fn settings_that_cannot_work() {
    let broken = |change: &dyn Fn(&mut Settings)| {
        let mut settings = settings();
        change(&mut settings);
        settings.validate().unwrap_err().to_string()
    };
    let networks =
        |nets: &[&str]| PoolConfig::new(nets.iter().map(|n| n.parse().unwrap()).collect());
    for (expected, message) in [
        ("is not a DNS name", broken(&|s| s.trust_domain = "Not A Domain".to_owned())),
        ("at most 64", broken(&|s| s.trust_domain = format!("{0}.{0}", "a".repeat(40)))),
        (
            "cannot be part of a DNS name",
            broken(&|s| {
                s.roles.insert("a b".to_owned(), RoleProfile::new("runners"));
            }),
        ),
        (
            "too small",
            broken(&|s| {
                s.pools.insert("p".to_owned(), networks(&["10.0.0.1/32"]));
            }),
        ),
        (
            "has no addresses",
            broken(&|s| {
                s.pools.insert("p".to_owned(), networks(&[]));
            }),
        ),
        (
            "overlaps",
            broken(&|s| {
                s.pools.insert("p".to_owned(), networks(&["10.77.0.128/25"]));
            }),
        ),
        (
            "overlaps",
            broken(&|s| {
                s.pools.insert("p".to_owned(), networks(&["fd00::/64", "fd00::/96"]));
            }),
        ),
    ] {
        assert!(message.contains(expected), "{expected}: {message}");
    }
}

#[test]
fn the_gateway_certificate_is_kept_until_it_must_change() {
    let directory = tempfile::tempdir().unwrap();
    let authority = open(directory.path()).unwrap();
    let names = ServerNames {
        id: "gw.example.com".to_owned(),
        dns: vec!["gw.example.com".to_owned(), "alt.example.com".to_owned()],
        addresses: vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
    };
    let first = authority.server_identity(&names, NOW).unwrap();
    assert!(first.issued_now);
    let text = openssl(&["x509", "-inform", "DER", "-noout", "-text"], &first.chain[0]);
    // Later versions of OpenSSL print names without the spaces.
    let text = text.replace(" = ", "=");
    for expected in [
        "DNS:gw.example.com, DNS:alt.example.com, IP Address:192.0.2.1",
        "TLS Web Server Authentication",
        "1.3.6.1.5.5.8.2.2",
        "Digital Signature",
        "Subject: CN=gw.example.com, O=ci.example.com",
    ] {
        assert!(text.contains(expected), "{expected} not in {text}");
    }
    let again = authority.server_identity(&names, after(3_600)).unwrap();
    assert!(!again.issued_now);
    assert_eq!(again.chain, first.chain);
    assert_eq!(again.signer.pkcs8(), first.signer.pkcs8());
    // Near its end, after revocation, and for other names there is a new one.
    let renewed = authority.server_identity(&names, first.renew_at).unwrap();
    assert!(renewed.issued_now && renewed.not_after > first.not_after);
    let serial = validate::serial_of(&renewed.chain[0]).unwrap();
    let now = first.renew_at;
    authority
        .revoke(&RevokeSelector::Serial(serial), RevocationReason::KeyCompromise, &OPERATOR, now)
        .unwrap();
    assert!(authority.server_identity(&names, now).unwrap().issued_now);
    assert_eq!(authority.crl(now).unwrap().entries, 1);
    let by_address = ServerNames::new("192.0.2.7");
    let other = authority.server_identity(&by_address, now).unwrap();
    let text = openssl(&["x509", "-inform", "DER", "-noout", "-text"], &other.chain[0]);
    assert!(text.contains("IP Address:192.0.2.7") && !text.contains("DNS:"), "{text}");
    let wrong = authority.server_identity(&ServerNames::new("not a name"), now);
    assert!(matches!(wrong, Err(Error::Invalid(_))));
}

#[test]
fn signatures_verify_under_their_scheme() {
    use SignatureScheme as Scheme;
    use ring::signature as rs;
    let rsa = openssl(
        &[
            "genpkey",
            "-quiet",
            "-algorithm",
            "RSA",
            "-pkeyopt",
            "rsa_keygen_bits:2048",
            "-outform",
            "PEM",
        ],
        b"",
    );
    let rsa: String = rsa.lines().filter(|line| !line.starts_with("-----")).collect();
    let rsa = signer::FileSigner::from_pkcs8(unbase64(rsa.as_bytes()).into()).unwrap();
    assert_eq!(rsa.algorithm(), KeyAlgorithm::Rsa);
    let generate = |algorithm| signer::FileSigner::generate(algorithm).unwrap();
    let p256 = generate(signer::KeyKind::EcdsaP256);
    let p384 = generate(signer::KeyKind::EcdsaP384);
    let ed25519 = generate(signer::KeyKind::Ed25519);
    let cases: [(&signer::FileSigner, Scheme, &dyn rs::VerificationAlgorithm); 11] = [
        (&p256, Scheme::EcdsaAsn1, &rs::ECDSA_P256_SHA256_ASN1),
        (&p256, Scheme::EcdsaFixed, &rs::ECDSA_P256_SHA256_FIXED),
        (&p384, Scheme::EcdsaAsn1, &rs::ECDSA_P384_SHA384_ASN1),
        (&p384, Scheme::EcdsaFixed, &rs::ECDSA_P384_SHA384_FIXED),
        (&ed25519, Scheme::Ed25519, &rs::ED25519),
        (&rsa, Scheme::RsaPkcs1Sha256, &rs::RSA_PKCS1_2048_8192_SHA256),
        (&rsa, Scheme::RsaPkcs1Sha384, &rs::RSA_PKCS1_2048_8192_SHA384),
        (&rsa, Scheme::RsaPkcs1Sha512, &rs::RSA_PKCS1_2048_8192_SHA512),
        (&rsa, Scheme::RsaPssSha256, &rs::RSA_PSS_2048_8192_SHA256),
        (&rsa, Scheme::RsaPssSha384, &rs::RSA_PSS_2048_8192_SHA384),
        (&rsa, Scheme::RsaPssSha512, &rs::RSA_PSS_2048_8192_SHA512),
    ];
    for (key, scheme, algorithm) in cases {
        let signature = key.sign_with(scheme, b"message").unwrap();
        let (_, spki) = SubjectPublicKeyInfo::from_der(key.public_key_der()).unwrap();
        let public = rs::UnparsedPublicKey::new(algorithm, &spki.subject_public_key.data);
        assert!(public.verify(b"message", &signature).is_ok(), "{scheme:?}");
        assert!(public.verify(b"massage", &signature).is_err(), "{scheme:?}");
    }
    assert!(p256.sign_with(Scheme::RsaPssSha256, b"x").is_err());
    assert!(rsa.sign_with(Scheme::EcdsaAsn1, b"x").is_err());
    assert!(signer::FileSigner::from_pkcs8(vec![0x30, 0].into()).is_err());
}
