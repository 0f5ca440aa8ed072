//! DELETE of a child and of an IKE SA (RFC 7296 1.4.1): alone, crossing, lost, and against rekeys.

use super::*;

#[test]
fn catalogue_delete_child() {
    for side in [Client, Server] {
        let mut stage = Stage::new();
        stage.close_child(side, "1/1");
        stage.to(side.other());
        stage.see_without_traffic("A[]", "A[]");
        stage.to(side);
        stage.settled_without_child("A[]");
    }
}

/// Both close it: each answers without naming an SPI, since its own DELETE has done so.
#[test]
fn catalogue_delete_child_collision() {
    let mut stage = Stage::new();
    stage.close_child(Client, "1/1");
    stage.close_child(Server, "1/1");
    stage.see_without_traffic("A[]", "A[]");
    stage.to(Server);
    stage.to(Client);
    for side in [Client, Server] {
        let answer = stage.hold(side);
        assert_eq!(stage.spy.hear(&answer).payloads().unwrap().deletes().count(), 0);
        stage.late(answer);
    }
    stage.settled_without_child("A[]");
}

/// One of the two crossing DELETEs is lost.
#[test]
fn catalogue_delete_child_collision_drop() {
    for lost in [Client, Server] {
        let mut stage = Stage::new();
        stage.close_child(Client, "1/1");
        stage.close_child(Server, "1/1");
        stage.hold(lost);
        stage.to(lost.other());
        stage.to(lost);
        stage.see_without_traffic("A[]", "A[]");
        stage.pair.run_for(Duration::from_secs(2));
        stage.settled_without_child("A[]");
    }
}

/// RFC 7296 1.4.1: an SPI that nobody knows is not an error.
#[test]
fn catalogue_delete_child_unknown() {
    for from in [Client, Server] {
        let mut stage = Stage::new();
        let id = if from == Client { 2 } else { 0 };
        let delete = stage.forge_delete(from, id, "9/9");
        stage.late(delete);
        let answer = stage.hold(from);
        assert_eq!(stage.spy.hear(&answer).payloads().unwrap().items().len(), 0);
        assert_eq!(stage.line(from.other()), "A[1/1*]");
    }
}

/// RFC 7296 1.4.1: what is half closed does not stay. The peer answers a DELETE without its own
/// half: it is taken to be gone.
#[test]
fn catalogue_delete_child_half_closed() {
    let mut stage = Stage::new();
    stage.close_child(Server, "1/1");
    stage.hold(Client);
    let nothing = Payloads::new();
    let exchange = ExchangeType::Informational;
    let answer = stage.spy.say(&stage.pair, Client, exchange, true, 0, &nothing);
    stage.late(answer);
    assert_eq!(stage.line(Server), "A[]");
    assert_eq!(stage.pair.server.engine.sas().next().unwrap().children.len(), 0);
}

/// The child is closed while the other side rekeys the IKE SA: the rekey is put off.
#[test]
fn catalogue_delete_child_against_ike_rekey() {
    for (closes, rekeys) in [(Client, Server), (Server, Client)] {
        let mut stage = Stage::new();
        stage.close_child(closes, "1/1");
        stage.rekey_ike(rekeys);
        let request = stage.hold(closes);
        stage.late(request);
        let answer = stage.pair.wire.iter().position(|flight| {
            flight.to == rekeys && flight.exchange() == ExchangeType::CreateChildSa
        });
        let answer = stage.pair.wire.remove(answer.unwrap()).unwrap();
        assert!(stage.tells(&answer, NotifyType::TemporaryFailure));
        stage.late(answer);
        stage.run();
        stage.see_without_traffic("A[]", "A[]");
        stage.pair.run_for(Duration::from_secs(20));
        stage.settled_without_child("B[]");
    }
}

/// The child is closed by one side and the IKE SA by the other.
#[test]
fn catalogue_delete_child_against_ike_delete() {
    for (child, ike) in [(Client, Server), (Server, Client)] {
        let mut stage = Stage::new();
        stage.close_child(child, "1/1");
        stage.close_ike(ike);
        stage.to(ike);
        stage.to(child);
        stage.run();
        stage.settled_without_child("");
    }
}

/// The same side closes the child and then the IKE SA: one request at a time (RFC 7296 2.3).
#[test]
fn catalogue_delete_child_then_ike() {
    for side in [Client, Server] {
        let mut stage = Stage::new();
        stage.close_child(side, "1/1");
        stage.close_ike(side);
        assert_eq!(stage.pair.wire.len(), 1);
        stage.to(side.other());
        stage.to(side);
        assert_eq!(stage.pair.wire.len(), 1);
        stage.run();
        stage.settled_without_child("");
    }
}

#[test]
fn catalogue_delete_ike() {
    for side in [Client, Server] {
        let mut stage = Stage::new();
        stage.close_ike(side);
        stage.to(side.other());
        stage.see_without_traffic(
            if side == Client { "A-[]" } else { "A.[]" },
            if side == Server { "A-[]" } else { "A.[]" },
        );
        stage.to(side);
        stage.settled_without_child("");
    }
}

#[test]
fn catalogue_delete_ike_collision() {
    let mut stage = Stage::new();
    stage.close_ike(Client);
    stage.close_ike(Server);
    stage.see_without_traffic("A-[]", "A-[]");
    stage.to(Server);
    stage.to(Client);
    stage.see_without_traffic("A.[]", "A.[]");
    stage.run();
    stage.settled_without_child("");
}
