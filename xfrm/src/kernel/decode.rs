//! What the kernel says about SAs and policies, read with checked lengths.
//!
//! SAs come back with their keys; those attributes are skipped, never copied. Fixed parts are
//! cut to length before the packet crate parses them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_xfrm::constants::{
    AF_INET, AF_INET6, IPPROTO_ESP, XFRM_MSG_ACQUIRE, XFRM_MSG_EXPIRE, XFRM_MSG_MAPPING,
    XFRMA_IF_ID, XFRMA_LASTUSED, XFRMA_REPLAY_ESN_VAL, XFRMA_REPLAY_VAL,
};
use netlink_packet_xfrm::{
    Address, UserAcquire, UserExpire, UserMapping, UserPolicyInfo, UserSaInfo,
    XFRM_USER_ACQUIRE_LEN, XFRM_USER_EXPIRE_LEN, XFRM_USER_MAPPING_LEN, XFRM_USER_POLICY_INFO_LEN,
    XFRM_USER_SA_INFO_LEN,
};

use super::encode::Sequence;
use crate::error::PlaneError;
use crate::model::Spi;
use crate::netlink::{Attrs, attr_u32};

/// One SA as the kernel holds it, without its keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SaState {
    pub(super) destination: IpAddr,
    pub(super) source: IpAddr,
    pub(super) spi: Spi,
    pub(super) protocol: u8,
    pub(super) reqid: u32,
    pub(super) if_id: u32,
    pub(super) bytes: u64,
    pub(super) packets: u64,
    pub(super) drops_replay: u64,
    pub(super) drops_auth: u64,
    /// Seconds of the wall clock.
    pub(super) last_used: Option<u64>,
    pub(super) sequence: Sequence,
}

/// One policy, as far as needed to tell and delete it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PolicyState {
    pub(super) direction: u8,
    pub(super) index: u32,
    pub(super) if_id: u32,
}

/// An event, not yet matched to a child.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Occurrence {
    Expire { destination: IpAddr, spi: Spi, hard: bool, if_id: u32 },
    Mapping { spi: Spi, address: IpAddr, port: u16 },
    Acquire { destination: IpAddr, if_id: u32 },
}

fn short(what: &str, length: usize) -> PlaneError {
    PlaneError::Malformed(format!("{what} of {length} bytes"))
}

fn split<'a>(
    what: &str,
    payload: &'a [u8],
    length: usize,
) -> Result<(&'a [u8], &'a [u8]), PlaneError> {
    payload.split_at_checked(length).ok_or_else(|| short(what, payload.len()))
}

fn refuse(what: &str, error: &impl std::fmt::Display) -> PlaneError {
    PlaneError::Malformed(format!("{what}: {error}"))
}

fn address(family: u16, address: &Address) -> Result<IpAddr, PlaneError> {
    let octets = address.addr;
    match family {
        AF_INET => {
            let [a, b, c, d, ..] = octets;
            Ok(Ipv4Addr::new(a, b, c, d).into())
        }
        AF_INET6 => Ok(Ipv6Addr::from(octets).into()),
        other => Err(PlaneError::Malformed(format!("address family {other}"))),
    }
}

/// Reads `XFRM_MSG_NEWSA` as GETSA answers it.
pub(super) fn sa(payload: &[u8]) -> Result<SaState, PlaneError> {
    let (fixed, attrs) = split("SA", payload, XFRM_USER_SA_INFO_LEN)?;
    let info = UserSaInfo::parse(fixed).map_err(|error| refuse("SA", &error))?;
    let mut state = SaState {
        destination: address(info.family, &info.id.daddr)?,
        source: address(info.family, &info.saddr)?,
        spi: Spi(info.id.spi),
        protocol: info.id.proto,
        reqid: info.reqid,
        if_id: 0,
        bytes: info.lifetime_cur.bytes,
        packets: info.lifetime_cur.packets,
        drops_replay: u64::from(info.stats.replay) + u64::from(info.stats.replay_window),
        drops_auth: u64::from(info.stats.integrity_failed),
        last_used: None,
        sequence: Sequence::default(),
    };
    for attr in Attrs::new(attrs) {
        let attr = attr?;
        match attr.kind {
            XFRMA_IF_ID => state.if_id = attr_u32(attr.value)?,
            XFRMA_LASTUSED => {
                let seconds = attr.value.try_into().map(u64::from_ne_bytes);
                state.last_used = Some(seconds.map_err(|_| short("time", attr.value.len()))?);
            }
            XFRMA_REPLAY_VAL => state.sequence = replay(&words(attr.value)?)?,
            XFRMA_REPLAY_ESN_VAL => state.sequence = replay_esn(&words(attr.value)?)?,
            _ => {}
        }
    }
    Ok(state)
}

fn words(value: &[u8]) -> Result<Vec<u32>, PlaneError> {
    value.chunks(4).map(attr_u32).collect()
}

/// struct xfrm_replay_state: oseq, seq, bitmap.
fn replay(words: &[u32]) -> Result<Sequence, PlaneError> {
    let [sent, received, bitmap] = *words else {
        return Err(short("replay state", words.len() * 4));
    };
    Ok(Sequence { sent: sent.into(), received: received.into(), bitmap: vec![bitmap] })
}

/// struct xfrm_replay_state_esn: bmp_len, oseq, seq, oseq_hi, seq_hi, replay_window, bitmap.
fn replay_esn(words: &[u32]) -> Result<Sequence, PlaneError> {
    let [_, sent, received, sent_high, received_high, _, bitmap @ ..] = words else {
        return Err(short("replay state", words.len() * 4));
    };
    let join = |high: u32, low: u32| u64::from(high) << 32 | u64::from(low);
    Ok(Sequence {
        sent: join(*sent_high, *sent),
        received: join(*received_high, *received),
        bitmap: bitmap.to_vec(),
    })
}

/// Reads `XFRM_MSG_NEWPOLICY` of a dump.
pub(super) fn policy(payload: &[u8]) -> Result<PolicyState, PlaneError> {
    let (fixed, attrs) = split("policy", payload, XFRM_USER_POLICY_INFO_LEN)?;
    let info = UserPolicyInfo::parse(fixed).map_err(|error| refuse("policy", &error))?;
    Ok(PolicyState { direction: info.direction, index: info.index, if_id: if_id(attrs)? })
}

fn if_id(attrs: &[u8]) -> Result<u32, PlaneError> {
    Attrs::find_kind(attrs, XFRMA_IF_ID)?.map_or(Ok(0), attr_u32)
}

/// Reads a multicast message; kinds nobody asked for are `None`.
pub(super) fn occurrence(kind: u16, payload: &[u8]) -> Result<Option<Occurrence>, PlaneError> {
    Ok(match kind {
        XFRM_MSG_EXPIRE => {
            let (fixed, attrs) = split("expire event", payload, XFRM_USER_EXPIRE_LEN)?;
            let event = UserExpire::parse(fixed).map_err(|error| refuse("expire event", &error))?;
            let id = &event.state.id;
            (id.proto == IPPROTO_ESP).then_some(Occurrence::Expire {
                destination: address(event.state.family, &id.daddr)?,
                spi: Spi(id.spi),
                hard: event.hard != 0,
                if_id: if_id(attrs)?,
            })
        }
        XFRM_MSG_MAPPING => {
            let (fixed, _) = split("mapping event", payload, XFRM_USER_MAPPING_LEN)?;
            let event =
                UserMapping::parse(fixed).map_err(|error| refuse("mapping event", &error))?;
            Some(Occurrence::Mapping {
                spi: Spi(event.id.spi),
                address: address(event.id.family, &event.new_saddr)?,
                port: event.new_sport,
            })
        }
        XFRM_MSG_ACQUIRE => {
            let (fixed, attrs) = split("acquire event", payload, XFRM_USER_ACQUIRE_LEN)?;
            let event =
                UserAcquire::parse(fixed).map_err(|error| refuse("acquire event", &error))?;
            let selector = &event.selector;
            Some(Occurrence::Acquire {
                destination: address(selector.family, &selector.daddr)?,
                if_id: if_id(attrs)?,
            })
        }
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use netlink_packet_xfrm::constants::XFRM_MSG_NEWSA;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn whatever_the_kernel_sends_is_no_panic(
            kind in prop_oneof![Just(XFRM_MSG_NEWSA), Just(0x17), Just(0x18), Just(0x26)],
            payload in proptest::collection::vec(any::<u8>(), 0..700),
        ) {
            let _ = sa(&payload);
            let _ = policy(&payload);
            let _ = occurrence(kind, &payload);
        }
    }

    #[test]
    fn joins_the_halves_of_a_sequence_number() {
        let state = replay_esn(&[2, 5, 6, 1, 2, 64, 0xff, 0]).unwrap();
        assert_eq!(state.sent, 0x1_0000_0005);
        assert_eq!(state.received, 0x2_0000_0006);
        assert_eq!(state.bitmap, [0xff, 0]);
        assert!(replay_esn(&[1, 2, 3]).is_err());
        assert!(replay(&[1, 2]).is_err());
    }
}
