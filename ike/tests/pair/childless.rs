//! An initiator whose IKE SA is made without a child (RFC 6023), and the child by a CREATE_CHILD_SA
//! of its own: at once, or when it is told to (RFC 7296 1.3.1).

use std::time::Duration;

use ike::config::FirstChild;
use ike::crypto::KeMethod;
use ike::event::CloseReason;
use ike::io::{Action, Completion, LeaseId};
use ike::wire::{ExchangeType, Message, Notify, NotifyType, Payload, PayloadType, Payloads};
use ike::{Command, Input};

use crate::harness::*;
use crate::spy::Spy;

const IKE: &str = "aes256gcm16-prfsha384-x25519";

fn setup(first_child: FirstChild, esp: &str) -> Setup {
    let mut setup = Setup::new().quiet().suites(IKE, esp);
    setup.target.first_child = first_child;
    setup
}

/// Runs to the end and tells which messages it took.
fn exchanges(pair: &mut Pair) -> Vec<ExchangeType> {
    std::iter::from_fn(|| pair.step()).map(|flight| flight.exchange()).collect()
}

/// The exchanges, each with its answer.
fn twice(exchanges: &[ExchangeType]) -> Vec<ExchangeType> {
    exchanges.iter().flat_map(|exchange| [*exchange; 2]).collect()
}

#[test]
fn the_child_is_made_right_after_with_a_key_exchange_of_its_own() {
    use ExchangeType::{CreateChildSa, IkeAuth, IkeFollowupKe, IkeSaInit};

    let one = [IkeSaInit, IkeAuth, CreateChildSa];
    let several = [IkeSaInit, IkeAuth, CreateChildSa, IkeFollowupKe];
    for (suite, expected) in [
        ("aes256gcm16-esn", &one[..]),
        ("aes256gcm16-x25519-esn", &one[..]),
        ("aes256gcm16-x25519-ke1_ecp256-esn", &several[..]),
    ] {
        let mut pair = setup(FirstChild::Separately, suite).build();
        pair.initiate();

        assert_eq!(exchanges(&mut pair), twice(expected), "{suite}");

        pair.assert_connected();
        pair.assert_traffic_flows();
        let child = pair.client.established()[0].children[0].clone();
        assert_eq!(child.suite.to_string(), suite);
        assert_eq!(child.ts_remote, [net("10.20.0.0", "10.20.0.255")]);
        assert_eq!(child.ts_local, [net("10.77.0.2", "10.77.0.2"), net("fd77::2", "fd77::2")]);
        assert!(pair.client.codes().is_empty() && pair.server.codes().is_empty());
        // It is a child like any other.
        for side in [Side::Client, Side::Server] {
            let child = pair.peer(side).established()[0].children[0].id;
            pair.command(side, Command::RekeyChild(child));
            pair.run();
            pair.assert_connected();
            pair.assert_traffic_flows();
        }
        pair.assert_no_leaks();
    }
}

/// RFC 7296 1.3: the peer wants another group than the first that is offered, once.
#[test]
fn the_child_may_have_another_key_exchange_than_the_first() {
    use ExchangeType::{CreateChildSa, IkeAuth, IkeSaInit};

    let (first, other) = ("aes256gcm16-x25519-ecp256-esn", "aes256gcm16-ecp256-esn");
    let mut setup = setup(FirstChild::Separately, first);
    setup.server.esp_suites = esp(other);
    for config in [&mut setup.client, &mut setup.server] {
        config.ike_suites = ike("aes256gcm16-prfsha384-x25519-ecp256");
    }
    let mut pair = setup.build();
    pair.initiate();

    let expected = twice(&[IkeSaInit, IkeAuth, CreateChildSa, CreateChildSa]);
    assert_eq!(exchanges(&mut pair), expected);

    pair.assert_connected();
    assert_eq!(pair.client.established()[0].children[0].suite.to_string(), other);
    assert!(pair.client.codes().is_empty() && pair.server.codes().is_empty());
    pair.assert_no_leaks();
}

/// A group that cannot be: no end of asking, but not without pause.
#[test]
fn a_key_exchange_that_cannot_be_had_is_not_asked_for_at_once_again() {
    let mut pair = setup(FirstChild::Later, "aes256gcm16-x25519-esn").build();
    pair.initiate();
    pair.step();
    pair.step();
    let mut spy = Spy::of(&pair);
    pair.run();
    let ours = pair.client.established()[0].id;
    pair.command(Side::Client, Command::CreateChild(ours));
    pair.lose();
    let mut payloads = Payloads::new();
    payloads.push_notify(Notify::invalid_ke(KeMethod::Curve25519));
    let exchange = ExchangeType::CreateChildSa;
    let answer = spy.say(&pair, Side::Server, exchange, true, 2, &payloads);
    pair.deliver(answer);

    assert!(pair.wire.is_empty());
    assert_eq!(pair.client.codes(), ["child_refused"]);
    pair.wait(Duration::from_secs(11));
    assert_eq!(pair.wire[0].exchange(), ExchangeType::CreateChildSa);
}

#[test]
fn ike_auth_asks_for_no_child_and_gets_none() {
    let mut pair = setup(FirstChild::Later, "aes256gcm16-esn").build();
    pair.initiate();
    pair.step();
    pair.step();
    let spy = Spy::of(&pair);
    let request = spy.hear(&pair.wire[0]).payloads().unwrap();
    pair.step();
    let answer = spy.hear(&pair.wire[0]).payloads().unwrap();
    pair.run();

    // RFC 6023 3
    for message in [&request, &answer] {
        for payload in [PayloadType::Sa, PayloadType::TsI, PayloadType::TsR] {
            assert!(message.iter().all(|found| found.kind() != payload), "{payload}");
        }
        assert!(message.cp().is_some(), "addresses may be asked for, and given");
    }
    assert_eq!(pair.client.established()[0].addresses.len(), 2);
    pair.assert_nothing_installed();
    pair.run_for(Duration::from_secs(60));
    pair.assert_nothing_installed();
    assert!(pair.client.codes().is_empty() && pair.server.codes().is_empty());

    // Later, when it is told to.
    let ike = pair.client.established()[0].id;
    pair.command(Side::Client, Command::CreateChild(ike));
    pair.run();
    pair.assert_connected();
    pair.assert_traffic_flows();
    // Another one beside it.
    pair.command(Side::Client, Command::CreateChild(ike));
    pair.run();
    pair.assert_mirrored(2);
    pair.assert_no_leaks();
}

#[test]
fn a_peer_that_does_not_know_it_is_refused_with_the_reason() {
    for first_child in [FirstChild::Separately, FirstChild::Later] {
        let mut pair = setup(first_child, "aes256gcm16-esn").build();
        pair.initiate();
        pair.step();
        let mut flight = pair.lose();
        let mut message = Message::parse(&flight.datagram.payload).unwrap();
        let mut without = Payloads::new();
        for payload in message.payloads.iter() {
            let told = matches!(
                payload,
                Payload::Notify(notify) if notify.kind == NotifyType::ChildlessIkev2Supported
            );
            if !told {
                without.push(payload.clone());
            }
        }
        assert!(without.iter().count() < message.payloads.iter().count());
        message.payloads = without;
        flight.datagram.payload = message.encode().unwrap();
        pair.deliver(flight);

        assert_eq!(pair.client.codes(), ["childless_unsupported"]);
        assert!(pair.client.refusals()[0].fix.contains("childless"));
        assert!(pair.wire.is_empty(), "nothing more is said");
        assert_eq!(pair.client.engine.sas().count(), 0);
        assert!(matches!(pair.client.ends()[..], [CloseReason::Failed(_)]));
        assert_eq!(pair.client.key_pairs(), 0);
    }
}

#[test]
fn a_child_that_is_refused_leaves_the_ike_sa_and_is_asked_for_again() {
    let mut setup = setup(FirstChild::Separately, "aes256gcm16-esn");
    let allowed = setup.grant.clone().unwrap();
    setup.grant.as_mut().unwrap().allowed = vec![];
    let mut pair = setup.build();
    pair.initiate();
    pair.run();

    assert_eq!(pair.client.codes(), ["child_refused"]);
    assert_eq!(pair.server.codes(), ["ts_unacceptable"]);
    assert_eq!(pair.client.established().len(), 1);
    pair.assert_nothing_installed();

    pair.command(Side::Server, Command::UpdateLease(LeaseId(LEASE.to_owned()), allowed));
    pair.run_for(Duration::from_secs(11));
    pair.assert_connected();
    pair.assert_traffic_flows();
    pair.assert_no_leaks();
}

/// RFC 7296 2.25.2: the IKE SA is rekeyed, or closed, while the child is asked for.
#[test]
fn what_crosses_the_request_for_a_child_does_it_no_harm() {
    for rekeys in [Side::Client, Side::Server] {
        let mut pair = setup(FirstChild::Later, "aes256gcm16-x25519-esn").build();
        pair.initiate();
        pair.run();
        let (ours, theirs) = (pair.client.established()[0].id, pair.server.established()[0].id);
        let id = if rekeys == Side::Client { ours } else { theirs };
        pair.command(Side::Client, Command::CreateChild(ours));
        pair.command(rekeys, Command::RekeyIke(id));
        pair.run_for(Duration::from_secs(60));

        pair.assert_connected();
        pair.assert_traffic_flows();
        assert_ne!(pair.client.established()[0].id, ours, "rekeyed too");
        pair.assert_no_leaks();
    }
    for closes in [Side::Client, Side::Server] {
        let mut pair = setup(FirstChild::Later, "aes256gcm16-x25519-esn").build();
        pair.initiate();
        pair.run();
        let (ours, theirs) = (pair.client.established()[0].id, pair.server.established()[0].id);
        let id = if closes == Side::Client { ours } else { theirs };
        pair.command(Side::Client, Command::CreateChild(ours));
        pair.command(closes, Command::CloseIkeSa(id, CloseReason::Operator));
        pair.run_for(Duration::from_secs(60));

        pair.assert_nothing_installed();
        pair.assert_no_leaks();
    }
}

/// Two new children at once are two children: neither replaces anything.
#[test]
fn children_that_both_ask_for_do_not_collide() {
    let mut pair = setup(FirstChild::Separately, "aes256gcm16-x25519-esn").build();
    pair.initiate();
    pair.run();
    let ours = pair.client.established()[0].id;
    let child = *pair.server.plane.keys().next().unwrap();
    pair.command(Side::Client, Command::CreateChild(ours));
    pair.command(Side::Server, Command::RekeyChild(child));
    pair.run_for(Duration::from_secs(60));

    pair.assert_mirrored(2);
    pair.assert_traffic_flows();
    pair.assert_no_leaks();
}

#[test]
fn each_message_of_it_may_be_lost_or_repeated() {
    for n in 0..8 {
        for twice in [false, true] {
            let suite = "aes256gcm16-x25519-ke1_ecp256-esn";
            let mut pair = setup(FirstChild::Separately, suite).build();
            pair.initiate();
            for _ in 0..n {
                pair.step();
            }
            let flight = pair.lose();
            if twice {
                pair.deliver(flight.clone());
                pair.deliver(flight);
            }
            pair.run_for(Duration::from_secs(60));
            pair.assert_connected();
            pair.assert_traffic_flows();
            pair.assert_no_leaks();
        }
    }
}

/// The peer has made its half when our side of the exchange fails: that half is closed, and the child
/// is asked for anew.
#[test]
fn a_child_that_only_the_peer_has_made_is_closed_and_asked_for_again() {
    let mut pair = setup(FirstChild::Separately, "aes256gcm16-x25519-esn").build();
    pair.initiate();
    // IKE_SA_INIT and IKE_AUTH, each with its answer, and the request of CREATE_CHILD_SA.
    for _ in 0..5 {
        pair.step();
    }
    pair.client.hold = |action| matches!(action, Action::KeyExchange(_));
    pair.step();
    assert_eq!((pair.client.held.len(), pair.server.plane.len()), (1, 1));
    let half = pair.server.inbound();
    let (token, _) = pair.client.held.remove(0);
    pair.client.hold = |_| false;
    let failed = Completion::KeyExchange(Err("too many handshakes".to_owned()));
    pair.input(Side::Client, Input::Completion(token, failed));
    pair.run_for(Duration::from_secs(60));

    pair.assert_connected();
    assert_ne!(pair.server.inbound(), half);
    pair.assert_traffic_flows();
}

/// What a process that was restarted asked for is made by nobody: no half of it stays.
#[test]
fn a_restart_while_it_is_asked_for_leaves_no_half_child() {
    for n in 0..2 {
        let mut pair = setup(FirstChild::Later, "aes256gcm16-esn").build();
        pair.initiate();
        pair.run();
        let ours = pair.client.established()[0].id;
        pair.command(Side::Client, Command::CreateChild(ours));
        for _ in 0..n {
            pair.step();
        }
        pair.wire.clear();
        pair.restart(Side::Client);
        pair.run_for(Duration::from_secs(60));

        assert_eq!(pair.client.established().len(), 1);
        pair.assert_nothing_installed();
    }
}

/// RFC 7296 2.8.3: the second IKE SA takes over with a child of its own.
#[test]
fn who_authenticates_again_keeps_a_child() {
    for first_child in [FirstChild::Separately, FirstChild::Later] {
        let mut pair = setup(first_child, "aes256gcm16-esn").build();
        pair.initiate();
        pair.run();
        let ours = pair.client.established()[0].id;
        let children = pair.client.plane.len();
        pair.command(Side::Client, Command::Reauthenticate(ours));
        pair.run();
        pair.run_for(Duration::from_secs(60));

        assert_eq!(pair.client.established().len(), 1);
        assert_ne!(pair.client.established()[0].id, ours);
        pair.assert_mirrored(children);
        assert!(pair.client.codes().is_empty(), "{:?}", pair.client.codes());
        pair.assert_no_leaks();
    }
}

/// What was asked for under the first IKE SA is asked for under the one that replaces it
/// (RFC 7296 2.8.3): nobody else would.
#[test]
fn a_child_asked_for_before_a_reauthentication_is_made_after_it() {
    // The request is lost, or the peer has refused it for the moment.
    for refused in [false, true] {
        let mut setup = setup(FirstChild::Later, "aes256gcm16-esn");
        let allowed = setup.grant.clone().unwrap();
        if refused {
            setup.grant.as_mut().unwrap().allowed = vec![];
        }
        let mut pair = setup.build();
        pair.initiate();
        pair.run();
        let first = pair.client.established()[0].id;
        pair.command(Side::Client, Command::CreateChild(first));
        if refused {
            pair.run();
            assert_eq!(pair.client.codes(), ["child_refused"]);
            pair.server.grant = Some(allowed);
        } else {
            pair.lose();
        }
        pair.command(Side::Client, Command::Reauthenticate(first));
        pair.run();

        assert_eq!(pair.client.established().len(), 1);
        assert_ne!(pair.client.established()[0].id, first);
        pair.run_for(Duration::from_secs(20));
        pair.assert_connected();
        pair.assert_no_leaks();
    }
}

/// RFC 7296 3.13: selectors for no packet are not asked for.
#[test]
fn a_child_without_selectors_is_not_asked_for() {
    let mut setup = setup(FirstChild::Later, "aes256gcm16-esn");
    setup.target.request_ipv4 = false;
    setup.target.request_ipv6 = false;
    let mut pair = setup.build();
    pair.initiate();
    pair.run();
    let ike = pair.client.established()[0].id;

    pair.command(Side::Client, Command::CreateChild(ike));

    assert!(pair.wire.is_empty());
    assert_eq!(pair.client.codes(), ["no_selectors"]);
    pair.run_for(Duration::from_secs(30));
    assert_eq!(pair.client.codes(), ["no_selectors"], "it is said once");
    pair.assert_no_leaks();
}

/// RFC 7296 2.8.3: whoever authenticates again makes a new IKE SA with its child SAs. When the data
/// plane has not answered yet about the first child, the new SA makes one in its place and no
/// other.
#[test]
fn a_child_still_to_be_installed_is_made_once_by_who_authenticates_again() {
    let mut pair = setup(FirstChild::Separately, "aes256gcm16-esn").build();
    pair.client.hold = |action| matches!(action, Action::InstallChild(_));
    pair.initiate();
    pair.run();
    assert_eq!(pair.client.held.len(), 1);
    pair.client.hold = |_| false;

    let ike = pair.client.established()[0].id;
    pair.command(Side::Client, Command::Reauthenticate(ike));
    pair.run_for(Duration::from_secs(60));

    pair.assert_connected();
    for side in [Side::Client, Side::Server] {
        assert_eq!(pair.peer(side).plane.len(), 1, "{side:?}");
    }
    pair.assert_traffic_flows();
}
