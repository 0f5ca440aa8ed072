//! Leases of sites.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::*;
use pki::*;

fn proved(until: u64) -> SitePeer<'static> {
    SitePeer {
        site: "office",
        subject: "CN=gw.office.example.com",
        spki_sha256: "ab",
        until: after(until),
    }
}

#[test]
fn a_site_keeps_its_lease_while_it_is_live_and_a_newer_proof_prolongs_it() {
    let authority = authority();
    let lease = authority.site_lease(&proved(3_600), after(0)).unwrap();
    assert_eq!((lease.site(), lease.role.as_str()), (Some("office"), "site:office"));
    assert_eq!(lease.expires, after(3_600));
    authority.connected(&lease.id, after(1)).unwrap();

    let again = authority.site_lease(&proved(7_200), after(1_800)).unwrap();
    assert_eq!(
        (&again.id, again.expires, again.state),
        (&lease.id, after(7_200), LeaseState::Active)
    );
    assert_eq!(authority.expire_due(after(3_600)).unwrap(), [], "the former end is forgotten");
    let over = authority.expire_due(after(7_200)).unwrap();
    assert!(over[0].end_tunnels, "no tunnel outlives what was proved");
}

#[test]
fn a_site_that_was_away_too_long_gets_another_lease() {
    let authority = authority();
    let first = authority.site_lease(&proved(3_600), after(0)).unwrap();
    authority.connected(&first.id, after(1)).unwrap();
    authority.disconnected(&first.id, "peer does not answer", after(10)).unwrap();
    let back = authority.site_lease(&proved(3_600), after(60)).unwrap();
    assert_eq!(back.id, first.id, "within the grace period it is the same");

    authority.expire_due(after(200)).unwrap();
    let second = authority.site_lease(&proved(3_600), after(201)).unwrap();
    assert_ne!(second.id, first.id);
    assert_eq!(authority.leases(false).unwrap(), [second]);
}

#[test]
fn a_revoked_site_stays_away_until_it_is_allowed_again() {
    let authority = authority();
    let lease = authority.site_lease(&proved(3_600), after(0)).unwrap();
    let selector = RevokeSelector::Lease(lease.id.clone());
    authority.revoke(&selector, RevocationReason::KeyCompromise, &Actor::Uid(0), after(1)).unwrap();

    let refused = authority.site_lease(&proved(3_600), after(2)).unwrap_err();
    assert!(matches!(refused, AccessError::LeaseNotLive { state: LeaseState::Revoked, .. }));
    assert!(refused.to_string().contains("runnel site connect"), "{refused}");

    authority.allow_site("office", &Actor::Uid(0), after(3)).unwrap();
    assert_ne!(authority.site_lease(&proved(3_600), after(4)).unwrap().id, lease.id);
    // Allowing a site that is live or unknown changes nothing.
    authority.allow_site("office", &Actor::Uid(0), after(5)).unwrap();
    authority.allow_site("nobody", &Actor::Uid(0), after(5)).unwrap();
    assert_eq!(authority.leases(false).unwrap().len(), 1);
}

#[test]
fn a_released_site_comes_back_with_another_lease() {
    let authority = authority();
    let lease = authority.site_lease(&proved(3_600), after(0)).unwrap();
    authority.release(&lease.id, "admin", &Actor::Uid(0), after(1)).unwrap();
    assert_ne!(authority.site_lease(&proved(3_600), after(2)).unwrap().id, lease.id);
}
