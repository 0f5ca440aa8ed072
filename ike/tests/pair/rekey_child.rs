//! Rekeying child SAs (RFC 7296 1.3.3, 2.8, 2.17).

use std::time::Duration;

use ike::Command;
use ike::crypto::KeMethod;
use ike::event::{CloseReason, Event};
use ike::io::{Action, ChildSaId, DataplaneEvent};
use ike::wire::{ExchangeType, Notify, NotifyType, Payloads};

use crate::harness::*;
use crate::spy::Spy;

fn child(pair: &mut Pair, side: Side) -> ChildSaId {
    *pair.peer(side).plane.keys().next().unwrap()
}

fn rekey(pair: &mut Pair, side: Side) {
    let child = child(pair, side);
    pair.command(side, Command::RekeyChild(child));
}

#[test]
fn either_side_rekeys_without_losing_a_packet() {
    for side in [Side::Client, Side::Server] {
        let mut pair = Pair::connected();
        let old = pair.server.inbound();
        let old_keys = pair.server.plane.values().next().unwrap().keys_in.clone();

        rekey(&mut pair, side);
        // --> CREATE_CHILD_SA { N(REKEY_SA), SA, Ni, TSi, TSr }
        pair.step().unwrap();
        assert_eq!(pair.peer(side.other()).inbound().len(), 2);
        assert_eq!(pair.peer(side).inbound().len(), 1);
        pair.assert_traffic_flows();
        // <-- CREATE_CHILD_SA { SA, Nr, TSi, TSr }
        pair.step().unwrap();
        pair.assert_mirrored(2);
        pair.assert_traffic_flows();
        // The responder goes on sending on the old one.
        assert!(pair.peer(side.other()).activated.is_empty());
        // --> INFORMATIONAL { D }
        pair.step().unwrap();
        assert_eq!(pair.peer(side.other()).activated.len(), 1);
        assert_eq!(pair.peer(side.other()).inbound().len(), 1);
        assert_eq!(pair.peer(side).inbound().len(), 2);
        pair.assert_traffic_flows();
        // <-- INFORMATIONAL { D }
        pair.step().unwrap();
        pair.assert_mirrored(1);
        pair.assert_traffic_flows();

        assert_ne!(pair.server.inbound(), old);
        assert!(pair.server.plane.values().next().unwrap().keys_in != old_keys);
        assert!(pair.wire.is_empty());
        // The filter stays: the lease never was without a child.
        assert!(pair.server.removed.iter().all(|(_, last)| !last));
        pair.assert_no_leaks();
    }
}

#[test]
fn the_timers_rekey_over_and_over() {
    let mut setup = Setup::new().quiet();
    setup.client.timers.rekey_child = Duration::from_secs(100);
    let mut pair = Pair::connected_with(setup);

    pair.run_for(Duration::from_secs(1000));

    let rekeys = pair
        .client
        .events
        .iter()
        .filter(|event| matches!(event, Event::ChildUp { rekeys: Some(_), .. }))
        .count();
    assert!((10..=12).contains(&rekeys), "{rekeys} rekeys");
    pair.assert_connected();
    pair.assert_traffic_flows();
    pair.assert_no_leaks();
}

/// RFC 7296 2.8: times are jittered, so that both ends, and a thousand clients, do not rekey at once.
#[test]
fn the_time_of_a_rekey_is_left_to_chance_within_a_tenth() {
    let mut times = std::collections::BTreeSet::new();
    for seed in 0..20 {
        let mut setup = Setup::new().quiet();
        setup.client.timers.rekey_child = Duration::from_secs(100);
        setup.seeds.0 = 100 + seed;
        let mut pair = Pair::connected_with(setup);
        let start = pair.now.mono;
        while pair.wire.is_empty() {
            pair.wait(Duration::from_millis(100));
            assert!(pair.now.mono.since(start) <= Duration::from_millis(100_100));
        }
        let after = pair.now.mono.since(start);
        assert!(after >= Duration::from_secs(90), "{after:?}");
        times.insert(after.as_millis() / 100);
    }
    assert!(times.len() > 10, "{times:?}");
}

#[test]
fn both_sides_timers_converge() {
    let mut setup = Setup::new().quiet();
    setup.client.timers.rekey_child = Duration::from_secs(100);
    setup.server.timers.rekey_child = Duration::from_secs(100);
    let mut pair = Pair::connected_with(setup);

    pair.run_for(Duration::from_secs(2000));

    pair.assert_connected();
    pair.assert_traffic_flows();
    pair.assert_no_leaks();
}

#[test]
fn a_soft_limit_rekeys_and_a_hard_one_closes() {
    let mut pair = Pair::connected();
    let first = child(&mut pair, Side::Server);
    let event = |child, hard| ike::Input::Dataplane(DataplaneEvent::Expire { child, hard });

    pair.input(Side::Server, event(first, false));
    pair.run();
    pair.assert_connected();
    let second = child(&mut pair, Side::Server);
    assert_ne!(first, second);
    // The responder's limit is the same story.
    pair.input(Side::Server, event(second, true));
    assert_eq!(pair.server.inbound(), []);
    pair.run();

    pair.assert_nothing_installed();
    pair.assert_no_leaks();
}

#[test]
fn with_pfs_there_is_a_key_exchange() {
    let mut setup = Setup::new().quiet();
    setup.server.esp_suites = esp("aes256gcm16-ecp256-esn");
    setup.client.esp_suites = esp("aes256gcm16-ecp256-esn");
    setup.target.esp_suites = setup.client.esp_suites.clone();
    for side in [Side::Client, Side::Server] {
        let mut pair = Pair::connected_with(Setup { ..clone(&setup) });
        let agreed = |pair: &Pair| {
            let count = |peer: &Peer| {
                peer.inputs
                    .iter()
                    .filter(|(_, input)| format!("{input:?}").contains("Agreed"))
                    .count()
            };
            (count(&pair.client), count(&pair.server))
        };
        assert_eq!(agreed(&pair), (1, 1));

        rekey(&mut pair, side);
        pair.run();
        // The first rekey has no group to go by but the configuration's, the second has its own.
        rekey(&mut pair, side);
        pair.run();

        pair.assert_connected();
        pair.assert_traffic_flows();
        assert!(agreed(&pair).0 >= 2, "{:?}", agreed(&pair));
        assert_eq!(pair.server.plane.values().next().unwrap().suite.kex, Some(KeMethod::Ecp256));
        pair.assert_no_leaks();
    }
}

fn clone(setup: &Setup) -> Setup {
    let mut new = Setup::new().quiet();
    new.server.esp_suites = setup.server.esp_suites.clone();
    new.client.esp_suites = setup.client.esp_suites.clone();
    new.target.esp_suites = setup.target.esp_suites.clone();
    new
}

#[test]
fn a_peer_that_insists_on_a_group_is_reported_and_the_old_child_stays() {
    let mut setup = Setup::new().quiet();
    setup.client.esp_suites = esp("aes256gcm16-esn");
    setup.target.esp_suites = setup.client.esp_suites.clone();
    setup.server.esp_suites = esp("aes256gcm16-ecp256-esn");
    let mut pair = Pair::connected_with(setup);

    // The client offers no group, the server insists on one: it says so and the old SA stays.
    rekey(&mut pair, Side::Client);
    pair.run();

    assert_eq!(pair.client.codes(), ["rekey_refused"]);
    pair.assert_connected();
    pair.assert_traffic_flows();
    pair.assert_no_leaks();
}

#[test]
fn each_message_of_a_rekey_may_be_lost_or_repeated() {
    for n in 0..4 {
        for twice in [false, true] {
            let mut pair = Pair::connected();
            rekey(&mut pair, Side::Client);
            for _ in 0..n {
                pair.step();
            }
            let flight = pair.lose();
            if twice {
                pair.deliver(flight.clone());
                pair.deliver(flight);
            }
            pair.run_for(Duration::from_secs(20));

            pair.assert_connected();
            pair.assert_traffic_flows();
            pair.assert_no_leaks();
        }
    }
}

#[test]
fn a_responder_starts_to_send_on_the_new_child_even_without_delete() {
    let mut pair = Pair::connected();
    rekey(&mut pair, Side::Client);
    pair.step();
    pair.step();
    pair.lose();

    pair.wait(Duration::from_millis(4_900));
    assert!(pair.server.activated.is_empty());
    pair.wire.clear();
    pair.wait(Duration::from_millis(200));

    assert_eq!(pair.server.activated.len(), 1);
    pair.assert_traffic_flows();
    pair.run_for(Duration::from_secs(20));
    pair.assert_connected();
    pair.assert_no_leaks();
}

#[test]
fn a_peer_that_lost_the_child_says_so_and_ours_goes() {
    let mut pair = Pair::connected();
    let mut spy = Spy::of(&pair);
    rekey(&mut pair, Side::Server);
    let request = pair.lose();
    let asked = spy.hear(&request);
    let notify = asked.payloads().unwrap().notify(NotifyType::RekeySa).unwrap().clone();
    let mut payloads = Payloads::new();
    payloads.push_notify(Notify { kind: NotifyType::ChildSaNotFound, ..notify });

    let answer = spy.say(&pair, Side::Client, ExchangeType::CreateChildSa, true, 0, &payloads);
    pair.deliver(answer);

    // RFC 7296 2.25.1
    assert_eq!(pair.server.inbound(), []);
    assert_eq!(pair.server.established().len(), 1);
}

#[test]
fn rekeying_a_child_that_does_not_exist_is_answered_with_its_spi() {
    let mut pair = Pair::connected();
    rekey(&mut pair, Side::Client);
    let request = pair.lose();
    // The server closes the child at the same time; its DELETE is on the way.
    let child = child(&mut pair, Side::Server);
    pair.command(Side::Server, Command::CloseChild(child, CloseReason::Operator));
    let delete = pair.lose();

    // RFC 7296 2.25.1: it is being closed, so TEMPORARY_FAILURE.
    pair.deliver(request);
    let spy = Spy::of(&pair);
    let answer = pair.lose();
    let told = spy.hear(&answer).payloads().unwrap();
    assert!(told.has_notify(NotifyType::TemporaryFailure));
    pair.deliver(delete);
    pair.deliver(answer);
    pair.run_for(Duration::from_secs(30));

    pair.assert_nothing_installed();
    assert_eq!(pair.client.established().len(), 1);
    pair.assert_no_leaks();
}

#[test]
fn temporary_failure_is_tried_again_later() {
    let mut pair = Pair::connected();
    let mut spy = Spy::of(&pair);
    rekey(&mut pair, Side::Server);
    pair.lose();
    let mut payloads = Payloads::new();
    payloads.push_notify(Notify::new(NotifyType::TemporaryFailure));
    let answer = spy.say(&pair, Side::Client, ExchangeType::CreateChildSa, true, 0, &payloads);
    pair.deliver(answer);
    assert!(pair.wire.is_empty());

    let at = pair.server.engine.poll_timeout().unwrap();
    assert_eq!(at.reason, ike::io::TimerKind::RekeyChild);
    let after = at.at.since(pair.now.mono);
    assert!((5..10).contains(&after.as_secs()), "{after:?}");
    pair.wait(after);
    assert_eq!(pair.wire[0].exchange(), ExchangeType::CreateChildSa);
}

#[test]
fn a_data_plane_that_refuses_the_new_child_keeps_the_old() {
    for side in [Side::Client, Side::Server] {
        let mut pair = Pair::connected();
        pair.peer(side).hold = |action| matches!(action, Action::InstallChild(_));
        rekey(&mut pair, Side::Client);
        pair.run();
        let (token, _) = pair.peer(side).held.remove(0);
        pair.peer(side).hold = |_| false;

        let failed = ike::Completion::InstallChild(Err("no memory".to_owned()));
        pair.input(side, ike::Input::Completion(token, failed));
        pair.run_for(Duration::from_secs(3));

        pair.assert_connected();
        pair.assert_traffic_flows();
        pair.run_for(Duration::from_secs(20));
        pair.assert_connected();
        pair.assert_no_leaks();
    }
}

#[test]
fn an_answer_that_never_comes_fails_the_rekey_and_keeps_the_old_child() {
    let mut pair = Pair::connected();
    pair.server.hold = |action| matches!(action, Action::AllocSpi);
    rekey(&mut pair, Side::Server);
    pair.run_for(Duration::from_secs(16));

    pair.assert_connected();
    pair.server.hold = |_| false;
    pair.server.held.clear();
    pair.run_for(Duration::from_secs(20));
    pair.assert_connected();
    pair.assert_no_leaks();
}

#[test]
fn the_lease_may_have_shrunk_meanwhile() {
    let mut pair = Pair::connected();
    let mut grant = pair.server.grant.clone().unwrap();
    grant.allowed = vec![net("10.20.0.0", "10.20.0.9")];
    let lease = grant.lease.clone();
    pair.command(Side::Server, Command::UpdateLease(lease, grant));

    rekey(&mut pair, Side::Client);
    pair.run();

    pair.assert_connected();
    let child = pair.client.plane.values().next().unwrap();
    assert_eq!(child.ts_remote, [net("10.20.0.0", "10.20.0.9")]);
    pair.assert_no_leaks();
}

#[test]
fn the_lease_may_end_in_the_middle() {
    let mut pair = Pair::connected();
    rekey(&mut pair, Side::Client);
    pair.step();
    assert_eq!(pair.server.inbound().len(), 2);

    let lease = ike::io::LeaseId(LEASE.to_owned());
    pair.command(Side::Server, Command::CloseLease(lease, CloseReason::Revoked));
    assert_eq!(pair.server.inbound(), []);
    pair.run_for(Duration::from_secs(5));

    pair.assert_nothing_installed();
    pair.assert_no_leaks();
}

/// Found by simulation: the peer has made its half of the new child when our side of the rekey fails.
/// That half is closed, and the rekey is tried again.
#[test]
fn a_rekey_that_only_the_peer_finished_leaves_no_half_child() {
    let suites = ("aes256gcm16-prfsha384-x25519", "aes256gcm16-x25519-esn");
    let mut pair = Pair::connected_with(Setup::new().quiet().suites(suites.0, suites.1));
    let child = *pair.client.plane.keys().next().unwrap();
    pair.command(Side::Client, ike::Command::RekeyChild(child));
    pair.step();
    pair.client.hold = |action| matches!(action, ike::io::Action::KeyExchange(_));
    pair.step();
    assert_eq!((pair.client.held.len(), pair.server.plane.len()), (1, 2));
    let (token, _) = pair.client.held.remove(0);
    pair.client.hold = |_| false;
    let failed = ike::Completion::KeyExchange(Err("too many handshakes".to_owned()));
    pair.input(Side::Client, ike::Input::Completion(token, failed));
    pair.run_for(Duration::from_secs(60));

    pair.assert_connected();
    pair.assert_traffic_flows();
    assert!(!pair.client.plane.contains_key(&child), "it was rekeyed in the end");
}
