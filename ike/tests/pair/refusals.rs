//! No common ground: the peer hears the RFC's notify, the operator hears what differed and what to
//! change (RFC 7296 2.7, 2.9, 2.21).

use ike::Event;
use ike::config::PeerConfig;
use ike::crypto::KeMethod;
use ike::io::{Action, Completion};
use ike::wire::{
    AuthMethod, Authentication, EncrId, ExchangeType, Flags, Header, IkeSpi, IntegId, KeyExchange,
    Message, Nonce, NotifyType, Payload, Payloads, PrfId, Proposal, ProtocolId,
    SecurityAssociation, TrafficSelector, Transform,
};

use crate::harness::*;
use crate::spy::Spy;

fn refused(change: impl FnOnce(&mut Setup)) -> Pair {
    let mut setup = Setup::new().quiet();
    change(&mut setup);
    let mut pair = setup.build();
    pair.initiate();
    pair.run_for(std::time::Duration::from_secs(5));
    pair
}

#[test]
fn no_common_ike_proposal() {
    let pair = refused(|setup| setup.server.ike_suites = ike("chacha20poly1305-prfsha256-ecp384"));

    let refusal = pair.server.refusals()[0].clone();
    assert_eq!(refusal.code, "no_proposal_chosen");
    assert_eq!(refusal.notify, Some(NotifyType::NoProposalChosen));
    assert!(refusal.what.contains("AES_GCM_16_256-PRF_HMAC_SHA2_384-CURVE25519"), "{refusal}");
    assert!(refusal.what.contains("chacha20poly1305-prfsha256-ecp384"), "{refusal}");
    assert!(refusal.fix.contains("proposals = chacha20poly1305-prfsha256-ecp384"), "{refusal}");
    assert_eq!(pair.client.codes(), ["init_refused"]);
    assert_eq!(pair.server.engine.sas().count(), 0);
    pair.assert_no_leaks();
}

#[test]
fn a_weak_offer_is_refused_with_the_clients_setting() {
    let mut pair = Setup::new().quiet().build();
    let proposal = Proposal::new(
        1,
        ProtocolId::Ike,
        vec![
            Transform::encr(EncrId::TripleDes, None),
            Transform::prf(PrfId::HmacSha1),
            Transform::integ(IntegId::HmacSha1_96),
            Transform::ke(KeMethod::Modp1024),
        ],
    );
    let payloads = Payloads::from(vec![
        Payload::Sa(SecurityAssociation::new(vec![proposal])),
        Payload::Ke(KeyExchange::new(KeMethod::Modp1024, vec![1; 128])),
        Payload::Nonce(Nonce::new(vec![2; 32]).unwrap()),
    ]);
    let header = Header::new(IkeSpi(9), IkeSpi::ZERO, ExchangeType::IkeSaInit, Flags::REQUEST, 0);
    let payload = Message { header, payloads }.encode().unwrap();
    let datagram = ike::io::Datagram {
        local: address(SERVER_IP, 500),
        remote: address(CLIENT_IP, 500),
        encap: false,
        payload,
    };

    pair.deliver(Flight { to: Side::Server, datagram });

    let refusal = pair.server.refusals()[0].clone();
    assert!(refusal.fix.contains("modp1024 is refused"), "{refusal}");
    assert!(refusal.fix.contains("NegotiateDH2048_AES256"), "{refusal}");
    pair.wire.clear();
    pair.assert_no_leaks();
}

/// What the client is told inside IKE_AUTH, and that the IKE SA's fate is as it should be.
fn child_refused(pair: &Pair, code: &str, notify: NotifyType) {
    assert_eq!(pair.server.codes(), [code]);
    assert_eq!(pair.server.refusals()[0].notify, Some(notify));
    // RFC 7296 2.21.2: the IKE SA is established without the child.
    assert_eq!(pair.server.established().len(), 1);
    assert_eq!(pair.client.established().len(), 1);
    // Who looks at the SA is to find why it has no child: it is there before that is told.
    for peer in [&pair.client, &pair.server] {
        let kinds: Vec<_> =
            peer.events.iter().map(|event| matches!(event, Event::Refused(_))).collect();
        assert_eq!(kinds, [false, true], "{:?}", peer.events);
    }
    let told = pair.client.refusals()[0];
    assert_eq!((told.code, told.notify), ("child_refused", Some(notify)));
    pair.assert_nothing_installed();
}

#[test]
fn no_common_esp_proposal() {
    let pair = refused(|setup| setup.server.esp_suites = esp("chacha20poly1305-noesn"));

    child_refused(&pair, "no_esp_proposal_chosen", NotifyType::NoProposalChosen);
    assert!(pair.server.refusals()[0].fix.contains("esp_proposals = chacha20poly1305"));
    pair.assert_no_leaks();
}

#[test]
fn no_common_selectors() {
    let pair = refused(|setup| setup.target.ts_remote = vec![net("172.16.0.0", "172.16.0.255")]);

    child_refused(&pair, "ts_unacceptable", NotifyType::TsUnacceptable);
    // RFC 7296 2.19: the addresses are the IKE SA's; a child that is asked for later needs them.
    assert_eq!(pair.client.established()[0].addresses.len(), 2);
    let what = &pair.server.refusals()[0].what;
    assert!(what.contains("172.16.0.0-172.16.0.255"), "{what}");
    assert!(what.contains("10.20.0.0-10.20.0.255"), "{what}");
    pair.assert_no_leaks();
}

#[test]
fn no_address_of_the_family_asked_for() {
    let pair = refused(|setup| {
        setup.target.request_ipv4 = false;
        setup.grant.as_mut().unwrap().addresses = vec!["10.77.0.2".parse().unwrap()];
    });

    child_refused(&pair, "no_address", NotifyType::InternalAddressFailure);
    assert_eq!(pair.client.established()[0].addresses.len(), 0);
    pair.assert_no_leaks();
}

/// The client hears AUTHENTICATION_FAILED and nothing more; nothing comes up.
fn authentication_failed(pair: &Pair, code: &str) {
    assert_eq!(pair.server.codes(), [code]);
    assert_eq!(pair.server.refusals()[0].notify, Some(NotifyType::AuthenticationFailed));
    assert_eq!(pair.client.refusals()[0].notify, Some(NotifyType::AuthenticationFailed));
    assert!(pair.server.established().is_empty() && pair.client.established().is_empty());
    assert_eq!(pair.server.events.len(), 1);
    pair.assert_nothing_installed();
}

#[test]
fn no_lease() {
    let pair = refused(|setup| setup.grant = None);

    authentication_failed(&pair, "no_lease");
    let identity = pair.server.refusals()[0].identity.clone().unwrap();
    assert_eq!(identity.to_string(), "client.example.com");
    pair.assert_no_leaks();
}

#[test]
fn a_signature_of_another_key() {
    let pair = refused(|setup| setup.client.credentials[0].chain = vec![Key::ecdsa().spki]);

    authentication_failed(&pair, "bad_signature");
    pair.assert_no_leaks();
}

#[test]
fn no_certificate() {
    let pair = refused(|setup| setup.client.credentials[0].chain.clear());

    authentication_failed(&pair, "no_certificate");
    pair.assert_no_leaks();
}

#[test]
fn too_many_certificates() {
    let pair = refused(|setup| {
        setup.client.credentials[0].chain.extend(vec![vec![0x30; 10]; 8]);
    });

    authentication_failed(&pair, "too_many_certificates");
    pair.assert_no_leaks();
}

#[test]
fn no_credential_of_ours_fits() {
    let pair = refused(|setup| setup.server.credentials.clear());

    authentication_failed(&pair, "no_credential");
    pair.assert_no_leaks();
}

#[test]
fn our_signature_fails() {
    let mut pair = Setup::new().quiet().build();
    pair.server.hold = |action| matches!(action, Action::Sign { .. });
    pair.initiate();
    pair.run();
    let (token, _) = pair.server.held.remove(0);
    let failed = Completion::Sign(Err("the key is gone".to_owned()));

    pair.input(Side::Server, ike::Input::Completion(token, failed));
    pair.run();

    assert_eq!(pair.server.codes(), ["sign"]);
    pair.assert_nothing_installed();
    pair.assert_no_leaks();
}

#[test]
fn a_failed_handshake_answers_a_repeated_request_for_a_while_and_is_then_forgotten() {
    let mut setup = Setup::new().quiet();
    setup.grant = None;
    let mut pair = setup.build();
    pair.initiate();
    pair.step();
    pair.step();
    let auth = pair.step().unwrap();
    let answer = pair.lose();

    pair.deliver(auth);

    assert_eq!(pair.wire.pop_front(), Some(answer));
    assert_eq!(pair.server.codes().len(), 1);
    pair.wait(std::time::Duration::from_secs(11));
    assert_eq!(pair.server.engine.sas().count(), 0);
    pair.wire.clear();
    pair.assert_no_leaks();
}

#[test]
fn the_initiator_refuses_another_identity_and_deletes_what_the_peer_has() {
    let pair = refused(|setup| {
        setup.target.expected = Some(ike::wire::Identification::fqdn("other.example.com"));
    });

    assert_eq!(pair.client.codes(), ["identity_mismatch"]);
    assert!(pair.server.established().is_empty() && pair.client.established().is_empty());
    pair.assert_nothing_installed();
    pair.assert_no_leaks();
}

#[test]
fn selectors_with_ports_are_narrowed() {
    let mut setup = Setup::new().quiet();
    let web = TrafficSelector {
        protocol: 6,
        start_port: 443,
        end_port: 443,
        ..net("10.20.0.10", "10.20.0.10")
    };
    setup.grant.as_mut().unwrap().allowed = vec![web, net("10.20.1.0", "10.20.1.255")];
    let pair = Pair::connected_with(setup);

    let child = pair.client.plane.values().next().unwrap();
    assert_eq!(child.ts_remote, [web, net("10.20.1.0", "10.20.1.255")]);
    pair.assert_no_leaks();
}

#[test]
fn an_address_that_was_not_asked_for_still_bounds_the_selectors() {
    let mut setup = Setup::new().quiet();
    let PeerConfig { request_ipv4, request_ipv6, ts_local, .. } = &mut setup.target;
    (*request_ipv4, *request_ipv6) = (false, false);
    *ts_local = vec![TrafficSelector::any_v4()];
    let pair = Pair::connected_with(setup);

    let child = pair.server.plane.values().next().unwrap();
    assert_eq!(child.ts_remote, [net("10.77.0.2", "10.77.0.2")]);
    pair.assert_no_leaks();
}

/// RFC 8247 3.1: DSS signatures SHOULD NOT be used; who comes with one is told what to set.
#[test]
fn a_dss_signature_is_refused_by_name_with_the_clients_setting() {
    let mut pair = Setup::new().quiet().build();
    pair.initiate();
    pair.step();
    pair.step();
    let mut spy = Spy::of(&pair);
    let said = spy.hear(&pair.lose()).payloads().unwrap();
    let mut payloads = Payloads::new();
    for payload in said.iter() {
        payloads.push(match payload {
            Payload::Auth(auth) => {
                Payload::Auth(Authentication::new(AuthMethod::DssSignature, auth.data.clone()))
            }
            other => other.clone(),
        });
    }
    let request = spy.say(&pair, Side::Client, ExchangeType::IkeAuth, false, 1, &payloads);
    pair.deliver(request);
    pair.run();

    authentication_failed(&pair, "auth_method");
    let refusal = pair.server.refusals()[0].clone();
    assert!(refusal.what.contains("DSS_SIGNATURE"), "{refusal}");
    assert!(refusal.fix.contains("`auth = pubkey`"), "{refusal}");
    pair.assert_no_leaks();
}
