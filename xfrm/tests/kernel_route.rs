//! Addresses, routes and forwarding of the tunnel interface on a real kernel.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

mod support;

use std::fs;

use support::{in_namespace, sh};
use xfrm::PlaneError;
use xfrm::enforcer::TunnelAddressing;
use xfrm::model::{EspSuite, Mode, PlaneKind, TunnelNetwork};
use xfrm::route::{
    ProblemKind, RouteSocket, TunnelNet, forwarding_report, inner_mtu, route_to, settings_report,
};

fn networks() -> Vec<TunnelNetwork> {
    vec![
        TunnelNetwork {
            network: "10.77.0.0/16".parse().unwrap(),
            gateway: "10.77.0.1".parse().unwrap(),
            masquerade: false,
        },
        TunnelNetwork {
            network: "fd77::/64".parse().unwrap(),
            gateway: "fd77::1".parse().unwrap(),
            masquerade: false,
        },
    ]
}

/// A veth end stands for the tunnel interface.
fn make_tunnel() {
    sh("ip link add tun-t type veth peer name tun-p && ip link set tun-p up");
}

/// Whether a pool's address or route is listed; a hardware address may hold any digits.
fn names_pool(listing: &str) -> bool {
    ["10.77.", "fd77:"].iter().any(|pool| listing.contains(pool))
}

fn routes() -> String {
    sh("ip route show table main; ip -6 route show table main")
}

#[test]
fn sets_up_and_leaves_nothing() {
    in_namespace(|| {
        make_tunnel();
        let before = routes();
        let mut net = TunnelNet::default();
        net.set_up("tun-t", &networks(), 1380).unwrap();

        let after = routes();
        assert!(after.contains("10.77.0.0/16 dev tun-t"), "{after}");
        assert!(after.contains("src 10.77.0.1"), "{after}");
        assert!(after.contains("unreachable 10.77.0.0/16"), "{after}");
        assert!(after.contains("fd77::/64 dev tun-t"), "{after}");
        assert!(after.contains("unreachable fd77::/64"), "{after}");
        let addresses = sh("ip -br address show dev tun-t");
        assert!(addresses.contains("10.77.0.1/32"), "{addresses}");
        assert!(addresses.contains("fd77::1/128"), "{addresses}");
        for family in ["ipv4", "ipv6"] {
            let path = format!("/proc/sys/net/{family}/conf/tun-t/forwarding");
            assert_eq!(fs::read_to_string(path).unwrap().trim(), "1", "{family}");
        }
        let link = RouteSocket::open().unwrap().link("tun-t").unwrap().unwrap();
        assert!(link.up);
        assert_eq!(link.mtu, 1380);

        net.set_mtu(1200).unwrap();
        let link = RouteSocket::open().unwrap().link("tun-t").unwrap().unwrap();
        assert_eq!(link.mtu, 1280, "IPv6 keeps its minimum");

        assert_eq!(net.tear_down(), Vec::<String>::new());
        sh("ip link set tun-t down; ip link set tun-p down");
        assert!(!names_pool(&routes()), "{}", routes());
        assert_eq!(routes(), before);
        assert!(!names_pool(&sh("ip address show dev tun-t")));
    });
}

#[test]
fn the_pool_stays_unreachable_when_the_interface_vanishes() {
    in_namespace(|| {
        sh("ip link add wan type veth peer name isp && ip address add 192.0.2.1/24 dev wan");
        sh("ip link set wan up; ip link set isp up; ip route add default via 192.0.2.254");
        make_tunnel();
        let mut net = TunnelNet::default();
        net.set_up("tun-t", &networks(), 1400).unwrap();
        let inside = "10.77.3.4".parse().unwrap();
        assert_eq!(route_to(inside).unwrap().interface.as_deref(), Some("tun-t"));
        assert_eq!(route_to(inside).unwrap().mtu, 1400);

        sh("ip link delete tun-t");
        assert_eq!(route_to(inside).unwrap().interface, None, "leaves by the default route");
        let outside = route_to("198.51.100.1".parse().unwrap()).unwrap();
        assert_eq!(outside.interface.as_deref(), Some("wan"));
        assert_eq!(outside.source, Some("192.0.2.1".parse().unwrap()));

        // A killed instance left the unreachable routes; the next start repairs and removes all.
        drop(net);
        make_tunnel();
        let mut next = TunnelNet::default();
        next.set_up("tun-t", &networks(), 1400).unwrap();
        next.set_mtu(1390).unwrap();
        assert_eq!(route_to(inside).unwrap().interface.as_deref(), Some("tun-t"));
        assert_eq!(next.tear_down(), Vec::<String>::new());
        assert!(!names_pool(&routes()), "{}", routes());
    });
}

#[test]
fn routes_of_former_pools_go_at_the_next_start() {
    in_namespace(|| {
        make_tunnel();
        sh("ip link add tun-u type veth peer name tun-v");
        let former: Vec<_> = [("10.66.0.0/16", "10.66.0.1"), ("fd66::/64", "fd66::1")]
            .map(|(network, gateway)| TunnelNetwork {
                network: network.parse().unwrap(),
                gateway: gateway.parse().unwrap(),
                masquerade: false,
            })
            .to_vec();
        TunnelNet::default().set_up("tun-t", &former, 1400).unwrap();
        // Another instance on this machine, and an administrator's own black hole.
        let foreign = TunnelNetwork {
            network: "10.55.0.0/16".parse().unwrap(),
            gateway: "10.55.0.1".parse().unwrap(),
            masquerade: false,
        };
        let mut other = TunnelNet::default();
        other.set_up("tun-u", &[foreign], 1400).unwrap();
        sh("ip route add unreachable 10.44.0.0/16 metric 4000000000");

        // Killed, and started again with other pools.
        sh("ip link delete tun-t");
        assert!(routes().contains("unreachable 10.66.0.0/16"), "{}", routes());
        assert!(routes().contains("unreachable fd66::/64"), "{}", routes());
        make_tunnel();
        let mut net = TunnelNet::default();
        net.set_up("tun-t", &networks(), 1400).unwrap();
        let after = routes();
        assert!(!after.contains("10.66.") && !after.contains("fd66:"), "{after}");
        assert!(after.contains("unreachable 10.77.0.0/16"), "{after}");
        assert!(after.contains("unreachable 10.55.0.0/16"), "{after}");
        assert!(after.contains("unreachable 10.44.0.0/16"), "{after}");
        assert_eq!(net.tear_down(), Vec::<String>::new());
        assert_eq!(other.tear_down(), Vec::<String>::new());
    });
}

#[test]
fn refuses_a_pool_that_something_else_uses() {
    in_namespace(|| {
        make_tunnel();
        sh("ip link add lan type veth peer name host && ip link set lan up");
        sh("ip address add 10.77.9.1/24 dev lan");
        let before = routes();
        let error = TunnelNet::default().set_up("tun-t", &networks(), 1400).unwrap_err();
        let PlaneError::Conflict(sentence) = &error else { panic!("{error}") };
        assert!(sentence.contains("10.77.9.1 of interface lan"), "{sentence}");

        sh("ip address del 10.77.9.1/24 dev lan; ip route add 10.77.128.0/17 dev lan");
        let error = TunnelNet::default().set_up("tun-t", &networks(), 1400).unwrap_err();
        let PlaneError::Conflict(sentence) = &error else { panic!("{error}") };
        assert!(sentence.contains("10.77.128.0/17 to lan"), "{sentence}");
        sh("ip route del 10.77.128.0/17");
        sh("ip route add 10.77.9.0/24 dev lan; ip route del 10.77.9.0/24");
        assert!(!routes().contains("unreachable"), "{before}\n{}", routes());
    });
}

#[test]
fn names_the_interface_that_does_not_forward() {
    in_namespace(|| {
        sh("ip link add lan.5 type veth peer name host && ip link set lan.5 up");
        sh("ip link set host up; ip address add 10.20.0.1/24 dev lan.5");
        sh("sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0");
        let destinations =
            ["10.20.0.10/32", "10.20.0.1/32", "198.51.100.0/24"].map(|d| d.parse().unwrap());
        let problems = forwarding_report(&destinations).unwrap();
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert_eq!(problems[0].kind, ProblemKind::Forwarding);
        assert_eq!(problems[0].subject, "lan.5");
        let remedy = problems[0].sentence.split('`').nth(1).unwrap();
        assert_eq!(problems[1].kind, ProblemKind::NoRoute);
        // The remedy in the sentence is a command that works.
        sh(remedy);
        let problems = forwarding_report(&destinations[..2]).unwrap();
        assert_eq!(problems, []);
    });
}

/// What sends clients' packets elsewhere, or takes the interface out of IPsec, is said with its fix.
#[test]
fn routes_and_switches_in_the_way_are_reported() {
    in_namespace(|| {
        sh(
            "ip link add tun.1 type veth peer name far && ip link set tun.1 up && ip link set far up",
        );
        sh("ip link add elsewhere type veth peer name far2");
        sh("ip link set elsewhere up && ip link set far2 up");
        sh("ip route add 10.77.0.0/16 dev tun.1 && ip -6 route add fd77::/64 dev tun.1");
        let inside = ["10.77.0.0/16", "fd77::/64"].map(|net| net.parse().unwrap());
        let found = |plane| -> Vec<(ProblemKind, String)> {
            let problems = settings_report("tun.1", plane, &inside).unwrap();
            problems.into_iter().map(|problem| (problem.kind, problem.sentence)).collect()
        };
        for plane in [PlaneKind::Kernel, PlaneKind::Userspace] {
            assert_eq!(found(plane), []);
        }
        sh("sysctl -qw net.ipv4.conf.tun/1.disable_policy=1 net.ipv4.conf.all.rp_filter=1");
        let [(ProblemKind::Switch, sentence)] = &found(PlaneKind::Kernel)[..] else { panic!() };
        assert!(sentence.contains("-w net.ipv4.conf.tun/1.disable_policy=0"), "{sentence}");
        assert_eq!(found(PlaneKind::Userspace), [], "has no use for IPsec");

        sh("ip route add 10.77.0.0/24 dev elsewhere");
        let [(ProblemKind::ReversePath, sentence), _] = &found(PlaneKind::Kernel)[..] else {
            panic!()
        };
        assert!(sentence.contains("to elsewhere instead of tun.1"), "{sentence}");
        assert!(!sentence.contains("rp_filter"), "does not look at what came by IPsec: {sentence}");
        let [(_, sentence)] = &found(PlaneKind::Userspace)[..] else { panic!() };
        assert!(sentence.contains("-w net.ipv4.conf.tun/1.rp_filter=2"), "{sentence}");
        sh("sysctl -qw net.ipv4.conf.tun/1.rp_filter=2");
        let [(_, sentence)] = &found(PlaneKind::Userspace)[..] else { panic!() };
        assert!(!sentence.contains("rp_filter"), "lenient already: {sentence}");
    });
}

#[test]
fn what_a_child_carries_over_a_path_depends_on_suite_encapsulation_and_mode() {
    let suite = EspSuite::Aes256Gcm16;
    // 1500 - 20 - 8 - 8 - 16 = 1448, less the trailer's two.
    assert_eq!(inner_mtu(1500, suite, false, false, Mode::Tunnel), 1446);
    assert_eq!(inner_mtu(1500, suite, false, true, Mode::Tunnel), 1438);
    assert_eq!(inner_mtu(1500, suite, true, true, Mode::Tunnel), 1418);
    // Its own header is the outer one.
    assert_eq!(inner_mtu(1500, suite, false, false, Mode::Transport), 1466);
    assert_eq!(inner_mtu(0, suite, true, true, Mode::Tunnel), 0);
}
