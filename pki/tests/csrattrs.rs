//! What a role wants of a client's key, told before the client makes one (RFC 7030 4.5, RFC 9908).
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::*;
use pki::enrol::csrattrs::wanting;
use pki::signer::KeyKind;
use pki::store::MemoryStore;
use pki::*;
use std::sync::Arc;

const P256: &str = "3050\
    3015 06072a8648ce3d0201 310a 06082a8648ce3d030107\
    06082a8648ce3d040302\
    302d 060b2a864886f70d010910023d 311e 301c 020100\
    a015 3013 06072a8648ce3d0201 06082a8648ce3d030107 a100";
const P384: &str = "304a\
    3012 06072a8648ce3d0201 3107 06052b81040022\
    06082a8648ce3d040303\
    302a 060b2a864886f70d010910023d 311b 3019 020100\
    a012 3010 06072a8648ce3d0201 06052b81040022 a100";
const ED25519: &str = "302a 3007 06032b6570 3100\
    301f 060b2a864886f70d010910023d 3110 300e 020100 a007 3005 06032b6570 a100";
const RSA_HEAD: &str = "308201e2\
    3011 06092a864886f70d010101 3104 02020c00\
    06092a864886f70d01010b\
    308201c0 060b2a864886f70d010910023d 318201af 308201ab 020100\
    a08201a2 300d 06092a864886f70d010101 0500 0382018f 00 3082018a 02820181 0080";

fn octets(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(|digit| *digit != b' ').collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

/// An authority whose roles want these keys.
fn wanting_of(roles: &[(&str, &[KeyKind])]) -> Authority {
    let mut settings = settings();
    settings.roles.clear();
    for (name, keys) in roles {
        let profile = RoleProfile { keys: keys.to_vec(), ..RoleProfile::new("runners") };
        settings.roles.insert((*name).to_owned(), profile);
    }
    let store = Arc::new(MemoryStore::new());
    Authority::with_store(store, &[7; 32], Options::new(settings), NOW).unwrap()
}

fn ask(authority: &Authority, path: &str, authorization: Option<&str>) -> (u16, Vec<u8>) {
    let reply = authority.est(&est_request(path, authorization, b""), NOW);
    if reply.status == 200 {
        let kind = ("Content-Type", "application/csrattrs".to_owned());
        assert!(reply.headers.contains(&kind), "{:?}", reply.headers);
        assert!(!reply.body.contains(&b'\n'));
    }
    (reply.status, unbase64(&reply.body))
}

#[test]
fn the_encoding_is_exact() {
    assert_eq!(wanting(KeyKind::EcdsaP256).unwrap(), octets(P256));
    assert_eq!(wanting(KeyKind::EcdsaP384).unwrap(), octets(P384));
    assert_eq!(wanting(KeyKind::Ed25519).unwrap(), octets(ED25519));
    // The rest of the modulus of 3072 bits, the exponent, and no attributes.
    let rest = [vec![0; 383], octets("0203010001 a100")].concat();
    assert_eq!(wanting(KeyKind::Rsa3072).unwrap(), [octets(RSA_HEAD), rest].concat());
}

#[test]
fn openssl_reads_every_answer_to_its_end() {
    for kind in KeyKind::ALL {
        let text = openssl(&["asn1parse", "-inform", "DER"], &wanting(kind).unwrap());
        assert!(text.contains("1.2.840.113549.1.9.16.2.61"), "{kind}: {text}");
        let wanted = match kind {
            KeyKind::EcdsaP256 => ["prime256v1", "ecdsa-with-SHA256"],
            KeyKind::EcdsaP384 => ["secp384r1", "ecdsa-with-SHA384"],
            KeyKind::Ed25519 => ["ED25519", "cont [ 0 ]"],
            KeyKind::Rsa3072 => [":0C00", "sha256WithRSAEncryption"],
            KeyKind::Rsa4096 => [":1000", "sha256WithRSAEncryption"],
        };
        assert!(wanted.iter().all(|part| text.contains(part)), "{kind}: {text}");
        // Nobody is asked for a challengePassword, where platforms' tokens go.
        assert!(!text.contains("challengePassword"));
    }
}

#[test]
fn the_role_in_the_url_or_the_credentials_decides() {
    let authority = wanting_of(&[
        ("builder", &[KeyKind::EcdsaP384, KeyKind::Rsa4096]),
        ("router", &[KeyKind::Rsa3072]),
        ("any", &[]),
    ]);
    let p384 = (200, octets(P384));
    assert_eq!(ask(&authority, "/.well-known/est/builder/csrattrs", None), p384);
    assert_eq!(ask(&authority, "/builder/.well-known/est/csrattrs", None), p384);
    let user = basic("builder", "some-token");
    assert_eq!(ask(&authority, "/.well-known/est/csrattrs", Some(&user)), p384);
    let router = ask(&authority, "/.well-known/est/router/csrattrs", None);
    assert_eq!(router, (200, wanting(KeyKind::Rsa3072).unwrap()));
    // Nothing is wanted of any key, roles differ, or there is no such role.
    for path in ["/any/.well-known/est/csrattrs", "/.well-known/est/csrattrs"] {
        assert_eq!(ask(&authority, path, None), (204, Vec::new()), "{path}");
    }
    assert_eq!(ask(&authority, "/.well-known/est/nobody/csrattrs", None).0, 204);
}

#[test]
fn what_all_roles_want_needs_no_role() {
    let p256: &[KeyKind] = &[KeyKind::EcdsaP256];
    let authority = wanting_of(&[("a", p256), ("b", &[KeyKind::EcdsaP256, KeyKind::Ed25519])]);
    assert_eq!(ask(&authority, "/.well-known/est/csrattrs", None), (200, octets(P256)));
    let posted =
        EstRequest { method: "POST", ..est_request("/.well-known/est/csrattrs", None, b"") };
    assert_eq!(authority.est(&posted, NOW).status, 405);
}

#[test]
fn a_key_of_another_kind_opens_nothing_and_spends_nothing() {
    let authority = wanting_of(&[("builder", &[KeyKind::EcdsaP384, KeyKind::Rsa4096])]);
    let secret = token(&authority);
    let client = Client::new();
    let enrol = |csr: &Csr| authority.enrol_with_token("builder", secret.expose(), csr, None, NOW);
    let refusal = enrol(&client.csr()).unwrap_err();
    assert_eq!((refusal.code, refusal.code.status()), (RefusalCode::UnacceptableKey, 400));
    assert_eq!(
        refusal.detail,
        "the request carries an ecdsa-p256 key, role builder takes ecdsa-p384 or rsa-4096: use a \
         key of that kind"
    );
    let fitting = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let enrolled = enrol(&Client { key: fitting }.csr()).unwrap();
    // Nor does a renewal change to one.
    let peer = peer(&authority, &enrolled, after(60));
    let refusal = authority.renew(&peer, &client.csr(), None, after(60)).unwrap_err();
    assert_eq!(refusal.code, RefusalCode::UnacceptableKey);
}

#[test]
fn a_longer_rsa_key_than_wanted_is_fine() {
    assert!(CsrKey::Rsa(4_096).is(KeyKind::Rsa3072) && CsrKey::Rsa(3_072).is(KeyKind::Rsa3072));
    assert!(!CsrKey::Rsa(3_071).is(KeyKind::Rsa3072) && !CsrKey::Rsa(3_072).is(KeyKind::Rsa4096));
    assert!(!CsrKey::P521.is(KeyKind::EcdsaP384));
}
