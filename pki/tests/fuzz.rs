//! Replays the corpus of the fuzz targets that read what strangers send about certificates, tokens
//! and requests for certificates, and damages their seeds octet by octet.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod common;
#[path = "../../tests/fuzz/src/enrol.rs"]
pub mod enrol;
#[path = "../../tests/fuzz/src/jwt.rs"]
pub mod jwt;
#[path = "../../tests/fuzz/src/status.rs"]
pub mod status;
#[path = "../../tests/fuzz/src/webhook.rs"]
pub mod webhook;

use std::path::PathBuf;

use common::{Client, NOW, OPERATOR, after, authority, basic, enrolled};
use pki::{RevocationReason, RevokeSelector};

fn corpus(target: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/corpus").join(target)
}

#[test]
fn the_corpus_of_certificates_and_status_requests_holds() {
    let targets = status::TARGETS.into_iter().chain(jwt::TARGETS).chain(enrol::TARGETS);
    let targets = targets.chain(webhook::TARGETS);
    let seeds: Vec<_> = status::seeds()
        .into_iter()
        .chain(jwt::seeds())
        .chain(enrol::seeds())
        .chain(webhook::seeds())
        .collect();
    for (name, target) in targets {
        let mut inputs: Vec<Vec<u8>> = std::fs::read_dir(corpus(name))
            .unwrap_or_else(|error| panic!("{name} has no corpus: {error}"))
            .map(|entry| std::fs::read(entry.unwrap().path()).unwrap())
            .collect();
        assert!(!inputs.is_empty(), "{name} has no corpus");
        let own = seeds.iter().filter(|seed| seed.0 == name);
        inputs.extend(own.map(|seed| seed.2.clone()));
        for input in inputs {
            target(&input);
            for position in 0..input.len() {
                let mut damaged = input.clone();
                damaged[position] ^= 1 << (position % 8);
                target(&damaged);
                target(&input[..position]);
            }
        }
    }
}

/// What `BLESS=1` writes: requests of stock clients, and what an authority of one day says. Its keys
/// are others each time, so what is committed is not compared.
#[test]
fn the_corpus_is_made_of_what_stock_clients_and_authorities_say() {
    let vector = |name: &str| {
        let path = format!("{}/tests/vectors/csr/{name}.pem", env!("CARGO_MANIFEST_DIR"));
        pki::enrol::est::decode_body(&std::fs::read(path).unwrap()).unwrap()
    };
    let mut made: Vec<(&str, &str, Vec<u8>)> =
        ["p256-sha256", "ed25519", "rsa2048-pss-sha256", "challenge-password", "explicit-curve"]
            .map(|name| ("csr", name, vector(name)))
            .into();
    let request = |path: &str, header: &str, body: &[u8]| {
        [path.as_bytes(), b"\n", header.as_bytes(), b"\n", body].concat()
    };
    let (enroll, client) = ("/.well-known/est/simpleenroll", Client::new());
    made.extend([
        ("est", "enroll", request(enroll, &basic("builder", "rt_wrong"), &client.body())),
        ("est", "labelled", request("/.well-known/est/builder/simpleenroll", "", &client.body())),
        ("est", "der", request("/builder/.well-known/est/simplereenroll", "", &client.csr_der())),
        ("est", "token", request(enroll, "", &client.csr_with_password("e30.e30.AAAA"))),
        ("est", "cacerts", request("/.well-known/est/cacerts", "", b"")),
    ]);
    let authority = authority();
    let ((_, good), (_, bad)) = (enrolled(&authority), enrolled(&authority));
    let serial = RevokeSelector::Serial(bad.lease.certs[0].serial.clone());
    authority.revoke(&serial, RevocationReason::KeyCompromise, &OPERATOR, after(10)).unwrap();
    let answer = |der: &[u8]| authority.ocsp_for(der, after(20)).unwrap().unwrap();
    made.extend([
        ("certificate", "lease", good.certificate.clone()),
        ("certificate", "root", authority.ca_certificates().remove(0)),
        ("crl", "one", authority.crl(after(20)).unwrap().der.clone()),
        ("crl", "none", common::authority().crl(NOW).unwrap().der.clone()),
        ("ocsp-answer", "good", answer(&good.certificate)),
        ("ocsp-answer", "revoked", answer(&bad.certificate)),
    ]);
    let certificates = |chain: &[&Vec<u8>]| {
        let one = |der: &&Vec<u8>| [&(der.len() as u16).to_be_bytes()[..], der].concat();
        chain.iter().flat_map(one).collect::<Vec<u8>>()
    };
    let cas = authority.ca_certificates();
    let (root, leaf) = (&cas[0], &good.certificate);
    let other = common::authority().ca_certificates().remove(0);
    let names = pki::ServerNames::new("gw.example.com");
    let server = authority.server_identity(&names, NOW).unwrap().chain;
    let mut whole: Vec<&Vec<u8>> = server.iter().collect();
    whole.extend(&cas);
    made.extend([
        ("peer-chain", "client", certificates(&[leaf, root])),
        ("peer-chain", "gateway", certificates(&whole)),
        ("peer-chain", "alone", certificates(&[leaf])),
        ("peer-chain", "another_root", certificates(&[leaf, &other])),
        ("peer-chain", "turned_round", certificates(&[root, leaf])),
        ("peer-chain", "twice", certificates(&[leaf, leaf, root, root])),
    ]);
    for (target, name, octets) in made {
        assert!((8..4096).contains(&octets.len()), "{target}/{name}: {} octets", octets.len());
        let path = corpus(target).join(name);
        if std::env::var_os("BLESS").is_some() {
            std::fs::create_dir_all(corpus(target)).unwrap();
            std::fs::write(&path, octets).unwrap();
        }
        assert!(path.exists(), "{}: BLESS=1 writes it", path.display());
    }
}
