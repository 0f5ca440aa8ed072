//! Transport mode between two machines: rekeyed, taken over after a restart, taken away.

use super::*;

/// A child between the two machines themselves.
fn between(number: u32, ours: &str, theirs: &str) -> ChildSpec {
    let host = |text: &str| text.parse::<IpAddr>().unwrap();
    let (local, remote) = (host(ours), host(theirs));
    ChildSpec {
        mode: Mode::Transport,
        reqid: 77,
        hosts: Hosts { local: (local, 500).into(), remote: (remote, 500).into(), encap: false },
        local_selectors: vec![Selector::network(local.into())],
        remote_selectors: vec![Selector::network(remote.into())],
        ..spec(number, false)
    }
}

/// Two machines, and the other one's plane.
fn other_machine(theirs: Vec<ChildSpec>) -> (Host, Arc<Mutex<KernelPlane>>) {
    let host = Host::new();
    host.connect("wan", "wan-c");
    sh("ip addr add 192.0.2.1/24 dev wan && ip addr add 2001:db8::1/64 dev wan nodad");
    host.sh("ip addr add 192.0.2.2/24 dev wan-c && ip addr add 2001:db8::2/64 dev wan-c nodad");
    let plane = host.run(move || {
        let mut plane = KernelPlane::open(config("tun", 5, Vec::new()), &sink().0).unwrap();
        for spec in &theirs {
            plane.install(spec).unwrap();
        }
        Arc::new(Mutex::new(plane))
    });
    (host, plane)
}

fn ping(address: &str, count: u32, size: u32) -> u32 {
    answers(&sh(&format!("ping -q -c {count} -i 0.05 -W 5 -s {size} {address} || true")))
}

#[test]
fn two_machines_are_joined_in_transport_mode_and_stay_so_over_rekey_and_restart() {
    in_namespace(|| {
        if !has_esp() {
            return;
        }
        let (v4, v6) =
            (between(2, "192.0.2.1", "192.0.2.2"), between(3, "2001:db8::1", "2001:db8::2"));
        let (_host, other) = other_machine(vec![mirrored(&v4), mirrored(&v6)]);
        let mut plane = KernelPlane::open(config("gw", IF_ID, Vec::new()), &sink().0).unwrap();
        plane.install(&v4).unwrap();
        plane.install(&v6).unwrap();
        let state = || {
            sh("ip xfrm state list nokeys | grep -v 00000000; ip xfrm policy list nosock; ip neigh")
        };
        assert_eq!(ping("192.0.2.2", 5, 56), 5, "{}", state());
        // Fragments pass, and neighbour discovery goes on beside the SAs.
        assert_eq!(ping("192.0.2.2", 2, 3000), 2, "{}", state());
        sh("ip neigh flush dev wan");
        assert_eq!(ping("2001:db8::2", 5, 56), 5, "{}", state());
        for (child, packets) in [(v4.id, 7), (v6.id, 5)] {
            let usage = plane.usage(child).unwrap();
            assert!(usage.packets_in >= packets && usage.packets_out >= packets, "{usage:?}");
            let usage = other.lock().unwrap().usage(child).unwrap();
            assert!(usage.packets_in >= packets, "protected both ways: {usage:?}");
        }

        // What comes in clear for the same two is dropped: the other machine forgets its policies.
        let theirs = mirrored(&v4);
        other.lock().unwrap().remove(theirs.id).unwrap();
        sh("! ping -q -c 2 -i 0.05 -W 1 192.0.2.2");
        other.lock().unwrap().install(&theirs).unwrap();

        // A rekey changes who sends and nothing else.
        let next = ChildSpec { outbound_active: false, ..between(4, "192.0.2.1", "192.0.2.2") };
        other.lock().unwrap().install(&mirrored(&next)).unwrap();
        plane.install(&next).unwrap();
        plane.activate_outbound(next.id).unwrap();
        other.lock().unwrap().activate_outbound(next.id).unwrap();
        plane.remove(v4.id).unwrap();
        assert_eq!(ping("192.0.2.2", 3, 56), 3, "{}", state());

        // Killed and back: all of it is told apart from others' by its label, and goes on.
        drop(plane);
        let mut plane = KernelPlane::resume(config("gw", IF_ID, Vec::new()), &sink().0).unwrap();
        assert!(plane.adopt(&next).unwrap());
        assert!(plane.adopt(&v6).unwrap());
        assert_eq!(plane.reconcile().unwrap(), 0);
        assert_eq!(plane.resync().unwrap(), []);
        assert_eq!(ping("192.0.2.2", 3, 56) + ping("2001:db8::2", 3, 56), 6, "{}", state());

        // Nobody takes the IPv4 one over now: two SAs, two policies.
        drop(plane);
        let mut plane = KernelPlane::resume(config("gw", IF_ID, Vec::new()), &sink().0).unwrap();
        assert!(plane.adopt(&v6).unwrap());
        assert_eq!(plane.reconcile().unwrap(), 4);
        assert_eq!(ping("2001:db8::2", 3, 56), 3, "{}", state());
        plane.shutdown().unwrap();
        assert_eq!(sh("ip xfrm state; ip xfrm policy list nosock"), "");
    });
}
