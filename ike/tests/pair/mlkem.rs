//! ML-KEM as an additional key exchange (draft-ietf-ipsecme-ikev2-mlkem), in new connections and in
//! rekeys; and P-521, which also takes the provider that has ML-KEM.

use std::time::Duration;

use ike::Command;
use ike::crypto::{EspSuite, IkeSuite, KexResponse, aws_lc};
use ike::io::{Action, Completion};

use crate::harness::*;

fn setup(suite: &str) -> Setup {
    let mut setup = Setup::new().quiet().suites(suite, "aes256gcm16-x25519-ke1_mlkem768-noesn");
    setup.crypto = &aws_lc::PROVIDER;
    setup
}

#[test]
fn ml_kem_of_every_size_connects_and_rekeys() {
    // RFC 9370 2.2.4 with draft-ietf-ipsecme-ikev2-mlkem.
    for name in ["mlkem512", "mlkem768", "mlkem1024"] {
        let suite = format!("aes256gcm16-prfsha384-x25519-ke1_{name}");
        let mut pair = Pair::connected_with(setup(&suite));
        for side in [Side::Client, Side::Server] {
            assert_eq!(pair.peer(side).established()[0].suite.as_deref(), Some(&*suite));
            let child = *pair.peer(side).plane.keys().next().unwrap();
            pair.command(side, Command::RekeyChild(child));
            pair.run();
            pair.assert_connected();
            let id = pair.peer(side).established()[0].id;
            pair.command(side, Command::RekeyIke(id));
            pair.run();
            pair.assert_connected();
        }
        let child = pair.client.plane.values().next().unwrap().suite.to_string();
        assert_eq!(child, "aes256gcm16-x25519-ke1_mlkem768");
        pair.assert_no_leaks();
    }
}

/// A key of 1568 octets does not fit a datagram of 1280.
#[test]
fn its_messages_travel_in_fragments_that_may_be_lost() {
    for lost in 0..4 {
        let mut pair = setup("aes256gcm16-prfsha384-x25519-ke1_mlkem1024").build();
        pair.initiate();
        pair.step();
        pair.step();
        assert_eq!(pair.wire.len(), 2);
        for _ in 0..lost {
            pair.step();
        }
        pair.lose();
        pair.run_for(Duration::from_secs(10));

        pair.assert_connected();
        pair.assert_no_leaks();
    }
}

#[test]
fn the_defaults_prefer_it_and_serve_who_lacks_it() {
    // RFC 9370 2.2.1.
    for (client, agreed) in [
        (None, "aes256gcm16-prfsha384-x25519-ke1_mlkem768"),
        (Some("aes256gcm16-prfsha384-x25519"), "aes256gcm16-prfsha384-x25519"),
        (Some("aes256-sha256-modp2048"), "aes256-sha256-prfsha256-modp2048"),
    ] {
        let mut setup = Setup::new().quiet();
        setup.crypto = &aws_lc::PROVIDER;
        setup.server.ike_suites = IkeSuite::defaults();
        setup.server.esp_suites = EspSuite::defaults();
        let offered = client.map_or_else(IkeSuite::defaults, ike);
        setup.target.first_ke = offered[0].kex;
        setup.client.ike_suites = offered.clone();
        setup.target.ike_suites = offered;
        let pair = Pair::connected_with(setup);

        assert_eq!(pair.server.established()[0].suite.as_deref(), Some(agreed));
        pair.assert_no_leaks();
    }
}

#[test]
fn p521_connects_and_rekeys() {
    // RFC 5903 3.3.
    let suite = "aes256-sha512-prfsha512-ecp521";
    let mut setup = setup(suite);
    setup.target.first_ke = ike::crypto::KeMethod::Ecp521;
    let mut pair = Pair::connected_with(setup);
    let id = pair.server.established()[0].id;
    pair.command(Side::Server, Command::RekeyIke(id));
    pair.run();

    pair.assert_connected();
    assert_eq!(pair.client.established()[0].suite.as_deref(), Some(suite));
    pair.assert_no_leaks();
}

/// The defaults are one small message, not a proposal for each of their hundreds of combinations.
#[test]
fn the_offer_of_the_defaults_is_short() {
    let mut setup = Setup::new().quiet();
    setup.crypto = &aws_lc::PROVIDER;
    setup.client.ike_suites = IkeSuite::defaults();
    setup.target.ike_suites = IkeSuite::defaults();
    let mut pair = setup.build();
    pair.initiate();

    let request = pair.wire[0].datagram.payload.clone();
    assert!(request.len() < 1000, "{} octets", request.len());
    pair.run();
    pair.assert_connected();
    pair.assert_no_leaks();
}

/// The key fails FIPS 203's check: coefficients are below q.
#[test]
fn a_key_that_is_none_is_refused_and_another_ciphertext_makes_other_keys() {
    let mut pair = setup("aes256gcm16-prfsha384-x25519-ke1_mlkem768").build();
    pair.initiate();
    pair.step();
    pair.client.late = |action| matches!(action, Action::KeyExchange(_));
    pair.step();
    // The shared secret of IKE_SA_INIT is genuine.
    pair.answer_late(Side::Client, 0);
    let (token, completion) = pair.client.answers.remove(0);
    let Completion::KeyExchange(Ok(KexResponse::Generated { handle, public })) = completion else {
        panic!("no key pair");
    };
    let changed = KexResponse::Generated { handle, public: vec![0xff; public.len()] };
    let answer = ike::Input::Completion(token, Completion::KeyExchange(Ok(changed)));
    pair.input(Side::Client, answer);
    pair.client.late = |_| false;
    pair.run();
    assert_eq!(pair.server.codes(), ["key_exchange"]);
    pair.assert_nothing_installed();
    pair.assert_no_leaks();

    // A changed ciphertext yields another secret (implicit rejection), so nothing opens.
    let mut pair = setup("aes256gcm16-prfsha384-x25519-ke1_mlkem768").build();
    pair.initiate();
    pair.step();
    pair.server.late = |action| matches!(action, Action::KeyExchange(_));
    while pair.step().is_some() {}
    pair.answer_late(Side::Server, 0);
    let (token, completion) = pair.server.answers.remove(0);
    let Completion::KeyExchange(Ok(KexResponse::Encapsulated { handle, mut public, secret })) =
        completion
    else {
        panic!("no encapsulation");
    };
    public[100] ^= 1;
    let changed = KexResponse::Encapsulated { handle, public, secret };
    let answer = ike::Input::Completion(token, Completion::KeyExchange(Ok(changed)));
    pair.input(Side::Server, answer);
    pair.run_for(Duration::from_secs(60));

    assert!(pair.server.established().is_empty() && pair.client.established().is_empty());
    assert!(pair.server.engine.stats().bad_icv > 0);
    pair.assert_no_leaks();
}
