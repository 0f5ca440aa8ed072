//! Map elements and counters as nfnetlink messages.

use std::net::IpAddr;

use super::ruleset::{ChainKind, chain_name, map_name};
use super::{Counter, DROP_REASONS};
use crate::error::PlaneError;
use crate::model::{LeaseFilter, PlaneKind};
use crate::netlink::{Attrs, Message, attr_u64_be};

const SUBSYSTEM: u16 = 10 << 8;
const NFT_MSG_GETTABLE: u16 = SUBSYSTEM | 1;
const NFT_MSG_DELTABLE: u16 = SUBSYSTEM | 2;
const NFT_MSG_GETCHAIN: u16 = SUBSYSTEM | 4;
const NFT_MSG_GETRULE: u16 = SUBSYSTEM | 7;
const NFT_MSG_NEWSETELEM: u16 = SUBSYSTEM | 12;
const NFT_MSG_GETSETELEM: u16 = SUBSYSTEM | 13;
const NFT_MSG_DELSETELEM: u16 = SUBSYSTEM | 14;
const NFT_MSG_GETGEN: u16 = SUBSYSTEM | 16;
const NFT_MSG_GETOBJ: u16 = SUBSYSTEM | 19;

const NLM_F_CREATE: u16 = 0x400;
const NFPROTO_INET: u8 = 1;
/// Length of struct nfgenmsg.
const FIXED: usize = 4;

const NFTA_GEN_ID: u16 = 1;
const NFTA_TABLE_NAME: u16 = 1;
const NFTA_TABLE_FLAGS: u16 = 2;
const NFTA_TABLE_USE: u16 = 3;
const NFTA_TABLE_HANDLE: u16 = 4;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_HANDLE: u16 = 2;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_POLICY: u16 = 5;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_HANDLE: u16 = 3;
const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
const NFTA_SET_ELEM_LIST_SET: u16 = 2;
const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_SET_ELEM_DATA: u16 = 2;
const NFTA_SET_ELEM_EXPR: u16 = 7;
const NFTA_SET_ELEM_EXPRESSIONS: u16 = 11;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_VERDICT_CODE: u16 = 1;
const NFTA_VERDICT_CHAIN: u16 = 2;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_COUNTER_BYTES: u16 = 1;
const NFTA_COUNTER_PACKETS: u16 = 2;
const NFTA_OBJ_TABLE: u16 = 1;
const NFTA_OBJ_NAME: u16 = 2;
const NFTA_OBJ_TYPE: u16 = 3;
const NFTA_OBJ_DATA: u16 = 4;
const NFT_OBJECT_COUNTER: u32 = 1;
const NF_DROP: i32 = 0;
const NFT_JUMP: i32 = -3;

fn message(kind: u16, flags: u16) -> Message {
    Message::new(kind, flags, &[NFPROTO_INET, 0, 0, 0])
}

/// Messages that put a lease's elements in.
pub(super) fn bind(table: &str, plane: PlaneKind, lease: &LeaseFilter) -> Vec<Message> {
    each_element(plane, lease)
        .map(|(kind, ipv6, key)| {
            let chain = chain_name(kind, &lease.role);
            message(NFT_MSG_NEWSETELEM, NLM_F_CREATE)
                .attr_str(NFTA_SET_ELEM_LIST_TABLE, table)
                .attr_str(NFTA_SET_ELEM_LIST_SET, &map_name(kind, ipv6))
                .nest(NFTA_SET_ELEM_LIST_ELEMENTS, |m| {
                    m.nest(NFTA_LIST_ELEM, |m| {
                        m.nest(NFTA_SET_ELEM_KEY, |m| m.attr(NFTA_DATA_VALUE, &key)).nest(
                            NFTA_SET_ELEM_DATA,
                            |m| {
                                m.nest(NFTA_DATA_VERDICT, |m| {
                                    if kind == ChainKind::Refused {
                                        return m.attr(NFTA_VERDICT_CODE, &NF_DROP.to_be_bytes());
                                    }
                                    m.attr(NFTA_VERDICT_CODE, &NFT_JUMP.to_be_bytes())
                                        .attr_str(NFTA_VERDICT_CHAIN, &chain)
                                })
                            },
                        )
                    })
                })
        })
        .collect()
}

/// Messages that take a lease's elements out.
pub(super) fn unbind(table: &str, plane: PlaneKind, lease: &LeaseFilter) -> Vec<Message> {
    each_element(plane, lease)
        .map(|(kind, ipv6, key)| {
            message(NFT_MSG_DELSETELEM, 0)
                .attr_str(NFTA_SET_ELEM_LIST_TABLE, table)
                .attr_str(NFTA_SET_ELEM_LIST_SET, &map_name(kind, ipv6))
                .nest(NFTA_SET_ELEM_LIST_ELEMENTS, |m| {
                    m.nest(NFTA_LIST_ELEM, |m| {
                        m.nest(NFTA_SET_ELEM_KEY, |m| m.attr(NFTA_DATA_VALUE, &key))
                    })
                })
        })
        .collect()
}

/// Every (map, key) of a lease.
fn each_element(
    plane: PlaneKind,
    lease: &LeaseFilter,
) -> impl Iterator<Item = (ChainKind, bool, Vec<u8>)> {
    ChainKind::MAPS.into_iter().flat_map(move |kind| {
        lease
            .addresses
            .iter()
            .map(move |address| (kind, address.is_ipv6(), key(kind, plane, lease.reqid, *address)))
    })
}

/// An element's key: the address, in the kernel plane after the reqid of the inbound SA.
fn key(kind: ChainKind, plane: PlaneKind, reqid: u32, address: IpAddr) -> Vec<u8> {
    let mut key = Vec::with_capacity(20);
    if kind != ChainKind::Return && plane == PlaneKind::Kernel {
        // nft_xfrm loads the reqid in host order; parts of a concatenation are 4-byte aligned.
        key.extend_from_slice(&reqid.to_ne_bytes());
    }
    match address {
        IpAddr::V4(v4) => key.extend_from_slice(&v4.octets()),
        IpAddr::V6(v6) => key.extend_from_slice(&v6.octets()),
    }
    key
}

/// The address at the end of an element's key.
fn key_address(ipv6: bool, key: &[u8]) -> Option<IpAddr> {
    if ipv6 {
        key.last_chunk::<16>().map(|octets| IpAddr::from(*octets))
    } else {
        key.last_chunk::<4>().map(|octets| IpAddr::from(*octets))
    }
}

/// Deletes the table.
pub(super) fn delete_table(table: &str) -> Message {
    message(NFT_MSG_DELTABLE, 0).attr_str(NFTA_TABLE_NAME, table)
}

/// Asks for the number of the ruleset's generation: every transaction of anybody makes another.
pub(super) fn get_generation() -> Message {
    message(NFT_MSG_GETGEN, 0)
}

pub(super) fn parse_generation(payload: &[u8]) -> Result<Vec<u8>, PlaneError> {
    Ok(Attrs::find_kind(after_fixed(payload)?, NFTA_GEN_ID)?.unwrap_or(&[]).to_vec())
}

/// Asks for the table itself.
pub(super) fn get_table(table: &str) -> Message {
    message(NFT_MSG_GETTABLE, 0).attr_str(NFTA_TABLE_NAME, table)
}

/// Asks for the chains of all tables: the kernel does not narrow this list.
pub(super) fn list_chains() -> Message {
    message(NFT_MSG_GETCHAIN, 0)
}

/// Asks for the rules of a table.
pub(super) fn list_rules(table: &str) -> Message {
    message(NFT_MSG_GETRULE, 0).attr_str(NFTA_RULE_TABLE, table)
}

/// What tells this very table, complete, from another of the same name, or from itself with rules
/// missing, moved or added: the kernel never gives a handle twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TableIdentity {
    pub(super) table: Parts,
    pub(super) chains: Vec<Parts>,
    pub(super) rules: Vec<Parts>,
}

/// Attributes that identify one object.
pub(super) type Parts = Vec<Vec<u8>>;

/// A table's handle, number of chains, maps and counters, and whether it sleeps.
pub(super) fn parse_table(payload: &[u8]) -> Result<Parts, PlaneError> {
    parts(payload, &[NFTA_TABLE_HANDLE, NFTA_TABLE_USE, NFTA_TABLE_FLAGS])
}

/// Name, handle, hook and policy of a chain of this table; chains of others are skipped.
pub(super) fn parse_chain(table: &str, payload: &[u8]) -> Result<Option<Parts>, PlaneError> {
    let of = [NFTA_CHAIN_NAME, NFTA_CHAIN_HANDLE, NFTA_CHAIN_HOOK, NFTA_CHAIN_POLICY];
    parts_in(table, NFTA_CHAIN_TABLE, payload, &of)
}

/// Chain and handle of a rule of this table, in the order of evaluation.
pub(super) fn parse_rule(table: &str, payload: &[u8]) -> Result<Option<Parts>, PlaneError> {
    parts_in(table, NFTA_RULE_TABLE, payload, &[NFTA_RULE_CHAIN, NFTA_RULE_HANDLE])
}

fn parts_in(
    table: &str,
    table_kind: u16,
    payload: &[u8],
    kinds: &[u16],
) -> Result<Option<Parts>, PlaneError> {
    // Tables of one name may exist in several families.
    if payload.first() != Some(&NFPROTO_INET) {
        return Ok(None);
    }
    let name = Attrs::find_kind(after_fixed(payload)?, table_kind)?.unwrap_or(&[]);
    if name.split(|b| *b == 0).next() != Some(table.as_bytes()) {
        return Ok(None);
    }
    parts(payload, kinds).map(Some)
}

fn parts(payload: &[u8], kinds: &[u16]) -> Result<Parts, PlaneError> {
    let attrs = after_fixed(payload)?;
    kinds.iter().map(|kind| Ok(Attrs::find_kind(attrs, *kind)?.unwrap_or(&[]).to_vec())).collect()
}

/// Asks for a map's elements.
pub(super) fn list_elements(table: &str, kind: ChainKind, ipv6: bool) -> Message {
    message(NFT_MSG_GETSETELEM, 0)
        .attr_str(NFTA_SET_ELEM_LIST_TABLE, table)
        .attr_str(NFTA_SET_ELEM_LIST_SET, &map_name(kind, ipv6))
}

/// Addresses and counters of one message of an element dump.
pub(super) fn parse_elements(
    ipv6: bool,
    payload: &[u8],
) -> Result<Vec<(IpAddr, Counter)>, PlaneError> {
    let mut found = Vec::new();
    let attrs = after_fixed(payload)?;
    let Some(list) = Attrs::find_kind(attrs, NFTA_SET_ELEM_LIST_ELEMENTS)? else {
        return Ok(found);
    };
    for element in Attrs::new(list) {
        let element = element?.value;
        let mut address = None;
        let mut counter = Counter::default();
        for attr in Attrs::new(element) {
            let attr = attr?;
            match attr.kind {
                NFTA_SET_ELEM_KEY => {
                    let value = Attrs::find_kind(attr.value, NFTA_DATA_VALUE)?.unwrap_or(&[]);
                    address = key_address(ipv6, value);
                }
                NFTA_SET_ELEM_EXPR => counter = parse_expression(attr.value)?,
                NFTA_SET_ELEM_EXPRESSIONS => {
                    if let Some(one) = Attrs::find_kind(attr.value, NFTA_LIST_ELEM)? {
                        counter = parse_expression(one)?;
                    }
                }
                _ => {}
            }
        }
        found.extend(address.map(|address| (address, counter)));
    }
    Ok(found)
}

fn parse_expression(bytes: &[u8]) -> Result<Counter, PlaneError> {
    let name = Attrs::find_kind(bytes, NFTA_EXPR_NAME)?.unwrap_or(&[]);
    match Attrs::find_kind(bytes, NFTA_EXPR_DATA)? {
        Some(data) if name.starts_with(b"counter") => parse_counter(data),
        _ => Ok(Counter::default()),
    }
}

fn parse_counter(bytes: &[u8]) -> Result<Counter, PlaneError> {
    let number = |kind| {
        Attrs::find_kind(bytes, kind)?.map(attr_u64_be).transpose().map(Option::unwrap_or_default)
    };
    Ok(Counter { packets: number(NFTA_COUNTER_PACKETS)?, bytes: number(NFTA_COUNTER_BYTES)? })
}

/// Asks for the named counters of a table.
pub(super) fn list_counters(table: &str) -> Message {
    message(NFT_MSG_GETOBJ, 0)
        .attr_str(NFTA_OBJ_TABLE, table)
        .attr(NFTA_OBJ_TYPE, &NFT_OBJECT_COUNTER.to_be_bytes())
}

/// Reason and value of one named counter; others' counters are skipped.
pub(super) fn parse_drop_counter(
    table: &str,
    payload: &[u8],
) -> Result<Option<(&'static str, Counter)>, PlaneError> {
    let attrs = after_fixed(payload)?;
    let text = |kind| {
        Ok::<_, PlaneError>(
            Attrs::find_kind(attrs, kind)?
                .and_then(|value| value.split(|b| *b == 0).next())
                .unwrap_or(&[]),
        )
    };
    if text(NFTA_OBJ_TABLE)? != table.as_bytes() {
        return Ok(None);
    }
    let name = text(NFTA_OBJ_NAME)?;
    let reason = DROP_REASONS
        .into_iter()
        .find(|reason| name.strip_prefix(b"drop_") == Some(reason.as_bytes()));
    match (reason, Attrs::find_kind(attrs, NFTA_OBJ_DATA)?) {
        (Some(reason), Some(data)) => Ok(Some((reason, parse_counter(data)?))),
        _ => Ok(None),
    }
}

fn after_fixed(payload: &[u8]) -> Result<&[u8], PlaneError> {
    payload
        .get(FIXED..)
        .ok_or_else(|| PlaneError::Malformed(format!("nftables answer of {} bytes", payload.len())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease() -> LeaseFilter {
        LeaseFilter {
            reqid: 77,
            addresses: vec!["10.0.0.2".parse().unwrap()],
            networks: Vec::new(),
            role: "a_b".to_owned(),
        }
    }

    #[test]
    fn encodes_an_element_as_nft_does() {
        // As `nft add element inet runnel_t fwd4 '{ 10.0.0.2 : jump fwd.a_b }'` sends it,
        // without the set id, which only sets of the same transaction need.
        let messages = bind("runnel_t", PlaneKind::Userspace, &lease());
        assert_eq!(messages.len(), 4);
        let expected: &[u8] = &[
            1, 0, 0, 0, // nfgenmsg
            13, 0, 1, 0, b'r', b'u', b'n', b'n', b'e', b'l', b'_', b't', 0, 0, 0, 0, //
            9, 0, 2, 0, b'f', b'w', b'd', b'4', 0, 0, 0, 0, //
            48, 0, 3, 0x80, 44, 0, 1, 0x80, 12, 0, 1, 0x80, 8, 0, 1, 0, 10, 0, 0, 2, //
            28, 0, 2, 0x80, 24, 0, 2, 0x80, 8, 0, 1, 0, 0xff, 0xff, 0xff, 0xfd, //
            12, 0, 2, 0, b'f', b'w', b'd', b'.', b'a', b'_', b'b', 0,
        ];
        assert_eq!(&messages[0].bytes()[16..], expected);
        // What no chain accepted is counted for the lease: `10.0.0.2 : drop`.
        let refused: &[u8] = &[
            9, 0, 2, 0, b'r', b'e', b'f', b'4', 0, 0, 0, 0, //
            36, 0, 3, 0x80, 32, 0, 1, 0x80, 12, 0, 1, 0x80, 8, 0, 1, 0, 10, 0, 0, 2, //
            16, 0, 2, 0x80, 12, 0, 2, 0x80, 8, 0, 1, 0, 0, 0, 0, 0,
        ];
        assert!(messages[3].bytes().ends_with(refused));
    }

    #[test]
    fn the_kernel_plane_keys_by_reqid_and_source() {
        let address = "10.0.0.2".parse().unwrap();
        let mut expected = 77_u32.to_ne_bytes().to_vec();
        expected.extend_from_slice(&[10, 0, 0, 2]);
        assert_eq!(key(ChainKind::Forward, PlaneKind::Kernel, 77, address), expected);
        assert_eq!(key(ChainKind::Return, PlaneKind::Kernel, 77, address), [10, 0, 0, 2]);
        assert_eq!(key_address(false, &expected), Some(address));
    }

    #[test]
    fn truncated_dumps_are_errors_not_panics() {
        let message = &bind("t", PlaneKind::Kernel, &lease())[0];
        let payload = &message.bytes()[16..];
        assert_eq!(parse_elements(false, payload).unwrap().len(), 1);
        for end in 0..payload.len() {
            let _ = parse_elements(false, &payload[..end]);
            let _ = parse_drop_counter("t", &payload[..end]);
            let _ = parse_table(&payload[..end]);
            let _ = parse_generation(&payload[..end]);
            let _ = parse_chain("t", &payload[..end]);
            let _ = parse_rule("t", &payload[..end]);
        }
        assert!(parse_elements(false, &payload[..3]).is_err());
    }
}
