//! Message ids after a restart (RFC 6311): who goes on from a snapshot tells ids that are high
//! enough, and both continue from there.

use std::time::Duration;

use ike::event::CloseReason;
use ike::wire::{ExchangeType, Header, MessageIdSync, Notify, NotifyType, Payloads};
use ike::{Command, Input};

use crate::harness::*;
use crate::spy::Spy;

/// Liveness checks by the server only: they use up its ids.
fn server_checks() -> Setup {
    let mut setup = Setup::new().quiet();
    setup.server.timers.dpd = Duration::from_secs(10);
    setup
}

/// The next message on the wire.
fn header(pair: &Pair) -> Header {
    Header::peek(&pair.wire[0].datagram.payload).unwrap()
}

/// What a synchronisation on the wire says.
fn said(spy: &Spy, flight: &Flight) -> MessageIdSync {
    let payloads = spy.hear(flight).payloads().unwrap();
    payloads.notify(NotifyType::MessageIdSync).unwrap().as_message_id_sync().unwrap()
}

fn sync(next_send: u32, next_receive: u32) -> Payloads {
    let mut payloads = Payloads::new();
    let told = MessageIdSync { nonce: 0x1234_5678, next_send, next_receive };
    payloads.push_notify(Notify::message_id_sync(told));
    payloads
}

/// Both can make a request and get its answer.
fn assert_both_talk(pair: &mut Pair) {
    for side in [Side::Client, Side::Server] {
        let child = *pair.peer(side).plane.keys().next().unwrap();
        let before = pair.peer(side).inbound();
        pair.command(side, Command::RekeyChild(child));
        pair.run();
        pair.assert_mirrored(1);
        let (codes, theirs) = (pair.client.refusals(), pair.server.refusals());
        let why = format!("{side:?} could not rekey: {codes:?} {theirs:?}");
        assert_ne!(pair.peer(side).inbound(), before, "{why}");
    }
}

#[test]
fn a_restarted_side_tells_higher_ids_and_both_go_on() {
    for side in [Side::Client, Side::Server] {
        let mut pair = Pair::connected();
        let spy = Spy::of(&pair);
        let used = pair.peer(side).snapshots.values().next().unwrap().next_request;

        pair.restart(side);

        assert_eq!(
            (header(&pair).exchange, header(&pair).message_id),
            (ExchangeType::Informational, 0)
        );
        let told = said(&spy, &pair.wire[0]);
        assert!(told.next_send > used, "ids of before may have been seen");
        pair.step();
        let answer = said(&spy, &pair.wire[0]);
        assert_eq!((answer.nonce, answer.next_receive), (told.nonce, told.next_send));
        assert!(answer.next_send >= told.next_receive);
        pair.run();
        assert_both_talk(&mut pair);
    }
}

#[test]
fn a_lost_answer_is_given_again_to_the_same_octets() {
    let mut pair = Pair::connected();
    pair.restart(Side::Server);
    let asked = pair.step().unwrap();
    let answer = pair.lose();

    pair.wait(Duration::from_secs(1));

    assert_eq!(pair.step().unwrap(), asked);
    assert_eq!(pair.wire[0], answer);
    pair.run();
    assert_both_talk(&mut pair);
}

#[test]
fn replays_of_either_message_are_ignored() {
    let mut pair = Pair::connected();
    pair.restart(Side::Server);
    let asked = pair.step().unwrap();
    let answered = pair.step().unwrap();
    assert_both_talk(&mut pair);
    let seen = pair.client.outputs.len();

    // A request whose ids are in use by now.
    pair.deliver(asked);
    assert_eq!(pair.client.outputs.len(), seen);

    // An answer to an earlier question.
    pair.restart(Side::Server);
    let again = pair.lose();
    pair.deliver(answered);
    assert!(pair.wire.is_empty());
    pair.deliver(again);
    pair.run();
    assert_both_talk(&mut pair);
}

#[test]
fn nothing_is_synchronised_that_was_not_agreed_on() {
    for (client, server) in [(true, false), (false, true)] {
        let mut setup = Setup::new().quiet();
        setup.client.continuity.message_id_sync = client;
        setup.server.continuity.message_id_sync = server;
        let mut pair = Pair::connected_with(setup);
        let mut spy = Spy::of(&pair);
        assert_both_talk(&mut pair);

        pair.restart(Side::Server);
        assert!(pair.wire.is_empty());
        let unasked =
            spy.say(&pair, Side::Server, ExchangeType::Informational, false, 0, &sync(500, 500));
        pair.deliver(unasked);
        assert!(pair.wire.is_empty());
        assert_both_talk(&mut pair);
    }
}

/// A snapshot that is not behind what was sent has the right ids: nothing is asked, also of a peer
/// that could answer.
#[test]
fn exact_checkpoints_need_no_synchronisation() {
    for side in [Side::Server, Side::Client] {
        let mut setup = Setup::new().quiet();
        setup.client.continuity.sync_after_restart = false;
        setup.server.continuity.sync_after_restart = false;
        let mut pair = Pair::connected_with(setup);
        assert_both_talk(&mut pair);
        pair.restart(side);
        assert!(pair.wire.is_empty(), "{side:?}");
        assert_both_talk(&mut pair);
        pair.restart(side);
        assert_both_talk(&mut pair);
    }
}

#[test]
fn ids_that_are_too_low_get_silence_and_silence_ends_the_sa() {
    let mut pair = Pair::connected_with(server_checks());
    let stale = pair.server.snapshots.clone();
    // More checks than a snapshot may lack.
    pair.run_for(Duration::from_secs(10 * 80));
    pair.server.snapshots = stale;

    pair.restart(Side::Server);
    pair.step();
    assert!(pair.wire.is_empty(), "the client has seen higher ids");
    // Neither the raised ids nor those of before are right.
    pair.run_for(Duration::from_secs(120));

    assert_eq!(pair.server.ends(), [CloseReason::PeerDead]);
    assert_eq!(pair.server.inbound(), Vec::<u32>::new());
}

#[test]
fn a_snapshot_that_lacks_a_few_exchanges_is_good_enough() {
    let mut pair = Pair::connected_with(server_checks());
    let stale = pair.server.snapshots.clone();
    pair.run_for(Duration::from_secs(10 * 20));
    pair.server.snapshots = stale;

    pair.restart(Side::Server);
    pair.run();

    assert_both_talk(&mut pair);
}

#[test]
fn the_peer_goes_on_with_the_id_it_is_told_to_be_expected() {
    let mut pair = Pair::connected();
    let mut spy = Spy::of(&pair);
    let told = spy.say(&pair, Side::Server, ExchangeType::Informational, false, 0, &sync(900, 700));

    pair.deliver(told);

    let answer = said(&spy, &pair.step().unwrap());
    assert_eq!((answer.next_send, answer.next_receive), (700, 900));
    let id = pair.client.established()[0].id;
    pair.command(Side::Client, Command::RekeyIke(id));
    assert_eq!(header(&pair).message_id, 700);
}

#[test]
fn a_request_under_way_is_sent_again_under_the_next_id() {
    let mut pair = Pair::connected();
    let child = *pair.client.plane.keys().next().unwrap();
    let before = pair.client.inbound();
    pair.command(Side::Client, Command::RekeyChild(child));
    let lost = Header::peek(&pair.lose().datagram.payload).unwrap();

    pair.restart(Side::Server);
    pair.step();
    pair.step();

    assert_eq!(header(&pair).exchange, ExchangeType::CreateChildSa);
    assert!(header(&pair).message_id > lost.message_id);
    pair.run();
    pair.assert_mirrored(1);
    assert_ne!(pair.client.inbound(), before);
    assert_both_talk(&mut pair);
}

/// The server has made the child, and its answer was lost with the process: asked for again, it is
/// made once.
#[test]
fn a_new_child_that_is_asked_for_again_is_made_once() {
    let mut pair = Pair::connected();
    let ours = pair.client.established()[0].id;
    pair.command(Side::Client, Command::CreateChild(ours));
    pair.step();
    pair.wire.clear();
    assert_eq!((pair.client.inbound().len(), pair.server.inbound().len()), (1, 2));

    pair.restart(Side::Server);
    pair.run();

    pair.assert_mirrored(2);
    pair.assert_traffic_flows();
}

#[test]
fn requests_wait_until_the_ids_are_agreed_on() {
    let mut pair = Pair::connected();
    let id = pair.client.established()[0].id;
    pair.restart(Side::Server);
    let asked = pair.lose();
    pair.command(Side::Client, Command::RekeyIke(id));
    pair.step();
    assert!(pair.wire.is_empty(), "the server does not know yet which ids are new");

    pair.deliver(asked);
    pair.run();
    assert_eq!(pair.client.established().len(), 1);
    assert_ne!(pair.client.established()[0].id, id);
    assert_both_talk(&mut pair);
}

#[test]
fn both_sides_restart_at_once() {
    let mut pair = Pair::connected();
    pair.restart(Side::Server);
    pair.restart(Side::Client);
    pair.run();
    assert_both_talk(&mut pair);
}

#[test]
fn a_second_restart_tells_higher_ids_again() {
    let mut pair = Pair::connected();
    let spy = Spy::of(&pair);
    pair.restart(Side::Server);
    let first = said(&spy, &pair.lose());
    pair.restart(Side::Server);
    assert!(said(&spy, &pair.wire[0]).next_send > first.next_send);
    pair.run();
    assert_both_talk(&mut pair);
}

#[test]
fn a_child_made_before_the_restart_is_deleted_after_it() {
    let mut pair = Pair::connected();
    let child = *pair.server.plane.keys().next().unwrap();
    let old = pair.server.inbound();
    pair.command(Side::Server, Command::RekeyChild(child));
    // The client makes the child; its answer finds a server that has just started again.
    pair.step();
    pair.wire.clear();
    assert_eq!(pair.client.inbound().len(), 2);

    pair.restart(Side::Server);
    pair.run();

    pair.assert_mirrored(1);
    assert_eq!(pair.server.inbound(), old);
}

#[test]
fn a_message_with_id_0_that_is_something_else_is_taken_as_such() {
    let mut pair = Pair::connected();
    let id = pair.client.established()[0].id;
    pair.command(Side::Client, Command::RekeyIke(id));
    pair.run();
    // The first request of the successor has id 0.
    let id = pair.client.established()[0].id;
    pair.command(Side::Client, Command::CloseIkeSa(id, CloseReason::Operator));
    assert_eq!(header(&pair).message_id, 0);
    pair.run();
    pair.assert_nothing_installed();
    pair.assert_no_leaks();
}

#[test]
fn time_passes_while_nobody_answers() {
    let mut pair = Pair::connected();
    pair.restart(Side::Server);
    pair.lose();
    pair.wait(Duration::from_secs(3));
    assert!(pair.wire.len() >= 2, "it is sent again, less and less often");
    pair.input(Side::Server, Input::Timeout);
    pair.run();
    assert_both_talk(&mut pair);
}

#[test]
fn an_old_answer_from_elsewhere_moves_nothing() {
    let nat = Some(Nat { public: "203.0.113.1".parse().unwrap(), offset: 10_000 });
    let mut pair = Setup::new().quiet().build();
    pair.nat = nat;
    pair.initiate();
    pair.run();
    pair.assert_connected();
    pair.restart(Side::Server);
    pair.step();
    let mut answered = pair.step().unwrap();
    pair.run();
    let before = pair.server.established()[0].remote;
    assert_eq!(before, address("203.0.113.1", 14_500));

    pair.restart(Side::Server);
    let asked = pair.lose();
    answered.datagram.remote = address("203.0.113.66", 4500);
    pair.deliver(answered);

    assert_eq!(pair.server.established()[0].remote, before);
    pair.deliver(asked);
    pair.run();
    assert_both_talk(&mut pair);
}

#[test]
fn an_sa_closed_before_the_ids_are_agreed_on_is_deleted_at_both_ends() {
    let mut pair = Pair::connected();
    pair.restart(Side::Server);
    let id = pair.server.established()[0].id;
    pair.command(Side::Server, Command::CloseIkeSa(id, CloseReason::Operator));

    pair.run_for(Duration::from_secs(20));

    assert_eq!(pair.client.ends(), [CloseReason::PeerDeleted]);
    pair.assert_nothing_installed();
    assert_eq!(pair.server.engine.stats().retransmissions, 0, "each request had its answer");
}

#[test]
fn a_replayed_question_is_not_reflected_at_will() {
    let mut pair = Pair::connected();
    pair.restart(Side::Server);
    let asked = pair.step().unwrap();
    pair.run();

    for port in 1..100 {
        let mut replayed = asked.clone();
        replayed.datagram.remote = address("203.0.113.66", port);
        pair.deliver(replayed);
    }

    assert!(pair.wire.len() <= 1, "{} answers", pair.wire.len());
}

#[test]
fn a_child_made_before_two_restarts_is_deleted_after_the_second() {
    let mut pair = Pair::connected();
    let child = *pair.server.plane.keys().next().unwrap();
    let old = pair.server.inbound();
    pair.command(Side::Server, Command::RekeyChild(child));
    pair.step();
    pair.wire.clear();
    assert_eq!(pair.client.inbound().len(), 2);

    // The first start does not live to hear the answer to its synchronisation.
    pair.restart(Side::Server);
    pair.wire.clear();
    pair.restart(Side::Server);
    pair.run();

    pair.assert_mirrored(1);
    assert_eq!(pair.server.inbound(), old);
    assert_both_talk(&mut pair);
}

#[test]
fn a_delete_under_way_is_said_again_after_a_restart() {
    let mut pair = Pair::connected();
    let child = *pair.server.plane.keys().next().unwrap();
    pair.command(Side::Server, Command::CloseChild(child, CloseReason::Operator));
    pair.lose();
    assert_eq!(pair.client.inbound().len(), 1);

    pair.restart(Side::Server);
    pair.run();

    pair.assert_nothing_installed();
}
