//! Nonces shorter than half of the PRF's key (RFC 7296 2.10).

use ike::Command;
use ike::event::Blame;
use ike::wire::{ExchangeType, Message, Nonce, NotifyType, Payload, Payloads};

use crate::harness::*;
use crate::spy::Spy;

/// PRF, octets that are too few by one.
const SHORT: [(&str, usize); 2] = [("prfsha384", 23), ("prfsha512", 31)];

fn setup(prf: &str) -> Setup {
    Setup::new().quiet().suites(&format!("aes256gcm16-{prf}-x25519"), "aes256gcm16-noesn")
}

fn with_nonce(payloads: &Payloads, len: usize) -> Payloads {
    let swap = |payload: &Payload| match payload {
        Payload::Nonce(_) => Payload::Nonce(Nonce::new(vec![0x5a; len]).unwrap()),
        other => other.clone(),
    };
    Payloads::from(payloads.iter().map(swap).collect::<Vec<_>>())
}

fn changed(flight: &Flight, len: usize) -> Flight {
    let mut message = Message::parse(&flight.datagram.payload).unwrap();
    message.payloads = with_nonce(&message.payloads, len);
    let mut flight = flight.clone();
    flight.datagram.payload = message.encode().unwrap();
    flight
}

#[test]
fn a_first_message_with_a_short_nonce_is_refused_and_the_shortest_is_taken() {
    for (prf, short) in SHORT {
        let mut pair = setup(prf).build();
        pair.initiate();
        let first = pair.lose();

        pair.deliver(changed(&first, short));

        let answer = Message::parse(&pair.lose().datagram.payload).unwrap();
        assert!(answer.payloads.has_notify(NotifyType::InvalidSyntax), "{prf}");
        assert_eq!(pair.server.codes(), ["short_nonce"]);
        let refused = pair.server.refusals()[0];
        assert_eq!(
            (refused.blame, refused.notify),
            (Blame::Misbehaved, Some(NotifyType::InvalidSyntax))
        );
        assert!(refused.what.contains(&format!("has {short} octets")), "{}", refused.what);
        assert!(refused.what.contains(&format!("at least {}", short + 1)), "{}", refused.what);
        assert!(refused.fix.contains("prfsha256"), "{}", refused.fix);
        assert_eq!(pair.server.engine.stats().half_open, 0);

        pair.deliver(changed(&first, short + 1));
        assert_eq!(pair.server.engine.stats().half_open, 1, "{prf}");
    }
}

/// Nothing authenticates it, so another answer may still come; if none does, this is the reason.
#[test]
fn an_answer_with_a_short_nonce_makes_no_keys() {
    for (prf, short) in SHORT {
        let mut pair = setup(prf).build();
        pair.initiate();
        pair.step();
        let answer = pair.lose();

        pair.deliver(changed(&answer, short));
        assert!(pair.wire.is_empty(), "{prf}");
        assert_eq!(pair.client.codes(), Vec::<&str>::new());

        pair.wait(std::time::Duration::from_secs(2));
        assert_eq!(pair.client.codes(), ["short_nonce"]);
        assert!(pair.client.alive().is_empty());
    }
}

#[test]
fn a_true_answer_after_one_with_a_short_nonce_connects() {
    let mut pair = setup("prfsha512").build();
    pair.initiate();
    pair.step();
    let answer = pair.lose();
    pair.deliver(changed(&answer, 31));
    pair.deliver(answer);
    pair.run();
    pair.assert_connected();
    assert_eq!(pair.client.codes(), Vec::<&str>::new());
    pair.assert_no_leaks();
}

#[test]
fn rekeys_with_a_short_nonce_are_refused_on_either_side() {
    for ike in [false, true] {
        // The request.
        let mut pair = Pair::connected_with(setup("prfsha512"));
        let mut spy = Spy::of(&pair);
        let rekey = |pair: &mut Pair| {
            let command = match ike {
                true => Command::RekeyIke(pair.client.established()[0].id),
                false => Command::RekeyChild(*pair.client.plane.keys().next().unwrap()),
            };
            pair.command(Side::Client, command);
        };
        rekey(&mut pair);
        let request = with_nonce(&spy.hear(&pair.lose()).payloads().unwrap(), 31);
        let kind = ExchangeType::CreateChildSa;
        let said = spy.say(&pair, Side::Client, kind, false, 2, &request);
        pair.deliver(said);
        let answer = spy.hear(&pair.lose()).payloads().unwrap();
        assert!(answer.has_notify(NotifyType::InvalidSyntax));
        assert_eq!(pair.server.codes(), ["short_nonce"]);
        pair.assert_connected();

        // The answer.
        let mut pair = Pair::connected_with(setup("prfsha512"));
        let mut spy = Spy::of(&pair);
        rekey(&mut pair);
        pair.step();
        let answer = with_nonce(&spy.hear(&pair.lose()).payloads().unwrap(), 31);
        let said = spy.say(&pair, Side::Server, kind, true, 2, &answer);
        pair.deliver(said);
        assert_eq!(pair.client.codes().len(), 1);
        assert!(pair.client.refusals()[0].what.contains("nonce"));
        assert_eq!(pair.client.plane.len(), 1);
        assert_eq!(pair.client.established().len(), 1);
    }
}
