//! One side rekeys a child SA; the other behaves, loses things, or misbehaves
//! (RFC 7296 1.3.3, 2.8).

use ike::wire::{Notify, Payloads};

use super::*;

/// Rekeys up to the answer: what replaces 1/1 is 2/2 on both sides.
fn answered(side: Side) -> Stage {
    let mut stage = Stage::new();
    stage.rekey_child(side, "1/1");
    stage.to(side.other());
    see(&mut stage, side, "A[1/1*]", "A[1/1* 2/2]");
    stage
}

#[test]
fn catalogue_child_regular() {
    for side in [Client, Server] {
        let mut stage = Stage::new();
        stage.rekey_child(side, "1/1");
        // --> CREATE_CHILD_SA { N(REKEY_SA), SA, Ni, TSi, TSr }
        see(&mut stage, side, "A[1/1*]", "A[1/1*]");
        stage.to(side.other());
        // <-- CREATE_CHILD_SA { SA, Nr, TSi, TSr }
        see(&mut stage, side, "A[1/1*]", "A[1/1* 2/2]");
        stage.to(side);
        // --> INFORMATIONAL { D }
        see(&mut stage, side, "A[1/1 2/2*]", "A[1/1* 2/2]");
        stage.to(side.other());
        // <-- INFORMATIONAL { D }
        see(&mut stage, side, "A[1/1 2/2*]", "A[2/2*]");
        stage.to(side);
        stage.settled("A[2/2*]");
    }
}

#[test]
fn catalogue_child_again_and_again() {
    let mut stage = Stage::new();
    for round in 1..6 {
        for (half, side) in [Client, Server].into_iter().enumerate() {
            let spi = 2 * round - 1 + half;
            stage.rekey_child(side, &format!("{spi}/{spi}"));
            stage.run();
            let line = format!("A[{0}/{0}*]", spi + 1);
            stage.see(&line, &line);
        }
    }
    stage.settled("A[11/11*]");
}

/// RFC 7296 1.3: the other side wants another group than the first that was offered.
#[test]
fn catalogue_child_ke_invalid() {
    for side in [Client, Server] {
        let (first, second) = ("aes256gcm16-x25519-ecp256-esn", "aes256gcm16-ecp256-esn");
        let mut stage = Stage::with(groups(side, first, second));
        stage.rekey_child(side, "1/1");
        stage.to(side.other());
        see(&mut stage, side, "A[1/1*]", "A[1/1*]");
        let refusal = stage.hold(side);
        assert!(stage.tells(&refusal, NotifyType::InvalidKePayload));
        stage.late(refusal);
        // The second attempt has an SPI of its own.
        stage.to(side.other());
        let new = match side {
            Client => "3/2",
            Server => "2/3",
        };
        see(&mut stage, side, "A[1/1*]", &format!("A[1/1* {new}]"));
        stage.to(side);
        see(&mut stage, side, &format!("A[1/1 {new}*]"), &format!("A[1/1* {new}]"));
        stage.run();
        stage.settled(&format!("A[{new}*]"));
    }
}

/// ESP proposals of the side that rekeys and of the other.
fn groups(side: Side, own: &str, others: &str) -> Setup {
    let (client, server) = match side {
        Client => (own, others),
        Server => (others, own),
    };
    let mut setup = quiet();
    setup.client.esp_suites = esp(client);
    setup.target.esp_suites = esp(client);
    setup.server.esp_suites = esp(server);
    setup
}

/// The old SA's soft limit is reached where it was replaced already: nothing is to be done.
#[test]
fn catalogue_child_responder_ignores_a_soft_expire() {
    for side in [Client, Server] {
        let mut stage = answered(side);
        stage.expire(side.other(), "1/1", false);
        assert_eq!(stage.pair.wire.len(), 1, "the answer and nothing else");
        stage.to(side);
        stage.expire(side.other(), "1/1", false);
        assert_eq!(stage.pair.wire.len(), 1, "the DELETE and nothing else");
        see(&mut stage, side, "A[1/1 2/2*]", "A[1/1* 2/2]");
        stage.run();
        stage.settled("A[2/2*]");
    }
}

/// The initiator's own soft limit is reached while its request is out.
#[test]
fn catalogue_child_initiator_ignores_a_soft_expire() {
    for side in [Client, Server] {
        let mut stage = answered(side);
        stage.expire(side, "1/1", false);
        stage.to(side);
        stage.expire(side, "1/1", false);
        see(&mut stage, side, "A[1/1 2/2*]", "A[1/1* 2/2]");
        stage.run();
        stage.settled("A[2/2*]");
    }
}

/// The old SA's hard limit is reached before its DELETE comes: who answered closes it itself.
#[test]
fn catalogue_child_responder_handles_a_hard_expire() {
    for side in [Client, Server] {
        let mut stage = answered(side);
        stage.to(side);
        stage.expire(side.other(), "1/1", true);
        // Two DELETEs for the same SA cross (RFC 7296 1.4.1).
        see(&mut stage, side, "A[1/1 2/2*]", "A[2/2*]");
        stage.to(side.other());
        stage.to(side);
        see(&mut stage, side, "A[2/2*]", "A[2/2*]");
        stage.run();
        stage.settled("A[2/2*]");
    }
}

/// The old SA's hard limit is reached before the answer has even arrived.
#[test]
fn catalogue_child_responder_handles_an_early_hard_expire() {
    for side in [Client, Server] {
        let mut stage = answered(side);
        let answer = stage.hold(side);
        stage.expire(side.other(), "1/1", true);
        let delete = stage.hold(side);
        stage.late(answer);
        see(&mut stage, side, "A[1/1 2/2*]", "A[2/2*]");
        stage.late(delete);
        see(&mut stage, side, "A[2/2*]", "A[2/2*]");
        stage.run();
        stage.settled("A[2/2*]");
    }
}

/// Who answered closes the new SA before the old one's DELETE has come: that was the operator's
/// wish, and nothing is left.
#[test]
fn catalogue_child_responder_closes_the_new_one() {
    for side in [Client, Server] {
        let mut stage = answered(side);
        stage.to(side);
        stage.close_child(side.other(), "2/2");
        stage.to(side.other());
        let line = ("A[1/1 2/2*]", "A[]");
        match side {
            Client => stage.see_without_traffic(line.0, line.1),
            Server => stage.see_without_traffic(line.1, line.0),
        }
        stage.run();
        stage.settled_without_child("A[]");
    }
}

/// RFC 7296 2.25.1: the other side has lost the SA and says so.
#[test]
fn catalogue_child_responder_lost_the_sa() {
    let mut stage = Stage::new();
    stage.rekey_child(Server, "1/1");
    let request = stage.hold(Client);
    let asked = stage.spy.hear(&request).payloads().unwrap();
    let named = asked.notify(NotifyType::RekeySa).unwrap().clone();
    let mut payloads = Payloads::new();
    payloads.push_notify(Notify { kind: NotifyType::ChildSaNotFound, ..named });
    let exchange = ExchangeType::CreateChildSa;
    let answer = stage.spy.say(&stage.pair, Client, exchange, true, 0, &payloads);
    stage.late(answer);
    stage.see_without_traffic("A[1/1*]", "A[]");
    // The client's engine in truth still has it; it hears so at its own next rekey.
    stage.rekey_child(Client, "1/1");
    stage.to(Server);
    let answer = stage.hold(Client);
    assert!(stage.tells(&answer, NotifyType::ChildSaNotFound));
    stage.late(answer);
    stage.see_without_traffic("A[]", "A[]");
}

/// RFC 7296 2.8: whoever initiated the rekey deletes the old SA. A peer that does so as responder
/// closes nothing but what is to go anyway.
#[test]
fn catalogue_child_responder_deletes_the_old_one_itself() {
    for side in [Client, Server] {
        for before_the_answer in [false, true] {
            let mut stage = answered(side);
            let id = match side.other() {
                Client => 2,
                Server => 0,
            };
            let delete = stage.forge_delete(side.other(), id, "1/1");
            let answer = stage.hold(side);
            if before_the_answer {
                stage.late(delete);
                stage.pair.wire.clear();
                stage.late(answer);
            } else {
                stage.late(answer);
                stage.late(delete);
            }
            let own = match side {
                Client => stage.line(Client),
                Server => stage.line(Server),
            };
            assert_eq!(own, "A[2/2*]", "the new one lives");
        }
    }
}

/// The old SA stays until its DELETE is through; meanwhile both have moved on.
#[test]
fn catalogue_child_delete_lost() {
    for side in [Client, Server] {
        let mut stage = answered(side);
        stage.to(side);
        stage.pair.lose();
        see(&mut stage, side, "A[1/1 2/2*]", "A[1/1* 2/2]");
        stage.pair.wait(Duration::from_millis(400));
        assert!(stage.pair.wire.is_empty());
        stage.pair.run_for(Duration::from_secs(6));
        see(&mut stage, side, "A[2/2*]", "A[2/2*]");
        stage.settled("A[2/2*]");
    }
}

/// No DELETE ever comes (its sender has lost it): who answered sends on the new SA after a while.
#[test]
fn catalogue_child_delete_never_comes() {
    let mut stage = answered(Client);
    stage.to(Client);
    for _ in 0..6 {
        stage.pair.wire.clear();
        stage.pair.wait(Duration::from_secs(1));
    }
    stage.pair.wire.clear();
    stage.see("A[1/1 2/2*]", "A[1/1 2/2*]");
    stage.pair.run_for(Duration::from_secs(30));
    stage.settled("A[2/2*]");
}

/// A request comes again after everything is over: the same answer, and nothing is made twice.
#[test]
fn catalogue_child_late_copies_change_nothing() {
    for side in [Client, Server] {
        let mut stage = Stage::new();
        stage.rekey_child(side, "1/1");
        let request = stage.hold(side.other());
        stage.late(request.clone());
        let answer = stage.hold(side);
        stage.late(request.clone());
        see(&mut stage, side, "A[1/1*]", "A[1/1* 2/2]");
        stage.late(answer.clone());
        stage.run();
        stage.late(request);
        stage.late(answer);
        stage.run();
        see(&mut stage, side, "A[2/2*]", "A[2/2*]");
        stage.settled("A[2/2*]");
    }
}

/// The side that rekeys is told to close the child while its request is out: what the other side
/// makes of that is closed too.
#[test]
fn catalogue_child_closed_by_who_rekeys() {
    for side in [Client, Server] {
        for before_the_answer in [false, true] {
            let mut stage = Stage::new();
            stage.rekey_child(side, "1/1");
            if before_the_answer {
                stage.close_child(side, "1/1");
                stage.to(side.other());
            } else {
                stage.to(side.other());
                stage.close_child(side, "1/1");
            }
            assert_eq!(stage.line(side), "A[]");
            stage.run();
            stage.see_without_traffic("A[]", "A[]");
            stage.settled_without_child("A[]");
        }
    }
}
