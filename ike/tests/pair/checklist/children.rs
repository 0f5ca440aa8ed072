//! Selectors, addresses, options, deletes, errors; RFC 7383 and RFC 4555.

use super::*;

// --- RFC 7296 2.9: selectors ---------------------------------------------------------------------

fn child_request(ts_r: Vec<TrafficSelector>) -> Payloads {
    let suite = esp("aes256gcm16-noesn").remove(0);
    let transforms = vec![
        Transform::encr(suite.encryption.id, suite.encryption.key_bits),
        Transform::esn(ike::wire::EsnId::NoEsn),
    ];
    let proposal =
        Proposal::new(1, ProtocolId::Esp, transforms).with_child_spi(ChildSpi(0xc0ff_ee01));
    Payloads::from(vec![
        Payload::Sa(SecurityAssociation::new(vec![proposal])),
        Payload::Nonce(Nonce::new(vec![3; 32]).unwrap()),
        Payload::TsI(TrafficSelectors::new(vec![TrafficSelector::any_v4()])),
        Payload::TsR(TrafficSelectors::new(ts_r)),
    ])
}

/// RFC 7296 2.9: the first selector may be that of the packet that began it; it stays the first.
#[test]
fn the_packet_that_began_it_stays_the_first_selector() {
    let mut pair = Pair::connected();
    let mut spy = Spy::of(&pair);
    let packet = TrafficSelector {
        protocol: 6,
        start_port: 443,
        end_port: 443,
        ..net("10.20.0.9", "10.20.0.9")
    };
    let payloads = child_request(vec![packet, TrafficSelector::any_v4()]);

    let answer = told(&mut pair, &mut spy, ExchangeType::CreateChildSa, 2, &payloads);

    assert_eq!(answer.ts_r().unwrap().selectors, [packet, net("10.20.0.0", "10.20.0.255")]);
    assert!(!answer.has_notify(NotifyType::AdditionalTsPossible));
}

/// RFC 7296 2.9: what would fit in no answer is announced; the child has the part that does.
#[test]
fn selectors_that_do_not_fit_are_said_to_be_possible() {
    let mut setup = Setup::new().quiet();
    setup.grant.as_mut().unwrap().allowed =
        (0..100).map(|n| net(&format!("10.20.{n}.1"), &format!("10.20.{n}.9"))).collect();
    let mut pair = Pair::connected_with(setup);
    let mut spy = Spy::of(&pair);

    let answer = told(
        &mut pair,
        &mut spy,
        ExchangeType::CreateChildSa,
        2,
        &child_request(vec![TrafficSelector::any_v4()]),
    );

    assert_eq!(answer.ts_r().unwrap().selectors.len(), 64);
    assert!(answer.has_notify(NotifyType::AdditionalTsPossible));
}

/// RFC 7296 2.9, 2.21.3: whatever error answers a rekey, the old child and the IKE SA stay.
#[test]
fn no_error_of_a_rekey_ends_the_old_child() {
    for kind in [
        NotifyType::SinglePairRequired,
        NotifyType::TsUnacceptable,
        NotifyType::NoProposalChosen,
        NotifyType::NoAdditionalSas,
        NotifyType::InternalAddressFailure,
        NotifyType::FailedCpRequired,
        NotifyType::InvalidSelectors,
        NotifyType::InvalidSyntax,
        NotifyType::Unknown(8191),
    ] {
        let mut pair = Pair::connected();
        let mut spy = Spy::of(&pair);
        let child = *pair.server.plane.keys().next().unwrap();
        pair.command(Side::Server, Command::RekeyChild(child));
        pair.lose();
        let mut payloads = Payloads::new();
        payloads.push_notify(Notify::new(kind));
        let exchange = ExchangeType::CreateChildSa;
        let answer = spy.say(&pair, Side::Client, exchange, true, 0, &payloads);
        pair.deliver(answer);

        assert_eq!(pair.server.codes(), ["rekey_refused"], "{kind}");
        assert!(pair.server.refusals()[0].what.contains(&kind.to_string()), "{kind}");
        pair.assert_connected();
        pair.assert_traffic_flows();
    }
}

// --- RFC 7296 2.19, 2.4, 1.3.1: what IKE_AUTH may ask -------------------------------------------

/// RFC 7296 2.19: a rekey asks for no address, and the old ones stay.
#[test]
fn addresses_stay_over_rekeys() {
    let mut pair = Pair::connected();
    let before = pair.client.established()[0].addresses.clone();
    assert_eq!(before.len(), 2);
    for side in [Side::Client, Side::Server] {
        let ike = pair.peer(side).established()[0].id;
        pair.command(side, Command::RekeyIke(ike));
        pair.run();
        let child = *pair.peer(side).plane.keys().next().unwrap();
        pair.command(side, Command::RekeyChild(child));
        pair.run();
        assert_eq!(pair.client.established()[0].addresses, before);
        assert_eq!(pair.server.established()[0].addresses, before);
    }
    pair.assert_connected();
    pair.assert_no_leaks();
}

/// RFC 7296 2.4: INITIAL_CONTACT comes to who decides over leases.
#[test]
fn initial_contact_is_passed_on() {
    for sent in [false, true] {
        let contact = Payload::Notify(Notify::new(NotifyType::InitialContact));
        let more = if sent { vec![contact] } else { vec![] };
        let (pair, _) = authenticated_with(Setup::new().quiet(), more);
        let passed = pair.server.outputs.iter().find_map(|output| match output {
            Output::Action(_, Action::Authorise(authorise)) => Some(authorise.initial_contact),
            _ => None,
        });
        assert_eq!(passed, Some(sent));
    }
}

/// RFC 7296 1.3.1: who does not agree to an option leaves its notification out of the answer.
#[test]
fn options_that_are_not_agreed_to_are_not_answered() {
    let options = [
        NotifyType::EspTfcPaddingNotSupported,
        NotifyType::NonFirstFragmentsAlso,
        NotifyType::IpcompSupported,
    ];
    let more = options.map(|kind| Payload::Notify(Notify::new(kind))).to_vec();
    let (mut pair, answer) = authenticated_with(Setup::new().quiet(), more);
    for kind in options {
        assert!(!answer.has_notify(kind), "{kind}");
    }
    assert!(answer.sa().is_some());
    pair.run();
    pair.assert_connected();
}

// --- RFC 7296 1.4.1: deletes ---------------------------------------------------------------------

/// RFC 7296 1.4.1: the answer names the other halves of what was deleted, and nothing else.
#[test]
fn the_answer_to_a_delete_names_what_is_deleted_by_it() {
    let mut pair = Pair::connected();
    let mut spy = Spy::of(&pair);
    let (spi_in, spi_out) = (pair.server.inbound()[0], pair.server.outbound()[0]);
    let delete = Delete::esp(vec![ChildSpi(0xdead_beef), ChildSpi(spi_out), ChildSpi(spi_out)]);

    let answer =
        informational(&mut pair, &mut spy, 2, &Payloads::from(vec![Payload::Delete(delete)]));

    let named: Vec<Delete> = answer.deletes().cloned().collect();
    assert_eq!(named, [Delete::esp(vec![ChildSpi(spi_in)])]);
    assert_eq!(pair.server.inbound(), []);
    assert_eq!(pair.server.established().len(), 1);
}

/// There is no AH here, so a DELETE of it means nothing.
#[test]
fn a_delete_of_another_protocol_is_answered_and_ignored() {
    let mut pair = Pair::connected();
    let mut spy = Spy::of(&pair);
    let spis = vec![ChildSpi(pair.server.outbound()[0])];
    let delete = Delete::Child { protocol: ProtocolId::Ah, spis };

    let answer =
        informational(&mut pair, &mut spy, 2, &Payloads::from(vec![Payload::Delete(delete)]));

    assert!(answer.is_empty());
    pair.assert_connected();
}

// --- RFC 7296 2.21: errors -----------------------------------------------------------------------

/// RFC 7296 2.21.3: an answer of another exchange type is no answer.
#[test]
fn an_answer_of_another_exchange_is_not_taken() {
    let mut pair = Pair::connected();
    let mut spy = Spy::of(&pair);
    let child = *pair.server.plane.keys().next().unwrap();
    pair.command(Side::Server, Command::RekeyChild(child));
    let request = pair.lose();
    let kind = ExchangeType::Informational;
    let wrong = spy.say(&pair, Side::Client, kind, true, 0, &Payloads::new());
    pair.deliver(wrong);

    pair.deliver(request);
    pair.run();

    pair.assert_connected();
    pair.assert_traffic_flows();
    assert_eq!(pair.server.codes(), Vec::<&str>::new());
}

/// RFC 7296 1.3.1: a child with AH is no child we make; the IKE SA stays.
#[test]
fn a_child_with_ah_is_refused() {
    let mut pair = Pair::connected();
    let mut spy = Spy::of(&pair);
    let mut payloads = child_request(vec![TrafficSelector::any_v4()]);
    let sa = payloads.sa().unwrap().clone();
    let proposals = sa.proposals.into_iter().map(|p| Proposal { protocol: ProtocolId::Ah, ..p });
    let ah = SecurityAssociation::new(proposals.collect());
    payloads = replaced(&payloads, &Payload::Sa(ah));

    let answer = told(&mut pair, &mut spy, ExchangeType::CreateChildSa, 2, &payloads);

    assert!(answer.has_notify(NotifyType::NoProposalChosen));
    pair.assert_connected();
}

/// RFC 7296 3.4, RFC 6989 2: a public value that cannot be one of its group.
#[test]
fn a_public_value_of_the_wrong_length_is_invalid_syntax() {
    let mut pair = Pair::connected();
    let mut spy = Spy::of(&pair);
    let ike = pair.client.established()[0].id;
    pair.command(Side::Client, Command::RekeyIke(ike));
    let request = pair.lose();
    let payloads = spy.hear(&request).payloads().unwrap();
    let method = payloads.ke().unwrap().method;
    let short = Payload::Ke(KeyExchange::new(method, vec![1; 7]));
    let payloads = replaced(&payloads, &short);

    let answer = told(&mut pair, &mut spy, ExchangeType::CreateChildSa, 2, &payloads);

    assert!(answer.has_notify(NotifyType::InvalidSyntax));
    assert_eq!(pair.server.established().len(), 1);
    assert_eq!(pair.server.engine.stats().actions, 0);
}

// --- RFC 7383, RFC 4555 --------------------------------------------------------------------------

/// RFC 7383 2.3: the first exchange is never fragmented, everything after it may be.
#[test]
fn the_first_exchange_is_never_fragmented() {
    let mut setup = Setup::new().quiet();
    setup.client.fragment_size = 576;
    setup.server.fragment_size = 576;
    setup.client.ike_suites = ike("aes256gcm16-prfsha384-modp4096");
    setup.server.ike_suites = setup.client.ike_suites.clone();
    setup.target.ike_suites = setup.client.ike_suites.clone();
    setup.target.first_ke = ike::crypto::KeMethod::Modp4096;
    let mut pair = setup.build();
    pair.initiate();
    assert_eq!(pair.wire.len(), 1);
    assert!(pair.wire[0].datagram.payload.len() > 576);
    pair.step();
    assert_eq!(pair.wire.len(), 1);
    pair.run();
    pair.assert_connected();
    // A rekey with so large a value is larger than a datagram may be.
    let ike = pair.client.established()[0].id;
    pair.command(Side::Client, Command::RekeyIke(ike));
    assert!(pair.wire.len() > 1);
    assert!(pair.wire.iter().all(|flight| flight.datagram.payload.len() <= 576));
    pair.run();
    pair.assert_connected();
    pair.assert_no_leaks();
}

/// RFC 4555 3.4, 3.6: addresses the peer could also use change nothing about those in use.
#[test]
fn additional_addresses_change_nothing() {
    let mut setup = Setup::new().quiet();
    setup.target.mobike = true;
    let mut pair = Pair::connected_with(setup);
    let mut spy = Spy::of(&pair);
    let before = pair.server.established()[0].clone();
    let mut payloads = Payloads::new();
    for address in ["203.0.113.50", "2001:db8::50"] {
        payloads.push_notify(Notify::additional_address(address.parse().unwrap()));
    }

    let answer = informational(&mut pair, &mut spy, 2, &payloads);

    assert!(answer.error_notify().is_none());
    let after = pair.server.established()[0].clone();
    assert_eq!((after.remote, after.local), (before.remote, before.local));
    pair.wait(Duration::from_secs(1));
    assert!(pair.wire.is_empty());
}

/// RFC 4555 3.5: a new address the peer does not accept is reported, and ESP stays where it was.
#[test]
fn a_move_the_peer_refuses_is_reported() {
    let mut setup = Setup::new().quiet();
    setup.target.mobike = true;
    let mut pair = Pair::connected_with(setup);
    let mut spy = Spy::of(&pair);
    let before = pair.client.plane.values().next().unwrap().hosts;
    let ike = pair.client.established()[0].id;
    pair.command(Side::Client, Command::Move { ike, local: address("203.0.113.7", 4500) });
    pair.lose();
    let mut payloads = Payloads::new();
    payloads.push_notify(Notify::new(NotifyType::UnacceptableAddresses));
    let mut answer = spy.say(&pair, Side::Server, ExchangeType::Informational, true, 2, &payloads);
    answer.datagram.local = address("203.0.113.7", 4500);
    pair.deliver(answer);

    assert_eq!(pair.client.codes(), ["move_refused"]);
    assert_eq!(pair.client.plane.values().next().unwrap().hosts, before);
    assert!(!pair.client.events.iter().any(|event| matches!(event, Event::Moved { .. })));
    assert_eq!(pair.client.established().len(), 1);
}
