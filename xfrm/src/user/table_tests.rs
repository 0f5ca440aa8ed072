//! Which child an outbound packet takes.

use super::super::packet::build::udp;
use super::*;
use crate::model::{ChildSpec, EspSuite, Hosts, Limits, Mode, SaKeys, Spi};
use crate::user::ledger::Record;

fn child(id: u64, reqid: u32, remote: &[&str]) -> Arc<Child> {
    let key = SaKeys { encr: vec![id as u8; 36], integ: Vec::new() };
    let outer = "192.0.2.1:4500".parse().unwrap();
    let networks = |list: &[&str]| -> Vec<Selector> {
        list.iter().map(|net| Selector::network(net.parse().unwrap())).collect()
    };
    let spec = ChildSpec {
        id: ChildId(id),
        reqid,
        spi_in: Spi(1000 + id as u32),
        spi_out: Spi(2000 + id as u32),
        suite: EspSuite::Aes256Gcm16,
        keys_in: key.clone(),
        keys_out: key,
        mode: Mode::Tunnel,
        hosts: Hosts { local: outer, remote: outer, encap: true },
        local_selectors: networks(&["10.20.0.0/16", "fd20::/64"]),
        remote_selectors: networks(remote),
        esn: false,
        replay_window: 64,
        first_seq_out: 0,
        limits: Limits::default(),
        outbound_active: true,
    };
    Arc::new(Child::new(&spec, Record::volatile(0)).unwrap())
}

/// A table of active children.
fn table(children: &[Arc<Child>]) -> Table {
    let mut table = Table::default();
    for child in children {
        table.insert(Arc::clone(child)).unwrap();
        table.activate(child.id).unwrap();
    }
    table
}

/// The id of the child a packet to `destination` takes; 0 when nobody is there.
fn taken(table: &Table, destination: &str) -> u64 {
    let source = if destination.contains(':') { "fd20::1" } else { "10.20.0.1" };
    let bytes = udp(source, 1, destination, 2, b"");
    match table.route(&Packet::parse(&bytes).unwrap(), &Subject::Itself) {
        Route::Child(child) => child.id.0,
        Route::Nobody => 0,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_narrowest_range_wins_whatever_the_order_of_activation() {
    let children = [
        child(1, 1, &["10.0.0.0/8", "fd00::/16"]),
        child(2, 2, &["10.77.0.5/32", "fd77::5/128"]),
        child(3, 3, &["10.77.0.0/24", "fd77::/64"]),
    ];
    for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2], [2, 0, 1]] {
        let table = table(&order.map(|at: usize| Arc::clone(&children[at])));
        assert_eq!(taken(&table, "10.77.0.5"), 2);
        assert_eq!(taken(&table, "10.77.0.6"), 3);
        assert_eq!(taken(&table, "10.99.0.1"), 1);
        assert_eq!(taken(&table, "fd77::5"), 2);
        assert_eq!(taken(&table, "fd77::6"), 3);
        assert_eq!(taken(&table, "fd00::1"), 1);
        assert_eq!(taken(&table, "192.0.2.1"), 0);
    }
}

#[test]
fn within_a_lease_the_last_activated_sends_and_the_older_takes_over() {
    for (remote, address) in [("10.77.0.5/32", "10.77.0.5"), ("10.77.0.0/30", "10.77.0.1")] {
        let mut table = table(&[child(1, 7, &[remote]), child(2, 7, &[remote])]);
        assert_eq!(taken(&table, address), 2);
        table.activate(ChildId(1)).unwrap();
        assert_eq!(taken(&table, address), 1);
        table.remove(ChildId(1)).unwrap();
        assert_eq!(taken(&table, address), 2);
        table.remove(ChildId(2)).unwrap();
        assert_eq!(taken(&table, address), 0);
        assert!(table.outbound.exact.is_empty() && table.outbound.ranges.is_empty());
        assert!(table.by_spi.is_empty() && table.by_id.is_empty());
    }
}

#[test]
fn an_installed_child_does_not_send_before_it_is_activated() {
    let mut table = Table::default();
    table.insert(child(1, 1, &["10.77.0.5/32"])).unwrap();
    assert_eq!(taken(&table, "10.77.0.5"), 0);
    assert!(table.by_spi(1001).is_some());
}

#[test]
fn the_same_range_belongs_to_one_lease() {
    for remote in ["10.77.0.5/32", "10.77.0.0/24"] {
        let mut table = table(&[child(1, 1, &[remote])]);
        assert!(matches!(table.insert(child(2, 2, &[remote])), Err(PlaneError::Conflict(_))));
        assert_eq!(table.children().count(), 1);
        table.insert(child(3, 1, &[remote])).unwrap();
        table.insert(child(4, 4, &["10.77.0.0/25"])).unwrap();
    }
}

#[test]
fn a_child_with_an_address_twice_is_removed_whole() {
    let mut table = table(&[child(1, 1, &["10.77.0.5/32", "10.77.0.5/32", "10.78.0.0/16"])]);
    table.remove(ChildId(1)).unwrap();
    assert!(table.outbound.exact.is_empty() && table.outbound.ranges.is_empty());
}
