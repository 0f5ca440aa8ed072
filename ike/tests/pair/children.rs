//! More and fewer children than one: additional child SAs, none at all (RFC 7296 1.3.1, RFC 6023).

use ike::crypto::EspSuite;
use ike::wire::{
    AuthMethod, Authentication, ChildSpi, EsnId, ExchangeType, Message, Nonce, Notify, NotifyType,
    Payload, Payloads, Proposal, ProtocolId, SecurityAssociation, TrafficSelector,
    TrafficSelectors, Transform,
};

use crate::harness::*;
use crate::spy::Spy;

fn ask(spi: u32, ts_r: TrafficSelector) -> Payloads {
    let suite: &EspSuite = &esp("aes256gcm16-noesn")[0];
    let transforms = vec![
        Transform::encr(suite.encryption.id, suite.encryption.key_bits),
        Transform::esn(EsnId::NoEsn),
    ];
    let proposal = Proposal::new(1, ProtocolId::Esp, transforms).with_child_spi(ChildSpi(spi));
    Payloads::from(vec![
        Payload::Sa(SecurityAssociation::new(vec![proposal])),
        Payload::Nonce(Nonce::new(vec![3; 32]).unwrap()),
        Payload::TsI(TrafficSelectors::new(vec![TrafficSelector::any_v4()])),
        Payload::TsR(TrafficSelectors::new(vec![ts_r])),
    ])
}

fn asked(pair: &mut Pair, spy: &mut Spy, id: u32, payloads: &Payloads) -> Payloads {
    let kind = ExchangeType::CreateChildSa;
    let said = spy.say(pair, Side::Client, kind, false, id, payloads);
    pair.deliver(said);
    spy.hear(&pair.lose()).payloads().unwrap()
}

#[test]
fn a_second_child_is_made_within_the_lease() {
    let mut pair = Pair::connected();
    let mut spy = Spy::of(&pair);

    let answer = asked(&mut pair, &mut spy, 2, &ask(0xc000_9999, net("10.20.0.0", "10.20.7.0")));

    assert_eq!(answer.ts_i().unwrap().selectors, [net("10.77.0.2", "10.77.0.2")]);
    assert_eq!(answer.ts_r().unwrap().selectors, [net("10.20.0.0", "10.20.0.255")]);
    assert_eq!(pair.server.plane.len(), 2);
    let new = pair.server.plane.values().next_back().unwrap();
    assert_eq!((new.spi_out, new.rekeys), (0xc000_9999, None));
    assert!(new.outbound_active);
    assert_eq!(pair.server.established()[0].children.len(), 2);
}

#[test]
fn a_child_outside_the_lease_is_refused_and_nothing_else_changes() {
    let mut pair = Pair::connected();
    let mut spy = Spy::of(&pair);

    let answer = asked(&mut pair, &mut spy, 2, &ask(0xc000_9999, net("172.16.0.0", "172.16.0.9")));

    assert!(answer.has_notify(NotifyType::TsUnacceptable));
    assert_eq!(pair.server.codes(), ["ts_unacceptable"]);
    pair.assert_connected();
}

#[test]
fn children_have_a_limit() {
    let mut pair = Pair::connected();
    let mut spy = Spy::of(&pair);
    let mut made = 1;
    for id in 2..30 {
        let spi = 0xc000_9000 + id;
        let answer = asked(&mut pair, &mut spy, id, &ask(spi, net("10.20.0.0", "10.20.0.9")));
        if answer.has_notify(NotifyType::NoAdditionalSas) {
            break;
        }
        made += 1;
    }

    assert_eq!(made, 16);
    assert_eq!(pair.server.plane.len(), 16);
}

#[test]
fn rekeying_an_unknown_spi_names_it() {
    let mut pair = Pair::connected();
    let mut spy = Spy::of(&pair);
    let mut payloads = ask(0xc000_9999, net("10.20.0.0", "10.20.0.9"));
    let spi = ChildSpi(0x1234_5678);
    payloads.push_notify(Notify::about(NotifyType::RekeySa, ProtocolId::Esp, spi));

    let answer = asked(&mut pair, &mut spy, 2, &payloads);

    let told = answer.notify(NotifyType::ChildSaNotFound).unwrap();
    assert_eq!(told.child_spi(), Some(spi));
    pair.assert_connected();
}

#[test]
fn a_peer_that_wants_no_child_gets_an_ike_sa_alone() {
    let mut pair = Setup::new().quiet().build();
    pair.initiate();
    pair.step();
    let response = Message::parse(&pair.wire[0].datagram.payload).unwrap();
    assert!(response.payloads.has_notify(NotifyType::ChildlessIkev2Supported));
    pair.step();
    let mut spy = Spy::of(&pair);
    let auth = pair.lose();
    let without_child = spy
        .hear(&auth)
        .payloads()
        .unwrap()
        .iter()
        .filter(|payload| !matches!(payload, Payload::Sa(_) | Payload::TsI(_) | Payload::TsR(_)))
        .cloned()
        .collect::<Payloads>();

    let said = spy.say(&pair, Side::Client, ExchangeType::IkeAuth, false, 1, &without_child);
    pair.deliver(said);

    let answer = spy.hear(&pair.lose()).payloads().unwrap();
    assert!(answer.auth().is_some() && answer.sa().is_none());
    assert_eq!(pair.server.established().len(), 1);
    pair.assert_nothing_installed();
    // And makes one later.
    let answer = asked(&mut pair, &mut spy, 2, &ask(0xc000_9999, net("10.20.0.0", "10.20.0.9")));
    assert!(answer.sa().is_some());
    assert_eq!(pair.server.plane.len(), 1);
}

#[test]
fn our_authentication_names_its_algorithm() {
    let mut pair = Setup::new().quiet().build();
    pair.initiate();
    pair.step();
    pair.step();
    pair.step();
    let spy = Spy::of(&pair);

    let answer = spy.hear(&pair.wire[0]).payloads().unwrap();

    let Authentication { method, .. } = answer.auth().unwrap();
    assert_eq!(*method, AuthMethod::DigitalSignature);
    assert_eq!(answer.certs().count(), 1);
    pair.run();
    pair.assert_connected();
    pair.assert_no_leaks();
}
