//! Messages, cookies, proposals, key exchange values (RFC 7296 2.1 to 2.7, 2.10, 2.12).

use super::*;

// --- RFC 7296 2.1 to 2.5: messages ---------------------------------------------------------------

/// RFC 7296 2.1: a request is executed once; what comes with the same message id later gets the
/// first answer, whatever it says.
#[test]
fn a_used_message_id_is_not_executed_again_whatever_it_says() {
    let mut pair = Pair::connected();
    let mut spy = Spy::of(&pair);
    let kind = ExchangeType::Informational;
    let empty = spy.say(&pair, Side::Client, kind, false, 2, &Payloads::new());
    pair.deliver(empty);
    let first = pair.lose();

    let delete = Payloads::from(vec![Payload::Delete(Delete::Ike)]);
    let said = spy.say(&pair, Side::Client, kind, false, 2, &delete);
    pair.deliver(said);

    assert!(pair.wire.iter().all(|flight| *flight == first));
    assert_eq!(pair.server.established().len(), 1);
    assert_eq!(pair.server.inbound().len(), 1);
}

/// RFC 7296 2.2: each side counts its own requests, so two of the same number cross without harm.
#[test]
fn each_side_counts_its_own_requests() {
    let mut pair = Pair::connected();
    let number = |flight: &Flight| Header::peek(&flight.datagram.payload).unwrap().message_id;
    // The client has used 0 and 1; the server none.
    for _ in 0..2 {
        let child = *pair.server.plane.keys().next().unwrap();
        pair.command(Side::Server, Command::RekeyChild(child));
        pair.run();
    }
    let child = *pair.server.plane.keys().next().unwrap();
    pair.command(Side::Server, Command::RekeyChild(child));
    let servers = pair.lose();
    let child = *pair.client.plane.keys().next().unwrap();
    pair.command(Side::Client, Command::CloseChild(child, CloseReason::Operator));
    let clients = pair.lose();
    // Each of the two rekeys took a request and a DELETE of the server's.
    assert_eq!((number(&servers), number(&clients)), (4, 2));
    pair.deliver(clients);
    pair.deliver(servers);
    pair.run();
    assert_eq!(pair.client.established().len(), 1);
    pair.assert_no_leaks();
}

/// RFC 7296 2.3: a peer that could take more requests at once is told one at a time all the same.
#[test]
fn a_larger_window_of_the_peer_is_not_used() {
    let mut pair = Pair::connected();
    let mut spy = Spy::of(&pair);
    let mut payloads = Payloads::new();
    payloads.push_notify(Notify::window_size(16));
    let answer = informational(&mut pair, &mut spy, 2, &payloads);
    assert!(answer.is_empty());

    let child = *pair.server.plane.keys().next().unwrap();
    let ike = pair.server.established()[0].id;
    pair.command(Side::Server, Command::CloseChild(child, CloseReason::Operator));
    pair.command(Side::Server, Command::RekeyIke(ike));

    assert_eq!(pair.wire.len(), 1);
}

/// RFC 7296 2.4, 2.21.4: what is not protected, and what the kernel has seen, proves nothing.
#[test]
fn hints_without_protection_change_nothing() {
    let mut pair = Pair::connected();
    let sa = pair.server.established()[0].clone();
    for kind in
        [NotifyType::InvalidIkeSpi, NotifyType::InvalidSpi, NotifyType::AuthenticationFailed]
    {
        for response in [false, true] {
            let flags = Flags::new(true, response);
            let spis = (IkeSpi(sa.spis.0), IkeSpi(sa.spis.1));
            let header = Header::new(spis.0, spis.1, ExchangeType::Informational, flags, 2);
            let mut payloads = Payloads::new();
            payloads.push_notify(Notify::new(kind));
            let payload = Message { header, payloads }.encode().unwrap();
            let datagram =
                ike::io::Datagram { local: sa.local, remote: sa.remote, encap: sa.encap, payload };
            pair.deliver(Flight { to: Side::Server, datagram });
        }
    }
    let hint = DataplaneEvent::NoSa { spi: 0x1234_5678, remote: sa.remote };
    pair.input(Side::Server, Input::Dataplane(hint));

    assert!(pair.wire.is_empty());
    pair.assert_connected();
    pair.assert_no_leaks();
}

/// RFC 7296 2.5, 3.1, 3.2: a higher minor version and reserved bits are ignored.
#[test]
fn higher_minor_versions_and_reserved_bits_are_ignored() {
    let (mut pair, mut flight) = first_message();
    let octets = &mut flight.datagram.payload;
    octets[17] = 0x2f;
    octets[19] |= 0xc7;
    octets[29] |= 0x7f;

    let answer = answer_to(&mut pair, flight);

    assert_eq!(answer.header.version, ike::wire::Version::V2);
    assert!(answer.payloads.ke().is_some());
    assert_eq!(pair.server.engine.stats().half_open, 1);
}

// --- RFC 7296 2.6: cookies -----------------------------------------------------------------------

/// RFC 7296 2.6: a cookie is good for one nonce, one address and one SPI.
#[test]
fn a_cookie_is_bound_to_the_nonce_and_the_spi() {
    let mut setup = Setup::new().quiet();
    setup.server.limits.cookie_threshold = 0;
    let mut pair = setup.build();
    pair.initiate();
    pair.step();
    pair.step();
    let good = pair.lose();
    let other_nonce = changed(&good, |message| {
        let nonce = Payload::Nonce(Nonce::new(vec![9; 32]).unwrap());
        message.payloads = replaced(&message.payloads, &nonce);
    });
    let other_spi = changed(&good, |message| message.header.spi_i = IkeSpi(0x1234));

    for flight in [other_nonce, other_spi] {
        let answer = answer_to(&mut pair, flight);
        assert!(answer.payloads.has_notify(NotifyType::Cookie));
        assert_eq!(pair.server.engine.sas().count(), 0);
    }
    pair.deliver(good);

    assert_eq!(pair.server.engine.stats().half_open, 1);
}

// --- RFC 7296 2.7, 3.3: proposals ----------------------------------------------------------------

/// RFC 7296 3.3.6: a proposal with a transform type nobody knows is passed over, an unknown
/// transform of a known type is not chosen; neither spoils the others.
#[test]
fn unknown_transforms_are_passed_over() {
    let (mut pair, flight) = first_message();
    let flight = changed(&flight, |message| {
        let known = message.payloads.sa().unwrap().proposals[0].clone();
        let with = |number, id| {
            let mut transforms = known.transforms.clone();
            transforms.insert(0, Transform { id, attributes: vec![] });
            Proposal { number, transforms, ..known.clone() }
        };
        let sa = SecurityAssociation::new(vec![
            with(1, TransformId::Unknown { kind: 200, id: 1 }),
            with(2, TransformId::Encr(EncrId::Unknown(999))),
        ]);
        message.payloads = replaced(&message.payloads, &Payload::Sa(sa));
    });

    let answer = answer_to(&mut pair, flight);

    let [chosen] = answer.payloads.sa().unwrap().proposals.as_slice() else {
        panic!("one proposal is chosen");
    };
    assert_eq!(chosen.number, 2);
    assert!(!chosen.transforms.iter().any(|t| t.id == TransformId::Encr(EncrId::Unknown(999))));
}

/// RFC 7296 2.10, 3.9: nonces have 16 to 256 octets.
#[test]
fn a_nonce_that_is_too_short_makes_nothing() {
    let (mut pair, flight) = first_message();
    let mut octets = flight.datagram.payload.clone();
    // Shortens the nonce payload in place, as no codec would.
    let message = Message::parse(&octets).unwrap();
    let nonce = message.payloads.nonce().unwrap().as_bytes().to_vec();
    let at = octets.windows(nonce.len()).position(|window| window == nonce).unwrap();
    octets.drain(at + 15..at + nonce.len());
    octets[at - 1] = 4 + 15;
    let total = octets.len() as u32;
    octets[24..28].copy_from_slice(&total.to_be_bytes());
    let mut flight = flight;
    flight.datagram.payload = octets;

    pair.deliver(flight);

    assert_eq!(pair.server.engine.sas().count(), 0);
}

/// RFC 7296 2.12: no private value is used twice.
#[test]
fn every_exchange_has_a_key_pair_of_its_own() {
    let mut pair = Pair::connected();
    for side in [Side::Client, Side::Server, Side::Client] {
        let ike = pair.peer(side).established()[0].id;
        pair.command(side, Command::RekeyIke(ike));
        pair.run();
    }
    for peer in [&pair.client, &pair.server] {
        let mut handles = Vec::new();
        let mut publics = Vec::new();
        for output in &peer.outputs {
            if let Output::Action(
                _,
                Action::KeyExchange(KexRequest::Agree { handle, peer_public }),
            ) = output
            {
                handles.push(*handle);
                publics.push(peer_public.clone());
            }
        }
        assert_eq!(handles.len(), 4);
        handles.sort_unstable();
        handles.dedup();
        publics.sort();
        publics.dedup();
        assert_eq!((handles.len(), publics.len()), (4, 4));
    }
    pair.assert_no_leaks();
}

/// The generic header's unknown payload types are passed over also in answers (RFC 7296 2.5).
#[test]
fn unknown_payloads_in_an_answer_are_passed_over() {
    let (mut pair, flight) = first_message();
    pair.deliver(flight);
    let answer = pair.lose();
    // The responder signs what it sent, so the handshake itself cannot go on with this.
    let more = changed(&answer, |message| {
        let body = vec![1, 2, 3];
        message.payloads.push(Payload::Unknown { kind: PayloadType::Unknown(199), body });
    });
    pair.deliver(more);

    let request = pair.lose();
    assert_eq!(request.exchange(), ExchangeType::IkeAuth);
}

// --- RFC 7296 3.6: certificates by hash and URL ---------------------------------------------------

/// Nothing is fetched on a stranger's word: neither side offers it, and a certificate that is only
/// named proves nothing.
#[test]
fn certificates_by_hash_and_url_are_neither_offered_nor_taken() {
    let mut pair = Setup::new().quiet().build();
    pair.initiate();
    for _ in 0..2 {
        let said = Message::parse(&pair.wire[0].datagram.payload).unwrap();
        assert!(!said.payloads.has_notify(NotifyType::HttpCertLookupSupported));
        pair.step();
    }
    let request = pair.lose();
    let mut spy = Spy::of(&pair);
    let payloads = spy.hear(&request).payloads().unwrap();
    assert!(!payloads.has_notify(NotifyType::HttpCertLookupSupported));
    let place = [&[7; 20][..], b"http://203.0.113.9/cert.der"].concat();
    let named = Certificate::new(CertEncoding::HashAndUrlX509, place);
    let payloads = replaced(&payloads, &Payload::Cert(named));

    let said = spy.say(&pair, Side::Client, ExchangeType::IkeAuth, false, 1, &payloads);
    pair.deliver(said);

    let answer = spy.hear(&pair.wire[0]).payloads().unwrap();
    assert!(answer.has_notify(NotifyType::AuthenticationFailed));
    let taken = pair.server.outputs.iter().any(|output| {
        matches!(output, Output::Action(_, Action::VerifyPeer(verify)) if !verify.certificates.is_empty())
    });
    assert!(!taken);
    assert_eq!(pair.server.codes().len(), 1);
    assert!(pair.server.established().is_empty());
}
