//! Gateways with networks behind them: fixed selectors on both sides.

use ike::io::{Action, Grant};
use ike::wire::TrafficSelector;
use ike::{Command, Output};

use crate::harness::*;

/// The client is a gateway for 10.30.0.0/16 and fd30::/64, the server one for 10.20.0.0/24.
fn setup() -> Setup {
    let mut setup = Setup::new().quiet();
    let behind = vec![net("10.30.0.0", "10.30.255.255"), net("fd30::", "fd30::ffff:ffff")];
    setup.target.request_ipv4 = false;
    setup.target.request_ipv6 = false;
    setup.target.ts_local = behind.clone();
    setup.target.ts_remote = vec![net("10.20.0.0", "10.20.0.255")];
    let grant: &mut Grant = setup.grant.as_mut().unwrap();
    grant.addresses = vec![];
    grant.networks = behind;
    setup
}

fn selectors(pair: &Pair) -> (Vec<TrafficSelector>, Vec<TrafficSelector>) {
    let sas = pair.server.established();
    let child = &sas[0].children[0];
    (child.ts_remote.clone(), child.ts_local.clone())
}

#[test]
fn a_gateway_speaks_for_its_networks_and_no_others() {
    // RFC 7296 1.1.1, 2.9: both sides of the selectors are networks.
    let mut setup = setup();
    let behind = setup.target.ts_local.clone();
    setup.target.ts_local.push(net("10.40.0.0", "10.40.255.255"));
    let mut pair = Pair::connected_with(setup);

    assert_eq!(selectors(&pair), (behind.clone(), vec![net("10.20.0.0", "10.20.0.255")]));
    let installed = pair.server.outputs.iter().find_map(|output| match output {
        Output::Action(_, Action::InstallChild(install)) => Some(install.networks.clone()),
        _ => None,
    });
    assert_eq!(installed, Some(behind.clone()), "the filter learns of the networks");

    // A rekey by either side keeps them.
    for side in [Side::Client, Side::Server] {
        let child = pair.peer(side).established()[0].children[0].id;
        pair.command(side, Command::RekeyChild(child));
        pair.run();
        pair.assert_connected();
        assert_eq!(selectors(&pair).0, behind);
    }
    pair.assert_no_leaks();
}

#[test]
fn networks_outside_the_grant_make_no_child() {
    let mut setup = setup();
    setup.target.ts_local = vec![net("10.40.0.0", "10.40.255.255")];
    let mut pair = setup.build();
    pair.initiate();
    pair.run();

    assert_eq!(pair.server.codes(), ["ts_unacceptable"]);
    assert_eq!(pair.client.codes(), ["child_refused"]);
    pair.assert_nothing_installed();
    pair.assert_no_leaks();
}

#[test]
fn events_name_the_connection_they_are_about() {
    use ike::event::Event;

    let mut pair = Pair::connected_with(setup());
    let ike = pair.client.established()[0].id;
    pair.command(Side::Client, Command::RekeyIke(ike));
    pair.run();
    let now = pair.client.established()[0].id;
    pair.command(Side::Client, Command::CloseIkeSa(now, ike::event::CloseReason::Operator));
    pair.run();

    let name = Some("gw".to_owned());
    let names = |events: &[Event]| -> Vec<Option<String>> {
        events
            .iter()
            .filter_map(|event| match event {
                Event::IkeUp { connection, .. } | Event::IkeDown { connection, .. } => {
                    Some(connection.clone())
                }
                _ => None,
            })
            .collect()
    };
    assert_eq!(names(&pair.client.events), vec![name; 4], "up, up, rekeyed, closed");
    assert!(names(&pair.server.events).iter().all(Option::is_none));
    pair.assert_no_leaks();
}

#[test]
fn initial_contact_lets_go_of_an_earlier_run() {
    // RFC 7296 2.4.
    let mut setup = setup();
    setup.target.initial_contact = true;
    setup.grant.as_mut().unwrap().unique = ike::io::UniquePolicy::Keep;
    let mut pair = Pair::connected_with(setup);
    let first = pair.server.established()[0].id;
    pair.initiate();
    pair.run();

    let sas = pair.server.established();
    assert_eq!(sas.len(), 1);
    assert_ne!(sas[0].id, first);
}
