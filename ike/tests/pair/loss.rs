//! Each message lost, repeated and overtaken (RFC 7296 2.1).

use std::time::Duration;

use crate::harness::*;

/// Runs a handshake in which the n-th datagram on the wire meets `fate`.
fn handshake_with(n: usize, fate: impl Fn(&mut Pair, Flight)) -> Pair {
    let mut pair = Setup::new().quiet().build();
    pair.initiate();
    for _ in 0..n {
        pair.step();
    }
    let flight = pair.lose();
    fate(&mut pair, flight);
    pair.run_for(Duration::from_secs(20));
    pair
}

#[test]
fn each_message_may_be_lost_once() {
    for n in 0..4 {
        let pair = handshake_with(n, |_, _| {});

        pair.assert_connected();
        let resent = pair.client.engine.stats().retransmissions;
        assert_eq!(resent, 1, "message {n}");
        pair.assert_no_leaks();
    }
}

#[test]
fn each_message_may_come_twice() {
    for n in 0..4 {
        let pair = handshake_with(n, |pair, flight| {
            pair.deliver(flight.clone());
            pair.deliver(flight);
        });

        pair.assert_connected();
        // Whatever the duplicate did, there is one SA, and one request of each kind was executed.
        assert_eq!(pair.server.engine.sas().count(), 1, "message {n}");
        pair.assert_no_leaks();
    }
}

#[test]
fn each_message_may_come_again_much_later() {
    for n in 0..4 {
        let mut pair = Setup::new().quiet().build();
        pair.initiate();
        let mut late = None;
        for at in 0..4 {
            let flight = pair.step().unwrap();
            if at == n {
                late = Some(flight);
            }
        }
        pair.assert_connected();

        pair.run_for(Duration::from_secs(5));
        pair.deliver(late.unwrap());
        pair.run_for(Duration::from_secs(60));

        pair.assert_connected();
        assert_eq!(pair.server.engine.sas().count(), 1, "message {n}");
        pair.assert_no_leaks();
    }
}

#[test]
fn a_repeated_request_gets_the_same_bytes_and_is_not_executed_again() {
    let mut pair = Setup::new().quiet().build();
    pair.initiate();
    let init = pair.step().unwrap();
    let first = pair.wire.front().unwrap().clone();
    pair.deliver(init);
    assert_eq!(pair.wire.pop_back().unwrap(), first);
    pair.step();
    let auth = pair.step().unwrap();
    let first = pair.wire.front().unwrap().clone();

    pair.deliver(auth);

    assert_eq!(pair.wire.pop_back().unwrap(), first);
    assert_eq!(pair.server.inbound(), [0x5000_0001]);
    assert_eq!(pair.server.engine.stats().replayed_responses, 2);
    pair.run();
    pair.assert_connected();
    pair.assert_no_leaks();
}

#[test]
fn retransmissions_are_byte_identical_and_spaced_by_1_8() {
    let mut pair = Setup::new().quiet().build();
    pair.initiate();
    let first = pair.lose();

    let mut times = Vec::new();
    while let Some(at) = pair.client.engine.poll_timeout() {
        let delay = at.at.since(pair.now.mono);
        pair.wait(delay);
        match pair.wire.pop_front() {
            Some(again) => assert_eq!(again, first),
            None => break,
        }
        times.push(delay.as_millis());
    }

    assert_eq!(times, [1000, 1800, 3240, 5832, 10497]);
    assert_eq!(pair.client.codes(), ["no_answer"]);
    pair.assert_no_leaks();
}

#[test]
fn two_handshakes_of_one_host_do_not_disturb_each_other() {
    let mut pair = Setup::new().quiet().build();
    pair.server.grant.as_mut().unwrap().unique = ike::io::UniquePolicy::Keep;
    pair.initiate();
    pair.initiate();
    // The second overtakes the first in both directions.
    pair.wire.swap(0, 1);
    pair.step();
    pair.step();
    pair.wire.swap(0, 1);
    pair.run();

    assert_eq!(pair.client.established().len(), 1 + 1);
    assert_eq!(pair.server.established().len(), 2);
    pair.assert_mirrored(2);
    pair.assert_no_leaks();
}

#[test]
fn a_responder_forgets_who_never_comes_back() {
    let mut pair = Setup::new().quiet().build();
    pair.initiate();
    pair.step();
    pair.wire.clear();
    assert_eq!(pair.server.engine.stats().half_open, 1);

    pair.wait(Duration::from_secs(31));

    assert_eq!(pair.server.engine.stats().half_open, 0);
    assert_eq!(pair.server.engine.sas().count(), 0);
    pair.wire.clear();
    pair.assert_no_leaks();
}
