//! Several key exchanges in rekeys: IKE_FOLLOWUP_KE (RFC 9370 2.2.4).

use std::time::Duration;

use ike::Command;
use ike::wire::ExchangeType;

use crate::harness::*;

const IKE: &str = "aes256gcm16-prfsha384-x25519-ke1_ecp256-ke2_ecp384";
const ESP: &str = "aes256gcm16-x25519-ke1_ecp256-ke4_ecp384-noesn";

/// What is rekeyed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Child,
    Ike,
}

fn connected() -> Pair {
    Pair::connected_with(Setup::new().quiet().suites(IKE, ESP))
}

fn rekey(pair: &mut Pair, side: Side, what: What) {
    let command = match what {
        What::Child => Command::RekeyChild(*pair.peer(side).plane.keys().next().unwrap()),
        What::Ike => Command::RekeyIke(pair.peer(side).established()[0].id),
    };
    pair.command(side, command);
}

/// The SPIs by which the new SA is told from the old one.
fn spis(pair: &Pair, what: What) -> (u64, u64) {
    let sa = &pair.server.established()[0];
    match what {
        What::Ike => sa.spis,
        What::Child => {
            let child = sa.children.iter().find(|child| child.outbound_active).unwrap();
            (child.spi_in.into(), child.spi_out.into())
        }
    }
}

#[test]
fn each_additional_key_exchange_is_one_ike_followup_ke() {
    use ExchangeType::{CreateChildSa, IkeFollowupKe, Informational};

    for what in [What::Child, What::Ike] {
        for side in [Side::Client, Side::Server] {
            let mut pair = connected();
            let old = spis(&pair, what);
            rekey(&mut pair, side, what);
            let seen: Vec<_> =
                std::iter::from_fn(|| pair.step()).map(|flight| flight.exchange()).collect();

            let mut expected = vec![CreateChildSa; 2];
            expected.extend([IkeFollowupKe; 4]);
            expected.extend([Informational; 2]);
            assert_eq!(seen, expected, "{what:?} by {side:?}");
            assert_ne!(spis(&pair, what), old);
            pair.assert_connected();
            pair.assert_traffic_flows();
            let child = pair.server.established()[0].children[0].suite.to_string();
            if what == What::Child {
                assert_eq!(child, "aes256gcm16-x25519-ke1_ecp256-ke4_ecp384");
            }
            assert_eq!(pair.server.established()[0].suite.as_deref(), Some(IKE));
            // And once more, from what the first rekey left.
            rekey(&mut pair, side.other(), what);
            pair.run();
            pair.assert_connected();
            pair.assert_no_leaks();
        }
    }
}

#[test]
fn nothing_is_made_before_the_last_key_exchange() {
    for what in [What::Child, What::Ike] {
        let mut pair = connected();
        rekey(&mut pair, Side::Client, what);
        // CREATE_CHILD_SA and the first IKE_FOLLOWUP_KE, both ways.
        for _ in 0..4 {
            pair.step();
            pair.assert_connected();
            pair.assert_traffic_flows();
            assert_eq!(pair.server.engine.sas().count(), 1);
        }
        pair.run();
        pair.assert_connected();
        pair.assert_no_leaks();
    }
}

#[test]
fn each_message_of_a_rekey_may_be_lost_or_repeated() {
    for what in [What::Child, What::Ike] {
        for n in 0..8 {
            for twice in [false, true] {
                let mut pair = connected();
                let old = spis(&pair, what);
                rekey(&mut pair, Side::Client, what);
                for _ in 0..n {
                    pair.step();
                }
                let flight = pair.lose();
                if twice {
                    pair.deliver(flight.clone());
                    pair.deliver(flight);
                }
                pair.run_for(Duration::from_secs(40));

                pair.assert_connected();
                assert_ne!(spis(&pair, what), old, "{what:?}, message {n}, twice: {twice}");
                pair.assert_traffic_flows();
                pair.assert_no_leaks();
            }
        }
    }
}

/// RFC 9370 2.2.4: STATE_NOT_FOUND, and the rekey begins again.
#[test]
fn a_key_exchange_that_comes_too_late_finds_nothing() {
    for what in [What::Child, What::Ike] {
        let mut pair = connected();
        let old = spis(&pair, what);
        rekey(&mut pair, Side::Client, what);
        pair.step();
        pair.step();
        let late = pair.lose();
        assert_eq!(late.exchange(), ExchangeType::IkeFollowupKe);
        for _ in 0..25 {
            pair.wait(Duration::from_secs(1));
            pair.wire.clear();
        }
        pair.deliver(late);
        pair.step();
        assert_eq!(spis(&pair, what), old);
        pair.assert_connected();
        // The client tries again a little later.
        pair.run_for(Duration::from_secs(15));

        assert_ne!(spis(&pair, what), old);
        pair.assert_connected();
        assert!(pair.client.refusals().is_empty());
        pair.assert_no_leaks();
    }
}

#[test]
fn a_responder_that_restarts_in_between_is_asked_again() {
    for what in [What::Child, What::Ike] {
        let mut pair = connected();
        let old = spis(&pair, what);
        rekey(&mut pair, Side::Client, what);
        for _ in 0..3 {
            pair.step();
        }
        pair.restart(Side::Server);
        pair.run_for(Duration::from_secs(30));

        assert_ne!(spis(&pair, what), old);
        pair.assert_connected();
        pair.assert_traffic_flows();
    }
}

/// The keys of what was under way are lost with the process, whichever message was out.
#[test]
fn an_initiator_that_restarts_in_between_leaves_nothing_behind() {
    for n in 0..6 {
        let mut pair = connected();
        rekey(&mut pair, Side::Client, What::Child);
        for _ in 0..n {
            pair.step();
        }
        pair.wire.clear();
        pair.restart(Side::Client);
        pair.run_for(Duration::from_secs(60));

        pair.assert_connected();
        pair.assert_mirrored(1);
        pair.assert_traffic_flows();
    }
}

#[test]
fn an_initiator_that_restarts_in_an_ike_rekey_keeps_or_closes_all() {
    for n in 0..6 {
        let mut pair = connected();
        rekey(&mut pair, Side::Client, What::Ike);
        for _ in 0..n {
            pair.step();
        }
        pair.wire.clear();
        pair.restart(Side::Client);
        pair.run_for(Duration::from_secs(200));

        let (client, server) = (pair.client.established(), pair.server.established());
        // Once the peer has made the successor, nobody here can use it.
        assert!(client.len() == server.len() || client.is_empty(), "after {n} messages");
        if !client.is_empty() {
            pair.assert_connected();
        }
    }
}

/// A lease's end does not wait for the peer's next key exchange.
#[test]
fn an_end_in_between_ends_all() {
    for what in [What::Child, What::Ike] {
        for n in 1..6 {
            for side in [Side::Client, Side::Server] {
                let mut setup = Setup::new().quiet().suites(IKE, ESP);
                // A client that does not know the successor yet closes the old SA only: the
                // server finds out that nobody is there.
                setup.server.timers.dpd = Duration::from_secs(10);
                let mut pair = Pair::connected_with(setup);
                rekey(&mut pair, Side::Client, what);
                for _ in 0..n {
                    pair.step();
                }
                for sa in pair.peer(side).alive() {
                    let reason = ike::event::CloseReason::Operator;
                    pair.command(side, Command::CloseIkeSa(sa.id, reason));
                }
                assert!(pair.peer(side).plane.is_empty());
                pair.run_for(Duration::from_secs(120));

                pair.assert_nothing_installed();
                pair.assert_no_leaks();
            }
        }
    }
}

#[test]
fn a_peer_that_begins_anew_is_served() {
    let mut pair = connected();
    rekey(&mut pair, Side::Client, What::Child);
    pair.step();
    pair.wire.clear();
    // Its process is gone, and with it the key exchange that was to follow.
    pair.restart(Side::Client);
    pair.run_for(Duration::from_secs(3));
    rekey(&mut pair, Side::Client, What::Child);
    pair.run();

    pair.assert_connected();
    pair.assert_traffic_flows();
}
