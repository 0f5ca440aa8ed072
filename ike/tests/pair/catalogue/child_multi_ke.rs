//! Rekeys of a child SA with additional key exchanges (RFC 9370 2.2.4): CREATE_CHILD_SA is followed
//! by one IKE_FOLLOWUP_KE, with which the new child comes into being. When two cross, the client's
//! exchange makes 2/3, the server's 3/2.

use super::child_collision::both_answered;
use super::*;

const IKE: &str = "aes256gcm16-prfsha384-x25519";
const ESP: &str = "aes256gcm16-x25519-ke1_ecp256-esn";

fn two() -> Setup {
    quiet().suites(IKE, ESP)
}

/// The side's rekey up to its IKE_FOLLOWUP_KE, which is on the wire: nothing is made yet.
fn halfway(setup: Setup, side: Side) -> Stage {
    let mut stage = Stage::with(setup);
    stage.rekey_child(side, "1/1");
    // --> CREATE_CHILD_SA { N(REKEY_SA), SA, Ni, KEi, TSi, TSr }
    see(&mut stage, side, "A[1/1*]", "A[1/1*]");
    stage.to(side.other());
    // <-- CREATE_CHILD_SA { SA, Nr, KEr, TSi, TSr, N(ADDITIONAL_KEY_EXCHANGE) }
    see(&mut stage, side, "A[1/1*]", "A[1/1*]");
    stage.to(side);
    // --> IKE_FOLLOWUP_KE { KEi(1), N(ADDITIONAL_KEY_EXCHANGE) }
    see(&mut stage, side, "A[1/1*]", "A[1/1*]");
    let next = stage.pair.wire.back().map(Flight::exchange);
    assert_eq!(next, Some(ExchangeType::IkeFollowupKe));
    stage
}

/// From the IKE_FOLLOWUP_KE of `halfway` to the end; `new` replaces 1/1.
fn rest(mut stage: Stage, side: Side, new: &str) {
    stage.to(side.other());
    // <-- IKE_FOLLOWUP_KE { KEr(1) }
    see(&mut stage, side, "A[1/1*]", &format!("A[1/1* {new}]"));
    stage.to(side);
    // --> INFORMATIONAL { D }
    see(&mut stage, side, &format!("A[1/1 {new}*]"), &format!("A[1/1* {new}]"));
    stage.to(side.other());
    // <-- INFORMATIONAL { D }
    see(&mut stage, side, &format!("A[1/1 {new}*]"), &format!("A[{new}*]"));
    stage.to(side);
    stage.settled(&format!("A[{new}*]"));
}

#[test]
fn catalogue_child_multi_ke_regular() {
    for side in [Client, Server] {
        rest(halfway(two(), side), side, "2/2");
    }
}

/// Each further key exchange is one more round in which nothing changes.
#[test]
fn catalogue_child_multi_ke_with_three_key_exchanges() {
    let three = "aes256gcm16-x25519-ke1_ecp256-ke2_ecp384-esn";
    for side in [Client, Server] {
        let mut stage = halfway(quiet().suites(IKE, three), side);
        stage.to(side.other());
        see(&mut stage, side, "A[1/1*]", "A[1/1*]");
        stage.to(side);
        see(&mut stage, side, "A[1/1*]", "A[1/1*]");
        rest(stage, side, "2/2");
    }
}

/// RFC 7296 1.3: another group is wanted for the first key exchange; the additional one stays.
#[test]
fn catalogue_child_multi_ke_ke_invalid() {
    for side in [Client, Server] {
        let mut setup = two();
        let own = esp("aes256gcm16-x25519-ecp384-ke1_ecp256-esn");
        let others = esp("aes256gcm16-ecp384-ke1_ecp256-esn");
        let (client, server) = match side {
            Client => (own, others),
            Server => (others, own),
        };
        setup.target.esp_suites = client.clone();
        setup.client.esp_suites = client;
        setup.server.esp_suites = server;
        setup.server.ike_suites = ike("aes256gcm16-prfsha384-x25519-ecp384");
        setup.client.ike_suites = setup.server.ike_suites.clone();
        let mut stage = Stage::with(setup);
        stage.rekey_child(side, "1/1");
        stage.to(side.other());
        let refusal = stage.hold(side);
        assert!(stage.tells(&refusal, NotifyType::InvalidKePayload));
        stage.late(refusal);
        // The second attempt has an SPI of its own.
        stage.to(side.other());
        see(&mut stage, side, "A[1/1*]", "A[1/1*]");
        stage.to(side);
        see(&mut stage, side, "A[1/1*]", "A[1/1*]");
        let new = match side {
            Client => "3/2",
            Server => "2/3",
        };
        rest(stage, side, new);
    }
}

/// The IKE_FOLLOWUP_KE is lost, and comes again byte by byte; so does its answer.
#[test]
fn catalogue_child_multi_ke_dropped_followup() {
    for side in [Client, Server] {
        let mut stage = halfway(two(), side);
        let lost = stage.hold(side.other());
        stage.pair.wait(Duration::from_millis(1100));
        let again = stage.hold(side.other());
        assert_eq!(again, lost);
        stage.late(again);
        see(&mut stage, side, "A[1/1*]", "A[1/1* 2/2]");
        let lost = stage.hold(side);
        stage.pair.wait(Duration::from_millis(2000));
        stage.to(side.other());
        see(&mut stage, side, "A[1/1*]", "A[1/1* 2/2]");
        let again = stage.hold(side);
        assert_eq!(again, lost);
        stage.late(again);
        see(&mut stage, side, "A[1/1 2/2*]", "A[1/1* 2/2]");
        stage.run();
        stage.settled("A[2/2*]");
    }
}

/// The IKE_FOLLOWUP_KE never comes: the old SA lives on, and a later rekey begins anew.
#[test]
fn catalogue_child_multi_ke_followup_too_late() {
    for side in [Client, Server] {
        let mut stage = halfway(two(), side);
        let late = stage.hold(side.other());
        for _ in 0..25 {
            stage.pair.wait(Duration::from_secs(1));
            stage.pair.wire.clear();
        }
        see(&mut stage, side, "A[1/1*]", "A[1/1*]");
        stage.late(late);
        let answer = stage.hold(side);
        assert!(stage.tells(&answer, NotifyType::StateNotFound), "RFC 9370 2.2.4");
        stage.late(answer);
        see(&mut stage, side, "A[1/1*]", "A[1/1*]");
        stage.pair.run_for(Duration::from_secs(12));
        // The second attempt, with SPIs of its own.
        stage.see("A[3/3*]", "A[3/3*]");
        stage.settled("A[3/3*]");
    }
}

/// Both requests are out, none has arrived.
fn crossing(stage: &mut Stage) {
    stage.rekey_child(Client, "1/1");
    stage.rekey_child(Server, "1/1");
    stage.see("A[1/1*]", "A[1/1*]");
}

/// Both CREATE_CHILD_SAs are done, both IKE_FOLLOWUP_KEs on the wire.
fn halfway_crossed(stage: &mut Stage) {
    crossing(stage);
    for to in [Server, Client, Client, Server] {
        stage.to(to);
        stage.see("A[1/1*]", "A[1/1*]");
    }
    let wire: Vec<_> = stage.pair.wire.iter().map(Flight::exchange).collect();
    assert_eq!(wire, [ExchangeType::IkeFollowupKe; 2]);
}

/// Both IKE_FOLLOWUP_KEs have arrived, no answer has.
fn crossed(stage: &mut Stage) {
    halfway_crossed(stage);
    stage.to(Server);
    stage.see("A[1/1*]", "A[1/1* 2/3]");
    stage.to(Client);
    stage.see("A[1/1* 3/2]", "A[1/1* 2/3]");
}

#[test]
fn catalogue_child_multi_ke_collision() {
    each_outcome(two, |stage| {
        crossed(stage);
        both_answered(stage)
    });
}

/// The answer to the client's IKE_FOLLOWUP_KE comes last of all, after what follows the server's.
#[test]
fn catalogue_child_multi_ke_collision_delayed_response() {
    each_outcome(two, |stage| {
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
            Client => stage.see("A[3/2*]", "A[2/3 3/2*]"),
            Server => stage.see("A[1/1 2/3*]", "A[1/1* 2/3]"),
        }
        stage.run();
        let (won, _) = stage.outcome("2/3", "3/2");
        format!("A[{won}*]")
    });
}

/// One answer to a CREATE_CHILD_SA is late: the other side's key exchanges are done before.
#[test]
fn catalogue_child_multi_ke_collision_delayed_first_response() {
    each_outcome(two, |stage| {
        crossing(stage);
        stage.to(Server);
        stage.to(Client);
        let late = stage.hold(Client);
        // <-- CREATE_CHILD_SA, --> IKE_FOLLOWUP_KE of the server's exchange, and its answer.
        stage.to(Server);
        stage.see("A[1/1*]", "A[1/1*]");
        stage.to(Client);
        stage.see("A[1/1* 3/2]", "A[1/1*]");
        stage.to(Server);
        // The server waits for the client's key exchange, which decides over its own.
        stage.see("A[1/1* 3/2]", "A[1/1*]");
        stage.late(late);
        stage.see("A[1/1* 3/2]", "A[1/1*]");
        stage.to(Server);
        match stage.loser() {
            Client => stage.see("A[1/1* 3/2]", "A[1/1 2/3 3/2*]"),
            Server => stage.see("A[1/1* 3/2]", "A[1/1* 2/3]"),
        }
        stage.run();
        let (won, _) = stage.outcome("2/3", "3/2");
        format!("A[{won}*]")
    });
}

/// One IKE_FOLLOWUP_KE is late: who is done already waits for it before anything is decided.
#[test]
fn catalogue_child_multi_ke_collision_delayed_followup() {
    each_outcome(two, |stage| {
        halfway_crossed(stage);
        let late = stage.hold(Client);
        stage.to(Server);
        stage.see("A[1/1*]", "A[1/1* 2/3]");
        stage.to(Client);
        stage.see("A[1/1*]", "A[1/1* 2/3]");
        stage.late(late);
        match stage.loser() {
            Client => stage.see("A[1/1* 3/2]", "A[1/1* 2/3]"),
            Server => stage.see("A[1/1 2/3* 3/2]", "A[1/1* 2/3]"),
        }
        stage.run();
        let (won, _) = stage.outcome("2/3", "3/2");
        format!("A[{won}*]")
    });
}

/// One IKE_FOLLOWUP_KE never comes: what the other side has made is taken after a while, and the
/// late one finds nothing.
#[test]
fn catalogue_child_multi_ke_collision_dropped_followup() {
    let mut stage = Stage::with(two());
    halfway_crossed(&mut stage);
    let lost = stage.hold(Client);
    stage.to(Server);
    stage.to(Client);
    stage.see("A[1/1*]", "A[1/1* 2/3]");
    // The server repeats it in vain, until the client waits no longer.
    for _ in 0..21 {
        stage.pair.wait(Duration::from_secs(1));
        if stage.line(Client) != "A[1/1*]" {
            break;
        }
        stage.pair.wire.clear();
    }
    stage.pair.wire.retain(|flight| flight.exchange() == ExchangeType::Informational);
    // --> INFORMATIONAL { D }
    stage.see("A[1/1 2/3*]", "A[1/1 2/3*]");
    stage.to(Server);
    stage.see("A[1/1 2/3*]", "A[2/3*]");
    stage.to(Client);
    stage.see("A[2/3*]", "A[2/3*]");
    stage.late(lost);
    let answer = stage.hold(Server);
    assert!(stage.tells(&answer, NotifyType::StateNotFound));
    stage.late(answer);
    stage.run();
    stage.settled("A[2/3*]");
}

/// The server's CREATE_CHILD_SA arrives when the client's is answered and its additional key
/// exchange under way: TEMPORARY_FAILURE (RFC 7296 2.25.1).
#[test]
fn catalogue_child_multi_ke_collision_delayed_request() {
    let mut stage = Stage::with(two());
    crossing(&mut stage);
    let late = stage.hold(Client);
    stage.to(Server);
    stage.to(Client);
    stage.see("A[1/1*]", "A[1/1*]");
    let followup = stage.hold(Server);
    stage.late(late);
    let answer = stage.hold(Server);
    assert!(stage.tells(&answer, NotifyType::TemporaryFailure));
    stage.late(answer);
    stage.see("A[1/1*]", "A[1/1*]");
    stage.late(followup);
    stage.see("A[1/1*]", "A[1/1* 2/3]");
    stage.to(Client);
    stage.see("A[1/1 2/3*]", "A[1/1* 2/3]");
    stage.run();
    stage.settled("A[2/3*]");
}

/// It arrives when the client's rekey is complete and the old one not closed yet.
#[test]
fn catalogue_child_multi_ke_collision_delayed_request_more() {
    let mut stage = Stage::with(two());
    crossing(&mut stage);
    let late = stage.hold(Client);
    for to in [Server, Client, Server, Client] {
        stage.to(to);
    }
    stage.see("A[1/1 2/3*]", "A[1/1* 2/3]");
    let delete = stage.hold(Server);
    stage.late(late);
    let answer = stage.hold(Server);
    assert!(stage.tells(&answer, NotifyType::TemporaryFailure));
    stage.late(answer);
    stage.see("A[1/1 2/3*]", "A[1/1* 2/3]");
    stage.late(delete);
    stage.see("A[1/1 2/3*]", "A[2/3*]");
    stage.run();
    stage.settled("A[2/3*]");
}

/// It arrives when the old one is gone everywhere: CHILD_SA_NOT_FOUND.
#[test]
fn catalogue_child_multi_ke_collision_delayed_request_after_the_delete() {
    let mut stage = Stage::with(two());
    crossing(&mut stage);
    let late = stage.hold(Client);
    for to in [Server, Client, Server, Client, Server, Client] {
        stage.to(to);
    }
    stage.see("A[2/3*]", "A[2/3*]");
    stage.late(late);
    let answer = stage.hold(Server);
    assert!(stage.tells(&answer, NotifyType::ChildSaNotFound));
    stage.late(answer);
    stage.see("A[2/3*]", "A[2/3*]");
    stage.settled("A[2/3*]");
}

/// One side closes the child whose rekey by the other has come half way: it is closed, and nothing
/// takes its place (RFC 7296 2.25.1).
#[test]
fn catalogue_child_multi_ke_collision_delete() {
    for rekeys in [Client, Server] {
        let closes = rekeys.other();
        let mut stage = halfway(two(), rekeys);
        stage.close_child(closes, "1/1");
        assert_eq!(stage.line(closes), "A[]");
        // The IKE_FOLLOWUP_KE crosses the DELETE.
        stage.to(closes);
        assert_eq!(stage.line(closes), "A[]");
        let delete = stage.hold(rekeys);
        let answer = stage.hold(rekeys);
        assert!(stage.tells(&answer, NotifyType::TemporaryFailure));
        stage.late(answer);
        assert_eq!(stage.line(rekeys), sorted("A[1/1*]"));
        stage.late(delete);
        stage.see_without_traffic("A[]", "A[]");
        stage.run();
        stage.settled_without_child("A[]");
    }
}

/// The DELETE arrives before the IKE_FOLLOWUP_KE's refusal.
#[test]
fn catalogue_child_multi_ke_collision_delete_delayed_response() {
    for rekeys in [Client, Server] {
        let closes = rekeys.other();
        let mut stage = halfway(two(), rekeys);
        stage.close_child(closes, "1/1");
        stage.to(closes);
        let delete = stage.hold(rekeys);
        let answer = stage.hold(rekeys);
        stage.late(delete);
        stage.see_without_traffic("A[]", "A[]");
        stage.late(answer);
        stage.see_without_traffic("A[]", "A[]");
        stage.run();
        stage.settled_without_child("A[]");
    }
}

/// The DELETE is lost at first.
#[test]
fn catalogue_child_multi_ke_collision_delete_drop_delete() {
    for rekeys in [Client, Server] {
        let closes = rekeys.other();
        let mut stage = halfway(two(), rekeys);
        let followup = stage.hold(closes);
        stage.close_child(closes, "1/1");
        stage.hold(rekeys);
        stage.late(followup);
        let answer = stage.hold(rekeys);
        assert!(stage.tells(&answer, NotifyType::TemporaryFailure));
        stage.late(answer);
        assert_eq!(stage.line(rekeys), sorted("A[1/1*]"));
        // It comes again before the rekey is tried again.
        stage.pair.run_for(Duration::from_secs(2));
        stage.see_without_traffic("A[]", "A[]");
        stage.settled_without_child("A[]");
    }
}

/// The IKE_FOLLOWUP_KE is lost at first, and belongs to nothing when it comes again.
#[test]
fn catalogue_child_multi_ke_collision_delete_drop_followup() {
    for rekeys in [Client, Server] {
        let closes = rekeys.other();
        let mut stage = halfway(two(), rekeys);
        stage.hold(closes);
        stage.close_child(closes, "1/1");
        stage.run();
        stage.see_without_traffic("A[]", "A[]");
        stage.pair.run_for(Duration::from_secs(30));
        stage.see_without_traffic("A[]", "A[]");
        stage.settled_without_child("A[]");
    }
}

/// The side that rekeys is told to close the child half way: its own rekey is given up.
#[test]
fn catalogue_child_multi_ke_closed_by_who_rekeys() {
    for side in [Client, Server] {
        let mut stage = halfway(two(), side);
        stage.close_child(side, "1/1");
        stage.run();
        stage.pair.run_for(Duration::from_secs(30));
        stage.see_without_traffic("A[]", "A[]");
        stage.settled_without_child("A[]");
    }
}

/// RFC 7296 2.25.2: the IKE SA is to be rekeyed while a child's rekey is half way. The child's goes
/// on, the IKE SA's is put off.
#[test]
fn catalogue_child_multi_ke_collision_ike_rekey() {
    for child in [Client, Server] {
        let other = child.other();
        let mut stage = halfway(two(), child);
        let followup = stage.hold(other);
        stage.rekey_ike(other);
        if let Some(at) = stage.pair.wire.iter().position(|flight| flight.to == child) {
            let request = stage.pair.wire.remove(at).unwrap();
            stage.late(request);
            let answer = stage.hold(other);
            assert!(stage.tells(&answer, NotifyType::TemporaryFailure));
            stage.late(answer);
        }
        stage.see("A[1/1*]", "A[1/1*]");
        stage.late(followup);
        see(&mut stage, child, "A[1/1*]", "A[1/1* 2/2]");
        stage.run();
        stage.see("A[2/2*]", "A[2/2*]");
        stage.pair.run_for(Duration::from_secs(60));
        stage.settled("B[2/2*]");
    }
}

/// The IKE SA is closed half way: everything ends.
#[test]
fn catalogue_child_multi_ke_collision_ike_delete() {
    for rekeys in [Client, Server] {
        let mut stage = halfway(two(), rekeys);
        stage.close_ike(rekeys.other());
        stage.run();
        stage.settled_without_child("");
    }
}
