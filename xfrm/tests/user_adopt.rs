//! Child SAs of the userspace plane that go on in the next process (RFC 4106 3.1, RFC 4303 3.4.3).
//!
//! A plane that is forgotten instead of dropped stands for a process that was killed: it gives
//! nothing back and says nothing to anybody.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod user_common;

use std::path::Path;

use user_common::{End, Relay, networks, packet, spec, wait_for};
use xfrm::Dataplane;
use xfrm::model::{ChildId, ChildSpec, EspSuite, Hosts};
use xfrm::udp::{BindOptions, UdpPort};

const CLIENT: &str = "10.77.0.5";
const SERVER: &str = "10.20.0.1";

fn port() -> UdpPort {
    UdpPort::bind("127.0.0.1:0".parse().unwrap(), &BindOptions::default()).unwrap()
}

fn gateway(sequences: Option<&Path>) -> End {
    End::over("gateway", port(), sequences.map(Path::to_owned))
}

/// The client's half and the gateway's half of one child; hosts are not known yet.
fn halves(client: &mut End, gateway: &mut End) -> (ChildSpec, ChildSpec) {
    let suite = EspSuite::Aes256Gcm16;
    let (to_client, to_gateway) =
        (client.plane.alloc_spi().unwrap(), gateway.plane.alloc_spi().unwrap());
    let (ours, theirs) = (networks(&["10.20.0.0/16"]), networks(&["10.77.0.5/32"]));
    let mut here = spec(1, suite, to_gateway, to_client);
    (here.local_selectors, here.remote_selectors) = (ours.clone(), theirs.clone());
    let mut there = spec(1, suite, to_client, to_gateway);
    std::mem::swap(&mut there.keys_in, &mut there.keys_out);
    (there.local_selectors, there.remote_selectors) = (theirs, ours);
    (there, here)
}

fn hosts(local: &End, remote: std::net::SocketAddr) -> Hosts {
    Hosts { local: local.address(), remote, encap: true }
}

fn pass(from: &End, to: &End, packet: &[u8]) {
    from.inject(packet);
    assert_eq!(to.next_packet(), packet);
}

#[test]
fn a_child_goes_on_above_what_was_sent_and_takes_nothing_a_second_time() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sequences");
    let mut client = End::new("client");
    let mut first = gateway(Some(&file));
    let (there, here) = halves(&mut client, &mut first);
    let relay = Relay::new(client.address(), first.address());
    let there = ChildSpec { hosts: hosts(&client, relay.towards_gateway()), ..there };
    let here_first = ChildSpec { hosts: hosts(&first, relay.towards_client()), ..here.clone() };
    first.plane.install(&here_first).unwrap();
    client.plane.install(&there).unwrap();
    let (out, back) =
        (packet::udp(CLIENT, 1, SERVER, 2, b"out"), packet::udp(SERVER, 2, CLIENT, 1, b"back"));
    for _ in 0..3 {
        pass(&client, &first, &out);
        pass(&first, &client, &back);
    }
    pass(&first, &client, &back);
    std::mem::forget(first);
    drop(relay);

    let mut second = gateway(Some(&file));
    let relay = Relay::new(client.address(), second.address());
    // Every packet comes twice now, as if somebody had kept what the first process took.
    relay.duplicate(true);
    client.plane.update_hosts(ChildId(1), &hosts(&client, relay.towards_gateway())).unwrap();
    let here_second = ChildSpec { hosts: hosts(&second, relay.towards_client()), ..here };
    assert!(second.plane.adopt(&here_second).unwrap());
    assert_eq!(second.plane.usage(ChildId(1)).unwrap().seq_out, 4, "where it was");
    pass(&second, &client, &back);
    assert_eq!(second.plane.usage(ChildId(1)).unwrap().seq_out, 5);
    pass(&client, &second, &out);
    wait_for("the copy to be dropped", || second.drops("replay") == 1);
    assert_eq!(client.drops("replay"), 1, "the client dropped the copy, and not the first");
    assert!(second.no_packet() && client.no_packet());
}

#[test]
fn what_nobody_counted_is_not_taken_over() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sequences");
    let mut client = End::new("client");
    let mut first = gateway(Some(&file));
    let (_, here) = halves(&mut client, &mut first);
    let here = ChildSpec { hosts: hosts(&first, client.address()), ..here };
    first.plane.install(&here).unwrap();
    // Ended in order: its numbers are of no use to anybody.
    first.plane.remove(ChildId(1)).unwrap();
    std::mem::forget(first);
    let mut second = gateway(Some(&file));
    assert!(!second.plane.adopt(&here).unwrap());
    assert!(second.plane.children().is_empty());
    // Nor by a plane that counts nowhere.
    assert!(!gateway(None).plane.adopt(&here).unwrap());
}

#[test]
fn a_plane_that_is_detached_leaves_its_children_and_one_that_is_shut_down_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sequences");
    let mut client = End::new("client");
    let mut first = gateway(Some(&file));
    let (_, here) = halves(&mut client, &mut first);
    let here = ChildSpec { hosts: hosts(&first, client.address()), ..here };
    first.plane.install(&here).unwrap();
    first.plane.detach().unwrap();
    drop(first);
    let mut second = gateway(Some(&file));
    assert!(second.plane.adopt(&here).unwrap());
    second.plane.shutdown().unwrap();
    drop(second);
    assert!(!gateway(Some(&file)).plane.adopt(&here).unwrap());
}
