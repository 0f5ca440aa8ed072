//! EST request bodies as clients really send them, and random ones.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Client, base64};
use pki::enrol::est::{EstPath, MAX_BODY, Operation, decode_body, parse_basic, parse_path};
use pki::{Csr, RefusalCode};
use proptest::prelude::*;

fn wrapped(text: &str, width: usize, end: &str) -> String {
    let lines: Vec<_> = text
        .as_bytes()
        .chunks(width)
        .map(|line| format!("{}{end}", std::str::from_utf8(line).unwrap()))
        .collect();
    lines.concat()
}

#[test]
fn oddities_of_known_clients() {
    let der = Client::new().csr_der();
    let text = base64(&der);
    let pem = |label: &str, end: &str| {
        format!("-----BEGIN {label}-----{end}{}-----END {label}-----{end}", wrapped(&text, 64, end))
    };
    for (what, body) in [
        ("one line", text.clone().into_bytes()),
        ("one line with newline", format!("{text}\n").into_bytes()),
        ("wrapped at 64", wrapped(&text, 64, "\n").into_bytes()),
        ("wrapped at 76 with CRLF", wrapped(&text, 76, "\r\n").into_bytes()),
        ("leading blank lines", format!("\r\n\r\n{text}").into_bytes()),
        ("stray octets after the padding", format!("{text}==\0\0").into_bytes()),
        ("trailing zero octets", [text.as_bytes(), &[0, 0]].concat()),
        ("padding left out", text.trim_end_matches('=').as_bytes().to_vec()),
        ("tabs and spaces", wrapped(&text, 50, " \t").into_bytes()),
        ("PEM", pem("CERTIFICATE REQUEST", "\n").into_bytes()),
        ("PEM with CRLF", pem("NEW CERTIFICATE REQUEST", "\r\n").into_bytes()),
        ("DER", der.clone()),
    ] {
        assert_eq!(decode_body(&body).unwrap(), der, "{what}");
    }
    let stray = [der.clone(), vec![0, 0]].concat();
    assert!(Csr::from_der(&decode_body(&stray).unwrap()).is_ok(), "DER with stray octets");
}

#[test]
fn what_is_no_request() {
    for (what, body) in [
        ("nothing", &b""[..]),
        ("blank", b" \r\n\r\n"),
        ("padding only", b"===="),
        ("HTML", b"<html>not base64</html>"),
        ("JSON", b"{\"csr\": 1}"),
        ("base64url", b"MIIB-_-_"),
        ("UTF-16", b"\xff\xfeM\0I\0"),
        ("one character", b"M"),
    ] {
        assert_eq!(decode_body(body).unwrap_err().code, RefusalCode::MalformedRequest, "{what}");
    }
    let large = vec![b'A'; MAX_BODY + 1];
    assert_eq!(decode_body(&large).unwrap_err().code, RefusalCode::TooLarge);
}

#[test]
fn the_three_forms_of_a_path() {
    let path = |operation, label| Some(EstPath { operation, label });
    use Operation as Op;
    for (text, expected) in [
        ("/.well-known/est/cacerts", path(Op::CaCerts, None)),
        ("/.well-known/est/cacerts/", path(Op::CaCerts, None)),
        ("/.well-known/est/ci/simpleenroll", path(Op::SimpleEnroll, Some("ci"))),
        ("/ci/.well-known/est/simpleenroll", path(Op::SimpleEnroll, Some("ci"))),
        ("//ci/.well-known/est/simpleenroll", path(Op::SimpleEnroll, Some("ci"))),
        ("/tenant/x/.well-known/est/csrattrs", path(Op::CsrAttrs, Some("tenant/x"))),
        ("/.well-known/est/simplereenroll", path(Op::SimpleReenroll, None)),
        ("/.well-known/est/ci", None),
        ("/.well-known/est", None),
        ("/.well-known/est/ci/", None),
        ("/a/.well-known/est/b/cacerts", None),
        ("/.well-known/est/SIMPLEENROLL", None),
        ("/.well-known/acme/cacerts", None),
        ("", None),
    ] {
        assert_eq!(parse_path(text), expected, "{text}");
    }
}

#[test]
fn basic_credentials() {
    let header = |text: &str| format!("Basic {}", base64(text.as_bytes()));
    let parsed = |header: &str| parse_basic(header).map(|(user, pass)| (user, pass.to_string()));
    let pair = |user: &str, password: &str| Some((user.to_owned(), password.to_owned()));
    assert_eq!(parsed(&header("builder:abc")), pair("builder", "abc"));
    assert_eq!(parsed(&header("builder:a:b")), pair("builder", "a:b"));
    assert_eq!(parsed(&header(":abc")), pair("", "abc"));
    assert_eq!(parsed(&header("a:b").replace("Basic", "bAsIc")), pair("a", "b"));
    for bad in ["", "Basic", "Basic ", "Basic *", "Bearer YTpi", &header("no colon")] {
        assert_eq!(parsed(bad), None, "{bad}");
    }
    let not_text = format!("Basic {}", base64(&[0xff, b':', 0xff]));
    assert_eq!(parsed(&not_text), None);
}

proptest! {
    #[test]
    fn any_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        if let Ok(der) = decode_body(&bytes) {
            let _ = Csr::from_der(&der);
        }
        let _ = Csr::from_der(&bytes);
        let _ = pki::challenge_password(&bytes);
        let _ = pki::validate::verify_peer(
            std::slice::from_ref(&bytes),
            std::slice::from_ref(&bytes),
            None,
            common::NOW,
        );
        let text = String::from_utf8_lossy(&bytes);
        let _ = (parse_path(&text), parse_basic(&text), text.parse::<pki::Serial>());
    }

    /// One altered octet anywhere: never a panic, never another key.
    #[test]
    fn altered_requests_never_change_the_key(position in any::<prop::sample::Index>(), bit in 0u8..8) {
        let der = Client::new().csr_der();
        let original = Csr::from_der(&der).unwrap();
        let mut altered = der.clone();
        altered[position.index(der.len())] ^= 1 << bit;
        if let Ok(csr) = Csr::from_der(&altered) {
            prop_assert_eq!(csr, original);
        }
        let _ = pki::challenge_password(&altered);
    }

    #[test]
    fn any_client_chain_and_credentials_get_an_answer(
        method in "GET|POST|PUT",
        path in "/(\\.well-known/est/)?[a-z/]{0,20}",
        authorization in proptest::option::of(".{0,40}"),
        body in proptest::collection::vec(any::<u8>(), 0..100),
        chain in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..3),
    ) {
        thread_local!(static AUTHORITY: pki::Authority = common::authority());
        let request = pki::EstRequest {
            method: &method,
            path: &path,
            authorization: authorization.as_deref(),
            body: &body,
            peer: None,
            client_chain: &chain,
        };
        let status = AUTHORITY.with(|authority| authority.est(&request, common::NOW).status);
        prop_assert!(matches!(status, 200 | 204 | 400..=501));
    }
}
