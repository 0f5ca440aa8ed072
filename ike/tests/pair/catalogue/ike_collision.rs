//! Both sides rekey the IKE SA, or one rekeys what the other closes (RFC 7296 2.8.2, 2.25.2).
//! The client's exchange makes `B`, the server's `C`.

use super::*;

fn crossing(stage: &mut Stage) {
    stage.rekey_ike(Client);
    stage.rekey_ike(Server);
    stage.see("A[1/1*]", "A[1/1*]");
}

fn crossed(stage: &mut Stage) {
    crossing(stage);
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
fn catalogue_ike_collision() {
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

#[test]
fn catalogue_ike_collision_delayed_response() {
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

/// What follows the server's exchange arrives before the answer to the client's.
#[test]
fn catalogue_ike_collision_delayed_response_after_the_delete() {
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

/// The server's request is lost; the client's exchange stands alone.
#[test]
fn catalogue_ike_collision_dropped_request() {
    let mut stage = Stage::new();
    crossing(&mut stage);
    stage.hold(Client);
    stage.to(Server);
    stage.see("A[1/1*]", "A[1/1*] B[]");
    stage.to(Client);
    stage.see("A~[] B[1/1*]", "A[1/1*] B[]");
    stage.to(Server);
    stage.see("A~[] B[1/1*]", "A.[] B[1/1*]");
    stage.run();
    stage.settled("B[1/1*]");
}

/// The server's request arrives when the client has replaced the SA: TEMPORARY_FAILURE.
#[test]
fn catalogue_ike_collision_delayed_request() {
    let mut stage = Stage::new();
    crossing(&mut stage);
    let late = stage.hold(Client);
    stage.to(Server);
    stage.to(Client);
    let delete = stage.hold(Server);
    stage.late(late);
    let answer = stage.hold(Server);
    assert!(stage.tells(&answer, NotifyType::TemporaryFailure));
    stage.late(answer);
    stage.see("A~[] B[1/1*]", "A~[] B[1/1*]");
    stage.late(delete);
    stage.see("A~[] B[1/1*]", "A.[] B[1/1*]");
    stage.run();
    stage.settled("B[1/1*]");
}

/// The same, and the answer comes after the DELETE.
#[test]
fn catalogue_ike_collision_delayed_request_and_response() {
    let mut stage = Stage::new();
    crossing(&mut stage);
    let late = stage.hold(Client);
    stage.to(Server);
    stage.to(Client);
    let delete = stage.hold(Server);
    stage.late(late);
    let answer = stage.hold(Server);
    stage.late(delete);
    stage.see("A~[] B[1/1*]", "A.[] B[1/1*]");
    stage.late(answer);
    stage.run();
    stage.settled("B[1/1*]");
}

/// The server's request arrives when the client has forgotten the old SA.
#[test]
fn catalogue_ike_collision_delayed_request_and_delete() {
    let mut stage = Stage::new();
    crossing(&mut stage);
    let late = stage.hold(Client);
    stage.to(Server);
    stage.to(Client);
    stage.to(Server);
    stage.to(Client);
    stage.see("B[1/1*]", "A.[] B[1/1*]");
    stage.late(late);
    assert!(stage.pair.wire.is_empty(), "an SPI nobody knows is not answered");
    stage.see("B[1/1*]", "A.[] B[1/1*]");
    stage.settled("B[1/1*]");
}

/// From now on the server wants another group than the one in use, which the client accepts too.
fn disagree(stage: &mut Stage) {
    let mut config = stage.pair.server.config.clone();
    config.ike_suites = ike("aes256gcm16-prfsha384-ecp256");
    stage.command(Server, Command::Reconfigure(Box::new(config)));
}

/// The client's first attempt has the wrong group: its second one crosses the server's.
fn refused_and_tried_again(stage: &mut Stage) {
    disagree(stage);
    crossing(stage);
    stage.to(Server);
    stage.see("A[1/1*]", "A[1/1*]");
    let (servers, refusal) = (stage.hold(Client), stage.hold(Client));
    assert!(stage.tells(&refusal, NotifyType::InvalidKePayload));
    stage.late(refusal);
    // The nonce of the first attempt no longer counts.
    stage.nonces.remove(0);
    stage.late(servers);
    stage.see("A[1/1*] B[]", "A[1/1*]");
}

#[test]
fn catalogue_ike_collision_ke_invalid() {
    each_outcome(quiet, |stage| {
        refused_and_tried_again(stage);
        stage.to(Server);
        stage.see("A[1/1*] B[]", "A[1/1*] C[]");
        stage.to(Server);
        stage.to(Client);
        match stage.loser() {
            Client => stage.see("A~[] B[1/1*] C-[]", "A~[] B[1/1*] C[]"),
            Server => stage.see("A~[] B[] C[1/1*]", "A~[] B-[] C[1/1*]"),
        }
        stage.run();
        let (won, _) = stage.outcome("C", "B");
        format!("{won}[1/1*]")
    });
}

/// The client's second attempt arrives when the server's exchange has succeeded.
#[test]
fn catalogue_ike_collision_ke_invalid_delayed_retry() {
    let mut stage = Stage::new();
    refused_and_tried_again(&mut stage);
    let late = stage.hold(Server);
    stage.to(Server);
    stage.see("A[1/1*] B[]", "A~[] B[1/1*]");
    stage.late(late);
    let (delete, answer) = (stage.hold(Client), stage.hold(Client));
    assert!(stage.tells(&answer, NotifyType::TemporaryFailure));
    stage.late(answer);
    stage.see("A~[] B[1/1*]", "A~[] B[1/1*]");
    stage.late(delete);
    stage.run();
    stage.settled("B[1/1*]");
}

/// The server closes the IKE SA that the client rekeys: it is closed.
#[test]
fn catalogue_ike_collision_delete() {
    for (rekeys, closes) in [(Client, Server), (Server, Client)] {
        let mut stage = Stage::new();
        stage.rekey_ike(rekeys);
        stage.close_ike(closes);
        stage.to(closes);
        let (delete, answer) = (stage.hold(rekeys), stage.hold(rekeys));
        assert!(stage.tells(&answer, NotifyType::TemporaryFailure));
        stage.late(answer);
        let own = stage.line(rekeys);
        assert_eq!(own, "A[1/1*]");
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
fn catalogue_ike_collision_delete_delayed_response() {
    for (rekeys, closes) in [(Client, Server), (Server, Client)] {
        let mut stage = Stage::new();
        stage.rekey_ike(rekeys);
        stage.close_ike(closes);
        stage.to(closes);
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
fn catalogue_ike_collision_delete_drop_delete() {
    for (rekeys, closes) in [(Client, Server), (Server, Client)] {
        let mut stage = Stage::new();
        stage.rekey_ike(rekeys);
        stage.close_ike(closes);
        stage.hold(rekeys);
        stage.to(closes);
        stage.to(rekeys);
        assert_eq!(stage.line(rekeys), "A[1/1*]");
        stage.pair.run_for(Duration::from_secs(2));
        stage.settled_without_child("");
    }
}

/// The rekey's request is lost, the DELETE is not.
#[test]
fn catalogue_ike_collision_delete_drop_rekey() {
    for (rekeys, closes) in [(Client, Server), (Server, Client)] {
        let mut stage = Stage::new();
        stage.rekey_ike(rekeys);
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

/// The successor is closed by its peer before the old SA's DELETE has come.
#[test]
fn catalogue_ike_successor_closed_at_once() {
    let mut stage = Stage::new();
    stage.rekey_ike(Client);
    stage.to(Server);
    stage.close_ike(Server);
    stage.run();
    stage.pair.run_for(Duration::from_secs(60));
    stage.settled_without_child("");
}
