//! Who connected stays the client, and who answered the gateway, whoever rekeys the IKE SA: its
//! successor's initiator is who rekeyed it (RFC 7296 2.18), but MOBIKE, redirection and the lease
//! are about who began the first one (RFC 4555 1.3, RFC 5685 3).

use ike::Command;
use ike::SaRole;
use ike::event::{CloseReason, Event};
use ike::wire::RedirectGateway;

use crate::harness::*;

/// A connection whose IKE SA the server has rekeyed; afterwards both may have restarted.
fn rekeyed_by_the_server(restarted: bool) -> Pair {
    let mut setup = Setup::new().quiet();
    setup.target.mobike = true;
    setup.target.follow_redirects = true;
    let mut pair = Pair::connected_with(setup);
    let ike = pair.server.established()[0].id;
    pair.command(Side::Server, Command::RekeyIke(ike));
    pair.run();
    pair.assert_connected();
    if restarted {
        pair.restart(Side::Server);
        pair.run();
        pair.restart(Side::Client);
        pair.run();
        pair.assert_connected();
    }
    pair
}

#[test]
fn the_listing_says_who_connected() {
    for restarted in [false, true] {
        let pair = rekeyed_by_the_server(restarted);

        assert_eq!(pair.client.established()[0].role, SaRole::Initiator);
        assert_eq!(pair.server.established()[0].role, SaRole::Responder);
    }
}

#[test]
fn the_client_still_moves() {
    const ELSEWHERE: &str = "203.0.113.77";
    for restarted in [false, true] {
        let mut pair = rekeyed_by_the_server(restarted);
        let ike = pair.client.established()[0].id;

        let local = address(ELSEWHERE, 4500);
        pair.command(Side::Client, Command::Move { ike, local });
        pair.run();

        let hosts = |peer: &Peer| peer.plane.values().next().unwrap().hosts;
        assert_eq!(pair.server.established()[0].remote, local);
        assert_eq!((hosts(&pair.client).local, hosts(&pair.server).remote), (local, local));
        pair.assert_connected();
    }
}

#[test]
fn the_client_is_still_sent_to_another_gateway() {
    let mut pair = rekeyed_by_the_server(false);
    let elsewhere = RedirectGateway::Fqdn(b"gw2.example.com".to_vec());

    let to = Some(elsewhere.clone());
    pair.command(Side::Server, Command::Redirect { to, existing: true });
    pair.run();

    let sent = pair
        .client
        .events
        .iter()
        .any(|event| matches!(event, Event::Redirected { to, .. } if *to == elsewhere));
    assert!(sent, "{:?}", pair.client.events);
    assert_eq!(pair.client.ends(), [CloseReason::Rekeyed, CloseReason::Redirected]);
    pair.assert_nothing_installed();
}

#[test]
fn the_filter_of_the_lease_keeps_its_addresses() {
    for restarted in [false, true] {
        let mut pair = rekeyed_by_the_server(restarted);
        let granted = pair.server.grant.clone().unwrap().addresses;
        for side in [Side::Server, Side::Client] {
            let child = *pair.peer(side).plane.keys().next().unwrap();
            pair.command(side, Command::RekeyChild(child));
            pair.run();

            pair.assert_connected();
            assert_eq!(pair.server.plane.values().next().unwrap().addresses, granted);
            assert!(pair.client.plane.values().next().unwrap().addresses.is_empty());
        }
    }
}

#[test]
fn what_the_lease_allows_now_counts_at_the_next_rekey() {
    for restarted in [false, true] {
        let mut pair = rekeyed_by_the_server(restarted);
        let mut grant = pair.server.grant.clone().unwrap();
        grant.allowed = vec![net("10.20.0.0", "10.20.0.15")];
        let lease = grant.lease.clone();
        pair.command(Side::Server, Command::UpdateLease(lease, grant.clone()));
        let child = *pair.client.plane.keys().next().unwrap();

        pair.command(Side::Client, Command::RekeyChild(child));
        pair.run();

        pair.assert_connected();
        assert_eq!(pair.server.plane.values().next().unwrap().ts_local, grant.allowed);
    }
}
