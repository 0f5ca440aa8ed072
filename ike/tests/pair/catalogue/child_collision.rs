//! Both sides work on the same child SA, or one on it and the other on its IKE SA
//! (RFC 7296 2.8.1, 2.25). The client's exchange makes 2/3, the server's 3/2.

use super::*;

/// Both requests are out, none has arrived.
fn crossing(stage: &mut Stage) {
    stage.rekey_child(Client, "1/1");
    stage.rekey_child(Server, "1/1");
    stage.see("A[1/1*]", "A[1/1*]");
}

/// Both requests have arrived, no answer has.
fn crossed(stage: &mut Stage) {
    crossing(stage);
    stage.to(Server);
    stage.see("A[1/1*]", "A[1/1* 2/3]");
    stage.to(Client);
    stage.see("A[1/1* 3/2]", "A[1/1* 2/3]");
}

/// After both answers the loser has never installed its own, and the winner has.
pub(super) fn both_answered(stage: &mut Stage) -> String {
    stage.to(Client);
    stage.to(Server);
    let won = match stage.loser() {
        Client => {
            stage.see("A[1/1* 3/2]", "A[1/1 2/3 3/2*]");
            "3/2"
        }
        Server => {
            stage.see("A[1/1 2/3* 3/2]", "A[1/1* 2/3]");
            "2/3"
        }
    };
    stage.run();
    let line = format!("A[{won}*]");
    stage.see(&line, &line);
    line
}

#[test]
fn catalogue_child_collision() {
    each_outcome(quiet, |stage| {
        crossed(stage);
        both_answered(stage)
    });
}

#[test]
fn catalogue_child_collision_with_key_exchanges() {
    let setup = || {
        let mut setup = quiet();
        for suites in [
            &mut setup.client.esp_suites,
            &mut setup.server.esp_suites,
            &mut setup.target.esp_suites,
        ] {
            *suites = esp("aes256gcm16-ecp256-esn");
        }
        setup
    };
    each_outcome(setup, |stage| {
        crossed(stage);
        both_answered(stage)
    });
}

/// The answers arrive in the other order.
#[test]
fn catalogue_child_collision_answers_in_the_other_order() {
    each_outcome(quiet, |stage| {
        crossing(stage);
        stage.to(Client);
        stage.see("A[1/1* 3/2]", "A[1/1*]");
        stage.to(Server);
        stage.see("A[1/1* 3/2]", "A[1/1* 2/3]");
        stage.to(Server);
        stage.to(Client);
        let (won, _) = stage.outcome("2/3", "3/2");
        stage.run();
        format!("A[{won}*]")
    });
}

/// The answer to the client comes last of all, after what follows the server's exchange.
#[test]
fn catalogue_child_collision_delayed_response() {
    each_outcome(quiet, |stage| {
        crossed(stage);
        let late = stage.hold(Client);
        stage.to(Server);
        // --> INFORMATIONAL { D }: of the old one if the server won, else of its redundant one.
        match stage.loser() {
            Client => stage.see("A[1/1* 3/2]", "A[1/1 2/3 3/2*]"),
            Server => stage.see("A[1/1* 3/2]", "A[1/1* 2/3]"),
        }
        stage.to(Client);
        match stage.loser() {
            Client => stage.see("A[3/2*]", "A[1/1 2/3 3/2*]"),
            Server => stage.see("A[1/1*]", "A[1/1* 2/3]"),
        }
        stage.to(Server);
        match stage.loser() {
            Client => stage.see("A[3/2*]", "A[2/3 3/2*]"),
            Server => stage.see("A[1/1*]", "A[1/1* 2/3]"),
        }
        stage.late(late);
        match stage.loser() {
            // The client closes what its own exchange made.
            Client => stage.see("A[3/2*]", "A[2/3 3/2*]"),
            Server => stage.see("A[1/1 2/3*]", "A[1/1* 2/3]"),
        }
        stage.run();
        let (won, _) = stage.outcome("2/3", "3/2");
        format!("A[{won}*]")
    });
}

/// The same, but the answer overtakes the DELETE.
#[test]
fn catalogue_child_collision_delayed_response_and_delete() {
    each_outcome(quiet, |stage| {
        crossed(stage);
        let answer = stage.hold(Client);
        stage.to(Server);
        let delete = stage.hold(Client);
        stage.late(answer);
        match stage.loser() {
            Client => stage.see("A[1/1* 3/2]", "A[1/1 2/3 3/2*]"),
            Server => stage.see("A[1/1 2/3* 3/2]", "A[1/1* 2/3]"),
        }
        stage.late(delete);
        match stage.loser() {
            Client => stage.see("A[3/2*]", "A[1/1 2/3 3/2*]"),
            Server => stage.see("A[1/1 2/3*]", "A[1/1* 2/3]"),
        }
        stage.run();
        let (won, _) = stage.outcome("2/3", "3/2");
        format!("A[{won}*]")
    });
}

/// The server's request arrives when the client has its answer but has not closed the old one:
/// TEMPORARY_FAILURE (RFC 7296 2.25.1).
#[test]
fn catalogue_child_collision_delayed_request() {
    let mut stage = Stage::new();
    crossing(&mut stage);
    let late = stage.hold(Client);
    stage.to(Server);
    stage.see("A[1/1*]", "A[1/1* 2/3]");
    stage.to(Client);
    stage.see("A[1/1 2/3*]", "A[1/1* 2/3]");
    let delete = stage.hold(Server);
    stage.late(late);
    stage.see("A[1/1 2/3*]", "A[1/1* 2/3]");
    let answer = stage.hold(Server);
    assert!(stage.tells(&answer, NotifyType::TemporaryFailure));
    stage.late(answer);
    stage.see("A[1/1 2/3*]", "A[1/1* 2/3]");
    stage.late(delete);
    stage.see("A[1/1 2/3*]", "A[2/3*]");
    stage.run();
    stage.settled("A[2/3*]");
}

/// The DELETE has reached the server, its answer not the client: the old one is being closed.
#[test]
fn catalogue_child_collision_delayed_request_while_deleting() {
    let mut stage = Stage::new();
    crossing(&mut stage);
    let late = stage.hold(Client);
    stage.to(Server);
    stage.to(Client);
    stage.to(Server);
    stage.see("A[1/1 2/3*]", "A[2/3*]");
    let deleted = stage.hold(Client);
    stage.late(late);
    let answer = stage.hold(Server);
    assert!(stage.tells(&answer, NotifyType::TemporaryFailure));
    stage.late(answer);
    stage.see("A[1/1 2/3*]", "A[2/3*]");
    stage.late(deleted);
    stage.see("A[2/3*]", "A[2/3*]");
    stage.settled("A[2/3*]");
}

/// The server's request arrives when the old one is gone everywhere: CHILD_SA_NOT_FOUND.
#[test]
fn catalogue_child_collision_delayed_request_more() {
    let mut stage = Stage::new();
    crossing(&mut stage);
    let late = stage.hold(Client);
    stage.to(Server);
    stage.to(Client);
    stage.to(Server);
    stage.to(Client);
    stage.see("A[2/3*]", "A[2/3*]");
    stage.late(late);
    let answer = stage.hold(Server);
    assert!(stage.tells(&answer, NotifyType::ChildSaNotFound));
    stage.late(answer);
    stage.see("A[2/3*]", "A[2/3*]");
    stage.settled("A[2/3*]");
}

/// The same, and the client meanwhile closes the new one.
#[test]
fn catalogue_child_collision_delayed_request_more_delete() {
    let mut stage = Stage::new();
    crossing(&mut stage);
    let late = stage.hold(Client);
    stage.to(Server);
    stage.to(Client);
    stage.to(Server);
    stage.to(Client);
    stage.close_child(Client, "2/3");
    stage.see_without_traffic("A[]", "A[2/3*]");
    stage.late(late);
    stage.to(Server);
    stage.see_without_traffic("A[]", "A[]");
    stage.run();
    stage.settled_without_child("A[]");
}

/// Each prefers another group, so both first attempts are refused and the second ones cross.
fn disagreeing() -> Setup {
    let mut setup = quiet();
    setup.client.esp_suites = esp("aes256gcm16-x25519-ecp256-esn");
    setup.target.esp_suites = setup.client.esp_suites.clone();
    setup.server.esp_suites = esp("aes256gcm16-ecp256-x25519-esn");
    setup
}

#[test]
fn catalogue_child_collision_ke_invalid() {
    each_outcome(disagreeing, |stage| {
        crossing(stage);
        for side in [Server, Client] {
            stage.to(side);
            stage.see("A[1/1*]", "A[1/1*]");
        }
        for side in [Client, Server] {
            let refusal = stage.hold(side);
            assert!(stage.tells(&refusal, NotifyType::InvalidKePayload));
            stage.late(refusal);
        }
        // The nonces of the second attempts are the ones that count.
        let first = stage.nonces.len() - 2;
        stage.nonces.drain(..first);
        stage.to(Server);
        stage.see("A[1/1*]", "A[1/1* 3/4]");
        stage.to(Client);
        stage.see("A[1/1* 4/3]", "A[1/1* 3/4]");
        stage.to(Client);
        stage.to(Server);
        let (won, _) = stage.outcome("3/4", "4/3");
        stage.run();
        format!("A[{won}*]")
    });
}

/// The server's second attempt arrives when the client's has succeeded.
#[test]
fn catalogue_child_collision_ke_invalid_delayed_retry() {
    let mut stage = Stage::with(disagreeing());
    crossing(&mut stage);
    stage.to(Server);
    stage.to(Client);
    stage.to(Client);
    stage.to(Server);
    let late = stage.hold(Client);
    stage.to(Server);
    stage.see("A[1/1*]", "A[1/1* 3/4]");
    stage.to(Client);
    stage.see("A[1/1 3/4*]", "A[1/1* 3/4]");
    let delete = stage.hold(Server);
    stage.late(late);
    let answer = stage.hold(Server);
    assert!(stage.tells(&answer, NotifyType::TemporaryFailure));
    stage.late(answer);
    stage.late(delete);
    stage.see("A[1/1 3/4*]", "A[3/4*]");
    stage.run();
    stage.settled("A[3/4*]");
}

/// A peer that lost the collision deletes the old one all the same: the survivor stays.
#[test]
fn catalogue_child_collision_responder_deletes_the_old_one_itself() {
    let mut seen = BTreeSet::new();
    for seed in 0..32 {
        let mut setup = quiet();
        setup.seeds = (seed, seed.wrapping_add(100));
        let mut stage = Stage::with(setup);
        crossed(&mut stage);
        let loser = stage.loser();
        if !seen.insert(loser) {
            continue;
        }
        let winner = loser.other();
        stage.to(Client);
        stage.to(Server);
        let (own, id) = match loser {
            Client => ("3/2", 3),
            Server => ("2/3", 1),
        };
        stage.pair.wire.clear();
        let delete = stage.forge_delete(loser, id, "1/1");
        stage.late(delete);
        let redundant = if winner == Client { "3/2" } else { "2/3" };
        assert_eq!(stage.line(winner), sorted(&format!("A[{own}* {redundant}]")));
        if seen.len() == 2 {
            return;
        }
    }
    panic!("only {seen:?} lost");
}

/// The server closes the child that the client rekeys: it is closed.
#[test]
fn catalogue_child_collision_delete() {
    for (rekeys, closes) in [(Client, Server), (Server, Client)] {
        let mut stage = Stage::new();
        stage.rekey_child(rekeys, "1/1");
        stage.close_child(closes, "1/1");
        let delete = stage.hold(rekeys);
        stage.to(closes);
        let answer = stage.hold(rekeys);
        assert!(stage.tells(&answer, NotifyType::TemporaryFailure), "RFC 7296 2.25.1");
        stage.late(answer);
        // The side that closes has none of it any more; the other follows with the DELETE.
        let before = stage.line(rekeys);
        assert!(before.contains("1/1"), "{before}");
        assert_eq!(stage.line(closes), "A[]");
        stage.late(delete);
        stage.run();
        stage.see_without_traffic("A[]", "A[]");
        stage.settled_without_child("A[]");
    }
}

/// What crosses, by name: the DELETE of the one side, the request and its refusal of the other.
struct DeleteCrossing {
    stage: Stage,
    rekeys: Side,
    delete: Flight,
}

fn delete_crossing(rekeys: Side) -> DeleteCrossing {
    let closes = rekeys.other();
    let mut stage = Stage::new();
    stage.close_child(closes, "1/1");
    let delete = stage.hold(rekeys);
    stage.rekey_child(rekeys, "1/1");
    DeleteCrossing { stage, rekeys, delete }
}

/// The DELETE is lost at first.
#[test]
fn catalogue_child_collision_delete_drop_delete() {
    for rekeys in [Client, Server] {
        let DeleteCrossing { mut stage, rekeys, .. } = delete_crossing(rekeys);
        stage.to(rekeys.other());
        let answer = stage.hold(rekeys);
        assert!(stage.tells(&answer, NotifyType::TemporaryFailure));
        stage.late(answer);
        // It comes again before the rekey is tried again.
        stage.pair.run_for(Duration::from_secs(2));
        stage.see_without_traffic("A[]", "A[]");
        stage.settled_without_child("A[]");
    }
}

/// The rekey's request is lost at first, and refers to nothing when it comes again.
#[test]
fn catalogue_child_collision_delete_drop_rekey() {
    for rekeys in [Client, Server] {
        let DeleteCrossing { mut stage, rekeys, delete } = delete_crossing(rekeys);
        stage.hold(rekeys.other());
        stage.late(delete);
        stage.run();
        stage.see_without_traffic("A[]", "A[]");
        stage.pair.wait(Duration::from_millis(1100));
        stage.to(rekeys.other());
        let answer = stage.hold(rekeys);
        assert!(stage.tells(&answer, NotifyType::ChildSaNotFound));
        stage.late(answer);
        stage.settled_without_child("A[]");
    }
}

/// The refusal arrives after the DELETE.
#[test]
fn catalogue_child_collision_delete_delayed_response() {
    for rekeys in [Client, Server] {
        let DeleteCrossing { mut stage, rekeys, delete } = delete_crossing(rekeys);
        stage.to(rekeys.other());
        let answer = stage.hold(rekeys);
        stage.late(delete);
        stage.see_without_traffic("A[]", "A[]");
        stage.to(rekeys.other());
        stage.late(answer);
        stage.see_without_traffic("A[]", "A[]");
        stage.settled_without_child("A[]");
    }
}

/// RFC 7296 2.25.2: a child and its IKE SA are rekeyed at once. Both are put off, and tried again
/// at times that chance keeps apart.
#[test]
fn catalogue_child_collision_ike_rekey() {
    for (child, ike) in [(Client, Server), (Server, Client)] {
        let mut stage = Stage::new();
        stage.rekey_child(child, "1/1");
        stage.rekey_ike(ike);
        for to in [ike, child] {
            stage.to(to);
            stage.see("A[1/1*]", "A[1/1*]");
        }
        for to in [ike, child] {
            let answer = stage.hold(to);
            assert!(stage.tells(&answer, NotifyType::TemporaryFailure));
            stage.late(answer);
        }
        stage.see("A[1/1*]", "A[1/1*]");
        stage.pair.run_for(Duration::from_secs(30));
        // The second attempt of the child's rekey.
        let new = match child {
            Client => "3/2",
            Server => "2/3",
        };
        stage.settled(&format!("B[{new}*]"));
    }
}

/// The IKE SA is closed while its child is rekeyed: everything ends.
#[test]
fn catalogue_child_collision_ike_delete() {
    for (rekeys, closes) in [(Client, Server), (Server, Client)] {
        let mut stage = Stage::new();
        stage.rekey_child(rekeys, "1/1");
        stage.close_ike(closes);
        stage.to(closes);
        let answer = stage.pair.wire.iter().position(|flight| {
            flight.to == rekeys && flight.exchange() == ExchangeType::CreateChildSa
        });
        let answer = stage.pair.wire.remove(answer.unwrap()).unwrap();
        assert!(stage.tells(&answer, NotifyType::TemporaryFailure));
        stage.late(answer);
        stage.to(rekeys);
        let own = stage.line(rekeys);
        assert_eq!(own, "A.[]");
        stage.run();
        stage.settled_without_child("");
    }
}

/// What survived is rekeyed again at once, by either side.
#[test]
fn catalogue_child_collision_survivor_is_rekeyed_again() {
    for side in [Client, Server] {
        let mut stage = Stage::new();
        crossed(&mut stage);
        let line = both_answered(&mut stage);
        stage.rekey_child(side, line.trim_start_matches("A[").trim_end_matches("*]"));
        stage.run();
        stage.settled("A[4/4*]");
    }
}

/// The soft limit of what turns out redundant is reached: nothing is done about it.
#[test]
fn catalogue_child_collision_redundant_one_expires() {
    each_outcome(quiet, |stage| {
        crossed(stage);
        match stage.loser() {
            Client => stage.expire(Server, "2/3", false),
            Server => stage.expire(Client, "3/2", false),
        }
        assert_eq!(stage.pair.wire.len(), 2, "the two answers and nothing else");
        both_answered(stage)
    });
}
