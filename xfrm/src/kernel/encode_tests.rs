//! Message bytes against `<linux/xfrm.h>`, and round trips through the reader.

use netlink_packet_core::Parseable;

use super::*;
use crate::kernel::decode;
use crate::model::{ChildId, Limits, Selector};
use crate::netlink::{Attrs, Frames};

const CONTEXT: Context = Context { if_id: 0x1122_3344, sa_dir: true, device: None };
const OLD: Context = Context { sa_dir: false, ..CONTEXT };
const FIXED: usize = 224;

fn spec() -> ChildSpec {
    ChildSpec {
        id: ChildId(9),
        reqid: 77,
        spi_in: Spi(0xc0de_0001),
        spi_out: Spi(0xd00d_0002),
        suite: EspSuite::Aes256Gcm16,
        keys_in: SaKeys { encr: vec![0xa1; 36], integ: vec![] },
        keys_out: SaKeys { encr: vec![0xb2; 36], integ: vec![] },
        mode: Mode::Tunnel,
        hosts: Hosts {
            local: "192.0.2.1:4500".parse().unwrap(),
            remote: "198.51.100.2:1025".parse().unwrap(),
            encap: true,
        },
        local_selectors: vec![Selector::network("10.20.0.0/24".parse().unwrap())],
        remote_selectors: vec![Selector::network("10.77.0.2/32".parse().unwrap())],
        esn: false,
        replay_window: 32,
        first_seq_out: 0,
        limits: Limits::default(),
        outbound_active: true,
    }
}

fn payload(message: &Message) -> Vec<u8> {
    message.bytes()[16..].to_vec()
}

fn attr(payload: &[u8], kind: u16) -> Option<Vec<u8>> {
    Attrs::find_kind(&payload[FIXED..], kind).unwrap().map(<[u8]>::to_vec)
}

fn build(context: Context, spec: &ChildSpec, half: Half) -> Vec<u8> {
    payload(&new_sa(context, spec, &spec.hosts, half, &Sequence::default()))
}

#[test]
fn the_fixed_part_is_where_the_kernel_reads_it() {
    let inbound = build(CONTEXT, &spec(), Half::In);
    // xfrm_selector: source 10.77.0.2/32, any destination, IPv4.
    assert_eq!(inbound[16..20], [10, 77, 0, 2]);
    assert_eq!(inbound[0..16], [0; 16]);
    assert_eq!(inbound[40..42], 2_u16.to_ne_bytes());
    assert_eq!((inbound[42], inbound[43]), (0, 32));
    // xfrm_id at 56: destination, SPI in network order, protocol.
    assert_eq!(inbound[56..60], [192, 0, 2, 1]);
    assert_eq!(inbound[72..76], [0xc0, 0xde, 0x00, 0x01]);
    assert_eq!(inbound[76], 50);
    // saddr at 80; byte limits at 96 are unlimited.
    assert_eq!(inbound[80..84], [198, 51, 100, 2]);
    assert_eq!(inbound[96..128], [0xff; 32]);
    // reqid at 208, family, mode, replay window, flags.
    assert_eq!(inbound[208..212], 77_u32.to_ne_bytes());
    assert_eq!(inbound[212..214], 2_u16.to_ne_bytes());
    assert_eq!((inbound[214], inbound[215], inbound[216]), (1, 32, 0));

    let outbound = build(CONTEXT, &spec(), Half::Out);
    assert_eq!(outbound[0..4], [10, 77, 0, 2]);
    assert_eq!(outbound[56..60], [198, 51, 100, 2]);
    assert_eq!(outbound[72..76], [0xd0, 0x0d, 0x00, 0x02]);
    assert_eq!(outbound[215], 0, "a sending SA has no receive window");
}

#[test]
fn limits_are_in_bytes_packets_and_seconds() {
    let limits = Limits {
        soft_bytes: Some(1),
        hard_bytes: Some(2),
        soft_packets: Some(3),
        hard_packets: Some(4),
        ends: Some(std::time::Instant::now() + std::time::Duration::from_millis(5_900)),
    };
    let limited = build(CONTEXT, &ChildSpec { limits, ..spec() }, Half::Out);
    let words: Vec<u64> =
        limited[96..160].chunks(8).map(|w| u64::from_ne_bytes(w.try_into().unwrap())).collect();
    // xfrm_lifetime_cfg: bytes, packets, seconds since installation, seconds since first use.
    assert_eq!(words, [1, 2, 3, 4, 0, 6, 0, 0]);
    assert_eq!(build(CONTEXT, &spec(), Half::Out)[128..160], [0; 32], "no time limit");
}

#[test]
fn chacha20_poly1305_is_an_aead_with_a_four_byte_salt() {
    let suite = EspSuite::ChaCha20Poly1305;
    let alg = attr(&build(CONTEXT, &ChildSpec { suite, ..spec() }, Half::In), 18).unwrap();
    assert!(alg.starts_with(b"rfc7539esp(chacha20,poly1305)\0"));
    assert_eq!(alg[64..72], [288_u32.to_ne_bytes(), 128_u32.to_ne_bytes()].concat());
    assert_eq!(alg[72..], [0xa1; 36]);
}

#[test]
fn a_larval_sa_is_filled_by_what_would_install_a_new_one() {
    let spec = ChildSpec { esn: true, ..spec() };
    let sequence = Sequence { sent: 9, ..Sequence::default() };
    let new = new_sa(CONTEXT, &spec, &spec.hosts, Half::Out, &sequence);
    let fill = fill_sa(CONTEXT, &spec, &spec.hosts, Half::Out, &sequence);
    assert_eq!((new.kind(), fill.kind()), (XFRM_MSG_NEWSA, XFRM_MSG_UPDSA));
    assert_eq!(payload(&new), payload(&fill));
}

#[test]
fn aead_key_salt_and_tag_length() {
    let inbound = build(CONTEXT, &spec(), Half::In);
    let alg = attr(&inbound, 18).unwrap();
    assert_eq!(alg.len(), 64 + 8 + 36);
    assert!(alg.starts_with(b"rfc4106(gcm(aes))\0"));
    assert_eq!(alg[64..68], 288_u32.to_ne_bytes());
    assert_eq!(alg[68..72], 128_u32.to_ne_bytes());
    assert_eq!(alg[72..], [0xa1; 36]);
    assert_eq!(attr(&build(CONTEXT, &spec(), Half::Out), 18).unwrap()[72..], [0xb2; 36]);
}

#[test]
fn cbc_has_its_full_length_tag() {
    for (suite, name, bits) in [
        (EspSuite::Aes256CbcSha256, &b"hmac(sha256)\0"[..], 128_u32),
        (EspSuite::Aes256CbcSha384, b"hmac(sha384)\0", 192),
        (EspSuite::Aes256CbcSha512, b"hmac(sha512)\0", 256),
    ] {
        let (encr, integ) = suite.key_lengths();
        let keys = SaKeys { encr: vec![1; encr], integ: vec![2; integ] };
        let spec = ChildSpec { suite, keys_in: keys, ..spec() };
        let inbound = build(CONTEXT, &spec, Half::In);
        let auth = attr(&inbound, 20).unwrap();
        assert!(auth.starts_with(name));
        assert_eq!(auth[68..72], bits.to_ne_bytes());
        assert_eq!(auth[72..], vec![2; integ]);
        assert!(attr(&inbound, 2).unwrap().starts_with(b"cbc(aes)\0"));
        assert!(attr(&inbound, 18).is_none());
    }
}

#[test]
fn encapsulation_names_the_ports_of_the_packet() {
    let inbound = attr(&build(CONTEXT, &spec(), Half::In), 4).unwrap();
    // struct xfrm_encap_tmpl: type in host order, ports in network order.
    assert_eq!(inbound[..6], [&2_u16.to_ne_bytes()[..], &[4, 1], &[17, 148]].concat());
    let outbound = attr(&build(CONTEXT, &spec(), Half::Out), 4).unwrap();
    assert_eq!(outbound[2..6], [17, 148, 4, 1]);
    let mut plain = spec();
    plain.hosts.encap = false;
    assert!(attr(&build(CONTEXT, &plain, Half::In), 4).is_none());
    assert!(attr(&build(CONTEXT, &plain, Half::In), 32).is_none());
}

#[test]
fn interface_and_direction_mark_every_sa() {
    for (half, direction) in [(Half::In, 1), (Half::Out, 2)] {
        let new = build(CONTEXT, &spec(), half);
        assert_eq!(attr(&new, 31).unwrap(), CONTEXT.if_id.to_ne_bytes());
        assert_eq!(attr(&new, XFRMA_SA_DIR).unwrap(), [direction]);
        assert!(attr(&build(OLD, &spec(), half), XFRMA_SA_DIR).is_none());
    }
}

#[test]
fn esn_has_a_window_where_the_kernel_wants_one() {
    let spec = ChildSpec { esn: true, replay_window: 128, first_seq_out: 0, ..spec() };
    let words = |payload: &[u8]| -> Vec<u32> {
        attr(payload, 23)
            .unwrap()
            .chunks(4)
            .map(|w| u32::from_ne_bytes(w.try_into().unwrap()))
            .collect()
    };
    let inbound = build(CONTEXT, &spec, Half::In);
    assert_eq!(inbound[216], 128, "XFRM_STATE_ESN");
    assert_eq!(words(&inbound), [4, 0, 0, 0, 0, 128, 0, 0, 0, 0]);
    // A kernel with directions refuses a window on a sending SA, an older one its absence.
    let sequence = Sequence { sent: 0x1_0000_0007, ..Sequence::default() };
    let new = payload(&new_sa(CONTEXT, &spec, &spec.hosts, Half::Out, &sequence));
    assert_eq!(words(&new), [0, 7, 0, 1, 0, 0]);
    let old = payload(&new_sa(OLD, &spec, &spec.hosts, Half::Out, &sequence));
    assert_eq!(words(&old), [4, 7, 0, 1, 0, 128, 0, 0, 0, 0]);
}

#[test]
fn a_large_window_without_esn_has_a_bitmap_too() {
    let spec = ChildSpec { replay_window: 4096, ..spec() };
    let inbound = build(CONTEXT, &spec, Half::In);
    assert_eq!(attr(&inbound, 23).unwrap().len(), 24 + 512);
    assert_eq!(inbound[216], 0);
    assert_eq!(inbound[215], 0);
}

#[test]
fn two_inner_addresses_leave_the_selector_open() {
    let mut spec = spec();
    spec.remote_selectors.push(Selector::network("fd77::2/128".parse().unwrap()));
    let inbound = build(CONTEXT, &spec, Half::In);
    assert_eq!(inbound[..56], [0; 56]);
    assert_eq!(inbound[216], 32, "XFRM_STATE_AF_UNSPEC");
}

#[test]
fn an_sa_reads_back_without_its_keys() {
    let mut spec = spec();
    spec.hosts.local = "[2001:db8::1]:4500".parse().unwrap();
    spec.hosts.remote = "[2001:db8::2]:4500".parse().unwrap();
    let sequence = Sequence { sent: 0, received: 40, bitmap: vec![0xf0f0] };
    let message = new_sa(CONTEXT, &spec, &spec.hosts, Half::In, &sequence);
    let state = decode::sa(&payload(&message)).unwrap();
    assert_eq!(state.destination, spec.hosts.local.ip());
    assert_eq!(state.source, spec.hosts.remote.ip());
    assert_eq!((state.spi, state.reqid, state.owner), (spec.spi_in, 77, CONTEXT.if_id));
    assert_eq!(state.sequence, sequence);
    assert_eq!((state.encap, state.larval), (Some((4500, 4500)), false));
    assert!(!format!("{state:?}").contains("161"), "0xa1 is a key byte");
    assert!(!format!("{message:?}").contains("161"));
}

#[test]
fn moving_an_inbound_sa_carries_its_window_over() {
    let spec = ChildSpec { esn: true, replay_window: 64, ..spec() };
    let sequence = Sequence { sent: 0, received: 0x2_0000_0001, bitmap: vec![7, 8] };
    let message = new_sa(CONTEXT, &spec, &spec.hosts, Half::In, &sequence);
    assert_eq!(decode::sa(&payload(&message)).unwrap().sequence, sequence);
}

#[test]
fn wide_policies_are_four_and_require_a_tunnel() {
    let messages = wide_policies(CONTEXT);
    let mut seen = Vec::new();
    for message in &messages {
        let payload = payload(message);
        let policy = PolicyModifyMessage::parse(&payload).unwrap();
        let info = &policy.user_policy_info;
        assert_eq!((info.selector.prefixlen_s, info.selector.prefixlen_d), (0, 0));
        let XfrmAttrs::Template(templates) = &policy.nlas[0] else { panic!() };
        let [template] = templates.as_slice() else { panic!() };
        assert_eq!((template.reqid, template.mode, template.optional), (0, 1, 0));
        assert_eq!((template.id.proto, template.id.spi), (50, 0));
        assert_eq!(policy.nlas[1], XfrmAttrs::IfId(CONTEXT.if_id));
        seen.push((info.direction, info.selector.family));
    }
    assert_eq!(seen, [(0, 2), (0, 10), (2, 2), (2, 10)]);
}

#[test]
fn an_outbound_policy_names_the_client() {
    let spec = spec();
    let inner = Flow::to("10.77.0.2/32".parse().unwrap());
    let index = outbound_index(5);
    let message = outbound_policy(CONTEXT, &spec, &spec.hosts, &inner, index, false);
    assert_eq!(message.kind(), XFRM_MSG_NEWPOLICY);
    let policy = PolicyModifyMessage::parse(&payload(&message)).unwrap();
    let info = &policy.user_policy_info;
    assert_eq!(info.direction, XFRM_POLICY_OUT);
    assert_eq!((info.selector.prefixlen_s, info.selector.prefixlen_d), (0, 32));
    let XfrmAttrs::Template(templates) = &policy.nlas[0] else { panic!() };
    assert_eq!(templates[0].id.daddr, Address::from_ip(&spec.hosts.remote.ip()));
    assert_eq!(templates[0].saddr, Address::from_ip(&spec.hosts.local.ip()));
    assert_eq!((templates[0].reqid, templates[0].id.spi), (77, spec.spi_out.0));

    let read = decode::policy(&payload(&message)).unwrap();
    assert_eq!((read.direction, read.if_id, read.index), (1, CONTEXT.if_id, index));
    assert_eq!(index & 7, 1, "the direction is in the low bits");
    assert_eq!((outbound_number(index), outbound_number(9)), (Some(5), None));
    assert_eq!((read.flow, read.owner), (Some(inner), CONTEXT.if_id));
    let sender = read.sender.unwrap();
    assert_eq!(
        (sender.source, sender.destination),
        (spec.hosts.local.ip(), spec.hosts.remote.ip())
    );
    assert_eq!((sender.spi, sender.reqid), (spec.spi_out, 77));
    let delete = delete_policy_by_index(CONTEXT.if_id, read.index);
    let delete = PolicyDelGetMessage::parse(&payload(&delete)).unwrap();
    assert_eq!((delete.user_policy_id.index, delete.user_policy_id.direction), (index, 1));
    assert_eq!(delete.nlas, [XfrmAttrs::IfId(CONTEXT.if_id)]);
    let delete = PolicyDelGetMessage::parse(&payload(&delete_outbound_policy(CONTEXT, &inner)));
    assert_eq!(delete.unwrap().user_policy_id.selector, info.selector);
}

/// The kernel counts from the installation also after an update (`xfrm_state_update`): what is left
/// by then, said again, would end the SA at once in the second half of its life.
#[test]
fn a_change_of_ports_does_not_shorten_an_sa() {
    let ends = Some(std::time::Instant::now() + std::time::Duration::from_secs(6));
    let limited = ChildSpec { limits: Limits { ends, ..Limits::default() }, ..spec() };
    for ends_after in [0, 3_600] {
        let message = update_sa(CONTEXT, &limited, &limited.hosts, Half::In, ends_after);
        let seconds: [u8; 8] = payload(&message)[136..144].try_into().unwrap();
        assert_eq!(u64::from_ne_bytes(seconds), ends_after);
    }
}

#[test]
fn messages_are_whole_netlink_messages() {
    let spec = spec();
    let inner = Flow::to("fd77::2/128".parse().unwrap());
    for message in [
        new_sa(CONTEXT, &spec, &spec.hosts, Half::In, &Sequence::default()),
        update_sa(CONTEXT, &spec, &spec.hosts, Half::Out, 0),
        delete_sa(spec.hosts.local.ip(), spec.spi_in),
        outbound_policy(CONTEXT, &spec, &spec.hosts, &inner, outbound_index(1), true),
        ask_for_direction(),
    ] {
        assert_eq!(message.bytes().len() % 4, 0);
        assert!(Frames::new(message.bytes()).next().is_some());
    }
}
