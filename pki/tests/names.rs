//! The names in a certificate: composed by the server, whatever the request asks for.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::*;
use pki::*;
use rcgen::SanType;
use x509_parser::prelude::*;

fn with_role(change: impl FnOnce(&mut RoleProfile)) -> Authority {
    let authority = authority();
    let mut settings = settings();
    change(settings.roles.get_mut("builder").unwrap());
    authority.reconfigure(settings).unwrap();
    authority
}

fn names(certificate: &[u8]) -> Vec<String> {
    let (_, certificate) = X509Certificate::from_der(certificate).unwrap();
    let names = certificate.subject_alternative_name().unwrap().unwrap();
    names.value.general_names.iter().map(ToString::to_string).collect()
}

/// A request of this client for these names.
fn csr(client: &Client, names: Vec<SanType>) -> Csr {
    let mut params = rcgen::CertificateParams::default();
    params.subject_alt_names = names;
    Csr::from_der(params.serialize_request(&client.key).unwrap().der()).unwrap()
}

fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().unwrap())
}

fn uri(name: &str) -> SanType {
    SanType::URI(name.try_into().unwrap())
}

#[test]
fn addresses_are_named_where_the_role_wants_them() {
    // RFC 5280 4.2.1.6; RFC 7296 3.5: an address may then be the IKE identity.
    let authority = with_role(|role| role.san_address = true);
    let (client, opened) = enrolled(&authority);
    let found = names(&opened.certificate);
    assert_eq!(found.len(), 4, "{found:?}");
    for address in ["10.77.0.2", "fd77::2"] {
        let address = address.parse().unwrap();
        assert!(opened.lease.addresses.contains(&address));
        let octets = match address {
            std::net::IpAddr::V4(v4) => v4.octets().to_vec(),
            std::net::IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        let kind = if address.is_ipv4() { 1 } else { 5 };
        let id = IkeId { kind, data: &octets };
        let chain = std::slice::from_ref(&opened.certificate);
        authority.verify_peer(chain, Some(id), after(1)).unwrap();
    }
    let peer = peer(&authority, &opened, after(1));
    let renewed = authority.renew(&peer, &client.csr(), None, after(1)).unwrap();
    assert_eq!(names(&renewed.certificate), found, "the addresses stay with the lease");
    assert_eq!(names(&enrolled(&with_role(|_| ())).1.certificate).len(), 2);
}

#[test]
fn what_a_request_asks_for_is_ignored_unless_the_role_says_otherwise() {
    // RFC 7030 4.2.1: the server decides.
    let authority = with_role(|_| ());
    let secret = token(&authority);
    let client = Client::new();
    let wish = csr(&client, vec![dns("gw.ci.example.com"), uri("spiffe://ci.example.com/other")]);
    let opened = authority.enrol_with_token("builder", secret.expose(), &wish, None, NOW).unwrap();
    assert!(!names(&opened.certificate).iter().any(|name| name.contains("other")));
}

#[test]
fn a_verified_request_asks_for_no_name_that_it_does_not_get() {
    let authority = with_role(|role| role.verify_names = true);
    let client = Client::new();
    let ask = |names: Vec<SanType>| {
        let secret = token(&authority);
        let csr = csr(&client, names);
        authority.enrol_with_token("builder", secret.expose(), &csr, None, NOW)
    };
    for name in [
        dns("gw.ci.example.com"),
        uri("spiffe://ci.example.com/role/deployer/x"),
        SanType::IpAddress("10.77.0.2".parse().unwrap()),
        SanType::Rfc822Name("root@ci.example.com".try_into().unwrap()),
    ] {
        let refusal = ask(vec![name.clone()]).unwrap_err();
        assert_eq!(refusal.code, RefusalCode::UnacceptableName, "{name:?}");
        assert_eq!(refusal.code.status(), 400);
        assert!(refusal.detail.contains("csr_sans"), "{refusal}");
    }
    // Nothing is spent by that.
    assert!(authority.tokens().unwrap().iter().all(|token| token.state(NOW) == TokenState::Valid));
    let opened = ask(Vec::new()).unwrap();
    assert_eq!(authority.leases(true).unwrap().len(), 1);
    // The names it has may be asked for again, in any spelling that means the same.
    let peer = peer(&authority, &opened, after(1));
    let again = vec![dns(&opened.lease.dns_name.to_uppercase()), uri(&opened.lease.identity)];
    let renewed = authority.renew(&peer, &csr(&client, again), None, after(1)).unwrap();
    assert_eq!(names(&renewed.certificate), names(&opened.certificate));
    let other = authority.renew(&peer, &csr(&client, vec![dns("a.example.com")]), None, after(2));
    assert_eq!(other.unwrap_err().code, RefusalCode::UnacceptableName);
}
