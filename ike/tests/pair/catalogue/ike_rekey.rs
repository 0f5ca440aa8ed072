//! One side rekeys the IKE SA (RFC 7296 1.3.2, 2.18): the children move, their SPIs stay.

use super::*;

#[test]
fn catalogue_ike_regular() {
    for side in [Client, Server] {
        let mut stage = Stage::new();
        stage.rekey_ike(side);
        // --> CREATE_CHILD_SA { SA, Ni, KEi }
        see(&mut stage, side, "A[1/1*]", "A[1/1*]");
        stage.to(side.other());
        // <-- CREATE_CHILD_SA { SA, Nr, KEr }
        see(&mut stage, side, "A[1/1*]", "A~[] B[1/1*]");
        stage.to(side);
        // --> INFORMATIONAL { D } on the old SA
        see(&mut stage, side, "A~[] B[1/1*]", "A~[] B[1/1*]");
        stage.to(side.other());
        // <-- INFORMATIONAL { } on the old SA
        see(&mut stage, side, "A~[] B[1/1*]", "A.[] B[1/1*]");
        stage.to(side);
        see(&mut stage, side, "B[1/1*]", "A.[] B[1/1*]");
        stage.settled("B[1/1*]");
    }
}

/// Each side in turn, the roles of the SA changing with it, the child rekeyed in between.
#[test]
fn catalogue_ike_again_and_again() {
    let mut stage = Stage::new();
    let mut spi = 1;
    for (round, side) in [Client, Server, Server, Client, Server].into_iter().enumerate() {
        stage.rekey_ike(side);
        stage.run();
        stage.rekey_child(side.other(), &format!("{spi}/{spi}"));
        stage.run();
        spi += 1;
        stage.pair.run_for(Duration::from_secs(31));
        let line = format!("{}[{spi}/{spi}*]", (b'B' + round as u8) as char);
        stage.see(&line, &line);
    }
    stage.settled("F[6/6*]");
}

#[test]
fn catalogue_ike_ke_invalid() {
    for side in [Client, Server] {
        let mut stage = Stage::new();
        let mut config = stage.pair.peer(side.other()).config.clone();
        config.ike_suites = ike("aes256gcm16-prfsha384-ecp256");
        stage.command(side.other(), Command::Reconfigure(Box::new(config)));
        stage.rekey_ike(side);
        stage.to(side.other());
        see(&mut stage, side, "A[1/1*]", "A[1/1*]");
        let refusal = stage.hold(side);
        assert!(stage.tells(&refusal, NotifyType::InvalidKePayload));
        stage.late(refusal);
        stage.to(side.other());
        see(&mut stage, side, "A[1/1*]", "A~[] B[1/1*]");
        stage.to(side);
        see(&mut stage, side, "A~[] B[1/1*]", "A~[] B[1/1*]");
        stage.run();
        stage.settled("B[1/1*]");
    }
}

/// The request is lost, and comes again byte by byte (RFC 7296 2.1).
#[test]
fn catalogue_ike_dropped_request() {
    for side in [Client, Server] {
        let mut stage = Stage::new();
        stage.rekey_ike(side);
        let lost = stage.hold(side.other());
        stage.pair.wait(Duration::from_millis(1100));
        let again = stage.hold(side.other());
        assert_eq!(again, lost);
        stage.late(again);
        see(&mut stage, side, "A[1/1*]", "A~[] B[1/1*]");
        stage.run();
        stage.settled("B[1/1*]");
    }
}

/// The answer is lost: the repeated request gets the same one, and makes nothing twice.
#[test]
fn catalogue_ike_dropped_response() {
    for side in [Client, Server] {
        let mut stage = Stage::new();
        stage.rekey_ike(side);
        stage.to(side.other());
        let lost = stage.hold(side);
        stage.pair.wait(Duration::from_millis(1100));
        stage.to(side.other());
        see(&mut stage, side, "A[1/1*]", "A~[] B[1/1*]");
        let again = stage.hold(side);
        assert_eq!(again, lost);
        stage.late(again);
        stage.run();
        stage.settled("B[1/1*]");
    }
}

/// The DELETE of the old SA never comes: nothing waits for it for ever.
#[test]
fn catalogue_ike_delete_never_comes() {
    for side in [Client, Server] {
        let mut stage = Stage::new();
        stage.rekey_ike(side);
        stage.to(side.other());
        stage.to(side);
        for _ in 0..40 {
            stage.pair.wire.clear();
            stage.pair.wait(Duration::from_secs(1));
        }
        stage.pair.wire.clear();
        see(&mut stage, side, "B[1/1*]", "B[1/1*]");
        stage.settled("B[1/1*]");
    }
}

/// The new SA is rekeyed before the old one is deleted.
#[test]
fn catalogue_ike_rekeyed_again_before_the_delete() {
    for again in [Client, Server] {
        let mut stage = Stage::new();
        stage.rekey_ike(Client);
        stage.to(Server);
        stage.to(Client);
        stage.see("A~[] B[1/1*]", "A~[] B[1/1*]");
        let delete = stage.hold(Server);
        stage.rekey_ike(again);
        stage.run();
        let line = |at| format!("A~[] {} C[1/1*]", b(again, at));
        stage.see(&line(Client), &line(Server));
        stage.late(delete);
        stage.run();
        stage.settled("C[1/1*]");
    }
}

/// The replaced SA after its DELETE: gone where that was sent, repeating its answer where it came.
fn b(sent: Side, at: Side) -> &'static str {
    if sent == at { "" } else { "B.[]" }
}

/// The child is rekeyed under the new SA while the old one's DELETE is on its way.
#[test]
fn catalogue_ike_child_rekeyed_before_the_delete() {
    for side in [Client, Server] {
        let mut stage = Stage::new();
        stage.rekey_ike(Client);
        stage.to(Server);
        stage.to(Client);
        let delete = stage.hold(Server);
        stage.rekey_child(side, "1/1");
        stage.run();
        stage.see("A~[] B[2/2*]", "A~[] B[2/2*]");
        stage.late(delete);
        stage.run();
        stage.settled("B[2/2*]");
    }
}
