//! Targets for what strangers send about certificates. Panics are findings.

use std::sync::{Arc, OnceLock};

use pki::store::MemoryStore;
use pki::validate::{RevocationList, Standing, StatusQuestion, questions, verify_peer};
use pki::{Authority, IkeId, OcspStatus, Options, ServerNames, Settings, UnixTime};

/// A target's name and function.
pub type Target = (&'static str, fn(&[u8]));

/// All targets of this module.
pub const TARGETS: [Target; 4] = [
    ("ocsp-request", fuzz_ocsp_request),
    ("peer-chain", fuzz_peer_chain),
    ("ocsp-answer", fuzz_ocsp_answer),
    ("crl", fuzz_crl),
];

const NOW: UnixTime = UnixTime::from_secs(1_795_305_600);

fn authority() -> &'static Authority {
    static AUTHORITY: OnceLock<Authority> = OnceLock::new();
    AUTHORITY.get_or_init(|| {
        let options = Options::new(Settings::new("ci.example.com"));
        Authority::with_store(Arc::new(MemoryStore::new()), &[7; 32], options, NOW)
            .expect("an empty store opens")
    })
}

/// The body of an OCSP request: there is always an answer, and it is small.
pub fn fuzz_ocsp_request(data: &[u8]) {
    let reply = authority().ocsp(data, NOW);
    assert_ne!(reply.status, OcspStatus::InternalError, "{:?}", reply.error);
    assert!(reply.der.len() < 16 * 1024);
}

/// Certificates as a peer sends them: each preceded by two octets of length. The last one is also
/// tried as trust anchor, so that whole paths are walked.
pub fn fuzz_peer_chain(data: &[u8]) {
    let mut chain = Vec::new();
    let mut rest = data;
    while let Some((length, after)) = rest.split_first_chunk::<2>() {
        let length = usize::from(u16::from_be_bytes(*length)).min(after.len());
        let (der, after) = after.split_at(length);
        chain.push(der.to_vec());
        rest = after;
    }
    let ours = authority().ca_certificates();
    let anchors: Vec<Vec<u8>> = chain.last().into_iter().chain(&ours).cloned().collect();
    let id = IkeId { kind: 2, data: b"gw.example.com" };
    if let Err(error) = verify_peer(&chain, &anchors, Some(id), NOW) {
        assert!(!error.to_string().is_empty());
    }
}

/// A question about the gateway's own certificate.
fn question() -> StatusQuestion {
    let server = authority().server_identity(&ServerNames::new("gw.example.com"), NOW);
    questions(&server.expect("a certificate is issued").chain).remove(0)
}

/// A responder's answer: what is altered proves nothing else than what was signed.
pub fn fuzz_ocsp_answer(data: &[u8]) {
    if let Ok(standing) = question().answer(data, NOW) {
        assert!(matches!(standing, Standing::Good { .. }), "nothing here was ever revoked");
    }
}

/// A revocation list.
pub fn fuzz_crl(data: &[u8]) {
    if let Ok(list) = RevocationList::parse(data.to_vec())
        && let Ok(standing) = question().listed(&list, NOW)
    {
        assert!(matches!(standing, Standing::Good { .. }), "nothing here was ever revoked");
    }
}

/// Seeds: name, target and octets that reach deep.
pub fn seeds() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let server = authority().server_identity(&ServerNames::new("gw.example.com"), NOW);
    let chain = server.expect("a certificate is issued").chain;
    let mut octets = Vec::new();
    for der in chain.iter().chain(&authority().ca_certificates()) {
        octets.extend(u16::try_from(der.len()).unwrap_or(u16::MAX).to_be_bytes());
        octets.extend(der);
    }
    let answer = authority().ocsp_for(&chain[0], NOW).expect("the store is there");
    let list = authority().crl(NOW).expect("the store is there").der.clone();
    vec![
        ("peer-chain", "gateway", octets),
        ("ocsp-answer", "good", answer.expect("the certificate is ours")),
        ("crl", "empty", list),
    ]
}
