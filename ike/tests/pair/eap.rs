//! EAP-TLS as responder (RFC 7296 2.16, RFC 5216, RFC 5998). The client is a spy that has the
//! client's keys; the TLS is a stand-in of the harness.

use std::time::Duration;

use ike::io::Action;
use ike::wire::{
    CfgAttr, CfgType, Configuration, Eap, EapCode, EapType, ExchangeType, Identification, Notify,
    NotifyType, Payload, Payloads, TrafficSelectors,
};

use crate::harness::*;
use crate::spy::Spy;

/// A client that talks EAP.
struct Client {
    pair: Pair,
    spy: Spy,
    id: Identification,
    offer: Payloads,
    message_id: u32,
    identifier: u8,
}

impl Client {
    /// IKE_SA_INIT is over; what the ordinary client would offer is kept.
    fn new(change: impl FnOnce(&mut Setup)) -> Self {
        let mut setup = Setup::new().quiet();
        setup.server.eap_tls = true;
        setup.server.eap_only = true;
        change(&mut setup);
        let mut pair = setup.build();
        pair.initiate();
        pair.step();
        pair.step();
        let spy = Spy::of(&pair);
        let request = pair.lose();
        let offer = spy.hear(&request).payloads().unwrap();
        let id = Identification::fqdn("eap.example.com");
        Self { pair, spy, id, offer, message_id: 0, identifier: 0 }
    }

    fn ask(&mut self, exchange: ExchangeType, payloads: &Payloads) -> Payloads {
        self.message_id += 1;
        let said =
            self.spy.say(&self.pair, Side::Client, exchange, false, self.message_id, payloads);
        self.pair.deliver(said);
        let answer = self.pair.lose();
        assert_eq!(answer.exchange(), exchange);
        let payloads = self.spy.hear(&answer).payloads().unwrap();
        if let Some(eap) = payloads.eap() {
            self.identifier = eap.identifier;
        }
        payloads
    }

    /// The first request: no AUTH.
    fn begin(&mut self, only: bool) -> Payloads {
        let mut payloads = Payloads::from(vec![Payload::id_i(self.id.clone())]);
        if only {
            payloads.push_notify(Notify::new(NotifyType::EapOnlyAuthentication));
        }
        let cp = CfgType::Request;
        let attributes = vec![CfgAttr::Ip4Address(None)];
        payloads.push(Payload::Cp(Configuration { cfg_type: cp, attributes }));
        payloads.push(Payload::Sa(self.offer.sa().unwrap().clone()));
        let any = ike::wire::TrafficSelector::any_v4();
        payloads.push(Payload::TsI(TrafficSelectors::new(vec![any])));
        payloads.push(Payload::TsR(TrafficSelectors::new(vec![any])));
        self.ask(ExchangeType::IkeAuth, &payloads)
    }

    fn answer(&mut self, data: &[u8]) -> Payloads {
        let eap = Eap::response(self.identifier, EapType::Tls, data.to_vec());
        self.ask(ExchangeType::IkeAuth, &Payloads::from(vec![Payload::Eap(eap)]))
    }

    fn tls(&mut self, tls: &[u8]) -> Payloads {
        self.answer(&[&[0], tls].concat())
    }

    /// Everything up to EAP-Success.
    fn succeed(&mut self) {
        let first = self.tls(b"hello");
        assert_eq!(first.eap().unwrap().data[0], 0xc0, "a first fragment");
        self.answer(&[0]);
        let last = self.tls(b"finished");
        assert_eq!(last.eap().unwrap().data, b"\0finished too");
        let success = self.answer(&[]);
        assert_eq!(success.eap(), Some(&Eap::success(self.identifier)));
    }

    /// The last request: AUTH made with this key.
    fn auth(&mut self, key: &[u8]) -> Payloads {
        let auth = self.spy.mic(Side::Client, &self.id, key);
        self.ask(ExchangeType::IkeAuth, &Payloads::from(vec![Payload::Auth(auth)]))
    }

    /// Nothing came up, and nothing is left.
    fn assert_refused(mut self, code: &str) {
        assert_eq!(self.pair.server.codes(), [code]);
        assert!(self.pair.server.alive().is_empty());
        assert_eq!(self.pair.server.inbound(), []);
        self.pair.wire.clear();
        self.pair.assert_no_leaks();
    }
}

fn is_failure(payloads: &Payloads) -> bool {
    payloads.has_notify(NotifyType::AuthenticationFailed)
        && payloads.eap().is_some_and(|eap| eap.code == EapCode::Failure)
}

#[test]
fn eap_only_proves_both_sides_without_a_signature() {
    let mut client = Client::new(|_| {});

    // <-- IDr, EAP(start): RFC 5998 3
    let first = client.begin(true);
    assert_eq!(first.id_r().unwrap().id, Identification::fqdn("gw.example.com"));
    assert!(first.auth().is_none() && first.certs().count() == 0);
    assert_eq!(first.eap().unwrap().data, [0x20]);
    client.succeed();
    assert!(client.pair.server.established().is_empty());
    // --> AUTH, <-- AUTH, CP, SA, TSi, TSr
    let last = client.auth(MSK);

    let gateway = Identification::fqdn("gw.example.com");
    assert_eq!(last.auth(), Some(&client.spy.mic(Side::Server, &gateway, MSK)));
    assert!(last.sa().is_some() && last.cp().is_some() && last.id_r().is_none());
    let sa = &client.pair.server.established()[0];
    assert_eq!(sa.identity.as_deref(), Some("eap.example.com"));
    assert_eq!(client.pair.server.inbound().len(), 1);
    client.pair.wire.clear();
    client.pair.assert_no_leaks();
}

#[test]
fn unless_both_want_eap_only_the_first_response_is_signed() {
    for (wanted, offered) in [(false, true), (true, false)] {
        let mut client = Client::new(|setup| setup.server.eap_only = offered);

        let first = client.begin(wanted);

        // RFC 7296 2.16: the responder authenticates itself before EAP begins.
        assert!(first.auth().is_some());
        assert_eq!(first.certs().count(), 1);
        client.succeed();
        let last = client.auth(MSK);
        assert_eq!(last.certs().count(), 0);
        assert_eq!(client.pair.server.established().len(), 1);
        client.pair.wire.clear();
        client.pair.assert_no_leaks();
    }
}

#[test]
fn nobody_is_authorised_before_the_last_auth() {
    let mut client = Client::new(|_| {});
    client.begin(true);
    client.succeed();

    let authorised = |client: &Client| {
        client
            .pair
            .server
            .outputs
            .iter()
            .any(|output| matches!(output, ike::Output::Action(_, Action::Authorise(_))))
    };
    assert!(!authorised(&client));
    let failed = client.auth(&[0x55; 64]);

    assert!(failed.has_notify(NotifyType::AuthenticationFailed));
    assert!(!authorised(&client));
    client.assert_refused("wrong_eap_auth");
}

#[test]
fn a_peer_whose_certificate_is_refused_hears_eap_failure() {
    let mut client = Client::new(|_| {});
    client.begin(true);

    let failed = client.tls(b"expired");

    assert!(is_failure(&failed), "{failed:?}");
    client.assert_refused("certificate_expired");
}

#[test]
fn another_method_is_refused_by_name() {
    let mut client = Client::new(|_| {});
    client.begin(true);
    let nak = Eap::response(client.identifier, EapType::Nak, vec![26]);

    let failed = client.ask(ExchangeType::IkeAuth, &Payloads::from(vec![Payload::Eap(nak)]));

    assert!(is_failure(&failed));
    assert!(client.pair.server.refusals()[0].what.contains("MSCHAPV2"));
    client.assert_refused("eap_method");
}

#[test]
fn what_is_out_of_turn_ends_the_handshake() {
    type Say = fn(&mut Client) -> Payloads;
    let cases: [(Say, &str); 6] = [
        // AUTH before EAP is over
        (|client| client.auth(MSK), "eap_out_of_turn"),
        // an acknowledgement of nothing
        (|client| client.answer(&[0]), "eap_tls"),
        // an answer to another request
        (
            |client| {
                client.identifier = client.identifier.wrapping_add(9);
                client.tls(b"hello")
            },
            "eap_tls",
        ),
        // our TLS has nothing to say
        (|client| client.tls(b"silence"), "eap_tls"),
        // a request, not an answer
        (
            |client| {
                let eap = Eap::request(client.identifier, EapType::Tls, vec![0, 1]);
                client.ask(ExchangeType::IkeAuth, &Payloads::from(vec![Payload::Eap(eap)]))
            },
            "eap_tls",
        ),
        // nothing at all
        (|client| client.ask(ExchangeType::IkeAuth, &Payloads::new()), "eap_out_of_turn"),
    ];
    for (say, code) in cases {
        let mut client = Client::new(|_| {});
        client.begin(true);

        let answer = say(&mut client);

        assert!(answer.error_notify().is_some(), "{code}");
        client.assert_refused(code);
    }
}

#[test]
fn eap_after_success_is_no_auth() {
    let mut client = Client::new(|_| {});
    client.begin(true);
    client.succeed();

    let answer = client.tls(b"hello");

    assert!(answer.error_notify().is_some());
    client.assert_refused("eap_out_of_turn");
}

#[test]
fn other_exchanges_have_no_place_before_the_peer_is_authenticated() {
    for exchange in [ExchangeType::Informational, ExchangeType::CreateChildSa] {
        let mut client = Client::new(|_| {});
        client.begin(true);

        let answer = client.ask(exchange, &Payloads::new());

        assert!(answer.has_notify(NotifyType::InvalidSyntax));
        client.assert_refused("invalid_syntax");
    }
}

#[test]
fn a_repeated_request_gets_the_same_response_and_no_second_turn() {
    let mut client = Client::new(|_| {});
    client.begin(true);
    let eap = Eap::response(client.identifier, EapType::Tls, b"\0hello".to_vec());
    let payloads = Payloads::from(vec![Payload::Eap(eap)]);
    let auth = ExchangeType::IkeAuth;
    let said = client.spy.say(&client.pair, Side::Client, auth, false, 2, &payloads);
    client.pair.deliver(said.clone());
    let answer = client.pair.lose();

    client.pair.deliver(said);

    assert_eq!(client.pair.lose(), answer);
    let turns = client
        .pair
        .server
        .outputs
        .iter()
        .filter(|output| matches!(output, ike::Output::Action(_, Action::EapTls(_))));
    assert_eq!(turns.count(), 1);
    client.pair.wire.clear();
    client.pair.assert_no_leaks();
}

#[test]
fn a_conversation_has_the_time_of_a_handshake() {
    let mut client = Client::new(|_| {});
    client.begin(true);
    client.tls(b"hello");
    assert_eq!(client.pair.server.engine.stats().half_open, 1);

    client.pair.wait(Duration::from_secs(31));

    assert_eq!(client.pair.server.engine.stats().half_open, 0);
    assert_eq!(client.pair.server.engine.sas().count(), 0);
    client.pair.wire.clear();
    client.pair.assert_no_leaks();
}

#[test]
fn a_tls_that_never_answers_ends_the_handshake() {
    let mut client = Client::new(|_| {});
    client.pair.server.hold = |action| matches!(action, Action::EapTls(_));
    client.begin(true);
    let eap = Eap::response(client.identifier, EapType::Tls, b"\0hello".to_vec());
    let payloads = Payloads::from(vec![Payload::Eap(eap)]);
    let said =
        client.spy.say(&client.pair, Side::Client, ExchangeType::IkeAuth, false, 2, &payloads);
    client.pair.deliver(said);

    client.pair.wait(Duration::from_secs(16));

    client.pair.server.held.clear();
    client.assert_refused("timeout");
}

#[test]
fn eap_is_refused_while_it_is_not_offered() {
    let mut client = Client::new(|setup| setup.server.eap_tls = false);

    let answer = client.begin(true);

    assert!(answer.has_notify(NotifyType::AuthenticationFailed));
    assert!(client.pair.server.refusals()[0].fix.contains("eap_tls = true"));
    client.assert_refused("eap_not_offered");
}
