//! Targets for what enrolment reads before anybody has proved anything. Panics are findings.

use std::sync::{Arc, OnceLock};

use pki::enrol::est::{decode_body, parse_basic, parse_path};
use pki::store::MemoryStore;
use pki::validate::{end_of_validity, render_dn, same_dn, serial_of, verify_peer};
use pki::{
    Authority, Csr, EstOutcome, EstRequest, IkeId, Options, ServerNames, Settings, UnixTime,
    challenge_password,
};

/// A target's name and function.
pub type Target = (&'static str, fn(&[u8]));

/// All targets of this module.
pub const TARGETS: [Target; 3] =
    [("csr", fuzz_csr), ("est", fuzz_est), ("certificate", fuzz_certificate)];

const NOW: UnixTime = UnixTime::from_secs(1_795_305_600);

fn authority() -> &'static Authority {
    static AUTHORITY: OnceLock<Authority> = OnceLock::new();
    AUTHORITY.get_or_init(|| {
        let options = Options::new(Settings::new("ci.example.com"));
        Authority::with_store(Arc::new(MemoryStore::new()), &[7; 32], options, NOW)
            .expect("an empty store opens")
    })
}

/// A certification request: what is taken has a key that is part of it, and short words when not.
pub fn fuzz_csr(data: &[u8]) {
    match Csr::from_der(data) {
        Ok(csr) => {
            assert!(data.windows(csr.spki.len()).any(|part| part == csr.spki));
            assert_eq!(csr.spki_sha256.len(), 64);
        }
        Err(error) => assert!(error.to_string().len() < 1024, "{error}"),
    }
    if let Some(password) = challenge_password(data) {
        assert!(password.len() <= data.len());
    }
}

/// A request to the EST service: two lines, path and `Authorization`, then the body. Without a
/// token that we made nothing is issued, and the answer is short.
pub fn fuzz_est(data: &[u8]) {
    let mut parts = data.splitn(3, |octet| *octet == b'\n');
    let mut line = || std::str::from_utf8(parts.next().unwrap_or_default()).unwrap_or("/");
    let (path, header) = (line(), line());
    let body = parts.next().unwrap_or_default();
    if let Ok(der) = decode_body(body) {
        assert!(der.len() <= body.len());
    }
    if let Some(path) = parse_path(path) {
        assert_ne!(path.label, Some(""));
    }
    if let Some((user, password)) = parse_basic(header) {
        assert!(user.len() + password.len() < header.len());
    }
    for method in ["GET", "POST"] {
        let authorization = Some(header).filter(|header| !header.is_empty());
        let request =
            EstRequest { method, path, authorization, body, peer: None, client_chain: &[] };
        let reply = authority().est(&request, NOW);
        assert!(!matches!(reply.outcome, EstOutcome::Issued { .. }), "issued without a token");
        assert!(reply.body.len() < 16 * 1024);
    }
}

/// One certificate, its names and its key.
pub fn fuzz_certificate(data: &[u8]) {
    let _ = (serial_of(data), end_of_validity(data));
    let chain = [data.to_vec()];
    let id = IkeId { kind: 9, data };
    for anchors in [&chain[..], &authority().ca_certificates()] {
        if let Err(error) = verify_peer(&chain, anchors, Some(id), NOW) {
            assert!(!error.to_string().is_empty());
        }
    }
    assert!(render_dn(data).len() <= 8 * data.len() + 64);
    if same_dn(data, b"\x30\x00") {
        assert!(same_dn(b"\x30\x00", data), "names are the same in one direction only");
    }
}

/// Seeds: name, target and octets that reach deep.
pub fn seeds() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let server = authority().server_identity(&ServerNames::new("gw.example.com"), NOW);
    let chain = server.expect("a certificate is issued").chain;
    let root = authority().ca_certificates().remove(0);
    vec![("certificate", "gateway", chain[0].clone()), ("certificate", "root", root)]
}
