//! The responder and the revocation lists, judged by OpenSSL.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::*;
use der::asn1::{Null, ObjectIdentifier, OctetString};
use der::{Decode, Encode};
use pki::*;
use x509_cert::ext::Extension;
use x509_ocsp::{BasicOcspResponse, CertStatus, OcspRequest, OcspResponse, OcspResponseStatus};

/// Files that openssl works on.
struct Files {
    dir: tempfile::TempDir,
}

impl Files {
    fn new(authority: &Authority, leaf: &[u8]) -> Self {
        let files = Self { dir: tempfile::tempdir().unwrap() };
        let root = authority.root_pem();
        std::fs::write(files.at("root.pem"), &root).unwrap();
        std::fs::write(files.at("issuing.pem"), authority.issuing_pem()).unwrap();
        std::fs::write(files.at("bundle.pem"), root + &authority.issuing_pem()).unwrap();
        std::fs::write(files.at("leaf.pem"), pem(leaf)).unwrap();
        files
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The certificate asked about: a file, or a serial number that begins with `0x`.
    fn name(&self, command: &mut Command, issuer: &str, certificate: &str) {
        command.arg("-issuer").arg(self.at(issuer));
        match certificate.starts_with("0x") {
            true => command.args(["-serial", certificate]),
            false => command.arg("-cert").arg(self.at(certificate)),
        };
    }

    /// What `openssl ocsp` would send.
    fn request(&self, issuer: &str, certificate: &str, more: &[&str]) -> Vec<u8> {
        let mut command = Command::new("openssl");
        command.arg("ocsp").args(more);
        self.name(&mut command, issuer, certificate);
        command.arg("-reqout").arg(self.at("request.der"));
        assert!(command.output().unwrap().status.success());
        std::fs::read(self.at("request.der")).unwrap()
    }

    /// What `openssl ocsp` says about an answer; fails when it does not verify.
    fn judged(&self, issuer: &str, certificate: &str, reply: &OcspReply) -> String {
        std::fs::write(self.at("reply.der"), &reply.der).unwrap();
        let mut command = Command::new("openssl");
        command.args(["ocsp", "-sha1", "-no_nonce", "-attime", &NOW.secs().to_string()]);
        command.args(["-validity_period", "1000000000"]);
        self.name(&mut command, issuer, certificate);
        command.arg("-respin").arg(self.at("reply.der"));
        command.arg("-CAfile").arg(self.at("bundle.pem"));
        let output = command.output().unwrap();
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let errors = said(&output.stderr);
        assert!(errors.contains("Response verify OK"), "{errors}");
        said(&output.stdout)
    }
}

fn pem(der: &[u8]) -> String {
    let lines: Vec<String> = base64(der)
        .as_bytes()
        .chunks(64)
        .map(|line| String::from_utf8_lossy(line).into_owned())
        .collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

fn basic(reply: &OcspReply) -> BasicOcspResponse {
    let response = OcspResponse::from_der(&reply.der).unwrap();
    assert_eq!(response.response_status, OcspResponseStatus::Successful);
    BasicOcspResponse::from_der(response.response_bytes.unwrap().response.as_bytes()).unwrap()
}

fn only_status(reply: &OcspReply) -> CertStatus {
    let basic = basic(reply);
    let [single] = basic.tbs_response_data.responses.as_slice() else { panic!("one answer") };
    single.cert_status
}

fn revoke(authority: &Authority, serial: &Serial, now: UnixTime) {
    let selector = RevokeSelector::Serial(serial.clone());
    authority.revoke(&selector, RevocationReason::KeyCompromise, &OPERATOR, now).unwrap();
}

#[test]
fn openssl_accepts_good_revoked_and_unknown() {
    // RFC 6960 2.2, RFC 5019 2.2.
    let authority = authority();
    let (_, enrolled) = enrolled(&authority);
    let files = Files::new(&authority, &enrolled.certificate);
    for hash in ["-sha1", "-sha256"] {
        let request = files.request("issuing.pem", "leaf.pem", &["-no_nonce", hash]);
        let reply = authority.ocsp(&request, NOW);
        assert_eq!(reply.status, OcspStatus::Successful);
        assert!(matches!(only_status(&reply), CertStatus::Good(_)), "{hash}");
        if hash == "-sha1" {
            let said = files.judged("issuing.pem", "leaf.pem", &reply);
            assert!(said.contains("leaf.pem: good"), "{said}");
        }
    }

    let request = files.request("issuing.pem", "leaf.pem", &["-no_nonce"]);
    revoke(&authority, &enrolled.lease.certs[0].serial, after(5));
    let reply = authority.ocsp(&request, after(5));
    let said = files.judged("issuing.pem", "leaf.pem", &reply);
    assert!(said.contains("leaf.pem: revoked") && said.contains("keyCompromise"), "{said}");

    let request = files.request("issuing.pem", "0x1234", &["-no_nonce"]);
    let reply = authority.ocsp(&request, NOW);
    let said = files.judged("issuing.pem", "0x1234", &reply);
    assert!(said.contains("0x1234: unknown"), "{said}");
    assert_eq!(reply.cache_until, None, "it may be issued the next moment");
}

#[test]
fn the_answer_flips_with_the_revocation_also_for_a_kept_one() {
    // RFC 6960 2.2, RFC 5019 6.
    let authority = authority();
    let (_, enrolled) = enrolled(&authority);
    let files = Files::new(&authority, &enrolled.certificate);
    let request = files.request("issuing.pem", "leaf.pem", &["-no_nonce"]);
    let first = authority.ocsp(&request, NOW);
    assert_eq!(authority.ocsp(&request, after(59)).der, first.der, "kept for a minute");
    assert_ne!(authority.ocsp(&request, after(60)).der, first.der, "and then made anew");
    revoke(&authority, &enrolled.lease.certs[0].serial, after(61));
    assert!(matches!(only_status(&authority.ocsp(&request, after(61))), CertStatus::Revoked(_)));
}

#[test]
fn nonces_are_echoed_and_such_answers_are_for_one_client() {
    // RFC 8954 2.1, RFC 9654 2.1.
    let authority = authority();
    let (_, enrolled) = enrolled(&authority);
    let files = Files::new(&authority, &enrolled.certificate);
    let request = files.request("issuing.pem", "leaf.pem", &["-nonce"]);
    let sent = OcspRequest::from_der(&request).unwrap();
    let reply = authority.ocsp(&request, NOW);
    let nonce = sent.nonce().unwrap();
    assert_eq!(basic(&reply).nonce(), Some(nonce));
    assert_eq!(reply.cache_until, None);
    assert!(
        authority
            .ocsp(&files.request("issuing.pem", "leaf.pem", &["-no_nonce"]), NOW)
            .cache_until
            .is_some()
    );
}

/// RFC 8954 2.1 and RFC 9654 2.1: 1 to 128 octets.
#[test]
fn nonces_of_other_lengths_are_malformed() {
    let authority = authority();
    let (_, enrolled) = enrolled(&authority);
    let files = Files::new(&authority, &enrolled.certificate);
    let plain = files.request("issuing.pem", "leaf.pem", &["-no_nonce"]);
    let with_nonce = |length: usize, critical: bool| {
        let mut request = OcspRequest::from_der(&plain).unwrap();
        let inner = OctetString::new(vec![7; length]).unwrap().to_der().unwrap();
        request.tbs_request.request_extensions = Some(vec![Extension {
            extn_id: ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.48.1.2"),
            critical,
            extn_value: OctetString::new(inner).unwrap(),
        }]);
        authority.ocsp(&request.to_der().unwrap(), NOW).status
    };
    for (length, expected) in [
        (0, OcspStatus::MalformedRequest),
        (1, OcspStatus::Successful),
        (32, OcspStatus::Successful),
        (128, OcspStatus::Successful),
        (129, OcspStatus::MalformedRequest),
    ] {
        assert_eq!(with_nonce(length, false), expected, "{length}");
    }
    assert_eq!(with_nonce(16, true), OcspStatus::Successful);
}

#[test]
fn what_is_no_request_and_whom_nobody_here_speaks_for() {
    let authority = authority();
    let (_, enrolled) = enrolled(&authority);
    let files = Files::new(&authority, &enrolled.certificate);
    let good = files.request("issuing.pem", "leaf.pem", &["-no_nonce"]);
    let mut many = OcspRequest::from_der(&good).unwrap();
    let one = many.tbs_request.request_list[0].clone();
    many.tbs_request.request_list = vec![one.clone(); 17];
    let mut none = OcspRequest::from_der(&good).unwrap();
    none.tbs_request.request_list.clear();
    let mut critical = OcspRequest::from_der(&good).unwrap();
    critical.tbs_request.request_extensions = Some(vec![Extension {
        extn_id: ObjectIdentifier::new_unwrap("1.3.6.1.4.1.9999.1"),
        critical: true,
        extn_value: OctetString::new(Null.to_der().unwrap()).unwrap(),
    }]);
    for malformed in [
        Vec::new(),
        b"garbage".to_vec(),
        [good.clone(), vec![0]].concat(),
        many.to_der().unwrap(),
        none.to_der().unwrap(),
        critical.to_der().unwrap(),
        vec![0x30; 9000],
    ] {
        assert_eq!(authority.ocsp(&malformed, NOW).status, OcspStatus::MalformedRequest);
    }
    for end in 0..good.len() {
        assert_eq!(authority.ocsp(&good[..end], NOW).status, OcspStatus::MalformedRequest);
    }
    let stranger = common::authority();
    let reply = stranger.ocsp(&good, NOW);
    assert_eq!(reply.status, OcspStatus::Unauthorized);
    let response = OcspResponse::from_der(&reply.der).unwrap();
    assert_eq!(response.response_status, OcspResponseStatus::Unauthorized);
    let mut md5 = OcspRequest::from_der(&good).unwrap();
    let id = &mut md5.tbs_request.request_list[0].req_cert;
    id.hash_algorithm.oid = ObjectIdentifier::new_unwrap("1.2.840.113549.2.5");
    let reply = authority.ocsp(&md5.to_der().unwrap(), NOW);
    assert_eq!(reply.status, OcspStatus::Unauthorized);
}

#[test]
fn the_root_says_that_the_issuing_ca_is_good() {
    // RFC 6960 2.2, 4.2.2.2.
    let authority = authority();
    let (_, enrolled) = enrolled(&authority);
    let files = Files::new(&authority, &enrolled.certificate);
    let request = files.request("root.pem", "issuing.pem", &["-no_nonce"]);
    let reply = authority.ocsp(&request, NOW);
    let said = files.judged("root.pem", "issuing.pem", &reply);
    assert!(said.contains("issuing.pem: good"), "{said}");
}

#[test]
fn the_signer_is_a_delegate_that_lives_shortly_and_is_kept() {
    use x509_parser::prelude::*;
    let store = std::sync::Arc::new(store::MemoryStore::new());
    let authority = authority_on(store.clone());
    let (_, enrolled) = enrolled(&authority);
    let files = Files::new(&authority, &enrolled.certificate);
    let request = files.request("issuing.pem", "leaf.pem", &["-no_nonce"]);
    let signer = |authority: &Authority, now| {
        let reply = authority.ocsp(&request, now);
        basic(&reply).certs.unwrap().remove(0).to_der().unwrap()
    };
    let first = signer(&authority, NOW);
    let (_, certificate) = X509Certificate::from_der(&first).unwrap();
    let usage = certificate.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.ocsp_signing && !usage.client_auth && !usage.any);
    let no_check = oid_registry::asn1_rs::oid!(1.3.6.1.5.5.7.48.1.5);
    assert!(certificate.extensions().iter().any(|e| e.oid == no_check));
    assert!(
        authority.certificate(&Serial::from_bytes(certificate.raw_serial())).unwrap().is_some()
    );

    drop(authority);
    let again = authority_on(store);
    assert_eq!(signer(&again, after(60)), first, "restarted, the same signer");
    let day = 86_400;
    assert_eq!(signer(&again, after(9 * day)), first);
    assert_ne!(signer(&again, after(10 * day)), first, "renewed after two thirds");
    // It is for nothing else.
    let refused = again.verify_peer(&[first], None, NOW);
    assert!(matches!(refused, Err(PeerError::WrongUsage { .. })), "{refused:?}");
}

#[test]
fn our_own_answer_can_be_stapled() {
    let authority = authority();
    let server = authority.server_identity(&ServerNames::new("gw.example.com"), NOW).unwrap();
    let (leaf, issuing) = (&server.chain[0], &server.chain[1]);
    let files = Files::new(&authority, leaf);
    for (issuer, name, certificate) in
        [("issuing.pem", "leaf.pem", leaf), ("root.pem", "issuing.pem", issuing)]
    {
        let der = authority.ocsp_for(certificate, NOW).unwrap().unwrap();
        let reply =
            OcspReply { status: OcspStatus::Successful, der, cache_until: None, error: None };
        let said = files.judged(issuer, name, &reply);
        assert!(said.contains(&format!("{name}: good")), "{said}");
    }
    let stranger = common::authority();
    assert_eq!(stranger.ocsp_for(leaf, NOW).unwrap(), None);
}

/// `openssl verify -crl_check_all` with both lists, which it finds complete and in order.
#[test]
fn openssl_verifies_with_both_revocation_lists() {
    // RFC 5280 5.
    let authority = authority();
    let (_, enrolled) = enrolled(&authority);
    let files = Files::new(&authority, &enrolled.certificate);
    let crl = |name: &str, der: &[u8]| {
        let text = pem(der).replace("CERTIFICATE", "X509 CRL");
        std::fs::write(files.at(name), text).unwrap();
    };
    let verify = |files: &Files, now: UnixTime| {
        let mut command = Command::new("openssl");
        command.args(["verify", "-x509_strict", "-crl_check_all"]);
        command.args(["-attime", &now.secs().to_string()]);
        command.arg("-CAfile").arg(files.at("root.pem"));
        command.arg("-untrusted").arg(files.at("issuing.pem"));
        command.arg("-CRLfile").arg(files.at("issuing.crl"));
        command.arg("-CRLfile").arg(files.at("root.crl"));
        let output = command.arg(files.at("leaf.pem")).output().unwrap();
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    };
    crl("issuing.crl", &authority.crl(NOW).unwrap().der);
    crl("root.crl", &authority.root_crl(NOW).unwrap().der);
    let said = verify(&files, after(1));
    assert!(said.contains("leaf.pem: OK"), "{said}");

    let number = authority.crl(NOW).unwrap().number;
    revoke(&authority, &enrolled.lease.certs[0].serial, after(2));
    let list = authority.crl(after(2)).unwrap();
    assert!(list.number > number);
    crl("issuing.crl", &list.der);
    let said = verify(&files, after(3));
    assert!(said.contains("certificate revoked"), "{said}");
    let text = crl_text(&files.at("issuing.crl"));
    assert!(text.contains("X509v3 CRL Number") && text.contains("Key Compromise"), "{text}");
    assert!(text.contains("X509v3 Authority Key Identifier"), "{text}");
}

#[test]
fn the_roots_list_is_renewed_daily_and_never_expires() {
    // RFC 5280 5.1.2.5.
    let authority = authority();
    let day = 86_400;
    let first = authority.root_crl(NOW).unwrap();
    assert_eq!(authority.root_crl(after(day - 1)).unwrap(), first);
    let second = authority.root_crl(after(day)).unwrap();
    assert_eq!(second.number, first.number + 1);
    assert!(first.next_update > second.this_update);
    // The lists of the two CAs are numbered on their own.
    assert_eq!(authority.crl(NOW).unwrap().number, 1);
}

#[test]
fn the_issuing_certificate_says_where_its_status_is_told() {
    use x509_parser::prelude::*;
    let mut settings = settings();
    settings.status_url = Some("http://gw.example.com:8080".to_owned());
    let store = std::sync::Arc::new(store::MemoryStore::new());
    let authority = Authority::with_store(store, &[7; 32], Options::new(settings), NOW).unwrap();
    let der = authority.issuing_der();
    let (_, issuing) = X509Certificate::from_der(&der).unwrap();
    let text = format!("{:?}", issuing.extensions());
    for url in ["/crl/root.crl", "/ocsp", "/root.cer"] {
        let url = format!("http://gw.example.com:8080{url}");
        assert!(text.contains(&url), "{url} in {text}");
    }
}

fn crl_text(path: &Path) -> String {
    let path = path.display().to_string();
    openssl(&["crl", "-noout", "-text", "-in", &path], &[])
}

#[test]
fn a_revoked_signer_signs_nothing_more() {
    let authority = authority();
    let (_, enrolled) = enrolled(&authority);
    let files = Files::new(&authority, &enrolled.certificate);
    let request = files.request("issuing.pem", "leaf.pem", &["-no_nonce"]);
    let signer = |reply: &OcspReply| {
        let certificate = basic(reply).certs.unwrap().remove(0);
        Serial::from_bytes(certificate.tbs_certificate.serial_number.as_bytes())
    };
    let first = authority.ocsp(&request, NOW);
    assert_eq!(authority.ocsp(&request, after(1)).der, first.der, "it is given again");

    revoke(&authority, &signer(&first), after(2));

    let second = authority.ocsp(&request, after(3));
    assert_ne!(signer(&second), signer(&first));
    assert!(files.judged("issuing.pem", "leaf.pem", &second).contains("leaf.pem: good"));
    assert_eq!(authority.crl(after(3)).unwrap().entries, 1);
    assert_eq!(signer(&authority.ocsp(&request, after(4))), signer(&second), "it stays");
}

#[test]
fn many_first_questions_at_once_make_one_signer() {
    let authority = authority();
    let (_, enrolled) = enrolled(&authority);
    let files = Files::new(&authority, &enrolled.certificate);
    let request = files.request("issuing.pem", "leaf.pem", &[]);
    let barrier = std::sync::Barrier::new(8);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                barrier.wait();
                assert_eq!(authority.ocsp(&request, NOW).status, OcspStatus::Successful);
            });
        }
    });
    let audit = authority.audit(0, 1_000).unwrap();
    let made = audit.iter().filter(|r| r.event.reason.as_deref() == Some("OCSP signer")).count();
    assert_eq!(made, 1);
}
