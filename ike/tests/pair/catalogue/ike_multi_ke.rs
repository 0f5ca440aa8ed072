//! Rekeys of the IKE SA with additional key exchanges (RFC 9370 2.2.4): CREATE_CHILD_SA is followed
//! by one IKE_FOLLOWUP_KE, with which the successor comes into being. When two cross, the client's
//! exchange makes `B`, the server's `C`, unless a case says otherwise.

use super::*;

/// The handshake has one key exchange, as the observer computes its keys from one secret; a rekey
/// has these two.
const TWO: &str = "aes256gcm16-prfsha384-x25519-ke1_ecp256";

/// What else may begin.
const OTHER: &str = "aes256gcm16-prfsha384-ecp384-ke1_ecp256";

fn configure(stage: &mut Stage, side: Side, suites: &[&str]) {
    let mut config = stage.pair.peer(side).config.clone();
    config.ike_suites = suites.iter().flat_map(|text| ike(text)).collect();
    stage.command(side, Command::Reconfigure(Box::new(config)));
}

/// From now on both sides rekey with two key exchanges, and accept nothing less.
fn two(stage: &mut Stage) {
    for side in [Client, Server] {
        configure(stage, side, &[TWO]);
    }
}

fn staged() -> Stage {
    let mut stage = Stage::new();
    two(&mut stage);
    stage
}

/// The side's rekey up to its IKE_FOLLOWUP_KE, which is on the wire: nothing is made yet.
fn halfway(side: Side) -> Stage {
    let mut stage = staged();
    stage.rekey_ike(side);
    // --> CREATE_CHILD_SA { SA, Ni, KEi }
    see(&mut stage, side, "A[1/1*]", "A[1/1*]");
    stage.to(side.other());
    // <-- CREATE_CHILD_SA { SA, Nr, KEr, N(ADDITIONAL_KEY_EXCHANGE) }
    see(&mut stage, side, "A[1/1*]", "A[1/1*]");
    stage.to(side);
    // --> IKE_FOLLOWUP_KE { KEi(1), N(ADDITIONAL_KEY_EXCHANGE) }
    see(&mut stage, side, "A[1/1*]", "A[1/1*]");
    let next = stage.pair.wire.back().map(Flight::exchange);
    assert_eq!(next, Some(ExchangeType::IkeFollowupKe));
    stage
}

/// From the IKE_FOLLOWUP_KE of `halfway` to the end.
fn rest(mut stage: Stage, side: Side) {
    stage.to(side.other());
    // <-- IKE_FOLLOWUP_KE { KEr(1) }
    see(&mut stage, side, "A[1/1*]", "A~[] B[1/1*]");
    stage.to(side);
    // --> INFORMATIONAL { D } on the old SA
    see(&mut stage, side, "A~[] B[1/1*]", "A~[] B[1/1*]");
    stage.to(side.other());
    // <-- INFORMATIONAL { } on the old SA
    see(&mut stage, side, "A~[] B[1/1*]", "A.[] B[1/1*]");
    stage.to(side);
    see(&mut stage, side, "B[1/1*]", "A.[] B[1/1*]");
    let suite = stage.pair.server.established()[0].suite.clone();
    assert!(suite.is_some_and(|suite| suite.contains("ke1_ecp256")));
    stage.settled("B[1/1*]");
}

#[test]
fn catalogue_ike_multi_ke_regular() {
    for side in [Client, Server] {
        rest(halfway(side), side);
    }
}

/// The first key exchange is to be another one.
#[test]
fn catalogue_ike_multi_ke_ke_invalid() {
    for side in [Client, Server] {
        let mut stage = staged();
        configure(&mut stage, side, &[TWO, OTHER]);
        configure(&mut stage, side.other(), &[OTHER]);
        stage.rekey_ike(side);
        stage.to(side.other());
        let refusal = stage.hold(side);
        assert!(stage.tells(&refusal, NotifyType::InvalidKePayload));
        stage.late(refusal);
        see(&mut stage, side, "A[1/1*]", "A[1/1*]");
        stage.to(side.other());
        see(&mut stage, side, "A[1/1*]", "A[1/1*]");
        stage.to(side);
        see(&mut stage, side, "A[1/1*]", "A[1/1*]");
        rest(stage, side);
    }
}

/// The IKE_FOLLOWUP_KE is lost, and comes again byte by byte; so does its answer.
#[test]
fn catalogue_ike_multi_ke_dropped_followup() {
    for side in [Client, Server] {
        let mut stage = halfway(side);
        let lost = stage.hold(side.other());
        stage.pair.wait(Duration::from_millis(1100));
        let again = stage.hold(side.other());
        assert_eq!(again, lost);
        stage.late(again);
        see(&mut stage, side, "A[1/1*]", "A~[] B[1/1*]");
        let lost = stage.hold(side);
        stage.pair.wait(Duration::from_millis(2000));
        stage.to(side.other());
        see(&mut stage, side, "A[1/1*]", "A~[] B[1/1*]");
        let again = stage.hold(side);
        assert_eq!(again, lost);
        stage.late(again);
        see(&mut stage, side, "A~[] B[1/1*]", "A~[] B[1/1*]");
        stage.run();
        stage.settled("B[1/1*]");
    }
}

/// The IKE_FOLLOWUP_KE never comes: the old SA lives on, and a later rekey begins anew.
#[test]
fn catalogue_ike_multi_ke_followup_too_late() {
    for side in [Client, Server] {
        let mut stage = halfway(side);
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
        stage.pair.run_for(Duration::from_secs(60));
        stage.settled("B[1/1*]");
    }
}

fn crossing(stage: &mut Stage) {
    stage.rekey_ike(Client);
    stage.rekey_ike(Server);
    stage.see("A[1/1*]", "A[1/1*]");
}

/// Both CREATE_CHILD_SAs are done, both IKE_FOLLOWUP_KEs on the wire.
fn halfway_crossed(stage: &mut Stage) {
    two(stage);
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
    stage.see("A[1/1*]", "A[1/1*] B[]");
    stage.to(Client);
    stage.see("A[1/1*] C[]", "A[1/1*] B[]");
}

fn winner(stage: &Stage) -> String {
    let (won, _) = stage.outcome("B", "C");
    format!("{won}[1/1*]")
}

#[test]
fn catalogue_ike_multi_ke_collision() {
    each_outcome(quiet, |stage| {
        crossed(stage);
        stage.to(Client);
        stage.to(Server);
        match stage.loser() {
            // RFC 7296 2.8.2: who made the redundant one closes it.
            Client => stage.see("A~[] B-[] C[1/1*]", "A~[] B[] C[1/1*]"),
            Server => stage.see("A~[] B[1/1*] C[]", "A~[] B[1/1*] C-[]"),
        }
        stage.run();
        winner(stage)
    });
}

/// The answer to the client's IKE_FOLLOWUP_KE is late.
#[test]
fn catalogue_ike_multi_ke_collision_delayed_response() {
    each_outcome(quiet, |stage| {
        crossed(stage);
        let late = stage.hold(Client);
        stage.to(Server);
        match stage.loser() {
            Client => stage.see("A[1/1*] C[]", "A~[] B[] C[1/1*]"),
            Server => stage.see("A[1/1*] C[]", "A~[] B[1/1*] C-[]"),
        }
        stage.late(late);
        match stage.loser() {
            Client => stage.see("A~[] B-[] C[1/1*]", "A~[] B[] C[1/1*]"),
            Server => stage.see("A~[] B[1/1*] C[]", "A~[] B[1/1*] C-[]"),
        }
        stage.run();
        winner(stage)
    });
}

/// What follows the server's exchange arrives before that answer.
#[test]
fn catalogue_ike_multi_ke_collision_delayed_response_after_the_delete() {
    each_outcome(quiet, |stage| {
        crossed(stage);
        let late = stage.hold(Client);
        stage.to(Server);
        stage.to(Client);
        match stage.loser() {
            // The old one is gone: what the server made lives.
            Client => stage.see("A.[] C[1/1*]", "A~[] B[] C[1/1*]"),
            // The redundant one is gone.
            Server => stage.see("A[1/1*] C.[]", "A~[] B[1/1*] C-[]"),
        }
        stage.late(late);
        stage.run();
        stage.pair.run_for(Duration::from_secs(60));
        winner(stage)
    });
}

/// One answer to a CREATE_CHILD_SA is late: the other side's key exchanges are done before, and
/// its successor waits.
#[test]
fn catalogue_ike_multi_ke_collision_delayed_first_response() {
    each_outcome(quiet, |stage| {
        two(stage);
        crossing(stage);
        stage.to(Server);
        stage.to(Client);
        let late = stage.hold(Client);
        stage.to(Server);
        stage.see("A[1/1*]", "A[1/1*]");
        stage.to(Client);
        // Seen first, so `B` is what the server's exchange makes.
        stage.see("A[1/1*] B[]", "A[1/1*]");
        stage.to(Server);
        stage.see("A[1/1*] B[]", "A[1/1*]");
        stage.late(late);
        stage.see("A[1/1*] B[]", "A[1/1*]");
        stage.to(Server);
        match stage.loser() {
            Client => stage.see("A[1/1*] B[]", "A~[] B[1/1*] C[]"),
            Server => stage.see("A[1/1*] B[]", "A~[] B-[] C[1/1*]"),
        }
        stage.run();
        let (won, _) = stage.outcome("C", "B");
        format!("{won}[1/1*]")
    });
}

/// One IKE_FOLLOWUP_KE is late: who is done already waits for it before anything is decided.
#[test]
fn catalogue_ike_multi_ke_collision_delayed_followup() {
    each_outcome(quiet, |stage| {
        halfway_crossed(stage);
        let late = stage.hold(Client);
        stage.to(Server);
        stage.see("A[1/1*]", "A[1/1*] B[]");
        stage.to(Client);
        stage.see("A[1/1*]", "A[1/1*] B[]");
        stage.late(late);
        match stage.loser() {
            Client => stage.see("A~[] B-[] C[1/1*]", "A[1/1*] B[]"),
            Server => stage.see("A~[] B[1/1*] C[]", "A[1/1*] B[]"),
        }
        stage.run();
        winner(stage)
    });
}

/// The server's CREATE_CHILD_SA is lost; the client's exchange stands alone.
#[test]
fn catalogue_ike_multi_ke_collision_dropped_request() {
    let mut stage = staged();
    crossing(&mut stage);
    stage.hold(Client);
    stage.to(Server);
    stage.see("A[1/1*]", "A[1/1*]");
    stage.to(Client);
    stage.see("A[1/1*]", "A[1/1*]");
    stage.to(Server);
    stage.see("A[1/1*]", "A[1/1*] B[]");
    stage.to(Client);
    stage.see("A~[] B[1/1*]", "A[1/1*] B[]");
    stage.to(Server);
    stage.see("A~[] B[1/1*]", "A.[] B[1/1*]");
    stage.run();
    stage.settled("B[1/1*]");
}

/// It arrives when the client's is answered and its additional key exchange under way:
/// TEMPORARY_FAILURE (RFC 7296 2.25.2).
#[test]
fn catalogue_ike_multi_ke_collision_delayed_request() {
    let mut stage = staged();
    crossing(&mut stage);
    let late = stage.hold(Client);
    stage.to(Server);
    stage.to(Client);
    let followup = stage.hold(Server);
    stage.late(late);
    let answer = stage.hold(Server);
    assert!(stage.tells(&answer, NotifyType::TemporaryFailure));
    stage.late(answer);
    stage.see("A[1/1*]", "A[1/1*]");
    stage.late(followup);
    stage.see("A[1/1*]", "A~[] B[1/1*]");
    stage.to(Client);
    stage.see("A~[] B[1/1*]", "A~[] B[1/1*]");
    stage.run();
    stage.settled("B[1/1*]");
}

/// It arrives when the client has replaced the SA, its refusal after the DELETE.
#[test]
fn catalogue_ike_multi_ke_collision_delayed_request_and_response() {
    let mut stage = staged();
    crossing(&mut stage);
    let late = stage.hold(Client);
    for to in [Server, Client, Server, Client] {
        stage.to(to);
    }
    stage.see("A~[] B[1/1*]", "A[1/1*] B[]");
    let delete = stage.hold(Server);
    stage.late(late);
    let answer = stage.hold(Server);
    assert!(stage.tells(&answer, NotifyType::TemporaryFailure));
    stage.late(delete);
    stage.see("A~[] B[1/1*]", "A.[] B[1/1*]");
    stage.late(answer);
    stage.run();
    stage.settled("B[1/1*]");
}

/// It arrives when the client has forgotten the old SA.
#[test]
fn catalogue_ike_multi_ke_collision_delayed_request_and_delete() {
    let mut stage = staged();
    crossing(&mut stage);
    let late = stage.hold(Client);
    for to in [Server, Client, Server, Client, Server, Client] {
        stage.to(to);
    }
    stage.see("B[1/1*]", "A.[] B[1/1*]");
    stage.late(late);
    assert!(stage.pair.wire.is_empty(), "an SPI nobody knows is not answered");
    stage.see("B[1/1*]", "A.[] B[1/1*]");
    stage.settled("B[1/1*]");
}

/// One side closes the IKE SA whose rekey by the other has come half way: it is closed, and has no
/// successor.
#[test]
fn catalogue_ike_multi_ke_collision_delete() {
    for rekeys in [Client, Server] {
        let closes = rekeys.other();
        let mut stage = halfway(rekeys);
        stage.close_ike(closes);
        assert_eq!(stage.line(closes), "A-[]");
        // The IKE_FOLLOWUP_KE crosses the DELETE.
        stage.to(closes);
        assert_eq!(stage.line(closes), "A-[]");
        let (delete, answer) = (stage.hold(rekeys), stage.hold(rekeys));
        assert!(stage.tells(&answer, NotifyType::StateNotFound), "RFC 9370 2.2.4");
        stage.late(answer);
        assert_eq!(stage.line(rekeys), "A[1/1*]");
        stage.late(delete);
        stage.see_without_traffic(
            if rekeys == Client { "A.[]" } else { "A-[]" },
            if rekeys == Server { "A.[]" } else { "A-[]" },
        );
        stage.run();
        stage.settled_without_child("");
    }
}

/// The DELETE overtakes the refusal.
#[test]
fn catalogue_ike_multi_ke_collision_delete_delayed_response() {
    for rekeys in [Client, Server] {
        let mut stage = halfway(rekeys);
        stage.close_ike(rekeys.other());
        stage.to(rekeys.other());
        let (delete, answer) = (stage.hold(rekeys), stage.hold(rekeys));
        stage.late(delete);
        assert_eq!(stage.line(rekeys), "A.[]");
        stage.late(answer);
        stage.run();
        stage.settled_without_child("");
    }
}

/// The DELETE is lost at first.
#[test]
fn catalogue_ike_multi_ke_collision_delete_drop_delete() {
    for rekeys in [Client, Server] {
        let closes = rekeys.other();
        let mut stage = halfway(rekeys);
        stage.close_ike(closes);
        stage.hold(rekeys);
        stage.to(closes);
        stage.to(rekeys);
        assert_eq!(stage.line(rekeys), "A[1/1*]");
        stage.pair.run_for(Duration::from_secs(2));
        stage.settled_without_child("");
    }
}

/// The IKE_FOLLOWUP_KE is lost, the DELETE is not.
#[test]
fn catalogue_ike_multi_ke_collision_delete_drop_followup() {
    for rekeys in [Client, Server] {
        let closes = rekeys.other();
        let mut stage = halfway(rekeys);
        stage.hold(closes);
        stage.close_ike(closes);
        stage.run();
        stage.see_without_traffic(
            if rekeys == Client { "A.[]" } else { "" },
            if rekeys == Server { "A.[]" } else { "" },
        );
        stage.settled_without_child("");
    }
}
