//! Arbitrary payloads and messages.

use std::net::IpAddr;

use ike::wire::*;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

pub(crate) fn octets(max: usize) -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..=max)
}

fn attribute() -> impl Strategy<Value = Attribute> {
    // Type 14 in the short form is a key length.
    let kind = (0u16..0x8000).prop_filter("key length", |kind| *kind != 14);
    prop_oneof![
        4 => any::<u16>().prop_map(Attribute::KeyLength),
        1 => (kind, any::<u16>()).prop_map(|(kind, value)| Attribute::Tv { kind, value }),
        1 => (0u16..0x8000, octets(12)).prop_map(|(kind, value)| Attribute::Tlv { kind, value }),
    ]
}

fn transform() -> impl Strategy<Value = Transform> {
    (any::<u8>(), any::<u16>(), vec(attribute(), 0..=MAX_ATTRIBUTES)).prop_map(
        |(kind, id, attributes)| Transform { id: TransformId::from_wire(kind, id), attributes },
    )
}

fn proposal() -> impl Strategy<Value = Proposal> {
    let protocol_and_spi = prop_oneof![
        Just((ProtocolId::Ike, Vec::new())),
        vec(any::<u8>(), 8).prop_map(|spi| (ProtocolId::Ike, spi)),
        vec(any::<u8>(), 4).prop_map(|spi| (ProtocolId::Esp, spi)),
        vec(any::<u8>(), 4).prop_map(|spi| (ProtocolId::Ah, spi)),
        (4u8.., octets(20)).prop_map(|(protocol, spi)| (protocol.into(), spi)),
    ];
    (any::<u8>(), protocol_and_spi, vec(transform(), 0..6)).prop_map(
        |(number, (protocol, spi), transforms)| Proposal { number, protocol, spi, transforms },
    )
}

fn sa() -> impl Strategy<Value = SecurityAssociation> {
    vec(proposal(), 1..5).prop_map(SecurityAssociation::new)
}

fn ke() -> impl Strategy<Value = KeyExchange> {
    (any::<u16>(), octets(64)).prop_map(|(method, data)| KeyExchange::new(method.into(), data))
}

fn id() -> impl Strategy<Value = IdPayload> {
    let id = prop_oneof![
        any::<IpAddr>().prop_map(Identification::address),
        "[a-z0-9.-]{0,40}".prop_map(|name| Identification::fqdn(&name)),
        (6u8.., octets(40)).prop_map(|(kind, data)| Identification::new(kind.into(), data)),
    ];
    (id, any::<[u8; 3]>()).prop_map(|(id, reserved)| IdPayload { id, reserved })
}

fn certificate() -> impl Strategy<Value = Certificate> {
    (any::<u8>(), octets(80)).prop_map(|(kind, data)| Certificate::new(kind.into(), data))
}

fn cert_request() -> impl Strategy<Value = CertRequest> {
    prop_oneof![
        vec(any::<[u8; 20]>(), 0..4).prop_map(|hashes| CertRequest::x509(&hashes)),
        (15u8.., octets(30))
            .prop_map(|(kind, authorities)| CertRequest { encoding: kind.into(), authorities }),
    ]
}

fn auth() -> impl Strategy<Value = Authentication> {
    (any::<u8>(), octets(80)).prop_map(|(kind, data)| Authentication::new(kind.into(), data))
}

fn nonce() -> impl Strategy<Value = Nonce> {
    vec(any::<u8>(), 16..=256).prop_map(|octets| Nonce::new(octets).unwrap())
}

pub(crate) fn notify() -> impl Strategy<Value = Notify> {
    (any::<u8>(), octets(8), any::<u16>(), octets(40)).prop_map(|(protocol, spi, kind, data)| {
        Notify { protocol: protocol.into(), spi, kind: kind.into(), data }
    })
}

fn delete() -> impl Strategy<Value = Delete> {
    let protocol = any::<u8>().prop_filter("child", |protocol| *protocol != 1);
    prop_oneof![
        Just(Delete::Ike),
        (protocol, vec(any::<u32>().prop_map(ChildSpi), 0..6))
            .prop_map(|(protocol, spis)| Delete::Child { protocol: protocol.into(), spis }),
    ]
}

fn selector() -> impl Strategy<Value = TrafficSelector> {
    let pair = prop_oneof![
        any::<[std::net::Ipv4Addr; 2]>().prop_map(|pair| pair.map(IpAddr::V4)),
        any::<[std::net::Ipv6Addr; 2]>().prop_map(|pair| pair.map(IpAddr::V6)),
    ];
    let ports = prop_oneof![
        3 => any::<[u16; 2]>().prop_map(|mut ports| { ports.sort_unstable(); ports }),
        1 => Just([u16::MAX, 0]),
    ];
    (any::<u8>(), ports, pair).prop_map(|(protocol, [start_port, end_port], mut pair)| {
        pair.sort_unstable();
        let [start, end] = pair;
        TrafficSelector { protocol, start_port, end_port, start, end }
    })
}

fn selectors() -> impl Strategy<Value = TrafficSelectors> {
    let unknown = (9u8.., any::<u8>(), octets(20)).prop_map(|(kind, protocol, data)| {
        UnknownSelector { ts_type: kind.into(), protocol, data }
    });
    (vec(selector(), 0..6), vec(unknown, 0..2))
        .prop_map(|(selectors, unknown)| TrafficSelectors { selectors, unknown })
}

fn cfg_attr() -> impl Strategy<Value = CfgAttr> {
    use std::net::{Ipv4Addr, Ipv6Addr};
    let ip4 = || option::of(any::<Ipv4Addr>());
    let ip6 = || option::of(any::<Ipv6Addr>());
    let prefix = || option::of((any::<Ipv6Addr>(), 0u8..=128));
    let kinds = vec((0u16..0x8000).prop_map(CfgAttrType::from), 0..5);
    prop_oneof![
        ip4().prop_map(CfgAttr::Ip4Address),
        ip4().prop_map(CfgAttr::Ip4Netmask),
        ip4().prop_map(CfgAttr::Ip4Dns),
        ip4().prop_map(CfgAttr::Ip4Nbns),
        ip4().prop_map(CfgAttr::Ip4Dhcp),
        option::of(any::<(Ipv4Addr, Ipv4Addr)>()).prop_map(CfgAttr::Ip4Subnet),
        prefix().prop_map(CfgAttr::Ip6Address),
        ip6().prop_map(CfgAttr::Ip6Dns),
        ip6().prop_map(CfgAttr::Ip6Dhcp),
        prefix().prop_map(CfgAttr::Ip6Subnet),
        octets(20).prop_map(CfgAttr::ApplicationVersion),
        octets(20).prop_map(CfgAttr::DnsDomain),
        kinds.prop_map(CfgAttr::Supported),
        (30u16..0x8000, octets(20))
            .prop_map(|(kind, value)| CfgAttr::Other { kind: kind.into(), value }),
    ]
}

fn cp() -> impl Strategy<Value = Configuration> {
    (any::<u8>(), vec(cfg_attr(), 0..8))
        .prop_map(|(kind, attributes)| Configuration::new(kind.into(), attributes))
}

fn eap() -> impl Strategy<Value = Eap> {
    prop_oneof![
        (any::<u8>(), any::<u8>(), octets(60)).prop_map(|(id, method, data)| Eap::request(
            id,
            method.into(),
            data
        )),
        (any::<u8>(), any::<u8>(), octets(60)).prop_map(|(id, method, data)| Eap::response(
            id,
            method.into(),
            data
        )),
        any::<u8>().prop_map(Eap::success),
        any::<u8>().prop_map(Eap::failure),
        (5u8.., any::<u8>(), octets(60)).prop_map(|(code, identifier, data)| Eap {
            code: code.into(),
            identifier,
            method: None,
            data
        }),
    ]
}

/// Any payload that may stand inside an Encrypted payload.
pub(crate) fn inner_payload() -> impl Strategy<Value = Payload> {
    let unknown_kind = any::<u8>()
        .prop_map(PayloadType::from)
        .prop_filter("unknown", |kind| !kind.is_supported() && *kind != PayloadType::None);
    prop_oneof![
        sa().prop_map(Payload::Sa),
        ke().prop_map(Payload::Ke),
        id().prop_map(Payload::IdI),
        id().prop_map(Payload::IdR),
        certificate().prop_map(Payload::Cert),
        cert_request().prop_map(Payload::CertReq),
        auth().prop_map(Payload::Auth),
        nonce().prop_map(Payload::Nonce),
        notify().prop_map(Payload::Notify),
        delete().prop_map(Payload::Delete),
        octets(30).prop_map(|octets| Payload::VendorId(VendorId(octets))),
        selectors().prop_map(Payload::TsI),
        selectors().prop_map(Payload::TsR),
        cp().prop_map(Payload::Cp),
        eap().prop_map(Payload::Eap),
        (unknown_kind, octets(30)).prop_map(|(kind, body)| Payload::Unknown { kind, body }),
    ]
}

fn outer_last() -> impl Strategy<Value = Payload> {
    let fragment =
        (1u16.., any::<u16>(), any::<u8>(), octets(60)).prop_map(|(a, b, first_inner, body)| {
            let (number, total) = (a.min(b).max(1), a.max(b));
            Payload::Fragment(EncryptedFragment {
                first_inner: first_inner.into(),
                number,
                total,
                body,
            })
        });
    prop_oneof![
        (any::<u8>(), octets(60)).prop_map(|(first_inner, body)| {
            Payload::Encrypted(EncryptedPayload { first_inner: first_inner.into(), body })
        }),
        fragment,
    ]
}

/// A chain for the inside of an Encrypted payload: what may occur once does.
pub(crate) fn inner_payloads() -> impl Strategy<Value = Payloads> {
    vec((inner_payload(), any::<bool>()), 0..12).prop_map(|drawn| {
        let mut out = Payloads::new();
        for (payload, critical) in drawn {
            let mut with = out.clone();
            with.push_item(Item { critical, payload });
            if with.encode().is_ok() {
                out = with;
            }
        }
        out
    })
}

pub(crate) fn header() -> impl Strategy<Value = Header> {
    (1u64.., any::<u64>(), any::<u8>(), any::<[bool; 3]>(), any::<u32>(), 0u8..16).prop_map(
        |(spi_i, spi_r, exchange, [response, version, initiator], message_id, minor)| {
            let flags = Flags { response, version, initiator };
            let mut header =
                Header::new(IkeSpi(spi_i), IkeSpi(spi_r), exchange.into(), flags, message_id);
            header.version.minor = minor;
            header
        },
    )
}

/// Any message.
pub(crate) fn message() -> impl Strategy<Value = Message> {
    (header(), inner_payloads(), option::of(outer_last())).prop_map(
        |(header, mut payloads, last)| {
            if let Some(last) = last {
                payloads.push(last);
            }
            Message { header, payloads }
        },
    )
}
