//! EAP-TLS as initiator (RFC 7296 2.16, RFC 5216, RFC 5998): the server is an engine that does
//! EAP-TLS as responder, or a spy that has the server's keys. The TLS of both sides is a stand-in of
//! the harness.

use std::time::Duration;

use ike::Output;
use ike::config::{LocalAuth, RemoteAuth};
use ike::crypto::SecretBytes;
use ike::io::Action;
use ike::wire::{
    AuthMethod, Eap, EapType, ExchangeType, Identification, NotifyType, Payload, Payloads,
};

use crate::harness::*;
use crate::spy::Spy;

fn setup(only: bool) -> Setup {
    let mut setup = Setup::new().quiet();
    setup.server.eap_tls = true;
    setup.server.eap_only = only;
    setup.target.local_auth = LocalAuth::EapTls;
    setup.target.remote_auth = if only { RemoteAuth::EapTls } else { RemoteAuth::Certificate };
    setup
}

/// IKE_SA_INIT is over, the first IKE_AUTH request on the wire.
fn begun(setup: Setup) -> (Pair, Spy) {
    let mut pair = setup.build();
    pair.initiate();
    pair.step();
    pair.step();
    let spy = Spy::of(&pair);
    (pair, spy)
}

/// What both sides say until the end.
fn said(pair: &mut Pair, spy: &Spy) -> Vec<Payloads> {
    std::iter::from_fn(|| {
        let said = spy.hear(pair.wire.front()?).payloads().unwrap();
        pair.step();
        Some(said)
    })
    .collect()
}

/// How often the client's TLS was asked.
fn tls(pair: &Pair) -> usize {
    let asked = |output: &&Output| matches!(output, Output::Action(_, Action::EapTls(_)));
    pair.client.outputs.iter().filter(asked).count()
}

/// Answers the client's request that is on the wire in the server's stead.
fn answer(pair: &mut Pair, spy: &mut Spy, id: u32, payloads: Vec<Payload>) {
    pair.wire.clear();
    let payloads = Payloads::from(payloads);
    let said = spy.say(pair, Side::Server, ExchangeType::IkeAuth, true, id, &payloads);
    pair.deliver(said);
}

fn server_id() -> Payload {
    Payload::id_r(Identification::fqdn("gw.example.com"))
}

#[test]
fn a_client_proves_itself_with_eap_tls() {
    for only in [false, true] {
        let (mut pair, spy) = begun(setup(only));

        let said = said(&mut pair, &spy);

        pair.assert_connected();
        pair.assert_traffic_flows();
        // RFC 7296 2.16: no AUTH means EAP.
        assert!(said[0].auth().is_none() && said[0].certs().count() == 0);
        assert_eq!(said[0].has_notify(NotifyType::EapOnlyAuthentication), only);
        assert_eq!(said[1].auth().is_none(), only, "RFC 5998 3");
        let eap: Vec<_> = said.iter().filter_map(Payloads::eap).collect();
        assert!(eap.iter().any(|eap| eap.data.first() == Some(&0xc0)), "in fragments");
        let [.., request, response] = &said[..] else { panic!("too short") };
        for last in [request, response] {
            assert_eq!(last.auth().unwrap().method, AuthMethod::SharedKeyMic);
            assert!(last.eap().is_none());
        }
        assert_eq!(pair.client.established()[0].identity.as_deref(), Some("gw.example.com"));
        assert_eq!(pair.server.established()[0].identity.as_deref(), Some("client.example.com"));
        assert!(pair.client.codes().is_empty() && pair.server.codes().is_empty());
        pair.assert_no_leaks();
    }
}

#[test]
fn nothing_goes_to_the_tls_before_the_signature_is_checked() {
    let (mut pair, _) = begun(setup(false));
    pair.client.hold = |action| matches!(action, Action::VerifyPeer(_));
    pair.run();
    assert_eq!((tls(&pair), pair.client.held.len()), (0, 1));

    pair.client.hold = |_| false;
    pair.release(Side::Client, 0);
    pair.run();
    pair.assert_connected();
    assert!(tls(&pair) > 0);
}

#[test]
fn each_message_may_be_lost_or_repeated() {
    for n in 0..12 {
        for twice in [false, true] {
            let (mut pair, _) = begun(setup(n % 2 == 0));
            for _ in 0..n {
                pair.step();
            }
            let Some(flight) = pair.wire.pop_front() else { continue };
            if twice {
                pair.deliver(flight.clone());
                pair.deliver(flight);
            }
            pair.run_for(Duration::from_secs(60));
            pair.assert_connected();
            pair.assert_no_leaks();
        }
    }
}

/// The conversation was with someone else than who made the IKE SA: the keys differ.
#[test]
fn who_is_between_does_not_get_through() {
    let (mut pair, _) = begun(setup(true));
    pair.client.msk = Some(SecretBytes::copy_from(&[9; 64]));
    pair.run();
    assert_eq!(pair.server.codes(), ["wrong_eap_auth"]);
    assert_eq!(pair.client.codes(), ["auth_refused"]);
    pair.assert_nothing_installed();

    // And the other way round, the server's AUTH.
    let (mut pair, mut spy) = begun(setup(true));
    let last = loop {
        let said = spy.hear(&pair.wire[0]).payloads().unwrap();
        if pair.wire[0].to == Side::Server && said.auth().is_some() {
            break spy.hear(&pair.wire[0]).header.message_id;
        }
        pair.step();
    };
    let id = Identification::fqdn("gw.example.com");
    let auth = spy.mic(Side::Server, &id, &[9; 64]);
    answer(&mut pair, &mut spy, last, vec![Payload::Auth(auth)]);
    assert_eq!(pair.client.codes(), ["wrong_eap_auth"]);
    assert_eq!(pair.client.established().len(), 0);
    assert_eq!(pair.client.inbound(), []);
}

#[test]
fn a_server_that_proves_nothing_is_refused() {
    let start = || Payload::Eap(Eap::request(1, EapType::Tls, vec![0x20]));
    for (only, payloads, code) in [
        // Neither a signature nor the leave to do without.
        (false, vec![server_id(), start()], "auth_method"),
        // EAP-Success out of the blue.
        (true, vec![server_id(), Payload::Eap(Eap::success(1))], "eap_tls"),
        (true, vec![server_id(), Payload::Eap(Eap::failure(1))], "eap_tls"),
        (true, vec![start()], "auth_refused"),
        (true, vec![server_id()], "auth_refused"),
        (
            true,
            vec![Payload::id_r(Identification::fqdn("other.example.com")), start()],
            "identity_mismatch",
        ),
    ] {
        let (mut pair, mut spy) = begun(setup(only));
        answer(&mut pair, &mut spy, 1, payloads);

        assert_eq!(pair.client.codes(), [code]);
        assert_eq!(tls(&pair), 0, "{code}");
        assert_eq!(pair.client.established().len(), 0);
        assert_eq!(pair.client.inbound(), []);
    }
}

#[test]
fn another_method_is_declined_and_ours_asked_for() {
    let (mut pair, mut spy) = begun(setup(true));
    let md5 = Payload::Eap(Eap::request(1, EapType::from(4), vec![1; 17]));
    answer(&mut pair, &mut spy, 1, vec![server_id(), md5]);

    let said = spy.hear(&pair.wire[0]).payloads().unwrap();
    assert_eq!(said.eap(), Some(&Eap::response(1, EapType::Nak, vec![13])));
    let failure = Payload::Eap(Eap::failure(1));
    answer(&mut pair, &mut spy, 2, vec![failure]);
    assert_eq!(pair.client.codes(), ["eap_tls"]);
}

#[test]
fn a_server_without_eap_is_told_apart() {
    let mut setup = setup(true);
    setup.server.eap_tls = false;
    let (mut pair, _) = begun(setup);
    pair.run();
    assert_eq!(pair.server.codes(), ["eap_not_offered"]);
    assert_eq!(pair.client.codes(), ["auth_refused"]);
    pair.assert_no_leaks();
}

#[test]
fn eap_goes_with_several_key_exchanges_and_without_a_child() {
    let mut setup =
        setup(true).suites("aes256gcm16-prfsha384-x25519-ke1_ecp256", "aes256gcm16-esn");
    setup.target.first_child = ike::config::FirstChild::Separately;
    let mut pair = Pair::connected_with(setup);
    pair.assert_traffic_flows();
    let ike = pair.client.established()[0].id;
    pair.command(Side::Client, ike::Command::Reauthenticate(ike));
    pair.run();
    pair.assert_connected();
    pair.assert_no_leaks();
}

/// RFC 3748 5.2: what a server says to the user is acknowledged, before the method and within it.
#[test]
fn a_notification_of_the_server_is_acknowledged() {
    let said = b"the building closes at six".to_vec();
    let (mut pair, mut spy) = begun(setup(true));
    let notification = Payload::Eap(Eap::request(5, EapType::Notification, said.clone()));
    answer(&mut pair, &mut spy, 1, vec![server_id(), notification]);
    let acknowledged = spy.hear(&pair.wire[0]).payloads().unwrap();
    assert_eq!(acknowledged.eap(), Some(&Eap::response(5, EapType::Notification, vec![])));

    let start = Payload::Eap(Eap::request(6, EapType::Tls, vec![0x20]));
    answer(&mut pair, &mut spy, 2, vec![start]);
    assert_eq!(tls(&pair), 1, "the method goes on as if nothing had been said");
    let notification = Payload::Eap(Eap::request(7, EapType::Notification, said));
    answer(&mut pair, &mut spy, 3, vec![notification]);
    let acknowledged = spy.hear(&pair.wire[0]).payloads().unwrap();
    assert_eq!(acknowledged.eap(), Some(&Eap::response(7, EapType::Notification, vec![])));
    assert_eq!(tls(&pair), 1);
    assert!(pair.client.codes().is_empty());
}

/// RFC 7296 2.16 leaves it to the sides how often they speak: a server that never comes to an end
/// does not keep us for longer than a minute.
#[test]
fn a_server_that_always_asks_for_more_is_given_up() {
    let (mut pair, mut spy) = begun(setup(true));
    let more = |n: u8| Payload::Eap(Eap::request(n, EapType::Notification, vec![]));
    answer(&mut pair, &mut spy, 1, vec![server_id(), more(1)]);
    for n in 2..=6 {
        pair.wait(Duration::from_secs(9));
        answer(&mut pair, &mut spy, n.into(), vec![more(n)]);
        assert!(pair.client.codes().is_empty(), "after {} s", (n - 1) * 9);
    }
    pair.wait(Duration::from_secs(16));

    assert_eq!(pair.client.codes(), ["eap_too_slow"]);
    assert!(pair.client.established().is_empty());
    pair.wire.clear();
    pair.assert_no_leaks();
}

/// RFC 8784 3: an optional post-quantum preshared key is done without, a required one is not.
#[test]
fn an_optional_ppk_does_not_keep_eap_from_working() {
    for required in [false, true] {
        let mut setup = setup(true);
        setup.client.ppk = true;
        setup.server.ppk = true;
        setup.target.ppk = Some(ike::config::PpkUse { id: b"ppk".to_vec(), required });
        let mut pair = setup.build();
        pair.initiate();
        pair.run();

        if required {
            assert_eq!(pair.client.codes(), ["ppk_with_eap"]);
        } else {
            pair.assert_connected();
            assert!(pair.client.codes().is_empty() && pair.server.codes().is_empty());
        }
    }
}
