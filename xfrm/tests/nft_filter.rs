//! The packet filter against real packets: a client behind the "tunnel" (a veth pair stands for
//! it), a gateway, and a private network with two servers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use support::{Host, in_namespace, sh, succeeds};
use xfrm::PlaneError;
use xfrm::enforcer::{PacketFilter, TunnelAddressing};
use xfrm::model::{
    AllowRule, HostSite, LeaseFilter, PlaneKind, RoleFilter, SiteFilter, TunnelNetwork,
};
use xfrm::nft::{Firewall, FirewallConfig};
use xfrm::route::TunnelNet;

const TCP: u8 = 6;
const UDP: u8 = 17;
/// Long enough for a packet between namespaces on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(30);
/// Silence that counts as blocked.
const SILENCE: Duration = Duration::from_millis(400);

fn rule(destination: &str, protocol: u8, port: u16) -> AllowRule {
    AllowRule {
        destination: destination.parse().unwrap(),
        protocol: Some(protocol),
        ports: Some((port, port)),
    }
}

fn builder() -> RoleFilter {
    RoleFilter {
        role: "builder-1".to_owned(),
        allow: vec![
            rule("10.20.0.10/32", TCP, 8080),
            rule("10.20.0.10/32", UDP, 5353),
            rule("fd20::/64", TCP, 8080),
            rule("10.77.0.1/32", TCP, 80),
            // Wide: must not open the gateway's own 10.20.0.1.
            rule("10.20.0.0/24", TCP, 9090),
        ],
        own_ports: vec![8081],
    }
}

fn empty() -> RoleFilter {
    RoleFilter { role: "builder-1".to_owned(), allow: vec![], own_ports: vec![] }
}

fn networks(masquerade: bool) -> Vec<TunnelNetwork> {
    [("10.77.0.0/16", "10.77.0.1"), ("fd77::/64", "fd77::1")]
        .map(|(network, gateway)| TunnelNetwork {
            network: network.parse().unwrap(),
            gateway: gateway.parse().unwrap(),
            masquerade,
        })
        .to_vec()
}

fn config(masquerade: bool) -> FirewallConfig {
    FirewallConfig {
        instance: String::new(),
        interface: "tun-t".to_owned(),
        networks: networks(masquerade),
        roles: vec![builder()],
        sites: Vec::new(),
        plane: PlaneKind::Userspace,
    }
}

fn lease(reqid: u32, last: u8) -> LeaseFilter {
    LeaseFilter {
        reqid,
        addresses: vec![
            format!("10.77.0.{last}").parse().unwrap(),
            format!("fd77::{last}").parse().unwrap(),
        ],
        networks: Vec::new(),
        role: "builder-1".to_owned(),
    }
}

/// client (10.77.0.2, fd77::2) -- tun-t GATEWAY lan -- server (10.20.0.10, fd20::10)
struct World {
    client: Host,
    server: Host,
    net: TunnelNet,
    firewall: Firewall,
}

impl World {
    fn new(masquerade: bool) -> Self {
        let (client, server) = (Host::new(), Host::new());
        client.connect("tun-t", "c0");
        server.connect("lan", "s0");
        sh("ip address add 10.20.0.1/24 dev lan; ip address add fd20::1/64 dev lan nodad");
        sh("sysctl -qw net.ipv4.conf.lan.forwarding=1 net.ipv6.conf.all.forwarding=1");
        let firewall = Firewall::install(&config(masquerade)).unwrap();
        let mut net = TunnelNet::default();
        net.set_up("tun-t", &networks(masquerade), 1400).unwrap();
        // A TUN device needs no neighbours; the veth pair that stands for it does, and the
        // filter rightly drops neighbour discovery on a tunnel interface.
        let client_mac = client.sh("ip -br link show dev c0 | awk '{print $3}'");
        let tun_mac = sh("ip -br link show dev tun-t | awk '{print $3}'");
        client.sh("ip address add 10.77.0.2/32 dev c0; ip address add fd77::2/128 dev c0 nodad");
        client.sh("ip address add 10.77.0.3/32 dev c0");
        client.sh("ip route add 10.77.0.1 dev c0 && ip route add default via 10.77.0.1");
        client.sh("ip -6 route add fd77::1 dev c0 && ip -6 route add default via fd77::1");
        for address in ["10.77.0.1", "fd77::1"] {
            client.sh(&format!("ip neigh add {address} dev c0 lladdr {}", tun_mac.trim()));
        }
        for address in ["10.77.0.2", "10.77.0.3", "fd77::2"] {
            sh(&format!("ip neigh add {address} dev tun-t lladdr {}", client_mac.trim()));
        }
        server.sh("ip address add 10.20.0.10/24 dev s0; ip address add fd20::10/64 dev s0 nodad");
        if !masquerade {
            server.sh("ip route add 10.77.0.0/16 via 10.20.0.1");
            server.sh("ip -6 route add fd77::/64 via fd20::1");
        }
        Self { client, server, net, firewall }
    }

    /// Whether the client gets through to where it should.
    fn connects(&self, address: &str) -> bool {
        self.try_connect(address, PATIENCE).is_ok()
    }

    /// Whether the client is kept from where it should not get.
    fn blocked(&self, address: &str) -> bool {
        self.try_connect(address, SILENCE).is_err()
    }

    fn connect(&self, address: &str) -> TcpStream {
        self.try_connect(address, PATIENCE).unwrap()
    }

    fn try_connect(&self, address: &str, patience: Duration) -> std::io::Result<TcpStream> {
        let address: SocketAddr = address.parse().unwrap();
        self.client.run(move || TcpStream::connect_timeout(&address, patience))
    }

    fn listen(&self, address: &'static str) -> TcpListener {
        self.server.run(move || TcpListener::bind(address).unwrap())
    }

    fn drops(&mut self, reason: &str) -> u64 {
        self.firewall.counters().unwrap().drops.get(reason).map_or(0, |c| c.packets)
    }
}

/// Whether a byte written at one end arrives at the other in time. Earlier bytes that were held
/// up may arrive first.
fn passes(from: &mut TcpStream, to: &mut TcpStream, patience: Duration) -> bool {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let token = NEXT.fetch_add(1, Ordering::Relaxed);
    from.write_all(&[token]).unwrap();
    let deadline = Instant::now() + patience;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        to.set_read_timeout(Some(left.max(Duration::from_millis(1)))).unwrap();
        let mut bytes = [0; 16];
        match to.read(&mut bytes) {
            Ok(length) if bytes[..length].contains(&token) => return true,
            Ok(length) if length > 0 && !left.is_zero() => {}
            _ => return false,
        }
    }
}

/// Tracked flows an address opened; `None` where the kernel does not show them.
fn tracked_flows(source: &str) -> Option<usize> {
    let flows = std::fs::read_to_string("/proc/thread-self/net/nf_conntrack").ok()?;
    Some(flows.lines().filter(|flow| flow.contains(&format!(" src={source} dst=10.20."))).count())
}

#[test]
fn only_the_allow_list_passes() {
    in_namespace(|| {
        let mut world = World::new(false);
        let _web = world.listen("10.20.0.10:8080");
        let _other = world.listen("10.20.0.10:8081");
        let _web6 = world.listen("[fd20::10]:8080");
        let _status = TcpListener::bind("10.77.0.1:80").unwrap();
        let _admin = TcpListener::bind("10.77.0.1:22").unwrap();
        let _lan = TcpListener::bind("10.20.0.1:9090").unwrap();
        let _own = TcpListener::bind("10.20.0.1:8081").unwrap();

        // No lease: nothing at all.
        assert!(world.blocked("10.20.0.10:8080"));
        assert!(world.blocked("10.77.0.1:80"));
        assert!(world.drops("from_client") > 0);

        world.firewall.bind(&lease(7, 2)).unwrap();
        assert!(world.connects("10.20.0.10:8080"));
        assert!(world.connects("[fd20::10]:8080"));
        assert!(world.connects("10.77.0.1:80"));
        assert!(world.blocked("10.20.0.10:8081"), "port outside the list");
        assert!(world.blocked("10.77.0.1:22"), "the gateway's own ports");
        assert!(world.blocked("10.20.0.1:9090"), "the gateway inside a wide network");
        assert!(world.connects("10.20.0.1:8081"), "its certificate status, there too");

        let counters = world.firewall.counters().unwrap();
        assert!(counters.leases[&7].from_client.packets >= 9, "{counters:?}");
        assert!(counters.leases[&7].to_client.packets >= 3, "{counters:?}");
        // What its role does not allow is counted for the lease.
        let refused = counters.leases[&7].refused.packets;
        assert!(refused > 0 && refused <= counters.drops["from_client"].packets, "{counters:?}");
        assert!(world.blocked("10.20.0.1:9090"));
        assert!(world.firewall.counters().unwrap().leases[&7].refused.packets > refused);

        world.firewall.unbind(&lease(7, 2)).unwrap();
        assert!(world.blocked("10.20.0.10:8080"));
        assert!(world.blocked("[fd20::10]:8080"));
        assert!(world.blocked("10.77.0.1:80"));
    });
}

#[test]
fn ending_a_lease_or_its_policy_bites_on_live_flows() {
    in_namespace(|| {
        let mut world = World::new(false);
        let web = world.listen("10.20.0.10:8080");
        world.firewall.bind(&lease(7, 2)).unwrap();
        let mut near = world.connect("10.20.0.10:8080");
        let (mut far, _) = web.accept().unwrap();
        assert!(passes(&mut near, &mut far, PATIENCE));
        assert!(passes(&mut far, &mut near, PATIENCE));

        // The policy changes under the flow: neither direction passes.
        world.firewall.replace_roles(&[empty()]).unwrap();
        assert!(!passes(&mut near, &mut far, SILENCE));
        assert!(!passes(&mut far, &mut near, SILENCE));
        // And back: the retransmissions get through.
        world.firewall.replace_roles(&[builder()]).unwrap();
        assert!(passes(&mut near, &mut far, PATIENCE));
        assert!(passes(&mut far, &mut near, PATIENCE));

        let started = Instant::now();
        assert_ne!(tracked_flows("10.77.0.2"), Some(0));
        world.firewall.unbind(&lease(7, 2)).unwrap();
        assert!(started.elapsed() < Duration::from_secs(10));
        // Nothing of the flow waits for the next holder of the address.
        let deadline = Instant::now() + PATIENCE;
        while tracked_flows("10.77.0.2").is_some_and(|flows| flows > 0) {
            assert!(Instant::now() < deadline, "tracked flows stay");
        }
        assert!(!passes(&mut near, &mut far, SILENCE));
        assert!(!passes(&mut far, &mut near, SILENCE));
    });
}

#[test]
fn only_replies_reach_a_client() {
    in_namespace(|| {
        let mut world = World::new(false);
        world.firewall.bind(&lease(7, 2)).unwrap();
        let near = world.client.run(|| UdpSocket::bind("10.77.0.2:4000").unwrap());
        let far = world.server.run(|| UdpSocket::bind("10.20.0.10:5353").unwrap());
        near.set_read_timeout(Some(SILENCE)).unwrap();
        far.set_read_timeout(Some(PATIENCE)).unwrap();

        far.send_to(b"unasked", "10.77.0.2:4000").unwrap();
        assert!(near.recv(&mut [0; 16]).is_err(), "unasked datagram reached the client");
        assert!(world.drops("to_client") > 0);

        near.send_to(b"question", "10.20.0.10:5353").unwrap();
        let (_, from) = far.recv_from(&mut [0; 16]).unwrap();
        assert_eq!(from.ip().to_string(), "10.77.0.2");
        near.set_read_timeout(Some(PATIENCE)).unwrap();
        far.send_to(b"answer", from).unwrap();
        assert_eq!(near.recv(&mut [0; 16]).unwrap(), 6);

        // A server that keeps talking is cut off with the policy too.
        world.firewall.replace_roles(&[empty()]).unwrap();
        near.set_read_timeout(Some(SILENCE)).unwrap();
        far.send_to(b"more", from).unwrap();
        assert!(near.recv(&mut [0; 16]).is_err());
    });
}

#[test]
fn clients_cannot_reach_each_other_or_be_impersonated() {
    in_namespace(|| {
        let mut world = World::new(false);
        world.firewall.bind(&lease(7, 2)).unwrap();
        world.firewall.bind(&lease(8, 3)).unwrap();
        let mut all = builder();
        all.allow = vec![AllowRule {
            destination: "0.0.0.0/0".parse().unwrap(),
            protocol: None,
            ports: None,
        }];
        world.firewall.replace_roles(&[all]).unwrap();
        // Both addresses are the same host here; the packet must go through the gateway.
        world.client.sh("ip route add 10.77.0.9 via 10.77.0.1");
        let near = world.client.run(|| UdpSocket::bind("10.77.0.2:4000").unwrap());
        near.send_to(b"hello", "10.77.0.9:4000").unwrap();
        let deadline = Instant::now() + PATIENCE;
        while world.drops("client_to_client") == 0 {
            assert!(Instant::now() < deadline, "client to client was not dropped");
        }

        // A host of the private network speaks with a client's address.
        world.server.sh("ip address add 10.77.0.2/32 dev s0");
        let liar = world.server.run(|| UdpSocket::bind("10.77.0.2:5000").unwrap());
        liar.send_to(b"it is me", "10.20.0.1:1").unwrap();
        let deadline = Instant::now() + PATIENCE;
        while world.drops("spoofed") == 0 {
            assert!(Instant::now() < deadline, "the spoofed packet was not dropped");
        }
    });
}

#[test]
fn masquerades_when_asked() {
    in_namespace(|| {
        let mut world = World::new(true);
        let web = world.listen("10.20.0.10:8080");
        let web6 = world.listen("[fd20::10]:8080");
        world.firewall.bind(&lease(7, 2)).unwrap();
        let _near = world.connect("10.20.0.10:8080");
        assert_eq!(web.accept().unwrap().1.ip().to_string(), "10.20.0.1");
        let _near = world.connect("[fd20::10]:8080");
        assert_eq!(web6.accept().unwrap().1.ip().to_string(), "fd20::1");
    });
}

#[test]
fn clamps_the_segment_size_both_ways() {
    in_namespace(|| {
        let mut world = World::new(false);
        let web = world.listen("10.20.0.10:8080");
        let web6 = world.listen("[fd20::10]:8080");
        world.firewall.bind(&lease(7, 2)).unwrap();
        for (listener, address, overhead) in
            [(&web, "10.20.0.10:8080", 40), (&web6, "[fd20::10]:8080", 60)]
        {
            // Both hosts' own links have 1500; only the tunnel interface has 1400.
            let near = world.connect(address);
            let (far, _) = listener.accept().unwrap();
            for stream in [&near, &far] {
                let mss = socket2::SockRef::from(stream).tcp_mss().unwrap();
                assert!(mss <= 1400 - overhead, "{address}: {mss}");
                assert!(mss >= 1400 - overhead - 20, "{address}: {mss}");
            }
        }
    });
}

#[test]
fn comes_back_after_a_flush_and_leaves_nothing() {
    in_namespace(|| {
        let mut world = World::new(false);
        let _web = world.listen("10.20.0.10:8080");
        sh("nft add table inet strangers");
        world.firewall.bind(&lease(7, 2)).unwrap();
        assert!(!world.firewall.ensure().unwrap(), "nothing to repair");
        let before = sh("nft --stateless list table inet runnel");
        assert!(before.contains("10.77.0.2 counter : jump fwd.builder-1"), "{before}");

        sh("nft flush ruleset");
        assert!(world.firewall.ensure().unwrap());
        assert_eq!(sh("nft --stateless list table inet runnel"), before);
        assert!(world.connects("10.20.0.10:8080"));

        // A table of the same name is not enough; the next operation notices and repairs.
        sh("nft flush ruleset; nft add table inet runnel");
        world.firewall.unbind(&lease(7, 2)).unwrap();
        assert!(world.blocked("10.20.0.10:8080"));
        assert!(sh("nft list table inet runnel").contains("chain forward"));

        sh("nft add table inet strangers");
        world.firewall.remove().unwrap();
        assert_eq!(sh("nft list tables").trim(), "table inet strangers");
        assert_eq!(world.net.tear_down(), Vec::<String>::new());
    });
}

#[test]
fn every_change_by_others_is_noticed_and_repaired() {
    in_namespace(|| {
        let mut world = World::new(false);
        let _web = world.listen("10.20.0.10:8080");
        let _other = world.listen("10.20.0.10:8081");
        world.firewall.bind(&lease(7, 2)).unwrap();
        let before = sh("nft --stateless list table inet runnel");
        for change in [
            "flush chain inet runnel forward",
            "flush table inet runnel",
            "flush chain inet runnel fwd.builder-1",
            "insert rule inet runnel forward accept",
            "add table inet runnel { flags dormant; }",
            "chain inet runnel forward { policy drop; }",
        ] {
            assert!(!world.firewall.ensure().unwrap(), "nothing to repair before: {change}");
            sh(&format!("nft '{change}'"));
            assert!(world.firewall.ensure().unwrap(), "not noticed: {change}");
            assert_eq!(sh("nft --stateless list table inet runnel"), before, "{change}");
            assert!(world.blocked("10.20.0.10:8081"), "{change}");
            assert!(world.connects("10.20.0.10:8080"), "{change}");
        }
        // A change of roles repairs first: what is missing must not pass for its own doing.
        sh("nft flush chain inet runnel forward");
        world.firewall.replace_roles(&[builder()]).unwrap();
        assert_eq!(sh("nft --stateless list table inet runnel"), before);
        // Its own changes and those of others elsewhere are nothing to repair.
        sh("nft add table inet strangers; nft add chain inet strangers forward");
        world.firewall.bind(&lease(8, 3)).unwrap();
        world.firewall.replace_roles(&[builder()]).unwrap();
        assert!(!world.firewall.ensure().unwrap());

        // The best of some blocks: the others may have waited for a busy machine.
        let mut block = || {
            let started = Instant::now();
            for _ in 0..100 {
                assert!(!world.firewall.ensure().unwrap());
            }
            started.elapsed() / 100
        };
        let each = (0..10).map(|_| block()).min().unwrap();
        assert!(each < Duration::from_millis(2), "too dear to poll every second: {each:?}");
    });
}

#[test]
fn roles_come_and_go_while_bound() {
    in_namespace(|| {
        let mut world = World::new(false);
        let _web = world.listen("10.20.0.10:8080");
        world.firewall.bind(&lease(7, 2)).unwrap();
        let deployer = RoleFilter { role: "deployer".to_owned(), ..builder() };
        world.firewall.replace_roles(std::slice::from_ref(&deployer)).unwrap();
        assert!(world.blocked("10.20.0.10:8080"), "its role is gone");
        assert!(matches!(world.firewall.bind(&lease(9, 4)), Err(PlaneError::Conflict(_))));

        let moved = LeaseFilter { role: "deployer".to_owned(), ..lease(7, 2) };
        world.firewall.bind(&moved).unwrap();
        assert!(world.connects("10.20.0.10:8080"));
        world.firewall.replace_roles(&[deployer]).unwrap();
        assert!(!sh("nft list table inet runnel").contains("builder-1"), "no chain is left over");

        let taken = LeaseFilter { reqid: 8, ..moved.clone() };
        let error = world.firewall.bind(&taken).unwrap_err();
        assert_eq!(error.to_string(), "address 10.77.0.2 is bound to another lease");
        let foreign =
            LeaseFilter { reqid: 9, addresses: vec!["10.9.9.9".parse().unwrap()], ..moved };
        assert!(matches!(world.firewall.bind(&foreign), Err(PlaneError::Conflict(_))));
    });
}

#[test]
fn instances_do_not_harm_each_other() {
    in_namespace(|| {
        let mut first = Firewall::install(&config(false)).unwrap();
        let second = FirewallConfig {
            instance: "second".to_owned(),
            interface: "tun-u".to_owned(),
            ..config(false)
        };
        let mut second = Firewall::install(&second).unwrap();
        first.bind(&lease(7, 2)).unwrap();
        second.bind(&lease(7, 2)).unwrap();
        // A killed first instance starts again: its leftovers are replaced.
        let first_again = Firewall::install(&config(false)).unwrap();
        assert!(!sh("nft list table inet runnel").contains("10.77.0.2"));
        assert!(sh("nft list table inet runnel_second").contains("10.77.0.2 "));
        second.remove().unwrap();
        assert!(!succeeds("nft list table inet runnel_second"));
        assert!(succeeds("nft list table inet runnel"));
        drop(first_again);
    });
}

#[test]
fn the_kernel_plane_binds_reqid_and_source() {
    in_namespace(|| {
        let kernel = FirewallConfig { plane: PlaneKind::Kernel, ..config(false) };
        let mut firewall = Firewall::install(&kernel).unwrap();
        firewall.bind(&lease(4711, 2)).unwrap();
        let text = sh("nft --stateless list table inet runnel");
        assert!(text.contains("ipsec in reqid . ip saddr vmap @fwd4"), "{text}");
        assert!(text.contains("4711 . 10.77.0.2 counter : jump fwd.builder-1"), "{text}");
        assert!(text.contains("4711 . fd77::2 counter : jump loc.builder-1"), "{text}");
        assert!(text.contains("10.77.0.2 counter : jump ret.builder-1"), "{text}");
        assert!(text.contains("4711 . fd77::2 counter : drop"), "{text}");
        assert!(firewall.counters().unwrap().leases.contains_key(&4711));
        firewall.unbind(&lease(4711, 2)).unwrap();
        assert!(!sh("nft list table inet runnel").contains("10.77.0.2 "));
    });
}

#[test]
fn binds_ten_thousand_leases_at_an_even_cost() {
    in_namespace(|| {
        let mut wide = config(false);
        wide.networks[0].network = "10.0.0.0/8".parse().unwrap();
        let mut firewall = Firewall::install(&wide).unwrap();
        let many: Vec<LeaseFilter> = (0..10_000_u32)
            .map(|n| LeaseFilter {
                networks: Vec::new(),
                reqid: n + 1,
                addresses: vec![
                    std::net::Ipv4Addr::from(0x0a80_0000 + n).into(),
                    std::net::Ipv6Addr::from((0xfd77_u128 << 112) + 0x10_000 + u128::from(n))
                        .into(),
                ],
                role: "builder-1".to_owned(),
            })
            .collect();
        let started = Instant::now();
        for chunk in many.chunks(100) {
            firewall.bind_all(chunk).unwrap();
        }
        println!("10,000 leases, 60,000 elements: {:?}", started.elapsed());
        assert_eq!(firewall.counters().unwrap().leases.len(), 10_000);
        for lease in &many[..500] {
            firewall.unbind(lease).unwrap();
        }
        assert_eq!(firewall.counters().unwrap().leases.len(), 9_500);
        firewall.remove().unwrap();
    });
}

/// A site with a network of each family behind it.
fn site(name: &str, remote: &[&str]) -> SiteFilter {
    let nets = |list: &[&str]| list.iter().map(|net| net.parse().unwrap()).collect();
    SiteFilter {
        site: name.to_owned(),
        local: nets(&["10.20.0.0/16", "fd20::/64"]),
        remote: nets(remote),
        allow: vec![AllowRule {
            destination: "10.20.0.10/32".parse().unwrap(),
            protocol: Some(6),
            ports: Some((443, 443)),
        }],
        hosts: None,
    }
}

fn site_lease(reqid: u32, name: &str, remote: &[&str]) -> LeaseFilter {
    let networks = remote.iter().map(|net| net.parse().unwrap()).collect();
    LeaseFilter { reqid, addresses: Vec::new(), networks, role: name.to_owned() }
}

#[test]
fn sites_are_bound_and_replaced_in_either_plane() {
    const REMOTE: [&str; 2] = ["10.30.0.0/16", "fd30::/64"];
    for plane in [PlaneKind::Userspace, PlaneKind::Kernel] {
        in_namespace(|| {
            let sites = vec![site("office", &REMOTE)];
            let config = FirewallConfig { plane, sites, ..config(false) };
            let mut firewall = Firewall::install(&config).unwrap();
            let lease = site_lease(77, "office", &REMOTE);
            let listed = || sh("nft --stateless list table inet runnel");
            assert!(listed().contains("ip saddr 10.30.0.0/16 counter name \"drop_spoofed\" drop"));
            assert!(!listed().contains("10.30.0.0/16 : jump sin.office"), "not before it is bound");

            firewall.bind(&lease).unwrap();
            let text = listed();
            for element in [
                "10.30.0.0/16 : jump sin.office",
                "fd30::/64 : jump sin.office",
                "10.30.0.0/16 : jump sloc.office",
                "10.30.0.0/16 : jump sout.office",
            ] {
                assert!(text.contains(element), "{element} is not in {text}");
            }
            assert_eq!(text.contains("ipsec in reqid != @sreq.office"), plane == PlaneKind::Kernel);

            // Nobody else gets its networks, and it does not go while it is bound.
            let other = site_lease(78, "office", &REMOTE);
            assert!(matches!(firewall.bind(&other), Err(PlaneError::Conflict(_))));
            assert!(matches!(firewall.replace_sites(&[]), Err(PlaneError::Conflict(_))));

            // What it may open changes while it is bound.
            let mut wider = site("office", &REMOTE);
            wider.allow[0].ports = Some((8443, 8443));
            let mut second = site("branch", &["10.40.0.0/16"]);
            second.allow.clear();
            firewall.replace_sites(&[wider, second]).unwrap();
            let text = listed();
            assert!(text.contains("tcp dport 8443") && !text.contains("tcp dport 443"), "{text}");
            assert!(text.contains("10.30.0.0/16 : jump sin.office"), "{text}");
            assert!(text.contains("ip saddr 10.40.0.0/16 counter name \"drop_spoofed\" drop"));
            assert!(!firewall.ensure().unwrap(), "our own change is no damage");

            // What somebody removes comes back, elements included.
            sh("nft delete table inet runnel");
            assert!(firewall.ensure().unwrap());
            assert!(listed().contains("10.30.0.0/16 : jump sout.office"));

            firewall.unbind(&lease).unwrap();
            firewall.unbind(&lease).unwrap();
            assert!(!listed().contains("jump sin.office"));
            firewall.replace_sites(&[]).unwrap();
            let text = listed();
            assert!(!text.contains("office") && !text.contains("10.30.0.0/16"), "{text}");
        });
    }
}

/// A site in transport mode is a machine of its own, beside the tunnel interface.
#[test]
fn kernel_plane_filters_a_machine_in_transport_mode() {
    for (ours, theirs) in [("192.0.2.1/32", "192.0.2.2/32"), ("2001:db8::1/128", "2001:db8::2/128")]
    {
        in_namespace(|| {
            let allow = AllowRule {
                destination: ours.parse().unwrap(),
                protocol: Some(6),
                ports: Some((443, 443)),
            };
            let machine = SiteFilter {
                local: vec![ours.parse().unwrap()],
                allow: vec![allow],
                hosts: Some(HostSite { own_ports: vec![8080] }),
                ..site("db", &[theirs])
            };
            let sites = vec![machine.clone()];
            let config = FirewallConfig { plane: PlaneKind::Kernel, sites, ..config(false) };
            let mut firewall = Firewall::install(&config).unwrap();
            let listed = || sh("nft --stateless list table inet runnel");
            let text = listed();
            let family = if ours.contains(':') { "ip6" } else { "ip" };
            let bare = |net: &str| net.split('/').next().unwrap().to_owned();
            let from_it = format!("{family} saddr {} {family} daddr {}", bare(theirs), bare(ours));
            for rule in [
                format!("{from_it} meta ipsec exists jump sloc.db"),
                format!("{from_it} meta ipsec exists counter name \"drop_from_client\" drop"),
                format!("{from_it} meta ipsec missing counter name \"drop_spoofed\" drop"),
                "rt ipsec missing counter name \"drop_to_client\" drop".to_owned(),
            ] {
                assert!(text.contains(&rule), "{rule} is not in {text}");
            }
            assert!(!text.contains("saddr 192.0.2.2 counter"), "its IKE passes: {text}");

            // On this kernel nothing is protected: only what makes protection passes.
            sh(&format!("ip addr add {ours} dev lo && ip addr add {theirs} dev lo"));
            let send = |port: u16| {
                let at = |net: &str, port| SocketAddr::new(bare(net).parse().unwrap(), port);
                let to = at(ours, port);
                let socket = UdpSocket::bind(at(theirs, 0)).unwrap();
                let receiver = UdpSocket::bind(to).unwrap();
                receiver.set_read_timeout(Some(SILENCE)).unwrap();
                socket.send_to(b"x", to).unwrap();
                receiver.recv(&mut [0; 8]).is_ok()
            };
            assert!(send(500) && send(4500), "IKE and ESP in UDP");
            assert!(!send(53), "in clear");
            let drops = firewall.counters().unwrap().drops;
            assert_eq!(drops["spoofed"].packets, 1);

            let lease = site_lease(77, "db", &[theirs]);
            firewall.bind(&lease).unwrap();
            firewall.replace_sites(std::slice::from_ref(&machine)).unwrap();
            assert!(!send(53), "bound or not");
            assert!(!firewall.ensure().unwrap());
            firewall.unbind(&lease).unwrap();
            firewall.replace_sites(&[]).unwrap();
            assert!(!listed().contains(&bare(theirs)));
            assert!(send(53), "nobody's business any more");
            firewall.remove().unwrap();
        });
    }
}
