//! When a site is connected, and when again.

use ike::event::Selectors;
use ike::io::LeaseId;

use super::*;

const NAME: &str = "office";

fn configured() -> Vec<(String, bool)> {
    vec![(NAME.to_owned(), true)]
}

fn connect() -> Vec<Step> {
    vec![Step::Connect(NAME.to_owned())]
}

fn up(ike: u64, ours: bool) -> Event {
    let any: std::net::SocketAddr = "192.0.2.1:500".parse().unwrap();
    Event::IkeUp {
        ike: IkeSaId(ike),
        spis: (1, 2),
        local: any,
        remote: any,
        nat: false,
        identity: "gw".to_owned(),
        lease: LeaseId("s-1".to_owned()),
        role: policy::site_role(NAME),
        suite: "aes256gcm16-prfsha256-x25519".parse().unwrap(),
        addresses: Vec::new(),
        connection: ours.then(|| NAME.to_owned()),
    }
}

fn child_up(ike: u64, child: u64) -> Event {
    Event::ChildUp {
        child: ChildSaId(child),
        ike: IkeSaId(ike),
        lease: LeaseId("s-1".to_owned()),
        spi_in: 1,
        spi_out: 2,
        suite: "aes256gcm16".parse().unwrap(),
        ts_local: Selectors::default(),
        ts_remote: Selectors::default(),
        rekeys: None,
    }
}

fn ike_down(ike: u64, reason: CloseReason) -> Event {
    Event::IkeDown { ike: IkeSaId(ike), lease: None, reason, connection: Some(NAME.to_owned()) }
}

#[test]
fn a_site_is_connected_at_once_and_after_each_failure_later() {
    let (sites, start) = (Sites::default(), Instant::now());
    assert_eq!(sites.due(&configured(), start), connect());
    assert_eq!(sites.due(&configured(), start), [], "an attempt is under way");

    sites.event(&ike_down(1, CloseReason::PeerDead), start);
    assert_eq!(sites.due(&configured(), start), []);
    let report = sites.report(NAME).unwrap();
    assert_eq!(report.last_error.as_deref(), Some("peer does not answer"));
    assert_eq!(sites.due(&configured(), start + Duration::from_secs(1)), connect());

    sites.event(&ike_down(2, CloseReason::PeerDead), start);
    assert_eq!(sites.due(&configured(), start + Duration::from_millis(900)), []);
    assert_eq!(sites.due(&configured(), start + Duration::from_secs(2)), connect());
}

#[test]
fn an_established_site_is_left_alone_and_connected_again_when_it_is_lost() {
    let (sites, start) = (Sites::default(), Instant::now());
    sites.due(&configured(), start);
    sites.event(&up(1, true), start);
    sites.event(&child_up(1, 5), start);
    let later = start + Duration::from_secs(3600);
    assert_eq!(sites.due(&configured(), later), []);

    // A rekey of the IKE SA is no loss, and the child moves along.
    sites.event(&up(2, true), later);
    sites.event(&ike_down(1, CloseReason::Rekeyed), later);
    assert_eq!(sites.due(&configured(), later + CHILDLESS_LIMIT), []);

    sites.event(&ike_down(2, CloseReason::PeerDeleted), later);
    assert_eq!(sites.due(&configured(), later + Duration::from_secs(1)), connect());
    assert_eq!(sites.report(NAME).unwrap().attempts, 1, "an hour of service was no failure");
}

#[test]
fn what_the_other_side_established_counts_as_well() {
    let (sites, start) = (Sites::default(), Instant::now());
    sites.due(&configured(), start);
    sites.event(&up(7, false), start);
    sites.event(&child_up(7, 8), start);
    // Our own attempt loses the race; nothing is to be done.
    sites.event(&ike_down(1, CloseReason::Failed("lost".to_owned())), start);
    assert_eq!(sites.due(&configured(), start + Duration::from_secs(60)), []);
}

#[test]
fn an_ike_sa_that_carries_nothing_is_closed() {
    let (sites, start) = (Sites::default(), Instant::now());
    sites.due(&configured(), start);
    sites.event(&up(1, true), start);
    assert_eq!(sites.due(&configured(), start + Duration::from_secs(9)), []);
    assert_eq!(sites.due(&configured(), start + CHILDLESS_LIMIT), [Step::Close(IkeSaId(1))]);
}

#[test]
fn nothing_is_connected_while_the_configuration_changes() {
    let (sites, start) = (Sites::default(), Instant::now());
    sites.hold();
    assert_eq!(sites.due(&configured(), start), []);
    sites.go_on();
    assert_eq!(sites.due(&configured(), start), connect());
    // A site that is gone is forgotten, and one that comes back begins anew.
    sites.due(&[], start);
    assert_eq!(sites.report(NAME), None);
    assert_eq!(sites.due(&configured(), start), connect());
}

#[test]
fn an_operator_need_not_wait_for_the_backoff() {
    let (sites, start) = (Sites::default(), Instant::now());
    for _ in 0..9 {
        sites.due(&configured(), start + Duration::from_secs(3600));
        sites.event(&ike_down(1, CloseReason::PeerDead), start);
        sites.connect_now(NAME, start);
        assert_eq!(sites.due(&configured(), start), connect());
        sites.event(&ike_down(1, CloseReason::PeerDead), start);
    }
}

fn redirect(to: &str) -> Event {
    Event::Redirected {
        ike: IkeSaId(1),
        connection: NAME.to_owned(),
        to: crate::service::redirect_gateway(to),
    }
}

#[test]
fn a_redirect_is_followed_at_once_and_a_loop_of_them_is_not() {
    let (sites, start) = (Sites::default(), Instant::now());
    for turn in 1..=MAX_REDIRECTS {
        assert_eq!(sites.due(&configured(), start), connect(), "turn {turn}");
        sites.aimed(NAME, "192.0.2.1".parse().unwrap());
        sites.event(&redirect("gw2.example.com"), start);
        sites.event(&ike_down(1, CloseReason::Redirected), start);
        let (target, from) = sites.target(NAME);
        assert_eq!(target.as_deref(), Some("gw2.example.com"));
        assert_eq!(from, Some("192.0.2.1".parse().unwrap()));
    }
    // RFC 5685 10: five in five minutes; then the configured gateway is tried again, later.
    assert_eq!(sites.due(&configured(), start), connect());
    sites.event(&redirect("gw3.example.com"), start);
    sites.event(&ike_down(1, CloseReason::Redirected), start);
    assert_eq!(sites.due(&configured(), start), []);
    assert_eq!(sites.target(NAME), (None, None));
    assert!(sites.report(NAME).unwrap().last_error.unwrap().contains("5 times in 5 minutes"));
}

#[test]
fn a_gateway_that_we_were_sent_to_and_that_fails_is_given_up() {
    let (sites, start) = (Sites::default(), Instant::now());
    sites.due(&configured(), start);
    sites.event(&redirect("192.0.2.9"), start);
    sites.event(&ike_down(1, CloseReason::Redirected), start);
    assert_eq!(sites.due(&configured(), start), connect());
    sites.event(&ike_down(2, CloseReason::PeerDead), start);
    assert_eq!(sites.target(NAME), (None, None));
}
