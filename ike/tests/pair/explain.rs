//! Each exchange that fails or is odd is explained once to the operator of each side it is known
//! to: one event with a stable code, what differed, and what to change.

use std::time::Duration;

use ike::config::{LocalAuth, PpkUse, RemoteAuth};
use ike::io::{Action, Completion, UniquePolicy};
use ike::wire::{
    ChildSpi, EsnId, ExchangeType, IkeSpi, KeMethod, KeyExchange, Nonce, Notify, NotifyType,
    Payload, PayloadType, Payloads, Proposal, ProtocolId, SecurityAssociation, TrafficSelector,
    TrafficSelectors, Transform,
};
use ike::{Command, Input, WallTime};

use crate::harness::*;
use crate::spy::Spy;

/// What is asserted of each case: its name, the codes the client's operator sees, and the
/// server's.
type Case = (&'static str, fn() -> Pair, &'static [&'static str], &'static [&'static str]);

fn assert_explained(cases: &[Case]) {
    for (name, play, client, server) in cases {
        let pair = play();
        assert_eq!(pair.client.codes(), *client, "{name}: the client");
        assert_eq!(pair.server.codes(), *server, "{name}: the server");
        for peer in [&pair.client, &pair.server] {
            for refusal in peer.refusals() {
                let stands_for_the_gateway = refusal.what == refusal.code;
                assert!(!refusal.what.is_empty(), "{name}: {refusal:?}");
                assert!(
                    !refusal.fix.is_empty() || stands_for_the_gateway,
                    "{name}: no fix: {refusal:?}"
                );
                assert!(refusal.remote.is_some(), "{name}: whose? {refusal:?}");
            }
        }
    }
}

/// A handshake under changed circumstances, until nothing is left to happen.
fn handshake(change: impl FnOnce(&mut Setup)) -> Pair {
    let mut setup = Setup::new().quiet();
    change(&mut setup);
    let mut pair = setup.build();
    pair.initiate();
    pair.run_for(Duration::from_secs(60));
    pair
}

/// The same with the two peers changed, too.
fn handshake_of(change: impl FnOnce(&mut Pair)) -> Pair {
    let mut pair = Setup::new().quiet().build();
    change(&mut pair);
    pair.initiate();
    pair.run_for(Duration::from_secs(60));
    pair
}

/// One where all datagrams after the first `count` are lost.
fn cut_after(count: usize) -> Pair {
    let mut pair = Setup::new().quiet().build();
    pair.initiate();
    for _ in 0..count {
        pair.step();
    }
    for _ in 0..120 {
        pair.wire.clear();
        pair.wait(Duration::from_secs(1));
    }
    pair
}

#[test]
fn each_failed_handshake_is_explained_once_to_each_side() {
    // RFC 7296 2.21.1, 2.21.2.
    assert_explained(&[
        ("nobody answers", || cut_after(0), &["no_answer"], &[]),
        (
            "only the first exchange passes",
            || cut_after(2),
            &["no_answer"],
            &["handshake_unfinished"],
        ),
        (
            "no common IKE proposal",
            || {
                handshake(|setup| {
                    setup.server.ike_suites = ike("chacha20poly1305-prfsha256-ecp384");
                })
            },
            &["init_refused"],
            &["no_proposal_chosen"],
        ),
        (
            "no common ESP proposal",
            || handshake(|setup| setup.server.esp_suites = esp("chacha20poly1305-noesn")),
            &["child_refused"],
            &["no_esp_proposal_chosen"],
        ),
        (
            "no common selectors",
            || handshake(|setup| setup.target.ts_remote = vec![net("172.16.0.0", "172.16.0.9")]),
            &["child_refused"],
            &["ts_unacceptable"],
        ),
        (
            "no address of the family",
            || {
                handshake(|setup| {
                    setup.target.request_ipv4 = false;
                    setup.grant.as_mut().unwrap().addresses = vec!["10.77.0.2".parse().unwrap()];
                })
            },
            &["child_refused"],
            &["no_address"],
        ),
        ("no lease", || handshake(|setup| setup.grant = None), &["auth_refused"], &["no_lease"]),
        (
            "the lease is over",
            || handshake(|setup| setup.grant.as_mut().unwrap().deadline = WallTime(START - 1)),
            &["auth_refused"],
            &["lease_expired"],
        ),
        (
            "another key than the certificate's",
            || handshake(|setup| setup.client.credentials[0].chain = vec![Key::ecdsa().spki]),
            &["auth_refused"],
            &["bad_signature"],
        ),
        (
            "too many certificates",
            || {
                handshake(|setup| {
                    setup.client.credentials[0].chain.extend(vec![vec![0x30; 10]; 8]);
                })
            },
            &["auth_refused"],
            &["too_many_certificates"],
        ),
        (
            "the server has no certificate",
            || handshake(|setup| setup.server.credentials.clear()),
            &["auth_refused"],
            &["no_credential"],
        ),
        (
            "the client has no certificate",
            || handshake(|setup| setup.client.credentials.clear()),
            &["no_credential"],
            &["handshake_unfinished"],
        ),
        (
            "the client expects someone else",
            || {
                handshake(|setup| {
                    setup.target.expected = Some(ike::wire::Identification::fqdn("other"));
                })
            },
            &["identity_mismatch"],
            &[],
        ),
        (
            "the client requires a post-quantum key that the server has none of",
            || {
                handshake(|setup| {
                    setup.target.ppk = Some(PpkUse { id: b"one".to_vec(), required: true });
                })
            },
            &["ppk_refused"],
            &["handshake_unfinished"],
        ),
        (
            "the client finds no shared key",
            || {
                handshake(|setup| {
                    setup.target.local_auth = LocalAuth::SharedKey;
                    setup.target.remote_auth = RemoteAuth::SharedKey;
                })
            },
            &["unknown_identity"],
            &["handshake_unfinished"],
        ),
        (
            "the server's signature fails",
            || {
                let mut pair = Setup::new().quiet().build();
                pair.server.hold = |action| matches!(action, Action::Sign { .. });
                pair.initiate();
                pair.run();
                let (token, _) = pair.server.held.remove(0);
                let failed = Completion::Sign(Err("the key is gone".to_owned()));
                pair.input(Side::Server, Input::Completion(token, failed));
                pair.run_for(Duration::from_secs(60));
                pair
            },
            &["auth_refused"],
            &["sign"],
        ),
        (
            "nobody checks the client's certificate",
            || {
                handshake_of(|pair| {
                    pair.server.hold = |action| matches!(action, Action::VerifyPeer(_));
                })
            },
            &["auth_refused"],
            &["timeout"],
        ),
        (
            "the server's data plane does not install",
            || {
                handshake_of(|pair| {
                    pair.server.hold = |action| matches!(action, Action::InstallChild(_));
                })
            },
            &["child_refused"],
            &["data_plane"],
        ),
        (
            "the lease is connected already",
            || {
                let mut setup = Setup::new().quiet();
                setup.grant.as_mut().unwrap().unique = UniquePolicy::Reject;
                let mut pair = Pair::connected_with(setup);
                pair.initiate();
                pair.run_for(Duration::from_secs(60));
                pair
            },
            &["auth_refused"],
            &["lease_in_use"],
        ),
        (
            "the client authenticates again and gets no child",
            || {
                let mut pair = Pair::connected();
                pair.server.config.esp_suites = esp("chacha20poly1305-noesn");
                let config = Box::new(pair.server.config.clone());
                pair.command(Side::Server, Command::Reconfigure(config));
                let id = pair.client.established()[0].id;
                pair.command(Side::Client, Command::Reauthenticate(id));
                pair.run();
                pair
            },
            &["reauth_without_child"],
            &["no_esp_proposal_chosen"],
        ),
    ]);
}

/// A connected pair where the server was given a request of the client's that its engine would
/// not make.
fn requested(kind: ExchangeType, payloads: &Payloads) -> Pair {
    let mut pair = Pair::connected();
    let mut spy = Spy::of(&pair);
    let said = spy.say(&pair, Side::Client, kind, false, 2, payloads);
    pair.deliver(said);
    assert_eq!(pair.wire.len(), 1, "no answer");
    pair.wire.clear();
    pair
}

fn created(payloads: Vec<Payload>) -> Pair {
    requested(ExchangeType::CreateChildSa, &Payloads::from(payloads))
}

fn nonce(len: usize) -> Payload {
    Payload::Nonce(Nonce::new(vec![3; len]).unwrap())
}

fn child_offer(transforms: Vec<Transform>) -> Payload {
    let proposal = Proposal::new(1, ProtocolId::Esp, transforms);
    Payload::Sa(SecurityAssociation::new(vec![proposal.with_child_spi(ChildSpi(0xc000_9999))]))
}

fn accepted_child() -> Payload {
    let suite = esp("aes256gcm16-noesn").remove(0);
    child_offer(vec![
        Transform::encr(suite.encryption.id, suite.encryption.key_bits),
        Transform::esn(EsnId::NoEsn),
    ])
}

fn selectors(remote: TrafficSelector) -> [Payload; 2] {
    [
        Payload::TsI(TrafficSelectors::new(vec![TrafficSelector::any_v4()])),
        Payload::TsR(TrafficSelectors::new(vec![remote])),
    ]
}

fn ike_offer(spi: u64) -> Payload {
    let suite = ike("aes256gcm16-prfsha384-x25519").remove(0);
    let proposal = Proposal::new(
        1,
        ProtocolId::Ike,
        vec![
            Transform::encr(suite.encryption.id, suite.encryption.key_bits),
            Transform::prf(suite.prf),
            Transform::ke(suite.kex),
        ],
    );
    Payload::Sa(SecurityAssociation::new(vec![proposal.with_ike_spi(IkeSpi(spi))]))
}

fn ke(len: usize) -> Payload {
    Payload::Ke(KeyExchange::new(KeMethod::Curve25519, vec![9; len]))
}

#[test]
fn each_refused_request_is_explained_once() {
    // RFC 7296 2.21.3.
    assert_explained(&[
        (
            "a malformed request",
            || {
                let mut pair = Pair::connected();
                let mut spy = Spy::of(&pair);
                let kind = (ExchangeType::CreateChildSa, false, 2);
                let (first, octets) = BROKEN;
                let said = spy.say_octets(&pair, Side::Client, kind, first, &octets);
                pair.deliver(said);
                pair.wire.clear();
                pair
            },
            &[],
            &["invalid_syntax"],
        ),
        ("no proposals", || created(vec![nonce(32)]), &[], &["invalid_syntax"]),
        ("a nonce too short", || created(vec![accepted_child(), nonce(16)]), &[], &["short_nonce"]),
        (
            "no common ESP proposal",
            || {
                let [ts_i, ts_r] = selectors(TrafficSelector::any_v4());
                let esn = vec![Transform::esn(EsnId::NoEsn)];
                created(vec![child_offer(esn), nonce(32), ts_i, ts_r])
            },
            &[],
            &["no_esp_proposal_chosen"],
        ),
        (
            "no common selectors",
            || {
                let [ts_i, ts_r] = selectors(net("172.16.0.0", "172.16.0.9"));
                created(vec![accepted_child(), nonce(32), ts_i, ts_r])
            },
            &[],
            &["ts_unacceptable"],
        ),
        (
            "a child that is not there",
            || {
                let rekey =
                    Notify::about(NotifyType::RekeySa, ProtocolId::Esp, ChildSpi(0xdead_beef));
                let [ts_i, ts_r] = selectors(TrafficSelector::any_v4());
                created(vec![Payload::Notify(rekey), accepted_child(), nonce(32), ts_i, ts_r])
            },
            &[],
            &["child_sa_not_found"],
        ),
        (
            "too many children",
            || {
                let mut pair = Pair::connected();
                let mut spy = Spy::of(&pair);
                for id in 2..18 {
                    let [ts_i, ts_r] = selectors(TrafficSelector::any_v4());
                    let Payload::Sa(mut sa) = accepted_child() else { unreachable!() };
                    let proposal =
                        sa.proposals.remove(0).with_child_spi(ChildSpi(0xc000_0000 + id));
                    let sa = Payload::Sa(SecurityAssociation::new(vec![proposal]));
                    let payloads = Payloads::from(vec![sa, nonce(32), ts_i, ts_r]);
                    let kind = ExchangeType::CreateChildSa;
                    let said = spy.say(&pair, Side::Client, kind, false, id, &payloads);
                    pair.deliver(said);
                }
                pair.wire.clear();
                pair
            },
            &[],
            &["no_additional_sas"],
        ),
        (
            "an IKE rekey without key exchange",
            || created(vec![ike_offer(7), nonce(32)]),
            &[],
            &["invalid_syntax"],
        ),
        (
            "an IKE rekey with an SPI of zero",
            || created(vec![ike_offer(0), nonce(32), ke(32)]),
            &[],
            &["invalid_spi"],
        ),
        (
            "an IKE rekey with half a public value",
            || created(vec![ike_offer(7), nonce(32), ke(16)]),
            &[],
            &["invalid_ke"],
        ),
        (
            "an additional key exchange of no rekey",
            || requested(ExchangeType::IkeFollowupKe, &Payloads::from(vec![ke(32)])),
            &[],
            &["state_not_found"],
        ),
        (
            "IKE_AUTH once more",
            || requested(ExchangeType::IkeAuth, &Payloads::new()),
            &[],
            &["invalid_syntax"],
        ),
    ]);
}

/// A nonce of one octet.
const BROKEN: (PayloadType, [u8; 5]) = (PayloadType::Nonce, [0, 0, 0, 5, 1]);

fn answered(ike: bool, payloads: &Payloads) -> Pair {
    let (first, octets) = payloads.encode().unwrap();
    answered_by(ike, first, &octets)
}

/// A rekey of the client's whose answer is made up.
fn answered_by(ike: bool, first: PayloadType, octets: &[u8]) -> Pair {
    let mut pair = Pair::connected();
    let mut spy = Spy::of(&pair);
    let command = match ike {
        true => Command::RekeyIke(pair.client.established()[0].id),
        false => Command::RekeyChild(*pair.client.plane.keys().next().unwrap()),
    };
    pair.command(Side::Client, command);
    pair.lose();
    let kind = (ExchangeType::CreateChildSa, true, 2);
    let said = spy.say_octets(&pair, Side::Server, kind, first, octets);
    pair.deliver(said);
    pair.wire.clear();
    assert_eq!(pair.client.established().len(), 1);
    assert_eq!(pair.client.plane.len(), 1, "the old child stays");
    pair
}

fn answered_with(ike: bool, notify: Notify) -> Pair {
    answered(ike, &Payloads::from(vec![Payload::Notify(notify)]))
}

fn broken(ike: bool) -> Pair {
    answered_by(ike, BROKEN.0, &BROKEN.1)
}

#[test]
fn each_failed_rekey_of_ours_is_explained_once() {
    assert_explained(&[
        ("a child: malformed", || broken(false), &["invalid_syntax"], &[]),
        ("an IKE SA: malformed", || broken(true), &["invalid_syntax"], &[]),
        ("a child: incomplete", || answered(false, &Payloads::new()), &["bad_child"], &[]),
        ("an IKE SA: incomplete", || answered(true, &Payloads::new()), &["bad_rekey"], &[]),
        (
            "a child: refused",
            || answered_with(false, Notify::new(NotifyType::NoProposalChosen)),
            &["rekey_refused"],
            &[],
        ),
        (
            "an IKE SA: refused",
            || answered_with(true, Notify::new(NotifyType::NoProposalChosen)),
            &["rekey_refused"],
            &[],
        ),
        (
            "a child: a group that was not offered",
            || answered_with(false, Notify::invalid_ke(KeMethod::Modp1024)),
            &["rekey_refused"],
            &[],
        ),
        (
            "an IKE SA: a group that was not offered",
            || answered_with(true, Notify::invalid_ke(KeMethod::Modp1024)),
            &["rekey_refused"],
            &[],
        ),
        // RFC 7296 2.25: this is how exchanges that cross get out of each other's way.
        (
            "a child: not now",
            || answered_with(false, Notify::new(NotifyType::TemporaryFailure)),
            &[],
            &[],
        ),
        (
            "an IKE SA: not now",
            || answered_with(true, Notify::new(NotifyType::TemporaryFailure)),
            &[],
            &[],
        ),
    ]);
}

/// A flood of strangers that never go on does not fill the log.
#[test]
fn of_strangers_that_never_go_on_a_few_are_reported_each_second() {
    // RFC 7296 2.21.1.
    let mut pair = Setup::new().quiet().build();
    pair.initiate();
    let first = pair.lose();
    for host in 1..=60 {
        let mut copy = first.clone();
        copy.datagram.remote = address(&format!("203.0.113.{host}"), 500);
        pair.deliver(copy);
    }
    pair.wire.clear();
    assert!(pair.server.engine.stats().half_open > 30);

    pair.wait(Duration::from_secs(31));

    assert_eq!(pair.server.engine.stats().half_open, 0);
    let reported = pair.server.codes().len();
    assert!((1..=20).contains(&reported), "{reported} reports at once");
}
