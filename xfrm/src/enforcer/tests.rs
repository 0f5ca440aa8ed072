//! The order of operations, from a recording plane, filter and network.

use super::*;
use crate::mock::{MockCall, MockHandle, MockOp};
use crate::model::{EspSuite, Mode, SaKeys, Selector, Spi};

fn setup() -> TunnelSetup {
    TunnelSetup {
        instance: String::new(),
        networks: Vec::new(),
        roles: Vec::new(),
        sites: Vec::new(),
        site_routes: Vec::new(),
        mtu: 1400,
        keep: false,
    }
}

fn enforcer() -> (Enforcer, MockHandle) {
    let handle = MockHandle::new();
    let enforcer = Enforcer::with_parts(
        Box::new(handle.plane()),
        Box::new(handle.filter()),
        Box::new(handle.network()),
        &setup(),
    )
    .unwrap();
    handle.take_ops();
    (enforcer, handle)
}

fn lease() -> LeaseFilter {
    LeaseFilter {
        reqid: 7,
        addresses: vec!["10.77.0.2".parse().unwrap()],
        networks: Vec::new(),
        role: "builder".to_owned(),
    }
}

fn child(id: u64) -> ChildSpec {
    let keys = |byte| SaKeys { encr: vec![byte; 36], integ: Vec::new() };
    let vip: IpAddr = "10.77.0.2".parse().unwrap();
    ChildSpec {
        id: ChildId(id),
        reqid: 7,
        spi_in: Spi(0xc000_0000 + u32::try_from(id).unwrap()),
        spi_out: Spi(0xd000_0000 + u32::try_from(id).unwrap()),
        suite: EspSuite::Aes256Gcm16,
        keys_in: keys(1),
        keys_out: keys(2),
        mode: Mode::Tunnel,
        hosts: Hosts {
            local: "192.0.2.1:4500".parse().unwrap(),
            remote: "198.51.100.2:4500".parse().unwrap(),
            encap: true,
        },
        local_selectors: vec![Selector::network("10.20.0.0/24".parse().unwrap())],
        remote_selectors: vec![Selector::network(vip.into())],
        esn: false,
        replay_window: 64,
        first_seq_out: 0,
        limits: crate::model::Limits::default(),
        outbound_active: true,
    }
}

fn refused() -> PlaneError {
    PlaneError::Malformed("on demand".to_owned())
}

#[test]
fn filter_then_inbound_then_outbound_and_back() {
    let (mut enforcer, mock) = enforcer();
    let spec = child(1);
    enforcer.install_child(&spec, &lease()).unwrap();
    assert_eq!(
        mock.take_ops(),
        [
            MockOp::Bind { reqid: 7, role: "builder".to_owned() },
            MockOp::InstallIn(spec.id, spec.spi_in),
            MockOp::InstallOut(spec.id, spec.spi_out),
        ]
    );
    enforcer.remove_child(spec.id).unwrap();
    assert_eq!(
        mock.take_ops(),
        [
            MockOp::Unbind { reqid: 7 },
            MockOp::RemoveOut(spec.id, spec.spi_out),
            MockOp::RemoveIn(spec.id, spec.spi_in),
        ]
    );
    assert!(enforcer.leases().is_empty());
}

#[test]
fn a_rekey_keeps_the_filter() {
    let (mut enforcer, mock) = enforcer();
    let (old, mut new) = (child(1), child(2));
    new.outbound_active = false;
    enforcer.install_child(&old, &lease()).unwrap();
    mock.take_ops();
    enforcer.install_child(&new, &lease()).unwrap();
    assert_eq!(mock.sender_to(lease().addresses[0]), Some(old.id), "the old one still sends");
    enforcer.activate_outbound(new.id).unwrap();
    assert_eq!(mock.sender_to(lease().addresses[0]), Some(new.id));
    enforcer.remove_child(old.id).unwrap();
    let ops = mock.take_ops();
    assert!(!ops.iter().any(|op| matches!(op, MockOp::Bind { .. } | MockOp::Unbind { .. })));
    assert_eq!(mock.bound(), [lease()]);
}

#[test]
fn ending_a_lease_blocks_before_it_removes() {
    let (mut enforcer, mock) = enforcer();
    enforcer.install_child(&child(1), &lease()).unwrap();
    enforcer.install_child(&child(2), &lease()).unwrap();
    mock.take_ops();
    let usages = enforcer.end_lease(7).unwrap();
    assert_eq!(usages.iter().map(|(id, _)| id.0).collect::<Vec<_>>(), [1, 2]);
    let ops = mock.take_ops();
    assert_eq!(ops[0], MockOp::Unbind { reqid: 7 });
    assert_eq!(ops.len(), 5);
    assert_eq!(enforcer.end_lease(7).unwrap(), [], "again is no error");
}

#[test]
fn a_refused_half_leaves_neither_sa_nor_filter() {
    for call in [MockCall::InstallIn, MockCall::InstallOut] {
        let (mut enforcer, mock) = enforcer();
        mock.fail_next(call, refused());
        assert_eq!(enforcer.install_child(&child(1), &lease()), Err(refused()));
        assert!(mock.bound().is_empty(), "{call:?}");
        assert!(mock.child(ChildId(1)).is_none());
        assert!(enforcer.leases().is_empty());
        // And the next attempt works.
        enforcer.install_child(&child(1), &lease()).unwrap();
    }
}

#[test]
fn a_refused_filter_installs_no_sa() {
    let (mut enforcer, mock) = enforcer();
    mock.fail_next(MockCall::Bind, refused());
    assert_eq!(enforcer.install_child(&child(1), &lease()), Err(refused()));
    assert_eq!(mock.take_ops(), []);
}

#[test]
fn a_stuck_filter_element_does_not_keep_the_sas() {
    let (mut enforcer, mock) = enforcer();
    enforcer.install_child(&child(1), &lease()).unwrap();
    mock.fail_next(MockCall::Unbind, refused());
    assert_eq!(enforcer.end_lease(7), Err(refused()));
    assert!(mock.child(ChildId(1)).is_none(), "no SA carries the lease's packets");
    // The element is retried, not forgotten.
    assert_eq!(enforcer.leases(), [7]);
    assert_eq!(enforcer.end_lease(7).unwrap(), []);
    assert!(mock.bound().is_empty());
}

#[test]
fn a_half_removed_lease_is_bound_again_before_its_next_sa() {
    let (mut enforcer, mock) = enforcer();
    enforcer.install_child(&child(1), &lease()).unwrap();
    mock.fail_next(MockCall::Remove, refused());
    assert_eq!(enforcer.remove_child(ChildId(1)), Err(refused()));
    assert!(mock.bound().is_empty(), "its packets stopped all the same");
    mock.take_ops();
    enforcer.install_child(&child(2), &lease()).unwrap();
    assert_eq!(mock.take_ops()[0], MockOp::Bind { reqid: 7, role: "builder".to_owned() });
    enforcer.remove_child(ChildId(1)).unwrap();
    assert_eq!(mock.bound(), [lease()], "the other child still needs it");
}

#[test]
fn a_child_may_carry_only_its_leases_addresses() {
    let (mut enforcer, mock) = enforcer();
    let mut wide = child(1);
    wide.remote_selectors = vec![Selector::network("10.77.0.0/24".parse().unwrap())];
    assert!(matches!(enforcer.install_child(&wide, &lease()), Err(PlaneError::Conflict(_))));
    let mut other = child(1);
    other.reqid = 8;
    assert!(matches!(enforcer.install_child(&other, &lease()), Err(PlaneError::Conflict(_))));
    assert_eq!(mock.take_ops(), []);
}

#[test]
fn a_failed_start_removes_what_it_made() {
    let handle = MockHandle::new();
    handle.fail_next(MockCall::SetUp, refused());
    let result = Enforcer::with_parts(
        Box::new(handle.plane()),
        Box::new(handle.filter()),
        Box::new(handle.network()),
        &setup(),
    );
    assert_eq!(result.err(), Some(refused()));
    assert_eq!(handle.take_ops(), [MockOp::Shutdown, MockOp::RemoveFilter]);
}

#[test]
fn shutdown_removes_everything_and_names_what_stays() {
    let (mut enforcer, mock) = enforcer();
    enforcer.install_child(&child(1), &lease()).unwrap();
    mock.take_ops();
    mock.fail_next(MockCall::RemoveFilter, refused());
    assert_eq!(enforcer.shutdown(), [refused().to_string()]);
    let ops = mock.take_ops();
    assert_eq!(ops[0], MockOp::Unbind { reqid: 7 });
    assert_eq!(ops[ops.len() - 2..], [MockOp::Shutdown, MockOp::TearDown]);
}

#[test]
fn a_role_changes_in_place() {
    let (mut enforcer, mock) = enforcer();
    enforcer.install_child(&child(1), &lease()).unwrap();
    enforcer.change_role(7, "deployer").unwrap();
    assert_eq!(mock.bound()[0].role, "deployer");
    mock.fail_next(MockCall::Bind, refused());
    assert_eq!(enforcer.change_role(7, "other"), Err(refused()));
    assert_eq!(mock.bound()[0].role, "deployer");
    assert!(matches!(enforcer.change_role(9, "x"), Err(PlaneError::Unknown(_))));
}

#[test]
fn a_child_of_an_earlier_run_has_its_filter_before_it_is_taken_over() {
    let (mut enforcer, mock) = enforcer();
    let spec = child(1);
    // Not there: the filter is closed again, and the child may be installed anew.
    let missing = enforcer.adopt_child(&spec, &lease());
    assert!(matches!(missing, Err(PlaneError::Unknown(_))), "{missing:?}");
    let bind = MockOp::Bind { reqid: 7, role: "builder".to_owned() };
    assert_eq!(mock.take_ops(), [bind.clone(), MockOp::Unbind { reqid: 7 }]);
    assert_eq!(mock.bound(), []);

    mock.leave(&spec);
    mock.leave(&child(2));
    enforcer.adopt_child(&spec, &lease()).unwrap();
    assert_eq!(mock.take_ops(), [bind, MockOp::Adopt(spec.id)]);
    assert_eq!(mock.sender_to("10.77.0.2".parse().unwrap()), Some(spec.id));
    assert_eq!(enforcer.plane().reconcile().unwrap(), 1, "the other one");
    // From here on it is like any child.
    enforcer.remove_child(spec.id).unwrap();
    assert_eq!(mock.bound(), []);
}
