//! What a peer must not be able to use up.

use super::*;

/// The server's key pairs are slow to come from here on.
fn slow_key_pairs(pair: &mut Pair) {
    pair.server.hold = |action| matches!(action, Action::KeyExchange(KexRequest::Generate { .. }));
}

/// A rekey of the IKE SA by the client, as a message that can be changed.
fn rekey_request(pair: &mut Pair, spy: &Spy) -> Payloads {
    let ike = pair.client.established()[0].id;
    pair.command(Side::Client, Command::RekeyIke(ike));
    let request = pair.lose();
    spy.hear(&request).payloads().unwrap()
}

/// RFC 7296 3.3.1, 3.1: the SPI of an IKE SA has 8 octets and is not zero. A request that cannot
/// lead to an SA must not leave a key pair behind.
#[test]
fn a_rekey_without_an_spi_costs_no_key_pair() {
    for spi in [Vec::new(), vec![0; 8]] {
        let mut pair = Pair::connected();
        let mut spy = Spy::of(&pair);
        let payloads = rekey_request(&mut pair, &spy);
        let mut offer = payloads.sa().unwrap().clone();
        for proposal in &mut offer.proposals {
            proposal.spi.clone_from(&spi);
        }
        let payloads = replaced(&payloads, &Payload::Sa(offer));

        for id in 2..5 {
            let kind = ExchangeType::CreateChildSa;
            let answer = told(&mut pair, &mut spy, kind, id, &payloads);
            assert!(answer.has_notify(NotifyType::InvalidSyntax));
        }

        assert_eq!(pair.server.key_pairs(), 0, "{spi:?}");
        assert_eq!(pair.server.established().len(), 1);
        assert_eq!(pair.server.engine.stats().actions, 0);
    }
}

/// RFC 7296 2.25.2 has the later of two rekeys give way. When nothing comes of the one it gave way
/// to, the SA must still be rekeyed in time.
#[test]
fn a_rekey_that_gave_way_to_one_that_fails_comes_back() {
    for of_child in [false, true] {
        let setup = Setup::new().quiet();
        let setup = setup.suites("aes256gcm16-prfsha384-x25519", "aes256gcm16-x25519-noesn");
        let mut pair = Pair::connected_with(setup);
        let mut spy = Spy::of(&pair);
        let (ike, child) = {
            let sa = &pair.client.established()[0];
            (sa.id, sa.children[0].id)
        };
        let ours = pair.server.established()[0].clone();
        slow_key_pairs(&mut pair);
        if of_child {
            pair.command(Side::Server, Command::RekeyChild(ours.children[0].id));
            pair.command(Side::Client, Command::RekeyChild(child));
        } else {
            pair.command(Side::Server, Command::RekeyIke(ours.id));
            pair.command(Side::Client, Command::RekeyIke(ike));
        }
        assert_eq!(pair.server.held.len(), 1, "our rekey waits for its key pair");
        let request = pair.lose();
        let payloads = spy.hear(&request).payloads().unwrap();
        let group = payloads.ke().unwrap().method;
        let short = Payload::Ke(KeyExchange::new(group, vec![1; 7]));
        let payloads = replaced(&payloads, &short);

        let answer = told(&mut pair, &mut spy, ExchangeType::CreateChildSa, 2, &payloads);

        assert!(answer.has_notify(NotifyType::InvalidSyntax));
        pair.server.hold = |_| false;
        pair.release(Side::Server, 0);
        let ups = |pair: &Pair| {
            let up = |event: &&Event| {
                matches!(event, Event::IkeUp { .. })
                    || matches!(event, Event::ChildUp { rekeys: Some(_), .. })
            };
            pair.server.events.iter().filter(up).count()
        };
        let before = ups(&pair);
        pair.run_for(Duration::from_secs(60));
        assert!(ups(&pair) > before, "of a child: {of_child}");
    }
}

/// What waits for the shared secret is bounded in octets and in datagrams.
#[test]
fn few_datagrams_wait_for_the_shared_secret() {
    let mut pair = Setup::new().quiet().build();
    pair.server.hold = |action| matches!(action, Action::KeyExchange(KexRequest::Agree { .. }));
    pair.initiate();
    pair.step();
    pair.step();
    let auth = pair.lose();
    let mut forged = auth.clone();
    forged.datagram.payload.truncate(64);
    forged.datagram.payload[24..28].copy_from_slice(&64u32.to_be_bytes());
    forged.datagram.payload[30..32].copy_from_slice(&36u16.to_be_bytes());
    for _ in 0..500 {
        pair.deliver(forged.clone());
    }

    pair.server.hold = |_| false;
    pair.release(Side::Server, 0);

    assert_eq!(pair.server.engine.stats().bad_icv, 64);
    pair.deliver(auth);
    pair.run();
    pair.assert_connected();
    pair.assert_no_leaks();
}

/// Before it has authenticated, a peer's message has room for a chain of large keys and for no
/// more, in fragments (RFC 7383) or without.
#[test]
fn who_has_not_authenticated_sends_short_messages_only() {
    for fragment_size in [1280, 65_000] {
        for (certificate, fits) in [(15_000, true), (21_000, false)] {
            let mut setup = Setup::new().quiet();
            setup.client.credentials[0].chain.push(vec![0x30; certificate]);
            setup.client.fragment_size = fragment_size;
            let mut pair = setup.build();
            pair.initiate();
            pair.run_for(Duration::from_secs(20));

            let connected = pair.server.established().len() == 1;
            assert_eq!(connected, fits, "{certificate} in {fragment_size}");
            pair.assert_no_leaks();
        }
    }
}

/// RFC 7296 2.2: a peer that names message ids near their end (RFC 6311) would have them wrap
/// around, and what was recorded long ago would be taken again.
#[test]
fn ids_at_their_end_are_not_synchronised() {
    for (next_send, next_receive) in [(u32::MAX, 3), (3, u32::MAX)] {
        let mut pair = Pair::connected();
        let mut spy = Spy::of(&pair);
        let mut payloads = Payloads::new();
        let told = MessageIdSync { nonce: 7, next_send, next_receive };
        payloads.push_notify(Notify::message_id_sync(told));
        let kind = ExchangeType::Informational;
        let said = spy.say(&pair, Side::Client, kind, false, 0, &payloads);

        pair.deliver(said);

        assert!(pair.wire.is_empty(), "silence (RFC 6311 5.1)");
        let child = *pair.client.plane.keys().next().unwrap();
        pair.command(Side::Client, Command::RekeyChild(child));
        pair.run();
        pair.assert_connected();
        pair.assert_no_leaks();
    }
}
