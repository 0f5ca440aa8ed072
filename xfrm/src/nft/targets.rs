//! Fuzz target: what nftables and connection tracking answer. Anybody on the machine may name tables,
//! chains and counters, and open flows.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::{DROP_REASONS, conntrack, elements};
use crate::netlink::Frames;

/// The table that is looked for.
const TABLE: &str = "runnel";

/// A lease's addresses.
const ADDRESSES: [IpAddr; 2] = [
    IpAddr::V4(std::net::Ipv4Addr::new(10, 77, 0, 2)),
    IpAddr::V6(std::net::Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 2)),
];

/// A datagram of messages: each is read as everything it could be.
pub fn nft_message(data: &[u8]) {
    let addresses = BTreeSet::from(ADDRESSES);
    for frame in Frames::new(data) {
        let Ok(frame) = frame else { break };
        let payload = frame.payload;
        for ipv6 in [false, true] {
            let found = elements::parse_elements(ipv6, payload).unwrap_or_default();
            // An element has an attribute of its own, and in it a key.
            assert!(found.len().saturating_mul(8) <= payload.len(), "elements out of nothing");
            assert!(found.iter().all(|(address, _)| address.is_ipv6() == ipv6));
        }
        if let Ok(Some((reason, _))) = elements::parse_drop_counter(TABLE, payload) {
            assert!(DROP_REASONS.contains(&reason));
        }
        let within = |parts: &[Vec<u8>]| parts.iter().all(|part| part.len() <= payload.len());
        let (chain, rule) =
            (elements::parse_chain(TABLE, payload), elements::parse_rule(TABLE, payload));
        let table = elements::parse_table(payload).map(Some);
        for parts in [table, chain, rule] {
            assert!(parts.ok().flatten().is_none_or(|parts| within(&parts)));
        }
        assert!(elements::parse_generation(payload).map_or(0, |id| id.len()) <= payload.len());
        if let Ok(Some(message)) = conntrack::deletion(&[2, 0, 0, 0], payload, &addresses) {
            assert!(message.bytes().len() <= payload.len().saturating_add(64));
        }
    }
}

/// Seeds: what we ask for has the form of what comes back.
#[cfg(test)]
pub(crate) fn samples() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    use crate::model::{LeaseFilter, PlaneKind};
    use crate::netlink::Message;

    let lease = LeaseFilter {
        reqid: 77,
        addresses: ADDRESSES.to_vec(),
        networks: Vec::new(),
        role: "builder".to_owned(),
    };
    let sealed = |messages: Vec<Message>| {
        let mut octets = Vec::new();
        for mut message in messages {
            message.seal(0, 1);
            octets.extend(message.bytes());
        }
        octets
    };
    let inet = |kind: u16| Message::new(kind, 0, &[1, 0, 0, 0]);
    let counter =
        |message: Message| message.attr(1, &1500_u64.to_be_bytes()).attr(2, &3_u64.to_be_bytes());
    let counted = inet(0x0a0c).nest(3, |list| {
        list.nest(1, |element| {
            element.nest(1, |key| key.attr(1, &[10, 77, 0, 2])).nest(11, |expressions| {
                expressions.nest(1, |one| one.attr_str(1, "counter").nest(2, counter))
            })
        })
    });
    let table = inet(0x0a00)
        .attr_str(1, TABLE)
        .attr(2, &[0; 4])
        .attr(3, &[0, 0, 0, 9])
        .attr(4, &[0, 0, 0, 0, 0, 0, 0, 7]);
    let chain = inet(0x0a03)
        .attr_str(1, TABLE)
        .attr(2, &[0, 0, 0, 0, 0, 0, 0, 8])
        .attr_str(3, "fwd.builder")
        .attr(5, &[0; 4]);
    let rule = inet(0x0a06)
        .attr_str(1, TABLE)
        .attr_str(2, "fwd.builder")
        .attr(3, &[0, 0, 0, 0, 0, 0, 0, 9]);
    let dropped = inet(0x0a12)
        .attr_str(1, TABLE)
        .attr_str(2, "drop_spoofed")
        .attr(3, &[0, 0, 0, 1])
        .nest(4, counter);
    let flow = Message::new(0x0100, 0, &[2, 0, 0, 0])
        .nest(1, |tuple| tuple.nest(1, |ip| ip.attr(1, &[10, 77, 0, 2]).attr(2, &[10, 20, 0, 10])))
        .attr(12, &[0, 0, 0, 5]);
    vec![
        ("nft-message", "bindings", sealed(elements::bind(TABLE, PlaneKind::Kernel, &lease))),
        ("nft-message", "counted", sealed(vec![counted])),
        ("nft-message", "table", sealed(vec![table, chain, rule])),
        ("nft-message", "dropped", sealed(vec![dropped])),
        ("nft-message", "flow", sealed(vec![flow])),
    ]
}
