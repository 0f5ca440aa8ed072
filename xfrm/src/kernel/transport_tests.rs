//! Bytes of what transport mode installs, and its policies on a real kernel, which needs no ESP
//! for them.

use std::sync::Arc;

use netlink_packet_core::Parseable;
use netlink_packet_xfrm::XfrmAttrs;
use netlink_packet_xfrm::policy::ModifyMessage;

use super::*;
use crate::dataplane::EventSink;
use crate::kernel::KernelConfig;
use crate::kernel::decode;
use crate::kernel::encode::{Half, Sequence};
use crate::model::{ChildId, EspSuite, Hosts, Limits, SaKeys, Selector, Spi};
use crate::netlink::Attrs;
use crate::netns::in_fresh_namespace;

const CONTEXT: Context = Context { if_id: 0x77, sa_dir: false, device: None };

fn host(address: IpAddr) -> Selector {
    Selector::network(address.into())
}

fn spec(number: u32, ipv6: bool) -> ChildSpec {
    let keys = SaKeys { encr: vec![7; 36], integ: Vec::new() };
    let (local, remote): (IpAddr, IpAddr) = if ipv6 {
        ("2001:db8::1".parse().unwrap(), "2001:db8::2".parse().unwrap())
    } else {
        ("192.0.2.1".parse().unwrap(), "198.51.100.2".parse().unwrap())
    };
    ChildSpec {
        id: ChildId(number.into()),
        reqid: 77,
        spi_in: Spi(0x1_0000 + number),
        spi_out: Spi(0x2_0000 + number),
        suite: EspSuite::Aes256Gcm16,
        keys_in: keys.clone(),
        keys_out: keys,
        mode: Mode::Transport,
        hosts: Hosts { local: (local, 500).into(), remote: (remote, 500).into(), encap: false },
        local_selectors: vec![host(local)],
        remote_selectors: vec![host(remote)],
        esn: true,
        replay_window: 64,
        first_seq_out: 0,
        limits: Limits::default(),
        outbound_active: true,
    }
}

fn payload(message: &Message) -> &[u8] {
    &message.bytes()[16..]
}

#[test]
fn an_sa_in_transport_mode_has_a_label_instead_of_the_interface() {
    let spec = spec(1, false);
    let sent = encode::new_sa(CONTEXT, &spec, &spec.hosts, Half::Out, &Sequence::default());
    let sent = payload(&sent);
    assert_eq!(sent[214], 0, "transport mode");
    assert_eq!(sent[..56], [0; 56], "its policies are narrow enough");
    assert_eq!(sent[216] & 32, 0, "the inner family is the outer one");
    let attr = |kind| Attrs::find_kind(&sent[224..], kind).unwrap().map(<[u8]>::to_vec);
    assert_eq!(attr(31), None, "the interface would look for its own");
    assert_eq!(attr(29).unwrap(), 0x77_u32.to_ne_bytes());
    assert_eq!(attr(30).unwrap(), 0_u32.to_ne_bytes(), "marks no packet");
    assert_eq!(decode::sa(sent).unwrap().owner, 0x77);
    // A stranger that marks packets with our number has a mask.
    let mut stranger = sent.to_vec();
    let at = stranger.windows(4).position(|w| w == [8, 0, 30, 0]).unwrap();
    stranger[at + 4..at + 8].fill(0xff);
    assert_eq!(decode::sa(&stranger).unwrap().owner, 0);
}

#[test]
fn policies_between_hosts_demand_an_sa_in_transport_mode() {
    let spec = spec(1, false);
    let [flow] = flows(&spec)[..] else { panic!() };
    let index = encode::outbound_index(1);
    let out = encode::outbound_policy(CONTEXT, &spec, &spec.hosts, &flow, index, false);
    let read = decode::policy(payload(&out)).unwrap();
    assert_eq!((read.if_id, read.owner, read.direction), (0, 0x77, XFRM_POLICY_OUT));
    assert_eq!((read.flow, read.protects), (Some(flow), true));
    assert_eq!(read.sender.unwrap().spi, spec.spi_out);

    let [back] = companions(&flow)[..] else { panic!("IPv4 needs no exception") };
    let back = back.install(XFRM_MSG_NEWPOLICY, CONTEXT);
    let policy = ModifyMessage::parse(payload(&back)).unwrap();
    let info = &policy.user_policy_info;
    assert_eq!((info.direction, info.action), (XFRM_POLICY_IN, 0));
    assert_eq!((info.selector.prefixlen_s, info.selector.prefixlen_d), (32, 32));
    assert_eq!(info.selector.saddr.addr[..4], [198, 51, 100, 2]);
    assert_eq!(info.selector.daddr.addr[..4], [192, 0, 2, 1]);
    // Label: "Runn" and the instance.
    assert_eq!(info.lifetime_cfg.soft_byte_limit, 0x5275_6e6e_0000_0077);
    let [XfrmAttrs::Template(templates)] = &policy.nlas[..] else { panic!("{policy:?}") };
    assert_eq!((templates[0].mode, templates[0].reqid, templates[0].optional), (0, 0, 0));
    assert_eq!(templates[0].id.proto, 50);
}

#[test]
fn one_protocol_and_port_is_a_flow_and_a_range_is_refused() {
    let mut spec = spec(1, false);
    spec.local_selectors[0] =
        Selector { protocol: 6, start_port: 443, end_port: 443, ..spec.local_selectors[0] };
    spec.remote_selectors[0].protocol = 6;
    let [flow] = flows(&spec)[..] else { panic!() };
    let selector = encode::selector(&flow);
    assert_eq!((selector.proto, selector.sport, selector.sport_mask), (6, 443, 0xffff));
    assert_eq!((selector.dport, selector.dport_mask), (0, 0));
    assert!(KernelPlane::check_transport(&spec).is_ok());
    let refused = |spec: &ChildSpec| {
        let error = KernelPlane::check_transport(spec).unwrap_err().to_string();
        assert!(error.contains("one protocol and one port each"), "{error}");
    };
    let mut range = spec.clone();
    range.local_selectors[0].end_port = 500;
    refused(&range);
    let mut other = spec.clone();
    other.remote_selectors[0].protocol = 17;
    refused(&other);
    let mut behind = spec.clone();
    behind.remote_selectors = vec![host("10.0.0.1".parse().unwrap())];
    refused(&behind);
    let mut more = spec.clone();
    more.remote_selectors.push(more.remote_selectors[0]);
    refused(&more);
    let tunnel = ChildSpec { mode: Mode::Tunnel, ..behind };
    assert!(KernelPlane::check_transport(&tunnel).is_ok());
}

/// Policies, and only those, of children in transport mode on this kernel.
#[test]
fn policies_come_and_go_with_the_last_child_and_strangers_stay() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: needs root to make a network namespace");
        return;
    }
    in_fresh_namespace(|| {
        let open = |if_id| {
            let config = KernelConfig { interface: "lo".to_owned(), if_id, ports: Vec::new() };
            KernelPlane::on_interface(config, &(Arc::new(|_| {}) as EventSink)).unwrap()
        };
        let (mut plane, mut other) = (open(0x77), open(0x78));
        let (first, second) = (spec(1, true), spec(2, true));
        let counts = |plane: &mut KernelPlane| plane.dump_policies().unwrap().len();
        assert_eq!(counts(&mut plane), 4, "the wide ones");
        for spec in [&first, &second] {
            let steps = plane.companion_steps(spec);
            plane.run(steps).unwrap();
            let (steps, senders) = plane.policy_steps(spec, &spec.hosts, &flows(spec));
            plane.run(steps).unwrap();
            plane.senders.extend(senders);
            plane.enlist(spec.clone());
            // In, out, and two of neighbour discovery each way.
            assert_eq!(counts(&mut plane), 4 + 6);
        }
        assert_eq!(counts(&mut other), 4, "another instance's are told apart");
        // A policy for the same traffic is never replaced.
        let steps = other.companion_steps(&first);
        assert!(other.run(steps).is_err());
        assert_eq!(counts(&mut plane), 10);

        plane.strike(first.id);
        plane.remove_companions(&first).unwrap();
        assert_eq!(counts(&mut plane), 10, "the second goes on");

        // An earlier run's are found, and taken away when nobody takes them over.
        plane.find_left().unwrap();
        assert_eq!((plane.left.policies.len(), plane.left.companions.len()), (1, 5));
        plane.left = super::super::adopt::Left::default();
        plane.strike(second.id);
        plane.delete_policies(&flows(&second)).unwrap();
        plane.remove_companions(&second).unwrap();
        assert_eq!(counts(&mut plane), 4);
        let steps = plane.companion_steps(&second);
        plane.run(steps).unwrap();
        assert_eq!(plane.purge().unwrap(), 4 + 5, "by instance, not by interface");
        assert_eq!(counts(&mut other), 4);
        other.purge().unwrap();
    })
    .unwrap();
}
